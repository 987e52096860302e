"""What an operator is told of operations: metrics, the log, and the list of metrics."""

import hashlib
import io
import json
import logging
import re
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pretend_platform import until
from prometheus_client.parser import text_string_to_metric_families
from running_gateway import TOKEN, RunningGateway, running_gateway

from gateway.admission import Load
from gateway.logs import configure_logs
from gateway.metrics import Metrics
from resolvers.caching import CacheCounts
from resolvers.icons import IconCounts
from resolvers.operations import Operation, OperationKind, Outcome
from sessions.http import UpstreamCall
from sessions.resilience import BreakerState, ProviderHealth, RefusalReason
from simulators.kolibri.app import running
from simulators.kolibri.population import build_population
from simulators.kolibri.state import Kolibri, Outage
from storage.documents import DocumentDraft
from storage.leases import Outcome as TransitionOutcome
from storage.leases import Transition
from storage.matching import MatchRunState
from storage.records import SessionState

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"
EXAMPLES = Path(__file__).parents[2] / "examples" / "observability"
NAMES = "query Names { users(first: 3) { nodes { displayName } } }"
NOW = datetime(2026, 3, 1, tzinfo=UTC)
EVENTS = {"Accept": "text/event-stream"}


@pytest.fixture
def kolibri() -> Kolibri:
    return Kolibri(build_population())


@pytest.fixture
async def gateway(tmp_path: Path, kolibri: Kolibri) -> AsyncIterator[RunningGateway]:
    async with running(kolibri) as url, running_gateway(tmp_path) as running_one:
        await running_one.add_kolibri(url)
        yield running_one


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """Write the logs of everything as in production; yields what was written."""
    written = io.StringIO()
    root = logging.getLogger()
    before = (root.handlers, root.level)
    configure_logs(level="info", form="json", stream=written)
    yield written
    root.handlers, root.level = before


def lines(logged: io.StringIO, event: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in logged.getvalue().splitlines()]
    return [line for line in found if line["event"] == event]


async def measured(gateway: RunningGateway, name: str) -> dict[tuple[str, ...], float]:
    """Return the samples of a name by the values of their labels, in order of the labels' names."""
    text = (await gateway.get("/metrics")).text
    return {
        tuple(sample.labels[label] for label in sorted(sample.labels)): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == f"learning_gateway_{name}"
    }


async def ask(gateway: RunningGateway, query: str, **more: Any) -> dict[str, Any]:
    answer = await gateway.client.post("/graphql", json={"query": query, **more})
    decoded: dict[str, Any] = answer.json()
    return decoded


# Metrics.


async def test_operations_are_counted_by_name_type_and_outcome_with_their_calls(
    gateway: RunningGateway, kolibri: Kolibri
) -> None:
    await ask(gateway, NAMES)
    await ask(gateway, NAMES)
    await ask(gateway, "{ __typename }")
    await ask(gateway, "query Wrong { nobody }")
    await ask(gateway, "query A { __typename } query B { __typename }")
    await ask(gateway, "mutation Again { refreshProvider(input: {providerId: 9}) { __typename } }")
    kolibri.outages.append(Outage(remaining=1000, status=503))
    await ask(gateway, "query Down { courses(first: 3) { nodes { title } } }")

    # Labels in order: operation, outcome, type.
    assert await measured(gateway, "operation_seconds_count") == {
        ("Names", "ok", "query"): 2,
        ("(anonymous)", "ok", "query"): 1,
        ("(unknown)", "refused", "unknown"): 2,
        ("Again", "ok", "mutation"): 1,
        ("Down", "partial", "query"): 1,
    }
    calls = await measured(gateway, "operation_upstream_calls_total")
    assert calls["Names", "query"] == 2  # one page each, live
    assert calls["(anonymous)", "query"] == 0
    # Three tries, unless the export that runs beside has opened the breaker with its own.
    assert 1 <= calls["Down", "query"] <= 3


async def test_each_event_of_a_subscription_is_an_operation(gateway: RunningGateway) -> None:
    start = 'mutation { refreshProvider(input: {providerId: "1"}) { __typename } }'
    follow = 'subscription Follow { importProgress(providerId: "1") { state } }'
    await ask(gateway, start)

    good = await gateway.client.post("/graphql", json={"query": follow}, headers=EVENTS)
    await gateway.client.post("/graphql", json={"query": "subscription { no }"}, headers=EVENTS)

    events = good.text.count('"importProgress"')
    assert events >= 1
    counted = await measured(gateway, "operation_seconds_count")
    assert counted["Follow", "ok", "subscription"] == events
    assert counted["(unknown)", "refused", "unknown"] == 1


async def test_the_rest_surface_counts_its_calls_by_route(gateway: RunningGateway) -> None:
    await gateway.users()
    await gateway.users()
    await gateway.get("/api/courses")

    calls = await measured(gateway, "request_upstream_calls_total")
    assert calls.pop(("add-provider",)) > 0  # its check
    assert calls == {("users",): 2, ("courses",): 0}


async def test_refusals_are_counted_by_the_limit_that_callers_are_told(tmp_path: Path) -> None:
    deep = "query Deep { node(id: 1) " + "{ ... on User { provider " * 17 + "{ name }" + " } }" * 17
    aliases = "{" + " ".join(f"a{n}: __typename" for n in range(201)) + "}"
    async with running_gateway(tmp_path, max_body_bytes="20000") as gateway:
        told = [
            (await ask(gateway, query))["errors"][0]["extensions"]
            for query in (deep + "}", aliases, aliases, "{" + " " * 20_000 + "}")
        ]
        registered = await gateway.client.post("/api/add-provider", content=b" " * 70_000)
        counted = await measured(gateway, "limit_refusals_total")

    assert told == [
        {"code": "REQUEST_LIMIT_EXCEEDED", "limit": limit}
        for limit in ("depth", "aliases", "aliases", "body_bytes")
    ]
    assert registered.json()["code"] == "REQUEST_LIMIT_EXCEEDED"
    assert counted == {("depth",): 1, ("aliases",): 2, ("body_bytes",): 2}


def test_callers_cannot_make_more_series_than_a_hundred_names() -> None:
    metrics = Metrics()
    for number in range(150):
        for outcome in (Outcome.REFUSED, Outcome.OK, Outcome.OK):
            operation = Operation(kind=OperationKind.QUERY, name=f"Q{number}", outcome=outcome)
            metrics.on_operation(operation, seconds=0.1, calls=1)
    metrics.on_operation(
        Operation(kind=OperationKind.QUERY, name="N" * 101, outcome=Outcome.OK), seconds=1, calls=0
    )
    metrics.on_operation(
        Operation(kind=OperationKind.QUERY, name="Registered", outcome=Outcome.OK),
        seconds=1,
        calls=0,
        is_trusted=True,
    )

    counted = {
        (sample.labels["operation"], sample.labels["outcome"]): sample.value
        for family in text_string_to_metric_families(written(metrics))
        for sample in family.samples
        if sample.name == "learning_gateway_operation_seconds_count"
    }

    assert len(counted) == 100 + 1 + 2
    assert counted["Registered", "ok"] == 1
    assert counted["Q99", "ok"] == 2
    assert ("Q100", "ok") not in counted
    assert counted["(other)", "ok"] == 2 * 50 + 1
    assert counted["(other)", "refused"] == 150  # a name is worth nothing until it is executed


async def test_the_name_of_a_trusted_document_is_counted_whatever_callers_have_sent(
    gateway: RunningGateway,
) -> None:
    trusted = "query Registered { __typename }"
    draft = DocumentDraft(id=hashlib.sha256(trusted.encode()).hexdigest(), text=trusted, names=())
    await gateway.parts.trusted.register([draft], client="web@1")
    for number in range(101):
        await ask(gateway, f"query Q{number} {{ __typename }}")

    await gateway.client.post("/graphql", json={"documentId": draft.id})

    counted = await measured(gateway, "operation_seconds_count")
    assert counted["(other)", "ok", "query"] == 1
    assert counted["Registered", "ok", "query"] == 1


def written(metrics: Metrics) -> str:
    """Return what is served once everything a metric can hear of has happened."""
    metrics.on_request("users", 200, seconds=0.1, calls=1)
    metrics.on_call(
        UpstreamCall(
            provider_id="1",
            method="GET",
            path="/",
            status=200,
            error=None,
            seconds=0.1,
            body_bytes=9,
        )
    )
    metrics.on_transition("1", Transition.LOG_IN, TransitionOutcome.COMMITTED, seconds=0.1)
    metrics.on_heartbeat("1", late_seconds=0.1)
    metrics.on_admitted(waited_seconds=0.1)
    metrics.on_shed("queue_full")
    metrics.on_loop_wait(0.1)
    metrics.on_breaker("1", BreakerState.OPEN, cause=None)
    metrics.on_refusal("1", RefusalReason.OPEN)
    metrics.on_limit("depth")
    metrics.on_match_run(MatchRunState.DONE)
    metrics.on_compared(pairs=1, suggestions=1, seconds=0.1)
    return metrics.write(
        {("1", SessionState.ACTIVE): 1},
        IconCounts(),
        load=Load(running=1, waiting=0, subscriptions=0, allowed=32),
        health={"1": ProviderHealth(state=BreakerState.OPEN, since=NOW, calls_limit=4)},
        cache=CacheCounts(),
    ).decode()


async def test_the_list_of_metrics_is_what_is_served(gateway: RunningGateway) -> None:
    served = (await gateway.get("/metrics")).text
    metrics = Metrics()
    metrics.on_operation(Operation(executed_by="plan"), seconds=0.1, calls=1)

    listed = dict(
        re.findall(r"^\| `(learning_gateway_\w+)(?:\{([\w,]+)\})?`", page(), re.MULTILINE)
    )

    names = set(re.findall(r"^# TYPE (learning_gateway_\w+) ", served, re.MULTILINE))
    assert set(listed) == names
    assert {name: labels(text) for name, text in listed.items()} == labels_served(written(metrics))


def page() -> str:
    return PAGE.read_text(encoding="utf-8")


def labels(listed: str) -> frozenset[str]:
    return frozenset(listed.split(",")) - {""}


def labels_served(text: str) -> dict[str, frozenset[str]]:
    """Return the labels of every metric of ours, ``le`` of histograms left out."""
    return {
        name: frozenset(family.samples[0].labels) - {"le"}
        for family in text_string_to_metric_families(text)
        for name in [family.name + ("_total" if family.type == "counter" else "")]
        if name.startswith("learning_gateway_")
    }


# The log.


async def test_the_line_of_a_request_names_the_operation_and_its_document(
    gateway: RunningGateway, logged: io.StringIO
) -> None:
    query = "query Né"  # does not parse
    await ask(gateway, NAMES, variables={})
    await ask(gateway, query)
    await gateway.users()

    await until(lambda: len(lines(logged, "request")) == 3)  # written after the answer is sent
    found = lines(logged, "request")
    told = [(line.get("operation"), line.get("operation_type")) for line in found]
    assert told == [("Names", "query"), (None, None), (None, None)]
    hashes = [line.get("document_sha256") for line in found]
    assert hashes == [hashlib.sha256(text.encode()).hexdigest() for text in (NAMES, query)] + [None]


async def test_a_slow_operation_has_a_line_that_says_where_its_time_went(
    tmp_path: Path, kolibri: Kolibri, logged: io.StringIO
) -> None:
    secret = "query Slow($ids: [ID!]) { users(filter: {providerIds: $ids}) { nodes { username } } }"
    async with running(kolibri) as url, running_gateway(tmp_path, slow_seconds="0.2") as gateway:
        await gateway.add_kolibri(url)
        await ask(gateway, NAMES)
        kolibri.latency_seconds = 0.25
        answer = await gateway.client.post(
            "/graphql", json={"query": secret, "variables": {"ids": ["1"]}}
        )

    (line,) = lines(logged, "slow_operation")
    (provider,) = line.pop("providers")
    assert {name: line[name] for name in ("operation", "operation_type", "outcome", "key_id")} == {
        "operation": "Slow",
        "operation_type": "query",
        "outcome": "ok",
        "key_id": "bootstrap",
    }
    assert line["document_sha256"] == hashlib.sha256(secret.encode()).hexdigest()
    assert line["request_id"] == answer.headers["x-request-id"]
    assert 0.25 <= line["seconds"] < 5
    assert provider["provider_id"] == "1"
    assert provider["calls"] == 1
    assert 0.25 <= provider["upstream_seconds"] < 5
    assert (provider["waited_seconds"], provider["bytes"] > 0) == (0, True)
    assert "displayName" not in logged.getvalue() + str(line)
    assert "providerIds" not in logged.getvalue()
    assert TOKEN not in logged.getvalue()


async def test_no_operation_is_slow_where_that_is_off(
    tmp_path: Path, kolibri: Kolibri, logged: io.StringIO
) -> None:
    async with running(kolibri) as url, running_gateway(tmp_path, slow_seconds="0") as gateway:
        await gateway.add_kolibri(url)
        kolibri.latency_by_path["/api/auth/facilityuser/"] = 1.1
        answer = await ask(gateway, NAMES)

    assert len(answer["data"]["users"]["nodes"]) == 3
    assert lines(logged, "slow_operation") == []


# What is drawn of it.


def test_dashboard_and_alerts_name_only_metrics_and_labels_that_there_are() -> None:
    dashboard = json.loads((EXAMPLES / "dashboard.json").read_text(encoding="utf-8"))
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked += re.findall(r"expr: (.+)", (EXAMPLES / "alerts.yaml").read_text(encoding="utf-8"))
    metrics = Metrics()
    metrics.on_operation(Operation(), seconds=0.1, calls=1)
    served = served_samples(written(metrics))

    named = [
        (name, label)
        for text in asked
        for name, selector in re.findall(
            r"((?:learning_gateway|process)_\w+)(?:\{([^}]*)\})?", text
        )
        for label in ["", *re.findall(r"(\w+)[=!]", selector)]
    ]
    grouped = [
        label
        for text in asked
        for labels_ in re.findall(r"by \(([^)]*)\)", text)
        for label in labels_.split(", ")
    ]

    assert len(asked) == 17 + 7
    assert {name for name, _ in named} <= set(served)
    of_scraping = {"", "job", "instance"}
    assert [one for one in named if one[1] not in of_scraping | served[one[0]]] == []
    assert set(grouped) <= {"instance"}.union(*served.values())


def served_samples(text: str) -> dict[str, frozenset[str]]:
    """Return the labels of every sample by its name."""
    return {
        sample.name: frozenset(sample.labels)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
