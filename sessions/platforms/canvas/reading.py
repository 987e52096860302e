"""Reading users, courses, enrollments and work from Canvas, each in the way of the fewest calls.

The same enrollments can be had by user, by course, or for a whole account, through REST or GraphQL.
For every set of keys the calls of each possible way are counted, the cheapest is taken, and the
choice is noted. What turns out not to work is not tried again by the same session.

A user's session reads as that user: what is hidden from them is left out. What is hidden from the
service is an error, because then a permission is missing that an operator can give.

Source:
    https://canvas.instructure.com/doc/api/
"""

from __future__ import annotations

import asyncio
import re
from bisect import bisect_left, bisect_right
from collections.abc import (
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from typing import Any, Final, Generic, TypeVar
from urllib.parse import parse_qsl
from zlib import crc32

from sessions.anchors import (
    Anchor,
    ByMark,
    ByRank,
    Find,
    Stretch,
    anchors_of,
    page_over,
    read_behind,
)
from sessions.base import ListOrder, Page, Pair, Subject, SubjectKind
from sessions.errors import (
    NotSupported,
    ProviderBadResponse,
    ProviderForbidden,
)
from sessions.http import ParamValue
from sessions.platforms.canvas import graph
from sessions.platforms.canvas.graph import Abilities, Graph, GraphUnusable, rows_of_users
from sessions.platforms.canvas.rows import (
    LIVE_STATES,
    AssignmentRow,
    BulkProgressRow,
    Converter,
    CourseRow,
    EnrollmentRow,
    PageViewRow,
    ProgressRow,
    SectionRow,
    SubmissionRow,
    UserRow,
    kept,
    number_order,
    progress,
    row_order,
)
from sessions.platforms.canvas.wire import (
    BUCKET,
    PAGE,
    CanvasWire,
    Listed,
    NotThere,
    ScopesMissing,
    segment,
)
from sessions.sharing import Shared, is_young, work_off
from sessions.strategies import Choice, note_choice
from storage.records import (
    Activity,
    Course,
    Enrollment,
    Milestone,
    Progress,
    Provider,
    Section,
    User,
)

T = TypeVar("T")
K = TypeVar("K")
RowT = TypeVar("RowT", UserRow, CourseRow)

REST_BY_USER: Final = "rest by user"
REST_BY_COURSE: Final = "rest by course"
REST_LIST: Final = "rest list"
GRAPHQL_BY_USER: Final = "graphql by user"
GRAPHQL_BY_COURSE: Final = "graphql by course"
GRAPHQL_BY_IDS: Final = "graphql by course ids"
GRAPHQL_BY_ACCOUNT: Final = "graphql by account"
PROGRESS_ONE_BY_ONE: Final = "one by one"
PROGRESS_BY_USER: Final = "by user"
PROGRESS_BY_COURSE: Final = "by course"

USER_PARAMS: Final = (("include[]", "email"), ("include[]", "uuid"))
COURSE_PARAMS: Final = tuple(
    ("include[]", name) for name in ("term", "public_description", "course_image")
)
EVERY_COURSE: Final = tuple(
    ("state[]", state) for state in ("created", "claimed", "available", "completed")
)

SORTED_COURSES: Final[Mapping[ListOrder, str]] = {
    ListOrder.COURSES_BY_TITLE: "asc",
    ListOrder.COURSES_BY_TITLE_DESCENDING: "desc",
}

_ACCOUNT_USERS: Final = (("sort", "id"), *USER_PARAMS)  # by id, the pages are stable bookmarks
_ACCOUNT_COURSES: Final = (*COURSE_PARAMS, *EVERY_COURSE)
_COURSE_STATES: Final = tuple(
    ("state[]", state) for state in ("unpublished", "available", "completed")
)
_OWN_COURSES: Final = (*COURSE_PARAMS, *_COURSE_STATES)
_ENROLLMENTS: Final = tuple(("state[]", state) for state in LIVE_STATES)
_ID = re.compile(r"[0-9]{1,20}(?:~[0-9]{1,20})?")
_SEEN_SECONDS: Final = 10.0
_WALK_SECONDS: Final = 60.0
_FEW_USERS: Final = 10
_IDS_PER_URL: Final = 1000  # characters: links repeat them several times, and end at 6 kB
_BOOKMARK: Final = "page:"
_OFFSET: Final = "@"


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What was found out at login, and is kept with the grant.

    Attributes:
        account: Path of the account.
        account_number: Its id.
        courses: How many it had; ``None`` when Canvas did not tell.
        abilities: Of GraphQL.
        graphql_problem: Why GraphQL is not used for enrollments, for a person.
        version: Of the grant.
    """

    account: str
    account_number: str
    courses: int | None
    abilities: Abilities
    graphql_problem: str | None
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Listing(Generic[T]):
    """A list whose pages are numbered, and how a place in it is found again.

    Attributes:
        path: Where it is.
        type_of_rows: What it holds.
        params: What it is asked for with.
        mark_of: What a row is known by, as long as it keeps its place in the order.
        find: How.
    """

    path: str
    type_of_rows: type[T]
    params: Sequence[tuple[str, ParamValue]]
    mark_of: Callable[[T], str]
    find: Find[T]


class Reader:
    """Reads for one subject; kept as long as its session.

    Args:
        provider: The installation.
        subject: Who reads.
        wire: Carries the calls.
        converter: Makes records.
        known: Returns what is known of the account now.
        shared_seconds: How long what was read may serve other fields of the same query.
        saw_courses: Called with courses just read.
    """

    def __init__(
        self,
        provider: Provider,
        *,
        subject: Subject,
        wire: CanvasWire,
        converter: Converter,
        known: Callable[[], Awaitable[Known]],
        shared_seconds: float,
        saw_courses: Callable[[Collection[CourseRow]], None],
    ) -> None:
        self._provider = provider
        self._subject = subject
        self._wire = wire
        self._converter = converter
        self._known = known
        self._shared_seconds = shared_seconds
        self._saw_courses = saw_courses
        self._acts_for_user = subject.kind is not SubjectKind.SERVICE
        self._page_size = PAGE
        self._user_count: int | None = None
        self._counted_users: tuple[str | None, int] = (None, 0)
        self._course_count: int | None = None
        self._graphql_problem: str | None = None
        self._by_ids_fails = False
        self._lacks_progress = False
        self._users = _Recent[UserRow]()
        self._courses = _Recent[CourseRow]()
        self._all_courses = Shared(self._read_all_courses)
        self._own_enrollments = Shared(self._read_own_enrollments)
        self._own_user = Shared(self._read_own_user)
        self._walk: _Walk | None = None

    def forget(self) -> None:
        """Let every reader read anew: something was written."""
        for shared in (self._all_courses, self._own_enrollments, self._own_user):
            shared.forget()
        self._users, self._courses = _Recent[UserRow](), _Recent[CourseRow]()
        self._walk = None

    # ---- users

    async def list_users(self, *, position: str | None, limit: int) -> Page[User]:
        """Return a page of the account's users by id; of a user's session, only that user.

        Source:
            https://canvas.instructure.com/doc/api/accounts.html#method.users.api_index
        """
        if self._acts_for_user:
            rows, following = [await self._own_row()], None
        else:
            path = f"{(await self._known()).account}/users"
            rows, following = await self._stretch(
                path, UserRow, _ACCOUNT_USERS, position=position, limit=limit
            )
            self._count_users(rows, position, following)
        await self._remember_users(rows)
        return _page([self._converter.user(row) for row in rows], position, following)

    def _count_users(self, rows: Sequence[UserRow], start: str | None, end: str | None) -> None:
        """Count the users of a walk from the list's beginning to its end."""
        at, counted = self._counted_users
        if start is not None and start != at:
            return
        total = len(rows) + (0 if start is None else counted)
        self._counted_users = end, total
        if end is None:
            self._user_count = total

    async def fetch_users(self, user_ids: Collection[str]) -> Mapping[str, User]:
        """Return users one by one, or from the account's list, whichever takes fewer calls."""
        wanted = _ids(user_ids)
        if not wanted:
            return {}
        version = (await self._known()).version
        found = self._users.get(wanted, version, max_age_seconds=self._shared_seconds)
        missing = sorted(wanted - found.keys(), key=number_order)
        if missing:
            rows = await self._read_users(missing)
            await self._remember_users(rows)
            found |= {row.id: row for row in rows}
        users = (self._converter.user(row) for row in found.values())
        return {user.external_id: user for user in users if user.external_id in wanted}

    async def _read_users(self, ids: Sequence[str]) -> list[UserRow]:
        calls = {REST_BY_USER: len(ids)}
        reason = None
        if not self._acts_for_user:
            pages = self._pages_of(self._user_count)
            if pages is not None:
                calls[REST_LIST] = pages
            elif len(ids) > _FEW_USERS:
                # How many there are is not known before the list was read once. It is given up
                # after as many calls as asking one by one would have taken.
                calls[REST_LIST], reason = len(ids), "The number of users is not known yet"
        listing = calls.get(REST_LIST, len(ids) + 1) <= len(ids)
        self._note("users", ids, REST_LIST if listing else REST_BY_USER, calls, reason)
        found, complete = await self._find_in_list(ids) if listing else ({}, False)
        rest = [] if complete else [user_id for user_id in ids if user_id not in found]
        singles = await _each(rest, self._find_user)
        return [*found.values(), *(row for row in singles.values() if row is not None)]

    async def _find_in_list(self, ids: Sequence[str]) -> tuple[dict[str, UserRow], bool]:
        """Look users up in the account's list until all are found, or the calls were too many.

        Also tells whether those not found are not there.
        """
        wanted, found, pages, seen = set(ids), dict[str, UserRow](), 0, 0
        path = f"{(await self._known()).account}/users"
        most = max(len(ids), self._pages_of(self._user_count) or 0)
        async for rows in self._wire.pages(path, UserRow, params=_ACCOUNT_USERS):
            await self._remember_users(rows)
            found |= {row.id: row for row in rows if row.id in wanted}
            pages, seen = pages + 1, seen + len(rows)
            if len(found) == len(wanted) or pages >= most:
                return found, len(found) == len(wanted)
        self._user_count = seen
        return found, True

    async def _find_user(self, user_id: str) -> UserRow | None:
        if self._acts_for_user and user_id == self._subject.user_id:
            return await self._own_row()
        row = await self._unless_hidden(
            self._wire.find(f"users/{segment(user_id)}", UserRow, params=USER_PARAMS)
        )
        return None if row is None or row.is_gone else row

    async def _own_row(self) -> UserRow:
        version = (await self._known()).version
        return await self._own_user.get(version, self._shared_seconds)

    async def _read_own_user(self) -> UserRow:
        return await self._wire.get("users/self", UserRow, params=USER_PARAMS)

    # ---- courses

    async def list_courses(self, *, position: str | None, limit: int) -> Page[Course]:
        """Return a page of the account's courses by id; of a user's session, those they are in.

        Source:
            https://canvas.instructure.com/doc/api/accounts.html#method.accounts.courses_api
            https://canvas.instructure.com/doc/api/courses.html#method.courses.index
        """
        path, params = await self._course_list()
        find: Find[CourseRow] = ByMark(_course_id) if self._acts_for_user else _COURSES_BY_ID
        listing = _Listing(
            path=path, type_of_rows=CourseRow, params=params, mark_of=_course_id, find=find
        )
        return await self._course_page(listing, position, limit)

    async def list_sorted_courses(
        self, order: ListOrder, *, position: str | None, limit: int
    ) -> Page[Course]:
        """Return a page of the account's courses by title; Canvas's database compares titles.

        Raises:
            NotSupported: In no other order, and not of a user's session.

        Source:
            https://canvas.instructure.com/doc/api/accounts.html#method.accounts.courses_api
            Courses of one name come by id only when a direction is asked for (courses_api in
            app/controllers/accounts_controller.rb).
        """
        direction = SORTED_COURSES.get(order)
        if direction is None or self._acts_for_user:
            raise NotSupported(f"Canvas does not list {order}", provider_id=self._provider.id)
        path, params = await self._course_list()
        listing = _Listing(
            path=path,
            type_of_rows=CourseRow,
            params=[*params, ("sort", "course_name"), ("order", direction)],
            mark_of=_titled_course,
            find=ByMark(_titled_course),
        )
        return await self._course_page(listing, position, limit)

    async def _course_page(
        self, listing: _Listing[CourseRow], position: str | None, limit: int
    ) -> Page[Course]:
        """Return a page of a list of courses, with the position behind each where it has numbers.

        Canvas numbers the pages of courses. So a position also names the courses before it, and is
        read by a page that overlaps them, which for a whole page leaves room for a few rows less.
        """
        rows, places, following = await self._places(listing, position, limit)
        await self._remember_courses(rows)
        if position is None and following is None:
            self._course_count = len(rows)
        found = [(self._converter.courses([row]), index) for index, row in enumerate(rows)]
        courses = [course for made, _index in found for course in made]
        page = _page(courses, position, following)
        positions = [places[index] for made, index in found if made and places]
        return replace(page, positions=positions)

    async def _places(
        self, listing: _Listing[T], position: str | None, limit: int
    ) -> tuple[list[T], list[str], str | None]:
        """Return rows, the position behind each, if there is one, and that of the next page."""
        anchor = None
        if position is not None and position.startswith(_OFFSET):
            anchor = Anchor.parse(position.removeprefix(_OFFSET))
        if anchor is not None and anchor.marks:
            behind = await read_behind(
                anchor,
                limit,
                read=partial(self._read_stretch, listing),
                mark_of=listing.mark_of,
                find=listing.find,
            )
            places = [f"{_OFFSET}{each}" for each in behind.anchors]
            return list(behind.rows), places, places[-1] if behind.more and places else None
        rows, following = await self._stretch(
            listing.path, listing.type_of_rows, listing.params, position=position, limit=limit
        )
        is_numbered = following is None or following.startswith(_OFFSET)
        if not is_numbered or (position is not None and anchor is None):
            return rows, [], following
        marks = list(map(listing.mark_of, rows))
        begins = 0 if anchor is None else anchor.offset
        anchors = anchors_of(marks, offset=begins)
        return rows, [f"{_OFFSET}{each}" for each in anchors], following

    async def _read_stretch(self, listing: _Listing[T], offset: int, limit: int) -> Stretch[T]:
        """Return the page that serves a stretch of a numbered list best."""
        size, page = page_over(offset, limit, most=self._page_size)
        listed = await self._wire.page(
            listing.path,
            listing.type_of_rows,
            params=[*listing.params, ("page", page), ("per_page", size)],
        )
        if self._learn_page_size(listed, asked=size):
            return await self._read_stretch(listing, offset, limit)
        more = listed.following is not None
        return Stretch(rows=listed.items, offset=(page - 1) * size, more=more)

    async def fetch_courses(self, course_ids: Collection[str]) -> Mapping[str, Course]:
        """Return courses one by one, or from the list of all, whichever takes fewer calls."""
        wanted = _ids(course_ids)
        if not wanted:
            return {}
        version = (await self._known()).version
        found = self._courses.get(wanted, version, max_age_seconds=self._shared_seconds)
        missing = sorted(wanted - found.keys(), key=number_order)
        if missing:
            rows = await self._read_courses(missing)
            await self._remember_courses(rows)
            found |= {row.id: row for row in rows}
        courses = self._converter.courses(found.values())
        return {each.external_id: each for each in courses if each.external_id in wanted}

    async def _read_courses(self, ids: Sequence[str]) -> list[CourseRow]:
        calls = {REST_BY_COURSE: len(ids)}
        pages = self._pages_of(await self._count_courses())
        if pages is not None:
            calls[REST_LIST] = pages
        chosen = _cheapest(calls)
        self._note("courses", ids, chosen, calls)
        found = {}
        if chosen == REST_LIST:
            found = {row.id: row for row in await self._get_all_courses()}
        # An account's list is complete. A user's own leaves out what they see but are not in.
        rest = [] if found and not self._acts_for_user else [id_ for id_ in ids if id_ not in found]
        singles = await _each(rest, self.find_course)
        return [*found.values(), *(row for row in singles.values() if row is not None)]

    async def find_course(self, course_id: str) -> CourseRow | None:
        """Return one course as Canvas has it.

        Source:
            https://canvas.instructure.com/doc/api/courses.html#method.courses.show
        """
        row = await self._unless_hidden(
            self._wire.find(f"courses/{segment(course_id)}", CourseRow, params=COURSE_PARAMS)
        )
        return None if row is None or row.workflow_state == "deleted" else row

    async def _course_list(self) -> tuple[str, Sequence[tuple[str, ParamValue]]]:
        if self._acts_for_user:
            return "courses", _OWN_COURSES
        return f"{(await self._known()).account}/courses", _ACCOUNT_COURSES

    async def _get_all_courses(self) -> list[CourseRow]:
        version = (await self._known()).version
        return await self._all_courses.get(version, self._shared_seconds)

    async def _read_all_courses(self) -> list[CourseRow]:
        path, params = await self._course_list()
        rows = await self._wire.rows(path, CourseRow, params=params)
        self._course_count = len(rows)
        await self._remember_courses(rows)
        return rows

    async def _count_courses(self) -> int | None:
        """Return about how many courses the list of all has, as last seen."""
        if self._course_count is not None:
            return self._course_count
        return None if self._acts_for_user else (await self._known()).courses

    # ---- enrollments

    async def list_enrollments(self, *, position: str | None, limit: int) -> Page[Enrollment]:
        """Return a page of all enrollments, by course and id.

        Through GraphQL everything is read at once and kept for a minute; through REST, courses
        are read only as far as the page needs. ``position`` is the course and the enrollment that
        came last, so a walk that was interrupted goes on where it was.
        """
        course_id, enrollment_id = _place_of(position, provider_id=self._provider.id)
        walk = await self._get_walk(fresh=position is None)
        ids, rows = walk.course_ids, list[EnrollmentRow]()
        start = bisect_left(ids, number_order(course_id), key=number_order)
        for begin in range(start, len(ids), BUCKET.concurrency):
            chosen = ids[begin : begin + BUCKET.concurrency]
            await self._load(walk, chosen)
            for each in chosen:
                found = walk.rows[each]
                after = number_order(enrollment_id) if each == course_id else (0, "")
                rows += found[bisect_right(found, after, key=row_order) :]
            if len(rows) > limit:
                break
        shown, more = rows[:limit], len(rows) > limit
        self._walk = walk if more else None
        return Page(
            items=[self._converter.enrollment(row) for row in shown],
            next_position=_place_behind(shown[-1]) if more and shown else None,
            total=walk.total(),
            positions=list(map(_place_behind, shown)),
        )

    async def _get_walk(self, *, fresh: bool) -> _Walk:
        known = await self._known()
        now = asyncio.get_running_loop().time()
        if not fresh and self._walk is not None and self._walk.serves(known.version, now):
            return self._walk
        if self._acts_for_user:
            found: Mapping[str, list[EnrollmentRow]] = _by_course(await self._get_own_enrollments())
            return _Walk.over(found.keys(), found, version=known.version, taken_at=now)
        courses = await self._count_courses() or len(await self._get_all_courses())
        calls = {REST_BY_COURSE: courses + ceil(courses / self._page_size)}
        if await self._may_use_graphql():
            calls[GRAPHQL_BY_ACCOUNT] = max(1, ceil(courses / graph.PAGE))
        chosen = _cheapest(calls)
        self._note("all enrollments", (), chosen, calls, await self._graphql_reason())
        if chosen == GRAPHQL_BY_ACCOUNT:
            try:
                found = await self._graph(known).by_account(known.account_number)
            except GraphUnusable as problem:
                self._graphql_problem = str(problem)
                return await self._get_walk(fresh=True)
            return _Walk.over(found.keys(), found, version=known.version, taken_at=now)
        ids = [row.id for row in await self._get_all_courses()]
        return _Walk.over(ids, {}, version=known.version, taken_at=now)

    async def _load(self, walk: _Walk, course_ids: Sequence[str]) -> None:
        missing = [course_id for course_id in course_ids if course_id not in walk.rows]
        for course_id, found in (await _each(missing, self._read_course_enrollments)).items():
            walk.rows[course_id] = kept(found or ())

    async def fetch_enrollments_by_user(
        self, user_ids: Collection[str]
    ) -> Mapping[str, Sequence[Enrollment]]:
        """Return each user's enrollments by id."""
        wanted = sorted(_ids(user_ids), key=number_order)
        if not wanted:
            return {}
        if self._acts_for_user:
            found = await self._by_user_for_user(wanted)
        else:
            found = await self._by_user(wanted)
        return {user_id: self._converter.enrollments(rows) for user_id, rows in found.items()}

    async def _by_user_for_user(self, ids: Sequence[str]) -> dict[str, list[EnrollmentRow]]:
        own, found = self._subject.user_id, dict[str, list[EnrollmentRow]]()
        if own in ids:
            found[own] = await self._get_own_enrollments()
        others = [user_id for user_id in ids if user_id != own]
        self._note("enrollments by user", ids, REST_BY_USER, {REST_BY_USER: len(ids)})
        return found | _present(await _each(others, self._read_user_enrollments))

    async def _by_user(self, ids: Sequence[str]) -> dict[str, list[EnrollmentRow]]:
        known, courses = await self._known(), await self._count_courses()
        calls = {REST_BY_USER: len(ids)}
        if courses is not None:
            calls[REST_BY_COURSE] = courses + ceil(courses / self._page_size)
        if await self._may_use_graphql():
            calls[GRAPHQL_BY_USER] = ceil(len(ids) / graph.ALIASES)
            if courses is not None:
                calls[GRAPHQL_BY_ACCOUNT] = max(1, ceil(courses / graph.PAGE))
        chosen = _cheapest(calls)
        self._note("enrollments by user", ids, chosen, calls, await self._graphql_reason())
        try:
            if chosen == GRAPHQL_BY_USER:
                found = await self._graph(known).by_user(ids)
            elif chosen == GRAPHQL_BY_ACCOUNT:
                some = ids if len(ids) <= graph.IDS else ()
                everything = await self._graph(known).by_account(
                    known.account_number, user_ids=some
                )
                return await self._with_existing(rows_of_users(everything, ids), ids)
            elif chosen == REST_BY_COURSE:
                listed = [row.id for row in await self._get_all_courses()]
                read = _present(await _each(listed, self._read_course_enrollments))
                return await self._with_existing(rows_of_users(read, ids), ids)
            else:
                found = {}
        except GraphUnusable as problem:
            self._graphql_problem = str(problem)
            return await self._by_user(ids)
        # Whoever GraphQL did not find may be hidden from it alone; REST has the last word.
        rest = [user_id for user_id in ids if user_id not in found]
        return found | _present(await _each(rest, self._read_user_enrollments))

    async def _with_existing(
        self, found: dict[str, list[EnrollmentRow]], ids: Sequence[str]
    ) -> dict[str, list[EnrollmentRow]]:
        """Add an empty list for whoever has no enrollments but exists."""
        version = (await self._known()).version
        without = set(ids) - found.keys()
        seen = self._users.get(without, version, max_age_seconds=_SEEN_SECONDS).keys()
        unseen = sorted(without - seen, key=number_order)
        rows = await self._read_users(unseen) if unseen else []
        return found | {user_id: [] for user_id in (*seen, *(row.id for row in rows))}

    async def fetch_enrollments_by_course(
        self, course_ids: Collection[str]
    ) -> Mapping[str, Sequence[Enrollment]]:
        """Return each course's enrollments by id."""
        wanted = sorted(_ids(course_ids), key=number_order)
        if not wanted:
            return {}
        found = await (self._by_course_for_user if self._acts_for_user else self._by_course)(wanted)
        return {course_id: self._converter.enrollments(rows) for course_id, rows in found.items()}

    async def _by_course_for_user(self, ids: Sequence[str]) -> dict[str, list[EnrollmentRow]]:
        """Read what the user may see of each course, which may be only that they are in it."""
        self._note("enrollments by course", ids, REST_BY_COURSE, {REST_BY_COURSE: len(ids)})
        found = await _each(ids, self._read_course_enrollments)
        if all(rows is not None for rows in found.values()):
            return _present(found)
        own = _by_course(await self._get_own_enrollments())
        hidden = [course_id for course_id, rows in found.items() if rows is None]
        return _present(found) | {each: own[each] for each in hidden if each in own}

    async def _by_course(self, ids: Sequence[str]) -> dict[str, list[EnrollmentRow]]:
        known, courses = await self._known(), await self._count_courses()
        calls = {REST_BY_COURSE: len(ids)}
        if await self._may_use_graphql():
            calls[GRAPHQL_BY_COURSE] = ceil(len(ids) / graph.ALIASES)
            if known.abilities.by_ids and not self._by_ids_fails:
                calls[GRAPHQL_BY_IDS] = ceil(len(ids) / graph.IDS)
            if courses is not None:
                calls[GRAPHQL_BY_ACCOUNT] = max(1, ceil(courses / graph.PAGE))
        chosen = _cheapest(calls)
        self._note("enrollments by course", ids, chosen, calls, await self._graphql_reason())
        try:
            found = await self._by_course_through(chosen, ids, known)
        except GraphUnusable as problem:
            self._graphql_problem = str(problem)
            return await self._by_course(ids)
        # What GraphQL did not find may be hidden from it alone; REST has the last word.
        rest = [course_id for course_id in ids if course_id not in found]
        return found | _present(await _each(rest, self._read_course_enrollments))

    async def _by_course_through(
        self, chosen: str, ids: Sequence[str], known: Known
    ) -> dict[str, list[EnrollmentRow]]:
        if chosen == GRAPHQL_BY_IDS:
            found = await self._graph(known).by_ids(ids)
            rest = [course_id for course_id in ids if course_id not in found]
            others = await self._graph(known).by_course(rest)
            # Some releases show only courses the caller is in; that is not worth another call.
            self._by_ids_fails |= bool(others)
            return found | others
        if chosen == GRAPHQL_BY_COURSE:
            return await self._graph(known).by_course(ids)
        if chosen == GRAPHQL_BY_ACCOUNT:
            everything = await self._graph(known).by_account(known.account_number)
            return {
                course_id: everything[course_id] for course_id in ids if course_id in everything
            }
        return {}

    async def _read_user_enrollments(self, user_id: str) -> list[EnrollmentRow] | None:
        """Read one user's enrollments; ``None`` for nobody.

        Source:
            https://canvas.instructure.com/doc/api/enrollments.html#method.enrollments_api.index
        """
        return await self._list_unless_hidden(
            f"users/{segment(user_id)}/enrollments", EnrollmentRow, _ENROLLMENTS
        )

    async def _read_course_enrollments(self, course_id: str) -> list[EnrollmentRow] | None:
        """Read one course's enrollments; ``None`` for no course."""
        return await self._list_unless_hidden(
            f"courses/{segment(course_id)}/enrollments", EnrollmentRow, _ENROLLMENTS
        )

    async def _get_own_enrollments(self) -> list[EnrollmentRow]:
        version = (await self._known()).version
        return await self._own_enrollments.get(version, self._shared_seconds)

    async def _read_own_enrollments(self) -> list[EnrollmentRow]:
        return await self._wire.rows("users/self/enrollments", EnrollmentRow, params=_ENROLLMENTS)

    # ---- progress, work, sections, activity

    async def fetch_progress(self, pairs: Collection[Pair]) -> Mapping[Pair, Progress]:
        """Return progress through the modules of courses: by pair, by user or by course.

        Not every release has all three; what one does not know is asked of the others.

        Source:
            https://canvas.instructure.com/doc/api/courses.html#method.courses.user_progress
            https://canvas.instructure.com/doc/api/courses.html#method.courses.bulk_user_progress
        """
        wanted = _valid(pairs)
        if not wanted:
            return {}
        by_course, by_user = _users_by_course(wanted), {user_id for user_id, _ in wanted}
        calls = {PROGRESS_BY_USER: len(by_user)}
        if not self._lacks_progress:
            calls = {PROGRESS_ONE_BY_ONE: len(wanted)} | calls
            if not self._acts_for_user:
                calls[PROGRESS_BY_COURSE] = len(by_course)
        chosen = _cheapest(calls)
        self._note("progress", wanted, chosen, calls)
        found = dict[Pair, ProgressRow]()
        if chosen == PROGRESS_ONE_BY_ONE:
            found = _present(await _each(wanted, self._find_progress))
        elif chosen == PROGRESS_BY_COURSE:
            for some in (await _each(by_course, self._read_course_progress)).values():
                found |= some
        rest = {user_id for user_id, course_id in wanted if (user_id, course_id) not in found}
        for some in (await _each(sorted(rest), self._read_user_progress)).values():
            # What one resource knows and the others do not: this release lacks the others.
            self._lacks_progress |= chosen != PROGRESS_BY_USER and not some.keys().isdisjoint(
                wanted
            )
            found = some | found
        reported = ((pair, progress(found[pair])) for pair in wanted if pair in found)
        return {pair: each for pair, each in reported if each is not None}

    async def _find_progress(self, pair: Pair) -> ProgressRow | None:
        user_id, course_id = pair
        path = f"courses/{segment(course_id)}/users/{segment(user_id)}/progress"
        return await self._unless_hidden(self._wire.find(path, ProgressRow))

    async def _read_course_progress(self, course_id: str) -> dict[Pair, ProgressRow]:
        """Read the progress of a course's present students."""
        path = f"courses/{segment(course_id)}/bulk_user_progress"
        rows = await self._list_unless_hidden(path, BulkProgressRow)
        return {(row.id, course_id): row.progress or ProgressRow() for row in rows or ()}

    async def _read_user_progress(self, user_id: str) -> dict[Pair, ProgressRow]:
        """Read a user's progress in all of their courses.

        Source:
            https://canvas.instructure.com/doc/api/courses.html#method.courses.user_index
        """
        own = user_id == self._subject.user_id
        path = "courses" if own else f"users/{segment(user_id)}/courses"
        params = [*_COURSE_STATES, ("include[]", "course_progress")]
        rows = await self._list_unless_hidden(path, CourseRow, params)
        return {(user_id, row.id): row.course_progress or ProgressRow() for row in rows or ()}

    async def fetch_milestones(self, pairs: Collection[Pair]) -> Mapping[Pair, Sequence[Milestone]]:
        """Return submissions with the titles and dates of their assignments.

        Calls: for each course one for its assignments, and one for about 25 students; more where
        the pages do not hold them.

        Source:
            https://canvas.instructure.com/doc/api/submissions.html#method.submissions_api.for_students
            https://canvas.instructure.com/doc/api/assignments.html#method.assignments_api.index
        """
        by_course = _users_by_course(_valid(pairs))
        found = await _each(
            by_course, lambda course_id: self._read_milestones(course_id, by_course[course_id])
        )
        return {pair: rows for course in found.values() for pair, rows in course.items()}

    async def _read_milestones(
        self, course_id: str, user_ids: Sequence[str]
    ) -> dict[Pair, list[Milestone]]:
        path = f"courses/{segment(course_id)}"
        assignments = await self._list_unless_hidden(f"{path}/assignments", AssignmentRow)
        if assignments is None:
            return {}
        by_user: dict[str, list[SubmissionRow]] = {user_id: [] for user_id in user_ids}
        for some in _batches(user_ids):
            submissions = await self._list_unless_hidden(
                f"{path}/students/submissions",
                SubmissionRow,
                [("student_ids[]", user_id) for user_id in some],
            )
            for row in submissions or ():
                if row.user_id in by_user:
                    by_user[row.user_id].append(row)
            if submissions is None:
                by_user = {
                    user_id: rows for user_id, rows in by_user.items() if user_id not in some
                }
        by_id = {row.id: row for row in assignments}
        return {
            (user_id, course_id): self._converter.milestones(rows, by_id, course_id=course_id)
            for user_id, rows in by_user.items()
        }

    async def fetch_sections_by_course(
        self, course_ids: Collection[str]
    ) -> Mapping[str, Sequence[Section]]:
        """Return each course's sections, one call a course.

        Source:
            https://canvas.instructure.com/doc/api/sections.html#method.sections.index
        """
        found = await _each(sorted(_ids(course_ids), key=number_order), self._read_sections)
        return {each: self._converter.sections(rows) for each, rows in _present(found).items()}

    async def _read_sections(self, course_id: str) -> list[SectionRow] | None:
        return await self._list_unless_hidden(f"courses/{segment(course_id)}/sections", SectionRow)

    async def fetch_activity_by_user(
        self, user_ids: Collection[str], *, limit: int
    ) -> Mapping[str, Sequence[Activity]]:
        """Return each user's latest page views, one call a user and hundred.

        Raises:
            NotSupported: This Canvas keeps no page views, or does not show them.

        Source:
            https://canvas.instructure.com/doc/api/users.html#method.page_views.index
        """
        found = await _each(
            sorted(_ids(user_ids), key=number_order),
            lambda user_id: self._read_page_views(user_id, limit=limit),
        )
        return {
            user_id: self._converter.activities(rows, user_id=user_id)[:limit]
            for user_id, rows in _present(found).items()
        }

    async def _read_page_views(self, user_id: str, *, limit: int) -> list[PageViewRow] | None:
        rows = list[PageViewRow]()
        path = f"users/{segment(user_id)}/page_views"
        try:
            async for page in self._wire.pages(path, PageViewRow):
                rows += page
                if len(rows) >= limit:
                    break
        except NotThere:
            if await self._find_user(user_id) is None:
                return None
            raise NotSupported(
                "This Canvas does not show page views", provider_id=self._provider.id
            ) from None
        except ScopesMissing:
            raise
        except ProviderForbidden:
            if not self._acts_for_user:
                raise
            return None
        return rows

    # ---- choosing

    def _graph(self, known: Known) -> Graph:
        return Graph(self._wire, known.abilities)

    async def _may_use_graphql(self) -> bool:
        return await self._graphql_reason() is None

    async def _graphql_reason(self) -> str | None:
        """Return why GraphQL is not used: what was found at login, or what failed since."""
        return self._graphql_problem or (await self._known()).graphql_problem

    def _note(
        self,
        wanted: str,
        keys: Collection[object],
        chosen: str,
        calls: Mapping[str, int],
        reason: str | None = None,
    ) -> None:
        note_choice(
            Choice(
                provider_id=self._provider.id,
                subject=str(self._subject),
                wanted=wanted,
                keys=len(keys),
                chosen=chosen,
                calls_by_strategy=dict(calls),
                reason=reason,
            )
        )

    def _pages_of(self, count: int | None) -> int | None:
        return None if count is None else max(1, ceil(count / self._page_size))

    # ---- lists

    async def _unless_hidden(self, read: Awaitable[T | None]) -> T | None:
        """Wait for what a user may not see without that being an error."""
        try:
            return await read
        except ScopesMissing:
            raise
        except ProviderForbidden:
            if not self._acts_for_user:
                raise
            return None

    async def _list_unless_hidden(
        self, path: str, type_: type[T], params: Sequence[tuple[str, ParamValue]] = ()
    ) -> list[T] | None:
        async def read() -> list[T] | None:
            try:
                return await self._wire.rows(path, type_, params=params)
            except NotThere:
                return None

        return await self._unless_hidden(read())

    async def _remember_users(self, rows: Collection[UserRow]) -> None:
        self._users.add(rows, (await self._known()).version)

    async def _remember_courses(self, rows: Collection[CourseRow]) -> None:
        self._courses.add(rows, (await self._known()).version)
        self._saw_courses(rows)

    async def _stretch(
        self,
        path: str,
        type_: type[T],
        params: Sequence[tuple[str, ParamValue]],
        *,
        position: str | None,
        limit: int,
    ) -> tuple[list[T], str | None]:
        """Return rows of a list from a position on, and the position after them.

        A position is a bookmark of Canvas's where it gives those, which may be continued with any
        length; elsewhere it is a number of rows.
        """
        if position is not None and position.startswith(_OFFSET):
            offset = position.removeprefix(_OFFSET)
            if offset.isdecimal():
                return await self._window(path, type_, params, offset=int(offset), limit=limit)
        if position is not None and not position.startswith(_BOOKMARK):
            raise ProviderBadResponse(
                "The position is not one of this list", provider_id=self._provider.id
            )
        rows, page = list[T](), position and position.removeprefix(_BOOKMARK)
        seen = set[str]()
        while True:
            size = min(limit - len(rows), self._page_size)
            listed = await self._wire.page(
                path, type_, params=[*params, ("page", page), ("per_page", size)]
            )
            self._learn_page_size(listed, asked=size)
            rows += listed.items[:size]
            page = _page_of(listed)
            if page is None:
                return rows, None
            if page.isdecimal() and position is None:
                if len(rows) >= limit:
                    return rows, f"{_OFFSET}{len(rows)}"
                more, following = await self._window(
                    path, type_, params, offset=len(rows), limit=limit - len(rows)
                )
                return [*rows, *more], following
            if page in seen:
                raise ProviderBadResponse(
                    "Canvas's pages lead in a circle", provider_id=self._provider.id
                )
            seen.add(page)
            if len(rows) >= limit:
                return rows, f"{_BOOKMARK}{page}"

    async def _window(
        self,
        path: str,
        type_: type[T],
        params: Sequence[tuple[str, ParamValue]],
        *,
        offset: int,
        limit: int,
    ) -> tuple[list[T], str | None]:
        """Return a stretch of a list whose pages are numbered, in as few pages as hold it."""
        size = _window_size(offset, limit, most=self._page_size)
        page, skip = offset // size + 1, offset % size
        rows = list[T]()
        while True:
            listed = await self._wire.page(
                path, type_, params=[*params, ("page", page), ("per_page", size)]
            )
            if self._learn_page_size(listed, asked=size):
                return await self._window(path, type_, params, offset=offset, limit=limit)
            rows += listed.items
            page += 1
            if listed.following is None or len(rows) >= skip + limit:
                break
        shown = rows[skip : skip + limit]
        more = listed.following is not None or len(rows) > skip + limit
        return shown, f"{_OFFSET}{offset + len(shown)}" if more and shown else None

    def _learn_page_size(self, listed: Listed[Any], *, asked: int) -> bool:
        """Take note of a page shorter than asked for, which older releases give."""
        if listed.size is None or not 0 < listed.size < asked:
            return False
        self._page_size = listed.size
        return True


@dataclass(slots=True, kw_only=True)
class _Walk:
    """A walk through all enrollments; those of a course are missing until it is reached."""

    course_ids: list[str]
    rows: dict[str, list[EnrollmentRow]]
    version: int
    taken_at: float

    @classmethod
    def over(
        cls,
        course_ids: Iterable[str],
        rows: Mapping[str, Iterable[EnrollmentRow]],
        *,
        version: int,
        taken_at: float,
    ) -> _Walk:
        return cls(
            course_ids=sorted(course_ids, key=number_order),
            rows={course_id: kept(found) for course_id, found in rows.items()},
            version=version,
            taken_at=taken_at,
        )

    def serves(self, version: int, now: float) -> bool:
        return self.version == version and now - self.taken_at < _WALK_SECONDS

    def total(self) -> int | None:
        if len(self.rows) < len(self.course_ids):
            return None
        return sum(len(found) for found in self.rows.values())


class _Recent(Generic[RowT]):
    """Rows read in the last seconds, which the next field of the same query may need again."""

    def __init__(self) -> None:
        self._rows: dict[str, tuple[RowT, float]] = {}
        self._version = 0

    def add(self, rows: Iterable[RowT], version: int) -> None:
        """Keep rows read just now with the grant of this version."""
        now = asyncio.get_running_loop().time()
        known = self._rows if self._version == version else {}
        self._rows = {id_: each for id_, each in known.items() if now - each[1] < _SEEN_SECONDS}
        self._rows.update((row.id, (row, now)) for row in rows)
        self._version = version

    def get(self, ids: Iterable[str], version: int, *, max_age_seconds: float) -> dict[str, RowT]:
        """Return those of these ids that were read with this grant, and not longer ago."""
        if self._version != version:
            return {}
        known = ((id_, self._rows.get(id_)) for id_ in ids)
        return {
            id_: each[0]
            for id_, each in known
            if each is not None and is_young(each[1], max_age_seconds=max_age_seconds)
        }


async def _each(keys: Iterable[K], work: Callable[[K], Awaitable[T]]) -> dict[K, T]:
    return await work_off(keys, work, at_once=BUCKET.concurrency)


def _page(items: list[T], position: str | None, following: str | None) -> Page[T]:
    whole = position is None and following is None
    return Page(items=items, next_position=following, total=len(items) if whole else None)


def _course_id(row: CourseRow) -> str:
    return row.id


def _titled_course(row: CourseRow) -> str:
    """Return what a course is known by as long as it has its name."""
    name = row.original_name or row.name or ""
    return f"{row.id}.{crc32(name.encode(errors='surrogatepass')):x}"


_COURSES_BY_ID: Final[ByRank[CourseRow]] = ByRank(
    lambda row: number_order(_course_id(row)), number_order
)


def _page_of(listed: Listed[Any]) -> str | None:
    """Return what ``page`` must be for the next page."""
    if listed.following is None:
        return None
    return dict(parse_qsl(listed.following.partition("?")[2])).get("page")


def _window_size(offset: int, limit: int, *, most: int) -> int:
    """Return the page size that needs the fewest pages for a stretch."""
    for size in range(min(limit, most), most + 1):
        if offset // size == (offset + limit - 1) // size:
            return size
    return min(limit, most)


def _place_behind(row: EnrollmentRow) -> str:
    return f"{row.course_id}/{row.id}"


def _place_of(position: str | None, *, provider_id: str) -> tuple[str, str]:
    course_id, slash, enrollment_id = (position or "/").partition("/")
    if not slash:
        raise ProviderBadResponse("The position is not one of this list", provider_id=provider_id)
    return course_id, enrollment_id


def _cheapest(calls: Mapping[str, int]) -> str:
    """Return the way of the fewest calls; of equals the first, which loses the least."""
    return min(calls, key=lambda way: calls[way])


def _present(found: Mapping[K, T | None]) -> dict[K, T]:
    return {key: value for key, value in found.items() if value is not None}


def _by_course(rows: Iterable[EnrollmentRow]) -> dict[str, list[EnrollmentRow]]:
    found = dict[str, list[EnrollmentRow]]()
    for row in rows:
        found.setdefault(row.course_id, []).append(row)
    return found


def _ids(texts: Collection[str]) -> set[str]:
    return {text for text in texts if _ID.fullmatch(text)}


def _valid(pairs: Collection[Pair]) -> list[Pair]:
    wanted = {pair for pair in pairs if _ID.fullmatch(pair[0]) and _ID.fullmatch(pair[1])}
    return sorted(wanted, key=lambda pair: (number_order(pair[1]), number_order(pair[0])))


def _users_by_course(pairs: Iterable[Pair]) -> dict[str, list[str]]:
    found = dict[str, list[str]]()
    for user_id, course_id in pairs:
        found.setdefault(course_id, []).append(user_id)
    return found


def _batches(ids: Sequence[str]) -> Iterable[Sequence[str]]:
    """Cut ids into batches whose addresses stay short."""
    size = max(1, _IDS_PER_URL // (len("student_ids%5B%5D=&") + max(map(len, ids), default=0)))
    return (ids[start : start + size] for start in range(0, len(ids), size))
