"""When a provider is taken for failed, who finds out that it is back, and who waits in what order.

The breaker and the limit are told what time it is; the line runs in virtual time.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessions.errors import (
    ProviderBadResponse,
    ProviderError,
    ProviderRateLimited,
    ProviderTimeout,
    ProviderUnavailable,
    TooManyCallsWaiting,
)
from sessions.resilience import (
    Breaker,
    BreakerState,
    Limit,
    Permit,
    ProviderHealth,
    RefusalReason,
    Resilience,
    ResilienceTerms,
    Turn,
    ahead_of_line,
)
from simulators.moving_time import moving_time, run_virtually

TERMS = ResilienceTerms()
IN_A_ROW_ONLY = replace(TERMS, min_calls=10_000)
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DOWN = ProviderUnavailable("kolibri.example:8443 cut the connection", provider_id="1")
CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN


def a_breaker(terms: ResilienceTerms = TERMS, *, chance: float = 0.0) -> Breaker:
    return Breaker(terms, now=0, chance=lambda: chance)


def fail(breaker: Breaker, times: int, *, now: float = 0.0) -> None:
    for _ in range(times):
        breaker.fail(breaker.admit(now), now)


def succeed(breaker: Breaker, times: int = 1, *, now: float = 0.0) -> None:
    for _ in range(times):
        breaker.succeed(breaker.admit(now), now)


# When it opens


def test_five_failures_in_a_row_open_it_and_four_do_not() -> None:
    breaker = a_breaker()

    fail(breaker, 4)
    after_four = breaker.state
    fail(breaker, 1)

    assert (after_four, breaker.state) == (CLOSED, OPEN)


def test_a_success_in_between_begins_the_count_anew() -> None:
    breaker = a_breaker()

    fail(breaker, 4)
    succeed(breaker)
    fail(breaker, 4)

    assert (breaker.state, breaker.failures_in_a_row) == (CLOSED, 4)


def test_half_of_twenty_calls_open_it_though_never_two_fail_in_a_row() -> None:
    breaker = a_breaker()

    for _ in range(9):
        succeed(breaker)
        fail(breaker, 1)
    succeed(breaker)
    after_nineteen = breaker.state
    fail(breaker, 1)

    assert (after_nineteen, breaker.state) == (CLOSED, OPEN)


def test_calls_of_more_than_half_a_minute_ago_are_in_no_share() -> None:
    breaker = a_breaker()

    for second in range(0, 80, 4):
        succeed(breaker, now=second)
        fail(breaker, 1, now=second)

    assert breaker.state is CLOSED
    assert breaker.window.failed(76) == (16, 0.5)
    assert breaker.window.failed(1000) == (0, 0.0)


# How long it stays open


@pytest.mark.parametrize(
    ("chance", "pauses"),
    [(0.0, [30, 60, 120, 240, 300, 300, 300]), (1.0, [36, 72, 144, 288, 360, 360, 360])],
)
def test_every_failed_probe_doubles_the_pause_up_to_five_minutes(
    chance: float, pauses: list[float]
) -> None:
    breaker = a_breaker(chance=chance)
    fail(breaker, 5)
    seen, now = [], 0.0

    for _ in pauses:
        seen.append(breaker.probe_at - now)
        now = breaker.probe_at
        fail(breaker, 1, now=now)

    assert seen == pytest.approx(pauses)


def test_a_provider_that_flaps_is_left_alone_for_longer_every_time() -> None:
    breaker = a_breaker()
    seen, now = [], 0.0

    for _ in range(4):
        fail(breaker, 5, now=now)
        seen.append(breaker.probe_at - now)
        now = breaker.probe_at
        succeed(breaker, now=now)
        now += 59

    assert seen == [30, 60, 120, 240]


def test_a_minute_of_calm_begins_with_the_first_pause_again() -> None:
    breaker = a_breaker()
    fail(breaker, 5)
    fail(breaker, 1, now=30)
    succeed(breaker, now=90)

    fail(breaker, 5, now=150)

    assert breaker.probe_at - 150 == 30


def test_a_longer_rest_the_provider_asked_for_is_kept() -> None:
    breaker = a_breaker()
    fail(breaker, 4)

    breaker.fail(breaker.admit(0), 0, rest_seconds=700)

    assert breaker.probe_at == 700


# Who finds out that it is back


def test_one_probe_is_let_through_and_all_others_are_refused() -> None:
    breaker = a_breaker()
    fail(breaker, 5)

    refused_before = breaker.refuses(29.9)
    probe = breaker.admit(30)

    assert refused_before
    assert probe.is_probe
    assert breaker.state is HALF_OPEN
    assert breaker.refuses(30)
    assert breaker.refuses(10_000)
    with pytest.raises(ValueError, match="refuses"):
        breaker.admit(10_000)


def test_a_probe_that_goes_well_lets_everybody_through() -> None:
    breaker = a_breaker()
    fail(breaker, 5)

    succeed(breaker, now=30)

    assert (breaker.state, breaker.failures_in_a_row, breaker.since) == (CLOSED, 0, 30)
    assert not breaker.refuses(30)
    assert breaker.window.failed(30) == (1, 0.0)


def test_what_calls_of_before_bring_says_nothing_of_now() -> None:
    breaker = a_breaker()
    early = [breaker.admit(0) for _ in range(20)]
    fail(breaker, 5)

    breaker.succeed(early.pop(), 1)
    state_after_success = breaker.state
    succeed(breaker, now=30)
    for permit in early:
        breaker.fail(permit, 31)

    assert (state_after_success, breaker.state, breaker.failures_in_a_row) == (OPEN, CLOSED, 0)


def test_a_probe_cut_short_says_nothing_and_is_not_repeated_before_the_same_pause() -> None:
    breaker = a_breaker()
    fail(breaker, 5)

    breaker.give_up(breaker.admit(31), 32)
    probe_at = breaker.probe_at
    fail(breaker, 1, now=62)

    assert probe_at == 62
    assert breaker.probe_at == 62 + 60


def test_a_probe_that_was_not_sent_leaves_the_finding_out_to_the_next() -> None:
    breaker = a_breaker()
    fail(breaker, 5)

    breaker.release(breaker.admit(31))

    assert breaker.state is OPEN
    assert breaker.admit(31).is_probe


def test_success_taken_back_goes_on_with_the_failures_before_it() -> None:
    breaker = a_breaker()

    for _ in range(5):
        permit = breaker.admit(0)
        breaker.succeed(permit, 0)
        breaker.take_back(permit, 0)
        breaker.take_back(permit, 0)

    assert breaker.state is OPEN
    assert breaker.window.failed(0) == (5, 1.0)


def test_success_taken_back_late_does_not_undo_a_later_one() -> None:
    breaker = a_breaker()
    fail(breaker, 4)
    early, late = breaker.admit(0), breaker.admit(0)
    breaker.succeed(early, 0)
    breaker.succeed(late, 0)

    breaker.take_back(early, 0)

    assert (breaker.state, breaker.failures_in_a_row) == (CLOSED, 0)


def test_a_probe_taken_back_opens_it_again_for_longer() -> None:
    breaker = a_breaker()
    fail(breaker, 5)
    probe = breaker.admit(30)
    breaker.succeed(probe, 31)

    breaker.take_back(probe, 31)

    assert (breaker.state, breaker.probe_at) == (OPEN, 31 + 60)


@dataclass
class Story:
    """A breaker and what should be true of it, told step by step."""

    breaker: Breaker
    now: float = 0.0
    in_a_row: int = 0
    outstanding: list[Permit] = field(default_factory=list)
    opened: int = 0

    def probes(self) -> list[Permit]:
        return [p for p in self.outstanding if p.is_probe and p.era == self.breaker.era]

    def step(self, action: str, *, wait: float, which: int) -> None:
        self.now += wait
        before, era = self.breaker.state, self.breaker.era
        if action == "begin":
            if not self.breaker.refuses(self.now):
                self.outstanding.append(self.breaker.admit(self.now))
            assert before is not HALF_OPEN or self.breaker.era == era
        elif self.outstanding:
            permit = self.outstanding.pop(which % len(self.outstanding))
            counts = permit.era == era
            self._end(action, permit)
            self._check(action, permit, before=before, counts=counts)
        self._check_always()

    def _end(self, action: str, permit: Permit) -> None:
        if action == "succeed":
            self.breaker.succeed(permit, self.now)
        elif action == "fail":
            self.breaker.fail(permit, self.now)
        elif action == "give up":
            self.breaker.give_up(permit, self.now)
        else:
            self.breaker.release(permit)

    def _check(self, action: str, permit: Permit, *, before: BreakerState, counts: bool) -> None:
        if not counts:
            assert self.breaker.state is before
            return
        if action == "succeed":
            self.in_a_row = 0
            assert self.breaker.state is CLOSED
        elif action == "fail":
            self.in_a_row += 1
            opens = permit.is_probe or self.in_a_row == 5
            assert self.breaker.state is (OPEN if opens else CLOSED)
            if opens:
                self._check_pause()
        elif permit.is_probe:
            assert self.breaker.state is OPEN
            if action == "give up":
                self._check_pause()
        if self.breaker.state is CLOSED and before is not CLOSED:
            self.in_a_row = 0

    def _check_pause(self) -> None:
        pause = self.breaker.probe_at - self.now
        assert 30 - 1e-6 <= pause <= 300 * 1.2 + 1e-6

    def _check_always(self) -> None:
        assert len(self.probes()) <= 1
        assert (self.breaker.state is HALF_OPEN) == (len(self.probes()) == 1)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["begin", "begin", "succeed", "fail", "fail", "give up", "release"]),
        st.sampled_from([0.0, 0.1, 5.0, 40.0, 400.0]),
        st.integers(0, 30),
    ),
    max_size=120,
)


@given(STEPS, st.lists(st.floats(0, 1), min_size=1, max_size=10))
def test_whatever_happens_it_opens_when_it_should_and_never_lets_two_probes_through(
    steps: list[tuple[str, float, int]], chances: list[float]
) -> None:
    numbers = iter(range(10**6))
    breaker = Breaker(IN_A_ROW_ONLY, now=0, chance=lambda: chances[next(numbers) % len(chances)])
    story = Story(breaker)

    for action, wait, which in steps:
        story.step(action, wait=wait, which=which)


# How many at once


@pytest.mark.parametrize("most", [1, 2, 4, 8, 16])
def test_from_one_the_limit_is_back_after_so_many_calm_calls(most: int) -> None:
    limit = Limit(most)
    limit.restart()
    calls = 0

    while limit.now < most:
        limit.note_calm()
        calls += 1

    assert calls == most * (most - 1) // 2


def test_calls_that_were_under_way_together_lower_the_limit_once() -> None:
    limit = Limit(16)

    for _ in range(16):
        limit.note_overload(began_at=0, now=1)
    once = limit.now
    limit.note_overload(began_at=1, now=2)

    assert (once, limit.now) == (8, 4)


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 100)), max_size=200), st.integers(1, 32))
def test_the_limit_stays_between_one_and_the_most(
    steps: list[tuple[bool, float]], most: int
) -> None:
    limit, now = Limit(most), 0.0

    for is_calm, seconds in steps:
        now += seconds
        if is_calm:
            limit.note_calm()
        else:
            limit.note_overload(began_at=now - seconds / 2, now=now)
        assert 1 <= limit.now <= most


def test_a_call_is_compared_with_others_of_its_kind() -> None:
    limit = Limit(4)

    answers = [
        limit.is_rising("GET /users", 0.1),
        limit.is_rising("GET /export", 4.0),
        limit.is_rising("GET /users", 0.7),
        limit.is_rising("GET /users", 1.5),
        limit.is_rising("GET /export", 5.0),
    ]

    assert answers == [False, False, False, True, False]


def test_kinds_of_calls_are_remembered_up_to_a_number() -> None:
    limit = Limit(4)

    for number in range(2000):
        limit.is_rising(f"GET /{number}", 0.1)

    assert len(limit._usual_seconds) <= 500


# Turns


@dataclass
class Watcher:
    states: list[str] = field(default_factory=list)
    causes: list[str] = field(default_factory=list)
    refusals: list[RefusalReason] = field(default_factory=list)

    def on_breaker(
        self, provider_id: str, state: BreakerState, *, cause: ProviderError | None
    ) -> None:
        self.states.append(state.value)
        if cause is not None:
            self.causes.append(cause.code)

    def on_refusal(self, provider_id: str, reason: RefusalReason) -> None:
        self.refusals.append(reason)


def a_provider(
    terms: ResilienceTerms = TERMS, *, concurrency: int = 2, watcher: Watcher | None = None
) -> Resilience:
    return Resilience(
        terms,
        concurrency=concurrency,
        provider_id="1",
        source="kolibri.example:8443",
        observer=watcher,
        chance=lambda: 0.0,
    )


async def call(
    provider: Resilience,
    seconds: float = 0.0,
    *,
    error: ProviderError | None = None,
    ends_in: float | None = None,
    counts: bool = True,
) -> None:
    """Make one call that takes so long and ends as told."""
    now = asyncio.get_running_loop().time()
    ends_at = None if ends_in is None else now + ends_in
    async with (
        asyncio.timeout_at(ends_at),
        provider.turn("GET /", ends_at=ends_at, counts=counts) as turn,
    ):
        await asyncio.sleep(seconds)
        turn.note_answer()
        tell(turn, error)
    if error is not None:
        raise error


def tell(turn: Turn, error: ProviderError | None) -> None:
    if error is None:
        turn.answered()
    else:
        turn.failed(error)


async def outcomes(calls: Iterable[asyncio.Task[None]]) -> list[str]:
    answers = await asyncio.gather(*calls, return_exceptions=True)
    return ["ok" if answer is None else type(answer).__name__ for answer in answers]


def told(story: Callable[[], Awaitable[Resilience]]) -> ProviderHealth:
    """Run a story that ends with a provider, and return the provider's health."""

    async def whole() -> ProviderHealth:
        return (await story()).health(NOW)

    return run_virtually(whole())


def test_who_came_first_goes_first_and_no_more_than_the_limit_at_once() -> None:
    async def story() -> tuple[list[int], int]:
        provider, order, most = a_provider(), [], 0

        async def one(number: int) -> None:
            nonlocal most
            async with provider.turn("GET /", ends_at=None) as turn:
                order.append(number)
                most = max(most, provider.health(NOW).calls_now)
                await asyncio.sleep(1)
                turn.answered()

        await asyncio.gather(*(one(number) for number in range(20)))
        return order, most

    assert run_virtually(story()) == (list(range(20)), 2)


def test_who_everybody_waits_for_goes_before_all_others() -> None:
    async def story() -> list[str]:
        provider, order = a_provider(concurrency=1), []

        async def one(name: str) -> None:
            async with provider.turn("GET /", ends_at=None) as turn:
                order.append(name)
                await asyncio.sleep(1)
                turn.answered()

        async def urgent(name: str) -> None:
            with ahead_of_line():
                await one(name)

        await asyncio.gather(one("first"), one("second"), urgent("login"), urgent("heartbeat"))
        return order

    assert run_virtually(story()) == ["first", "login", "heartbeat", "second"]


def test_more_than_may_wait_are_refused_at_once_but_not_who_everybody_waits_for() -> None:
    watcher = Watcher()

    async def story() -> tuple[list[str], float, ProviderHealth]:
        terms = replace(TERMS, waiting_per_call=3)
        provider = a_provider(terms, concurrency=1, watcher=watcher)
        loop = asyncio.get_running_loop()
        calls = [asyncio.create_task(call(provider, 1)) for _ in range(7)]
        await asyncio.sleep(0)
        with ahead_of_line():
            calls.append(asyncio.create_task(call(provider, 1)))
        await asyncio.sleep(0)
        health = provider.health(NOW)
        await asyncio.wait(calls[4:7])
        return await outcomes(calls), loop.time(), health

    ended, seconds, health = run_virtually(story())

    assert ended == ["ok"] * 4 + ["TooManyCallsWaiting"] * 3 + ["ok"]
    assert seconds == 5
    assert (health.calls_now, health.waiting) == (1, 4)
    assert watcher.refusals == [RefusalReason.FULL] * 3


def test_too_many_waiting_says_so() -> None:
    async def story() -> TooManyCallsWaiting:
        provider = a_provider(replace(TERMS, waiting_per_call=0), concurrency=1)
        running = asyncio.create_task(call(provider, 1))
        await asyncio.sleep(0)
        with pytest.raises(TooManyCallsWaiting) as refused:
            await call(provider)
        await running
        return refused.value

    refused = run_virtually(story())

    assert refused.message == "Too many calls wait for kolibri.example:8443 already: 0"
    assert (refused.code, refused.retry_after_seconds) == ("PROVIDER_UNAVAILABLE", 1)


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.5, 1.0, 1.5])), max_size=30))
def test_whoever_is_cancelled_whenever_gives_the_place_back(
    steps: list[tuple[bool, float]],
) -> None:
    async def story() -> tuple[int, int]:
        provider, calls = a_provider(), []
        for is_cancelled, seconds in steps:
            calls.append(asyncio.create_task(call(provider, 1)))
            await asyncio.sleep(seconds)
            if is_cancelled:
                calls[len(calls) // 2].cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await call(provider, 1)
        health = provider.health(NOW)
        return health.calls_now, health.waiting

    assert run_virtually(story()) == (0, 0)


@pytest.mark.parametrize("is_let_through_first", [True, False])
async def test_whoever_is_cancelled_in_the_moment_of_being_let_through_gives_the_place_back(
    *, is_let_through_first: bool
) -> None:
    provider, may_end = a_provider(concurrency=1), asyncio.Event()

    async def hold() -> None:
        async with provider.turn("GET /", ends_at=None) as turn:
            await may_end.wait()
            turn.answered()

    holder = asyncio.create_task(hold())
    await asyncio.sleep(0)
    waiter = asyncio.create_task(call(provider))
    await asyncio.sleep(0)

    may_end.set()
    if is_let_through_first:
        await asyncio.sleep(0)
    waiter.cancel()
    await asyncio.wait({holder, waiter})
    await call(provider)

    assert waiter.cancelled()
    assert (provider.health(NOW).calls_now, provider.health(NOW).waiting) == (0, 0)


def test_a_probe_that_came_to_nothing_is_left_to_the_next_caller() -> None:
    watcher = Watcher()

    async def story() -> Resilience:
        provider = a_provider(watcher=watcher)
        await down(provider)
        await asyncio.sleep(30)
        async with provider.turn("GET /", ends_at=None) as probe:
            probe.void()
        await call(provider)
        return provider

    assert told(story).state is CLOSED
    assert watcher.states == ["OPEN", "HALF_OPEN", "OPEN", "HALF_OPEN", "CLOSED"]


def test_a_success_of_before_is_taken_back_without_effect_on_what_is_now() -> None:
    breaker = a_breaker()
    early = breaker.admit(0)
    breaker.succeed(early, 0)
    fail(breaker, 5)

    breaker.take_back(early, 1)

    assert (breaker.state, breaker.failures_in_a_row, breaker.probe_at) == (OPEN, 5, 30)


async def test_calls_that_go_elsewhere_tell_nothing_whatever_becomes_of_them() -> None:
    provider = a_provider()

    async with provider.turn("GET /", ends_at=None, counts=False) as turn:
        turn.note_answer()
        turn.take_back(DOWN)
        turn.void()
    async with provider.turn("GET /", ends_at=None) as turn:
        turn.take_back(DOWN)
        turn.answered()

    assert provider.health(NOW).consecutive_failures == 0


def test_who_waits_is_refused_the_moment_the_provider_is_taken_for_failed() -> None:
    async def story() -> tuple[list[str], float, list[str]]:
        provider = a_provider(concurrency=6)
        hanging = asyncio.create_task(call(provider, 1000))
        failing = [asyncio.create_task(call(provider, 1, error=DOWN)) for _ in range(5)]
        await asyncio.sleep(0)
        waiting = [asyncio.create_task(call(provider, 1)) for _ in range(20)]
        elsewhere = [asyncio.create_task(call(provider, 1, counts=False)) for _ in range(2)]
        ended = await outcomes([*failing, *waiting])
        refused_at = asyncio.get_running_loop().time()
        ended_elsewhere = await outcomes(elsewhere)
        hanging.cancel()
        return ended, refused_at, ended_elsewhere

    assert run_virtually(story()) == (["ProviderUnavailable"] * 25, 1, ["ok", "ok"])


def test_a_refusal_says_that_it_failed_before_how_and_when_it_is_tried_again() -> None:
    watcher = Watcher()

    async def story() -> ProviderUnavailable:
        provider = a_provider(watcher=watcher)
        await down(provider)
        await asyncio.sleep(9.5)
        with pytest.raises(ProviderUnavailable) as refused:
            await call(provider)
        return refused.value

    refused = run_virtually(story())

    assert refused.message == (
        "The provider failed before and is tried again in 21 s:"
        " kolibri.example:8443 cut the connection"
    )
    assert (refused.retry_after_seconds, refused.provider_id) == (21, "1")
    assert (watcher.states, watcher.causes) == (["OPEN"], ["PROVIDER_UNAVAILABLE"])
    assert watcher.refusals == [RefusalReason.OPEN]


def test_while_one_finds_out_all_others_are_refused_at_once() -> None:
    watcher = Watcher()

    async def story() -> tuple[list[str], float]:
        provider = a_provider(concurrency=8, watcher=watcher)
        await down(provider)
        await asyncio.sleep(30)
        began_at = asyncio.get_running_loop().time()
        calls = [asyncio.create_task(call(provider, 2)) for _ in range(4)]
        ended = await outcomes(calls[1:])
        at_once = asyncio.get_running_loop().time() - began_at
        await calls[0]
        await call(provider)
        return ended, at_once

    assert run_virtually(story()) == (["ProviderUnavailable"] * 3, 0)
    assert watcher.states == ["OPEN", "HALF_OPEN", "CLOSED"]


def test_after_an_outage_calls_begin_again_one_at_a_time() -> None:
    async def story() -> Resilience:
        provider = a_provider(concurrency=4)
        await down(provider)
        await asyncio.sleep(30)
        await call(provider)
        return provider

    health = told(story)

    assert (health.state, health.calls_limit) == (CLOSED, 2)  # the probe has raised it by one


@pytest.mark.parametrize(
    "error",
    [
        ProviderRateLimited("Slow down"),
        ProviderTimeout("Late"),
    ],
)
def test_signs_of_overload_lower_the_limit(error: ProviderError) -> None:
    async def story() -> Resilience:
        provider = a_provider(concurrency=8)
        await outcomes([asyncio.create_task(call(provider, 1, error=error)) for _ in range(4)])
        return provider

    assert told(story).calls_limit == 4


def test_other_failures_leave_the_limit_alone() -> None:
    async def story() -> Resilience:
        provider = a_provider(concurrency=8)
        await outcomes([asyncio.create_task(call(provider, 1, error=DOWN)) for _ in range(4)])
        return provider

    assert told(story).calls_limit == 8


def test_calls_that_take_longer_and_longer_lower_the_limit() -> None:
    async def story() -> Resilience:
        provider = a_provider(concurrency=8)
        for _ in range(5):
            await call(provider, 0.2)
        await call(provider, 2)
        return provider

    assert told(story).calls_limit == 4


def test_five_slow_answers_in_a_row_open_it_though_each_was_used() -> None:
    async def story() -> Resilience:
        provider = a_provider()
        for _ in range(5):
            await call(provider, 8.1)
        return provider

    health = told(story)

    assert (health.state, health.last_error_code) == (OPEN, "PROVIDER_TIMEOUT")
    assert health.last_error == "kolibri.example:8443 did not answer within 8.1 seconds"


@pytest.mark.parametrize(
    ("ends_in", "failures"),
    [(0.9, 0), (1.1, 3)],
)
def test_a_deadline_that_gave_it_a_second_counts_as_a_failure(
    ends_in: float, failures: int
) -> None:
    async def story() -> Resilience:
        provider = a_provider()
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await call(provider, 100, ends_in=ends_in)
        return provider

    assert told(story).consecutive_failures == failures


@pytest.mark.parametrize(("seconds", "failures"), [(7.9, 0), (8.1, 3)])
def test_callers_who_leave_say_nothing_unless_it_was_slow_already(
    seconds: float, failures: int
) -> None:
    async def story() -> Resilience:
        provider = a_provider()
        for _ in range(3):
            leaving = asyncio.create_task(call(provider, 100))
            await asyncio.sleep(seconds)
            leaving.cancel()
            await asyncio.wait({leaving})
        return provider

    assert told(story).consecutive_failures == failures


def test_calls_that_go_elsewhere_neither_open_it_nor_are_refused() -> None:
    async def story() -> tuple[BreakerState, list[str]]:
        provider = a_provider()
        await outcomes(
            [asyncio.create_task(call(provider, error=DOWN, counts=False)) for _ in range(9)]
        )
        before = provider.health(NOW).state
        for _ in range(5):
            with pytest.raises(ProviderUnavailable):
                await call(provider, error=DOWN)
        return before, await outcomes([asyncio.create_task(call(provider, counts=False))])

    assert run_virtually(story()) == (CLOSED, ["ok"])


def test_others_need_not_wait_for_the_end_of_the_answer_that_says_it_is_back() -> None:
    async def story() -> tuple[list[str], float, ProviderHealth]:
        provider = a_provider()
        await down(provider)
        await asyncio.sleep(30)
        began_at = asyncio.get_running_loop().time()
        async with provider.turn("GET /export", ends_at=None) as probe:
            await asyncio.sleep(1)
            refused = await outcomes([asyncio.create_task(call(provider))])
            probe.note_answer()
            others = asyncio.create_task(call(provider))
            await asyncio.sleep(60)
            probe.answered()
        return (
            refused + await outcomes([others]),
            asyncio.get_running_loop().time() - began_at,
            provider.health(NOW),
        )

    ended, seconds, health = run_virtually(story())

    assert (ended, seconds) == (["ProviderUnavailable", "ok"], 61)
    assert (health.state, health.success_rate) == (CLOSED, 1.0)


@pytest.mark.parametrize("is_cut", [True, False])
def test_an_answer_that_breaks_off_after_all_opens_it_again(*, is_cut: bool) -> None:
    async def story() -> Resilience:
        provider = a_provider()
        await down(provider)
        await asyncio.sleep(30)
        ends_at = asyncio.get_running_loop().time() + 2
        with contextlib.suppress(TimeoutError):
            async with (
                asyncio.timeout_at(ends_at),
                provider.turn("GET /export", ends_at=ends_at) as probe,
            ):
                probe.note_answer()
                await asyncio.sleep(9 if is_cut else 1)
                probe.failed(DOWN)
        return provider

    health = told(story)

    assert (health.state, health.consecutive_failures) == (OPEN, 6)


def test_an_answer_nobody_waits_for_to_the_end_still_says_it_is_back() -> None:
    async def story() -> Resilience:
        provider = a_provider()
        await down(provider)
        await asyncio.sleep(30)
        async with provider.turn("GET /export", ends_at=None) as probe:
            probe.note_answer()
        async with provider.turn("GET /export", ends_at=None) as again:
            again.note_answer()
            again.void()
        return provider

    assert told(story).state is CLOSED


async def down(provider: Resilience) -> None:
    for _ in range(5):
        with pytest.raises(ProviderUnavailable):
            await call(provider, error=DOWN)


@pytest.mark.parametrize("ending", ["answered", "late", "cut"])
async def test_a_process_that_stood_still_blames_no_provider(ending: str) -> None:
    with moving_time() as clock:
        provider = a_provider(concurrency=8)
        loop = asyncio.get_running_loop()
        for _ in range(5):
            async with provider.turn("GET /", ends_at=loop.time() + 3) as turn:
                clock.advance(20)
                await asyncio.sleep(0)
                if ending == "answered":
                    turn.note_answer()
                    turn.answered()
                elif ending == "late":
                    turn.failed(ProviderTimeout("It stopped answering"))
        health = provider.health(NOW)

    assert (health.state, health.consecutive_failures, health.calls_limit) == (CLOSED, 0, 8)


# A provider that asks to be left alone


def limited(seconds: int | None) -> ProviderRateLimited:
    return ProviderRateLimited("Slow down", provider_id="1", retry_after_seconds=seconds)


def test_a_rest_that_ends_soon_is_waited_for_by_all() -> None:
    async def story() -> tuple[list[str], float]:
        provider = a_provider(concurrency=4)
        with pytest.raises(ProviderRateLimited):
            await call(provider, error=limited(4))
        ended = await outcomes([asyncio.create_task(call(provider)) for _ in range(6)])
        return ended, asyncio.get_running_loop().time()

    assert run_virtually(story()) == (["ok"] * 6, 4)


@pytest.mark.parametrize(("rest", "ends_in"), [(6, None), (4, 3.5), (7200, None)])
def test_a_rest_longer_than_is_worth_waiting_for_is_refused_at_once(
    rest: int, ends_in: float | None
) -> None:
    watcher = Watcher()

    async def story() -> tuple[ProviderRateLimited, float]:
        provider = a_provider(watcher=watcher)
        with pytest.raises(ProviderRateLimited):
            await call(provider, error=limited(rest))
        with pytest.raises(ProviderRateLimited) as refused:
            await call(provider, ends_in=ends_in)
        return refused.value, asyncio.get_running_loop().time()

    refused, seconds = run_virtually(story())

    rest = min(rest, 3600)
    assert (refused.retry_after_seconds, seconds) == (rest, 0)
    assert refused.message == f"kolibri.example:8443 asked to be left alone for {rest} s more"
    assert watcher.refusals == [RefusalReason.RESTING]


def test_who_stood_in_line_when_a_rest_begins_rests_as_well() -> None:
    async def story() -> tuple[list[str], float]:
        provider = a_provider(concurrency=1)
        refused = asyncio.create_task(call(provider, 1, error=limited(3)))
        waiting = [asyncio.create_task(call(provider)) for _ in range(3)]
        return await outcomes([refused, *waiting]), asyncio.get_running_loop().time()

    assert run_virtually(story()) == (["ProviderRateLimited", "ok", "ok", "ok"], 4)


def test_no_more_may_rest_than_may_wait() -> None:
    async def story() -> list[str]:
        provider = a_provider(replace(TERMS, waiting_per_call=2), concurrency=1)
        with pytest.raises(ProviderRateLimited):
            await call(provider, error=limited(3))
        return await outcomes([asyncio.create_task(call(provider)) for _ in range(4)])

    assert run_virtually(story()) == ["ok", "ok", "TooManyCallsWaiting", "TooManyCallsWaiting"]


# What is told of it


def test_health_tells_how_things_stand() -> None:
    async def story() -> tuple[ProviderHealth, ProviderHealth, ProviderHealth]:
        provider = a_provider(concurrency=4)
        unused = provider.health(NOW)
        await asyncio.sleep(10)
        await call(provider)
        for _ in range(3):
            with pytest.raises(ProviderUnavailable):
                await call(provider, error=DOWN)
        await asyncio.sleep(5)
        failing = provider.health(NOW)
        for _ in range(2):
            with pytest.raises(ProviderUnavailable):
                await call(provider, error=DOWN)
        await asyncio.sleep(12)
        return unused, failing, provider.health(NOW)

    unused, failing, failed = run_virtually(story())

    assert unused == ProviderHealth(state=CLOSED, since=NOW, calls_limit=4)
    assert unused.is_well
    assert failing == ProviderHealth(
        state=CLOSED,
        since=NOW - timedelta(seconds=15),
        consecutive_failures=3,
        last_error_code="PROVIDER_UNAVAILABLE",
        last_error="kolibri.example:8443 cut the connection",
        last_failed_at=NOW - timedelta(seconds=5),
        calls_limit=4,
        success_rate=0.25,
    )
    assert not failing.is_well
    assert failed == replace(
        failing,
        state=OPEN,
        since=NOW - timedelta(seconds=12),
        next_probe_at=NOW + timedelta(seconds=18),
        consecutive_failures=5,
        last_failed_at=NOW - timedelta(seconds=12),
        calls_limit=1,
        success_rate=1 - 5 / 6,
    )


def test_a_failure_no_call_shows_counts_while_calls_reach_the_provider() -> None:
    async def story() -> tuple[int, bool]:
        provider = a_provider()
        for _ in range(5):
            provider.note_failure(ProviderBadResponse("No session came of the login"))
        probe_in = provider.health(NOW).next_probe_at
        provider.note_failure(ProviderBadResponse("No session came of the login"))
        return provider.failures, probe_in == provider.health(NOW).next_probe_at

    assert run_virtually(story()) == (5, True)
