"""Working under the lease of a job for as long as nobody takes it over."""

from __future__ import annotations

import asyncio
import time

from storage.errors import StorageUnavailable
from storage.leases import JobClaim, LeaseStore


async def while_held(
    leases: LeaseStore, claim: JobClaim, work: asyncio.Task[None], *, lease_seconds: float
) -> None:
    """Wait for the work to end, renewing its lease, or give it up when somebody takes it over.

    Args:
        leases: Where the job's row is.
        claim: The lease; it is renewed three times in its span.
        work: What is done under it; cancelled when the lease is lost.
        lease_seconds: For how long it is renewed.

    Raises:
        Exception: What the work raised.
    """
    renewals = asyncio.create_task(_renew(leases, claim, lease_seconds=lease_seconds))
    try:
        await asyncio.wait({work, renewals}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
    finally:
        for task in (work, renewals):
            task.cancel()
        await asyncio.wait({work, renewals})


async def _renew(leases: LeaseStore, claim: JobClaim, *, lease_seconds: float) -> None:
    lost_at = time.monotonic() + lease_seconds
    while time.monotonic() < lost_at:
        await asyncio.sleep(lease_seconds / 3)
        asked_at = time.monotonic()
        try:
            if not await leases.renew_job(claim, lease_seconds=lease_seconds):
                return
        except StorageUnavailable:
            continue
        lost_at = asked_at + lease_seconds
