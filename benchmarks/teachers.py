"""20 courses with 5 teachers over one REST upstream: how many calls does a gateway make?

    .venv/bin/python benchmarks/teachers.py [--rounds 200] [--without-hive]

The upstream (`simulators/campus.py`) gives all courses in one call, and people one by one. Six
calls answer every question here: the courses, and each teacher once. The gateway talks to it
through `examples/third-party-platform`, found by its entry point as an installed package would be.

Calls are the upstream's own counts, after the gateway's answers have grown too old to be served.
CPU is the process's own, user and system, over many requests in a row, with the calls that each of
them made: live (`maxAge: 0`), and from what the gateway keeps, which Hive Gateway does not do here.
Writes its section into benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from contestants import (
    ROOT,
    ContestantMissing,
    Program,
    gateway,
    hive_gateway,
    hive_versions,
    register,
    upstream,
)
from results import write_section

from simulators.campus import KEY

PACKAGE = ROOT / "examples" / "third-party-platform"
_AT_ONCE = 10
_MAX_AGE_SECONDS = 1  # and up to twice as long, answers are served while they are read anew
_FORGOTTEN_SECONDS = 2.1 * _MAX_AGE_SECONDS


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """A gateway, and how it is asked.

    Attributes:
        question: Courses with their teachers.
        live: The same with nothing kept.
        live_courses: Courses alone, with nothing kept.
        keeps: Whether it keeps answers for a while.
    """

    name: str
    program: Program
    question: str
    live: str
    live_courses: str
    keeps: bool = False


@dataclass(kw_only=True)
class Figures:
    """What one gateway did."""

    calls: list[int] = field(default_factory=list)
    spent: list[str] = field(default_factory=list)
    resident_mib: float = 0.0


def main() -> int:
    """Ask everything and write the table."""
    options = _options()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            asyncio.run(_run(options, Path(scratch)))
    except ContestantMissing as missing:
        print(missing, file=sys.stderr)
        return 2
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=200, help="requests CPU is measured over")
    parser.add_argument("--without-hive", action="store_true", help="leave Hive Gateway out")
    return parser.parse_args()


async def _run(options: argparse.Namespace, folder: Path) -> None:
    rows = []
    with upstream("simulators.campus") as campus:
        contestants = [_gateway] if options.without_hive else [_gateway, _hive, _careful_hive]
        for open_contestant in contestants:
            with open_contestant(folder, campus) as contestant:
                figures = await _measure(contestant, campus, options.rounds)
            rows.append(_row(contestant.name, figures))
    title = "20 courses with 5 teachers over one REST upstream"
    columns = [
        "gateway",
        "courses and teachers",
        "the same twice, by alias",
        f"{_AT_ONCE} identical at once",
        "CPU: courses",
        "CPU: with teachers",
        "CPU: kept",
        "MiB",
    ]
    legend = [
        "Upstream calls; six are enough for each of the three questions.",
        f"CPU in ms per request (calls per request), mean of {options.rounds} in a row;",
        "memory after all of them.",
        "",
        f"| {' | '.join(columns)} |",
        f"{'| --- ' * len(columns)}|",
        *rows,
        "",
        f"_Hive Gateway: {hive_versions()}_",
    ]
    write_section(title, legend)


@contextmanager
def _gateway(folder: Path, campus: Program) -> Iterator[Contestant]:
    place = folder / "gateway"
    packages = _installed(folder / "packages")
    age = str(_MAX_AGE_SECONDS)
    with gateway(place, extra_path=packages, max_age_seconds=age) as program:
        register(program, "1", type="campus", name="Campus", url=campus.url, api_key=KEY)
        rows = "nodes { title enrollments { nodes { user { displayName } } } }"
        yield Contestant(
            name="gateway",
            program=program,
            question=f"courses(first: 50) {{ {rows} }}",
            live=f"courses(first: 50, maxAge: 0) {{ {rows} }}",
            live_courses="courses(first: 50, maxAge: 0) { nodes { title } }",
            keeps=True,
        )


def _installed(folder: Path) -> Path:
    """Lay the example out as an installed package is, without installing it; return where."""
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text("utf-8"))["project"]
    metadata = folder / f"campus_platform-{project['version']}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.4\nName: {project['name']}\nVersion: {project['version']}\n", "utf-8"
    )
    ((group, points),) = project["entry-points"].items()
    lines = [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n", "utf-8")
    module = PACKAGE / "campus_platform.py"
    (folder / module.name).write_bytes(module.read_bytes())
    return folder


@contextmanager
def _hive(folder: Path, campus: Program, *, deduplicates: bool = False) -> Iterator[Contestant]:
    name = "Hive Gateway, with deduplication" if deduplicates else "Hive Gateway, as it comes"
    place = folder / name.replace(" ", "-")
    place.mkdir()
    with hive_gateway(
        place,
        CAMPUS_URL=campus.url,
        CAMPUS_KEY=KEY,
        DEDUPLICATE="yes" if deduplicates else "no",
    ) as program:
        yield Contestant(
            name=name,
            program=program,
            question="courses { title teacher { name } }",
            live="courses { title teacher { name } }",
            live_courses="courses { title }",
        )


@contextmanager
def _careful_hive(folder: Path, campus: Program) -> Iterator[Contestant]:
    with _hive(folder, campus, deduplicates=True) as contestant:
        yield contestant


async def _measure(contestant: Contestant, campus: Program, rounds: int) -> Figures:
    figures, program = Figures(), contestant.program
    once = f"{{ {contestant.question} }}"
    twice = f"{{ a: {contestant.question} b: {contestant.question} }}"
    async with httpx.AsyncClient(headers=program.headers, timeout=60, trust_env=False) as http:

        async def ask(query: str) -> None:
            answer = await http.post(f"{program.url}/graphql", json={"query": query})
            body = answer.json()
            assert "errors" not in body, body
            assert all(len(_nodes(found)) == 20 for found in body["data"].values()), body

        await ask(once)  # warms up
        for query, times in ((once, 1), (twice, 1), (once, _AT_ONCE)):
            await asyncio.sleep(_FORGOTTEN_SECONDS if contestant.keeps else 0)
            await http.post(f"{campus.url}/_control/reset")
            await asyncio.gather(*(ask(query) for _ in range(times)))
            figures.calls.append((await http.get(f"{campus.url}/_control/counts")).json()["total"])
        queries = [f"{{ {contestant.live_courses} }}", f"{{ {contestant.live} }}"]
        for query in [*queries, once] if contestant.keeps else queries:
            for _ in range(50):
                await ask(query)  # compilers have a look first
            await http.post(f"{campus.url}/_control/reset")
            began_at = program.cpu_seconds()
            for _ in range(rounds):
                await ask(query)
            milliseconds = (program.cpu_seconds() - began_at) * 1000 / rounds
            calls = (await http.get(f"{campus.url}/_control/counts")).json()["total"] / rounds
            figures.spent.append(f"{milliseconds:.1f} ({calls:.1f})")
    figures.resident_mib = program.resident_mib()
    return figures


def _nodes(found: object) -> list[object]:
    nodes = found["nodes"] if isinstance(found, dict) else found
    assert isinstance(nodes, list)
    return nodes


def _row(name: str, figures: Figures) -> str:
    calls = " | ".join(map(str, figures.calls))
    spent = " | ".join([*figures.spent, ""][:3])
    return f"| {name} | {calls} | {spent} | {figures.resident_mib:.0f} |"


if __name__ == "__main__":
    sys.exit(main())
