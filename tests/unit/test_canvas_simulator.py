"""The simulated Canvas keeps to the facts on Canvas; each part names the section it is from."""

import base64
import hashlib
from dataclasses import replace
from typing import Any, Literal
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


async def test_a_token_needs_a_login_and_a_key_that_still_has_its_scopes() -> None:
    canvas = a_canvas()
    code = {"client_id": SCOPED_CLIENT_ID, "client_secret": "scoped-secret"}
    scope = "url:GET|/api/v1/courses url:GET|/api/v1/users/:id"

    async with visit(canvas, None) as client:
        answer = await authorize(client, client_id=SCOPED_CLIENT_ID, scope=scope)
        pair = (await redeem(client, **code, code=answer["code"])).json()
        mine = {"Authorization": f"Bearer {pair['access_token']}"}
        before = await client.get("/api/v1/courses", headers=mine)
        canvas.keys[SCOPED_CLIENT_ID].scopes = frozenset({"url:GET|/api/v1/courses"})
        after = await client.get("/api/v1/courses", headers=mine)
    async with visit(canvas, canvas.issue_token(5)) as client:
        without_login = await client.get("/api/v1/users/self")

    assert (before.status_code, after.status_code) == (200, 401)
    assert without_login.json() == {"errors": [{"message": "Invalid access token."}]}


async def test_ending_sessions_may_lead_elsewhere() -> None:
    canvas = a_canvas()
    canvas.forward_url = "https://sso.example/logout"

    async with visit(canvas, canvas.issue_token(3)) as client:
        reply = await client.delete("/login/oauth2/token?expire_sessions=1")

    assert reply.json() == {"forward_url": "https://sso.example/logout"}
    assert canvas.signed_in is None


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


async def test_an_account_lists_its_roles_built_in_and_custom() -> None:
    canvas = a_canvas()
    canvas.population.add_role("Retired", "TeacherEnrollment", workflow_state="inactive")
    path = "/api/v1/accounts/self/roles"

    async with visit(canvas) as client:
        roles, pages = await walk(client, f"{path}?per_page=4")
        last = (await client.get(f"{path}?per_page=4")).links["last"]["url"]
        inactive = (await client.get(f"{path}?state[]=inactive")).json()
    async with visit(canvas, canvas.issue_token(2)) as client:
        refused = await client.get(path)

    assert [(role["id"], role["role"], role["label"]) for role in roles] == [
        (1, "AccountAdmin", "Account Admin"), (3, "StudentEnrollment", "Student"),
        (4, "TeacherEnrollment", "Teacher"), (5, "TaEnrollment", "TA"),
        (6, "DesignerEnrollment", "Designer"), (7, "ObserverEnrollment", "Observer"),
        (8, "Lab assistant", "Lab assistant"),
    ]  # fmt: skip
    assert (pages, "page=2" in last, refused.status_code) == (2, True, 403)
    assert roles[0]["is_account_role"]
    assert roles[6]["base_role_type"] == "TaEnrollment"
    assert {role["workflow_state"] for role in roles} == {"built_in", "active"}
    assert [role["role"] for role in inactive] == ["Retired"]


async def test_enrollments_name_roles_that_the_account_has() -> None:
    canvas = a_canvas()
    path = "/api/v1/courses/1/enrollments?per_page=50"

    async with visit(canvas) as client:
        roles = (await client.get("/api/v1/accounts/1/roles?per_page=50")).json()
        rows = (await client.get(path)).json()
        assistants = (await client.get(f"{path}&role[]=Lab%20assistant")).json()
        members = await client.get("/api/v1/courses/1/users?enrollment_role_id=8")

    names = {role["id"]: role["role"] for role in roles}
    assert all(names[row["role_id"]] == row["role"] for row in rows)
    assert [(r["user_id"], r["type"], r["role_id"]) for r in assistants] == [
        (15, "TaEnrollment", 8)
    ]
    assert [user["id"] for user in members.json()] == [15]


@pytest.mark.parametrize(
    ("form", "outcome"),
    [
        ({"role_id": "8"}, ("TaEnrollment", "Lab assistant")),
        ({"role_id": "4"}, ("TeacherEnrollment", "TeacherEnrollment")),
        ({"role_id": "99"}, "Invalid role"),
        ({"role_id": "1"}, "Invalid role"),
        ({"role_id": "9"}, "Cannot create an enrollment with this role because it is inactive."),
        (
            {"role_id": "8", "type": "StudentEnrollment"},
            "The specified type must match the base type for the role",
        ),
    ],
)
async def test_an_enrollment_is_made_in_a_role_that_fits(
    form: dict[str, str], outcome: str | tuple[str, str]
) -> None:
    canvas = a_canvas()
    canvas.population.add_role("Retired", "TeacherEnrollment", workflow_state="inactive")
    rows = len(canvas.population.enrollments)
    whole = {"user_id": "4"} | form

    async with visit(canvas) as client:
        reply = await client.post("/api/v1/courses/8/enrollments", json={"enrollment": whole})

    body = reply.json()
    made = (body["type"], body["role"]) if reply.status_code == 200 else body["message"]
    assert made == outcome
    assert len(canvas.population.enrollments) == rows + (reply.status_code == 200)


@pytest.mark.parametrize(
    "path",
    [
        "accounts", "accounts/self", "users/3/profile", "users/3/courses", "users/3/logins",
        "users/3/page_views",
        "courses/1/users", "courses/1/sections", "courses/1/assignments", "courses/1/modules",
        "courses/1/bulk_user_progress", "courses/1/users/3/progress", "sections/1/enrollments",
        "courses/1/analytics/activity", "courses/1/analytics/student_summaries",
        "courses/1/analytics/users/3/activity",
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
    assert [row["course"]["_id"] for row in rows] == ["1", "1", "2", "6"]


async def test_a_user_has_all_their_enrollments_that_are_not_deleted() -> None:
    canvas = a_canvas()
    query = """query($id: ID!, $course: ID) { legacyNode(_id: $id, type: User) { ... on User {
      enrollments(courseId: $course) { _id state course { _id } } } } }"""

    jefferson = await ask(canvas, query, id="8")
    in_biology = await ask(canvas, query, id="3", course="Q291cnNlLTI=")
    own = await ask(canvas, query, canvas.issue_token(8), id="8")
    canvas.population.courses[1].workflow_state = "deleted"
    left = await ask(canvas, query, id="8")

    row = {"_id": "11", "state": "rejected", "course": {"_id": "1"}}
    assert jefferson["data"]["legacyNode"]["enrollments"] == [row]
    assert [r["_id"] for r in in_biology["data"]["legacyNode"]["enrollments"]] == ["15"]
    assert own == jefferson
    assert left["data"]["legacyNode"]["enrollments"] == []


async def test_newer_releases_tell_when_an_enrollment_was_made() -> None:
    canvas = a_canvas()
    canvas.population.sections[2].workflow_state = "deleted"
    fields = "createdAt updatedAt userId courseSectionId state enrollmentState htmlUrl"
    query = """{ course(id: "1") { createdAt updatedAt account { _id } term { _id name }
      enrollmentsConnection(first: 6) { nodes { _id %s } } } }"""

    new = (await ask(canvas, query % fields))["data"]["course"]
    old = await ask(a_canvas(OSS_2019), query % fields)
    known = await ask(a_canvas(OSS_2019), '{ course(id: "1") { term { _id } } }')

    assert (new["account"], new["term"]) == ({"_id": "1"}, {"_id": "1", "name": "Default Term"})
    assert new["enrollmentsConnection"]["nodes"][3] == {
        "_id": "6", "createdAt": "2025-01-06T08:00:00Z", "updatedAt": "2025-01-06T08:00:00Z",
        "userId": "3", "courseSectionId": "2", "state": "active", "enrollmentState": "deleted",
        "htmlUrl": f"{BASE}/courses/1/users/3",
    }  # fmt: skip
    assert "Cannot query field 'createdAt'" in old["errors"][0]["message"]
    assert known["data"] == {"course": {"term": {"_id": "1"}}}


async def test_some_fields_are_known_only_inside_a_course() -> None:
    canvas = a_canvas()
    member = (
        '{ course(id: "1") { usersConnection(first: 1) { pageInfo { totalCount } nodes %s } } }'
    )
    alone = '{ legacyNode(_id: "2", type: User) { ... on User %s } }'
    fields = "{ _id loginId email sisId enrollments { _id htmlUrl } }"

    inside = (await ask(canvas, member % fields))["data"]["course"]["usersConnection"]
    outside = (await ask(canvas, alone % fields))["data"]["legacyNode"]

    assert inside["pageInfo"] == {"totalCount": 7}
    assert inside["nodes"][0]["loginId"] == "tim"
    assert (outside["loginId"], outside["email"]) == (None, "teresa@canvas.test")
    assert outside["enrollments"][0] == {"_id": "1", "htmlUrl": None}


async def test_work_can_be_had_for_many_students_at_once() -> None:
    canvas = a_canvas()
    query = """query($since: String) { course(id: "1") {
      all: submissionsConnection { nodes { state } }
      sectionsConnection { nodes { _id } } assignmentsConnection { nodes { _id } }
      submissionsConnection(studentIds: ["3", "4"], filter: {gradedSince: $since}) {
        nodes { _id state score user { _id } assignment { _id } } } } }"""

    body = await ask(canvas, query, since="2025-02-01T00:00:00Z")
    own = await ask(canvas, query, canvas.issue_token(4), since="2025-02-01T00:00:00Z")

    course = body["data"]["course"]
    assert {row["state"] for row in course["all"]["nodes"]} == {
        "graded", "submitted", "pending_review",
    }  # fmt: skip
    assert [row["_id"] for row in course["sectionsConnection"]["nodes"]] == ["1", "2"]
    assert len(course["assignmentsConnection"]["nodes"]) == 3
    rows = course["submissionsConnection"]["nodes"]
    assert [(row["user"]["_id"], row["score"]) for row in rows] == [("3", 9.0), ("4", None)]
    rows = own["data"]["course"]["submissionsConnection"]["nodes"]
    assert [row["user"]["_id"] for row in rows] == ["4"]


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


@pytest.mark.parametrize(
    ("kind", "error"),
    [("disconnect", httpx.RemoteProtocolError), ("cut", httpx.RemoteProtocolError)],
)
async def test_a_connection_can_break_on_a_real_socket(
    kind: str, error: type[httpx.TransportError]
) -> None:
    canvas = a_canvas()
    mine = {"Authorization": f"Bearer {ADMIN_TOKEN}"}

    async with running(canvas) as url, httpx.AsyncClient(base_url=url, headers=mine) as client:
        canvas.fail(kind, path="/api/v1/courses")
        with pytest.raises((error, httpx.ReadError)):
            await client.get("/api/v1/courses/1")
        after = await client.get("/api/v1/courses/1")

    assert after.status_code == 200


async def test_a_body_can_come_in_pieces() -> None:
    canvas = a_canvas()

    async with visit(canvas) as client:
        whole = await client.get("/api/v1/courses/1")
        canvas.fail("trickle", seconds=0.01)
        pieces = await client.get("/api/v1/courses/1")

    assert pieces.json() == whole.json()
    assert pieces.headers["content-length"] == whole.headers["content-length"]


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
    canvas.population.users[invited.user_id].login_id = "maria"
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


async def test_a_user_may_have_several_logins() -> None:
    canvas = a_canvas()
    form = {"user[id]": "3", "login[unique_id]": "cody2", "login[authentication_provider_id]": "7"}

    async with visit(canvas) as client:
        made = await client.post("/api/v1/accounts/1/logins", data=form)
        logins = (await client.get("/api/v1/users/3/logins")).json()
        user = (await client.get("/api/v1/users/sis_login_id:CODY2")).json()
        taken = await client.post("/api/v1/accounts/1/logins", data=form)

    assert [login["unique_id"] for login in logins] == ["cody", "cody2"]
    assert logins[1] == made.json()
    assert logins[1]["authentication_provider_id"] == 7
    assert (user["id"], user["login_id"], taken.status_code) == (3, "cody", 400)


# ---- section 12: what is not known, and differs by switch ----------------------------------


def with_switch(**switches: Any) -> Canvas:
    return a_canvas(replace(HOSTED_NOW, **switches))


@pytest.mark.parametrize(("serves", "shown"), [(True, ["1", "8"]), (False, [])])
async def test_courses_by_ids_may_serve_administrators(*, serves: bool, shown: list[str]) -> None:
    canvas = with_switch(graphql_courses_serve_admins=serves)

    body = await ask(canvas, '{ courses(ids: ["1", "8"]) { _id } }')

    assert [course["_id"] for course in body["data"]["courses"]] == shown


@pytest.mark.parametrize("repeats", [True, False])
async def test_an_identical_enrollment_may_make_another_row(*, repeats: bool) -> None:
    canvas = with_switch(repeats_enrollments=repeats)
    form = {"enrollment[user_id]": "4", "enrollment[enrollment_state]": "active"}

    async with visit(canvas) as client:
        first = await client.post("/api/v1/courses/8/enrollments", data=form)
        second = await client.post("/api/v1/courses/8/enrollments", data=form)

    assert (first.json()["id"] != second.json()["id"]) is repeats


@pytest.mark.parametrize(("charged", "other_client"), [("address", 429), ("client", 400)])
async def test_a_grant_may_be_charged_to_its_client(
    charged: Literal["address", "client"], other_client: int
) -> None:
    canvas = with_switch(grants_charged_to=charged)
    scoped = {"client_id": SCOPED_CLIENT_ID, "client_secret": "scoped-secret"}

    async with visit(canvas, None) as client:
        pair = await log_in(client)
        form = {"grant_type": "refresh_token", "refresh_token": pair["refresh_token"]}
        canvas.reset()
        own = [(await redeem(client, **form)).status_code for _ in range(4)]
        other = await redeem(client, **form | scoped)

    assert own == [200, 200, 200, 429]
    assert other.status_code == other_client


@pytest.mark.parametrize("says", [True, False])
async def test_a_throttled_reply_may_say_when_to_return(*, says: bool) -> None:
    canvas = with_switch(retry_after=says)
    canvas.fail("throttled")

    async with visit(canvas) as client:
        reply = await client.get("/api/v1/users/self")

    assert (reply.status_code, reply.headers.get("retry-after")) == (429, "5" if says else None)


@pytest.mark.parametrize("enforced", [True, False])
async def test_aliases_may_be_limited(*, enforced: bool) -> None:
    canvas = with_switch(graphql_enforces_aliases=enforced)
    aliases = "".join(["{", *(f' c{n}: course(id: "1") {{ _id }}' for n in range(21)), "}"])

    body = await ask(canvas, aliases)

    assert ("errors" in body) is enforced


@pytest.mark.parametrize(("days", "status"), [(30, 400), (None, 200)])
async def test_a_refresh_token_may_have_an_end(days: int | None, status: int) -> None:
    canvas = with_switch(refresh_lifetime_seconds=None if days is None else days * 86_400.0)

    async with visit(canvas, None) as client:
        pair = await log_in(client)
        form = {"grant_type": "refresh_token", "refresh_token": pair["refresh_token"]}
        canvas.clock.advance(29 * 86_400)
        within = await redeem(client, **form)
        canvas.clock.advance(86_400)
        beyond = await redeem(client, **form)

    assert (within.status_code, beyond.status_code) == (200, status)


@pytest.mark.parametrize(("own", "seconds"), [(True, [3600, 1200]), (False, [3600, 3600])])
async def test_activity_may_be_of_the_enrollment_or_of_the_user(
    *, own: bool, seconds: list[int]
) -> None:
    canvas = with_switch(activity_per_enrollment=own)
    query = """{ course(id: "1") { enrollmentsConnection(filter: {userIds: ["3"]}) {
      nodes { totalActivityTime } } } }"""

    async with visit(canvas) as client:
        rows = (await client.get("/api/v1/courses/1/enrollments?user_id=3")).json()
    page = (await ask(canvas, query))["data"]["course"]["enrollmentsConnection"]

    assert [row["total_activity_time"] for row in rows] == seconds
    assert [row["totalActivityTime"] for row in page["nodes"]] == seconds


@pytest.mark.parametrize("known", [True, False])
async def test_users_may_have_more_fields_in_graphql(*, known: bool) -> None:
    canvas = with_switch(graphql_user_fields=known)
    query = """{ node(id: "VXNlci0z") { ... on User {
      firstName lastName sisId integrationId } } }"""

    body = await ask(canvas, query)

    expected = {"firstName": "Cody Houston", "lastName": "Cutrer"}
    expected |= {"sisId": "SIS-3", "integrationId": "INT-3"}
    assert body.get("data") == ({"node": expected} if known else None)


@pytest.mark.parametrize("may", [True, False])
async def test_students_may_see_their_course_or_not(*, may: bool) -> None:
    canvas = with_switch(students_read_roster=may)
    student = canvas.issue_token(4)
    query = """{ course(id: "1") { enrollmentsConnection(first: 1) {
      nodes { grades { currentScore } } } } }"""

    async with visit(canvas, student) as client:
        rows = await client.get("/api/v1/courses/1/enrollments")
        users = await client.get("/api/v1/courses/1/users")
    body = await ask(canvas, query, student)

    assert [rows.status_code, users.status_code] == ([200, 200] if may else [403, 403])
    connection = body["data"]["course"]["enrollmentsConnection"]
    assert connection == ({"nodes": [{"grades": None}]} if may else None)


@pytest.mark.parametrize("shows", [True, False])
async def test_a_deleted_user_may_say_into_whom_they_were_merged(*, shows: bool) -> None:
    canvas = with_switch(shows_deleted_users=shows)

    async with visit(canvas) as client:
        reply = await client.get("/api/v1/users/14")

    assert reply.status_code == (200 if shows else 404)
    assert reply.json().get("merged_into_user_id") == (3 if shows else None)


@pytest.mark.parametrize("there", [True, False])
async def test_analytics_and_progress_may_be_missing(*, there: bool) -> None:
    canvas = with_switch(analytics=there, progress_resources=there)
    paths = ["bulk_user_progress", "users/3/progress"]
    paths += [f"analytics/{name}" for name in ("activity", "student_summaries", "users/3/activity")]

    async with visit(canvas) as client:
        found = [(await client.get(f"/api/v1/courses/1/{path}")).status_code for path in paths]

    assert found == [200 if there else 404] * 5


@pytest.mark.parametrize(("pages", "rows"), [(3, 6), (None, 13)])
async def test_users_not_sorted_by_id_may_end_early(pages: int | None, rows: int) -> None:
    canvas = with_switch(sorted_users_pages=pages)

    async with visit(canvas) as client:
        by_name, _ = await walk(client, "/api/v1/accounts/1/users?per_page=2")
        by_id, _ = await walk(client, "/api/v1/accounts/1/users?sort=id&per_page=2")

    assert (len(by_name), len(by_id)) == (rows, 13)


@pytest.mark.parametrize(("seconds", "late"), [(60.0, 403), (None, 200)])
async def test_the_url_of_an_image_may_expire(seconds: float | None, late: int) -> None:
    canvas = with_switch(image_url_seconds=seconds)
    canvas.images_url = "http://images.test"
    transport = httpx.ASGITransport(app=images_for(canvas))

    async with visit(canvas) as client:
        course = (await client.get("/api/v1/courses/1?include[]=course_image")).json()
    async with httpx.AsyncClient(transport=transport) as images:
        soon = await images.get(course["image_download_url"])
        canvas.clock.advance(60)
        then = await images.get(course["image_download_url"])

    assert (soon.status_code, then.status_code) == (200, late)
    assert [(call.origin, call.status) for call in canvas.counts.images] == [
        ("http://images.test", 200), ("http://images.test", late),
    ]  # fmt: skip


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


def test_a_clock_can_follow_another() -> None:
    seconds = [100.0]
    clock = VirtualClock(follows=lambda: seconds[0])
    canvas = Canvas(clock=lambda: seconds[0])
    start, first = canvas.clock(), clock()

    seconds[0] += 5
    clock.advance(2)

    assert (first, clock()) == (1_740_000_000.0, 1_740_000_007.0)
    assert canvas.clock() - start == 5.0


async def test_one_seed_is_one_course_of_delays() -> None:
    first, second = (Canvas(build_population(), seed=3) for _ in range(2))
    for canvas in (first, second):
        canvas.latency_seconds, canvas.latency_per_row_seconds = 1.0, 0.1
        canvas.jitter_seconds, canvas.tail_share, canvas.tail_seconds = 0.5, 0.25, 10.0

    delays = [first.latency(10) for _ in range(400)]

    assert delays == [second.latency(10) for _ in range(400)]
    assert all(2.0 <= delay < 2.5 or 12.0 <= delay < 12.5 for delay in delays)
    assert 0.15 < sum(delay > 10 for delay in delays) / 400 < 0.35


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
        await client.post("/_control/switch", json={"denied_status": 418})
        logged = (await client.get("/_control/log")).json()["calls"]

    assert (broken.status_code, image.status_code, unknown.status_code) == (503, 403, 404)
    assert counts["total"] == 1
    assert canvas.profile == replace(OSS_2019, denied_status=418)
    assert [(call["path"], call["status"]) for call in logged] == [("/api/v1/users/self", 503)]
