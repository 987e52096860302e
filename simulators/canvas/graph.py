"""Canvas's GraphQL: the part of its schema that rosters need, with its limits.

Limits are counted before anything runs, and answered as Canvas answers every error: with
status 200 and `errors`. What the caller may not read is null, not an error. Some fields are known
only to a newer release (`profiles.py`), and some only inside a course: as on Canvas, `htmlUrl` of
an enrollment and `loginId` of a user are null where the query did not come through its course.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any, Final, TypeVar

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    GraphQLObjectType,
    GraphQLResolveInfo,
    GraphQLSchema,
    InlineFragmentNode,
    IntValueNode,
    SelectionSetNode,
    VariableNode,
    build_schema,
    execute_sync,
    parse,
    validate,
)

from simulators.canvas.population import (
    Course,
    Enrollment,
    User,
)
from simulators.canvas.rest import image_url, letter, since, state_of
from simulators.canvas.wire import Answer, Call, Refusal

Row = TypeVar("Row")
_Info = GraphQLResolveInfo["_Query"]
_Resolver = Callable[..., object]
MAX_DEPTH, MAX_COMPLEXITY, MAX_PAGE = 15, 375_000, 100
MAX_TOKENS, MAX_ALIASES, MAX_DIRECTIVES = 5_000, 20, 5
_SDL = """
interface Node {{ id: ID! }}
enum NodeType {{ Account Course User Enrollment }}
enum EnrollmentType {{
  StudentEnrollment TeacherEnrollment TaEnrollment ObserverEnrollment DesignerEnrollment
  StudentViewEnrollment
}}
enum EnrollmentWorkflowState {{
  active invited creation_pending deleted rejected completed inactive
}}
enum CourseWorkflowState {{ created claimed available completed deleted }}
enum SubmissionState {{ submitted unsubmitted pending_review graded ungraded deleted }}
input EnrollmentFilterInput {{
  types: [EnrollmentType!] states: [EnrollmentWorkflowState!] userIds: [ID!]
  associatedUserIds: [ID!]
}}
input CourseUsersFilterInput {{
  userIds: [ID!] enrollmentTypes: [EnrollmentType!] enrollmentStates: [EnrollmentWorkflowState!]
}}
input SubmissionFilterInput {{
  states: [SubmissionState!] submittedSince: String gradedSince: String
}}
type PageInfo {{
  hasNextPage: Boolean! hasPreviousPage: Boolean! startCursor: String endCursor: String
}}
type TotalCountPageInfo {{
  hasNextPage: Boolean! hasPreviousPage: Boolean! startCursor: String endCursor: String
  totalCount: Int
}}
type Account implements Node {{
  id: ID! _id: ID! name: String
  coursesConnection(first: Int, after: String): CourseConnection
}}
type CourseConnection {{ nodes: [Course] pageInfo: PageInfo! }}
type Course implements Node {{
  id: ID! _id: ID! name: String! courseCode: String state: CourseWorkflowState!
  sisId: String imageUrl: String term: Term {course}
  enrollmentsConnection(
    first: Int, after: String, filter: EnrollmentFilterInput
  ): EnrollmentConnection
  usersConnection(first: Int, after: String, filter: CourseUsersFilterInput): UserConnection
  sectionsConnection(first: Int, after: String): SectionConnection
  assignmentsConnection(first: Int, after: String): AssignmentConnection
  submissionsConnection(
    first: Int, after: String, studentIds: [ID!], filter: SubmissionFilterInput
  ): SubmissionConnection
}}
type Term {{ id: ID! _id: ID! name: String startAt: String endAt: String }}
type SectionConnection {{ nodes: [Section] pageInfo: PageInfo! }}
type Section {{ id: ID! _id: ID! name: String! }}
type AssignmentConnection {{ nodes: [Assignment] pageInfo: PageInfo! }}
type Assignment {{ id: ID! _id: ID! name: String pointsPossible: Float dueAt: String }}
type SubmissionConnection {{ nodes: [Submission] pageInfo: PageInfo! }}
type Submission {{
  id: ID! _id: ID! state: SubmissionState! score: Float submittedAt: String gradedAt: String
  attempt: Int! late: Boolean missing: Boolean excused: Boolean assignment: Assignment user: User
}}
type EnrollmentConnection {{ nodes: [Enrollment] pageInfo: PageInfo! }}
type UserConnection {{ nodes: [User] pageInfo: TotalCountPageInfo! }}
type Grades {{ currentScore: Float finalScore: Float currentGrade: String finalGrade: String }}
type Enrollment implements Node {{
  id: ID! _id: ID! state: EnrollmentWorkflowState! type: EnrollmentType!
  startAt: String endAt: String lastActivityAt: String totalActivityTime: Int
  user: User associatedUser: User course: Course section: Section grades: Grades {enrollment}
}}
type User implements Node {{
  id: ID! _id: ID! name: String sortableName: String shortName: String email: String
  avatarUrl: String enrollments(courseId: ID): [Enrollment!]! {user}
}}
type Query {{
  node(id: ID!): Node
  legacyNode(_id: ID!, type: NodeType!): Node
  account(id: ID): Account
  course(id: ID): Course
  {query}
}}
"""
_COURSE_FIELDS = "createdAt: String updatedAt: String account: Account"
_ENROLLMENT_FIELDS = """
  createdAt: String updatedAt: String userId: ID courseSectionId: ID
  enrollmentState: EnrollmentWorkflowState! htmlUrl: String
"""
_USER_FIELDS = """
  firstName: String lastName: String loginId: String sisId: String integrationId: String
  uuid: String
"""


def execute(call: Call) -> Answer:
    """Answer `POST /api/graphql`: one operation, from a form or from JSON."""
    profile = call.server.profile
    schema = _schema(
        courses_by_ids=profile.graphql_courses_by_ids,
        newer_fields=profile.graphql_newer_fields,
        user_fields=profile.graphql_user_fields,
    )
    variables, parsed = _variables(call), _parsed(call.text("query") or "", schema)
    if isinstance(parsed, tuple):
        return _problems(parsed)
    problems = _limit_problems(call, parsed, variables)
    if problems:
        return _problems(problems)
    query = _Query(call)
    result = execute_sync(
        schema, parsed, context_value=query, variable_values=variables, type_resolver=_type_name
    )
    body: dict[str, Any] = {"data": result.data}
    if result.errors:
        body["errors"] = [error.formatted for error in result.errors]
    return Answer(body=body, rows=query.rows)


@cache
def _schema(*, courses_by_ids: bool, newer_fields: bool, user_fields: bool) -> GraphQLSchema:
    """Build the schema of a release; a field it does not know makes a query invalid."""
    schema = build_schema(
        _SDL.format(
            course=_COURSE_FIELDS if newer_fields else "",
            enrollment=_ENROLLMENT_FIELDS if newer_fields else "",
            user=_USER_FIELDS if user_fields else "",
            query="courses(ids: [ID!], sisIds: [ID!]): [Course!]" if courses_by_ids else "",
        )
    )
    for name, resolvers in _RESOLVERS.items():
        kind = schema.type_map[name]
        for field, resolver in resolvers.items():
            if isinstance(kind, GraphQLObjectType) and field in kind.fields:
                kind.fields[field].resolve = resolver
    return schema


@lru_cache(maxsize=256)
def _parsed(source: str, schema: GraphQLSchema) -> DocumentNode | tuple[GraphQLError, ...]:
    """Parse and validate a query once: clients send the same ones over and over."""
    try:
        document = parse(source, max_tokens=MAX_TOKENS)
    except GraphQLError as error:
        return (error,)
    return tuple(validate(schema, document)) or document


def _problems(problems: Sequence[GraphQLError]) -> Answer:
    return Answer(body={"errors": [problem.formatted for problem in problems]})


def _variables(call: Call) -> dict[str, Any]:
    """Read `variables`: JSON text in a form, or the flattened names of a JSON body."""
    text = call.text("variables")
    if text is not None:
        try:
            found = json.loads(text)
        except ValueError:
            raise Refusal(400, {"error": "Variables are not valid JSON"}) from None
        return found if isinstance(found, dict) else {}
    variables: dict[str, Any] = {}
    for name, value in call.form:
        if not name.startswith("variables["):
            continue
        plain = name.removeprefix("variables[").partition("]")[0]
        if name.endswith("[]"):
            variables.setdefault(plain, []).append(value)
        else:
            variables[plain] = int(value) if value.isdecimal() else value
    return variables


# ---- limits --------------------------------------------------------------------------------


class _Cost:
    """Counts a document: how deep, how many aliases and directives, how complex."""

    def __init__(self, document: DocumentNode, variables: dict[str, Any]) -> None:
        self.variables = variables
        self.depth = self.complexity = self.aliases = self.directives = 0
        self.fragments = {
            node.name.value: node
            for node in document.definitions
            if isinstance(node, FragmentDefinitionNode)
        }
        for node in document.definitions:
            if not isinstance(node, FragmentDefinitionNode):
                self._walk(getattr(node, "selection_set", None), 1, 1)

    def _walk(self, selection: SelectionSetNode | None, depth: int, times: int) -> None:
        if selection is None:
            return
        for node in selection.selections:
            self.directives += len(node.directives or ())
            if isinstance(node, FieldNode):
                self.depth = max(self.depth, depth)
                self.complexity += times
                self.aliases += node.alias is not None
                self._walk(node.selection_set, depth + 1, times * self._page(node))
            elif isinstance(node, InlineFragmentNode):
                self._walk(node.selection_set, depth, times)
            elif isinstance(node, FragmentSpreadNode):
                self._walk(self.fragments[node.name.value].selection_set, depth, times)

    def _page(self, node: FieldNode) -> int:
        if not node.name.value.endswith("Connection"):
            return 1
        asked = next((a.value for a in node.arguments or () if a.name.value == "first"), None)
        if isinstance(asked, IntValueNode):
            return min(int(asked.value), MAX_PAGE)
        if isinstance(asked, VariableNode):
            given = self.variables.get(asked.name.value)
            return min(given, MAX_PAGE) if isinstance(given, int) else MAX_PAGE
        return 20


def _limit_problems(
    call: Call, document: DocumentNode, variables: dict[str, Any]
) -> list[GraphQLError]:
    cost, problems = _Cost(document, variables), list[str]()
    if cost.depth > MAX_DEPTH:
        problems.append(f"Query has depth of {cost.depth}, which exceeds max depth of {MAX_DEPTH}")
    if cost.complexity > MAX_COMPLEXITY:
        problems.append(
            f"Query has complexity of {cost.complexity}, which exceeds max complexity of"
            f" {MAX_COMPLEXITY}"
        )
    if call.server.profile.graphql_enforces_aliases and cost.aliases > MAX_ALIASES:
        problems.append(f"Query has {cost.aliases} aliases, which exceeds {MAX_ALIASES}")
    if call.server.profile.graphql_enforces_aliases and cost.directives > MAX_DIRECTIVES:
        problems.append(f"Query has {cost.directives} directives, which exceeds {MAX_DIRECTIVES}")
    return [GraphQLError(problem) for problem in problems]


# ---- values --------------------------------------------------------------------------------


class _Query:
    """What one query shares: who asks, what was read so far, and what is asked for every row."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.people = call.server.population
        self.rows = 1
        self._staff: dict[int, bool] = {}

    def is_staff(self, course: Course) -> bool:
        """Whether the caller teaches a course or administers the account."""
        found = self._staff.get(course.id)
        if found is None:
            found = self._staff[course.id] = self.call.is_staff(course)
        return found

    def reads(self, row: Enrollment) -> bool:
        """Whether the caller may see how somebody does in a course."""
        course = self.people.courses[row.course_id]
        return row.user_id == self.call.caller.id or self.is_staff(course)

    def may_know(self, course: Course) -> bool:
        """Whether the caller may know of a course."""
        visible = self.call.is_admin or bool(self.call.own_enrollments(course))
        return visible and not self.call.is_restricted(course)

    def number(self, text: str, kind: str) -> int:
        """Read a REST id or a Relay id of this kind; 0, which is nobody's, for anything else."""
        number = self.call.number(text)
        if number is not None:
            return number
        try:
            named, _, digits = base64.b64decode(text).decode("ascii").partition("-")
        except ValueError:
            return 0
        return (self.call.number(digits) or 0) if named == kind else 0

    def numbers(self, texts: Iterable[str] | None, kind: str) -> frozenset[int]:
        """Read the ids of a list; none when there is no list."""
        return frozenset(self.number(text, kind) for text in texts or ())


class _Seen:
    """A row on its way into an answer, with the course that the query came through."""

    __slots__ = ("course", "row")

    def __init__(self, row: Any, course: Course | None = None) -> None:
        self.row = row
        self.course = course


class _Page:
    """One page of a connection; it is its own `pageInfo`."""

    __slots__ = ("nodes", "start", "total")

    def __init__(self, nodes: list[_Seen], *, start: int, total: int) -> None:
        self.nodes = nodes
        self.start = start
        self.total = total


class _TheAccount:
    """There is one account."""


_ACCOUNT = _Seen(_TheAccount())
_KINDS: Final[Mapping[type, str]] = {
    _TheAccount: "Account",
    Course: "Course",
    User: "User",
    Enrollment: "Enrollment",
}


def _type_name(seen: _Seen, _info: _Info, _type: object) -> str:
    return _KINDS[type(seen.row)]


def _relay_id(kind: str, number: int) -> str:
    return base64.b64encode(f"{kind}-{number}".encode()).decode()


def _paged(
    info: _Info,
    rows: Sequence[Any],
    course: Course | None = None,
    *,
    first: int | None,
    after: str | None,
) -> _Page:
    """Cut one page out of a list; cursors are positions."""
    query = info.context
    default = query.call.server.profile.graphql_default_page
    size = min(first, MAX_PAGE) if first is not None else default or len(rows)
    start = _position(after)
    shown = rows[start : start + size]
    query.rows += len(shown)
    return _Page([_Seen(row, course) for row in shown], start=start, total=len(rows))


def _cursor(position: int) -> str:
    return base64.b64encode(str(position).encode()).decode()


def _position(cursor: str | None) -> int:
    try:
        return int(base64.b64decode(cursor or "").decode("ascii") or 0)
    except ValueError:
        return 0


# ---- where a query starts ------------------------------------------------------------------


def _node(_root: None, info: _Info, id: str) -> _Seen | None:  # noqa: A002 - theirs
    try:
        kind = base64.b64decode(id).decode("ascii").partition("-")[0]
    except ValueError:
        return None
    return _found(info.context, kind, id)


def _legacy_node(
    _root: None,
    info: _Info,
    _id: str,
    type: str,  # noqa: A002 - Canvas's name
) -> _Seen | None:
    return _found(info.context, type, _id)


def _courses(
    _root: None,
    info: _Info,
    ids: list[str] | None = None,
    sisIds: list[str] | None = None,  # noqa: N803 - Canvas's name
) -> list[_Seen]:
    """Return up to 100 courses that the caller may know of, by the name they see."""
    query = info.context
    if len(ids or sisIds or ()) > MAX_PAGE:
        raise GraphQLError(f"ids may have at most {MAX_PAGE} entries")
    wanted, serves_admins = (
        query.numbers(ids, "Course"),
        query.call.server.profile.graphql_courses_serve_admins,
    )
    found = [
        course
        for course in query.people.courses.values()
        if (course.id in wanted or (sisIds and course.sis_course_id in sisIds))
        and (serves_admins or query.call.own_enrollments(course))
        and query.may_know(course)
    ]
    query.rows += len(found)
    shown = [_Seen(course, course) for course in found]
    return sorted(shown, key=lambda seen: _course_name(seen, info))


def _found(query: _Query, kind: str, text: str) -> _Seen | None:
    """Find what an id names, if the caller may know of it."""
    people, number = query.people, query.number(text, kind)
    if kind == "Account":
        return _ACCOUNT if number == people.account_id else None
    if kind == "Course":
        course = people.courses.get(number)
        is_there = course is not None and course.workflow_state != "deleted"
        return _Seen(course, course) if course and is_there and query.may_know(course) else None
    if kind == "User":
        user = query.call.server.user(number)
        is_visible = query.call.is_admin or user is query.call.caller
        return _Seen(user) if user is not None and is_visible else None
    row = people.enrollments.get(number)
    is_visible = row is not None and query.may_know(people.courses[row.course_id])
    return _Seen(row) if is_visible else None


# ---- courses -------------------------------------------------------------------------------


def _account_courses(
    _account: _Seen, info: _Info, first: int | None = None, after: str | None = None
) -> _Page | None:
    if not info.context.call.is_admin:
        return None
    return _paged(info, list(info.context.people.courses.values()), first=first, after=after)


def _course_name(seen: _Seen, info: _Info) -> str:
    course: Course = seen.row
    return course.nicknames.get(info.context.call.caller.id) or course.name


def _course_enrollments(
    seen: _Seen,
    info: _Info,
    first: int | None = None,
    after: str | None = None,
    filter: Mapping[str, Any] | None = None,  # noqa: A002 - Canvas's name
) -> _Page | None:
    """Return whom the filter leaves; without states, all that are not deleted."""
    query, course, wanted = info.context, seen.row, filter or {}
    if not query.call.reads_roster(course):
        return None
    states, types = set(wanted.get("states") or ()), set(wanted.get("types") or ())
    users = query.numbers(wanted.get("userIds"), "User")
    associated = query.numbers(wanted.get("associatedUserIds"), "User")
    rows = [
        row
        for row in query.people.enrollments_by_course[course.id]
        if (row.state in states if states else row.state != "deleted")
        and (not types or row.type in types)
        and (not users or row.user_id in users)
        and (not associated or row.associated_user_id in associated)
    ]
    return _paged(info, rows, course, first=first, after=after)


def _course_users(
    seen: _Seen,
    info: _Info,
    first: int | None = None,
    after: str | None = None,
    filter: Mapping[str, Any] | None = None,  # noqa: A002 - Canvas's name
) -> _Page | None:
    query, course, wanted = info.context, seen.row, filter or {}
    if not query.call.reads_roster(course):
        return None
    types = set(wanted.get("enrollmentTypes") or ())
    states = set(wanted.get("enrollmentStates") or ("active", "invited", "inactive"))
    only = query.numbers(wanted.get("userIds"), "User")
    ids = {
        row.user_id
        for row in query.people.enrollments_by_course[course.id]
        if row.state in states
        and (row.type in types if types else row.type != "StudentViewEnrollment")
        and (not only or row.user_id in only)
    }
    found = [query.people.users[each] for each in ids]
    found.sort(key=lambda user: (user.sortable_name, user.id))
    return _paged(info, found, course, first=first, after=after)


def _course_sections(
    seen: _Seen, info: _Info, first: int | None = None, after: str | None = None
) -> _Page:
    sections = info.context.people.sections_by_course[seen.row.id]
    alive = [section for section in sections if section.workflow_state != "deleted"]
    alive.sort(key=lambda section: (section.name, section.id))
    return _paged(info, alive, seen.row, first=first, after=after)


def _course_assignments(
    seen: _Seen, info: _Info, first: int | None = None, after: str | None = None
) -> _Page:
    assignments = info.context.people.assignments.values()
    mine = [each for each in assignments if each.course_id == seen.row.id]
    return _paged(info, mine, seen.row, first=first, after=after)


def _course_submissions(
    seen: _Seen,
    info: _Info,
    first: int | None = None,
    after: str | None = None,
    studentIds: list[str] | None = None,  # noqa: N803 - Canvas's name
    filter: Mapping[str, Any] | None = None,  # noqa: A002 - Canvas's name
) -> _Page:
    """Return the work of those students that the caller may see; only what is done, by default."""
    query, course, wanted = info.context, seen.row, filter or {}
    only = query.numbers(studentIds, "User")
    states = set(wanted.get("states") or ("submitted", "pending_review", "graded"))
    is_staff, me = query.is_staff(course), query.call.caller.id
    rows = [
        row
        for row in query.people.submissions_by_course[course.id]
        if (is_staff or row.user_id == me)
        and (not only or row.user_id in only)
        and row.workflow_state in states
        and since(wanted.get("submittedSince"), row.submitted_at)
        and since(wanted.get("gradedSince"), row.graded_at)
    ]
    return _paged(info, rows, course, first=first, after=after)


def _sis_course_id(seen: _Seen, info: _Info) -> str | None:
    course: Course = seen.row
    return course.sis_course_id if info.context.call.is_admin else None


# ---- enrollments and users -----------------------------------------------------------------


def _enrollment_user(seen: _Seen, info: _Info) -> _Seen | None:
    user = info.context.call.server.user(seen.row.user_id)
    return None if user is None else _Seen(user, seen.course)


def _associated_user(seen: _Seen, info: _Info) -> _Seen | None:
    user = info.context.call.server.user(seen.row.associated_user_id or 0)
    return None if user is None else _Seen(user, seen.course)


def _enrollment_course(seen: _Seen, info: _Info) -> _Seen:
    """Return the course even to those to whom REST shows only its id, as the source does."""
    course = info.context.people.courses[seen.row.course_id]
    return _Seen(course, course)


def _last_activity_at(seen: _Seen, info: _Info) -> str | None:
    row: Enrollment = seen.row
    return row.last_activity_at if info.context.reads(row) else None


def _total_activity_time(seen: _Seen, info: _Info) -> int | None:
    row: Enrollment = seen.row
    return info.context.call.total_activity_seconds(row) if info.context.reads(row) else None


def _grades(seen: _Seen, info: _Info) -> Mapping[str, Any] | None:
    row: Enrollment = seen.row
    if row.type not in {"StudentEnrollment", "StudentViewEnrollment"}:
        return None
    if not info.context.reads(row):
        return None
    return {
        "currentScore": row.current_score,
        "finalScore": row.final_score,
        "currentGrade": letter(row.current_score),
        "finalGrade": letter(row.final_score),
    }


def _enrollment_url(seen: _Seen, info: _Info) -> str | None:
    if seen.course is None:
        return None
    return f"{info.context.call.origin}/courses/{seen.course.id}/users/{seen.row.user_id}"


def _user_enrollments(
    seen: _Seen,
    info: _Info,
    courseId: str | None = None,  # noqa: N803 - Canvas's name
) -> list[_Seen]:
    """Return all the caller may read that are not deleted, of courses that are not, by id."""
    query, user = info.context, seen.row
    only = None if courseId is None else query.number(courseId, "Course")
    shown = [
        _Seen(row)
        for row in query.people.enrollments_by_user[user.id]
        if row.state != "deleted"
        and query.people.courses[row.course_id].workflow_state != "deleted"
        and (only is None or row.course_id == only)
        and (query.reads(row) or query.call.reads_roster(query.people.courses[row.course_id]))
    ]
    query.rows += len(shown)
    return shown


def _email(seen: _Seen, info: _Info) -> str | None:
    user: User = seen.row
    return user.email if user is info.context.call.caller or _knows(seen, info) else None


def _login_id(seen: _Seen, info: _Info) -> str | None:
    user: User = seen.row
    return user.login_id if seen.course is not None and _knows(seen, info) else None


def _knows(seen: _Seen, info: _Info) -> bool:
    """Whether the caller may see a user's address and login, as staff of the course at hand."""
    query = info.context
    return query.call.is_admin or (seen.course is not None and query.is_staff(seen.course))


def _for_admins(name: str) -> _Resolver:
    return lambda seen, info: getattr(seen.row, name) if info.context.call.is_admin else None


def _first_name(seen: _Seen, _info: _Info) -> str | None:
    given = seen.row.sortable_name.partition(",")[2].partition(",")[0]
    return " ".join(given.split()) or None


def _last_name(seen: _Seen, _info: _Info) -> str | None:
    return " ".join(seen.row.sortable_name.partition(",")[0].split()) or None


# ---- what resolves each field --------------------------------------------------------------


def _plain(**fields: str) -> dict[str, _Resolver]:
    """Return resolvers that read an attribute of the row, by the name of the field."""

    def reader(name: str) -> _Resolver:
        return lambda seen, _info: getattr(seen.row, name)

    return {field: reader(name) for field, name in fields.items()}


def _ids(kind: str) -> dict[str, _Resolver]:
    return {
        "id": lambda seen, _info: _relay_id(kind, seen.row.id),
        "_id": lambda seen, _info: seen.row.id,
    }


_PAGE_INFO: Final[dict[str, _Resolver]] = {
    "hasNextPage": lambda page, _info: page.start + len(page.nodes) < page.total,
    "hasPreviousPage": lambda page, _info: page.start > 0,
    "startCursor": lambda page, _info: _cursor(page.start + 1) if page.nodes else None,
    "endCursor": lambda page, _info: _cursor(page.start + len(page.nodes)) if page.nodes else None,
    "totalCount": lambda page, _info: page.total,
}
_CONNECTION: Final[dict[str, _Resolver]] = {
    "nodes": lambda page, _info: page.nodes,
    "pageInfo": lambda page, _info: page,
}
_CONNECTIONS: Final = ("Course", "Enrollment", "User", "Section", "Assignment", "Submission")
_RESOLVERS: Final[Mapping[str, Mapping[str, _Resolver]]] = {
    "Query": {
        "node": _node,
        "legacyNode": _legacy_node,
        "account": lambda _root, info, id="": _found(info.context, "Account", id),  # noqa: A006
        "course": lambda _root, info, id="": _found(info.context, "Course", id),  # noqa: A006
        "courses": _courses,
    },
    "PageInfo": _PAGE_INFO,
    "TotalCountPageInfo": _PAGE_INFO,
    **{f"{name}Connection": _CONNECTION for name in _CONNECTIONS},
    "Account": {
        "id": lambda _account, info: _relay_id("Account", info.context.people.account_id),
        "_id": lambda _account, info: info.context.people.account_id,
        "name": lambda _account, _info: "Simulated",
        "coursesConnection": _account_courses,
    },
    "Course": {
        **_ids("Course"),
        **_plain(courseCode="course_code", state="workflow_state"),
        **_plain(createdAt="created_at", updatedAt="updated_at"),
        "name": _course_name,
        "sisId": _sis_course_id,
        "imageUrl": lambda seen, info: image_url(info.context.call, seen.row),
        "account": lambda _seen, _info: _ACCOUNT,
        "term": lambda _seen, info: info.context.people.term,
        "enrollmentsConnection": _course_enrollments,
        "usersConnection": _course_users,
        "sectionsConnection": _course_sections,
        "assignmentsConnection": _course_assignments,
        "submissionsConnection": _course_submissions,
    },
    "Term": {
        "id": lambda term, _info: _relay_id("Term", term.id),
        "_id": lambda term, _info: term.id,
        "name": lambda term, _info: term.name,
        "startAt": lambda term, _info: term.start_at,
        "endAt": lambda term, _info: term.end_at,
    },
    "Section": {**_ids("Section"), **_plain(name="name")},
    "Assignment": {
        **_ids("Assignment"),
        **_plain(name="name", pointsPossible="points", dueAt="due_at"),
    },
    "Submission": {
        **_ids("Submission"),
        **_plain(state="workflow_state", score="score", submittedAt="submitted_at"),
        **_plain(gradedAt="graded_at", late="late", missing="missing", excused="excused"),
        "attempt": lambda seen, _info: seen.row.attempt or 0,
        "assignment": lambda seen, info: _Seen(
            info.context.people.assignments[seen.row.assignment_id], seen.course
        ),
        "user": _enrollment_user,
    },
    "Enrollment": {
        **_ids("Enrollment"),
        **_plain(state="state", type="type", startAt="start_at", endAt="end_at"),
        **_plain(createdAt="created_at", updatedAt="updated_at"),
        **_plain(userId="user_id", courseSectionId="section_id"),
        "enrollmentState": lambda seen, info: state_of(info.context.call, seen.row),
        "lastActivityAt": _last_activity_at,
        "totalActivityTime": _total_activity_time,
        "htmlUrl": _enrollment_url,
        "grades": _grades,
        "user": _enrollment_user,
        "associatedUser": _associated_user,
        "course": _enrollment_course,
        "section": lambda seen, info: _Seen(
            info.context.people.sections[seen.row.section_id], seen.course
        ),
    },
    "User": {
        **_ids("User"),
        **_plain(name="name", sortableName="sortable_name", shortName="short_name"),
        **_plain(avatarUrl="avatar_url", uuid="uuid"),
        "email": _email,
        "enrollments": _user_enrollments,
        "firstName": _first_name,
        "lastName": _last_name,
        "loginId": _login_id,
        "sisId": _for_admins("sis_user_id"),
        "integrationId": _for_admins("integration_id"),
    },
}
