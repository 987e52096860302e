"""Writes to Canvas: each looks first, is sent once, and can be asked for again without harm.

Against the simulator as three releases; nothing here was compared with a real Canvas.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from urllib.parse import parse_qsl

import pytest
from running_gateway import running_stranger
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sessions.addresses import LOCAL_NETWORKS, AddressPolicy
from sessions.base import (
    EnrollmentEnding,
    Grant,
    Login,
    NewEnrollment,
    NewLogin,
    NewUser,
    Subject,
    SubjectKind,
)
from sessions.errors import (
    ProviderBadResponse,
    ProviderError,
    ProviderForbidden,
    ProviderRejected,
    ProviderTimeout,
    ProviderUnavailable,
)
from sessions.http import HttpLimits, ProviderHttp
from sessions.platforms.canvas import CanvasSession
from simulators.canvas.app import running
from simulators.canvas.population import build_population
from simulators.canvas.profiles import PROFILES
from simulators.canvas.state import ADMIN_TOKEN, Canvas
from storage.credentials import Secret
from storage.records import EnrollmentState, Provider, ProviderState, RoleValue

NOW = datetime.now(UTC)
LIMITS = HttpLimits(read_seconds=0.4)
BY_LOGIN = BY_SIS = ("GET", "/api/v1/users/:user_id")
USERS = ("POST", "/api/v1/accounts/:account_id/users")
LOGINS = ("GET", "/api/v1/users/:user_id/logins")
NEW_LOGIN = ("POST", "/api/v1/accounts/:account_id/logins")
PLACES = ("GET", "/api/v1/courses/:course_id/enrollments")
ENROLL = ("POST", "/api/v1/courses/:course_id/enrollments")
END = ("DELETE", "/api/v1/courses/:course_id/enrollments/:enrollment_id")
REACTIVATE = ("PUT", "/api/v1/courses/:course_id/enrollments/:enrollment_id/reactivate")
ROLES = ("GET", "/api/v1/accounts/:account_id/roles")
COURSE = ("GET", "/api/v1/courses/:course_id")

ANN = NewUser(
    username="ann@school.test",
    display_name="Ann  Mary Lee",
    given_name="Ann Mary",
    family_name="Lee",
    email="ann@school.test",
    sis_id="S/77",
)
CODY, JOHN, MARIA, CHI, PRINCE, JEFFERSON, TIM = "3", "4", "5", "6", "7", "8", "15"
ALGEBRA, BIOLOGY, CIVICS, ETHICS = "1", "2", "6", "8"
EVENING = "2"


class OneToken:
    """An authorization that always gives the same token."""

    def __init__(self, token: str) -> None:
        self._grant = Grant(version=1, secret=Secret({"access_token": token}))

    async def current(self) -> Grant:
        return self._grant

    async def replace(self, lost: Grant, *, again: bool = False) -> Grant:
        return lost


class NoExports:
    async def read(self, name: str) -> None:
        return None


@asynccontextmanager
async def session_at(
    url: str, *, token: str = ADMIN_TOKEN, subject: Subject | None = None
) -> AsyncIterator[CanvasSession]:
    provider = Provider(
        id="2",
        platform="canvas",
        name="Canvas",
        base_url=url,
        options={},
        state=ProviderState.ACTIVE,
        revision=1,
        created_at=NOW,
        updated_at=NOW,
    )
    policy = AddressPolicy(allowed_networks=LOCAL_NETWORKS)
    async with ProviderHttp.open(url, provider_id="2", policy=policy, limits=LIMITS) as http:
        yield CanvasSession(
            provider,
            http=http,
            authorization=OneToken(token),
            exports=NoExports(),
            subject=subject or Subject(),
        )


@dataclass(frozen=True, kw_only=True)
class Lab:
    canvas: Canvas
    session: CanvasSession
    url: str

    def calls(self) -> list[tuple[str, str]]:
        """Method and route of every call so far, refused and failed ones included."""
        return [(entry.method, entry.route) for entry in self.canvas.counts.log]

    def sent(self) -> list[str]:
        """Methods of the calls that could change something."""
        return [entry.method for entry in self.canvas.counts.log if entry.method != "GET"]

    def users(self, login_id: str) -> int:
        people = self.canvas.population.users.values()
        return sum(user.login_id == login_id for user in people)

    def places(self, user_id: str, course_id: str) -> list[tuple[int, str]]:
        rows = self.canvas.population.enrollments_by_user[int(user_id)]
        return [(row.id, row.state) for row in rows if row.course_id == int(course_id)]


@pytest.fixture(params=sorted(PROFILES))
async def lab(request: pytest.FixtureRequest) -> AsyncIterator[Lab]:
    canvas = Canvas(build_population(), profile=PROFILES[request.param])
    async with running(canvas) as url, session_at(url) as session:
        yield Lab(canvas=canvas, session=session, url=url)


def a_place(user_id: str, course_id: str = ETHICS, **more: Any) -> NewEnrollment:
    return NewEnrollment(user_id=user_id, course_id=course_id, **more)


# Users


async def test_a_user_is_looked_for_and_then_created_with_names_the_right_way_round(
    lab: Lab,
) -> None:
    written = await lab.session.create_user(ANN)

    made = lab.canvas.population.users[int(written.record.external_id)]
    assert written.created
    assert lab.calls() == [BY_LOGIN, BY_SIS, USERS]
    assert (made.name, made.sortable_name) == ("Ann  Mary Lee", "Lee, Ann Mary")
    assert (made.login_id, made.email, made.sis_user_id) == (
        "ann@school.test", "ann@school.test", "S/77",
    )  # fmt: skip
    record = written.record
    assert (record.username, record.display_name) == ("ann@school.test", "Ann  Mary Lee")
    assert (record.given_name, record.family_name) == ("Ann Mary", "Lee")
    assert lab.canvas.counts.log[-1].query == ""  # everything is in the body


async def test_without_both_name_parts_canvas_sorts_the_user_by_itself(lab: Lab) -> None:
    user = NewUser(username="mo", display_name="Mo Salah", given_name="Mo")

    written = await lab.session.create_user(user)

    made = lab.canvas.population.users[int(written.record.external_id)]
    assert lab.calls() == [BY_LOGIN, USERS]
    assert (made.name, made.sortable_name, made.sis_user_id) == ("Mo Salah", "Salah, Mo", None)


@pytest.mark.parametrize(
    "user",
    [
        NewUser(username="CODY", display_name="Cody  Houston CUTRER"),
        NewUser(username="cody", display_name="Somebody else by name", sis_id="SIS-3"),
        NewUser(username="teresa", display_name="Teresa Nu\u0301n\u0303ez"),
        NewUser(username="john", display_name="John St. Clair", sis_id="not shown for John"),
    ],
    ids=["same name", "same SIS id", "same name decomposed", "no SIS id shown"],
)
async def test_a_user_who_is_there_is_not_created_again(lab: Lab, user: NewUser) -> None:
    written = await lab.session.create_user(user)

    assert not written.created
    assert written.record.external_id in {CODY, JOHN, "2"}
    assert written.record.email == f"{user.username.lower()}@canvas.test"
    assert lab.calls() == [BY_LOGIN]


@pytest.mark.parametrize(
    ("user", "field", "calls"),
    [
        (NewUser(username="cody", display_name="Buffalo Bill"), "username", 1),
        (NewUser(username="cody", display_name="Cody Houston Cutrer", sis_id="X"), "username", 1),
        (NewUser(username="new", display_name="Cody Houston Cutrer", sis_id="SIS-3"), "sis_id", 2),
    ],
)
async def test_a_username_or_sis_id_of_somebody_else_is_refused_before_anything_is_sent(
    lab: Lab, user: NewUser, field: str, calls: int
) -> None:
    before = len(lab.canvas.population.users)

    with pytest.raises(ProviderRejected) as refusal:
        await lab.session.create_user(user)

    assert refusal.value.field == field
    assert lab.calls() == [BY_LOGIN] * calls
    assert len(lab.canvas.population.users) == before


async def test_a_username_with_every_kind_of_character_is_one_segment_of_the_path(
    lab: Lab,
) -> None:
    user = NewUser(username="a/b?c#d e%é&=;", display_name="Odd One")

    first = await lab.session.create_user(user)
    second = await lab.session.create_user(user)

    assert (first.created, second.created) == (True, False)
    assert first.record.external_id == second.record.external_id
    assert lab.calls() == [BY_LOGIN, USERS, BY_LOGIN]


async def test_a_user_another_gateway_created_meanwhile_is_found(lab: Lab) -> None:
    async with session_at(lab.url) as other:
        lab.canvas.latency_seconds = 0.05

        written = await asyncio.gather(
            *(each.create_user(ANN) for each in (lab.session, other) for _ in range(5))
        )

    assert sorted(each.created for each in written) == [False] * 9 + [True]
    assert len({each.record.external_id for each in written}) == 1
    assert lab.users("ann@school.test") == 1


async def test_a_user_created_between_the_two_looks_is_found(lab: Lab) -> None:
    asked = asyncio.Event()

    async def create() -> None:
        await asked.wait()
        lab.canvas.population.add_user(
            ANN.display_name, ANN.username, email=ANN.email, sis_user_id=ANN.sis_id
        )

    other = asyncio.create_task(create())
    find = lab.session._writing._user_by

    async def slow_find(name: str) -> Any:
        found = await find(name)
        asked.set()
        await other
        return found

    lab.session._writing._user_by = slow_find  # type: ignore[method-assign]  # the moment between
    written = await lab.session.create_user(ANN)

    assert not written.created
    assert lab.users("ann@school.test") == 1
    assert lab.sent() == []


async def test_a_user_somebody_else_took_the_name_of_meanwhile_is_refused(lab: Lab) -> None:
    lab.canvas.latency_seconds = 0.05
    bea = NewUser(username=ANN.username, display_name="Bea")

    outcomes = await asyncio.gather(
        lab.session.create_user(ANN), lab.session.create_user(bea), return_exceptions=True
    )

    refused = [each for each in outcomes if isinstance(each, ProviderRejected)]
    assert len(refused) == 1
    assert refused[0].field == "username"
    assert refused[0].message == "This username belongs to somebody else"
    assert lab.users(ANN.username) == 1


# Answers that are lost


@pytest.mark.parametrize("kind", ["truncated", "cut"])
async def test_a_user_whose_creation_was_answered_badly_is_found_and_not_created_again(
    lab: Lab, kind: str
) -> None:
    lab.canvas.fail(kind, path="/api/v1/accounts/self/users")

    written = await lab.session.create_user(ANN)

    assert written.created
    assert lab.calls() == [BY_LOGIN, BY_SIS, USERS, BY_LOGIN]
    assert lab.users(ANN.username) == 1


@pytest.mark.parametrize(
    ("kind", "more", "error"),
    [
        ("drop", {"seconds": 0.6}, ProviderTimeout),
        ("disconnect", {}, ProviderUnavailable),
        ("status", {"status": 500}, ProviderUnavailable),
        ("status", {"status": 502}, ProviderUnavailable),
        ("html", {}, ProviderBadResponse),
        ("login", {}, ProviderBadResponse),
    ],
)
async def test_a_user_who_was_not_created_is_looked_for_and_not_sent_again(
    lab: Lab, kind: str, more: dict[str, Any], error: type[ProviderError]
) -> None:
    lab.canvas.fail(kind, path="/api/v1/accounts/self/users", **more)

    with pytest.raises(error):
        await lab.session.create_user(ANN)
    failed = lab.sent()
    again = await lab.session.create_user(ANN)

    assert failed in ([], ["POST"])  # a call whose answer is still held back is not in the log
    assert again.created
    assert lab.users(ANN.username) == 1


async def test_a_user_created_after_we_gave_up_is_found_the_next_time(lab: Lab) -> None:
    lab.canvas.fail("disconnect", path="/api/v1/accounts/self/users")

    with pytest.raises(ProviderUnavailable):
        await lab.session.create_user(ANN)
    lab.canvas.population.add_user(ANN.display_name, ANN.username, sis_user_id=ANN.sis_id)
    again = await lab.session.create_user(ANN)

    assert not again.created
    assert lab.users(ANN.username) == 1


@pytest.mark.parametrize("lab", ["oss-2024"], indirect=True)  # it waits for seconds
async def test_a_throttled_write_is_sent_again_as_canvas_never_looked_at_it(lab: Lab) -> None:
    lab.canvas.fail("throttled", path="/api/v1/accounts/self/users")

    written = await lab.session.create_user(ANN)

    assert written.created
    assert lab.sent() == ["POST", "POST"]
    assert lab.users(ANN.username) == 1


@pytest.mark.parametrize(
    "fault",
    [
        ("truncated", {}),
        ("cut", {}),
        ("disconnect", {}),
        ("status", {"status": 503}),
        ("drop", {"seconds": 0.6}),
        ("html", {}),
    ],
    ids=lambda fault: fault[0],
)
@pytest.mark.parametrize(
    ("write", "path"),
    [
        (lambda session: session.create_login(NewLogin(user_id=MARIA, username="maria")),
         "/api/v1/accounts/self/logins"),
        (lambda session: session.enroll(a_place(PRINCE)), "/api/v1/courses/8/enrollments"),
        (lambda session: session.enroll(a_place(CHI, ALGEBRA)),
         "/api/v1/courses/1/enrollments/9/reactivate"),
        (lambda session: session.end_enrollment((JOHN, ALGEBRA), "7", EnrollmentEnding.REMOVE),
         "/api/v1/courses/1/enrollments/7"),
    ],
    ids=["login", "enrollment", "reactivation", "ending"],
)  # fmt: skip
async def test_whatever_goes_wrong_asking_again_never_makes_a_second_row(
    lab: Lab,
    fault: tuple[str, dict[str, Any]],
    write: Callable[[CanvasSession], Awaitable[Any]],
    path: str,
) -> None:
    kind, more = fault
    is_shared = path == "/api/v1/courses/8/enrollments"  # looked at before it is posted to
    lab.canvas.fail(kind, path=path, after=int(is_shared), **more)

    first = await _if_possible(write(lab.session))
    second = await write(lab.session)
    third = await write(lab.session)

    assert (first is not None) == (kind in {"truncated", "cut"})  # done, and only the answer lost
    assert first is None or (first.created, second.created) == (True, False)
    assert not third.created
    assert lab.places(PRINCE, ETHICS) in ([], [(20, "active")])
    assert len(lab.canvas.population.enrollments) in {19, 20}


async def _if_possible(write: Awaitable[Any]) -> Any:
    try:
        return await write
    except (ProviderUnavailable, ProviderBadResponse):
        return None


# Logins


async def test_a_login_is_looked_for_and_then_given(lab: Lab) -> None:
    written = await lab.session.create_login(
        NewLogin(user_id=MARIA, username="maria", sis_id="S-5")
    )

    made = lab.canvas.population.users[int(MARIA)]
    assert written.created
    assert written.record == Login(id=MARIA, user_id=MARIA, username="maria")
    assert (made.login_id, made.sis_user_id) == ("maria", "S-5")
    assert lab.calls() == [LOGINS, NEW_LOGIN]


async def test_a_login_the_user_has_is_not_given_again(lab: Lab) -> None:
    written = await lab.session.create_login(NewLogin(user_id=CODY, username="Cody"))

    assert not written.created
    assert written.record.username == "cody"
    assert lab.calls() == [LOGINS]


async def test_a_login_of_somebody_else_is_refused_in_canvass_words(lab: Lab) -> None:
    with pytest.raises(ProviderRejected) as refusal:
        await lab.session.create_login(NewLogin(user_id=MARIA, username="cody"))

    assert refusal.value.field == "username"
    assert refusal.value.message == (
        "Canvas refused this: ID already in use for this account and authentication provider"
    )
    assert lab.canvas.population.users[int(MARIA)].login_id is None


async def test_a_login_given_twice_at_once_is_given_once(lab: Lab) -> None:
    lab.canvas.latency_seconds = 0.05

    written = await asyncio.gather(
        *(lab.session.create_login(NewLogin(user_id=MARIA, username="maria")) for _ in range(4))
    )

    assert sorted(each.created for each in written) == [False, False, False, True]


async def test_a_login_for_nobody_is_refused(lab: Lab) -> None:
    with pytest.raises(ProviderRejected) as refusal:
        await lab.session.create_login(NewLogin(user_id="99", username="nobody"))

    assert refusal.value.field == "user_id"
    assert lab.calls() == [LOGINS]


# Enrolling


async def test_a_user_is_enrolled_as_active_and_not_merely_invited(lab: Lab) -> None:
    starts_at = datetime(2025, 4, 1, 8, 0, tzinfo=timezone(timedelta(hours=2)))

    written = await lab.session.enroll(
        a_place(PRINCE, starts_at=starts_at, ends_at=datetime(2025, 5, 1, tzinfo=UTC))
    )

    record = written.record
    assert written.created
    assert (record.state, record.role.value) == (EnrollmentState.ACTIVE, RoleValue.STUDENT)
    assert (record.user_id, record.course_id) == (PRINCE, ETHICS)
    assert (record.starts_at, record.ends_at) == (starts_at, datetime(2025, 5, 1, tzinfo=UTC))
    assert lab.places(PRINCE, ETHICS) == [(int(record.id), "active")]
    row = lab.canvas.population.enrollments[int(record.id)]
    assert (row.start_at, row.end_at) == ("2025-04-01T06:00:00Z", "2025-05-01T00:00:00Z")
    assert lab.calls() == [PLACES, ENROLL]


async def test_a_user_who_is_enrolled_is_not_enrolled_again(lab: Lab) -> None:
    written = await lab.session.enroll(a_place(CODY, ALGEBRA))

    assert not written.created
    assert written.record.id == "5"
    assert lab.calls() == [PLACES]


async def test_another_section_or_another_role_is_another_place(lab: Lab) -> None:
    same = await lab.session.enroll(a_place(CODY, ALGEBRA, section_id=EVENING))
    section = await lab.session.enroll(a_place(JOHN, ALGEBRA, section_id=EVENING))
    role = await lab.session.enroll(a_place(JOHN, ALGEBRA, role=RoleValue.TEACHING_ASSISTANT))

    assert (same.created, section.created, role.created) == (False, True, True)
    assert section.record.section_id == EVENING
    assert role.record.role.source_value == "TaEnrollment"
    assert len(lab.places(JOHN, ALGEBRA)) == 3
    assert lab.calls() == [PLACES, PLACES, ENROLL, PLACES, ENROLL]


async def test_an_inactive_place_is_made_active_again(lab: Lab) -> None:
    written = await lab.session.enroll(a_place(CHI, ALGEBRA))

    assert written.created
    assert lab.places(CHI, ALGEBRA) == [(9, "active")]
    assert lab.calls() == [PLACES, REACTIVATE]


@pytest.mark.parametrize("user_id", [MARIA, PRINCE, JEFFERSON])
async def test_an_invited_completed_or_rejected_place_is_asked_for_anew(
    lab: Lab, user_id: str
) -> None:
    before = lab.places(user_id, ALGEBRA)

    written = await lab.session.enroll(a_place(user_id, ALGEBRA))

    assert written.created
    assert written.record.state is EnrollmentState.ACTIVE
    assert lab.places(user_id, ALGEBRA) == [(before[0][0], "active")]
    assert lab.calls() == [PLACES, ENROLL]


async def test_a_custom_role_is_found_by_its_name_label_or_id(lab: Lab) -> None:
    role = lab.canvas.population.roles["Lab assistant"]

    there = await lab.session.enroll(a_place(TIM, ALGEBRA, source_role="Lab assistant"))
    new = [
        await lab.session.enroll(a_place(user_id, source_role=word))
        for user_id, word in ((CODY, "Lab assistant"), (JOHN, role.label), (CHI, str(role.id)))
    ]

    assert not there.created
    assert [each.created for each in new] == [True, True, True]
    assert {each.record.role.source_value for each in new} == {"Lab assistant"}
    assert {each.record.role.value for each in new} == {RoleValue.TEACHING_ASSISTANT}
    assert lab.calls()[:5] == [ROLES, PLACES, ROLES, PLACES, ENROLL]


async def test_canvass_own_word_for_a_role_wins_and_costs_no_call(lab: Lab) -> None:
    written = await lab.session.enroll(a_place(CODY, source_role="ObserverEnrollment"))

    assert written.record.role.value is RoleValue.OBSERVER
    assert lab.calls() == [PLACES, ENROLL]


@pytest.mark.parametrize(
    ("wanted", "field", "calls"),
    [
        (a_place(CODY, role=RoleValue.PROCTOR), "role", []),
        (a_place(CODY, source_role="Janitor"), "source_role", [ROLES]),
        (a_place(CODY, source_role="StudentViewEnrollment"), "source_role", [ROLES]),
        (a_place(CODY, "99"), "course_id", [PLACES, COURSE]),
        (a_place("99"), "user_id", [PLACES, COURSE]),
        (a_place(CODY, section_id=EVENING), "section_id", [PLACES, ENROLL]),
    ],
    ids=["no such role", "no such word", "test student", "course", "user", "section elsewhere"],
)
async def test_what_is_not_there_is_named(
    lab: Lab, wanted: NewEnrollment, field: str, calls: list[tuple[str, str]]
) -> None:
    before = len(lab.canvas.population.enrollments)

    with pytest.raises(ProviderRejected) as refusal:
        await lab.session.enroll(wanted)

    assert refusal.value.field == field
    assert lab.calls() == calls
    assert len(lab.canvas.population.enrollments) == before


async def test_a_concluded_course_takes_nobody_and_canvas_says_why(lab: Lab) -> None:
    with pytest.raises(ProviderRejected) as refusal:
        await lab.session.enroll(a_place(JOHN, CIVICS))

    assert refusal.value.field is None
    assert refusal.value.message == (
        "Canvas refused this: Can't add an enrollment to a concluded course"
    )
    assert lab.places(JOHN, CIVICS) == []


# Ending


@pytest.mark.parametrize(
    ("ending", "state", "upstream"),
    [
        (EnrollmentEnding.CONCLUDE, EnrollmentState.COMPLETED, "completed"),
        (EnrollmentEnding.DEACTIVATE, EnrollmentState.INACTIVE, "inactive"),
        (EnrollmentEnding.REMOVE, EnrollmentState.DROPPED, "deleted"),
    ],
)
async def test_an_enrollment_ends_once_in_each_way(
    lab: Lab, ending: EnrollmentEnding, state: EnrollmentState, upstream: str
) -> None:
    first = await lab.session.end_enrollment((JOHN, ALGEBRA), "7", ending)
    second = await lab.session.end_enrollment((JOHN, ALGEBRA), "7", ending)

    assert (first.created, second.created) == (True, False)
    assert (first.record.state, second.record.state) == (state, state)
    assert lab.places(JOHN, ALGEBRA) == [(7, upstream)]
    assert lab.calls() == [PLACES, END, PLACES]
    assert lab.canvas.counts.log[1].query == ""


async def test_an_enrollment_that_is_not_there_or_was_removed_cannot_end(lab: Lab) -> None:
    pairs = [((JOHN, ALGEBRA), "5"), ((JEFFERSON, BIOLOGY), "19"), ((JOHN, "99"), "7")]
    fields = []
    for pair, enrollment_id in pairs:
        with pytest.raises(ProviderRejected) as refusal:
            await lab.session.end_enrollment(pair, enrollment_id, EnrollmentEnding.CONCLUDE)
        fields.append(refusal.value.field)

    assert fields == ["enrollment_id", "enrollment_id", "course_id"]
    assert lab.sent() == []


# Who may


async def test_canvass_own_refusal_of_a_permission_is_told(lab: Lab) -> None:
    student = Subject(SubjectKind.USER, CODY)
    token = lab.canvas.issue_token(int(CODY))
    writes: list[Callable[[CanvasSession], Awaitable[Any]]] = [
        lambda session: session.create_user(ANN),
        lambda session: session.create_login(NewLogin(user_id=CODY, username="second")),
        lambda session: session.enroll(a_place(JOHN, BIOLOGY)),
        lambda session: session.end_enrollment((CODY, BIOLOGY), "15", EnrollmentEnding.REMOVE),
    ]
    users, places = len(lab.canvas.population.users), lab.places(CODY, BIOLOGY)

    async with session_at(lab.url, token=token, subject=student) as session:
        for write in writes:
            with pytest.raises(ProviderForbidden, match="Canvas does not permit this: user not"):
                await write(session)

    assert len(lab.canvas.population.users) == users
    assert lab.places(CODY, BIOLOGY) == places


async def test_a_teacher_may_enroll_and_end_in_their_own_course(lab: Lab) -> None:
    teacher = Subject(SubjectKind.USER, "2")
    token = lab.canvas.issue_token(2)
    async with session_at(lab.url, token=token, subject=teacher) as session:
        enrolled = await session.enroll(a_place("13", BIOLOGY))
        ended = await session.end_enrollment(
            ("13", BIOLOGY), enrolled.record.id, EnrollmentEnding.DEACTIVATE
        )
        with pytest.raises(ProviderForbidden):
            await session.enroll(a_place("13", ETHICS))

    assert (enrolled.created, ended.created) == (True, True)
    assert lab.places("13", BIOLOGY) == [(int(enrolled.record.id), "inactive")]


async def test_what_was_read_before_a_write_is_not_given_after_it(lab: Lab) -> None:
    token = lab.canvas.issue_token(2)
    subject = Subject(SubjectKind.USER, "2")
    async with session_at(lab.url, token=token, subject=subject) as teacher:
        before = await teacher.fetch_enrollments_by_user(["2"])
        written = await teacher.enroll(
            NewEnrollment(user_id="2", course_id="1", role=RoleValue.TEACHING_ASSISTANT)
        )
        after = await teacher.fetch_enrollments_by_user(["2"])

    assert {row.id for row in after["2"]} - {row.id for row in before["2"]} == {written.record.id}


async def test_a_masqueraded_write_is_sent_as_the_user(lab: Lab) -> None:
    subject = Subject(SubjectKind.MASQUERADE, "2")
    async with session_at(lab.url, subject=subject) as session:
        await session.enroll(a_place("13", BIOLOGY))

    assert lab.calls() == [PLACES, ENROLL]
    assert [dict(parse_qsl(entry.query))["as_user_id"] for entry in lab.canvas.counts.log] == [
        "2",
        "2",
    ]


# What is sent


class Answering:
    """Notes what is sent; answers looks with nothing and writes with the next answer."""

    def __init__(self, *answers: tuple[int, object]) -> None:
        self.forms: list[tuple[str, str, dict[str, str]]] = []
        self._answers = list(answers)

    async def answer(self, request: Request) -> Response:
        if request.method == "GET":
            if request.url.path.endswith(("/enrollments", "/logins")):
                return JSONResponse([])
            return JSONResponse({"errors": [{"message": "Not here."}]}, 404)
        assert request.url.query == ""
        body = (await request.body()).decode()
        form = parse_qsl(body, keep_blank_values=True)
        assert len(dict(form)) == len(form)
        self.forms.append((request.method, request.url.path, dict(form)))
        status, answer = self._answers.pop(0)
        return JSONResponse(answer, status)


USER_ROW = {"id": "30", "name": "Ann Lee"}
PLACE_ROW = {
    "id": "40",
    "user_id": "3",
    "course_id": "8",
    "type": "StudentEnrollment",
    "enrollment_state": "active",
}


async def test_exactly_this_is_sent_for_a_user() -> None:
    answering = Answering((200, USER_ROW), (200, USER_ROW))
    async with running_stranger(answering.answer) as url, session_at(url) as session:
        await session.create_user(replace(ANN, locale="pt-BR", time_zone="America/Recife"))
        await session.create_user(
            NewUser(username="mo", display_name="Mo", email="mo@x.test", notify=True)
        )

    quiet, told = answering.forms
    assert quiet == (
        "POST",
        "/api/v1/accounts/self/users",
        {
            "user[name]": "Ann  Mary Lee",
            "user[sortable_name]": "Lee, Ann Mary",
            "user[locale]": "pt-BR",
            "user[time_zone]": "America/Recife",
            "user[skip_registration]": "true",
            "pseudonym[unique_id]": "ann@school.test",
            "pseudonym[sis_user_id]": "S/77",
            "pseudonym[send_confirmation]": "false",
            "communication_channel[type]": "email",
            "communication_channel[address]": "ann@school.test",
            "communication_channel[skip_confirmation]": "true",
        },
    )
    assert told[2] == {
        "user[name]": "Mo",
        "user[skip_registration]": "false",
        "pseudonym[unique_id]": "mo",
        "pseudonym[send_confirmation]": "true",
        "communication_channel[type]": "email",
        "communication_channel[address]": "mo@x.test",
        "communication_channel[skip_confirmation]": "false",
    }


async def test_exactly_this_is_sent_for_a_login_and_an_enrollment() -> None:
    answering = Answering(
        (200, {"id": "9", "user_id": "3", "unique_id": "cody2"}), (200, PLACE_ROW)
    )
    async with running_stranger(answering.answer) as url, session_at(url) as session:
        await session.create_login(
            NewLogin(user_id="3", username="cody2", sis_id="S-2", identity_provider="saml")
        )
        await session.enroll(a_place("3", section_id="9"))

    assert answering.forms == [
        (
            "POST",
            "/api/v1/accounts/self/logins",
            {
                "user[id]": "3",
                "login[unique_id]": "cody2",
                "login[sis_user_id]": "S-2",
                "login[authentication_provider_id]": "saml",
            },
        ),
        (
            "POST",
            "/api/v1/courses/8/enrollments",
            {
                "enrollment[user_id]": "3",
                "enrollment[type]": "StudentEnrollment",
                "enrollment[enrollment_state]": "active",
                "enrollment[course_section_id]": "9",
                "enrollment[notify]": "false",
            },
        ),
    ]


async def test_a_place_that_canvas_leaves_pending_is_told_as_such() -> None:
    answering = Answering((200, PLACE_ROW | {"enrollment_state": "creation_pending"}))
    async with running_stranger(answering.answer) as url, session_at(url) as session:
        written = await session.enroll(a_place("3"))

    assert written.created
    assert written.record.state is EnrollmentState.PENDING


@pytest.mark.parametrize(
    ("answer", "field", "message"),
    [
        (
            {"errors": {"pseudonym": {"sis_user_id": [{"attribute": "sis_user_id",
             "message": 'SIS ID "S/77" is already in use'}]}}},
            "sis_id",
            'Canvas refused this: SIS ID "S/77" is already in use',
        ),
        (
            {"errors": {"user": {"time_zone": [{"attribute": "time_zone",
             "message": "is not a zone"}]}}},
            "time_zone",
            "Canvas refused this: is not a zone",
        ),
        ({"errors": [{"message": "Too many users."}]}, None, "Canvas refused this: Too many users"),
        ({}, None, "Canvas refused this: it did not say why"),
    ],
)  # fmt: skip
async def test_canvass_reason_comes_with_the_field_it_is_about(
    answer: object, field: str | None, message: str
) -> None:
    async with (
        running_stranger(Answering((400, answer)).answer) as url,
        session_at(url) as session,
    ):
        with pytest.raises(ProviderRejected) as refusal:
            await session.create_user(ANN)

    assert (refusal.value.field, refusal.value.message) == (field, message)


async def test_a_removed_place_that_is_no_longer_listed_is_gone() -> None:
    removed = False

    async def answer(request: Request) -> Response:
        nonlocal removed
        if request.method == "DELETE":
            removed = True
            return Response("<h1>Bad gateway</h1>", 502, media_type="text/html")
        return JSONResponse([] if removed else [PLACE_ROW])

    async with running_stranger(answer) as url, session_at(url) as session:
        written = await session.end_enrollment(("3", "8"), "40", EnrollmentEnding.REMOVE)

    assert written.created
    assert written.record.state is EnrollmentState.DROPPED
