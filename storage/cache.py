"""Answers of providers kept for a while: what a request or a timed export brought home."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Double, bindparam, delete, null, select, type_coerce

from storage.database import Database
from storage.errors import ConstraintViolated
from storage.tables import Instant, cache, database_now, provider

_RESOURCES_AT_ONCE: Final = 500
_FRESH = (cache.c.fresh_until > database_now()).label("fresh")


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheEntry:
    """One kept answer.

    Attributes:
        provider_id: Whose answer it is.
        subject: On whose behalf it was asked for.
        resource: What was asked for, in the words of whoever asked.
        body: The answer, in a form only whoever asked understands.
        etag: The provider's own mark of this version, for asking whether it changed.
        generation: What the provider was like when it was read, if whoever asked said it.
        fetched_at: When it was read, by the database's clock.
        fresh_until: Until when it may be used without asking again.
        fresh: Whether that was still ahead when this entry was read, by the database's clock.
    """

    provider_id: str
    subject: str
    resource: str
    body: bytes
    etag: str | None
    generation: str | None = None
    fetched_at: datetime
    fresh_until: datetime
    fresh: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptAnswer:
    """One of many kept answers.

    Attributes:
        provider_id: Whose answer it is.
        subject: On whose behalf it was asked for.
        resource: What was asked for, in the words of whoever asked.
        body: The answer, in a form only whoever asked understands.
        generation: What the provider was like when it was read, in the words of whoever asked.
        age_seconds: How long ago it was read.
    """

    provider_id: str
    subject: str
    resource: str
    body: bytes
    generation: str
    age_seconds: float


class CacheStore:
    """Kept answers, one for each provider, subject and resource.

    They are removed with their provider.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def read(self, provider_id: str, subject: str, resource: str) -> CacheEntry | None:
        """Return what is kept, fresh or not.

        Raises:
            StorageError: The database could not answer.
        """
        statement = select(*cache.c, _FRESH).where(
            cache.c.provider_id == provider_id,
            cache.c.subject == subject,
            cache.c.resource == resource,
        )
        async with self._database.read() as connection:
            row = (await connection.execute(statement)).mappings().one_or_none()
        return None if row is None else CacheEntry(**row)

    async def write(
        self,
        provider_id: str,
        subject: str,
        resource: str,
        *,
        body: bytes,
        fresh_seconds: float,
        etag: str | None = None,
        age_seconds: float = 0,
    ) -> CacheEntry | None:
        """Keep an answer in place of the one before, unless that one was read later.

        Args:
            provider_id: Whose answer it is.
            subject: On whose behalf it was asked for.
            resource: What was asked for.
            body: The answer.
            fresh_seconds: How long after it was read it may be used without asking again.
            etag: The provider's own mark of this version.
            age_seconds: How long ago it was read.

        Returns:
            What is kept now; ``None`` when the provider is no longer registered.

        Raises:
            StorageError: The database could not do it; what was kept is kept.
        """
        fetched_at = type_coerce(database_now() - age_seconds, Instant)
        statement = self._database.upsert(
            cache,
            {
                "provider_id": provider_id,
                "subject": subject,
                "resource": resource,
                "body": body,
                "etag": etag,
                "fetched_at": fetched_at,
                "fresh_until": type_coerce(database_now() - age_seconds + fresh_seconds, Instant),
            },
            change=("body", "etag", "fetched_at", "fresh_until"),
            where=lambda new: cache.c.fetched_at <= new.fetched_at,
        )
        try:
            async with self._database.transaction() as connection:
                await connection.execute(statement)
        except ConstraintViolated:
            return None
        return await self.read(provider_id, subject, resource)

    async def read_many(
        self, provider_id: str, subject: str, resources: Collection[str]
    ) -> Mapping[str, KeptAnswer]:
        """Return what is kept of several resources, however old.

        Raises:
            StorageError: The database could not answer.
        """
        found: dict[str, KeptAnswer] = {}
        wanted = list(resources)
        age = (database_now() - type_coerce(cache.c.fetched_at, Double)).label("age_seconds")
        columns = (cache.c.resource, cache.c.body, cache.c.generation, age)
        async with self._database.read() as connection:
            for start in range(0, len(wanted), _RESOURCES_AT_ONCE):
                statement = select(*columns).where(
                    cache.c.provider_id == provider_id,
                    cache.c.subject == subject,
                    cache.c.resource.in_(wanted[start : start + _RESOURCES_AT_ONCE]),
                )
                for row in await connection.execute(statement):
                    found[row.resource] = KeptAnswer(
                        provider_id=provider_id,
                        subject=subject,
                        resource=row.resource,
                        body=row.body,
                        generation=row.generation or "",
                        age_seconds=row.age_seconds,
                    )
        return found

    async def write_many(self, answers: Collection[KeptAnswer]) -> None:
        """Keep several answers, each in place of the one before unless that was read later.

        Answers of providers that are no longer registered are left out.

        Raises:
            StorageError: The database could not do it; what was kept is kept.
        """
        read_at = type_coerce(database_now() - bindparam("age_seconds"), Instant)
        statement = self._database.upsert(
            cache,
            {
                "provider_id": bindparam("provider"),
                "subject": bindparam("whose"),
                "resource": bindparam("what"),
                "body": bindparam("content"),
                "etag": null(),
                "generation": bindparam("of"),
                "fetched_at": read_at,
                "fresh_until": read_at,
            },
            change=("body", "etag", "generation", "fetched_at", "fresh_until"),
            where=lambda new: cache.c.fetched_at <= new.fetched_at,
        )
        registered = (
            select(provider.c.id)
            .where(provider.c.id.in_({answer.provider_id for answer in answers}))
            .with_for_update(key_share=True)
        )
        async with self._database.transaction() as connection:
            known = set((await connection.execute(registered)).scalars())
            rows = [
                {
                    "provider": answer.provider_id,
                    "whose": answer.subject,
                    "what": answer.resource,
                    "content": answer.body,
                    "of": answer.generation,
                    "age_seconds": answer.age_seconds,
                }
                for answer in sorted(answers, key=_primary_key)  # one order, so that no two
                if answer.provider_id in known  # gateways wait for each other
            ]
            if rows:
                await connection.execute(statement, rows)

    async def sweep(self, *, older_than_seconds: float) -> int:
        """Forget every answer read longer ago than that, and return how many there were.

        Raises:
            StorageError: The database could not do it.
        """
        statement = delete(cache).where(
            type_coerce(cache.c.fetched_at, Double) < database_now() - older_than_seconds
        )
        async with self._database.transaction() as connection:
            return (await connection.execute(statement)).rowcount

    async def drop(self, provider_id: str, *, subject: str | None = None) -> int:
        """Forget a provider's answers, or one subject's, and return how many there were.

        Raises:
            StorageError: The database could not do it.
        """
        statement = delete(cache).where(cache.c.provider_id == provider_id)
        if subject is not None:
            statement = statement.where(cache.c.subject == subject)
        async with self._database.transaction() as connection:
            return (await connection.execute(statement)).rowcount


def _primary_key(answer: KeptAnswer) -> tuple[str, str, str]:
    return answer.provider_id, answer.subject, answer.resource
