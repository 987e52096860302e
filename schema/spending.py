"""What one operation may cost, is charged for, and has cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from graphql import OperationDefinitionNode

from resolvers.context import RequestContext
from resolvers.errors import RequestLimitExceeded
from resolvers.quotas import Charge
from schema.costs import DocumentCosts, count_values


class Spending:
    """The account of one operation, or of one event of a subscription, settled when it ends.

    One that is broken off before it is answered costs what it was estimated at: what was done for
    it was done.

    Args:
        context: Of the request; its key is charged.

    Attributes:
        estimated: What it costs at most.
    """

    def __init__(self, context: RequestContext) -> None:
        self._context = context
        self.estimated = 0
        self._limit = self._actual = 0
        self._is_answered = False
        self._charge: Charge | None = None

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Charge what it came to instead of the estimate."""
        if self._charge is not None:
            self._charge.actual = self._actual if self._is_answered else self.estimated
            self._charge.settle()

    def estimate(
        self,
        costs: DocumentCosts,
        operation: OperationDefinitionNode,
        variables: Mapping[str, Any],
    ) -> None:
        """Find out what the operation costs at most.

        Raises:
            RequestLimitExceeded: That is more than one operation may cost.
        """
        self._limit = costs.model.max_cost
        self.estimated = costs.estimate(operation, variables)
        if 0 < self._limit < self.estimated:
            path, part = costs.costliest(operation, variables)
            path = path or "its own fields"
            raise RequestLimitExceeded(
                f"The operation is estimated at a cost of {self.estimated}, and {self._limit} is"
                f" the most one may cost; {part} of it is for {path}: ask for fewer rows, or for"
                " fewer fields of each",
                limit="cost",
            )

    def again(self) -> Spending:
        """Return the account of another event with the same estimate."""
        other = Spending(self._context)
        other._limit, other.estimated = self._limit, self.estimated
        return other

    def begin(self) -> None:
        """Charge for the operation what it was estimated at.

        Raises:
            QuotaExceeded: It is more than the key has left, or the key has too much under way.
        """
        if self._context.quotas is not None:
            key_id = self._context.access.key_id
            self._charge = self._context.quotas.begin(key_id, cost=self.estimated)

    def noted(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Count what is in the answer, or in a part of it, and return it."""
        self._is_answered = True
        self._actual += count_values(answer.get("data") or {})
        for part in answer.get("incremental", ()):
            self._actual += count_values(part.get("data") or part.get("items") or {})
        return answer

    def told(self) -> Mapping[str, int | None]:
        """Return it as callers are shown it."""
        return {
            "estimated": self.estimated,
            "actual": self._actual,
            "limit": self._limit or None,
        }
