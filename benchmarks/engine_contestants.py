"""What `benchmarks/engine.py` compares: the same lists, answered in several ways.

    uvicorn engine_contestants:app, with CONTESTANT and SIZE in the environment

Everything is in memory. Each user has five enrollments, each of them one of 200 courses.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib import import_module
from importlib.util import find_spec
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
    "query Roster($first: Int!) { users(first: $first) { id name email username"
    " enrollments { role state course { id name iconUrl } } } }"
)
SHIPPED = "Strawberry as shipped, a coroutine for each object"
_COURSES = 200
_ENROLLMENTS = 5


class Role(StrEnum):
    """As what."""

    LEARNER = "learner"
    COACH = "coach"


class State(StrEnum):
    """Whether it is under way."""

    ACTIVE = "active"
    COMPLETED = "completed"


@dataclass
class CourseRow:
    """A course."""

    id: str
    name: str
    icon_url: str | None


@dataclass
class EnrollmentRow:
    """An enrollment."""

    role: Role
    state: State
    course: CourseRow


@dataclass
class UserRow:
    """A user."""

    id: str
    name: str
    email: str
    username: str
    enrollments: list[EnrollmentRow]


@cache
def users() -> list[UserRow]:
    """Return the users there are."""
    courses = [
        CourseRow(
            id=f"{place:08x}-0000-4000-8000-000000000000",
            name=f"Kurs für Ökologie {place}",
            icon_url=None if place % 7 == 0 else f"https://gateway.example/media/{place}.webp",
        )
        for place in range(_COURSES)
    ]
    roles, states = [*Role], [*State]
    return [
        UserRow(
            id=f"{place:08x}-1111-4111-8111-111111111111",
            name=f"Zoë Müller {place}",
            email=f"user{place}@example.org",
            username=f"user{place}",
            enrollments=[
                EnrollmentRow(
                    role=roles[(place + nth) % 2],
                    state=states[(place * nth) % 2],
                    course=courses[(place * 7 + nth * 13) % _COURSES],
                )
                for nth in range(_ENROLLMENTS)
            ],
        )
        for place in range(int(os.environ.get("SIZE", "10000")))
    ]


def by_hand(first: int) -> dict[str, Any]:
    """Return the answer as one would write it without GraphQL."""
    return {
        "data": {
            "users": [
                {
                    "id": user.id,
                    "name": user.name,
                    "email": user.email,
                    "username": user.username,
                    "enrollments": [
                        {
                            "role": place.role.name,
                            "state": place.state.name,
                            "course": {
                                "id": place.course.id,
                                "name": place.course.name,
                                "iconUrl": place.course.icon_url,
                            },
                        }
                        for place in user.enrollments
                    ],
                }
                for user in users()[:first]
            ]
        }
    }


_Role = strawberry.enum(Role)
_State = strawberry.enum(State)


@strawberry.type(name="Course")
class _Course:
    id: strawberry.ID
    name: str
    icon_url: str | None


@strawberry.type(name="Enrollment")
class _Enrollment:
    role: _Role
    state: _State
    course: _Course


@strawberry.type(name="User")
class _User:
    id: strawberry.ID
    name: str
    email: str
    username: str
    enrollments: list[_Enrollment]


@strawberry.type(name="Query")
class _Query:
    @strawberry.field
    def users(self, first: int) -> list[_User]:
        return users()[:first]  # type: ignore[return-value]  # of the same attributes


@strawberry.type(name="Enrollment")
class _NaiveEnrollment:
    role: _Role
    state: _State
    row: strawberry.Private[Any]

    @strawberry.field
    async def course(self) -> _Course:
        found = self.row.course
        return _Course(id=found.id, name=found.name, icon_url=found.icon_url)


@strawberry.type(name="User")
class _NaiveUser:
    id: strawberry.ID
    name: str
    email: str
    username: str
    row: strawberry.Private[Any]

    @strawberry.field
    async def enrollments(self) -> list[_NaiveEnrollment]:
        return [
            _NaiveEnrollment(role=place.role, state=place.state, row=place)
            for place in self.row.enrollments
        ]


@strawberry.type(name="Query")
class _NaiveQuery:
    @strawberry.field
    async def users(self, first: int) -> list[_NaiveUser]:
        return [
            _NaiveUser(
                id=strawberry.ID(user.id),
                name=user.name,
                email=user.email,
                username=user.username,
                row=user,
            )
            for user in users()[:first]
        ]


async def _load_courses(parents: Sequence[Any], info: Info[Any, Any]) -> list[_Course]:  # noqa: ARG001 - as a loader of many is written
    return [parent.course for parent in parents]


async def _load_enrollments(
    parents: Sequence[Any],
    info: Info[Any, Any],  # noqa: ARG001 - the same
) -> list[list[_BatchedEnrollment]]:
    await asyncio.sleep(0)
    return [parent.enrollments for parent in parents]


@strawberry.type(name="Enrollment")
class _BatchedEnrollment:
    role: _Role
    state: _State
    course = batched(_load_courses)


@strawberry.type(name="User")
class _BatchedUser:
    id: strawberry.ID
    name: str
    email: str
    username: str
    enrollments = batched(_load_enrollments)


@strawberry.type(name="Query")
class _BatchedQuery:
    @strawberry.field
    async def users(self, first: int) -> list[_BatchedUser]:
        return users()[:first]  # type: ignore[return-value]  # of the same attributes


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
        return msgspec.json.encode({"data": result.data})

    return answered


def shipped(schema: strawberry.Schema) -> Answering:
    """Answer as Strawberry's own integration does."""

    async def answered(body: Mapping[str, Any]) -> bytes:
        result = await schema.execute(body["query"], variable_values=dict(body["variables"]))
        assert not result.errors, result.errors
        return json.dumps({"data": result.data}).encode()

    return answered


def hand_written(encode: Callable[[Any], bytes]) -> Answering:
    """Answer without GraphQL."""

    async def answered(body: Mapping[str, Any]) -> bytes:
        return encode(by_hand(body["variables"]["first"]))

    return answered


def contestants() -> dict[str, Callable[[], Answering]]:
    """Return those that can run here, by what they are called in the table."""
    found: dict[str, Callable[[], Answering]] = {
        SHIPPED: lambda: shipped(strawberry.Schema(query=_NaiveQuery)),
        "Strawberry tuned, attributes": lambda: tuned(strawberry.Schema(query=_Query)),
        "plans, nothing changed in the schema": lambda: plans(strawberry.Schema(query=_NaiveQuery)),
        "plans, batched fields": lambda: plans(strawberry.Schema(query=_BatchedQuery)),
        "plans, attributes": lambda: plans(strawberry.Schema(query=_Query)),
        "no GraphQL, dictionaries, msgspec": lambda: hand_written(msgspec.json.encode),
    }
    if find_spec("orjson") is not None:
        found["no GraphQL, dictionaries, orjson"] = lambda: hand_written(
            import_module("orjson").dumps
        )
    return found


def _application(name: str) -> Any:
    users()
    answered = contestants()[name]()

    async def endpoint(request: Request) -> Response:
        body = msgspec.json.decode(await request.body())
        return Response(await answered(body), media_type="application/json")

    async def hello(_: Request) -> Response:
        return Response(b"{}", media_type="application/json")

    if name == SHIPPED:
        as_shipped = GraphQL[Any, Any](strawberry.Schema(query=_NaiveQuery))
        return Starlette(routes=[Route("/ready", hello), Mount("/", as_shipped)])
    return Starlette(routes=[Route("/", endpoint, methods=["POST"]), Route("/ready", hello)])


if "CONTESTANT" in os.environ:
    app = _application(os.environ["CONTESTANT"])
