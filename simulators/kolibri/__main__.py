"""Serve a simulated Kolibri: `python -m simulators.kolibri --host 127.0.0.1 --port 8080`.

Prints one line with the URL and the superuser's credentials, then serves until interrupted.
`/_control/lab` lists everything else; `app.py` says what can be controlled.
"""

from __future__ import annotations

import argparse
import sys

from simulators.kolibri.app import serve
from simulators.kolibri.population import (
    SUPERUSER_PASSWORD,
    SUPERUSER_USERNAME,
    build_population,
)
from simulators.kolibri.state import SESSION_AGE_SECONDS, Kolibri
from simulators.kolibri.versions import PROFILES


def main(arguments: list[str] | None = None) -> int:
    """Read the command line and serve; returns when interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m simulators.kolibri", description="Serve a simulated Kolibri."
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8080, help="port to listen on")
    parser.add_argument("--version", choices=sorted(PROFILES), default="0.19.5")
    parser.add_argument(
        "--session-age",
        type=float,
        default=SESSION_AGE_SECONDS,
        help="seconds an idle session lives",
    )
    parser.add_argument(
        "--bulk-users", type=int, default=0, help="extra learners in a third facility"
    )
    parser.add_argument("--latency", type=float, default=0.0, help="seconds added to every answer")
    chosen = parser.parse_args(arguments)
    kolibri = Kolibri(
        build_population(bulk_users=chosen.bulk_users),
        version=chosen.version,
        session_age=chosen.session_age,
    )
    kolibri.latency_seconds = chosen.latency
    print(
        f"Simulated Kolibri {chosen.version} on http://{chosen.host}:{chosen.port}"
        f" (username {SUPERUSER_USERNAME}, password {SUPERUSER_PASSWORD})",
        flush=True,
    )
    serve(kolibri, host=chosen.host, port=chosen.port)
    return 0


if __name__ == "__main__":
    sys.exit(main())
