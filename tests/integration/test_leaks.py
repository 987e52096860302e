"""Nothing is left behind: no task, thread, descriptor or child process, whatever callers do."""

import asyncio
import contextlib
import os
import threading
from dataclasses import dataclass
from pathlib import Path

import httpx
from running_gateway import RunningGateway, running_gateway

from simulators.kolibri.app import running
from simulators.kolibri.population import build_population
from simulators.kolibri.state import Kolibri

NESTED = "{ users { nodes { enrollments { nodes { course { title iconUrl } } } } } }"
ROUNDS = 4
CALLERS = 8
CALM_LOOKS = 10


@dataclass(frozen=True)
class Held:
    """What this process holds at the moment."""

    tasks: int
    threads: int
    descriptors: int
    children: int

    @classmethod
    def now(cls) -> "Held":
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii")
        return cls(
            tasks=len(asyncio.all_tasks()),
            threads=threading.active_count(),
            descriptors=sum(1 for _ in Path("/proc/self/fd").iterdir()),
            children=len(children.split()),
        )


async def test_rounds_of_good_bad_and_abandoned_requests_leave_nothing_behind(
    tmp_path: Path,
) -> None:
    kolibri = Kolibri(build_population())
    async with running(kolibri) as url, running_gateway(tmp_path) as gateway:
        await gateway.add_kolibri(url)
        held = []
        for _ in range(ROUNDS):
            await _round(gateway, kolibri)
            await _settled(gateway)
            held.append(Held.now())

    # The first round opens pools and decoders; later ones may close idle connections, and what
    # is left behind in every round makes the last the largest of all.
    for name in ("tasks", "threads", "descriptors", "children"):
        counts = [getattr(each, name) for each in held[1:]]
        assert counts[-1] <= max(counts[:-1]), held


async def test_a_stopped_gateway_holds_nothing_any_more(tmp_path: Path) -> None:
    kolibri = Kolibri(build_population())
    async with running(kolibri) as url:
        before = Held.now()
        for number in range(2):
            async with running_gateway(tmp_path / str(number)) as gateway:
                await gateway.add_kolibri(url)
                await _round(gateway, kolibri)
        after = await _at_rest(before)

    assert after.tasks <= before.tasks
    assert after.children == before.children
    assert after.descriptors <= before.descriptors + 1  # the resolver's, shared by the process


async def _round(gateway: RunningGateway, kolibri: Kolibri) -> None:
    good = [gateway.graphql(NESTED) for _ in range(CALLERS)]
    bad = [gateway.get("/api/users", params={"id": "nobody"}) for _ in range(CALLERS)]
    await asyncio.gather(*good, *bad)
    kolibri.delete_sessions()
    await asyncio.gather(*(gateway.users() for _ in range(CALLERS)))
    kolibri.latency_seconds = 0.2
    try:
        await asyncio.gather(*(_abandoned(gateway) for _ in range(CALLERS)))
    finally:
        kolibri.latency_seconds = 0


async def _abandoned(gateway: RunningGateway) -> None:
    async with httpx.AsyncClient(base_url=gateway.url, headers=gateway.client.headers) as client:
        with contextlib.suppress(httpx.TimeoutException):
            await client.post("/graphql", json={"query": NESTED}, timeout=0.05)


async def _at_rest(before: Held) -> Held:
    """Return what is held once connections had time to close, on a busy machine too."""
    deadline = asyncio.get_running_loop().time() + 15
    while True:
        after = Held.now()
        at_rest = after.descriptors <= before.descriptors + 1 and after.children == before.children
        if at_rest or asyncio.get_running_loop().time() > deadline:
            return after
        await asyncio.sleep(0.1)


async def _settled(gateway: RunningGateway) -> None:
    """Wait until requests nobody waits for have ended, and connections with them."""
    await gateway.get("/health")
    deadline = asyncio.get_running_loop().time() + 15
    calm = 0
    before = Held.now()
    while calm < CALM_LOOKS and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.1)
        after = Held.now()
        calm = calm + 1 if after == before else 0
        before = after
