"""The GraphQL API: ``build_schema`` makes it, ``execution.execute`` answers with it."""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache

import strawberry
from strawberry.schema.config import StrawberryConfig
from strawberry.schema.name_converter import NameConverter

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
            scalar_map={datetime: DATE_TIME},
            name_converter=_Names(),
            enable_experimental_incremental_execution=True,
        ),
        limits=limits or DocumentLimits(),
        remembered_bytes=remembered_bytes,
    )
    check_rules(schema)
    return schema


class _Names(NameConverter):
    """Works names out once: Strawberry asks for each argument's every time a field is resolved."""

    @lru_cache(maxsize=10_000)  # noqa: B019 - there is one for each schema
    def apply_naming_config(self, name: str) -> str:
        """Return a name of Python as GraphQL has it."""
        return super().apply_naming_config(name)


def sdl() -> str:
    """Return the schema in GraphQL's schema definition language, as committed."""
    return build_schema().as_str().rstrip() + "\n"
