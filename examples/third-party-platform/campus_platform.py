"""Campus, version 1: courses with one teacher each, and people who must be asked for one by one.

Source: simulators/campus.py
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TypeVar
from urllib.parse import quote

import msgspec

from sessions.base import (
    Authorization,
    Capability,
    CredentialField,
    Exports,
    Grant,
    NewGrant,
    Page,
    Platform,
    ProviderCheck,
    ProviderSession,
    Subject,
)
from sessions.errors import ProviderBadResponse, ReauthRequired, SessionLost
from sessions.http import ProviderHttp, Response
from sessions.sharing import Shared
from storage.credentials import Secret
from storage.records import (
    Course,
    CourseKind,
    CourseState,
    Enrollment,
    EnrollmentSource,
    EnrollmentState,
    Provenance,
    Provider,
    Role,
    RoleValue,
    User,
)

T = TypeVar("T")
R = TypeVar("R", User, Course, Enrollment, str)

_TEACHER = Role(value=RoleValue.TEACHER, source_value="teacher")
_SHARED_SECONDS = 2.0


class _About(msgspec.Struct, frozen=True):
    name: str
    version: str


class _Course(msgspec.Struct, frozen=True):
    id: str
    title: str
    teacher_id: str


class _Person(msgspec.Struct, frozen=True):
    id: str
    name: str


class CampusSession(ProviderSession):
    """One key at one Campus; who may see it sees everything."""

    def __init__(
        self,
        provider: Provider,
        *,
        http: ProviderHttp,
        authorization: Authorization,
        exports: Exports,
        subject: Subject = Subject(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(
            provider, http=http, authorization=authorization, exports=exports, subject=subject
        )
        self._shared_courses = Shared(self._read_courses)

    async def log_in(self, credentials: Secret[Mapping[str, str]]) -> NewGrant:
        """Prove that the key holds."""
        grant = NewGrant(secret=Secret({"api_key": credentials.reveal()["api_key"]}))
        response = await self._http.request("GET", "/about", headers=_headers(grant))
        if response.status == HTTPStatus.UNAUTHORIZED:
            raise ReauthRequired("Campus refuses the key", provider_id=self.provider.id)
        return grant

    async def keep_alive(self, grant: Grant) -> NewGrant:
        """Prove that the key still holds."""
        await self._get(grant, "/about")
        return NewGrant(secret=grant.secret)

    async def log_out(self, grant: NewGrant) -> None:
        """Do nothing: the key is the operator's, and stays."""

    async def check(self) -> ProviderCheck:
        """Read name and version."""
        about = self._success(await self._read("/about")).decode(_About)
        return ProviderCheck(version=about.version, name=about.name, account="Campus key")

    async def list_users(self, *, position: str | None, limit: int) -> Page[User]:
        """Return teachers by id; Campus lists nobody else."""
        ids = {course.teacher_id for course in await self._courses()}
        page = _page(ids, position, limit, key=str)
        found = await self.fetch_users(page.items)
        return Page(
            items=[found[id_] for id_ in page.items if id_ in found],
            next_position=page.next_position,
            total=page.total,
        )

    async def fetch_users(self, user_ids: Collection[str]) -> Mapping[str, User]:
        """Return people by id, one call each."""
        found = await asyncio.gather(*map(self._find_person, dict.fromkeys(user_ids)))
        return {person.id: self._user(person) for person in found if person is not None}

    async def list_courses(self, *, position: str | None, limit: int) -> Page[Course]:
        """Return courses by id."""
        rows = map(self._course, await self._courses())
        return _page(rows, position, limit, key=lambda course: course.external_id)

    async def fetch_courses(self, course_ids: Collection[str]) -> Mapping[str, Course]:
        """Return courses by id."""
        wanted = frozenset(course_ids)
        return {row.id: self._course(row) for row in await self._some_courses(wanted)}

    async def list_enrollments(self, *, position: str | None, limit: int) -> Page[Enrollment]:
        """Return who teaches what, by course."""
        rows = map(self._enrollment, await self._courses())
        return _page(rows, position, limit, key=lambda enrollment: enrollment.id)

    async def fetch_enrollments_by_user(
        self, user_ids: Collection[str]
    ) -> Mapping[str, Sequence[Enrollment]]:
        """Return what each person teaches."""
        people = await self.fetch_users(user_ids)
        courses = await self._courses() if people else []
        return {
            user_id: [self._enrollment(row) for row in courses if row.teacher_id == user_id]
            for user_id in people
        }

    async def fetch_enrollments_by_course(
        self, course_ids: Collection[str]
    ) -> Mapping[str, Sequence[Enrollment]]:
        """Return each course's teacher."""
        wanted = frozenset(course_ids)
        return {row.id: [self._enrollment(row)] for row in await self._some_courses(wanted)}

    async def _some_courses(self, ids: Collection[str]) -> list[_Course]:
        return [row for row in await self._courses() if row.id in ids] if ids else []

    async def _courses(self) -> list[_Course]:
        """Return all courses, read once for everybody who needs them now."""
        version = (await self._authorization.current()).version
        return await self._shared_courses.get(version, _SHARED_SECONDS)

    async def _read_courses(self) -> list[_Course]:
        return self._success(await self._read("/courses")).decode(list[_Course])

    async def _find_person(self, user_id: str) -> _Person | None:
        response = await self._read(f"/users/{quote(user_id, safe='')}")
        if response.status == HTTPStatus.NOT_FOUND:
            return None
        return self._success(response).decode(_Person)

    async def _read(self, path: str) -> Response:
        return await self.authorised(lambda grant: self._get(grant, path))

    async def _get(self, grant: Grant, path: str) -> Response:
        response = await self._http.request("GET", path, headers=_headers(grant))
        if response.status == HTTPStatus.UNAUTHORIZED:
            raise SessionLost
        return response

    def _success(self, response: Response) -> Response:
        if response.status != HTTPStatus.OK:
            raise ProviderBadResponse(
                f"{response.source} answered {response.status}", provider_id=self.provider.id
            )
        return response

    def _user(self, row: _Person) -> User:
        return User(
            provider_id=self.provider.id,
            external_id=row.id,
            username=None,
            display_name=row.name,
            roles=(_TEACHER,),
            provenance=self._provenance(row.id, "user"),
        )

    def _course(self, row: _Course) -> Course:
        return Course(
            provider_id=self.provider.id,
            external_id=row.id,
            kind=CourseKind.CLASS,
            title=row.title,
            state=CourseState.ACTIVE,
            provenance=self._provenance(row.id, "course"),
        )

    def _enrollment(self, row: _Course) -> Enrollment:
        return Enrollment(
            provider_id=self.provider.id,
            id=f"{row.id}:{row.teacher_id}",
            external_id=None,
            user_id=row.teacher_id,
            course_id=row.id,
            role=_TEACHER,
            state=EnrollmentState.ACTIVE,
            source=EnrollmentSource.ROSTER,
            provenance=self._provenance(row.id, "course"),
        )

    def _provenance(self, external_id: str, source_type: str) -> Provenance:
        return Provenance(
            provider_id=self.provider.id,
            external_id=external_id,
            source_type=source_type,
            fetched_at=datetime.now(UTC),
        )


def _headers(grant: Grant | NewGrant) -> Mapping[str, str]:
    return {"Authorization": f"Bearer {grant.secret.reveal()['api_key']}"}


def _page(
    rows: Iterable[R], position: str | None, limit: int, *, key: Callable[[R], str]
) -> Page[R]:
    """Cut a page out of a list that came whole; the position is the last id given."""
    ordered = sorted(rows, key=key)
    left = [row for row in ordered if position is None or key(row) > position]
    more = len(left) > limit
    return Page(
        items=left[:limit],
        next_position=key(left[limit - 1]) if more else None,
        total=len(ordered),
    )


PLATFORM = Platform(
    name="campus",
    title="Campus",
    session=CampusSession,
    credential_fields=(CredentialField(name="api_key", label="Campus key", secret=True),),
    capabilities=frozenset({Capability.USERS, Capability.COURSES, Capability.ENROLLMENTS}),
    concurrency=8,
    versions="1",
)
