"""Serve a simulated Canvas: `python -m simulators.canvas --host 127.0.0.1 --port 8081`.

Prints one line with the URL and the administrator's token, then serves until interrupted; the
images are served on the next port. `/_control/lab` lists the rest.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time

from simulators.canvas.app import running
from simulators.canvas.population import (
    add_people_of_kolibri,
    build_large_population,
    build_population,
)
from simulators.canvas.profiles import PROFILES
from simulators.canvas.state import ADMIN_TOKEN, CLIENT_ID, CLIENT_SECRET, Canvas, VirtualClock


def main(arguments: list[str] | None = None) -> int:
    """Read the command line and serve; returns when interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m simulators.canvas", description="Serve a simulated Canvas."
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8081, help="port to listen on")
    parser.add_argument("--profile", choices=sorted(PROFILES), default="hosted-now")
    parser.add_argument("--large", action="store_true", help="10 000 users, 1 000 courses")
    parser.add_argument(
        "--users", type=int, help="of so many users, 10 at least; half as many courses"
    )
    parser.add_argument(
        "--kolibri-people", action="store_true", help="and 14 people of the simulated Kolibri"
    )
    parser.add_argument("--seed", type=int, default=1, help="of tokens and the large data set")
    parser.add_argument("--shard", type=int, default=0, help="1000 puts all ids above 2^53")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds added to every answer")
    parser.add_argument(
        "--consent", choices=["approve", "deny", "page"], default="page", help="authorize page"
    )
    parser.add_argument("--no-throttle", action="store_true", help="never refuse for the rate")
    chosen = parser.parse_args(arguments)
    population = build_population(shard=chosen.shard)
    if chosen.users is not None:
        population = build_large_population(
            chosen.seed,
            shard=chosen.shard,
            users=chosen.users,
            courses=chosen.users // 2,
            enrollments=chosen.users * 2,
        )
    elif chosen.large:
        population = build_large_population(chosen.seed, shard=chosen.shard)
    if chosen.kolibri_people:
        add_people_of_kolibri(population)
    clock = VirtualClock(time.time(), ticking=True)
    profile = PROFILES[chosen.profile]
    canvas = Canvas(population, profile=profile, clock=clock, seed=chosen.seed)
    canvas.latency_seconds, canvas.consent = chosen.latency, chosen.consent
    canvas.throttle.enabled = not chosen.no_throttle
    asyncio.run(_serve(canvas, host=chosen.host, port=chosen.port))
    return 0


async def _serve(canvas: Canvas, *, host: str, port: int) -> None:
    images_port = port + 1 if port else 0
    interrupted = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, interrupted.set)
    async with running(canvas, host=host, port=port, images_port=images_port) as url:
        print(
            f"Simulated Canvas {canvas.profile.name} on {url} (token {ADMIN_TOKEN},"
            f" OAuth client {CLIENT_ID} with secret {CLIENT_SECRET})",
            flush=True,
        )
        await interrupted.wait()


if __name__ == "__main__":
    sys.exit(main())
