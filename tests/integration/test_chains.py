"""Each provider's chain of reads runs at its own pace, in no more calls than level by level."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from pretend_platform import until
from pretend_roster import SCHEMA, Key, World, a_context, an_enrollment

from resolvers.caching import RecordCache
from schema.execution import execute
from sessions.errors import ProviderUnavailable
from storage.cache import CacheStore
from storage.database import Database

QUERY = """query (VARIABLES) { users(first: $first, maxAge: 0) {
    edges { node { ...Person } } } }
    fragment Person on User { displayName places: enrollments DIRECTIVE {
        nodes { course { title } } } }"""
PLAIN = QUERY.replace("VARIABLES", "$first: Int = 50").replace("DIRECTIVE", "")
SKIPPING = QUERY.replace("VARIABLES", "$first: Int = 50, $with: Boolean = true").replace(
    "DIRECTIVE", "@include(if: $with)"
)
CHAIN = ["list_users", "fetch_enrollments_by_user", "fetch_courses"]


@pytest.fixture
async def cache(sqlite_database: Database) -> AsyncIterator[RecordCache]:
    cache = RecordCache(CacheStore(sqlite_database))
    yield cache
    await cache.aclose()


@pytest.fixture
def world() -> World:
    world = World()
    for provider_id in ("slow", "quick"):
        school = world.add(provider_id, user_count=3, course_count=2)
        school.enrollments = [
            an_enrollment(provider_id, user.external_id, course.external_id)
            for user in school.users
            for course in school.courses
        ]
    return world


async def answered(
    world: World,
    cache: RecordCache,
    variables: Mapping[str, Any] | None = None,
    *,
    query: str = PLAIN,
    key: Key | None = None,
) -> dict[str, Any]:
    context = a_context(world, key, cache=cache)
    body = {"query": query, "variables": variables or {}}
    _status, answer = await execute(SCHEMA, body, context)
    return answer


def calls(world: World) -> dict[str, list[str]]:
    return {name: school.call_names() for name, school in world.rosters.items()}


def forget_calls(world: World) -> None:
    for school in world.rosters.values():
        school.calls.clear()


async def test_a_slow_providers_users_do_not_hold_up_anothers_enrollments_and_courses(
    world: World, cache: RecordCache
) -> None:
    first = await answered(world, cache)  # from here on it is known how long the lists are
    forget_calls(world)
    world.rosters["slow"].delay_seconds = 0.3

    asking = asyncio.create_task(answered(world, cache))
    await until(lambda: "fetch_courses" in calls(world)["quick"])

    assert calls(world) == {"slow": ["list_users"], "quick": CHAIN}
    assert await asking == first
    assert calls(world) == {"slow": CHAIN, "quick": CHAIN}
    assert len(first["data"]["users"]["edges"]) == 6


async def test_rows_that_may_be_left_for_another_page_are_not_followed(
    world: World, cache: RecordCache
) -> None:
    await answered(world, cache)
    forget_calls(world)

    answer = await answered(world, cache, {"first": 3})

    assert len(answer["data"]["users"]["edges"]) == 3
    assert calls(world) == {"slow": CHAIN, "quick": ["list_users"]}


async def test_a_field_that_may_be_skipped_is_not_read_early(
    world: World, cache: RecordCache
) -> None:
    await answered(world, cache, query=SKIPPING)
    forget_calls(world)

    answer = await answered(world, cache, {"with": False}, query=SKIPPING)

    assert [*answer["data"]["users"]["edges"][0]["node"]] == ["displayName"]
    assert calls(world) == {"slow": ["list_users"], "quick": ["list_users"]}


async def test_what_the_key_may_not_read_is_not_read_early(
    world: World, cache: RecordCache
) -> None:
    key = Key(frozenset({"read:users"}))
    await answered(world, cache, key=key)
    forget_calls(world)

    answer = await answered(world, cache, key=key)

    assert {error["extensions"]["code"] for error in answer["errors"]} == {"FORBIDDEN"}
    assert calls(world) == {"slow": ["list_users"], "quick": ["list_users"]}


async def test_an_ordered_list_is_followed_in_the_same_way(
    world: World, cache: RecordCache
) -> None:
    query = PLAIN.replace("maxAge: 0", "maxAge: 0, orderBy: {field: USERNAME}")
    first = await answered(world, cache, query=query)
    forget_calls(world)
    world.rosters["slow"].delay_seconds = 0.3

    asking = asyncio.create_task(answered(world, cache, query=query))
    await until(lambda: "fetch_courses" in calls(world)["quick"])

    assert calls(world)["slow"] == ["list_users"]
    assert await asking == first
    assert calls(world) == {"slow": CHAIN, "quick": CHAIN}


async def test_what_cannot_be_had_is_told_once_and_by_the_field(
    world: World, cache: RecordCache
) -> None:
    await answered(world, cache)
    await cache.forget("slow", subject="service")
    forget_calls(world)
    world.rosters["slow"].failures_by_call["fetch_enrollments_by_user"] = ProviderUnavailable(
        "Down", provider_id="slow"
    )

    answer = await answered(world, cache)

    (error,) = answer["errors"]
    assert error["extensions"]["code"] == "PROVIDER_UNAVAILABLE"
    assert error["path"] == ["users", "edges", 0, "node", "places"]
    assert calls(world) == {"slow": CHAIN[:2], "quick": CHAIN}
