"""Scalars of the API beside GraphQL's own."""

from __future__ import annotations

from datetime import UTC, datetime

import strawberry
from strawberry.types.scalar import ScalarDefinition

from resolvers.errors import BadInput


def _written(instant: datetime) -> str:
    return instant.astimezone(UTC).isoformat().replace("+00:00", "Z")


DATE_TIME: ScalarDefinition = strawberry.scalar(
    name="DateTime",
    description="An instant as RFC 3339 writes it, in UTC: 2026-01-31T09:30:00Z.",
    specified_by_url="https://scalars.graphql.org/andimarek/date-time",
    serialize=_written,
)


def read_instant(given: object, argument: str) -> datetime | None:
    """Return an instant in UTC; the scalar is only written and not read, so a caller's is text.

    Raises:
        BadInput: It is none, or could be one of several.
    """
    if given is None:
        return None
    try:
        found = datetime.fromisoformat(str(given))
        if found.tzinfo is not None:
            return found.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise BadInput(argument, "An instant is needed here, such as 2026-01-31T09:30:00Z")
