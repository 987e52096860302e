"""One query over a Kolibri and three Canvas instances, all well, and one of them not."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from many_providers import (
    COURSES,
    COURSES_PATH,
    EVERYBODY,
    IN_TROUBLE,
    SPOILT,
    TROUBLES,
    UNION,
    USERS_AND_COURSES,
    USERS_PATH,
    Trouble,
    canvas_account,
    check_trouble,
    check_union,
    counted,
    flap,
    three_canvases,
)
from running_gateway import RunningGateway, running_gateway

from simulators.canvas import app as canvas_app
from simulators.canvas.state import Canvas
from simulators.kolibri import app as kolibri_app
from simulators.kolibri.population import build_population
from simulators.kolibri.state import Kolibri

PROVIDER_SECONDS = 2.0
AMPLE_SECONDS = 6.0
"""Within which the rest of the work is done on a busy machine; with the deadline under ten."""

OTHERS = [provider_id for provider_id in EVERYBODY if provider_id != SPOILT]


@dataclass(kw_only=True)
class Campus:
    """A gateway over four providers, and the servers behind it."""

    gateway: RunningGateway
    canvases: dict[str, Canvas]
    servers: dict[str, AsyncExitStack]


@pytest.fixture
async def campus(tmp_path: Path) -> AsyncIterator[Campus]:
    canvases = three_canvases()
    servers = {provider_id: AsyncExitStack() for provider_id in canvases}
    async with (
        kolibri_app.running(Kolibri(build_population())) as kolibri_url,
        running_gateway(tmp_path, provider_seconds=str(PROVIDER_SECONDS)) as gateway,
    ):
        await gateway.add_kolibri(kolibri_url)
        try:
            for provider_id, canvas in canvases.items():
                url = await servers[provider_id].enter_async_context(canvas_app.running(canvas))
                answer = await gateway.add_provider(**canvas_account(provider_id, url))
                assert answer.status_code == 200, answer.text
            yield Campus(gateway=gateway, canvases=canvases, servers=servers)
        finally:
            await asyncio.gather(*(server.aclose() for server in servers.values()))


async def test_one_query_gives_the_union_of_what_four_providers_give(campus: Campus) -> None:
    whole = await campus.gateway.graphql(UNION, ids=EVERYBODY)
    parts = [await campus.gateway.graphql(UNION, ids=[each]) for each in EVERYBODY]

    check_union(whole, parts)
    canvas_counts = [counted(part) for part in parts[1:]]
    assert [found["users"] for found in canvas_counts] == [13, 30, 40]
    assert [found["courses"] for found in canvas_counts] == [7, 10, 20]
    assert [found["enrollments"] for found in canvas_counts] == [17, 60, 90]


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.name)
async def test_a_provider_in_trouble_costs_its_own_rows_one_error_and_its_deadline(
    campus: Campus, trouble: Trouble
) -> None:
    before = await campus.gateway.graphql(COURSES, ids=EVERYBODY)
    if trouble.spoil is None:
        await campus.servers[SPOILT].aclose()
    else:
        trouble.spoil(campus.canvases[SPOILT])

    began_at = time.perf_counter()
    answer = await campus.gateway.graphql(IN_TROUBLE, ids=EVERYBODY)
    seconds = time.perf_counter() - began_at
    others = await campus.gateway.graphql(IN_TROUBLE, ids=OTHERS)

    check_trouble(trouble, answer, before=before, others=others)
    assert seconds < PROVIDER_SECONDS + AMPLE_SECONDS


async def test_of_a_provider_that_fails_every_second_call_nothing_is_missing(
    campus: Campus,
) -> None:
    canvas = campus.canvases[SPOILT]
    canvas.counts.log.clear()
    flap(canvas, USERS_PATH, COURSES_PATH)

    answer = await campus.gateway.graphql(USERS_AND_COURSES, ids=EVERYBODY)

    assert "errors" not in answer
    assert [source["status"] for source in answer["data"]["users"]["sources"]] == ["OK"] * 4
    assert [source["status"] for source in answer["data"]["courses"]["sources"]] == ["OK"] * 4
    calls = Counter((logged.path, logged.status) for logged in canvas.counts.log)
    assert calls == {
        (path, status): 1 for path in (USERS_PATH, COURSES_PATH) for status in (200, 503)
    }
