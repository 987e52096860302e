"""What one operation costs at providers: who caused a call pays for it, and for no more.

A ``Meter`` is made for each operation and found through a context variable, by the operation's
own task and by all tasks it starts, which share it. Work done for everybody (logging in, keeping
sessions alive, timed exports) runs in contexts of its own, or inside ``unmetered``: no caller pays
for it, and no caller's budget ends it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType

from sessions.errors import UpstreamCallsSpent
from sessions.inside import Inside


@dataclass(slots=True, kw_only=True)
class ProviderUsage:
    """What an operation has cost one provider so far.

    Attributes:
        calls: Requests sent, retries counted one by one.
        waited_seconds: Sum of what its calls stood in line before they were sent, here in the
            gateway; calls side by side add up.
        upstream_seconds: Sum of what its requests took once they were sent.
        body_bytes: Received, after decompression.
        cache_hits: Reads answered from what was kept and still fresh.
        cache_stale: Reads answered from what was kept and no longer fresh.
        shared: Reads that joined one already under way for somebody else.
    """

    calls: int = 0
    waited_seconds: float = 0.0
    upstream_seconds: float = 0.0
    body_bytes: int = 0
    cache_hits: int = 0
    cache_stale: int = 0
    shared: int = 0


class Meter:
    """Counts what one operation costs, and ends its calls at a limit.

    Args:
        max_calls: How many requests it may send to all providers together; ``None`` for any.
    """

    def __init__(self, *, max_calls: int | None = None) -> None:
        self.max_calls = max_calls
        self._usage: dict[str, ProviderUsage] = {}

    @property
    def usage_by_provider(self) -> Mapping[str, ProviderUsage]:
        """What it has cost each provider, by provider id, in the order they were first met."""
        return MappingProxyType(self._usage)

    @property
    def calls(self) -> int:
        """Requests sent so far, to all providers."""
        return sum(usage.calls for usage in self._usage.values())

    def require_call(self, provider_id: str) -> None:
        """Make sure that one more request may be sent, without counting it.

        Raises:
            UpstreamCallsSpent: The limit is reached.
        """
        if self.max_calls is not None and self.calls >= self.max_calls:
            raise UpstreamCallsSpent(
                f"One operation may make {self.max_calls} calls to providers, and this one needs"
                " more: ask for smaller pages, for fewer fields inside lists, or for fewer"
                " providers at once",
                provider_id=provider_id,
            )

    def take_call(self, provider_id: str) -> None:
        """Count a request that is about to be sent.

        Raises:
            UpstreamCallsSpent: The limit is reached; nothing is counted.
        """
        self.require_call(provider_id)
        self._of(provider_id).calls += 1

    def note_wait(self, provider_id: str, seconds: float) -> None:
        """Add time stood in line."""
        self._of(provider_id).waited_seconds += seconds

    def note_answer(self, provider_id: str, *, seconds: float, body_bytes: int) -> None:
        """Add what a counted request took, however it ended."""
        usage = self._of(provider_id)
        usage.upstream_seconds += seconds
        usage.body_bytes += body_bytes

    def note_hit(self, provider_id: str, count: int = 1) -> None:
        """Count reads answered from what was kept and still fresh."""
        self._of(provider_id).cache_hits += count

    def note_stale(self, provider_id: str, count: int = 1) -> None:
        """Count reads answered from what was kept and no longer fresh."""
        self._of(provider_id).cache_stale += count

    def note_shared(self, provider_id: str, count: int = 1) -> None:
        """Count reads that joined one already under way."""
        self._of(provider_id).shared += count

    def uncapped(self) -> Meter:
        """Return a meter that counts into this one and has no limit."""
        meter = Meter()
        meter._usage = self._usage
        return meter

    def _of(self, provider_id: str) -> ProviderUsage:
        usage = self._usage.get(provider_id)
        if usage is None:
            usage = self._usage[provider_id] = ProviderUsage()
        return usage


def current_meter() -> Meter | None:
    """Return the meter that calls made here count into; ``None`` when nobody counts."""
    return _current.get()


def take_call(provider_id: str | None) -> None:
    """Count a request that is about to be sent, if anybody counts; ``None`` is no provider.

    Raises:
        UpstreamCallsSpent: The operation has made all the calls it may.
    """
    meter = _current.get()
    if meter is not None and provider_id is not None:
        meter.take_call(provider_id)


def note_wait(provider_id: str | None, seconds: float) -> None:
    """Add time stood in line, if anybody counts."""
    meter = _current.get()
    if meter is not None and provider_id is not None:
        meter.note_wait(provider_id, seconds)


def note_answer(provider_id: str | None, *, seconds: float, body_bytes: int) -> None:
    """Add what a request took that was counted by ``take_call``, if anybody counts."""
    meter = _current.get()
    if meter is not None and provider_id is not None:
        meter.note_answer(provider_id, seconds=seconds, body_bytes=body_bytes)


def metering(meter: Meter) -> Inside[Meter]:
    """Count every provider call made inside, in this task and those it starts, into the meter."""
    return Inside(_current, meter)


def unmetered() -> Inside[Meter | None]:
    """Count nothing made inside: it is done for everybody, not for the operation that began it."""
    return Inside(_current, None)


def uncapped() -> Inside[Meter | None]:
    """Count everything made inside, and end none of it: it must not be left half done."""
    meter = _current.get()
    return Inside(_current, None if meter is None else meter.uncapped())


_current: ContextVar[Meter | None] = ContextVar("meter", default=None)
