"""Comparing on disk, with the extra ``bulk``: what comes of it is what comes of it in memory."""

import tempfile
from functools import partial
from pathlib import Path

import pytest
from generated_pools import Pools, pools_of
from hypothesis import given, settings
from hypothesis import strategies as st

from resolvers.matching import Account, Columns, Means, Vocabulary, match, prepare
from resolvers.matching.bulk import DiskBlocks
from resolvers.matching.candidates import Blocks
from resolvers.matching.matches import Weighed

pytest.importorskip("splink")


def _means(folder: str, rows: int, **more: object) -> Means:
    source = partial(DiskBlocks, folder=Path(folder), rows=rows)
    return Means(source=source, folder=Path(folder), **more)  # type: ignore[arg-type]  # tests' own


@given(
    pools=st.builds(pools_of, people=st.integers(0, 120), seed=st.integers(0, 10_000)),
    rows=st.integers(1, 60),
    overlap=st.sampled_from([None, 0.7]),
    confirmed=st.booleans(),
)
@settings(max_examples=12, deadline=None)
def test_random_populations_match_on_disk_as_they_do_in_memory(
    pools: Pools,
    rows: int,
    overlap: float | None,
    confirmed: bool,  # noqa: FBT001 - hypothesis gives it
) -> None:
    decided = {(0, 0): confirmed} if all(pools) else {}
    here = match(*pools, expected_overlap=overlap, decided=decided)

    with tempfile.TemporaryDirectory() as folder:
        means = _means(folder, rows)
        there = match(*pools, expected_overlap=overlap, decided=decided, means=means)

    assert there.suggestions(range(len(there))) == here.suggestions(range(len(here)))
    assert there.score.tolist() == here.score.tolist()


def test_a_crowd_of_one_name_is_passed_over_on_disk_too(tmp_path: Path) -> None:
    crowd = [
        prepare(
            Account(
                provider_id="1",
                external_id=str(number),
                display_name="Maria Lopez"
                if number % 4
                else f"Maria Lopez {'abcdefgh'[number % 8]}",
                birth_year=1990 + number % 7,
            )
        )
        for number in range(300)
    ]
    vocabulary = Vocabulary()
    columns = (Columns.of(crowd, vocabulary), Columns.of(crowd, vocabulary))
    memory = Blocks(columns)

    disk = DiskBlocks(columns, tmp_path, rows=70)

    found = [disk.pairs(*each) for each in disk.slices]
    assert disk.slices[-1] == (280, 300)
    assert [[side.tolist() for side in pairs] for pairs in found] == [
        [side.tolist() for side in memory.pairs(*each)] for each in disk.slices
    ]
    assert 0 < sum(len(first) for first, _ in found) < 300 * 300


def test_a_comparison_on_disk_goes_on_where_it_was_cut_off() -> None:
    pools = pools_of(200, 9)
    parts: list[Weighed] = []
    with tempfile.TemporaryDirectory() as folder:
        whole = match(*pools, means=_means(folder, 20, keep=parts.append))
    rest: list[Weighed] = []

    with tempfile.TemporaryDirectory() as folder:
        gone_on = match(*pools, means=_means(folder, 30, done=parts[:3], keep=rest.append))

    assert [part.end for part in parts[:3]] == [20, 40, 60]
    assert rest[0].end == 90
    assert gone_on.suggestions(range(len(gone_on))) == whole.suggestions(range(len(whole)))
