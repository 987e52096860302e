"""An operation's budget of upstream calls over a real wire: which field it ends, and what not."""

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pretend_roster import Key
from running_gateway import RunningGateway, running_gateway
from structlog.testing import capture_logs

from schema import build_schema
from schema.execution import execute, subscribe
from sessions.metering import Meter, metering
from simulators.canvas.app import running
from simulators.canvas.population import build_population
from simulators.canvas.profiles import PROFILES
from simulators.canvas.state import ADMIN_TOKEN, Canvas

SCHEMA = build_schema()
SPENT = {
    "code": "REQUEST_LIMIT_EXCEEDED",
    "providerId": "2",
    "retryable": False,
    "retryAfterSeconds": None,
    "limit": "upstream_calls",
}
NESTED = """{
    providers { providerId }
    users(first: 3) { nodes { username enrollments { nodes { state } } } }
}"""

FOLLOWED = """subscription ($since: String) {
    changes(since: $since, kinds: [USERS]) { node { ... on User { enrollments { nodes { id } } } } }
}"""


@dataclass(kw_only=True)
class School:
    """A gateway with one Canvas that has no GraphQL: one user's enrollments are one call."""

    gateway: RunningGateway
    canvas: Canvas

    async def ask(
        self, query: str, meter: Meter, variables: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        self.canvas.counts.calls.clear()
        context = self.gateway.parts.request_context(Key(), "request-1")
        with metering(meter):
            _, answer = await execute(SCHEMA, {"query": query, "variables": variables}, context)
        return answer

    @property
    def reached(self) -> int:
        return sum(self.canvas.counts.calls.values())


@pytest.fixture
async def school(tmp_path: Path) -> AsyncIterator[School]:
    canvas = Canvas(build_population(), profile=PROFILES["oss-2019"])
    async with running(canvas) as url, running_gateway(tmp_path) as gateway:
        await gateway.add_provider(id="2", type="canvas_oss", url=url, api_key=ADMIN_TOKEN)
        yield School(gateway=gateway, canvas=canvas)


async def test_a_budget_that_is_enough_counts_what_reached_the_provider(school: School) -> None:
    meter = Meter(max_calls=4)

    answer = await school.ask(NESTED, meter)

    assert "errors" not in answer
    usage = meter.usage_by_provider["2"]
    assert usage.calls == school.reached == 4  # one page of users, one call for each of three
    assert usage.upstream_seconds > 0
    assert usage.body_bytes > 0


async def test_a_spent_budget_empties_the_field_that_went_past_it_and_no_other(
    school: School,
) -> None:
    answer = await school.ask(NESTED, Meter(max_calls=2))

    assert answer["data"]["providers"] == [{"providerId": "2"}]
    users = answer["data"]["users"]["nodes"]
    assert [user["username"] is None for user in users] == [False, False, False]
    assert [user["enrollments"] for user in users] == [None, None, None]
    (error,) = answer["errors"]
    assert error["path"] == ["users", "nodes", 0, "enrollments"]
    assert error["extensions"] == SPENT
    assert error["message"].startswith("One operation may make 2 calls to providers")
    assert school.reached == 2


async def test_a_spent_budget_is_one_operations_and_no_failure_of_the_provider(
    school: School,
) -> None:
    with capture_logs() as logs:
        for _ in range(10):
            await school.ask(NESTED, Meter(max_calls=0))
        answer = await school.ask(NESTED, Meter())

    assert "errors" not in answer
    assert [line for line in logs if line["event"] != "request"] == []


WRITE = """mutation ($input: CreateUserInput!) { done: createUser(input: $input) {
    ... on CreateUserPayload { created }
    ... on WriteRefused { code retryable } } }"""
ANN = {"providerId": "2", "username": "ann", "displayName": "Ann Lee", "email": "ann@school.test"}


async def test_a_write_is_not_begun_with_a_spent_budget(school: School) -> None:
    answer = await school.ask(WRITE, Meter(max_calls=0), {"input": ANN})

    assert answer["data"]["done"] == {"code": "REQUEST_LIMIT_EXCEEDED", "retryable": False}
    assert school.reached == 0


async def test_a_write_once_begun_is_done_whatever_is_left_of_the_budget(school: School) -> None:
    meter = Meter(max_calls=1)

    answer = await school.ask(WRITE, meter, {"input": ANN})

    assert answer["data"]["done"] == {"created": True}
    assert meter.calls == school.reached > 1


async def test_each_event_of_a_subscription_has_a_budget_of_its_own(school: School) -> None:
    found = await school.gateway.graphql("{ changes { latestCursor } }")
    since = found["data"]["changes"]["latestCursor"]
    refresh = 'mutation { refreshProvider(input: {providerId: "2"}) { __typename } }'
    await school.gateway.graphql(refresh)
    body = {"query": FOLLOWED, "variables": {"since": since}}

    async def events(calls: int) -> list[dict[str, Any]]:
        context = school.gateway.parts.request_context(Key(), "request-1")
        told = subscribe(SCHEMA, body, context, event_seconds=30, event_calls=calls)
        async with aclosing(told):
            return [await anext(told) for _ in range(3)]

    enough = await events(1)
    spent = await events(0)

    assert [event.get("errors") for event in enough] == [None] * 3
    assert [[error["extensions"] for error in event["errors"]] for event in spent] == [[SPENT]] * 3
