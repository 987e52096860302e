"""Small queries while whole rosters are exported from the same server: how long do they wait?

    .venv/bin/pip install --require-hashes -r benchmarks/peers/requirements.lock
    .venv/bin/python benchmarks/beside_exports.py [--seconds 15] [--rounds 2] [--export 10000]

One caller, a process of its own, asks for the whole roster again and again. Two others ask for ten
users each, with a pause after every answer. Contestants and data are those of `engine.py`: the
gateway with all its protections, Strawberry tuned, Yoga and Mercurius with and without JIT. They
take turns; each is asked alone first, with no export under way. Writes its section into
benchmarks/RESULTS.md. Takes 5 minutes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from results import write_section

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from contestants import (  # noqa: E402 - found in the folder just named
    ContestantMissing,
    Program,
    peer,
    peer_versions,
    python_server,
)
from engine_contestants import NODE, QUERY, TUNED  # noqa: E402 - the same
from rosters import (  # noqa: E402 - the same
    Asker,
    Taken,
    decoded,
    opened,
    roster_gateway,
    upstream_register,
)

GATEWAY = "gateway"
UNSEEN = "gateway, each export a selection not seen before"
SMALL = 10
CALLERS = 2
PAUSE_SECONDS = 0.01
MOST_MILLISECONDS = 50


def main() -> int:
    """Measure, and write the table."""
    options = _options()
    try:
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            _run(stack, Path(folder), options)
    except ContestantMissing as missing:
        print(missing, file=sys.stderr)
        return 2
    return 0


def _run(stack: ExitStack, folder: Path, options: argparse.Namespace) -> None:
    upstream = stack.enter_context(upstream_register(users=options.export))
    ours = stack.enter_context(roster_gateway(folder, {"1": upstream}, max_age_seconds="86400"))
    asker, roster = Asker(ours), folder / "roster.json"
    asker.ask(QUERY, SMALL)
    roster.write_bytes(asker.ask(QUERY, options.export))
    programs = {
        TUNED: python_server("engine_contestants:app", folder, CONTESTANT=TUNED, ROSTER=str(roster))
    }
    if not options.without_node:
        for name, (server, jit) in NODE.items():
            programs[name] = peer(server, jit=jit, ROSTER=str(roster))
    servers = {GATEWAY: ours, UNSEEN: ours, **opened(stack, programs)}
    _check_alike(servers)
    alone: dict[str, Taken] = defaultdict(Taken)
    beside: dict[str, Taken] = defaultdict(Taken)
    exports: dict[str, Taken] = defaultdict(Taken)
    for _ in range(options.rounds):
        for name, server in servers.items():
            alone[name].waits += _small_waits(server, options.seconds / 3)
            with _exporting(server, options.export, unseen=name == UNSEEN) as waits:
                beside[name].waits += _small_waits(server, options.seconds)
            exports[name].waits += waits
    memory = {name: server.resident_mib() for name, server in servers.items()}
    write_section(
        "Small queries beside whole exports", _table(options, alone, beside, exports, memory)
    )


def _check_alike(servers: Mapping[str, Program]) -> None:
    answers = {name: decoded(Asker(server).ask(QUERY, SMALL)) for name, server in servers.items()}
    assert all(answer == answers[GATEWAY] for answer in answers.values()), "answers differ"


def _small_waits(server: Program, seconds: float) -> list[float]:
    """Return what each small query took, in milliseconds, of two callers side by side."""
    with ThreadPoolExecutor(CALLERS) as callers:
        found = callers.map(lambda _: _paced(server, seconds), range(CALLERS))
        return [wait for waits in found for wait in waits]


def _paced(server: Program, seconds: float) -> list[float]:
    asker, waits = Asker(server), []
    asker.ask(QUERY, SMALL)
    ends = time.perf_counter() + seconds
    while (began := time.perf_counter()) < ends:
        asker.ask(QUERY, SMALL)
        waits.append((time.perf_counter() - began) * 1000)
        time.sleep(PAUSE_SECONDS)
    return waits


@contextmanager
def _exporting(server: Program, size: int, *, unseen: bool) -> Iterator[list[float]]:
    """Have another process export all the while; fill the list yielded with what each took."""
    spawned = multiprocessing.get_context("spawn")
    here, there = spawned.Pipe()
    process = spawned.Process(
        target=_export,
        args=(server.url, dict(server.headers), size),
        kwargs={"unseen": unseen, "pipe": there},
        daemon=True,
    )
    process.start()
    waits: list[float] = []
    assert here.recv() == "begun"
    try:
        yield waits
    finally:
        here.send("enough")
        waits += here.recv()
        process.join(60)


def _export(
    url: str, headers: dict[str, str], size: int, *, unseen: bool, pipe: Connection
) -> None:
    asker, waits = Asker(Program(url=url, process=None, headers=headers)), []  # type: ignore[arg-type]  # it is asked only
    asker.ask(QUERY, size)
    pipe.send("begun")
    begun = time.time_ns()  # no earlier process has had it
    while not pipe.poll():
        alias = f"t{begun + len(waits)}: title"
        began = time.perf_counter()
        asker.ask(QUERY.replace("title", alias) if unseen else QUERY, size)
        waits.append((time.perf_counter() - began) * 1000)
    pipe.send(waits)


def _table(
    options: argparse.Namespace,
    alone: Mapping[str, Taken],
    beside: Mapping[str, Taken],
    exports: Mapping[str, Taken],
    memory: Mapping[str, float],
) -> Sequence[str]:
    lines = [
        (
            f"Two callers ask for {SMALL} users each, with a pause of"
            f" {PAUSE_SECONDS * 1000:.0f} ms after every answer, while a third exports"
            f" {options.export:,} users again and again; document and data as in the section on"
            f" whole rosters. {options.rounds} interleaved rounds of {options.seconds} s. Aimed at:"
            f" a 99th percentile under {MOST_MILLISECONDS} ms beside exports."
        ),
        "",
        (
            "| contestant | alone: p50 / p99 ms | beside exports: p50 / p99 / longest ms | met"
            " | small queries | exports | median ms | resident MiB |"
        ),
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, taken in beside.items():
        met = "yes" if taken.quantile(0.99) < MOST_MILLISECONDS else "no"
        lines.append(
            f"| {name} | {alone[name].quantile(0.5):.1f} / {alone[name].quantile(0.99):.1f}"
            f" | {taken.quantile(0.5):.1f} / {taken.quantile(0.99):.1f} / {max(taken.waits):.1f}"
            f" | {met} | {len(taken.waits)} | {len(exports[name].waits)}"
            f" | {statistics.median(exports[name].waits):.0f} | {memory[name]:.0f} |"
        )
    return [*lines, "", f"_{peer_versions()}_"]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=15, help="beside exports, in each round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--export", type=int, default=10_000, help="how many users")
    parser.add_argument("--without-node", action="store_true", help="leave Yoga and Mercurius out")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
