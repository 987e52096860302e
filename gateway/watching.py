"""What the gateway tells of every GraphQL operation: metrics, and log lines of slow ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

import structlog

from gateway.logs import traced
from gateway.metrics import Metrics
from resolvers.context import RequestContext
from resolvers.operations import Operation
from sessions.inside import Inside
from sessions.metering import Meter, current_meter, metering

if TYPE_CHECKING:
    from gateway.tracing import Tracing  # an extra, imported where it is asked for

_log = structlog.get_logger(__name__)


class Watching:
    """Watches over operations for an operator.

    Args:
        metrics: Hear of each.
        tracing: Makes a span of each; ``None`` when nothing is traced.
        is_trusted: Whether a document is one that the operator registered.
        slow_seconds: One that takes longer has a log line of its own; 0 for none.
    """

    def __init__(
        self,
        metrics: Metrics,
        tracing: Tracing | None,
        *,
        is_trusted: Callable[[str], bool],
        slow_seconds: float,
    ) -> None:
        self._metrics = metrics
        self._tracing = tracing
        self._is_trusted = is_trusted
        self._slow_seconds = slow_seconds

    def watch(self, context: RequestContext) -> AbstractContextManager[Operation]:
        """Watch over an operation, as ``OperationWatcher`` has it.

        Its calls are counted by the meter around, or by one of its own.
        """
        watch = _Watch(self, context)
        return watch if self._tracing is None else self._traced(watch, self._tracing)

    @contextmanager
    def _traced(self, watch: _Watch, tracing: Tracing) -> Iterator[Operation]:
        with tracing.operation(watch.context, watch.operation), watch as operation:
            yield operation

    def tell(
        self, context: RequestContext, operation: Operation, meter: Meter, *, seconds: float
    ) -> None:
        """Tell of an operation that ended."""
        self._metrics.on_operation(
            operation,
            seconds=seconds,
            calls=meter.calls,
            is_trusted=self._is_trusted(operation.document),
        )
        named = _named(operation)
        _members.get({}).update(named, **traced())
        if 0 < self._slow_seconds <= seconds:
            _log.warning(
                "slow_operation",
                **named,
                outcome=operation.outcome.value,
                seconds=round(seconds, 3),
                providers=_providers(meter),
                key_id=context.access.key_id,
                request_id=context.request_id,
            )


class _Watch:
    """Watches over one operation; made by hand because it is on the path of every request."""

    __slots__ = ("_began_at", "_meter", "_metering", "_watching", "context", "operation")

    def __init__(self, watching: Watching, context: RequestContext) -> None:
        self.context = context
        self.operation = Operation()
        self._watching = watching
        self._metering: Inside[Meter] | None = None
        self._meter: Meter
        self._began_at: float

    def __enter__(self) -> Operation:
        """Begin."""
        around = current_meter()
        self._meter = around or Meter()
        if around is None:
            self._metering = metering(self._meter)
            self._metering.__enter__()
        self._began_at = time.perf_counter()
        return self.operation

    def __exit__(self, *error: object) -> None:
        if self._metering is not None:
            self._metering.__exit__(*error)
        seconds = time.perf_counter() - self._began_at
        self._watching.tell(self.context, self.operation, self._meter, seconds=seconds)


def gathering() -> Inside[dict[str, Any]]:
    """Gather what the log line of a request says of the operation that is executed inside."""
    return Inside(_members, {})


def _named(operation: Operation) -> dict[str, Any]:
    """Return what an operation is known by; the document itself may hold what nobody should see."""
    return {
        "operation": operation.name,
        "operation_type": operation.kind and operation.kind.value,
        "document_sha256": operation.document_sha256,
    }


def _providers(meter: Meter) -> list[dict[str, Any]]:
    """Return where an operation's time went; calls side by side add up to more than it took."""
    return [
        {
            "provider_id": provider_id,
            "calls": usage.calls,
            "waited_seconds": round(usage.waited_seconds, 3),
            "upstream_seconds": round(usage.upstream_seconds, 3),
            "bytes": usage.body_bytes,
            "cache_hits": usage.cache_hits,
            "shared": usage.shared,
        }
        for provider_id, usage in meter.usage_by_provider.items()
    ]


_members: Final[ContextVar[dict[str, Any]]] = ContextVar("members")
