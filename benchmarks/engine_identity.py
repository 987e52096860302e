"""Plans and graphql-core: the same answers to random operations, to the last byte.

    .venv/bin/python benchmarks/engine_identity.py [--operations 1000000] [--seed 0] [--processes 2]
                                                   [--minutes 60]

Makes random schemas, data and operations until so many were executed, and compares whole answers:
data, errors, their order, places and paths. ``tests/integration/engine_worlds.py`` makes the
worlds and judges. A world that fails is named by its number, and
``--seed NUMBER --operations 1`` repeats it. Writes its table into benchmarks/RESULTS.md; answers 1
if an answer was another.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import multiprocessing
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

from results import write_section

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "integration")]

from engine_worlds import Tally, compare_world  # noqa: E402 - found in the folder just named

SHOWN_FAILURES = 5
SHOW_SECONDS = 30.0


def main() -> int:
    """Compare, show how far it is, and write the table."""
    options = _options()
    total = Tally()
    worlds = 0
    begun = shown = time.perf_counter()
    with multiprocessing.Pool(options.processes, maxtasksperchild=50) as pool:
        for tally in pool.imap_unordered(_world, itertools.count(options.seed)):
            total.add(tally)
            worlds += 1
            for failure in tally.failures:
                print(failure, flush=True)
            if time.perf_counter() - shown > SHOW_SECONDS:
                shown = time.perf_counter()
                print(
                    f"{worlds} worlds, {total.operations} operations, {len(total.failures)} failed",
                    flush=True,
                )
            if (
                total.operations >= options.operations
                or len(total.failures) > SHOWN_FAILURES
                or time.perf_counter() - begun > options.minutes * 60
            ):
                pool.terminate()
                break
    write_section(
        "Plans beside graphql-core: identity",
        _table(options.seed, worlds, total, time.perf_counter() - begun),
    )
    return 1 if total.failures else 0


def _world(seed: int) -> Tally:
    warnings.simplefilter("ignore")  # graphql-core leaves coroutines of branches it gives up
    return asyncio.run(compare_world(seed))


def _table(seed: int, worlds: int, total: Tally, seconds: float) -> Sequence[str]:
    fallbacks = ", ".join(f"{reason} {count}" for reason, count in sorted(total.fallbacks.items()))
    return [
        f"Seeds {seed} and on; {seconds:.0f} s.",
        "",
        "| what | figure |",
        "| --- | --- |",
        f"| random schemas | {worlds} |",
        f"| operations compared | {total.operations} |",
        f"| answers that differ in a byte | {len(total.failures)} |",
        f"| equal to graphql-core's with the same promises only | {total.as_promised} |",
        f"| executed by a plan | {total.by_plan} |",
        f"| with errors in the answer | {total.with_errors} |",
        f"| of a world with coroutines, promises and streams | {total.with_promises} |",
        f"| where the fast way met a surprise | {total.redone} |",
        f"| left to graphql-core | {fallbacks} |",
    ]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--operations", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
