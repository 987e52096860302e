"""Canvas's GraphQL: the part of its schema that rosters need, with its limits.

Limits are counted before anything runs, and answered as Canvas answers every error: with
status 200 and `errors`. What the caller may not read is null, not an error.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    GraphQLResolveInfo,
    InlineFragmentNode,
    IntValueNode,
    SelectionSetNode,
    VariableNode,
    build_schema,
    execute_sync,
    parse,
    validate,
)

from simulators.canvas.population import Course, Enrollment, User
from simulators.canvas.rest import image_url
from simulators.canvas.wire import ENROLLED, Answer, Call, Refusal

_Info = GraphQLResolveInfo[object]
MAX_DEPTH, MAX_COMPLEXITY, MAX_PAGE = 15, 375_000, 100
MAX_TOKENS, MAX_ALIASES, MAX_DIRECTIVES = 5_000, 20, 5
_SDL = """
interface Node { id: ID! }
enum NodeType { Account Course User Enrollment }
enum EnrollmentType {
  StudentEnrollment TeacherEnrollment TaEnrollment ObserverEnrollment DesignerEnrollment
  StudentViewEnrollment
}
enum EnrollmentWorkflowState {
  active invited creation_pending deleted rejected completed inactive
}
enum CourseWorkflowState { created claimed available completed deleted }
input EnrollmentFilterInput {
  types: [EnrollmentType!]
  states: [EnrollmentWorkflowState!]
  userIds: [ID!]
}
type PageInfo {
  hasNextPage: Boolean! hasPreviousPage: Boolean! startCursor: String endCursor: String
}
type Account implements Node {
  id: ID! _id: ID! name: String
  coursesConnection(first: Int, after: String): CourseConnection
}
type CourseConnection { nodes: [Course] pageInfo: PageInfo! }
type Course implements Node {
  id: ID! _id: ID! name: String! courseCode: String state: CourseWorkflowState!
  sisId: String imageUrl: String
  enrollmentsConnection(
    first: Int, after: String, filter: EnrollmentFilterInput
  ): EnrollmentConnection
}
type EnrollmentConnection { nodes: [Enrollment] pageInfo: PageInfo! }
type Grades { currentScore: Float finalScore: Float }
type Enrollment implements Node {
  id: ID! _id: ID! state: EnrollmentWorkflowState! type: EnrollmentType!
  startAt: String endAt: String lastActivityAt: String totalActivityTime: Int
  user: User course: Course grades: Grades
}
type User implements Node {
  id: ID! _id: ID! name: String sortableName: String shortName: String email: String
  enrollments: [Enrollment!]
}
type Query {
  node(id: ID!): Node
  legacyNode(_id: ID!, type: NodeType!): Node
  account(id: ID): Account
  course(id: ID): Course
  %s
}
"""
_OLD = build_schema(_SDL % "_unused: Boolean @deprecated")
_NEW = build_schema(_SDL % "courses(ids: [ID!], sisIds: [ID!]): [Course!]")


def execute(call: Call) -> Answer:
    """Answer `POST /api/graphql`: one operation, from a form or from JSON."""
    schema = _NEW if call.server.profile.graphql_courses_by_ids else _OLD
    source, variables = call.text("query") or "", _variables(call)
    try:
        document = parse(source, max_tokens=MAX_TOKENS)
    except GraphQLError as error:
        return _problems([error])
    problems = validate(schema, document) or _limit_problems(call, document, variables)
    if problems:
        return _problems(problems)
    root = _Query(call)
    result = execute_sync(
        schema, document, root, variable_values=variables, type_resolver=_type_name
    )
    body: dict[str, Any] = {"data": result.data}
    if result.errors:
        body["errors"] = [error.formatted for error in result.errors]
    return Answer(body=body, rows=root.rows)


def _type_name(value: Any, _info: _Info, _type: object) -> str:
    return str(value.typename)


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


def _relay_id(kind: str, number: int) -> str:
    return base64.b64encode(f"{kind}-{number}".encode()).decode()


def _number(call: Call, text: str, kind: str) -> int:
    """Read a REST id or a Relay id of this kind; 0, which is nobody's, for anything else."""
    number = call.number(text)
    if number is not None:
        return number
    try:
        named, _, digits = base64.b64decode(text).decode("ascii").partition("-")
    except ValueError:
        return 0
    return (call.number(digits) or 0) if named == kind else 0


class _Query:
    """The root of every query; `rows` counts what was read, for the cost."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.rows = 1

    def node(self, _info: _Info, id: str) -> object | None:  # noqa: A002 - theirs
        """Find anything by its Relay id."""
        try:
            kind = base64.b64decode(id).decode("ascii").partition("-")[0]
        except ValueError:
            return None
        return self._find(kind, id)

    def legacyNode(  # noqa: N802 - Canvas's name
        self,
        _info: _Info,
        _id: str,
        type: str,  # noqa: A002 - Canvas's name
    ) -> object | None:
        """Find anything by its kind and REST id."""
        return self._find(type, _id)

    def account(self, _info: _Info, id: str = "") -> object | None:  # noqa: A002
        """Find the account."""
        return self._find("Account", id)

    def course(self, _info: _Info, id: str = "") -> object | None:  # noqa: A002
        """Find a course that the caller may know of."""
        return self._find("Course", id)

    def courses(
        self,
        _info: _Info,
        ids: list[str] | None = None,
        sisIds: list[str] | None = None,  # noqa: N803 - Canvas's name
    ) -> list[_CourseNode]:
        """Return up to 100 courses that the caller may know of, by the name they see."""
        if len(ids or sisIds or ()) > MAX_PAGE:
            raise GraphQLError(f"ids may have at most {MAX_PAGE} entries")
        wanted = {_number(self.call, each, "Course") for each in ids or ()}
        found = [
            course
            for course in self.call.server.population.courses.values()
            if course.id in wanted or (sisIds and course.sis_course_id in sisIds)
        ]
        shown = [_CourseNode(self, course) for course in found if self.may_know(course)]
        return sorted(shown, key=lambda node: node.name)

    def may_know(self, course: Course) -> bool:
        """Whether the caller may know of a course."""
        visible = self.call.is_admin or bool(self.call.own_enrollments(course))
        return visible and not self.call.is_restricted(course)

    def _find(self, kind: str, text: str) -> object | None:
        people, number = self.call.server.population, _number(self.call, text, kind)
        if kind == "Account":
            return _AccountNode(self) if number == people.account_id else None
        if kind == "Course":
            course = people.courses.get(number)
            gone = course is None or course.workflow_state == "deleted"
            return (
                _CourseNode(self, course) if course and not gone and self.may_know(course) else None
            )
        if kind == "User":
            user = self.call.server.user(number)
            visible = self.call.is_admin or user is self.call.caller
            return _UserNode(self, user) if user is not None and visible else None
        row = people.enrollments.get(number)
        visible = row is not None and self.may_know(people.courses[row.course_id])
        return _EnrollmentNode(self, row) if row is not None and visible else None

    def page(self, nodes: list[Any], first: int | None, after: str | None) -> dict[str, Any]:
        """Cut one page out of a list; cursors are positions."""
        default = self.call.server.profile.graphql_default_page
        size = min(first, MAX_PAGE) if first is not None else default or len(nodes)
        start = _position(after)
        shown = nodes[start : start + size]
        self.rows += len(shown)
        return {
            "nodes": shown,
            "pageInfo": {
                "hasNextPage": start + size < len(nodes),
                "hasPreviousPage": start > 0,
                "startCursor": _cursor(start + 1) if shown else None,
                "endCursor": _cursor(start + len(shown)) if shown else None,
            },
        }


def _cursor(position: int) -> str:
    return base64.b64encode(str(position).encode()).decode()


def _position(cursor: str | None) -> int:
    try:
        return int(base64.b64decode(cursor or "").decode("ascii") or 0)
    except ValueError:
        return 0


class _AccountNode:
    __typename = "Account"

    def __init__(self, query: _Query) -> None:
        self._query = query
        number = query.call.server.population.account_id
        self.typename, self.id, self._id = "Account", _relay_id("Account", number), str(number)
        self.name = "Simulated"

    def coursesConnection(  # noqa: N802 - Canvas's name
        self, _info: _Info, first: int | None = None, after: str | None = None
    ) -> dict[str, Any] | None:
        query = self._query
        if not query.call.is_admin:
            return None
        courses = query.call.server.population.courses.values()
        return query.page([_CourseNode(query, course) for course in courses], first, after)


class _CourseNode:
    def __init__(self, query: _Query, course: Course) -> None:
        self._query, self._course = query, course
        self.typename, self.id, self._id = (
            "Course",
            _relay_id("Course", course.id),
            str(course.id),
        )
        self.name = course.nicknames.get(query.call.caller.id) or course.name
        self.courseCode, self.state = course.course_code, course.workflow_state
        self.sisId = course.sis_course_id if query.call.is_admin else None
        self.imageUrl = image_url(query.call, course)

    def enrollmentsConnection(  # noqa: N802 - Canvas's name
        self,
        _info: _Info,
        first: int | None = None,
        after: str | None = None,
        filter: dict[str, Any] | None = None,  # noqa: A002 - Canvas's name
    ) -> dict[str, Any] | None:
        call, wanted = self._query.call, filter or {}
        if not call.is_staff(self._course):
            return None
        states, types = set(wanted.get("states") or ENROLLED), set(wanted.get("types") or ())
        users = {_number(call, each, "User") for each in wanted.get("userIds") or ()}
        rows = [
            row
            for row in call.server.population.enrollments_by_course[self._course.id]
            if row.state in states
            and (not types or row.type in types)
            and (not users or row.user_id in users)
        ]
        return self._query.page([_EnrollmentNode(self._query, row) for row in rows], first, after)


class _EnrollmentNode:
    def __init__(self, query: _Query, row: Enrollment) -> None:
        people = query.call.server.population
        self._query, self._row = query, row
        self.typename, self.id = "Enrollment", _relay_id("Enrollment", row.id)
        self._id, self.state, self.type = str(row.id), row.state, row.type
        self.startAt, self.endAt = row.start_at, row.end_at
        self._course = people.courses[row.course_id]
        reads = row.user_id == query.call.caller.id or query.call.is_staff(self._course)
        self.lastActivityAt = row.last_activity_at if reads else None
        self.totalActivityTime = row.total_activity_seconds if reads else None
        scores = {"currentScore": row.current_score, "finalScore": row.final_score}
        self.grades = scores if reads and row.type == "StudentEnrollment" else None

    def user(self, _info: _Info) -> object | None:
        user = self._query.call.server.user(self._row.user_id)
        return None if user is None else _UserNode(self._query, user, self._course)

    def course(self, _info: _Info) -> object | None:
        visible = self._query.may_know(self._course)
        return _CourseNode(self._query, self._course) if visible else None


class _UserNode:
    def __init__(self, query: _Query, user: User, course: Course | None = None) -> None:
        call = query.call
        self._query, self._user = query, user
        self.typename, self.id, self._id = "User", _relay_id("User", user.id), str(user.id)
        self.name, self.sortableName = user.name, user.sortable_name
        self.shortName = user.short_name
        reads = user is call.caller or call.is_admin
        reads = reads or (course is not None and call.is_staff(course))
        self.email = user.email if reads else None

    def enrollments(self, _info: _Info) -> list[object] | None:
        call = self._query.call
        if not call.is_admin and self._user is not call.caller:
            return None
        rows = call.server.population.enrollments_by_user[self._user.id]
        self._query.rows += len(rows)
        return [_EnrollmentNode(self._query, row) for row in rows if row.state in ENROLLED]
