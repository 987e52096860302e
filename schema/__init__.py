"""The GraphQL API: ``build_schema`` makes it, ``execution.execute`` answers with it."""

from __future__ import annotations

from datetime import datetime

import strawberry
from strawberry.schema.config import StrawberryConfig

from resolvers.context import RequestContext
from schema.access import check_rules
from schema.execution import GatewaySchema
from schema.imports import Subscription
from schema.limits import DocumentLimits
from schema.mutations import Mutation
from schema.people import Person
from schema.queries import Query
from schema.scalars import DATE_TIME
from schema.types import Course, Enrollment, Provider, User

__all__ = ["RequestContext", "build_schema", "sdl"]


def build_schema(
    limits: DocumentLimits | None = None, *, remembered_bytes: int = 0
) -> strawberry.Schema:
    """Return the schema, ready to execute.

    Args:
        limits: How large documents may be.
        remembered_bytes: How much of answers is remembered; 0 for none.
    """
    schema = GatewaySchema(
        query=Query,
        mutation=Mutation,
        subscription=Subscription,
        types=[Provider, User, Course, Enrollment, Person],
        config=StrawberryConfig(
            scalar_map={datetime: DATE_TIME}, enable_experimental_incremental_execution=True
        ),
        limits=limits or DocumentLimits(),
        remembered_bytes=remembered_bytes,
    )
    check_rules(schema)
    return schema


def sdl() -> str:
    """Return the schema in GraphQL's schema definition language, as committed."""
    return build_schema().as_str().rstrip() + "\n"
