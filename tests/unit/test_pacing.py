"""Calls of one provider are sent so that its leaky bucket never overflows."""

import asyncio
import itertools
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sessions.errors import ProviderRateLimited
from sessions.pacing import Bucket, Pacer, Pacers
from simulators.moving_time import run_virtually

READS = Bucket(capacity=600, leak_per_second=10, reserve=50, cost=50, concurrency=6)
GRANTS = Bucket(capacity=600, leak_per_second=10, reserve=50, cost=200, concurrency=4)


def now() -> float:
    return asyncio.get_running_loop().time()


@dataclass
class LeakyServer:
    """The bucket as Canvas's source has it: leak, add, clamp; full refuses."""

    capacity: float = 600
    level: float = 0
    touched: float = 0
    refused: int = 0
    served: list[float] = field(default_factory=list)

    def add(self, amount: float) -> float:
        leaked = self.level - 10 * (now() - self.touched)
        self.level = min(max(leaked + amount, 0.0), 800.0)
        self.touched = now()
        return self.level

    async def call(self, *, cost: float, seconds: float) -> tuple[bool, str]:
        if self.add(50) >= self.capacity:
            self.refused += 1
            return False, str(self.capacity - self.add(-50))
        await asyncio.sleep(seconds)
        self.served.append(now())
        return True, str(self.capacity - self.add(cost - 50))


async def paced(pacer: Pacer, server: LeakyServer, *, cost: float, seconds: float) -> bool:
    async with pacer.turn():
        served, remaining = await server.call(cost=cost, seconds=seconds)
        pacer.note_room(remaining)
    return served


@given(
    costs=st.lists(st.floats(min_value=0, max_value=50), min_size=1, max_size=120),
    seconds=st.floats(min_value=0.001, max_value=2),
)
@settings(deadline=None, max_examples=60)
def test_calls_within_their_reserve_never_overflow_the_bucket(
    costs: list[float], seconds: float
) -> None:
    async def story() -> LeakyServer:
        server, pacer = LeakyServer(), Pacer(READS, provider_id="1")
        await asyncio.gather(*(paced(pacer, server, cost=cost, seconds=seconds) for cost in costs))
        return server

    server = run_virtually(story())

    assert server.refused == 0
    assert len(server.served) == len(costs)


def test_cheap_calls_go_six_at_once_without_a_pause() -> None:
    async def story() -> float:
        server, pacer = LeakyServer(), Pacer(READS, provider_id="1")
        await asyncio.gather(*(paced(pacer, server, cost=0.1, seconds=0.1) for _ in range(600)))
        return now()

    assert run_virtually(story()) == pytest.approx(10.0)


def test_grants_are_paced_to_180_an_hour_and_none_is_refused() -> None:
    async def story() -> tuple[LeakyServer, float]:
        server, pacer = LeakyServer(), Pacer(GRANTS, provider_id="1")
        await asyncio.gather(*(paced(pacer, server, cost=200, seconds=0.05) for _ in range(180)))
        return server, now()

    server, ended_at = run_virtually(story())

    assert (server.refused, len(server.served)) == (0, 180)
    assert 3500 < ended_at < 3600


def test_who_stands_in_line_is_served_in_order_of_arrival() -> None:
    async def story() -> list[int]:
        server, pacer, order = LeakyServer(), Pacer(GRANTS, provider_id="1"), list[int]()

        async def come(number: int) -> None:
            async with pacer.turn():
                order.append(number)
                _, remaining = await server.call(cost=200, seconds=0.05)
                pacer.note_room(remaining)

        await asyncio.gather(*(come(number) for number in range(20)))
        return order

    assert run_virtually(story()) == list(range(20))


def test_who_would_wait_longer_than_their_patience_is_told_at_once_and_how_long() -> None:
    async def story() -> tuple[float, int | None]:
        server, pacer = LeakyServer(), Pacer(GRANTS, provider_id="1")
        waiting = [
            asyncio.create_task(paced(pacer, server, cost=200, seconds=0.05)) for _ in range(10)
        ]
        await asyncio.sleep(1)
        with pytest.raises(ProviderRateLimited) as refused:
            async with pacer.turn(patience_seconds=30):
                pass
        told_at = now()
        await asyncio.gather(*waiting)
        return told_at, refused.value.retry_after_seconds

    told_at, retry_after_seconds = run_virtually(story())

    assert told_at == 1
    assert retry_after_seconds == 144


def test_a_deadline_gives_way_as_long_as_it_can_and_no_longer() -> None:
    async def story() -> list[str]:
        server, pacer, order = LeakyServer(), Pacer(GRANTS, provider_id="1"), list[str]()

        async def come(name: str, within: float | None) -> None:
            deadline = None if within is None else now() + within
            async with pacer.turn(deadline=deadline):
                order.append(name)
                _, remaining = await server.call(cost=200, seconds=0.05)
                pacer.note_room(remaining)

        first = [asyncio.create_task(come(f"first {n}", None)) for n in range(4)]
        await asyncio.sleep(1)
        others = [
            asyncio.create_task(come("by 400 s", 400)),
            asyncio.create_task(come("by 30 s", 30)),
            *(asyncio.create_task(come(f"in line {n}", None)) for n in range(3)),
        ]
        await asyncio.gather(*first, *others)
        return order

    assert run_virtually(story())[4:] == [
        "by 30 s",
        "in line 0",
        "by 400 s",
        "in line 1",
        "in line 2",
    ]


def test_a_refusal_stops_everybody_for_longer_and_longer() -> None:
    async def story() -> list[float]:
        pacer, sent = Pacer(READS, provider_id="1"), list[float]()
        for _ in range(7):
            async with pacer.turn():
                sent.append(now())
                pacer.note_refusal()
        return [after - before for before, after in itertools.pairwise(sent)]

    gaps = run_virtually(story())

    assert all(
        least <= gap <= least * 1.25 for gap, least in zip(gaps, (1, 2, 4, 8, 16, 30), strict=True)
    )


def test_calls_under_way_together_that_are_refused_stop_everybody_once() -> None:
    async def story() -> float:
        pacer, began = Pacer(READS, provider_id="1"), now()
        async with pacer.turn(), pacer.turn(), pacer.turn():
            for _ in range(3):
                pacer.note_refusal()
        async with pacer.turn():
            return now() - began

    assert 1 <= run_virtually(story()) <= 1.25


def test_a_refusal_that_names_a_time_is_believed() -> None:
    async def story() -> float:
        pacer = Pacer(READS, provider_id="1")
        async with pacer.turn():
            pacer.note_refusal(retry_after_seconds=100)
        async with pacer.turn():
            return now()

    assert run_virtually(story()) == pytest.approx(100)


def test_whoever_gives_up_waiting_leaves_no_gap_in_the_line() -> None:
    async def story() -> tuple[int, float]:
        server, pacer = LeakyServer(), Pacer(GRANTS, provider_id="1")
        calls = [
            asyncio.create_task(paced(pacer, server, cost=200, seconds=0.05)) for _ in range(12)
        ]
        await asyncio.sleep(1)
        for call in calls[4:10]:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        return len(server.served), now()

    served, ended_at = run_virtually(story())

    assert served == 6
    assert ended_at < 60


def test_an_answer_that_says_nothing_limits_only_how_many_go_at_once() -> None:
    async def story() -> float:
        pacer = Pacer(GRANTS, provider_id="1")

        async def call() -> None:
            async with pacer.turn():
                await asyncio.sleep(1)
                pacer.note_room(None)
                pacer.note_room("soon")

        await asyncio.gather(*(call() for _ in range(40)))
        return now()

    assert run_virtually(story()) == 10


def test_idle_pacers_are_forgotten_and_busy_ones_kept() -> None:
    async def story() -> tuple[bool, bool]:
        pacers = Pacers(provider_id="1", keep=2)
        busy, idle = pacers.get("busy", READS), pacers.get("idle", READS)
        async with busy.turn():
            pacers.get("third", READS)
            return pacers.get("busy", READS) is busy, pacers.get("idle", READS) is idle

    assert run_virtually(story()) == (True, False)
