"""What matching keeps: accounts as it reads them, its runs, what it suggests, and its models.

An account's row is made from the snapshot of its provider: normalised once, with the keys by which
candidates are found (``match_key``), and again only when the account, its classes or the normaliser
changed. So a run, and a look-up of one account, begin with what is there, in any process.

A run compares providers pair by pair. What it found between two of them takes the place of what
was suggested before, and then it is noted how far the run is: cut off, it goes on with the next
two. What it weighs between two is kept meanwhile in parts: cut off there, it goes on behind them,
unless the accounts or the weights are others by then. A run works under the lease of its job, as
imports do (``storage.imports``).
"""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

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
    true,
    tuple_,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import RowMapping
from sqlalchemy.ext.asyncio import AsyncConnection

from storage.database import Database
from storage.imports import ACCOUNTS_JOB
from storage.leases import JobClaim, Problem, hold_job
from storage.people import AccountKey, Pair, Verdict
from storage.tables import (
    account,
    database_now,
    job,
    match_key,
    match_model,
    match_part,
    match_run,
    match_suggestion,
    match_verdict,
    people_change,
    people_decision,
    person_account,
    provider,
)

MATCH_JOB: Final = "match"
"""The kind of job a run is; its key is the run's id."""

_FENCE_BITS: Final = 30
_KEYS_AT_ONCE: Final = 500
_KEPT_RUNS: Final = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredAccount:
    """An account as matching reads it.

    Attributes:
        external_id: Of its provider.
        prepared: Normalised, encoded.
        version: Of the normaliser.
        sha256: Of what it was made from.
    """

    external_id: str
    prepared: bytes
    version: int
    sha256: bytes


class MatchRunState(StrEnum):
    """Where a run is in its life.

    QUEUED: asked for; RUNNING: under way, or cut off and about to go on; DONE: everything was
    compared; FAILED: it cannot be done.
    """

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    DONE = "DONE"
    FAILED = "FAILED"


_OPEN: Final = (MatchRunState.QUEUED, MatchRunState.RUNNING)


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchOrder:
    """What is asked of a run.

    Attributes:
        provider_ids: Whose accounts are compared, in order of registration.
        expected_overlap: Which part of the smaller provider's accounts is thought to be at the
            other too, between 0 and 1; ``None`` when nobody knows.
        link_above: Pairs at least this probable are linked unasked; ``None`` for none.
    """

    provider_ids: tuple[str, ...]
    expected_overlap: float | None = None
    link_above: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchRun(MatchOrder):
    """One run.

    Attributes:
        pairs_done: Of the pairs of providers.
        progress: Within the pair after those, between 0 and 1.
        account_count: Accounts compared; zero until they are read.
        suggestion_count: Pairs of accounts suggested so far.
        link_count: Those of them that were linked unasked.
        model_version: By which weights; ``None`` until it has begun.
        notes: What somebody should know who looks at the outcome, in sentences.
    """

    id: int
    state: MatchRunState
    requested_by: str
    requested_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    pairs_done: int
    progress: float
    account_count: int
    suggestion_count: int
    link_count: int
    model_version: str | None
    notes: tuple[str, ...]
    problem_code: str | None
    problem: str | None

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state not in _OPEN

    @property
    def share_done(self) -> float:
        """How much of the whole run is done, between 0 and 1."""
        if self.state is MatchRunState.DONE:
            return 1.0
        return min(1.0, (self.pairs_done + self.progress) / max(1, len(self.pairs)))

    @property
    def pairs(self) -> Sequence[tuple[str, str]]:
        """The pairs of providers it compares, in order."""
        ids = self.provider_ids
        return [(one, other) for index, one in enumerate(ids) for other in ids[index + 1 :]]


class MatchStatus(StrEnum):
    """How a suggestion stands.

    SUGGESTED: nobody has decided; AUTO_LINKED: a run linked the two; CONFIRMED: somebody says they
    are one person's; REJECTED: somebody says they are not; SUPERSEDED: one of them is a person's
    who has another account where the other one is.
    """

    SUGGESTED = "SUGGESTED"
    AUTO_LINKED = "AUTO_LINKED"
    CONFIRMED = "CONFIRMED"
    REJECTED = "REJECTED"
    SUPERSEDED = "SUPERSEDED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggested:
    """Two accounts that may be one person's, as a run found them.

    Attributes:
        score: How probable it is, between 0 and 1.
        weight: Sum of the evidence and of ``prior``, in bits.
        bits: What joins accounts of several providers: the mean log-odds before and after
            competition; ``None`` for a suggestion of a release that did not keep it.
        evidence: Encoded.
        competitors: Encoded.
    """

    pair: Pair
    score: float
    weight: float
    prior: float
    bits: float | None = None
    evidence: bytes
    competitors: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSuggestion(Suggested):
    """A suggestion, and how it stands.

    Attributes:
        decided_by: Who decided on it; ``None`` while nobody has.
        decision_id: The decision.
    """

    run_id: int
    model_version: str
    status: MatchStatus
    decision_id: int | None
    decided_by: str | None
    decided_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SuggestionFilter:
    """Which suggestions; all conditions have to hold.

    Attributes:
        provider_ids: Between accounts of these providers.
        statuses: That stand so.
        account: Of this account.
        least_score: At least so probable.
        most_score: At most so probable.
    """

    provider_ids: Collection[str]
    statuses: Collection[MatchStatus] = (MatchStatus.SUGGESTED,)
    account: AccountKey | None = None
    least_score: float = 0.0
    most_score: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredModel:
    """Weights fitted to decisions.

    Attributes:
        body: Encoded; ``None`` when what was tried was no better than what is shipped.
        verdict_count: To how many verdicts it was fitted.
    """

    version: str
    body: bytes | None
    verdict_count: int


class MatchStore:
    """Accounts, runs, suggestions and models."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # Accounts.

    async def list_account_hashes(self, provider_id: str) -> Mapping[str, tuple[int, bytes]]:
        """Return the version and hash of each account that is kept, by external id.

        Raises:
            StorageError: The database could not answer.
        """
        statement = select(account.c.external_id, account.c.version, account.c.sha256).where(
            account.c.provider_id == provider_id
        )
        async with self._database.read() as connection:
            rows = await connection.execute(statement)
            return {row.external_id: (row.version, row.sha256) for row in rows}

    async def put_accounts(
        self, provider_id: str, rows: Sequence[tuple[StoredAccount, Collection[int]]]
    ) -> None:
        """Keep accounts with their keys, in the place of what was kept of them.

        Raises:
            ConstraintViolated: The provider is gone.
            StorageError: The database could not do it; nothing was changed.
        """
        if not rows:
            return
        external_ids = [row.external_id for row, _keys in rows]
        async with self._database.transaction() as connection:
            await _forget_accounts(connection, provider_id, external_ids)
            await connection.execute(
                insert(account),
                [
                    {
                        "provider_id": provider_id,
                        "external_id": row.external_id,
                        "prepared": row.prepared,
                        "version": row.version,
                        "sha256": row.sha256,
                    }
                    for row, _keys in rows
                ],
            )
            found = await connection.execute(
                select(account.c.id, account.c.external_id).where(
                    account.c.provider_id == provider_id,
                    account.c.external_id.in_(external_ids),
                )
            )
            ids = {row.external_id: row.id for row in found}
            keys = [
                {"key": key, "account_id": ids[row.external_id]}
                for row, keys in rows
                for key in dict.fromkeys(keys)
            ]
            if keys:
                await connection.execute(insert(match_key), keys)

    async def drop_accounts(self, provider_id: str, external_ids: Collection[str]) -> None:
        """Forget accounts that are gone, and what was suggested of them and not decided.

        Raises:
            StorageError: The database could not do it; nothing was changed.
        """
        for ids in _slices(external_ids):
            async with self._database.transaction() as connection:
                await _forget_accounts(connection, provider_id, ids)
                here = or_(
                    and_(
                        match_suggestion.c.left_provider_id == provider_id,
                        match_suggestion.c.left_external_id.in_(ids),
                    ),
                    and_(
                        match_suggestion.c.right_provider_id == provider_id,
                        match_suggestion.c.right_external_id.in_(ids),
                    ),
                )
                await connection.execute(delete(match_suggestion).where(here, ~_is_judged()))

    async def list_accounts(
        self, provider_id: str, *, after: str = "", limit: int
    ) -> Sequence[StoredAccount]:
        """Return a provider's accounts behind one, by external id.

        Raises:
            StorageError: The database could not answer.
        """
        statement = (
            select(account)
            .where(account.c.provider_id == provider_id, account.c.external_id > after)
            .order_by(account.c.external_id)
            .limit(limit)
        )
        async with self._database.read() as connection:
            return [_account(row) for row in (await connection.execute(statement)).mappings()]

    async def count_accounts(self, provider_ids: Collection[str]) -> Mapping[str, int]:
        """Return how many accounts are kept of each of some providers.

        Raises:
            StorageError: The database could not answer.
        """
        statement = (
            select(account.c.provider_id, func.count())
            .where(account.c.provider_id.in_(provider_ids))
            .group_by(account.c.provider_id)
        )
        async with self._database.read() as connection:
            found = {row[0]: row[1] for row in await connection.execute(statement)}
        return {provider_id: found.get(provider_id, 0) for provider_id in provider_ids}

    async def find_accounts(
        self, accounts: Collection[AccountKey]
    ) -> Mapping[AccountKey, StoredAccount]:
        """Return those of these accounts that are kept.

        Raises:
            StorageError: The database could not answer.
        """
        found: dict[AccountKey, StoredAccount] = {}
        async with self._database.read() as connection:
            for keys in _slices(accounts):
                statement = select(account).where(
                    tuple_(account.c.provider_id, account.c.external_id).in_(keys)
                )
                for row in (await connection.execute(statement)).mappings():
                    found[row["provider_id"], row["external_id"]] = _account(row)
        return found

    async def find_candidates(
        self, keys: Collection[int], *, provider_ids: Collection[str], limit: int
    ) -> Mapping[AccountKey, StoredAccount]:
        """Return the accounts that share most of these keys, those that share most first.

        Args:
            keys: Of the account that is looked for.
            provider_ids: Of whom.
            limit: At most so many.

        Raises:
            StorageError: The database could not answer.
        """
        shared = (
            select(match_key.c.account_id, func.count().label("count"))
            .where(match_key.c.key.in_(list(keys)))
            .group_by(match_key.c.account_id)
            .subquery()
        )
        statement = (
            select(account)
            .join(shared, shared.c.account_id == account.c.id)
            .where(account.c.provider_id.in_(provider_ids))
            .order_by(shared.c.count.desc(), account.c.id)
            .limit(limit)
        )
        async with self._database.read() as connection:
            rows = (await connection.execute(statement)).mappings()
            return {(row["provider_id"], row["external_id"]): _account(row) for row in rows}

    async def stamp_of_accounts(self, provider_id: str) -> tuple[object, ...]:
        """Return something that is another whenever a provider's accounts are.

        Raises:
            StorageError: The database could not answer.
        """
        ids = select(func.count(), func.max(account.c.id), func.sum(account.c.id)).where(
            account.c.provider_id == provider_id
        )
        writes = select(provider.c.writes).where(provider.c.id == provider_id)
        planned = select(job.c.due_at).where(job.c.kind == ACCOUNTS_JOB, job.c.key == provider_id)
        async with self._database.read() as connection:
            rows = [(await connection.execute(each)).first() for each in (ids, writes, planned)]
        return tuple(None if row is None else tuple(row) for row in rows)

    async def begin_accounts(self, claim: JobClaim) -> float | None:
        """Return what ``end_accounts`` is to be given; ``None`` when somebody else has the job.

        Raises:
            StorageError: The database could not do it.
        """
        async with self._database.transaction() as connection:
            if not await hold_job(connection, claim):
                return None
            statement = select(job.c.due_at).where(
                job.c.kind == ACCOUNTS_JOB, job.c.key == claim.job.key
            )
            return (await connection.execute(statement)).scalar_one_or_none()

    async def end_accounts(self, claim: JobClaim, begun_at: float) -> None:
        """Give the lease back, with the job unless it was planned again since it was begun.

        Raises:
            StorageError: The database could not do it; the lease runs out by itself.
        """
        held = (
            job.c.kind == claim.job.kind,
            job.c.key == claim.job.key,
            job.c.fence == claim.fence,
        )
        async with self._database.transaction() as connection:
            await connection.execute(delete(job).where(*held, job.c.due_at == begun_at))
            await connection.execute(
                update(job).where(*held).values(lease_owner=None, lease_until=0.0, attempts=0)
            )

    # Runs.

    async def request(self, order: MatchOrder, *, requested_by: str) -> tuple[MatchRun, bool]:
        """Return the run of these providers that is under way, or a new one, and which it is.

        Raises:
            StorageError: The database could not do it.
        """
        provider_ids = json.dumps(order.provider_ids)
        async with self._database.transaction() as connection:
            under_way = (
                select(match_run)
                .where(match_run.c.provider_ids == provider_ids, match_run.c.state.in_(_OPEN))
                .order_by(match_run.c.id)
                .limit(1)
            )
            row = (await connection.execute(under_way)).mappings().one_or_none()
            if row is not None:
                return _run(row), True
            statement = (
                insert(match_run)
                .values(
                    state=MatchRunState.QUEUED,
                    requested_by=requested_by,
                    requested_at=database_now(),
                    provider_ids=provider_ids,
                    expected_overlap=order.expected_overlap,
                    link_above=order.link_above,
                    pairs_done=0,
                    progress=0.0,
                    account_count=0,
                    suggestion_count=0,
                    link_count=0,
                    notes="[]",
                )
                .returning(*match_run.c)
            )
            run = _run((await connection.execute(statement)).mappings().one())
            planned = {
                "kind": MATCH_JOB,
                "key": str(run.id),
                "due_at": database_now(),
                "lease_until": 0.0,
                "fence": secrets.randbits(_FENCE_BITS),
                "attempts": 0,
            }
            await connection.execute(insert(job).values(**planned))
            await connection.execute(
                delete(match_run).where(
                    match_run.c.id <= run.id - _KEPT_RUNS, match_run.c.state.not_in(_OPEN)
                )
            )
        return run, False

    async def find_run(self, run_id: int) -> MatchRun | None:
        """Return a run, if it is still known.

        Raises:
            StorageError: The database could not answer.
        """
        async with self._database.read() as connection:
            statement = select(match_run).where(match_run.c.id == run_id)
            row = (await connection.execute(statement)).mappings().one_or_none()
            return None if row is None else _run(row)

    async def list_runs(self, *, limit: int) -> Sequence[MatchRun]:
        """Return the latest runs, the latest first.

        Raises:
            StorageError: The database could not answer.
        """
        statement = select(match_run).order_by(match_run.c.id.desc()).limit(limit)
        async with self._database.read() as connection:
            return [_run(row) for row in (await connection.execute(statement)).mappings()]

    async def begin(self, claim: JobClaim) -> MatchRun | None:
        """Return the run of a job, RUNNING; ``None`` when it has ended, or somebody else has it.

        Raises:
            StorageError: The database could not do it.
        """
        async with self._database.transaction() as connection:
            if not await hold_job(connection, claim):
                return None
            statement = (
                update(match_run)
                .where(match_run.c.id == int(claim.job.key), match_run.c.state.in_(_OPEN))
                .values(
                    state=MatchRunState.RUNNING,
                    started_at=func.coalesce(match_run.c.started_at, database_now()),
                )
                .returning(*match_run.c)
            )
            row = (await connection.execute(statement)).mappings().one_or_none()
            if row is None:
                await _forget_job(connection, claim)
        return None if row is None else _run(row)

    async def note(self, claim: JobClaim, run: MatchRun, **values: Any) -> MatchRun | None:
        """Write down how a run is getting on, and return it.

        Args:
            claim: The lease.
            run: Which run.
            **values: Columns of its row: ``progress``, ``account_count``, ``model_version``,
                ``notes``, ``link_count``.

        Returns:
            ``None`` when somebody else has taken over.

        Raises:
            StorageError: The database could not do it.
        """
        if "notes" in values:
            values["notes"] = json.dumps(values["notes"])
        async with self._database.transaction() as connection:
            if not await hold_job(connection, claim):
                return None
            return await _change_run(connection, run, **values)

    async def put_part(
        self, claim: JobClaim, run: MatchRun, *, stamp: bytes, until: int, body: bytes
    ) -> MatchRun | None:
        """Keep what was weighed between the two providers that a run is at.

        Args:
            claim: The lease.
            run: Which run.
            stamp: Of the accounts and the weights.
            until: The position, among the accounts of the first provider, up to which it goes.
            body: Encoded.

        Returns:
            The run; ``None`` when somebody else has taken over.

        Raises:
            StorageError: The database could not do it.
        """
        row = {
            "run_id": run.id,
            "pair": run.pairs_done,
            "until": until,
            "stamp": stamp,
            "body": body,
        }
        async with self._database.transaction() as connection:
            if not await hold_job(connection, claim):
                return None
            await connection.execute(
                self._database.upsert(match_part, row, change=("stamp", "body"))
            )
        return run

    async def find_part(
        self, run: MatchRun, *, stamp: bytes, after: int = 0
    ) -> tuple[int, bytes] | None:
        """Return the first part behind a position, if there is one of these accounts and weights.

        Returns:
            Up to where it goes, and its body.

        Raises:
            StorageError: The database could not answer.
        """
        columns = match_part.c
        statement = (
            select(columns.until, columns.body)
            .where(
                columns.run_id == run.id,
                columns.pair == run.pairs_done,
                columns.stamp == stamp,
                columns.until > after,
            )
            .order_by(columns.until)
            .limit(1)
        )
        async with self._database.read() as connection:
            row = (await connection.execute(statement)).one_or_none()
        return None if row is None else (row.until, row.body)

    async def put_suggestions(
        self,
        claim: JobClaim,
        run: MatchRun,
        providers: tuple[str, str],
        pages: AsyncIterable[Sequence[Suggested]],
        *,
        lease_seconds: float,
    ) -> MatchRun | None:
        """Put what was found between two providers in the place of what was suggested before.

        What somebody decided on is kept as it was decided on; a rejected pair does not come back.
        A page goes in at once, so that others get to write between them: until all are in, new and
        old suggestions stand side by side. Cut off, it is done again from the beginning.

        Returns:
            The run, with one more pair of providers done; ``None`` when somebody else has taken
            over.

        Raises:
            StorageError: The database could not do it; some may have been put in.
        """
        left, right = sorted(providers)
        columns = match_suggestion.c
        between = and_(columns.left_provider_id == left, columns.right_provider_id == right)
        kept = await self._kept_pairs(left, right)
        count = 0
        async for page in pages:
            new = [_suggestion_row(run, row) for row in page if row.pair not in kept]
            count += len(new)
            async with self._database.transaction() as connection:
                if not await hold_job(connection, claim, lease_seconds=lease_seconds):
                    return None
                if new:
                    await connection.execute(self._put, new)
        async with self._database.transaction() as connection:
            if not await hold_job(connection, claim, lease_seconds=lease_seconds):
                return None
            await connection.execute(
                delete(match_suggestion).where(between, columns.run_id != run.id, ~_is_judged())
            )
            await connection.execute(delete(match_part).where(match_part.c.run_id == run.id))
            return await _change_run(
                connection,
                run,
                pairs_done=run.pairs_done + 1,
                progress=0.0,
                suggestion_count=run.suggestion_count + count,
            )

    async def _kept_pairs(self, left: str, right: str) -> set[Pair]:
        """Return the pairs between two providers that are rejected, or kept as decided on."""
        columns = match_suggestion.c
        decided = select(match_suggestion).where(
            columns.left_provider_id == left, columns.right_provider_id == right, _is_judged()
        )
        rejected = select(match_verdict).where(
            match_verdict.c.left_provider_id == left,
            match_verdict.c.right_provider_id == right,
            match_verdict.c.verdict == Verdict.REJECTED,
        )
        async with self._database.read() as connection:
            return {
                _pair(row)
                for statement in (decided, rejected)
                for row in (await connection.execute(statement)).mappings()
            }

    @property
    def _put(self) -> Any:
        """What inserts a suggestion, or puts it in the place of the one of the same pair."""
        put = self._dialect.insert(match_suggestion)
        key = {column.name for column in match_suggestion.primary_key}
        return put.on_conflict_do_update(
            index_elements=[*match_suggestion.primary_key],
            set_={
                column.name: put.excluded[column.name]
                for column in match_suggestion.c
                if column.name not in key
            },
        )

    @property
    def _dialect(self) -> Any:  # the two modules have no common type
        return sqlite if self._database.dialect == "sqlite" else postgresql

    async def end(
        self, claim: JobClaim, run: MatchRun, state: MatchRunState, problem: Problem | None = None
    ) -> MatchRun | None:
        """End a run, and its job.

        Returns:
            The run as it ended; ``None`` when somebody else has taken over.

        Raises:
            StorageError: The database could not do it.
        """
        async with self._database.transaction() as connection:
            if not await hold_job(connection, claim):
                return None
            await _forget_job(connection, claim)
            await connection.execute(delete(match_part).where(match_part.c.run_id == run.id))
            return await _change_run(
                connection,
                run,
                state=state,
                finished_at=database_now(),
                progress=0.0,
                problem_code=None if problem is None else problem.code,
                problem=None if problem is None else problem.message,
            )

    # Suggestions.

    async def list_suggestions(
        self,
        wanted: SuggestionFilter,
        *,
        descending: bool = True,
        after: tuple[float, Pair] | None = None,
        limit: int,
    ) -> Sequence[StoredSuggestion]:
        """Return suggestions by score, those of one score by their accounts.

        Args:
            wanted: Which.
            descending: Whether the most probable come first.
            after: Only those behind the one of this score and pair.
            limit: At most so many.

        Raises:
            StorageError: The database could not answer.
        """
        columns = match_suggestion.c
        score = columns.score
        pair = tuple_(
            columns.left_provider_id,
            columns.left_external_id,
            columns.right_provider_id,
            columns.right_external_id,
        )
        statement = _suggestions().where(*_conditions(wanted)).limit(limit)
        statement = statement.order_by(score.desc() if descending else score, *pair)
        if after is not None:
            at, key = after
            behind = score < at if descending else score > at
            same = and_(score == at, pair > tuple_(*(literal(text) for text in (*key[0], *key[1]))))
            statement = statement.where(or_(behind, same))
        async with self._database.read() as connection:
            return [_suggestion(row) for row in (await connection.execute(statement)).mappings()]

    async def list_scores(
        self, provider_ids: Collection[str], *, after: Pair | None = None, limit: int
    ) -> Sequence[tuple[Pair, float, float | None]]:
        """Return pairs of these providers' accounts that are suggested, however they stand.

        Each with its score and its bits.

        Args:
            provider_ids: Between whose accounts.
            after: Only those behind this one; in an order that stays the same.
            limit: At most so many.

        Raises:
            StorageError: The database could not answer.
        """
        columns = [
            match_suggestion.c.left_provider_id,
            match_suggestion.c.left_external_id,
            match_suggestion.c.right_provider_id,
            match_suggestion.c.right_external_id,
        ]
        statement = (
            select(*columns, match_suggestion.c.score, match_suggestion.c.bits)
            .where(columns[0].in_(provider_ids), columns[2].in_(provider_ids))
            .order_by(*columns)
            .limit(limit)
        )
        if after is not None:
            key = tuple_(*(literal(text) for text in (*after[0], *after[1])))
            statement = statement.where(tuple_(*columns) > key)
        async with self._database.read() as connection:
            rows = await connection.execute(statement)
            return [((tuple(row[:2]), tuple(row[2:4])), row[4], row[5]) for row in rows]

    async def count_suggestions(self, wanted: SuggestionFilter) -> int:
        """Return how many suggestions there are.

        Raises:
            StorageError: The database could not answer.
        """
        statement = select(func.count()).select_from(
            _suggestions().where(*_conditions(wanted)).subquery()
        )
        async with self._database.read() as connection:
            count: int = (await connection.execute(statement)).scalar_one()
            return count

    async def find_suggestions(self, pairs: Collection[Pair]) -> Mapping[Pair, StoredSuggestion]:
        """Return those of these pairs that are suggested, or were decided on when they were.

        Raises:
            StorageError: The database could not answer.
        """
        columns = match_suggestion.c
        key = tuple_(
            columns.left_provider_id,
            columns.left_external_id,
            columns.right_provider_id,
            columns.right_external_id,
        )
        found: dict[Pair, StoredSuggestion] = {}
        async with self._database.read() as connection:
            for some in _slices(pairs):
                statement = _suggestions().where(key.in_([(*one, *other) for one, other in some]))
                for row in (await connection.execute(statement)).mappings():
                    found[_pair(row)] = _suggestion(row)
        return found

    async def find_statuses(
        self, one: AccountKey, others: Collection[AccountKey]
    ) -> Mapping[AccountKey, MatchStatus]:
        """Return how a suggestion of an account and each of others stands, or would stand.

        Raises:
            StorageError: The database could not answer.
        """
        async with self._database.read() as connection:
            keys = list({one, *others})
            mine = select(person_account.c.person_id).where(
                tuple_(person_account.c.provider_id, person_account.c.external_id).in_(keys)
            )
            rows = await connection.execute(
                select(person_account).where(person_account.c.person_id.in_(mine))
            )
            person_of = {(row.provider_id, row.external_id): row.person_id for row in rows}
            left = tuple_(match_verdict.c.left_provider_id, match_verdict.c.left_external_id)
            right = tuple_(match_verdict.c.right_provider_id, match_verdict.c.right_external_id)
            judged = await connection.execute(
                select(match_verdict).where(left.in_(keys), right.in_(keys))
            )
            verdicts = {_pair(row): MatchStatus(row["verdict"]) for row in judged.mappings()}
        places = {(person, provider_id) for (provider_id, _), person in person_of.items()}

        def status(other: AccountKey) -> MatchStatus:
            verdict = verdicts.get((one, other) if one < other else (other, one))
            if verdict is not None:
                return verdict
            here, there = person_of.get(one), person_of.get(other)
            if here is not None and here == there:
                return MatchStatus.CONFIRMED
            taken = {(here, other[0]), (there, one[0])} & places
            return MatchStatus.SUPERSEDED if taken else MatchStatus.SUGGESTED

        return {other: status(other) for other in others}

    # Models.

    async def last_model(self) -> StoredModel | None:
        """Return what came of fitting weights to decisions the last time.

        Raises:
            StorageError: The database could not answer.
        """
        statement = select(match_model).order_by(match_model.c.id.desc()).limit(1)
        async with self._database.read() as connection:
            row = (await connection.execute(statement)).one_or_none()
        if row is None:
            return None
        return StoredModel(version=row.version, body=row.body, verdict_count=row.verdict_count)

    async def keep_model(self, model: StoredModel) -> None:
        """Keep what came of fitting weights to decisions.

        Raises:
            StorageError: The database could not do it.
        """
        async with self._database.transaction() as connection:
            await connection.execute(
                insert(match_model).values(
                    version=model.version,
                    body=model.body,
                    verdict_count=model.verdict_count,
                    fitted_at=database_now(),
                )
            )


async def _forget_accounts(
    connection: AsyncConnection, provider_id: str, external_ids: Collection[str]
) -> None:
    await connection.execute(
        delete(account).where(
            account.c.provider_id == provider_id, account.c.external_id.in_(external_ids)
        )
    )


async def _forget_job(connection: AsyncConnection, claim: JobClaim) -> None:
    await connection.execute(
        delete(job).where(
            job.c.kind == claim.job.kind,
            job.c.key == claim.job.key,
            job.c.fence == claim.fence,
        )
    )


async def _change_run(connection: AsyncConnection, run: MatchRun, **values: Any) -> MatchRun:
    statement = (
        update(match_run).where(match_run.c.id == run.id).values(**values).returning(*match_run.c)
    )
    return _run((await connection.execute(statement)).mappings().one())


_VERDICT_OF_SUGGESTION: Final = and_(
    *(
        match_verdict.c[name] == match_suggestion.c[name]
        for name in (
            "left_provider_id",
            "left_external_id",
            "right_provider_id",
            "right_external_id",
        )
    )
)


def _is_judged() -> ColumnElement[bool]:
    return exists().where(_VERDICT_OF_SUGGESTION)


_LEFT: Final = person_account.alias("left_account")
_RIGHT: Final = person_account.alias("right_account")
_HELD: Final = person_account.alias("held_account")


def _is_taken(one: Any, provider_id: ColumnElement[str]) -> ColumnElement[bool]:
    """Whether a person of whom one account is known has one at that provider."""
    return exists().where(_HELD.c.person_id == one.c.person_id, _HELD.c.provider_id == provider_id)


_STATUS: Final = case(
    (match_verdict.c.verdict.is_not(None), match_verdict.c.verdict),
    (_LEFT.c.person_id == _RIGHT.c.person_id, MatchStatus.CONFIRMED.value),
    (
        or_(
            _is_taken(_LEFT, match_suggestion.c.right_provider_id),
            _is_taken(_RIGHT, match_suggestion.c.left_provider_id),
        ),
        MatchStatus.SUPERSEDED.value,
    ),
    else_=MatchStatus.SUGGESTED.value,
)


def _suggestions() -> Select[Any]:
    """Return every suggestion with how it stands and the last decision on it."""
    columns = match_suggestion.c
    last = (
        select(func.max(people_change.c.decision_id))
        .where(
            people_change.c.provider_id == columns.left_provider_id,
            people_change.c.external_id == columns.left_external_id,
            people_change.c.other_provider_id == columns.right_provider_id,
            people_change.c.other_external_id == columns.right_external_id,
        )
        .correlate(match_suggestion)
        .scalar_subquery()
    )
    return (
        select(
            match_suggestion,
            _STATUS.label("status"),
            people_decision.c.id.label("decision_id"),
            people_decision.c.decided_by,
            people_decision.c.at.label("decided_at"),
        )
        .select_from(match_suggestion)
        .outerjoin(match_verdict, _VERDICT_OF_SUGGESTION)
        .outerjoin(
            _LEFT,
            and_(
                _LEFT.c.provider_id == columns.left_provider_id,
                _LEFT.c.external_id == columns.left_external_id,
            ),
        )
        .outerjoin(
            _RIGHT,
            and_(
                _RIGHT.c.provider_id == columns.right_provider_id,
                _RIGHT.c.external_id == columns.right_external_id,
            ),
        )
        .outerjoin(
            people_decision,
            and_(match_verdict.c.verdict.is_not(None), people_decision.c.id == last),
        )
    )


def _conditions(wanted: SuggestionFilter) -> Sequence[ColumnElement[bool]]:
    columns = match_suggestion.c
    # Behind a function, so that no index of theirs is chosen: the one of the score, from which
    # a page is read off, is the better one.
    left, right = (
        func.coalesce(column, "")
        for column in (columns.left_provider_id, columns.right_provider_id)
    )
    conditions = [
        left.in_(wanted.provider_ids),
        right.in_(wanted.provider_ids),
        columns.score >= wanted.least_score,
        columns.score <= wanted.most_score,
        true() if set(wanted.statuses) == set(MatchStatus) else _STATUS.in_(wanted.statuses),
    ]
    if wanted.account is not None:
        provider_id, external_id = wanted.account
        conditions.append(
            or_(
                and_(
                    columns.left_provider_id == provider_id,
                    columns.left_external_id == external_id,
                ),
                and_(
                    columns.right_provider_id == provider_id,
                    columns.right_external_id == external_id,
                ),
            )
        )
    return conditions


def _suggestion_row(run: MatchRun, row: Suggested) -> Mapping[str, Any]:
    (left_provider, left), (right_provider, right) = row.pair
    return {
        "left_provider_id": left_provider,
        "left_external_id": left,
        "right_provider_id": right_provider,
        "right_external_id": right,
        "run_id": run.id,
        "score": row.score,
        "weight": row.weight,
        "prior": row.prior,
        "bits": row.bits,
        "model_version": run.model_version or "",
        "evidence": row.evidence,
        "competitors": row.competitors,
    }


def _suggestion(row: RowMapping) -> StoredSuggestion:
    return StoredSuggestion(
        pair=_pair(row),
        score=row["score"],
        weight=row["weight"],
        prior=row["prior"],
        bits=row["bits"],
        evidence=row["evidence"],
        competitors=row["competitors"],
        run_id=row["run_id"],
        model_version=row["model_version"],
        status=MatchStatus(row["status"]),
        decision_id=row["decision_id"],
        decided_by=row["decided_by"],
        decided_at=row["decided_at"],
    )


def _pair(row: RowMapping) -> Pair:
    return (
        (row["left_provider_id"], row["left_external_id"]),
        (row["right_provider_id"], row["right_external_id"]),
    )


def _account(row: RowMapping) -> StoredAccount:
    return StoredAccount(
        external_id=row["external_id"],
        prepared=row["prepared"],
        version=row["version"],
        sha256=row["sha256"],
    )


def _run(row: RowMapping) -> MatchRun:
    values: dict[str, Any] = {column.name: row[column.name] for column in match_run.c}
    return MatchRun(
        **{
            **values,
            "state": MatchRunState(values["state"]),
            "provider_ids": tuple(json.loads(values["provider_ids"])),
            "notes": tuple(json.loads(values["notes"])),
        }
    )


def _slices(values: Collection[Any]) -> Iterable[Sequence[Any]]:
    listed = list(values)
    for start in range(0, len(listed), _KEYS_AT_ONCE):
        yield listed[start : start + _KEYS_AT_ONCE]
