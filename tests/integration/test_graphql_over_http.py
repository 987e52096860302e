"""GraphQL over HTTP: forms and statuses."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from running_gateway import RunningGateway, running_gateway

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


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[RunningGateway]:
    async with running_gateway(tmp_path) as running_one:
        yield running_one


async def ask(gateway: RunningGateway, body: Any = None, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await gateway.client.post("/graphql", json=body or TYPENAME, headers=named)


# Forms.


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
