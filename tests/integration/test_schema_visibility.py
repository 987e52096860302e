"""The schema is shown to keys that may see it, and no name of it to any other."""

import itertools
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from graphql import get_introspection_query
from running_gateway import RunningGateway, running_gateway
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

ALL_BUT_THE_SCHEMA = (
    *("read:users", "read:courses", "read:enrollments", "read:providers", "read:metrics"),
    *("write:providers", "write:users", "write:enrollments", "act:users"),
)
INTROSPECTION = [
    get_introspection_query(),
    "{ __schema { types { name } } }",
    '{ __type(name: "User") { name } }',
    '{ harmless: __type(name: "User") { name } }',
    "query A { providers { id } } query B { ...F } fragment F on Query { __schema { __typename } }",
    "subscription { __schema { types { name } } }",
    "mutation { __schema { types { name } } }",
    "{ __typename ... @defer { __schema { types { name } } } }",
]
SUGGESTING = [
    ("{ providerz { id } }", {}, "Cannot query field 'providerz' on type 'Query'."),
    ('{ user(id: "x", idd: "x") { id } }', {}, "Unknown argument 'idd' on field 'Query.user'."),
    ("{ providers { ... on Usr { id } } }", {}, "Unknown type 'Usr'."),
    (
        "{ users(orderBy: { field: USERNAM }) { totalCount } }",
        {},
        "Value 'USERNAM' does not exist in 'UserOrderField' enum.",
    ),
    (
        "{ users(filter: { serch: null }) { totalCount } }",
        {},
        "Expected value of type 'UserFilter' not to include unknown field 'serch'",
    ),
    (
        "query ($order: UserOrder) { users(orderBy: $order) { totalCount } }",
        {"order": {"field": "USERNAM"}},
        "Variable '$order' has invalid value at .field: It does not exist in 'UserOrderField' enum",
    ),
]


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[RunningGateway]:
    async with running_gateway(tmp_path) as opened:
        yield opened


async def posted(
    gateway: RunningGateway, headers: Mapping[str, str], query: str, **variables: Any
) -> httpx.Response:
    body = {"query": query, "variables": variables}
    return await gateway.client.post("/graphql", json=body, headers=headers)


async def test_a_key_without_the_scope_is_not_shown_the_schema(gateway: RunningGateway) -> None:
    headers = await gateway.key(*ALL_BUT_THE_SCHEMA)
    accepts = ("application/json", "text/event-stream", "multipart/mixed")

    for query, accept in itertools.product(INTROSPECTION, accepts):
        answer = await posted(gateway, {**headers, "Accept": accept}, query)

        assert "FORBIDDEN" in answer.text, query
        assert "scope introspect" in answer.text
        for name in ("UserConnection", "DisplayName", "displayName"):
            assert name not in answer.text


async def test_keys_with_the_scope_and_administrators_are_shown_it(
    gateway: RunningGateway,
) -> None:
    keys = [await gateway.key(scope) for scope in ("introspect", "admin")]

    answers = [await posted(gateway, key, INTROSPECTION[0]) for key in keys]

    for answer in answers:
        names = {each["name"] for each in answer.json()["data"]["__schema"]["types"]}
        assert {"User", "Course", "Enrollment"} <= names


async def test_the_name_of_a_type_is_told_to_everybody(gateway: RunningGateway) -> None:
    answer = await posted(gateway, await gateway.key("read:users"), "{ __typename }")

    assert answer.json() == {"data": {"__typename": "Query"}}


async def test_names_are_suggested_to_keys_that_see_the_schema_only(
    gateway: RunningGateway,
) -> None:
    reader = await gateway.key("read:users")

    for query, variables, told in SUGGESTING:
        suggested = await posted(gateway, gateway.client.headers, query, **variables)
        hidden = await posted(gateway, reader, query, **variables)
        again = await posted(gateway, gateway.client.headers, query, **variables)

        assert "Did you mean" in suggested.text, query
        assert again.json() == suggested.json()
        (error,) = hidden.json()["errors"]
        assert error["message"].startswith(told)
        assert "Did you mean" not in hidden.text
        (whole,) = suggested.json()["errors"]
        assert len(whole["message"]) > len(error["message"])
        assert error["extensions"] == {"code": "BAD_INPUT"}
        assert error["locations"] == whole["locations"]


async def test_a_websocket_is_shown_no_more(gateway: RunningGateway) -> None:
    address = gateway.url.replace("http://", "ws://") + "/graphql"
    asked = [INTROSPECTION[1], SUGGESTING[0][0]]
    heard: list[str] = []

    async with connect(
        address, subprotocols=[Subprotocol("graphql-transport-ws")], proxy=None
    ) as socket:
        shown = await gateway.key("read:users")
        await socket.send(json.dumps({"type": "connection_init", "payload": shown}))
        await socket.recv()
        for number, query in enumerate(asked):
            subscribe = {"id": str(number), "type": "subscribe", "payload": {"query": query}}
            await socket.send(json.dumps(subscribe))
            heard.append(str(await socket.recv()))

    assert "FORBIDDEN" in heard[0]
    assert SUGGESTING[0][2] in heard[1]
    assert "Did you mean" not in heard[1]
