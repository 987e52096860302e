"""20 courses with 5 teachers, who can be asked for one by one only: six calls and no more."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from campus import gateway_over_campus
from running_gateway import RunningGateway

from simulators.campus import Campus

TEACHERS = "courses(first: 50) { nodes { title enrollments { nodes { user { displayName } } } } }"
SIX_CALLS = Counter(["/courses", *(f"/users/t{number}" for number in range(5))])


@pytest.fixture
def campus() -> Campus:
    return Campus(courses=20, teachers=5)


@pytest.fixture
async def gateway(campus: Campus, tmp_path: Path) -> AsyncIterator[RunningGateway]:
    async with gateway_over_campus(tmp_path, campus) as running:
        yield running


async def test_courses_and_their_teachers_are_one_call_and_one_for_each_teacher(
    gateway: RunningGateway, campus: Campus
) -> None:
    answer = await gateway.graphql(f"{{ {TEACHERS} }}")

    nodes = answer["data"]["courses"]["nodes"]
    teachers = [
        row["user"]["displayName"] for node in nodes for row in node["enrollments"]["nodes"]
    ]
    assert [node["title"] for node in nodes] == [f"Course {number:02}" for number in range(20)]
    assert teachers == [f"Teacher {number % 5}" for number in range(20)]
    assert campus.calls == SIX_CALLS


async def test_the_same_field_under_two_names_takes_the_calls_of_one(
    gateway: RunningGateway, campus: Campus
) -> None:
    answer = await gateway.graphql(f"{{ a: {TEACHERS} b: {TEACHERS} }}")

    assert answer["data"]["a"] == answer["data"]["b"]
    assert len(answer["data"]["a"]["nodes"]) == 20
    assert campus.calls == SIX_CALLS


async def test_ten_identical_queries_at_once_take_the_calls_of_one(
    gateway: RunningGateway, campus: Campus
) -> None:
    answers = await asyncio.gather(*(gateway.graphql(f"{{ {TEACHERS} }}") for _ in range(10)))

    assert answers == answers[:1] * 10
    assert len(answers[0]["data"]["courses"]["nodes"]) == 20
    assert campus.calls == SIX_CALLS
