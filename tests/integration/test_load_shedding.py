"""Floods over real sockets: who is answered, who is refused, and that a refusal costs nothing."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import structlog
from pretend_platform import until
from running_gateway import (
    TOKEN,
    Product,
    RunningGateway,
    address_of,
    listening,
    problem_of,
    running_gateway,
    running_product,
    serving,
)
from sqlalchemy import event
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from gateway.admission import Admission, AdmissionTerms, Load
from gateway.app import _Requests
from gateway.metrics import Metrics
from gateway.shedding import LoadShedding

KEY = f"Authorization: Bearer {TOKEN}\r\n"
PROVIDER = "query ($id: ID!) { provider(providerId: $id) { providerId } }"
NOTHING = {"query": "{ __typename }"}


def _about(provider_id: str) -> Mapping[str, Any]:
    return {"query": PROVIDER, "variables": {"id": provider_id}}


@dataclass(kw_only=True)
class Held:
    """A gateway in front of a product that answers nothing until it is let go."""

    gateway: RunningGateway
    product: Product
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    asked: int = 0

    def ask(
        self, count: int = 1, *, key: Mapping[str, str] | None = None
    ) -> list[asyncio.Task[httpx.Response]]:
        """Ask about so many unknown providers at once: the product is called back for each."""
        numbers = range(self.asked, self.asked + count)
        self.asked += count
        return [asyncio.create_task(self._ask(f"p{n}", key or {})) for n in numbers]

    async def _ask(self, provider_id: str, key: Mapping[str, str]) -> httpx.Response:
        return await self.gateway.client.post("/graphql", json=_about(provider_id), headers=key)

    async def until_held(self, count: int) -> None:
        await until(lambda: len(self.product.asked) == count, seconds=20)

    async def refuse(self, _asked: Mapping[str, str]) -> int:
        await self.gate.wait()
        return 404


@asynccontextmanager
async def held(folder: Path, **settings: str) -> AsyncIterator[Held]:
    settings = {"max_requests": "8", **settings}
    async with (
        running_product() as product,
        running_gateway(
            folder, product_callback_url=product.url, callback_seconds="60", **settings
        ) as gateway,
    ):
        admission = gateway.parts.admission
        admission._terms = replace(
            admission._terms, fewest=8, patience_seconds=60, standing_seconds=60
        )
        gateway.client._transport._pool._max_connections = 1000  # type: ignore[attr-defined]  # httpx has no other way
        story = Held(gateway=gateway, product=product)
        product.answer = story.refuse
        await gateway.graphql("{ providers { id } }")  # from now on the bootstrap key is known
        try:
            yield story
        finally:
            story.gate.set()


async def _refused(tasks: list[asyncio.Task[httpx.Response]], count: int) -> list[httpx.Response]:
    """Wait until exactly so many are answered; return the answers."""
    await until(lambda: sum(task.done() for task in tasks) == count, seconds=20)
    return [task.result() for task in tasks if task.done()]


async def test_of_a_flood_some_run_some_wait_and_exactly_the_others_are_refused_at_once(
    tmp_path: Path,
) -> None:
    async with held(tmp_path) as story:
        tasks = story.ask(20)
        await story.until_held(6)
        refused = await _refused(tasks, 8)
        load = story.gateway.parts.admission.load()
        story.gate.set()
        answers = await asyncio.gather(*tasks)

    assert load == Load(running=6, waiting=6, subscriptions=0, allowed=8)
    assert Counter(answer.status_code for answer in answers) == {200: 12, 503: 8}
    assert len(story.product.asked) == 12
    for answer in refused:
        seconds = int(answer.headers["retry-after"])
        assert 1 <= seconds <= 4
        assert answer.headers["x-request-id"]
        assert answer.json() == {
            "errors": [
                {
                    "message": "The gateway has more to do than it can;"
                    " nothing was done for this request",
                    "extensions": {
                        "code": "GATEWAY_OVERLOADED",
                        "retryable": True,
                        "retryAfterSeconds": seconds,
                    },
                }
            ]
        }


async def test_a_refusal_is_written_as_its_surface_writes_errors(tmp_path: Path) -> None:
    async with held(tmp_path) as story:
        tasks = story.ask(12)
        await until(lambda: story.gateway.parts.admission.load().waiting == 6)
        client = story.gateway.client
        rest = await client.post("/api/add-provider", json={"id": "1"})
        draft = await client.post(
            "/graphql",
            json=NOTHING,
            headers={"Accept": "application/graphql-response+json"},
        )
        story.gate.set()
        await asyncio.gather(*tasks)

    assert problem_of(rest) == (503, "GATEWAY_OVERLOADED")
    assert rest.json()["retryable"] is True
    assert rest.headers["retry-after"] == str(rest.json()["retryAfterSeconds"])
    assert draft.status_code == 503
    assert draft.headers["content-type"] == "application/graphql-response+json; charset=utf-8"


async def test_a_refused_request_touches_neither_the_database_nor_a_provider(
    tmp_path: Path,
) -> None:
    async with held(tmp_path) as story:
        key = await story.gateway.key("admin")
        await story.gateway.client.post("/graphql", json=NOTHING, headers=key)
        tasks = story.ask(12, key=key)
        await story.until_held(6)
        await until(lambda: story.gateway.parts.admission.load().waiting == 6)
        post = story.gateway.client.post
        await story.gateway.key("admin")  # whatever was read before is outdated now
        with _statements(story.gateway) as statements:
            refused = [
                await post("/graphql", content=b"not JSON", headers=key),
                await post("/graphql", json=_about("refused"), headers=key),
            ]
        story.gate.set()
        await asyncio.gather(*tasks)

    assert [answer.status_code for answer in refused] == [503, 503]
    assert [text for text in statements if "FROM api_key" in text] == []
    assert [text for text in statements if "ORDER BY provider" in text] == []
    assert sorted(body["id"] for body in story.product.asked) == sorted(f"p{n}" for n in range(12))


@contextmanager
def _statements(gateway: RunningGateway) -> Iterator[list[str]]:
    seen: list[str] = []

    def note(*arguments: Any) -> None:
        seen.append(str(arguments[2]))

    database = gateway.parts.database
    engines = [database._readers.sync_engine, database._writers.sync_engine]
    for engine in engines:
        event.listen(engine, "before_cursor_execute", note)
    yield seen
    for engine in engines:
        event.remove(engine, "before_cursor_execute", note)


async def test_one_keys_flood_leaves_places_to_another_key(tmp_path: Path) -> None:
    async with held(tmp_path) as story:
        other = await story.gateway.key("admin")
        await story.gateway.client.post(
            "/graphql", json=NOTHING, headers=other
        )  # known from now on
        flood = story.ask(100)
        await story.until_held(6)
        answers = [
            await story.gateway.client.post("/graphql", json=NOTHING, headers=other)
            for _ in range(20)
        ]
        story.gate.set()
        await asyncio.gather(*flood)

    assert [answer.status_code for answer in answers] == [200] * 20


async def test_invented_keys_have_one_share_together(tmp_path: Path) -> None:
    async with held(tmp_path) as story:
        stranger = {"Authorization": "Bearer never-seen-before-0"}
        admission = story.gateway.parts.admission
        strangers = [await admission.enter("") for _ in range(6)]
        waiting = [asyncio.create_task(admission.enter("")) for _ in range(6)]
        await asyncio.sleep(0)
        refused = [
            await story.gateway.client.post(
                "/graphql",
                json=NOTHING,
                headers={"Authorization": f"Bearer never-seen-before-{number}"},
            )
            for number in range(3)
        ]
        known = await story.gateway.graphql("{ __typename }")
        for slot in [*strangers, *(await asyncio.gather(*_released(strangers, waiting)))]:
            slot.release()
        unknown = await story.gateway.client.post("/graphql", json=NOTHING, headers=stranger)

    assert [answer.status_code for answer in refused] == [503] * 3
    assert known == {"data": {"__typename": "Query"}}
    assert unknown.status_code == 401


def _released(running_ones: list[Any], waiting: list[Any]) -> list[Any]:
    for slot in running_ones:
        slot.release()
    return waiting


async def test_health_readiness_metrics_and_media_are_answered_under_flood(
    tmp_path: Path,
) -> None:
    async with held(tmp_path) as story:
        tasks = story.ask(40)
        await _refused(tasks, 28)
        get = story.gateway.get
        answers = [await get(path) for path in ("/health", "/ready", "/metrics", "/media/x.webp")]
        story.gate.set()
        await asyncio.gather(*tasks)

    assert [answer.status_code for answer in answers] == [200, 200, 200, 404]
    lines = answers[2].text.splitlines()
    assert "learning_gateway_requests_running 6.0" in lines
    assert "learning_gateway_requests_waiting 6.0" in lines
    assert "learning_gateway_requests_allowed 8.0" in lines
    assert 'learning_gateway_requests_shed_total{reason="queue_full"} 28.0' in lines
    assert "learning_gateway_queue_seconds_count 7.0" in lines  # the first, and those that run


async def test_a_flood_is_two_lines_in_the_log(tmp_path: Path) -> None:
    async with held(tmp_path) as story:
        admission = story.gateway.parts.admission
        admission._outage._calm_seconds = 0.05
        with structlog.testing.capture_logs() as logs:
            tasks = story.ask(60)
            refused = await _refused(tasks, 48)
            story.gate.set()
            await asyncio.gather(*tasks)
            await until(lambda: "shedding_ended" in [line["event"] for line in logs])

    events = Counter(line["event"] for line in logs)
    del events["product_knows_no_provider"]
    assert len(refused) == 48
    assert events == {"request": 12, "shedding_started": 1, "shedding_ended": 1}


# The connection of a refused request


async def test_a_refused_body_is_dropped_and_the_connection_goes_on(tmp_path: Path) -> None:
    async with held(tmp_path) as story:
        tasks = story.ask(12)
        await until(lambda: story.gateway.parts.admission.load().waiting == 6)
        reader, writer = await _connected(story.gateway.url)
        large = b"x" * 300_000
        head = f"POST /graphql HTTP/1.1\r\nHost: x\r\n{KEY}Content-Length: 300000\r\n\r\n".encode()
        writer.write(head + large)
        first = await _answer(reader)
        writer.write(head + large + b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")  # pipelined
        second, third = await _answer(reader), await _answer(reader)
        writer.close()
        story.gate.set()
        await asyncio.gather(*tasks)

    assert [first[0], second[0], third[0]] == [503, 503, 200]
    assert third[2] == b'{"status":"ok"}'


async def test_who_waits_to_be_asked_for_a_body_is_told_that_the_connection_ends(
    tmp_path: Path,
) -> None:
    async with held(tmp_path) as story:
        tasks = story.ask(12)
        await until(lambda: story.gateway.parts.admission.load().waiting == 6)
        reader, writer = await _connected(story.gateway.url)
        writer.write(
            f"POST /graphql HTTP/1.1\r\nHost: x\r\n{KEY}Expect: 100-continue\r\n"
            "Content-Length: 10\r\n\r\n".encode()
        )
        status, headers, _ = await _answer(reader)
        rest = await reader.read()
        writer.close()
        story.gate.set()
        await asyncio.gather(*tasks)

    assert (status, headers["connection"], rest) == (503, "close", b"")


async def test_a_body_that_does_not_come_holds_no_place() -> None:
    async with endless(body_seconds=0.05) as streams:
        reader, writer = await _connected(streams.url)
        writer.write(
            b'POST /api/add-provider HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"id'
        )
        status, headers, _ = await _answer(reader)
        rest = await reader.read()
        writer.close()
        load = streams.admission.load()

    assert (status, headers["connection"], rest) == (408, "close", b"")
    assert load.running == 0


async def _connected(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = url.removeprefix("http://").partition(":")
    return await asyncio.open_connection(host, int(port))


async def _answer(reader: asyncio.StreamReader) -> tuple[int, Mapping[str, str], bytes]:
    async with asyncio.timeout(20):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        pairs = [line.partition(":") for line in head[1:] if line]
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        body = await reader.readexactly(int(headers["content-length"]))
    return int(head[0].split()[1]), headers, body


# Answers that last


@dataclass(kw_only=True)
class Streams:
    """An application with a stream of events and a whole list, both endless; and an echo."""

    admission: Admission
    url: str
    closed: int = 0

    async def events(self, _request: Request) -> Response:
        return StreamingResponse(self._parts(b": ping\n\n"), media_type="text/event-stream")

    async def users(self, _request: Request) -> Response:
        return StreamingResponse(self._parts(b"x" * 65536), media_type="application/json")

    async def take(self, request: Request) -> Response:
        return Response(await request.body())

    async def _parts(self, part: bytes) -> AsyncIterator[bytes]:
        try:
            while True:
                yield part
                await asyncio.sleep(0.001)
        finally:
            self.closed += 1


@asynccontextmanager
async def endless(
    *, most: int = 4, stream_seconds: float = 60, body_seconds: float = 10
) -> AsyncIterator[Streams]:
    admission = Admission(AdmissionTerms(most=most, most_subscriptions=4), Metrics())
    with listening() as listener:
        streams = Streams(admission=admission, url=address_of(listener))
        app = Starlette(
            routes=[
                Route("/graphql", streams.events),
                Route("/api/users", streams.users),
                Route("/api/add-provider", streams.take, methods=["POST"]),
            ],
            middleware=[
                Middleware(LoadShedding, stream_seconds=stream_seconds, body_seconds=body_seconds),
                Middleware(_Requests),
            ],
        )
        app.state.gateway = SimpleNamespace(admission=admission, metrics=Metrics())
        async with serving(app, listener):
            yield streams


async def test_streams_of_events_hold_no_place_and_one_too_many_is_refused() -> None:
    async with endless() as streams, httpx.AsyncClient(base_url=streams.url) as client:
        opened = [client.stream("GET", "/graphql") for _ in range(4)]
        answers = [await each.__aenter__() for each in opened]
        load = streams.admission.load()
        refused = json.loads(await answers[3].aread())
        for each in opened:
            await each.__aexit__(None, None, None)
        await until(lambda: streams.admission.load().subscriptions == 0)
        again = client.stream("GET", "/graphql")
        after = await again.__aenter__()
        await again.__aexit__(None, None, None)

    assert [answer.status_code for answer in answers] == [200, 200, 200, 503]
    assert refused["errors"][0]["extensions"]["code"] == "GATEWAY_OVERLOADED"
    assert load == Load(running=0, waiting=0, subscriptions=3, allowed=4)
    assert after.status_code == 200


async def test_a_whole_list_that_nobody_reads_gives_its_place_back_in_time() -> None:
    async with endless(stream_seconds=0.3) as streams:
        _reader, writer = await _connected(streams.url)
        writer.write(b"GET /api/users HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: streams.admission.load().running == 1)
        await until(lambda: streams.admission.load().running == 0, seconds=20)
        writer.transport.abort()
