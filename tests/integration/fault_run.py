"""Questions to a whole gateway whose providers' answers are spoiled, and a judge of what comes.

Some providers are healthy, the others are behind a ``simulators.faulty`` proxy each. Whatever
becomes of those, an answer must come in time, say what is wrong in the gateway's own words and with
one of its own codes, quote nothing of what was sent, and hold every row of the healthy ones.
"""

import asyncio
import os
import random
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from running_gateway import RunningGateway, running_gateway

from simulators.canvas.state import ADMIN_TOKEN
from simulators.faulty import CANARY
from simulators.kolibri.population import PASSWORD

CODES = {
    "PROVIDER_UNAVAILABLE",
    "PROVIDER_TIMEOUT",
    "PROVIDER_RATE_LIMITED",
    "PROVIDER_AUTH_FAILED",
    "REAUTH_REQUIRED",
    "PROVIDER_FORBIDDEN",
    "PROVIDER_BAD_RESPONSE",
    "NOT_SUPPORTED",
}
STATUSES = {200, 501, 502, 503, 504}
_UNMASKED = re.compile(
    rf"{CANARY}|Traceback|\.py\b|\b(?:aiohttp|httpx|asyncio|msgspec|sqlalchemy)\b"
    r"|\b[A-Z][A-Za-z]+(?:Error|Exception)\b|\bNoneType\b"
)
_INTERNAL = '"INTERNAL"'
_SHOWN_PROBLEMS = 20

USERS = """query ($ids: [ID!]) { users(first: 200, filter: {providerIds: $ids} MAX_AGE) {
  nodes { externalId displayName username roles { value } provider { providerId } }
  sources { providerId status code message retryable }
} }"""
COURSES = """query ($ids: [ID!]) { courses(first: 200, filter: {providerIds: $ids} MAX_AGE) {
  nodes { externalId title startsAt description provider { providerId } }
  sources { providerId status code message retryable }
} }"""
NESTED = """query ($ids: [ID!]) { users(first: 10, filter: {providerIds: $ids} MAX_AGE) {
  nodes { externalId provider { providerId }
    enrollments(first: 20) { nodes { role { value } progress { ratio } course { title } } } }
  sources { providerId status code message retryable }
} }"""
LISTS = {"users": USERS, "courses": COURSES}
REST = ("/api/users", "/api/courses", "/api/enrollments")
MAX_AGE_KNOWN = """{ __type(name: "Query") { fields { name args { name } } } }"""


@dataclass(kw_only=True)
class Verdict:
    """What was wrong, by kind, with some examples; and what was right, for a table.

    Attributes:
        cut_short: Whole lists that were broken off, so that nobody takes them for whole.
        shed: Requests refused for overload.
    """

    answers: int = 0
    cut_short: int = 0
    shed: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    slowest_seconds: float = 0.0

    def blame(self, kind: str, example: object) -> None:
        self.wrong[kind] += 1
        if self.wrong[kind] <= _SHOWN_PROBLEMS:
            self.examples.append(f"{kind}: {str(example)[:600]}")


@dataclass(kw_only=True)
class FaultRun:
    """Callers of a gateway.

    Attributes:
        healthy: Ids of providers nothing happens to.
        faulty: Ids of the others.
        deadline_seconds: The gateway's own, for queries and for whole lists.
        slack_seconds: How long after the deadline an answer may come.
    """

    gateway: RunningGateway
    healthy: Sequence[str]
    faulty: Sequence[str]
    seed: int
    deadline_seconds: float
    slack_seconds: float
    verdict: Verdict = field(default_factory=Verdict)
    _expected: dict[str, Counter[tuple[str, str]]] = field(default_factory=dict)
    _max_age: str = ""

    async def learn(self) -> None:
        """See what the healthy providers hold, while all is well."""
        known = await self.gateway.graphql(MAX_AGE_KNOWN)
        for each in known["data"]["__type"]["fields"]:
            if each["name"] == "users" and "maxAge" in {arg["name"] for arg in each["args"]}:
                self._max_age = ", maxAge: 0"
        for name in LISTS:
            answer = await self.gateway.graphql(self._list(name), ids=list(self.healthy))
            assert "errors" not in answer, answer
            self._expected[name] = _rows(answer["data"][name]["nodes"], self.healthy)
            assert self._expected[name]

    async def ask_until(self, enough: Callable[[], bool], *, callers: int) -> None:
        """Ask, with so many callers at once, until it is enough."""
        async with httpx.AsyncClient(
            base_url=self.gateway.url,
            headers=self.gateway.client.headers,
            timeout=60,
            limits=httpx.Limits(max_connections=callers),
        ) as client:
            dice = [random.Random(self.seed * 1000 + number) for number in range(callers)]
            await asyncio.gather(*(self._caller(client, each, enough) for each in dice))

    async def _caller(
        self, client: httpx.AsyncClient, dice: random.Random, enough: Callable[[], bool]
    ) -> None:
        while not enough():
            began_at = time.perf_counter()
            asked, text = await self._question(client, dice)
            took = time.perf_counter() - began_at
            self.verdict.answers += 1
            self.verdict.slowest_seconds = max(self.verdict.slowest_seconds, took)
            if took > self.deadline_seconds + self.slack_seconds:
                self.verdict.blame("late", f"{took:.2f} s: {asked} {text[-300:]}")
            if found := _UNMASKED.search(text):
                place = max(0, found.start() - 200)
                self.verdict.blame("unmasked", text[place : found.end() + 200])
            if _INTERNAL in text:
                self.verdict.blame("internal", text)

    async def _question(self, client: httpx.AsyncClient, dice: random.Random) -> tuple[str, str]:
        """Ask something; return what it was and the answer's text."""
        if dice.random() < 0.15:
            return await self._rest(client, dice)
        some = dice.sample(self.faulty, min(len(self.faulty), 6))
        ids = [*self.healthy, *some]
        name = dice.choice(["users", "courses", "nested"])
        query = NESTED.replace("MAX_AGE", self._max_age) if name == "nested" else self._list(name)
        answer = await client.post("/graphql", json={"query": query, "variables": {"ids": ids}})
        if "GATEWAY_OVERLOADED" in answer.text:
            self.verdict.shed += 1
        elif answer.status_code != httpx.codes.OK:
            self.verdict.blame(f"status {answer.status_code}", answer.text)
        else:
            self._judge(name, answer.json(), ids=ids)
        return f"{name} of {some}", answer.text

    async def _rest(self, client: httpx.AsyncClient, dice: random.Random) -> tuple[str, str]:
        path, provider_id = dice.choice(REST), dice.choice(self.faulty)
        try:
            answer = await client.get(path, params={"id": provider_id})
        except httpx.RemoteProtocolError:
            self.verdict.cut_short += 1
            return path, ""
        if "GATEWAY_OVERLOADED" in answer.text:
            self.verdict.shed += 1
        elif answer.status_code not in STATUSES:
            self.verdict.blame(f"status {answer.status_code}", answer.text)
        elif answer.status_code != httpx.codes.OK:
            self._judge_code(answer.json()["code"], answer.text)
        return f"{path} of {provider_id}", answer.text

    def _list(self, name: str) -> str:
        return LISTS[name].replace("MAX_AGE", self._max_age)

    def _judge(self, name: str, body: Mapping[str, Any], *, ids: Collection[str]) -> None:
        for error in body.get("errors", []):
            extensions = error["extensions"]
            self._judge_code(extensions["code"], error)
            if extensions.get("providerId") in self.healthy:
                self.verdict.blame("healthy provider blamed", error)
        found = (body["data"] or {}).get("users" if name == "nested" else name)
        if found is None:
            self.verdict.blame("nothing at all", body)
            return
        if {source["providerId"] for source in found["sources"]} != set(ids):
            self.verdict.blame("sources missing", found["sources"])
        if name in self._expected:
            rows = _rows(found["nodes"], self.healthy)
            if rows != self._expected[name]:
                self.verdict.blame("healthy rows missing", self._expected[name] - rows)

    def _judge_code(self, code: str, context: object) -> None:
        self.verdict.codes[code] += 1
        if code not in CODES:
            self.verdict.blame(f"code {code}", context)


def _rows(
    nodes: Sequence[Mapping[str, Any]], provider_ids: Collection[str]
) -> Counter[tuple[str, str]]:
    return Counter(
        (node["provider"]["providerId"], node["externalId"])
        for node in nodes
        if node["provider"]["providerId"] in provider_ids
    )


EXPORTING = (
    "Scheduler._export",
    "TimedExports.",
    "Installations._machinery.<locals>.export",
    "FaultyUpstream.",
)
SOCKETS_OF_AN_EXPORT = 4  # ours, the proxy's two, the server's


@dataclass(frozen=True, kw_only=True)
class Held:
    """What this process holds at the moment, beside timed exports: these may go on for minutes.

    A spoiled answer can make one wait for a task that the provider never heard of; what ends that
    is a limit of its own.
    """

    tasks: int
    descriptors: int
    names: Sequence[str] = field(default=(), compare=False)

    @classmethod
    def now(cls) -> "Held":
        names = [getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()]
        exports = sum(name == "Scheduler._export" for name in names)
        descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - counting is all
        counted = sorted(name for name in names if not name.startswith(EXPORTING))
        return cls(
            tasks=len(counted),
            names=counted,
            descriptors=descriptors - SOCKETS_OF_AN_EXPORT * exports,
        )


async def settled(at_most: Held, *, seconds: float = 30) -> Held:
    """Wait until no more is held than before, or the time is over; return what is held then."""
    ends_at = time.monotonic() + seconds
    while True:
        held = Held.now()
        fine = held.tasks <= at_most.tasks and held.descriptors <= at_most.descriptors
        if fine or time.monotonic() > ends_at:
            return held
        await asyncio.sleep(0.1)


@asynccontextmanager
async def fault_run(
    folder: Path,
    *,
    healthy: Mapping[str, str],
    faulty: Mapping[str, str],
    seed: int,
    deadline_seconds: float,
    slack_seconds: float,
) -> AsyncIterator[FaultRun]:
    """Serve a gateway with these providers, ``kolibri...`` or ``canvas...`` by URL."""
    limit = f"{deadline_seconds:g}"
    async with running_gateway(
        folder, deadline_seconds=limit, stream_seconds=limit, shutdown_seconds="1"
    ) as gateway:
        for provider_id, url in {**healthy, **faulty}.items():
            await _add(gateway, provider_id, url)
        run = FaultRun(
            gateway=gateway,
            healthy=list(healthy),
            faulty=list(faulty),
            seed=seed,
            deadline_seconds=deadline_seconds,
            slack_seconds=slack_seconds,
        )
        await run.learn()
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, told: run.verdict.blame("reported by the loop", told))
        yield run
        loop.set_exception_handler(None)


async def _add(gateway: RunningGateway, provider_id: str, url: str) -> None:
    details = {"id": provider_id, "url": url}
    if provider_id.startswith("kolibri"):
        details |= {"type": "kolibri", "username": "service_admin", "password": PASSWORD}
    else:
        details |= {"type": "canvas", "api_key": ADMIN_TOKEN}
    answer = await gateway.add_provider(**details)
    assert answer.status_code == httpx.codes.OK, answer.text
