"""Timed exports: slow reads a platform repeats by itself, in one gateway, kept for all.

An export runs under the lease of its job row, so however many gateways there are, one of them
runs it; the result is kept in the cache, where all of them find it, also after a restart.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextvars import Context
from dataclasses import dataclass
from typing import Final

import structlog

from sessions.authorization import SessionSettings
from sessions.base import Export, Platform
from sessions.errors import NotSupported, ProviderError, ProviderForbidden, ProviderTimeout
from sessions.http import seconds_to_deadline
from sessions.metering import unmetered
from storage.cache import CacheStore
from storage.errors import StorageUnavailable
from storage.leases import JobClaim, LeaseStore, Problem
from storage.records import Provider

EXPORT_JOB: Final = "export"
"""The kind of job an export is."""

_POLL_SECONDS: Final = 0.2
_DEADLINE_SHARE: Final = 0.5
_SHORTEST_MEMORY_SECONDS: Final = 5.0
_LONGEST_ABSENCE_SECONDS: Final = 60.0
_SHORTEST_RETRY_SECONDS: Final = 10.0
_random = random.SystemRandom()
_log = structlog.get_logger(__name__)


def export_key(provider_id: str, subject: str, name: str) -> str:
    """Return the key of an export's job."""
    return f"{provider_id}|{subject}|{name}"


def parts_of_export_key(key: str) -> tuple[str, str, str]:
    """Return provider id, subject and name of an export's job."""
    provider_id, _, rest = key.partition("|")
    subject, _, name = rest.rpartition("|")
    return provider_id, subject, name


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    export: Export | None
    until: float


class TimedExports:
    """The timed exports of one session; see ``Exports`` for what a session sees of them.

    Args:
        provider: The installation.
        platform: Says which exports there are, and how often each runs.
        subject: On whose behalf.
        leases: The jobs' rows.
        cache: Where results are kept.
        settings: Durations.
        run: Runs an export of that name, upstream.
    """

    def __init__(
        self,
        provider: Provider,
        *,
        platform: Platform,
        subject: str,
        leases: LeaseStore,
        cache: CacheStore,
        settings: SessionSettings,
        run: Callable[[str], Awaitable[bytes]],
    ) -> None:
        self._provider = provider
        self._platform = platform
        self._subject = subject
        self._leases = leases
        self._cache = cache
        self._settings = settings
        self._run_upstream = run
        self._held: dict[str, _Held] = {}
        self._flights: dict[str, asyncio.Task[Export | None]] = {}

    async def read(self, name: str) -> Export | None:
        """Return the last result, the same object until there is a newer one; see ``Exports``.

        Raises:
            NotSupported: The platform has no such export.
            StorageError: The database could not answer, and nothing is held in memory.
        """
        held = self._held.get(name)
        if held is not None and time.monotonic() < held.until:
            return held.export
        self._interval_of(name)
        try:
            kept = await self._kept(name)
        except StorageUnavailable:
            if held is None or held.export is None:
                raise
            return held.export
        return kept or await self._first(name)

    async def plan(self) -> None:
        """Give every export a job, due at once if it is new.

        Raises:
            StorageError: The database could not do it.
        """
        for name in self._platform.export_seconds:
            await self._leases.ensure_job(EXPORT_JOB, self._key(name))

    async def run(self, claim: JobClaim) -> None:
        """Run a claimed export, keep its result, and plan the next run.

        Raises:
            StorageError: The outcome could not be kept; the lease runs out by itself.
        """
        _, _, name = parts_of_export_key(claim.job.key)
        interval = self._interval_of(name)
        try:
            body = await self._leased_run(name, claim)
        except (ProviderForbidden, NotSupported) as error:
            self._log_problem("export_refused", name, claim, error)
            await self._leases.finish_job(claim, next_seconds=interval, problem=_problem(error))
        except ProviderError as error:
            self._log_problem("export_failed", name, claim, error)
            await self._leases.finish_job(
                claim,
                next_seconds=min(interval, self._retry_seconds(claim, error)),
                problem=_problem(error),
                count_attempt=True,
            )
        else:
            if body is None or not await self._renewed(claim):
                return  # somebody else runs it now
            await self._keep(name, body)
            await self._leases.finish_job(claim, next_seconds=interval * _random.uniform(0.9, 1))

    async def settle(self) -> None:
        """Cancel what nobody waits for any more."""
        for flight in list(self._flights.values()):
            flight.cancel()
            await asyncio.wait({flight})

    # Reading.

    async def _kept(self, name: str) -> Export | None:
        entry = await self._cache.read(self._provider.id, self._subject, _resource(name))
        if entry is None:
            return None
        fresh_seconds = (entry.fresh_until - entry.fetched_at).total_seconds()
        held = self._held.get(name)
        if held is not None and held.export is not None:
            unchanged = held.export.fetched_at == entry.fetched_at
        else:
            unchanged = False
        export = (
            held.export
            if held is not None and unchanged
            else Export(body=entry.body, fetched_at=entry.fetched_at)
        )
        memory = min(fresh_seconds, self._interval_of(name)) if entry.fresh else 0
        self._hold(name, export, seconds=max(memory / 4, _SHORTEST_MEMORY_SECONDS))
        return export

    async def _first(self, name: str) -> Export | None:
        flight = self._flights.get(name)
        if flight is None:
            flight = asyncio.create_task(self._obtain(name), context=Context())
            self._flights[name] = flight
            flight.add_done_callback(lambda done: self._landed(name, done))
        done, _ = await asyncio.wait({flight}, timeout=self._patience())
        return flight.result() if done and not flight.cancelled() else None

    def _patience(self) -> float:
        """Return how long to wait for a first result: a caller goes on without it in time."""
        left = seconds_to_deadline()
        longest = self._settings.export_patience_seconds
        return longest if left is None else max(0.0, min(longest, _DEADLINE_SHARE * left))

    def _landed(self, name: str, flight: asyncio.Task[Export | None]) -> None:
        del self._flights[name]
        if not flight.cancelled():
            flight.exception()  # seen, even when every caller has given up

    async def _obtain(self, name: str) -> Export | None:
        until = time.monotonic() + self._settings.export_limit_seconds
        await self._leases.ensure_job(EXPORT_JOB, self._key(name))
        while time.monotonic() < until:
            claim = await self._leases.claim_job(
                EXPORT_JOB, self._key(name), lease_seconds=self._settings.export_lease_seconds
            )
            if claim is not None:
                await self.run(claim)
            job = await self._leases.find_job(EXPORT_JOB, self._key(name))
            if job is None:
                return None
            if job.leased_seconds <= 0 and job.seconds_to_due > 0:
                kept = await self._kept(name)
                if kept is None:
                    self._hold(
                        name, None, seconds=min(job.seconds_to_due, _LONGEST_ABSENCE_SECONDS)
                    )
                return kept
            await asyncio.sleep(_POLL_SECONDS)
        return None

    # Running.

    async def _leased_run(self, name: str, claim: JobClaim) -> bytes | None:
        """Run upstream while renewing the lease; ``None`` when somebody took it over."""
        limit = self._settings.export_limit_seconds
        with unmetered():
            work = asyncio.ensure_future(self._run_upstream(name))
        renewals = asyncio.create_task(self._renew_while_held(claim))
        try:
            await asyncio.wait({work, renewals}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            if renewals.done():
                return None
            raise ProviderTimeout(
                f"The export {name} did not finish within {limit:g} seconds",
                provider_id=self._provider.id,
            )
        finally:
            for task in (work, renewals):
                task.cancel()
            await asyncio.wait({work, renewals})

    async def _renew_while_held(self, claim: JobClaim) -> None:
        lease_seconds = self._settings.export_lease_seconds
        lost_at = time.monotonic() + lease_seconds
        while time.monotonic() < lost_at:
            await asyncio.sleep(lease_seconds / 3)
            asked_at = time.monotonic()
            try:
                if not await self._renewed(claim):
                    return
            except StorageUnavailable:
                continue
            lost_at = asked_at + lease_seconds

    async def _renewed(self, claim: JobClaim) -> bool:
        return await self._leases.renew_job(
            claim, lease_seconds=self._settings.export_lease_seconds
        )

    async def _keep(self, name: str, body: bytes) -> None:
        await self._cache.write(
            self._provider.id,
            self._subject,
            _resource(name),
            body=body,
            fresh_seconds=self._interval_of(name),
        )
        self._held.pop(name, None)
        await self._kept(name)

    def _retry_seconds(self, claim: JobClaim, error: ProviderError) -> float:
        pause = self._settings.backoff(claim.job.attempts + 1, at_least=error.retry_after_seconds)
        return pause + min(_SHORTEST_RETRY_SECONDS, 10 * self._settings.backoff_seconds)

    # Words and numbers.

    def _log_problem(self, event: str, name: str, claim: JobClaim, error: ProviderError) -> None:
        known = claim.job.problem
        if known is None or known.code != error.code:
            _log.warning(
                event,
                provider_id=self._provider.id,
                export=name,
                code=error.code,
                problem=error.message,
            )

    def _hold(self, name: str, export: Export | None, *, seconds: float) -> None:
        self._held[name] = _Held(export=export, until=time.monotonic() + seconds)

    def _key(self, name: str) -> str:
        return export_key(self._provider.id, self._subject, name)

    def _interval_of(self, name: str) -> float:
        interval = self._platform.export_seconds.get(name)
        if interval is None:
            raise NotSupported(
                f"{self._platform.title} has no export named {name}",
                provider_id=self._provider.id,
            )
        return interval


def _resource(name: str) -> str:
    return f"export:{name}"


def _problem(error: ProviderError) -> Problem:
    return Problem(code=error.code, message=error.message)
