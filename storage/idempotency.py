"""Writes that callers may repeat: which is under way, and what came of each, for a day.

A caller names a write with an idempotency key of its own choice. Whoever carries the write out
*claims* the key's row first, by the database's clock, as leases are claimed (``storage.leases``);
everybody else who comes with the same key waits for the answer that is then kept. A claimant that
crashed loses the row when its lease ends; the next one finds out what became of the write before
doing anything, so the row alone need not tell.

Keys and inputs are kept as hashes only.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final, TypeAlias

from sqlalchemy import Double, and_, delete, or_, select, tuple_, type_coerce, update
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.elements import ColumnElement

from storage.database import Database
from storage.errors import ConstraintViolated
from storage.tables import database_now, idempotency

KEPT_SECONDS: Final = 24 * 60 * 60
"""How long an answer is given again; after that the key is as good as new."""

_FREE: Final = 0.0
_PRUNED_AT_ONCE: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteName:
    """What makes a write one and the same: who asks for what, where, under which key.

    Attributes:
        caller: Id of the caller's API key.
        mutation: Name of the mutation.
        provider_id: Where it writes.
        key: As the caller gave it.
    """

    caller: str
    mutation: str
    provider_id: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteClaim:
    """A lease on one write, held by whoever got this."""

    name: WriteName
    input_sha256: str
    fence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """The write was carried out; ``answer`` is what was kept of it."""

    answer: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class UnderWay:
    """Somebody else carries the write out; their lease ends in so many seconds."""

    leased_seconds: float


@dataclass(frozen=True, slots=True)
class OtherInput:
    """The key was used for something else."""


@dataclass(frozen=True, slots=True)
class NoProvider:
    """The provider is not registered any more."""


Standing: TypeAlias = WriteClaim | Answered | UnderWay | OtherInput | NoProvider
"""How a write stands for somebody who wants to carry it out."""


class IdempotencyStore:
    """The rows of repeatable writes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def claim(self, name: WriteName, input_sha256: str, *, lease_seconds: float) -> Standing:
        """Take the write's row if nobody has it and nothing was kept, or tell how it stands.

        Rows whose time is over are removed on this occasion.

        Args:
            name: Which write.
            input_sha256: Hash of all that is asked for, in a form that is the same for the same.
            lease_seconds: For how long.

        Raises:
            StorageError: The database could not do it; the row may be claimed all the same, until
                the lease ends.
        """
        free = and_(
            idempotency.c.input_sha256 == input_sha256,
            idempotency.c.answer.is_(None),
            idempotency.c.lease_until <= database_now(),
        )
        row = {
            "input_sha256": input_sha256,
            "answer": None,
            "lease_until": database_now() + lease_seconds,
            "expires_at": database_now() + KEPT_SECONDS,
        }
        statement = self._database.upsert(
            idempotency,
            {**_key_of(name), **row, "fence": 1},
            change={**row, "fence": idempotency.c.fence + 1},
            where=lambda _new: or_(free, idempotency.c.expires_at <= database_now()),
        ).returning(idempotency.c.fence)
        try:
            async with self._database.transaction() as connection:
                fence = (await connection.execute(statement)).scalar_one_or_none()
                if fence is None:
                    return await _standing(connection, name, input_sha256)
                await connection.execute(_PRUNE)
        except ConstraintViolated:
            return NoProvider()
        return WriteClaim(name=name, input_sha256=input_sha256, fence=fence)

    async def keep(self, claim: WriteClaim, answer: bytes) -> bool:
        """Keep what came of a write and give the row back; False when somebody else has it.

        Raises:
            StorageError: The database could not do it; it may be kept all the same.
        """
        return await self._release(claim, answer)

    async def free(self, claim: WriteClaim) -> bool:
        """Give the row back with nothing kept; False when somebody else has it.

        The key stays bound to its input: what was asked for may have been done after all.

        Raises:
            StorageError: The database could not do it; the lease then ends by itself.
        """
        return await self._release(claim, None)

    async def _release(self, claim: WriteClaim, answer: bytes | None) -> bool:
        statement = (
            update(idempotency)
            .where(
                *_is(claim.name),
                idempotency.c.input_sha256 == claim.input_sha256,
                idempotency.c.fence == claim.fence,
                idempotency.c.answer.is_(None),
            )
            .values(answer=answer, lease_until=_FREE)
        )
        async with self._database.transaction() as connection:
            return (await connection.execute(statement)).rowcount == 1


async def _standing(connection: AsyncConnection, name: WriteName, input_sha256: str) -> Standing:
    """Return how a write stands that could not be claimed a moment ago."""
    leased_seconds = type_coerce(idempotency.c.lease_until - database_now(), Double)
    statement = select(
        idempotency.c.input_sha256, idempotency.c.answer, leased_seconds.label("leased_seconds")
    ).where(*_is(name))
    # It is there: the claim that failed has locked it for the rest of the transaction.
    row = (await connection.execute(statement)).one()
    if row.input_sha256 != input_sha256:
        return OtherInput()
    if row.answer is not None:
        return Answered(answer=row.answer)
    return UnderWay(leased_seconds=row.leased_seconds)


def _key_of(name: WriteName) -> dict[str, str]:
    return {
        "caller": name.caller,
        "mutation": name.mutation,
        "provider_id": name.provider_id,
        "key_sha256": hashlib.sha256(name.key.encode()).hexdigest(),
    }


def _is(name: WriteName) -> list[ColumnElement[bool]]:
    return [idempotency.c[column] == value for column, value in _key_of(name).items()]


# A few at a time, and none that another transaction is about to remove or to use again.
_OVER: Final = (
    select(*idempotency.primary_key)
    .where(idempotency.c.expires_at <= database_now())
    .limit(_PRUNED_AT_ONCE)
    .with_for_update(skip_locked=True)
)
_PRUNE: Final = delete(idempotency).where(tuple_(*idempotency.primary_key).in_(_OVER))
