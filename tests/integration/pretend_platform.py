"""A platform invented for tests of the machinery around sessions: a real server, a real client.

The server counts logins, notices two at once, and can be made to fail in many ways.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from sessions.addresses import LOCAL_NETWORKS, AddressPolicy
from sessions.authorization import SessionObserver
from sessions.base import (
    SERVICE,
    Capability,
    CredentialField,
    Grant,
    NewGrant,
    Page,
    Platform,
    ProviderCheck,
    ProviderSession,
)
from sessions.errors import ProviderError, ProviderForbidden, ReauthRequired, SessionLost
from sessions.http import HttpLimits
from sessions.manager import SessionManager, SessionSettings, new_owner
from sessions.registry import Registry
from sessions.resilience import BreakerState, RefusalReason, ResilienceTerms
from storage.cache import CacheStore
from storage.credentials import KeyRing, Secret
from storage.database import Database
from storage.leases import LeaseStore, LoginAllowance
from storage.providers import ProviderStore
from storage.records import Course, Enrollment, Provider, ProviderState, User

PASSWORD = "c0rrect-pass"

QUICK = SessionSettings(
    lease_seconds=1.5,
    transition_seconds=1,
    patience_seconds=10,
    backoff_seconds=0.2,
    longest_backoff_seconds=2,
    tick_seconds=0.05,
    look_seconds=0.1,
    export_lease_seconds=0.6,
    export_limit_seconds=10,
    export_patience_seconds=5,
    shutdown_seconds=2,
)
"""As the defaults, but in a tenth of the time."""

QUICK_LIMITS = HttpLimits(
    resilience=ResilienceTerms(pause_seconds=0.3, longest_pause_seconds=3, jitter=0)
)
"""As the defaults, but a failed provider is tried again in a hundredth of the time."""

MANY_LOGINS = replace(QUICK, logins=LoginAllowance(count=1000, window_seconds=600))


class PretendServer:
    """The installation: sessions by token, logins, and what goes wrong."""

    def __init__(self) -> None:
        self.password = PASSWORD
        self.valid_tokens: set[str] = set()
        self.logins = 0
        self.refused_logins = 0
        self.logins_in_flight = 0
        self.most_logins_at_once = 0
        self.log_outs = 0
        self.heartbeats = 0
        self.exports = 0
        self.reads = 0
        self.requests = 0
        self.login_seconds = 0.02
        self.heartbeat_seconds = 0.0
        self.export_seconds = 0.0
        self.failing: Mapping[str, tuple[int, Mapping[str, str]]] = {}
        self.before_login: Callable[[], Awaitable[None]] | None = None
        self.url = ""
        self._writers: set[asyncio.StreamWriter] = set()

    def end_all_sessions(self) -> None:
        self.valid_tokens.clear()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["PretendServer"]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for writer in list(self._writers):
                writer.close()
            await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    await self._exchange(reader, writer)
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, path, _ = head.split("\r\n", 1)[0].split(" ")
        headers = {
            name.lower(): text.strip()
            for name, _, text in (line.partition(":") for line in head.split("\r\n")[1:])
        }
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        self.requests += 1
        status, extra, answer = await self._answer(method, path, headers, body)
        content = json.dumps(answer).encode()
        lines = [f"HTTP/1.1 {status} Pretend", f"content-length: {len(content)}"]
        lines += ["content-type: application/json"]
        lines += [f"{name}: {text}" for name, text in extra.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode() + content)
        await writer.drain()

    async def _answer(  # noqa: PLR0911 - a wire protocol is a table of cases
        self, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, Mapping[str, str], Any]:
        if path in self.failing:
            status, extra = self.failing[path]
            return status, extra, {"error": "made to fail"}
        alive = headers.get("x-token", "") in self.valid_tokens
        if path == "/login":
            return await self._log_in(json.loads(body))
        if path == "/logout":
            self.log_outs += 1
            self.valid_tokens.discard(headers.get("x-token", ""))
            return 200, {}, None
        if path == "/alive":
            await asyncio.sleep(self.heartbeat_seconds)
            self.heartbeats += 1
            return 200, {}, {"alive": alive}
        if not alive:
            return 401, {}, None
        if path == "/export":
            self.exports += 1
            await asyncio.sleep(self.export_seconds)
            return 200, {}, f"export {self.exports}"
        self.reads += 1
        return 200, {}, {"version": "1.0"}

    async def _log_in(self, content: Mapping[str, str]) -> tuple[int, Mapping[str, str], Any]:
        self.logins_in_flight += 1
        self.most_logins_at_once = max(self.most_logins_at_once, self.logins_in_flight)
        try:
            if self.before_login is not None:
                await self.before_login()
            await asyncio.sleep(self.login_seconds)
            if content["password"] != self.password:
                self.refused_logins += 1
                return 403, {}, None
            self.logins += 1
            token = f"tok3n-{self.logins}"
            self.valid_tokens.add(token)
            return 200, {}, {"token": token}
        finally:
            self.logins_in_flight -= 1


class PretendSession(ProviderSession):
    async def log_in(self, credentials: Secret[Mapping[str, str]]) -> NewGrant:
        answer = await self._http.request("POST", "/login", json=dict(credentials.reveal()))
        if answer.status == 403:
            raise ReauthRequired("The password is wrong", provider_id=self.provider.id)
        return NewGrant(secret=Secret(answer.decode(dict[str, str])), lifetime_seconds=1200)

    async def keep_alive(self, grant: Grant) -> NewGrant:
        answer = await self._http.request("PUT", "/alive", headers=_headers(grant))
        if not answer.decode(dict[str, bool])["alive"]:
            raise SessionLost
        return NewGrant(secret=grant.secret, lifetime_seconds=1200)

    async def log_out(self, grant: NewGrant) -> None:
        await self._http.request("POST", "/logout", headers=_headers(grant))

    async def check(self) -> ProviderCheck:
        answer = await self.authorised(lambda grant: self._read("/about", grant))
        return ProviderCheck(version=answer["version"], name="Pretend", account="admin")

    async def list_users(self, *, position: str | None, limit: int) -> Page[User]:
        await self.authorised(lambda grant: self._read("/users", grant))
        return Page(items=(), total=0)

    async def export(self, name: str) -> bytes:
        text = await self.authorised(lambda grant: self._read("/export", grant))
        return str(text).encode()

    async def read_export(self, name: str) -> bytes | None:
        found = await self._exports.read(name)
        return None if found is None else found.body

    async def current_grant(self) -> Grant:
        return await self._authorization.current()

    async def replace_grant(self, lost: Grant) -> Grant:
        return await self._authorization.replace(lost)

    async def _read(self, path: str, grant: Grant) -> Any:
        answer = await self._http.request("GET", path, headers=_headers(grant))
        if answer.status == 401:
            raise SessionLost
        if answer.status == 403:
            raise ProviderForbidden("A permission is missing", provider_id=self.provider.id)
        return answer.decode(object)

    # Of no interest here.

    async def fetch_users(self, user_ids: Collection[str]) -> Mapping[str, User]:
        return {}

    async def list_courses(self, *, position: str | None, limit: int) -> Page[Course]:
        return Page(items=())

    async def fetch_courses(self, course_ids: Collection[str]) -> Mapping[str, Course]:
        return {}

    async def list_enrollments(self, *, position: str | None, limit: int) -> Page[Enrollment]:
        return Page(items=())

    async def fetch_enrollments_by_user(
        self, user_ids: Collection[str]
    ) -> Mapping[str, Sequence[Enrollment]]:
        return {}

    async def fetch_enrollments_by_course(
        self, course_ids: Collection[str]
    ) -> Mapping[str, Sequence[Enrollment]]:
        return {}


def _headers(grant: Grant | NewGrant) -> Mapping[str, str]:
    return {"X-Token": grant.secret.reveal()["token"]}


PRETEND = Platform(
    name="pretend",
    title="Pretend",
    session=PretendSession,
    credential_fields=(CredentialField(name="password", label="Password", secret=True),),
    capabilities=frozenset({Capability.USERS}),
    heartbeat_seconds=300,
    concurrency=16,
)


@dataclass(kw_only=True)
class Notes:
    """A session observer that keeps what it hears."""

    transitions: list[tuple[str, str]] = field(default_factory=list)
    late_seconds: list[float] = field(default_factory=list)
    breakers: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)

    def on_transition(
        self, provider_id: str, transition: str, outcome: str, *, seconds: float
    ) -> None:
        self.transitions.append((str(transition), str(outcome)))

    def on_heartbeat(self, provider_id: str, *, late_seconds: float) -> None:
        self.late_seconds.append(late_seconds)

    def on_breaker(
        self, provider_id: str, state: BreakerState, *, cause: ProviderError | None
    ) -> None:
        self.breakers.append(state.value)

    def on_refusal(self, provider_id: str, reason: RefusalReason) -> None:
        self.refusals.append(reason.value)


async def register(
    providers: ProviderStore,
    server: PretendServer,
    *,
    password: str = PASSWORD,
    provider_id: str = "1",
) -> Provider:
    return await providers.add(
        id=provider_id,
        platform="pretend",
        name="Pretend",
        base_url=server.url,
        credentials=Secret({"password": password}),
        state=ProviderState.ACTIVE,
    )


@asynccontextmanager
async def open_gateway(
    database: Database,
    key_ring: KeyRing,
    *,
    settings: SessionSettings = QUICK,
    platform: Platform = PRETEND,
    observer: SessionObserver | None = None,
    scheduled: bool = False,
    leases: type[LeaseStore] = LeaseStore,
    limits: HttpLimits = QUICK_LIMITS,
) -> AsyncIterator[SessionManager]:
    """A gateway's session manager, with or without its scheduler."""
    manager = SessionManager(
        providers=ProviderStore(database, key_ring),
        leases=leases(database, key_ring, owner=new_owner()),
        cache=CacheStore(database),
        registry=Registry([("tests", platform)]),
        policy=AddressPolicy(allowed_networks=LOCAL_NETWORKS),
        limits=limits,
        settings=settings,
        observer=observer,
    )
    running = asyncio.create_task(manager.run()) if scheduled else None
    try:
        yield manager
    finally:
        await manager.aclose()
        if running is not None:
            await running


async def read(manager: SessionManager, provider_id: str = "1") -> None:
    """Make one call that needs a session."""
    async with manager.session(provider_id) as session:
        await session.list_users(position=None, limit=10)


async def grant_of(manager: SessionManager, provider_id: str = "1") -> Grant:
    async with manager.session(provider_id, SERVICE) as session:
        assert isinstance(session, PretendSession)
        return await session.current_grant()


async def until(condition: Callable[[], bool], *, seconds: float = 5) -> None:
    """Wait for a condition, and fail when it does not come true."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - conditions are of any kind
            await asyncio.sleep(0.01)
