"""Who changed what: an entry for each mutation and each change of a key.

An entry is written before anything is changed and finished afterwards, so that a change without an
entry cannot be: when the entry cannot be written, nothing is done. One that was never finished
says that it was begun, and that it is not known what came of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from sqlalchemy import RowMapping, delete, insert, select, update

from storage.database import Database
from storage.tables import audit, database_now

_SWEPT_AT_ONCE = 5000


class AuditOutcome(StrEnum):
    """What came of it.

    BEGUN: it is not known, because it is under way, the gateway was stopped, the caller hung up, or
    something unexpected happened; DONE: it was carried out; REFUSED: nothing was changed; FAILED: a
    provider failed on the way, so that it may have been carried out all the same.
    """

    BEGUN = "BEGUN"
    DONE = "DONE"
    REFUSED = "REFUSED"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditDraft:
    """What is about to be done.

    Attributes:
        caller: Id of the API key, or what stands in its place, such as ``command-line``.
        subject: The users it is done for, ``user:<provider id>:<external id>`` with commas between;
            ``None`` for the organisation.
        action: Name of the mutation, or of what the command line does.
        target: What is changed, such as ``provider:1``, ``user:1:42`` or ``key:abcd1234``; ``None``
            when that is not known yet.
        arguments: Of those given, the values that may be kept, and ``***`` for the others.
        request_id: As in the log of the request; ``None`` on the command line.
    """

    caller: str
    action: str
    subject: str | None = None
    target: str | None = None
    arguments: Mapping[str, str] = field(default_factory=dict)
    request_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry(AuditDraft):
    """What was done.

    Attributes:
        id: Rises from entry to entry.
        at: When it was begun, by the database's clock.
        outcome: What came of it.
        code: Why it was refused or failed, one of the stable error codes.
    """

    id: int
    at: datetime
    outcome: AuditOutcome
    code: str | None


class AuditStore:
    """Entries, in the order in which they were begun."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def begin(self, draft: AuditDraft) -> int:
        """Write an entry and return its id.

        Raises:
            StorageError: The database could not do it; whatever it was must not be done.
        """
        statement = (
            insert(audit)
            .values(
                at=database_now(),
                caller=draft.caller,
                subject=_storable(draft.subject),
                action=draft.action,
                target=_storable(draft.target),
                arguments=json.dumps(dict(draft.arguments)),
                outcome=AuditOutcome.BEGUN,
                request_id=draft.request_id,
            )
            .returning(audit.c.id)
        )
        async with self._database.transaction() as connection:
            return int((await connection.execute(statement)).scalar_one())

    async def finish(
        self, entry_id: int, outcome: AuditOutcome, *, code: str | None, target: str | None
    ) -> None:
        """Write what came of it, and what it was done to if that is known only now.

        Raises:
            StorageError: The database could not do it; the entry says BEGUN.
        """
        values: dict[str, object] = {"outcome": outcome, "code": code}
        if target is not None:
            values["target"] = _storable(target)
        async with self._database.transaction() as connection:
            await connection.execute(update(audit).where(audit.c.id == entry_id).values(values))

    async def list_entries(
        self,
        *,
        after: int = 0,
        since: datetime | None = None,
        caller: str | None = None,
        limit: int,
    ) -> Sequence[AuditEntry]:
        """Return entries in order.

        Args:
            after: Only those behind the entry of this id.
            since: Only those begun then or later.
            caller: Only this one's.
            limit: At most so many.

        Raises:
            StorageError: The database could not answer.
        """
        statement = select(audit).where(audit.c.id > after).order_by(audit.c.id).limit(limit)
        if since is not None:
            statement = statement.where(audit.c.at >= since)
        if caller is not None:
            statement = statement.where(audit.c.caller == caller)
        async with self._database.read() as connection:
            return [_entry(row) for row in (await connection.execute(statement)).mappings()]

    async def sweep(self, *, kept_seconds: float) -> int:
        """Forget some of the entries that are older, and return how many.

        Raises:
            StorageError: The database could not do it.
        """
        old = (
            select(audit.c.id)
            .where(audit.c.at < database_now() - kept_seconds)
            .order_by(audit.c.at)
            .limit(_SWEPT_AT_ONCE)
        )
        async with self._database.transaction() as connection:
            return (await connection.execute(delete(audit).where(audit.c.id.in_(old)))).rowcount


def _storable(text: str | None) -> str | None:
    """Escape what no text column takes: half surrogate pairs, and the null character."""
    if text is None:
        return None
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def _entry(row: RowMapping) -> AuditEntry:
    values = {column.name: row[column] for column in audit.c}
    return AuditEntry(
        **{
            **values,
            "arguments": json.loads(values["arguments"]),
            "outcome": AuditOutcome(values["outcome"]),
        }
    )
