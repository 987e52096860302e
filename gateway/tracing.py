"""OpenTelemetry spans: of GraphQL operations, REST requests, work for everybody, upstream calls.

Never of a field. Imported only when tracing is on, because OpenTelemetry is an extra.

Sources:
    https://opentelemetry.io/docs/specs/semconv/graphql/graphql-spans/
    https://opentelemetry.io/docs/specs/semconv/http/http-spans/
    https://www.w3.org/TR/trace-context/
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from importlib.metadata import version
from threading import Thread
from typing import Any, Final

from anyio import to_thread
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    Span,
    SpanKind,
    StatusCode,
    format_span_id,
    format_trace_id,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers
from starlette.types import Scope as AsgiScope

from resolvers.context import RequestContext
from resolvers.operations import Operation, Outcome
from sessions import tracing
from sessions.tracing import OutgoingCall, current_span, spanning

_OWN: Final = "learning_gateway"
_REST_PREFIX: Final = "/api/"
_EXPORTER: Final = "OTEL_TRACES_EXPORTER"
_FIRST_ERROR: Final = 400
_FIRST_OWN_ERROR: Final = 500
_TRACE_CONTEXT: Final = TraceContextTextMapPropagator()


class Tracing:
    """Makes spans; made by ``open_tracing``.

    Args:
        provider: Where they go.
        tells_providers: Whether providers are sent the trace context.
    """

    def __init__(self, provider: TracerProvider, *, tells_providers: bool) -> None:
        self.provider = provider
        self._tells_providers = tells_providers
        self._tracer = provider.get_tracer("learning-gateway", version("learning-gateway"))

    @contextmanager
    def receiving(self, scope: AsgiScope) -> Iterator[None]:
        """Take up the trace of a request's caller; the REST surface's have a span themselves.

        Inside it is written to the scope's state with which ``status`` it was answered.
        """
        headers = Headers(scope=scope)
        context = _TRACE_CONTEXT.extract(
            {name: ",".join(headers.getlist(name)) for name in _TRACE_CONTEXT.fields}
        )
        token = _caller.set(context)
        try:
            if scope["path"].startswith(_REST_PREFIX):
                with self._request(scope, context):
                    yield
            else:
                yield
        finally:
            _caller.reset(token)

    @contextmanager
    def operation(self, context: RequestContext, operation: Operation) -> Iterator[tracing.Span]:
        """Have a span of a GraphQL operation, which is current for as long as the block lasts."""
        span = self._tracer.start_span(
            "GraphQL Operation",
            context=_caller.get(None) or Context(),
            kind=SpanKind.SERVER,
            attributes={f"{_OWN}.request.id": context.request_id},
        )
        ours = _Span(span)
        try:
            with spanning(ours):
                yield ours
        finally:
            if span.is_recording():
                _describe(span, operation)
            span.end()

    @contextmanager
    def work(self, name: str, *, provider_id: str | None) -> Iterator[tracing.WorkSpan]:
        """Have a span of some work, as ``sessions.tracing.Tracer`` has it."""
        span = self._tracer.start_span(
            name,
            context=_parent(),
            attributes=_known({f"{_OWN}.provider.id": provider_id}),
        )
        ours = _WorkSpan(span)
        try:
            with spanning(ours):
                yield ours
        except BaseException as error:
            _fail(span, type(error).__name__)
            raise
        finally:
            span.end()

    def begin_call(self, call: OutgoingCall) -> tracing.CallSpan:
        """Begin the span of a request to a provider, as ``sessions.tracing.Tracer`` has it."""
        span = self._tracer.start_span(
            call.method if call.template is None else f"{call.method} {call.template}",
            context=_parent(),
            kind=SpanKind.CLIENT,
            attributes=_known(
                {
                    "http.request.method": call.method,
                    "http.request.resend_count": call.resends or None,
                    "url.full": call.url,
                    "url.template": call.template,
                    "server.address": call.host,
                    "server.port": call.port,
                    f"{_OWN}.provider.id": call.provider_id,
                }
            ),
        )
        headers: dict[str, str] = {}
        if self._tells_providers:
            _TRACE_CONTEXT.inject(headers, context=set_span_in_context(span, Context()))
        return _CallSpan(span, headers)

    @contextmanager
    def _request(self, scope: AsgiScope, context: Context) -> Iterator[None]:
        span = self._tracer.start_span(
            scope["method"],
            context=context,
            kind=SpanKind.SERVER,
            attributes={
                "http.request.method": scope["method"],
                "url.path": scope["path"],
                "url.scheme": scope["scheme"],
                f"{_OWN}.request.id": scope["state"]["request_id"],
            },
        )
        try:
            with spanning(_Span(span)):
                yield
        finally:
            route = getattr(scope.get("route"), "path", None)
            if route is not None:
                span.update_name(f"{scope['method']} {route}")
                span.set_attribute("http.route", route)
            status = scope["state"].get("status", 0)
            if status:
                span.set_attribute("http.response.status_code", status)
            if status >= _FIRST_OWN_ERROR:
                _fail(span, str(status))
            span.end()


class _Span:
    """A span as ``sessions.tracing`` has it."""

    def __init__(self, span: Span) -> None:
        self.span = span
        context = span.get_span_context()
        self.trace_id = format_trace_id(context.trace_id)
        self.span_id = format_span_id(context.span_id)

    def link(self, other: tracing.Span) -> None:
        if isinstance(other, _Span):
            self.span.add_link(other.span.get_span_context())


class _WorkSpan(_Span):
    def note_outcome(self, outcome: str) -> None:
        self.span.set_attribute(f"{_OWN}.outcome", outcome)


class _CallSpan:
    def __init__(self, span: Span, headers: Mapping[str, str]) -> None:
        self.headers = headers
        self._span = span

    def end(self, *, status: int | None, error: str | None) -> None:
        if status is not None:
            self._span.set_attribute("http.response.status_code", status)
        if error is not None:
            _fail(self._span, error)
        elif status is not None and status >= _FIRST_ERROR:
            _fail(self._span, str(status))
        self._span.end()


@asynccontextmanager
async def open_tracing(*, tells_providers: bool, shutdown_seconds: float) -> AsyncIterator[Tracing]:
    """Open tracing as the environment's ``OTEL_`` variables ask; send what is left at the end.

    Args:
        tells_providers: Whether providers are sent the trace context.
        shutdown_seconds: How long sending what is left may take.
    """
    provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
    exporter = OTLPSpanExporter() if os.environ.get(_EXPORTER, "") != "none" else None
    if exporter is not None:
        provider.add_span_processor(BatchSpanProcessor(exporter))
    try:
        yield Tracing(provider, tells_providers=tells_providers)
    finally:
        # A thread of its own, which keeps nobody from ending: the collector may not answer.
        ending = Thread(target=provider.shutdown, daemon=True)
        ending.start()
        await to_thread.run_sync(ending.join, shutdown_seconds)
        if exporter is not None and ending.is_alive():
            exporter.shutdown()  # type: ignore[no-untyped-call]  # it ends its tries


def _resource() -> Resource:
    """Return what the environment says of this process, with our own name if it says none."""
    given = Resource.create()
    own = {SERVICE_VERSION: version("learning-gateway")}
    if str(given.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        return given.merge(Resource({**own, SERVICE_NAME: "learning-gateway"}))
    return Resource(own).merge(given)


def _parent() -> Context:
    """Return the context in which a span begins as part of the current one, if there is one."""
    span = current_span()
    return set_span_in_context(span.span, Context()) if isinstance(span, _Span) else Context()


def _describe(span: Span, operation: Operation) -> None:
    if operation.kind is not None:
        kind, name = operation.kind.value, operation.name
        span.update_name(kind if name is None else f"{kind} {name}")
    span.set_attributes(
        _known(
            {
                "graphql.operation.type": operation.kind and operation.kind.value,
                "graphql.operation.name": operation.name,
                f"{_OWN}.document.sha256": operation.document_sha256,
                f"{_OWN}.outcome": operation.outcome.value,
            }
        )
    )
    if operation.outcome in {Outcome.FAILED, Outcome.INTERNAL}:
        _fail(span, operation.outcome.value)


def _fail(span: Span, kind: str) -> None:
    span.set_attribute("error.type", kind)
    span.set_status(StatusCode.ERROR)


def _known(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value is not None}


_caller: ContextVar[Context] = ContextVar("caller")
