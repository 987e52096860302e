"""Preparing accounts, and runs over them: what is done once, cut off, gone on with, and learnt."""

import asyncio
import os
import sys
from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pretend_roster import a_user, an_enrollment
from sqlalchemy import delete, select, update

from gateway.metrics import Metrics
from resolvers import matching, people
from resolvers.importing import RosterRecord, content_of
from resolvers.match_process import Task, compare
from resolvers.matching import SHIPPED, Account, Columns, Vocabulary, prepare
from resolvers.matching.bulk import PACKAGES
from resolvers.matching.candidates import candidates
from resolvers.people import MatchSettings, People
from storage.credentials import KeyRing, Secret
from storage.database import Database
from storage.errors import StorageUnavailable
from storage.imports import ACCOUNTS_JOB, ImportStore, RosterKind
from storage.leases import JobClaim, LeaseStore
from storage.matching import (
    MATCH_JOB,
    MatchOrder,
    MatchRun,
    MatchRunState,
    MatchStatus,
    MatchStore,
    StoredModel,
    Suggested,
    SuggestionFilter,
)
from storage.people import PeopleStore, Verdict, pair_of
from storage.providers import ProviderStore
from storage.tables import account, database_now, job, match_key, match_part, snapshot

GIVEN = ("Amina", "Bartholomew", "Chiara", "Dmitri", "Esperanza", "Farouk", "Greta", "Hamish")
FAMILY = (
    "Okonjo", "Finch", "Bellandi", "Volkov", "Quiroga", "Haddad", "Lindqvist", "MacAllister",
    "Vanderhoeven", "Ibarra", "Deshmukh", "Habsberg", "Fuentes", "Obiora", "Thorvaldsen",
    "Raghunathan", "Delacroix", "Pemberton",
)  # fmt: skip
NAMES = [f"{given} {family}" for family in FAMILY for given in GIVEN]
EVERYTHING = tuple(MatchStatus)


class Failing(MatchStore):
    """A store whose database goes away when the suggestions of some providers are to be kept."""

    def __init__(self, database: Database, providers: tuple[str, str]) -> None:
        super().__init__(database)
        self.providers = providers
        self.kept: list[tuple[str, str]] = []

    async def put_suggestions(
        self,
        claim: JobClaim,
        run: MatchRun,
        providers: tuple[str, str],
        pages: AsyncIterable[Sequence[Suggested]],
        *,
        lease_seconds: float,
    ) -> MatchRun | None:
        if providers == self.providers:
            raise StorageUnavailable("The database is gone")
        self.kept.append(providers)
        return await super().put_suggestions(
            claim, run, providers, pages, lease_seconds=lease_seconds
        )


class Office:
    """Providers with snapshots, and what works on them."""

    def __init__(self, database: Database, key_ring: KeyRing) -> None:
        self.database = database
        self.imports = ImportStore(database)
        self.matches = MatchStore(database)
        self.store = PeopleStore(database)
        self.leases = LeaseStore(database, key_ring, owner="tests")
        self.providers = ProviderStore(database, key_ring)
        self.people = self.staff()

    def staff(
        self,
        matches: MatchStore | None = None,
        settings: MatchSettings | None = None,
        observer: Metrics | None = None,
    ) -> People:
        return People(
            store=self.store,
            matches=matches or self.matches,
            imports=self.imports,
            leases=self.leases,
            providers=self.providers,
            settings=settings or MatchSettings(index_seconds=0),
            observer=observer,
        )

    async def add(self, provider_id: str, names: Sequence[str]) -> None:
        """Register a provider whose users are named so; ids are their names' numbers."""
        await self.providers.add(
            id=provider_id,
            platform="pretend",
            name="Pretend",
            base_url="http://pretend.example",
            credentials=Secret({}),
        )
        await self.show(provider_id, {f"u{NAMES.index(name)}": name for name in names})

    async def show(self, provider_id: str, names: Mapping[str, str]) -> None:
        for external_id, name in names.items():
            login = name.lower().replace(" ", ".")
            changes = {"external_id": external_id, "display_name": name, "username": login}
            user = a_user(provider_id, 0, **changes)
            await self.put(RosterKind.USERS, user)

    async def put(self, kind: RosterKind, record: RosterRecord) -> None:
        """Have an import find a row."""
        row = content_of(record)
        values = {"sha256": row.sha256, "record": row.record}
        key = {
            "provider_id": record.provider_id,
            "kind": kind.value,
            "external_id": row.external_id,
        }
        async with self.database.transaction() as connection:
            await connection.execute(
                self.database.upsert(
                    snapshot, {**key, **values, "seen_reading": 0}, change=("sha256", "record")
                )
            )

    async def accounts(self) -> dict[str, int]:
        """Return the row number of each account: another one when it was prepared anew."""
        async with self.database.read() as connection:
            rows = await connection.execute(select(account.c.external_id, account.c.id))
            return {row.external_id: row.id for row in rows}

    async def keys(self, account_id: int) -> set[int]:
        async with self.database.read() as connection:
            rows = await connection.execute(
                select(match_key.c.key).where(match_key.c.account_id == account_id)
            )
            return {row.key for row in rows}

    async def claim(self, kind: str, key: str) -> JobClaim:
        claim = await self.leases.claim_job(kind, key, lease_seconds=30)
        assert claim is not None
        return claim

    async def plan_accounts(self, provider_id: str) -> None:
        async with self.database.transaction() as connection:
            await connection.execute(
                self.database.upsert(
                    job,
                    {
                        "kind": ACCOUNTS_JOB,
                        "key": provider_id,
                        "due_at": database_now(),
                        "lease_until": 0.0,
                        "fence": 7,
                        "attempts": 0,
                    },
                    change={"due_at": database_now()},
                )
            )

    async def match(self, *provider_ids: str, **order: Any) -> MatchRun:
        run, _ = await self.matches.request(
            MatchOrder(provider_ids=provider_ids, **order), requested_by="key"
        )
        return await self.people.finish(run)


@pytest.fixture
def office(sqlite_database: Database, key_ring: KeyRing) -> Office:
    return Office(sqlite_database, key_ring)


@pytest.fixture
def any_office(any_database: Database, key_ring: KeyRing) -> Office:
    return Office(any_database, key_ring)


async def test_only_what_changed_is_prepared_anew(any_office: Office) -> None:
    await any_office.add("1", NAMES[:4])
    await any_office.people.prepare("1")
    before = await any_office.accounts()

    await any_office.show("1", {"u1": "Bartholomew Finch-Hatton"})
    await any_office.put(RosterKind.ENROLLMENTS, an_enrollment("1", "u2", "c1"))
    async with any_office.database.transaction() as connection:
        await connection.execute(delete(snapshot).where(snapshot.c.external_id == "u3"))
    await any_office.people.prepare("1")

    after = await any_office.accounts()
    assert after.keys() == {"u0", "u1", "u2"}
    assert {key for key in after if after[key] != before[key]} == {"u1", "u2"}
    async with any_office.database.read() as connection:
        keyed = {row.account_id for row in await connection.execute(select(match_key.c.account_id))}
    assert keyed == set(after.values())
    stored = await any_office.matches.find_accounts([("1", "u1")])
    prepared = msgspec.msgpack.decode(stored["1", "u1"].prepared, type=matching.Prepared)
    assert await any_office.keys(after["u1"]) == {*matching.blocking_keys(prepared)}


async def test_what_another_normaliser_prepared_is_prepared_anew(office: Office) -> None:
    await office.add("1", NAMES[:2])
    await office.people.prepare("1")
    async with office.database.transaction() as connection:
        await connection.execute(update(account).values(version=0))

    await office.people.prepare("1")

    hashes = await office.matches.list_account_hashes("1")
    assert {version for version, _sha256 in hashes.values()} == {matching.VERSION}


async def test_an_import_during_the_preparing_has_it_done_again(any_office: Office) -> None:
    await any_office.add("1", NAMES[:2])
    await any_office.plan_accounts("1")
    first = await any_office.claim(ACCOUNTS_JOB, "1")
    begun_at = await any_office.matches.begin_accounts(first)
    assert begun_at is not None

    await any_office.plan_accounts("1")
    await any_office.matches.end_accounts(first, begun_at)
    again = await any_office.claim(ACCOUNTS_JOB, "1")
    await any_office.people.prepare_accounts(again)

    assert len(await any_office.accounts()) == 2
    assert await any_office.leases.find_job(ACCOUNTS_JOB, "1") is None


async def test_a_run_that_is_cut_off_goes_on_with_the_next_two_providers(
    any_office: Office,
) -> None:
    await any_office.add("1", NAMES[:10])
    await any_office.add("2", NAMES[2:12])
    await any_office.add("3", NAMES[4:14])
    asked, _ = await any_office.matches.request(
        MatchOrder(provider_ids=("1", "2", "3")), requested_by="key"
    )
    stopped = Failing(any_office.database, ("1", "3"))

    with pytest.raises(StorageUnavailable):
        await any_office.staff(stopped).run(await any_office.claim(MATCH_JOB, str(asked.id)))
    half = await any_office.matches.find_run(asked.id)
    async with any_office.database.transaction() as connection:
        await connection.execute(update(job).values(lease_until=0.0))  # it runs out
    watched = Failing(any_office.database, ("none", "none"))
    ended = await any_office.staff(watched).finish(asked)

    assert half is not None
    assert (half.state, half.pairs_done, stopped.kept) == (MatchRunState.RUNNING, 1, [("1", "2")])
    assert (ended.state, ended.pairs_done) == (MatchRunState.DONE, 3)
    assert watched.kept == [("1", "3"), ("2", "3")]
    assert ended.started_at == half.started_at
    wanted = SuggestionFilter(provider_ids=["1", "2", "3"], least_score=0.5)
    found = await any_office.matches.list_suggestions(wanted, limit=1000)
    assert {row.run_id for row in found} == {ended.id}
    right = {row.pair for row in found if row.pair[0][1] == row.pair[1][1]}
    assert len(right) >= 20  # of the 8 + 6 + 8 people who are at two of them


async def test_many_accounts_are_compared_in_a_process_with_the_same_outcome(
    office: Office,
) -> None:
    await office.add("1", NAMES[:30])
    await office.add("2", NAMES[10:40])
    wanted = SuggestionFilter(provider_ids=["1", "2"])
    await office.match("1", "2")
    here = await office.matches.list_suggestions(wanted, limit=1000)
    asked, _ = await office.matches.request(MatchOrder(provider_ids=("1", "2")), requested_by="key")

    settings = MatchSettings(apart_from=1, progress_seconds=0.05)
    ended = await office.staff(settings=settings).finish(asked)

    apart = await office.matches.list_suggestions(wanted, limit=1000)
    assert ended.state is MatchRunState.DONE
    assert [(row.pair, row.score, row.evidence) for row in apart] == [
        (row.pair, row.score, row.evidence) for row in here
    ]
    assert len(here) >= 20


async def test_the_gateway_itself_is_not_forked_to_compare(office: Office) -> None:
    forks = list[int]()
    os.register_at_fork(before=lambda: forks.append(1))
    await office.add("1", NAMES)
    await office.add("2", NAMES)
    asked, _ = await office.matches.request(MatchOrder(provider_ids=("1", "2")), requested_by="key")

    settings = MatchSettings(apart_from=10**9, processes=2, pairs_at_once=100)
    ended = await office.staff(settings=settings).finish(asked)

    assert (ended.state, forks) == (MatchRunState.DONE, [])
    assert ended.suggestion_count > 0


async def test_a_comparison_that_is_not_wanted_any_more_is_killed(office: Office) -> None:
    account = msgspec.msgpack.encode(
        prepare(Account(provider_id="1", external_id="1", display_name="Ada Lovelace"))
    )
    task = Task(
        model=matching.SHIPPED, decided=(), expected_overlap=None, least_score=0.0, processes=2
    )

    async def frames() -> AsyncIterator[bytes]:
        for _ in range(2):
            yield msgspec.msgpack.encode([account] * 20_000)
            yield msgspec.msgpack.encode([])
        yield msgspec.msgpack.encode(task)

    async def read() -> None:
        async for _answer in compare(frames(), apart=True):
            pass

    comparing = asyncio.create_task(read())
    await asyncio.sleep(0.2)

    comparing.cancel()

    with pytest.raises(asyncio.CancelledError):
        await comparing


class Stopping(MatchStore):
    """A store whose database goes away after some parts of a comparison were kept."""

    def __init__(self, database: Database, parts: int) -> None:
        super().__init__(database)
        self.left = parts
        self.has_kept = asyncio.Event()
        self.until: list[int] = []
        self.found: list[int] = []
        self.shares: list[float] = []

    async def note(self, claim: JobClaim, run: MatchRun, **values: Any) -> MatchRun | None:
        if "progress" in values:
            self.shares.append(values["progress"])
        return await super().note(claim, run, **values)

    async def put_part(self, claim: JobClaim, run: MatchRun, **part: Any) -> MatchRun | None:
        if not self.left:
            raise StorageUnavailable("The database is gone")
        self.left -= 1
        self.until.append(part["until"])
        put = await super().put_part(claim, run, **part)
        self.has_kept.set()
        return put

    async def find_part(
        self, run: MatchRun, *, stamp: bytes, after: int = 0
    ) -> tuple[int, bytes] | None:
        part = await super().find_part(run, stamp=stamp, after=after)
        if part is not None:
            self.found.append(part[0])
        return part


async def _cut_off(office: Office, settings: MatchSettings) -> tuple[MatchRun, Stopping]:
    """Have a run be cut off when it has kept two parts of what it weighs."""
    asked, _ = await office.matches.request(MatchOrder(provider_ids=("1", "2")), requested_by="key")
    stopped = Stopping(office.database, 2)
    with pytest.raises(StorageUnavailable):
        await office.staff(stopped, settings).run(await office.claim(MATCH_JOB, str(asked.id)))
    async with office.database.transaction() as connection:
        await connection.execute(update(job).values(lease_until=0.0))  # it runs out
    return asked, stopped


async def _suggestions(office: Office) -> list[tuple[object, ...]]:
    wanted = SuggestionFilter(provider_ids=["1", "2"], least_score=0.0)
    rows = await office.matches.list_suggestions(wanted, limit=10_000)
    return [(row.pair, row.score, row.weight, row.evidence, row.competitors) for row in rows]


async def _parts(office: Office) -> int:
    async with office.database.read() as connection:
        rows = await connection.execute(select(match_part.c.until))
        return len(rows.all())


@pytest.mark.parametrize("apart_from", [1, 10**9])
async def test_a_run_that_is_cut_off_between_two_providers_goes_on_behind_what_it_kept(
    any_office: Office, apart_from: int
) -> None:
    await any_office.add("1", NAMES)
    await any_office.add("2", NAMES)
    await any_office.match("1", "2")
    whole = await _suggestions(any_office)
    settings = MatchSettings(
        apart_from=apart_from, part_seconds=0, progress_seconds=0, processes=1, pairs_at_once=500
    )

    asked, stopped = await _cut_off(any_office, settings)
    kept = await _parts(any_office)
    again = Stopping(any_office.database, 1000)
    ended = await any_office.staff(again, settings).finish(asked)

    assert (kept, len(stopped.until)) == (2, 2)
    assert again.found == stopped.until
    assert min(again.until) > max(stopped.until)
    assert again.until[-1] == len(NAMES)
    assert (ended.state, await _suggestions(any_office)) == (MatchRunState.DONE, whole)
    assert await _parts(any_office) == 0
    shares = [*stopped.shares, *again.shares]
    assert shares == sorted(shares)


async def test_metrics_tell_of_runs_of_what_they_weighed_and_what_they_suggested(
    office: Office,
) -> None:
    metrics = Metrics()
    await office.add("1", NAMES[:10])
    await office.add("2", NAMES[5:15])
    staff = office.staff(observer=metrics)

    done, _ = await office.matches.request(MatchOrder(provider_ids=("1", "2")), requested_by="key")
    done = await staff.finish(done)
    pools = [await office.people._pool(key) for key in ("1", "2")]
    await office.providers.remove("2")
    failed, _ = await office.matches.request(
        MatchOrder(provider_ids=("1", "2")), requested_by="key"
    )
    await staff.finish(failed)

    vocabulary = Vocabulary()
    left, right = (Columns.of(pool, vocabulary) for pool in pools)
    value, name = metrics._registry.get_sample_value, "learning_gateway_match"
    assert value(f"{name}_runs_total", {"outcome": "done"}) == 1
    assert value(f"{name}_runs_total", {"outcome": "failed"}) == 1
    assert value(f"{name}_pairs_total") == len(candidates((left, right))[0])
    assert value(f"{name}_suggestions_total") == done.suggestion_count
    assert value(f"{name}_seconds_count") == 1
    assert done.suggestion_count >= 5


async def test_what_was_weighed_of_other_accounts_is_weighed_anew(office: Office) -> None:
    await office.add("1", NAMES[:60])
    await office.add("2", NAMES[:60])
    settings = MatchSettings(part_seconds=0, pairs_at_once=200)
    asked, stopped = await _cut_off(office, settings)
    await office.show("2", {"u0": "Somebody Else"})

    again = Stopping(office.database, 1000)
    ended = await office.staff(again, settings).finish(asked)

    assert (ended.state, again.found) == (MatchRunState.DONE, [])
    assert again.until[0] <= stopped.until[0]
    gone_on = await _suggestions(office)
    await office.match("1", "2")
    assert await _suggestions(office) == gone_on


@pytest.mark.skipif(find_spec("splink") is None, reason="needs the extra bulk")
async def test_a_run_over_very_many_accounts_finds_the_same_on_disk_and_goes_on_when_killed(
    office: Office, tmp_path: Path
) -> None:
    await office.add("1", NAMES)
    await office.add("2", NAMES)
    await office.match("1", "2")
    whole = await _suggestions(office)
    settings = MatchSettings(bulk_from=100, bulk_folder=tmp_path / "matching", part_seconds=0)
    asked, _ = await office.matches.request(MatchOrder(provider_ids=("1", "2")), requested_by="key")
    left_over = tmp_path / "matching" / f"run-{asked.id}-0" / "blocks.duckdb"
    left_over.parent.mkdir(parents=True)
    left_over.write_bytes(b"of a gateway that was killed")

    stopped = Stopping(office.database, 1)
    running = asyncio.create_task(
        office.staff(stopped, settings).run(await office.claim(MATCH_JOB, str(asked.id)))
    )
    await stopped.has_kept.wait()
    running.cancel()
    await asyncio.wait({running})
    async with office.database.transaction() as connection:
        await connection.execute(update(job).values(lease_until=0.0))  # it runs out
    again = Stopping(office.database, 1000)
    ended = await office.staff(again, settings).finish(asked)

    assert (ended.state, ended.problem) == (MatchRunState.DONE, None)
    assert again.found == stopped.until == [len(NAMES)]
    assert await _suggestions(office) == whole
    assert list((tmp_path / "matching").iterdir()) == []


async def test_a_run_that_needs_the_extra_says_so_without_it(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    await office.add("1", NAMES[:3])
    await office.add("2", NAMES[:3])
    asked, _ = await office.matches.request(MatchOrder(provider_ids=("1", "2")), requested_by="key")
    for name in PACKAGES:
        monkeypatch.setitem(sys.modules, name, None)

    ended = await office.staff(settings=MatchSettings(bulk_from=5)).finish(asked)

    assert (ended.state, ended.problem_code) == (MatchRunState.FAILED, "NOT_SUPPORTED")
    assert ended.problem == (
        "Comparing so many accounts needs duckdb and pyarrow and splink: "
        "pip install 'learning-gateway[bulk]'"
    )


async def test_a_process_that_ends_too_early_fails_the_run(office: Office) -> None:
    await office.add("1", NAMES[:3])
    await office.add("2", NAMES[:3])
    await office.people.prepare("1")
    async with office.database.transaction() as connection:
        await connection.execute(update(account).values(prepared=b"no account"))
    asked, _ = await office.matches.request(MatchOrder(provider_ids=("1", "2")), requested_by="key")

    ended = await office.staff(settings=MatchSettings(apart_from=1)).finish(asked)

    assert (ended.state, ended.problem_code) == (MatchRunState.FAILED, "INTERNAL")


async def test_a_run_that_is_asked_for_twice_is_one(office: Office) -> None:
    await office.add("1", NAMES[:4])
    await office.add("2", NAMES[:4])
    order = MatchOrder(provider_ids=("1", "2"))

    first = await office.matches.request(order, requested_by="one")
    second = await office.matches.request(order, requested_by="other")

    assert (first[1], second[1], first[0].id) == (False, True, second[0].id)
    assert (await office.people.finish(first[0])).state is MatchRunState.DONE


async def test_two_who_wait_for_a_run_see_it_done_once(office: Office) -> None:
    await office.add("1", NAMES[:4])
    await office.add("2", NAMES[:4])
    run, _ = await office.matches.request(MatchOrder(provider_ids=("1", "2")), requested_by="key")
    watched = [Failing(office.database, ("none", "none")) for _ in range(2)]

    ended = await asyncio.gather(*(office.staff(each).finish(run) for each in watched))

    assert {each.state for each in ended} == {MatchRunState.DONE}
    assert sorted(len(each.kept) for each in watched) == [0, 1]


async def test_a_run_that_somebody_else_took_over_is_given_up(office: Office) -> None:
    await office.add("1", NAMES[:4])
    await office.add("2", NAMES[:4])
    run, _ = await office.matches.request(MatchOrder(provider_ids=("1", "2")), requested_by="key")
    claim = await office.claim(MATCH_JOB, str(run.id))
    await office.leases.renew_job(claim, lease_seconds=0)
    taken = await office.claim(MATCH_JOB, str(run.id))

    await office.people.run(claim)
    given_up = await office.matches.find_run(run.id)
    await office.people.run(taken)
    ended = await office.matches.find_run(run.id)
    await office.people.run(taken)  # its job is gone with it

    assert given_up == run
    assert ended is not None
    assert ended.state is MatchRunState.DONE
    assert await office.matches.find_run(run.id) == ended


async def test_a_provider_that_is_gone_has_nothing_to_prepare(office: Office) -> None:
    await office.add("1", NAMES[:4])
    await office.plan_accounts("1")
    claim = await office.claim(ACCOUNTS_JOB, "1")
    await office.leases.renew_job(claim, lease_seconds=0)
    await office.claim(ACCOUNTS_JOB, "1")

    await office.people.prepare_accounts(claim)  # somebody else has it
    before = await office.accounts()
    await office.providers.remove("1")
    await office.people.prepare("1")

    assert before == {}
    assert await office.accounts() == {}


async def test_a_run_of_a_provider_that_was_removed_fails(office: Office) -> None:
    await office.add("1", NAMES[:4])
    await office.add("2", NAMES[:4])
    run, _ = await office.matches.request(MatchOrder(provider_ids=("1", "2")), requested_by="key")
    await office.providers.remove("2")

    ended = await office.people.finish(run)

    assert (ended.state, ended.problem_code) == (MatchRunState.FAILED, "PROVIDER_NOT_FOUND")
    assert await office.leases.find_job(MATCH_JOB, str(run.id)) is None


async def test_a_second_account_of_somebody_is_not_linked_beside_the_first(office: Office) -> None:
    for provider_id in ("1", "2", "3"):
        await office.add(provider_id, NAMES[:30])
    await office.show("2", {"again": NAMES[0]})

    run = await office.match("1", "2", "3", link_above=0.8)

    links = await office.store.list_links(["1", "2", "3"])
    members: dict[str, list[str]] = {}
    for (provider_id, _external_id), person in links.items():
        members.setdefault(person, []).append(provider_id)
    assert run.link_count > 40
    assert all(len(each) == len(set(each)) for each in members.values())
    assert [*map(sorted, members.values())].count(["1", "2", "3"]) >= 20


async def test_from_a_hundred_decisions_on_a_run_weighs_by_what_was_learnt(
    office: Office,
) -> None:
    await office.add("1", NAMES)
    await office.add("2", NAMES)
    await office.match("1", "2")
    wanted = SuggestionFilter(provider_ids=["1", "2"], statuses=EVERYTHING)
    found = await office.matches.list_suggestions(wanted, limit=1000)
    right = [row.pair for row in found if row.pair[0][1] == row.pair[1][1]][:60]
    wrong = [row.pair for row in found if row.pair[0][1] != row.pair[1][1]]
    wrong += [pair_of(("1", f"u{at}"), ("2", f"u{at + 1}")) for at in range(60, 120)]
    await office.store.link_all(right, decided_by="key")
    assert await office.matches.last_model() is None
    for pair in wrong:
        await office.store.reject(pair, decided_by="key")

    learnt = await office.match("1", "2")
    again = await office.match("1", "2")

    decided = await office.store.list_verdicts(
        ["1", "2"], verdicts=(Verdict.CONFIRMED, Verdict.REJECTED)
    )
    model = await office.matches.last_model()
    assert model is not None
    assert model.verdict_count == len(decided) >= 100
    assert learnt.model_version == again.model_version == model.version
    evaluated = await office.people.evaluate(decided)
    assert [(row.providers, row.confirmed) for row in evaluated] == [(("1", "2"), 60)]
    precision, recall = evaluated[0].at(0.5)
    assert precision is not None
    assert recall is not None
    assert precision > 0.9


async def test_weights_fitted_by_a_release_that_looked_at_other_things_are_not_used(
    office: Office,
) -> None:
    earlier = msgspec.structs.replace(SHIPPED, version="earlier", weights=SHIPPED.weights[:-1])
    kept = StoredModel(version="earlier", body=msgspec.msgpack.encode(earlier), verdict_count=500)
    await office.matches.keep_model(kept)
    await office.add("1", NAMES[:20])
    await office.add("2", NAMES[:20])

    run = await office.match("1", "2")

    assert (run.state, run.model_version) == (MatchRunState.DONE, SHIPPED.version)


async def test_a_look_up_knows_what_the_last_import_changed(any_office: Office) -> None:
    await any_office.add("1", NAMES[:20])
    await any_office.people.prepare("1")
    asked = prepare(Account(provider_id="", external_id="", display_name="Zenobia Achterberg"))

    async def found() -> list[str]:
        rows = await any_office.people.look_up(asked, provider_ids=["1"], limit=3)
        return [external_id for (_provider, external_id), _why, _version in rows]

    before = await found()
    await any_office.show("1", {"u5": "Zenobia Achterberg", "new": "Zenobia Achterbergh"})
    await any_office.people.prepare("1")
    renamed = await found()
    async with any_office.database.transaction() as connection:
        await connection.execute(delete(snapshot).where(snapshot.c.external_id == "u5"))
    await any_office.people.prepare("1")
    gone = await found()

    assert before == []
    assert renamed == ["u5", "new"]
    assert gone == ["new"]


async def test_very_many_accounts_are_looked_up_by_their_stored_keys(
    any_office: Office,
) -> None:
    await any_office.add("1", NAMES[:20])
    await any_office.people.prepare("1")
    staff = any_office.staff(settings=MatchSettings(most_indexed=10))
    asked = prepare(Account(provider_id="", external_id="", display_name=NAMES[7]))

    rows = await staff.look_up(asked, provider_ids=["1"], limit=1)

    assert [key for key, _why, _version in rows] == [("1", "u7")]


def test_a_run_says_that_names_alone_do_not_identify_among_very_many() -> None:
    (note,) = people._notes({"1": people.LARGE_POOL, "2": people.LARGE_POOL + 1})

    assert note.startswith("Provider 2 has 40001 accounts. In so large a pool names alone")
