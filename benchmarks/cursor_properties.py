"""Cursors: whole walks over many random worlds; nothing may be lost, doubled or out of order.

    .venv/bin/python benchmarks/cursor_properties.py [--cases 1000000] [--seed 0] [--processes 2]

A case is one walk, from the first page to the last, over a small world made from a number: up to
six providers that page in every way platforms do, and what happens to them between any two calls.
``tests/integration/merged_walks.py`` makes the worlds and judges the walks. A case that fails is
named by its number, and ``--seed NUMBER --cases 1`` repeats it. Writes its table into
benchmarks/RESULTS.md; answers 1 if a case failed.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from results import write_section

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "integration"))

from merged_walks import Outcome, run_case  # noqa: E402 - found in the folder just named

BATCH = 2000
SHOWN_FAILURES = 20


def main() -> int:
    """Walk, show how far it is, and write the table."""
    options = _options()
    total, failures = Outcome(), list[int]()
    begun = time.perf_counter()
    with multiprocessing.Pool(options.processes) as pool:
        done = 0
        for outcome, failed, cases in pool.imap_unordered(
            run_batch, _batches(options.seed, options.cases)
        ):
            total.add(outcome)
            failures += failed
            done += cases
            _show(done, options.cases, total, begun)
    seconds = time.perf_counter() - begun
    print()
    for seed in sorted(failures)[:SHOWN_FAILURES]:
        print(f"failed: --seed {seed} --cases 1")
    write_section("Cursors over merged lists", _table(options, total, seconds))
    return 1 if failures else 0


def run_batch(batch: tuple[int, int]) -> tuple[Outcome, list[int], int]:
    """Walk the worlds of some numbers; tells which failed, and how many there were."""
    return asyncio.run(_run_batch(*batch))


async def _run_batch(first: int, end: int) -> tuple[Outcome, list[int], int]:
    total, failures = Outcome(), list[int]()
    for seed in range(first, end):
        outcome = await run_case(seed)
        total.add(outcome)
        if not outcome.is_good:
            failures.append(seed)
    return total, failures, end - first


def _batches(seed: int, cases: int) -> Iterator[tuple[int, int]]:
    ends = seed + cases
    return ((first, min(first + BATCH, ends)) for first in range(seed, ends, BATCH))


def _show(done: int, cases: int, total: Outcome, begun: float) -> None:
    rate = done / (time.perf_counter() - begun)
    print(
        f"\r{done:,} of {cases:,} cases, {rate:,.0f} a second, {total.rows:,} rows,"
        f" lost {total.lost}, doubled {total.doubled}, out of order {total.misordered},"
        f" otherwise wrong {total.wrong}",
        end="",
        flush=True,
    )


def _table(options: argparse.Namespace, total: Outcome, seconds: float) -> list[str]:
    header = ("walks", "pages", "rows", "upstream calls", "rows changed on the way")
    faults = ("lost", "doubled", "out of order", "otherwise wrong")
    figures = (options.cases, total.pages, total.rows, total.calls, total.changes)
    found = (total.lost, total.doubled, total.misordered, total.wrong)
    last = options.seed + options.cases - 1
    return [
        f"Whole walks over random worlds, numbers {options.seed} to {last}, the gateway restarted",
        f"before every page; {seconds:.0f} seconds in {options.processes} processes.",
        "",
        f"| {' | '.join((*header, *faults))} |",
        "| --- " * len((*header, *faults)) + "|",
        f"| {' | '.join(map(str, (*figures, *found)))} |",
        "",
        "Otherwise wrong: empty or overlong pages, wrong totals, cursors that do not lead behind",
        "their row.",
    ]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
