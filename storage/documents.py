"""Trusted documents: GraphQL texts an operator registered, by the hash that clients send.

A document is kept once for each client that registered it, so that what one release of a client
no longer needs can be removed without asking who else does. Every change raises one number, by
which gateways find out that what they hold in memory is old.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import delete, func, insert, select, type_coerce, update
from sqlalchemy.ext.asyncio import AsyncConnection

from storage.database import Database
from storage.tables import Instant, database_now, document, document_revision

_REVISION_ID: Final = 1
_IDS_AT_ONCE: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentDraft:
    """A document to be registered.

    Attributes:
        id: Hash of the text, in lower-case hex.
        text: The document.
        names: Of its operations.
    """

    id: str
    text: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedDocument:
    """A registered document.

    Attributes:
        id: Hash of the text, in lower-case hex.
        text: The document.
        names: Of its operations.
        client: Whose it is; empty for nobody's in particular.
        registered_at: When it was first registered for this client.
    """

    id: str
    text: str
    names: tuple[str, ...]
    client: str
    registered_at: datetime


class DocumentStore:
    """Trusted documents by id and client."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def register(self, drafts: Collection[DocumentDraft], *, client: str) -> int:
        """Register all of the documents or none, and return how many were new to the client.

        Raises:
            StorageError: The database could not do it; nothing was registered.
        """
        rows = [
            {
                "id": draft.id,
                "client": client,
                "text": draft.text,
                "names": " ".join(draft.names),
            }
            for draft in drafts
        ]
        known = select(document.c.id).where(document.c.client == client)
        added = insert(document).values(registered_at=type_coerce(database_now(), Instant))
        async with self._changing() as connection:
            taken = set((await connection.execute(known)).scalars())
            new = [row for row in rows if row["id"] not in taken]
            if new:
                await connection.execute(added, new)
                await connection.execute(_RAISE)
        return len(new)

    async def remove(self, ids: Collection[str] | None = None, *, client: str | None = None) -> int:
        """Remove documents, and return how many there were.

        Args:
            ids: These; all when left out.
            client: Of this client only; of every one when left out.

        Raises:
            StorageError: The database could not do it; nothing was removed.
        """
        whose = [] if client is None else [document.c.client == client]
        wanted = None if ids is None else sorted(ids)
        statements = (
            [delete(document).where(*whose)]
            if wanted is None
            else [
                delete(document).where(document.c.id.in_(wanted[at : at + _IDS_AT_ONCE]), *whose)
                for at in range(0, len(wanted), _IDS_AT_ONCE)
            ]
        )
        removed = 0
        async with self._changing() as connection:
            for statement in statements:
                removed += (await connection.execute(statement)).rowcount
            if removed:
                await connection.execute(_RAISE)
        return removed

    async def list_all(self) -> Sequence[TrustedDocument]:
        """Return every document, by client and name.

        Raises:
            StorageError: The database could not answer.
        """
        statement = select(document).order_by(document.c.client, document.c.names, document.c.id)
        async with self._database.read() as connection:
            rows = (await connection.execute(statement)).mappings()
            return [
                TrustedDocument(**{**row, "names": tuple(row["names"].split())}) for row in rows
            ]

    async def get_revision(self) -> int:
        """Return a number that differs once any document was registered or removed.

        Raises:
            StorageError: The database could not answer.
        """
        async with self._database.read() as connection:
            last = select(func.max(document_revision.c.last))
            return (await connection.execute(last)).scalar_one() or 0

    @asynccontextmanager
    async def _changing(self) -> AsyncIterator[AsyncConnection]:
        """Lend a connection to whoever is next to change documents."""
        first = {"id": _REVISION_ID, "last": 0}
        same = {"last": document_revision.c.last}
        async with self._database.transaction() as connection:
            # On PostgreSQL the row stays locked until the end.
            await connection.execute(self._database.upsert(document_revision, first, change=same))
            yield connection


_RAISE: Final = update(document_revision).values(last=document_revision.c.last + 1)
