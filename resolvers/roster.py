"""Users, courses and enrollments over every provider the caller may see."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import (
    AsyncGenerator,
    Callable,
    Mapping,
    Sequence,
)
from contextlib import aclosing
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

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
R = TypeVar("R")

DEFAULT_ICON_WIDTH = 256
MAX_SESSIONS = 1000
MAX_ACTIVITIES = 100

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
        fingerprint=[dataclasses.astuple(filter), order, descending],
        provider_ids=_providers_named(filter.provider_ids, filter.user_ids),
        selection=selection,
    )
    connection = await answer(
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
        fingerprint=[dataclasses.astuple(filter), order, descending],
        provider_ids=filter.provider_ids,
        selection=selection,
    )
    connection = await answer(
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
        fingerprint=[dataclasses.astuple(filter), order, descending],
        provider_ids=_providers_named(filter.provider_ids, filter.user_ids or filter.course_ids),
        selection=selection,
    )
    return await answer(context, query, page, path=path, wants_total=wants_total, wanted=wanted)


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
                request=page_request(context, f"of {of}", [key, fingerprint], page),
            )
            for key, rows in zip(keys, rows_in_turn, strict=True)
            if rows is not None
        }

    return fetch
