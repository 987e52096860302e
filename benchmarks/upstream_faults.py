"""A hundred thousand spoiled answers from providers, and what callers of the gateway see of them.

    .venv/bin/python benchmarks/upstream_faults.py [--faults 100000] [--seed 1] [--share 0.3]

A gateway in this process, a simulated Kolibri and a simulated Canvas, and proxies in a process of
their own, each of which is one provider whose answers are spoiled in the ways that
`simulators/faulty.py` lists. Callers ask GraphQL, for healthy and faulty providers together, and
REST; `tests/integration/fault_run.py` judges every answer. Only faults that were really injected
count, which is why the share is low: a provider that fails always is not asked any more. Writes
its table into benchmarks/RESULTS.md, and ends with 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import structlog
from results import write_section
from roster_export import _free_port, _running, _wait

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "integration"))

from fault_run import FaultRun, Held, Verdict, fault_run, settled  # noqa: E402 - from the tests

_LOOK_SECONDS = 0.5
_TELL_SECONDS = 10.0


class Proxies:
    """The process that spoils answers."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def injected(self) -> Counter[str]:
        """Return how often each fault was injected so far."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("how many\n")
        self._process.stdin.flush()
        return Counter(json.loads(self._process.stdout.readline())["injected"])

    def begin(self, share: float) -> None:
        """Spoil this share of the answers from now on."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{share}\n")
        self._process.stdin.flush()
        self._process.stdout.readline()


def main() -> int:
    """Inject and judge, and write the table."""
    options = _options()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folder = Path(scratch)
        kolibri = stack.enter_context(_platform("kolibri", folder))
        canvas = stack.enter_context(_platform("canvas", folder, "--no-throttle"))
        proxies, urls = stack.enter_context(_proxies([kolibri, canvas], options))
        faulty = {
            f"{'canvas' if number % 2 else 'kolibri'}-faulty-{number}": url
            for number, url in enumerate(urls)
        }
        healthy = {"kolibri": kolibri, "canvas": canvas}
        return asyncio.run(_told(options, folder, proxies, healthy, faulty))


async def _told(
    options: argparse.Namespace,
    folder: Path,
    proxies: Proxies,
    healthy: dict[str, str],
    faulty: dict[str, str],
) -> int:
    terms = {"deadline_seconds": options.deadline, "slack_seconds": 1.0}
    async with fault_run(folder, healthy=healthy, faulty=faulty, seed=options.seed, **terms) as run:
        before = Held.now()
        proxies.begin(options.share)
        began_at = time.perf_counter()
        injected = await _injected(run, proxies, options)
        took = time.perf_counter() - began_at
        proxies.begin(0.0)
        after = await settled(before)
    lines = _lines(options, run.verdict, injected, took, (before, after))
    write_section("Spoiled answers from providers", lines)
    leaks = after.tasks > before.tasks or after.descriptors > before.descriptors
    return int(bool(run.verdict.wrong) or leaks)


async def _injected(run: FaultRun, proxies: Proxies, options: argparse.Namespace) -> Counter[str]:
    injected: Counter[str] = Counter()
    loop = asyncio.get_running_loop()

    async def count() -> None:
        nonlocal injected
        told_at, shown = 0.0, 0
        while injected.total() < options.faults:
            await asyncio.sleep(_LOOK_SECONDS)
            injected = await loop.run_in_executor(None, proxies.injected)
            if time.perf_counter() - told_at > _TELL_SECONDS:
                told_at = time.perf_counter()
                print(f"{injected.total()} faults, wrong: {dict(run.verdict.wrong)}", flush=True)
                print(*run.verdict.examples[shown:], sep="\n", end="", flush=True)
                shown = len(run.verdict.examples)

    counting = asyncio.create_task(count())
    await run.ask_until(counting.done, callers=options.callers)
    await counting
    return injected


def _lines(
    options: argparse.Namespace,
    verdict: Verdict,
    injected: Counter[str],
    took: float,
    held: tuple[Held, Held],
) -> Sequence[str]:
    before, after = held
    wrong = verdict.wrong
    kinds = ", ".join(f"{name} {count}" for name, count in injected.most_common())
    codes = ", ".join(f"{name} {count}" for name, count in verdict.codes.most_common())
    others = sum(wrong.values()) - sum(wrong[kind] for kind in _ROWS)
    head = (
        f"Seed {options.seed}, {options.providers} faulty providers and 2 healthy ones,"
        f" {options.share:.0%} of the faulty ones' answers spoiled, {options.callers} callers,"
        f" deadline {options.deadline:g} s; {took:.0f} s."
    )
    return [
        head,
        "",
        "| what | figure |",
        "| --- | --- |",
        f"| faults injected | {injected.total()} |",
        f"| answers judged | {verdict.answers} |",
        *(f"| {title} | {wrong[kind]} |" for kind, title in _ROWS.items()),
        f"| anything else that is wrong | {others} |",
        f"| slowest answer | {verdict.slowest_seconds:.2f} s |",
        f"| whole lists broken off, as they must be | {verdict.cut_short} |",
        f"| refused for overload | {verdict.shed} |",
        f"| tasks before / after | {before.tasks} / {after.tasks} |",
        f"| sockets and files before / after | {before.descriptors} / {after.descriptors} |",
        "",
        f"Faults: {kinds}.",
        "",
        f"Codes the callers saw: {codes}.",
    ]


_ROWS = {
    "late": "answers later than the deadline and 1 s",
    "internal": "answers with the code INTERNAL",
    "unmasked": "answers that quote the provider or our own insides",
    "healthy rows missing": "answers without all rows of the healthy providers",
    "healthy provider blamed": "answers with an error of a healthy provider",
}


@contextmanager
def _platform(name: str, folder: Path, *more: str) -> Iterator[str]:
    port = _free_port()
    command = [sys.executable, "-m", f"simulators.{name}", "--port", str(port), *more]
    with _running(command, os.environ, folder / f"{name}.log"):
        url = f"http://127.0.0.1:{port}"
        _wait(f"{url}/_control/counts")
        yield url


@contextmanager
def _proxies(
    targets: Sequence[str], options: argparse.Namespace
) -> Iterator[tuple[Proxies, Sequence[str]]]:
    ports = [_free_port() for _ in range(options.providers)]
    command = [sys.executable, "-m", "simulators.faulty", "--seed", str(options.seed)]
    for number, port in enumerate(ports):
        command += ["--target", targets[number % len(targets)], "--port", str(port)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        yield Proxies(process), [f"http://127.0.0.1:{port}" for port in ports]
        process.stdin.write("\n")
        process.stdin.flush()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--faults", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--share", type=float, default=0.3)
    parser.add_argument("--providers", type=int, default=24)
    parser.add_argument("--callers", type=int, default=12)
    parser.add_argument("--deadline", type=float, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
