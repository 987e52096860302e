"""The audit log: no change without an entry, no entry with a secret."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pretend_roster import SCHEMA
from running_gateway import RunningGateway, running_gateway
from sqlalchemy import text
from strawberry.types.base import StrawberryObjectDefinition

from resolvers.auditing import AUDIT_JOB
from schema.auditing import Audited
from schema.global_ids import COURSE, USER, GlobalId
from simulators.canvas.app import running as running_canvas
from simulators.canvas.population import build_population as build_canvas
from simulators.canvas.state import ADMIN_TOKEN, Canvas
from simulators.kolibri.app import running
from simulators.kolibri.population import PASSWORD, build_population
from simulators.kolibri.state import Kolibri
from storage.audit import AuditOutcome

LOG = """query ($first: Int, $after: String, $since: DateTime, $caller: String) {
  auditLog(first: $first, after: $after, since: $since, caller: $caller) {
    edges { cursor at caller subject action target arguments { name value } outcome code requestId }
    pageInfo { hasNextPage endCursor } } }"""
ENROLL = """mutation ($input: EnrollUserInput!) { enrollUser(input: $input) {
  ... on EnrollUserPayload { created enrollment { id } } ... on WriteRefused { code } } }"""
REMOVE = 'mutation { removeProvider(providerId: "1") { __typename } }'


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[RunningGateway]:
    async with running_gateway(tmp_path) as opened:
        yield opened


@pytest.fixture
async def canvas() -> AsyncIterator[tuple[Canvas, str]]:
    simulated = Canvas(build_canvas())
    async with running_canvas(simulated) as url:
        yield simulated, url


async def entries(gateway: RunningGateway, **wanted: Any) -> list[dict[str, Any]]:
    answer = await gateway.graphql(LOG, **wanted)
    assert "errors" not in answer, answer
    return [
        {**edge, "arguments": {each["name"]: each["value"] for each in edge["arguments"]}}
        for edge in answer["data"]["auditLog"]["edges"]
    ]


async def sql(gateway: RunningGateway, statement: str) -> None:
    async with gateway.parts.database.transaction() as connection:
        await connection.execute(text(statement))


def told(entry: Mapping[str, Any], *names: str) -> tuple[Any, ...]:
    return tuple(entry[name] for name in names)


def mutations() -> StrawberryObjectDefinition:
    found = SCHEMA.get_type_by_name("Mutation")
    assert isinstance(found, StrawberryObjectDefinition)
    return found


@pytest.mark.parametrize("name", sorted(field.name for field in mutations().fields))
def test_every_mutation_of_the_schema_is_noted(name: str) -> None:
    (field,) = (field for field in mutations().fields if field.name == name)

    assert [type(extension) for extension in field.extensions] == [Audited]


async def test_a_registration_by_mutation_is_noted_without_its_secrets(
    gateway: RunningGateway,
) -> None:
    async with running(Kolibri(build_population())) as url:
        given = {
            "providerId": "1",
            "platform": "kolibri",
            "name": "canary-name",
            "baseUrl": f"{url}/",
            "credentials": {"username": "service_admin", "password": PASSWORD},
            "options": [{"name": "max_age", "value": "60"}],
        }
        document = """mutation ($input: RegisterProviderInput!) {
            registerProvider(input: $input) { __typename } }"""
        headers = {"X-Request-ID": "a-request-id", **gateway.client.headers}
        answer = await gateway.client.post(
            "/graphql", json={"query": document, "variables": {"input": given}}, headers=headers
        )
        (entry,) = await entries(gateway)

    assert answer.json()["data"]["registerProvider"]["__typename"] == "ProviderPayload"
    assert told(entry, "caller", "subject", "action", "target", "outcome", "code", "requestId") == (
        "bootstrap",
        None,
        "registerProvider",
        "provider:1",
        "DONE",
        None,
        "a-request-id",
    )
    assert entry["arguments"] == {
        "providerId": "1",
        "platform": "kolibri",
        "name": "***",
        "baseUrl": url,
        "options": "***",
        "credentials": "***",
    }


async def test_an_address_with_credentials_or_a_query_is_noted_without_them(
    gateway: RunningGateway,
) -> None:
    document = """mutation ($url: String!) { registerProvider(input: {providerId: "1",
        platform: "kolibri", baseUrl: $url, credentials: {password: "canary"}}) { __typename } }"""

    for url in ("http://me:canary@127.0.0.1:9/?key=canary", "canary", "http://[canary"):
        await gateway.graphql(document, url=url)
    found = await entries(gateway)

    assert [told(entry, "outcome", "code") for entry in found] == [("REFUSED", "BAD_INPUT")] * 3
    assert [entry["arguments"]["baseUrl"] for entry in found] == [
        "http://127.0.0.1:9",
        "***",
        "***",
    ]
    assert "canary" not in json.dumps(found)


async def test_writes_at_providers_are_noted_with_whom_they_touch_and_what_came_of_them(
    gateway: RunningGateway, canvas: tuple[Canvas, str]
) -> None:
    simulated, url = canvas
    await gateway.add_provider(id="2", type="canvas", url=url, api_key=ADMIN_TOKEN)
    key = await gateway.key("read:users", "write:enrollments")
    place = {
        "userId": GlobalId(USER, "2", "7").encode(),
        "courseId": GlobalId(COURSE, "2", "8").encode(),
        "idempotencyKey": "canary",
    }

    async def enroll(**changes: str) -> Any:
        body = {"query": ENROLL, "variables": {"input": {**place, **changes}}}
        return (await gateway.client.post("/graphql", json=body, headers=key)).json()

    done = await enroll()
    await enroll(userId="nonsense")
    simulated.reset()
    await gateway.client.post(
        "/graphql",
        json={"query": 'mutation { createUser(input: {providerId: "2", username: "canary",'
              ' displayName: "canary"}) { __typename } }'},
        headers=key,
    )  # fmt: skip
    _, *found = await entries(gateway)

    assert done["data"]["enrollUser"]["created"] is True
    assert [told(entry, "action", "outcome", "code") for entry in found] == [
        ("enrollUser", "DONE", None),
        ("enrollUser", "REFUSED", "BAD_INPUT"),
        ("createUser", "REFUSED", "FORBIDDEN"),
    ]
    assert found[0]["target"].startswith("enrollment:2:1:7")
    assert found[0]["arguments"] == {
        "userId": "user:2:7",
        "courseId": "course:2:8",
        "role": "STUDENT",
        "notify": "False",
        "idempotencyKey": "***",
    }
    assert (found[1]["target"], found[2]["target"]) == (None, "provider:2")
    assert "canary" not in json.dumps(found)


async def test_a_registration_by_rest_is_noted_too(gateway: RunningGateway) -> None:
    refused = await gateway.add_provider(
        id="1", type="kolibri", url="http://127.0.0.1:9", username="x", password="canary"
    )
    async with running(Kolibri(build_population())) as url:
        await gateway.add_kolibri(url)
        found = await entries(gateway)

    assert refused.status_code == 422
    assert [told(entry, "caller", "action", "target", "outcome", "code") for entry in found] == [
        ("bootstrap", "registerProvider", "provider:1", "FAILED", "PROVIDER_UNAVAILABLE"),
        ("bootstrap", "registerProvider", "provider:1", "DONE", None),
    ]
    assert found[1]["arguments"] == {"platform": "kolibri", "baseUrl": url, "credentials": "***"}
    assert "canary" not in json.dumps(found)


async def test_nothing_is_done_when_it_cannot_be_noted(gateway: RunningGateway) -> None:
    async with running(Kolibri(build_population())) as url:
        await gateway.add_kolibri(url)
        await sql(gateway, "alter table audit rename to elsewhere")

        answer = await gateway.client.post("/graphql", json={"query": REMOVE})
        rest = await gateway.add_provider(id="7", type="kolibri", url=url, username="x")
        left = await gateway.graphql("{ providers { providerId } }")

    assert answer.json()["errors"][0]["extensions"]["code"] == "INTERNAL"
    assert rest.status_code == 500
    assert left["data"]["providers"] == [{"providerId": "1"}]


async def test_what_was_begun_and_never_finished_says_so(gateway: RunningGateway) -> None:
    kolibri = Kolibri(build_population())
    async with running(kolibri) as url:
        await gateway.add_kolibri(url)
        kolibri.latency_seconds = 30
        check = asyncio.create_task(
            gateway.graphql('mutation { checkProvider(providerId: "1") { __typename } }')
        )
        for _ in range(500):
            if len(found := await entries(gateway)) == 2:
                break
            await asyncio.sleep(0.01)
        check.cancel()
        await asyncio.wait({check})
        kolibri.latency_seconds = 0

    assert told(found[1], "action", "outcome") == ("checkProvider", "BEGUN")


async def test_only_administrators_read_it_page_by_page(gateway: RunningGateway) -> None:
    for _ in range(3):
        await gateway.graphql(REMOVE)
    other = await gateway.key("admin")
    await gateway.client.post("/graphql", json={"query": REMOVE}, headers=other)
    reader = await gateway.key("read:users", "read:providers", "write:providers")

    first = await gateway.graphql(LOG, first=3)
    page = first["data"]["auditLog"]["pageInfo"]
    second = await entries(gateway, first=3, after=page["endCursor"])
    mine = await entries(gateway, caller="bootstrap")
    refused = await gateway.client.post("/graphql", json={"query": LOG}, headers=reader)
    damaged = await gateway.graphql(LOG, after="x")
    since = await gateway.graphql(LOG, since="yesterday")

    assert len(first["data"]["auditLog"]["edges"]) == 3
    assert page["hasNextPage"] is True
    assert [told(entry, "action", "outcome", "code") for entry in second] == [
        ("removeProvider", "REFUSED", "PROVIDER_NOT_FOUND")
    ]
    assert second[0]["caller"] not in {"bootstrap", None}
    assert len(mine) == 3
    for answer in (refused.json(), damaged, since):
        assert answer["data"]["auditLog"] is None
    assert refused.json()["errors"][0]["extensions"]["code"] == "FORBIDDEN"
    assert "since: An instant is needed" in since["errors"][0]["message"]


async def test_old_entries_are_forgotten_by_whichever_gateway_comes_to_it(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, audit_days="1") as gateway:
        await gateway.graphql(REMOVE)
        await sql(gateway, "update audit set at = at - 86401")
        await sql(gateway, f"update job set due_at = 0 where kind = '{AUDIT_JOB}'")
        await gateway.graphql(REMOVE)
        for _ in range(100):
            if len(found := await entries(gateway)) == 1:
                break
            await asyncio.sleep(0.1)

    assert [told(entry, "outcome") for entry in found] == [(AuditOutcome.REFUSED,)]
