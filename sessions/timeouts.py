"""Ends what takes too long, with one timer for all instead of one for each.

``asyncio.timeout`` makes a timer and cancels it every time, and nearly always for nothing. Here
each block notes by when it must end, and one timer, set for the first that was ever due, looks who
is late. So a block costs a third of what it does there.
"""

from __future__ import annotations

import asyncio
from contextvars import Context
from math import inf
from types import TracebackType
from typing import Any, Final, Self

_SLACK_SECONDS: Final = 0.001  # some loops count whole milliseconds, and round


class Timeouts:
    """Blocks that must end in time, all on the event loop that runs."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._looks_at = inf
        self._blocks: set[Timeout] = set()

    def within(self, seconds: float) -> Timeout:
        """End a block after so many seconds: ``with timeouts.within(2) as block:``.

        As with ``asyncio.timeout``, what the block waits for is cancelled then, and
        ``TimeoutError`` raised in its place; up to a millisecond early. To be entered once, by a
        task.
        """
        return Timeout(self, seconds)

    def begin(self, block: Timeout, loop: asyncio.AbstractEventLoop) -> None:
        """Watch over a block, which is asked to do it."""
        if loop is not self._loop:  # the last one has ended, and its timer with it
            self._loop, self._timer, self._looks_at = loop, None, inf
            self._blocks.clear()
        self._blocks.add(block)
        if block.ends_at < self._looks_at:
            self._look_at(block.ends_at, loop)

    def end(self, block: Timeout) -> None:
        """Watch over a block no longer; the timer is left for those to come."""
        self._blocks.discard(block)

    def _look_at(self, ends_at: float, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._looks_at = ends_at
        # A context of its own: it would hold on to what one caller had in its own.
        self._timer = loop.call_at(ends_at, self._look, loop, context=Context())

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer, self._looks_at = None, inf
        now = loop.time() + _SLACK_SECONDS
        for block in [block for block in self._blocks if block.ends_at <= now]:
            self._blocks.discard(block)
            block.expire()
        if self._blocks:
            self._look_at(min(block.ends_at for block in self._blocks), loop)


class Timeout:
    """One block; made by ``Timeouts.within``.

    Attributes:
        ends_at: By when it must end, by the loop's clock; may be put off while it runs.
    """

    __slots__ = ("_cancelling", "_is_late", "_seconds", "_task", "_timeouts", "ends_at")

    def __init__(self, timeouts: Timeouts, seconds: float) -> None:
        self.ends_at = inf
        self._timeouts = timeouts
        self._seconds = seconds
        self._is_late = False
        self._cancelling = 0
        self._task: asyncio.Task[Any]

    def __enter__(self) -> Self:
        """Begin.

        Raises:
            RuntimeError: It is not inside a task, so nothing could be cancelled.
        """
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        if task is None:
            raise RuntimeError("A timeout must be used inside a task")
        self._task = task
        self._cancelling = task.cancelling()
        self.ends_at = loop.time() + self._seconds
        self._timeouts.begin(self, loop)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        if not self._is_late:
            self._timeouts.end(self)
        elif self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def expire(self) -> None:
        """Cancel what the block waits for; it is late."""
        self._is_late = True
        self._task.cancel()
