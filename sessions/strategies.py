"""Which way a platform chose to answer, and what each way would have cost, for who asks.

A platform that can read the same thing in several ways counts the upstream calls of each and
takes the cheapest. What it chose is noted here; a request that wants to know listens with
``listening``, all others cost nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One choice between ways to read something.

    Attributes:
        subject: Whose session it was, as text.
        wanted: What was to be read, such as ``enrollments by user``.
        keys: For how many keys.
        chosen: Name of the way taken, such as ``graphql by user``.
        calls_by_strategy: Upstream calls each possible way was reckoned to cost.
        reason: Why not the cheapest, where it is not; for a person.
    """

    provider_id: str
    subject: str
    wanted: str
    keys: int
    chosen: str
    calls_by_strategy: Mapping[str, int]
    reason: str | None = None


_listener: ContextVar[list[Choice] | None] = ContextVar("choices", default=None)


@contextmanager
def listening() -> Iterator[list[Choice]]:
    """Gather the choices made inside, in this task and those it starts."""
    choices: list[Choice] = []
    token = _listener.set(choices)
    try:
        yield choices
    finally:
        _listener.reset(token)


def note_choice(choice: Choice) -> None:
    """Tell of a choice, if anybody listens."""
    choices = _listener.get()
    if choices is not None:
        choices.append(choice)
