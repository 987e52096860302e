"""Users, courses and enrollments over every provider the caller may see."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, Generic, TypeAlias, TypeVar, cast

from resolvers.caching import Kept
from resolvers.chains import NOTHING, Wanted, follow
from resolvers.collation import fold, sort_key
from resolvers.context import RequestContext, Scope, SourceFailure
from resolvers.cursors import CursorSealer
from resolvers.errors import BadInput, RequestLimitExceeded, RequestRefused
from resolvers.loaders import (
    COURSES,
    ENROLLMENTS,
    USERS,
    BatchLoader,
    ExternalKey,
    FetchGroup,
    ListKind,
    StatusFilter,
    pages_of,
)
from resolvers.paging import (
    CollectedRow,
    Connection,
    FetchPage,
    PageRequest,
    SortedStreams,
    SortKey,
    SourceState,
    SourceStatus,
    checked_first,
    merge_providers,
    page_of_rows,
    registration_key,
    walk_providers,
)
from sessions.base import ListOrder, Page
from sessions.errors import ProviderError, ProviderNotFound
from storage.leases import SessionStatus
from storage.records import (
    Activity,
    Course,
    CourseKind,
    CourseState,
    Enrollment,
    EnrollmentSource,
    EnrollmentState,
    Milestone,
    Progress,
    Provenance,
    Provider,
    ProviderState,
    RoleValue,
    Section,
    SessionState,
    User,
)

T = TypeVar("T")
R = TypeVar("R")

Path: TypeAlias = tuple[str | int, ...]
"""Where in the answer a field is, for errors to name."""

DEFAULT_FIRST = 50
DEFAULT_ICON_WIDTH = 256
MAX_SESSIONS = 1000
MAX_ACTIVITIES = 100

_CURSOR_FORMAT = 2
_FORMER_CURSOR_FORMATS = (1,)
_MAX_PROVIDERS_NAMED = 100
_PROGRESS_FIELDS = tuple(member.name for member in dataclasses.fields(Progress))
_MAX_ICON_WIDTH = 4096


class UserOrderField(StrEnum):
    """What users can be ordered by.

    PROVIDER is provider by provider, in order of registration. MODIFIED is when the provider says
    a row last changed. Rows without what is ordered by come last, whichever end comes first.
    """

    PROVIDER = "PROVIDER"
    DISPLAY_NAME = "DISPLAY_NAME"
    USERNAME = "USERNAME"
    MODIFIED = "MODIFIED"


class CourseOrderField(StrEnum):
    """What courses can be ordered by; see ``UserOrderField``."""

    PROVIDER = "PROVIDER"
    TITLE = "TITLE"
    MODIFIED = "MODIFIED"


class EnrollmentOrderField(StrEnum):
    """What enrollments can be ordered by; see ``UserOrderField``."""

    PROVIDER = "PROVIDER"
    MODIFIED = "MODIFIED"


@dataclass(frozen=True, slots=True, kw_only=True)
class UserFilter:
    """Which users are meant; ``None`` does not restrict, an empty tuple lets nothing through.

    Attributes:
        user_ids: Provider ids and external ids.
        usernames: Compared exactly.
        search: Part of display name or username, blind to case and accents.
        roles: Any of them is enough.
    """

    provider_ids: tuple[str, ...] | None = None
    user_ids: tuple[ExternalKey, ...] | None = None
    usernames: tuple[str, ...] | None = None
    search: str | None = None
    roles: tuple[RoleValue, ...] | None = None
    active: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CourseFilter:
    """Which courses are meant; ``search`` looks at title and course code."""

    provider_ids: tuple[str, ...] | None = None
    kinds: tuple[CourseKind, ...] | None = None
    states: tuple[CourseState, ...] | None = None
    search: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrollmentFilter:
    """Which enrollments are meant; ids are provider ids and external ids."""

    provider_ids: tuple[str, ...] | None = None
    user_ids: tuple[ExternalKey, ...] | None = None
    course_ids: tuple[ExternalKey, ...] | None = None
    roles: tuple[RoleValue, ...] | None = None
    states: tuple[EnrollmentState, ...] | None = None
    sources: tuple[EnrollmentSource, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PageArguments:
    """The paging arguments of a list as the caller gave them.

    Attributes:
        max_age_seconds: How old kept rows may be; ``None`` for the provider's usual age.
    """

    first: int = DEFAULT_FIRST
    after: str | None = None
    max_age_seconds: int | None = None


ANY_USER = UserFilter()
ANY_COURSE = CourseFilter()
ANY_ENROLLMENT = EnrollmentFilter()
FIRST_PAGE = PageArguments()


_SCOPES: Final = {
    USERS.name: Scope.READ_USERS,
    COURSES.name: Scope.READ_COURSES,
    ENROLLMENTS.name: Scope.READ_ENROLLMENTS,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Age:
    """How old one provider's part of a list is.

    Attributes:
        as_of: When the oldest of it was read; ``None`` for nothing.
        error: Why nothing newer could be had; ``None`` while it is as fresh as was asked.
    """

    as_of: datetime | None
    error: ProviderError | None = None

    @classmethod
    def of(cls, kept: Kept[Any]) -> _Age:
        return cls(as_of=kept.read_at, error=kept.error)

    def and_also(self, other: _Age | None) -> _Age:
        """Return the age of both together."""
        if other is None:
            return self
        instants = [at for at in (self.as_of, other.as_of) if at is not None]
        return _Age(as_of=min(instants, default=None), error=self.error or other.error)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Collected(Generic[T]):
    """Rows of one provider, in any order, with their age."""

    rows: Iterable[T]
    age: _Age


_Collect: TypeAlias = Callable[[Provider], Awaitable[_Collected[T]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Order(Generic[T]):
    """One thing to sort by.

    Attributes:
        value_of: What rows compare by; ``None`` for those that have none and come last.
        rising: The same as a platform's own order, if there is one.
        falling: Its reverse.
    """

    value_of: Callable[[T], str | float | None]
    rising: ListOrder | None = None
    falling: ListOrder | None = None


_USER_ORDERS: Mapping[UserOrderField, _Order[User] | None] = {
    UserOrderField.PROVIDER: None,
    UserOrderField.DISPLAY_NAME: _Order(
        value_of=lambda user: sort_key(user.display_name),
        rising=ListOrder.USERS_BY_DISPLAY_NAME,
        falling=ListOrder.USERS_BY_DISPLAY_NAME_DESCENDING,
    ),
    UserOrderField.USERNAME: _Order(
        value_of=lambda user: None if user.username is None else sort_key(user.username),
        rising=ListOrder.USERS_BY_USERNAME,
        falling=ListOrder.USERS_BY_USERNAME_DESCENDING,
    ),
    UserOrderField.MODIFIED: _Order(value_of=lambda user: _seconds_of(user.provenance)),
}
_COURSE_ORDERS: Mapping[CourseOrderField, _Order[Course] | None] = {
    CourseOrderField.PROVIDER: None,
    CourseOrderField.TITLE: _Order(
        value_of=lambda course: sort_key(course.title),
        rising=ListOrder.COURSES_BY_TITLE,
        falling=ListOrder.COURSES_BY_TITLE_DESCENDING,
    ),
    CourseOrderField.MODIFIED: _Order(value_of=lambda course: _seconds_of(course.provenance)),
}
_ENROLLMENT_ORDERS: Mapping[EnrollmentOrderField, _Order[Enrollment] | None] = {
    EnrollmentOrderField.PROVIDER: None,
    EnrollmentOrderField.MODIFIED: _Order(value_of=lambda row: _seconds_of(row.provenance)),
}


def _seconds_of(provenance: Provenance) -> float | None:
    """Return when the provider says a row last changed, in seconds since 1970."""
    return None if provenance.modified_at is None else provenance.modified_at.timestamp()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Selection(Generic[T]):
    """How a list is read, narrowed and sorted here.

    Attributes:
        collect: Reads the rows of one provider.
        matches: Whether a row is meant.
        order: What rows are sorted by; ``None`` for their provider's place.
        descending: Whether the order is turned round.
        filtered: Whether ``matches`` leaves out any.
        whole: Whether ``collect`` reads the provider's whole list.
    """

    collect: _Collect[T]
    matches: Callable[[T], bool]
    order: _Order[T] | None = None
    descending: bool = False
    filtered: bool = True
    whole: bool = True

    @property
    def list_order(self) -> ListOrder | None:
        """The order in which a provider that sorts would have to list."""
        if self.order is None or not self.whole:
            return None
        return self.order.falling if self.descending else self.order.rising


@dataclass(frozen=True, slots=True, kw_only=True)
class _Query(Generic[T]):
    """One list to be answered.

    Attributes:
        kind: Which list.
        fingerprint: Filter and order; a cursor serves queries of the same one only.
        provider_ids: Which providers; ``None`` for all that are not disabled.
        selection: ``None`` for the list as the providers have it.
    """

    kind: ListKind[T]
    fingerprint: object
    provider_ids: Sequence[str] | None
    selection: _Selection[T] | None


async def users(
    context: RequestContext,
    *,
    filter: UserFilter = ANY_USER,  # noqa: A002 - the argument's name in the API
    order: UserOrderField = UserOrderField.PROVIDER,
    descending: bool = False,
    page: PageArguments = FIRST_PAGE,
    path: Path = ("users",),
    wants_total: bool = False,
    wanted: Wanted = NOTHING,
) -> Connection[User]:
    """Return a page of users.

    What is ``wanted`` of users is begun as soon as a provider's are here (``resolvers.chains``).
    With no filter but ``provider_ids`` and no order, it is a page of the providers' own lists.
    Otherwise every user of the providers is read, up to the collection limit, save of providers
    that sort for themselves: those are read as far as the page goes, unless the walk began with
    asking for the total.

    Raises:
        RequestRefused: An argument is wrong, a scope is missing, or the list is too long.
        StorageError: The registered providers could not be read.
    """
    selection: _Selection[User] | None = None
    filtered = filter != UserFilter(provider_ids=filter.provider_ids)
    if filtered or order is not UserOrderField.PROVIDER or descending:
        selection = _Selection(
            collect=_everything(context, USERS, page)
            if filter.user_ids is None
            else _by_id(context, filter.user_ids),
            matches=_user_matcher(filter),
            order=_USER_ORDERS[order],
            descending=descending,
            filtered=filtered,
            whole=filter.user_ids is None,
        )
    query = _Query(
        kind=USERS,
        fingerprint=[dataclasses.astuple(filter), order, descending],
        provider_ids=_providers_named(filter.provider_ids, filter.user_ids),
        selection=selection,
    )
    connection = await _answer(
        context, query, page, path=path, wants_total=wants_total, wanted=wanted
    )
    for user in connection.nodes:
        context.loaders.user_by_id.prime((user.provider_id, user.external_id), user)
    return connection


async def courses(
    context: RequestContext,
    *,
    filter: CourseFilter = ANY_COURSE,  # noqa: A002 - the argument's name in the API
    order: CourseOrderField = CourseOrderField.PROVIDER,
    descending: bool = False,
    page: PageArguments = FIRST_PAGE,
    path: Path = ("courses",),
    wants_total: bool = False,
    wanted: Wanted = NOTHING,
) -> Connection[Course]:
    """Return a page of courses, read as ``users`` reads users.

    Raises:
        RequestRefused: An argument is wrong, a scope is missing, or the list is too long.
        StorageError: The registered providers could not be read.
    """
    selection: _Selection[Course] | None = None
    filtered = filter != CourseFilter(provider_ids=filter.provider_ids)
    if filtered or order is not CourseOrderField.PROVIDER or descending:
        selection = _Selection(
            collect=_everything(context, COURSES, page),
            matches=_course_matcher(filter),
            order=_COURSE_ORDERS[order],
            descending=descending,
            filtered=filtered,
        )
    query = _Query(
        kind=COURSES,
        fingerprint=[dataclasses.astuple(filter), order, descending],
        provider_ids=filter.provider_ids,
        selection=selection,
    )
    connection = await _answer(
        context, query, page, path=path, wants_total=wants_total, wanted=wanted
    )
    for course in connection.nodes:
        context.loaders.course_by_id.prime((course.provider_id, course.external_id), course)
    return connection


async def enrollments(
    context: RequestContext,
    *,
    filter: EnrollmentFilter = ANY_ENROLLMENT,  # noqa: A002 - the argument's name in the API
    order: EnrollmentOrderField = EnrollmentOrderField.PROVIDER,
    descending: bool = False,
    page: PageArguments = FIRST_PAGE,
    path: Path = ("enrollments",),
    wants_total: bool = False,
    wanted: Wanted = NOTHING,
) -> Connection[Enrollment]:
    """Return a page of enrollments.

    With ``user_ids`` only these users' enrollments are read, else with ``course_ids`` only these
    courses'; with neither, it is as for ``users``.

    Raises:
        RequestRefused: An argument is wrong, a scope is missing, or the list is too long.
        StorageError: The registered providers could not be read.
    """
    loaders = context.loaders
    selection: _Selection[Enrollment] | None = None
    filtered = filter != EnrollmentFilter(provider_ids=filter.provider_ids)
    if filtered or order is not EnrollmentOrderField.PROVIDER or descending:
        if filter.user_ids is not None:
            collect = _under(context, loaders.enrollments_by_user, filter.user_ids)
        elif filter.course_ids is not None:
            collect = _under(context, loaders.enrollments_by_course, filter.course_ids)
        else:
            collect = _everything(context, ENROLLMENTS, page)
        selection = _Selection(
            collect=collect,
            matches=_enrollment_matcher(filter),
            order=_ENROLLMENT_ORDERS[order],
            descending=descending,
        )
    query = _Query(
        kind=ENROLLMENTS,
        fingerprint=[dataclasses.astuple(filter), order, descending],
        provider_ids=_providers_named(filter.provider_ids, filter.user_ids or filter.course_ids),
        selection=selection,
    )
    return await _answer(context, query, page, path=path, wants_total=wants_total, wanted=wanted)


def enrollments_of_user(
    context: RequestContext,
    user: User,
    *,
    filter: EnrollmentFilter = ANY_ENROLLMENT,  # noqa: A002 - the argument's name in the API
    page: PageArguments = FIRST_PAGE,
) -> asyncio.Future[Connection[Enrollment] | None]:
    """Return the future page of a user's enrollments; batched with other users'.

    Raises:
        RequestRefused: A scope is missing or ``first`` is wrong; a wrong cursor fails the future.
    """
    return _nested_enrollments(
        context,
        (user.provider_id, user.external_id),
        of="user",
        rows_by_key=context.loaders.enrollments_by_user,
        arguments=(filter, page),
    )


def enrollments_of_course(
    context: RequestContext,
    course: Course,
    *,
    filter: EnrollmentFilter = ANY_ENROLLMENT,  # noqa: A002 - the argument's name in the API
    page: PageArguments = FIRST_PAGE,
) -> asyncio.Future[Connection[Enrollment] | None]:
    """Return the future page of a course's enrollments; batched with other courses'.

    Raises:
        RequestRefused: A scope is missing or ``first`` is wrong; a wrong cursor fails the future.
    """
    return _nested_enrollments(
        context,
        (course.provider_id, course.external_id),
        of="course",
        rows_by_key=context.loaders.enrollments_by_course,
        arguments=(filter, page),
    )


def user_of(context: RequestContext, enrollment: Enrollment) -> asyncio.Future[User | None]:
    """Return the future user of an enrollment; ``None`` when the provider has no such user.

    Raises:
        Forbidden: A scope is missing.
    """
    context.require(Scope.READ_USERS)
    return context.loaders.user_by_id.load((enrollment.provider_id, enrollment.user_id))


def course_of(context: RequestContext, enrollment: Enrollment) -> asyncio.Future[Course | None]:
    """Return the future course of an enrollment; ``None`` when the provider has no such course.

    Raises:
        Forbidden: A scope is missing.
    """
    context.require(Scope.READ_COURSES)
    return context.loaders.course_by_id.load((enrollment.provider_id, enrollment.course_id))


def sections_of(
    context: RequestContext, course: Course
) -> asyncio.Future[Sequence[Section] | None]:
    """Return the future sections of a course; batched with other courses'.

    Raises:
        Forbidden: A scope is missing.
    """
    context.require(Scope.READ_COURSES)
    found = context.loaders.sections_by_course.load((course.provider_id, course.external_id))
    return _counted(context, found, len)


def section_of(context: RequestContext, enrollment: Enrollment) -> asyncio.Future[Section | None]:
    """Return the future section of an enrollment, found among those of its course.

    ``None``, without a call, when the enrollment is in none.

    Raises:
        Forbidden: A scope is missing.
    """
    context.require(Scope.READ_COURSES)
    section_id = enrollment.section_id
    if section_id is None:
        return _settled(None)
    key = (enrollment.provider_id, enrollment.course_id)

    def pick(sections: Sequence[Section] | None) -> Section | None:
        return next((row for row in sections or () if row.external_id == section_id), None)

    return _then(context.loaders.sections_by_course.load(key), pick)


def milestones_of(
    context: RequestContext, enrollment: Enrollment
) -> asyncio.Future[Sequence[Milestone] | None]:
    """Return the future milestones of an enrollment's user in its course; batched with others'.

    Raises:
        Forbidden: A scope is missing.
    """
    context.require(Scope.READ_ENROLLMENTS)
    key = (enrollment.provider_id, enrollment.user_id, enrollment.course_id)
    return _counted(context, context.loaders.milestones_by_pair.load(key), len)


def activity_of(
    context: RequestContext, user: User, *, first: int
) -> asyncio.Future[Sequence[Activity] | None]:
    """Return the future list of what a user did last, newest first; batched with other users'.

    Raises:
        RequestRefused: A scope is missing, or ``first`` is wrong.
    """
    context.require(Scope.READ_ENROLLMENTS)
    key = (user.provider_id, user.external_id, checked_first(first, MAX_ACTIVITIES))
    return _counted(context, context.loaders.activity_by_user.load(key), len)


def progress_of(context: RequestContext, enrollment: Enrollment) -> asyncio.Future[Progress | None]:
    """Return the future progress of an enrollment.

    Where the platform tells more of it by a call of its own, that is asked, together with all
    others', and what it leaves open is what the enrollment itself says.

    Raises:
        Forbidden: A scope is missing.
    """
    context.require(Scope.READ_ENROLLMENTS)
    platform = context.platform_of(enrollment.provider_id)
    if platform is None or not platform.progress_by_call:
        return _settled(enrollment.progress)
    key = (enrollment.provider_id, enrollment.user_id, enrollment.course_id)
    return _then(
        context.loaders.progress_by_pair.load(key),
        lambda called: _merged_progress(called, enrollment.progress),
    )


def sessions_of(
    context: RequestContext,
    provider: Provider,
    *,
    states: Sequence[SessionState] | None,
    subject: str | None,
    first: int,
) -> asyncio.Future[Sequence[SessionStatus] | None]:
    """Return the future list of how sessions with a provider stand, by subject.

    Raises:
        RequestRefused: A scope is missing, or ``first`` is wrong.
    """
    context.require(Scope.READ_PROVIDERS)
    wanted = StatusFilter(
        states=None if states is None else tuple(states),
        subject=subject,
        first=checked_first(first, MAX_SESSIONS),
    )
    return _counted(context, context.loaders.session_statuses(provider.id, wanted), len)


def icon_url_of(
    context: RequestContext, course: Course, width: int | None
) -> asyncio.Future[str | None]:
    """Return the future address of a course's icon, 256 pixels wide unless said otherwise.

    Raises:
        BadInput: No icon is that wide.
    """
    width = DEFAULT_ICON_WIDTH if width is None else width
    if not 1 <= width <= _MAX_ICON_WIDTH:
        raise BadInput("width", f"{width} is not between 1 and {_MAX_ICON_WIDTH}")
    return context.loaders.icon_url(course, width)


async def user(context: RequestContext, key: ExternalKey) -> User | None:
    """Return one user.

    Raises:
        Forbidden: A scope is missing.
        ProviderError: The provider could not answer.
    """
    context.require(Scope.READ_USERS)
    if key[0] not in await context.visible_providers():
        return None
    return await context.loaders.user_by_id.load(key)


async def course(context: RequestContext, key: ExternalKey) -> Course | None:
    """Return one course.

    Raises:
        Forbidden: A scope is missing.
        ProviderError: The provider could not answer.
    """
    context.require(Scope.READ_COURSES)
    if key[0] not in await context.visible_providers():
        return None
    return await context.loaders.course_by_id.load(key)


async def enrollment(
    context: RequestContext, user_key: ExternalKey, enrollment_id: str
) -> Enrollment | None:
    """Return one enrollment of a user.

    Raises:
        Forbidden: A scope is missing.
        ProviderError: The provider could not answer.
    """
    context.require(Scope.READ_ENROLLMENTS)
    if user_key[0] not in await context.visible_providers():
        return None
    rows = await context.loaders.enrollments_by_user.load(user_key)
    return next((row for row in rows or () if row.id == enrollment_id), None)


async def list_user_pages(
    context: RequestContext, provider_id: str
) -> AsyncGenerator[Page[User], None]:
    """Yield every page of a provider's users, the next one fetched while one is used.

    Close it when giving up early (``contextlib.aclosing``). No user comes twice.

    Raises:
        Forbidden: A scope is missing.
        ProviderError: The provider could not answer; ``ProviderNotFound`` when there is none.
    """
    async with aclosing(_pages(context, provider_id, USERS)) as pages:
        async for page in pages:
            yield page


async def list_course_pages(
    context: RequestContext, provider_id: str
) -> AsyncGenerator[Page[Course], None]:
    """Yield every page of a provider's courses, as ``list_user_pages`` does users.

    Raises:
        Forbidden: A scope is missing.
        ProviderError: The provider could not answer; ``ProviderNotFound`` when there is none.
    """
    async with aclosing(_pages(context, provider_id, COURSES)) as pages:
        async for page in pages:
            yield page


async def list_enrollment_pages(
    context: RequestContext, provider_id: str
) -> AsyncGenerator[Page[Enrollment], None]:
    """Yield every page of a provider's enrollments, as ``list_user_pages`` does users.

    Raises:
        Forbidden: A scope is missing.
        ProviderError: The provider could not answer; ``ProviderNotFound`` when there is none.
    """
    async with aclosing(_pages(context, provider_id, ENROLLMENTS)) as pages:
        async for page in pages:
            yield page


async def _pages(
    context: RequestContext, provider_id: str, kind: ListKind[T]
) -> AsyncGenerator[Page[T], None]:
    context.require(_SCOPES[kind.name])
    if await context.find_provider(provider_id) is None:
        raise _not_found(provider_id)
    seen: set[str] = set()
    limit = context.page_size_of(provider_id)

    async def fetch(position: str | None) -> Page[T]:
        async with context.session(provider_id) as session:
            return await kind.list_page(session, position, limit)

    pages = pages_of(fetch, provider_id)
    async with aclosing(pages):
        async for page in pages:
            new = [row for row in page.items if kind.id_of(row) not in seen]
            seen.update(map(kind.id_of, new))
            yield dataclasses.replace(page, items=new)


async def _answer(
    context: RequestContext,
    query: _Query[T],
    page: PageArguments,
    *,
    path: Path,
    wants_total: bool,
    wanted: Wanted,
) -> Connection[T]:
    """Return a page of the list; providers that failed are in its sources and the context."""
    context.require(_SCOPES[query.kind.name])
    context.note_max_age(page.max_age_seconds)
    request = _page_request(context, query.kind.name, query.fingerprint, page)
    providers, unknown = await _providers_meant(context, query.provider_ids)
    ages: dict[str, _Age] = {}
    chains = _Chains(context, query.kind, providers, page, wanted)
    if query.selection is None:
        connection = await walk_providers(
            providers,
            fetch_page=chains.following(_page_fetcher(context, query.kind, page, ages)),
            id_of=query.kind.id_of,
            limit_of=lambda provider: context.page_size_of(provider.id),
            request=request,
            length_of=lambda provider: context.reading.length_of(provider.id, query.kind.page),
            patience_seconds=context.limits.patience_seconds,
            prefetch=_prefetcher(context, query.kind, page),
            wants_total=wants_total,
        )
    else:
        connection = await _merged(
            context,
            providers,
            query.kind,
            query.selection,
            request,
            page=page,
            ages=ages,
            chains=chains,
            wants_total=wants_total,
        )
    sources = [*(_aged(source, ages) for source in connection.sources), *unknown]
    for source in sources:
        if source.state is SourceState.FAILED and source.error is not None:
            context.failures.append(
                SourceFailure(provider_id=source.provider_id, error=source.error, path=path)
            )
    return dataclasses.replace(
        connection, sources=sources, total_count=None if unknown else connection.total_count
    )


async def _providers_meant(
    context: RequestContext, provider_ids: Sequence[str] | None
) -> tuple[list[Provider], list[SourceStatus]]:
    """Return the providers in order of registration, and a status for each unknown one."""
    if provider_ids is None:
        visible = await context.visible_providers()
        return [row for row in visible.values() if row.state is not ProviderState.DISABLED], []
    wanted = list(dict.fromkeys(provider_ids))
    if len(wanted) > _MAX_PROVIDERS_NAMED:
        raise BadInput(
            "filter.providerIds", f"{len(wanted)} ids are too many, at most {_MAX_PROVIDERS_NAMED}"
        )
    found = await asyncio.gather(*map(context.find_provider, wanted))
    unknown = [
        SourceStatus(
            provider_id=provider_id,
            provider=None,
            state=SourceState.FAILED,
            error=_not_found(provider_id),
        )
        for provider_id, provider in zip(wanted, found, strict=True)
        if provider is None
    ]
    known = [provider for provider in found if provider is not None]
    return sorted(known, key=registration_key), unknown


def _not_found(provider_id: str) -> ProviderNotFound:
    return ProviderNotFound("No such provider is registered", provider_id=provider_id)


def _page_request(
    context: RequestContext, name: str, fingerprint: object, page: PageArguments
) -> PageRequest:
    query, *former = (
        json.dumps([number, name, fingerprint, *_subjects(context)])
        for number in (_CURSOR_FORMAT, *_FORMER_CURSOR_FORMATS)
    )
    return PageRequest.checked(
        first=page.first,
        after=page.after,
        sealer=CursorSealer(context.limits.cursor_key, query, former=former),
        max_page_size=context.limits.max_page_size,
        cursor_seconds=context.limits.cursor_seconds,
    )


def _subjects(context: RequestContext) -> list[tuple[str, str]]:
    """Return whom the request acts for: what one is shown is no place in another's list."""
    return sorted(context.subjects.items())


def _page_fetcher(
    context: RequestContext,
    kind: ListKind[T],
    page: PageArguments,
    ages: dict[str, _Age],
    order: ListOrder | None = None,
) -> FetchPage[T]:
    """Return what fetches pages, and takes down in ``ages`` how old they are.

    In the providers' own order, or in one their platform declares; a list without declared orders
    is never asked for one.
    """
    list_page = kind.list_page
    if order is not None and kind.list_sorted is not None:
        list_page = kind.list_sorted(order)

    async def fetch(provider_id: str, position: str | None, limit: int) -> Page[T]:
        kept = await context.reading.answer(
            provider_id,
            kind.page,
            _page_key(position, limit, order),
            lambda session: list_page(session, position, limit),
            max_age_seconds=page.max_age_seconds,
        )
        ages[provider_id] = _Age.of(kept).and_also(ages.get(provider_id))
        found = kept.value
        if found.total is not None or position is None:
            has_more = found.next_position is not None
            length = len(found.items) + has_more if found.total is None else found.total
            context.reading.note_length(provider_id, kind.page, length)
        return found

    return fetch


class _Chains(Generic[T]):
    """Follows the rows of a list, provider by provider, if the page is sure to hold them all."""

    def __init__(
        self,
        context: RequestContext,
        kind: ListKind[T],
        providers: Sequence[Provider],
        page: PageArguments,
        wanted: Wanted,
    ) -> None:
        self._context = context
        self._kind = kind
        self._providers = providers
        self._page = page
        self._wanted = wanted
        self._seen: set[str] = set()

    def following(self, fetch_page: FetchPage[T]) -> FetchPage[T]:
        """Return what fetches pages, and follows the rows of lists that are one page."""

        async def fetch(provider_id: str, position: str | None, limit: int) -> Page[T]:
            found = await fetch_page(provider_id, position, limit)
            if position is None and found.next_position is None:
                self.follow(provider_id, found.items)
            return found

        return fetch

    def follow(self, provider_id: str, rows: Sequence[T]) -> None:
        """Follow a provider's whole list, unless some of it may be left for another page."""
        self._seen.add(provider_id)
        if self._wanted != NOTHING and self._page.after is None and self._holds_all():
            follow(self._context, self._wanted, cast("Sequence[Any]", rows))  # rows of its kind

    def _holds_all(self) -> bool:
        """Whether the page is as long as all lists together, as far as is known of every one."""
        total = 0
        for provider in self._providers:
            length = self._context.reading.length_of(provider.id, self._kind.page)
            if not length and provider.id not in self._seen:
                return False
            total += length or 0
        return total <= self._page.first


def _prefetcher(
    context: RequestContext, kind: ListKind[T], page: PageArguments
) -> Callable[[str, str, int], None]:
    """Return what reads a page in the background, as ``_page_fetcher`` would."""

    def prefetch(provider_id: str, position: str, limit: int) -> None:
        context.reading.prefetch(
            provider_id,
            kind.page,
            _page_key(position, limit),
            lambda session: kind.list_page(session, position, limit),
            max_age_seconds=page.max_age_seconds,
        )

    return prefetch


def _page_key(position: str | None, limit: int, order: ListOrder | None = None) -> str:
    return f"{order or ''}:{limit}:{position or ''}"


def _aged(source: SourceStatus, ages: Mapping[str, _Age]) -> SourceStatus:
    """Return the status of a source with the age of what it gave."""
    age = ages.get(source.provider_id)
    if age is None or source.state is not SourceState.OK:
        return source
    if age.error is None:
        return dataclasses.replace(source, as_of=age.as_of)
    return dataclasses.replace(source, state=SourceState.STALE, error=age.error, as_of=age.as_of)


async def _merged(
    context: RequestContext,
    providers: Sequence[Provider],
    kind: ListKind[T],
    selection: _Selection[T],
    request: PageRequest,
    *,
    page: PageArguments,
    ages: dict[str, _Age],
    chains: _Chains[T],
    wants_total: bool,
) -> Connection[T]:
    """Return a page of a list that is filtered or in an order of ours."""
    order = selection.list_order
    fetch_page = _page_fetcher(context, kind, page, ages, order)
    streams = SortedStreams(
        provider_ids=() if wants_total else _sorting_providers(context, providers, order),
        fetch_page=_counting(context, fetch_page) if selection.filtered else fetch_page,
        id_of=kind.id_of,
        limit_of=lambda provider: context.page_size_of(provider.id),
        key_of=lambda provider, row: _key_of(row, provider, kind, selection),
        matches=selection.matches if selection.filtered else None,
    )

    async def collect(provider: Provider) -> list[CollectedRow[T]]:
        collected = await selection.collect(provider)
        ages[provider.id] = collected.age
        rows_by_id = {kind.id_of(row): row for row in collected.rows}
        rows = [row for row in rows_by_id.values() if selection.matches(row)]
        if selection.whole:
            context.reading.note_length(provider.id, kind.page, len(rows_by_id))
            chains.follow(provider.id, rows)
        return [
            CollectedRow(
                row=row, key=_key_of(row, provider, kind, selection), provider_id=provider.id
            )
            for row in rows
        ]

    return await merge_providers(
        providers,
        streams=streams,
        collect=collect,
        request=request,
        descending=selection.descending,
    )


def _sorting_providers(
    context: RequestContext, providers: Iterable[Provider], order: ListOrder | None
) -> frozenset[str]:
    """Return the providers that can list in an order themselves; acting for users, none is."""
    if order is None or context.subjects:
        return frozenset()
    platforms = ((provider.id, context.platform_of(provider.id)) for provider in providers)
    return frozenset(
        provider_id
        for provider_id, platform in platforms
        if platform is not None and order in platform.sorted_lists
    )


def _counting(context: RequestContext, fetch_page: FetchPage[T]) -> FetchPage[T]:
    """Return what fetches pages of a filtered list until they hold more rows than one may read."""
    rows = 0

    async def fetch(provider_id: str, position: str | None, limit: int) -> Page[T]:
        nonlocal rows
        page = await fetch_page(provider_id, position, limit)
        rows += len(page.items)
        if rows > context.limits.max_collected_rows:
            raise RequestLimitExceeded(
                f"A filtered list may read {context.limits.max_collected_rows} rows to find its"
                " own, and this page needs more; name fewer providers in filter.providerIds, or"
                " ask for a shorter page"
            )
        return page

    return fetch


def _key_of(row: T, provider: Provider, kind: ListKind[T], selection: _Selection[T]) -> SortKey:
    """Return a row's place in the order; rows without what is ordered by come last."""
    row_id = kind.id_of(row)
    if selection.order is None:
        return (*registration_key(provider), row_id)
    value = selection.order.value_of(row)
    is_last = (value is None) is not selection.descending
    return (is_last, "" if value is None else value, provider.id, row_id)


def _everything(context: RequestContext, kind: ListKind[T], page: PageArguments) -> _Collect[T]:
    """Collect everything of a kind that a provider has."""

    async def collect(provider: Provider) -> _Collected[T]:
        kept = await context.loaders.whole_list(
            kind, provider.id, max_age_seconds=page.max_age_seconds
        )
        if kept is None:
            return _Collected(rows=(), age=_Age(as_of=None))
        return _Collected(rows=kept.value, age=_Age.of(kept))

    return collect


def _by_id(context: RequestContext, keys: Sequence[ExternalKey]) -> _Collect[User]:
    """Collect the users of these ids."""

    async def collect(provider: Provider) -> _Collected[User]:
        found = await context.loaders.user_by_id.load_many(_keys_of(provider, keys))
        rows = [row for row in found if row is not None]
        return _Collected(rows=rows, age=_age_of(context, provider, rows))

    return collect


def _under(
    context: RequestContext,
    rows_by_key: BatchLoader[ExternalKey, Sequence[Enrollment]],
    keys: Sequence[ExternalKey],
) -> _Collect[Enrollment]:
    """Collect the enrollments a provider has under the keys."""

    async def collect(provider: Provider) -> _Collected[Enrollment]:
        found = await rows_by_key.load_many(_keys_of(provider, keys))
        rows = [row for rows in found for row in rows or ()]
        return _Collected(rows=rows, age=_age_of(context, provider, rows))

    return collect


def _age_of(context: RequestContext, provider: Provider, rows: Sequence[User | Enrollment]) -> _Age:
    """Return the age of rows by what each says of itself."""
    if not any(row.provenance.stale for row in rows):
        return _Age(as_of=min((row.provenance.fetched_at for row in rows), default=None))
    return _Age(
        as_of=min(row.provenance.fetched_at for row in rows if row.provenance.stale),
        error=context.reading.problems.get(provider.id),
    )


def _keys_of(provider: Provider, keys: Iterable[ExternalKey]) -> list[ExternalKey]:
    return [key for key in dict.fromkeys(keys) if key[0] == provider.id]


def _providers_named(
    provider_ids: Sequence[str] | None, keys: Sequence[ExternalKey] | None
) -> Sequence[str] | None:
    """Return the providers a filter leaves, by name and by the ids asked for."""
    if keys is None:
        return provider_ids
    of_keys = dict.fromkeys(provider_id for provider_id, _external_id in keys)
    if provider_ids is None:
        return list(of_keys)
    return [provider_id for provider_id in provider_ids if provider_id in of_keys]


def _user_matcher(filter: UserFilter) -> Callable[[User], bool]:  # noqa: A002 - as in the API
    searched = fold(filter.search or "")
    roles = None if filter.roles is None else frozenset(filter.roles)
    usernames = None if filter.usernames is None else frozenset(filter.usernames)

    def matches(user: User) -> bool:
        return (
            (usernames is None or user.username in usernames)
            and (filter.active is None or user.active is filter.active)
            and (roles is None or any(role.value in roles for role in user.roles))
            and (searched in fold(user.display_name) or searched in fold(user.username or ""))
        )

    return matches


def _course_matcher(filter: CourseFilter) -> Callable[[Course], bool]:  # noqa: A002 - as in the API
    searched = fold(filter.search or "")

    def matches(course: Course) -> bool:
        return (
            (filter.kinds is None or course.kind in filter.kinds)
            and (filter.states is None or course.state in filter.states)
            and (searched in fold(course.title) or searched in fold(course.course_code or ""))
        )

    return matches


def _enrollment_matcher(filter: EnrollmentFilter) -> Callable[[Enrollment], bool]:  # noqa: A002 - as in the API
    user_ids = frozenset(filter.user_ids or ())
    course_ids = frozenset(filter.course_ids or ())

    def matches(row: Enrollment) -> bool:
        of = row.provider_id
        return (
            (filter.provider_ids is None or of in filter.provider_ids)
            and (filter.user_ids is None or (of, row.user_id) in user_ids)
            and (filter.course_ids is None or (of, row.course_id) in course_ids)
            and (filter.roles is None or row.role.value in filter.roles)
            and (filter.states is None or row.state in filter.states)
            and (filter.sources is None or row.source in filter.sources)
        )

    return matches


def _nested_enrollments(
    context: RequestContext,
    key: ExternalKey,
    *,
    of: str,
    rows_by_key: BatchLoader[ExternalKey, Sequence[Enrollment]],
    arguments: tuple[EnrollmentFilter, PageArguments],
) -> asyncio.Future[Connection[Enrollment] | None]:
    """Return the future page of one object's enrollments, the same arguments' in one batch."""
    context.require(Scope.READ_ENROLLMENTS)
    pages = context.loaders.enrollment_pages
    loader = pages.get((of, arguments))
    if loader is None:
        checked_first(arguments[1].first, context.limits.max_page_size)
        loader = pages[of, arguments] = BatchLoader(
            group_of=lambda wanted: wanted[0],
            fetch=_enrollment_pager(context, rows_by_key, *arguments, of=of),
        )
    return _counted(context, loader.load(key), lambda connection: len(connection.nodes))


def _counted(
    context: RequestContext, found: asyncio.Future[T | None], length_of: Callable[[T], int]
) -> asyncio.Future[T | None]:
    """Return the future list once its rows are counted, for each place that it goes to."""

    def count(rows: T | None) -> T | None:
        context.count_nested_rows(0 if rows is None else length_of(rows))
        return rows

    return _then(found, count)


def _then(found: asyncio.Future[T], convert: Callable[[T], R]) -> asyncio.Future[R]:
    """Return the future of what a loader promises, converted; a refusal there fails it."""
    converted: asyncio.Future[R] = asyncio.get_running_loop().create_future()

    def settle(done: asyncio.Future[T]) -> None:
        if converted.done():
            return
        if done.cancelled():
            converted.cancel()
            return
        error = done.exception()
        if error is None:
            try:
                result = convert(done.result())
            except RequestRefused as refusal:
                error = refusal
        if error is None:
            converted.set_result(result)
        else:
            converted.set_exception(error)

    found.add_done_callback(settle)
    return converted


def _settled(value: T) -> asyncio.Future[T]:
    """Return the future of what is known already."""
    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    future.set_result(value)
    return future


def _merged_progress(called: Progress | None, known: Progress | None) -> Progress | None:
    """Return what a call says, completed with what was known before."""
    if called is None or known is None:
        return called or known
    missing = {
        name: getattr(known, name) for name in _PROGRESS_FIELDS if getattr(called, name) is None
    }
    return dataclasses.replace(called, **missing)


def _enrollment_pager(
    context: RequestContext,
    rows_by_key: BatchLoader[ExternalKey, Sequence[Enrollment]],
    filter: EnrollmentFilter,  # noqa: A002 - as in the API
    page: PageArguments,
    *,
    of: str,
) -> FetchGroup[ExternalKey, Connection[Enrollment]]:
    matches = _enrollment_matcher(filter)
    fingerprint = dataclasses.astuple(filter)

    async def fetch(
        provider_id: str, keys: Sequence[ExternalKey]
    ) -> Mapping[ExternalKey, Connection[Enrollment]]:
        rows_in_turn = await rows_by_key.load_many(keys)
        source = SourceStatus(
            provider_id=provider_id,
            provider=context.get_provider(provider_id),
            state=SourceState.OK,
        )
        return {
            key: page_of_rows(
                [
                    CollectedRow(row=row, key=(row.id,), provider_id=provider_id)
                    for row in rows
                    if matches(row)
                ],
                sources=(source,),
                request=_page_request(context, f"of {of}", [key, fingerprint], page),
            )
            for key, rows in zip(keys, rows_in_turn, strict=True)
            if rows is not None
        }

    return fetch
