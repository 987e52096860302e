"""The operations in ``graphql/operations`` are valid, and answer what a product needs."""

import json
import re
from datetime import timedelta
from pathlib import Path

import pytest
from graphql import parse, validate
from pretend_roster import (
    NOW,
    SCHEMA,
    Key,
    World,
    a_course,
    a_milestone,
    a_section,
    a_status,
    a_user,
    an_activity,
    an_enrollment,
    answer_of,
    ask,
)

from sessions.errors import ReauthRequired
from storage.records import EnrollmentSource, Progress, ProgressMethod, Score, SessionState

FOLDER = Path(__file__).parents[2] / "graphql" / "operations"


def operation(name: str) -> str:
    return (FOLDER / f"{name}.graphql").read_text(encoding="utf-8")


EXAMPLES = FOLDER.parents[1] / "examples"
SOURCES = ("clients/*/*.js", "clients/*/src/*.ts", "clients/*/*.py", "laravel-sail/app/**/*.php")
DOCUMENT = re.compile(  # as JavaScript, TypeScript, Python and PHP write them
    r"(?<!/)\b(?:gql|graphql)\(?`([^`]+)`|gql\(\"{3}(.+?)\"{3}\)|<<<'GRAPHQL'(.+?)GRAPHQL;",
    re.DOTALL,
)
FOR_RELAY_ITSELF = re.compile(r"@connection\([^)]*\)")


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.graphql")), ids=lambda path: path.stem)
def test_an_operation_is_valid(path: Path) -> None:
    document = parse(path.read_text(encoding="utf-8"))

    assert validate(SCHEMA._schema, document) == []


def test_the_documents_of_the_example_clients_are_valid() -> None:
    found = [
        (path.relative_to(EXAMPLES).parts[1], "".join(groups))
        for source in SOURCES
        for path in sorted(EXAMPLES.glob(source))
        for groups in DOCUMENT.findall(path.read_text(encoding="utf-8"))
    ]

    registered = json.loads((EXAMPLES / "clients/relay/persisted.json").read_text("utf-8"))
    found += [("relay", text) for text in registered.values()]

    assert {client for client, _ in found} == {
        *("apollo", "urql", "relay", "typescript", "python"),
        "app",  # of laravel-sail
    }
    for client, text in found:
        document = parse(FOR_RELAY_ITSELF.sub("", text))
        assert validate(SCHEMA._schema, document) == [], client


async def test_importing_users_walks_every_page_of_the_chosen_providers() -> None:
    world = World()
    world.add("1", user_count=5)
    world.add("2", user_count=4)
    world.add("3", user_count=9)
    variables = {"providerIds": ["1", "2"], "first": 3, "after": None}

    imported, totals = [], []
    while True:
        page = (await answer_of(world, operation("import_users"), variables))["users"]
        imported += [(row["provider"]["providerId"], row["externalId"]) for row in page["nodes"]]
        totals.append(page["totalCount"])
        if not page["pageInfo"]["hasNextPage"]:
            break
        variables["after"] = page["pageInfo"]["endCursor"]

    assert imported == [("1", f"u{n}") for n in range(5)] + [("2", f"u{n}") for n in range(4)]
    assert totals == [9, 9, 9]
    assert world.rosters["3"].calls == []


async def test_courses_with_icons_come_by_title_with_addresses_of_the_gateway() -> None:
    world = World()
    world.add("1").courses = [
        a_course("1", 1, title="Zoology"),
        a_course("1", 2, title="algebra", icon=None),
        a_course("1", 3, title="Écology", resource_count=12),
    ]

    data = await answer_of(world, operation("courses_with_icons"), {"iconWidth": 64})

    rows = data["courses"]["nodes"]
    assert [(row["title"], row["iconUrl"]) for row in rows] == [
        ("algebra", None),
        ("Écology", "/media/c3-64.webp"),
        ("Zoology", "/media/c1-64.webp"),
    ]
    assert [row["icon"] and row["icon"]["width"] for row in rows] == [None, 64, 64]
    assert [row["resourceCount"] for row in rows] == [None, 12, None]
    assert world.rosters["1"].call_names() == ["list_courses"]


async def test_a_learners_record_is_three_calls() -> None:
    world = World()
    school = world.add("1", user_count=3, course_count=3)
    school.enrollments = [
        an_enrollment("1", "u1", "c0"),
        an_enrollment(
            "1",
            "u1",
            "c2",
            source=EnrollmentSource.ACTIVITY,
            external_id=None,
            enrolled_at=NOW - timedelta(days=1, milliseconds=250),
            progress=Progress(
                ratio=0.25,
                completed_count=2,
                total_count=8,
                completed=False,
                time_spent_seconds=600,
                score=Score(raw=7, max=10),
                method=ProgressMethod.DERIVED,
            ),
        ),
        an_enrollment("1", "u2", "c2"),
    ]
    users = (await answer_of(world, "{ users { nodes { id } } }"))["users"]["nodes"]
    school.calls.clear()

    data = await answer_of(world, operation("learner_record"), {"userId": users[1]["id"]})

    record = data["user"]
    assert (record["username"], record["enrollments"]["totalCount"]) == ("user1", 2)
    first, second = record["enrollments"]["nodes"]
    assert first["course"]["title"] == "Course 0"
    assert second["course"]["iconUrl"] == "/media/c2-64.webp"
    assert second["source"] == "ACTIVITY"
    assert second["enrolledAt"] == "2026-02-28T12:29:59.750000Z"
    assert second["progress"] == {
        "ratio": 0.25,
        "completedCount": 2,
        "totalCount": 8,
        "completed": False,
        "completedAt": None,
        "timeSpentSeconds": 600,
        "method": "DERIVED",
        "score": {"raw": 7.0, "min": None, "max": 10.0, "scaled": None, "grade": None},
    }
    assert school.call_names() == ["fetch_users", "fetch_enrollments_by_user", "fetch_courses"]


async def test_a_learners_work_is_six_calls() -> None:
    world = World()
    school = world.add("1", user_count=1, course_count=2)
    school.sections = [a_section("1", "c0", 1)]
    school.enrollments = [
        an_enrollment("1", "u0", "c0", section_id="c0-s1"),
        an_enrollment("1", "u0", "c1"),
    ]
    school.milestones = [a_milestone("1", "u0", "c1", 1, attempt=2)]
    school.activities = [an_activity("1", "u0", 1)]
    users = (await answer_of(world, "{ users { nodes { id } } }"))["users"]["nodes"]
    school.calls.clear()

    data = await answer_of(world, operation("learner_work"), {"userId": users[0]["id"]})

    first, second = data["user"]["enrollments"]["nodes"]
    assert [row["kind"] for row in data["user"]["activity"]] == ["look"]
    assert first["section"] == {"externalId": "c0-s1", "title": "Section 1"}
    assert (first["milestones"], second["section"]) == ([], None)
    assert [(row["title"], row["attempt"]) for row in second["milestones"]] == [("Essay 1", 2)]
    assert sorted(school.call_names()) == [
        "fetch_activity_by_user",
        "fetch_courses",
        "fetch_enrollments_by_user",
        "fetch_milestones",
        "fetch_sections_by_course",
        "fetch_users",
    ]


async def test_providers_show_how_their_sessions_stand() -> None:
    world = World()
    world.add("1")
    world.add("2")
    world.statuses = [
        a_status("1", expires_at=NOW),
        a_status(
            "2",
            state=SessionState.REAUTH_REQUIRED,
            version=0,
            failures=1,
            problem_code=ReauthRequired.code,
            problem="The password is refused",
        ),
    ]

    data = await answer_of(world, operation("providers"))

    one, two = data["providers"]
    assert one["capabilities"] == ["COURSES", "USERS"]
    assert one["createdAt"] == "2026-03-01T12:30:00Z"
    assert one["sessions"] == [
        {
            "subject": "service",
            "state": "ACTIVE",
            "version": 3,
            "expiresAt": "2026-03-01T12:30:00Z",
            "nextTransitionAt": None,
            "loginCount": 0,
            "failures": 0,
            "problemCode": None,
            "problem": None,
        }
    ]
    assert two["sessions"][0]["problemCode"] == "REAUTH_REQUIRED"
    assert two["sessions"][0]["problem"] == "The password is refused"


async def test_sessions_need_their_scope_and_the_rest_of_a_provider_does_not() -> None:
    world = World()
    world.add("1")

    answer = await ask(world, operation("providers"), key=Key(frozenset({"read:users"})))

    assert answer["data"]["providers"][0]["name"] == "School 1"
    assert answer["data"]["providers"][0]["sessions"] is None
    assert answer["data"]["providers"][0]["health"] is None
    assert [error["path"][-1] for error in answer["errors"]] == ["health", "sessions"]
    assert {error["extensions"]["code"] for error in answer["errors"]} == {"FORBIDDEN"}
    assert all("read:providers" in error["message"] for error in answer["errors"])


async def test_nobody_else_is_in_a_record_that_has_no_enrollments() -> None:
    world = World()
    world.add("1").users = [a_user("1", 0)]
    users = (await answer_of(world, "{ users { nodes { id } } }"))["users"]["nodes"]

    data = await answer_of(world, operation("learner_record"), {"userId": users[0]["id"]})

    assert data["user"]["enrollments"]["nodes"] == []
    assert data["user"]["enrollments"]["totalCount"] == 0
