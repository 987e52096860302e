"""Prometheus metrics of one process, in a registry of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any, Final, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from gateway.admission import Load
from resolvers.caching import CacheCounts
from resolvers.icons import IconCounts
from resolvers.operations import Operation, Outcome
from sessions.errors import ProviderError
from sessions.http import UpstreamCall
from sessions.resilience import BreakerState, ProviderHealth, RefusalReason
from storage.leases import Outcome as TransitionOutcome
from storage.leases import Transition
from storage.matching import MatchRunState
from storage.records import SessionState

_SECONDS: Final = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SHORT_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_LONG_SECONDS: Final = (0.1, 1, 5, 10, 30, 60, 300, 1800, 7200)
_MOST_OPERATIONS: Final = 100
_LONGEST_NAME: Final = 100
_LATE: Final = (0.1, 0.5, 1, 2, 5, 10, 30, 60)

M = TypeVar("M", Counter, Histogram)


class Metrics:
    """Hears of requests, upstream calls and sessions, and writes them down for Prometheus."""

    def __init__(self) -> None:
        # They are a second series beside each that nobody asks for.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus-client's own
        self._registry = CollectorRegistry()
        self._series: dict[tuple[object, tuple[str | int, ...]], Counter | Histogram] = {}
        self._requests = Counter(
            "learning_gateway_requests",
            "Requests answered, by route and status",
            ["route", "status"],
            registry=self._registry,
        )
        self._request_seconds = Histogram(
            "learning_gateway_request_seconds",
            "Time to the end of the answer, by route",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._request_calls = Counter(
            "learning_gateway_request_upstream_calls",
            "Calls to providers, by the route of the REST surface they were made for",
            ["route"],
            registry=self._registry,
        )
        self._operation_seconds = Histogram(
            "learning_gateway_operation_seconds",
            "Time of GraphQL operations, and of each event of a subscription",
            ["operation", "type", "outcome"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._operation_calls = Counter(
            "learning_gateway_operation_upstream_calls",
            "Calls to providers, by the GraphQL operation they were made for",
            ["operation", "type"],
            registry=self._registry,
        )
        self._executions = Counter(
            "learning_gateway_executions",
            "Executions of GraphQL operations: by a plan, or why there was none",
            ["by"],
            registry=self._registry,
        )
        self._operation_names = _Names(_MOST_OPERATIONS)
        self._limit_refusals = Counter(
            "learning_gateway_limit_refusals",
            "Requests, or parts of them, that were refused by a limit",
            ["limit"],
            registry=self._registry,
        )
        self._calls = Counter(
            "learning_gateway_upstream_calls",
            "Requests sent to providers, by outcome: a status or an error code",
            ["provider", "method", "path", "outcome"],
            registry=self._registry,
        )
        self._call_seconds = Histogram(
            "learning_gateway_upstream_call_seconds",
            "Time of one request to a provider",
            ["provider"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._call_bytes = Counter(
            "learning_gateway_upstream_body_bytes",
            "Bytes received from providers, after decompression",
            ["provider"],
            registry=self._registry,
        )
        self._transitions = Counter(
            "learning_gateway_session_transitions",
            "Log-ins, heartbeats and refreshes that ended",
            ["provider", "transition", "outcome"],
            registry=self._registry,
        )
        self._breaker_turns = Counter(
            "learning_gateway_breaker_transitions",
            "Times a provider was taken for failed (OPEN), tried again (HALF_OPEN), well (CLOSED)",
            ["provider", "state"],
            registry=self._registry,
        )
        self._refusals = Counter(
            "learning_gateway_upstream_refusals",
            "Calls not made: the provider failed before (open), asked to be left alone (resting),"
            " or too many wait (full)",
            ["provider", "reason"],
            registry=self._registry,
        )
        self._breakers = Gauge(
            "learning_gateway_breaker_state",
            "Which state each provider's breaker is in: 1 for that, 0 for the others",
            ["provider", "state"],
            registry=self._registry,
        )
        self._calls_now = Gauge(
            "learning_gateway_upstream_calls_now",
            "Calls under way to each provider",
            ["provider"],
            registry=self._registry,
        )
        self._calls_limit = Gauge(
            "learning_gateway_upstream_calls_limit",
            "Calls that may be under way at once to each provider, for now",
            ["provider"],
            registry=self._registry,
        )
        self._calls_waiting = Gauge(
            "learning_gateway_upstream_calls_waiting",
            "Calls in line for each provider",
            ["provider"],
            registry=self._registry,
        )
        self._heartbeat_lateness = Histogram(
            "learning_gateway_heartbeat_lateness_seconds",
            "How long after it was due a heartbeat or refresh began",
            buckets=_LATE,
            registry=self._registry,
        )
        self._sessions = Gauge(
            "learning_gateway_sessions",
            "Sessions in each state, over all gateways of this database",
            ["provider", "state"],
            registry=self._registry,
        )
        self._match_runs = Counter(
            "learning_gateway_match_runs",
            "Match runs that ended, by how",
            ["outcome"],
            registry=self._registry,
        )
        self._match_pairs = Counter(
            "learning_gateway_match_pairs",
            "Pairs of accounts that match runs weighed",
            registry=self._registry,
        )
        self._match_suggestions = Counter(
            "learning_gateway_match_suggestions",
            "Pairs of accounts that match runs suggested",
            registry=self._registry,
        )
        self._match_seconds = Histogram(
            "learning_gateway_match_seconds",
            "How long match runs compared two providers",
            buckets=_LONG_SECONDS,
            registry=self._registry,
        )
        self._running = self._gauge("requests_running", "Requests that run")
        self._waiting = self._gauge("requests_waiting", "Requests that wait until they may run")
        self._allowed = self._gauge("requests_allowed", "Requests that may run at once, for now")
        self._subscriptions = self._gauge(
            "subscriptions_open", "Answers that are streams of events"
        )
        self._cache_entries = self._gauge("cache_entries", "Answers held in memory")
        self._cache_bytes = self._gauge("cache_bytes", "Size of the answers held in memory")
        self._totals = _Totals()
        self._registry.register(self._totals)
        ProcessCollector(registry=self._registry)
        self._shed = Counter(
            "learning_gateway_requests_shed",
            "Requests refused for overload, which are counted here only",
            ["reason"],
            registry=self._registry,
        )
        self._queue_seconds = Histogram(
            "learning_gateway_queue_seconds",
            "How long a request waited until it might run",
            buckets=_SHORT_SECONDS,
            registry=self._registry,
        )
        self._loop_wait_seconds = Histogram(
            "learning_gateway_loop_wait_seconds",
            "How long what was ready to run waited for its turn, measured while requests run",
            buckets=_SHORT_SECONDS,
            registry=self._registry,
        )

    def _gauge(self, name: str, meaning: str) -> Gauge:
        return Gauge(f"learning_gateway_{name}", meaning, registry=self._registry)

    def _of(self, metric: M, *labels: str | int) -> M:
        """Return the series of some labels; prometheus-client takes a lock to look it up."""
        series: Any = self._series.get((metric, labels))
        if series is None:
            series = self._series[metric, labels] = metric.labels(*labels)
        return series  # type: ignore[no-any-return]  # of the same type as the metric

    def on_request(
        self, route: str, status: int, *, seconds: float, calls: int | None = None
    ) -> None:
        """Take note of an answered request, and of its calls to providers where they count."""
        self._of(self._requests, route, status).inc()
        self._of(self._request_seconds, route).observe(seconds)
        if calls is not None:
            self._of(self._request_calls, route).inc(calls)

    def on_operation(
        self, operation: Operation, *, seconds: float, calls: int, is_trusted: bool = False
    ) -> None:
        """Take note of a GraphQL operation, and of its calls to providers.

        Args:
            operation: What it was, and what became of it.
            seconds: How long it took.
            calls: How many requests were sent for it.
            is_trusted: Whether its document is registered, so that its name is no caller's.
        """
        name = self._operation_names.label_of(operation, is_trusted=is_trusted)
        kind = operation.kind or "unknown"
        self._of(self._operation_seconds, name, kind, operation.outcome).observe(seconds)
        self._of(self._operation_calls, name, kind).inc(calls)
        if operation.executed_by is not None:
            self._of(self._executions, operation.executed_by).inc()
        for limit in operation.limits:
            self.on_limit(limit)

    def on_limit(self, limit: str) -> None:
        """Take note of a request, or a part of one, that a limit refused."""
        self._limit_refusals.labels(limit).inc()

    def on_call(self, call: UpstreamCall) -> None:
        """Take note of a request sent to a provider."""
        provider = call.provider_id or "product"
        outcome = call.error or str(call.status)
        self._of(self._calls, provider, call.method, call.path, outcome).inc()
        self._of(self._call_seconds, provider).observe(call.seconds)
        self._of(self._call_bytes, provider).inc(call.body_bytes)

    def on_transition(
        self,
        provider_id: str,
        transition: Transition,
        outcome: TransitionOutcome,
        *,
        seconds: float,  # noqa: ARG002 - as in SessionObserver
    ) -> None:
        """Take note of a session's transition."""
        self._transitions.labels(provider_id, transition.value, outcome.value).inc()

    def on_heartbeat(self, provider_id: str, *, late_seconds: float) -> None:  # noqa: ARG002 - as in SessionObserver
        """Take note of a heartbeat."""
        self._heartbeat_lateness.observe(late_seconds)

    def on_match_run(self, state: MatchRunState) -> None:
        """Take note of a match run that ended."""
        self._match_runs.labels(state.value.lower()).inc()

    def on_compared(self, *, pairs: int, suggestions: int, seconds: float) -> None:
        """Take note of two providers that a match run compared."""
        self._match_pairs.inc(pairs)
        self._match_suggestions.inc(suggestions)
        self._match_seconds.observe(seconds)

    def on_admitted(self, *, waited_seconds: float) -> None:
        """Take note of a request that may run."""
        self._queue_seconds.observe(waited_seconds)

    def on_shed(self, reason: str) -> None:
        """Take note of a request refused for overload."""
        self._shed.labels(reason).inc()

    def on_loop_wait(self, seconds: float) -> None:
        """Take note of how long something that was ready waited for its turn."""
        self._loop_wait_seconds.observe(seconds)

    def on_breaker(
        self,
        provider_id: str,
        state: BreakerState,
        *,
        cause: ProviderError | None,  # noqa: ARG002 - as in SessionObserver
    ) -> None:
        """Take note that calls reach a provider, or no longer do."""
        self._breaker_turns.labels(provider_id, state.value).inc()

    def on_refusal(self, provider_id: str, reason: RefusalReason) -> None:
        """Take note of a call that was not made."""
        self._refusals.labels(provider_id, reason.value).inc()

    def write(
        self,
        sessions: Mapping[tuple[str, SessionState], int],
        icons: IconCounts,
        *,
        load: Load,
        health: Mapping[str, ProviderHealth],
        cache: CacheCounts,
    ) -> bytes:
        """Return everything in Prometheus' text format.

        Args:
            sessions: How many each provider has in each state.
            icons: What was done with icons.
            load: What the process is doing.
            health: How this process gets on with each provider it has used.
            cache: What came out of the cache of answers, and what it holds.
        """
        self._sessions.clear()
        for (provider_id, state), count in sessions.items():
            self._sessions.labels(provider_id, state.value).set(count)
        self._running.set(load.running)
        self._waiting.set(load.waiting)
        self._allowed.set(load.allowed)
        self._subscriptions.set(load.subscriptions)
        for gauge in (self._breakers, self._calls_now, self._calls_limit, self._calls_waiting):
            gauge.clear()
        for provider_id, how in health.items():
            for breaker_state in BreakerState:
                is_in_it = how.state is breaker_state
                self._breakers.labels(provider_id, breaker_state.value).set(is_in_it)
            self._calls_now.labels(provider_id).set(how.calls_now)
            self._calls_limit.labels(provider_id).set(how.calls_limit)
            self._calls_waiting.labels(provider_id).set(how.waiting)
        self._cache_entries.set(cache.held)
        self._cache_bytes.set(cache.held_bytes)
        self._totals.cache, self._totals.icons = cache, icons
        return generate_latest(self._registry)


class _Totals(Collector):
    """What others count, written down as the counters it is."""

    def __init__(self) -> None:
        self.cache = CacheCounts()
        self.icons = IconCounts()

    def collect(self) -> Iterator[Metric]:
        """Yield it."""
        build = InfoMetricFamily("learning_gateway_build", "Which release this is")
        build.add_metric([], {"version": version("learning-gateway")})
        yield build
        answers = CounterMetricFamily(
            "learning_gateway_cache_answers",
            "Answers by where they came from: kept and young enough (hit), read by somebody else"
            " at the time (joined), read (read), kept and too old (stale); and those that were read"
            " anew in the background (revalidation)",
            labels=["result"],
        )
        for result, count in (
            ("hit", self.cache.hits),
            ("joined", self.cache.joined),
            ("read", self.cache.reads),
            ("stale", self.cache.stale),
            ("revalidation", self.cache.revalidations),
        ):
            answers.add_metric([result], count)
        yield answers
        icons = CounterMetricFamily(
            "learning_gateway_icons",
            "Icons fetched, decoded, found unfit (refused), not decided on yet (postponed)",
            labels=["result"],
        )
        for result in ("fetched", "decoded", "refused", "postponed"):
            icons.add_metric([result], getattr(self.icons, result))
        yield icons


class _Names:
    """Which operations have series of their own: callers choose the names, and there is no end.

    Args:
        most: How many names, first come, first served; the others are one.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: set[str] = set()

    def label_of(self, operation: Operation, *, is_trusted: bool) -> str:
        """Return the operation's label; none of these is a name that GraphQL allows."""
        if operation.kind is None:
            return "(unknown)"
        name = operation.name
        if name is None:
            return "(anonymous)"
        if is_trusted or name in self._known:
            return name
        was_executed = operation.outcome not in {Outcome.REFUSED, Outcome.CANCELLED}
        if not was_executed or len(self._known) >= self._most or len(name) > _LONGEST_NAME:
            return "(other)"
        self._known.add(name)
        return name
