"""Enrollments through GraphQL, where that takes fewer calls than REST and loses nothing.

GraphQL knows no names of custom roles, so it serves only accounts without any. What an older
release lacks is found out at login, from the schema itself. Canvas answers every problem with
status 200, and what may not be read with null; either makes this way unusable, never an empty list.

Source:
    https://canvas.instructure.com/doc/api/file.graphql.html
    https://github.com/instructure/canvas-lms/tree/master/app/graphql/types: ``enrollments`` of a
    user are all but the deleted ones; marks are those of the current grading period, if any.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from sessions.errors import (
    ProviderBadResponse,
    ProviderForbidden,
    ProviderTimeout,
)
from sessions.platforms.canvas.rows import LIVE_STATES, EnrollmentRow, GradesRow
from sessions.platforms.canvas.wire import BUCKET, CanvasWire, GraphAnswer
from sessions.sharing import work_off

PAGE: Final = 100
"""Rows a connection gives at most."""

ALIASES: Final = 20
"""Things one query may ask for by name at most."""

IDS: Final = 100
"""Courses that ``courses(ids:)`` takes at most."""

_LEAST_PAGE: Final = 10
_ENROLLMENT_FIELDS: Final = frozenset(
    {"_id", "userId", "courseSectionId", "course", "type", "enrollmentState", "createdAt"}
    | {"updatedAt", "startAt", "endAt", "lastActivityAt", "totalActivityTime", "grades"}
)
_GRADES_FIELDS: Final = ("currentScore", "currentGrade", "finalScore", "finalGrade")
_PERIOD: Final = "gradingPeriod"
_BY_IDS: Final = "courses"
_HEAVY = re.compile(r"complexity|timeout|timed out|depth", re.IGNORECASE)
_PROBE: Final = """query {
  enrollment: __type(name: "Enrollment") { fields { name } }
  grades: __type(name: "Grades") { fields { name } }
  root: __type(name: "Query") { fields { name } }
}"""


class GraphUnusable(Exception):
    """GraphQL cannot answer this completely; the text says why, for a person."""


class _TooHeavy(Exception):
    """The query asked for too much at once."""


@dataclass(frozen=True, slots=True)
class Abilities:
    """What this release's GraphQL can do for enrollments.

    Attributes:
        grades: Names of what it tells of marks; empty when it cannot be used at all.
        by_ids: Whether courses can be asked for by their ids, many at once.
    """

    grades: tuple[str, ...] = ()
    by_ids: bool = False

    def __bool__(self) -> bool:
        """Whether it can be used."""
        return bool(self.grades)

    def __str__(self) -> str:
        return " ".join((*self.grades, *([_BY_IDS] if self.by_ids else [])))

    @classmethod
    def parse(cls, text: str) -> Abilities:
        """Read the text form, in which abilities are kept with the grant."""
        words = text.split()
        return cls(tuple(word for word in words if word != _BY_IDS), _BY_IDS in words)


class _Name(msgspec.Struct, frozen=True):
    name: str


class _Type(msgspec.Struct, frozen=True):
    fields: list[_Name] | None = None

    def names(self) -> set[str]:
        return {each.name for each in self.fields or ()}


class _Schema(msgspec.Struct, frozen=True):
    enrollment: _Type | None = None
    grades: _Type | None = None
    root: _Type | None = None


class _Period(msgspec.Struct, frozen=True):
    _id: str | None = None


class _Grades(msgspec.Struct, frozen=True, rename="camel"):
    current_score: float | None = None
    current_grade: str | None = None
    final_score: float | None = None
    final_grade: str | None = None
    grading_period: _Period | None = None


class _Reference(msgspec.Struct, frozen=True):
    id: str = msgspec.field(name="_id")


class _Enrollment(msgspec.Struct, frozen=True, rename="camel"):
    type: str
    enrollment_state: str
    id: str | None = msgspec.field(name="_id", default=None)
    user_id: str | None = None
    course_section_id: str | None = None
    course: _Reference | None = None
    created_at: str | None = None
    updated_at: str | None = None
    start_at: str | None = None
    end_at: str | None = None
    last_activity_at: str | None = None
    total_activity_time: float | None = None
    grades: _Grades | None = None

    def row(self, course_id: str | None = None) -> EnrollmentRow:
        """Return what REST would have said.

        Raises:
            GraphUnusable: It says more, or GraphQL hides something.
        """
        course_id = course_id or (self.course.id if self.course else None)
        if self.id is None or self.user_id is None or course_id is None:
            raise GraphUnusable("GraphQL hides whose enrollments some are")
        grades = self.grades
        if grades is not None and grades.grading_period is not None:
            raise GraphUnusable("GraphQL gives marks of grading periods instead of courses")
        return EnrollmentRow(
            id=self.id,
            user_id=self.user_id,
            course_id=course_id,
            type=self.type,
            course_section_id=self.course_section_id,
            enrollment_state=self.enrollment_state,
            created_at=self.created_at,
            updated_at=self.updated_at,
            start_at=self.start_at,
            end_at=self.end_at,
            last_activity_at=self.last_activity_at,
            total_activity_time=self.total_activity_time,
            grades=None
            if grades is None
            else GradesRow(
                current_score=grades.current_score,
                current_grade=grades.current_grade,
                final_score=grades.final_score,
                final_grade=grades.final_grade,
            ),
        )


class _PageInfo(msgspec.Struct, frozen=True, rename="camel"):
    has_next_page: bool = False
    end_cursor: str | None = None

    def following(self) -> str | None:
        """Return where the list goes on, if it does.

        Raises:
            GraphUnusable: It does, and does not say where.
        """
        if self.has_next_page and not self.end_cursor:
            raise GraphUnusable("GraphQL does not say where a list goes on")
        return self.end_cursor if self.has_next_page else None


class _Enrollments(msgspec.Struct, frozen=True, rename="camel"):
    page_info: _PageInfo
    nodes: list[_Enrollment | None] | None = None


class _Course(msgspec.Struct, frozen=True, rename="camel"):
    id: str = msgspec.field(name="_id")
    state: str | None = None
    enrollments_connection: _Enrollments | None = None


class _Courses(msgspec.Struct, frozen=True, rename="camel"):
    page_info: _PageInfo
    nodes: list[_Course | None] | None = None


class _Account(msgspec.Struct, frozen=True, rename="camel"):
    courses_connection: _Courses | None = None


class _AccountData(msgspec.Struct, frozen=True):
    account: _Account | None = None


class _CoursesData(msgspec.Struct, frozen=True):
    courses: list[_Course | None] | None = None


class _User(msgspec.Struct, frozen=True):
    id: str | None = msgspec.field(name="_id", default=None)
    enrollments: list[_Enrollment | None] | None = None


@dataclass(slots=True)
class _Gathered:
    """Enrollments by course, and where those of a course go on."""

    rows: dict[str, list[EnrollmentRow]] = field(default_factory=dict)
    open: dict[str, str] = field(default_factory=dict)

    def add(self, course: _Course) -> None:
        """Take in one course's part, unless the course is deleted.

        Raises:
            GraphUnusable: It may not be read.
        """
        if course.state == "deleted":
            return
        found = course.enrollments_connection
        if found is None:
            raise GraphUnusable("GraphQL does not show the enrollments of some courses")
        rows = [each.row(course.id) for each in found.nodes or () if each is not None]
        self.rows.setdefault(course.id, []).extend(rows)
        self.open.pop(course.id, None)
        following = found.page_info.following()
        if following is not None:
            self.open[course.id] = following


class Graph:
    """Reads enrollments; knows what one login may and one release can.

    Args:
        wire: Carries the queries.
        abilities: What the release can do.
    """

    def __init__(self, wire: CanvasWire, abilities: Abilities) -> None:
        self._wire = wire
        self._abilities = abilities
        fields = sorted(_ENROLLMENT_FIELDS - {"course", "grades"})
        self._fields = " ".join(
            (*fields, "course { _id }", f"grades {{ {_grades_selection(abilities)} }}")
        )

    # ---- ways to read

    async def by_account(
        self, account_id: str, *, user_ids: Collection[str] = ()
    ) -> dict[str, list[EnrollmentRow]]:
        """Return enrollments in all courses of an account by course: 100 courses a call.

        Args:
            account_id: A number, as GraphQL knows no ``self``.
            user_ids: Of whom; nobody named is everybody.

        Raises:
            GraphUnusable: Not completely.
            ProviderError: As for every call.
        """
        gathered, size = _Gathered(), PAGE
        after: str | None = None
        while True:
            query = self._account_query(size, with_users=bool(user_ids))
            variables = {"id": account_id, "after": after, "users": sorted(user_ids)}
            try:
                data = await self._run(query, _AccountData, _named(variables, user_ids))
            except _TooHeavy:
                size = _halved(size)
                continue
            listed = data.account.courses_connection if data.account else None
            if listed is None:
                raise GraphUnusable("GraphQL does not show the account's courses")
            for course in listed.nodes or ():
                if course is not None:
                    _check_order(course, gathered)
                    gathered.add(course)
            after = listed.page_info.following()
            if after is None:
                break
        await self._go_on(gathered, user_ids=user_ids)
        return gathered.rows

    async def by_ids(self, course_ids: Sequence[str]) -> dict[str, list[EnrollmentRow]]:
        """Return enrollments by course, of up to 100 courses a call; hidden ones are left out.

        Raises:
            GraphUnusable: Not completely.
            ProviderError: As for every call.
        """
        gathered = _Gathered()
        pending, size = list(course_ids), IDS
        while pending:
            query = f"""query($ids: [ID!]) {{
  courses(ids: $ids) {{ _id state {self._connection()} }}
}}"""
            try:
                data = await self._run(query, _CoursesData, {"ids": pending[:size]})
            except _TooHeavy:
                size = _halved(min(size, len(pending)))
                continue
            for course in data.courses or ():
                if course is not None:
                    gathered.add(course)
            pending = pending[size:]
        await self._go_on(gathered)
        return gathered.rows

    async def by_course(self, course_ids: Sequence[str]) -> dict[str, list[EnrollmentRow]]:
        """Return enrollments by course, of up to 20 courses a call; hidden ones are left out.

        Raises:
            GraphUnusable: Not completely.
            ProviderError: As for every call.
        """
        gathered = _Gathered()
        await work_off(
            range(0, len(course_ids), ALIASES),
            lambda start: self._add_courses(
                gathered, dict.fromkeys(course_ids[start : start + ALIASES]), user_ids=()
            ),
            at_once=BUCKET.concurrency,
        )
        await self._go_on(gathered)
        return gathered.rows

    async def by_user(self, user_ids: Sequence[str]) -> dict[str, list[EnrollmentRow]]:
        """Return enrollments by user, of up to 20 users a call; hidden users are left out.

        Raises:
            GraphUnusable: Not completely.
            ProviderError: As for every call.
        """
        found: dict[str, list[EnrollmentRow]] = {}
        await work_off(
            range(0, len(user_ids), ALIASES),
            lambda start: self._add_users(found, user_ids[start : start + ALIASES]),
            at_once=BUCKET.concurrency,
        )
        return found

    async def _add_users(
        self, found: dict[str, list[EnrollmentRow]], user_ids: Sequence[str]
    ) -> None:
        pending, size = list(user_ids), ALIASES
        while pending:
            asked = pending[:size]
            selections = "\n".join(
                f"  u{index}: legacyNode(_id: {_quoted(user_id)}, type: User) {{ ...U }}"
                for index, user_id in enumerate(asked)
            )
            query = f"""query {{
{selections}
}}
fragment U on User {{ _id enrollments {{ {self._fields} }} }}"""
            try:
                data = await self._run(query, dict[str, _User | None])
            except _TooHeavy:
                size = _halved(len(asked), least=1)
                continue
            for index, user_id in enumerate(asked):
                user = data.get(f"u{index}")
                if user is None or user.id is None:
                    continue
                if user.enrollments is None:
                    raise GraphUnusable("GraphQL does not show the enrollments of some users")
                found[user_id] = [row.row() for row in user.enrollments if row is not None]
            pending = pending[size:]

    # ---- parts of them

    def _account_query(self, size: int, *, with_users: bool) -> str:
        users = ", $users: [ID!]" if with_users else ""
        return f"""query($id: ID!, $after: String{users}) {{
  account(id: $id) {{ coursesConnection(first: {size}, after: $after) {{
    nodes {{ _id state {self._connection(with_users=with_users)} }}
    pageInfo {{ hasNextPage endCursor }}
  }} }}
}}"""

    def _connection(self, *, after: str | None = None, with_users: bool = False) -> str:
        users = ", userIds: $users" if with_users else ""
        start = f"after: {_quoted(after)}, " if after else ""
        filter_ = f"{{ states: [{', '.join(LIVE_STATES)}]{users} }}"
        return f"""enrollmentsConnection(first: {PAGE}, {start}filter: {filter_}) {{
      nodes {{ {self._fields} }} pageInfo {{ hasNextPage endCursor }}
    }}"""

    async def _go_on(self, gathered: _Gathered, *, user_ids: Collection[str] = ()) -> None:
        """Read what is left of courses with more than a page of enrollments, 20 courses a call."""
        while gathered.open:
            chosen = dict(list(gathered.open.items())[:ALIASES])
            await self._add_courses(gathered, chosen, user_ids=user_ids)
            if any(gathered.open.get(course) == at for course, at in chosen.items()):
                raise GraphUnusable("GraphQL's pages do not end")

    async def _add_courses(
        self,
        gathered: _Gathered,
        afters: Mapping[str, str | None],
        *,
        user_ids: Collection[str],
    ) -> None:
        with_users = bool(user_ids)
        selections = "\n".join(
            f"  c{index}: course(id: {_quoted(course_id)}) {{ _id state "
            f"{self._connection(after=after, with_users=with_users)} }}"
            for index, (course_id, after) in enumerate(afters.items())
        )
        query = f"query{'($users: [ID!])' if with_users else ''} {{\n{selections}\n}}"
        try:
            data = await self._run(
                query, dict[str, _Course | None], _named({"users": sorted(user_ids)}, user_ids)
            )
        except _TooHeavy:
            raise GraphUnusable("GraphQL finds a few courses at once too many") from None
        for course in data.values():
            if course is not None:
                gathered.add(course)

    async def _run(
        self, query: str, type_: type[Any], variables: Mapping[str, Any] | None = None
    ) -> Any:
        """Return a query's data, complete.

        Raises:
            GraphUnusable: Problems beside it, or instead of it.
            _TooHeavy: It asked for too much.
            ProviderTimeout: The caller had too little time, which says nothing about the query.
        """
        try:
            answer: GraphAnswer[Any] = await self._wire.graphql(query, type_, variables=variables)
        except ProviderTimeout:
            self._wire.check_time()
            raise _TooHeavy from None
        except (ProviderBadResponse, ProviderForbidden) as error:
            raise GraphUnusable(error.message) from error
        if any(_HEAVY.search(problem.message) for problem in answer.errors):
            raise _TooHeavy
        if answer.errors or answer.data is None:
            raise GraphUnusable("GraphQL answered with a problem")
        return answer.data


async def find_abilities(wire: CanvasWire) -> Abilities:
    """Ask the schema what it can do; what it does not tell, it cannot.

    Raises:
        SessionLost: The token does not hold.
        ProviderError: Canvas could not be asked now.
    """
    try:
        answer = await wire.graphql(_PROBE, _Schema)
    except (ProviderBadResponse, ProviderForbidden):
        return Abilities()
    schema = answer.data
    if answer.errors or schema is None or not (schema.enrollment and schema.grades):
        return Abilities()
    told = schema.grades.names()
    grades = tuple(name for name in (*_GRADES_FIELDS, _PERIOD) if name in told)
    if not (schema.enrollment.names() >= _ENROLLMENT_FIELDS and told >= {"currentScore"}):
        return Abilities()
    return Abilities(grades, _BY_IDS in (schema.root.names() if schema.root else ()))


def _grades_selection(abilities: Abilities) -> str:
    return " ".join(f"{name} {{ _id }}" if name == _PERIOD else name for name in abilities.grades)


def _named(variables: Mapping[str, Any], user_ids: Collection[str]) -> Mapping[str, Any]:
    """Return variables without that of the users, where the query has none."""
    return {name: value for name, value in variables.items() if name != "users" or user_ids}


def _check_order(course: _Course, gathered: _Gathered) -> None:
    """Notice an order of courses that changed between pages, which would lose some.

    Raises:
        GraphUnusable: It did.
    """
    if course.id in gathered.rows:
        raise GraphUnusable("GraphQL gave a course twice, so it may have left out another")


def _halved(size: int, *, least: int = _LEAST_PAGE) -> int:
    if size <= least:
        raise GraphUnusable("GraphQL finds even short pages too much")
    return max(least, size // 2)


def _quoted(text: str) -> str:
    return msgspec.json.encode(text).decode()


def rows_of_users(
    rows_by_course: Mapping[str, Iterable[EnrollmentRow]], user_ids: Collection[str]
) -> dict[str, list[EnrollmentRow]]:
    """Turn enrollments by course into those by user, of these users that have any."""
    wanted, found = set(user_ids), dict[str, list[EnrollmentRow]]()
    for rows in rows_by_course.values():
        for row in rows:
            if row.user_id in wanted:
                found.setdefault(row.user_id, []).append(row)
    return found
