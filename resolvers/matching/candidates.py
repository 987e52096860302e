"""Which pairs of accounts are worth comparing: those that share a blocking key.

Candidates are given for some accounts of the first pool at a time, in the order of both pools, so
that what is made of them never has to be in memory at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from resolvers.matching.columns import WEAK_KINDS, Columns, Flags, Ints, keys_of

STRONG_CAP: Final = 4000
"""A key that makes more pairs than so many says nothing, and is passed over."""

WEAK_CAP: Final = 150
"""The same for keys of a kind that says little to begin with."""

_ROWS_AT_ONCE: Final = 1 << 13
PAIRS_AT_ONCE: Final = 1 << 17
"""About so many pairs are asked for together."""


class Candidates(Protocol):
    """Where the pairs to compare come from."""

    @property
    def slices(self) -> Sequence[tuple[int, int]]:
        """Rows of the first pool that are asked for together: from where, and up to where."""

    def pairs(self, begin: int, end: int) -> tuple[Ints, Ints]:
        """Return the pairs of some rows of the first pool, each once, in order."""


class Blocks:
    """The keys that accounts of two pools share, in memory.

    Args:
        columns: The pools.
        pairs_at_once: About so many pairs are asked for together.
    """

    def __init__(
        self, columns: tuple[Columns, Columns], *, pairs_at_once: int = PAIRS_AT_ONCE
    ) -> None:
        keys_left, rows_left = _sorted_keys(columns[0])
        keys_right, self._right = _sorted_keys(columns[1])
        begin = np.searchsorted(keys_right, keys_left, "left")
        counts = np.searchsorted(keys_right, keys_left, "right") - begin
        shared = np.nonzero(counts)[0]
        keys_left, rows_left = keys_left[shared], rows_left[shared]
        begin, counts = begin[shared], counts[shared]
        own = _run_lengths(keys_left)
        good = np.nonzero(counts * own <= caps(keys_left))[0]
        good = good[np.argsort(rows_left[good], kind="stable")]
        self._left, self._begin, self._counts = rows_left[good], begin[good], counts[good]
        self._width = max(columns[1].count, 1)
        self.slices = self._cut(columns[0].count, pairs_at_once)

    def _cut(self, rows: int, size: int) -> list[tuple[int, int]]:
        """Return slices that make about as many pairs each."""
        made = np.cumsum(np.bincount(self._left, weights=self._counts, minlength=rows))
        wanted = np.arange(1, int(made[-1] if rows else 0) // size + 1) * size
        ends = np.unique(np.minimum(np.searchsorted(made, wanted) + 1, rows)).tolist()
        ends = [*ends, rows] if not ends or ends[-1] < rows else ends
        return list(zip([0, *ends[:-1]], ends, strict=True))

    def pairs(self, begin: int, end: int) -> tuple[Ints, Ints]:
        """Return the pairs of some rows of the first pool, each once, in order."""
        part = slice(*np.searchsorted(self._left, (begin, end)).tolist())
        counts = self._counts[part]
        first = np.repeat(self._left[part], counts)
        offsets = np.arange(len(first)) - np.repeat(np.cumsum(counts) - counts, counts)
        second = self._right[np.repeat(self._begin[part], counts) + offsets]
        return distinct(first, second, self._width)


def candidates(columns: tuple[Columns, Columns]) -> tuple[Ints, Ints]:
    """Return all pairs of rows that share a blocking key, each once, in order."""
    return Blocks(columns).pairs(0, columns[0].count)


def caps(keys: npt.NDArray[np.uint64]) -> Ints:
    """Return how many pairs each key may make."""
    weak = np.isin(keys & np.uint64(15), np.array(sorted(WEAK_KINDS), np.uint64))
    return np.asarray(np.where(weak, WEAK_CAP, STRONG_CAP), np.int64)


def distinct(first: Ints, second: Ints, width: int) -> tuple[Ints, Ints]:
    """Return pairs in order, each once; ``width`` is above all of the second numbers."""
    codes = np.sort(first * np.int64(width) + second)
    codes = codes[_fresh(codes)]
    found = codes // width
    return found, codes - found * width


def flat_keys(columns: Columns, begin: int, end: int) -> tuple[npt.NDArray[np.uint64], Ints]:
    """Return the keys of some accounts, each with its row; a row has each key once."""
    keys = np.sort(keys_of(columns, np.arange(begin, end)), axis=1)
    known = keys > 0
    known[:, 1:] &= keys[:, 1:] != keys[:, :-1]
    return keys[known], np.nonzero(known)[0] + begin


def _sorted_keys(columns: Columns) -> tuple[npt.NDArray[np.uint64], Ints]:
    begins = range(0, columns.count, _ROWS_AT_ONCE)
    parts = [(np.zeros(0, np.uint64), np.zeros(0, np.int64))]
    parts += [flat_keys(columns, at, min(at + _ROWS_AT_ONCE, columns.count)) for at in begins]
    keys = np.concatenate([keys for keys, _ in parts])
    rows = np.concatenate([rows for _, rows in parts])
    del parts
    order = np.argsort(keys, kind="stable")
    return keys[order], rows[order]


def _fresh(ordered: npt.NDArray[np.int64] | npt.NDArray[np.uint64]) -> Flags:
    """Return which of some values in order are not the same as the one before."""
    return np.concatenate([np.ones(min(len(ordered), 1), np.bool_), ordered[1:] != ordered[:-1]])


def _run_lengths(ordered: npt.NDArray[np.uint64]) -> Ints:
    """Return for each of some values in order how many are the same."""
    fresh = _fresh(ordered)
    starts = np.nonzero(fresh)[0]
    lengths = np.diff(np.append(starts, len(ordered)))
    return np.asarray(lengths[np.cumsum(fresh) - 1], np.int64)
