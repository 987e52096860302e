"""What all protections together cost on a small query that is answered from what is kept.

    .venv/bin/python benchmarks/protections.py [--requests 400] [--rounds 25]

Two gateways of the same code serve the same provider: one as it is, one whose protections are taken
out here: load shedding, the limit of request heads, the checks of other sites' pages, of bodies and
of variables, and the account of cost. Both still ask for a key. One caller sends the same query
over one connection, to each in turn; the CPU of each gateway's process is read around every round,
and the least round of each counts. Writes its table into benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import uvicorn
from results import write_section
from roster_export import _free_port, _wait

from gateway import graphql_http
from gateway.app import create_app
from gateway.browsers import Browsers
from gateway.shedding import LoadShedding
from schema import execution
from simulators.kolibri.population import PASSWORD

ROOT = Path(__file__).resolve().parent.parent
QUERY = "query ($first: Int) { users(first: $first) { nodes { id displayName } } }"
_MOST_MILLISECONDS = 0.3
_SETTLE_SECONDS = 0.01


class _NoSpending:
    """Stands where cost is accounted for, and accounts for nothing."""

    def __init__(self, _context: object) -> None:
        """Take what is given."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        """Do nothing."""

    def estimate(self, *_anything: object) -> None:
        """Do nothing."""

    def begin(self) -> None:
        """Do nothing."""

    def noted(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Return what is given."""
        return answer


def serve_unprotected() -> None:
    """Serve the application of this environment with nothing that protects it but the keys."""
    execution.Spending = _NoSpending  # type: ignore[misc,assignment]  # only here
    execution.check_variables = lambda *_: None
    graphql_http.decode_object = json.loads
    Browsers.require_known = lambda *_: None  # type: ignore[method-assign]  # only here
    app = create_app()
    app.user_middleware = [one for one in app.user_middleware if one.cls is not LoadShedding]
    uvicorn.run(
        app,
        port=int(os.environ["GATEWAY_PORT"]),
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
    )


@contextmanager
def _running(command: list[str], environment: Mapping[str, str], log: Path) -> Iterator[int]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=dict(environment), stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait(30)


class Gateway:
    """A gateway that runs, and one connection to it."""

    def __init__(self, pid: int, port: int, token: str) -> None:
        """Wait until it can be asked."""
        self._pid = pid
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        _wait(f"http://127.0.0.1:{port}/ready")
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def post(self, path: str, body: object) -> Any:
        """Return the decoded answer, which must be 200."""
        self._connection.request("POST", path, json.dumps(body).encode(), self._headers)
        answer = self._connection.getresponse()
        content = answer.read()
        assert answer.status == 200, content
        return json.loads(content)

    def milliseconds(self, requests: int) -> float:
        """Return the CPU of the process for one of so many requests."""
        body = {"query": QUERY, "variables": {"first": 5}}
        before = self._cpu_seconds()
        for _ in range(requests):
            self.post("/graphql", body)
        return (self._cpu_seconds() - before) * 1000 / requests

    def _cpu_seconds(self) -> float:
        time.sleep(_SETTLE_SECONDS)  # what runs on another core is accounted for when it pauses
        return time.clock_gettime((~self._pid << 3) | 2)  # as clock_getcpuclockid makes it


@contextmanager
def _both() -> Iterator[tuple[Gateway, Gateway]]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        kolibri_port, token = _free_port(), secrets.token_urlsafe(32)
        kolibri = [sys.executable, "-m", "simulators.kolibri", "--port", str(kolibri_port)]
        stack.enter_context(_running(kolibri, os.environ, folder / "kolibri.log"))
        _wait(f"http://127.0.0.1:{kolibri_port}/api/public/info/")
        gateways = []
        serve = [sys.executable, "-m", "gateway.command_line", "serve"]
        for name, command in (
            ("protected", serve),
            ("unprotected", [sys.executable, __file__, "--serve-unprotected"]),
        ):
            port = _free_port()
            environment = os.environ | {
                "PYTHONPATH": str(ROOT),
                "GATEWAY_PORT": str(port),
                "GATEWAY_DATA_FOLDER": str(folder / name),
                "GATEWAY_TOKEN": token,
                "GATEWAY_MAX_AGE_SECONDS": "3600",
                "GATEWAY_MAX_KEY_COST": "1000000000",
                "GATEWAY_MAX_KEY_OPERATIONS": "100",
            }
            log = folder / f"{name}.log"
            pid = stack.enter_context(_running(command, environment, log))
            gateway = Gateway(pid, port, token)
            details = {"id": "1", "type": "kolibri", "url": f"http://127.0.0.1:{kolibri_port}"}
            login = {"username": "service_admin", "password": PASSWORD}
            gateway.post("/api/add-provider", details | login)
            gateways.append(gateway)
        yield gateways[0], gateways[1]


def main() -> int:
    """Measure both and write the table; 1 when the protections cost more than they may."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=400, help="of each round")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--serve-unprotected", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve_unprotected:
        serve_unprotected()
        return 0
    with _both() as (protected, unprotected):
        for gateway in (protected, unprotected):
            gateway.milliseconds(options.requests)  # warm
        pairs = [
            (protected.milliseconds(options.requests), unprotected.milliseconds(options.requests))
            for _ in range(options.rounds)
        ]
    least = [min(column) for column in zip(*pairs, strict=True)]
    median = statistics.median(one - other for one, other in pairs)
    cost = least[0] - least[1]
    write_section(
        "Cost of all protections",
        [
            (
                f"`{QUERY}` with five rows from what is kept; {options.rounds} rounds of"
                f" {options.requests} requests to each gateway in turn, one caller. CPU of the"
                " gateway's process for one request, HTTP included."
            ),
            "",
            "| gateway | least round, CPU ms | median, CPU ms |",
            "| --- | ---: | ---: |",
            f"| as it is | {least[0]:.3f} | {statistics.median(one for one, _ in pairs):.3f} |",
            (
                "| without load shedding, limits, checks and cost |"
                f" {least[1]:.3f} | {statistics.median(other for _, other in pairs):.3f} |"
            ),
            f"| difference | {cost:.3f} | {median:.3f} |",
        ],
    )
    return int(cost > _MOST_MILLISECONDS)


if __name__ == "__main__":
    sys.exit(main())
