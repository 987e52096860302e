"""One nested query over a large Canvas: the calls of the cheapest ways, and which they were."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from running_gateway import running_gateway

from resolvers.collation import fold
from simulators.canvas.app import running
from simulators.canvas.population import Population, build_large_population, build_population
from simulators.canvas.profiles import PROFILES
from simulators.canvas.state import ADMIN_TOKEN, Canvas
from simulators.kolibri import population as data
from simulators.kolibri.app import running as running_kolibri
from simulators.kolibri.state import Kolibri

NESTED = """{ users(first: 100) {
    nodes { id enrollments(first: 100) { nodes { id course { title } } } }
} }"""
USERS = ("GET", "/api/v1/accounts/:account_id/users")
COURSES = ("GET", "/api/v1/accounts/:account_id/courses")
ENROLLMENTS = ("GET", "/api/v1/users/:user_id/enrollments")
GRAPHQL = ("POST", "/api/graphql")


@pytest.fixture(scope="module")
def school() -> Population:
    return build_large_population()


@pytest.mark.parametrize(
    ("release", "ways", "calls"),
    [
        # 100 users are 5 calls of 20; all courses are 10 pages of 100, theirs alone 99 calls
        ("hosted-now", ["graphql by user", "rest list"], {USERS: 1, GRAPHQL: 5, COURSES: 10}),
        ("oss-2024", ["graphql by user", "rest list"], {USERS: 1, GRAPHQL: 5, COURSES: 10}),
        # no GraphQL worth its name, and pages of 50
        ("oss-2019", ["rest by user", "rest list"], {USERS: 2, ENROLLMENTS: 100, COURSES: 20}),
    ],
)
async def test_courses_of_a_hundred_users_cost_what_the_cheapest_ways_cost(
    release: str,
    ways: list[str],
    calls: dict[tuple[str, str], int],
    school: Population,
    tmp_path: Path,
) -> None:
    canvas = Canvas(school, profile=PROFILES[release])
    async with running(canvas) as url, running_gateway(tmp_path) as gateway:
        await registered(gateway, url)
        canvas.counts.calls.clear()
        answer = await gateway.client.post(
            "/graphql", json={"query": NESTED}, headers={"Gateway-Debug": "strategies"}
        )

    body = answer.json()
    chosen = body["extensions"]["strategies"]
    users = body["data"]["users"]["nodes"]
    rows = [row for user in users for row in user["enrollments"]["nodes"]]
    ids = {user.id for user in list(school.users.values())[:100]}
    assert len(users) == 100
    assert len(rows) == sum(row.user_id in ids for row in school.enrollments.values())
    assert all(row["course"]["title"] for row in rows)
    assert canvas.counts.calls == Counter(calls)
    assert [choice["chosen"] for choice in chosen] == ways
    for choice in chosen:
        reckoned = choice["callsByStrategy"]
        assert reckoned[choice["chosen"]] == min(reckoned.values())
    assert canvas.counts.throttled == 0


async def test_calls_that_need_nothing_of_each_other_run_side_by_side(
    school: Population, tmp_path: Path
) -> None:
    canvas = Canvas(school)
    async with running(canvas) as url, running_gateway(tmp_path) as gateway:
        await registered(gateway, url)
        canvas.counts.most_running = 0
        canvas.latency_seconds = 0.2
        await gateway.graphql("{ users(first: 100) { nodes { enrollments { totalCount } } } }")
        enrollments_at_once, canvas.counts.most_running = canvas.counts.most_running, 0
        await gateway.graphql(NESTED)

    assert enrollments_at_once == 5  # 100 users, 20 a call
    assert canvas.counts.most_running == 6  # of the ten pages of courses, the first has gone before


async def registered(gateway: Any, url: str, *, provider_id: str = "2") -> None:
    answer = await gateway.graphql(
        """mutation ($input: RegisterProviderInput!) { registerProvider(input: $input) {
            ... on ProviderRefused { message } } }""",
        input={
            "providerId": provider_id,
            "platform": "canvas",
            "baseUrl": url,
            "credentials": {"apiKey": ADMIN_TOKEN},
        },
    )
    assert answer == {"data": {"registerProvider": {}}}


BY_TITLE = """query ($after: String) {
    courses(first: 4, after: $after, orderBy: { field: TITLE }) {
        nodes { title externalId provider { providerId } }
        pageInfo { endCursor hasNextPage }
        sources { status } } }"""


async def test_courses_of_two_canvases_and_a_kolibri_merge_by_title(
    tmp_path: Path,
) -> None:
    schools = [Canvas(build_population()), Canvas(build_population(shard=1))]
    kolibri = Kolibri(data.build_population())
    found: list[tuple[str, str, str]] = []
    after: str | None = None
    async with (
        running(schools[0]) as first_url,
        running(schools[1]) as second_url,
        running_kolibri(kolibri) as kolibri_url,
        running_gateway(tmp_path) as gateway,
    ):
        await gateway.add_kolibri(kolibri_url)
        await registered(gateway, first_url)
        await registered(gateway, second_url, provider_id="3")
        for school in schools:
            school.counts.calls.clear()
        pages = 0
        while True:
            answer = await gateway.graphql(BY_TITLE, after=after)
            page = answer["data"]["courses"]
            pages += 1
            found += [
                (fold(row["title"]), row["provider"]["providerId"], row["externalId"])
                for row in page["nodes"]
            ]
            after = page["pageInfo"]["endCursor"]
            if not page["pageInfo"]["hasNextPage"]:
                break
        whole = await gateway.graphql("{ courses { totalCount } }")

    of_canvas = [row for row in found if row[1] != "1"]
    listed = {
        (provider_id, str(course.id))
        for provider_id, school in zip("23", schools, strict=True)
        for course in school.population.courses.values()
        if course.workflow_state != "deleted"
    }
    # The title of a course that is closed is hidden; it comes where Canvas, who knows it, has it.
    shown = [row for row in found if "closed at present" not in row[0]]
    assert shown == sorted(shown)
    assert len(found) - len(shown) == 2
    assert {row[1:] for row in of_canvas} == listed
    assert len(of_canvas) == len(listed)
    assert len(found) == len(set(found)) > len(listed)
    assert whole["data"]["courses"]["totalCount"] in {None, len(found)}
    for school in schools:  # at most a page of theirs for each of ours, and one more where it ends
        assert set(school.counts.calls) == {COURSES}
        assert school.counts.calls[COURSES] <= pages + 2 + 1
