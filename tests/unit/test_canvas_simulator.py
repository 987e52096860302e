"""The simulated Canvas keeps to the facts on Canvas; each part names the section it is from."""

import base64
import hashlib
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulators.canvas.app import app_for, images_for, running
from simulators.canvas.population import Population, build_large_population, build_population
from simulators.canvas.profiles import HOSTED_NOW, OSS_2019, OSS_2024, PROFILES, Profile
from simulators.canvas.state import (
    ADMIN_TOKEN,
    CLIENT_ID,
    CLIENT_SECRET,
    PUBLIC_CLIENT_ID,
    SCOPED_CLIENT_ID,
    Canvas,
    VirtualClock,
)

CALLBACK = "http://127.0.0.1/oauth/callback"
BASE = "http://canvas.test"
JSON = {"Accept": "application/json"}


def a_canvas(profile: Profile = HOSTED_NOW, population: Population | None = None) -> Canvas:
    return Canvas(population or build_population(), profile=profile, clock=VirtualClock())


def visit(canvas: Canvas, token: str | None = ADMIN_TOKEN) -> httpx.AsyncClient:
    headers = dict(JSON) | ({"Authorization": f"Bearer {token}"} if token is not None else {})
    transport = httpx.ASGITransport(app=app_for(canvas))
    return httpx.AsyncClient(transport=transport, base_url=BASE, headers=headers)


async def authorize(client: httpx.AsyncClient, **more: str) -> dict[str, str]:
    """Return what the redirect back carries."""
    query = {"client_id": CLIENT_ID, "response_type": "code", "redirect_uri": CALLBACK} | more
    reply = await client.get("/login/oauth2/auth", params=query)
    assert reply.status_code == 302, reply.text
    return {
        name: values[0]
        for name, values in parse_qs(urlsplit(reply.headers["location"]).query).items()
    }


async def redeem(client: httpx.AsyncClient, **form: str) -> httpx.Response:
    whole = {"client_id": CLIENT_ID, "client_secret": CLIENT_SECRET} | form
    return await client.post("/login/oauth2/token", data=whole)


async def log_in(client: httpx.AsyncClient) -> dict[str, Any]:
    answer = await authorize(client)
    reply = await redeem(client, grant_type="authorization_code", code=answer["code"])
    body: dict[str, Any] = reply.json()
    return body


async def walk(client: httpx.AsyncClient, url: str) -> tuple[list[Any], int]:
    """Follow `next` to the end; return the rows and the number of pages."""
    rows: list[Any] = []
    pages, following = 0, url
    while following:
        reply = await client.get(following)
        assert reply.status_code == 200, reply.text
        rows += reply.json()
        pages += 1
        following = reply.links.get("next", {}).get("url", "")
    return rows, pages


# ---- section 1: authentication -------------------------------------------------------------


async def test_a_call_without_credentials_is_challenged() -> None:
    canvas = a_canvas()

    async with visit(canvas, None) as client:
        reply = await client.get("/api/v1/users/self")

    assert reply.status_code == 401
    assert reply.headers["www-authenticate"] == 'Bearer realm="canvas-lms"'
    message = "user authorization required"
    assert reply.json() == {"status": "unauthenticated", "errors": [{"message": message}]}


@pytest.mark.parametrize(
    ("profile", "status"), [(OSS_2019, 401), (OSS_2024, 401), (HOSTED_NOW, 403)]
)
async def test_a_refused_permission_is_never_a_challenge(profile: Profile, status: int) -> None:
    canvas = a_canvas(profile)

    async with visit(canvas, canvas.issue_token(3)) as client:
        reply = await client.get("/api/v1/accounts/1/users")

    assert reply.status_code == status
    assert "www-authenticate" not in reply.headers
    assert reply.json()["status"] == "unauthorized"


async def test_a_code_gives_a_token_pair_once_and_for_ten_minutes() -> None:
    canvas = a_canvas()

    async with visit(canvas, None) as client:
        answer = await authorize(client, state="s1")
        first = await redeem(client, code=answer["code"])
        second = await redeem(client, code=answer["code"])
        late = await authorize(client)
        canvas.clock.advance(600)
        third = await redeem(client, code=late["code"])

    body = first.json()
    assert answer["state"] == "s1"
    assert len(answer["code"]) == 128
    assert body["user"]["id"] == 3
    assert body["user"]["global_id"] == "10000000000003"
    assert body["expires_in"] == 3600
    assert body["refresh_token"]
    expected = {"error": "invalid_grant", "error_description": "authorization_code not found"}
    assert (second.status_code, second.json()) == (400, expected)
    assert (third.status_code, third.json()) == (400, expected)


async def test_a_refresh_kills_the_old_access_token_and_keeps_the_refresh_token() -> None:
    canvas = a_canvas()

    async with visit(canvas, None) as client:
        pair = await log_in(client)
        form = {"grant_type": "refresh_token", "refresh_token": pair["refresh_token"]}
        renewed = (await redeem(client, **form)).json()
        again = await redeem(client, **form)
        canvas.clock.advance(60)  # three grants filled the bucket of this address
    async with visit(canvas, pair["access_token"]) as old:
        dead = await old.get("/api/v1/users/self")

    assert "refresh_token" not in renewed
    assert renewed["access_token"] != pair["access_token"]
    assert again.status_code == 200
    assert dead.status_code == 401
    assert canvas.counts.refreshes_by_user == {3: 2}


async def test_a_public_client_must_prove_the_challenge_and_its_refresh_token_rotates() -> None:
    canvas = a_canvas()
    verifier = "v" * 60
    digest = hashlib.sha256(verifier.encode()).digest()
    challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")
    pkce = {"code_challenge": challenge, "code_challenge_method": "S256"}
    public = {"client_id": PUBLIC_CLIENT_ID, "client_secret": ""}

    async with visit(canvas, None) as client:
        lost = await authorize(client, client_id=PUBLIC_CLIENT_ID, **pkce)
        wrong = await redeem(client, **public, code=lost["code"], code_verifier="other")
        kept = await authorize(client, client_id=PUBLIC_CLIENT_ID, **pkce)
        right = await redeem(client, **public, code=kept["code"], code_verifier=verifier)
        refresh = {"grant_type": "refresh_token", "refresh_token": right.json()["refresh_token"]}
        renewed = await redeem(client, **public, **refresh)
        canvas.clock.advance(100)
        replayed = await redeem(client, **public, **refresh)

    assert (wrong.status_code, wrong.json()["error"]) == (400, "invalid_grant")
    assert renewed.json()["refresh_token"] != right.json()["refresh_token"]
    assert replayed.json()["error_description"] == "refresh_token not found"


@pytest.mark.parametrize(
    ("form", "status", "error", "description"),
    [
        ({"client_id": "1"}, 401, "invalid_client", "unknown client"),
        ({"client_secret": "x"}, 401, "invalid_client", "invalid client"),
        (
            {"grant_type": "refresh_token", "refresh_token": "x"},
            400,
            "invalid_request",
            "refresh_token not found",
        ),
        ({"grant_type": "password"}, 400, "unsupported_grant_type", None),
        ({"grant_type": "authorization_code"}, 400, "invalid_request", None),
    ],
)
async def test_the_token_endpoint_refuses_as_the_table_says(
    form: dict[str, str], status: int, error: str, description: str | None
) -> None:
    canvas = a_canvas()

    async with visit(canvas, None) as client:
        reply = await redeem(client, **form)

    assert (reply.status_code, reply.json()["error"]) == (status, error)
    assert description in {None, reply.json()["error_description"]}
    challenge = "Canvas OAuth 2.0" if status == 401 else None
    assert reply.headers.get("www-authenticate") == challenge
    assert canvas.counts.grants == {}


async def test_an_old_release_redirects_token_errors_when_it_knows_where_to() -> None:
    canvas = a_canvas(OSS_2019)

    async with visit(canvas, None) as client:
        reply = await redeem(client, code="x", redirect_uri=CALLBACK)

    assert reply.status_code == 302
    assert "error=invalid_grant" in reply.headers["location"]


async def test_denial_carries_the_state_except_in_the_old_release() -> None:
    new, old = a_canvas(), a_canvas(OSS_2019)
    new.consent = old.consent = "deny"

    async with visit(new, None) as client:
        told = await authorize(client, state="s1")
    async with visit(old, None) as client:
        untold = await authorize(client, state="s1")

    assert (told["error"], told["state"]) == ("access_denied", "s1")
    assert untold["error"] == "access_denied"
    assert "state" not in untold


async def test_a_bad_client_or_redirect_is_answered_in_place() -> None:
    canvas = a_canvas()
    query = {"response_type": "code", "client_id": CLIENT_ID, "redirect_uri": CALLBACK}

    async with visit(canvas, None) as client:
        unknown = await client.get("/login/oauth2/auth", params=query | {"client_id": "9"})
        astray = await client.get(
            "/login/oauth2/auth", params=query | {"redirect_uri": "https://evil.example/"}
        )

    assert (unknown.status_code, unknown.json()["error"]) == (401, "invalid_client")
    assert (astray.status_code, astray.json()["error"]) == (400, "invalid_request")


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"response_type": "token"}, "unsupported_response_type"),
        ({"prompt": "login"}, "unsupported_prompt_type"),
        ({"prompt": "none", "unique_id": "nobody"}, "login_required"),
        ({"prompt": "none"}, "interaction_required"),
        ({"client_id": SCOPED_CLIENT_ID, "scope": "url:GET|/api/v1/nothing"}, "invalid_scope"),
    ],
)
async def test_every_other_problem_redirects_back(more: dict[str, str], error: str) -> None:
    canvas = a_canvas()

    async with visit(canvas, None) as client:
        answer = await authorize(client, **more)

    assert answer["error"] == error


async def test_the_consent_page_asks_and_the_answer_decides() -> None:
    canvas = a_canvas()
    canvas.consent = "page"
    query = {
        "client_id": CLIENT_ID,
        "response_type": "code",
        "redirect_uri": CALLBACK,
        "state": "s",
    }

    async with visit(canvas, None) as client:
        page = await client.get("/login/oauth2/auth", params=query)
        form = query | {"unique_id": "john"}
        yes = await client.post("/login/oauth2/accept", data=form | {"answer": "approve"})
        no = await client.post("/login/oauth2/accept", data=form | {"answer": "deny"})

    assert "Allow access" in page.text
    assert "code=" in yes.headers["location"]
    assert "error=access_denied" in no.headers["location"]
    assert [code.user_id for code in canvas.codes.values()] == [4]


async def test_revoking_ends_access_and_refresh() -> None:
    canvas = a_canvas()

    async with visit(canvas, None) as client:
        pair = await log_in(client)
        refused = await client.delete("/login/oauth2/token")
        mine = {"Authorization": f"Bearer {pair['access_token']}"}
        gone = await client.delete("/login/oauth2/token", headers=mine)
        dead = await client.get("/api/v1/users/self", headers=mine)
        renewed = await redeem(
            client, grant_type="refresh_token", refresh_token=pair["refresh_token"]
        )

    assert refused.status_code == 400
    assert (gone.status_code, gone.json()) == (200, {})
    assert dead.json()["errors"][0]["message"] == "Revoked access token."
    assert renewed.json()["error"] == "invalid_request"


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
async def test_an_access_token_lives_one_hour(profile: Profile) -> None:
    canvas = a_canvas(profile)

    async with visit(canvas, None) as client:
        pair = await log_in(client)
        mine = {"Authorization": f"Bearer {pair['access_token']}"}
        canvas.clock.advance(3599)
        alive = await client.get("/api/v1/users/self", headers=mine)
        canvas.clock.advance(1)
        dead = await client.get("/api/v1/users/self", headers=mine)

    named = "Expired" if profile.names_dead_tokens else "Invalid"
    assert (alive.status_code, dead.status_code) == (200, 401)
    assert dead.json()["errors"][0]["message"] == f"{named} access token."


async def test_the_middle_release_answers_a_hasty_refresh_with_null() -> None:
    canvas = a_canvas(OSS_2024)

    async with visit(canvas, None) as client:
        pair = await log_in(client)
        form = {"grant_type": "refresh_token", "refresh_token": pair["refresh_token"]}
        hasty = await redeem(client, **form)
        canvas.clock.advance(5)
        patient = await redeem(client, **form)

    assert hasty.json()["access_token"] is None
    assert patient.json()["access_token"]


async def test_a_scoped_token_reaches_its_scopes_and_ignores_includes() -> None:
    canvas = a_canvas()
    token = canvas.issue_token(3, scopes=canvas.keys[SCOPED_CLIENT_ID].scopes)

    async with visit(canvas, token) as client:
        course = await client.get("/api/v1/courses/1?include[]=public_description")
        refused = await client.get("/api/v1/users/3/enrollments")

    assert course.status_code == 200
    assert "public_description" not in course.json()
    assert refused.status_code == 401
    assert "www-authenticate" not in refused.headers


async def test_an_administrator_can_be_another_user_and_others_cannot() -> None:
    canvas = a_canvas()

    async with visit(canvas) as client:
        seen = await client.get("/api/v1/users/self?as_user_id=sis_user_id:SIS-3")
        unknown = await client.get("/api/v1/users/self?as_user_id=999")
        listed = await client.get("/api/v1/courses?as_user_id=3&per_page=1")
    async with visit(canvas, canvas.issue_token(3)) as client:
        refused = await client.get("/api/v1/users/self?as_user_id=1")

    assert seen.json()["id"] == 3
    assert "as_user_id=3" in listed.links["next"]["url"]
    assert (unknown.status_code, unknown.json()) == (401, {"errors": "Invalid as_user_id"})
    assert (refused.status_code, refused.json()) == (401, {"errors": "Invalid as_user_id"})


# ---- section 2: pages, ids, search ---------------------------------------------------------


async def test_numbered_pages_have_a_last_and_end_empty() -> None:
    canvas = a_canvas()

    async with visit(canvas) as client:
        second = await client.get("/api/v1/accounts/1/courses?per_page=3&page=2&access_token=x")
        beyond = await client.get("/api/v1/accounts/1/courses?per_page=3&page=9")

    assert set(second.links) == {"current", "next", "prev", "first", "last"}
    assert second.links["next"]["url"] == f"{BASE}/api/v1/accounts/1/courses?page=3&per_page=3"
    assert (beyond.status_code, beyond.json()) == (200, [])


async def test_enrollments_are_bookmarked() -> None:
    canvas = a_canvas()
    path = "/api/v1/courses/1/enrollments"

    async with visit(canvas) as client:
        first = await client.get(f"{path}?per_page=2")
        numbered = await client.get(f"{path}?page=2")
        garbled = await client.get(f"{path}?per_page=2&page=bookmark:nonsense")

    assert set(first.links) == {"current", "next", "first"}
    assert "page=bookmark" in first.links["next"]["url"]
    assert numbered.status_code == 404
    assert garbled.json() == first.json()


async def test_account_users_are_bookmarked_only_by_id() -> None:
    canvas = a_canvas()

    async with visit(canvas) as client:
        by_id = await client.get("/api/v1/accounts/1/users?sort=id&per_page=2")
        by_name = await client.get("/api/v1/accounts/1/users?per_page=2")

    assert "page=bookmark" in by_id.links["next"]["url"]
    assert "page=2" in by_name.links["next"]["url"]
    assert "last" not in by_name.links


@pytest.mark.parametrize(("profile", "most"), [(OSS_2019, 50), (HOSTED_NOW, 100)])
async def test_a_page_is_clamped_in_silence(profile: Profile, most: int) -> None:
    people = build_population()
    for number in range(150):
        people.add_user(f"More {number}", f"more{number}")
    canvas = a_canvas(profile, people)

    async with visit(canvas) as client:
        reply = await client.get("/api/v1/accounts/1/users?per_page=1000")

    assert len(reply.json()) == most
    assert f"per_page={most}" in reply.links["next"]["url"]


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(0, 60),
    size=st.integers(1, 25),
    path=st.sampled_from(
        [
            "accounts/1/users?sort=id",
            "accounts/1/users?sort=id&order=desc",
            "accounts/1/users?x=1",
            "accounts/1/courses?x=1",
            "courses/1/enrollments?x=1",
            "users/2/enrollments?x=1",
        ]
    ),
)
async def test_walking_next_yields_each_row_once(count: int, size: int, path: str) -> None:
    people = Population()
    people.add_user("Ada Admin", "ada", is_admin=True)
    teacher = people.add_user("Teresa", "teresa")
    people.add_course("First", "F")
    for number in range(count):
        user = people.add_user(f"User {number % 7}", f"user{number}")
        course = people.add_course(f"Course {number}", "C")
        people.add_enrollment(user, people.sections_by_course[1][0])
        people.add_enrollment(teacher, people.sections_by_course[course.id][0])
    expected = {"accounts/1/users": count + 2, "accounts/1/courses": count + 1}
    canvas = a_canvas(population=people)

    async with visit(canvas) as client:
        rows, pages = await walk(client, f"/api/v1/{path}&per_page={size}")

    total = expected.get(path.partition("?")[0], count)
    assert len({row["id"] for row in rows}) == len(rows) == total
    assert pages == max(-(-total // size), 1)


async def test_long_links_are_dropped_even_next() -> None:
    canvas = a_canvas()

    async with visit(canvas) as client:
        long = "&".join(f"ids[]={number:050}" for number in range(100))
        reply = await client.get(f"/api/v1/accounts/1/courses?per_page=2&{long}")

    assert len(reply.json()) == 2
    assert "next" not in reply.links


async def test_ids_beyond_doubles_are_strings_when_asked() -> None:
    canvas = a_canvas(population=build_population(shard=1000))
    accept = {"Accept": "application/json+canvas-string-ids"}

    async with visit(canvas) as client:
        plain = await client.get("/api/v1/users/1000~3/enrollments")
        text = await client.get("/api/v1/users/1000~3/enrollments", headers=accept)

    assert plain.json()[0]["user_id"] == 10_000_000_000_000_003
    assert text.json()[0]["user_id"] == "10000000000000003"
    assert text.json()[0]["user"]["id"] == "10000000000000003"
    assert plain.json()[0]["user_id"] > 2**53


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("sis_user_id:ADM%2F1", 1),
        ("sis_login_id:CODY", 3),
        ("sis_integration_id:INT-3", 3),
        ("uuid:user-uuid-4", 4),
    ],
)
async def test_users_have_other_names(name: str, number: int) -> None:
    canvas = a_canvas()

    async with visit(canvas) as client:
        reply = await client.get(f"/api/v1/users/{name}")

    assert reply.json()["id"] == number


@pytest.mark.parametrize(("profile", "shortest"), [(OSS_2019, 3), (HOSTED_NOW, 2)])
async def test_a_short_search_term_is_refused(profile: Profile, shortest: int) -> None:
    canvas = a_canvas(profile)

    async with visit(canvas) as client:
        refused = await client.get(f"/api/v1/accounts/1/users?search_term={'c' * (shortest - 1)}")
        found = await client.get("/api/v1/accounts/1/users?search_term=cody")
        by_id = await client.get("/api/v1/accounts/1/users?search_term=7")

    message = f"{shortest} or more characters is required"
    problem = {"field": "search_term", "code": "invalid", "message": message}
    assert (refused.status_code, refused.json()) == (400, {"errors": [problem]})
    assert [user["id"] for user in found.json()] == [3]
    assert [user["id"] for user in by_id.json()] == [7]


# ---- section 3: resources ------------------------------------------------------------------


async def test_what_may_not_be_seen_is_a_missing_key() -> None:
    canvas = a_canvas()

    async with visit(canvas) as client:
        maria = (await client.get("/api/v1/users/5")).json()
        cody = (await client.get("/api/v1/users/3?include[]=email")).json()
    async with visit(canvas, canvas.issue_token(3)) as client:
        own = (await client.get("/api/v1/users/self")).json()
        rows = (await client.get("/api/v1/courses/1/enrollments?per_page=50")).json()

    assert "login_id" not in maria
    assert (cody["login_id"], cody["email"]) == ("cody", "cody@canvas.test")
    assert not {"login_id", "email", "sis_user_id"} & own.keys()
    others = [row for row in rows if row["user_id"] == 4]
    assert set(others[0]["grades"]) == {"html_url"}
    assert "total_activity_time" not in others[0]


async def test_a_course_lists_states_as_the_caller_may_expect() -> None:
    canvas = a_canvas()
    path = "/api/v1/courses/1/enrollments?per_page=50"

    async with visit(canvas) as client:
        default = (await client.get(path)).json()
        completed = (await client.get(f"{path}&state[]=completed&type[]=StudentEnrollment")).json()
    async with visit(canvas, canvas.issue_token(2)) as client:
        teacher = (await client.get(path)).json()

    assert {row["enrollment_state"] for row in default} == {"active", "invited", "inactive"}
    assert {row["enrollment_state"] for row in teacher} == {"active", "invited"}
    assert [row["user_id"] for row in completed] == [7]
    assert len([row for row in default if row["user_id"] == 3]) == 2
    assert not any("completed_at" in row for row in default)


async def test_courses_show_their_odd_cases() -> None:
    canvas = a_canvas()
    query = "include[]=course_progress&include[]=course_image&include[]=teachers"

    async with visit(canvas) as client:
        listed = (
            await client.get(f"/api/v1/accounts/1/courses?{query}&teacher_limit=0&per_page=50")
        ).json()
        gone = await client.get("/api/v1/courses/5")
    async with visit(canvas, canvas.issue_token(3)) as client:
        own = (await client.get(f"/api/v1/courses/1?{query}")).json()
    async with visit(canvas, canvas.issue_token(4)) as client:
        restricted = (await client.get("/api/v1/courses/3")).json()

    assert [course["id"] for course in listed] == [1, 2, 3, 4, 6, 7, 8]
    assert listed[3] == {"id": 4, "access_restricted_by_date": True}
    assert restricted == {"id": 3, "access_restricted_by_date": True}
    assert (own["name"], own["original_name"]) == ("Maths with Teresa", "Algebra")
    assert own["course_progress"]["requirement_completed_count"] == 4
    assert "error" in listed[0]["course_progress"]
    assert (listed[0]["teacher_count"], len(own["teachers"])) == (1, 1)
    assert gone.status_code == 404


async def test_submissions_without_students_are_the_callers_own() -> None:
    canvas = a_canvas()
    path = "/api/v1/courses/1/students/submissions"

    async with visit(canvas) as client:
        mine = (await client.get(f"{path}?user_ids[]=3")).json()
        theirs = (await client.get(f"{path}?student_ids[]=3")).json()
        everyone = (
            await client.get(f"{path}?student_ids[]=all&graded_since=2025-02-02T00:00:00Z")
        ).json()
    async with visit(canvas, canvas.issue_token(4)) as client:
        refused = await client.get(f"{path}?student_ids[]=3")

    assert mine == []
    assert [row["workflow_state"] for row in theirs] == ["graded", "submitted", "pending_review"]
    assert [row["user_id"] for row in everyone] == [3, 4]
    assert refused.status_code == 403


@pytest.mark.parametrize(
    "path",
    [
        "accounts/self", "users/3/profile", "users/3/courses", "users/3/logins",
        "users/3/page_views",
        "courses/1/users", "courses/1/sections", "courses/1/assignments", "courses/1/modules",
        "courses/1/bulk_user_progress", "courses/1/users/3/progress", "sections/1/enrollments",
        "courses/1/analytics/student_summaries", "courses/1/analytics/users/3/activity",
        "accounts/1/enrollments/1",
    ],
)  # fmt: skip
async def test_the_remaining_resources_answer(path: str) -> None:
    canvas = a_canvas()

    async with visit(canvas) as client:
        reply = await client.get(f"/api/v1/{path}")

    assert reply.status_code == 200
    assert reply.json()


# ---- section 4: the bucket -----------------------------------------------------------------


async def test_three_grants_pass_and_the_fourth_is_throttled() -> None:
    canvas = a_canvas()

    async with visit(canvas, None) as client:
        pair = await log_in(client)
        form = {"grant_type": "refresh_token", "refresh_token": pair["refresh_token"]}
        canvas.reset()
        replies = [await redeem(client, **form) for _ in range(4)]

    assert [reply.status_code for reply in replies] == [200, 200, 200, 429]
    assert replies[3].headers["content-type"].startswith("text/plain")
    assert "x-request-cost" not in replies[3].headers
    assert "retry-after" not in replies[3].headers
    assert canvas.counts.throttled == 1


async def test_one_address_gets_183_grants_in_an_hour() -> None:
    canvas = a_canvas()
    canvas.throttle.request_cost = canvas.throttle.row_cost = 0.0

    async with visit(canvas, None) as client:
        pair = await log_in(client)
        form = {"grant_type": "refresh_token", "refresh_token": pair["refresh_token"]}
        canvas.reset()
        for _ in range(3600 // 5):
            await redeem(client, **form)
            canvas.clock.advance(5)

    assert canvas.counts.grants["refresh_token"] in {182, 183}


@pytest.mark.parametrize(
    ("profile", "status", "text"),
    [
        (OSS_2024, 403, "403 Forbidden (Rate Limit Exceeded)\n"),
        (HOSTED_NOW, 429, "429 Too Many Requests (Rate Limit Exceeded)\n"),
    ],
)
async def test_each_token_has_its_own_bucket(profile: Profile, status: int, text: str) -> None:
    canvas = a_canvas(profile)
    canvas.throttle.cost_by_path["/api/v1/users/self"] = 600.0

    async with visit(canvas) as client:
        first = await client.get("/api/v1/users/self")
        full = await client.get("/api/v1/users/self")
    async with visit(canvas, canvas.issue_token(3)) as client:
        other = await client.get("/api/v1/users/self")

    assert first.headers["x-request-cost"] == "600.0"
    assert first.headers["x-rate-limit-remaining"] == "0.0"
    assert (full.status_code, full.text) == (status, text)
    assert full.headers["x-rate-limit-remaining"] == "0.0"
    assert other.status_code == 200


async def test_an_idle_bucket_absorbs_the_reservation_and_a_fresh_one_does_not() -> None:
    canvas = a_canvas()

    fresh = canvas.add_to_bucket("someone", 50)
    canvas.add_to_bucket("someone", -50)
    canvas.clock.advance(10)
    idle = canvas.add_to_bucket("someone", 50)

    assert (fresh, idle) == (50.0, 0.0)


async def test_300_cheap_calls_in_a_row_are_not_throttled() -> None:
    canvas = a_canvas()

    async with visit(canvas) as client:
        for _ in range(300):
            await client.get("/api/v1/users/self")

    assert canvas.counts.throttled == 0
    assert canvas.counts.calls["GET", "/api/v1/users/:user_id"] == 300


# ---- section 5: GraphQL --------------------------------------------------------------------


async def ask(canvas: Canvas, query: str, token: str = ADMIN_TOKEN, **variables: object) -> Any:
    async with visit(canvas, token) as client:
        reply = await client.post("/api/graphql", json={"query": query, "variables": variables})
    assert reply.status_code == 200
    return reply.json()


async def test_one_query_reads_courses_with_their_enrollments() -> None:
    canvas = a_canvas()
    query = """query($a: ID!) { account(id: $a) { coursesConnection(first: 2) {
      pageInfo { hasNextPage endCursor }
      nodes { id _id name state enrollmentsConnection(
        first: 100, filter: {types: [StudentEnrollment], states: [active, completed]}
      ) { nodes { _id state user { _id name } grades { currentScore } } } } } } }"""

    body = await ask(canvas, query, a="1")

    page = body["data"]["account"]["coursesConnection"]
    assert page["pageInfo"]["hasNextPage"] is True
    assert page["nodes"][0]["id"] == "Q291cnNlLTE="
    rows = page["nodes"][0]["enrollmentsConnection"]["nodes"]
    assert [row["user"]["_id"] for row in rows] == ["3", "3", "4", "7"]


async def test_a_connection_that_is_not_permitted_is_null() -> None:
    canvas = a_canvas()
    query = '{ account(id: "1") { coursesConnection { nodes { _id } } } }'

    body = await ask(canvas, query, canvas.issue_token(3))

    assert body == {"data": {"account": {"coursesConnection": None}}}


async def test_a_connection_without_first_stops_at_20() -> None:
    people = build_population()
    for number in range(150):
        people.add_course(f"More {number}", "M")
    query = '{ account(id: "1") { coursesConnection%s { nodes { _id } } } }'
    canvas, old = a_canvas(population=people), a_canvas(OSS_2019, people)

    found = [
        len((await ask(each, query % first))["data"]["account"]["coursesConnection"]["nodes"])
        for each, first in ((canvas, ""), (canvas, "(first: 1000)"), (old, ""))
    ]

    assert found == [20, 100, 158]


async def test_graphql_limits_are_errors_with_status_200() -> None:
    canvas = a_canvas()
    aliases = "".join(["{", *(f' c{n}: course(id: "1") {{ _id }}' for n in range(21)), "}"])
    part = "enrollmentsConnection(first: 100) { nodes { course { %s } } }"
    costly = '{ course(id: "1") { %s } }' % (part % (part % (part % "_id")))

    too_many = await ask(canvas, aliases)
    too_costly = await ask(canvas, costly)
    unknown = await ask(canvas, "{ nothing }")
    allowed = await ask(a_canvas(OSS_2019), aliases)

    assert "aliases" in too_many["errors"][0]["message"]
    assert "complexity" in too_costly["errors"][0]["message"]
    assert "data" not in unknown
    assert len(allowed["data"]) == 21


async def test_courses_by_ids_exist_in_newer_releases_and_hide_what_others_have() -> None:
    canvas = a_canvas()
    query = "query($ids: [ID!]) { courses(ids: $ids) { _id name } }"

    own = await ask(canvas, query, canvas.issue_token(3), ids=["1", "2", "8"])
    old = await ask(a_canvas(OSS_2019), query, ids=["1"])

    assert [course["_id"] for course in own["data"]["courses"]] == ["2", "1"]
    assert own["data"]["courses"][1]["name"] == "Maths with Teresa"
    assert "errors" in old


async def test_a_legacy_node_leads_from_a_user_to_courses() -> None:
    canvas = a_canvas()
    query = (
        '{ legacyNode(_id: "3", type: User) { ... on User { enrollments { course { _id } } } } }'
    )

    body = await ask(canvas, query)

    rows = body["data"]["legacyNode"]["enrollments"]
    assert [row["course"]["_id"] for row in rows] == ["1", "1", "2"]


# ---- section 6: errors and images ----------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "more", "status", "media_type"),
    [
        ("status", {"status": 500}, 500, "application/json"),
        ("status", {"status": 502}, 502, "text/html; charset=utf-8"),
        ("html", {}, 200, "text/html; charset=utf-8"),
        ("drop", {}, 504, "text/html; charset=utf-8"),
        ("throttled", {}, 429, "text/plain; charset=utf-8"),
    ],
)
async def test_a_fault_meets_the_call_it_is_meant_for(
    kind: str, more: dict[str, int], status: int, media_type: str
) -> None:
    canvas = a_canvas()
    canvas.fail(kind, path="/api/v1/users", after=1, **more)

    async with visit(canvas) as client:
        elsewhere = await client.get("/api/v1/courses")
        before = await client.get("/api/v1/users/self")
        broken = await client.get("/api/v1/users/self")
        after = await client.get("/api/v1/users/self")

    assert [reply.status_code for reply in (elsewhere, before, broken, after)] == [
        200,
        200,
        status,
        200,
    ]
    assert broken.headers["content-type"] == media_type


async def test_links_can_lie() -> None:
    canvas = a_canvas()
    path = "/api/v1/accounts/1/users?sort=id&per_page=2"

    async with visit(canvas) as client:
        canvas.fail("foreign-next")
        foreign = await client.get(path)
        canvas.fail("loop")
        loop = await client.get(path)
        canvas.fail("truncated")
        truncated = await client.get(path)

    assert foreign.links["next"]["url"].startswith(
        "https://elsewhere.example.net/api/v1/accounts/1/users?"
    )
    assert loop.links["next"]["url"] == loop.links["current"]["url"]
    with pytest.raises(ValueError, match=r"Unterminated|Expecting"):
        truncated.json()


async def test_the_second_origin_notes_who_brings_credentials() -> None:
    canvas = a_canvas()
    canvas.images_url = "http://images.test"
    transport = httpx.ASGITransport(app=images_for(canvas))

    async with visit(canvas) as client:
        course = (await client.get("/api/v1/courses/1?include[]=course_image")).json()
    async with httpx.AsyncClient(transport=transport) as images:
        clean = await images.get(course["image_download_url"])
        leaky = await images.get(
            course["image_download_url"], headers={"Authorization": "Bearer x"}
        )
        unsigned = await images.get("http://images.test/files/1/course.png")

    assert clean.content.startswith(b"\x89PNG")
    assert (leaky.status_code, unsigned.status_code) == (200, 403)
    assert (canvas.counts.image_calls, canvas.counts.image_calls_with_authorization) == (3, 1)


async def test_beyond_the_api_there_is_a_log_in_page() -> None:
    canvas = a_canvas()

    async with visit(canvas) as client:
        outside = await client.get("/courses/1")
        missing = await client.get("/api/v1/nothing")

    assert (outside.status_code, outside.headers["location"]) == (302, "/login")
    assert missing.status_code == 404
    assert missing.json() == {"errors": [{"message": "The specified resource does not exist."}]}


# ---- section 7: writes ---------------------------------------------------------------------


async def test_enrolling_invites_unless_told_and_refuses_concluded_courses() -> None:
    canvas = a_canvas()
    rows = len(canvas.population.enrollments)

    async with visit(canvas) as client:
        created = await client.post(
            "/api/v1/courses/8/enrollments", data={"enrollment[user_id]": "4"}
        )
        repeated = await client.post(
            "/api/v1/courses/8/enrollments", json={"enrollment": {"user_id": 4}}
        )
        refused = await client.post(
            "/api/v1/courses/6/enrollments", data={"enrollment[user_id]": "4"}
        )
        unknown = await client.post(
            "/api/v1/courses/8/enrollments", data={"enrollment[user_id]": "99"}
        )

    assert created.json()["enrollment_state"] == "invited"
    assert "user" not in created.json()
    assert repeated.json()["id"] == created.json()["id"]
    assert refused.json() == {"message": "Can't add an enrollment to a concluded course."}
    assert (refused.status_code, unknown.status_code) == (400, 404)
    assert len(canvas.population.enrollments) == rows + 1


@pytest.mark.parametrize(
    ("task", "state"),
    [("", "completed"), ("?task=delete", "deleted"), ("?task=inactivate", "inactive")],
)
async def test_ending_an_enrollment_concludes_it_unless_told(task: str, state: str) -> None:
    canvas = a_canvas()

    async with visit(canvas) as client:
        reply = await client.delete(f"/api/v1/courses/1/enrollments/5{task}")
        revived = await client.put("/api/v1/courses/1/enrollments/5/reactivate")

    assert reply.json()["enrollment_state"] == state
    assert revived.status_code == (200 if state == "inactive" else 400)


async def test_only_the_invited_can_accept() -> None:
    canvas = a_canvas()
    invited = next(row for row in canvas.population.enrollments.values() if row.state == "invited")
    path = f"/api/v1/courses/1/enrollments/{invited.id}/accept"

    async with visit(canvas) as client:
        refused = await client.post(path)
    async with visit(canvas, canvas.issue_token(invited.user_id)) as client:
        accepted = await client.post(path)

    assert (refused.status_code, accepted.json()) == (403, {"success": True})
    assert invited.state == "active"


async def test_a_login_can_be_taken_only_once() -> None:
    canvas = a_canvas()
    form = {"user[name]": "New Person", "pseudonym[unique_id]": "new"}

    async with visit(canvas) as client:
        created = await client.post("/api/v1/accounts/1/users", data=form)
        repeated = await client.post("/api/v1/accounts/1/users", data=form)
        login = await client.post(
            "/api/v1/accounts/1/logins", data={"user[id]": "5", "login[unique_id]": "maria"}
        )

    assert (created.json()["sortable_name"], created.json()["login_id"]) == ("Person, New", "new")
    assert repeated.status_code == 400
    assert repeated.json()["errors"]["pseudonym"]["unique_id"][0]["type"] == "taken"
    assert login.json()["unique_id"] == "maria"


# ---- section 11: the whole -----------------------------------------------------------------


def test_the_large_data_set_has_its_sizes_and_one_seed_is_one_set() -> None:
    first, second = build_large_population(7), build_large_population(7)

    assert (len(first.users), len(first.courses), len(first.enrollments)) == (10_000, 1_000, 60_000)
    assert first.enrollments == second.enrollments
    places = {(row.user_id, row.section_id) for row in first.enrollments.values()}
    assert len(places) == 60_000


async def test_the_large_data_set_is_walked_in_100_calls_without_a_throttle() -> None:
    canvas = a_canvas(population=build_large_population())

    async with visit(canvas) as client:
        users, pages = await walk(client, "/api/v1/accounts/1/users?sort=id&per_page=100")

    assert (len({user["id"] for user in users}), pages) == (10_000, 100)
    assert canvas.counts.throttled == 0


async def test_it_can_be_controlled_over_its_own_socket() -> None:
    canvas = a_canvas()

    async with running(canvas) as url, httpx.AsyncClient(base_url=url) as client:
        lab = (await client.get("/_control/lab")).json()
        await client.post("/_control/clock", json={"advance": 60})
        await client.post("/_control/profile", json={"name": "oss-2019"})
        await client.post("/_control/fail", json={"kind": "status", "status": 503})
        mine = {"Authorization": f"Bearer {lab['admin_token']}"}
        broken = await client.get("/api/v1/users/self", headers=mine)
        counts = (await client.get("/_control/counts")).json()
        image = await client.get(f"{lab['images_url']}/files/1/course.png")
        unknown = await client.post("/_control/nothing")

    assert (broken.status_code, image.status_code, unknown.status_code) == (503, 403, 404)
    assert counts["total"] == 1
    assert canvas.profile is OSS_2019
