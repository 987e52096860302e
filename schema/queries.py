"""What can be asked: the fields of ``Query``, each one call to a resolver."""

# Strawberry types its decorators as Any when they take only keywords.
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, cast

import strawberry

from resolvers import auditing, importing, people, roster
from resolvers.context import RequestContext
from resolvers.errors import BadInput
from resolvers.lists import DEFAULT_FIRST, PageArguments
from schema import global_ids
from schema.auditing import AuditConnection
from schema.costs import EDGES, PAGE, ListSize
from schema.engine import LASTING
from schema.enums import OrderDirection
from schema.global_ids import GlobalId
from schema.imports import ChangeConnection, Kinds, ProviderIds
from schema.inputs import (
    CourseFilter,
    CourseOrder,
    EnrollmentFilter,
    EnrollmentOrder,
    UserFilter,
    UserOrder,
)
from schema.people import PeopleQuery, Person
from schema.scalars import read_instant
from schema.types import (
    Course,
    CourseConnection,
    Enrollment,
    EnrollmentConnection,
    GatewayInfo,
    Node,
    Provider,
    User,
    UserConnection,
    asks_for,
    path_of,
    wanted_of,
)

_FIRST = (
    "How many at most: 1 up to the gateway's largest page, 1000 unless set otherwise; null for 50."
)
_AFTER = (
    "A cursor of the same list with the same filter and order: what comes behind it is given. Good"
    " for a week from the first page on, unless set otherwise."
)
_MAX_AGE = (
    "How many seconds old kept rows may be: 0 for live; null for what is usual for each provider."
    " What hangs on the rows is as fresh as the strictest maxAge of the request. When nothing"
    " fresh enough can be had, older rows are given, marked stale."
)
_MAX_AGE_OF_ONE = (
    "How many seconds old a kept answer may be: 0 for live; null for what is usual for the"
    " provider. When nothing fresh enough can be had, an older one is given, marked stale."
)


@strawberry.type(
    description="What can be asked. A provider that is down costs its own rows, one entry in"
    " sources and one in errors, and nothing else."
)
class Query(PeopleQuery):
    """What can be asked."""

    @strawberry.field(
        description="Anything by its global id; null when there is none, or it cannot be had now."
    )
    async def node(
        self,
        info: GatewayInfo,
        id: Annotated[strawberry.ID, strawberry.argument(description="Its global id.")],  # noqa: A002 - Relay's name
        max_age: Annotated[int | None, strawberry.argument(description=_MAX_AGE_OF_ONE)] = None,
    ) -> Node | None:
        """Return what has the id."""
        info.context.note_max_age(max_age)
        return await _node(info.context, global_ids.decode(id, argument="id"), "id")

    @strawberry.field(
        description="Several things by their global ids, in the order asked for; null where"
        " there is none. At most 1000.",
        directives=[ListSize(slicing_arguments=["ids"])],
    )
    async def nodes(
        self,
        info: GatewayInfo,
        ids: Annotated[list[strawberry.ID], strawberry.argument(description="Global ids.")],
        max_age: Annotated[int | None, strawberry.argument(description=_MAX_AGE_OF_ONE)] = None,
    ) -> list[Node | None]:
        """Return what has the ids; several of one provider are one call."""
        info.context.note_max_age(max_age)
        return await _nodes(info.context, ids)

    @strawberry.field(
        description="Every provider the key may see, in order of registration.",
        directives=[ListSize(assumed_size=10)],
    )
    async def providers(self, info: GatewayInfo) -> list[Provider]:
        """Return the visible providers."""
        visible = await info.context.visible_providers()
        return [Provider.from_record(record) for record in visible.values()]

    @strawberry.field(description="One provider; null when the key sees none of that id.")
    async def provider(
        self,
        info: GatewayInfo,
        provider_id: Annotated[
            strawberry.ID, strawberry.argument(description="The product's own id for it.")
        ],
    ) -> Provider | None:
        """Return the provider of that id."""
        record = await info.context.find_provider(provider_id)
        return None if record is None else Provider.from_record(record)

    @strawberry.field(description="One user; null when there is none, or it cannot be had now.")
    async def user(
        self,
        info: GatewayInfo,
        id: Annotated[strawberry.ID, strawberry.argument(description="Global id of the user.")],  # noqa: A002 - Relay's name
        max_age: Annotated[int | None, strawberry.argument(description=_MAX_AGE_OF_ONE)] = None,
    ) -> User | None:
        """Return the user of that id."""
        info.context.note_max_age(max_age)
        found = global_ids.decode(id, argument="id", type_name=global_ids.USER)
        record = await roster.user(info.context, (found.provider_id, found.local_id))
        return None if record is None else User.from_record(record)

    @strawberry.field(
        description="Users of all providers, or of those the filter names.",
        directives=[PAGE],
        metadata=LASTING,
    )
    async def users(
        self,
        info: GatewayInfo,
        filter: Annotated[  # noqa: A002 - the argument's name in the API
            UserFilter | None, strawberry.argument(description="Which ones.")
        ] = None,
        order_by: Annotated[
            UserOrder | None,
            strawberry.argument(description="In what order; null for PROVIDER."),
        ] = None,
        first: Annotated[int | None, strawberry.argument(description=_FIRST)] = 50,
        after: Annotated[str | None, strawberry.argument(description=_AFTER)] = None,
        max_age: Annotated[int | None, strawberry.argument(description=_MAX_AGE)] = None,
    ) -> UserConnection | None:
        """Return a page of users."""
        order = order_by or UserOrder()
        found = await roster.users(
            info.context,
            filter=UserFilter.record_of(filter),
            order=order.field,
            descending=order.direction is OrderDirection.DESC,
            page=_page(first, after, max_age),
            path=path_of(info),
            wants_total=asks_for(info, "totalCount"),
            wanted=wanted_of(info),
        )
        return UserConnection.from_record(found)

    @strawberry.field(description="One course; null when there is none, or it cannot be had now.")
    async def course(
        self,
        info: GatewayInfo,
        id: Annotated[strawberry.ID, strawberry.argument(description="Global id of the course.")],  # noqa: A002 - Relay's name
        max_age: Annotated[int | None, strawberry.argument(description=_MAX_AGE_OF_ONE)] = None,
    ) -> Course | None:
        """Return the course of that id."""
        info.context.note_max_age(max_age)
        found = global_ids.decode(id, argument="id", type_name=global_ids.COURSE)
        record = await roster.course(info.context, (found.provider_id, found.local_id))
        return None if record is None else Course.from_record(record)

    @strawberry.field(
        description="Courses of all providers, or of those the filter names.",
        directives=[PAGE],
        metadata=LASTING,
    )
    async def courses(
        self,
        info: GatewayInfo,
        filter: Annotated[  # noqa: A002 - the argument's name in the API
            CourseFilter | None, strawberry.argument(description="Which ones.")
        ] = None,
        order_by: Annotated[
            CourseOrder | None,
            strawberry.argument(description="In what order; null for PROVIDER."),
        ] = None,
        first: Annotated[int | None, strawberry.argument(description=_FIRST)] = 50,
        after: Annotated[str | None, strawberry.argument(description=_AFTER)] = None,
        max_age: Annotated[int | None, strawberry.argument(description=_MAX_AGE)] = None,
    ) -> CourseConnection | None:
        """Return a page of courses."""
        order = order_by or CourseOrder()
        found = await roster.courses(
            info.context,
            filter=CourseFilter.record_of(filter),
            order=order.field,
            descending=order.direction is OrderDirection.DESC,
            page=_page(first, after, max_age),
            path=path_of(info),
            wants_total=asks_for(info, "totalCount"),
            wanted=wanted_of(info),
        )
        return CourseConnection.from_record(found)

    @strawberry.field(
        description="Enrollments of all providers, or of those the filter names.",
        directives=[PAGE],
        metadata=LASTING,
    )
    async def enrollments(
        self,
        info: GatewayInfo,
        filter: Annotated[  # noqa: A002 - the argument's name in the API
            EnrollmentFilter, strawberry.argument(description="Which ones.")
        ],
        order_by: Annotated[
            EnrollmentOrder | None,
            strawberry.argument(description="In what order; null for PROVIDER."),
        ] = None,
        first: Annotated[int | None, strawberry.argument(description=_FIRST)] = 50,
        after: Annotated[str | None, strawberry.argument(description=_AFTER)] = None,
        max_age: Annotated[int | None, strawberry.argument(description=_MAX_AGE)] = None,
    ) -> EnrollmentConnection | None:
        """Return a page of enrollments."""
        order = order_by or EnrollmentOrder()
        found = await roster.enrollments(
            info.context,
            filter=EnrollmentFilter.record_of(filter),
            order=order.field,
            descending=order.direction is OrderDirection.DESC,
            page=_page(first, after, max_age),
            path=path_of(info),
            wants_total=asks_for(info, "totalCount"),
            wanted=wanted_of(info),
        )
        return EnrollmentConnection.from_record(found)

    @strawberry.field(
        description="What imports found: created, updated, deleted, in order. Only of what the key"
        " may read.",
        directives=[EDGES],
    )
    async def changes(
        self,
        info: GatewayInfo,
        since: Annotated[
            str | None,
            strawberry.argument(
                description="A cursor of changes: what comes behind it is given; null for every"
                " change that is kept."
            ),
        ] = None,
        first: Annotated[
            int | None,
            strawberry.argument(
                description="How many at most: 1 up to the gateway's largest page, 1000 unless set"
                " otherwise; null for 100."
            ),
        ] = importing.DEFAULT_FIRST_CHANGES,
        kinds: Kinds = None,
        provider_ids: ProviderIds = None,
    ) -> ChangeConnection | None:
        """Return a page of changes."""
        found = await importing.changes(
            info.context,
            since=since,
            first=importing.DEFAULT_FIRST_CHANGES if first is None else first,
            kinds=kinds,
            provider_ids=provider_ids,
        )
        return ChangeConnection.from_record(found, since=since)

    @strawberry.field(
        description="Who changed what: every mutation and every change of a key, oldest first, kept"
        " for a year unless set otherwise. Needs the scope admin.",
        directives=[EDGES],
    )
    async def audit_log(
        self,
        info: GatewayInfo,
        since: Annotated[
            datetime | None,
            strawberry.argument(description="Only what was begun then or later; null for all."),
        ] = None,
        caller: Annotated[
            str | None,
            strawberry.argument(description="Only what this caller did, by the key's id."),
        ] = None,
        first: Annotated[int | None, strawberry.argument(description=_FIRST)] = 50,
        after: Annotated[
            str | None, strawberry.argument(description="A cursor of the log; null to begin.")
        ] = None,
    ) -> AuditConnection | None:
        """Return a page of the audit log."""
        found = await auditing.audit_page(
            info.context,
            first=DEFAULT_FIRST if first is None else first,
            after=after,
            since=read_instant(since, "since"),
            caller=caller,
        )
        return AuditConnection.from_record(found, after=after)


def _page(first: int | None, after: str | None, max_age: int | None) -> PageArguments:
    return PageArguments(
        first=DEFAULT_FIRST if first is None else first, after=after, max_age_seconds=max_age
    )


async def _nodes(context: RequestContext, ids: Sequence[str]) -> list[Node | None]:
    """Return what has the ids; in place of what is refused stands its error, and null for all."""
    wanted = [
        (global_ids.decode(text, argument=f"ids[{index}]"), f"ids[{index}]")
        for index, text in enumerate(ids)
    ]
    await context.visible_providers()  # once, before they are looked up for each id
    found_nodes = await asyncio.gather(
        *(_node(context, found, name) for found, name in wanted), return_exceptions=True
    )
    return cast("list[Node | None]", found_nodes)  # whoever executes takes an exception as an error


async def _node(context: RequestContext, found: GlobalId, argument: str) -> Node | None:
    key = (found.provider_id, found.local_id)
    if found.type_name == global_ids.USER:
        user = await roster.user(context, key)
        return None if user is None else User.from_record(user)
    if found.type_name == global_ids.COURSE:
        course = await roster.course(context, key)
        return None if course is None else Course.from_record(course)
    if found.type_name == global_ids.ENROLLMENT:
        user_id, enrollment_id = global_ids.enrollment_parts(found, argument=argument)
        user_key = (found.provider_id, user_id)
        enrollment = await roster.enrollment(context, user_key, enrollment_id)
        return None if enrollment is None else Enrollment.from_record(enrollment)
    if found.type_name == global_ids.PERSON:
        person = await people.person(context, found.provider_id)
        return None if person is None else Person.from_record(person)
    if found.type_name == global_ids.USER_MATCH:
        raise BadInput(argument, "This is the id of a match; userMatches gives those")
    provider = (await context.visible_providers()).get(found.provider_id)
    return None if provider is None else Provider.from_record(provider)
