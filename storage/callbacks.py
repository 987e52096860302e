"""One-time numbers that let the product register a provider the gateway asked it about."""

from __future__ import annotations

import hashlib
import secrets
from typing import Final

from sqlalchemy import delete, insert, update

from storage.credentials import Secret
from storage.database import Database
from storage.tables import callback, database_now

_NONCE_BYTES: Final = 16


class CallbackStore:
    """Nonces, each good for one registration of one provider until a given time.

    Only their hashes are kept. All times are by the database's clock, so it does not matter
    which process issued a nonce and which redeems it.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def issue(self, provider_id: str, lifetime_seconds: float) -> Secret[str]:
        """Return a new nonce of 128 random bits, 22 characters safe in a URL.

        Nonces whose time is over are removed on this occasion.

        Args:
            provider_id: The only id it will register.
            lifetime_seconds: How long it holds.

        Raises:
            StorageError: The database could not do it.
        """
        nonce = secrets.token_urlsafe(_NONCE_BYTES)
        statement = insert(callback).values(
            nonce_sha256=_hashed(nonce),
            provider_id=provider_id,
            expires_at=database_now() + lifetime_seconds,
            used=False,
        )
        async with self._database.transaction() as connection:
            await connection.execute(
                delete(callback).where(callback.c.expires_at <= database_now())
            )
            await connection.execute(statement)
        return Secret(nonce)

    async def redeem(self, nonce: str, provider_id: str) -> bool:
        """Use a nonce up, and say whether it was good.

        One of any number of simultaneous calls is told yes. A nonce that was never issued, was
        issued for another provider, is used up, or came too late is no good; the second leaves
        it good for the provider it was issued for.

        Raises:
            StorageError: The database could not do it; the nonce is not used up.
        """
        statement = (
            update(callback)
            .where(
                callback.c.nonce_sha256 == _hashed(nonce),
                callback.c.provider_id == provider_id,
                callback.c.used.is_(False),
                callback.c.expires_at > database_now(),
            )
            .values(used=True)
        )
        async with self._database.transaction() as connection:
            return (await connection.execute(statement)).rowcount == 1


def _hashed(nonce: str) -> str:
    return hashlib.sha256(nonce.encode(errors="replace")).hexdigest()
