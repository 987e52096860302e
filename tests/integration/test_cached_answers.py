"""What is kept of providers' answers, through the whole application."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from running_gateway import RunningGateway, running_gateway
from sqlalchemy import event
from test_canvas_through_graphql import registered

from simulators.canvas.app import running as running_canvas
from simulators.canvas.population import build_large_population
from simulators.canvas.population import build_population as build_canvas_population
from simulators.canvas.profiles import HOSTED_NOW, OSS_2019
from simulators.canvas.state import Canvas
from simulators.kolibri.app import running
from simulators.kolibri.population import build_population
from simulators.kolibri.state import Kolibri, Outage

USERS = """query ($maxAge: Int, $first: Int = 5) { users(first: $first, maxAge: $maxAge) {
    nodes { username provenance { via stale fetchedAt } }
    sources { providerId status code stale asOf retryable } } }"""
ROSTER = {"/api/auth/facilityuser/", "/api/auth/membership/", "/api/content/channel/"}
NESTED = """{ users(first: 5) { nodes { enrollments { nodes { course { title } } } } } }"""


@pytest.fixture
async def kolibri() -> Kolibri:
    return Kolibri(build_population())


@pytest.fixture
def canvas() -> Canvas:
    return Canvas(build_canvas_population(), profile=HOSTED_NOW)


@pytest.fixture
async def gateway(kolibri: Kolibri, tmp_path: Path) -> AsyncIterator[RunningGateway]:
    async with (
        running(kolibri) as url,
        running_gateway(tmp_path, max_age_seconds="60") as gateway,
    ):
        await gateway.add_kolibri(url)
        kolibri.counts.calls.clear()
        yield gateway


def reads(kolibri: Kolibri) -> Counter[str]:
    """Return the calls for rosters and courses; exports run when they like."""
    return Counter(
        {path: count for (_, path), count in kolibri.counts.calls.items() if path in ROSTER}
    )


def vias(answer: dict[str, Any]) -> Counter[str]:
    return Counter(row["provenance"]["via"] for row in answer["data"]["users"]["nodes"])


async def test_the_second_query_is_answered_from_what_the_first_one_read(
    gateway: RunningGateway, kolibri: Kolibri
) -> None:
    live = await gateway.graphql(USERS)
    calls = reads(kolibri).total()

    kept = await gateway.graphql(USERS)

    assert (vias(live), vias(kept)) == (Counter(LIVE=5), Counter(CACHE=5))
    assert reads(kolibri).total() == calls
    (source,) = kept["data"]["users"]["sources"]
    assert (source["status"], source["stale"], source["code"]) == ("OK", False, None)
    assert source["asOf"] == live["data"]["users"]["sources"][0]["asOf"]
    assert datetime.fromisoformat(source["asOf"]) <= datetime.fromisoformat(
        kept["data"]["users"]["nodes"][0]["provenance"]["fetchedAt"]
    )


async def test_a_kept_answer_asks_the_database_nothing_while_nobody_writes(
    gateway: RunningGateway,
) -> None:
    key = await gateway.key("admin")
    await gateway.client.post("/graphql", json={"query": USERS}, headers=key)
    read: Counter[str] = Counter()
    written = 0

    def note(*arguments: Any) -> None:
        read.update(t for t in ("api_key", "provider") if f"FROM {t} " in arguments[2])

    def note_commit(_connection: Any) -> None:
        nonlocal written
        written += 1

    database = gateway.parts.database
    readers, writers = database._readers.sync_engine, database._writers.sync_engine
    event.listen(readers, "before_cursor_execute", note)
    event.listen(writers, "commit", note_commit)
    began_at = time.monotonic()
    for _ in range(100):
        await gateway.client.post("/graphql", json={"query": USERS}, headers=key)
    took = time.monotonic() - began_at

    assert written < 50, "now and then the background notes something"
    assert read["provider"] <= 1 + written
    assert read["api_key"] <= 2 + written + took, "a key may expire: it is read every second"


async def test_max_age_0_is_live(gateway: RunningGateway, kolibri: Kolibri) -> None:
    await gateway.graphql(USERS)
    calls = reads(kolibri).total()

    answer = await gateway.graphql(USERS, maxAge=0)

    assert vias(answer) == Counter(LIVE=5)
    assert reads(kolibri).total() == calls + 1


async def test_what_hangs_on_a_live_list_is_live_too(canvas: Canvas, tmp_path: Path) -> None:
    async with (
        running_canvas(canvas) as url,
        running_gateway(tmp_path, max_age_seconds="60") as gateway,
    ):
        await registered(gateway, url)
        canvas.counts.calls.clear()
        await gateway.graphql(NESTED)
        once = canvas.counts.calls.copy()
        await gateway.graphql(NESTED)
        kept = canvas.counts.calls.copy()
        await gateway.graphql(NESTED.replace("first: 5", "first: 5, maxAge: 0", 1))

    assert once.total() == 7  # users, courses, and enrollments of five users
    assert kept == once
    assert canvas.counts.calls == once + once


async def test_ten_identical_queries_at_once_cost_the_calls_of_one(
    canvas: Canvas, tmp_path: Path
) -> None:
    async with (
        running_canvas(canvas) as url,
        running_gateway(tmp_path, max_age_seconds="60") as gateway,
    ):
        await registered(gateway, url)
        canvas.counts.calls.clear()
        answers = await asyncio.gather(*(gateway.graphql(NESTED) for _ in range(10)))

    assert all(answer == answers[0] for answer in answers)
    assert canvas.counts.calls.total() == 7


async def test_an_outage_is_answered_with_the_last_answer_marked_stale(
    gateway: RunningGateway, kolibri: Kolibri
) -> None:
    live = await gateway.graphql(USERS)
    kolibri.outages.append(Outage(remaining=1000, status=503))

    answer = await gateway.graphql(USERS, maxAge=0)
    unknown = await gateway.graphql(USERS, maxAge=0, first=6)

    assert "errors" not in answer
    assert [row["username"] for row in answer["data"]["users"]["nodes"]] == [
        row["username"] for row in live["data"]["users"]["nodes"]
    ]
    assert {row["provenance"]["stale"] for row in answer["data"]["users"]["nodes"]} == {True}
    (source,) = answer["data"]["users"]["sources"]
    assert source == {
        "providerId": "1",
        "status": "STALE",
        "code": "PROVIDER_UNAVAILABLE",
        "stale": True,
        "asOf": live["data"]["users"]["sources"][0]["asOf"],
        "retryable": True,
    }
    assert [source["status"] for source in unknown["data"]["users"]["sources"]] == ["FAILED"]
    assert [error["extensions"]["code"] for error in unknown["errors"]] == ["PROVIDER_UNAVAILABLE"]


async def test_an_ordered_list_is_answered_from_the_last_whole_list(
    gateway: RunningGateway, kolibri: Kolibri
) -> None:
    query = """query ($maxAge: Int) { users(first: 3, maxAge: $maxAge,
        orderBy: {field: USERNAME}) { nodes { username } sources { status stale asOf } } }"""
    live = await gateway.graphql(query)
    kolibri.outages.append(Outage(remaining=1000, status=503))

    answer = await gateway.graphql(query, maxAge=0)

    assert answer["data"]["users"]["nodes"] == live["data"]["users"]["nodes"]
    (source,) = answer["data"]["users"]["sources"]
    assert (source["status"], source["stale"]) == ("STALE", True)
    assert source["asOf"] == live["data"]["users"]["sources"][0]["asOf"]


async def test_a_slow_provider_costs_its_deadline_and_the_next_query_has_its_answer(
    kolibri: Kolibri, tmp_path: Path
) -> None:
    quick = Kolibri(build_population())
    async with (
        running(kolibri) as slow_url,
        running(quick) as quick_url,
        running_gateway(tmp_path, max_age_seconds="60", provider_seconds="0.4") as gateway,
    ):
        await gateway.add_kolibri(slow_url)
        await gateway.add_kolibri(quick_url, id="2")
        kolibri.latency_seconds = 1.0
        began_at = asyncio.get_running_loop().time()
        first = await gateway.graphql(USERS, first=1000)
        seconds = asyncio.get_running_loop().time() - began_at
        await asyncio.sleep(1.2)
        again = await gateway.graphql(USERS, first=1000)

    statuses = [
        [(source["providerId"], source["status"]) for source in answer["data"]["users"]["sources"]]
        for answer in (first, again)
    ]
    assert statuses == [[("1", "FAILED"), ("2", "OK")], [("1", "OK"), ("2", "OK")]]
    assert [error["extensions"]["code"] for error in first["errors"]] == ["PROVIDER_TIMEOUT"]
    assert len(again["data"]["users"]["nodes"]) == 2 * len(first["data"]["users"]["nodes"])
    assert seconds < 0.9  # its deadline, and not the second it takes


async def test_a_restarted_gateway_answers_from_what_it_had(canvas: Canvas, tmp_path: Path) -> None:
    async with running_canvas(canvas) as url:
        async with running_gateway(tmp_path, max_age_seconds="60") as before:
            await registered(before, url)
            first = await before.graphql(NESTED)
        canvas.counts.calls.clear()
        async with running_gateway(tmp_path, max_age_seconds="60") as after:
            answer = await after.graphql(NESTED)
            vias_after = vias(await after.graphql(USERS))

    assert answer == first
    assert vias_after == Counter(CACHE=5)
    assert canvas.counts.calls.total() == 0


async def test_a_write_makes_what_was_read_before_old_in_every_gateway(
    canvas: Canvas, tmp_path: Path
) -> None:
    create = """mutation ($input: CreateUserInput!) { createUser(input: $input) {
        ... on CreateUserPayload { created } ... on WriteRefused { message } } }"""
    count = "{ users(first: 1000) { nodes { username } } }"
    async with (
        running_canvas(canvas) as url,
        running_gateway(tmp_path, max_age_seconds="600") as one,
        running_gateway(tmp_path, max_age_seconds="600") as two,
    ):
        await registered(one, url)
        before = [await gateway.graphql(count) for gateway in (one, two)]
        written = await one.graphql(
            create, input={"providerId": "2", "username": "nova", "displayName": "Nova Star"}
        )
        after = [await gateway.graphql(count) for gateway in (one, two)]

    assert written["data"]["createUser"]["created"] is True, written
    sizes = [len(answer["data"]["users"]["nodes"]) for answer in (*before, *after)]
    assert sizes == [sizes[0], sizes[0], sizes[0] + 1, sizes[0] + 1]


async def test_what_an_import_finds_makes_what_was_read_before_old(
    kolibri: Kolibri, tmp_path: Path
) -> None:
    refresh = """mutation { refreshProvider(input: {providerId: "1"}) { __typename } }"""
    last = """{ provider(providerId: "1") { lastImport { state } } }"""
    names = "{ users(first: 1000) { nodes { username } } }"
    async with (
        running(kolibri) as url,
        running_gateway(tmp_path, max_age_seconds="600") as gateway,
    ):
        await gateway.add_kolibri(url)

        async def imported() -> list[str]:
            await gateway.graphql(refresh)
            state = ""
            async with asyncio.timeout(30):
                while state != "DONE":
                    found = await gateway.graphql(last)
                    state = found["data"]["provider"]["lastImport"]["state"]
                    await asyncio.sleep(0.05)
            answer = await gateway.graphql(names)
            return [row["username"] for row in answer["data"]["users"]["nodes"]]

        first = await imported()
        kolibri.add_user("nova", "Nova Star")
        kept = await gateway.graphql(names)
        after = await imported()

    assert len(kept["data"]["users"]["nodes"]) == len(first)
    assert set(after) - set(first) == {"nova"}


async def test_a_changed_provider_starts_with_nothing_kept(
    gateway: RunningGateway, kolibri: Kolibri, tmp_path: Path
) -> None:
    await gateway.graphql(USERS)
    other = Kolibri(build_population())
    async with running(other) as url:
        await gateway.add_kolibri(url)
        answer = await gateway.graphql(USERS)

    assert vias(answer) == Counter(LIVE=5)


@pytest.mark.parametrize(
    ("option", "via"), [("0", "LIVE"), ("users=0", "LIVE"), ("courses=0", "CACHE")]
)
async def test_a_providers_option_goes_before_the_setting(
    option: str, via: str, kolibri: Kolibri, tmp_path: Path
) -> None:
    change = """mutation ($input: UpdateProviderInput!) { updateProvider(input: $input) {
        ... on ProviderRefused { message } } }"""
    async with (
        running(kolibri) as url,
        running_gateway(tmp_path, max_age_seconds="60") as gateway,
    ):
        await gateway.add_kolibri(url)
        options = [{"name": "max_age", "value": option}]
        answer = await gateway.graphql(change, input={"providerId": "1", "options": options})
        assert answer == {"data": {"updateProvider": {}}}
        await gateway.graphql(USERS)
        again = await gateway.graphql(USERS)

    assert vias(again) == Counter({via: 5})


async def test_a_wrong_option_or_max_age_is_refused_with_the_right_form(
    gateway: RunningGateway,
) -> None:
    change = """mutation ($input: UpdateProviderInput!) { updateProvider(input: $input) {
        ... on ProviderRefused { field message } } }"""
    options = [{"name": "max_age", "value": "soon"}]

    refused = await gateway.graphql(change, input={"providerId": "1", "options": options})
    negative = await gateway.graphql(USERS, maxAge=-1)

    assert refused["data"]["updateProvider"]["field"] == "options"
    assert "users=60,courses=600" in refused["data"]["updateProvider"]["message"]
    assert negative["data"] == {"users": None}
    assert [error["message"] for error in negative["errors"]] == [
        "maxAge: -1 is negative; 0 asks for live answers"
    ]


# What it cost


async def test_an_administrator_sees_what_a_query_cost_each_provider(
    canvas: Canvas, kolibri: Kolibri, tmp_path: Path
) -> None:
    show = {"Gateway-Debug": "upstream"}
    query = NESTED.replace("first: 5", 'first: 5, filter: {providerIds: ["2"]}', 1)
    async with (
        running_canvas(canvas) as url,
        running_gateway(tmp_path, max_age_seconds="60") as gateway,
    ):
        await registered(gateway, url)
        answers = [
            (await gateway.client.post("/graphql", json={"query": query}, headers=show)).json()
            for _ in range(2)
        ]
        stranger = await gateway.client.post(
            "/graphql", json={"query": query}, headers={**show, **await gateway.key("read:users")}
        )

    (live,), (kept,) = (answer["extensions"]["upstream"] for answer in answers)
    assert (live["providerId"], live["calls"], live["cacheHits"]) == ("2", 7, 0)
    assert live["bytes"] > 1000
    assert live["upstreamSeconds"] > 0
    assert live["waitedSeconds"] >= 0
    # the page, five users' enrollments, and each of the courses these are in
    assert (kept["calls"], kept["bytes"], kept["staleHits"], kept["shared"]) == (0, 0, 0, 0)
    courses = {
        row["course"]["title"]
        for user in answers[0]["data"]["users"]["nodes"]
        for row in user["enrollments"]["nodes"]
    }
    assert kept["cacheHits"] == 1 + 5 + len(courses)
    assert stranger.status_code == 403


async def test_the_field_that_goes_past_the_budget_is_null_and_the_rest_is_answered(
    tmp_path: Path,
) -> None:
    school = build_large_population(users=200, courses=80, enrollments=900)
    canvas = Canvas(school, profile=OSS_2019)  # enrollments are asked for user by user
    query = "{ users(first: 30) { nodes { displayName enrollments { nodes { id } } } } }"
    async with (
        running_canvas(canvas) as url,
        running_gateway(tmp_path, max_upstream_calls="10") as gateway,
    ):
        await registered(gateway, url)
        canvas.counts.calls.clear()
        answer = await gateway.graphql(query)

    users = answer["data"]["users"]["nodes"]
    assert len(users) == 30
    assert {str(user["enrollments"]) for user in users} == {"None"}
    (error,) = answer["errors"]
    assert error["extensions"]["code"] == "REQUEST_LIMIT_EXCEEDED"
    assert error["path"][:1] == ["users"]
    assert error["message"].startswith("One operation may make 10 calls to providers")
    assert canvas.counts.calls.total() == 10


async def test_lists_inside_lists_hold_as_many_rows_as_the_operator_allows(tmp_path: Path) -> None:
    school = build_large_population(users=20, courses=8, enrollments=60)
    query = "{ users { nodes { displayName enrollments { nodes { id } } } } }"
    async with (
        running_canvas(Canvas(school)) as url,
        running_gateway(tmp_path, max_nested_rows="30") as gateway,
    ):
        await registered(gateway, url)
        answer = await gateway.graphql(query)

    assert len(answer["data"]["users"]["nodes"]) == 20
    assert {error["extensions"]["limit"] for error in answer["errors"]} == {"nested_rows"}
    assert answer["errors"][0]["message"] == (
        "The answer would hold more than 30 rows in lists inside lists; ask for smaller pages,"
        " or for less inside each other"
    )
