"""What one request carries: who asks, what it may reach, and what went wrong on the way.

The protocols say what a request needs of its surroundings; the application satisfies them with
the session manager, the provider store, the platform registry, the icon service and the
registration rules, tests with recording fakes.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from dataclasses import InitVar, dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Final, Protocol

import structlog

from resolvers.caching import RecordCache
from resolvers.errors import BadInput, Forbidden, RequestLimitExceeded
from resolvers.loaders import BatchLoader, ExternalKey, Loaders
from resolvers.operations import Operation, OperationWatcher
from resolvers.quotas import Quotas
from resolvers.reading import Reading, ReadingTerms
from sessions.base import (
    ACT_AS,
    MASQUERADE,
    SERVICE,
    Platform,
    ProviderSession,
    Subject,
    SubjectKind,
)
from sessions.errors import ProviderError, ProviderNotFound
from sessions.resilience import ProviderHealth
from storage.credentials import Secret
from storage.errors import StorageError
from storage.imports import ImportRun, ImportStore
from storage.leases import SessionStatus
from storage.records import Course, Provider, SessionState

if TYPE_CHECKING:
    from resolvers.auditing import AuditLog
    from resolvers.people import MatchesWanted, MatchRecord, People, PersonRecord
    from resolvers.writing import Writes

NOT_FOR_USERS = (
    "Providers are registered and changed for the organisation, not on behalf of users: send this"
    " without the header On-Behalf-Of"
)

_DEFAULT_PAGE_SIZE = 100
_PROVIDER_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_MADE_WHEN_WANTED: Final = ("loaders", "reading", "last_import", "person_of", "matches_of")

_log = structlog.get_logger("context")


class Scope(StrEnum):
    """What an API key may be allowed to do; ``admin`` includes all the others."""

    READ_USERS = "read:users"
    READ_COURSES = "read:courses"
    READ_ENROLLMENTS = "read:enrollments"
    READ_PROVIDERS = "read:providers"
    READ_METRICS = "read:metrics"
    WRITE_PROVIDERS = "write:providers"
    WRITE_USERS = "write:users"
    WRITE_ENROLLMENTS = "write:enrollments"
    WRITE_PEOPLE = "write:people"
    ACT_AS_USERS = "act:users"
    INTROSPECT = "introspect"
    ADMIN = "admin"


class Access(Protocol):
    """What the caller's key allows; what is equal allows the same."""

    def __hash__(self) -> int: ...

    @property
    def key_id(self) -> str:
        """Which key it is; the same for as long as the key exists."""

    @property
    def scopes(self) -> frozenset[str]:
        """What it was given, as it was given; ``allows`` says what that comes to."""

    @property
    def accounts(self) -> Mapping[str, str] | None:
        """A learner's own external ids by provider id; ``None`` for whoever is no learner."""

    def allows(self, scope: str, /) -> bool:
        """Whether the key has the scope, by itself or through ``admin``."""

    def sees(self, provider_id: str, /) -> bool:
        """Whether the provider exists as far as this key is concerned."""


class Statuses(Protocol):
    """Where it is told how sessions stand."""

    async def list_statuses(
        self,
        *,
        provider_ids: Collection[str] | None = None,
        states: Collection[SessionState] | None = None,
        subject: str | None = None,
        limit: int | None = None,
    ) -> Sequence[SessionStatus]:
        """Return how sessions stand, by provider id and subject.

        Args:
            provider_ids: Only of these providers.
            states: Only those in one of these states.
            subject: Only of this one.
            limit: At most so many of each provider.
        """


class Sessions(Statuses, Protocol):
    """Where provider sessions are borrowed."""

    def session(
        self, provider_id: str, subject: str = SERVICE, /
    ) -> AbstractAsyncContextManager[ProviderSession]:
        """Lend the subject's session with the provider for as long as the block lasts.

        Raises:
            ProviderError: There is none to be had; ``ProviderNotFound`` for an unknown provider.
        """

    def health(self, provider_id: str, /) -> ProviderHealth | None:
        """Return how this process gets on with a provider; ``None`` when it has not used it."""


class Providers(Protocol):
    """Where registered providers are read, and writes at them are noted."""

    async def get_all(self) -> Sequence[Provider]:
        """Return every provider in order of registration."""

    async def note_write(self, provider_id: str, /) -> None:
        """Take note that something was written at a provider: what was read before is old."""


class Platforms(Protocol):
    """Which kinds of software the gateway can talk to."""

    def get(self, name: str, /) -> Platform | None:
        """Return the platform of that name, if it is installed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    """An image the gateway keeps and serves.

    Attributes:
        sha256: Hash of the served bytes, in hex.
        media_type: Of the served bytes, such as ``image/webp``.
        byte_size: Length of the served bytes.
        width: In pixels.
        height: In pixels.
        url: Where the gateway serves it.
    """

    sha256: str
    media_type: str
    byte_size: int
    width: int
    height: int
    url: str


class Icons(Protocol):
    """Where courses' icons come from; a broken one is ``None`` and never an error.

    Attributes:
        changes: How often something was found out of one.
    """

    changes: int

    async def urls(self, wanted: Sequence[tuple[Course, int]]) -> Sequence[str | None]:
        """Return the address of each course's icon at about the given width in pixels."""

    def urls_at_hand(self, wanted: Sequence[tuple[Course, int]]) -> Sequence[str | None] | None:
        """Return the same if nothing has to be waited for."""

    async def assets(self, courses: Sequence[Course]) -> Sequence[Asset | None]:
        """Return each course's icon in the largest size kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderDraft:
    """What is asked of a registration.

    Attributes:
        id: The product's own id for the provider.
        platform: Name of the platform, such as ``kolibri``.
        name: For a person; ``None`` to take the name the installation gives itself.
        base_url: Where it is reached.
        account_id: Which part of the installation is meant (Kolibri: the facility id).
        options: Settings the platform understands.
        credentials: Names to values, as the platform's ``credential_fields`` ask.
    """

    id: str
    platform: str
    name: str | None = None
    base_url: str
    account_id: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    credentials: Secret[Mapping[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderChanges:
    """What an update changes; ``None`` leaves as it is, an empty ``account_id`` removes it.

    Attributes:
        credentials: Those given take the place of the stored ones of the same names.
        options: Replaces all of them.
        disabled: True stops every call to the provider, False starts them again.
        expected_revision: Refuses the update when the provider has changed since.
    """

    name: str | None = None
    base_url: str | None = None
    account_id: str | None = None
    options: Mapping[str, str] | None = None
    credentials: Secret[Mapping[str, str]] | None = None
    disabled: bool | None = None
    expected_revision: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a mutation was not carried out; nothing was changed.

    Attributes:
        code: One of the stable error codes.
        message: For a person.
        field: Name of the input at fault (``base_url``, ``credentials.password``), if one is.
        retryable: Whether the same request may succeed later.
    """

    code: str
    message: str
    field: str | None = None
    retryable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderCheckReport:
    """What a check of a registered provider found.

    Attributes:
        provider: The provider as it is after the check.
        version: Software version it reports.
        name: What the installation calls itself.
        account: What the account may see, for a person.
        missing: Permissions the account lacks, each a sentence with its consequence.
    """

    provider: Provider
    version: str
    name: str
    account: str
    missing: tuple[str, ...] = ()


class Registration(Protocol):
    """The rules by which providers come, change and go."""

    async def find(self, provider_id: str) -> Provider | None:
        """Return the provider; asks the product for the details of one not registered yet."""

    async def register(self, draft: ProviderDraft) -> Provider | Refusal:
        """Check and store a provider, replacing one of the same id."""

    async def update(self, provider_id: str, changes: ProviderChanges) -> Provider | Refusal:
        """Check and store changes to a provider."""

    async def remove(self, provider_id: str) -> bool:
        """Forget a provider and everything kept of it; False when there is none."""

    async def check(self, provider_id: str) -> ProviderCheckReport | Refusal:
        """Reach the provider, read its version and log in."""

    async def revoke(self, provider_id: str, subject: str) -> bool:
        """End a session and log out; False when there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorizationLink:
    """An address of ours that a user opens in a browser to let the gateway act for them.

    Attributes:
        url: Where to send the user.
        expires_at: Until when it can be opened.
    """

    url: str
    expires_at: datetime


class Authorizing(Protocol):
    """How users are asked to let the gateway act for them."""

    async def begin(
        self, provider: Provider, user_id: str | None, /
    ) -> AuthorizationLink | Refusal:
        """Return a link for one user, or for anybody, if the provider's users can be asked."""

    def link(self, provider_id: str, user_id: str | None = None, /) -> AuthorizationLink:
        """Return a link without looking whether it leads anywhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingLimits:
    """How much one list may cost.

    Attributes:
        max_page_size: Largest ``first``.
        max_collected_rows: How many rows a filtered or ordered list may read to find its own.
        max_nested_rows: How many rows all lists inside other lists of one answer may hold.
        patience_seconds: How long the next provider in line waits for a slow one before it is
            asked as well.
        cursor_key: Secret that authenticates cursors; the same in every process.
        cursor_seconds: How long after the beginning of a walk its cursors are good.
    """

    max_page_size: int = 1000
    max_collected_rows: int = 20_000
    max_nested_rows: int = 20_000
    patience_seconds: float = 0.3
    cursor_key: Secret[bytes]
    cursor_seconds: float = 7 * 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFailure:
    """One provider's failure in one field of the answer.

    Attributes:
        provider_id: Whose failure.
        error: What happened.
        path: Where in the answer, response names and list positions from the root.
    """

    provider_id: str
    error: ProviderError
    path: tuple[str | int, ...]


@dataclass(kw_only=True)
class RequestContext:
    """Everything one request may use; made for it and thrown away with it.

    A request acts for the organisation, or for the users of ``subjects``, for one at each provider.
    Then the providers not named there do not exist for it, and whatever it reads is read as that
    user: providers are reached through ``session`` and through nothing else.

    A learner's request acts for the learner's own accounts. Where the platform knows no users'
    sessions it is read with the organisation's, and then too no row of anybody else is read.

    Args:
        sessions: Where sessions are borrowed.

    Attributes:
        access: What the caller may do.
        providers: Registered providers.
        platforms: Installed platforms.
        registration: Rules for providers' coming and going.
        icons: Icon service; ``None`` where icons are not needed, such as in an export.
        writes: Carries writes at providers out; ``None`` where there are none.
        authorizing: How users are asked; ``None`` where nobody is, such as in an export.
        imports: Runs and changes; ``None`` where there are none.
        people: Who is who; ``None`` where nobody asks, such as in an export.
        audit: Where changes are noted; ``None`` where there are none, such as in an export.
        limits: How much a list may cost.
        cache: What is kept of providers' answers; ``None`` to read everything live.
        terms: How fresh answers are unless asked otherwise, and how long they are waited for.
        quotas: What keys have used; ``None`` where nobody is charged, such as in an export.
        request_id: Shown to the caller and written to the log.
        subjects: External ids of the users acted for by provider id; none for the organisation, or
            for a learner without accounts.
        watcher: Hears of the operations it executes; ``None`` where nobody does.
        failures: Providers that failed so far without failing the request.
    """

    access: Access
    sessions: InitVar[Sessions]
    providers: Providers
    platforms: Platforms
    registration: Registration
    icons: Icons | None = None
    writes: Writes | None = None
    authorizing: Authorizing | None = None
    imports: ImportStore | None = None
    people: People | None = None
    audit: AuditLog | None = None
    limits: ReadingLimits
    cache: RecordCache | None = None
    terms: ReadingTerms = field(default_factory=ReadingTerms)
    quotas: Quotas | None = None
    request_id: str
    subjects: Mapping[str, str] = field(default_factory=dict)
    watcher: OperationWatcher | None = None
    failures: list[SourceFailure] = field(default_factory=list)
    _sessions: Sessions = field(init=False, repr=False)
    _providers_by_id: dict[str, Provider] | None = field(default=None, init=False, repr=False)
    _nested_rows: int = field(default=0, init=False, repr=False)

    def __post_init__(self, sessions: Sessions) -> None:
        """Raise ``Forbidden`` when it is to act for users and the caller's key may not."""
        if self.subjects:
            self.require(Scope.ACT_AS_USERS)
        if self.access.accounts is not None:
            self.subjects = self.access.accounts
        self._sessions = sessions

    def watched(self) -> AbstractContextManager[Operation]:
        """Have an operation watched over for as long as the block lasts."""
        return nullcontext(Operation()) if self.watcher is None else self.watcher.watch(self)

    @cached_property
    def loaders(self) -> Loaders:
        """The batches of the request, made when the first is wanted, as all that follows."""
        return Loaders(
            self._sessions,
            self.icons,
            reading=self.reading,
            page_size_of=self.page_size_of,
            max_collected_rows=self.limits.max_collected_rows,
            own=self.access.accounts,
        )

    @cached_property
    def reading(self) -> Reading:
        """How the request reads providers."""
        return Reading(
            self.session,
            self.cache,
            terms=self.terms,
            find=self.get_provider,
            subject_of=self.subject_of,
        )

    @cached_property
    def last_import(self) -> BatchLoader[str, ImportRun]:
        """The last run of a provider."""

        async def fetch(_group: str, provider_ids: Sequence[str]) -> Mapping[str, ImportRun]:
            return {} if self.imports is None else await self.imports.list_last_runs(provider_ids)

        return BatchLoader(group_of=_in_one, fetch=fetch)

    @cached_property
    def person_of(self) -> BatchLoader[ExternalKey, PersonRecord]:
        """The person of an account."""

        async def fetch(
            _group: str, keys: Sequence[ExternalKey]
        ) -> Mapping[ExternalKey, PersonRecord]:
            return {} if self.people is None else await self.people.find_persons_of(self, keys)

        return BatchLoader(group_of=_in_one, fetch=fetch)

    @cached_property
    def matches_of(self) -> BatchLoader[MatchesWanted, Sequence[MatchRecord]]:
        """Who else an account may be."""

        async def fetch(
            _group: str, keys: Sequence[MatchesWanted]
        ) -> Mapping[MatchesWanted, Sequence[MatchRecord]]:
            return {} if self.people is None else await self.people.find_matches_of(self, keys)

        return BatchLoader(group_of=_in_one, fetch=fetch)

    def give_up(self) -> None:
        """End every call under way, at the end of the request, and let go of what was read.

        What is asked for afterwards is read anew. Nothing is left that refers back to the request:
        such circles would stay until the garbage collector comes by.
        """
        made = self.__dict__
        if "loaders" in made:
            self.loaders.cancel()
        if "reading" in made:
            self.reading.give_up()
        for name in _MADE_WHEN_WANTED:
            made.pop(name, None)

    @property
    def acts_for_users(self) -> bool:
        """Whether it acts for users, and not for the organisation."""
        return self.is_learners or bool(self.subjects)

    @property
    def is_learners(self) -> bool:
        """Whether it is a learner's own."""
        return self.access.accounts is not None

    @property
    def icons_known(self) -> int:
        """A number that is another once something was found out of an icon."""
        return 0 if self.icons is None else self.icons.changes

    def refuse_learners(self) -> None:
        """Refuse to tell a learner what is for whoever looks after providers.

        Raises:
            Forbidden: It is a learner's request.
        """
        if self.is_learners:
            raise Forbidden("This is for whoever looks after providers, not for learners")

    def shown(self, error: ProviderError) -> ProviderError:
        """Return a provider's failure as the caller may see it: learners are told no address."""
        if not self.is_learners:
            return error
        shown = copy.copy(error)
        shown.message = "The provider could not do this"
        return shown

    def count_nested_rows(self, count: int) -> None:
        """Take note of rows that go into the answer, wherever and however often they do.

        Raises:
            RequestLimitExceeded: They are more than one answer may hold.
        """
        self._nested_rows += count
        if self._nested_rows > self.limits.max_nested_rows:
            raise RequestLimitExceeded(
                f"The answer would hold more than {self.limits.max_nested_rows} rows in lists"
                " inside lists; ask for smaller pages, or for less inside each other",
                limit="nested_rows",
            )

    def has_room_for(self, count: int) -> bool:
        """Whether the answer may hold so many rows more in lists inside lists."""
        return self._nested_rows + count <= self.limits.max_nested_rows

    def note_max_age(self, seconds: int | None) -> None:
        """Take note of how old what a field reads, and what hangs on it, may be.

        Raises:
            BadInput: It is negative.
        """
        if seconds is not None and seconds < 0:
            raise BadInput("maxAge", f"{seconds} is negative; 0 asks for live answers")
        self.reading.note_max_age(seconds)

    def require(self, scope: Scope) -> None:
        """Refuse to go on unless the caller's key has the scope.

        Raises:
            Forbidden: It has not, or providers are to be changed on behalf of users.
        """
        if not self.access.allows(scope):
            raise Forbidden(f"This needs a key with the scope {scope}")
        if self.acts_for_users and scope is Scope.WRITE_PROVIDERS:
            raise Forbidden(NOT_FOR_USERS)

    def session(self, provider_id: str, /) -> AbstractAsyncContextManager[ProviderSession]:
        """Lend the session this request reads a provider with, already read for it.

        Raises:
            ProviderError: There is none to be had; ``ProviderNotFound`` for a provider that does
                not exist for this request.
        """
        return self._sessions.session(provider_id, self.subject_of(provider_id))

    def health(self, provider_id: str) -> ProviderHealth | None:
        """Return how this process gets on with a provider; ``None`` when it has not used it.

        Raises:
            Forbidden: The scope to read providers is missing.
        """
        self.require(Scope.READ_PROVIDERS)
        return self._sessions.health(provider_id)

    def subject_of(self, provider_id: str) -> str:
        """Return, as text, whom this request acts for at a provider already read for it.

        Raises:
            ProviderNotFound: It acts for users, and for none of this provider's.
        """
        if not self.acts_for_users:
            return SERVICE
        provider = self.get_provider(provider_id)
        if provider is None or provider_id not in self.subjects:
            raise ProviderNotFound("No such provider is registered", provider_id=provider_id)
        platform = self.platforms.get(provider.platform)
        if self.is_learners and platform is not None and not platform.knows_users:
            return SERVICE
        masquerades = provider.options.get(ACT_AS) == MASQUERADE
        kind = SubjectKind.MASQUERADE if masquerades else SubjectKind.USER
        return str(Subject(kind, self.subjects[provider_id]))

    async def visible_providers(self) -> Mapping[str, Provider]:
        """Return the providers that exist for this request by id, in order of registration.

        Read once per request.
        """
        if self._providers_by_id is None:
            found = await self.providers.get_all()
            if self.acts_for_users:
                found = [provider for provider in found if provider.id in self.subjects]
            sees = self.access.sees
            self._providers_by_id = {
                provider.id: provider for provider in found if sees(provider.id)
            }
        return self._providers_by_id

    def get_provider(self, provider_id: str) -> Provider | None:
        """Return a provider already read for this request."""
        return (self._providers_by_id or {}).get(provider_id)

    def platform_of(self, provider_id: str) -> Platform | None:
        """Return the platform of a provider already read for this request, if it is installed."""
        provider = self.get_provider(provider_id)
        return None if provider is None else self.platforms.get(provider.platform)

    def page_size_of(self, provider_id: str) -> int:
        """Return the largest page that costs the provider, already read, little."""
        platform = self.platform_of(provider_id)
        return _DEFAULT_PAGE_SIZE if platform is None else platform.page_size

    async def find_provider(self, provider_id: str) -> Provider | None:
        """Find a provider that exists for this request; the product is asked of an unknown one."""
        known = await self.visible_providers()
        if provider_id in known:
            return known[provider_id]
        if not _PROVIDER_ID.fullmatch(provider_id) or not self._sees(provider_id):
            return None
        found = await self.registration.find(provider_id)
        if found is not None and self._providers_by_id is not None:
            self._providers_by_id[provider_id] = found
        return found

    def forget_providers(self) -> None:
        """Read the providers anew when next asked: a mutation has changed them."""
        self._providers_by_id = None

    def forget_loaded(self) -> None:
        """Ask for everything anew when next asked: a mutation changed it, or time has passed."""
        self.give_up()

    async def note_write(self, provider_id: str) -> None:
        """Have everything read anew, by every request: a mutation wrote at a provider.

        When others cannot be told, because the database does not answer, they may be served what
        was read before for as long as it counts as fresh.
        """
        try:
            await self.providers.note_write(provider_id)
            self.forget_providers()
            await self.visible_providers()
        except StorageError as error:
            _log.warning("write_not_noted", provider_id=provider_id, problem=str(error))
            if self.cache is not None:
                self.cache.drop(provider_id)
        self.forget_loaded()

    def _sees(self, provider_id: str) -> bool:
        is_meant = not self.acts_for_users or provider_id in self.subjects
        return is_meant and self.access.sees(provider_id)


def _in_one(_key: object) -> str:
    """Put all keys into one group."""
    return ""
