"""The application: routes, keys, and what is true of every request."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext, suppress
from dataclasses import replace
from typing import Any, Final, TypeAlias

import strawberry
import structlog
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Match, Route, WebSocketRoute
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as AsgiScope

from gateway import explorer, graphql_http, media, oauth, rest
from gateway.access import KeyAccess
from gateway.assembly import Gateway, open_gateway
from gateway.bodies import Received, header_of
from gateway.browsers import CrossOrigin
from gateway.graphql_ws import Sockets
from gateway.logs import NamedInLogs, configure_logs
from gateway.memory import give_back_memory
from gateway.problems import (
    SAFE_HEADERS,
    AnswerCutShort,
    Interrupted,
    of_error,
    problem,
    request_id_of,
    unauthenticated,
)
from gateway.settings import Settings, read_settings
from gateway.shedding import LoadShedding
from gateway.tokens import NO_KEY_SET, KeySetUnavailable
from gateway.watching import gathering
from resolvers.authorizing import url_for_error
from resolvers.context import Scope
from resolvers.errors import Forbidden, RequestLimitExceeded, RequestRefused
from schema import build_schema
from schema.limits import DocumentLimits
from sessions.errors import ProviderError
from sessions.metering import Meter, metering
from storage.errors import StorageUnavailable

_REST_PREFIX: Final = "/api/"
_METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_READY_SECONDS: Final = 5.0
_COLLECTOR_THRESHOLDS: Final = (200_000, 10, 100)
_CALLER_LEFT: Final = 499  # as other servers log it
_RETRY_AFTER_SECONDS: Final = 5
_FIRST_OF_A_SOCKET: Final = frozenset({"websocket.accept", "websocket.http.response.start"})
_LAST_OF_A_SOCKET: Final = frozenset({"websocket.close", "websocket.http.response.body"})
_MAX_REASON_CHARACTERS: Final = 123  # what a close frame has room for

_log = structlog.get_logger(__name__)

_Handler: TypeAlias = Callable[[Gateway, Request, KeyAccess], Awaitable[Response]]
_OpenHandler: TypeAlias = Callable[[Gateway, Request, KeyAccess | None], Awaitable[Response]]


def create_app() -> Starlette:
    """Return the application of this environment, its logs configured; what uvicorn calls.

    The process is taken to be the application's alone: once it has started, the garbage collector
    is told so.

    Raises:
        SettingsError: A setting is wrong.
    """
    settings = read_settings(os.environ)
    configure_logs(level=settings.log_level, form=settings.log_format)
    app = build_app(settings)
    app.state.owns_process = True
    return app


def calm_collector() -> None:
    """Have the garbage collector look at requests' objects only, and at many of them at once.

    What there is by now stays as long as the process: nothing is found by looking at it again.
    A long answer is tens of thousands of objects, all of them in use, and few of ours refer to
    themselves in a circle.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECTOR_THRESHOLDS)


def build_app(settings: Settings) -> Starlette:
    """Return the application; its lifespan opens and closes everything it holds."""
    limits = DocumentLimits.of_tokens(settings.max_document_tokens)
    schema = build_schema(
        replace(limits, max_cost=settings.max_cost),
        remembered_bytes=settings.answers_mib * 1024 * 1024,
    )
    sockets = Sockets(schema)
    app = Starlette(
        routes=_routes(schema, sockets, settings),
        lifespan=lambda app: _lifespan(app, settings),
        middleware=[
            Middleware(CrossOrigin, origins=settings.cors_origins),
            Middleware(LoadShedding, stream_seconds=settings.stream_seconds),
            Middleware(_Requests),
        ],
        exception_handlers={
            HTTPException: _on_http_error,
            RequestRefused: _on_error,
            ProviderError: _on_error,
            StorageUnavailable: _on_storage_outage,
            KeySetUnavailable: _on_missing_keys,
            ClientDisconnect: _on_caller_left,
        },
    )
    app.state.sockets = sockets
    app.router.redirect_slashes = False  # it would send callers to whatever Host they name
    return app


@asynccontextmanager
async def _lifespan(app: Starlette, settings: Settings) -> AsyncIterator[None]:
    async with open_gateway(settings) as gateway:
        app.state.gateway = gateway
        await gateway.importer.start()
        await gateway.audit.start()
        beside = [asyncio.create_task(gateway.sessions.run())]
        if getattr(app.state, "owns_process", False):
            calm_collector()
            beside.append(asyncio.create_task(give_back_memory()))
        _log.info("gateway_started", platforms=gateway.platforms.names())
        try:
            yield
        finally:
            app.state.draining = True
            await gateway.sessions.aclose()
            for task in beside:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            _log.info("gateway_stopped")


def _routes(schema: strawberry.Schema, sockets: Sockets, settings: Settings) -> list[BaseRoute]:
    graphql = _GraphQL(schema, has_page=settings.graphiql)
    return [  # in this order they are tried
        Route("/graphql", graphql, methods=["GET", "POST"], name="graphql"),
        WebSocketRoute("/graphql", sockets.serve, name="graphql-ws"),
        Route("/", _home, methods=["GET"], name="home"),
        Route("/api/users", _keyed(rest.list_users), methods=["GET"], name="users"),
        Route("/api/courses", _keyed(rest.list_courses), methods=["GET"], name="courses"),
        Route("/api/content", _keyed(rest.list_courses), methods=["GET"], name="content"),
        Route(
            "/api/enrollments", _keyed(rest.list_enrollments), methods=["GET"], name="enrollments"
        ),
        Route("/api/add-provider", _open(rest.add_provider), methods=["POST"], name="add-provider"),
        Route("/health", _health, methods=["GET"], name="health"),
        Route("/ready", _ready, methods=["GET"], name="ready"),
        Route("/metrics", _open(_metrics), methods=["GET"], name="metrics"),
        *media.routes(lambda request: _gateway(request).media),
        *oauth.routes(lambda request: _gateway(request).authorizer),
        *(explorer.routes() if settings.graphiql else []),
    ]


class _GraphQL:
    """The endpoint of nearly every request: an application, so that Starlette puts nothing around.

    Args:
        schema: From ``build_schema``.
        has_page: Whether browsers that come to look are shown GraphiQL.
    """

    def __init__(self, schema: strawberry.Schema, *, has_page: bool) -> None:
        self._schema = schema
        self._has_page = has_page

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        response = await self._response(Received(scope, receive))
        await response(scope, receive, send)

    async def _response(self, request: Request) -> Response:
        if self._has_page and graphql_http.wants_page(request):
            return explorer.page(request)
        access = await _access(request)
        return await graphql_http.answer(_gateway(request), self._schema, request, access)


def _keyed(handler: _Handler) -> Callable[[Request], Awaitable[Response]]:
    """Return an endpoint that needs a good key."""

    async def endpoint(request: Request) -> Response:
        _gateway(request).browsers.require_known(request)
        access = await _access(request)
        if access is None:
            return unauthenticated(request)
        return await handler(_gateway(request), request, access)

    return endpoint


def _open(handler: _OpenHandler) -> Callable[[Request], Awaitable[Response]]:
    """Return an endpoint that decides itself whether it needs a key."""

    async def endpoint(request: Request) -> Response:
        _gateway(request).browsers.require_known(request)
        return await handler(_gateway(request), request, await _access(request))

    return endpoint


async def _access(request: Request) -> KeyAccess | None:
    """Return what the request's key allows, noting the key for the middleware around."""
    access = await _gateway(request).keys.find(request.headers.get("authorization"))
    request.state.key_id = None if access is None else access.key_id
    return access


async def _home(request: Request) -> Response:
    if _gateway(request).settings.graphiql:
        return RedirectResponse("graphql", status_code=307)
    return JSONResponse({"name": "learning-gateway"})


async def _health(_request: Request) -> Response:
    """Answer while the process serves at all."""
    return JSONResponse({"status": "ok"})


async def _ready(request: Request) -> Response:
    """Answer 200 while requests can be served: the database answers, nobody is stopping us.

    A provider that is down does not make the gateway unready.
    """
    if getattr(request.app.state, "draining", False):
        return JSONResponse({"status": "stopping"}, 503)
    try:
        async with asyncio.timeout(_READY_SECONDS):
            await _gateway(request).providers.list_all()
    except (StorageUnavailable, TimeoutError):
        return JSONResponse({"status": "database unavailable"}, 503)
    return JSONResponse({"status": "ready"})


async def _metrics(gateway: Gateway, request: Request, access: KeyAccess | None) -> Response:
    if not gateway.settings.public_metrics:
        if access is None:
            return unauthenticated(request)
        if not access.allows(Scope.READ_METRICS):
            raise Forbidden(f"This needs a key with the scope {Scope.READ_METRICS}")
        if access.narrowed:
            raise Forbidden("Metrics are of all providers, and this key is for some of them only")
    sessions = await gateway.sessions.count_sessions()
    written = gateway.metrics.write(
        sessions,
        gateway.icons.counts,
        load=gateway.admission.load(),
        health=gateway.sessions.list_health(),
        cache=gateway.cache.counts,
    )
    return Response(written, media_type=_METRICS_TYPE)


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestRefused | ProviderError)  # noqa: S101 - what it is registered for
    url = None
    if isinstance(error, RequestLimitExceeded):
        _gateway(request).metrics.on_limit(error.limit)
    if isinstance(error, ProviderError):
        url = url_for_error(_gateway(request).authorizer, error)
    return of_error(error, request_id=request.state.request_id, authorization_url=url)


async def _on_storage_outage(request: Request, error: Exception) -> Response:
    _log.error("storage_unavailable", problem=str(error))
    return problem(
        "INTERNAL",
        "The gateway's database does not answer",
        request_id=request.state.request_id,
        status=503,
        headers={"Retry-After": str(_RETRY_AFTER_SECONDS)},
    )


async def _on_missing_keys(request: Request, _error: Exception) -> Response:
    return problem(
        "INTERNAL",
        NO_KEY_SET,
        request_id=request.state.request_id,
        status=503,
        headers={"Retry-After": str(_RETRY_AFTER_SECONDS)},
    )


async def _on_caller_left(_request: Request, _error: Exception) -> Response:
    """Answer nobody, for the log and the metrics: the caller left before its body was whole."""
    return Response(status_code=_CALLER_LEFT)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - what it is registered for
    allowed = ", ".join(sorted(_allowed_methods(request)))
    detail = {
        404: "There is nothing here; see /graphql, /api/users, /health",
        405: f"{request.method} is not for this path; {allowed} is",
    }.get(error.status_code, error.detail)
    return problem(
        "BAD_INPUT",
        detail,
        request_id=request.state.request_id,
        status=error.status_code,
        headers={"Allow": allowed} if error.status_code == 405 else error.headers,  # noqa: PLR2004 - HTTP's own number
    )


def _allowed_methods(request: Request) -> set[str]:
    return {
        method
        for route in request.app.routes
        if route.matches(request.scope)[0] is not Match.NONE
        for method in route.methods or ()
    }


def _gateway(request: Request) -> Gateway:
    gateway = request.app.state.gateway
    assert isinstance(gateway, Gateway)  # noqa: S101 - set by the lifespan
    return gateway


class _Requests:
    """Gives every request an id, a log line and a metric, and masks what nobody expected."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        request_id = request_id_of(header_of(scope, b"x-request-id").decode("latin-1"))
        scope.setdefault("state", {})["request_id"] = request_id
        if scope["type"] == "websocket":
            await self._serve_socket(scope, receive, send, request_id)
            return
        started = time.perf_counter()
        status = 0

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
                message["headers"] = _marked(message.get("headers", ()), request_id)
            await send(message)

        with (
            NamedInLogs(request_id),
            gathering() as members,
            self._metered(scope) as meter,
            self._traced(scope),
        ):
            try:
                await self._app(scope, receive, send_marked)
            except Interrupted as interrupted:
                await interrupted.answer(scope, receive, send_marked)
            except AnswerCutShort as error:
                # Ending without the last piece makes the server break the connection off.
                _log.warning("answer_cut_short", problem=str(error))
            except Exception as error:  # noqa: BLE001 - the mask of everything beside GraphQL
                _log.error("internal_error", error_id=request_id, exc_info=error)
                if status:
                    raise _CutShort from None  # the server breaks the connection off
                await _masked(request_id)(scope, receive, send_marked)
            finally:
                scope["state"]["status"] = status
                seconds = time.perf_counter() - started
                calls = None if meter is None else meter.calls
                self._note(scope, status, seconds=seconds, calls=calls, members=members)

    async def _serve_socket(
        self, scope: AsgiScope, receive: Receive, send: Send, request_id: str
    ) -> None:
        """Serve a websocket; what it is asked for has ids, log lines and metrics of its own."""
        closed = False

        async def send_marked(message: Message) -> None:
            nonlocal closed
            closed = closed or message["type"] in _LAST_OF_A_SOCKET
            if message["type"] in _FIRST_OF_A_SOCKET:
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        with NamedInLogs(request_id):
            try:
                await self._app(scope, receive, send_marked)
            except Exception as error:  # noqa: BLE001 - the same mask
                _log.error("internal_error", error_id=request_id, exc_info=error)
                if not closed:
                    reason = f"Internal error {request_id}"[:_MAX_REASON_CHARACTERS]
                    await send({"type": "websocket.close", "code": 4500, "reason": reason})

    @staticmethod
    def _metered(scope: AsgiScope) -> AbstractContextManager[Meter | None]:
        """Count the calls of the REST surface; GraphQL counts those of each operation itself."""
        is_rest = scope["path"].startswith(_REST_PREFIX)
        return metering(Meter()) if is_rest else _NOTHING

    @staticmethod
    def _traced(scope: AsgiScope) -> AbstractContextManager[None]:
        tracing = getattr(getattr(scope["app"].state, "gateway", None), "tracing", None)
        return _NOTHING if tracing is None else tracing.receiving(scope)

    def _note(
        self,
        scope: AsgiScope,
        status: int,
        *,
        seconds: float,
        calls: int | None,
        members: Mapping[str, Any],
    ) -> None:
        route = getattr(scope.get("route"), "name", None) or "none"
        gateway = getattr(scope["app"].state, "gateway", None)
        if gateway is not None:
            gateway.metrics.on_request(route, status, seconds=seconds, calls=calls)
        _log.info(
            "request",
            method=scope["method"],
            path=scope["path"],
            status=status,
            milliseconds=round(seconds * 1000, 1),
            **members,
        )


_NOTHING: Final = nullcontext()
_SAFE_HEADERS: Final = [
    (name.lower().encode(), value.encode()) for name, value in SAFE_HEADERS.items()
]


def _marked(
    headers: Iterable[tuple[bytes, bytes]], request_id: str
) -> Sequence[tuple[bytes, bytes]]:
    """Return an answer's headers, with those that every answer has."""
    marked = [*headers, (b"x-request-id", request_id.encode())]
    given = {name for name, _ in marked}
    marked += [pair for pair in _SAFE_HEADERS if pair[0] not in given]
    return marked


class _CutShort(Exception):
    """An answer could not be finished; its cause is in the log already."""


def _masked(request_id: str) -> Response:
    return problem(
        "INTERNAL",
        f"Something unexpected happened; the log has it under {request_id}",
        request_id=request_id,
    )
