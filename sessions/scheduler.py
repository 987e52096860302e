"""The one loop that does what is due: heartbeats, refreshes, logins after a pause, exports, jobs.

Every gateway runs one. They share the work by claiming rows, so how many there are does not
matter, and a killed one's work is done by the others when its leases run out. The loop is
supervised: whatever goes wrong in it is logged, and it goes on after a pause.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import structlog

from sessions.authorization import SessionObserver, SessionSettings
from sessions.errors import ProviderError, ProviderNotFound
from sessions.exports import EXPORT_JOB, parts_of_export_key
from sessions.installations import Installations, MachineryLoan
from storage.errors import StorageError
from storage.leases import Claim, JobClaim, LeaseStore, Prolongation

_SHORTEST_PAUSE_SECONDS: Final = 0.02
_LONGEST_RESTART_SECONDS: Final = 30.0
_UNAVAILABLE_RETRY_SECONDS: Final = 60.0
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduledWork:
    """A kind of job from elsewhere that the loop claims too.

    Attributes:
        kind: Of the jobs.
        run: Does one; it plans the next run and gives the lease back. It is cancelled when the
            gateway stops, and goes on in another, or after the next start.
        at_once: How many in this process.
        lease_seconds: For how long a job is claimed.
    """

    kind: str
    run: Callable[[JobClaim], Awaitable[None]]
    at_once: int
    lease_seconds: float


class Scheduler:
    """Claims what is due and has it done.

    Args:
        leases: Where due rows are.
        settings: Durations, and how much is done at once.
        observer: Hears how late heartbeats begin.
        installations: Where what is behind a session is borrowed.
    """

    def __init__(
        self,
        leases: LeaseStore,
        *,
        settings: SessionSettings,
        observer: SessionObserver,
        installations: Installations,
    ) -> None:
        self._leases = leases
        self._settings = settings
        self._observer = observer
        self._installations = installations
        self._looked_at = time.monotonic()
        self._transitions: set[asyncio.Task[None]] = set()
        self._exports: set[asyncio.Task[None]] = set()
        self._work: dict[str, tuple[ScheduledWork, set[asyncio.Task[None]]]] = {}
        self._retrying: set[tuple[str, str]] = set()
        self._prolonged: list[Prolongation] = []
        self._wake = asyncio.Event()
        self._stopping = False
        self._stopped = asyncio.Event()
        self._stopped.set()

    def add_work(self, work: ScheduledWork) -> None:
        """Claim jobs of one more kind, from the next turn on."""
        self._work[work.kind] = (work, set())

    async def run(self) -> None:
        """Work until ``stop``, starting again after whatever goes wrong."""
        self._stopped.clear()
        restarts = 0
        try:
            while not self._stopping:
                began_at = time.monotonic()
                await self._supervised()
                if self._stopping:
                    break
                calm = time.monotonic() - began_at > _LONGEST_RESTART_SECONDS
                restarts = 1 if calm else restarts + 1
                pause = min(0.1 * 2**restarts, _LONGEST_RESTART_SECONDS)
                await self._sleep(pause)
            await self._finish()
        finally:
            for task in self._transitions | self._exports | self._working():
                task.cancel()
            self._stopped.set()

    async def stop(self) -> None:
        """Claim nothing more, and return when work in flight has ended or run out of time."""
        self._stopping = True
        self._wake.set()
        await self._stopped.wait()

    async def _supervised(self) -> None:
        turns = asyncio.create_task(self._turns())
        try:
            await asyncio.wait({turns})
        finally:
            if turns.cancel():
                await asyncio.wait({turns})
        if not turns.cancelled() and (error := turns.exception()) is not None:
            _log.error("scheduler_failed", error=type(error).__name__, exc_info=error)

    async def _turns(self) -> None:
        while not self._stopping:
            self._wake.clear()
            await self._store_prolonged()
            await self._look_around()
            due = await self._leases.seconds_until_due(EXPORT_JOB, *self._kinds_with_room())
            if due is not None and due <= 0:
                await self._start_due()
            # At once after due work, for there may be more; else when there is some.
            pause = self._settings.tick_seconds if due is None else due
            await self._sleep(min(max(pause, _SHORTEST_PAUSE_SECONDS), self._settings.tick_seconds))

    async def _sleep(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()

    async def _look_around(self) -> None:
        if time.monotonic() - self._looked_at >= self._settings.look_seconds:
            self._looked_at = time.monotonic()
            await self._installations.look()

    async def _store_prolonged(self) -> None:
        prolonged, self._prolonged = self._prolonged, []
        if prolonged:
            await self._leases.prolong_sessions(prolonged)

    async def _start_due(self) -> None:
        lease_seconds = self._settings.lease_seconds
        free = self._settings.workers - len(self._transitions)
        if free > 0:
            for claim in await self._leases.claim_due_sessions(
                limit=free, lease_seconds=lease_seconds
            ):
                self._start(self._keep_alive(claim), self._transitions)
            for key in await self._leases.list_due_retries(limit=free):
                if key not in self._retrying:
                    self._retrying.add(key)
                    self._start(self._retry(key), self._transitions)
        free = self._settings.export_workers - len(self._exports)
        if free > 0:
            for job in await self._leases.claim_due_jobs(
                EXPORT_JOB, limit=free, lease_seconds=self._settings.export_lease_seconds
            ):
                self._start(self._export(job), self._exports)
        for kind in self._kinds_with_room():
            work, tasks = self._work[kind]
            for job in await self._leases.claim_due_jobs(
                kind, limit=work.at_once - len(tasks), lease_seconds=work.lease_seconds
            ):
                self._start(_awaited(work, job), tasks)

    def _kinds_with_room(self) -> list[str]:
        return [kind for kind, (work, tasks) in self._work.items() if len(tasks) < work.at_once]

    def _working(self) -> set[asyncio.Task[None]]:
        return {task for _work, tasks in self._work.values() for task in tasks}

    def _start(self, work: Coroutine[Any, Any, None], tasks: set[asyncio.Task[None]]) -> None:
        task = asyncio.create_task(work)
        tasks.add(task)
        task.add_done_callback(lambda done: self._ended(done, tasks))

    def _ended(self, task: asyncio.Task[None], tasks: set[asyncio.Task[None]]) -> None:
        tasks.discard(task)
        self._wake.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("scheduled_work_failed", error=type(error).__name__, exc_info=error)

    async def _keep_alive(self, claim: Claim) -> None:
        stored = claim.seen
        self._observer.on_heartbeat(
            stored.provider_id, late_seconds=max(0.0, -(stored.seconds_to_next or 0.0))
        )
        try:
            async with self._borrow(stored.provider_id, stored.subject) as behind:
                prolongation = await behind.authorization.keep_alive(claim)
        except ProviderError:
            # Not registered, not enabled, or its platform is gone: nothing to keep alive.
            await self._leases.lose_session(claim)
            return
        if prolongation is not None:
            self._prolonged.append(prolongation)

    async def _retry(self, key: tuple[str, str]) -> None:
        try:
            async with self._borrow(*key) as behind:
                with suppress(ProviderError):  # stored with the next pause, and logged once
                    await behind.authorization.recover()
        except ProviderError:
            await self._leases.reset_sessions(*key)
        finally:
            self._retrying.discard(key)

    async def _export(self, claim: JobClaim) -> None:
        provider_id, subject, _ = parts_of_export_key(claim.job.key)
        try:
            async with self._borrow(provider_id, subject) as behind:
                await behind.exports.run(claim)
        except ProviderNotFound:
            await self._leases.remove_jobs(EXPORT_JOB, key_prefix=f"{provider_id}|")
        except ProviderError:
            await self._leases.finish_job(claim, next_seconds=_UNAVAILABLE_RETRY_SECONDS)

    def _borrow(self, provider_id: str, subject: str) -> MachineryLoan:
        return MachineryLoan(self._installations, provider_id, subject)

    async def _finish(self) -> None:
        """Wait for work in flight, not for ever, and store what it left."""
        resumed = self._working()
        for task in resumed:
            task.cancel()
        if resumed:
            await asyncio.wait(resumed)
        working = self._transitions | self._exports
        if working:
            await asyncio.wait(working, timeout=self._settings.shutdown_seconds)
        unfinished = self._transitions | self._exports
        for task in unfinished:
            task.cancel()
        if unfinished:
            await asyncio.wait(unfinished)
        with suppress(StorageError):
            await self._store_prolonged()


async def _awaited(work: ScheduledWork, claim: JobClaim) -> None:
    await work.run(claim)
