"""A whole Canvas, read in every way there is: calls, refusals and seconds at 50 ms a call.

    .venv/bin/python benchmarks/canvas_export.py [--latency 0.05]

One simulated Canvas with 10 000 users, 1 000 courses and 60 000 enrollments, in a process of its
own, its buckets leaking as Canvas's do by default. The gateway reads everything as its export does,
through the way it chooses by counting calls and through each of the others; beside it, in the same
run, a client as one writes it first (canvasapi, one course after another) and one that starts a
task for every course. Counts are the simulator's own. Writes its table into benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from canvasapi import Canvas as CanvasClient
from results import write_section

from sessions.addresses import LOCAL_NETWORKS, AddressPolicy
from sessions.base import Page
from sessions.http import HttpLimits
from sessions.manager import SessionManager, new_owner
from sessions.platforms.canvas import CanvasSession
from sessions.registry import Registry
from sessions.strategies import listening
from simulators.canvas.state import ADMIN_TOKEN
from storage.cache import CacheStore
from storage.credentials import KeyRing, Secret
from storage.database import open_database
from storage.leases import LeaseStore
from storage.providers import ProviderStore
from storage.records import ProviderState

ROOT = Path(__file__).resolve().parent.parent
_USER_IDS = [str(number) for number in range(1, 10_001)]  # of the simulator's large data set


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one contestant got, and what it cost."""

    name: str
    rows: int
    calls: int
    throttled: int
    seconds: float


class Server:
    """The simulator, asked through its control plane."""

    def __init__(self, url: str) -> None:
        self.url = url

    def control(self, action: str, body: Mapping[str, Any] | None = None) -> Any:
        """Ask or change something no real Canvas has."""
        request = urllib.request.Request(
            f"{self.url}/_control/{action}",
            data=None if body is None else json.dumps(body).encode(),
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    async def race(self, name: str, contestant: Callable[[], Awaitable[int]]) -> Outcome:
        """Let one contestant run on empty buckets, and count."""
        self.control("reset", {})
        began_at = time.perf_counter()
        rows = await contestant()
        seconds = time.perf_counter() - began_at
        counts = self.control("counts")
        outcome = Outcome(
            name=name,
            rows=rows,
            calls=counts["total"],
            throttled=counts["throttled"],
            seconds=seconds,
        )
        print(outcome, flush=True)
        return outcome


async def main() -> int:
    """Run all contestants and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--latency", type=float, default=0.05)
    latency = parser.parse_args().latency
    with _simulator(latency) as server:
        outcomes = await _outcomes(server)
    title = "Whole Canvas, simulated"
    write_section(title, _table(outcomes, latency))
    return 0


async def _outcomes(server: Server) -> list[Outcome]:
    outcomes = []
    async with _session(server.url, {}) as session:
        outcomes += [
            await server.race("users: the account's list", lambda: _walk(session.list_users)),
            await server.race("courses: the account's list", lambda: _walk(session.list_courses)),
        ]
        with listening() as choices:
            outcome = await server.race("", lambda: _walk(session.list_enrollments))
        chosen = choices[0].chosen
        outcomes.append(_named(outcome, f"enrollments: {chosen} (chosen)"))
    async with _session(server.url, {"graphql": "never"}) as session:
        outcomes.append(
            await server.race(
                "enrollments: rest by course", lambda: _walk(session.list_enrollments)
            )
        )
        outcomes.append(await server.race("enrollments: rest by user", lambda: _by_user(session)))
    async with _session(server.url, {}) as session:
        outcomes.append(
            await server.race("enrollments: graphql by user", lambda: _graphql_by_user(session))
        )
    outcomes.append(
        await server.race(
            "enrollments: canvasapi, one course after another",
            lambda: asyncio.to_thread(_one_after_another, server.url),
        )
    )
    outcomes.append(
        await server.race("enrollments: a task for every course", lambda: _all_at_once(server.url))
    )
    return outcomes


def _named(outcome: Outcome, name: str) -> Outcome:
    return Outcome(
        name=name,
        rows=outcome.rows,
        calls=outcome.calls,
        throttled=outcome.throttled,
        seconds=outcome.seconds,
    )


def _table(outcomes: list[Outcome], latency: float) -> list[str]:
    chosen = next(each for each in outcomes if "chosen" in each.name)
    return [
        "Simulated Canvas, profile hosted-now: 10 000 users, 1 000 courses, 60 000 enrollments.",
        f"Default bucket, {latency * 1000:.0f} ms a call.",
        "Fewer than 60 000 enrollments are enrollments lost.",
        "",
        "| what, and how | rows | calls | throttled | seconds | calls against the chosen way |",
        "| --- | --- | --- | --- | --- | --- |",
        *(
            f"| {each.name} | {each.rows} | {each.calls} | {each.throttled} | {each.seconds:.1f} |"
            + (f" {each.calls / chosen.calls:.1f} |" if "enrollments" in each.name else " |")
            for each in outcomes
        ),
    ]


async def _walk(read: Callable[..., Awaitable[Page[Any]]]) -> int:
    """Read a list to its end as an export does."""
    rows, position = 0, None
    while True:
        page = await read(position=position, limit=1000)
        rows += len(page.items)
        position = page.next_position
        if position is None:
            return rows


async def _by_user(session: CanvasSession) -> int:
    reader, rows = session._reader, 0  # noqa: SLF001 - a way it would never choose
    ids = iter(_USER_IDS)

    async def work_off() -> None:
        nonlocal rows
        for user_id in ids:
            found = await reader._read_user_enrollments(user_id)  # noqa: SLF001 - the same
            rows += len(found or ())

    await asyncio.gather(*(work_off() for _ in range(6)))
    return rows


async def _graphql_by_user(session: CanvasSession) -> int:
    reader = session._reader  # noqa: SLF001 - a way it would never choose for everybody
    graph = reader._graph(await reader._known())  # noqa: SLF001 - the same
    found = await graph.by_user(_USER_IDS)
    return sum(len(rows) for rows in found.values())


def _one_after_another(url: str) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of http://
        account = CanvasClient(url, ADMIN_TOKEN).get_account(1)
    states = ["active", "invited", "creation_pending", "completed", "inactive", "rejected"]
    return sum(
        1
        for course in account.get_courses(per_page=100)
        for _ in course.get_enrollments(per_page=100, state=states)
    )


async def _all_at_once(url: str) -> int:
    """Read every course in a task of its own, believing every answer."""
    headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    limits = httpx.Limits(max_connections=1000)
    async with httpx.AsyncClient(
        base_url=url, headers=headers, timeout=120, trust_env=False, limits=limits
    ) as http:
        ids: list[int] = []
        for page in range(1, 11):
            answer = await http.get(
                "/api/v1/accounts/1/courses", params={"per_page": 100, "page": page}
            )
            ids += [course["id"] for course in answer.json()]

        async def read(course_id: int) -> int:
            path = f"/api/v1/courses/{course_id}/enrollments"
            answer = await http.get(path, params={"per_page": 100, "state[]": "active"})
            return len(answer.json()) if answer.status_code == httpx.codes.OK else 0

        return sum(await asyncio.gather(*map(read, ids)))


@asynccontextmanager
async def _session(url: str, options: Mapping[str, str]) -> AsyncIterator[CanvasSession]:
    with tempfile.TemporaryDirectory() as scratch:
        async with open_database(f"sqlite:///{Path(scratch) / 'gateway.db'}") as database:
            key_ring = KeyRing.parse(f"k1:{base64.b64encode(bytes(32)).decode()}")
            providers = ProviderStore(database, key_ring)
            await providers.add(
                id="2",
                platform="canvas",
                name="Simulated Canvas",
                base_url=url,
                options=options,
                credentials=Secret({"api_key": ADMIN_TOKEN}),
                state=ProviderState.ACTIVE,
            )
            manager = SessionManager(
                providers=providers,
                leases=LeaseStore(database, key_ring, owner=new_owner()),
                cache=CacheStore(database),
                registry=Registry.discover(),
                policy=AddressPolicy(allowed_networks=LOCAL_NETWORKS),
                limits=HttpLimits(total_seconds=300),
            )
            try:
                async with manager.session("2") as session:
                    assert isinstance(session, CanvasSession)
                    await session.list_users(position=None, limit=1)  # logs in
                    yield session
            finally:
                await manager.aclose()


@contextmanager
def _simulator(latency: float) -> Iterator[Server]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "simulators.canvas", "--large", "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--latency", str(latency)], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    server = Server(f"http://127.0.0.1:{port}")
    try:
        for _ in range(100):
            try:
                server.control("counts")
                break
            except OSError:
                time.sleep(0.2)
        yield server
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
