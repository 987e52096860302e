"""Thousands of OAuth sessions over a day of virtual time, counted at a simulated Canvas.

    .venv/bin/python benchmarks/user_sessions.py [--users 10000] [--only day]

Three stories, each on a fresh database and a fresh simulator, whose clock and the gateway's are
the same and are moved forward between steps:

day        everybody comes by twice a day for twenty minutes; the token endpoint is not throttled
busy       everybody is in use all the time for two hours; not throttled
throttled  130 users, who signed in over the first hour, in use all the time for 24 hours, and 60
           more each hour who come once, with the token endpoint throttled as Canvas's defaults
           are: about 180 grants an hour, which is less than all of them together want

A *use* takes the session's grant and asks the simulator's own memory whether it would accept it at
this moment; every renewal goes over HTTP and through the database. Nothing is timed: the figures
are counts. Writes its table into benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from results import write_section

from sessions.addresses import LOCAL_NETWORKS, AddressPolicy
from sessions.authorization import SessionSettings, SharedAuthorization
from sessions.base import Grant, NewGrant
from sessions.errors import ProviderError, ProviderRateLimited, ReauthRequired, SessionLost
from sessions.installations import MachineryLoan
from sessions.manager import SessionManager, new_owner
from sessions.registry import Registry
from simulators.canvas.app import running
from simulators.canvas.population import Population
from simulators.canvas.state import (
    ACCESS_SECONDS,
    ADMIN_TOKEN,
    CLIENT_ID,
    CLIENT_SECRET,
    Canvas,
    Code,
    VirtualClock,
)
from simulators.moving_time import MovingTime, moving_time
from storage.cache import CacheStore
from storage.credentials import KeyRing, Secret
from storage.database import open_database
from storage.leases import LeaseStore
from storage.providers import ProviderStore
from storage.records import ProviderState

HOUR = 3600.0
STEP_SECONDS = 10.0
_AT_ONCE = 200
_QUIET_TURNS = 5


@dataclass(kw_only=True)
class Story:
    """What happened to everybody, as the provider saw it and as the callers did."""

    users: int
    regulars: frozenset[int] = frozenset()
    uses: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    regulars_refused: int = 0
    stale: int = 0
    waits: list[int] = field(default_factory=list)
    last_use: dict[int, float] = field(default_factory=dict)
    renewals: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    throttled: int = 0
    unused_renewals: int = 0
    early_renewals: int = 0


@dataclass(kw_only=True)
class Stage:
    """One gateway in front of one simulated Canvas, and the clock of both."""

    canvas: Canvas
    manager: SessionManager
    clock: MovingTime
    watched: set[SharedAuthorization] = field(default_factory=set)

    async def authorize(self, user_id: int) -> None:
        """Give the gateway a user's grant, as if they had just signed in."""
        code = Code(
            user_id=user_id,
            key_id=CLIENT_ID,
            scopes=None,
            userinfo_only=False,
            challenge=None,
            expires_at=self.canvas.clock() + 600,
        )
        token = self.canvas.grant(self.canvas.keys[CLIENT_ID], code)
        secret = {"access_token": token.access, "refresh_token": token.refresh or ""}
        loan = MachineryLoan(self.manager._installations, "2", f"user:{user_id}")  # noqa: SLF001
        async with loan as behind:
            await behind.authorization.adopt(
                NewGrant(secret=Secret(secret), lifetime_seconds=ACCESS_SECONDS)
            )

    async def use(self, story: Story, user_id: int) -> None:
        """Take the user's grant and see whether the provider would accept it now."""
        story.uses += 1
        story.last_use[user_id] = self.canvas.clock()

        async def accepted(grant: Grant) -> bool:
            token = self.canvas.tokens.get(grant.secret.reveal()["access_token"])
            if token is None or self.canvas.is_expired(token):
                story.stale += 1
                raise SessionLost
            return True

        loan = MachineryLoan(self.manager._installations, "2", f"user:{user_id}")  # noqa: SLF001
        async with loan as behind:
            self.watched.add(behind.authorization)
            try:
                await behind.session.authorised(accepted)
            except ProviderError as error:
                story.refused[error.code] += 1
                story.regulars_refused += user_id in story.regulars
                if isinstance(error, ProviderRateLimited):
                    story.waits.append(error.retry_after_seconds or 0)
                elif isinstance(error, ReauthRequired):
                    raise

    async def settle(self, tasks: set[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
        """Wait until nothing moves but time must pass first; return who is waiting for that."""
        quiet = 0
        while quiet < _QUIET_TURNS:
            await asyncio.sleep(0)
            self.watched = {each for each in self.watched if each.busy}
            moving = any(each._served_at is None for each in self.watched)  # noqa: SLF001
            quiet = 0 if moving or self.canvas.counts.running else quiet + 1
            if moving:
                await asyncio.sleep(0.001)
        for task in tasks:
            if task.done():
                task.result()
        return {task for task in tasks if not task.done()}


async def main() -> int:
    """Run the stories and write the table."""
    options = _options()
    rows = []
    for name, tell in (("day", _day), ("busy", _busy), ("throttled", _throttled)):
        if options.only in {None, name}:
            began_at = time.perf_counter()
            story = await tell(options.users)
            rows.append(_row(name, story, seconds=time.perf_counter() - began_at))
    title = "User sessions over virtual time, simulated Canvas"
    write_section(title, [*_HEAD, *rows, "", *_LEGEND])
    return 0


_HEAD = (
    "Simulated Canvas, profile hosted-now, tokens of one hour, one gateway process, SQLite.",
    "",
    (
        "| story | sessions | uses | renewals | unused | early | stale at use | told to wait |"
        " of them in use all day | REAUTH_REQUIRED | throttled upstream | seconds it took |"
    ),
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
)
_LEGEND = (
    "*unused*: renewed more than 25 minutes after the session was last used.",
    "*early*: renewed before two thirds of the grant's hour were over, so one renewal too many.",
    "*stale at use*: a caller was handed a grant the provider would have refused.",
    "*told to wait*: got PROVIDER_RATE_LIMITED with its time.",
    "*of them in use all day*: such refusals of users who were in use all the time.",
    "*throttled upstream*: refusals by the token endpoint.",
)


def _row(name: str, story: Story, *, seconds: float) -> str:
    waits = story.refused["PROVIDER_RATE_LIMITED"]
    told = f"{waits} (longest {max(story.waits)} s)" if story.waits else str(waits)
    renewals = sum(map(len, story.renewals.values()))
    return (
        f"| {name} | {story.users} | {story.uses} | {renewals} | {story.unused_renewals} |"
        f" {story.early_renewals} | {story.stale} | {told} | {story.regulars_refused} |"
        f" {story.refused['REAUTH_REQUIRED']} |"
        f" {story.throttled} | {seconds:.0f} |"
    )


async def _day(users: int) -> Story:
    dice = random.Random(1)
    async with _stage(users, throttled=False) as (stage, ids):
        visits: dict[int, list[int]] = defaultdict(list)
        for user_id in ids:
            for _ in range(2):
                start = dice.uniform(0, 24 * HOUR - 1300)
                for minute in range(0, 20, 5):
                    visits[int((start + 60 * minute) // STEP_SECONDS)].append(user_id)
        return await _told(stage, ids, visits, hours=24)


async def _busy(users: int) -> Story:
    dice = random.Random(2)
    async with _stage(users, throttled=False) as (stage, ids):
        visits: dict[int, list[int]] = defaultdict(list)
        for user_id in ids:
            at = dice.uniform(0, 600)
            while at < 2 * HOUR:
                visits[int(at // STEP_SECONDS)].append(user_id)
                at += dice.uniform(480, 600)
        return await _told(stage, ids, visits, hours=2)


async def _throttled(_users: int) -> Story:
    dice = random.Random(3)
    regulars, once_an_hour = 130, 60
    async with _stage(regulars + 23 * once_an_hour, throttled=True, later=regulars) as (
        stage,
        ids,
    ):
        visits: dict[int, list[int]] = defaultdict(list)
        arrivals: dict[int, list[int]] = defaultdict(list)
        for number, user_id in enumerate(ids[:regulars]):
            at = number * HOUR / regulars
            arrivals[int(at // STEP_SECONDS)].append(user_id)
            while at < 24 * HOUR:
                visits[int(at // STEP_SECONDS)].append(user_id)
                at += dice.uniform(240, 300)
        for number, user_id in enumerate(ids[regulars:]):
            at = (1 + number // once_an_hour + dice.random()) * HOUR
            visits[int(at // STEP_SECONDS)].append(user_id)
        return await _told(
            stage, ids, visits, hours=24, arrivals=arrivals, regulars=frozenset(ids[:regulars])
        )


async def _told(
    stage: Stage,
    ids: Sequence[int],
    visits: dict[int, list[int]],
    *,
    hours: float,
    arrivals: dict[int, list[int]] | None = None,
    regulars: frozenset[int] = frozenset(),
) -> Story:
    story = Story(users=len(ids), regulars=regulars)
    canvas, seen = stage.canvas, Counter[int]()
    throttled_before = canvas.counts.throttled
    waiting: set[asyncio.Task[None]] = set()
    for step in range(int(hours * HOUR / STEP_SECONDS)):
        for user_id in (arrivals or {}).pop(step, []):
            await stage.authorize(user_id)
        for group in _groups(visits.pop(step, [])):
            waiting |= {asyncio.create_task(stage.use(story, user_id)) for user_id in group}
            waiting = await stage.settle(waiting)
        waiting = await stage.settle(waiting)
        _note_renewals(stage, story, seen)
        stage.clock.advance(STEP_SECONDS)
        await asyncio.sleep(0)
    stage.clock.advance(HOUR)
    await asyncio.gather(*waiting)
    story.throttled = canvas.counts.throttled - throttled_before
    return story


def _note_renewals(stage: Stage, story: Story, seen: Counter[int]) -> None:
    """Compare what the provider counted since the last step with who was used and when."""
    now = stage.canvas.clock()
    for user_id in stage.canvas.counts.refreshes_by_user - seen:
        new = stage.canvas.counts.refreshes_by_user[user_id] - seen[user_id]
        earlier = story.renewals[user_id][-1] if story.renewals[user_id] else None
        story.early_renewals += new - 1
        if earlier is not None and now - earlier < 2 / 3 * ACCESS_SECONDS - 2 * STEP_SECONDS:
            story.early_renewals += 1
        if now - story.last_use.get(user_id, 0.0) > 25 * 60:
            story.unused_renewals += 1
        story.renewals[user_id] += [now] * new
        seen[user_id] += new


def _groups(user_ids: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(user_ids), _AT_ONCE):
        yield user_ids[start : start + _AT_ONCE]


@asynccontextmanager
async def _stage(
    users: int, *, throttled: bool, later: int = 0
) -> AsyncIterator[tuple[Stage, Sequence[int]]]:
    """Open everything; the first ``later`` users are left to sign in later."""
    with moving_time() as clock, tempfile.TemporaryDirectory() as scratch:
        people = Population()
        people.add_user("Ada Admin", "ada", is_admin=True)
        ids = [people.add_user(f"User {n}", f"user{n}").id for n in range(users)]
        canvas = Canvas(people, clock=VirtualClock(ticking=True))
        async with AsyncExitStack() as stack:
            url = await stack.enter_async_context(running(canvas))
            database = await stack.enter_async_context(
                open_database(f"sqlite:///{Path(scratch) / 'gateway.db'}")
            )
            key_ring = KeyRing.parse(f"k1:{base64.b64encode(bytes(32)).decode()}")
            providers = ProviderStore(database, key_ring)
            credentials = {
                "api_key": ADMIN_TOKEN,
                "client_id": CLIENT_ID,
                "client_secret": CLIENT_SECRET,
            }
            await providers.add(
                id="2",
                platform="canvas",
                name="Simulated Canvas",
                base_url=url,
                credentials=Secret(credentials),
                state=ProviderState.ACTIVE,
            )
            manager = SessionManager(
                providers=providers,
                leases=LeaseStore(database, key_ring, owner=new_owner()),
                cache=CacheStore(database),
                registry=Registry.discover(),
                policy=AddressPolicy(allowed_networks=LOCAL_NETWORKS),
                settings=SessionSettings(),
            )
            stack.push_async_callback(manager.aclose)
            scheduler = asyncio.create_task(manager.run())
            stage = Stage(canvas=canvas, manager=manager, clock=clock)
            for user_id in ids[later:]:
                await stage.authorize(user_id)
            canvas.throttle.enabled = throttled
            yield stage, ids
            await manager.aclose()
            await scheduler


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--only", choices=["day", "busy", "throttled"])
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
