"""Doing things at once: one read for all who want the same, and tasks side by side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from math import inf
from typing import Any, Generic, ParamSpec, TypeVar

from sessions.errors import ProviderTimeout, SessionLost, UpstreamCallsSpent
from sessions.inside import Inside
from sessions.tracing import Span, current_span, link_to

K = TypeVar("K")
P = ParamSpec("P")
T = TypeVar("T")


def read_since(instant: float) -> Inside[float]:
    """Have nothing served inside that was read before an instant of the loop's clock."""
    return Inside(_earliest, instant)


def is_young(read_at: float, *, max_age_seconds: float) -> bool:
    """Whether what was read at an instant of the loop's clock may be served here and now."""
    return read_at > _now() - max_age_seconds and read_at >= _earliest.get()


class Shared(Generic[P, T]):
    """Something that callers at the same time, and shortly after, read once.

    It belongs to one session, so nobody is given what another subject may see.

    Args:
        read: Reads it; what it is called with must follow from the grant's version.
    """

    def __init__(self, read: Callable[P, Coroutine[Any, Any, T]]) -> None:
        self._read = read
        self._task: asyncio.Task[T] | None = None
        self._version = 0
        self._begun_at = 0.0
        self._span: Span | None = None

    async def get(
        self, version: int, max_age_seconds: float, /, *arguments: P.args, **more: P.kwargs
    ) -> T:
        """Return it, at most this old, and read with the grant of this version.

        A read goes on when the caller who began it gives up. It has that caller's deadline and
        counts as that caller's calls; whoever only joined it and has more left begins anew.
        """
        while True:
            task, joined = self._task, True
            if task is None or not self._serves(task, version, max_age_seconds):
                task, joined = asyncio.create_task(self._read(*arguments, **more)), False
                task.add_done_callback(_seen)
                self._task, self._version, self._begun_at = task, version, _now()
                self._span = current_span()
            elif not task.done():
                link_to(self._span)
            try:
                return await asyncio.shield(task)
            except (ProviderTimeout, UpstreamCallsSpent):
                if not joined:
                    raise

    def forget(self) -> None:
        """Let the next caller read anew: it has been changed."""
        self._task = None

    def _serves(self, task: asyncio.Task[T], version: int, max_age_seconds: float) -> bool:
        if self._version != version:
            return False
        if not task.done():
            return self._begun_at >= _earliest.get()
        failed = task.cancelled() or task.exception() is not None
        return not failed and is_young(self._begun_at, max_age_seconds=max_age_seconds)


_earliest: ContextVar[float] = ContextVar("earliest", default=-inf)


def _seen(task: asyncio.Task[Any]) -> None:
    """Take note of a failure, also when every caller has given up."""
    if not task.cancelled():
        task.exception()


@asynccontextmanager
async def together() -> AsyncIterator[asyncio.TaskGroup]:
    """Run tasks side by side; a failure ends the others and is raised by itself.

    Of several, a lost session is the one that counts, because it can be replaced.
    """
    try:
        async with asyncio.TaskGroup() as tasks:
            yield tasks
    except BaseExceptionGroup as group:
        errors = group.exceptions
        error = next((error for error in errors if isinstance(error, SessionLost)), errors[0])
        raise error from error.__cause__


async def until_done(future: asyncio.Future[Any]) -> None:
    """Wait for a future or task to end, in whatever way; it goes on when the wait is given up.

    As ``asyncio.wait`` does, at a quarter of the price.
    """
    if future.done():
        return
    bell = asyncio.get_running_loop().create_future()

    def ring(_future: asyncio.Future[Any]) -> None:
        if not bell.done():
            bell.set_result(None)

    future.add_done_callback(ring)
    try:
        await bell
    finally:
        future.remove_done_callback(ring)


async def work_off(
    keys: Iterable[K], work: Callable[[K], Awaitable[T]], *, at_once: int
) -> dict[K, T]:
    """Do the same for every key, few at a time, so that no call's time runs out in line."""
    waiting = list(keys)
    if not waiting:
        return {}
    if len(waiting) == 1:
        return {waiting[0]: await work(waiting[0])}
    left, found = iter(waiting), dict[K, T]()

    async def take_next() -> None:
        for key in left:
            found[key] = await work(key)

    async with together() as tasks:
        for _ in range(min(len(waiting), at_once)):
            tasks.create_task(take_next())
    return found


def _now() -> float:
    return asyncio.get_running_loop().time()
