"""Blocks that must end in time share one timer, and end as those of asyncio do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest
import uvloop

from sessions.timeouts import Timeouts


async def test_a_block_that_takes_too_long_is_ended() -> None:
    timeouts = Timeouts()

    with pytest.raises(TimeoutError) as ended, timeouts.within(0.01):
        await asyncio.sleep(10)

    task = asyncio.current_task()
    assert isinstance(ended.value.__cause__, asyncio.CancelledError)
    assert task is not None
    assert task.cancelling() == 0


async def test_a_block_that_ends_in_time_is_let_be() -> None:
    timeouts = Timeouts()

    with timeouts.within(0.01):
        await asyncio.sleep(0)
    await asyncio.sleep(0.03)

    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


@pytest.mark.parametrize("seconds", [0.0, -1.0])
async def test_a_block_without_time_ends_at_its_first_wait(seconds: float) -> None:
    timeouts = Timeouts()

    with pytest.raises(TimeoutError), timeouts.within(seconds):
        await asyncio.sleep(10)


async def test_each_block_ends_at_its_own_time_whoever_began_first() -> None:
    timeouts = Timeouts()
    ended = []

    async def wait(name: str, seconds: float) -> None:
        try:
            with timeouts.within(seconds):
                await asyncio.sleep(10)
        except TimeoutError:
            ended.append(name)

    async with asyncio.TaskGroup() as tasks:
        for name, seconds in (("late", 0.09), ("soon", 0.03), ("between", 0.06)):
            tasks.create_task(wait(name, seconds))

    assert ended == ["soon", "between", "late"]


async def test_of_two_blocks_the_one_whose_time_is_over_is_ended() -> None:
    timeouts = Timeouts()
    inner = False

    with pytest.raises(TimeoutError), timeouts.within(0.01):  # noqa: PT012 - two blocks
        try:
            with timeouts.within(10):
                await asyncio.sleep(20)
        except TimeoutError:
            inner = True

    assert not inner


async def test_who_is_cancelled_from_outside_is_cancelled() -> None:
    timeouts = Timeouts()

    async def wait() -> None:
        with timeouts.within(10):
            await asyncio.sleep(20)

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


async def test_who_is_cancelled_and_late_at_once_is_cancelled() -> None:
    timeouts = Timeouts()

    async def wait() -> None:
        with timeouts.within(0):
            try:
                await asyncio.sleep(20)
            finally:
                task.cancel()
                await asyncio.sleep(0)

    task = asyncio.create_task(wait())

    with pytest.raises(asyncio.CancelledError):
        await task


async def test_another_error_of_a_late_block_goes_before() -> None:
    timeouts = Timeouts()

    async def wait() -> None:
        try:
            await asyncio.sleep(20)
        finally:
            raise ValueError("what happened")

    with pytest.raises(ValueError, match="what happened"), timeouts.within(0.01):
        await wait()


async def test_the_end_of_a_block_may_be_put_off() -> None:
    timeouts = Timeouts()
    loop = asyncio.get_running_loop()
    began_at = loop.time()

    with pytest.raises(TimeoutError), timeouts.within(0.01) as block:  # noqa: PT012 - the act
        block.ends_at = began_at + 0.06
        await asyncio.sleep(10)

    assert loop.time() - began_at >= 0.05


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_blocks_end_on_either_loop(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    timeouts = Timeouts()

    async def wait(seconds: float) -> float:
        began_at = time.monotonic()
        with pytest.raises(TimeoutError), timeouts.within(seconds):
            await asyncio.sleep(10)
        return time.monotonic() - began_at - seconds

    async def wait_all() -> list[float]:
        return await asyncio.gather(*(wait(0.01 + place * 0.0037) for place in range(10)))

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        late = runner.run(wait_all())

    assert min(late) > -0.005  # one of them counts whole milliseconds


def test_the_same_timeouts_serve_one_loop_after_the_other() -> None:
    timeouts = Timeouts()

    async def leave_a_timer() -> None:
        with timeouts.within(0.05):
            await asyncio.sleep(0)

    async def wait() -> None:
        with timeouts.within(0.1):
            await asyncio.sleep(10)

    asyncio.run(leave_a_timer())
    with pytest.raises(TimeoutError):
        asyncio.run(wait())


def test_outside_of_a_task_there_is_nothing_to_end() -> None:
    loop = asyncio.new_event_loop()
    problems: list[BaseException] = []

    def begin() -> None:
        try:
            Timeouts().within(1).__enter__()
        except RuntimeError as error:
            problems.append(error)
        loop.stop()

    loop.call_soon(begin)
    loop.run_forever()
    loop.close()

    assert [str(problem) for problem in problems] == ["A timeout must be used inside a task"]
