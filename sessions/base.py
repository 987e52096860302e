"""What a platform is: the interface every provider session keeps.

A platform module defines one ``ProviderSession`` and ends with ``PLATFORM = Platform(...)``.
The session object is lent to any number of callers at once and lives as long as its provider is
registered; the *grant* inside it (cookies, tokens) is replaced underneath, by the session
manager, without a caller noticing. ``SessionContract`` in ``tests/contract`` checks every
promise made here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Generic, Protocol, TypeVar

from sessions.errors import NotSupported, ProviderAuthFailed, SessionLost
from sessions.http import ProviderHttp
from storage.credentials import Secret
from storage.records import Course, Enrollment, Provider, User

SERVICE = "service"
"""The subject of a session that acts for the organisation, not for one user."""

T = TypeVar("T")

_REPLACEMENTS = 2


class Capability(StrEnum):
    """What a platform can be asked for."""

    USERS = "USERS"
    COURSES = "COURSES"
    ENROLLMENTS = "ENROLLMENTS"
    PROGRESS = "PROGRESS"
    ICONS = "ICONS"


class TokenRotation(StrEnum):
    """When a platform replaces its tokens by itself (see docs/architecture.md, "Sessions")."""

    NONE = "none"
    ON_REFRESH = "on_refresh"
    ON_USE = "on_use"


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialField:
    """One value an operator gives when registering a provider.

    Attributes:
        name: ``username``, ``password``, ``api_key``, ``account_id`` ...
        label: For a person, with where to find the value.
        required: Whether registration is refused without it.
        secret: Whether it is sealed and never shown again.
    """

    name: str
    label: str
    required: bool = True
    secret: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NewGrant:
    """What a transition obtained, to be sealed and shared.

    Attributes:
        secret: Names to values, such as cookie and CSRF token. Never logged.
        lifetime_seconds: How long it holds if nothing prolongs it; ``None`` when unknown.
    """

    secret: Secret[Mapping[str, str]]
    lifetime_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """One authorisation as committed; ``version`` rises with every replacement."""

    version: int
    secret: Secret[Mapping[str, str]]
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[T]):
    """Part of a list.

    Attributes:
        items: In the provider's order, which is the same from call to call.
        next_position: What to ask for next; ``None`` at the end.
        total: Length of the whole list, or ``None`` when the provider does not say.
    """

    items: Sequence[T]
    next_position: str | None = None
    total: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderCheck:
    """What a check of a provider found, beyond that it is reached and the login works.

    Attributes:
        version: Software version as the provider reports it.
        name: What the installation calls itself.
        account: What the account may see, for a person.
        missing: Permissions the account lacks, each a sentence with its consequence.
    """

    version: str
    name: str
    account: str
    missing: tuple[str, ...] = ()


class Authorization(Protocol):
    """The current grant of one (provider, subject), shared by everyone who uses it."""

    async def current(self) -> Grant:
        """Return the grant to use now, logging in first when there is none.

        Raises:
            ProviderError: There is none and none can be had; ``ReauthRequired`` when only new
                credentials will help.
        """

    async def replace(self, lost: Grant) -> Grant:
        """Return a grant newer than the lost one, made once for all who lost it.

        Raises:
            ProviderError: As for ``current``.
        """


class Exports(Protocol):
    """Results of a session's timed exports, kept across restarts and shared between processes."""

    async def read(self, name: str) -> Export | None:
        """Return the last result; run the export first, and wait for it, when there is none.

        ``None`` when the export was refused or failed and there is no earlier result.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """The result of one timed export; ``body`` is whatever the platform wrote."""

    body: bytes
    fetched_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """A kind of software and how to talk to it.

    Attributes:
        name: Lower-case, the value of ``platform`` when registering a provider.
        title: For a person.
        session: The class that talks to it.
        credential_fields: What an operator gives, in the order a form would ask.
        capabilities: What it can be asked for.
        heartbeat_seconds: How often an idle grant must be kept alive; ``None`` for never.
        rotation: When it replaces its tokens by itself.
        page_size: Largest page that costs the provider little.
        concurrency: How many calls at once one installation bears.
        export_seconds: Names of timed exports to the seconds between their runs.
        option_names: Names a provider's ``options`` may hold, each with its meaning.
        versions: Tested versions, for a person.
    """

    name: str
    title: str
    session: type[ProviderSession]
    credential_fields: tuple[CredentialField, ...]
    capabilities: frozenset[Capability]
    heartbeat_seconds: float | None = None
    rotation: TokenRotation = TokenRotation.NONE
    page_size: int = 100
    concurrency: int = 4
    export_seconds: Mapping[str, float] = field(default_factory=dict)
    option_names: Mapping[str, str] = field(default_factory=dict)
    versions: str = ""


class ProviderSession(ABC):
    """One authenticated conversation with one provider on behalf of one subject.

    Every method may raise ``ProviderError``. Methods that take ids return mappings keyed by
    external id; an id the provider does not know is left out. An empty answer is returned only
    after the session proved to be alive.

    Args:
        provider: The installation.
        http: HTTP to that installation only.
        authorization: Where the current grant comes from.
        exports: Results of this session's timed exports.
    """

    def __init__(
        self,
        provider: Provider,
        *,
        http: ProviderHttp,
        authorization: Authorization,
        exports: Exports,
    ) -> None:
        self.provider = provider
        self._http = http
        self._authorization = authorization
        self._exports = exports

    # Transitions: called by the session manager, under the lease.

    @abstractmethod
    async def log_in(self, credentials: Secret[Mapping[str, str]]) -> NewGrant:
        """Obtain a fresh grant; sends no earlier cookie or token along.

        Raises:
            ReauthRequired: The credentials are refused; trying again may lock the account.
        """

    @abstractmethod
    async def keep_alive(self, grant: Grant) -> NewGrant:
        """Prolong or refresh the grant, returning what is to be stored.

        Raises:
            SessionLost: It no longer holds.
        """

    @abstractmethod
    async def log_out(self, grant: NewGrant) -> None:
        """End a grant nobody will use; a failure to do so is of no consequence."""

    # Reading.

    @abstractmethod
    async def check(self) -> ProviderCheck:
        """Read version and name, and find out what the logged-in account lacks."""

    @abstractmethod
    async def list_users(self, *, position: str | None, limit: int) -> Page[User]:
        """Return one page of all users; ``position`` is an earlier page's ``next_position``."""

    @abstractmethod
    async def fetch_users(self, user_ids: Collection[str]) -> Mapping[str, User]:
        """Return the users of these external ids."""

    @abstractmethod
    async def list_courses(self, *, position: str | None, limit: int) -> Page[Course]:
        """Return one page of all courses."""

    @abstractmethod
    async def fetch_courses(self, course_ids: Collection[str]) -> Mapping[str, Course]:
        """Return the courses of these external ids."""

    @abstractmethod
    async def list_enrollments(self, *, position: str | None, limit: int) -> Page[Enrollment]:
        """Return one page of all enrollments of users and courses that exist."""

    @abstractmethod
    async def fetch_enrollments_by_user(
        self, user_ids: Collection[str]
    ) -> Mapping[str, Sequence[Enrollment]]:
        """Return each user's enrollments; a user without any maps to an empty sequence."""

    @abstractmethod
    async def fetch_enrollments_by_course(
        self, course_ids: Collection[str]
    ) -> Mapping[str, Sequence[Enrollment]]:
        """Return each course's enrollments; a course without any maps to an empty sequence."""

    async def fetch_file(
        self,
        reference: str,  # noqa: ARG002 - for platforms that have files
        *,
        max_bytes: int,  # noqa: ARG002 - the same
    ) -> bytes:
        """Return the bytes behind a URL the provider named, such as an icon's.

        Raises:
            ProviderBadResponse: More than ``max_bytes``, or not a success.
        """
        raise NotSupported(
            f"{self.provider.platform} providers have no files", provider_id=self.provider.id
        )

    async def export(self, name: str) -> bytes:
        """Run one of the platform's timed exports; read back through ``Exports``."""
        raise NotSupported(
            f"{self.provider.platform} has no export named {name}", provider_id=self.provider.id
        )

    async def authorised(self, call: Callable[[Grant], Awaitable[T]]) -> T:
        """Run one upstream call with the current grant, and again with a new one if it is lost.

        The first replacement may be one that another gateway stored a while ago and that is lost
        as well, so there is a second.

        Raises:
            ProviderAuthFailed: The new grants are refused as well.
        """
        grant = await self._authorization.current()
        for _ in range(_REPLACEMENTS):
            try:
                return await call(grant)
            except SessionLost:
                grant = await self._authorization.replace(grant)
        try:
            return await call(grant)
        except SessionLost as error:
            raise ProviderAuthFailed(
                "The provider ended a session it had just granted", provider_id=self.provider.id
            ) from error
