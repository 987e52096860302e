import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from running_gateway import (
    RunningGateway,
    columns,
    logins,
    problem_of,
    running_gateway,
)

from gateway import rest
from resolvers.quotas import Quotas, QuotaTerms
from sessions.base import Page
from sessions.http import seconds_to_deadline
from simulators.kolibri.app import running
from simulators.kolibri.population import build_population
from simulators.kolibri.state import Kolibri, Outage

USER_FIELDS = {
    "username",
    "name_first",
    "name_last",
    "email",
    "external_user_id",
    "external_username",
}
COURSE_FIELDS = {
    "provider_platform_id",
    "external_content_id",
    "program_id",
    "name",
    "description",
    "course_code",
    "img_url",
    "is_graded",
    "is_open_enrollment",
    "is_open_content",
    "has_assessments",
    "subject",
}
ENROLLMENT_FIELDS = {
    "user_id",
    "course_id",
    "external_enrollment_id",
    "enrollment_state",
    "external_start_at",
    "external_end_at",
    "external_link_url",
}


@pytest.fixture
def kolibri() -> Kolibri:
    return Kolibri(build_population())


@pytest.fixture
async def kolibri_url(kolibri: Kolibri) -> AsyncIterator[str]:
    async with running(kolibri) as url:
        yield url


@pytest.fixture
async def gateway(tmp_path: Path, kolibri_url: str) -> AsyncIterator[RunningGateway]:
    async with running_gateway(tmp_path) as running_one:
        await running_one.add_kolibri(kolibri_url)
        yield running_one


async def test_every_user_of_the_facility_is_in_the_answer_once_and_nobody_else(
    gateway: RunningGateway, kolibri: Kolibri
) -> None:
    answer = await gateway.users()

    facility = kolibri.facility_id(None)
    expected = {
        account.id: account.username
        for account in kolibri.accounts()
        if account.facility_id == facility
    }
    rows = answer.json()
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert all(row.keys() == USER_FIELDS for row in rows)
    assert dict(columns(rows, "external_user_id", "username")) == expected
    assert len(rows) == len(expected)
    assert all(row["external_username"] == row["username"] for row in rows)
    assert all(row["name_first"] for row in rows)


async def test_registering_costs_one_login_and_reading_everything_none(
    gateway: RunningGateway, kolibri: Kolibri
) -> None:
    for path in ("users", "courses", "content", "enrollments"):
        assert (await gateway.get(f"/api/{path}?id=1")).status_code == 200

    assert logins(kolibri) == 1


async def test_names_are_split_where_that_is_sure_and_whole_in_the_first_name_elsewhere(
    gateway: RunningGateway, kolibri: Kolibri
) -> None:
    kolibri.add_user("ada", "Ada Lovelace")
    kolibri.add_user("comma", "Curie, Marie")
    kolibri.add_user("single", "Madonna")
    kolibri.add_user("nameless", "")

    rows = {row["username"]: row for row in (await gateway.users()).json()}

    names = {
        name: (rows[name]["name_first"], rows[name]["name_last"])
        for name in ("ada", "comma", "single", "nameless")
    }
    assert names == {
        "ada": ("Ada", "Lovelace"),
        "comma": ("Marie", "Curie"),
        "single": ("Madonna", ""),
        "nameless": ("nameless", ""),
    }


async def test_what_the_provider_does_not_report_is_an_empty_text(
    gateway: RunningGateway,
) -> None:
    rows = (await gateway.users()).json()

    assert {row["email"] for row in rows} == {""}


async def test_courses_and_content_are_the_same_rows_with_icons_of_ours(
    gateway: RunningGateway, kolibri: Kolibri
) -> None:
    courses = (await gateway.get("/api/courses?id=1")).json()
    content = (await gateway.get("/api/content?id=1")).json()

    channels = [channel for channel in kolibri.population.channels if channel.available]
    libraries = [row for row in courses if row["external_content_id"].startswith("channel:")]
    assert content == courses
    assert all(row.keys() == COURSE_FIELDS for row in courses)
    assert {row["provider_platform_id"] for row in courses} == {1}
    assert len(libraries) >= len(channels)
    assert {row["is_open_content"] for row in libraries} == {True}
    addresses = [row["img_url"] for row in courses if row["img_url"]]
    assert addresses
    assert all(
        re.fullmatch(rf"{gateway.url}/media/[0-9a-f]{{64}}\.webp", address) for address in addresses
    )
    image = await gateway.client.get(addresses[0], headers={"Authorization": ""})
    assert (image.status_code, image.headers["content-type"]) == (200, "image/webp")
    assert image.content[8:12] == b"WEBP"


async def test_enrollments_name_users_and_courses_of_the_other_answers(
    gateway: RunningGateway,
) -> None:
    users = {row["external_user_id"] for row in (await gateway.users()).json()}
    courses = {
        row["external_content_id"] for row in (await gateway.get("/api/courses?id=1")).json()
    }

    rows = (await gateway.get("/api/enrollments?id=1")).json()

    assert rows
    assert all(row.keys() == ENROLLMENT_FIELDS for row in rows)
    assert {row["user_id"] for row in rows} <= users
    assert {row["course_id"] for row in rows} <= courses
    assert len({row["external_enrollment_id"] for row in rows}) == len(rows)


async def test_enrollments_can_be_narrowed_to_a_user_a_course_or_both(
    gateway: RunningGateway,
) -> None:
    every = (await gateway.get("/api/enrollments?id=1")).json()
    one = every[0]

    async def narrowed(**given: str) -> list[tuple[str, ...]]:
        answer = await gateway.get("/api/enrollments", params={"id": "1", **given})
        assert answer.status_code == 200
        return sorted(columns(answer.json(), "external_enrollment_id"))

    def expected(**wanted: str) -> list[tuple[str, ...]]:
        return sorted(
            (row["external_enrollment_id"],)
            for row in every
            if all(row[name] == value for name, value in wanted.items())
        )

    user, course = {"user_id": one["user_id"]}, {"course_id": one["course_id"]}
    assert await narrowed(**user) == expected(**user)
    assert await narrowed(**course) == expected(**course)
    assert await narrowed(**user, **course) == expected(**user, **course)
    assert await narrowed(user_id="0" * 32) == []


async def test_a_roster_of_several_pages_is_whole(tmp_path: Path) -> None:
    kolibri = Kolibri(build_population(bulk_users=3500))
    facility = kolibri.population.facilities[-1]
    async with running(kolibri) as url, running_gateway(tmp_path) as gateway:
        await gateway.add_kolibri(url, username="bulk_admin", account_id=facility.id)

        rows = (await gateway.users()).json()

    expected = {account.id for account in kolibri.accounts() if account.facility_id == facility.id}
    assert len(rows) == len(expected) > 3500
    assert {row["external_user_id"] for row in rows} == expected


async def test_a_failure_in_the_middle_breaks_the_connection_off(tmp_path: Path) -> None:
    kolibri = Kolibri(build_population(bulk_users=4500))
    facility = kolibri.population.facilities[-1]
    async with running(kolibri) as url, running_gateway(tmp_path) as gateway:
        await gateway.add_kolibri(url, username="bulk_admin", account_id=facility.id)
        received = b""
        with pytest.raises(httpx.RemoteProtocolError):  # noqa: PT012 - the failure is mid-way
            async with gateway.client.stream("GET", "/api/users?id=1") as answer:
                assert answer.status_code == 200
                kolibri.outages.append(Outage(remaining=1000, status=503))
                async for part in answer.aiter_raw():
                    received += part

        kolibri.outages.clear()
        again = await gateway.users()

    assert received.startswith(b"[{")
    assert not received.endswith(b"]")
    assert again.status_code == 200


async def test_a_provider_that_is_down_is_a_problem_before_the_first_byte(
    gateway: RunningGateway, kolibri: Kolibri
) -> None:
    kolibri.outages.append(Outage(remaining=1000, status=503, retry_after_seconds=None))

    answers = await asyncio.gather(
        *(gateway.get(f"/api/{path}?id=1") for path in ("users", "courses", "enrollments"))
    )

    assert [problem_of(answer) for answer in answers] == [(502, "PROVIDER_UNAVAILABLE")] * 3
    assert {answer.json()["providerId"] for answer in answers} == {"1"}
    assert {answer.json()["retryable"] for answer in answers} == {True}


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("", "id"),
        ("id=", "id"),
        ("id=a/b", "id"),
        ("id=..%2F..", "id"),
        ("id=%00", "id"),
        (f"id={'x' * 65}", "id"),
        ("id=1&id=2", "id"),
        ("id=1&page=2", "page"),
        ("id=1&user_id=3", "user_id"),
    ],
)
async def test_a_bad_parameter_is_named(
    gateway: RunningGateway, kolibri: Kolibri, query: str, named: str
) -> None:
    answer = await gateway.get(f"/api/users?{query}")

    assert problem_of(answer) == (400, "BAD_INPUT")
    assert answer.json()["detail"].startswith(f"{named}: ")
    assert kolibri.counts.total("/api/auth/facilityuser/") == 0


async def test_an_unknown_provider_is_not_found(gateway: RunningGateway) -> None:
    answer = await gateway.users("nobody")

    assert problem_of(answer) == (404, "PROVIDER_NOT_FOUND")


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer wrong-token-of-the-same-kind"},
        {"Authorization": "gw_abcdefgh_" + "x" * 43},
        {"Authorization": "Basic dXNlcjpwYXNz"},
        {"Authorization": "Bearer " + "x" * 5000},
    ],
)
async def test_without_a_good_key_nothing_is_answered(
    gateway: RunningGateway, headers: dict[str, str]
) -> None:
    answer = await gateway.get("/api/users?id=1", headers=headers)

    assert problem_of(answer) == (401, "UNAUTHENTICATED")
    assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_the_key_may_be_bare_as_existing_products_send_it(gateway: RunningGateway) -> None:
    token = gateway.client.headers["Authorization"].removeprefix("Bearer ")

    answer = await gateway.get("/api/users?id=1", headers={"Authorization": token})

    assert answer.status_code == 200


async def test_a_key_reads_what_its_scopes_say_and_sees_only_its_providers(
    gateway: RunningGateway,
) -> None:
    users_only = await gateway.key("read:users")
    elsewhere = await gateway.key("read:users", "provider:2")

    statuses = {
        path: (await gateway.get(f"/api/{path}?id=1", headers=users_only)).status_code
        for path in ("users", "courses", "content", "enrollments")
    }
    unseen = await gateway.get("/api/users?id=1", headers=elsewhere)

    assert statuses == {"users": 200, "courses": 403, "content": 403, "enrollments": 403}
    assert problem_of(unseen) == (404, "PROVIDER_NOT_FOUND")


async def test_an_expired_and_a_revoked_key_no_longer_work(gateway: RunningGateway) -> None:
    headers = await gateway.key("read:users")
    (key,) = await gateway.parts.api_keys.list_all()
    before = await gateway.get("/api/users?id=1", headers=headers)

    await gateway.parts.api_keys.revoke(key.id)

    after = await gateway.get("/api/users?id=1", headers=headers)
    assert (before.status_code, after.status_code) == (200, 401)


async def test_another_method_is_refused_with_those_that_are_allowed(
    gateway: RunningGateway,
) -> None:
    answer = await gateway.client.post("/api/users?id=1")

    assert problem_of(answer) == (405, "BAD_INPUT")
    assert answer.headers["allow"] == "GET, HEAD"


async def test_a_whole_list_has_one_deadline_for_all_its_pages() -> None:
    left: list[float] = []

    async def pages() -> AsyncGenerator[Page[int], None]:
        for number in range(3):
            left.append(seconds_to_deadline() or 0)
            await asyncio.sleep(0.05)
            yield Page(items=(number,))

    async def rows(numbers: Sequence[int]) -> list[dict[str, Any]]:
        return [{"n": number} for number in numbers]

    charge = Quotas(QuotaTerms()).begin("a", cost=0)
    answer = await rest._streamed(pages(), rows, charge, seconds=60)
    assert isinstance(answer, rest._ClosingResponse)
    body = b"".join([part async for part in answer.body_iterator])

    assert body == b'[{"n":0},{"n":1},{"n":2}]'
    assert left[0] - left[1] > 0.04
    assert left[1] - left[2] > 0.04
