"""Mappings of people as CSV: which accounts are one person's, a line for each account.

What a product needs to fill its own table of users at providers, and the other way round: a
product that knows who is who gives its own ids in the column ``person``.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, TextIO

from resolvers.people import PersonRecord
from storage.people import AccountKey

COLUMNS: Final = ("person", "provider_id", "external_user_id", "external_username", "display_name")
_NEEDED: Final = COLUMNS[:3]
_MAX_ACCOUNTS: Final = 100


class MappingUnusable(Exception):
    """A file is no mapping; the message says which line, and what is wrong with it."""


@dataclass(slots=True, kw_only=True)
class MappedPerson:
    """Accounts that a file says are one person's.

    Attributes:
        label: What the file calls the person.
        accounts: Each once, in the file's order.
        line: Where the first one is.
    """

    label: str
    line: int
    accounts: dict[AccountKey, None] = field(default_factory=dict)


def write_mapping(file: TextIO, persons: Iterable[PersonRecord], *, header: bool) -> int:
    """Write a line for each account, and return how many there were."""
    writer = csv.writer(file, lineterminator="\n")
    if header:
        writer.writerow(COLUMNS)
    written = 0
    for person in persons:
        for user in person.users:
            writer.writerow(
                (
                    person.id,
                    user.provider_id,
                    user.external_id,
                    user.username or "",
                    user.display_name,
                )
            )
            written += 1
    return written


def read_mapping(file: TextIO) -> Sequence[MappedPerson]:
    """Return the persons of a file that have two accounts or more, in the file's order.

    Only the columns ``person``, ``provider_id`` and ``external_user_id`` are read.

    Raises:
        MappingUnusable: It has not these columns, a line lacks a value, or an account is two
            persons'.
    """
    reader = csv.DictReader(file, strict=True)
    persons: dict[str, MappedPerson] = {}
    person_of: dict[AccountKey, MappedPerson] = {}
    try:
        missing = [name for name in _NEEDED if name not in (reader.fieldnames or ())]
        if missing:
            raise MappingUnusable(f"line 1: The columns {', '.join(missing)} are missing")
        for row in reader:
            values = [(row[name] or "").strip() for name in _NEEDED]
            if not all(values):
                empty = ", ".join(
                    name for name, value in zip(_NEEDED, values, strict=True) if not value
                )
                raise MappingUnusable(f"line {reader.line_num}: {empty} is empty")
            label, *key = values
            account = (key[0], key[1])
            person = persons.setdefault(label, MappedPerson(label=label, line=reader.line_num))
            other = person_of.setdefault(account, person)
            if other is not person:
                raise MappingUnusable(
                    f"line {reader.line_num}: The account {account[1]} of provider {account[0]} is"
                    f" {other.label}'s too, see line {other.line}"
                )
            person.accounts[account] = None
            if len(person.accounts) > _MAX_ACCOUNTS:
                raise MappingUnusable(
                    f"line {reader.line_num}: {label} has more than {_MAX_ACCOUNTS} accounts"
                )
    except (csv.Error, UnicodeDecodeError) as error:
        raise MappingUnusable(f"line {reader.line_num + 1}: This is no CSV: {error}") from error
    return [person for person in persons.values() if len(person.accounts) > 1]
