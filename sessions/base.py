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
from typing import Generic, Protocol, TypeAlias, TypeVar

from sessions.errors import NotSupported, ProviderAuthFailed, SessionLost
from sessions.http import ProviderHttp
from sessions.pacing import Bucket
from storage.credentials import Secret
from storage.records import (
    Activity,
    Course,
    Enrollment,
    Milestone,
    Progress,
    Provider,
    RoleValue,
    Section,
    User,
)

SERVICE = "service"
"""The subject of a session that acts for the organisation, not for one user."""

ACT_AS = "act_as"
"""Option of a provider: how a user is acted for, ``oauth`` unless it is ``MASQUERADE``."""

MASQUERADE = "masquerade"

MAX_AGE = "max_age"
"""Option of a provider: how old kept answers may be, such as ``60`` or ``users=60,courses=600``."""

COMMON_OPTIONS: Mapping[str, str] = {
    MAX_AGE: "How many seconds old kept answers of it may be: 60, or users=60,courses=600."
}
"""Options of every platform's providers, each with its meaning."""

Pair: TypeAlias = tuple[str, str]
"""External ids of a user and of a course: one user's place in one course."""

T = TypeVar("T")

_REPLACEMENTS = 3


class Capability(StrEnum):
    """What a platform can be asked for."""

    USERS = "USERS"
    COURSES = "COURSES"
    ENROLLMENTS = "ENROLLMENTS"
    PROGRESS = "PROGRESS"
    ICONS = "ICONS"
    SECTIONS = "SECTIONS"
    MILESTONES = "MILESTONES"
    ACTIVITY = "ACTIVITY"
    USER_WRITES = "USER_WRITES"
    ENROLLMENT_WRITES = "ENROLLMENT_WRITES"


class ListOrder(StrEnum):
    """An order in which a platform can list users or courses by itself.

    How it compares text is the platform's own affair; rows of equal text always come in the same
    order. ``..._DESCENDING`` is the exact reverse.
    """

    USERS_BY_DISPLAY_NAME = "users by display name"
    USERS_BY_DISPLAY_NAME_DESCENDING = "users by display name, descending"
    USERS_BY_USERNAME = "users by username"
    USERS_BY_USERNAME_DESCENDING = "users by username, descending"
    COURSES_BY_TITLE = "courses by title"
    COURSES_BY_TITLE_DESCENDING = "courses by title, descending"


class SubjectKind(StrEnum):
    """Whom a session can act for.

    SERVICE: the organisation, with the provider's stored credentials. USER: one user, who has
    authorised the gateway. MASQUERADE: one user, with the service's credentials.
    """

    SERVICE = "service"
    USER = "user"
    MASQUERADE = "masquerade"


@dataclass(frozen=True, slots=True)
class Subject:
    """Whom one session acts for; as text ``service``, ``user:<external id>`` and so on.

    Attributes:
        kind: What kind of acting it is.
        user_id: External id of the user; empty for the service.
    """

    kind: SubjectKind = SubjectKind.SERVICE
    user_id: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.user_id}" if self.user_id else self.kind.value

    @classmethod
    def parse(cls, text: str) -> Subject:
        """Read the text form.

        Raises:
            ValueError: It is none.
        """
        kind, colon, user_id = text.partition(":")
        subject = cls(SubjectKind(kind), user_id)
        if (subject.kind is SubjectKind.SERVICE) == bool(colon and user_id) or str(subject) != text:
            raise ValueError(f"{text!r} is not a subject")
        return subject


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
        consumes_predecessor: Whether having it ended the grant it was made from, so that it must
            be stored whatever happens.
    """

    secret: Secret[Mapping[str, str]]
    lifetime_seconds: float | None = None
    consumes_predecessor: bool = False


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
        positions: For each item, what to ask for to go on right behind it, good however rows
            before it come and go meanwhile. Empty where a list can only be gone on with behind a
            whole page; then ``next_position`` should not count rows, or changes between two pages
            may hide a row or show it twice.
    """

    items: Sequence[T]
    next_position: str | None = None
    total: int | None = None
    positions: Sequence[str] = ()

    @property
    def behind(self) -> str | None:
        """What to ask for behind the last item, as surely as the provider allows; at the end, None.

        May cost a call more over a long list than ``next_position``, where pages are numbered.
        """
        if self.next_position is None or not self.positions:
            return self.next_position
        return self.positions[-1]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeRequest:
    """What goes into the address at which a user authorises the gateway.

    Attributes:
        redirect_uri: Where the provider sends the user's browser back to.
        state: Comes back with it, unchanged.
        code_challenge: SHA-256 of the verifier, base64url without padding (RFC 7636, S256).
    """

    redirect_uri: str
    state: str
    code_challenge: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """An authorisation code as it came back, and what proves that we asked for it."""

    code: Secret[str]
    redirect_uri: str
    verifier: Secret[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorizedUser:
    """Who authorised the gateway, and the grant that came of it.

    Attributes:
        user_id: External id of the user.
        display_name: As the provider has it; for a person.
    """

    user_id: str
    display_name: str
    grant: NewGrant


@dataclass(frozen=True, slots=True, kw_only=True)
class NewUser:
    """An account to be created.

    Attributes:
        username: What the user logs in with; unique at the provider.
        display_name: Full name in reading order.
        sis_id: Id in the student information system; unique at the provider.
        notify: Whether the provider may write to the user about it.
    """

    username: str
    display_name: str
    given_name: str | None = None
    family_name: str | None = None
    email: str | None = None
    sis_id: str | None = None
    locale: str | None = None
    time_zone: str | None = None
    notify: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NewLogin:
    """A further way for an existing user to log in.

    Attributes:
        user_id: External id of the user.
        username: What the user logs in with; unique at the provider.
        identity_provider: How the login is checked, in the provider's words (Canvas: id or type
            of the authentication provider); ``None`` for the provider's default.
    """

    user_id: str
    username: str
    sis_id: str | None = None
    identity_provider: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """One way for a user to log in, as the provider has it."""

    id: str
    user_id: str
    username: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEnrollment:
    """A place in a course to be given to a user.

    Attributes:
        user_id: External id of the user.
        course_id: External id of the course.
        role: In the unified sense.
        source_role: The provider's own word, where its finer roles matter; wins over ``role``.
        section_id: External id of the section; ``None`` for the course's default.
        notify: Whether the provider may write to the user about it.
    """

    user_id: str
    course_id: str
    role: RoleValue = RoleValue.STUDENT
    source_role: str | None = None
    section_id: str | None = None
    starts_at: datetime | None = None
    ends_at: datetime | None = None
    notify: bool = False


class EnrollmentEnding(StrEnum):
    """How an enrollment ends.

    CONCLUDE: it is over and stays on record; DEACTIVATE: suspended, can be made active again;
    REMOVE: as if it had not been.
    """

    CONCLUDE = "CONCLUDE"
    DEACTIVATE = "DEACTIVATE"
    REMOVE = "REMOVE"


@dataclass(frozen=True, slots=True)
class Written(Generic[T]):
    """What stands at the provider after a write; ``created`` is false when it stood before."""

    record: T
    created: bool


class Authorization(Protocol):
    """The current grant of one (provider, subject), shared by everyone who uses it."""

    async def current(self) -> Grant:
        """Return the grant to use now, logging in first when there is none.

        Raises:
            ProviderError: There is none and none can be had; ``ReauthRequired`` when only new
                credentials will help.
        """

    async def replace(self, lost: Grant, *, again: bool = False) -> Grant:
        """Return a grant newer than the lost one, made once for all who lost it.

        Args:
            lost: What the provider refused.
            again: Whether the lost one was itself got here a moment ago as a replacement.

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
        subjects: Whom its sessions can act for.
        user_terms: Names of credentials that users' grants depend on, beside the address (OAuth:
            the client's id); a change of any other leaves users authorised.
        grant_bucket: How its token endpoint limits the rate of grants; ``None`` for not at all.
        progress_by_call: Whether ``fetch_progress`` knows more than an enrollment's record.
        sorted_lists: Orders its service sessions can list in; sessions of users are not asked.
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
    subjects: frozenset[SubjectKind] = frozenset({SubjectKind.SERVICE})
    user_terms: tuple[str, ...] = ()
    grant_bucket: Bucket | None = None
    progress_by_call: bool = False
    sorted_lists: frozenset[ListOrder] = frozenset()

    @property
    def knows_users(self) -> bool:
        """Whether it has sessions that act for a user."""
        return bool(self.subjects - {SubjectKind.SERVICE})


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
        subject: Whom it acts for.
    """

    def __init__(
        self,
        provider: Provider,
        *,
        http: ProviderHttp,
        authorization: Authorization,
        exports: Exports,
        subject: Subject = Subject(),
    ) -> None:
        self.provider = provider
        self.subject = subject
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

    def can_renew(self, grant: Grant) -> bool:  # noqa: ARG002 - for platforms that renew
        """Whether a grant that ran out, or was refused, holds what its successor is made from.

        Such a grant is renewed when it is used, never by the clock; see ``renew``.
        """
        return False

    async def renew(
        self,
        grant: Grant,  # noqa: ARG002 - for platforms that renew
        credentials: Secret[Mapping[str, str]],  # noqa: ARG002 - the same
    ) -> NewGrant:
        """Obtain the successor of a grant from what it holds, such as a refresh token.

        Raises:
            ReauthRequired: The provider will not renew it, ever.
            ProviderRateLimited: Not now; the grant can be renewed later.
            ProviderError: The same.
        """
        raise NotSupported(
            f"{self.provider.platform} providers renew no grants", provider_id=self.provider.id
        )

    def authorization_url(
        self,
        request: CodeRequest,  # noqa: ARG002 - for platforms that authorise users
        credentials: Secret[Mapping[str, str]],  # noqa: ARG002 - the same
    ) -> str:
        """Return the address at which a user authorises the gateway.

        Raises:
            NotSupported: Users cannot, or the provider has no client registered for it.
        """
        raise NotSupported(
            f"{self.provider.platform} providers do not authorise users",
            provider_id=self.provider.id,
        )

    async def redeem(
        self,
        code: Code,  # noqa: ARG002 - for platforms that authorise users
        credentials: Secret[Mapping[str, str]],  # noqa: ARG002 - the same
    ) -> AuthorizedUser:
        """Exchange an authorisation code for a user's grant.

        Raises:
            ReauthRequired: The code is used, expired, or not for us.
            ProviderAuthFailed: The provider does not know the gateway's client, or its secret.
            ProviderError: It could not be done now; a code is good for some minutes.
        """
        raise NotSupported(
            f"{self.provider.platform} providers do not authorise users",
            provider_id=self.provider.id,
        )

    # Reading.

    @abstractmethod
    async def check(self) -> ProviderCheck:
        """Read version and name, and find out what the logged-in account lacks."""

    @abstractmethod
    async def list_users(self, *, position: str | None, limit: int) -> Page[User]:
        """Return one page of all users; ``position`` is an earlier page's ``next_position``."""

    async def list_sorted_users(
        self,
        order: ListOrder,  # noqa: ARG002 - for platforms with ``sorted_lists``
        *,
        position: str | None,  # noqa: ARG002 - the same
        limit: int,  # noqa: ARG002 - the same
    ) -> Page[User]:
        """Return one page of all users in an order the platform declares.

        Raises:
            NotSupported: It declares none.
        """
        raise self._lacks("sorted list of users")

    @abstractmethod
    async def fetch_users(self, user_ids: Collection[str]) -> Mapping[str, User]:
        """Return the users of these external ids."""

    @abstractmethod
    async def list_courses(self, *, position: str | None, limit: int) -> Page[Course]:
        """Return one page of all courses."""

    async def list_sorted_courses(
        self,
        order: ListOrder,  # noqa: ARG002 - for platforms with ``sorted_lists``
        *,
        position: str | None,  # noqa: ARG002 - the same
        limit: int,  # noqa: ARG002 - the same
    ) -> Page[Course]:
        """Return one page of all courses in an order the platform declares.

        Raises:
            NotSupported: It declares none.
        """
        raise self._lacks("sorted list of courses")

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

    async def fetch_progress(self, pairs: Collection[Pair]) -> Mapping[Pair, Progress]:  # noqa: ARG002 - for platforms with ``progress_by_call``
        """Return how far users are in courses; pairs with nothing to report are left out."""
        return {}

    async def fetch_milestones(
        self,
        pairs: Collection[Pair],  # noqa: ARG002 - for platforms that have them
    ) -> Mapping[Pair, Sequence[Milestone]]:
        """Return what each user has handed in and been given marks for in each course.

        In the order in which they are due, those without a due date last; a pair without any
        maps to an empty sequence.

        Raises:
            NotSupported: The platform has none.
        """
        raise self._lacks("milestones")

    async def fetch_sections_by_course(
        self,
        course_ids: Collection[str],  # noqa: ARG002 - for platforms that have them
    ) -> Mapping[str, Sequence[Section]]:
        """Return each course's sections by title; a course without any maps to an empty sequence.

        Raises:
            NotSupported: The platform has none.
        """
        raise self._lacks("sections")

    async def fetch_activity_by_user(
        self,
        user_ids: Collection[str],  # noqa: ARG002 - for platforms that have it
        *,
        limit: int,  # noqa: ARG002 - the same
    ) -> Mapping[str, Sequence[Activity]]:
        """Return the latest things each user did, newest first, at most ``limit`` each.

        Raises:
            NotSupported: The platform does not tell.
        """
        raise self._lacks("activity")

    # Writing. Each looks first, and changes nothing that is already as wanted.

    async def create_user(self, user: NewUser) -> Written[User]:  # noqa: ARG002 - for platforms that can
        """Create an account, unless one with this username and SIS id is there.

        Raises:
            ProviderRejected: It cannot be, and why: the username belongs to somebody else.
            ProviderForbidden: The subject may not.
            NotSupported: The platform cannot.
        """
        raise self._lacks("ways to create users")

    async def create_login(self, login: NewLogin) -> Written[Login]:  # noqa: ARG002 - the same
        """Give a user a further login, unless they have it.

        Raises:
            ProviderRejected: It belongs to somebody else, or there is no such user.
            ProviderForbidden: The subject may not.
            NotSupported: The platform cannot.
        """
        raise self._lacks("ways to create logins")

    async def enroll(self, enrollment: NewEnrollment) -> Written[Enrollment]:  # noqa: ARG002 - the same
        """Give a user an active place in a course, unless they have it.

        Raises:
            ProviderRejected: There is no such user or course, or the course takes nobody.
            ProviderForbidden: The subject may not.
            NotSupported: The platform cannot.
        """
        raise self._lacks("ways to enroll users")

    async def end_enrollment(
        self,
        pair: Pair,  # noqa: ARG002 - the same
        enrollment_id: str,  # noqa: ARG002 - the same
        ending: EnrollmentEnding,  # noqa: ARG002 - the same
    ) -> Written[Enrollment]:
        """End an enrollment, unless it has ended so; ``created`` says whether anything changed.

        Raises:
            ProviderRejected: There is no such enrollment.
            ProviderForbidden: The subject may not.
            NotSupported: The platform cannot.
        """
        raise self._lacks("ways to end enrollments")

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
        as well, and a provider that starts anew may end the next one before it is used, so there
        is a third.

        Raises:
            ProviderAuthFailed: The new grants are refused as well.
        """
        grant = await self._authorization.current()
        for turn in range(_REPLACEMENTS):
            try:
                return await call(grant)
            except SessionLost:
                grant = await self._authorization.replace(grant, again=turn > 0)
        try:
            return await call(grant)
        except SessionLost as error:
            raise ProviderAuthFailed(
                "The provider ended a session it had just granted", provider_id=self.provider.id
            ) from error

    def _lacks(self, what: str) -> NotSupported:
        return NotSupported(
            f"{self.provider.platform} providers have no {what}", provider_id=self.provider.id
        )
