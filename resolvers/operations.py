"""What is told of one GraphQL operation to whoever watches over what the gateway does."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from resolvers.context import RequestContext


class OperationKind(StrEnum):
    """What an operation is, in GraphQL's own words."""

    QUERY = "query"
    MUTATION = "mutation"
    SUBSCRIPTION = "subscription"


class Outcome(StrEnum):
    """What became of an operation.

    OK: answered whole; PARTIAL: answered with errors beside the data; FAILED: executed, and there
    is no data; REFUSED: not executed; INTERNAL: an error of ours is in the answer; CANCELLED: not
    answered, because the caller left.
    """

    OK = "ok"
    PARTIAL = "partial"
    FAILED = "failed"
    REFUSED = "refused"
    INTERNAL = "internal"
    CANCELLED = "cancelled"


@dataclass(slots=True, kw_only=True)
class Operation:
    """One operation, or one event of a subscription; what is known of it grows as it is executed.

    Attributes:
        document: The text it is in; empty when there is none.
        kind: ``None`` when the document was not read or does not say which operation is meant.
        name: ``None`` when it has none, or as with ``kind``.
        outcome: What became of it.
        limits: Names of those that refused it or a part of it, each once.
        executed_by: ``plan``, or why there was no plan for it; ``None`` when it was not executed.
    """

    document: str = field(default="", repr=False)
    kind: OperationKind | None = None
    name: str | None = None
    outcome: Outcome = Outcome.CANCELLED
    limits: frozenset[str] = frozenset()
    executed_by: str | None = None

    @property
    def document_sha256(self) -> str | None:
        """SHA-256 of the document's text, in hex; ``None`` when there is none."""
        if not self.document:
            return None
        return hashlib.sha256(self.document.encode("utf-8", "surrogatepass")).hexdigest()

    def note_answer(self, answer: Mapping[str, Any]) -> None:
        """Take note of the answer, as GraphQL has it."""
        errors: Iterable[Mapping[str, Any]] = answer.get("errors", ())
        if not errors and answer.get("data") is not None:  # as nearly always
            self.limits, self.outcome = frozenset(), Outcome.OK
            return
        told = [error.get("extensions", {}) for error in errors]
        self.limits = frozenset(one["limit"] for one in told if "limit" in one)
        if any(one.get("code") == "INTERNAL" for one in told):
            self.outcome = Outcome.INTERNAL
        elif "data" not in answer:
            self.outcome = Outcome.REFUSED
        elif answer["data"] is None:
            self.outcome = Outcome.FAILED
        else:
            self.outcome = Outcome.PARTIAL if told else Outcome.OK


class OperationWatcher(Protocol):
    """Hears of every operation."""

    def watch(self, context: RequestContext, /) -> AbstractContextManager[Operation]:
        """Watch over an operation for as long as the block lasts.

        What is done inside, in this task and in those it starts, is the operation's doing. The
        block says of the operation what it finds out, until it ends.
        """
