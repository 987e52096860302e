"""Which class or facility of one provider is which of the other, learnt from confident pairs."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from resolvers.matching.columns import Columns, Ints
from resolvers.matching.scoring import AT

_SMOOTHING: Final = 1.0
_MAX_BITS: Final = 8.0
_MIN_SEEN: Final = 3


class GroupLinks:
    """How much more often two groups meet in confident pairs than chance would have it."""

    def __init__(self, sure: tuple[Ints, Ints]) -> None:
        self._sure = set(zip(sure[0].tolist(), sure[1].tolist(), strict=True))
        self._together: dict[tuple[int, int], int] = {}
        self._left: dict[int, int] = {}
        self._right: dict[int, int] = {}
        self._pairs = len(self._sure)

    @classmethod
    def learn(cls, columns: tuple[Columns, Columns], sure: tuple[Ints, Ints]) -> GroupLinks:
        """Count the groups of confident pairs."""
        links = cls(sure)
        for i, j in links._sure:
            here, there = columns[0].groups[i], columns[1].groups[j]
            if not here or not there:
                continue
            for one in here:
                links._left[one] = links._left.get(one, 0) + 1
                for two in there:
                    links._together[one, two] = links._together.get((one, two), 0) + 1
            for two in there:
                links._right[two] = links._right.get(two, 0) + 1
        return links

    def put_values(
        self,
        columns: tuple[Columns, Columns],
        pairs: tuple[Ints, Ints],
        values: npt.NDArray[Any],
    ) -> None:
        """Write the two group features of pairs, each without what the pair itself taught."""
        same, other = AT["groups_same"], AT["groups_other"]
        for row, (i, j) in enumerate(zip(pairs[0].tolist(), pairs[1].tolist(), strict=True)):
            here, there = columns[0].groups[i], columns[1].groups[j]
            if here and there:
                bits = self._bits(here, there, own=(i, j) in self._sure)
                values[row, same if bits > 0 else other] = bits

    def _bits(self, here: tuple[int, ...], there: tuple[int, ...], *, own: bool) -> float:
        best, known = 0.0, False
        total = max(self._pairs - own, 1)
        for one in here:
            seen_left = self._left.get(one, 0) - own
            if seen_left < _MIN_SEEN:
                continue
            for two in there:
                seen_right = self._right.get(two, 0) - own
                if seen_right < _MIN_SEEN:
                    continue
                known = True
                expected = seen_left * seen_right / total
                together = self._together.get((one, two), 0) - own
                ratio = (together + _SMOOTHING * min(expected, 1.0)) / (expected + _SMOOTHING)
                best = max(best, min(float(np.log2(max(ratio, 1e-3))), _MAX_BITS))
        return round(best * 16) / 16 if best > 0 or not known else -1.0
