"""GraphQL over WebSocket, case by case, with a raw client on a running application."""

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import structlog
from gql import Client, gql
from gql.transport.exceptions import TransportQueryError
from gql.transport.websockets import WebsocketsTransport
from learners import gateway_with_learners, running_login_service
from pretend_platform import until
from running_gateway import TOKEN, RunningGateway, listening, running_gateway, running_product
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.sync.client import ClientConnection as SyncConnection
from websockets.sync.client import connect as connect_sync
from websockets.typing import Origin, Subprotocol

from gateway import graphql_ws, serving, tokens
from gateway.admission import Load
from gateway.tokens import KeySetUnavailable
from simulators.kolibri.app import running
from simulators.kolibri.population import build_population
from simulators.kolibri.state import Kolibri
from storage.documents import DocumentDraft
from storage.errors import StorageUnavailable

INIT = {"type": "connection_init", "payload": {"Authorization": f"Bearer {TOKEN}"}}
REFRESH = """mutation { refreshProvider(input: {providerId: "1"}) {
  ... on ImportRequested { run { state } }
} }"""
PROGRESS = 'subscription { importProgress(providerId: "1") { state } }'
CHANGES = "subscription { changes { type } }"
TYPE = {"query": "{ __typename }"}
WAITING = {"query": 'query { provider(providerId: "unknown") { providerId } }'}


@dataclass(kw_only=True)
class Talk:
    """A socket to a gateway, in messages."""

    socket: ClientConnection

    async def say(self, *messages: Mapping[str, Any] | str | bytes) -> None:
        for message in messages:
            is_raw = isinstance(message, str | bytes)
            await self.socket.send(message if is_raw else json.dumps(message))

    async def hear(self) -> Any:
        async with asyncio.timeout(10):
            received = await self.socket.recv()
        assert isinstance(received, str)
        return json.loads(received)

    async def closing(self) -> tuple[int, str]:
        """Return code and reason of the close frame, and make sure that nothing came before it."""
        with pytest.raises(ConnectionClosed) as closed:
            raise AssertionError(await self.hear())
        assert closed.value.rcvd is not None
        return closed.value.rcvd.code, closed.value.rcvd.reason

    async def begin(self, operation_id: str = "1", query: str = CHANGES, **rest: Any) -> None:
        payload = {"query": query, **rest}
        await self.say({"id": operation_id, "type": "subscribe", "payload": payload})

    async def is_well(self) -> bool:
        """Whether the socket still answers queries."""
        await self.begin("well", "{ __typename }")
        heard = [await self.hear(), await self.hear()]
        return heard == [
            {"id": "well", "type": "next", "payload": {"data": {"__typename": "Query"}}},
            {"id": "well", "type": "complete"},
        ]


@asynccontextmanager
async def opened(
    gateway: RunningGateway,
    *,
    subprotocols: tuple[str, ...] = ("graphql-transport-ws",),
    origin: str | None = None,
    host: str | None = None,
    path: str = "/graphql",
    headers: Mapping[str, str] | None = None,
) -> AsyncIterator[Talk]:
    address = gateway.url.removeprefix("http://")
    connected, _, port = address.partition(":")
    async with connect(
        f"ws://{host or address}{path}",
        host=connected,
        port=int(port),
        subprotocols=[*map(Subprotocol, subprotocols)] or None,
        additional_headers=headers,
        origin=None if origin is None else Origin(origin),
        compression=None,
        proxy=None,
        close_timeout=2,
    ) as socket:
        yield Talk(socket=socket)


@asynccontextmanager
async def acknowledged(
    gateway: RunningGateway, headers: Mapping[str, str] | None = None
) -> AsyncIterator[Talk]:
    async with opened(gateway, headers=headers) as talk:
        await talk.say(INIT)
        assert await talk.hear() == {"type": "connection_ack"}
        yield talk


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[RunningGateway]:
    async with running_gateway(tmp_path) as running_one:
        yield running_one


def hasten(gateway: RunningGateway, **terms: Any) -> None:
    sockets = gateway.app.state.sockets
    sockets.terms = replace(sockets.terms, look_seconds=0.02, **terms)


def load(gateway: RunningGateway) -> tuple[int, int]:
    now: Load = gateway.parts.admission.load()
    return now.running, now.subscriptions


def codes(errors: list[Mapping[str, Any]]) -> list[str]:
    return [error["extensions"]["code"] for error in errors]


# The handshake.


async def test_a_socket_without_the_subprotocol_is_closed_with_4406(
    gateway: RunningGateway,
) -> None:
    for offered in ((), ("graphql-ws",)):
        async with opened(gateway, subprotocols=offered) as talk:
            assert await talk.closing() == (
                4406,
                "Subprotocol not acceptable: graphql-transport-ws is",
            )


async def test_the_subprotocol_is_picked_among_those_offered(gateway: RunningGateway) -> None:
    async with opened(gateway, subprotocols=("graphql-ws", "graphql-transport-ws")) as talk:
        assert talk.socket.subprotocol == "graphql-transport-ws"
        assert talk.socket.response is not None
        assert len(talk.socket.response.headers["x-request-id"]) == 32


async def test_a_key_comes_in_the_payload_or_in_the_header(gateway: RunningGateway) -> None:
    shown: tuple[Any, ...] = (
        ({"Authorization": f"Bearer {TOKEN}"}, {}),
        ({"authorization": TOKEN}, {}),
        ({"apiKey": TOKEN}, {}),
        ({}, {"Authorization": f"Bearer {TOKEN}"}),
        ({"apiKey": TOKEN}, {"Authorization": "Bearer not-a-good-key"}),
        (None, {"Authorization": TOKEN}),
    )
    for payload, headers in shown:
        async with opened(gateway, headers=headers) as talk:
            await talk.say({"type": "connection_init", "payload": payload})

            assert await talk.hear() == {"type": "connection_ack"}
            assert await talk.is_well()


async def test_no_good_key_is_forbidden(gateway: RunningGateway) -> None:
    for payload in ({}, {"apiKey": ""}, {"Authorization": "Bearer not-a-good-key"}):
        async with opened(gateway) as talk:
            await talk.say({"type": "connection_init", "payload": payload})

            assert await talk.closing() == (
                4403,
                "A good key is needed, as Authorization in connection_init's payload",
            )


async def test_who_does_not_initialise_in_time_is_closed_with_4408(
    gateway: RunningGateway,
) -> None:
    hasten(gateway, init_seconds=0.1)
    async with opened(gateway) as talk:
        await talk.say({"type": "ping"})

        assert await talk.hear() == {"type": "pong"}
        assert await talk.closing() == (4408, "Connection initialisation timeout")


async def test_a_second_initialisation_is_too_many(gateway: RunningGateway) -> None:
    async with acknowledged(gateway) as talk:
        await talk.say(INIT)

        assert await talk.closing() == (4429, "Too many initialisation requests")


async def test_a_subscription_before_the_acknowledgement_is_unauthorized(
    gateway: RunningGateway,
) -> None:
    async with opened(gateway, headers={"Authorization": TOKEN}) as talk:
        await talk.begin()

        assert await talk.closing() == (4401, "Unauthorized: connection_init comes first")


async def test_pages_of_other_origins_cannot_open_a_socket(tmp_path: Path) -> None:
    async with running_gateway(
        tmp_path,
        dev="on",
        public_url="https://learn.example.org",
        cors_origins="https://front.example.org",
    ) as gateway:
        port = gateway.url.rpartition(":")[2]
        for origin, host in (
            ("http://attacker.example", f"127.0.0.1:{port}"),
            ("null", f"127.0.0.1:{port}"),
            ("http://[", f"127.0.0.1:{port}"),
            (f"http://127.0.0.1:{int(port) - 1}", f"127.0.0.1:{port}"),
            (f"http://attacker.example:{port}", f"attacker.example:{port}"),  # rebound to loopback
        ):
            with pytest.raises(InvalidStatus) as refused:
                async with opened(gateway, origin=origin, host=host):
                    pass
            assert refused.value.response.status_code == 403
            assert json.loads(refused.value.response.body)["code"] == "FORBIDDEN"
        for own in (None, gateway.url, "https://learn.example.org", "https://front.example.org"):
            async with opened(gateway, origin=own) as talk:
                await talk.say({"type": "connection_init"})
                assert await talk.hear() == {"type": "connection_ack"}


async def test_where_a_key_is_needed_a_page_may_come_from_whatever_name_it_was_opened_by(
    gateway: RunningGateway,
) -> None:
    async with opened(gateway, origin="https://School.example", host="school.example") as talk:
        await talk.say(INIT)

        assert await talk.hear() == {"type": "connection_ack"}


async def test_other_paths_have_no_socket(gateway: RunningGateway) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with opened(gateway, path="/api/users"):
            pass

    assert refused.value.response.status_code == 403


# Operations.


async def test_a_query_is_answered_once_and_completed(gateway: RunningGateway) -> None:
    async with acknowledged(gateway) as talk:
        assert await talk.is_well()
        assert await talk.is_well()  # a completed id may be used again


async def test_what_a_field_could_not_give_comes_beside_the_data(gateway: RunningGateway) -> None:
    _, key = await gateway.parts.api_keys.create("test", ["read:courses"])
    async with opened(gateway) as talk:
        await talk.say({"type": "connection_init", "payload": {"apiKey": key.reveal()}})
        await talk.hear()
        await talk.begin("1", "{ __typename users { totalCount } }")
        heard = await talk.hear()

    assert (heard["id"], heard["type"]) == ("1", "next")
    assert heard["payload"]["data"] == {"__typename": "Query", "users": None}
    assert codes(heard["payload"]["errors"]) == ["FORBIDDEN"]


async def test_a_mutation_is_carried_out(gateway: RunningGateway) -> None:
    query = """mutation ($id: ID!) { refreshProvider(input: {providerId: $id}) {
      ... on ProviderRefused { code }
    } }"""
    async with acknowledged(gateway) as talk:
        await talk.begin("1", query, variables={"id": "9"}, operationName=None, extensions=[])

        payload = {"data": {"refreshProvider": {"code": "PROVIDER_NOT_FOUND"}}}
        assert await talk.hear() == {"id": "1", "type": "next", "payload": payload}
        assert await talk.hear() == {"id": "1", "type": "complete"}


async def test_what_is_put_off_comes_in_parts(gateway: RunningGateway) -> None:
    query = """{ __typename ... @defer(label: "users") { users { totalCount } } }"""
    async with running(Kolibri(build_population())) as url:
        await gateway.add_kolibri(url)
        count = len((await gateway.users()).json())
        async with acknowledged(gateway) as talk:
            await talk.begin("1", query)
            heard = [await talk.hear() for _ in range(3)]

            assert await talk.is_well()

    first, second = (message["payload"] for message in heard[:2])
    assert (first["data"], first["hasNext"]) == ({"__typename": "Query"}, True)
    assert [piece["data"] for piece in second["incremental"]] == [{"users": {"totalCount": count}}]
    assert second["hasNext"] is False
    assert heard[2] == {"id": "1", "type": "complete"}


async def test_a_wrong_request_ends_itself_and_nothing_beside_it(gateway: RunningGateway) -> None:
    variables = "query ($id: ID!) { provider(providerId: $id) { id } }"
    async with acknowledged(gateway) as talk:
        await talk.begin("beside")
        await until(lambda: load(gateway) == (0, 2))
        for query, rest, code in (
            ("{", {}, "BAD_INPUT"),
            ("subscription {", {}, "BAD_INPUT"),
            ("{ nothing }", {}, "BAD_INPUT"),
            ("subscription { nothing }", {}, "BAD_INPUT"),
            (variables, {}, "BAD_INPUT"),
            (variables, {"variables": {"id": {}}}, "BAD_INPUT"),
            (variables, {"variables": [1]}, "BAD_INPUT"),
            ("{ __typename }", {"operationName": "x"}, "BAD_INPUT"),
            ("{ __typename }", {"operationName": 1}, "BAD_INPUT"),
            ("query A { __typename } query B { __typename }", {}, "BAD_INPUT"),
            ("", {}, "BAD_INPUT"),
            ("{a" * 60 + "}" * 60, {}, "REQUEST_LIMIT_EXCEEDED"),
            ('subscription { importProgress(providerId: "9") { id } }', {}, "PROVIDER_NOT_FOUND"),
            ('subscription { changes(since: "x") { type } }', {}, "BAD_INPUT"),
        ):
            await talk.begin("wrong", query, **rest)
            heard = await talk.hear()

            assert (heard["id"], heard["type"]) == ("wrong", "error")
            assert codes(heard["payload"]) == [code]
        assert await talk.is_well()
        assert load(gateway) == (0, 2)


async def test_an_id_in_use_closes_the_socket_with_4409(gateway: RunningGateway) -> None:
    async with acknowledged(gateway) as talk:
        await talk.begin("x")
        await talk.begin("x", "{ __typename }")

        assert await talk.closing() == (4409, "Subscriber for x already exists")
    await until(lambda: load(gateway) == (0, 0))


async def test_a_subscription_tells_events_as_they_come_until_it_is_completed(
    gateway: RunningGateway,
) -> None:
    tasks = len(asyncio.all_tasks())
    async with acknowledged(gateway) as talk:
        await talk.begin("1")
        await talk.begin("2")
        await until(lambda: load(gateway) == (0, 3))
        await talk.say({"id": "1", "type": "complete"})
        await until(lambda: load(gateway) == (0, 2))
        await talk.say({"id": "1", "type": "complete"}, {"id": "unknown", "type": "complete"})
        await talk.begin("1", "{ __typename }")

        assert (await talk.hear())["type"] == "next"
        assert (await talk.hear()) == {"id": "1", "type": "complete"}
    await until(lambda: load(gateway) == (0, 0))
    await until(lambda: len(asyncio.all_tasks()) == tasks)


async def test_an_import_is_followed_on_one_socket_with_what_asked_for_it(
    gateway: RunningGateway,
) -> None:
    async with running(Kolibri(build_population())) as url:
        await gateway.add_kolibri(url)
        async with acknowledged(gateway) as talk:
            await talk.begin("changes", "subscription { changes(kinds: [COURSES]) { type kind } }")
            await until(lambda: load(gateway) == (0, 2))
            await asyncio.sleep(0.1)  # it has found out what the last change is by now
            await talk.begin("refresh", REFRESH)
            heard = [await talk.hear(), await talk.hear()]
            await talk.begin("progress", PROGRESS)
            while heard[-1] != {"id": "progress", "type": "complete"}:
                heard.append(await talk.hear())
            found = await gateway.graphql(
                "{ changes(kinds: [COURSES], first: 1000) { edges { type kind } } }"
            )
            changes = found["data"]["changes"]["edges"]
            while [one["id"] for one in heard].count("changes") < len(changes):
                heard.append(await talk.hear())

    told = {name: [one for one in heard if one["id"] == name] for name in ("progress", "changes")}
    states = [one["payload"]["data"]["importProgress"]["state"] for one in told["progress"][:-1]]
    assert states[-1] == "DONE"
    assert [one["payload"]["data"]["changes"] for one in told["changes"]] == changes
    assert changes[0] == {"type": "CREATED", "kind": "COURSES"}


async def test_an_independent_client_asks_and_subscribes(gateway: RunningGateway) -> None:
    transport = WebsocketsTransport(
        url=f"{gateway.url.replace('http', 'ws', 1)}/graphql",
        init_payload={"Authorization": f"Bearer {TOKEN}"},
        subprotocols=[WebsocketsTransport.GRAPHQLWS_SUBPROTOCOL],
    )
    async with running(Kolibri(build_population())) as url:
        await gateway.add_kolibri(url)
        async with Client(transport=transport) as session:
            asked = await session.execute(gql(REFRESH))
            states = [
                event["importProgress"]["state"] async for event in session.subscribe(gql(PROGRESS))
            ]
            with pytest.raises(TransportQueryError) as refused:
                await session.execute(gql("{ nothing }"))
            answered = await session.execute(gql("{ __typename }"))

    assert asked == {"refreshProvider": {"run": {"state": "QUEUED"}}}
    assert states[-1] == "DONE"
    assert refused.value.errors is not None
    assert codes(refused.value.errors) == ["BAD_INPUT"]
    assert answered == {"__typename": "Query"}


async def test_a_client_that_reads_nothing_holds_nothing_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "_PING_SECONDS", 1.0)
    message = json.dumps({"type": "ping", "payload": {"long": "x" * 90_000}})
    with structlog.testing.capture_logs() as logged:
        async with running_gateway(tmp_path) as gateway, acknowledged(gateway) as talk:
            await talk.begin()
            await until(lambda: load(gateway) == (0, 2))
            talk.socket.transport.pause_reading()
            sent = 0
            with suppress(TimeoutError, ConnectionClosed):
                async with asyncio.timeout(5):
                    while True:
                        await talk.socket.send(message)
                        sent += 1
            await until(lambda: load(gateway) == (0, 0))
            talk.socket.transport.abort()

    assert sent > 50  # more than what lies between fits
    assert [line["code"] for line in logged if line["event"] == "websocket_closed"] == [1006]
    assert [line for line in logged if line["event"] == "internal_error"] == []


async def test_nothing_runs_on_after_a_client_that_is_gone_without_a_word(
    gateway: RunningGateway,
) -> None:
    tasks = len(asyncio.all_tasks())
    async with acknowledged(gateway) as talk:
        for number in range(20):
            await talk.begin(str(number))
        await until(lambda: load(gateway) == (0, 21))
        talk.socket.transport.abort()

    await until(lambda: load(gateway) == (0, 0))
    await until(lambda: len(asyncio.all_tasks()) == tasks)


async def test_completing_a_query_ends_it_and_nothing_more_is_told_of_it(tmp_path: Path) -> None:
    async with (
        running_product() as product,
        running_gateway(
            tmp_path, product_callback_url=product.url, callback_seconds="60"
        ) as gateway,
    ):
        gate = asyncio.Event()

        async def wait(_asked: Mapping[str, str]) -> int:
            await gate.wait()
            return 404

        product.answer = wait
        async with acknowledged(gateway) as talk:
            await talk.begin("1", WAITING["query"])
            await until(lambda: len(product.asked) == 1)
            running = load(gateway)
            with structlog.testing.capture_logs() as logged:
                await talk.say({"id": "1", "type": "complete"})
                await until(lambda: load(gateway) == (0, 1))
            gate.set()

            assert running == (1, 1)
            assert [(line["event"], line["status"]) for line in logged] == [("request", 499)]
            assert await talk.is_well()


async def test_pings_are_answered_with_what_they_carry_and_pongs_are_taken(
    gateway: RunningGateway,
) -> None:
    async with opened(gateway) as talk:
        for payload in ({}, {"payload": None}, {"payload": {"at": 1}}):
            await talk.say({"type": "pong", **payload}, {"type": "ping", **payload})
            echo = {"payload": {"at": 1}} if payload.get("payload") else {}

            assert await talk.hear() == {"type": "pong", **echo}


async def test_where_only_trusted_documents_are_served_a_socket_serves_no_others(
    tmp_path: Path,
) -> None:
    text = "query Type { __typename }"
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    async with running_gateway(tmp_path, documents="trusted") as gateway:
        draft = DocumentDraft(id=sha256, text=text, names=())
        await gateway.parts.trusted.register([draft], client="web@1")
        key = await gateway.key("read:users")
        async with opened(gateway, headers=key) as talk:
            await talk.say({"type": "connection_init"})
            await talk.hear()
            heard = []
            for payload in ({"query": "{ __typename }"}, {"query": CHANGES}, {"documentId": "x"}):
                await talk.say({"id": "1", "type": "subscribe", "payload": payload})
                heard.append(await talk.hear())
            await talk.say({"id": "1", "type": "subscribe", "payload": {"documentId": sha256}})

            refused = [codes(one["payload"]) for one in heard]
            assert refused == [["DOCUMENT_NOT_TRUSTED"], ["DOCUMENT_NOT_TRUSTED"], ["BAD_INPUT"]]
            assert (await talk.hear())["payload"] == {"data": {"__typename": "Query"}}
            assert (await talk.hear())["type"] == "complete"


# Hostile messages.


NO_MESSAGES = (
    ("", "It is not JSON: Expecting value in line 1, column 1"),
    ("{", "It is not JSON: Expecting property name enclosed in double quotes"),
    ('"abc"', "A JSON object is needed here"),
    ("null", "A JSON object is needed here"),
    ("1", "A JSON object is needed here"),
    ("[{}]", "A JSON object is needed here"),
    ("{}", "type: A string is needed here"),
    ('{"type": 1}', "type: A string is needed here"),
    ('{"type": "start"}', "type: 'start' is not for a client to send"),
    ('{"type": "next"}', "type: 'next' is not for a client to send"),
    ('{"type": "\\ud800"}', "It holds half of a surrogate pair, which is no character"),
    ('{"type": ' + "9" * 5000 + "}", "It holds a number that is out of range"),
    ('{"type": NaN}', "It holds a number that is out of range"),
    ('{"type": ' + "[" * 20_000, "It is nested deeper than 64 levels"),
    ('{"type": "ping", "payload": 1}', "payload: An object is needed here"),
    ('{"type": "pong", "payload": []}', "payload: An object is needed here"),
    ('{"type": "complete"}', "id: A string is needed here, not an empty one"),
    ('{"type": "subscribe", "id": ""}', "id: A string is needed here, not an empty one"),
    ('{"type": "subscribe", "id": 7}', "id: A string is needed here, not an empty one"),
    ('{"type": "subscribe", "id": "1"}', "payload: An object is needed here"),
    ('{"type": "subscribe", "id": "1", "payload": []}', "payload: An object is needed here"),
    (f'{{"type": "complete", "id": "{"x" * 257}"}}', "id: It is longer than 256 characters"),
    (
        '{"type": "connection_init", "payload": "x"}',
        "payload: An object is needed here",
    ),
    (
        '{"type": "connection_init", "payload": {"Authorization": ["x"]}}',
        "payload.Authorization: A string is needed here",
    ),
    (
        '{"type": "connection_init", "payload": {"On-Behalf-Of": 1}}',
        "payload.On-Behalf-Of: A string or a list of them is needed here",
    ),
    (
        '{"type": "connection_init", "payload": {"On-Behalf-Of": "x"}}',
        "On-Behalf-Of: This is not an id the gateway gave",
    ),
    (b'{"type": "ping"}', "It must be text, not binary"),
    (b"\xff\x00", "It must be text, not binary"),
)


async def test_what_is_no_message_closes_the_socket_and_says_what_is_wrong(
    gateway: RunningGateway,
) -> None:
    for message, problem in NO_MESSAGES:
        async with opened(gateway) as talk:
            await talk.say(message)
            code, reason = await talk.closing()

        assert code == 4400
        assert reason.startswith(f"Invalid message: {problem}")


async def test_what_is_no_websocket_frame_is_closed_and_hurts_nobody(
    gateway: RunningGateway,
) -> None:
    hostile = {
        "too large": (Frame(Opcode.TEXT, b'"' + b"x" * 100_000 + b'"').serialize(mask=True), 1009),
        "no UTF-8": (Frame(Opcode.TEXT, b'{"type": "\xff"}').serialize(mask=True), 1007),
        "no mask": (Frame(Opcode.TEXT, b"{}").serialize(mask=False), 1002),
        "reserved": (b"\xff" * 20, 1002),
    }
    async with acknowledged(gateway) as beside:
        for raw, expected in hostile.values():
            async with opened(gateway) as talk:
                talk.socket.transport.write(raw)

                assert (await talk.closing())[0] == expected
        half = Frame(Opcode.TEXT, b"{" * 1000).serialize(mask=True)[:500]
        async with opened(gateway) as talk:
            talk.socket.transport.write(half)
            talk.socket.transport.abort()

        assert await beside.is_well()
    await until(lambda: load(gateway) == (0, 0))


async def test_a_message_in_fragments_is_one_message(gateway: RunningGateway) -> None:
    async with opened(gateway) as talk:
        await talk.socket.send(iter(['{"type": ', '"pi', 'ng"}']))

        assert await talk.hear() == {"type": "pong"}


# Who may do how much, and for how long.


async def test_more_operations_than_a_socket_may_have_are_refused_one_by_one(
    gateway: RunningGateway,
) -> None:
    hasten(gateway, max_operations=2)
    async with acknowledged(gateway) as talk:
        for name in ("1", "2", "3"):
            await talk.begin(name)
        heard = await talk.hear()
        await talk.say({"id": "1", "type": "complete"})
        await until(lambda: load(gateway) == (0, 2))

        assert (heard["id"], heard["type"]) == ("3", "error")
        extensions = {"code": "REQUEST_LIMIT_EXCEEDED", "limit": "socket_operations"}
        assert [error["extensions"] for error in heard["payload"]] == [extensions]
        assert await talk.is_well()


async def test_subscriptions_and_sockets_share_the_places_of_event_streams(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, max_subscriptions="4") as gateway:
        async with acknowledged(gateway) as talk:
            await talk.begin("1")
            await talk.begin("2")
            await until(lambda: load(gateway) == (0, 3))
            await talk.begin("3")
            refused = await talk.hear()
            async with opened(gateway) as another:
                await another.say(INIT)

                assert (await another.closing())[0] == 1013
            assert await talk.is_well()
        await until(lambda: load(gateway) == (0, 0))

    extensions = {"code": "GATEWAY_OVERLOADED", "retryable": True, "retryAfterSeconds": 4}
    assert (refused["id"], refused["type"]) == ("3", "error")
    assert [error["extensions"] for error in refused["payload"]] == [extensions]


async def test_operations_take_places_among_requests(tmp_path: Path) -> None:
    async with (
        running_product() as product,
        running_gateway(
            tmp_path,
            product_callback_url=product.url,
            callback_seconds="60",
            max_requests="4",
            queue_seconds="0.1",
        ) as gateway,
    ):
        gate = asyncio.Event()

        async def wait(_asked: Mapping[str, str]) -> int:
            await gate.wait()
            return 404

        product.answer = wait
        query = "query ($id: ID!) { provider(providerId: $id) { id } }"
        async with acknowledged(gateway) as talk:
            for number in range(4):
                await talk.begin(str(number), query, variables={"id": f"p{number}"})
            heard = await talk.hear()
            running = load(gateway)[0]
            gate.set()
            others = [await talk.hear() for _ in range(6)]

    assert running == 3
    assert (heard["id"], codes(heard["payload"])) == ("3", ["GATEWAY_OVERLOADED"])
    assert {message["id"] for message in others} == {"0", "1", "2"}


async def test_sockets_that_show_no_key_are_bounded(gateway: RunningGateway) -> None:
    hasten(gateway, max_strangers=1)
    async with opened(gateway) as first:
        with pytest.raises(InvalidStatus) as refused:
            async with opened(gateway):
                pass
        await first.say(INIT)
        await first.hear()
        async with acknowledged(gateway) as second:
            assert await second.is_well()

    assert refused.value.response.status_code == 503
    assert refused.value.response.headers["retry-after"] == "4"
    await until(lambda: not gateway.app.state.sockets.strangers)


async def test_a_withdrawn_key_ends_its_sockets_and_begins_nothing(gateway: RunningGateway) -> None:
    record, key = await gateway.parts.api_keys.create("test", ["admin"])
    init = {"type": "connection_init", "payload": {"apiKey": key.reveal()}}
    async with opened(gateway) as watching, opened(gateway) as asking:
        for talk in (watching, asking):
            await talk.say(init)
            await talk.hear()
        await watching.begin()
        await until(lambda: load(gateway) == (0, 3))
        hasten(gateway, check_seconds=0.05)
        assert await watching.is_well()
        await gateway.parts.api_keys.revoke(record.id)
        await asking.begin("1", "{ __typename }")

        assert (await asking.closing())[0] == 4403
    hasten(gateway)
    await until(lambda: load(gateway) == (0, 0))


async def test_a_silent_subscription_of_a_withdrawn_key_is_cut_off(gateway: RunningGateway) -> None:
    hasten(gateway, check_seconds=0.05)
    record, key = await gateway.parts.api_keys.create("test", ["admin"])
    async with opened(gateway) as talk:
        await talk.say({"type": "connection_init", "payload": {"apiKey": key.reveal()}})
        await talk.hear()
        await talk.begin()
        await until(lambda: load(gateway) == (0, 2))
        await asyncio.sleep(0.2)
        before = load(gateway)
        await gateway.parts.api_keys.revoke(record.id)

        assert (await talk.closing())[0] == 4403
        assert before == (0, 2)
    await until(lambda: load(gateway) == (0, 0))


async def test_a_socket_open_for_long_is_asked_to_connect_again(gateway: RunningGateway) -> None:
    hasten(gateway, longest_seconds=0.2)
    async with acknowledged(gateway) as talk:
        await talk.begin()

        assert await talk.closing() == (1001, "The socket was open for long; connect again")


async def test_a_socket_acts_for_the_users_it_names(gateway: RunningGateway) -> None:
    user = "VXNlcjoxOjQy"  # User:1:42
    key = await gateway.key("read:users")
    shown: tuple[tuple[dict[str, Any], dict[str, str]], ...] = (
        ({"On-Behalf-Of": [user]}, {}),
        ({}, {"On-Behalf-Of": user}),
    )
    for payload, given in shown:
        async with opened(gateway, headers={**key, **given}) as talk:
            await talk.say({"type": "connection_init", "payload": payload})

            assert await talk.closing() == (4403, "This needs a key with the scope act:users")
        async with opened(gateway, headers=given) as talk:
            await talk.say({"type": "connection_init", "payload": {"apiKey": TOKEN, **payload}})
            await talk.hear()
            await talk.begin("1", "{ changes { latestCursor } }")
            heard = await talk.hear()

            assert codes(heard["payload"]["errors"]) == ["FORBIDDEN"]


async def test_a_learner_reads_its_own_rows_until_its_token_has_expired(tmp_path: Path) -> None:
    query = "{ users { nodes { externalId } } }"
    async with (
        running(Kolibri(build_population())) as url,
        running_login_service() as login,
        gateway_with_learners(tmp_path, login) as gateway,
    ):
        hasten(gateway, check_seconds=0.05)
        await gateway.add_kolibri(url)
        users = (await gateway.graphql(query))["data"]["users"]["nodes"]
        ends_at = int(time.time()) + 3 - tokens._LEEWAY_SECONDS
        token = login.token({"1": users[3]["externalId"]}, exp=ends_at)
        async with opened(gateway) as talk:
            await talk.say({"type": "connection_init", "payload": {"Authorization": token}})
            await talk.hear()
            await talk.begin("1", query)
            heard = [await talk.hear(), await talk.hear()]
            closing = await talk.closing()

    assert heard[0]["payload"] == {"data": {"users": {"nodes": [users[3]]}}}
    assert closing[0] == 4403


# What operators see.


async def test_each_operation_has_a_line_an_id_and_a_metric(gateway: RunningGateway) -> None:
    with structlog.testing.capture_logs([structlog.contextvars.merge_contextvars]) as logged:
        async with acknowledged(gateway, {"X-Request-ID": "of-the-socket"}) as talk:
            await talk.is_well()
            await talk.begin("2", "{")
            await talk.hear()
        await until(lambda: any(line["event"] == "websocket_closed" for line in logged))

    lines = [(line["event"], line["request_id"], line.get("status")) for line in logged]
    assert lines == [
        ("request", "of-the-socket.1", 200),
        ("request", "of-the-socket.2", 400),
        ("websocket_closed", "of-the-socket", None),
    ]
    assert (logged[-1]["code"], logged[-1]["operations"]) == (1000, 2)
    assert [line.get("operation_type") for line in logged] == ["query", None, None]
    metrics = (await gateway.get("/metrics")).text
    assert 'requests_total{route="graphql-ws",status="200"} 1.0' in metrics
    assert 'requests_total{route="graphql-ws",status="400"} 1.0' in metrics


async def test_a_fault_of_ours_is_masked_and_closes_nothing_but_its_operation(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise RuntimeError("canary")

    monkeypatch.setattr(gateway.parts.providers, "list_all", broken)
    with structlog.testing.capture_logs() as logged:
        async with acknowledged(gateway) as talk:
            await talk.begin("1", "{ providers { id } }")
            heard = await talk.hear()

            assert await talk.hear() == {"id": "1", "type": "complete"}
            assert await talk.is_well()

    errors = [line["error_id"] for line in logged if line["event"] == "internal_error"]
    assert [error["extensions"]["errorId"] for error in heard["payload"]["errors"]] == errors
    assert len(errors) == 1
    assert "canary" not in json.dumps(heard)


async def test_a_fault_of_the_socket_itself_is_masked(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("canary")

    monkeypatch.setattr(graphql_ws, "_shown", broken)
    with structlog.testing.capture_logs() as logged:
        async with opened(gateway, headers={"X-Request-ID": "of-the-socket"}) as talk:
            await talk.say(INIT)

            assert await talk.closing() == (4500, "Internal error of-the-socket")

    faults = [line["error_id"] for line in logged if line["event"] == "internal_error"]
    assert faults == ["of-the-socket"]


@pytest.mark.parametrize(
    ("outage_of", "told"),
    [
        (StorageUnavailable, "The gateway's database does not answer"),
        (KeySetUnavailable, "The keys that tokens are signed with cannot be had now"),
    ],
)
async def test_what_keys_are_looked_up_in_may_be_away_and_no_subscription_is_cut(
    gateway: RunningGateway,
    monkeypatch: pytest.MonkeyPatch,
    outage_of: type[Exception],
    told: str,
) -> None:
    async def away(_authorization: str | None) -> None:
        raise outage_of("canary")

    hasten(gateway, check_seconds=0.01)
    async with acknowledged(gateway) as talk:
        await talk.begin()
        await until(lambda: load(gateway) == (0, 2))
        with monkeypatch.context() as outage:
            outage.setattr(gateway.parts.keys, "find", away)
            await talk.begin("2", "{ __typename }")
            heard = await talk.hear()
            async with opened(gateway) as another:
                await another.say(INIT)
                closing = await another.closing()
            await asyncio.sleep(0.1)

        assert codes(heard["payload"]) == ["INTERNAL"]
        assert heard["payload"][0]["message"] == told
        assert closing == (1013, told)
        assert await talk.is_well()
        assert load(gateway) == (0, 2)


def test_a_terminated_gateway_says_goodbye_to_its_sockets_within_two_seconds(
    tmp_path: Path,
) -> None:
    with listening() as listener:
        port = listener.getsockname()[1]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")},
        "GATEWAY_PORT": str(port),
        "GATEWAY_DATA_FOLDER": str(tmp_path / "data"),
        "GATEWAY_TOKEN": TOKEN,
        "GATEWAY_LOG_LEVEL": "debug",
    }
    command = [sys.executable, "-m", "gateway.command_line", "serve"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stderr=log)
    try:
        with _connected(port) as socket:
            socket.send(json.dumps(INIT))
            socket.recv(timeout=10)
            for query in (CHANGES, "{ __typename }"):
                message = {"id": query, "type": "subscribe", "payload": {"query": query}}
                socket.send(json.dumps(message))
            heard = [json.loads(socket.recv(timeout=10))["type"] for _ in range(2)]
            process.terminate()
            began_at = time.monotonic()
            with pytest.raises(ConnectionClosed) as closed:
                socket.recv(timeout=10)
            took_seconds = time.monotonic() - began_at
        process.wait(timeout=20)
    finally:
        process.kill()
        process.wait()

    assert heard == ["next", "complete"]
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1001
    assert took_seconds < 2
    assert process.returncode == 0
    assert TOKEN not in (tmp_path / "log").read_text(encoding="utf-8")


def _connected(port: int) -> SyncConnection:
    for _ in range(400):
        try:
            return connect_sync(
                f"ws://127.0.0.1:{port}/graphql",
                subprotocols=[Subprotocol(graphql_ws.SUBPROTOCOL)],
                compression=None,
                proxy=None,
            )
        except OSError:
            time.sleep(0.05)
    raise AssertionError("The gateway did not start")


async def test_a_stop_closes_sockets_at_once_and_lets_queries_end(tmp_path: Path) -> None:
    async with running_product() as product:
        gate = asyncio.Event()

        async def wait(_asked: Mapping[str, str]) -> int:
            await gate.wait()
            return 404

        product.answer = wait
        async with running_gateway(
            tmp_path, product_callback_url=product.url, callback_seconds="60"
        ) as gateway:
            hasten(gateway)
            async with acknowledged(gateway) as idle, acknowledged(gateway) as busy:
                await idle.begin()
                await busy.begin("1", WAITING["query"])
                await until(lambda: len(product.asked) == 1)
                gateway.app.state.draining = True
                began_at = time.monotonic()
                closing = await idle.closing()
                took_seconds = time.monotonic() - began_at
                await busy.begin("2", "{ __typename }")
                refused = await busy.hear()
                gate.set()
                heard = [await busy.hear(), await busy.hear()]

                assert closing == (1001, "The gateway is stopping; connect again")
                assert took_seconds < 1
                assert codes(refused["payload"]) == ["GATEWAY_OVERLOADED"]
                assert [message["type"] for message in heard] == ["next", "complete"]
                assert (await busy.closing())[0] == 1001
                with pytest.raises(InvalidStatus) as late:
                    async with opened(gateway):
                        pass
                assert late.value.response.status_code == 503
