"""A hundred thousand spoiled answers from providers, and what callers of the gateway see of them.

    .venv/bin/python benchmarks/upstream_faults.py [--faults 100000] [--seed 1] [--parts 2]

Each part is a process with a gateway, its callers, a simulated Kolibri and a simulated Canvas, and
proxies in a process of their own, each of which is one provider whose answers are spoiled in the
ways that `simulators/faulty.py` lists. Callers ask GraphQL, for healthy and faulty providers
together, and REST; `tests/integration/fault_run.py` judges every answer. Only faults that were
really injected count, which is why the share is low: a provider that fails always is not asked any
more. Writes its table into benchmarks/RESULTS.md, and ends with 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
from results import write_section
from roster_export import _free_port, _running, _wait

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "integration"))

from fault_run import FaultRun, Held, Verdict, fault_run, settled  # noqa: E402 - from the tests

_WARM_SECONDS = 20.0
_REST_SECONDS = 5.0
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


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one process did, and what it held before and after."""

    verdict: Verdict
    injected: Counter[str]
    before: Held
    after: Held

    @property
    def leaks(self) -> bool:
        """Whether more was held afterwards than before."""
        return (
            self.after.tasks > self.before.tasks or self.after.descriptors > self.before.descriptors
        )


def main() -> int:
    """Inject and judge, and write the table."""
    options = _options()
    began_at = time.perf_counter()
    orders = []
    for number in range(options.parts):
        order = {"seed": options.seed + 1000 * number, "faults": options.faults // options.parts}
        orders.append(argparse.Namespace(**{**vars(options), **order}))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.parts, mp_context=context) as pool:
        parts = list(pool.map(_part, orders))
    lines = _lines(options, parts, time.perf_counter() - began_at)
    write_section("Spoiled answers from providers", lines)
    return int(any(part.verdict.wrong or part.leaks for part in parts))


def _part(options: argparse.Namespace) -> Part:
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
) -> Part:
    terms = {"deadline_seconds": options.deadline, "slack_seconds": 1.0}
    async with fault_run(folder, healthy=healthy, faulty=faulty, seed=options.seed, **terms) as run:
        await _warmed(run, options)
        before = Held.now()
        proxies.begin(options.share)
        injected = await _injected(run, proxies, options)
        proxies.begin(0.0)
        after = await settled(before)
    return Part(verdict=run.verdict, injected=injected, before=before, after=after)


async def _warmed(run: FaultRun, options: argparse.Namespace) -> None:
    """Ask while all is well, so that what a gateway opens once, when needed, is open."""
    ends_at = time.monotonic() + _WARM_SECONDS
    await run.ask_until(lambda: time.monotonic() > ends_at, callers=options.callers)
    await asyncio.sleep(_REST_SECONDS)


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


def _lines(options: argparse.Namespace, parts: Sequence[Part], took: float) -> Sequence[str]:
    wrong = sum((part.verdict.wrong for part in parts), Counter[str]())
    injected = sum((part.injected for part in parts), Counter[str]())
    seen = sum((part.verdict.codes for part in parts), Counter[str]())
    kinds = ", ".join(f"{name} {count}" for name, count in injected.most_common())
    codes = ", ".join(f"{name} {count}" for name, count in seen.most_common())
    others = sum(wrong.values()) - sum(wrong[kind] for kind in _ROWS)
    cut_short = sum(part.verdict.cut_short for part in parts)
    slowest = max(part.verdict.slowest_seconds for part in parts)
    tasks = ", ".join(f"{part.before.tasks} / {part.after.tasks}" for part in parts)
    files = ", ".join(f"{part.before.descriptors} / {part.after.descriptors}" for part in parts)
    head = (
        f"Seed {options.seed}, {options.parts} gateways with {options.providers} faulty providers"
        f" and 2 healthy ones each, {options.share:.0%} of the faulty ones' answers spoiled,"
        f" {options.callers} callers each, deadline {options.deadline:g} s; {took:.0f} s."
    )
    return [
        head,
        "",
        "| what | figure |",
        "| --- | --- |",
        f"| faults injected | {injected.total()} |",
        f"| answers judged | {sum(part.verdict.answers for part in parts)} |",
        *(f"| {title} | {wrong[kind]} |" for kind, title in _ROWS.items()),
        f"| anything else that is wrong | {others} |",
        f"| slowest answer | {slowest:.2f} s |",
        f"| whole lists broken off, as they must be | {cut_short} |",
        f"| refused for overload | {sum(part.verdict.shed for part in parts)} |",
        f"| tasks before / after | {tasks} |",
        f"| sockets and files before / after | {files} |",
        "",
        f"Faults: {kinds}.",
        "",
        f"Codes the callers saw: {codes}.",
    ]


_ROWS = {
    "late": "answers later than the deadline and 1 s",
    "internal": "answers with the code INTERNAL",
    "reported by the loop": "exceptions that nobody handled",
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
    parser.add_argument("--parts", type=int, default=2, help="processes that share the work")
    parser.add_argument("--share", type=float, default=0.3)
    parser.add_argument("--providers", type=int, default=24)
    parser.add_argument("--callers", type=int, default=8)
    parser.add_argument("--deadline", type=float, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
