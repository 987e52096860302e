import asyncio
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.admission import Admission, AdmissionTerms, Load, Refused, Slot

CALM = AdmissionTerms(
    most=8,
    most_subscriptions=8,
    patience_seconds=60,
    standing_seconds=60,
    target_seconds=60,  # whatever a busy machine does, the loop is never behind
)


@dataclass
class Notes:
    admitted: int = 0
    shed: Counter[str] = field(default_factory=Counter)
    waits: list[float] = field(default_factory=list)

    def on_admitted(self, *, waited_seconds: float) -> None:
        self.admitted += 1

    def on_shed(self, reason: str) -> None:
        self.shed[reason] += 1

    def on_loop_wait(self, seconds: float) -> None:
        self.waits.append(seconds)


def admission(terms: AdmissionTerms = CALM, **changes: Any) -> tuple[Admission, Notes]:
    notes = Notes()
    return Admission(replace(terms, **changes), notes), notes


async def entered(door: Admission, key: str, count: int, **how: Any) -> list[asyncio.Task[Slot]]:
    """Let so many come in at once; whoever got a place or was refused is done."""
    tasks = [asyncio.create_task(door.enter(key, **how)) for _ in range(count)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return tasks


def outcome(task: asyncio.Task[Slot]) -> str:
    if not task.done():
        return "waits"
    if task.cancelled():
        return "gone"
    error = task.exception()
    return "runs" if error is None else str(error)


async def ended(*tasks: asyncio.Task[Slot]) -> None:
    """Release what runs, and send away what waits."""
    for task in tasks:
        if outcome(task) == "runs":
            task.result().release()
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - conditions are of any kind
            await asyncio.sleep(0.005)


# Places


async def test_one_key_has_three_quarters_of_the_places_and_of_the_queue() -> None:
    door, notes = admission()

    tasks = await entered(door, "a", 20)

    assert Counter(map(outcome, tasks)) == {"runs": 6, "waits": 6, "queue_full": 8}
    assert [outcome(task) for task in tasks[:6]] == ["runs"] * 6
    assert notes.shed == {"queue_full": 8}
    assert door.load() == Load(running=6, waiting=6, subscriptions=0, allowed=8)
    await ended(*tasks)
    assert door.load() == Load(running=0, waiting=0, subscriptions=0, allowed=8)
    assert not door._groups


async def test_a_place_that_comes_free_goes_to_whoever_waited_longest() -> None:
    door, _ = admission()
    tasks = await entered(door, "a", 9)

    tasks[0].result().release()
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    assert [outcome(task) for task in tasks[6:]] == ["runs", "waits", "waits"]
    await ended(*tasks[1:])


async def test_a_key_finds_a_place_however_many_another_one_wants() -> None:
    door, _ = admission()
    flood = await entered(door, "flood", 100)

    (other,) = await entered(door, "other", 1)

    assert outcome(other) == "runs"
    await ended(other, *flood)


async def test_places_that_come_free_go_to_whoever_holds_the_fewest() -> None:
    door, _ = admission()
    flood = await entered(door, "flood", 12)
    others = await entered(door, "other", 4)
    assert Counter(map(outcome, others)) == {"runs": 2, "waits": 2}

    for task in flood[:4]:
        task.result().release()
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    assert [outcome(task) for task in others] == ["runs"] * 4
    assert Counter(map(outcome, flood[6:])) == {"runs": 1, "waits": 5}
    await ended(*flood[4:], *others)


async def test_whole_lists_have_half_of_the_places() -> None:
    door, _ = admission()

    lists = await entered(door, "a", 6, is_export=True)
    queries = await entered(door, "a", 2)

    assert Counter(map(outcome, lists)) == {"runs": 4, "waits": 2}
    assert Counter(map(outcome, queries)) == {"runs": 2}
    await ended(*lists, *queries)


async def test_even_one_place_serves_everybody_in_turn() -> None:
    door, _ = admission(most=1)
    tasks = await entered(door, "a", 1) + await entered(door, "b", 2)
    assert [outcome(task) for task in tasks] == ["runs", "waits", "queue_full"]

    tasks[0].result().release()
    slot = await tasks[1]

    slot.release()
    assert door.load() == Load(running=0, waiting=0, subscriptions=0, allowed=1)


# Waiting


async def test_who_waited_too_long_is_refused() -> None:
    door, notes = admission(patience_seconds=0.02)
    runs = await entered(door, "a", 6)

    with pytest.raises(Refused, match="waited"):
        await door.enter("a")

    assert notes.shed == {"waited": 1}
    assert door.load().waiting == 0
    await ended(*runs)


async def test_a_burst_may_wait_and_in_a_queue_that_does_not_empty_no_more_wait_than_run() -> None:
    burst, _ = admission(most=100, start=8)
    flood, _ = admission(most=100, start=8, standing_seconds=0)

    in_burst = await entered(burst, "a", 100)
    in_flood = await entered(flood, "a", 100)

    assert Counter(map(outcome, in_burst)) == {"runs": 6, "waits": 75, "queue_full": 19}
    assert Counter(map(outcome, in_flood)) == {"runs": 6, "waits": 6, "queue_full": 88}
    await ended(*in_burst, *in_flood)


async def test_who_goes_away_while_waiting_leaves_no_trace() -> None:
    door, notes = admission()
    tasks = await entered(door, "a", 8)

    await ended(*tasks[6:])

    assert door.load() == Load(running=6, waiting=0, subscriptions=0, allowed=8)
    assert notes.shed == {}
    await ended(*tasks[:6])


async def test_a_place_given_to_somebody_who_goes_away_is_given_on() -> None:
    door, _ = admission()
    tasks = await entered(door, "a", 8)

    tasks[0].result().release()
    tasks[6].cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    assert outcome(tasks[7]) == "runs"
    assert door.load().running == 6
    await ended(*tasks[1:6], tasks[7])
    assert door.load().running == 0


# Streams of events


async def test_a_stream_of_events_leaves_its_place_and_counts_among_its_own() -> None:
    door, notes = admission()
    slots = [await door.enter("a") for _ in range(6)]

    for slot in slots:
        slot.become_subscription()
    seventh = await door.enter("a")
    with pytest.raises(Refused, match="subscriptions"):
        seventh.become_subscription()
    another = await door.enter("b")
    another.become_subscription()

    assert door.load() == Load(running=1, waiting=0, subscriptions=7, allowed=8)
    for slot in (*slots, seventh, another):
        slot.release()
    assert door.load() == Load(running=0, waiting=0, subscriptions=0, allowed=8)
    assert not door._subscribers
    assert notes.shed == {"subscriptions": 1}


# The measured part


async def test_a_loop_that_is_behind_lets_fewer_run_but_never_less_than_the_fewest() -> None:
    door, _ = admission(most=500, start=32, fewest=8)
    slots = [await door.enter("a") for _ in range(20)]

    door._judge(61.0, 1.0)
    after_one = door.load().allowed
    for _ in range(50):
        door._judge(61.0, 1.0)

    assert (after_one, door.load().allowed) == (18, 8)
    for slot in slots:
        slot.release()


@pytest.mark.parametrize(
    ("busy", "first"),
    [(0.1, [17, 35, 71]), (0.49, [17, 35, 71]), (0.5, [9, 11, 13]), (0.9, [9, 11, 13])],
)
async def test_more_may_run_while_somebody_waits_and_many_more_while_the_loop_is_idle(
    busy: float, first: list[int]
) -> None:
    door, _ = admission(most=500, start=8, look_seconds=3600)  # judged here only
    tasks = await entered(door, "a", 12)
    seen = []
    for _ in range(60):
        door._judge(0.0001, busy)
        seen.append(door.load().allowed)
        tasks += await entered(door, "a", 100)

    assert seen[:3] == first
    assert seen[-1] == 500
    await ended(*tasks)


async def test_fewer_may_run_while_the_loop_has_no_time_however_many_wait() -> None:
    door, _ = admission(most=500, start=32, fewest=4)
    tasks = await entered(door, "a", 40)
    seen = []
    for _ in range(12):
        door._judge(0.0001, 0.99)
        seen.append(door.load().allowed)
        for task in [each for each in tasks if outcome(each) == "runs"][:3]:
            task.result().release()
            tasks.remove(task)

    assert seen[:2] == [21, 18]
    assert seen[-1] == 4
    await ended(*tasks)


async def test_a_quiet_time_takes_back_what_was_allowed() -> None:
    door, _ = admission(most=500, start=32)
    door._allowed = 400.0
    slot = await door.enter("a")

    for _ in range(100):
        door._judge(0.0001, 0.1)

    assert door.load().allowed == 32
    slot.release()


async def test_what_blocks_the_loop_is_measured_and_what_only_waits_is_not() -> None:
    door, notes = admission(
        most=100, start=50, fewest=2, target_seconds=0.02, interval_seconds=0.02, look_seconds=0.002
    )
    slots = [await door.enter("a") for _ in range(30)]
    await until(lambda: len(notes.waits) > 20)
    while_waiting = door.load().allowed

    busy = [asyncio.create_task(_busy(seconds=0.05)) for _ in range(2)]
    await until(lambda: door.load().allowed < 30)

    for task in busy:
        task.cancel()
    for slot in slots:
        slot.release()
    assert while_waiting >= 30


async def _busy(*, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    while True:
        ends_at = loop.time() + seconds
        while loop.time() < ends_at:
            pass
        await asyncio.sleep(0)


async def test_nothing_is_measured_when_nothing_runs() -> None:
    door, notes = admission(interval_seconds=0.01, look_seconds=0.001)
    (await door.enter("a")).release()
    await until(lambda: not door._watch._is_on)
    measured = len(notes.waits)

    await asyncio.sleep(0.05)

    assert len(notes.waits) == measured


# The log


async def test_shedding_is_logged_once_when_it_starts_and_once_when_it_ends() -> None:
    door, _ = admission(interval_seconds=0.01, look_seconds=0.001, calm_seconds=0.05)
    with structlog.testing.capture_logs() as logs:
        tasks = await entered(door, "a", 20)
        await ended(*tasks)
        await until(lambda: len(logs) == 2)

    assert [(line["event"], line["log_level"]) for line in logs] == [
        ("shedding_started", "warning"),
        ("shedding_ended", "info"),
    ]
    assert logs[1]["refused"] == 8


# Whatever happens


@settings(deadline=None, max_examples=200)
@given(
    most=st.integers(1, 12),
    steps=st.lists(st.tuples(st.sampled_from("abc-!xs"), st.integers(0, 30)), max_size=60),
)
def test_whatever_happens_no_count_is_passed_nobody_able_waits_and_all_places_come_back(
    most: int, steps: list[tuple[str, int]]
) -> None:
    async def story() -> None:
        door, _ = admission(most=most, start=12, fewest=2)
        tasks: list[asyncio.Task[Slot]] = []
        for what, number in steps:
            if what in "abc":
                tasks += await entered(door, what, 1 + number % 3, is_export=number > 25)
            elif tasks:
                chosen = tasks[number % len(tasks)]
                await _moved(what, chosen, door)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            load = door.load()
            assert load.running <= most
            assert load.waiting <= most
            groups = door._groups.values()
            assert load.running == sum(group.running for group in groups)
            assert load.waiting == sum(len(group.waiting) for group in groups)
            assert not [group for group in groups if group.waiting and door._may_run(group)]
        await ended(*tasks)
        assert (door.load().running, door.load().waiting, door._groups) == (0, 0, {})

    asyncio.run(story())


async def _moved(what: str, task: asyncio.Task[Slot], door: Admission) -> None:
    if what == "-" and outcome(task) == "runs":
        task.result().release()
    elif what == "!":
        if outcome(task) == "runs":
            task.result().release()
        task.cancel()
    elif what == "x":
        door._judge(61.0, 1.0)
    elif what == "s":
        door._judge(0.0, 0.1)


async def test_each_of_many_floods_gets_its_share_whoever_came_first() -> None:
    door, _ = admission(most=40, start=40)
    floods = {key: await entered(door, key, 60) for key in "abcd"}
    served: Counter[str] = Counter()
    running = {
        key: [task for task in tasks if outcome(task) == "runs"] for key, tasks in floods.items()
    }

    for turn, key in zip(range(400), itertools.cycle("abcd"), strict=False):
        if running[key]:
            running[key].pop(0).result().release()
            served[key] += 1
        floods[key] += await entered(door, key, 1)
        running = {
            each: [task for task in tasks if outcome(task) == "runs" and task.result()._held]
            for each, tasks in floods.items()
        }
        assert sum(map(len, running.values())) <= 40, turn

    assert min(served.values()) >= 0.9 * max(served.values()), served
    await ended(*(task for tasks in floods.values() for task in tasks))
