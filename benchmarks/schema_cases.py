"""A hundred thousand operations made from the schema, and whether any answer is a fault of ours.

    .venv/bin/pip install --require-hashes -r benchmarks/schema_cases.lock
    .venv/bin/python benchmarks/schema_cases.py [--cases 100000] [--minutes 15] [--seed 1]

Schemathesis makes an operation for each field of Query and Mutation in turn. In some of them texts
are replaced by ids that exist, for otherwise nearly all would ask for nothing that is there. Each
part is a process that sends them to a gateway of its own, with a simulated Kolibri and a simulated
Canvas, over HTTP, and one in ten over a websocket. Writes its table into benchmarks/RESULTS.md,
and ends with 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import schemathesis
from graphql import get_introspection_query
from hypothesis import HealthCheck, Phase, given, seed, settings
from results import write_section
from roster_export import _free_port, _running, _wait
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from simulators.canvas.state import ADMIN_TOKEN  # noqa: E402 - not installed
from simulators.kolibri.population import PASSWORD  # noqa: E402 - the same

_TOKEN: Final = "bootstrap-token-of-the-cases"  # noqa: S105 - of a gateway of our own
_BATCH: Final = 20
_SLOW_SECONDS: Final = 10.0
_HANG_SECONDS: Final = 60.0
_BY_SOCKET: Final = 0.1
_KNOWN_IDS: Final = 0.5
_TEXT: Final = re.compile(r'(?<!")"(?!")(?:[^"\\\n]|\\.)*"(?!")')
_INSIDES: Final = re.compile(
    r"Traceback|\.py\b|sqlalchemy|aiosqlite|aiohttp|httpx|Errno| object at 0x|\w(Error|Exception)\("
)
_IDS: Final = """{
  users(first: 20) { nodes { id externalId enrollments(first: 2) { nodes { id } } } }
  courses(first: 20) { nodes { id externalId } }
  changes(first: 1) { latestCursor }
}"""


@dataclass(kw_only=True)
class Verdict:
    """What came of the cases of one part."""

    asked: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    with_data: int = 0
    slowest_seconds: float = 0.0

    def note_wrong(self, what: str, document: str, told: str) -> None:
        """Take note of an answer that should not be, with the first ones whole."""
        self.wrong[what] += 1
        if len(self.examples) < 10:
            self.examples.append(f"{what}\n{document}\n{told[:500]}\n")


class Caller:
    """Sends operations, and judges what comes back."""

    def __init__(self, url: str, choose: random.Random) -> None:
        self.verdict = Verdict()
        self._url = url
        self._choose = choose
        self._headers = {"Authorization": f"Bearer {_TOKEN}"}
        self._client = httpx.Client(base_url=url, headers=self._headers, timeout=_HANG_SECONDS)
        self._socket: ClientConnection | None = None
        self._known: Sequence[str] = ()

    def register(self, kolibri: str, canvas: str) -> None:
        """Register both platforms, again if a case removed one."""
        for details in (
            {"id": "1", "type": "kolibri", "url": kolibri, "username": "service_admin"}
            | {"password": PASSWORD},
            {"id": "2", "type": "canvas", "url": canvas, "api_key": ADMIN_TOKEN},
        ):
            answer = self._client.post("/api/add-provider", json=details)
            assert answer.status_code == 200, answer.text
        answer = self._client.post("/graphql", json={"query": _IDS})
        self._known = ["1", "2", *_texts_in(answer.json()["data"])]

    def introspect(self) -> Any:
        """Return the schema as the gateway tells it."""
        answer = self._client.post("/graphql", json={"query": get_introspection_query()})
        return answer.json()["data"]

    def ask(self, label: str, document: str) -> None:
        """Send one operation, and judge the answer."""
        if self._choose.random() < _KNOWN_IDS:
            document = _TEXT.sub(self._known_text, document)
        self.verdict.asked[label] += 1
        began_at = time.perf_counter()
        by_socket = self._choose.random() < _BY_SOCKET
        try:
            told = self._by_socket(document) if by_socket else self._by_http(document)
        except (httpx.TransportError, TimeoutError, ConnectionClosed) as error:
            self._socket = None
            self.verdict.note_wrong("no answer", document, repr(error))
            return
        seconds = time.perf_counter() - began_at
        self.verdict.slowest_seconds = max(self.verdict.slowest_seconds, seconds)
        if seconds > _SLOW_SECONDS:
            self.verdict.note_wrong("slow", document, f"{seconds:.1f} s")
        self._judge(document, told)

    def _known_text(self, found: re.Match[str]) -> str:
        if self._choose.random() < 0.3:
            return found.group()
        return json.dumps(self._choose.choice(self._known))

    def _by_http(self, document: str) -> Mapping[str, Any]:
        answer = self._client.post("/graphql", json={"query": document})
        self.verdict.statuses[str(answer.status_code)] += 1
        if answer.status_code >= 500:
            self.verdict.note_wrong("status 5xx", document, answer.text)
        told = answer.json()
        assert isinstance(told, dict)
        return told

    def _by_socket(self, document: str) -> Mapping[str, Any]:
        if self._socket is None:
            self._socket = connect(
                f"{self._url.replace('http', 'ws', 1)}/graphql",
                subprotocols=[Subprotocol("graphql-transport-ws")],
                additional_headers=self._headers,
                compression=None,
                proxy=None,
                max_size=None,
            )
            self._socket.send('{"type": "connection_init"}')
            self._socket.recv(timeout=_HANG_SECONDS)
        message = {"id": "1", "type": "subscribe", "payload": {"query": document}}
        self._socket.send(json.dumps(message))
        heard = json.loads(self._socket.recv(timeout=_HANG_SECONDS))
        self.verdict.statuses[heard["type"]] += 1
        if heard["type"] == "error":
            return {"errors": heard["payload"]}
        self._socket.recv(timeout=_HANG_SECONDS)
        told: Mapping[str, Any] = heard["payload"]
        return told

    def _judge(self, document: str, told: Mapping[str, Any]) -> None:
        errors = told.get("errors", [])
        codes = [error.get("extensions", {}).get("code", "none") for error in errors]
        self.verdict.codes.update(codes)
        data = told.get("data") or {}
        self.verdict.with_data += any(value is not None for value in data.values())
        if "INTERNAL" in codes or "none" in codes:
            self.verdict.note_wrong("error without a code of its own", document, json.dumps(told))
        if not errors and "data" not in told:
            self.verdict.note_wrong("neither data nor errors", document, json.dumps(told))
        messages = " ".join(str(error.get("message")) for error in errors)
        if _INSIDES.search(messages):
            self.verdict.note_wrong("unmasked", document, messages)


def main() -> int:
    """Make, send and judge, and write the table."""
    options = _options()
    began_at = time.perf_counter()
    orders = [
        argparse.Namespace(**{**vars(options), "seed": options.seed + 1_000_000 * number})
        for number in range(options.parts)
    ]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.parts, mp_context=context) as pool:
        parts = list(pool.map(_part, orders))
    for part in parts:
        print(*part.examples, sep="\n")
    write_section(
        "Operations made from the schema", _lines(options, parts, time.perf_counter() - began_at)
    )
    return int(any(part.wrong for part in parts))


def _part(options: argparse.Namespace) -> Verdict:
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folder = Path(scratch)
        kolibri = stack.enter_context(_platform("kolibri", folder))
        canvas = stack.enter_context(_platform("canvas", folder, "--no-throttle"))
        url = stack.enter_context(_gateway(folder, [kolibri, canvas]))
        caller = Caller(url, random.Random(options.seed))
        ends_at = time.monotonic() + 60 * options.minutes
        rounds = 0
        while caller.verdict.asked.total() < options.cases // options.parts:
            caller.register(kolibri, canvas)
            if rounds == 0:
                schema = schemathesis.graphql.from_dict(caller.introspect())
                operations = [found.ok() for found in schema.get_all_operations()]
            for number, operation in enumerate(operations):
                _batch(caller, operation, options.seed + 1000 * rounds + number)
            rounds += 1
            if time.monotonic() > ends_at:
                break
        log = (folder / "gateway.log").read_text(encoding="utf-8", errors="replace")
        if faults := log.count("internal_error") + log.count("Traceback"):
            caller.verdict.note_wrong("faults in the log", "", str(faults))
        return caller.verdict


def _batch(caller: Caller, operation: Any, number: int) -> None:
    @seed(number)
    @settings(
        max_examples=_BATCH,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def ask(case: Any) -> None:
        caller.ask(operation.label, case.body)

    ask()


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _texts_in(part)
    elif isinstance(value, list):
        for part in value:
            yield from _texts_in(part)


@contextmanager
def _platform(name: str, folder: Path, *more: str) -> Iterator[str]:
    port = _free_port()
    command = [sys.executable, "-m", f"simulators.{name}", "--port", str(port), *more]
    with _running(command, os.environ, folder / f"{name}.log"):
        url = f"http://127.0.0.1:{port}"
        _wait(f"{url}/_control/counts")
        yield url


@contextmanager
def _gateway(folder: Path, providers: Sequence[str]) -> Iterator[str]:
    port = _free_port()
    environment = {
        **os.environ,
        "GATEWAY_PORT": str(port),
        "GATEWAY_DATA_FOLDER": str(folder / "data"),
        "GATEWAY_TOKEN": _TOKEN,
        "GATEWAY_ALLOWED_PROVIDER_URLS": ",".join(providers),
        "GATEWAY_SLOW_SECONDS": "0",
    }
    command = [sys.executable, "-m", "gateway.command_line", "serve"]
    with _running(command, environment, folder / "gateway.log"):
        url = f"http://127.0.0.1:{port}"
        _wait(f"{url}/ready")
        yield url


def _lines(options: argparse.Namespace, parts: Sequence[Verdict], seconds: float) -> Sequence[str]:
    asked = sum((part.asked for part in parts), Counter[str]())
    wrong = sum((part.wrong for part in parts), Counter[str]())
    statuses = sum((part.statuses for part in parts), Counter[str]())
    codes = sum((part.codes for part in parts), Counter[str]())
    head = (
        f"Schemathesis {schemathesis.__version__}, seed {options.seed}, {options.parts} gateways"
        f" with a simulated Kolibri and a simulated Canvas each; {seconds:.0f} s."
    )
    return [
        head,
        "",
        "| what | figure |",
        "| --- | --- |",
        f"| operations sent | {asked.total()} |",
        f"| fields of Query and Mutation asked for | {len(asked)} |",
        f"| of a field, at least | {min(asked.values())} |",
        f"| answers with data | {sum(part.with_data for part in parts)} |",
        *(f"| {title} | {wrong[what]} |" for what, title in _ROWS.items()),
        f"| slowest answer | {max(part.slowest_seconds for part in parts):.2f} s |",
        "",
        "Answers by status over HTTP, and by type over a websocket: "
        + ", ".join(f"{name} {count}" for name, count in statuses.most_common())
        + ".",
        "",
        f"Codes: {', '.join(f'{name} {count}' for name, count in codes.most_common())}.",
    ]


_ROWS: Final = {
    "status 5xx": "answers with a status of 500 or more",
    "error without a code of its own": "answers with the code INTERNAL, or an error without a code",
    "unmasked": "answers that tell of our insides",
    "neither data nor errors": "answers with neither data nor errors",
    "no answer": "connections or sockets cut, and answers that did not come in 60 s",
    "slow": "answers that took more than 10 s",
    "faults in the log": "gateways whose log has faults",
}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--parts", type=int, default=2, help="processes that share the work")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
