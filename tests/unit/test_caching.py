import asyncio
import os
import tracemalloc
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from pretend_platform import until

from resolvers.caching import (
    Answers,
    Basis,
    CacheTerms,
    Kept,
    Kind,
    Place,
    RecordCache,
    Resource,
    Wish,
    _Entry,
    open_cache,
)
from resolvers.errors import RequestLimitExceeded
from resolvers.reading import parse_max_age
from sessions.base import Page
from sessions.errors import (
    ProviderError,
    ProviderForbidden,
    ProviderTimeout,
    ProviderUnavailable,
    ReauthRequired,
    UpstreamCallsSpent,
)
from sessions.http import deadline, seconds_to_deadline
from sessions.metering import Meter, metering
from storage.cache import CacheStore, KeptAnswer
from storage.credentials import KeyRing, Secret
from storage.database import Database
from storage.errors import StorageUnavailable
from storage.providers import ProviderStore
from storage.records import (
    DataSource,
    Enrollment,
    EnrollmentSource,
    EnrollmentState,
    Provenance,
    Role,
    RoleValue,
    User,
)

USER: Kind[User] = Kind.of("user", Resource.USERS, User)
NUMBER: Kind[Any] = Kind.of("number", Resource.USERS, object)
PAGE: Kind[Page[User]] = Kind.of("users", Resource.USERS, Page[User])
HERE = Place(provider_id="1", subject="service", registration="r1", writes=0)


class Clock:
    """Time that moves when it is told to, in seconds since 1970."""

    def __init__(self) -> None:
        self.now = 1_770_000_000.0

    def __call__(self) -> float:
        return self.now

    def wish(self, max_age: float | None = None, *, usual: float = 60, patience: float = 5) -> Wish:
        return Wish(
            began_at=self.now,
            max_age_seconds=max_age,
            usual_age_seconds=usual,
            patience_seconds=patience,
        )


class Upstream:
    """Answers with what it has, and remembers what it was asked for."""

    def __init__(self, *known: str) -> None:
        self.known = list(known) or ["a", "b", "c"]
        self.calls: list[list[str]] = []
        self.error: Exception | None = None
        self.gate: asyncio.Event | None = None

    async def fetch(self, keys: Sequence[str]) -> Mapping[str, User]:
        self.calls.append(list(keys))
        turn = len(self.calls)
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        return {key: a_user(key, name=f"{key}{turn}") for key in keys if key in self.known}


def a_user(key: str, *, name: str) -> User:
    provenance = Provenance(
        provider_id="1", external_id=key, source_type="user", fetched_at=datetime.now(UTC)
    )
    return User(
        provider_id="1", external_id=key, username=None, display_name=name, provenance=provenance
    )


def an_enrollment(user_id: str, place: int) -> Enrollment:
    enrollment_id, read_at = f"{user_id}:{place:032x}", datetime.fromtimestamp(0, UTC)
    return Enrollment(
        provider_id="1",
        id=enrollment_id,
        external_id=None,
        user_id=user_id,
        course_id=f"{place:032x}",
        role=Role(value=RoleValue.STUDENT, source_value="member"),
        state=EnrollmentState.ACTIVE,
        source=EnrollmentSource.ROSTER,
        provenance=Provenance(
            provider_id="1",
            external_id=enrollment_id,
            source_type="membership",
            fetched_at=read_at,
        ),
    )


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(sqlite_database: Database, key_ring: KeyRing) -> CacheStore:
    await ProviderStore(sqlite_database, key_ring).add(
        id="1", platform="pretend", name="", base_url="http://a.example", credentials=Secret({})
    )
    return CacheStore(sqlite_database)


@pytest.fixture
async def cache(store: CacheStore, clock: Clock) -> AsyncIterator[RecordCache]:
    cache = RecordCache(store, clock=clock)
    yield cache
    await cache.aclose()


async def read(
    cache: RecordCache,
    upstream: Upstream,
    wish: Wish,
    keys: Sequence[str] = ("a",),
    *,
    place: Place = HERE,
) -> Answers[User]:
    return await cache.read(place, USER, keys, wish=wish, fetch=upstream.fetch)


def shown(answers: Answers[User]) -> dict[str, tuple[str, DataSource] | str]:
    """Return the names and where they came from, or the code of the error."""
    return {
        key: answer.code
        if isinstance(answer, ProviderError)
        else (answer.value.display_name, answer.via)
        for key, answer in answers.items()
    }


async def settled(cache: RecordCache) -> None:
    """Wait for reads in the background."""
    while cache._running:
        await asyncio.wait(cache._running)
    await asyncio.sleep(0)


# Fresh


async def test_a_young_answer_is_served_again_without_a_call(
    cache: RecordCache, clock: Clock
) -> None:
    upstream = Upstream()
    first = await read(cache, upstream, clock.wish())
    clock.now += 60

    again = await read(cache, upstream, clock.wish())

    assert shown(first) == {"a": ("a1", DataSource.LIVE)}
    assert shown(again) == {"a": ("a1", DataSource.CACHE)}
    assert isinstance(again["a"], Kept)
    assert again["a"].value.provenance.via is DataSource.CACHE
    assert again["a"].read_at == datetime.fromtimestamp(clock.now - 60, UTC)
    assert upstream.calls == [["a"]]


@pytest.mark.parametrize(("max_age", "calls"), [(0, 2), (9, 2), (10, 1), (3600, 1)])
async def test_a_reader_says_how_old_an_answer_may_be(
    cache: RecordCache, clock: Clock, max_age: float, calls: int
) -> None:
    upstream = Upstream()
    await read(cache, upstream, clock.wish())
    clock.now += 10

    await read(cache, upstream, clock.wish(max_age))

    assert len(upstream.calls) == calls


async def test_an_older_answer_is_served_once_more_while_it_is_read_anew(
    cache: RecordCache, clock: Clock
) -> None:
    upstream = Upstream()
    await read(cache, upstream, clock.wish())
    clock.now += 61

    while_read = await read(cache, upstream, clock.wish())
    await settled(cache)
    afterwards = await read(cache, upstream, clock.wish())

    assert shown(while_read) == {"a": ("a1", DataSource.CACHE)}
    assert shown(afterwards) == {"a": ("a2", DataSource.CACHE)}
    assert upstream.calls == [["a"], ["a"]]
    assert cache.counts.revalidations == 1


async def test_an_answer_twice_as_old_as_usual_is_waited_for(
    cache: RecordCache, clock: Clock
) -> None:
    upstream = Upstream()
    await read(cache, upstream, clock.wish())
    clock.now += 121

    assert shown(await read(cache, upstream, clock.wish())) == {"a": ("a2", DataSource.LIVE)}


async def test_only_what_is_not_young_enough_is_asked_for(cache: RecordCache, clock: Clock) -> None:
    upstream = Upstream()
    await read(cache, upstream, clock.wish(), ["a"])

    answers = await read(cache, upstream, clock.wish(), ["a", "b", "nobody"])

    assert shown(answers) == {"a": ("a1", DataSource.CACHE), "b": ("b2", DataSource.LIVE)}
    assert upstream.calls == [["a"], ["b", "nobody"]]


async def test_what_a_provider_does_not_have_is_asked_for_again(
    cache: RecordCache, clock: Clock
) -> None:
    upstream = Upstream()
    await read(cache, upstream, clock.wish(), ["new"])
    upstream.known.append("new")

    assert shown(await read(cache, upstream, clock.wish(), ["new"])) == {
        "new": ("new2", DataSource.LIVE)
    }


# One read for all


async def test_ten_readers_at_once_are_one_read(cache: RecordCache, clock: Clock) -> None:
    upstream = Upstream()
    upstream.gate = asyncio.Event()
    readers = [asyncio.create_task(read(cache, upstream, clock.wish())) for _ in range(10)]
    await until(lambda: cache.counts.joined == 9)
    upstream.gate.set()

    answers = await asyncio.gather(*readers)

    assert [shown(each) for each in answers] == [{"a": ("a1", DataSource.LIVE)}] * 10
    assert upstream.calls == [["a"]]
    assert (cache.counts.reads, cache.counts.joined) == (1, 9)


async def test_readers_of_overlapping_keys_ask_for_each_once(
    cache: RecordCache, clock: Clock
) -> None:
    upstream = Upstream()
    upstream.gate = asyncio.Event()
    one = asyncio.create_task(read(cache, upstream, clock.wish(), ["a", "b"]))
    two = asyncio.create_task(read(cache, upstream, clock.wish(), ["b", "c"]))
    await until(lambda: len(upstream.calls) == 2)
    upstream.gate.set()

    assert sorted([*await one, *await two]) == ["a", "b", "b", "c"]
    assert sorted(key for call in upstream.calls for key in call) == ["a", "b", "c"]


async def test_what_is_read_is_held_after_those_who_wait_went_on_and_in_turns(
    cache: RecordCache, clock: Clock
) -> None:
    keys = [f"u{number}" for number in range(1200)]
    await read(cache, Upstream(*keys), clock.wish(), keys)
    held = [cache.counts.held]
    while held[-1] < len(keys):
        await asyncio.sleep(0)
        if cache.counts.held > held[-1]:
            held.append(cache.counts.held)

    assert held == [0, 500, 1000, 1200]


async def test_what_is_asked_for_again_is_held_at_once(cache: RecordCache, clock: Clock) -> None:
    upstream = Upstream()
    await read(cache, upstream, clock.wish(), ["a", "b"])

    again = await read(cache, upstream, clock.wish())

    assert shown(again) == {"a": ("a1", DataSource.CACHE)}
    assert cache.counts.held == 2


async def test_a_read_that_began_before_a_live_wish_does_not_serve_it(
    cache: RecordCache, clock: Clock
) -> None:
    upstream = Upstream()
    upstream.gate = asyncio.Event()
    early = asyncio.create_task(read(cache, upstream, clock.wish()))
    await until(lambda: len(upstream.calls) == 1)
    clock.now += 0.05
    live = asyncio.create_task(read(cache, upstream, clock.wish(0)))
    await until(lambda: len(upstream.calls) == 2)
    upstream.gate.set()

    assert shown(await early) == {"a": ("a1", DataSource.LIVE)}
    assert shown(await live) == {"a": ("a2", DataSource.LIVE)}
    clock.now += 1
    assert shown(await read(cache, upstream, clock.wish())) == {"a": ("a2", DataSource.CACHE)}


async def test_a_reader_who_leaves_takes_nothing_from_those_who_stay(
    cache: RecordCache, clock: Clock
) -> None:
    upstream = Upstream()
    upstream.gate = asyncio.Event()
    leaving = asyncio.create_task(read(cache, upstream, clock.wish()))
    await until(lambda: len(upstream.calls) == 1)
    staying = asyncio.create_task(read(cache, upstream, clock.wish()))
    await until(lambda: cache.counts.joined == 1)
    leaving.cancel()
    await asyncio.wait({leaving})
    upstream.gate.set()

    assert shown(await staying) == {"a": ("a1", DataSource.LIVE)}


async def test_what_everybody_left_is_given_up(cache: RecordCache, clock: Clock) -> None:
    upstream = Upstream()
    upstream.gate = asyncio.Event()
    leaving = asyncio.create_task(read(cache, upstream, clock.wish()))
    await until(lambda: len(upstream.calls) == 1)

    leaving.cancel()
    await asyncio.wait({leaving})
    await settled(cache)

    assert not cache._running
    assert not cache._flights


@pytest.mark.parametrize("error", [RequestLimitExceeded("too many"), UpstreamCallsSpent("spent")])
async def test_a_limit_of_who_began_a_read_is_not_the_limit_of_who_joined_it(
    cache: RecordCache, clock: Clock, error: Exception
) -> None:
    first, second = Upstream(), Upstream()
    first.gate = asyncio.Event()
    first.error = error
    beginner = asyncio.create_task(read(cache, first, clock.wish()))
    await until(lambda: len(first.calls) == 1)
    joiner = asyncio.create_task(read(cache, second, clock.wish()))
    await until(lambda: cache.counts.joined == 1)
    first.gate.set()

    (outcome,) = await asyncio.gather(beginner, return_exceptions=True)
    assert outcome is error or outcome == {"a": error}
    assert shown(await joiner) == {"a": ("a1", DataSource.LIVE)}
    assert (len(first.calls), len(second.calls)) == (1, 1)


# Patience


async def test_a_slow_answer_costs_a_reader_its_patience_and_is_kept_for_the_next(
    cache: RecordCache, clock: Clock
) -> None:
    upstream = Upstream()
    upstream.gate = asyncio.Event()

    hasty = await read(cache, upstream, clock.wish(patience=0.02))
    upstream.gate.set()
    await settled(cache)

    assert shown(hasty) == {"a": "PROVIDER_TIMEOUT"}
    assert shown(await read(cache, upstream, clock.wish())) == {"a": ("a1", DataSource.CACHE)}


async def test_without_time_left_nothing_is_begun(cache: RecordCache, clock: Clock) -> None:
    upstream = Upstream()

    answers = await read(cache, upstream, clock.wish(patience=0))

    assert shown(answers) == {"a": "PROVIDER_TIMEOUT"}
    assert upstream.calls == []


async def test_a_read_has_its_own_time_and_not_its_starters(
    store: CacheStore, clock: Clock
) -> None:
    cache = RecordCache(store, clock=clock, terms=CacheTerms(flight_seconds=40))
    left: list[float | None] = []

    async def fetch(keys: Sequence[str]) -> Mapping[str, User]:
        left.append(seconds_to_deadline())
        return {}

    with deadline(1):
        await cache.read(HERE, USER, ["a"], wish=clock.wish(), fetch=fetch)

    (seconds,) = left
    assert seconds is not None
    assert 30 < seconds <= 40


# When nothing newer can be had


async def test_an_old_answer_stands_in_for_one_that_cannot_be_had(
    cache: RecordCache, clock: Clock
) -> None:
    upstream = Upstream()
    await read(cache, upstream, clock.wish(), ["a"])
    began_at = clock.now
    clock.now += 3600
    upstream.error = ProviderUnavailable("Down", provider_id="1")

    answers = await read(cache, upstream, clock.wish(0), ["a", "b"])

    assert shown(answers) == {"a": ("a1", DataSource.STALE), "b": "PROVIDER_UNAVAILABLE"}
    kept = answers["a"]
    assert isinstance(kept, Kept)
    assert kept.error is upstream.error
    assert kept.read_at == datetime.fromtimestamp(began_at, UTC)
    assert kept.value.provenance.stale


async def test_an_old_answer_stands_in_for_one_that_is_late(
    cache: RecordCache, clock: Clock
) -> None:
    upstream = Upstream()
    await read(cache, upstream, clock.wish())
    clock.now += 3600
    upstream.gate = asyncio.Event()

    answers = await read(cache, upstream, clock.wish(patience=0.02))

    assert shown(answers) == {"a": ("a1", DataSource.STALE)}
    assert isinstance(answers["a"], Kept)
    assert isinstance(answers["a"].error, ProviderTimeout)
    upstream.gate.set()


async def test_an_hour_of_outage_is_answered_from_the_last_answer_with_its_age_all_along(
    cache: RecordCache, clock: Clock
) -> None:
    upstream = Upstream()
    await read(cache, upstream, clock.wish())
    read_at = datetime.fromtimestamp(clock.now, UTC)
    upstream.error = ProviderUnavailable("Down", provider_id="1")
    seen: list[tuple[DataSource, datetime]] = []
    for _ in range(3600):
        clock.now += 1
        (answer,) = (await read(cache, upstream, clock.wish())).values()
        assert isinstance(answer, Kept)
        assert answer.value.display_name == "a1"
        seen.append((answer.via, answer.read_at))
    upstream.error = None
    clock.now += 1
    back = await read(cache, upstream, clock.wish())

    # young for a minute, for another while it is read anew, and then as old as it is
    assert seen[:120] == [(DataSource.CACHE, read_at)] * 120
    assert seen[120:] == [(DataSource.STALE, read_at)] * 3480
    assert shown(back)["a"][1] is DataSource.LIVE


@pytest.mark.parametrize("error", [ReauthRequired, ProviderForbidden])
async def test_nobody_sees_what_the_provider_no_longer_shows(
    cache: RecordCache, clock: Clock, error: type[ProviderError]
) -> None:
    upstream = Upstream()
    await read(cache, upstream, clock.wish())
    clock.now += 3600
    upstream.error = error("No longer", provider_id="1")

    assert shown(await read(cache, upstream, clock.wish())) == {"a": error.code}


async def test_an_answer_too_old_even_for_that_is_not_served(
    store: CacheStore, clock: Clock
) -> None:
    cache = RecordCache(store, clock=clock, terms=CacheTerms(stale_seconds=1000))
    upstream = Upstream()
    await read(cache, upstream, clock.wish())
    clock.now += 1001
    upstream.error = ProviderUnavailable("Down", provider_id="1")

    assert shown(await read(cache, upstream, clock.wish())) == {"a": "PROVIDER_UNAVAILABLE"}


async def test_what_has_been_removed_at_the_provider_does_not_come_back(
    cache: RecordCache, clock: Clock
) -> None:
    upstream = Upstream()
    await read(cache, upstream, clock.wish())
    upstream.known.remove("a")
    clock.now += 3600
    assert await read(cache, upstream, clock.wish()) == {}
    upstream.error = ProviderUnavailable("Down", provider_id="1")

    assert shown(await read(cache, upstream, clock.wish())) == {"a": "PROVIDER_UNAVAILABLE"}


# Whose answers


@pytest.mark.parametrize(
    "other",
    [
        replace(HERE, subject="user:7"),
        replace(HERE, registration="r2"),
        replace(HERE, writes=1),
        replace(HERE, provider_id="2"),
    ],
)
async def test_an_answer_serves_its_provider_subject_registration_and_writes_only(
    cache: RecordCache, clock: Clock, other: Place
) -> None:
    upstream = Upstream()
    await read(cache, upstream, clock.wish())

    answers = await read(cache, upstream, clock.wish(), place=other)

    assert shown(answers) == {"a": ("a2", DataSource.LIVE)}


async def test_after_a_write_the_answer_before_it_stands_in_while_the_provider_is_down(
    cache: RecordCache, clock: Clock
) -> None:
    upstream = Upstream()
    await read(cache, upstream, clock.wish())
    upstream.error = ProviderUnavailable("Down", provider_id="1")

    written = await read(cache, upstream, clock.wish(), place=replace(HERE, writes=1))
    changed = await read(cache, upstream, clock.wish(), place=replace(HERE, registration="r2"))

    assert shown(written) == {"a": ("a1", DataSource.STALE)}
    assert shown(changed) == {"a": "PROVIDER_UNAVAILABLE"}


async def test_a_read_that_began_before_a_write_is_not_fresh_after_it(
    cache: RecordCache, clock: Clock
) -> None:
    upstream = Upstream()
    upstream.gate = asyncio.Event()
    before = asyncio.create_task(read(cache, upstream, clock.wish()))
    await until(lambda: len(upstream.calls) == 1)
    after = asyncio.create_task(read(cache, upstream, clock.wish(), place=replace(HERE, writes=1)))
    await until(lambda: len(upstream.calls) == 2)
    upstream.gate.set()

    assert shown(await before) == {"a": ("a1", DataSource.LIVE)}
    assert shown(await after) == {"a": ("a2", DataSource.LIVE)}


async def test_what_was_forgotten_is_read_anew_also_when_it_was_just_being_read(
    cache: RecordCache, clock: Clock
) -> None:
    upstream = Upstream()
    upstream.gate = asyncio.Event()
    reader = asyncio.create_task(read(cache, upstream, clock.wish()))
    await until(lambda: len(upstream.calls) == 1)
    cache.drop("1")
    upstream.gate.set()
    await reader

    assert shown(await read(cache, upstream, clock.wish())) == {"a": ("a2", DataSource.LIVE)}
    await cache.forget("1", subject="service")
    assert shown(await read(cache, upstream, clock.wish())) == {"a": ("a3", DataSource.LIVE)}
    await cache.forget("1", subject="user:7")
    assert shown(await read(cache, upstream, clock.wish())) == {"a": ("a3", DataSource.CACHE)}


# Across restarts


async def test_a_restart_is_warm(store: CacheStore, clock: Clock) -> None:
    upstream = Upstream()
    before = RecordCache(store, clock=clock)
    await read(before, upstream, clock.wish(), ["a", "b"])
    await before.aclose()
    after = RecordCache(store, clock=clock)

    answers = await read(after, upstream, clock.wish(), ["a", "b", "c"])

    assert shown(answers) == {
        "a": ("a1", DataSource.CACHE),
        "b": ("b1", DataSource.CACHE),
        "c": ("c2", DataSource.LIVE),
    }
    assert upstream.calls == [["a", "b"], ["c"]]


async def test_a_restart_during_an_outage_has_old_answers_for_live_wishes_too(
    store: CacheStore, clock: Clock
) -> None:
    upstream = Upstream()
    before = RecordCache(store, clock=clock)
    await read(before, upstream, clock.wish())
    await before.aclose()
    upstream.error = ProviderUnavailable("Down", provider_id="1")

    answers = await read(RecordCache(store, clock=clock), upstream, clock.wish(0))

    assert shown(answers) == {"a": ("a1", DataSource.STALE)}


async def test_what_is_read_is_saved_while_the_cache_is_open(
    store: CacheStore, clock: Clock
) -> None:
    upstream = Upstream()
    async with open_cache(store) as cache:
        wish = Wish(began_at=cache.clock(), usual_age_seconds=60)
        await read(cache, upstream, wish)
        async with asyncio.timeout(5):
            while not await store.read_many("1", "service", ["user:a"]):  # noqa: ASYNC110
                await asyncio.sleep(0.02)


class CountingStore(CacheStore):
    """Remembers which resources were written, each time."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.written: list[list[str]] = []

    async def write_many(self, answers: Collection[KeptAnswer]) -> None:
        self.written.append([answer.resource for answer in answers])
        await super().write_many(answers)


async def test_what_is_read_again_and_again_is_saved_now_and_then_and_at_the_end(
    store: CacheStore, sqlite_database: Database, clock: Clock
) -> None:
    counting = CountingStore(sqlite_database)
    cache, upstream = RecordCache(counting, clock=clock), Upstream()
    for second in range(12):
        await read(cache, upstream, clock.wish(0), ["a", "b"] if second == 3 else ["a"])
        await cache.save_due()
        clock.now += 1
    await read(cache, upstream, clock.wish(0))
    upstream.error = ProviderUnavailable("Down", provider_id="1")
    await cache.aclose()

    after = RecordCache(store, clock=clock)
    answers = await read(after, upstream, clock.wish(0), ["a", "b"])
    assert counting.written == [["user:a"], ["user:b"], ["user:a"], ["user:a"]]
    assert shown(answers) == {"a": ("a13", DataSource.STALE), "b": ("b4", DataSource.STALE)}


async def test_what_the_provider_no_longer_has_is_saved_at_once(
    store: CacheStore, sqlite_database: Database, clock: Clock
) -> None:
    counting = CountingStore(sqlite_database)
    cache, upstream = RecordCache(counting, clock=clock), Upstream()
    await read(cache, upstream, clock.wish(0))
    await cache.save_due()
    upstream.known.remove("a")
    clock.now += 1
    await read(cache, upstream, clock.wish(0))
    await cache.save_due()

    upstream.error = ProviderUnavailable("Down", provider_id="1")
    answers = await read(RecordCache(store, clock=clock), upstream, clock.wish())
    assert counting.written == [["user:a"], ["user:a"]]
    assert shown(answers) == {"a": "PROVIDER_UNAVAILABLE"}


async def test_what_there_is_no_room_for_among_the_unsaved_is_not_put_off(
    store: CacheStore, sqlite_database: Database, clock: Clock
) -> None:
    counting = CountingStore(sqlite_database)
    cache = RecordCache(counting, clock=clock, terms=CacheTerms(max_unsaved_bytes=500))
    upstream = Upstream()
    for _ in range(3):
        await read(cache, upstream, clock.wish(0))
        await cache.save_due()
        clock.now += 1

    assert counting.written == [["user:a"], ["user:a"], ["user:a"]]


class SlowStore(CacheStore):
    """Takes its time to write, and says when it has begun."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.begun = asyncio.Event()
        self.gate = asyncio.Event()

    async def write_many(self, answers: Collection[KeptAnswer]) -> None:
        self.begun.set()
        await self.gate.wait()
        await super().write_many(answers)


async def test_what_was_being_saved_at_the_end_is_saved(
    store: CacheStore, sqlite_database: Database
) -> None:
    slow = SlowStore(sqlite_database)
    async with open_cache(slow) as cache:
        await read(cache, Upstream(), Wish(began_at=cache.clock(), usual_age_seconds=60))
        await slow.begun.wait()
        asyncio.get_running_loop().call_later(0.05, slow.gate.set)

    assert list(await store.read_many("1", "service", ["user:a"])) == ["user:a"]


async def test_an_answer_of_another_version_of_the_gateway_counts_as_none(
    store: CacheStore, clock: Clock
) -> None:
    cache = RecordCache(store, clock=clock)
    other: Kind[int] = Kind.of("user", Resource.USERS, int)

    async def number(keys: Sequence[str]) -> Mapping[str, int]:
        return dict.fromkeys(keys, 7)

    await cache.read(HERE, other, ["a"], wish=clock.wish(), fetch=number)
    await cache.aclose()
    upstream = Upstream()

    answers = await read(RecordCache(store, clock=clock), upstream, clock.wish())

    assert shown(answers) == {"a": ("a1", DataSource.LIVE)}


class DeafStore(CacheStore):
    async def read_many(self, *_arguments: Any, **_more: Any) -> Any:
        raise StorageUnavailable("The database was not reached")

    async def write_many(self, *_arguments: Any, **_more: Any) -> None:
        raise StorageUnavailable("The database was not reached")


async def test_a_database_that_is_away_costs_no_answer(
    sqlite_database: Database, clock: Clock
) -> None:
    nowhere = DeafStore(sqlite_database)
    cache = RecordCache(nowhere, clock=clock)
    upstream = Upstream()

    first = await read(cache, upstream, clock.wish())
    await cache.aclose()
    again = await read(cache, upstream, clock.wish())

    assert shown(first) == {"a": ("a1", DataSource.LIVE)}
    assert shown(again) == {"a": ("a1", DataSource.CACHE)}


# Bounds


async def test_a_number_too_large_to_keep_is_shown_and_costs_the_others_nothing(
    cache: RecordCache, clock: Clock
) -> None:
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, told: reported.append(told))
    upstream = Upstream()

    async def fetch(keys: Sequence[str]) -> Mapping[str, Any]:
        found = await upstream.fetch(keys)
        return {key: 2**70 if key == "a" else user for key, user in found.items()}

    first = await cache.read(HERE, NUMBER, ["a", "b"], wish=clock.wish(), fetch=fetch)
    await settled(cache)
    await cache.read(HERE, NUMBER, ["a", "b"], wish=clock.wish(), fetch=fetch)

    assert isinstance(first["a"], Kept)
    assert first["a"].value == 2**70
    assert upstream.calls == [["a", "b"], ["a"]]
    assert reported == []


async def test_memory_is_bounded_and_keeps_what_was_used_last(
    store: CacheStore, clock: Clock
) -> None:
    keys = [f"u{number}" for number in range(50)]
    upstream = Upstream(*keys)
    cache = RecordCache(store, clock=clock, terms=CacheTerms(max_bytes=20_000))
    for key in keys:
        await read(cache, upstream, clock.wish(), ["u0", key] if key != "u0" else ["u0"])

    assert cache.counts.held_bytes <= 20_000
    assert 15 < cache.counts.held < 40
    assert ("1", "service", "user:u0") in cache._entries
    assert ("1", "service", "user:u1") not in cache._entries


async def test_what_was_read_is_served_after_very_many_others_were_read_for_their_subjects(
    cache: RecordCache, clock: Clock
) -> None:
    upstream = Upstream()
    await read(cache, upstream, clock.wish())
    for number in range(10_001):
        cache._note_newest(("1", f"user:{number}", "user"), clock.now)

    found = await read(cache, upstream, clock.wish())

    assert shown(found) == {"a": ("a1", DataSource.CACHE)}
    assert len(upstream.calls) == 1
    assert len(cache._newest) < 10_000


@pytest.mark.parametrize("body_bytes", [30, 300, 20_000])
async def test_memory_takes_no_more_than_is_reckoned_with(
    cache: RecordCache, clock: Clock, body_bytes: int
) -> None:
    upstream = Upstream(*(f"{number:032}" for number in range(1000)))
    tracemalloc.start()
    try:
        for key in upstream.known:
            entry = _Entry(os.urandom(body_bytes), body_bytes, HERE.registration, 0, clock.now)
            cache._hold({("1", "service", f"enrollments_by_user:{key}"): entry})
        taken, _peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert cache.counts.held == 1000
    assert taken <= cache.counts.held_bytes


async def test_records_take_no_more_than_is_reckoned_with_and_share_what_is_the_same(
    cache: RecordCache, clock: Clock
) -> None:
    kind: Kind[Sequence[Enrollment]] = Kind.of(
        "enrollments_by_user", Resource.ENROLLMENTS, tuple[Enrollment, ...]
    )
    names = [f"{number:032x}" for number in range(300)]
    for name in names:
        body = msgspec.msgpack.encode(tuple(an_enrollment(name, place) for place in range(5)))
        entry = _Entry(body, len(body), HERE.registration, 0, clock.now)
        cache._hold({("1", "service", f"enrollments_by_user:{name}"): entry})
    cache._note_newest(("1", "service", "enrollments_by_user"), clock.now)
    encoded = cache.counts.held_bytes
    tracemalloc.start()
    try:
        found = cache.at_hand(HERE, kind, names, wish=clock.wish())
        taken, _peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    again = cache.at_hand(HERE, kind, names, wish=clock.wish())
    rows = [row for kept in found.values() for row in kept.value]
    assert taken <= cache.counts.held_bytes
    assert encoded < cache.counts.held_bytes
    assert all(again[name] is found[name] for name in names)
    assert len({id(row.course_id) for row in rows}) == 5
    assert len({id(row.role) for row in rows}) == 1
    assert all(row.provenance.external_id is row.id for row in rows)


async def test_what_there_is_no_room_for_as_records_is_served_and_kept_encoded(
    store: CacheStore, clock: Clock
) -> None:
    upstream = Upstream("a")
    cache = RecordCache(store, clock=clock, terms=CacheTerms(max_bytes=1000))
    await read(cache, upstream, clock.wish())
    await cache.save()
    held = cache.counts.held_bytes

    first, again = [cache.at_hand(HERE, USER, ["a"], wish=clock.wish()) for _ in range(2)]

    assert first["a"].value == again["a"].value
    assert first["a"].value is not again["a"].value
    assert cache.counts.held_bytes == held


async def test_what_does_not_fit_into_memory_comes_from_the_database(
    store: CacheStore, clock: Clock
) -> None:
    cache = RecordCache(store, clock=clock, terms=CacheTerms(max_bytes=0))
    upstream = Upstream()
    await read(cache, upstream, clock.wish())
    await cache.save()

    assert cache.counts.held == 0
    assert len(await store.read_many("1", "service", ["user:a"])) == 1


async def test_records_of_pages_say_where_they_came_from(cache: RecordCache, clock: Clock) -> None:
    async def fetch(keys: Sequence[str]) -> Mapping[str, Page[User]]:
        return {keys[0]: Page(items=(a_user("a", name="A"),), next_position="2", total=9)}

    live = await cache.read(HERE, PAGE, ["50:"], wish=clock.wish(), fetch=fetch)
    kept = await cache.read(HERE, PAGE, ["50:"], wish=clock.wish(), fetch=fetch)

    pages: list[Any] = [live["50:"], kept["50:"]]
    assert [page.value.items[0].provenance.via for page in pages] == ["LIVE", "CACHE"]
    assert (pages[1].value.next_position, pages[1].value.total) == ("2", 9)


async def test_a_meter_counts_where_answers_came_from(cache: RecordCache, clock: Clock) -> None:
    upstream = Upstream()
    upstream.gate = asyncio.Event()
    with metering(Meter()) as meter:
        readers = [
            asyncio.create_task(read(cache, upstream, clock.wish(), ["a", "b"])) for _ in range(2)
        ]
        await until(lambda: cache.counts.joined == 2)
        upstream.gate.set()
        await asyncio.gather(*readers)
        await read(cache, upstream, clock.wish(), ["a"])
        upstream.error = ProviderUnavailable("Down", provider_id="1")
        clock.now += 3600
        await read(cache, upstream, clock.wish(), ["b"])

    usage = meter.usage_by_provider["1"]
    assert (usage.shared, usage.cache_hits, usage.cache_stale) == (2, 1, 1)


# Answers that are wanted together


async def put_together(cache: RecordCache, clock: Clock, keys: tuple[str, ...]) -> Sequence[User]:
    await read(cache, Upstream(*keys), clock.wish(), keys)
    await cache.save()
    cache.at_hand(HERE, USER, keys, wish=clock.wish())
    await cache.put_together(HERE, USER, keys)
    found = cache.together(HERE, USER, keys, wish=clock.wish())
    assert found is not None
    return found


async def test_answers_put_together_are_had_in_their_order_and_count_as_served(
    cache: RecordCache, clock: Clock
) -> None:
    keys = tuple(f"{number:04}" for number in range(1200))
    found = await put_together(cache, clock, keys)
    hits, basis = cache.counts.hits, Basis()

    with metering(Meter()) as meter:
        again = [cache.together(HERE, USER, keys, wish=clock.wish(), basis=basis) for _ in range(2)]

    singly = cache.at_hand(HERE, USER, keys, wish=clock.wish())
    assert [user.external_id for user in found] == [*keys]
    assert all(user is singly[key].value for user, key in zip(found, keys, strict=True))
    assert again == [found, found]
    assert meter.usage_by_provider["1"].cache_hits == 2400
    assert cache.counts.hits == hits + 3600
    assert cache.still_stands(basis)
    assert (basis.hits["1"], basis.size_bytes) == (1200, 1200 * 24)
    assert cache.together(HERE, USER, keys[:-1], wish=clock.wish()) is None
    assert cache.together(replace(HERE, writes=1), USER, keys, wish=clock.wish()) is None


async def test_answers_are_together_until_one_is_read_anew(
    cache: RecordCache, clock: Clock
) -> None:
    keys = ("a", "b", "c")
    basis = Basis()
    await put_together(cache, clock, keys)
    cache.together(HERE, USER, keys, wish=clock.wish(), basis=basis)
    clock.now += 1
    await read(cache, Upstream(), clock.wish(0), ["b"])

    landing = cache.together(HERE, USER, keys, wish=clock.wish())
    newer = cache.at_hand(HERE, USER, keys, wish=clock.wish())
    held = cache.together(HERE, USER, keys, wish=clock.wish())
    await cache.put_together(HERE, USER, keys)

    assert (landing, held) == (None, None)
    assert newer["b"].read_at > newer["a"].read_at
    assert not cache.still_stands(basis)
    assert cache.together(HERE, USER, keys, wish=clock.wish()) is not None


async def test_answers_that_are_together_are_served_as_long_as_the_oldest_is_young_enough(
    cache: RecordCache, clock: Clock
) -> None:
    keys = ("a", "b", "c")
    basis = Basis()
    await put_together(cache, clock, keys)
    clock.now += 59
    assert cache.together(HERE, USER, keys, wish=clock.wish(), basis=basis) is not None
    assert cache.still_stands(basis)
    clock.now += 2

    assert cache.together(HERE, USER, keys, wish=clock.wish()) is None
    assert not cache.still_stands(basis)


async def test_answers_that_are_served_together_are_not_let_go_before_others(
    store: CacheStore, clock: Clock
) -> None:
    cache = RecordCache(store, clock=clock, terms=CacheTerms(max_bytes=6000))
    await put_together(cache, clock, ("a", "b"))
    await read(cache, Upstream("c"), clock.wish(), ["c"])
    await cache.save()
    clock.now += 20
    cache.together(HERE, USER, ("a", "b"), wish=clock.wish())

    number = 0
    while ("1", "service", "user:c") in cache._entries:
        number += 1
        await read(cache, Upstream(f"more {number}"), clock.wish(), [f"more {number}"])
        await cache.save()

    held = {name[2] for name in cache._entries}
    assert {"user:a", "user:b"} <= held


async def test_what_is_not_all_in_memory_is_not_put_together(
    cache: RecordCache, clock: Clock
) -> None:
    await read(cache, Upstream(), clock.wish(), ["a", "b"])
    await cache.save()

    await cache.put_together(HERE, USER, ("a", "b"))  # still encoded
    await cache.put_together(HERE, USER, ("a", "b", "gone"))

    assert cache.together(HERE, USER, ("a", "b"), wish=clock.wish()) is None
    assert cache.together(HERE, USER, ("a", "b", "gone"), wish=clock.wish()) is None


async def test_series_are_let_go_when_they_are_broken_dropped_or_too_many(
    cache: RecordCache, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put_together(cache, clock, ("a", "b"))
    clock.now += 1
    await read(cache, Upstream(), clock.wish(0), ["b"])
    await cache.save_due()
    assert not cache._series
    await put_together(cache, clock, ("a", "b"))
    cache.drop("1")
    assert not cache._series
    monkeypatch.setattr("resolvers.caching._MOST_IN_SERIES", 3)
    await put_together(cache, clock, ("a", "b"))
    await put_together(cache, clock, ("b", "c"))

    assert [one.keys for one in cache._series.values()] == [("b", "c")]
    assert cache._in_series == 2


# The option


@pytest.mark.parametrize(
    ("text", "ages"),
    [
        ("0", {"users": 0, "courses": 0, "enrollments": 0}),
        ("60", {"users": 60, "courses": 60, "enrollments": 60}),
        ("users=30", {"users": 30}),
        ("users=30, courses=600", {"users": 30, "courses": 600}),
        ("60,courses=600", {"users": 60, "courses": 600, "enrollments": 60}),
    ],
)
def test_a_providers_option_says_how_old_its_answers_may_be(
    text: str, ages: Mapping[str, float]
) -> None:
    assert parse_max_age(text) == ages


@pytest.mark.parametrize("text", ["", "-1", "1.5", "soon", "users=", "people=3", "users=1,,", "=3"])
def test_an_option_of_another_form_is_refused_with_the_right_one(text: str) -> None:
    with pytest.raises(ValueError, match="users=60,courses=600,enrollments=0"):
        parse_max_age(text)
