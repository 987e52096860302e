"""Walks over several providers: every row once, whatever fails on the way."""

import asyncio
import dataclasses
import json
import random
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from datetime import timedelta
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from pretend_roster import (
    NOW,
    PLATFORM,
    Key,
    RecordingSession,
    World,
    a_context,
    a_course,
    a_provider,
    a_user,
    an_enrollment,
    ask,
)

from resolvers import roster
from resolvers.collation import fold
from resolvers.context import ReadingLimits
from resolvers.cursors import CursorSealer
from resolvers.errors import BadInput, Forbidden, RequestLimitExceeded
from resolvers.lists import PageArguments
from resolvers.loaders import when_there
from resolvers.paging import Connection, PageRequest, SourceState, walk_providers
from resolvers.roster import (
    CourseFilter,
    CourseOrderField,
    EnrollmentOrderField,
    UserFilter,
    UserOrderField,
)
from sessions.base import ListOrder, Page
from sessions.errors import (
    NotSupported,
    ProviderBadResponse,
    ProviderForbidden,
    ProviderNotFound,
    ProviderUnavailable,
)
from storage.credentials import Secret
from storage.records import Course, Enrollment, User

T = TypeVar("T")

Order = tuple[UserOrderField, bool]
ORDERS = st.tuples(st.sampled_from(UserOrderField), st.booleans())
FILTERS = st.sampled_from(
    [
        UserFilter(),
        UserFilter(search="a"),
        UserFilter(provider_ids=("p2", "p0")),
        UserFilter(active=True),
    ]
)
NAMES = st.sampled_from(["", "Ana", "ana", "Ána", "Bo", "Zoë", "zoe", "bo a"])
ROSTERS = st.lists(
    st.lists(st.tuples(NAMES, st.none() | NAMES, st.sampled_from([True, False, None])), max_size=9),
    min_size=1,
    max_size=4,
)


def world_of(rosters: Sequence[Sequence[tuple[str, str | None, bool | None]]], size: int) -> World:
    world = World(platform=replace(PLATFORM, page_size=size))
    for number, rows in enumerate(rosters):
        provider_id = f"p{number}"
        world.add(provider_id).users = [
            a_user(provider_id, index, display_name=name, username=username, active=active)
            for index, (name, username, active) in enumerate(rows)
        ]
    return world


def expected_rows(world: World, wanted: UserFilter) -> list[tuple[str, str]]:
    return sorted(
        (user.provider_id, user.external_id)
        for provider_id, provider in world.rosters.items()
        if wanted.provider_ids is None or provider_id in wanted.provider_ids
        for user in provider.users
        if (wanted.active is None or user.active == wanted.active)
        and (
            wanted.search is None
            or wanted.search in fold(user.display_name)
            or wanted.search in fold(user.username or "")
        )
    )


async def walk(
    world: World,
    wanted: UserFilter,
    order: Order,
    sizes: Callable[[], int],
    before_page: Callable[[int], None] = lambda _page: None,
    pages_at_most: int = 400,
) -> list[Connection[User]]:
    """Ask for page after page, until the providers that answer have no more."""
    pages: list[Connection[User]] = []
    after: str | None = None
    while len(pages) < pages_at_most:
        before_page(len(pages))
        page = await roster.users(
            a_context(world),
            filter=wanted,
            order=order[0],
            descending=order[1],
            page=PageArguments(first=sizes(), after=after),
        )
        pages.append(page)
        after = page.end_cursor
        failed = any(
            source.state is SourceState.FAILED and source.provider is not None
            for source in page.sources
        )
        if not page.has_next_page and not failed:
            return pages
    return pages


def rows_of(pages: Sequence[Connection[User]]) -> list[tuple[str, str]]:
    return [(user.provider_id, user.external_id) for page in pages for user in page.nodes]


@given(
    rosters=ROSTERS,
    page_size=st.integers(1, 7),
    wanted=FILTERS,
    order=ORDERS,
    seed=st.integers(0, 1000),
)
@settings(max_examples=150, deadline=None)
def test_a_walk_gives_every_row_once_at_any_page_size(
    rosters: list[list[tuple[str, str | None, bool | None]]],
    page_size: int,
    wanted: UserFilter,
    order: Order,
    seed: int,
) -> None:
    world = world_of(rosters, page_size)
    chance = random.Random(seed)

    pages = asyncio.run(walk(world, wanted, order, lambda: chance.randint(1, 8)))

    assert sorted(rows_of(pages)) == [
        row for row in expected_rows(world, wanted) if row[0] in world.rosters
    ]
    assert all(page.nodes for page in pages[1:])
    assert [page.has_next_page for page in pages] == [True] * (len(pages) - 1) + [False]


@given(
    rosters=ROSTERS,
    page_size=st.integers(1, 7),
    order=ORDERS,
    wanted=st.sampled_from([UserFilter(), UserFilter(search="a"), UserFilter(active=True)]),
    seed=st.integers(0, 1000),
    calls_before_failing=st.integers(0, 3),
)
@settings(max_examples=150, deadline=None)
def test_a_provider_that_fails_and_returns_gives_its_rows_once(
    rosters: list[list[tuple[str, str | None, bool | None]]],
    page_size: int,
    order: Order,
    wanted: UserFilter,
    seed: int,
    calls_before_failing: int,
) -> None:
    world = world_of(rosters, page_size)
    chance = random.Random(seed)

    def break_or_mend(page: int) -> None:
        for provider in world.rosters.values():
            broken = page < 12 and chance.random() < 0.5
            provider.failure = ProviderUnavailable("Down") if broken else None

    pages = asyncio.run(walk(world, wanted, order, lambda: chance.randint(1, 8), break_or_mend))

    assert sorted(rows_of(pages)) == expected_rows(world, wanted)


@given(rosters=ROSTERS, page_size=st.integers(1, 7), order=ORDERS, seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_every_rows_own_cursor_leads_to_the_rows_behind_it(
    rosters: list[list[tuple[str, str | None, bool | None]]],
    page_size: int,
    order: Order,
    seed: int,
) -> None:
    world = world_of(rosters, page_size)
    chance = random.Random(seed)

    async def pages_after(after: str | None, first: int) -> Connection[User]:
        return await roster.users(
            a_context(world),
            order=order[0],
            descending=order[1],
            page=PageArguments(first=first, after=after),
        )

    async def compare() -> None:
        whole = await pages_after(None, 1000)
        if whole.nodes:
            at = chance.randrange(len(whole.nodes))
            rest = await pages_after(whole.cursor_of(at), 1000)
            assert rows_of([rest]) == rows_of([whole])[at + 1 :]

    asyncio.run(compare())


@given(rosters=ROSTERS, order=ORDERS, first=st.integers(1, 5), gone=st.integers(0, 40))
@settings(max_examples=150, deadline=None)
def test_a_row_removed_on_the_way_doubles_no_other(
    rosters: list[list[tuple[str, str | None, bool | None]]], order: Order, first: int, gone: int
) -> None:
    world = world_of(rosters, 3)
    collected = UserFilter(search="")

    def remove_one(page: int) -> None:
        rows = [row for provider in world.rosters.values() for row in provider.users]
        if page == 1 and rows:
            lost = rows[gone % len(rows)]
            world.rosters[lost.provider_id].users.remove(lost)

    before = expected_rows(world, UserFilter())
    pages = asyncio.run(walk(world, collected, order, lambda: first, remove_one))

    found = rows_of(pages)
    assert len(found) == len(set(found))
    assert set(expected_rows(world, UserFilter())) <= set(found) <= set(before)


async def test_a_dead_provider_is_named_keeps_its_place_and_does_not_end_the_walk() -> None:
    world = World()
    world.add("a", user_count=2).failure = ProviderUnavailable("Down", provider_id="a")
    world.add("b", user_count=2)

    page = await roster.users(a_context(world), page=PageArguments(first=10))
    world.rosters["a"].failure = None
    again = await roster.users(
        a_context(world), page=PageArguments(first=10, after=page.end_cursor)
    )

    assert [source.state for source in page.sources] == [SourceState.FAILED, SourceState.OK]
    assert rows_of([page]) == [("b", "u0"), ("b", "u1")]
    assert page.has_next_page is False
    assert rows_of([again]) == [("a", "u0"), ("a", "u1")]


async def test_a_slow_provider_does_not_hold_up_asking_the_next() -> None:
    world = World(limits=ReadingLimits(cursor_key=Secret(b"key"), patience_seconds=0.01))
    for provider_id in ("a", "b", "c"):
        world.add(provider_id, user_count=2).delay_seconds = 0.2
    loop = asyncio.get_running_loop()

    begun = loop.time()
    page = await roster.users(a_context(world), page=PageArguments(first=10))

    assert rows_of([page]) == [(name, f"u{number}") for name in "abc" for number in (0, 1)]
    assert loop.time() - begun < 0.5


async def test_a_page_within_one_provider_is_one_call_and_asks_no_other() -> None:
    world = World()
    world.add("a", user_count=1000)
    world.add("b", user_count=1000)

    page = await roster.users(a_context(world), page=PageArguments(first=500))

    assert len(page.nodes) == 500
    assert world.rosters["a"].calls == [("list_users", (None, 500))]
    assert world.rosters["b"].calls == []
    assert [source.state for source in page.sources] == [SourceState.OK, SourceState.NOT_ASKED]


async def test_the_total_asks_providers_the_page_did_not_need_for_one_row() -> None:
    world = World()
    world.add("a", user_count=1000)
    world.add("b", user_count=7)

    page = await roster.users(a_context(world), page=PageArguments(first=500), wants_total=True)

    assert page.total_count == 1007
    assert world.rosters["b"].calls == [("list_users", (None, 1))]


async def test_the_total_is_unknown_when_a_provider_fails_or_does_not_say() -> None:
    world = World()
    world.add("a", user_count=3)
    world.add("b", user_count=3).tells_total = False

    silent = await roster.users(a_context(world), wants_total=True)
    world.rosters["b"].failure = ProviderUnavailable("Down")
    failed = await roster.users(a_context(world), wants_total=True)
    filtered = await roster.users(a_context(world), filter=UserFilter(search="user"))

    assert (silent.total_count, failed.total_count, filtered.total_count) == (None, None, None)


async def test_a_list_too_long_to_sort_is_refused_with_advice() -> None:
    world = World(limits=ReadingLimits(cursor_key=Secret(b"key"), max_collected_rows=10))
    world.add("a", user_count=6)
    world.add("b", user_count=6)

    with pytest.raises(RequestLimitExceeded, match=r"may read 10 rows.*filter\.providerIds"):
        await roster.users(a_context(world), order=UserOrderField.USERNAME)


async def test_names_are_sorted_blind_to_case_and_accents_and_those_without_come_last() -> None:
    world = World()
    world.add("a").users = [
        a_user("a", number, username=name)
        for number, name in enumerate([None, "Éve", "adam", "Zoë", "eva", "Bo"])
    ]

    page = await roster.users(a_context(world), order=UserOrderField.USERNAME)

    assert [user.username for user in page.nodes] == ["adam", "Bo", "eva", "Éve", "Zoë", None]


async def test_a_cursor_serves_no_other_filter_or_order() -> None:
    world = World()
    world.add("a", user_count=5)
    page = await roster.users(a_context(world), page=PageArguments(first=2))
    after = PageArguments(first=2, after=page.end_cursor)

    for other in (
        roster.users(a_context(world), filter=UserFilter(search="x"), page=after),
        roster.users(a_context(world), order=UserOrderField.USERNAME, page=after),
        roster.users(a_context(world), descending=True, page=after),
        roster.courses(a_context(world), page=after),
    ):
        with pytest.raises(BadInput, match=r"^after: "):
            await other
    assert len(world.rosters["a"].calls) == 1


# Whole lists


async def everything(pages: AsyncGenerator[Page[T], None]) -> list[T]:
    async with aclosing(pages):
        return [row async for page in pages for row in page.items]


async def test_a_whole_list_comes_page_by_page_and_is_read_one_page_ahead() -> None:
    world = World(platform=replace(PLATFORM, page_size=4))
    school = world.add("a", user_count=10)
    pages = roster.list_user_pages(a_context(world), "a")

    first = await anext(pages)
    await asyncio.sleep(0.01)
    calls_at_first = len(school.calls)
    rest = await everything(pages)

    assert [user.external_id for user in (*first.items, *rest)] == [f"u{n}" for n in range(10)]
    assert calls_at_first == 2
    assert len(school.calls) == 3


async def test_a_whole_list_leaves_out_rows_that_come_twice() -> None:
    world = World(platform=replace(PLATFORM, page_size=2))
    world.add("a").users = [a_user("a", number) for number in (0, 1, 1, 2, 0, 3)]

    rows = await everything(roster.list_user_pages(a_context(world), "a"))

    assert [user.external_id for user in rows] == ["u0", "u1", "u2", "u3"]


async def test_a_whole_list_ends_with_the_providers_error_after_the_good_pages() -> None:
    world = World(platform=replace(PLATFORM, page_size=2))
    failing = world.add("a", user_count=6)
    pages = roster.list_user_pages(a_context(world), "a")

    first = await anext(pages)
    await asyncio.sleep(0.01)  # the second page is read ahead
    failing.failure = ProviderUnavailable("Down")
    second = await anext(pages)

    with pytest.raises(ProviderUnavailable, match="Down"):
        await anext(pages)
    given_ids = [user.external_id for page in (first, second) for user in page.items]
    assert given_ids == ["u0", "u1", "u2", "u3"]


async def test_a_whole_list_given_up_early_cancels_the_page_under_way() -> None:
    world = World(platform=replace(PLATFORM, page_size=2))
    slow = world.add("a", user_count=6)
    pages = roster.list_user_pages(a_context(world), "a")

    first = await anext(pages)
    slow.delay_seconds = 60
    await pages.aclose()

    assert [user.external_id for user in first.items] == ["u0", "u1"]
    assert first.total == 6


async def test_courses_and_enrollments_come_whole_too() -> None:
    world = World()
    world.add("a", course_count=3).enrollments = [an_enrollment("a", "u0", "c1")]

    courses = await everything(roster.list_course_pages(a_context(world), "a"))
    enrollments = await everything(roster.list_enrollment_pages(a_context(world), "a"))

    assert [row.external_id for row in courses] == ["c0", "c1", "c2"]
    assert [row.id for row in enrollments] == ["u0-c1"]


async def test_a_platform_that_is_gone_is_read_in_small_pages() -> None:
    world = World(platform=replace(PLATFORM, name="another"))
    school = world.add("a", user_count=150)

    rows = await everything(roster.list_user_pages(a_context(world), "a"))

    assert len(rows) == 150
    assert [arguments for _name, arguments in school.calls] == [(None, 100), ("100", 100)]


async def test_a_list_that_does_not_advance_is_an_error_not_a_loop() -> None:
    async def same_page(_provider: str, _position: str | None, _limit: int) -> Page[User]:
        return Page(items=[], next_position="2")

    request = PageRequest.checked(
        first=5, after=None, sealer=CursorSealer(Secret(b"k"), "q"), max_page_size=10
    )
    page = await walk_providers(
        [a_provider("a")],
        fetch_page=same_page,
        id_of=lambda user: user.external_id,
        limit_of=lambda _provider: 10,
        request=request,
        patience_seconds=1,
        wants_total=False,
    )

    assert isinstance(page.sources[0].error, ProviderBadResponse)


async def test_a_whole_list_of_an_unknown_provider_or_without_the_scope_is_refused() -> None:
    world = World()
    world.add("a", user_count=1)

    with pytest.raises(ProviderNotFound):
        await anext(roster.list_user_pages(a_context(world), "b"))
    with pytest.raises(Forbidden, match="read:users"):
        await anext(roster.list_user_pages(a_context(world, Key(frozenset())), "a"))
    assert world.rosters["a"].calls == []


async def test_a_native_list_that_does_not_advance_ends_with_an_error() -> None:
    world = World(platform=replace(PLATFORM, page_size=1))
    world.add("a", user_count=3).stuck = True

    with pytest.raises(ProviderBadResponse, match="does not advance"):
        await everything(roster.list_user_pages(a_context(world), "a"))


async def test_the_total_of_a_provider_that_fails_when_counted_is_unknown_and_it_is_named() -> None:
    world = World()
    world.add("a", user_count=9)
    world.add("b", user_count=9).failure = ProviderForbidden("No permission")

    page = await roster.users(a_context(world), page=PageArguments(first=5), wants_total=True)

    assert page.total_count is None
    assert [source.state for source in page.sources] == [SourceState.OK, SourceState.FAILED]


# Orders


def modified(row: T, minutes: int | None) -> T:
    """The row, last changed so many minutes ago."""
    assert isinstance(row, User | Course | Enrollment)
    at = None if minutes is None else NOW - timedelta(minutes=minutes)
    return structs.replace(row, provenance=structs.replace(row.provenance, modified_at=at))


@pytest.mark.parametrize(("descending", "expected"), [(False, "210n"), (True, "012n")])
async def test_rows_come_by_when_they_changed_and_those_that_do_not_tell_last(
    descending: bool,  # noqa: FBT001
    expected: str,
) -> None:
    world = World()
    ages = {"n": None, "0": 0, "2": 2, "1": 1}
    for number, (name, minutes) in enumerate(ages.items()):
        school = world.add(name)
        school.users = [modified(a_user(name, number), minutes)]
        school.courses = [modified(a_course(name, number), minutes)]
        school.enrollments = [modified(an_enrollment(name, "u0", "c0"), minutes)]

    users = await roster.users(
        a_context(world), order=UserOrderField.MODIFIED, descending=descending
    )
    courses = await roster.courses(
        a_context(world), order=CourseOrderField.MODIFIED, descending=descending
    )
    enrollments = await roster.enrollments(
        a_context(world), order=EnrollmentOrderField.MODIFIED, descending=descending
    )

    for page in (users, courses, enrollments):
        assert "".join(row.provider_id for row in page.nodes) == expected


@pytest.mark.parametrize("descending", [False, True])
async def test_users_without_a_username_come_last_whichever_end_comes_first(
    descending: bool,  # noqa: FBT001
) -> None:
    world = World()
    world.add("a").users = [
        a_user("a", number, username=name) for number, name in enumerate([None, "eva", "bo"])
    ]

    page = await roster.users(
        a_context(world), order=UserOrderField.USERNAME, descending=descending
    )

    names = [user.username for user in page.nodes]
    assert names == (["eva", "bo", None] if descending else ["bo", "eva", None])


async def test_an_order_through_graphql_combines_with_filters_and_cursors() -> None:
    world = World()
    world.add("a").enrollments = [
        modified(an_enrollment("a", f"u{number}", "c0"), number) for number in range(3)
    ]
    query = """query ($after: String) { enrollments(filter: { roles: [STUDENT] }, first: 2,
        after: $after, orderBy: { field: MODIFIED, direction: DESC }) {
        nodes { externalId } pageInfo { endCursor hasNextPage } } }"""

    first = (await ask(world, query))["data"]["enrollments"]
    second = await ask(world, query, {"after": first["pageInfo"]["endCursor"]})

    assert [row["externalId"] for row in first["nodes"]] == ["u0-c0", "u1-c0"]
    assert [row["externalId"] for row in second["data"]["enrollments"]["nodes"]] == ["u2-c0"]


# Providers that sort for themselves

TITLES = ("ada", "Bo", "cid", "Dan", "eve", "Fay", "gus", "Hal")
BY_TITLE = frozenset({ListOrder.COURSES_BY_TITLE, ListOrder.COURSES_BY_TITLE_DESCENDING})


class SortingSession(RecordingSession):
    """A session that lists courses by title too."""

    async def list_sorted_courses(
        self, order: ListOrder, *, position: str | None, limit: int
    ) -> Page[Course]:
        await self._called("list_sorted_courses", (order, position, limit))
        descending = order is ListOrder.COURSES_BY_TITLE_DESCENDING
        rows = sorted(
            self.roster.courses, key=lambda course: course.title.casefold(), reverse=descending
        )
        return self._page(rows, position, limit)


def sorting_world() -> World:
    """Two providers that sort, and one of another platform, which does not."""
    world = World(platform=replace(PLATFORM, page_size=2, sorted_lists=BY_TITLE))
    for provider_id, numbers in {"a": (4, 0, 7, 2), "b": (1, 6), "c": (5, 3)}.items():
        school = world.add(provider_id)
        school.courses = [a_course(provider_id, number, title=TITLES[number]) for number in numbers]
        school.session = RecordingSession if provider_id == "c" else SortingSession
    world.rosters["c"].provider = replace(world.rosters["c"].provider, platform="another")
    return world


@pytest.mark.parametrize("descending", [False, True])
async def test_providers_that_sort_are_read_as_far_as_the_page_goes(
    descending: bool,  # noqa: FBT001
) -> None:
    world = sorting_world()
    titles: list[str] = []
    after = None
    while True:
        page = await roster.courses(
            a_context(world),
            order=CourseOrderField.TITLE,
            descending=descending,
            page=PageArguments(first=3, after=after),
        )
        titles += [course.title for course in page.nodes]
        after = page.end_cursor
        if not page.has_next_page:
            break

    assert titles == sorted(TITLES, key=str.casefold, reverse=descending)
    assert set(world.rosters["a"].call_names()) == {"list_sorted_courses"}
    assert set(world.rosters["b"].call_names()) == {"list_sorted_courses"}
    assert set(world.rosters["c"].call_names()) == {"list_courses"}


async def test_one_page_of_a_sorted_list_is_one_call_of_each_provider_that_sorts() -> None:
    world = sorting_world()

    page = await roster.courses(
        a_context(world), order=CourseOrderField.TITLE, page=PageArguments(first=2)
    )

    order = ListOrder.COURSES_BY_TITLE
    assert [course.title for course in page.nodes] == ["ada", "Bo"]
    assert world.rosters["a"].calls == [("list_sorted_courses", (order, None, 2))]
    assert world.rosters["b"].calls == [("list_sorted_courses", (order, None, 2))]


async def test_a_walk_that_began_with_the_total_reads_whole_lists_and_tells_it() -> None:
    world = sorting_world()

    page = await roster.courses(
        a_context(world),
        order=CourseOrderField.TITLE,
        page=PageArguments(first=3),
        wants_total=True,
    )
    rest = await roster.courses(
        a_context(world),
        order=CourseOrderField.TITLE,
        page=PageArguments(first=9, after=page.end_cursor),
    )

    assert (page.total_count, rest.total_count) == (8, 8)
    assert [course.title for course in (*page.nodes, *rest.nodes)] == list(TITLES)
    assert {name for each in world.rosters.values() for name in each.call_names()} == {
        "list_courses"
    }


async def test_acting_for_users_no_provider_is_asked_to_sort() -> None:
    world = sorting_world()
    school = world.rosters["a"]
    school.seen_by["user:5"] = school

    page = await roster.courses(a_context(world, subjects={"a": "5"}), order=CourseOrderField.TITLE)

    assert [course.title for course in page.nodes] == ["ada", "cid", "eve", "Hal"]
    assert set(school.call_names()) == {"list_courses"}


async def test_a_filter_over_sorted_lists_reads_no_more_rows_than_allowed() -> None:
    world = sorting_world()
    world.limits = ReadingLimits(cursor_key=Secret(b"key"), max_collected_rows=5)
    found = await roster.courses(
        a_context(world),
        filter=CourseFilter(search=""),
        order=CourseOrderField.TITLE,
        page=PageArguments(first=1),
    )

    with pytest.raises(RequestLimitExceeded, match=r"may read 5 rows.*filter\.providerIds"):
        await roster.courses(
            a_context(world), filter=CourseFilter(search="nobody"), order=CourseOrderField.TITLE
        )

    assert [course.title for course in found.nodes] == ["ada"]


async def test_a_platform_that_declares_no_order_refuses_one() -> None:
    world = World()
    world.add("a")

    async with a_context(world).session("a") as session:
        with pytest.raises(NotSupported, match="sorted list of users"):
            await session.list_sorted_users(ListOrder.USERS_BY_USERNAME, position=None, limit=1)
        with pytest.raises(NotSupported, match="sorted list of courses"):
            await session.list_sorted_courses(ListOrder.COURSES_BY_TITLE, position=None, limit=1)


async def test_users_by_name_come_from_a_platform_that_declares_it() -> None:
    class ByName(RecordingSession):
        async def list_sorted_users(
            self, order: ListOrder, *, position: str | None, limit: int
        ) -> Page[User]:
            await self._called("list_sorted_users", (order, position, limit))
            return self._page(self.roster.users, position, limit)

    declared = frozenset({ListOrder.USERS_BY_DISPLAY_NAME})
    world = World(platform=replace(PLATFORM, sorted_lists=declared))
    school = world.add("a", user_count=3)
    school.session = ByName

    by_name = await roster.users(a_context(world), order=UserOrderField.DISPLAY_NAME)
    by_id = await roster.users(
        a_context(world),
        filter=UserFilter(user_ids=(("a", "u1"),)),
        order=UserOrderField.DISPLAY_NAME,
    )

    assert (len(by_name.nodes), len(by_id.nodes)) == (3, 1)
    assert school.call_names() == ["list_sorted_users", "fetch_users"]


# Old cursors


async def test_a_cursor_of_an_earlier_release_is_refused_by_name() -> None:
    world = World()
    world.add("a", user_count=5)
    query = json.dumps([1, "users", [dataclasses.astuple(UserFilter()), "PROVIDER", False]])
    former = CursorSealer(Secret(b"key"), query).seal([[1.0, "a"], [["a", "2", 2, 0, None]]])

    with pytest.raises(BadInput, match=r"^after: .*an earlier release.*begin anew, without after"):
        await roster.users(a_context(world), page=PageArguments(after=former))

    assert world.rosters["a"].calls == []


async def test_a_cursor_is_too_old_when_its_walk_is() -> None:
    world = World(limits=ReadingLimits(cursor_key=Secret(b"key"), cursor_seconds=-1))
    world.add("a", user_count=5)
    page = await roster.users(a_context(world), page=PageArguments(first=2))

    with pytest.raises(BadInput, match=r"^after: This walk began .* begin anew, without after"):
        await roster.users(a_context(world), page=PageArguments(after=page.end_cursor))


async def test_a_users_cursor_is_no_place_among_the_enrollments_of_a_course() -> None:
    world = World()
    school = world.add("a")
    user, course = a_user("a", 5, external_id="5"), a_course("a", 5, external_id="5")
    school.users, school.courses = [user], [course]
    school.enrollments = [an_enrollment("a", "5", "5"), an_enrollment("a", "5", "6")]
    [first] = await when_there(
        roster.enrollments_of_users(a_context(world), "a", ["5"], page=PageArguments(first=1))
    )
    assert first is not None
    assert not isinstance(first, BaseException)

    [refused] = await when_there(
        roster.enrollments_of_courses(
            a_context(world), "a", ["5"], page=PageArguments(after=first.end_cursor)
        )
    )

    assert isinstance(refused, BadInput)
    assert "belongs to another query" in refused.message
