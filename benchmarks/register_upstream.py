"""A school register for benchmarks: users in pages of 100, and answers about 100 ids at once.

    .venv/bin/python benchmarks/register_upstream.py --port 8090 [--users 10000] [--latency 0.02]

Each user has five enrollments, each of them in one of 200 courses. Every answer is made before it
is asked for the first time, so that this server costs little beside those that are measured.

    GET  /about
    GET  /users?offset=0&limit=100          a page, with the number of all users
    GET  /users?ids=u1,u2                   up to 100 users
    GET  /enrollments?user_ids=u1,u2        of up to 100 users
    GET  /courses?offset=0&limit=100, /courses?ids=c1,c2
    GET  /_control/counts, POST /_control/reset, POST /_control/latency?seconds=0.02
"""

from __future__ import annotations

import argparse
import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from functools import cache
from typing import Any
from urllib.parse import parse_qs

import msgspec
import uvicorn

AT_ONCE = 100
COURSES = 200
ENROLLMENTS = 5
KEY = "register-key"

Row = Mapping[str, str | None]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def user(place: int) -> Row:
    """Return the user at a place."""
    return {
        "id": f"u{place}",
        "name": f"Zoë Müller {place}",
        "email": f"user{place}@example.org",
        "username": f"user{place}",
    }


def enrollments(place: int) -> list[Row]:
    """Return what the user at a place is enrolled in."""
    return [
        {
            "id": f"e{place}-{nth}",
            "user_id": f"u{place}",
            "course_id": f"c{(place * 7 + nth * 13) % COURSES}",
            "role": ("STUDENT", "TEACHER")[(place + nth) % 2],
            "state": ("ACTIVE", "COMPLETED")[(place * nth) % 2],
        }
        for nth in range(ENROLLMENTS)
    ]


def course(place: int) -> Row:
    """Return the course at a place."""
    return {
        "id": f"c{place}",
        "title": f"Kurs für Ökologie {place}",
        "code": None if place % 7 == 0 else f"OEK-{place}",
    }


class Register:
    """The memory of one installation.

    Attributes:
        calls: By path.
        latency_seconds: How long every answer takes.
    """

    def __init__(self, *, users: int, latency_seconds: float) -> None:
        self.users = users
        self.calls: Counter[str] = Counter()
        self.latency_seconds = latency_seconds
        self._answers: dict[tuple[str, bytes], bytes] = {}

    async def __call__(self, scope: MutableMapping[str, Any], _receive: object, send: Send) -> None:
        """Answer one call, and count it."""
        path, query = scope["path"], scope["query_string"]
        if path.startswith("/_control/"):
            await _respond(send, 200, self._control(path, query))
            return
        if (b"authorization", f"Bearer {KEY}".encode()) not in scope["headers"]:
            await _respond(send, 401, b"{}")
            return
        self.calls[path] += 1
        body = self._answers.get((path, query))
        if body is None:
            body = self._answers[path, query] = msgspec.json.encode(self._found(path, query))
        if self.latency_seconds:
            await asyncio.sleep(self.latency_seconds)
        await _respond(send, 200, body)

    def _control(self, path: str, query: bytes) -> bytes:
        if path == "/_control/reset":
            self.calls.clear()
        elif path == "/_control/latency":
            self.latency_seconds = float(parse_qs(query.decode())["seconds"][0])
        return msgspec.json.encode({"calls": self.calls, "total": self.calls.total()})

    def _found(self, path: str, query: bytes) -> object:
        asked = {name: values[0] for name, values in parse_qs(query.decode()).items()}
        if path == "/about":
            return {"name": "Register", "version": "1"}
        if path == "/enrollments":
            return [row for place in _places(asked["user_ids"]) for row in enrollments(place)]
        row_at, total = (user, self.users) if path == "/users" else (course, COURSES)
        if "ids" in asked:
            return [row_at(place) for place in _places(asked["ids"]) if place < total]
        first, limit = int(asked["offset"]), min(int(asked["limit"]), AT_ONCE)
        rows = [row_at(place) for place in range(first, min(first + limit, total))]
        return {"total": total, "rows": rows}


def _places(ids: str) -> Iterable[int]:
    found = [int(each[1:]) for each in ids.split(",")]
    assert len(found) <= AT_ONCE, "more ids than one call may name"
    return found


@cache
def _start(status: int, length: int) -> MutableMapping[str, Any]:
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(length).encode()),
    ]
    return {"type": "http.response.start", "status": status, "headers": headers}


async def _respond(send: Send, status: int, body: bytes) -> None:
    await send(_start(status, len(body)))
    await send({"type": "http.response.body", "body": body})


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--port", type=int, default=8090)
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds, of every answer")
    options = parser.parse_args()
    register = Register(users=options.users, latency_seconds=options.latency)
    uvicorn.run(register, port=options.port, log_level="warning", access_log=False, lifespan="off")


if __name__ == "__main__":
    main()
