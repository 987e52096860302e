"""What one upstream call costs the gateway's HTTP client, beside stock httpx and bare aiohttp.

    .venv/bin/python benchmarks/http_client.py [--requests 2000] [--rounds 5] [--pools 1,16,64]

Each client asks the register of `register_upstream.py`, a process of its own, for the same page of
100 users, as many at once as its pool has connections. `ProviderHttp` is what platforms call, with
all it promises: deadlines, retries, breaker, limits of size, addresses judged. CPU is this
process's. Clients take turns, round by round. Writes its section into benchmarks/RESULTS.md. Takes
a minute.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import httpx
from results import write_section

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from register_upstream import KEY  # noqa: E402 - found in the folder just named
from rosters import upstream_register  # noqa: E402 - the same

from sessions.addresses import AddressPolicy  # noqa: E402 - the product
from sessions.http import HttpLimits, ProviderHttp  # noqa: E402 - the same

OURS, STOCK, BARE = "ProviderHttp", "httpx.AsyncClient as shipped", "aiohttp by itself"
LEAST_TIMES = 5
_PATH = "/users"
_PARAMS = {"offset": 0, "limit": 100}
_HEADERS = {"authorization": f"Bearer {KEY}"}

Read = Callable[[], Awaitable[bytes]]


def main() -> int:
    """Measure, and write the table."""
    options = _options()
    pools = [int(size) for size in options.pools.split(",")]
    with upstream_register() as upstream:
        found = asyncio.run(_run(upstream.url, pools, options))
    write_section("The HTTP client", _table(found, pools, options))
    return 0


async def _run(
    url: str, pools: Sequence[int], options: argparse.Namespace
) -> Mapping[tuple[str, int], Sequence[float]]:
    found: dict[tuple[str, int], list[float]] = defaultdict(list)
    for pool in pools:
        async with AsyncExitStack() as stack:
            clients = {
                name: await stack.enter_async_context(open_client(url, pool))
                for name, open_client in ((OURS, _ours), (STOCK, _stock), (BARE, _bare))
            }
            bodies = {await read() for read in clients.values()}
            assert len(bodies) == 1, "they read something else"
            for round_ in range(options.rounds + 1):
                for name, read in clients.items():
                    microseconds = await _microseconds(read, pool, options.requests)
                    if round_:  # the first warms up
                        found[name, pool].append(microseconds)
    return found


async def _microseconds(read: Read, pool: int, requests: int) -> float:
    """Return the CPU of this process for one request."""
    left = iter(range(requests))

    async def work() -> None:
        for _ in left:
            await read()

    began = time.process_time()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(pool):
            tasks.create_task(work())
    return (time.process_time() - began) * 1e6 / requests


@asynccontextmanager
async def _ours(url: str, pool: int) -> AsyncIterator[Read]:
    policy = AddressPolicy(allowed_networks=["127.0.0.0/8"])
    limits = HttpLimits(max_connections=pool, concurrency=pool)
    async with ProviderHttp.open(url, provider_id="1", policy=policy, limits=limits) as client:

        async def read() -> bytes:
            answer = await client.request("GET", _PATH, params=_PARAMS, headers=_HEADERS)
            return answer.body

        yield read


@asynccontextmanager
async def _stock(url: str, pool: int) -> AsyncIterator[Read]:
    limits = httpx.Limits(max_connections=pool, max_keepalive_connections=pool)
    async with httpx.AsyncClient(base_url=url, limits=limits, trust_env=False) as client:

        async def read() -> bytes:
            answer = await client.get(_PATH, params=_PARAMS, headers=_HEADERS)
            return answer.content

        yield read


@asynccontextmanager
async def _bare(url: str, pool: int) -> AsyncIterator[Read]:
    connector = aiohttp.TCPConnector(limit=pool)
    async with aiohttp.ClientSession(url, connector=connector) as client:

        async def read() -> bytes:
            async with client.get(_PATH, params=_PARAMS, headers=_HEADERS) as answer:
                return await answer.read()

        yield read


def _table(
    found: Mapping[tuple[str, int], Sequence[float]],
    pools: Sequence[int],
    options: argparse.Namespace,
) -> Sequence[str]:
    median = {key: statistics.median(each) for key, each in found.items()}
    lines = [
        (
            f"A page of 100 users, {options.requests} requests a round, as many at once as the pool"
            f" has connections; medians of {options.rounds} interleaved rounds. Aimed at: at least"
            f" {LEAST_TIMES} times cheaper than stock httpx, and not growing with the pool."
        ),
        "",
        f"| client: CPU µs for one request | {' | '.join(f'pool of {pool}' for pool in pools)} |",
        f"| --- |{' --- |' * len(pools)}",
    ]
    for name in (OURS, STOCK, BARE):
        cells = " | ".join(f"{median[name, pool]:.0f}" for pool in pools)
        lines.append(f"| {name} | {cells} |")
    times = [median[STOCK, pool] / median[OURS, pool] for pool in pools]
    cells = " | ".join(
        f"{each:.1f} times, {'met' if each >= LEAST_TIMES else 'not met'}" for each in times
    )
    growth = median[OURS, pools[-1]] / median[OURS, pools[0]]
    lines += [
        f"| stock httpx / ProviderHttp | {cells} |",
        "",
        f"ProviderHttp at a pool of {pools[-1]} takes {growth:.2f} of what it takes at {pools[0]}.",
    ]
    return lines


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=2000, help="of each client in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pools", default="1,16,64")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
