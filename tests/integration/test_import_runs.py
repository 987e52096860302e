"""Import runs over providers in memory and a real database."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pretend_platform import open_gateway
from pretend_roster import (
    NOW,
    PLATFORM,
    RecordingSession,
    Roster,
    World,
    a_course,
    a_user,
    an_enrollment,
)
from sqlalchemy import select

from resolvers import importing
from resolvers.importing import CARE_JOB, Importer, ImportSettings, RosterRecord, record_of
from sessions.base import SERVICE, Capability, Page, ProviderSession
from sessions.errors import (
    NotSupported,
    ProviderBadResponse,
    ProviderForbidden,
    ProviderNotFound,
    ProviderRateLimited,
    ProviderUnavailable,
)
from sessions.scheduler import ScheduledWork
from storage.credentials import KeyRing, Secret
from storage.database import Database, open_database
from storage.errors import StorageUnavailable
from storage.imports import (
    IMPORT_JOB,
    ChangeType,
    ImportRun,
    ImportState,
    ImportStore,
    ListCounts,
    RosterKind,
)
from storage.leases import JobClaim, LeaseStore
from storage.providers import ProviderStore
from storage.records import ProviderState, User
from storage.tables import snapshot

USERS, COURSES, ENROLLMENTS = RosterKind
ALL_LISTS = replace(
    PLATFORM,
    capabilities=frozenset({Capability.USERS, Capability.COURSES, Capability.ENROLLMENTS}),
    page_size=2,
)
BY_HAND = ImportSettings(interval_seconds=None, changes_kept_seconds=3600)
DAILY = replace(BY_HAND, interval_seconds=86_400)
DOWN = ProviderUnavailable("It is down", provider_id="1")


@dataclass
class Office:
    """An importer, what it imports from, and what it keeps."""

    database: Database
    key_ring: KeyRing
    world: World
    settings: ImportSettings = BY_HAND
    sessions: Any = None
    owner: str = "tests"
    imports: ImportStore = field(init=False)
    leases: LeaseStore = field(init=False)
    providers: ProviderStore = field(init=False)
    importer: Importer = field(init=False)

    def __post_init__(self) -> None:
        self.imports = ImportStore(self.database)
        self.leases = LeaseStore(self.database, self.key_ring, owner=self.owner)
        self.providers = ProviderStore(self.database, self.key_ring)
        self.importer = Importer(
            imports=self.imports,
            leases=self.leases,
            sessions=self.sessions or self.world,
            providers=self.providers,
            platforms=self.world,
            settings=self.settings,
        )

    def with_sessions(self, sessions: Any, *, owner: str = "tests") -> "Office":
        return replace(self, sessions=sessions, owner=owner)

    def with_settings(self, settings: ImportSettings) -> "Office":
        return replace(self, settings=settings)

    async def add(self, provider_id: str = "1", **changes: Any) -> Roster:
        await self.providers.add(
            id=provider_id,
            platform="pretend",
            name="Pretend",
            base_url="http://pretend.example",
            credentials=Secret({}),
            **{"state": ProviderState.ACTIVE, **changes},
        )
        return self.world.add(provider_id)

    async def refresh(self, provider_id: str = "1", *, accept_drop: bool = False) -> ImportRun:
        """Have a run asked for and done; return how it ended."""
        found = await self.imports.request(provider_id, requested_by="key", accept_drop=accept_drop)
        assert found is not None
        await self.importer.run_now(provider_id)
        run = await self.imports.find_run(found[0].id)
        assert run is not None
        return run

    async def snapshot(self, provider_id: str = "1") -> dict[tuple[str, str], bytes]:
        async with self.database.read() as connection:
            found = await connection.execute(
                select(snapshot).where(snapshot.c.provider_id == provider_id)
            )
            return {(row.kind, row.external_id): row.record for row in found}

    async def replayed(self, provider_id: str = "1") -> dict[tuple[str, str], bytes]:
        """Return what the changes make of nothing."""
        page = await self.imports.list_changes(
            None, kinds=tuple(RosterKind), provider_ids=[provider_id], limit=100_000
        )
        made: dict[tuple[str, str], bytes] = {}
        for row in page.changes:
            key = (row.kind.value, row.external_id)
            assert (key in made) == (row.type is not ChangeType.CREATED)
            if row.type is ChangeType.DELETED:
                assert made.pop(key) == row.record
            else:
                assert made.get(key) != row.record
                made[key] = row.record
        return made

    async def seconds_to_due(self, provider_id: str = "1") -> float | None:
        job = await self.leases.find_job(IMPORT_JOB, provider_id)
        return None if job is None else job.seconds_to_due


@dataclass
class Meddling:
    """Sessions at whose lists of users something happens first, given roster and position."""

    world: World
    before: Callable[[Roster, str | None], Awaitable[None]]

    @asynccontextmanager
    async def session(
        self, provider_id: str, subject: str = SERVICE, /
    ) -> AsyncIterator[ProviderSession]:
        before = self.before

        class Session(RecordingSession):
            async def list_users(self, *, position: str | None, limit: int) -> Page[User]:
                await before(self.roster, position)
                return await super().list_users(position=position, limit=limit)

        async with self.world.session(provider_id, subject):
            yield Session(self.world.rosters[provider_id], subject)


class Pause:
    """Something that happens at one position: nothing, until told."""

    def __init__(self, position: str | None = None) -> None:
        self.position = position
        self.reached = asyncio.Event()
        self.go_on = asyncio.Event()

    async def __call__(self, _roster: Roster, position: str | None) -> None:
        if position == self.position:
            self.reached.set()
            await self.go_on.wait()


@pytest.fixture
def office(sqlite_database: Database, key_ring: KeyRing) -> Office:
    return Office(sqlite_database, key_ring, World(platform=ALL_LISTS))


def fill(roster: Roster, *, users: int, courses: int = 0, enrollments: int = 0) -> None:
    roster.users = [a_user("1", number) for number in range(users)]
    roster.courses = [a_course("1", number) for number in range(courses)]
    roster.enrollments = [an_enrollment("1", f"u{number}", "c0") for number in range(enrollments)]


async def test_a_run_reads_every_list_page_by_page_and_keeps_it(office: Office) -> None:
    roster = await office.add()
    fill(roster, users=5, courses=1, enrollments=2)

    run = await office.refresh()

    assert (run.state, run.problem) == (ImportState.DONE, None)
    assert run.counts == {
        USERS: ListCounts(read=5, total=5, created=5),
        COURSES: ListCounts(read=1, total=1, created=1),
        ENROLLMENTS: ListCounts(read=2, total=2, created=2),
    }
    assert roster.calls == [
        ("list_users", (None, 2)),
        ("list_users", ("2", 2)),
        ("list_users", ("4", 2)),
        ("list_courses", (None, 2)),
        ("list_enrollments", (None, 2)),
    ]
    assert office.world.lent == [("1", SERVICE)] * 5
    assert await office.snapshot() == await office.replayed()
    assert len(await office.snapshot()) == 8


async def test_what_a_platform_lacks_is_not_asked_for(office: Office) -> None:
    roster = await office.add()
    fill(roster, users=1, courses=1, enrollments=1)
    await office.refresh()
    office.world.platform = replace(ALL_LISTS, capabilities=frozenset({Capability.USERS}))
    roster.calls.clear()

    run = await office.refresh()

    assert (run.state, set(run.counts)) == (ImportState.DONE, {USERS})
    assert roster.call_names() == ["list_users"]
    assert len(await office.snapshot()) == 3


async def test_what_an_installation_turns_out_to_lack_is_left_out(office: Office) -> None:
    roster = await office.add()
    fill(roster, users=1, courses=1)
    roster.failures_by_call["list_courses"] = NotSupported("No courses", provider_id="1")

    run = await office.refresh()

    assert (run.state, set(run.counts)) == (ImportState.DONE, {USERS, ENROLLMENTS})


async def test_a_platform_that_is_not_installed_fails_the_run(office: Office) -> None:
    await office.add()
    office.world.platform = replace(ALL_LISTS, name="other")

    run = await office.refresh()

    assert (run.state, run.problem_code) == (ImportState.FAILED, "NOT_SUPPORTED")


# Failing.


async def test_a_failing_page_fails_the_run_and_the_next_goes_on_from_there(
    office: Office,
) -> None:
    roster = await office.add()
    fill(roster, users=5, courses=1)
    roster.failures_by_call["list_courses"] = DOWN

    failed = await office.refresh()

    assert (failed.state, failed.problem_code, failed.problem) == (
        ImportState.FAILED,
        "PROVIDER_UNAVAILABLE",
        "It is down",
    )
    assert failed.counts == {USERS: ListCounts(read=5, total=5)}
    assert await office.snapshot() == await office.replayed() == {}
    roster.failures_by_call.clear()
    roster.calls.clear()
    done = await office.refresh()
    assert (done.state, done.id > failed.id) == (ImportState.DONE, True)
    assert roster.calls == [("list_courses", (None, 2)), ("list_enrollments", (None, 2))]
    assert len(await office.snapshot()) == 6


async def test_a_position_that_is_good_no_more_begins_the_list_anew(office: Office) -> None:
    asked: list[str | None] = []
    errors: list[Exception] = [DOWN, ProviderBadResponse("No such page", provider_id="1")]

    async def fail_twice(_roster: Roster, position: str | None) -> None:
        asked.append(position)
        if position == "2" and errors:
            raise errors.pop(0)

    office = office.with_sessions(Meddling(office.world, fail_twice))
    fill(await office.add(), users=5)
    failed = await office.refresh()
    assert (failed.state, failed.position) == (ImportState.FAILED, "2")

    done = await office.refresh()

    assert done.counts[USERS] == ListCounts(read=5, total=5, created=5)
    assert asked == [None, "2", "2", None, "2", "4"]


async def test_a_provider_that_was_changed_meanwhile_is_read_from_the_beginning(
    office: Office,
) -> None:
    changed = False

    async def change(_roster: Roster, _position: str | None) -> None:
        nonlocal changed
        if not changed:
            changed = True
            provider = await office.providers.get("1")
            assert provider is not None
            await office.providers.update(
                "1", base_url="http://other.example", expected_revision=provider.revision
            )

    office = office.with_sessions(Meddling(office.world, change))
    roster = await office.add()
    fill(roster, users=1)

    failed = await office.refresh()
    roster.calls.clear()
    done = await office.refresh()

    assert (failed.state, failed.problem) == (
        ImportState.FAILED,
        "The provider was changed while it was read",
    )
    assert done.state is ImportState.DONE
    assert roster.call_names() == ["list_users", "list_courses", "list_enrollments"]


async def test_a_bad_answer_at_the_beginning_is_not_tried_again(office: Office) -> None:
    roster = await office.add()
    roster.failures_by_call["list_users"] = ProviderBadResponse("HTML", provider_id="1")

    run = await office.refresh()

    assert (run.state, run.problem_code) == (ImportState.FAILED, "PROVIDER_BAD_RESPONSE")
    assert roster.call_names() == ["list_users"]


async def test_a_list_that_does_not_advance_fails_the_run(office: Office) -> None:
    roster = await office.add()
    fill(roster, users=5)
    roster.stuck = True

    run = await office.refresh()

    assert (run.state, run.problem_code) == (ImportState.FAILED, "PROVIDER_BAD_RESPONSE")
    assert len(roster.calls) == 2


async def test_a_list_whose_length_changes_meanwhile_is_read_again(office: Office) -> None:
    asked: list[str | None] = []

    async def lose_one(roster: Roster, position: str | None) -> None:
        asked.append(position)
        if len(asked) == 2:
            del roster.users[0]

    office = office.with_sessions(Meddling(office.world, lose_one))
    roster = await office.add()
    fill(roster, users=6)

    run = await office.refresh()

    # The first user left between two pages, and u2 moved to the page that was read.
    assert asked == [None, "2", None, "2", "4"]
    assert run.counts[USERS] == ListCounts(read=5, total=5, created=5)


async def test_a_list_that_never_stands_still_is_taken_as_it_is_in_the_end(
    office: Office,
) -> None:
    async def lose_one(roster: Roster, _position: str | None) -> None:
        del roster.users[0]

    office = office.with_sessions(Meddling(office.world, lose_one))
    roster = await office.add()
    fill(roster, users=21)

    run = await office.refresh()

    # Two pages, two pages, and then a third time to the end.
    assert run.state is ImportState.DONE
    assert [position for name, (position, _) in roster.calls if name == "list_users"] == [
        None,
        "2",
        None,
        "2",
        None,
        "2",
        "4",
        "6",
        "8",
        "10",
    ]


@pytest.mark.parametrize(
    ("error", "least", "most"),
    [
        (DOWN, 30, 60),
        (ProviderRateLimited("Slower", provider_id="1", retry_after_seconds=300), 299, 300),
        (ProviderForbidden("No", provider_id="1"), None, None),
    ],
)
async def test_a_run_that_may_succeed_later_is_tried_again(
    office: Office, error: Exception, least: float | None, most: float | None
) -> None:
    roster = await office.add()
    roster.failures_by_call["list_users"] = error

    await office.refresh()

    due = await office.seconds_to_due()
    if least is None or most is None:
        assert due is None
    else:
        assert due is not None
        assert least - 1 < due <= most


async def test_after_a_few_attempts_it_waits_for_its_next_turn(office: Office) -> None:
    office = office.with_settings(replace(DAILY, retries=1))
    roster = await office.add()
    roster.failure = DOWN

    await office.refresh()
    first = await office.seconds_to_due()
    await office.refresh()
    second = await office.seconds_to_due()

    assert first is not None
    assert second is not None
    assert first <= 60
    assert second == pytest.approx(
        importing.seconds_to_start("1", interval_seconds=86_400, now=time.time(), at_least=60),
        abs=5,
    )


# Drops.


async def test_a_sudden_drop_is_held_and_nothing_changes(office: Office) -> None:
    roster = await office.add()
    fill(roster, users=10, courses=3, enrollments=1)
    await office.refresh()
    before = await office.snapshot()
    fill(roster, users=4, courses=3, enrollments=0)

    held = await office.refresh()

    assert held.state is ImportState.HELD
    assert held.problem_code is None
    assert held.problem is not None
    assert "only 4 users where there were 10, 0 enrollments where there were 1" in held.problem
    assert held.counts[USERS] == ListCounts(read=4, total=4, before=10)
    assert await office.snapshot() == await office.replayed() == before


async def test_a_drop_that_is_accepted_is_applied(office: Office) -> None:
    roster = await office.add()
    fill(roster, users=10)
    await office.refresh()
    fill(roster, users=0)
    assert (await office.refresh()).state is ImportState.HELD

    accepted = await office.refresh(accept_drop=True)

    assert accepted.state is ImportState.DONE
    assert accepted.counts[USERS] == ListCounts(total=0, before=10, deleted=10)
    assert await office.snapshot() == await office.replayed() == {}


async def test_a_held_run_is_followed_by_one_with_normal_counts(office: Office) -> None:
    roster = await office.add()
    fill(roster, users=10)
    await office.refresh()
    fill(roster, users=2)
    await office.refresh()
    fill(roster, users=9)

    run = await office.refresh()

    assert run.state is ImportState.DONE
    assert run.counts[USERS] == ListCounts(read=9, total=9, before=10, deleted=1)
    assert await office.snapshot() == await office.replayed()


# Planning.


async def test_a_new_provider_is_planned_for_its_own_second_but_not_within_the_hour(
    office: Office,
) -> None:
    office = office.with_settings(DAILY)
    await office.add("1")
    await office.add("2", state=ProviderState.DISABLED)
    await office.importer.start()
    claim = await office.leases.claim_job(CARE_JOB, "all", lease_seconds=30)
    assert claim is not None

    await office.importer.care(claim)

    due = await office.seconds_to_due("1")
    assert due is not None
    assert 3595 < due <= 3600 + 86_400
    assert due == pytest.approx(
        importing.seconds_to_start("1", interval_seconds=86_400, now=time.time(), at_least=3600),
        abs=5,
    )
    assert await office.seconds_to_due("2") is None
    care = await office.leases.find_job(CARE_JOB, "all")
    assert care is not None
    assert 50 < care.seconds_to_due <= 60
    assert office.world.lent == []


async def test_a_run_by_schedule_plans_the_next(office: Office) -> None:
    office = office.with_settings(DAILY)
    roster = await office.add()
    fill(roster, users=1)
    await office.imports.plan({"1": 0}, scheduled=True)

    await office.importer.run_now("1")

    run = (await office.imports.list_last_runs(["1"]))["1"]
    assert (run.state, run.requested_by) == (ImportState.DONE, "schedule")
    due = await office.seconds_to_due()
    assert due is not None
    assert 55 < due <= 86_460


async def test_a_provider_that_was_disabled_is_left_alone_and_has_no_turn_any_more(
    office: Office,
) -> None:
    office = office.with_settings(DAILY)
    await office.add(state=ProviderState.DISABLED)
    await office.imports.plan({"1": 0}, scheduled=True)

    await office.importer.run_now("1")

    assert await office.seconds_to_due() is None
    assert office.world.lent == []
    assert await office.imports.list_last_runs(["1"]) == {}


async def test_care_sweeps_old_changes(office: Office) -> None:
    office = office.with_settings(replace(BY_HAND, changes_kept_seconds=-60))
    roster = await office.add()
    fill(roster, users=3)
    await office.refresh()
    await office.importer.start()
    claim = await office.leases.claim_job(CARE_JOB, "all", lease_seconds=30)
    assert claim is not None

    await office.importer.care(claim)

    page = await office.imports.list_changes(None, kinds=[USERS], provider_ids=["1"], limit=10)
    assert (list(page.changes), page.oldest, page.latest) == ([], 3, 3)


# One run at a time, whatever happens.


async def test_two_gateways_do_one_run(any_database: Database, key_ring: KeyRing) -> None:
    world = World(platform=ALL_LISTS)
    one = Office(any_database, key_ring, world, owner="one")
    other = Office(any_database, key_ring, world, owner="other")
    roster = await one.add()
    fill(roster, users=6)
    roster.delay_seconds = 0.01

    runs = await asyncio.gather(*(office.refresh() for office in (one, other, one, other)))

    assert len({run.id for run in runs}) == 1
    assert len(roster.calls) == 5
    last = (await one.imports.list_last_runs(["1"]))["1"]
    assert (last.id, last.state) == (runs[0].id, ImportState.DONE)


async def test_a_holder_that_was_paused_too_long_finds_that_another_has_taken_over(
    office: Office,
) -> None:
    roster = await office.add()
    fill(roster, users=6)
    pause = Pause()
    paused = office.with_sessions(Meddling(office.world, pause), owner="paused")
    running = asyncio.create_task(paused.refresh())
    await pause.reached.wait()
    await paused.leases.release_all()  # as if its lease had run out

    done = await office.refresh()
    pause.go_on.set()
    late = await running

    assert (done.state, late) == (ImportState.DONE, done)
    assert len(await office.snapshot()) == 6
    assert await office.snapshot() == await office.replayed()


async def test_a_run_that_lost_its_lease_ends_while_it_still_waits_for_the_provider(
    office: Office,
) -> None:
    fill(await office.add(), users=2)
    pause = Pause()
    paused = office.with_settings(replace(BY_HAND, lease_seconds=0.3))
    paused = paused.with_sessions(Meddling(office.world, pause), owner="paused")
    running = asyncio.create_task(paused.refresh())
    await pause.reached.wait()
    await paused.leases.release_all()

    done = await office.refresh()

    assert (await running).id == done.id
    assert done.state is ImportState.DONE


async def test_a_run_renews_its_lease_while_it_waits_for_the_provider(office: Office) -> None:
    pause = Pause()

    class Noticing(LeaseStore):
        async def renew_job(self, claim: JobClaim, *, lease_seconds: float) -> bool:
            renewed = await super().renew_job(claim, lease_seconds=lease_seconds)
            asyncio.get_running_loop().call_soon(pause.go_on.set)
            return renewed

    fill(await office.add(), users=2)
    waiting = office.with_settings(replace(BY_HAND, lease_seconds=1.5))
    waiting = waiting.with_sessions(Meddling(office.world, pause))
    waiting.importer._leases = Noticing(office.database, office.key_ring, owner="tests")

    run = await waiting.refresh()

    assert run.state is ImportState.DONE


async def test_a_run_that_cannot_renew_its_lease_ends_in_time(office: Office) -> None:
    class Unreachable(LeaseStore):
        async def renew_job(self, claim: JobClaim, *, lease_seconds: float) -> bool:
            raise StorageUnavailable("Not now")

    fill(await office.add(), users=2)
    paused = office.with_settings(replace(BY_HAND, lease_seconds=0.1))
    paused = paused.with_sessions(Meddling(office.world, Pause()))
    paused.importer._leases = Unreachable(office.database, office.key_ring, owner="paused")

    run = await paused.refresh()

    assert run.state is ImportState.RUNNING


async def test_a_run_that_somebody_else_has_is_waited_for(office: Office) -> None:
    fill(await office.add(), users=2)
    pause = Pause()
    paused = office.with_sessions(Meddling(office.world, pause), owner="paused")
    running = asyncio.create_task(paused.refresh())
    await pause.reached.wait()
    run = (await office.imports.list_last_runs(["1"]))["1"]
    waiting = asyncio.create_task(office.importer.finish(run))
    pause.go_on.set()

    assert await waiting == await running
    with pytest.raises(ProviderNotFound):
        await office.importer.finish(replace(run, id=run.id + 1))


async def test_a_run_that_is_cancelled_is_gone_on_with(office: Office) -> None:
    roster = await office.add()
    fill(roster, users=6)
    pause = Pause("2")
    stopping = office.with_sessions(Meddling(office.world, pause), owner="other")
    running = asyncio.create_task(stopping.refresh())
    await pause.reached.wait()
    running.cancel()
    await asyncio.wait({running})
    await stopping.leases.release_all()
    roster.calls.clear()

    done = await office.refresh()

    assert done.state is ImportState.DONE
    assert roster.calls[0] == ("list_users", ("2", 2))


async def test_a_gateway_that_stops_gives_its_run_back(
    sqlite_database: Database, key_ring: KeyRing
) -> None:
    started = asyncio.Event()
    ended: list[type[BaseException]] = []

    async def run(_claim: JobClaim) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as error:
            ended.append(type(error))
            raise

    leases = LeaseStore(sqlite_database, key_ring, owner="tests")
    async with open_gateway(sqlite_database, key_ring, scheduled=True) as manager:
        work = ScheduledWork(kind="work", run=run, at_once=1, lease_seconds=100)
        manager.add_work(work)
        await leases.ensure_job("work", "1")
        await started.wait()
        await leases.ensure_job("work", "2")  # there is no room for it

    assert ended == [asyncio.CancelledError]
    for key in ("1", "2"):
        job = await leases.find_job("work", key)
        assert job is not None
        assert (job.leased_seconds <= 0, job.seconds_to_due <= 0) == (True, True)


class Crash(BaseException):
    """The process is gone."""


class CrashingDatabase:
    """Lends connections until a point, and from then on to nobody: the process has crashed."""

    def __init__(self, database: Database, *, crash_at: int) -> None:
        self._database = database
        self._crash_at = crash_at
        self.dialect = database.dialect
        self.upsert = database.upsert
        self.points = 0

    def reach(self) -> None:
        self.points += 1
        if self.points >= self._crash_at:
            raise Crash

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        self.reach()
        async with self._database.transaction() as connection:
            yield connection
        self.reach()

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Any]:
        self.reach()
        async with self._database.read() as connection:
            yield connection
        self.reach()


async def test_wherever_a_gateway_crashes_another_ends_the_run(
    office: Office, key_ring: KeyRing
) -> None:
    point = 0
    crashed = True
    while crashed:
        point += 1
        provider_id = f"p{point}"
        roster = await office.add(provider_id)
        roster.users = [a_user(provider_id, number) for number in range(3)]
        await office.refresh(provider_id)
        old = await office.snapshot(provider_id)
        roster.users = [
            a_user(provider_id, 0, display_name="New"),
            *(a_user(provider_id, number) for number in (2, 7)),
        ]

        crashed = await _crashes(office, provider_id, crash_at=point)
        between = await office.snapshot(provider_id)
        last = (await office.imports.list_last_runs([provider_id]))[provider_id]
        await office.leases.release_all()
        await office.refresh(provider_id)

        applied = USERS in last.counts and last.counts[USERS].updated == 1
        assert (between != old) is applied
        assert await office.snapshot(provider_id) == await office.replayed(provider_id)
        assert {key for kind, key in await office.snapshot(provider_id) if kind == USERS} == {
            "u0",
            "u2",
            "u7",
        }

    assert point > 25


async def _crashes(office: Office, provider_id: str, *, crash_at: int) -> bool:
    crashing: Any = CrashingDatabase(office.database, crash_at=crash_at)

    class CrashingWorld:
        @asynccontextmanager
        async def session(
            self, provider_id: str, subject: str = SERVICE, /
        ) -> AsyncIterator[ProviderSession]:
            crashing.reach()
            async with office.world.session(provider_id, subject) as session:
                yield session
            crashing.reach()

    other = Office(crashing, office.key_ring, office.world, sessions=CrashingWorld(), owner="tests")
    try:
        await other.refresh(provider_id)
    except Crash:
        return True
    return False


# Changes.


rosters = st.lists(
    st.tuples(
        st.dictionaries(st.integers(0, 6), st.sampled_from("ab"), max_size=6),
        st.dictionaries(st.integers(0, 3), st.sampled_from("ab"), max_size=3),
        st.booleans(),
    ),
    min_size=1,
    max_size=4,
)


def test_changes_replayed_onto_nothing_give_the_snapshot(
    sqlite_url: str, key_ring: KeyRing
) -> None:
    with asyncio.Runner() as runner:
        database = runner.run(_entered(open_database(sqlite_url)))
        office = Office(database, key_ring, World(platform=ALL_LISTS))
        numbers = iter(range(10_000))

        @settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(rosters)
        def check(sequence: Sequence[tuple[dict[int, str], dict[int, str], bool]]) -> None:
            runner.run(_replays(office, f"p{next(numbers)}", sequence))

        check()
        runner.run(database.close())


async def _entered(context: Any) -> Any:
    return await context.__aenter__()


async def _replays(
    office: Office,
    provider_id: str,
    sequence: Sequence[tuple[Mapping[int, str], Mapping[int, str], bool]],
) -> None:
    roster = await office.add(provider_id)
    expected: set[tuple[str, str, str]] = set()
    for users, courses, accept_drop in sequence:
        roster.users = [
            a_user(provider_id, number, display_name=name) for number, name in users.items()
        ]
        roster.courses = [
            a_course(provider_id, number, title=name) for number, name in courses.items()
        ]
        run = await office.refresh(provider_id, accept_drop=accept_drop)
        if run.state is ImportState.DONE:
            expected = {("USERS", f"u{number}", name) for number, name in users.items()}
            expected |= {("COURSES", f"c{number}", name) for number, name in courses.items()}
        kept = await office.snapshot(provider_id)
        assert await office.replayed(provider_id) == kept
        assert {
            (kind, key, _named(record_of(RosterKind(kind), body, at=NOW)))
            for (kind, key), body in kept.items()
        } == expected


def _named(record: RosterRecord) -> str:
    return record.display_name if isinstance(record, User) else getattr(record, "title", "")
