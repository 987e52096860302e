"""The whole application keeps its promises on SQLite and on PostgreSQL."""

import asyncio
from pathlib import Path

from running_gateway import logins, running_gateway

from simulators.kolibri.app import running
from simulators.kolibri.population import build_population
from simulators.kolibri.state import Kolibri

QUERY = """{
  users(first: 500) {
    totalCount nodes { displayName enrollments { nodes { course { title iconUrl } } } }
  }
}"""


async def test_two_gateways_and_a_restart_cost_one_login_and_give_the_same_answer(
    empty_database_url: str, tmp_path: Path
) -> None:
    kolibri = Kolibri(build_population())
    settings = {"database_url": empty_database_url, "public_url": "http://127.0.0.1:1"}
    async with running(kolibri) as url:
        async with (
            running_gateway(tmp_path, **settings) as first,
            running_gateway(tmp_path, **settings) as second,
        ):
            await first.add_kolibri(url)
            answers = await asyncio.gather(
                *(gateway.graphql(QUERY) for gateway in [first, second] * 5)
            )
        async with running_gateway(tmp_path, **settings) as again:
            answers.append(await again.graphql(QUERY))

    assert logins(kolibri) == 1
    assert answers[0]["data"]["users"]["totalCount"] == 67
    assert all(answer == answers[0] for answer in answers)


async def test_a_removed_provider_takes_everything_of_it_along(
    empty_database_url: str, tmp_path: Path
) -> None:
    kolibri = Kolibri(build_population())
    async with (
        running(kolibri) as url,
        running_gateway(tmp_path, database_url=empty_database_url) as gateway,
    ):
        await gateway.add_kolibri(url)
        await gateway.graphql(QUERY)
        removed = await gateway.graphql(
            'mutation { removeProvider(providerId: "1") { __typename } }'
        )
        after = await gateway.users()

    assert removed["data"]["removeProvider"]["__typename"] == "ProviderRemoved"
    assert after.status_code == 404
