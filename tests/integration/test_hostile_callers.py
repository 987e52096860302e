"""What one caller does costs the others nothing."""

import asyncio
import base64
import os
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import uvicorn
from running_gateway import TOKEN, RunningGateway, problem_of, running_gateway

from gateway.serving import _BoundedProtocol
from schema.limits import DocumentLimits
from simulators.kolibri.app import running
from simulators.kolibri.population import build_population
from simulators.kolibri.state import Kolibri

UP_AND_DOWN = """{
  users(first: 500) { nodes { enrollments(first: 500) { nodes { course {
    enrollments(first: 500) { nodes { user { enrollments(first: 500) { nodes { course {
      enrollments(first: 500) { nodes { user { externalId } } }
    } } } } } }
  } } } } }
}"""


async def _added(gateway: RunningGateway, url: str, *, provider_id: str = "1") -> None:
    await gateway.add_kolibri(url, id=provider_id)


async def test_lists_inside_lists_are_refused_past_a_number_of_rows(tmp_path: Path) -> None:
    kolibri = Kolibri(build_population())
    async with running(kolibri) as url, running_gateway(tmp_path, max_cost="0") as gateway:
        await _added(gateway, url)

        refused = await gateway.graphql(UP_AND_DOWN)
        fine = await gateway.graphql("{ users { nodes { enrollments { nodes { id } } } } }")

    assert {e["extensions"]["code"] for e in refused["errors"]} == {"REQUEST_LIMIT_EXCEEDED"}
    assert "more than 20000 rows" in refused["errors"][0]["message"]
    assert "errors" not in fine


async def test_a_chain_of_fragments_is_refused_and_not_a_fault_of_ours(tmp_path: Path) -> None:
    chain = " ".join(f"fragment f{n} on Query {{ ...f{n + 1} }}" for n in range(90))
    document = f"{{ ...f0 }} {chain} fragment f90 on Query {{ providers {{ id }} }}"
    async with running_gateway(tmp_path) as gateway:
        answer = await gateway.client.post("/graphql", json={"query": document})

    (error,) = answer.json()["errors"]
    assert error["extensions"]["code"] == "REQUEST_LIMIT_EXCEEDED"
    assert f"91 fragments, at most {DocumentLimits().max_fragments}" in error["message"]


async def test_more_providers_than_anybody_has_cannot_be_named(tmp_path: Path) -> None:
    query = "query ($ids: [ID!]) { users(filter: {providerIds: $ids}) { totalCount } }"
    async with running_gateway(tmp_path) as gateway:
        answer = await gateway.graphql(query, ids=[f"u{number}" for number in range(800)])

    (error,) = answer["errors"]
    assert error["message"] == "filter.providerIds: 800 ids are too many, at most 100"


@pytest.mark.parametrize("head", ["X-A: " + "a" * 200_000, "X-A: b\r\n" * 30_000])
async def test_an_endless_request_head_is_broken_off(tmp_path: Path, head: str) -> None:
    async with running_gateway(tmp_path) as gateway:
        server = await _bounded_server(gateway)
        address = server.sockets[0].getsockname()
        reader, writer = await asyncio.open_connection(*address)
        writer.write(f"GET /health HTTP/1.1\r\nHost: x\r\n{head}".encode())
        try:
            await writer.drain()
            answer = await reader.read(100)
        except ConnectionResetError:
            answer = b""
        writer.close()
        sane_reader, sane = await asyncio.open_connection(*address)
        sane.write(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        good = await sane_reader.read(2000)
        sane.close()
        server.close()
        await server.wait_closed()

    assert answer == b""
    assert good.startswith(b"HTTP/1.1 200")


async def test_a_connection_may_be_used_for_as_many_requests_as_one_likes(
    tmp_path: Path,
) -> None:
    body = b'{"query": "{ __typename }"}'.ljust(90_000)
    head = f"POST /graphql HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
    post = f"{head}Content-Type: application/json\r\nContent-Length: 90000\r\n\r\n".encode() + body
    get = f"GET /health HTTP/1.1\r\nHost: x\r\nX-Filler: {'x' * 1000}\r\n\r\n".encode()
    statuses = []
    async with running_gateway(tmp_path) as gateway:
        server = await _bounded_server(gateway)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        for request in (post, *[get] * 100, post):
            writer.write(request)
            answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            await reader.readexactly(int(answer.partition("content-length: ")[2].split()[0]))
            statuses.append(answer.split()[1])
        writer.close()
        server.close()
        await server.wait_closed()

    assert statuses == ["200"] * 102


async def _bounded_server(gateway: RunningGateway) -> asyncio.Server:
    """Serve the same application by the protocol that the program uses."""
    config = uvicorn.Config(gateway.app, log_config=None, ws="none")
    config.load()
    state = uvicorn.Server(config).server_state
    loop = asyncio.get_running_loop()
    return await loop.create_server(
        lambda: _BoundedProtocol(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )


async def test_a_provider_sealed_with_another_key_costs_only_its_own_rows(tmp_path: Path) -> None:
    kolibri = Kolibri(build_population())
    keys = [f"k{n}:{base64.b64encode(os.urandom(32)).decode()}" for n in (1, 2)]
    async with running(kolibri) as url:
        async with running_gateway(tmp_path, keys=keys[0]) as older:
            await _added(older, url, provider_id="1")
        async with running_gateway(tmp_path, keys=f"{keys[1]},{keys[0]}") as newer:
            await _added(newer, url, provider_id="2")
        async with running_gateway(tmp_path, keys=keys[0]) as behind:
            answer = await behind.graphql(
                "{ users(first: 500) { nodes { externalId } sources { providerId status code } } }"
            )
            rest = await behind.users("2")

    assert answer["data"]["users"]["sources"] == [
        {"providerId": "1", "status": "OK", "code": None},
        {"providerId": "2", "status": "FAILED", "code": "PROVIDER_AUTH_FAILED"},
    ]
    assert len(answer["data"]["users"]["nodes"]) == 67
    assert problem_of(rest) == (502, "PROVIDER_AUTH_FAILED")


async def test_ending_the_session_of_a_disabled_provider_is_no_fault(tmp_path: Path) -> None:
    kolibri = Kolibri(build_population())
    async with running(kolibri) as url, running_gateway(tmp_path) as gateway:
        await _added(gateway, url)
        answer = await gateway.graphql("""mutation {
          a: updateProvider(input: {providerId: "1", disabled: true}) { __typename }
          b: revokeSession(providerId: "1") { __typename }
        }""")

    assert "errors" not in answer
    assert answer["data"]["a"] == {"__typename": "ProviderPayload"}


async def test_metrics_are_refused_to_a_key_for_some_providers_only(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway:
        key = await gateway.key("read:metrics", "provider:7")
        answer = await gateway.client.get("/metrics", headers=key)

    assert problem_of(answer) == (403, "FORBIDDEN")


async def test_nobody_is_sent_to_the_host_a_caller_names(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway:
        answer = await gateway.client.get("/api/users/?id=1", headers={"Host": "evil.example"})

    assert answer.status_code == 404
    assert urlsplit(answer.headers.get("location", "")).netloc == ""


async def test_ids_are_numbers_only_where_every_client_reads_them_as_such(tmp_path: Path) -> None:
    kolibri = Kolibri(build_population())
    found = {}
    async with running(kolibri) as url, running_gateway(tmp_path) as gateway:
        for given in ("7", "007", "12345678901234567890"):
            await _added(gateway, url, provider_id=given)
            rows = (await gateway.get("/api/courses", params={"id": given})).json()
            found[given] = {row["provider_platform_id"] for row in rows}

    assert found == {"7": {7}, "007": {"007"}, "12345678901234567890": {"12345678901234567890"}}
