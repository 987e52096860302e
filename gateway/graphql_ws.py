"""GraphQL over WebSocket: queries, mutations and subscriptions side by side on one socket.

Whatever is wrong with one operation ends that operation. The socket ends for what breaks the
protocol, for a key that is not good or no longer, and when the gateway stops.

Source:
    https://github.com/enisdenjo/graphql-ws/blob/master/PROTOCOL.md
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import strawberry
import structlog
from starlette.websockets import WebSocket, WebSocketDisconnect

from gateway.access import KeyAccess
from gateway.admission import Refused, Slot
from gateway.assembly import Gateway
from gateway.bodies import decode_object
from gateway.documents import DocumentNotTrusted
from gateway.graphql_http import PUTTING_OFF, SUBSCRIPTION, mentions
from gateway.logs import NamedInLogs
from gateway.problems import problem
from gateway.shedding import HOLD_SECONDS, LONGEST_RETRY_SECONDS, OVERLOADED, STRANGERS
from gateway.tokens import NO_KEY_SET, KeySetUnavailable
from gateway.watching import gathering
from resolvers.context import RequestContext
from resolvers.errors import BadInput, Forbidden, RequestLimitExceeded, RequestRefused
from schema.engine import Rows
from schema.errors import refusal
from schema.execution import execute, execute_in_parts, is_subscription, subscribe
from schema.global_ids import ON_BEHALF_OF, read_subjects
from sessions.http import deadline
from sessions.metering import Meter, metering
from storage.errors import StorageUnavailable

SUBPROTOCOL: Final = "graphql-transport-ws"
GOING_AWAY: Final = 1001
TRY_AGAIN_LATER: Final = 1013
BAD_MESSAGE: Final = 4400
UNAUTHORIZED: Final = 4401
FORBIDDEN: Final = 4403
NO_SUBPROTOCOL: Final = 4406
NOT_INITIALISED: Final = 4408
ALREADY_EXISTS: Final = 4409
ALREADY_INITIALISED: Final = 4429

_ROUTE: Final = "graphql-ws"
_MAX_REASON_BYTES: Final = 123  # what a close frame has room for
_MAX_ID_CHARACTERS: Final = 256
_CLIENT_LEFT: Final = 499
_STATUS_BY_REFUSAL: Final = {Forbidden: 403, DocumentNotTrusted: 403}
_NO_KEY: Final = "A good key is needed, as Authorization in connection_init's payload"
_NO_DATABASE: Final = "The gateway's database does not answer"
_UNAVAILABLE: Final = (StorageUnavailable, KeySetUnavailable)
_STOPPING: Final = "The gateway is stopping; connect again"

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketTerms:
    """How long and how many.

    Attributes:
        init_seconds: From opening a socket to its ``connection_init``.
        look_seconds: How often it is looked whether a socket may go on.
        check_seconds: How often its key is looked up again.
        longest_seconds: How long a socket may stay open; its client connects again.
        max_operations: On one socket at once.
        max_strangers: Sockets of this process that have not shown a key yet.
    """

    init_seconds: float = 10.0
    look_seconds: float = 1.0
    check_seconds: float = 12.0
    longest_seconds: float = 3600.0
    max_operations: int = 100
    max_strangers: int = 1000


class Sockets:
    """Serves the websockets of one process.

    Args:
        schema: From ``build_schema``.
        terms: How long and how many.
    """

    def __init__(self, schema: strawberry.Schema, terms: SocketTerms | None = None) -> None:
        self.schema = schema
        self.terms = terms or SocketTerms()
        self.strangers: set[object] = set()

    async def serve(self, socket: WebSocket) -> None:
        """Serve one socket from its upgrade until it is closed."""
        gateway: Gateway = socket.app.state.gateway
        try:
            is_accepted = await self._accept(gateway, socket)
        except (OSError, WebSocketDisconnect):
            return  # the client left before it was let in
        if not is_accepted:
            return
        connection = _Connection(gateway, self, socket)
        self.strangers.add(connection)
        try:
            await connection.run()
        finally:
            self.strangers.discard(connection)

    async def _accept(self, gateway: Gateway, socket: WebSocket) -> bool:
        request_id = socket.state.request_id
        if not gateway.browsers.may_open_socket(socket.headers):
            detail = "Pages of this origin may open no websocket here; see GATEWAY_CORS_ORIGINS"
            await socket.send_denial_response(problem("FORBIDDEN", detail, request_id=request_id))
            return False
        if _is_stopping(socket) or len(self.strangers) >= self.terms.max_strangers:
            refused = problem(
                "GATEWAY_OVERLOADED",
                OVERLOADED,
                request_id=request_id,
                headers={"Retry-After": str(LONGEST_RETRY_SECONDS)},
            )
            await socket.send_denial_response(refused)
            return False
        if SUBPROTOCOL not in socket.scope["subprotocols"]:
            await socket.accept()
            await socket.close(NO_SUBPROTOCOL, f"Subprotocol not acceptable: {SUBPROTOCOL} is")
            return False
        await socket.accept(SUBPROTOCOL)
        return True


class _End(Exception):
    """The socket is to be closed.

    Args:
        code: Why, for the client.
        reason: The same for a person.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class _Connection:
    """One accepted socket: what its client may do, and what it has under way."""

    def __init__(self, gateway: Gateway, sockets: Sockets, socket: WebSocket) -> None:
        self._gateway = gateway
        self._sockets = sockets
        self._terms = sockets.terms
        self._socket = socket
        self._opened_at = time.monotonic()
        self._is_initialised = False
        self._access: KeyAccess | None = None
        self._authorization: str | None = None
        self._subjects: Mapping[str, str] = {}
        self._operations: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._streams: set[asyncio.Task[None]] = set()
        self._sending = asyncio.Lock()
        self._count = 0
        self._code = 0

    async def run(self) -> None:
        """Take messages until the socket is closed; nothing is left under way then."""
        try:
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(self._watch())
                try:
                    while True:
                        await self._take(await self._receive(), group)
                except _End as end:
                    await self._close(end.code, end.reason)
                except WebSocketDisconnect as gone:
                    self._code = self._code or gone.code
                finally:
                    for task in (watching, *self._tasks):
                        task.cancel()
        finally:
            if self._access is not None:
                self._gateway.admission.unsubscribe(self._access.key_id)
            seconds = time.monotonic() - self._opened_at
            _log.info(
                "websocket_closed",
                code=self._code,
                operations=self._count,
                milliseconds=round(seconds * 1000, 1),
            )

    async def _receive(self) -> dict[str, Any]:
        """Return the next message.

        Raises:
            WebSocketDisconnect: The client is gone, or the socket was closed.
            _End: It is no message.
        """
        received = await self._socket.receive()
        if received["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(received.get("code", GOING_AWAY))
        text = received.get("text")
        if text is None:
            raise _invalid("It must be text, not binary")
        try:
            return decode_object(text.encode("utf-8", "surrogatepass"))
        except BadInput as error:
            raise _invalid(error.message.removeprefix("body: ")) from None

    async def _take(self, message: Mapping[str, Any], group: asyncio.TaskGroup) -> None:
        match message.get("type"):
            case "connection_init":
                await self._initialise(_payload_of(message))
            case "ping":
                await self._send({"type": "pong", **_echo(message)})
            case "pong":
                _payload_of(message)
            case "subscribe":
                await self._begin(_id_of(message), _payload_of(message, needed=True), group)
            case "complete":
                operation = self._operations.pop(_id_of(message), None)
                if operation is not None:
                    operation.cancel()
            case str(other):
                raise _invalid(f"type: {other[:40]!r} is not for a client to send")
            case _:
                raise _invalid("type: A string is needed here")

    async def _initialise(self, payload: Mapping[str, Any]) -> None:
        if self._is_initialised:
            raise _End(ALREADY_INITIALISED, "Too many initialisation requests")
        self._is_initialised = True
        shown = _shown(payload)
        headers = self._socket.headers
        self._authorization = shown.authorization or headers.get("authorization")
        subjects = headers.getlist(ON_BEHALF_OF) if shown.subjects is None else shown.subjects
        try:
            self._subjects = read_subjects(subjects)
            slot = await self._gateway.admission.enter(STRANGERS)
        except BadInput as error:
            raise _invalid(error.message) from None
        except Refused:
            raise _End(TRY_AGAIN_LATER, OVERLOADED) from None
        try:
            await self._acknowledge()
        except _UNAVAILABLE as error:
            raise _End(TRY_AGAIN_LATER, _what_is_unavailable(error)) from None
        finally:
            slot.release()

    async def _acknowledge(self) -> None:
        access = await self._gateway.keys.find(self._authorization)
        if access is None:
            raise _End(FORBIDDEN, _NO_KEY)
        try:
            self._gateway.request_context(access, subjects=self._subjects)
            self._gateway.admission.subscribe(access.key_id)
        except Forbidden as error:
            raise _End(FORBIDDEN, error.message) from None
        except Refused:
            raise _End(TRY_AGAIN_LATER, OVERLOADED) from None
        self._access = access
        self._sockets.strangers.discard(self)
        await self._send({"type": "connection_ack"})

    async def _begin(
        self, operation_id: str, asked: Mapping[str, Any], group: asyncio.TaskGroup
    ) -> None:
        if self._access is None:
            raise _End(UNAUTHORIZED, "Unauthorized: connection_init comes first")
        if operation_id in self._operations:
            raise _End(ALREADY_EXISTS, f"Subscriber for {operation_id} already exists")
        if _is_stopping(self._socket):
            await self._refuse(operation_id, _overloaded(_STOPPING))
            return
        if len(self._tasks) >= self._terms.max_operations:
            too_many = RequestLimitExceeded(
                f"A socket may have {self._terms.max_operations} operations under way, not more",
                limit="socket_operations",
            )
            self._gateway.metrics.on_limit(too_many.limit)
            await self._refuse(operation_id, refusal(too_many))
            return
        self._count += 1
        request_id = f"{self._socket.state.request_id}.{self._count}"
        task = group.create_task(self._operate(operation_id, asked, request_id))
        self._operations[operation_id] = task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(self._streams.discard)

    async def _operate(self, operation_id: str, asked: Mapping[str, Any], request_id: str) -> None:
        """Answer one operation, with a log line and a metric as a request has them."""
        started = time.perf_counter()
        status = _CLIENT_LEFT
        with NamedInLogs(request_id), gathering() as members:
            try:
                status = await self._answer(operation_id, asked, request_id)
            finally:
                task = asyncio.current_task()
                if self._operations.get(operation_id) is task:
                    del self._operations[operation_id]
                if status == _CLIENT_LEFT and task in self._streams:
                    status = 200  # as it is meant to end
                seconds = time.perf_counter() - started
                self._gateway.metrics.on_request(_ROUTE, status, seconds=seconds)
                _log.info(
                    "request",
                    method="WEBSOCKET",
                    path=self._socket.scope["path"],
                    status=status,
                    milliseconds=round(seconds * 1000, 1),
                    **members,
                )

    async def _answer(self, operation_id: str, asked: Mapping[str, Any], request_id: str) -> int:
        """Answer one operation; return the status a request would have had."""
        try:
            return await self._admit(operation_id, asked, request_id)
        except Refused:
            await asyncio.sleep(HOLD_SECONDS)
            status, told = 503, _overloaded(OVERLOADED)
        except RequestRefused as error:
            status, told = _STATUS_BY_REFUSAL.get(type(error), 400), refusal(error)
            if isinstance(error, RequestLimitExceeded):
                self._gateway.metrics.on_limit(error.limit)
        except _UNAVAILABLE as error:
            status, told = 503, _error("INTERNAL", _what_is_unavailable(error))
        await self._refuse(operation_id, told)
        return status

    async def _admit(self, operation_id: str, asked: Mapping[str, Any], request_id: str) -> int:
        assert self._access is not None  # noqa: S101 - nothing begins before
        slot = await self._gateway.admission.enter(self._access.key_id)
        try:
            access = await self._gateway.keys.find(self._authorization)
            if access is None:
                await self._close(FORBIDDEN, _NO_KEY)
                return 401
            asked = await self._gateway.documents.resolve(asked, access)
            context = self._gateway.request_context(access, request_id, subjects=self._subjects)
            schema = self._sockets.schema
            if mentions(asked, SUBSCRIPTION) and is_subscription(schema, asked):
                return await self._stream(operation_id, asked, context, slot)
            return await self._execute(operation_id, asked, context)
        finally:
            slot.release()

    async def _execute(
        self, operation_id: str, asked: Mapping[str, Any], context: RequestContext
    ) -> int:
        settings = self._gateway.settings
        meter = Meter(max_calls=settings.max_upstream_calls)
        with deadline(settings.deadline_seconds), metering(meter):
            if mentions(asked, *PUTTING_OFF):
                return await self._execute_in_parts(operation_id, asked, context)
            status, body = await execute(self._sockets.schema, asked, context, rows=Rows.STRUCTS)
        if await self._tell(operation_id, body):
            await self._send({"id": operation_id, "type": "complete"})
        return status

    async def _execute_in_parts(
        self, operation_id: str, asked: Mapping[str, Any], context: RequestContext
    ) -> int:
        answers = execute_in_parts(self._sockets.schema, asked, context)
        async with aclosing(answers):
            async for status, body in answers:
                if not await self._tell(operation_id, body):
                    return status
        await self._send({"id": operation_id, "type": "complete"})
        return 200

    async def _stream(
        self, operation_id: str, asked: Mapping[str, Any], context: RequestContext, slot: Slot
    ) -> int:
        slot.become_subscription()
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - this runs in one
        self._streams.add(task)
        settings = self._gateway.settings
        answers = subscribe(
            self._sockets.schema,
            asked,
            context,
            event_seconds=settings.deadline_seconds,
            event_calls=settings.max_upstream_calls,
        )
        async with aclosing(answers):
            async for body in answers:
                if not await self._tell(operation_id, body):
                    return 400
        await self._send({"id": operation_id, "type": "complete"})
        return 200

    async def _tell(self, operation_id: str, body: Mapping[str, Any]) -> bool:
        """Send one answer, or part of one; return whether the operation goes on."""
        if "data" not in body and "hasNext" not in body:
            await self._refuse(operation_id, *body["errors"])
            return False
        await self._send({"id": operation_id, "type": "next", "payload": body})
        return True

    async def _refuse(self, operation_id: str, *errors: Mapping[str, Any]) -> None:
        await self._send({"id": operation_id, "type": "error", "payload": errors})

    async def _send(self, message: Mapping[str, Any]) -> None:
        """Send a message, unless the socket is closed: then whoever sends is about to be ended."""
        async with self._sending:
            if not self._code:
                try:
                    await self._socket.send_text(msgspec.json.encode(message).decode())
                except WebSocketDisconnect as gone:
                    self._code = gone.code

    async def _close(self, code: int, reason: str) -> None:
        if self._code:
            return
        self._code = code
        fitting = reason.encode()[:_MAX_REASON_BYTES].decode(errors="ignore")
        async with self._sending:
            with suppress(WebSocketDisconnect):
                await self._socket.close(code, fitting)

    async def _watch(self) -> None:
        """Close the socket when it must not go on, whatever its client does."""
        checked_at = self._opened_at
        while True:
            await asyncio.sleep(self._terms.look_seconds)
            now = time.monotonic()
            if _is_stopping(self._socket):
                await self._finish()
            elif self._access is None and now - self._opened_at >= self._terms.init_seconds:
                await self._close(NOT_INITIALISED, "Connection initialisation timeout")
            elif now - self._opened_at >= self._terms.longest_seconds:
                await self._close(GOING_AWAY, "The socket was open for long; connect again")
            elif self._access is not None and now - checked_at >= self._terms.check_seconds:
                checked_at = now
                if not await self._key_is_good():
                    await self._close(FORBIDDEN, _NO_KEY)

    async def _finish(self) -> None:
        """Let what has an end reach it, then close.

        Subscriptions are cut off and not completed: clients take them up again when they connect
        again, which they would not do with completed ones.
        """
        for task in self._streams:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._gateway.settings.shutdown_seconds)
        await self._close(GOING_AWAY, _STOPPING)

    async def _key_is_good(self) -> bool:
        try:
            return await self._gateway.keys.find(self._authorization) is not None
        except _UNAVAILABLE:
            return True  # nobody says that it is not; it is asked again soon


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shown:
    """What a client shows in ``connection_init`` because it cannot send headers."""

    authorization: str | None
    subjects: Sequence[str] | None


def _shown(payload: Mapping[str, Any]) -> _Shown:
    given = {name.lower(): value for name, value in payload.items() if value is not None}
    authorization = given.get("authorization", given.get("apikey"))
    if authorization is not None and not isinstance(authorization, str):
        raise _invalid("payload.Authorization: A string is needed here")
    subjects = given.get(ON_BEHALF_OF.lower())
    if isinstance(subjects, str):
        subjects = [subjects]
    if subjects is not None and not _are_texts(subjects):
        raise _invalid(f"payload.{ON_BEHALF_OF}: A string or a list of them is needed here")
    return _Shown(authorization=authorization, subjects=subjects)


def _are_texts(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _id_of(message: Mapping[str, Any]) -> str:
    operation_id = message.get("id")
    if not isinstance(operation_id, str) or not operation_id:
        raise _invalid("id: A string is needed here, not an empty one")
    if len(operation_id) > _MAX_ID_CHARACTERS:
        raise _invalid(f"id: It is longer than {_MAX_ID_CHARACTERS} characters")
    return operation_id


def _payload_of(message: Mapping[str, Any], *, needed: bool = False) -> Mapping[str, Any]:
    payload = message.get("payload")
    if payload is None and not needed:
        return {}
    if not isinstance(payload, dict):
        raise _invalid("payload: An object is needed here")
    return payload


def _echo(message: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"payload": payload} if (payload := _payload_of(message)) else {}


def _invalid(problem: str) -> _End:
    return _End(BAD_MESSAGE, f"Invalid message: {problem}")


def _what_is_unavailable(error: Exception) -> str:
    if isinstance(error, KeySetUnavailable):
        return NO_KEY_SET
    _log.error("storage_unavailable", problem=str(error))
    return _NO_DATABASE


def _error(code: str, message: str, **extensions: object) -> Mapping[str, Any]:
    return {"message": message, "extensions": {"code": code, **extensions}}


def _overloaded(message: str) -> Mapping[str, Any]:
    return _error(
        "GATEWAY_OVERLOADED", message, retryable=True, retryAfterSeconds=LONGEST_RETRY_SECONDS
    )


def _is_stopping(socket: WebSocket) -> bool:
    return getattr(socket.app.state, "draining", False)
