"""GraphQL over HTTP: what is asked for, in which form it is answered, and with which status.

Source:
    https://graphql.github.io/graphql-over-http/draft/
    https://github.com/enisdenjo/graphql-sse/blob/master/PROTOCOL.md, distinct connections mode
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping
from contextlib import aclosing
from typing import Any, Final

import anyio
import msgspec
import strawberry
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Send

from gateway.assembly import Gateway
from gateway.bodies import decode_object, read_body
from gateway.documents import DocumentNotFound, DocumentNotTrusted
from gateway.problems import unauthenticated
from resolvers.context import Access, RequestContext, Scope
from resolvers.errors import BadInput, Forbidden, RequestLimitExceeded, RequestRefused
from schema.execution import Shown, execute, is_subscription, subscribe
from schema.global_ids import ON_BEHALF_OF, read_subjects
from sessions.http import deadline
from sessions.metering import Meter, metering

GRAPHQL_RESPONSE: Final = "application/graphql-response+json"
_JSON: Final = "application/json"
_HTML: Final = "text/html"
_EVENTS: Final = "text/event-stream"
_COMMENT: Final = b":\n\n"
_COMPLETE: Final = b"event: complete\ndata: \n\n"
_LOOK_SECONDS: Final = 1.0
_COMMENT_SECONDS: Final = 12.0  # proxies cut off what is silent for longer, some after 15
_LONGEST_STREAM_SECONDS: Final = 3600.0
_MAX_STREAMS: Final = 200
_RETRY_AFTER_SECONDS: Final = 5
_DEBUG: Final = "Gateway-Debug"
_STATUS_BY_REFUSAL: Final = {Forbidden: 403, DocumentNotTrusted: 403, RequestLimitExceeded: 413}
_DOCUMENT_PARAMETERS: Final = ("query", "documentId", "doc_id", "id")


def wants_page(request: Request) -> bool:
    """Whether a browser came to look: a GET without a query, that prefers HTML."""
    return (
        request.method == "GET"
        and not any(name in request.query_params for name in (*_DOCUMENT_PARAMETERS, "extensions"))
        and _preferred(request.headers.get("accept", ""), (_JSON, GRAPHQL_RESPONSE, _HTML)) == _HTML
    )


async def answer(
    gateway: Gateway, schema: strawberry.Schema, request: Request, access: Access | None
) -> Response:
    """Answer one GraphQL request.

    ``application/json`` is answered with 200 whatever becomes of a well-formed request, as
    clients of that type expect; ``application/graphql-response+json`` with the draft's statuses.
    A subscription is answered as ``text/event-stream`` to those who accept that by name, and
    anything else only to those who prefer it.
    """
    accept = request.headers.get("accept") or "*/*"
    accepted = _preferred(accept, (_JSON, GRAPHQL_RESPONSE))
    takes_events = _names(accept, _EVENTS)
    if accepted is None and takes_events:
        accepted = _JSON  # for what goes wrong before there can be events
    if accepted is None:
        return _respond(
            406, _refused("BAD_INPUT", f"accept: {_JSON} and {GRAPHQL_RESPONSE} can be had"), _JSON
        )
    if access is None:
        refused = unauthenticated(request)
        body = _refused("UNAUTHENTICATED", json.loads(bytes(refused.body))["detail"])
        challenge = {"WWW-Authenticate": refused.headers["www-authenticate"]}
        return _respond(401, body, accepted, headers=challenge)
    try:
        sent = await _asked(request, max_bytes=gateway.settings.max_body_bytes)
        asked = await gateway.documents.resolve(sent, access)
        context = _context(gateway, request, access)
        shown = _shown(request, context)
    except _UnsupportedMediaType:
        return _respond(415, _refused("BAD_INPUT", f"content-type: {_JSON} is needed"), accepted)
    except RequestRefused as error:
        told = _refused(error.code, error.message)
        if isinstance(error, RequestLimitExceeded):
            gateway.metrics.on_limit(error.limit)
            told["errors"][0]["extensions"]["limit"] = error.limit
        status = _STATUS_BY_REFUSAL.get(type(error), 400)
        if isinstance(error, DocumentNotFound) and accepted == _JSON:
            status = 200  # the request was well formed
        return _respond(status, told, accepted)
    if takes_events and is_subscription(schema, asked):
        return _subscribed(gateway, schema, request, asked, context)
    meter = Meter(max_calls=gateway.settings.max_upstream_calls)
    with deadline(gateway.settings.deadline_seconds), metering(meter):
        status, body = await execute(
            schema, asked, context, queries_only=request.method == "GET", shown=shown
        )
    prefers_events = _preferred(accept, (_JSON, GRAPHQL_RESPONSE, _EVENTS)) == _EVENTS
    return _whole(status, body, _EVENTS if takes_events and prefers_events else accepted)


def _whole(status: int, body: Mapping[str, Any], accepted: str) -> Response:
    if accepted == _EVENTS and status != 405:  # noqa: PLR2004 - HTTP's own number
        return _EventStream(_only(body))
    headers = {"Allow": "POST"} if status == 405 else {}  # noqa: PLR2004 - HTTP's own number
    in_document = status == 400 and _is_document_error(body)  # noqa: PLR2004 - the same
    if accepted == _JSON and in_document:
        status = 200
    return _respond(status, body, _JSON if accepted == _EVENTS else accepted, headers=headers)


def _subscribed(
    gateway: Gateway,
    schema: strawberry.Schema,
    request: Request,
    asked: Mapping[str, Any],
    context: RequestContext,
) -> Response:
    state = request.app.state
    streams: set[object] = getattr(state, "streams", set())
    state.streams = streams
    if len(streams) >= _MAX_STREAMS:
        body = _refused("REQUEST_LIMIT_EXCEEDED", "Too many subscriptions are open; try later")
        headers = {"Retry-After": str(_RETRY_AFTER_SECONDS)}
        return _respond(503, body, _JSON, headers=headers)
    authorization = request.headers.get("authorization")
    ends_at = time.monotonic() + _LONGEST_STREAM_SECONDS

    async def may_go_on() -> bool:
        is_known = await gateway.keys.find(authorization) is not None
        return is_known and time.monotonic() < ends_at

    async def events() -> AsyncGenerator[bytes, None]:
        stream = object()
        streams.add(stream)
        answers = subscribe(schema, asked, context, event_seconds=gateway.settings.deadline_seconds)
        written = _written(
            answers,
            may_go_on=may_go_on,
            is_stopping=lambda: getattr(state, "draining", False),
        )
        try:
            async with aclosing(written):
                async for piece in written:
                    yield piece
        finally:
            streams.discard(stream)

    return _EventStream(events())


async def _written(
    answers: AsyncGenerator[dict[str, Any], None],
    *,
    may_go_on: Callable[[], Awaitable[bool]],
    is_stopping: Callable[[], bool],
    comment_seconds: float = _COMMENT_SECONDS,
) -> AsyncGenerator[bytes, None]:
    """Yield answers as events, with comments while there are none, until they end or must."""

    async def following() -> dict[str, Any] | None:
        return await anext(answers, None)

    yield _COMMENT  # so that the caller sees at once that it has begun
    commented_at = time.monotonic()
    waiting = asyncio.ensure_future(following())
    try:
        while not is_stopping():
            await asyncio.wait({waiting}, timeout=min(_LOOK_SECONDS, comment_seconds))
            if waiting.done():
                answer = waiting.result()
                if answer is None:
                    break
                waiting = asyncio.ensure_future(following())
                yield _event(answer)
            if time.monotonic() - commented_at >= comment_seconds:
                commented_at = time.monotonic()
                if not await may_go_on():
                    break
                yield _COMMENT
        yield _COMPLETE
    finally:
        with anyio.CancelScope(shield=True):
            waiting.cancel()
            await asyncio.wait({waiting})
            await answers.aclose()


async def _only(body: Mapping[str, Any]) -> AsyncGenerator[bytes, None]:
    yield _event(body)
    yield _COMPLETE


def _event(answer: Mapping[str, Any]) -> bytes:
    return b"event: next\ndata: " + msgspec.json.encode(answer) + b"\n\n"


class _EventStream(StreamingResponse):
    """Server-sent events; whatever makes them ends when the caller goes away."""

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        super().__init__(
            events,
            headers={"Vary": "Accept", "Cache-Control": "no-store", "X-Accel-Buffering": "no"},
            media_type=f"{_EVENTS}; charset=utf-8",
        )
        self._events = events

    async def stream_response(self, send: Send) -> None:
        """Send the events, and end whatever makes them."""
        try:
            await super().stream_response(send)
        finally:
            with anyio.CancelScope(shield=True):
                await self._events.aclose()


def refusal(
    code: str, message: str, *, accept: str, headers: Mapping[str, str], **extensions: object
) -> Response:
    """Return the answer, with status 503, to a request that nothing was done for.

    Args:
        code: One of the stable error codes.
        message: For a person.
        accept: The request's header; what cannot be had is answered as ``application/json``.
        headers: Added to the answer.
        **extensions: Beside the code.
    """
    accepted = _preferred(accept or "*/*", (_JSON, GRAPHQL_RESPONSE)) or _JSON
    error = {"message": message, "extensions": {"code": code, **extensions}}
    return _respond(503, {"errors": [error]}, accepted, headers=headers)


class _UnsupportedMediaType(Exception):
    """The body is not JSON by its own account."""


async def _asked(request: Request, *, max_bytes: int) -> dict[str, Any]:
    if request.method == "GET":
        return _from_query(request.query_params)
    media_type, _, parameters = request.headers.get("content-type", "").partition(";")
    charset = parameters.strip().lower().removeprefix("charset=").strip('"')
    if media_type.strip().lower() != _JSON or charset not in {"", "utf-8", "utf8"}:
        raise _UnsupportedMediaType
    return decode_object(await read_body(request, max_bytes=max_bytes))


def _from_query(parameters: Mapping[str, str]) -> dict[str, Any]:
    asked: dict[str, Any] = {
        name: parameters[name]
        for name in (*_DOCUMENT_PARAMETERS, "operationName")
        if name in parameters
    }
    for name in ("variables", "extensions"):
        if parameters.get(name):
            try:
                asked[name] = decode_object(parameters[name].encode("utf-8", "surrogatepass"))
            except BadInput as error:
                raise BadInput(name, error.message.removeprefix("body: ")) from None
    return asked


def _context(gateway: Gateway, request: Request, access: Access) -> RequestContext:
    """Return what the request may use, acting for the users its header names."""
    subjects = read_subjects(request.headers.getlist(ON_BEHALF_OF))
    return gateway.request_context(access, request.state.request_id, subjects=subjects)


def _shown(request: Request, context: RequestContext) -> Collection[Shown]:
    """Return what an administrator wants to see of how the request is answered."""
    names = [name.strip() for given in request.headers.getlist(_DEBUG) for name in given.split(",")]
    if not names:
        return ()
    try:
        shown = [*map(Shown, names)]
    except ValueError:
        raise BadInput(_DEBUG, f"{' and '.join(Shown)} are all it can be") from None
    context.require(Scope.ADMIN)
    return shown


def _is_document_error(body: Mapping[str, Any]) -> bool:
    """Whether the request was well formed, and its document or variables are what is wrong.

    Such errors point into the document. Answered as ``application/json``, they come with 200.
    """
    return all("locations" in error for error in body["errors"])


def _refused(code: str, message: str) -> dict[str, Any]:
    return {"errors": [{"message": message, "extensions": {"code": code}}]}


def _respond(
    status: int,
    body: Mapping[str, Any],
    media_type: str,
    *,
    headers: Mapping[str, str] | None = None,
) -> Response:
    content = msgspec.json.encode(body)
    return Response(
        content,
        status,
        headers={"Vary": "Accept", "Cache-Control": "no-store", **(headers or {})},
        media_type=f"{media_type}; charset=utf-8",
    )


def _names(accept: str, media_type: str) -> bool:
    """Whether a type is acceptable and named, not only covered by a range of types."""
    names = {part.partition(";")[0].strip().lower() for part in accept.split(",")}
    return media_type in names and _quality(accept, media_type) > 0


def _preferred(accept: str, offered: tuple[str, ...]) -> str | None:
    """Return the offered type with the highest quality; the earlier one where they are equal."""
    best: tuple[float, str] | None = None
    for media_type in offered:
        quality = _quality(accept, media_type)
        if quality > 0 and (best is None or quality > best[0]):
            best = (quality, media_type)
    return None if best is None else best[1]


def _quality(accept: str, media_type: str) -> float:
    """Return the quality of the most specific range that covers a type; 0 for not acceptable.

    Source:
        https://www.rfc-editor.org/rfc/rfc9110#section-12.5.1
    """
    major = media_type.partition("/")[0]
    ranks = {"*/*": 0, f"{major}/*": 1, media_type: 2}
    found = (-1, 0.0)
    for part in accept.split(","):
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        if name in ranks:
            found = max(found, (ranks[name], _q(parameters)))
    return found[1]


def _q(parameters: list[str]) -> float:
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return min(max(float(parameter[2:]), 0.0), 1.0)
            except ValueError:
                return 0.0
    return 1.0
