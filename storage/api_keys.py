"""Keys of the gateway's own callers.

A token looks like ``gw_3k9x0c2a_`` followed by 43 characters of base64: the key's id, by which
it is looked up and named in logs, and 256 random bits, of which only the SHA-256 is kept. Bits
that many cannot be guessed, so a slow hash would add nothing but delay.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import string
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, RowMapping, case, insert, or_, select, type_coerce, update
from sqlalchemy.sql.dml import ReturningInsert

from storage.credentials import Secret
from storage.database import Database, KeptReads
from storage.errors import ScopeInvalid
from storage.tables import Instant, api_key, database_now

_NAMED_SCOPES: Final = (
    "admin",
    "read:users",
    "read:courses",
    "read:enrollments",
    "read:providers",
    "read:metrics",
    "write:providers",
    "write:users",
    "write:enrollments",
    "write:people",
    "act:users",
    "introspect",
)
_PROVIDER_SCOPE: Final = re.compile(r"provider:[A-Za-z0-9_-]{1,64}")
_TOKEN: Final = re.compile(r"gw_([a-z0-9]{8})_[A-Za-z0-9_-]{43}")
_ID_LETTERS: Final = string.ascii_lowercase + string.digits
_ID_LENGTH: Final = 8
_SECRET_BYTES: Final = 32
_TOUCH_SECONDS: Final = 60
_KEPT_SECONDS: Final = 1.0
_KEPT_TOKENS: Final = 1_000

_RECORD: Final = [column for column in api_key.c if column is not api_key.c.secret_sha256]
_WORKS_NOW: Final[ColumnElement[bool]] = api_key.c.revoked.is_(False) & or_(
    api_key.c.expires_at.is_(None), api_key.c.expires_at > database_now()
)
_UNTOUCHED_NOW: Final[ColumnElement[bool]] = or_(
    api_key.c.last_used_at.is_(None),
    api_key.c.last_used_at <= database_now() - _TOUCH_SECONDS,
)
_WORKS: Final = _WORKS_NOW.label("works")
_UNTOUCHED: Final = _UNTOUCHED_NOW.label("untouched")


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """What is known of a key, which is everything but its secret.

    Attributes:
        id: Eight letters and digits, part of the token.
        name: Whose key it is, for a person.
        scopes: What it may do; see ``parse_scopes``.
        created_at: When it was made.
        expires_at: When it stops working; ``None`` for never.
        last_used_at: When it was last presented, to the minute; ``None`` for never.
        revoked: Whether it was withdrawn.
    """

    id: str
    name: str
    scopes: frozenset[str]
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked: bool


def parse_scopes(scopes: Collection[str]) -> frozenset[str]:
    """Check scopes and return them.

    ``admin`` may do everything. ``read:users``, ``read:courses``, ``read:enrollments``,
    ``read:providers``, ``read:metrics``, ``write:providers``, ``write:users``,
    ``write:enrollments`` and ``write:people`` allow what they say. ``act:users`` allows to act for
    users who agreed, and to ask them; ``introspect`` to see the schema.
    ``provider:<id>`` allows nothing by itself, but a key with any of them sees the named
    providers only; a key with none of them sees all.

    Raises:
        ScopeInvalid: One is not of these, or there is none at all.
    """
    known = f"{', '.join(_NAMED_SCOPES)} and provider:<id>"
    if not scopes:
        raise ScopeInvalid(f"A key needs at least one scope: there are {known}")
    for scope in sorted(scopes):
        if scope not in _NAMED_SCOPES and _PROVIDER_SCOPE.fullmatch(scope) is None:
            raise ScopeInvalid(f"There is no scope {scope!r}: there are {known}")
    return frozenset(scopes)


class ApiKeyStore:
    """Keys by id. Whether one has expired is told by the database's clock."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._shown = KeptReads[bytes, ApiKey | None](
            database, seconds=_KEPT_SECONDS, most=_KEPT_TOKENS
        )

    async def create(
        self, name: str, scopes: Collection[str], expires_at: datetime | None = None
    ) -> tuple[ApiKey, Secret[str]]:
        """Make a key and return it with its token, which cannot be had again later.

        Raises:
            ScopeInvalid: A scope is not one there is; no key was made.
            StorageError: The database could not do it; no key was made.
        """
        text = " ".join(sorted(parse_scopes(scopes)))
        statement, token = _new_key(name, text, expires_at)
        async with self._database.transaction() as connection:
            return _record((await connection.execute(statement)).mappings().one()), token

    async def verify(self, token: str) -> ApiKey | None:
        """Return the key a token belongs to, if it works.

        ``None`` for a token that is malformed, unknown, wrong, expired or revoked, all of which
        take the same comparison. The time of use is noted, at most once a minute. A key that is
        withdrawn stops at once, in every process; one that expires, within a second.

        Raises:
            StorageError: The database could not answer.
        """
        parsed = _TOKEN.fullmatch(token)
        if parsed is None:
            return None
        hashed = _hashed(token)
        return await self._shown.get(hashed, lambda: self._verify(parsed[1], hashed))

    async def list_all(self) -> Sequence[ApiKey]:
        """Return every key, those that no longer work included, in the order they were made.

        Raises:
            StorageError: The database could not answer.
        """
        statement = select(*_RECORD).order_by(api_key.c.created_at, api_key.c.id)
        async with self._database.read() as connection:
            rows = (await connection.execute(statement)).mappings()
            return [_record(row) for row in rows]

    async def revoke(self, key_id: str) -> bool:
        """Withdraw a key, at once and in every process.

        Returns:
            Whether there was one that was not yet withdrawn.

        Raises:
            StorageError: The database could not do it; the key works as before.
        """
        statement = (
            update(api_key)
            .where(api_key.c.id == key_id, api_key.c.revoked.is_(False))
            .values(revoked=True)
        )
        async with self._database.transaction() as connection:
            return (await connection.execute(statement)).rowcount == 1

    async def rotate(
        self, key_id: str, *, old_until: datetime
    ) -> tuple[ApiKey, Secret[str]] | None:
        """Make a second key with the name, scopes and expiry of one, which then works till a time.

        Args:
            key_id: The old key.
            old_until: When the old one stops working, unless it does so sooner by itself.

        Returns:
            The new key and its token; ``None`` when no key of that id works.

        Raises:
            StorageError: The database could not do it; nothing was changed.
        """
        sooner = type_coerce(old_until, Instant)
        shorten = (
            update(api_key)
            .where(api_key.c.id == key_id, _WORKS_NOW)
            .values(
                expires_at=case((api_key.c.expires_at < sooner, api_key.c.expires_at), else_=sooner)
            )
        )
        old = select(*_RECORD).where(api_key.c.id == key_id)
        async with self._database.transaction() as connection:
            before = (await connection.execute(old)).one_or_none()
            if before is None or (await connection.execute(shorten)).rowcount == 0:
                return None
            statement, token = _new_key(before.name, before.scopes, before.expires_at)
            return _record((await connection.execute(statement)).mappings().one()), token

    async def _verify(self, key_id: str, hashed: bytes) -> ApiKey | None:
        statement = select(*_RECORD, api_key.c.secret_sha256, _WORKS, _UNTOUCHED).where(
            api_key.c.id == key_id
        )
        async with self._database.read() as connection:
            row = (await connection.execute(statement)).mappings().one_or_none()
        kept = _hashed("") if row is None else row["secret_sha256"]
        if not hmac.compare_digest(hashed, kept) or row is None or not row["works"]:
            return None
        if row["untouched"]:
            await self._touch(key_id)
        return _record(row)

    async def _touch(self, key_id: str) -> None:
        statement = (
            update(api_key)
            .where(api_key.c.id == key_id, _UNTOUCHED_NOW)
            .values(last_used_at=type_coerce(database_now(), Instant))
        )
        async with self._database.transaction() as connection:
            await connection.execute(statement)


def _new_key(
    name: str, scopes: str, expires_at: datetime | None
) -> tuple[ReturningInsert[Any], Secret[str]]:
    key_id = "".join(secrets.choice(_ID_LETTERS) for _ in range(_ID_LENGTH))
    token = f"gw_{key_id}_{secrets.token_urlsafe(_SECRET_BYTES)}"
    statement = insert(api_key).values(
        id=key_id,
        name=name,
        secret_sha256=_hashed(token),
        scopes=scopes,
        created_at=database_now(),
        expires_at=expires_at,
        revoked=False,
    )
    return statement.returning(*_RECORD), Secret(token)


def _hashed(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="replace")).digest()


def _record(row: RowMapping) -> ApiKey:
    values = {column.name: row[column] for column in _RECORD}
    return ApiKey(**{**values, "scopes": frozenset(values["scopes"].split())})
