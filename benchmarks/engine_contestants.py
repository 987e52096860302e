"""What `benchmarks/engine.py` compares: one roster, answered in several ways.

    uvicorn engine_contestants:app, with CONTESTANT and ROSTER in the environment

Everything is in memory. ROSTER is a file with the answer that all of them must give, from which
they make their objects: each user has five enrollments, each of them in one of 200 courses.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
import strawberry
from graphql import DocumentNode, ExecutionResult, Executor, GraphQLSchema, parse, validate
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from strawberry.asgi import GraphQL
from strawberry.types import Info

from schema.engine import Engine, Rows, batched

QUERY = (
    "query Roster($first: Int!) { users(first: $first) { nodes { id displayName username email"
    " enrollments(first: 5) { nodes { role { value } state course { id title courseCode } } }"
    " } } }"
)
SHIPPED = "Strawberry as shipped, a coroutine for each object"
TUNED = "Strawberry tuned: documents kept, attributes, msgspec, uvloop"
NODE = {
    "Mercurius with JIT": ("mercurius", True),
    "Mercurius": ("mercurius", False),
    "Yoga with JIT": ("yoga", True),
    "Yoga": ("yoga", False),
}
"""What runs on Node: its server in ``peers/server.js``, and whether it has a JIT."""
ARIADNE = "Ariadne as shipped, on uvloop"
BY_HAND = "Starlette and orjson by hand, no GraphQL"
FLOOR = "orjson of ready dictionaries"
PLANS = "plans alone, batched fields"
IN_PROCESS_ONLY = frozenset({"plans alone, a coroutine for each object"})
IN_PROCESS = (SHIPPED, TUNED, *IN_PROCESS_ONLY, PLANS, BY_HAND, FLOOR)
OVER_HTTP = (SHIPPED, TUNED, ARIADNE, PLANS, BY_HAND, FLOOR)

_SCHEMA = Path(__file__).with_name("peers") / "schema.graphql"


class RoleValue(StrEnum):
    """As what."""

    STUDENT = "STUDENT"
    TEACHER = "TEACHER"


class EnrollmentState(StrEnum):
    """Whether it is under way."""

    ACTIVE = "ACTIVE"
    COMPLETED = "COMPLETED"


@dataclass
class CourseRow:
    """A course."""

    id: str
    title: str
    course_code: str | None


@dataclass
class RoleRow:
    """A role."""

    value: RoleValue


@dataclass
class EnrollmentRow:
    """An enrollment."""

    role: RoleRow
    state: EnrollmentState
    course: CourseRow


@dataclass
class UserRow:
    """A user."""

    id: str
    display_name: str
    username: str | None
    email: str | None
    places: list[EnrollmentRow]


@cache
def expected() -> Mapping[str, Any]:
    """Return the answer there is to give."""
    answer: dict[str, Any] = msgspec.json.decode(Path(os.environ["ROSTER"]).read_bytes())
    return answer


def answer_of(size: int) -> dict[str, Any]:
    """Return the answer to who asks for so many users."""
    return {"data": {"users": {"nodes": expected()["data"]["users"]["nodes"][:size]}}}


@cache
def users() -> list[UserRow]:
    """Return the users there are; their courses and roles are shared."""
    courses: dict[str, CourseRow] = {}
    roles = {value: RoleRow(value) for value in RoleValue}

    def enrollment(row: Mapping[str, Any]) -> EnrollmentRow:
        course = row["course"]
        shared = courses.get(course["id"]) or CourseRow(
            course["id"], course["title"], course["courseCode"]
        )
        courses[shared.id] = shared
        return EnrollmentRow(
            role=roles[row["role"]["value"]], state=EnrollmentState(row["state"]), course=shared
        )

    return [
        UserRow(
            id=row["id"],
            display_name=row["displayName"],
            username=row["username"],
            email=row["email"],
            places=[enrollment(each) for each in row["enrollments"]["nodes"]],
        )
        for row in expected()["data"]["users"]["nodes"]
    ]


def by_hand(first: int) -> dict[str, Any]:
    """Return the answer as one would write it without GraphQL."""
    return {
        "data": {
            "users": {
                "nodes": [
                    {
                        "id": user.id,
                        "displayName": user.display_name,
                        "username": user.username,
                        "email": user.email,
                        "enrollments": {
                            "nodes": [
                                {
                                    "role": {"value": place.role.value},
                                    "state": place.state,
                                    "course": {
                                        "id": place.course.id,
                                        "title": place.course.title,
                                        "courseCode": place.course.course_code,
                                    },
                                }
                                for place in user.places[:5]
                            ]
                        },
                    }
                    for user in users()[:first]
                ]
            }
        }
    }


_RoleValue = strawberry.enum(RoleValue)
_EnrollmentState = strawberry.enum(EnrollmentState)


@strawberry.type(name="Course")
class _Course:
    id: strawberry.ID
    title: str
    course_code: str | None


@strawberry.type(name="Role")
class _Role:
    value: _RoleValue


# With attributes, and a method where there is an argument.


@strawberry.type(name="Enrollment")
class _Enrollment:
    role: _Role
    state: _EnrollmentState
    course: _Course | None


@strawberry.type(name="EnrollmentConnection")
class _Enrollments:
    nodes: list[_Enrollment]


@strawberry.type(name="User")
class _User:
    id: strawberry.ID
    display_name: str
    username: str | None
    email: str | None

    @strawberry.field
    def enrollments(self, first: int = 50) -> _Enrollments | None:
        return _Enrollments(nodes=self.places[:first])  # type: ignore[attr-defined]  # of a row


@strawberry.type(name="UserConnection")
class _Users:
    nodes: list[_User]


@strawberry.type(name="Query")
class _Query:
    @strawberry.field
    def users(self, first: int = 50) -> _Users | None:
        return _Users(nodes=users()[:first])  # type: ignore[arg-type]  # of the same attributes


# With a coroutine for each object, as Strawberry's documentation begins.


@strawberry.type(name="Enrollment")
class _NaiveEnrollment:
    role: _Role
    state: _EnrollmentState
    row: strawberry.Private[Any]

    @strawberry.field
    async def course(self) -> _Course | None:
        found = self.row.course
        return _Course(id=found.id, title=found.title, course_code=found.course_code)


@strawberry.type(name="EnrollmentConnection")
class _NaiveEnrollments:
    nodes: list[_NaiveEnrollment]


@strawberry.type(name="User")
class _NaiveUser:
    id: strawberry.ID
    display_name: str
    username: str | None
    email: str | None
    row: strawberry.Private[Any]

    @strawberry.field
    async def enrollments(self, first: int = 50) -> _NaiveEnrollments | None:
        rows = [
            _NaiveEnrollment(role=place.role, state=place.state, row=place)
            for place in self.row.places[:first]
        ]
        return _NaiveEnrollments(nodes=rows)


@strawberry.type(name="UserConnection")
class _NaiveUsers:
    nodes: list[_NaiveUser]


@strawberry.type(name="Query")
class _NaiveQuery:
    @strawberry.field
    async def users(self, first: int = 50) -> _NaiveUsers | None:
        rows = [
            _NaiveUser(
                id=strawberry.ID(user.id),
                display_name=user.display_name,
                username=user.username,
                email=user.email,
                row=user,
            )
            for user in users()[:first]
        ]
        return _NaiveUsers(nodes=rows)


# With batched fields.


async def _load_courses(parents: Sequence[Any], info: Info[Any, Any]) -> list[_Course | None]:  # noqa: ARG001 - as a loader of many is written
    return [parent.course for parent in parents]


async def _load_enrollments(
    parents: Sequence[Any],
    info: Info[Any, Any],  # noqa: ARG001 - the same
    first: int = 50,
) -> list[_BatchedEnrollments | None]:
    await asyncio.sleep(0)
    return [_BatchedEnrollments(nodes=parent.places[:first]) for parent in parents]


@strawberry.type(name="Enrollment")
class _BatchedEnrollment:
    role: _Role
    state: _EnrollmentState
    course = batched(_load_courses)


@strawberry.type(name="EnrollmentConnection")
class _BatchedEnrollments:
    nodes: list[_BatchedEnrollment]


@strawberry.type(name="User")
class _BatchedUser:
    id: strawberry.ID
    display_name: str
    username: str | None
    email: str | None
    enrollments = batched(_load_enrollments)


@strawberry.type(name="UserConnection")
class _BatchedUsers:
    nodes: list[_BatchedUser]


@strawberry.type(name="Query")
class _BatchedQuery:
    @strawberry.field
    async def users(self, first: int = 50) -> _BatchedUsers | None:
        return _BatchedUsers(nodes=users()[:first])  # type: ignore[arg-type]  # of the same attributes


class _Prepared:
    """Documents that are parsed and validated once, and made ready for each execution."""

    def __init__(self, schema: strawberry.Schema) -> None:
        self.graphql_schema: GraphQLSchema = schema._schema  # noqa: SLF001 - as the gateway does
        self._executor_class = schema.execution_context_class
        self._documents: dict[str, DocumentNode] = {}

    def document(self, text: str) -> DocumentNode:
        """Return the document of a text."""
        found = self._documents.get(text)
        if found is None:
            found = self._documents[text] = parse(text)
            assert not validate(self.graphql_schema, found)
        return found

    def executor(self, body: Mapping[str, Any]) -> Executor[Any]:
        """Return what executes a request."""
        executor = self._executor_class.build(
            self.graphql_schema,
            self.document(body["query"]),
            raw_variable_values=dict(body["variables"]),
            operation_extensions={},
        )
        assert isinstance(executor, Executor), executor
        return executor


Answering = Callable[[Mapping[str, Any]], Awaitable[bytes]]


def plans(schema: strawberry.Schema) -> Answering:
    """Answer by compiled plans."""
    prepared = _Prepared(schema)
    engine = Engine(prepared.graphql_schema)

    async def answered(body: Mapping[str, Any]) -> bytes:
        document = prepared.document(body["query"])
        found = await engine.execute(document, prepared.executor(body), rows=Rows.STRUCTS)
        assert isinstance(found.result, ExecutionResult)
        assert not found.fallback, found.fallback
        return msgspec.json.encode({"data": found.result.data})

    return answered


def tuned(schema: strawberry.Schema) -> Answering:
    """Answer by graphql-core, all else as fast as it can be."""
    prepared = _Prepared(schema)

    async def answered(body: Mapping[str, Any]) -> bytes:
        result: Any = prepared.executor(body).execute_operation()
        if asyncio.iscoroutine(result):
            result = await result
        assert not result.errors, result.errors
        return msgspec.json.encode({"data": result.data})

    return answered


def shipped(schema: strawberry.Schema) -> Answering:
    """Answer as Strawberry's own integration does."""

    async def answered(body: Mapping[str, Any]) -> bytes:
        result = await schema.execute(body["query"], variable_values=dict(body["variables"]))
        assert not result.errors, result.errors
        return json.dumps({"data": result.data}).encode()

    return answered


def hand_written() -> Answering:
    """Answer without GraphQL."""
    encode = import_module("orjson").dumps

    async def answered(body: Mapping[str, Any]) -> bytes:
        written: bytes = encode(by_hand(body["variables"]["first"]))
        return written

    return answered


def floor() -> Answering:
    """Answer with nothing to do but to write what is there."""
    encode = import_module("orjson").dumps

    async def answered(body: Mapping[str, Any]) -> bytes:
        written: bytes = encode(answer_of(body["variables"]["first"]))
        return written

    return answered


def contestant(name: str) -> Answering:
    """Return what answers bodies in one of the ways."""
    ways: dict[str, Callable[[], Answering]] = {
        SHIPPED: lambda: shipped(strawberry.Schema(query=_NaiveQuery)),
        TUNED: lambda: tuned(strawberry.Schema(query=_Query)),
        "plans alone, a coroutine for each object": lambda: plans(
            strawberry.Schema(query=_NaiveQuery)
        ),
        PLANS: lambda: plans(strawberry.Schema(query=_BatchedQuery)),
        BY_HAND: hand_written,
        FLOOR: floor,
    }
    return ways[name]()


def _ariadne() -> Any:
    ariadne = import_module("ariadne")
    query, user = ariadne.QueryType(), ariadne.ObjectType("User")
    query.set_field("users", lambda *_, first: {"nodes": users()[:first]})
    user.set_field("enrollments", lambda row, _info, first: {"nodes": row.places[:first]})
    schema = ariadne.make_executable_schema(
        _SCHEMA.read_text("utf-8"),
        query,
        user,
        ariadne.EnumType("RoleValue", RoleValue),
        ariadne.EnumType("EnrollmentState", EnrollmentState),
        convert_names_case=True,
    )
    return import_module("ariadne.asgi").GraphQL(schema)


def _application(name: str) -> Any:
    async def hello(_: Request) -> Response:
        return Response(b"{}", media_type="application/json")

    ready = Route("/ready", hello)
    if name == FLOOR:
        expected()
    else:
        users()
        expected.cache_clear()  # so that memory is of the objects alone
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
    if name == SHIPPED:
        as_shipped = GraphQL[Any, Any](strawberry.Schema(query=_NaiveQuery))
        return Starlette(routes=[ready, Mount("/", as_shipped)])
    if name == ARIADNE:
        return Starlette(routes=[ready, Mount("/", _ariadne())])
    answered = contestant(name)

    async def endpoint(request: Request) -> Response:
        body = msgspec.json.decode(await request.body())
        return Response(await answered(body), media_type="application/json")

    return Starlette(routes=[Route("/", endpoint, methods=["POST"]), ready])


if "CONTESTANT" in os.environ:
    app = _application(os.environ["CONTESTANT"])
