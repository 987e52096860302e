"""The simulated Kolibri behaves as a real one where that is surprising, release by release."""

import asyncio
import csv
import io
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from simulators.kolibri.app import app_for, create_app
from simulators.kolibri.lab import describe_lab
from simulators.kolibri.population import (
    PASSWORD,
    SUPERUSER_PASSWORD,
    SUPERUSER_USERNAME,
    build_population,
)
from simulators.kolibri.state import Kolibri

SESSION = "/api/auth/session/"
HEARTBEAT = "/api/auth/session/current/"
USERS = "/api/auth/facilityuser/"
TASKS = "/api/tasks/tasks/"
TASK = "kolibri.core.logger.tasks.exportsummarylogcsv"


class Clock:
    """A clock that stands still until told otherwise."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def kolibri(clock: Clock) -> Kolibri:
    return Kolibri(build_population(), session_age=6, clock=clock)


def visit(kolibri: Kolibri) -> httpx.AsyncClient:
    """Open a cookie jar on a server."""
    transport = httpx.ASGITransport(app=app_for(kolibri))
    return httpx.AsyncClient(transport=transport, base_url="http://kolibri.test")


async def log_in(
    jar: httpx.AsyncClient,
    username: str = SUPERUSER_USERNAME,
    password: str = SUPERUSER_PASSWORD,
    **more: str,
) -> httpx.Response:
    body = {"username": username, "password": password, **more}
    token = {"X-CSRFToken": jar.cookies.get("kolibri_csrftoken") or ""}
    return await jar.post(SESSION, json=body, headers=token)


def token_of(jar: httpx.AsyncClient) -> dict[str, str]:
    return {"X-CSRFToken": jar.cookies["kolibri_csrftoken"]}


async def heartbeat(jar: httpx.AsyncClient) -> httpx.Response:
    return await jar.put(HEARTBEAT, json={"active": False}, headers=token_of(jar))


# ---- expiry ------------------------------------------------------------------------------


async def test_an_expired_session_answers_200_with_nobody_in_it(
    kolibri: Kolibri, clock: Clock
) -> None:
    jar = visit(kolibri)
    await log_in(jar)
    before = (await jar.get(USERS)).json()

    clock.now += 6.1
    after = await jar.get(USERS)

    assert len(before) == 77
    assert (after.status_code, after.json()) == (200, [])
    assert 'kolibri=""' in after.headers["set-cookie"]
    assert "Max-Age=0" in after.headers["set-cookie"]


async def test_only_the_first_answer_after_expiry_deletes_the_cookie(
    kolibri: Kolibri, clock: Clock
) -> None:
    jar = visit(kolibri)
    await log_in(jar)
    clock.now += 7

    first = await jar.get(USERS + "?page_size=5")
    second = await jar.get(USERS + "?page_size=5")

    assert first.json() == second.json() == {"page": 1, "count": 0, "total_pages": 1, "results": []}
    assert "set-cookie" in first.headers
    assert "set-cookie" not in second.headers


async def test_heartbeats_extend_a_session_and_reads_do_not(kolibri: Kolibri, clock: Clock) -> None:
    reader, beater = visit(kolibri), visit(kolibri)
    await log_in(reader)
    await log_in(beater)

    for _ in range(4):
        clock.now += 2
        read = await reader.get(USERS)
        beat = await heartbeat(beater)

    assert read.json() == []
    assert beat.json()["kind"] == ["superuser", "admin"]


async def test_a_heartbeat_without_a_session_is_200_and_anonymous(
    kolibri: Kolibri, clock: Clock
) -> None:
    jar = visit(kolibri)
    await log_in(jar)
    clock.now += 7

    reply = await heartbeat(jar)

    assert reply.status_code == 200
    assert reply.json()["user_id"] is None
    assert reply.json()["kind"] == ["anonymous"]
    assert "visitor_id" in reply.cookies


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        (USERS + "0" * 32 + "/", 404, "NOT_FOUND"),
        ("/coach/api/classsummary/" + "0" * 32 + "/", 403, "NOT_AUTHENTICATED"),
    ],
)
async def test_other_reads_of_an_expired_session_are_refused(
    kolibri: Kolibri, clock: Clock, path: str, status: int, code: str
) -> None:
    jar = visit(kolibri)
    await log_in(jar)
    clock.now += 7

    reply = await jar.get(path)

    assert reply.status_code == status
    assert reply.json()[0]["id"] == code


async def test_channels_are_public_and_leave_a_dead_cookie_alone(
    kolibri: Kolibri, clock: Clock
) -> None:
    jar = visit(kolibri)
    await log_in(jar)
    clock.now += 7

    reply = await jar.get("/api/content/channel/")

    assert len(reply.json()) == 10
    assert "set-cookie" not in reply.headers


async def test_losing_all_sessions_logs_everybody_out(kolibri: Kolibri) -> None:
    jar = visit(kolibri)
    await log_in(jar)

    lost = kolibri.delete_sessions()

    assert lost == 1
    assert (await jar.get(USERS)).json() == []


# ---- passwords and the user cache --------------------------------------------------------


async def test_a_password_change_ends_sessions_and_needs_the_new_password(
    kolibri: Kolibri,
) -> None:
    jar = visit(kolibri)
    await log_in(jar, "service_admin", PASSWORD)

    kolibri.change_password("service_admin", "fresh-one")

    assert (await heartbeat(jar)).json()["user_id"] is None
    refused = await log_in(visit(kolibri), "service_admin", PASSWORD)
    assert (refused.status_code, refused.json()[0]["id"]) == (401, "INVALID_CREDENTIALS")
    assert (await log_in(visit(kolibri), "service_admin", "fresh-one")).status_code == 200


async def test_an_old_session_lives_on_while_a_new_one_keeps_the_cache_warm(
    kolibri: Kolibri,
) -> None:
    old, new = visit(kolibri), visit(kolibri)
    await log_in(old, "service_admin", PASSWORD)
    kolibri.change_password("service_admin", "fresh-one")
    await log_in(new, "service_admin", "fresh-one")
    await heartbeat(new)

    reply = await heartbeat(old)

    assert reply.json()["username"] == "service_admin"


async def test_a_poisoned_session_turns_anonymous_keeps_its_cookie_and_heals_at_login(
    kolibri: Kolibri,
) -> None:
    jar = visit(kolibri)
    await log_in(jar)

    kolibri.poison_cache(SUPERUSER_USERNAME)
    poisoned = await jar.get(USERS)
    await log_in(visit(kolibri))
    healed = await jar.get(USERS)

    assert poisoned.json() == []
    assert "set-cookie" not in poisoned.headers
    assert len(healed.json()) == 77


# ---- cross-site request forgery ----------------------------------------------------------


async def test_a_logged_in_write_needs_the_token_and_a_first_login_does_not(
    kolibri: Kolibri,
) -> None:
    jar = visit(kolibri)
    first = await jar.post(
        SESSION, json={"username": SUPERUSER_USERNAME, "password": SUPERUSER_PASSWORD}
    )

    missing = await jar.put(HEARTBEAT, json={})
    wrong = await jar.put(HEARTBEAT, json={}, headers={"X-CSRFToken": "b" * 64})
    again = await jar.post(SESSION, json={"username": "plato", "password": PASSWORD})

    assert first.status_code == 200
    assert {missing.status_code, wrong.status_code, again.status_code} == {403}
    assert missing.json() == [{"id": "PERMISSION_DENIED", "metadata": {"view": "Session Instance"}}]


async def test_any_matching_pair_of_tokens_passes(kolibri: Kolibri) -> None:
    jar = visit(kolibri)
    await log_in(jar)
    jar.cookies.delete("kolibri_csrftoken")
    jar.cookies.set("kolibri_csrftoken", "c" * 32, domain="kolibri.test")

    reply = await jar.put(HEARTBEAT, json={}, headers={"X-CSRFToken": "c" * 32})

    assert reply.json()["username"] == SUPERUSER_USERNAME


async def test_a_login_on_the_same_jar_changes_the_token(kolibri: Kolibri) -> None:
    jar = visit(kolibri)
    await log_in(jar)
    old = token_of(jar)
    await log_in(jar)

    reply = await jar.put(HEARTBEAT, json={}, headers=old)

    assert reply.status_code == 403
    assert len(kolibri.sessions) == 1


# ---- lists -------------------------------------------------------------------------------


async def test_no_page_size_means_no_pages_and_a_page_past_the_end_is_404(
    kolibri: Kolibri,
) -> None:
    jar = visit(kolibri)
    await log_in(jar)

    replies = [
        await jar.get(USERS + query)
        for query in ("", "?page_size=0", "?page_size=abc", "?page_size=50&page=2")
    ]
    past = await jar.get(USERS + "?page_size=50&page=3")

    assert [len(reply.json()) for reply in replies[:3]] == [77, 77, 77]
    page = replies[3].json()
    assert (page["count"], page["total_pages"], len(page["results"])) == (77, 2, 27)
    assert past.status_code == 404


async def test_pages_are_cut_by_code_point_and_sorted_without_case(kolibri: Kolibri) -> None:
    kolibri.add_user("Zebra", "Upper Case")
    kolibri.add_user("aardvark", "Lower Case")
    jar = visit(kolibri)
    await log_in(jar)

    page = (await jar.get(USERS + "?page_size=2")).json()

    assert [row["username"] for row in page["results"]] == ["aardvark", "Zebra"]


@pytest.mark.parametrize(("version", "found"), [("0.17.0", 77), ("0.18.4", 77), ("0.19.5", 1)])
async def test_by_ids_is_ignored_before_0_19(version: str, found: int) -> None:
    kolibri = Kolibri(build_population(), version=version)
    account = kolibri.find_username("plato")
    assert account is not None
    jar = visit(kolibri)
    await log_in(jar)

    reply = await jar.get(USERS, params={"by_ids": account.id})

    assert len(reply.json()) == found


@pytest.mark.parametrize(("version", "status"), [("0.17.0", 200), ("0.18.4", 500), ("0.19.5", 500)])
async def test_ordering_by_nonsense_crashes_since_0_18(version: str, status: int) -> None:
    jar = visit(Kolibri(build_population(), version=version))
    await log_in(jar)

    reply = await jar.get(USERS + "?ordering=nonsense")

    assert reply.status_code == status


async def test_a_deleted_learner_is_gone_but_the_membership_is_not(kolibri: Kolibri) -> None:
    jar = visit(kolibri)
    await log_in(jar)
    algebra = describe_lab(kolibri)["collections"]["algebra"]

    members = await jar.get("/api/auth/membership/", params={"collection": algebra})
    classroom = await jar.get(f"/api/auth/classroom/{algebra}/")

    assert len(members.json()) == 31
    assert classroom.json()["learner_count"] == 30


@pytest.mark.parametrize(
    ("username", "users", "memberships", "roles"),
    [
        ("plato", 1, 2, 0),
        ("coach_algebra", 31, 51, 2),
        ("service_coach", 67, 93, 8),
        ("service_admin", 67, 93, 8),
        ("librarian", 1, 0, 0),
    ],
)
async def test_each_kind_of_account_reads_its_own_share(
    kolibri: Kolibri, username: str, users: int, memberships: int, roles: int
) -> None:
    jar = visit(kolibri)
    await log_in(jar, username, PASSWORD)

    lists = [
        (await jar.get(path)).json() for path in (USERS, "/api/auth/membership/", "/api/auth/role/")
    ]

    assert [len(rows) for rows in lists] == [users, memberships, roles]


# ---- icons and channels ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "status", "media_type"),
    [
        ("png", 200, "image/png"),
        ("webp", 200, "image/jpg"),
        ("svg", 200, "image/svg+xml"),
        ("none", 404, "text/html"),
        ("broken", 500, "text/html"),
    ],
)
async def test_an_icon_is_served_as_it_is_labelled(
    kolibri: Kolibri, key: str, status: int, media_type: str
) -> None:
    channel = describe_lab(kolibri)["channels"][key]

    reply = await visit(kolibri).get(f"/api/content/channel-thumbnail/{channel}/")

    assert (reply.status_code, reply.headers["content-type"]) == (status, media_type)


async def test_an_icon_that_is_not_base64_comes_out_as_garbage(kolibri: Kolibri) -> None:
    channel = describe_lab(kolibri)["channels"]["text_svg"]

    reply = await visit(kolibri).get(f"/api/content/channel-thumbnail/{channel}/")

    assert reply.status_code == 200
    assert b"<svg" not in reply.content


@pytest.mark.parametrize(
    ("version", "start", "status"),
    [("0.17.0", "data:image/png", 404), ("0.18.4", "/api/content/", 200)],
)
async def test_icons_are_inline_before_0_17_1_and_links_after(
    version: str, start: str, status: int
) -> None:
    jar = visit(Kolibri(build_population(), version=version))

    channel = (await jar.get("/api/content/channel/")).json()[0]
    icon = await jar.get(f"/api/content/channel-thumbnail/{channel['id']}/")

    assert channel["thumbnail"].startswith(start)
    assert icon.status_code == status


async def test_one_etag_covers_all_content_until_content_changes(kolibri: Kolibri) -> None:
    jar = visit(kolibri)
    tag = {"If-None-Match": (await jar.get("/api/content/channel/")).headers["etag"]}

    same = await jar.get("/api/public/v2/channel/", headers=tag)
    await jar.post("/_control/content/touch")
    changed = await jar.get("/api/public/v2/channel/", headers=tag)

    assert (same.status_code, same.content) == (304, b"")
    assert changed.status_code == 200


# ---- exports -----------------------------------------------------------------------------


async def export(jar: httpx.AsyncClient, facility_id: str) -> tuple[list[str], httpx.Response]:
    """Run an export to its end and return the states seen and the file."""
    body = {
        "type": TASK,
        "facility": facility_id,
        "start_date": "2020-01-01T00:00:00",
        "end_date": "2030-01-01T00:00:00",
        "locale": "en",
    }
    task = (await jar.post(TASKS, json=body, headers=token_of(jar))).json()
    states = [task["status"]]
    while states[-1] != "COMPLETED":
        states.append((await jar.get(f"{TASKS}{task['id']}/")).json()["status"])
    return states, await jar.get(f"/facility/api/downloadcsvfile/summary/{facility_id}/")


async def test_an_export_is_queued_polled_and_downloaded(kolibri: Kolibri) -> None:
    jar = visit(kolibri)
    await log_in(jar, "service_admin", PASSWORD)

    states, reply = await export(jar, kolibri.facility_id("a"))

    assert states == ["QUEUED", "RUNNING", "COMPLETED"]
    assert reply.headers["content-type"] == "text/csv"
    assert reply.content.startswith(b"\xef\xbb\xbfFacility name,Username,User type,")
    rows = list(csv.DictReader(io.StringIO(reply.content.decode("utf-8-sig"))))
    # 491 logs, less facility B's 10, and one more because a class coach has two roles.
    assert len(rows) == 482
    assert sum(row["Username"] == "coach_algebra" for row in rows) == 2
    assert sum(row["Channel name"] == "" for row in rows) == 1


async def test_a_facility_coach_may_not_export(kolibri: Kolibri) -> None:
    jar = visit(kolibri)
    await log_in(jar, "service_coach", PASSWORD)
    facility = kolibri.facility_id("a")
    body = {
        "type": TASK,
        "facility": facility,
        "start_date": "2020-01-01",
        "end_date": "2030-01-01",
    }

    started = await jar.post(TASKS, json=body, headers=token_of(jar))
    download = await jar.get(f"/facility/api/downloadcsvfile/summary/{facility}/")

    assert (started.status_code, download.status_code) == (403, 403)
    assert kolibri.jobs == {}


@pytest.mark.parametrize(
    ("version", "column"),
    [("0.17.0", "Channel id"), ("0.18.4", "Channel id"), ("0.19.5", "User type")],
)
async def test_the_columns_of_an_export_depend_on_the_release(version: str, column: str) -> None:
    kolibri = Kolibri(build_population(), version=version)
    jar = visit(kolibri)
    await log_in(jar)

    _, reply = await export(jar, kolibri.facility_id("a"))

    header = reply.content.decode("utf-8-sig").splitlines()[0].split(",")
    assert header[2] == column
    assert ("Folder level 1" in header) == (version != "0.17.0")


# ---- releases ----------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "status"), [("0.17.0", 404), ("0.18.4", 404), ("0.19.5", 200)])
@pytest.mark.parametrize("path", ["/api/courses/coursesession/", "/api/auth/deletedfacilityuser/"])
async def test_course_sessions_and_deleted_users_exist_since_0_19(
    version: str, status: int, path: str
) -> None:
    jar = visit(Kolibri(build_population(), version=version))
    await log_in(jar)

    assert (await jar.get(path)).status_code == status


@pytest.mark.parametrize(
    ("version", "keys"),
    [
        ("0.17.0", set()),
        ("0.18.4", {"date_joined"}),
        ("0.19.5", {"date_joined", "picture_password"}),
    ],
)
async def test_users_have_more_fields_in_later_releases(version: str, keys: set[str]) -> None:
    jar = visit(Kolibri(build_population(), version=version))
    await log_in(jar)

    row = (await jar.get(USERS)).json()[0]

    assert row.keys() & {"date_joined", "picture_password"} == keys


# ---- control -----------------------------------------------------------------------------


async def test_calls_and_logins_are_counted_by_route(kolibri: Kolibri) -> None:
    jar = visit(kolibri)
    await log_in(jar)
    await log_in(visit(kolibri), "plato", "wrong")
    await jar.get(USERS)
    await jar.get(USERS + "0" * 32 + "/")

    counts = (await jar.get("/_control/counts")).json()

    assert counts["calls"] == {
        "POST /api/auth/session/": 2,
        "GET /api/auth/facilityuser/": 1,
        "GET /api/auth/facilityuser/{id}/": 1,
    }
    assert (counts["logins"], counts["login_attempts"]) == (1, 2)
    kolibri.reset()
    assert kolibri.counts.total() == 0


async def test_logins_at_the_same_time_are_noticed(kolibri: Kolibri) -> None:
    kolibri.login_latency_seconds = 0.02

    await asyncio.gather(*(log_in(visit(kolibri)) for _ in range(3)))

    assert kolibri.counts.logins == 3
    assert kolibri.counts.max_concurrent_logins == 3


async def test_an_outage_lasts_as_many_requests_as_asked(kolibri: Kolibri) -> None:
    jar = visit(kolibri)
    await jar.post("/_control/fail", json={"count": 2, "path": "/api/public/info/"})

    replies = [await jar.get("/api/public/info/") for _ in range(3)]

    assert [reply.status_code for reply in replies] == [503, 503, 200]
    assert replies[0].headers["retry-after"] == "10"


@pytest.mark.parametrize(
    ("action", "body", "check"),
    [
        ("users/add", {"username": "new", "full_name": "New"}, lambda k: k.find_username("new")),
        ("users/remove", {"username": "plato"}, lambda k: k.find_username("plato") is None),
        ("latency", {"seconds": 0.5}, lambda k: k.latency_seconds == 0.5),
        ("sessions/delete", {}, lambda k: not k.sessions),
    ],
)
async def test_a_server_is_controlled_over_http_too(
    kolibri: Kolibri, action: str, body: dict[str, Any], check: Callable[[Kolibri], object]
) -> None:
    jar = visit(kolibri)

    reply = await jar.post(f"/_control/{action}", json=body)

    assert reply.status_code == 200
    assert check(kolibri)


async def test_unknown_actions_and_users_are_named(kolibri: Kolibri) -> None:
    jar = visit(kolibri)

    unknown = await jar.post("/_control/explode")
    nobody = await jar.post("/_control/password", json={"username": "who", "password": "x"})

    assert unknown.status_code == 404
    assert (nobody.status_code, "who" in nobody.text) == (400, True)


# ---- the data set ------------------------------------------------------------------------


def test_the_data_set_is_the_same_every_time() -> None:
    assert build_population() == build_population()


def test_the_data_set_has_the_promised_size() -> None:
    assert describe_lab(Kolibri(build_population()))["counts"] == {
        "users": 77,
        "classrooms": 5,
        "memberships": 101,
        "roles": 9,
        "channels": 10,
        "course_sessions": 3,
        "summary_logs": 491,
    }


def test_bulk_users_fill_classes_of_250_in_a_facility_of_their_own() -> None:
    counts = describe_lab(Kolibri(build_population(bulk_users=600)))["counts"]

    assert counts["users"] == 77 + 601
    assert counts["classrooms"] == 5 + 3
    assert counts["memberships"] == 101 + 600


async def test_the_application_can_be_made_in_one_call() -> None:
    app = create_app(build_population(), version="0.18.4", session_age=60)
    transport = httpx.ASGITransport(app=app)

    async with httpx.AsyncClient(transport=transport, base_url="http://kolibri.test") as jar:
        info = (await jar.get("/api/public/info/")).json()

    assert info["kolibri_version"] == "0.18.4"
    assert app.state.kolibri.counts.total() == 1
