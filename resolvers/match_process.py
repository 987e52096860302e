"""Comparing the accounts of two providers, in a process of its own where they are many.

Comparing ten thousand accounts with ten thousand takes seconds, in which requests would wait for
the interpreter. The process is started for one comparison and ends with it, with all its memory
and with the processes that help it; it is killed when its comparison is not wanted any more.

It reads frames from standard input, each msgpack behind its length: the accounts of one provider,
page by page, and an empty page; those of the other; a ``Task``; what was weighed before, if this
comparison was cut off; and an empty frame. It writes answers to standard output: how far it is,
what it has weighed meanwhile, and at last how much that was, and what it found, page by page, and
an empty page.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import struct
import sys
import time
import zlib
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Final, TypeAlias

import anyio.to_thread
import msgspec
import numpy as np

from resolvers.matching import Columns, Means, Model, Prepared, Vocabulary, Weighed, match_columns
from resolvers.matching.bulk import DiskBlocks
from resolvers.matching.candidates import PAIRS_AT_ONCE, Blocks

_LENGTH: Final = struct.Struct(">Q")
_ROWS_AT_ONCE: Final = 1000
_ROOT: Final = str(Path(__file__).parents[1])
_STARTED: Final = (
    f"import sys; sys.path.insert(0, {_ROOT!r}); from resolvers.match_process import main; main()"
)
_ENVIRONMENT: Final = {"OPENBLAS_NUM_THREADS": "1"}  # it is forked, and multiplies no matrices


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be found out about the accounts.

    Attributes:
        model: The weights.
        decided: Positions of two accounts, and whether they are one person's.
        expected_overlap: Which part of the smaller side is thought to be on the other too.
        least_score: How probable a pair is at least that is wanted.
        processes: How many may compute at once.
        folder: An empty one to work in, for accounts that do not fit in memory; ``None`` for
            others.
        pairs_at_once: About so many pairs are weighed together, where they fit in memory.
        part_seconds: How often what was weighed is told, so that it can be kept.
    """

    model: Model
    decided: Sequence[tuple[int, int, bool]]
    expected_overlap: float | None
    least_score: float
    processes: int = 1
    folder: str | None = None
    pairs_at_once: int = PAIRS_AT_ONCE
    part_seconds: float = 10.0


class Part(msgspec.Struct, frozen=True, tag=True):
    """What was weighed of the first provider's accounts up to a position, compressed."""

    end: int
    body: bytes


class Compared(msgspec.Struct, frozen=True, tag=True):
    """How many pairs were weighed altogether, those before it was cut off among them."""

    pairs: int


class Found(msgspec.Struct, frozen=True, array_like=True):
    """A pair of positions, its figures, and its evidence, encoded.

    ``bits`` is what the pair says to whoever joins the accounts of several providers.
    """

    left: int
    right: int
    score: float
    weight: float
    prior: float
    bits: float
    evidence: bytes
    competitors: tuple[tuple[int, int], ...]


Answer: TypeAlias = float | Part | Compared | list[Found]
"""How much is done, from 0 to 1; what was weighed, and how much; or pairs, the best first."""


class ComparingFailed(Exception):
    """The process that compares ended before it had compared everything."""


_task: Final = msgspec.msgpack.Decoder(Task)
_part: Final = msgspec.msgpack.Decoder(Part)
_page: Final = msgspec.msgpack.Decoder(list[bytes])
_answer: Final = msgspec.msgpack.Decoder(Answer)
_account: Final = msgspec.msgpack.Decoder(Prepared)


async def compare(frames: AsyncIterable[bytes], *, apart: bool) -> AsyncGenerator[Answer, None]:
    """Yield how a comparison gets on and what it finds.

    Args:
        frames: Without the empty one that ends them.
        apart: Whether in a process of its own; else in a thread, all answers at the end.

    Raises:
        ComparingFailed: The process ended too early, for lack of memory as a rule.
    """
    if not apart:
        read = [frame async for frame in frames]
        answers: list[Answer] = []
        await anyio.to_thread.run_sync(find, iter(read), answers.append, abandon_on_cancel=True)
        for each in answers:
            yield each
        return
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-c", _STARTED),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=_ENVIRONMENT,
            start_new_session=True,  # an interrupt from the terminal is for the gateway to handle
        )
    except OSError as error:
        raise ComparingFailed("No process to compare in could be started") from error
    try:
        await _ask(process, frames)
        async for answer in _answers(process):
            yield answer
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        raise ComparingFailed(
            "The process that compares ended, for lack of memory perhaps"
        ) from error
    finally:
        await asyncio.shield(_end(process))


def find(frames: Iterator[bytes], say: Callable[[Answer], None]) -> None:
    """Compare, here and now; ``say`` is called with the answers, pairs last.

    Raises:
        BulkMissing: A folder is given, and the extra is not installed.
        WorkerLost: One of several processes ended too early.
    """
    vocabulary = Vocabulary()
    left = Columns.of(_accounts(frames), vocabulary)
    right = Columns.of(_accounts(frames), vocabulary)
    task = _task.decode(next(frames))
    folder = None if task.folder is None else Path(task.folder)
    in_memory = partial(Blocks, pairs_at_once=task.pairs_at_once)
    means = Means(
        processes=task.processes,
        source=in_memory if folder is None else partial(DiskBlocks, folder=folder),
        folder=folder,
        done=(_unpacked(_part.decode(frame)) for frame in frames),
        keep=_Keeping(task.part_seconds, say).keep,
    )
    found = match_columns(
        (left, right),
        model=task.model,
        decided={(one, other): same for one, other, same in task.decided},
        expected_overlap=task.expected_overlap,
        progress=say,
        means=means,
    )
    say(Compared(found.compared))
    chosen = np.nonzero(found.score >= task.least_score)[0]
    pairs = zip(
        found.each_suggestion(chosen.tolist()), found.log_odds()[chosen].tolist(), strict=True
    )
    rows = (
        Found(
            left=each.left,
            right=each.right,
            score=each.score,
            weight=each.weight,
            prior=each.prior,
            bits=bits,
            evidence=msgspec.msgpack.encode(each.evidence),
            competitors=each.competitors,
        )
        for each, bits in pairs
    )
    while some := list(islice(rows, _ROWS_AT_ONCE)):
        say(some)


class _Keeping:
    """Gathers what is weighed, and tells it now and then."""

    def __init__(self, seconds: float, say: Callable[[Part], None]) -> None:
        self._seconds = seconds
        self._say = say
        self._parts: list[Weighed] = []
        self._told_at = time.monotonic()

    def keep(self, part: Weighed) -> None:
        self._parts.append(part)
        if time.monotonic() - self._told_at >= self._seconds:
            self._say(_packed(self._parts))
            self._parts.clear()
            self._told_at = time.monotonic()


def _packed(parts: Sequence[Weighed]) -> Part:
    columns = [np.concatenate([part[at] for part in parts]) for at in (1, 2, 3)]
    return Part(parts[-1].end, zlib.compress(np.stack(columns).tobytes(), 1))


def _unpacked(part: Part) -> Weighed:
    columns = np.frombuffer(zlib.decompress(part.body), np.int32).reshape(3, -1)
    return Weighed(part.end, *columns)


def _accounts(frames: Iterator[bytes]) -> Iterator[Prepared]:
    while page := _page.decode(next(frames)):
        for body in page:
            yield _account.decode(body)


async def _ask(process: asyncio.subprocess.Process, frames: AsyncIterable[bytes]) -> None:
    assert process.stdin is not None  # noqa: S101 - it is a pipe
    async for frame in frames:
        process.stdin.write(_LENGTH.pack(len(frame)))
        process.stdin.write(frame)
        await process.stdin.drain()
    process.stdin.write(_LENGTH.pack(0))
    await process.stdin.drain()


async def _answers(process: asyncio.subprocess.Process) -> AsyncGenerator[Answer, None]:
    assert process.stdout is not None  # noqa: S101 - it is a pipe
    while True:
        (length,) = _LENGTH.unpack(await process.stdout.readexactly(_LENGTH.size))
        answer = _answer.decode(await process.stdout.readexactly(length))
        if answer == []:
            return
        yield answer


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # those that help it are of its group
    if process.stdin is not None:
        process.stdin.close()
    if process.stdout is not None:
        await process.stdout.read()  # to its end, so that both pipes are closed when we return
    await process.wait()


def answer(tasks: BinaryIO, answers: BinaryIO) -> None:
    """Compare what is asked for, and write how far it is and what is found."""

    def write(part: Answer) -> None:
        body = msgspec.msgpack.encode(part)
        answers.write(_LENGTH.pack(len(body)) + body)
        answers.flush()

    find(_frames(tasks), write)
    write([])


def _frames(tasks: BinaryIO) -> Iterator[bytes]:
    while True:
        (length,) = _LENGTH.unpack(tasks.read(_LENGTH.size))
        if not length:
            return
        yield tasks.read(length)


def main() -> None:  # pragma: no cover - runs in a process of its own, as tests make it do
    """Do one comparison."""
    os.nice(5)  # requests come first
    answer(sys.stdin.buffer, sys.stdout.buffer)
