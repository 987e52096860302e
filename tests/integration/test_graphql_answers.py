"""What a caller gets: rows, partial answers, errors, refusals."""

import asyncio
import json
import re
import time
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from graphql import get_introspection_query
from hypothesis import given, settings
from hypothesis import strategies as st
from pretend_roster import (
    SCHEMA,
    Key,
    Roster,
    World,
    a_context,
    a_course,
    a_provider,
    a_status,
    a_user,
    an_enrollment,
    answer_of,
    ask,
)
from structlog.testing import capture_logs

from resolvers.context import Refusal
from schema import build_schema
from schema.execution import execute
from schema.limits import DocumentLimits, check_text
from sessions.errors import ProviderRateLimited, ProviderTimeout, ProviderUnavailable
from sessions.resilience import BreakerState, ProviderHealth
from storage.records import (
    CourseKind,
    EnrollmentSource,
    Identifier,
    IdentifierType,
    ProviderState,
    Role,
    RoleValue,
)

MANY = """{ users(first: 500) { nodes { displayName enrollments { nodes { course { title iconUrl }
    } } } } }"""


def a_school(world: World, provider_id: str, *, users: int = 5, courses: int = 3) -> Roster:
    """Every user of it is enrolled in every course."""
    school = world.add(provider_id, user_count=users, course_count=courses)
    school.enrollments = [
        an_enrollment(provider_id, user.external_id, course.external_id)
        for user in school.users
        for course in school.courses
    ]
    return school


def codes(answer: dict[str, Any]) -> list[str]:
    return [error["extensions"]["code"] for error in answer.get("errors", [])]


async def gid(world: World, kind: str, number: int = 0) -> str:
    """Return the global id of a row of the first provider."""
    data = await answer_of(world, f"{{ {kind}(first: 20) {{ nodes {{ id }} }} }}")
    return str(data[kind]["nodes"][number]["id"])


# Calls


@pytest.mark.parametrize("users", [1, 50, 250])
async def test_users_with_courses_and_icons_cost_three_calls_whatever_their_number(
    users: int,
) -> None:
    world = World()
    a_school(world, "a", users=users, courses=4)
    a_school(world, "b", users=users, courses=4)

    data = await answer_of(world, MANY)

    rows = data["users"]["nodes"]
    assert len(rows) == 2 * users
    assert [len(row["enrollments"]["nodes"]) for row in rows] == [4] * 2 * users
    assert rows[0]["enrollments"]["nodes"][1]["course"] == {
        "title": "Course 1",
        "iconUrl": "/media/c1-256.webp",
    }
    for school in world.rosters.values():
        assert school.call_names() == ["list_users", "fetch_enrollments_by_user", "fetch_courses"]
        assert len(school.calls[1][1]) == users
        assert sorted(school.calls[2][1]) == ["c0", "c1", "c2", "c3"]
    assert world.icon_batches == [8]


async def test_users_listed_are_not_fetched_again_as_users_of_their_enrollments() -> None:
    world = World()
    school = a_school(world, "a", users=10)

    data = await answer_of(
        world, "{ users { nodes { id enrollments { nodes { user { id } course { id } } } } } }"
    )

    assert all(
        inner["user"]["id"] == row["id"]
        for row in data["users"]["nodes"]
        for inner in row["enrollments"]["nodes"]
    )
    assert school.call_names() == ["list_users", "fetch_enrollments_by_user", "fetch_courses"]


async def test_courses_with_their_users_cost_three_calls() -> None:
    world = World()
    school = a_school(world, "a", users=6, courses=5)

    data = await answer_of(
        world, "{ courses { nodes { enrollments { nodes { user { username } } } } } }"
    )

    assert len(data["courses"]["nodes"][4]["enrollments"]["nodes"]) == 6
    assert school.call_names() == ["list_courses", "fetch_enrollments_by_course", "fetch_users"]


async def test_different_arguments_of_the_same_field_share_the_call() -> None:
    world = World()
    school = a_school(world, "a")

    data = await answer_of(
        world,
        """{ users { nodes {
            some: enrollments(first: 1) { nodes { courseId } pageInfo { hasNextPage } }
            none: enrollments(filter: { sources: [ACTIVITY] }) { totalCount } } } }""",
    )

    assert [len(row["some"]["nodes"]) for row in data["users"]["nodes"]] == [1] * 5
    assert [row["none"]["totalCount"] for row in data["users"]["nodes"]] == [0] * 5
    assert school.call_names() == ["list_users", "fetch_enrollments_by_user"]


async def test_two_filtered_lists_of_a_request_read_the_provider_once() -> None:
    world = World()
    school = a_school(world, "a")

    await answer_of(
        world,
        """{ a: users(filter: { search: "1" }) { nodes { id } }
             b: users(filter: { search: "2" }) { nodes { id } } }""",
    )

    assert school.call_names() == ["list_users"]


async def test_enrollments_of_one_user_walk_page_by_page() -> None:
    world = World()
    a_school(world, "a", users=1, courses=5)
    query = """query ($after: String) { users { nodes { enrollments(first: 2, after: $after) {
        edges { cursor node { course { externalId } } }
        pageInfo { hasNextPage hasPreviousPage startCursor endCursor } totalCount } } } }"""
    seen, after = [], None

    for _ in range(3):
        data = await answer_of(world, query, {"after": after})
        page = data["users"]["nodes"][0]["enrollments"]
        seen += [edge["node"]["course"]["externalId"] for edge in page["edges"]]
        assert page["totalCount"] == 5
        assert page["pageInfo"]["endCursor"] == page["edges"][-1]["cursor"]
        assert page["pageInfo"]["startCursor"] == page["edges"][0]["cursor"]
        assert page["pageInfo"]["hasPreviousPage"] is (after is not None)
        after = page["pageInfo"]["endCursor"]

    assert seen == [f"c{number}" for number in range(5)]
    assert page["pageInfo"]["hasNextPage"] is False


# Partial answers


async def test_a_dead_provider_costs_one_source_one_error_and_its_rows() -> None:
    world = World()
    a_school(world, "a").failure = ProviderTimeout(
        "The provider did not answer", provider_id="a", retry_after_seconds=30
    )
    a_school(world, "b")

    answer = await ask(
        world,
        """{ users { totalCount nodes { externalId }
             sources { providerId status code message retryable retryAfterSeconds } } }""",
    )

    assert len(answer["data"]["users"]["nodes"]) == 5
    assert answer["data"]["users"]["totalCount"] is None
    assert answer["data"]["users"]["sources"] == [
        {
            "providerId": "a",
            "status": "FAILED",
            "code": "PROVIDER_TIMEOUT",
            "message": "The provider did not answer",
            "retryable": True,
            "retryAfterSeconds": 30,
        },
        {
            "providerId": "b",
            "status": "OK",
            "code": None,
            "message": None,
            "retryable": False,
            "retryAfterSeconds": None,
        },
    ]
    assert answer["errors"] == [
        {
            "message": "The provider did not answer",
            "path": ["users"],
            "extensions": {
                "code": "PROVIDER_TIMEOUT",
                "providerId": "a",
                "retryable": True,
                "retryAfterSeconds": 30,
            },
        }
    ]


async def test_a_failing_nested_call_empties_its_branch_and_is_told_once() -> None:
    world = World()
    a_school(world, "a", users=40).failures_by_call = {
        "fetch_enrollments_by_user": ProviderRateLimited("Too many calls", provider_id="a")
    }
    a_school(world, "b", users=40)

    answer = await ask(world, MANY)

    rows = answer["data"]["users"]["nodes"]
    assert [row["enrollments"] is None for row in rows] == [True] * 40 + [False] * 40
    assert codes(answer) == ["PROVIDER_RATE_LIMITED"]
    assert answer["errors"][0]["path"] == ["users", "nodes", 0, "enrollments"]
    assert answer["errors"][0]["extensions"]["providerId"] == "a"


async def test_a_failing_course_call_leaves_the_enrollments() -> None:
    world = World()
    a_school(world, "a").failures_by_call = {"fetch_courses": ProviderUnavailable("Down")}

    answer = await ask(world, MANY)

    enrollment = answer["data"]["users"]["nodes"][0]["enrollments"]["nodes"][0]
    assert enrollment == {"course": None}
    assert codes(answer) == ["PROVIDER_UNAVAILABLE"]


async def test_an_unknown_provider_is_told_and_the_others_answer() -> None:
    world = World()
    a_school(world, "a")

    answer = await ask(
        world,
        """{ users(filter: { providerIds: ["x", "a", "../etc"] }) { nodes { id }
             sources { providerId status code provider { name } } } }""",
    )

    assert len(answer["data"]["users"]["nodes"]) == 5
    assert [
        (source["providerId"], source["status"], source["code"], source["provider"])
        for source in answer["data"]["users"]["sources"]
    ] == [
        ("a", "OK", None, {"name": "School a"}),
        ("x", "FAILED", "PROVIDER_NOT_FOUND", None),
        ("../etc", "FAILED", "PROVIDER_NOT_FOUND", None),
    ]
    assert codes(answer) == ["PROVIDER_NOT_FOUND"] * 2
    assert world.asked_for == ["x"]


async def test_a_provider_the_product_names_when_asked_answers_in_the_same_request() -> None:
    world = World()
    a_school(world, "a")
    world.registrable["late"] = a_provider("late", number=9)
    world.rosters["late"] = Roster(world.registrable["late"], users=[a_user("late", 1)])
    query = """{ users(filter: { providerIds: ["late"] }) {
        nodes { username provider { name } } } }"""

    data = await answer_of(world, query)

    assert data["users"]["nodes"] == [{"username": "user1", "provider": {"name": "School late"}}]
    assert world.asked_for == ["late"]


async def test_a_disabled_provider_is_left_out_unless_named() -> None:
    world = World()
    a_school(world, "a")
    off = a_school(world, "b")
    off.provider = replace(off.provider, state=ProviderState.DISABLED)

    everybody = await answer_of(world, "{ users { sources { providerId } } }")
    named = await answer_of(
        world, '{ users(filter: { providerIds: ["b"] }) { sources { providerId } } }'
    )

    assert everybody["users"]["sources"] == [{"providerId": "a"}]
    assert named["users"]["sources"] == [{"providerId": "b"}]


# Filters and order


async def test_users_are_filtered() -> None:
    world = World()
    teacher = Role(value=RoleValue.TEACHER, source_value="coach")
    world.add("a").users = [
        a_user("a", 0, display_name="José Luis", active=True),
        a_user("a", 1, display_name="jose maria", roles=(teacher,), active=False),
        a_user("a", 2, display_name="", username="JOSÉ", active=None),
        a_user("a", 3, display_name="Ana", username="ana"),
    ]

    async def found(wanted: str) -> list[str]:
        data = await answer_of(world, f"{{ users(filter: {wanted}) {{ nodes {{ externalId }} }} }}")
        return [row["externalId"] for row in data["users"]["nodes"]]

    assert await found('{ search: "JOSE" }') == ["u0", "u1", "u2"]
    assert await found('{ search: "josé", active: true }') == ["u0"]
    assert await found("{ active: false }") == ["u1"]
    assert await found("{ roles: [TEACHER, AIDE] }") == ["u1"]
    assert await found('{ usernames: ["ana", "ANA"] }') == ["u3"]
    assert await found("{ roles: [] }") == []
    assert await found("{ providerIds: [] }") == []
    assert await found(f'{{ userIds: ["{await gid(world, "users", 2)}"] }}') == ["u2"]
    assert world.rosters["a"].call_names()[-1] == "fetch_users"
    both = f'userIds: ["{await gid(world, "users", 2)}"]'
    assert await found(f'{{ providerIds: ["a", "b"], {both} }}') == ["u2"]
    assert await found(f'{{ providerIds: ["b"], {both} }}') == []


async def test_courses_are_filtered_and_ordered() -> None:
    world = World()
    world.add("a").courses = [
        a_course("a", 0, title="Álgebra", kind=CourseKind.LIBRARY),
        a_course("a", 1, title="Zoo", course_code="ALG-1"),
        a_course("a", 2, title="Music"),
    ]

    data = await answer_of(
        world,
        """{ found: courses(filter: { search: "alg" }) { nodes { title } }
             libraries: courses(filter: { kinds: [LIBRARY], states: [ACTIVE] }) { nodes { title } }
             down: courses(orderBy: { field: TITLE, direction: DESC }) { nodes { title } } }""",
    )

    assert [row["title"] for row in data["found"]["nodes"]] == ["Álgebra", "Zoo"]
    assert [row["title"] for row in data["libraries"]["nodes"]] == ["Álgebra"]
    assert [row["title"] for row in data["down"]["nodes"]] == ["Zoo", "Music", "Álgebra"]


async def test_enrollments_are_found_by_user_by_course_and_in_all() -> None:
    world = World()
    school = a_school(world, "a", users=3, courses=2)
    school.enrollments.append(
        an_enrollment("a", "u0", "c0", id="seen", source=EnrollmentSource.ACTIVITY)
    )
    user, course = await gid(world, "users", 1), await gid(world, "courses", 0)
    school.calls.clear()

    async def found(wanted: str) -> list[str]:
        data = await answer_of(
            world, f"{{ enrollments(filter: {wanted}) {{ nodes {{ userId courseId id }} }} }}"
        )
        return [row["id"] for row in data["enrollments"]["nodes"]]

    assert len(await found(f'{{ userIds: ["{user}"] }}')) == 2
    assert len(await found(f'{{ courseIds: ["{course}"] }}')) == 4
    assert len(await found(f'{{ userIds: ["{user}"], courseIds: ["{course}"] }}')) == 1
    assert len(await found("{ sources: [ACTIVITY] }")) == 1
    assert len(await found("{}")) == 7
    assert school.call_names() == [
        "fetch_enrollments_by_user",
        "fetch_enrollments_by_course",
        "fetch_enrollments_by_user",
        "list_enrollments",
        "list_enrollments",
    ]


# Ids


async def test_everything_is_found_again_by_its_id_in_one_call_per_kind() -> None:
    world = World()
    school = a_school(world, "a")
    data = await answer_of(
        world,
        """{ users(first: 2) { nodes { id enrollments(first: 1) { nodes { id } } } }
             courses(first: 1) { nodes { id } } providers { id } }""",
    )
    users = data["users"]["nodes"]
    ids = [
        users[0]["id"],
        users[1]["id"],
        users[0]["enrollments"]["nodes"][0]["id"],
        data["courses"]["nodes"][0]["id"],
        data["providers"][0]["id"],
        "VXNlcjphOm5vYm9keQ",
        "VXNlcjpub3doZXJlOnUx",
    ]
    school.calls.clear()

    again = await answer_of(
        world, "query ($ids: [ID!]!) { nodes(ids: $ids) { __typename id } }", {"ids": ids}
    )

    assert [row and (row["__typename"], row["id"]) for row in again["nodes"]] == [
        ("User", ids[0]),
        ("User", ids[1]),
        ("Enrollment", ids[2]),
        ("Course", ids[3]),
        ("Provider", ids[4]),
        None,
        None,
    ]
    assert sorted(school.call_names()) == [
        "fetch_courses",
        "fetch_enrollments_by_user",
        "fetch_users",
    ]


async def test_of_many_ids_only_those_a_key_may_not_read_are_null() -> None:
    world = World()
    a_school(world, "a")
    user, course = await gid(world, "users"), await gid(world, "courses")

    answer = await ask(
        world,
        "query ($ids: [ID!]!) { nodes(ids: $ids) { id } }",
        {"ids": [user, course, user]},
        key=Key(frozenset({"read:users"})),
    )

    assert answer["data"] == {"nodes": [{"id": user}, None, {"id": user}]}
    (error,) = answer["errors"]
    assert (error["path"], error["extensions"]["code"]) == (["nodes", 1], "FORBIDDEN")


async def test_one_thing_is_found_by_its_id() -> None:
    world = World()
    school = a_school(world, "a")
    school.users[0] = a_user(
        "a",
        0,
        identifiers=(Identifier(type=IdentifierType.SCHOOL_ID, value="007"),),
        last_activity_at=None,
    )
    user, course = await gid(world, "users"), await gid(world, "courses")

    data = await answer_of(
        world,
        """query ($user: ID!, $course: ID!) {
          user(id: $user) { externalId identifiers { type value namespace } provider { name }
            roles { value sourceValue } provenance { externalId sourceType via stale fetchedAt } }
          course(id: $course) { title icon { sha256 byteSize } provider { providerId }
            identifiers { value } provenance { sourceType } }
          node(id: $course) { ... on Course { kind } } }""",
        {"user": user, "course": course},
    )

    assert data["user"] == {
        "externalId": "u0",
        "identifiers": [{"type": "SCHOOL_ID", "value": "007", "namespace": None}],
        "provider": {"name": "School a"},
        "roles": [{"value": "STUDENT", "sourceValue": "learner"}],
        "provenance": {
            "externalId": "u0",
            "sourceType": "account",
            "via": "LIVE",
            "stale": False,
            "fetchedAt": "2026-03-01T12:30:00Z",
        },
    }
    assert data["course"]["icon"] == {"sha256": "ab" * 32, "byteSize": 120}
    assert data["node"] == {"kind": "CLASS"}


def encoded(text: str) -> str:
    return urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ('{ user(id: "x") { id } }', "id: This is not an id the gateway gave"),
        ('{ user(id: "") { id } }', "id: This is not an id the gateway gave"),
        ('{ node(id: "ä") { id } }', "id: This is not an id the gateway gave"),
        (
            f'{{ node(id: "{encoded("Thing:a:1")}") {{ id }} }}',
            "id: This is not an id the gateway gave",
        ),
        (
            f'{{ user(id: "{encoded("Course:a:1")}") {{ id }} }}',
            "id: This is the id of a Course, not of a User",
        ),
        (f'{{ nodes(ids: ["{encoded("User:a:1")}", "b"]) {{ id }} }}', "ids[1]: This is not an id"),
        (f'{{ node(id: "{encoded("Enrollment:a:x")}") {{ id }} }}', "id: This is not an id"),
        ('{ users(filter: { userIds: ["b"] }) { nodes { id } } }', "filter.userIds[0]: This is"),
        ("{ users(first: 0) { nodes { id } } }", "first: 0 is not between 1 and 1000"),
        ("{ users(first: -1) { nodes { id } } }", "first: -1 is not between 1 and 1000"),
        ("{ users(first: 1000000000) { nodes { id } } }", "first: 1000000000 is not between 1"),
        ('{ courses(after: "x") { nodes { id } } }', "after: This cursor is damaged"),
        ('{ courses(after: "") { nodes { id } } }', "after: This cursor is damaged"),
        ("{ users { nodes { enrollments(first: 0) { totalCount } } } }", "first: 0 is not"),
        ('{ users { nodes { enrollments(after: "x") { totalCount } } } }', "after: This cursor"),
        ("{ courses { nodes { iconUrl(width: 0) } } }", "width: 0 is not between 1 and 4096"),
        ("{ users(first: 9999999999) { nodes { id } } }", "Int cannot represent non 32-bit"),
        ("{ users(frist: 1) { nodes { id } } }", "Unknown argument 'frist'"),
        ("{ learners { id } }", "Cannot query field 'learners'"),
        ("{ users { nodes { id } }", "Syntax Error: Expected Name, found <EOF>"),
        (
            "query A { providers { id } } query B { providers { id } }",
            "operationName: The document",
        ),
        ("fragment F on User { id }", "Fragment 'F' is never used."),
        ("", "query: A GraphQL document is needed here"),
    ],
)
async def test_wrong_input_is_told_once_with_what_would_be_right(query: str, message: str) -> None:
    world = World()
    a_school(world, "a")

    answer = await ask(world, query)

    assert codes(answer) == ["BAD_INPUT"]
    assert answer["errors"][0]["message"].startswith(message)


@pytest.mark.parametrize(
    ("credentials", "message"),
    [
        ({"password": {"canary": 1}}, " at .credentials.password: String cannot represent a non"),
        ({"pasword": "canary"}, " at .credentials: Expected value of type 'CredentialsInput' not"),
        ("canary", " at .credentials: Expected value of type 'CredentialsInput' to be an object"),
        ({"values": [{"name": "canary"}]}, " at .credentials.values[0]: Expected value of type"),
    ],
)
async def test_a_wrong_variable_is_named_without_its_value(
    credentials: object, message: str
) -> None:
    query = "mutation ($p: RegisterProviderInput!) { registerProvider(input: $p) { __typename } }"
    details = {"providerId": "1", "platform": "kolibri", "baseUrl": "http://127.0.0.1"}
    variables = {"p": {**details, "credentials": credentials}}

    body = {"query": query, "variables": variables}
    status, answer = await execute(SCHEMA, body, a_context(World()))

    assert status == 422
    (error,) = answer["errors"]
    assert error["message"].startswith(f"Variable '$p' has invalid value{message}")
    assert "canary" not in json.dumps(answer)


@pytest.mark.parametrize(
    ("credentials", "message"),
    [
        ('"canary"', "Expected value of type 'CredentialsInput' to be an object"),
        ('{pasword: "canary"}', "Expected value of type 'CredentialsInput' not to include unknown"),
        ('{values: [{name: "canary"}]}', "Expected value of type "),
        ("{password: 20012001}", "String cannot represent a non string value"),
    ],
)
async def test_a_wrong_literal_is_named_without_its_value(credentials: str, message: str) -> None:
    details = 'providerId: "1", platform: "kolibri", baseUrl: "http://127.0.0.1"'
    query = f"""mutation {{ registerProvider(input: {{{details}, credentials: {credentials}}}) {{
      __typename }} }}"""

    status, answer = await execute(SCHEMA, {"query": query}, a_context(World()))

    assert status == 422
    (error,) = answer["errors"]
    assert error["message"].startswith(message)
    assert not re.search("canary|2001", json.dumps(answer))
    assert error["extensions"] == {"code": "BAD_INPUT"}


async def test_wrong_variables_are_refused_before_anything_runs() -> None:
    world = World()
    school = a_school(world, "a")
    query = """query ($first: Int, $filter: UserFilter) {
        users(first: $first, filter: $filter) { totalCount } }"""

    wrong: list[dict[str, Any]] = [
        {"first": "ten"},
        {"filter": {"rolls": []}},
        {"filter": {"roles": ["KING"]}},
    ]
    for variables in wrong:
        body = {"query": query, "variables": variables}
        status, answer = await execute(SCHEMA, body, a_context(world))
        assert (status, codes(answer)) == (422, ["BAD_INPUT"])
        assert "data" not in answer
    assert school.calls == []


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"query": None},
        {"query": 7},
        {"query": ["{ providers { id } }"]},
        {"query": "{ providers { id } }", "variables": 7},
        {"query": "{ providers { id } }", "variables": ["a"]},
        {"query": "{ providers { id } }", "extensions": "x"},
        {"query": "{ providers { id } }", "operationName": 7},
        {"query": "{ providers { id } }", "operationName": "\ud800"},
        {"query": '{ provider(providerId: "\ud800") { id } }', "operationName": "Missing"},
    ],
)
async def test_a_malformed_body_is_refused_never_a_fault(body: dict[str, Any]) -> None:
    status, answer = await execute(SCHEMA, body, a_context(World()))

    assert status in {400, 422}
    assert codes(answer) == ["BAD_INPUT"]


async def test_empty_lists_stand_for_empty_objects_as_php_writes_them() -> None:
    body = {"query": "{ providers { id } }", "variables": [], "extensions": []}

    assert await execute(SCHEMA, body, a_context(World())) == (200, {"data": {"providers": []}})


async def test_a_get_may_not_change_anything() -> None:
    world = World()
    a_school(world, "a")
    body = {"query": 'mutation { removeProvider(providerId: "a") { __typename } }'}

    status, answer = await execute(SCHEMA, body, a_context(world), queries_only=True)

    assert (status, codes(answer)) == (405, ["BAD_INPUT"])
    assert list(world.rosters) == ["a"]


@given(query=st.text())
@settings(max_examples=200, deadline=None)
def test_no_text_is_a_fault(query: str) -> None:
    status, answer = asyncio.run(execute(SCHEMA, {"query": query}, a_context(World())))

    assert status in {400, 422}
    assert set(codes(answer)) <= {"BAD_INPUT", "REQUEST_LIMIT_EXCEEDED"}


# Faults


async def test_a_fault_is_masked_logged_once_and_found_by_its_id() -> None:
    world = World()
    a_school(world, "a", users=30).failures_by_call = {
        "fetch_enrollments_by_user": LookupError("password=canary-4711")
    }

    with capture_logs() as logs:
        answer = await ask(world, MANY)

    assert "canary" not in json.dumps(answer)
    (error,) = answer["errors"]
    assert error["extensions"]["code"] == "INTERNAL"
    assert error["message"] == f"Internal error {error['extensions']['errorId']}"
    (log,) = logs
    assert (log["error_id"], log["request_id"]) == (error["extensions"]["errorId"], "request-1")
    assert isinstance(log["exc_info"], LookupError)


async def test_a_fault_outside_every_field_is_masked_too() -> None:
    with capture_logs() as logs:
        wrong: Any = "not a schema"
        body = {"query": "{ providers { id } }"}
        status, answer = await execute(wrong, body, a_context(World()))

    assert (status, codes(answer), len(logs)) == (500, ["INTERNAL"], 1)


async def test_a_cancelled_request_cancels_its_calls() -> None:
    world = World()
    school = a_school(world, "a")
    school.delay_seconds = 60
    request = asyncio.create_task(ask(world, MANY))
    await asyncio.sleep(0.02)

    request.cancel()

    with pytest.raises(asyncio.CancelledError):
        await request
    await asyncio.sleep(0)
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []


# Health


async def test_a_providers_health_is_told_as_this_process_sees_it_and_costs_no_call() -> None:
    world = World()
    school = a_school(world, "a")
    a_school(world, "unused")
    at = datetime(2026, 3, 1, 12, tzinfo=UTC)
    world.health_by_provider["a"] = ProviderHealth(
        state=BreakerState.OPEN,
        since=at,
        next_probe_at=at + timedelta(seconds=30),
        consecutive_failures=5,
        last_error_code="PROVIDER_TIMEOUT",
        last_error="a.example:443 stopped answering",
        last_failed_at=at,
        calls_now=1,
        calls_limit=2,
        waiting=3,
        success_rate=0.25,
    )

    answer = await answer_of(
        world,
        """{ providers { health { state since nextProbeAt consecutiveFailures lastErrorCode
            lastError lastFailedAt callsNow callsLimit waiting successRate sessionState } } }""",
    )

    told, unused = (provider["health"] for provider in answer["providers"])
    assert told == {
        "state": "OPEN",
        "since": "2026-03-01T12:00:00Z",
        "nextProbeAt": "2026-03-01T12:00:30Z",
        "consecutiveFailures": 5,
        "lastErrorCode": "PROVIDER_TIMEOUT",
        "lastError": "a.example:443 stopped answering",
        "lastFailedAt": "2026-03-01T12:00:00Z",
        "callsNow": 1,
        "callsLimit": 2,
        "waiting": 3,
        "successRate": 0.25,
        "sessionState": "EMPTY",
    }
    assert unused is None
    assert (school.calls, world.lent) == ([], [])


# Scopes


@pytest.mark.parametrize(
    ("query", "scope", "enough"),
    [
        ("{ users { nodes { id } } }", "read:users", "read:users"),
        ("{ courses { nodes { id } } }", "read:courses", "read:courses"),
        ("{ enrollments(filter: {}) { nodes { id } } }", "read:enrollments", "read:enrollments"),
        ('{ user(id: "VXNlcjphOnUx") { id } }', "read:users", "read:users"),
        ('{ course(id: "Q291cnNlOmE6YzA") { id } }', "read:courses", "read:courses"),
        ("{ providers { health { state } } }", "read:providers", "read:providers"),
        ('mutation { removeProvider(providerId: "a") { __typename } }', "write:providers", "admin"),
        ('mutation { checkProvider(providerId: "a") { __typename } }', "write:providers", "admin"),
    ],
)
async def test_a_key_without_the_scope_is_told_which_and_nothing_is_called(
    query: str, scope: str, enough: str
) -> None:
    world = World()
    school = a_school(world, "a")

    refused = await ask(world, query, key=Key(frozenset({"read:metrics"})))
    calls, providers = list(school.calls), list(world.rosters)
    allowed = await ask(world, query, key=Key(frozenset({enough})))

    assert codes(refused) == ["FORBIDDEN"]
    assert refused["errors"][0]["message"] == f"This needs a key with the scope {scope}"
    assert (calls, providers) == ([], ["a"])
    assert "errors" not in allowed


async def test_scopes_hold_for_nested_fields_too() -> None:
    world = World()
    a_school(world, "a")

    answer = await ask(world, MANY, key=Key(frozenset({"read:users", "read:enrollments"})))

    assert answer["data"]["users"]["nodes"][0]["enrollments"]["nodes"][0] == {"course": None}
    assert codes(answer) == ["FORBIDDEN"]


async def test_a_provider_a_key_may_not_see_does_not_exist_for_it() -> None:
    world = World()
    a_school(world, "a")
    secret = a_school(world, "b")
    key = Key(hidden=frozenset({"b"}))

    answer = await ask(
        world,
        """{ users(filter: { providerIds: ["b"] }) { nodes { id } } providers { providerId }
             provider(providerId: "b") { name } node(id: "VXNlcjpiOnUx") { id }
             all: users { sources { providerId } } }""",
        key=key,
    )
    refused = await answer_of(
        world,
        'mutation { removeProvider(providerId: "b") { ... on ProviderRefused { code } } }',
        key=key,
    )

    assert answer["data"] == {
        "users": {"nodes": []},
        "providers": [{"providerId": "a"}],
        "provider": None,
        "node": None,
        "all": {"sources": [{"providerId": "a"}]},
    }
    assert codes(answer) == ["PROVIDER_NOT_FOUND"]
    assert refused == {"removeProvider": {"code": "PROVIDER_NOT_FOUND"}}
    assert (secret.calls, "b" in world.rosters, world.asked_for) == ([], True, [])


# Mutations


REGISTER = """mutation ($input: RegisterProviderInput!) { registerProvider(input: $input) {
    ... on ProviderPayload { provider { providerId name } }
    ... on ProviderRefused { code message field retryable } } }"""


def draft(**changes: Any) -> dict[str, Any]:
    return {
        "providerId": "7",
        "platform": "pretend",
        "baseUrl": "https://7.example",
        "credentials": {"username": "admin", "password": "s3cret"},
        **changes,
    }


async def test_a_provider_is_registered_with_credentials_nobody_can_print() -> None:
    world = World()
    given_credentials = {
        "username": "admin",
        "password": "s3cret",
        "values": [{"name": "facility", "value": "f1"}],
    }
    given_draft = draft(
        accountId="f1",
        options=[{"name": "role.coach", "value": "TEACHER"}],
        credentials=given_credentials,
    )

    data = await answer_of(world, REGISTER, {"input": given_draft})

    assert data["registerProvider"] == {"provider": {"providerId": "7", "name": "School 7"}}
    (registered,) = world.registered
    assert registered.credentials.reveal() == {
        "username": "admin",
        "password": "s3cret",
        "facility": "f1",
    }
    assert registered.options == {"role.coach": "TEACHER"}
    assert registered.name is None
    assert "s3cret" not in repr(registered)


async def test_a_refusal_is_part_of_the_result_in_the_words_of_the_api() -> None:
    world = World()
    world.refusal = Refusal(
        code="PROVIDER_AUTH_FAILED", message="Wrong password", field="credentials.api_key"
    )

    data = await answer_of(world, REGISTER, {"input": draft()})

    assert data["registerProvider"] == {
        "code": "PROVIDER_AUTH_FAILED",
        "message": "Wrong password",
        "field": "credentials.apiKey",
        "retryable": False,
    }


async def test_a_value_given_twice_is_refused_without_showing_it() -> None:
    twice = draft(
        credentials={"password": "s3cret", "values": [{"name": "password", "value": "s3cret2"}]}
    )
    world = World()

    answer = await ask(world, REGISTER, {"input": twice})

    assert codes(answer) == ["BAD_INPUT"]
    assert "s3cret" not in json.dumps(answer)
    assert world.registered == []


async def test_a_provider_is_updated_checked_and_removed() -> None:
    world = World()
    a_school(world, "a")

    data = await answer_of(
        world,
        """mutation {
          updateProvider(input: { providerId: "a", name: "New", credentials: { apiKey: "k" } }) {
            ... on ProviderPayload { provider { id } } }
          checkProvider(providerId: "a") { ... on ProviderChecked {
            version name account missing provider { providerId } } }
          removeProvider(providerId: "a") { ... on ProviderRemoved { providerId } }
          again: removeProvider(providerId: "a") { ... on ProviderRefused { code field } } }""",
    )

    ((provider_id, changes),) = world.updated
    assert (provider_id, changes.name, changes.base_url, changes.options) == (
        "a",
        "New",
        None,
        None,
    )
    assert changes.credentials is not None
    assert changes.credentials.reveal() == {"api_key": "k"}
    assert data["checkProvider"] == {
        "version": "1.2",
        "name": "Pretend school",
        "account": "Everything",
        "missing": ["Reading logs: no progress"],
        "provider": {"providerId": "a"},
    }
    assert data["removeProvider"] == {"providerId": "a"}
    assert data["again"] == {"code": "PROVIDER_NOT_FOUND", "field": "providerId"}


async def test_a_session_is_revoked_if_there_is_one() -> None:
    world = World()
    world.add("a")
    world.statuses = [a_status("a")]

    data = await answer_of(
        world,
        """mutation {
          one: revokeSession(providerId: "a") { ... on SessionRevoked { providerId subject } }
          two: revokeSession(providerId: "a", subject: "u1") { ... on ProviderRefused { code } }
        }""",
    )

    assert data["one"] == {"providerId": "a", "subject": "service"}
    assert data["two"] == {"code": "PROVIDER_NOT_FOUND"}


# Documents


def bomb(doublings: int) -> str:
    """Return a small document that stands for 2 to the power of ``doublings`` fields."""
    fragments = "".join(
        f"fragment f{n} on User{{...f{n + 1} ...f{n + 1}}}" for n in range(doublings)
    )
    return f"{{users{{nodes{{...f0}}}}}}{fragments}fragment f{doublings} on User{{id}}"


@pytest.mark.parametrize(
    ("query", "what"),
    [
        (bomb(40), "fields and fragments, at most 2000"),
        ("{providers{" + "id " * 320 + "}}", "321 selections, at most 320"),
        (
            "{" + "".join(f"a{n}:providers{{id}}" for n in range(51)) + "}",
            "51 fields at the root, at most 50",
        ),
        (
            "{providers{" + "".join(f"a{n}:id " for n in range(101)) + "}}",
            "101 aliases, at most 100",
        ),
        (
            "{users{nodes" + "{enrollments{nodes{user" * 6 + "{id}" + "}}}" * 6 + "}}",
            "21 deep in fields, at most 16",
        ),
        (
            '{__type(name:"A"){...a}}fragment a on __Type' + "{ofType" * 21 + "{name" + "}" * 22,
            "23 deep in introspection, at most 20",
        ),
        ("{providers{id " + "@include(if:true)" * 51 + "}}", "51 directives, at most 50"),
        (
            "query" + "@include(if:true)" * 30 + "{...a}fragment a on Query"
            "@include(if:true)" + "@include(if:true)" * 20 + "{providers{id}}",
            "51 directives, at most 50",
        ),
        (
            "query(" + "".join(f"$a{n}:ID" for n in range(51)) + "){providers{id}}",
            "51 variables in one operation, at most 50",
        ),
        (
            "".join(f"query a{n}{{providers{{id}}}}" for n in range(21)),
            "21 operations, at most 20",
        ),
        ("{providers{id}} #" + "x" * 40_000, "40017 bytes, at most 16000"),
        ("{providers{id}}" + "\n" * 1_600, "1601 lines, at most 1600"),
        ("{nodes(ids:[" + "1 " * 800 + "]){id}}", "more than 800 tokens"),
        ("{users(filter:" + "[" * 40, "41 brackets inside each other, at most 40"),
    ],
)
async def test_a_document_beyond_a_limit_is_refused_quickly(query: str, what: str) -> None:
    begun = time.perf_counter()

    status, answer = await execute(SCHEMA, {"query": query}, a_context(World()))

    assert (status, codes(answer)) == (422, ["REQUEST_LIMIT_EXCEEDED"])
    assert what in answer["errors"][0]["message"]
    assert time.perf_counter() - begun < 1


@pytest.mark.parametrize(
    "query",
    [
        "{" * 9_000,
        "{a" * 4_000 + "}" * 4_000,
        "{ users(filter: " + "[" * 4_000,
        "{ " + "x " * 20_000 + "}",
        "{ providers { ...f } } fragment f on Provider { ...f }",
        "{ providers { ...a } } fragment a on Provider { ...b } fragment b on Provider { ...a }",
        "{ providers { ...nowhere } }",
    ],
)
async def test_a_hostile_document_is_refused_quickly(query: str) -> None:
    begun = time.perf_counter()

    status, answer = await execute(SCHEMA, {"query": query}, a_context(World()))

    assert status in {400, 422}
    assert set(codes(answer)) <= {"BAD_INPUT", "REQUEST_LIMIT_EXCEEDED"}
    assert time.perf_counter() - begun < 2


async def test_the_standard_introspection_query_is_within_the_limits() -> None:
    data = await answer_of(World(), get_introspection_query(descriptions=True))

    assert data["__schema"]["queryType"]["name"] == "Query"


async def test_documents_are_remembered_in_bounded_number() -> None:
    schema = build_schema(DocumentLimits())

    for number in range(600):
        body = {"query": f"query Q{number} {{ providers {{ id }} }}"}
        await execute(schema, body, a_context(World()))

    assert len(schema.documents._read) == 500  # type: ignore[attr-defined]  # of GatewaySchema


@pytest.mark.timeout(60)  # tried from each blank, it would take hours
def test_blanks_at_the_end_of_a_document_are_passed_over_once() -> None:
    check_text("{ providers { id } }" + " " * 1_000_000, DocumentLimits(max_bytes=2_000_000))


async def test_long_documents_are_remembered_up_to_a_number_of_letters() -> None:
    schema = build_schema(DocumentLimits())

    for number in range(40):
        body = {"query": f"{{ providers {{ id }} }} {' ' * (15_000 + number)}"}
        await execute(schema, body, a_context(World()))

    assert len(schema.documents._read) == 33  # type: ignore[attr-defined]  # of GatewaySchema


async def test_a_provider_given_up_while_it_is_asked_ahead_leaves_nothing_running() -> None:
    world = World()
    a_school(world, "a")
    await answer_of(world, "{ users { nodes { id } } courses { nodes { id } } }")

    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []


async def test_mutations_of_a_provider_the_key_may_not_see_change_nothing() -> None:
    world = World()
    world.add("b")
    world.statuses = [a_status("b")]
    key = Key(hidden=frozenset({"b"}))

    data = await answer_of(
        world,
        """mutation ($draft: RegisterProviderInput!) {
          register: registerProvider(input: $draft) { ... on ProviderRefused { code } }
          update: updateProvider(input: { providerId: "b" }) { ... on ProviderRefused { code } }
          check: checkProvider(providerId: "b") { ... on ProviderRefused { code } }
          revoke: revokeSession(providerId: "b") { ... on ProviderRefused { code } } }""",
        {"draft": draft(providerId="b")},
        key,
    )

    assert {name: result["code"] for name, result in data.items()} == dict.fromkeys(
        ["register", "update", "check", "revoke"], "PROVIDER_NOT_FOUND"
    )
    assert (world.registered, world.updated) == ([], [])


async def test_a_check_that_fails_is_a_refusal() -> None:
    world = World()
    world.add("a")
    world.refusal = Refusal(code="PROVIDER_TIMEOUT", message="No answer", retryable=True)

    data = await answer_of(
        world,
        """mutation { checkProvider(providerId: "a") {
          ... on ProviderRefused { code message field retryable } } }""",
    )

    assert data["checkProvider"] == {
        "code": "PROVIDER_TIMEOUT",
        "message": "No answer",
        "field": None,
        "retryable": True,
    }


async def test_more_ids_than_a_page_are_refused() -> None:
    query = "query ($ids: [ID!]!) { nodes(ids: $ids) { id } }"

    answer = await ask(World(), query, {"ids": ["x"] * 1001})

    assert answer["errors"][0]["message"] == (
        "variables.ids: 1001 values are more than the 1000 one list may hold"
    )


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({"a": [[1] * 1000] * 5}, "They hold more than the 5000 values allowed"),
        ({"a": {"b": [[[[[[[[1]]]]]]]]}}, "It is nested deeper than 8 levels"),
        ({f"a{n}": n for n in range(51)}, "variables: 51 are more than the 50 allowed"),
        ({"a": {str(n): n for n in range(51)}}, "51 members are more than the 50 one object may"),
    ],
)
async def test_variables_beyond_a_limit_are_refused(
    variables: Mapping[str, Any], problem: str
) -> None:
    answer = await ask(World(), "query ($a: ID) { node(id: $a) { id } }", variables)

    assert codes(answer) == ["REQUEST_LIMIT_EXCEEDED"]
    assert problem in answer["errors"][0]["message"]


async def test_what_is_wrong_is_told_without_repeating_all_of_a_long_name() -> None:
    answer = await ask(World(), "{ " + "x" * 15_000 + " }")

    (error,) = answer["errors"]
    assert len(error["message"]) == 605
    assert error["message"].endswith("xx' on type 'Query'.")


async def test_rows_can_be_asked_for_as_edges_too() -> None:
    world = World()
    a_school(world, "a")

    data = await answer_of(
        world,
        """{ users(first: 2) { ...page edges { cursor node { username } } }
             courses(first: 1) { edges { node { title } } pageInfo { hasNextPage }
               sources { status } }
             enrollments(filter: {}, first: 1) { edges { node { source role { sourceValue }
               provider { name } provenance { sourceType } } } sources { status } pageInfo {
               endCursor } totalCount } }
           fragment page on UserConnection { ... on UserConnection { totalCount } }""",
    )

    assert data["users"]["totalCount"] == 5
    assert [edge["node"]["username"] for edge in data["users"]["edges"]] == ["user0", "user1"]
    assert data["courses"]["pageInfo"]["hasNextPage"] is True
    assert data["enrollments"]["totalCount"] == 15
    assert data["enrollments"]["edges"][0]["node"]["provenance"] == {"sourceType": "membership"}


async def test_null_arguments_stand_for_their_defaults() -> None:
    world = World()
    world.add("a", user_count=80, course_count=1)

    data = await answer_of(
        world,
        """query ($none: Int) { users(first: $none, filter: null, orderBy: null, after: null) {
             nodes { id } } courses { nodes { iconUrl(width: $none) } } }""",
        {"none": None},
    )

    assert len(data["users"]["nodes"]) == 50
    assert data["courses"]["nodes"] == [{"iconUrl": "/media/c0-256.webp"}]


async def test_one_enrollment_is_null_when_its_provider_is_hidden_or_it_is_gone() -> None:
    world = World()
    school = a_school(world, "a")
    enrollment = await answer_of(world, "{ enrollments(filter: {}, first: 1) { nodes { id } } }")
    course = await gid(world, "courses")
    ids = [enrollment["enrollments"]["nodes"][0]["id"], course]
    query = "query ($ids: [ID!]!) { nodes(ids: $ids) { id } }"
    school.enrollments.clear()

    gone = await answer_of(world, query, {"ids": ids})
    hidden = await answer_of(world, query, {"ids": ids}, Key(hidden=frozenset({"a"})))

    assert gone == {"nodes": [None, {"id": course}]}
    assert hidden == {"nodes": [None, None]}


async def test_a_users_enrollments_are_null_when_the_provider_no_longer_knows_the_user() -> None:
    world = World()
    school = a_school(world, "a")
    school.enrollments[0] = an_enrollment("a", "ghost", "c0")
    course = await gid(world, "courses")

    data = await answer_of(
        world,
        """query ($id: ID!) { course(id: $id) { enrollments(first: 100) {
             nodes { user { id } } } } }""",
        {"id": course},
    )

    assert [row["user"] for row in data["course"]["enrollments"]["nodes"]].count(None) == 1
