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

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeAlias, TypeVar
from urllib.parse import quote, unquote

ANCHORS: Final = 3
_SEPARATOR: Final = ";"
_DIGITS: Final = 12
_FAR_ROWS: Final = 50

T = TypeVar("T")


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


class Find(Protocol[T]):
    """A way to find the place behind an anchor."""

    async def __call__(
        self, anchor: Anchor, limit: int, read: ReadStretch[T], /
    ) -> tuple[Stretch[T], int]:
        """Return a stretch, and which of its rows is the first behind the anchor.

        There is such a row, unless the anchor is at the end of the list.

        Args:
            anchor: With at least one mark.
            limit: How many rows are wanted.
            read: Reads stretches, each in one call.
        """


@dataclass(frozen=True, slots=True)
class ByRank(Generic[T]):
    """Finds places in a list that ascends by a rank that its marks hold.

    A stretch that begins with a row no higher than the anchor holds all that follows it.

    Attributes:
        rank_of: A row's rank.
        rank_of_mark: The same rank, of a row's mark.
    """

    rank_of: Callable[[T], Any]
    rank_of_mark: Callable[[str], Any]

    async def __call__(
        self, anchor: Anchor, limit: int, read: ReadStretch[T], /
    ) -> tuple[Stretch[T], int]:
        """Return the rows of a higher rank, looking at earlier pages when some may be missing."""
        last = self.rank_of_mark(anchor.marks[-1])
        begins = max(0, anchor.offset - 1)
        stretch = await read(begins, anchor.offset - begins + limit)
        while stretch.offset > 0 and not (stretch.rows and self.rank_of(stretch.rows[0]) <= last):
            begins = max(0, stretch.offset - max(limit, _FAR_ROWS))
            stretch = await read(begins, limit + 1)
        first = self._first_behind(stretch, last)
        while first == len(stretch.rows) and stretch.more:
            stretch = await _next_stretch(stretch, limit, read)
            first = self._first_behind(stretch, last)
        return stretch, first

    def _first_behind(self, stretch: Stretch[T], last: Any) -> int:
        behind = (at for at, row in enumerate(stretch.rows) if self.rank_of(row) > last)
        return next(behind, len(stretch.rows))


@dataclass(frozen=True, slots=True)
class ByMark(Generic[T]):
    """Finds places in a list whose order is not known, by the anchors themselves."""

    mark_of: Callable[[T], str]

    async def __call__(
        self, anchor: Anchor, limit: int, read: ReadStretch[T], /
    ) -> tuple[Stretch[T], int]:
        """Return what follows the last anchor that is there, looking at pages around if need be."""
        begins = max(0, anchor.offset - len(anchor.marks))
        expected = stretch = await read(begins, anchor.offset - begins + limit)
        number, first = self._find(expected, anchor)
        if number < len(anchor.marks) - 1:
            number, stretch, first = await self._look_around(anchor, expected, limit, read)
        if number < 0:
            return expected, min(max(0, _trusted(anchor) - expected.offset), len(expected.rows))
        if first == len(stretch.rows) and stretch.more:
            ends = stretch.offset + len(stretch.rows)
            stretch = await _next_stretch(stretch, limit, read)
            first = min(max(0, ends - stretch.offset), len(stretch.rows))
        return stretch, first

    def _find(self, stretch: Stretch[T], anchor: Anchor) -> tuple[int, int]:
        """Return the number of the last anchor in a stretch, -1 for none, and what follows it."""
        index_by_mark = {self.mark_of(row): at for at, row in enumerate(stretch.rows)}
        for number in reversed(range(len(anchor.marks))):
            if anchor.marks[number] in index_by_mark:
                return number, index_by_mark[anchor.marks[number]] + 1
        return -1, 0

    async def _look_around(
        self, anchor: Anchor, expected: Stretch[T], limit: int, read: ReadStretch[T]
    ) -> tuple[int, Stretch[T], int]:
        """Return the last anchor in the rows around a stretch, in which the very last is not."""
        number, first = self._find(expected, anchor)
        best, far = (number, expected, first), max(limit, _FAR_ROWS)
        ends = expected.offset + len(expected.rows)
        at = max(0, expected.offset - far) if number < 0 else ends
        stop, more = ends + far, number < 0 or expected.more
        while more and at < stop and best[0] < len(anchor.marks) - 1:
            stretch = await read(at, far)
            number, first = self._find(stretch, anchor)
            if number > best[0]:
                best = number, stretch, first
            at, more = stretch.offset + len(stretch.rows), stretch.more
        return best


def _trusted(anchor: Anchor) -> int:
    """Return how many rows lie before a place of which no anchor is found.

    None, if those that did were all named and are all gone; else as many as it says.
    """
    return 0 if anchor.offset <= len(anchor.marks) else anchor.offset


async def _next_stretch(stretch: Stretch[T], limit: int, read: ReadStretch[T]) -> Stretch[T]:
    """Return the rows that come after a stretch, overlapping it if one call can hold both."""
    ends = stretch.offset + len(stretch.rows)
    following = await read(max(0, ends - 1), limit + 1)
    if following.more and following.offset + len(following.rows) <= ends:
        return await read(ends, limit)
    return following


def anchors_of(marks: Sequence[str], *, offset: int) -> list[Anchor]:
    """Return the place behind each of some rows that follow each other.

    Args:
        marks: Of the rows.
        offset: How many rows lie before the first.
    """
    return [
        Anchor(offset + end, tuple(marks[max(0, end - ANCHORS) : end]))
        for end in range(1, len(marks) + 1)
    ]


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
        mark_of: A row's mark: never the same for two rows, and another one exactly when a row
            changes its place in the order.
        find: A ``ByRank`` or a ``ByMark``.

    Raises:
        ProviderError: The provider could not answer.
    """
    anchor = anchor or Anchor(0, ())
    if anchor.marks:
        stretch, first = await find(anchor, limit, read)
    else:
        stretch = await read(anchor.offset, limit)
        first = max(0, anchor.offset - stretch.offset)
    rows = stretch.rows[first : first + limit]
    marks = [mark_of(row) for row in stretch.rows[: first + limit]]
    earlier = [mark for mark in anchor.marks if mark not in marks]
    anchors = anchors_of([*earlier, *marks], offset=stretch.offset - len(earlier))
    return Behind(
        rows=rows,
        anchors=anchors[len(earlier) + first :],
        more=stretch.more or first + limit < len(stretch.rows),
    )


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
