"""Three gateways as processes on one database, killed and paused while they work.

Run as a script this file is one of those gateways.
"""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from pretend_platform import (
    MANY_LOGINS,
    PretendServer,
    open_gateway,
    read,
    register,
    until,
)

from sessions.errors import ProviderError
from storage.credentials import KeyRing
from storage.database import open_database
from storage.leases import LeaseStore
from storage.providers import ProviderStore

ROOT = Path(__file__).resolve().parents[2]
KEYS = "k1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
CHAOS_SECONDS = float(os.environ.get("GATEWAY_TEST_CHAOS_SECONDS", "20"))
GATEWAYS = 3
SETTINGS = replace(MANY_LOGINS, heartbeat_seconds=0.5)


@dataclass(kw_only=True)
class Fleet:
    """Gateways as processes, of which some are killed and some stand still."""

    database_url: str
    folder: Path
    members: list[subprocess.Popen[bytes]] = field(default_factory=list)
    started: int = 0
    kills: int = 0
    pauses: int = 0

    @contextmanager
    def running(self) -> Iterator["Fleet"]:
        try:
            for _ in range(GATEWAYS):
                self.members.append(self._start())
            yield self
        finally:
            for member in self.members:
                member.send_signal(signal.SIGCONT)
                member.terminate()
            for member in self.members:
                member.wait(20)

    def kill_one(self) -> None:
        position = random.randrange(GATEWAYS)
        self.members[position].kill()
        self.members[position].wait()
        self.members[position] = self._start()
        self.kills += 1

    async def pause_one(self) -> None:
        member = random.choice(self.members)
        member.send_signal(signal.SIGSTOP)
        self.pauses += 1
        # Shorter than a login may take, or longer than the lease.
        await asyncio.sleep(random.choice((random.uniform(0.2, 0.6), random.uniform(1.6, 2.5))))
        member.send_signal(signal.SIGCONT)

    def calls(self) -> tuple[int, list[str]]:
        """How many calls succeeded, and how the others failed, over all gateways there were."""
        lines = [
            line
            for file in self.folder.glob("calls-*")
            for line in file.read_text(encoding="utf-8").splitlines()
        ]
        failed = [line for line in lines if line != "ok"]
        return len(lines) - len(failed), failed

    def _start(self) -> subprocess.Popen[bytes]:
        self.started += 1
        return subprocess.Popen(
            [
                sys.executable,
                str(Path(__file__)),
                self.database_url,
                str(self.folder / f"calls-{self.started}"),
            ],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )


async def test_killed_and_paused_gateways_never_log_in_twice_at_once_nor_for_nothing(
    sqlite_url: str, tmp_path: Path
) -> None:
    key_ring = KeyRing.parse(KEYS)
    duplicates = 0
    invalidations = 0
    async with open_database(sqlite_url) as database, PretendServer().listening() as server:
        leases = LeaseStore(database, key_ring, owner="checker")

        async def look_for_a_valid_session() -> None:
            nonlocal duplicates
            stored = await leases.find_session("1", "service")
            if stored is not None and stored.grant is not None:
                duplicates += stored.grant.reveal()["token"] in server.valid_tokens

        server.before_login = look_for_a_valid_session
        server.login_seconds = 0.1
        await register(ProviderStore(database, key_ring), server)
        with Fleet(database_url=sqlite_url, folder=tmp_path).running() as fleet:
            await until(lambda: server.reads > 20, seconds=30)
            ends_at = time.monotonic() + CHAOS_SECONDS
            while time.monotonic() < ends_at:
                await asyncio.sleep(random.uniform(0.1, 0.8))
                action = random.random()
                if action < 0.3:
                    fleet.kill_one()
                elif action < 0.6:
                    await fleet.pause_one()
                else:
                    server.end_all_sessions()
                    invalidations += 1
            reads = server.reads
            await until(lambda: server.reads > reads + 50, seconds=30)
        succeeded, failed = fleet.calls()

    summary = (
        f"kills {fleet.kills}, pauses {fleet.pauses}, invalidations {invalidations}, "
        f"logins {server.logins}, calls {succeeded}"
    )
    assert server.most_logins_at_once == 1, summary
    assert duplicates == 0, summary
    # Only callers of a gateway that itself stood still may hear that something took too long.
    assert {line.split()[0] for line in failed} <= {"ProviderTimeout"}, failed
    assert len(failed) <= fleet.pauses, failed
    assert succeeded > 200, summary
    assert fleet.kills > 0, summary
    assert fleet.pauses > 0, summary
    assert server.logins > 1, summary


async def serve(database_url: str, calls: Path) -> None:
    """Be a gateway whose callers never rest, until told to end."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    with calls.open("w", encoding="utf-8", buffering=1) as file:
        async with (
            open_database(database_url) as database,
            open_gateway(
                database, KeyRing.parse(KEYS), settings=SETTINGS, scheduled=True
            ) as manager,
        ):

            async def call_again_and_again() -> None:
                while not stopped.is_set():
                    try:
                        await read(manager)
                        file.write("ok\n")
                    except ProviderError as error:
                        file.write(f"{type(error).__name__} {error.message}\n")
                    await asyncio.sleep(0.02)

            async with asyncio.TaskGroup() as callers:
                for _ in range(3):
                    callers.create_task(call_again_and_again())


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(serve(sys.argv[1], Path(sys.argv[2])))
