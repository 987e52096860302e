"""What is open: one installation for each provider in use, and who is using it.

An installation holds everything this process keeps of a provider: its HTTP connections and, for
each subject, the shared grant and the timed exports. It is opened at first use by one task for
all who ask. Of the many users of a provider those used last are kept; the others' grants are in
the database and come back at their next use. Dropped, because the provider was changed or removed,
it serves those it is lent to until the last of them is done, and then closes its connections.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from contextvars import Context
from dataclasses import dataclass, replace
from datetime import datetime

import structlog

from sessions.addresses import AddressPolicy
from sessions.authorization import (
    Outage,
    SessionObserver,
    SessionSettings,
    SharedAuthorization,
    terms_of,
)
from sessions.base import (
    ACT_AS,
    MASQUERADE,
    SERVICE,
    Platform,
    ProviderSession,
    Subject,
    SubjectKind,
)
from sessions.errors import (
    NotSupported,
    ProviderAuthFailed,
    ProviderError,
    ProviderForbidden,
    ProviderNotFound,
    ProviderUnavailable,
)
from sessions.exports import TimedExports
from sessions.http import HttpLimits, Observer, ProviderHttp
from sessions.registry import Registry
from sessions.resilience import BreakerState, RefusalReason, ResilienceObserver
from sessions.tracing import Tracer, working
from storage.cache import CacheStore
from storage.credentials import Secret
from storage.errors import CredentialsMissing, CredentialsUnreadable
from storage.leases import LeaseStore
from storage.providers import ProviderStore
from storage.records import Provider, ProviderState

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machinery:
    """What serves one (provider, subject) in this process.

    Attributes:
        session: What callers are lent.
        authorization: Its grant; a masquerade's is the service's.
        exports: Its timed exports.
    """

    session: ProviderSession
    authorization: SharedAuthorization
    exports: TimedExports


class Installation:
    """One provider in use.

    Args:
        provider: As registered when it was opened.
        platform: How to talk to it.
        http: HTTP to it.
        outage: Whether it is out of reach.
        connections: Closes ``http``.
        machine: Makes what serves a subject.
        max_subjects: How many of those are kept.
    """

    def __init__(
        self,
        provider: Provider,
        *,
        platform: Platform,
        http: ProviderHttp,
        outage: Outage,
        connections: AsyncExitStack,
        machine: Callable[[Installation, str], Machinery],
        max_subjects: int,
    ) -> None:
        self.provider = provider
        self.platform = platform
        self.http = http
        self.outage = outage
        self.users = 0
        self.dropped = False
        self._connections = connections
        self._machine = machine
        self._max_subjects = max_subjects
        self._machinery_by_subject: dict[str, Machinery] = {}

    @property
    def registration(self) -> tuple[int, datetime]:
        """What differs once the provider was changed, or removed and registered again."""
        return self.provider.revision, self.provider.created_at

    def machinery(self, subject: str) -> Machinery:
        """Return what serves a subject, made at first use.

        Raises:
            NotSupported: The platform's sessions cannot act for it.
            ProviderForbidden: It is a masquerade, and the provider's options do not allow any.
        """
        known = self._machinery_by_subject
        found = known.pop(subject, None)
        if found is None:
            found = self._machine(self, subject)
            if len(known) >= self._max_subjects:
                self._forget_idle()
        known[subject] = found  # behind all others: the order is that of use
        return found

    def _forget_idle(self) -> None:
        """Forget the quarter used longest ago, but nobody whose transition is under way."""
        oldest = list(self._machinery_by_subject.items())[: self._max_subjects // 4 + 1]
        for subject, machinery in oldest:
            if subject != SERVICE and not machinery.authorization.busy:
                del self._machinery_by_subject[subject]

    def note_use(self, *, began_at: float, error: BaseException | None) -> None:
        """Tell from how a use went whether the provider is in reach.

        A use that went well may have made no call, so the calls must be going well besides.
        """
        outage_began_at = self.outage.began_at
        if isinstance(error, ProviderUnavailable):
            self.outage.note_failure(error)
        elif (
            outage_began_at is not None
            and error is None
            and began_at > outage_began_at
            and self.http.health().is_well
        ):
            self.outage.note_success()

    async def aclose(self, *, within_seconds: float) -> None:
        """End what is in flight, then close the connections."""
        for machinery in list(self._machinery_by_subject.values()):  # callers still change it
            await machinery.exports.settle()
            await machinery.authorization.settle(within_seconds=within_seconds)
        await self._connections.aclose()


class Installations:
    """All providers in use in this process.

    Args:
        providers: What is registered.
        leases: Rows of sessions and jobs.
        cache: Where results of timed exports are kept.
        registry: Which platforms there are.
        policy: Which addresses may be called.
        limits: Of HTTP; the concurrency is each platform's own.
        settings: Durations.
        observer: Hears of transitions.
        http_observer: Hears of every upstream call.
        tracer: Makes spans of upstream calls and transitions.
    """

    def __init__(
        self,
        *,
        providers: ProviderStore,
        leases: LeaseStore,
        cache: CacheStore,
        registry: Registry,
        policy: AddressPolicy,
        limits: HttpLimits,
        settings: SessionSettings,
        observer: SessionObserver,
        http_observer: Observer | None,
        tracer: Tracer | None,
    ) -> None:
        self._providers = providers
        self._leases = leases
        self._cache = cache
        self._registry = registry
        self._policy = policy
        self._limits = limits
        self._settings = settings
        self._observer = observer
        self._http_observer = http_observer
        self._tracer = tracer
        self._open: dict[str, Installation] = {}
        self._opening: dict[str, asyncio.Task[Installation]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False

    async def enter(self, provider_id: str, subject: str) -> tuple[Installation, Machinery]:
        """Return the provider's installation, opened if need be, and what serves the subject.

        A user of the installation is counted.

        Raises:
            NotSupported: The platform's sessions cannot act for the subject.
            ProviderNotFound: No provider of that id is registered.
            ProviderUnavailable: It is disabled, or the gateway is shutting down.
            ProviderError: Its platform or address cannot be used.
            StorageError: The database could not answer, at the first use.
        """
        installation = self._open.get(provider_id)
        if installation is None:
            installation = await self._opened(provider_id)
        behind = installation.machinery(subject)
        installation.users += 1
        return installation, behind

    def leave(self, installation: Installation) -> None:
        """Count a user less; the last one of a dropped installation closes it."""
        installation.users -= 1
        if installation.dropped and installation.users == 0:
            self._close(installation)

    def drop(self, provider_id: str) -> None:
        """Have the provider opened anew at its next use."""
        installation = self._open.get(provider_id)
        if installation is not None:
            self._drop(installation)

    async def look(self) -> None:
        """Drop what was changed or removed elsewhere.

        Raises:
            StorageError: The database could not answer.
        """
        registrations = await self._leases.list_registrations()
        for provider_id, installation in list(self._open.items()):
            if registrations.get(provider_id) != installation.registration:
                self._drop(installation)

    async def aclose(self) -> None:
        """Open nothing more and close everything, lent or not."""
        self._closed = True
        while self._opening:
            await asyncio.wait(self._opening.values())
        for installation in list(self._open.values()):
            installation.users += 1
            self._drop(installation)
            self._close(installation)
        while self._closing:
            await asyncio.wait(self._closing)

    def platform_of(self, provider: Provider) -> Platform:
        """Return the provider's platform.

        Raises:
            NotSupported: There is none of that name.
        """
        platform = self._registry.get(provider.platform)
        if platform is None:
            raise NotSupported(
                f"There is no platform named {provider.platform}, "
                f"only {', '.join(self._registry.names())}",
                provider_id=provider.id,
            )
        return platform

    def find_open(self, provider_id: str) -> Installation | None:
        """Return the provider's installation, if it is open."""
        return self._open.get(provider_id)

    def list_open(self) -> Sequence[Installation]:
        """Return all that are open."""
        return list(self._open.values())

    def open_http(
        self, provider: Provider, *, watcher: ResilienceObserver | None = None
    ) -> AbstractAsyncContextManager[ProviderHttp]:
        """Open HTTP to a provider, with as many calls at once as its platform bears.

        Nothing is known of failures of calls made through another.

        Args:
            provider: The provider.
            watcher: Hears when the provider is taken for failed.

        Raises:
            NotSupported: There is no such platform.
            ProviderAddressRefused: Its address is not allowed (on entering).
        """
        return ProviderHttp.open(
            provider.base_url,
            provider_id=provider.id,
            policy=self._policy,
            limits=replace(self._limits, concurrency=self.platform_of(provider).concurrency),
            observer=self._http_observer,
            watcher=watcher,
            tracer=self._tracer,
        )

    async def _opened(self, provider_id: str) -> Installation:
        if self._closed:
            raise ProviderUnavailable("The gateway is shutting down", provider_id=provider_id)
        opening = self._opening.get(provider_id)
        if opening is None:
            # A context of its own: it works for all who ask, not under the first one's deadline.
            opening = asyncio.create_task(self._install(provider_id), context=Context())
            self._opening[provider_id] = opening
            opening.add_done_callback(lambda done: self._landed(provider_id, done))
        await asyncio.wait({opening})
        return opening.result()

    def _landed(self, provider_id: str, opening: asyncio.Task[Installation]) -> None:
        del self._opening[provider_id]
        if not opening.cancelled():
            opening.exception()  # seen, even when every caller has given up

    async def _install(self, provider_id: str) -> Installation:
        provider = await self._providers.get(provider_id)
        if provider is None:
            raise ProviderNotFound(
                f"No provider {provider_id} is registered", provider_id=provider_id
            )
        if provider.state is ProviderState.DISABLED:
            raise ProviderUnavailable("The provider is disabled", provider_id=provider_id)
        credentials = await self._credentials(provider_id)
        async with AsyncExitStack() as stack:
            outage = Outage(provider)
            watcher = _Watcher(outage, self._observer)
            http = await stack.enter_async_context(self.open_http(provider, watcher=watcher))
            installation = Installation(
                provider,
                platform=self.platform_of(provider),
                http=http,
                outage=outage,
                connections=stack.pop_all(),
                machine=lambda owner, subject: self._machinery(owner, subject, credentials),
                max_subjects=self._settings.max_subjects,
            )
        await installation.machinery(SERVICE).exports.plan()
        self._open[provider_id] = installation
        return installation

    async def _credentials(self, provider_id: str) -> Secret[Mapping[str, str]]:
        try:
            return await self._providers.credentials(provider_id)
        except CredentialsMissing:
            return Secret[Mapping[str, str]]({})
        except CredentialsUnreadable as error:
            _log.error("credentials_unreadable", provider_id=provider_id, problem=str(error))
            raise ProviderAuthFailed(
                "The stored credentials cannot be opened with the keys of this gateway",
                provider_id=provider_id,
            ) from error

    def _machinery(
        self, owner: Installation, text: str, credentials: Secret[Mapping[str, str]]
    ) -> Machinery:
        subject = _supported(owner, text)
        if subject.kind is SubjectKind.MASQUERADE:
            return _masqueraded(owner, subject)

        async def export(name: str) -> bytes:
            with working(owner.http.tracer, f"export {name}", provider_id=owner.provider.id):
                return await authorization.session.export(name)

        exports = TimedExports(
            owner.provider,
            platform=owner.platform,
            subject=text,
            leases=self._leases,
            cache=self._cache,
            settings=self._settings,
            run=export,
        )
        is_user = subject.kind is SubjectKind.USER
        authorization = SharedAuthorization(
            owner.provider,
            platform=owner.platform,
            subject=subject,
            terms=terms_of(
                owner.provider,
                credentials,
                user_terms=owner.platform.user_terms if is_user else None,
            ),
            http=owner.http,
            exports=exports,
            providers=self._providers,
            leases=self._leases,
            settings=self._settings,
            observer=self._observer,
            outage=owner.outage,
            on_outdated=lambda: self._drop(owner),
        )
        return Machinery(
            session=authorization.session, authorization=authorization, exports=exports
        )

    def _drop(self, installation: Installation) -> None:
        provider_id = installation.provider.id
        if self._open.get(provider_id) is installation:
            del self._open[provider_id]
            installation.dropped = True
            if installation.users == 0:
                self._close(installation)

    def _close(self, installation: Installation) -> None:
        closing = asyncio.create_task(
            installation.aclose(within_seconds=self._settings.shutdown_seconds), context=Context()
        )
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)


class _Watcher:
    """Lets an outage begin when the provider is taken for failed, whatever the failure.

    Args:
        outage: The provider's.
        observer: Hears of everything besides.
    """

    def __init__(self, outage: Outage, observer: ResilienceObserver) -> None:
        self._outage = outage
        self._observer = observer

    def on_breaker(
        self, provider_id: str, state: BreakerState, *, cause: ProviderError | None
    ) -> None:
        if cause is not None:
            self._outage.note_failure(cause)
        self._observer.on_breaker(provider_id, state, cause=cause)

    def on_refusal(self, provider_id: str, reason: RefusalReason) -> None:
        self._observer.on_refusal(provider_id, reason)


def _supported(owner: Installation, text: str) -> Subject:
    """Return the subject of a text if the provider's sessions can act for it."""
    provider = owner.provider
    try:
        subject = Subject.parse(text)
    except ValueError as error:
        raise NotSupported(f"There is no subject {text!r}", provider_id=provider.id) from error
    if subject.kind not in owner.platform.subjects:
        raise NotSupported(
            f"{owner.platform.title} is read for the organisation only, not for single users",
            provider_id=provider.id,
        )
    if subject.kind is SubjectKind.MASQUERADE and provider.options.get(ACT_AS) != MASQUERADE:
        raise ProviderForbidden(
            f"Masquerading as users is off: set the option {ACT_AS} of this provider to"
            f" {MASQUERADE} to allow it",
            provider_id=provider.id,
        )
    return subject


def _masqueraded(owner: Installation, subject: Subject) -> Machinery:
    """Return a session of its own over the service's grant."""
    service = owner.machinery(SERVICE)
    session = owner.platform.session(
        owner.provider,
        http=owner.http,
        authorization=service.authorization,
        exports=service.exports,
        subject=subject,
    )
    return Machinery(session=session, authorization=service.authorization, exports=service.exports)


class SessionLoan:
    """The use of one session for the length of an ``async with``.

    Made by hand because it is on the path of every call: a generator would cost more than all
    the rest.
    """

    __slots__ = ("_began_at", "_installation", "_installations", "_provider_id", "_subject")

    def __init__(self, installations: Installations, provider_id: str, subject: str) -> None:
        self._installations = installations
        self._provider_id = provider_id
        self._subject = subject

    async def __aenter__(self) -> ProviderSession:
        """Begin.

        Raises:
            ProviderError: See ``Installations.enter``.
            StorageError: The same.
        """
        self._installation, behind = await self._installations.enter(
            self._provider_id, self._subject
        )
        self._began_at = time.monotonic()
        return behind.session

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _trace: object
    ) -> None:
        self._installations.leave(self._installation)
        self._installation.note_use(began_at=self._began_at, error=error)


class MachineryLoan:
    """The use of what is behind a session, as ``SessionLoan``; it says nothing of outages."""

    __slots__ = ("_installation", "_installations", "_provider_id", "_subject")

    def __init__(self, installations: Installations, provider_id: str, subject: str) -> None:
        self._installations = installations
        self._provider_id = provider_id
        self._subject = subject

    async def __aenter__(self) -> Machinery:
        """Begin.

        Raises:
            ProviderError: See ``Installations.enter``.
            StorageError: The same.
        """
        self._installation, behind = await self._installations.enter(
            self._provider_id, self._subject
        )
        return behind

    async def __aexit__(self, *_error: object) -> None:
        self._installations.leave(self._installation)
