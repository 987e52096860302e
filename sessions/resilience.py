"""How a failing provider is spared, and callers with it: who may call, when, and how many at once.

Every call takes a ``Turn``. Before it is let through

- the *breaker* refuses it at once while the provider is taken for failed, but for one call now and
  then that finds out whether it is back;
- a provider that asked to be left alone is left alone;
- the *line* lets at most so many through at once, in order, and refuses those who would make it
  too long;
- the *limit* lowers how many that are while the provider shows signs of overload.

What became of the call is told to its turn, and that is all the four learn from. They read no
clock and do no I/O: times are handed in, in seconds of one clock that never goes back.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict, deque
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from math import ceil
from typing import Final, Protocol, Self

from sessions.errors import (
    ProviderError,
    ProviderRateLimited,
    ProviderTimeout,
    ProviderUnavailable,
    TooManyCallsWaiting,
)
from sessions.inside import Inside
from sessions.metering import note_wait, take_call

_WINDOW_PARTS: Final = 10
_LONGEST_DOUBLING: Final = 30
_DEADLINE_SLACK_SECONDS: Final = 0.01
_LOOK_SECONDS: Final = 0.125
_RISING_FACTOR: Final = 3.0
_RISING_SECONDS: Final = 0.5
_LEARNING_SHARE: Final = 0.1
_MAX_KINDS: Final = 500


class BreakerState(StrEnum):
    """Whether calls reach a provider.

    CLOSED: they do. OPEN: it failed, and they are refused. HALF_OPEN: one is under way to find
    out whether it is back, and all others are refused.
    """

    CLOSED = "CLOSED"
    OPEN = "OPEN"
    HALF_OPEN = "HALF_OPEN"


class RefusalReason(StrEnum):
    """Why a call was not made.

    OPEN: the provider failed before. RESTING: it asked to be left alone. FULL: too many wait.
    """

    OPEN = "open"
    RESTING = "resting"
    FULL = "full"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResilienceTerms:
    """When a provider is taken for failed, and how it and its callers are spared.

    Attributes:
        failures_in_a_row: So many open the breaker.
        failure_share: So large a share of the calls of the window opens it as well.
        window_seconds: How far back that share looks.
        min_calls: Of fewer calls in the window the share is not asked.
        slow_seconds: An answer that begins later than this is used, and counts as a failure.
        cut_seconds: A call that its deadline ended counts as a failure if the provider had this
            long; one cut earlier says nothing of the provider.
        pause_seconds: How long the breaker refuses calls after it opens; doubles with every
            reopening.
        longest_pause_seconds: Where the doubling ends.
        jitter: Every pause is longer by up to this share, at random.
        calm_seconds: A breaker that stayed closed for this long begins with the first pause again.
        longest_rest_seconds: A provider that asks to be left alone for longer is called after this.
        patience_seconds: A call waits for the end of such a rest if it is this near, and is
            refused otherwise.
        waiting_per_call: How many may wait for each call the platform bears at once.
    """

    failures_in_a_row: int = 5
    failure_share: float = 0.5
    window_seconds: float = 30
    min_calls: int = 20
    slow_seconds: float = 8
    cut_seconds: float = 1
    pause_seconds: float = 30
    longest_pause_seconds: float = 300
    jitter: float = 0.2
    calm_seconds: float = 60
    longest_rest_seconds: float = 3600
    patience_seconds: float = 5
    waiting_per_call: int = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderHealth:
    """How one process gets on with a provider; another process may see it otherwise.

    Attributes:
        state: Whether calls reach it.
        since: When it was taken for failed, or since when it is well again; when it was first
            used, if it never failed.
        next_probe_at: When a call is let through to find out; ``None`` unless the state is OPEN.
        consecutive_failures: Calls that failed since one went well.
        last_error_code: Of the last call that failed; ``None`` when none has.
        last_error: The same for a person.
        last_failed_at: When that was.
        calls_now: Under way.
        calls_limit: How many may be under way at once, for now.
        waiting: Calls in line.
        success_rate: Of the calls of the last half minute, between 0 and 1; ``None`` when there
            were none.
    """

    state: BreakerState
    since: datetime
    next_probe_at: datetime | None = None
    consecutive_failures: int = 0
    last_error_code: str | None = None
    last_error: str | None = None
    last_failed_at: datetime | None = None
    calls_now: int = 0
    calls_limit: int
    waiting: int = 0
    success_rate: float | None = None

    @property
    def is_well(self) -> bool:
        """Whether calls reach it, and the last one that ended went well."""
        return self.state is BreakerState.CLOSED and self.consecutive_failures == 0


class ResilienceObserver(Protocol):
    """Hears what is done about failing providers. Its methods must be quick and must not raise."""

    def on_breaker(
        self, provider_id: str, state: BreakerState, *, cause: ProviderError | None
    ) -> None:
        """Take note of a breaker's new state, and of the failure that opened it."""

    def on_refusal(self, provider_id: str, reason: RefusalReason) -> None:
        """Take note of a call that was not made."""


def ahead_of_line() -> Inside[bool]:
    """Let calls made inside go before all others: everybody waits for what comes of them."""
    return Inside(_is_urgent, True)


_is_urgent: ContextVar[bool] = ContextVar("is_urgent", default=False)


@dataclass(slots=True, kw_only=True)
class Permit:
    """One call the breaker let through.

    Attributes:
        era: Which of the breaker's states it was let through in; of an earlier one it counts
            for the share of failures only.
        is_probe: Whether it finds out if the provider is back.
        success: Which success it was, counted from 1; 0 while it is none.
        before: Failures in a row its success put an end to.
    """

    era: int
    is_probe: bool = False
    success: int = 0
    before: int = 0


class Breaker:
    """Takes a provider for failed, and finds out when it is back.

    Args:
        terms: When, and for how long.
        now: When it is made.
        chance: A number from 0 to 1, at random.
    """

    def __init__(
        self, terms: ResilienceTerms, *, now: float, chance: Callable[[], float] = random.random
    ) -> None:
        self.state = BreakerState.CLOSED
        self.since = now
        self.probe_at = now
        self.failures_in_a_row = 0
        self.window = _Window(terms.window_seconds)
        self._terms = terms
        self._chance = chance
        self.era = 0
        self._openings = 0
        self._pause = 0.0
        self._successes = 0

    def refuses(self, now: float) -> bool:
        """Whether a call would be refused now."""
        return self.state is BreakerState.HALF_OPEN or (
            self.state is BreakerState.OPEN and now < self.probe_at
        )

    def seconds_to_probe(self, now: float) -> float:
        """Return how long to wait before calling again; 0 while somebody is finding out."""
        return max(self.probe_at - now, 0.0)

    def admit(self, now: float) -> Permit:
        """Let a call through that is not refused; when the provider failed, it is the probe."""
        if self.refuses(now):
            raise ValueError("The breaker refuses calls")
        if self.state is BreakerState.CLOSED:
            return Permit(era=self.era)
        self._turn(BreakerState.HALF_OPEN)
        return Permit(era=self.era, is_probe=True)

    def succeed(self, permit: Permit, now: float) -> None:
        """Take note of a call that went well."""
        self.window.count(now, good=1)
        if permit.era != self.era:
            return
        if permit.is_probe:
            self._close(now)
            permit.era = self.era
        self._successes += 1
        permit.success, permit.before = self._successes, self.failures_in_a_row
        self.failures_in_a_row = 0

    def fail(self, permit: Permit, now: float, *, rest_seconds: float = 0.0) -> None:
        """Take note of a failure; if it opens the breaker, then for at least the rest asked for."""
        self.window.count(now, bad=1)
        if permit.era == self.era:
            self.failures_in_a_row += 1
            self._judge(permit, now, rest_seconds=rest_seconds)

    def take_back(self, permit: Permit, now: float) -> None:
        """Count a success as the failure it turned out to be, when its answer was looked at."""
        if not permit.success:
            return
        self.window.count(now, good=-1, bad=1)
        is_latest = permit.success == self._successes
        permit.success = 0
        if permit.era == self.era:
            if is_latest:
                self.failures_in_a_row += permit.before + 1
            self._judge(permit, now)

    def give_up(self, permit: Permit, now: float) -> None:
        """Take note of a call that was cut short and says nothing; a probe is not repeated soon."""
        if permit.is_probe and permit.era == self.era and not permit.success:
            self._open(now, pause=self._pause)

    def release(self, permit: Permit) -> None:
        """Take note that the call was not made; somebody else may find out."""
        if permit.is_probe and permit.era == self.era and not permit.success:
            self._turn(BreakerState.OPEN)

    def _judge(self, permit: Permit, now: float, *, rest_seconds: float = 0.0) -> None:
        terms = self._terms
        calls, share = self.window.failed(now)
        if (
            permit.is_probe
            or self.failures_in_a_row >= terms.failures_in_a_row
            or (calls >= terms.min_calls and share >= terms.failure_share)
        ):
            if self.state is BreakerState.CLOSED:
                if now - self.since >= terms.calm_seconds and not permit.is_probe:
                    self._openings = 0
                self.since = now
            doublings = min(self._openings, _LONGEST_DOUBLING)
            self._openings += 1
            self._pause = min(terms.pause_seconds * 2.0**doublings, terms.longest_pause_seconds)
            self._open(now, pause=self._pause, at_least=rest_seconds)

    def _open(self, now: float, *, pause: float, at_least: float = 0.0) -> None:
        longer = pause * (1 + self._terms.jitter * self._chance())
        self.probe_at = now + max(longer, at_least)
        self._turn(BreakerState.OPEN)

    def _close(self, now: float) -> None:
        self.since = now
        self.window.clear()
        self.window.count(now, good=1)
        self._turn(BreakerState.CLOSED)

    def _turn(self, state: BreakerState) -> None:
        self.state = state
        self.era += 1


class Limit:
    """How many calls may be under way at once.

    It is halved by a sign of overload, at most once for all calls that were under way together,
    and rises by one after as many calls in a row without one as it allows. So it is never under 1
    nor over the most, and from 1 it is back at the most after ``most * (most - 1) / 2`` such calls.

    Args:
        most: What the platform bears.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.now = most
        self._calm_calls = 0
        self._lowered_at = float("-inf")
        self._usual_seconds: dict[str, float] = {}

    def note_calm(self) -> None:
        """Take note of a call without a sign of overload."""
        self._calm_calls += 1
        if self._calm_calls >= self.now and self.now < self.most:
            self.now += 1
            self._calm_calls = 0

    def note_overload(self, *, began_at: float, now: float) -> None:
        """Take note of a sign of overload, of a call that began then."""
        self._calm_calls = 0
        if began_at >= self._lowered_at:
            self.now = max(self.now // 2, 1)
            self._lowered_at = now

    def restart(self) -> None:
        """Begin with one call at once: it is not known what the provider bears."""
        self.now = 1
        self._calm_calls = 0

    def is_rising(self, kind: str, seconds: float) -> bool:
        """Whether a call took much longer than calls of its kind usually do, by now."""
        usual = self._usual_seconds.get(kind)
        if usual is None:
            if len(self._usual_seconds) >= _MAX_KINDS:
                self._usual_seconds.clear()
            self._usual_seconds[kind] = seconds
            return False
        self._usual_seconds[kind] = usual + _LEARNING_SHARE * (seconds - usual)
        return seconds > _RISING_FACTOR * usual + _RISING_SECONDS


class Resilience:
    """All of it for one provider; it must be used on one event loop.

    Args:
        terms: When a provider is taken for failed, and so on.
        concurrency: Calls at once the platform bears.
        provider_id: Goes into errors; ``None`` for something that is no provider.
        source: Host and port, for messages.
        observer: Hears of the breaker's states and of refusals.
        chance: A number from 0 to 1, at random.
    """

    def __init__(
        self,
        terms: ResilienceTerms,
        *,
        concurrency: int,
        provider_id: str | None,
        source: str,
        observer: ResilienceObserver | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._now = asyncio.get_running_loop().time
        self._terms = terms
        self._provider_id = provider_id
        self._source = source
        self._observer = observer
        self._breaker = Breaker(terms, now=self._now(), chance=chance)
        self._limit = Limit(concurrency)
        self._lost = _LostTime(self._now)
        self._line = _Line(self._limit, max_waiting=terms.waiting_per_call * concurrency)
        self._rests_until = 0.0
        self._last_failure: ProviderError | None = None
        self._failed_at = 0.0
        self._failures = 0

    @property
    def failures(self) -> int:
        """How many failures were counted so far."""
        return self._failures

    @property
    def refuses(self) -> bool:
        """Whether a call would be refused now because the provider failed."""
        return self._breaker.refuses(self._now())

    def turn(self, kind: str, *, ends_at: float | None, counts: bool = True) -> Turn:
        """Wait for a call to be let through: ``async with resilience.turn(...) as turn:``.

        Args:
            kind: What kind of call it is, such as its path's template.
            ends_at: When the call must be done, by the loop's clock.
            counts: Whether it goes to the provider: if not, it only stands in line.
        """
        return Turn(self, kind, ends_at=ends_at, counts=counts)

    def note_failure(self, error: ProviderError) -> None:
        """Count a failure that no single call shows, while calls reach the provider."""
        if self._breaker.state is BreakerState.CLOSED:
            self._count_failure(Permit(era=self._breaker.era), error)

    def health(self, at: datetime) -> ProviderHealth:
        """Return how things stand, told in the time of ``at``, which is now."""
        now, breaker, failure = self._now(), self._breaker, self._last_failure

        def instant(moment: float) -> datetime:
            return at + timedelta(seconds=moment - now)

        calls, share = breaker.window.failed(now)
        is_open = breaker.state is BreakerState.OPEN
        return ProviderHealth(
            state=breaker.state,
            since=instant(breaker.since),
            next_probe_at=instant(max(breaker.probe_at, now)) if is_open else None,
            consecutive_failures=breaker.failures_in_a_row,
            last_error_code=None if failure is None else failure.code,
            last_error=None if failure is None else failure.message,
            last_failed_at=None if failure is None else instant(self._failed_at),
            calls_now=self._line.running,
            calls_limit=self._limit.now,
            waiting=self._line.waiting,
            success_rate=1 - share if calls else None,
        )

    # What turns ask and tell.

    async def begin(self, turn: Turn) -> None:
        """Wait until the turn's call may be made; see ``Turn``."""
        asked_at = self._now()
        try:
            turn.permit = await self._let_through(turn)
        finally:
            turn.began_at = self._now()
            note_wait(self._provider_id, turn.began_at - asked_at)
        self._lost.begin()
        turn.lost_before = self._lost.seconds

    def end(self, turn: Turn) -> None:
        """Let the next one through; of a call nothing was told of, judge why."""
        if turn.permit is not None and not turn.is_told:
            self._judge_cut_short(turn, turn.permit)
        self._lost.end()
        self._line.leave()

    def note_answer(self, turn: Turn, permit: Permit) -> None:
        """Take note that an answer begins; if it was waited for, the others need wait no longer."""
        turn.answer_seconds = self._seconds_of(turn)
        if permit.is_probe and turn.answer_seconds <= self._terms.slow_seconds:
            self._count_success(permit)

    def succeed(self, turn: Turn, permit: Permit) -> None:
        """Take note of an answer; one that came very late counts as a failure all the same."""
        seconds = turn.answer_seconds
        if seconds > self._terms.slow_seconds:
            self.fail(turn, permit, self._late(seconds))
            return
        if not permit.success:
            self._count_success(permit)
        if self._limit.is_rising(turn.kind, seconds):
            self._limit.note_overload(began_at=turn.began_at, now=self._now())
        else:
            self._limit.note_calm()

    def fail(
        self, turn: Turn, permit: Permit, error: ProviderError, *, is_overloaded: bool = False
    ) -> None:
        """Take note of a failure of the provider; lateness of our own making is none."""
        is_late = isinstance(error, ProviderTimeout)
        if is_late and self._seconds_of(turn) < (self._now() - turn.began_at) / 2:
            self.release(permit)
            return
        if is_late or is_overloaded or isinstance(error, ProviderRateLimited):
            self._limit.note_overload(began_at=turn.began_at, now=self._now())
        self._count_failure(permit, error)

    def take_back(self, permit: Permit, error: ProviderError) -> None:
        """Take note that a success was none."""
        if permit.success:
            self._count_failure(permit, error)

    def release(self, permit: Permit) -> None:
        """Take note of a call that says nothing of the provider, and was hardly made."""
        self._breaker.release(permit)
        if permit.is_probe:
            self._tell_state()

    # Before a call.

    async def _let_through(self, turn: Turn) -> Permit | None:
        """Return when the call may be made, with a place in the line."""
        is_urgent = _is_urgent.get()
        while True:
            if turn.counts:
                self._require_in_reach()
                await self._rest(turn.ends_at)
            if not self._line.enter_at_once():
                await self._stand_in_line(counts=turn.counts, is_urgent=is_urgent)
            try:
                if not turn.counts:
                    take_call(self._provider_id)
                    return None
                self._require_in_reach()
                if self._now() >= self._rests_until:
                    take_call(self._provider_id)
                    return self._admitted()
            except ProviderError:
                self._line.leave()
                raise
            self._line.leave()

    def _admitted(self) -> Permit:
        permit = self._breaker.admit(self._now())
        if permit.is_probe:
            self._tell_state()
        return permit

    async def _stand_in_line(self, *, counts: bool, is_urgent: bool) -> None:
        refusal = await self._line.enter(counts=counts, is_urgent=is_urgent)
        if refusal is RefusalReason.FULL:
            raise self._full()
        if refusal is RefusalReason.OPEN:
            raise self._out_of_reach()

    def _require_in_reach(self) -> None:
        breaker = self._breaker
        if breaker.state is not BreakerState.CLOSED and breaker.refuses(self._now()):
            raise self._out_of_reach()

    async def _rest(self, ends_at: float | None) -> None:
        while (seconds := self._rests_until - self._now()) > 0:
            if self._line.is_full:
                raise self._full()
            if seconds > self._terms.patience_seconds or (
                ends_at is not None and self._now() + seconds >= ends_at
            ):
                self._tell_refusal(RefusalReason.RESTING)
                raise ProviderRateLimited(
                    f"{self._source} asked to be left alone for {ceil(seconds)} s more",
                    provider_id=self._provider_id,
                    retry_after_seconds=ceil(seconds),
                )
            self._line.resting += 1
            try:
                await asyncio.sleep(seconds)
            finally:
                self._line.resting -= 1

    def _out_of_reach(self) -> ProviderUnavailable:
        self._tell_refusal(RefusalReason.OPEN)
        seconds = max(ceil(self._breaker.seconds_to_probe(self._now())), 1)
        problem = self._source if self._last_failure is None else self._last_failure.message
        return ProviderUnavailable(
            f"The provider failed before and is tried again in {seconds} s: {problem}",
            provider_id=self._provider_id,
            retry_after_seconds=seconds,
        )

    def _full(self) -> TooManyCallsWaiting:
        self._tell_refusal(RefusalReason.FULL)
        return TooManyCallsWaiting(
            f"Too many calls wait for {self._source} already: {self._line.waiting}",
            provider_id=self._provider_id,
            retry_after_seconds=1,
        )

    # After a call.

    def _judge_cut_short(self, turn: Turn, permit: Permit) -> None:
        now, terms = self._now(), self._terms
        seconds = self._seconds_of(turn)
        by_deadline = turn.ends_at is not None and now >= turn.ends_at - _DEADLINE_SLACK_SECONDS
        if seconds >= (terms.cut_seconds if by_deadline else terms.slow_seconds):
            self.fail(turn, permit, self._late(seconds))
            return
        self._breaker.give_up(permit, now)
        if permit.is_probe:
            self._tell_state()

    def _seconds_of(self, turn: Turn) -> float:
        """Return how long the provider has had, but for the time this process lost meanwhile."""
        return self._now() - turn.began_at - (self._lost.seconds - turn.lost_before)

    def _count_success(self, permit: Permit) -> None:
        self._breaker.succeed(permit, self._now())
        if permit.is_probe:
            self._tell_state()

    def _count_failure(self, permit: Permit, error: ProviderError) -> None:
        now, era = self._now(), self._breaker.era
        self._last_failure, self._failed_at = error, now
        self._failures += 1
        rest = 0.0
        if isinstance(error, ProviderRateLimited):
            rest = min(float(error.retry_after_seconds or 0), self._terms.longest_rest_seconds)
            self._rests_until = max(self._rests_until, now + rest)
        if permit.success:
            self._breaker.take_back(permit, now)
        else:
            self._breaker.fail(permit, now, rest_seconds=rest)
        if self._breaker.era != era:
            self._limit.restart()
            self._line.refuse()
            self._tell_state(error)

    def _late(self, seconds: float) -> ProviderTimeout:
        return ProviderTimeout(
            f"{self._source} did not answer within {seconds:.3g} seconds",
            provider_id=self._provider_id,
        )

    def _tell_state(self, cause: ProviderError | None = None) -> None:
        if self._observer is not None and self._provider_id is not None:
            self._observer.on_breaker(self._provider_id, self._breaker.state, cause=cause)

    def _tell_refusal(self, reason: RefusalReason) -> None:
        if self._observer is not None and self._provider_id is not None:
            self._observer.on_refusal(self._provider_id, reason)


class Turn:
    """One call's way to the provider; made by ``Resilience.turn``.

    What became of the call is told by one of ``answered``, ``failed`` and ``void``. A call of which
    nothing is told was cut short: by its deadline, or because nobody waits for it any more.

    Attributes:
        kind: What kind of call it is.
        ends_at: When it must be done.
        counts: Whether it goes to the provider.
        permit: The breaker's; ``None`` before it begins, and when it does not count.
        began_at: When it was let through.
        lost_before: What the process had lost of its time by then.
        answer_seconds: From when it was let through to the beginning of the answer.
        is_told: Whether it is known what became of it.
    """

    __slots__ = (
        "_resilience",
        "answer_seconds",
        "began_at",
        "counts",
        "ends_at",
        "is_told",
        "kind",
        "lost_before",
        "permit",
    )

    def __init__(
        self, resilience: Resilience, kind: str, *, ends_at: float | None, counts: bool
    ) -> None:
        self.kind = kind
        self.ends_at = ends_at
        self.counts = counts
        self.permit: Permit | None = None
        self.began_at = 0.0
        self.lost_before = 0.0
        self.answer_seconds = 0.0
        self.is_told = False
        self._resilience = resilience

    async def __aenter__(self) -> Self:
        """Wait.

        Raises:
            ProviderUnavailable: The provider failed before; or too many wait already.
            ProviderRateLimited: It asked to be left alone for longer than is worth waiting for.
            UpstreamCallsSpent: The operation has made all the calls it may.
        """
        await self._resilience.begin(self)
        return self

    async def __aexit__(self, *_error: object) -> None:
        self._resilience.end(self)

    def note_answer(self) -> None:
        """Tell that an answer begins to come that is none of a failure."""
        if self.permit is not None:
            self._resilience.note_answer(self, self.permit)

    def answered(self) -> None:
        """Tell that the provider answered as it should; ``take_back`` if that proves wrong."""
        self.is_told = True
        if self.permit is not None:
            self._resilience.succeed(self, self.permit)

    def failed(self, error: ProviderError, *, is_overloaded: bool = False) -> None:
        """Tell that the call failed, by a fault of the provider or of the way there.

        Args:
            error: How. After a timeout or a throttle the provider counts as overloaded anyway.
            is_overloaded: Whether the provider says that it is.
        """
        self.is_told = True
        if self.permit is not None:
            self._resilience.fail(self, self.permit, error, is_overloaded=is_overloaded)

    def void(self) -> None:
        """Tell that the call came to nothing by no fault of the provider."""
        self.is_told = True
        if self.permit is not None:
            self._resilience.release(self.permit)

    def take_back(self, error: ProviderError) -> None:
        """Tell that the answer is not what the platform promises after all."""
        if self.permit is not None:
            self._resilience.take_back(self.permit, error)


class _LostTime:
    """How long this process did not get round to what it had to do, while calls were under way.

    Whoever waits for a provider sees it late then, by no fault of the provider. How late a timer is
    tells it, eight times a second.

    Args:
        clock: The loop's.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._now = clock
        self._seconds = 0.0
        self._calls = 0
        self._due_at: float | None = None

    @property
    def seconds(self) -> float:
        """How much was lost so far."""
        return self._seconds + self._late_now()

    def begin(self) -> None:
        """Take note of a call that begins."""
        self._calls += 1
        if self._due_at is None:
            self._look_later()

    def end(self) -> None:
        """Take note of a call that ended."""
        self._calls -= 1

    def _look(self) -> None:
        self._seconds += self._late_now()
        self._due_at = None
        if self._calls:
            self._look_later()

    def _look_later(self) -> None:
        self._due_at = self._now() + _LOOK_SECONDS
        asyncio.get_running_loop().call_at(self._due_at, self._look)

    def _late_now(self) -> float:
        return 0.0 if self._due_at is None else max(self._now() - self._due_at, 0.0)


class _Line:
    """Calls under way and calls that wait, in order; urgent ones before all others.

    Args:
        limit: How many may be under way.
        max_waiting: How many may wait; urgent ones always may.
    """

    def __init__(self, limit: Limit, *, max_waiting: int) -> None:
        self.running = 0
        self.resting = 0
        self._limit = limit
        self._max_waiting = max_waiting
        self._urgent: _Waiting = OrderedDict()
        self._others: _Waiting = OrderedDict()

    @property
    def waiting(self) -> int:
        """How many wait, for their place or for the end of a rest."""
        return len(self._urgent) + len(self._others) + self.resting

    @property
    def is_full(self) -> bool:
        """Whether no more may wait."""
        return self.waiting >= self._max_waiting

    def enter_at_once(self) -> bool:
        """Take a place if there is one and nobody waits for it; return whether it is taken."""
        is_free = self.running < self._limit.now and not (self._urgent or self._others)
        self.running += is_free
        return is_free

    async def enter(self, *, counts: bool, is_urgent: bool) -> RefusalReason | None:
        """Wait for a place, and take it; or return why there is none."""
        if self.is_full and not is_urgent:
            return RefusalReason.FULL
        place: asyncio.Future[RefusalReason | None] = asyncio.get_running_loop().create_future()
        line = self._urgent if is_urgent else self._others
        line[place] = counts
        try:
            return await place
        except asyncio.CancelledError:
            if line.pop(place, None) is None and not place.cancelled() and place.result() is None:
                self.leave()  # let through in the same moment
            raise

    def leave(self) -> None:
        """Give a place back."""
        self.running -= 1
        while self.running < self._limit.now and (line := self._urgent or self._others):
            place, _ = line.popitem(last=False)
            if not place.done():
                self.running += 1
                place.set_result(None)

    def refuse(self) -> None:
        """Send those home who wait for the provider, which has failed."""
        for line in (self._urgent, self._others):
            for place, counts in list(line.items()):
                if counts and not place.done():
                    del line[place]
                    place.set_result(RefusalReason.OPEN)


_Waiting = OrderedDict[asyncio.Future[RefusalReason | None], bool]


class _Window:
    """Calls that went well and badly in the last seconds, in ten parts.

    Args:
        seconds: How far back it looks.
    """

    def __init__(self, seconds: float) -> None:
        self._part_seconds = seconds / _WINDOW_PARTS
        self._parts: deque[list[int]] = deque(maxlen=_WINDOW_PARTS)

    def count(self, now: float, *, good: int = 0, bad: int = 0) -> None:
        """Count calls that end now."""
        number = int(now / self._part_seconds)
        if not self._parts or self._parts[-1][0] != number:
            self._parts.append([number, 0, 0])
        self._parts[-1][1] += good
        self._parts[-1][2] += bad

    def failed(self, now: float) -> tuple[int, float]:
        """Return how many calls there were, and the share of those that went badly."""
        first = int(now / self._part_seconds) - _WINDOW_PARTS
        good = bad = 0
        for number, more_good, more_bad in self._parts:
            if number > first:
                good += more_good
                bad += more_bad
        calls = max(good, 0) + bad
        return calls, bad / calls if calls else 0.0

    def clear(self) -> None:
        """Forget all of them."""
        self._parts.clear()
