"""What is promised of consents being asked for, on every database."""

import asyncio
import base64
import hashlib
import re

import pytest
from sqlalchemy import delete, func, select, update

from storage.authorizations import (
    AuthorizationRequest,
    AuthorizationStore,
    NewRequest,
    StateProblem,
    hash_of,
)
from storage.credentials import KeyRing, Secret
from storage.database import Database
from storage.errors import ConstraintViolated, CredentialsUnreadable
from storage.providers import ProviderStore
from storage.tables import authorization_request, database_now, provider

ASKED = AuthorizationRequest(provider_id="1", user_id="90071992547409931")
LIFETIME_SECONDS = 600


async def a_store(database: Database, key_ring: KeyRing) -> AuthorizationStore:
    await ProviderStore(database, key_ring).add(
        id="1",
        platform="canvas",
        name="Canvas",
        base_url="https://canvas.example",
        credentials=Secret({"api_key": "key"}),
    )
    return AuthorizationStore(database, key_ring)


async def issue(store: AuthorizationStore) -> NewRequest:
    return await store.issue(ASKED, lifetime_seconds=LIFETIME_SECONDS)


async def redeem(
    store: AuthorizationStore, made: NewRequest
) -> tuple[AuthorizationRequest, Secret[str]] | StateProblem:
    return await store.redeem(made.state.reveal(), made.browser.reveal())


async def age(database: Database, seconds: float) -> None:
    statement = update(authorization_request).values(
        expires_at=authorization_request.c.expires_at - seconds
    )
    async with database.transaction() as connection:
        await connection.execute(statement)


async def count(database: Database) -> int:
    statement = select(func.count()).select_from(authorization_request)
    async with database.read() as connection:
        return (await connection.execute(statement)).scalar_one()


async def test_a_state_gives_back_what_was_asked_once(
    any_database: Database, key_ring: KeyRing
) -> None:
    store = await a_store(any_database, key_ring)
    made = await issue(store)

    first = await redeem(store, made)
    second = await redeem(store, made)

    assert first == (ASKED, made.verifier)
    assert second is StateProblem.USED


async def test_anybodys_consent_can_be_asked_for(any_database: Database, key_ring: KeyRing) -> None:
    store = await a_store(any_database, key_ring)
    asked = AuthorizationRequest(provider_id="1", user_id=None)

    made = await store.issue(asked, lifetime_seconds=LIFETIME_SECONDS)

    assert await redeem(store, made) == (asked, made.verifier)


async def test_one_of_many_simultaneous_returns_gets_it(
    any_database: Database, key_ring: KeyRing
) -> None:
    store = await a_store(any_database, key_ring)
    made = await issue(store)

    results = await asyncio.gather(*(redeem(store, made) for _ in range(8)))

    assert sorted(str(result) for result in results if isinstance(result, StateProblem)) == (
        ["USED"] * 7
    )
    assert [result for result in results if not isinstance(result, StateProblem)] == [
        (ASKED, made.verifier)
    ]


async def test_another_browser_gets_nothing_and_uses_nothing_up(
    any_database: Database, key_ring: KeyRing
) -> None:
    store = await a_store(any_database, key_ring)
    made, other = await issue(store), await issue(store)

    strange = await store.redeem(made.state.reveal(), other.browser.reveal())
    without = await store.redeem(made.state.reveal(), "")

    assert (strange, without) == (StateProblem.OTHER_BROWSER, StateProblem.OTHER_BROWSER)
    assert await redeem(store, made) == (ASKED, made.verifier)


@pytest.mark.parametrize("state", ["", "made-up", "x" * 100_000, "nul \0", "\ud800"])
async def test_a_made_up_state_is_unknown(
    any_database: Database, key_ring: KeyRing, state: str
) -> None:
    store = await a_store(any_database, key_ring)
    made = await issue(store)

    assert await store.redeem(state, made.browser.reveal()) is StateProblem.UNKNOWN
    assert await store.redeem(made.state.reveal(), state) is StateProblem.OTHER_BROWSER
    assert await store.find(hash_of(made.state.reveal()), state) is None


async def test_a_state_is_unknown_once_its_time_is_over(
    any_database: Database, key_ring: KeyRing
) -> None:
    store = await a_store(any_database, key_ring)
    made = await issue(store)
    await age(any_database, LIFETIME_SECONDS)

    assert await redeem(store, made) is StateProblem.UNKNOWN
    assert await store.find(hash_of(made.state.reveal()), made.browser.reveal()) is None


async def test_what_is_too_old_is_removed_when_the_next_one_is_made(
    any_database: Database, key_ring: KeyRing
) -> None:
    store = await a_store(any_database, key_ring)
    await issue(store)
    await age(any_database, LIFETIME_SECONDS / 2)
    await issue(store)
    await age(any_database, LIFETIME_SECONDS / 2)

    await issue(store)

    assert await count(any_database) == 2


async def test_a_removed_provider_takes_what_was_asked_for_it_along(
    any_database: Database, key_ring: KeyRing
) -> None:
    store = await a_store(any_database, key_ring)
    made = await issue(store)

    async with any_database.transaction() as connection:
        await connection.execute(delete(provider))

    assert await redeem(store, made) is StateProblem.UNKNOWN
    assert await count(any_database) == 0


async def test_nothing_is_asked_for_a_provider_that_is_not_registered(
    any_database: Database, key_ring: KeyRing
) -> None:
    store = AuthorizationStore(any_database, key_ring)

    with pytest.raises(ConstraintViolated):
        await issue(store)

    assert await count(any_database) == 0


async def test_a_browser_finds_what_it_was_sent_away_for_also_after_its_return(
    any_database: Database, key_ring: KeyRing
) -> None:
    store = await a_store(any_database, key_ring)
    made, other = await issue(store), await issue(store)
    key = hash_of(made.state.reveal())

    before = await store.find(key, made.browser.reveal())
    await redeem(store, made)
    after = await store.find(key, made.browser.reveal())

    assert (before, after) == (ASKED, ASKED)
    assert await store.find(key, other.browser.reveal()) is None


async def test_secrets_are_long_different_and_not_legible_in_the_row(
    any_database: Database, key_ring: KeyRing
) -> None:
    store = await a_store(any_database, key_ring)
    made, other = await issue(store), await issue(store)

    async with any_database.read() as connection:
        rows = (await connection.execute(select(authorization_request))).all()

    texts = [each.reveal() for one in (made, other) for each in (one.state, one.browser)]
    texts += [made.verifier.reveal(), other.verifier.reveal()]
    kept = repr([tuple(row) for row in rows]).encode() + b"".join(row.verifier for row in rows)
    assert len(set(texts)) == 6
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{43}", text) for text in texts)
    assert not any(text.encode() in kept for text in texts)
    digest = hashlib.sha256(made.state.reveal().encode()).hexdigest()
    assert digest in {row.state_sha256 for row in rows}


async def test_a_verifier_moved_to_another_row_cannot_be_opened(
    any_database: Database, key_ring: KeyRing
) -> None:
    store = await a_store(any_database, key_ring)
    made, other = await issue(store), await issue(store)
    table = authorization_request
    others = select(table.c.verifier).where(table.c.state_sha256 == hash_of(other.state.reveal()))
    async with any_database.transaction() as connection:
        blob = (await connection.execute(others)).scalar_one()
        await connection.execute(update(table).values(verifier=blob))

    with pytest.raises(CredentialsUnreadable):
        await redeem(store, made)

    assert await redeem(store, other) == (ASKED, other.verifier)


async def test_a_verifier_needs_the_key_it_was_sealed_with(
    any_database: Database, key_ring: KeyRing
) -> None:
    made = await issue(await a_store(any_database, key_ring))
    newer = KeyRing.parse(f"k2:{base64.b64encode(bytes(32)).decode()}")

    with pytest.raises(CredentialsUnreadable):
        await redeem(AuthorizationStore(any_database, newer), made)


async def test_times_are_by_the_databases_clock(any_database: Database, key_ring: KeyRing) -> None:
    store = await a_store(any_database, key_ring)
    await issue(store)
    left = select(authorization_request.c.expires_at - database_now())

    async with any_database.read() as connection:
        seconds = (await connection.execute(left)).scalar_one()

    assert LIFETIME_SECONDS - 60 < seconds <= LIFETIME_SECONDS
