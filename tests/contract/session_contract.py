"""What every platform promises, as a suite that each platform's test subclasses.

A subclass gives one fixture, ``installation``: a real server, or a faithful stand-in, with people,
courses and enrollments in it. See docs/adding-a-platform.md.
"""

import asyncio
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import pytest
from msgspec import structs

from sessions.addresses import AddressPolicy
from sessions.base import Export, Grant, NewGrant, Page, Platform, ProviderSession, Subject
from sessions.errors import NotSupported, ProviderAuthFailed, ProviderError, SessionLost
from sessions.http import HttpLimits, ProviderHttp, UpstreamCall
from storage.credentials import Secret
from storage.records import (
    Course,
    Enrollment,
    Provenance,
    Provider,
    ProviderState,
    RoleValue,
    User,
)

T = TypeVar("T", User, Course, Enrollment)


@dataclass(frozen=True, kw_only=True)
class Installation(ABC):
    """One server to talk to, and what a test may do to it.

    Attributes:
        platform: What is tested.
        base_url: Where the server is.
        credentials: Of an account that may read everything.
        wrong_credentials: Refused by the server.
        account_id: Which part of the installation is meant.
        unknown_user_id: Of the right form, but nobody's.
        unknown_course_id: The same for courses.
        role_words: Words of the platform's own that users and enrollments together must show.
        options: Settings of the provider.
    """

    platform: Platform
    base_url: str
    credentials: Mapping[str, str]
    wrong_credentials: Mapping[str, str]
    unknown_user_id: str
    unknown_course_id: str
    role_words: frozenset[str]
    account_id: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)

    @abstractmethod
    async def lose_sessions(self) -> None:
        """End all sessions at the server, as a restart without its session store would."""

    def provider(self) -> Provider:
        now = datetime.now(UTC)
        return Provider(
            id="7",
            platform=self.platform.name,
            name="Contract",
            base_url=self.base_url,
            account_id=self.account_id,
            options=self.options,
            state=ProviderState.ACTIVE,
            revision=1,
            created_at=now,
            updated_at=now,
        )


class InMemoryAuthorization:
    """What the session manager does, without its database: one login for all who need one."""

    def __init__(self, credentials: Mapping[str, str]) -> None:
        self.credentials = credentials
        self.session: ProviderSession | None = None
        self.grant: Grant | None = None
        self.logins = 0
        self._lock = asyncio.Lock()

    async def current(self) -> Grant:
        return self.grant or await self._newer_than(None)

    async def replace(self, lost: Grant, *, again: bool = False) -> Grant:
        return await self._newer_than(lost)

    async def _newer_than(self, lost: Grant | None) -> Grant:
        async with self._lock:
            if self.grant is not None and self.grant is not lost:
                return self.grant
            assert self.session is not None
            self.logins += 1
            granted = await self.session.log_in(Secret(self.credentials))
            return self.store(granted)

    def store(self, granted: NewGrant) -> Grant:
        """Keep what a transition obtained, as a new version."""
        version = self.grant.version + 1 if self.grant else 1
        self.grant = Grant(version=version, secret=granted.secret)
        return self.grant


class InMemoryExports:
    """Timed exports that run when first read; ``runs`` counts by name."""

    def __init__(self) -> None:
        self.session: ProviderSession | None = None
        self.runs: Counter[str] = Counter()
        self.kept: dict[str, Export | None] = {}
        self._lock = asyncio.Lock()

    async def read(self, name: str) -> Export | None:
        async with self._lock:
            if name not in self.kept:
                self.kept[name] = await self._run(name)
            return self.kept[name]

    async def _run(self, name: str) -> Export | None:
        assert self.session is not None
        self.runs[name] += 1
        try:
            body = await self.session.export(name)
        except ProviderError:
            return None
        return Export(body=body, fetched_at=datetime.now(UTC))


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """A session, and all that a test may ask about it."""

    session: ProviderSession
    authorization: InMemoryAuthorization
    exports: InMemoryExports
    http: ProviderHttp
    calls: list[UpstreamCall]

    def called(self) -> Counter[str]:
        """Calls since the last ``forget_calls``, by method and path."""
        return Counter(f"{call.method} {call.path}" for call in self.calls)

    def forget_calls(self) -> None:
        self.calls.clear()


@asynccontextmanager
async def converse(
    installation: Installation,
    *,
    credentials: Mapping[str, str] | None = None,
    subject: Subject = Subject(),  # noqa: B008 - frozen
) -> AsyncIterator[Conversation]:
    """Open a session that logs in when it first needs to."""
    calls: list[UpstreamCall] = []
    limits = HttpLimits(concurrency=installation.platform.concurrency)
    policy = AddressPolicy(allowed_networks=["127.0.0.0/8"])
    async with ProviderHttp.open(
        installation.base_url,
        provider_id="7",
        policy=policy,
        limits=limits,
        observer=calls.append,
    ) as http:
        authorization = InMemoryAuthorization(credentials or installation.credentials)
        exports = InMemoryExports()
        session = installation.platform.session(
            installation.provider(),
            http=http,
            authorization=authorization,
            exports=exports,
            subject=subject,
        )
        authorization.session = exports.session = session
        yield Conversation(
            session=session,
            authorization=authorization,
            exports=exports,
            http=http,
            calls=calls,
        )


async def all_pages(
    read: Callable[..., Awaitable[Page[T]]], *, limit: int, position: str | None = None
) -> list[T]:
    """Follow positions to the end."""
    items: list[T] = []
    for _ in range(10_000):
        page = await read(position=position, limit=limit)
        assert len(page.items) <= limit
        items += page.items
        if page.next_position is None:
            return items
        position = page.next_position
    pytest.fail("The pages have no end")


def without_times(records: Sequence[T]) -> list[T]:
    """Records with equal times of reading, so that two readings can be compared."""
    never = datetime(2000, 1, 1, tzinfo=UTC)
    return [
        structs.replace(record, provenance=structs.replace(record.provenance, fetched_at=never))
        for record in records
    ]


class SessionContract:
    """Subclass this as ``Test...`` and give it an ``installation`` fixture."""

    @pytest.fixture
    async def conversation(self, installation: Installation) -> AsyncIterator[Conversation]:
        async with converse(installation) as conversation:
            yield conversation

    # ---- pages

    async def test_pages_of_users_are_complete_and_unique_at_any_size(
        self, conversation: Conversation, installation: Installation
    ) -> None:
        read = conversation.session.list_users
        whole = await read(position=None, limit=installation.platform.page_size)
        ids = [user.external_id for user in whole.items]

        by_size = {
            size: [user.external_id for user in await all_pages(read, limit=size)]
            for size in (7, 10, 25)
        }

        assert whole.next_position is None
        assert whole.total in {None, len(ids)}
        assert len(set(ids)) == len(ids) > 25
        assert all(sorted(found) == sorted(ids) for found in by_size.values())

    async def test_pages_of_courses_are_complete_and_unique_at_any_size(
        self, conversation: Conversation
    ) -> None:
        read = conversation.session.list_courses
        whole = await read(position=None, limit=1000)
        ids = [course.external_id for course in whole.items]

        by_size = {
            size: [course.external_id for course in await all_pages(read, limit=size)]
            for size in (1, 4, 100)
        }

        assert whole.total in {None, len(ids)}
        assert len(set(ids)) == len(ids) > 4
        assert all(found == ids for found in by_size.values())

    async def test_pages_of_enrollments_are_complete_and_unique_at_any_size(
        self, conversation: Conversation
    ) -> None:
        read = conversation.session.list_enrollments
        whole = await read(position=None, limit=100_000)
        ids = [enrollment.id for enrollment in whole.items]

        by_size = {
            size: [enrollment.id for enrollment in await all_pages(read, limit=size)]
            for size in (9, 50)
        }

        assert whole.total in {None, len(ids)}
        assert len(set(ids)) == len(ids) > 9
        assert all(found == ids for found in by_size.values())

    async def test_a_page_may_begin_anywhere_an_earlier_one_ended(
        self, conversation: Conversation
    ) -> None:
        read = conversation.session.list_users
        everybody = {user.external_id for user in await all_pages(read, limit=1000)}

        first = await read(position=None, limit=3)
        second = await read(position=first.next_position, limit=10)
        rest = await all_pages(read, limit=25, position=second.next_position)

        found = [user.external_id for user in (*first.items, *second.items, *rest)]
        assert (len(first.items), len(second.items)) == (3, 10)
        assert len(found) == len(everybody)
        assert set(found) == everybody

    async def test_positions_lead_behind_their_rows(self, conversation: Conversation) -> None:
        session = conversation.session
        lists: list[tuple[Callable[..., Awaitable[Page[Any]]], str]] = [
            (session.list_users, "external_id"),
            (session.list_courses, "external_id"),
            (session.list_enrollments, "id"),
        ]
        for read, id_of in lists:
            page = await read(position=None, limit=9)
            assert len(page.positions) in {0, len(page.items)}
            for at in {0, 4, len(page.items) - 1} if page.positions else ():
                behind = await read(position=page.positions[at], limit=4)
                shown = [getattr(row, id_of) for row in behind.items]
                rest = [getattr(row, id_of) for row in page.items[at + 1 : at + 5]]
                assert shown[: len(rest)] == rest
                assert not set(shown) & {getattr(row, id_of) for row in page.items[: at + 1]}

    # ---- mappings

    async def test_users_by_id_are_those_of_the_list(
        self, conversation: Conversation, installation: Installation
    ) -> None:
        listed = await all_pages(conversation.session.list_users, limit=1000)
        wanted = [user.external_id for user in listed]

        fetched = await conversation.session.fetch_users(
            [*wanted, installation.unknown_user_id, "no-such-id"]
        )

        assert set(fetched) == set(wanted)
        assert all(fetched[id_].external_id == id_ for id_ in wanted)
        assert without_times([fetched[id_] for id_ in wanted]) == without_times(listed)

    async def test_a_few_users_by_id_are_just_those(
        self, conversation: Conversation, installation: Installation
    ) -> None:
        listed = (await conversation.session.list_users(position=None, limit=3)).items
        wanted = [user.external_id for user in listed]

        fetched = await conversation.session.fetch_users([*wanted, installation.unknown_user_id])

        assert set(fetched) == set(wanted)

    async def test_nothing_asked_is_nothing_called(self, conversation: Conversation) -> None:
        session = conversation.session

        found = [
            await session.fetch_users([]),
            await session.fetch_courses([]),
            await session.fetch_enrollments_by_user([]),
            await session.fetch_enrollments_by_course([]),
        ]

        assert found == [{}, {}, {}, {}]
        assert conversation.calls == []

    async def test_courses_by_id_are_those_of_the_list(
        self, conversation: Conversation, installation: Installation
    ) -> None:
        listed = await all_pages(conversation.session.list_courses, limit=1000)
        wanted = [course.external_id for course in listed]

        fetched = await conversation.session.fetch_courses(
            [*wanted, installation.unknown_course_id, "no-such-id"]
        )

        assert set(fetched) == set(wanted)
        assert [fetched[id_].title for id_ in wanted] == [course.title for course in listed]

    async def test_enrollments_are_the_same_by_user_by_course_and_listed(
        self, conversation: Conversation, installation: Installation
    ) -> None:
        session = conversation.session
        users = {user.external_id for user in await all_pages(session.list_users, limit=1000)}
        courses = {c.external_id for c in await all_pages(session.list_courses, limit=1000)}

        listed = await all_pages(session.list_enrollments, limit=1000)
        by_user = await session.fetch_enrollments_by_user(
            [*users, installation.unknown_user_id, "no-such-id"]
        )
        by_course = await session.fetch_enrollments_by_course(
            [*courses, installation.unknown_course_id, "no-such-id"]
        )

        from_users = [enrollment for rows in by_user.values() for enrollment in rows]
        from_courses = [enrollment for rows in by_course.values() for enrollment in rows]
        ids = sorted(enrollment.id for enrollment in listed)
        assert sorted(enrollment.id for enrollment in from_users) == ids
        assert sorted(enrollment.id for enrollment in from_courses) == ids
        assert all(row.user_id == user for user, rows in by_user.items() for row in rows)
        assert all(row.course_id == course for course, rows in by_course.items() for row in rows)
        assert {row.user_id for row in listed} <= users
        assert {row.course_id for row in listed} <= courses

    async def test_whoever_has_no_enrollments_maps_to_an_empty_sequence(
        self, conversation: Conversation
    ) -> None:
        session = conversation.session
        users = [user.external_id for user in await all_pages(session.list_users, limit=1000)]
        courses = [c.external_id for c in await all_pages(session.list_courses, limit=1000)]

        by_user = await session.fetch_enrollments_by_user(users)
        by_course = await session.fetch_enrollments_by_course(courses)

        assert set(by_user) == set(users)
        assert set(by_course) == set(courses)
        assert [] in [list(rows) for rows in by_user.values()]

    # ---- what a record says

    async def test_every_record_says_where_it_comes_from(self, conversation: Conversation) -> None:
        session = conversation.session
        started_at = datetime.now(UTC) - timedelta(seconds=1)

        records: list[User | Course | Enrollment] = [
            *await all_pages(session.list_users, limit=1000),
            *await all_pages(session.list_courses, limit=1000),
            *await all_pages(session.list_enrollments, limit=1000),
        ]

        assert {record.provider_id for record in records} == {"7"}
        assert [record for record in records if not says_enough(record.provenance)] == []
        assert all(started_at <= r.provenance.fetched_at <= datetime.now(UTC) for r in records)

    async def test_roles_keep_the_platforms_own_words(
        self, conversation: Conversation, installation: Installation
    ) -> None:
        session = conversation.session
        users = await all_pages(session.list_users, limit=1000)
        enrollments = await all_pages(session.list_enrollments, limit=1000)

        roles = {
            *(role for user in users for role in user.roles),
            *(enrollment.role for enrollment in enrollments),
        }

        assert {role.source_value for role in roles} >= installation.role_words
        assert RoleValue.OTHER not in {role.value for role in roles}

    async def test_instants_are_aware_and_in_utc(self, conversation: Conversation) -> None:
        session = conversation.session

        enrollments = await all_pages(session.list_enrollments, limit=1000)
        courses = await all_pages(session.list_courses, limit=1000)

        instants = [
            instant
            for row in enrollments
            for instant in (row.enrolled_at, row.starts_at, row.ends_at, row.last_activity_at)
        ]
        instants += [course.provenance.modified_at for course in courses]
        assert {i.utcoffset() for i in instants if i is not None} <= {timedelta(0)}

    async def test_a_check_names_the_release_and_what_the_account_may_see(
        self, conversation: Conversation
    ) -> None:
        check = await conversation.session.check()

        assert check.version == "unknown" or check.version[0].isdigit()
        assert check.name
        assert check.account
        assert check.missing == ()

    # ---- losing the session

    async def test_a_lost_session_is_replaced_without_the_caller_noticing(
        self, conversation: Conversation, installation: Installation
    ) -> None:
        session, authorization = conversation.session, conversation.authorization
        users = [u.external_id for u in await all_pages(session.list_users, limit=1000)]
        courses = [c.external_id for c in await all_pages(session.list_courses, limit=1000)]
        reads: Mapping[str, Callable[[], Awaitable[Any]]] = {
            "list_users": lambda: session.list_users(position=None, limit=10),
            "fetch_users": lambda: session.fetch_users(users[:3]),
            "list_courses": lambda: session.list_courses(position=None, limit=1000),
            "fetch_courses": lambda: session.fetch_courses(courses),
            "list_enrollments": lambda: session.list_enrollments(position=None, limit=1000),
            "by_user": lambda: session.fetch_enrollments_by_user(users),
            "by_course": lambda: session.fetch_enrollments_by_course(courses),
        }

        for name, read in reads.items():
            before = len_of(await read())
            logins = authorization.logins
            forget_shared(conversation)
            await installation.lose_sessions()
            after = len_of(await read())
            assert (name, after) == (name, before)
            assert before > 0
            assert (name, authorization.logins) == (name, logins + 1)

    async def test_many_callers_of_a_lost_session_cause_one_login(
        self, conversation: Conversation, installation: Installation
    ) -> None:
        session = conversation.session
        expected = len((await session.list_users(position=None, limit=10)).items)
        await installation.lose_sessions()

        pages = await asyncio.gather(
            *(session.list_users(position=None, limit=10) for _ in range(20))
        )

        assert [len(page.items) for page in pages] == [expected] * 20
        assert conversation.authorization.logins == 2

    async def test_keep_alive_proves_life(
        self, conversation: Conversation, installation: Installation
    ) -> None:
        session, authorization = conversation.session, conversation.authorization
        grant = await authorization.current()

        kept = authorization.store(await session.keep_alive(grant))
        still = await session.list_users(position=None, limit=5)
        await installation.lose_sessions()

        assert len(still.items) == 5
        assert authorization.logins == 1
        with pytest.raises(SessionLost):
            await session.keep_alive(kept)

    async def test_logging_out_ends_the_session(self, conversation: Conversation) -> None:
        session, authorization = conversation.session, conversation.authorization
        grant = await authorization.current()

        await session.log_out(NewGrant(secret=grant.secret))

        with pytest.raises(SessionLost):
            await session.keep_alive(grant)
        await session.log_out(NewGrant(secret=grant.secret))  # again, of no consequence

    # ---- secrets and refusals

    async def test_wrong_credentials_are_refused_after_one_attempt(
        self, installation: Installation
    ) -> None:
        async with converse(installation, credentials=installation.wrong_credentials) as wrong:
            with pytest.raises(ProviderAuthFailed) as refused:
                await wrong.session.list_users(position=None, limit=1)

        assert wrong.authorization.logins == 1
        assert refused.value.message[0].isupper()
        assert not refused.value.message.endswith(".")
        assert refused.value.provider_id == "7"

    async def test_secrets_show_nowhere(
        self, conversation: Conversation, installation: Installation
    ) -> None:
        grant = await conversation.authorization.current()
        await conversation.session.list_users(position=None, limit=1)
        async with converse(installation, credentials=installation.wrong_credentials) as wrong:
            with pytest.raises(ProviderError) as refused:
                await wrong.session.list_users(position=None, limit=1)

        shown = " ".join(
            [
                repr(grant),
                repr(NewGrant(secret=grant.secret)),
                repr(conversation.session),
                repr(conversation.calls),
                repr(refused.value),
                str(refused.value),
                repr(refused.value.__cause__),
            ]
        )
        secret_names = {
            item.name for item in installation.platform.credential_fields if item.secret
        }
        secrets = [installation.credentials[name] for name in secret_names]
        secrets += [installation.wrong_credentials[name] for name in secret_names]
        secrets += [value for value in grant.secret.reveal().values() if len(value) > 32]
        assert [secret for secret in secrets if secret in shown] == []
        assert len(secrets) >= 2

    async def test_an_unknown_export_is_not_supported(self, conversation: Conversation) -> None:
        with pytest.raises(NotSupported):
            await conversation.session.export("no-such-export")

        assert conversation.calls == []

    async def test_the_platform_describes_itself(self, installation: Installation) -> None:
        platform = installation.platform

        names = [item.name for item in platform.credential_fields]

        assert platform.name == platform.name.lower()
        assert platform.title
        assert platform.versions
        assert platform.page_size > 0
        assert platform.concurrency > 0
        assert len(set(names)) == len(names)
        assert {item.name for item in platform.credential_fields if item.required} <= set(
            installation.credentials
        )


def forget_shared(conversation: Conversation) -> None:
    """Make a session drop what it shares for a moment, by committing its grant once more."""
    authorization = conversation.authorization
    assert authorization.grant is not None
    authorization.store(NewGrant(secret=authorization.grant.secret))


def says_enough(provenance: Provenance) -> bool:
    return (
        provenance.provider_id == "7"
        and bool(provenance.external_id)
        and bool(provenance.source_type)
        and provenance.fetched_at.utcoffset() == timedelta(0)
        and not provenance.stale
    )


def len_of(answer: Any) -> int:
    """How much an answer holds, whether it is a page, a mapping, or a mapping of sequences."""
    if isinstance(answer, Page):
        return len(answer.items)
    if answer and isinstance(next(iter(answer.values())), list):
        return sum(len(rows) for rows in answer.values())
    return len(answer)
