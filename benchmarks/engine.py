"""Plans beside Strawberry and endpoints written by hand: CPU, latency and memory of nested lists.

    .venv/bin/python benchmarks/engine.py [--sizes 10,100,1000,10000] [--rounds 3]

Asks each contestant of ``engine_contestants.py`` for users with their enrollments and courses,
all of which it has in memory: in this process, and as a server of its own over HTTP. Contestants
take turns, round by round, so that whatever else the machine does meets all of them. Every answer
is compared with the expected one. CPU is of the server's process; where one answer takes less than
the clock can tell, many are measured together. orjson takes part when it is installed. Writes its
table into benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import msgspec
from results import write_section

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from contestants import Program, python_server  # noqa: E402 - found in the folder just named
from engine_contestants import (  # noqa: E402 - the same
    QUERY,
    SHIPPED,
    Answering,
    by_hand,
    contestants,
)

ENOUGH_USERS = 3000


def main() -> None:
    """Measure, and write the table."""
    options = _options()
    sizes = [int(size) for size in options.sizes.split(",")]
    names = [name for name in contestants() if not (options.without_shipped and name == SHIPPED)]
    in_process = asyncio.run(_in_process(names, sizes, options.rounds))
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        servers = {
            name: stack.enter_context(
                python_server(
                    "engine_contestants:app",
                    Path(folder),
                    fast=name != SHIPPED,
                    CONTESTANT=name,
                    SIZE=str(max(sizes)),
                )
            )
            for name in names
        }
        over_http = _over_http(servers, sizes, options.rounds)
        memory = {name: server.resident_mib() for name, server in servers.items()}
    write_section("Compiled plans: nested lists", _table(sizes, in_process, over_http, memory))


Figures = Mapping[tuple[str, int], float]


async def _in_process(names: Sequence[str], sizes: Sequence[int], rounds: int) -> Figures:
    answering = {name: contestants()[name]() for name in names}
    figures: dict[tuple[str, int], list[float]] = defaultdict(list)
    for size in sizes:
        for name in names:
            _judge(await answering[name](_asked(size)), name, size)
        for _ in range(rounds):
            for name in names:
                figures[name, size].append(await _cpu_of(answering[name], size, _times(size, name)))
    return {key: statistics.median(found) for key, found in figures.items()}


async def _cpu_of(answering: Answering, size: int, times: int) -> float:
    began = time.process_time()
    for _ in range(times):
        await answering(_asked(size))
    return (time.process_time() - began) * 1000 / times


def _over_http(
    servers: Mapping[str, Program], sizes: Sequence[int], rounds: int
) -> Mapping[tuple[str, int], tuple[float, float, float]]:
    """Return the server's CPU, and the median and 99th percentile of latency, in milliseconds."""
    cpu: dict[tuple[str, int], list[float]] = defaultdict(list)
    waits: dict[tuple[str, int], list[float]] = defaultdict(list)
    with httpx.Client(timeout=120, trust_env=False) as client:
        for size in sizes:
            for name, server in servers.items():
                _judge(client.post(server.url, json=_asked(size)).content, name, size)
            for _ in range(rounds):
                for name, server in servers.items():
                    times = (1 if name == SHIPPED else 4) * _times(
                        size, name
                    )  # the clock of processes has ticks of 10 ms
                    before = server.cpu_seconds()
                    for _ in range(times):
                        began = time.perf_counter()
                        client.post(server.url, json=_asked(size)).raise_for_status()
                        waits[name, size].append((time.perf_counter() - began) * 1000)
                    cpu[name, size].append((server.cpu_seconds() - before) * 1000 / times)
    return {
        key: (
            statistics.median(found),
            statistics.median(waits[key]),
            sorted(waits[key])[int(len(waits[key]) * 0.99)],
        )
        for key, found in cpu.items()
    }


def _times(size: int, name: str) -> int:
    """Return how often a contestant is asked in a round; the slow one, a tenth as often."""
    return max(1, ENOUGH_USERS // size // (10 if name == SHIPPED else 1))


def _asked(size: int) -> dict[str, Any]:
    return {"query": QUERY, "variables": {"first": size}}


def _judge(answer: bytes, name: str, size: int) -> None:
    assert msgspec.json.decode(answer) == by_hand(size), f"{name} answers {size} users otherwise"


def _table(
    sizes: Sequence[int],
    in_process: Figures,
    over_http: Mapping[tuple[str, int], tuple[float, float, float]],
    memory: Mapping[str, float],
) -> Sequence[str]:
    columns = " | ".join(f"{size:,}" for size in sizes)
    lines = [
        (
            "Users with five enrollments each, in 200 courses, all in memory; 35 fields a user."
            " CPU in ms for one answer, JSON included, medians of rounds in which contestants take"
            " turns. The servers' endpoints parse and validate a document once, except Strawberry's"
            " own, and have none of the gateway's protections."
        ),
        "",
        f"| in this process: CPU ms for N users | {columns} |",
        f"| --- |{' --- |' * len(sizes)}",
    ]
    for name in memory:
        cells = " | ".join(f"{in_process[name, size]:.3g}" for size in sizes)
        lines.append(f"| {name} | {cells} |")
    lines += [
        "",
        f"| over HTTP: server CPU / p50 / p99 ms | {columns} | resident MiB |",
        f"| --- |{' --- |' * len(sizes)} --- |",
    ]
    for name, resident in memory.items():
        cells = " | ".join(
            " / ".join(f"{figure:.3g}" for figure in over_http[name, size]) for size in sizes
        )
        lines.append(f"| {name} | {cells} | {resident:.0f} |")
    return lines


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", default="10,100,1000,10000")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--without-shipped", action="store_true", help="it takes the longest")
    return parser.parse_args()


if __name__ == "__main__":
    main()
