"""What nobody expected, in every transport: the caller sees a code and an id, the log the cause.

A table of the database is taken away, so that a resolver fails with a message that names it.
"""

import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import structlog
from running_gateway import TOKEN, RunningGateway, running_gateway
from sqlalchemy import text
from structlog.typing import EventDict
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

QUERY = "{ auditLog { edges { action } } }"
NULL = {"data": {"auditLog": None}}
MUTATION = 'mutation { removeProvider(providerId: "1") { __typename } }'
FORMS = ("application/json", "application/graphql-response+json", "text/event-stream")
DEFERRED = "{ __typename ... @defer { auditLog { edges { action } } } }"
SUBSCRIPTION = "subscription { changes { cursor } }"
HINTS = ("audit_", "elsewhere", "no such table", "sqlite", "Sqlite", "Traceback", "SELECT ")


_OBJECT = re.compile(r"^(?:data: )?(\{.*\})\s*$", re.MULTILINE)


def errors_in(value: Any) -> Iterator[Any]:
    """Yield every error anywhere in an answer."""
    if isinstance(value, dict):
        yield from value.get("errors") or ()
        for each in value.values():
            yield from errors_in(each)
    elif isinstance(value, list):
        for each in value:
            yield from errors_in(each)


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[RunningGateway]:
    async with running_gateway(tmp_path) as opened:
        async with opened.parts.database.transaction() as connection:
            await connection.execute(text("alter table audit rename to audit_elsewhere"))
            await connection.execute(text("alter table change_counter rename to elsewhere"))
        yield opened


def masked(answer: Mapping[str, Any], shown: str, logs: list[EventDict]) -> None:
    """Make sure that an answer says no more than where its cause is in the log, and that it is."""
    (error,) = answer["errors"]
    error_id = error["extensions"]["errorId"]
    assert error["extensions"] == {"code": "INTERNAL", "errorId": error_id}
    assert error["message"] == f"Internal error {error_id}"
    (line,) = [line for line in logs if line["event"] == "internal_error"]
    assert line["error_id"] == error_id
    assert line["exc_info"] is not None
    assert [hint for hint in HINTS if hint in shown] == []


@pytest.mark.parametrize("accept", FORMS)
async def test_over_http(gateway: RunningGateway, accept: str) -> None:
    for query in (QUERY, MUTATION):
        with structlog.testing.capture_logs() as logs:
            answer = await gateway.client.post(
                "/graphql", json={"query": query}, headers={"Accept": accept}
            )

        assert answer.headers["content-type"].startswith(accept)
        (body,) = _OBJECT.findall(answer.text)
        masked(json.loads(body), answer.text + str(answer.headers), logs)


async def test_by_get(gateway: RunningGateway) -> None:
    with structlog.testing.capture_logs() as logs:
        answer = await gateway.get("/graphql", params={"query": QUERY})

    assert answer.json()["data"] == NULL["data"]
    masked(answer.json(), answer.text, logs)


async def test_in_a_subscription_by_events(gateway: RunningGateway) -> None:
    with structlog.testing.capture_logs() as logs:
        answer = await gateway.client.post(
            "/graphql", json={"query": SUBSCRIPTION}, headers={"Accept": "text/event-stream"}
        )

    (line,) = [line for line in answer.text.splitlines() if line.startswith("data: {")]
    masked(json.loads(line.removeprefix("data: ")), answer.text, logs)


@pytest.mark.parametrize(
    ("accept", "query"),
    [
        ("multipart/mixed", DEFERRED),
        ("text/event-stream", DEFERRED),
        ("multipart/mixed;subscriptionSpec=1.0", SUBSCRIPTION),
    ],
)
async def test_in_parts(gateway: RunningGateway, accept: str, query: str) -> None:
    with structlog.testing.capture_logs() as logs:
        answer = await gateway.client.post(
            "/graphql", json={"query": query}, headers={"Accept": accept}
        )

    pieces = [json.loads(text) for text in _OBJECT.findall(answer.text)]
    assert answer.headers["content-type"].startswith(accept.partition(";")[0])
    masked({"errors": [*errors_in(pieces)]}, answer.text, logs)


@pytest.mark.parametrize("query", [QUERY, MUTATION, SUBSCRIPTION])
async def test_over_a_websocket(gateway: RunningGateway, query: str) -> None:
    address = gateway.url.replace("http://", "ws://") + "/graphql"
    heard: list[str] = []
    with structlog.testing.capture_logs() as logs:
        async with connect(
            address, subprotocols=[Subprotocol("graphql-transport-ws")], proxy=None
        ) as socket:
            shown = {"Authorization": f"Bearer {TOKEN}"}
            await socket.send(json.dumps({"type": "connection_init", "payload": shown}))
            await socket.recv()
            subscribe = {"id": "1", "type": "subscribe", "payload": {"query": query}}
            await socket.send(json.dumps(subscribe))
            heard.append(str(await socket.recv()))

    message = json.loads(heard[0])
    errors = message["payload"] if message["type"] == "error" else message["payload"]["errors"]
    masked({"errors": errors}, heard[0], logs)


async def test_beside_graphql(gateway: RunningGateway) -> None:
    with structlog.testing.capture_logs() as logs:
        answer = await gateway.add_provider(id="1", type="kolibri", url="http://127.0.0.1:9")

    assert (answer.status_code, answer.json()["code"]) == (500, "INTERNAL")
    (line,) = [line for line in logs if line["event"] == "internal_error"]
    assert line["error_id"] == answer.json()["requestId"] == answer.headers["x-request-id"]
    assert line["error_id"] in answer.json()["detail"]
    assert [hint for hint in HINTS if hint in answer.text] == []
