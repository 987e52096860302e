"""Imports of whole rosters: runs, the last snapshot of each provider, and what changed in it.

A run reads a provider's lists page by page. What it reads is *staged*: rows that are new or
different wait beside the snapshot, those that are as they were are only marked as seen. One
transaction then puts the staged rows in place, drops what was not seen, and writes one change for
each, so the snapshot is always that of one whole run, wherever a run is cut off.

A run works under the lease of its provider's job row (``storage.leases``). Every statement of it
renews that lease and comes to nothing once somebody else has taken it over, so a provider never
has two runs.

Changes are numbered from a counter row that is locked until the numbers are committed: a change
never becomes visible after one with a higher number, and whoever reads on from the last number
they saw misses none, on PostgreSQL too.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

import msgspec
from sqlalchemy import (
    ColumnElement,
    Select,
    and_,
    case,
    delete,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    tuple_,
    type_coerce,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import RowMapping
from sqlalchemy.ext.asyncio import AsyncConnection

from storage.database import Database
from storage.errors import ConstraintViolated
from storage.leases import JobClaim, Problem, hold_job
from storage.tables import (
    Instant,
    change,
    change_counter,
    database_now,
    import_run,
    import_stage,
    job,
    provider,
    snapshot,
)

IMPORT_JOB: Final = "import"
"""The kind of job a provider's imports are; its key is the provider's id."""

ACCOUNTS_JOB: Final = "accounts"
"""The kind of job that prepares a provider's users for matching (``storage.matching``); its key is
the provider's id. It is planned whenever a snapshot changes."""

BY_SCHEDULE: Final = "schedule"
"""Who asked for a run that nobody asked for."""

_COUNTER_ID: Final = 1
_READING_BITS: Final = 62
_FENCE_BITS: Final = 30
_KEPT_RUNS: Final = 20
_SWEPT_AT_ONCE: Final = 10_000
_FOUND_AT_ONCE: Final = 500
_NEVER_SEEN: Final = -1


class RosterKind(StrEnum):
    """The lists of a provider, in the order in which they are read."""

    USERS = "USERS"
    COURSES = "COURSES"
    ENROLLMENTS = "ENROLLMENTS"


KINDS: Final = tuple(RosterKind)


class ImportState(StrEnum):
    """Where a run is in its life.

    QUEUED: asked for; RUNNING: being read, or cut off and about to go on; HELD: read, and not
    applied because too much is gone; DONE: applied; FAILED: the provider could not be read.
    """

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    HELD = "HELD"
    DONE = "DONE"
    FAILED = "FAILED"


_OPEN: Final = (ImportState.QUEUED, ImportState.RUNNING)


class ChangeType(StrEnum):
    """What became of a row from one snapshot to the next."""

    CREATED = "CREATED"
    UPDATED = "UPDATED"
    DELETED = "DELETED"


@dataclass(frozen=True, slots=True, kw_only=True)
class ListCounts:
    """How one list of a run went.

    Attributes:
        read: Rows read so far, each counted once when the list is done.
        total: Its length as the provider says; ``None`` when it does not.
        before: Rows of the snapshot when the list was done.
        created: Changes the run made; zero until it is applied.
        updated: The same.
        deleted: The same.
    """

    read: int = 0
    total: int | None = None
    before: int = 0
    created: int = 0
    updated: int = 0
    deleted: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportRun:
    """One import of one provider.

    Attributes:
        requested_by: Id of the API key that asked for it, or ``BY_SCHEDULE``.
        accept_drop: Whether it is applied however much is gone.
        reading: Marks what it saw in the snapshot.
        lists_done: How many lists are read, of those in ``KINDS``.
        position: Where the next page of the following list begins; ``None`` at its beginning.
        counts: Of the lists read, and of the one being read; not of those the provider lacks.
        problem_code: Why it failed: the code of an error.
        problem: Why it failed or is held, for a person.
    """

    id: int
    provider_id: str
    state: ImportState
    requested_by: str
    requested_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    accept_drop: bool
    reading: int
    lists_done: int
    position: str | None
    counts: Mapping[RosterKind, ListCounts]
    problem_code: str | None
    problem: str | None

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state not in _OPEN

    @property
    def kind(self) -> RosterKind | None:
        """The list it is reading; ``None`` when it is reading none."""
        reading = self.state is ImportState.RUNNING and self.lists_done < len(KINDS)
        return KINDS[self.lists_done] if reading else None


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedRow:
    """One row as read: ``sha256`` differs exactly when its content does."""

    external_id: str
    sha256: bytes
    record: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedPage:
    """A page of a list as read.

    Attributes:
        position: Where the next page begins; ``None`` when this was the last.
        total: Length of the whole list, if the provider says.
    """

    kind: RosterKind
    rows: Sequence[StagedRow]
    position: str | None
    total: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One row that came, changed or went; ``record`` is the last known one of what went."""

    sequence: int
    at: datetime
    provider_id: str
    kind: RosterKind
    external_id: str
    type: ChangeType
    record: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangePage:
    """Changes in order.

    Attributes:
        oldest: Changes up to this number are not kept any more.
        latest: Number of the latest change there is; every change up to it was looked at,
            unless there are more.
        more: Whether there are others behind these.
    """

    changes: Sequence[Change]
    oldest: int
    latest: int
    more: bool


class ImportStore:
    """Runs, snapshots and changes; all of a provider's go with it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # Asking and looking.

    async def request(
        self, provider_id: str, *, requested_by: str, accept_drop: bool
    ) -> tuple[ImportRun, bool] | None:
        """Return the run that is under way, or a new one that is due now, and which it is.

        Asked to accept a drop, one that is under way does so too.

        Returns:
            The run and whether it was under way; ``None`` when there is no such provider.

        Raises:
            StorageError: The database could not do it.
        """
        planned = _planned(provider_id, database_now())
        try:
            async with self._database.transaction() as connection:
                # It also locks the job, so that a run that ends now has ended, or has not.
                await connection.execute(
                    self._database.upsert(job, planned, change={"due_at": database_now()})
                )
                found = await _find_last(connection, provider_id)
                if found is not None and not found.ended:
                    if accept_drop:
                        found = await _change_run(connection, found, accept_drop=True)
                    return found, True
                run = await _new_run(
                    connection, provider_id, requested_by=requested_by, accept_drop=accept_drop
                )
                return run, False
        except ConstraintViolated:
            return None

    async def find_run(self, run_id: int) -> ImportRun | None:
        """Return a run, if it is still known.

        Raises:
            StorageError: The database could not answer.
        """
        async with self._database.read() as connection:
            return await _find_run(connection, run_id)

    async def list_last_runs(self, provider_ids: Collection[str]) -> Mapping[str, ImportRun]:
        """Return the latest run of each provider by its id; of one never imported, none.

        Raises:
            StorageError: The database could not answer.
        """
        last = (
            select(func.max(import_run.c.id))
            .where(import_run.c.provider_id.in_(provider_ids))
            .group_by(import_run.c.provider_id)
        )
        async with self._database.read() as connection:
            found = await connection.execute(select(import_run).where(import_run.c.id.in_(last)))
            return {row["provider_id"]: _run(row) for row in found.mappings()}

    async def list_last_applied(self, provider_ids: Collection[str]) -> Mapping[str, datetime]:
        """Return when each provider's snapshot was last brought up to date; of none, nothing.

        Raises:
            StorageError: The database could not answer.
        """
        statement = (
            select(import_run.c.provider_id, func.max(import_run.c.finished_at))
            .where(
                import_run.c.provider_id.in_(provider_ids),
                import_run.c.state == ImportState.DONE.value,
            )
            .group_by(import_run.c.provider_id)
        )
        async with self._database.read() as connection:
            return {row[0]: row[1] for row in await connection.execute(statement)}

    async def plan(self, due_seconds: Mapping[str, float], *, scheduled: bool) -> None:
        """Give every named provider a job unless it has one, and drop jobs nobody needs.

        Args:
            due_seconds: When each provider is imported for the first time, by its id.
            scheduled: Whether providers are imported unasked; else only jobs of runs under way,
                or about to be tried again, are kept.

        Raises:
            StorageError: The database could not do it.
        """
        needless = ~exists().where(provider.c.id == job.c.key)
        if not scheduled:
            under_way = exists().where(
                import_run.c.provider_id == job.c.key, import_run.c.state.in_(_OPEN)
            )
            needless = or_(needless, and_(job.c.attempts == 0, ~under_way))
        async with self._database.read() as connection:
            statement = select(job.c.key, needless.label("needless")).where(
                job.c.kind == IMPORT_JOB
            )
            known = {row.key: row.needless for row in await connection.execute(statement)}
        missing = {key: seconds for key, seconds in due_seconds.items() if key not in known}
        if not missing and not any(known.values()):
            return
        async with self._database.transaction() as connection:
            await connection.execute(
                delete(job).where(
                    job.c.kind == IMPORT_JOB, job.c.lease_until <= database_now(), needless
                )
            )
            for key, seconds in missing.items():
                planned = _planned(key, database_now() + seconds)
                await connection.execute(self._database.upsert(job, planned, change=()))

    # Running, under the lease of a job.

    async def begin(
        self, claim: JobClaim, *, scheduled: bool, resume_seconds: float
    ) -> ImportRun | None:
        """Return the run to go on with, RUNNING, at the position where it is to go on.

        That is the one under way; else a new one, if providers are imported unasked. It goes on
        where it was cut off, or where the failed one before it was, if that is not long ago.

        Args:
            claim: The lease.
            scheduled: Whether there may be a run that nobody asked for.
            resume_seconds: How old a position may be.

        Returns:
            The run; ``None`` when there is none to go on with, and then no job either, or when
            somebody else has taken over.

        Raises:
            StorageError: The database could not do it.
        """
        provider_id = claim.job.key
        try:
            async with self._database.transaction() as connection:
                if not await hold_job(connection, claim):
                    return None
                run = await _find_last(connection, provider_id)
                if run is None or run.ended:
                    if not scheduled:
                        await connection.execute(delete(job).where(*_held(claim)))
                        return None
                    run = await _new_run(
                        connection, provider_id, requested_by=BY_SCHEDULE, accept_drop=False
                    )
                return await _begun(connection, run, resume_seconds=resume_seconds)
        except ConstraintViolated:  # the provider is gone
            async with self._database.transaction() as connection:
                await connection.execute(delete(job).where(*_held(claim)))
            return None

    async def stage(
        self, claim: JobClaim, run: ImportRun, page: StagedPage, *, lease_seconds: float
    ) -> ImportRun | None:
        """Keep a page of the list being read, and renew the lease.

        A row that comes twice is kept as it came first.

        Returns:
            The run as it is now; ``None`` when somebody else has taken over.

        Raises:
            StorageError: The database could not do it; ask again, or leave it.
        """
        try:
            async with self._database.transaction() as connection:
                if not await hold_job(connection, claim, lease_seconds=lease_seconds):
                    return None
                await self._stage_rows(connection, run, page)
                counts = run.counts.get(page.kind, ListCounts())
                counts = replace(
                    counts,
                    read=counts.read + len(page.rows),
                    total=page.total if counts.total is None else counts.total,
                )
                if page.position is None:
                    counts = await _counted(connection, run, page.kind, counts)
                return await _advance(
                    connection,
                    run,
                    position=page.position,
                    counts={**run.counts, page.kind: counts},
                )
        except ConstraintViolated:  # the provider is gone
            return None

    async def skip_list(self, claim: JobClaim, run: ImportRun) -> ImportRun | None:
        """Go on to the next list without this one, which the provider does not have.

        Raises:
            StorageError: As for ``stage``.
        """
        async with self._database.transaction() as connection:
            if not await hold_job(connection, claim):
                return None
            kind = KINDS[run.lists_done]
            await _forget_list(connection, run, kind)
            counts = {key: value for key, value in run.counts.items() if key is not kind}
            return await _advance(connection, run, position=None, counts=counts)

    async def restart_list(self, claim: JobClaim, run: ImportRun) -> ImportRun | None:
        """Forget what was read of the list being read, to read it again.

        Raises:
            StorageError: As for ``stage``.
        """
        async with self._database.transaction() as connection:
            if not await hold_job(connection, claim):
                return None
            kind = KINDS[run.lists_done]
            await _forget_list(connection, run, kind)
            counts = {key: value for key, value in run.counts.items() if key is not kind}
            return await _change_run(
                connection, run, position=None, position_at=None, counts=_counts_text(counts)
            )

    async def apply(
        self, claim: JobClaim, run: ImportRun, *, next_seconds: float | None
    ) -> ImportRun | None:
        """Make what was read the snapshot, write the changes, and end the run, all or nothing.

        Changes come in the order users, courses, enrollments; what was deleted comes last and
        the other way round, so that nothing refers to what is not there.

        Args:
            claim: The lease, which is given back.
            run: With every list read.
            next_seconds: When the next run is due; ``None`` for never.

        Returns:
            The run as it ended; ``None`` when somebody else has taken over.

        Raises:
            StorageError: The database could not do it; nothing was changed.
        """
        async with self._database.transaction() as connection:
            if not await hold_job(connection, claim):
                return None
            counts = await _change_counts(connection, run)
            written = sum(each.created + each.updated + each.deleted for each in counts.values())
            if written:
                first = await self._take_numbers(connection, written)
                await _write_changes(connection, run, first=first)
                await self._switch(connection, run)
                await connection.execute(
                    update(provider)
                    .where(provider.c.id == run.provider_id)
                    .values(writes=provider.c.writes + 1)  # what is kept of it is old
                )
                await connection.execute(
                    self._database.upsert(
                        job,
                        _planned(run.provider_id, database_now(), kind=ACCOUNTS_JOB),
                        change={"due_at": database_now()},
                    )
                )
            await _end_job(connection, claim, next_seconds=next_seconds, problem=None, failed=False)
            return await _change_run(
                connection,
                run,
                state=ImportState.DONE,
                finished_at=database_now(),
                counts=_counts_text(counts),
                position=None,
            )

    async def end(
        self,
        claim: JobClaim,
        run: ImportRun,
        state: ImportState,
        problem: Problem,
        *,
        next_seconds: float | None,
    ) -> ImportRun | None:
        """End a run that changes nothing: HELD, or FAILED.

        What a failed one has read is kept for the next to go on from.

        Args:
            claim: The lease, which is given back.
            run: The run.
            state: How it ends.
            problem: Why.
            next_seconds: When the next run is due; ``None`` for never.

        Returns:
            The run as it ended; ``None`` when somebody else has taken over.

        Raises:
            StorageError: The database could not do it.
        """
        failed = state is ImportState.FAILED
        async with self._database.transaction() as connection:
            if not await hold_job(connection, claim):
                return None
            if not failed:
                await _forget_stage(connection, run.provider_id)
            await _end_job(
                connection, claim, next_seconds=next_seconds, problem=problem, failed=failed
            )
            return await _change_run(
                connection,
                run,
                state=state,
                finished_at=database_now(),
                problem_code=problem.code if failed else None,
                problem=problem.message,
            )

    # Changes.

    async def list_changes(
        self,
        after: int | None,
        *,
        kinds: Collection[RosterKind],
        provider_ids: Collection[str],
        limit: int,
    ) -> ChangePage:
        """Return changes of these kinds and providers behind a number, in order.

        Args:
            after: The number; ``None`` for every change that is kept.
            kinds: Of what.
            provider_ids: Of whom.
            limit: How many at most.

        Raises:
            StorageError: The database could not answer.
        """
        async with self._database.read() as connection:
            counter = (await connection.execute(select(change_counter))).mappings().one_or_none()
            oldest, latest = (0, 0) if counter is None else (counter["swept"], counter["last"])
            statement = (
                select(change)
                .where(
                    change.c.sequence > (oldest if after is None else after),
                    # What is committed from here on is for the next time.
                    change.c.sequence <= latest,
                    change.c.kind.in_(kinds),
                    change.c.provider_id.in_(provider_ids),
                )
                .order_by(change.c.sequence)
                .limit(limit + 1)
            )
            rows = (await connection.execute(statement)).mappings().all()
        return ChangePage(
            changes=[
                Change(
                    sequence=row["sequence"],
                    at=row["at"],
                    provider_id=row["provider_id"],
                    kind=RosterKind(row["kind"]),
                    external_id=row["external_id"],
                    type=ChangeType(row["type"]),
                    record=row["record"],
                )
                for row in rows[:limit]
            ],
            oldest=oldest,
            latest=latest,
            more=len(rows) > limit,
        )

    async def sweep_changes(self, *, kept_seconds: float) -> int:
        """Forget changes older than this, some thousands at most, and return how many there were.

        Raises:
            StorageError: The database could not do it.
        """
        old = (
            select(change.c.sequence)
            .where(change.c.at < type_coerce(database_now() - kept_seconds, Instant))
            .order_by(change.c.sequence)
            .limit(_SWEPT_AT_ONCE)
            .subquery()
        )
        async with self._database.read() as connection:
            through = (await connection.execute(select(func.max(old.c.sequence)))).scalar_one()
        if through is None:
            return 0
        async with self._database.transaction() as connection:
            await connection.execute(
                update(change_counter).where(change_counter.c.swept < through).values(swept=through)
            )
            return (
                await connection.execute(delete(change).where(change.c.sequence <= through))
            ).rowcount

    # Snapshots.

    async def list_rows(
        self, provider_id: str, kind: RosterKind, *, after: str = "", limit: int
    ) -> Sequence[StagedRow]:
        """Return rows of a provider's snapshot behind one, by external id.

        Raises:
            StorageError: The database could not answer.
        """
        statement = (
            select(snapshot)
            .where(
                snapshot.c.provider_id == provider_id,
                snapshot.c.kind == kind.value,
                snapshot.c.external_id > after,
            )
            .order_by(snapshot.c.external_id)
            .limit(limit)
        )
        async with self._database.read() as connection:
            return [_kept_row(row) for row in (await connection.execute(statement)).mappings()]

    async def find_rows(
        self, kind: RosterKind, keys: Collection[tuple[str, str]]
    ) -> Mapping[tuple[str, str], StagedRow]:
        """Return those of these rows that the snapshots hold, by provider and external id.

        Raises:
            StorageError: The database could not answer.
        """
        listed = list(keys)
        found: dict[tuple[str, str], StagedRow] = {}
        async with self._database.read() as connection:
            for start in range(0, len(listed), _FOUND_AT_ONCE):
                statement = select(snapshot).where(
                    snapshot.c.kind == kind.value,
                    tuple_(snapshot.c.provider_id, snapshot.c.external_id).in_(
                        listed[start : start + _FOUND_AT_ONCE]
                    ),
                )
                for row in (await connection.execute(statement)).mappings():
                    found[row["provider_id"], row["external_id"]] = _kept_row(row)
        return found

    # Rows.

    async def _stage_rows(
        self, connection: AsyncConnection, run: ImportRun, page: StagedPage
    ) -> None:
        """Stage what differs from the snapshot, and mark in it what was seen."""
        rows = {row.external_id: row for row in reversed(page.rows)}
        here = _of_list(snapshot.c, run, page.kind)
        found = await connection.execute(
            select(snapshot.c.external_id, snapshot.c.sha256).where(
                *here, snapshot.c.external_id.in_(rows)
            )
        )
        known = {row.external_id: row.sha256 for row in found}
        if known:
            await connection.execute(
                update(snapshot)
                .where(*here, snapshot.c.external_id.in_(known))
                .values(seen_reading=run.reading)
            )
        staged = [
            {
                "provider_id": run.provider_id,
                "kind": page.kind,
                "external_id": row.external_id,
                "sha256": row.sha256,
                "record": row.record,
                "created": row.external_id not in known,
            }
            for row in rows.values()
            if known.get(row.external_id) != row.sha256
        ]
        if staged:
            statement = self._dialect.insert(import_stage).on_conflict_do_nothing(
                index_elements=[*import_stage.primary_key]
            )
            await connection.execute(statement, staged)

    async def _take_numbers(self, connection: AsyncConnection, count: int) -> int:
        """Return the first of so many numbers, all of which this transaction's commit shows."""
        statement = self._database.upsert(
            change_counter,
            {"id": _COUNTER_ID, "last": count, "swept": 0},
            change={"last": change_counter.c.last + count},
        ).returning(change_counter.c.last)
        last: int = (await connection.execute(statement)).scalar_one()
        return last - count + 1

    async def _switch(self, connection: AsyncConnection, run: ImportRun) -> None:
        names = ["provider_id", "kind", "external_id", "sha256", "record"]
        staged = select(
            *(import_stage.c[name] for name in names),
            literal(run.reading, snapshot.c.seen_reading.type),
        ).where(import_stage.c.provider_id == run.provider_id)
        put = self._dialect.insert(snapshot).from_select([*names, "seen_reading"], staged)
        await connection.execute(
            put.on_conflict_do_update(
                index_elements=[*snapshot.primary_key],
                set_={name: put.excluded[name] for name in ("sha256", "record", "seen_reading")},
            )
        )
        await connection.execute(delete(snapshot).where(*_unseen(run)))
        await _forget_stage(connection, run.provider_id)

    @property
    def _dialect(self) -> Any:  # the two modules have no common type
        return sqlite if self._database.dialect == "sqlite" else postgresql


def _planned(
    provider_id: str, due_at: ColumnElement[float], *, kind: str = IMPORT_JOB
) -> Mapping[str, Any]:
    return {
        "kind": kind,
        "key": provider_id,
        "due_at": due_at,
        "lease_until": 0.0,
        # Not from zero: whoever held a job of the same key that was dropped must not hold this one.
        "fence": secrets.randbits(_FENCE_BITS),
        "attempts": 0,
    }


def _held(claim: JobClaim) -> tuple[ColumnElement[bool], ...]:
    return (
        job.c.kind == claim.job.kind,
        job.c.key == claim.job.key,
        job.c.fence == claim.fence,
    )


async def _end_job(
    connection: AsyncConnection,
    claim: JobClaim,
    *,
    next_seconds: float | None,
    problem: Problem | None,
    failed: bool,
) -> None:
    """Give the lease back and plan the next run, or none."""
    if next_seconds is None:
        await connection.execute(delete(job).where(*_held(claim)))
        return
    await connection.execute(
        update(job)
        .where(*_held(claim))
        .values(
            due_at=database_now() + next_seconds,
            attempts=job.c.attempts + 1 if failed else 0,
            problem=None if problem is None else f"{problem.code} {problem.message}",
            lease_owner=None,
            lease_until=0.0,
        )
    )


async def _find_run(connection: AsyncConnection, run_id: int) -> ImportRun | None:
    statement = select(import_run).where(import_run.c.id == run_id)
    row = (await connection.execute(statement)).mappings().one_or_none()
    return None if row is None else _run(row)


async def _find_last(
    connection: AsyncConnection, provider_id: str, *, before: int | None = None
) -> ImportRun | None:
    statement = (
        select(import_run)
        .where(import_run.c.provider_id == provider_id)
        .order_by(import_run.c.id.desc())
        .limit(1)
    )
    if before is not None:
        statement = statement.where(import_run.c.id < before)
    row = (await connection.execute(statement)).mappings().one_or_none()
    return None if row is None else _run(row)


async def _new_run(
    connection: AsyncConnection, provider_id: str, *, requested_by: str, accept_drop: bool
) -> ImportRun:
    statement = (
        insert(import_run)
        .values(
            provider_id=provider_id,
            state=ImportState.QUEUED,
            requested_by=requested_by,
            requested_at=database_now(),
            accept_drop=accept_drop,
            reading=secrets.randbits(_READING_BITS),
            lists_done=0,
            counts="{}",
        )
        .returning(*import_run.c)
    )
    run = _run((await connection.execute(statement)).mappings().one())
    old = (
        select(import_run.c.id)
        .where(import_run.c.provider_id == provider_id)
        .order_by(import_run.c.id.desc())
        .offset(_KEPT_RUNS)
        .limit(1)
        .scalar_subquery()
    )
    await connection.execute(
        delete(import_run).where(import_run.c.provider_id == provider_id, import_run.c.id <= old)
    )
    return run


async def _begun(
    connection: AsyncConnection, run: ImportRun, *, resume_seconds: float
) -> ImportRun:
    """Return the run RUNNING: where it was, where the failed one before was, or at the start."""
    if run.state is ImportState.RUNNING:
        if await _is_fresh(connection, run, resume_seconds=resume_seconds):
            return run
        before = None
    else:
        before = await _find_last(connection, run.provider_id, before=run.id)
    values: dict[str, Any] = {"state": ImportState.RUNNING, "started_at": database_now()}
    if (
        before is not None
        and before.state is ImportState.FAILED
        and await _is_fresh(connection, before, resume_seconds=resume_seconds)
    ):
        at = select(import_run.c.position_at).where(import_run.c.id == before.id)
        values |= {
            "reading": before.reading,
            "lists_done": before.lists_done,
            "position": before.position,
            "position_at": at.scalar_subquery(),
            "counts": _counts_text(before.counts),
        }
    else:
        await _forget_stage(connection, run.provider_id)
        values |= {
            "reading": secrets.randbits(_READING_BITS),
            "lists_done": 0,
            "position": None,
            "position_at": None,
            "counts": "{}",
        }
    return await _change_run(connection, run, **values)


async def _is_fresh(connection: AsyncConnection, run: ImportRun, *, resume_seconds: float) -> bool:
    """Whether the run's position is young enough, and the provider still what it began with."""
    changed_at = select(provider.c.updated_at).where(provider.c.id == run.provider_id)
    statement = select(import_run.c.id).where(
        import_run.c.id == run.id,
        import_run.c.position_at > database_now() - resume_seconds,
        import_run.c.started_at > changed_at.scalar_subquery(),
    )
    return (await connection.execute(statement)).one_or_none() is not None


async def _change_run(connection: AsyncConnection, run: ImportRun, **values: Any) -> ImportRun:
    statement = (
        update(import_run)
        .where(import_run.c.id == run.id)
        .values(**values)
        .returning(*import_run.c)
    )
    return _run((await connection.execute(statement)).mappings().one())


async def _advance(
    connection: AsyncConnection,
    run: ImportRun,
    *,
    position: str | None,
    counts: Mapping[RosterKind, ListCounts],
) -> ImportRun:
    """Note how far the run is; without a position it is at the beginning of the next list."""
    return await _change_run(
        connection,
        run,
        lists_done=run.lists_done + (position is None),
        position=position,
        position_at=database_now(),
        counts=_counts_text(counts),
    )


async def _counted(
    connection: AsyncConnection, run: ImportRun, kind: RosterKind, counts: ListCounts
) -> ListCounts:
    """Return the counts of a list that is done, every row counted once."""
    here = _of_list(snapshot.c, run, kind)
    seen = func.sum(case((snapshot.c.seen_reading == run.reading, 1), else_=0))
    kept = (await connection.execute(select(func.count(), seen).where(*here))).one()
    created = select(func.count()).where(
        *_of_list(import_stage.c, run, kind), import_stage.c.created
    )
    new: int = (await connection.execute(created)).scalar_one()
    return replace(counts, read=int(kept[1] or 0) + new, before=kept[0])


async def _change_counts(
    connection: AsyncConnection, run: ImportRun
) -> Mapping[RosterKind, ListCounts]:
    """Return the counts of the run with the changes it is about to make."""
    staged = select(import_stage.c.kind, import_stage.c.created, func.count()).where(
        import_stage.c.provider_id == run.provider_id
    )
    found = await connection.execute(staged.group_by(import_stage.c.kind, import_stage.c.created))
    numbers = {(row[0], bool(row[1])): row[2] for row in found}
    gone = select(snapshot.c.kind, func.count()).where(*_unseen(run)).group_by(snapshot.c.kind)
    deleted = {row[0]: row[1] for row in await connection.execute(gone)}
    return {
        kind: replace(
            counts,
            created=numbers.get((kind, True), 0),
            updated=numbers.get((kind, False), 0),
            deleted=deleted.get(kind, 0),
        )
        for kind, counts in run.counts.items()
    }


async def _write_changes(connection: AsyncConnection, run: ImportRun, *, first: int) -> None:
    """Write a change for each row staged and each not seen, numbered from the first on."""
    staged = select(
        import_stage.c.kind,
        import_stage.c.external_id,
        case((import_stage.c.created, ChangeType.CREATED), else_=ChangeType.UPDATED).label("type"),
        import_stage.c.record,
        _rank(import_stage.c.kind).label("rank"),
    ).where(import_stage.c.provider_id == run.provider_id)
    gone = select(
        snapshot.c.kind,
        snapshot.c.external_id,
        literal(ChangeType.DELETED.value).label("type"),
        snapshot.c.record,
        (2 * len(KINDS) - _rank(snapshot.c.kind)).label("rank"),
    ).where(*_unseen(run))
    rows = staged.union_all(gone).subquery()
    number = func.row_number().over(order_by=(rows.c.rank, rows.c.external_id))
    source: Select[Any] = select(
        (number + (first - 1)).label("sequence"),
        type_coerce(database_now(), Instant).label("at"),
        literal(run.provider_id).label("provider_id"),
        rows.c.kind,
        rows.c.external_id,
        rows.c.type,
        rows.c.record,
    )
    names = ["sequence", "at", "provider_id", "kind", "external_id", "type", "record"]
    await connection.execute(insert(change).from_select(names, source))


def _rank(kind: ColumnElement[str]) -> ColumnElement[int]:
    return case({each.value: number for number, each in enumerate(KINDS)}, value=kind)


async def _forget_list(connection: AsyncConnection, run: ImportRun, kind: RosterKind) -> None:
    await connection.execute(delete(import_stage).where(*_of_list(import_stage.c, run, kind)))
    await connection.execute(
        update(snapshot)
        .where(*_of_list(snapshot.c, run, kind), snapshot.c.seen_reading == run.reading)
        .values(seen_reading=_NEVER_SEEN)
    )


async def _forget_stage(connection: AsyncConnection, provider_id: str) -> None:
    await connection.execute(delete(import_stage).where(import_stage.c.provider_id == provider_id))


def _of_list(columns: Any, run: ImportRun, kind: RosterKind) -> tuple[ColumnElement[bool], ...]:
    return columns.provider_id == run.provider_id, columns.kind == kind.value


def _unseen(run: ImportRun) -> tuple[ColumnElement[bool], ...]:
    """What the snapshot holds of the lists that were read and the run has not seen."""
    return (
        snapshot.c.provider_id == run.provider_id,
        snapshot.c.kind.in_([kind.value for kind in run.counts]),
        snapshot.c.seen_reading != run.reading,
    )


def _kept_row(row: RowMapping) -> StagedRow:
    return StagedRow(external_id=row["external_id"], sha256=row["sha256"], record=row["record"])


def _counts_text(counts: Mapping[RosterKind, ListCounts]) -> str:
    return msgspec.json.encode({kind.value: each for kind, each in counts.items()}).decode()


def _run(row: RowMapping) -> ImportRun:
    counts = msgspec.json.decode(row["counts"], type=dict[RosterKind, ListCounts])
    return ImportRun(
        id=row["id"],
        provider_id=row["provider_id"],
        state=ImportState(row["state"]),
        requested_by=row["requested_by"],
        requested_at=row["requested_at"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        accept_drop=row["accept_drop"],
        reading=row["reading"],
        lists_done=row["lists_done"],
        position=row["position"],
        counts=counts,
        problem_code=row["problem_code"],
        problem=row["problem"],
    )
