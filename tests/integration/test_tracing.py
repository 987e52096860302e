"""OpenTelemetry spans: how many, of what, whose part, and what others are told of them."""

import asyncio
import io
import json
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, format_span_id, format_trace_id
from pretend_platform import until
from running_gateway import TOKEN, RunningGateway, address_of, listening, running_gateway, serving
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from gateway.logs import configure_logs
from gateway.settings import SettingsError, read_settings
from simulators.kolibri.app import app_for
from simulators.kolibri.population import PASSWORD, build_population
from simulators.kolibri.state import Kolibri, Outage
from storage.matching import MatchOrder

NESTED = """query Rosters {
  users(first: 20) { nodes { displayName enrollments { nodes { role { value } } } } }
  courses(first: 20) { nodes { title } }
}"""
NAMES = "query Names { users(first: 3) { nodes { displayName } } }"
TRACE_ID, CALLER_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CALLER = {"traceparent": f"00-{TRACE_ID}-{CALLER_ID}-01", "tracestate": "vendor=1"}


@dataclass(kw_only=True)
class Traced:
    """A gateway that traces, a Kolibri that remembers the headers of what it was asked."""

    gateway: RunningGateway
    kolibri: Kolibri
    asked: list[tuple[str, Mapping[str, str]]]
    spans: InMemorySpanExporter

    async def ask(self, query: str, **options: Any) -> dict[str, Any]:
        answer = await self.gateway.client.post("/graphql", json={"query": query}, **options)
        decoded: dict[str, Any] = answer.json()
        return decoded

    def finished(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans.get_finished_spans() if span.name == name]

    def parts_of(self, whole: ReadableSpan) -> list[ReadableSpan]:
        """Return the other spans of the same trace."""
        return [
            span
            for span in self.spans.get_finished_spans()
            if trace_of(span) == trace_of(whole) and span is not whole
        ]


def trace_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return format_trace_id(span.context.trace_id)


def id_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return format_span_id(span.context.span_id)


def parent_of(span: ReadableSpan) -> str | None:
    return None if span.parent is None else format_span_id(span.parent.span_id)


def links_of(span: ReadableSpan) -> list[str]:
    return [format_span_id(link.context.span_id) for link in span.links]


def told(span: ReadableSpan, *names: str) -> Sequence[Any]:
    return [(span.attributes or {}).get(name) for name in names]


@pytest.fixture
def kolibri() -> Kolibri:
    return Kolibri(build_population())


@asynccontextmanager
async def tracing(folder: Path, kolibri: Kolibri, **settings: str) -> AsyncIterator[Traced]:
    asked: list[tuple[str, Mapping[str, str]]] = []
    inner = app_for(kolibri)

    async def remembering(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = {name.decode(): value.decode() for name, value in scope["headers"]}
            asked.append((scope["path"], headers))
        await inner(scope, receive, send)

    with listening() as listener:
        async with (
            serving(remembering, listener),
            running_gateway(
                folder, **{"tracing": "on", "import_hours": "0", **settings}
            ) as gateway,
        ):
            await gateway.add_kolibri(address_of(listener))
            exported = ("GET", "/api/auth/classroom/")  # the last that the first export asks for
            await until(lambda: kolibri.counts.calls[exported] > 0, seconds=20)
            await until(lambda: kolibri.counts.requests_running == 0, seconds=20)
            spans = InMemorySpanExporter()
            assert gateway.parts.tracing is not None
            gateway.parts.tracing.provider.add_span_processor(SimpleSpanProcessor(spans))
            kolibri.counts.calls.clear()
            asked.clear()
            yield Traced(gateway=gateway, kolibri=kolibri, asked=asked, spans=spans)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let spans be made and sent nowhere."""
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")


@pytest.fixture
async def traced(tmp_path: Path, kolibri: Kolibri, alone: None) -> AsyncIterator[Traced]:
    async with tracing(tmp_path, kolibri) as running_one:
        yield running_one


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    written = io.StringIO()
    root = logging.getLogger()
    before = (root.handlers, root.level)
    configure_logs(level="info", form="json", stream=written)
    yield written
    root.handlers, root.level = before


async def test_an_operation_is_one_span_and_one_more_for_each_call_none_for_fields(
    traced: Traced,
) -> None:
    answer = await traced.ask(NESTED)

    (operation,) = traced.finished("query Rosters")
    calls = traced.parts_of(operation)
    (rosters, courses) = (answer["data"]["users"]["nodes"], answer["data"]["courses"]["nodes"])
    assert (len(rosters), len(courses)) == (20, 17)
    assert sorted(call.name for call in calls) == [
        "GET /api/auth/classroom/",
        "GET /api/auth/facilityuser/",
        "GET /api/auth/membership/",
        "GET /api/content/channel/",
        "GET /api/courses/coursesession/",
    ]
    assert {parent_of(call) for call in calls} == {id_of(operation)}
    assert {call.kind for call in calls} == {SpanKind.CLIENT}
    assert (operation.kind, parent_of(operation)) == (SpanKind.SERVER, None)
    names = ("graphql.operation.type", "graphql.operation.name", "learning_gateway.outcome")
    assert told(operation, *names) == ["query", "Rosters", "ok"]
    assert operation.status.status_code is StatusCode.UNSET


async def test_an_operation_in_parts_is_one_span_until_its_last_part(
    traced: Traced, logged: io.StringIO
) -> None:
    query = """query Parts { __typename
      ... @defer(label: "users") { users(first: 3) { nodes { displayName } } }
      ... @defer(label: "courses") { courses(first: 3) { nodes { title } } } }"""

    answer = await traced.gateway.client.post(
        "/graphql",
        json={"query": query},
        headers={"Accept": "multipart/mixed;incrementalSpec=v0.2"},
    )
    await until(lambda: '"operation"' in logged.getvalue())  # after the last part was sent

    (operation,) = traced.finished("query Parts")
    calls = traced.parts_of(operation)
    assert answer.text.count("\r\nContent-Type: application/json") > 1
    assert {parent_of(call) for call in calls} == {id_of(operation)}
    assert sorted(call.name for call in calls) == [
        "GET /api/auth/classroom/",
        "GET /api/auth/facilityuser/",
        "GET /api/content/channel/",
        "GET /api/courses/coursesession/",
    ]
    told_of = [json.loads(line) for line in logged.getvalue().splitlines()]
    assert [line["trace_id"] for line in told_of if "operation" in line] == [trace_of(operation)]
    assert told(operation, "learning_gateway.outcome") == ["ok"]


async def test_a_call_says_where_it_went_and_what_came_of_it_without_its_query(
    traced: Traced,
) -> None:
    await traced.ask(NAMES)
    outage = Outage(remaining=1, status=503, path="/api/content/channel/", retry_after_seconds=None)
    traced.kolibri.outages.append(outage)
    await traced.ask("query Again { courses(first: 1) { nodes { title } } }")

    (operation,) = traced.finished("query Names")
    (call,) = traced.parts_of(operation)
    (again,) = traced.finished("query Again")
    tries = [call for call in traced.parts_of(again) if call.name.endswith("channel/")]
    host = "127.0.0.1"
    (port,) = told(call, "server.port")
    assert dict(call.attributes or {}) == {
        "http.request.method": "GET",
        "http.response.status_code": 200,
        "url.full": f"http://{host}:{port}/api/auth/facilityuser/",
        "url.template": "/api/auth/facilityuser/",
        "server.address": host,
        "server.port": port,
        "learning_gateway.provider.id": "1",
    }
    names = ("http.response.status_code", "error.type", "http.request.resend_count")
    assert [told(call, *names) for call in tries] == [
        [503, "PROVIDER_UNAVAILABLE", None],
        [200, None, 1],
    ]
    assert [call.status.status_code for call in tries] == [StatusCode.ERROR, StatusCode.UNSET]


async def test_the_callers_trace_is_gone_on_with_and_providers_are_not_told(
    traced: Traced,
) -> None:
    await traced.ask(NAMES, headers=CALLER)
    await traced.gateway.get("/api/users", params={"id": "1"}, headers=CALLER)

    (operation,) = traced.finished("query Names")
    (request,) = traced.finished("GET /api/users")
    for span in (operation, request):
        assert (trace_of(span), parent_of(span)) == (TRACE_ID, CALLER_ID)
    calls = [span for span in traced.parts_of(request) if span.kind is SpanKind.CLIENT]
    assert [parent_of(call) for call in calls] == [id_of(operation), id_of(request)]
    assert told(request, "http.route", "http.response.status_code") == ["/api/users", 200]
    assert not [headers for _, headers in traced.asked if "traceparent" in headers]
    assert len(traced.asked) >= 2


async def test_providers_are_told_of_the_trace_where_that_is_asked_for(
    tmp_path: Path, kolibri: Kolibri, alone: None
) -> None:
    async with tracing(tmp_path, kolibri, tracing="upstream") as traced:
        await traced.ask(NAMES, headers=CALLER)

    (operation,) = traced.finished("query Names")
    (call,) = traced.parts_of(operation)
    (headers,) = [one for _, one in traced.asked if TRACE_ID in one.get("traceparent", "")]
    assert headers["traceparent"] == f"00-{TRACE_ID}-{id_of(call)}-01"
    assert headers["tracestate"] == "vendor=1"


@pytest.mark.parametrize("header", ["", "00-0-0-00", f"ff-{TRACE_ID}-{CALLER_ID}-01", "é" * 600])
async def test_a_trace_that_makes_no_sense_is_not_gone_on_with(traced: Traced, header: str) -> None:
    await traced.ask("query Odd { __typename }", headers={"traceparent": header.encode()})

    (operation,) = traced.finished("query Odd")
    assert parent_of(operation) is None


async def test_operations_of_a_socket_are_traces_of_their_own(traced: Traced) -> None:
    async with connect(
        traced.gateway.url.replace("http", "ws", 1) + "/graphql",
        subprotocols=[Subprotocol("graphql-transport-ws")],
        additional_headers={**CALLER, "Authorization": f"Bearer {TOKEN}"},
        proxy=None,
    ) as socket:
        await socket.send('{"type": "connection_init"}')
        await socket.recv()
        for name in ("One", "Two"):
            payload = {"query": NAMES.replace("Names", name)}
            await socket.send(json.dumps({"id": name, "type": "subscribe", "payload": payload}))
            for _ in ("next", "complete"):
                await socket.recv()

    (one, two) = traced.finished("query One") + traced.finished("query Two")
    assert (parent_of(one), parent_of(two)) == (None, None)
    assert len({trace_of(one), trace_of(two), TRACE_ID}) == 3
    assert [len(traced.parts_of(span)) for span in (one, two)] == [1, 1]


async def test_who_joins_anothers_read_is_linked_to_it(traced: Traced) -> None:
    traced.kolibri.latency_by_path["/api/auth/facilityuser/"] = 0.3

    await asyncio.gather(
        traced.ask(NAMES.replace("Names", "First").replace("3", "3, maxAge: 60")),
        traced.ask(NAMES.replace("Names", "Second").replace("3", "3, maxAge: 60")),
    )

    one, other = traced.finished("query First") + traced.finished("query Second")
    starter, joiner = (one, other) if traced.parts_of(one) else (other, one)
    assert [call.name for call in traced.parts_of(starter)] == ["GET /api/auth/facilityuser/"]
    assert traced.parts_of(joiner) == []
    assert links_of(joiner) == [id_of(starter)]
    assert links_of(starter) == []


async def test_a_login_is_a_trace_of_its_own_linked_to_by_all_who_waited(traced: Traced) -> None:
    traced.kolibri.delete_sessions()

    await asyncio.gather(
        traced.ask("query First { users(first: 3) { nodes { displayName } } }"),
        traced.ask("query Second { courses(first: 3) { nodes { title } } }"),
    )

    (login,) = traced.finished("session log_in")
    calls = traced.parts_of(login)
    assert parent_of(login) is None
    assert told(login, "learning_gateway.provider.id", "learning_gateway.outcome") == [
        "1",
        "committed",
    ]
    assert "POST /api/auth/session/" in [call.name for call in calls]
    assert {parent_of(call) for call in calls} == {id_of(login)}
    for name in ("query First", "query Second"):
        (operation,) = traced.finished(name)
        assert id_of(login) in links_of(operation)


async def test_a_match_run_is_a_trace_of_its_own(traced: Traced) -> None:
    people = traced.gateway.parts.people
    run, _ = await people.matches.request(
        MatchOrder(provider_ids=("1", "gone")), requested_by="test"
    )
    await people.finish(run)

    await until(lambda: bool(traced.finished("match")))
    (span,) = traced.finished("match")
    assert parent_of(span) is None


async def test_an_import_is_one_trace_of_all_its_calls(traced: Traced) -> None:
    await traced.ask('mutation Go { refreshProvider(input: {providerId: "1"}) { __typename } }')
    await until(lambda: bool(traced.finished("import")))

    (run,) = traced.finished("import")
    calls = traced.parts_of(run)
    assert parent_of(run) is None
    assert told(run, "learning_gateway.provider.id") == ["1"]
    assert {call.kind for call in calls} == {SpanKind.CLIENT}
    assert {parent_of(call) for call in calls} == {id_of(run)}
    assert {call.name for call in calls} >= {
        "GET /api/auth/facilityuser/",
        "GET /api/auth/membership/",
        "GET /api/content/channel/",
    }


async def test_what_is_wrong_with_an_operation_shows_in_its_span(traced: Traced) -> None:
    await traced.ask("query Unfinished {")
    await traced.ask("query Nobody { nobody }")
    await traced.ask('mutation M { refreshProvider(input: {providerId: "9"}) { __typename } }')

    wrong = traced.finished("GraphQL Operation")
    (mutation,) = traced.finished("mutation M")
    names = ("learning_gateway.outcome", "graphql.operation.type", "error.type")
    assert [told(span, *names) for span in [*wrong, mutation]] == [
        ["refused", None, None],
        ["refused", None, None],
        ["ok", "mutation", None],
    ]


async def test_the_log_names_the_trace_and_the_trace_names_the_request(
    tmp_path: Path, kolibri: Kolibri, alone: None, logged: io.StringIO
) -> None:
    async with tracing(tmp_path, kolibri, slow_seconds="0.001") as traced:
        kolibri.latency_seconds = 0.01
        answer = await traced.gateway.client.post("/graphql", json={"query": NAMES})
        await traced.gateway.users()

    lines = [json.loads(line) for line in logged.getvalue().splitlines()]
    (operation,) = traced.finished("query Names")
    request_id = answer.headers["x-request-id"]
    told_of = {"trace_id": trace_of(operation), "span_id": id_of(operation)}
    found = {
        line["event"]: {name: line.get(name) for name in told_of}
        for line in lines
        if line.get("request_id") == request_id
    }
    assert found == {"slow_operation": told_of, "request": told_of}
    assert told(operation, "learning_gateway.request.id") == [request_id]
    (rest,) = traced.finished("GET /api/users")
    assert [line["trace_id"] for line in lines if line.get("path") == "/api/users"][-1] == trace_of(
        rest
    )


async def test_an_error_a_user_reports_leads_to_the_call_that_failed(
    tmp_path: Path, kolibri: Kolibri, alone: None, logged: io.StringIO
) -> None:
    async with tracing(tmp_path, kolibri, tracing="upstream") as traced:
        path = "/api/auth/classroom/"
        kolibri.outages.append(Outage(remaining=1000, status=503, path=path))
        answer = await traced.gateway.client.post(
            "/graphql", json={"query": "query Report { courses { nodes { title } } }"}
        )

    (error,) = answer.json()["errors"]
    reported = answer.headers["x-request-id"]
    lines = [json.loads(line) for line in logged.getvalue().splitlines()]
    (line,) = [
        line for line in lines if line.get("request_id") == reported and line["event"] == "request"
    ]
    trace = [
        span for span in traced.spans.get_finished_spans() if trace_of(span) == line["trace_id"]
    ]
    failures = {told(span, "error.type")[0]: span for span in trace}
    failed = failures["PROVIDER_UNAVAILABLE"]
    (asked,) = [
        asked_path
        for asked_path, headers in traced.asked
        if headers["traceparent"].split("-")[1:3] == [line["trace_id"], id_of(failed)]
    ]
    assert error["extensions"]["providerId"] == "1"
    assert set(failures) <= {None, "CANCELLED", "PROVIDER_UNAVAILABLE"}
    assert line["operation"] == "Report"
    names = ("learning_gateway.provider.id", "url.template", "http.response.status_code")
    assert told(failed, *names) == ["1", path, 503]
    assert asked == path


async def test_no_span_holds_a_secret_a_query_or_the_document(traced: Traced) -> None:
    await traced.ask(NAMES)
    traced.kolibri.delete_sessions()
    await traced.gateway.users()

    spans = "\n".join(span.to_json() for span in traced.spans.get_finished_spans())
    assert "session log_in" in spans
    for secret in (TOKEN, PASSWORD, "displayName", "?", *traced.kolibri.sessions):
        assert secret not in spans


# Sending spans.


async def test_spans_are_sent_as_the_environment_says(
    tmp_path: Path, kolibri: Kolibri, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: list[ExportTraceServiceRequest] = []
    headers: list[Mapping[str, str]] = []

    async def take(request: Request) -> Response:
        headers.append(dict(request.headers))
        received.append(ExportTraceServiceRequest.FromString(await request.body()))
        return Response(media_type="application/x-protobuf")

    with listening() as listener:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address_of(listener))
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=collector-key")
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
        collector = Starlette(routes=[Route("/v1/traces", take, methods=["POST"])])
        async with serving(collector, listener), tracing(tmp_path, kolibri) as traced:
            await traced.ask(NAMES)

    resources = [batch.resource for message in received for batch in message.resource_spans]
    named = {
        attribute.key: attribute.value.string_value
        for resource in resources
        for attribute in resource.attributes
    }
    spans = [
        span
        for message in received
        for batch in message.resource_spans
        for scope in batch.scope_spans
        for span in scope.spans
    ]
    assert named["service.name"] == "learning-gateway"
    assert named["deployment.environment.name"] == "test"
    assert {one["authorization"] for one in headers} == {"collector-key"}
    (operation,) = [span for span in spans if span.name == "query Names"]
    calls = [span for span in spans if span.parent_span_id == operation.span_id]
    assert [call.name for call in calls] == ["GET /api/auth/facilityuser/"]
    assert {call.trace_id for call in calls} == {operation.trace_id}


async def test_a_collector_that_does_not_answer_costs_callers_nothing(
    tmp_path: Path, kolibri: Kolibri, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listening() as listener:  # nobody takes its connections
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address_of(listener))
        began_at = asyncio.get_running_loop().time()
        async with tracing(tmp_path, kolibri, shutdown_seconds="1") as traced:
            answer = await traced.ask(NAMES)
            ended_at = asyncio.get_running_loop().time()
        stopped_at = asyncio.get_running_loop().time()

    assert len(answer["data"]["users"]["nodes"]) == 3
    assert ended_at - began_at < 20
    assert stopped_at - ended_at < 8


async def test_a_trace_that_is_not_sampled_costs_no_span_and_is_told_on(
    tmp_path: Path, kolibri: Kolibri, alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    async with tracing(tmp_path, kolibri, tracing="upstream") as traced:
        answer = await traced.ask(NAMES, headers=CALLER)

    (headers,) = [one for _, one in traced.asked if TRACE_ID in one.get("traceparent", "")]
    assert len(answer["data"]["users"]["nodes"]) == 3
    assert traced.spans.get_finished_spans() == ()
    assert headers["traceparent"].endswith("-00")  # whoever comes after samples nothing either


def test_a_way_of_sending_that_there_is_not_is_refused_by_name() -> None:
    for name, value in (
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_TRACES_EXPORTER", "zipkin"),
    ):
        with pytest.raises(SettingsError, match=f"{name} is not one of those there are here"):
            read_settings({"GATEWAY_TRACING": "on", name: value})
        assert read_settings({name: value}).tracing == "off"


def test_tracing_is_off_where_the_sdk_is_switched_off() -> None:
    settings = read_settings({"GATEWAY_TRACING": "on", "OTEL_SDK_DISABLED": "true"})

    assert settings.tracing == "off"


def test_a_gateway_without_the_extra_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['opentelemetry'] = None; "
        "from gateway.command_line import main; sys.exit(main(['serve']))"
    )

    ended = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "GATEWAY_TRACING": "on"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == 2
    assert ended.stderr == (
        "learning-gateway: GATEWAY_TRACING is on, and OpenTelemetry is not installed here"
        " (opentelemetry.context is missing): pip install 'learning-gateway[otel]'\n"
    )


def test_a_gateway_that_does_not_trace_imports_nothing_of_it() -> None:
    program = (
        "import sys, gateway.app, gateway.settings; "
        "gateway.app.build_app(gateway.settings.read_settings({})); "
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )

    ended = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )

    assert ended.stdout == "[]\n"
