"""What every platform maps its rows with: roles an operator may map otherwise, and instants."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from sessions.errors import NotSupported
from storage.records import Provider, RoleValue

ROLE_OPTION: Final = "role."
"""What a provider's options that map roles begin with; the platform's own word follows."""

_SHOWN_CHARACTERS: Final = 80


def role_map(usual: Mapping[str, RoleValue], options: Mapping[str, str]) -> dict[str, RoleValue]:
    """Return the platform's words with the roles they mean at this provider."""
    mapped = {
        name.removeprefix(ROLE_OPTION): RoleValue(value)
        for name, value in options.items()
        if name.startswith(ROLE_OPTION) and value in RoleValue.__members__
    }
    return {**usual, **mapped}


def check_role_options(provider: Provider) -> None:
    """Refuse options that map to a role which does not exist.

    Raises:
        NotSupported: There is one.
    """
    for name, value in provider.options.items():
        if name.startswith(ROLE_OPTION) and value not in RoleValue.__members__:
            raise NotSupported(
                f"The option {printable(name)} must be one of {', '.join(RoleValue)}",
                provider_id=provider.id,
            )


def instant(text: str | None) -> datetime | None:
    """Return an ISO 8601 instant in UTC, with or without fraction and offset; ``None`` if none."""
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text)
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def printable(text: str) -> str:
    """Return the beginning of a provider's or an operator's text, fit for a message."""
    return "".join(character for character in text if character.isprintable())[:_SHOWN_CHARACTERS]
