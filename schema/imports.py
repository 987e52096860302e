"""Imports: runs, what changed, and watching both."""

# Strawberry types its decorators as Any when they take only keywords.
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import datetime
from typing import Annotated, TypeAlias

import strawberry

from resolvers import importing, people
from schema import global_ids
from schema.costs import ListSize
from schema.enums import ErrorCode, error_code
from schema.global_ids import GlobalId
from schema.people import MatchRun
from schema.types import Course, Enrollment, GatewayInfo, Node, PageInfo, User
from storage import imports, records
from storage.imports import ChangeType, ImportState, RosterKind

_PROVIDER_ID = "The product's own id for the provider."

Kinds: TypeAlias = Annotated[
    list[RosterKind] | None,
    strawberry.argument(description="Of what; null for all that the key may read."),
]
ProviderIds: TypeAlias = Annotated[
    list[strawberry.ID] | None,
    strawberry.argument(
        description="The product's own ids of the providers; null for all the key sees."
    ),
]


@strawberry.type(description="How one list of an import went.")
class ImportCounts:
    """How one list of an import went."""

    kind: RosterKind = strawberry.field(description="Which list.")
    read: int = strawberry.field(description="Rows read so far.")
    total: int | None = strawberry.field(
        description="Length of the list as the provider says; null when it does not."
    )
    before: int = strawberry.field(
        description="Rows the last snapshot has; 0 until the list is read."
    )
    created: int = strawberry.field(description="Rows that are new; 0 until it is applied.")
    updated: int = strawberry.field(description="Rows that changed; 0 until it is applied.")
    deleted: int = strawberry.field(description="Rows that are gone; 0 until it is applied.")

    @classmethod
    def from_record(cls, kind: RosterKind, record: imports.ListCounts) -> ImportCounts:
        """Build the type from its record."""
        return cls(
            kind=kind,
            read=record.read,
            total=record.total,
            before=record.before,
            created=record.created,
            updated=record.updated,
            deleted=record.deleted,
        )


@strawberry.type(
    description="One import of a provider: every user, course and enrollment read as the"
    " organisation sees them, and compared with the last snapshot."
)
class ImportRun:
    """One import of a provider."""

    id: strawberry.ID = strawberry.field(description="Rises from run to run.")
    provider_id: strawberry.ID = strawberry.field(description=_PROVIDER_ID)
    state: ImportState = strawberry.field(description="Where it is in its life.")
    requested_by: str = strawberry.field(
        description="Id of the API key that asked for it, command-line, or schedule."
    )
    requested_at: datetime = strawberry.field(description="When it was asked for.")
    started_at: datetime | None = strawberry.field(
        description="When reading began; null while it is QUEUED."
    )
    finished_at: datetime | None = strawberry.field(description="When it ended; null until it has.")
    accepts_drop: bool = strawberry.field(description="Whether it is applied however much is gone.")
    reading: RosterKind | None = strawberry.field(
        description="The list that is being read; null when none is."
    )
    counts: list[ImportCounts] = strawberry.field(
        directives=[ListSize(assumed_size=3)],
        description="Of the lists read so far; lists the provider does not have are left out.",
    )
    problem_code: ErrorCode | None = strawberry.field(
        description="Why it FAILED; null when it did not."
    )
    problem: str | None = strawberry.field(
        description="Why it FAILED or is HELD, for a person; null when it did not and is not."
    )

    @classmethod
    def from_record(cls, record: imports.ImportRun) -> ImportRun:
        """Build the type from its record."""
        return cls(
            id=strawberry.ID(str(record.id)),
            provider_id=strawberry.ID(record.provider_id),
            state=record.state,
            requested_by=record.requested_by,
            requested_at=record.requested_at,
            started_at=record.started_at,
            finished_at=record.finished_at,
            accepts_drop=record.accept_drop,
            reading=record.kind,
            counts=[
                ImportCounts.from_record(kind, record.counts[kind])
                for kind in RosterKind
                if kind in record.counts
            ],
            problem_code=error_code(record.problem_code),
            problem=record.problem,
        )


@strawberry.input(description="Which provider to import.")
class RefreshProviderInput:
    """Which provider to import."""

    provider_id: strawberry.ID = strawberry.field(description=_PROVIDER_ID)
    accept_drop: bool = strawberry.field(
        default=False,
        description="Whether to apply the import even if less than half of a list is left; for"
        " when an import was HELD and the drop is real.",
    )


@strawberry.type(description="An import that is under way.")
class ImportRequested:
    """An import that is under way."""

    run: ImportRun = strawberry.field(description="The import.")
    already_under_way: bool = strawberry.field(
        description="Whether it had been asked for before; then this changed nothing, but for"
        " acceptDrop."
    )


@strawberry.type(description="One change, in the order in which changes were found.")
class ChangeEdge:
    """One change."""

    cursor: str = strawberry.field(description="What to give as since for what comes behind it.")
    type: ChangeType = strawberry.field(description="What happened.")
    kind: RosterKind = strawberry.field(description="To what.")
    at: datetime = strawberry.field(description="When the import that found it was applied.")
    provider_id: strawberry.ID = strawberry.field(description=_PROVIDER_ID)
    node_id: strawberry.ID = strawberry.field(description="Its global id, also when it is gone.")
    external_id: str = strawberry.field(
        description="Its id within the provider, also when it is gone."
    )
    node: Node | None = strawberry.field(
        description="It, as the import found it; null when it is DELETED."
    )

    @classmethod
    def from_record(cls, record: importing.RosterChange) -> ChangeEdge:
        """Build the type from its record."""
        change = record.change
        deleted = change.type is ChangeType.DELETED
        return cls(
            cursor=record.cursor,
            type=change.type,
            kind=change.kind,
            at=change.at,
            provider_id=strawberry.ID(change.provider_id),
            node_id=strawberry.ID(_global_id(record.record).encode()),
            external_id=change.external_id,
            node=None if deleted else _node(record.record),
        )


@strawberry.type(description="A page of changes.")
class ChangeConnection:
    """A page of changes."""

    edges: list[ChangeEdge] = strawberry.field(description="The changes of this page, in order.")
    page_info: PageInfo = strawberry.field(
        description="Where to go on: endCursor is never null, and good for as long as changes are"
        " kept, 30 days unless set otherwise."
    )
    latest_cursor: str = strawberry.field(
        description="Behind every change there is. To begin, take it, read the lists, and then ask"
        " for changes since it."
    )

    @classmethod
    def from_record(cls, record: importing.ChangeList, *, since: str | None) -> ChangeConnection:
        """Build the type from its record."""
        return cls(
            edges=[ChangeEdge.from_record(change) for change in record.changes],
            page_info=PageInfo(
                has_next_page=record.has_next,
                has_previous_page=since is not None,
                start_cursor=record.changes[0].cursor if record.changes else None,
                end_cursor=record.end_cursor,
            ),
            latest_cursor=record.latest_cursor,
        )


@strawberry.type(
    description="What can be watched, as server-sent events: send the subscription with the header"
    " Accept: text/event-stream."
)
class Subscription:
    """What can be watched."""

    @strawberry.subscription(
        description="The last import of a provider, and again whenever it has got on, until it has"
        " ended; of a provider that was never imported nothing. Needs the scope read:providers."
    )
    async def import_progress(
        self,
        info: GatewayInfo,
        provider_id: Annotated[strawberry.ID, strawberry.argument(description=_PROVIDER_ID)],
    ) -> AsyncGenerator[ImportRun, None]:
        """Watch an import."""
        runs = importing.watch_import(info.context, provider_id)
        async with aclosing(runs):
            async for run in runs:
                yield ImportRun.from_record(run)

    @strawberry.subscription(
        description="A match run, and again whenever it has got on, until it has ended. Needs the"
        " scope read:users."
    )
    async def match_run_progress(
        self,
        info: GatewayInfo,
        id: Annotated[strawberry.ID, strawberry.argument(description="Id of the run.")],  # noqa: A002 - Relay's name
    ) -> AsyncGenerator[MatchRun, None]:
        """Watch a match run."""
        runs = people.watch_run(info.context, id)
        async with aclosing(runs):
            async for run in runs:
                yield MatchRun.from_record(run)

    @strawberry.subscription(
        description="Changes behind a cursor, and then those to come, in order. Only of what the"
        " key may read."
    )
    async def changes(
        self,
        info: GatewayInfo,
        since: Annotated[
            str | None,
            strawberry.argument(
                description="A cursor of changes; null for only those that are still to come."
            ),
        ] = None,
        kinds: Kinds = None,
        provider_ids: ProviderIds = None,
    ) -> AsyncGenerator[ChangeEdge, None]:
        """Follow changes."""
        found = importing.follow_changes(
            info.context, since=since, kinds=kinds, provider_ids=provider_ids
        )
        async with aclosing(found):
            async for change in found:
                yield ChangeEdge.from_record(change)


def _global_id(record: importing.RosterRecord) -> GlobalId:
    if isinstance(record, records.Enrollment):
        return global_ids.enrollment_id(record.provider_id, record.user_id, record.id)
    kind = global_ids.USER if isinstance(record, records.User) else global_ids.COURSE
    return GlobalId(kind, record.provider_id, record.external_id)


def _node(record: importing.RosterRecord) -> Node:
    if isinstance(record, records.User):
        return User.from_record(record)
    if isinstance(record, records.Course):
        return Course.from_record(record)
    return Enrollment.from_record(record)
