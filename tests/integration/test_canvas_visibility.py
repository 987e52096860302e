"""What one user's token sees is never served to another, whatever each of them may see."""

import asyncio
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from user_sessions import Lab, canvas_lab

from sessions.manager import SessionManager
from sessions.platforms.canvas import PLATFORM
from simulators.canvas.app import running_in_thread
from simulators.canvas.population import Population
from simulators.canvas.state import Canvas
from storage.credentials import KeyRing
from storage.database import open_database

ROLES = ("StudentEnrollment", "TeacherEnrollment", "TaEnrollment", "ObserverEnrollment")
STATES = ("active", "invited", "completed", "inactive", "deleted", "rejected")


@st.composite
def populations(draw: st.DrawFn) -> Population:
    """An admin and four users, each somehow in some of four courses that may be hidden."""
    people = Population()
    people.add_user("Ada Admin", "ada", is_admin=True)
    users = [
        people.add_user(f"Person P{number}", f"p{number}", email=f"p{number}@canvas.test")
        for number in range(4)
    ]
    for number in range(4):
        course = people.add_course(
            f"Title T{number}",
            f"CODE-{number}",
            restricted=draw(st.sampled_from(("", "", "members", "everyone"))),
            workflow_state=draw(st.sampled_from(("available", "available", "claimed", "deleted"))),
        )
        section = people.sections_by_course[course.id][0]
        for user in users:
            role = draw(st.sampled_from((None, *ROLES)))
            if role is not None:
                people.add_enrollment(user, section, type=role, state=draw(st.sampled_from(STATES)))
                if draw(st.booleans()):
                    course.nicknames[user.id] = f"Nickname N{number}U{user.id}"
    return people


@dataclass
class Seen:
    """What somebody was told, by id."""

    courses: dict[str, str] = field(default_factory=dict)
    enrollments: dict[str, set[str]] = field(default_factory=dict)
    users: dict[str, str | None] = field(default_factory=dict)


async def seen_through(
    gateway: SessionManager, subject: str, course_ids: Sequence[str], user_ids: Sequence[str]
) -> Seen:
    """Ask everything there is at once, as a query with many fields does."""
    async with gateway.session("2", subject) as session:
        listed, courses, enrollments, users = await asyncio.gather(
            session.list_courses(position=None, limit=100),
            session.fetch_courses(course_ids),
            session.fetch_enrollments_by_course(course_ids),
            session.fetch_users(user_ids),
        )
    both = {course.external_id: course for course in (*listed.items, *courses.values())}
    return Seen(
        courses={course_id: course.title for course_id, course in both.items()},
        enrollments={
            course_id: {row.id for row in rows} for course_id, rows in enrollments.items() if rows
        },
        users={user_id: user.email for user_id, user in users.items()},
    )


def seen_by_a_bare_client(
    http: httpx.Client, token: str, course_ids: Sequence[str], user_ids: Sequence[str]
) -> Seen:
    """Ask the same with the user's own token and nothing between."""
    seen, headers = Seen(), {"Authorization": f"Bearer {token}"}

    def ask(path: str, params: Mapping[str, Any] = MappingProxyType({})) -> Any:
        answer = http.get(f"/api/v1/{path}", headers=headers, params=params)
        return answer.json() if answer.status_code == 200 else None

    own = ask("users/self/enrollments", EVERY_STATE)
    for course_id in course_ids:
        course = ask(f"courses/{course_id}")
        if course is not None:
            seen.courses[course_id] = course.get("original_name") or course.get("name", "")
        rows = ask(f"courses/{course_id}/enrollments", EVERY_STATE)
        if rows is None:  # then that they are in it is all they may know
            rows = [row for row in own if str(row["course_id"]) == course_id]
        if rows:
            seen.enrollments[course_id] = {str(row["id"]) for row in rows}
    for user_id in user_ids:
        user = ask(f"users/{user_id}", {"include[]": "email"})
        if user is not None:
            seen.users[user_id] = user.get("email")
    return seen


EVERY_STATE: Mapping[str, Any] = {
    "state[]": ["active", "invited", "creation_pending", "completed", "inactive", "rejected"],
    "per_page": 100,
}


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Canvas, str]]:
    canvas = Canvas()
    canvas.throttle.enabled = False
    with running_in_thread(canvas) as url:
        yield canvas, url


@given(people=populations())
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_everybody_sees_what_their_own_token_sees_and_nothing_else(
    people: Population, served: tuple[Canvas, str], migrated_file: Path, key_ring: KeyRing
) -> None:
    canvas, url = served
    canvas.population = people
    user_ids = [str(user.id) for user in people.users.values()]
    course_ids = [str(course.id) for course in people.courses.values()]

    async def ask_at_once(lab: Lab, gateway: SessionManager) -> tuple[list[Seen], list[str]]:
        tokens = [(await lab.authorize(gateway, user_id)).access for user_id in user_ids[1:]]
        told = await asyncio.gather(
            *(
                seen_through(gateway, f"user:{user_id}", course_ids, user_ids)
                for user_id in user_ids[1:]
                for _ in range(2)
            )
        )
        assert told[::2] == told[1::2]
        return told[::2], tokens

    async def story(path: Path) -> tuple[list[Seen], list[str]]:
        async with (
            open_database(f"sqlite:///{path}") as database,
            canvas_lab(database, key_ring, platform=PLATFORM, canvas=canvas, url=url) as lab,
            lab.gateway() as gateway,
        ):
            return await ask_at_once(lab, gateway)

    with tempfile.TemporaryDirectory() as folder:
        shutil.copyfile(migrated_file, path := Path(folder) / "gateway.db")
        told, tokens = asyncio.run(story(path))
    with httpx.Client(base_url=url, trust_env=False) as http:
        own = [seen_by_a_bare_client(http, token, course_ids, user_ids) for token in tokens]

    for through, bare in zip(told, own, strict=True):
        assert through.users == bare.users
        assert through.enrollments == bare.enrollments
        assert through.courses.keys() == bare.courses.keys()
        for course_id, title in bare.courses.items():
            shown = through.courses[course_id]
            assert shown == title if title else "Title" not in shown
