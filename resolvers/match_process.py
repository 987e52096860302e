"""Comparing the accounts of two providers, in a process of its own where they are many.

Comparing ten thousand accounts with ten thousand takes seconds, in which requests would wait for
the interpreter. The process is started for one comparison and ends with it, with all its memory;
it is killed when its comparison is not wanted any more. It reads a task from standard input and
writes to standard output how far it is, now and then, and at last what it found; each part is
msgpack behind its length, and an empty list the last.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, Final

import anyio.to_thread
import msgspec
import numpy as np

from resolvers.matching import Model, Prepared, match

_LENGTH: Final = struct.Struct(">Q")
_ROWS_AT_ONCE: Final = 1000
_ROOT: Final = str(Path(__file__).parents[1])
_STARTED: Final = (
    f"import sys; sys.path.insert(0, {_ROOT!r}); from resolvers.match_process import main; main()"
)


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be compared.

    Attributes:
        left: The prepared accounts of one provider, encoded.
        right: Those of the other.
        model: The weights.
        decided: Positions of two accounts, and whether they are one person's.
        expected_overlap: Which part of the smaller side is thought to be on the other too.
        least_score: How probable a pair is at least that is wanted.
    """

    left: Sequence[bytes]
    right: Sequence[bytes]
    model: Model
    decided: Sequence[tuple[int, int, bool]]
    expected_overlap: float | None
    least_score: float


class Found(msgspec.Struct, frozen=True, array_like=True):
    """A pair of positions, its figures, and its evidence, encoded."""

    left: int
    right: int
    score: float
    weight: float
    prior: float
    evidence: bytes
    competitors: tuple[tuple[int, int], ...]


class ComparingFailed(Exception):
    """The process that compares ended before it had compared everything."""


_task: Final = msgspec.msgpack.Decoder(Comparison)
_answer: Final = msgspec.msgpack.Decoder(float | list[Found])
_account: Final = msgspec.msgpack.Decoder(Prepared)


async def compare(
    task: Comparison, say: Callable[[float], None], *, apart: bool
) -> Sequence[Found]:
    """Return the pairs that may be one person's, the most probable first.

    Args:
        task: What is compared.
        say: Called with how much is done, from 0 to 1, now and then.
        apart: Whether in a process of its own; else in a thread.

    Raises:
        ComparingFailed: The process ended too early, for lack of memory as a rule.
    """
    if not apart:
        return await anyio.to_thread.run_sync(find, task, say, abandon_on_cancel=True)
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-c", _STARTED),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={},
            start_new_session=True,  # an interrupt from the terminal is for the gateway to handle
        )
    except OSError as error:
        raise ComparingFailed("No process to compare in could be started") from error
    try:
        return await _answered(process, task, say)
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        raise ComparingFailed(
            "The process that compares ended, for lack of memory perhaps"
        ) from error
    finally:
        await asyncio.shield(_end(process))


def find(task: Comparison, say: Callable[[float], None]) -> Sequence[Found]:
    """Compare, here and now."""
    found = match(
        [_account.decode(each) for each in task.left],
        [_account.decode(each) for each in task.right],
        model=task.model,
        decided={(left, right): same for left, right, same in task.decided},
        expected_overlap=task.expected_overlap,
        progress=say,
    )
    kept = np.nonzero(found.score >= task.least_score)[0].tolist()
    return [
        Found(
            left=each.left,
            right=each.right,
            score=each.score,
            weight=each.weight,
            prior=each.prior,
            evidence=msgspec.msgpack.encode(each.evidence),
            competitors=each.competitors,
        )
        for each in (found.suggestions(kept) if kept else ())
    ]


async def _answered(
    process: asyncio.subprocess.Process, task: Comparison, say: Callable[[float], None]
) -> Sequence[Found]:
    assert process.stdin is not None  # noqa: S101 - it is a pipe
    assert process.stdout is not None  # noqa: S101 - the same
    body = msgspec.msgpack.encode(task)
    process.stdin.write(_LENGTH.pack(len(body)))
    process.stdin.write(body)
    await process.stdin.drain()
    found: list[Found] = []
    while True:
        (length,) = _LENGTH.unpack(await process.stdout.readexactly(_LENGTH.size))
        answer = _answer.decode(await process.stdout.readexactly(length))
        if isinstance(answer, float):
            say(answer)
        elif answer:
            found += answer
        else:
            return found


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    if process.stdin is not None:
        process.stdin.close()
    if process.stdout is not None:
        await process.stdout.read()  # to its end, so that both pipes are closed when we return
    await process.wait()


def answer(tasks: BinaryIO, answers: BinaryIO) -> None:
    """Compare what is asked for, and write how far it is and what is found."""
    (length,) = _LENGTH.unpack(tasks.read(_LENGTH.size))

    def write(part: float | Sequence[Found]) -> None:
        body = msgspec.msgpack.encode(part)
        answers.write(_LENGTH.pack(len(body)) + body)
        answers.flush()

    found = find(_task.decode(tasks.read(length)), write)
    for start in range(0, len(found), _ROWS_AT_ONCE):  # not to be read all in one breath
        write(found[start : start + _ROWS_AT_ONCE])
    write(())


def main() -> None:  # pragma: no cover - runs in a process of its own, as tests make it do
    """Do one comparison."""
    os.nice(5)  # requests come first
    answer(sys.stdin.buffer, sys.stdout.buffer)
