"""Whole rosters in memory: the gateway beside its peers over HTTP, and plans by themselves.

    .venv/bin/pip install --require-hashes -r benchmarks/peers/requirements.lock
    .venv/bin/python benchmarks/engine.py [--sizes 10,100,1000,10000] [--rounds 3] [--without-node]

All are asked the same document for users with five enrollments each, in 200 courses. The gateway is
`learning-gateway serve` with all its protections and an API key; its platform is the register of
`register_upstream.py`, whose rows it has kept, so that no upstream call is made. What it answers
first is what all others hold in memory and must answer too: Strawberry, Ariadne, an endpoint
written by hand and ready dictionaries (`engine_contestants.py`), Yoga and Mercurius with and
without JIT (`peers/server.js`).

Contestants take turns, round by round, so that whatever else the machine does meets all of them.
One caller asks over one connection. CPU is of the server's process, all its threads. Where the
gateway reads a selection it has not seen before, each document has another alias, so nothing made
for an earlier one helps, and parsing, validating and compiling are in the figure. The last table
takes those apart. Writes its section into benchmarks/RESULTS.md. Takes 6 to 10 minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

from graphql import parse
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
from engine_contestants import (  # noqa: E402 - the same
    BY_HAND,
    IN_PROCESS,
    NODE,
    OVER_HTTP,
    QUERY,
    SHIPPED,
    Answering,
    answer_of,
    contestant,
    users,
)
from rosters import (  # noqa: E402 - the same
    Asker,
    Taken,
    calls_of,
    decoded,
    forget_calls,
    measure,
    opened,
    roster_gateway,
    upstream_register,
)

from schema import build_schema  # noqa: E402 - the product
from schema.execution import GatewaySchema  # noqa: E402 - the same
from schema.incremental import WholeExecutor  # noqa: E402 - the same
from schema.validation import validate  # noqa: E402 - the same

GATEWAY = "gateway"
UNSEEN = "gateway, a selection not seen before"
ROUND_SECONDS = 0.5
MOST_A_ROUND = 300
SLOW_SECONDS = 3.0
MOST_MIB = 100
COLD_MILLISECONDS = 5

Table = Mapping[tuple[str, int], Taken]


def main() -> int:
    """Measure, and write the tables."""
    options = _options()
    sizes = [int(size) for size in options.sizes.split(",")]
    try:
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            _run(stack, Path(folder), sizes, options)
    except ContestantMissing as missing:
        print(missing, file=sys.stderr)
        return 2
    return 0


def _run(stack: ExitStack, folder: Path, sizes: Sequence[int], options: argparse.Namespace) -> None:
    upstream = stack.enter_context(upstream_register(users=max(sizes)))
    ours = stack.enter_context(roster_gateway(folder, {"1": upstream}, max_age_seconds="86400"))
    empty = ours.resident_mib()
    roster = _fill(ours, sizes, folder)
    servers = {GATEWAY: ours, **opened(stack, _peers(folder, roster, options))}
    forget_calls(upstream)
    over_http = _over_http(servers, sizes, options.rounds)
    assert calls_of(upstream) == 0, "the gateway had not kept everything"
    memory = {name: server.resident_mib() for name, server in servers.items()}
    in_process = asyncio.run(_in_process(sizes, options.rounds))
    lines = [
        *_about(options),
        *_http_table(over_http, sizes, memory),
        *_targets(over_http, sizes, memory),
        f"The gateway held {empty:.0f} MiB before it was asked for anything.",
        "",
        *_process_table(in_process, sizes),
        *_cold_table(),
    ]
    write_section("Whole rosters in memory, beside peers", lines)


def _fill(ours: Program, sizes: Sequence[int], folder: Path) -> Path:
    """Have the gateway keep every page it will be asked for; return a file of the longest."""
    asker = Asker(ours)
    for size in sizes:
        answer = asker.ask(QUERY, size)
        assert len(decoded(answer)["data"]["users"]["nodes"]) == size
    roster = folder / "roster.json"
    roster.write_bytes(asker.ask(QUERY, max(sizes)))
    os.environ["ROSTER"] = str(roster)
    return roster


def _peers(folder: Path, roster: Path, options: argparse.Namespace) -> Mapping[str, Any]:
    names = [name for name in OVER_HTTP if not (options.without_shipped and name == SHIPPED)]
    programs: dict[str, Any] = {
        name: python_server(
            "engine_contestants:app",
            folder,
            fast=name != SHIPPED,
            CONTESTANT=name,
            ROSTER=str(roster),
        )
        for name in names
    }
    if not options.without_node:
        for name, (server, jit) in NODE.items():
            programs[name] = peer(server, jit=jit, ROSTER=str(roster))
    return programs


def _over_http(servers: Mapping[str, Program], sizes: Sequence[int], rounds: int) -> Table:
    found: dict[tuple[str, int], Taken] = defaultdict(Taken)
    askers = {name: Asker(server) for name, server in servers.items()}
    askers[UNSEEN] = askers[GATEWAY]
    for size in sizes:
        seconds = {name: _warmed(name, asker, size) for name, asker in askers.items()}
        for round_ in range(rounds):
            for name, asker in askers.items():
                if round_ < _rounds(rounds, seconds[name]):
                    questions = [(_document(name), size)] * _times(seconds[name])
                    if name == UNSEEN:
                        questions = [(_document(name), size) for _ in questions]
                    measure(asker, found[name, size], questions)
    return found


def _warmed(name: str, asker: Asker, size: int) -> float:
    """Judge an answer, ask as often as a round does, and return what the last answer took."""
    query = _document(name)
    answer = asker.ask(query, size)
    if name == UNSEEN:
        alias = query.partition(": title")[0].rpartition(" ")[2]
        answer = answer.replace(f'"{alias}":'.encode(), b'"title":')
    assert decoded(answer) == answer_of(size), f"{name} answers {size} users otherwise"
    ends = time.perf_counter() + ROUND_SECONDS
    while True:
        began = time.perf_counter()
        asker.ask(_document(name), size)
        if time.perf_counter() >= ends:
            return time.perf_counter() - began


_unseen = 0


def _document(name: str) -> str:
    """Return the document, or one that was never sent before."""
    global _unseen  # noqa: PLW0603 - a script's own count
    if name != UNSEEN:
        return QUERY
    _unseen += 1
    return QUERY.replace("title", f"t{_unseen}: title")


async def _in_process(sizes: Sequence[int], rounds: int) -> Table:
    answering = {name: contestant(name) for name in IN_PROCESS}
    users()
    gc.freeze()  # each would be charged for the others' objects
    found: dict[tuple[str, int], Taken] = defaultdict(Taken)
    for size in sizes:
        body = {"query": QUERY, "variables": {"first": size}}
        seconds = {}
        for name, answered in answering.items():
            assert decoded(await answered(body)) == answer_of(size), name
            seconds[name] = await _cpu_seconds(answered, body, 1)
        for round_ in range(rounds):
            for name, answered in answering.items():
                if round_ < _rounds(rounds, seconds[name]):
                    cpu = await _cpu_seconds(answered, body, _times(seconds[name]))
                    found[name, size].cpu.append(cpu * 1000)
    return found


async def _cpu_seconds(answered: Answering, body: Mapping[str, Any], times: int) -> float:
    gc.collect()
    began = time.process_time()
    for _ in range(times):
        await answered(body)
    return (time.process_time() - began) / times


def _times(seconds: float) -> int:
    """Return how often to ask in a round, by what one answer takes."""
    return max(1, min(MOST_A_ROUND, int(ROUND_SECONDS / seconds)))


def _rounds(rounds: int, seconds: float) -> int:
    """Return in how many rounds to take part: the slowest answers are much alike."""
    return min(rounds, 2) if seconds > SLOW_SECONDS else rounds


def _about(options: argparse.Namespace) -> Sequence[str]:
    return [
        (
            "Users with five enrollments each, in 200 courses, all in memory; the same document for"
            f" all: `{QUERY}`. Every answer is equal to the gateway's. One caller, the median of"
            f" rounds in which contestants take turns: {options.rounds}, or 2 where an answer takes"
            f" more than {SLOW_SECONDS:.0f} s."
        ),
        "",
    ]


def _http_table(found: Table, sizes: Sequence[int], memory: Mapping[str, float]) -> Sequence[str]:
    columns = " | ".join(f"{size:,}" for size in sizes)
    lines = [
        f"| over HTTP: server CPU / p50 / p99 ms for N users | {columns} | resident MiB |",
        f"| --- |{' --- |' * len(sizes)} --- |",
    ]
    names = dict.fromkeys(name for name, _ in found)
    for name in sorted(names, key=lambda name: _cpu(found, name, max(sizes))):
        cells = " | ".join(_cell(found[name, size]) for size in sizes)
        resident = f"{memory[name]:.0f}" if name in memory else ""
        lines.append(f"| {name} | {cells} | {resident} |")
    lines += [
        "",
        (
            f"_Strawberry {version('strawberry-graphql')}, Ariadne {version('ariadne')},"
            f" orjson {version('orjson')}; {peer_versions()}_"
        ),
        "",
    ]
    return lines


def _cell(taken: Taken) -> str:
    figures = (statistics.median(taken.cpu), taken.quantile(0.5), taken.quantile(0.99))
    return " / ".join(f"{figure:.3g}" for figure in figures)


def _cpu(found: Table, name: str, size: int) -> float:
    return statistics.median(found[name, size].cpu)


def _targets(found: Table, sizes: Sequence[int], memory: Mapping[str, float]) -> Sequence[str]:
    """Compare CPU with what is aimed at."""
    lines = ["| aimed at | figure | met |", "| --- | --- | --- |"]
    names = {name for name, _ in found}

    def line(what: str, figure: float, *, met: bool, unit: str = "times") -> None:
        lines.append(f"| {what} | {figure:.3g} {unit} | {'yes' if met else 'no'} |")

    most = max(sizes)
    if SHIPPED in names:
        for what, name, least in (
            ("a selection not seen before", UNSEEN, 50),
            ("a roster read again", GATEWAY, 250),
        ):
            times = _cpu(found, SHIPPED, most) / _cpu(found, name, most)
            title = f"{most:,} users, {what}: at least {least} times Strawberry as shipped"
            line(title, times, met=times >= least)
    for name in (UNSEEN, GATEWAY):
        times = _cpu(found, name, most) / _cpu(found, BY_HAND, most)
        line(f"{most:,} users, {name}: not slower than the endpoint by hand", times, met=times <= 1)
    rival = next(iter(NODE))
    for size in sizes if rival in names else ():
        times = _cpu(found, GATEWAY, size) / _cpu(found, rival, size)
        line(f"{size:,} users: not slower than {rival}", times, met=times <= 1)
    mib = memory[GATEWAY]
    line(f"at most {MOST_MIB} MiB resident", mib, met=mib <= MOST_MIB, unit="MiB")
    return [*lines, ""]


def _process_table(found: Table, sizes: Sequence[int]) -> Sequence[str]:
    columns = " | ".join(f"{size:,}" for size in sizes)
    lines = [
        f"| in one process, without HTTP: CPU ms for N users | {columns} |",
        f"| --- |{' --- |' * len(sizes)}",
    ]
    for name in IN_PROCESS:
        cells = " | ".join(f"{_cpu(found, name, size):.3g}" for size in sizes)
        lines.append(f"| {name} | {cells} |")
    return [*lines, ""]


def _cold_table() -> Sequence[str]:
    """Measure what a document costs when it is seen for the first time."""
    lines = [
        (
            "A document the gateway has not seen before, medians of 30: CPU ms. *Read* is all that"
            " comes before execution: limits of the text, parsing, limits of the tree, validation,"
            f" the model of its cost. Aimed at: {COLD_MILLISECONDS} ms in all."
        ),
        "",
        "| document | parsed | validated | read | compiled | in all | met |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    documents = {"the roster above": (QUERY, {"first": 10})}
    variables = {"userId": "x"}
    for path in sorted((ROOT / "graphql" / "operations").glob("*.graphql")):
        documents[path.name] = (path.read_text("utf-8"), variables)
    for name, (text, values) in documents.items():
        parsed, validated, read, compiled = _cold(text, values)
        whole = read + compiled
        met = "yes" if whole < COLD_MILLISECONDS else "no"
        figures = " | ".join(f"{each:.2f}" for each in (parsed, validated, read, compiled, whole))
        lines.append(f"| {name} | {figures} | {met} |")
    return lines


def _cold(text: str, variables: Mapping[str, Any]) -> Sequence[float]:
    schema = build_schema()
    assert isinstance(schema, GatewaySchema)
    found: list[tuple[float, ...]] = []
    for number in range(31):
        unseen = f"{text}\n# {number}"
        node, parsed = _spent(lambda unseen=unseen: parse(unseen))
        errors, validated = _spent(
            lambda node=node: validate(schema._schema, node, max_errors=8)  # noqa: SLF001 - as the product does
        )
        assert not errors, errors
        document, read = _spent(lambda unseen=unseen: schema.documents.read(unseen))
        executor = WholeExecutor.build(
            schema._schema,  # noqa: SLF001 - the same
            document.node,
            raw_variable_values={
                name: value for name, value in variables.items() if f"${name}" in text
            },
            operation_extensions={},
        )
        assert isinstance(executor, WholeExecutor), executor
        plan, compiled = _spent(
            lambda document=document, executor=executor: schema.engine.plan(document.node, executor)
        )
        assert not isinstance(plan, str), plan
        found.append((parsed, validated, read, compiled))
    return [statistics.median(column) for column in zip(*found[1:], strict=True)]


def _spent(work: Callable[[], Any]) -> tuple[Any, float]:
    began = time.process_time()
    done = work()
    return done, (time.process_time() - began) * 1000


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sizes", default="10,100,1000,10000")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--without-shipped", action="store_true", help="it takes the longest")
    parser.add_argument("--without-node", action="store_true", help="leave Yoga and Mercurius out")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
