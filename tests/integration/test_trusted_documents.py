"""Documents sent by their hash, through the whole application."""

import asyncio
import hashlib
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from pathlib import Path
from time import monotonic
from typing import Any

import httpx
import pytest
import structlog
from running_gateway import RunningGateway, running_gateway
from sqlalchemy import event
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from gateway.manifests import read_documents
from simulators.moving_time import moving_time
from storage.documents import DocumentDraft

FOLDER = Path(__file__).parent / "client_documents"
ROOT = Path(__file__).parents[2]
RELAY_USERS = "b243d5da0e17dfc7c6f5752bdf7da81335b0e5ec4516764ec2cf434bb2b73fd6"
QUERY = "query Ids { providers { id } }"
MUTATION = 'mutation Remove { removeProvider(providerId: "9") { __typename } }'
OTHER = "query Names { providers { name } }"
BY_RESPONSE = {"Accept": "application/graphql-response+json"}
JSON_FORMS = {"Accept": "application/json"}


def digest(text: str, algorithm: str = "sha256") -> str:
    return hashlib.new(algorithm, text.encode()).hexdigest()


def automatic(text: str, *, version: int = 1) -> dict[str, Any]:
    return {"persistedQuery": {"version": version, "sha256Hash": digest(text)}}


def keys_of(path: Path) -> list[str]:
    return [*json.loads(path.read_bytes())]


async def register(gateway: RunningGateway, *texts: str, algorithm: str = "sha256") -> None:
    drafts = [DocumentDraft(id=digest(text, algorithm), text=text, names=()) for text in texts]
    await gateway.parts.trusted.register(drafts, client="web@1")


async def post(
    gateway: RunningGateway, headers: dict[str, str] | None = None, **body: Any
) -> httpx.Response:
    return await gateway.client.post("/graphql", json=body, headers=headers)


async def get(
    gateway: RunningGateway, headers: dict[str, str] | None = None, **parameters: Any
) -> httpx.Response:
    written = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in parameters.items()
    }
    return await gateway.client.get("/graphql", params=written, headers=headers)


def told(answer: httpx.Response) -> tuple[int, Any]:
    """Return the status, and the data or the one error's code."""
    body = answer.json()
    if "errors" not in body:
        return answer.status_code, body["data"]
    (error,) = body["errors"]
    return answer.status_code, error["extensions"]["code"]


@contextmanager
def statements_of(gateway: RunningGateway) -> Iterator[list[str]]:
    """Note statements about documents; others belong to what goes on in the background."""
    seen: list[str] = []

    def note(*arguments: Any) -> None:
        if "document" in str(arguments[2]):
            seen.append(str(arguments[2]))

    database = gateway.parts.database
    engines = [database._readers.sync_engine, database._writers.sync_engine]
    for engine in engines:
        event.listen(engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        for engine in engines:
            event.remove(engine, "before_cursor_execute", note)


# Trusted documents.


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha256"])
async def test_a_registered_document_is_served_by_its_hash_in_every_form(
    tmp_path: Path, algorithm: str
) -> None:
    sha = digest(QUERY, algorithm)
    async with running_gateway(tmp_path) as gateway:
        await register(gateway, QUERY, algorithm=algorithm)

        answers = [
            await send(gateway, None, **{argument: given})
            for send in (post, get)
            for argument in ("documentId", "doc_id", "id")
            for given in (sha, f"sha256:{digest(QUERY)}")
        ]
        answers.append(await post(gateway, extensions=automatic(QUERY)))

    assert [told(answer) for answer in answers] == [(200, {"providers": []})] * 13


@pytest.mark.parametrize("path", sorted(FOLDER.iterdir()), ids=lambda path: path.stem)
async def test_what_relay_and_codegen_write_is_served_as_their_clients_ask_for_it(
    tmp_path: Path, path: Path
) -> None:
    found = read_documents(path)
    keys = keys_of(path)
    drafts = [DocumentDraft(id=one.id, text=one.text, names=one.names) for one in found]
    async with running_gateway(tmp_path, documents="trusted") as gateway:
        await gateway.parts.trusted.register(drafts, client="web@1")
        reader = dict(await gateway.key("read:users", "write:providers"))

        for key in keys:
            variables = {"first": 10, "providerId": "none"}
            answer = await post(gateway, reader, documentId=key, variables=variables)
            assert answer.status_code == 200
            assert set(answer.json()["data"]) <= {"users", "removeProvider"}
            assert "errors" not in answer.json()


async def test_an_unknown_hash_is_not_found_with_the_status_of_the_answers_type(
    tmp_path: Path,
) -> None:
    async with running_gateway(tmp_path) as gateway:
        as_json = await post(gateway, JSON_FORMS, documentId=digest(QUERY))
        as_response = await post(gateway, BY_RESPONSE, documentId=digest(QUERY))
        malformed = await get(gateway, JSON_FORMS, documentId="users")

    assert told(as_json) == (200, "DOCUMENT_NOT_FOUND")
    assert told(as_response) == (400, "DOCUMENT_NOT_FOUND")
    assert told(malformed) == (400, "BAD_INPUT")


async def test_a_hash_in_a_browsers_address_is_answered_and_not_with_graphiql(
    tmp_path: Path,
) -> None:
    async with running_gateway(tmp_path) as gateway:
        await register(gateway, QUERY)
        looking = {"Accept": "text/html,application/json;q=0.9"}
        answers = [
            await get(gateway, looking, documentId=digest(QUERY)),
            await get(gateway, looking, extensions=automatic(QUERY)),
        ]
        page = await get(gateway, looking)

    assert [told(answer) for answer in answers] == [(200, {"providers": []})] * 2
    assert page.headers["content-type"].startswith("text/html")


async def test_a_mutation_by_hash_is_refused_over_get(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway:
        await register(gateway, MUTATION)
        by_id = await get(gateway, documentId=digest(MUTATION))
        first = await get(gateway, query=OTHER + MUTATION, operationName="Remove")
        registering = await post(gateway, query=MUTATION, extensions=automatic(MUTATION))
        automatically = await get(gateway, extensions=automatic(MUTATION))

    assert [answer.status_code for answer in (by_id, first, automatically)] == [405, 405, 405]
    assert by_id.headers["allow"] == "POST"
    assert registering.status_code == 200


async def test_after_the_first_request_a_document_costs_no_statement(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, documents="trusted") as gateway:
        await register(gateway, "{ __typename }", OTHER)
        with statements_of(gateway) as first:
            await post(gateway, documentId=digest(OTHER))

        with statements_of(gateway) as later:
            for _ in range(50):
                answer = await post(gateway, documentId=digest("{ __typename }"))
                assert told(answer) == (200, {"__typename": "Query"})
                await post(gateway, id=digest("{ __typename }"), query="{ __typename }")

    assert [len(first), len(later)] == [2, 0]  # the revision, and all documents


async def test_gateways_of_one_database_see_what_the_other_registers_and_removes(
    tmp_path: Path,
) -> None:
    with moving_time() as time:
        async with running_gateway(tmp_path) as first, running_gateway(tmp_path) as second:
            before = await post(second, documentId=digest(QUERY))
            await register(first, QUERY)
            time.advance(1.1)
            registered = await post(second, documentId=digest(QUERY))
            await first.parts.trusted.remove(client="web@1")
            served_on = await post(second, documentId=digest(QUERY))
            time.advance(5.1)
            while second.parts.documents.trusted._texts:  # until it has looked
                await second.get("/health")
            removed = await post(second, documentId=digest(QUERY))

    assert told(before) == (200, "DOCUMENT_NOT_FOUND")
    assert told(registered) == (200, {"providers": []})
    assert told(served_on) == (200, {"providers": []})
    assert told(removed) == (200, "DOCUMENT_NOT_FOUND")


async def test_what_the_command_line_registers_is_served_by_a_gateway_that_runs(
    tmp_path: Path,
) -> None:
    words = ["documents", "register", str(FOLDER / "relay-compiler-21.0.1-sha256.json")]
    environment = {"GATEWAY_DATA_FOLDER": str(tmp_path / "data"), "PATH": os.environ["PATH"]}
    with moving_time() as time:
        async with running_gateway(tmp_path) as gateway:
            before = await post(gateway, documentId=RELAY_USERS, variables={"first": 1})
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "gateway.command_line", *words),
                cwd=ROOT,
                env=environment,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
            registered, _ = await process.communicate()
            time.advance(1.1)
            after = await post(gateway, documentId=RELAY_USERS, variables={"first": 1})

    assert process.returncode == 0
    assert f"{RELAY_USERS} rosterUsersQuery" in registered.decode().splitlines()
    assert told(before) == (200, "DOCUMENT_NOT_FOUND")
    assert told(after) == (200, {"users": {"totalCount": 0, "nodes": []}})


async def test_unknown_hashes_cost_ten_statements_a_second_however_many_come(
    tmp_path: Path,
) -> None:
    with moving_time() as time:
        async with running_gateway(tmp_path) as gateway:
            await post(gateway, documentId=digest(QUERY))
            time.advance(0.2)
            begun_at = monotonic()
            with statements_of(gateway) as statements:
                for number in range(100):
                    answer = await post(gateway, documentId=digest(str(number)))
                    assert told(answer) == (200, "DOCUMENT_NOT_FOUND")
            seconds = monotonic() - begun_at

    assert 1 <= len(statements) <= 2 + 10 * seconds


# Only trusted documents.


async def test_in_trusted_mode_everything_else_is_refused_before_it_is_read(
    tmp_path: Path,
) -> None:
    async with running_gateway(tmp_path, documents="trusted") as gateway:
        await register(gateway, QUERY)
        key = dict(await gateway.key("read:users"))

        refused = [
            await send(gateway, {**key, **accept}, query=text)
            for send in (post, get)
            for accept in (JSON_FORMS, BY_RESPONSE)
            for text in (OTHER, "{", "{ __schema { queryType { name } } }")
        ]
        by_hash = await post(gateway, key, extensions=automatic(OTHER))
        with_hash = await post(gateway, key, query=OTHER, extensions=automatic(OTHER))
        again = await post(gateway, key, extensions=automatic(OTHER))
        served = [
            await post(gateway, key, documentId=digest(QUERY)),
            await post(gateway, key, extensions=automatic(QUERY)),
            await post(gateway, key, query=QUERY),
            await get(gateway, key, query=QUERY),
        ]
        nothing = await post(gateway, key)

    assert [told(answer) for answer in refused] == [(403, "DOCUMENT_NOT_TRUSTED")] * 12
    assert told(by_hash) == told(again) == (200, "DOCUMENT_NOT_FOUND")
    assert told(with_hash) == (403, "DOCUMENT_NOT_TRUSTED")
    assert [told(answer) for answer in served] == [(200, {"providers": []})] * 4
    assert told(nothing) == (400, "BAD_INPUT")


async def test_in_trusted_mode_an_admin_key_may_send_anything(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, documents="trusted") as gateway:
        key = dict(await gateway.key("admin"))

        answers = [
            await post(gateway, key, query=QUERY),
            await post(gateway, key, query=QUERY, extensions=automatic(QUERY)),
            await post(gateway, key, extensions=automatic(QUERY)),
            await post(gateway, query=QUERY),  # with the bootstrap key
        ]

    assert [told(answer) for answer in answers] == [(200, {"providers": []})] * 4


async def test_a_trusted_subscription_is_followed_by_its_hash(tmp_path: Path) -> None:
    text = "subscription Changes { changes { __typename } }"
    async with running_gateway(tmp_path, documents="trusted") as gateway:
        await register(gateway, text)
        events = {"Accept": "text/event-stream"}
        body = {"documentId": digest(text)}
        async with gateway.client.stream("POST", "/graphql", json=body, headers=events) as answer:
            first = await anext(answer.aiter_bytes())

    assert (answer.status_code, first) == (200, b":\n\n")
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"


# Over a websocket.


@asynccontextmanager
async def socket_to(
    gateway: RunningGateway, key: Mapping[str, str]
) -> AsyncIterator[Callable[..., Awaitable[Any]]]:
    """Yield what sends an operation, and returns the first message that it is answered with."""
    url = gateway.url.replace("http://", "ws://")
    protocols = [Subprotocol("graphql-transport-ws")]
    async with connect(f"{url}/graphql", subprotocols=protocols, proxy=None) as socket:
        await socket.send(json.dumps({"type": "connection_init", "payload": dict(key)}))
        assert json.loads(await socket.recv()) == {"type": "connection_ack"}
        numbers = count()

        async def ask(**payload: Any) -> Any:
            operation_id = f"{next(numbers)}"
            message = {"id": operation_id, "type": "subscribe", "payload": payload}
            await socket.send(json.dumps(message))
            while True:
                heard = json.loads(await socket.recv())
                if heard["id"] == operation_id:
                    return heard

        yield ask


def heard(message: Any) -> Any:
    """Return the data, or the one error's code."""
    if message["type"] == "next":
        return message["payload"]["data"]
    (error,) = message["payload"]
    return error["extensions"]["code"]


async def test_a_socket_takes_hashes_and_only_trusted_documents_like_a_request(
    tmp_path: Path,
) -> None:
    async with running_gateway(tmp_path, documents="trusted") as gateway:
        await register(gateway, QUERY)
        key = await gateway.key("read:users")
        with structlog.testing.capture_logs() as logs:
            async with socket_to(gateway, key) as ask:
                answers = [
                    await ask(documentId=f"sha256:{digest(QUERY)}"),
                    await ask(extensions=automatic(QUERY)),
                    await ask(query=QUERY),
                    await ask(query=OTHER),
                    await ask(query="{"),
                    await ask(documentId=digest(OTHER)),
                    await ask(documentId="users"),
                ]

    assert [heard(answer) for answer in answers] == [
        *[{"providers": []}] * 3,
        *["DOCUMENT_NOT_TRUSTED"] * 2,
        "DOCUMENT_NOT_FOUND",
        "BAD_INPUT",
    ]
    statuses = [line["status"] for line in logs if line.get("method") == "WEBSOCKET"]
    assert statuses == [200, 200, 200, 403, 403, 400, 400]


async def test_a_socket_and_requests_share_automatic_documents(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway:
        async with socket_to(gateway, await gateway.key("read:users")) as ask:
            unknown = await ask(extensions=automatic(QUERY))
            registered = await ask(query=QUERY, extensions=automatic(QUERY))
            known = await ask(extensions=automatic(QUERY))
        by_request = await post(gateway, extensions=automatic(QUERY))

    assert heard(unknown) == "PERSISTED_QUERY_NOT_FOUND"
    assert heard(registered) == heard(known) == {"providers": []}
    assert told(by_request) == (200, {"providers": []})


# Automatic documents.


@pytest.mark.parametrize("send", [post, get])
async def test_a_document_sent_once_with_its_hash_is_known_by_it(tmp_path: Path, send: Any) -> None:
    async with running_gateway(tmp_path) as gateway:
        unknown = await send(gateway, extensions=automatic(QUERY))
        as_response = await send(gateway, BY_RESPONSE, extensions=automatic(QUERY))
        registered = await send(gateway, query=QUERY, extensions=automatic(QUERY))
        with statements_of(gateway) as statements:
            known = await send(gateway, BY_RESPONSE, extensions=automatic(QUERY))

    assert unknown.json() == {
        "errors": [
            {
                "message": "PersistedQueryNotFound",
                "extensions": {"code": "PERSISTED_QUERY_NOT_FOUND"},
            }
        ]
    }
    assert (unknown.status_code, as_response.status_code) == (200, 400)
    assert told(registered) == told(known) == (200, {"providers": []})
    assert statements == []


async def test_a_wrong_hash_or_version_is_refused_and_registers_nothing(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway:
        wrong = await post(gateway, query=QUERY, extensions=automatic(OTHER))
        version = await post(gateway, query=QUERY, extensions=automatic(QUERY, version=2))
        unknown = [await post(gateway, extensions=automatic(text)) for text in (QUERY, OTHER)]

    assert told(wrong) == told(version) == (400, "BAD_INPUT")
    assert [told(answer) for answer in unknown] == [(200, "PERSISTED_QUERY_NOT_FOUND")] * 2


async def test_a_document_that_is_too_large_is_not_remembered(tmp_path: Path) -> None:
    text = "{ providers { id } } #" + "x" * 16_000
    async with running_gateway(tmp_path) as gateway:
        refused = await post(gateway, query=text, extensions=automatic(text))
        unknown = await post(gateway, extensions=automatic(text))

    assert told(refused) == (400, "REQUEST_LIMIT_EXCEEDED")
    assert told(unknown) == (200, "PERSISTED_QUERY_NOT_FOUND")
