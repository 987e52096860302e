"""One read for all who want the same, and what is raised when tasks side by side fail."""

import asyncio
import gc

import pytest

from sessions.errors import ProviderTimeout, ProviderUnavailable, SessionLost
from sessions.sharing import Shared, is_young, read_since, together, until_done, work_off


class Reads:
    """Counts reads, and fails as told."""

    def __init__(self, *outcomes: BaseException | None) -> None:
        self.outcomes = list(outcomes)
        self.count = 0

    async def read(self, name: str = "") -> str:
        self.count += 1
        await asyncio.sleep(0)
        outcome = self.outcomes.pop(0) if self.outcomes else None
        if outcome is not None:
            raise outcome
        return f"row {self.count}{name}"


async def test_callers_at_once_and_shortly_after_share_one_read() -> None:
    reads = Reads()
    shared = Shared(reads.read)

    found = await asyncio.gather(*(shared.get(1, 60, " of Ada") for _ in range(20)))

    assert set(found) == {"row 1 of Ada"}
    assert await shared.get(1, 60, " of Ada") == "row 1 of Ada"
    assert reads.count == 1


async def test_who_wants_nothing_older_than_now_has_it_read_anew_also_while_it_is_being_read() -> (
    None
):
    reads = Reads()
    shared = Shared(reads.read)
    await shared.get(1, 60)
    under_way = asyncio.create_task(shared.get(2, 60))
    await asyncio.sleep(0)
    now = asyncio.get_running_loop().time()

    with read_since(now + 0.001):
        live = await shared.get(2, 60)

    assert (await under_way, live) == ("row 3", "row 3")
    assert reads.count == 3
    assert not is_young(now, max_age_seconds=0)
    assert is_young(now, max_age_seconds=60)


async def test_another_grant_an_older_answer_and_a_change_are_read_anew() -> None:
    reads = Reads()
    shared = Shared(reads.read)

    found = [await shared.get(1, 60), await shared.get(2, 60), await shared.get(2, 0)]
    shared.forget()
    found.append(await shared.get(2, 60))

    assert found == ["row 1", "row 2", "row 3", "row 4"]


async def test_who_joins_a_read_that_runs_out_of_time_begins_anew() -> None:
    reads = Reads(ProviderTimeout("Late"))
    shared = Shared(reads.read)

    first, second = await asyncio.gather(
        shared.get(1, 60), shared.get(1, 60), return_exceptions=True
    )

    assert isinstance(first, ProviderTimeout)
    assert second == "row 2"


async def test_a_read_goes_on_when_the_caller_who_began_it_gives_up() -> None:
    reads = Reads()
    shared = Shared(reads.read)
    impatient = asyncio.create_task(shared.get(1, 60))
    await asyncio.sleep(0)
    impatient.cancel()

    assert await shared.get(1, 60) == "row 1"


async def test_a_failed_read_is_not_shared_afterwards() -> None:
    shared = Shared(Reads(SessionLost()).read)
    with pytest.raises(SessionLost):
        await shared.get(1, 60)

    assert await shared.get(1, 60) == "row 2"


async def test_of_several_failures_a_lost_session_is_the_one_that_counts() -> None:
    async def fail(error: Exception) -> None:
        raise error

    async def all_at_once() -> None:
        async with together() as tasks:
            tasks.create_task(fail(ProviderUnavailable("Down")))
            tasks.create_task(fail(SessionLost()))

    with pytest.raises(SessionLost):
        await all_at_once()


async def test_a_failure_keeps_its_cause() -> None:
    async def fail() -> None:
        raise ProviderUnavailable("Down") from OSError("wire")

    async def nested() -> None:
        async with together() as outer, together() as inner:
            outer.create_task(fail())
            inner.create_task(asyncio.sleep(0))

    with pytest.raises(ProviderUnavailable) as failed:
        await nested()

    assert isinstance(failed.value.__cause__, OSError)


async def test_a_failure_nobody_waited_for_is_reported_nowhere() -> None:
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, told: reported.append(told))
    gone = asyncio.Event()

    async def fails_later() -> None:
        await gone.wait()
        raise ProviderUnavailable("It is down")

    shared = Shared(fails_later)
    caller = asyncio.create_task(shared.get(1, 60))
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.wait({caller})
    gone.set()
    await asyncio.sleep(0.01)
    del caller
    shared.forget()
    gc.collect()

    assert reported == []


async def test_whoever_waits_for_a_failure_to_be_over_is_not_told_of_it() -> None:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(until_done(future))
    await asyncio.sleep(0)

    future.set_exception(ProviderUnavailable("Gone"))
    await waiting
    await until_done(future)

    assert isinstance(future.exception(), ProviderUnavailable)


@pytest.mark.parametrize("ends_meanwhile", [False, True])
async def test_a_wait_that_is_given_up_leaves_alone_what_was_waited_for(
    *, ends_meanwhile: bool
) -> None:
    future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(until_done(future))
    await asyncio.sleep(0)

    if ends_meanwhile:
        future.set_result("there")
    waiting.cancel()
    await asyncio.wait({waiting})

    assert waiting.cancelled()
    assert future.done() is ends_meanwhile
    assert not future.cancelled()


async def test_nothing_is_worked_off_at_once() -> None:
    async def work(key: str) -> str:
        raise AssertionError(key)

    found = await work_off(list[str](), work, at_once=3)

    assert found == {}
