"""What the store of people promises, on every database, and under any order of decisions."""

import asyncio
import base64
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import delete, insert, select

from storage.credentials import KeyRing, Secret
from storage.database import Database, open_database
from storage.imports import RosterKind
from storage.leases import JobClaim, LeaseStore
from storage.matching import (
    MATCH_JOB,
    MatchOrder,
    MatchRun,
    MatchRunState,
    MatchStatus,
    MatchStore,
    Suggested,
    SuggestionFilter,
)
from storage.people import (
    AUTOMATIC,
    AccountKey,
    Decided,
    DecisionKind,
    Pair,
    PeopleRefusal,
    PeopleStore,
    ProviderConflict,
    StaleDecision,
    Unknown,
    Verdict,
    pair_of,
)
from storage.providers import ProviderStore
from storage.tables import match_verdict, person_account, snapshot

T = TypeVar("T")
ADA_1, ADA_2, ADA_3 = ("1", "ada"), ("2", "ada"), ("3", "ada")
BEN_1, BEN_2 = ("1", "ben"), ("2", "ben")
ALL_STATUSES = tuple(MatchStatus)
State = tuple[frozenset[Any], frozenset[Any]]


async def _page(rows: Sequence[Suggested]) -> AsyncIterator[Sequence[Suggested]]:
    yield rows


class Desk:
    """The stores of people and matching, over accounts that imports have seen."""

    def __init__(self, database: Database, key_ring: KeyRing) -> None:
        self.database = database
        self.people = PeopleStore(database)
        self.matching = MatchStore(database)
        self.leases = LeaseStore(database, key_ring, owner="tests")
        self.providers = ProviderStore(database, key_ring)

    async def add_provider(self, provider_id: str) -> None:
        await self.providers.add(
            id=provider_id,
            platform="pretend",
            name="Pretend",
            base_url="http://pretend.example",
            credentials=Secret({}),
        )

    async def see(self, *accounts: AccountKey) -> None:
        """Have an import find accounts."""
        async with self.database.transaction() as connection:
            for provider_id, external_id in accounts:
                await connection.execute(
                    insert(snapshot).values(
                        provider_id=provider_id,
                        kind=RosterKind.USERS.value,
                        external_id=external_id,
                        sha256=b"",
                        record=b"",
                        seen_reading=0,
                    )
                )

    async def lose(self, account: AccountKey) -> None:
        """Have an import find that an account is gone."""
        async with self.database.transaction() as connection:
            await connection.execute(
                delete(snapshot).where(
                    snapshot.c.provider_id == account[0], snapshot.c.external_id == account[1]
                )
            )
        await self.matching.drop_accounts(account[0], [account[1]])

    async def state(self) -> State:
        """Return every link and every verdict."""
        async with self.database.read() as connection:
            links = await connection.execute(select(person_account))
            verdicts = await connection.execute(select(match_verdict))
            return frozenset(map(tuple, links)), frozenset(map(tuple, verdicts))

    async def suggest(self, *pairs: Pair, score: float = 0.5) -> MatchRun:
        """Have a run suggest pairs."""
        provider_ids = tuple(sorted({account[0] for pair in pairs for account in pair}))
        run, claim = await self.begin(provider_ids)
        for providers in run.pairs:
            rows = [
                suggested(pair, score) for pair in pairs if (pair[0][0], pair[1][0]) == providers
            ]
            put = await self.matching.put_suggestions(
                claim, run, providers, _page(rows), lease_seconds=30
            )
            assert put is not None
            run = put
        ended = await self.matching.end(claim, run, MatchRunState.DONE)
        assert ended is not None
        return ended

    async def begin(self, provider_ids: tuple[str, ...]) -> tuple[MatchRun, JobClaim]:
        run, _ = await self.matching.request(
            MatchOrder(provider_ids=provider_ids), requested_by="key"
        )
        claim = await self.leases.claim_job(MATCH_JOB, str(run.id), lease_seconds=30)
        assert claim is not None
        begun = await self.matching.begin(claim)
        assert begun is not None
        noted = await self.matching.note(claim, begun, model_version="m1")
        assert noted is not None
        return noted, claim

    async def statuses(self, *provider_ids: str) -> dict[Pair, MatchStatus]:
        wanted = SuggestionFilter(provider_ids=provider_ids, statuses=ALL_STATUSES)
        found = await self.matching.list_suggestions(wanted, limit=1000)
        return {row.pair: row.status for row in found}


def suggested(pair: Pair, score: float) -> Suggested:
    return Suggested(pair=pair, score=score, weight=1.0, prior=-9.0, evidence=b"", competitors=b"")


def done(outcome: Decided | PeopleRefusal) -> Decided:
    assert isinstance(outcome, Decided), outcome
    return outcome


def decision_id(outcome: Decided | PeopleRefusal) -> int:
    decision = done(outcome).decision
    assert decision is not None
    return decision.id


@pytest.fixture
async def desk(any_database: Database, key_ring: KeyRing) -> Desk:
    desk = Desk(any_database, key_ring)
    for provider_id in ("1", "2", "3"):
        await desk.add_provider(provider_id)
    await desk.see(ADA_1, ADA_2, ADA_3, BEN_1, BEN_2)
    return desk


async def test_two_accounts_that_are_confirmed_are_one_person(desk: Desk) -> None:
    outcome = done(await desk.people.confirm((ADA_1, ADA_2), decided_by="key"))

    assert outcome.person_id is not None
    assert await desk.people.find_accounts([outcome.person_id]) == {
        outcome.person_id: [ADA_1, ADA_2]
    }
    assert await desk.people.find_persons_of([ADA_1, ADA_2, BEN_1]) == {
        ADA_1: outcome.person_id,
        ADA_2: outcome.person_id,
    }
    decision = outcome.decision
    assert decision is not None
    assert (decision.kind, decision.decided_by) == (DecisionKind.CONFIRM, "key")
    assert decision.accounts == (ADA_1, ADA_2)
    assert await desk.people.list_verdicts(["1", "2"]) == {(ADA_1, ADA_2): Verdict.CONFIRMED}


async def test_what_was_confirmed_before_is_confirmed_again_without_a_decision(
    desk: Desk,
) -> None:
    first = done(await desk.people.confirm((ADA_1, ADA_2), decided_by="key"))

    again = done(await desk.people.confirm((ADA_1, ADA_2), decided_by="another"))

    assert again == Decided(decision=None, person_id=first.person_id)
    assert [one.decided_by for one in await desk.people.list_decisions(limit=10)] == ["key"]


async def test_confirming_joins_all_accounts_of_both_persons(desk: Desk) -> None:
    await desk.people.confirm((ADA_1, ADA_2), decided_by="key")

    outcome = done(await desk.people.confirm((ADA_2, ADA_3), decided_by="key"))

    assert outcome.person_id is not None
    found = await desk.people.find_accounts([outcome.person_id])
    assert found[outcome.person_id] == [ADA_1, ADA_2, ADA_3]


async def test_a_person_gets_no_second_account_of_a_provider(desk: Desk) -> None:
    await desk.people.confirm((ADA_1, ADA_2), decided_by="key")
    before = await desk.state()

    outcome = await desk.people.confirm((BEN_1, ADA_2), decided_by="key")

    assert outcome == ProviderConflict(provider_id="1", accounts=(ADA_1, BEN_1))
    assert await desk.state() == before


async def test_a_rejected_pair_is_not_confirmed_nor_linked_by_a_detour(desk: Desk) -> None:
    rejected = decision_id(await desk.people.reject((ADA_1, ADA_2), decided_by="key"))
    await desk.people.link([ADA_2, ADA_3], decided_by="key")
    before = await desk.state()

    directly = await desk.people.confirm((ADA_1, ADA_2), decided_by="key")
    by_a_detour = await desk.people.confirm((ADA_1, ADA_3), decided_by="key")
    unasked = await desk.people.link_automatically([(ADA_1, ADA_2), (ADA_1, ADA_3)])

    for outcome in (directly, by_a_detour):
        assert isinstance(outcome, StaleDecision)
        assert outcome.decision_id == rejected
    assert unasked == 0
    assert await desk.state() == before


async def test_two_accounts_of_one_person_are_not_rejected_but_unlinked(desk: Desk) -> None:
    linked = done(await desk.people.link([ADA_1, ADA_2, ADA_3], decided_by="key"))
    before = await desk.state()

    outcome = await desk.people.reject((ADA_1, ADA_2), decided_by="key")

    assert isinstance(outcome, StaleDecision)
    assert outcome.decision_id == (linked.decision.id if linked.decision else None)
    assert await desk.state() == before
    done(await desk.people.unlink(ADA_2, decided_by="key", keep_apart=True))
    assert await desk.people.list_verdicts(["1", "2", "3"]) == {
        (ADA_1, ADA_2): Verdict.REJECTED,
        (ADA_1, ADA_3): Verdict.CONFIRMED,
        (ADA_2, ADA_3): Verdict.REJECTED,
    }


async def test_an_account_unlinked_without_keeping_it_apart_may_come_back(desk: Desk) -> None:
    await desk.people.link([ADA_1, ADA_2], decided_by="key")

    done(await desk.people.unlink(ADA_2, decided_by="key", keep_apart=False))

    assert await desk.people.list_verdicts(["1", "2"]) == {}
    assert await desk.people.link_automatically([(ADA_1, ADA_2)]) == 1
    (latest, *_) = await desk.people.list_decisions(limit=1)
    assert (latest.kind, latest.decided_by) == (DecisionKind.AUTO_LINK, AUTOMATIC)


async def test_undoing_restores_links_verdicts_and_the_persons_id(desk: Desk) -> None:
    await desk.people.confirm((ADA_1, ADA_2), decided_by="key")
    before = await desk.state()
    unlinked = decision_id(await desk.people.unlink(ADA_1, decided_by="key", keep_apart=True))
    after = await desk.state()

    undone = decision_id(await desk.people.undo(unlinked, decided_by="other"))

    assert await desk.state() == before
    decision = await desk.people.find_decision(unlinked)
    assert decision is not None
    assert decision.undone_by == undone
    assert isinstance(await desk.people.undo(unlinked, decided_by="other"), StaleDecision)
    done(await desk.people.undo(undone, decided_by="other"))
    assert await desk.state() == after


async def test_what_a_later_decision_changed_is_not_undone_under_it(desk: Desk) -> None:
    first = decision_id(await desk.people.confirm((ADA_1, ADA_2), decided_by="key"))
    second = decision_id(await desk.people.unlink(ADA_2, decided_by="key", keep_apart=True))
    before = await desk.state()

    outcome = await desk.people.undo(first, decided_by="key")

    assert isinstance(outcome, StaleDecision)
    assert outcome.decision_id == second
    assert await desk.state() == before


async def test_undoing_does_not_part_what_was_confirmed_since(desk: Desk) -> None:
    one = done(await desk.people.link([ADA_1, ADA_2], decided_by="key"))
    await desk.add_provider("4")
    await desk.see(("4", "ada"))
    other = done(await desk.people.link([ADA_3, ("4", "ada")], decided_by="key"))
    assert one.person_id is not None
    assert other.person_id is not None
    merged = decision_id(
        await desk.people.merge(one.person_id, [other.person_id], decided_by="key")
    )
    confirmed = decision_id(await desk.people.confirm((ADA_1, ADA_3), decided_by="key"))
    before = await desk.state()

    outcome = await desk.people.undo(merged, decided_by="key")

    assert isinstance(outcome, StaleDecision)
    assert outcome.decision_id == confirmed
    assert await desk.state() == before


async def test_persons_are_merged_under_the_first_ones_id(desk: Desk) -> None:
    one = done(await desk.people.link([ADA_1, ADA_2], decided_by="key"))
    alone = done(await desk.people.link([ADA_3, BEN_1], decided_by="key"))
    await desk.people.unlink(BEN_1, decided_by="key", keep_apart=False)
    assert one.person_id is not None
    assert alone.person_id is not None

    merged = done(await desk.people.merge(one.person_id, [alone.person_id], decided_by="key"))

    assert merged.person_id == one.person_id
    assert await desk.people.find_accounts([one.person_id, alone.person_id]) == {
        one.person_id: [ADA_1, ADA_2, ADA_3]
    }
    assert await desk.people.merge("nobody", [one.person_id], decided_by="key") == Unknown(
        field="intoId", message="There is no such person"
    )


async def test_what_no_import_has_seen_is_not_decided_on(desk: Desk) -> None:
    outcome = await desk.people.link([ADA_1, ("2", "nobody")], decided_by="key")

    assert isinstance(outcome, StaleDecision)
    assert await desk.state() == (frozenset(), frozenset())
    assert await desk.people.undo(4711, decided_by="key") == Unknown(
        field="decisionId", message="There is no such decision"
    )


async def test_decisions_outlast_an_account_that_goes_and_comes_back(desk: Desk) -> None:
    await desk.people.confirm((ADA_1, ADA_2), decided_by="key")
    await desk.people.reject((BEN_1, BEN_2), decided_by="key")
    before = await desk.state()

    await desk.lose(ADA_2)
    await desk.lose(BEN_2)
    await desk.see(ADA_2, BEN_2)

    assert await desk.state() == before


async def test_a_provider_that_is_removed_takes_what_was_decided_of_it(desk: Desk) -> None:
    first = decision_id(await desk.people.confirm((ADA_1, ADA_2), decided_by="key"))
    await desk.people.reject((BEN_1, BEN_2), decided_by="key")

    await desk.providers.remove("2")

    links, verdicts = await desk.state()
    assert {row[:2] for row in links} == {ADA_1}
    assert verdicts == frozenset()
    done(await desk.people.undo(first, decided_by="key"))
    assert await desk.state() == (frozenset(), frozenset())
    (latest, *_) = await desk.people.list_decisions(limit=9)
    await desk.providers.remove("1")
    nothing_left = await desk.people.undo(latest.id, decided_by="key")
    assert isinstance(nothing_left, StaleDecision)
    with pytest.raises(ValueError, match="no pair"):
        pair_of(ADA_1, BEN_1)


async def test_a_file_of_links_is_tried_whole_and_nothing_is_kept(desk: Desk) -> None:
    groups = [[ADA_1, ADA_2], [BEN_1, ADA_2], [BEN_1, BEN_2], [ADA_1, ADA_2]]

    tried = await desk.people.link_all(groups, decided_by="key", dry_run=True)
    assert await desk.state() == (frozenset(), frozenset())
    linked = await desk.people.link_all(groups, decided_by="key")

    for outcomes in (tried, linked):
        first, second, third, fourth = outcomes
        assert done(first).decision is not None
        assert second == ProviderConflict(provider_id="1", accounts=(ADA_1, BEN_1))
        assert done(third).decision is not None
        assert done(fourth).decision is None
    assert {tuple(row[:2]) for row in (await desk.state())[0]} == {ADA_1, ADA_2, BEN_1, BEN_2}


async def test_two_who_decide_at_once_decide_one_after_the_other(desk: Desk) -> None:
    outcomes = await asyncio.gather(
        desk.people.confirm((ADA_1, ADA_2), decided_by="one"),
        desk.people.confirm((BEN_1, ADA_2), decided_by="other"),
        desk.people.reject((ADA_1, ADA_2), decided_by="third"),
    )

    decided = [one for one in outcomes if isinstance(one, Decided)]
    refused = [one for one in outcomes if not isinstance(one, Decided)]
    assert (len(decided), len(refused)) in {(1, 2), (2, 1)}
    check(await desk.state())


async def test_suggestions_say_how_they_stand(desk: Desk) -> None:
    await desk.suggest((ADA_1, ADA_2), (ADA_1, BEN_2), (BEN_1, ADA_2), (BEN_1, BEN_2))
    await desk.people.confirm((ADA_1, ADA_2), decided_by="key")
    await desk.people.reject((BEN_1, BEN_2), decided_by="key")

    assert await desk.statuses("1", "2") == {
        (ADA_1, ADA_2): MatchStatus.CONFIRMED,
        (ADA_1, BEN_2): MatchStatus.SUPERSEDED,
        (BEN_1, ADA_2): MatchStatus.SUPERSEDED,
        (BEN_1, BEN_2): MatchStatus.REJECTED,
    }
    (found,) = (await desk.matching.find_suggestions([(ADA_1, ADA_2)])).values()
    assert (found.decided_by, found.model_version, found.weight) == ("key", "m1", 1.0)


async def test_a_new_run_suggests_anew_what_nobody_decided_on(desk: Desk) -> None:
    await desk.suggest((ADA_1, ADA_2), (BEN_1, BEN_2), (BEN_1, ADA_2))
    await desk.people.reject((BEN_1, BEN_2), decided_by="key")

    run = await desk.suggest((ADA_1, BEN_2), (BEN_1, BEN_2), score=0.9)

    assert await desk.statuses("1", "2") == {
        (ADA_1, BEN_2): MatchStatus.SUGGESTED,
        (BEN_1, BEN_2): MatchStatus.REJECTED,
    }
    assert (run.state, run.pairs_done, run.suggestion_count) == (MatchRunState.DONE, 1, 1)


async def test_a_decision_on_a_suggestion_that_was_made_anew_is_stale(desk: Desk) -> None:
    await desk.suggest((ADA_1, ADA_2))

    stale = await desk.people.confirm((ADA_1, ADA_2), decided_by="key", model_version="m0")
    fresh = await desk.people.confirm((ADA_1, ADA_2), decided_by="key", model_version="m1")

    assert isinstance(stale, StaleDecision)
    assert isinstance(fresh, Decided)


async def test_suggestions_are_walked_by_score_page_by_page(desk: Desk) -> None:
    pairs = [(ADA_1, ADA_2), (ADA_1, BEN_2), (BEN_1, ADA_2), (BEN_1, BEN_2)]
    run, claim = await desk.begin(("1", "2"))
    rows = [suggested(pair, score) for pair, score in zip(pairs, (0.5, 0.9, 0.5, 0.1), strict=True)]
    await desk.matching.put_suggestions(claim, run, ("1", "2"), _page(rows), lease_seconds=30)
    wanted = SuggestionFilter(provider_ids=["1", "2"], least_score=0.2)

    walked: list[Pair] = []
    after = None
    while True:
        page = await desk.matching.list_suggestions(wanted, after=after, limit=1)
        if not page:
            break
        walked += [row.pair for row in page]
        after = (page[-1].score, page[-1].pair)

    assert walked == [pairs[1], pairs[0], pairs[2]]
    assert await desk.matching.count_suggestions(wanted) == 3
    upwards = await desk.matching.list_suggestions(wanted, descending=False, limit=9)
    assert [row.score for row in upwards] == [0.5, 0.5, 0.9]


async def test_what_joins_accounts_is_kept_and_listed_pair_by_pair(desk: Desk) -> None:
    pairs = [(ADA_1, ADA_2), (ADA_1, BEN_2), (BEN_1, BEN_2)]
    run, claim = await desk.begin(("1", "2"))
    rows = [
        replace(suggested(pair, 0.5), bits=bits)
        for pair, bits in zip(pairs, (1.25, -3.5, None), strict=True)
    ]
    await desk.matching.put_suggestions(claim, run, ("1", "2"), _page(rows), lease_seconds=30)

    first = await desk.matching.list_scores(["1", "2"], limit=2)
    rest = await desk.matching.list_scores(["1", "2"], after=first[-1][0], limit=2)

    assert [*first, *rest] == [
        (pairs[0], 0.5, 1.25),
        (pairs[1], 0.5, -3.5),
        (pairs[2], 0.5, None),
    ]
    assert [await desk.matching.list_scores(["1", "3"], limit=2)] == [[]]


async def test_a_run_whose_lease_was_taken_over_writes_nothing(desk: Desk) -> None:
    run, claim = await desk.begin(("1", "2"))
    await desk.leases.renew_job(claim, lease_seconds=0)
    taken = await desk.leases.claim_job(MATCH_JOB, str(run.id), lease_seconds=30)
    assert taken is not None

    rows = [suggested((ADA_1, ADA_2), 0.5)]
    put = await desk.matching.put_suggestions(claim, run, ("1", "2"), _page(rows), lease_seconds=30)

    assert put is None
    assert await desk.matching.end(claim, run, MatchRunState.DONE) is None
    assert await desk.statuses("1", "2") == {}
    gone_on = await desk.matching.begin(taken)
    assert gone_on is not None
    assert (gone_on.state, gone_on.pairs_done) == (MatchRunState.RUNNING, 0)


def check(state: State) -> None:
    """Check the three things that always hold."""
    links, verdicts = state
    persons = {(provider, account): person for provider, account, person in links}
    held = [(person, provider) for provider, _account, person in links]
    assert len(held) == len(set(held)), "a person has two accounts of one provider"
    for left_provider, left, right_provider, right, verdict in verdicts:
        one, other = persons.get((left_provider, left)), persons.get((right_provider, right))
        are_one = one is not None and one == other
        assert are_one is (verdict != "REJECTED"), "a verdict does not hold"


PROVIDERS = ("1", "2", "3", "4")
ACCOUNTS = [(provider, name) for provider in PROVIDERS for name in ("ada", "ben")]
PAIRS = [
    pair_of(one, other)
    for one in ACCOUNTS
    for other in ACCOUNTS
    if one < other
    if one[0] != other[0]
]
accounts = st.sampled_from(ACCOUNTS)
pairs = st.sampled_from(PAIRS)


EXAMPLES = int(os.environ.get("GATEWAY_TEST_DECISIONS", "10"))
"""Stories of 25 steps each; more by command, such as GATEWAY_TEST_DECISIONS=400."""


class Deciding(RuleBasedStateMachine):
    """Decisions, imports and removals in any order, on one SQLite file."""

    template: Path

    @initialize()
    def open(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.runner = asyncio.Runner()
        path = Path(self.folder.name) / "gateway.db"
        shutil.copyfile(self.template, path)
        self.opening = open_database(f"sqlite:///{path}")
        key_ring = KeyRing.parse(f"k1:{base64.b64encode(bytes(32)).decode()}")
        self.desk = Desk(self.do(self.opening.__aenter__()), key_ring)
        self.people = self.desk.people
        for provider in PROVIDERS:
            self.do(self.desk.add_provider(provider))
        self.do(self.desk.see(*ACCOUNTS))
        self.there = set(ACCOUNTS)
        self.was: State = (frozenset(), frozenset())
        self.around: dict[int, tuple[State, State]] = {}
        self.decisions: list[int] = []

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def state(self) -> State:
        return self.do(self.desk.state())

    def settle(self, outcome: Decided | PeopleRefusal, *, undoes: int | None = None) -> None:
        """Check what came of a decision against the state before it."""
        before, now = self.was, self.state()
        if not isinstance(outcome, Decided) or outcome.decision is None:
            assert now == before, "a refusal changed something"
            return
        assert now != before
        if undoes is None:
            rejected = {row for row in before[1] if row[-1] == "REJECTED"}
            assert rejected <= now[1], "a rejected pair came back"
        number = outcome.decision.id
        self.around[number] = (before, now)
        if undoes is not None:
            self.check_undone(undoes, before, now)
        self.decisions.append(number)
        self.was = now

    def check_undone(self, number: int, before: State, now: State) -> None:
        """Check that exactly the rows of a decision were put back, and stood as it left them."""
        for old, new, stood, stands in zip(*self.around[number], before, now, strict=True):
            assert new - old <= stood, "what a later decision changed was undone"
            assert stands == (stood - (new - old)) | (old - new), "not exactly what was before"

    @rule(pair=pairs)
    def confirm(self, pair: Pair) -> None:
        self.settle(self.do(self.people.confirm(pair, decided_by="key")))

    @rule(pair=pairs)
    def reject(self, pair: Pair) -> None:
        self.settle(self.do(self.people.reject(pair, decided_by="key")))
        self.check_suggested()

    @rule(named=st.lists(accounts, min_size=2, max_size=3, unique=True))
    def link(self, named: list[AccountKey]) -> None:
        self.settle(self.do(self.people.link(named, decided_by="key")))

    @rule(account=accounts, keep_apart=st.booleans())
    def unlink(self, account: AccountKey, keep_apart: bool) -> None:  # noqa: FBT001 - hypothesis gives it
        self.settle(self.do(self.people.unlink(account, decided_by="key", keep_apart=keep_apart)))

    @rule(pair=pairs)
    def merge(self, pair: Pair) -> None:
        persons = {row[:2]: row[2] for row in self.was[0]}
        into, other = persons.get(pair[0]), persons.get(pair[1])
        if into is not None and other is not None and into != other:
            self.settle(self.do(self.people.merge(into, [other], decided_by="key")))

    @rule(pair=pairs)
    def link_unasked(self, pair: Pair) -> None:
        linked = self.do(self.people.link_automatically([pair]))
        now = self.state()
        assert (now != self.was) is bool(linked)
        if linked:
            (decision,) = self.do(self.people.list_decisions(limit=1))
            self.around[decision.id] = (self.was, now)
            self.decisions.append(decision.id)
            self.was = now

    @precondition(lambda self: self.decisions)
    @rule(back=st.integers(0, 3))
    def undo(self, back: int) -> None:
        number = self.decisions[-1 - min(back, len(self.decisions) - 1)]
        self.settle(self.do(self.people.undo(number, decided_by="key")), undoes=number)

    @rule(account=accounts)
    def import_without_or_with(self, account: AccountKey) -> None:
        if account in self.there:
            self.do(self.desk.lose(account))
        else:
            self.do(self.desk.see(account))
        self.there ^= {account}
        assert self.state() == self.was

    @rule(some=st.lists(pairs, min_size=1, max_size=4, unique=True))
    def run(self, some: list[Pair]) -> None:
        self.do(self.desk.suggest(*some))
        assert self.state() == self.was
        self.check_suggested()

    @rule(provider=st.sampled_from(PROVIDERS))
    def remove_and_register(self, provider: str) -> None:
        self.do(self.desk.providers.remove(provider))
        self.do(self.desk.add_provider(provider))
        here = [account for account in sorted(self.there) if account[0] == provider]
        self.do(self.desk.see(*here))
        self.was = self.state()
        assert not [row for row in self.was[0] if row[0] == provider]
        self.decisions.clear()  # what was before them is not to be had any more

    @invariant()
    def what_always_holds(self) -> None:
        if not hasattr(self, "desk"):
            return
        check(self.was)

    def check_suggested(self) -> None:
        """Check that no rejected pair is suggested."""
        rejected = {
            ((row[0], row[1]), (row[2], row[3])) for row in self.was[1] if row[-1] == "REJECTED"
        }
        statuses = self.do(self.desk.statuses(*PROVIDERS))
        undecided = {pair for pair, status in statuses.items() if status is MatchStatus.SUGGESTED}
        assert not undecided & rejected, "a rejected pair is suggested"

    def teardown(self) -> None:
        if hasattr(self, "opening"):
            self.do(self.opening.__aexit__(None, None, None))
            self.runner.close()
            self.folder.cleanup()


def test_what_always_holds_does_under_any_order_of_decisions(migrated_file: Path) -> None:
    Deciding.template = migrated_file
    case = Deciding.TestCase
    case.settings = settings(
        max_examples=EXAMPLES,
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    case().runTest()
