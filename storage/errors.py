"""Errors of keeping things.

StorageError                  the gateway's own storage failed
├── StorageUnavailable        not reached, locked too long, full, damaged, connection lost
├── ConstraintViolated        a row that must be unique or referred to is not
├── RevisionConflict          somebody else changed the record since it was read
├── MigrationFailed           the tables could not be brought up to date
│   └── DatabaseTooNew        the tables were made by a newer gateway
├── CredentialsUnreadable     a sealed value cannot be opened here
├── CredentialsMissing        there is nothing sealed for this record
├── KeyRingInvalid            the keys given, or the key file, cannot be used
├── DatabaseUrlInvalid        the database URL cannot be used
└── ScopeInvalid              a scope of an API key is not one there is

Clients of the API see all of them as ``INTERNAL``; the codes here are for logs and operators.
"""

from __future__ import annotations

from typing import ClassVar


class StorageError(Exception):
    """The gateway's own storage failed.

    Args:
        message: For a person: starts with a capital, no full stop, no secret.
    """

    code: ClassVar[str] = "STORAGE_FAILED"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class StorageUnavailable(StorageError):
    """The database was not reached, or stayed locked, or is full, damaged or shutting down."""

    code = "STORAGE_UNAVAILABLE"
    retryable = True


class ConstraintViolated(StorageError):
    """A row would break a promise of the tables: a key already taken, or a missing parent."""

    code = "STORAGE_CONSTRAINT_VIOLATED"


class RevisionConflict(StorageError):
    """The record is no longer of the revision the change was meant for; nothing was changed."""

    code = "STORAGE_REVISION_CONFLICT"


class MigrationFailed(StorageError):
    """The tables could not be brought up to date; they are as they were before."""

    code = "MIGRATION_FAILED"


class DatabaseTooNew(MigrationFailed):
    """The tables were made by a newer gateway than this one."""

    code = "DATABASE_TOO_NEW"


class CredentialsUnreadable(StorageError):
    """A sealed value was damaged, moved from another row, or sealed with a key not in the ring."""

    code = "CREDENTIALS_UNREADABLE"


class CredentialsMissing(StorageError):
    """There is no such record, or nothing is sealed in it."""

    code = "CREDENTIALS_MISSING"


class KeyRingInvalid(StorageError):
    """The keys given, or the key file, cannot be used; the message says in which way."""

    code = "KEY_RING_INVALID"


class DatabaseUrlInvalid(StorageError):
    """The database URL cannot be used; the message names the forms that can, never the URL."""

    code = "DATABASE_URL_INVALID"


class ScopeInvalid(StorageError):
    """A scope of an API key is not one there is; the message names those there are."""

    code = "SCOPE_INVALID"
