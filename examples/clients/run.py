"""Run the example clients against a gateway with simulated platforms: ``make clients``.

    python -m examples.clients.run                # all of them, and the table of the README
    python -m examples.clients.run apollo urql    # some
    python -m examples.clients.run --serve        # only the servers, for runs by hand

Providers 1 (Kolibri), 2 (Canvas) and 3 (a Kolibri that is switched off after its registration) are
there. A client is told by environment where the gateway is, a key, and what the platforms hold; it
prints what it did, a line for each feature, and ends non-zero if anything is not as it should be.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from simulators import demo
from simulators.canvas import population as canvas
from simulators.kolibri import population as kolibri

FOLDER = Path(__file__).resolve().parent
README = FOLDER / "README.md"
FEATURES = (
    "query",
    "pages",
    "partial result",
    "mutation",
    "error codes",
    "SSE",
    "websocket",
    "multipart",
    "@defer",
    "APQ",
    "trusted documents",
)
_SHOWN = re.compile(rf"^\[({'|'.join(map(re.escape, FEATURES))})\] ", re.MULTILINE)
_TABLE = re.compile(r"(?<=<!-- made by run.py -->\n\n).*?(?=\n\n<!-- end -->)", re.DOTALL)
_CLIENT_SECONDS = 120
_MAX_SUBSCRIPTIONS = 8  # few, so that a client can meet a gateway that is busy


@dataclass(frozen=True, kw_only=True)
class Client:
    """A client: what the table calls it, and the commands that run it, the last one its tour."""

    title: str
    commands: Sequence[Sequence[str]]


_GATEWAY = str(Path(sys.executable).with_name("learning-gateway"))


def _register(path: str, client: str) -> Sequence[str]:
    return [_GATEWAY, "documents", "register", path, "--client", f"{client}@1"]


CLIENTS: Mapping[str, Client] = {
    "laravel": Client(title="Laravel HTTP client", commands=[["php", "laravel/tour.php"]]),
    "apollo": Client(title="Apollo Client 4", commands=[["node", "apollo/tour.js"]]),
    "urql": Client(title="urql 6", commands=[["node", "urql/tour.js"]]),
    "relay": Client(
        title="Relay 21",
        commands=[
            ["npm", "run", "--silent", "compile"],
            _register("relay/persisted.json", "relay"),
            ["node", "relay/tour.js"],
        ],
    ),
    "typescript": Client(
        title="graphql-codegen, typed",
        commands=[
            ["npm", "run", "--silent", "generate"],
            ["npm", "run", "--silent", "build"],
            _register("typescript/src/generated/persisted-documents.json", "typescript"),
            ["node", "typescript/built/tour.js"],
        ],
    ),
    "python": Client(title="Python gql 4", commands=[[sys.executable, "python/tour.py"]]),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the clients asked for; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m examples.clients.run", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="client", help=", ".join(CLIENTS))
    parser.add_argument("--serve", action="store_true", help="run no client, only the servers")
    parser.add_argument("--write", action="store_true", help="write the table into the README")
    options = parser.parse_args(arguments)
    names = options.names or [*CLIENTS]
    if unknown := set(names) - set(CLIENTS):
        parser.error(f"no client is called {', '.join(sorted(unknown))}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with tempfile.TemporaryDirectory() as folder, _servers(Path(folder)) as environment:
            if options.serve:
                return _serve(environment)
            shown = {name: _run(name, environment) for name in names}
    except demo.DemoFailed as error:
        print(f"The servers failed: {error}", file=sys.stderr)
        return 1
    failed = [name for name, features in shown.items() if features is None]
    if failed:
        print(f"\nNot as it should be: {', '.join(failed)}", file=sys.stderr)
        return 1
    return _compare(shown, write=options.write)


@contextmanager
def _servers(folder: Path) -> Iterator[Mapping[str, str]]:
    """Start platforms and gateway, and yield what a client is told by environment."""
    gateway, school, closed, canvases, product = _free_ports()
    options = demo.read_options(
        [
            *("--folder", str(folder), "--port", gateway),
            *("--kolibri-port", school, "--canvas-port", canvases),
        ]
    )
    (folder / "closed").mkdir()
    closed_options = demo.read_options(
        ["--folder", str(folder / "closed"), "--kolibri-port", closed]
    )
    key, url = secrets.token_urlsafe(32), f"http://127.0.0.1:{gateway}"
    processes: list[subprocess.Popen[bytes]] = []
    os.environ["GATEWAY_MAX_SUBSCRIPTIONS"] = str(_MAX_SUBSCRIPTIONS)
    try:
        providers = {
            "1": demo.start_kolibri(options, processes),
            "2": demo.start_canvas(options, processes),
            "3": {**demo.start_kolibri(closed_options, processes), "name": "Closed school"},
        }
        switched_off = processes[-1]
        callback = f"http://127.0.0.1:{product}/api/gateway/providers"
        processes.append(demo.start_gateway(options, key, callback))
        demo.wait_until_up(f"{url}/ready", processes[-1], folder / "gateway.log")
        for provider_id, details in providers.items():
            demo.call(f"{url}/api/add-provider", key, {"id": provider_id, **details})
        demo.stop(switched_off)
        yield {
            "LEARNING_GATEWAY_URL": url,
            "LEARNING_GATEWAY_TOKEN": key,
            "GATEWAY_DATA_FOLDER": str(folder / "data"),
            "EXPECTED": json.dumps(_expected()),
            "KOLIBRI_URL": providers["1"]["url"],
            "KOLIBRI_USERNAME": providers["1"]["username"],
            "KOLIBRI_PASSWORD": providers["1"]["password"],
            "PRODUCT_PORT": product,
        }
        log = (folder / "gateway.log").read_text(encoding="utf-8")
        if unexpected := [line for line in log.splitlines() if "internal_error" in line]:
            raise demo.DemoFailed(f"the gateway met what it did not expect:\n{unexpected[0]}")
    finally:
        for process in reversed(processes):
            demo.stop(process)


def _free_ports() -> Sequence[str]:
    """Return five free ports; the one behind the fourth is free too, for Canvas's images."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            others = [socket.create_server(("127.0.0.1", 0)) for _ in range(4)]
            ports = [str(other.getsockname()[1]) for other in others]
            for other in others:
                other.close()
            return [*ports[:3], str(port), ports[3]]


def _expected() -> Mapping[str, Mapping[str, int]]:
    """Count what the simulated platforms hold and show their administrators."""
    school, university = kolibri.build_population(), canvas.build_population()
    admin = next(person for person in school.people if person.username == demo.KOLIBRI_USERNAME)
    people = [
        person
        for person in school.people
        if person.facility == admin.facility and person.deleted_at is None
    ]
    courses = [one for one in university.courses.values() if one.workflow_state != "deleted"]
    enrollments = [
        enrollment
        for course in courses
        for enrollment in university.enrollments_by_course[course.id]
        if enrollment.state != "deleted" and enrollment.type != "StudentViewEnrollment"
    ]
    return {
        "users": {"1": len(people), "2": len([*university.living_users()])},
        "courses": {"2": len(courses)},
        "enrollments": {"2": len(enrollments)},
    }


def _serve(environment: Mapping[str, str]) -> int:
    for name, value in environment.items():
        print(f"export {name}={shlex.quote(value)}")
    print("# Ctrl-C stops the servers", flush=True)
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        return 0


def _run(name: str, environment: Mapping[str, str]) -> Collection[str] | None:
    """Run one client and print what it prints; returns the features it showed if all went well."""
    print(f"\n== {CLIENTS[name].title}", flush=True)
    started = time.monotonic()
    output = ""
    for command in CLIENTS[name].commands:
        try:
            ended = subprocess.run(  # noqa: S603 - our own programs
                command,
                cwd=FOLDER,
                env=os.environ | environment,
                stdout=subprocess.PIPE,
                timeout=_CLIENT_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            print(f"{shlex.join(command)}: {error}", file=sys.stderr)
            return None
        output = ended.stdout.decode(errors="replace")
        if ended.returncode != 0 or command is CLIENTS[name].commands[-1]:
            print(output.rstrip(), flush=True)
        if ended.returncode != 0:
            print(f"{shlex.join(command)} ended with {ended.returncode}", file=sys.stderr)
            return None
    print(f"{time.monotonic() - started:.1f} s", flush=True)
    return set(_SHOWN.findall(output))


def _compare(shown: Mapping[str, Collection[str] | None], *, write: bool) -> int:
    """Compare the README's table with what the clients showed, or write it."""
    readme = README.read_text(encoding="utf-8")
    written = _TABLE.search(readme)
    rows = {
        line.split("|")[1].strip(): line
        for line in (written[0] if written else "").splitlines()[2:]
    }
    lines = [f"| | {' | '.join(FEATURES)} |", f"| --- |{' :-: |' * len(FEATURES)}"]
    for name, client in CLIENTS.items():
        features = shown.get(name)
        if features is None:
            lines.append(rows.get(client.title, ""))
        else:
            cells = ("yes" if feature in features else "" for feature in FEATURES)
            lines.append(f"| {client.title} | {' | '.join(cells)} |")
    table = "\n".join(lines)
    print(f"\n{table}")
    if write:
        README.write_text(_TABLE.sub(lambda _: table, readme), encoding="utf-8")
    elif table not in readme:
        print("\nThe table in README.md says otherwise; --write writes this one", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
