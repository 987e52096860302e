"""Answers in parts: what ``@defer`` and ``@stream`` put off, told when it is there.

Every part is written here and nowhere else, so its errors are masked as those of a whole answer.

Source:
    https://github.com/graphql/graphql-spec/pull/1110 (``pending``, ``incremental``, ``completed``)
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypeAlias

from graphql import Executor, ExperimentalIncrementalExecutionResults, GraphQLError
from graphql.execution import (
    CompletedResult,
    IncrementalDeferResult,
    IncrementalStreamResult,
    PendingResult,
    SubsequentIncrementalExecutionResult,
)
from strawberry.schema.schema import StrawberryGraphQLCoreExecutionContext

from resolvers.context import RequestContext, SourceFailure
from resolvers.errors import BadInput
from schema.errors import formatted_errors

_Path: TypeAlias = Sequence[str | int]


class WholeExecutor(StrawberryGraphQLCoreExecutionContext):
    """Answers as if nothing were put off: for callers who take one answer only."""

    execute_collected_root_fields = Executor.execute_collected_root_fields
    handle_stream = Executor.handle_stream
    build_response = Executor.build_response

    def execute_collected_subfields(self, *args: Any) -> Any:
        """Execute fields, those of deferred fragments among them."""
        return Executor.execute_collected_subfields(self, *args)


class PartsExecutor(StrawberryGraphQLCoreExecutionContext):
    """Answers in parts."""

    def get_stream_usage(self, *args: Any) -> Any:
        """Return how a list is streamed; a wrong number is the caller's mistake."""
        try:
            return super().get_stream_usage(*args)
        except ValueError:
            raise BadInput("initialCount", "A number from 0 on is needed here") from None


class Delivery:
    """Writes the parts of one answer; ``cancel`` it when it ends, however it does.

    Args:
        results: What execution gave.
        executor: Gave it.
        context: Of the request. A provider's failure is told in the part that holds its field.
    """

    def __init__(
        self,
        results: ExperimentalIncrementalExecutionResults,
        executor: Executor[Any],
        context: RequestContext,
    ) -> None:
        self._results = results
        self._executor = executor
        self._context = context
        self._paths: dict[str, _Path] = {}
        self._errors: list[dict[str, Any]] = []

    def first(self) -> dict[str, Any]:
        """Return the part that nothing was put off of."""
        result = self._results.initial_result
        part: dict[str, Any] = {"data": result.data}
        failures = self._take_failures((), result.data)
        if errors := self._formatted(result.errors, failures):
            part["errors"] = errors
        return {**part, "pending": self._pending(result.pending), "hasNext": True}

    async def rest(self) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the other parts; the last one has ``hasNext`` false."""
        async with aclosing(self._results.subsequent_results) as results:
            async for result in results:
                yield self._part(result)

    def broken_off(self, errors: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the last part of an answer that cannot be gone on with."""
        completed = [{"id": part_id, "errors": errors} for part_id in self._paths]
        return {"completed": completed, "hasNext": False}

    @property
    def told(self) -> Mapping[str, Any]:
        """The data of the first part, and the errors of all so far."""
        return {"data": self._results.initial_result.data, "errors": self._errors}

    async def cancel(self) -> None:
        """Give up what is still put off; nobody waits for it any more."""
        await self._executor.cancel_incremental_work()

    def _part(self, result: SubsequentIncrementalExecutionResult) -> dict[str, Any]:
        part: dict[str, Any] = {}
        if result.pending:
            part["pending"] = self._pending(result.pending)
        if result.incremental:
            # The innermost first: a failure belongs to the smallest piece that holds its field.
            errors_by_piece = {
                id(piece): self._errors_of(piece)
                for piece in sorted(result.incremental, key=self._depth, reverse=True)
            }
            part["incremental"] = [
                _piece(piece, errors_by_piece[id(piece)]) for piece in result.incremental
            ]
        if result.completed:
            part["completed"] = [self._completed(one) for one in result.completed]
        return {**part, "hasNext": result.has_next}

    def _pending(self, pending: Sequence[PendingResult]) -> list[dict[str, Any]]:
        self._paths.update((one.id, one.path) for one in pending)
        return [dict(one.formatted) for one in pending]

    def _completed(self, completed: CompletedResult) -> dict[str, Any]:
        self._paths.pop(completed.id)
        if not completed.errors:
            return {"id": completed.id}
        return {"id": completed.id, "errors": self._formatted(completed.errors, ())}

    def _errors_of(
        self, piece: IncrementalDeferResult | IncrementalStreamResult
    ) -> list[dict[str, Any]]:
        data = piece.data if isinstance(piece, IncrementalDeferResult) else None
        failures = self._take_failures(self._path_of(piece), data)
        return self._formatted(piece.errors, failures)

    def _formatted(
        self, errors: Sequence[GraphQLError] | None, failures: Sequence[SourceFailure]
    ) -> list[dict[str, Any]]:
        formatted = formatted_errors(errors, self._context, failures=failures)
        self._errors += formatted
        return formatted

    def _depth(self, piece: IncrementalDeferResult | IncrementalStreamResult) -> int:
        return len(self._path_of(piece))

    def _path_of(self, piece: IncrementalDeferResult | IncrementalStreamResult) -> _Path:
        return [*self._paths[piece.id], *(piece.sub_path or ())]

    def _take_failures(self, path: _Path, data: Mapping[str, Any] | None) -> list[SourceFailure]:
        """Take the failures of fields below a path that ``data`` has, where it is known."""
        own: list[SourceFailure] = []
        others: list[SourceFailure] = []
        for failure in self._context.failures:
            is_below = list(failure.path[: len(path)]) == list(path)
            is_own = is_below and _holds(data, failure.path[len(path) :])
            (own if is_own else others).append(failure)
        self._context.failures[:] = others
        return own


def _piece(
    piece: IncrementalDeferResult | IncrementalStreamResult, errors: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    written: dict[str, Any] = {"id": piece.id}
    if piece.sub_path:
        written["subPath"] = piece.sub_path
    if isinstance(piece, IncrementalDeferResult):
        written["data"] = piece.data
    else:
        written["items"] = piece.items
    return {**written, "errors": errors} if errors else written


def _holds(data: Any, path: _Path) -> bool:
    """Whether data has a field, or has been emptied above it."""
    for step in path:
        if data is None:
            return True
        if isinstance(step, int):
            if not isinstance(data, list) or step >= len(data):
                return False
        elif step not in data:
            return False
        data = data[step]
    return True
