"""Three providers that take 20, 50 and 200 ms a call: how long does the whole answer take?

    .venv/bin/python benchmarks/provider_latency.py [--users 20] [--rounds 9] [--without-hive]

Three simulated Canvas instances, each a process, each with that many users, half as many courses
and twice as many enrollments. The same question goes to all contestants in turn, round by round:
every user's enrollments, and the course of each. Three calls depend on each other, so nothing can
be faster than three times the slowest provider's latency, its *longest chain*.

gateway       `learning-gateway serve`, one query over all providers, live: `maxAge: 0`
httpx script  one asyncio program with a client for each provider, the same calls as the gateway
Hive Gateway  REST endpoints as subgraphs, one query with a root field for each provider

Counts are the simulators' own. The simulators refuse nobody for the rate, except in the second
table. Writes its section into benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from contestants import (
    ContestantMissing,
    Program,
    gateway,
    hive_gateway,
    hive_versions,
    register,
    upstream,
)
from results import write_section

from simulators.canvas.state import ADMIN_TOKEN

LATENCIES = {"fast": 0.02, "middle": 0.05, "slow": 0.2}
CHAIN = 3
_NESTED = "nodes { displayName enrollments(first: 100) { nodes { id course { title } } } }"
_IN_ORDER = f"{{ users(first: 1000, maxAge: 0) {{ {_NESTED} sources {{ status }} }} }}"
_BY_NAME = (
    f"{{ users(first: 1000, maxAge: 0, orderBy: {{ field: DISPLAY_NAME }})"
    f" {{ {_NESTED} sources {{ status }} }} }}"
)
_HIVE_QUERY = (
    "{ "
    + " ".join(
        f"{name}: users_{name} {{ name enrollments {{ id course {{ name }} }} }}"
        for name in LATENCIES
    )
    + " }"
)

Rows = tuple[int, int]
"""Users, and enrollments whose course has a title."""


@dataclass(kw_only=True)
class Contestant:
    """One way to answer the question, with what it took."""

    name: str
    ask: Callable[[], Rows]
    cpu_seconds: Callable[[], float]
    cpu: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    calls: set[tuple[int, ...]] = field(default_factory=set)
    rows: set[Rows] = field(default_factory=set)
    throttled: int = 0

    @property
    def median(self) -> float:
        """The middle of all rounds, in seconds."""
        return statistics.median(self.seconds)


class Providers:
    """The three simulators and their control planes."""

    def __init__(self, programs: Mapping[str, Program]) -> None:
        self.urls = {name: program.url for name, program in programs.items()}
        self._http = httpx.Client(trust_env=False, timeout=30)

    def control(self, action: str, body: Mapping[str, Any] | None = None) -> list[Any]:
        """Ask or change something at each that no real Canvas has."""
        answers = []
        for url in self.urls.values():
            path = f"{url}/_control/{action}"
            got = self._http.get(path) if body is None else self._http.post(path, json=dict(body))
            answers.append(got.raise_for_status().json())
        return answers

    def measure(self, contestant: Contestant) -> None:
        """Ask once, and note what it took."""
        self.control("reset", {})
        spent, began_at = contestant.cpu_seconds(), time.perf_counter()
        rows = contestant.ask()
        contestant.seconds.append(time.perf_counter() - began_at)
        contestant.cpu.append(contestant.cpu_seconds() - spent)
        counts = self.control("counts")
        contestant.calls.add(tuple(each["total"] for each in counts))
        contestant.throttled += sum(each["throttled"] for each in counts)
        contestant.rows.add(rows)


class Script:
    """What one writes without a gateway: asyncio, httpx, and Canvas's documentation."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._runner = asyncio.Runner()
        headers = {
            "Authorization": f"Bearer {ADMIN_TOKEN}",
            "Accept": "application/json+canvas-string-ids, application/json",
        }
        self._clients = [
            httpx.AsyncClient(base_url=url, headers=headers, timeout=30, trust_env=False)
            for url in urls
        ]

    def ask(self) -> Rows:
        """Read all providers side by side."""
        return self._runner.run(self._read_all())

    async def _read_all(self) -> Rows:
        found = await asyncio.gather(*map(self._read, self._clients))
        return sum(users for users, _ in found), sum(rows for _, rows in found)

    async def _read(self, http: httpx.AsyncClient) -> Rows:
        params = {"per_page": 100, "sort": "id"}
        users = (await http.get("/api/v1/accounts/self/users", params=params)).json()
        enrollments: list[Any] = []
        for part in await asyncio.gather(
            *(self._enrollments(http, users[at : at + 20]) for at in range(0, len(users), 20))
        ):
            enrollments += part
        courses = (await http.get("/api/v1/accounts/self/courses", params={"per_page": 100})).json()
        titles = {course["id"]: course["name"] for course in courses}
        return len(users), sum(row["course"]["_id"] in titles for row in enrollments)

    async def _enrollments(self, http: httpx.AsyncClient, users: Sequence[Any]) -> list[Any]:
        wanted = "\n".join(
            f'u{user["id"]}: legacyNode(_id: "{user["id"]}", type: User) {{ ...U }}'
            for user in users
        )
        query = (
            f"query {{ {wanted} }}"
            " fragment U on User { _id enrollments { _id type enrollmentState course { _id } } }"
        )
        answer = await http.post("/api/graphql", data={"query": query})
        return [row for user in answer.json()["data"].values() for row in user["enrollments"]]


def main() -> int:
    """Run the rounds and write the tables."""
    options = _options()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            return _run(options, Path(scratch))
    except ContestantMissing as missing:
        print(missing, file=sys.stderr)
        return 2


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--users", type=int, default=20, help="of each provider, up to 100")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--without-hive", action="store_true", help="leave Hive Gateway out")
    return parser.parse_args()


def _run(options: argparse.Namespace, folder: Path) -> int:
    with _providers(options.users) as providers, ExitStack() as stack:
        contestants = [*_gateways(stack, folder, providers)]
        script = Script(list(providers.urls.values()))
        contestants.append(
            Contestant(name="httpx script", ask=script.ask, cpu_seconds=time.process_time)
        )
        if not options.without_hive:
            contestants += _hives(stack, folder, providers)
        for round_ in range(options.rounds + 1):
            for contestant in contestants:
                providers.measure(contestant)
                if round_ == 0:  # warms up, and is not counted
                    contestant.seconds.clear()
                    contestant.cpu.clear()
                    contestant.calls.clear()
        throttled = [_throttled(providers, contestant) for contestant in contestants]
    _report(options, contestants, throttled)
    return 0


@contextmanager
def _providers(users: int) -> Iterator[Providers]:
    with ExitStack() as stack:
        programs = {
            name: stack.enter_context(
                upstream(
                    "simulators.canvas",
                    *("--users", str(users), "--seed", str(seed)),
                    *("--latency", str(latency), "--no-throttle"),
                )
            )
            for seed, (name, latency) in enumerate(LATENCIES.items(), start=1)
        }
        yield Providers(programs)


def _gateways(stack: ExitStack, folder: Path, providers: Providers) -> Iterator[Contestant]:
    ours = stack.enter_context(gateway(folder / "gateway"))
    for number, (name, url) in enumerate(providers.urls.items(), start=1):
        register(ours, str(number), type="canvas", name=name, url=url, api_key=ADMIN_TOKEN)
    for name, query in (("users in provider order", _IN_ORDER), ("users by name", _BY_NAME)):
        ask = _asker(stack, ours, query, _count_ours)
        yield Contestant(name=f"gateway, {name}", ask=ask, cpu_seconds=ours.cpu_seconds)


def _hives(stack: ExitStack, folder: Path, providers: Providers) -> Iterator[Contestant]:
    for name, deduplicates in (("as it comes", "no"), ("with deduplication", "yes")):
        place = folder / name.replace(" ", "-")
        place.mkdir()
        hive = stack.enter_context(
            hive_gateway(
                place,
                CANVASES=json.dumps(providers.urls),
                CANVAS_TOKEN=ADMIN_TOKEN,
                DEDUPLICATE=deduplicates,
            )
        )
        ask = _asker(stack, hive, _HIVE_QUERY, _count_hive)
        yield Contestant(name=f"Hive Gateway, {name}", ask=ask, cpu_seconds=hive.cpu_seconds)


def _asker(
    stack: ExitStack, program: Program, query: str, count: Callable[[Any], Rows]
) -> Callable[[], Rows]:
    http = stack.enter_context(httpx.Client(headers=program.headers, timeout=60, trust_env=False))

    def ask() -> Rows:
        return count(http.post(f"{program.url}/graphql", json={"query": query}).json())

    return ask


def _count_ours(body: Any) -> Rows:
    users = body["data"]["users"]["nodes"]
    rows = [row for user in users for row in (user["enrollments"] or {"nodes": []})["nodes"]]
    return len(users), sum(row["course"] is not None for row in rows)


def _count_hive(body: Any) -> Rows:
    users = [user for found in (body["data"] or {}).values() for user in found or ()]
    rows = [row for user in users for row in user["enrollments"] or ()]
    return len(users), sum(row["course"] is not None for row in rows)


def _throttled(providers: Providers, contestant: Contestant) -> Contestant:
    """Ask once with the limit that Canvas has by default."""
    again = Contestant(name=contestant.name, ask=contestant.ask, cpu_seconds=contestant.cpu_seconds)
    providers.control("throttle", {"enabled": True})
    try:
        providers.measure(again)
    finally:
        providers.control("throttle", {"enabled": False})
    return again


def _report(
    options: argparse.Namespace,
    contestants: Sequence[Contestant],
    throttled: Sequence[Contestant],
) -> None:
    chain = CHAIN * max(LATENCIES.values())
    script = next(each for each in contestants if each.name == "httpx script")
    (expected,) = script.rows
    shown = ", ".join(f"{name} {seconds * 1000:.0f} ms" for name, seconds in LATENCIES.items())
    columns = ["contestant", "ms", "fastest, slowest", "CPU ms", "calls: fast, middle, slow"]
    columns += ["/ chain", "/ script"]
    lines = [
        f"Three simulated Canvas instances with {options.users} users each: {shown} a call.",
        f"Asked for: {expected[0]} users, their {expected[1]} enrollments, the course of each.",
        "All contestants give the same rows, and keep nothing from before.",
        f"Longest chain: {CHAIN} calls of the slowest, {chain * 1000:.0f} ms.",
        f"Medians of {options.rounds} interleaved rounds; CPU is the mean of the process's own.",
        "",
        f"| {' | '.join(columns)} |",
        f"{'| --- ' * len(columns)}|",
        *(
            f"| {each.name} | {each.median * 1000:.0f} |"
            f" {min(each.seconds) * 1000:.0f}, {max(each.seconds) * 1000:.0f} |"
            f" {statistics.mean(each.cpu) * 1000:.0f} |"
            f" {' or '.join(', '.join(map(str, calls)) for calls in sorted(each.calls))} |"
            f" {each.median / chain:.2f} | {each.median / script.median:.2f} |"
            for each in contestants
        ),
        "",
        "Once more, with the rate limit Canvas has by default:",
        "",
        "| contestant | ms | calls refused | enrollments with their course |",
        "| --- | --- | --- | --- |",
        *(
            f"| {each.name} | {each.median * 1000:.0f} | {each.throttled} |"
            f" {next(iter(each.rows))[1]} of {expected[1]} |"
            for each in throttled
        ),
        "",
        f"_Hive Gateway: {hive_versions()}_",
    ]
    differing = [each.name for each in contestants if each.rows != {expected}]
    assert not differing, f"Other rows than the script's: {differing}"
    write_section("Providers of 20, 50 and 200 ms in one query", lines)


if __name__ == "__main__":
    sys.exit(main())
