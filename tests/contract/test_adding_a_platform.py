"""The platform of docs/adding-a-platform.md keeps every promise, as it stands on that page."""

import asyncio
import re
import secrets
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest
import uvicorn
from session_contract import Installation, SessionContract
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sessions.base import Platform

PAGE = Path(__file__).resolve().parents[2] / "docs" / "adding-a-platform.md"


@dataclass
class PretendSlate:
    """A school register with tokens."""

    pupils: int
    rooms: int
    tokens: set[str] = field(default_factory=set)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        app = Starlette(
            routes=[
                Route("/token", self.log_in, methods=["POST"]),
                Route("/{what}", self.answer, methods=["GET", "DELETE"]),
            ]
        )
        config = uvicorn.Config(app, log_level="warning", lifespan="off")
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:  # noqa: ASYNC110 - uvicorn offers no event to wait for
            await asyncio.sleep(0.005)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        await task
        listener.close()

    async def log_in(self, request: Request) -> Response:
        if (await request.json())["password"] != "right":
            return Response(status_code=401)
        token = secrets.token_urlsafe(32)
        self.tokens.add(token)
        return JSONResponse({"token": token})

    async def answer(self, request: Request) -> Response:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token not in self.tokens:
            return Response(status_code=401)
        if request.method == "DELETE":
            self.tokens.discard(token)
        return JSONResponse(self.content().get(request.path_params["what"], {}))

    def content(self) -> dict[str, object]:
        pupils = [f"p{number}" for number in range(self.pupils)]
        return {
            "about": {"version": "3.1", "school": "Slate School"},
            "pupils": [
                {"id": id_, "login": id_, "name": f"Pupil {id_}", "role": "pupil"} for id_ in pupils
            ],
            "rooms": [
                {"id": f"r{number}", "title": f"Room {number}", "members": pupils[number:-1:3]}
                for number in range(self.rooms)
            ],
        }


@dataclass(frozen=True, kw_only=True)
class SlateInstallation(Installation):
    server: PretendSlate

    async def lose_sessions(self) -> None:
        self.server.tokens.clear()


@pytest.fixture(scope="module")
def slate() -> Iterator[Platform]:
    (code,) = re.findall(r"```python\n(\"\"\"Slate,.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    module = ModuleType("slate_platform")
    sys.modules[module.__name__] = module  # msgspec looks types up there
    exec(compile(code, str(PAGE), "exec"), module.__dict__)
    platform = module.PLATFORM
    assert isinstance(platform, Platform)
    yield platform
    del sys.modules[module.__name__]


class TestSlate(SessionContract):
    @pytest.fixture
    async def installation(self, slate: Platform) -> AsyncIterator[Installation]:
        server = PretendSlate(pupils=30, rooms=6)
        async with server.running() as url:
            yield SlateInstallation(
                platform=slate,
                base_url=url,
                credentials={"username": "office", "password": "right"},
                wrong_credentials={"username": "office", "password": "canary-wrong"},
                unknown_user_id="nobody",
                unknown_course_id="nowhere",
                role_words=frozenset({"pupil"}),
                server=server,
            )
