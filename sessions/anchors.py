"""Lists whose pages are numbered, gone on with behind a row instead of behind a number of rows.

A number of rows is no place in a list that changes: what is deleted before it hides a row, what is
inserted shows one twice. A position made here also names the last rows before it, its anchors, and
the page it stands for is read so that it overlaps them; where they are found, the list goes on.
That takes no call more than reading by number alone, unless rows have moved by more than the
overlap: then pages before and behind are looked at as well.

Two ways to find the place, by what is known of a list's order:

``ByRank``   rows ascend by something that never changes, such as an id. Exact, also when the
             anchor itself is gone.
``ByMark``   the order stays, but is not known to us (a collation, a school's own order). Exact
             while one of the last ``ANCHORS`` rows is still there and as it was, no more than a few
             pages off. When none is, the number of rows is believed, which may hide or repeat as
             many rows as were deleted or inserted before them.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeAlias, TypeVar
from urllib.parse import quote, unquote

ANCHORS: Final = 3
_SEPARATOR: Final = ";"
_DIGITS: Final = 12
_FAR_ROWS: Final = 50

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)


@dataclass(frozen=True, slots=True)
class Anchor:
    """A place in a list.

    Attributes:
        offset: How many rows lay before it when it was written.
        marks: Of the last of them, the very last at the end.
    """

    offset: int
    marks: tuple[str, ...]

    def __str__(self) -> str:
        return _SEPARATOR.join([str(self.offset), *(quote(mark, safe="") for mark in self.marks)])

    @classmethod
    def parse(cls, text: str) -> Anchor | None:
        """Read the text form; a bare number is a place without anchors, ``None`` for others."""
        offset, *marks = text.split(_SEPARATOR)
        if not (offset.isascii() and offset.isdigit() and len(offset) <= _DIGITS):
            return None
        return cls(int(offset), tuple(map(unquote, marks)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch(Generic[T]):
    """Rows that follow each other in a list.

    Attributes:
        rows: As the provider has them.
        offset: How many rows lie before the first.
        more: Whether any come behind the last.
    """

    rows: Sequence[T]
    offset: int
    more: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Behind(Generic[T]):
    """What comes behind an anchor.

    Attributes:
        rows: None of them was before the anchor.
        anchors: The place behind each row.
        more: Whether any come behind the last.
    """

    rows: Sequence[T]
    anchors: Sequence[Anchor]
    more: bool


ReadStretch: TypeAlias = Callable[[int, int], Awaitable[Stretch[T]]]
"""Reads a stretch, given the offset of a row it must hold and how many are wanted from there.

It may begin earlier and end earlier, but holds that row unless the list has become shorter.
"""


@dataclass(frozen=True, slots=True)
class Found:
    """Where a list goes on in a stretch.

    Attributes:
        index: Of the first row behind the anchor.
        certain: Whether no row before the anchor can lie further on.
    """

    index: int
    certain: bool = True


class Find(Protocol[T_contra]):
    """A way to find a place.

    Attributes:
        looks: How many pages, before and behind the expected one, are looked through.
    """

    looks: int

    def __call__(
        self, rows: Sequence[T_contra], anchor: Anchor, /, *, is_start: bool
    ) -> Found | None:
        """Return where the list goes on behind the anchor; ``None`` when it cannot be told.

        Args:
            rows: A stretch of the list.
            anchor: With at least one mark.
            is_start: Whether the stretch begins the list.
        """


@dataclass(frozen=True, slots=True)
class ByRank(Generic[T]):
    """Finds places in a list that ascends by a rank that its marks hold.

    Attributes:
        rank_of: A row's rank.
        rank_of_mark: The same rank, of a row's mark.
    """

    rank_of: Callable[[T], Any]
    rank_of_mark: Callable[[str], Any]
    looks: int = sys.maxsize

    def __call__(self, rows: Sequence[T], anchor: Anchor, /, *, is_start: bool) -> Found | None:
        """Return the first row of a higher rank than the last anchor, if none before is missing."""
        last = self.rank_of_mark(anchor.marks[-1])
        if not is_start and not (rows and self.rank_of(rows[0]) <= last):
            return None
        behind = (at for at, row in enumerate(rows) if self.rank_of(row) > last)
        return Found(next(behind, len(rows)))


@dataclass(frozen=True, slots=True)
class ByMark(Generic[T]):
    """Finds places in a list whose order is not known, by the anchors themselves."""

    mark_of: Callable[[T], str]
    looks: int = 2

    def __call__(self, rows: Sequence[T], anchor: Anchor, /, *, is_start: bool) -> Found | None:
        """Return the row behind the last anchor that is there."""
        index_by_mark = {self.mark_of(row): at for at, row in enumerate(rows)}
        for mark in reversed(anchor.marks):
            if mark in index_by_mark:
                return Found(index_by_mark[mark] + 1, certain=mark == anchor.marks[-1])
        # All that ever lay before the place is gone.
        return Found(0) if is_start and anchor.offset <= len(anchor.marks) else None


async def read_behind(
    anchor: Anchor | None,
    limit: int,
    *,
    read: ReadStretch[T],
    mark_of: Callable[[T], str],
    find: Find[T],
) -> Behind[T]:
    """Return at most ``limit`` rows behind an anchor, in one call unless rows have moved far.

    Args:
        anchor: ``None`` for the beginning of the list.
        limit: At least one.
        read: Reads stretches, each in one call.
        mark_of: A row's mark: never the same for two rows, and another one when a row changes
            its place in the order.
        find: A ``ByRank`` or a ``ByMark``.

    Raises:
        ProviderError: The provider could not answer.
    """
    if anchor is None or not anchor.marks:
        stretch = await read(0 if anchor is None else anchor.offset, limit)
        first = 0 if anchor is None else max(0, anchor.offset - stretch.offset)
    else:
        stretch, first = await _stretch_behind(anchor, limit, read=read, find=find)
    rows = stretch.rows[first : first + limit]
    marks = [mark_of(row) for row in stretch.rows[: first + limit]]
    return Behind(
        rows=rows,
        anchors=[
            Anchor(stretch.offset + at, tuple(marks[max(0, at - ANCHORS) : at]))
            for at in range(first + 1, first + len(rows) + 1)
        ],
        more=stretch.more or first + limit < len(stretch.rows),
    )


async def _stretch_behind(
    anchor: Anchor, limit: int, *, read: ReadStretch[T], find: Find[T]
) -> tuple[Stretch[T], int]:
    """Return a stretch that begins before the anchor, and the index of the first row behind."""
    begins = max(0, anchor.offset - len(anchor.marks))
    expected = await read(begins, anchor.offset - begins + limit)
    far, stretch, looks = max(limit, _FAR_ROWS), expected, 0
    found = find(expected.rows, anchor, is_start=expected.offset == 0)
    while found is None and stretch.offset > 0 and looks < find.looks:
        begins, looks = max(0, stretch.offset - far), looks + 1
        stretch = await read(begins, stretch.offset - begins + 1)
        found = find(stretch.rows, anchor, is_start=stretch.offset == 0)
    best, ahead, looks = (stretch, found), expected if found is None else stretch, 0
    while (found is None or not found.certain) and ahead.more and looks < find.looks:
        ahead, looks = await read(ahead.offset + len(ahead.rows), far), looks + 1
        found = find(ahead.rows, anchor, is_start=False)
        if found is not None:
            best = ahead, found
    stretch, found = best
    if found is None:
        index = anchor.offset - expected.offset
        return expected, min(max(0, index), len(expected.rows))
    return await _forward(stretch, found.index, anchor, limit, read=read, find=find)


async def _forward(
    stretch: Stretch[T],
    first: int,
    anchor: Anchor,
    limit: int,
    *,
    read: ReadStretch[T],
    find: Find[T],
) -> tuple[Stretch[T], int]:
    """Return the stretch and the index if a row lies behind it, else those that come next."""
    while first == len(stretch.rows) and stretch.more:
        ends = stretch.offset + len(stretch.rows)
        stretch = await read(max(0, ends - 1), limit + 1)
        if stretch.more and stretch.offset + len(stretch.rows) <= ends:
            stretch = await read(ends, limit)
        found = find(stretch.rows, anchor, is_start=stretch.offset == 0)
        expected = min(max(0, ends - stretch.offset), len(stretch.rows))
        first = expected if found is None else found.index
    return stretch, first


def page_over(offset: int, limit: int, *, most: int) -> tuple[int, int]:
    """Return size and number, from 1 on, of the page that serves a stretch best in one call.

    Of the pages of at most ``most`` rows that hold the row at the offset, the smallest of those
    that reach furthest into the stretch.
    """
    ends = offset + limit

    def reach(size: int) -> tuple[int, int]:
        return min((offset // size + 1) * size, ends), -size

    size = max(range(max(1, min(limit, most) // 2), most + 1), key=reach)
    return size, offset // size + 1
