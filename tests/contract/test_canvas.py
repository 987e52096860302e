"""Canvas keeps every platform's promises, and its own habits do not bite.

Against the simulator as three releases; nothing here was compared with a real Canvas.
"""

import asyncio
import base64
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from session_contract import (
    Conversation,
    Installation,
    SessionContract,
    all_pages,
    converse,
    forget_shared,
    without_times,
)

from resolvers.icons import IconLimits, open_icons
from sessions.base import (
    SERVICE,
    Code,
    CodeRequest,
    EnrollmentEnding,
    ListOrder,
    NewEnrollment,
    NewGrant,
    NewLogin,
    NewUser,
    ProviderSession,
    Subject,
)
from sessions.errors import (
    NotSupported,
    ProviderAddressRefused,
    ProviderBadResponse,
    ProviderError,
    ProviderForbidden,
    ProviderUnavailable,
    ReauthRequired,
    SessionLost,
)
from sessions.platforms.canvas import PLATFORM
from sessions.strategies import Choice, listening
from simulators.canvas.app import running
from simulators.canvas.population import (
    Course as CanvasCourse,
)
from simulators.canvas.population import (
    Population,
    build_large_population,
    build_population,
)
from simulators.canvas.population import (
    User as CanvasUser,
)
from simulators.canvas.profiles import PROFILES
from simulators.canvas.state import ADMIN_TOKEN, CLIENT_ID, CLIENT_SECRET, Canvas
from storage.credentials import Secret
from storage.database import Database
from storage.leases import SessionStatus
from storage.media import MediaStore
from storage.records import (
    CourseState,
    EnrollmentState,
    Identifier,
    IdentifierType,
    Milestone,
    MilestoneState,
    Progress,
    ProgressMethod,
    Role,
    RoleValue,
    Score,
)

RELEASES = ("oss-2019", "oss-2024", "hosted-now")


@dataclass(frozen=True, kw_only=True)
class SimulatedInstallation(Installation):
    canvas: Canvas

    async def lose_sessions(self) -> None:
        """Let the operator revoke the token and give another one, the only way it ever ends."""
        admin = next(user for user in self.canvas.population.users.values() if user.is_admin)
        assert self.canvas.revoke_user(admin.id) > 0
        assert isinstance(self.credentials, dict)
        self.credentials["api_key"] = self.canvas.issue_token(admin.id)


def populated(*, shard: int = 0) -> Population:
    """The small data set and some more users, so that there are pages of them."""
    population = build_population(shard=shard)
    for number in range(1, 21):
        population.add_user(f"Given{number} Family{number}", f"user{number}")
    return population


@asynccontextmanager
async def simulated(
    release: str = "hosted-now", *, population: Population | None = None, **changes: Any
) -> AsyncIterator[SimulatedInstallation]:
    canvas = Canvas(population or populated(), profile=PROFILES[release])
    secrets = {"client_id": CLIENT_ID, "client_secret": CLIENT_SECRET}
    async with running(canvas) as url:
        installation = SimulatedInstallation(
            platform=PLATFORM,
            base_url=url,
            credentials={"api_key": ADMIN_TOKEN, **secrets},
            wrong_credentials={"api_key": "7~canary-wrong-token", **secrets},
            unknown_user_id="987654321",
            unknown_course_id="987654321",
            role_words=frozenset(
                {
                    "StudentEnrollment",
                    "TeacherEnrollment",
                    "ObserverEnrollment",
                    "Lab assistant",
                }
            ),
            canvas=canvas,
        )
        yield replace(installation, **changes)


class SimulatedContract(SessionContract):
    release = ""

    @pytest.fixture
    async def installation(self) -> AsyncIterator[Installation]:
        async with simulated(self.release) as installation:
            yield installation

    async def test_logging_out_ends_the_session(self, conversation: Conversation) -> None:
        """The token is the operator's, who may use it elsewhere: logging out leaves it alone."""
        session, authorization = conversation.session, conversation.authorization
        grant = await authorization.current()

        await session.log_out(NewGrant(secret=grant.secret))

        await session.keep_alive(grant)


class TestCanvas2019(SimulatedContract):
    release = "oss-2019"


class TestCanvas2024(SimulatedContract):
    release = "oss-2024"


class TestCanvasNow(SimulatedContract):
    release = "hosted-now"


# ---- what a test asks ----------------------------------------------------------------------

USERS = "GET /api/v1/accounts/self/users"
COURSES = "GET /api/v1/accounts/self/courses"
USER = "GET /api/v1/users/{id}"
COURSE = "GET /api/v1/courses/{id}"
BY_USER = "GET /api/v1/users/{id}/enrollments"
BY_COURSE = "GET /api/v1/courses/{id}/enrollments"
GRAPHQL = "POST /api/graphql"
LOGIN = {
    "GET /api/v1/users/self": 1,
    "GET /api/v1/accounts/self": 1,
    COURSES: 1,
    "GET /api/v1/accounts/self/roles": 1,
    GRAPHQL: 1,
}
ALGEBRA, BIOLOGY, CHEMISTRY, PHYSICS, DRAMA, CIVICS, DANCE, ETHICS = "12345678"
ADA, TERESA, CODY, JOHN, MARIA, CHI, PRINCE, JEFFERSON, SPACES, GONE = map(str, range(1, 11))
OLGA, NAMELESS, MERGED, TIM = "12", "13", "14", "15"


@pytest.fixture(params=RELEASES)
async def canvas(request: pytest.FixtureRequest) -> AsyncIterator[SimulatedInstallation]:
    """Each release with the small data set."""
    async with simulated(request.param) as installation:
        yield installation


@pytest.fixture
async def talk(canvas: SimulatedInstallation) -> AsyncIterator[Conversation]:
    """The service's session with each release, logged in."""
    async with converse(canvas) as conversation:
        await conversation.authorization.current()
        conversation.forget_calls()
        yield conversation


@asynccontextmanager
async def talking(installation: SimulatedInstallation) -> AsyncIterator[Conversation]:
    """A service's session, logged in."""
    async with converse(installation) as conversation:
        await conversation.authorization.current()
        conversation.forget_calls()
        yield conversation


@asynccontextmanager
async def talking_as(
    installation: SimulatedInstallation, user_id: str, *, kind: str = "user"
) -> AsyncIterator[Conversation]:
    """A user's session, by a token of theirs or by masquerade."""
    subject = Subject.parse(f"{kind}:{user_id}")
    token = ADMIN_TOKEN if kind == "masquerade" else installation.canvas.issue_token(int(user_id))
    async with converse(installation, subject=subject) as conversation:
        grant = {"access_token": token, "user_id": user_id}
        conversation.authorization.store(NewGrant(secret=Secret(grant)))
        yield conversation


def without_custom_roles(population: Population) -> Population:
    """So that GraphQL loses nothing."""
    for row in population.enrollments.values():
        row.role = row.type
    del population.roles["Lab assistant"]
    return population


def crowded(students: int = 130, courses: int = 12) -> Population:
    """More students in one course, and more courses, than one page of any release holds."""
    population = Population()
    population.add_user("Ada Admin", "ada", is_admin=True)
    added = [population.add_course(f"Course {n}", f"C{n}") for n in range(1, courses + 1)]
    for number in range(students):
        user = population.add_user(f"Given{number} Family", f"user{number}")
        population.add_enrollment(user, population.sections_by_course[added[0].id][0])
    return population


def user_of(installation: SimulatedInstallation, user_id: str) -> CanvasUser:
    return installation.canvas.population.users[int(user_id)]


def course_of(installation: SimulatedInstallation, course_id: str) -> CanvasCourse:
    return installation.canvas.population.courses[int(course_id)]


# ---- everything is read, at a known price ---------------------------------------------------


@pytest.mark.parametrize(
    ("release", "pages"), [("oss-2019", 3), ("oss-2024", 2), ("hosted-now", 2)]
)
async def test_more_than_a_hundred_students_and_ten_courses_are_read_whole(
    release: str, pages: int
) -> None:
    options = {"graphql": "never"}
    async with (
        simulated(release, population=crowded(), options=options) as installation,
        talking(installation) as talk,
    ):
        users = await talk.session.list_users(position=None, limit=1000)
        courses = await talk.session.list_courses(position=None, limit=1000)
        by_course = await talk.session.fetch_enrollments_by_course(["1"])

        assert len(users.items) == 131
        assert len(courses.items) == 12
        assert len(by_course["1"]) == 130
        assert talk.called() == {USERS: pages, COURSES: 1, BY_COURSE: pages}


@pytest.mark.parametrize("release", ["oss-2024", "hosted-now"])
async def test_a_course_of_more_than_a_hundred_is_read_whole_through_graphql(release: str) -> None:
    async with (
        simulated(release, population=crowded(230, 120)) as installation,
        talking(installation) as talk,
    ):
        everything = await talk.session.list_enrollments(position=None, limit=1000)

        assert len(everything.items) == 230
        assert everything.total == 230
        # two pages of courses, and the second and third page of the first course
        assert talk.called() == {GRAPHQL: 4}


@pytest.mark.parametrize("release", RELEASES)
async def test_ids_beyond_what_a_double_holds_survive(release: str) -> None:
    async with (
        simulated(release, population=populated(shard=1000)) as installation,
        talking(installation) as talk,
    ):
        session = talk.session
        users = await all_pages(session.list_users, limit=100)
        courses = await all_pages(session.list_courses, limit=100)
        enrollments = await all_pages(session.list_enrollments, limit=100)
        cody, algebra = "10000000000000003", "10000000000000001"
        milestones = await session.fetch_milestones([(cody, algebra)])
        activity = await session.fetch_activity_by_user([cody], limit=5)
        progress = await session.fetch_progress([(cody, algebra)])

    assert cody in {user.external_id for user in users}
    assert algebra in {course.external_id for course in courses}
    assert {(row.user_id, row.course_id) for row in enrollments} >= {(cody, algebra)}
    assert int(cody) > 2**53
    assert len(milestones[cody, algebra]) == 3
    assert {each.course_id for each in activity[cody]} == {algebra}
    assert progress[cody, algebra].ratio == 1


async def test_logging_in_costs_five_calls(canvas: SimulatedInstallation) -> None:
    async with converse(canvas) as talk:
        await talk.authorization.current()

        assert talk.called() == LOGIN


# ---- users ---------------------------------------------------------------------------------


async def test_users_without_a_login_are_kept_and_emails_are_never_logins(
    talk: Conversation,
) -> None:
    page = await talk.session.list_users(position=None, limit=100)
    users = {user.external_id: user for user in page.items}

    assert users[MARIA].username is None
    assert users[MARIA].email is None
    assert (users[CHI].username, users[CHI].email) == ("CHI@canvas.test", None)
    assert (users[PRINCE].username, users[PRINCE].email) == ("prince", "not-the-login@canvas.test")
    assert {GONE, MERGED}.isdisjoint(users)
    assert users[CODY].identifiers == (
        Identifier(type=IdentifierType.SIS_ID, value="SIS-3", namespace="sis_user_id"),
        Identifier(type=IdentifierType.OTHER, value="INT-3", namespace="integration_id"),
        Identifier(type=IdentifierType.OTHER, value="user-uuid-3", namespace="uuid"),
    )


async def test_names_are_told_from_the_sortable_name(talk: Conversation) -> None:
    page = await talk.session.list_users(position=None, limit=100)
    names = {
        user.external_id: (user.display_name, user.given_name, user.family_name)
        for user in page.items
    }

    assert names[CODY] == ("Cody Houston Cutrer", "Cody Houston", "Cutrer")
    assert names[JOHN] == ("John St. Clair", "John", "St. Clair")
    assert names[MARIA] == ("María del Carmen Núñez", "María del Carmen", "Núñez")
    assert names[CHI] == ("Chi Min Ho", "Chi Min", "Ho")
    assert names[PRINCE] == ("Prince", "Prince", None)
    assert names[JEFFERSON] == ("Jefferson Cutrer IV", "Jefferson", "Cutrer")
    assert names[SPACES][1:] == ("Extra", "Spaces")
    assert names[NAMELESS] == ("", None, None)


async def test_a_user_is_the_same_one_by_one_and_listed(canvas: SimulatedInstallation) -> None:
    async with talking(canvas) as first, talking(canvas) as second:
        listed = (await first.session.list_users(position=None, limit=100)).items
        wanted = [user.external_id for user in listed][:5]

        fetched = await second.session.fetch_users([*wanted, GONE, MERGED, "987654321"])

        assert second.called() == {USER: 8}
        assert set(fetched) == set(wanted)
        assert without_times([fetched[each] for each in wanted]) == without_times(listed[:5])


async def test_a_deleted_user_that_canvas_still_shows_is_left_out(
    canvas: SimulatedInstallation,
) -> None:
    canvas.canvas.profile = replace(canvas.canvas.profile, shows_deleted_users=True)
    async with talking(canvas) as talk:
        found = await talk.session.fetch_users([CODY, GONE, MERGED])

        assert set(found) == {CODY}
        assert talk.called() == {USER: 3}


async def test_many_users_by_id_come_from_the_list(canvas: SimulatedInstallation) -> None:
    async with talking(canvas) as talk:
        wanted = [str(number) for number in range(1, 36)]
        with listening() as choices:
            found = await talk.session.fetch_users([*wanted, "987654321"])

        assert set(found) == {*wanted} - {GONE, MERGED}
        assert talk.called() == {USERS: 1}
        assert [choice.chosen for choice in choices] == ["rest list"]

        forget_shared(talk)
        talk.forget_calls()
        with listening() as choices:
            await talk.session.fetch_users([CODY, JOHN])
        assert talk.called() == {USERS: 1}
        assert choices[0].calls_by_strategy == {"rest by user": 2, "rest list": 1}


async def test_users_just_listed_are_not_asked_for_again(talk: Conversation) -> None:
    listed = (await talk.session.list_users(position=None, limit=5)).items
    talk.forget_calls()

    found = await talk.session.fetch_users([user.external_id for user in listed])

    assert without_times([found[user.external_id] for user in listed]) == without_times(listed)
    assert talk.calls == []


# ---- courses -------------------------------------------------------------------------------


async def test_a_course_says_what_canvas_knows_of_it(
    talk: Conversation, canvas: SimulatedInstallation
) -> None:
    page = await talk.session.list_courses(position=None, limit=100)
    courses = {course.external_id: course for course in page.items}

    algebra = courses[ALGEBRA]
    assert algebra.title == "Algebra"
    assert algebra.course_code == "ALG-1"
    assert algebra.description == "Numbers & letters"
    assert algebra.starts_at == datetime(2025, 1, 6, 8, tzinfo=UTC)
    assert algebra.ends_at == datetime(2025, 6, 30, tzinfo=UTC)
    assert algebra.url == f"{canvas.base_url}/courses/1"
    assert algebra.identifiers == (
        Identifier(type=IdentifierType.SIS_ID, value="SIS/ALG", namespace="sis_course_id"),
        Identifier(type=IdentifierType.OTHER, value="course-uuid-1", namespace="uuid"),
    )
    assert courses[CIVICS].ends_at == datetime(2024, 12, 20, 0, 0, 0, 500_000, tzinfo=UTC)
    assert {course_id: course.state for course_id, course in courses.items()} == {
        ALGEBRA: CourseState.ACTIVE,
        BIOLOGY: CourseState.ACTIVE,
        CHEMISTRY: CourseState.ACTIVE,
        PHYSICS: CourseState.UNKNOWN,
        CIVICS: CourseState.COMPLETED,
        DANCE: CourseState.INACTIVE,
        ETHICS: CourseState.ACTIVE,
    }


async def test_a_course_closed_by_its_dates_is_kept_with_what_is_known(talk: Conversation) -> None:
    found = await talk.session.fetch_courses([PHYSICS])

    assert found[PHYSICS].title == "Course 4, closed at present"
    assert found[PHYSICS].course_code is None
    assert found[PHYSICS].icon is None


async def test_a_deleted_course_is_left_out_whichever_way_it_is_asked_for(
    canvas: SimulatedInstallation,
) -> None:
    for wanted in ([DRAMA], [DRAMA, ALGEBRA, BIOLOGY]):
        async with talking(canvas) as talk:
            assert DRAMA not in await talk.session.fetch_courses(wanted)


async def test_courses_by_id_take_the_fewest_calls(canvas: SimulatedInstallation) -> None:
    async with talking(canvas) as talk:
        with listening() as choices:
            await talk.session.fetch_courses([ALGEBRA])
            await talk.session.fetch_courses([ALGEBRA, BIOLOGY, CHEMISTRY])

        assert talk.called() == {COURSE: 1, COURSES: 1}
        assert [choice.chosen for choice in choices] == ["rest by course", "rest list"]


# ---- enrollments ---------------------------------------------------------------------------


async def test_every_enrollment_is_there_with_its_state_and_role(talk: Conversation) -> None:
    page = await talk.session.list_enrollments(position=None, limit=100)
    rows = {(row.user_id, row.course_id, row.section_id): row for row in page.items}

    def role(user_id: str, course_id: str = ALGEBRA, section_id: str = "1") -> Role:
        return rows[user_id, course_id, section_id].role

    def state(user_id: str, course_id: str = ALGEBRA, section_id: str = "1") -> EnrollmentState:
        return rows[user_id, course_id, section_id].state

    assert role(TERESA) == Role(value=RoleValue.TEACHER, source_value="TeacherEnrollment")
    assert role(CODY) == Role(value=RoleValue.STUDENT, source_value="StudentEnrollment")
    assert role(OLGA) == Role(value=RoleValue.OBSERVER, source_value="ObserverEnrollment")
    assert role(TIM) == Role(value=RoleValue.TEACHING_ASSISTANT, source_value="Lab assistant")
    assert state(MARIA) is EnrollmentState.PENDING
    assert state(CHI) is EnrollmentState.INACTIVE
    assert state(PRINCE) is EnrollmentState.COMPLETED
    assert state(JEFFERSON) is EnrollmentState.DROPPED
    assert state(CODY, CIVICS, "7") is EnrollmentState.COMPLETED
    assert "11" not in {row.user_id for row in page.items}  # the test student
    assert (JEFFERSON, BIOLOGY, "3") not in rows  # deleted


async def test_two_sections_of_one_course_are_two_enrollments(talk: Conversation) -> None:
    found = await talk.session.fetch_enrollments_by_user([CODY])

    in_algebra = [row for row in found[CODY] if row.course_id == ALGEBRA]
    seconds = [row.progress.time_spent_seconds for row in in_algebra if row.progress]
    assert [row.section_id for row in in_algebra] == ["1", "2"]
    assert seconds == [3600, 1200]


async def test_no_score_and_no_time_are_not_zero(talk: Conversation) -> None:
    found = await talk.session.fetch_enrollments_by_user([CODY, JOHN, TERESA])

    by_course = {(row.user_id, row.course_id): row for rows in found.values() for row in rows}
    assert by_course[JOHN, ALGEBRA].progress is None
    assert by_course[CODY, BIOLOGY].progress == Progress(
        time_spent_seconds=0,
        score=Score(raw=0.0, min=0.0, max=100.0, scaled=0.0, grade="F"),
        method=ProgressMethod.REPORTED,
    )
    assert by_course[TERESA, BIOLOGY].progress == Progress(
        time_spent_seconds=0, method=ProgressMethod.REPORTED
    )


async def test_roles_can_be_mapped_by_the_provider(canvas: SimulatedInstallation) -> None:
    options = {"role.TaEnrollment": "AIDE", "role.ObserverEnrollment": "GUARDIAN"}
    async with talking(replace(canvas, options=options)) as talk:
        found = await talk.session.fetch_enrollments_by_user([TIM, OLGA])

    assert found[TIM][0].role == Role(value=RoleValue.AIDE, source_value="Lab assistant")
    assert found[OLGA][0].role.value is RoleValue.GUARDIAN


async def test_a_role_that_does_not_exist_fails_the_check(canvas: SimulatedInstallation) -> None:
    async with talking(replace(canvas, options={"role.TaEnrollment": "KING"})) as talk:
        with pytest.raises(NotSupported):
            await talk.session.check()


async def test_what_changes_at_canvas_is_seen(
    talk: Conversation, canvas: SimulatedInstallation
) -> None:
    before = (await talk.session.fetch_enrollments_by_user([CODY]))[CODY]
    row = canvas.canvas.population.enrollments[int(before[0].id)]
    row.state, row.current_score, row.updated_at = (
        "completed",
        75.0,
        "2025-03-01T00:00:00.250+01:00",
    )

    after = (await talk.session.fetch_enrollments_by_user([CODY]))[CODY]

    assert [each.id for each in after] == [each.id for each in before]
    assert after[0].state is EnrollmentState.COMPLETED
    assert after[0].progress is not None
    assert after[0].progress.score == Score(raw=75.0, min=0.0, max=100.0, scaled=0.75, grade="C")
    assert after[0].provenance.modified_at == datetime(2025, 2, 28, 23, 0, 0, 250_000, tzinfo=UTC)


@pytest.mark.parametrize(("kind", "status"), [("status", 500), ("status", 502), ("html", 200)])
async def test_a_course_that_cannot_be_read_is_an_error_and_no_gap(
    canvas: SimulatedInstallation, kind: str, status: int
) -> None:
    path = "/api/v1/courses/3/enrollments"
    canvas.canvas.fail(kind, status=status, path=path, count=9)
    async with talking(canvas) as talk:
        with pytest.raises(ProviderError):
            await talk.session.list_enrollments(position=None, limit=100)
        with pytest.raises(ProviderError):
            await talk.session.fetch_enrollments_by_course([ALGEBRA, CHEMISTRY])


async def test_no_more_than_six_calls_are_under_way(canvas: SimulatedInstallation) -> None:
    canvas.canvas.latency_seconds = 0.01
    async with talking(canvas) as talk:
        await asyncio.gather(
            talk.session.list_enrollments(position=None, limit=100),
            talk.session.fetch_enrollments_by_user([str(number) for number in range(1, 36)]),
            talk.session.fetch_sections_by_course([str(number) for number in range(1, 9)]),
        )

    assert canvas.canvas.counts.most_running <= 6
    assert canvas.canvas.counts.throttled == 0


async def test_a_walk_goes_on_where_it_was_after_it_was_interrupted(
    canvas: SimulatedInstallation,
) -> None:
    async with talking(canvas) as first, talking(canvas) as second:
        whole = await first.session.list_enrollments(position=None, limit=100)
        begun = await first.session.list_enrollments(position=None, limit=4)

        rest = await all_pages(
            second.session.list_enrollments, limit=5, position=begun.next_position
        )

        ids = [row.id for row in (*begun.items, *rest)]
        assert ids == [row.id for row in whole.items]


# ---- choosing between REST and GraphQL ------------------------------------------------------


@pytest.mark.parametrize("release", ["oss-2024", "hosted-now"])
async def test_graphql_and_rest_say_the_same(release: str) -> None:
    population = without_custom_roles(populated())
    users = [str(number) for number in range(1, 36)]
    courses = [ALGEBRA, BIOLOGY, CHEMISTRY, PHYSICS, DRAMA, CIVICS, DANCE, ETHICS, "987654321"]
    read = []
    for options in ({}, {"graphql": "never"}):
        async with (
            simulated(release, population=population, options=options) as installation,
            talking(installation) as talk,
        ):
            session = talk.session
            listed = await session.list_enrollments(position=None, limit=100)
            by_user = await session.fetch_enrollments_by_user(users)
            by_course = await session.fetch_enrollments_by_course(courses)
            read.append(
                (
                    without_times(listed.items),
                    {user: without_times(rows) for user, rows in by_user.items()},
                    {course: without_times(rows) for course, rows in by_course.items()},
                )
            )
            uses_graphql = talk.called()[GRAPHQL] > 0
            assert uses_graphql == (not options)

    assert read[0] == read[1]


def chosen(choices: list[Choice]) -> tuple[str, Mapping[str, int]]:
    (choice,) = choices
    return choice.chosen, choice.calls_by_strategy


@pytest.fixture(scope="module")
def large() -> Population:
    return build_large_population()


async def test_a_large_account_is_read_in_few_calls(large: Population) -> None:
    hundred = [str(number) for number in range(2000, 2100)]
    async with simulated(population=large) as installation, talking(installation) as talk:
        session = talk.session
        courses = await session.list_courses(position=None, limit=10_000)
        assert (len(courses.items), talk.called()) == (1000, {COURSES: 10})

        talk.forget_calls()
        with listening() as choices:
            everything = await session.list_enrollments(position=None, limit=100_000)
        assert (len(everything.items), talk.called()) == (60_000, {GRAPHQL: 10})
        assert chosen(choices) == (
            "graphql by account",
            {"rest by course": 1010, "graphql by account": 10},
        )

        talk.forget_calls()
        with listening() as choices:
            by_user = await session.fetch_enrollments_by_user(hundred)
        assert (len(by_user), talk.called()) == (100, {GRAPHQL: 5})
        assert chosen(choices) == (
            "graphql by user",
            {
                "rest by user": 100,
                "rest by course": 1010,
                "graphql by user": 5,
                "graphql by account": 10,
            },
        )

        talk.forget_calls()
        with listening() as choices:
            by_course = await session.fetch_enrollments_by_course(hundred_courses())
        assert (len(by_course), talk.called()) == (100, {GRAPHQL: 1})
        assert chosen(choices)[0] == "graphql by course ids"

        expected = [row for row in everything.items if row.user_id in set(hundred)]
        from_users = sorted((row.id for rows in by_user.values() for row in rows), key=int)
        assert from_users == sorted((row.id for row in expected), key=int)
        assert installation.canvas.counts.throttled == 0


def hundred_courses() -> list[str]:
    return [str(number) for number in range(1, 101)]


async def test_all_users_of_a_large_account_take_a_hundred_calls(large: Population) -> None:
    async with simulated(population=large) as installation, talking(installation) as talk:
        users = await talk.session.list_users(position=None, limit=10_000)

        assert (len(users.items), talk.called()) == (10_000, {USERS: 100})
        assert installation.canvas.counts.throttled == 0


@pytest.mark.parametrize("release", ["oss-2024", "hosted-now"])
async def test_a_canvas_that_hides_courses_by_id_from_admins_is_asked_otherwise(
    release: str,
) -> None:
    async with simulated(release, population=crowded(30, 30)) as installation:
        canvas = installation.canvas
        canvas.profile = replace(canvas.profile, graphql_courses_serve_admins=False)
        wanted = [str(number) for number in range(1, 26)]
        async with talking(installation) as talk:
            with listening() as choices:
                first = await talk.session.fetch_enrollments_by_course(wanted)
                second = await talk.session.fetch_enrollments_by_course(wanted)

            assert set(first) == set(second) == set(wanted)
            assert len(first["1"]) == 30
            assert [
                choice.calls_by_strategy.get("graphql by course ids") for choice in choices
            ] == [
                1,
                None,
            ]


async def test_an_old_release_is_read_through_rest(large: Population) -> None:
    async with (
        simulated("oss-2019", population=large) as installation,
        talking(installation) as talk,
    ):
        with listening() as choices:
            await talk.session.fetch_enrollments_by_user(["2000", "2001"])

        assert talk.called() == {BY_USER: 2}
        assert choices[0].reason == "This Canvas's GraphQL lacks what is needed"


async def test_custom_roles_keep_enrollments_off_graphql(talk: Conversation) -> None:
    with listening() as choices:
        await talk.session.fetch_enrollments_by_course([ALGEBRA, BIOLOGY])

    assert talk.called() == {BY_COURSE: 2}
    assert choices[0].reason in {
        "The account has custom roles, whose names GraphQL does not tell",
        "This Canvas's GraphQL lacks what is needed",
    }


@pytest.mark.parametrize("kind", ["html", "truncated", "status"])
async def test_rest_serves_where_graphql_fails(kind: str) -> None:
    population = without_custom_roles(populated())
    async with simulated(population=population) as installation, talking(installation) as talk:
        status = {"status": 403} if kind == "status" else {}
        installation.canvas.fail(kind, path="/api/graphql", **status)
        with listening() as choices:
            page = await talk.session.list_enrollments(position=None, limit=100)
            again = await talk.session.list_enrollments(position=None, limit=100)

        assert len(page.items) == len(again.items) == 17
        assert [choice.chosen for choice in choices] == [
            "graphql by account",
            "rest by course",
            "rest by course",
        ]
        assert choices[1].reason is not None
        assert talk.called()[GRAPHQL] == 1


# ---- progress, work, sections, activity -----------------------------------------------------


async def test_progress_is_how_many_requirements_are_met(talk: Conversation) -> None:
    found = await talk.session.fetch_progress(
        [(CODY, ALGEBRA), (JOHN, ALGEBRA), (TERESA, ALGEBRA), (CODY, BIOLOGY), (CODY, "987654321")]
    )

    assert found == {
        (CODY, ALGEBRA): Progress(
            ratio=1.0,
            completed_count=4,
            total_count=4,
            completed=True,
            completed_at=datetime(2025, 2, 4, 10, tzinfo=UTC),
            method=ProgressMethod.REPORTED,
        ),
        (JOHN, ALGEBRA): Progress(
            ratio=0.25,
            completed_count=1,
            total_count=4,
            completed=False,
            method=ProgressMethod.REPORTED,
        ),
    }


@pytest.mark.parametrize(
    ("pairs", "calls"),
    [
        ([(CODY, ALGEBRA)], {"GET /api/v1/courses/{id}/users/{id}/progress": 1}),
        (
            [(CODY, ALGEBRA), (JOHN, ALGEBRA)],
            {"GET /api/v1/courses/{id}/bulk_user_progress": 1},
        ),
        ([(CODY, ALGEBRA), (CODY, BIOLOGY)], {"GET /api/v1/users/{id}/courses": 1}),
    ],
)
async def test_progress_takes_the_fewest_calls(
    talk: Conversation, pairs: list[tuple[str, str]], calls: Mapping[str, int]
) -> None:
    found = await talk.session.fetch_progress(pairs)

    assert found[CODY, ALGEBRA].ratio == 1
    assert talk.called() == calls


async def test_a_release_without_resources_for_progress_is_asked_by_user(
    canvas: SimulatedInstallation,
) -> None:
    canvas.canvas.profile = replace(canvas.canvas.profile, progress_resources=False)
    async with talking(canvas) as talk:
        first = await talk.session.fetch_progress([(CODY, ALGEBRA)])
        second = await talk.session.fetch_progress([(CODY, ALGEBRA)])

        assert first[CODY, ALGEBRA].ratio == second[CODY, ALGEBRA].ratio == 1
        assert talk.called() == {
            "GET /api/v1/courses/{id}/users/{id}/progress": 1,
            "GET /api/v1/users/{id}/courses": 2,
        }


async def test_milestones_are_those_of_the_students_asked_for(
    talk: Conversation, canvas: SimulatedInstallation
) -> None:
    found = await talk.session.fetch_milestones(
        [(CODY, ALGEBRA), (JOHN, ALGEBRA), (TERESA, ALGEBRA), (CODY, "987654321")]
    )

    def shown(milestone: Milestone) -> tuple[str | None, MilestoneState, bool | None, bool | None]:
        return milestone.title, milestone.state, milestone.late, milestone.missing

    assert set(found) == {(CODY, ALGEBRA), (JOHN, ALGEBRA), (TERESA, ALGEBRA)}
    assert [shown(milestone) for milestone in found[CODY, ALGEBRA]] == [
        ("Test 1", MilestoneState.GRADED, False, False),
        ("Test 2", MilestoneState.SUBMITTED, True, False),
        ("Test 3", MilestoneState.IN_REVIEW, False, False),
    ]
    assert [shown(milestone) for milestone in found[JOHN, ALGEBRA]] == [
        ("Test 1", MilestoneState.OPEN, False, True),
        ("Test 2", MilestoneState.EXCUSED, False, False),
    ]
    assert found[TERESA, ALGEBRA] == []
    first = found[CODY, ALGEBRA][0]
    assert first.score == Score(raw=9.0, min=0.0, max=10.0, scaled=0.9)
    assert first.submitted_at == datetime(2025, 2, 1, 10, tzinfo=UTC)
    assert first.graded_at == datetime(2025, 2, 2, 10, tzinfo=UTC)
    queries = [row.query for row in canvas.canvas.counts.log if "submissions" in row.path]
    assert queries == ["student_ids%5B%5D=2&student_ids%5B%5D=3&student_ids%5B%5D=4&per_page=100"]
    assert talk.called() == {
        "GET /api/v1/courses/{id}/assignments": 2,
        "GET /api/v1/courses/{id}/students/submissions": 1,
    }


async def test_marks_given_after_the_last_look_are_seen(
    talk: Conversation, canvas: SimulatedInstallation
) -> None:
    before = (await talk.session.fetch_milestones([(CODY, ALGEBRA)]))[CODY, ALGEBRA][1]
    row = canvas.canvas.population.submissions[int(before.external_id)]
    row.workflow_state, row.score, row.graded_at = "graded", 7.0, "2025-04-01T10:00:00Z"

    after = (await talk.session.fetch_milestones([(CODY, ALGEBRA)]))[CODY, ALGEBRA][1]

    assert after.external_id == before.external_id
    assert (before.state, after.state) == (MilestoneState.SUBMITTED, MilestoneState.GRADED)
    assert after.submitted_at == before.submitted_at
    assert after.score is not None
    assert after.score.raw == 7.0


async def test_milestones_come_in_the_order_in_which_they_are_due(
    talk: Conversation, canvas: SimulatedInstallation
) -> None:
    first, second, third = canvas.canvas.population.assignments.values()
    second.due_at, first.due_at = "2025-01-01T00:00:00-07:00", "2025-01-01T06:00:00Z"

    found = (await talk.session.fetch_milestones([(CODY, ALGEBRA)]))[CODY, ALGEBRA]

    assert [milestone.title for milestone in found] == [first.name, second.name, third.name]
    assert found[1].due_at == datetime(2025, 1, 1, 7, tzinfo=UTC)


@pytest.mark.parametrize("release", RELEASES)
async def test_the_work_of_many_students_is_asked_for_in_short_addresses(release: str) -> None:
    population = crowded(60, 1)
    (course,) = population.courses.values()
    assignment = population.add_assignment(course, "Essay")
    students = [user for user in population.users.values() if not user.is_admin]
    for user in students:
        population.add_submission(assignment, user)
    async with (
        simulated(release, population=population) as installation,
        talking(installation) as talk,
    ):
        found = await talk.session.fetch_milestones([(str(user.id), "1") for user in students])

        assert [len(rows) for rows in found.values()] == [1] * 60
        queries = [row.query for row in installation.canvas.counts.log]
        assert max(map(len, queries)) < 1100


async def test_sections_come_by_title(talk: Conversation) -> None:
    found = await talk.session.fetch_sections_by_course([ALGEBRA, ETHICS, "987654321"])

    assert {course: [each.title for each in sections] for course, sections in found.items()} == {
        ALGEBRA: ["Algebra", "Algebra, evening"],
        ETHICS: ["Empty ethics"],
    }
    assert found[ALGEBRA][1].identifiers == (
        Identifier(type=IdentifierType.SIS_ID, value="SEC-EVE", namespace="sis_section_id"),
    )
    assert talk.called() == {"GET /api/v1/courses/{id}/sections": 3}


async def test_activity_is_the_latest_page_views(talk: Conversation) -> None:
    found = await talk.session.fetch_activity_by_user([CODY, JOHN, "987654321"], limit=2)

    assert set(found) == {CODY, JOHN}
    assert [each.at.day for each in found[CODY]] == [3, 2]
    assert {(each.course_id, each.kind, each.seconds) for each in found[CODY]} == {
        (ALGEBRA, "page_view", 30.5)
    }
    assert found[JOHN] == []


# ---- for users -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["user", "masquerade"])
async def test_a_user_reads_as_themself(canvas: SimulatedInstallation, kind: str) -> None:
    async with talking_as(canvas, CODY, kind=kind) as talk:
        session = talk.session
        users = await session.list_users(position=None, limit=100)
        courses = await session.list_courses(position=None, limit=100)
        enrollments = await session.list_enrollments(position=None, limit=100)
        by_user = await session.fetch_enrollments_by_user([CODY, JOHN])
        others = await session.fetch_users([CODY, JOHN])

    assert [user.external_id for user in users.items] == [CODY]
    assert {course.external_id: course.title for course in courses.items} == {
        ALGEBRA: "Algebra",  # and not the user's own name for it
        BIOLOGY: "Biology",
        CIVICS: "Concluded civics",
    }
    assert [(row.course_id, row.section_id) for row in enrollments.items] == [
        (ALGEBRA, "1"),
        (ALGEBRA, "2"),
        (BIOLOGY, "3"),
        (CIVICS, "7"),
    ]
    assert {user: len(rows) for user, rows in by_user.items()} == {CODY: 4}
    assert set(others) == {CODY}
    identities = {row.identity for row in canvas.canvas.counts.log}
    assert len(identities) == 1
    assert talk.authorization.logins == 0


async def test_what_one_user_may_not_see_another_ones_session_does_not_show(
    canvas: SimulatedInstallation,
) -> None:
    course_of(canvas, BIOLOGY).restricted = "members"
    async with (
        talking(canvas) as service,
        talking_as(canvas, TERESA) as teacher,
        talking_as(canvas, CODY) as student,
        talking_as(canvas, OLGA) as stranger,
    ):
        titles = []
        for talk in (service, teacher, student, stranger):
            found = await talk.session.fetch_courses([BIOLOGY])
            titles.append(found[BIOLOGY].title if found else None)

    assert titles == ["Biology", "Biology", "Course 2, closed at present", None]


async def test_a_user_sees_of_a_course_what_they_may(canvas: SimulatedInstallation) -> None:
    canvas.canvas.profile = replace(canvas.canvas.profile, students_read_roster=False)
    async with talking_as(canvas, CODY) as student, talking_as(canvas, TERESA) as teacher:
        own = await student.session.fetch_enrollments_by_course([ALGEBRA, CHEMISTRY])
        whole = await teacher.session.fetch_enrollments_by_course([ALGEBRA])

    assert {row.user_id for row in own[ALGEBRA]} == {CODY}
    assert CHEMISTRY not in own
    assert len({row.user_id for row in whole[ALGEBRA]}) == 9


async def test_a_users_progress_in_several_courses_is_one_call(
    canvas: SimulatedInstallation,
) -> None:
    async with talking_as(canvas, CODY) as talk:
        found = await talk.session.fetch_progress([(CODY, ALGEBRA), (CODY, BIOLOGY)])

        assert set(found) == {(CODY, ALGEBRA)}
        assert talk.called() == {"GET /api/v1/courses": 1}


async def test_a_users_own_work_is_read(canvas: SimulatedInstallation) -> None:
    async with talking_as(canvas, CODY) as talk:
        found = await talk.session.fetch_milestones([(CODY, ALGEBRA), (JOHN, CHEMISTRY)])

        assert {pair: len(rows) for pair, rows in found.items()} == {(CODY, ALGEBRA): 3}


async def test_a_user_must_authorise_the_gateway_themself(canvas: SimulatedInstallation) -> None:
    async with converse(canvas, subject=Subject.parse(f"user:{CODY}")) as talk:
        with pytest.raises(ReauthRequired):
            await talk.session.list_courses(position=None, limit=10)

        assert talk.calls == []


async def test_a_user_authorises_reads_renews_and_ends(canvas: SimulatedInstallation) -> None:
    credentials = Secret(canvas.credentials)
    verifier = "v" * 64
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest())
    redirect_uri = "http://127.0.0.1/oauth/callback"
    request = CodeRequest(
        redirect_uri=redirect_uri, state="s", code_challenge=challenge.decode().rstrip("=")
    )
    canvas.canvas.signed_in = int(CODY)
    async with converse(canvas, subject=Subject.parse(f"user:{CODY}")) as talk:
        session, authorization = talk.session, talk.authorization
        async with httpx.AsyncClient() as browser:
            sent_back = await browser.get(session.authorization_url(request, credentials))
        code = parse_qs(urlsplit(sent_back.headers["location"]).query)["code"][0]

        authorized = await session.redeem(
            Code(code=Secret(code), redirect_uri=redirect_uri, verifier=Secret(verifier)),
            credentials,
        )
        first = authorization.store(authorized.grant)
        courses = await session.list_courses(position=None, limit=100)
        canvas.canvas.clock.advance(60)
        second = authorization.store(await session.renew(first, credentials))
        enrollments = await session.list_enrollments(position=None, limit=100)
        await session.log_out(NewGrant(secret=second.secret))

        assert authorized.user_id == CODY
        assert session.can_renew(second)
        assert (len(courses.items), len(enrollments.items)) == (3, 4)
        with pytest.raises(SessionLost):
            await session.keep_alive(second)


async def test_a_user_is_enrolled_and_the_enrollment_ended(canvas: SimulatedInstallation) -> None:
    async with talking(canvas) as talk:
        session = talk.session
        user = await session.create_user(NewUser(username="new", display_name="New User"))
        user_id = user.record.external_id
        login = await session.create_login(NewLogin(user_id=user_id, username="second"))
        enrolled = await session.enroll(NewEnrollment(user_id=user_id, course_id=ETHICS))
        ended = await session.end_enrollment(
            (user_id, ETHICS), enrolled.record.id, EnrollmentEnding.CONCLUDE
        )
        found = await session.fetch_enrollments_by_user([user_id])

    assert (user.created, login.created, enrolled.created, ended.created) == (True,) * 4
    assert enrolled.record.state is EnrollmentState.ACTIVE
    assert [row.state for row in found[user_id]] == [EnrollmentState.COMPLETED]


async def test_acting_as_nobody_is_refused(canvas: SimulatedInstallation) -> None:
    async with talking_as(canvas, "987654321", kind="masquerade") as talk:
        with pytest.raises(ProviderForbidden, match="Invalid as_user_id"):
            await talk.session.list_users(position=None, limit=1)


# ---- permissions, scopes, checks -----------------------------------------------------------


async def test_a_check_names_the_account(talk: Conversation) -> None:
    check = await talk.session.check()

    assert check.version == "unknown"
    assert check.name == "Simulated"
    assert check.missing == ()


async def test_a_token_that_may_not_list_users_fails_the_check_and_is_not_renewed(
    canvas: SimulatedInstallation,
) -> None:
    token = canvas.canvas.issue_token(int(TERESA))
    credentials = {**canvas.credentials, "api_key": token}
    async with converse(canvas, credentials=credentials) as talk:
        with pytest.raises(ProviderForbidden):
            await talk.session.check()
        with pytest.raises(ProviderForbidden):
            await talk.session.list_users(position=None, limit=10)

        assert talk.authorization.logins == 1


async def test_a_scoped_token_lacks_what_is_included_and_that_is_no_error(
    canvas: SimulatedInstallation,
) -> None:
    scopes = frozenset(
        {
            "url:GET|/api/v1/users/:id",
            "url:GET|/api/v1/accounts/:id",
            "url:GET|/api/v1/accounts/:account_id/users",
            "url:GET|/api/v1/accounts/:account_id/courses",
            "url:GET|/api/v1/courses/:course_id/enrollments",
        }
    )
    token = canvas.canvas.issue_token(int(ADA), scopes=scopes)
    credentials = {**canvas.credentials, "api_key": token}
    async with converse(canvas, credentials=credentials) as talk:
        check = await talk.session.check()
        users = await talk.session.list_users(position=None, limit=100)
        courses = await talk.session.list_courses(position=None, limit=100)
        enrollments = await talk.session.list_enrollments(position=None, limit=100)
        with pytest.raises(ProviderForbidden, match="scopes are not enough"):
            await talk.session.fetch_sections_by_course([ALGEBRA])

    assert {user.email for user in users.items} == {None}
    assert {course.description for course in courses.items} == {None}
    assert {course.icon for course in courses.items} == {None}
    assert len(enrollments.items) == 17
    assert check.missing == ("Users - view primary email address: without it users have no email",)


@pytest.mark.parametrize("address", ["{}/", "{}/api/v1", "{}/api/v1/"])
async def test_the_address_may_be_written_in_several_ways(
    canvas: SimulatedInstallation, address: str
) -> None:
    async with talking(replace(canvas, base_url=address.format(canvas.base_url))) as talk:
        found = await talk.session.list_courses(position=None, limit=2)

    assert found.items[0].url == f"{canvas.base_url}/courses/1"
    assert found.next_position is not None


async def test_an_account_that_does_not_exist_is_told(canvas: SimulatedInstallation) -> None:
    async with converse(replace(canvas, account_id="987654321")) as talk:
        with pytest.raises(ReauthRequired, match="no such account"):
            await talk.authorization.current()


# ---- a wire that misbehaves ----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["html", "login"])
async def test_a_login_page_instead_of_the_api_is_told(
    canvas: SimulatedInstallation, kind: str
) -> None:
    canvas.canvas.fail(kind, path="/api/v1/users/self")
    async with converse(canvas) as talk:
        with pytest.raises(ProviderBadResponse, match="not a Canvas API"):
            await talk.authorization.current()

        assert len(talk.calls) == 1


@pytest.mark.parametrize("status", [500, 502, 503])
async def test_an_outage_is_an_outage_and_not_an_empty_list(
    canvas: SimulatedInstallation, status: int
) -> None:
    async with talking(canvas) as talk:
        canvas.canvas.fail("status", status=status, path="/api/v1/", count=99)
        for read in (talk.session.list_users, talk.session.list_courses):
            with pytest.raises(ProviderUnavailable):
                await read(position=None, limit=10)
        with pytest.raises(ProviderUnavailable):
            await talk.session.fetch_enrollments_by_user([CODY])


@pytest.mark.parametrize(("release", "status"), [("oss-2019", 403), ("hosted-now", 429)])
async def test_being_throttled_loses_neither_the_call_nor_the_session(
    release: str, status: int
) -> None:
    async with simulated(release) as installation, talking(installation) as talk:
        installation.canvas.fail("throttled", path="/api/v1/accounts", count=1)
        users = await talk.session.list_users(position=None, limit=100)

        assert len(users.items) == 33
        assert [call.status for call in talk.calls] == [status, 200]
        assert talk.authorization.logins == 1


async def test_a_list_that_goes_on_elsewhere_is_refused_and_elsewhere_learns_nothing(
    canvas: SimulatedInstallation,
) -> None:
    elsewhere = Canvas(populated())
    async with running(elsewhere) as url, talking(canvas) as talk:
        canvas.canvas.link_origin = url
        with pytest.raises(ProviderBadResponse, match="not this Canvas"):
            await talk.session.list_users(position=None, limit=5)
        with pytest.raises(ProviderBadResponse, match="not this Canvas"):
            await talk.session.list_courses(position=None, limit=1)

    assert elsewhere.counts.total() == 0
    assert elsewhere.counts.log == []


async def test_a_list_behind_a_proxy_goes_on_at_our_own_address(
    canvas: SimulatedInstallation,
) -> None:
    inside = "http://canvas.internal:3000"
    canvas.canvas.link_origin = inside
    async with talking(replace(canvas, options={"link_origin": inside})) as talk:
        users = await all_pages(talk.session.list_users, limit=7)

    assert len(users) == 33


async def test_pages_that_lead_in_a_circle_are_refused(canvas: SimulatedInstallation) -> None:
    async with talking(canvas) as talk:
        canvas.canvas.fail("loop", path="/api/v1/courses/1/enrollments", count=99)
        with pytest.raises(ProviderBadResponse, match="circle"):
            await talk.session.fetch_enrollments_by_course([ALGEBRA])

        assert len(talk.calls) <= 3


async def test_a_bookmark_that_leads_back_is_refused(canvas: SimulatedInstallation) -> None:
    async with talking(canvas) as talk:
        canvas.canvas.fail("loop", path="/api/v1/accounts/self/users", count=99)
        with pytest.raises(ProviderBadResponse, match="circle"):
            await talk.session.list_users(position=None, limit=100)


async def test_a_full_page_without_links_is_refused(canvas: SimulatedInstallation) -> None:
    async with talking(canvas) as talk:
        canvas.canvas.fail("no-next", path="/api/v1/accounts/self/users")
        with pytest.raises(ProviderBadResponse, match="did not say what follows"):
            await talk.session.list_users(position=None, limit=10)


async def test_a_broken_body_is_a_bad_response(canvas: SimulatedInstallation) -> None:
    async with talking(canvas) as talk:
        canvas.canvas.fail("truncated", path="/api/v1/accounts/self/users")
        with pytest.raises(ProviderBadResponse, match="not JSON"):
            await talk.session.list_users(position=None, limit=10)


async def test_a_token_that_ends_between_two_pages_does_not_end_the_walk(
    canvas: SimulatedInstallation,
) -> None:
    async with talking(canvas) as talk:
        first = await talk.session.list_users(position=None, limit=10)
        await canvas.lose_sessions()
        rest = await all_pages(talk.session.list_users, limit=10, position=first.next_position)

        assert len({user.external_id for user in (*first.items, *rest)}) == 33
        assert talk.authorization.logins == 2


@pytest.mark.parametrize("position", ["nonsense", "@x", "12"])
async def test_a_position_of_another_list_is_refused(talk: Conversation, position: str) -> None:
    with pytest.raises(ProviderBadResponse):
        await talk.session.list_users(position=position, limit=10)
    with pytest.raises(ProviderBadResponse):
        await talk.session.list_enrollments(position=position, limit=10)

    assert talk.calls == []


# ---- places in lists that change -------------------------------------------------------------

TITLES = (
    "Zoology",
    "algebra",
    "Botany",
    "Drama",
    "drama",
    "Ethics",
    "Física",
    "Geometry",
    "History",
)


def titled(count: int = 45) -> Population:
    """Courses with equal and unequal titles, none in order."""
    population = Population()
    population.add_user("Ada Admin", "ada", is_admin=True)
    for number in range(count):
        population.add_course(f"{TITLES[number * 7 % len(TITLES)]} {number % 4}", f"C{number}")
    return population


def by_title(population: Population) -> list[str]:
    living = [row for row in population.courses.values() if row.workflow_state != "deleted"]
    return [str(row.id) for row in sorted(living, key=lambda row: (row.name.casefold(), row.id))]


def in_order(order: ListOrder | None, session: ProviderSession) -> Callable[..., Any]:
    return session.list_courses if order is None else partial(session.list_sorted_courses, order)


async def behind_rows(
    read: Callable[..., Any],
    *,
    limit: int,
    between: Callable[[int], None] = lambda _page: None,
    given: int = 1000,
) -> list[str]:
    """Follow the positions behind rows, at most so many rows a page; ``between`` changes things."""
    ids: list[str] = []
    position = None
    for number in range(1000):
        page = await read(position=position, limit=limit)
        assert len(page.items) == len(page.positions) <= limit
        shown = page.items[:given]
        ids += [course.external_id for course in shown]
        if len(shown) == len(page.items) and page.next_position is None:
            return ids
        position = page.positions[len(shown) - 1]
        between(number)
    pytest.fail("The pages have no end")


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("limit", [1, 7, 45, 100])
async def test_courses_come_by_title_as_canvas_compares_them(release: str, limit: int) -> None:
    async with simulated(release, population=titled()) as canvas, talking(canvas) as talk:
        rising = in_order(ListOrder.COURSES_BY_TITLE, talk.session)
        falling = in_order(ListOrder.COURSES_BY_TITLE_DESCENDING, talk.session)
        ids = [course.external_id for course in await all_pages(rising, limit=limit)]
        back = await behind_rows(falling, limit=limit)

    assert ids == by_title(canvas.canvas.population)
    assert back == ids[::-1]


async def test_a_walk_behind_rows_costs_few_calls_more_than_one_by_number() -> None:
    async with simulated(population=titled(1000)) as canvas, talking(canvas) as talk:
        read = in_order(ListOrder.COURSES_BY_TITLE, talk.session)
        whole = await behind_rows(read, limit=100)
        in_hundreds = talk.called()[COURSES]
        talk.forget_calls()
        await behind_rows(read, limit=50)
        in_fifties = talk.called()[COURSES]

    assert whole == by_title(canvas.canvas.population)
    assert (in_hundreds, in_fifties) == (12, 20)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("order", [None, ListOrder.COURSES_BY_TITLE])
@pytest.mark.parametrize(("limit", "given"), [(4, 9), (10, 3), (100, 20)])
async def test_courses_that_come_and_go_between_two_pages_hide_and_double_none(
    release: str, order: ListOrder | None, limit: int, given: int
) -> None:
    population = titled(60)
    staying = (
        by_title(population) if order else [str(row.id) for row in population.courses.values()]
    )
    courses = [population.courses[int(id_)] for id_ in staying]
    gone, renamed = courses[2:60:9], courses[7:60:11]

    def change(page: int) -> None:
        if page < len(gone):
            gone[page].workflow_state = "deleted"
            population.add_course(f"Aardvarks {page}", f"A{page}")
        elif page < len(gone) + len(renamed):
            renamed[page - len(gone)].name = "Botany 9"

    async with simulated(release, population=population) as canvas, talking(canvas) as talk:
        found = await behind_rows(
            in_order(order, talk.session), limit=limit, between=change, given=given
        )

    touched = {str(row.id) for row in (*gone, *renamed)}
    times = Counter(found)
    assert {id_: times[id_] for id_ in staying if id_ not in touched} == {
        id_: 1 for id_ in staying if id_ not in touched
    }


async def test_a_users_own_courses_have_positions_and_no_order_of_ours(
    canvas: SimulatedInstallation,
) -> None:
    async with talking_as(canvas, CODY) as talk:
        whole = await talk.session.list_courses(position=None, limit=100)
        found = await behind_rows(talk.session.list_courses, limit=1)
        with pytest.raises(NotSupported, match="courses by title"):
            await talk.session.list_sorted_courses(
                ListOrder.COURSES_BY_TITLE, position=None, limit=10
            )

    assert found == [course.external_id for course in whole.items]


async def test_users_come_in_no_order_of_ours(talk: Conversation) -> None:
    with pytest.raises(NotSupported):
        await talk.session.list_sorted_users(ListOrder.USERS_BY_USERNAME, position=None, limit=10)
    with pytest.raises(NotSupported):
        await talk.session.list_sorted_courses(ListOrder.USERS_BY_USERNAME, position=None, limit=10)

    assert talk.calls == []


async def test_every_enrollment_has_a_position_behind_it(talk: Conversation) -> None:
    whole = await talk.session.list_enrollments(position=None, limit=100)

    behind = await talk.session.list_enrollments(position=whole.positions[4], limit=100)

    assert [row.id for row in behind.items] == [row.id for row in whole.items[5:]]


# ---- images --------------------------------------------------------------------------------


async def test_an_image_is_fetched_from_where_it_is_now_and_as_a_stranger(
    talk: Conversation, canvas: SimulatedInstallation
) -> None:
    page = await talk.session.list_courses(position=None, limit=100)
    icon = next(course.icon for course in page.items if course.external_id == ALGEBRA)
    assert icon is not None
    talk.forget_calls()

    content = await talk.session.fetch_file(icon.reference, max_bytes=10_000)
    assert content.startswith(b"\x89PNG")
    assert icon.reference == "course-image/1"
    assert talk.called() == {"GET (download)": 1}
    assert canvas.canvas.counts.image_calls == 1
    assert canvas.canvas.counts.image_calls_with_authorization == 0


async def test_an_images_address_is_asked_for_when_it_is_not_known(
    talk: Conversation, canvas: SimulatedInstallation
) -> None:
    await talk.session.fetch_file("course-image/1", max_bytes=10_000)
    await talk.session.fetch_file("course-image/1", max_bytes=10_000)

    assert talk.called() == {COURSE: 1, "GET (download)": 2}
    assert canvas.canvas.counts.image_calls_with_authorization == 0


async def test_an_image_on_canvas_itself_is_fetched_without_the_token(
    talk: Conversation, canvas: SimulatedInstallation
) -> None:
    course_of(canvas, BIOLOGY).image = f"{canvas.base_url}/api/v1/users/self"

    with pytest.raises(ProviderBadResponse):
        await talk.session.fetch_file(f"course-image/{BIOLOGY}", max_bytes=10_000)

    assert [row.identity for row in canvas.canvas.counts.log][-1].startswith("ip:")


@pytest.mark.parametrize(
    ("image", "error"),
    [
        ("http://169.254.169.254/latest/meta-data", ProviderAddressRefused),
        ("http://10.0.0.1/image.png", ProviderAddressRefused),
        ("file:///etc/passwd", ProviderBadResponse),
        ("http://[", ProviderBadResponse),
        (None, ProviderBadResponse),
    ],
)
async def test_an_image_that_is_nowhere_to_go_is_refused(
    talk: Conversation,
    canvas: SimulatedInstallation,
    image: str | None,
    error: type[ProviderError],
) -> None:
    course_of(canvas, BIOLOGY).image = image

    with pytest.raises(error):
        await talk.session.fetch_file(f"course-image/{BIOLOGY}", max_bytes=10_000)


class OneSession:
    """What lends sessions to icons."""

    def __init__(self, talk: Conversation) -> None:
        self.talk = talk

    @asynccontextmanager
    async def session(
        self, provider_id: str, subject: str = SERVICE, /
    ) -> AsyncIterator[ProviderSession]:
        assert (provider_id, subject) == ("7", SERVICE)
        yield self.talk.session

    async def list_statuses(self, **_filters: object) -> Sequence[SessionStatus]:
        return []

    def health(self, _provider_id: str, /) -> None:
        return None


async def test_a_courses_image_becomes_an_icon_that_outlives_its_signature(
    canvas: SimulatedInstallation, sqlite_database: Database, tmp_path: Path
) -> None:
    store = MediaStore(sqlite_database, tmp_path / "media")
    limits = IconLimits(patience_seconds=60)
    async with talking(canvas) as talk:
        sessions = OneSession(talk)
        async with open_icons(
            sessions=sessions, store=store, public_url="", limits=limits
        ) as icons:
            before = await talk.session.fetch_courses([ALGEBRA])
            urls = await icons.urls([(before[ALGEBRA], 256)])
            canvas.canvas.clock.advance(30 * 86_400)
            forget_shared(talk)
            after = await talk.session.fetch_courses([ALGEBRA])
            again = await icons.urls([(after[ALGEBRA], 256)])

    assert urls == again
    assert urls[0] is not None
    assert canvas.canvas.counts.image_calls == 1


@pytest.mark.parametrize(
    "reference", ["/files/1/image.png", "course-image/", "course-image/987654321"]
)
async def test_only_course_images_are_files(talk: Conversation, reference: str) -> None:
    with pytest.raises(ProviderBadResponse):
        await talk.session.fetch_file(reference, max_bytes=10_000)


async def test_an_icons_version_changes_with_the_image_and_not_with_its_signature(
    talk: Conversation, canvas: SimulatedInstallation
) -> None:
    async def version() -> str | None:
        forget_shared(talk)
        found = await talk.session.fetch_courses([BIOLOGY])
        icon = found[BIOLOGY].icon
        return None if icon is None else icon.version

    versions = []
    for image in (
        "http://a.example/1.png?sig=1",
        "http://a.example/1.png?sig=2",
        "http://a.example/2.png",
    ):
        course_of(canvas, BIOLOGY).image = image
        versions.append(await version())

    assert versions[0] == versions[1] != versions[2]
