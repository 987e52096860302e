"""What watching over operations costs a small query whose answer is kept already.

    .venv/bin/python benchmarks/observability.py [--rounds 150] [--batch 20]

First in one process, so that differences of a microsecond show: the same query is executed in
batches by turns with nobody watching, with metrics and log lines, and with spans besides, which are
sent to a stand-in for a collector in another process. Then over HTTP, by turns at two gateways, one
of which traces; what counts is the CPU time of the gateway's process, with the threads that send.
Writes its table into benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import strawberry
from contestants import Program, free_port, gateway, register, upstream
from results import write_section

from gateway.access import KeyAccess
from gateway.assembly import Gateway, open_gateway
from gateway.settings import read_settings
from gateway.watching import Watching
from resolvers.context import ProviderDraft
from resolvers.operations import OperationWatcher
from schema import build_schema
from schema.execution import execute
from sessions.metering import Meter, metering
from simulators.kolibri.population import PASSWORD
from storage.credentials import Secret

QUERY = "query Names { users(first: 10) { nodes { displayName username } } }"
BODY = {"query": QUERY}
_ADMIN = KeyAccess(key_id="benchmark", scopes=frozenset({"admin"}))


def main() -> int:
    """Run both and write the table."""
    options = _options()
    if options.collector:
        ThreadingHTTPServer(("127.0.0.1", options.collector), _Collector).serve_forever()
    with (
        _collector() as endpoint,
        upstream("simulators.kolibri") as kolibri,
        tempfile.TemporaryDirectory() as folder,
    ):
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = endpoint
        inside = asyncio.run(_inside(options, Path(folder), kolibri))
        over_http = _over_http(options, Path(folder), kolibri)
    write_section("Watching over operations", [*_told(inside, over_http, options)])
    return 0


async def _inside(
    options: argparse.Namespace, folder: Path, kolibri: Program
) -> Mapping[str, Sequence[float]]:
    """Return the CPU microseconds of one operation, by who watches, one of each batch."""
    settings = read_settings(
        {
            "GATEWAY_DATA_FOLDER": str(folder / "inside"),
            "GATEWAY_TRACING": "on",
            "GATEWAY_MAX_AGE_SECONDS": "3600",
            "GATEWAY_IMPORT_HOURS": "0",
        }
    )
    schema = build_schema()
    async with open_gateway(settings) as parts:
        await parts.registration.register(
            ProviderDraft(
                id="1",
                platform="kolibri",
                base_url=kolibri.url,
                credentials=Secret({"username": "service_admin", "password": PASSWORD}),
            )
        )
        watchers: Mapping[str, OperationWatcher | None] = {
            "nobody": None,
            "metrics and log": Watching(
                parts.metrics, None, is_trusted=parts.documents.trusted.knows, slow_seconds=1
            ),
            "spans besides": parts.watching,
        }
        found: dict[str, list[float]] = {name: [] for name in watchers}
        for watcher in watchers.values():
            await _batch(parts, schema, watcher, options.batch)
        for _ in range(options.rounds):
            for name, watcher in watchers.items():
                found[name].append(await _batch(parts, schema, watcher, options.batch))
    return found


async def _batch(
    parts: Gateway, schema: strawberry.Schema, watcher: OperationWatcher | None, count: int
) -> float:
    began_at = time.process_time()
    for _ in range(count):
        context = parts.request_context(_ADMIN, "benchmark-request")
        context.watcher = watcher
        with metering(Meter()):  # as a request has it, whoever watches
            status, answer = await execute(schema, BODY, context)
        assert status == 200
        assert len(answer["data"]["users"]["nodes"]) == 10
    return (time.process_time() - began_at) / count * 1e6


def _over_http(
    options: argparse.Namespace, folder: Path, kolibri: Program
) -> Mapping[str, Sequence[float]]:
    """Return the CPU microseconds of one request, by whether it is traced, one of each batch."""
    kept = {"max_age_seconds": "3600", "import_hours": "0"}
    with (
        gateway(folder / "off", **kept) as off,
        gateway(folder / "on", tracing="on", **kept) as on,
        httpx.Client(trust_env=False, timeout=30) as client,
    ):
        programs = {"off": off, "on": on}
        found: dict[str, list[float]] = {name: [] for name in programs}
        for program in programs.values():
            register(
                program,
                "1",
                type="kolibri",
                url=kolibri.url,
                username="service_admin",
                password=PASSWORD,
            )
            _requests(client, program, options.batch)
        for _ in range(options.rounds):
            for name, program in programs.items():
                found[name].append(_requests(client, program, options.batch))
    return found


def _requests(client: httpx.Client, program: Program, count: int) -> float:
    before = _cpu_nanoseconds(program)
    for _ in range(count):
        answer = client.post(f"{program.url}/graphql", json=BODY, headers=dict(program.headers))
        assert answer.status_code == 200
        assert "errors" not in answer.json()
    return (_cpu_nanoseconds(program) - before) / count / 1e3


def _cpu_nanoseconds(program: Program) -> int:
    """Return what all threads of a process have used, finer than in hundredths of a second."""
    tasks = Path(f"/proc/{program.process.pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text("ascii").split()[0]) for task in tasks)


def _told(
    inside: Mapping[str, Sequence[float]],
    over_http: Mapping[str, Sequence[float]],
    options: argparse.Namespace,
) -> Iterator[str]:
    yield f"`{QUERY}`, answered from what is kept. CPU time of the whole process for each, medians"
    yield f"of {options.rounds} batches of {options.batch} by turns; differences are within a turn."
    yield ""
    yield "| | µs | more | half of the turns |"
    yield "| --- | --- | --- | --- |"
    for where, figures in (("executed, watched by", inside), ("over HTTP, tracing", over_http)):
        base = next(iter(figures.values()))
        for name, found in figures.items():
            more = [mine - others for mine, others in zip(found, base, strict=True)]
            low, middle, high = statistics.quantiles(more, n=4)
            spread = "|" if found is base else f"{middle:+.0f} | {low:+.0f} to {high:+.0f}"
            yield f"| {where} {name} | {statistics.median(found):.0f} | {spread} |"


class _Collector(BaseHTTPRequestHandler):
    """Takes whatever is sent."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Read and say thanks."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


@contextmanager
def _collector() -> Iterator[str]:
    port = free_port()
    process = subprocess.Popen([sys.executable, __file__, "--collector", str(port)])
    try:
        while not _listens(port):
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=150)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--collector", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
