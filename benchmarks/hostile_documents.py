"""What it costs to refuse the worst documents: CPU of the gateway for each, and SIGTERM under them.

    .venv/bin/python benchmarks/hostile_documents.py [--times 15] [--seconds 3]

A real gateway is started. Each document is sent several times over one connection, never twice the
same text, because what was read is remembered; the CPU of the gateway's process, all its threads,
is read before and after, and the least of all times counts: what else the machine does only adds.
Every one must be refused, and within 10 ms. Then callers send them all at once without a pause, and
the gateway is told to stop. Writes its table into benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from graphql import get_introspection_query
from results import write_section
from roster_export import _free_port, _wait

_MOST_MILLISECONDS = 10.0
_CALLERS = 8
_STOP_SECONDS = 1.0
_SETTLE_SECONDS = 0.005
_NUMBERS = count()


def doubling(times: int, *, leaf: str = "id") -> str:
    """Return the small document that stands for 2 to the power of ``times`` fields."""
    fragments = "".join(f"fragment f{n} on User{{...f{n + 1} ...f{n + 1}}}" for n in range(times))
    return f"{{users{{nodes{{...f0}}}}}}{fragments}fragment f{times} on User{{{leaf}}}"


def _chain(length: int, last: str) -> str:
    fragments = "".join(f"fragment f{n} on Query{{...f{n + 1}}}" for n in range(length))
    return f"{{...f0}}{fragments}fragment f{length} on Query{{{last}}}"


def _each(template: str, times: int, separator: str = " ") -> str:
    return separator.join(template.replace("#", str(number)) for number in range(times))


_TYPES = "{ofType" * 30 + "{name" + "}" * 31
_UP_AND_DOWN = "enrollments(first:1000){nodes{course{enrollments(first:1000){nodes{user{id}}}}}}"

DOCUMENTS: Mapping[str, str] = {
    "fragments that double, 20 times": doubling(20),
    "fragments that double, 40 times": doubling(40),
    "fragments that double and end in none that is there": doubling(40, leaf="...gone"),
    "fragments that double in a circle": doubling(40, leaf="...f0"),
    "fragments that triple": doubling(30).replace("} fragment", " ...f1} fragment"),
    "a circle of two fragments": "{...a}fragment a on Query{...b}fragment b on Query{...a}",
    "a chain of 49 fragments to an unknown field": _chain(49, "nothing"),
    "a chain of 150 fragments": _chain(150, "providers{id}"),
    "14 fragments, each spread in each": "{...f0}"
    + _each("fragment f# on Query{" + _each("...f#", 14) + "}", 14),
    "12 000 aliases": "{" + _each("a#:providers{id}", 12_000) + "}",
    "100 aliases, the last of an unknown field": "{"
    + _each("a#:providers{id}", 49)
    + " providers{"
    + _each("b#:id", 49)
    + " nothing}}",
    "4 000 directives on a field": "{providers{id " + "@include(if:true)" * 4_000 + "}}",
    "50 directives that do not exist": "{providers{id " + _each("@d#", 50) + "}}",
    "directives on a variable": "query($a:Int " + _each("@d#(a:1)", 49) + "){providers{id}}",
    "one field 310 times and an unknown one": "{providers{" + "id " * 310 + "nothing}}",
    "one field 80 times with arguments": "{providers{" + "sessions(first:1){state}" * 80 + "x}}",
    "one field with 48 values of an argument": "{"
    + _each("providers{sessions(first:#){state}}", 48)
    + "}",
    "one name for many fields": "{providers{" + _each("x:id x:name", 45) + "}}",
    "315 unknown fields": "{providers{" + _each("field#", 315) + "}}",
    "unknown fields much like known ones": "{providers{" + _each("providerI#", 315) + "}}",
    "an unknown field of 15 000 letters": "{" + "x" * 15_000 + "}",
    "unknown fields of 1 500 letters": "{" + _each("x#" + "y" * 1_500, 10) + "}",
    "260 unknown arguments": "{providers(" + _each("a#:1", 260) + "){id}}",
    "one argument 260 times": "{providers(" + "a:1 " * 260 + "){id}}",
    "an argument of 780 ids": '{nodes(ids:["' + _each('x"', 780, ' "') + "]){nothing}}",
    "an argument of 9 000 ids": "{nodes(ids:[" + "1 " * 9_000 + "]){id}}",
    "a list 39 deep": "{users(filter:{userIds:" + "[" * 35 + "]" * 35 + "}){nodes{id}}}",
    "a list 5 000 deep": "{users(filter:" + "[" * 5_000 + "]" * 5_000 + "){nodes{id}}}",
    "an object 5 000 deep": "{users(filter:" + "{a:" * 5_000 + "1" + "}" * 5_000 + "){nodes{id}}}",
    "an object of 50 fields": "{users(filter:{" + _each("a#:1", 50) + "}){nodes{id}}}",
    "a text of 15 000 letters": '{user(id:"' + "x" * 15_000 + '"){nothing}}',
    "a text of escapes": '{user(id:"' + "\\u0041" * 2_600 + '"){nothing}}',
    "a block of text without end": '{user(id:"""' + '\\"""' * 3_900,
    "a text without end in each line": '{user(id:"\n' * 1_500,
    "brackets 9 000 deep": "{" * 9_000,
    "fields 39 deep": "{a" * 39 + "}" * 39,
    "inline fragments 39 deep": "{... on Query" * 38 + "{nothing}" + "}" * 38,
    "105 inline fragments side by side": "{" + "...{providers{nothing}}" * 105 + "}",
    "introspection in introspection": "{__schema{types{fields{type{fields{type{fields{name}}}}}}}}",
    "introspection by fragments": "{__schema{types{...t}}}fragment t on __Type{fields{type{...t}}}",
    "introspection 30 deep": '{__type(name:"User")' + _TYPES + "}",
    "introspection 60 times": "{" + _each("a#:__schema{types{name}}", 60) + "}",
    "the introspection query, 4 times, and an unknown field": " ".join(
        get_introspection_query().replace("IntrospectionQuery", f"I{number}") for number in range(4)
    )
    + "query x{nothing}",
    "1 000 operations": _each("query q#{providers{id}}", 1_000),
    "20 operations with 49 fragments each": _each("query q#{...f0}", 20)
    + _chain(49, "nothing").removeprefix("{...f0}"),
    "200 variables": "query(" + _each("$a#:Int", 200) + "){providers{id}}",
    "50 variables that are not used": "query(" + _each("$a#:Int", 50) + "){providers{id}}",
    "one variable 50 times": "query(" + "$a:Int " * 50 + "){providers{id}}",
    "15 000 spaces before an error": " " * 15_000 + "}",
    "15 000 commas before an error": "," * 15_000 + "}",
    "1 590 lines before 10 errors": "\n" * 1_590 + "{" + _each("field#", 200) + "}",
    "1 590 carriage returns before 10 errors": "\r" * 1_590 + "{" + _each("field#", 200) + "}",
    "31 000 lines": "\n" * 31_000 + "{providers{id}}",
    "a comment of 15 000 letters": "#" + "x" * 15_000 + "\n{nothing}",
    "5 000 comments": "#\n" * 5_000 + "{providers{id}}",
    "a document of 99 000 letters": "{" + "x " * 49_000 + "}",
    "a number of 15 000 digits": "{users(first:" + "9" * 15_000 + "){nodes{id}}}",
    "780 numbers that are no ids": "{nodes(ids:[" + "1.5 " * 780 + "]){id}}",
    "two surrogates that do not belong together": '{user(id:"\\ud800\\ud800"){id}}',
    "no document but its worst letters": "\ufeff\u0000\u2028" * 5_000,
    "roles that are none": "{users(filter:{roles:[" + _each("R#", 780) + "]}){nodes{id}}}",
}


@dataclass(frozen=True, kw_only=True)
class Hostile:
    """A body; ``text`` is made different each time it is sent."""

    name: str
    body: Any
    raw: bytes | None = None

    def encoded(self) -> bytes:
        """Return a body that was not sent before."""
        if self.raw is not None:
            return self.raw
        body = dict(self.body)
        body["query"] += " " * (next(_NUMBERS) % 500)
        return json.dumps(body).encode()


def _with_variables(variables: object, *, kind: str = "[ID!]") -> Mapping[str, Any]:
    query = f"query($a:{kind}){{users(filter:{{userIds:$a}}){{nodes{{id}}}}}}"
    return {"query": query, "variables": variables}


def _deep(levels: int) -> object:
    value: object = 1
    for _ in range(levels):
        value = [value]
    return value


def bodies() -> Iterator[Hostile]:
    """Yield everything that is sent."""
    for name, text in DOCUMENTS.items():
        yield Hostile(name=name, body={"query": text})
    variables = {
        "a variable of 20 000 values": {"a": ["x"] * 20_000},
        "a variable of 1 000 values that are all wrong": {"a": [{"b": 1}] * 1_000},
        "a variable of 5 lists of 1 000": {"a": [["x"] * 990] * 5},
        "8 000 variables": {f"a{number}": 1 for number in range(8_000)},
        "a variable 60 deep": {"a": _deep(60)},
        "a variable 900 deep": {"a": _deep(900)},
        "a variable of 90 000 letters where none belong": {"a": {"b": "x" * 90_000}},
        "a variable with 4 000 names": {"a": {f"n{number}": 1 for number in range(4_000)}},
        "a variable of 90 objects of 50 names": {"a": [{f"n{n}": 1 for n in range(50)}] * 90},
    }
    for name, given in variables.items():
        yield Hostile(name=name, body=_with_variables(given))
    roles = "query($a:[RoleValue!]){users(filter:{roles:$a}){nodes{id}}}"
    wrong = {"query": roles, "variables": {"a": [f"R{number}" for number in range(1_000)]}}
    yield Hostile(name="a variable of 1 000 roles that are none", body=wrong)
    rows = f"{{users(first:1000){{nodes{{{_UP_AND_DOWN}}}}}}}"
    yield Hostile(name="lists in lists for 10^12 rows", body={"query": rows})
    raw = {
        "an array of 1 000 requests": b"[" + b'{"query":"{providers{id}}"},' * 999 + b"1]",
        "a body of 99 000 open brackets": b'{"query":' + b"[" * 99_000,
        "a body of 30 000 empty lists": b'{"query":[' + b"[]," * 30_000 + b"1]}",
        "a body that is one long text": b'"' + b"x" * 99_000 + b'"',
        "a body of 99 000 quotes": b'"' * 99_000,
        "a body of escapes": b'{"query":"' + b"\\u0020" * 16_000 + b'"}',
        "a body that is not UTF-8": b'{"query":"' + b"\xff" * 90_000 + b'"}',
        "a body of 1 MB": b" " * 1_000_000,
        "an operation name of 90 000 letters": json.dumps(
            {"query": "query a{providers{id}}", "operationName": "x" * 90_000}
        ).encode(),
    }
    for name, body in raw.items():
        yield Hostile(name=name, body=None, raw=body)


@dataclass(frozen=True, kw_only=True)
class Gateway:
    """A gateway that runs in a process of its own."""

    process: subprocess.Popen[bytes]
    port: int
    token: str

    def send(self, connection: http.client.HTTPConnection, body: bytes) -> tuple[int, bytes]:
        """Return status and body of the answer."""
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        connection.request("POST", "/graphql", body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()

    def cpu_seconds(self) -> float:
        """Return what all threads of the process have used."""
        return time.clock_gettime((~self.process.pid << 3) | 2)  # as clock_getcpuclockid makes it


@contextmanager
def running() -> Iterator[Gateway]:
    """Start a gateway that nobody else knows."""
    token, port = secrets.token_urlsafe(32), _free_port()
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {
            "GATEWAY_PORT": str(port),
            "GATEWAY_DATA_FOLDER": f"{folder}/data",
            "GATEWAY_TOKEN": token,
            "GATEWAY_LOG_LEVEL": "warning",
        }
        command = [sys.executable, "-m", "gateway.command_line", "serve"]
        with Path(f"{folder}/log").open("wb") as log:
            process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            _wait(f"http://127.0.0.1:{port}/ready")
            yield Gateway(process=process, port=port, token=token)
        finally:
            process.terminate()
            process.wait(30)


def measured(gateway: Gateway, hostile: Hostile, *, times: int) -> tuple[float, str, int]:
    """Return the least CPU milliseconds, how it was refused, and the size of the answer.

    Raises:
        SystemExit: It was not refused, or not by a caller's fault.
    """
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
    spent = []
    for _ in range(times):
        body = hostile.encoded()
        before = gateway.cpu_seconds()
        status, answer = gateway.send(connection, body)
        time.sleep(_SETTLE_SECONDS)  # what runs on another core is accounted for when it pauses
        spent.append(gateway.cpu_seconds() - before)
    connection.close()
    errors = json.loads(answer).get("errors") or [{}]
    code = errors[0].get("extensions", {}).get("code")
    if code not in {"BAD_INPUT", "REQUEST_LIMIT_EXCEEDED"}:
        raise SystemExit(f"{hostile.name}: status {status}, {answer[:300]!r}")
    return min(spent) * 1000, f"{status} {code}", len(answer)


def stopped_under_attack(gateway: Gateway, *, seconds: float) -> tuple[float, float, int]:
    """Return when after SIGTERM nobody was served, when all had ended, and how many were before."""
    sent = [hostile.encoded() for hostile in bodies()]
    refused = count()
    closed_at: list[float] = []

    def attack() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=10)
        while True:
            for body in sent:
                try:
                    gateway.send(connection, body)
                except ConnectionRefusedError:
                    closed_at.append(time.perf_counter())
                    return
                except (OSError, http.client.HTTPException):
                    connection.close()
                else:
                    next(refused)

    callers = [threading.Thread(target=attack, daemon=True) for _ in range(_CALLERS)]
    for caller in callers:
        caller.start()
    time.sleep(seconds)
    told_at = time.perf_counter()
    gateway.process.send_signal(signal.SIGTERM)
    gateway.process.wait(60)
    ended_at = time.perf_counter()
    for caller in callers:
        caller.join()
    return max(closed_at) - told_at, ended_at - told_at, next(refused)


def main() -> int:
    """Measure everything and write the table; 1 when something took too long."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=15, help="how often each is sent")
    parser.add_argument("--seconds", type=float, default=3, help="of attack before SIGTERM")
    parser.add_argument("--only", default="", help="part of a name; nothing is written")
    options = parser.parse_args()
    chosen = [hostile for hostile in bodies() if options.only in hostile.name]
    with running() as gateway:
        measured(gateway, chosen[0], times=50)  # so that nothing is measured cold
        found = [(one, *measured(gateway, one, times=options.times)) for one in chosen]
        if options.only:
            print(*((one.name, round(ms, 2), how) for one, ms, how, _ in found), sep="\n")
            return 0
    with running() as gateway:
        closed, ended, refused = stopped_under_attack(gateway, seconds=options.seconds)
    found.sort(key=lambda row: -row[1])
    lines = _lines(found, options, stop=(closed, ended), refused=refused)
    write_section("Hostile documents", lines)
    slow = [one.name for one, milliseconds, _, _ in found if milliseconds >= _MOST_MILLISECONDS]
    print("too slow:", slow)
    return int(bool(slow) or closed > _STOP_SECONDS)


def _lines(
    found: Sequence[tuple[Hostile, float, str, int]],
    options: argparse.Namespace,
    *,
    stop: tuple[float, float],
    refused: int,
) -> Sequence[str]:
    worst = found[0][1]
    return [
        (
            f"{len(found)} requests that must be refused, each sent {options.times} times to a"
            " gateway of default settings; the least CPU of its process for one, HTTP included."
            f" The worst takes {worst:.1f} ms. With {_CALLERS} callers sending all of them without"
            f" a pause for {options.seconds:g} s ({refused} answered), the last was turned away"
            f" {stop[0]:.2f} s after SIGTERM, and the process ended after {stop[1]:.2f} s."
        ),
        "",
        "| request | bytes | CPU ms | refused as | bytes of the answer |",
        "| --- | ---: | ---: | --- | ---: |",
        *(
            f"| {one.name} | {len(one.encoded())} | {milliseconds:.2f} | {how} | {size} |"
            for one, milliseconds, how, size in found
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
