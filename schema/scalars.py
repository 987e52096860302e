"""Scalars of the API beside GraphQL's own."""

from __future__ import annotations

from datetime import UTC, datetime

import strawberry
from strawberry.types.scalar import ScalarDefinition


def _written(instant: datetime) -> str:
    return instant.astimezone(UTC).isoformat().replace("+00:00", "Z")


DATE_TIME: ScalarDefinition = strawberry.scalar(
    name="DateTime",
    description="An instant as RFC 3339 writes it, in UTC: 2026-01-31T09:30:00Z.",
    specified_by_url="https://scalars.graphql.org/andimarek/date-time",
    serialize=_written,
)
