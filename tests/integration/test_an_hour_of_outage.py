"""A provider that is down for an hour: what still reaches it, and what the log says.

The pauses are 30, 60, 120, 240 and then 300 seconds, so the bound is a number: five failures, and
a probe 30, 90, 210, 450 and then every 300 seconds after the last of them, the last at 3450.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx
import pytest
from pretend_platform import PretendServer, open_gateway, read, register
from structlog.testing import capture_logs

from sessions.addresses import AddressPolicy
from sessions.authorization import SessionSettings
from sessions.errors import ProviderError
from sessions.http import HttpLimits, ProviderHttp, deadline
from sessions.manager import SessionManager
from sessions.resilience import BreakerState, ResilienceTerms
from simulators.moving_time import moving_time, run_virtually
from storage.credentials import KeyRing
from storage.database import open_database
from storage.providers import ProviderStore

HOUR_SECONDS = 3600
FAILURES = 5
PROBES = 14
STEADY = HttpLimits(resilience=ResilienceTerms(jitter=0))


# Alone: one call each second, in virtual time


@dataclass
class Upstream(httpx.AsyncBaseTransport):
    """Notes when it is reached, and fails as it is told."""

    fail: Callable[[], httpx.Response] | None
    reached_at: list[float] = field(default_factory=list)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.reached_at.append(asyncio.get_running_loop().time())
        if self.fail is None:
            await asyncio.Event().wait()
            raise AssertionError(request)
        return self.fail()


@dataclass
class Hour:
    """What callers of one call each second got, and after how long."""

    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)

    async def call(self, http: ProviderHttp) -> None:
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        try:
            with deadline(3):
                await http.request("GET", "/")
        except ProviderError as error:
            self.outcomes[error.code] += 1
        else:
            self.outcomes["OK"] += 1
        self.seconds.append(loop.time() - began_at)


async def an_hour(upstream: Upstream, limits: HttpLimits) -> tuple[Hour, BreakerState]:
    hour, calls = Hour(), set()
    async with ProviderHttp.open(
        "https://kolibri.example",
        provider_id="1",
        policy=AddressPolicy(),
        limits=limits,
        transport=upstream,
    ) as http:
        for _ in range(HOUR_SECONDS):
            calls.add(asyncio.create_task(hour.call(http)))
            await asyncio.sleep(1)
        await asyncio.wait(calls)
        return hour, http.health().state


def down() -> httpx.Response:
    return httpx.Response(503)


def gone() -> httpx.Response:
    raise httpx.ConnectError("refused")


@pytest.mark.parametrize("fail", [down, gone])
def test_nineteen_requests_reach_a_provider_that_is_down_for_an_hour(
    fail: Callable[[], httpx.Response],
) -> None:
    upstream = Upstream(fail)

    hour, state = run_virtually(an_hour(upstream, STEADY))

    assert len(upstream.reached_at) == FAILURES + PROBES == 19
    opened_at = upstream.reached_at[FAILURES - 1]
    waits = [round(at - opened_at) for at in upstream.reached_at[FAILURES:]]
    assert waits[:5] == pytest.approx([30, 90, 210, 450, 750], abs=5)
    assert hour.outcomes == {"PROVIDER_UNAVAILABLE": HOUR_SECONDS}
    assert max(hour.seconds) < 1  # the longest were retries before it was taken for failed
    assert state is not BreakerState.CLOSED


def test_jitter_makes_the_probes_fewer_never_more() -> None:
    upstream = Upstream(down)

    run_virtually(an_hour(upstream, HttpLimits()))

    assert FAILURES + 12 <= len(upstream.reached_at) <= FAILURES + PROBES


def test_a_provider_that_hangs_for_an_hour_costs_few_callers_their_deadline() -> None:
    upstream = Upstream(None)

    hour, _ = run_virtually(an_hour(upstream, STEADY))

    # besides those whose failure opens it, as many as were let through before that was known
    assert FAILURES + PROBES <= len(upstream.reached_at) <= FAILURES + STEADY.concurrency + PROBES
    assert hour.outcomes["OK"] == 0
    assert max(hour.seconds) == pytest.approx(3)
    assert sum(seconds > 0 for seconds in hour.seconds) <= FAILURES + STEADY.concurrency + PROBES


def test_a_provider_that_throttles_for_an_hour_is_left_alone_as_it_asks() -> None:
    upstream = Upstream(lambda: httpx.Response(429, headers={"Retry-After": "600"}))

    hour, _ = run_virtually(an_hour(upstream, STEADY))

    assert [round(at) for at in upstream.reached_at] == [0, 600, 1200, 1800, 2400, 3000]
    # the fifth takes it for failed as well
    assert hour.outcomes == {"PROVIDER_RATE_LIMITED": 2401, "PROVIDER_UNAVAILABLE": 1199}
    assert max(hour.seconds) < 3  # who asks shortly before a rest ends waits for its end


# Through everything: sessions, logins, heartbeats, a database and sockets


async def test_an_hour_down_is_nineteen_requests_one_line_down_and_one_up(
    sqlite_url: str, key_ring: KeyRing
) -> None:
    settings = SessionSettings(tick_seconds=5, look_seconds=60)
    server = PretendServer()
    with moving_time() as clock, capture_logs() as logs:
        async with (
            server.listening(),
            open_database(sqlite_url) as database,
            open_gateway(
                database, key_ring, settings=settings, scheduled=True, limits=STEADY
            ) as manager,
        ):
            await register(ProviderStore(database, key_ring), server)
            await read(manager)
            before = server.requests
            server.failing = dict.fromkeys(("/login", "/logout", "/alive", "/users"), (503, {}))

            during = Counter[str]()
            for _ in range(HOUR_SECONDS):
                clock.advance(1)
                during[await outcome_of(manager)] += 1
                await settled(manager)
            reached = server.requests - before
            server.failing = {}
            seconds = 0
            while await outcome_of(manager) != "OK":
                clock.advance(1)
                seconds += 1
                await settled(manager)
            health = manager.health("1")

    assert during == {"PROVIDER_UNAVAILABLE": HOUR_SECONDS}
    assert FAILURES < reached <= FAILURES + PROBES
    assert seconds <= 2 * 300 + 5  # the breaker's pause, and then that between two logins
    assert health is not None
    assert health.state is BreakerState.CLOSED
    assert [line["event"] for line in logs] == ["provider_outage_started", "provider_outage_ended"]


async def outcome_of(manager: SessionManager) -> str:
    try:
        await read(manager)
    except ProviderError as error:
        return error.code
    return "OK"


async def settled(manager: SessionManager) -> None:
    """Let what is due be done, in no time at all."""
    await asyncio.sleep(0)
    while manager._scheduler._transitions:  # noqa: ASYNC110 - tasks come and go
        await asyncio.sleep(0.001)
