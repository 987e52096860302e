"""Object types of the API, each built from one record."""

# Strawberry types its decorators as Any when they take only keywords.
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from operator import attrgetter
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeAlias, TypeVar, cast

import strawberry
from graphql import (
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    InlineFragmentNode,
    SelectionSetNode,
)
from strawberry.types import Info

from resolvers import authorizing, importing, lists, paging, people, roster
from resolvers import context as contexts
from resolvers.chains import NOTHING, Wanted
from resolvers.context import RequestContext
from resolvers.lists import DEFAULT_FIRST
from resolvers.loaders import Outcomes, Soon, after
from schema import global_ids
from schema.costs import PAGE, ListSize
from schema.engine import Spread, View, batched, reads
from schema.enums import ErrorCode, error_code
from schema.global_ids import encoded
from schema.health import ProviderHealth
from schema.inputs import EnrollmentFilter
from sessions import resilience
from sessions.base import SERVICE, Capability
from storage import records
from storage.leases import SessionStatus as SessionStatusRecord
from storage.records import (
    CourseKind,
    CourseState,
    DataSource,
    EnrollmentSource,
    EnrollmentState,
    Gender,
    IdentifierType,
    MilestoneState,
    ProgressMethod,
    ProviderState,
    RoleValue,
    SessionState,
)

if TYPE_CHECKING:
    from schema.imports import ImportRun
    from schema.people import Person, UserMatch

_MAX_CHAIN = 4

GatewayInfo: TypeAlias = Info[RequestContext, None]

S = TypeVar("S")
R = TypeVar("R")
S_co = TypeVar("S_co", covariant=True)


class _Recorded(Protocol[S_co]):
    """An object of the API that is made of a record."""

    @property
    def record(self) -> S_co: ...


class _OfProvider(Protocol):
    """A record of something that a provider has."""

    @property
    def provider_id(self) -> str: ...


_FIRST = (
    "How many at most: 1 up to the gateway's largest page, 1000 unless set otherwise; null for 50."
)
_AFTER = (
    "A cursor of the same list with the same filter: what comes behind it is given. Good for a week"
    " from the first page on, unless set otherwise."
)


def converted(outcomes: Soon[Outcomes[S]], convert: Callable[[S], R]) -> list[R | None]:
    """Return what came of each of several things, the values among it converted.

    An error stands in the place of its value, and what is not there yet is waited for, as
    batched fields have it.
    """

    def convert_each(found: Outcomes[S]) -> list[R | BaseException | None]:
        return [
            outcome if outcome is None or isinstance(outcome, BaseException) else convert(outcome)
            for outcome in found
        ]

    return cast("list[R | None]", after(outcomes, convert_each))  # the engine knows


def shared(outcomes: Soon[Outcomes[S]], convert: Callable[[S], R]) -> list[R | None]:
    """Return the same as ``converted``; of what comes several times, the same object each time."""

    def convert_distinct(found: Outcomes[S]) -> list[R | None]:
        ids = list(map(id, found))
        distinct = dict(zip(ids, found, strict=True))
        made = dict(zip(distinct, converted([*distinct.values()], convert), strict=True))
        return list(map(made.__getitem__, ids))

    return cast("list[R | None]", after(outcomes, convert_distinct))  # as in ``converted``


def spread(
    outcomes: Soon[Outcomes[S]], distinct: Iterable[str], keys: Sequence[str]
) -> Soon[Spread]:
    """Return, for each of many keys, what came of the distinct ones."""
    return after(outcomes, lambda found: Spread(dict(zip(distinct, found, strict=True)), keys))


def records_of(parents: Iterable[_Recorded[S]]) -> list[S]:
    """Return what objects are made of."""
    return list(map(_record_of, parents))


_record_of: Callable[[Any], Any] = attrgetter("record")
_external_id_of: Callable[[records.User | records.Course], str] = attrgetter("external_id")
_user_id_of: Callable[[records.Enrollment], str] = attrgetter("user_id")
_course_id_of: Callable[[records.Enrollment], str] = attrgetter("course_id")
_provider_id_of_record: Callable[[Any], str] = attrgetter("provider_id")
provider_id_of: Callable[[Any], str] = attrgetter("record.provider_id")
"""Tells whose an object is: what hangs on it is read by provider."""


def path_of(info: GatewayInfo) -> tuple[str | int, ...]:
    """Return where in the answer the field is."""
    return tuple(info.path.as_list())


def asks_for(info: GatewayInfo, name: str) -> bool:
    """Whether the field's own selection may include another field; directives are not weighed."""
    waiting = _own_selections(info)
    fragments = _fragments(info)
    seen: set[str] = set()
    while waiting:
        for selection in waiting.pop().selections:
            if isinstance(selection, FieldNode):
                if selection.name.value == name:
                    return True
            elif isinstance(selection, InlineFragmentNode):
                waiting.append(selection.selection_set)
            elif isinstance(selection, FragmentSpreadNode) and selection.name.value not in seen:
                seen.add(selection.name.value)
                waiting.append(fragments[selection.name.value].selection_set)
    return False


def wanted_of(info: GatewayInfo) -> Wanted:
    """Return what a query wants of each row of a connection by further reads.

    What carries a directive is left out: it may be skipped. So is what is deeper than any chain
    worth starting early, because fragments can make a small document very deep and wide.
    """
    return _wanted_of_rows(_own_selections(info), _fragments(info), levels=_MAX_CHAIN)


def _own_selections(info: GatewayInfo) -> list[SelectionSetNode]:
    raw = info._raw_info  # noqa: SLF001 - the only way to the selection that costs nothing unless asked
    return [node.selection_set for node in raw.field_nodes if node.selection_set is not None]


def _fragments(info: GatewayInfo) -> Mapping[str, FragmentDefinitionNode]:
    return info._raw_info.fragments  # noqa: SLF001 - the same


def _wanted_of_rows(
    connection: Sequence[SelectionSetNode],
    fragments: Mapping[str, FragmentDefinitionNode],
    *,
    levels: int,
) -> Wanted:
    fields = _fields_of(connection, fragments)
    edges = _fields_of(fields.get("edges", ()), fragments)
    rows = [*fields.get("nodes", ()), *edges.get("node", ())]
    return _wanted_of(rows, fragments, levels=levels)


def _wanted_of(
    row: Sequence[SelectionSetNode],
    fragments: Mapping[str, FragmentDefinitionNode],
    *,
    levels: int,
) -> Wanted:
    if levels == 0:
        return NOTHING
    fields = _fields_of(row, fragments)
    places, user, course = (fields.get(name) for name in ("enrollments", "user", "course"))
    return Wanted(
        enrollments=None
        if places is None
        else _wanted_of_rows(places, fragments, levels=levels - 1),
        user=None if user is None else _wanted_of(user, fragments, levels=levels - 1),
        course=None if course is None else _wanted_of(course, fragments, levels=levels - 1),
    )


def _fields_of(
    sets: Sequence[SelectionSetNode], fragments: Mapping[str, FragmentDefinitionNode]
) -> Mapping[str, list[SelectionSetNode]]:
    """Return the selections below each field that has some, by name, whatever its aliases."""
    fields: dict[str, list[SelectionSetNode]] = {}
    waiting = [*sets]
    seen: set[str] = set()
    while waiting:
        for selection in waiting.pop().selections:
            if selection.directives:
                continue
            if isinstance(selection, FieldNode):
                if selection.selection_set is not None:
                    fields.setdefault(selection.name.value, []).append(selection.selection_set)
            elif isinstance(selection, InlineFragmentNode):
                waiting.append(selection.selection_set)
            elif isinstance(selection, FragmentSpreadNode) and selection.name.value not in seen:
                seen.add(selection.name.value)
                waiting.append(fragments[selection.name.value].selection_set)
    return fields


@strawberry.interface(description="Anything with a global id.")
class Node:
    """Anything with a global id."""

    __slots__ = ()

    id: strawberry.ID = reads(
        "encoded_id",
        description="Opaque, unique over all providers, the same for as long as the object exists.",
    )

    @property
    def encoded_id(self) -> str:
        """The id."""
        raise NotImplementedError


def _authorization_urls(parents: Sequence[ProviderSession], info: GatewayInfo) -> list[str | None]:
    made_by = info.context.authorizing
    return [authorizing.url_for_session(made_by, parent.record) for parent in parents]


@strawberry.type(description="One session the gateway holds with a provider; never a secret.")
class ProviderSession:
    """One session the gateway holds with a provider."""

    subject: str = strawberry.field(
        description="On whose behalf: service for the organisation, user: and the external id of"
        " a user who authorised the gateway."
    )
    state: SessionState = strawberry.field(description="Where the session is in its life.")
    version: int = strawberry.field(description="Rises by one with every login and renewal.")
    expires_at: datetime | None = strawberry.field(
        description="When it ends unless prolonged; null when the provider does not say."
    )
    next_transition_at: datetime | None = strawberry.field(
        description="When it is prolonged, renewed or tried again next; null when nothing is due."
    )
    login_count: int = strawberry.field(
        description="Logins in the current ten minutes, over all gateways."
    )
    failures: int = strawberry.field(description="Failed attempts since it last went well.")
    problem_code: ErrorCode | None = strawberry.field(
        description="Why it is in this state; null when all is well."
    )
    problem: str | None = strawberry.field(
        description="The same for a person; null when all is well."
    )
    record: strawberry.Private[SessionStatusRecord]
    authorization_url = batched(
        _authorization_urls,
        description="Where the user signs in again, to be opened within an hour; null unless the"
        " session is a user's and REAUTH_REQUIRED.",
    )

    @classmethod
    def from_record(cls, record: SessionStatusRecord) -> ProviderSession:
        """Build the type from its record."""
        return cls(
            subject=record.subject,
            state=record.state,
            version=record.version,
            expires_at=record.expires_at,
            next_transition_at=record.next_transition_at,
            login_count=record.login_count,
            failures=record.failures,
            problem_code=error_code(record.problem_code),
            problem=record.problem,
            record=record,
        )


def _base_urls(parents: Sequence[Provider], info: GatewayInfo) -> list[str]:
    info.context.refuse_learners()
    return [parent.record.base_url for parent in parents]


def _account_ids(parents: Sequence[Provider], info: GatewayInfo) -> list[str | None]:
    info.context.refuse_learners()
    return [parent.record.account_id for parent in parents]


def _versions(parents: Sequence[Provider], info: GatewayInfo) -> list[str | None]:
    info.context.refuse_learners()
    return [parent.record.version for parent in parents]


def _problems(parents: Sequence[Provider], info: GatewayInfo) -> list[str | None]:
    info.context.refuse_learners()
    return [parent.record.problem for parent in parents]


def _capabilities(parents: Sequence[Provider], info: GatewayInfo) -> list[list[Capability]]:
    platforms = [info.context.platforms.get(parent.record.platform) for parent in parents]
    return [[] if found is None else sorted(found.capabilities) for found in platforms]


def _sessions_of_providers(
    parents: Sequence[Provider],
    info: GatewayInfo,
    states: Annotated[
        list[SessionState] | None,
        strawberry.argument(description="Only those in one of these states; null for all."),
    ] = None,
    subject: Annotated[
        str | None,
        strawberry.argument(
            description="Only this one: service, or user: and a user's external id; null for all."
        ),
    ] = None,
    first: Annotated[
        int | None,
        strawberry.argument(description="How many at most: 1 to 1000; null for 50."),
    ] = 50,
) -> list[list[ProviderSession] | None]:
    found = roster.sessions_of(
        info.context,
        records_of(parents),
        states=states,
        subject=subject,
        first=DEFAULT_FIRST if first is None else first,
    )
    return converted(found, lambda rows: [ProviderSession.from_record(row) for row in rows])


def _health_of_providers(
    parents: Sequence[Provider], info: GatewayInfo
) -> list[ProviderHealth | None]:
    found = {parent.record.id: info.context.health(parent.record.id) for parent in parents}
    used = [parent.record for parent in parents if found[parent.record.id] is not None]
    sessions = roster.sessions_of(info.context, used, states=None, subject=SERVICE, first=1)

    def describe(statuses: Outcomes[Sequence[SessionStatusRecord]]) -> list[object]:
        rows_of_used = iter(statuses)
        return [_health(found[parent.record.id], rows_of_used) for parent in parents]

    return cast("list[ProviderHealth | None]", after(sessions, describe))  # as in ``converted``


def _health(
    health: resilience.ProviderHealth | None,
    statuses: Iterator[Sequence[SessionStatusRecord] | BaseException | None],
) -> ProviderHealth | BaseException | None:
    if health is None:
        return None
    rows = next(statuses)
    if rows is None or isinstance(rows, BaseException):
        return rows
    return ProviderHealth.from_record(health, rows)


def _last_imports(
    parents: Sequence[Provider], info: GatewayInfo
) -> list[Annotated[ImportRun, strawberry.lazy("schema.imports")] | None]:
    from schema.imports import ImportRun  # noqa: PLC0415 - it is built from these types

    found = importing.last_imports_of(info.context, records_of(parents))
    return converted(found, ImportRun.from_record)


@strawberry.type(description="One registered installation of a platform, such as a Kolibri server.")
class Provider(Node):
    """One registered installation of a platform."""

    __slots__ = ("record",)

    provider_id: strawberry.ID = reads(
        "record.id",
        description="The product's own id for it, as given when it was registered.",
    )
    platform: str = reads(
        "record.platform", description="Kind of software, in lower case: kolibri."
    )
    name: str = reads("record.name", description="For a person.")
    state: ProviderState = reads("record.state", description="Where it is in its life.")
    revision: int = reads("record.revision", description="Rises by one with every change.")
    created_at: datetime = reads("record.created_at", description="When it was registered.")
    updated_at: datetime = reads("record.updated_at", description="When it was last changed.")
    checked_at: datetime | None = reads(
        "record.checked_at",
        description="When it was last checked; null before the first check.",
    )
    record: strawberry.Private[records.Provider]

    def __init__(self, record: records.Provider) -> None:
        self.record = record

    base_url = batched(
        _base_urls, lasting=True, description="Where the gateway reaches it. Not for learners."
    )
    account_id = batched(
        _account_ids,
        lasting=True,
        description="Which part of the installation is meant (Kolibri: the facility id); null for"
        " the one the account belongs to. Not for learners.",
    )
    version = batched(
        _versions,
        lasting=True,
        description="Software version last read from it; null before the first check. Not for"
        " learners.",
    )
    problem = batched(
        _problems,
        lasting=True,
        description="Why its last check failed, for a person; null when it did not. Not for"
        " learners.",
    )
    capabilities = batched(
        _capabilities,
        lasting=True,
        description="What it can be asked for, in alphabetical order.",
        directives=[ListSize(assumed_size=10)],
    )
    sessions = batched(
        _sessions_of_providers,
        every_place=True,
        description="Sessions the gateway holds with it, by subject. Needs the scope"
        " read:providers; null without.",
        directives=[ListSize(slicing_arguments=["first"])],
    )
    health = batched(
        _health_of_providers,
        every_place=True,
        description="How the process that answers gets on with it; null when that process has not"
        " used it. Costs no call. Needs the scope read:providers; null without.",
    )
    last_import = batched(
        _last_imports,
        description="Its last import, under way or ended; null when it was never imported. Needs"
        " the scope read:providers; null without.",
    )

    @property
    def encoded_id(self) -> str:
        """The id."""
        return encoded(global_ids.PROVIDER, self.record.id)

    @classmethod
    def from_record(cls, record: records.Provider) -> Provider:
        """Build the type from its record."""
        return cls(record)


@strawberry.type(description="A role as all providers' own words are mapped to it.")
class Role:
    """A role as all providers' own words are mapped to it."""

    value: RoleValue = strawberry.field(description="For logic.")
    source_value: str = strawberry.field(description="The provider's own word.")

    @classmethod
    def from_record(cls, record: records.Role) -> Role:
        """Build the type from its record."""
        return cls(value=record.value, source_value=record.source_value)


@strawberry.type(description="An identifier beside the external id.")
class Identifier:
    """An identifier beside the external id."""

    type: IdentifierType = strawberry.field(description="What it identifies.")
    value: str = strawberry.field(description="As the provider has it.")
    namespace: str | None = strawberry.field(
        description="Within what it is unique; null when the provider does not say."
    )

    @classmethod
    def from_record(cls, record: records.Identifier) -> Identifier:
        """Build the type from its record."""
        return cls(type=record.type, value=record.value, namespace=record.namespace)


@strawberry.type(description="Where a record comes from and how fresh it is.")
class Provenance:
    """Where a record comes from and how fresh it is."""

    external_id: str = strawberry.field(
        description="The id the provider gave, or a derived one where it gives none."
    )
    source_type: str = strawberry.field(
        description="The provider's own word for the thing, such as facilityuser or channel."
    )
    fetched_at: datetime = strawberry.field(description="When the gateway read it.")
    modified_at: datetime | None = strawberry.field(
        description="When the provider says it last changed; null when it does not say."
    )
    via: DataSource = strawberry.field(description="Whether it was read for this request.")
    stale: bool = strawberry.field(
        description="Whether something newer was wanted and could not be had."
    )

    @classmethod
    def from_record(cls, record: records.Provenance) -> Provenance:
        """Build the type from its record."""
        return cls(
            external_id=record.external_id,
            source_type=record.source_type,
            fetched_at=record.fetched_at,
            modified_at=record.modified_at,
            via=record.via,
            stale=record.stale,
        )


@strawberry.type(description="A result, in the terms of xAPI.")
class Score:
    """A result, in the terms of xAPI."""

    raw: float | None = strawberry.field(description="Points; null when not reported.")
    min: float | None = strawberry.field(
        description="Fewest points possible; null when not reported."
    )
    max: float | None = strawberry.field(
        description="Most points possible; null when not reported."
    )
    scaled: float | None = strawberry.field(description="Between -1 and 1; null when not reported.")
    grade: str | None = strawberry.field(
        description="As the provider writes it, such as A-; null when not reported."
    )

    @classmethod
    def from_record(cls, record: records.Score) -> Score:
        """Build the type from its record."""
        return cls(
            raw=record.raw,
            min=record.min,
            max=record.max,
            scaled=record.scaled,
            grade=record.grade,
        )


@strawberry.type(description="How far a user is in a course. Null always means not reported.")
class Progress:
    """How far a user is in a course."""

    ratio: float | None = strawberry.field(description="Between 0 and 1; null when not reported.")
    completed_count: int | None = strawberry.field(
        description="How many items are done; null when not reported."
    )
    total_count: int | None = strawberry.field(
        description="How many items there are; null when not reported."
    )
    completed: bool | None = strawberry.field(
        description="Whether the course counts as done; null when not reported."
    )
    completed_at: datetime | None = strawberry.field(
        description="When it was done; null when it is not, or not reported."
    )
    time_spent_seconds: int | None = strawberry.field(
        description="Seconds spent in it; null when not reported."
    )
    score: Score | None = strawberry.field(description="The result; null when not reported.")
    method: ProgressMethod = strawberry.field(description="Who worked it out.")

    @classmethod
    def from_record(cls, record: records.Progress) -> Progress:
        """Build the type from its record."""
        return cls(
            ratio=record.ratio,
            completed_count=record.completed_count,
            total_count=record.total_count,
            completed=record.completed,
            completed_at=record.completed_at,
            time_spent_seconds=record.time_spent_seconds,
            score=None if record.score is None else Score.from_record(record.score),
            method=record.method,
        )


@strawberry.type(
    description="One piece of work of one user in one course, such as what was handed in to a"
    " Canvas assignment. Null always means not reported."
)
class Milestone:
    """One piece of work of one user in one course."""

    external_id: str = strawberry.field(description="The provider's own id, exactly.")
    title: str | None = strawberry.field(
        description="Of the piece of work, the provider's text untouched; null when not reported."
    )
    state: MilestoneState = strawberry.field(description="How far it is.")
    due_at: datetime | None = strawberry.field(
        description="When it is to be handed in; null when there is no such date, or it is not"
        " reported."
    )
    submitted_at: datetime | None = strawberry.field(
        description="When it was last handed in; null when it was not, or not reported."
    )
    graded_at: datetime | None = strawberry.field(
        description="When it was last given marks; null when it was not, or not reported."
    )
    score: Score | None = strawberry.field(description="The marks; null when not reported.")
    attempt: int | None = strawberry.field(
        description="How many times it was handed in; null when not reported."
    )
    late: bool | None = strawberry.field(
        description="Whether it was handed in after it was due; null when not reported."
    )
    missing: bool | None = strawberry.field(
        description="Whether it is due and was not handed in; null when not reported."
    )
    provenance: Provenance = strawberry.field(
        description="Where the milestone comes from and how fresh it is."
    )

    @classmethod
    def from_record(cls, record: records.Milestone) -> Milestone:
        """Build the type from its record."""
        return cls(
            external_id=record.external_id,
            title=record.title,
            state=record.state,
            due_at=record.due_at,
            submitted_at=record.submitted_at,
            graded_at=record.graded_at,
            score=None if record.score is None else Score.from_record(record.score),
            attempt=record.attempt,
            late=record.late,
            missing=record.missing,
            provenance=Provenance.from_record(record.provenance),
        )


@strawberry.type(
    description="A part of a course that users are enrolled in, such as a Canvas section. Null"
    " always means not reported."
)
class Section:
    """A part of a course that users are enrolled in."""

    external_id: str = strawberry.field(description="The provider's own id, exactly.")
    title: str = strawberry.field(description="The provider's text untouched.")
    identifiers: list[Identifier] = strawberry.field(
        directives=[ListSize(assumed_size=3)],
        description="Identifiers beside the external id, in the provider's order.",
    )
    starts_at: datetime | None = strawberry.field(description="Null when not reported.")
    ends_at: datetime | None = strawberry.field(description="Null when not reported.")
    provenance: Provenance = strawberry.field(
        description="Where the section comes from and how fresh it is."
    )

    @classmethod
    def from_record(cls, record: records.Section) -> Section:
        """Build the type from its record."""
        return cls(
            external_id=record.external_id,
            title=record.title,
            identifiers=[Identifier.from_record(row) for row in record.identifiers],
            starts_at=record.starts_at,
            ends_at=record.ends_at,
            provenance=Provenance.from_record(record.provenance),
        )


@strawberry.type(
    description="One thing a user did, such as a page looked at in Canvas. Null always means not"
    " reported."
)
class Activity:
    """One thing a user did."""

    external_id: str = strawberry.field(description="The provider's own id, exactly.")
    kind: str = strawberry.field(description="What was done, in the provider's own word.")
    at: datetime = strawberry.field(description="When it was done.")
    seconds: float | None = strawberry.field(
        description="How long it took, in seconds; null when not reported."
    )
    course_id: strawberry.ID | None = strawberry.field(
        description="Global id of the course it was done in; null when in none. Costs no call."
    )
    provenance: Provenance = strawberry.field(
        description="Where the activity comes from and how fresh it is."
    )

    @classmethod
    def from_record(cls, record: records.Activity) -> Activity:
        """Build the type from its record."""
        return cls(
            external_id=record.external_id,
            kind=record.kind,
            at=record.at,
            seconds=record.seconds,
            course_id=None
            if record.course_id is None
            else strawberry.ID(encoded(global_ids.COURSE, record.provider_id, record.course_id)),
            provenance=Provenance.from_record(record.provenance),
        )


@strawberry.type(description="An image the gateway verified, keeps and serves.")
class Asset:
    """An image the gateway verified, keeps and serves."""

    sha256: str = strawberry.field(description="Hash of the served bytes, in hex.")
    media_type: str = strawberry.field(description="Of the served bytes, such as image/webp.")
    byte_size: int = strawberry.field(description="Length of the served bytes.")
    width: int = strawberry.field(description="In pixels.")
    height: int = strawberry.field(description="In pixels.")
    url: str = strawberry.field(description="Where the gateway serves it; never changes its bytes.")

    @classmethod
    def from_record(cls, record: contexts.Asset) -> Asset:
        """Build the type from its record."""
        return cls(
            sha256=record.sha256,
            media_type=record.media_type,
            byte_size=record.byte_size,
            width=record.width,
            height=record.height,
            url=record.url,
        )


@strawberry.type(description="How one provider took part in a list.")
class SourceStatus:
    """How one provider took part in a list."""

    provider_id: strawberry.ID = strawberry.field(
        description="The product's own id for the provider, as it was asked for."
    )
    provider: Provider | None = strawberry.field(
        description="The provider; null when none of that id is registered."
    )
    status: paging.SourceState = strawberry.field(description="Whether it answered.")
    code: ErrorCode | None = strawberry.field(
        description="Why it did not answer; null when it did or was not asked."
    )
    message: str | None = strawberry.field(
        description="The same for a person; null when it did or was not asked."
    )
    retryable: bool = strawberry.field(
        description="Whether asking again later may help; false where nothing failed."
    )
    retry_after_seconds: int | None = strawberry.field(
        description="How many seconds the provider asked to be left alone; null when it did not."
    )
    stale: bool = strawberry.field(
        description="Whether its rows are an earlier answer, because nothing newer could be had."
    )
    as_of: datetime | None = strawberry.field(
        description="When the oldest of its rows was read; null when none was."
    )

    @classmethod
    def from_record(cls, record: paging.SourceStatus) -> SourceStatus:
        """Build the type from its record."""
        error = record.error
        return cls(
            provider_id=strawberry.ID(record.provider_id),
            provider=None if record.provider is None else Provider.from_record(record.provider),
            status=record.state,
            code=None if error is None else error_code(error.code),
            message=None if error is None else error.message,
            retryable=error is not None and error.retryable,
            retry_after_seconds=None if error is None else error.retry_after_seconds,
            stale=record.state is paging.SourceState.STALE,
            as_of=record.as_of,
        )


@strawberry.type(description="Where a page lies in its list (Relay cursor connections).")
class PageInfo:
    """Where a page lies in its list."""

    has_next_page: bool = strawberry.field(
        description="Whether the providers that answered have more. While a source has FAILED,"
        " asking again after the same endCursor gives its rows once it is back."
    )
    has_previous_page: bool = strawberry.field(description="Whether this is not the first page.")
    start_cursor: str | None = strawberry.field(
        description="Cursor of the first row; null without rows."
    )
    end_cursor: str | None = strawberry.field(
        description="Cursor to go on after; without rows, the one this page was asked with."
    )

    @classmethod
    def from_record(cls, record: paging.Connection[Any]) -> PageInfo:
        """Build the type from its record."""
        return cls(
            has_next_page=record.has_next_page,
            has_previous_page=record.has_previous_page,
            start_cursor=record.start_cursor,
            end_cursor=record.end_cursor,
        )


_PAGE_INFO = "Where this page lies in the list."
_TOTAL_COUNT = (
    "Length of the whole list; null when a provider does not say or has failed. May cost one"
    " call for each provider. Where providers sort by themselves, ask for it from the first page"
    " on: it takes reading their whole lists, and later pages follow the first."
)
_SOURCES = "Every provider the list is made of, in order of registration."
_NODES = "The rows of this page."
_EDGES = "The rows of this page, each with its cursor."
_CURSOR = "What to give as after for what comes behind this row."
_NODE = "The row."


def _providers_of(parents: Sequence[_Recorded[_OfProvider]], info: GatewayInfo) -> list[Provider]:
    provider_ids = [*map(provider_id_of, parents)]
    found = {provider_id: _provider_of(info, provider_id) for provider_id in set(provider_ids)}
    return [found[provider_id] for provider_id in provider_ids]


def _enrollments_of_users(
    parents: Sequence[records.User],
    info: GatewayInfo,
    filter: Annotated[  # noqa: A002 - the argument's name in the API
        EnrollmentFilter | None, strawberry.argument(description="Which ones.")
    ] = None,
    first: Annotated[int | None, strawberry.argument(description=_FIRST)] = 50,
    after: Annotated[str | None, strawberry.argument(description=_AFTER)] = None,
) -> list[EnrollmentConnection | None]:
    found = roster.enrollments_of_users(
        info.context,
        parents[0].provider_id,
        [*map(_external_id_of, parents)],
        filter=EnrollmentFilter.record_of(filter),
        page=lists.PageArguments(first=DEFAULT_FIRST if first is None else first, after=after),
    )
    return cast("list[EnrollmentConnection | None]", found)  # the engine shows them


def _activity_of_users(
    parents: Sequence[User],
    info: GatewayInfo,
    first: Annotated[
        int | None, strawberry.argument(description="How many at most: 1 to 100; null for 50.")
    ] = 50,
) -> list[list[Activity] | None]:
    found = roster.activity_of(
        info.context, records_of(parents), first=DEFAULT_FIRST if first is None else first
    )
    return converted(found, lambda rows: [Activity.from_record(row) for row in rows])


def _persons_of_users(
    parents: Sequence[User], info: GatewayInfo
) -> list[Annotated[Person, strawberry.lazy("schema.people")] | None]:
    from schema.people import Person  # noqa: PLC0415 - it is built from these types

    return shared(people.persons_of(info.context, records_of(parents)), Person.from_record)


def _matches_of_users(
    parents: Sequence[User],
    info: GatewayInfo,
    min_score: Annotated[
        float | None,
        strawberry.argument(description="At least so probable, from 0 to 1; null for 0.2."),
    ] = None,
    first: Annotated[int, strawberry.argument(description="How many at most: 1 to 50.")] = 5,
) -> list[list[Annotated[UserMatch, strawberry.lazy("schema.people")]] | None]:
    from schema.people import UserMatch  # noqa: PLC0415 - it is built from these types

    found = people.matches_of(info.context, records_of(parents), first=first, least_score=min_score)
    return converted(found, lambda rows: [UserMatch.from_record(row) for row in rows])


@strawberry.type(description="An account at one provider. Null always means not reported.")
class User(Node, View):
    """An account at one provider."""

    __slots__ = ("record",)

    external_id: str = reads("record.external_id", description="The provider's own id, exactly.")
    username: str | None = reads(
        "record.username", description="What the user logs in with; null when not reported."
    )
    display_name: str = reads(
        "record.display_name",
        description="The provider's text untouched; empty where the provider has none.",
    )
    given_name: str | None = reads(
        "record.given_name",
        description="Null unless reported, or told from the display name with confidence.",
    )
    middle_name: str | None = reads(
        "record.middle_name",
        description="Null unless reported, or told from the display name with confidence.",
    )
    family_name: str | None = reads(
        "record.family_name",
        description="Null unless reported, or told from the display name with confidence.",
    )
    email: str | None = reads("record.email", description="Null when not reported.")
    active: bool | None = reads(
        "record.active", description="Whether the account can be used; null when not reported."
    )
    locale: str | None = reads(
        "record.locale", description="BCP 47 language tag; null when not reported."
    )
    time_zone: str | None = reads(
        "record.time_zone", description="IANA time zone name; null when not reported."
    )
    birth_year: int | None = reads(
        "record.birth_year", description="Year of birth; null when not reported."
    )
    gender: Gender | None = reads("record.gender", description="Null when not reported.")
    last_activity_at: datetime | None = reads(
        "record.last_activity_at",
        description="When the user last did something; null when not reported.",
    )
    record: strawberry.Private[records.User]

    def __init__(self, record: records.User) -> None:
        self.record = record

    roles: list[Role] = reads(
        "record.roles",
        description="Roles in the installation as a whole, in the provider's order.",
        directives=[ListSize(assumed_size=3)],
    )
    identifiers: list[Identifier] = reads(
        "record.identifiers",
        description="Identifiers beside the external id, in the provider's order.",
        directives=[ListSize(assumed_size=3)],
    )
    provenance: Provenance = reads(
        "record.provenance", description="Where the account comes from and how fresh it is."
    )
    provider = batched(_providers_of, lasting=True, description="Where the account is.")
    enrollments = batched(
        _enrollments_of_users,
        lasting=True,
        apart=_provider_id_of_record,
        every_place=True,
        takes_records=True,
        gives_records=True,
        description="The user's enrollments, in an order that stays the same; null while the"
        " provider is down or when it no longer knows the user.",
        directives=[PAGE],
    )
    activity = batched(
        _activity_of_users,
        lasting=True,
        apart=provider_id_of,
        every_place=True,
        description="The latest things the user did, newest first; null while the provider is"
        " down, cannot tell, or no longer knows the user. Needs the scope read:enrollments. Costs"
        " a provider that tells it user by user one call for each.",
        directives=[ListSize(slicing_arguments=["first"])],
    )
    person = batched(
        _persons_of_users,
        description="Whose account it is; null while nobody has said, nor a run linked it. Needs"
        " the scope read:users.",
    )
    matches = batched(
        _matches_of_users,
        description="Who at the other providers may be the same person, the most probable first,"
        " looked up at once; without what was rejected. Null when no import has seen the user."
        " Needs the scope read:users.",
        directives=[ListSize(slicing_arguments=["first"])],
    )

    @property
    def encoded_id(self) -> str:
        """The id."""
        record = self.record
        return encoded(global_ids.USER, record.provider_id, record.external_id)

    @classmethod
    def from_record(cls, record: records.User) -> User:
        """Build the type from its record."""
        return cls(record)


def _icon_urls(
    parents: Sequence[Course],
    info: GatewayInfo,
    width: Annotated[
        int | None,
        strawberry.argument(
            description="Wanted width in pixels, 1 to 4096: the smallest size kept that is"
            " as wide is given, else the widest."
        ),
    ] = 256,
) -> list[str | None]:
    found = roster.icon_urls_of(info.context, records_of(parents), width)
    return converted(found, str)


def _icon_assets(parents: Sequence[Course], info: GatewayInfo) -> list[Asset | None]:
    found = info.context.loaders.icon_assets(records_of(parents))
    return converted(found, Asset.from_record)


def _enrollments_of_courses(
    parents: Sequence[records.Course],
    info: GatewayInfo,
    filter: Annotated[  # noqa: A002 - the argument's name in the API
        EnrollmentFilter | None, strawberry.argument(description="Which ones.")
    ] = None,
    first: Annotated[int | None, strawberry.argument(description=_FIRST)] = 50,
    after: Annotated[str | None, strawberry.argument(description=_AFTER)] = None,
) -> list[EnrollmentConnection | None]:
    found = roster.enrollments_of_courses(
        info.context,
        parents[0].provider_id,
        [*map(_external_id_of, parents)],
        filter=EnrollmentFilter.record_of(filter),
        page=lists.PageArguments(first=DEFAULT_FIRST if first is None else first, after=after),
    )
    return cast("list[EnrollmentConnection | None]", found)  # the engine shows them


def _sections_of_courses(
    parents: Sequence[Course], info: GatewayInfo
) -> list[list[Section] | None]:
    found = roster.sections_of(info.context, records_of(parents))
    return converted(found, lambda rows: [Section.from_record(row) for row in rows])


@strawberry.type(
    description="What users of one provider enroll in: a Kolibri channel or classroom, a Canvas"
    " course. Null always means not reported."
)
class Course(Node, View):
    """What users of one provider enroll in."""

    __slots__ = ("record",)

    external_id: str = reads("record.external_id", description="The provider's own id, exactly.")
    kind: CourseKind = reads("record.kind", description="What kind of thing it is.")
    title: str = reads("record.title", description="The provider's text untouched.")
    course_code: str | None = reads(
        "record.course_code", description="Short code; null when not reported."
    )
    description: str | None = reads(
        "record.description",
        description="As the provider has it, which may be HTML; null when not reported.",
    )
    language: str | None = reads(
        "record.language", description="BCP 47 language tag; null when not reported."
    )
    state: CourseState = reads("record.state", description="Where it is in its life.")
    starts_at: datetime | None = reads("record.starts_at", description="Null when not reported.")
    ends_at: datetime | None = reads("record.ends_at", description="Null when not reported.")
    url: str | None = reads(
        "record.url", description="Where a person opens it at the provider; null when not reported."
    )
    resource_count: int | None = reads(
        "record.resource_count", description="How many items it holds; null when not reported."
    )
    record: strawberry.Private[records.Course]

    def __init__(self, record: records.Course) -> None:
        self.record = record

    identifiers: list[Identifier] = reads(
        "record.identifiers",
        description="Identifiers beside the external id, in the provider's order.",
        directives=[ListSize(assumed_size=3)],
    )
    provenance: Provenance = reads(
        "record.provenance", description="Where the course comes from and how fresh it is."
    )
    provider = batched(_providers_of, lasting=True, description="Where the course is.")
    icon_url = batched(
        _icon_urls,
        lasting=True,
        description="Address of the icon at the gateway; null when there is none, it is not a"
        " usable image, or it cannot be had now. Never fails a query.",
    )
    icon = batched(
        _icon_assets, description="The icon in the largest size kept; null as for iconUrl."
    )
    enrollments = batched(
        _enrollments_of_courses,
        lasting=True,
        apart=_provider_id_of_record,
        every_place=True,
        takes_records=True,
        gives_records=True,
        description="Enrollments in the course, in an order that stays the same; null while the"
        " provider is down or when it no longer knows the course.",
        directives=[PAGE],
    )
    sections = batched(
        _sections_of_courses,
        lasting=True,
        apart=provider_id_of,
        every_place=True,
        description="The course's sections, by title; null while the provider is down, has none,"
        " or no longer knows the course. Needs the scope read:courses.",
        directives=[ListSize(assumed_size=5)],
    )

    @property
    def encoded_id(self) -> str:
        """The id."""
        record = self.record
        return encoded(global_ids.COURSE, record.provider_id, record.external_id)

    @classmethod
    def from_record(cls, record: records.Course) -> Course:
        """Build the type from its record."""
        return cls(record)


def _users_of_enrollments(
    parents: Sequence[records.Enrollment], info: GatewayInfo
) -> list[User | None]:
    user_ids = [*map(_user_id_of, parents)]
    distinct = dict.fromkeys(user_ids)
    found = roster.users_of(info.context, parents[0].provider_id, distinct)
    return cast("list[User | None]", spread(found, distinct, user_ids))  # the engine shows them


def _courses_of_enrollments(
    parents: Sequence[records.Enrollment], info: GatewayInfo
) -> list[Course | None]:
    course_ids = [*map(_course_id_of, parents)]
    distinct = dict.fromkeys(course_ids)
    found = roster.courses_of(info.context, parents[0].provider_id, distinct)
    return cast("list[Course | None]", spread(found, distinct, course_ids))  # likewise


def _section_of_enrollments(
    parents: Sequence[Enrollment], info: GatewayInfo
) -> list[Section | None]:
    return shared(roster.section_of(info.context, records_of(parents)), Section.from_record)


def _progress_of_enrollments(
    parents: Sequence[Enrollment], info: GatewayInfo
) -> list[Progress | None]:
    found = roster.progress_of(info.context, records_of(parents))
    return converted(found, Progress.from_record)


def _milestones_of_enrollments(
    parents: Sequence[Enrollment], info: GatewayInfo
) -> list[list[Milestone] | None]:
    found = roster.milestones_of(info.context, records_of(parents))
    return converted(found, lambda rows: [Milestone.from_record(row) for row in rows])


@strawberry.type(description="One user's place in one course. Null always means not reported.")
class Enrollment(Node, View):
    """One user's place in one course."""

    __slots__ = ("record",)

    external_id: str | None = reads(
        "record.external_id",
        description="The provider's own id; null where the gateway derived the enrollment.",
    )
    state: EnrollmentState = reads("record.state", description="Where it is in its life.")
    source: EnrollmentSource = reads("record.source", description="How the gateway knows of it.")
    enrolled_at: datetime | None = reads(
        "record.enrolled_at",
        description="When the user was enrolled, or for ACTIVITY first did something; null when"
        " not reported.",
    )
    starts_at: datetime | None = reads("record.starts_at", description="Null when not reported.")
    ends_at: datetime | None = reads("record.ends_at", description="Null when not reported.")
    last_activity_at: datetime | None = reads(
        "record.last_activity_at",
        description="When the user last did something in the course; null when not reported.",
    )
    record: strawberry.Private[records.Enrollment]

    def __init__(self, record: records.Enrollment) -> None:
        self.record = record

    role: Role = reads("record.role", description="As what.")
    provenance: Provenance = reads(
        "record.provenance", description="Where the enrollment comes from and how fresh it is."
    )
    provider = batched(_providers_of, lasting=True, description="Where the enrollment is.")
    user = batched(
        _users_of_enrollments,
        lasting=True,
        apart=_provider_id_of_record,
        may_repeat=True,
        takes_records=True,
        gives_records=True,
        description="Who; null while the provider is down or when it no longer knows the user.",
    )
    course = batched(
        _courses_of_enrollments,
        lasting=True,
        apart=_provider_id_of_record,
        may_repeat=True,
        takes_records=True,
        gives_records=True,
        description="In what; null while the provider is down or when it no longer knows it.",
    )
    section = batched(
        _section_of_enrollments,
        lasting=True,
        apart=provider_id_of,
        description="In which part of the course; null when in none, and as for course. Needs the"
        " scope read:courses.",
    )
    progress = batched(
        _progress_of_enrollments,
        lasting=True,
        apart=provider_id_of,
        description="How far the user is; null when not reported. Some providers, such as Canvas,"
        " tell it by a call of its own, made for all enrollments of the answer together: null too"
        " while that fails.",
    )
    milestones = batched(
        _milestones_of_enrollments,
        lasting=True,
        apart=provider_id_of,
        every_place=True,
        description="What the user has handed in and been given marks for in the course, by due"
        " date, those without one last; null while the provider is down, or has no such thing."
        " Needs the scope read:enrollments.",
        directives=[ListSize(assumed_size=20)],
    )

    @property
    def encoded_id(self) -> str:
        """The id."""
        record = self.record
        return global_ids.enrollment_id(record.provider_id, record.user_id, record.id).encode()

    @strawberry.field(description="Global id of the user; costs no call.")
    def user_id(self) -> strawberry.ID:
        """Return the user's global id."""
        record = self.record
        return strawberry.ID(encoded(global_ids.USER, record.provider_id, record.user_id))

    @strawberry.field(description="Global id of the course; costs no call.")
    def course_id(self) -> strawberry.ID:
        """Return the course's global id."""
        record = self.record
        return strawberry.ID(encoded(global_ids.COURSE, record.provider_id, record.course_id))

    @classmethod
    def from_record(cls, record: records.Enrollment) -> Enrollment:
        """Build the type from its record."""
        return cls(record)


@strawberry.type(description="One of the users of a page.")
class UserEdge:
    """One of the users of a page."""

    cursor: str = strawberry.field(description=_CURSOR)
    node: User = strawberry.field(description=_NODE)


@strawberry.type(description="A page of users.")
class UserConnection(View):
    """A page of users."""

    __slots__ = ("record",)

    total_count: int | None = reads("record.total_count", description=_TOTAL_COUNT)
    nodes: list[User] = reads("record.nodes", view=User, description=_NODES)
    record: strawberry.Private[paging.Connection[records.User]]

    def __init__(self, record: paging.Connection[records.User]) -> None:
        self.record = record

    @strawberry.field(description=_EDGES)
    def edges(self) -> list[UserEdge]:
        """Return the rows with their cursors."""
        return [
            UserEdge(cursor=self.record.cursor_of(index), node=User.from_record(row))
            for index, row in enumerate(self.record.nodes)
        ]

    @strawberry.field(description=_PAGE_INFO)
    def page_info(self) -> PageInfo:
        """Return where the page lies."""
        return PageInfo.from_record(self.record)

    @strawberry.field(description=_SOURCES, directives=[ListSize(assumed_size=10)])
    def sources(self) -> list[SourceStatus]:
        """Return how each provider took part."""
        return [SourceStatus.from_record(source) for source in self.record.sources]

    @classmethod
    def from_record(cls, record: paging.Connection[records.User]) -> UserConnection:
        """Build the type from its record."""
        return cls(record)


@strawberry.type(description="One of the courses of a page.")
class CourseEdge:
    """One of the courses of a page."""

    cursor: str = strawberry.field(description=_CURSOR)
    node: Course = strawberry.field(description=_NODE)


@strawberry.type(description="A page of courses.")
class CourseConnection(View):
    """A page of courses."""

    __slots__ = ("record",)

    total_count: int | None = reads("record.total_count", description=_TOTAL_COUNT)
    nodes: list[Course] = reads("record.nodes", view=Course, description=_NODES)
    record: strawberry.Private[paging.Connection[records.Course]]

    def __init__(self, record: paging.Connection[records.Course]) -> None:
        self.record = record

    @strawberry.field(description=_EDGES)
    def edges(self) -> list[CourseEdge]:
        """Return the rows with their cursors."""
        return [
            CourseEdge(cursor=self.record.cursor_of(index), node=Course.from_record(row))
            for index, row in enumerate(self.record.nodes)
        ]

    @strawberry.field(description=_PAGE_INFO)
    def page_info(self) -> PageInfo:
        """Return where the page lies."""
        return PageInfo.from_record(self.record)

    @strawberry.field(description=_SOURCES, directives=[ListSize(assumed_size=10)])
    def sources(self) -> list[SourceStatus]:
        """Return how each provider took part."""
        return [SourceStatus.from_record(source) for source in self.record.sources]

    @classmethod
    def from_record(cls, record: paging.Connection[records.Course]) -> CourseConnection:
        """Build the type from its record."""
        return cls(record)


@strawberry.type(description="One of the enrollments of a page.")
class EnrollmentEdge:
    """One of the enrollments of a page."""

    cursor: str = strawberry.field(description=_CURSOR)
    node: Enrollment = strawberry.field(description=_NODE)


@strawberry.type(description="A page of enrollments.")
class EnrollmentConnection(View):
    """A page of enrollments."""

    __slots__ = ("record",)

    total_count: int | None = reads("record.total_count", description=_TOTAL_COUNT)
    nodes: list[Enrollment] = reads("record.nodes", view=Enrollment, description=_NODES)
    record: strawberry.Private[paging.Connection[records.Enrollment]]

    def __init__(self, record: paging.Connection[records.Enrollment]) -> None:
        self.record = record

    @strawberry.field(description=_EDGES)
    def edges(self) -> list[EnrollmentEdge]:
        """Return the rows with their cursors."""
        return [
            EnrollmentEdge(cursor=self.record.cursor_of(index), node=Enrollment.from_record(row))
            for index, row in enumerate(self.record.nodes)
        ]

    @strawberry.field(description=_PAGE_INFO)
    def page_info(self) -> PageInfo:
        """Return where the page lies."""
        return PageInfo.from_record(self.record)

    @strawberry.field(description=_SOURCES, directives=[ListSize(assumed_size=10)])
    def sources(self) -> list[SourceStatus]:
        """Return how each provider took part."""
        return [SourceStatus.from_record(source) for source in self.record.sources]

    @classmethod
    def from_record(cls, record: paging.Connection[records.Enrollment]) -> EnrollmentConnection:
        """Build the type from its record."""
        return cls(record)


def _provider_of(info: GatewayInfo, provider_id: str) -> Provider:
    record = info.context.get_provider(provider_id)
    if record is None:
        raise LookupError(f"Rows of provider {provider_id} came before the provider itself")
    return Provider.from_record(record)
