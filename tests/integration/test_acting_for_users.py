"""Requests for users: what each is shown, and what no longer exists for them."""

import asyncio
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from pretend_roster import (
    Key,
    Roster,
    World,
    a_context,
    a_course,
    a_section,
    a_user,
    an_enrollment,
    answer_of,
    ask,
)
from running_gateway import RunningGateway, logins, problem_of, running_gateway

from resolvers.errors import BadInput, Forbidden
from schema.global_ids import read_subjects
from sessions.base import Code
from sessions.errors import ProviderNotFound
from simulators.canvas.app import running as running_canvas
from simulators.canvas.state import ADMIN_TOKEN, CLIENT_ID, CLIENT_SECRET, Canvas
from simulators.canvas.state import Code as CanvasCode
from simulators.kolibri.app import running
from simulators.kolibri.population import build_population
from simulators.kolibri.state import Kolibri
from storage.credentials import Secret

EVERYTHING = """{ users { nodes { externalId displayName enrollments { nodes {
    progress { ratio } section { title } course { title } } } } } }"""

ACTING = Key(frozenset({"act:users", "read:users", "read:courses", "read:enrollments"}))


def a_school_seen_by(
    world: World, provider_id: str, *user_ids: str, act_as: str = "user"
) -> Roster:
    """Three users and three courses, of which each user is shown itself and one course."""
    school = world.add(provider_id, user_count=3, course_count=3)
    school.sections = []
    for number, user_id in enumerate(user_ids):
        shown = Roster(school.provider)
        shown.users = [a_user(provider_id, 0, external_id=user_id, display_name=f"Me, {user_id}")]
        shown.courses = [a_course(provider_id, number, title=f"Course of {user_id}")]
        shown.sections = [a_section(provider_id, f"c{number}", number)]
        shown.enrollments = [
            an_enrollment(provider_id, user_id, f"c{number}", section_id=f"c{number}-s{number}")
        ]
        school.seen_by[f"{act_as}:{user_id}"] = shown
    return school


def codes(answer: Mapping[str, Any]) -> list[str]:
    return [error["extensions"]["code"] for error in answer.get("errors", [])]


def gid(provider_id: str, user_id: str, kind: str = "User") -> str:
    return urlsafe_b64encode(f"{kind}:{provider_id}:{user_id}".encode()).rstrip(b"=").decode()


# Whose answer it is


async def test_users_asked_for_at_once_are_each_given_their_own_answer_and_not_the_services() -> (
    None
):
    world = World()
    school = a_school_seen_by(world, "a", "u1", "u2")
    school.delay_seconds = 0.01
    for shown in school.seen_by.values():
        shown.delay_seconds = 0.01

    first, second, service = await asyncio.gather(
        answer_of(world, EVERYTHING, key=ACTING, subjects={"a": "u1"}),
        answer_of(world, EVERYTHING, key=ACTING, subjects={"a": "u2"}),
        answer_of(world, "{ users { nodes { externalId } } }"),
    )

    for number, (user_id, answer) in enumerate([("u1", first), ("u2", second)]):
        assert answer["users"]["nodes"] == [
            {
                "externalId": user_id,
                "displayName": f"Me, {user_id}",
                "enrollments": {
                    "nodes": [
                        {
                            "progress": {"ratio": 0.5},
                            "section": {"title": f"Section {number}"},
                            "course": {"title": f"Course of {user_id}"},
                        }
                    ]
                },
            }
        ]
        assert sorted(school.seen_by[f"user:{user_id}"].call_names()) == [
            "fetch_courses",
            "fetch_enrollments_by_user",
            "fetch_sections_by_course",
            "list_users",
        ]
    assert [row["externalId"] for row in service["users"]["nodes"]] == ["u0", "u1", "u2"]
    assert school.call_names() == ["list_users"]


EVERY_FIELD = """query ($user: ID!, $course: ID!, $enrollment: ID!) {
    users { nodes { activity { externalId } enrollments { nodes {
        user { id } course { id } section { title } milestones { title } progress { ratio } } } } }
    byName: users(filter: { usernames: ["x"] }) { nodes { id } }
    byId: users(filter: { userIds: [$user] }) { nodes { id } }
    courses { totalCount nodes { sections { title } enrollments { nodes { user { id } } } } }
    byTitle: courses(orderBy: { field: TITLE }) { nodes { id } }
    enrollments(filter: {}) { nodes { id } }
    ofUser: enrollments(filter: { userIds: [$user] }) { nodes { id } }
    ofCourse: enrollments(filter: { courseIds: [$course] }) { nodes { id } }
    active: enrollments(filter: { states: [ACTIVE] }) { nodes { id } }
    user(id: $user) { id } course(id: $course) { id }
    nodes(ids: [$user, $course, $enrollment]) { id } }"""


@pytest.mark.parametrize(
    ("options", "subject"),
    [
        ({}, "user:u1"),
        ({"act_as": "oauth"}, "user:u1"),
        ({"act_as": "masquerade"}, "masquerade:u1"),
    ],
)
async def test_every_field_is_read_with_the_users_session(
    options: Mapping[str, str], subject: str
) -> None:
    world = World()
    world.platform = replace(world.platform, progress_by_call=True)
    school = a_school_seen_by(world, "a", "u1", act_as=subject.partition(":")[0])
    school.provider = replace(school.provider, options=options)
    (shown,) = school.seen_by.values()
    shown.milestones, shown.activities = [], []
    ids = {
        "user": gid("a", "u1"),
        "course": gid("a", "c0", "Course"),
        "enrollment": gid("a", "2:u1u1-c0", "Enrollment"),
    }

    data = await answer_of(world, EVERY_FIELD, ids, key=ACTING, subjects={"a": "u1"})

    assert [row["id"] for row in data["nodes"]] == list(ids.values())
    assert set(world.lent) == {("a", subject)}
    assert len(world.lent) == len(shown.calls)
    assert set(shown.call_names()) == {
        "list_users",
        "list_courses",
        "list_enrollments",
        "fetch_users",
        "fetch_courses",
        "fetch_enrollments_by_user",
        "fetch_enrollments_by_course",
        "fetch_sections_by_course",
        "fetch_milestones",
        "fetch_progress",
        "fetch_activity_by_user",
    }
    assert school.calls == []


async def test_a_user_who_has_not_agreed_gets_an_error_and_nothing_of_the_service() -> None:
    world = World()
    school = a_school_seen_by(world, "a", "u1")

    answer = await ask(world, EVERYTHING, key=ACTING, subjects={"a": "u2"})

    assert answer["data"] == {"users": {"nodes": []}}
    assert codes(answer) == ["REAUTH_REQUIRED"]
    assert school.calls == []


# What exists


async def test_providers_that_are_not_named_do_not_exist() -> None:
    world = World()
    a_school_seen_by(world, "a", "u1")
    others = [world.add(name, user_count=2, course_count=2) for name in ("b", "c")]
    world.registrable["d"] = replace(others[0].provider, id="d")

    answer = await ask(
        world,
        """query ($user: ID!, $b: ID!) {
            providers { providerId } b: provider(providerId: "b") { name }
            d: provider(providerId: "d") { name }
            users { nodes { externalId } sources { providerId } }
            named: users(filter: { providerIds: ["b"] }) { nodes { id } }
            user(id: $user) { id } nodes(ids: [$user, $b]) { id } }""",
        {"user": gid("b", "u0"), "b": gid("b", "", "Provider")},
        key=ACTING,
        subjects={"a": "u1"},
    )

    assert answer["data"] == {
        "providers": [{"providerId": "a"}],
        "b": None,
        "d": None,
        "users": {"nodes": [{"externalId": "u1"}], "sources": [{"providerId": "a"}]},
        "named": {"nodes": []},
        "user": None,
        "nodes": [None, None],
    }
    assert codes(answer) == ["PROVIDER_NOT_FOUND"]
    assert [school.calls for school in others] == [[], []]
    assert world.asked_for == []
    assert set(world.lent) == {("a", "user:u1")}


async def test_one_request_acts_for_a_user_at_each_of_several_providers() -> None:
    world = World()
    a_school_seen_by(world, "a", "u1")
    a_school_seen_by(world, "b", "u7")
    world.add("c", user_count=2)

    data = await answer_of(world, EVERYTHING, key=ACTING, subjects={"a": "u1", "b": "u7"})

    assert [row["externalId"] for row in data["users"]["nodes"]] == ["u1", "u7"]
    assert set(world.lent) == {("a", "user:u1"), ("b", "user:u7")}


async def test_a_provider_the_key_may_not_see_is_not_reached_by_naming_its_user() -> None:
    world = World()
    a_school_seen_by(world, "a", "u1")
    key = Key(hidden=frozenset({"a"}))

    data = await answer_of(
        world, "{ providers { name } users { nodes { id } } }", key=key, subjects={"a": "u1"}
    )

    assert data == {"providers": [], "users": {"nodes": []}}
    assert (world.lent, world.asked_for) == ([], [])


async def test_no_session_is_lent_of_a_provider_that_was_not_read_for_the_request() -> None:
    world = World()
    a_school_seen_by(world, "a", "u1")
    context = a_context(world, subjects={"a": "u1"})

    with pytest.raises(ProviderNotFound):
        context.session("a")
    await context.visible_providers()
    with pytest.raises(ProviderNotFound):
        context.session("b")

    assert context.subject_of("a") == "user:u1"
    assert world.lent == []


# Pages


NATIVE = "query ($after: String) { users(first: 1, after: $after) { pageInfo { endCursor } } }"
SORTED = """query ($after: String) { users(first: 1, after: $after,
    orderBy: { field: USERNAME }) { pageInfo { endCursor } } }"""


@pytest.mark.parametrize("query", [NATIVE, SORTED])
async def test_a_cursor_serves_the_subject_it_was_given_to_and_no_other(query: str) -> None:
    world = World()
    a_school_seen_by(world, "a", "u1", "u2")
    whose: list[dict[str, str]] = [{}, {"a": "u1"}, {"a": "u2"}]
    cursors = [
        (await answer_of(world, query, subjects=subjects))["users"]["pageInfo"]["endCursor"]
        for subjects in whose
    ]

    answers = [
        [codes(await ask(world, query, {"after": cursor}, subjects=subjects)) for cursor in cursors]
        for subjects in whose
    ]

    assert answers == [
        [[], ["BAD_INPUT"], ["BAD_INPUT"]],
        [["BAD_INPUT"], [], ["BAD_INPUT"]],
        [["BAD_INPUT"], ["BAD_INPUT"], []],
    ]


async def test_a_cursor_of_a_nested_list_is_the_subjects_own_too() -> None:
    world = World()
    school = a_school_seen_by(world, "a", "u1")
    (shown,) = school.seen_by.values()
    school.users, school.courses = shown.users, shown.courses
    school.enrollments = shown.enrollments = [
        an_enrollment("a", "u1", course) for course in ("c0", "c1")
    ]
    query = """query ($after: String) { users { nodes {
        enrollments(first: 1, after: $after) { nodes { courseId } pageInfo { endCursor } } } } }"""

    async def page(after: str | None, subjects: Mapping[str, str]) -> dict[str, Any]:
        return await ask(world, query, {"after": after}, key=ACTING, subjects=subjects)

    begun = await page(None, {"a": "u1"})
    cursor = begun["data"]["users"]["nodes"][0]["enrollments"]["pageInfo"]["endCursor"]
    own = await page(cursor, {"a": "u1"})
    services = await page(cursor, {})

    assert own["data"]["users"]["nodes"][0]["enrollments"]["nodes"] == [
        {"courseId": gid("a", "c1", "Course")}
    ]
    assert services["data"]["users"]["nodes"] == [{"enrollments": None}]
    assert codes(services) == ["BAD_INPUT"]


# What is refused


async def test_a_key_without_the_scope_acts_for_nobody() -> None:
    world = World()
    a_school_seen_by(world, "a", "u1")

    with pytest.raises(Forbidden, match="This needs a key with the scope act:users"):
        a_context(world, Key(frozenset({"read:users"})), subjects={"a": "u1"})

    assert world.lent == []


@pytest.mark.parametrize(
    "mutation",
    [
        """registerProvider(input: { providerId: "a", platform: "pretend",
            baseUrl: "https://a.example", credentials: { username: "x", password: "y" } })""",
        'updateProvider(input: { providerId: "a", name: "Mine" })',
        'removeProvider(providerId: "a")',
        'checkProvider(providerId: "a")',
        'revokeSession(providerId: "a", subject: "user:u1")',
    ],
)
async def test_providers_are_not_changed_on_behalf_of_users(mutation: str) -> None:
    world = World()
    a_school_seen_by(world, "a", "u1")

    answer = await ask(world, f"mutation {{ {mutation} {{ __typename }} }}", subjects={"a": "u1"})

    assert answer["errors"][0]["message"] == (
        "Providers are registered and changed for the organisation, not on behalf of users: send"
        " this without the header On-Behalf-Of"
    )
    assert codes(answer) == ["FORBIDDEN"]
    assert (world.registered, world.updated, list(world.rosters)) == ([], [], ["a"])


# The header


def test_the_header_names_one_user_of_each_provider() -> None:
    given = [f"{gid('a', 'u1')},{gid('b', '10000000000042')}", f" {gid('c', 'ü:1')} ,"]

    assert read_subjects(given) == {"a": "u1", "b": "10000000000042", "c": "ü:1"}
    assert read_subjects([]) == {}


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ([""], "The global id of a user is needed here; or leave it out"),
        ([" , "], "The global id of a user is needed here; or leave it out"),
        (["u1"], "This is not an id the gateway gave"),
        ([gid("a", "")], "This is not an id the gateway gave"),
        ([gid("a", "u\n1")], "This is not an id the gateway gave"),
        ([gid("a", "u" * 256)], "This is not an id the gateway gave"),
        ([gid("a", "c1", "Course")], "This is the id of a Course, not of a User"),
        (
            [gid("a", "u1"), gid("a", "u2")],
            "Two of the users are of one provider; name one of each",
        ),
        (
            [",".join(gid(str(number), "u1") for number in range(21))],
            "21 users are too many, at most 20",
        ),
    ],
)
def test_a_wrong_header_is_named_with_what_would_be_right(given: list[str], problem: str) -> None:
    with pytest.raises(BadInput) as caught:
        read_subjects(given)

    assert caught.value.message == f"On-Behalf-Of: {problem}"


def test_twenty_users_are_not_too_many() -> None:
    assert len(read_subjects([gid(str(number), "u1") for number in range(20)])) == 20


# Over HTTP


@pytest.fixture
def kolibri() -> Kolibri:
    return Kolibri(build_population())


@pytest.fixture
async def gateway(tmp_path: Path, kolibri: Kolibri) -> AsyncIterator[RunningGateway]:
    async with running(kolibri) as url, running_gateway(tmp_path) as running_one:
        await running_one.add_kolibri(url)
        yield running_one


async def posted(
    gateway: RunningGateway, headers: Mapping[str, str], query: str = "{ providers { name } }"
) -> httpx.Response:
    return await gateway.client.post("/graphql", json={"query": query}, headers=headers)


ROSTER = [("GET", "/api/content/channel/"), ("GET", "/api/auth/membership/")]
"""What is read for callers only, and not for the timed export that a registration starts."""

READS = ["/api/users", "/api/courses", "/api/content", "/api/enrollments"]


async def test_a_header_that_is_wrong_or_not_allowed_is_refused_on_every_route(
    gateway: RunningGateway, kolibri: Kolibri
) -> None:
    reader = await gateway.key("read:users", "read:courses", "read:enrollments")
    cases = [
        ({"On-Behalf-Of": "nobody"}, 400, "BAD_INPUT", "On-Behalf-Of: "),
        ({"On-Behalf-Of": ""}, 400, "BAD_INPUT", "On-Behalf-Of: "),
        (
            {**reader, "On-Behalf-Of": gid("1", "u1")},
            403,
            "FORBIDDEN",
            "This needs a key with the scope act:users",
        ),
    ]

    for headers, status, code, start in cases:
        answer = await posted(gateway, headers)
        assert (answer.status_code, codes(answer.json())) == (status, [code])
        assert answer.json()["errors"][0]["message"].startswith(start)
        for path in READS:
            answer = await gateway.get(path, params={"id": "1"}, headers=headers)
            assert problem_of(answer) == (status, code)
            assert answer.json()["detail"].startswith(start)

    assert [kolibri.counts.calls[call] for call in ROSTER] == [0, 0]


async def test_a_platform_that_cannot_act_for_users_says_so_and_is_not_read_as_the_service(
    gateway: RunningGateway, kolibri: Kolibri
) -> None:
    headers = {
        **await gateway.key("act:users", "read:users", "read:courses", "read:enrollments"),
        "On-Behalf-Of": gid("1", "0123456789abcdef0123456789abcdef"),
    }

    answer = await posted(gateway, headers, "{ users { nodes { id } sources { code } } }")
    problems = [
        problem_of(await gateway.get(path, params={"id": "1"}, headers=headers)) for path in READS
    ]

    assert answer.json()["data"] == {"users": {"nodes": [], "sources": [{"code": "NOT_SUPPORTED"}]}}
    assert codes(answer.json()) == ["NOT_SUPPORTED"]
    assert problems == [(501, "NOT_SUPPORTED")] * 4
    assert [kolibri.counts.calls[call] for call in ROSTER] == [0, 0]


async def test_over_rest_too_other_providers_do_not_exist(gateway: RunningGateway) -> None:
    headers = {"On-Behalf-Of": gid("2", "u1")}

    problems = [
        problem_of(await gateway.get(path, params={"id": "1"}, headers=headers)) for path in READS
    ]

    assert problems == [(404, "PROVIDER_NOT_FOUND")] * 4


async def test_a_provider_is_not_registered_on_behalf_of_a_user(
    gateway: RunningGateway, kolibri: Kolibri
) -> None:
    logins_before = logins(kolibri)

    answer = await gateway.add_provider(
        id="2", type="kolibri", url="http://127.0.0.1:1", headers={"On-Behalf-Of": gid("1", "u1")}
    )

    assert problem_of(answer) == (403, "FORBIDDEN")
    assert [row.id for row in await gateway.parts.providers.list_all()] == ["1"]
    assert logins(kolibri) == logins_before


async def registered(gateway: RunningGateway, url: str, act_as: str) -> None:
    client = {"client_id": CLIENT_ID, "client_secret": CLIENT_SECRET}
    credentials = {
        "apiKey": ADMIN_TOKEN,
        "values": [{"name": name, "value": value} for name, value in client.items()],
    }
    answer = await gateway.graphql(
        """mutation ($input: RegisterProviderInput!) { registerProvider(input: $input) {
            ... on ProviderRefused { message } } }""",
        input={
            "providerId": "1",
            "platform": "canvas",
            "baseUrl": url,
            "credentials": credentials,
            "options": [{"name": "act_as", "value": act_as}],
        },
    )
    assert answer == {"data": {"registerProvider": {}}}


async def consented(gateway: RunningGateway, canvas: Canvas, user_id: int) -> None:
    """Let the gateway have a user's grant, by the code of a consent given a moment ago."""
    canvas.codes[f"c0de-{user_id}"] = CanvasCode(
        user_id=user_id,
        key_id=CLIENT_ID,
        scopes=None,
        userinfo_only=False,
        challenge=None,
        expires_at=canvas.clock() + 600,
    )
    code = Code(
        code=Secret(f"c0de-{user_id}"),
        redirect_uri=canvas.keys[CLIENT_ID].redirect_uri,
        verifier=Secret("v" * 43),
    )
    await gateway.parts.sessions.authorize("1", code, expected_user_id=str(user_id))


SEEN = "{ users { nodes { displayName } } courses { nodes { title } } }"
COURSES_OF_CODY = ["Algebra", "Biology", "Concluded civics"]
COURSES_OF_JOHN = ["Algebra", "Course 3, closed at present", "Course 4, closed at present"]


@pytest.mark.parametrize(
    ("act_as", "refused", "held"),
    [
        ("oauth", "REAUTH_REQUIRED", ["service", "user:3", "user:4"]),
        ("masquerade", "PROVIDER_FORBIDDEN", ["service"]),
    ],
)
async def test_two_users_of_a_canvas_at_once_each_see_what_is_theirs(
    act_as: str, refused: str, held: list[str], tmp_path: Path
) -> None:
    canvas = Canvas()
    async with running_canvas(canvas) as url, running_gateway(tmp_path) as gateway:
        await registered(gateway, url, act_as)
        if act_as == "oauth":
            for user_id in (3, 4):
                await consented(gateway, canvas, user_id)
        cody, john, service, stranger = await asyncio.gather(
            posted(gateway, {"On-Behalf-Of": gid("1", "3")}, SEEN),
            posted(gateway, {"On-Behalf-Of": gid("1", "4")}, SEEN),
            posted(gateway, {}, SEEN),
            posted(gateway, {"On-Behalf-Of": gid("1", "404")}, SEEN),
        )
        users = await gateway.get(
            "/api/users", params={"id": "1"}, headers={"On-Behalf-Of": gid("1", "3")}
        )
        statuses = await gateway.parts.sessions.list_statuses()

    for answer, name, titles in [
        (cody, "Cody Houston Cutrer", COURSES_OF_CODY),
        (john, "John St. Clair", COURSES_OF_JOHN),
    ]:
        assert answer.json() == {
            "data": {
                "users": {"nodes": [{"displayName": name}]},
                "courses": {"nodes": [{"title": title} for title in titles]},
            }
        }
    assert len(service.json()["data"]["users"]["nodes"]) == 13
    assert stranger.json()["data"] == {"users": {"nodes": []}, "courses": {"nodes": []}}
    assert codes(stranger.json()) == [refused, refused]
    assert [row["external_user_id"] for row in users.json()] == ["3"]
    assert [status.subject for status in statuses] == held
