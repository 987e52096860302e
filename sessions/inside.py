"""What holds for everything done inside a block, in this task and those it starts."""

from __future__ import annotations

from contextvars import ContextVar, Token
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Inside(Generic[T]):
    """Gives a variable a value for as long as a block lasts: ``with Inside(variable, value):``.

    Made by hand because several of them are on the path of every call: a generator would cost
    four times as much. To be entered once.

    Args:
        variable: Has its value before again at the end.
        value: What it has inside.
    """

    __slots__ = ("_token", "_value", "_variable")

    def __init__(self, variable: ContextVar[T] | ContextVar[T | None], value: T) -> None:
        self._variable = variable
        self._value = value
        self._token: Token[Any]

    def __enter__(self) -> T:
        """Begin; return the value."""
        self._token = self._variable.set(self._value)
        return self._value

    def __exit__(self, *_error: object) -> None:
        self._variable.reset(self._token)
