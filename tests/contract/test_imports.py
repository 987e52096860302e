"""What the store of imports promises, on every database."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from sqlalchemy import func, select, update

from storage.credentials import KeyRing, Secret
from storage.database import Database
from storage.imports import (
    IMPORT_JOB,
    Change,
    ChangePage,
    ImportRun,
    ImportState,
    ImportStore,
    ListCounts,
    RosterKind,
    StagedPage,
    StagedRow,
)
from storage.leases import JobClaim, LeaseStore, Problem
from storage.providers import ProviderStore
from storage.tables import change, database_now, import_stage, job, snapshot

USERS, COURSES, ENROLLMENTS = RosterKind
DOWN = Problem(code="PROVIDER_UNAVAILABLE", message="It is down")


class Desk:
    """A store of imports and the leases beside it, with a provider for each id."""

    def __init__(self, database: Database, key_ring: KeyRing) -> None:
        self.database = database
        self.imports = ImportStore(database)
        self.leases = LeaseStore(database, key_ring, owner="tests")
        self.providers = ProviderStore(database, key_ring)

    async def add(self, *provider_ids: str) -> None:
        for provider_id in provider_ids:
            await self.providers.add(
                id=provider_id,
                platform="pretend",
                name="Pretend",
                base_url="http://pretend.example",
                credentials=Secret({}),
            )

    async def request(self, provider_id: str = "1", **options: Any) -> ImportRun:
        wanted = {"requested_by": "key", "accept_drop": False, **options}
        found = await self.imports.request(provider_id, **wanted)
        assert found is not None
        return found[0]

    async def claim(self, provider_id: str = "1", *, lease_seconds: float = 30) -> JobClaim:
        claim = await self.leases.claim_job(IMPORT_JOB, provider_id, lease_seconds=lease_seconds)
        assert claim is not None
        return claim

    async def begin(
        self, provider_id: str = "1", *, resume_seconds: float = 3600
    ) -> tuple[JobClaim, ImportRun]:
        claim = await self.claim(provider_id)
        run = await self.imports.begin(claim, scheduled=False, resume_seconds=resume_seconds)
        assert run is not None
        return claim, run

    async def stage(
        self,
        claim: JobClaim,
        run: ImportRun,
        kind: RosterKind,
        rows: Mapping[str, str],
        *,
        position: str | None = None,
        total: int | None = None,
    ) -> ImportRun:
        page = StagedPage(
            kind=kind,
            rows=[staged(external_id, text) for external_id, text in rows.items()],
            position=position,
            total=total,
        )
        staged_run = await self.imports.stage(claim, run, page, lease_seconds=30)
        assert staged_run is not None
        return staged_run

    async def read_all(
        self, claim: JobClaim, run: ImportRun, rows: Mapping[RosterKind, Mapping[str, str]]
    ) -> ImportRun:
        for kind in RosterKind:
            run = await self.stage(claim, run, kind, rows.get(kind, {}))
        return run

    async def import_(
        self, rows: Mapping[RosterKind, Mapping[str, str]], provider_id: str = "1"
    ) -> ImportRun:
        await self.request(provider_id)
        claim, run = await self.begin(provider_id)
        run = await self.read_all(claim, run, rows)
        done = await self.imports.apply(claim, run, next_seconds=None)
        assert done is not None
        return done

    async def snapshot(self, provider_id: str = "1") -> dict[tuple[str, str], bytes]:
        async with self.database.read() as connection:
            found = await connection.execute(
                select(snapshot).where(snapshot.c.provider_id == provider_id)
            )
            return {(row.kind, row.external_id): row.record for row in found}

    async def changes(
        self,
        after: int | None = None,
        *,
        kinds: Sequence[RosterKind] = tuple(RosterKind),
        provider_ids: Sequence[str] = ("1", "2", "3"),
        limit: int = 1000,
    ) -> ChangePage:
        return await self.imports.list_changes(
            after, kinds=kinds, provider_ids=provider_ids, limit=limit
        )


def staged(external_id: str, text: str) -> StagedRow:
    return StagedRow(external_id=external_id, sha256=text.encode(), record=text.encode())


def told(changes: Sequence[Change]) -> list[tuple[str, str, str, bytes]]:
    return [(row.type, row.kind, row.external_id, row.record) for row in changes]


@pytest.fixture
def desk(any_database: Database, key_ring: KeyRing) -> Desk:
    return Desk(any_database, key_ring)


async def test_a_first_import_creates_everything_in_the_order_in_which_things_refer(
    desk: Desk,
) -> None:
    await desk.add("1")

    done = await desk.import_({USERS: {"b": "B", "a": "A"}, COURSES: {"c": "C"}, ENROLLMENTS: {}})

    assert (done.state, done.finished_at is None) == (ImportState.DONE, False)
    assert done.counts == {
        USERS: ListCounts(read=2, created=2),
        COURSES: ListCounts(read=1, created=1),
        ENROLLMENTS: ListCounts(),
    }
    found = await desk.changes()
    assert told(found.changes) == [
        ("CREATED", "USERS", "a", b"A"),
        ("CREATED", "USERS", "b", b"B"),
        ("CREATED", "COURSES", "c", b"C"),
    ]
    assert [row.sequence for row in found.changes] == [1, 2, 3]
    assert (found.oldest, found.latest, found.more) == (0, 3, False)


async def test_a_second_import_tells_what_came_changed_and_went_and_nothing_else(
    desk: Desk,
) -> None:
    await desk.add("1", "2")
    await desk.import_({USERS: {"other": "x"}}, "2")
    await desk.import_({USERS: {"a": "1", "b": "1", "c": "1"}, ENROLLMENTS: {"e": "1"}})
    before = (await desk.changes()).latest

    done = await desk.import_({USERS: {"a": "1", "b": "2", "d": "1"}})

    assert done.counts[USERS] == ListCounts(read=3, before=3, created=1, updated=1, deleted=1)
    assert done.counts[ENROLLMENTS] == ListCounts(before=1, deleted=1)
    assert told((await desk.changes(before)).changes) == [
        ("UPDATED", "USERS", "b", b"2"),
        ("CREATED", "USERS", "d", b"1"),
        ("DELETED", "ENROLLMENTS", "e", b"1"),
        ("DELETED", "USERS", "c", b"1"),
    ]
    assert await desk.snapshot() == {
        ("USERS", "a"): b"1",
        ("USERS", "b"): b"2",
        ("USERS", "d"): b"1",
    }
    assert await desk.snapshot("2") == {("USERS", "other"): b"x"}
    async with desk.database.read() as connection:
        assert (await connection.execute(select(func.count(import_stage.c.kind)))).scalar_one() == 0


async def test_an_import_that_finds_nothing_new_writes_no_change(desk: Desk) -> None:
    await desk.add("1")
    await desk.import_({USERS: {"a": "1"}})

    done = await desk.import_({USERS: {"a": "1"}})

    assert done.counts[USERS] == ListCounts(read=1, before=1)
    assert (await desk.changes()).latest == 1


async def test_a_list_the_provider_lacks_keeps_its_snapshot(desk: Desk) -> None:
    await desk.add("1")
    await desk.import_({USERS: {"a": "1"}, ENROLLMENTS: {"e": "1"}})
    await desk.request()
    claim, run = await desk.begin()
    run = await desk.stage(claim, run, USERS, {"a": "1"})

    for _ in (COURSES, ENROLLMENTS):
        skipped = await desk.imports.skip_list(claim, run)
        assert skipped is not None
        run = skipped
    done = await desk.imports.apply(claim, run, next_seconds=None)

    assert done is not None
    assert set(done.counts) == {USERS}
    assert set(await desk.snapshot()) == {("USERS", "a"), ("ENROLLMENTS", "e")}


async def test_a_row_that_comes_on_two_pages_is_counted_and_told_once(desk: Desk) -> None:
    await desk.add("1")
    await desk.request()
    claim, run = await desk.begin()

    run = await desk.stage(claim, run, USERS, {"a": "1", "b": "1"}, position="2", total=3)
    assert (run.kind, run.position, run.counts[USERS]) == (USERS, "2", ListCounts(read=2, total=3))
    run = await desk.stage(claim, run, USERS, {"b": "2", "c": "1"})
    run = await desk.stage(claim, run, COURSES, {})
    run = await desk.stage(claim, run, ENROLLMENTS, {})
    assert run.kind is None
    await desk.imports.apply(claim, run, next_seconds=None)

    assert run.counts[USERS] == ListCounts(read=3, total=3)
    assert told((await desk.changes()).changes) == [
        ("CREATED", "USERS", "a", b"1"),
        ("CREATED", "USERS", "b", b"1"),
        ("CREATED", "USERS", "c", b"1"),
    ]


async def test_a_list_begun_again_forgets_what_was_read_of_it(desk: Desk) -> None:
    await desk.add("1")
    await desk.import_({USERS: {"a": "1", "b": "1"}})
    await desk.request()
    claim, run = await desk.begin()
    run = await desk.stage(claim, run, USERS, {"a": "1", "x": "1"}, position="2", total=9)

    restarted = await desk.imports.restart_list(claim, run)
    assert restarted is not None
    assert (restarted.position, restarted.counts) == (None, {})
    run = await desk.read_all(claim, restarted, {USERS: {"b": "1"}})
    done = await desk.imports.apply(claim, run, next_seconds=None)

    assert done is not None
    assert done.counts[USERS] == ListCounts(read=1, before=2, deleted=1)
    assert set(await desk.snapshot()) == {("USERS", "b")}


# Asking for runs.


async def test_a_run_under_way_is_given_back_and_takes_over_the_acceptance(desk: Desk) -> None:
    await desk.add("1")

    first = await desk.imports.request("1", requested_by="key", accept_drop=False)
    again = await desk.imports.request("1", requested_by="other", accept_drop=True)
    later = await desk.imports.request("1", requested_by="third", accept_drop=False)

    assert first is not None
    assert again is not None
    assert later is not None
    assert [one[1] for one in (first, again, later)] == [False, True, True]
    assert {one[0].id for one in (first, again, later)} == {first[0].id}
    assert (again[0].accept_drop, later[0].accept_drop) == (True, True)
    assert again[0].requested_by == "key"


async def test_many_askers_at_once_get_one_run(desk: Desk) -> None:
    await desk.add("1")

    runs = await asyncio.gather(*(desk.request() for _ in range(10)))

    assert len({run.id for run in runs}) == 1


async def test_nothing_is_asked_of_a_provider_that_is_not_there(desk: Desk) -> None:
    found = await desk.imports.request("1", requested_by="key", accept_drop=False)

    assert found is None
    assert await desk.leases.find_job(IMPORT_JOB, "1") is None


async def test_the_last_run_of_each_provider_is_found_together(desk: Desk) -> None:
    await desk.add("1", "2", "3")
    await desk.import_({}, "1")
    first = await desk.request("1")
    second = await desk.request("2")

    assert await desk.imports.list_last_runs(["1", "2", "3"]) == {"1": first, "2": second}
    assert await desk.imports.find_run(first.id) == first
    assert await desk.imports.find_run(second.id + 1) is None


async def test_runs_long_past_are_forgotten(desk: Desk) -> None:
    await desk.add("1")
    first = await desk.import_({})

    for _ in range(19):
        await desk.import_({})
    assert await desk.imports.find_run(first.id) is not None
    await desk.request()

    assert await desk.imports.find_run(first.id) is None


# Holding on, going on, ending.


async def test_a_run_cut_off_goes_on_where_it_was(desk: Desk) -> None:
    await desk.add("1")
    asked = await desk.request()
    claim, run = await desk.begin()
    await desk.stage(claim, run, USERS, {"a": "1"}, position="1")
    await desk.leases.release_all()

    again, resumed = await desk.begin()
    assert (resumed.id, resumed.position, resumed.started_at) == (asked.id, "1", run.started_at)
    resumed = await desk.read_all(again, resumed, {USERS: {"b": "1"}})
    done = await desk.imports.apply(again, resumed, next_seconds=None)

    assert done is not None
    assert done.counts[USERS] == ListCounts(read=2, created=2)


async def test_a_run_cut_off_long_ago_starts_over(desk: Desk) -> None:
    await desk.add("1")
    await desk.request()
    claim, run = await desk.begin()
    await desk.stage(claim, run, USERS, {"a": "1"}, position="1")
    await desk.leases.release_all()

    again, restarted = await desk.begin(resume_seconds=0)
    assert (restarted.id, restarted.position, restarted.counts) == (run.id, None, {})
    restarted = await desk.read_all(again, restarted, {USERS: {"b": "1"}})
    await desk.imports.apply(again, restarted, next_seconds=None)

    assert set(await desk.snapshot()) == {("USERS", "b")}


async def test_whoever_lost_the_lease_can_do_nothing_more(desk: Desk) -> None:
    await desk.add("1")
    await desk.request()
    old, run = await desk.begin()
    run = await desk.stage(old, run, USERS, {"a": "1"}, position="1")
    await desk.leases.release_all()
    new, resumed = await desk.begin()

    page = StagedPage(kind=USERS, rows=[staged("late", "1")], position=None, total=None)
    assert await desk.imports.stage(old, run, page, lease_seconds=30) is None
    assert await desk.imports.skip_list(old, run) is None
    assert await desk.imports.restart_list(old, run) is None
    assert await desk.imports.apply(old, run, next_seconds=None) is None
    assert await desk.imports.end(old, run, ImportState.FAILED, DOWN, next_seconds=1) is None
    assert await desk.imports.begin(old, scheduled=True, resume_seconds=1) is None

    resumed = await desk.read_all(new, resumed, {USERS: {"b": "1"}})
    await desk.imports.apply(new, resumed, next_seconds=None)
    assert set(await desk.snapshot()) == {("USERS", "a"), ("USERS", "b")}


async def test_a_job_made_anew_is_not_held_by_whoever_held_the_old_one(desk: Desk) -> None:
    await desk.add("1")
    await desk.request()
    old, run = await desk.begin()
    await desk.leases.release_all()
    claim, other = await desk.begin()
    await desk.imports.apply(claim, other, next_seconds=None)
    await desk.request()
    await desk.begin()

    assert await desk.imports.apply(old, run, next_seconds=None) is None


async def test_staging_renews_the_lease(desk: Desk) -> None:
    await desk.add("1")
    await desk.request()
    claim = await desk.claim(lease_seconds=0.01)
    run = await desk.imports.begin(claim, scheduled=False, resume_seconds=10)
    assert run is not None

    await desk.stage(claim, run, USERS, {"a": "1"})

    found = await desk.leases.find_job(IMPORT_JOB, "1")
    assert found is not None
    assert 20 < found.leased_seconds <= 30


async def test_a_failed_run_changes_nothing_and_the_next_goes_on_from_it(desk: Desk) -> None:
    await desk.add("1")
    await desk.import_({USERS: {"a": "1", "b": "1"}})
    await desk.request()
    claim, run = await desk.begin()
    run = await desk.stage(claim, run, USERS, {"a": "2"}, position="1")

    failed = await desk.imports.end(claim, run, ImportState.FAILED, DOWN, next_seconds=0)

    assert failed is not None
    assert (failed.state, failed.problem_code, failed.problem) == (
        ImportState.FAILED,
        "PROVIDER_UNAVAILABLE",
        "It is down",
    )
    assert await desk.snapshot() == {("USERS", "a"): b"1", ("USERS", "b"): b"1"}
    claim = await desk.claim()
    assert claim.job.attempts == 1
    following = await desk.imports.begin(claim, scheduled=True, resume_seconds=10)
    assert following is not None
    assert following.id != failed.id
    assert (following.requested_by, following.position) == ("schedule", "1")
    following = await desk.read_all(claim, following, {USERS: {"b": "1"}})
    done = await desk.imports.apply(claim, following, next_seconds=500)
    assert done is not None
    assert done.counts[USERS] == ListCounts(read=2, before=2, updated=1)
    planned = await desk.leases.find_job(IMPORT_JOB, "1")
    assert planned is not None
    assert (planned.attempts, planned.problem, planned.leased_seconds < 0) == (0, None, True)
    assert 490 < planned.seconds_to_due <= 500


async def test_a_held_run_changes_nothing_and_leaves_nothing_to_go_on_from(desk: Desk) -> None:
    await desk.add("1")
    await desk.import_({USERS: {"a": "1", "b": "1", "c": "1"}})
    await desk.request()
    claim, run = await desk.begin()
    run = await desk.read_all(claim, run, {USERS: {"a": "2"}})

    problem = Problem(code="HELD", message="Too few")
    held = await desk.imports.end(claim, run, ImportState.HELD, problem, next_seconds=None)

    assert held is not None
    assert (held.state, held.problem_code, held.problem) == (ImportState.HELD, None, "Too few")
    assert held.counts[USERS] == ListCounts(read=1, before=3)
    assert len(await desk.snapshot()) == 3
    assert (await desk.changes()).latest == 3
    await desk.request()
    _, fresh = await desk.begin()
    assert (fresh.position, fresh.lists_done, fresh.counts) == (None, 0, {})


async def test_a_job_nobody_asked_for_and_no_schedule_wants_is_dropped(desk: Desk) -> None:
    await desk.add("1")
    await desk.imports.plan({"1": 0}, scheduled=True)
    claim = await desk.claim()

    assert await desk.imports.begin(claim, scheduled=False, resume_seconds=1) is None

    assert await desk.leases.find_job(IMPORT_JOB, "1") is None


async def test_everything_kept_of_a_provider_goes_with_it(desk: Desk) -> None:
    await desk.add("1", "2")
    await desk.import_({USERS: {"a": "1"}}, "1")
    await desk.import_({USERS: {"b": "1"}}, "2")
    await desk.request("1")
    claim, run = await desk.begin("1")
    await desk.providers.remove("1")

    page = StagedPage(kind=USERS, rows=[staged("late", "1")], position="x", total=None)
    assert await desk.imports.stage(claim, run, page, lease_seconds=30) is None
    await desk.leases.release_all()
    claim = await desk.claim("1")
    assert await desk.imports.begin(claim, scheduled=True, resume_seconds=1) is None

    assert await desk.leases.find_job(IMPORT_JOB, "1") is None
    assert told((await desk.changes()).changes) == [("CREATED", "USERS", "b", b"1")]
    assert await desk.imports.list_last_runs(["1"]) == {}


# Planning.


async def test_planning_gives_jobs_to_those_without_and_takes_those_of_nobody(desk: Desk) -> None:
    await desk.add("1", "2")
    await desk.imports.plan({"1": 100, "gone": 100}, scheduled=True)

    await desk.imports.plan({"1": 7000, "2": 200}, scheduled=True)

    due = {}
    for key in ("1", "2"):
        found = await desk.leases.find_job(IMPORT_JOB, key)
        assert found is not None
        due[key] = round(found.seconds_to_due, -1)
    assert due == {"1": 100, "2": 200}
    assert await desk.leases.find_job(IMPORT_JOB, "gone") is None


async def test_without_a_schedule_only_jobs_of_runs_under_way_and_retries_stay(desk: Desk) -> None:
    await desk.add("1", "2", "3")
    await desk.imports.plan({"1": 100}, scheduled=True)
    await desk.request("2")
    await desk.request("3")
    claim, run = await desk.begin("3")
    await desk.imports.end(claim, run, ImportState.FAILED, DOWN, next_seconds=100)

    await desk.imports.plan({}, scheduled=False)

    async with desk.database.read() as connection:
        found = await connection.execute(select(job.c.key).order_by(job.c.key))
        assert list(found.scalars()) == ["2", "3"]


# Changes.


async def test_changes_are_read_page_by_page_by_kind_and_provider(desk: Desk) -> None:
    await desk.add("1", "2")
    await desk.import_({USERS: {"a": "1", "b": "1"}, COURSES: {"c": "1"}}, "1")
    await desk.import_({USERS: {"d": "1"}}, "2")

    page = await desk.changes(kinds=[USERS], limit=2)
    rest = await desk.changes(page.changes[-1].sequence, kinds=[USERS], limit=2)
    of_one = await desk.changes(provider_ids=["2"])

    assert [row.external_id for row in page.changes] == ["a", "b"]
    assert (page.more, page.latest) == (True, 4)
    assert [row.external_id for row in rest.changes] == ["d"]
    assert rest.more is False
    assert [(row.provider_id, row.sequence) for row in of_one.changes] == [("2", 4)]


async def test_old_changes_are_swept_and_their_numbers_are_not_given_again(desk: Desk) -> None:
    await desk.add("1")
    await desk.import_({USERS: {"a": "1", "b": "1"}})
    async with desk.database.transaction() as connection:
        long_ago = database_now() - 1000
        await connection.execute(update(change).where(change.c.sequence == 1).values(at=long_ago))

    assert await desk.imports.sweep_changes(kept_seconds=900) == 1
    assert await desk.imports.sweep_changes(kept_seconds=900) == 0

    page = await desk.changes()
    assert ([row.sequence for row in page.changes], page.oldest) == ([2], 1)
    assert await desk.imports.sweep_changes(kept_seconds=-60) == 1
    await desk.import_({USERS: {"a": "1", "b": "2"}})
    page = await desk.changes()
    assert ([row.sequence for row in page.changes], page.oldest) == ([3], 2)


async def test_a_reader_never_sees_a_change_after_one_with_a_higher_number(desk: Desk) -> None:
    providers = [f"p{number}" for number in range(4)]
    await desk.add(*providers)
    seen: list[int] = []
    done = asyncio.Event()

    async def poll() -> None:
        while True:
            last = done.is_set()
            page = await desk.changes(seen[-1] if seen else None, provider_ids=providers, limit=50)
            seen.extend(row.sequence for row in page.changes)
            if last and not page.changes:
                return

    async def write(provider_id: str) -> None:
        for turn in range(3):
            await desk.import_(
                {USERS: {f"u{number}": str(turn) for number in range(10)}}, provider_id
            )

    polling = asyncio.create_task(poll())
    await asyncio.gather(*map(write, providers))
    done.set()
    await polling

    assert seen == list(range(1, 4 * 3 * 10 + 1))
