"""What operations may cost: one by itself, a key in a minute, a key at once, and in time."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from pretend_platform import until
from running_gateway import RunningGateway, problem_of, running_gateway
from test_graphql_ws import acknowledged

from simulators.kolibri.app import running
from simulators.kolibri.population import build_population
from simulators.kolibri.state import Kolibri

USERS = "query ($first: Int = 5) { users(first: $first) { nodes { id roles { value } } } }"
COST = {"Gateway-Debug": "cost"}
OF_FIVE = 1 + 5 * (1 + 1 + 3 * 2)
OF_FIVE_ROWS = 1 + 5 * (1 + 1 + 2)  # each has one role


@contextlib.asynccontextmanager
async def _school(folder: Path, **settings: str) -> AsyncIterator[RunningGateway]:
    async with (
        running(Kolibri(build_population())) as url,
        running_gateway(folder, **settings) as gateway,
    ):
        await gateway.add_kolibri(url)
        yield gateway


async def test_any_key_may_ask_what_its_query_cost(tmp_path: Path) -> None:
    async with _school(tmp_path) as gateway:
        headers = COST | dict(await gateway.key("read:users"))
        told = await gateway.client.post("/graphql", json={"query": USERS}, headers=headers)
        both = await gateway.client.post(
            "/graphql", json={"query": USERS}, headers=COST | {"Gateway-Debug": "cost, upstream"}
        )
        silent = await gateway.client.post("/graphql", json={"query": USERS})
        forbidden = await gateway.client.post(
            "/graphql", json={"query": USERS}, headers=headers | {"Gateway-Debug": "cost,upstream"}
        )

    rows = told.json()["data"]["users"]["nodes"]
    actual = 1 + sum(1 + 1 + 2 * len(row["roles"]) for row in rows)
    assert len(rows) == 5
    assert told.json()["extensions"] == {
        "cost": {"estimated": OF_FIVE, "actual": actual, "limit": 6_000_000}
    }
    assert set(both.json()["extensions"]) == {"cost", "upstream"}
    assert "extensions" not in silent.json()
    assert forbidden.status_code == 403


async def test_an_operation_estimated_too_high_is_not_executed(tmp_path: Path) -> None:
    async with _school(tmp_path, max_cost=str(OF_FIVE)) as gateway:
        fine = await gateway.client.post("/graphql", json={"query": USERS})
        body = {"query": USERS, "variables": {"first": 6}}
        refused = await gateway.client.post("/graphql", json=body, headers=COST)

    assert fine.status_code == 200
    assert "errors" not in fine.json()
    assert refused.status_code == 400
    assert refused.json() == {
        "errors": [
            {
                "message": "The operation is estimated at a cost of 49, and 41 is the most one may"
                " cost; 36 of it is for users.nodes.roles: ask for fewer rows, or for fewer fields"
                " of each",
                "extensions": {"code": "REQUEST_LIMIT_EXCEEDED", "limit": "cost"},
            }
        ],
        "extensions": {"cost": {"estimated": 49, "actual": 0, "limit": 41}},
    }


async def test_a_request_that_comes_again_is_charged_each_time(tmp_path: Path) -> None:
    most = OF_FIVE + 6 * OF_FIVE_ROWS + 1  # six are charged what they came to, and one may begin
    async with _school(tmp_path, max_key_cost=str(most), max_age_seconds="600") as gateway:
        sent = [await gateway.client.post("/graphql", json={"query": USERS}) for _ in range(8)]

    assert [answer.status_code for answer in sent] == [200] * 7 + [429]


async def test_a_key_that_has_used_its_minute_is_told_when_to_come_again(tmp_path: Path) -> None:
    async with _school(tmp_path, max_key_cost="60") as gateway:
        other = await gateway.key("read:users")
        first = await gateway.client.post("/graphql", json={"query": USERS})
        spent = await gateway.client.post("/graphql", json={"query": USERS})
        streamed = await gateway.client.post(
            "/graphql", json={"query": USERS}, headers={"Accept": "text/event-stream"}
        )
        others = await gateway.client.post("/graphql", json={"query": USERS}, headers=other)

    assert (first.status_code, others.status_code) == (200, 200)
    for refused in (spent, streamed):
        (error,) = refused.json()["errors"]
        seconds = int(refused.headers["retry-after"])
        assert refused.status_code == 429
        assert 0 < seconds <= 41
        assert error["message"].startswith("This key may use a cost of 60 a minute and has ")
        assert error["extensions"] == {
            "code": "REQUEST_LIMIT_EXCEEDED",
            "limit": "key_cost",
            "retryable": True,
            "retryAfterSeconds": seconds,
        }


async def test_whole_lists_are_charged_for_what_they_came_to(tmp_path: Path) -> None:
    async with _school(tmp_path, max_key_cost="100") as gateway:
        first = await gateway.users()
        spent = await gateway.users()
        query = await gateway.client.post("/graphql", json={"query": USERS})

    assert len(first.json()) * 6 > 100
    assert problem_of(spent) == (429, "REQUEST_LIMIT_EXCEEDED")
    assert spent.json()["limit"] == "key_cost"
    assert spent.headers["retry-after"] == str(spent.json()["retryAfterSeconds"])
    assert query.status_code == 429


async def test_a_websockets_operations_are_charged_to_its_key(tmp_path: Path) -> None:
    async with _school(tmp_path, max_key_cost="60") as gateway, acknowledged(gateway) as talk:
        await talk.begin("1", USERS)
        first = [await talk.hear(), await talk.hear()]
        await talk.begin("2", USERS)
        refused = await talk.hear()
        over_http = await gateway.client.post("/graphql", json={"query": USERS})

    assert [message["type"] for message in first] == ["next", "complete"]
    assert refused["type"] == "error"
    assert refused["payload"][0]["extensions"]["limit"] == "key_cost"
    assert over_http.status_code == 429


async def test_a_key_may_have_so_many_operations_under_way(tmp_path: Path) -> None:
    kolibri = Kolibri(build_population())
    async with (
        running(kolibri) as url,
        running_gateway(tmp_path, max_key_operations="2") as gateway,
    ):
        await gateway.add_kolibri(url)
        others = await gateway.key("read:providers")
        kolibri.latency_seconds = 0.7
        asked = [gateway.client.post("/graphql", json={"query": USERS}) for _ in range(2)]
        under_way = [asyncio.create_task(one) for one in [*asked, gateway.users()]]
        await asyncio.sleep(0.35)
        other = await gateway.client.post(
            "/graphql", json={"query": "{ providers { id } }"}, headers=others
        )
        answers = await asyncio.gather(*under_way)
        after = await gateway.client.post("/graphql", json={"query": USERS})

    assert sorted(answer.status_code for answer in answers) == [200, 200, 429]
    (refused,) = [answer for answer in answers if answer.status_code == 429]
    assert refused.headers["retry-after"] == "1"
    assert (other.status_code, after.status_code) == (200, 200)


class Relay:
    """Passes on what goes to and from a provider; knows when the gateway hung up."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._target = parts.hostname, parts.port
        self.asked_at: list[float] = []
        self.hung_up_at: list[float] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self._target
        from_provider, to_provider = await asyncio.open_connection(host, port)
        answering = asyncio.create_task(self._answers(from_provider, writer))
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                self.asked_at.append(time.monotonic())
                to_provider.write(data)
        self.hung_up_at.append(time.monotonic())
        answering.cancel()
        for one in (to_provider, writer):
            one.close()

    @staticmethod
    async def _answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                writer.write(data)


@pytest.mark.parametrize("max_age", [0, 60])
async def test_at_the_deadline_what_is_asked_of_a_provider_is_given_up(
    tmp_path: Path, max_age: int
) -> None:
    query = f"{{ users(maxAge: {max_age}) {{ nodes {{ id }} sources {{ code }} }} }}"
    kolibri = Kolibri(build_population())
    async with running(kolibri) as url:
        relay = Relay(url)
        server = await asyncio.start_server(relay, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with running_gateway(tmp_path, deadline_seconds="1") as gateway:
            await gateway.add_kolibri(f"http://127.0.0.1:{port}")
            relay.hung_up_at.clear()
            kolibri.latency_seconds = 4
            began_at = time.monotonic()
            answer = await gateway.graphql(query)
            answered_at = time.monotonic()
            await until(lambda: bool(relay.hung_up_at))
            hung_up_at = relay.hung_up_at[0]
        server.close()
        await server.wait_closed()

    assert answer["data"]["users"]["sources"] == [{"code": "PROVIDER_TIMEOUT"}]
    assert 0.9 < answered_at - began_at < 3
    assert any(began_at < asked_at < hung_up_at for asked_at in relay.asked_at)
    assert hung_up_at - answered_at < 0.5
