"""Who traces what is done, and which span it belongs to; nothing here knows how spans are kept.

A span is current for a task and those it starts, as a ``Meter`` is. What works for all who wait
has a span of its own or of whoever began it; the others' spans are linked to that one.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from sessions.inside import Inside


class Span(Protocol):
    """Something that takes time and is told of to an operator's tracing system."""

    @property
    def trace_id(self) -> str:
        """Of the trace it is part of, in hex."""

    @property
    def span_id(self) -> str:
        """Its own, in hex."""

    def link(self, other: Span, /) -> None:
        """Say that it waited for what another one did."""


@runtime_checkable
class WorkSpan(Span, Protocol):
    """That of something done for everybody: a session's transition, a timed export, an import."""

    def note_outcome(self, outcome: str, /) -> None:
        """Say what came of it."""


class CallSpan(Protocol):
    """That of one request to a provider."""

    @property
    def headers(self) -> Mapping[str, str]:
        """What tells the provider of the trace; empty where it is not to be told."""

    def end(self, *, status: int | None, error: str | None) -> None:
        """Say that the request ended.

        Args:
            status: Of the answer; ``None`` when there was none.
            error: Code of the error it ended in; ``None`` when it was answered.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class OutgoingCall:
    """One request that is about to be sent to a provider.

    Attributes:
        provider_id: ``None`` when it goes to the product.
        url: Without query; of a file elsewhere only the host, because such addresses are secrets.
        template: Of the path; ``None`` of a file elsewhere.
        host: It goes to.
        port: The same.
        resends: How many times it was sent before.
    """

    provider_id: str | None
    method: str
    url: str
    template: str | None
    host: str
    port: int
    resends: int


class Tracer(Protocol):
    """Makes spans; its methods must be quick and must not raise."""

    def begin_call(self, call: OutgoingCall, /) -> CallSpan:
        """Begin the span of a request, as part of the current one."""

    def work(self, name: str, /, *, provider_id: str | None) -> AbstractContextManager[WorkSpan]:
        """Have a span of some work, which is current for as long as the block lasts."""


def current_span() -> Span | None:
    """Return the span that what is done here belongs to, if it is traced."""
    return _current.get()


def spanning(span: Span) -> Inside[Span]:
    """Let everything done inside, in this task and those it starts, belong to a span."""
    return Inside(_current, span)


def working(
    tracer: Tracer | None, name: str, *, provider_id: str | None
) -> AbstractContextManager[WorkSpan | None]:
    """Have a span of some work done inside, if it is traced."""
    return nullcontext() if tracer is None else tracer.work(name, provider_id=provider_id)


def link_to(span: Span | None) -> None:
    """Say of the current span that it waits for what another one does, if both are traced."""
    mine = _current.get()
    if mine is not None and span is not None and mine is not span:
        mine.link(span)


_current: ContextVar[Span | None] = ContextVar("span", default=None)
