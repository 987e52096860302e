"""Comparing many accounts: in slices, by several processes, and on from where it was cut off."""

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import pytest
from generated_pools import Pools, pools_of
from hypothesis import given, settings
from hypothesis import strategies as st

from resolvers.matching import Matches, Means, groups, match, scoring
from resolvers.matching.candidates import Blocks, candidates
from resolvers.matching.columns import Columns, Vocabulary, keys_of
from resolvers.matching.matches import Weighed
from resolvers.matching.spreading import WorkerLost, spread

FORKS = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
SMALL = partial(Blocks, pairs_at_once=5)


POOLS = st.builds(pools_of, people=st.integers(0, 40), seed=st.integers(0, 10_000))


def _told(found: Matches) -> tuple[object, ...]:
    everything = found.suggestions(range(len(found)))
    return (found.left.tolist(), found.right.tolist(), found.score.tolist(), everything)


def _decided(pools: Pools, said: Sequence[tuple[int, int, bool]]) -> Mapping[tuple[int, int], bool]:
    """Return decisions of which none excludes another."""
    sizes, taken = [len(pool) for pool in pools], (set[int](), set[int]())
    decided: dict[tuple[int, int], bool] = {}
    for a, b, same in said:
        if not all(sizes):
            break
        i, j = a % sizes[0], b % sizes[1]
        if (i, j) in decided or (same and (i in taken[0] or j in taken[1])):
            continue
        decided[i, j] = same
        if same:
            taken[0].add(i)
            taken[1].add(j)
    return decided


@given(POOLS, st.lists(st.tuples(st.integers(0), st.integers(0), st.booleans()), max_size=4))
@settings(max_examples=30, deadline=None)
def test_slices_change_nothing_nor_does_going_on_after_any_of_them(
    pools: Pools, said: Sequence[tuple[int, int, bool]]
) -> None:
    decided = _decided(pools, said)
    parts: list[Weighed] = []
    whole = match(*pools, decided=decided)

    sliced = match(*pools, decided=decided, means=Means(source=SMALL, keep=parts.append))
    half = parts[: len(parts) // 2]
    rest: list[Weighed] = []
    gone_on = match(*pools, decided=decided, means=Means(source=SMALL, done=half, keep=rest.append))

    assert _told(sliced) == _told(whole) == _told(gone_on)
    assert [part.end for part in (*half, *rest)] == [part.end for part in parts]


@FORKS
def test_several_processes_find_what_one_finds() -> None:
    pools = pools_of(300, 5)
    shares: list[float] = []

    found = match(*pools, progress=shares.append, means=Means(processes=3, source=SMALL))

    assert _told(found) == _told(match(*pools))
    assert shares == sorted(shares)
    assert (shares[-1], len(shares) > 100) == (1.0, True)


@given(POOLS)
@settings(max_examples=30, deadline=None)
def test_pairs_that_share_a_key_few_share_are_compared_and_no_others(pools: Pools) -> None:
    vocabulary = Vocabulary()
    left, right = (Columns.of(pool, vocabulary) for pool in pools)
    keys = [
        [set(row) - {0} for row in keys_of(side, np.arange(side.count)).tolist()]
        for side in (left, right)
    ]

    first, second = candidates((left, right))

    assert list(zip(first.tolist(), second.tolist(), strict=True)) == [
        (i, j) for i, here in enumerate(keys[0]) for j, there in enumerate(keys[1]) if here & there
    ]


@given(POOLS)
@settings(max_examples=20, deadline=None)
def test_company_is_counted_alike_where_much_of_it_is_kept_and_where_little(pools: Pools) -> None:
    counted_at_once = match(*pools)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groups, "_MAX_MET", -1)
        counted_one_by_one = match(*pools)

    assert _told(counted_one_by_one) == _told(counted_at_once)


def _all_cells(columns: Columns, *names: np.ndarray) -> object:
    """Return where all tokens are, in place of those worth comparing."""
    at, i, j = np.nonzero((names[0] >= 0)[:, :, None] & (names[1] >= 0)[:, None, :])
    return (at, i, j), names[0][at, i], names[1][at, j]


@given(POOLS)
@settings(max_examples=20, deadline=None)
def test_what_is_passed_over_early_would_have_said_nothing(pools: Pools) -> None:
    vocabulary = Vocabulary()
    left, right = (Columns.of(pool, vocabulary) for pool in pools)
    every = np.indices((left.count, right.count)).reshape(2, -1)
    some = scoring.compare(left, right, (every[0], every[1]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "_worth_comparing", _all_cells)
        patch.setattr(scoring, "_may_be_made_of", lambda *_: np.ones(every.shape[1], np.bool_))
        everything = scoring.compare(left, right, (every[0], every[1]))

    assert [column.tolist() for column in some] == [column.tolist() for column in everything]


@FORKS
@pytest.mark.parametrize("way", [lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: 1 / 0])
def test_a_process_that_ends_before_its_part_is_done_is_noticed(
    way: Callable[[], object], capfd: pytest.CaptureFixture[str]
) -> None:
    def work(number: int) -> int:
        if number == 3:
            way()
        return number

    parts = spread(work, 6, 2)

    assert [next(parts) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(WorkerLost):
        next(parts)


@FORKS
def test_processes_end_with_what_they_are_for() -> None:
    parts = spread(lambda _: os.getpid(), 1000, 2)
    workers = {next(parts), next(parts)}

    parts.close()  # type: ignore[attr-defined]  # it is a generator

    assert os.getpid() not in workers
    for worker in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)
