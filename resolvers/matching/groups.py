"""Which classes and facilities of two providers have the same members, learnt from sure pairs."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from resolvers.matching.columns import Columns, Ints
from resolvers.matching.scoring import AT

_SMOOTHING: Final = 0.5
_MAX_BITS: Final = 8.0
_MIN_SEEN: Final = 2
_NARROW: Final = 3
"""A group up to so many times as large as the account's smallest counts as a class."""


class GroupLinks:
    """Sure pairs, seen from the company that accounts keep.

    Of a pair of accounts it is asked in how many sure pairs both sides are in one group with
    them, beside how many there would be by chance. Asked of the small groups of an account and
    of all of them, the most telling answer counts.
    """

    def __init__(self, columns: tuple[Columns, Columns], sure: tuple[Ints, Ints]) -> None:
        self._sure = set(zip(sure[0].tolist(), sure[1].tolist(), strict=True))
        self._company = tuple(
            _Company(side, rows.tolist()) for side, rows in zip(columns, sure, strict=True)
        )

    def put_values(self, pairs: tuple[Ints, Ints], values: npt.NDArray[Any]) -> None:
        """Write the two group features of pairs, each without what the pair itself taught."""
        same, other = AT["groups_same"], AT["groups_other"]
        for row, (i, j) in enumerate(zip(pairs[0].tolist(), pairs[1].tolist(), strict=True)):
            bits = self._bits(i, j)
            values[row, same if bits > 0 else other] = bits

    def _bits(self, i: int, j: int) -> float:
        here, there = self._company[0].of(i), self._company[1].of(j)
        own = (i, j) in self._sure
        total = max(len(self._sure) - own, 1)
        best = 0.0
        for one in here:
            for two in there:
                seen_left, seen_right = len(one) - own, len(two) - own
                if seen_left < _MIN_SEEN or seen_right < _MIN_SEEN:
                    continue
                together = len(one & two) - own
                expected = seen_left * seen_right / total
                ratio = (together + _SMOOTHING * min(expected, 1.0)) / (expected + _SMOOTHING)
                if together:
                    best = max(best, min(float(np.log2(ratio)), _MAX_BITS))
        if best > 0 or not here or not there:
            return round(best * 16) / 16
        fewest = min(len(here[-1]), len(there[-1])) - own
        return -round(min(float(np.log2(1.0 + max(fewest, 0))), 4.0) * 16) / 16


class _Company:
    """For each account the sure pairs in whose company it is."""

    def __init__(self, columns: Columns, sure: list[int]) -> None:
        self._groups = columns.groups
        self._sizes = Counter(group for groups in columns.groups for group in groups)
        self._pairs: dict[int, set[int]] = {}
        self._known: dict[tuple[int, ...], tuple[set[int], ...]] = {}
        for number, row in enumerate(sure):
            for group in columns.groups[row]:
                self._pairs.setdefault(group, set()).add(number)

    def of(self, row: int) -> tuple[set[int], ...]:
        """Return the sure pairs by the account's small groups, and by all; none without groups."""
        groups = self._groups[row]
        found = self._known.get(groups)
        if found is None:
            found = self._known[groups] = self._look_up(groups)
        return found

    def _look_up(self, groups: tuple[int, ...]) -> tuple[set[int], ...]:
        if not groups:
            return ()
        smallest = min(self._sizes[group] for group in groups)
        narrow = [g for g in groups if self._sizes[g] <= _NARROW * smallest]
        levels = [narrow] if len(narrow) == len(groups) else [narrow, list(groups)]
        return tuple(
            set[int]().union(*(self._pairs.get(group, ()) for group in level)) for level in levels
        )
