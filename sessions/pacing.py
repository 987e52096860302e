"""Pacing: calls that a provider counts against one leaky bucket, sent so that it never overflows.

Some platforms refuse whoever calls too fast, by a bucket for each token: every call pours in what
it costs, the bucket leaks at a fixed rate, and a full one refuses everything. Such a platform says
in each answer how much room is left. A pacer believes that, reckons the leak since, and sends the
next call only when it will fit; all others wait in line. Where a provider says nothing, only the
number of calls at once is limited.

All durations are by the event loop's clock.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from dataclasses import dataclass, field
from math import ceil, inf
from typing import Final, Self

from sessions.errors import ProviderRateLimited
from sessions.metering import note_wait

GRANTS: Final = "grants"
"""Name of the pacer that a provider's logins, exchanges and renewals stand in line for."""

_TURNS_IN_RESERVE: Final = 15  # for deadlines that come later and are nearer
_FIRST_PAUSE_SECONDS: Final = 1.0
_LONGEST_PAUSE_SECONDS: Final = 30.0
_ROUNDING: Final = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """How a provider limits the rate of calls.

    Attributes:
        capacity: What fits in before calls are refused.
        leak_per_second: How fast it empties.
        reserve: What a call needs free when it arrives.
        cost: What a call may cost in the end, which is reckoned with until its answer tells.
        concurrency: Calls at once, however empty the bucket is.
    """

    capacity: float
    leak_per_second: float
    reserve: float
    cost: float
    concurrency: int


@dataclass(order=True, slots=True)
class _Waiter:
    """Somebody in line; those with a deadline by it, the others in order of arrival."""

    place: float
    number: int
    ready: asyncio.Future[None] = field(compare=False)


class Pacer:
    """Lets calls through one by one, each when it fits.

    Args:
        bucket: How the provider counts.
        provider_id: Goes into errors.
    """

    def __init__(self, bucket: Bucket, *, provider_id: str | None) -> None:
        self.provider_id = provider_id
        self._bucket = bucket
        self._running = 0
        self._free = bucket.capacity
        self._free_at = 0.0
        self._told = False
        self._paused_until = -inf
        self._refusals = 0
        self._numbers = 0
        self._waiting = 0
        self._waiting_by_deadline = 0
        self._line: list[_Waiter] = []
        self._deadlines: list[_Waiter] = []
        self._timer: asyncio.TimerHandle | None = None

    @property
    def idle(self) -> bool:
        """Whether nobody is let through or waiting, and nothing of it need be remembered."""
        empty_again = self._free_now(_now()) >= self._bucket.capacity
        return not (self._running or self._waiting) and empty_again and _now() >= self._paused_until

    def expected_wait(self, *, with_deadline: bool = False) -> float:
        """Return how long somebody who joins the line now would wait, in seconds, at most.

        Whoever has a deadline goes before all who have none, if need be.
        """
        if not self._told and _now() >= self._paused_until:
            return 0.0
        room = self._free_now(_now()) - self._running * self._bucket.cost
        ahead = self._waiting_by_deadline if with_deadline else self._waiting
        missing = self._bucket.reserve + ahead * self._bucket.cost - room
        pause = max(0.0, self._paused_until - _now())
        return max(pause, missing / self._bucket.leak_per_second, 0.0)

    def turn(self, *, patience_seconds: float = inf, deadline: float | None = None) -> Turn:
        """Wait in line for a call: ``async with pacer.turn() as turn:``.

        Args:
            patience_seconds: Who would have to wait longer is told so at once.
            deadline: The loop's time by which the call must be made. Whoever has one goes behind
                those who have none as long as that can wait.
        """
        return Turn(self, patience_seconds=patience_seconds, deadline=deadline)

    async def _enter(self, *, patience_seconds: float, deadline: float | None) -> None:
        wait_seconds = self.expected_wait(with_deadline=deadline is not None)
        if wait_seconds > patience_seconds:
            raise ProviderRateLimited(
                "The provider limits the rate of calls, and this one could not be made in time",
                provider_id=self.provider_id,
                retry_after_seconds=ceil(wait_seconds),
            )
        self._numbers += 1
        waiter = _Waiter(
            place=deadline or 0.0,
            number=self._numbers,
            ready=asyncio.get_running_loop().create_future(),
        )
        heapq.heappush(self._line if deadline is None else self._deadlines, waiter)
        self._count(waiter, 1)
        self._let_through()
        try:
            await waiter.ready
        except asyncio.CancelledError:
            if waiter.ready.cancelled():
                self._count(waiter, -1)
                self._let_through()
            else:
                self._leave()  # let through in the same moment
            raise

    def _count(self, waiter: _Waiter, change: int) -> None:
        self._waiting += change
        self._waiting_by_deadline += change if waiter.place else 0

    def _leave(self) -> None:
        self._running -= 1
        self._let_through()

    def note_room(self, remaining: str | None) -> None:
        """Take note of what the answer to a call let through says is left, if it is a number.

        The reserves of our other calls under way may be counted in it, or those calls may not
        have arrived yet: they are reckoned with a second time, to be safe.
        """
        try:
            room = float(remaining or "")
        except ValueError:
            return
        self._free, self._free_at = room, _now()
        self._told = True
        self._refusals = 0

    def note_refusal(self, retry_after_seconds: float | None = None) -> float:
        """Take note that a call was refused for its rate; return how long nothing is sent.

        Calls that were under way together and are refused one after the other count once.
        """
        if _now() >= self._paused_until or not self._refusals:
            self._refusals += 1
        pause = min(_FIRST_PAUSE_SECONDS * 2.0 ** (self._refusals - 1), _LONGEST_PAUSE_SECONDS)
        jitter = random.uniform(1, 1.25)  # noqa: S311 - spreads load only
        pause = max(pause * jitter, retry_after_seconds or 0.0)
        self._paused_until = max(self._paused_until, _now() + pause)
        self._free, self._free_at = 0.0, _now()
        return pause

    def _free_now(self, now: float) -> float:
        leaked = (now - self._free_at) * self._bucket.leak_per_second
        return min(self._free + leaked, max(self._bucket.capacity, self._free))

    def _seconds_to_room(self, now: float) -> float:
        """Return how long until one more call fits; infinite while only an answer can tell."""
        if self._running >= self._bucket.concurrency:
            return inf
        pause = self._paused_until - now
        if not self._told:
            return max(pause, 0.0)
        missing = self._bucket.reserve - (self._free_now(now) - self._running * self._bucket.cost)
        seconds = 0.0 if missing < 0 else missing / self._bucket.leak_per_second + _ROUNDING
        return max(pause, seconds, 0.0)

    def _let_through(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while (waiter := self._next(_now())) is not None:
            seconds = self._seconds_to_room(_now())
            if seconds > 0:
                heapq.heappush(self._line if waiter.place == 0 else self._deadlines, waiter)
                if seconds < inf:
                    loop = asyncio.get_running_loop()
                    self._timer = loop.call_later(seconds, self._let_through)
                return
            self._running += 1
            self._count(waiter, -1)
            waiter.ready.set_result(None)

    def _next(self, now: float) -> _Waiter | None:
        """Take out whoever is next: in line, unless somebody's deadline could not wait for that."""
        for heap in (self._line, self._deadlines):
            while heap and heap[0].ready.done():
                heapq.heappop(heap)
        if not self._deadlines or (self._line and self._can_wait(now)):
            return heapq.heappop(self._line) if self._line else None
        return heapq.heappop(self._deadlines)

    def _can_wait(self, now: float) -> bool:
        """Whether everybody's deadline is kept with one more before them, and some more to come."""
        seconds_each = self._bucket.cost / self._bucket.leak_per_second
        living = sorted(each.place for each in self._deadlines if not each.ready.done())
        return all(
            now + (turn + 2 + _TURNS_IN_RESERVE) * seconds_each <= at
            for turn, at in enumerate(living)
        )


class Turn:
    """One call's place in line; made by ``Pacer.turn``."""

    __slots__ = ("_deadline", "_pacer", "_patience_seconds")

    def __init__(self, pacer: Pacer, *, patience_seconds: float, deadline: float | None) -> None:
        self._pacer = pacer
        self._patience_seconds = patience_seconds
        self._deadline = deadline

    async def __aenter__(self) -> Self:
        """Wait.

        Raises:
            ProviderRateLimited: It would take longer than the patience; says how long.
        """
        began_at = _now()
        try:
            await self._pacer._enter(  # noqa: SLF001 - one thing in two classes
                patience_seconds=self._patience_seconds, deadline=self._deadline
            )
        finally:
            note_wait(self._pacer.provider_id, _now() - began_at)
        return self

    async def __aexit__(self, *_error: object) -> None:
        self._pacer._leave()  # noqa: SLF001 - the same


class Pacers:
    """One provider's pacers by name, such as the subject's; idle ones are forgotten."""

    def __init__(self, *, provider_id: str | None, keep: int = 1000) -> None:
        self._provider_id = provider_id
        self._keep = keep
        self._pacers: dict[str, Pacer] = {}

    def get(self, name: str, bucket: Bucket) -> Pacer:
        """Return the pacer of that name, made now if need be.

        Use it at once: one that is idle may be forgotten at the next call.
        """
        pacer = self._pacers.get(name)
        if pacer is None:
            if len(self._pacers) >= self._keep:
                self._pacers = {
                    known: each for known, each in self._pacers.items() if not each.idle
                }
            pacer = self._pacers[name] = Pacer(bucket, provider_id=self._provider_id)
        return pacer


def _now() -> float:
    return asyncio.get_running_loop().time()
