"""People: preparing accounts, runs that find who is who, look-ups, and what callers may decide.

What an import changed is prepared for matching right after it, under a job of its own. A run
compares the accounts of providers pair by pair and keeps what it found of each pair before it goes
on, so a stop costs the pair under way and no more. Nothing becomes a person unless somebody says
so, or the operator has runs link what they are sure of.

A request sees only providers its key sees: matches and persons' accounts elsewhere do not exist
for it. On behalf of users nothing of this is answered.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Collection,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

import anyio
import anyio.to_thread
import msgspec
import numpy as np
import structlog

from resolvers import matching
from resolvers.context import RequestContext, Scope
from resolvers.cursors import CursorSealer
from resolvers.errors import BadInput, Forbidden, NotFound
from resolvers.importing import record_of
from resolvers.leasing import while_held
from resolvers.loaders import Outcomes, Soon
from resolvers.match_process import Answer, Compared, ComparingFailed, Found, Part, Task, compare
from resolvers.matching import Account, Evidence, Index, Model, Prepared
from resolvers.matching.bulk import BulkMissing, require_bulk
from resolvers.matching.candidates import PAIRS_AT_ONCE
from resolvers.matching.columns import Columns, Vocabulary, keys_of
from resolvers.matching.spreading import usable_processes
from resolvers.paging import checked_first
from sessions.errors import NotSupported, ProviderNotFound
from sessions.scheduler import ScheduledWork
from sessions.tracing import Tracer, working
from storage.errors import ConstraintViolated
from storage.imports import ACCOUNTS_JOB, ImportStore, RosterKind
from storage.leases import JobClaim, LeaseStore, Problem
from storage.matching import (
    MATCH_JOB,
    MatchOrder,
    MatchRun,
    MatchRunState,
    MatchStatus,
    MatchStore,
    StoredAccount,
    StoredModel,
    StoredSuggestion,
    Suggested,
    SuggestionFilter,
)
from storage.people import (
    AccountKey,
    Decided,
    Decision,
    Pair,
    PeopleRefusal,
    PeopleStore,
    ProviderConflict,
    Unknown,
    Verdict,
    pair_of,
)
from storage.providers import ProviderStore
from storage.records import EnrollmentSource, Gender, IdentifierType, User

SUGGESTED_FROM: Final = 0.2
"""How probable a pair is at least that is shown unasked; what is below is hidden."""

KEPT_FROM: Final = 0.05
"""How probable a pair is at least that is kept at all."""

LARGE_POOL: Final = 40_000
"""So many accounts at one provider are too many for names alone to identify."""

MAX_LINKED: Final = 100
MAX_MERGED: Final = 20
MAX_MATCHES: Final = 50

_CANDIDATES: Final = 400
_REFIT_EVERY: Final = 20
_MOST_FITTED: Final = 10_000
_ROWS_AT_ONCE: Final = 1000
_PLACES_AT_ONCE: Final = 5000
_WATCH_SECONDS: Final = 0.5
_FOLLOW_SECONDS: Final = 0.2
_CURSOR_FORMAT: Final = 1
_SERVICE_ONLY: Final = "People are the organisation's: send this without the header On-Behalf-Of"

_COMMON_IDS: Final = frozenset(
    {IdentifierType.SCHOOL_ID, IdentifierType.SIS_ID, IdentifierType.STATE_ID}
)
"""Identifiers that somebody gives to people and not a platform to its accounts."""

_log = structlog.get_logger(__name__)
_prepared: Final = msgspec.msgpack.Decoder(Prepared)
_evidence: Final = msgspec.msgpack.Decoder(tuple[Evidence, ...])
_competitors: Final = msgspec.msgpack.Decoder(tuple[Pair, ...])


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchSettings:
    """How runs work.

    Attributes:
        link_above: How probable a pair is at least that a run links unasked; ``None`` for none.
        lease_seconds: A run renews its lease three times in this span.
        index_seconds: How old what is looked up in may be.
        apart_from: So many accounts of two providers together are compared in a process of their
            own.
        progress_seconds: How often it is written down how far a comparison is.
        part_seconds: How often it is kept what a comparison has weighed.
        pairs_at_once: About so many pairs of accounts are weighed together.
        processes: How many compare two providers at once, where there is enough to do for them.
        most_indexed: Accounts of a provider that are held in memory to be looked up in; of more,
            the stored keys are asked.
        bulk_from: More accounts of two providers together than so many are compared on disk.
        bulk_folder: Where that is done.
    """

    link_above: float | None = None
    lease_seconds: float = 30
    index_seconds: float = 5
    apart_from: int = 4000
    progress_seconds: float = 1
    part_seconds: float = 10
    pairs_at_once: int = PAIRS_AT_ONCE
    processes: int = field(default_factory=usable_processes)
    most_indexed: int = 300_000
    bulk_from: int = 2_500_000
    bulk_folder: Path = Path("matching")


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonRecord:
    """A person as a request may see it.

    Attributes:
        users: Accounts at providers it sees, as the last imports found them, by provider id.
    """

    id: str
    users: tuple[User, ...]

    @property
    def display_name(self) -> str:
        """The longest of the accounts' names; empty when none has one."""
        names = [user.display_name.strip() for user in self.users]
        return max(names, key=len, default="")


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchRecord:
    """Two accounts that may be one person's.

    Attributes:
        pair: The two; ``None`` when one was only described.
        left: The first; ``None`` when it was only described.
        right: The second.
        score: How probable it is, between 0 and 1, after competition.
        weight: Bits: the sum of ``prior`` and of all evidence, exactly.
        competitors: Pairs that want one of the same accounts, the best first.
    """

    pair: Pair | None
    left: User | None
    right: User
    score: float
    weight: float
    prior: float
    status: MatchStatus
    evidence: tuple[Evidence, ...]
    competitors: tuple[Pair, ...]
    rivals: int
    model_version: str
    decision_id: int | None = None
    decided_by: str | None = None
    decided_at: datetime | None = None

    @property
    def competition(self) -> str | None:
        """What competes, in words; ``None`` when nothing does."""
        if not self.rivals:
            return None
        if self.rivals == 1:
            return "1 other match wants one of these accounts"
        return f"{self.rivals} other matches want one of these accounts"


@dataclass(frozen=True, slots=True, kw_only=True)
class UserTraits:
    """What is known of somebody who is looked for; ``None`` for what is not."""

    display_name: str | None = None
    given_name: str | None = None
    middle_name: str | None = None
    family_name: str | None = None
    username: str | None = None
    email: str | None = None
    identifiers: tuple[str, ...] = ()
    birth_year: int | None = None
    gender: Gender | None = None
    roles: tuple[str, ...] = ()
    time_zone: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchFilter:
    """Which matches; ``None`` for what does not matter."""

    provider_ids: Sequence[str] | None = None
    user: AccountKey | None = None
    statuses: Sequence[MatchStatus] | None = None
    least_score: float | None = None
    most_score: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonFilter:
    """Which persons; ``None`` for what does not matter.

    Attributes:
        provider_ids: With an account at one of these.
        least_accounts: With so many accounts at least.
    """

    provider_ids: Sequence[str] | None = None
    least_accounts: int | None = None


@dataclass(frozen=True, slots=True)
class PeoplePage:
    """A page of rows, each with its cursor.

    Attributes:
        has_next: Whether there are more.
        total: How many there are, if it was asked for.
    """

    rows: Sequence[tuple[str, Any]]
    has_next: bool
    total: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionOutcome:
    """What came of a decision.

    Attributes:
        decision: ``None`` when everything had been so before.
        person: The person that the accounts are now; ``None`` when they are not one.
    """

    decision: Decision | None
    person: PersonRecord | None


MatchesWanted: TypeAlias = tuple[str, str, int, float]
"""Provider and external id of an account, how many matches at most, how probable at least."""

Outcome: TypeAlias = DecisionOutcome | PeopleRefusal


class MatchObserver(Protocol):
    """Hears of match runs."""

    def on_match_run(self, state: MatchRunState) -> None:
        """Hear that a run has ended."""

    def on_compared(self, *, pairs: int, suggestions: int, seconds: float) -> None:
        """Hear that two providers were compared.

        Args:
            pairs: Pairs of accounts that were weighed for it.
            suggestions: Those of them that are kept.
            seconds: How long it took since it was begun, or gone on with.
        """


class People:
    """Everything about people that one gateway does.

    Args:
        store: Persons and decisions.
        matches: Accounts, runs and suggestions.
        imports: Snapshots.
        leases: The jobs' rows.
        providers: What is registered.
        settings: How runs work.
        observer: Hears of runs; ``None`` when nobody does.
        tracer: Makes a span of each run; ``None`` when nothing is traced.
    """

    def __init__(
        self,
        *,
        store: PeopleStore,
        matches: MatchStore,
        imports: ImportStore,
        leases: LeaseStore,
        providers: ProviderStore,
        settings: MatchSettings,
        observer: MatchObserver | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self.store = store
        self.matches = matches
        self.imports = imports
        self.settings = settings
        self._observer = observer
        self._tracer = tracer
        self._leases = leases
        self._providers = providers
        self._indexes: dict[str, _ProviderIndex] = {}
        self._indexing = asyncio.Lock()

    def work(self) -> Sequence[ScheduledWork]:
        """Return the kinds of jobs this does."""
        return tuple(
            ScheduledWork(kind=kind, run=run, at_once=1, lease_seconds=self.settings.lease_seconds)
            for kind, run in ((ACCOUNTS_JOB, self.prepare_accounts), (MATCH_JOB, self.run))
        )

    # Preparing.

    async def prepare_accounts(self, claim: JobClaim) -> None:
        """Prepare what an import changed, and again if another one changed more meanwhile.

        Raises:
            StorageError: The database could not do it; the lease runs out by itself.
        """
        begun_at = await self.matches.begin_accounts(claim)
        if begun_at is None:
            return
        work = asyncio.ensure_future(self.prepare(claim.job.key))
        await while_held(self._leases, claim, work, lease_seconds=self.settings.lease_seconds)
        if work.done() and not work.cancelled():
            await self.matches.end_accounts(claim, begun_at)

    async def prepare(self, provider_id: str) -> None:
        """Bring a provider's prepared accounts in line with its snapshot; only what differs.

        Every thousand are kept at once, so that a stop costs no more than these.

        Raises:
            StorageError: The database could not do it.
        """
        known = dict(await self.matches.list_account_hashes(provider_id))
        groups = await self._groups_of(provider_id)
        after = ""
        while True:
            rows = await self.imports.list_rows(
                provider_id, RosterKind.USERS, after=after, limit=_ROWS_AT_ONCE
            )
            if not rows:
                break
            after = rows[-1].external_id
            changed = []
            for row in rows:
                here = tuple(sorted(groups.get(row.external_id, ())))
                digest = hashlib.sha256(msgspec.msgpack.encode((row.sha256, here))).digest()
                if known.pop(row.external_id, None) != (matching.VERSION, digest):
                    changed.append((row.record, here, digest))
            made = await anyio.to_thread.run_sync(_prepared_rows, changed)
            try:
                await self.matches.put_accounts(provider_id, made)
            except ConstraintViolated:  # the provider is gone
                return
        await self.matches.drop_accounts(provider_id, list(known))

    async def _groups_of(self, provider_id: str) -> Mapping[str, set[str]]:
        """Return the courses that each user was enrolled in by somebody."""
        groups: dict[str, set[str]] = {}
        after = ""
        while True:
            rows = await self.imports.list_rows(
                provider_id, RosterKind.ENROLLMENTS, after=after, limit=_PLACES_AT_ONCE
            )
            if not rows:
                return groups
            after = rows[-1].external_id
            for row in rows:
                place = _place.decode(row.record)
                if place.source == EnrollmentSource.ROSTER:
                    groups.setdefault(place.user_id, set()).add(place.course_id)

    # Runs.

    async def finish(self, run: MatchRun) -> MatchRun:
        """Return a run that was asked for once it has ended, having done it here if nobody else.

        Raises:
            StorageError: The database could not do it.
        """
        found: MatchRun | None = run
        while found is not None and not found.ended:
            claim = await self._leases.claim_job(
                MATCH_JOB, str(run.id), lease_seconds=self.settings.lease_seconds
            )
            if claim is not None:
                await self.run(claim)
            found = await self.matches.find_run(run.id)
            if found is not None and not found.ended:
                await asyncio.sleep(_FOLLOW_SECONDS)
        if found is None:
            raise NotFound("The run is not known any more")
        return found

    async def run(self, claim: JobClaim) -> None:
        """Do the run of a job, or go on with it.

        Raises:
            StorageError: The database could not do it; the lease runs out by itself.
        """
        run = await self.matches.begin(claim)
        if run is None:
            return
        with working(self._tracer, "match", provider_id=None):
            work = asyncio.ensure_future(self._carry_out(claim, run))
            await while_held(self._leases, claim, work, lease_seconds=self.settings.lease_seconds)

    async def _carry_out(self, claim: JobClaim, run: MatchRun) -> None:
        try:
            registered = {provider.id for provider in await self._providers.list_all()}
            if not registered.issuperset(run.provider_ids):
                problem = Problem(
                    code=ProviderNotFound.code, message="A provider was removed meanwhile"
                )
                _still(await self.matches.end(claim, run, MatchRunState.FAILED, problem))
                self._tell(MatchRunState.FAILED)
                return
            for provider_id in run.provider_ids:
                await self.prepare(provider_id)
            model = await self._model(run)
            counts = await self.matches.count_accounts(run.provider_ids)
            run = _still(
                await self.matches.note(
                    claim,
                    run,
                    model_version=model.version,
                    account_count=sum(counts.values()),
                    notes=list(_notes(counts)),
                )
            )
            for pair in run.pairs[run.pairs_done :]:
                many = counts[pair[0]] + counts[pair[1]]
                run = await self._compare(claim, run, pair, model, many=many)
            if run.link_above is not None:
                linked = await self._link(run, run.link_above)
                run = _still(await self.matches.note(claim, run, link_count=linked))
            run = _still(await self.matches.end(claim, run, MatchRunState.DONE))
        except _TakenOver:
            return
        except (ComparingFailed, BulkMissing) as error:
            code = NotSupported.code if isinstance(error, BulkMissing) else "INTERNAL"
            problem = Problem(code=code, message=str(error))
            await self.matches.end(claim, run, MatchRunState.FAILED, problem)
            self._tell(MatchRunState.FAILED)
            _log.error("match_run_failed", run_id=run.id, problem=problem.message)
            return
        self._tell(MatchRunState.DONE)
        _log.info(
            "match_run_done",
            run_id=run.id,
            accounts=run.account_count,
            suggestions=run.suggestion_count,
            linked=run.link_count,
        )

    def _tell(self, state: MatchRunState) -> None:
        if self._observer is not None:
            self._observer.on_match_run(state)

    async def _compare(
        self,
        claim: JobClaim,
        run: MatchRun,
        providers: tuple[str, str],
        model: Model,
        *,
        many: int,
    ) -> MatchRun:
        """Return the run with one more pair of providers compared, of so many accounts."""
        begun_at = time.monotonic()
        pools = _Pools(*sorted(providers))
        async with AsyncExitStack() as stack:
            folder = None
            if many > self.settings.bulk_from:
                require_bulk()
                folder = await self._open_folder(stack, f"run-{run.id}-{run.pairs_done}")
            apart = folder is not None or many >= self.settings.apart_from
            # The gateway itself, which has threads, is never forked.
            processes = self.settings.processes if apart and folder is None else 1
            frames = self._frames(run, pools, model, folder=folder, processes=processes)
            answers = await stack.enter_async_context(aclosing(compare(frames, apart=apart)))
            noted_at, first = time.monotonic(), list[Found]()
            async for answer in answers:
                if isinstance(answer, list):
                    first = answer
                    break
                if isinstance(answer, Compared):
                    pools.compared = answer.pairs
                elif isinstance(answer, Part):
                    stamp, until, body = pools.stamp.digest(), answer.end, answer.body
                    _still(
                        await self.matches.put_part(claim, run, stamp=stamp, until=until, body=body)
                    )
                elif time.monotonic() - noted_at >= self.settings.progress_seconds:
                    done = max(answer, run.progress)  # one that goes on begins where it was
                    run = _still(await self.matches.note(claim, run, progress=done))
                    noted_at = time.monotonic()
            before = run.suggestion_count
            run = _still(
                await self.matches.put_suggestions(
                    claim,
                    run,
                    pools.providers,
                    _pages(pools, first, answers),
                    lease_seconds=self.settings.lease_seconds,
                )
            )
        if self._observer is not None:
            self._observer.on_compared(
                pairs=pools.compared,
                suggestions=run.suggestion_count - before,
                seconds=time.monotonic() - begun_at,
            )
        return run

    async def _open_folder(self, stack: AsyncExitStack, name: str) -> Path:
        """Return an empty folder to work in, which is removed at the end."""
        folder = self.settings.bulk_folder / name
        remove = partial(anyio.to_thread.run_sync, partial(shutil.rmtree, ignore_errors=True))
        await remove(folder)  # of a gateway that was killed
        await anyio.Path(folder).mkdir(mode=0o700, parents=True)
        stack.push_async_callback(remove, folder)
        return folder

    async def _frames(
        self, run: MatchRun, pools: _Pools, model: Model, *, folder: Path | None, processes: int
    ) -> AsyncIterator[bytes]:
        """Yield what a comparison reads, and fill in who is at which position."""
        for provider_id, ids in zip(pools.providers, pools.external_ids, strict=True):
            async for rows in self._pages_of(provider_id):
                for row in rows:
                    ids.append(row.external_id)
                    pools.stamp.update(row.sha256 + row.external_id.encode())
                yield msgspec.msgpack.encode([row.prepared for row in rows])
            yield msgspec.msgpack.encode([])
        task = Task(
            model=model,
            decided=await self._decided(pools),
            expected_overlap=run.expected_overlap,
            least_score=KEPT_FROM,
            processes=processes,
            folder=None if folder is None else str(folder),
            pairs_at_once=self.settings.pairs_at_once,
            part_seconds=self.settings.part_seconds,
        )
        pools.stamp.update(msgspec.msgpack.encode((matching.VERSION, model)))
        yield msgspec.msgpack.encode(task)
        stamp = pools.stamp.digest()
        part = await self.matches.find_part(run, stamp=stamp)
        while part is not None:
            yield msgspec.msgpack.encode(Part(*part))
            part = await self.matches.find_part(run, stamp=stamp, after=part[0])

    async def _decided(self, pools: _Pools) -> Sequence[tuple[int, int, bool]]:
        """Return what is known of pairs of positions: one person's, or rejected."""
        one, other = pools.providers
        at_left, at_right = (
            {external_id: at for at, external_id in enumerate(ids)} for ids in pools.external_ids
        )
        person_of = await self.store.list_links([one, other])
        account_of = {person: key[1] for key, person in person_of.items() if key[0] == other}
        pairs = {
            (external_id, account_of[person]): True
            for (provider_id, external_id), person in person_of.items()
            if provider_id == one and person in account_of
        }
        rejected = await self.store.list_verdicts([one, other], verdicts=(Verdict.REJECTED,))
        pairs |= {(here[1], there[1]): False for here, there in rejected}
        return [
            (at_left[here], at_right[there], same)
            for (here, there), same in pairs.items()
            if here in at_left and there in at_right
        ]

    async def _link(self, run: MatchRun, least: float) -> int:
        """Link what is sure, where the accounts of all providers together agree."""
        keys = [
            (provider_id, external_id)
            for provider_id in run.provider_ids
            for external_id in sorted(await self.matches.list_account_hashes(provider_id))
        ]
        at = {key: position for position, key in enumerate(keys)}
        found: list[tuple[Pair, float, float | None]] = []
        page: Sequence[tuple[Pair, float, float | None]] = ()
        while page or not found:
            page = await self.matches.list_scores(
                run.provider_ids, after=page[-1][0] if page else None, limit=_PLACES_AT_ONCE
            )
            found += [row for row in page if row[0][0] in at and row[0][1] in at]
            if len(page) < _PLACES_AT_ONCE:
                break
        found.sort(key=lambda row: (-row[1], row[0]))
        links = await self.store.list_links(run.provider_ids)
        members: dict[str, list[int]] = {}
        for key, person in links.items():
            if key in at:
                members.setdefault(person, []).append(at[key])
        rejected = await self.store.list_verdicts(run.provider_ids, verdicts=(Verdict.REJECTED,))

        def work() -> Sequence[int]:
            numbers = {provider_id: number for number, provider_id in enumerate(run.provider_ids)}
            scores = np.array([score for _pair, score, _bits in found], np.float64)
            weighed = np.array([bits for _pair, _score, bits in found], np.float64)
            return matching.cluster(
                len(keys),
                [numbers[provider_id] for provider_id, _ in keys],
                (
                    np.array([at[row[0][0]] for row in found], np.int64),
                    np.array([at[row[0][1]] for row in found], np.int64),
                    np.where(np.isnan(weighed), matching.log_odds(scores), weighed),
                ),
                must_link=[
                    (first, other) for first, *others in members.values() for other in others
                ],
                cannot_link=[
                    (at[one], at[other]) for one, other in rejected if one in at and other in at
                ],
            )

        labels = await anyio.to_thread.run_sync(work)
        sure = [
            pair
            for pair, score, _bits in found
            if score >= least and labels[at[pair[0]]] == labels[at[pair[1]]]
        ]
        return await self.store.link_automatically(sure)

    async def _pages_of(self, provider_id: str) -> AsyncIterator[Sequence[StoredAccount]]:
        after = ""
        while rows := await self.matches.list_accounts(
            provider_id, after=after, limit=_PLACES_AT_ONCE
        ):
            after = rows[-1].external_id
            yield rows

    async def _pool(self, provider_id: str) -> Sequence[Prepared]:
        rows = [row async for page in self._pages_of(provider_id) for row in page]
        return await anyio.to_thread.run_sync(
            lambda: [_prepared.decode(row.prepared) for row in rows]
        )

    # Models.

    async def model(self) -> Model:
        """Return the weights in use: those fitted to decisions, or those that are shipped.

        Raises:
            StorageError: The database could not answer.
        """
        stored = await self.matches.last_model()
        fitted = None if stored is None else _fitted(stored)
        return fitted or matching.SHIPPED

    async def _model(self, run: MatchRun) -> Model:
        """Return the weights of a run, fitted anew if there are enough new decisions."""
        current = await self.model()
        if run.model_version is not None:  # it goes on
            return current if current.version == run.model_version else matching.SHIPPED
        provider_ids = [provider.id for provider in await self._providers.list_all()]
        verdicts = await self.store.list_verdicts(
            provider_ids, verdicts=(Verdict.CONFIRMED, Verdict.REJECTED)
        )
        last = await self.matches.last_model()
        outdated = last is not None and last.body is not None and _fitted(last) is None
        fitted_to = 0 if last is None or outdated else last.verdict_count
        if len(verdicts) < max(matching.MIN_DECISIONS, fitted_to + _REFIT_EVERY):
            return current
        decisions, prior = await self._features_of(verdicts)

        def work() -> Model | None:
            return matching.refit(matching.SHIPPED, decisions, prior=prior)

        fitted = await anyio.to_thread.run_sync(work)
        await self.matches.keep_model(
            StoredModel(
                version=(fitted or matching.SHIPPED).version,
                body=None if fitted is None else msgspec.msgpack.encode(fitted),
                verdict_count=len(verdicts),
            )
        )
        _log.info("match_model_fitted", verdicts=len(verdicts), taken=fitted is not None)
        return fitted or matching.SHIPPED

    async def _features_of(
        self, verdicts: Mapping[Pair, Verdict]
    ) -> tuple[Sequence[matching.Decided], float]:
        """Return what speaks for and against pairs that were decided on, and the mean prior.

        Of very many, those that a lot chooses, the same whenever it is drawn.
        """
        lot = np.random.default_rng(0).permutation(len(verdicts))[:_MOST_FITTED]
        known = sorted(verdicts)
        verdicts = {known[at]: verdicts[known[at]] for at in lot.tolist()}
        found: list[matching.Decided] = []
        priors: list[float] = []
        for (one, other), here in _by_providers(verdicts).items():
            _scores, decisions, prior = await self.judged(one, other, here)
            found += decisions
            priors += [prior] * len(decisions)
        return found, float(np.mean(priors)) if priors else 0.0

    async def evaluate(self, verdicts: Mapping[Pair, Verdict]) -> Sequence[Evaluation]:
        """Tell how the weights in use do on what was decided, for each two providers.

        Raises:
            StorageError: The database could not answer.
        """
        model = await self.model()
        found = []
        for (one, other), here in sorted(_by_providers(verdicts).items()):
            scores, _decisions, _prior = await self.judged(one, other, here, model=model)
            confirmed = sum(here.values())
            found.append(
                Evaluation(
                    providers=(one, other),
                    confirmed=confirmed,
                    rejected=len(here) - confirmed,
                    scores=scores,
                )
            )
        return found

    async def judged(
        self, one: str, other: str, verdicts: Mapping[Pair, bool], *, model: Model | None = None
    ) -> tuple[Sequence[tuple[float, bool]], Sequence[matching.Decided], float]:
        """Return what would have been said of pairs had nobody decided on them.

        Args:
            one: A provider's id, the smaller one.
            other: The other provider's id.
            verdicts: Pairs of their accounts, and whether they are one person's.
            model: The weights; ``None`` for those that are shipped.

        Returns:
            Probability and verdict, and what ``refit`` takes, of each pair that the matcher finds
            at all; and the prior.
        """
        left, right = await self._pool(one), await self._pool(other)
        at_left, at_right = _positions(left), _positions(right)
        wanted = {
            (at_left[a], at_right[b]): same
            for (a, b), same in verdicts.items()
            if a in at_left and b in at_right
        }

        def work() -> tuple[Sequence[tuple[float, bool]], Sequence[matching.Decided], float]:
            found = matching.match(left, right, model=model or matching.SHIPPED)
            pairs = zip(found.left.tolist(), found.right.tolist(), strict=True)
            at = [n for n, pair in enumerate(pairs) if pair in wanted]
            same = [wanted[int(found.left[n]), int(found.right[n])] for n in at]
            scores = [(float(found.score[n]), each) for n, each in zip(at, same, strict=True)]
            seen = zip(found.with_rivals(at), same, strict=True)
            decisions = [matching.Decided(*values, each) for values, each in seen]
            return scores, decisions, found.prior

        return await anyio.to_thread.run_sync(work)

    # Looking up.

    async def find_persons_of(
        self, context: RequestContext, accounts: Collection[AccountKey]
    ) -> Mapping[AccountKey, PersonRecord]:
        """Return the person of each account that has one, as a request may see them.

        Raises:
            StorageError: The database could not answer.
        """
        person_of = await self.store.find_persons_of(accounts)
        records = await find_persons(context, {*person_of.values()})
        return {key: records[person] for key, person in person_of.items() if person in records}

    async def find_matches_of(
        self, context: RequestContext, wanted: Collection[MatchesWanted]
    ) -> Mapping[MatchesWanted, Sequence[MatchRecord]]:
        """Return who at other providers may be the same as each of some accounts.

        Raises:
            StorageError: The database could not answer.
        """
        visible = await context.visible_providers()
        stored = await self.matches.find_accounts({each[:2] for each in wanted})
        found: dict[MatchesWanted, Sequence[tuple[AccountKey, matching.Suggestion, str]]] = {}
        for each in wanted:
            if each[:2] in stored:
                others = [provider_id for provider_id in visible if provider_id != each[0]]
                asked = _prepared.decode(stored[each[:2]].prepared)
                found[each] = await self.look_up(asked, provider_ids=others, limit=2 * each[2])
        users = await find_users(
            self, {each[:2] for each in found} | {row[0] for rows in found.values() for row in rows}
        )
        return {each: await self._matches_of(each, rows, users) for each, rows in found.items()}

    async def _matches_of(
        self,
        wanted: MatchesWanted,
        found: Sequence[tuple[AccountKey, matching.Suggestion, str]],
        users: Mapping[AccountKey, User],
    ) -> Sequence[MatchRecord]:
        key, first, least = wanted[:2], wanted[2], wanted[3]
        statuses = await self.matches.find_statuses(key, [other for other, _, _ in found])
        records = [
            _looked_up(each, users[other], version, left=users.get(key), status=statuses[other])
            for other, each, version in found
            if other in users and statuses[other] is not MatchStatus.REJECTED
        ]
        return [record for record in records if record.score >= least][:first]

    async def look_up(
        self, asked: Prepared, *, provider_ids: Collection[str], limit: int
    ) -> Sequence[tuple[AccountKey, matching.Suggestion, str]]:
        """Return accounts that may be the same person's, the most probable first.

        Each with what speaks for it and the model's version. Accounts of a provider that are more
        than an index should hold are found by their stored keys, and weighed among themselves.

        Raises:
            StorageError: The database could not answer.
        """
        found: list[tuple[AccountKey, matching.Suggestion, str]] = []
        model = await self.model()
        async with self._indexing:
            for provider_id in sorted(provider_ids):
                index = await self._index_of(provider_id, model)
                if index is None:
                    index = await self._small_index(provider_id, asked, model)
                found += [
                    ((provider_id, index.accounts[each.right]), each, model.version)
                    for each in index.index.suggest(asked, limit)
                ]
        found.sort(key=lambda row: (-row[1].score, row[0]))
        return found[:limit]

    async def _index_of(self, provider_id: str, model: Model) -> _ProviderIndex | None:
        """Return the provider's index as of some seconds ago at most; ``None`` for too many."""
        kept = self._indexes.get(provider_id)
        now = asyncio.get_running_loop().time()
        if kept is not None and kept.index.model.version != model.version:
            kept = None
        if kept is not None and now - kept.looked_at < self.settings.index_seconds:
            return kept
        stamp = await self.matches.stamp_of_accounts(provider_id)
        if kept is not None and kept.stamp == stamp:
            kept.looked_at = now
            return kept
        hashes = await self.matches.list_account_hashes(provider_id)
        if len(hashes) > self.settings.most_indexed:
            self._indexes.pop(provider_id, None)
            return None
        if kept is None:
            pool = await self._pool(provider_id)
            index = await anyio.to_thread.run_sync(Index.build, pool, model)
            kept = _ProviderIndex(index=index, accounts=[one.external_id for one in pool])
            kept.hashes = {one.external_id: hashes.get(one.external_id) for one in pool}
            kept.at = {one.external_id: position for position, one in enumerate(pool)}
        await self._bring_up(provider_id, kept, hashes)
        kept.looked_at, kept.stamp = now, stamp
        self._indexes[provider_id] = kept
        return kept

    async def _bring_up(
        self, provider_id: str, kept: _ProviderIndex, hashes: Mapping[str, tuple[int, bytes]]
    ) -> None:
        """Put into an index what changed since."""
        for external_id in [*kept.at]:
            if external_id not in hashes:
                kept.index.remove(kept.at.pop(external_id))
                del kept.hashes[external_id]
        changed = [key for key, one in hashes.items() if kept.hashes.get(key) != one]
        rows = await self.matches.find_accounts([(provider_id, key) for key in changed])
        for (_provider, external_id), row in rows.items():
            account = _prepared.decode(row.prepared)
            position = kept.at.get(external_id)
            if position is None:
                kept.at[external_id] = kept.index.add(account)
                kept.accounts.append(external_id)
            else:
                kept.index.replace(position, account)
            kept.hashes[external_id] = (row.version, row.sha256)

    async def _small_index(self, provider_id: str, asked: Prepared, model: Model) -> _ProviderIndex:
        found = await self.matches.find_candidates(
            matching.blocking_keys(asked), provider_ids=[provider_id], limit=_CANDIDATES
        )
        pool = [_prepared.decode(row.prepared) for row in found.values()]
        return _ProviderIndex(
            index=Index.build(pool, model), accounts=[one.external_id for one in pool]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """How well what was decided between two providers would have been foretold.

    Attributes:
        confirmed: Pairs that somebody confirmed.
        rejected: Pairs that somebody rejected.
        scores: Probability and verdict of those that the matcher finds at all.
    """

    providers: tuple[str, str]
    confirmed: int
    rejected: int
    scores: Sequence[tuple[float, bool]]

    def at(self, least: float) -> tuple[float | None, float | None]:
        """Return precision and recall of the pairs at least that probable, where there are any."""
        chosen = [same for score, same in self.scores if score >= least]
        right = sum(chosen)
        precision = right / len(chosen) if chosen else None
        return precision, right / self.confirmed if self.confirmed else None


@dataclass(slots=True, kw_only=True)
class _ProviderIndex:
    """One provider's accounts, to be looked up in.

    Attributes:
        accounts: External ids by position.
        at: Positions by external id, of those that are there.
        hashes: Of what is in the index, by external id.
        looked_at: When it was last compared with the database, by the loop's clock.
        stamp: What the database said then.
    """

    index: Index
    accounts: list[str]
    at: dict[str, int] = field(default_factory=dict)
    hashes: dict[str, tuple[int, bytes] | None] = field(default_factory=dict)
    looked_at: float = 0.0
    stamp: object = None


class _Pools:
    """Two providers, and who is at which position, once their accounts were read.

    Attributes:
        stamp: Of everything that what is weighed between them depends on.
        compared: How many pairs of accounts were weighed.
    """

    def __init__(self, one: str, other: str) -> None:
        self.providers = (one, other)
        self.external_ids: tuple[list[str], list[str]] = ([], [])
        self.stamp = hashlib.sha256()
        self.compared = 0

    def pair(self, left: int, right: int) -> Pair:
        """Return the accounts at two positions."""
        one, other = self.providers
        return (one, self.external_ids[0][left]), (other, self.external_ids[1][right])


class _TakenOver(Exception):
    """Another gateway does the run now."""


class _Place(msgspec.Struct):
    """What matching reads of an enrollment."""

    user_id: str
    course_id: str
    source: str


_place: Final = msgspec.msgpack.Decoder(_Place)
_model: Final = msgspec.msgpack.Decoder(Model)


# What callers ask for.


async def visible_ids(context: RequestContext, named: Sequence[str] | None) -> Sequence[str]:
    """Return the providers that are named, or all that the request sees.

    Raises:
        Forbidden: The scope is missing, or the request acts for users.
        ProviderNotFound: One of them does not exist.
    """
    _read(context)
    return await _provider_ids(context, named)


async def person_page(
    context: RequestContext, *, wanted: PersonFilter, first: int, after: str | None
) -> PeoplePage:
    """Return a page of persons who have an account that the request may see.

    Raises:
        RequestRefused: The scope is missing, or an argument is wrong.
        ProviderNotFound: The filter names a provider that does not exist.
        StorageError: The database could not answer.
    """
    people = _read(context)
    first = checked_first(first, context.limits.max_page_size)
    provider_ids = await _provider_ids(context, wanted.provider_ids)
    least = 1 if wanted.least_accounts is None else wanted.least_accounts
    sealer = _sealer(context, ["people", sorted(provider_ids), least])
    behind = None if after is None else sealer.open(after)
    if behind is not None and not isinstance(behind, str):
        raise BadInput("after", "This is not a cursor of people")
    ids = await people.store.list_persons(
        provider_ids=provider_ids, least=least, after=behind, limit=first + 1
    )
    records = await find_persons(context, ids[:first])
    return PeoplePage(
        [(sealer.seal(person), records[person]) for person in ids[:first] if person in records],
        len(ids) > first,
    )


async def find_persons(
    context: RequestContext, person_ids: Collection[str]
) -> Mapping[str, PersonRecord]:
    """Return persons with those of their accounts that the request may see, if there are any.

    Raises:
        StorageError: The database could not answer.
    """
    people = _people(context)
    visible = await context.visible_providers()
    accounts = await people.store.find_accounts(person_ids)
    shown = {
        person: [key for key in keys if key[0] in visible] for person, keys in accounts.items()
    }
    users = await find_users(people, [key for keys in shown.values() for key in keys])
    return {
        person: PersonRecord(id=person, users=tuple(users[key] for key in keys if key in users))
        for person, keys in shown.items()
        if keys
    }


def persons_of(context: RequestContext, users: Sequence[User]) -> Soon[Outcomes[PersonRecord]]:
    """Return the person of each account, or none, in their order.

    Raises:
        Forbidden: The scope is missing, or the request acts for users.
    """
    _read(context)
    return context.person_of.load_each((user.provider_id, user.external_id) for user in users)


async def person(context: RequestContext, person_id: str) -> PersonRecord | None:
    """Return one person, if the request may see an account of theirs.

    Raises:
        Forbidden: The scope is missing, or the request acts for users.
        StorageError: The database could not answer.
    """
    _read(context)
    return (await find_persons(context, [person_id])).get(person_id)


async def match_page(
    context: RequestContext,
    *,
    wanted: MatchFilter,
    descending: bool,
    first: int,
    after: str | None,
    wants_total: bool,
) -> PeoplePage:
    """Return a page of what runs suggested, by score.

    Raises:
        RequestRefused: The scope is missing, or an argument is wrong.
        ProviderNotFound: The filter names a provider that does not exist.
        StorageError: The database could not answer.
    """
    people = _read(context)
    first = checked_first(first, context.limits.max_page_size)
    provider_ids = await _provider_ids(context, wanted.provider_ids)
    least, most = _checked_scores(wanted.least_score, wanted.most_score)
    statuses = (MatchStatus.SUGGESTED,) if wanted.statuses is None else tuple(wanted.statuses)
    chosen = SuggestionFilter(
        provider_ids=provider_ids,
        statuses=statuses,
        account=wanted.user,
        least_score=least,
        most_score=most,
    )
    query = [sorted(provider_ids), sorted(statuses), wanted.user, least, most, descending]
    sealer = _sealer(context, ["matches", *query])
    rows = await people.matches.list_suggestions(
        chosen,
        descending=descending,
        after=None if after is None else _opened_match(sealer, after),
        limit=first + 1,
    )
    records = await _match_records(people, rows[:first])
    return PeoplePage(
        [
            (sealer.seal([row.score, *row.pair[0], *row.pair[1]]), records[row.pair])
            for row in rows[:first]
            if row.pair in records
        ],
        len(rows) > first,
        await people.matches.count_suggestions(chosen) if wants_total else None,
    )


def matches_of(
    context: RequestContext, users: Sequence[User], *, first: int, least_score: float | None
) -> Soon[Outcomes[Sequence[MatchRecord]]]:
    """Return who at other providers may be the same person as each user, best first, in order.

    Without what was rejected; none at all where no import has seen the user.

    Raises:
        RequestRefused: The scope is missing, or an argument is wrong.
    """
    _read(context)
    least, _ = _checked_scores(least_score, None)
    limit = _checked_matches(first)
    return context.matches_of.load_each(
        (user.provider_id, user.external_id, limit, least) for user in users
    )


async def match_user(
    context: RequestContext,
    traits: UserTraits,
    *,
    provider_ids: Sequence[str] | None,
    first: int,
    least_score: float | None,
) -> Sequence[MatchRecord]:
    """Return who may be somebody of whom some things are known, the most probable first.

    Raises:
        RequestRefused: The scope is missing, or an argument is wrong.
        ProviderNotFound: One of the providers does not exist.
        StorageError: The database could not answer.
    """
    people = _read(context)
    first = _checked_matches(first)
    least = 0.0 if least_score is None else _checked_scores(least_score, None)[0]
    asked = _account_of_traits(traits)
    chosen = await _provider_ids(context, provider_ids)
    found = await people.look_up(asked, provider_ids=chosen, limit=first)
    users = await find_users(people, [other for other, _, _ in found])
    return [
        _looked_up(each, users[other], version)
        for other, each, version in found
        if other in users and each.score >= least
    ]


async def find_run(context: RequestContext, run_id: str) -> MatchRun | None:
    """Return a run, if the request sees all of its providers.

    Raises:
        Forbidden: The scope is missing, or the request acts for users.
        StorageError: The database could not answer.
    """
    people = _read(context)
    number = _number(run_id)
    run = None if number is None else await people.matches.find_run(number)
    visible = await context.visible_providers()
    return run if run is not None and visible.keys() >= {*run.provider_ids} else None


async def list_runs(context: RequestContext, *, first: int) -> Sequence[MatchRun]:
    """Return the latest runs of providers that the request sees, the latest first.

    Raises:
        RequestRefused: The scope is missing, or an argument is wrong.
        StorageError: The database could not answer.
    """
    people = _read(context)
    first = checked_first(first, MAX_MATCHES)
    visible = await context.visible_providers()
    runs = await people.matches.list_runs(limit=MAX_MATCHES)
    return [run for run in runs if visible.keys() >= {*run.provider_ids}][:first]


async def watch_run(context: RequestContext, run_id: str) -> AsyncGenerator[MatchRun, None]:
    """Yield a run, and again whenever it has got on, until it has ended.

    Raises:
        RequestRefused: The scope is missing, or there is no such run.
        StorageError: The database could not answer.
    """
    run = await find_run(context, run_id)
    if run is None:
        raise NotFound("There is no such run")
    people = _people(context)
    seen: MatchRun | None = None
    while run is not None:
        if run != seen:
            yield run
        if run.ended:
            return
        seen = run
        await asyncio.sleep(_WATCH_SECONDS)
        run = await people.matches.find_run(run.id)


async def decision_page(
    context: RequestContext, *, user: AccountKey | None, first: int, after: str | None
) -> PeoplePage:
    """Return a page of decisions about accounts that the request sees, the latest first.

    Raises:
        RequestRefused: The scope is missing, or an argument is wrong.
        StorageError: The database could not answer.
    """
    people = _read(context)
    first = checked_first(first, context.limits.max_page_size)
    sealer = _sealer(context, ["decisions", user])
    before = None if after is None else sealer.open(after)
    if before is not None and not isinstance(before, int):
        raise BadInput("after", "This is not a cursor of decisions")
    visible = await context.visible_providers()
    if user is not None and user[0] not in visible:
        return PeoplePage([], has_next=False)
    found = await people.store.list_decisions(
        before=before,
        accounts=None if user is None else [user],
        provider_ids=[*visible],
        limit=first + 1,
    )
    return PeoplePage(
        [(sealer.seal(row.id), _visible_decision(row, visible)) for row in found[:first]],
        len(found) > first,
    )


# What callers may decide.


async def start_run(
    context: RequestContext,
    *,
    provider_ids: Sequence[str] | None,
    expected_overlap: float | None,
    link_above: float | None,
) -> tuple[MatchRun, bool] | PeopleRefusal:
    """Return the run of these providers that is under way, or a new one, and which it is.

    Args:
        context: Of the request.
        provider_ids: Whose accounts are compared; ``None`` for all that the request sees.
        expected_overlap: Which part of the smaller one is thought to be at the other too.
        link_above: Pairs at least this probable are linked unasked; ``None`` for what is usual.

    Raises:
        RequestRefused: A scope is missing, or an argument is wrong.
        StorageError: The database could not do it.
    """
    people = _write(context)
    visible = await context.visible_providers()
    chosen = [*dict.fromkeys(visible if provider_ids is None else provider_ids)]
    missing = [provider_id for provider_id in chosen if provider_id not in visible]
    if missing:
        return Unknown(field="providerIds", message=f"No provider {missing[0]} is registered")
    if len(chosen) < 2:  # noqa: PLR2004 - it takes two to compare
        raise BadInput("providerIds", "Two providers are needed, to find who of one is at another")
    for name, value in (("expectedOverlap", expected_overlap), ("linkAbove", link_above)):
        if value is not None and not 0 <= value <= 1:
            raise BadInput(name, f"{value} is not between 0 and 1")
    order = MatchOrder(
        provider_ids=tuple(provider_id for provider_id in visible if provider_id in chosen),
        expected_overlap=expected_overlap,
        link_above=people.settings.link_above if link_above is None else link_above,
    )
    return await people.matches.request(order, requested_by=context.access.key_id)


async def decide(
    context: RequestContext, pair: Pair, *, same: bool, model_version: str | None
) -> Outcome:
    """Confirm or reject a pair.

    Raises:
        Forbidden: A scope is missing, or the request acts for users.
        StorageError: The database could not do it; nothing was changed.
    """
    people = _write(context)
    missing = await _unseen(context, pair, field="matchId")
    if missing is not None:
        return missing
    change = people.store.confirm if same else people.store.reject
    found = await change(pair, decided_by=context.access.key_id, model_version=model_version)
    return await _outcome(context, found)


async def link(context: RequestContext, accounts: Sequence[AccountKey]) -> Outcome:
    """Make accounts one person's.

    Raises:
        RequestRefused: A scope is missing, or they are too few or too many.
        StorageError: The database could not do it; nothing was changed.
    """
    people = _write(context)
    named = [*dict.fromkeys(accounts)]
    if not 2 <= len(named) <= MAX_LINKED:  # noqa: PLR2004 - it takes two to be one
        raise BadInput("userIds", f"2 to {MAX_LINKED} different users are needed")
    missing = await _unseen(context, named, field="userIds")
    if missing is not None:
        return missing
    found = await people.store.link(named, decided_by=context.access.key_id)
    return await _outcome(context, found)


async def unlink(context: RequestContext, account: AccountKey, *, keep_apart: bool) -> Outcome:
    """Take an account out of its person.

    Raises:
        Forbidden: A scope is missing, or the request acts for users.
        StorageError: The database could not do it; nothing was changed.
    """
    people = _write(context)
    missing = await _unseen(context, [account], field="userId")
    if missing is not None:
        return missing
    found = await people.store.unlink(
        account, decided_by=context.access.key_id, keep_apart=keep_apart
    )
    return await _outcome(context, found)


async def merge(context: RequestContext, into: str, others: Sequence[str]) -> Outcome:
    """Make persons one.

    Raises:
        RequestRefused: A scope is missing, or they are too few or too many.
        StorageError: The database could not do it; nothing was changed.
    """
    people = _write(context)
    if not 1 <= len(others) <= MAX_MERGED:
        raise BadInput("fromIds", f"1 to {MAX_MERGED} people are needed")
    seen = await find_persons(context, [into, *others])
    for person_id, name in ((into, "intoId"), *((other, "fromIds") for other in others)):
        if person_id not in seen:
            return Unknown(field=name, message="There is no such person")
    found = await people.store.merge(
        into,
        [other for other in dict.fromkeys(others) if other != into],
        decided_by=context.access.key_id,
    )
    return await _outcome(context, found)


async def undo(context: RequestContext, decision_id: str) -> Outcome:
    """Put everything back as it was before a decision.

    Raises:
        Forbidden: A scope is missing, or the request acts for users.
        StorageError: The database could not do it; nothing was changed.
    """
    people = _write(context)
    number = _number(decision_id)
    decision = None if number is None else await people.store.find_decision(number)
    visible = await context.visible_providers()
    if decision is None or not visible.keys() >= {key[0] for key in decision.accounts}:
        return Unknown(field="decisionId", message="There is no such decision")
    found = await people.store.undo(decision.id, decided_by=context.access.key_id)
    return await _outcome(context, found)


async def find_users(people: People, accounts: Collection[AccountKey]) -> Mapping[AccountKey, User]:
    """Return accounts as the last imports found them; those that are gone are left out.

    Raises:
        StorageError: The database could not answer.
    """
    if not accounts:
        return {}
    rows = await people.imports.find_rows(RosterKind.USERS, {*accounts})
    runs = await people.imports.list_last_applied({key[0] for key in rows})
    users: dict[AccountKey, User] = {}
    for key, row in rows.items():
        record = record_of(RosterKind.USERS, row.record, at=runs.get(key[0], _EPOCH))
        if isinstance(record, User):
            users[key] = record
    return users


async def unmatched(context: RequestContext, users: Sequence[User]) -> Sequence[User]:
    """Return those of some users who are nobody's yet.

    Raises:
        Forbidden: The scope is missing, or the request acts for users.
        StorageError: The database could not answer.
    """
    people = _read(context)
    keys = [(user.provider_id, user.external_id) for user in users]
    found = await people.store.find_persons_of(keys)
    return [user for user, key in zip(users, keys, strict=True) if key not in found]


_EPOCH: Final = datetime.fromtimestamp(0, UTC)


def _people(context: RequestContext) -> People:
    if context.people is None:
        raise NotSupported("There are no people here")
    return context.people


def _read(context: RequestContext) -> People:
    context.require(Scope.READ_USERS)
    if context.acts_for_users:
        raise Forbidden(_SERVICE_ONLY)
    return _people(context)


def _write(context: RequestContext) -> People:
    context.require(Scope.WRITE_PEOPLE)
    return _read(context)


async def _provider_ids(context: RequestContext, named: Sequence[str] | None) -> Sequence[str]:
    visible = await context.visible_providers()
    for provider_id in named or ():
        if provider_id not in visible:
            raise ProviderNotFound("No such provider is registered", provider_id=provider_id)
    return [*visible] if named is None else [*dict.fromkeys(named)]


async def _unseen(
    context: RequestContext, accounts: Iterable[AccountKey], *, field: str
) -> Unknown | None:
    visible = await context.visible_providers()
    if all(provider_id in visible for provider_id, _ in accounts):
        return None
    return Unknown(field=field, message="No such provider is registered")


async def _outcome(context: RequestContext, found: Decided | PeopleRefusal) -> Outcome:
    visible = await context.visible_providers()
    if isinstance(found, ProviderConflict) and found.provider_id not in visible:
        return ProviderConflict(provider_id="", accounts=())
    if not isinstance(found, Decided):
        return found
    context.forget_loaded()
    seen = {} if found.person_id is None else await find_persons(context, [found.person_id])
    decision = found.decision
    return DecisionOutcome(
        decision=None if decision is None else _visible_decision(decision, visible),
        person=seen.get(found.person_id or ""),
    )


def _visible_decision(decision: Decision, visible: Collection[str]) -> Decision:
    accounts = tuple(key for key in decision.accounts if key[0] in visible)
    return replace(decision, accounts=accounts)


async def _match_records(
    people: People, rows: Sequence[StoredSuggestion]
) -> Mapping[Pair, MatchRecord]:
    users = await find_users(people, [key for row in rows for key in row.pair])
    records: dict[Pair, MatchRecord] = {}
    for row in rows:
        left, right = (users.get(key) for key in row.pair)
        if left is None or right is None:
            continue  # gone with an import a moment ago
        rivals = _competitors.decode(row.competitors)
        records[row.pair] = MatchRecord(
            pair=row.pair,
            left=left,
            right=right,
            score=row.score,
            weight=row.weight,
            prior=row.prior,
            status=row.status,
            evidence=_evidence.decode(row.evidence),
            competitors=rivals,
            rivals=len(rivals),
            model_version=row.model_version,
            decision_id=row.decision_id,
            decided_by=row.decided_by,
            decided_at=row.decided_at,
        )
    return records


def _fitted(stored: StoredModel) -> Model | None:
    """Return weights that were fitted; ``None`` for none, and for those of another release."""
    if stored.body is None:
        return None
    model = _model.decode(stored.body)
    return model if len(model.weights) == len(matching.SHIPPED.weights) else None


def _looked_up(
    found: matching.Suggestion,
    right: User,
    version: str,
    *,
    left: User | None = None,
    status: MatchStatus = MatchStatus.SUGGESTED,
) -> MatchRecord:
    other = (right.provider_id, right.external_id)
    return MatchRecord(
        pair=None if left is None else pair_of((left.provider_id, left.external_id), other),
        left=left,
        right=right,
        score=found.score,
        weight=found.weight,
        prior=found.prior,
        status=status,
        evidence=found.evidence,
        competitors=(),
        rivals=len(found.competitors),
        model_version=version,
    )


def _prepared_rows(
    changed: Sequence[tuple[bytes, tuple[str, ...], bytes]],
) -> Sequence[tuple[StoredAccount, tuple[int, ...]]]:
    accounts, digests = [], []
    for body, groups, digest in changed:
        user = record_of(RosterKind.USERS, body, at=_EPOCH)
        if isinstance(user, User):
            accounts.append(matching.prepare(_account_of(user, groups)))
            digests.append(digest)
    return [
        (
            StoredAccount(
                external_id=prepared.external_id,
                prepared=msgspec.msgpack.encode(prepared),
                version=matching.VERSION,
                sha256=digest,
            ),
            keys,
        )
        for prepared, digest, keys in zip(accounts, digests, _keys_of(accounts), strict=True)
    ]


def _keys_of(accounts: Sequence[Prepared]) -> Sequence[tuple[int, ...]]:
    """Return the blocking keys of many accounts at once, a hundredth of the time one by one."""
    if not accounts:
        return ()
    columns = Columns.of(accounts, Vocabulary(), counted=False)
    rows = keys_of(columns, np.arange(len(accounts), dtype=np.int64)).view(np.int64)
    return [tuple(sorted({key for key in row if key})) for row in rows.tolist()]


def _account_of(user: User, groups: tuple[str, ...]) -> Account:
    return Account(
        provider_id=user.provider_id,
        external_id=user.external_id,
        display_name=user.display_name or None,
        given_name=user.given_name,
        middle_name=user.middle_name,
        family_name=user.family_name,
        username=user.username,
        email=user.email,
        identifiers=tuple(one.value for one in user.identifiers if one.type in _COMMON_IDS),
        birth_year=user.birth_year,
        gender=user.gender,
        roles=tuple(role.value.value for role in user.roles),
        time_zone=user.time_zone,
        groups=groups,
    )


def _account_of_traits(traits: UserTraits) -> Prepared:
    named = (traits.display_name, traits.given_name, traits.family_name, traits.username)
    if not any((*named, traits.email, *traits.identifiers)):
        raise BadInput("user", "A name, a username, an e-mail address or an identifier is needed")
    return matching.prepare(
        Account(
            provider_id="",
            external_id="",
            display_name=traits.display_name,
            given_name=traits.given_name,
            middle_name=traits.middle_name,
            family_name=traits.family_name,
            username=traits.username,
            email=traits.email,
            identifiers=traits.identifiers,
            birth_year=traits.birth_year,
            gender=traits.gender,
            roles=traits.roles,
            time_zone=traits.time_zone,
        )
    )


async def _pages(
    pools: _Pools, first: Sequence[Found], others: AsyncIterator[Answer]
) -> AsyncIterator[Sequence[Suggested]]:
    """Yield what a comparison found, page by page, as it is kept."""
    yield [_suggested(each, pools) for each in first]
    async for answer in others:
        if isinstance(answer, list):
            yield [_suggested(each, pools) for each in answer]


def _suggested(found: Found, pools: _Pools) -> Suggested:
    return Suggested(
        pair=pools.pair(found.left, found.right),
        score=found.score,
        weight=found.weight,
        prior=found.prior,
        bits=found.bits,
        evidence=found.evidence,
        competitors=msgspec.msgpack.encode([pools.pair(*rival) for rival in found.competitors]),
    )


def _positions(pool: Sequence[Prepared]) -> Mapping[AccountKey, int]:
    return {(one.provider_id, one.external_id): at for at, one in enumerate(pool)}


def _by_providers(
    verdicts: Mapping[Pair, Verdict],
) -> Mapping[tuple[str, str], Mapping[Pair, bool]]:
    found: dict[tuple[str, str], dict[Pair, bool]] = {}
    for pair, verdict in verdicts.items():
        here = found.setdefault((pair[0][0], pair[1][0]), {})
        here[pair] = verdict is Verdict.CONFIRMED
    return found


def _notes(counts: Mapping[str, int]) -> Iterable[str]:
    for provider_id, count in counts.items():
        if not count:
            yield (
                f"Provider {provider_id} has no accounts to compare: import it first, by"
                " refreshProvider or `learning-gateway refresh`"
            )
        if count > LARGE_POOL:
            yield (
                f"Provider {provider_id} has {count} accounts. In so large a pool names alone"
                " do not identify: trust what shares an identifier, an e-mail address, a username"
                " or classes, and match smaller sets of providers where you can"
            )


def _still(run: MatchRun | None) -> MatchRun:
    """Return the run, unless another gateway has it."""
    if run is None:
        raise _TakenOver
    return run


def _sealer(context: RequestContext, query: Sequence[object]) -> CursorSealer:
    return CursorSealer(context.limits.cursor_key, json.dumps([*query, _CURSOR_FORMAT]))


def _opened_match(sealer: CursorSealer, after: str) -> tuple[float, Pair]:
    match sealer.open(after):
        case [int() | float() as score, str() as a, str() as b, str() as c, str() as d]:
            return float(score), ((a, b), (c, d))
        case _:
            raise BadInput("after", "This is not a cursor of matches")


def _checked_scores(least: float | None, most: float | None) -> tuple[float, float]:
    for name, value in (("minScore", least), ("maxScore", most)):
        if value is not None and not 0 <= value <= 1:
            raise BadInput(name, f"{value} is not between 0 and 1")
    return SUGGESTED_FROM if least is None else least, 1.0 if most is None else most


def _checked_matches(first: int) -> int:
    if not 1 <= first <= MAX_MATCHES:
        raise BadInput("first", f"{first} is not between 1 and {MAX_MATCHES}")
    return first


def _number(text: str) -> int | None:
    """Return the number of a run or a decision; ``None`` for what is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 18 else None  # noqa: PLR2004 - fits any database
