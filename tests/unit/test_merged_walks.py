"""Walks over several providers at once: every row once, whatever happens, in the fewest calls."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from merged_walks import Outcome, run_case

from resolvers.cursors import CursorSealer
from resolvers.errors import BadInput
from resolvers.paging import (
    CollectedRow,
    Connection,
    PageRequest,
    SortedStreams,
    SourceState,
    merge_providers,
    page_of_rows,
    walk_providers,
)
from sessions.base import Page
from sessions.errors import ProviderUnavailable
from storage.credentials import Secret
from storage.records import Provider, ProviderState

NOW = datetime(2026, 3, 1, tzinfo=UTC)
SEALER = CursorSealer(Secret(b"key"), "query")


def test_every_row_comes_once_and_in_order_whatever_happens_on_the_way() -> None:
    async def walk_all() -> Outcome:
        total = Outcome()
        for seed in range(4000):
            total.add(await run_case(seed))
        return total

    total = asyncio.run(walk_all())

    assert (total.lost, total.doubled, total.misordered, total.wrong) == (0, 0, 0, 0)
    assert total.pages > 12_000
    assert total.changes > 15_000


@given(seed=st.integers(min_value=10**6))
@settings(max_examples=200, deadline=None)
@example(14003)  # rows inserted into a page push given ones on to the next
@example(15315)  # an anchor renamed, with pages of one row
@example(7628)  # rows inserted before the very first
def test_any_walk_at_all_gives_every_row_once(seed: int) -> None:
    outcome = asyncio.run(run_case(seed))

    assert outcome.is_good, outcome


# ---- calls


@dataclass(slots=True)
class Sorting:
    """A provider whose list is sorted: names, in pages whose positions are offsets."""

    id: str
    names: list[str]
    page_size: int = 3
    calls: list[tuple[str | None, int]] = field(default_factory=list)
    failing_from: str | None = "never"

    @property
    def provider(self) -> Provider:
        at = NOW + timedelta(seconds=ord(self.id))
        return Provider(
            id=self.id,
            platform="pretend",
            name="",
            base_url="https://pretend.test",
            options={},
            state=ProviderState.ACTIVE,
            revision=1,
            created_at=at,
            updated_at=at,
        )

    def page(self, position: str | None, limit: int) -> Page[str]:
        self.calls.append((position, limit))
        if position == self.failing_from:
            raise ProviderUnavailable("Down")
        start = int(position or 0)
        following = start + limit
        more = following < len(self.names)
        return Page(
            items=self.names[start:following],
            next_position=str(following) if more else None,
            total=len(self.names),
        )


def a_request(first: int, after: str | None = None) -> PageRequest:
    return PageRequest.checked(first=first, after=after, sealer=SEALER, max_page_size=1000)


async def merged(
    schools: Sequence[Sorting],
    first: int,
    *,
    after: str | None = None,
    sorting: Iterable[str] | None = None,
    matches: Callable[[str], bool] | None = None,
    descending: bool = False,
) -> Connection[str]:
    by_id = {school.id: school for school in schools}

    async def fetch_page(provider_id: str, position: str | None, limit: int) -> Page[str]:
        return by_id[provider_id].page(position, limit)

    async def collect(provider: Provider) -> list[CollectedRow[str]]:
        names = by_id[provider.id].page(None, 1000).items
        return [
            CollectedRow(row=name, key=(name, provider.id), provider_id=provider.id)
            for name in names
            if matches is None or matches(name)
        ]

    return await merge_providers(
        [school.provider for school in schools],
        streams=SortedStreams(
            provider_ids=list(by_id if sorting is None else sorting),
            fetch_page=fetch_page,
            id_of=lambda name: name,
            limit_of=lambda provider: by_id[provider.id].page_size,
            key_of=lambda provider, name: (name, provider.id),
            matches=matches,
        ),
        collect=collect,
        request=a_request(first, after),
        descending=descending,
    )


async def test_a_page_asks_each_provider_once_and_again_only_where_its_rows_ran_out() -> None:
    early = Sorting("a", ["a1", "a2", "a3", "a4", "a5"])
    late = Sorting("b", ["x1", "x2", "x3", "x4"])
    collected = Sorting("c", ["a0", "z"])

    page = await merged([early, late, collected], 6, sorting=["a", "b"])

    assert page.nodes == ["a0", "a1", "a2", "a3", "a4", "a5"]
    assert early.calls == [(None, 3), ("3", 3)]
    assert late.calls == [(None, 3)]
    assert collected.calls == [(None, 1000)]
    assert page.has_next_page is True


async def test_a_page_that_ends_with_a_providers_page_does_not_ask_for_the_next() -> None:
    school = Sorting("a", ["a1", "a2", "a3", "a4"])

    page = await merged([school], 3)
    rest = await merged([school], 3, after=page.end_cursor)

    assert (page.nodes, page.has_next_page) == (["a1", "a2", "a3"], True)
    assert (rest.nodes, rest.has_next_page) == (["a4"], False)
    assert school.calls == [(None, 3), ("3", 3)]


async def test_a_longer_page_of_ours_asks_for_longer_pages_of_theirs() -> None:
    school = Sorting("a", [f"a{number:02}" for number in range(90)], page_size=50)

    page = await merged([school], 3)
    within = await merged([school], 40, after=page.cursor_of(0))
    behind = await merged([school], 100, after=page.end_cursor)

    assert (within.nodes, behind.nodes) == (school.names[1:41], school.names[3:])
    assert school.calls == [(None, 3), (None, 41), ("3", 50), ("53", 50)]


async def test_a_filtered_page_reads_on_until_it_knows_whether_there_is_more() -> None:
    school = Sorting("a", ["a1", "b2", "a3", "b4", "b5", "b6", "b7"])

    page = await merged([school], 1, matches=lambda name: name.startswith("a"))
    last = await merged(
        [school], 1, after=page.end_cursor, matches=lambda name: name.startswith("a")
    )

    assert (page.nodes, page.has_next_page, page.total_count) == (["a1"], True, None)
    assert (last.nodes, last.has_next_page) == (["a3"], False)
    assert school.calls == [(None, 3), (None, 3), ("3", 3), ("6", 3)]


async def test_rows_already_passed_over_are_not_read_again() -> None:
    far = Sorting("a", [*(f"b{number}" for number in range(9)), "m"])
    near = Sorting("b", ["a1", "a2", "a3"])

    def is_meant(name: str) -> bool:
        return not name.startswith("b")

    page = await merged([far, near], 3, matches=is_meant)
    far.calls.clear()
    rest = await merged([far, near], 3, after=page.end_cursor, matches=is_meant)

    assert page.nodes == ["a1", "a2", "a3"]
    assert rest.nodes == ["m"]
    assert far.calls == [("9", 3)]


async def test_a_provider_with_an_alphabet_of_its_own_keeps_its_order_and_loses_nothing() -> None:
    theirs = Sorting("a", ["b", "a", "d", "c"], page_size=2)
    ours = Sorting("b", ["a", "b", "c", "d", "e"])

    page = await merged([theirs, ours], 100)
    names: list[str] = []
    after = None
    while True:
        one = await merged([theirs, ours], 1, after=after)
        names += one.nodes
        after = one.end_cursor
        if not one.has_next_page:
            break

    assert page.nodes == ["a", "b", "a", "b", "c", "d", "c", "d", "e"]
    assert names == page.nodes


async def test_a_provider_failing_in_the_middle_keeps_its_place_and_its_rows_come_once() -> None:
    failing = Sorting("a", ["a1", "a2", "a3", "a4"], page_size=2)
    healthy = Sorting("b", ["a2", "b1", "b2"])
    failing.failing_from = "2"

    page = await merged([failing, healthy], 4)
    failing.failing_from = "never"
    rest = await merged([failing, healthy], 9, after=page.end_cursor)

    assert page.nodes == ["a1", "a2", "a2", "b1"]
    assert [source.state for source in page.sources] == [SourceState.FAILED, SourceState.OK]
    assert page.total_count is None
    assert rest.nodes == ["a3", "a4", "b2"]
    assert [source.state for source in rest.sources] == [SourceState.OK, SourceState.OK]


async def test_a_provider_registered_on_the_way_gives_what_lies_behind_the_cursor() -> None:
    first, second = Sorting("a", ["a", "k", "z"]), Sorting("b", ["b", "y"])
    newcomer = Sorting("c", ["aa", "x"])

    page = await merged([first, second], 2)
    rest = await merged([first, newcomer], 9, after=page.end_cursor)
    back = await merged([first, second], 9, after=rest.end_cursor)

    assert page.nodes == ["a", "b"]
    assert rest.nodes == ["k", "x", "z"]
    assert back.nodes == ["y"]


async def test_totals_add_up_when_every_provider_tells_its_own() -> None:
    page = await merged([Sorting("a", ["a", "b"]), Sorting("b", ["c"])], 1, sorting=["a"])

    assert page.total_count == 3


def test_rows_at_hand_with_the_same_key_count_as_one() -> None:
    rows = [CollectedRow(row=name, key=("k",), provider_id="a") for name in ("old", "new")]

    page = page_of_rows(rows, sources=(), request=a_request(5))

    assert (page.nodes, page.total_count) == (["new"], 1)


@pytest.mark.parametrize("descending", [False, True])
def test_equal_names_are_told_apart_by_every_cursor(descending: bool) -> None:  # noqa: FBT001
    rows = [
        CollectedRow(
            row=f"{provider}{number}", key=("same", provider, number), provider_id=provider
        )
        for provider in "ab"
        for number in range(3)
    ]

    def page(first: int, after: str | None = None) -> Connection[str]:
        return page_of_rows(
            rows, sources=(), request=a_request(first, after), descending=descending
        )

    whole = page(9)
    behind = [page(9, whole.cursor_of(index)).nodes for index in range(6)]

    assert behind == [whole.nodes[index + 1 :] for index in range(6)]


async def test_rows_of_a_page_that_were_renamed_or_removed_hide_no_other() -> None:
    school = Sorting("a", ["a", "b", "c", "d"], page_size=4)

    async def page(first: int, after: str | None) -> Connection[str]:
        async def fetch_page(_id: str, position: str | None, limit: int) -> Page[str]:
            return school.page(position, limit)

        return await walk_providers(
            [school.provider],
            fetch_page=fetch_page,
            id_of=lambda name: name.lower(),
            limit_of=lambda _provider: 4,
            request=a_request(first, after),
            patience_seconds=60,
            wants_total=False,
        )

    whole = await page(4, None)
    school.names = ["a", "c", "B", "d"]  # b is further on now
    rest = await page(4, whole.cursor_of(1))
    school.names = ["c", "d", "e", "f"]  # a and b are gone
    later = await page(4, whole.cursor_of(1))

    assert rest.nodes == ["c", "d"]
    assert later.nodes == ["c", "d", "e", "f"]


async def test_long_ids_are_remembered_by_a_hash() -> None:
    names = [f"a-very-long-external-id-{number}" for number in range(4)]
    school = Sorting("a", names, page_size=4)

    page = await merged([school], 4)
    rest = await merged([school], 4, after=page.cursor_of(1))

    state: Any = SEALER.open(page.cursor_of(1))
    assert rest.nodes == names[2:]
    assert [len(mark) for mark in state[1][2][0][2:]] == [9, 9]


# ---- age


def test_a_cursor_is_good_for_its_time_from_the_first_page_on() -> None:
    rows = [CollectedRow(row=n, key=(n,), provider_id="a") for n in range(9)]

    def page(at: float, after: str | None) -> Connection[int]:
        request = PageRequest.checked(
            first=1,
            after=after,
            sealer=SEALER,
            max_page_size=10,
            cursor_seconds=3600,
            now=lambda: at,
        )
        return page_of_rows(rows, sources=(), request=request)

    first = page(1000, None)
    second = page(1000 + 3000, first.end_cursor)

    assert page(1000 + 3600, second.end_cursor).nodes == [2]
    assert page(500, second.end_cursor).nodes == [2]  # the clock was put back
    with pytest.raises(
        BadInput,
        match=r"^after: This walk began 1\.5 hours ago, and cursors are good for 60 minutes;"
        r" begin anew, without after$",
    ):
        page(1000 + 5400, second.end_cursor)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.5, "0.5 seconds"), (90, "1.5 minutes"), (86_400, "24 hours"), (700_000, "8.1 days")],
)
def test_an_age_is_told_in_a_suitable_unit(seconds: float, words: str) -> None:
    cursor = SEALER.seal([0, None])

    with pytest.raises(BadInput, match=f"began {words} ago"):
        PageRequest.checked(
            first=1,
            after=cursor,
            sealer=SEALER,
            max_page_size=10,
            cursor_seconds=0.1,
            now=lambda: seconds,
        )
