"""Who is lent which session: the door through which everything else reaches providers.

One session object for each (provider, subject) is lent to any number of callers at once. It is
made at first use (``sessions.installations``), its grant is had and replaced underneath
(``sessions.authorization``), and what happens by the clock is one loop's
(``sessions.scheduler``).
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from typing import Final

from sessions.addresses import AddressPolicy
from sessions.authorization import (
    SessionObserver,
    SessionSettings,
    SilentObserver,
    log_out_quietly,
)
from sessions.base import (
    SERVICE,
    AuthorizedUser,
    Code,
    CodeRequest,
    Export,
    Grant,
    NewGrant,
    ProviderCheck,
    ProviderSession,
    Subject,
    SubjectKind,
)
from sessions.errors import (
    ProviderAuthFailed,
    ProviderError,
    ProviderTimeout,
    SessionLost,
    WrongUser,
)
from sessions.exports import EXPORT_JOB
from sessions.http import DEFAULT_LIMITS, HttpLimits, Observer
from sessions.installations import Installations, MachineryLoan, SessionLoan
from sessions.registry import Registry
from sessions.resilience import ProviderHealth
from sessions.scheduler import ScheduledWork, Scheduler
from sessions.tracing import Tracer
from storage.cache import CacheStore
from storage.credentials import Secret
from storage.errors import StorageError
from storage.leases import LeaseStore, SessionStatus
from storage.providers import ProviderStore
from storage.records import Provider, SessionState

__all__ = [
    "SERVICE",
    "SessionManager",
    "SessionObserver",
    "SessionSettings",
    "SessionStatus",
    "SilentObserver",
    "new_owner",
]

_OWNER_LETTERS: Final = 12
_REVOCATIONS_AT_ONCE: Final = 8
_REVOCATION_SECONDS: Final = 20.0


def new_owner() -> str:
    """Return a name for this process, unlike any other, to hold leases under."""
    return uuid.uuid4().hex[:_OWNER_LETTERS]


class SessionManager:
    """Lends sessions and looks after them.

    Args:
        providers: What is registered.
        leases: Rows of sessions and jobs.
        cache: Where results of timed exports are kept.
        registry: Which platforms there are.
        policy: Which addresses may be called.
        limits: Of HTTP; the concurrency is each platform's own.
        settings: Durations.
        observer: Hears of transitions and of failing providers, for metrics.
        http_observer: Hears of every upstream call, for metrics.
        tracer: Makes spans of upstream calls and transitions; ``None`` to trace nothing.
    """

    def __init__(
        self,
        *,
        providers: ProviderStore,
        leases: LeaseStore,
        cache: CacheStore,
        registry: Registry,
        policy: AddressPolicy,
        limits: HttpLimits = DEFAULT_LIMITS,
        settings: SessionSettings | None = None,
        observer: SessionObserver | None = None,
        http_observer: Observer | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self._providers = providers
        self._leases = leases
        self._cache = cache
        self._settings = settings or SessionSettings()
        observer = observer or SilentObserver()
        self._installations = Installations(
            providers=providers,
            leases=leases,
            cache=cache,
            registry=registry,
            policy=policy,
            limits=limits,
            settings=self._settings,
            observer=observer,
            http_observer=http_observer,
            tracer=tracer,
        )
        self._scheduler = Scheduler(
            leases, settings=self._settings, observer=observer, installations=self._installations
        )

    def session(self, provider_id: str, subject: str = SERVICE) -> SessionLoan:
        """Lend the session of a provider: ``async with manager.session("1") as session:``.

        Entering raises ``ProviderNotFound`` when there is no such provider, and
        ``ProviderUnavailable`` when it is disabled; logging in happens at the first call that
        needs it.
        """
        return SessionLoan(self._installations, provider_id, subject)

    async def check(
        self, provider: Provider, credentials: Secret[Mapping[str, str]]
    ) -> tuple[ProviderCheck, NewGrant]:
        """Find out whether a provider can be used, without storing anything.

        The grant obtained is the caller's, to ``adopt`` or to ``discard``; it is ended here when
        the check fails.

        Raises:
            ProviderError: It cannot be used, and why.
        """
        platform = self._installations.platform_of(provider)
        async with self._installations.open_http(provider) as http:
            authorization = _FixedAuthorization(provider.id)
            session = platform.session(
                provider, http=http, authorization=authorization, exports=_NoExports()
            )
            try:
                async with asyncio.timeout(self._settings.check_seconds):
                    return await _checked(session, authorization, credentials)
            except TimeoutError as error:
                raise ProviderTimeout(
                    f"The check did not finish within {self._settings.check_seconds:g} seconds",
                    provider_id=provider.id,
                ) from error
            except SessionLost as error:
                raise ProviderAuthFailed(
                    "The provider ended a session it had just granted", provider_id=provider.id
                ) from error

    async def discard(self, provider: Provider, grant: NewGrant) -> None:
        """End a grant that ``check`` obtained and nobody will use, if it can be done.

        Raises:
            NotSupported: There is no such platform.
            ProviderAddressRefused: The provider's address is not allowed.
        """
        platform = self._installations.platform_of(provider)
        async with self._installations.open_http(provider) as http:
            session = platform.session(
                provider,
                http=http,
                authorization=_FixedAuthorization(provider.id),
                exports=_NoExports(),
            )
            await log_out_quietly(session, grant)

    def starting_over(self, provider_id: str) -> AbstractAsyncContextManager[None]:
        """Have nobody log in to a provider, in any gateway, while it is stored anew.

        Inside, it is stored and the grant it was checked with is adopted; whoever finds it stored
        meanwhile waits for that grant. If this process dies, they wait until its lease is over.

        Raises:
            StorageError: The database could not do it; nothing has begun.
        """
        return self._leases.starting_over(provider_id, lease_seconds=self._settings.lease_seconds)

    async def adopt(self, provider_id: str, grant: NewGrant) -> None:
        """Store the grant a check obtained, so that no second login is needed.

        Raises:
            ProviderNotFound: The provider is not registered.
            ProviderError: The session was busy for too long; the grant is ended.
            StorageError: It could not be stored.
        """
        async with MachineryLoan(self._installations, provider_id, SERVICE) as behind:
            await behind.authorization.adopt(grant)

    async def authorization_url(self, provider_id: str, request: CodeRequest) -> str:
        """Return the address at which a user authorises the gateway.

        Raises:
            NotSupported: The platform cannot, or no client is registered with the provider.
            ProviderError: The provider is not registered, or disabled.
            StorageError: The database could not answer.
        """
        async with MachineryLoan(self._installations, provider_id, SERVICE) as behind:
            credentials = await self._providers.credentials(provider_id)
            return behind.session.authorization_url(request, credentials)

    async def authorize(
        self, provider_id: str, code: Code, *, expected_user_id: str | None = None
    ) -> AuthorizedUser:
        """Exchange a code for a user's grant and store it, in place of an earlier one.

        Args:
            provider_id: Where the user was.
            code: What came back from there.
            expected_user_id: The only user whose grant is wanted; anybody's, when ``None``.

        Raises:
            WrongUser: It is somebody else's; it is ended.
            ReauthRequired: The code is used, expired, or not for us.
            ProviderError: It could not be exchanged, or the session was busy for too long.
            StorageError: It could not be stored.
        """
        async with MachineryLoan(self._installations, provider_id, SERVICE) as behind:
            credentials = await self._providers.credentials(provider_id)
            user = await behind.session.redeem(code, credentials)
        subject = str(Subject(SubjectKind.USER, user.user_id))
        async with MachineryLoan(self._installations, provider_id, subject) as behind:
            if expected_user_id not in {None, user.user_id}:
                await log_out_quietly(behind.session, user.grant)
                raise WrongUser(user.display_name, provider_id=provider_id)
            await behind.authorization.adopt(user.grant)
        return user

    async def forget(self, provider_id: str, subject: str = SERVICE) -> None:
        """Start over with a provider that was changed or removed.

        Users who authorised the gateway stay authorised, unless they authorised it for another
        address or another client. What is stored of the subject's session and exports is dropped,
        transitions in flight come to nothing, and the provider's connections are closed after the
        last caller is done. Other gateways notice within ``look_seconds``, and at once when a call
        of theirs fails.

        Raises:
            StorageError: The database could not do it; ask again.
        """
        self._installations.drop(provider_id)
        await self._leases.reset_sessions(provider_id, subject)
        await self._leases.remove_jobs(EXPORT_JOB, key_prefix=f"{provider_id}|")
        await self._cache.drop(provider_id)
        self._installations.drop(
            provider_id
        )  # whoever asked meanwhile may have seen what was just dropped

    async def revoke(self, provider_id: str, subject: str = SERVICE) -> None:
        """End one session, here and at the provider; its next use logs in again.

        Raises:
            ProviderNotFound: The provider is not registered.
            StorageError: The database could not do it; nothing was ended.
        """
        async with MachineryLoan(self._installations, provider_id, subject) as behind:
            await behind.authorization.revoke()

    async def revoke_all(self, provider_id: str) -> None:
        """End every session with a provider, here and there, as many as can be in 20 seconds.

        Raises:
            StorageError: The database could not do it.
        """
        slots = asyncio.Semaphore(_REVOCATIONS_AT_ONCE)

        async def end(subject: str) -> None:
            async with slots:
                with suppress(ProviderError):  # a provider that is down is left all the same
                    await self.revoke(provider_id, subject)

        statuses = await self._leases.list_statuses(provider_ids=[provider_id])
        held = [status.subject for status in statuses if status.state is not SessionState.EMPTY]
        with suppress(TimeoutError):
            async with asyncio.timeout(_REVOCATION_SECONDS), asyncio.TaskGroup() as tasks:
                for subject in held:
                    tasks.create_task(end(subject))

    async def status(self, provider_id: str, subject: str = SERVICE) -> SessionStatus:
        """Return what may be shown of a session, with its latest transitions.

        One that was never used is ``EMPTY``, also of a provider that is not registered.

        Raises:
            StorageError: The database could not answer.
        """
        found = await self._leases.find_status(provider_id, subject)
        return found or SessionStatus(
            provider_id=provider_id, subject=subject, state=SessionState.EMPTY
        )

    async def list_statuses(
        self,
        *,
        provider_ids: Collection[str] | None = None,
        states: Collection[SessionState] | None = None,
        subject: str | None = None,
        limit: int | None = None,
    ) -> Sequence[SessionStatus]:
        """Return what may be shown of sessions that were used, by provider id and subject.

        Args:
            provider_ids: Only of these providers.
            states: Only those in one of these states.
            subject: Only of this one.
            limit: At most so many of each provider.

        Raises:
            StorageError: The database could not answer.
        """
        return await self._leases.list_statuses(
            provider_ids=provider_ids, states=states, subject=subject, limit=limit
        )

    async def count_sessions(self) -> Mapping[tuple[str, SessionState], int]:
        """Return how many sessions each provider has in each state, by provider id and state.

        Raises:
            StorageError: The database could not answer.
        """
        return await self._leases.count_sessions()

    def health(self, provider_id: str) -> ProviderHealth | None:
        """Return how this process gets on with a provider; ``None`` when it has not used it."""
        installation = self._installations.find_open(provider_id)
        return None if installation is None else installation.http.health()

    def list_health(self) -> Mapping[str, ProviderHealth]:
        """Return how this process gets on with each provider it has used, by provider id."""
        return {
            installation.provider.id: installation.http.health()
            for installation in self._installations.list_open()
        }

    def add_work(self, work: ScheduledWork) -> None:
        """Have jobs of one more kind done by the loop that ``run`` runs."""
        self._scheduler.add_work(work)

    async def run(self) -> None:
        """Keep sessions alive and exports fresh until ``aclose``."""
        await self._scheduler.run()

    async def aclose(self) -> None:
        """Stop: claim nothing more, end what is in flight, give leases back, close connections."""
        await self._scheduler.stop()
        await self._installations.aclose()
        with suppress(StorageError):  # then they run out by themselves
            await self._leases.release_all()


async def _checked(
    session: ProviderSession,
    authorization: _FixedAuthorization,
    credentials: Secret[Mapping[str, str]],
) -> tuple[ProviderCheck, NewGrant]:
    grant = await session.log_in(credentials)
    authorization.grant = Grant(version=1, secret=grant.secret)
    try:
        return await session.check(), grant
    except (ProviderError, SessionLost, TimeoutError, asyncio.CancelledError):
        await log_out_quietly(session, grant)
        raise


class _FixedAuthorization:
    """The one grant of a check; there is no other when it is lost."""

    def __init__(self, provider_id: str) -> None:
        self.grant: Grant | None = None
        self._provider_id = provider_id

    async def current(self) -> Grant:
        if self.grant is None:
            raise SessionLost
        return self.grant

    async def replace(self, lost: Grant, *, again: bool = False) -> Grant:  # noqa: ARG002 - named as in Authorization
        raise ProviderAuthFailed(
            f"The provider ended session {lost.version} it had just granted",
            provider_id=self._provider_id,
        )


class _NoExports:
    """A check runs none, and sees none."""

    async def read(self, name: str) -> Export | None:  # noqa: ARG002 - named as in Exports
        return None
