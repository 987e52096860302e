"""Stand up a real Kolibri on 127.0.0.1 that holds the data of `population.py`.

    python -m simulators.kolibri.real up --home .kolibri/lab --port 18080
    python -m simulators.kolibri.real status --home .kolibri/lab --port 18080
    python -m simulators.kolibri.real stop --home .kolibri/lab --port 18080
    python -m simulators.kolibri.real wipe --home .kolibri/lab --port 18080

`up` makes a virtual environment (`HOME/venv`, or `--venv`) with `kolibri==VERSION` from PyPI if it
is not there, provisions and seeds the home, starts the server in the background and returns when it
answers. It takes about a minute from nothing, and seconds when the home is seeded; running it again
does no harm. `lab.json` in the home then lists ids, usernames and passwords. `--session-age` makes
sessions short, for tests of expiry. Kolibri also takes the port after PORT, for zipped content.

Needs only the standard library. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 port taken.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
import venv
from dataclasses import dataclass
from pathlib import Path

from simulators.kolibri.population import (
    SUPERUSER_PASSWORD,
    SUPERUSER_USERNAME,
    build_population,
)

DEFAULT_VERSION = "0.19.5"
_START_SECONDS = 180
_STOP_SECONDS = 60
_SETTINGS = """from kolibri.deployment.default.settings.base import *
SESSION_COOKIE_AGE = {age}
"""


class LabError(Exception):
    """Standing up the server failed; the message says at which step and where to look.

    Attributes:
        exit_code: What the command line returns.
    """

    exit_code = 1


class PortTaken(LabError):
    """Another program listens on a port that Kolibri needs."""

    exit_code = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """Where one real Kolibri lives.

    Attributes:
        home: Its data, log, pid file and `lab.json`.
        environment: Its virtual environment.
        session_age: Seconds an idle session lives, None for Kolibri's own 1200.
    """

    home: Path
    port: int
    version: str
    environment: Path
    bulk_users: int = 0
    session_age: int | None = None

    @property
    def url(self) -> str:
        """The base URL, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid_file(self) -> Path:
        """Holds the server's process id while it runs."""
        return self.home / "lab.pid"

    @property
    def python(self) -> Path:
        """The virtual environment's interpreter."""
        return self.environment / "bin" / "python"


def main(arguments: list[str] | None = None) -> int:
    """Run one command; see the module's description."""
    chosen = _parse(arguments)
    home = chosen.home.resolve()
    lab = Lab(
        home=home,
        port=chosen.port,
        version=chosen.version,
        environment=(chosen.venv or home / "venv").absolute(),
        bulk_users=chosen.bulk_users,
        session_age=chosen.session_age,
    )
    commands = {"up": up, "stop": stop, "status": report_status, "wipe": wipe}
    try:
        commands[chosen.command](lab)
    except LabError as error:
        print(f"Real Kolibri: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m simulators.kolibri.real",
        description="Stand up a real, seeded Kolibri on 127.0.0.1.",
    )
    parser.add_argument("command", choices=["up", "stop", "status", "wipe"])
    parser.add_argument("--home", type=Path, required=True, help="where its data lives")
    parser.add_argument("--port", type=int, required=True, help="where it listens; PORT+1 too")
    parser.add_argument("--version", default=DEFAULT_VERSION, help="release to install")
    parser.add_argument("--venv", type=Path, help="virtual environment, default HOME/venv")
    parser.add_argument("--bulk-users", type=int, default=0, help="extra learners")
    parser.add_argument("--session-age", type=int, help="seconds an idle session lives")
    return parser.parse_args(arguments)


def up(lab: Lab) -> None:
    """Install, provision, seed and start, leaving out what is done already.

    Raises:
        LabError: A step failed.
        PortTaken: Something else listens there.
    """
    if _running_pid(lab) is not None and answers(lab):
        print(f"Already up on {lab.url}")
        return
    for port in (lab.port, lab.port + 1):
        if _is_taken(port):
            message = f"port {port} is taken by another program; choose another with --port"
            raise PortTaken(message)
    lab.home.mkdir(parents=True, exist_ok=True)
    _install(lab)
    if not _is_provisioned(lab):
        _provision(lab)
    _seed(lab)
    _start(lab)
    counts = json.loads((lab.home / "lab.json").read_text(encoding="utf-8"))["counts"]
    print(f"Kolibri {lab.version} is up on {lab.url} with {counts}")
    print(f"Superuser {SUPERUSER_USERNAME}, password {SUPERUSER_PASSWORD}")
    print(f"Everything else is in {lab.home}/lab.json")


def stop(lab: Lab) -> None:
    """Stop the server if it runs, and wait until it is gone."""
    pid = _running_pid(lab)
    if pid is not None:
        os.kill(pid, signal.SIGTERM)
        if not _wait_gone(pid, _STOP_SECONDS):
            os.kill(pid, signal.SIGKILL)
            _wait_gone(pid, _STOP_SECONDS)
    lab.pid_file.unlink(missing_ok=True)


def report_status(lab: Lab) -> None:
    """Print whether the server runs and answers.

    Raises:
        LabError: It does not.
    """
    pid = _running_pid(lab)
    if pid is None:
        message = f"not running in {lab.home}"
        raise LabError(message)
    if not answers(lab):
        message = f"process {pid} runs, but {lab.url} does not answer as Kolibri"
        raise LabError(message)
    print(f"Up on {lab.url}, process {pid}")


def wipe(lab: Lab) -> None:
    """Stop the server and delete its home, virtual environment included if it lies there.

    Raises:
        LabError: The folder is not a home that this program made.
    """
    stop(lab)
    if not lab.home.exists():
        return
    ours = any((lab.home / name).exists() for name in ("lab.json", "provision.log", "venv"))
    if not ours and any(lab.home.iterdir()):
        message = f"{lab.home} does not look like a Kolibri home made by this program; not deleted"
        raise LabError(message)
    shutil.rmtree(lab.home)


def answers(lab: Lab) -> bool:
    """Return whether a Kolibri answers on the port, and not some other program."""
    try:
        url = f"{lab.url}/api/public/info/"
        with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310 - our own http URL
            return bool(json.load(response).get("application") == "kolibri")
    except (urllib.error.URLError, TimeoutError, ConnectionError, ValueError, AttributeError):
        return False


# ---- steps -------------------------------------------------------------------------------


def _install(lab: Lab) -> None:
    if not lab.python.exists():
        print(f"Making the virtual environment {lab.environment}")
        venv.create(lab.environment, with_pip=True)
    installed = _installed_version(lab)
    if installed == lab.version:
        return
    if installed is not None:
        message = (
            f"{lab.environment} has Kolibri {installed}, not {lab.version}; use another --venv"
        )
        raise LabError(message)
    print(f"Installing kolibri=={lab.version}")
    command = [str(lab.python), "-m", "pip", "install", "--quiet", f"kolibri=={lab.version}"]
    _run(lab, command, log="install.log", step="installing")


def _installed_version(lab: Lab) -> str | None:
    script = "import importlib.metadata as m; print(m.version('kolibri'))"
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [str(lab.python), "-I", "-c", script], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else None


def _is_provisioned(lab: Lab) -> bool:
    database = lab.home / "db.sqlite3"
    if not database.exists():
        return False
    with contextlib.closing(sqlite3.connect(database)) as connection:
        try:
            row = connection.execute("SELECT is_provisioned FROM device_devicesettings").fetchone()
        except sqlite3.Error:
            return False
    return bool(row and row[0])


def _provision(lab: Lab) -> None:
    print("Provisioning")
    facility = build_population().facilities[0]
    settings = lab.home / "device_settings.json"
    settings.write_text("{}", encoding="utf-8")
    options = {
        "--facility": facility.name,
        "--preset": facility.preset,
        "--superusername": SUPERUSER_USERNAME,
        "--superuserpassword": SUPERUSER_PASSWORD,
        "--language_id": "en",
        "--device_settings": str(settings),
    }
    command = [str(lab.environment / "bin" / "kolibri"), "manage", "provisiondevice", "--noinput"]
    for option, value in options.items():
        command += [option, value]
    _run(lab, command, log="provision.log", step="provisioning")


def _seed(lab: Lab) -> None:
    print("Seeding")
    script = Path(__file__).with_name("real_seed.py")
    command = [str(lab.python), "-I", str(script), "--bulk-users", str(lab.bulk_users)]
    _run(lab, command, log="seed.log", step="seeding")


def _start(lab: Lab) -> None:
    command = [str(lab.environment / "bin" / "kolibri"), "start", "--foreground", "--no-input"]
    if lab.session_age is not None:
        settings = lab.home / "lab_settings.py"
        settings.write_text(_SETTINGS.format(age=lab.session_age), encoding="utf-8")
        command += ["--settings", "lab_settings", "--pythonpath", str(lab.home)]
    log_path = lab.home / "server.log"
    with log_path.open("ab") as log:
        process = subprocess.Popen(  # noqa: S603 - the program we installed
            command,
            env=_environment(lab),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    lab.pid_file.write_text(str(process.pid), encoding="ascii")
    deadline = time.monotonic() + _START_SECONDS
    while not answers(lab):
        if process.poll() is not None:
            lab.pid_file.unlink(missing_ok=True)
            message = f"the server ended with code {process.returncode}; see {log_path}"
            raise LabError(message)
        if time.monotonic() > deadline:
            stop(lab)
            message = f"no answer on {lab.url} within {_START_SECONDS} s; see {log_path}"
            raise LabError(message)
        time.sleep(0.25)


def _run(lab: Lab, command: list[str], *, log: str, step: str) -> None:
    log_path = lab.home / log
    with log_path.open("wb") as output:
        done = subprocess.run(  # noqa: S603 - the programs we installed
            command, env=_environment(lab), stdout=output, stderr=subprocess.STDOUT, check=False
        )
    if done.returncode != 0:
        tail = log_path.read_text(encoding="utf-8", errors="replace").splitlines()[-8:]
        message = f"{step} failed with code {done.returncode}; see {log_path}\n" + "\n".join(tail)
        raise LabError(message)


def _environment(lab: Lab) -> dict[str, str]:
    """Return the environment for Kolibri: nothing of ours leaks in, nothing of it calls home."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("KOLIBRI_", "PYTHON", "DJANGO_"))
    }
    return kept | {
        "KOLIBRI_HOME": str(lab.home),
        "KOLIBRI_HTTP_PORT": str(lab.port),
        "KOLIBRI_ZIP_CONTENT_PORT": str(lab.port + 1),
        "KOLIBRI_LISTEN_ADDRESS": "127.0.0.1",
        "KOLIBRI_ZEROCONF_ENABLED": "0",
        "KOLIBRI_DISABLE_PING": "1",
        "KOLIBRI_RUN_MODE": "learning-gateway-lab",
        "KOLIBRI_CENTRAL_CONTENT_BASE_URL": "http://127.0.0.1:9",
        "LANG": "C.UTF-8",
        "TZ": "UTC",
    }


# ---- processes and ports -----------------------------------------------------------------


def _running_pid(lab: Lab) -> int | None:
    """Return the server's process id if that process is alive and still Kolibri's."""
    try:
        pid = int(lab.pid_file.read_text(encoding="ascii"))
        os.kill(pid, 0)
    except (FileNotFoundError, ValueError, ProcessLookupError, PermissionError):
        return None
    command_line = Path(f"/proc/{pid}/cmdline")
    if command_line.exists() and b"kolibri" not in command_line.read_bytes():
        return None
    return pid


def _wait_gone(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)  # a child of ours must be reaped to be gone
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def _is_taken(port: int) -> bool:
    with contextlib.closing(socket.socket()) as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


if __name__ == "__main__":
    sys.exit(main())
