"""What the stores promise, on every database."""

import asyncio
import itertools
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Table, func, insert, select, update

from storage.api_keys import ApiKey, ApiKeyStore, parse_scopes
from storage.cache import CacheStore
from storage.callbacks import CallbackStore
from storage.credentials import KeyRing, Secret
from storage.database import Database
from storage.errors import (
    CredentialsMissing,
    CredentialsUnreadable,
    RevisionConflict,
    ScopeInvalid,
    StorageError,
)
from storage.providers import ProviderStore
from storage.records import Provider, ProviderState
from storage.tables import api_key, callback, database_now, provider, session

CREDENTIALS: Secret[Mapping[str, str]] = Secret({"username": "admin", "password": "canary-4711"})
SOON = timedelta(hours=1)


def make_keys(*names: str) -> list[tuple[str, Secret[bytes]]]:
    return [(name, Secret(name.encode().ljust(32, b"-"))) for name in names]


def make_ring(*names: str) -> KeyRing:
    return KeyRing(make_keys(*names))


async def add_provider(store: ProviderStore, provider_id: str = "1", **changes: Any) -> Provider:
    values: dict[str, Any] = {
        "platform": "kolibri",
        "name": "Library",
        "base_url": "http://kolibri.example",
        "credentials": CREDENTIALS,
    }
    return await store.add(id=provider_id, **{**values, **changes})


async def add_session(database: Database, provider_id: str, secret: bytes | None) -> None:
    async with database.transaction() as connection:
        await connection.execute(
            insert(session).values(
                provider_id=provider_id,
                subject="service",
                version=1,
                fence=1,
                state="ACTIVE",
                secret=secret,
                lease_until=0.0,
                failures=0,
                login_count=0,
                updated_at=database_now(),
            )
        )


# Providers.


async def test_a_provider_is_given_back_as_it_was_registered(
    any_database: Database, key_ring: KeyRing
) -> None:
    store = ProviderStore(any_database, key_ring)
    before = datetime.now(UTC) - timedelta(milliseconds=10)

    added = await add_provider(
        store,
        account_id="facility",
        options={"role.coach": "TEACHER", "ü": "☃"},
        state=ProviderState.ACTIVE,
        version="0.19.5",
        problem="None really",
        checked_at=datetime(2026, 2, 3, 4, 5, 6, 789, tzinfo=UTC),
    )

    assert added == Provider(
        id="1",
        platform="kolibri",
        name="Library",
        base_url="http://kolibri.example",
        account_id="facility",
        options={"role.coach": "TEACHER", "ü": "☃"},
        state=ProviderState.ACTIVE,
        version="0.19.5",
        revision=1,
        problem="None really",
        created_at=added.created_at,
        updated_at=added.created_at,
        checked_at=datetime(2026, 2, 3, 4, 5, 6, 789, tzinfo=UTC),
    )
    assert before <= added.created_at <= datetime.now(UTC) + timedelta(milliseconds=10)
    assert await store.get("1") == added
    assert await store.get("2") is None


async def test_registering_an_id_again_replaces_the_provider(
    any_database: Database, key_ring: KeyRing
) -> None:
    store = ProviderStore(any_database, key_ring)
    first = await add_provider(store, version="0.18", problem="Wrong password", account_id="x")
    await add_session(any_database, "1", b"secret")

    second = await add_provider(store, name="New", credentials=Secret({"token": "t"}))

    assert second.revision == 2
    assert second.created_at == first.created_at
    assert (second.name, second.version, second.problem, second.account_id) == (
        "New",
        None,
        None,
        None,
    )
    assert await store.credentials("1") == Secret({"token": "t"})
    assert await count_rows(any_database, session) == 1


async def test_providers_are_listed_in_the_order_of_registration(
    any_database: Database, key_ring: KeyRing
) -> None:
    store = ProviderStore(any_database, key_ring)
    assert list(await store.list_all()) == []

    for provider_id in ("b", "a", "10", "9"):
        await add_provider(store, provider_id)
        await asyncio.sleep(0.003)  # SQLite's clock has milliseconds
    await add_provider(store, "b", name="again")

    assert [found.id for found in await store.list_all()] == ["b", "a", "10", "9"]


async def test_a_change_raises_the_revision_and_leaves_the_rest(
    any_database: Database, key_ring: KeyRing
) -> None:
    store = ProviderStore(any_database, key_ring)
    before = await add_provider(store, options={"a": "b"}, account_id="x")

    after = await store.update("1", name="New", options={"c": "d"}, account_id=None)

    assert after is not None
    assert after == replace(
        before,
        name="New",
        options={"c": "d"},
        account_id=None,
        revision=2,
        updated_at=after.updated_at,
    )
    assert after.updated_at >= before.updated_at
    assert await store.get("1") == after
    assert await store.credentials("1") == CREDENTIALS


async def test_what_a_check_observed_leaves_the_revision_alone(
    any_database: Database, key_ring: KeyRing
) -> None:
    store = ProviderStore(any_database, key_ring)
    await add_provider(store)

    observed = await store.update(
        "1", version="0.19.5", problem=None, checked_at=datetime(2026, 1, 1, tzinfo=UTC)
    )
    activated = await store.update("1", state=ProviderState.ACTIVE, version="0.19.5")

    assert observed is not None
    assert activated is not None
    assert (observed.revision, observed.version) == (1, "0.19.5")
    assert (activated.revision, activated.state) == (2, ProviderState.ACTIVE)


async def test_new_credentials_raise_the_revision(
    any_database: Database, key_ring: KeyRing
) -> None:
    store = ProviderStore(any_database, key_ring)
    await add_provider(store)

    changed = await store.update("1", credentials=Secret({"password": "new"}))

    assert changed is not None
    assert changed.revision == 2
    assert await store.credentials("1") == Secret({"password": "new"})


async def test_a_change_meant_for_an_older_revision_is_refused(
    any_database: Database, key_ring: KeyRing
) -> None:
    store = ProviderStore(any_database, key_ring)
    await add_provider(store)
    current = await store.update("1", expected_revision=1, name="First")

    with pytest.raises(RevisionConflict, match="Provider 1 was changed by somebody else"):
        await store.update("1", expected_revision=1, name="Second", credentials=Secret({}))

    assert await store.get("1") == current
    assert await store.credentials("1") == CREDENTIALS


async def test_one_of_many_changes_meant_for_the_same_revision_is_made(
    any_database: Database, key_ring: KeyRing
) -> None:
    store = ProviderStore(any_database, key_ring)
    await add_provider(store)

    outcomes = await asyncio.gather(
        *(store.update("1", expected_revision=1, name=str(number)) for number in range(20)),
        return_exceptions=True,
    )

    assert sum(isinstance(outcome, RevisionConflict) for outcome in outcomes) == 19
    assert [outcome.revision for outcome in outcomes if isinstance(outcome, Provider)] == [2]


@pytest.mark.parametrize("expected_revision", [None, 1])
async def test_changing_an_unknown_provider_changes_nothing(
    any_database: Database, key_ring: KeyRing, expected_revision: int | None
) -> None:
    store = ProviderStore(any_database, key_ring)

    changed = await store.update("1", name="New", expected_revision=expected_revision)

    assert changed is None
    assert list(await store.list_all()) == []


async def test_removing_a_provider_removes_its_sessions_and_kept_answers(
    any_database: Database, key_ring: KeyRing
) -> None:
    store = ProviderStore(any_database, key_ring)
    kept = CacheStore(any_database)
    for provider_id in ("1", "2"):
        await add_provider(store, provider_id)
        await add_session(any_database, provider_id, None)
        await kept.write(provider_id, "service", "users", body=b"[]", fresh_seconds=60)

    assert await store.remove("1") is True
    assert await store.remove("1") is False

    assert [found.id for found in await store.list_all()] == ["2"]
    assert await count_rows(any_database, session) == 1
    assert await kept.read("1", "service", "users") is None
    assert await kept.read("2", "service", "users") is not None


async def test_credentials_are_sealed_and_bound_to_their_provider(
    any_database: Database, key_ring: KeyRing
) -> None:
    store = ProviderStore(any_database, key_ring)
    await add_provider(store, "1")
    await add_provider(store, "2", credentials=Secret({}))
    async with any_database.transaction() as connection:
        blob = (
            await connection.execute(select(provider.c.credentials).where(provider.c.id == "1"))
        ).scalar_one()
        moved = update(provider).where(provider.c.id == "2").values(credentials=blob)
        await connection.execute(moved)

    assert b"canary" not in blob
    assert await store.credentials("1") == CREDENTIALS
    with pytest.raises(CredentialsUnreadable, match=r"provider\|2\|credentials"):
        await store.credentials("2")


async def test_an_unknown_provider_has_no_credentials(
    any_database: Database, key_ring: KeyRing
) -> None:
    with pytest.raises(CredentialsMissing, match="There are no credentials of provider 1"):
        await ProviderStore(any_database, key_ring).credentials("1")


# Replacing keys.


async def test_rotation_seals_everything_with_the_newest_key(any_database: Database) -> None:
    old = make_ring("k1")
    for provider_id in ("1", "2", "3"):
        await add_provider(ProviderStore(any_database, old), provider_id)
    await add_session(any_database, "1", old.seal(b"grant", bound_to="session|1|service|secret"))
    await add_session(any_database, "2", None)
    store = ProviderStore(any_database, make_ring("k2", "k1"))
    await add_provider(store, "4")

    assert await store.rotate_keys() == 4
    assert await store.rotate_keys() == 0

    new = make_ring("k2")
    assert await ProviderStore(any_database, new).credentials("3") == CREDENTIALS
    async with any_database.read() as connection:
        sealed = (await connection.execute(select(session.c.secret))).scalars().all()
    assert [new.unseal(blob, bound_to="session|1|service|secret") for blob in sealed if blob] == [
        b"grant"
    ]
    found = await store.get("1")
    assert found is not None
    assert found.revision == 1


async def test_rotation_loses_nothing_others_write_meanwhile(any_database: Database) -> None:
    old, both = make_ring("k1"), make_ring("k2", "k1")
    ids = [str(number) for number in range(20)]
    for provider_id in ids:
        await add_provider(ProviderStore(any_database, old), provider_id)
    written: dict[str, str] = {}
    rotated = asyncio.Event()

    async def keep_writing(writer: int) -> None:
        store = ProviderStore(any_database, both)
        for number in itertools.count():
            if rotated.is_set() and number >= 5:
                return
            for provider_id in ids[writer::3]:
                written[provider_id] = f"{writer}-{number}"
                secret = Secret({"password": written[provider_id]})
                await store.update(provider_id, credentials=secret)

    async def rotate() -> None:
        await ProviderStore(any_database, both).rotate_keys()
        rotated.set()

    await asyncio.gather(rotate(), *(keep_writing(writer) for writer in range(3)))

    new = ProviderStore(any_database, make_ring("k2"))
    for provider_id in ids:
        assert await new.credentials(provider_id) == Secret({"password": written[provider_id]})


class OutrunKeyRing(KeyRing):
    """A ring whose user is outrun: somebody with the old key only writes before it can."""

    def __init__(self, path: str, times: int) -> None:
        keys = make_keys("k2", "k1")
        super().__init__(keys)
        self.path = path
        self.times = times

    def seal(self, plaintext: bytes, *, bound_to: str) -> bytes:
        if self.times > 0:
            self.times -= 1
            faster = make_ring("k1").seal(b'{"password": "faster"}', bound_to=bound_to)
            with closing(sqlite3.connect(self.path)) as connection, connection:
                connection.execute("UPDATE provider SET credentials = ?", (faster,))
        return super().seal(plaintext, bound_to=bound_to)


async def test_rotation_reads_again_what_changed_in_between(
    sqlite_database: Database, sqlite_url: str
) -> None:
    await add_provider(ProviderStore(sqlite_database, make_ring("k1")))
    outrun = OutrunKeyRing(sqlite_url.removeprefix("sqlite:///"), times=3)

    assert await ProviderStore(sqlite_database, outrun).rotate_keys() == 1

    store = ProviderStore(sqlite_database, make_ring("k2"))
    assert await store.credentials("1") == Secret({"password": "faster"})


async def test_rotation_says_so_when_somebody_keeps_using_the_old_key(
    sqlite_database: Database, sqlite_url: str
) -> None:
    await add_provider(ProviderStore(sqlite_database, make_ring("k1")))
    outrun = OutrunKeyRing(sqlite_url.removeprefix("sqlite:///"), times=1000)

    with pytest.raises(StorageError, match="give the newest key to every running gateway first"):
        await ProviderStore(sqlite_database, outrun).rotate_keys()

    store = ProviderStore(sqlite_database, make_ring("k1"))
    assert await store.credentials("1") == Secret({"password": "faster"})


async def test_rotation_does_what_it_can_and_names_the_rest(any_database: Database) -> None:
    await add_provider(ProviderStore(any_database, make_ring("lost")), "1")
    await add_provider(ProviderStore(any_database, make_ring("k1")), "2")
    await add_session(any_database, "2", b"damaged")

    with pytest.raises(CredentialsUnreadable) as caught:
        await ProviderStore(any_database, make_ring("k2", "k1")).rotate_keys()

    assert caught.value.message == (
        "Sealed with keys that are not given, or damaged: "
        "provider|1|credentials, session|2|service|secret"
    )
    assert await ProviderStore(any_database, make_ring("k2")).credentials("2") == CREDENTIALS
    assert await ProviderStore(any_database, make_ring("lost")).credentials("1") == CREDENTIALS


# Kept answers.


async def test_an_answer_is_kept_with_its_age_and_freshness(
    any_database: Database, key_ring: KeyRing
) -> None:
    await add_provider(ProviderStore(any_database, key_ring))
    store = CacheStore(any_database)
    before = datetime.now(UTC)

    kept = await store.write(
        "1", "service", "users", body=b"\x00[]", fresh_seconds=60, etag="v1", age_seconds=20
    )

    assert kept is not None
    assert kept == await store.read("1", "service", "users")
    assert (kept.provider_id, kept.subject, kept.resource) == ("1", "service", "users")
    assert (kept.body, kept.etag, kept.fresh) == (b"\x00[]", "v1", True)
    assert abs((kept.fetched_at - before).total_seconds() + 20) < 2
    assert abs((kept.fresh_until - kept.fetched_at).total_seconds() - 60) < 0.01
    assert await store.read("1", "service", "courses") is None
    assert await store.read("1", "somebody", "users") is None


async def test_an_answer_past_its_time_is_kept_but_not_fresh(
    any_database: Database, key_ring: KeyRing
) -> None:
    await add_provider(ProviderStore(any_database, key_ring))
    store = CacheStore(any_database)

    await store.write("1", "service", "users", body=b"", fresh_seconds=60, age_seconds=61)

    kept = await store.read("1", "service", "users")
    assert kept is not None
    assert kept.fresh is False


async def test_a_later_answer_replaces_an_earlier_one_but_not_the_other_way_round(
    any_database: Database, key_ring: KeyRing
) -> None:
    await add_provider(ProviderStore(any_database, key_ring))
    store = CacheStore(any_database)

    await store.write("1", "s", "users", body=b"first", fresh_seconds=60, etag="1", age_seconds=9)
    second = await store.write("1", "s", "users", body=b"second", fresh_seconds=60, age_seconds=3)
    late = await store.write("1", "s", "users", body=b"late", fresh_seconds=60, age_seconds=6)

    assert second is not None
    assert (second.body, second.etag) == (b"second", None)
    assert late == second


async def test_an_answer_of_a_removed_provider_is_not_kept(any_database: Database) -> None:
    kept = await CacheStore(any_database).write("1", "s", "users", body=b"", fresh_seconds=60)

    assert kept is None
    assert await CacheStore(any_database).read("1", "s", "users") is None


async def test_answers_are_dropped_by_provider_or_by_subject(
    any_database: Database, key_ring: KeyRing
) -> None:
    store = CacheStore(any_database)
    for provider_id in ("1", "2"):
        await add_provider(ProviderStore(any_database, key_ring), provider_id)
        for subject, resource in itertools.product(("service", "ann"), ("users", "courses")):
            await store.write(provider_id, subject, resource, body=b"", fresh_seconds=60)

    assert await store.drop("1", subject="ann") == 2
    assert await store.read("1", "service", "users") is not None
    assert await store.drop("1") == 2
    assert await store.drop("1") == 0
    assert await store.read("2", "ann", "users") is not None


# Nonces.


async def test_a_nonce_is_good_once(any_database: Database) -> None:
    store = CallbackStore(any_database)

    nonce = (await store.issue("42", 60)).reveal()

    assert len(nonce) == 22
    assert await store.redeem(nonce, "42") is True
    assert await store.redeem(nonce, "42") is False


async def test_one_of_many_who_redeem_a_nonce_at_once_is_told_yes(any_database: Database) -> None:
    store = CallbackStore(any_database)
    nonce = (await store.issue("42", 60)).reveal()

    outcomes = await asyncio.gather(*(store.redeem(nonce, "42") for _ in range(20)))

    assert sorted(outcomes) == [False] * 19 + [True]


async def test_a_forged_nonce_is_no_good(any_database: Database) -> None:
    store = CallbackStore(any_database)
    nonce = (await store.issue("42", 60)).reveal()

    for forged in ("", "0" * 22, "☃", "\ud800", nonce[:-1], f"{nonce}="):
        assert await store.redeem(forged, "42") is False
    assert await store.redeem(nonce, "42") is True


async def test_a_nonce_of_another_provider_is_no_good_and_stays_good_for_its_own(
    any_database: Database,
) -> None:
    store = CallbackStore(any_database)
    nonce = (await store.issue("42", 60)).reveal()

    assert await store.redeem(nonce, "43") is False
    assert await store.redeem(nonce, "42") is True


async def test_a_late_nonce_is_no_good_and_is_removed_with_the_next(
    any_database: Database,
) -> None:
    store = CallbackStore(any_database)
    late = (await store.issue("42", -1)).reveal()

    assert await store.redeem(late, "42") is False
    assert await count_rows(any_database, callback) == 1
    await store.issue("43", 60)
    assert await count_rows(any_database, callback) == 1


async def test_nonces_themselves_are_not_kept(any_database: Database) -> None:
    nonce = (await CallbackStore(any_database).issue("42", 60)).reveal()

    async with any_database.read() as connection:
        rows = (await connection.execute(select(callback))).all()
    assert len(rows) == 1
    assert nonce not in repr(rows)


# API keys.


async def test_a_new_key_works_and_tells_what_it_may_do(any_database: Database) -> None:
    store = ApiKeyStore(any_database)

    key, token = await store.create("Portal", ["read:users", "provider:1"])
    verified = await store.verify(token.reveal())

    assert token.reveal().startswith(f"gw_{key.id}_")
    assert len(token.reveal()) == 3 + 8 + 1 + 43
    assert key == ApiKey(
        id=key.id,
        name="Portal",
        scopes=frozenset({"read:users", "provider:1"}),
        created_at=key.created_at,
        expires_at=None,
        last_used_at=None,
        revoked=False,
    )
    assert verified == key
    assert str(token) == "***"


async def test_tokens_themselves_are_not_kept(any_database: Database) -> None:
    _, token = await ApiKeyStore(any_database).create("Portal", ["admin"])

    async with any_database.read() as connection:
        rows = (await connection.execute(select(api_key))).all()
    assert len(rows) == 1
    assert token.reveal()[12:] not in repr(rows)


async def test_every_other_token_is_refused(any_database: Database) -> None:
    store = ApiKeyStore(any_database)
    key, token = await store.create("Portal", ["admin"])
    right = token.reveal()
    wrong = [
        "",
        "gw_",
        "☃",
        "\ud800",
        right[:-1],
        f"{right}\n",
        right.upper(),
        right[:-1] + ("A" if right[-1] != "A" else "B"),
        f"gw_00000000_{right[12:]}",
        f"gw_{key.id}_{'A' * 43}",
    ]

    assert [await store.verify(token) for token in wrong] == [None] * len(wrong)


async def test_an_expired_key_is_refused(any_database: Database) -> None:
    store = ApiKeyStore(any_database)
    now = datetime.now(UTC)

    _, past = await store.create("Past", ["admin"], now - timedelta(seconds=1))
    key, future = await store.create("Future", ["admin"], now + SOON)

    assert await store.verify(past.reveal()) is None
    assert await store.verify(future.reveal()) == key
    assert key.expires_at == now + SOON


async def test_a_revoked_key_is_refused_at_once_and_still_listed(any_database: Database) -> None:
    store = ApiKeyStore(any_database)
    key, token = await store.create("Portal", ["admin"])
    _, other = await store.create("Other", ["admin"])

    assert await store.revoke(key.id) is True
    assert await store.revoke(key.id) is False
    assert await store.revoke("unknown") is False

    assert await store.verify(token.reveal()) is None
    assert await store.verify(other.reveal()) is not None
    assert sorted((found.name, found.revoked) for found in await store.list_all()) == [
        ("Other", False),
        ("Portal", True),
    ]


async def test_a_rotated_key_works_beside_its_successor_until_a_time(
    any_database: Database,
) -> None:
    store = ApiKeyStore(any_database)
    now = datetime.now(UTC)
    key, token = await store.create("Portal", ["read:users"], now + 10 * SOON)

    rotated = await store.rotate(key.id, old_until=now + SOON)

    assert rotated is not None
    successor, new_token = rotated
    assert successor.id != key.id
    assert (successor.name, successor.scopes, successor.expires_at) == (
        "Portal",
        frozenset({"read:users"}),
        now + 10 * SOON,
    )
    assert (await store.verify(new_token.reveal())) == successor
    old = await store.verify(token.reveal())
    assert old is not None
    assert old.expires_at == now + SOON


async def test_rotating_never_prolongs_the_old_key(any_database: Database) -> None:
    store = ApiKeyStore(any_database)
    now = datetime.now(UTC)
    key, token = await store.create("Portal", ["admin"], now + SOON)
    ends_now, ended_token = await store.create("Portal", ["admin"])

    await store.rotate(key.id, old_until=now + 2 * SOON)
    await store.rotate(ends_now.id, old_until=now - SOON)

    old = await store.verify(token.reveal())
    assert old is not None
    assert old.expires_at == now + SOON
    assert await store.verify(ended_token.reveal()) is None


async def test_a_key_that_does_not_work_cannot_be_rotated(any_database: Database) -> None:
    store = ApiKeyStore(any_database)
    now = datetime.now(UTC)
    revoked, _ = await store.create("Revoked", ["admin"])
    await store.revoke(revoked.id)
    expired, _ = await store.create("Expired", ["admin"], now - SOON)

    outcomes = [
        await store.rotate(key_id, old_until=now + SOON)
        for key_id in (revoked.id, expired.id, "unknown")
    ]

    assert outcomes == [None, None, None]
    assert len(await store.list_all()) == 2


async def test_use_of_a_key_is_noted_at_most_once_a_minute(any_database: Database) -> None:
    store = ApiKeyStore(any_database)
    _, token = await store.create("Portal", ["admin"])

    await store.verify(token.reveal())
    first = (await store.list_all())[0].last_used_at
    await asyncio.sleep(0.01)
    await store.verify(token.reveal())
    second = (await store.list_all())[0].last_used_at
    async with any_database.transaction() as connection:
        await connection.execute(
            update(api_key).values(last_used_at=datetime.now(UTC) - timedelta(seconds=61))
        )
    await store.verify(token.reveal())
    third = (await store.list_all())[0].last_used_at

    assert first is not None
    assert third is not None
    assert second == first
    assert third > first


async def test_a_key_with_an_unknown_scope_is_not_made(any_database: Database) -> None:
    store = ApiKeyStore(any_database)

    with pytest.raises(ScopeInvalid, match=r"^There is no scope 'read:\*': there are admin, "):
        await store.create("Portal", ["read:users", "read:*"])

    assert list(await store.list_all()) == []


@pytest.mark.parametrize(
    "scopes",
    [[], [""], ["read"], ["Admin"], ["provider:"], ["provider:a b"], ["admin", "x"]],
)
def test_other_scopes_are_refused_with_those_there_are(scopes: list[str]) -> None:
    with pytest.raises(ScopeInvalid, match=r"there are admin, read:users, .* and provider:<id>$"):
        parse_scopes(scopes)


def test_every_scope_there_is_can_be_given() -> None:
    scopes = {
        "admin",
        "read:users",
        "read:courses",
        "read:enrollments",
        "read:providers",
        "read:metrics",
        "write:providers",
        "write:users",
        "write:enrollments",
        "act:users",
        "provider:A-1_z",
    }

    assert parse_scopes(sorted(scopes)) == scopes


async def count_rows(database: Database, table: Table) -> int:
    async with database.read() as connection:
        return (await connection.execute(select(func.count()).select_from(table))).scalar_one()
