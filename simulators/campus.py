"""A made-up school register: courses come whole, people one by one; it counts who asks what.

    python -m simulators.campus --port 8090

For `examples/third-party-platform`. There is no way to ask for several people at once, which is
what makes a gateway in front of it call once for every course, unless it knows better.

    GET  /about            name and version
    GET  /courses          all courses, each with its teacher's id
    GET  /users/{id}       one person
    GET  /_control/counts  calls by path
    POST /_control/reset   forget them

In a test's own process: `async with running(Campus()) as url`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

KEY = "campus-key"


class Campus:
    """The memory of one installation; course n is taught by teacher n modulo their number.

    Attributes:
        calls: By path.
        latency_seconds: How long every answer takes.
    """

    def __init__(self, *, courses: int = 20, teachers: int = 5) -> None:
        self.courses = [
            {"id": f"c{n:02}", "title": f"Course {n:02}", "teacher_id": f"t{n % teachers}"}
            for n in range(courses)
        ]
        self.people = {f"t{n}": {"id": f"t{n}", "name": f"Teacher {n}"} for n in range(teachers)}
        self.calls: Counter[str] = Counter()
        self.latency_seconds = 0.0

    async def answer(self, request: Request) -> Response:
        """Answer one call, and count it."""
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return JSONResponse({"error": "The key does not hold"}, status_code=401)
        self.calls[request.url.path] += 1
        await asyncio.sleep(self.latency_seconds)
        found = self._find(request.url.path)
        return JSONResponse(found, status_code=404 if found is None else 200)

    def _find(self, path: str) -> object:
        if path == "/about":
            return {"name": "Campus", "version": "1"}
        if path == "/courses":
            return self.courses
        return self.people.get(path.removeprefix("/users/"))

    async def counts(self, _request: Request) -> Response:
        """Tell the calls."""
        return JSONResponse({"calls": dict(self.calls), "total": self.calls.total()})

    async def reset(self, _request: Request) -> Response:
        """Forget the calls."""
        self.calls.clear()
        return JSONResponse({"done": "reset"})


def app_for(campus: Campus) -> Starlette:
    """Return an ASGI application over a memory that the caller keeps."""
    return Starlette(
        routes=[
            Route("/_control/counts", campus.counts),
            Route("/_control/reset", campus.reset, methods=["POST"]),
            Route("/{path:path}", campus.answer),
        ]
    )


@contextlib.asynccontextmanager
async def running(campus: Campus, *, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """Serve on a real socket and yield the URL, without a slash; port 0 takes any free one."""
    with socket.create_server((host, port), backlog=2048) as listener:
        # asyncio does this for sockets of its own making only; without it each answer takes 40 ms
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        config = uvicorn.Config(
            app_for(campus), log_level="warning", access_log=False, lifespan="off"
        )
        server = _Server(config)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            while not server.started:  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.005)
            yield f"http://{host}:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await task


class _Server(uvicorn.Server):
    """A server that leaves signals to the program around it: two of them would fight."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def main(arguments: list[str] | None = None) -> int:
    """Read the command line and serve; returns when interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m simulators.campus", description="Serve a simulated Campus."
    )
    parser.add_argument("--port", type=int, default=8090, help="port to listen on")
    parser.add_argument("--courses", type=int, default=20)
    parser.add_argument("--teachers", type=int, default=5)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds added to every answer")
    chosen = parser.parse_args(arguments)
    campus = Campus(courses=chosen.courses, teachers=chosen.teachers)
    campus.latency_seconds = chosen.latency
    asyncio.run(_serve(campus, port=chosen.port))
    return 0


async def _serve(campus: Campus, *, port: int) -> None:
    interrupted = asyncio.Event()
    async with running(campus, port=port) as url:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, interrupted.set)
        print(f"Simulated Campus on {url} (key {KEY})", flush=True)
        await interrupted.wait()


if __name__ == "__main__":
    sys.exit(main())
