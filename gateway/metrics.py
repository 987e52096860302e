"""Prometheus metrics of one process, in a registry of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from gateway.admission import Load
from resolvers.caching import CacheCounts
from resolvers.icons import IconCounts
from sessions.errors import ProviderError
from sessions.http import UpstreamCall
from sessions.resilience import BreakerState, ProviderHealth, RefusalReason
from storage.leases import Outcome, Transition
from storage.records import SessionState

_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SHORT_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_LATE: Final = (0.1, 0.5, 1, 2, 5, 10, 30, 60)


class Metrics:
    """Hears of requests, upstream calls and sessions, and writes them down for Prometheus."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
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
        self._cache = Gauge(
            "learning_gateway_cache",
            "Answers out of the cache, joined, read and stale since the start; and what is held",
            ["what"],
            registry=self._registry,
        )
        self._icons = Gauge(
            "learning_gateway_icons",
            "What was done with icons since the start",
            ["what"],
            registry=self._registry,
        )

        self._load = Gauge(
            "learning_gateway_load",
            "Requests that run, that wait to, that are streams of events; and how many may run",
            ["what"],
            registry=self._registry,
        )
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

    def on_request(self, route: str, status: int, *, seconds: float) -> None:
        """Take note of an answered request."""
        self._requests.labels(route, status).inc()
        self._request_seconds.labels(route).observe(seconds)

    def on_call(self, call: UpstreamCall) -> None:
        """Take note of a request sent to a provider."""
        provider = call.provider_id or "product"
        outcome = call.error or str(call.status)
        self._calls.labels(provider, call.method, call.path, outcome).inc()
        self._call_seconds.labels(provider).observe(call.seconds)
        self._call_bytes.labels(provider).inc(call.body_bytes)

    def on_transition(
        self,
        provider_id: str,
        transition: Transition,
        outcome: Outcome,
        *,
        seconds: float,  # noqa: ARG002 - as in SessionObserver
    ) -> None:
        """Take note of a session's transition."""
        self._transitions.labels(provider_id, transition.value, outcome.value).inc()

    def on_heartbeat(self, provider_id: str, *, late_seconds: float) -> None:  # noqa: ARG002 - as in SessionObserver
        """Take note of a heartbeat."""
        self._heartbeat_lateness.observe(late_seconds)

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
        for what in ("fetched", "decoded", "refused", "postponed"):
            self._icons.labels(what).set(getattr(icons, what))
        for what in ("running", "waiting", "subscriptions", "allowed"):
            self._load.labels(what).set(getattr(load, what))
        for gauge in (self._breakers, self._calls_now, self._calls_limit, self._calls_waiting):
            gauge.clear()
        for provider_id, how in health.items():
            for breaker_state in BreakerState:
                is_in_it = how.state is breaker_state
                self._breakers.labels(provider_id, breaker_state.value).set(is_in_it)
            self._calls_now.labels(provider_id).set(how.calls_now)
            self._calls_limit.labels(provider_id).set(how.calls_limit)
            self._calls_waiting.labels(provider_id).set(how.waiting)
        for what in ("hits", "revalidations", "joined", "reads", "stale", "held", "held_bytes"):
            self._cache.labels(what).set(getattr(cache, what))
        return generate_latest(self._registry)
