"""Real servers: a Kolibri from PyPI, the installed gateway, and a proxy between that counts."""

import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

ROOT = Path(__file__).resolve().parents[2]
HOMES = Path(os.environ.get("KOLIBRI_HOME_ROOT", ROOT / ".kolibri"))


def free_port() -> int:
    """Return a port that is free, and the one after it too, as Kolibri wants.

    Taken below the range from which outgoing connections get theirs, or one of those might take
    it before the server does.
    """
    while True:
        port = random.randrange(20_000, 32_000, 2)
        if all(_is_free(number) for number in (port, port + 1)):
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


@dataclass(frozen=True, kw_only=True)
class Kolibri:
    """A seeded Kolibri server that is up."""

    url: str
    home: Path
    lab: Mapping[str, Any]

    @property
    def database(self) -> Path:
        return self.home / "db.sqlite3"

    @property
    def sessions_database(self) -> Path:
        return self.home / "sessions.sqlite3"


@contextmanager
def kolibri_server(name: str, *options: str) -> Iterator[Kolibri]:
    """Bring up a real Kolibri in its own home, kept between runs, and stop it afterwards."""
    home, port = HOMES / name, free_port()
    program = [sys.executable, "-m", "simulators.kolibri.real"]
    place = ["--home", str(home), "--port", str(port), "--venv", str(HOMES / "venv")]
    subprocess.run([*program, "stop", *place], cwd=ROOT, check=False)
    # It prints the password of its superuser, which is searched for in what tests print.
    up = subprocess.run(
        [*program, "up", *place, *options], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert up.returncode == 0, up.stderr
    try:
        lab = json.loads((home / "lab.json").read_text(encoding="utf-8"))
        yield Kolibri(url=f"http://127.0.0.1:{port}", home=home, lab=lab)
    finally:
        subprocess.run([*program, "stop", *place], cwd=ROOT, check=True)


@dataclass
class RecordingProxy:
    """Stands between the gateway and a server and writes down every call."""

    target: str
    calls: list[tuple[str, str, int]] = field(default_factory=list)
    url: str = ""

    def count(self, method: str, path: str) -> int:
        """How many calls of this method went to paths that start so."""
        return sum(m == method and p.startswith(path) for m, p, _ in self.calls)

    @property
    def log_ins(self) -> int:
        return sum(
            m == "POST" and p.partition("?")[0] == "/api/auth/session/" for m, p, _ in self.calls
        )

    @property
    def heartbeats(self) -> int:
        return self.count("PUT", "/api/auth/session/")


@contextmanager
def recording_proxy(target: str) -> Iterator[RecordingProxy]:
    proxy = RecordingProxy(target)
    address = urlsplit(target).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length) if length else None
            upstream = http.client.HTTPConnection(address, timeout=60)
            try:
                headers = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
                upstream.request(self.command, self.path, body, headers)
                answer = upstream.getresponse()
                content = answer.read()
                proxy.calls.append((self.command, self.path, answer.status))
            finally:
                upstream.close()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in {"connection", "transfer-encoding", "content-length"}:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = forward  # noqa: N815 - http.server calls them so

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    proxy.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield proxy
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass
class Gateway:
    """The installed program, running; restarted on the same data by ``restart``."""

    url: str
    token: str
    data: Path
    log: Path
    environment: Mapping[str, str]
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = Path(sys.executable).with_name("learning-gateway")
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [str(command), "serve"],
                env={**os.environ, **self.environment},
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.data,
            )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()[-4000:]
            try:
                if httpx.get(f"{self.url}/ready", timeout=2).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.05)
        raise AssertionError(f"not ready in 30 s: {self.log.read_text()[-4000:]}")

    def stop(self, by: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(by)
        return self.process.wait(40)

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def graphql(self, query: str, **variables: object) -> dict[str, Any]:
        """Return the whole answer, data and errors."""
        answer = httpx.post(
            f"{self.url}/graphql",
            json={"query": query, "variables": variables},
            headers=self.headers,
            timeout=60,
        )
        return dict(answer.json())

    def data_of(self, query: str, **variables: object) -> dict[str, Any]:
        """Return the data of an answer that must have no errors."""
        answer = self.graphql(query, **variables)
        assert "errors" not in answer, answer["errors"]
        return dict(answer["data"])

    def get(self, path: str, **parameters: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", params=parameters, headers=self.headers, timeout=60)

    def add_provider(self, provider_id: str, **details: str) -> httpx.Response:
        return httpx.post(
            f"{self.url}/api/add-provider",
            json={"id": provider_id, "type": "kolibri", **details},
            headers=self.headers,
            timeout=60,
        )
