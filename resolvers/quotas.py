"""How much of the gateway each key may use: so many operations at once, so much cost a minute.

Counted in memory, in each process by itself: with several processes a key has as much in each.
What is remembered is one entry for each key that was here in the last minute.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from resolvers.errors import QuotaExceeded

_MINUTE: Final = 60.0
_LOOK_FROM: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaTerms:
    """How much one key may use; 0 is any amount.

    Attributes:
        cost_per_minute: What is not used is kept for a minute: so much can be used at once.
        most_operations: Operations, and whole lists over REST, under way at once.
    """

    cost_per_minute: int = 0
    most_operations: int = 0


class Quotas:
    """Lets operations begin, or refuses them for what their key has used already.

    Args:
        terms: How much one key may use.
        now: Seconds of a clock that never goes back.
    """

    def __init__(self, terms: QuotaTerms, *, now: Callable[[], float] = time.monotonic) -> None:
        self._terms = terms
        self._now = now
        self._keys: dict[str, _Key] = {}
        self._look_at = _LOOK_FROM

    def __len__(self) -> int:
        """Return how many keys are remembered."""
        return len(self._keys)

    def begin(self, key_id: str, *, cost: int) -> Charge:
        """Charge a key for an operation that is about to begin; the charge must be settled.

        A cost above what a key may use in a minute can begin when nothing was used for a minute.

        Raises:
            QuotaExceeded: The key has used too much; says when to come again.
        """
        key = self._keys.get(key_id)
        if key is None:
            self._forget_idle()
            key = self._keys[key_id] = _Key(self._terms.cost_per_minute, self._now())
        if 0 < self._terms.most_operations <= key.running:
            raise QuotaExceeded(
                f"This key has {key.running} operations under way, which are all it may have",
                limit="key_operations",
                retry_after_seconds=1,
            )
        if self._terms.cost_per_minute:
            self._pay(key, cost)
        key.running += 1
        return Charge(self, key, cost)

    def settle(self, key: _Key, *, charged: int, actual: int) -> None:
        """Take back what was charged, and charge what it came to."""
        key.running -= 1
        self._pour(key)
        key.left = min(key.left + charged - actual, self._terms.cost_per_minute)

    def _pay(self, key: _Key, cost: int) -> None:
        self._pour(key)
        missing = min(cost, self._terms.cost_per_minute) - key.left
        if missing > 0:
            seconds = math.ceil(missing * _MINUTE / self._terms.cost_per_minute)
            raise QuotaExceeded(
                f"This key may use a cost of {self._terms.cost_per_minute} a minute and has"
                f" {max(int(key.left), 0)} left; this operation is estimated at {cost}",
                limit="key_cost",
                retry_after_seconds=seconds,
            )
        key.left -= cost

    def _pour(self, key: _Key) -> None:
        """Give a key what it may use of the time that went by."""
        now = self._now()
        poured = (now - key.poured_at) * self._terms.cost_per_minute / _MINUTE
        key.left = min(key.left + poured, self._terms.cost_per_minute)
        key.poured_at = now

    def _forget_idle(self) -> None:
        """Forget keys that have all they may use again, whenever twice as many are known."""
        if len(self._keys) < self._look_at:
            return
        before = self._now() - _MINUTE
        for key_id, key in [*self._keys.items()]:
            if not key.running and key.poured_at < before:
                del self._keys[key_id]
        self._look_at = max(_LOOK_FROM, 2 * len(self._keys))


class Charge:
    """What an operation was charged; settled once, when it has ended.

    Args:
        quotas: Where it was charged.
        key: Who was.
        cost: What.

    Attributes:
        actual: What it has come to.
    """

    def __init__(self, quotas: Quotas, key: _Key, cost: int) -> None:
        self.actual = 0
        self._quotas = quotas
        self._key = key
        self._cost = cost
        self._is_open = True

    def settle(self) -> None:
        """End the operation: charge what it came to instead of what was charged."""
        if self._is_open:
            self._is_open = False
            self._quotas.settle(self._key, charged=self._cost, actual=self.actual)


@dataclass(slots=True)
class _Key:
    left: float
    poured_at: float
    running: int = field(default=0)
