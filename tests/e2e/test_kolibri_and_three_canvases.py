"""A real Kolibri and three simulated Canvas instances behind the installed gateway.

All well, and one of the three in every kind of trouble; each trouble meets a gateway of its own.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
from many_providers import (
    CANVASES,
    COURSES,
    COURSES_PATH,
    EVERYBODY,
    IN_TROUBLE,
    KOLIBRI,
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
from real_servers import Gateway, Kolibri

from simulators.canvas.app import running_in_thread
from simulators.canvas.state import Canvas

pytestmark = pytest.mark.e2e

PROVIDER_SECONDS = 3.0
AMPLE_SECONDS = 5.0
"""Within which the rest of the work is done on a busy machine; with the deadline under ten."""

OTHERS = [provider_id for provider_id in EVERYBODY if provider_id != SPOILT]


@dataclass(kw_only=True)
class Campus:
    """The servers behind one gateway."""

    gateway: Gateway
    canvases: dict[str, Canvas]
    servers: dict[str, ExitStack]


@pytest.fixture
def campus(gateway: Callable[..., Gateway], kolibri: Kolibri) -> Iterator[Campus]:
    program = gateway(GATEWAY_PROVIDER_SECONDS=str(PROVIDER_SECONDS))
    account = {"url": kolibri.url, "username": "service_admin"}
    answer = program.add_provider(KOLIBRI, **account, password=str(kolibri.lab["password"]))
    assert answer.status_code == 200, answer.text
    canvases = three_canvases()
    servers = {provider_id: ExitStack() for provider_id in canvases}
    try:
        for provider_id, canvas in canvases.items():
            url = servers[provider_id].enter_context(running_in_thread(canvas))
            details = canvas_account(provider_id, url)
            answer = program.add_provider(details.pop("id"), **details)
            assert answer.status_code == 200, answer.text
        yield Campus(gateway=program, canvases=canvases, servers=servers)
    finally:
        for server in servers.values():
            server.close()


def test_one_query_gives_the_union_of_what_four_providers_give(campus: Campus) -> None:
    whole = campus.gateway.graphql(UNION, ids=EVERYBODY)
    parts = [campus.gateway.graphql(UNION, ids=[each]) for each in EVERYBODY]

    check_union(whole, parts)
    counts = dict(zip(EVERYBODY, map(counted, parts), strict=True))
    assert all(number > 0 for number in counts[KOLIBRI].values())
    assert [counts[each]["users"] for each in CANVASES] == [13, 30, 40]
    assert [counts[each]["courses"] for each in CANVASES] == [7, 10, 20]
    assert [counts[each]["enrollments"] for each in CANVASES] == [17, 60, 90]


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.name)
def test_a_provider_in_trouble_costs_its_own_rows_one_error_and_its_deadline(
    campus: Campus, trouble: Trouble
) -> None:
    before = campus.gateway.graphql(COURSES, ids=EVERYBODY)
    if trouble.spoil is None:
        campus.servers[SPOILT].close()
    else:
        trouble.spoil(campus.canvases[SPOILT])

    began_at = time.perf_counter()
    answer = campus.gateway.graphql(IN_TROUBLE, ids=EVERYBODY)
    seconds = time.perf_counter() - began_at
    others = campus.gateway.graphql(IN_TROUBLE, ids=OTHERS)

    check_trouble(trouble, answer, before=before, others=others)
    assert seconds < PROVIDER_SECONDS + AMPLE_SECONDS


def test_of_a_provider_that_fails_every_second_call_nothing_is_missing(campus: Campus) -> None:
    canvas = campus.canvases[SPOILT]
    canvas.counts.log.clear()
    flap(canvas, USERS_PATH, COURSES_PATH)

    answer = campus.gateway.graphql(USERS_AND_COURSES, ids=EVERYBODY)

    assert "errors" not in answer
    calls = Counter((logged.path, logged.status) for logged in canvas.counts.log)
    assert calls == {
        (path, status): 1 for path in (USERS_PATH, COURSES_PATH) for status in (200, 503)
    }
