"""Answers of providers kept for a while: what a request or a timed export brought home."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, select, type_coerce

from storage.database import Database
from storage.errors import ConstraintViolated
from storage.tables import Instant, cache, database_now

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
        fetched_at: When it was read, by the database's clock.
        fresh_until: Until when it may be used without asking again.
        fresh: Whether that was still ahead when this entry was read, by the database's clock.
    """

    provider_id: str
    subject: str
    resource: str
    body: bytes
    etag: str | None
    fetched_at: datetime
    fresh_until: datetime
    fresh: bool


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
