"""Leases on every database: one holder at a time, and a late one changes nothing."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
from sqlalchemy import select, update

from storage.credentials import KeyRing, Secret
from storage.database import Database
from storage.errors import CredentialsUnreadable
from storage.leases import (
    Claim,
    JobClaim,
    LeaseStore,
    LoginAllowance,
    Problem,
    Prolongation,
    StoredSession,
    Transition,
)
from storage.providers import ProviderStore
from storage.records import ProviderState, SessionState
from storage.tables import session, session_log

TERMS = "the terms"
GRANT: Secret[Mapping[str, str]] = Secret({"cookie": "c00kie", "csrf": "t0ken"})
OTHER_GRANT: Secret[Mapping[str, str]] = Secret({"cookie": "other"})
PROBLEM = Problem(code="PROVIDER_TIMEOUT", message="It did not answer")


@dataclass(frozen=True, kw_only=True)
class Gateways:
    """Two gateways on one database, and a provider both know."""

    database: Database
    providers: ProviderStore
    one: LeaseStore
    two: LeaseStore

    async def seen(self) -> StoredSession:
        found = await self.one.ensure_session("1", "service")
        assert found is not None
        return found

    async def claimed(
        self,
        leases: LeaseStore,
        *,
        lease_seconds: float = 30,
        transition: Transition = Transition.LOG_IN,
        allowance: LoginAllowance | None = None,
    ) -> Claim:
        claim = await leases.claim_session(
            await self.seen(), transition, lease_seconds=lease_seconds, allowance=allowance
        )
        assert claim is not None
        return claim

    async def committed(
        self, *, next_seconds: float | None = None, grant: Secret[Mapping[str, str]] = GRANT
    ) -> StoredSession:
        stored = await self.one.commit_session(
            await self.claimed(self.one),
            grant,
            terms=TERMS,
            lifetime_seconds=1200,
            next_seconds=next_seconds,
        )
        assert stored is not None
        return stored

    async def history(self) -> list[tuple[str, str, int, str | None]]:
        statement = select(session_log).order_by(session_log.c.id)
        async with self.database.read() as connection:
            rows = (await connection.execute(statement)).all()
        return [(row.transition, row.outcome, row.version, row.reason) for row in rows]

    async def claimed_job(self, leases: LeaseStore, *, lease_seconds: float = 30) -> JobClaim:
        await leases.ensure_job("export", "1|service|activity")
        claim = await leases.claim_job("export", "1|service|activity", lease_seconds=lease_seconds)
        assert claim is not None
        return claim


async def register(providers: ProviderStore, provider_id: str) -> None:
    await providers.add(
        id=provider_id,
        platform="pretend",
        name=f"Provider {provider_id}",
        base_url="http://127.0.0.1:18300",
        credentials=Secret({"password": "p"}),
        state=ProviderState.ACTIVE,
    )


@pytest.fixture
async def gateways(any_database: Database, key_ring: KeyRing) -> Gateways:
    providers = ProviderStore(any_database, key_ring)
    await register(providers, "1")
    return Gateways(
        database=any_database,
        providers=providers,
        one=LeaseStore(any_database, key_ring, owner="one"),
        two=LeaseStore(any_database, key_ring, owner="two"),
    )


async def test_a_new_session_is_empty_and_its_lease_is_free(gateways: Gateways) -> None:
    seen = await gateways.seen()

    assert (seen.version, seen.fence, seen.state) == (0, 0, SessionState.EMPTY)
    assert seen.grant is None
    assert seen.terms is None
    assert not seen.leased


async def test_a_provider_that_is_not_registered_has_no_session(gateways: Gateways) -> None:
    found = await gateways.one.ensure_session("unknown", "service")

    assert found is None
    assert await gateways.one.find_session("unknown", "service") is None


async def test_of_fifty_claims_at_once_exactly_one_is_granted(gateways: Gateways) -> None:
    seen = await gateways.seen()

    claims = await asyncio.gather(
        *(
            leases.claim_session(seen, Transition.LOG_IN, lease_seconds=30)
            for leases in (gateways.one, gateways.two)
            for _ in range(25)
        )
    )

    assert len([claim for claim in claims if claim is not None]) == 1
    assert (await gateways.seen()).fence == 1


async def test_a_claim_on_what_was_seen_before_another_claim_is_refused(
    gateways: Gateways,
) -> None:
    seen = await gateways.seen()
    await gateways.one.release_session(await gateways.claimed(gateways.one))

    claim = await gateways.two.claim_session(seen, Transition.LOG_IN, lease_seconds=30)

    assert claim is None
    assert (await gateways.seen()).fence == 1


async def test_a_lease_that_ran_out_is_anybodys(gateways: Gateways) -> None:
    first = await gateways.claimed(gateways.one, lease_seconds=0.05)
    await asyncio.sleep(0.1)

    second = await gateways.claimed(gateways.two)

    assert first.seconds_left < 0
    assert 29 < second.seconds_left <= 30
    assert second.fence == first.fence + 1


async def test_a_committed_grant_is_what_everybody_reads(gateways: Gateways) -> None:
    stored = await gateways.committed(next_seconds=300)

    read = await gateways.two.find_session("1", "service")
    assert read is not None
    assert (read.version, read.state, read.grant, read.terms) == (
        1,
        SessionState.ACTIVE,
        GRANT,
        TERMS,
    )
    assert read.seconds_to_expiry == pytest.approx(1200, abs=5)
    assert read.seconds_to_next == pytest.approx(300, abs=5)
    assert not read.leased
    assert stored.grant == GRANT
    assert await gateways.history() == [("log_in", "committed", 1, None)]


async def test_a_holder_that_was_overtaken_changes_nothing(gateways: Gateways) -> None:
    late = await gateways.claimed(gateways.one, lease_seconds=0.05)
    await asyncio.sleep(0.1)
    await gateways.two.commit_session(
        await gateways.claimed(gateways.two),
        OTHER_GRANT,
        terms=TERMS,
        lifetime_seconds=None,
        next_seconds=None,
    )

    stored = await gateways.one.commit_session(
        late, GRANT, terms=TERMS, lifetime_seconds=1200, next_seconds=300
    )
    failed = await gateways.one.fail_session(
        late, PROBLEM, state=SessionState.BACKOFF, next_seconds=1
    )
    lost = await gateways.one.lose_session(late)
    await gateways.one.release_session(late)

    assert stored is None
    assert not failed
    assert not lost
    now = await gateways.seen()
    assert (now.version, now.state, now.grant) == (1, SessionState.ACTIVE, OTHER_GRANT)
    assert [line[:2] for line in await gateways.history()] == [
        ("log_in", "committed"),
        ("log_in", "fenced"),
    ]


async def test_a_claim_alone_fences_the_holder_before(gateways: Gateways) -> None:
    late = await gateways.claimed(gateways.one, lease_seconds=0.05)
    await asyncio.sleep(0.1)
    await gateways.claimed(gateways.two)

    stored = await gateways.one.commit_session(
        late, GRANT, terms=TERMS, lifetime_seconds=None, next_seconds=None
    )

    assert stored is None
    assert (await gateways.seen()).leased


async def test_a_grant_that_consumed_its_predecessor_is_stored_even_late(
    gateways: Gateways,
) -> None:
    late = await gateways.claimed(gateways.one, lease_seconds=0.05)
    await asyncio.sleep(0.1)
    second = await gateways.claimed(gateways.two)

    stored = await gateways.one.commit_session(
        late,
        GRANT,
        terms=TERMS,
        lifetime_seconds=None,
        next_seconds=None,
        require_fence=False,
    )
    overtaken = await gateways.two.commit_session(
        second,
        OTHER_GRANT,
        terms=TERMS,
        lifetime_seconds=None,
        next_seconds=None,
        require_fence=False,
    )

    assert stored is not None
    assert stored.version == 1
    assert overtaken is None
    assert (await gateways.seen()).grant == GRANT


async def test_a_commit_repeated_because_its_answer_was_lost_is_no_second_one(
    gateways: Gateways,
) -> None:
    claim = await gateways.claimed(gateways.one)
    for _ in range(2):
        stored = await gateways.one.commit_session(
            claim, GRANT, terms=TERMS, lifetime_seconds=None, next_seconds=None
        )
        assert stored is not None
        assert stored.version == 1

    assert await gateways.history() == [("log_in", "committed", 1, None)]


async def test_a_sealed_grant_moved_to_another_row_cannot_be_read(gateways: Gateways) -> None:
    await gateways.committed()
    await register(gateways.providers, "2")
    await gateways.one.ensure_session("2", "service")
    async with gateways.database.transaction() as connection:
        stolen = select(session.c.secret).where(session.c.provider_id == "1").scalar_subquery()
        await connection.execute(
            update(session).where(session.c.provider_id == "2").values(secret=stolen)
        )

    with pytest.raises(CredentialsUnreadable):
        await gateways.one.find_session("2", "service")


async def test_five_logins_within_the_window_are_all_that_is_allowed(gateways: Gateways) -> None:
    allowance = LoginAllowance(count=5, window_seconds=600)
    for leases in (gateways.one, gateways.two, gateways.one, gateways.two, gateways.one):
        await leases.release_session(await gateways.claimed(leases, allowance=allowance))

    refused = await gateways.two.claim_session(
        await gateways.seen(), Transition.LOG_IN, lease_seconds=30, allowance=allowance
    )

    assert refused is None
    seen = await gateways.seen()
    assert seen.login_count == 5
    assert seen.window_age_seconds == pytest.approx(0, abs=5)
    assert not seen.leased


async def test_logins_are_counted_anew_when_the_window_is_over(gateways: Gateways) -> None:
    allowance = LoginAllowance(count=1, window_seconds=0.05)
    await gateways.one.release_session(await gateways.claimed(gateways.one, allowance=allowance))
    await asyncio.sleep(0.1)

    await gateways.claimed(gateways.one, allowance=allowance)

    assert (await gateways.seen()).login_count == 1


async def test_a_failed_login_that_may_be_tried_again_is_not_counted(gateways: Gateways) -> None:
    claim = await gateways.claimed(
        gateways.one, allowance=LoginAllowance(count=5, window_seconds=600)
    )

    held = await gateways.one.fail_session(
        claim, PROBLEM, state=SessionState.BACKOFF, next_seconds=60, uncount_login=True
    )

    assert held
    seen = await gateways.seen()
    assert (seen.login_count, seen.failures, seen.state) == (0, 1, SessionState.BACKOFF)
    assert seen.problem == PROBLEM
    assert seen.seconds_to_next == pytest.approx(60, abs=5)
    assert not seen.leased


async def test_the_same_failure_again_is_one_line_of_history(gateways: Gateways) -> None:
    for _ in range(3):
        await gateways.one.fail_session(
            await gateways.claimed(gateways.one),
            PROBLEM,
            state=SessionState.BACKOFF,
            next_seconds=0,
        )

    assert await gateways.history() == [("log_in", "failed", 0, "PROVIDER_TIMEOUT")]
    assert (await gateways.seen()).failures == 3


async def test_a_refusal_is_kept_with_the_terms_it_holds_for(gateways: Gateways) -> None:
    await gateways.one.fail_session(
        await gateways.claimed(gateways.one),
        Problem(code="REAUTH_REQUIRED", message="The password is wrong"),
        state=SessionState.REAUTH_REQUIRED,
        terms=TERMS,
        next_seconds=None,
    )

    seen = await gateways.seen()
    assert (seen.state, seen.grant, seen.terms) == (SessionState.REAUTH_REQUIRED, None, TERMS)
    assert await gateways.history() == [("log_in", "refused", 0, "REAUTH_REQUIRED")]


async def test_a_failed_heartbeat_keeps_the_grant(gateways: Gateways) -> None:
    await gateways.committed()

    await gateways.one.fail_session(
        await gateways.claimed(gateways.one, transition=Transition.KEEP_ALIVE),
        PROBLEM,
        state=SessionState.ACTIVE,
        next_seconds=2,
    )

    seen = await gateways.seen()
    assert (seen.state, seen.version, seen.grant) == (SessionState.ACTIVE, 1, GRANT)
    assert seen.seconds_to_expiry == pytest.approx(1200, abs=5)


async def test_a_lost_grant_is_gone_and_the_next_has_a_higher_version(gateways: Gateways) -> None:
    await gateways.committed()

    lost = await gateways.one.lose_session(
        await gateways.claimed(gateways.one, transition=Transition.KEEP_ALIVE)
    )

    assert lost
    seen = await gateways.seen()
    assert (seen.state, seen.version, seen.grant) == (SessionState.EMPTY, 1, None)
    assert (await gateways.committed()).version == 2


async def test_a_reset_fences_what_is_in_flight_and_forgets_everything(
    gateways: Gateways,
) -> None:
    await gateways.committed()
    in_flight = await gateways.claimed(gateways.one)

    await gateways.two.reset_sessions("1")

    stored = await gateways.one.commit_session(
        in_flight, OTHER_GRANT, terms=TERMS, lifetime_seconds=None, next_seconds=None
    )
    assert stored is None
    seen = await gateways.seen()
    assert (seen.state, seen.version, seen.grant, seen.login_count) == (
        SessionState.EMPTY,
        2,
        None,
        0,
    )


async def test_due_sessions_go_to_one_claimant_each(gateways: Gateways) -> None:
    for number in range(2, 42):
        await register(gateways.providers, str(number))
        seen = await gateways.one.ensure_session(str(number), "service")
        assert seen is not None
        claim = await gateways.one.claim_session(seen, Transition.LOG_IN, lease_seconds=30)
        assert claim is not None
        await gateways.one.commit_session(
            claim, GRANT, terms=TERMS, lifetime_seconds=None, next_seconds=-number
        )
    await gateways.committed(next_seconds=60)

    batches = await asyncio.gather(
        *(
            leases.claim_due_sessions(limit=15, lease_seconds=30)
            for leases in (gateways.one, gateways.two, gateways.one, gateways.two)
        )
    )

    claimed = [claim.seen.provider_id for batch in batches for claim in batch]
    assert len(claimed) == len(set(claimed)) == 40
    assert "1" not in claimed
    assert all(claim.seen.grant == GRANT for batch in batches for claim in batch)
    assert await gateways.one.claim_due_sessions(limit=15, lease_seconds=30) == []


async def test_the_longest_due_session_is_claimed_first(gateways: Gateways) -> None:
    await register(gateways.providers, "2")
    for provider_id, late in (("1", 5), ("2", 50)):
        seen = await gateways.one.ensure_session(provider_id, "service")
        assert seen is not None
        claim = await gateways.one.claim_session(seen, Transition.LOG_IN, lease_seconds=30)
        assert claim is not None
        await gateways.one.commit_session(
            claim, GRANT, terms=TERMS, lifetime_seconds=None, next_seconds=-late
        )

    batch = await gateways.one.claim_due_sessions(limit=1, lease_seconds=30)

    assert [claim.seen.provider_id for claim in batch] == ["2"]
    assert batch[0].seen.seconds_to_next == pytest.approx(-50, abs=5)


async def test_many_prolonged_at_once_pass_over_a_fenced_one(gateways: Gateways) -> None:
    await register(gateways.providers, "2")
    for provider_id in ("1", "2"):
        seen = await gateways.one.ensure_session(provider_id, "service")
        assert seen is not None
        claim = await gateways.one.claim_session(seen, Transition.LOG_IN, lease_seconds=30)
        assert claim is not None
        await gateways.one.commit_session(
            claim, GRANT, terms=TERMS, lifetime_seconds=10, next_seconds=0
        )
    claims = await gateways.one.claim_due_sessions(limit=5, lease_seconds=30)
    await gateways.two.reset_sessions("2")

    await gateways.one.prolong_sessions(
        [Prolongation(claim=claim, lifetime_seconds=1200, next_seconds=300) for claim in claims]
    )

    first = await gateways.one.find_session("1", "service")
    second = await gateways.one.find_session("2", "service")
    assert first is not None
    assert second is not None
    assert (first.version, first.leased) == (1, False)
    assert first.seconds_to_expiry == pytest.approx(1200, abs=5)
    assert first.seconds_to_next == pytest.approx(300, abs=5)
    assert (second.state, second.expires_at) == (SessionState.EMPTY, None)


async def test_only_sessions_whose_pause_is_over_are_to_be_retried(gateways: Gateways) -> None:
    await register(gateways.providers, "2")
    for provider_id, pause in (("1", -1), ("2", 60)):
        seen = await gateways.one.ensure_session(provider_id, "service")
        assert seen is not None
        claim = await gateways.one.claim_session(seen, Transition.LOG_IN, lease_seconds=30)
        assert claim is not None
        await gateways.one.fail_session(
            claim, PROBLEM, state=SessionState.BACKOFF, next_seconds=pause
        )

    due = await gateways.two.list_due_retries(limit=10)

    assert due == [("1", "service")]


async def test_a_gateway_that_stops_gives_back_its_own_leases_only(gateways: Gateways) -> None:
    await gateways.claimed(gateways.one)
    job = await gateways.claimed_job(gateways.two)

    await gateways.one.release_all()

    assert not (await gateways.seen()).leased
    assert await gateways.two.renew_job(job, lease_seconds=30)


async def test_a_status_tells_state_and_history_and_no_secret(gateways: Gateways) -> None:
    await gateways.committed(next_seconds=300)
    empty = await gateways.one.find_status("2", "service")

    status = await gateways.one.find_status("1", "service")

    assert empty is None
    assert status is not None
    assert (status.state, status.version) == (SessionState.ACTIVE, 1)
    assert [line.outcome for line in status.transitions] == ["committed"]
    assert status.next_transition_at is not None
    assert status.expires_at is not None
    assert "c00kie" not in repr(status)
    assert "c00kie" not in repr(await gateways.seen())


async def test_a_session_in_transition_shows_as_refreshing(gateways: Gateways) -> None:
    await gateways.committed()
    await gateways.claimed(gateways.one, transition=Transition.KEEP_ALIVE)

    statuses = await gateways.two.list_statuses()

    assert [status.state for status in statuses] == [SessionState.REFRESHING]


async def test_a_session_of_a_disabled_provider_shows_as_disabled(gateways: Gateways) -> None:
    await gateways.committed()

    await gateways.providers.update("1", state=ProviderState.DISABLED)

    statuses = await gateways.two.list_statuses()
    assert [status.state for status in statuses] == [SessionState.DISABLED]


async def test_statuses_are_narrowed_and_limited_for_each_provider(gateways: Gateways) -> None:
    await register(gateways.providers, "2")
    for provider_id in ("1", "2"):
        for subject in ("service", "user:3", "user:4"):
            await gateways.one.ensure_session(provider_id, subject)
    await gateways.committed()

    every = await gateways.two.list_statuses(limit=2)
    active = await gateways.two.list_statuses(states=[SessionState.ACTIVE])
    one = await gateways.two.list_statuses(provider_ids=["2"], subject="user:4")

    assert [(status.provider_id, status.subject) for status in every] == [
        ("1", "service"), ("1", "user:3"), ("2", "service"), ("2", "user:3"),
    ]  # fmt: skip
    assert [(status.provider_id, status.subject) for status in active] == [("1", "service")]
    assert [(status.provider_id, status.subject) for status in one] == [("2", "user:4")]


async def test_sessions_are_counted_by_provider_and_shown_state(gateways: Gateways) -> None:
    await register(gateways.providers, "2")
    for subject in ("service", "user:3", "user:4"):
        await gateways.one.ensure_session("1", subject)
    await gateways.committed()
    await gateways.claimed(gateways.one, transition=Transition.RENEW)
    await gateways.one.ensure_session("2", "service")
    await gateways.providers.update("2", state=ProviderState.DISABLED)

    counts = await gateways.two.count_sessions()

    assert counts == {
        ("1", SessionState.EMPTY): 2,
        ("1", SessionState.REFRESHING): 1,
        ("2", SessionState.DISABLED): 1,
    }


async def test_what_is_due_next_is_known_without_claiming(gateways: Gateways) -> None:
    nothing = await gateways.one.seconds_until_due("export")
    await gateways.committed(next_seconds=300)
    session_due = await gateways.one.seconds_until_due("export")

    await gateways.one.ensure_job("export", "1|service|activity")

    job_due = await gateways.one.seconds_until_due("export")
    assert nothing is None
    assert session_due == pytest.approx(300, abs=5)
    assert job_due == pytest.approx(0, abs=5)


async def test_a_job_planned_twice_is_there_once_and_stays_as_it_is(gateways: Gateways) -> None:
    claim = await gateways.claimed_job(gateways.one)
    await gateways.one.finish_job(claim, next_seconds=1800)

    await gateways.two.ensure_job("export", "1|service|activity")

    found = await gateways.one.find_job("export", "1|service|activity")
    assert found is not None
    assert found.seconds_to_due == pytest.approx(1800, abs=5)


async def test_the_lease_of_a_starting_provider_is_given_back_by_its_holder_alone(
    gateways: Gateways,
) -> None:
    async with gateways.one.starting_over("1", lease_seconds=30):
        async with gateways.two.starting_over("1", lease_seconds=30):
            pass
        during = await gateways.two.is_starting_over("1")
    after = await gateways.two.is_starting_over("1")

    assert (during, after) == (True, False)


async def test_a_due_job_goes_to_one_claimant(gateways: Gateways) -> None:
    await gateways.one.ensure_job("export", "1|service|activity")

    batches = await asyncio.gather(
        *(
            leases.claim_due_jobs("export", limit=5, lease_seconds=30)
            for leases in (gateways.one, gateways.two)
            for _ in range(10)
        )
    )

    assert sum(len(batch) for batch in batches) == 1


async def test_a_job_taken_over_cannot_be_finished_by_its_holder_before(
    gateways: Gateways,
) -> None:
    late = await gateways.claimed_job(gateways.one, lease_seconds=0.05)
    await asyncio.sleep(0.1)
    current = await gateways.claimed_job(gateways.two)

    renewed = await gateways.one.renew_job(late, lease_seconds=30)
    finished = await gateways.one.finish_job(late, next_seconds=0)

    assert not renewed
    assert not finished
    assert await gateways.two.finish_job(current, next_seconds=1800)


async def test_a_renewed_job_cannot_be_taken_over(gateways: Gateways) -> None:
    claim = await gateways.claimed_job(gateways.one, lease_seconds=0.05)
    renewed = await gateways.one.renew_job(claim, lease_seconds=30)
    await asyncio.sleep(0.1)

    taken = await gateways.two.claim_job("export", "1|service|activity", lease_seconds=30)

    assert renewed
    assert taken is None


async def test_failed_runs_are_counted_and_a_good_one_starts_the_count_again(
    gateways: Gateways,
) -> None:
    for _ in range(2):
        await gateways.one.finish_job(
            await gateways.claimed_job(gateways.one),
            next_seconds=-1,
            problem=PROBLEM,
            count_attempt=True,
        )
    failed = await gateways.one.find_job("export", "1|service|activity")

    await gateways.one.finish_job(await gateways.claimed_job(gateways.one), next_seconds=60)

    good = await gateways.one.find_job("export", "1|service|activity")
    assert failed is not None
    assert (failed.attempts, failed.problem) == (2, PROBLEM)
    assert good is not None
    assert (good.attempts, good.problem) == (0, None)


async def test_jobs_are_removed_by_the_exact_beginning_of_their_keys(gateways: Gateways) -> None:
    for key in ("a|service|x", "a|service|y", "A|service|x", "ab|service|x", "a%|service|x"):
        await gateways.one.ensure_job("export", key)

    removed = await gateways.one.remove_jobs("export", key_prefix="a|")

    assert removed == 2
    assert await gateways.one.find_job("export", "A|service|x") is not None
    assert await gateways.one.find_job("export", "a|service|x") is None
