"""Admission: no more requests are begun than can be ended, and the others are told at once.

One process runs one event loop, so two things bound it, and they are counted apart:

- *Memory* bounds how many requests may be begun and not ended, most of them waiting for providers:
  ``most``, which is never passed.
- *Computing* bounds how many may be ready to run. No count says how many that is, so the loop is
  measured: as long as it has idle time, more requests may run, whatever they wait for. While it
  has none, or what is ready waits for its turn longer than it should, fewer may: more would get no
  more done, only later. So there come to be as many as just keep the loop busy. It is the least
  wait of an interval that counts, so a burst that passes changes nothing.

A request that may not run waits, for a second at most. A queue that has not been empty for as long
is no burst any more: from then on, and until nobody has been refused for a while, few may wait, so
that nobody waits for long, and who is refused is refused at once.

Nobody's flood starves anybody: a key may take a place only while it holds less than three times
the places that are free. One key alone gets three quarters of them, and each further one finds
some left, whoever came before it. Places that come free go to whoever holds the fewest.

Sources:
    Nichols and Jacobson, Controlling Queue Delay, 2012 (the least wait of an interval)
    Maurer, Fail at Scale, 2015 (a standing queue is treated otherwise than a burst)
    Choudhury and Hahne, Dynamic Queue Length Thresholds, 1998 (the share of each key)
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import structlog

_SHARE: Final = 3
_MOST_LENT: Final = 0.1
_SCHEDULING: Final = Path("/proc/thread-self/schedstat")

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionTerms:
    """How many, how long, and when the event loop counts as behind.

    Attributes:
        most: Requests running at once, at most, and as many waiting.
        most_subscriptions: Answers that are streams of events, open at once.
        fewest: May always run, however far behind the loop is; or ``most``, when that is less.
        start: May run before anything was measured, and again after a quiet time; and may wait
            in a queue that is no burst, or as many as may run, if that is more.
        patience_seconds: How long a request may wait to run.
        standing_seconds: A queue that was not empty for as long is no burst.
        target_seconds: How long something that is ready may wait for its turn.
        most_busy: Of each second the loop may be busy so much before it counts as having no time.
        idle: While it is busy less than that, twice as many may run in the next interval: they
            only wait for providers.
        interval_seconds: How often it is judged, by the least wait of that time.
        look_seconds: How often it is measured, while anything runs.
        calm_seconds: Shedding has ended when nothing was refused for as long.
    """

    most: int
    most_subscriptions: int
    fewest: int = 4
    start: int = 32
    patience_seconds: float = 1.0
    standing_seconds: float = 1.0
    target_seconds: float = 0.005
    most_busy: float = 0.95
    idle: float = 0.5
    interval_seconds: float = 0.1
    look_seconds: float = 0.02
    calm_seconds: float = 10.0


class AdmissionObserver(Protocol):
    """Hears what becomes of requests; must not raise."""

    def on_admitted(self, *, waited_seconds: float) -> None:
        """Take note of a request that may run."""

    def on_shed(self, reason: str) -> None:
        """Take note of a refusal: ``queue_full``, ``waited`` or ``subscriptions``."""

    def on_loop_wait(self, seconds: float) -> None:
        """Take note of how long something that was ready waited for its turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a process is doing at the moment; ``allowed`` is how many may run."""

    running: int
    waiting: int
    subscriptions: int
    allowed: int


class Refused(Exception):
    """There is no place for the request.

    Args:
        reason: ``queue_full``, ``waited`` or ``subscriptions``.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Admission:
    """Says who may run now, who waits, and who is refused.

    Args:
        terms: How many and how long.
        observer: Hears of every decision.
    """

    def __init__(self, terms: AdmissionTerms, observer: AdmissionObserver) -> None:
        self._terms = terms
        self._observer = observer
        self._allowed = float(min(terms.start, terms.most))
        self._running = 0
        self._waiting = 0
        self._subscriptions = 0
        self._exports = 0
        self._groups: dict[tuple[str, bool], _Group] = {}
        self._subscribers: dict[str, int] = {}
        self._pressed = False
        self._empty_at = 0.0
        self._outage = _Outage(calm_seconds=terms.calm_seconds)
        self._watch = _LoopWatch(terms, self._judge, self._observer.on_loop_wait)

    def load(self) -> Load:
        """Return what is being done at the moment."""
        return Load(
            running=self._running,
            waiting=self._waiting,
            subscriptions=self._subscriptions,
            allowed=int(self._allowed),
        )

    async def enter(self, key: str, *, is_export: bool = False) -> Slot:
        """Return a place to run, which must be released, once there is one.

        Args:
            key: Whose request it is.
            is_export: Whether it is a whole list, which may take minutes: such requests have at
                most half of the places.

        Raises:
            Refused: There is none, and waiting for one would be, or was, too long.
        """
        group = self._groups.setdefault((key, is_export), _Group(key=key, is_export=is_export))
        self._watch.go_on()
        waited_seconds = 0.0
        if group.waiting or not self._may_run(group):
            began_at = time.monotonic()
            await self._wait(group)
            waited_seconds = time.monotonic() - began_at
        else:
            self._begin(group)
        self._observer.on_admitted(waited_seconds=waited_seconds)
        return Slot(self, group)

    def release(self, group: _Group) -> None:
        """Take a place back, and give it to whoever waits."""
        self._running -= 1
        self._exports -= group.is_export
        group.running -= 1
        self._begin_waiting()
        self._forget_if_idle(group)

    def subscribe(self, key: str) -> None:
        """Count one more stream of events.

        Raises:
            Refused: There are too many, or too many of that key.
        """
        free = self._terms.most_subscriptions - self._subscriptions
        held = self._subscribers.get(key, 0)
        if held >= _SHARE * free:
            raise self._refused("subscriptions")
        self._subscriptions += 1
        self._subscribers[key] = held + 1

    def unsubscribe(self, key: str) -> None:
        """Count one stream of events less."""
        self._subscriptions -= 1
        self._subscribers[key] -= 1
        if not self._subscribers[key]:
            del self._subscribers[key]

    def _may_run(self, group: _Group) -> bool:
        if group.is_export and self._exports >= max(1, int(self._allowed) // 2):
            return False
        return group.running < _SHARE * (int(self._allowed) - self._running)

    def _begin(self, group: _Group) -> None:
        self._running += 1
        self._exports += group.is_export
        group.running += 1

    async def _wait(self, group: _Group) -> None:
        self._pressed = True
        free = self._places_to_wait() - self._waiting
        if len(group.waiting) >= _SHARE * free:
            self._forget_if_idle(group)
            raise self._refused("queue_full")
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[bool] = loop.create_future()
        patience = loop.call_later(self._terms.patience_seconds, _give_up, turn)
        group.waiting.append(turn)
        self._waiting += 1
        try:
            may_run = await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.result():
                self.release(group)
            raise
        finally:
            patience.cancel()
            self._leave_queue(group, turn)
        if not may_run:
            raise self._refused("waited")

    def _places_to_wait(self) -> int:
        now = time.monotonic()
        if not self._waiting:
            self._empty_at = now
        is_burst = not self._outage.is_on and now - self._empty_at < self._terms.standing_seconds
        if is_burst:
            return self._terms.most
        return max(int(self._allowed), min(self._terms.start, self._terms.most))

    def _leave_queue(self, group: _Group, turn: asyncio.Future[bool]) -> None:
        with suppress(ValueError):  # whoever got a place has left already
            group.waiting.remove(turn)
            self._waiting -= 1
        self._forget_if_idle(group)

    def _begin_waiting(self) -> None:
        """Let those who may run do so, whoever holds the fewest places first."""
        while self._waiting:
            able = [group for group in self._groups.values() if group.waiting]
            able = [group for group in able if self._may_run(group)]
            if not able:
                return
            group = min(able, key=_places_held)
            place = (group.key, group.is_export)
            self._groups[place] = self._groups.pop(place)  # among equals, the others come first
            turn = group.waiting.popleft()
            self._waiting -= 1
            if not turn.done():
                self._begin(group)
                turn.set_result(True)

    def _forget_if_idle(self, group: _Group) -> None:
        if not group.running and not group.waiting:
            self._groups.pop((group.key, group.is_export), None)

    def _refused(self, reason: str) -> Refused:
        self._observer.on_shed(reason)
        self._outage.note_refusal(self.load())
        return Refused(reason)

    def _judge(self, least_wait_seconds: float, busy: float) -> bool:
        """Adapt to what the loop did in an interval; return whether to go on measuring."""
        terms = self._terms
        if least_wait_seconds > terms.target_seconds or busy > terms.most_busy:
            fewest = min(terms.fewest, terms.most)
            self._allowed = max(fewest, 0.9 * min(self._allowed, self._running))
        elif self._pressed:
            growth = 2.0 if busy < terms.idle else 1.1
            self._allowed = min(terms.most, growth * self._allowed + 1)
        elif self._running < self._allowed / 2:
            start = min(terms.start, terms.most)
            self._allowed = max(start, 0.9 * self._allowed)
        self._pressed = bool(self._waiting)
        self._begin_waiting()
        self._outage.end_if_calm()
        return bool(self._running or self._waiting or self._outage.is_on)


class Slot:
    """A request's place among those that run."""

    def __init__(self, admission: Admission, group: _Group) -> None:
        self._admission = admission
        self._group = group
        self._held = True
        self._subscribed = False

    def become_subscription(self) -> None:
        """Give the place up for one among the streams of events.

        Raises:
            Refused: There are too many of those.
        """
        self._admission.subscribe(self._group.key)
        self._subscribed = True
        self._give_up_place()

    def release(self) -> None:
        """Give up whatever is held."""
        self._give_up_place()
        if self._subscribed:
            self._subscribed = False
            self._admission.unsubscribe(self._group.key)

    def _give_up_place(self) -> None:
        if self._held:
            self._held = False
            self._admission.release(self._group)


@dataclass(slots=True, kw_only=True)
class _Group:
    """The requests of one key: how many run, and the turns of those that wait, oldest first."""

    key: str
    is_export: bool
    running: int = 0
    waiting: deque[asyncio.Future[bool]] = field(default_factory=deque)


def _places_held(group: _Group) -> int:
    return group.running


def _give_up(turn: asyncio.Future[bool]) -> None:
    if not turn.done():
        turn.set_result(False)


class _Outage:
    """Logs once when shedding starts and once when it has ended."""

    def __init__(self, *, calm_seconds: float) -> None:
        self._calm_seconds = calm_seconds
        self._began_at = 0.0
        self._refused_at = 0.0
        self._count = 0

    @property
    def is_on(self) -> bool:
        return self._count > 0

    def note_refusal(self, load: Load) -> None:
        self._refused_at = time.monotonic()
        self._count += 1
        if self._count == 1:
            self._began_at = self._refused_at
            _log.warning(
                "shedding_started",
                running=load.running,
                waiting=load.waiting,
                allowed=load.allowed,
            )

    def end_if_calm(self) -> None:
        if self.is_on and time.monotonic() - self._refused_at >= self._calm_seconds:
            seconds = round(self._refused_at - self._began_at, 1)
            _log.info("shedding_ended", refused=self._count, seconds=seconds)
            self._count = 0


class _LoopWatch:
    """Measures how long the event loop takes to come round to what is ready, and how busy it is.

    Args:
        terms: How often.
        judge: Gets the least wait and the busy share of each interval; says whether to go on.
        note: Gets each single wait.
    """

    def __init__(
        self,
        terms: AdmissionTerms,
        judge: Callable[[float, float], bool],
        note: Callable[[float], None],
    ) -> None:
        self._terms = terms
        self._judge = judge
        self._note = note
        self._is_on = False
        self._least = float("inf")
        self._looks = 0
        self._began_at = 0.0
        self._computed = (0.0, 0.0)

    def go_on(self) -> None:
        """Measure, until ``judge`` says that it is enough."""
        if not self._is_on:
            self._is_on = True
            self._begin_interval()
            asyncio.get_running_loop().call_later(self._terms.look_seconds, self._look)

    def _begin_interval(self) -> None:
        self._least = float("inf")
        self._looks = 0
        self._began_at = time.monotonic()
        self._computed = _computed()

    def _look(self) -> None:
        """Begin in the middle of a round, and end in the middle of the next: one whole round."""
        loop = asyncio.get_running_loop()
        loop.call_soon(lambda: loop.call_soon(self._looked, time.monotonic()))

    def _looked(self, began_at: float) -> None:
        now = time.monotonic()
        self._note(now - began_at)
        self._least = min(self._least, now - began_at)
        self._looks += 1
        took = now - self._began_at
        if self._looks > 1 and took >= self._terms.interval_seconds:
            self._is_on = self._judge(self._least, self._busy(took))
            self._begin_interval()
        if self._is_on:
            asyncio.get_running_loop().call_later(self._terms.look_seconds, self._look)

    def _busy(self, took: float) -> float:
        """Return the share of an interval in which the loop had no time.

        Other threads take it when they hold the interpreter, which is seldom for long: what they
        compute besides is none of its business.
        """
        own, others = (now - then for now, then in zip(_computed(), self._computed, strict=True))
        return own / took + min(others / took, _MOST_LENT)


def _computed() -> tuple[float, float]:
    """Return for how long this thread has computed, and the process's other threads, in seconds.

    For this one, time counts in which others had the processor, where the system tells.

    Source:
        https://docs.kernel.org/scheduler/sched-stats.html#proc-pid-schedstat
    """
    try:
        kept_waiting = int(_SCHEDULING.read_bytes().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        kept_waiting = 0.0
    own = time.thread_time()
    return own + kept_waiting, time.process_time() - own
