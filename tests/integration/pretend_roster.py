"""Providers in memory that record every call, and a request over them."""

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar, cast

from resolvers.caching import RecordCache
from resolvers.context import (
    Asset,
    ProviderChanges,
    ProviderCheckReport,
    ProviderDraft,
    ReadingLimits,
    Refusal,
    RequestContext,
)
from schema import build_schema
from schema.execution import execute
from sessions.base import (
    SERVICE,
    Authorization,
    Capability,
    Exports,
    Grant,
    NewGrant,
    Page,
    Pair,
    Platform,
    ProviderCheck,
    ProviderSession,
    Subject,
)
from sessions.errors import ProviderError, ProviderNotFound, ReauthRequired
from sessions.http import ProviderHttp
from sessions.resilience import ProviderHealth
from sessions.strategies import Choice, note_choice
from storage.credentials import Secret
from storage.leases import SessionStatus
from storage.records import (
    Activity,
    Course,
    CourseKind,
    CourseState,
    Enrollment,
    EnrollmentSource,
    EnrollmentState,
    IconSource,
    Milestone,
    MilestoneState,
    Progress,
    ProgressMethod,
    Provenance,
    Provider,
    ProviderState,
    Role,
    RoleValue,
    Section,
    SessionState,
    User,
)

T = TypeVar("T")

NOW = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
SCHEMA = build_schema()
ALL_SCOPES = frozenset({"admin"})


@dataclass(slots=True)
class Roster:
    """What one provider shows a subject, whether it is up, and every call it got.

    ``sections``, ``milestones`` and ``activities`` are ``None`` where the platform has none;
    ``progress`` is what a call of its own tells. ``seen_by`` holds what single users are shown.
    """

    provider: Provider
    users: list[User] = field(default_factory=list)
    courses: list[Course] = field(default_factory=list)
    enrollments: list[Enrollment] = field(default_factory=list)
    sections: list[Section] | None = None
    milestones: list[Milestone] | None = None
    activities: list[Activity] | None = None
    progress: dict[Pair, Progress] = field(default_factory=dict)
    seen_by: dict[str, "Roster"] = field(default_factory=dict)
    failure: ProviderError | None = None
    failures_by_call: dict[str, Exception] = field(default_factory=dict)
    delay_seconds: float = 0
    tells_total: bool = True
    stuck: bool = False
    calls: list[tuple[str, Any]] = field(default_factory=list)
    session: "type[RecordingSession] | None" = None

    def call_names(self) -> list[str]:
        return [name for name, _arguments in self.calls]


class RecordingSession(ProviderSession):
    """A session that reads a roster; positions are offsets."""

    def __init__(self, roster: Roster, subject: str = SERVICE) -> None:
        super().__init__(
            roster.provider,
            subject=Subject.parse(subject),
            http=cast("ProviderHttp", None),  # never used: the roster is in memory
            authorization=cast("Authorization", None),  # the same
            exports=cast("Exports", None),  # the same
        )
        self.roster = roster

    async def log_in(self, credentials: Secret[Mapping[str, str]]) -> NewGrant:
        raise NotImplementedError

    async def keep_alive(self, grant: Grant) -> NewGrant:
        raise NotImplementedError

    async def log_out(self, grant: NewGrant) -> None:
        raise NotImplementedError

    async def check(self) -> ProviderCheck:
        raise NotImplementedError

    async def list_users(self, *, position: str | None, limit: int) -> Page[User]:
        await self._called("list_users", (position, limit))
        return self._page(self.roster.users, position, limit)

    async def fetch_users(self, user_ids: Collection[str]) -> Mapping[str, User]:
        await self._called("fetch_users", list(user_ids))
        wanted = set(user_ids)
        return {row.external_id: row for row in self.roster.users if row.external_id in wanted}

    async def list_courses(self, *, position: str | None, limit: int) -> Page[Course]:
        await self._called("list_courses", (position, limit))
        return self._page(self.roster.courses, position, limit)

    async def fetch_courses(self, course_ids: Collection[str]) -> Mapping[str, Course]:
        await self._called("fetch_courses", list(course_ids))
        wanted = set(course_ids)
        return {row.external_id: row for row in self.roster.courses if row.external_id in wanted}

    async def list_enrollments(self, *, position: str | None, limit: int) -> Page[Enrollment]:
        await self._called("list_enrollments", (position, limit))
        return self._page(self.roster.enrollments, position, limit)

    async def fetch_enrollments_by_user(
        self, user_ids: Collection[str]
    ) -> Mapping[str, Sequence[Enrollment]]:
        await self._called("fetch_enrollments_by_user", list(user_ids))
        note_choice(
            Choice(
                provider_id=self.provider.id,
                subject=str(self.subject),
                wanted="enrollments by user",
                keys=len(user_ids),
                chosen="all at once",
                calls_by_strategy={"all at once": 1, "by user": len(user_ids)},
            )
        )
        known = {row.external_id for row in self.roster.users}
        found: dict[str, list[Enrollment]] = {key: [] for key in user_ids if key in known}
        for row in self.roster.enrollments:
            if row.user_id in found:
                found[row.user_id].append(row)
        return found

    async def fetch_enrollments_by_course(
        self, course_ids: Collection[str]
    ) -> Mapping[str, Sequence[Enrollment]]:
        await self._called("fetch_enrollments_by_course", list(course_ids))
        known = {row.external_id for row in self.roster.courses}
        found: dict[str, list[Enrollment]] = {key: [] for key in course_ids if key in known}
        for row in self.roster.enrollments:
            if row.course_id in found:
                found[row.course_id].append(row)
        return found

    async def fetch_progress(self, pairs: Collection[Pair]) -> Mapping[Pair, Progress]:
        await self._called("fetch_progress", list(pairs))
        return {pair: self.roster.progress[pair] for pair in pairs if pair in self.roster.progress}

    async def fetch_milestones(self, pairs: Collection[Pair]) -> Mapping[Pair, Sequence[Milestone]]:
        if self.roster.milestones is None:
            return await super().fetch_milestones(pairs)
        await self._called("fetch_milestones", list(pairs))
        found: dict[Pair, list[Milestone]] = {pair: [] for pair in pairs}
        for row in self.roster.milestones:
            if (row.user_id, row.course_id) in found:
                found[row.user_id, row.course_id].append(row)
        return found

    async def fetch_sections_by_course(
        self, course_ids: Collection[str]
    ) -> Mapping[str, Sequence[Section]]:
        if self.roster.sections is None:
            return await super().fetch_sections_by_course(course_ids)
        await self._called("fetch_sections_by_course", list(course_ids))
        known = {row.external_id for row in self.roster.courses}
        return {
            key: [row for row in self.roster.sections if row.course_id == key]
            for key in course_ids
            if key in known
        }

    async def fetch_activity_by_user(
        self, user_ids: Collection[str], *, limit: int
    ) -> Mapping[str, Sequence[Activity]]:
        if self.roster.activities is None:
            return await super().fetch_activity_by_user(user_ids, limit=limit)
        await self._called("fetch_activity_by_user", (list(user_ids), limit))
        return {
            key: [row for row in self.roster.activities if row.user_id == key][:limit]
            for key in user_ids
        }

    async def _called(self, name: str, arguments: object) -> None:
        self.roster.calls.append((name, arguments))
        await asyncio.sleep(self.roster.delay_seconds)
        if self.roster.failure is not None:
            raise self.roster.failure
        if name in self.roster.failures_by_call:
            raise self.roster.failures_by_call[name]

    def _page(self, rows: Sequence[T], position: str | None, limit: int) -> Page[T]:
        start = int(position or 0)
        following = start + limit
        if self.roster.stuck and start:
            return Page(items=rows[start:following], next_position=position)
        return Page(
            items=rows[start:following],
            next_position=str(following) if following < len(rows) else None,
            total=len(rows) if self.roster.tells_total else None,
        )


PLATFORM = Platform(
    name="pretend",
    title="Pretend",
    session=RecordingSession,
    credential_fields=(),
    capabilities=frozenset({Capability.USERS, Capability.COURSES}),
    page_size=1000,
)


@dataclass(slots=True)
class World:
    """Everything a request needs, in memory; satisfies the protocols of the context."""

    rosters: dict[str, Roster] = field(default_factory=dict)
    statuses: list[SessionStatus] = field(default_factory=list)
    health_by_provider: dict[str, ProviderHealth] = field(default_factory=dict)
    status_questions: list[tuple[Any, ...]] = field(default_factory=list)
    lent: list[tuple[str, str]] = field(default_factory=list)
    icon_batches: list[int] = field(default_factory=list)
    changes: int = 0
    platform: Platform = PLATFORM
    limits: ReadingLimits = field(default_factory=lambda: ReadingLimits(cursor_key=Secret(b"key")))
    registered: list[ProviderDraft] = field(default_factory=list)
    updated: list[tuple[str, ProviderChanges]] = field(default_factory=list)
    asked_for: list[str] = field(default_factory=list)
    writes: list[str] = field(default_factory=list)
    registrable: dict[str, Provider] = field(default_factory=dict)
    refusal: Refusal | None = None

    def add(self, provider_id: str, *, user_count: int = 0, course_count: int = 0) -> Roster:
        provider = a_provider(provider_id, number=len(self.rosters))
        roster = Roster(provider)
        roster.users = [a_user(provider_id, index) for index in range(user_count)]
        roster.courses = [a_course(provider_id, index) for index in range(course_count)]
        self.rosters[provider_id] = roster
        return roster

    # Sessions

    @asynccontextmanager
    async def session(
        self, provider_id: str, subject: str = SERVICE, /
    ) -> AsyncIterator[ProviderSession]:
        self.lent.append((provider_id, subject))
        roster: Roster | None = self.rosters.get(provider_id)
        if roster is None:
            raise ProviderNotFound("No such provider is registered", provider_id=provider_id)
        if subject != SERVICE:
            roster = roster.seen_by.get(subject)
        if roster is None:
            raise ReauthRequired("The user has not agreed", provider_id=provider_id)
        yield (roster.session or RecordingSession)(roster, subject)

    def health(self, provider_id: str, /) -> ProviderHealth | None:
        return self.health_by_provider.get(provider_id)

    async def list_statuses(
        self,
        *,
        provider_ids: Collection[str] | None = None,
        states: Collection[SessionState] | None = None,
        subject: str | None = None,
        limit: int | None = None,
    ) -> Sequence[SessionStatus]:
        self.status_questions.append((provider_ids, states, subject, limit))
        found: dict[str, list[SessionStatus]] = {}
        for row in sorted(self.statuses, key=lambda row: (row.provider_id, row.subject)):
            if (
                (provider_ids is None or row.provider_id in provider_ids)
                and (states is None or row.state in states)
                and subject in {None, row.subject}
            ):
                found.setdefault(row.provider_id, []).append(row)
        return [row for rows in found.values() for row in rows[:limit]]

    # Providers

    async def get_all(self) -> Sequence[Provider]:
        return [
            roster.provider
            for roster in self.rosters.values()
            if roster.provider.id not in self.registrable
        ]

    async def note_write(self, provider_id: str, /) -> None:
        self.writes.append(provider_id)

    # Platforms

    def get(self, name: str) -> Platform | None:
        return self.platform if name == self.platform.name else None

    # Icons

    def urls_at_hand(self, _wanted: Sequence[tuple[Course, int]]) -> None:
        """Have every icon waited for."""

    async def urls(self, wanted: Sequence[tuple[Course, int]]) -> Sequence[str | None]:
        self.icon_batches.append(len(wanted))
        return [
            None if course.icon is None else f"/media/{course.external_id}-{width}.webp"
            for course, width in wanted
        ]

    async def assets(self, courses: Sequence[Course]) -> Sequence[Asset | None]:
        return [
            None
            if course.icon is None
            else Asset(
                sha256="ab" * 32,
                media_type="image/webp",
                byte_size=120,
                width=64,
                height=64,
                url=f"/media/{'ab' * 32}.webp",
            )
            for course in courses
        ]

    # Registration

    async def find(self, provider_id: str) -> Provider | None:
        self.asked_for.append(provider_id)
        return self.registrable.get(provider_id)

    async def register(self, draft: ProviderDraft) -> Provider | Refusal:
        self.registered.append(draft)
        return self.refusal or self.add(draft.id).provider

    async def update(self, provider_id: str, changes: ProviderChanges) -> Provider | Refusal:
        self.updated.append((provider_id, changes))
        return self.refusal or self.rosters[provider_id].provider

    async def remove(self, provider_id: str) -> bool:
        return self.rosters.pop(provider_id, None) is not None

    async def check(self, provider_id: str) -> ProviderCheckReport | Refusal:
        return self.refusal or ProviderCheckReport(
            provider=self.rosters[provider_id].provider,
            version="1.2",
            name="Pretend school",
            account="Everything",
            missing=("Reading logs: no progress",),
        )

    async def revoke(self, provider_id: str, subject: str) -> bool:
        return any(
            (status.provider_id, status.subject) == (provider_id, subject)
            for status in self.statuses
        )


@dataclass(frozen=True, slots=True)
class Key:
    """What a caller may do."""

    scopes: frozenset[str] = ALL_SCOPES
    hidden: frozenset[str] = frozenset()
    key_id: str = "key"
    accounts: Mapping[str, str] | None = None

    def allows(self, scope: str, /) -> bool:
        return "admin" in self.scopes or scope in self.scopes

    def sees(self, provider_id: str, /) -> bool:
        if self.accounts is not None:
            return provider_id in self.accounts
        return provider_id not in self.hidden


def a_context(
    world: World,
    key: Key | None = None,
    subjects: Mapping[str, str] | None = None,
    cache: RecordCache | None = None,
) -> RequestContext:
    return RequestContext(
        access=key or Key(),
        sessions=world,
        providers=world,
        platforms=world,
        registration=world,
        icons=world,
        limits=world.limits,
        cache=cache,
        request_id="request-1",
        subjects=subjects or {},
    )


async def ask(
    world: World,
    query: str,
    variables: Mapping[str, Any] | None = None,
    key: Key | None = None,
    subjects: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the whole answer to a query."""
    body = {"query": query, "variables": variables}
    _status, answer = await execute(SCHEMA, body, a_context(world, key, subjects))
    return answer


async def answer_of(
    world: World,
    query: str,
    variables: Mapping[str, Any] | None = None,
    key: Key | None = None,
    subjects: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the data of an answer that has no errors."""
    answer = await ask(world, query, variables, key, subjects)
    assert "errors" not in answer, answer["errors"]
    data: dict[str, Any] = answer["data"]
    return data


def a_provider(provider_id: str, *, number: int = 0) -> Provider:
    at = NOW + timedelta(seconds=number)
    return Provider(
        id=provider_id,
        platform="pretend",
        name=f"School {provider_id}",
        base_url=f"https://{provider_id}.example",
        options={},
        state=ProviderState.ACTIVE,
        version="1.2",
        revision=1,
        created_at=at,
        updated_at=at,
    )


def provenance(provider_id: str, external_id: str, source_type: str) -> Provenance:
    return Provenance(
        provider_id=provider_id,
        external_id=external_id,
        source_type=source_type,
        fetched_at=NOW,
    )


def a_user(provider_id: str, number: int, **changes: Any) -> User:
    external_id = f"u{number}"
    values: dict[str, Any] = {
        "provider_id": provider_id,
        "external_id": external_id,
        "username": f"user{number}",
        "display_name": f"User {number}",
        "roles": (Role(value=RoleValue.STUDENT, source_value="learner"),),
        "provenance": provenance(provider_id, external_id, "account"),
    }
    return User(**{**values, **changes})


def a_course(provider_id: str, number: int, **changes: Any) -> Course:
    external_id = f"c{number}"
    values: dict[str, Any] = {
        "provider_id": provider_id,
        "external_id": external_id,
        "kind": CourseKind.CLASS,
        "title": f"Course {number}",
        "state": CourseState.ACTIVE,
        "icon": IconSource(reference="data:image/png;base64,"),
        "provenance": provenance(provider_id, external_id, "room"),
    }
    return Course(**{**values, **changes})


def an_enrollment(provider_id: str, user_id: str, course_id: str, **changes: Any) -> Enrollment:
    external_id = f"{user_id}-{course_id}"
    values: dict[str, Any] = {
        "provider_id": provider_id,
        "id": external_id,
        "external_id": external_id,
        "user_id": user_id,
        "course_id": course_id,
        "role": Role(value=RoleValue.STUDENT, source_value="learner"),
        "state": EnrollmentState.ACTIVE,
        "source": EnrollmentSource.ROSTER,
        "progress": Progress(ratio=0.5, method=ProgressMethod.REPORTED),
        "provenance": provenance(provider_id, external_id, "membership"),
    }
    return Enrollment(**{**values, **changes})


def a_section(provider_id: str, course_id: str, number: int, **changes: Any) -> Section:
    external_id = f"{course_id}-s{number}"
    values: dict[str, Any] = {
        "provider_id": provider_id,
        "external_id": external_id,
        "course_id": course_id,
        "title": f"Section {number}",
        "provenance": provenance(provider_id, external_id, "group"),
    }
    return Section(**{**values, **changes})


def a_milestone(
    provider_id: str, user_id: str, course_id: str, number: int, **changes: Any
) -> Milestone:
    external_id = f"{user_id}-{course_id}-m{number}"
    values: dict[str, Any] = {
        "provider_id": provider_id,
        "external_id": external_id,
        "user_id": user_id,
        "course_id": course_id,
        "title": f"Essay {number}",
        "state": MilestoneState.OPEN,
        "provenance": provenance(provider_id, external_id, "handing in"),
    }
    return Milestone(**{**values, **changes})


def an_activity(provider_id: str, user_id: str, number: int, **changes: Any) -> Activity:
    external_id = f"{user_id}-a{number}"
    values: dict[str, Any] = {
        "provider_id": provider_id,
        "external_id": external_id,
        "user_id": user_id,
        "kind": "look",
        "at": NOW - timedelta(minutes=number),
        "provenance": provenance(provider_id, external_id, "click"),
    }
    return Activity(**{**values, **changes})


def a_status(provider_id: str, **changes: Any) -> SessionStatus:
    values: dict[str, Any] = {
        "provider_id": provider_id,
        "subject": "service",
        "state": SessionState.ACTIVE,
        "version": 3,
    }
    return SessionStatus(**{**values, **changes})
