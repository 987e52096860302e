"""The audit log: who changed what, and what came of it.

``AuditLog.noting`` surrounds whatever changes something: its entry is written before, and finished
after. Where the entry cannot be written, nothing is done.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from urllib.parse import urlsplit

import structlog

from resolvers.context import ProviderDraft, RequestContext, Scope
from resolvers.cursors import CursorSealer
from resolvers.errors import BadInput, RequestRefused
from resolvers.paging import checked_first
from sessions.errors import ProviderError
from sessions.scheduler import ScheduledWork
from storage.audit import AuditDraft, AuditEntry, AuditOutcome, AuditStore
from storage.errors import StorageError
from storage.leases import JobClaim, LeaseStore

AUDIT_JOB: Final = "audit-care"
"""The kind of the one job that forgets old entries."""

HIDDEN: Final = "***"
"""What stands in an entry for a value that may be a secret or a person's data."""

MAX_CHARACTERS: Final = 200
"""How much of a value is kept."""

_CARE_KEY: Final = "all"
_CARE_SECONDS: Final = 3600.0
_LEASE_SECONDS: Final = 60.0
_CURSOR_FORMAT: Final = 1

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class AuditNote:
    """What came of something, for its entry; BEGUN until somebody says."""

    outcome: AuditOutcome = AuditOutcome.BEGUN
    code: str | None = None
    target: str | None = None

    def done(self, *, target: str | None = None) -> None:
        """Note that it was carried out, and on what if that was not known before."""
        self.outcome = AuditOutcome.DONE
        self.target = target

    def refused(self, code: str, *, retryable: bool = False) -> None:
        """Note that it was not carried out, and the code that says why.

        Args:
            code: One of the stable error codes.
            retryable: Whether it failed on the way, and may succeed, or even have been carried out.
        """
        self.outcome = AuditOutcome.FAILED if retryable else AuditOutcome.REFUSED
        self.code = code


class AuditLog:
    """Writes entries, and forgets old ones.

    Args:
        store: Where they are kept.
        leases: The job's row.
        kept_seconds: For how long.
    """

    def __init__(self, store: AuditStore, leases: LeaseStore, *, kept_seconds: float) -> None:
        self._store = store
        self._leases = leases
        self._kept_seconds = kept_seconds

    @asynccontextmanager
    async def noting(self, draft: AuditDraft) -> AsyncIterator[AuditNote]:
        """Surround what is about to be done; the block says what came of it.

        A refusal that is raised is noted by itself, and so is a provider's failure.

        Raises:
            StorageError: The entry could not be written; the block was not begun.
        """
        entry_id = await self._store.begin(draft)
        note = AuditNote()
        try:
            yield note
        except RequestRefused as error:
            note.refused(error.code)
            raise
        except ProviderError as error:
            note.refused(error.code, retryable=True)
            raise
        finally:
            if note.outcome is not AuditOutcome.BEGUN:
                await self._finish(entry_id, note)

    def work(self) -> ScheduledWork:
        """Return the job that forgets old entries."""
        return ScheduledWork(kind=AUDIT_JOB, run=self.care, at_once=1, lease_seconds=_LEASE_SECONDS)

    async def start(self) -> None:
        """See to it that old entries are forgotten, by whichever gateway comes to it.

        Raises:
            StorageError: The database could not do it.
        """
        await self._leases.ensure_job(AUDIT_JOB, _CARE_KEY)

    async def care(self, claim: JobClaim) -> None:
        """Forget entries that are too old.

        Raises:
            StorageError: The database could not do it; the lease runs out by itself.
        """
        while await self._store.sweep(kept_seconds=self._kept_seconds):
            pass
        await self._leases.finish_job(claim, next_seconds=_CARE_SECONDS)

    async def list_entries(
        self, *, after: int, since: datetime | None, caller: str | None, limit: int
    ) -> Sequence[AuditEntry]:
        """Return entries behind one, in order.

        Raises:
            StorageError: The database could not answer.
        """
        return await self._store.list_entries(after=after, since=since, caller=caller, limit=limit)

    async def _finish(self, entry_id: int, note: AuditNote) -> None:
        try:
            await self._store.finish(entry_id, note.outcome, code=note.code, target=note.target)
        except StorageError as error:  # what was done stands, and its entry says that it was begun
            _log.warning("audit_not_finished", entry_id=entry_id, problem=error.message)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditPage:
    """A page of entries, each with its cursor.

    Attributes:
        has_next: Whether more can be had at once.
    """

    entries: Sequence[tuple[str, AuditEntry]]
    has_next: bool


def registering(draft: ProviderDraft, *, caller: str, request_id: str | None = None) -> AuditDraft:
    """Return the entry of a registration that comes from elsewhere than a mutation."""
    given = {
        "platform": draft.platform[:MAX_CHARACTERS],
        "baseUrl": origin_of(draft.base_url),
        "accountId": (draft.account_id or "")[:MAX_CHARACTERS],
        "options": HIDDEN if draft.options else "",
        "credentials": HIDDEN if draft.credentials.reveal() else "",
    }
    return AuditDraft(
        caller=caller,
        action="registerProvider",
        target=f"provider:{draft.id}"[:MAX_CHARACTERS],
        arguments={name: value for name, value in given.items() if value},
        request_id=request_id,
    )


def origin_of(address: str) -> str:
    """Return scheme, host and port of an address: what else it holds may be a secret."""
    try:
        parts = urlsplit(address.strip())
        port = "" if parts.port is None else f":{parts.port}"
    except ValueError:
        return HIDDEN
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        return HIDDEN
    return f"{parts.scheme}://{parts.hostname}{port}"[:MAX_CHARACTERS]


async def audit_page(
    context: RequestContext,
    *,
    first: int,
    after: str | None,
    since: datetime | None,
    caller: str | None,
) -> AuditPage:
    """Return a page of the audit log, oldest first.

    Raises:
        RequestRefused: The scope is missing, or an argument is wrong.
        StorageError: The database could not answer.
    """
    context.require(Scope.ADMIN)
    first = checked_first(first, context.limits.max_page_size)
    sealer = CursorSealer(context.limits.cursor_key, json.dumps(["audit", _CURSOR_FORMAT]))
    behind = 0 if after is None else sealer.open(after)
    if not isinstance(behind, int):
        raise BadInput("after", "This is not a cursor of the audit log")
    if context.audit is None:
        return AuditPage(entries=(), has_next=False)
    found = await context.audit.list_entries(
        after=behind, since=since, caller=caller, limit=first + 1
    )
    return AuditPage(
        entries=[(sealer.seal(entry.id), entry) for entry in found[:first]],
        has_next=len(found) > first,
    )
