"""Hostile bodies and headers: a million requests nobody sane would send, to the real application.

    .venv/bin/python benchmarks/hostile_requests.py [--cases 1000000] [--seed 0] [--processes 2]
                                                    [--minutes 60]

Hypothesis makes one request in ten (``tests/integration/hostile_requests.py``), in batches that
each have a seed of their own; the nine others differ from it in a few bytes and are sent at the
same time. The application is called in this process by the interface its server uses. A request
fails the run when it is answered 500, logs a fault, shows something of the inside, or is not
answered within ten seconds. A batch that fails is named by its seed, with the smallest request
that fails; ``--seed NUMBER --cases 5000`` repeats it. Writes its table into benchmarks/RESULTS.md;
answers 1 if a batch failed.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from results import write_section
from starlette.applications import Starlette

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "integration"))

import hostile_requests as hostile  # noqa: E402 - found in the folder just named

BATCH = 5000
TOGETHER = 10


@dataclass(slots=True)
class Outcome:
    """What came of some requests."""

    seed: int
    cases: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    slowest_seconds: float = 0.0
    failure: str = ""


def main() -> int:
    """Send, show how far it is, and write the table."""
    options = _options()
    total, failures = Outcome(options.seed), list[Outcome]()
    begun = time.perf_counter()
    batches = list(range(options.seed, options.seed + -(-options.cases // BATCH)))
    with multiprocessing.Pool(options.processes) as pool:
        for outcome in pool.imap_unordered(run_batch, batches):
            total.cases += outcome.cases
            total.statuses += outcome.statuses
            total.slowest_seconds = max(total.slowest_seconds, outcome.slowest_seconds)
            seconds = time.perf_counter() - begun
            if outcome.failure:
                failures.append(outcome)
                print(f"\nfailed: --seed {outcome.seed} --cases {BATCH}\n{outcome.failure}")
            rate = total.cases / seconds
            print(f"\r{total.cases:,} requests, {rate:,.0f} a second", end="", flush=True)
            if seconds > options.minutes * 60:
                pool.terminate()
                break
    write_section("Hostile requests", _table(options, total, failures, seconds))
    return 1 if failures else 0


def run_batch(seed: int) -> Outcome:
    """Send the requests of one seed to an application of their own."""
    outcome = Outcome(seed)
    with (
        tempfile.TemporaryDirectory() as folder,
        asyncio.Runner() as runner,
        hostile.listening_for_faults() as faults,
    ):
        serving = hostile.serving_in_process(Path(folder))
        app = runner.run(serving.__aenter__())

        @hypothesis.seed(seed)
        @settings(
            max_examples=BATCH // TOGETHER,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        @given(hostile.requests)
        def check(request: hostile.Hostile) -> None:
            faults.clear()
            sent = [request, *hostile.neighbours(request, TOGETHER - 1)]
            sent_at = time.perf_counter()
            answers = runner.run(_send_all(app, sent))
            outcome.slowest_seconds = max(outcome.slowest_seconds, time.perf_counter() - sent_at)
            outcome.cases += len(sent)
            outcome.statuses.update(int(answered.status) for answered in answers)
            for each, answered in zip(sent, answers, strict=True):
                try:
                    hostile.judge(each, answered, faults)
                except Exception as error:
                    error.add_note(f"sent: {each}")
                    raise

        try:
            check()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what is looked for
            notes = "\n".join(getattr(error, "__notes__", ()))
            outcome.failure = f"{type(error).__name__}: {error}\n{notes}"
        finally:
            runner.run(serving.__aexit__(None, None, None))
    return outcome


async def _send_all(
    app: Starlette, requests: Sequence[hostile.Hostile]
) -> Sequence[hostile.Answered]:
    return await asyncio.gather(*[hostile.send(app, request) for request in requests])


def _table(
    options: argparse.Namespace, total: Outcome, failures: list[Outcome], seconds: float
) -> list[str]:
    failed = ", ".join(str(outcome.seed) for outcome in failures) or "none"
    how = f"{seconds:.0f} s in {options.processes} processes, seeds from {options.seed}"
    found = (
        f"{total.cases:,}",
        f"{total.cases / seconds:,.0f}",
        f"{total.slowest_seconds:.2f} s",
        failed,
    )
    return [
        "Requests to the real application in its own process: bodies, query strings and headers",
        "that are damaged, nested, huge or senseless, and callers that leave. One in ten is made",
        "by hypothesis, the others differ from it in a few bytes and are sent at the same time.",
        "A batch of 5000 fails by an answer of 500, a fault in the log, a text of our inside, or",
        f"none within {hostile.SECONDS:g} s. {how}. The slowest",
        "by the clock, whatever else the machine was busy with.",
        "",
        "| requests | a second | slowest | seeds of batches that failed |",
        "| --- | --- | --- | --- |",
        f"| {' | '.join(found)} |",
        "",
        "| status | answers |",
        "| --- | --- |",
        *(f"| {status} | {count:,} |" for status, count in sorted(total.statuses.items())),
    ]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
