"""The whole application on a real socket, with a simulated Kolibri and a product around it."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from gateway.app import build_app
from gateway.assembly import Gateway
from gateway.serving import socket_options
from gateway.settings import read_settings
from simulators.kolibri.population import PASSWORD
from simulators.kolibri.state import Kolibri

TOKEN = "bootstrap-token-of-the-tests"
LOGIN = ("POST", "/api/auth/session/")
ADMIN = "service_admin"


@dataclass(kw_only=True)
class RunningGateway:
    """A gateway and a client that shows its bootstrap key unless told otherwise."""

    url: str
    app: Starlette
    client: httpx.AsyncClient

    @property
    def parts(self) -> Gateway:
        gateway = self.app.state.gateway
        assert isinstance(gateway, Gateway)
        return gateway

    async def get(self, path: str, **options: Any) -> httpx.Response:
        return await self.client.get(path, **options)

    async def users(self, provider_id: str = "1") -> httpx.Response:
        return await self.client.get("/api/users", params={"id": provider_id})

    async def graphql(self, query: str, **variables: Any) -> dict[str, Any]:
        answer = await self.client.post("/graphql", json={"query": query, "variables": variables})
        assert answer.status_code == 200, answer.text
        decoded = answer.json()
        assert isinstance(decoded, dict)
        return decoded

    async def add_provider(self, **given: Any) -> httpx.Response:
        headers = given.pop("headers", None)
        return await self.client.post("/api/add-provider", json=given, headers=headers)

    async def add_kolibri(self, url: str, **given: Any) -> None:
        details = {"id": "1", "type": "kolibri", "url": url, "username": ADMIN}
        answer = await self.add_provider(**{**details, "password": PASSWORD, **given})
        assert answer.status_code == 200, answer.text

    async def key(self, *scopes: str) -> Mapping[str, str]:
        """Return the headers of a new key with these scopes."""
        _, token = await self.parts.api_keys.create("test", scopes)
        return {"Authorization": f"Bearer {token.reveal()}"}


@contextlib.asynccontextmanager
async def running_gateway(folder: Path, **settings: str) -> AsyncIterator[RunningGateway]:
    """Serve a gateway whose settings are given without their prefix, in lower case."""
    environment = {
        "GATEWAY_DATA_FOLDER": str(folder / "data"),
        "GATEWAY_TOKEN": TOKEN,
        "GATEWAY_MAX_AGE_SECONDS": "0",  # what is kept has stories of its own
        "GATEWAY_QUEUE_SECONDS": "60",  # and so has overload, for a machine busy with other tests
        "GATEWAY_SLOW_SECONDS": "0",  # the same
        **{f"GATEWAY_{name.upper()}": value for name, value in settings.items()},
    }
    with listening() as listener:
        url = address_of(listener)
        environment.setdefault("GATEWAY_PUBLIC_URL", url)
        app = build_app(read_settings(environment))
        async with (
            serving(app, listener),
            httpx.AsyncClient(
                base_url=url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30
            ) as client,
        ):
            yield RunningGateway(url=url, app=app, client=client)


@contextlib.contextmanager
def served(app: ASGIApp) -> Iterator[str]:
    """Serve in a thread of its own: commands run their own event loops."""
    with listening() as listener:
        config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off")
        server = uvicorn.Server(config)
        thread = Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        yield address_of(listener)
        server.should_exit = True
        thread.join(10)


@contextlib.contextmanager
def listening() -> Any:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        yield listener
    finally:
        listener.close()


def address_of(listener: socket.socket) -> str:
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextlib.asynccontextmanager
async def serving(app: ASGIApp, listener: socket.socket) -> AsyncIterator[None]:
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        **socket_options(max_bytes=100_000),
        timeout_graceful_shutdown=2,
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        while not server.started and not task.done():  # noqa: ASYNC110 - uvicorn has no event
            await asyncio.sleep(0.005)
        yield
    finally:
        server.should_exit = True
        await task


def logins(kolibri: Kolibri) -> int:
    """How many logins the simulated Kolibri has seen, good or not."""
    return kolibri.counts.calls[LOGIN]


@dataclass(kw_only=True)
class Product:
    """A product that is called back; what it does then is up to the test.

    Attributes:
        url: Where the gateway is told to call.
        asked: The bodies of all callbacks, in order.
        answer: Called with the body of each, returns the status of the answer.
    """

    url: str
    answer: Callable[[Mapping[str, str]], Awaitable[int]]
    asked: list[Mapping[str, str]] = field(default_factory=list)

    async def take(self, request: Request) -> Response:
        body = json.loads(await request.body())
        self.asked.append(body)
        return Response(status_code=await self.answer(body))


async def _accepts(_asked: Mapping[str, str]) -> int:
    return 202


@contextlib.asynccontextmanager
async def running_product() -> AsyncIterator[Product]:
    """Serve a product that takes callbacks and registers nothing, until told otherwise."""
    with listening() as listener:
        product = Product(url=f"{address_of(listener)}/gateway/providers", answer=_accepts)
        app = Starlette(routes=[Route("/gateway/providers", product.take, methods=["POST"])])
        async with serving(app, listener):
            yield product


@contextlib.asynccontextmanager
async def running_stranger(answer: Callable[[Request], Awaitable[Response]]) -> AsyncIterator[str]:
    """Serve something that is not a Kolibri, and yield its URL."""
    methods = ["GET", "POST", "PUT", "DELETE"]
    app = Starlette(routes=[Route("/{path:path}", answer, methods=methods)])
    with listening() as listener:
        async with serving(app, listener):
            yield address_of(listener)


def problem_of(answer: httpx.Response) -> tuple[int, str]:
    """Return status and code of a problem document, which must be one."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    body = answer.json()
    assert body["status"] == answer.status_code
    assert body["requestId"] == answer.headers["x-request-id"]
    assert body["title"]
    assert body["detail"]
    return answer.status_code, body["code"]


def columns(rows: Sequence[Mapping[str, Any]], *names: str) -> list[tuple[Any, ...]]:
    """Return these members of every row."""
    return [tuple(row[name] for name in names) for row in rows]
