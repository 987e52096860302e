"""Nothing kept, 20 ms a call, pages of 100: how many calls, how long, and how many at once?

    .venv/bin/python benchmarks/fanout.py [--sizes 10,100,1000,10000] [--rounds 5] [--seconds 8]

The question is for N users with five enrollments each and the course of each, of 200. Users come
in pages of 100, enrollments and courses for up to 100 ids a call, so ceil(N/100) + ceil(N/100) +
ceil(courses/100) calls are enough: 3, 4, 22 and 202. They depend on each other three deep, so with
up to 100 users nothing can be faster than three times the latency. All may make 16 calls at once.

gateway          `learning-gateway serve` with all its protections; its platform, found by its
                 entry point, is `register_platform.py`; live: `maxAge: 0`
bare fetch       the same calls by the same client, put together without GraphQL
Yoga, Mercurius  with JIT, and a DataLoader or loaders over undici
Hive Gateway     the REST endpoints as a subgraph; it cannot page, so up to 100 users only

Contestants take turns, round by round; then each is asked for ten users over 32 connections at
once. Calls are the upstream's own counts. Writes its section into benchmarks/RESULTS.md. Takes 5
minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httptools
import msgspec
from results import write_section

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from contestants import (  # noqa: E402 - found in the folder just named
    ContestantMissing,
    Program,
    hive_gateway,
    hive_versions,
    peer,
    peer_versions,
    python_server,
)
from register_platform import CALLS_AT_ONCE  # noqa: E402 - the same
from register_upstream import COURSES, ENROLLMENTS, KEY, course, enrollments, user  # noqa: E402
from rosters import (  # noqa: E402 - the same
    Asker,
    Taken,
    calls_of,
    decoded,
    forget_calls,
    measure,
    roster_gateway,
    upstream_register,
)

LATENCY_SECONDS = 0.02
DEPTH = 3
GATEWAY, BARE, HIVE = "gateway", "bare fetch, same client", "Hive Gateway, with deduplication"
OWN = "gateway, each connection with a provider of its own"
MOST_TO_CHAIN, MOST_TO_BARE, LEAST_RATE = 1.15, 1.2, 0.9
HIVE_MOST = 100
CONNECTIONS = 32
SMALL = 10
REFUSED_SECONDS = 0.1
ASKED_A_ROUND = {10: 5, 100: 5, 1000: 3}

_FIELDS = (
    "nodes { externalId displayName username email enrollments(first: 5) { nodes"
    " { role { value } state course { externalId title courseCode } } } }"
)
_LIVE = (
    'query Roster($first: Int!, $providers: [ID!] = ["1"])'
    " { users(first: $first, maxAge: 0, filter: { providerIds: $providers }) {"
    f" {_FIELDS} }} }}"
)
_PLAIN = f"query Roster($first: Int!) {{ users(first: $first) {{ {_FIELDS} }} }}"
_OF_HIVE = (
    "query Roster($first: Int!) { users(first: $first) { rows { id name username email"
    " enrollments { role state course { id title code } } } } }"
)


@dataclass(kw_only=True)
class Contestant:
    """Something that answers, and what it took.

    Attributes:
        query: Its document.
        read: Makes the answer that all give of its own.
        most: How many users it can be asked for.
        taken: By how many users were asked for.
        calls: The same, of the upstream, for one answer.
        pressed: Under ``CONNECTIONS`` at once.
        own_providers: Whether each of these then names a provider of its own.
    """

    program: Program
    query: str
    read: Callable[[bytes], Any] = decoded
    most: int = 10_000
    taken: dict[int, Taken] = field(default_factory=lambda: defaultdict(Taken))
    calls: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    pressed: Pressed | None = None
    own_providers: bool = False

    def wall(self, size: int) -> float:
        """Return the middle of all answers, in milliseconds."""
        return self.taken[size].quantile(0.5)


@dataclass(kw_only=True)
class Pressed:
    """What came of many callers at once."""

    seconds: float
    cpu_seconds: float
    calls: int
    waits: Sequence[float]
    refused: Mapping[str, int]

    @property
    def rate(self) -> float:
        """Return answers a second."""
        return len(self.waits) / self.seconds

    def quantile(self, share: float) -> float:
        """Return what so many of the waits are not above, in milliseconds."""
        return sorted(self.waits)[int((len(self.waits) - 1) * share)] * 1000


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
    upstream = stack.enter_context(
        upstream_register(users=max(*sizes, SMALL), latency=LATENCY_SECONDS)
    )
    contestants = _contestants(stack, folder, upstream, options)
    for size in sizes:
        asked = {name: each for name, each in contestants.items() if size <= each.most}
        askers = {name: Asker(each.program) for name, each in asked.items()}
        for name, each in asked.items():  # and warms up
            found = each.read(askers[name].ask(each.query, size))
            assert found == _expected(size), f"{name} answers {size} users otherwise"
        for _ in range(options.rounds):
            for name, each in asked.items():
                forget_calls(upstream)
                times = ASKED_A_ROUND.get(size, 1)
                measure(askers[name], each.taken[size], [(each.query, size)] * times)
                each.calls[size].add(calls_of(upstream) // times)
    ours = contestants[GATEWAY]
    own = Contestant(program=ours.program, query=ours.query, own_providers=True)
    contestants = {OWN: own, **contestants}
    for _ in range(2):  # the first warms up
        for each in contestants.values():
            each.pressed = _press(each, upstream, options.seconds)
    memory = {name: each.program.resident_mib() for name, each in contestants.items()}
    lines = [*_wall_table(contestants, sizes, options), *_pressed_table(contestants, memory)]
    versions = [peer_versions() if not options.without_node else ""]
    versions += [hive_versions() if not options.without_hive else ""]
    lines += ["", f"_{'; '.join(filter(None, versions))}_"] if any(versions) else []
    write_section("Fan-out to an upstream of 20 ms", lines)


def _contestants(
    stack: ExitStack, folder: Path, upstream: Program, options: argparse.Namespace
) -> Mapping[str, Contestant]:
    ours = stack.enter_context(
        roster_gateway(folder, {str(place + 1): upstream for place in range(CONNECTIONS)})
    )
    found = {GATEWAY: Contestant(program=ours, query=_LIVE)}
    bare = python_server("fanout_contestants:app", folder, UPSTREAM=upstream.url, KEY=KEY)
    found[BARE] = Contestant(program=stack.enter_context(bare), query=_PLAIN)
    for name, server in (
        () if options.without_node else (("Yoga", "yoga"), ("Mercurius", "mercurius"))
    ):
        program = stack.enter_context(
            peer(
                server,
                jit=True,
                UPSTREAM=upstream.url,
                KEY=KEY,
                CALLS_AT_ONCE=str(CALLS_AT_ONCE),
            )
        )
        found[f"{name} with JIT"] = Contestant(program=program, query=_PLAIN)
    if not options.without_hive:
        hive = stack.enter_context(
            hive_gateway(folder, REGISTER_URL=upstream.url, REGISTER_KEY=KEY, DEDUPLICATE="yes")
        )
        graphql = Program(url=f"{hive.url}/graphql", process=hive.process)
        found[HIVE] = Contestant(program=graphql, query=_OF_HIVE, read=_of_hive, most=HIVE_MOST)
    return found


def _expected(size: int) -> Any:
    def course_of(course_id: str) -> Any:
        row = course(int(course_id[1:]))
        return {"externalId": row["id"], "title": row["title"], "courseCode": row["code"]}

    def node(place: int) -> Any:
        row = user(place)
        places = [
            {
                "role": {"value": each["role"]},
                "state": each["state"],
                "course": course_of(str(each["course_id"])),
            }
            for each in enrollments(place)
        ]
        return {
            "externalId": row["id"],
            "displayName": row["name"],
            "username": row["username"],
            "email": row["email"],
            "enrollments": {"nodes": places},
        }

    return {"data": {"users": {"nodes": [node(place) for place in range(size)]}}}


def _of_hive(answer: bytes) -> Any:
    def place(row: Any) -> Any:
        (found,) = row["course"]
        shown = {"externalId": found["id"], "title": found["title"], "courseCode": found["code"]}
        return {"role": {"value": row["role"]}, "state": row["state"], "course": shown}

    nodes = [
        {
            "externalId": row["id"],
            "displayName": row["name"],
            "username": row["username"],
            "email": row["email"],
            "enrollments": {"nodes": [*map(place, row["enrollments"])]},
        }
        for row in decoded(answer)["data"]["users"]["rows"]
    ]
    return {"data": {"users": {"nodes": nodes}}}


# Many callers at once.


class _Caller(asyncio.Protocol):
    """One connection: asks again as soon as it is answered, until the end."""

    def __init__(self, request: bytes, ends_at: float) -> None:
        self.done = asyncio.get_running_loop().create_future()
        self.waits: list[float] = []
        self.refused: Counter[str] = Counter()
        self._body = b""
        self._request = request
        self._ends_at = ends_at
        self._parser = httptools.HttpResponseParser(self)
        self._began_at = 0.0
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the first time."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._ask()

    def data_received(self, data: bytes) -> None:
        """Read on."""
        self._parser.feed_data(data)

    def on_body(self, piece: bytes) -> None:
        """Keep what there is of an answer."""
        self._body += piece

    def on_message_complete(self) -> None:
        """Note an answer, and ask again."""
        now = time.perf_counter()
        if self._parser.get_status_code() == 200 and b'"errors"' not in self._body:
            self.waits.append(now - self._began_at)
            pause = 0.0
        else:
            code = self._body.partition(b'"code":"')[2].partition(b'"')[0].decode()
            self.refused[code or str(self._parser.get_status_code())] += 1
            pause = REFUSED_SECONDS
        if now + pause < self._ends_at:
            self._ask() if pause == 0 else asyncio.get_running_loop().call_later(pause, self._ask)
        else:
            self._transport.close()

    def connection_lost(self, _error: Exception | None) -> None:
        """Tell that it is over."""
        self.done.set_result(None)

    def _ask(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._body = b""
        self._began_at = time.perf_counter()
        self._transport.write(self._request)


def _press(contestant: Contestant, upstream: Program, seconds: float) -> Pressed:
    forget_calls(upstream)
    began, spent = time.perf_counter(), contestant.program.cpu_seconds()
    callers = asyncio.run(_call(contestant, began + seconds))
    return Pressed(
        seconds=time.perf_counter() - began,
        cpu_seconds=contestant.program.cpu_seconds() - spent,
        calls=calls_of(upstream),
        waits=[wait for caller in callers for wait in caller.waits],
        refused=sum((caller.refused for caller in callers), Counter()),
    )


async def _call(contestant: Contestant, ends_at: float) -> Sequence[_Caller]:
    url = urlsplit(contestant.program.url)
    loop = asyncio.get_running_loop()
    callers = []
    for place in range(CONNECTIONS):
        variables: dict[str, object] = {"first": SMALL}
        if contestant.own_providers:
            variables["providers"] = [str(place + 1)]
        request = _request(contestant, variables)
        _, caller = await loop.create_connection(
            lambda request=request: _Caller(request, ends_at), url.hostname, url.port
        )
        callers.append(caller)
    await asyncio.gather(*(caller.done for caller in callers))
    return callers


def _request(contestant: Contestant, variables: Mapping[str, object]) -> bytes:
    url = urlsplit(contestant.program.url)
    body = msgspec.json.encode(
        {"query": contestant.query, "operationName": "Roster", "variables": variables}
    )
    headers = {
        "Host": url.netloc,
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        **contestant.program.headers,
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST {url.path or '/'} HTTP/1.1\r\n{head}\r\n".encode() + body


# Tables.


def _wall_table(
    contestants: Mapping[str, Contestant], sizes: Sequence[int], options: argparse.Namespace
) -> Sequence[str]:
    chain = DEPTH * LATENCY_SECONDS * 1000
    lines = [
        (
            f"Users with {ENROLLMENTS} enrollments each and their courses, of {COURSES}; nothing is"
            f" kept, every call takes {LATENCY_SECONDS * 1000:.0f} ms, {CALLS_AT_ONCE} at once."
            f" Medians of {options.rounds} interleaved rounds. Aimed at: the fewest calls there can"
            f" be; up to 100 users within {MOST_TO_CHAIN} times of latency and depth,"
            f" {chain:.0f} ms; {max(sizes):,} users within {MOST_TO_BARE} times of the bare fetch."
        ),
        "",
        f"| calls / ms / server CPU ms for N users | {' | '.join(f'{size:,}' for size in sizes)} |",
        f"| --- |{' --- |' * len(sizes)}",
    ]
    for name, each in contestants.items():
        if each.taken:
            cells = " | ".join(_cell(each, size) for size in sizes)
            lines.append(f"| {name} | {cells} |")
    ours, bare = contestants[GATEWAY], contestants[BARE]
    cells = " | ".join(_verdict(ours, bare, size, last=size == max(sizes)) for size in sizes)
    return [*lines, f"| aimed at | {cells} |", ""]


def _cell(contestant: Contestant, size: int) -> str:
    if size not in contestant.taken:
        return ""
    taken = contestant.taken[size]
    calls = " or ".join(map(str, sorted(contestant.calls[size])))
    return f"{calls} / {contestant.wall(size):.0f} / {statistics.median(taken.cpu):.1f}"


def _verdict(ours: Contestant, bare: Contestant, size: int, *, last: bool) -> str:
    courses = {each["course_id"] for place in range(size) for each in enrollments(place)}
    fewest = 2 * ceil(size / 100) + ceil(len(courses) / 100)
    calls = "fewest calls" if ours.calls[size] == {fewest} else f"more calls than {fewest}"
    chain = ours.wall(size) / (DEPTH * LATENCY_SECONDS * 1000)
    times = ours.wall(size) / bare.wall(size)
    figures = f"{calls}; {times:.2f} of the bare fetch"
    if size <= 100:
        met = "met" if chain <= MOST_TO_CHAIN else "not met"
        return f"{calls}; {chain:.2f} of the chain, {met}; {times:.2f} of the bare fetch"
    if last:
        return f"{figures}, {'met' if times <= MOST_TO_BARE else 'not met'}"
    return figures


def _pressed_table(
    contestants: Mapping[str, Contestant], memory: Mapping[str, float]
) -> Sequence[str]:
    lines = [
        (
            f"{CONNECTIONS} connections, each asking for {SMALL} users again and again. Aimed at:"
            f" at least {LEAST_RATE} of the bare fetch's answers a second. Of those who want the"
            " same at the same time, the gateway and Hive Gateway ask for one; with a provider for"
            " each connection nothing can be shared. Who is refused asks again after"
            f" {REFUSED_SECONDS * 1000:.0f} ms."
        ),
        "",
        (
            "| contestant | answers a second | of the bare fetch | p50 / p99 ms | CPU ms an answer"
            " | calls an answer | refused or failed | resident MiB |"
        ),
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    bare = contestants[BARE].pressed
    for name, each in contestants.items():
        pressed = each.pressed
        assert pressed is not None
        assert bare is not None
        share = pressed.rate / bare.rate
        met = f", {'met' if share >= LEAST_RATE else 'not met'}" if name in {GATEWAY, OWN} else ""
        lines.append(
            f"| {name} | {pressed.rate:.0f} | {share:.2f}{met}"
            f" | {pressed.quantile(0.5):.0f} / {pressed.quantile(0.99):.0f}"
            f" | {pressed.cpu_seconds * 1000 / len(pressed.waits):.2f}"
            f" | {pressed.calls / len(pressed.waits):.1f}"
            f" | {', '.join(f'{code} {times}' for code, times in pressed.refused.items()) or 0}"
            f" | {memory[name]:.0f} |"
        )
    return lines


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sizes", default="10,100,1000,10000")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8, help="with many callers, each")
    parser.add_argument("--without-node", action="store_true", help="leave Yoga and Mercurius out")
    parser.add_argument("--without-hive", action="store_true", help="leave Hive Gateway out")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
