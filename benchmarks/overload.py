"""Sixty seconds at three times what the gateway can do: what is still answered, and how fast.

    nice -n -5 .venv/bin/python benchmarks/overload.py [--seconds 60] [--times 3] [--query live]

Three processes: `learning-gateway serve`, a simulated Kolibri, and this one, which is the callers.
First the callers wait for their answers (a closed loop) and grow in number, to find how many get
the most answers a second. What so many get, just before the overload and just after it, is the
peak: the mean of both, since a machine is not always equally quiet. In between requests come at a
constant rate, whatever becomes of those before (an open loop), and every latency counts from the
moment a request was due. Every request is accounted for: answered with 200 and rows, refused with
503 and Retry-After, anything else, or not at all. Query `users` is mostly served from what the
gateway keeps, `live` is asked of the provider every time, but for callers at the same moment.
Writes its table into benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import re
import resource
import secrets
import statistics
import sys
import tempfile
import time
import urllib.request
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import uvloop
from results import write_section
from roster_export import _free_port, _running, _status, _wait

from simulators.kolibri.population import PASSWORD

ROOT = Path(__file__).resolve().parent.parent
QUERIES = {
    "users": "{ users(first: FIRST, FILTER) {"
    " nodes { displayName username } sources { status } } }",
    "live": "{ users(first: FIRST, FILTER, maxAge: 0) {"
    " nodes { displayName username } sources { status } } }",
    "nested": "{ users(first: FIRST, FILTER) { nodes { displayName enrollments { nodes {"
    " role { value } course { title } } } } sources { status } } }",
}
_RAMP = (1, 2, 4, 8, 16, 24, 32, 48)
_RAMP_SECONDS = 4.0
_PEAK_SECONDS = 15.0
_WARM_SECONDS = 3.0
_GIVE_UP_SECONDS = 10.0
_MOST_CONNECTIONS = 2000
_TICK_SECONDS = 0.001


@dataclass(kw_only=True)
class Account:
    """What became of the requests of one stretch of time, latencies in seconds."""

    sent: int = 0
    good: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    other: Counter[str] = field(default_factory=Counter)

    @property
    def none(self) -> int:
        """How many were never answered."""
        return self.sent - len(self.good) - len(self.refused) - sum(self.other.values())


class Connection(asyncio.Protocol):
    """One caller's connection: a request out, its answer in, as little work as can be."""

    def __init__(self, on_answer: Callable[[Connection, bytes, bytes], None]) -> None:
        self._on_answer = on_answer
        self._received = b""
        self._transport: asyncio.Transport | None = None
        self.due_at = 0.0
        self.account: Account | None = None

    @property
    def is_open(self) -> bool:
        """Whether a request can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep what to write to."""
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self._transport = transport  # type: ignore[assignment]  # uvloop's are no subclasses

    def send(self, request: bytes, *, due_at: float, account: Account) -> None:
        """Send one request; the one before must have been answered."""
        assert self._transport is not None
        self.due_at, self.account = due_at, account
        account.sent += 1
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Hand on a whole answer; all of the gateway's have a length."""
        self._received += data
        head, mark, body = self._received.partition(b"\r\n\r\n")
        if not mark:
            return
        length = re.search(rb"(?i)content-length: (\d+)", head)
        if length is None or len(body) >= int(length[1]):
            self._received = b""
            self._on_answer(self, head, body)

    def connection_lost(self, _error: Exception | None) -> None:
        """Account for a request that was cut off."""
        if self.account is not None:
            self.account.other["cut off"] += 1
            self.account = None

    def close(self) -> None:
        """Break it off."""
        self.account = None
        if self._transport is not None:
            self._transport.abort()


class Callers:
    """Everybody who calls the gateway."""

    def __init__(self, *, port: int, token: str, queries: Sequence[str]) -> None:
        self._port = port
        self._requests = itertools.cycle([_post(port, token, query) for query in queries])
        self._idle: deque[Connection] = deque()
        self._all: list[Connection] = []
        self._next: Callable[[Connection], None] = self._idle.append

    async def in_a_closed_loop(self, count: int, seconds: float) -> Account:
        """Let so many callers each ask again as soon as they are answered."""
        account = Account()
        asking = [await self._opened() for _ in range(count)]
        ends_at = time.perf_counter() + seconds

        def ask_again(connection: Connection) -> None:
            now = time.perf_counter()
            if now < ends_at:
                connection.send(next(self._requests), due_at=now, account=account)

        self._next = ask_again
        for connection in asking:
            ask_again(connection)
        await asyncio.sleep(seconds)
        await self._all_answered(account)
        self._next = self._idle.append
        for connection in asking:
            connection.close()
        return account

    async def in_an_open_loop(
        self, rate: float, seconds: float, *, every_second: Callable[[], None]
    ) -> Account:
        """Ask at a constant rate, then wait for answers that are still to come."""
        account = Account()
        began_at = time.perf_counter()
        due, count, second = began_at, int(rate * seconds), 0
        opening: set[asyncio.Task[None]] = set()
        for number in range(count):
            due = began_at + number / rate
            while (now := time.perf_counter()) < due:  # noqa: ASYNC110 - waiting is for a time
                await asyncio.sleep(min(due - now, _TICK_SECONDS) if due - now > 1e-4 else 0)
            if now - began_at >= second:
                every_second()
                second += 1
            connection = self._usable()
            if connection is not None:
                connection.send(next(self._requests), due_at=due, account=account)
            elif len(self._all) + len(opening) < _MOST_CONNECTIONS:
                task = asyncio.create_task(self._ask_anew(due, account))
                opening.add(task)
                task.add_done_callback(opening.discard)
            else:
                account.sent += 1
                account.other["no connection left"] += 1
            if number % 16 == 0:
                await asyncio.sleep(0)
        await self._all_answered(account)
        return account

    async def _all_answered(self, account: Account) -> None:
        gives_up_at = time.perf_counter() + _GIVE_UP_SECONDS
        while account.none and time.perf_counter() < gives_up_at:  # noqa: ASYNC110 - counts change often
            await asyncio.sleep(0.01)

    def close(self) -> None:
        """Break all connections off."""
        for connection in self._all:
            connection.close()

    @property
    def connections(self) -> int:
        """How many were opened."""
        return len(self._all)

    def _usable(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        return None

    async def _ask_anew(self, due: float, account: Account) -> None:
        try:
            connection = await self._opened()
        except OSError as error:
            account.sent += 1
            account.other[type(error).__name__] += 1
            return
        connection.send(next(self._requests), due_at=due, account=account)

    async def _opened(self) -> Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: Connection(self._answered), "127.0.0.1", self._port
        )
        self._all.append(connection)
        return connection

    def _answered(self, connection: Connection, head: bytes, body: bytes) -> None:
        account = connection.account
        if account is None:
            return
        connection.account = None
        seconds = time.perf_counter() - connection.due_at
        status = head[9:12]
        if status == b"200" and b'"errors"' not in body and b'"displayName"' in body:
            account.good.append(seconds)
        elif status == b"503" and b"retry-after: " in head.lower():
            account.refused.append(seconds)
        else:
            account.other[f"status {status.decode()}"] += 1
        self._next(connection)


def _post(port: int, token: str, query: str) -> bytes:
    body = json.dumps({"query": query}).encode()
    head = (
        f"POST /graphql HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@dataclass(kw_only=True)
class Watched:
    """What the processes used: the gateway's memory every second, everybody's CPU seconds."""

    gateway: int
    provider: int
    memory: list[int] = field(default_factory=list)

    def note(self) -> None:
        """Look at the gateway's memory."""
        self.memory.append(_status(self.gateway, "VmRSS"))

    def cpu(self) -> tuple[float, float, float]:
        """Return the CPU seconds of the gateway, the provider and this process."""
        own = resource.getrusage(resource.RUSAGE_SELF)
        return (
            _cpu_seconds(self.gateway),
            _cpu_seconds(self.provider),
            own.ru_utime + own.ru_stime,
        )


def main() -> int:
    """Run everything and write the table."""
    options = _options()
    with _stage(options) as (port, token, watched):
        lines = uvloop.run(_told(options, port, token, watched))
    write_section(f"Overload, {options.times:g} times the peak, query {options.query}", lines)
    return 0


async def _told(
    options: argparse.Namespace, port: int, token: str, watched: Watched
) -> Sequence[str]:
    queries = [
        QUERIES[options.query]
        .replace("FIRST", str(first))
        .replace("FILTER", f'filter: {{providerIds: ["{number}"]}}')
        for first in range(40, 60)  # no two at once are the same, which would be one call
        for number in range(options.providers)
    ]
    callers = Callers(port=port, token=token, queries=queries)
    await callers.in_a_closed_loop(4, _WARM_SECONDS)
    ramp = [await _step(callers, count, _RAMP_SECONDS, watched) for count in _RAMP]
    most = max(ramp, key=lambda step: step.rate).callers
    earlier = await _step(callers, most, _PEAK_SECONDS, watched)
    before, cpu_before, began_at = _metrics(port, token), watched.cpu(), time.perf_counter()
    account = await callers.in_an_open_loop(
        options.times * earlier.rate, options.seconds, every_second=watched.note
    )
    took = time.perf_counter() - began_at
    cpu = [now - then for now, then in zip(watched.cpu(), cpu_before, strict=True)]
    after = _metrics(port, token)
    later = await _step(callers, most, _PEAK_SECONDS, watched)
    callers.close()
    metrics = {name: value - before.get(name, 0.0) for name, value in after.items()}
    print([f"{step.callers} callers: {step.rate:.0f}/s" for step in ramp])
    return [
        *_head(options, callers),
        *_rows(options, account, earlier=earlier, later=later, quiet=ramp[0], cpu=cpu[0]),
        *_resources(watched, cpu, took, metrics),
    ]


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a number of callers in a closed loop got.

    Attributes:
        rate: Answers a second.
        efficiency: Answers per second of the gateway's CPU.
        median: Latency in seconds.
    """

    callers: int
    rate: float
    efficiency: float
    median: float


async def _step(callers: Callers, count: int, seconds: float, watched: Watched) -> Step:
    before = watched.cpu()[0]
    account = await callers.in_a_closed_loop(count, seconds)
    good = len(account.good)
    return Step(
        callers=count,
        rate=good / seconds,
        efficiency=good / (watched.cpu()[0] - before),
        median=statistics.median(account.good),
    )


def _head(options: argparse.Namespace, callers: Callers) -> Sequence[str]:
    return [
        (
            f"`{QUERIES[options.query].replace('FIRST, FILTER', '40...')}` of {options.providers}"
            " providers in turn, all one simulated Kolibri that takes"
            f" {options.latency * 1000:g} ms a call;"
            f" {callers.connections} connections. Latencies count from when a request was due."
        ),
        "",
        "| what | figure |",
        "| --- | --- |",
    ]


def _rows(
    options: argparse.Namespace,
    account: Account,
    *,
    earlier: Step,
    later: Step,
    quiet: Step,
    cpu: float,
) -> Sequence[str]:
    peak = (earlier.rate + later.rate) / 2
    peak_efficiency = (earlier.efficiency + later.efficiency) / 2
    goodput = len(account.good) / options.seconds
    efficiency = len(account.good) / cpu
    others = ", ".join(f"{name}: {count}" for name, count in account.other.items()) or "0"
    return [
        (
            f"| peak, {earlier.callers} callers that wait, before / after |"
            f" {earlier.rate:.0f}/s / {later.rate:.0f}/s |"
        ),
        f"| asked in {options.seconds:g} s | {account.sent} ({options.times:g} times the first) |",
        f"| answered 200 with rows | {len(account.good)} ({goodput:.0f}/s) |",
        f"| goodput against the mean peak | {goodput / peak:.0%} |",
        (
            f"| the same, per second of the gateway's CPU | {efficiency / peak_efficiency:.0%}"
            f" ({efficiency:.0f} against {peak_efficiency:.0f}) |"
        ),
        f"| refused, 503 with Retry-After | {len(account.refused)} |",
        f"| any other answer | {others} |",
        f"| no answer within {_GIVE_UP_SECONDS:.0f} s | {account.none} |",
        f"| latency of the answered, p50 / p99 | {_spread(account.good)} |",
        f"| the same with one caller and no load, p50 | {quiet.median * 1000:.1f} ms |",
        f"| latency of the refused, p50 / p99 | {_spread(account.refused)} |",
    ]


def _resources(
    watched: Watched, cpu: Sequence[float], took: float, metrics: Mapping[str, float]
) -> Sequence[str]:
    first, last = watched.memory[:10], watched.memory[-10:]
    memory = [
        f"{kib / 1024:.0f}"
        for kib in (statistics.mean(first), statistics.mean(last), max(watched.memory))
    ]
    shed = {
        name.partition('reason="')[2].rstrip('"}'): int(count)
        for name, count in metrics.items()
        if name.startswith("learning_gateway_requests_shed_total{") and count
    }
    reasons = ", ".join(f"{reason}: {count}" for reason, count in sorted(shed.items()))
    return [
        (
            "| the gateway's resident memory, first 10 s / last 10 s / most |"
            f" {' / '.join(memory)} MiB |"
        ),
        f"| wait for a turn in the gateway's loop, p50 / p99 | {_loop_wait(metrics)} |",
        f"| calls of the provider in that time | {_calls(metrics)} |",
        f"| refused, as the gateway counts it | {sum(shed.values())} ({reasons}) |",
        (
            "| CPU of the gateway / the provider / the callers |"
            f" {' / '.join(f'{seconds / took:.0%}' for seconds in cpu)} |"
        ),
    ]


def _spread(latencies: Sequence[float]) -> str:
    if len(latencies) < 2:
        return "none"
    cuts = statistics.quantiles(latencies, n=100)
    return f"{cuts[49] * 1000:.0f} / {cuts[98] * 1000:.0f} ms"


def _calls(metrics: Mapping[str, float]) -> int:
    name = "learning_gateway_upstream_calls_total{"
    return int(sum(count for each, count in metrics.items() if each.startswith(name)))


def _loop_wait(metrics: Mapping[str, float]) -> str:
    """Return upper bounds of the median and the 99th percentile, by the histogram's buckets."""
    name = 'learning_gateway_loop_wait_seconds_bucket{le="'
    buckets = [
        (float(each.removeprefix(name).removesuffix('"}')), count)
        for each, count in metrics.items()
        if each.startswith(name)
    ]
    total = max(count for _, count in buckets)
    bounds = [
        next(bound for bound, count in sorted(buckets) if count >= share * total)
        for share in (0.5, 0.99)
    ]
    return f"at most {' / '.join(f'{bound * 1000:g}' for bound in bounds)} ms"


def _metrics(port: int, token: str) -> Mapping[str, float]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/metrics", headers={"Authorization": f"Bearer {token}"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    pairs = [line.rpartition(" ") for line in lines if not line.startswith("#")]
    return {name: float(value) for name, _, value in pairs}


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def _stage(options: argparse.Namespace) -> Iterator[tuple[int, str, Watched]]:
    """Start the provider and the gateway, and register the one at the other."""
    token, port, kolibri_port = secrets.token_urlsafe(32), _free_port(), _free_port()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        environment = os.environ | {
            "GATEWAY_HOST": "127.0.0.1",
            "GATEWAY_PORT": str(port),
            "GATEWAY_DATA_FOLDER": str(folder / "data"),
            "GATEWAY_TOKEN": token,
        }
        kolibri = [sys.executable, "-m", "simulators.kolibri", "--port", str(kolibri_port)]
        kolibri += ["--latency", str(options.latency)]
        gateway = [str(Path(sys.executable).with_name("learning-gateway")), "serve"]
        log = Path(options.log) if options.log else folder / "gateway.log"
        with (
            _running(kolibri, os.environ, folder / "kolibri.log") as provider,
            _running(gateway, environment, log) as process,
        ):
            _wait(f"http://127.0.0.1:{kolibri_port}/api/public/info/")
            _wait(f"http://127.0.0.1:{port}/ready")
            for number in range(options.providers):
                _register(port, token, f"http://127.0.0.1:{kolibri_port}", number)
            yield port, token, Watched(gateway=process.pid, provider=provider.pid)


def _register(port: int, token: str, url: str, number: int) -> None:
    details = {"id": str(number), "type": "kolibri", "url": url, "username": "service_admin"}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/add-provider",
        json.dumps(details | {"password": PASSWORD}).encode(),
        {"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60):
        pass


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--times", type=float, default=3)
    parser.add_argument("--providers", type=int, default=8)
    parser.add_argument("--query", choices=sorted(QUERIES), default="live")
    parser.add_argument(
        "--latency", type=float, default=0.02, help="seconds a provider's call takes"
    )
    parser.add_argument("--log", help="where the gateway's log goes")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
