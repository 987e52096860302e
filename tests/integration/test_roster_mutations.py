"""Writes through the whole gateway: who may ask, what is sent, and what is answered."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pretend_roster import SCHEMA, Key, World, a_context
from running_gateway import RunningGateway, running_gateway

from schema.execution import execute
from schema.global_ids import COURSE, PROVIDER, USER, GlobalId, enrollment_id
from simulators.canvas.app import running
from simulators.canvas.population import build_population
from simulators.canvas.state import ADMIN_TOKEN, Canvas
from simulators.kolibri.app import running as running_kolibri
from simulators.kolibri.population import build_population as build_kolibri
from simulators.kolibri.state import Kolibri
from storage.credentials import Secret
from storage.records import ProviderState

REFUSED = "... on WriteRefused { code message field retryable retryAfterSeconds providerId }"
CREATE_USER = f"""mutation ($input: CreateUserInput!) {{ done: createUser(input: $input) {{
  ... on CreateUserPayload {{ created
    user {{ id username displayName email provenance {{ fetchedAt }} }} }}
  {REFUSED} }} }}"""
CREATE_LOGIN = f"""mutation ($input: CreateLoginInput!) {{ done: createLogin(input: $input) {{
  ... on CreateLoginPayload {{ created login {{ externalId username }} }} {REFUSED} }} }}"""
ENROLL = f"""mutation ($input: EnrollUserInput!) {{ done: enrollUser(input: $input) {{
  ... on EnrollUserPayload {{ created
    enrollment {{ id state userId courseId role {{ value sourceValue }} }} }}
  {REFUSED} }} }}"""
END = f"""mutation ($input: EndEnrollmentInput!) {{ done: endEnrollment(input: $input) {{
  ... on EndEnrollmentPayload {{ changed enrollment {{ id state }} }} {REFUSED} }} }}"""

ANN = {"providerId": "2", "username": "ann", "displayName": "Ann Lee", "email": "ann@school.test"}
PLACES = ("GET", "/api/v1/courses/:course_id/enrollments")
POSTED = ("POST", "/api/v1/courses/:course_id/enrollments")
ENDED = ("DELETE", "/api/v1/courses/:course_id/enrollments/:enrollment_id")


def user(number: int | str, provider_id: str = "2") -> str:
    return GlobalId(USER, provider_id, str(number)).encode()


def course(number: int | str, provider_id: str = "2") -> str:
    return GlobalId(COURSE, provider_id, str(number)).encode()


def enrollment(number: int | str, user_id: int, provider_id: str = "2") -> str:
    return enrollment_id(provider_id, str(user_id), str(number)).encode()


PRINCE_IN_ETHICS = {"userId": user(7), "courseId": course(8)}
MARIA_LOGIN = {"userId": user(5), "username": "maria"}
JOHN_OUT = {"enrollmentId": enrollment(7, 4), "courseId": course(1), "ending": "CONCLUDE"}
INPUTS = [(CREATE_USER, ANN), (CREATE_LOGIN, MARIA_LOGIN), (ENROLL, PRINCE_IN_ETHICS),
          (END, JOHN_OUT)]  # fmt: skip


@pytest.fixture
def canvas() -> Canvas:
    return Canvas(build_population())


@pytest.fixture
async def canvas_url(canvas: Canvas) -> AsyncIterator[str]:
    async with running(canvas) as url:
        yield url


@pytest.fixture
async def gateway(tmp_path: Path, canvas: Canvas, canvas_url: str) -> AsyncIterator[RunningGateway]:
    async with running_gateway(tmp_path) as opened:
        await add_canvas(opened, canvas_url)
        await opened.graphql('{ users(filter: {providerIds: ["2"]}, first: 1) { totalCount } }')
        canvas.reset()  # logged in
        yield opened


async def add_canvas(gateway: RunningGateway, url: str, provider_id: str = "2") -> None:
    credentials: Secret[Mapping[str, str]] = Secret({"api_key": ADMIN_TOKEN})
    await gateway.parts.providers.add(
        id=provider_id,
        platform="canvas",
        name="Canvas",
        base_url=url,
        options={"act_as": "masquerade"},
        credentials=credentials,
        state=ProviderState.ACTIVE,
    )


def calls(canvas: Canvas) -> list[tuple[str, str]]:
    return [(entry.method, entry.route) for entry in canvas.counts.log]


async def ask(
    gateway: RunningGateway, mutation: str, given: Mapping[str, Any], **headers: str
) -> Any:
    """Return the mutation's result, or the codes of the errors."""
    answer = await gateway.client.post(
        "/graphql",
        content=json.dumps({"query": mutation, "variables": {"input": given}}),
        headers={"Content-Type": "application/json", **headers},
    )
    body = answer.json()
    if "errors" in body:
        return [error["extensions"]["code"] for error in body["errors"]]
    return body["data"]["done"]


# What is answered


async def test_a_user_is_created_given_a_login_enrolled_and_taken_out_again(
    gateway: RunningGateway, canvas: Canvas
) -> None:
    made = await ask(gateway, CREATE_USER, ANN)
    again = await ask(gateway, CREATE_USER, ANN)
    login = await ask(gateway, CREATE_LOGIN, MARIA_LOGIN)
    place = {"userId": made["user"]["id"], "courseId": course(8), "role": "TEACHING_ASSISTANT"}
    enrolled = await ask(gateway, ENROLL, place)
    out = {"enrollmentId": enrolled["enrollment"]["id"], "ending": "REMOVE"}
    ended = await ask(gateway, END, out | {"courseId": course(8)})
    ended_again = await ask(gateway, END, out | {"courseId": course(8)})

    assert made["created"]
    assert (made["user"]["username"], made["user"]["displayName"]) == ("ann", "Ann Lee")
    assert (again["created"], again["user"]["id"]) == (False, made["user"]["id"])
    assert login == {"created": True, "login": {"externalId": "5", "username": "maria"}}
    assert enrolled["created"]
    assert enrolled["enrollment"] == {
        "id": enrolled["enrollment"]["id"],
        "state": "ACTIVE",
        "userId": made["user"]["id"],
        "courseId": course(8),
        "role": {"value": "TEACHING_ASSISTANT", "sourceValue": "TaEnrollment"},
    }
    assert (ended["changed"], ended["enrollment"]["state"]) == (True, "DROPPED")
    assert (ended_again["changed"], ended_again["enrollment"]["state"]) == (False, "DROPPED")
    assert [method for method, _ in calls(canvas) if method != "GET"] == [
        "POST", "POST", "POST", "DELETE",
    ]  # fmt: skip


async def test_what_an_enrollment_is_in_is_looked_up_where_it_is_not_named(
    gateway: RunningGateway, canvas: Canvas
) -> None:
    ended = await ask(gateway, END, {"enrollmentId": enrollment(7, 4)})
    unknown = await ask(gateway, END, {"enrollmentId": enrollment(5, 4)})

    assert (ended["changed"], ended["enrollment"]["state"]) == (True, "COMPLETED")
    assert canvas.population.enrollments[7].state == "completed"
    assert (unknown["code"], unknown["field"]) == ("BAD_INPUT", "enrollmentId")
    assert [method for method, _ in calls(canvas)].count("DELETE") == 1


async def test_a_write_is_seen_by_what_is_read_after_it_in_the_same_request(
    gateway: RunningGateway,
) -> None:
    step = """{ ... on EnrollUserPayload { enrollment {
        course { enrollments { nodes { user { displayName } } } } } } }"""
    places = [f'{{userId: "{user(number)}", courseId: "{course(8)}"}}' for number in (3, 4)]
    mutations = [
        f"m{index}: enrollUser(input: {given}) {step}" for index, given in enumerate(places)
    ]

    answer = await gateway.graphql(f"mutation {{ {' '.join(mutations)} }}")

    assert "errors" not in answer
    seen = [
        sorted(
            row["user"]["displayName"]
            for row in answer["data"][name]["enrollment"]["course"]["enrollments"]["nodes"]
        )
        for name in ("m0", "m1")
    ]
    assert seen == [["Cody Houston Cutrer"], ["Cody Houston Cutrer", "John St. Clair"]]


# Keys


@pytest.mark.parametrize(("mutation", "given"), INPUTS)
async def test_the_same_key_gives_the_first_answer_without_any_call(
    gateway: RunningGateway, canvas: Canvas, tmp_path: Path, mutation: str, given: dict[str, Any]
) -> None:
    keyed = given | {"idempotencyKey": "order-4711"}
    first = await ask(gateway, mutation, keyed)
    canvas.reset()

    second = await ask(gateway, mutation, keyed)
    async with running_gateway(tmp_path) as other:
        third = await ask(other, mutation, keyed)

    assert "code" not in first
    assert first == second == third
    assert calls(canvas) == []


async def test_the_same_key_with_another_input_is_refused_without_any_call(
    gateway: RunningGateway, canvas: Canvas
) -> None:
    await ask(gateway, CREATE_USER, ANN | {"idempotencyKey": "k"})
    canvas.reset()

    refused = await ask(gateway, CREATE_USER, ANN | {"idempotencyKey": "k", "sisId": "9"})
    spaces = await ask(gateway, CREATE_USER, ANN | {"idempotencyKey": "k", "username": " ann "})

    assert refused == {
        "code": "BAD_INPUT",
        "message": "This key was used for another input; a key serves one write for a day",
        "field": "idempotencyKey",
        "retryable": False,
        "retryAfterSeconds": None,
        "providerId": "2",
    }
    assert spaces["created"]  # the same input, and so the first answer
    assert calls(canvas) == []


async def test_keys_of_different_callers_have_nothing_to_do_with_each_other(
    gateway: RunningGateway, canvas: Canvas
) -> None:
    keyed = PRINCE_IN_ETHICS | {"idempotencyKey": "k"}
    callers = [await gateway.key("write:enrollments") for _ in range(2)]

    answers = [await ask(gateway, ENROLL, keyed, **caller) for caller in callers]

    assert [answer["created"] for answer in answers] == [True, False]
    assert calls(canvas) == [PLACES, POSTED, PLACES]


@pytest.mark.parametrize("gateways", [1, 2])
async def test_a_hundred_repeats_at_once_are_one_write_upstream(
    gateway: RunningGateway, canvas: Canvas, tmp_path: Path, gateways: int
) -> None:
    keyed = PRINCE_IN_ETHICS | {"idempotencyKey": "k"}
    canvas.latency_seconds = 0.05
    async with running_gateway(tmp_path) as other:
        asked = [gateway, other][:gateways]

        answers = await asyncio.gather(
            *(ask(asked[number % gateways], ENROLL, keyed) for number in range(100))
        )

    assert all(answer == answers[0] for answer in answers)
    assert answers[0]["created"]
    assert calls(canvas) == [PLACES, POSTED]
    assert len(canvas.population.enrollments_by_course[8]) == 1


async def test_a_failure_that_may_pass_frees_the_key_and_the_next_try_looks_first(
    gateway: RunningGateway, canvas: Canvas
) -> None:
    keyed = PRINCE_IN_ETHICS | {"idempotencyKey": "k"}
    canvas.fail("status", path="/api/v1/courses/8/enrollments", after=1, status=503)

    failed = await ask(gateway, ENROLL, keyed)
    done = await ask(gateway, ENROLL, keyed)

    assert (failed["code"], failed["retryable"]) == ("PROVIDER_UNAVAILABLE", True)
    assert failed["providerId"] == "2"
    assert done["created"]
    assert [method for method, _ in calls(canvas)] == ["GET", "POST", "GET", "GET", "POST"]
    assert len(canvas.population.enrollments_by_course[8]) == 1


async def test_a_caller_who_hangs_up_finds_the_answer_when_coming_back(
    gateway: RunningGateway, canvas: Canvas
) -> None:
    keyed = PRINCE_IN_ETHICS | {"idempotencyKey": "k"}
    canvas.latency_seconds = 0.2

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await ask(gateway, ENROLL, keyed)
    back = await ask(gateway, ENROLL, keyed)

    assert back["created"]
    assert calls(canvas) == [PLACES, POSTED]


# Who may


SCOPES = ["read:users", "read:enrollments", "write:providers", "write:users", "write:enrollments",
          "admin"]  # fmt: skip
ALLOWED = {
    CREATE_USER: {"write:users", "admin"},
    CREATE_LOGIN: {"write:users", "admin"},
    ENROLL: {"write:enrollments", "admin"},
    END: {"write:enrollments", "admin"},
}


@pytest.mark.parametrize("scope", SCOPES)
async def test_each_write_needs_its_own_scope(
    gateway: RunningGateway, canvas: Canvas, scope: str
) -> None:
    key = await gateway.key(scope)

    answers = [await ask(gateway, mutation, given, **key) for mutation, given in INPUTS]

    for (mutation, _), answer in zip(INPUTS, answers, strict=True):
        if scope in ALLOWED[mutation]:
            assert "code" not in answer
        else:
            assert answer == ["FORBIDDEN"]
    written = sum(method != "GET" for method, _ in calls(canvas))
    assert written == sum(scope in allowed for allowed in ALLOWED.values())


async def test_a_wrong_id_does_not_hide_that_a_scope_is_missing(gateway: RunningGateway) -> None:
    key = await gateway.key("read:users")

    answers = [
        await ask(gateway, mutation, {**given, name: "nonsense"}, **key)
        for (mutation, given), name in zip(
            INPUTS[1:], ["userId", "userId", "enrollmentId"], strict=True
        )
    ]

    assert answers == [["FORBIDDEN"]] * 3


async def test_providers_a_key_does_not_see_do_not_exist_for_it(
    gateway: RunningGateway, canvas: Canvas
) -> None:
    key = await gateway.key("write:users", "write:enrollments", "provider:3")

    answers = [await ask(gateway, mutation, given, **key) for mutation, given in INPUTS]

    assert [(answer["code"], answer["field"]) for answer in answers] == [
        ("PROVIDER_NOT_FOUND", "providerId"),
        ("PROVIDER_NOT_FOUND", "userId"),
        ("PROVIDER_NOT_FOUND", "courseId"),
        ("PROVIDER_NOT_FOUND", "enrollmentId"),
    ]
    assert calls(canvas) == []


async def test_a_write_on_behalf_of_a_user_is_sent_as_that_user_and_judged_by_canvas(
    gateway: RunningGateway, canvas: Canvas
) -> None:
    teacher, student = ({"On-Behalf-Of": user(number)} for number in (2, 3))
    place = {"userId": user(13), "courseId": course(2)}

    allowed = await ask(gateway, ENROLL, place | {"idempotencyKey": "k"}, **teacher)
    refused = await ask(gateway, ENROLL, {"userId": user(4), "courseId": course(2)}, **student)
    others = await ask(gateway, ENROLL, place | {"idempotencyKey": "k"}, **student)

    assert allowed["created"]
    assert (refused["code"], refused["retryable"]) == ("PROVIDER_FORBIDDEN", False)
    assert refused["message"] == (
        "Canvas does not permit this: user not authorized to perform that action"
    )
    assert others["field"] == "idempotencyKey"  # another user asks: another input
    sent = [entry for entry in canvas.counts.log if entry.method == "POST"]
    assert [entry.query for entry in sent if "enrollments" in entry.path] == [
        "as_user_id=2",
        "as_user_id=3",
    ]
    assert len([row for row in canvas.population.enrollments.values() if row.user_id == 13]) == 1


# What cannot be


@pytest.mark.parametrize(
    ("mutation", "change", "field"),
    [
        (CREATE_USER, {"username": "  "}, "username"),
        (CREATE_USER, {"displayName": ""}, "displayName"),
        (CREATE_USER, {"displayName": "x" * 256}, "displayName"),
        (CREATE_USER, {"displayName": "Ann\nLee"}, "displayName"),
        (CREATE_USER, {"displayName": "Ann\u2028Lee"}, "displayName"),
        (CREATE_USER, {"email": "nobody"}, "email"),
        (CREATE_USER, {"locale": "english, please"}, "locale"),
        (CREATE_USER, {"timeZone": "Europe/"}, "timeZone"),
        (CREATE_USER, {"sisId": "x" * 256}, "sisId"),
        (CREATE_USER, {"providerId": "99"}, "providerId"),
        (CREATE_USER, {"idempotencyKey": ""}, "idempotencyKey"),
        (CREATE_USER, {"idempotencyKey": "two words"}, "idempotencyKey"),
        (CREATE_USER, {"idempotencyKey": "k" * 129}, "idempotencyKey"),
        (CREATE_USER, {"idempotencyKey": "schlüssel"}, "idempotencyKey"),
        (CREATE_LOGIN, {"userId": "nonsense"}, "userId"),
        (CREATE_LOGIN, {"userId": course(1)}, "userId"),
        (CREATE_LOGIN, {"userId": GlobalId(USER, "2", "").encode()}, "userId"),
        (CREATE_LOGIN, {"username": "\t"}, "username"),
        (ENROLL, {"userId": course(8)}, "userId"),
        (ENROLL, {"courseId": user(7)}, "courseId"),
        (ENROLL, {"courseId": GlobalId(PROVIDER, "2").encode()}, "courseId"),
        (ENROLL, {"userId": user(7, "3")}, "userId"),
        (ENROLL, {"startsAt": "2025-05-01T00:00:00Z", "endsAt": "2025-05-01T00:00:00Z"}, "endsAt"),
        (ENROLL, {"startsAt": "2025-05-02T00:00:00Z", "endsAt": "2025-05-01T00:00:00Z"}, "endsAt"),
        (ENROLL, {"startsAt": "2025-05-02T00:00:00"}, "startsAt"),
        (ENROLL, {"startsAt": "tomorrow"}, "startsAt"),
        (ENROLL, {"endsAt": "9999-12-31T23:59:59-01:00"}, "endsAt"),
        (ENROLL, {"endsAt": 1746057600}, "endsAt"),
        (ENROLL, {"sectionId": "x" * 256}, "sectionId"),
        (END, {"enrollmentId": user(4)}, "enrollmentId"),
        (END, {"enrollmentId": enrollment("", 4)}, "enrollmentId"),
        (END, {"courseId": course(1, "3")}, "courseId"),
        (END, {"courseId": enrollment(7, 4)}, "courseId"),
    ],
)  # fmt: skip
async def test_wrong_input_is_refused_by_name_and_nothing_is_sent(
    gateway: RunningGateway,
    canvas: Canvas,
    mutation: str,
    change: dict[str, Any],
    field: str,
) -> None:
    given = dict(INPUTS)[mutation]

    refused = await ask(gateway, mutation, {**given, **change})

    code = "PROVIDER_NOT_FOUND" if change.get("providerId") == "99" else "BAD_INPUT"
    assert (refused["code"], refused["field"], refused["retryable"]) == (code, field, False)
    assert refused["message"][0].isupper()
    assert calls(canvas) == []


@pytest.mark.parametrize(
    "name", ["Ziya\u200cPour", "Nguyễn Văn A", "O'Brien-Łukasz, Jr.", "李小龍", "𠮷野家"]
)
async def test_names_of_all_kinds_arrive_untouched(
    gateway: RunningGateway, canvas: Canvas, name: str
) -> None:
    made = await ask(gateway, CREATE_USER, ANN | {"displayName": name})

    assert made["user"]["displayName"] == name
    assert canvas.population.user_by_login("ann").name == name  # type: ignore[union-attr]  # it is there


async def test_what_canvas_rejects_is_told_with_its_field_and_kept_for_the_key(
    gateway: RunningGateway, canvas: Canvas
) -> None:
    taken = ANN | {"username": "cody", "idempotencyKey": "k"}

    first = await ask(gateway, CREATE_USER, taken)
    canvas.reset()
    second = await ask(gateway, CREATE_USER, taken)

    assert first == second
    assert (first["code"], first["field"]) == ("BAD_INPUT", "username")
    assert first["message"] == "This username belongs to somebody else"
    assert calls(canvas) == []


async def test_kolibri_does_not_support_writes(tmp_path: Path) -> None:
    kolibri = Kolibri(build_kolibri())
    async with running_kolibri(kolibri) as url, running_gateway(tmp_path) as gateway:
        await gateway.add_kolibri(url)
        inputs: list[tuple[str, dict[str, Any]]] = [
            (CREATE_USER, ANN | {"providerId": "1"}),
            (CREATE_LOGIN, {"userId": user("a", "1"), "username": "b"}),
            (ENROLL, {"userId": user("a", "1"), "courseId": course("c", "1")}),
            (END, {"enrollmentId": enrollment("e", 4, "1"), "courseId": course("c", "1")}),
        ]

        answers = [
            await ask(gateway, mutation, given | {"idempotencyKey": "k"})
            for mutation, given in inputs
        ]

        assert [answer["code"] for answer in answers] == ["NOT_SUPPORTED"] * 4
        assert {answer["providerId"] for answer in answers} == {"1"}
        sent = {path for method, path in kolibri.counts.calls if method != "GET"}
        assert [path for path in sent if "session" not in path and "tasks" not in path] == []


async def test_a_disabled_provider_is_not_written_to(
    gateway: RunningGateway, canvas: Canvas
) -> None:
    disable = """mutation { updateProvider(input: {providerId: "2", disabled: true}) {
        ... on ProviderPayload { provider { state } } } }"""
    await gateway.graphql(disable)
    canvas.reset()

    refused = await ask(gateway, CREATE_USER, ANN)

    assert refused["code"] == "PROVIDER_UNAVAILABLE"
    assert calls(canvas) == []


async def test_a_gateway_that_carries_no_writes_out_says_so() -> None:
    world = World()
    world.add("2")
    body = {"query": CREATE_USER, "variables": {"input": ANN}}

    _, answer = await execute(SCHEMA, body, a_context(world, Key()))

    assert answer["data"]["done"]["code"] == "NOT_SUPPORTED"
