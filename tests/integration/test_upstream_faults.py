"""Providers whose answers are spoiled in two dozen ways, and what callers see of it."""

from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import structlog
from fault_run import Held, fault_run, settled

from simulators.canvas.app import running as running_canvas
from simulators.canvas.population import build_population as canvas_population
from simulators.canvas.state import Canvas
from simulators.faulty import FAULTS, RARE, FaultyUpstream
from simulators.kolibri.app import running as running_kolibri
from simulators.kolibri.population import build_population as kolibri_population
from simulators.kolibri.state import Kolibri

FAULT_COUNT = 250
FAULTY = 12
SEED = 4
SHARE = 0.3  # a provider that fails always is soon not asked any more
SLOW = ("slow drip", "no answer")


async def test_no_spoiled_answer_hangs_leaks_or_costs_a_healthy_provider(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        canvas = Canvas(canvas_population())
        canvas.throttle.enabled = False
        canvas_url = await stack.enter_async_context(running_canvas(canvas))
        kolibri_url = await stack.enter_async_context(
            running_kolibri(Kolibri(kolibri_population()))
        )
        proxies = [
            FaultyUpstream(
                target=(kolibri_url if number % 2 else canvas_url),
                seed=SEED + number,
                share=0.0,
                rarity=RARE | dict.fromkeys(SLOW, 0.03),
            )
            for number in range(FAULTY)
        ]
        faulty = {
            f"{'kolibri' if number % 2 else 'canvas'}-faulty-{number}": (
                await stack.enter_async_context(proxy.listening())
            )
            for number, proxy in enumerate(proxies)
        }
        healthy = {"kolibri": kolibri_url, "canvas": canvas_url}
        run = await stack.enter_async_context(
            fault_run(
                tmp_path,
                healthy=healthy,
                faulty=faulty,
                seed=SEED,
                deadline_seconds=5,
                slack_seconds=15,
            )
        )
        before = Held.now()
        for proxy in proxies:
            proxy.share = SHARE

        def injected() -> Counter[str]:
            return sum((proxy.injected for proxy in proxies), Counter())

        with structlog.testing.capture_logs() as logs:
            await run.ask_until(lambda: injected().total() >= FAULT_COUNT, callers=8)
        for proxy in proxies:
            proxy.share = 0.0  # exports go on, and should come to an end
        after = await settled(before)

    assert run.verdict.examples == []
    assert [line for line in logs if line["event"] == "internal_error"] == []
    assert set(injected()) >= set(FAULTS) - set(RARE)
    assert after.tasks <= before.tasks
    assert after.descriptors <= before.descriptors
