"""Kolibri, versions 0.17 to 0.19: offline-first learning by Learning Equality.

Everything outside ``/api/public/`` is internal to Kolibri and documented by its source code only
(https://github.com/learningequality/kolibri); what is said here was seen on 0.17.0, 0.18.4 and
0.19.5. Five habits of Kolibri shape this module:

- A session that has ended does not give 401. Lists are empty, single objects are not found, and
  only the heartbeat tells; hence no empty answer is believed before the session proved alive.
- Unknown query parameters are ignored, and what 0.19 filters by, older releases do not know;
  hence every row is checked to be one that was asked for.
- One server holds several facilities, and a superuser sees them all; hence every row is also
  checked to belong to the facility this session is about.
- Deleted users keep their class memberships and their activity; hence both are compared with the
  users that exist.
- Who did what in a channel can be had only as a CSV file that a background task writes; hence
  the timed export ``activity``.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import csv
import hashlib
import io
import math
import re
import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import (
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from enum import StrEnum
from functools import partial
from http import HTTPStatus
from typing import ClassVar, TypeVar
from urllib.parse import quote, unquote, unquote_to_bytes, urljoin, urlsplit

import msgspec

from sessions.anchors import Anchor, ByRank, Stretch, anchors_of, page_over, read_behind
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
from sessions.errors import (
    ProviderAuthFailed,
    ProviderBadResponse,
    ProviderError,
    ProviderForbidden,
    ProviderTimeout,
    ProviderUnavailable,
    ReauthRequired,
    SessionLost,
)
from sessions.http import ProviderHttp, Response
from sessions.mapping import check_role_options, instant, printable, role_map
from sessions.names import parse_name
from sessions.sharing import Shared, together
from storage.credentials import Secret
from storage.records import (
    Course,
    CourseKind,
    CourseState,
    DataSource,
    Enrollment,
    EnrollmentSource,
    EnrollmentState,
    Gender,
    IconSource,
    Identifier,
    IdentifierType,
    Progress,
    ProgressMethod,
    Provenance,
    Provider,
    Role,
    RoleValue,
    User,
)

T = TypeVar("T")

SESSION_SECONDS = 1200.0
"""How long Kolibri keeps a session that nobody prolongs."""

ACTIVITY = "activity"
"""The timed export of everybody's activity in channels, and of course sessions."""

_SESSION_COOKIE = "kolibri"
_CSRF_COOKIE = "kolibri_csrftoken"
_OLDEST = (0, 17)
_STRICT_LOGIN_SINCE = (0, 18)
_ORDERING_SINCE = (0, 18)
_BY_IDS_SINCE = (0, 19)
_SOFT_DELETION_SINCE = (0, 19)
_COURSE_SESSIONS_SINCE = (0, 19)
_CRAWL_PAGE = 1000
_IDS_PER_CALL = 200  # 33 characters each: URLs beyond 8 kB do not pass every proxy
_RETRIEVE_AT_MOST = 4
_NAMED_AT_MOST = 10
_SEEN_SECONDS = 10.0
_SNAPSHOT_SECONDS = 60.0
_EXPORT_MAX_BYTES = 256 * 1024 * 1024
_DOWNLOAD_SECONDS = 120.0
# No person would choose these days, so a file that names them is one this export asked for. Noon
# keeps them the same day in every time zone a server may be set to.
_EXPORT_DAYS = ("1970-01-01", "2099-12-31")
_ID = re.compile(r"[0-9a-f]{32}")
_VERSION = re.compile(r"(\d+)\.(\d+)")
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_CHANNEL_REFERENCE = re.compile(r"/api/public/v2/channel/[0-9a-f]{32}/$")


class _Reach(StrEnum):
    """What the account may read of its facility."""

    EVERYTHING = "superuser"
    ADMIN = "admin"
    COACH = "coach"
    OWN_CLASSES = "class coach"
    ITSELF = "learner"


_MAY_READ = {_Reach.EVERYTHING, _Reach.ADMIN, _Reach.COACH}
_MAY_EXPORT = {_Reach.EVERYTHING, _Reach.ADMIN}
_REACH_TITLES = {
    _Reach.EVERYTHING: "Superuser",
    _Reach.ADMIN: "Facility admin",
    _Reach.COACH: "Facility coach",
    _Reach.OWN_CLASSES: "Class coach",
    _Reach.ITSELF: "Learner",
}

_ROLES = {
    "superuser": RoleValue.ADMINISTRATOR,
    "admin": RoleValue.ADMINISTRATOR,
    "coach": RoleValue.TEACHER,
    "classroom assignable coach": RoleValue.TEACHER,
    "learner": RoleValue.STUDENT,
}
_GENDERS = {
    "FEMALE": Gender.FEMALE,
    "MALE": Gender.MALE,
    "NOT_SPECIFIED": Gender.UNSPECIFIED,
}
_YEAR = re.compile(r"[12][0-9]{3}")
_WEIGHTS = {kind: index for index, kind in enumerate(_ROLES)}


# ---- what Kolibri answers ----------------------------------------------------------------


class _Answer(msgspec.Struct, frozen=True, gc=False):
    """JSON from Kolibri: unknown fields are ignored, missing ones named in the error."""


class _Info(_Answer, frozen=True):
    application: str = ""
    kolibri_version: str = ""
    device_name: str | None = None


class _Facility(_Answer, frozen=True):
    id: str
    name: str


class _SessionState(_Answer, frozen=True):
    """What a login and a heartbeat answer; an anonymous session has no ``user_id``."""

    user_id: str | None
    kind: list[str]
    facility_id: str | None


class _RoleRow(_Answer, frozen=True):
    kind: str
    collection: str


class _UserRow(_Answer, frozen=True):
    id: str
    facility: str
    username: str
    full_name: str | None = None
    id_number: str | None = None
    gender: str | None = None
    birth_year: str | None = None
    is_superuser: bool = False
    date_joined: str | None = None  # since 0.18
    roles: list[_RoleRow] = []


class _UserPage(_Answer, frozen=True):
    count: int
    results: list[_UserRow]


class _DeletedUser(_Answer, frozen=True):
    id: str
    username: str


class _CoachRow(_Answer, frozen=True):
    id: str


class _Classroom(_Answer, frozen=True):
    id: str
    name: str
    parent: str
    coaches: list[_CoachRow] = []


class _Membership(_Answer, frozen=True):
    id: str
    collection: str
    user: str


class _Channel(_Answer, frozen=True):
    id: str
    name: str
    root: str
    description: str | None = None
    thumbnail: str | None = None
    lang_code: str | None = None
    version: int | None = None
    available: bool | None = None
    total_resource_count: int | None = None
    last_updated: str | None = None


class _Thumbnail(_Answer, frozen=True):
    thumbnail: str | None = None


class _CourseSession(_Answer, frozen=True):
    id: str
    title: str
    collection: str
    active: bool
    description: str | None = None
    assignments: list[str] = []
    learner_ids: list[str] = []


class _Task(_Answer, frozen=True):
    id: str
    status: str


# ---- what the timed export keeps ---------------------------------------------------------


class _Activity(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What one user did in one channel, over all its resources; instants are Unix seconds."""

    channel: int
    progress: float
    completed: int
    first_at: float
    last_at: float
    last_completed_at: float | None
    seconds: float


class _ActivityExport(msgspec.Struct, frozen=True):
    """Result of the timed export; ``channels`` holds the ids that ``_Activity`` points into."""

    facility: str
    channels: list[str]
    by_user: dict[str, list[_Activity]]
    course_sessions: list[_CourseSession]


@dataclass(frozen=True, slots=True)
class _ReadExport:
    content: _ActivityExport
    fetched_at: datetime


# ---- the account and its grant -----------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Account:
    """What a grant holds: the session, whose it is, and what may be read with it."""

    cookie: str = field(repr=False)
    csrf_token: str = field(repr=False)
    user_id: str
    facility_id: str
    kinds: str
    reach: _Reach
    version: str
    grant_version: int = 0

    @classmethod
    def of(cls, secret: Secret[Mapping[str, str]], *, grant_version: int = 0) -> _Account:
        """Read a grant.

        Raises:
            SessionLost: It was written by another release of the gateway.
        """
        values = secret.reveal()
        try:
            return cls(
                cookie=values["cookie"],
                csrf_token=values["csrf_token"],
                user_id=values["user_id"],
                facility_id=values["facility_id"],
                kinds=values["kinds"],
                reach=_Reach(values["reach"]),
                version=values["version"],
                grant_version=grant_version,
            )
        except (KeyError, ValueError):
            raise SessionLost from None

    def grant(self) -> NewGrant:
        return NewGrant(
            secret=Secret(
                {
                    "cookie": self.cookie,
                    "csrf_token": self.csrf_token,
                    "user_id": self.user_id,
                    "facility_id": self.facility_id,
                    "kinds": self.kinds,
                    "reach": self.reach.value,
                    "version": self.version,
                }
            ),
            lifetime_seconds=SESSION_SECONDS,
        )

    def since(self, release: tuple[int, int]) -> bool:
        return _release(self.version) >= release


# ---- the session -------------------------------------------------------------------------


class KolibriSession(ProviderSession):
    """One login at one facility of a Kolibri server.

    Classes, channels, course sessions and deleted users are few and asked for by several fields
    of one query; the answers are therefore shared for ``shared_seconds``, and callers at the same
    time share one call. They are forgotten with the grant they were read with.
    """

    shared_seconds: ClassVar[float] = 2.0
    export_patience_seconds: ClassVar[float] = 240.0

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
        self._roles = role_map(_ROLES, provider.options)
        self._classrooms = Shared(self._read_classrooms)
        self._channels = Shared(self._read_channels)
        self._course_sessions = Shared(self._read_course_sessions)
        self._deleted_users = Shared(self._read_deleted_users)
        self._user_ids = Shared(self._read_user_ids)
        self._seen_users: dict[str, float] = {}
        self._known_channels: tuple[str, list[_Channel]] | None = None
        self._export: _ReadExport | None = None
        self._snapshot: _Snapshot | None = None

    # ---- transitions

    async def log_in(self, credentials: Secret[Mapping[str, str]]) -> NewGrant:
        """Log in to the facility named by the account id, by default the server's default one.

        Raises:
            ReauthRequired: Username, password or facility are wrong; the message says which.
            ProviderBadResponse: This is no Kolibri, or one that is too old.
        """
        values = credentials.reveal()
        username, password = values.get("username", ""), values.get("password", "")
        if not username or not password:
            raise self._refused("The username or the password is missing")
        info = await self._read_info()
        facilities = await self._read_facilities()
        wanted = _facility_id(self.provider.account_id or values.get("account_id"))
        if wanted is not None and wanted not in {facility.id for facility in facilities}:
            raise self._refused(
                f"This server has no facility {wanted}; it has {_listed(facilities)}"
            )
        if wanted is None and len(facilities) == 1:
            wanted = facilities[0].id
        body = {"username": username, "password": password}
        response = await self._http.request(
            "POST",
            "/api/auth/session/",
            json=body if wanted is None else {**body, "facility": wanted},
        )
        if response.status != HTTPStatus.OK:
            raise self._login_failure(
                response, info=info, facilities=facilities, facility_id=wanted
            )
        state = response.decode(_SessionState)
        account = _Account(
            cookie=response.cookies.get(_SESSION_COOKIE, ""),
            csrf_token=response.cookies.get(_CSRF_COOKIE, ""),
            user_id=state.user_id or "",
            facility_id=wanted or state.facility_id or "",
            kinds=",".join(state.kind),
            reach=_Reach.ITSELF,
            version=info.kolibri_version,
        )
        if not (account.cookie and account.csrf_token and account.user_id and account.facility_id):
            raise self._bad("Kolibri accepted the login but gave no session")
        try:
            return (await self._with_reach(account)).grant()
        except SessionLost as error:
            raise ProviderUnavailable(
                "Kolibri ended the session it had just granted", provider_id=self.provider.id
            ) from error

    async def keep_alive(self, grant: Grant) -> NewGrant:
        """Prolong the session by 20 minutes, and notice changed rights and a changed release.

        ``active`` is false: otherwise Kolibri would count the gateway as a person at work.

        Raises:
            SessionLost: The session is anonymous, or its CSRF token no longer holds.
        """
        account = _Account.of(grant.secret, grant_version=grant.version)
        state, response = await self._heartbeat(account)
        kinds = ",".join(state.kind)
        version = account.version
        with suppress(ProviderError):  # the heartbeat counts, the release may be read next time
            version = (await self._read_info()).kolibri_version
        prolonged = replace(
            account,
            cookie=response.cookies.get(_SESSION_COOKIE, account.cookie),
            csrf_token=response.cookies.get(_CSRF_COOKIE, account.csrf_token),
            kinds=kinds,
            version=version,
        )
        if kinds != account.kinds:
            prolonged = await self._with_reach(prolonged)
        return prolonged.grant()

    async def log_out(self, grant: NewGrant) -> None:
        """End the session at the server; it would end by itself 20 minutes after its last use."""
        with suppress(ProviderError, SessionLost):
            await self._send(_Account.of(grant.secret), "DELETE", "/api/auth/session/current/")

    # ---- reading

    async def check(self) -> ProviderCheck:
        """Read name and release, and what the account may read.

        Raises:
            ProviderForbidden: The account may not read the users of the facility.
            NotSupported: An option names a role that does not exist.
        """
        check_role_options(self.provider)
        info = await self._read_info()
        facilities = {facility.id: facility.name for facility in await self._read_facilities()}

        async def read(grant: Grant) -> _Account:
            account = _Account.of(grant.secret, grant_version=grant.version)
            return await self._with_reach(account)

        account = await self.authorised(read)
        facility = printable(facilities.get(account.facility_id, account.facility_id))
        self._require_reader(account, facility=facility)
        missing: tuple[str, ...] = ()
        if account.reach not in _MAY_EXPORT:
            missing = (
                (
                    "The role of facility admin, to export activity: without it there are no "
                    "enrollments in channels and no progress"
                ),
            )
        return ProviderCheck(
            version=info.kolibri_version,
            name=printable(info.device_name or facility),
            account=f"{_REACH_TITLES[account.reach]}, reading {facility}",
            missing=missing,
        )

    async def list_users(self, *, position: str | None, limit: int) -> Page[User]:
        """Return users by id (0.17: by username); ``position`` is an offset, or one with anchors.

        One call where the offset is a multiple of the limit and mostly otherwise, at most two;
        behind anchors (see ``positions``) one, unless users were deleted or came meanwhile.
        """
        anchor = Anchor.parse(position or "0")
        if anchor is None:
            raise self._bad("The position is not one of this list")

        async def read(account: _Account) -> Page[User]:
            if anchor.marks and account.since(_ORDERING_SINCE):
                return await self._read_users_behind(account, anchor, limit)
            return await self._read_user_window(account, offset=anchor.offset, limit=limit)

        return await self._reading(read)

    async def fetch_users(self, user_ids: Collection[str]) -> Mapping[str, User]:
        """Return users by id: 200 a call from 0.19 on, before that one a call or all of them."""
        wanted = _ids(user_ids)
        if not wanted:
            return {}

        async def read(account: _Account) -> list[_UserRow]:
            return await self._read_users(account, wanted)

        return {user.external_id: user for user in self._users(await self._reading(read))}

    async def list_courses(self, *, position: str | None, limit: int) -> Page[Course]:
        """Return channels, classes and course sessions by external id, in one call each."""

        async def read(account: _Account) -> list[Course]:
            async with together() as tasks:
                classrooms = tasks.create_task(self._get(self._classrooms, account))
                channels = tasks.create_task(self._get(self._channels, account))
                sessions = tasks.create_task(self._get(self._course_sessions, account))
            return self._courses(classrooms.result(), channels.result(), sessions.result())

        courses = sorted(await self._reading(read), key=_course_id)
        start = bisect_right(courses, position, key=_course_id) if position else 0
        items = courses[start : start + limit]
        more = start + limit < len(courses)
        return Page(
            items=items,
            next_position=items[-1].external_id if more and items else None,
            total=len(courses),
            positions=list(map(_course_id, items)),
        )

    async def fetch_courses(self, course_ids: Collection[str]) -> Mapping[str, Course]:
        """Return courses by external id; only the kinds asked for are read."""
        wanted = _CourseIds.of(course_ids)

        async def read(account: _Account) -> list[Course]:
            async with together() as tasks:
                classrooms = tasks.create_task(
                    self._get(self._classrooms, account, wanted=wanted.classrooms)
                )
                channels = tasks.create_task(
                    self._get(self._channels, account, wanted=wanted.channels)
                )
                sessions = tasks.create_task(
                    self._find_course_sessions(account, wanted.course_sessions)
                )
            found = sessions.result()
            return self._courses(
                classrooms.result(), channels.result(), found.rows, found.exported_at
            )

        if not wanted.any:
            return {}
        found = {course.external_id: course for course in await self._reading(read)}
        return {course_id: found[course_id] for course_id in set(course_ids) & found.keys()}

    async def list_enrollments(self, *, position: str | None, limit: int) -> Page[Enrollment]:
        """Return enrollments by id; pages after the first are cut from what the first one saw.

        That holds for a minute; after that, the list is read again and continued after the last
        id given.
        """

        async def read(account: _Account) -> _Snapshot:
            known = self._snapshot
            if position is not None and known is not None and known.serves(account):
                return known
            roster = await self._read_roster(account)
            places = await self._existing(account, roster, _places(roster))
            return _Snapshot(
                grant_version=account.grant_version,
                taken_at=time.monotonic(),
                roster=roster,
                places=sorted(places, key=_place_id),
            )

        snapshot = await self._reading(read)
        places = snapshot.places
        start = bisect_right(places, position, key=_place_id) if position else 0
        chosen = places[start : start + limit]
        more = start + limit < len(places)
        self._snapshot = snapshot if more else None
        return Page(
            items=[self._enrollment(place, snapshot.roster) for place in chosen],
            next_position=chosen[-1].id if more and chosen else None,
            total=len(places),
            positions=list(map(_place_id, chosen)),
        )

    async def fetch_enrollments_by_user(
        self, user_ids: Collection[str]
    ) -> Mapping[str, Sequence[Enrollment]]:
        """Return each user's enrollments by id.

        Calls: one for memberships, one for classes, one for channels, however many users. Users
        this session has not seen within the last seconds are looked up first.
        """
        wanted = _ids(user_ids)
        if not wanted:
            return {}

        async def read(account: _Account) -> dict[str, list[Enrollment]]:
            unseen = wanted - self._recently_seen()
            found = await self._read_users(account, unseen) if unseen else []
            existing = (wanted - unseen) | {row.id for row in found}
            roster = await self._read_roster(account, user_ids=existing)
            enrollments: dict[str, list[Enrollment]] = {user: [] for user in sorted(existing)}
            for place in sorted(_places(roster), key=_place_id):
                if place.user_id in enrollments:
                    enrollments[place.user_id].append(self._enrollment(place, roster))
            return enrollments

        return await self._reading(read)

    async def fetch_enrollments_by_course(
        self, course_ids: Collection[str]
    ) -> Mapping[str, Sequence[Enrollment]]:
        """Return each course's enrollments by id; users deleted since are left out."""
        wanted = _CourseIds.of(course_ids)
        if not wanted.any:
            return {}

        async def read(account: _Account) -> dict[str, list[Enrollment]]:
            roster = await self._read_roster(account, courses=wanted)
            enrollments: dict[str, list[Enrollment]] = {
                course_id: [] for course_id in sorted(set(course_ids) & roster.course_ids())
            }
            asked_for = [place for place in _places(roster) if place.course_id in enrollments]
            places = await self._existing(account, roster, asked_for)
            for place in sorted(places, key=_place_id):
                enrollments[place.course_id].append(self._enrollment(place, roster))
            return enrollments

        return await self._reading(read)

    async def fetch_file(self, reference: str, *, max_bytes: int) -> bytes:
        """Return an icon: the bytes behind a URL, or those inside a channel's data URI.

        Both are public, so the session is not sent along.

        Raises:
            ProviderBadResponse: Not found, unreadable for Kolibri itself, or too large.
            ProviderAddressRefused: The reference leads to another server.
        """
        url = urljoin(f"{self._http.base_url}/", reference)
        if urlsplit(url).scheme not in {"http", "https"}:
            raise self._bad("The icon's address is not a web address")
        in_json = _CHANNEL_REFERENCE.search(urlsplit(url).path) is not None
        response = await self._http.request(
            "GET",
            url,
            max_body_bytes=2 * max_bytes if in_json else max_bytes,
            # Kolibri answers 500 where a channel's base64 is broken (seen on 0.18.4 and 0.19.5)
            expected={HTTPStatus.INTERNAL_SERVER_ERROR},
        )
        if response.status != HTTPStatus.OK:
            raise self._bad(f"Kolibri gave no file (status {response.status})")
        if not in_json:
            return response.body
        content = _bytes_of_data_uri(response.decode(_Thumbnail).thumbnail or "")
        if content is None or len(content) > max_bytes:
            raise self._bad("The channel's own copy of its icon is not readable")
        return content

    # ---- the timed export

    async def export(self, name: str) -> bytes:
        """Have Kolibri write its summary of activity, and condense it to one entry per channel.

        Raises:
            ProviderForbidden: The account is no facility admin.
            ProviderTimeout: The task did not end within four minutes.
        """
        if name != ACTIVITY:
            return await super().export(name)
        account, table = await self._export_table()

        async def read(account: _Account) -> tuple[list[_UserRow], list[_DeletedUser]]:
            async with together() as tasks:
                users = tasks.create_task(self._crawl_users(account))
                deleted = tasks.create_task(self._get(self._deleted_users, account))
            return users.result(), deleted.result()

        async def read_course_sessions(account: _Account) -> list[_CourseSession]:
            return await self._get(self._course_sessions, account)

        users, deleted_users = await self._reading(read)
        course_sessions = await self._reading(read_course_sessions)
        try:
            channels, by_user = await asyncio.to_thread(
                _condense,
                table,
                users=users,
                reused_names={user.username for user in deleted_users},
            )
        except (ValueError, KeyError, csv.Error) as error:
            raise self._bad(
                "Kolibri's export of activity has another form than expected"
            ) from error
        return msgspec.msgpack.encode(
            _ActivityExport(
                facility=account.facility_id,
                channels=channels,
                by_user=by_user,
                course_sessions=course_sessions,
            )
        )

    async def _export_table(self) -> tuple[_Account, str]:
        """Return the CSV text; another export may replace the file at once, hence two attempts."""
        for _ in range(2):
            task = await self._reading(self._start_export)
            await self._finish_export(task)
            account, response = await self._reading(self._download_export)
            await self._reading(partial(self._clear_task, task=task))
            if _days_of(response) == _EXPORT_DAYS:
                return account, response.body.decode("utf-8-sig", errors="replace")
        raise ProviderUnavailable(
            "Somebody else's export of activity took the place of this one twice",
            provider_id=self.provider.id,
        )

    async def _start_export(self, account: _Account) -> _Task:
        if account.reach not in _MAY_EXPORT:
            raise ProviderForbidden(
                "Only a facility admin or a superuser may export activity",
                provider_id=self.provider.id,
            )
        first_day, last_day = _EXPORT_DAYS
        response = await self._send(
            account,
            "POST",
            "/api/tasks/tasks/",
            json={
                "type": "kolibri.core.logger.tasks.exportsummarylogcsv",
                "facility": account.facility_id,
                "start_date": f"{first_day}T12:00:00+00:00",
                "end_date": f"{last_day}T12:00:00+00:00",
                "locale": "en",  # decides the language of the column titles
            },
        )
        return self._decoded(response, _Task, what="the start of an export")

    async def _finish_export(self, task: _Task) -> None:
        """Ask for the task's state, ever less often, until it is done."""

        async def read(account: _Account) -> _Task:
            path = f"/api/tasks/tasks/{quote(task.id, safe='')}/"
            return await self._read(account, path, _Task, what="the state of an export")

        ends_at = time.monotonic() + self.export_patience_seconds
        pause_seconds = 0.1
        while (status := (await self._reading(read)).status) != "COMPLETED":
            if status in {"FAILED", "CANCELED"}:
                raise ProviderUnavailable(
                    "Kolibri's export of activity failed", provider_id=self.provider.id
                )
            if time.monotonic() > ends_at:
                raise ProviderTimeout(
                    "Kolibri's export of activity did not end in time",
                    provider_id=self.provider.id,
                )
            await asyncio.sleep(pause_seconds)
            pause_seconds = min(pause_seconds * 1.6, 2.0)

    async def _download_export(self, account: _Account) -> tuple[_Account, Response]:
        response = await self._send(
            account,
            "GET",
            f"/facility/api/downloadcsvfile/summary/{account.facility_id}/",
            max_body_bytes=_EXPORT_MAX_BYTES,
            total_seconds=_DOWNLOAD_SECONDS,
        )
        if response.status != HTTPStatus.OK:
            await self._prove_alive(account)
            raise self._unexpected(response, what="the download of an export")
        return account, response

    async def _clear_task(self, account: _Account, *, task: _Task) -> None:
        """Take the finished task off Kolibri's list, which would grow with every export."""
        with suppress(ProviderError):  # nothing depends on it
            await self._send(account, "POST", f"/api/tasks/tasks/{quote(task.id, safe='')}/clear/")

    async def _read_export(self, account: _Account) -> _ReadExport | None:
        """Return the last result of the timed export if it is of this facility."""
        export = await self._exports.read(ACTIVITY)
        if export is None:
            return None
        known = self._export
        if known is None or known.fetched_at != export.fetched_at:
            try:
                content = await asyncio.to_thread(
                    msgspec.msgpack.decode, export.body, type=_ActivityExport
                )
            except msgspec.DecodeError:  # written by another release of the gateway
                return None
            known = self._export = _ReadExport(content, export.fetched_at)
        return known if known.content.facility == account.facility_id else None

    # ---- users

    async def _read_user_window(self, account: _Account, *, offset: int, limit: int) -> Page[User]:
        """Return this many users from this offset on."""
        window = _Window.over(offset, limit)
        first = await self._read_user_page(account, window.page, size=window.size)
        rows = list(first.results) if first else []
        total = first.count if first else None
        if first and window.pages > 1 and window.page * window.size < first.count:
            second = await self._read_user_page(account, window.page + 1, size=window.size)
            rows += second.results if second else []
        if account.since(_ORDERING_SINCE):
            rows.sort(key=_user_id)
        rows = rows[window.skip : window.skip + limit]
        following = offset + limit
        more = total is not None and following < total
        return self._user_page(
            account,
            rows,
            anchors_of(list(map(_user_id, rows)), offset=offset),
            next_position=str(following) if more else None,
            total=total,
        )

    async def _read_users_behind(self, account: _Account, anchor: Anchor, limit: int) -> Page[User]:
        """Return the users behind an anchor, from pages that overlap it."""
        total: int | None = None

        async def read(offset: int, limit: int) -> Stretch[_UserRow]:
            nonlocal total
            size, page = page_over(offset, limit, most=2 * limit)
            found = await self._read_user_page(account, page, size=size)
            rows = sorted(found.results, key=_user_id) if found else []
            total = found.count if found else None
            more = total is not None and page * size < total
            return Stretch(rows=rows, offset=(page - 1) * size, more=more)

        behind = await read_behind(
            anchor, limit, read=read, mark_of=_user_id, find=ByRank(_user_id, str)
        )
        more = behind.more and bool(behind.anchors)
        return self._user_page(
            account,
            behind.rows,
            behind.anchors,
            next_position=str(behind.anchors[-1]) if more else None,
            total=total,
        )

    def _user_page(
        self,
        account: _Account,
        rows: Sequence[_UserRow],
        anchors: Sequence[Anchor],
        *,
        next_position: str | None,
        total: int | None,
    ) -> Page[User]:
        """Make a page of what was read; before 0.18, rows cannot be found again by id."""
        kept = [index for index, row in enumerate(rows) if row.facility == account.facility_id]
        ranked = account.since(_ORDERING_SINCE)
        return Page(
            items=self._users([rows[index] for index in kept]),
            next_position=next_position,
            total=total,
            positions=[str(anchors[index]) for index in kept] if ranked else (),
        )

    async def _read_user_page(self, account: _Account, page: int, *, size: int) -> _UserPage | None:
        """Return one page, numbered from 1; ``None`` past the last one.

        Source:
            kolibri/core/auth/api.py, ``FacilityUserViewSet``. Without ``page_size`` the answer
            is a bare list of everybody.
        """
        response = await self._send(
            account,
            "GET",
            "/api/auth/facilityuser/",
            params={
                "member_of": account.facility_id,
                "page": page,
                "page_size": size,
                "ordering": "id" if account.since(_ORDERING_SINCE) else None,
            },
        )
        if response.status == HTTPStatus.NOT_FOUND and page > 1:
            await self._prove_alive(account)
            return None
        found = self._decoded(response, _UserPage, what="users")
        if not found.results:
            await self._prove_alive(account)
        return found

    async def _read_users(self, account: _Account, wanted: set[str]) -> list[_UserRow]:
        """Return the users of these ids that are in the facility, in the cheapest way."""
        rows: Iterable[_UserRow]
        if account.since(_BY_IDS_SINCE):
            async with together() as tasks:
                reads = [
                    tasks.create_task(self._read_users_by_id(account, ids))
                    for ids in _chunks(sorted(wanted), _IDS_PER_CALL)
                ]
            rows = [row for read in reads for row in read.result()]
        elif len(wanted) <= _RETRIEVE_AT_MOST:
            async with together() as tasks:
                finds = [tasks.create_task(self._find_user(account, id_)) for id_ in sorted(wanted)]
            rows = [row for find in finds if (row := find.result()) is not None]
        else:
            rows = await self._crawl_users(account)
        return [row for row in rows if row.id in wanted and row.facility == account.facility_id]

    async def _read_users_by_id(self, account: _Account, ids: Sequence[str]) -> list[_UserRow]:
        response = await self._send(
            account,
            "GET",
            "/api/auth/facilityuser/",
            params={"by_ids": ",".join(ids), "page": 1, "page_size": len(ids)},
        )
        found = self._decoded(response, _UserPage, what="users")
        if not found.results:
            await self._prove_alive(account)
        if not {row.id for row in found.results} <= set(ids):
            raise self._bad("Kolibri gave other users than those asked for")
        return found.results

    async def _find_user(self, account: _Account, user_id: str) -> _UserRow | None:
        response = await self._send(account, "GET", f"/api/auth/facilityuser/{user_id}/")
        if response.status == HTTPStatus.NOT_FOUND:
            await self._prove_alive(account)
            return None
        return self._decoded(response, _UserRow, what="a user")

    async def _crawl_users(self, account: _Account) -> list[_UserRow]:
        """Return all users of the facility."""
        first = await self._read_user_page(account, 1, size=_CRAWL_PAGE)
        last_page = math.ceil(first.count / _CRAWL_PAGE) if first else 0
        async with together() as tasks:
            reads = [
                tasks.create_task(self._read_user_page(account, page, size=_CRAWL_PAGE))
                for page in range(2, last_page + 1)
            ]
        pages = [page for page in (first, *(read.result() for read in reads)) if page is not None]
        return [
            row for page in pages for row in page.results if row.facility == account.facility_id
        ]

    def _users(self, rows: Iterable[_UserRow]) -> list[User]:
        fetched_at = datetime.now(UTC)
        users = [self._user(row, fetched_at=fetched_at) for row in rows]
        now = time.monotonic()
        self._seen_users.update((user.external_id, now) for user in users)
        return users

    def _recently_seen(self) -> set[str]:
        """Return the ids of users that existed a few seconds ago, forgetting older sightings."""
        earliest = time.monotonic() - _SEEN_SECONDS
        self._seen_users = {
            user_id: at for user_id, at in self._seen_users.items() if at >= earliest
        }
        return set(self._seen_users)

    def _user(self, row: _UserRow, *, fetched_at: datetime) -> User:
        full_name = row.full_name or ""
        name = parse_name(full_name)
        number = (row.id_number or "").strip()
        return User(
            provider_id=self.provider.id,
            external_id=row.id,
            username=row.username,
            display_name=full_name,
            given_name=name.given,
            middle_name=name.middle,
            family_name=name.family,
            identifiers=(
                (Identifier(type=IdentifierType.SCHOOL_ID, value=number, namespace=row.facility),)
                if number
                else ()
            ),
            roles=tuple(self._role(kind) for kind in _role_kinds(row)),
            birth_year=_birth_year(row.birth_year),
            gender=_GENDERS.get(row.gender or ""),
            active=True,  # Kolibri knows no inactive accounts, only deleted ones, which it hides
            provenance=self._provenance(row.id, "facilityuser", fetched_at=fetched_at),
        )

    # ---- courses

    async def _read_classrooms(self, account: _Account) -> list[_Classroom]:
        rows = await self._read_list(
            account,
            "/api/auth/classroom/",
            list[_Classroom],
            params={"parent": account.facility_id},
            what="classes",
        )
        return [row for row in rows if row.parent == account.facility_id]

    async def _read_channels(self, account: _Account) -> list[_Channel]:
        """Return all channels of the server, those without files on it included.

        Kolibri marks the state of all its content with one entity tag: as long as it stays the
        same, what was read before is what would be read again (seen on 0.17.0, 0.18.4, 0.19.5).
        """
        known = self._known_channels
        response = await self._send(
            account, "GET", "/api/content/channel/", if_none_match=known and known[0]
        )
        if known is not None and response.status == HTTPStatus.NOT_MODIFIED:
            return known[1]
        channels = self._decoded(response, list[_Channel], what="channels")
        if not channels:
            await self._prove_alive(account)
        tag = response.headers.get("etag")
        self._known_channels = (tag, channels) if tag and channels else None
        return channels

    async def _read_course_sessions(self, account: _Account) -> list[_CourseSession]:
        if not account.since(_COURSE_SESSIONS_SINCE):
            return []
        async with together() as tasks:
            reading = tasks.create_task(
                self._read_list(
                    account,
                    "/api/courses/coursesession/",
                    list[_CourseSession],
                    what="course sessions",
                )
            )
            classrooms = tasks.create_task(self._get(self._classrooms, account))
        in_facility = {classroom.id for classroom in classrooms.result()}
        return [row for row in reading.result() if row.collection in in_facility]

    async def _find_course_sessions(
        self,
        account: _Account,
        wanted: Collection[str] | None = None,
        *,
        with_export: bool = False,
    ) -> _FoundSessions:
        """Return course sessions, and the export if it had to be read or is wanted itself.

        They change seldom: those of the export do, unless it lacks one that is wanted.
        """
        any_wanted = wanted is None or bool(wanted)
        if not (any_wanted or with_export):
            return _FoundSessions()
        export = await self._read_export(account)
        if not any_wanted:
            return _FoundSessions(export=export)
        if export is not None:
            known = export.content.course_sessions
            if set(wanted or ()) <= {session.id for session in known}:
                return _FoundSessions(rows=known, exported_at=export.fetched_at, export=export)
        return _FoundSessions(rows=await self._get(self._course_sessions, account), export=export)

    def _courses(
        self,
        classrooms: Iterable[_Classroom],
        channels: Iterable[_Channel],
        course_sessions: Iterable[_CourseSession],
        exported_at: datetime | None = None,
    ) -> list[Course]:
        now = datetime.now(UTC)
        return [
            *(self._class_course(row, fetched_at=now) for row in classrooms),
            *(self._library_course(row, fetched_at=now) for row in channels),
            *(self._session_course(row, exported_at=exported_at) for row in course_sessions),
        ]

    def _class_course(self, row: _Classroom, *, fetched_at: datetime) -> Course:
        external_id = f"classroom:{row.id}"
        return Course(
            provider_id=self.provider.id,
            external_id=external_id,
            kind=CourseKind.CLASS,
            title=row.name,
            state=CourseState.ACTIVE,
            provenance=self._provenance(external_id, "classroom", fetched_at=fetched_at),
        )

    def _library_course(self, row: _Channel, *, fetched_at: datetime) -> Course:
        external_id = f"channel:{row.id}"
        return Course(
            provider_id=self.provider.id,
            external_id=external_id,
            kind=CourseKind.LIBRARY,
            title=row.name,
            description=row.description or None,
            language=row.lang_code or None,
            state=CourseState.ACTIVE if row.available else CourseState.INACTIVE,
            # Kolibri's own permanent link; it leads on to wherever the release shows the channel
            url=f"{self._http.base_url}/viewcontent?node_id={quote(row.root, safe='')}",
            icon=self._icon(row),
            resource_count=row.total_resource_count,
            provenance=self._provenance(
                external_id,
                "channel",
                fetched_at=fetched_at,
                modified_at=instant(row.last_updated),
            ),
        )

    def _icon(self, row: _Channel) -> IconSource | None:
        """Return where the channel's icon is: 0.17.0 puts it into the answer, later ones link it.

        The link gives 500 where the stored base64 is damaged; the copy in the public API can then
        sometimes be read all the same.
        """
        if not row.thumbnail:
            return None
        version = f"{row.version}/{row.last_updated}"
        if row.thumbnail.lower().startswith("data:"):
            return IconSource(reference=row.thumbnail, version=version)
        prefix = urlsplit(self._http.base_url).path.rstrip("/")
        return IconSource(
            reference=row.thumbnail,
            fallback_references=(f"{prefix}/api/public/v2/channel/{row.id}/",),
            version=version,
        )

    def _session_course(self, row: _CourseSession, *, exported_at: datetime | None) -> Course:
        external_id = f"coursesession:{row.id}"
        return Course(
            provider_id=self.provider.id,
            external_id=external_id,
            kind=CourseKind.COURSE,
            title=row.title,
            description=row.description or None,
            state=CourseState.ACTIVE if row.active else CourseState.INACTIVE,
            provenance=self._provenance(external_id, "coursesession", exported_at=exported_at),
        )

    # ---- enrollments

    async def _read_roster(
        self,
        account: _Account,
        *,
        user_ids: Collection[str] | None = None,
        courses: _CourseIds | None = None,
    ) -> _Roster:
        """Read what the enrollments of these users, or of these courses, follow from."""
        with_classes = courses is None or bool(courses.classrooms or courses.course_sessions)
        with_channels = courses is None or bool(courses.channels)
        one_class = courses.single_classroom if courses else None
        nothing: Collection[str] | None = frozenset()
        async with together() as tasks:
            classrooms = tasks.create_task(
                self._get(self._classrooms, account, wanted=None if with_classes else nothing)
            )
            channels = tasks.create_task(
                self._get(self._channels, account, wanted=None if with_channels else nothing)
            )
            memberships = tasks.create_task(
                self._read_memberships(
                    account, user_ids=user_ids if with_classes else nothing, one_class=one_class
                )
            )
            sessions = tasks.create_task(
                self._find_course_sessions(
                    account,
                    courses.course_sessions if courses else None,
                    with_export=with_channels,
                )
            )
        found = sessions.result()
        return _Roster(
            read_at=datetime.now(UTC),
            classrooms={row.id: row for row in classrooms.result()},
            channels={row.id: row for row in channels.result()},
            memberships=memberships.result(),
            course_sessions={row.id: row for row in found.rows},
            sessions_exported_at=found.exported_at,
            export=found.export,
            user_ids=None if user_ids is None else frozenset(user_ids),
        )

    async def _read_memberships(
        self, account: _Account, *, user_ids: Collection[str] | None, one_class: str | None
    ) -> list[_Membership]:
        """Return memberships of classes and groups, in one call.

        They carry no date and no role, and those of deleted users are among them.
        """
        if user_ids is not None and not user_ids:
            return []
        params: dict[str, str] = {}
        if user_ids is not None and len(user_ids) <= _IDS_PER_CALL:
            params["user_ids"] = ",".join(sorted(user_ids))
        if one_class is not None:
            params["collection"] = one_class
        return await self._read_list(
            account, "/api/auth/membership/", list[_Membership], params=params, what="memberships"
        )

    async def _existing(
        self, account: _Account, roster: _Roster, places: Iterable[_Place]
    ) -> list[_Place]:
        """Return the places of users that exist.

        From 0.19 on, deleted users are kept and listed, and so are their memberships. Before,
        memberships go with their user, and only the export may still name one who is gone.
        """
        listed = list(places)
        if account.since(_SOFT_DELETION_SINCE):
            deleted = {row.id for row in await self._get(self._deleted_users, account)}
            return [place for place in listed if place.user_id not in deleted]
        if roster.export is None or all(place.activity is None for place in listed):
            return listed
        existing = set(await self._get(self._user_ids, account))
        return [place for place in listed if place.activity is None or place.user_id in existing]

    async def _read_deleted_users(self, account: _Account) -> list[_DeletedUser]:
        if not account.since(_SOFT_DELETION_SINCE):
            return []
        return await self._read_list(
            account, "/api/auth/deletedfacilityuser/", list[_DeletedUser], what="deleted users"
        )

    async def _read_user_ids(self, account: _Account) -> list[str]:
        return [row.id for row in await self._crawl_users(account)]

    def _enrollment(self, place: _Place, roster: _Roster) -> Enrollment:
        activity = place.activity
        return Enrollment(
            provider_id=self.provider.id,
            id=place.id,
            external_id=place.id if place.kind is _PlaceKind.MEMBERSHIP else None,
            user_id=place.user_id,
            course_id=place.course_id,
            role=self._role("coach" if place.kind is _PlaceKind.COACH else "learner"),
            state=EnrollmentState.ACTIVE if place.active else EnrollmentState.INACTIVE,
            source=(
                EnrollmentSource.ACTIVITY
                if place.kind is _PlaceKind.ACTIVITY
                else EnrollmentSource.ROSTER
            ),
            enrolled_at=_moment(activity.first_at) if activity else None,
            last_activity_at=_moment(activity.last_at) if activity else None,
            progress=_progress(activity, roster.channels[place.thing_id]) if activity else None,
            provenance=self._provenance(
                place.id,
                place.kind.value,
                fetched_at=roster.read_at,
                exported_at=roster.exported_at(place.kind),
            ),
        )

    # ---- calls

    async def _reading(self, call: Callable[[_Account], Awaitable[T]]) -> T:
        """Make calls with the current session, once more with a new one if it proves lost."""

        async def read(grant: Grant) -> T:
            account = _Account.of(grant.secret, grant_version=grant.version)
            self._require_reader(account)
            return await call(account)

        return await self.authorised(read)

    async def _get(
        self,
        shared: Shared[[_Account], list[T]],
        account: _Account,
        *,
        wanted: Collection[str] | None = None,
    ) -> list[T]:
        """Return shared rows; nothing, without a call, when nothing is wanted."""
        if wanted is not None and not wanted:
            return []
        return await shared.get(account.grant_version, self.shared_seconds, account)

    async def _send(
        self,
        account: _Account,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | int | None] | None = None,
        json: object | None = None,
        max_body_bytes: int | None = None,
        total_seconds: float | None = None,
        if_none_match: str | None = None,
    ) -> Response:
        """Make one call in the account's session.

        Raises:
            SessionLost: The answer takes the session cookie back, or says nobody is logged in.
        """
        response = await self._http.request(
            method,
            path,
            params=params,
            json=json,
            headers=None if method == "GET" else {"X-CSRFToken": account.csrf_token},
            cookies={_SESSION_COOKIE: account.cookie, _CSRF_COOKIE: account.csrf_token},
            max_body_bytes=max_body_bytes,
            total_seconds=total_seconds,
            if_none_match=if_none_match,
            idempotent=method == "PUT",
        )
        lost = method != "DELETE" and _SESSION_COOKIE in response.deleted_cookies
        if lost or "NOT_AUTHENTICATED" in _problem_ids(response):
            raise SessionLost
        return response

    async def _read(
        self,
        account: _Account,
        path: str,
        type_: type[T],
        *,
        params: Mapping[str, str | int | None] | None = None,
        what: str,
    ) -> T:
        return self._decoded(
            await self._send(account, "GET", path, params=params), type_, what=what
        )

    async def _read_list(
        self,
        account: _Account,
        path: str,
        type_: type[list[T]],
        *,
        params: Mapping[str, str | int | None] | None = None,
        what: str,
    ) -> list[T]:
        """Read a list that Kolibri gives whole; an empty one is believed of a living session."""
        rows = await self._read(account, path, type_, params=params, what=what)
        if not rows:
            await self._prove_alive(account)
        return rows

    async def _prove_alive(self, account: _Account) -> None:
        """Make sure that what was not there was not hidden by a lost session.

        Raises:
            SessionLost: The session is gone, or Kolibri takes it for anonymous.
        """
        await self._heartbeat(account)

    async def _heartbeat(self, account: _Account) -> tuple[_SessionState, Response]:
        """Ask who the session is; the status is 200 even when it is nobody's.

        Raises:
            SessionLost: It is not the account's. A 403 can only mean that the CSRF token no longer
                fits, which a new login cures as well.
        """
        response = await self._send(
            account, "PUT", "/api/auth/session/current/", json={"active": False}
        )
        if response.status == HTTPStatus.FORBIDDEN:
            raise SessionLost
        if response.status != HTTPStatus.OK:
            raise self._unexpected(response, what="a heartbeat")
        state = response.decode(_SessionState)
        if state.user_id != account.user_id:
            raise SessionLost
        return state, response

    async def _with_reach(self, account: _Account) -> _Account:
        """Add what the account may read of the facility, from its own entry in the user list."""
        row = await self._find_user(account, account.user_id)
        return replace(account, reach=_reach(row, account.facility_id))

    def _require_reader(self, account: _Account, *, facility: str | None = None) -> None:
        if account.reach in _MAY_READ:
            return
        scope = "its own classes" if account.reach is _Reach.OWN_CLASSES else "itself"
        raise ProviderForbidden(
            f"The account may read only {scope}: it needs the role of facility admin"
            + (f" in {facility}" if facility else ""),
            provider_id=self.provider.id,
        )

    async def _read_info(self) -> _Info:
        """Read the server's name and release.

        Raises:
            ProviderBadResponse: It is not a Kolibri, or older than 0.17.
        """
        try:
            response = await self._http.request("GET", "/api/public/info/")
            if response.status != HTTPStatus.OK:
                raise self._unexpected(response, what="its version")
            info = response.decode(_Info)
        except ProviderBadResponse as error:
            raise self._bad(f"No Kolibri answers at this address: {error.message}") from error
        if info.application != "kolibri":
            raise self._bad("No Kolibri answers at this address: it is another program")
        if _release(info.kolibri_version) < _OLDEST:
            raise self._bad(
                f"Kolibri {printable(info.kolibri_version)} is too old: 0.17 or later is needed"
            )
        return info

    async def _read_facilities(self) -> list[_Facility]:
        response = await self._http.request("GET", "/api/public/v1/facility/")
        return self._decoded(response, list[_Facility], what="its facilities")

    def _login_failure(
        self,
        response: Response,
        *,
        info: _Info,
        facilities: Sequence[_Facility],
        facility_id: str | None,
    ) -> ProviderError:
        """Say what is wrong with a login, as exactly as the release tells."""
        problems = _problem_ids(response)
        names = {facility.id: printable(facility.name) for facility in facilities}
        facility = f"facility {names[facility_id]}" if facility_id else "the default facility"
        if "NOT_FOUND" in problems:
            vague = facility_id is None and _release(info.kolibri_version) < _STRICT_LOGIN_SINCE
            return self._refused(
                (
                    f"Username or password are wrong, or the user is not in {facility}"
                    if vague
                    else f"No user of this name is in {facility}"
                )
                + f"; the server has {_listed(facilities)}: give the id of the right one as "
                "account id"
            )
        if "MISSING_PASSWORD" in problems:
            return self._refused("The password is missing")
        if "PASSWORD_NOT_SPECIFIED" in problems:
            return self._refused("This user has no password yet: set one in Kolibri")
        if response.status == HTTPStatus.UNAUTHORIZED:
            return self._refused(f"The password is not that of this user in {facility}")
        return ProviderAuthFailed(
            f"Kolibri refused the login (status {response.status})", provider_id=self.provider.id
        )

    def _decoded(self, response: Response, type_: type[T], *, what: str) -> T:
        if response.status == HTTPStatus.OK:
            return response.decode(type_)
        if response.status == HTTPStatus.FORBIDDEN:
            raise ProviderForbidden(
                f"The account may not read {what}", provider_id=self.provider.id
            )
        raise self._unexpected(response, what=what)

    def _unexpected(self, response: Response, *, what: str) -> ProviderBadResponse:
        return self._bad(f"{response.source} answered {response.status} when asked for {what}")

    def _bad(self, message: str) -> ProviderBadResponse:
        return ProviderBadResponse(message, provider_id=self.provider.id)

    def _refused(self, message: str) -> ReauthRequired:
        return ReauthRequired(message, provider_id=self.provider.id)

    def _role(self, kind: str) -> Role:
        return Role(value=self._roles.get(kind, RoleValue.OTHER), source_value=kind)

    def _provenance(
        self,
        external_id: str,
        source_type: str,
        *,
        fetched_at: datetime | None = None,
        exported_at: datetime | None = None,
        modified_at: datetime | None = None,
    ) -> Provenance:
        return Provenance(
            provider_id=self.provider.id,
            external_id=external_id,
            source_type=source_type,
            fetched_at=exported_at or fetched_at or datetime.now(UTC),
            modified_at=modified_at,
            via=DataSource.CACHE if exported_at else DataSource.LIVE,
        )


# ---- enrollments before they are records -------------------------------------------------


class _PlaceKind(StrEnum):
    """What an enrollment follows from, in Kolibri's words."""

    MEMBERSHIP = "membership"
    COACH = "role"
    COURSE_SESSION = "coursesession"
    ACTIVITY = "contentsummarylog"


@dataclass(frozen=True, slots=True)
class _Place:
    """One user's place in one course; ``thing_id`` is the course's id without its kind."""

    id: str
    kind: _PlaceKind
    user_id: str
    course_id: str
    thing_id: str
    activity: _Activity | None = None
    active: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class _FoundSessions:
    """Course sessions, when the export read them if it did, and the export if it was read."""

    rows: Sequence[_CourseSession] = ()
    exported_at: datetime | None = None
    export: _ReadExport | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Roster:
    """What enrollments follow from; ``user_ids`` are those asked for, ``None`` for all."""

    read_at: datetime
    classrooms: Mapping[str, _Classroom]
    channels: Mapping[str, _Channel]
    memberships: Sequence[_Membership]
    course_sessions: Mapping[str, _CourseSession]
    sessions_exported_at: datetime | None
    export: _ReadExport | None
    user_ids: frozenset[str] | None

    def exported_at(self, kind: _PlaceKind) -> datetime | None:
        """Return when the export read what such a place follows from; ``None`` if just now."""
        if kind is _PlaceKind.COURSE_SESSION:
            return self.sessions_exported_at
        if kind is _PlaceKind.ACTIVITY and self.export is not None:
            return self.export.fetched_at
        return None

    def course_ids(self) -> set[str]:
        return {
            *(f"classroom:{id_}" for id_ in self.classrooms),
            *(f"channel:{id_}" for id_ in self.channels),
            *(f"coursesession:{id_}" for id_ in self.course_sessions),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Snapshot:
    """The whole list of enrollments, as its first page saw it."""

    grant_version: int
    taken_at: float
    roster: _Roster
    places: Sequence[_Place]

    def serves(self, account: _Account) -> bool:
        return (
            self.grant_version == account.grant_version
            and time.monotonic() - self.taken_at < _SNAPSHOT_SECONDS
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _CourseIds:
    """External ids of courses, taken apart by kind."""

    classrooms: frozenset[str]
    channels: frozenset[str]
    course_sessions: frozenset[str]

    @classmethod
    def of(cls, course_ids: Collection[str]) -> _CourseIds:
        by_kind: dict[str, set[str]] = defaultdict(set)
        for course_id in course_ids:
            kind, _, thing_id = course_id.partition(":")
            if _ID.fullmatch(thing_id):
                by_kind[kind].add(thing_id)
        return cls(
            classrooms=frozenset(by_kind["classroom"]),
            channels=frozenset(by_kind["channel"]),
            course_sessions=frozenset(by_kind["coursesession"]),
        )

    @property
    def any(self) -> bool:
        return bool(self.classrooms or self.channels or self.course_sessions)

    @property
    def single_classroom(self) -> str | None:
        """The class, if it is the only one whose memberships matter."""
        if self.course_sessions or len(self.classrooms) != 1:
            return None
        return next(iter(self.classrooms))


def _places(roster: _Roster) -> Iterator[_Place]:
    """Yield all places, each once; those of deleted users are among them."""
    yield from _class_places(roster)
    yield from _course_session_places(roster)
    yield from _activity_places(roster)


def _class_places(roster: _Roster) -> Iterator[_Place]:
    for row in roster.memberships:
        if row.collection in roster.classrooms:  # and not a group, nor a class elsewhere
            course_id = f"classroom:{row.collection}"
            yield _Place(row.id, _PlaceKind.MEMBERSHIP, row.user, course_id, row.collection)
    for classroom in roster.classrooms.values():
        for coach_id in {coach.id for coach in classroom.coaches}:
            yield _Place(
                # Kolibri's id of the coach's role is in no answer that is read for this
                f"coach:{classroom.id}:{coach_id}",
                _PlaceKind.COACH,
                coach_id,
                f"classroom:{classroom.id}",
                classroom.id,
            )


def _course_session_places(roster: _Roster) -> Iterator[_Place]:
    """Yield who is assigned a course session: by class, by group, or one by one."""
    members: dict[str, set[str]] = defaultdict(set)
    for row in roster.memberships:
        members[row.collection].add(row.user)
    for session in roster.course_sessions.values():
        assigned = set(session.learner_ids)
        if roster.user_ids is not None:
            assigned &= roster.user_ids
        assigned.update(*(members.get(collection, ()) for collection in session.assignments))
        for user_id in assigned:
            yield _Place(
                f"coursesession:{session.id}:{user_id}",
                _PlaceKind.COURSE_SESSION,
                user_id,
                f"coursesession:{session.id}",
                session.id,
                active=session.active,
            )


def _activity_places(roster: _Roster) -> Iterator[_Place]:
    """Yield one place per user and channel in which something was done and which still exists."""
    if roster.export is None:
        return
    content = roster.export.content
    chosen = content.by_user.keys() if roster.user_ids is None else roster.user_ids
    for user_id in chosen:
        for activity in content.by_user.get(user_id, ()):
            channel_id = content.channels[activity.channel]
            if channel_id in roster.channels:
                yield _Place(
                    _activity_id(user_id, channel_id),
                    _PlaceKind.ACTIVITY,
                    user_id,
                    f"channel:{channel_id}",
                    channel_id,
                    activity=activity,
                )


def _activity_id(user_id: str, channel_id: str) -> str:
    digest = hashlib.sha256(f"{user_id}|{channel_id}".encode()).hexdigest()
    return f"activity:{digest[:32]}"


def _progress(activity: _Activity, channel: _Channel) -> Progress:
    """Derive progress in a channel: the mean over all its resources, begun or not."""
    total = channel.total_resource_count
    completed = activity.completed >= total if total else None
    last_completed_at = activity.last_completed_at
    return Progress(
        ratio=min(1.0, activity.progress / total) if total else None,
        completed_count=activity.completed,
        total_count=total,
        completed=completed,
        completed_at=_moment(last_completed_at) if completed and last_completed_at else None,
        time_spent_seconds=round(activity.seconds),
        method=ProgressMethod.DERIVED,
    )


# ---- the export's table ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _TableRow:
    """What one user did with one resource."""

    progress: float
    first_at: float
    last_at: float
    completed_at: float | None
    seconds: float


def _condense(
    table: str, *, users: Iterable[_UserRow], reused_names: Collection[str]
) -> tuple[list[str], dict[str, list[_Activity]]]:
    """Sum the CSV up by user and channel; returns channel ids and activity by user id.

    The table names users by username. A name may have belonged to a user since deleted: then only
    what was begun after the present one joined is taken. Users with several roles have each row
    several times over (seen on 0.19.5).

    Raises:
        ValueError: A value is not of the form Kolibri writes.
        KeyError: A column is missing.
        csv.Error: The table is broken.
    """
    by_name = {_as_table_cell(user.username): user for user in users}
    done: dict[tuple[str, str], dict[str, _TableRow]] = defaultdict(dict)
    reader = csv.DictReader(io.StringIO(table, newline=""), strict=True)
    for line in reader:
        user = by_name.get(line["Username"])
        row = _table_row(line)
        if user is None:
            continue
        joined_at = instant(user.date_joined)
        reused = user.username in reused_names and joined_at is not None
        if reused and joined_at is not None and row.first_at < joined_at.timestamp():
            continue
        done[user.id, line["Channel id"]][line["Content id"]] = row
    channels = sorted({channel for _, channel in done})
    number = {channel: index for index, channel in enumerate(channels)}
    by_user: dict[str, list[_Activity]] = defaultdict(list)
    for (user_id, channel), rows in sorted(done.items()):
        by_user[user_id].append(_summed(number[channel], list(rows.values())))
    return channels, dict(by_user)


def _table_row(line: Mapping[str, str]) -> _TableRow:
    return _TableRow(
        progress=float(line["Progress (0-1)"]),
        first_at=datetime.fromisoformat(line["Time of first interaction"]).timestamp(),
        last_at=datetime.fromisoformat(line["Time of last interaction"]).timestamp(),
        completed_at=(
            datetime.fromisoformat(line["Time of completion"]).timestamp()
            if line["Time of completion"]
            else None
        ),
        seconds=float(line["Time Spent (sec)"]),
    )


def _summed(channel: int, rows: Sequence[_TableRow]) -> _Activity:
    completions = [row.completed_at for row in rows if row.completed_at is not None]
    return _Activity(
        channel=channel,
        progress=math.fsum(row.progress for row in rows),
        completed=sum(row.progress >= 1 for row in rows),
        first_at=min(row.first_at for row in rows),
        last_at=max(row.last_at for row in rows),
        last_completed_at=max(completions, default=None),
        seconds=math.fsum(row.seconds for row in rows),
    )


def _as_table_cell(username: str) -> str:
    """Write a username as Kolibri does, which guards cells that a spreadsheet would execute.

    Source:
        kolibri/core/utils/csv.py, ``sanitize``.
    """
    if username[:1] in {"@", "+", "-", "=", "|", "%"} and not re.fullmatch(r"-?[0-9,.]+", username):
        return "'" + username.replace("|", "\\|")
    return username


def _days_of(response: Response) -> tuple[str, ...]:
    """Return the days in the name of a downloaded file, its first and its last.

    A facility's name that is not Latin makes Django write the whole header in base64.
    """
    header = response.headers.get("content-disposition", "")
    with suppress(HeaderParseError, LookupError, UnicodeError):
        header = str(make_header(decode_header(header)))
    return tuple(_DAY.findall(header)[-2:])


# ---- calls in company --------------------------------------------------------------------


# ---- small readings ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Window:
    """Pages that together hold a stretch of a list; ``page`` counts from 1."""

    size: int
    page: int
    pages: int
    skip: int

    @classmethod
    def over(cls, offset: int, limit: int) -> _Window:
        """Find the smallest page that holds the stretch, else two of the stretch's own length."""
        for size in range(limit, 2 * limit + 1):
            if offset // size == (offset + limit - 1) // size:
                return cls(size=size, page=offset // size + 1, pages=1, skip=offset % size)
        return cls(size=limit, page=offset // limit + 1, pages=2, skip=offset % limit)


def _role_kinds(row: _UserRow) -> list[str]:
    """Return what the user is, in Kolibri's words and in order of weight; each word once."""
    kinds = {role.kind for role in row.roles}
    if row.is_superuser:
        kinds.add("superuser")
    if not kinds:
        return ["learner"]
    return sorted(kinds, key=lambda kind: (_WEIGHTS.get(kind, len(_WEIGHTS)), kind))


def _birth_year(text: str | None) -> int | None:
    """Return the year; ``None`` for ``NOT_SPECIFIED``, ``DEFERRED`` and what is no year."""
    return int(text) if text and _YEAR.fullmatch(text) else None


def _reach(row: _UserRow | None, facility_id: str) -> _Reach:
    if row is None:
        return _Reach.ITSELF
    if row.is_superuser:
        return _Reach.EVERYTHING
    kinds = {role.kind for role in row.roles if role.collection == facility_id}
    if "admin" in kinds:
        return _Reach.ADMIN
    if "coach" in kinds:
        return _Reach.COACH
    return _Reach.OWN_CLASSES if row.roles else _Reach.ITSELF


def _problem_ids(response: Response) -> set[str]:
    """Return the names of what is wrong, whichever of its shapes Kolibri chose.

    ``[{"id": …}]``, ``{"id": …}``, ``["text"]``, ``{"detail": …}``, or HTML; the last three name
    nothing.
    """
    if response.status < HTTPStatus.BAD_REQUEST:
        return set()
    with suppress(msgspec.DecodeError, UnicodeDecodeError):
        answer = msgspec.json.decode(response.body)
        problems = answer if isinstance(answer, list) else [answer]
        return {
            problem["id"]
            for problem in problems
            if isinstance(problem, dict) and isinstance(problem.get("id"), str)
        }
    return set()


def _release(version: str) -> tuple[int, int]:
    found = _VERSION.match(version)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _facility_id(text: str | None) -> str | None:
    """Return a facility id as Kolibri writes it; dashes and capitals do not matter."""
    return (text or "").strip().replace("-", "").lower() or None


def _ids(texts: Collection[str]) -> set[str]:
    return {text for text in texts if _ID.fullmatch(text)}


def _chunks(items: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _listed(facilities: Sequence[_Facility]) -> str:
    """Name facilities with their ids, for a message."""
    named = [f"{printable(facility.name)} ({printable(facility.id)})" for facility in facilities]
    unnamed = len(named[_NAMED_AT_MOST:])
    return ", ".join(named[:_NAMED_AT_MOST]) + (f" and {unnamed} more" if unnamed else "")


def _moment(unix_seconds: float) -> datetime:
    return datetime.fromtimestamp(unix_seconds, tz=UTC)


def _bytes_of_data_uri(uri: str) -> bytes | None:
    """Return what a data URI holds, mending missing padding; ``None`` if that is hopeless."""
    head, comma, payload = uri.partition(",")
    if not comma or not head.lower().startswith("data:"):
        return None
    if not head.lower().endswith(";base64"):
        return unquote_to_bytes(payload)
    text = "".join(unquote(payload).split()).translate(str.maketrans("-_", "+/")).rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        return None


def _user_id(row: _UserRow) -> str:
    return row.id


def _course_id(course: Course) -> str:
    return course.external_id


def _place_id(place: _Place) -> str:
    return place.id


PLATFORM = Platform(
    name="kolibri",
    title="Kolibri",
    session=KolibriSession,
    credential_fields=(
        CredentialField(
            name="username", label="Username of a facility admin that nobody else uses"
        ),
        CredentialField(name="password", label="Password of that account", secret=True),
        CredentialField(
            name="account_id",
            label="Facility id, as shown at /api/public/v1/facility/; without it, the default one",
            required=False,
        ),
    ),
    capabilities=frozenset(
        {
            Capability.USERS,
            Capability.COURSES,
            Capability.ENROLLMENTS,
            Capability.PROGRESS,
            Capability.ICONS,
        }
    ),
    heartbeat_seconds=300,
    page_size=1000,
    concurrency=4,
    export_seconds={ACTIVITY: 1800},
    option_names={
        f"role.{kind}": f"The role that {kind} stands for, instead of {value}"
        for kind, value in _ROLES.items()
    },
    versions="0.17 to 0.19",
)
