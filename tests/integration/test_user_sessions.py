"""Thousands of independent sessions, each renewed when it is used and never otherwise."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from user_sessions import Lab, canvas_lab

from sessions.errors import ProviderRateLimited, ProviderUnavailable, ReauthRequired
from sessions.manager import SessionManager, SessionSettings
from simulators.canvas.app import running
from simulators.canvas.profiles import HOSTED_NOW, OSS_2019, OSS_2024, Profile
from simulators.canvas.state import Canvas
from simulators.moving_time import MovingTime, moving_time
from storage.credentials import KeyRing, Secret
from storage.database import open_database
from storage.leases import Claim, LeaseStore, StoredSession, Transition
from storage.records import SessionState

CODY = "3"
HOUR = 3600.0


@pytest.fixture
def clock() -> Iterator[MovingTime]:
    with moving_time() as clock:
        yield clock


@pytest.fixture(params=[OSS_2019, OSS_2024, HOSTED_NOW], ids=lambda profile: profile.name)
def profile(request: pytest.FixtureRequest) -> Profile:
    assert isinstance(request.param, Profile)
    return request.param


@pytest.fixture
async def lab(
    clock: MovingTime, sqlite_url: str, key_ring: KeyRing, profile: Profile
) -> AsyncIterator[Lab]:
    async with (
        open_database(sqlite_url) as database,
        canvas_lab(database, key_ring, profile=profile) as lab,
    ):
        yield lab


@pytest.fixture
async def gateway(lab: Lab) -> AsyncIterator[SessionManager]:
    async with lab.gateway(scheduled=True) as gateway:
        yield gateway


async def idle(gateway: SessionManager) -> None:
    """Wait until every renewal begun in the background is done."""
    for _ in range(200):
        await asyncio.sleep(0.01)
        busy = [
            machinery
            for installation in gateway._installations._open.values()
            for machinery in installation._machinery_by_subject.values()
            if machinery.authorization.busy
        ]
        if not busy:
            return


async def test_a_user_who_is_away_costs_nothing_for_a_day(
    lab: Lab, gateway: SessionManager, clock: MovingTime
) -> None:
    await lab.authorize(gateway, CODY)
    await lab.whoami(gateway, CODY)

    for _ in range(24):
        clock.advance(HOUR)
        await asyncio.sleep(0.06)
    before = lab.refreshes(CODY)
    found = await lab.whoami(gateway, CODY)

    assert (before, found, lab.refreshes(CODY)) == (0, CODY, 1)


async def test_a_grant_that_is_used_is_renewed_before_it_ends_while_callers_go_on(
    lab: Lab, gateway: SessionManager, clock: MovingTime
) -> None:
    token = await lab.authorize(gateway, CODY)
    earlier = token.access
    await lab.whoami(gateway, CODY)
    clock.advance(0.78 * HOUR)

    found = await asyncio.gather(*(lab.whoami(gateway, CODY) for _ in range(20)))
    await idle(gateway)
    clock.advance(0.5 * HOUR)
    found.append(await lab.whoami(gateway, CODY))

    assert set(found) == {CODY}
    assert lab.refreshes(CODY) == 1
    assert token.access != earlier


async def test_a_thousand_callers_at_the_moment_of_expiry_cost_one_renewal(
    lab: Lab, gateway: SessionManager, clock: MovingTime
) -> None:
    await lab.authorize(gateway, CODY)
    await lab.whoami(gateway, CODY)
    clock.advance(HOUR + 1)
    lab.canvas.throttle.enabled = False  # a thousand calls of one user are not the matter here

    found = await asyncio.gather(*(lab.whoami(gateway, CODY) for _ in range(1000)))

    assert set(found) == {CODY}
    assert lab.refreshes(CODY) == 1


async def test_callers_of_several_gateways_cost_one_renewal(
    lab: Lab, gateway: SessionManager, clock: MovingTime
) -> None:
    await lab.authorize(gateway, CODY)
    async with lab.gateway() as other, lab.gateway() as third:
        for each in (gateway, other, third):
            await lab.whoami(each, CODY)
        clock.advance(HOUR + 1)
        lab.canvas.throttle.enabled = False

        await asyncio.gather(
            *(lab.whoami(each, CODY) for each in (gateway, other, third) for _ in range(30))
        )

    assert lab.refreshes(CODY) == 1


class CrashingLeases(LeaseStore):
    """Loses its process between the provider's answer and the commit."""

    async def commit_session(
        self, claim: Claim, *arguments: object, **more: object
    ) -> StoredSession:
        raise asyncio.CancelledError


async def test_a_gateway_killed_between_renewal_and_storing_logs_nobody_out(
    lab: Lab, gateway: SessionManager, clock: MovingTime
) -> None:
    token = await lab.authorize(gateway, CODY)
    clock.advance(HOUR + 1)
    async with lab.gateway(leases=CrashingLeases) as doomed:
        with pytest.raises(ProviderUnavailable):
            await lab.whoami(doomed, CODY)
    assert lab.refreshes(CODY) == 1
    clock.advance(20)  # the lease of the dead one runs out

    found = await lab.whoami(gateway, CODY)

    assert found == CODY
    assert lab.refreshes(CODY) == 2
    assert token.access in lab.canvas.tokens
    assert (await lab.status(gateway, CODY)).state is SessionState.ACTIVE


async def test_a_throttled_renewal_is_told_with_its_time_and_logs_nobody_out(
    lab: Lab, gateway: SessionManager, clock: MovingTime
) -> None:
    await lab.authorize(gateway, CODY)
    clock.advance(HOUR + 1)
    lab.canvas.fail("throttled", path="/login/oauth2/token")

    with pytest.raises(ProviderRateLimited) as refused:
        await lab.whoami(gateway, CODY)
    clock.advance(30)
    found = await lab.whoami(gateway, CODY)

    assert refused.value.retry_after_seconds is not None
    assert found == CODY
    assert (await lab.status(gateway, CODY)).state is SessionState.ACTIVE


async def test_a_revoked_grant_costs_one_renewal_and_asks_the_user_to_sign_in(
    lab: Lab, gateway: SessionManager, clock: MovingTime
) -> None:
    await lab.authorize(gateway, CODY)
    await lab.whoami(gateway, CODY)
    lab.canvas.revoke_user(int(CODY))
    lab.canvas.reset()

    for _ in range(3):
        with pytest.raises(ReauthRequired) as refused:
            await lab.whoami(gateway, CODY)

    assert refused.value.subject == f"user:{CODY}"
    assert lab.canvas.counts.calls["POST", "/login/oauth2/token"] == 1
    assert (await lab.status(gateway, CODY)).state is SessionState.REAUTH_REQUIRED


async def test_signing_in_again_cures_the_session_in_every_gateway(
    lab: Lab, gateway: SessionManager, clock: MovingTime
) -> None:
    await lab.authorize(gateway, CODY)
    lab.canvas.revoke_user(int(CODY))
    async with lab.gateway() as other:
        for each in (gateway, other):
            with pytest.raises(ReauthRequired):
                await lab.whoami(each, CODY)

        await lab.authorize(gateway, CODY)
        clock.advance(2)
        found = [await lab.whoami(each, CODY) for each in (gateway, other)]

    assert found == [CODY, CODY]


async def test_a_renewed_grant_that_is_refused_at_once_is_not_renewed_again(
    lab: Lab, gateway: SessionManager, clock: MovingTime
) -> None:
    await lab.authorize(gateway, CODY)
    await lab.whoami(gateway, CODY)
    clock.advance(10)  # some releases renew nothing that is younger than 5 seconds
    lab.canvas.population.users[int(CODY)].workflow_state = "deleted"
    lab.canvas.reset()

    with pytest.raises(ReauthRequired):
        await lab.whoami(gateway, CODY)

    assert lab.refreshes(CODY) == 1
    assert (await lab.status(gateway, CODY)).state is SessionState.REAUTH_REQUIRED


async def test_a_session_somebody_else_is_putting_right_is_not_given_up(
    lab: Lab, clock: MovingTime
) -> None:
    user = lab.canvas.population.users[int(CODY)]

    class SecondClaimTooLate(LeaseStore):
        claims = 0

        async def claim_session(
            self, seen: StoredSession, transition: Transition, **more: Any
        ) -> Claim | None:
            type(self).claims += transition is Transition.RENEW
            if transition is Transition.RENEW and self.claims == 2:
                user.workflow_state = "registered"
                clock.advance(10)
                return None
            return await super().claim_session(seen, transition, **more)

    async with lab.gateway(leases=SecondClaimTooLate) as gateway:
        await lab.authorize(gateway, CODY)
        clock.advance(10)
        user.workflow_state = "deleted"
        found = await lab.whoami(gateway, CODY)
        status = await lab.status(gateway, CODY)

    assert found == CODY
    assert (status.state, status.problem) == (SessionState.ACTIVE, None)


async def test_of_many_users_those_used_last_are_kept_and_the_others_come_back(lab: Lab) -> None:
    users = [str(user_id) for user_id in (2, 3, 4, 6, 7, 8, 9, 12)]
    settings = SessionSettings(max_subjects=4)
    async with lab.gateway(settings=settings) as gateway:
        for user_id in users:
            await lab.authorize(gateway, user_id)
        found = [await lab.whoami(gateway, user_id) for user_id in (*users, *users)]
        kept = list(gateway._installations._open["2"]._machinery_by_subject)

    assert found == [*users, *users]
    assert "service" in kept
    assert kept[-1] == "user:12"
    assert len(kept) <= 5
    assert sum(lab.canvas.counts.refreshes_by_user.values()) == 0


async def test_nobody_who_never_signed_in_leaves_a_row(lab: Lab, gateway: SessionManager) -> None:
    with pytest.raises(ReauthRequired) as refused:
        await lab.whoami(gateway, "4")

    assert refused.value.message == (
        "The user has to sign in to Simulated Canvas to authorise the gateway"
    )
    assert await gateway.list_statuses() == []
    assert lab.canvas.counts.total() == 0


async def test_a_new_service_token_leaves_users_signed_in(
    lab: Lab, gateway: SessionManager
) -> None:
    await lab.authorize(gateway, CODY)
    credentials = (await lab.providers.credentials("2")).reveal()
    await lab.providers.update("2", credentials=Secret({**credentials, "api_key": "another"}))
    await gateway.forget("2")
    found = await lab.whoami(gateway, CODY)

    assert found == CODY
    assert lab.refreshes(CODY) == 0


async def test_a_grant_never_goes_to_another_address(lab: Lab, gateway: SessionManager) -> None:
    await lab.authorize(gateway, CODY)
    elsewhere = Canvas()
    async with running(elsewhere) as url:
        await lab.providers.update("2", base_url=url)
        await gateway.forget("2")

        with pytest.raises(ReauthRequired):
            await lab.whoami(gateway, CODY)

        assert elsewhere.counts.total() == 0


async def test_disconnecting_a_user_ends_the_grant_at_the_provider_too(
    lab: Lab, gateway: SessionManager, clock: MovingTime
) -> None:
    token = await lab.authorize(gateway, CODY)
    clock.advance(HOUR + 1)

    await gateway.revoke("2", f"user:{CODY}")

    assert token.access not in lab.canvas.tokens
    assert token.refresh not in lab.canvas.tokens_by_refresh
    with pytest.raises(ReauthRequired):
        await lab.whoami(gateway, CODY)


async def test_signing_in_anew_ends_the_earlier_grant(lab: Lab, gateway: SessionManager) -> None:
    earlier = await lab.authorize(gateway, CODY)

    later = await lab.authorize(gateway, CODY)

    assert earlier.access not in lab.canvas.tokens
    assert later.access in lab.canvas.tokens


async def test_removing_a_provider_ends_everybodys_grant(lab: Lab, gateway: SessionManager) -> None:
    tokens = [await lab.authorize(gateway, str(user_id)) for user_id in range(2, 10)]

    await gateway.revoke_all("2")

    assert [token for token in tokens if token.access in lab.canvas.tokens] == []
