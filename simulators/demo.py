"""A gateway, two platforms and a little product around them, for a first look: ``make run``.

Starts a Kolibri (simulated, or with ``--real`` a real one in its own virtual environment), a
simulated Canvas and a gateway, all on 127.0.0.1, and answers the gateway's callback as a product
would: the first request for provider ``1`` registers the Kolibri, the first for ``2`` the Canvas.
Prints where to look, the key, and how to sign in as a user of Canvas; Ctrl-C stops what it started.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from simulators.canvas.state import ADMIN_TOKEN, CLIENT_ID, CLIENT_SECRET
from simulators.kolibri import population

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 60
KOLIBRI_USERNAME = "service_admin"


class DemoFailed(Exception):
    """Something did not come up; the message says what, and where its log is."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until interrupted; returns the exit code."""
    options = read_options(arguments)
    options.folder /= "real" if options.real else "simulated"
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    ports = [options.port, options.canvas_port, options.canvas_port + 1]
    for port in ports if options.real else [*ports, options.kolibri_port]:
        if _is_taken(port):
            print(f"Port {port} is taken: make run PORT=... KOLIBRI_PORT=... CANVAS_PORT=...")
            return 1
    token = _token(folder / "token")
    processes: list[subprocess.Popen[bytes]] = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        providers = {
            "1": start_kolibri(options, processes),
            "2": start_canvas(options, processes, "--kolibri-people"),
        }
        url = f"http://127.0.0.1:{options.port}"
        product = _Product(url, token, providers)
        processes.append(start_gateway(options, token, product.callback_url))
        wait_until_up(f"{url}/ready", processes[-1], folder / "gateway.log")
        _register_anew(url, token, providers)
        users = {key: len(call(f"{url}/api/users?id={key}", token)) for key in providers}
        _greet(url, token, providers, users=users, kind=folder.name)
        return processes[-1].wait()
    except DemoFailed as error:
        print(f"The demo did not start: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopping")
        return 0
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # a second one would leave the others running
        for process in reversed(processes):
            stop(process)


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read where the servers are to be and where their data and logs go."""
    parser = argparse.ArgumentParser(prog="make run", description=__doc__)
    parser.add_argument("--port", type=int, default=8180)
    parser.add_argument("--kolibri-port", type=int, default=8190)
    parser.add_argument("--canvas-port", type=int, default=8200, help="and the next, for images")
    parser.add_argument("--real", action="store_true", help="a real Kolibri instead of ours")
    parser.add_argument("--folder", type=Path, default=ROOT / ".demo")
    parser.add_argument("--kolibri-home", type=Path, default=ROOT / ".kolibri")
    return parser.parse_args(arguments)


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _token(path: Path) -> str:
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(secrets.token_urlsafe(32), encoding="ascii")
    return path.read_text(encoding="ascii")


def start_kolibri(
    options: argparse.Namespace, processes: list[subprocess.Popen[bytes]]
) -> Mapping[str, str]:
    """Start the server; returns how to register it, as its facility administrator."""
    module = [sys.executable, "-m", "simulators.kolibri"]
    if options.real:
        print("Starting a real Kolibri; the first time this installs it, which takes minutes")
        home = str(options.kolibri_home)
        module[-1] = "simulators.kolibri.real"
        up = [*module, "up", "--home", home, "--port", str(options.kolibri_port)]
        if subprocess.run(up, cwd=ROOT, check=False).returncode != 0:  # noqa: S603 - our own module
            raise DemoFailed("the real Kolibri is not up, see above")
    else:
        log = options.folder / "kolibri.log"
        process = _spawn(
            [*module, "--host", "127.0.0.1", "--port", str(options.kolibri_port)], log, os.environ
        )
        processes.append(process)
        wait_until_up(f"http://127.0.0.1:{options.kolibri_port}/api/public/info/", process, log)
    return {
        "type": "kolibri",
        "name": "Kolibri" if options.real else "Simulated Kolibri",
        "url": f"http://127.0.0.1:{options.kolibri_port}",
        "username": KOLIBRI_USERNAME,
        "password": population.PASSWORD,
    }


def start_canvas(
    options: argparse.Namespace, processes: list[subprocess.Popen[bytes]], *more: str
) -> Mapping[str, str]:
    """Start the server, told ``more``; returns how to register it, by token and developer key."""
    module = [sys.executable, "-m", "simulators.canvas"]
    # A new Canvas has forgotten its tokens: the next one must not give the same ones to others.
    seed = str(secrets.randbelow(10**9))
    log = options.folder / "canvas.log"
    address = ["--host", "127.0.0.1", "--port", str(options.canvas_port)]
    process = _spawn([*module, *address, "--seed", seed, *more], log, os.environ)
    processes.append(process)
    url = f"http://127.0.0.1:{options.canvas_port}"
    wait_until_up(f"{url}/login", process, log)
    return {
        "type": "canvas",
        "name": "Simulated Canvas",
        "url": url,
        "api_key": ADMIN_TOKEN,
        "client_id": CLIENT_ID,
        "client_secret": CLIENT_SECRET,
    }


def start_gateway(
    options: argparse.Namespace, token: str, callback_url: str
) -> subprocess.Popen[bytes]:
    """Start a gateway; what it is told beside this is in our own environment."""
    command = shutil.which("learning-gateway", path=str(Path(sys.executable).parent))
    if command is None:
        raise DemoFailed("learning-gateway is not installed beside this Python; use make run")
    environment = os.environ | {
        "GATEWAY_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(options.port),
        "GATEWAY_PUBLIC_URL": f"http://127.0.0.1:{options.port}",
        "GATEWAY_DATA_FOLDER": str(options.folder / "data"),
        "GATEWAY_TOKEN": token,
        "GATEWAY_PRODUCT_CALLBACK_URL": callback_url,
    }
    return _spawn([command, "serve"], options.folder / "gateway.log", environment)


def _spawn(
    command: Sequence[str], log: Path, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(  # noqa: S603 - our own programs
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
        )


def wait_until_up(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a server answers.

    Raises:
        DemoFailed: It ended, with the end of its log, or did not answer in time.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            tail = log.read_text(encoding="utf-8", errors="replace")[-2000:]
            raise DemoFailed(f"a server ended with {process.returncode}; its log:\n{tail}")
        try:
            with urllib.request.urlopen(url, timeout=2):  # noqa: S310 - http on 127.0.0.1
                return
        except OSError:
            time.sleep(0.1)
    raise DemoFailed(f"{url} did not answer within {START_SECONDS} s, see {log}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a server, by force if it does not within 30 seconds."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def call(
    url: str, token: str, body: object = None, *, nonce: str | None = None
) -> Any:  # decoded JSON
    """Return what the gateway answers, decoded.

    Raises:
        DemoFailed: It answered with an error.
    """
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    if nonce is not None:
        headers["X-Registration-Nonce"] = nonce
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, content, headers)  # noqa: S310 - http on 127.0.0.1
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - as above
            return json.load(answer)
    except urllib.error.HTTPError as error:
        detail = error.read(2000).decode(errors="replace")
        raise DemoFailed(f"{url} answered {error.code}: {detail}") from error


class _Product:
    """A product that knows some providers and posts their details when the gateway asks."""

    def __init__(
        self, gateway_url: str, token: str, providers: Mapping[str, Mapping[str, str]]
    ) -> None:
        product = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                known = asked["id"] in providers
                self.send_response(202 if known else 404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                if known:
                    arguments = [asked["id"], asked["nonce"]]
                    threading.Thread(target=product.register, args=arguments).start()

            def log_message(self, *_arguments: object) -> None:
                """Stay quiet: the gateway's log tells the story."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.callback_url = f"http://127.0.0.1:{server.server_port}/gateway/providers"
        self._providers = providers
        self._gateway_url = gateway_url
        self._token = token

    def register(self, provider_id: str, nonce: str) -> None:
        """Post a provider's details, as the answer to the callback that brought the nonce."""
        details = {"id": provider_id, **self._providers[provider_id]}
        try:
            call(f"{self._gateway_url}/api/add-provider", self._token, details, nonce=nonce)
        except DemoFailed as error:
            print(f"The product could not register {provider_id}: {error}", file=sys.stderr)


def _register_anew(url: str, token: str, providers: Mapping[str, Mapping[str, str]]) -> None:
    """Register those again that an earlier run left at another address."""
    query = {"query": "{ providers { providerId baseUrl } }"}
    for known in call(f"{url}/graphql", token, query)["data"]["providers"]:
        wanted = providers.get(known["providerId"])
        if wanted is not None and wanted["url"] != known["baseUrl"]:
            call(f"{url}/api/add-provider", token, {"id": known["providerId"], **wanted})


_SIGN_IN = """mutation {
    beginAuthorization(input: {providerId: "2"}) {
      ... on AuthorizationBegun { authorizationUrl }
      ... on ProviderRefused { code message }
    }
  }"""


def _greet(
    url: str,
    token: str,
    providers: Mapping[str, Mapping[str, str]],
    *,
    users: Mapping[str, int],
    kind: str,
) -> None:
    lines = [
        f"  provider {key}  {details['name']} at {details['url']}, {users[key]} users"
        for key, details in providers.items()
    ]
    calls = [
        f"  curl -H 'Authorization: Bearer {token}' '{url}/api/users?id={key}'" for key in providers
    ]
    query = '{ users(filter: {providerIds: ["2"]}, first: 50) { nodes { id displayName } } }'
    found = call(f"{url}/graphql", token, {"query": query})["data"]["users"]["nodes"]
    cody = next(user for user in found if user["displayName"].startswith("Cody"))
    left = "; make stop-kolibri stops the Kolibri" if kind == "real" else ""
    print(
        f"""
learning-gateway is up, with two providers that registered themselves when first asked for:

{os.linesep.join(lines)}

  GraphiQL   {url}/graphql
  key        {token}

{os.linesep.join(calls)}

To act for a user of the simulated Canvas, ask in GraphiQL:

  {_SIGN_IN}

Open authorizationUrl in the same browser, choose who you are, and press Authorize. The gateway then
reads as that user whatever is asked on their behalf, which a header says, also in GraphiQL's tab
Headers. For {cody["displayName"]}:

  curl -H 'Authorization: Bearer {token}' -H 'On-Behalf-Of: {cody["id"]}' \\
    -H 'Content-Type: application/json' \\
    -d '{{"query": "{{ courses {{ nodes {{ title }} }} }}"}}' {url}/graphql

To see which accounts of both are one person's, with reasons, in another shell, in the folder of
this one:

  export GATEWAY_DATA_FOLDER=.demo/{kind}/data
  .venv/bin/learning-gateway refresh 1 && .venv/bin/learning-gateway refresh 2
  .venv/bin/learning-gateway match run && .venv/bin/learning-gateway match review

Ctrl-C stops it{left}. Logs and data are in .demo/{kind}
""",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
