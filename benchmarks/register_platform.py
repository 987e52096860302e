"""The register of `register_upstream.py`, as a platform that the gateway finds by its entry point.

It lists a long page as many short ones side by side, for the register numbers its pages, and says
on the first how many users there are.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from itertools import chain
from typing import TypeVar

import msgspec

from sessions.base import (
    Capability,
    CredentialField,
    Grant,
    NewGrant,
    Page,
    Platform,
    ProviderCheck,
    ProviderSession,
)
from sessions.errors import ProviderBadResponse, ReauthRequired, SessionLost
from sessions.http import Params, Response
from sessions.sharing import work_off
from storage.credentials import Secret
from storage.records import (
    Course,
    CourseKind,
    CourseState,
    Enrollment,
    EnrollmentSource,
    EnrollmentState,
    Provenance,
    Role,
    RoleValue,
    User,
)

AT_ONCE = 100
CALLS_AT_ONCE = 16

R = TypeVar("R", bound=msgspec.Struct)
T = TypeVar("T")


class _About(msgspec.Struct, frozen=True):
    name: str
    version: str


class _User(msgspec.Struct, frozen=True):
    id: str
    name: str
    email: str
    username: str


class _Course(msgspec.Struct, frozen=True):
    id: str
    title: str
    code: str | None


class _Enrollment(msgspec.Struct, frozen=True):
    id: str
    user_id: str
    course_id: str
    role: RoleValue
    state: EnrollmentState


class _Users(msgspec.Struct, frozen=True):
    total: int
    rows: list[_User]


class _Courses(msgspec.Struct, frozen=True):
    total: int
    rows: list[_Course]


_ROLES = {value: Role(value=value, source_value=value.lower()) for value in RoleValue}


class RegisterSession(ProviderSession):
    """One key at one register; who may see it sees everything."""

    async def log_in(self, credentials: Secret[Mapping[str, str]]) -> NewGrant:
        """Prove that the key holds."""
        grant = NewGrant(secret=Secret({"api_key": credentials.reveal()["api_key"]}))
        response = await self._http.request("GET", "/about", headers=_headers(grant))
        if response.status == HTTPStatus.UNAUTHORIZED:
            raise ReauthRequired("The register refuses the key", provider_id=self.provider.id)
        return grant

    async def keep_alive(self, grant: Grant) -> NewGrant:
        """Return what holds for ever."""
        return NewGrant(secret=grant.secret)

    async def log_out(self, grant: NewGrant) -> None:
        """Do nothing: the key is the operator's, and stays."""

    async def check(self) -> ProviderCheck:
        """Read name and version."""
        about = await self._read(_About, "/about")
        return ProviderCheck(version=about.version, name=about.name, account="Register key")

    async def list_users(self, *, position: str | None, limit: int) -> Page[User]:
        """Return users by their place."""
        found: list[_Users] = await self._pages(_Users, "/users", position=position, limit=limit)
        now = datetime.now(UTC)
        rows = [self._user(row, now) for page in found for row in page.rows]
        return _page(rows, position=position, total=found[0].total)

    async def fetch_users(self, user_ids: Collection[str]) -> Mapping[str, User]:
        """Return users by id."""
        found = await self._batches(list[_User], "/users", "ids", user_ids)
        now = datetime.now(UTC)
        return {row.id: self._user(row, now) for row in chain.from_iterable(found)}

    async def list_courses(self, *, position: str | None, limit: int) -> Page[Course]:
        """Return courses by their place."""
        found = await self._pages(_Courses, "/courses", position=position, limit=limit)
        now = datetime.now(UTC)
        rows = [self._course(row, now) for page in found for row in page.rows]
        return _page(rows, position=position, total=found[0].total)

    async def fetch_courses(self, course_ids: Collection[str]) -> Mapping[str, Course]:
        """Return courses by id."""
        found = await self._batches(list[_Course], "/courses", "ids", course_ids)
        now = datetime.now(UTC)
        return {row.id: self._course(row, now) for row in chain.from_iterable(found)}

    async def list_enrollments(self, *, position: str | None, limit: int) -> Page[Enrollment]:
        """Return the enrollments of a page of users."""
        users = await self.list_users(position=position, limit=max(1, limit // 5))
        found = await self.fetch_enrollments_by_user([user.external_id for user in users.items])
        rows = list(chain.from_iterable(found.values()))
        return Page(items=rows, next_position=users.next_position)

    async def fetch_enrollments_by_user(
        self, user_ids: Collection[str]
    ) -> Mapping[str, Sequence[Enrollment]]:
        """Return each user's enrollments."""
        batches = await self._batches(list[_Enrollment], "/enrollments", "user_ids", user_ids)
        found: dict[str, list[Enrollment]] = {user_id: [] for user_id in user_ids}
        now = datetime.now(UTC)
        for row in chain.from_iterable(batches):
            found[row.user_id].append(self._enrollment(row, now))
        return found

    async def fetch_enrollments_by_course(
        self, course_ids: Collection[str]
    ) -> Mapping[str, Sequence[Enrollment]]:
        """Refuse: the register cannot be asked so."""
        raise self._lacks(f"enrollments by course, as of {len(course_ids)} courses")

    async def _pages(
        self, type_: type[R], path: str, *, position: str | None, limit: int
    ) -> list[R]:
        start = int(position or 0)

        async def read(offset: int) -> R:
            params = {"offset": offset, "limit": min(AT_ONCE, start + limit - offset)}
            return await self._read(type_, path, params)

        first = await read(start)
        end = min(start + limit, first.total)  # type: ignore[attr-defined]  # both have it
        rest = await work_off(range(start + AT_ONCE, end, AT_ONCE), read, at_once=CALLS_AT_ONCE)
        return [first, *(rest[offset] for offset in sorted(rest))]

    async def _batches(
        self, type_: type[T], path: str, name: str, ids: Collection[str]
    ) -> Sequence[T]:
        wanted = list(ids)

        async def read(start: int) -> T:
            some = wanted[start : start + AT_ONCE]
            return await self._read(type_, path, {name: ",".join(some)})

        found = await work_off(range(0, len(wanted), AT_ONCE), read, at_once=CALLS_AT_ONCE)
        return [found[start] for start in sorted(found)]

    async def _read(self, type_: type[T], path: str, params: Params | None = None) -> T:
        async def call(grant: Grant) -> Response:
            response = await self._http.request("GET", path, params=params, headers=_headers(grant))
            if response.status == HTTPStatus.UNAUTHORIZED:
                raise SessionLost
            return response

        response = await self.authorised(call)
        if response.status != HTTPStatus.OK:
            raise ProviderBadResponse(
                f"{response.source} answered {response.status}", provider_id=self.provider.id
            )
        return response.decode(type_)

    def _user(self, row: _User, now: datetime) -> User:
        return User(
            provider_id=self.provider.id,
            external_id=row.id,
            username=row.username,
            display_name=row.name,
            email=row.email,
            provenance=self._provenance(row.id, "user", now),
        )

    def _course(self, row: _Course, now: datetime) -> Course:
        return Course(
            provider_id=self.provider.id,
            external_id=row.id,
            kind=CourseKind.CLASS,
            title=row.title,
            course_code=row.code,
            state=CourseState.ACTIVE,
            provenance=self._provenance(row.id, "course", now),
        )

    def _enrollment(self, row: _Enrollment, now: datetime) -> Enrollment:
        return Enrollment(
            provider_id=self.provider.id,
            id=row.id,
            external_id=row.id,
            user_id=row.user_id,
            course_id=row.course_id,
            role=_ROLES[row.role],
            state=row.state,
            source=EnrollmentSource.ROSTER,
            provenance=self._provenance(row.id, "enrollment", now),
        )

    def _provenance(self, external_id: str, source_type: str, now: datetime) -> Provenance:
        return Provenance(
            provider_id=self.provider.id,
            external_id=external_id,
            source_type=source_type,
            fetched_at=now,
        )


def _headers(grant: Grant | NewGrant) -> Mapping[str, str]:
    return {"Authorization": f"Bearer {grant.secret.reveal()['api_key']}"}


P = TypeVar("P", User, Course)


def _page(rows: Sequence[P], *, position: str | None, total: int) -> Page[P]:
    end = int(position or 0) + len(rows)
    return Page(items=rows, next_position=str(end) if end < total else None, total=total)


PLATFORM = Platform(
    name="register",
    title="Register",
    session=RegisterSession,
    credential_fields=(CredentialField(name="api_key", label="Register key", secret=True),),
    capabilities=frozenset({Capability.USERS, Capability.COURSES, Capability.ENROLLMENTS}),
    page_size=10_000,
    concurrency=CALLS_AT_ONCE,
    versions="1",
)
