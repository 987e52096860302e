"""A proxy in front of any simulated platform that spoils answers: `python -m simulators.faulty`.

It asks the platform behind it, keeps the answers to what only reads, and hands them on; each that
is to be spoiled, in one of the ways of ``FAULTS``. Which, and how, is decided by a seed. Paths that
log in are left alone, since a provider that refuses logins is asked for nothing else.

Whatever a spoiled answer says holds ``CANARY``, so that a caller can tell if any of it gets
through; only ``changed`` answers do not: those are the platform's own, but for one value.

With ``--port`` it serves by itself, on as many ports as there are ``--target`` URLs. Each line of
standard input is answered with what was injected so far, as one line of JSON; a number sets the
share of answers to spoil from now on, and an empty line ends it.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import random
import socket
import struct
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

CANARY = "upstream-canary-7f3a"
LOGIN_PATHS = ("/api/auth/session", "/login/")
_SLOWEST_SECONDS = 20.0
_DRIP_SECONDS = 0.1
_MOST_KEPT = 20_000
_WRONG_SHAPES: Sequence[Any] = (
    None,
    17,
    True,
    CANARY,
    [],
    {},
    [[]],
    [None],
    [CANARY],
    {"results": None},
    {"results": CANARY, "count": CANARY},
    {"results": [{}], "count": -1, "total_pages": 1, "page": 1},
    {"data": None},
    {"data": {"account": None}, "errors": [{"message": CANARY}]},
    {"error": CANARY},
    [{"id": None, "name": CANARY}],
    {"id": {CANARY: 1}},
)
_OTHER_VALUES: Sequence[Any] = (
    None,
    "",
    "x",
    0,
    -1,
    2**70,
    1e308,
    True,
    [],
    {},
    [None],
    {"a": 1},
    "2026-13-45T99:99:99Z",
    "9" * 400,
    "\u0000",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the platform said: the head's lines without those of length and encoding."""

    status: int
    lines: Sequence[str]
    body: bytes

    def encoded(
        self, body: bytes | None = None, *, status: int | None = None, more: str = ""
    ) -> bytes:
        """Return the whole message, with another body or status if they are given."""
        content = self.body if body is None else body
        head = [f"HTTP/1.1 {status or self.status} Answer", *self.lines]
        return (
            "\r\n".join([*head, f"content-length: {len(content)}{more}", "", ""]).encode() + content
        )


@dataclass(kw_only=True)
class Spoiling:
    """One answer on its way to a caller.

    Attributes:
        closed: Whether the connection is of no more use.
    """

    answer: Answer
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    dice: random.Random
    path: str
    closed: bool = False

    async def say(self, message: bytes) -> None:
        """Send bytes."""
        self.writer.write(message)
        await self.writer.drain()

    async def end(self) -> None:
        """Close the connection in good order."""
        self.closed = True
        self.writer.close()

    async def reset(self) -> None:
        """Break the connection off."""
        self.closed = True
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def stay_silent(self) -> None:
        """Wait until the other side has enough."""
        self.closed = True
        with suppress(TimeoutError):
            async with asyncio.timeout(_SLOWEST_SECONDS):
                await self.reader.read()

    def parts(self) -> tuple[bytes, bytes]:
        """Return head and body apart."""
        whole = self.answer.encoded()
        head, _, body = whole.partition(b"\r\n\r\n")
        return head + b"\r\n\r\n", body


async def _closed_before(it: Spoiling) -> None:
    await it.end()


async def _reset_before(it: Spoiling) -> None:
    await it.reset()


async def _half_a_head(it: Spoiling) -> None:
    head, _ = it.parts()
    await it.say(head[: len(head) // 2])
    await it.end()


async def _half_a_body(it: Spoiling) -> None:
    head, body = it.parts()
    await it.say(head + body[: len(body) // 2])
    await it.end()


async def _reset_in_body(it: Spoiling) -> None:
    head, body = it.parts()
    await it.say(head + body[: len(body) // 2])
    await asyncio.sleep(0.002)
    await it.reset()


async def _slow_drip(it: Spoiling) -> None:
    head, body = it.parts()
    await it.say(head)
    ends_at = asyncio.get_running_loop().time() + _SLOWEST_SECONDS
    for place in range(len(body)):
        if it.reader.at_eof() or asyncio.get_running_loop().time() > ends_at:
            break
        await it.say(body[place : place + 1])
        await asyncio.sleep(_DRIP_SECONDS)
    await it.end()


async def _no_answer(it: Spoiling) -> None:
    await it.stay_silent()


async def _late_first_byte(it: Spoiling) -> None:
    await asyncio.sleep(it.dice.uniform(0.02, 0.3))
    await it.say(it.answer.encoded())


async def _server_error(it: Spoiling) -> None:
    status = it.dice.choice([500, 501, 502, 503, 504, 508, 520])
    body = json.dumps({"error": CANARY, "trace": f"Traceback {CANARY}"}).encode()
    await it.say(it.answer.encoded(body, status=status))


async def _client_error(it: Spoiling) -> None:
    status = it.dice.choice([400, 404, 405, 406, 410, 418, 422])
    await it.say(it.answer.encoded(json.dumps([{"id": CANARY}]).encode(), status=status))


async def _html(it: Spoiling) -> None:
    body = f"<!DOCTYPE html><html><title>{CANARY}</title><h1>Sign in</h1></html>".encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: {len(body)}\r\n\r\n"
    await it.say(head.encode() + body)


async def _wrong_json(it: Spoiling) -> None:
    body = it.answer.body
    broken = [
        body[:-1],
        body + CANARY.encode(),
        b"{'a': '" + CANARY.encode() + b"'}",
        b'{"a": "' + CANARY.encode(),
        b"[1, NaN, Infinity]",
        b"[" * 5000 + CANARY.encode(),
        b'{"a": "\xff\xfe"}',
        b"\xef\xbb\xbf[]",
        b"",
        b"while(1);" + body,
    ]
    await it.say(it.answer.encoded(it.dice.choice(broken)))


async def _wrong_shape(it: Spoiling) -> None:
    await it.say(it.answer.encoded(json.dumps(it.dice.choice(_WRONG_SHAPES)).encode()))


async def _changed(it: Spoiling) -> None:
    try:
        content = json.loads(it.answer.body)
    except ValueError:
        content = []
    for _ in range(it.dice.randint(1, 3)):
        content = _with_another_value(content, it.dice)
    await it.say(it.answer.encoded(json.dumps(content).encode()))


def _with_another_value(content: Any, dice: random.Random) -> Any:
    """Return the content with one value, anywhere in it, replaced or left out."""
    if isinstance(content, dict) and content and dice.random() < 0.9:
        name = dice.choice(sorted(content))
        if dice.random() < 0.1:
            return {each: value for each, value in content.items() if each != name}
        return content | {name: _with_another_value(content[name], dice)}
    if isinstance(content, list) and content and dice.random() < 0.9:
        place = dice.randrange(len(content))
        return [
            _with_another_value(value, dice) if number == place else value
            for number, value in enumerate(content)
        ]
    return dice.choice(_OTHER_VALUES)


async def _truncated_gzip(it: Spoiling) -> None:
    packed = gzip.compress(it.answer.body + b" " * 100)
    await _say_packed(it, packed[: it.dice.randrange(1, len(packed))])


async def _broken_gzip(it: Spoiling) -> None:
    packed = bytearray(gzip.compress(it.answer.body + CANARY.encode()))
    packed[it.dice.randrange(len(packed))] ^= 0xFF
    await _say_packed(it, it.dice.choice([bytes(packed), it.answer.body, b""]))


async def _gzip_bomb(it: Spoiling) -> None:
    await _say_packed(it, _BOMB)


_BOMB = gzip.compress(bytes(40 * 1024 * 1024), compresslevel=9)


async def _say_packed(it: Spoiling, packed: bytes) -> None:
    lines = "\r\n".join([*it.answer.lines, "content-encoding: gzip"])
    head = f"HTTP/1.1 200 OK\r\n{lines}\r\ncontent-length: {len(packed)}\r\n\r\n"
    await it.say(head.encode() + packed)


async def _bad_chunks(it: Spoiling) -> None:
    lines = "\r\n".join(it.answer.lines)
    head = f"HTTP/1.1 200 OK\r\n{lines}\r\ntransfer-encoding: chunked\r\n\r\n"
    chunks = [
        b"zz\r\n" + CANARY.encode() + b"\r\n",
        b"10\r\nshort\r\n0\r\n\r\n",
        b"5\r\nhello world\r\n0\r\n\r\n",
        b"-5\r\nhello\r\n",
        b"ffffffffffffffffff\r\nx",
        b"4\r\n[1, \r\n",
    ]
    await it.say(head.encode() + it.dice.choice(chunks))
    await it.end()


async def _redirect_loop(it: Spoiling) -> None:
    target = it.dice.choice(
        [it.path, f"/{CANARY}", f"//a.example/{CANARY}", f"http://a.example/?{CANARY}", CANARY]
    )
    status = it.dice.choice([301, 302, 303, 307, 308])
    head = f"HTTP/1.1 {status} Elsewhere\r\nlocation: {target}\r\ncontent-length: 0\r\n\r\n"
    await it.say(head.encode())


async def _huge(it: Spoiling) -> None:
    await it.say(b"HTTP/1.1 200 OK\r\ncontent-length: 10000000000\r\n\r\n[")
    await it.stay_silent()


async def _too_long_a_length(it: Spoiling) -> None:
    head, body = it.parts()
    await it.say(head.replace(b"content-length: ", b"content-length: 1", 1) + body)
    await it.end()


async def _too_short_a_length(it: Spoiling) -> None:
    _, body = it.parts()
    kept = body[: len(body) // 2]
    await it.say(it.answer.encoded(kept) + body[len(kept) :] + CANARY.encode())


async def _not_http(it: Spoiling) -> None:
    said = [
        b"SSH-2.0-" + CANARY.encode() + b"\r\n\r\n",
        b"HTTP/1.1 abc " + CANARY.encode() + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon " + CANARY.encode() + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n[]",
        b"HTTP/9.9 200 OK\r\ncontent-length: 2\r\n\r\n[]",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"HTTP/1.1 200 OK\r\nx-filler: " + b"x" * 20_000 + b"\r\n\r\n",
        b"\r\n\r\n\r\n",
    ]
    await it.say(it.dice.choice(said))
    await it.end()


async def _closed_after(it: Spoiling) -> None:
    await it.say(it.answer.encoded())
    await it.end()


Fault = Callable[[Spoiling], Awaitable[None]]

FAULTS: dict[str, Fault] = {
    "closed before the answer": _closed_before,
    "reset before the answer": _reset_before,
    "half a head": _half_a_head,
    "half a body": _half_a_body,
    "reset in the body": _reset_in_body,
    "slow drip": _slow_drip,
    "no answer": _no_answer,
    "late first byte": _late_first_byte,
    "5xx": _server_error,
    "4xx": _client_error,
    "HTML with 200": _html,
    "wrong JSON": _wrong_json,
    "JSON of the wrong shape": _wrong_shape,
    "JSON with changed values": _changed,
    "truncated gzip": _truncated_gzip,
    "broken gzip": _broken_gzip,
    "gzip bomb": _gzip_bomb,
    "bad chunks": _bad_chunks,
    "redirect loop": _redirect_loop,
    "huge body": _huge,
    "length too long": _too_long_a_length,
    "length too short": _too_short_a_length,
    "not HTTP": _not_http,
    "closed after the answer": _closed_after,
}
RARE = {"slow drip": 0.1, "no answer": 0.1, "huge body": 0.3, "gzip bomb": 0.05}
"""What takes long, or much computing, is injected less often, by this factor."""


@dataclass(kw_only=True)
class FaultyUpstream:
    """The proxy.

    Attributes:
        target: URL of the platform, as ``http://host:port``.
        seed: Of everything that is decided by chance.
        share: Of the answers that are spoiled, between 0 and 1; may be changed at any time.
        rarity: How much less often than the others a fault is injected.
        injected: How often each fault was injected.
        passed: How many answers were handed on unspoiled.
    """

    target: str
    seed: int
    share: float
    rarity: Mapping[str, float] = field(default_factory=lambda: RARE)
    injected: Counter[str] = field(default_factory=Counter)
    passed: int = 0
    _kept: dict[bytes, Answer] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._dice = random.Random(self.seed)
        self._names = list(FAULTS)
        self._weights = [self.rarity.get(name, 1.0) for name in FAULTS]

    @asynccontextmanager
    async def listening(self, *, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
        """Serve, and yield the URL, without a slash."""
        server = await asyncio.start_server(self._accept, host, port)
        try:
            yield f"http://{host}:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - it is one
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while not writer.is_closing() and await self._exchange(reader, writer):
                    pass
        finally:
            writer.transport.abort()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; return whether the connection can carry another."""
        request = await _read_request(reader)
        method, path = request.split(b" ", 2)[:2]
        answer = await self._ask(method, request)
        name = self._fault(path.decode())
        if name is None:
            self.passed += 1
            writer.write(answer.encoded())
            await writer.drain()
            return True
        self.injected[name] += 1
        it = Spoiling(
            answer=answer, reader=reader, writer=writer, dice=self._dice, path=path.decode()
        )
        await FAULTS[name](it)
        return not it.closed

    def _fault(self, path: str) -> str | None:
        if path.startswith(LOGIN_PATHS) or self._dice.random() >= self.share:
            return None
        return self._dice.choices(self._names, self._weights)[0]

    async def _ask(self, method: bytes, request: bytes) -> Answer:
        found = self._kept.get(request)
        if found is None:
            found = await self._asked(request)
            reads = method == b"GET" or b"/api/graphql" in request[:100]
            if reads and found.status == 200 and len(self._kept) < _MOST_KEPT:
                self._kept[request] = found
        return found

    async def _asked(self, request: bytes) -> Answer:
        host, _, port = self.target.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(request.replace(b"\r\n", b"\r\nconnection: close\r\n", 1))
            return _answer(await reader.read())
        finally:
            writer.close()


async def _read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = 0
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            length = int(line.partition(b":")[2])
    return head + await reader.readexactly(length)


def _answer(received: bytes) -> Answer:
    """Return what a server said that closed the connection afterwards."""
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    dropped = ("content-length:", "transfer-encoding:", "connection:", "content-encoding:")
    if "transfer-encoding: chunked" in head.decode("latin-1").lower():
        body = _joined_chunks(body)
    if "content-encoding: gzip" in head.decode("latin-1").lower():
        body = gzip.decompress(body)
    return Answer(
        status=int(first.split(" ")[1]),
        lines=[line for line in lines if not line.lower().startswith(dropped)],
        body=body,
    )


def _joined_chunks(body: bytes) -> bytes:
    parts = []
    while body:
        size, _, rest = body.partition(b"\r\n")
        length = int(size, 16)
        parts.append(rest[:length])
        body = rest[length + 2 :] if length else b""
    return b"".join(parts)


def main(arguments: list[str] | None = None) -> int:
    """Read the command line and serve; returns when standard input says so."""
    parser = argparse.ArgumentParser(prog="python -m simulators.faulty")
    parser.add_argument("--target", action="append", required=True, help="URL; may be repeated")
    parser.add_argument("--port", type=int, action="append", required=True, help="as many")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--share", type=float, default=0.0)
    chosen = parser.parse_args(arguments)
    asyncio.run(_serve(chosen))
    return 0


async def _serve(chosen: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        proxies = []
        for number, (target, port) in enumerate(zip(chosen.target, chosen.port, strict=True)):
            proxy = FaultyUpstream(target=target, seed=chosen.seed + number, share=chosen.share)
            await stack.enter_async_context(proxy.listening(port=port))
            proxies.append(proxy)
        print("ready", flush=True)
        while line := (await loop.run_in_executor(None, sys.stdin.readline)).strip():
            for proxy in proxies if line.replace(".", "").isdigit() else ():
                proxy.share = float(line)
            injected = sum((proxy.injected for proxy in proxies), Counter[str]())
            passed = sum(proxy.passed for proxy in proxies)
            print(json.dumps({"injected": injected, "passed": passed}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
