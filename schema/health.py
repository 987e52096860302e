"""How one process gets on with a provider, as callers see it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import strawberry

from schema.enums import ErrorCode, error_code
from sessions import resilience
from sessions.resilience import BreakerState
from storage.leases import SessionStatus
from storage.records import SessionState


@strawberry.type(
    description="How the gateway process that answers gets on with a provider. Each process keeps"
    " its own view since it started, or since the provider was last changed: where several answer,"
    " another may see it otherwise."
)
class ProviderHealth:
    """How one process gets on with a provider."""

    state: BreakerState = strawberry.field(description="Whether calls reach the provider.")
    since: datetime = strawberry.field(
        description="Since when it is taken for failed, or is well again; when it was first used if"
        " it never failed."
    )
    next_probe_at: datetime | None = strawberry.field(
        description="From when one call is let through to find out whether it is back; null unless"
        " the state is OPEN."
    )
    consecutive_failures: int = strawberry.field(
        description="Calls that failed since one last went well."
    )
    last_error_code: ErrorCode | None = strawberry.field(
        description="How the last call that failed did; kept when it is well again, null when none"
        " has failed."
    )
    last_error: str | None = strawberry.field(
        description="The same for a person; null when none has failed."
    )
    last_failed_at: datetime | None = strawberry.field(
        description="When that was; null when none has failed."
    )
    calls_now: int = strawberry.field(description="Calls under way.")
    calls_limit: int = strawberry.field(
        description="How many may be under way at once, for now: fewer than its platform bears"
        " while it shows signs of overload."
    )
    waiting: int = strawberry.field(description="Calls in line behind them.")
    success_rate: float | None = strawberry.field(
        description="Share of the calls of the last half minute that went well, 0 to 1; null when"
        " there were none."
    )

    session_state: SessionState = strawberry.field(
        description="Where the service's session with it is in its life, over all processes."
    )

    @classmethod
    def from_record(
        cls, record: resilience.ProviderHealth, sessions: Sequence[SessionStatus]
    ) -> ProviderHealth:
        """Build the type from its record and the status of the service's session, if it has one."""
        return cls(
            session_state=sessions[0].state if sessions else SessionState.EMPTY,
            state=record.state,
            since=record.since,
            next_probe_at=record.next_probe_at,
            consecutive_failures=record.consecutive_failures,
            last_error_code=error_code(record.last_error_code),
            last_error=record.last_error,
            last_failed_at=record.last_failed_at,
            calls_now=record.calls_now,
            calls_limit=record.calls_limit,
            waiting=record.waiting,
            success_rate=record.success_rate,
        )
