"""People: who is who, what was decided about it, and runs that find out."""

# Strawberry types its decorators as Any when they take only keywords.
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from enum import Enum
from typing import Annotated

import strawberry
from strawberry.types.enum import StrawberryEnumDefinition

from resolvers import people
from resolvers.lists import DEFAULT_FIRST
from resolvers.matching import Evidence
from resolvers.people import DecisionOutcome, MatchRecord, PeoplePage, PersonRecord
from schema import global_ids
from schema.auditing import AUDITED
from schema.costs import PAGE, ListSize
from schema.engine import reads
from schema.enums import ErrorCode, OrderDirection, error_code
from schema.global_ids import encoded
from schema.types import GatewayInfo, Node, PageInfo, User, asks_for
from storage import matching
from storage import people as stored
from storage.matching import MatchRunState, MatchStatus
from storage.people import AccountKey, DecisionKind, Pair
from storage.records import Gender

_FIRST = (
    "How many at most: 1 up to the gateway's largest page, 1000 unless set otherwise; null for 50."
)
_AFTER = "A cursor of the same list with the same filter: what comes behind it is given."
_MATCH_FIRST = "How many at most: 1 to 50."
_NEEDS = " Needs the scopes write:people and read:users."
_RUN_ID = "Id of the run."


def _describe(enum: type[Enum], description: str, **values: str) -> None:
    strawberry.enum(enum, description=description)
    definition: StrawberryEnumDefinition = enum.__strawberry_definition__  # type: ignore[attr-defined]  # put there by strawberry.enum
    for value in definition.values:
        value.description = values[value.name]


_describe(
    MatchStatus,
    "How a match stands.",
    SUGGESTED="Nobody has decided.",
    AUTO_LINKED="A run linked the two, because it was sure enough.",
    CONFIRMED="They are one person's: somebody said so of the two, or of others.",
    REJECTED="Somebody said that they are not one person's; never suggested again.",
    SUPERSEDED="One of them is a person's who has another account at the other one's provider.",
)
_describe(
    MatchRunState,
    "Where a match run is in its life.",
    QUEUED="Asked for.",
    RUNNING="Under way, or cut off and about to go on.",
    DONE="Everything was compared.",
    FAILED="It cannot be done; problem says why.",
)
_describe(
    DecisionKind,
    "What was decided.",
    CONFIRM="Two accounts are one person's.",
    REJECT="Two accounts are not one person's.",
    LINK="Several accounts are one person's.",
    UNLINK="An account is not its person's.",
    MERGE="Several people are one.",
    AUTO_LINK="A run linked two accounts.",
    UNDO="A decision was undone.",
)


@strawberry.type(
    description="A human who has accounts at one or several providers, at most one at each, as"
    " somebody said, or as a run found where it may link."
)
class Person(Node):
    """A human who has accounts."""

    display_name: str = reads(
        "record.display_name",
        description="The longest of the accounts' names; empty when none has one.",
    )
    users: list[User] = strawberry.field(
        directives=[ListSize(assumed_size=5)],
        description="The accounts, as the last imports found them, at providers the key sees. An"
        " account that is gone is left out, and back when an import finds it again.",
    )

    record: strawberry.Private[PersonRecord]

    @property
    def encoded_id(self) -> str:
        """The id."""
        return encoded(global_ids.PERSON, self.record.id)

    @classmethod
    def from_record(cls, record: PersonRecord) -> Person:
        """Build the type from its record."""
        return cls(
            record=record,
            users=[User.from_record(user) for user in record.users],
        )


@strawberry.type(
    description="One thing that speaks for or against two accounts being one person's."
)
class MatchEvidence:
    """One thing that speaks for or against a match."""

    field: str = strawberry.field(description="The field of User it is seen in.")
    kind: str = strawberry.field(description="What was seen, such as NAME_EXACT.")
    left_value: str | None = strawberry.field(
        description="What was compared of the first account, normalised; null when there is none."
    )
    right_value: str | None = strawberry.field(
        description="What was compared of the second account, normalised; null when there is none."
    )
    similarity: float | None = strawberry.field(
        description="From 0 to 1; null where none can be told."
    )
    weight: float = strawberry.field(
        description="Bits, a multiple of 1/1024: what it adds to the match's weight, negative when"
        " it speaks against."
    )
    explanation: str = strawberry.field(description="The same for a person.")

    @classmethod
    def from_record(cls, record: Evidence) -> MatchEvidence:
        """Build the type from its record."""
        return cls(
            field=record.field,
            kind=record.kind,
            left_value=record.left_value,
            right_value=record.right_value,
            similarity=record.similarity,
            weight=record.weight,
            explanation=record.explanation,
        )


@strawberry.type(description="Two accounts that may be one person's, and why.")
class UserMatch:
    """Two accounts that may be one person's."""

    id: strawberry.ID | None = strawberry.field(
        description="Of the two accounts together, for confirmMatch and rejectMatch; null when one"
        " was only described (matchUser)."
    )
    left: User | None = strawberry.field(
        description="One account, as the last import found it; null when it was only described."
    )
    right: User = strawberry.field(description="The other account.")
    score: float = strawberry.field(
        description="How probable it is that both are one person's, from 0 to 1, after competition:"
        " an account is at most one person's, so equally good candidates have a small one."
    )
    weight: float = strawberry.field(
        description="Bits: prior and the weights of all evidence add up to it exactly."
    )
    prior: float = strawberry.field(
        description="Bits that any two accounts of these providers begin with, from how many there"
        " are."
    )
    status: MatchStatus = strawberry.field(description="How it stands.")
    evidence: list[MatchEvidence] = strawberry.field(
        directives=[ListSize(assumed_size=10)], description="What speaks for and against it."
    )
    competitor_ids: list[strawberry.ID] = strawberry.field(
        directives=[ListSize(assumed_size=5)],
        description="Ids of other matches that want one of the two accounts, best first, at most"
        " five; empty in User.matches and matchUser, which list them.",
    )
    competition: str | None = strawberry.field(
        description="The same in words; null when nothing competes."
    )
    model_version: str = strawberry.field(description="By which weights it was weighed.")
    decision_id: strawberry.ID | None = strawberry.field(
        description="The last decision on the two, for undoDecision; null while there is none."
    )
    decided_by: str | None = strawberry.field(
        description="Who decided: id of an API key, command-line, or automatic; null while nobody"
        " has."
    )
    decided_at: datetime | None = strawberry.field(description="When; null while nobody has.")

    @classmethod
    def from_record(cls, record: MatchRecord) -> UserMatch:
        """Build the type from its record."""
        decision = record.decision_id
        return cls(
            id=None if record.pair is None else _match_id(record.pair),
            left=None if record.left is None else User.from_record(record.left),
            right=User.from_record(record.right),
            score=record.score,
            weight=record.weight,
            prior=record.prior,
            status=record.status,
            evidence=[MatchEvidence.from_record(row) for row in record.evidence],
            competitor_ids=[_match_id(pair) for pair in record.competitors],
            competition=record.competition,
            model_version=record.model_version,
            decision_id=None if decision is None else strawberry.ID(str(decision)),
            decided_by=record.decided_by,
            decided_at=record.decided_at,
        )


@strawberry.type(description="One decision about people, and what became of it.")
class PeopleDecision:
    """One decision about people."""

    id: strawberry.ID = strawberry.field(description="Rises from decision to decision.")
    at: datetime = strawberry.field(description="When it was made.")
    kind: DecisionKind = strawberry.field(description="What was decided.")
    decided_by: str = strawberry.field(
        description="Id of the API key, command-line, or automatic for a run."
    )
    user_ids: list[strawberry.ID] = strawberry.field(
        directives=[ListSize(assumed_size=5)],
        description="Global ids of the accounts it changed something of, at providers the key"
        " sees.",
    )
    undoes: strawberry.ID | None = strawberry.field(
        description="The decision it undid; null unless it is an UNDO."
    )
    undone_by: strawberry.ID | None = strawberry.field(
        description="The decision that undid it; null while it stands."
    )

    @classmethod
    def from_record(cls, record: stored.Decision) -> PeopleDecision:
        """Build the type from its record."""
        return cls(
            id=strawberry.ID(str(record.id)),
            at=record.at,
            kind=record.kind,
            decided_by=record.decided_by,
            user_ids=[_user_id(key) for key in record.accounts],
            undoes=None if record.undoes is None else strawberry.ID(str(record.undoes)),
            undone_by=None if record.undone_by is None else strawberry.ID(str(record.undone_by)),
        )


@strawberry.type(
    description="One run that compares the accounts of providers, two providers at a time."
)
class MatchRun:
    """One run that compares the accounts of providers."""

    id: strawberry.ID = strawberry.field(description="Rises from run to run.")
    state: MatchRunState = strawberry.field(description="Where it is in its life.")
    provider_ids: list[strawberry.ID] = strawberry.field(
        directives=[ListSize(assumed_size=10)], description="Whose accounts it compares."
    )
    requested_by: str = strawberry.field(
        description="Id of the API key that asked for it, or command-line."
    )
    requested_at: datetime = strawberry.field(description="When it was asked for.")
    started_at: datetime | None = strawberry.field(description="Null while it is QUEUED.")
    finished_at: datetime | None = strawberry.field(description="Null until it has ended.")
    expected_overlap: float | None = strawberry.field(
        description="Which part of the smaller provider's accounts was said to be at the other too;"
        " null when nothing was."
    )
    link_above: float | None = strawberry.field(
        description="How probable a match is at least that it links unasked; null for none."
    )
    pairs_done: int = strawberry.field(description="Pairs of providers compared so far.")
    pairs_total: int = strawberry.field(description="Pairs of providers to compare.")
    progress: float = strawberry.field(description="Of the whole run, from 0 to 1.")
    account_count: int = strawberry.field(description="Accounts compared; 0 until they are read.")
    suggestion_count: int = strawberry.field(description="Matches suggested so far.")
    link_count: int = strawberry.field(description="Of these linked unasked; 0 until it is done.")
    model_version: str | None = strawberry.field(
        description="By which weights; null until it has begun."
    )
    notes: list[str] = strawberry.field(
        directives=[ListSize(assumed_size=3)],
        description="What somebody who looks at the outcome should know, such as that a provider"
        " has so many accounts that names alone do not identify.",
    )
    problem_code: ErrorCode | None = strawberry.field(
        description="Why it FAILED; null when it did not."
    )
    problem: str | None = strawberry.field(description="The same for a person.")

    @classmethod
    def from_record(cls, record: matching.MatchRun) -> MatchRun:
        """Build the type from its record."""
        return cls(
            id=strawberry.ID(str(record.id)),
            state=record.state,
            provider_ids=[strawberry.ID(provider_id) for provider_id in record.provider_ids],
            requested_by=record.requested_by,
            requested_at=record.requested_at,
            started_at=record.started_at,
            finished_at=record.finished_at,
            expected_overlap=record.expected_overlap,
            link_above=record.link_above,
            pairs_done=record.pairs_done,
            pairs_total=len(record.pairs),
            progress=record.share_done,
            account_count=record.account_count,
            suggestion_count=record.suggestion_count,
            link_count=record.link_count,
            model_version=record.model_version,
            notes=list(record.notes),
            problem_code=error_code(record.problem_code),
            problem=record.problem,
        )


@strawberry.type(description="One of the people of a page.")
class PersonEdge:
    """One of the people of a page."""

    cursor: str = strawberry.field(description="What to give as after for what comes behind it.")
    node: Person = strawberry.field(description="The person.")


@strawberry.type(description="A page of people, in an order that stays the same.")
class PersonConnection:
    """A page of people."""

    nodes: list[Person] = strawberry.field(description="The people of this page.")
    edges: list[PersonEdge] = strawberry.field(description="The same, each with its cursor.")
    page_info: PageInfo = strawberry.field(description="Where this page lies in the list.")

    @classmethod
    def from_record(cls, record: PeoplePage, *, after: str | None) -> PersonConnection:
        """Build the type from its record."""
        edges = [
            PersonEdge(cursor=cursor, node=Person.from_record(row)) for cursor, row in record.rows
        ]
        return cls(
            nodes=[edge.node for edge in edges], edges=edges, page_info=_page_info(record, after)
        )


@strawberry.type(description="One of the matches of a page.")
class UserMatchEdge:
    """One of the matches of a page."""

    cursor: str = strawberry.field(description="What to give as after for what comes behind it.")
    node: UserMatch = strawberry.field(description="The match.")


@strawberry.type(description="A page of matches by score.")
class UserMatchConnection:
    """A page of matches."""

    nodes: list[UserMatch] = strawberry.field(description="The matches of this page.")
    edges: list[UserMatchEdge] = strawberry.field(description="The same, each with its cursor.")
    page_info: PageInfo = strawberry.field(description="Where this page lies in the list.")
    total_count: int | None = strawberry.field(description="Length of the whole list.")

    @classmethod
    def from_record(cls, record: PeoplePage, *, after: str | None) -> UserMatchConnection:
        """Build the type from its record."""
        edges = [
            UserMatchEdge(cursor=cursor, node=UserMatch.from_record(row))
            for cursor, row in record.rows
        ]
        return cls(
            nodes=[edge.node for edge in edges],
            edges=edges,
            page_info=_page_info(record, after),
            total_count=record.total,
        )


@strawberry.type(description="One of the decisions of a page.")
class PeopleDecisionEdge:
    """One of the decisions of a page."""

    cursor: str = strawberry.field(description="What to give as after for what comes behind it.")
    node: PeopleDecision = strawberry.field(description="The decision.")


@strawberry.type(description="A page of decisions, the latest first.")
class PeopleDecisionConnection:
    """A page of decisions."""

    nodes: list[PeopleDecision] = strawberry.field(description="The decisions of this page.")
    edges: list[PeopleDecisionEdge] = strawberry.field(
        description="The same, each with its cursor."
    )
    page_info: PageInfo = strawberry.field(description="Where this page lies in the list.")

    @classmethod
    def from_record(cls, record: PeoplePage, *, after: str | None) -> PeopleDecisionConnection:
        """Build the type from its record."""
        edges = [
            PeopleDecisionEdge(cursor=cursor, node=PeopleDecision.from_record(row))
            for cursor, row in record.rows
        ]
        return cls(
            nodes=[edge.node for edge in edges], edges=edges, page_info=_page_info(record, after)
        )


# Inputs.


@strawberry.input(description="Which people.")
class PersonFilter:
    """Which people."""

    provider_ids: list[strawberry.ID] | None = strawberry.field(
        default=None,
        description="Only accounts at these providers count, by the product's own ids; null for"
        " all the key sees.",
    )
    min_accounts: int | None = strawberry.field(
        default=None, description="With so many accounts at least; null for 1."
    )

    @staticmethod
    def record_of(given: PersonFilter | None) -> people.PersonFilter:
        """Return the filter as the resolvers take it."""
        if given is None:
            return people.PersonFilter()
        return people.PersonFilter(
            provider_ids=given.provider_ids, least_accounts=given.min_accounts
        )


@strawberry.input(description="Which matches. Conditions all have to hold.")
class UserMatchFilter:
    """Which matches."""

    provider_ids: list[strawberry.ID] | None = strawberry.field(
        default=None,
        description="Only between accounts of these providers, by the product's own ids; null for"
        " all the key sees.",
    )
    user_id: strawberry.ID | None = strawberry.field(
        default=None, description="Only of this user, by global id; null for all."
    )
    statuses: list[MatchStatus] | None = strawberry.field(
        default=None, description="Only those that stand so; null for SUGGESTED."
    )
    min_score: float | None = strawberry.field(
        default=None,
        description="At least so probable; null for 0.2. What is below 0.05 is not kept.",
    )
    max_score: float | None = strawberry.field(
        default=None, description="At most so probable; null for 1."
    )

    @staticmethod
    def record_of(given: UserMatchFilter | None) -> people.MatchFilter:
        """Return the filter as the resolvers take it.

        Raises:
            BadInput: The global id is none of a user.
        """
        if given is None:
            return people.MatchFilter()
        user = None
        if given.user_id is not None:
            user = _account_of(given.user_id, "filter.userId")
        return people.MatchFilter(
            provider_ids=given.provider_ids,
            user=user,
            statuses=given.statuses,
            least_score=given.min_score,
            most_score=given.max_score,
        )


@strawberry.input(
    description="What is known of somebody who is looked for; a name, a username, an e-mail address"
    " or an identifier at least."
)
class UserTraits:
    """What is known of somebody who is looked for."""

    display_name: str | None = strawberry.field(
        default=None, description="The whole name, in any order."
    )
    given_name: str | None = strawberry.field(default=None, description="Null when not known.")
    middle_name: str | None = strawberry.field(default=None, description="Null when not known.")
    family_name: str | None = strawberry.field(default=None, description="Null when not known.")
    username: str | None = strawberry.field(default=None, description="Null when not known.")
    email: str | None = strawberry.field(default=None, description="Null when not known.")
    identifiers: list[str] | None = strawberry.field(
        default=None, description="Such as numbers of the student information system."
    )
    birth_year: int | None = strawberry.field(
        default=None,
        description="Null when not known. It counts where accounts have one too.",
    )
    gender: Gender | None = strawberry.field(
        default=None, description="Null when not known. It counts where accounts have one too."
    )
    time_zone: str | None = strawberry.field(
        default=None, description="IANA time zone name; null when not known."
    )

    def record(self) -> people.UserTraits:
        """Return the traits as the resolvers take them."""
        return people.UserTraits(
            display_name=self.display_name,
            given_name=self.given_name,
            middle_name=self.middle_name,
            family_name=self.family_name,
            username=self.username,
            email=self.email,
            identifiers=tuple(self.identifiers or ()),
            birth_year=self.birth_year,
            gender=self.gender,
            time_zone=self.time_zone,
        )


@strawberry.input(description="Whose accounts to compare.")
class StartMatchRunInput:
    """Whose accounts to compare."""

    provider_ids: list[strawberry.ID] | None = strawberry.field(
        default=None,
        description="Two providers at least, by the product's own ids; null for all the key sees."
        " Name those of one organisation or school: the fewer people, the more a name says.",
    )
    expected_overlap: float | None = strawberry.field(
        default=None,
        description="Which part of the smaller provider's accounts is thought to be at the other"
        " too, from 0 to 1; null when nobody knows.",
    )
    link_above: float | None = strawberry.field(
        default=None,
        description="How probable a match has to be at least to be linked unasked, from 0 to 1;"
        " null for what the gateway is set to, which is not at all unless set otherwise.",
    )


@strawberry.input(description="Which match is decided on.")
class DecideMatchInput:
    """Which match is decided on."""

    match_id: strawberry.ID = strawberry.field(description="Id of the match.")
    expected_model_version: str | None = strawberry.field(
        default=None,
        description="The modelVersion of the match that was looked at: if it was weighed anew"
        " since, nothing is changed. Null to decide all the same.",
    )


@strawberry.input(description="Accounts of one person.")
class LinkUsersInput:
    """Accounts of one person."""

    user_ids: list[strawberry.ID] = strawberry.field(
        description="Global ids of 2 to 100 users, each of another provider."
    )


@strawberry.input(description="An account that is not its person's.")
class UnlinkUserInput:
    """An account that is not its person's."""

    user_id: strawberry.ID = strawberry.field(description="Global id of the user.")
    keep_apart: bool = strawberry.field(
        default=True,
        description="Whether the account is rejected with each of the person's other accounts, so"
        " that it is never suggested again; false to let runs suggest it again.",
    )


@strawberry.input(description="People who are one.")
class MergePeopleInput:
    """People who are one."""

    into_id: strawberry.ID = strawberry.field(
        description="Global id of the person who keeps the id."
    )
    from_ids: list[strawberry.ID] = strawberry.field(
        description="Global ids of 1 to 20 people whose accounts it gets."
    )


@strawberry.input(description="A decision to be undone.")
class UndoDecisionInput:
    """A decision to be undone."""

    decision_id: strawberry.ID = strawberry.field(description="Id of the decision.")


# Results.


@strawberry.type(description="It is as was asked.")
class PeopleDecided:
    """It is as was asked."""

    changed: bool = strawberry.field(description="False when everything had been so before.")
    decision: PeopleDecision | None = strawberry.field(
        description="What was decided, for undoDecision; null when nothing had to be changed."
    )
    person: Person | None = strawberry.field(
        description="The person that the accounts named are now; null when they are not one."
    )


@strawberry.type(
    description="The person would have had two accounts at one provider; nothing was changed."
)
class ProviderConflict:
    """The person would have had two accounts at one provider."""

    code: ErrorCode = strawberry.field(description="CONFLICT.")
    message: str = strawberry.field(description="For a person.")
    provider_id: strawberry.ID | None = strawberry.field(
        description="The product's own id of the provider; null when the key does not see it."
    )
    user_ids: list[strawberry.ID] = strawberry.field(
        directives=[ListSize(assumed_size=2)],
        description="Global ids of the accounts there; empty when the key does not see them.",
    )


@strawberry.type(
    description="Things are not as they were when this was asked for; nothing was changed."
)
class StaleDecision:
    """Things are not as they were."""

    code: ErrorCode = strawberry.field(description="CONFLICT.")
    message: str = strawberry.field(description="For a person: what is otherwise now.")
    decision_id: strawberry.ID | None = strawberry.field(
        description="The decision that is in the way, for undoDecision; null when none is."
    )


@strawberry.type(description="What it is about does not exist; nothing was changed.")
class PeopleRefused:
    """What it is about does not exist."""

    code: ErrorCode = strawberry.field(description="For logic.")
    message: str = strawberry.field(description="For a person.")
    field: str = strawberry.field(description="The input at fault.")


@strawberry.type(description="A match run that is under way.")
class MatchRunRequested:
    """A match run that is under way."""

    run: MatchRun = strawberry.field(description="The run.")
    already_under_way: bool = strawberry.field(
        description="Whether one of the same providers was; then this changed nothing."
    )


PeopleResult = Annotated[
    PeopleDecided | ProviderConflict | StaleDecision | PeopleRefused,
    strawberry.union("PeopleResult", description="What was decided, or why nothing was."),
]
StartMatchRunResult = Annotated[
    MatchRunRequested | PeopleRefused,
    strawberry.union("StartMatchRunResult", description="The run, or why there is none."),
]


@strawberry.type
class PeopleQuery:
    """What can be asked about people; a part of ``Query``."""

    @strawberry.field(
        description="People who have accounts at providers the key sees. Needs the scope"
        " read:users.",
        directives=[PAGE],
    )
    async def people(
        self,
        info: GatewayInfo,
        filter: Annotated[  # noqa: A002 - the argument's name in the API
            PersonFilter | None, strawberry.argument(description="Which ones.")
        ] = None,
        first: Annotated[int | None, strawberry.argument(description=_FIRST)] = 50,
        after: Annotated[str | None, strawberry.argument(description=_AFTER)] = None,
    ) -> PersonConnection | None:
        """Return a page of people."""
        found = await people.person_page(
            info.context,
            wanted=PersonFilter.record_of(filter),
            first=DEFAULT_FIRST if first is None else first,
            after=after,
        )
        return PersonConnection.from_record(found, after=after)

    @strawberry.field(
        description="Accounts that may be one person's, as match runs found them, by score. Needs"
        " the scope read:users.",
        directives=[PAGE],
    )
    async def user_matches(
        self,
        info: GatewayInfo,
        filter: Annotated[  # noqa: A002 - the argument's name in the API
            UserMatchFilter | None, strawberry.argument(description="Which ones.")
        ] = None,
        direction: Annotated[
            OrderDirection | None,
            strawberry.argument(description="Which end of the scores first; null for DESC."),
        ] = OrderDirection.DESC,
        first: Annotated[int | None, strawberry.argument(description=_FIRST)] = 50,
        after: Annotated[str | None, strawberry.argument(description=_AFTER)] = None,
    ) -> UserMatchConnection | None:
        """Return a page of matches."""
        found = await people.match_page(
            info.context,
            wanted=UserMatchFilter.record_of(filter),
            descending=direction is not OrderDirection.ASC,
            first=DEFAULT_FIRST if first is None else first,
            after=after,
            wants_total=asks_for(info, "totalCount"),
        )
        return UserMatchConnection.from_record(found, after=after)

    @strawberry.field(
        description="Who may be somebody of whom some things are known, the most probable first,"
        " looked up at once among the accounts that imports found. Needs the scope read:users.",
        directives=[ListSize(slicing_arguments=["first"])],
    )
    async def match_user(
        self,
        info: GatewayInfo,
        user: Annotated[UserTraits, strawberry.argument(description="What is known.")],
        provider_ids: Annotated[
            list[strawberry.ID] | None,
            strawberry.argument(
                description="Where to look, by the product's own ids; null for all the key sees."
            ),
        ] = None,
        min_score: Annotated[
            float | None,
            strawberry.argument(description="At least so probable, from 0 to 1; null for 0."),
        ] = None,
        first: Annotated[int, strawberry.argument(description=_MATCH_FIRST)] = 10,
    ) -> list[UserMatch] | None:
        """Return who it may be."""
        found = await people.match_user(
            info.context,
            user.record(),
            provider_ids=provider_ids,
            first=first,
            least_score=min_score,
        )
        return [UserMatch.from_record(row) for row in found]

    @strawberry.field(
        description="One match run; null when there is none of that id, or the key does not see all"
        " of its providers. Needs the scope read:users."
    )
    async def match_run(
        self,
        info: GatewayInfo,
        id: Annotated[strawberry.ID, strawberry.argument(description=_RUN_ID)],  # noqa: A002 - Relay's name
    ) -> MatchRun | None:
        """Return a run."""
        found = await people.find_run(info.context, id)
        return None if found is None else MatchRun.from_record(found)

    @strawberry.field(
        description="The latest match runs, the latest first. Needs the scope read:users.",
        directives=[ListSize(slicing_arguments=["first"])],
    )
    async def match_runs(
        self,
        info: GatewayInfo,
        first: Annotated[int, strawberry.argument(description=_MATCH_FIRST)] = 10,
    ) -> list[MatchRun] | None:
        """Return the latest runs."""
        found = await people.list_runs(info.context, first=first)
        return [MatchRun.from_record(run) for run in found]

    @strawberry.field(
        description="What was decided about people, the latest first. Needs the scope read:users.",
        directives=[PAGE],
    )
    async def people_decisions(
        self,
        info: GatewayInfo,
        user_id: Annotated[
            strawberry.ID | None,
            strawberry.argument(description="Only of this user, by global id; null for all."),
        ] = None,
        first: Annotated[int | None, strawberry.argument(description=_FIRST)] = 50,
        after: Annotated[str | None, strawberry.argument(description=_AFTER)] = None,
    ) -> PeopleDecisionConnection | None:
        """Return a page of decisions."""
        found = await people.decision_page(
            info.context,
            user=None if user_id is None else _account_of(user_id, "userId"),
            first=DEFAULT_FIRST if first is None else first,
            after=after,
        )
        return PeopleDecisionConnection.from_record(found, after=after)


@strawberry.type
class PeopleMutation:
    """What can be decided about people; a part of ``Mutation``."""

    @strawberry.mutation(
        extensions=AUDITED,
        description="Compare the accounts that the last imports of some providers found, and"
        " suggest who is who. While a run of the same providers is under way, that one is given."
        + _NEEDS,
    )
    async def start_match_run(
        self,
        info: GatewayInfo,
        input: Annotated[  # noqa: A002 - Relay's name
            StartMatchRunInput, strawberry.argument(description="Whose accounts.")
        ],
    ) -> StartMatchRunResult:
        """Start a run."""
        found = await people.start_run(
            info.context,
            provider_ids=input.provider_ids,
            expected_overlap=input.expected_overlap,
            link_above=input.link_above,
        )
        if isinstance(found, tuple):
            run, already = found
            return MatchRunRequested(run=MatchRun.from_record(run), already_under_way=already)
        return _refused(found)  # type: ignore[return-value]  # an Unknown is PeopleRefused

    @strawberry.mutation(
        extensions=AUDITED,
        description="Say that the two accounts of a match are one person's." + _NEEDS,
    )
    async def confirm_match(
        self,
        info: GatewayInfo,
        input: Annotated[  # noqa: A002 - Relay's name
            DecideMatchInput, strawberry.argument(description="The match.")
        ],
    ) -> PeopleResult:
        """Confirm a match."""
        return await _decide(info, input, same=True)

    @strawberry.mutation(
        extensions=AUDITED,
        description="Say that the two accounts of a match are not one person's: they are never"
        " suggested again, nor linked by a detour." + _NEEDS,
    )
    async def reject_match(
        self,
        info: GatewayInfo,
        input: Annotated[  # noqa: A002 - Relay's name
            DecideMatchInput, strawberry.argument(description="The match.")
        ],
    ) -> PeopleResult:
        """Reject a match."""
        return await _decide(info, input, same=False)

    @strawberry.mutation(
        extensions=AUDITED, description="Say that several accounts are one person's." + _NEEDS
    )
    async def link_users(
        self,
        info: GatewayInfo,
        input: Annotated[  # noqa: A002 - Relay's name
            LinkUsersInput, strawberry.argument(description="The accounts.")
        ],
    ) -> PeopleResult:
        """Link users."""
        keys = [
            _account_of(text, f"input.userIds[{index}]")
            for index, text in enumerate(input.user_ids)
        ]
        return _result(await people.link(info.context, keys))

    @strawberry.mutation(
        extensions=AUDITED, description="Say that an account is not its person's." + _NEEDS
    )
    async def unlink_user(
        self,
        info: GatewayInfo,
        input: Annotated[  # noqa: A002 - Relay's name
            UnlinkUserInput, strawberry.argument(description="The account.")
        ],
    ) -> PeopleResult:
        """Unlink a user."""
        key = _account_of(input.user_id, "input.userId")
        return _result(await people.unlink(info.context, key, keep_apart=input.keep_apart))

    @strawberry.mutation(
        extensions=AUDITED, description="Say that several people are one." + _NEEDS
    )
    async def merge_people(
        self,
        info: GatewayInfo,
        input: Annotated[  # noqa: A002 - Relay's name
            MergePeopleInput, strawberry.argument(description="The people.")
        ],
    ) -> PeopleResult:
        """Merge people."""
        into = _person_of(input.into_id, "input.intoId")
        others = [
            _person_of(text, f"input.fromIds[{index}]") for index, text in enumerate(input.from_ids)
        ]
        return _result(await people.merge(info.context, into, others))

    @strawberry.mutation(
        extensions=AUDITED,
        description="Put everything back exactly as it was before a decision; refused when a later"
        " one changed the same." + _NEEDS,
    )
    async def undo_decision(
        self,
        info: GatewayInfo,
        input: Annotated[  # noqa: A002 - Relay's name
            UndoDecisionInput, strawberry.argument(description="The decision.")
        ],
    ) -> PeopleResult:
        """Undo a decision."""
        return _result(await people.undo(info.context, input.decision_id))


async def _decide(
    info: GatewayInfo, given: DecideMatchInput, *, same: bool
) -> PeopleDecided | ProviderConflict | StaleDecision | PeopleRefused:
    found = global_ids.decode(
        given.match_id, argument="input.matchId", type_name=global_ids.USER_MATCH
    )
    return _result(
        await people.decide(
            info.context,
            global_ids.match_parts(found, argument="input.matchId"),
            same=same,
            model_version=given.expected_model_version,
        )
    )


def _result(
    found: people.Outcome,
) -> PeopleDecided | ProviderConflict | StaleDecision | PeopleRefused:
    if not isinstance(found, DecisionOutcome):
        return _refused(found)
    return PeopleDecided(
        changed=found.decision is not None,
        decision=None if found.decision is None else PeopleDecision.from_record(found.decision),
        person=None if found.person is None else Person.from_record(found.person),
    )


def _refused(
    found: stored.PeopleRefusal,
) -> ProviderConflict | StaleDecision | PeopleRefused:
    if isinstance(found, stored.ProviderConflict):
        return ProviderConflict(
            code=ErrorCode.CONFLICT,
            message=found.message,
            provider_id=strawberry.ID(found.provider_id) if found.provider_id else None,
            user_ids=[_user_id(key) for key in found.accounts],
        )
    if isinstance(found, stored.StaleDecision):
        number = found.decision_id
        return StaleDecision(
            code=ErrorCode.CONFLICT,
            message=found.message,
            decision_id=None if number is None else strawberry.ID(str(number)),
        )
    return PeopleRefused(code=ErrorCode.NOT_FOUND, message=found.message, field=found.field)


def _page_info(record: PeoplePage, after: str | None) -> PageInfo:
    cursors: Sequence[str] = [cursor for cursor, _row in record.rows]
    return PageInfo(
        has_next_page=record.has_next,
        has_previous_page=after is not None,
        start_cursor=cursors[0] if cursors else None,
        end_cursor=cursors[-1] if cursors else after,
    )


def _match_id(pair: Pair) -> strawberry.ID:
    return strawberry.ID(global_ids.match_id(pair).encode())


def _user_id(key: AccountKey) -> strawberry.ID:
    return strawberry.ID(encoded(global_ids.USER, *key))


def _account_of(text: str, argument: str) -> AccountKey:
    found = global_ids.decode(text, argument=argument, type_name=global_ids.USER)
    return found.provider_id, found.local_id


def _person_of(text: str, argument: str) -> str:
    return global_ids.decode(text, argument=argument, type_name=global_ids.PERSON).provider_id
