"""Answers that come in pieces: server-sent events, and bodies of several parts.

Source:
    https://github.com/enisdenjo/graphql-sse/blob/master/PROTOCOL.md, distinct connections mode
    https://www.apollographql.com/docs/graphos/routing/operations/subscriptions/multipart-protocol
    https://github.com/graphql/graphql-over-http/blob/main/rfcs/IncrementalDelivery.md
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import anyio
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from gateway.negotiation import EVENTS, MULTIPART
from schema.engine import pieces_of

_LOOK_SECONDS: Final = 1.0
_BEAT_SECONDS: Final = 12.0  # proxies cut off what is silent for longer, some after 15
_PART: Final = b"\r\nContent-Type: application/json; charset=utf-8\r\n\r\n%b\r\n--graphql"

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Framing:
    """How pieces are told from each other.

    Attributes:
        media_type: As the answer's header has it.
        piece: A piece around its JSON.
        opening: Comes first, and shows the caller at once that it has begun.
        beat: Says that there is nothing to say; nothing where that cannot be said.
        ending: Comes last.
    """

    media_type: str
    piece: bytes
    opening: bytes
    beat: bytes
    ending: bytes

    def write(self, answer: Mapping[str, Any]) -> bytes:
        """Return one piece."""
        return self.piece % b"".join(pieces_of(answer))


EVENT_STREAM: Final = Framing(
    media_type=f"{EVENTS}; charset=utf-8",
    piece=b"event: next\ndata: %b\n\n",
    opening=b":\n\n",
    beat=b":\n\n",
    ending=b"event: complete\ndata: \n\n",
)
# The line that ends a part also shows that the part is whole, so it does not wait for the next one.
PARTS: Final = Framing(
    media_type=f'{MULTIPART}; boundary="graphql"',
    piece=_PART,
    opening=b"\r\n--graphql",
    beat=b"",
    ending=b"--\r\n",
)
PAYLOADS: Final = Framing(
    media_type=f'{MULTIPART}; boundary="graphql"; subscriptionSpec="1.0"',
    piece=_PART.replace(b"%b", b'{"payload":%b}'),
    opening=b"\r\n--graphql",
    beat=_PART.replace(b"%b", b"{}"),
    ending=b"--\r\n",
)


class Steps(Generic[T]):
    """Takes an async generator step by step, all in one context: what it sets there stays set.

    Whoever ends an answer is another task than the one that began it.
    """

    def __init__(self, generator: AsyncGenerator[T, None]) -> None:
        self._generator = generator
        self._context = copy_context()
        self._seen: asyncio.Task[T | None] | None = None

    async def peek(self) -> T | None:
        """Return what ``following`` will give next."""
        self._seen = self.following()
        return await self._seen

    def following(self) -> asyncio.Task[T | None]:
        """Begin the next step; ``None`` comes of it when there is none."""
        if self._seen is not None:
            seen, self._seen = self._seen, None
            return seen

        async def step() -> T | None:
            return await anext(self._generator, None)

        return asyncio.get_running_loop().create_task(step(), context=self._context)

    async def aclose(self) -> None:
        """End the generator, whether it has begun or not."""

        async def close() -> None:
            await self._generator.aclose()

        await asyncio.get_running_loop().create_task(close(), context=self._context)


async def written(
    answers: Steps[T],
    framing: Framing,
    *,
    body_of: Callable[[T], Mapping[str, Any]],
    may_go_on: Callable[[], Awaitable[bool]],
    is_stopping: Callable[[], bool],
    beat_seconds: float = _BEAT_SECONDS,
) -> AsyncGenerator[bytes, None]:
    """Yield answers as pieces, with beats while there are none, until they end or must.

    What is cut off lacks its ending: for clients the difference between being done and having to
    ask again.
    """
    yield framing.opening
    beat_at = time.monotonic()
    waiting = answers.following()
    try:
        while not is_stopping():
            await asyncio.wait({waiting}, timeout=min(_LOOK_SECONDS, beat_seconds))
            if waiting.done():
                answer = waiting.result()
                if answer is None:
                    yield framing.ending
                    break
                waiting = answers.following()
                yield framing.write(body_of(answer))
            if time.monotonic() - beat_at >= beat_seconds:
                beat_at = time.monotonic()
                if not await may_go_on():
                    break
                if framing.beat:
                    yield framing.beat
    finally:
        with anyio.CancelScope(shield=True):
            waiting.cancel()
            await asyncio.wait({waiting})
            await answers.aclose()


async def only(answer: Mapping[str, Any], framing: Framing) -> AsyncGenerator[bytes, None]:
    """Yield an answer that is one piece."""
    yield (b"" if framing is EVENT_STREAM else framing.opening) + framing.write(answer)
    yield framing.ending


class Streamed(StreamingResponse):
    """An answer in pieces; whatever makes them ends when the caller goes away.

    Args:
        pieces: Are sent.
        framing: Of the pieces.
        answers: What they are made of, if that has begun already.
    """

    def __init__(
        self,
        pieces: AsyncGenerator[bytes, None],
        framing: Framing,
        *,
        answers: Steps[Any] | None = None,
    ) -> None:
        super().__init__(
            pieces,
            headers={"Vary": "Accept", "Cache-Control": "no-store", "X-Accel-Buffering": "no"},
            media_type=framing.media_type,
        )
        self._pieces = pieces
        self._answers = answers

    async def stream_response(self, send: Send) -> None:
        """Send the pieces, and end whatever makes them."""
        try:
            await super().stream_response(send)
        finally:
            with anyio.CancelScope(shield=True):
                await self._pieces.aclose()
                if self._answers is not None:
                    await self._answers.aclose()


class LongAnswer(Response):
    """An answer whose JSON is written while it is sent; nothing can go wrong with it any more.

    Between two pieces others have their turn, and the caller is waited for.

    Args:
        pieces: Of the JSON.
        status_code: HTTP's.
        headers: Of the answer.
        media_type: Of the answer.
    """

    def __init__(
        self,
        pieces: Iterable[bytes],
        status_code: int,
        *,
        headers: Mapping[str, str],
        media_type: str,
    ) -> None:
        self._pieces = pieces
        self.status_code = status_code
        self.media_type = media_type
        self.background = None
        self.init_headers(headers)

    def init_headers(self, headers: Mapping[str, str] | None = None) -> None:
        """Make the headers, without a length that nobody knows yet."""
        given = {**(headers or {}), "Content-Type": self.media_type or ""}
        self.raw_headers = [
            (name.lower().encode("latin-1"), value.encode("latin-1"))
            for name, value in given.items()
        ]

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        """Send the pieces; of them all, only the length to who asks for the head alone."""
        if scope["method"] == "HEAD":
            length = str(sum(map(len, self._pieces))).encode()
            self.raw_headers.append((b"content-length", length))
            self._pieces = ()
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
        )
        for piece in self._pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b""})
