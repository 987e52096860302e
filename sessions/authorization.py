"""One session's grant: how it is obtained, shared, kept alive, renewed and replaced.

Callers use a snapshot in memory, without a lock and without the database. Only a transition
(logging in, keeping alive, refreshing) takes the lease of ``storage.leases``, so however many
callers, tasks and gateways lose a grant at once, one of them logs in and the others take over
what it stored. A caller that gives up waiting cancels nothing.

A grant that holds what its successor is made from (a refresh token) is *renewed*: when it is used
and nearly over, while callers go on with it, or when it ran out or was refused, while they wait.
It is never renewed by the clock, so users who are away cost nothing. Where the provider limits the
rate of grants, renewals stand in one line for each provider.

What a failed login means is decided here, once:

- refused credentials: nothing is sent again until the provider's address or credentials change;
- anything else: nothing is sent until a growing pause is over; meanwhile callers get the error
  at once.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import random
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager, suppress
from contextvars import Context
from dataclasses import dataclass, field
from math import ceil, inf
from typing import Any, Final, Protocol, Self, TypeVar

import msgspec
import structlog

from sessions.base import (
    Exports,
    Grant,
    NewGrant,
    Platform,
    ProviderSession,
    Subject,
    SubjectKind,
    TokenRotation,
)
from sessions.errors import (
    NotSupported,
    ProviderAddressRefused,
    ProviderAuthFailed,
    ProviderBadResponse,
    ProviderError,
    ProviderForbidden,
    ProviderNotFound,
    ProviderRateLimited,
    ProviderTimeout,
    ProviderUnavailable,
    ReauthRequired,
    SessionLost,
    TooManyCallsWaiting,
)
from sessions.http import ProviderHttp, seconds_to_deadline
from sessions.metering import unmetered
from sessions.pacing import GRANTS
from sessions.resilience import (
    BreakerState,
    RefusalReason,
    ResilienceObserver,
    ahead_of_line,
)
from sessions.tracing import Span, WorkSpan, current_span, link_to, working
from storage.credentials import Secret
from storage.errors import StorageError, StorageUnavailable
from storage.leases import (
    Claim,
    LeaseStore,
    LoginAllowance,
    Outcome,
    Problem,
    Prolongation,
    StoredSession,
    Transition,
)
from storage.providers import ProviderStore
from storage.records import Provider, SessionState

_LATE_SHARE: Final = 0.5
_LEASE_SHARE: Final = 0.7
_PAUSE_SHARE: Final = 0.25
_POLL_SECONDS: Final = (0.03, 0.15)
_REFUSAL_MEMORY_SECONDS: Final = 1.0
_PAUSE_MEMORY_SECONDS: Final = 5.0
_LOG_OUT_SECONDS: Final = 5.0
_EXPIRY_MARGIN_SECONDS: Final = 60.0
_PATIENCE_OF_COMMIT_SECONDS: Final = 30.0
_LONGEST_LINE_SECONDS: Final = 900.0
_LOOK_SECONDS: Final = 1.0
_RENEWAL_RETRY_SECONDS: Final = 30.0
_ERRORS_BY_CODE: Final[Mapping[str, type[ProviderError]]] = {
    error.code: error
    for error in (
        ProviderUnavailable,
        ProviderTimeout,
        ProviderRateLimited,
        ProviderAuthFailed,
        ReauthRequired,
        ProviderForbidden,
        ProviderBadResponse,
        ProviderAddressRefused,
        NotSupported,
    )
}
_random = random.SystemRandom()
_log = structlog.get_logger(__name__)

T = TypeVar("T")


class SessionObserver(ResilienceObserver, Protocol):
    """Hears of every transition, and of failing providers, for metrics.

    Its methods must be quick and must not raise.
    """

    def on_transition(
        self, provider_id: str, transition: Transition, outcome: Outcome, *, seconds: float
    ) -> None:
        """Take note of a transition that ended, and how long it took."""

    def on_heartbeat(self, provider_id: str, *, late_seconds: float) -> None:
        """Take note of a heartbeat or refresh that began, and how long after it was due."""


class SilentObserver:
    """Takes note of nothing."""

    def on_transition(
        self, provider_id: str, transition: Transition, outcome: Outcome, *, seconds: float
    ) -> None:
        """Do nothing."""

    def on_heartbeat(self, provider_id: str, *, late_seconds: float) -> None:
        """Do nothing."""

    def on_breaker(
        self, provider_id: str, state: BreakerState, *, cause: ProviderError | None
    ) -> None:
        """Do nothing."""

    def on_refusal(self, provider_id: str, reason: RefusalReason) -> None:
        """Do nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSettings:
    """Durations of leases, logins, pauses and scheduled work.

    Attributes:
        lease_seconds: After a crash of its holder a session's transition can be done by another
            gateway this much later.
        transition_seconds: Limit of one login, heartbeat or refresh; at most 70 % of the lease.
        patience_seconds: How long a caller waits for a login another gateway is doing.
        logins: How many logins one session may cost within how long, over all gateways. Logins
            that failed for a reason that may pass do not count.
        backoff_seconds: Upper bound of the first pause after a failure; doubles every time.
        longest_backoff_seconds: Where the doubling ends.
        heartbeat_seconds: Instead of the platform's own interval, for platforms that have one.
        check_seconds: Limit of a check of a provider, its login included.
        tick_seconds: How often work that became due is looked for.
        look_seconds: How often providers changed by another gateway are looked for.
        workers: Heartbeats and refreshes at once in this process.
        export_workers: Timed exports at once in this process.
        export_lease_seconds: A running export renews its lease three times in this span.
        export_limit_seconds: Limit of one export.
        export_patience_seconds: How long a caller waits for the very first result.
        shutdown_seconds: How long work in flight may take to end at shutdown.
        max_subjects: How many subjects of one provider are kept in memory.

    Raises:
        ValueError: A login may take longer than 70 % of the lease.
    """

    lease_seconds: float = 15
    transition_seconds: float = 10
    patience_seconds: float = 30
    logins: LoginAllowance = field(
        default_factory=lambda: LoginAllowance(count=5, window_seconds=600)
    )
    backoff_seconds: float = 1
    longest_backoff_seconds: float = 300
    heartbeat_seconds: float | None = None
    check_seconds: float = 30
    tick_seconds: float = 0.5
    look_seconds: float = 5
    workers: int = 100
    export_workers: int = 4
    export_lease_seconds: float = 30
    export_limit_seconds: float = 900
    export_patience_seconds: float = 20
    shutdown_seconds: float = 20
    max_subjects: int = 20_000

    def __post_init__(self) -> None:
        if self.transition_seconds > _LEASE_SHARE * self.lease_seconds:
            raise ValueError(
                f"A transition may take {self.transition_seconds:g} seconds, which is more than "
                f"70 % of the lease of {self.lease_seconds:g} seconds: make the lease longer"
            )

    def backoff(self, failures: int, *, at_least: float | None = None) -> float:
        """Return how long to pause after this many failures in a row, at random below a bound."""
        bound = min(self.backoff_seconds * 2 ** min(failures - 1, 30), self.longest_backoff_seconds)
        return max(_random.uniform(0, bound), at_least or 0)


class Outage:
    """Whether a provider is out of reach, logged once when it starts and once when it ends."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._since: float | None = None

    @property
    def began_at(self) -> float | None:
        """``time.monotonic()`` of its start; ``None`` while the provider is in reach."""
        return self._since

    def note_failure(self, error: ProviderError) -> None:
        """Begin one, unless it has begun, or the gateway itself was too busy to ask."""
        if self._since is None and not isinstance(error, TooManyCallsWaiting):
            self._since = time.monotonic()
            _log.warning(
                "provider_outage_started",
                provider_id=self._provider.id,
                platform=self._provider.platform,
                code=error.code,
                problem=error.message,
            )

    def note_success(self) -> None:
        """End it, if there is one."""
        if self._since is not None:
            _log.info(
                "provider_outage_ended",
                provider_id=self._provider.id,
                platform=self._provider.platform,
                seconds=round(time.monotonic() - self._since, 1),
            )
            self._since = None


def terms_of(
    provider: Provider,
    credentials: Secret[Mapping[str, str]],
    *,
    user_terms: Collection[str] | None = None,
) -> str:
    """Return a digest of what a login depends on: the address and the credentials.

    A grant is used, and a refusal believed, only on the terms it was obtained on. So a grant never
    goes to another address, and new credentials are tried, whoever changed them.

    Args:
        provider: As registered.
        credentials: All that are stored.
        user_terms: For a user's grant: the names of the only credentials it depends on.
    """
    values = credentials.reveal()
    if user_terms is None:
        content: list[object] = [
            provider.platform,
            provider.base_url,
            provider.account_id,
            sorted(provider.options.items()),
            sorted(values.items()),
        ]
    else:
        content = [provider.platform, provider.base_url, [values.get(name) for name in user_terms]]
    return hashlib.sha256(msgspec.json.encode(content)).hexdigest()


@contextmanager
def _in_transition() -> Iterator[None]:
    """Make calls for everybody: on no caller's account, and before all callers' own."""
    with unmetered(), ahead_of_line():
        yield


async def log_out_quietly(session: ProviderSession, grant: NewGrant) -> None:
    """End a grant nobody will use, if it can be done; it expires by itself otherwise."""
    with _in_transition(), suppress(ProviderError, SessionLost, TimeoutError):
        async with asyncio.timeout(_LOG_OUT_SECONDS):
            await session.log_out(grant)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Refusal:
    """Why no grant can be had for now, and until when that is believed without asking."""

    error: ProviderError
    believed_until: float
    retry_at: float | None

    def raised(self) -> ProviderError:
        # A copy for every caller: a shared exception would gather all their tracebacks.
        error = copy.copy(self.error)
        if self.retry_at is not None:
            error.retry_after_seconds = max(1, ceil(self.retry_at - time.monotonic()))
        return error


class SharedAuthorization:
    """The grant of one (provider, subject), shared by every caller in this process.

    Args:
        provider: The installation, as registered when this was made.
        platform: How to talk to it.
        subject: On whose behalf.
        terms: See ``terms_of``.
        http: HTTP to that installation.
        exports: Handed to the session.
        providers: Where credentials come from, and word that the provider has changed.
        leases: The session's row.
        settings: Durations.
        observer: Hears of transitions.
        outage: Hears of failures and successes.
        on_outdated: Called when the provider turns out to have been changed or removed.
    """

    session: ProviderSession
    """What is lent to callers."""

    def __init__(
        self,
        provider: Provider,
        *,
        platform: Platform,
        subject: Subject,
        terms: str,
        http: ProviderHttp,
        exports: Exports,
        providers: ProviderStore,
        leases: LeaseStore,
        settings: SessionSettings,
        observer: SessionObserver,
        outage: Outage,
        on_outdated: Callable[[], None],
    ) -> None:
        self.subject = str(subject)
        self.session = platform.session(
            provider, http=http, authorization=self, exports=exports, subject=subject
        )
        self._is_user = subject.kind is SubjectKind.USER
        self._http = http
        self._provider = provider
        self._platform = platform
        self._terms = terms
        self._providers = providers
        self._leases = leases
        self._settings = settings
        self._observer = observer
        self._outage = outage
        self._on_outdated = on_outdated
        self._grant: Grant | None = None
        self._holds_until = inf
        self._renew_at = inf
        self._renewed_version = 0
        self._served_at: float | None = None
        self._lost_version = 0
        self._refusal: _Refusal | None = None
        self._flight: asyncio.Task[Grant] | None = None
        self._span: Span | None = None  # of the flight's transition, once there is one

    # What sessions and their callers use.

    async def current(self) -> Grant:
        """Return the grant to use now; see ``Authorization``."""
        grant = self._grant
        now = time.monotonic()
        if grant is not None and now < self._holds_until:
            if now >= self._renew_at:
                self._renew_ahead(grant)
            return grant
        return await self._shared()

    async def replace(self, lost: Grant, *, again: bool = False) -> Grant:
        """Return a grant newer than the lost one; see ``Authorization``.

        One that was renewed because its predecessor was refused, and is refused at once as well,
        is not renewed again: the provider does not want this user's grants any more.
        """
        if again and lost.version == self._renewed_version:
            await self._give_up(lost.version)
        self._note_lost(lost.version)
        return await self.current()

    @property
    def busy(self) -> bool:
        """Whether a transition is under way or waiting in line."""
        return self._flight is not None

    # What the session manager uses.

    async def keep_alive(self, claim: Claim) -> Prolongation | None:
        """Prolong or refresh the claimed session's grant, or replace it when it is lost.

        Returns:
            What is left to be stored, with the lease still held, when the grant is alive and
            unchanged; ``None`` when everything is done.

        Raises:
            StorageError: The outcome could not be stored; the lease runs out by itself.
        """
        stored = claim.seen
        if stored.grant is None or stored.terms != self._terms:
            await self._leases.lose_session(claim)
            return None
        if self._is_late(claim):
            self._observe(claim, Outcome.LATE)
            await self._leases.release_session(claim)
            return None
        if stored.version <= self._lost_version:  # a caller found out and waits for the lease
            await self._leases.release_session(claim)
            return None
        grant = self._hold(stored)
        try:
            return await self._traced(claim, self._kept_alive(claim, grant))
        except SessionLost:
            await self._leases.lose_session(claim)
            self._observe(claim, Outcome.LOST)
        with suppress(ProviderError):  # noted where it happened
            await self.replace(grant)
        return None

    async def recover(self) -> None:
        """Log in now that a pause is over, whatever is held in memory.

        Raises:
            ProviderError: It failed again; the next pause has begun.
            StorageError: The database could not answer.
        """
        self._refusal = None
        await self._shared()

    async def adopt(self, new: NewGrant) -> None:
        """Store a grant that was obtained otherwise, in place of any there is.

        A user's earlier grant, which the provider may count as one more, is ended.

        Raises:
            ProviderNotFound: The provider is not registered any more.
            ProviderTimeout: Another gateway kept the session busy; the grant is ended.
            StorageError: It could not be stored.
        """
        until = time.monotonic() + self._settings.patience_seconds
        while time.monotonic() < until:
            stored = await self._made()
            claim = await self._leases.claim_session(
                stored, Transition.ADOPT, lease_seconds=self._settings.lease_seconds
            )
            if claim is not None and await self._committed(claim, new) is not None:
                if self._is_user and stored.grant is not None and stored.terms == self._terms:
                    await log_out_quietly(self.session, NewGrant(secret=stored.grant))
                return
            await _pause()
        await log_out_quietly(self.session, new)
        raise self._busy()

    async def revoke(self) -> None:
        """End the grant, here and at the provider; the next use logs in again.

        Raises:
            StorageError: It could not be removed; then it is not ended either.
        """
        stored = await self._leases.find_session(self._provider.id, self.subject)
        await self._leases.reset_sessions(self._provider.id, self.subject)
        self._refusal = None
        if stored is None:
            return
        self._note_lost(stored.version)
        if stored.grant is not None and stored.terms == self._terms:
            await log_out_quietly(self.session, await self._ended_by(stored, stored.grant))

    async def _ended_by(self, stored: StoredSession, grant: Secret[Mapping[str, str]]) -> NewGrant:
        """Return what a grant can be ended with, which one that ran out cannot itself."""
        ran_out = stored.seconds_to_expiry is not None and stored.seconds_to_expiry <= 0
        if ran_out and self._renewable(grant):
            with _in_transition(), suppress(ProviderError, SessionLost, TimeoutError):
                async with asyncio.timeout(self._settings.transition_seconds):
                    return await self.session.renew(
                        Grant(version=stored.version, secret=grant),
                        await self._providers.credentials(self._provider.id),
                    )
        return NewGrant(secret=grant)

    async def settle(self, *, within_seconds: float) -> None:
        """Wait for a login in flight to end; cancel it if it takes too long."""
        flight = self._flight
        if flight is None:
            return
        await asyncio.wait({flight}, timeout=within_seconds)
        if flight.cancel():
            await asyncio.wait({flight})

    # One flight for all callers.

    async def _shared(self) -> Grant:
        refusal = self._refusal
        if refusal is not None and time.monotonic() < refusal.believed_until:
            raise refusal.raised()
        flight = self._flight or self._launch(self._obtain())
        while not flight.done():
            await asyncio.wait({flight}, timeout=self._patience_in_line())
        link_to(self._span)
        if flight.cancelled():
            raise ProviderUnavailable("The gateway is shutting down", provider_id=self._provider.id)
        error = flight.exception()
        if isinstance(error, ProviderError | StorageError):
            raise copy.copy(error) from error
        return flight.result()

    def _launch(self, work: Coroutine[Any, Any, Grant]) -> asyncio.Task[Grant]:
        # A context of its own: it works for all callers, not under the first one's deadline and
        # not for its account.
        self._span = None
        self._flight = asyncio.create_task(work, context=Context())
        self._flight.add_done_callback(self._landed)
        return self._flight

    def _patience_in_line(self) -> float:
        """Return how long a caller may look on while the flight goes on, or stands in line.

        Raises:
            ProviderTimeout: The caller's deadline is over; the flight goes on for others.
            ProviderRateLimited: It will be there for longer than a caller's patience.
        """
        left = seconds_to_deadline()
        if left is not None and left <= 0:
            raise ProviderTimeout(
                "The provider did not grant a session in time", provider_id=self._provider.id
            )
        look_seconds = _LOOK_SECONDS if left is None else min(_LOOK_SECONDS, left)
        if self._served_at is None:
            return look_seconds
        wait_seconds = self._served_at - time.monotonic()
        if wait_seconds > self._settings.patience_seconds:
            raise ProviderRateLimited(
                "The provider limits how many users' authorisations are renewed at once, and"
                " others are in line before this one",
                provider_id=self._provider.id,
                retry_after_seconds=ceil(wait_seconds),
            )
        return look_seconds

    def _landed(self, flight: asyncio.Task[Grant]) -> None:
        self._flight = None
        self._served_at = None
        if not flight.cancelled():
            flight.exception()  # seen, even when every caller has given up

    async def _obtain(self, *, ahead_of: Grant | None = None) -> Grant:
        """Return a grant that can be used; with ``ahead_of``, one that is newer than that."""
        until = time.monotonic() + self._settings.patience_seconds
        while True:
            await self._require_registration()
            stored = await self._read()
            if self._is_usable(stored, newer_than=ahead_of):
                return self._hold(stored)
            await self._raise_known_refusal(stored)
            if stored.grant is not None and self._is_ours(stored, stored.grant):
                grant = await self._renewed_in_turn(stored, ahead_of=ahead_of)
                until = max(until, time.monotonic() + self._settings.transition_seconds)
            elif self._is_user:
                await self._give_up(stored.version)
                grant = None
            elif await self._leases.is_starting_over(self._provider.id):
                grant = None  # the one it was checked with is about to be there
            else:
                claim = await self._leases.claim_session(
                    stored,
                    Transition.LOG_IN,
                    lease_seconds=self._settings.lease_seconds,
                    allowance=self._settings.logins,
                )
                grant = None if claim is None else await self._traced(claim, self._log_in(claim))
            if grant is not None:
                return grant
            if time.monotonic() > until:
                raise self._busy()
            await _pause()

    async def _read(self) -> StoredSession:
        """Return the session's row; a user's is only made when the user authorises the gateway."""
        if not self._is_user:
            return await self._made()
        stored = await self._leases.find_session(self._provider.id, self.subject)
        if stored is None:
            raise self._refused(None)
        return stored

    async def _made(self) -> StoredSession:
        stored = await self._leases.ensure_session(self._provider.id, self.subject)
        if stored is None:
            self._on_outdated()
            raise self._not_found()
        return stored

    async def _require_registration(self) -> None:
        provider = await self._providers.get(self._provider.id)
        if provider is None:
            self._on_outdated()
            raise self._not_found()
        ours = (self._provider.revision, self._provider.created_at)
        if (provider.revision, provider.created_at) != ours:
            self._on_outdated()
            raise ProviderUnavailable(
                "The provider was changed just now: ask again", provider_id=self._provider.id
            )

    def _is_ours(self, stored: StoredSession, grant: Secret[Mapping[str, str]]) -> bool:
        """Whether the stored grant is of these terms and can be renewed."""
        return stored.terms == self._terms and self._renewable(grant)

    def _renewable(self, secret: Secret[Mapping[str, str]]) -> bool:
        return self.session.can_renew(Grant(version=0, secret=secret))

    def _is_usable(self, stored: StoredSession, *, newer_than: Grant | None = None) -> bool:
        return (
            stored.grant is not None
            and stored.terms == self._terms
            and stored.version > self._lost_version
            and (newer_than is None or stored.version > newer_than.version)
            and (stored.seconds_to_expiry is None or stored.seconds_to_expiry > 0)
        )

    async def _raise_known_refusal(self, stored: StoredSession) -> None:
        problem = stored.problem
        if stored.state is SessionState.REAUTH_REQUIRED and stored.terms == self._terms:
            raise self._refused(problem)
        if problem is not None and stored.state is SessionState.BACKOFF:
            pause = stored.seconds_to_next or 0
            if pause > 0:
                raise self._pausing(self._error_of(problem), seconds=pause)
        pause = self._seconds_to_next_login(stored)
        if pause > 0 and not stored.leased:
            await self._note_login_limit(stored, pause)

    def _seconds_to_next_login(self, stored: StoredSession) -> float:
        logins = self._settings.logins
        if stored.window_age_seconds is None or stored.login_count < logins.count:
            return 0
        return logins.window_seconds - stored.window_age_seconds

    async def _note_login_limit(self, stored: StoredSession, pause: float) -> None:
        error = ProviderRateLimited(
            f"The gateway has logged in {stored.login_count} times in short order "
            "and waits before it does so again",
            provider_id=self._provider.id,
        )
        claim = await self._leases.claim_session(
            stored, Transition.LOG_IN, lease_seconds=self._settings.lease_seconds
        )
        if claim is not None:
            await self._leases.fail_session(
                claim, _problem_of(error), state=SessionState.BACKOFF, next_seconds=pause
            )
        raise self._pausing(error, seconds=pause)

    # Logging in, under the lease.

    async def _log_in(self, claim: Claim) -> Grant | None:
        """Log in and store the grant; ``None`` when somebody else took over."""
        async with _Released(self._leases, claim) as lease:
            credentials = await self._providers.credentials(self._provider.id)
            if self._is_late(claim):
                self._observe(claim, Outcome.LATE)
                return None
            began_at, limit = time.monotonic(), self._limit(claim)
            failures = self._http.failures
            try:
                with _in_transition():
                    async with asyncio.timeout(limit):
                        new = await self.session.log_in(credentials)
            except (ProviderError, SessionLost, TimeoutError) as error:
                if _overslept(error, since=began_at, limit=limit):
                    self._observe(claim, Outcome.LATE)
                    return None
                lease.settle()
                failed = self._translated(error)
                if self._http.failures == failures and not isinstance(
                    error, ProviderUnavailable | ProviderRateLimited
                ):
                    self._http.note_failure(failed)  # though no single call of it has failed
                await self._note_failed_login(claim, failed, cause=error)
                return None
            self._outage.note_success()
            lease.settle()
            return await self._committed(claim, new)

    async def _note_failed_login(
        self, claim: Claim, error: ProviderError, *, cause: BaseException
    ) -> None:
        """Store why a login failed and raise it; return when somebody else took over."""
        if isinstance(error, ProviderAuthFailed):
            held = await self._leases.fail_session(
                claim,
                Problem(code=ReauthRequired.code, message=error.message),
                state=SessionState.REAUTH_REQUIRED,
                terms=self._terms,
                next_seconds=None,
            )
            self._observe(claim, Outcome.REFUSED if held else Outcome.FENCED)
            if held:
                note = _log.info if self._is_user else _log.error
                note(
                    "credentials_refused",
                    provider_id=self._provider.id,
                    subject=self.subject,
                    problem=error.message,
                )
                raise self._refused(_problem_of(error)) from cause
            return
        self._outage.note_failure(error)
        pause = self._settings.backoff(claim.seen.failures + 1, at_least=error.retry_after_seconds)
        held = await self._leases.fail_session(
            claim,
            _problem_of(error),
            state=SessionState.BACKOFF,
            next_seconds=pause,
            uncount_login=True,
        )
        self._observe(claim, Outcome.FAILED if held else Outcome.FENCED)
        if held:
            raise self._pausing(error, seconds=pause) from cause

    # Renewing, in line and under the lease.

    def _renew_ahead(self, grant: Grant) -> None:
        """Begin to renew a grant that is used and nearly over; nobody waits for it."""
        if self._flight is None:
            self._renew_at = inf
            flight = self._launch(self._obtain(ahead_of=grant))
            flight.add_done_callback(self._plan_renewal_again)

    def _plan_renewal_again(self, flight: asyncio.Task[Grant]) -> None:
        if flight.cancelled() or flight.exception() is not None:
            left = self._holds_until - time.monotonic()
            self._renew_at = time.monotonic() + min(_RENEWAL_RETRY_SECONDS, max(left / 2, 1.0))

    async def _renewed_in_turn(
        self, stored: StoredSession, *, ahead_of: Grant | None
    ) -> Grant | None:
        """Renew when it is this session's turn; ``None`` when somebody else is doing it."""
        bucket = self._platform.grant_bucket
        if bucket is None:
            return await self._claimed_and_renewed(stored)
        pacer = self._http.pacers.get(GRANTS, bucket)
        left, deadline = _LONGEST_LINE_SECONDS, None
        if ahead_of is not None:
            left = max(self._holds_until - time.monotonic(), 0.0)
            left = max(left - _EXPIRY_MARGIN_SECONDS, left / 2)
            deadline = asyncio.get_running_loop().time() + left
        wait_seconds = pacer.expected_wait(with_deadline=deadline is not None)
        self._served_at = time.monotonic() + wait_seconds
        try:
            async with AsyncExitStack() as stack:
                # Whoever came by and did not come back is not renewed for in the end.
                async with asyncio.timeout(_LONGEST_LINE_SECONDS if deadline is None else None):
                    turn = pacer.turn(patience_seconds=left, deadline=deadline)
                    await stack.enter_async_context(turn)
                self._served_at = None
                seen = await self._read()  # standing in line may have taken long
                if self._is_usable(seen, newer_than=ahead_of) or seen.grant is None:
                    return None
                return await self._claimed_and_renewed(seen)
        except TimeoutError as error:
            raise self._pausing(
                ProviderRateLimited(
                    "The provider limits the rate of renewals, and others were before this one",
                    provider_id=self._provider.id,
                ),
                seconds=pacer.expected_wait(),
            ) from error
        except ProviderRateLimited as error:
            raise self._pausing(error, seconds=error.retry_after_seconds or 1) from error
        finally:
            self._served_at = None

    async def _claimed_and_renewed(self, stored: StoredSession) -> Grant | None:
        claim = await self._leases.claim_session(
            stored, Transition.RENEW, lease_seconds=self._settings.lease_seconds
        )
        if claim is None:
            return None
        return await self._traced(claim, self._renew(claim))

    async def _renew(self, claim: Claim) -> Grant | None:
        """Renew the grant and store it; ``None`` when somebody else took over."""
        seen = claim.seen
        if seen.grant is None:
            await self._leases.release_session(claim)
            return None
        async with _Released(self._leases, claim) as lease:
            credentials = await self._providers.credentials(self._provider.id)
            if self._is_late(claim):
                self._observe(claim, Outcome.LATE)
                return None
            began_at, limit = time.monotonic(), self._limit(claim)
            old = Grant(version=seen.version, secret=seen.grant, expires_at=seen.expires_at)
            try:
                with _in_transition():
                    async with asyncio.timeout(limit):
                        new = await self.session.renew(old, credentials)
            except (ProviderError, SessionLost, TimeoutError) as error:
                if _overslept(error, since=began_at, limit=limit):
                    self._observe(claim, Outcome.LATE)
                    return None
                lease.settle()
                await self._note_failed_renewal(claim, self._translated(error), cause=error)
                return None
            self._outage.note_success()
            lease.settle()
            grant = await self._committed(claim, new)
            if grant is not None and seen.version <= self._lost_version:
                self._renewed_version = grant.version
            return grant

    async def _note_failed_renewal(
        self, claim: Claim, error: ProviderError, *, cause: BaseException
    ) -> None:
        """Store why a renewal failed and raise it; return when somebody else took over.

        Only the provider's word that it will never renew this grant costs the user a new sign-in;
        the grant is kept otherwise.
        """
        if isinstance(error, ReauthRequired):
            await self._note_failed_login(claim, error, cause=cause)
            return
        if isinstance(error, ProviderUnavailable):
            self._outage.note_failure(error)
        pause = self._settings.backoff(claim.seen.failures + 1, at_least=error.retry_after_seconds)
        held = await self._leases.fail_session(
            claim, _problem_of(error), state=SessionState.ACTIVE, next_seconds=None
        )
        self._observe(claim, Outcome.FAILED if held else Outcome.FENCED)
        if held:
            raise self._pausing(error, seconds=pause) from cause

    async def _give_up(self, version: int) -> None:
        """Note that a user has to sign in again, unless somebody has changed the session.

        Raises:
            ReauthRequired: It is noted.
        """
        stored = await self._read()
        if stored.version != version:
            return
        if stored.grant is None or stored.terms != self._terms:
            raise self._refused(None)  # nothing to end: the address may yet be changed back
        claim = await self._leases.claim_session(
            stored, Transition.RENEW, lease_seconds=self._settings.lease_seconds
        )
        if claim is not None:
            error = ReauthRequired(self._to_sign_in(), provider_id=self._provider.id)
            await self._note_failed_login(claim, error, cause=error)

    # Keeping alive, under the lease.

    async def _kept_alive(self, claim: Claim, grant: Grant) -> Prolongation | None:
        async with _Released(self._leases, claim) as lease:
            began_at, limit = time.monotonic(), self._limit(claim)
            try:
                with _in_transition():
                    async with asyncio.timeout(limit):
                        kept = await self.session.keep_alive(grant)
            except SessionLost:
                lease.settle()
                raise
            except (ProviderError, TimeoutError) as error:
                if _overslept(error, since=began_at, limit=limit):
                    self._observe(claim, Outcome.LATE)
                    return None
                lease.settle()
                await self._note_failed_heartbeat(claim, self._translated(error))
                return None
            lease.settle()
            self._outage.note_success()
            return await self._kept(claim, grant, kept)

    async def _kept(self, claim: Claim, grant: Grant, kept: NewGrant) -> Prolongation | None:
        if kept.secret != grant.secret:
            await self._committed(claim, kept)
            return None
        if self._grant is not None and self._grant.version == grant.version:
            self._holds_until = _ends_at(claim.taken_at, kept.lifetime_seconds)
        self._observe(claim, Outcome.PROLONGED)
        return Prolongation(
            claim=claim,
            lifetime_seconds=kept.lifetime_seconds,
            next_seconds=self._seconds_to_next(kept.lifetime_seconds),
        )

    async def _note_failed_heartbeat(self, claim: Claim, error: ProviderError) -> None:
        if isinstance(error, ProviderAuthFailed):
            self._note_lost(claim.seen.version)
            with suppress(ReauthRequired):
                await self._note_failed_login(claim, error, cause=error)
            return
        self._outage.note_failure(error)
        held = await self._leases.fail_session(
            claim,
            _problem_of(error),
            state=SessionState.ACTIVE,
            next_seconds=self._settings.backoff(
                claim.seen.failures + 1, at_least=error.retry_after_seconds
            ),
        )
        self._observe(claim, Outcome.FAILED if held else Outcome.FENCED)

    # Storing, whatever happens.

    async def _committed(self, claim: Claim, new: NewGrant) -> Grant | None:
        """Store a grant and share it; ``None``, and end it, when somebody else took over.

        Raises:
            StorageUnavailable: It could not be stored for half a minute; it is ended.
        """
        until = time.monotonic() + _PATIENCE_OF_COMMIT_SECONDS
        while True:
            try:
                stored = await self._commit(claim, new)
                break
            except StorageUnavailable:
                # The grant exists only here, so it is worth trying again.
                if time.monotonic() > until:
                    await log_out_quietly(self.session, new)
                    raise
                await _pause()
        if stored is None:
            self._observe(claim, Outcome.FENCED)
            if claim.transition is not Transition.RENEW:  # there it would end its successor as well
                await log_out_quietly(self.session, new)
            return None
        self._observe(claim, Outcome.COMMITTED)
        return self._hold(stored)

    async def _commit(self, claim: Claim, new: NewGrant) -> StoredSession | None:
        consumed = new.consumes_predecessor or (
            claim.transition is Transition.KEEP_ALIVE
            and self._platform.rotation is not TokenRotation.NONE
        )
        return await self._leases.commit_session(
            claim,
            new.secret,
            terms=self._terms,
            lifetime_seconds=new.lifetime_seconds,
            next_seconds=None
            if self._renewable(new.secret)
            else self._seconds_to_next(new.lifetime_seconds),
            require_fence=not consumed,
        )

    def _seconds_to_next(self, lifetime_seconds: float | None) -> float | None:
        """Return when to keep alive next: before the heartbeat is due, and well before expiry."""
        soonest = []
        heartbeat = self._platform.heartbeat_seconds
        if heartbeat is not None:
            heartbeat = self._settings.heartbeat_seconds or heartbeat
            soonest.append(heartbeat * _random.uniform(0.9, 1))
        if lifetime_seconds is not None:
            soonest.append(_well_before(lifetime_seconds))
        return min(soonest, default=None)

    # What is held in memory.

    def _hold(self, stored: StoredSession) -> Grant:
        assert stored.grant is not None  # noqa: S101 - both callers have looked
        grant = Grant(version=stored.version, secret=stored.grant, expires_at=stored.expires_at)
        if self._grant is None or self._grant.version <= grant.version:
            self._grant = grant
            self._holds_until = _ends_at(time.monotonic(), stored.seconds_to_expiry)
            self._renew_at = inf
            if stored.seconds_to_expiry is not None and self._renewable(stored.grant):
                self._renew_at = time.monotonic() + _well_before(stored.seconds_to_expiry)
        self._refusal = None
        return grant

    def _note_lost(self, version: int) -> None:
        self._lost_version = max(self._lost_version, version)
        if self._grant is not None and self._grant.version <= self._lost_version:
            self._grant = None

    def _refused(self, problem: Problem | None) -> ReauthRequired:
        message = "The credentials are refused" if problem is None else problem.message
        if self._is_user and problem is None:
            message = self._to_sign_in()
        error = ReauthRequired(message, provider_id=self._provider.id)
        error.subject = self.subject
        self._refusal = _Refusal(
            error=error,
            believed_until=time.monotonic() + _REFUSAL_MEMORY_SECONDS,
            retry_at=None,
        )
        return error

    def _pausing(self, error: ProviderError, *, seconds: float) -> ProviderError:
        retry_at = time.monotonic() + seconds
        self._refusal = _Refusal(
            error=error,
            believed_until=min(retry_at, time.monotonic() + _PAUSE_MEMORY_SECONDS),
            retry_at=retry_at,
        )
        return self._refusal.raised()

    # Words and numbers.

    def _limit(self, claim: Claim) -> float:
        return min(self._settings.transition_seconds, _LEASE_SHARE * claim.seconds_left)

    def _is_late(self, claim: Claim) -> bool:
        return claim.seconds_left < _LATE_SHARE * claim.lease_seconds

    async def _traced(self, claim: Claim, work: Awaitable[T]) -> T:
        """Do a transition's work, which has a span of its own: it serves whoever waits for it."""
        name = f"session {claim.transition.value}"
        with working(self._http.tracer, name, provider_id=self._provider.id) as span:
            if claim.transition is not Transition.KEEP_ALIVE:
                self._span = span
            return await work

    def _observe(self, claim: Claim, outcome: Outcome) -> None:
        span = current_span()
        if isinstance(span, WorkSpan):
            span.note_outcome(outcome.value)
        self._observer.on_transition(
            self._provider.id,
            claim.transition,
            outcome,
            seconds=time.monotonic() - claim.taken_at,
        )

    def _translated(self, error: BaseException) -> ProviderError:
        if isinstance(error, ProviderError):
            return error
        if isinstance(error, TimeoutError):
            return ProviderTimeout(
                f"The provider did not finish within {self._settings.transition_seconds:g} seconds",
                provider_id=self._provider.id,
            )
        return ProviderBadResponse(
            "The provider ended a session while it was being opened",
            provider_id=self._provider.id,
        )

    def _error_of(self, problem: Problem) -> ProviderError:
        kind = _ERRORS_BY_CODE.get(problem.code, ProviderUnavailable)
        return kind(problem.message, provider_id=self._provider.id)

    def _to_sign_in(self) -> str:
        return f"The user has to sign in to {self._provider.name} to authorise the gateway"

    def _not_found(self) -> ProviderNotFound:
        return ProviderNotFound(
            f"No provider {self._provider.id} is registered", provider_id=self._provider.id
        )

    def _busy(self) -> ProviderTimeout:
        return ProviderTimeout(
            "Another gateway did not finish logging in in time", provider_id=self._provider.id
        )


class _Released:
    """Gives a claim's lease back at the end, unless it was settled on the way.

    After a defect in a heartbeat the lease is left to run out, for the heartbeat would be tried
    again at once. Logins are counted anyway.
    """

    def __init__(self, leases: LeaseStore, claim: Claim) -> None:
        self._leases = leases
        self._claim = claim
        self._settled = False

    def settle(self) -> None:
        """Leave the lease to what follows, which gives it back together with an outcome."""
        self._settled = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _trace: object
    ) -> None:
        defect = isinstance(error, Exception) and not isinstance(error, StorageError)
        if not self._settled and not (defect and self._claim.transition is Transition.KEEP_ALIVE):
            with suppress(StorageError):  # then it runs out by itself
                await self._leases.release_session(self._claim)


def _overslept(error: BaseException, *, since: float, limit: float) -> bool:
    """Tell whether this process, not the provider, took too long: it was paused meanwhile."""
    overtime = time.monotonic() - since - limit
    return isinstance(error, TimeoutError | ProviderTimeout) and overtime > _PAUSE_SHARE * limit


def _problem_of(error: ProviderError) -> Problem:
    return Problem(code=error.code, message=error.message)


def _well_before(seconds: float) -> float:
    """Return after how much of a grant's lifetime to renew it, differently for each."""
    latest = max(seconds - _EXPIRY_MARGIN_SECONDS, seconds / 2)
    return min(seconds * (2 / 3 + _random.uniform(0, 0.1)), latest)


def _ends_at(start: float, seconds: float | None) -> float:
    return inf if seconds is None else start + seconds


async def _pause() -> None:
    await asyncio.sleep(_random.uniform(*_POLL_SECONDS))
