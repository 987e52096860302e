"""Which classes and facilities of two providers have the same members, learnt from sure pairs."""

from __future__ import annotations

from collections import Counter
from math import log2
from typing import Any, Final

import numpy.typing as npt

from resolvers.matching.columns import Columns, Ints
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
        self._sure = set(zip(sure[0].tolist(), sure[1].tolist(), strict=True))
        self._company = tuple(
            _Company(side, rows.tolist()) for side, rows in zip(columns, sure, strict=True)
        )

    def put_values(self, pairs: tuple[Ints, Ints], values: npt.NDArray[Any]) -> None:
        """Write the two group features of pairs, each without what the pair itself taught."""
        same, other = AT["groups_same"], AT["groups_other"]
        left, right = self._company
        known: dict[tuple[int, int], float] = {}
        for row, (i, j) in enumerate(zip(pairs[0].tolist(), pairs[1].tolist(), strict=True)):
            here, there = left.numbers[i], right.numbers[j]
            if not here or not there:
                continue
            own = (i, j) in self._sure
            bits = None if own else known.get((here, there))
            if bits is None:
                bits = self._bits(left.levels[here], right.levels[there], own=own)
                if not own:
                    known[here, there] = bits
            values[row, same if bits > 0 else other] = bits

    def _bits(self, here: tuple[set[int], ...], there: tuple[set[int], ...], *, own: bool) -> float:
        total = max(len(self._sure) - own, 1)
        best, last = 0.0, 0.0
        for one in here:
            for two in there:
                fewest, most = sorted((len(one) - own, len(two) - own))
                if fewest < 1:
                    continue
                chance = most / total
                share = (len(one & two) - own + _SMOOTHING * chance) / (fewest + _SMOOTHING)
                last = min(max(log2(share / chance), -_MAX_BITS), _MAX_BITS)
                best = max(best, last)
        return round((best if best > 0 else last) * 16) / 16


class _Company:
    """The sure pairs in whose company accounts are.

    Accounts in the same groups have one number, 0 if they are in none; by number ``levels`` has
    the sure pairs seen from their small groups, and from all of them.
    """

    def __init__(self, columns: Columns, sure: list[int]) -> None:
        self._sizes = Counter(group for groups in columns.groups for group in groups)
        self._pairs: dict[int, set[int]] = {}
        for number, row in enumerate(sure):
            for group in columns.groups[row]:
                self._pairs.setdefault(group, set()).add(number)
        known: dict[tuple[int, ...], int] = {(): 0}
        self.numbers = [known.setdefault(groups, len(known)) for groups in columns.groups]
        self.levels = [self._look_up(groups) for groups in known]

    def _look_up(self, groups: tuple[int, ...]) -> tuple[set[int], ...]:
        if not groups:
            return ()
        smallest = min(self._sizes[group] for group in groups)
        narrow = [g for g in groups if self._sizes[g] <= _NARROW * smallest]
        levels = [narrow] if len(narrow) == len(groups) else [narrow, list(groups)]
        return tuple(
            set[int]().union(*(self._pairs.get(group, ()) for group in level)) for level in levels
        )
