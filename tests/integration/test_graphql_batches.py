"""The batches of a request, over providers in memory."""

import asyncio
from collections.abc import Awaitable
from dataclasses import replace

import pytest
from pretend_roster import PLATFORM, World, a_context, a_course, an_enrollment

from resolvers import roster
from resolvers.caching import RecordCache
from resolvers.context import RequestContext
from resolvers.loaders import USERS, Loaders, when_there
from resolvers.paging import Connection
from resolvers.reading import Reading
from sessions.errors import ProviderUnavailable
from storage.cache import CacheStore
from storage.database import Database
from storage.records import Enrollment


async def test_every_loader_of_a_request_makes_one_call_per_provider() -> None:
    world = World()
    for provider_id in ("a", "b"):
        school = world.add(provider_id, user_count=3, course_count=3)
        school.enrollments = [an_enrollment(provider_id, "u0", "c1")]
    loaders = a_context(world).loaders
    keys = [("a", "u0"), ("b", "u1"), ("a", "u2"), ("a", "nobody")]
    course_keys = [("a", "c0"), ("b", "c1"), ("a", "c2")]

    users = await loaders.user_by_id.load_many(keys)
    courses = await loaders.course_by_id.load_many(course_keys)
    by_user = await loaders.enrollments_by_user.load_many(keys)
    by_course = await loaders.enrollments_by_course.load_many(course_keys)

    assert [None if user is None else user.external_id for user in users] == [
        "u0",
        "u1",
        "u2",
        None,
    ]
    assert [course.external_id for course in courses if course] == ["c0", "c1", "c2"]
    assert [None if rows is None else len(rows) for rows in by_user] == [1, 0, 0, None]
    assert [None if rows is None else len(rows) for rows in by_course] == [0, 1, 0]
    assert world.rosters["a"].calls == [
        ("fetch_users", ["u0", "u2", "nobody"]),
        ("fetch_courses", ["c0", "c2"]),
        ("fetch_enrollments_by_user", ["u0", "u2", "nobody"]),
        ("fetch_enrollments_by_course", ["c0", "c2"]),
    ]
    assert world.rosters["b"].call_names() == [
        "fetch_users",
        "fetch_courses",
        "fetch_enrollments_by_user",
        "fetch_enrollments_by_course",
    ]


async def test_icons_of_many_courses_and_widths_are_one_batch() -> None:
    world = World()
    loaders = a_context(world).loaders
    with_icon, without = a_course("a", 1), a_course("a", 2, icon=None)

    urls = await asyncio.gather(
        when_there(loaders.icon_urls([with_icon, without], 64)),
        when_there(loaders.icon_urls([with_icon], 256)),
    )

    assert list(urls) == [["/media/c1-64.webp", None], ["/media/c1-256.webp"]]
    assert world.icon_batches == [3]


async def test_without_an_icon_service_there_are_no_icons() -> None:
    world = World()
    loaders = Loaders(
        world,
        None,
        reading=a_context(world).reading,
        page_size_of=lambda _provider: 10,
        max_collected_rows=10,
    )

    course = a_course("a", 1)

    assert await when_there(loaders.icon_urls([course], 64)) == [None]
    assert await when_there(loaders.icon_assets([course])) == [None]


async def test_very_many_pages_are_made_in_turns_as_they_are_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    school = world.add("a", user_count=5, course_count=3)
    school.enrollments = [an_enrollment("a", f"u{n % 4}", f"c{n % 3}") for n in range(12)]
    user_ids = [user.external_id for user in (school.users[0], *school.users)]

    at_once = await when_there(roster.enrollments_of_users(a_context(world), "a", user_ids))
    monkeypatch.setattr("resolvers.roster.MOST_AT_ONCE", 2)
    monkeypatch.setattr("resolvers.loaders.MOST_AT_ONCE", 2)
    in_turns = await when_there(roster.enrollments_of_users(a_context(world), "a", user_ids))

    assert list(map(rows_of, in_turns)) == list(map(rows_of, at_once))
    assert list(map(len, map(rows_of, in_turns))) == [3, 3, 3, 3, 3, 0]


def rows_of(page: Connection[Enrollment] | BaseException | None) -> list[str]:
    assert page is not None
    assert not isinstance(page, BaseException)
    return [row.id for row in page.nodes]


async def test_progress_that_cannot_be_asked_for_is_the_error_of_the_enrollments_it_is_of() -> None:
    world = World(platform=replace(PLATFORM, progress_by_call=True))
    school = world.add("a", user_count=1, course_count=1)
    row = an_enrollment("a", "u0", "c0")
    school.failures_by_call["fetch_progress"] = ProviderUnavailable("Down")
    context = a_context(world)
    await context.visible_providers()

    [outcome] = await when_there(roster.progress_of(context, [row]))

    assert isinstance(outcome, ProviderUnavailable)


async def test_nothing_is_at_hand_of_a_provider_the_request_acts_for_nobody_at(
    sqlite_database: Database,
) -> None:
    world = World()
    world.add("a", user_count=1)
    world.add("b", user_count=1)
    cache = RecordCache(CacheStore(sqlite_database))
    context = a_context(world, subjects={"b": "u0"}, cache=cache)
    await context.visible_providers()
    context.reading = Reading(
        context.session,
        cache,
        terms=context.terms,
        find=lambda _provider_id: world.rosters["a"].provider,
        subject_of=context.subject_of,
    )

    assert context.reading.kept("a", USERS.page, ["any"]) == {}


async def test_the_rows_of_a_list_that_is_read_again_are_had_by_one_look(
    sqlite_database: Database,
) -> None:
    world = World()
    school = world.add("a", user_count=60, course_count=3)
    school.enrollments = [an_enrollment("a", f"u{n % 60}", f"c{n % 3}") for n in range(90)]
    ids = [user.external_id for user in school.users]
    cache = RecordCache(CacheStore(sqlite_database))

    async def a_request() -> tuple[bool, list[list[str]], RequestContext]:
        context = a_context(world, cache=cache)
        await context.visible_providers()
        context.reading.note_max_age(60)
        soon = roster.enrollments_of_users(context, "a", ids)
        found = await when_there(soon)
        return isinstance(soon, Awaitable), list(map(rows_of, found)), context

    live, kept, together = [await a_request() for _ in range(3)]
    hits = cache.counts.hits
    await a_request()
    basis = together[2].reading.basis
    cache.drop("a")
    anew = await a_request()

    assert [one[0] for one in (live, kept, together, anew)] == [True, True, False, True]
    assert live[1] == kept[1] == together[1] == anew[1]
    assert [len(basis.entries), basis.hits["a"], cache.counts.hits - hits] == [0, 60, 60]
    assert not cache.still_stands(basis)
    assert [name for name, _ in school.calls] == ["fetch_enrollments_by_user"] * 2
    await cache.aclose()
