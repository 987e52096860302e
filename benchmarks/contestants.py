"""Starts what the benchmarks compare, each as a process: the gateway, its peers, upstreams.

Hive Gateway (npm: @graphql-hive/gateway, with @graphql-mesh/compose-cli to make REST upstreams its
subgraphs) is installed into `hive/` from its lock file when it is not there, and Yoga and Mercurius
into `peers/`. They need Node 20.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parent.parent
HIVE = Path(__file__).with_name("hive")
PEERS = Path(__file__).with_name("peers")
_START_SECONDS = 60


class ContestantMissing(Exception):
    """Something that must be installed is not; the message says what, and how."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """A server that runs as a process of its own."""

    url: str
    process: subprocess.Popen[bytes]
    headers: Mapping[str, str] = field(default_factory=dict)

    def cpu_seconds(self) -> float:
        """Return the time it has spent on processors so far."""
        return time.clock_gettime((~self.process.pid << 3) | 2)  # as clock_getcpuclockid makes it

    def resident_mib(self) -> float:
        """Return how much memory it holds."""
        return self._status_mib("VmRSS")

    def peak_mib(self) -> float:
        """Return how much memory it held at most."""
        return self._status_mib("VmHWM")

    def _status_mib(self, name: str) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text("ascii")
        line = next(line for line in status.splitlines() if line.startswith(f"{name}:"))
        return int(line.split()[1]) / 1024


@contextmanager
def upstream(module: str, *arguments: str, ready: str = "/_control/counts") -> Iterator[Program]:
    """Serve a simulator: its module's name and the options of its command line."""
    port = free_port()
    command = [sys.executable, "-m", module, "--port", str(port), *arguments]
    with running(command, f"http://127.0.0.1:{port}", ready=ready) as program:
        yield program


@contextmanager
def gateway(folder: Path, *, extra_path: Path | None = None, **settings: str) -> Iterator[Program]:
    """Serve `learning-gateway serve` on its own data.

    Args:
        folder: Where its data may be kept.
        extra_path: Where Python finds a further platform's package.
        settings: Without their prefix, in lower case.
    """
    port, token = free_port(), secrets.token_urlsafe(32)
    url = f"http://127.0.0.1:{port}"
    environment = {
        "GATEWAY_PORT": str(port),
        "GATEWAY_PUBLIC_URL": url,
        "GATEWAY_DATA_FOLDER": str(folder / "data"),
        "GATEWAY_TOKEN": token,
        **{f"GATEWAY_{name.upper()}": value for name, value in settings.items()},
    }
    paths = [str(extra_path)] if extra_path else []
    environment["PYTHONPATH"] = os.pathsep.join([*paths, str(ROOT)])
    command = [str(Path(sys.executable).with_name("learning-gateway")), "serve"]
    headers = {"Authorization": f"Bearer {token}"}
    with running(command, url, ready="/ready", environment=environment) as program:
        yield Program(url=program.url, process=program.process, headers=headers)


@contextmanager
def python_server(
    application: str, folder: Path, *, fast: bool = True, **environment: str
) -> Iterator[Program]:
    """Serve an ASGI application of this folder by uvicorn.

    Args:
        application: Its module and name.
        folder: Where the server may begin.
        fast: With uvloop and httptools; otherwise with asyncio and h11.
        environment: Its environment, beside this process's.
    """
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", application, "--port", str(port)]
    command += ["--no-access-log", "--log-level", "warning"]
    if not fast:
        command += ["--loop", "asyncio", "--http", "h11"]
    here = str(Path(__file__).parent)
    paths = [str(ROOT), here, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"PYTHONPATH": os.pathsep.join(paths), **environment}
    url = f"http://127.0.0.1:{port}"
    with running(
        command, url, ready="/ready", environment=environment, working_folder=folder
    ) as program:
        yield program


def register(program: Program, provider_id: str, **details: str) -> None:
    """Register a provider at a gateway."""
    answer = httpx.post(
        f"{program.url}/api/add-provider",
        json={"id": provider_id, **details},
        headers=program.headers,
        timeout=60,
        trust_env=False,
    )
    assert answer.is_success, answer.text


@contextmanager
def hive_gateway(folder: Path, **environment: str) -> Iterator[Program]:
    """Serve Hive Gateway over what `hive/mesh.config.js` makes of the environment.

    Raises:
        ContestantMissing: Node or npm is not there, or npm could not install it.
    """
    node = install_hive()
    supergraph = folder / "supergraph.graphql"
    composed = subprocess.run(
        [node, str(_binary("mesh-compose")), "-o", str(supergraph)],
        cwd=HIVE,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if composed.returncode != 0 or not supergraph.exists():
        raise ContestantMissing(f"mesh-compose failed: {composed.stdout}{composed.stderr}")
    port = free_port()
    command = [node, str(_binary("hive-gateway")), "supergraph", str(supergraph)]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    with running(
        command, url, ready="/readiness", environment=environment, working_folder=HIVE
    ) as program:
        yield program


@contextmanager
def peer(server: str, *, jit: bool, **environment: str) -> Iterator[Program]:
    """Serve Yoga or Mercurius, by `peers/server.js`, which says what it makes of its environment.

    Raises:
        ContestantMissing: Node or npm is not there, or npm could not install it.
    """
    node = _installed(PEERS, "Yoga and Mercurius", ["mercurius", "graphql-yoga"])
    port = free_port()
    environment |= {"SERVER": server, "JIT": "yes" if jit else "no", "PORT": str(port)}
    environment |= {"NODE_ENV": "production"}
    url = f"http://127.0.0.1:{port}"
    command = [node, str(PEERS / "server.js")]
    with running(
        command, url, ready="/health", environment=environment, working_folder=PEERS
    ) as program:
        yield Program(url=f"{url}/graphql", process=program.process)


def peer_versions() -> str:
    """Return what is measured as Yoga and Mercurius, for the table's legend."""
    return _versions(PEERS)


def install_hive() -> str:
    """Install Hive Gateway from its lock file, unless it is there; return where Node is.

    Raises:
        ContestantMissing: Node or npm is not there, or npm failed.
    """
    return _installed(HIVE, "Hive Gateway", [".bin/hive-gateway", ".bin/mesh-compose"])


def hive_versions() -> str:
    """Return what is measured as Hive Gateway, for the table's legend."""
    return _versions(HIVE)


def _installed(folder: Path, title: str, needed: Sequence[str]) -> str:
    """Install what a folder's lock file names, unless it is there; return where Node is."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        missing = "node" if node is None else "npm"
        raise ContestantMissing(
            f"{title}: {missing} is not installed; install Node.js 20 or newer with npm, or leave"
            " them out (--help says how)"
        )
    if not all((folder / "node_modules" / name).exists() for name in needed):
        print(f"Installing {title} (npm ci) into {folder.relative_to(ROOT)}/node_modules")
        command = [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ContestantMissing(f"npm ci failed in {folder}:\n{done.stderr[-2000:]}")
    return node


def _versions(folder: Path) -> str:
    packages = json.loads((folder / "package.json").read_text("utf-8"))["dependencies"]
    return ", ".join(f"{name} {version}" for name, version in sorted(packages.items()))


def free_port() -> int:
    """Return a port that is free, and so is the one after it, which a simulator may want."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as first:
            port = int(first.getsockname()[1])
            try:
                with socket.create_server(("127.0.0.1", port + 1)):
                    return port
            except (OSError, OverflowError):
                continue


def _binary(name: str) -> Path:
    return HIVE / "node_modules" / ".bin" / name


@contextmanager
def running(
    command: Sequence[str],
    url: str,
    *,
    ready: str,
    environment: Mapping[str, str] | None = None,
    working_folder: Path = ROOT,
) -> Iterator[Program]:
    """Run a server until the end, from when it answers at the path ``ready`` on."""
    process = subprocess.Popen(
        command,
        cwd=working_folder,
        env=os.environ | dict(environment or {}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
    )
    try:
        _wait(f"{url}{ready}", process)
        yield Program(url=url, process=process)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(url: str, process: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        if process.poll() is not None:
            raise ContestantMissing(f"{process.args!r} ended with code {process.returncode}")
        try:
            if httpx.get(url, timeout=2, trust_env=False).is_success:
                return
        except httpx.TransportError:
            pass
        if time.monotonic() > deadline:
            raise ContestantMissing(f"{process.args!r} was not ready in {_START_SECONDS} s")
        time.sleep(0.1)
