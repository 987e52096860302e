"""Which classes and facilities of two providers have the same members, learnt from sure pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from resolvers.matching.columns import Columns, Floats, Ints
from resolvers.matching.scoring import AT

_SMOOTHING: Final = 2.0
_MAX_BITS: Final = 8.0
_MAX_MET: Final = 1 << 24
_NARROW: Final = 3
"""A group up to so many times as large as the account's smallest counts as a class."""


class GroupLinks:
    """Sure pairs, seen from the company that accounts keep.

    Of a pair of accounts it is asked in how many sure pairs both sides are in one group with
    them, beside how many there would be by chance. Asked of the small groups of an account and
    of all of them, the most telling answer counts; where none speaks for the pair, the last.
    """

    def __init__(self, circles: tuple[Circles, Circles], sure: tuple[Ints, Ints]) -> None:
        self._width = np.int64(max(circles[1].columns.count, 1))
        self._sure = np.sort(sure[0] * self._width + sure[1])
        self._company = tuple(
            _Company(side, rows.tolist()) for side, rows in zip(circles, sure, strict=True)
        )
        left, right = self._company
        self._shared = _shared_of_few(left.sets, right.sets, len(self._sure))
        self._asked: dict[int, int] = {}

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
        codes = one * np.int64(len(right.sets)) + two
        if self._shared is not None:
            known, counts = self._shared
            at = np.minimum(np.searchsorted(known, codes), len(known) - 1)
            return np.where(known[at] == codes, counts[at], 0)
        codes, places = np.unique(codes, return_inverse=True)
        for code in set(codes.tolist()) - self._asked.keys():
            here, there = divmod(code, len(right.sets))
            self._asked[code] = len(left.sets[here] & right.sets[there])
        return np.array([self._asked[code] for code in codes.tolist()], np.int64)[places]


def _shared_of_few(
    left: Sequence[frozenset[int]], right: Sequence[frozenset[int]], sure: int
) -> tuple[Ints, Ints] | None:
    """Return which two sets have sure pairs in common, as numbers in order, and how many.

    ``None`` where there are too many for that, since each account keeps company of its own.
    """
    (here, in_left), (there, in_right) = _by_pair(left), _by_pair(right)
    counts = np.bincount(in_right, minlength=sure)
    met = counts[in_left]
    if met.sum() > _MAX_MET:
        return None
    behind = np.cumsum(counts)[in_left] - np.cumsum(met)
    at = np.arange(met.sum()) + np.repeat(behind, met)
    codes = np.repeat(here, met) * np.int64(len(right)) + there[at]
    return np.unique(np.append(codes, -1), return_counts=True)


def _by_pair(sets: Sequence[frozenset[int]]) -> tuple[Ints, Ints]:
    """Return by number of a sure pair, in order, which sets have it; and those numbers."""
    numbers = np.fromiter(chain.from_iterable(sets), np.int64)
    order = np.argsort(numbers, kind="stable")
    sizes = np.array([len(one) for one in sets], np.int64)
    return np.repeat(np.arange(len(sets)), sizes)[order], numbers[order]


class Circles:
    """Which groups accounts of one provider are in: ``small`` ones, and where it is more, all.

    Accounts in the same groups have one number; the first is of those in none.
    """

    def __init__(self, columns: Columns) -> None:
        self.columns = columns
        self._members = Counter(chain.from_iterable(columns.groups))
        numbers: dict[tuple[int, ...], int] = {(): 0}
        self.numbers = np.array(
            [numbers.setdefault(groups, len(numbers)) for groups in columns.groups], np.int64
        )
        self.small_and_all = [self._levels(groups) for groups in numbers]

    def _levels(self, groups: tuple[int, ...]) -> tuple[Sequence[int], Sequence[int]]:
        members = [self._members[group] for group in groups]
        most = _NARROW * min(members, default=0)
        small = [group for group, size in zip(groups, members, strict=True) if size <= most]
        return small, groups if len(small) < len(groups) else ()


class _Company:
    """The sure pairs in whose company accounts are.

    By number of accounts ``levels`` has which of ``sets`` are the sure pairs seen from their small
    groups, and from all of them. The first set is empty.
    """

    def __init__(self, circles: Circles, sure: list[int]) -> None:
        self._pairs: dict[int, set[int]] = {}
        for number, row in enumerate(sure):
            for group in circles.columns.groups[row]:
                self._pairs.setdefault(group, set()).add(number)
        self._known: dict[frozenset[int], int] = {frozenset(): 0}
        self.numbers = circles.numbers
        levels = [[self._number(groups) for groups in both] for both in circles.small_and_all]
        self.levels = np.array(levels, np.int64)
        self.sets = [*self._known]
        self.sizes = np.array([len(one) for one in self.sets], np.int64)

    def _number(self, groups: Iterable[int]) -> int:
        """Return the number of the set of sure pairs in some groups."""
        if not groups:
            return 0
        pairs = self._pairs
        found = frozenset[int]().union(*[pairs[group] for group in groups if group in pairs])
        return self._known.setdefault(found, len(self._known))
