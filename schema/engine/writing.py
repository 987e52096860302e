"""Writes answers as JSON piece by piece, so that nobody waits for a long one and it is not doubled.

A long list is written a few rows at a time. Only what objects hold is looked into for long lists,
not what other lists do: rows inside rows go with their row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from schema.engine.plans import Row

_ROWS: Final = 64
_PIECE_BYTES: Final = 64 * 1024


class Written:
    """JSON that stands in an answer as it is.

    Attributes:
        pieces: Of the JSON, in order.
        values: How many values it holds.
    """

    __slots__ = ("pieces", "values")

    def __init__(self, pieces: Sequence[bytes], values: int) -> None:
        self.pieces = pieces
        self.values = values


def _as_it_is(value: object) -> msgspec.Raw:
    """Have the encoder take over what is written already."""
    if not isinstance(value, Written):
        raise TypeError(f"{type(value).__name__} cannot be in an answer")
    return msgspec.Raw(b"".join(value.pieces))


_ENCODER: Final = msgspec.json.Encoder(enc_hook=_as_it_is)


def pieces_of(
    answer: Any, *, rows: int = _ROWS, piece_bytes: int = _PIECE_BYTES
) -> Iterator[bytes]:
    """Yield the JSON of an answer in pieces, at least one.

    Joined they are what msgspec writes at once. The answer must not change meanwhile.

    Args:
        answer: Of dicts, lists, leaves, and what plans make.
        rows: Of a long list, so many are written at a time.
        piece_bytes: A piece is as long, or longer by as many rows; the last may be shorter.
    """
    held: list[bytes] = []
    size = 0
    for fragment in _fragments(answer, rows):
        held.append(fragment)
        size += len(fragment)
        if size >= piece_bytes:
            yield b"".join(held)
            held, size = [], 0
    if held:
        yield b"".join(held)


def _fragments(value: Any, rows: int) -> Iterator[bytes]:
    if isinstance(value, Written):
        yield from value.pieces
    elif not _is_long(value, rows):
        yield _ENCODER.encode(value)
    elif isinstance(value, list):
        yield b"["
        for start in range(0, len(value), rows):
            written = _ENCODER.encode(value[start : start + rows])[1:-1]
            yield b"," + written if start else written
        yield b"]"
    else:
        names, values = _members(value)
        for place, (name, inside) in enumerate(zip(names, values, strict=True)):
            yield (b"," if place else b"{") + _ENCODER.encode(name) + b":"
            yield from _fragments(inside, rows)
        yield b"}"


def _members(value: Any) -> tuple[Sequence[str], Sequence[Any]]:
    """Return names and values of what an object of the answer holds, as they are written."""
    if isinstance(value, dict):
        return [*value], [*value.values()]
    return value.__struct_encode_fields__, msgspec.structs.astuple(value)


def _is_long(value: Any, rows: int) -> bool:
    """Whether a value is a long list, or an object that holds one."""
    if isinstance(value, list):
        return len(value) > rows
    if isinstance(value, Row):
        return any(_is_long(getattr(value, name), rows) for name in value.containers)
    if isinstance(value, dict):
        return any(_is_long(inside, rows) for inside in value.values())
    return isinstance(value, Written) and len(value.pieces) > 1
