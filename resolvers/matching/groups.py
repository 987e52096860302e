"""Which classes and facilities of two providers have the same members, learnt from sure pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from resolvers.matching.columns import Columns, Floats, Ints
from resolvers.matching.scoring import AT

_SMOOTHING: Final = 2.0
_MAX_BITS: Final = 8.0
_NARROW: Final = 3
"""A group up to so many times as large as the account's smallest counts as a class."""


class GroupLinks:
    """Sure pairs, seen from the company that accounts keep.

    Of a pair of accounts it is asked in how many sure pairs both sides are in one group with
    them, beside how many there would be by chance. Asked of the small groups of an account and
    of all of them, the most telling answer counts; where none speaks for the pair, the last.
    """

    def __init__(self, columns: tuple[Columns, Columns], sure: tuple[Ints, Ints]) -> None:
        self._width = np.int64(max(columns[1].count, 1))
        self._sure = np.sort(sure[0] * self._width + sure[1])
        self._company = tuple(
            _Company(side, rows.tolist()) for side, rows in zip(columns, sure, strict=True)
        )
        self._shared: dict[int, int] = {}

    def put_values(self, pairs: tuple[Ints, Ints], values: npt.NDArray[Any]) -> None:
        """Write the two group features of pairs, each without what the pair itself taught."""
        bits = self.values(pairs)
        values[:, AT["groups_same"]] = np.maximum(bits, 0.0)
        values[:, AT["groups_other"]] = np.minimum(bits, 0.0)

    def values(self, pairs: tuple[Ints, Ints]) -> Floats:
        """Return what groups say of pairs, each without what the pair itself taught.

        What is above 0 is the feature ``groups_same``, what is below ``groups_other``.
        """
        left, right = self._company
        here, there = left.levels[left.numbers[pairs[0]]], right.levels[right.numbers[pairs[1]]]
        own = np.isin(pairs[0] * self._width + pairs[1], self._sure)
        best, last = np.zeros(len(own)), np.zeros(len(own))
        for one in here.T:
            for two in there.T:
                sizes = left.sizes[one] - own, right.sizes[two] - own
                at = np.nonzero(np.minimum(*sizes) >= 1)[0]
                fewest, most = np.minimum(*sizes)[at], np.maximum(*sizes)[at]
                chance = most / np.maximum(len(self._sure) - own[at], 1)
                found = self._count_shared(one[at], two[at]) - own[at]
                share = (found + _SMOOTHING * chance) / (fewest + _SMOOTHING)
                last[at] = np.clip(np.log2(share / chance), -_MAX_BITS, _MAX_BITS)
                best = np.maximum(best, last)
        return np.asarray(np.rint(np.where(best > 0, best, last) * 16) / 16, np.float64)

    def _count_shared(self, one: Ints, two: Ints) -> Ints:
        """Return how many sure pairs each two sets of them have in common."""
        left, right = self._company
        codes, places = np.unique(one * np.int64(len(right.sets)) + two, return_inverse=True)
        known, counts = self._shared, []
        for code in codes.tolist():
            count = known.get(code)
            if count is None:
                here, there = divmod(code, len(right.sets))
                count = known[code] = len(left.sets[here] & right.sets[there])
            counts.append(count)
        return np.array(counts, np.int64)[places]


class _Company:
    """The sure pairs in whose company accounts are.

    Accounts in the same groups have one number; by number ``levels`` has which of ``sets`` are
    the sure pairs seen from their small groups, and from all of them. The first set is empty.
    """

    def __init__(self, columns: Columns, sure: list[int]) -> None:
        self._members = Counter(group for groups in columns.groups for group in groups)
        self._pairs: dict[int, set[int]] = {}
        for number, row in enumerate(sure):
            for group in columns.groups[row]:
                self._pairs.setdefault(group, set()).add(number)
        self._known: dict[frozenset[int], int] = {frozenset(): 0}
        numbers: dict[tuple[int, ...], int] = {(): 0}
        self.numbers = np.array(
            [numbers.setdefault(groups, len(numbers)) for groups in columns.groups], np.int64
        )
        self.levels = np.array([self._look_up(groups) for groups in numbers], np.int64)
        self.sets = [*self._known]
        self.sizes = np.array([len(one) for one in self.sets], np.int64)

    def _look_up(self, groups: tuple[int, ...]) -> tuple[int, int]:
        if not groups:
            return 0, 0
        smallest = min(self._members[group] for group in groups)
        narrow = [g for g in groups if self._members[g] <= _NARROW * smallest]
        return self._number(narrow), self._number(groups) if len(narrow) < len(groups) else 0

    def _number(self, groups: Iterable[int]) -> int:
        """Return the number of the set of sure pairs in some groups."""
        found = frozenset[int]().union(*(self._pairs.get(group, ()) for group in groups))
        return self._known.setdefault(found, len(self._known))
