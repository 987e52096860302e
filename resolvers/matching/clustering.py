"""Which accounts of all providers are one person."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from resolvers.matching.columns import Floats, Ints

JOINED_FROM: Final = -0.5
"""Mean log-odds in bits from which accounts are joined: the lowest, in steps of a half, at which
97 of 100 pairs were right on the development half, with its own errors and half as many again."""

_MISSING_BITS: Final = -3.0
"""What a pair that nobody suggested counts in the mean of two groups of accounts."""


def cluster(
    count: int,
    provider: Sequence[int],
    pairs: tuple[Ints, Ints, Floats],
    *,
    must_link: Iterable[tuple[int, int]] = (),
    cannot_link: Iterable[tuple[int, int]] = (),
    least_bits: float = JOINED_FROM,
) -> list[int]:
    """Return each account's person, numbered in the order of their first accounts.

    The two groups of accounts with the highest mean log-odds are joined until none is above
    ``least_bits``. Two accounts of one provider are never joined, whatever anybody says;
    neither are two that ``cannot_link`` names, unless ``must_link`` joined them before.

    Args:
        count: How many accounts there are.
        provider: The provider of each, as a number.
        pairs: Two columns of accounts, and the log-odds in bits that both are one person.
        must_link: Pairs that a person confirmed; the earlier one wins where two exclude each other.
        cannot_link: Pairs that a person rejected.
        least_bits: Lower finds more, and is wrong more often.
    """
    groups = _Groups(count, provider, cannot_link)
    bits = zip(pairs[0].tolist(), pairs[1].tolist(), pairs[2].tolist(), strict=True)
    for i, j, odds in bits:
        groups.add_bits(i, j, odds)
    for i, j in must_link:
        groups.join(i, j, decided=True)
    groups.join_best(least_bits)
    return groups.labels()


class _Groups:
    def __init__(
        self, count: int, provider: Sequence[int], cannot: Iterable[tuple[int, int]]
    ) -> None:
        self._root = list(range(count))
        self._members = [[i] for i in range(count)]
        self._providers = [{p} for p in provider]
        self._bits: list[dict[int, float]] = [{} for _ in range(count)]
        self._found: list[dict[int, int]] = [{} for _ in range(count)]
        self._apart: list[set[int]] = [set() for _ in range(count)]
        for i, j in cannot:
            if i != j:
                self._apart[i].add(j)
                self._apart[j].add(i)

    def _find(self, i: int) -> int:
        while self._root[i] != i:
            self._root[i] = self._root[self._root[i]]
            i = self._root[i]
        return i

    def add_bits(self, i: int, j: int, bits: float) -> None:
        if i == j:
            return
        for a, b in ((i, j), (j, i)):
            self._bits[a][b] = self._bits[a].get(b, 0.0) + bits
            self._found[a][b] = 1

    def join(self, i: int, j: int, *, decided: bool = False) -> bool:
        """Join the groups of two accounts; ``False`` if they must not be."""
        a, b = self._find(i), self._find(j)
        if a == b or self._providers[a] & self._providers[b]:
            return False
        if not decided and self._are_apart(a, b):
            return False
        if len(self._bits[a]) < len(self._bits[b]):
            a, b = b, a
        self._root[b] = a
        self._members[a] += self._members[b]
        self._providers[a] |= self._providers[b]
        for other, bits in self._bits[b].items():
            if other == a:
                continue
            found = self._found[b][other]
            for one, two in ((a, other), (other, a)):
                self._bits[one][two] = self._bits[one].get(two, 0.0) + bits
                self._found[one][two] = self._found[one].get(two, 0) + found
            del self._bits[other][b], self._found[other][b]
        self._bits[a].pop(b, None)
        self._found[a].pop(b, None)
        self._bits[b], self._found[b] = {}, {}
        self._apart[a] |= self._apart[b]
        return True

    def _are_apart(self, a: int, b: int) -> bool:
        if len(self._apart[a]) > len(self._apart[b]):
            a, b = b, a
        return any(self._find(other) == b for other in self._apart[a])

    def _mean(self, a: int, b: int) -> float:
        cells = len(self._members[a]) * len(self._members[b])
        return (self._bits[a][b] + _MISSING_BITS * (cells - self._found[a][b])) / cells

    def join_best(self, least_bits: float) -> None:
        queue = [
            (-mean, a, b)
            for a, others in enumerate(self._bits)
            for b in others
            if a < b and (mean := self._mean(a, b)) > least_bits
        ]
        heapq.heapify(queue)
        while queue:
            worse, a, b = heapq.heappop(queue)
            if self._root[a] != a or self._root[b] != b or b not in self._bits[a]:
                continue
            if -self._mean(a, b) != worse or not self.join(a, b):
                continue
            joined = self._find(a)
            for other in self._bits[joined]:
                mean = self._mean(joined, other)
                if mean > least_bits:
                    heapq.heappush(queue, (-mean, joined, other))

    def labels(self) -> list[int]:
        numbers: dict[int, int] = {}
        return [numbers.setdefault(self._find(i), len(numbers)) for i in range(len(self._root))]


def log_odds(score: Floats) -> Floats:
    """Return the bits of probabilities, from -20 to 20, as ``cluster`` takes them."""
    bounded = np.clip(score, 2.0**-20, 1.0 - 2.0**-20)
    return np.asarray(np.log2(bounded / (1.0 - bounded)), np.float64)
