import asyncio
import gc
import io
import json
import logging
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running_gateway import (
    ADMIN,
    Product,
    RunningGateway,
    address_of,
    listening,
    logins,
    problem_of,
    running_gateway,
    running_product,
)

from gateway.app import calm_collector
from gateway.bodies import decode_object
from gateway.logs import configure_logs
from resolvers.errors import BadInput
from simulators.kolibri.app import running
from simulators.kolibri.population import build_population
from simulators.kolibri.state import Kolibri, Outage

JSON = "application/json; charset=utf-8"
GRAPHQL = "application/graphql-response+json; charset=utf-8"
TYPENAME = {"query": "{ __typename }"}


@pytest.fixture
def kolibri() -> Kolibri:
    return Kolibri(build_population())


@pytest.fixture
async def kolibri_url(kolibri: Kolibri) -> AsyncIterator[str]:
    async with running(kolibri) as url:
        yield url


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[RunningGateway]:
    async with running_gateway(tmp_path) as running_one:
        yield running_one


@pytest.fixture
async def product() -> AsyncIterator[Product]:
    async with running_product() as running_one:
        yield running_one


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """Write the logs of everything as in production; yields what was written."""
    written = io.StringIO()
    root = logging.getLogger()
    before = (root.handlers, root.level)
    configure_logs(level="debug", form="json", stream=written)
    yield written
    root.handlers, root.level = before


def lines(logged: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in logged.getvalue().splitlines()]


# GraphQL over HTTP.


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        (None, JSON),
        ("*/*", JSON),
        ("application/*", JSON),
        ("application/json", JSON),
        ("application/json; charset=utf-8", JSON),
        ("application/graphql-response+json", GRAPHQL),
        ("application/graphql-response+json, application/json;q=0.9", GRAPHQL),
        ("application/graphql-response+json;q=0.1, application/json", JSON),
        ("application/graphql-response+json, application/json, text/event-stream", GRAPHQL),
        ("application/json, application/graphql-response+json", JSON),
        ("application/*;q=0.2, application/graphql-response+json;q=0.1", JSON),
        ("application/graphql-response+json, multipart/mixed, text/event-stream", GRAPHQL),
        ("multipart/mixed;incrementalSpec=v0.2, application/json;q=0.9", JSON),
        ("text/event-stream, application/json", JSON),
        ("text/event-stream;q=0.5, application/json", JSON),
        ("application/json;q=0, */*", GRAPHQL),
    ],
)
async def test_the_answer_has_the_type_the_caller_prefers(
    gateway: RunningGateway, accept: str | None, content_type: str
) -> None:
    request = gateway.client.build_request("POST", "/graphql", json=TYPENAME)
    del request.headers["accept"]
    if accept is not None:
        request.headers["accept"] = accept

    answer = await gateway.client.send(request)

    assert (answer.status_code, answer.headers["content-type"]) == (200, content_type)
    assert answer.json() == {"data": {"__typename": "Query"}}
    assert "Accept" in answer.headers["vary"]


async def test_a_type_nobody_offers_is_refused(gateway: RunningGateway) -> None:
    answer = await gateway.client.post(
        "/graphql", json=TYPENAME, headers={"Accept": "application/xml"}
    )

    assert answer.status_code == 406
    assert answer.json()["errors"][0]["extensions"]["code"] == "BAD_INPUT"


@pytest.mark.parametrize(
    "body",
    [
        {"query": "{"},
        {"query": "{ nothing }"},
        {"query": "query ($first: Int!) { users(first: $first) { totalCount } }"},
        {"query": "query ($f: Int) { users(first: $f) { totalCount } }", "variables": {"f": "x"}},
    ],
    ids=["syntax", "validation", "missing variable", "wrong variable"],
)
async def test_a_wrong_document_is_400_to_those_who_know_the_draft_and_200_to_the_others(
    gateway: RunningGateway, body: Mapping[str, Any]
) -> None:
    statuses = {}
    for media_type in (JSON, GRAPHQL):
        accept = {"Accept": media_type.partition(";")[0]}
        answer = await gateway.client.post("/graphql", json=body, headers=accept)
        statuses[media_type] = answer.status_code
        assert answer.headers["content-type"] == media_type
        assert "data" not in answer.json()
        assert {each["extensions"]["code"] for each in answer.json()["errors"]} == {"BAD_INPUT"}

    assert statuses == {JSON: 200, GRAPHQL: 400}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"1",
        b'"query"',
        b"[]",
        b'["a"]',
        b"[null]",
        b'[{"query": "{ __typename }"}]',
        b"{}",
        b'{"query": null}',
        b'{"query": 7}',
        b'{"query": ""}',
        b'{"query": ["{ __typename }"]}',
        b'{"query": "{ __typename }", "variables": "x"}',
        b'{"query": "{ __typename }", "variables": ["x"]}',
        b'{"query": "{ __typename }", "extensions": 1}',
        b'{"query": "{ __typename }", "operationName": 1}',
        b'{"query": "{ __typename }", "operationName": "\\ud800"}',
        b'{"query": "{ \\udfff }"}',
        b'{"query": "{ __typename }", "variables": {"a": ' + b"9" * 5000 + b"}}",
        b'{"query": "{ __typename }", "variables": {"a": NaN}}',
        b'{"query": "{ __typename }", "variables": ' + b"[" * 20_000 + b"]" * 20_000 + b"}",
        b'{"query": "{ __typename }", "a": "\xff\xfe"}',
        b"\xef\xbb\xbf" + b'{"query": "{ __typename }"}',
        "\u2028{}".encode("utf-16"),
    ],
)
async def test_a_malformed_body_is_400_with_a_reason(gateway: RunningGateway, body: bytes) -> None:
    answer = await gateway.client.post(
        "/graphql", content=body, headers={"Content-Type": "application/json"}
    )

    assert answer.status_code == 400
    (error,) = answer.json()["errors"]
    assert error["extensions"] == {"code": "BAD_INPUT"}
    assert re.match(r"(body|query|variables|extensions|operationName): [A-Z]", error["message"])


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.binary()
    | st.text().map(str.encode)
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.text() | st.integers(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ).map(lambda decoded: json.dumps(decoded).encode())
)
def test_any_bytes_are_an_object_or_bad_input(body: bytes) -> None:
    try:
        decoded: object = decode_object(body)
    except BadInput as error:
        decoded = error

    assert isinstance(decoded, dict | BadInput)


@pytest.mark.parametrize("empty", [[], {}, None])
async def test_empty_variables_may_be_a_list_as_php_writes_them(
    gateway: RunningGateway, empty: object
) -> None:
    answer = await gateway.client.post(
        "/graphql", json={**TYPENAME, "variables": empty, "extensions": empty}
    )

    assert answer.json() == {"data": {"__typename": "Query"}}


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/json; charset=latin-1",
    ],
)
async def test_a_body_that_does_not_say_it_is_json_is_refused(
    gateway: RunningGateway, content_type: str | None
) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    answer = await gateway.client.post(
        "/graphql", content=json.dumps(TYPENAME).encode(), headers=headers
    )

    assert answer.status_code == 415


async def test_a_body_over_the_limit_is_refused_however_it_is_sent(tmp_path: Path) -> None:
    async def dripped() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 100

    headers = {"Content-Type": "application/json"}
    async with running_gateway(tmp_path, max_body_bytes="1000") as gateway:
        declared = await gateway.client.post("/graphql", content=b" " * 1001, headers=headers)
        chunked = await gateway.client.post("/graphql", content=dripped(), headers=headers)
        small = await gateway.client.post("/graphql", json=TYPENAME)

    assert (declared.status_code, chunked.status_code, small.status_code) == (413, 413, 200)
    assert declared.json()["errors"][0]["extensions"]["code"] == "REQUEST_LIMIT_EXCEEDED"


async def test_a_query_can_be_sent_by_get_and_a_mutation_cannot(gateway: RunningGateway) -> None:
    query = "query Q($p: ID!) { provider(providerId: $p) { name } }"
    asked = await gateway.get(
        "/graphql", params={"query": query, "variables": '{"p": "1"}', "operationName": "Q"}
    )
    changed = await gateway.get(
        "/graphql", params={"query": 'mutation { removeProvider(providerId: "1") { __typename } }'}
    )
    wrong = await gateway.get("/graphql", params={"query": query, "variables": "{"})
    nothing = await gateway.get("/graphql")
    deleted = await gateway.client.delete("/graphql")

    assert asked.json() == {"data": {"provider": None}}
    assert (changed.status_code, changed.headers["allow"]) == (405, "POST")
    assert wrong.status_code == 400
    assert wrong.json()["errors"][0]["message"].startswith("variables: ")
    assert nothing.status_code == 400
    assert problem_of(deleted) == (405, "BAD_INPUT")
    assert deleted.headers["allow"] == "GET, HEAD, POST"


async def test_without_a_good_key_a_query_is_not_executed(gateway: RunningGateway) -> None:
    for headers in ({"Authorization": ""}, {"Authorization": "Bearer wrong"}):
        answer = await gateway.client.post("/graphql", json=TYPENAME, headers=headers)

        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert answer.json()["errors"][0]["extensions"] == {"code": "UNAUTHENTICATED"}
        assert "data" not in answer.json()


async def test_a_missing_scope_is_forbidden_and_named(gateway: RunningGateway) -> None:
    headers = await gateway.key("read:courses")

    answer = await gateway.client.post(
        "/graphql", json={"query": "{ users { totalCount } }"}, headers=headers
    )

    (error,) = answer.json()["errors"]
    assert error["extensions"]["code"] == "FORBIDDEN"
    assert "read:users" in error["message"]


# Pages, health and metrics.


async def test_browsers_get_graphiql_and_programs_do_not(gateway: RunningGateway) -> None:
    browser = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8", "Authorization": ""}

    page = await gateway.get("/graphql", headers=browser)
    home = await gateway.get("/", headers=browser)

    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert "://" not in re.sub(r"http://www\.w3\.org\S*", "", page.text)
    assert (home.status_code, home.headers["location"]) == (307, "graphql")
    assert (await gateway.get("/graphql")).status_code == 400


async def test_graphiql_can_be_switched_off(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, graphiql="off") as gateway:
        page = await gateway.get("/graphql", headers={"Accept": "text/html"})
        assets = await gateway.get("/explorer/explorer.js")

    assert (page.status_code, assets.status_code) == (406, 404)


async def test_health_and_readiness_need_no_key(gateway: RunningGateway) -> None:
    for path, status in (("/health", "ok"), ("/ready", "ready")):
        answer = await gateway.get(path, headers={"Authorization": ""})
        assert (answer.status_code, answer.json()) == (200, {"status": status})


# aiosqlite warns of connections that it could not open, when they are collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_gateway_without_its_database_is_healthy_but_not_ready(
    gateway: RunningGateway, tmp_path: Path
) -> None:
    for path in (tmp_path / "data").glob("gateway.db*"):
        path.rename(path.with_name(f"lost-{path.name}"))
    (tmp_path / "data" / "gateway.db").mkdir()
    await gateway.parts.database.close()

    health, ready, users = [
        await gateway.get(path) for path in ("/health", "/ready", "/api/users?id=1")
    ]
    asked = await gateway.client.post("/graphql", json={"query": "{ providers { name } }"})

    (tmp_path / "data" / "gateway.db").rmdir()
    for path in (tmp_path / "data").glob("lost-*"):
        path.rename(path.with_name(path.name.removeprefix("lost-")))
    back = await gateway.get("/ready")
    gc.collect()  # here, and not in a test that would be blamed for it
    assert (health.status_code, ready.status_code) == (200, 503)
    assert problem_of(users) == (503, "INTERNAL")
    assert users.headers["retry-after"] == "5"
    assert asked.json()["errors"][0]["extensions"]["code"] == "INTERNAL"
    assert str(tmp_path) not in users.text + asked.text + ready.text
    assert back.status_code == 200


async def test_a_provider_that_is_down_does_not_make_the_gateway_unready(
    gateway: RunningGateway, kolibri: Kolibri, kolibri_url: str
) -> None:
    await gateway.add_kolibri(kolibri_url)
    kolibri.outages.append(Outage(remaining=1000, status=503))
    users = await gateway.users()

    ready = await gateway.get("/ready")

    assert (users.status_code, ready.status_code) == (502, 200)


async def test_metrics_count_requests_upstream_calls_and_sessions(
    gateway: RunningGateway, kolibri_url: str
) -> None:
    await gateway.add_kolibri(kolibri_url)
    await gateway.users()
    await gateway.get("/api/users")
    headers = await gateway.key("read:metrics")

    answer = await gateway.get("/metrics", headers=headers)

    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = measured(answer)
    name = "learning_gateway"
    assert found[f'{name}_requests_total{{route="users",status="200"}}'] == 1
    assert found[f'{name}_requests_total{{route="users",status="400"}}'] == 1
    assert found[f'{name}_sessions{{provider="1",state="ACTIVE"}}'] == 1
    logged_in = 'method="POST",outcome="200",path="/api/auth/session/",provider="1"'
    assert found[f"{name}_upstream_calls_total{{{logged_in}}}"] == 1


async def test_metrics_and_health_tell_of_a_provider_that_fails(
    gateway: RunningGateway, kolibri: Kolibri, kolibri_url: str
) -> None:
    await gateway.add_kolibri(kolibri_url)
    await gateway.users()
    kolibri.counts.calls.clear()
    kolibri.outages.append(Outage(remaining=1000, status=503))
    for _ in range(8):
        await gateway.users()
    reached = kolibri.counts.calls.total()

    found = measured(await gateway.get("/metrics"))
    health = await gateway.graphql(
        "{ providers { health { state sessionState lastErrorCode callsNow callsLimit waiting } } }"
    )

    name = "learning_gateway"
    states = {
        state: found[f'{name}_breaker_state{{provider="1",state="{state}"}}']
        for state in ("CLOSED", "OPEN", "HALF_OPEN")
    }
    assert states == {"CLOSED": 0, "OPEN": 1, "HALF_OPEN": 0}
    assert found[f'{name}_breaker_transitions_total{{provider="1",state="OPEN"}}'] == 1
    assert found[f'{name}_upstream_refusals_total{{provider="1",reason="open"}}'] >= 8 - 5
    assert found[f'{name}_upstream_calls_now{{provider="1"}}'] == 0
    assert found[f'{name}_upstream_calls_limit{{provider="1"}}'] == 1
    assert found[f'{name}_upstream_calls_waiting{{provider="1"}}'] == 0
    assert reached == 5
    assert health["data"]["providers"][0]["health"] == {
        "state": "OPEN",
        "sessionState": "ACTIVE",
        "lastErrorCode": "PROVIDER_UNAVAILABLE",
        "callsNow": 0,
        "callsLimit": 1,
        "waiting": 0,
    }


def measured(answer: httpx.Response) -> dict[str, float]:
    """Return what metrics say, by name and labels."""
    return {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for line in answer.text.splitlines()
        if not line.startswith("#")
    }


async def test_metrics_need_their_scope_unless_they_are_public(tmp_path: Path) -> None:
    async with running_gateway(tmp_path / "a") as gateway:
        reader = await gateway.key("read:users")
        keyless = await gateway.get("/metrics", headers={"Authorization": ""})
        reading = await gateway.get("/metrics", headers=reader)
    async with running_gateway(tmp_path / "b", public_metrics="on") as gateway:
        public = await gateway.get("/metrics", headers={"Authorization": ""})

    assert problem_of(keyless) == (401, "UNAUTHENTICATED")
    assert problem_of(reading) == (403, "FORBIDDEN")
    assert public.status_code == 200


async def test_in_development_no_key_is_needed(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, dev="on") as gateway:
        keyless = await gateway.client.post(
            "/graphql", json=TYPENAME, headers={"Authorization": ""}
        )
        wrong = await gateway.client.post(
            "/graphql", json=TYPENAME, headers={"Authorization": "Bearer wrong"}
        )

    assert (keyless.status_code, wrong.status_code) == (200, 401)


# What is true of every request.


async def test_a_sane_request_id_is_kept_and_another_one_replaced(gateway: RunningGateway) -> None:
    sane = await gateway.get("/health", headers={"X-Request-ID": "trace-0123.abc"})
    wild = await gateway.get("/health", headers={"X-Request-ID": "a b<script>"})
    none = await gateway.get("/health")

    assert sane.headers["x-request-id"] == "trace-0123.abc"
    assert re.fullmatch(r"[0-9a-f]{32}", wild.headers["x-request-id"])
    assert none.headers["x-request-id"] != wild.headers["x-request-id"]


@pytest.mark.parametrize(
    "path", ["/", "/health", "/ready", "/graphql", "/api/users", "/metrics", "/media/x", "/no"]
)
async def test_every_answer_forbids_guessing_framing_and_keeping_it(
    gateway: RunningGateway, path: str
) -> None:
    answer = await gateway.get(path)

    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-store"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "server" not in answer.headers


async def test_an_unknown_path_is_a_problem(gateway: RunningGateway) -> None:
    answer = await gateway.get("/api/nothing")

    assert problem_of(answer) == (404, "BAD_INPUT")


async def test_the_log_has_one_line_a_request_without_its_query(
    logged: io.StringIO, tmp_path: Path
) -> None:
    async with running_gateway(tmp_path) as gateway:
        answer = await gateway.get(
            "/api/users?id=1&secret=in-the-query", headers={"X-Request-ID": "one-request"}
        )

    (line,) = [line for line in lines(logged) if line.get("request_id") == "one-request"]
    assert answer.status_code == 400
    assert (line["event"], line["method"], line["path"]) == ("request", "GET", "/api/users")
    assert line["status"] == 400
    assert "in-the-query" not in logged.getvalue()


# Stopping.


def test_a_stopped_gateway_answers_what_it_has_begun_and_ends_without_an_error(
    tmp_path: Path,
) -> None:
    with listening() as listener:
        port = listener.getsockname()[1]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")},
        "GATEWAY_PORT": str(port),
        "GATEWAY_DATA_FOLDER": str(tmp_path / "data"),
        "GATEWAY_DRAIN_SECONDS": "1",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway.command_line", "serve"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            before = _when_up(client)
            process.send_signal(signal.SIGTERM)
            during = _when_draining(client)
            serving_still = client.get("/health").status_code
        output, log = process.communicate(timeout=20)
    finally:
        process.kill()
        process.communicate()

    token = (tmp_path / "data" / "token").read_text(encoding="ascii").strip()
    assert (before, during, serving_still) == (200, 503, 200)
    assert process.returncode == 0
    assert output.count(token) == 1
    assert token not in log
    assert "gateway_stopped" in log


def _when_up(client: httpx.Client) -> int:
    for _ in range(400):
        try:
            return client.get("/ready").status_code
        except httpx.TransportError:
            signal.sigtimedwait([], 0.05)
    raise AssertionError("The gateway did not start")


def _when_draining(client: httpx.Client) -> int:
    for _ in range(20):
        status = client.get("/ready").status_code
        if status != 200:
            return status
        signal.sigtimedwait([], 0.02)
    raise AssertionError("The gateway did not drain")


async def test_a_restarted_gateway_uses_the_stored_session_without_a_login(
    tmp_path: Path, kolibri: Kolibri, kolibri_url: str
) -> None:
    async with running_gateway(tmp_path) as gateway:
        await gateway.add_kolibri(kolibri_url)
        first = await gateway.users()
    async with running_gateway(tmp_path) as gateway:
        second = await gateway.users()

    assert first.json() == second.json()
    assert logins(kolibri) == 1


# Secrets.


async def test_no_secret_is_in_any_log_answer_metric_repr_or_file(
    logged: io.StringIO,
    tmp_path: Path,
    kolibri: Kolibri,
    kolibri_url: str,
    product: Product,
) -> None:
    canaries = {
        "token": "canary-token-6f1c2a9d",
        "registration secret": "canary-registration-77b0e4",
        "provider password": "canary-password-c91d03",
        "wrong password": "canary-wrong-password-5e2b",
        "sealing key": "Y2FuYXJ5LXNlYWxpbmcta2V5LTAxMjM0NTY3ODlhYmM=",
    }
    kolibri.change_password(ADMIN, canaries["provider password"])
    answers: list[str] = []
    settings = {
        "token": canaries["token"],
        "keys": f"k1:{canaries['sealing key']}",
        "registration_secret": canaries["registration secret"],
        "product_callback_url": product.url,
        "callback_seconds": "0.2",
        "log_level": "debug",
    }
    async with running_gateway(tmp_path, **settings) as gateway:
        gateway.client.headers["Authorization"] = f"Bearer {canaries['token']}"
        answers += await _spread_of_requests(gateway, kolibri, kolibri_url, canaries)
        key, stored_token = await gateway.parts.api_keys.create("canary", ["admin"])
        headers = {"Authorization": stored_token.reveal()}
        answers.append((await gateway.get("/metrics", headers=headers)).text)
        answers.append(repr(gateway.parts))
        answers.append(repr(await gateway.parts.providers.credentials("1")))
        grants = [session for session in kolibri.sessions]  # noqa: C416 - a copy
        nonces = [asked["nonce"] for asked in product.asked]

    assert grants
    assert nonces
    files = {path: path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file()}
    assert any(path.suffix == ".webp" or "media" in path.parts for path in files)
    database = sqlite3.connect(tmp_path / "data" / "gateway.db")
    dump = "\n".join(database.iterdump())
    database.close()
    haystacks = {"log": logged.getvalue(), "answers": "\n".join(answers), "database": dump}
    needles = [*canaries.values(), *grants, *nonces, stored_token.reveal().partition(key.id)[2]]
    found = [
        (place, needle)
        for place, text in haystacks.items()
        for needle in needles
        if needle in text or needle.encode().hex() in text.lower()
    ]
    found += [
        (str(path), needle)
        for path, content in files.items()
        for needle in needles
        if needle.encode() in content
    ]
    assert found == []
    assert len(lines(logged)) > 20


async def _spread_of_requests(
    gateway: RunningGateway, kolibri: Kolibri, url: str, canaries: Mapping[str, str]
) -> list[str]:
    """Ask all kinds of things, good and bad, with secrets wherever one can be."""
    password, wrong = canaries["provider password"], canaries["wrong password"]
    details = {"id": "1", "type": "kolibri", "url": url, "username": ADMIN}
    register = """mutation ($p: String!, $u: String!) { registerProvider(input: {
        providerId: "2", platform: "kolibri", baseUrl: $u,
        credentials: {username: "service_admin", password: $p}}) {
          __typename ... on ProviderRefused { code message field } } }"""
    asked = "{ users(first: 5) { nodes { displayName enrollments { nodes { id } } } } }"
    parsed = url.removeprefix("http://")
    answers = [
        await gateway.add_provider(**details, password=wrong),
        await gateway.add_provider(**details, password=password, colour=wrong),
        await gateway.add_provider(**{**details, "url": f"http://a:{wrong}@{parsed}"}),
        await gateway.add_provider(**{**details, "url": f"{url}/?token={wrong}"}),
        await gateway.add_provider(**details, password=password),
        await gateway.client.post(
            "/graphql", json={"query": register, "variables": {"p": wrong, "u": url}}
        ),
        await gateway.client.post("/graphql", json={"query": asked}),
        await gateway.get("/api/courses?id=1"),
        await gateway.get("/api/users?id=unknown"),
        await gateway.get(f"/api/users?id=1&token={wrong}"),
        await gateway.get("/api/users?id=1", headers={"Authorization": f"Bearer {wrong}"}),
        await gateway.get("/no/such/path", params={"api_key": wrong}),
        await gateway.add_provider(
            **details, password=password, headers={"X-Registration-Nonce": wrong}
        ),
    ]
    kolibri.sessions.clear()
    answers.append(await gateway.users())
    kolibri.outages.append(Outage(remaining=100, status=500))
    answers.append(await gateway.users())
    kolibri.outages.clear()
    return [answer.text for answer in answers]


async def test_an_unexpected_error_is_masked_and_logged_once_under_the_same_id(
    logged: io.StringIO, tmp_path: Path
) -> None:
    async with running_gateway(tmp_path) as gateway:
        object.__setattr__(gateway.parts, "registration", None)  # something nobody expected
        rest = await gateway.users("unknown")
        query = '{ users(filter: {providerIds: ["unknown"]}) { totalCount } }'
        graphql = await gateway.client.post("/graphql", json={"query": query})

    assert problem_of(rest) == (500, "INTERNAL")
    error_id = rest.json()["requestId"]
    (error,) = graphql.json()["errors"]
    assert error["extensions"]["code"] == "INTERNAL"
    assert "NoneType" not in rest.text + graphql.text
    logged_ids = [line["error_id"] for line in lines(logged) if line["event"] == "internal_error"]
    assert logged_ids == [error_id, error["extensions"]["errorId"]]


def test_a_logged_traceback_shows_no_local_variables(logged: io.StringIO) -> None:
    def fail(password: str) -> None:
        length = len(password)
        raise ValueError(length)

    try:
        fail("hidden-in-a-variable")
    except ValueError as error:
        structlog.get_logger("test").error("failed", exc_info=error)

    (line,) = lines(logged)
    assert line["exception"][0]["exc_type"] == "ValueError"
    assert "hidden-in-a-variable" not in logged.getvalue()


def test_what_looks_like_a_secret_is_taken_out_of_every_log_line(logged: io.StringIO) -> None:
    key = "gw_abcdefgh_" + "k" * 43
    structlog.get_logger("test").warning(
        "event",
        password="hidden-1",
        headers={"Authorization": "hidden-2", "Accept": "shown"},
        text=f"sent Bearer hidden-3-and-longer and {key} to http://u:hidden-4@host/?q=hidden-5",
    )
    logging.getLogger("uvicorn.error").error("GET http://host/path?token=hidden-6 failed")

    assert "hidden" not in logged.getvalue()
    assert key not in logged.getvalue()
    assert "shown" in logged.getvalue()
    assert [line["level"] for line in lines(logged)] == ["warning", "error"]


async def test_simultaneous_gateways_share_one_database_and_one_session(
    tmp_path: Path, kolibri: Kolibri, kolibri_url: str
) -> None:
    with listening() as listener:
        address = address_of(listener)
    async with (
        running_gateway(tmp_path, public_url=address) as first,
        running_gateway(tmp_path, public_url=address) as second,
    ):
        await first.add_kolibri(kolibri_url)
        answers = await asyncio.gather(
            *(gateway.users() for gateway in (first, second) for _ in range(20))
        )

    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1
    assert logins(kolibri) == 1


def test_the_collector_leaves_what_was_there_at_the_start_alone() -> None:
    before = gc.get_threshold()
    try:
        calm_collector()
        frozen, thresholds = gc.get_freeze_count(), gc.get_threshold()
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)

    assert frozen > 100_000  # the modules alone are more
    assert thresholds == (200_000, 10, 100)
