"""Imports: reading whole providers now and then, and telling what changed since the last time.

A run reads users, courses and enrollments page by page, as the organisation sees them. What it
finds takes the place of the last snapshot at once and as a whole, unless suspiciously much is
gone: then it is held, nothing is applied, and somebody has to say that the drop is real. A run is
cut off by nothing for good: it goes on from its last page, in whichever gateway takes it over.

Each provider has its own second of the day, found by a hash of its id, so that many providers
never start together.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import ceil
from typing import Any, Final, NoReturn, TypeAlias

import msgspec
import structlog

from resolvers.context import Platforms, Refusal, RequestContext, Scope, Sessions
from resolvers.cursors import CursorSealer
from resolvers.errors import BadInput, Forbidden
from resolvers.leasing import while_held
from resolvers.loaders import Outcomes, Soon, list_courses, list_enrollments, list_users
from resolvers.paging import checked_first
from sessions.base import SERVICE, Capability, Page, Platform, ProviderSession
from sessions.errors import (
    NotSupported,
    ProviderBadResponse,
    ProviderError,
    ProviderNotFound,
    ProviderRejected,
    ProviderUnavailable,
)
from sessions.scheduler import ScheduledWork
from sessions.tracing import Tracer, working
from storage.imports import (
    IMPORT_JOB,
    KINDS,
    Change,
    ImportRun,
    ImportState,
    ImportStore,
    ListCounts,
    RosterKind,
    StagedPage,
    StagedRow,
)
from storage.leases import JobClaim, LeaseStore, Problem
from storage.providers import ProviderStore
from storage.records import Course, DataSource, Enrollment, Provider, ProviderState, User

RosterRecord: TypeAlias = User | Course | Enrollment

CARE_JOB: Final = "import-care"
"""The kind of the one job that plans runs and sweeps old changes."""

DEFAULT_FIRST_CHANGES: Final = 100

_CARE_KEY: Final = "all"
_LIST_RESTARTS: Final = 2
_SHORTEST_PAUSE_SECONDS: Final = 60.0
_WATCH_SECONDS: Final = 0.5
_FOLLOW_SECONDS: Final = 1.0
_CURSOR_FORMAT: Final = 1
_EPOCH: Final = datetime.fromtimestamp(0, UTC)
_SERVICE_ONLY: Final = (
    "Imports and changes are what the organisation sees: send this without the header On-Behalf-Of"
)
_random = random.SystemRandom()
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportSettings:
    """When providers are imported, and how long things may take.

    Attributes:
        interval_seconds: How often each provider is imported unasked; ``None`` for never.
        changes_kept_seconds: How long changes are kept.
        first_after_seconds: How long a new provider is left alone at least.
        at_once: Runs at once in this process.
        lease_seconds: A run renews its lease three times in this span, and with every page.
        resume_seconds: How old a position may be to be gone on from.
        care_seconds: How often runs are planned for new providers, and old changes swept.
        retries: How often a run that failed for a reason that may pass is tried again before its
            next turn.
        retry_seconds: The first pause before that; doubles every time.
        longest_retry_seconds: Where the doubling ends.
    """

    interval_seconds: float | None
    changes_kept_seconds: float
    first_after_seconds: float = 3600
    at_once: int = 2
    lease_seconds: float = 30
    resume_seconds: float = 3600
    care_seconds: float = 60
    retries: int = 5
    retry_seconds: float = 60
    longest_retry_seconds: float = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class RosterChange:
    """A change as callers see it; ``record`` is the last known one of what was deleted."""

    change: Change
    record: RosterRecord
    cursor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeList:
    """A page of changes.

    Attributes:
        end_cursor: Where to go on.
        latest_cursor: Behind every change there is.
        has_next: Whether more can be had at once.
    """

    changes: Sequence[RosterChange]
    end_cursor: str
    latest_cursor: str
    has_next: bool


def content_of(record: RosterRecord) -> StagedRow:
    """Return a record as it is kept, with a hash of everything but when and how it was read.

    What a record does not have is left out, so that a field added to records later changes no
    hash by itself.
    """
    plain = _with_reading(record, at=_EPOCH, via=DataSource.LIVE)
    values = {
        name: value
        for name, default in _DEFAULTS[type(record)]
        if (value := getattr(plain, name)) != default
    }
    body = msgspec.msgpack.encode(values)
    external_id = record.id if isinstance(record, Enrollment) else record.external_id
    return StagedRow(external_id=external_id, sha256=hashlib.sha256(body).digest(), record=body)


def record_of(kind: RosterKind, body: bytes, *, at: datetime) -> RosterRecord:
    """Return a kept record, as read at that time."""
    record: RosterRecord = _DECODERS[kind].decode(body)
    return _with_reading(record, at=at, via=DataSource.CACHE)


def is_drop(before: int, now: int) -> bool:
    """Whether so much of a list is gone that somebody should look: more than half, or all."""
    return 2 * now < before


def seconds_to_start(
    provider_id: str, *, interval_seconds: float, now: float, at_least: float = 0
) -> float:
    """Return how long it is until a provider's next turn.

    Its turns are one interval apart, at a second of the interval that a hash of its id names: the
    same in every process, and spread evenly over all providers.

    Args:
        provider_id: The provider.
        interval_seconds: Between its turns.
        now: Seconds since 1970.
        at_least: Turns before that are passed over.
    """
    digest = hashlib.sha256(b"import\0" + provider_id.encode()).digest()
    phase = int.from_bytes(digest[:8]) % max(1, int(interval_seconds))
    turn = ceil((now + at_least - phase) / interval_seconds)
    return turn * interval_seconds + phase - now


class Importer:
    """Imports providers: by schedule, and when asked.

    Args:
        imports: Where runs, snapshots and changes are kept.
        leases: The jobs' rows.
        sessions: Where sessions are borrowed.
        providers: What is registered.
        platforms: What is installed.
        settings: When, and how long things may take.
        tracer: Makes a span of each run; ``None`` when nothing is traced.
    """

    def __init__(
        self,
        *,
        imports: ImportStore,
        leases: LeaseStore,
        sessions: Sessions,
        providers: ProviderStore,
        platforms: Platforms,
        settings: ImportSettings,
        tracer: Tracer | None = None,
    ) -> None:
        self._imports = imports
        self._leases = leases
        self._sessions = sessions
        self._providers = providers
        self._platforms = platforms
        self._settings = settings
        self._tracer = tracer

    def work(self) -> Sequence[ScheduledWork]:
        """Return the kinds of jobs this does."""
        return (
            ScheduledWork(
                kind=IMPORT_JOB,
                run=self.run,
                at_once=self._settings.at_once,
                lease_seconds=self._settings.lease_seconds,
            ),
            ScheduledWork(
                kind=CARE_JOB,
                run=self.care,
                at_once=1,
                lease_seconds=self._settings.lease_seconds,
            ),
        )

    async def start(self) -> None:
        """See to it that runs are planned, by whichever gateway comes to it.

        Raises:
            StorageError: The database could not do it.
        """
        await self._leases.ensure_job(CARE_JOB, _CARE_KEY)

    async def care(self, claim: JobClaim) -> None:
        """Plan runs of providers that have none, and forget changes that are too old.

        Raises:
            StorageError: The database could not do it; the lease runs out by itself.
        """
        interval = self._settings.interval_seconds
        due: dict[str, float] = {}
        if interval is not None:
            due = {
                provider.id: seconds_to_start(
                    provider.id,
                    interval_seconds=interval,
                    now=time.time(),
                    at_least=self._settings.first_after_seconds,
                )
                for provider in await self._providers.list_all()
                if provider.state is not ProviderState.DISABLED
            }
        await self._imports.plan(due, scheduled=interval is not None)
        kept = self._settings.changes_kept_seconds
        while await self._imports.sweep_changes(kept_seconds=kept):
            pass
        await self._leases.finish_job(claim, next_seconds=self._settings.care_seconds)

    async def run_now(self, provider_id: str) -> None:
        """Do a run that was asked for here, unless another gateway has it already.

        Raises:
            StorageError: The database could not do it; the lease runs out by itself.
        """
        claim = await self._leases.claim_job(
            IMPORT_JOB, provider_id, lease_seconds=self._settings.lease_seconds
        )
        if claim is not None:
            await self.run(claim)

    async def finish(self, run: ImportRun) -> ImportRun:
        """Return a run that was asked for once it has ended, having done it here if nobody else.

        Raises:
            ProviderNotFound: The provider was removed meanwhile.
            StorageError: As for ``run_now``.
        """
        found: ImportRun | None = run
        while found is not None and not found.ended:
            await self.run_now(run.provider_id)
            found = await self._imports.find_run(run.id)
            if found is not None and not found.ended:
                await asyncio.sleep(_FOLLOW_SECONDS)
        return found or _raise_not_found(run.provider_id)

    async def run(self, claim: JobClaim) -> None:
        """Do the run that is under way or due, and plan the next one.

        Raises:
            StorageError: The database could not do it; the lease runs out by itself.
        """
        provider = await self._providers.get(claim.job.key)
        enabled = provider is not None and provider.state is not ProviderState.DISABLED
        run = await self._imports.begin(
            claim,
            scheduled=enabled and self._settings.interval_seconds is not None,
            resume_seconds=self._settings.resume_seconds,
        )
        if run is None or provider is None:
            return
        with working(self._tracer, "import", provider_id=provider.id):
            work = asyncio.ensure_future(self._carry_out(claim, run, provider))
            await while_held(self._leases, claim, work, lease_seconds=self._settings.lease_seconds)

    async def _carry_out(self, claim: JobClaim, run: ImportRun, provider: Provider) -> None:
        try:
            platform = self._platforms.get(provider.platform)
            if platform is None:
                raise NotSupported(
                    f"The platform {provider.platform} is not installed", provider_id=provider.id
                )
            while run.kind is not None:
                run = await self._read_list(claim, run, platform, run.kind)
            now = await self._providers.get(provider.id)
            if now is None or now.revision != provider.revision:
                raise ProviderUnavailable(
                    "The provider was changed while it was read", provider_id=provider.id
                )
            await self._settle(claim, run)
        except _TakenOver:
            return
        except ProviderError as error:
            await self._fail(claim, run, error)

    # Reading.

    async def _read_list(
        self, claim: JobClaim, run: ImportRun, platform: Platform, kind: RosterKind
    ) -> ImportRun:
        """Return the run with one more list done.

        A list whose length changes while it is read is read again, a few times: where pages are
        counted off from its beginning, rows may have slipped past.

        Raises:
            ProviderError: The provider could not answer.
        """
        if _CAPABILITIES[kind] not in platform.capabilities:
            return _still(await self._imports.skip_list(claim, run))
        resumed = run.position is not None
        restarts = 0
        while run.kind is kind:
            try:
                page = await self._page(run, platform, kind)
            except NotSupported:
                return _still(await self._imports.skip_list(claim, run))
            except (ProviderBadResponse, ProviderRejected):
                if not resumed:
                    raise
                page = None  # the position is good no more
            resumed = False
            known = run.counts.get(kind, ListCounts()).total
            moved = page is not None and page.total is not None and known not in {None, page.total}
            if page is None or (moved and restarts < _LIST_RESTARTS):
                restarts += 1
                run = _still(await self._imports.restart_list(claim, run))
                continue
            run = _still(
                await self._imports.stage(
                    claim, run, _staged(kind, page), lease_seconds=self._settings.lease_seconds
                )
            )
        return run

    async def _page(
        self, run: ImportRun, platform: Platform, kind: RosterKind
    ) -> Page[RosterRecord]:
        async with self._sessions.session(run.provider_id, SERVICE) as session:
            page = await _list_page(session, kind, run.position, platform.page_size)
        if page.behind is not None and page.behind == run.position:
            raise ProviderBadResponse(
                "The provider's list does not advance from page to page",
                provider_id=run.provider_id,
            )
        return page

    # Ending.

    async def _settle(self, claim: JobClaim, run: ImportRun) -> None:
        """Apply the run, or hold it when too much is gone."""
        asked = await self._imports.find_run(run.id)
        drops = [kind for kind, each in run.counts.items() if is_drop(each.before, each.read)]
        if drops and not (asked is not None and asked.accept_drop):
            problem = Problem(code="HELD", message=_drop_text(run, drops))
            next_seconds = self._next_turn(run.provider_id)
            _still(
                await self._imports.end(
                    claim, run, ImportState.HELD, problem, next_seconds=next_seconds
                )
            )
            _log.warning("import_held", provider_id=run.provider_id, problem=problem.message)
            return
        next_seconds = self._next_turn(run.provider_id)
        done = _still(await self._imports.apply(claim, run, next_seconds=next_seconds))
        _log.info(
            "import_done",
            provider_id=run.provider_id,
            **{kind.value.lower(): each.read for kind, each in done.counts.items()},
            created=sum(each.created for each in done.counts.values()),
            updated=sum(each.updated for each in done.counts.values()),
            deleted=sum(each.deleted for each in done.counts.values()),
        )

    async def _fail(self, claim: JobClaim, run: ImportRun, error: ProviderError) -> None:
        problem = Problem(code=error.code, message=error.message)
        ended = await self._imports.end(
            claim,
            run,
            ImportState.FAILED,
            problem,
            next_seconds=self._retry_turn(claim, run.provider_id, error),
        )
        known = claim.job.problem
        if ended is not None and (known is None or known.code != error.code):
            _log.warning(
                "import_failed",
                provider_id=run.provider_id,
                code=error.code,
                problem=error.message,
            )

    def _next_turn(self, provider_id: str) -> float | None:
        interval = self._settings.interval_seconds
        if interval is None:
            return None
        return seconds_to_start(
            provider_id,
            interval_seconds=interval,
            now=time.time(),
            at_least=_SHORTEST_PAUSE_SECONDS,
        )

    def _retry_turn(self, claim: JobClaim, provider_id: str, error: ProviderError) -> float | None:
        turn = self._next_turn(provider_id)
        if not error.retryable or claim.job.attempts >= self._settings.retries:
            return turn
        pause = self._settings.retry_seconds * float(2**claim.job.attempts)
        pause = min(pause, self._settings.longest_retry_seconds) * _random.uniform(0.5, 1)
        pause = max(pause, error.retry_after_seconds or 0)
        return pause if turn is None else min(pause, turn)


async def refresh(
    context: RequestContext, provider_id: str, *, accept_drop: bool
) -> tuple[ImportRun, bool] | Refusal:
    """Return the provider's run that is under way or a new one, and whether it was under way.

    Raises:
        Forbidden: A scope is missing, or the request acts for users.
        StorageError: The database could not do it.
    """
    context.require(Scope.WRITE_PROVIDERS)
    provider = None
    if context.access.sees(provider_id):
        provider = await context.find_provider(provider_id)
    if provider is not None and provider.state is ProviderState.DISABLED:
        return Refusal(
            code="BAD_INPUT",
            message="The provider is disabled; updateProvider enables it again",
            field="provider_id",
        )
    found = None
    if provider is not None:
        found = await _imports(context).request(
            provider_id, requested_by=context.access.key_id, accept_drop=accept_drop
        )
    return found or Refusal(
        code="PROVIDER_NOT_FOUND", message="No such provider is registered", field="provider_id"
    )


def last_imports_of(
    context: RequestContext, providers: Sequence[Provider]
) -> Soon[Outcomes[ImportRun]]:
    """Return the last run of each provider, or its error, in their order.

    Raises:
        Forbidden: A scope is missing, or the request acts for users.
    """
    context.require(Scope.READ_PROVIDERS)
    _refuse_users(context)
    return context.last_import.load_each(provider.id for provider in providers)


async def watch_import(
    context: RequestContext, provider_id: str
) -> AsyncGenerator[ImportRun, None]:
    """Yield the provider's last run, and again whenever it has changed, until it has ended.

    Whichever gateway does the run. Of a provider that was never imported nothing is yielded.

    Raises:
        Forbidden: A scope is missing, or the request acts for users.
        ProviderNotFound: There is no such provider.
        StorageError: The database could not answer.
    """
    context.require(Scope.READ_PROVIDERS)
    _refuse_users(context)
    if await context.find_provider(provider_id) is None:
        _raise_not_found(provider_id)
    imports = _imports(context)
    run = (await imports.list_last_runs([provider_id])).get(provider_id)
    seen: ImportRun | None = None
    while run is not None:
        if run != seen:
            yield run
        if run.ended:
            return
        seen = run
        await asyncio.sleep(_WATCH_SECONDS)
        run = await imports.find_run(run.id)


async def changes(
    context: RequestContext,
    *,
    since: str | None = None,
    first: int = DEFAULT_FIRST_CHANGES,
    kinds: Sequence[RosterKind] | None = None,
    provider_ids: Sequence[str] | None = None,
) -> ChangeList:
    """Return what changed behind a cursor, in order, as far as the key may see it.

    Args:
        context: Of the request.
        since: A cursor of another answer; ``None`` for every change that is kept.
        first: How many at most.
        kinds: Of what; ``None`` for all that the key may read.
        provider_ids: Of whom; ``None`` for every provider the key sees.

    Raises:
        RequestRefused: The cursor is none of ours or too old, an argument is wrong, a scope is
            missing, or the request acts for users.
        ProviderNotFound: There is no provider of one of the ids.
        StorageError: The database could not answer.
    """
    _refuse_users(context)
    wanted = _readable(context, kinds)
    first = checked_first(first, context.limits.max_page_size)
    sealer = CursorSealer(context.limits.cursor_key, json.dumps(["changes", _CURSOR_FORMAT]))
    after = None if since is None else _opened(sealer, since)
    visible = await context.visible_providers()
    for provider_id in provider_ids or ():
        if provider_id not in visible:
            _raise_not_found(provider_id)
    page = await _imports(context).list_changes(
        after,
        kinds=wanted,
        provider_ids=list(visible if provider_ids is None else provider_ids),
        limit=first,
    )
    if after is not None and not page.oldest <= after <= page.latest:
        raise BadInput(
            "since",
            "This cursor is older than the changes that are kept, or newer than the database: take"
            " latestCursor, read the lists anew, and go on from that cursor",
        )
    latest = sealer.seal(page.latest)
    return ChangeList(
        changes=[
            RosterChange(
                change=row,
                record=record_of(row.kind, row.record, at=row.at),
                cursor=sealer.seal(row.sequence),
            )
            for row in page.changes
        ],
        end_cursor=sealer.seal(page.changes[-1].sequence) if page.more else latest,
        latest_cursor=latest,
        has_next=page.more,
    )


async def follow_changes(
    context: RequestContext,
    *,
    since: str | None,
    kinds: Sequence[RosterKind] | None,
    provider_ids: Sequence[str] | None,
) -> AsyncGenerator[RosterChange, None]:
    """Yield what changed behind a cursor and then what changes, in order, without end.

    Without a cursor it begins with the changes still to come.

    Raises:
        RequestRefused: As for ``changes``.
        ProviderNotFound: As for ``changes``.
        StorageError: The database could not answer.
    """
    cursor = since
    if cursor is None:
        found = await changes(context, first=1, kinds=kinds, provider_ids=provider_ids)
        cursor = found.latest_cursor
    while True:
        context.forget_providers()
        found = await changes(context, since=cursor, kinds=kinds, provider_ids=provider_ids)
        for change in found.changes:
            yield change
        cursor = found.end_cursor
        if not found.has_next:
            await asyncio.sleep(_FOLLOW_SECONDS)


class _TakenOver(Exception):
    """Another gateway does the run now."""


_CAPABILITIES: Final[Mapping[RosterKind, Capability]] = {
    RosterKind.USERS: Capability.USERS,
    RosterKind.COURSES: Capability.COURSES,
    RosterKind.ENROLLMENTS: Capability.ENROLLMENTS,
}
_SCOPES: Final[Mapping[RosterKind, Scope]] = {
    RosterKind.USERS: Scope.READ_USERS,
    RosterKind.COURSES: Scope.READ_COURSES,
    RosterKind.ENROLLMENTS: Scope.READ_ENROLLMENTS,
}
_DECODERS: Final[Mapping[RosterKind, msgspec.msgpack.Decoder[Any]]] = {
    RosterKind.USERS: msgspec.msgpack.Decoder(User),
    RosterKind.COURSES: msgspec.msgpack.Decoder(Course),
    RosterKind.ENROLLMENTS: msgspec.msgpack.Decoder(Enrollment),
}
_DEFAULTS: Final[Mapping[type[RosterRecord], Sequence[tuple[str, object]]]] = {
    kind: [(member.name, member.default) for member in msgspec.structs.fields(kind)]
    for kind in (User, Course, Enrollment)
}


def _with_reading(record: RosterRecord, *, at: datetime, via: DataSource) -> RosterRecord:
    provenance = msgspec.structs.replace(record.provenance, fetched_at=at, via=via)
    return msgspec.structs.replace(record, provenance=provenance)


async def _list_page(
    session: ProviderSession, kind: RosterKind, position: str | None, limit: int
) -> Page[Any]:
    if kind is RosterKind.USERS:
        return await list_users(session, position, limit)
    if kind is RosterKind.COURSES:
        return await list_courses(session, position, limit)
    return await list_enrollments(session, position, limit)


def _staged(kind: RosterKind, page: Page[RosterRecord]) -> StagedPage:
    return StagedPage(
        kind=kind,
        rows=[content_of(record) for record in page.items],
        position=page.behind,
        total=page.total,
    )


def _still(run: ImportRun | None) -> ImportRun:
    """Return the run, unless another gateway has it."""
    if run is None:
        raise _TakenOver
    return run


def _drop_text(run: ImportRun, drops: Sequence[RosterKind]) -> str:
    told = ", ".join(
        f"{run.counts[kind].read} {kind.value.lower()} where there were {run.counts[kind].before}"
        for kind in drops
    )
    return (
        f"Nothing was applied, for the provider now shows only {told}; if that is right, refresh"
        " it with acceptDrop, else it is applied when the provider shows more again"
    )


def _imports(context: RequestContext) -> ImportStore:
    if context.imports is None:
        raise NotSupported("There are no imports here")
    return context.imports


def _refuse_users(context: RequestContext) -> None:
    if context.acts_for_users:
        raise Forbidden(_SERVICE_ONLY)


def _readable(context: RequestContext, kinds: Sequence[RosterKind] | None) -> Sequence[RosterKind]:
    if kinds is not None:
        for kind in kinds:
            context.require(_SCOPES[kind])
        return kinds
    allowed = [kind for kind in KINDS if context.access.allows(_SCOPES[kind])]
    if not allowed:
        raise Forbidden(f"This needs a key with one of the scopes {', '.join(_SCOPES.values())}")
    return allowed


def _opened(sealer: CursorSealer, since: str) -> int:
    try:
        sequence = sealer.open(since)
    except BadInput:
        sequence = None
    if not isinstance(sequence, int):
        raise BadInput("since", "This is not a cursor of changes, or it is damaged")
    return sequence


def _raise_not_found(provider_id: str) -> NoReturn:
    raise ProviderNotFound("No such provider is registered", provider_id=provider_id)
