"""People: which accounts are one person's, and everything that was decided about it.

A person is a set of accounts, at most one of each provider. What somebody said of two accounts is
kept as a *verdict* on the pair. Three things hold after every commit, whatever was done and in
whatever order, and what would break one of them is refused:

1. No person has two accounts of one provider; the table's unique index says so too.
2. No person has two accounts whose pair is REJECTED.
3. Two accounts whose pair is CONFIRMED or AUTO_LINKED are one person's.

Accounts are named by provider and external id, so that what was decided stays when an import
drops an account and a later one brings it back. It goes with the provider.

Every decision writes down what it changed, row by row, before and after. It is undone by putting
the rows back, unless one of them was changed since, or the three things would not hold. Decisions
are made one after another: each locks the counter's row that numbers them.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, TypeAlias

from sqlalchemy import (
    ColumnElement,
    and_,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.engine import RowMapping
from sqlalchemy.ext.asyncio import AsyncConnection

from storage.database import Database
from storage.imports import RosterKind
from storage.tables import (
    database_now,
    match_suggestion,
    match_verdict,
    people_change,
    people_counter,
    people_decision,
    person_account,
    snapshot,
)

AccountKey: TypeAlias = tuple[str, str]
"""Provider id and external id of an account."""

Pair: TypeAlias = tuple[AccountKey, AccountKey]
"""Two accounts of different providers, the smaller key first."""

AUTOMATIC: Final = "automatic"
"""Who decided what a run linked unasked."""

_COUNTER_ID: Final = 1
_PERSON_BYTES: Final = 12
_KEYS_AT_ONCE: Final = 500
_LINKED_AT_ONCE: Final = 100


class Verdict(StrEnum):
    """What was said of two accounts.

    CONFIRMED: somebody says they are one person's; AUTO_LINKED: a run linked them, because it was
    sure enough; REJECTED: somebody says they are not.
    """

    CONFIRMED = "CONFIRMED"
    AUTO_LINKED = "AUTO_LINKED"
    REJECTED = "REJECTED"


class DecisionKind(StrEnum):
    """What somebody decided.

    CONFIRM, REJECT: of a pair; LINK: accounts are one person's; UNLINK: an account is not its
    person's; MERGE: persons are one; AUTO_LINK: a run linked a pair; UNDO: a decision was undone.
    """

    CONFIRM = "CONFIRM"
    REJECT = "REJECT"
    LINK = "LINK"
    UNLINK = "UNLINK"
    MERGE = "MERGE"
    AUTO_LINK = "AUTO_LINK"
    UNDO = "UNDO"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Something that was decided.

    Attributes:
        id: Rises from decision to decision, with gaps.
        decided_by: Id of the API key, ``command-line``, or ``AUTOMATIC``.
        undoes: The decision it undid; ``None`` unless it is an UNDO.
        undone_by: The decision that undid it; ``None`` while it stands.
        accounts: Those it changed something of, as far as their providers are still registered.
    """

    id: int
    at: datetime
    kind: DecisionKind
    decided_by: str
    undoes: int | None
    undone_by: int | None
    accounts: tuple[AccountKey, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """It is as was asked.

    Attributes:
        decision: What was written down; ``None`` when it had been so before.
        person_id: The person that the accounts asked about now are; ``None`` when they are not
            one, or no person's.
    """

    decision: Decision | None
    person_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderConflict:
    """A person would have had two accounts of one provider; nothing was changed."""

    provider_id: str
    accounts: tuple[AccountKey, ...]

    @property
    def message(self) -> str:
        """What is wrong, for a person."""
        return (
            "The person would have two accounts of one provider; unlink one of them first if it is"
            " not theirs"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StaleDecision:
    """Things are not as they were when it was asked for; nothing was changed.

    Attributes:
        message: What changed, for a person.
        decision_id: The decision that changed it, if one did.
    """

    message: str
    decision_id: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Unknown:
    """What it is about does not exist; nothing was changed.

    Attributes:
        field: Which input names it.
        message: For a person.
    """

    field: str
    message: str


PeopleRefusal: TypeAlias = ProviderConflict | StaleDecision | Unknown


def pair_of(one: AccountKey, other: AccountKey) -> Pair:
    """Return two accounts as a pair.

    Raises:
        ValueError: They are of one provider.
    """
    if one[0] == other[0]:
        raise ValueError("Two accounts of one provider are no pair")
    return (one, other) if one < other else (other, one)


class PeopleStore:
    """Persons, verdicts and decisions."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # Deciding.

    async def confirm(
        self, pair: Pair, *, decided_by: str, model_version: str | None = None
    ) -> Decided | PeopleRefusal:
        """Make two accounts one person's, with everything that was theirs before.

        Args:
            pair: The accounts.
            decided_by: Who says so.
            model_version: Of the suggestion that was looked at; when there is another one by now,
                the decision is stale. ``None`` to decide whatever is suggested.

        Raises:
            StorageError: The database could not do it; nothing was changed.
        """

        async def change(ledger: _Ledger) -> None:
            await ledger.load(pair)
            await ledger.check_known(pair)
            await ledger.check_suggestion(pair, model_version)
            await ledger.check_not_rejected([pair])
            ledger.unite(pair)
            ledger.judge(pair, Verdict.CONFIRMED)

        return await self._decide(DecisionKind.CONFIRM, decided_by, pair, change)

    async def reject(
        self, pair: Pair, *, decided_by: str, model_version: str | None = None
    ) -> Decided | PeopleRefusal:
        """Say that two accounts are not one person's; stale when they are one by now.

        Raises:
            StorageError: The database could not do it; nothing was changed.
        """

        async def change(ledger: _Ledger) -> None:
            await ledger.load(pair)
            await ledger.check_known(pair)
            await ledger.check_suggestion(pair, model_version)
            if ledger.are_one(pair):
                raise _Refused(
                    StaleDecision(
                        message="The two are linked as one person; unlink one of them instead",
                        decision_id=await ledger.last_decision(pair),
                    )
                )
            ledger.judge(pair, Verdict.REJECTED)

        return await self._decide(DecisionKind.REJECT, decided_by, pair, change)

    async def link(
        self, accounts: Sequence[AccountKey], *, decided_by: str
    ) -> Decided | PeopleRefusal:
        """Make accounts one person's, with everything that was theirs before.

        Raises:
            StorageError: The database could not do it; nothing was changed.
        """
        return (await self.link_all([accounts], decided_by=decided_by))[0]

    async def link_all(
        self, groups: Sequence[Sequence[AccountKey]], *, decided_by: str, dry_run: bool = False
    ) -> Sequence[Decided | PeopleRefusal]:
        """Make each group of accounts one person's, one after another, in one transaction.

        A group that cannot be is left out, and says why.

        Args:
            groups: Accounts of different providers each.
            decided_by: Who says so.
            dry_run: Whether to change nothing, and only tell what would come of it.

        Raises:
            StorageError: The database could not do it; nothing was changed.
        """
        async with self._database.transaction() as connection:
            outcomes = [
                await self._link(connection, group, decided_by=decided_by) for group in groups
            ]
            if dry_run:
                await connection.rollback()
        return outcomes

    async def link_in_parts(
        self, groups: Sequence[Sequence[AccountKey]], *, decided_by: str
    ) -> Sequence[Decided | PeopleRefusal]:
        """Do as ``link_all``, some groups in each transaction, so that others get their turn.

        Raises:
            StorageError: The database could not do it; some may have been linked.
        """
        outcomes: list[Decided | PeopleRefusal] = []
        for some in _slices(groups, _LINKED_AT_ONCE):
            outcomes += await self.link_all(some, decided_by=decided_by)
        return outcomes

    async def link_automatically(self, pairs: Iterable[Pair]) -> int:
        """Link what a run is sure of, and return how many pairs were.

        A pair that somebody decided on, or that cannot be linked, is left as it is.

        Raises:
            StorageError: The database could not do it; some may have been linked.
        """
        linked = 0
        for some in _slices(list(pairs), _LINKED_AT_ONCE):
            async with self._database.transaction() as connection:
                for pair in some:
                    linked += await self._link_automatically(connection, pair)
        return linked

    async def unlink(
        self, account: AccountKey, *, decided_by: str, keep_apart: bool
    ) -> Decided | PeopleRefusal:
        """Take an account out of its person.

        Args:
            account: Which one.
            decided_by: Who says so.
            keep_apart: Whether it is rejected with each of the person's other accounts, so that
                it is not suggested again.

        Raises:
            StorageError: The database could not do it; nothing was changed.
        """

        async def change(ledger: _Ledger) -> None:
            await ledger.load([account])
            person = ledger.persons.get(account)
            if person is None:
                return
            for other in ledger.members(person):
                if other != account:
                    pair = pair_of(account, other)
                    ledger.judge(pair, Verdict.REJECTED if keep_apart else None)
            ledger.place(account, None)

        return await self._decide(DecisionKind.UNLINK, decided_by, [account], change)

    async def merge(
        self, into: str, others: Collection[str], *, decided_by: str
    ) -> Decided | PeopleRefusal:
        """Make persons one, under the id of the first.

        Raises:
            StorageError: The database could not do it; nothing was changed.
        """

        async def change(ledger: _Ledger) -> None:
            await ledger.load((), persons=[into, *others])
            for person, field in ((into, "intoId"), *((other, "fromIds") for other in others)):
                if not ledger.members(person):
                    raise _Refused(Unknown(field=field, message="There is no such person"))
            for other in others:
                for account in ledger.members(other):
                    ledger.place(account, into)

        found = await self._decide(DecisionKind.MERGE, decided_by, (), change)
        return (
            Decided(decision=found.decision, person_id=into)
            if isinstance(found, Decided)
            else found
        )

    async def undo(self, decision_id: int, *, decided_by: str) -> Decided | PeopleRefusal:
        """Put everything back as it was before a decision; that is a decision too.

        Raises:
            StorageError: The database could not do it; nothing was changed.
        """

        async def change(ledger: _Ledger) -> None:
            await ledger.put_back(decision_id)

        return await self._decide(DecisionKind.UNDO, decided_by, (), change, undoes=decision_id)

    # Looking.

    async def find_persons_of(self, accounts: Collection[AccountKey]) -> Mapping[AccountKey, str]:
        """Return the person of each account that has one.

        Raises:
            StorageError: The database could not answer.
        """
        found: dict[AccountKey, str] = {}
        async with self._database.read() as connection:
            for keys in _slices(accounts):
                rows = await connection.execute(
                    select(person_account).where(_is_account(person_account.c, keys))
                )
                found |= {(row.provider_id, row.external_id): row.person_id for row in rows}
        return found

    async def find_accounts(
        self, person_ids: Collection[str]
    ) -> Mapping[str, Sequence[AccountKey]]:
        """Return the accounts of each person, by provider id; of one that is none, nothing.

        Raises:
            StorageError: The database could not answer.
        """
        found: dict[str, list[AccountKey]] = {}
        async with self._database.read() as connection:
            for ids in _slices(person_ids):
                rows = await connection.execute(
                    select(person_account)
                    .where(person_account.c.person_id.in_(ids))
                    .order_by(person_account.c.person_id, person_account.c.provider_id)
                )
                for row in rows:
                    found.setdefault(row.person_id, []).append((row.provider_id, row.external_id))
        return found

    async def list_persons(
        self, *, provider_ids: Collection[str], least: int, after: str | None, limit: int
    ) -> Sequence[str]:
        """Return ids of persons, in an order that stays the same.

        Args:
            provider_ids: Only accounts of these count.
            least: How many of these a person has at least.
            after: Only those behind the person of this id.
            limit: At most so many.

        Raises:
            StorageError: The database could not answer.
        """
        statement = (
            select(person_account.c.person_id)
            .where(person_account.c.provider_id.in_(provider_ids))
            .group_by(person_account.c.person_id)
            .having(func.count() >= least)
            .order_by(person_account.c.person_id)
            .limit(limit)
        )
        if after is not None:
            statement = statement.where(person_account.c.person_id > after)
        async with self._database.read() as connection:
            return [row.person_id for row in await connection.execute(statement)]

    async def list_links(self, provider_ids: Collection[str]) -> Mapping[AccountKey, str]:
        """Return every account of these providers that is a person's, with the person's id.

        Raises:
            StorageError: The database could not answer.
        """
        statement = select(person_account).where(person_account.c.provider_id.in_(provider_ids))
        async with self._database.read() as connection:
            rows = await connection.execute(statement)
            return {(row.provider_id, row.external_id): row.person_id for row in rows}

    async def list_verdicts(
        self, provider_ids: Collection[str], *, verdicts: Collection[Verdict] = tuple(Verdict)
    ) -> Mapping[Pair, Verdict]:
        """Return what was said of pairs of these providers' accounts.

        Raises:
            StorageError: The database could not answer.
        """
        statement = select(match_verdict).where(
            match_verdict.c.left_provider_id.in_(provider_ids),
            match_verdict.c.right_provider_id.in_(provider_ids),
            match_verdict.c.verdict.in_(verdicts),
        )
        async with self._database.read() as connection:
            found = (await connection.execute(statement)).mappings()
            return {_pair(row): Verdict(row["verdict"]) for row in found}

    async def find_decision(self, decision_id: int) -> Decision | None:
        """Return a decision.

        Raises:
            StorageError: The database could not answer.
        """
        async with self._database.read() as connection:
            return await _find_decision(connection, decision_id)

    async def list_decisions(
        self,
        *,
        before: int | None = None,
        accounts: Collection[AccountKey] | None = None,
        provider_ids: Collection[str] | None = None,
        limit: int,
    ) -> Sequence[Decision]:
        """Return decisions, the latest first.

        Args:
            before: Only those before the one of this id.
            accounts: Only those that changed something of one of these accounts.
            provider_ids: Only those that changed something of these providers' accounts.
            limit: At most so many.

        Raises:
            StorageError: The database could not answer.
        """
        statement = select(people_decision).order_by(people_decision.c.id.desc()).limit(limit)
        if before is not None:
            statement = statement.where(people_decision.c.id < before)
        if accounts is not None:
            touching = select(people_change.c.decision_id).where(
                or_(
                    _is_account(people_change.c, accounts),
                    tuple_(
                        people_change.c.other_provider_id, people_change.c.other_external_id
                    ).in_(accounts),
                )
            )
            statement = statement.where(people_decision.c.id.in_(touching))
        if provider_ids is not None:
            here = exists().where(
                people_change.c.decision_id == people_decision.c.id,
                or_(
                    people_change.c.provider_id.in_(provider_ids),
                    people_change.c.other_provider_id.in_(provider_ids),
                ),
            )
            statement = statement.where(here)
        async with self._database.read() as connection:
            rows = (await connection.execute(statement)).mappings().all()
            return await _with_accounts(connection, rows)

    # Rows.

    async def _link(
        self, connection: AsyncConnection, accounts: Sequence[AccountKey], *, decided_by: str
    ) -> Decided | PeopleRefusal:
        ledger = _Ledger(connection)
        named = list(dict.fromkeys(accounts))
        try:
            _check_one_each(named)
            await ledger.lock(self._database)
            await ledger.load(named)
            await ledger.check_known(named)
            pairs = [
                pair_of(one, other)
                for index, one in enumerate(named)
                for other in named[index + 1 :]
            ]
            await ledger.check_not_rejected(pairs)
            ledger.unite(named)
            for pair in pairs:
                ledger.judge(pair, Verdict.CONFIRMED)
            return await self._settle(ledger, DecisionKind.LINK, decided_by, named)
        except _Refused as refused:
            return refused.refusal

    async def _link_automatically(self, connection: AsyncConnection, pair: Pair) -> bool:
        ledger = _Ledger(connection)
        await ledger.lock(self._database)
        await ledger.load(pair)
        if pair in ledger.verdicts or ledger.are_one(pair):
            return False
        ledger.unite(pair)
        ledger.judge(pair, Verdict.AUTO_LINKED)
        try:
            await self._settle(ledger, DecisionKind.AUTO_LINK, AUTOMATIC, pair)
        except _Refused:
            return False
        return True

    async def _decide(
        self,
        kind: DecisionKind,
        decided_by: str,
        asked: Sequence[AccountKey],
        change: Callable[[_Ledger], Awaitable[None]],
        *,
        undoes: int | None = None,
    ) -> Decided | PeopleRefusal:
        try:
            async with self._database.transaction() as connection:
                ledger = _Ledger(connection)
                await ledger.lock(self._database)
                await change(ledger)
                return await self._settle(ledger, kind, decided_by, asked, undoes=undoes)
        except _Refused as refused:
            return refused.refusal

    async def _settle(
        self,
        ledger: _Ledger,
        kind: DecisionKind,
        decided_by: str,
        asked: Sequence[AccountKey],
        *,
        undoes: int | None = None,
    ) -> Decided:
        """Write what was changed, unless nothing was.

        Raises:
            _Refused: It would break what must hold.
        """
        await ledger.check_holds()
        decision = await self._write(ledger, kind, decided_by, undoes=undoes)
        persons = {ledger.persons.get(account) for account in asked}
        return Decided(decision=decision, person_id=persons.pop() if len(persons) == 1 else None)

    async def _write(
        self, ledger: _Ledger, kind: DecisionKind, decided_by: str, *, undoes: int | None = None
    ) -> Decision | None:
        changes = ledger.changes()
        if not changes:
            return None
        number = await ledger.lock(self._database)
        await ledger.write(changes)
        connection = ledger.connection
        await connection.execute(
            insert(people_decision).values(
                id=number, at=database_now(), kind=kind, decided_by=decided_by, undoes=undoes
            )
        )
        await connection.execute(
            insert(people_change),
            [
                {"decision_id": number, "position": position, **change.columns()}
                for position, change in enumerate(changes)
            ],
        )
        return await _find_decision(connection, number)


class _Refused(Exception):
    """A decision is refused; the transaction is rolled back."""

    def __init__(self, refusal: PeopleRefusal) -> None:
        super().__init__(refusal)
        self.refusal = refusal


@dataclass(frozen=True, slots=True)
class _Change:
    """A row before and after: whose an account is, or the verdict on a pair."""

    account: AccountKey
    other: AccountKey | None
    before: str | None
    after: str | None

    def columns(self) -> Mapping[str, Any]:
        other = (None, None) if self.other is None else self.other
        return {
            "provider_id": self.account[0],
            "external_id": self.account[1],
            "other_provider_id": other[0],
            "other_external_id": other[1],
            "before": self.before,
            "after": self.after,
        }


class _Ledger:
    """What of the people one decision is about: as it was, and as it is to be.

    Attributes:
        persons: The person of each account that has one, as it is to be.
        verdicts: On each pair that has one, as it is to be.
    """

    def __init__(self, connection: AsyncConnection) -> None:
        self.connection = connection
        self.persons: dict[AccountKey, str] = {}
        self.verdicts: dict[Pair, Verdict] = {}
        self._persons_before: dict[AccountKey, str] = {}
        self._verdicts_before: dict[Pair, Verdict] = {}
        self._number: int | None = None

    async def lock(self, database: Database) -> int:
        """Return the number of this decision; until the commit nobody else decides anything."""
        if self._number is None:
            statement = database.upsert(
                people_counter,
                {"id": _COUNTER_ID, "last": 1},
                change={"last": people_counter.c.last + 1},
            ).returning(people_counter.c.last)
            self._number = (await self.connection.execute(statement)).scalar_one()
        return self._number

    async def load(
        self, accounts: Collection[AccountKey], *, persons: Collection[str] = ()
    ) -> None:
        """Read the accounts' persons, all of theirs, and every verdict that touches these."""
        links = await self._links(_is_account(person_account.c, accounts))
        wanted = {*links.values(), *persons}
        links |= await self._links(person_account.c.person_id.in_(wanted))
        keys = {*accounts, *links}
        statement = select(match_verdict).where(
            or_(
                _is_account(match_verdict.c, keys, "left_"),
                _is_account(match_verdict.c, keys, "right_"),
            )
        )
        rows = (await self.connection.execute(statement)).mappings()
        verdicts = {_pair(row): Verdict(row["verdict"]) for row in rows}
        others = {account for pair in verdicts for account in pair} - keys
        links |= await self._links(_is_account(person_account.c, others))
        self.persons, self._persons_before = dict(links), links
        self.verdicts, self._verdicts_before = dict(verdicts), verdicts

    async def check_known(self, accounts: Collection[AccountKey]) -> None:
        """Refuse accounts that no import has seen, or that the last one has not."""
        statement = select(snapshot.c.provider_id, snapshot.c.external_id).where(
            snapshot.c.kind == RosterKind.USERS.value, _is_account(snapshot.c, accounts)
        )
        known = {
            (row.provider_id, row.external_id) for row in await self.connection.execute(statement)
        }
        if not known.issuperset(accounts):
            raise _Refused(
                StaleDecision(
                    message="An account is not in the last import of its provider: it is gone, or"
                    " not imported yet"
                )
            )

    async def check_suggestion(self, pair: Pair, model_version: str | None) -> None:
        """Refuse when another model than the one looked at suggests the pair by now."""
        if model_version is None:
            return
        statement = select(match_suggestion.c.model_version).where(
            _is_pair(match_suggestion.c, pair)
        )
        if (await self.connection.execute(statement)).scalar_one_or_none() != model_version:
            raise _Refused(
                StaleDecision(message="The suggestion was made anew, or is gone; look at it again")
            )

    async def check_not_rejected(self, pairs: Iterable[Pair]) -> None:
        """Refuse to make one of two accounts that were rejected."""
        for pair in pairs:
            if self.verdicts.get(pair) is Verdict.REJECTED:
                raise await self._stale(_REJECTED, pair)

    def members(self, person: str) -> Sequence[AccountKey]:
        """Return a person's accounts."""
        return sorted(account for account, one in self.persons.items() if one == person)

    def are_one(self, accounts: Collection[AccountKey]) -> bool:
        """Whether the accounts are one person's."""
        persons = {self.persons.get(account) for account in accounts}
        return len(persons) == 1 and None not in persons

    def unite(self, accounts: Collection[AccountKey]) -> None:
        """Make one person of the accounts and of all that their persons have.

        It keeps the id of the person that had most accounts.
        """
        found = {self.persons[account] for account in accounts if account in self.persons}
        sizes = {person: len(self.members(person)) for person in found}
        person = min(found, key=lambda one: (-sizes[one], one), default=None)
        if person is None:
            person = secrets.token_hex(_PERSON_BYTES)
        for account in [*accounts, *(member for one in found for member in self.members(one))]:
            self.place(account, person)

    def place(self, account: AccountKey, person: str | None) -> None:
        """Give an account to a person, or to nobody."""
        if person is None:
            self.persons.pop(account, None)
        else:
            self.persons[account] = person

    def judge(self, pair: Pair, verdict: Verdict | None) -> None:
        """Say something of a pair, or nothing."""
        if verdict is None:
            self.verdicts.pop(pair, None)
        else:
            self.verdicts[pair] = verdict

    async def check_holds(self) -> None:
        """Refuse what would break one of the three things that always hold."""
        members: dict[str, list[AccountKey]] = {}
        for account, person in sorted(self.persons.items()):
            members.setdefault(person, []).append(account)
        for accounts in members.values():
            _check_one_each(accounts)
        for pair, verdict in self.verdicts.items():
            if self.are_one(pair) is (verdict is Verdict.REJECTED):
                raise await self._stale(_REJECTED if verdict is Verdict.REJECTED else _APART, pair)

    async def last_decision(self, pair: Pair) -> int | None:
        """Return the last decision on a pair; of one nobody decided on, the last on either."""
        linked = and_(
            people_change.c.other_provider_id.is_(None), _is_account(people_change.c, pair)
        )
        for about in (_touches_pair(pair), linked):
            statement = select(func.max(people_change.c.decision_id)).where(about)
            number: int | None = (await self.connection.execute(statement)).scalar_one()
            if number is not None:
                return number
        return None

    async def put_back(self, decision_id: int) -> None:
        """Have everything as it was before a decision, if it is still as it was after it."""
        connection = self.connection
        decision = await _find_decision(connection, decision_id)
        if decision is None:
            raise _Refused(Unknown(field="decisionId", message="There is no such decision"))
        if decision.undone_by is not None:
            raise _Refused(
                StaleDecision(
                    message="The decision was undone before", decision_id=decision.undone_by
                )
            )
        rows = await connection.execute(
            select(people_change)
            .where(people_change.c.decision_id == decision_id)
            .order_by(people_change.c.position)
        )
        changes = [_change(row) for row in rows.mappings()]
        accounts = {key for change in changes for key in (change.account, change.other) if key}
        persons = {
            person
            for change in changes
            if change.other is None
            for person in (change.before, change.after)
            if person is not None
        }
        await self.load(accounts, persons=persons)
        if not changes:
            raise _Refused(StaleDecision(message="Nothing is left of what the decision changed"))
        for change in changes:
            if self._now(change) != change.after:
                raise _Refused(
                    StaleDecision(
                        message="A later decision changed the same; undo that one first",
                        decision_id=await self._last_change(change),
                    )
                )
        for change in changes:
            if change.other is None:
                self.place(change.account, change.before)
            else:
                verdict = None if change.before is None else Verdict(change.before)
                self.judge((change.account, change.other), verdict)
        number = self._number
        await connection.execute(
            update(people_decision)
            .where(people_decision.c.id == decision_id)
            .values(undone_by=number)
        )
        if decision.undoes is not None:  # what it had undone stands again
            await connection.execute(
                update(people_decision)
                .where(
                    people_decision.c.id == decision.undoes,
                    people_decision.c.undone_by == decision_id,
                )
                .values(undone_by=None)
            )

    def changes(self) -> Sequence[_Change]:
        """Return every row that is to be another, in order."""
        links = [
            _Change(account, None, self._persons_before.get(account), self.persons.get(account))
            for account in sorted({*self.persons, *self._persons_before})
        ]
        verdicts = [
            _Change(*pair, self._verdicts_before.get(pair), self.verdicts.get(pair))
            for pair in sorted({*self.verdicts, *self._verdicts_before})
        ]
        return [change for change in (*links, *verdicts) if change.before != change.after]

    async def write(self, changes: Sequence[_Change]) -> None:
        """Put the rows in their new state; first all go that change, then come the new ones."""
        links = [change for change in changes if change.other is None]
        pairs = [change for change in changes if change.other is not None]
        for change in links:
            await self.connection.execute(
                delete(person_account).where(_is_account(person_account.c, [change.account]))
            )
        for change in pairs:
            assert change.other is not None  # noqa: S101 - chosen so
            pair = (change.account, change.other)
            await self.connection.execute(
                delete(match_verdict).where(_is_pair(match_verdict.c, pair))
            )
        new_links = [
            {
                "provider_id": change.account[0],
                "external_id": change.account[1],
                "person_id": change.after,
            }
            for change in links
            if change.after is not None
        ]
        if new_links:
            await self.connection.execute(insert(person_account), new_links)
        new_verdicts = [
            {
                "left_provider_id": change.account[0],
                "left_external_id": change.account[1],
                "right_provider_id": change.other[0],
                "right_external_id": change.other[1],
                "verdict": change.after,
            }
            for change in pairs
            if change.after is not None and change.other is not None
        ]
        if new_verdicts:
            await self.connection.execute(insert(match_verdict), new_verdicts)

    def _now(self, change: _Change) -> str | None:
        if change.other is None:
            return self.persons.get(change.account)
        return self.verdicts.get((change.account, change.other))

    async def _links(self, condition: ColumnElement[bool]) -> dict[AccountKey, str]:
        rows = await self.connection.execute(select(person_account).where(condition))
        return {(row.provider_id, row.external_id): row.person_id for row in rows}

    async def _stale(self, message: str, pair: Pair) -> _Refused:
        number = await self.last_decision(pair)
        return _Refused(StaleDecision(message=message, decision_id=number))

    async def _last_change(self, change: _Change) -> int | None:
        here = (
            and_(
                people_change.c.other_provider_id.is_(None),
                _is_account(people_change.c, [change.account]),
            )
            if change.other is None
            else _touches_pair((change.account, change.other))
        )
        statement = select(func.max(people_change.c.decision_id)).where(here)
        number: int | None = (await self.connection.execute(statement)).scalar_one()
        return number


_REJECTED: Final = "Two of the accounts were rejected as one person; undo that decision first"
_APART: Final = "Two of the accounts were confirmed as one person since; undo that decision first"


def _check_one_each(accounts: Sequence[AccountKey]) -> None:
    """Refuse accounts of one person of which two are of one provider."""
    by_provider: dict[str, list[AccountKey]] = {}
    for account in accounts:
        by_provider.setdefault(account[0], []).append(account)
    for provider_id, same in by_provider.items():
        if len(same) > 1:
            raise _Refused(ProviderConflict(provider_id=provider_id, accounts=tuple(sorted(same))))


async def _find_decision(connection: AsyncConnection, decision_id: int) -> Decision | None:
    statement = select(people_decision).where(people_decision.c.id == decision_id)
    rows = (await connection.execute(statement)).mappings().all()
    return (await _with_accounts(connection, rows))[0] if rows else None


async def _with_accounts(
    connection: AsyncConnection, rows: Sequence[RowMapping]
) -> Sequence[Decision]:
    accounts: dict[int, dict[AccountKey, None]] = {row["id"]: {} for row in rows}
    statement = (
        select(people_change)
        .where(people_change.c.decision_id.in_(accounts))
        .order_by(people_change.c.decision_id, people_change.c.position)
    )
    for row in (await connection.execute(statement)).mappings():
        change = _change(row)
        touched = accounts[row["decision_id"]]
        touched |= {key: None for key in (change.account, change.other) if key is not None}
    return [
        Decision(
            id=row["id"],
            at=row["at"],
            kind=DecisionKind(row["kind"]),
            decided_by=row["decided_by"],
            undoes=row["undoes"],
            undone_by=row["undone_by"],
            accounts=tuple(accounts[row["id"]]),
        )
        for row in rows
    ]


def _change(row: RowMapping) -> _Change:
    other = row["other_provider_id"]
    return _Change(
        account=(row["provider_id"], row["external_id"]),
        other=None if other is None else (other, row["other_external_id"]),
        before=row["before"],
        after=row["after"],
    )


def _pair(row: RowMapping) -> Pair:
    return (
        (row["left_provider_id"], row["left_external_id"]),
        (row["right_provider_id"], row["right_external_id"]),
    )


def _is_account(
    columns: Any, accounts: Collection[AccountKey], side: str = ""
) -> ColumnElement[bool]:
    key = tuple_(columns[f"{side}provider_id"], columns[f"{side}external_id"])
    return key.in_(list(accounts))


def _is_pair(columns: Any, pair: Pair) -> ColumnElement[bool]:
    (left_provider, left), (right_provider, right) = pair
    return and_(
        columns.left_provider_id == left_provider,
        columns.left_external_id == left,
        columns.right_provider_id == right_provider,
        columns.right_external_id == right,
    )


def _touches_pair(pair: Pair) -> ColumnElement[bool]:
    (left_provider, left), (right_provider, right) = pair
    return and_(
        people_change.c.provider_id == left_provider,
        people_change.c.external_id == left,
        people_change.c.other_provider_id == right_provider,
        people_change.c.other_external_id == right,
    )


def _slices(values: Collection[Any], size: int = _KEYS_AT_ONCE) -> Iterable[Sequence[Any]]:
    listed = list(values)
    for start in range(0, len(listed), size):
        yield listed[start : start + size]
