"""Leases: which gateway may change a session or run a job now, and what came of it.

Only *transitions* of a session (logging in, refreshing, keeping alive) and runs of a job are
leased, never the use of a session. The protocol, for both tables:

1. *Claim*: one statement takes the lease if nobody holds it and nobody took it since the claimant
   looked; it raises the row's fence. A lease lasts some seconds, by the database's
   clock; the holder reckons from before the statement was sent, so it never believes longer.
2. *Act* upstream, well within the lease.
3. *Commit* by compare-and-set on version and fence. A holder that was paused past its lease finds
   the fence raised (it is *fenced*) and throws away what it obtained.

A crashed holder's lease runs out by itself; nothing else needs repair. The statements are the
same for SQLite and PostgreSQL.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import (
    Double,
    Select,
    and_,
    case,
    delete,
    func,
    insert,
    null,
    or_,
    select,
    tuple_,
    type_coerce,
    update,
)
from sqlalchemy.engine import RowMapping
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.elements import ColumnElement

from storage.credentials import KeyRing, Secret
from storage.database import Database
from storage.errors import ConstraintViolated, StorageError
from storage.records import ProviderState, SessionState
from storage.tables import database_now, job, provider, session, session_log

_FREE: Final = 0.0
_GRANT_PREFIX: Final = "grant."
_STARTING: Final = "starting"


class Transition(StrEnum):
    """What a lease on a session is taken for."""

    LOG_IN = "log_in"
    KEEP_ALIVE = "keep_alive"
    RENEW = "renew"
    ADOPT = "adopt"
    REVOKE = "revoke"


class Outcome(StrEnum):
    """What came of a transition.

    COMMITTED: a new grant is stored; PROLONGED: the grant is alive and stays; LOST: the provider
    had ended it; FAILED: tried, to be tried again later; REFUSED: only new credentials will help;
    FENCED: somebody else took over meanwhile, so what was obtained is thrown away; LATE: this
    process was paused, before anything was sent or so long that the answer says nothing.
    """

    COMMITTED = "committed"
    PROLONGED = "prolonged"
    LOST = "lost"
    FAILED = "failed"
    REFUSED = "refused"
    FENCED = "fenced"
    LATE = "late"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Why a transition or a job failed: a stable code and a sentence for a person."""

    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginAllowance:
    """How many logins one session may claim within how long, over all gateways together."""

    count: int
    window_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSession:
    """One session's row, with its durations reckoned by the database's clock.

    Attributes:
        version: Raised by every grant stored and by every reset.
        grant: The grant's secret; ``None`` when there is none.
        terms: What the grant, or the refusal, was obtained for: a digest of the provider's
            address and credentials. One obtained on other terms says nothing about these.
        seconds_to_expiry: Until the grant expires; ``None`` when unknown.
        seconds_to_next: Until the next transition is due; ``None`` when none is planned.
        leased_seconds: Until the lease ends; zero or less when nobody holds it.
        failures: Transitions failed since the last that did not.
        login_count: Logins claimed in the current window.
        window_age_seconds: Since that window began; ``None`` before the first login.
    """

    provider_id: str
    subject: str
    version: int
    fence: int
    state: SessionState
    grant: Secret[Mapping[str, str]] | None
    terms: str | None
    expires_at: datetime | None
    seconds_to_expiry: float | None
    seconds_to_next: float | None
    leased_seconds: float
    intent: str | None
    failures: int
    login_count: int
    window_age_seconds: float | None
    problem: Problem | None
    updated_at: datetime

    @property
    def leased(self) -> bool:
        """Whether some gateway holds the lease."""
        return self.leased_seconds > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A lease on one session, held by this process.

    Attributes:
        seen: The session as it was claimed.
        taken_at: ``time.monotonic()`` before the claim was sent.
    """

    seen: StoredSession
    transition: Transition
    fence: int
    taken_at: float
    lease_seconds: float

    @property
    def seconds_left(self) -> float:
        """How long this process may still believe in the lease."""
        return self.taken_at + self.lease_seconds - time.monotonic()


@dataclass(frozen=True, slots=True, kw_only=True)
class Prolongation:
    """A grant found alive: until when it lasts, and when to look again."""

    claim: Claim
    lifetime_seconds: float | None
    next_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionTransition:
    """One line of a session's history."""

    at: datetime
    transition: str
    outcome: str
    version: int
    owner: str
    reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionStatus:
    """What may be shown of a session; never a secret.

    Attributes:
        version: Raised by every grant stored and by every reset; 0 before the first.
        next_transition_at: When it is kept alive, refreshed or tried again next.
        login_count: Logins in the current window, over all gateways.
        transitions: The latest, newest first; empty in a list of many sessions.
    """

    provider_id: str
    subject: str
    state: SessionState
    version: int = 0
    expires_at: datetime | None = None
    next_transition_at: datetime | None = None
    login_count: int = 0
    failures: int = 0
    problem_code: str | None = None
    problem: str | None = None
    updated_at: datetime | None = None
    transitions: tuple[SessionTransition, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One row of planned work.

    Attributes:
        key: What it is done for; unique within ``kind``.
        seconds_to_due: Zero or less when it may run now.
        attempts: Runs failed since the last that did not.
        problem: Why the last run failed or was refused; ``None`` when it succeeded.
    """

    kind: str
    key: str
    seconds_to_due: float
    leased_seconds: float
    attempts: int
    problem: Problem | None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobClaim:
    """A lease on one job, held by this process."""

    job: Job
    fence: int


class LeaseStore:
    """Rows of sessions and jobs, and the leases on them.

    Args:
        database: Where they are.
        key_ring: Seals the grants, each bound to its row.
        owner: This process, unlike any other: written beside the leases it holds.
    """

    def __init__(self, database: Database, key_ring: KeyRing, *, owner: str) -> None:
        self._database = database
        self._key_ring = key_ring
        self.owner = owner

    # Sessions.

    async def find_session(self, provider_id: str, subject: str) -> StoredSession | None:
        """Return the session's row, or ``None`` when it never had one.

        Raises:
            StorageError: The database could not answer, or the grant cannot be unsealed.
        """
        async with self._database.read() as connection:
            return await self._find(connection, provider_id, subject)

    async def ensure_session(self, provider_id: str, subject: str) -> StoredSession | None:
        """Return the session's row, made now if need be; ``None`` when there is no such provider.

        Raises:
            StorageError: As for ``find_session``.
        """
        found = await self.find_session(provider_id, subject)
        if found is not None:
            return found
        row = {
            "provider_id": provider_id,
            "subject": subject,
            "version": 0,
            "fence": 0,
            "state": SessionState.EMPTY,
            "lease_until": _FREE,
            "failures": 0,
            "login_count": 0,
            "updated_at": database_now(),
        }
        try:
            async with self._database.transaction() as connection:
                await connection.execute(self._database.upsert(session, row, change=()))
                return await self._find(connection, provider_id, subject)
        except ConstraintViolated:
            return None

    async def claim_session(
        self,
        seen: StoredSession,
        transition: Transition,
        *,
        lease_seconds: float,
        allowance: LoginAllowance | None = None,
    ) -> Claim | None:
        """Take the lease if it is free and nobody has taken it since the session was seen.

        Args:
            seen: The session as just read.
            transition: What it is taken for.
            lease_seconds: For how long.
            allowance: Counts this claim as a login, and refuses it when there were enough.

        Raises:
            StorageError: As for ``find_session``.
        """
        statement = update(session).where(
            *_row(seen.provider_id, seen.subject),
            session.c.version == seen.version,
            session.c.fence == seen.fence,  # a refusal in between changes nothing else
            session.c.lease_until <= database_now(),
        )
        if allowance is not None:
            statement = statement.where(_login_allowed(allowance)).values(_counted(allowance))
        statement = statement.values(self._leased(transition, lease_seconds))
        taken_at = time.monotonic()
        async with self._database.transaction() as connection:
            result = await connection.execute(statement.returning(*_SESSION_COLUMNS))
            row = result.mappings().one_or_none()
        if row is None:
            return None
        return self._claim(row, transition, taken_at=taken_at, lease_seconds=lease_seconds)

    async def claim_due_sessions(self, *, limit: int, lease_seconds: float) -> Sequence[Claim]:
        """Take the leases of active sessions whose next transition is due, longest due first.

        Raises:
            StorageError: As for ``find_session``.
        """
        due = (
            select(session.c.provider_id, session.c.subject)
            .where(*_DUE_SESSION, session.c.state == SessionState.ACTIVE)
            .order_by(session.c.next_at)
            .limit(limit)
            .with_for_update(skip_locked=True)
            .cte("due")
        )
        statement = (
            update(session)
            .where(
                tuple_(session.c.provider_id, session.c.subject).in_(
                    select(due.c.provider_id, due.c.subject)
                )
            )
            .values(self._leased(Transition.KEEP_ALIVE, lease_seconds))
            .returning(*_SESSION_COLUMNS)
        )
        taken_at = time.monotonic()
        async with self._database.transaction() as connection:
            rows = (await connection.execute(statement)).mappings().all()
        claims = [
            self._claim(row, Transition.KEEP_ALIVE, taken_at=taken_at, lease_seconds=lease_seconds)
            for row in rows
        ]
        return sorted(claims, key=lambda claim: claim.seen.seconds_to_next or 0.0)

    async def list_due_retries(self, *, limit: int) -> Sequence[tuple[str, str]]:
        """Return provider id and subject of sessions whose back-off is over, longest over first.

        Raises:
            StorageUnavailable: The database could not answer.
        """
        statement = (
            select(session.c.provider_id, session.c.subject)
            .where(*_DUE_SESSION, session.c.state == SessionState.BACKOFF)
            .order_by(session.c.next_at)
            .limit(limit)
        )
        async with self._database.read() as connection:
            rows = (await connection.execute(statement)).all()
        return [(row.provider_id, row.subject) for row in rows]

    async def commit_session(
        self,
        claim: Claim,
        grant: Secret[Mapping[str, str]],
        *,
        terms: str,
        lifetime_seconds: float | None,
        next_seconds: float | None,
        require_fence: bool = True,
    ) -> StoredSession | None:
        """Store a new grant and give the lease back; ``None`` when fenced.

        May be repeated when it is unknown whether an earlier attempt was stored.

        Args:
            claim: The lease under which the grant was obtained.
            grant: What to seal.
            terms: See ``StoredSession``.
            lifetime_seconds: How long it holds, if known.
            next_seconds: When the next transition is due.
            require_fence: ``False`` where the grant consumed its predecessor: then it is stored
                unless another one was, even after the lease ran out.

        Raises:
            StorageError: As for ``find_session``; it may have been stored all the same.
        """
        seen = claim.seen
        conditions = [*_row(seen.provider_id, seen.subject), session.c.version == seen.version]
        if require_fence:
            conditions.append(session.c.fence == claim.fence)
        statement = (
            update(session)
            .where(*conditions)
            .values(
                version=seen.version + 1,
                state=SessionState.ACTIVE,
                secret=self._sealed(seen.provider_id, seen.subject, terms=terms, grant=grant),
                **_after(lifetime_seconds, next_seconds),
                **_RELEASED,
                **_NO_PROBLEM,
            )
            .returning(*_SESSION_COLUMNS)
        )
        async with self._database.transaction() as connection:
            row = (await connection.execute(statement)).mappings().one_or_none()
            if row is not None:
                await self._log(connection, claim, Outcome.COMMITTED, version=row["version"])
                return self._stored(row)
            stored = await self._find(connection, seen.provider_id, seen.subject)
            if stored is not None and _is_own(stored, claim, grant):
                return stored
            await self._log(connection, claim, Outcome.FENCED, version=seen.version)
            return None

    async def prolong_sessions(self, prolongations: Sequence[Prolongation]) -> None:
        """Give leases back whose grants were found alive; those fenced meanwhile are passed over.

        Many at once, because each commit of a database costs a write to the disk.

        Raises:
            StorageUnavailable: The database could not answer; the leases then run out.
        """
        async with self._database.transaction() as connection:
            for prolongation in prolongations:
                await connection.execute(
                    update(session)
                    .where(*_held(prolongation.claim))
                    .values(
                        **_after(prolongation.lifetime_seconds, prolongation.next_seconds),
                        **_RELEASED,
                        **_NO_PROBLEM,
                    )
                )

    async def fail_session(
        self,
        claim: Claim,
        problem: Problem,
        *,
        state: SessionState,
        terms: str | None = None,
        next_seconds: float | None,
        uncount_login: bool = False,
    ) -> bool:
        """Note why a transition failed and give the lease back; ``False`` when fenced.

        Args:
            claim: The lease it was tried under.
            problem: Why it failed.
            state: The session's from now on; unless active, its grant is dropped.
            terms: What was refused, when no retry will help; see ``StoredSession``.
            next_seconds: When to try again.
            uncount_login: Whether the login is not to count against the allowance.

        Raises:
            StorageUnavailable: The database could not answer; the lease then runs out.
        """
        values: dict[str, Any] = dict(_RELEASED)
        if state is not SessionState.ACTIVE:
            sealed = None if terms is None else self._sealed_refusal(claim, terms=terms)
            values |= {"secret": sealed, "expires_at": None}
        if uncount_login:
            values["login_count"] = session.c.login_count - 1
        statement = (
            update(session)
            .where(*_held(claim))
            .values(
                state=state,
                failures=session.c.failures + 1,
                problem_code=problem.code,
                problem=problem.message,
                next_at=_from_now(next_seconds),
                **values,
            )
            .returning(session.c.version)
        )
        refused = state is SessionState.REAUTH_REQUIRED
        async with self._database.transaction() as connection:
            version = (await connection.execute(statement)).scalar_one_or_none()
            known = claim.seen.problem is not None and claim.seen.problem.code == problem.code
            if version is not None and not known:
                outcome = Outcome.REFUSED if refused else Outcome.FAILED
                await self._log(connection, claim, outcome, version=version, reason=problem.code)
        return version is not None

    async def lose_session(self, claim: Claim) -> bool:
        """Note that the provider ended the grant and give the lease back; ``False`` when fenced.

        Raises:
            StorageUnavailable: The database could not answer; the lease then runs out.
        """
        statement = (
            update(session)
            .where(*_held(claim))
            .values(state=SessionState.EMPTY, **_NO_GRANT, **_RELEASED)
            .returning(session.c.version)
        )
        async with self._database.transaction() as connection:
            version = (await connection.execute(statement)).scalar_one_or_none()
            if version is not None:
                await self._log(connection, claim, Outcome.LOST, version=version)
        return version is not None

    async def release_session(self, claim: Claim) -> None:
        """Give the lease back with nothing changed, at once for the next claimant.

        Raises:
            StorageUnavailable: The database could not answer; the lease then runs out.
        """
        async with self._database.transaction() as connection:
            await connection.execute(update(session).where(*_held(claim)).values(**_RELEASED))

    async def reset_sessions(self, provider_id: str, subject: str | None = None) -> None:
        """Forget grants and problems, of one subject or all; transitions in flight are fenced.

        Nothing is sent to the provider.

        Raises:
            StorageUnavailable: The database could not answer; nothing changed.
        """
        conditions = [session.c.provider_id == provider_id]
        if subject is not None:
            conditions.append(session.c.subject == subject)
        statement = (
            update(session)
            .where(*conditions)
            .values(
                state=SessionState.EMPTY,
                version=session.c.version + 1,
                fence=session.c.fence + 1,
                login_count=0,
                login_window_at=None,
                **_NO_GRANT,
                **_RELEASED,
                **_NO_PROBLEM,
            )
            .returning(session.c.subject, session.c.version, session.c.fence)
        )
        async with self._database.transaction() as connection:
            for row in (await connection.execute(statement)).all():
                await connection.execute(
                    insert(session_log).values(
                        at=datetime.now(UTC),
                        provider_id=provider_id,
                        subject=row.subject,
                        transition=Transition.REVOKE,
                        outcome=Outcome.COMMITTED,
                        version=row.version,
                        fence=row.fence,
                        owner=self.owner,
                    )
                )

    async def release_all(self) -> None:
        """Give every lease of this process back, for others to take at once.

        Raises:
            StorageUnavailable: The database could not answer; the leases then run out.
        """
        async with self._database.transaction() as connection:
            await connection.execute(
                update(session).where(session.c.lease_owner == self.owner).values(**_RELEASED)
            )
            await connection.execute(
                update(job).where(job.c.lease_owner == self.owner).values(**_JOB_RELEASED)
            )

    async def find_status(self, provider_id: str, subject: str) -> SessionStatus | None:
        """Return what may be shown of one session, with its latest ten transitions.

        Raises:
            StorageUnavailable: The database could not answer.
        """
        history = (
            select(session_log)
            .where(session_log.c.provider_id == provider_id, session_log.c.subject == subject)
            .order_by(session_log.c.id.desc())
            .limit(10)
        )
        async with self._database.read() as connection:
            statement = _STATUS.where(*_row(provider_id, subject))
            row = (await connection.execute(statement)).mappings().one_or_none()
            lines = (await connection.execute(history)).mappings().all()
        return None if row is None else _status(row, lines)

    async def list_statuses(
        self,
        *,
        provider_ids: Collection[str] | None = None,
        states: Collection[SessionState] | None = None,
        subject: str | None = None,
        limit: int | None = None,
    ) -> Sequence[SessionStatus]:
        """Return what may be shown of sessions, by provider id and subject.

        Args:
            provider_ids: Only of these providers.
            states: Only those in one of these states.
            subject: Only of this one.
            limit: At most so many of each provider.

        Raises:
            StorageUnavailable: The database could not answer.
        """
        conditions: list[ColumnElement[bool]] = []
        if provider_ids is not None:
            conditions.append(session.c.provider_id.in_(provider_ids))
        if states is not None:
            conditions.append(_SHOWN_STATE.in_(states))
        if subject is not None:
            conditions.append(session.c.subject == subject)
        found = _STATUS.where(*conditions)
        if limit is not None:
            place = func.row_number().over(
                partition_by=session.c.provider_id, order_by=session.c.subject
            )
            counted = found.add_columns(place.label("place")).subquery()
            found = select(counted).where(counted.c.place <= limit)
        columns = found.selected_columns
        statement = found.order_by(columns.provider_id, columns.subject)
        async with self._database.read() as connection:
            rows = (await connection.execute(statement)).mappings().all()
        return [_status(row, ()) for row in rows]

    async def count_sessions(self) -> Mapping[tuple[str, SessionState], int]:
        """Return how many sessions each provider has in each state, by provider id and state.

        Raises:
            StorageUnavailable: The database could not answer.
        """
        state = _SHOWN_STATE.label("state")
        statement = (
            select(session.c.provider_id, state, func.count().label("sessions"))
            .join(provider, provider.c.id == session.c.provider_id)
            .group_by(session.c.provider_id, state)
        )
        async with self._database.read() as connection:
            rows = (await connection.execute(statement)).all()
        return {(row.provider_id, SessionState(row.state)): row.sessions for row in rows}

    async def list_registrations(self) -> Mapping[str, tuple[int, datetime]]:
        """Return each provider's revision and time of registration, which tell that it changed.

        Raises:
            StorageUnavailable: The database could not answer.
        """
        statement = select(provider.c.id, provider.c.revision, provider.c.created_at)
        async with self._database.read() as connection:
            rows = (await connection.execute(statement)).all()
        return {row.id: (row.revision, row.created_at) for row in rows}

    async def seconds_until_due(self, *job_kinds: str) -> float | None:
        """Return when the next session or job is due; zero or less: now, ``None``: never.

        Args:
            *job_kinds: The kinds of jobs that count.

        Raises:
            StorageUnavailable: The database could not answer.
        """
        sessions = select(func.min(session.c.next_at) - database_now()).where(
            session.c.lease_until <= database_now(),
            session.c.state.in_((SessionState.ACTIVE, SessionState.BACKOFF)),
        )
        jobs = select(func.min(job.c.due_at) - database_now()).where(
            job.c.kind.in_(job_kinds), job.c.lease_until <= database_now()
        )
        async with self._database.read() as connection:
            found = [
                (await connection.execute(statement)).scalar_one() for statement in (sessions, jobs)
            ]
        return min((seconds for seconds in found if seconds is not None), default=None)

    # Jobs.

    async def ensure_job(self, kind: str, key: str) -> None:
        """Plan a job, due at once; one already planned stays as it is.

        Raises:
            StorageUnavailable: The database could not answer.
        """
        if await self.find_job(kind, key) is not None:
            return
        row = {
            "kind": kind,
            "key": key,
            "due_at": database_now(),
            "lease_until": _FREE,
            "fence": 0,
            "attempts": 0,
        }
        async with self._database.transaction() as connection:
            await connection.execute(self._database.upsert(job, row, change=()))

    async def find_job(self, kind: str, key: str) -> Job | None:
        """Return a job's row, or ``None`` when it is not planned.

        Raises:
            StorageUnavailable: The database could not answer.
        """
        statement = select(*_JOB_COLUMNS).where(job.c.kind == kind, job.c.key == key)
        async with self._database.read() as connection:
            row = (await connection.execute(statement)).mappings().one_or_none()
        return None if row is None else _job(row)

    async def claim_job(self, kind: str, key: str, *, lease_seconds: float) -> JobClaim | None:
        """Take the lease of one job that is due, if it is free.

        Raises:
            StorageUnavailable: The database could not answer.
        """
        statement = (
            update(job)
            .where(job.c.kind == kind, job.c.key == key, *_DUE_JOB)
            .values(self._job_leased(lease_seconds))
            .returning(*_JOB_COLUMNS, job.c.fence)
        )
        async with self._database.transaction() as connection:
            row = (await connection.execute(statement)).mappings().one_or_none()
        return None if row is None else JobClaim(job=_job(row), fence=row["fence"])

    async def claim_due_jobs(
        self, kind: str, *, limit: int, lease_seconds: float
    ) -> Sequence[JobClaim]:
        """Take the leases of jobs that are due, longest due first.

        Raises:
            StorageUnavailable: The database could not answer.
        """
        due = (
            select(job.c.kind, job.c.key)
            .where(job.c.kind == kind, *_DUE_JOB)
            .order_by(job.c.due_at)
            .limit(limit)
            .with_for_update(skip_locked=True)
            .cte("due")
        )
        statement = (
            update(job)
            .where(tuple_(job.c.kind, job.c.key).in_(select(due.c.kind, due.c.key)))
            .values(self._job_leased(lease_seconds))
            .returning(*_JOB_COLUMNS, job.c.fence)
        )
        async with self._database.transaction() as connection:
            rows = (await connection.execute(statement)).mappings().all()
        claims = [JobClaim(job=_job(row), fence=row["fence"]) for row in rows]
        return sorted(claims, key=lambda claim: claim.job.seconds_to_due)

    async def renew_job(self, claim: JobClaim, *, lease_seconds: float) -> bool:
        """Prolong the lease of a job that takes longer; ``False`` when somebody took it over.

        Raises:
            StorageUnavailable: The database could not answer.
        """
        statement = (
            update(job)
            .where(*_held_job(claim))
            .values(lease_until=database_now() + lease_seconds)
            .returning(job.c.fence)
        )
        async with self._database.transaction() as connection:
            return (await connection.execute(statement)).scalar_one_or_none() is not None

    async def finish_job(
        self,
        claim: JobClaim,
        *,
        next_seconds: float,
        problem: Problem | None = None,
        count_attempt: bool = False,
    ) -> bool:
        """Note how a job went, plan its next run, give the lease back; ``False`` when fenced.

        Args:
            claim: The lease it ran under.
            next_seconds: When it is due again.
            problem: Why it failed or was refused.
            count_attempt: Whether to count it as failed; else the count starts again.

        Raises:
            StorageUnavailable: The database could not answer; the lease then runs out.
        """
        written = None if problem is None else f"{problem.code} {problem.message}"
        statement = (
            update(job)
            .where(*_held_job(claim))
            .values(
                due_at=_from_now(next_seconds),
                attempts=job.c.attempts + 1 if count_attempt else 0,
                problem=written,
                **_JOB_RELEASED,
            )
            .returning(job.c.fence)
        )
        async with self._database.transaction() as connection:
            return (await connection.execute(statement)).scalar_one_or_none() is not None

    async def remove_jobs(self, kind: str, *, key_prefix: str) -> int:
        """Forget jobs by the beginning of their keys; those running cannot finish any more.

        Returns:
            How many there were.

        Raises:
            StorageUnavailable: The database could not answer; nothing changed.
        """
        begins = func.substr(job.c.key, 1, len(key_prefix)) == key_prefix
        async with self._database.transaction() as connection:
            return (
                await connection.execute(delete(job).where(job.c.kind == kind, begins))
            ).rowcount

    @asynccontextmanager
    async def starting_over(self, provider_id: str, *, lease_seconds: float) -> AsyncIterator[None]:
        """Hold the lease that says that a provider's next grant is about to be there.

        Where somebody else holds it, it stays theirs, and so does giving it back.

        Raises:
            StorageUnavailable: The database could not answer; nothing has begun.
        """
        key = f"{provider_id}|"
        await self.ensure_job(_STARTING, key)
        claim = await self.claim_job(_STARTING, key, lease_seconds=lease_seconds)
        try:
            yield
        finally:
            if claim is not None:
                with suppress(StorageError):  # then it runs out by itself
                    await self.remove_jobs(_STARTING, key_prefix=key)

    async def is_starting_over(self, provider_id: str) -> bool:
        """Whether somebody holds the lease of ``starting_over``.

        Raises:
            StorageUnavailable: The database could not answer.
        """
        job = await self.find_job(_STARTING, f"{provider_id}|")
        return job is not None and job.leased_seconds > 0

    # Rows.

    async def _find(
        self, connection: AsyncConnection, provider_id: str, subject: str
    ) -> StoredSession | None:
        statement = select(*_SESSION_COLUMNS).where(*_row(provider_id, subject))
        row = (await connection.execute(statement)).mappings().one_or_none()
        return None if row is None else self._stored(row)

    def _leased(self, transition: Transition, lease_seconds: float) -> Mapping[str, Any]:
        return {
            "lease_owner": self.owner,
            "lease_until": database_now() + lease_seconds,
            "fence": session.c.fence + 1,
            "intent": transition,
            "intent_at": database_now(),
        }

    def _job_leased(self, lease_seconds: float) -> Mapping[str, Any]:
        return {
            "lease_owner": self.owner,
            "lease_until": database_now() + lease_seconds,
            "fence": job.c.fence + 1,
        }

    def _claim(
        self, row: RowMapping, transition: Transition, *, taken_at: float, lease_seconds: float
    ) -> Claim:
        stored = self._stored(row)
        return Claim(
            seen=stored,
            transition=transition,
            fence=stored.fence,
            taken_at=taken_at,
            lease_seconds=lease_seconds,
        )

    def _stored(self, row: RowMapping) -> StoredSession:
        grant, terms = self._unsealed(row["provider_id"], row["subject"], row["secret"])
        return StoredSession(
            provider_id=row["provider_id"],
            subject=row["subject"],
            version=row["version"],
            fence=row["fence"],
            state=SessionState(row["state"]),
            grant=grant,
            terms=terms,
            expires_at=row["expires_at"],
            seconds_to_expiry=row["seconds_to_expiry"],
            seconds_to_next=row["seconds_to_next"],
            leased_seconds=row["leased_seconds"],
            intent=row["intent"],
            failures=row["failures"],
            login_count=row["login_count"],
            window_age_seconds=row["window_age_seconds"],
            problem=_problem(row["problem_code"], row["problem"]),
            updated_at=row["updated_at"],
        )

    def _sealed(
        self,
        provider_id: str,
        subject: str,
        *,
        terms: str,
        grant: Secret[Mapping[str, str]] | None,
    ) -> bytes:
        content = {"terms": terms}
        if grant is not None:
            content["granted"] = "yes"
            content |= {f"{_GRANT_PREFIX}{name}": text for name, text in grant.reveal().items()}
        return self._key_ring.seal_mapping(Secret(content), bound_to=_binding(provider_id, subject))

    def _sealed_refusal(self, claim: Claim, *, terms: str) -> bytes:
        return self._sealed(claim.seen.provider_id, claim.seen.subject, terms=terms, grant=None)

    def _unsealed(
        self, provider_id: str, subject: str, sealed: bytes | None
    ) -> tuple[Secret[Mapping[str, str]] | None, str | None]:
        if sealed is None:
            return None, None
        content = self._key_ring.unseal_mapping(
            sealed, bound_to=_binding(provider_id, subject)
        ).reveal()
        if "granted" not in content:
            return None, content["terms"]
        grant = {
            name.removeprefix(_GRANT_PREFIX): text
            for name, text in content.items()
            if name.startswith(_GRANT_PREFIX)
        }
        return Secret(grant), content["terms"]

    async def _log(
        self,
        connection: AsyncConnection,
        claim: Claim,
        outcome: Outcome,
        *,
        version: int,
        reason: str | None = None,
    ) -> None:
        await connection.execute(
            insert(session_log).values(
                at=datetime.now(UTC),
                provider_id=claim.seen.provider_id,
                subject=claim.seen.subject,
                transition=claim.transition,
                outcome=outcome,
                version=version,
                fence=claim.fence,
                owner=self.owner,
                reason=reason,
            )
        )


_RELEASED: Final[Mapping[str, Any]] = {
    "lease_owner": None,
    "lease_until": _FREE,
    "intent": None,
    "intent_at": None,
    "updated_at": database_now(),
}
_NO_PROBLEM: Final[Mapping[str, Any]] = {"failures": 0, "problem_code": None, "problem": None}
_NO_GRANT: Final[Mapping[str, Any]] = {"secret": None, "expires_at": None, "next_at": None}
_JOB_RELEASED: Final[Mapping[str, Any]] = {"lease_owner": None, "lease_until": _FREE}
_EXPIRES_AT: Final = type_coerce(session.c.expires_at, Double)
_SESSION_COLUMNS: Final[tuple[ColumnElement[Any], ...]] = (
    *session.c,
    (_EXPIRES_AT - database_now()).label("seconds_to_expiry"),
    (session.c.next_at - database_now()).label("seconds_to_next"),
    (session.c.lease_until - database_now()).label("leased_seconds"),
    (database_now() - session.c.login_window_at).label("window_age_seconds"),
)
_SHOWN_STATE: Final[ColumnElement[str]] = case(
    (provider.c.state == ProviderState.DISABLED, SessionState.DISABLED.value),
    (
        and_(session.c.intent.is_not(None), session.c.lease_until > database_now()),
        SessionState.REFRESHING.value,
    ),
    else_=session.c.state,
)
_STATUS: Final[Select[Any]] = select(session, _SHOWN_STATE.label("shown_state")).join(
    provider, provider.c.id == session.c.provider_id
)
_DUE_SESSION: Final = (
    session.c.next_at <= database_now(),
    session.c.lease_until <= database_now(),
)
_JOB_COLUMNS: Final[tuple[ColumnElement[Any], ...]] = (
    job.c.kind,
    job.c.key,
    job.c.attempts,
    job.c.problem,
    (job.c.due_at - database_now()).label("seconds_to_due"),
    (job.c.lease_until - database_now()).label("leased_seconds"),
)
_DUE_JOB: Final = (job.c.due_at <= database_now(), job.c.lease_until <= database_now())


def _binding(provider_id: str, subject: str) -> str:
    return f"session|{provider_id}|{subject}|secret"


def _row(provider_id: str, subject: str) -> tuple[ColumnElement[bool], ...]:
    return session.c.provider_id == provider_id, session.c.subject == subject


def _held(claim: Claim) -> tuple[ColumnElement[bool], ...]:
    return (
        *_row(claim.seen.provider_id, claim.seen.subject),
        session.c.version == claim.seen.version,
        session.c.fence == claim.fence,
    )


async def hold_job(
    connection: AsyncConnection, claim: JobClaim, *, lease_seconds: float | None = None
) -> bool:
    """Whether a job was not taken over; it cannot be before this transaction ends.

    Args:
        connection: In a transaction.
        claim: The lease.
        lease_seconds: For how long to renew it; ``None`` to leave it as it is.
    """
    lease_until = job.c.lease_until if lease_seconds is None else _from_now(lease_seconds)
    statement = update(job).where(*_held_job(claim)).values(lease_until=lease_until)
    return (await connection.execute(statement)).rowcount == 1


def _held_job(claim: JobClaim) -> tuple[ColumnElement[bool], ...]:
    return (
        job.c.kind == claim.job.kind,
        job.c.key == claim.job.key,
        job.c.fence == claim.fence,
    )


def _is_own(stored: StoredSession, claim: Claim, grant: Secret[Mapping[str, str]]) -> bool:
    return stored.version == claim.seen.version + 1 and stored.grant == grant


def _in_window(allowance: LoginAllowance) -> ColumnElement[bool]:
    return and_(
        session.c.login_window_at.is_not(None),
        session.c.login_window_at + allowance.window_seconds > database_now(),
    )


def _login_allowed(allowance: LoginAllowance) -> ColumnElement[bool]:
    return or_(~_in_window(allowance), session.c.login_count < allowance.count)


def _counted(allowance: LoginAllowance) -> Mapping[str, Any]:
    in_window = _in_window(allowance)
    return {
        "login_count": case((in_window, session.c.login_count + 1), else_=1),
        "login_window_at": case((in_window, session.c.login_window_at), else_=database_now()),
    }


def _from_now(seconds: float | None) -> ColumnElement[Any]:
    return null() if seconds is None else database_now() + seconds


def _after(lifetime_seconds: float | None, next_seconds: float | None) -> Mapping[str, Any]:
    return {"expires_at": _from_now(lifetime_seconds), "next_at": _from_now(next_seconds)}


def _problem(code: str | None, message: str | None) -> Problem | None:
    return None if code is None else Problem(code=code, message=message or "")


def _job(row: RowMapping) -> Job:
    code, _, message = (row["problem"] or "").partition(" ")
    return Job(
        kind=row["kind"],
        key=row["key"],
        seconds_to_due=row["seconds_to_due"],
        leased_seconds=row["leased_seconds"],
        attempts=row["attempts"],
        problem=_problem(code or None, message),
    )


def _status(row: RowMapping, lines: Sequence[RowMapping]) -> SessionStatus:
    next_at = row["next_at"]
    return SessionStatus(
        provider_id=row["provider_id"],
        subject=row["subject"],
        state=SessionState(row["shown_state"]),
        version=row["version"],
        expires_at=row["expires_at"],
        next_transition_at=None if next_at is None else datetime.fromtimestamp(next_at, UTC),
        login_count=row["login_count"],
        failures=row["failures"],
        problem_code=row["problem_code"],
        problem=row["problem"],
        updated_at=row["updated_at"],
        transitions=tuple(
            SessionTransition(
                at=line["at"],
                transition=line["transition"],
                outcome=line["outcome"],
                version=line["version"],
                owner=line["owner"],
                reason=line["reason"],
            )
            for line in lines
        ),
    )
