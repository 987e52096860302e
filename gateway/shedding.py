"""Load shedding: requests there is no place for are refused before anything is done for them."""

from __future__ import annotations

import asyncio
import random
import time
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as AsgiScope

from gateway.admission import Admission, Refused, Slot
from gateway.bodies import header_of
from gateway.graphql_http import refusal
from gateway.problems import SAFE_HEADERS, AnswerCutShort, Interrupted, problem, request_id_of
from sessions.timeouts import Timeouts

_MAX_KNOWN_KEYS: Final = 4096
STRANGERS: Final = ""
_OPEN_PATHS: Final = frozenset({"/health", "/ready", "/metrics"})
_OPEN_PREFIX: Final = "/media/"
_EXPORTS: Final = frozenset({"/api/users", "/api/courses", "/api/content", "/api/enrollments"})
_EVENT_STREAM: Final = b"text/event-stream"
_PARTS: Final = b"multipart/mixed"
_SUBSCRIPTION: Final = b"subscriptionSpec"
LONGEST_RETRY_SECONDS: Final = 4
HOLD_SECONDS: Final = 0.05
_GRAPHQL: Final = "/graphql"
_CODE: Final = "GATEWAY_OVERLOADED"
OVERLOADED: Final = "The gateway has more to do than it can; nothing was done for this request"
_BLANK_SECONDS: Final = b"99999"
_BLANK_ID: Final = b"0" * 32


class LoadShedding:
    """Asks an ``Admission`` before anything is done for a request.

    Outside of it are ``/health`` and ``/ready``, which say how the process is, and ``/metrics``,
    which says why: they are wanted most when it is overloaded. So are ``/media``, which browsers
    fetch by the dozen, without a key, and which cost next to nothing.

    The key is the one that an earlier request with the same ``Authorization`` header turned out to
    show. All others are strangers, and have one share together: whoever invents keys gets no more.

    A refusal is held back for a twentieth of a second: whoever asks again at once, whatever it says
    of ``Retry-After``, would otherwise take up the time in which others are answered.

    Args:
        app: Gets the requests that may run.
        stream_seconds: How long a whole list may take, the caller's reading included.
        body_seconds: How long the body of a request may take to come.
    """

    def __init__(self, app: ASGIApp, *, stream_seconds: float, body_seconds: float = 10) -> None:
        self._app = app
        self._body_seconds = body_seconds
        self._stream_seconds = stream_seconds
        self._keys: OrderedDict[bytes, str] = OrderedDict()
        self._timeouts = Timeouts()

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Answer, or refuse to."""
        if scope["type"] != "http" or _is_open(scope["path"]):
            await self._app(scope, receive, send)
            return
        admission: Admission = scope["app"].state.gateway.admission
        shown = sha256(header_of(scope, b"authorization")).digest()
        key = self._keys.get(shown, STRANGERS)
        is_export = scope["path"] in _EXPORTS
        try:
            slot = await admission.enter(key, is_export=is_export)
        except Refused:
            await asyncio.sleep(HOLD_SECONDS)
            await _refuse(scope, send)
            return
        try:
            exchange = _Exchange(
                scope,
                receive,
                send,
                slot,
                self._timeouts,
                body_seconds=self._body_seconds,
                stream_seconds=self._stream_seconds,
            )
            if is_export:
                exchange.bound()
            await self._app(scope, exchange.receive, exchange.send)
        finally:
            slot.release()
            self._remember(shown, scope["state"].get("key_id"))

    def _remember(self, shown: bytes, key_id: str | None) -> None:
        if key_id is None:
            self._keys.pop(shown, None)
            return
        self._keys[shown] = key_id
        self._keys.move_to_end(shown)
        if len(self._keys) > _MAX_KNOWN_KEYS:
            self._keys.popitem(last=False)


class _Exchange:
    """One request's messages: none may hold a place by sending or reading slowly."""

    def __init__(
        self,
        scope: AsgiScope,
        receive: Receive,
        send: Send,
        slot: Slot,
        timeouts: Timeouts,
        *,
        body_seconds: float,
        stream_seconds: float,
    ) -> None:
        self._ends_at: float | None = None
        self._stream_seconds = stream_seconds
        self._scope = scope
        self._receive = receive
        self._send = send
        self._slot = slot
        self._timeouts = timeouts
        self._has_body = False
        self._body_seconds = body_seconds
        self._body_ends_at = time.monotonic() + body_seconds

    def bound(self) -> None:
        """Have the answer read within the time that one in pieces may take."""
        self._ends_at = time.monotonic() + self._stream_seconds

    async def receive(self) -> Message:
        if self._has_body:
            return await self._receive()
        try:
            with self._timeouts.within(self._body_ends_at - time.monotonic()):
                message = await self._receive()
        except TimeoutError:
            raise Interrupted(_too_slow(self._scope, self._body_seconds)) from None
        self._has_body = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = {name.lower(): value for name, value in message["headers"]}
            media_type = headers.get(b"content-type", b"")
            if media_type.startswith(_EVENT_STREAM) or _SUBSCRIPTION in media_type:
                self._become_subscription()
            elif media_type.startswith(_PARTS) or b"content-length" not in headers:
                self.bound()
        if self._ends_at is None:
            await self._send(message)
            return
        try:
            with self._timeouts.within(self._ends_at - time.monotonic()):
                await self._send(message)
        except TimeoutError:
            raise AnswerCutShort("The caller did not read the answer in time") from None

    def _become_subscription(self) -> None:
        try:
            self._slot.become_subscription()
        except Refused:
            accept = _accepts(self._scope).decode("latin-1")
            request_id = self._scope["state"]["request_id"]
            answer = _refusal(accept, seconds=LONGEST_RETRY_SECONDS, request_id=request_id)
            raise Interrupted(answer) from None


def _is_open(path: str) -> bool:
    return path in _OPEN_PATHS or path.startswith(_OPEN_PREFIX)


def _accepts(scope: AsgiScope) -> bytes:
    """Return the header ``Accept``; several lines of it are one list."""
    return b", ".join(value for found, value in scope["headers"] if found == b"accept")


async def _refuse(scope: AsgiScope, send: Send) -> None:
    """Answer a request there is no place for, with as little work as can be.

    The server reads and drops a body that is still coming, so the connection can be used again;
    unless the caller waits to be asked for it, and may then send it or not.
    """
    seconds = str(random.randint(1, LONGEST_RETRY_SECONDS)).encode()  # noqa: S311 - spreads load only
    given_id = header_of(scope, b"x-request-id").decode("latin-1")
    request_id = request_id_of(given_id).encode()
    is_graphql = scope["path"] == _GRAPHQL
    headers, body = _template(_accepts(scope) if is_graphql else None)
    body = body.replace(_BLANK_SECONDS, seconds).replace(_BLANK_ID, request_id)
    headers = [
        *headers,
        (b"content-length", str(len(body)).encode()),
        (b"retry-after", seconds),
        (b"x-request-id", request_id),
    ]
    if header_of(scope, b"expect"):
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@lru_cache(maxsize=64)
def _template(accept: bytes | None) -> tuple[Sequence[tuple[bytes, bytes]], bytes]:
    """Return headers and body of a refusal, with blanks; ``None`` for the REST surface."""
    answer = _refusal(
        None if accept is None else accept.decode("latin-1"),
        seconds=int(_BLANK_SECONDS),
        request_id=_BLANK_ID.decode(),
    )
    for name, value in SAFE_HEADERS.items():
        answer.headers.setdefault(name, value)
    changing = {b"content-length", b"retry-after"}
    return [pair for pair in answer.raw_headers if pair[0] not in changing], bytes(answer.body)


def _refusal(accept: str | None, *, seconds: int, request_id: str) -> Response:
    """Return a refusal as its surface writes errors: GraphQL, if an ``Accept`` is given."""
    headers = {"Retry-After": str(seconds)}
    members: dict[str, Any] = {"retryable": True, "retryAfterSeconds": seconds}
    if accept is not None:
        return refusal(_CODE, OVERLOADED, accept=accept, headers=headers, **members)
    return problem(_CODE, OVERLOADED, request_id=request_id, headers=headers, **members)


def _too_slow(scope: AsgiScope, seconds: float) -> Response:
    return problem(
        "BAD_INPUT",
        f"The body did not come within {seconds:g} seconds",
        request_id=scope["state"]["request_id"],
        status=408,
        headers={"Connection": "close"},
    )
