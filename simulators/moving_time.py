"""Time that does not have to be waited for: hours of sessions in seconds.

``moving_time`` moves the machine's clock forward at will, for stories with sockets and threads.
Nothing of the product is replaced, only what it reads the time from: the monotonic clock, which
asyncio's timers go by as well, and SQLite's own clock.

``run_virtually`` runs a story without sockets on an event loop whose time passes only while
nobody has anything to do.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from sqlalchemy import event
from sqlalchemy.pool import Pool

T = TypeVar("T")

_EPOCH_AS_JULIAN_DAY = 2440587.5


class MovingTime:
    """How far the clock is ahead of the real one."""

    def __init__(self) -> None:
        self.ahead_seconds = 0.0

    def advance(self, seconds: float) -> None:
        """Let time pass at once; timers that became due fire at the loop's next turn."""
        self.ahead_seconds += seconds


@contextmanager
def moving_time() -> Iterator[MovingTime]:
    """Move the clock of everything opened inside."""
    moved, real = MovingTime(), time.monotonic

    def julian_day(_now: str) -> float:
        return (time.time() + moved.ahead_seconds) / 86400.0 + _EPOCH_AS_JULIAN_DAY

    def connected(connection: Any, _record: object) -> None:
        connection.create_function("julianday", 1, julian_day)

    event.listen(Pool, "connect", connected)
    time.monotonic = lambda: real() + moved.ahead_seconds
    try:
        yield moved
    finally:
        time.monotonic = real
        event.remove(Pool, "connect", connected)


def run_virtually(story: Coroutine[Any, Any, T]) -> T:
    """Run a story to its end without waiting; its time begins at 0."""
    with asyncio.Runner(loop_factory=_VirtualTimeLoop) as runner:
        return runner.run(story)


class _Jumping(selectors.DefaultSelector):
    """Lets the time pass that it was to wait for."""

    jumped_seconds = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise RuntimeError("Everybody waits for something that will never come")
            self.jumped_seconds += timeout
        return ready


class _VirtualTimeLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.jumped_seconds
