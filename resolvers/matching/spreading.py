"""Doing parts of a computation in forked processes, which see all that is in memory for nothing."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from typing import TypeVar

_Made = TypeVar("_Made")


class WorkerLost(Exception):
    """A process that computed a part ended before it was done, for lack of memory as a rule."""


def usable_processes() -> int:
    """Return how many processes can compute at once here; 1 where none can be forked."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1


def spread(work: Callable[[int], _Made], count: int, processes: int) -> Iterator[_Made]:
    """Yield what ``work`` makes of 0, 1, 2 and so on, in order.

    Args:
        work: Called in the forked processes, each of which does every so-manieth part; one is
            never more than a part ahead of what is read here.
        count: How many parts there are.
        processes: How many compute at once; with 1, nothing is forked. More are for a process
            without threads of its own.

    Raises:
        WorkerLost: One of the processes ended too early.
    """
    processes = min(processes, count)
    if processes < 2:
        yield from map(work, range(count))
        return
    context = multiprocessing.get_context("fork")
    ends: list[Connection] = []
    workers = []
    gc.freeze()  # so that no collection writes to pages that are shared
    try:
        for number in range(processes):
            here, there = context.Pipe(duplex=False)
            ends.append(here)
            worker = context.Process(
                target=_do, args=(work, range(number, count, processes), there, [*ends])
            )
            worker.start()
            there.close()
            workers.append(worker)
        for number in range(count):
            try:
                yield ends[number % processes].recv()
            except (EOFError, OSError) as error:
                raise WorkerLost("A process that computes a part has ended") from error
    finally:
        for end in ends:
            end.close()
        for worker in workers:
            worker.kill()
            worker.join()
        gc.unfreeze()


def _do(
    work: Callable[[int], _Made],
    numbers: Iterable[int],
    to: Connection,
    others: Iterable[Connection],
) -> None:  # pragma: no cover - runs in a process of its own, as tests make it do
    for end in others:  # or a part would be written although nobody is left to read it
        end.close()
    for number in numbers:
        to.send(work(number))
