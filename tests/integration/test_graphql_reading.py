"""What hangs on courses, enrollments, users and providers, each kind in one call per provider."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pretend_roster import (
    NOW,
    SCHEMA,
    Key,
    Roster,
    World,
    a_context,
    a_milestone,
    a_section,
    a_status,
    an_activity,
    an_enrollment,
    answer_of,
    ask,
)
from running_gateway import RunningGateway, running_gateway

from resolvers.context import ReadingLimits
from schema.execution import Shown, execute
from sessions.errors import ProviderUnavailable
from simulators.kolibri.app import running
from simulators.kolibri.population import build_population
from simulators.kolibri.state import Kolibri
from storage.credentials import Secret
from storage.records import (
    Identifier,
    IdentifierType,
    MilestoneState,
    Progress,
    ProgressMethod,
    Score,
    SessionState,
)

EVERYTHING = """{ users(first: 500) { nodes { activity(first: 2) { externalId }
    enrollments { nodes { section { title } milestones { title } progress { ratio }
    course { title sections { externalId } } } } } } }"""


def codes(answer: dict[str, Any]) -> list[str]:
    return [error["extensions"]["code"] for error in answer.get("errors", [])]


def a_busy_school(world: World, provider_id: str, *, users: int = 4, courses: int = 3) -> Roster:
    """Every user is in the first section of every course, and has done something in each."""
    school = world.add(provider_id, user_count=users, course_count=courses)
    course_ids = [course.external_id for course in school.courses]
    user_ids = [user.external_id for user in school.users]
    school.sections = [
        a_section(provider_id, course_id, number) for course_id in course_ids for number in (0, 1)
    ]
    pairs = [(user_id, course_id) for user_id in user_ids for course_id in course_ids]
    school.enrollments = [
        an_enrollment(provider_id, user_id, course_id, section_id=f"{course_id}-s0")
        for user_id, course_id in pairs
    ]
    school.milestones = [
        a_milestone(provider_id, user_id, course_id, number)
        for user_id, course_id in pairs
        for number in (0, 1)
    ]
    school.activities = [
        an_activity(provider_id, user_id, number) for user_id in user_ids for number in range(5)
    ]
    return school


# Calls


@pytest.mark.parametrize("users", [1, 50])
async def test_each_kind_is_one_call_per_provider_whatever_the_number_of_rows(users: int) -> None:
    world = World()
    world.platform = replace(world.platform, progress_by_call=True)
    for provider_id in ("a", "b"):
        a_busy_school(world, provider_id, users=users)

    data = await answer_of(world, EVERYTHING)

    rows = data["users"]["nodes"]
    assert len(rows) == 2 * users
    assert rows[0] == {
        "activity": [{"externalId": "u0-a0"}, {"externalId": "u0-a1"}],
        "enrollments": {
            "nodes": [
                {
                    "section": {"title": "Section 0"},
                    "milestones": [{"title": "Essay 0"}, {"title": "Essay 1"}],
                    "progress": {"ratio": 0.5},
                    "course": {
                        "title": f"Course {number}",
                        "sections": [
                            {"externalId": f"c{number}-s0"},
                            {"externalId": f"c{number}-s1"},
                        ],
                    },
                }
                for number in range(3)
            ]
        },
    }
    for school in world.rosters.values():
        assert sorted(school.call_names()) == [
            "fetch_activity_by_user",
            "fetch_courses",
            "fetch_enrollments_by_user",
            "fetch_milestones",
            "fetch_progress",
            "fetch_sections_by_course",
            "list_users",
        ]
        keys = {
            name: len(arguments)
            for name, arguments in school.calls
            if name in {"fetch_milestones", "fetch_progress", "fetch_sections_by_course"}
        }
        assert keys == {
            "fetch_milestones": 3 * users,
            "fetch_progress": 3 * users,
            "fetch_sections_by_course": 3,
        }


async def test_a_provider_that_is_slow_or_down_costs_its_own_branches_only() -> None:
    world = World()
    down, up = a_busy_school(world, "a"), a_busy_school(world, "b")
    for name in ("fetch_milestones", "fetch_sections_by_course", "fetch_activity_by_user"):
        down.failures_by_call[name] = ProviderUnavailable("It is down", provider_id="a")

    answer = await ask(world, EVERYTHING)

    rows = answer["data"]["users"]["nodes"]
    assert [row["activity"] is None for row in rows] == [True] * 4 + [False] * 4
    for row in rows[:4]:
        for inner in row["enrollments"]["nodes"]:
            assert (inner["section"], inner["milestones"]) == (None, None)
            assert inner["course"]["sections"] is None
            assert inner["progress"] == {"ratio": 0.5}
    assert codes(answer) == ["PROVIDER_UNAVAILABLE"] * 4
    assert sorted(down.call_names()) == sorted(up.call_names())


async def test_what_a_platform_lacks_is_null_and_told_once_for_each_field() -> None:
    world = World()
    school = a_busy_school(world, "a")
    school.sections = school.milestones = school.activities = None

    answer = await ask(world, EVERYTHING)

    assert sorted(error["message"] for error in answer["errors"]) == [
        "pretend providers have no activity",
        "pretend providers have no milestones",
        "pretend providers have no sections",
        "pretend providers have no sections",
    ]
    assert codes(answer) == ["NOT_SUPPORTED"] * 4
    assert [row["activity"] for row in answer["data"]["users"]["nodes"]] == [None] * 4
    assert sorted(school.call_names()) == [
        "fetch_courses",
        "fetch_enrollments_by_user",
        "list_users",
    ]


# Sections


async def test_a_section_is_told_with_everything_that_is_known_of_it() -> None:
    world = World()
    school = world.add("a", course_count=2)
    school.sections = [
        a_section(
            "a",
            "c0",
            7,
            identifiers=(Identifier(type=IdentifierType.SIS_ID, value="S-7"),),
            starts_at=NOW,
            ends_at=NOW + timedelta(days=90),
        )
    ]

    data = await answer_of(
        world,
        """{ courses { nodes { sections { externalId title identifiers { type value }
            startsAt endsAt provenance { sourceType } } } } }""",
    )

    assert data["courses"]["nodes"] == [
        {
            "sections": [
                {
                    "externalId": "c0-s7",
                    "title": "Section 7",
                    "identifiers": [{"type": "SIS_ID", "value": "S-7"}],
                    "startsAt": "2026-03-01T12:30:00Z",
                    "endsAt": "2026-05-30T12:30:00Z",
                    "provenance": {"sourceType": "group"},
                }
            ]
        },
        {"sections": []},
    ]


async def test_an_enrollment_in_no_section_costs_no_call_and_one_in_an_unknown_one_is_null() -> (
    None
):
    world = World()
    school = world.add("a", user_count=1, course_count=2)
    school.sections = []
    query = "{ enrollments(filter: {}) { nodes { section { title } } } }"

    school.enrollments = [an_enrollment("a", "u0", "c0")]
    in_none = await answer_of(world, query)
    calls_for_none = school.call_names()
    school.enrollments = [
        an_enrollment("a", "u0", "c0", section_id="gone"),
        an_enrollment("a", "u0", "gone", section_id="gone"),
    ]
    in_unknown = await answer_of(world, query)

    assert in_none["enrollments"]["nodes"] == [{"section": None}]
    assert calls_for_none == ["list_enrollments"]
    assert in_unknown["enrollments"]["nodes"] == [{"section": None}] * 2
    assert school.call_names()[1:] == ["list_enrollments", "fetch_sections_by_course"]


# Milestones and activity


async def test_a_milestone_is_told_with_everything_that_is_known_of_it() -> None:
    world = World()
    school = world.add("a", user_count=1, course_count=1)
    school.enrollments = [an_enrollment("a", "u0", "c0")]
    school.milestones = [
        a_milestone(
            "a",
            "u0",
            "c0",
            1,
            state=MilestoneState.GRADED,
            due_at=NOW,
            submitted_at=NOW + timedelta(hours=1),
            graded_at=NOW + timedelta(hours=2),
            score=Score(raw=8, max=10, grade="B"),
            attempt=2,
            late=True,
            missing=False,
        ),
        a_milestone("a", "u0", "c0", 2, title=None),
    ]

    data = await answer_of(
        world,
        """{ enrollments(filter: {}) { nodes { milestones { externalId title state dueAt
            submittedAt gradedAt score { raw max grade } attempt late missing
            provenance { sourceType } } } } }""",
    )

    graded, opened = data["enrollments"]["nodes"][0]["milestones"]
    assert graded == {
        "externalId": "u0-c0-m1",
        "title": "Essay 1",
        "state": "GRADED",
        "dueAt": "2026-03-01T12:30:00Z",
        "submittedAt": "2026-03-01T13:30:00Z",
        "gradedAt": "2026-03-01T14:30:00Z",
        "score": {"raw": 8, "max": 10, "grade": "B"},
        "attempt": 2,
        "late": True,
        "missing": False,
        "provenance": {"sourceType": "handing in"},
    }
    assert (opened["title"], opened["state"], opened["score"]) == (None, "OPEN", None)


async def test_activity_of_different_lengths_is_one_call_for_the_longest() -> None:
    world = World()
    school = a_busy_school(world, "a", users=3)
    school.activities = [
        an_activity("a", "u0", 0, course_id="c0", seconds=2.5),
        *(an_activity("a", "u0", number) for number in range(1, 5)),
    ]

    data = await answer_of(
        world,
        """{ users { nodes { one: activity(first: 1) { externalId kind at seconds courseId }
            four: activity(first: 4) { externalId } } } }""",
    )

    assert data["users"]["nodes"][0] == {
        "one": [
            {
                "externalId": "u0-a0",
                "kind": "look",
                "at": "2026-03-01T12:30:00Z",
                "seconds": 2.5,
                "courseId": "Q291cnNlOmE6YzA",
            }
        ],
        "four": [{"externalId": f"u0-a{number}"} for number in range(4)],
    }
    assert data["users"]["nodes"][1] == {"one": [], "four": []}
    assert school.calls[1:] == [("fetch_activity_by_user", (["u0", "u1", "u2"], 4))]


@pytest.mark.parametrize("first", [0, 101])
async def test_a_length_no_activity_may_have_is_refused_before_the_call(first: int) -> None:
    world = World()
    school = a_busy_school(world, "a", users=1)

    answer = await ask(world, f"{{ users {{ nodes {{ activity(first: {first}) {{ at }} }} }} }}")

    assert answer["errors"][0]["message"] == f"first: {first} is not between 1 and 100"
    assert school.call_names() == ["list_users"]


# Progress


async def test_what_a_call_tells_of_progress_wins_and_the_enrollment_says_the_rest() -> None:
    world = World()
    world.platform = replace(world.platform, progress_by_call=True)
    school = world.add("a", user_count=3, course_count=2)
    known = Progress(
        ratio=0.1, time_spent_seconds=60, score=Score(raw=7), method=ProgressMethod.DERIVED
    )
    school.enrollments = [
        an_enrollment("a", "u0", "c0", progress=known),
        an_enrollment("a", "u1", "c0", progress=None),
        an_enrollment("a", "u2", "c0", progress=known),
        an_enrollment("a", "u2", "c1", progress=None),
    ]
    told = Progress(ratio=0.75, completed_count=3, method=ProgressMethod.REPORTED)
    school.progress = {("u0", "c0"): told, ("u1", "c0"): told}

    data = await answer_of(
        world,
        """{ enrollments(filter: {}) { nodes { progress { ratio completedCount timeSpentSeconds
            score { raw } method } } } }""",
    )

    assert [row["progress"] for row in data["enrollments"]["nodes"]] == [
        {
            "ratio": 0.75,
            "completedCount": 3,
            "timeSpentSeconds": 60,
            "score": {"raw": 7},
            "method": "REPORTED",
        },
        {
            "ratio": 0.75,
            "completedCount": 3,
            "timeSpentSeconds": None,
            "score": None,
            "method": "REPORTED",
        },
        {
            "ratio": 0.1,
            "completedCount": None,
            "timeSpentSeconds": 60,
            "score": {"raw": 7},
            "method": "DERIVED",
        },
        None,
    ]
    assert school.call_names() == ["list_enrollments", "fetch_progress"]


async def test_progress_costs_no_call_where_the_enrollment_says_all_there_is() -> None:
    world = World()
    school = a_busy_school(world, "a")
    school.progress = {("u0", "c0"): Progress(ratio=1, method=ProgressMethod.REPORTED)}

    data = await answer_of(world, "{ enrollments(filter: {}) { nodes { progress { ratio } } } }")

    assert data["enrollments"]["nodes"] == [{"progress": {"ratio": 0.5}}] * 12
    assert school.call_names() == ["list_enrollments"]


# Scopes and limits


@pytest.mark.parametrize(
    ("query", "scopes", "missing"),
    [
        (
            "{ users { nodes { activity { at } } } }",
            {"read:users", "read:courses"},
            "read:enrollments",
        ),
        (
            "{ enrollments(filter: {}) { nodes { section { title } } } }",
            {"read:enrollments"},
            "read:courses",
        ),
    ],
)
async def test_what_hangs_on_a_row_needs_a_scope_of_its_own(
    query: str, scopes: set[str], missing: str
) -> None:
    world = World()
    school = a_busy_school(world, "a")

    answer = await ask(world, query, key=Key(frozenset(scopes)))

    assert {error["message"] for error in answer["errors"]} == {
        f"This needs a key with the scope {missing}"
    }
    assert len(school.calls) == 1


@pytest.mark.parametrize(
    "query",
    [
        "{ users { nodes { activity { at } } } }",
        "{ courses { nodes { sections { title } } } }",
        "{ enrollments(filter: {}) { nodes { milestones { title } } } }",
    ],
)
async def test_rows_inside_rows_are_counted(query: str) -> None:
    world = World()
    world.limits = ReadingLimits(cursor_key=Secret(b"key"), max_nested_rows=5)
    a_busy_school(world, "a")

    answer = await ask(world, query)

    assert codes(answer) == ["REQUEST_LIMIT_EXCEEDED"]


# Sessions of a provider


SESSIONS = """query ($states: [SessionState!], $subject: String, $first: Int) {
    providers { sessions(states: $states, subject: $subject, first: $first) { subject } } }"""


async def test_sessions_are_narrowed_and_bounded_where_they_are_kept() -> None:
    world = World()
    for provider_id in ("a", "b"):
        world.add(provider_id)
        world.statuses += [
            a_status(provider_id),
            *(a_status(provider_id, subject=f"user:{number:03}") for number in range(60)),
            a_status(provider_id, subject="user:x", state=SessionState.REAUTH_REQUIRED),
        ]

    async def subjects(**arguments: Any) -> list[str]:
        data = await answer_of(world, SESSIONS, arguments)
        of_first, of_second = (
            [row["subject"] for row in one["sessions"]] for one in data["providers"]
        )
        assert of_first == of_second
        return of_first

    assert len(await subjects()) == 50
    assert len(await subjects(first=1000)) == 62
    assert await subjects(first=2) == ["service", "user:000"]
    assert await subjects(subject="user:007") == ["user:007"]
    assert await subjects(states=["REAUTH_REQUIRED", "BACKOFF"]) == ["user:x"]
    assert await subjects(states=[]) == []
    assert world.status_questions == [
        (["a", "b"], None, None, 50),
        (["a", "b"], None, None, 1000),
        (["a", "b"], None, None, 2),
        (["a", "b"], None, "user:007", 50),
        (["a", "b"], (SessionState.REAUTH_REQUIRED, SessionState.BACKOFF), None, 50),
        (["a", "b"], (), None, 50),
    ]


async def test_more_sessions_than_a_list_may_hold_are_refused() -> None:
    world = World()
    world.add("a")

    answer = await ask(world, SESSIONS, {"first": 1001})

    assert answer["errors"][0]["message"] == "first: 1001 is not between 1 and 1000"
    assert world.status_questions == []


# Which way was taken


async def test_the_choices_made_for_a_request_are_told_to_it_alone() -> None:
    world = World()
    for provider_id, users in (("a", 4), ("b", 6)):
        a_busy_school(world, provider_id, users=users)
    body = {"query": "{ users { nodes { enrollments { nodes { id } } } } }"}

    (status, told), (_, other) = await asyncio.gather(
        execute(SCHEMA, body, a_context(world), shown=[Shown.STRATEGIES]),
        execute(SCHEMA, body, a_context(world)),
    )

    assert status == 200
    assert told["data"] == other["data"]
    assert told["extensions"] == {
        "strategies": [
            {
                "providerId": provider_id,
                "subject": "service",
                "wanted": "enrollments by user",
                "keys": users,
                "chosen": "all at once",
                "callsByStrategy": {"all at once": 1, "by user": users},
                "reason": None,
            }
            for provider_id, users in (("a", 4), ("b", 6))
        ]
    }
    assert "extensions" not in other


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[RunningGateway]:
    kolibri = Kolibri(build_population())
    async with running(kolibri) as url, running_gateway(tmp_path) as running_one:
        await running_one.add_kolibri(url)
        yield running_one


async def test_choices_are_shown_to_who_asks_for_them_with_an_admins_key(
    gateway: RunningGateway,
) -> None:
    body = {"query": "{ users(first: 1) { nodes { enrollments { totalCount } } } }"}
    reader = await gateway.key("read:users", "read:enrollments")
    cases = [
        ({}, 200, None),
        ({"Gateway-Debug": "strategies"}, 200, None),
        ({"Gateway-Debug": "everything"}, 400, "BAD_INPUT"),
        ({"Gateway-Debug": ""}, 400, "BAD_INPUT"),
        ({**reader, "Gateway-Debug": "strategies"}, 403, "FORBIDDEN"),
    ]

    answers = [
        await gateway.client.post("/graphql", json=body, headers=headers)
        for headers, _status, _code in cases
    ]

    assert [(answer.status_code, *codes(answer.json())) for answer in answers] == [
        (status, *filter(None, [code])) for _headers, status, code in cases
    ]
    plain, told = answers[0].json(), answers[1].json()
    assert "extensions" not in plain
    assert told == {"data": plain["data"], "extensions": {"strategies": []}}
    assert answers[2].json()["errors"][0]["message"] == (
        "Gateway-Debug: strategies, upstream, engine, cost are all it can be"
    )
