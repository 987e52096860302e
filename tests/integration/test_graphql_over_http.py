"""GraphQL over HTTP: forms, statuses, what web pages may do, and callers that leave."""

import asyncio
import io
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from running_gateway import TOKEN, RunningGateway, problem_of, running_gateway

from gateway.bodies import decode_object
from gateway.logs import configure_logs
from resolvers.errors import BadInput

JSON = "application/json"
GRAPHQL = "application/graphql-response+json"
TYPENAME = {"query": "{ __typename }"}
URQL_QUERY = (
    "application/graphql-response+json, application/graphql+json, application/json,"
    " text/event-stream, multipart/mixed"
)
APOLLO_SUBSCRIPTION = (
    "multipart/mixed;boundary=graphql;subscriptionSpec=1.0,"
    "application/graphql-response+json,application/json;q=0.9"
)
CHANGES = "subscription { changes { cursor } }"
PAGE = "https://app.example.org"


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[RunningGateway]:
    async with running_gateway(tmp_path) as running_one:
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


async def ask(gateway: RunningGateway, body: Any = None, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await gateway.client.post("/graphql", json=body or TYPENAME, headers=named)


# Forms.


async def test_several_lines_of_accept_are_one_list(gateway: RunningGateway) -> None:
    answer = await gateway.client.post(
        "/graphql",
        json={"query": "subscription { nothing }"},
        headers=[("Accept", JSON), ("Accept", "text/event-stream")],  # as Laravel writes them
    )

    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"


async def test_a_query_of_urql_is_json_though_it_names_every_stream(
    gateway: RunningGateway,
) -> None:
    answer = await ask(gateway, accept=URQL_QUERY)

    assert answer.headers["content-type"] == f"{GRAPHQL}; charset=utf-8"


async def test_a_subscription_is_multipart_to_those_who_ask_for_apollos_protocol(
    gateway: RunningGateway,
) -> None:
    body = {"query": 'subscription { importProgress(providerId: "none") { id } }'}

    answer = await ask(gateway, body, accept=APOLLO_SUBSCRIPTION)

    assert answer.headers["content-type"] == (
        'multipart/mixed; boundary="graphql"; subscriptionSpec="1.0"'
    )
    head, payload, end = answer.text.split("\r\n--graphql")[0:3]
    assert (head, end) == ("", "--\r\n")
    assert payload.startswith("\r\nContent-Type: application/json; charset=utf-8\r\n\r\n")
    (error,) = json.loads(payload.partition("\r\n\r\n")[2])["payload"]["errors"]
    assert error["extensions"]["code"] == "PROVIDER_NOT_FOUND"


async def test_a_multipart_subscription_has_a_place_among_the_streams_until_it_is_left(
    gateway: RunningGateway,
) -> None:
    admission = gateway.parts.admission
    async with gateway.client.stream(
        "POST", "/graphql", json={"query": CHANGES}, headers={"Accept": APOLLO_SUBSCRIPTION}
    ) as answer:
        first = await anext(answer.aiter_text())
        assert (admission.load().running, admission.load().subscriptions) == (0, 1)

    assert first == "\r\n--graphql"
    async with asyncio.timeout(10):
        while admission.load().subscriptions:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.01)


async def test_a_plain_query_cannot_be_had_in_the_form_of_subscriptions(
    gateway: RunningGateway,
) -> None:
    answer = await ask(gateway, accept='multipart/mixed;subscriptionSpec="1.0"')

    assert answer.status_code == 406


@pytest.mark.parametrize("given", ["[]", "{}", ""])
async def test_by_get_too_php_may_write_an_empty_object_as_a_list(
    gateway: RunningGateway, given: str
) -> None:
    answer = await gateway.get(
        "/graphql", params={**TYPENAME, "variables": given, "extensions": given}
    )

    assert answer.json() == {"data": {"__typename": "Query"}}


async def test_head_is_a_get_without_its_body(gateway: RunningGateway) -> None:
    answer = await gateway.client.head("/graphql", params=TYPENAME)

    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"] == f"{JSON}; charset=utf-8"


@pytest.mark.parametrize("number", ["1e999", "-1e999", "1" * 5000, "NaN", "-Infinity"])
async def test_numbers_nobody_can_hold_are_refused(gateway: RunningGateway, number: str) -> None:
    body = f'{{"query": "{{ __typename }}", "variables": {{"n": {number}}}}}'

    answer = await gateway.client.post(
        "/graphql", content=body, headers={"Content-Type": "application/json"}
    )

    assert answer.status_code == 400
    assert answer.json()["errors"][0]["message"] == "body: It holds a number that is out of range"


async def test_brackets_count_as_nesting_only_outside_of_strings(gateway: RunningGateway) -> None:
    deep = {"v": json.loads("[" * 65 + "]" * 65)}
    wide = {"v": [[]] * 100, "text": '[{"\\' * 100}

    refused = await ask(gateway, {**TYPENAME, "variables": deep})
    fine = await ask(gateway, {**TYPENAME, "variables": wide})

    assert "nested deeper than 64 levels" in refused.json()["errors"][0]["message"]
    assert fine.json() == {"data": {"__typename": "Query"}}


@pytest.mark.parametrize(
    ("opening", "closing"), [("[", "]"), ('{"a":', "}"), ("[", ""), ("[[]", "]"), ("[}", "")]
)
def test_no_nesting_takes_long_to_refuse(opening: str, closing: str) -> None:
    pairs = 90_000 // len(opening + closing)
    body = (opening * pairs + closing * pairs).encode()
    began_at = time.process_time()

    with pytest.raises(BadInput, match=r"nested deeper than 64 levels|It is not JSON"):
        decode_object(body)

    assert time.process_time() - began_at < 0.1


async def test_of_a_name_given_twice_the_last_one_counts(gateway: RunningGateway) -> None:
    answer = await gateway.client.post(
        "/graphql",
        content='{"query": 1, "query": "{ a: __typename }"}',
        headers={"Content-Type": "application/json"},
    )

    assert answer.json() == {"data": {"a": "Query"}}


# Statuses.


UNREADABLE = {"query": "{"}
INVALID = {"query": "{ nothing }"}
NO_OPERATION = {**TYPENAME, "operationName": "Q"}
WRONG_VARIABLE = {"query": "query ($f: Int) { users(first: $f) { totalCount } }"}
ILL_FORMED = {"quary": "{ __typename }"}
TOO_LARGE = {"query": "{" + "a: __typename " * 400 + "}"}
FAILING = {"query": '{ users(filter: {providerIds: ["none"]}) { totalCount } }'}


STATUSES: Mapping[str, tuple[Mapping[str, Any], tuple[int, int], tuple[int, int]]] = {
    "fine": (TYPENAME, (200, 200), (200, 200)),
    "unreadable": (UNREADABLE, (200, 400), (200, 400)),
    "invalid": (INVALID, (200, 400), (200, 422)),
    "operation": (NO_OPERATION, (400, 400), (422, 422)),
    "variable": ({**WRONG_VARIABLE, "variables": {"f": "x"}}, (200, 400), (200, 422)),
    "ill-formed": (ILL_FORMED, (400, 400), (422, 422)),
    "large": (TOO_LARGE, (400, 400), (422, 422)),
    "partial": (FAILING, (200, 200), (200, 294)),
}
"""A body, and its statuses as JSON and as GraphQL response: of the older draft, of the newer."""


@pytest.mark.parametrize("switch", ["off", "on"])
async def test_the_newest_drafts_statuses_are_a_setting(tmp_path: Path, switch: str) -> None:
    async with running_gateway(tmp_path, new_statuses=switch) as gateway:
        found = {
            name: tuple(
                [
                    (await ask(gateway, body, accept=media_type)).status_code
                    for media_type in (JSON, GRAPHQL)
                ]
            )
            for name, (body, _, _) in STATUSES.items()
        }

    assert found == {
        name: newer if switch == "on" else older for name, (_, older, newer) in STATUSES.items()
    }


# What web pages may do.


async def test_pages_of_other_sites_may_do_nothing_unless_they_are_named(tmp_path: Path) -> None:
    cases: list[tuple[Mapping[str, str], int]] = [
        ({"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Origin": "https://blog.example.org"}, 403),
        ({"Sec-Fetch-Site": "anything"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Origin": PAGE}, 200),
        ({"Sec-Fetch-Site": "same-site", "Origin": PAGE.upper()}, 200),
        ({"Origin": PAGE}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({}, 200),
    ]
    async with running_gateway(tmp_path, cors_origins=PAGE) as gateway:
        for headers, status in cases:
            posted = await gateway.client.post("/graphql", json=TYPENAME, headers=headers)
            got = await gateway.client.get("/graphql", params=TYPENAME, headers=headers)
            rest = await gateway.client.get("/api/users", params={"id": "none"}, headers=headers)

            assert (posted.status_code, got.status_code) == (status, status), headers
            assert rest.status_code == (404 if status == 200 else 403), headers
            if status == 403:
                assert posted.json()["errors"][0]["extensions"]["code"] == "FORBIDDEN"
                assert problem_of(rest) == (403, "FORBIDDEN")


async def test_our_own_pages_may_ask_and_anybodys_may_lead_to_them(
    gateway: RunningGateway,
) -> None:
    own = await ask(gateway, origin=gateway.url)
    led = await gateway.get(
        "/graphql", headers={"Accept": "text/html", "Sec-Fetch-Site": "cross-site"}
    )

    assert (own.status_code, led.status_code) == (200, 200)
    assert led.headers["content-type"].startswith("text/html")


async def test_where_no_key_is_needed_a_get_must_show_that_no_other_page_made_it(
    tmp_path: Path,
) -> None:
    cases: list[tuple[Mapping[str, str], int]] = [
        ({}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Content-Type": "application/json"}, 200),
        ({"X-Requested-With": "curl"}, 200),
        ({"Authorization": f"Bearer {TOKEN}"}, 200),
        ({"Sec-Fetch-Site": "none", "Host": "evil.example:8080"}, 403),
        ({"Sec-Fetch-Site": "none", "Host": "[::1"}, 200),
        ({"Sec-Fetch-Site": "none", "Host": "[::1]:8080"}, 200),
        ({"Sec-Fetch-Site": "none", "Host": "gateway.localhost:8080"}, 200),
        ({"Sec-Fetch-Site": "none", "Host": "LOCALHOST"}, 200),
    ]
    async with running_gateway(tmp_path, dev="on") as gateway:
        del gateway.client.headers["authorization"]
        for headers, status in cases:
            answer = await gateway.client.get("/graphql", params=TYPENAME, headers=headers)

            assert answer.status_code == status, headers


async def test_where_no_key_is_needed_no_page_can_register_a_provider(tmp_path: Path) -> None:
    details = json.dumps({"id": "1", "type": "kolibri", "url": "http://127.0.0.1:1"})
    async with running_gateway(tmp_path, dev="on") as gateway:
        del gateway.client.headers["authorization"]
        refused = await gateway.client.post(
            "/api/add-provider", content=details, headers={"Content-Type": "text/plain"}
        )
        known = await gateway.graphql("{ providers { providerId } }")

    assert problem_of(refused) == (403, "FORBIDDEN")
    assert known == {"data": {"providers": []}}


async def test_a_named_page_is_told_that_it_may(tmp_path: Path) -> None:
    preflight = {
        "Origin": PAGE,
        "Sec-Fetch-Site": "cross-site",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    async with running_gateway(tmp_path, cors_origins=f"http://x.test, {PAGE}") as gateway:
        del gateway.client.headers["authorization"]
        asked = await gateway.client.options("/graphql", headers=preflight)
        rest = await gateway.client.options("/api/users", headers=preflight)
        answer = await ask(gateway, origin=PAGE, authorization=f"Bearer {TOKEN}")
        keyless = await ask(gateway, origin=PAGE)
        stranger = await gateway.client.options(
            "/graphql", headers={**preflight, "Origin": "https://evil.example"}
        )
        elsewhere = await gateway.client.options("/health", headers=preflight)

    assert (asked.status_code, rest.status_code) == (204, 204)
    assert dict(asked.headers) | {
        "access-control-allow-origin": PAGE,
        "access-control-allow-methods": "GET, POST",
        "access-control-allow-headers": "authorization,content-type",
        "access-control-max-age": "7200",
        "vary": "Origin, Access-Control-Request-Method, Access-Control-Request-Headers",
    } == dict(asked.headers)
    for given in (answer, keyless):
        assert given.headers["access-control-allow-origin"] == PAGE
        assert "X-Request-ID" in given.headers["access-control-expose-headers"]
        assert given.headers["vary"] == "Accept, Origin"
    assert (answer.status_code, keyless.status_code) == (200, 401)
    assert "access-control-allow-origin" not in stranger.headers
    assert "access-control-allow-origin" not in elsewhere.headers
    assert (stranger.status_code, elsewhere.status_code) == (405, 405)


async def test_without_the_setting_no_page_is_told_anything(gateway: RunningGateway) -> None:
    answer = await ask(gateway, origin=gateway.url)

    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert answer.headers["vary"] == "Accept"


# Callers that leave.


async def test_a_caller_who_leaves_in_the_middle_of_its_body_is_no_fault(
    gateway: RunningGateway, logged: io.StringIO
) -> None:
    target = urlsplit(gateway.url)
    for path in ("/graphql", "/api/add-provider"):
        _, writer = await asyncio.open_connection(target.hostname, target.port)
        writer.write(
            f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
            "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{".encode()
        )
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.close()
        await writer.wait_closed()

    def left() -> list[Any]:
        lines = map(json.loads, logged.getvalue().splitlines())
        return [line["status"] for line in lines if line["event"] == "request"]

    async with asyncio.timeout(10):
        while len(left()) < 2:  # noqa: ASYNC110 - the log has no event
            await asyncio.sleep(0.01)
    assert left() == [499, 499]
    assert not re.search("error|exception|Traceback", logged.getvalue())


# Long answers.

WHOLE_SCHEMA = (
    "{ __schema { types { name description fields { name description isDeprecated"
    " args { name description defaultValue } type { name ofType { name } } } } } }"
)


async def test_a_long_answer_is_sent_while_it_is_written(gateway: RunningGateway) -> None:
    async with gateway.client.stream(
        "POST", "/graphql", json={"query": WHOLE_SCHEMA}, headers={"accept": GRAPHQL}
    ) as answer:
        body = await answer.aread()

    assert (answer.status_code, answer.headers["content-type"]) == (
        200,
        f"{GRAPHQL}; charset=utf-8",
    )
    assert answer.headers["transfer-encoding"] == "chunked"
    assert "content-length" not in answer.headers
    assert answer.headers["x-request-id"]
    assert len(body) > 64 * 1024
    assert len(json.loads(body)["data"]["__schema"]["types"]) > 64


async def test_the_head_of_a_long_answer_tells_its_length(gateway: RunningGateway) -> None:
    asked = {"query": WHOLE_SCHEMA}
    whole = await gateway.client.get("/graphql", params=asked)
    head = await gateway.client.head("/graphql", params=asked)

    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(whole.content))
