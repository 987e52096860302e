"""Many users of one simulated Canvas, each with an OAuth session of their own."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

from pretend_platform import PretendSession

from sessions.addresses import LOCAL_NETWORKS, AddressPolicy
from sessions.authorization import SessionSettings
from sessions.base import Capability, CredentialField, Grant, NewGrant, Platform, SubjectKind
from sessions.errors import (
    ProviderRateLimited,
    ProviderUnavailable,
    ReauthRequired,
    SessionLost,
)
from sessions.installations import MachineryLoan
from sessions.manager import SessionManager, new_owner
from sessions.pacing import Bucket
from sessions.registry import Registry
from simulators.canvas.app import running
from simulators.canvas.profiles import HOSTED_NOW, Profile
from simulators.canvas.state import CLIENT_ID, CLIENT_SECRET, Canvas, Code, Token, VirtualClock
from storage.cache import CacheStore
from storage.credentials import KeyRing, Secret
from storage.database import Database
from storage.leases import LeaseStore, SessionStatus
from storage.providers import ProviderStore
from storage.records import ProviderState

GRANT_BUCKET = Bucket(capacity=600, leak_per_second=10, reserve=50, cost=200, concurrency=4)


class PlainCanvasSession(PretendSession):
    """As little of Canvas as sessions need: renew a grant, and read who it belongs to."""

    def can_renew(self, grant: Grant) -> bool:
        return "refresh_token" in grant.secret.reveal()

    async def renew(self, grant: Grant, credentials: Secret[Mapping[str, str]]) -> NewGrant:
        known, client = grant.secret.reveal(), credentials.reveal()
        answer = await self._http.request(
            "POST",
            "/login/oauth2/token",
            form={
                "grant_type": "refresh_token",
                "client_id": client["client_id"],
                "client_secret": client["client_secret"],
                "refresh_token": known["refresh_token"],
            },
            expected={429},
        )
        pacer = self._http.pacers.get("grants", GRANT_BUCKET)
        pacer.note_room(answer.headers.get("x-rate-limit-remaining"))
        if answer.status in {403, 429}:
            pause = pacer.note_refusal()
            raise ProviderRateLimited(
                "Throttled", provider_id=self.provider.id, retry_after_seconds=round(pause)
            )
        if answer.status == 400:
            raise ReauthRequired("Revoked", provider_id=self.provider.id)
        body = answer.decode(dict[str, object])
        if not body["access_token"]:
            raise ProviderUnavailable("Too soon", provider_id=self.provider.id)
        return granted(str(body["access_token"]), known["refresh_token"], body.get("expires_in"))

    async def log_out(self, grant: NewGrant) -> None:
        await self._http.request("DELETE", "/login/oauth2/token", headers=bearer(grant))

    async def whoami(self) -> str:
        async def ask(grant: Grant) -> str:
            answer = await self._http.request("GET", "/api/v1/users/self", headers=bearer(grant))
            if answer.status == 401:
                raise SessionLost
            return str(answer.decode(dict[str, object])["id"])

        return await self.authorised(ask)


PLAIN_CANVAS = Platform(
    name="plain-canvas",
    title="Canvas",
    session=PlainCanvasSession,
    credential_fields=(CredentialField(name="api_key", label="Token", secret=True),),
    capabilities=frozenset({Capability.USERS}),
    concurrency=16,
    subjects=frozenset(SubjectKind),
    user_terms=("client_id",),
    grant_bucket=GRANT_BUCKET,
)


def bearer(grant: Grant | NewGrant) -> Mapping[str, str]:
    return {"Authorization": f"Bearer {grant.secret.reveal()['access_token']}"}


def granted(access: str, refresh: str, expires_in: object) -> NewGrant:
    return NewGrant(
        secret=Secret({"access_token": access, "refresh_token": refresh}),
        lifetime_seconds=float(str(expires_in)) if expires_in is not None else None,
    )


@dataclass(kw_only=True)
class Lab:
    """One simulated Canvas, registered as provider 2 in one database."""

    canvas: Canvas
    database: Database
    key_ring: KeyRing
    platform: Platform
    url: str

    @property
    def providers(self) -> ProviderStore:
        return ProviderStore(self.database, self.key_ring)

    @asynccontextmanager
    async def gateway(
        self,
        *,
        settings: SessionSettings | None = None,
        leases: type[LeaseStore] = LeaseStore,
        scheduled: bool = False,
    ) -> AsyncIterator[SessionManager]:
        """One gateway process's worth of sessions."""
        manager = SessionManager(
            providers=self.providers,
            leases=leases(self.database, self.key_ring, owner=new_owner()),
            cache=CacheStore(self.database),
            registry=Registry([("tests", self.platform)]),
            policy=AddressPolicy(allowed_networks=LOCAL_NETWORKS),
            settings=settings or SessionSettings(tick_seconds=0.05),
        )
        running = asyncio.create_task(manager.run()) if scheduled else None
        try:
            yield manager
        finally:
            await manager.aclose()
            if running is not None:
                await running

    async def authorize(self, manager: SessionManager, user_id: str) -> Token:
        """Give the gateway a user's grant, as the provider would after consent."""
        token = self.canvas.grant(
            self.canvas.keys[CLIENT_ID],
            Code(
                user_id=int(user_id),
                key_id=CLIENT_ID,
                scopes=None,
                userinfo_only=False,
                challenge=None,
                expires_at=self.canvas.clock() + 600,
            ),
        )
        assert token.refresh is not None
        expires_in = None if token.expires_at is None else token.expires_at - self.canvas.clock()
        async with MachineryLoan(manager._installations, "2", f"user:{user_id}") as behind:
            await behind.authorization.adopt(granted(token.access, token.refresh, expires_in))
        return token

    async def whoami(self, manager: SessionManager, user_id: str) -> str:
        """Use a user's session for one call."""
        async with manager.session("2", f"user:{user_id}") as session:
            assert isinstance(session, PlainCanvasSession)
            return await session.whoami()

    def refreshes(self, user_id: str) -> int:
        """How often the user's grant was renewed, counted at the provider."""
        return self.canvas.counts.refreshes_by_user[int(user_id)]

    async def status(self, manager: SessionManager, user_id: str) -> SessionStatus:
        return await manager.status("2", f"user:{user_id}")


@asynccontextmanager
async def canvas_lab(
    database: Database,
    key_ring: KeyRing,
    *,
    profile: Profile = HOSTED_NOW,
    platform: Platform = PLAIN_CANVAS,
    canvas: Canvas | None = None,
    url: str | None = None,
) -> AsyncIterator[Lab]:
    """Register a simulated Canvas, served here unless it is served already at ``url``."""
    canvas = canvas or Canvas(profile=replace(profile), clock=VirtualClock(ticking=True))
    async with AsyncExitStack() as stack:
        served = url
        if served is None:
            served = await stack.enter_async_context(running(canvas))
        lab = Lab(
            canvas=canvas, database=database, key_ring=key_ring, platform=platform, url=served
        )
        await lab.providers.add(
            id="2",
            platform=platform.name,
            name="Simulated Canvas",
            base_url=served,
            credentials=Secret(
                {"api_key": "t0ken", "client_id": CLIENT_ID, "client_secret": CLIENT_SECRET}
            ),
            state=ProviderState.ACTIVE,
        )
        yield lab
