"""Whole rosters: the gateway's REST answer and command line beside a bare script.

    .venv/bin/python benchmarks/roster_export.py [--users 10000] [--rounds 5]
    .venv/bin/python benchmarks/roster_export.py --kolibri-url URL --username U --password P

The bare script logs in and fetches the same pages with the same HTTP client, one after another,
decodes them and keeps nothing. All contestants run in each round, in turn, against one server: the
simulated Kolibri with that many users, or the real one whose URL is given. Writes its table into
benchmarks/RESULTS.md. The gateway's memory is its resident set, the peak reset before each round.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import os
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

import msgspec
from results import write_section

from sessions.addresses import AddressPolicy
from sessions.http import ProviderHttp
from simulators.kolibri.population import PASSWORD

ROOT = Path(__file__).resolve().parent.parent
PAGE_SIZE = 1000


@dataclass(kw_only=True)
class Contestant:
    """One way to read the roster, with what it took."""

    name: str
    seconds: list[float] = field(default_factory=list)
    rows: int = 0


@dataclass(frozen=True, kw_only=True)
class Server:
    """A Kolibri and the account to read it with."""

    url: str
    username: str
    password: str
    facility: str | None
    kind: str


def main() -> int:
    """Run the rounds and write the table."""
    options = _options()
    with tempfile.TemporaryDirectory() as scratch, _server(options, Path(scratch)) as server:
        folder = Path(scratch)
        token, port = secrets.token_urlsafe(32), _free_port()
        environment = os.environ | {
            "GATEWAY_HOST": "127.0.0.1",
            "GATEWAY_PORT": str(port),
            "GATEWAY_DATA_FOLDER": str(folder / "data"),
            "GATEWAY_TOKEN": token,
        }
        command = str(Path(sys.executable).with_name("learning-gateway"))
        with _running([command, "serve"], environment, folder / "gateway.log") as process:
            url = f"http://127.0.0.1:{port}"
            _wait(f"{url}/ready")
            _register(url, token, server)
            bare = Contestant(name="bare script, same pages, same client")
            rest = Contestant(name="gateway, GET /api/users")
            line = Contestant(name="learning-gateway export users, start-up included")
            start = Contestant(name="learning-gateway keys list: start-up alone")
            growth: list[int] = []
            for _ in range(options.rounds + 1):  # the first warms both up and is not counted
                _timed(bare, lambda: asyncio.run(_bare(server)))
                before = _reset_peak(process.pid)
                _timed(rest, lambda: _rest(url, token))
                growth.append(_peak(process.pid) - before)
                _timed(line, lambda: _export(command, environment, folder / "users.csv"))
                _timed(start, lambda: _start_up(command, environment))
            _report(server, [bare, rest, line, start], growth, options.rounds)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kolibri-url")
    parser.add_argument("--username", default="bulk_admin")
    parser.add_argument("--password", default=PASSWORD)
    parser.add_argument("--facility", help="id of the facility, when it is not the default one")
    return parser.parse_args()


@contextmanager
def _server(options: argparse.Namespace, folder: Path) -> Iterator[Server]:
    account = {
        "username": options.username,
        "password": options.password,
    }
    if options.kolibri_url:
        yield Server(
            url=options.kolibri_url, facility=options.facility, kind="real Kolibri", **account
        )
        return
    port = _free_port()
    command = [sys.executable, "-m", "simulators.kolibri", "--port", str(port)]
    command += ["--bulk-users", str(options.users)]
    with _running(command, os.environ, folder / "kolibri.log"):
        url = f"http://127.0.0.1:{port}"
        _wait(f"{url}/api/public/info/")
        lab = _get(f"{url}/_control/lab", None)
        facility = lab["facilities"]["bulk"]["id"]
        yield Server(url=url, facility=facility, kind="simulated Kolibri", **account)


@contextmanager
def _running(
    command: Sequence[str], environment: os._Environ[str] | dict[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=dict(environment), stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


async def _bare(server: Server) -> int:
    rows = 0
    async with ProviderHttp.open(
        server.url,
        provider_id=None,
        policy=AddressPolicy(allowed_networks=["127.0.0.0/8"]),
    ) as http:
        login = await http.request(
            "POST",
            "/api/auth/session/",
            json={
                "username": server.username,
                "password": server.password,
                "facility": server.facility,
            },
        )
        page, pages = 1, 1
        while page <= pages:
            answer = await http.request(
                "GET",
                "/api/auth/facilityuser/",
                params={
                    "member_of": server.facility,
                    "ordering": "id",
                    "page": page,
                    "page_size": PAGE_SIZE,
                },
                cookies=login.cookies,
            )
            content = answer.decode(dict)
            rows += len(content["results"])
            page, pages = page + 1, content["total_pages"]
    return rows


def _rest(url: str, token: str) -> int:
    return len(_get(f"{url}/api/users?{urlencode({'id': '1'})}", token))


def _export(command: str, environment: dict[str, str], target: Path) -> int:
    subprocess.run(
        [command, "export", "users", "--provider", "1", "--format", "csv", "--output", str(target)],
        env=environment,
        check=True,
        capture_output=True,
    )
    with target.open(encoding="utf-8-sig", newline="") as lines:
        return sum(1 for _ in csv.reader(lines)) - 1


def _start_up(command: str, environment: dict[str, str]) -> int:
    subprocess.run([command, "keys", "list"], env=environment, check=True, capture_output=True)
    return 0


def _timed(contestant: Contestant, run: object) -> None:
    assert callable(run)
    started = time.perf_counter()
    contestant.rows = run()
    contestant.seconds.append(time.perf_counter() - started)


def _register(url: str, token: str, server: Server) -> None:
    details = {
        "id": "1",
        "type": "kolibri",
        "url": server.url,
        "username": server.username,
        "password": server.password,
        "account_id": server.facility or "",
    }
    request = urllib.request.Request(
        f"{url}/api/add-provider",
        msgspec.json.encode(details),
        {"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60):
        pass


def _get(url: str, token: str | None) -> dict[str, dict[str, dict[str, str]]]:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=600) as body:
        decoded: dict[str, dict[str, dict[str, str]]] = msgspec.json.decode(body.read())
        return decoded


def _wait(url: str) -> None:
    for _ in range(600):
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"{url} did not answer")


def _reset_peak(pid: int) -> int:
    """Forget the highest resident set so far; return the present one, in KiB."""
    Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")
    return _status(pid, "VmRSS")


def _peak(pid: int) -> int:
    return _status(pid, "VmHWM")


def _status(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise SystemExit(f"{name} is not in /proc/{pid}/status")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _report(
    server: Server, contestants: Sequence[Contestant], growth: Sequence[int], rounds: int
) -> None:
    floor = statistics.median(contestants[0].seconds[1:])
    lines = [
        (
            f"{contestants[0].rows} users of a {server.kind}, pages of {PAGE_SIZE}, "
            f"median of {rounds} rounds."
        ),
        "",
        "| contestant | rows | seconds | ratio |",
        "| --- | --- | --- | --- |",
    ]
    for contestant in contestants:
        seconds = statistics.median(contestant.seconds[1:])
        lines.append(
            f"| {contestant.name} | {contestant.rows} | {seconds:.2f} | {seconds / floor:.2f} |"
        )
    lines += ["", f"Memory growth of the gateway during one answer: {max(growth) / 1024:.1f} MiB."]
    write_section(f"Whole roster, {server.kind}", lines)


if __name__ == "__main__":
    sys.exit(main())
