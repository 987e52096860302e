"""Registered providers, and their credentials, sealed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import inf
from typing import Any, Final, TypedDict, Unpack

import msgspec
from sqlalchemy import Column, ColumnElement, RowMapping, and_, delete, select, update

from storage.credentials import KeyRing, Secret
from storage.database import Database, KeptReads
from storage.errors import (
    CredentialsMissing,
    CredentialsUnreadable,
    RevisionConflict,
    StorageError,
)
from storage.records import Provider, ProviderState
from storage.tables import database_now, provider, session

_OBSERVATIONS: Final = frozenset({"version", "problem", "checked_at"})
_ROTATION_PASSES: Final = 20
_RECORD: Final = [column for column in provider.c if column is not provider.c.credentials]


class ProviderChanges(TypedDict, total=False):
    """What ``ProviderStore.update`` can change; see ``Provider`` for what each means."""

    platform: str
    name: str
    base_url: str
    account_id: str | None
    options: Mapping[str, str]
    state: ProviderState
    version: str | None
    problem: str | None
    checked_at: datetime | None


class ProviderStore:
    """Providers by the product's own id.

    Args:
        database: Where they are kept.
        key_ring: What seals their credentials.
    """

    def __init__(self, database: Database, key_ring: KeyRing) -> None:
        self._database = database
        self._key_ring = key_ring
        self._all = KeptReads[None, Sequence[Provider]](database, seconds=inf)

    async def add(
        self,
        *,
        id: str,  # noqa: A002 - named as in the record
        platform: str,
        name: str,
        base_url: str,
        credentials: Secret[Mapping[str, str]],
        account_id: str | None = None,
        options: Mapping[str, str] | None = None,
        state: ProviderState = ProviderState.PENDING,
        version: str | None = None,
        problem: str | None = None,
        checked_at: datetime | None = None,
    ) -> Provider:
        """Register a provider, in place of the one of that id if there is one.

        A new one has revision 1. Replacing keeps ``created_at``, raises the revision, and leaves
        sessions and kept answers alone: they are for the session manager to forget.

        Raises:
            StorageError: The database could not do it; what was registered is registered.
        """
        sealed = self._key_ring.seal_mapping(credentials, bound_to=_credentials_of(id))
        values = {
            "platform": platform,
            "name": name,
            "base_url": base_url,
            "account_id": account_id,
            "options": _encoded_options(options or {}),
            "credentials": sealed,
            "state": state,
            "version": version,
            "problem": problem,
            "checked_at": checked_at,
            "updated_at": database_now(),
        }
        statement = self._database.upsert(
            provider,
            {"id": id, "revision": 1, "created_at": database_now(), **values},
            change={"revision": provider.c.revision + 1, **values},
        ).returning(*_RECORD)
        async with self._database.transaction() as connection:
            return _record((await connection.execute(statement)).mappings().one())

    async def get(self, provider_id: str) -> Provider | None:
        """Return one provider.

        Raises:
            StorageError: The database could not answer.
        """
        statement = select(*_RECORD).where(provider.c.id == provider_id)
        async with self._database.read() as connection:
            row = (await connection.execute(statement)).mappings().one_or_none()
        return None if row is None else _record(row)

    async def list_all(self) -> Sequence[Provider]:
        """Return every provider in the order of registration.

        Raises:
            StorageError: The database could not answer.
        """
        statement = select(*_RECORD).order_by(provider.c.created_at, provider.c.id)
        async with self._database.read() as connection:
            rows = (await connection.execute(statement)).mappings()
            return [_record(row) for row in rows]

    async def get_all(self) -> Sequence[Provider]:
        """Return what ``list_all`` would, without asking again while nothing was committed.

        Raises:
            StorageError: The database could not answer.
        """
        return await self._all.get(None, self.list_all)

    async def update(
        self,
        provider_id: str,
        *,
        expected_revision: int | None = None,
        credentials: Secret[Mapping[str, str]] | None = None,
        **changes: Unpack[ProviderChanges],
    ) -> Provider | None:
        """Change what is given of one provider, and return it as it is now.

        The revision rises unless only what a check observed is given: ``version``, ``problem``,
        ``checked_at``. So holders of a session need not start over after every check.

        Args:
            provider_id: The product's own id.
            expected_revision: Change nothing unless it is still of this revision.
            credentials: New ones, in place of all of the old.
            **changes: Names of the record's attributes to their new values.

        Returns:
            ``None`` when no provider of that id is registered.

        Raises:
            RevisionConflict: It is of another revision; nothing was changed.
            StorageError: The database could not do it; nothing was changed.
        """
        values: dict[str, Any] = {**changes, "updated_at": database_now()}
        if "options" in changes:
            values["options"] = _encoded_options(changes["options"])
        if credentials is not None:
            bound_to = _credentials_of(provider_id)
            values["credentials"] = self._key_ring.seal_mapping(credentials, bound_to=bound_to)
        if credentials is not None or not changes.keys() <= _OBSERVATIONS:
            values["revision"] = provider.c.revision + 1
        statement = update(provider).where(provider.c.id == provider_id).values(**values)
        if expected_revision is not None:
            statement = statement.where(provider.c.revision == expected_revision)
        async with self._database.transaction() as connection:
            result = await connection.execute(statement.returning(*_RECORD))
            row = result.mappings().one_or_none()
        if row is not None:
            return _record(row)
        if expected_revision is not None and await self.get(provider_id) is not None:
            raise RevisionConflict(
                f"Provider {provider_id} was changed by somebody else in the meantime"
            )
        return None

    async def note_write(self, provider_id: str) -> None:
        """Take note that something was written at a provider: what was read before is old.

        Raises:
            StorageError: The database could not do it.
        """
        statement = (
            update(provider)
            .where(provider.c.id == provider_id)
            .values(writes=provider.c.writes + 1)
        )
        async with self._database.transaction() as connection:
            await connection.execute(statement)

    async def remove(self, provider_id: str) -> bool:
        """Remove a provider with its credentials, sessions and kept answers.

        Returns:
            Whether there was one.

        Raises:
            StorageError: The database could not do it; nothing was removed.
        """
        statement = delete(provider).where(provider.c.id == provider_id)
        async with self._database.transaction() as connection:
            return (await connection.execute(statement)).rowcount > 0

    async def credentials(self, provider_id: str) -> Secret[Mapping[str, str]]:
        """Return a provider's credentials, names to values.

        Raises:
            CredentialsMissing: No such provider is registered.
            CredentialsUnreadable: They cannot be opened with the keys given.
            StorageError: The database could not answer.
        """
        statement = select(provider.c.credentials).where(provider.c.id == provider_id)
        async with self._database.read() as connection:
            sealed = (await connection.execute(statement)).scalar_one_or_none()
        if sealed is None:
            raise CredentialsMissing(f"There are no credentials of provider {provider_id}")
        return self._key_ring.unseal_mapping(sealed, bound_to=_credentials_of(provider_id))

    async def rotate_keys(self) -> int:
        """Seal with the newest key whatever is sealed with another, and return how much it was.

        Everything may go on meanwhile: a value that changes between reading and writing is read
        again. Every running gateway must know the newest key before.

        Raises:
            CredentialsUnreadable: Some values cannot be opened with the keys given; all others
                are done, and these are as they were.
            StorageError: The database could not do it, or values kept changing to older keys,
                because a gateway that does not have the newest key is running. What was done is
                done; the rest can be opened as before.
        """
        resealed = 0
        for _ in range(_ROTATION_PASSES):
            changed, unreadable, outrun = await self._rotate_once()
            resealed += changed
            if outrun:
                continue
            if unreadable:
                raise CredentialsUnreadable(
                    f"Sealed with keys that are not given, or damaged: {', '.join(unreadable)}"
                )
            return resealed
        raise StorageError(
            "Values are still being sealed with an older key: "
            "give the newest key to every running gateway first"
        )

    async def _rotate_once(self) -> tuple[int, Sequence[str], int]:
        """Go through every sealed value once.

        Returns:
            How many were sealed anew, bindings of those that cannot be opened, and how many
            changed in between.
        """
        changed, unreadable, outrun = 0, [], 0
        for sealed in await self._list_sealed():
            try:
                if self._key_ring.key_id_of(sealed.blob) == self._key_ring.newest_key_id:
                    continue
                plaintext = self._key_ring.unseal(sealed.blob, bound_to=sealed.bound_to)
            except CredentialsUnreadable:
                unreadable.append(sealed.bound_to)
                continue
            anew = self._key_ring.seal(plaintext, bound_to=sealed.bound_to)
            statement = (
                update(sealed.column.table)
                .where(sealed.row, sealed.column == sealed.blob)
                .values({sealed.column: anew})
            )
            async with self._database.transaction() as connection:
                done = (await connection.execute(statement)).rowcount
            changed += done
            outrun += 1 - done
        return changed, unreadable, outrun

    async def _list_sealed(self) -> Sequence[_Sealed]:
        credentials = select(provider.c.id, provider.c.credentials).where(
            provider.c.credentials.is_not(None)
        )
        secrets = select(session.c.provider_id, session.c.subject, session.c.secret).where(
            session.c.secret.is_not(None)
        )
        async with self._database.read() as connection:
            provider_rows = (await connection.execute(credentials)).all()
            session_rows = (await connection.execute(secrets)).all()
        return [
            *(
                _Sealed(
                    column=provider.c.credentials,
                    row=provider.c.id == provider_id,
                    bound_to=_credentials_of(provider_id),
                    blob=blob,
                )
                for provider_id, blob in provider_rows
            ),
            *(
                _Sealed(
                    column=session.c.secret,
                    row=and_(session.c.provider_id == provider_id, session.c.subject == subject),
                    bound_to=f"session|{provider_id}|{subject}|secret",
                    blob=blob,
                )
                for provider_id, subject, blob in session_rows
            ),
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sealed:
    """A sealed value and where it is kept."""

    column: Column[bytes]
    row: ColumnElement[bool]
    bound_to: str
    blob: bytes


def _record(row: RowMapping) -> Provider:
    values = dict(row)
    values["options"] = msgspec.json.decode(values["options"], type=dict[str, str])
    values["state"] = ProviderState(values["state"])
    return Provider(**values)


def _credentials_of(provider_id: str) -> str:
    return f"provider|{provider_id}|credentials"


def _encoded_options(options: Mapping[str, str]) -> str:
    return msgspec.json.encode(dict(options)).decode()
