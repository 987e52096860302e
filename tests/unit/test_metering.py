"""What an operation costs at providers, counted at the wire, and where its budget ends it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx
import pytest

from sessions.addresses import AddressPolicy
from sessions.errors import ProviderRateLimited, ProviderUnavailable, UpstreamCallsSpent
from sessions.http import HttpLimits, ProviderHttp
from sessions.metering import (
    Meter,
    ProviderUsage,
    current_meter,
    metering,
    uncapped,
    unmetered,
)
from sessions.pacing import Bucket, Pacer
from sessions.sharing import Shared
from simulators.moving_time import run_virtually

Answer = Callable[[httpx.Request], httpx.Response]


class Provider(httpx.AsyncBaseTransport):
    """Answers after a while, and counts what reaches it."""

    def __init__(self, answer: Answer | None = None, *, seconds: float = 0.0) -> None:
        self.reached = 0
        self._answer = answer
        self._seconds = seconds

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.reached += 1
        await asyncio.sleep(self._seconds)
        return (
            httpx.Response(200, content=b"[1]") if self._answer is None else self._answer(request)
        )


@asynccontextmanager
async def http_to(
    provider: Provider, *, provider_id: str | None = "1", limits: HttpLimits | None = None
) -> AsyncIterator[ProviderHttp]:
    async with ProviderHttp.open(
        f"https://{provider_id or 'product'}.example",
        provider_id=provider_id,
        policy=AddressPolicy(),
        limits=limits or HttpLimits(backoff_seconds=0),
        transport=provider,
    ) as http:
        yield http


# What is counted


def test_calls_time_and_bytes_are_counted_for_each_provider() -> None:
    async def story() -> Meter:
        one, two = Provider(seconds=1), Provider(lambda _: httpx.Response(200, content=b"four"))
        async with http_to(one) as first, http_to(two, provider_id="2") as second:
            with metering(Meter()) as meter:
                await first.request("GET", "/")
                await first.request("GET", "/")
                await second.request("POST", "/")
            await first.request("GET", "/")
        return meter

    meter = run_virtually(story())

    assert meter.calls == 3
    assert dict(meter.usage_by_provider) == {
        "1": ProviderUsage(calls=2, upstream_seconds=2.0, body_bytes=6),
        "2": ProviderUsage(calls=1, upstream_seconds=0.0, body_bytes=4),
    }


async def test_every_retry_is_a_call() -> None:
    provider = Provider(lambda _: httpx.Response(503))

    async with http_to(provider) as http:
        with metering(Meter()) as meter, pytest.raises(ProviderUnavailable):
            await http.request("GET", "/")

    assert meter.calls == provider.reached == 3


def test_tasks_of_one_operation_share_its_meter_and_their_waits_add_up() -> None:
    async def story() -> Meter:
        limits = HttpLimits(concurrency=2)
        async with http_to(Provider(seconds=1), limits=limits) as http:
            with metering(Meter()) as meter:
                await asyncio.gather(*(http.request("GET", "/") for _ in range(6)))
        return meter

    usage = run_virtually(story()).usage_by_provider["1"]

    assert usage.calls == 6
    assert usage.waited_seconds == pytest.approx(0 + 0 + 1 + 1 + 2 + 2)


def test_waiting_for_a_pacer_is_waiting_in_line_also_for_who_gives_up() -> None:
    async def story() -> Meter:
        pacer = Pacer(
            Bucket(capacity=100, leak_per_second=1, reserve=50, cost=1, concurrency=1),
            provider_id="1",
        )
        with metering(Meter()) as meter:
            async with pacer.turn():
                pacer.note_room("40")
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(3), pacer.turn():
                        pass
            with pytest.raises(ProviderRateLimited):
                async with pacer.turn(patience_seconds=1):
                    pass
            async with pacer.turn():
                pass
        return meter

    usage = run_virtually(story()).usage_by_provider["1"]

    assert usage.calls == 0
    assert usage.waited_seconds == pytest.approx(10, abs=0.1)


async def test_calls_to_nobody_in_particular_are_not_counted() -> None:
    async with http_to(Provider(), provider_id=None) as http:
        with metering(Meter(max_calls=0)) as meter:
            await http.request("POST", "/callback")

    assert (meter.calls, dict(meter.usage_by_provider)) == (0, {})


def test_what_a_cache_does_is_counted_beside_the_calls() -> None:
    meter = Meter()

    meter.note_hit("1")
    meter.note_hit("1")
    meter.note_stale("2")
    meter.note_shared("2")

    assert dict(meter.usage_by_provider) == {
        "1": ProviderUsage(cache_hits=2),
        "2": ProviderUsage(cache_stale=1, shared=1),
    }


# The budget


async def test_a_spent_budget_ends_calls_before_they_are_sent() -> None:
    provider = Provider()

    async with http_to(provider) as http:
        with metering(Meter(max_calls=3)) as meter:
            answers = await asyncio.gather(
                *(http.request("GET", "/") for _ in range(5)), return_exceptions=True
            )

    spent = [answer for answer in answers if isinstance(answer, UpstreamCallsSpent)]
    assert (len(spent), meter.calls, provider.reached) == (2, 3, 3)
    assert (spent[0].code, spent[0].retryable, spent[0].provider_id) == (
        "REQUEST_LIMIT_EXCEEDED",
        False,
        "1",
    )
    assert spent[0].message == (
        "One operation may make 3 calls to providers, and this one needs more: ask for smaller"
        " pages, for fewer fields inside lists, or for fewer providers at once"
    )


async def test_retries_are_taken_from_the_budget_too() -> None:
    provider = Provider(lambda _: httpx.Response(503))

    async with http_to(provider) as http:
        with metering(Meter(max_calls=2)), pytest.raises(UpstreamCallsSpent):
            await http.request("GET", "/")

    assert provider.reached == 2


async def test_a_file_on_another_host_is_taken_from_the_budget_too() -> None:
    provider = Provider(lambda _: httpx.Response(302, headers={"Location": "/next"}))

    async with http_to(provider) as http:
        with metering(Meter(max_calls=2)), pytest.raises(UpstreamCallsSpent):
            await http.download("https://images.example/x", max_body_bytes=10)

    assert provider.reached == 2


async def test_one_operations_spent_budget_is_nobody_elses() -> None:
    async with http_to(Provider()) as http:
        with metering(Meter(max_calls=0)), pytest.raises(UpstreamCallsSpent):
            await http.request("GET", "/")
        with metering(Meter(max_calls=1)) as other:
            await http.request("GET", "/")
        await http.request("GET", "/")

    assert other.calls == 1


async def test_who_joins_a_read_of_a_spent_operation_reads_anew() -> None:
    async with http_to(Provider()) as http:

        async def read() -> bytes:
            return (await http.request("GET", "/")).body

        shared = Shared(read)

        async def ask(max_calls: int) -> bytes:
            with metering(Meter(max_calls=max_calls)):
                return await shared.get(1, 60)

        poor, rich = await asyncio.gather(ask(0), ask(1), return_exceptions=True)

    assert isinstance(poor, UpstreamCallsSpent)
    assert rich == b"[1]"


async def test_what_must_not_be_left_half_done_is_counted_and_not_ended() -> None:
    async with http_to(Provider()) as http:
        with metering(Meter(max_calls=1)) as meter:
            with uncapped():
                for _ in range(3):
                    await http.request("POST", "/")
            with pytest.raises(UpstreamCallsSpent):
                await http.request("GET", "/")

    assert meter.calls == 3


async def test_without_a_meter_nothing_is_counted_and_nothing_ends() -> None:
    with uncapped():
        assert current_meter() is None
    with metering(Meter()) as meter, unmetered():
        assert current_meter() is None

    assert meter.calls == 0
