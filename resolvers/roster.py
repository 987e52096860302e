"""Users, courses and enrollments over every provider the caller may see."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from operator import attrgetter
from typing import TypeVar

import msgspec

from resolvers.chains import NOTHING, Wanted
from resolvers.collation import fold, sort_key
from resolvers.context import RequestContext, Scope
from resolvers.errors import BadInput, Forbidden, RequestRefused
from resolvers.lists import (
    FIRST_PAGE,
    SCOPES,
    ListQuery,
    Order,
    PageArguments,
    Path,
    Selection,
    answer,
    enrollments_under,
    everything,
    not_found,
    page_request,
    users_by_id,
)
from resolvers.loaders import (
    COURSES,
    ENROLLMENTS,
    MOST_AT_ONCE,
    USERS,
    ExternalKey,
    ListKind,
    Outcomes,
    PairKey,
    RowLoader,
    Soon,
    StatusFilter,
    after,
    pages_of,
    when_there,
)
from resolvers.paging import (
    CollectedRow,
    Connection,
    SourceState,
    SourceStatus,
    checked_first,
    page_of_rows,
)
from sessions.base import ListOrder, Page
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
    RoleValue,
    Section,
    SessionState,
    User,
)

T = TypeVar("T")

DEFAULT_ICON_WIDTH = 256
MAX_SESSIONS = 1000
MAX_ACTIVITIES = 100

_PROGRESS_FIELDS = Progress.__struct_fields__
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


ANY_USER = UserFilter()
ANY_COURSE = CourseFilter()
ANY_ENROLLMENT = EnrollmentFilter()


_USER_ORDERS: Mapping[UserOrderField, Order[User] | None] = {
    UserOrderField.PROVIDER: None,
    UserOrderField.DISPLAY_NAME: Order(
        value_of=lambda user: sort_key(user.display_name),
        rising=ListOrder.USERS_BY_DISPLAY_NAME,
        falling=ListOrder.USERS_BY_DISPLAY_NAME_DESCENDING,
    ),
    UserOrderField.USERNAME: Order(
        value_of=lambda user: None if user.username is None else sort_key(user.username),
        rising=ListOrder.USERS_BY_USERNAME,
        falling=ListOrder.USERS_BY_USERNAME_DESCENDING,
    ),
    UserOrderField.MODIFIED: Order(value_of=lambda user: _seconds_of(user.provenance)),
}
_COURSE_ORDERS: Mapping[CourseOrderField, Order[Course] | None] = {
    CourseOrderField.PROVIDER: None,
    CourseOrderField.TITLE: Order(
        value_of=lambda course: sort_key(course.title),
        rising=ListOrder.COURSES_BY_TITLE,
        falling=ListOrder.COURSES_BY_TITLE_DESCENDING,
    ),
    CourseOrderField.MODIFIED: Order(value_of=lambda course: _seconds_of(course.provenance)),
}
_ENROLLMENT_ORDERS: Mapping[EnrollmentOrderField, Order[Enrollment] | None] = {
    EnrollmentOrderField.PROVIDER: None,
    EnrollmentOrderField.MODIFIED: Order(value_of=lambda row: _seconds_of(row.provenance)),
}


def _seconds_of(provenance: Provenance) -> float | None:
    """Return when the provider says a row last changed, in seconds since 1970."""
    return None if provenance.modified_at is None else provenance.modified_at.timestamp()


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
    selection: Selection[User] | None = None
    filtered = filter != UserFilter(provider_ids=filter.provider_ids)
    if filtered or order is not UserOrderField.PROVIDER or descending:
        selection = Selection(
            collect=everything(context, USERS, page)
            if filter.user_ids is None
            else users_by_id(context, filter.user_ids),
            matches=_user_matcher(filter),
            order=_USER_ORDERS[order],
            descending=descending,
            filtered=filtered,
            whole=filter.user_ids is None,
        )
    query = ListQuery(
        kind=USERS,
        fingerprint=[_fingerprint_of(filter), order, descending],
        provider_ids=_providers_named(filter.provider_ids, filter.user_ids),
        selection=selection,
    )
    connection = await answer(
        context, query, page, path=path, wants_total=wants_total, wanted=wanted
    )
    context.loaders.user_by_id.prime_later(connection.nodes, _own_key)
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
    selection: Selection[Course] | None = None
    filtered = filter != CourseFilter(provider_ids=filter.provider_ids)
    if filtered or order is not CourseOrderField.PROVIDER or descending:
        selection = Selection(
            collect=everything(context, COURSES, page),
            matches=_course_matcher(filter),
            order=_COURSE_ORDERS[order],
            descending=descending,
            filtered=filtered,
        )
    query = ListQuery(
        kind=COURSES,
        fingerprint=[_fingerprint_of(filter), order, descending],
        provider_ids=filter.provider_ids,
        selection=selection,
    )
    connection = await answer(
        context, query, page, path=path, wants_total=wants_total, wanted=wanted
    )
    context.loaders.course_by_id.prime_later(connection.nodes, _own_key)
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
    selection: Selection[Enrollment] | None = None
    filtered = filter != EnrollmentFilter(provider_ids=filter.provider_ids)
    if filtered or order is not EnrollmentOrderField.PROVIDER or descending:
        if filter.user_ids is not None:
            collect = enrollments_under(context, loaders.enrollments_by_user, filter.user_ids)
        elif filter.course_ids is not None:
            collect = enrollments_under(context, loaders.enrollments_by_course, filter.course_ids)
        else:
            collect = everything(context, ENROLLMENTS, page)
        selection = Selection(
            collect=collect,
            matches=_enrollment_matcher(filter),
            order=_ENROLLMENT_ORDERS[order],
            descending=descending,
        )
    query = ListQuery(
        kind=ENROLLMENTS,
        fingerprint=[_fingerprint_of(filter), order, descending],
        provider_ids=_providers_named(filter.provider_ids, filter.user_ids or filter.course_ids),
        selection=selection,
    )
    return await answer(context, query, page, path=path, wants_total=wants_total, wanted=wanted)


def enrollments_of_users(
    context: RequestContext,
    provider_id: str,
    user_ids: Sequence[str],
    *,
    filter: EnrollmentFilter = ANY_ENROLLMENT,  # noqa: A002 - the argument's name in the API
    page: PageArguments = FIRST_PAGE,
) -> Soon[Outcomes[Connection[Enrollment]]]:
    """Return a page of the enrollments of each of a provider's users, an id for each place.

    Raises:
        RequestRefused: A scope is missing or ``first`` is wrong; a wrong cursor is each user's own
            error.
    """
    return _nested_enrollments(
        context,
        provider_id,
        user_ids,
        of="user",
        loader=context.loaders.enrollments_by_user,
        filter=filter,
        page=page,
    )


def enrollments_of_courses(
    context: RequestContext,
    provider_id: str,
    course_ids: Sequence[str],
    *,
    filter: EnrollmentFilter = ANY_ENROLLMENT,  # noqa: A002 - the argument's name in the API
    page: PageArguments = FIRST_PAGE,
) -> Soon[Outcomes[Connection[Enrollment]]]:
    """Return a page of the enrollments in each of a provider's courses, likewise.

    Raises:
        RequestRefused: A scope is missing or ``first`` is wrong; a wrong cursor is each course's
            own error.
    """
    return _nested_enrollments(
        context,
        provider_id,
        course_ids,
        of="course",
        loader=context.loaders.enrollments_by_course,
        filter=filter,
        page=page,
    )


def users_of(
    context: RequestContext, provider_id: str, user_ids: Collection[str]
) -> Soon[Outcomes[User]]:
    """Return users of a provider's; ``None`` for one that it does not have.

    Raises:
        Forbidden: A scope is missing.
    """
    context.require(Scope.READ_USERS)
    return context.loaders.user_by_id.load_of(provider_id, user_ids)


def courses_of(
    context: RequestContext, provider_id: str, course_ids: Collection[str]
) -> Soon[Outcomes[Course]]:
    """Return courses of a provider's; ``None`` for one that it does not have.

    Raises:
        Forbidden: A scope is missing.
    """
    context.require(Scope.READ_COURSES)
    return context.loaders.course_by_id.load_of(provider_id, course_ids)


def sections_of(
    context: RequestContext, courses: Sequence[Course]
) -> Soon[Outcomes[Sequence[Section]]]:
    """Return the sections of each course.

    Raises:
        Forbidden: A scope is missing.
    """
    context.require(Scope.READ_COURSES)
    found = context.loaders.sections_by_course.load_each(
        (course.provider_id, course.external_id) for course in courses
    )
    return after(found, lambda rows: _counted(context, rows, len))


def section_of(
    context: RequestContext, enrollments: Sequence[Enrollment]
) -> Soon[Outcomes[Section]]:
    """Return the section of each enrollment, found among those of its course.

    ``None``, without a call, when the enrollment is in none.

    Raises:
        Forbidden: A scope is missing.
    """
    context.require(Scope.READ_COURSES)
    placed = [row for row in enrollments if row.section_id is not None]
    found = context.loaders.sections_by_course.load_each(
        (row.provider_id, row.course_id) for row in placed
    )
    return after(found, lambda of_courses: [*_picked(enrollments, iter(of_courses))])


def milestones_of(
    context: RequestContext, enrollments: Sequence[Enrollment]
) -> Soon[Outcomes[Sequence[Milestone]]]:
    """Return the milestones of each enrollment's user in its course.

    Raises:
        Forbidden: A scope is missing.
    """
    context.require(Scope.READ_ENROLLMENTS)
    found = context.loaders.milestones_by_pair.load_each(map(_pair_of, enrollments))
    return after(found, lambda rows: _counted(context, rows, len))


def activity_of(
    context: RequestContext, users: Sequence[User], *, first: int
) -> Soon[Outcomes[Sequence[Activity]]]:
    """Return what each user did last, newest first.

    Raises:
        RequestRefused: A scope is missing, or ``first`` is wrong.
    """
    context.require(Scope.READ_ENROLLMENTS)
    length = checked_first(first, MAX_ACTIVITIES)
    found = context.loaders.activity_by_user.load_each(
        (user.provider_id, user.external_id, length) for user in users
    )
    return after(found, lambda rows: _counted(context, rows, len))


def progress_of(
    context: RequestContext, enrollments: Sequence[Enrollment]
) -> Soon[Outcomes[Progress]]:
    """Return the progress of each enrollment.

    Where the platform tells more of it by a call of its own, that is asked, for all together, and
    what it leaves open is what the enrollment itself says.

    Raises:
        Forbidden: A scope is missing.
    """
    context.require(Scope.READ_ENROLLMENTS)
    platforms = {
        provider_id: context.platform_of(provider_id)
        for provider_id in {row.provider_id for row in enrollments}
    }
    told_apart = {
        provider_id
        for provider_id, platform in platforms.items()
        if platform is not None and platform.progress_by_call
    }
    asked = [row for row in enrollments if row.provider_id in told_apart]
    found = context.loaders.progress_by_pair.load_each(map(_pair_of, asked))
    return after(found, lambda called: [*_completed(enrollments, told_apart, iter(called))])


def sessions_of(
    context: RequestContext,
    providers: Sequence[Provider],
    *,
    states: Sequence[SessionState] | None,
    subject: str | None,
    first: int,
) -> Soon[Outcomes[Sequence[SessionStatus]]]:
    """Return how sessions with each provider stand, by subject.

    Raises:
        RequestRefused: A scope is missing, or ``first`` is wrong.
    """
    context.require(Scope.READ_PROVIDERS)
    wanted = StatusFilter(
        states=None if states is None else tuple(states),
        subject=subject,
        first=checked_first(first, MAX_SESSIONS),
    )
    statuses = context.loaders.session_statuses(wanted)
    found = statuses.load_each(provider.id for provider in providers)
    return after(found, lambda rows: _counted(context, rows, len))


def icon_urls_of(
    context: RequestContext, courses: Sequence[Course], width: int | None
) -> Soon[Outcomes[str]]:
    """Return the address of each course's icon, 256 pixels wide unless said otherwise.

    Raises:
        BadInput: No icon is that wide.
    """
    width = DEFAULT_ICON_WIDTH if width is None else width
    if not 1 <= width <= _MAX_ICON_WIDTH:
        raise BadInput("width", f"{width} is not between 1 and {_MAX_ICON_WIDTH}")
    return context.loaders.icon_urls(courses, width)


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
    context.require(SCOPES[kind.name])
    if context.is_learners:
        raise Forbidden("Learners read their own rows by GraphQL; whole lists are not for them")
    if await context.find_provider(provider_id) is None:
        raise not_found(provider_id)
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


def _fingerprint_of(filter: UserFilter | CourseFilter | EnrollmentFilter) -> Sequence[object]:  # noqa: A002 - as in the API
    """Return what a filter says, in a form that is the same for equal ones."""
    return [getattr(filter, each.name) for each in dataclasses.fields(filter)]


def _user_matcher(filter: UserFilter) -> Callable[[User], bool]:  # noqa: A002 - as in the API
    searched = fold(filter.search or "")
    roles = None if filter.roles is None else frozenset(filter.roles)
    user_ids = None if filter.user_ids is None else frozenset(filter.user_ids)
    usernames = None if filter.usernames is None else frozenset(filter.usernames)

    def matches(user: User) -> bool:
        return (
            (user_ids is None or (user.provider_id, user.external_id) in user_ids)
            and (usernames is None or user.username in usernames)
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
    provider_id: str,
    ids: Sequence[str],
    *,
    of: str,
    loader: RowLoader[Sequence[Enrollment]],
    filter: EnrollmentFilter,  # noqa: A002 - as in the API
    page: PageArguments,
) -> Soon[Outcomes[Connection[Enrollment]]]:
    """Return a page of the enrollments under each id, one given as often as it is wanted."""
    context.require(Scope.READ_ENROLLMENTS)
    checked_first(page.first, context.limits.max_page_size)
    pager = _EnrollmentPager(context, provider_id, filter, page, of=of)

    def paged(found: Outcomes[Sequence[Enrollment]]) -> Soon[Outcomes[Connection[Enrollment]]]:
        if len(ids) <= MOST_AT_ONCE:
            return pager.pages(ids, found)
        return _paged_in_turns(pager, ids, found)

    found = loader.load_of(provider_id, ids)
    return _paged_later(paged, found) if isinstance(found, Awaitable) else paged(found)


async def _paged_later(
    paged: Callable[[Outcomes[Sequence[Enrollment]]], Soon[Outcomes[Connection[Enrollment]]]],
    found: Awaitable[Outcomes[Sequence[Enrollment]]],
) -> Outcomes[Connection[Enrollment]]:
    return await when_there(paged(await found))


async def _paged_in_turns(
    pager: _EnrollmentPager, ids: Sequence[str], found: Outcomes[Sequence[Enrollment]]
) -> Outcomes[Connection[Enrollment]]:
    """Make very many pages; others have their turn in between."""
    pages: list[Connection[Enrollment] | BaseException | None] = []
    for start in range(0, len(ids), MOST_AT_ONCE):
        here = slice(start, start + MOST_AT_ONCE)
        pages += pager.pages(ids[here], found[here])
        await asyncio.sleep(0)
    return pages


def _counted(
    context: RequestContext,
    found: Sequence[T | BaseException | None],
    length_of: Callable[[T], int],
) -> Outcomes[T]:
    """Return lists once their rows are counted, for each place that they go to.

    Those that the answer has no room for are a refusal instead.
    """
    there = [rows for rows in found if rows is not None and not isinstance(rows, BaseException)]
    total = sum(map(length_of, there))
    if context.has_room_for(total):
        context.count_nested_rows(total)
        return found

    def count(rows: T | BaseException | None) -> T | BaseException | None:
        if rows is None or isinstance(rows, BaseException):
            return rows
        try:
            context.count_nested_rows(length_of(rows))
        except RequestRefused as refusal:
            return refusal
        return rows

    return [*map(count, found)]


def _picked(
    enrollments: Iterable[Enrollment],
    sections: Iterator[Sequence[Section] | BaseException | None],
) -> Iterator[Section | BaseException | None]:
    """Yield each enrollment's section, of those of the courses of all that are in one."""
    for enrollment in enrollments:
        if enrollment.section_id is None:
            yield None
            continue
        found = next(sections)
        if isinstance(found, BaseException):
            yield found
        else:
            wanted = enrollment.section_id
            yield next((row for row in found or () if row.external_id == wanted), None)


def _completed(
    enrollments: Iterable[Enrollment],
    told_apart: Collection[str],
    called: Iterator[Progress | BaseException | None],
) -> Iterator[Progress | BaseException | None]:
    """Yield each enrollment's progress: where providers tell it apart, completed by its own."""
    for enrollment in enrollments:
        if enrollment.provider_id not in told_apart:
            yield enrollment.progress
            continue
        found = next(called)
        if isinstance(found, BaseException):
            yield found
        else:
            yield _merged_progress(found, enrollment.progress)


_own_key: Callable[[User | Course], ExternalKey] = attrgetter("provider_id", "external_id")
_pair_of: Callable[[Enrollment], PairKey] = attrgetter("provider_id", "user_id", "course_id")


def _length_of_page(page: Connection[Enrollment]) -> int:
    return len(page.nodes)


def _merged_progress(called: Progress | None, known: Progress | None) -> Progress | None:
    """Return what a call says, completed with what was known before."""
    if called is None or known is None:
        return called or known
    missing = {
        name: getattr(known, name) for name in _PROGRESS_FIELDS if getattr(called, name) is None
    }
    return msgspec.structs.replace(called, **missing)


class _EnrollmentPager:
    """Makes pages of the enrollments of many users of a provider, or of many courses, alike.

    Args:
        context: Of the request.
        provider_id: Whose they are.
        filter: Which ones.
        page: As the caller gave it.
        of: Whose they are there: ``user`` or ``course``.
    """

    def __init__(
        self,
        context: RequestContext,
        provider_id: str,
        filter: EnrollmentFilter,  # noqa: A002 - as in the API
        page: PageArguments,
        *,
        of: str,
    ) -> None:
        self._context = context
        self._provider_id = provider_id
        self._page = page
        self._name = f"of {of}"
        self._filter = filter
        self._matches = None if filter == ANY_ENROLLMENT else _enrollment_matcher(filter)

    def pages(
        self, ids: Sequence[str], found: Outcomes[Sequence[Enrollment]]
    ) -> Outcomes[Connection[Enrollment]]:
        """Return the page of each, counted for each place that it goes to."""
        distinct = dict(zip(ids, found, strict=True))
        pages = [*map(self._page_of, distinct.items())]
        if len(distinct) < len(ids):
            by_id = dict(zip(distinct, pages, strict=True))
            pages = [*map(by_id.__getitem__, ids)]
        return _counted(self._context, pages, _length_of_page)

    def _page_of(
        self, item: tuple[str, Sequence[Enrollment] | BaseException | None]
    ) -> Connection[Enrollment] | BaseException | None:
        """Return the page of one of them, or what is wrong with it or with the cursor."""
        of, rows = item
        if rows is None or isinstance(rows, BaseException):
            return rows
        if self._matches is not None:
            rows = [*filter(self._matches, rows)]
        if self._page.after is None:
            return _FirstPage(rows[: self._page.first], rows, of, self)
        try:
            return self.whole(of, rows)
        except RequestRefused as refusal:
            return refusal

    def whole(self, of: str, rows: Sequence[Enrollment]) -> Connection[Enrollment]:
        """Return a page that can make its cursors, of rows that match.

        Raises:
            BadInput: The cursor is none of this list.
        """
        provider_id = self._provider_id
        ground = [(provider_id, of), _fingerprint_of(self._filter)]
        return page_of_rows(
            [CollectedRow(row=row, key=(row.id,), provider_id=provider_id) for row in rows],
            sources=self.sources,
            request=page_request(self._context, self._name, ground, self._page),
        )

    @cached_property
    def sources(self) -> tuple[SourceStatus, ...]:
        """How the provider took part."""
        provider_id = self._provider_id
        provider = self._context.get_provider(provider_id)
        return (SourceStatus(provider_id=provider_id, provider=provider, state=SourceState.OK),)


class _FirstPage(msgspec.Struct):
    """The first page of the enrollments of one user or course, as a ``Connection``.

    Its cursors are seldom asked for, and cost more than all the rest.
    """

    nodes: Sequence[Enrollment]
    rows: Sequence[Enrollment]
    of: str
    pager: _EnrollmentPager
    _whole: Connection[Enrollment] | None = None

    @property
    def total_count(self) -> int:
        return len(self.rows)

    @property
    def has_previous_page(self) -> bool:
        return False

    @property
    def has_next_page(self) -> bool:
        return len(self.rows) > len(self.nodes)

    @property
    def sources(self) -> Sequence[SourceStatus]:
        return self.pager.sources

    @property
    def start_cursor(self) -> str | None:
        return self._with_cursors().start_cursor

    @property
    def end_cursor(self) -> str | None:
        return self._with_cursors().end_cursor

    def cursor_of(self, index: int) -> str:
        return self._with_cursors().cursor_of(index)

    def _with_cursors(self) -> Connection[Enrollment]:
        if self._whole is None:
            self._whole = self.pager.whole(self.of, self.rows)
        return self._whole
