"""Starts the gateway in front of the register, and asks contestants for its roster."""

from __future__ import annotations

import http.client
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec
from contestants import Program, free_port, gateway, register, running
from register_upstream import KEY

_HERE = Path(__file__).parent
_SECONDS = 300
_SETTLE_SECONDS = 0.005


class Asker:
    """One connection to one contestant."""

    def __init__(self, program: Program) -> None:
        """Connect when it is asked first."""
        url = urlsplit(program.url)
        self.program = program
        self._path = url.path or "/"
        self._headers = {**program.headers, "Content-Type": "application/json"}
        self._connection = http.client.HTTPConnection(
            url.hostname or "", url.port, timeout=_SECONDS
        )

    def ask(self, query: str, first: int, name: str = "Roster") -> bytes:
        """Return the answer, which must be 200."""
        body = {"query": query, "operationName": name, "variables": {"first": first}}
        answer = self._answer(msgspec.json.encode(body))
        content = answer.read()
        assert answer.status == 200, content[:1000]
        return content

    def _answer(self, body: bytes) -> http.client.HTTPResponse:
        try:
            self._connection.request("POST", self._path, body, self._headers)
            return self._connection.getresponse()
        except (ConnectionError, http.client.HTTPException):  # closed while nobody asked
            self._connection.close()
            self._connection.request("POST", self._path, body, self._headers)
            return self._connection.getresponse()

    def cpu_seconds(self) -> float:
        """Return what the contestant's process has spent on processors."""
        time.sleep(_SETTLE_SECONDS)  # what runs on another core is accounted for when it pauses
        return self.program.cpu_seconds()


@dataclass(kw_only=True)
class Taken:
    """What answers took.

    Attributes:
        cpu: Of the server's process for one answer, in milliseconds, one of each round.
        waits: From question to answer, in milliseconds, one of each answer.
    """

    cpu: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)

    def quantile(self, share: float) -> float:
        """Return what so many of the waits are not above."""
        return sorted(self.waits)[min(int(len(self.waits) * share), len(self.waits) - 1)]


@contextmanager
def upstream_register(*, users: int = 10_000, latency: float = 0.0) -> Iterator[Program]:
    """Serve the register."""
    port = free_port()
    command = [sys.executable, str(_HERE / "register_upstream.py"), "--port", str(port)]
    command += ["--users", str(users), "--latency", str(latency)]
    with running(command, f"http://127.0.0.1:{port}", ready="/_control/counts") as program:
        yield program


@contextmanager
def roster_gateway(
    folder: Path, registers: Mapping[str, Program], **settings: str
) -> Iterator[Program]:
    """Serve the gateway, with each register as a provider, by its id."""
    wanted = {
        "max_page_size": "10000",
        "max_nested_rows": "100000",
        "max_key_cost": "0",
        "max_upstream_calls": "2000",
        "log_level": "warning",
        **settings,
    }
    packages = _packaged_platform(folder / "packages")
    with gateway(folder / "gateway", extra_path=packages, **wanted) as program:
        for provider_id, upstream in registers.items():
            register(program, provider_id, type="register", url=upstream.url, api_key=KEY)
        yield Program(
            url=f"{program.url}/graphql", process=program.process, headers=program.headers
        )


def calls_of(program: Program) -> int:
    """Return how many calls a register has answered since ``forget_calls``."""
    answer = httpx.get(f"{program.url}/_control/counts", trust_env=False)
    total: int = answer.raise_for_status().json()["total"]
    return total


def forget_calls(program: Program) -> None:
    """Have a register count from nought."""
    httpx.post(f"{program.url}/_control/reset", trust_env=False).raise_for_status()


def measure(asker: Asker, taken: Taken, questions: Sequence[tuple[str, int]]) -> None:
    """Ask a round of questions, and note what each took."""
    before = asker.cpu_seconds()
    for query, first in questions:
        began = time.perf_counter()
        asker.ask(query, first)
        taken.waits.append((time.perf_counter() - began) * 1000)
    taken.cpu.append((asker.cpu_seconds() - before) * 1000 / len(questions))


def decoded(answer: bytes) -> Any:
    """Return an answer's data, without what it says of itself."""
    body = msgspec.json.decode(answer)
    assert "errors" not in body, body["errors"]
    return {"data": body["data"]}


def opened(stack: ExitStack, programs: Mapping[str, Any]) -> dict[str, Program]:
    """Start what is to be compared, one after the other."""
    return {name: stack.enter_context(program) for name, program in programs.items()}


def _packaged_platform(folder: Path) -> Path:
    """Lay the register's platform out as an installed package is; return where."""
    metadata = folder / "register_platform-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(
        "Metadata-Version: 2.4\nName: register-platform\nVersion: 1.0\n", "utf-8"
    )
    (metadata / "entry_points.txt").write_text(
        "[learning_gateway.platforms]\nregister = register_platform:PLATFORM\n", "utf-8"
    )
    (folder / "register_platform.py").symlink_to(_HERE / "register_platform.py")
    return folder
