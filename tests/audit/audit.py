"""Serve the real application and have it audited; what ``make audit`` runs.

Needs Node 20 or newer, and the packages of ``package-lock.json`` beside this file.
"""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
STARTING_SECONDS = 30


def main() -> int:
    if shutil.which("node") is None or shutil.which("npm") is None:
        raise SystemExit("node and npm are needed: install Node 20 or newer")
    npm = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel", "error"]
    subprocess.run(npm, cwd=FOLDER, check=True)
    token = secrets.token_urlsafe(32)
    with tempfile.TemporaryDirectory() as data:
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        settings = {
            "GATEWAY_DATA_FOLDER": data,
            "GATEWAY_PORT": str(port),
            "GATEWAY_TOKEN": token,
            "GATEWAY_LOG_LEVEL": "warning",
        }
        server = subprocess.Popen(
            [sys.executable, "-m", "gateway.command_line", "serve"],
            env={**os.environ, **settings},
            stdout=sys.stderr,
        )
        try:
            wait_until_ready(url, server)
            audits = {"AUDIT_URL": f"{url}/graphql", "AUDIT_TOKEN": token}
            return subprocess.run(
                ["node", "audit.mjs"], cwd=FOLDER, env={**os.environ, **audits}, check=False
            ).returncode
        finally:
            server.terminate()
            server.wait(timeout=60)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def wait_until_ready(url: str, server: "subprocess.Popen[bytes]") -> None:
    ends_at = time.monotonic() + STARTING_SECONDS
    while server.poll() is None and time.monotonic() < ends_at:
        try:
            with urllib.request.urlopen(f"{url}/ready", timeout=1):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise SystemExit("The gateway did not start")


if __name__ == "__main__":
    sys.exit(main())
