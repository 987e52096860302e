"""Users' consents being asked for: from the moment a browser leaves until it comes back."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from sqlalchemy import delete, insert, select, update

from storage.credentials import KeyRing, Secret
from storage.database import Database
from storage.tables import authorization_request as table
from storage.tables import database_now

_SECRET_BYTES: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorizationRequest:
    """One consent that is asked for.

    Attributes:
        provider_id: The product's own id of the provider.
        user_id: External id of the only user whose consent counts; ``None`` for anybody's.
    """

    provider_id: str
    user_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRequest:
    """The secrets of a consent that is asked for, each 256 random bits, 43 characters of base64.

    Attributes:
        state: Goes with the browser to the provider and back.
        browser: Stays in the browser, to tell it from others.
        verifier: Stays here, to prove to the provider who asked.
    """

    state: Secret[str]
    browser: Secret[str]
    verifier: Secret[str]


class StateProblem(StrEnum):
    """Why a state that came back is no good.

    UNKNOWN: never given out, too old, or its provider was removed; USED: it came back before;
    OTHER_BROWSER: another browser than this one was sent away with it.
    """

    UNKNOWN = "UNKNOWN"
    USED = "USED"
    OTHER_BROWSER = "OTHER_BROWSER"


class AuthorizationStore:
    """Consents being asked for, each good for one return of one browser until a given time.

    States and what is kept in browsers are stored as hashes only. All times are by the database's
    clock, so a browser may come back to another gateway than it left.

    Args:
        database: Where they are kept.
        key_ring: What seals verifiers.
    """

    def __init__(self, database: Database, key_ring: KeyRing) -> None:
        self._database = database
        self._key_ring = key_ring

    async def issue(self, request: AuthorizationRequest, *, lifetime_seconds: float) -> NewRequest:
        """Begin to ask; what is too old is removed on this occasion.

        Raises:
            ConstraintViolated: The provider is not registered.
            StorageError: The database could not do it.
        """
        made = NewRequest(state=_fresh(), browser=_fresh(), verifier=_fresh())
        state_sha256 = hash_of(made.state.reveal())
        statement = insert(table).values(
            state_sha256=state_sha256,
            provider_id=request.provider_id,
            user_id=request.user_id,
            verifier=self._key_ring.seal(
                made.verifier.reveal().encode(), bound_to=_verifier_of(state_sha256)
            ),
            browser_sha256=hash_of(made.browser.reveal()),
            expires_at=database_now() + lifetime_seconds,
            used=False,
        )
        async with self._database.transaction() as connection:
            await connection.execute(delete(table).where(table.c.expires_at <= database_now()))
            await connection.execute(statement)
        return made

    async def redeem(
        self, state: str, browser: str
    ) -> tuple[AuthorizationRequest, Secret[str]] | StateProblem:
        """Use a state up, and return what was asked with its verifier.

        One of any number of simultaneous calls gets it. Another browser does not use it up. A
        state that is no good costs a read and no write: anybody can come with one.

        Raises:
            CredentialsUnreadable: The verifier was sealed with a key that is gone.
            StorageError: The database could not do it; the state is not used up.
        """
        state_sha256, browser_sha256 = hash_of(state), hash_of(browser)
        problem = await self._problem_of(state_sha256, browser_sha256)
        if problem is not None:
            return problem
        statement = (
            update(table)
            .where(
                table.c.state_sha256 == state_sha256,
                table.c.browser_sha256 == browser_sha256,
                table.c.used.is_(False),
                table.c.expires_at > database_now(),
            )
            .values(used=True)
            .returning(table.c.provider_id, table.c.user_id, table.c.verifier)
        )
        async with self._database.transaction() as connection:
            row = (await connection.execute(statement)).one_or_none()
        if row is None:  # somebody was faster
            return StateProblem.USED
        verifier = self._key_ring.unseal(row.verifier, bound_to=_verifier_of(state_sha256))
        request = AuthorizationRequest(provider_id=row.provider_id, user_id=row.user_id)
        return request, Secret(verifier.decode())

    async def find(self, state_sha256: str, browser: str) -> AuthorizationRequest | None:
        """Return what a browser was sent away for not long ago, whether or not it came back.

        Raises:
            StorageError: The database could not answer.
        """
        statement = select(table.c.provider_id, table.c.user_id).where(
            table.c.state_sha256 == state_sha256,
            table.c.browser_sha256 == hash_of(browser),
            table.c.expires_at > database_now(),
        )
        async with self._database.read() as connection:
            row = (await connection.execute(statement)).one_or_none()
        if row is None:
            return None
        return AuthorizationRequest(provider_id=row.provider_id, user_id=row.user_id)

    async def _problem_of(self, state_sha256: str, browser_sha256: str) -> StateProblem | None:
        statement = select(table.c.browser_sha256, table.c.used).where(
            table.c.state_sha256 == state_sha256, table.c.expires_at > database_now()
        )
        async with self._database.read() as connection:
            row = (await connection.execute(statement)).one_or_none()
        if row is None:
            return StateProblem.UNKNOWN
        if row.browser_sha256 != browser_sha256:
            return StateProblem.OTHER_BROWSER
        return StateProblem.USED if row.used else None


def hash_of(text: str) -> str:
    """Return what of a state or a browser's secret is kept; it tells nothing about it."""
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()


def _fresh() -> Secret[str]:
    return Secret(secrets.token_urlsafe(_SECRET_BYTES))


def _verifier_of(state_sha256: str) -> str:
    return f"authorization_request|{state_sha256}|verifier"
