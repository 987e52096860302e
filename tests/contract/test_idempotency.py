"""A write with a key is carried out once, on every database, however often and from where."""

import asyncio
import hashlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select, text, update
from structlog.testing import capture_logs

from resolvers.writing import Outcome, Write, WriteRefusal, Writes, WriteTerms, open_writes
from sessions.base import Login, Written
from sessions.errors import ProviderError, ProviderRejected, ProviderTimeout
from storage.credentials import KeyRing, Secret
from storage.database import Database, open_database
from storage.idempotency import (
    KEPT_SECONDS,
    Answered,
    IdempotencyStore,
    NoProvider,
    OtherInput,
    UnderWay,
    WriteClaim,
    WriteName,
)
from storage.providers import ProviderStore
from storage.records import (
    Enrollment,
    EnrollmentSource,
    EnrollmentState,
    Identifier,
    IdentifierType,
    Progress,
    ProgressMethod,
    Provenance,
    Role,
    RoleValue,
    Score,
    User,
)
from storage.tables import database_now, idempotency

NO_CREDENTIALS: Secret[Mapping[str, str]] = Secret({})
NAME = WriteName(caller="key1", mutation="createLogin", provider_id="1", key="order-4711")
QUICK = WriteTerms(
    lease_seconds=0.6, write_seconds=5, patience_seconds=5, look_seconds=0.02, shutdown_seconds=0
)
LOGIN = Login(id="7", user_id="3", username="cody")


async def add_provider(database: Database, key_ring: KeyRing, provider_id: str = "1") -> None:
    await ProviderStore(database, key_ring).add(
        id=provider_id,
        platform="canvas",
        name="Canvas",
        base_url="https://canvas.example.org",
        credentials=NO_CREDENTIALS,
    )


@pytest.fixture
async def database(any_database: Database, key_ring: KeyRing) -> Database:
    await add_provider(any_database, key_ring)
    return any_database


@pytest.fixture
def store(database: Database) -> IdempotencyStore:
    return IdempotencyStore(database)


@pytest.fixture
async def writes(store: IdempotencyStore) -> AsyncIterator[Writes]:
    async with open_writes(store, QUICK) as opened:
        yield opened


class Provider:
    """Counts what is asked of it, and does it slowly."""

    def __init__(self, *failures: ProviderError, seconds: float = 0.0) -> None:
        self.acts = 0
        self._failures = list(failures)
        self._seconds = seconds

    async def __call__(self) -> Written[Login]:
        self.acts += 1
        await asyncio.sleep(self._seconds)
        if self._failures:
            raise self._failures.pop(0)
        return Written(replace(LOGIN, id=str(self.acts)), created=True)


def a_write(
    act: Callable[[], Awaitable[Written[Login]]],
    *,
    name: WriteName | None = NAME,
    sha256: str = "a",
) -> Write[Login]:
    return Write(kind=Login, provider_id="1", act=act, name=name, input_sha256=sha256)


async def claim(
    store: IdempotencyStore, name: WriteName = NAME, sha256: str = "a", seconds: float = 30
) -> WriteClaim:
    claimed = await store.claim(name, sha256, lease_seconds=seconds)
    assert isinstance(claimed, WriteClaim)
    return claimed


# Rows


async def test_a_write_is_claimed_once_and_then_answered(store: IdempotencyStore) -> None:
    claimed = await claim(store)
    second = await store.claim(NAME, "a", lease_seconds=30)
    kept = await store.keep(claimed, b"{}")

    assert isinstance(second, UnderWay)
    assert 28 < second.leased_seconds <= 30
    assert kept
    assert await store.claim(NAME, "a", lease_seconds=30) == Answered(answer=b"{}")


async def test_a_key_is_bound_to_its_input_while_it_is_under_way_after_it_and_when_it_failed(
    store: IdempotencyStore,
) -> None:
    first = await claim(store)
    while_under_way = await store.claim(NAME, "b", lease_seconds=30)
    await store.free(first)
    when_failed = await store.claim(NAME, "b", lease_seconds=30)
    await store.keep(await claim(store), b"{}")
    after_it = await store.claim(NAME, "b", lease_seconds=30)

    assert (while_under_way, when_failed, after_it) == (OtherInput(), OtherInput(), OtherInput())


@pytest.mark.parametrize("change", ["caller", "mutation", "provider_id", "key"])
async def test_another_callers_mutations_providers_or_key_is_another_write(
    database: Database, store: IdempotencyStore, key_ring: KeyRing, change: str
) -> None:
    await add_provider(database, key_ring, "other")
    await store.keep(await claim(store), b"{}")

    other = await claim(store, replace(NAME, **{change: "other"}))

    assert other.fence == 1


async def test_a_freed_write_can_be_claimed_at_once(store: IdempotencyStore) -> None:
    assert await store.free(await claim(store))

    assert (await claim(store)).fence == 2


async def test_a_crashed_claimants_write_is_taken_over_and_it_can_keep_nothing_then(
    store: IdempotencyStore,
) -> None:
    crashed = await claim(store, seconds=0.05)
    await asyncio.sleep(0.1)

    successor = await claim(store)

    assert successor.fence == 2
    assert not await store.keep(crashed, b'"late"')
    assert not await store.free(crashed)
    assert await store.keep(successor, b'"right"')
    assert await store.claim(NAME, "a", lease_seconds=30) == Answered(answer=b'"right"')


async def test_after_a_day_a_key_is_as_good_as_new_and_old_rows_are_removed(
    database: Database, store: IdempotencyStore
) -> None:
    names = [replace(NAME, key=f"key-{number}") for number in range(3)]
    for name in names:
        await store.keep(await claim(store, name), b"{}")
    async with database.transaction() as connection:
        lifetimes = await connection.execute(
            select(idempotency.c.expires_at - database_now()).distinct()
        )
        assert all(KEPT_SECONDS - 5 < seconds <= KEPT_SECONDS for (seconds,) in lifetimes)
        await connection.execute(update(idempotency).values(expires_at=database_now() - 1))

    again = await claim(store, names[0], "b")

    assert again.fence == 2
    async with database.read() as connection:
        assert len((await connection.execute(select(idempotency))).all()) == 1


async def test_what_is_kept_goes_with_its_provider(
    database: Database, store: IdempotencyStore, key_ring: KeyRing
) -> None:
    claimed = await claim(store)
    await ProviderStore(database, key_ring).remove("1")

    assert not await store.keep(claimed, b"{}")
    assert await store.claim(NAME, "a", lease_seconds=30) == NoProvider()


async def test_keys_are_kept_as_hashes(database: Database, store: IdempotencyStore) -> None:
    await claim(store)

    async with database.read() as connection:
        row = (await connection.execute(select(idempotency))).one()
    assert NAME.key not in str(tuple(row))
    assert row.key_sha256 == hashlib.sha256(b"order-4711").hexdigest()


async def test_of_a_hundred_claims_at_once_from_two_gateways_one_succeeds(
    database: Database, any_database_url: str
) -> None:
    async with open_database(any_database_url) as other:
        stores = [IdempotencyStore(database), IdempotencyStore(other)]

        standings = await asyncio.gather(
            *(stores[number % 2].claim(NAME, "a", lease_seconds=30) for number in range(100))
        )

    assert sum(isinstance(each, WriteClaim) for each in standings) == 1
    assert sum(isinstance(each, UnderWay) for each in standings) == 99


# Carrying out


async def test_a_hundred_repeats_at_once_are_one_write(writes: Writes) -> None:
    provider = Provider(seconds=0.05)

    outcomes = await asyncio.gather(*(writes.carry_out(a_write(provider)) for _ in range(100)))

    assert provider.acts == 1
    assert outcomes == [Written(replace(LOGIN, id="1"), created=True)] * 100


async def test_a_hundred_repeats_at_once_on_two_gateways_are_one_write(
    database: Database, any_database_url: str
) -> None:
    provider = Provider(seconds=0.1)
    async with AsyncExitStack() as stack:
        other = await stack.enter_async_context(open_database(any_database_url))
        gateways = [
            await stack.enter_async_context(open_writes(IdempotencyStore(each), QUICK))
            for each in (database, other)
        ]

        outcomes = await asyncio.gather(
            *(gateways[number % 2].carry_out(a_write(provider)) for number in range(100))
        )

    assert provider.acts == 1
    assert outcomes == [Written(replace(LOGIN, id="1"), created=True)] * 100


async def test_without_a_key_every_asking_is_a_write(writes: Writes) -> None:
    provider = Provider()

    for _ in range(3):
        await writes.carry_out(a_write(provider, name=None))

    assert provider.acts == 3


async def test_another_input_is_refused_while_the_first_is_carried_out_here_and_later(
    writes: Writes,
) -> None:
    provider = Provider(seconds=0.05)

    outcomes = await asyncio.gather(
        *(writes.carry_out(a_write(provider, sha256=sha256)) for sha256 in "ab")
    )
    later = await writes.carry_out(a_write(provider, sha256="b"))

    refusal = WriteRefusal(
        code="BAD_INPUT",
        message="This key was used for another input; a key serves one write for a day",
        field="idempotency_key",
        provider_id="1",
    )
    assert provider.acts == 1
    assert outcomes[1] == refusal
    assert later == refusal


async def test_a_failure_that_may_pass_frees_the_key(writes: Writes) -> None:
    provider = Provider(ProviderTimeout("Canvas did not answer", provider_id="1"))

    first = await writes.carry_out(a_write(provider))
    second = await writes.carry_out(a_write(provider))
    third = await writes.carry_out(a_write(provider))

    assert first == WriteRefusal(
        code="PROVIDER_TIMEOUT", message="Canvas did not answer", retryable=True, provider_id="1"
    )
    assert second == third == Written(replace(LOGIN, id="2"), created=True)
    assert provider.acts == 2


async def test_what_the_provider_rejects_is_rejected_again_without_asking_it(
    writes: Writes,
) -> None:
    provider = Provider(ProviderRejected("It is taken", provider_id="1", field="username"))

    first = await writes.carry_out(a_write(provider))
    second = await writes.carry_out(a_write(provider))

    assert first == second
    assert first == WriteRefusal(
        code="BAD_INPUT", message="It is taken", field="username", provider_id="1"
    )
    assert provider.acts == 1


async def test_a_caller_who_hangs_up_leaves_the_write_to_be_finished(writes: Writes) -> None:
    provider = Provider(seconds=0.1)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await writes.carry_out(a_write(provider))
    again = await writes.carry_out(a_write(provider))

    assert again == Written(replace(LOGIN, id="1"), created=True)
    assert provider.acts == 1


async def test_a_gateway_that_stops_in_the_middle_holds_the_write_until_its_lease_ends(
    store: IdempotencyStore,
) -> None:
    provider = Provider(seconds=60)
    async with open_writes(store, QUICK) as stopping:
        caller = asyncio.create_task(stopping.carry_out(a_write(provider)))
        await asyncio.sleep(0.1)
    with pytest.raises(asyncio.CancelledError):
        await caller
    standing = await store.claim(NAME, "a", lease_seconds=30)
    quick = Provider()
    async with open_writes(store, QUICK) as successor:
        outcome = await successor.carry_out(a_write(quick))

    assert isinstance(standing, UnderWay)
    assert outcome == Written(replace(LOGIN, id="1"), created=True)
    assert (provider.acts, quick.acts) == (1, 1)


async def test_writes_under_way_may_end_before_the_gateway_does(store: IdempotencyStore) -> None:
    provider = Provider(seconds=0.05)
    async with open_writes(store, replace(QUICK, shutdown_seconds=5)) as stopping:
        caller = asyncio.create_task(stopping.carry_out(a_write(provider)))
        await asyncio.sleep(0.02)

    assert await caller == Written(replace(LOGIN, id="1"), created=True)


async def test_patience_with_another_gateway_ends(store: IdempotencyStore) -> None:
    await claim(store, seconds=30)
    provider = Provider()
    async with open_writes(store, replace(QUICK, patience_seconds=0.05)) as writes:
        outcome = await writes.carry_out(a_write(provider))

    assert outcome == WriteRefusal(
        code="PROVIDER_TIMEOUT",
        message="An earlier request with this key is still being carried out",
        field="idempotency_key",
        retryable=True,
        retry_after_seconds=30,
        provider_id="1",
    )
    assert provider.acts == 0


async def test_a_write_at_a_provider_that_is_gone_is_refused(writes: Writes) -> None:
    provider = Provider()

    outcome = await writes.carry_out(a_write(provider, name=replace(NAME, provider_id="2")))

    assert isinstance(outcome, WriteRefusal)
    assert (outcome.code, outcome.field) == ("PROVIDER_NOT_FOUND", "provider_id")
    assert provider.acts == 0


async def test_a_write_ends_within_its_time_whatever_the_provider_does(
    store: IdempotencyStore,
) -> None:
    async with open_writes(store, replace(QUICK, write_seconds=0.1)) as writes:
        provider = Provider(seconds=60)

        outcome = await writes.carry_out(a_write(provider))
        again = await writes.carry_out(a_write(Provider()))

    assert isinstance(outcome, WriteRefusal)
    assert (outcome.code, outcome.retryable) == ("PROVIDER_TIMEOUT", True)
    assert again == Written(replace(LOGIN, id="1"), created=True)


async def test_a_write_that_cannot_be_noted_is_answered_all_the_same(
    sqlite_database: Database, key_ring: KeyRing
) -> None:
    await add_provider(sqlite_database, key_ring)

    async def act() -> Written[Login]:
        async with sqlite_database.transaction() as connection:
            await connection.execute(text("DROP TABLE idempotency"))
        return Written(LOGIN, created=True)

    async with open_writes(IdempotencyStore(sqlite_database), QUICK) as writes:
        with capture_logs() as logs:
            outcome = await writes.carry_out(a_write(act))

    assert outcome == Written(LOGIN, created=True)
    assert [line["event"] for line in logs] == ["write_not_noted"]


NOW = datetime(2025, 3, 1, 10, 30, 0, 250_000, tzinfo=UTC)
FROM = Provenance(provider_id="1", external_id="3", source_type="user", fetched_at=NOW)


@pytest.mark.parametrize(
    "record",
    [
        LOGIN,
        User(
            provider_id="1",
            external_id="90071992547409931",
            username=None,
            display_name="María del Carmen Núñez",
            identifiers=(
                Identifier(type=IdentifierType.SIS_ID, value="S/1", namespace="sis_user_id"),
            ),
            provenance=FROM,
        ),
        Enrollment(
            provider_id="1",
            id="5",
            external_id="5",
            user_id="3",
            course_id="1",
            section_id="2",
            role=Role(value=RoleValue.TEACHING_ASSISTANT, source_value="Lab assistant"),
            state=EnrollmentState.PENDING,
            source=EnrollmentSource.ROSTER,
            enrolled_at=NOW,
            progress=Progress(score=Score(raw=91.5), method=ProgressMethod.REPORTED),
            provenance=FROM,
        ),
    ],
    ids=lambda record: type(record).__name__,
)
async def test_a_kept_answer_is_given_exactly(
    writes: Writes, record: User | Login | Enrollment
) -> None:
    async def act() -> Written[User | Login | Enrollment]:
        return Written(record, created=True)

    write: Write[User | Login | Enrollment] = Write(
        kind=type(record), provider_id="1", act=act, name=NAME, input_sha256="a"
    )

    first = await writes.carry_out(write)
    second = await writes.carry_out(write)

    assert first == second == Written(record, created=True)
    assert second is not first


# Any sequence

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["key1", "key2"]),  # callers
        st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=3)
        | st.sampled_from(["x", "y"]),  # idempotency keys
        st.sampled_from("abc"),  # inputs
        st.sampled_from(["done", "done", "rejected", "timeout", "late"]),
    ),
    max_size=25,
)


@given(steps=STEPS, together=st.integers(1, 4))
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_whatever_the_order_a_key_has_one_input_one_answer_and_at_most_one_row(
    migrated_file: Path,
    key_ring: KeyRing,
    steps: list[tuple[str, str, str, str]],
    together: int,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gateway.db"
        shutil.copyfile(migrated_file, path)
        asyncio.run(walk(f"sqlite:///{path}", key_ring, steps, together))


async def walk(
    url: str, key_ring: KeyRing, steps: list[tuple[str, str, str, str]], together: int
) -> None:
    """Ask for writes some at a time, at a provider that looks before it creates."""
    rows: dict[str, int] = {}  # by what is to be created: how many there are
    inputs: dict[tuple[str, str], str] = {}  # what a key was first used for
    answers: dict[tuple[str, str], Outcome[Login]] = {}

    def act_of(what: str, way: str) -> Callable[[], Awaitable[Written[Login]]]:
        async def act() -> Written[Login]:
            await asyncio.sleep(0)
            if way == "rejected" and what not in rows:
                raise ProviderRejected("No", provider_id="1")
            if way == "timeout" and what not in rows:
                raise ProviderTimeout("Late", provider_id="1")
            created = what not in rows
            if created:
                rows[what] = rows.get(what, 0) + 1
            if way == "late":
                raise ProviderTimeout("Done, and the answer lost", provider_id="1")
            return Written(Login(id=what, user_id="1", username=what), created=created)

        return act

    async with open_database(url) as database:
        await add_provider(database, key_ring)
        async with open_writes(IdempotencyStore(database), QUICK) as writes:

            async def step(caller: str, key: str, what: str, way: str) -> None:
                name = replace(NAME, caller=caller, key=key)
                bound = inputs.setdefault((caller, key), what)
                act = act_of(f"{caller} {key} {what}", way)
                outcome = await writes.carry_out(a_write(act, name=name, sha256=what))
                if what != bound:
                    assert isinstance(outcome, WriteRefusal)
                    assert outcome.field == "idempotency_key"
                    return
                answer = answers.get((caller, key))
                if answer is None or (isinstance(answer, WriteRefusal) and answer.retryable):
                    answers[caller, key] = outcome
                else:
                    assert outcome == answer

            for start in range(0, len(steps), together):
                wanted = steps[start : start + together]
                await asyncio.gather(*(step(*each) for each in wanted))

    assert all(count == 1 for count in rows.values())
    assert set(rows) <= {f"{caller} {key} {what}" for (caller, key), what in inputs.items()}
