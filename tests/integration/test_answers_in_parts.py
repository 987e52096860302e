"""What ``@defer`` and ``@stream`` put off comes when it is there, and no later."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from many_providers import canvas_account
from pretend_roster import SCHEMA, Roster, World, a_context, an_enrollment, ask
from running_gateway import RunningGateway, running_gateway
from structlog.testing import capture_logs

from schema.execution import execute_in_parts
from sessions.errors import ProviderTimeout, ProviderUnavailable
from simulators.canvas import app as canvas_app
from simulators.canvas.population import build_large_population
from simulators.canvas.state import Canvas
from simulators.kolibri import app as kolibri_app
from simulators.kolibri.population import build_population
from simulators.kolibri.state import Kolibri
from storage.records import Provider

MULTIPART = {"Accept": "multipart/mixed;incrementalSpec=v0.2, application/json;q=0.9"}
EVENTS = {"Accept": "application/graphql-response+json, application/json, text/event-stream"}
PART = "\r\n--graphql\r\nContent-Type: application/json; charset=utf-8\r\n\r\n"
ONE_EACH = """{
  __typename
  ... @defer(label: "slow") { slow: users(filter: {providerIds: ["1"]}) {
    nodes { externalId } sources { status } } }
  ... @defer(label: "fast") { fast: users(filter: {providerIds: ["2"]}) {
    nodes { externalId } sources { status } } }
}"""


async def parts_of(world: World, query: str) -> list[dict[str, Any]]:
    answers = execute_in_parts(SCHEMA, {"query": query}, a_context(world))
    async with aclosing(answers):
        return [part async for _, part in answers]


def merged(parts: list[dict[str, Any]]) -> tuple[Any, list[Any]]:
    """Put an answer together as a client does; return data and errors."""
    data, errors = parts[0]["data"], [*parts[0].get("errors", ())]
    paths: dict[str, list[Any]] = {}
    for part in parts:
        paths |= {one["id"]: one["path"] for one in part.get("pending", ())}
        for piece in part.get("incremental", ()):
            place = data
            for step in [*paths[piece["id"]], *piece.get("subPath", ())]:
                place = place[step]
            if "items" in piece:
                place.extend(piece["items"])
            else:
                place.update(piece["data"])
            errors += piece.get("errors", ())
        for one in part.get("completed", ()):
            errors += one.get("errors", ())
    assert [part["hasNext"] for part in parts] == [True] * (len(parts) - 1) + [False]
    return data, errors


def a_school(world: World, provider_id: str, *, users: int = 3) -> Roster:
    school = world.add(provider_id, user_count=users, course_count=1)
    (course,) = school.courses
    school.enrollments = [
        an_enrollment(provider_id, user.external_id, course.external_id) for user in school.users
    ]
    return school


# What is in the parts.


async def test_each_providers_part_comes_when_that_provider_has_answered() -> None:
    world = World()
    a_school(world, "1").delay_seconds = 0.2
    a_school(world, "2", users=1)

    parts = await parts_of(world, ONE_EACH)

    fast = {"fast": {"nodes": [{"externalId": "u0"}], "sources": [{"status": "OK"}]}}
    assert parts[0] == {
        "data": {"__typename": "Query"},
        "pending": [
            {"id": "0", "path": [], "label": "slow"},
            {"id": "1", "path": [], "label": "fast"},
        ],
        "hasNext": True,
    }
    assert parts[1] == {
        "incremental": [{"id": "1", "data": fast}],
        "completed": [{"id": "1"}],
        "hasNext": True,
    }
    assert [piece["id"] for piece in parts[2]["incremental"]] == ["0"]
    assert parts[2]["hasNext"] is False
    assert len(parts) == 3


async def test_parts_put_together_are_the_whole_answer_and_cost_no_more_calls() -> None:
    query = """{ users {
      nodes @stream(initialCount: 1, label: "rows") {
        externalId
        ... @defer(label: "more") { enrollments { nodes { course { title } } } }
      }
      totalCount
    } }"""
    one, other = World(), World()
    schools = [a_school(world, "1", users=5) for world in (one, other)]

    whole = await ask(one, query)
    parts = await parts_of(other, query)

    assert len(parts) > 1
    assert merged(parts) == (whole["data"], [])
    assert schools[0].call_names() == schools[1].call_names()


async def test_nothing_is_put_off_for_a_directive_that_is_switched_off() -> None:
    world = World()
    a_school(world, "1")

    parts = await parts_of(world, "{ ... @defer(if: false) { users { totalCount } } }")

    assert parts == [{"data": {"users": {"totalCount": 3}}}]


async def test_a_providers_failure_is_told_in_the_part_that_holds_its_field() -> None:
    world = World()
    a_school(world, "1").failure = ProviderTimeout("Too slow", provider_id="1")
    a_school(world, "2")
    whole = (await ask(world, ONE_EACH))["errors"]

    parts = await parts_of(world, ONE_EACH)

    told = {
        piece["id"]: [error["path"] for error in piece.get("errors", ())]
        for part in parts
        for piece in part.get("incremental", ())
    }
    assert told == {"0": [["slow"]], "1": []}
    assert "errors" not in parts[0]
    assert merged(parts)[1] == whole


async def test_failures_inside_of_nested_parts_are_told_once_and_where_they_belong() -> None:
    world = World()
    school = a_school(world, "1", users=2)
    failure = ProviderUnavailable("Down", provider_id="1")
    school.failures_by_call = {"fetch_enrollments_by_user": failure}

    parts = await parts_of(
        world,
        """{ ... @defer(label: "outer") { users { nodes { externalId
             ... @defer(label: "inner") { enrollments { totalCount } } } } } }""",
    )

    pieces = [piece for part in parts for piece in part.get("incremental", ())]
    told = [[error["path"] for error in piece.get("errors", ())] for piece in pieces]
    assert told[0] == []
    assert told[1:] == [[["users", "nodes", n, "enrollments"]] for n in range(2)]


async def test_what_nobody_expected_is_masked_in_every_part() -> None:
    world = World()
    a_school(world, "1").failures_by_call = {"list_users": RuntimeError("secret of ours")}
    a_school(world, "2")

    with capture_logs() as logs:
        parts = await parts_of(world, ONE_EACH)

    (error,) = merged(parts)[1]
    assert error["extensions"]["code"] == "INTERNAL"
    assert [line["error_id"] for line in logs] == [error["extensions"]["errorId"]]
    assert "secret of ours" not in json.dumps(parts)


async def test_a_part_that_cannot_be_is_completed_with_a_masked_error() -> None:
    class Forgetful(World):
        async def get_all(self) -> list[Provider]:
            raise RuntimeError("secret of ours")

    with capture_logs() as logs:
        parts = await parts_of(Forgetful(), '{ ... @defer(label: "p") { providers { name } } }')

    (error,) = parts[1]["completed"][0].pop("errors")
    assert parts == [
        {"data": {}, "pending": [{"id": "0", "path": [], "label": "p"}], "hasNext": True},
        {"completed": [{"id": "0"}], "hasNext": False},
    ]
    assert error["extensions"] == {"code": "INTERNAL", "errorId": logs[0]["error_id"]}
    assert error["path"] == ["providers"]
    assert "secret of ours" not in json.dumps(error)


@pytest.mark.parametrize("count", ["-1", "$n"])
async def test_a_wrong_count_is_the_callers_mistake(count: str) -> None:
    world = World()
    a_school(world, "1")
    declared = "($n: Int = -5)" if count == "$n" else ""

    (answer,) = await parts_of(
        world, f"query {declared} {{ users {{ nodes @stream(initialCount: {count}) {{ id }} }} }}"
    )

    assert [(error["message"], error["extensions"]["code"]) for error in answer["errors"]] == [
        ("initialCount: A number from 0 on is needed here", "BAD_INPUT")
    ]


async def test_a_mutation_puts_off_what_hangs_on_its_result() -> None:
    world = World()
    world.add("1")

    parts = await parts_of(
        world,
        """mutation { checkProvider(providerId: "1") { __typename
             ... on ProviderChecked { ... @defer { provider { providerId } } } } }""",
    )

    assert merged(parts) == (
        {"checkProvider": {"__typename": "ProviderChecked", "provider": {"providerId": "1"}}},
        [],
    )


async def test_whoever_gives_up_leaves_nothing_running() -> None:
    world = World()
    a_school(world, "1").delay_seconds = 60
    a_school(world, "2")
    before = asyncio.all_tasks()
    for taken in (1, 2):
        answers = execute_in_parts(SCHEMA, {"query": ONE_EACH}, a_context(world))
        for _ in range(taken):
            await anext(answers)
        await answers.aclose()

        await until(lambda: asyncio.all_tasks() == before)


# Over the wire.


@dataclass(kw_only=True)
class Pair:
    """A gateway over a Canvas that can be made slow (1), and a Kolibri that is quick (2)."""

    gateway: RunningGateway
    canvas: Canvas

    def ask(self, query: str, **headers: str) -> Any:
        return self.gateway.client.stream(
            "POST", "/graphql", json={"query": query}, headers={**MULTIPART, **headers}
        )


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    canvas = Canvas(build_large_population(2, users=30, courses=10, enrollments=60))
    async with (
        canvas_app.running(canvas) as canvas_url,
        kolibri_app.running(Kolibri(build_population())) as kolibri_url,
        running_gateway(tmp_path) as gateway,
    ):
        await gateway.add_provider(**canvas_account("1", canvas_url))
        await gateway.add_kolibri(kolibri_url, id="2")
        await gateway.graphql("{ users(first: 1) { totalCount } }")
        canvas.counts.log.clear()
        yield Pair(gateway=gateway, canvas=canvas)


async def parts_in(answer: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """Yield the parts of a body as they come, each as soon as its closing line is there."""
    assert answer.headers["content-type"] == 'multipart/mixed; boundary="graphql"'
    waiting = ""
    async for text in answer.aiter_text():
        waiting += text
        while "\r\n--graphql" in waiting:
            part, _, waiting = waiting.partition("\r\n--graphql")
            head, _, body = part.partition("\r\n\r\n")
            if body:
                assert head == "\r\nContent-Type: application/json; charset=utf-8"
                yield json.loads(body)
    assert waiting == "--\r\n"


def left(before: set[asyncio.Task[Any]]) -> list[str]:
    """Name what runs and did not before; the simulated Canvas answers whoever waits or not."""
    names = [task.get_coro().__qualname__ for task in asyncio.all_tasks() - before]  # type: ignore[union-attr]
    return [name for name in names if name != "RequestResponseCycle.run_asgi"]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.01)


async def test_a_quick_providers_part_is_sent_while_a_slow_one_is_waited_for(pair: Pair) -> None:
    pair.canvas.latency_seconds = 1.0
    arrived: list[tuple[str, bool]] = []
    async with pair.ask(ONE_EACH) as answer:
        async for part in parts_in(answer):
            is_asked_still = not pair.canvas.counts.log
            labels = [one["id"] for one in part.get("completed", ())]
            arrived.append((",".join(labels), is_asked_still))

    assert arrived == [("", True), ("1", True), ("0", False)]


async def test_whoever_takes_json_only_is_answered_whole(pair: Pair) -> None:
    answers = []
    for accept in ("application/json", "*/*", "multipart/mixed;deferSpec=20220824, */*;q=0.1"):
        answer = await pair.gateway.client.post(
            "/graphql", json={"query": ONE_EACH}, headers={"Accept": accept}
        )
        assert answer.headers["content-type"] == "application/json; charset=utf-8"
        answers.append(answer.json())

    assert answers[0] == answers[1] == answers[2]
    assert {*answers[0]["data"]} == {"__typename", "slow", "fast"}
    assert "errors" not in answers[0]


async def test_parts_come_as_events_to_those_who_name_only_these(pair: Pair) -> None:
    answer = await pair.gateway.client.post("/graphql", json={"query": ONE_EACH}, headers=EVENTS)

    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    blocks = [block for block in answer.text.split("\n\n") if block.startswith("event: next")]
    parts = [json.loads(block.partition("data: ")[2]) for block in blocks]
    assert {*merged(parts)[0]} == {"__typename", "slow", "fast"}
    assert answer.text.endswith("event: complete\ndata: \n\n")


async def test_what_is_wrong_or_not_put_off_is_answered_whole(pair: Pair) -> None:
    async def asked(query: str, accept: Mapping[str, str] = MULTIPART) -> tuple[int, str, Any]:
        answer = await pair.gateway.client.post("/graphql", json={"query": query}, headers=accept)
        return answer.status_code, answer.headers["content-type"].partition(";")[0], answer.text

    json_type = "application/json"
    wrong = await asked("{ ... @defer { nothing } }")
    same_label = '{ ... @defer(label: "a") { __typename } ... @defer(label: "a") { __typename } }'

    assert wrong[:2] == (200, json_type)
    assert "data" not in json.loads(wrong[2])
    assert (await asked("{ ... @defer(if: false) { __typename } }"))[:2] == (200, json_type)
    assert "label argument must be unique" in (await asked(same_label))[2]
    assert await asked("{ __typename }", {"Accept": "multipart/mixed"}) == (
        200,
        "multipart/mixed",
        f'{PART}{{"data":{{"__typename":"Query"}}}}\r\n--graphql--\r\n',
    )


async def test_the_last_part_tells_an_administrator_what_all_of_them_cost(pair: Pair) -> None:
    async with pair.ask(ONE_EACH, **{"Gateway-Debug": "upstream, strategies"}) as answer:
        parts = [part async for part in parts_in(answer)]

    assert ["extensions" in part for part in parts] == [False, False, True]
    upstream = {one["providerId"]: one["calls"] for one in parts[-1]["extensions"]["upstream"]}
    assert upstream["1"] == len(pair.canvas.counts.log)
    assert {*upstream} == {"1", "2"}


async def test_the_budget_of_calls_holds_for_all_parts_together(tmp_path: Path) -> None:
    canvas = Canvas(build_large_population(2, users=2000, courses=10, enrollments=60))
    query = """{ ... @defer { users(first: 1000) { sources { code } } }
                 ... @defer { courses(first: 5) { sources { code } } } }"""
    async with (
        canvas_app.running(canvas) as url,
        running_gateway(tmp_path, max_upstream_calls="10") as gateway,
    ):
        await gateway.add_provider(**canvas_account("1", url))
        canvas.counts.log.clear()
        async with gateway.client.stream(
            "POST", "/graphql", json={"query": query}, headers=MULTIPART
        ) as answer:
            data, errors = merged([part async for part in parts_in(answer)])

    assert len(canvas.counts.log) == 10
    told = {source["code"] for name in data for source in data[name]["sources"]}
    assert told == {None, "REQUEST_LIMIT_EXCEEDED"}
    assert [error["extensions"]["code"] for error in errors] == ["REQUEST_LIMIT_EXCEEDED"]


async def test_the_deadline_of_a_request_holds_for_its_last_part(tmp_path: Path) -> None:
    canvas = Canvas(build_large_population(2, users=30, courses=10, enrollments=60))
    async with (
        canvas_app.running(canvas) as url,
        running_gateway(tmp_path, deadline_seconds="1") as gateway,
    ):
        await gateway.add_provider(**canvas_account("1", url))
        canvas.latency_seconds = 30
        query = '{ ... @defer { users(filter: {providerIds: ["1"]}) { sources { code } } } }'
        async with (
            asyncio.timeout(10),
            gateway.client.stream(
                "POST", "/graphql", json={"query": query}, headers=MULTIPART
            ) as answer,
        ):
            data, errors = merged([part async for part in parts_in(answer)])

    assert data == {"users": {"sources": [{"code": "PROVIDER_TIMEOUT"}]}}
    assert [error["extensions"]["code"] for error in errors] == ["PROVIDER_TIMEOUT"]


async def test_a_caller_who_leaves_ends_all_that_was_put_off(pair: Pair) -> None:
    pair.canvas.latency_seconds = 30
    idle = pair.gateway.parts.admission.load().running
    before = asyncio.all_tasks()
    async with pair.ask(ONE_EACH) as answer:
        parts = parts_in(answer)
        await anext(parts)
        await anext(parts)
        assert pair.gateway.parts.admission.load().running == idle + 1

    await until(lambda: pair.gateway.parts.admission.load().running == idle and not left(before))


async def test_parts_that_find_no_place_among_the_streams_are_given_up(tmp_path: Path) -> None:
    canvas = Canvas(build_large_population(2, users=30, courses=10, enrollments=60))
    events = {"Accept": "text/event-stream"}
    changes = {"query": "subscription { changes { cursor } }"}
    async with (
        canvas_app.running(canvas) as url,
        running_gateway(tmp_path, max_subscriptions="1") as gateway,
    ):
        await gateway.add_provider(**canvas_account("1", url))
        canvas.latency_seconds = 30
        async with gateway.client.stream("POST", "/graphql", json=changes, headers=events) as held:
            await anext(held.aiter_bytes())
            before = asyncio.all_tasks()
            refused = await gateway.client.post(
                "/graphql", json={"query": ONE_EACH}, headers=EVENTS
            )
            await until(lambda: not left(before))

    assert refused.status_code == 503
    assert refused.json()["errors"][0]["extensions"]["code"] == "GATEWAY_OVERLOADED"
