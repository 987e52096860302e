"""Sessions against a real server: how many logins anything costs, and what callers see."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from pretend_platform import (
    PASSWORD,
    PRETEND,
    QUICK,
    Notes,
    PretendServer,
    PretendSession,
    grant_of,
    open_gateway,
    read,
    register,
    until,
)
from sqlalchemy import event
from structlog.testing import capture_logs

from sessions.authorization import SessionSettings
from sessions.base import Grant, NewGrant, TokenRotation
from sessions.errors import (
    NotSupported,
    ProviderAuthFailed,
    ProviderBadResponse,
    ProviderForbidden,
    ProviderNotFound,
    ProviderRateLimited,
    ProviderTimeout,
    ProviderUnavailable,
    ReauthRequired,
    SessionLost,
    UpstreamCallsSpent,
)
from sessions.exports import TimedExports
from sessions.http import HttpLimits, deadline, seconds_to_deadline
from sessions.manager import SessionManager
from sessions.metering import Meter, metering
from sessions.resilience import BreakerState, ResilienceTerms
from storage.cache import CacheEntry, CacheStore
from storage.credentials import KeyRing, Secret
from storage.database import Database
from storage.errors import StorageUnavailable
from storage.leases import (
    Claim,
    LeaseStore,
    LoginAllowance,
    Problem,
    StoredSession,
    Transition,
)
from storage.providers import ProviderStore
from storage.records import ProviderState, SessionState

NEVER_SLOWER_THAN = 5
HEARTBEATS = replace(QUICK, heartbeat_seconds=0.1)
EXPORTING = replace(PRETEND, export_seconds={"activity": 3600})


@pytest.fixture
async def server() -> AsyncIterator[PretendServer]:
    async with PretendServer().listening() as server:
        yield server


@pytest.fixture
async def providers(
    sqlite_database: Database, key_ring: KeyRing, server: PretendServer
) -> ProviderStore:
    providers = ProviderStore(sqlite_database, key_ring)
    await register(providers, server)
    return providers


@pytest.fixture
async def manager(
    sqlite_database: Database, key_ring: KeyRing, providers: ProviderStore
) -> AsyncIterator[SessionManager]:
    """Its provider registered, its scheduler not running."""
    async with open_gateway(sqlite_database, key_ring) as manager:
        yield manager


# Logins.


async def test_two_hundred_callers_of_a_cold_gateway_cost_one_login(
    manager: SessionManager, server: PretendServer
) -> None:
    await asyncio.gather(*(read(manager) for _ in range(200)))

    assert (server.logins, server.reads) == (1, 200)


async def test_a_thousand_callers_who_lose_the_session_cost_one_login(
    manager: SessionManager, server: PretendServer
) -> None:
    await read(manager)
    server.end_all_sessions()

    await asyncio.gather(*(read(manager) for _ in range(1000)))

    assert (server.logins, server.reads, server.most_logins_at_once) == (2, 1001, 1)


async def test_callers_of_several_gateways_cost_one_login(
    sqlite_database: Database, key_ring: KeyRing, providers: ProviderStore, server: PretendServer
) -> None:
    async with (
        open_gateway(sqlite_database, key_ring) as one,
        open_gateway(sqlite_database, key_ring) as two,
        open_gateway(sqlite_database, key_ring) as three,
    ):
        await asyncio.gather(*(read(gateway) for gateway in (one, two, three) for _ in range(30)))
        server.end_all_sessions()
        await asyncio.gather(*(read(gateway) for gateway in (one, two, three) for _ in range(30)))

    assert (server.logins, server.most_logins_at_once) == (2, 1)


async def test_using_a_session_asks_the_database_nothing(
    manager: SessionManager, sqlite_database: Database, server: PretendServer
) -> None:
    await read(manager)
    statements: list[str] = []

    def note(*arguments: Any) -> None:
        statements.append(str(arguments[2]))

    for engine in (sqlite_database._readers, sqlite_database._writers):
        event.listen(engine.sync_engine, "before_cursor_execute", note)
    for _ in range(100):
        await read(manager)

    assert statements == []
    assert server.reads == 101


async def test_a_restarted_gateway_uses_the_stored_session(
    sqlite_database: Database, key_ring: KeyRing, providers: ProviderStore, server: PretendServer
) -> None:
    async with open_gateway(sqlite_database, key_ring) as before:
        await read(before)

    async with open_gateway(sqlite_database, key_ring) as after:
        await read(after)

    assert (server.logins, server.reads, server.log_outs) == (1, 2, 0)


async def test_a_caller_that_gives_up_does_not_stop_the_login(
    manager: SessionManager, server: PretendServer
) -> None:
    server.login_seconds = 0.3
    impatient = asyncio.create_task(read(manager))
    patient = asyncio.create_task(read(manager))
    await until(lambda: server.logins_in_flight == 1)

    impatient.cancel()

    await patient
    assert impatient.cancelled()
    assert server.logins == 1


async def test_a_login_goes_on_when_its_only_caller_has_given_up(
    manager: SessionManager, server: PretendServer
) -> None:
    server.login_seconds = 0.2
    caller = asyncio.create_task(read(manager))
    await until(lambda: server.logins_in_flight == 1)
    caller.cancel()
    await asyncio.wait({caller})

    await read(manager)

    assert server.logins == 1


async def test_the_first_callers_deadline_does_not_shorten_the_login_of_all(
    manager: SessionManager, server: PretendServer
) -> None:
    server.login_seconds = 0.3

    async def hurried() -> None:
        with deadline(0.1):
            await read(manager)

    first = asyncio.create_task(hurried())
    await until(lambda: server.logins_in_flight == 1)
    await read(manager)

    with pytest.raises(ProviderTimeout):
        await first
    assert server.logins == 1


async def test_an_expired_grant_is_not_used(
    sqlite_database: Database, key_ring: KeyRing, providers: ProviderStore, server: PretendServer
) -> None:
    class ShortSession(PretendSession):
        async def log_in(self, credentials: Secret[Mapping[str, str]]) -> NewGrant:
            return replace(await super().log_in(credentials), lifetime_seconds=0.2)

    async with open_gateway(
        sqlite_database, key_ring, platform=replace(PRETEND, session=ShortSession)
    ) as manager:
        await read(manager)
        await asyncio.sleep(0.3)
        await read(manager)

    assert server.logins == 2


# Refused credentials.


async def test_a_wrong_password_costs_one_login_however_many_ask(
    sqlite_database: Database, key_ring: KeyRing, server: PretendServer
) -> None:
    await register(ProviderStore(sqlite_database, key_ring), server, password="wr0ng-pass")

    async with (
        open_gateway(sqlite_database, key_ring, scheduled=True) as one,
        open_gateway(sqlite_database, key_ring) as two,
    ):
        for _ in range(3):
            answers = await asyncio.gather(
                *(read(gateway) for gateway in (one, two) for _ in range(50)),
                return_exceptions=True,
            )
            assert {type(answer) for answer in answers} == {ReauthRequired}
        status = await one.status("1")
    async with open_gateway(sqlite_database, key_ring) as restarted:
        with pytest.raises(ReauthRequired, match="The password is wrong"):
            await read(restarted)

    assert (server.refused_logins, server.logins) == (1, 0)
    assert (status.state, status.problem) == (
        SessionState.REAUTH_REQUIRED,
        "The password is wrong",
    )


async def test_a_new_password_cures_at_once(
    manager: SessionManager, providers: ProviderStore, server: PretendServer
) -> None:
    await read(manager)
    server.password = "n3w-pass"
    server.end_all_sessions()
    with pytest.raises(ReauthRequired):
        await read(manager)

    await providers.update("1", credentials=Secret({"password": "n3w-pass"}))
    await manager.forget("1")
    await read(manager)

    assert (server.logins, server.refused_logins) == (2, 1)
    assert (await manager.status("1")).state is SessionState.ACTIVE


async def test_a_password_changed_without_a_word_is_tried_all_the_same(
    sqlite_database: Database, key_ring: KeyRing, server: PretendServer
) -> None:
    providers = ProviderStore(sqlite_database, key_ring)
    await register(providers, server, password="wr0ng-pass")
    async with open_gateway(sqlite_database, key_ring, scheduled=True) as manager:
        with pytest.raises(ReauthRequired):
            await read(manager)

        await providers.update("1", credentials=Secret({"password": PASSWORD}))
        await asyncio.sleep(0.4)

        await read(manager)

    assert (server.refused_logins, server.logins) == (1, 1)


async def test_a_grant_never_goes_to_another_address(
    sqlite_database: Database, key_ring: KeyRing, providers: ProviderStore, server: PretendServer
) -> None:
    async with open_gateway(sqlite_database, key_ring) as manager:
        await read(manager)
    async with PretendServer().listening() as elsewhere:
        elsewhere.valid_tokens.add("tok3n-1")
        await providers.update("1", base_url=elsewhere.url)

        async with open_gateway(sqlite_database, key_ring) as restarted:
            await read(restarted)

        assert (elsewhere.logins, elsewhere.reads) == (1, 1)


# Whose account calls go on.


async def test_a_login_is_on_no_callers_account_and_no_callers_budget_ends_it(
    manager: SessionManager, server: PretendServer
) -> None:
    with metering(Meter(max_calls=1)) as meter:
        await read(manager)

    assert (server.logins, server.reads, meter.calls) == (1, 1, 1)


async def test_a_caller_with_nothing_left_still_lets_the_others_in(
    manager: SessionManager, server: PretendServer
) -> None:
    async def poor() -> None:
        with metering(Meter(max_calls=0)):
            await read(manager)

    outcome, _ = await asyncio.gather(poor(), read(manager), return_exceptions=True)

    assert isinstance(outcome, UpstreamCallsSpent)
    assert (server.logins, server.reads) == (1, 1)


async def test_a_spent_budget_is_no_outage_of_the_provider(
    manager: SessionManager, server: PretendServer
) -> None:
    with capture_logs() as logs:
        for _ in range(20):
            with metering(Meter(max_calls=0)), pytest.raises(UpstreamCallsSpent):
                await read(manager)

        await read(manager)

    assert logs == []


async def test_a_session_is_ended_at_the_provider_whatever_is_left_of_the_budget(
    manager: SessionManager, server: PretendServer
) -> None:
    await read(manager)

    with metering(Meter(max_calls=0)) as meter:
        await manager.revoke("1")

    assert (server.log_outs, meter.calls) == (1, 0)


async def test_heartbeats_and_exports_are_on_nobodys_account(
    sqlite_database: Database, key_ring: KeyRing, providers: ProviderStore, server: PretendServer
) -> None:
    with metering(Meter(max_calls=1)) as meter:
        async with open_gateway(
            sqlite_database, key_ring, settings=HEARTBEATS, platform=EXPORTING
        ) as manager:
            async with manager.session("1") as session:
                assert isinstance(session, PretendSession)
                found = await session.read_export("activity")
            running = asyncio.create_task(manager.run())
            await until(lambda: server.heartbeats >= 2)
        await running

    assert found == b"export 1"
    assert (server.exports, meter.calls) == (1, 0)


# Outages.


async def test_during_an_outage_callers_get_the_error_at_once(
    sqlite_database: Database, key_ring: KeyRing, providers: ProviderStore, server: PretendServer
) -> None:
    server.failing = {"/login": (503, {})}
    slow = replace(QUICK, backoff_seconds=100, longest_backoff_seconds=100)
    async with open_gateway(sqlite_database, key_ring, settings=slow) as manager:
        with pytest.raises(ProviderUnavailable):
            await read(manager)
        server.failing = {}

        answers = await asyncio.gather(*(read(manager) for _ in range(100)), return_exceptions=True)
        status = await manager.status("1")

    assert {type(answer) for answer in answers} == {ProviderUnavailable}
    assert server.logins == 0
    assert (status.state, status.problem_code, status.login_count) == (
        SessionState.BACKOFF,
        "PROVIDER_UNAVAILABLE",
        0,
    )


async def test_after_an_outage_the_session_comes_back_by_itself(
    sqlite_database: Database, key_ring: KeyRing, providers: ProviderStore, server: PretendServer
) -> None:
    server.failing = {"/login": (503, {})}
    with capture_logs() as logs:
        async with open_gateway(sqlite_database, key_ring, scheduled=True) as manager:
            with pytest.raises(ProviderUnavailable):
                await read(manager)
            await asyncio.sleep(0.5)
            server.failing = {}
            await until(lambda: server.logins == 1)
            await asyncio.sleep(0.05)

            await read(manager)

    assert server.logins == 1
    events = [line["event"] for line in logs if line["event"].startswith("provider_outage")]
    assert events == ["provider_outage_started", "provider_outage_ended"]


async def test_a_providers_wish_to_be_left_alone_is_obeyed(
    manager: SessionManager, server: PretendServer
) -> None:
    server.failing = {"/login": (429, {"retry-after": "70"})}
    with pytest.raises(ProviderRateLimited):
        await read(manager)
    server.failing = {}

    with pytest.raises(ProviderRateLimited) as caught:
        await read(manager)

    assert caught.value.retry_after_seconds in {69, 70}
    assert server.logins == 0


async def test_a_login_that_never_ends_is_given_up(
    manager: SessionManager, server: PretendServer
) -> None:
    server.login_seconds = 30

    with pytest.raises(ProviderTimeout, match="did not finish within 1 seconds"):
        await read(manager)


async def test_a_session_that_is_lost_again_and_again_costs_five_logins(
    manager: SessionManager, server: PretendServer
) -> None:
    for _ in range(5):
        await read(manager)
        server.end_all_sessions()

    answers = await asyncio.gather(*(read(manager) for _ in range(20)), return_exceptions=True)

    assert server.logins == 5
    errors = [answer for answer in answers if isinstance(answer, ProviderRateLimited)]
    assert len(errors) == 20
    assert {error.retry_after_seconds for error in errors} <= set(range(590, 601))
    status = await manager.status("1")
    assert (status.state, status.login_count) == (SessionState.BACKOFF, 5)


async def test_outages_of_callers_are_logged_once_at_start_and_end(
    manager: SessionManager, server: PretendServer
) -> None:
    await read(manager)
    with capture_logs() as logs:
        server.failing = {"/users": (503, {})}
        await asyncio.gather(*(read(manager) for _ in range(10)), return_exceptions=True)
        server.failing = {}
        await asyncio.sleep(0.31)  # until one call may find out that it is back
        await read(manager)
        await asyncio.gather(*(read(manager) for _ in range(10)))

    assert [line["event"] for line in logs] == [
        "provider_outage_started",
        "provider_outage_ended",
    ]


async def test_health_is_none_before_the_first_use_and_afresh_after_a_change(
    manager: SessionManager, server: PretendServer
) -> None:
    unused = manager.health("1"), manager.list_health()
    await read(manager)
    server.failing = {"/users": (500, {})}
    for _ in range(5):
        with pytest.raises(ProviderUnavailable):
            await read(manager)
    failed = manager.health("1")
    server.failing = {}

    await manager.forget("1")
    forgotten = manager.health("1")
    await read(manager)

    assert unused == (None, {})
    assert failed is not None
    assert (failed.state, failed.last_error_code) == (BreakerState.OPEN, "PROVIDER_UNAVAILABLE")
    assert forgotten is None
    afresh = manager.health("1")
    assert afresh is not None
    assert (afresh.state, afresh.consecutive_failures) == (BreakerState.CLOSED, 0)
    assert list(manager.list_health()) == ["1"]


async def test_a_check_is_made_though_the_provider_is_taken_for_failed(
    sqlite_database: Database, key_ring: KeyRing, providers: ProviderStore, server: PretendServer
) -> None:
    provider = await providers.get("1")
    assert provider is not None
    async with open_gateway(sqlite_database, key_ring, limits=HttpLimits()) as manager:
        await read(manager)
        server.failing = {"/users": (500, {})}
        for _ in range(5):
            with pytest.raises(ProviderUnavailable):
                await read(manager)
        found, grant = await manager.check(provider, Secret({"password": PASSWORD}))
        await manager.discard(provider, grant)
        server.failing = {}
        with pytest.raises(ProviderUnavailable, match="The provider failed before"):
            await read(manager)

    assert found.version == "1.0"
    assert (server.logins, server.log_outs) == (2, 1)


async def test_a_heartbeat_finds_out_that_a_provider_is_back_when_nobody_calls(
    sqlite_database: Database, key_ring: KeyRing, providers: ProviderStore, server: PretendServer
) -> None:
    notes = Notes()
    async with open_gateway(
        sqlite_database, key_ring, settings=HEARTBEATS, scheduled=True, observer=notes
    ) as manager:
        await read(manager)
        server.failing = {"/users": (500, {}), "/alive": (500, {})}
        while len(notes.breakers) == 0:
            with pytest.raises(ProviderUnavailable):
                await read(manager)
        server.failing = {}
        await until(lambda: notes.breakers[-1] == "CLOSED")

    assert notes.breakers[0] == "OPEN"
    assert notes.breakers[-2:] == ["HALF_OPEN", "CLOSED"]
    assert server.logins == 1


async def test_logins_that_fail_in_ways_no_call_shows_open_the_breaker(
    sqlite_database: Database, key_ring: KeyRing, providers: ProviderStore, server: PretendServer
) -> None:
    server.login_seconds = 30
    notes = Notes()
    hasty = replace(QUICK, transition_seconds=0.1, backoff_seconds=0.01)
    async with open_gateway(
        sqlite_database, key_ring, settings=hasty, observer=notes, limits=HttpLimits()
    ) as manager:
        for _ in range(5):
            with pytest.raises(ProviderTimeout, match="did not finish"):
                await read(manager)
            await asyncio.sleep(0.35)  # until the pause between logins is over
        health = manager.health("1")

    assert health is not None
    assert (health.state, health.consecutive_failures) == (BreakerState.OPEN, 5)
    assert notes.breakers == ["OPEN"]


async def test_a_login_goes_before_all_callers_who_wait(
    sqlite_database: Database, key_ring: KeyRing, providers: ProviderStore, server: PretendServer
) -> None:
    platform = replace(PRETEND, concurrency=1)
    limits = HttpLimits(resilience=ResilienceTerms(waiting_per_call=100))
    async with open_gateway(sqlite_database, key_ring, platform=platform, limits=limits) as manager:
        await read(manager)
        server.end_all_sessions()

        await asyncio.gather(*(read(manager) for _ in range(101)))

    assert (server.logins, server.reads) == (2, 102)


# Heartbeats.


async def test_heartbeats_keep_the_same_grant_alive(
    sqlite_database: Database, key_ring: KeyRing, providers: ProviderStore, server: PretendServer
) -> None:
    notes = Notes()
    async with open_gateway(
        sqlite_database, key_ring, settings=HEARTBEATS, scheduled=True, observer=notes
    ) as manager:
        await read(manager)
        await until(lambda: server.heartbeats >= 5)
        status = await manager.status("1")

    assert server.logins == 1
    assert status.version == 1
    assert notes.transitions[0] == ("log_in", "committed")
    assert set(notes.transitions[1:]) == {("keep_alive", "prolonged")}
    assert max(notes.late_seconds) < 1


async def test_heartbeats_of_several_gateways_are_one(
    sqlite_database: Database, key_ring: KeyRing, providers: ProviderStore, server: PretendServer
) -> None:
    settings = replace(QUICK, heartbeat_seconds=0.5)
    async with (
        open_gateway(sqlite_database, key_ring, settings=settings, scheduled=True) as one,
        open_gateway(sqlite_database, key_ring, settings=settings, scheduled=True),
        open_gateway(sqlite_database, key_ring, settings=settings, scheduled=True),
    ):
        await read(one)
        await asyncio.sleep(1.7)

    assert 2 <= server.heartbeats <= 4


async def test_a_grant_is_used_while_its_heartbeat_runs(
    sqlite_database: Database, key_ring: KeyRing, providers: ProviderStore, server: PretendServer
) -> None:
    server.heartbeat_seconds = 0.6
    async with open_gateway(
        sqlite_database, key_ring, settings=HEARTBEATS, scheduled=True
    ) as manager:
        await read(manager)
        await asyncio.sleep(0.3)
        reading = asyncio.get_running_loop().time()
        await read(manager)
        seconds = asyncio.get_running_loop().time() - reading
        status = await manager.status("1")

    assert status.state is SessionState.REFRESHING
    assert seconds < 0.25
    assert server.logins == 1


async def test_a_heartbeat_that_fails_for_a_while_costs_no_login(
    sqlite_database: Database, key_ring: KeyRing, providers: ProviderStore, server: PretendServer
) -> None:
    async with open_gateway(
        sqlite_database, key_ring, settings=HEARTBEATS, scheduled=True
    ) as manager:
        await read(manager)
        server.failing = {"/alive": (503, {})}
        async with asyncio.timeout(5):
            while (during := await manager.status("1")).problem_code is None:  # noqa: ASYNC110 - the database has no event
                await asyncio.sleep(0.01)
        await read(manager)
        server.failing = {}
        before = server.heartbeats
        await until(lambda: server.heartbeats > before)
        await asyncio.sleep(0.2)
        after = await manager.status("1")

    assert server.logins == 1
    assert during.problem_code == "PROVIDER_UNAVAILABLE"
    assert during.state in {SessionState.ACTIVE, SessionState.REFRESHING}
    assert after.problem_code is None


async def test_a_heartbeat_that_finds_the_session_lost_replaces_it_before_anybody_notices(
    sqlite_database: Database, key_ring: KeyRing, providers: ProviderStore, server: PretendServer
) -> None:
    async with open_gateway(
        sqlite_database, key_ring, settings=HEARTBEATS, scheduled=True
    ) as manager:
        await read(manager)
        server.end_all_sessions()
        await until(lambda: server.logins == 2)
        await asyncio.sleep(0.1)

        assert (await grant_of(manager)).version == 2

    assert server.logins == 2


async def test_a_refresh_that_is_refused_asks_for_a_person(
    sqlite_database: Database, key_ring: KeyRing, providers: ProviderStore, server: PretendServer
) -> None:
    class RefusedSession(PretendSession):
        async def keep_alive(self, grant: Grant) -> NewGrant:
            raise ReauthRequired("The consent was withdrawn", provider_id="1")

    async with open_gateway(
        sqlite_database,
        key_ring,
        settings=HEARTBEATS,
        scheduled=True,
        platform=replace(PRETEND, session=RefusedSession),
    ) as manager:
        await read(manager)
        await asyncio.sleep(0.4)

        with pytest.raises(ReauthRequired, match="The consent was withdrawn"):
            await read(manager)

    assert server.logins == 1


async def test_a_refresh_with_a_new_token_is_stored_and_shared(
    sqlite_database: Database, key_ring: KeyRing, providers: ProviderStore, server: PretendServer
) -> None:
    class RotatingSession(PretendSession):
        async def keep_alive(self, grant: Grant) -> NewGrant:
            token = f"{grant.secret.reveal()['token']}+"
            server.valid_tokens = {token}
            return NewGrant(secret=Secret({"token": token}), lifetime_seconds=1200)

    platform = replace(PRETEND, session=RotatingSession, rotation=TokenRotation.ON_REFRESH)
    settings = replace(QUICK, heartbeat_seconds=0.5)
    async with open_gateway(
        sqlite_database, key_ring, settings=settings, scheduled=True, platform=platform
    ) as manager:
        await read(manager)
        await asyncio.sleep(0.8)
        await read(manager)
        grant = await grant_of(manager)

    assert grant.version == 2
    assert grant.secret == Secret({"token": "tok3n-1+"})
    assert server.logins == 1


# Holders that were paused, and gateways that crash.


def pausing(*, after_claim: float = 0, before_commit: float = 0) -> type[LeaseStore]:
    """A lease store whose gateway stands still at a dangerous point."""

    class PausedLeases(LeaseStore):
        async def claim_session(
            self,
            seen: StoredSession,
            transition: Transition,
            *,
            lease_seconds: float,
            allowance: LoginAllowance | None = None,
        ) -> Claim | None:
            claim = await super().claim_session(
                seen, transition, lease_seconds=lease_seconds, allowance=allowance
            )
            if claim is not None:
                await asyncio.sleep(after_claim)
            return claim

        async def commit_session(
            self,
            claim: Claim,
            grant: Secret[Mapping[str, str]],
            *,
            terms: str,
            lifetime_seconds: float | None,
            next_seconds: float | None,
            require_fence: bool = True,
        ) -> StoredSession | None:
            await asyncio.sleep(before_commit)
            return await super().commit_session(
                claim,
                grant,
                terms=terms,
                lifetime_seconds=lifetime_seconds,
                next_seconds=next_seconds,
                require_fence=require_fence,
            )

    return PausedLeases


async def test_a_holder_that_wakes_up_late_sends_nothing(
    sqlite_database: Database, key_ring: KeyRing, providers: ProviderStore, server: PretendServer
) -> None:
    notes = Notes()
    async with (
        open_gateway(
            sqlite_database, key_ring, leases=pausing(after_claim=1.8), observer=notes
        ) as paused,
        open_gateway(sqlite_database, key_ring) as other,
    ):
        first = asyncio.create_task(read(paused))
        await asyncio.sleep(0.2)
        await asyncio.gather(first, read(other))

    assert (server.logins, server.most_logins_at_once, server.log_outs) == (1, 1, 0)
    assert notes.transitions == [("log_in", "late")]


async def test_a_holder_overtaken_before_its_commit_ends_what_it_obtained(
    sqlite_database: Database, key_ring: KeyRing, providers: ProviderStore, server: PretendServer
) -> None:
    notes = Notes()
    async with (
        open_gateway(
            sqlite_database, key_ring, leases=pausing(before_commit=2), observer=notes
        ) as paused,
        open_gateway(sqlite_database, key_ring) as other,
    ):
        first = asyncio.create_task(read(paused))
        await until(lambda: server.logins == 1)
        await asyncio.gather(first, read(other))
        grants = [await grant_of(paused), await grant_of(other)]

    assert (server.logins, server.most_logins_at_once) == (2, 1)
    assert server.valid_tokens == {"tok3n-2"}
    assert {grant.secret.reveal()["token"] for grant in grants} == {"tok3n-2"}
    assert notes.transitions == [("log_in", "fenced")]


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

    def transaction(self) -> "_CrashingLoan":
        return _CrashingLoan(self, self._database.transaction())

    def read(self) -> "_CrashingLoan":
        return _CrashingLoan(self, self._database.read())


class _CrashingLoan:
    def __init__(self, database: CrashingDatabase, loan: Any) -> None:
        self._database = database
        self._loan = loan

    async def __aenter__(self) -> Any:
        self._database.reach()
        return await self._loan.__aenter__()

    async def __aexit__(self, *error: object) -> Any:
        result = await self._loan.__aexit__(*error)
        self._database.reach()
        return result


async def test_wherever_a_gateway_crashes_while_logging_in_another_recovers(
    sqlite_database: Database, key_ring: KeyRing, providers: ProviderStore, server: PretendServer
) -> None:
    settings = replace(QUICK, lease_seconds=0.5, transition_seconds=0.3)
    logins_by_point: dict[int, int] = {}
    crashed = True
    while crashed:
        point = len(logins_by_point) + 1
        await providers.add(
            id=str(point),
            platform="pretend",
            name="Pretend",
            base_url=server.url,
            credentials=Secret({"password": PASSWORD}),
            state=ProviderState.ACTIVE,
        )
        before = server.logins
        crashed = await _crashes_reading(
            sqlite_database, key_ring, provider_id=str(point), crash_at=point, settings=settings
        )
        async with open_gateway(sqlite_database, key_ring, settings=settings) as other:
            async with asyncio.timeout(NEVER_SLOWER_THAN):
                await read(other, str(point))
            grant = await grant_of(other, str(point))
        logins_by_point[point] = server.logins - before
        assert grant.secret.reveal()["token"] in server.valid_tokens

    assert server.most_logins_at_once == 1
    assert len(logins_by_point) > 10
    # Two only where the first was made and could not be stored.
    assert sorted(set(logins_by_point.values())) == [1, 2]
    assert list(logins_by_point.values()).count(2) <= 2


async def _crashes_reading(
    database: Database,
    key_ring: KeyRing,
    *,
    provider_id: str,
    crash_at: int,
    settings: SessionSettings,
) -> bool:
    crashing = CrashingDatabase(database, crash_at=crash_at)

    class CrashingSession(PretendSession):
        async def log_in(self, credentials: Secret[Mapping[str, str]]) -> NewGrant:
            crashing.reach()
            grant = await super().log_in(credentials)
            crashing.reach()
            return grant

    shared: Any = crashing
    crashed = False
    try:
        async with open_gateway(
            shared,
            key_ring,
            platform=replace(PRETEND, session=CrashingSession),
            settings=settings,
        ) as manager:
            try:
                await read(manager, provider_id)
            except Crash:
                crashed = True
    except Crash:  # a dead process gives no leases back
        pass
    return crashed


# Timed exports.


async def exported(manager: SessionManager) -> bytes | None:
    async with manager.session("1") as session:
        assert isinstance(session, PretendSession)
        return await session.read_export("activity")


async def test_the_first_reader_of_an_export_waits_for_it_and_all_share_it(
    sqlite_database: Database, key_ring: KeyRing, providers: ProviderStore, server: PretendServer
) -> None:
    server.export_seconds = 0.2
    async with open_gateway(sqlite_database, key_ring, platform=EXPORTING) as manager:
        bodies = await asyncio.gather(*(exported(manager) for _ in range(50)))

    assert set(bodies) == {b"export 1"}
    assert (server.exports, server.logins) == (1, 1)


async def test_an_export_is_run_by_one_gateway_and_read_by_all_also_after_a_restart(
    sqlite_database: Database, key_ring: KeyRing, providers: ProviderStore, server: PretendServer
) -> None:
    server.export_seconds = 0.2
    async with (
        open_gateway(sqlite_database, key_ring, platform=EXPORTING, scheduled=True) as one,
        open_gateway(sqlite_database, key_ring, platform=EXPORTING, scheduled=True) as two,
    ):
        bodies = await asyncio.gather(
            *(exported(gateway) for gateway in (one, two) for _ in range(10))
        )
    async with open_gateway(sqlite_database, key_ring, platform=EXPORTING) as restarted:
        bodies.append(await exported(restarted))

    assert set(bodies) == {b"export 1"}
    assert server.exports == 1


async def test_an_export_is_run_again_by_itself(
    sqlite_database: Database, key_ring: KeyRing, providers: ProviderStore, server: PretendServer
) -> None:
    platform = replace(PRETEND, export_seconds={"activity": 0.3})
    async with open_gateway(
        sqlite_database, key_ring, platform=platform, scheduled=True
    ) as manager:
        first = await exported(manager)
        await until(lambda: server.exports >= 3)
        later = await exported(manager)

    assert first == b"export 1"
    assert later != first


async def test_reading_a_fresh_export_again_gives_the_same_object(
    sqlite_database: Database, key_ring: KeyRing, providers: ProviderStore, server: PretendServer
) -> None:
    async with open_gateway(sqlite_database, key_ring, platform=EXPORTING) as manager:
        first = await exported(manager)
        second = await exported(manager)

    assert first is second


async def test_a_refused_export_is_not_tried_again_before_its_time(
    sqlite_database: Database, key_ring: KeyRing, providers: ProviderStore, server: PretendServer
) -> None:
    server.failing = {"/export": (403, {})}
    with capture_logs() as logs:
        async with open_gateway(
            sqlite_database, key_ring, platform=EXPORTING, scheduled=True
        ) as manager:
            first = await exported(manager)
            server.failing = {}
            second = await exported(manager)
        async with open_gateway(sqlite_database, key_ring, platform=EXPORTING) as restarted:
            third = await exported(restarted)

    assert (first, second, third) == (None, None, None)
    assert server.exports == 0
    assert [line["event"] for line in logs] == ["export_refused"]


async def test_a_failed_export_is_tried_again_soon_and_the_old_result_stays(
    sqlite_database: Database, key_ring: KeyRing, providers: ProviderStore, server: PretendServer
) -> None:
    platform = replace(PRETEND, export_seconds={"activity": 0.2})
    async with open_gateway(
        sqlite_database, key_ring, platform=platform, scheduled=True
    ) as manager:
        await exported(manager)
        server.failing = {"/export": (503, {})}
        before = server.exports
        await asyncio.sleep(0.5)
        during = await exported(manager)
        server.failing = {}
        await until(lambda: server.exports > before)

    assert during is not None


async def test_nobody_waits_for_a_slow_first_export_beyond_their_patience(
    sqlite_database: Database, key_ring: KeyRing, providers: ProviderStore, server: PretendServer
) -> None:
    server.export_seconds = 0.5
    settings = replace(QUICK, export_patience_seconds=0.1)
    async with open_gateway(
        sqlite_database, key_ring, platform=EXPORTING, settings=settings
    ) as manager:
        first = await exported(manager)
        async with asyncio.timeout(20):
            while (later := await exported(manager)) is None:
                pass

    assert first is None
    assert later == b"export 1"
    assert server.exports == 1


async def test_nobody_waits_for_a_slow_first_export_to_the_end_of_their_deadline(
    sqlite_database: Database, key_ring: KeyRing, providers: ProviderStore, server: PretendServer
) -> None:
    server.export_seconds = 20
    settings = replace(QUICK, export_patience_seconds=60, export_limit_seconds=60)
    async with open_gateway(
        sqlite_database, key_ring, platform=EXPORTING, settings=settings
    ) as manager:
        await read(manager)
        with deadline(2):
            first = await exported(manager)
            left = seconds_to_deadline()

    assert first is None
    assert left is not None
    assert left > 0


async def test_nobody_waits_for_a_login_beyond_their_deadline_and_it_goes_on_for_others(
    manager: SessionManager, server: PretendServer
) -> None:
    server.login_seconds = 0.5

    with deadline(0.1), pytest.raises(ProviderTimeout, match="did not grant a session in time"):
        await read(manager)
    await read(manager)

    assert (server.logins, server.reads) == (1, 1)


async def test_an_export_longer_than_its_lease_is_not_taken_over(
    sqlite_database: Database, key_ring: KeyRing, providers: ProviderStore, server: PretendServer
) -> None:
    server.export_seconds = 4
    settings = replace(QUICK, export_lease_seconds=2, export_patience_seconds=20)
    gateway = partial(open_gateway, platform=EXPORTING, settings=settings, scheduled=True)
    async with (
        gateway(sqlite_database, key_ring) as one,
        gateway(sqlite_database, key_ring) as two,
    ):
        bodies = await asyncio.gather(exported(one), exported(two))

    assert set(bodies) == {b"export 1"}
    assert server.exports == 1


async def test_an_export_that_never_ends_is_given_up(
    sqlite_database: Database, key_ring: KeyRing, providers: ProviderStore, server: PretendServer
) -> None:
    server.export_seconds = 30
    settings = replace(QUICK, export_limit_seconds=0.3)
    async with open_gateway(
        sqlite_database, key_ring, platform=EXPORTING, settings=settings
    ) as manager:
        found = await exported(manager)
        job = await LeaseStore(sqlite_database, key_ring, owner="checker").find_job(
            "export", "1|service|activity"
        )

    assert found is None
    assert job is not None
    assert job.problem is not None
    assert job.problem.code == "PROVIDER_TIMEOUT"
    assert job.attempts == 1


async def test_an_export_the_platform_does_not_have_is_refused(manager: SessionManager) -> None:
    with pytest.raises(NotSupported, match="Pretend has no export named activity"):
        await exported(manager)


# Checking, registering, changing, removing.


async def test_a_checked_providers_grant_is_adopted_without_a_second_login(
    manager: SessionManager, providers: ProviderStore, server: PretendServer
) -> None:
    provider = await providers.get("1")
    assert provider is not None

    check, grant = await manager.check(provider, Secret({"password": PASSWORD}))
    await manager.adopt("1", grant)
    await read(manager)

    assert check.version == "1.0"
    assert (server.logins, server.log_outs) == (1, 0)
    status = await manager.status("1")
    assert [(line.transition, line.outcome) for line in status.transitions] == [
        ("adopt", "committed")
    ]


async def test_nobody_logs_in_to_a_provider_whose_checked_grant_is_about_to_be_adopted(
    manager: SessionManager,
    sqlite_database: Database,
    key_ring: KeyRing,
    providers: ProviderStore,
    server: PretendServer,
) -> None:
    provider = await providers.get("1")
    assert provider is not None
    _, grant = await manager.check(provider, Secret({"password": PASSWORD}))

    async with open_gateway(sqlite_database, key_ring) as other:
        async with manager.starting_over("1"):
            early = [asyncio.create_task(read(one)) for one in [manager, other] * 10]
            await asyncio.sleep(0.3)
            assert (server.logins, server.reads) == (1, 1)  # the check's
            await manager.adopt("1", grant)
        await asyncio.gather(*early)

    assert (server.logins, server.reads, server.log_outs) == (1, 21, 0)


async def test_a_gateway_that_dies_while_it_stores_a_provider_is_not_waited_for_long(
    manager: SessionManager, sqlite_database: Database, key_ring: KeyRing, server: PretendServer
) -> None:
    leases = LeaseStore(sqlite_database, key_ring, owner="dies")

    async with leases.starting_over("1", lease_seconds=0.3):
        await asyncio.gather(*(read(manager) for _ in range(10)))

    assert (server.logins, server.reads) == (1, 10)


async def test_a_check_that_fails_leaves_no_session_behind(
    manager: SessionManager, providers: ProviderStore, server: PretendServer
) -> None:
    server.failing = {"/about": (403, {})}
    provider = await providers.get("1")
    assert provider is not None

    with pytest.raises(ProviderForbidden, match="A permission is missing"):
        await manager.check(provider, Secret({"password": PASSWORD}))

    assert (server.logins, server.log_outs, server.valid_tokens) == (1, 1, set())
    assert await manager.list_statuses() == []


async def test_a_check_with_a_wrong_password_says_so_and_stores_nothing(
    manager: SessionManager, providers: ProviderStore, server: PretendServer
) -> None:
    provider = await providers.get("1")
    assert provider is not None

    with pytest.raises(ReauthRequired, match="The password is wrong"):
        await manager.check(provider, Secret({"password": "wr0ng"}))

    assert server.refused_logins == 1
    assert await manager.list_statuses() == []


async def test_a_check_is_limited_in_time(
    sqlite_database: Database, key_ring: KeyRing, providers: ProviderStore, server: PretendServer
) -> None:
    server.login_seconds = 30
    provider = await providers.get("1")
    assert provider is not None
    settings = replace(QUICK, check_seconds=0.1)

    async with open_gateway(sqlite_database, key_ring, settings=settings) as manager:
        with pytest.raises(ProviderTimeout, match=r"The check did not finish within 0\.1 seconds"):
            await manager.check(provider, Secret({"password": PASSWORD}))


async def test_a_grant_of_a_check_nobody_adopts_can_be_ended(
    manager: SessionManager, providers: ProviderStore, server: PretendServer
) -> None:
    provider = await providers.get("1")
    assert provider is not None
    _, grant = await manager.check(provider, Secret({"password": PASSWORD}))

    await manager.discard(provider, grant)

    assert (server.log_outs, server.valid_tokens) == (1, set())


async def test_a_provider_that_is_not_registered_is_not_found(manager: SessionManager) -> None:
    answers = await asyncio.gather(
        *(read(manager, "unknown") for _ in range(10)), return_exceptions=True
    )

    assert {type(answer) for answer in answers} == {ProviderNotFound}


async def test_a_disabled_provider_is_not_called(
    manager: SessionManager, providers: ProviderStore, server: PretendServer
) -> None:
    await providers.update("1", state=ProviderState.DISABLED)

    with pytest.raises(ProviderUnavailable, match="The provider is disabled"):
        await read(manager)

    assert server.logins == 0


async def test_a_provider_of_an_unknown_platform_names_those_there_are(
    manager: SessionManager, providers: ProviderStore
) -> None:
    await providers.update("1", platform="unheard-of")

    with pytest.raises(NotSupported, match="no platform named unheard-of, only pretend"):
        await read(manager)


async def test_a_provider_removed_elsewhere_is_soon_not_found(
    sqlite_database: Database, key_ring: KeyRing, providers: ProviderStore, server: PretendServer
) -> None:
    async with open_gateway(
        sqlite_database, key_ring, platform=EXPORTING, scheduled=True
    ) as manager:
        await read(manager)
        await providers.remove("1")
        await asyncio.sleep(0.4)

        with pytest.raises(ProviderNotFound):
            await read(manager)


async def test_a_provider_removed_elsewhere_is_noticed_at_once_when_its_session_is_lost(
    manager: SessionManager, providers: ProviderStore, server: PretendServer
) -> None:
    await read(manager)
    await providers.remove("1")
    server.end_all_sessions()

    with pytest.raises(ProviderNotFound):
        await read(manager)

    assert server.logins == 1


async def test_the_exports_of_a_removed_provider_are_planned_no_more(
    sqlite_database: Database, key_ring: KeyRing, providers: ProviderStore, server: PretendServer
) -> None:
    leases = LeaseStore(sqlite_database, key_ring, owner="checker")
    await leases.ensure_job("export", "gone|service|activity")

    async with open_gateway(sqlite_database, key_ring, scheduled=True):
        await asyncio.sleep(0.4)

    assert await leases.find_job("export", "gone|service|activity") is None


async def test_a_discarded_session_closes_after_its_last_user(
    manager: SessionManager, server: PretendServer
) -> None:
    async with manager.session("1") as session:
        await session.list_users(position=None, limit=10)
        await manager.forget("1")
        await asyncio.sleep(0.05)

        await session._http.request("POST", "/logout")
        async with manager.session("1") as other:
            assert other is not session
    await asyncio.sleep(0.05)

    with pytest.raises(ProviderUnavailable):
        await session._http.request("POST", "/logout")


async def test_forgetting_during_a_login_throws_its_outcome_away(
    manager: SessionManager, server: PretendServer
) -> None:
    server.login_seconds = 0.3
    reading = asyncio.create_task(read(manager))
    await until(lambda: server.logins_in_flight == 1)

    await manager.forget("1")
    await read(manager)

    await asyncio.wait({reading})  # served or told to ask again, depending on who was first
    await until(lambda: len(server.valid_tokens) == 1)
    assert server.valid_tokens == {"tok3n-2"}


async def test_a_revoked_session_is_ended_at_the_provider_too(
    manager: SessionManager, server: PretendServer
) -> None:
    await read(manager)

    await manager.revoke("1")

    assert (server.log_outs, server.valid_tokens) == (1, set())
    assert (await manager.status("1")).state is SessionState.EMPTY
    await read(manager)
    assert server.logins == 2


# The scheduler, and the end.


async def test_the_scheduler_goes_on_after_a_crash(
    sqlite_database: Database, key_ring: KeyRing, providers: ProviderStore, server: PretendServer
) -> None:
    crashes = 0

    class CrashingLeases(LeaseStore):
        async def seconds_until_due(self, *job_kinds: str) -> float | None:
            nonlocal crashes
            if crashes < 2:
                crashes += 1
                raise RuntimeError("A defect")
            return await super().seconds_until_due(*job_kinds)

    with capture_logs() as logs:
        async with open_gateway(
            sqlite_database, key_ring, settings=HEARTBEATS, scheduled=True, leases=CrashingLeases
        ) as manager:
            await read(manager)
            await until(lambda: server.heartbeats > 0)

    failures = [line["error"] for line in logs if line["event"] == "scheduler_failed"]
    assert failures == ["RuntimeError", "RuntimeError"]


async def test_a_heartbeat_that_crashes_leaves_its_lease_to_run_out(
    sqlite_database: Database, key_ring: KeyRing, providers: ProviderStore, server: PretendServer
) -> None:
    crashes = 0

    class DefectiveSession(PretendSession):
        async def keep_alive(self, grant: Grant) -> NewGrant:
            nonlocal crashes
            crashes += 1
            if crashes == 1:
                raise RuntimeError("A defect")
            return await super().keep_alive(grant)

    with capture_logs() as logs:
        async with open_gateway(
            sqlite_database,
            key_ring,
            settings=HEARTBEATS,
            scheduled=True,
            platform=replace(PRETEND, session=DefectiveSession),
        ) as manager:
            await read(manager)
            await until(lambda: server.heartbeats > 0)

    assert [line["event"] for line in logs] == ["scheduled_work_failed"]
    assert server.logins == 1


async def test_at_shutdown_what_is_in_flight_ends_and_leases_are_given_back(
    sqlite_database: Database, key_ring: KeyRing, providers: ProviderStore, server: PretendServer
) -> None:
    server.heartbeat_seconds = 0.5
    leases = LeaseStore(sqlite_database, key_ring, owner="checker")
    async with open_gateway(
        sqlite_database, key_ring, settings=HEARTBEATS, scheduled=True
    ) as manager:
        await read(manager)
        await asyncio.sleep(0.3)
        during = await leases.find_session("1", "service")

    after = await leases.find_session("1", "service")
    assert during is not None
    assert during.leased
    assert after is not None
    assert not after.leased
    assert (after.version, server.heartbeats) == (1, 1)


async def test_at_shutdown_nobody_waits_for_an_export_for_ever(
    sqlite_database: Database, key_ring: KeyRing, providers: ProviderStore, server: PretendServer
) -> None:
    server.export_seconds = 30
    settings = replace(QUICK, shutdown_seconds=0.2)
    leases = LeaseStore(sqlite_database, key_ring, owner="checker")
    async with open_gateway(
        sqlite_database, key_ring, platform=EXPORTING, settings=settings, scheduled=True
    ) as manager:
        await read(manager)
        await until(lambda: server.exports == 1)

    job = await leases.find_job("export", "1|service|activity")
    assert job is not None
    assert job.leased_seconds <= 0


async def test_a_closed_manager_lends_nothing(
    sqlite_database: Database, key_ring: KeyRing, providers: ProviderStore
) -> None:
    async with open_gateway(sqlite_database, key_ring) as manager:
        pass

    with pytest.raises(ProviderUnavailable, match="shutting down"):
        await read(manager)


async def test_a_grant_is_stored_although_the_database_was_away_for_a_moment(
    sqlite_database: Database, key_ring: KeyRing, providers: ProviderStore, server: PretendServer
) -> None:
    failures = 0

    class UnreliableLeases(LeaseStore):
        async def commit_session(self, claim: Claim, *arguments: Any, **options: Any) -> Any:
            nonlocal failures
            stored = None
            if failures % 2:  # stored, but the answer is lost
                stored = await super().commit_session(claim, *arguments, **options)
            failures += 1
            if failures < 3:
                raise StorageUnavailable("The database was not reached")
            return stored or await super().commit_session(claim, *arguments, **options)

    async with open_gateway(sqlite_database, key_ring, leases=UnreliableLeases) as manager:
        await read(manager)

    assert failures == 3
    assert (server.logins, server.log_outs) == (1, 0)


def test_a_login_longer_than_its_lease_allows_is_refused_at_the_start() -> None:
    with pytest.raises(ValueError, match=r"10 seconds, which is more than 70 % of the lease of 12"):
        SessionSettings(lease_seconds=12)


async def test_no_secret_shows_in_logs_or_status(
    sqlite_database: Database, key_ring: KeyRing, providers: ProviderStore, server: PretendServer
) -> None:
    with capture_logs() as logs:
        async with open_gateway(sqlite_database, key_ring) as manager:
            await read(manager)
            server.password = "an0ther-pass"
            server.end_all_sessions()
            with pytest.raises(ReauthRequired):
                await read(manager)
            shown = repr([await manager.status("1"), await manager.list_statuses(), logs])

    assert "tok3n" not in shown
    assert PASSWORD not in shown


# What several gateways do to each other.


async def hold_lease(
    database: Database, key_ring: KeyRing, *, seconds: float
) -> tuple[LeaseStore, Claim]:
    """Hold the session's lease as another gateway would, and do nothing with it."""
    leases = LeaseStore(database, key_ring, owner="another")
    seen = await leases.ensure_session("1", "service")
    assert seen is not None
    claim = await leases.claim_session(seen, Transition.LOG_IN, lease_seconds=seconds)
    assert claim is not None
    return leases, claim


async def test_nobody_waits_for_another_gateways_login_for_ever(
    sqlite_database: Database, key_ring: KeyRing, providers: ProviderStore, server: PretendServer
) -> None:
    await hold_lease(sqlite_database, key_ring, seconds=60)
    settings = replace(QUICK, patience_seconds=0.2)

    async with open_gateway(sqlite_database, key_ring, settings=settings) as manager:
        with pytest.raises(ProviderTimeout, match="Another gateway did not finish"):
            await read(manager)

    assert server.logins == 0


async def test_a_grant_that_cannot_be_adopted_is_ended(
    sqlite_database: Database, key_ring: KeyRing, providers: ProviderStore, server: PretendServer
) -> None:
    await hold_lease(sqlite_database, key_ring, seconds=60)
    settings = replace(QUICK, patience_seconds=0.2)
    provider = await providers.get("1")
    assert provider is not None

    async with open_gateway(sqlite_database, key_ring, settings=settings) as manager:
        _, grant = await manager.check(provider, Secret({"password": PASSWORD}))
        with pytest.raises(ProviderTimeout, match="Another gateway did not finish"):
            await manager.adopt("1", grant)

    assert (server.log_outs, server.valid_tokens) == (1, set())


async def test_another_gateways_pause_is_respected_and_told_in_its_words(
    manager: SessionManager, sqlite_database: Database, key_ring: KeyRing, server: PretendServer
) -> None:
    leases, claim = await hold_lease(sqlite_database, key_ring, seconds=60)
    await leases.fail_session(
        claim,
        Problem(code="PROVIDER_BAD_RESPONSE", message="It answered HTML"),
        state=SessionState.BACKOFF,
        next_seconds=100,
    )

    with pytest.raises(ProviderBadResponse, match="It answered HTML") as caught:
        await read(manager)

    assert caught.value.retry_after_seconds in {99, 100}
    assert server.logins == 0


async def test_a_failure_of_a_holder_that_was_overtaken_is_of_no_consequence(
    manager: SessionManager, sqlite_database: Database, key_ring: KeyRing, server: PretendServer
) -> None:
    server.login_seconds = 0.3
    server.password = "an0ther-pass"
    reading = asyncio.create_task(read(manager))
    await until(lambda: server.logins_in_flight == 1)
    await LeaseStore(sqlite_database, key_ring, owner="another").reset_sessions("1")
    await asyncio.sleep(0.2)
    server.failing = {}
    await until(lambda: server.refused_logins == 1)
    server.password = PASSWORD

    await reading

    assert (server.refused_logins, server.logins) == (1, 1)


async def test_a_provider_changed_elsewhere_is_opened_anew_when_its_session_is_lost(
    manager: SessionManager, providers: ProviderStore, server: PretendServer
) -> None:
    await read(manager)
    await providers.update("1", name="Renamed")
    server.end_all_sessions()

    with pytest.raises(ProviderUnavailable, match="changed just now: ask again"):
        await read(manager)
    await read(manager)

    async with manager.session("1") as session:
        assert session.provider.name == "Renamed"
    assert server.logins == 2


async def test_a_heartbeat_on_other_terms_is_not_sent(
    sqlite_database: Database, key_ring: KeyRing, providers: ProviderStore, server: PretendServer
) -> None:
    settings = replace(QUICK, heartbeat_seconds=0.1)
    async with open_gateway(sqlite_database, key_ring, settings=settings) as before:
        await read(before)
    await providers.update("1", options={"role.coach": "TEACHER"})

    async with open_gateway(
        sqlite_database, key_ring, settings=settings, scheduled=True
    ) as manager:
        await asyncio.sleep(0.4)
        status = await manager.status("1")

    assert (server.heartbeats, status.state) == (0, SessionState.EMPTY)


async def test_heartbeats_of_a_disabled_provider_end(
    sqlite_database: Database, key_ring: KeyRing, providers: ProviderStore, server: PretendServer
) -> None:
    async with open_gateway(sqlite_database, key_ring, settings=HEARTBEATS) as before:
        await read(before)
    await providers.update("1", state=ProviderState.DISABLED)

    async with open_gateway(
        sqlite_database, key_ring, settings=HEARTBEATS, scheduled=True
    ) as manager:
        async with asyncio.timeout(NEVER_SLOWER_THAN):
            while (status := await manager.status("1")).next_transition_at is not None:  # noqa: ASYNC110 - it is in a database
                await asyncio.sleep(0.02)

    assert server.heartbeats == 0
    assert (status.state, status.next_transition_at) == (SessionState.DISABLED, None)


async def test_logins_and_exports_of_a_disabled_provider_wait(
    sqlite_database: Database, key_ring: KeyRing, providers: ProviderStore, server: PretendServer
) -> None:
    leases, claim = await hold_lease(sqlite_database, key_ring, seconds=60)
    await leases.fail_session(
        claim,
        Problem(code="PROVIDER_TIMEOUT", message="It did not answer"),
        state=SessionState.BACKOFF,
        next_seconds=0,
    )
    await leases.ensure_job("export", "1|service|activity")
    await providers.update("1", state=ProviderState.DISABLED)

    async with open_gateway(sqlite_database, key_ring, scheduled=True, platform=EXPORTING):
        await asyncio.sleep(0.4)

    job = await leases.find_job("export", "1|service|activity")
    assert job is not None
    assert 50 < job.seconds_to_due <= 60
    assert await leases.list_due_retries(limit=10) == []
    assert (server.logins, server.exports) == (0, 0)


async def test_a_heartbeat_claimed_late_is_not_sent_but_claimed_again(
    sqlite_database: Database, key_ring: KeyRing, providers: ProviderStore, server: PretendServer
) -> None:
    pauses = [1.0]
    notes = Notes()

    class PausedOnce(LeaseStore):
        async def claim_due_sessions(self, *, limit: int, lease_seconds: float) -> Sequence[Claim]:
            claims = await super().claim_due_sessions(limit=limit, lease_seconds=lease_seconds)
            if claims and pauses:
                await asyncio.sleep(pauses.pop())
            return claims

    async with open_gateway(
        sqlite_database,
        key_ring,
        settings=HEARTBEATS,
        scheduled=True,
        leases=PausedOnce,
        observer=notes,
    ) as manager:
        await read(manager)
        await until(lambda: server.heartbeats > 0)

    assert notes.transitions[:3] == [
        ("log_in", "committed"),
        ("keep_alive", "late"),
        ("keep_alive", "prolonged"),
    ]
    assert server.logins == 1


async def test_a_provider_that_answers_after_this_process_was_paused_is_not_blamed(
    sqlite_database: Database, key_ring: KeyRing, providers: ProviderStore, server: PretendServer
) -> None:
    pauses = {"log_in": 1.6, "keep_alive": 1.6}
    notes = Notes()

    class FrozenSession(PretendSession):
        async def log_in(self, credentials: Secret[Mapping[str, str]]) -> NewGrant:
            await self._freeze("log_in")
            return await super().log_in(credentials)

        async def keep_alive(self, grant: Grant) -> NewGrant:
            await self._freeze("keep_alive")
            return await super().keep_alive(grant)

        async def _freeze(self, name: str) -> None:
            time.sleep(pauses.pop(name, 0))  # noqa: ASYNC251 - nothing else may run meanwhile
            await asyncio.sleep(0.05)

    with capture_logs() as logs:
        async with open_gateway(
            sqlite_database,
            key_ring,
            settings=HEARTBEATS,
            scheduled=True,
            platform=replace(PRETEND, session=FrozenSession),
            observer=notes,
        ) as manager:
            await read(manager)
            await until(lambda: server.heartbeats > 0)

    assert [line for line in notes.transitions if line[1] == "late"] == [
        ("log_in", "late"),
        ("keep_alive", "late"),
    ]
    assert logs == []


async def test_a_login_in_flight_at_shutdown_is_given_up_in_the_end(
    sqlite_database: Database, key_ring: KeyRing, providers: ProviderStore, server: PretendServer
) -> None:
    server.login_seconds = 30
    settings = replace(QUICK, lease_seconds=40, transition_seconds=25, shutdown_seconds=0.1)
    leases = LeaseStore(sqlite_database, key_ring, owner="checker")
    async with open_gateway(sqlite_database, key_ring, settings=settings) as manager:
        reading = asyncio.create_task(read(manager))
        await until(lambda: server.logins_in_flight == 1)

    with pytest.raises(ProviderUnavailable, match="The gateway is shutting down"):
        await reading
    stored = await leases.find_session("1", "service")
    assert stored is not None
    assert not stored.leased


async def test_a_session_ended_while_it_is_opened_is_a_bad_answer(
    sqlite_database: Database, key_ring: KeyRing, providers: ProviderStore
) -> None:
    class EndingSession(PretendSession):
        async def log_in(self, credentials: Secret[Mapping[str, str]]) -> NewGrant:
            raise SessionLost

    async with open_gateway(
        sqlite_database, key_ring, platform=replace(PRETEND, session=EndingSession)
    ) as manager:
        with pytest.raises(ProviderBadResponse, match="ended a session while it was being opened"):
            await read(manager)
        provider = await providers.get("1")
        assert provider is not None
        with pytest.raises(ProviderAuthFailed, match="ended a session it had just granted"):
            await manager.check(provider, Secret({"password": PASSWORD}))


async def test_a_check_does_not_log_in_twice_when_the_session_is_lost(
    manager: SessionManager, providers: ProviderStore, server: PretendServer
) -> None:
    server.failing = {"/about": (401, {})}
    provider = await providers.get("1")
    assert provider is not None

    with pytest.raises(ProviderAuthFailed, match="ended session 1 it had just granted"):
        await manager.check(provider, Secret({"password": PASSWORD}))

    assert server.logins == 1


async def test_revoking_a_session_that_was_never_used_does_nothing(
    manager: SessionManager, server: PretendServer
) -> None:
    await manager.revoke("1")

    assert (server.logins, server.log_outs) == (0, 0)


async def test_an_export_taken_over_by_another_gateway_is_thrown_away(
    sqlite_database: Database, key_ring: KeyRing, providers: ProviderStore, server: PretendServer
) -> None:
    server.export_seconds = 0.7
    leases = LeaseStore(sqlite_database, key_ring, owner="another")
    async with open_gateway(
        sqlite_database, key_ring, platform=EXPORTING, scheduled=True
    ) as manager:
        await read(manager)
        await until(lambda: server.exports == 1)
        await leases.remove_jobs("export", key_prefix="1|")
        await asyncio.sleep(0.9)
        entry = await CacheStore(sqlite_database).read("1", "service", "export:activity")

    assert entry is None


async def test_an_old_export_is_served_while_the_database_is_away(
    sqlite_database: Database, key_ring: KeyRing, providers: ProviderStore, server: PretendServer
) -> None:
    class AwayCache(CacheStore):
        away = False

        async def read(self, provider_id: str, subject: str, resource: str) -> CacheEntry | None:
            if self.away:
                raise StorageUnavailable("The database was not reached")
            return await super().read(provider_id, subject, resource)

    cache = AwayCache(sqlite_database)
    provider = await providers.get("1")
    assert provider is not None

    async def run(name: str) -> bytes:
        return name.encode()

    exports = TimedExports(
        provider,
        platform=EXPORTING,
        subject="service",
        leases=LeaseStore(sqlite_database, key_ring, owner="one"),
        cache=cache,
        settings=QUICK,
        run=run,
    )
    cache.away = True
    with pytest.raises(StorageUnavailable):
        await exports.read("activity")
    cache.away = False
    first = await exports.read("activity")
    exports._held["activity"] = replace(exports._held["activity"], until=0)

    cache.away = True

    assert await exports.read("activity") is first
    assert first is not None
    assert first.body == b"activity"
    cache.away = False
    assert await exports.read("activity") is first


async def test_what_goes_out_of_reach_is_only_noted_by_those_who_came_after(
    manager: SessionManager, server: PretendServer
) -> None:
    await read(manager)
    with capture_logs() as logs:
        async with manager.session("1"):
            server.failing = {"/users": (503, {})}
            with pytest.raises(ProviderUnavailable):
                await read(manager)

    assert [line["event"] for line in logs] == ["provider_outage_started"]
