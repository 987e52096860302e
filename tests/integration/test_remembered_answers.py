"""Answers that are given again: as they would be made anew, and for as long as that is so."""

import asyncio
import gc
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
from running_gateway import RunningGateway, running_gateway

from resolvers.context import RequestContext
from simulators.kolibri.app import running
from simulators.kolibri.population import build_population
from simulators.kolibri.state import Kolibri

NESTED = (
    "query ($first: Int) { users(first: $first) { totalCount sources { status asOf }"
    " pageInfo { hasNextPage } nodes { id displayName roles { value } provenance { fetchedAt via }"
    " provider { name revision } enrollments(first: 3) { totalCount nodes { state role { value }"
    " course { title iconUrl } } } } } }"
)
COURSES = "{ courses(first: 20) { nodes { title iconUrl(width: 64) provider { state } } } }"
FILTERED = "query ($search: String) { users(filter: {search: $search}) { nodes { username } } }"
HEALTH = "{ users(first: 2) { nodes { username provider { health { state } } } } }"
ANEW = {"Gateway-Debug": "cost"}  # what is shown how it was answered is never remembered


@pytest.fixture
async def kolibri() -> Kolibri:
    return Kolibri(build_population())


@pytest.fixture
async def gateway(kolibri: Kolibri, tmp_path: Path) -> AsyncIterator[RunningGateway]:
    async with (
        running(kolibri) as url,
        running_gateway(tmp_path, max_age_seconds="600") as running_one,
    ):
        await running_one.add_kolibri(url)
        yield running_one


async def asked(
    gateway: RunningGateway, query: str, headers: Any = None, **variables: Any
) -> httpx.Response:
    body = {"query": query, "variables": variables}
    answer = await gateway.client.post("/graphql", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer


async def from_memory(gateway: RunningGateway) -> int:
    written = (await gateway.get("/metrics")).text
    lines = [line for line in written.splitlines() if 'executions_total{by="memory"}' in line]
    return int(float(lines[0].split()[-1])) if lines else 0


async def test_an_answer_from_kept_records_is_given_again_to_the_byte(
    gateway: RunningGateway, kolibri: Kolibri
) -> None:
    live = await asked(gateway, NESTED, first=5)
    kept = await asked(gateway, NESTED, first=5)
    calls = kolibri.counts.total()
    again = [await asked(gateway, NESTED, first=5) for _ in range(3)]
    anew = await asked(gateway, NESTED, ANEW, first=5)

    assert live.json()["data"]["users"]["nodes"][0]["provenance"]["via"] == "LIVE"
    assert [one.content for one in again] == [kept.content] * 3
    assert anew.json()["data"] == kept.json()["data"]
    assert await from_memory(gateway) == 3
    assert kolibri.counts.total() == calls


async def test_other_variables_scopes_and_keys_have_answers_of_their_own(
    gateway: RunningGateway,
) -> None:
    all_scopes = ("read:users", "read:enrollments", "read:courses")
    reader, users_only = await gateway.key(*all_scopes), await gateway.key("read:users")
    for headers in (None, None, reader, reader):
        await asked(gateway, NESTED, headers, first=5)
    of_one = (await asked(gateway, NESTED, first=1)).json()
    without = (await asked(gateway, NESTED, users_only, first=5)).json()

    assert await from_memory(gateway) == 1  # the reader's second; before, the first was read live
    assert len(of_one["data"]["users"]["nodes"]) == 1
    assert without["data"]["users"]["nodes"][0]["enrollments"] is None
    assert {error["extensions"]["code"] for error in without["errors"]} == {"FORBIDDEN"}


async def test_an_answer_given_again_leaves_nothing_to_the_garbage_collector(
    gateway: RunningGateway,
) -> None:
    for _ in range(4):
        await asked(gateway, NESTED, first=5)
    gc.collect()
    of_other_tests = {id(one) for one in gc.get_objects() if isinstance(one, RequestContext)}

    gc.disable()
    try:
        await asked(gateway, NESTED, first=5)
        contexts = [one for one in gc.get_objects() if isinstance(one, RequestContext)]
        left = [one for one in contexts if id(one) not in of_other_tests]
    finally:
        gc.enable()

    assert await from_memory(gateway) == 3
    assert not left


async def test_a_request_known_by_its_body_is_another_keys_own_and_is_watched_as_ever(
    gateway: RunningGateway,
) -> None:
    named = NESTED.replace("query (", "query Again (")
    for _ in range(4):
        await asked(gateway, named, first=5)
    users_only = await gateway.key("read:users")
    without = (await asked(gateway, named, users_only, first=5)).json()
    written = (await gateway.get("/metrics")).text

    assert await from_memory(gateway) == 2
    assert without["data"]["users"]["nodes"][0]["enrollments"] is None
    operations = [line for line in written.splitlines() if "operation_seconds_count{" in line]
    assert sum(float(line.split()[-1]) for line in operations) == 5


async def test_what_is_no_longer_so_is_not_given_again(gateway: RunningGateway) -> None:
    for _ in range(2):
        await asked(gateway, NESTED, first=5)
    await gateway.graphql(
        'mutation { updateProvider(input: {providerId: "1", name: "Renamed"}) { __typename } }'
    )
    renamed = (await asked(gateway, NESTED, first=5)).json()
    for _ in range(2):
        await asked(gateway, NESTED, first=5)
    gateway.parts.cache.drop("1")
    dropped = (await asked(gateway, NESTED, first=5)).json()

    assert renamed["data"]["users"]["nodes"][0]["provider"]["name"] == "Renamed"
    assert dropped["data"]["users"]["nodes"][0]["provenance"]["via"] == "LIVE"


async def test_what_may_change_by_itself_is_made_anew(gateway: RunningGateway) -> None:
    for _ in range(3):
        await asked(gateway, HEALTH)
        await asked(gateway, "{ users(first: 2, maxAge: 0) { nodes { username } } }")
        await asked(gateway, "{ providers { name } }")
        await asked(gateway, "{ users(first: 0) { nodes { id } } }")  # an error

    assert await from_memory(gateway) == 0


async def test_an_answer_that_is_too_old_or_has_no_room_is_made_anew(
    kolibri: Kolibri, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        running(kolibri) as url,
        running_gateway(tmp_path, max_age_seconds="600", answers_mib="0") as forgetful,
    ):
        await forgetful.add_kolibri(url)
        for _ in range(3):
            await asked(forgetful, COURSES)

        assert await from_memory(forgetful) == 0

    monkeypatch.setattr("schema.remembering._LONGEST_SECONDS", 0.0)
    async with running(kolibri) as url, running_gateway(tmp_path / "b", max_age_seconds="600") as b:
        await b.add_kolibri(url)
        for _ in range(3):
            await asked(b, COURSES)
            await asyncio.sleep(0.001)

        assert await from_memory(b) == 0


async def test_whatever_happens_remembered_answers_are_those_made_anew(
    gateway: RunningGateway, kolibri: Kolibri
) -> None:
    rng = Random(5)
    keys = [None, await gateway.key("read:users"), await gateway.key("read:users", "read:courses")]
    operations: list[tuple[str, dict[str, Any]]] = [
        *((NESTED, {"first": first}) for first in (1, 7)),
        (COURSES, {}),
        *((FILTERED, {"search": search}) for search in ("a", "zo")),
        (HEALTH, {}),
    ]
    cache = gateway.parts.cache

    for _ in range(80):
        query, variables = rng.choice(operations)
        headers = rng.choice(keys)
        given = await asked(gateway, query, headers, **variables)
        anew = await asked(gateway, query, {**(headers or {}), **ANEW}, **variables)
        if "LIVE" not in given.text:
            assert given.json()["data"] == anew.json()["data"]
            assert given.json().get("errors") == anew.json().get("errors")
        roll = rng.random()
        if roll < 0.02:
            cache.drop("1")
        elif roll < 0.05:
            name = f"School {rng.random()}"
            await gateway.graphql(
                'mutation ($name: String!) { updateProvider(input: {providerId: "1",'
                " name: $name}) { __typename } }",
                name=name,
            )

    assert await from_memory(gateway) > 10
