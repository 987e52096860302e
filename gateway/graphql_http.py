"""GraphQL over HTTP: what is asked for, in which form it is answered, and with which status.

Source:
    https://graphql.github.io/graphql-over-http/draft/
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import aclosing
from functools import cache
from itertools import chain
from typing import Any, Final

import strawberry
from starlette.requests import Request
from starlette.responses import Response

from gateway.assembly import Gateway
from gateway.bodies import decode_object, read_body
from gateway.documents import DocumentNotFound, DocumentNotTrusted
from gateway.negotiation import (
    EVENTS,
    GRAPHQL_RESPONSE,
    JSON,
    MULTIPART,
    Forms,
    forms_of,
    prefers_page,
)
from gateway.problems import unauthenticated
from gateway.streams import (
    EVENT_STREAM,
    PARTS,
    PAYLOADS,
    LongAnswer,
    Steps,
    Streamed,
    only,
    written,
)
from gateway.tokens import KeySetUnavailable
from resolvers.context import Access, RequestContext, Scope
from resolvers.errors import BadInput, Forbidden, RequestLimitExceeded, RequestRefused
from schema.engine import Rows, pieces_of
from schema.execution import (
    Answer,
    Shown,
    execute,
    execute_in_parts,
    is_subscription,
    repeated_requests,
    subscribe,
)
from schema.global_ids import ON_BEHALF_OF, read_subjects
from schema.remembering import Asked, Repeated
from sessions.http import deadline
from sessions.metering import Meter, metering
from storage.errors import StorageUnavailable

_LONGEST_STREAM_SECONDS: Final = 3600.0
_DEBUG: Final = "Gateway-Debug"
_OK: Final = 200
_PARTIAL: Final = 294
_BAD_REQUEST: Final = 400
_METHOD_NOT_ALLOWED: Final = 405
_UNPROCESSABLE: Final = 422
_TOO_MANY_REQUESTS: Final = 429
_READING: Final = frozenset({"GET", "HEAD"})
PUTTING_OFF: Final = ("@defer", "@stream")
SUBSCRIPTION: Final = "subscription"
_FRAMING_OF_WHOLE: Final = {EVENTS: EVENT_STREAM, MULTIPART: PARTS}
_DOCUMENT_PARAMETERS: Final = ("query", "documentId", "doc_id", "id")


def wants_page(request: Request) -> bool:
    """Whether a browser came to look: a GET without a query, that prefers HTML."""
    return (
        request.method in _READING
        and not any(name in request.query_params for name in (*_DOCUMENT_PARAMETERS, "extensions"))
        and prefers_page(_accepts(request))
    )


async def answer(
    gateway: Gateway, schema: strawberry.Schema, request: Request, access: Access | None
) -> Response:
    """Answer one GraphQL request.

    ``application/json`` is answered with 200 whatever becomes of a well-formed request, as
    clients of that type expect; ``application/graphql-response+json`` with the draft's statuses.
    What ``@defer`` and ``@stream`` put off, and a subscription's events, are streamed to those
    who name a type that can be; other callers get whole answers, and no events.
    """
    forms = forms_of(_accepts(request))
    repeated = repeated_requests(schema)
    if forms is None:
        refused = _NotAcceptable()
        return _respond(406, _refused(refused.code, refused.message), JSON)
    try:
        gateway.browsers.require_known(request)
        if access is None:
            return _unauthenticated(request, forms)
        sent, sent_body = await _asked(request, repeated, gateway.settings.max_body_bytes)
        asked = await gateway.documents.resolve(sent, access)
        context = _context(gateway, request, access)
        shown = _shown(request, context)
        subscribes = (
            forms.events is not None
            and mentions(asked, SUBSCRIPTION)
            and is_subscription(schema, asked)
        )
        if forms.whole is None and not subscribes:
            raise _NotAcceptable
    except RequestRefused as error:
        told = _refused(error.code, error.message)
        if isinstance(error, RequestLimitExceeded):
            gateway.metrics.on_limit(error.limit)
            told["errors"][0]["extensions"]["limit"] = error.limit
        status = _STATUS_BY_REFUSAL.get(type(error), _BAD_REQUEST)
        if isinstance(error, DocumentNotFound) and forms.refusal == JSON:
            status = _OK  # the request was well formed
        return _respond(status, told, forms.refusal)
    if subscribes:
        return _subscribed(gateway, schema, request, asked, context, forms)
    queries_only = request.method in _READING
    meter = Meter(max_calls=gateway.settings.max_upstream_calls)
    if forms.parts is not None and mentions(asked, *PUTTING_OFF):
        answers = execute_in_parts(schema, asked, context, queries_only=queries_only, shown=shown)
        return await _in_parts(gateway, _accounted(gateway, meter, answers), forms)
    with deadline(gateway.settings.deadline_seconds), metering(meter):
        status, body = await execute(
            schema, asked, context, queries_only=queries_only, shown=shown, rows=Rows.STRUCTS
        )
    repeated.keep(sent_body, sent)
    return _whole(gateway, status, body, forms)


async def _accounted(
    gateway: Gateway, meter: Meter, answers: AsyncGenerator[Answer, None]
) -> AsyncGenerator[Answer, None]:
    """Yield answers that all have one account and one deadline."""
    with deadline(gateway.settings.deadline_seconds), metering(meter):
        async with aclosing(answers):
            async for one in answers:
                yield one


async def _in_parts(
    gateway: Gateway, answers: AsyncGenerator[Answer, None], forms: Forms
) -> Response:
    """Answer in parts if there are several, and whole if it turns out that nothing is put off."""
    steps = Steps(answers)
    begun = await steps.peek()
    assert begun is not None  # noqa: S101 - there is always one
    status, body = begun
    if "hasNext" not in body:
        await steps.aclose()
        return _whole(gateway, status, body, forms)

    async def may_go_on() -> bool:
        return True

    framing = EVENT_STREAM if forms.parts == EVENTS else PARTS
    pieces = written(
        steps,
        framing,
        body_of=lambda one: one[1],
        may_go_on=may_go_on,
        is_stopping=lambda: False,
    )
    return Streamed(pieces, framing, answers=steps)


def _accepts(request: Request) -> str:
    """Return the header ``Accept``; several lines of it are one list."""
    return ", ".join(request.headers.getlist("accept"))


def _whole(gateway: Gateway, status: int, body: Mapping[str, Any], forms: Forms) -> Response:
    """Answer in one piece."""
    if status == _METHOD_NOT_ALLOWED:
        return _respond(status, body, forms.refusal, headers={"Allow": "POST"})
    if status == _TOO_MANY_REQUESTS:
        seconds = body["errors"][0]["extensions"]["retryAfterSeconds"]
        return _respond(status, body, forms.refusal, headers={"Retry-After": str(seconds)})
    if forms.whole in _FRAMING_OF_WHOLE:
        framing = _FRAMING_OF_WHOLE[forms.whole]
        return Streamed(only(body, framing), framing)
    status = _status(gateway, status, body, forms.refusal)
    return _respond(status, body, forms.refusal)


def _status(gateway: Gateway, status: int, body: Mapping[str, Any], media_type: str) -> int:
    """Return the status of an answer, which depends on its media type and on the draft's age."""
    if media_type == JSON and status in {_BAD_REQUEST, _UNPROCESSABLE} and _is_in_document(body):
        return _OK
    if not gateway.settings.new_statuses:
        return _BAD_REQUEST if status == _UNPROCESSABLE else status
    if media_type == GRAPHQL_RESPONSE and status == _OK and "errors" in body:
        return _PARTIAL
    return status


def _subscribed(
    gateway: Gateway,
    schema: strawberry.Schema,
    request: Request,
    asked: Mapping[str, Any],
    context: RequestContext,
    forms: Forms,
) -> Response:
    state = request.app.state
    authorization = request.headers.get("authorization")
    ends_at = time.monotonic() + _LONGEST_STREAM_SECONDS
    framing = EVENT_STREAM if forms.events == EVENTS else PAYLOADS

    async def may_go_on() -> bool:
        try:
            is_known = await gateway.keys.find(authorization) is not None
        except (StorageUnavailable, KeySetUnavailable):
            is_known = True  # nobody can say it is not
        return is_known and time.monotonic() < ends_at

    answers = Steps(
        subscribe(
            schema,
            asked,
            context,
            event_seconds=gateway.settings.deadline_seconds,
            event_calls=gateway.settings.max_upstream_calls,
        )
    )
    pieces = written(
        answers,
        framing,
        body_of=lambda body: body,
        may_go_on=may_go_on,
        is_stopping=lambda: getattr(state, "draining", False),
    )
    return Streamed(pieces, framing, answers=answers)


def mentions(asked: Mapping[str, Any], *words: str) -> bool:
    """Whether the document holds one of these words, which is seen sooner than it is read."""
    query = asked.get("query")
    return isinstance(query, str) and any(word in query for word in words)


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
    forms = forms_of(accept)
    error = {"message": message, "extensions": {"code": code, **extensions}}
    media_type = JSON if forms is None else forms.refusal
    return _respond(503, {"errors": [error]}, media_type, headers=headers)


class _UnsupportedMediaType(BadInput):
    """The body is not JSON by its own account."""

    def __init__(self) -> None:
        super().__init__("content-type", f"{JSON} is needed")


class _NotAcceptable(BadInput):
    """There is nothing to be had that the caller takes."""

    def __init__(self) -> None:
        types = f"{JSON}, {GRAPHQL_RESPONSE}, {EVENTS} and {MULTIPART}"
        super().__init__("accept", f"{types} can be had, the last two not of everything")


_STATUS_BY_REFUSAL: Final[Mapping[type[RequestRefused], int]] = {
    Forbidden: 403,
    DocumentNotTrusted: 403,
    _NotAcceptable: 406,
    RequestLimitExceeded: 413,
    _UnsupportedMediaType: 415,
}


async def _asked(request: Request, repeated: Repeated, max_bytes: int) -> tuple[Asked, bytes]:
    """Return the decoded request, and its body as it came."""
    if request.method in _READING:
        return Asked(_from_query(request.query_params)), b""
    media_type, _, parameters = request.headers.get("content-type", "").partition(";")
    charset = parameters.strip().lower().removeprefix("charset=").strip('"')
    if media_type.strip().lower() != JSON or charset not in {"", "utf-8", "utf8"}:
        raise _UnsupportedMediaType
    body = await read_body(request, max_bytes=max_bytes)
    return repeated.find(body) or Asked(decode_object(body)), body


def _from_query(parameters: Mapping[str, str]) -> dict[str, Any]:
    asked: dict[str, Any] = {
        name: parameters[name]
        for name in (*_DOCUMENT_PARAMETERS, "operationName")
        if name in parameters
    }
    for name in ("variables", "extensions"):
        given = parameters.get(name, "").strip()
        if given and given != "[]":  # PHP writes an empty object as an empty list
            try:
                asked[name] = decode_object(given.encode("utf-8", "surrogatepass"))
            except BadInput as error:
                raise BadInput(name, error.message.removeprefix("body: ")) from None
    return asked


def _context(gateway: Gateway, request: Request, access: Access) -> RequestContext:
    """Return what the request may use, acting for the users its header names."""
    subjects = read_subjects(request.headers.getlist(ON_BEHALF_OF))
    return gateway.request_context(access, request.state.request_id, subjects=subjects)


def _shown(request: Request, context: RequestContext) -> Collection[Shown]:
    """Return what the caller wants to see of how the request is answered."""
    names = [name.strip() for given in request.headers.getlist(_DEBUG) for name in given.split(",")]
    if not names:
        return ()
    try:
        shown = [*map(Shown, names)]
    except ValueError:
        raise BadInput(_DEBUG, f"{', '.join(Shown)} are all it can be") from None
    if {*shown} - {Shown.COST}:
        context.require(Scope.ADMIN)
    return shown


def _is_in_document(body: Mapping[str, Any]) -> bool:
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
    pieces = pieces_of(body)
    first, second = next(pieces), next(pieces, None)
    if second is None and headers is None:
        return _Short(first, status, media_type)
    told = {"Vary": "Accept", "Cache-Control": "no-store", **(headers or {})}
    media_type = f"{media_type}; charset=utf-8"
    if second is None:
        return Response(first, status, headers=told, media_type=media_type)
    return LongAnswer(chain((first, second), pieces), status, headers=told, media_type=media_type)


class _Short(Response):
    """An answer in one piece with the usual headers, which are not made anew each time."""

    def __init__(self, body: bytes, status_code: int, media_type: str) -> None:
        self.status_code = status_code
        self.body = body
        self.background = None
        length = (b"content-length", str(len(body)).encode())
        self.raw_headers = [length, *_usual_headers(media_type)]


@cache
def _usual_headers(media_type: str) -> Sequence[tuple[bytes, bytes]]:
    """Return what is said of an answer of one of the few types there are."""
    return [
        (b"content-type", f"{media_type}; charset=utf-8".encode()),
        (b"vary", b"Accept"),
        (b"cache-control", b"no-store"),
    ]


def _unauthenticated(request: Request, forms: Forms) -> Response:
    refused = unauthenticated(request)
    body = _refused("UNAUTHENTICATED", json.loads(bytes(refused.body))["detail"])
    challenge = {"WWW-Authenticate": refused.headers["www-authenticate"]}
    return _respond(401, body, forms.refusal, headers=challenge)
