"""What the facts on Canvas say, held against the simulated one, release by release.

Each test's comment is the section of the facts that it was written from. A test of a promise that
differs between releases gives the answer of each; all others run on all three.
"""

import asyncio
import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from simulators.canvas.app import app_for, images_for, running
from simulators.canvas.population import Population, build_population
from simulators.canvas.profiles import PROFILES
from simulators.canvas.state import (
    ADMIN_TOKEN,
    CLIENT_ID,
    CLIENT_SECRET,
    PUBLIC_CLIENT_ID,
    SCOPED_CLIENT_ID,
    Canvas,
    VirtualClock,
)

BASE = "https://canvas.test"
CALLBACK = "http://127.0.0.1/oauth/callback"
OLD, MIDDLE, NEW = "oss-2019", "oss-2024", "hosted-now"
EVERY = pytest.mark.parametrize("release", [OLD, MIDDLE, NEW])
STUDENT, TEACHER = 4, 2


def canvas_of(release: str, population: Population | None = None, **switches: Any) -> Canvas:
    profile = replace(PROFILES[release], **switches)
    return Canvas(population or build_population(), profile=profile, clock=VirtualClock())


def client_of(canvas: Canvas, token: str | None = ADMIN_TOKEN) -> httpx.AsyncClient:
    headers = {"Accept": "application/json"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    transport = httpx.ASGITransport(app=app_for(canvas))
    return httpx.AsyncClient(transport=transport, base_url=BASE, headers=headers)


async def authorize(client: httpx.AsyncClient, **more: str) -> dict[str, str]:
    """Return what comes back in the redirect."""
    query = {"client_id": CLIENT_ID, "response_type": "code", "redirect_uri": CALLBACK} | more
    reply = await client.get("/login/oauth2/auth", params=query)
    assert reply.status_code == 302
    return {name: values[0] for name, values in _query(reply).items()}


async def token_call(client: httpx.AsyncClient, **form: str) -> httpx.Response:
    whole = {"client_id": CLIENT_ID, "client_secret": CLIENT_SECRET} | form
    return await client.post("/login/oauth2/token", data=whole)


async def log_in(client: httpx.AsyncClient, **more: str) -> dict[str, Any]:
    code = (await authorize(client, **more))["code"]
    reply = await token_call(client, grant_type="authorization_code", code=code)
    found: dict[str, Any] = reply.json()
    return found


async def refresh(client: httpx.AsyncClient, pair: dict[str, Any], **more: str) -> httpx.Response:
    return await token_call(
        client, grant_type="refresh_token", refresh_token=pair["refresh_token"], **more
    )


async def ask(canvas: Canvas, query: str, token: str = ADMIN_TOKEN, **variables: object) -> Any:
    async with client_of(canvas, token) as client:
        reply = await client.post("/api/graphql", json={"query": query, "variables": variables})
    assert reply.status_code == 200
    return reply.json()


def _query(reply: httpx.Response) -> dict[str, list[str]]:
    return parse_qs(urlsplit(reply.headers["location"]).query)


# ---- authentication ------------------------------------------------------------------------


@EVERY
async def test_a_token_counts_for_the_api_only_and_may_come_three_ways(release: str) -> None:
    canvas = canvas_of(release)  # section 1.1

    async with client_of(canvas, None) as client:
        query = await client.get(f"/api/v1/users/self?access_token={ADMIN_TOKEN}")
        form = await client.request(
            "POST", "/api/graphql", data={"access_token": ADMIN_TOKEN, "query": "{ __typename }"}
        )
        header = await client.get(
            "/api/v1/users/self", headers={"Authorization": f"Bearer {ADMIN_TOKEN}"}
        )
        outside = await client.get("/courses/1", headers={"Authorization": f"Bearer {ADMIN_TOKEN}"})

    assert [query.status_code, form.status_code, header.status_code] == [200, 200, 200]
    assert (outside.status_code, outside.headers["location"]) == (302, "/login")


@EVERY
async def test_a_manual_token_outlives_the_hour_and_may_have_an_end(release: str) -> None:
    canvas = canvas_of(release)  # section 1.2
    ends = canvas.issue_token(3, permanent_expires_at=canvas.clock() + 86_400)

    async with client_of(canvas) as forever, client_of(canvas, ends) as a_day:
        canvas.clock.advance(86_399)
        alive = await a_day.get("/api/v1/users/self")
        canvas.clock.advance(1)
        over = await a_day.get("/api/v1/users/self")
        stays = await forever.get("/api/v1/users/self")

    assert [alive.status_code, over.status_code, stays.status_code] == [200, 401, 200]


@EVERY
async def test_a_key_that_does_not_expire_leaves_expires_in_out(release: str) -> None:
    canvas = canvas_of(release, keys_expire=False)  # section 1.2: absent, not 0

    async with client_of(canvas, None) as client:
        pair = await log_in(client)
        canvas.clock.advance(10 * 86_400)
        mine = {"Authorization": f"Bearer {pair['access_token']}"}
        later = await client.get("/api/v1/users/self", headers=mine)

    assert "expires_in" not in pair
    assert later.status_code == 200


@EVERY
async def test_a_bad_client_or_redirect_is_not_redirected(release: str) -> None:
    canvas = canvas_of(release)  # section 1.3
    query = {"client_id": CLIENT_ID, "response_type": "code", "redirect_uri": CALLBACK}

    async with client_of(canvas, None) as client:
        bad_client = await client.get("/login/oauth2/auth", params=query | {"client_id": "0"})
        elsewhere = await client.get(
            "/login/oauth2/auth", params=query | {"redirect_uri": "https://example.com/"}
        )
        port = await client.get(
            "/login/oauth2/auth", params=query | {"redirect_uri": "http://127.0.0.1:8180/back"}
        )

    assert (bad_client.status_code, bad_client.json()["error"]) == (401, "invalid_client")
    assert (elsewhere.status_code, elsewhere.json()["error"]) == (400, "invalid_request")
    assert port.headers["location"].startswith("http://127.0.0.1:8180/back?code=")


@pytest.mark.parametrize(("release", "state"), [(OLD, None), (MIDDLE, "s"), (NEW, "s")])
async def test_state_comes_back_with_a_denial_except_from_the_oldest(
    release: str, state: str | None
) -> None:
    canvas = canvas_of(release)  # section 1.3

    async with client_of(canvas, None) as client:
        granted = await authorize(client, state="s")
        canvas.consent = "deny"
        denied = await authorize(client, state="s")

    assert granted["state"] == "s"
    assert (denied["error"], denied.get("state")) == ("access_denied", state)


@EVERY
async def test_a_code_is_128_hex_digits_for_ten_minutes_and_one_use(release: str) -> None:
    canvas = canvas_of(release)  # section 1.3

    async with client_of(canvas, None) as client:
        code = (await authorize(client))["code"]
        first = await token_call(client, grant_type="authorization_code", code=code)
        again = await token_call(client, grant_type="authorization_code", code=code)
        late = (await authorize(client))["code"]
        canvas.clock.advance(600)
        over = await token_call(client, grant_type="authorization_code", code=late)

    assert len(code) == 128
    assert int(code, 16)
    assert [first.status_code, again.status_code, over.status_code] == [200, 400, 400]
    assert over.json()["error_description"] == "authorization_code not found"


@pytest.mark.parametrize(("release", "wrong"), [(OLD, 200), (MIDDLE, 400), (NEW, 400)])
async def test_a_challenge_protects_the_code_where_it_is_known_and_s256(
    release: str, wrong: int
) -> None:
    canvas = canvas_of(release)  # section 1.3: the oldest ignores it, and "plain" is never used
    digest = hashlib.sha256(b"right").digest()
    challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")
    s256 = {"code_challenge": challenge, "code_challenge_method": "S256"}
    plain = {"code_challenge": "right", "code_challenge_method": "plain"}

    async with client_of(canvas, None) as client:
        replies = [
            await token_call(client, code=(await authorize(client, **sent))["code"], **proof)
            for sent, proof in (
                (s256, {"code_verifier": "wrong"}),
                (s256, {"code_verifier": "right"}),
                (plain, {"code_verifier": "wrong"}),
            )
        ]

    assert [reply.status_code for reply in replies] == [wrong, 200, 200]
    assert wrong == 200 or replies[0].json()["error"] == "invalid_grant"


@EVERY
async def test_the_scope_userinfo_gives_no_access_token(release: str) -> None:
    canvas = canvas_of(release)  # section 1.3

    async with client_of(canvas, None) as client:
        pair = await log_in(client, scope="/auth/userinfo")

    assert (pair["access_token"], pair["user"]["id"]) == (None, 3)


@EVERY
async def test_a_grant_has_this_body(release: str) -> None:
    canvas = canvas_of(release)  # section 1.4

    async with client_of(canvas, None) as client:
        pair = await log_in(client)

    assert set(pair) == {
        "access_token", "token_type", "user", "canvas_region", "refresh_token", "expires_in",
    }  # fmt: skip
    assert (pair["token_type"], pair["canvas_region"], pair["expires_in"]) == (
        "Bearer", "unknown", 3600,
    )  # fmt: skip
    assert pair["user"] == {
        "id": 3,
        "name": "Cody Houston Cutrer",
        "global_id": "10000000000003",
        "effective_locale": "en",
    }


@EVERY
async def test_a_client_may_say_who_it_is_in_the_header(release: str) -> None:
    canvas = canvas_of(release)  # section 1.4: HTTP Basic is accepted, grant_type may be missing

    async with client_of(canvas, None) as client:
        code = (await authorize(client))["code"]
        reply = await client.post(
            "/login/oauth2/token", data={"code": code}, auth=(CLIENT_ID, CLIENT_SECRET)
        )

    assert reply.status_code == 200


@EVERY
async def test_a_refresh_keeps_the_row_and_kills_the_old_access_token(release: str) -> None:
    canvas = canvas_of(release)  # section 1.4

    async with client_of(canvas, None) as client:
        pair = await log_in(client)
        canvas.clock.advance(60)
        renewed = (await refresh(client, pair)).json()
        replies = [
            await client.get("/api/v1/users/self", headers={"Authorization": f"Bearer {access}"})
            for access in (pair["access_token"], renewed["access_token"])
        ]

    assert "refresh_token" not in renewed
    assert [reply.status_code for reply in replies] == [401, 200]


@pytest.mark.parametrize("release", [MIDDLE, NEW])
async def test_the_refresh_token_of_a_public_client_rotates_and_has_two_hours(release: str) -> None:
    canvas = canvas_of(release)  # sections 1.2 and 1.4; the oldest release has no public clients
    digest = hashlib.sha256(b"right").digest()
    challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")
    public = {"client_id": PUBLIC_CLIENT_ID, "client_secret": ""}

    async with client_of(canvas, None) as client:
        answer = await authorize(
            client,
            client_id=PUBLIC_CLIENT_ID,
            code_challenge=challenge,
            code_challenge_method="S256",
        )
        pair = (
            await token_call(client, **public, code=answer["code"], code_verifier="right")
        ).json()
        canvas.clock.advance(7199)
        renewed = await refresh(client, pair, **public)
        replayed = await refresh(client, pair, **public)
        canvas.clock.advance(7200)
        over = await refresh(client, renewed.json(), **public)

    assert renewed.json()["refresh_token"] != pair["refresh_token"]
    assert [renewed.status_code, replayed.status_code, over.status_code] == [200, 400, 400]


@pytest.mark.parametrize(("release", "is_null"), [(OLD, False), (MIDDLE, True), (NEW, False)])
async def test_one_release_answers_a_refresh_within_five_seconds_with_null(
    *, release: str, is_null: bool
) -> None:
    canvas = canvas_of(release)  # section 1.4

    async with client_of(canvas, None) as client:
        pair = await log_in(client)
        canvas.clock.advance(4.9)
        hasty = (await refresh(client, pair)).json()
        canvas.clock.advance(0.1)
        mine = {"Authorization": f"Bearer {pair['access_token']}"}
        old = await client.get("/api/v1/users/self", headers=mine)

    assert (hasty["access_token"] is None) is is_null
    assert (old.status_code == 200) is is_null


@EVERY
@pytest.mark.parametrize(
    ("form", "status", "error", "description"),
    [
        ({"client_id": "0"}, 401, "invalid_client", "unknown client"),
        ({"client_secret": "0"}, 401, "invalid_client", "invalid client"),
        ({"code": "0"}, 400, "invalid_grant", "authorization_code not found"),
        (
            {"grant_type": "refresh_token", "refresh_token": "0"},
            400, "invalid_request", "refresh_token not found",
        ),
        ({"grant_type": "nothing"}, 400, "unsupported_grant_type", None),
        (
            {"grant_type": "authorization_code"},
            400, "invalid_request", "You must provide the code parameter",
        ),
        (
            {"grant_type": "refresh_token"},
            400, "invalid_request", "You must provide the refresh_token parameter",
        ),
    ],
)  # fmt: skip
async def test_the_table_of_errors_of_the_token_endpoint(
    release: str, form: dict[str, str], status: int, error: str, description: str | None
) -> None:
    canvas = canvas_of(release)  # section 1.4

    async with client_of(canvas, None) as client:
        reply = await token_call(client, **form)

    assert (reply.status_code, reply.json()["error"]) == (status, error)
    assert description in {None, reply.json()["error_description"]}
    challenge = "Canvas OAuth 2.0" if status == 401 else None
    assert reply.headers.get("www-authenticate") == challenge


@EVERY
async def test_another_clients_tokens_are_refused(release: str) -> None:
    canvas = canvas_of(release)  # section 1.4
    other = {"client_id": SCOPED_CLIENT_ID, "client_secret": "scoped-secret"}

    async with client_of(canvas, None) as client:
        pair = await log_in(client)
        reply = await refresh(client, pair, **other)

    assert reply.json() == {"error": "invalid_grant", "error_description": "incorrect client"}


@pytest.mark.parametrize(("release", "status"), [(OLD, 302), (MIDDLE, 400), (NEW, 400)])
async def test_the_oldest_token_endpoint_redirects_its_errors(release: str, status: int) -> None:
    canvas = canvas_of(release)  # section 1.4: only when redirect_uri was sent

    async with client_of(canvas, None) as client:
        sent = await token_call(client, code="0", redirect_uri=CALLBACK)
        not_sent = await token_call(client, code="0")

    assert (sent.status_code, not_sent.status_code) == (status, 400)
    if status == 302:
        assert sent.headers["location"].startswith(f"{CALLBACK}?")
        assert _query(sent)["error"] == ["invalid_grant"]


@EVERY
async def test_revoking_needs_the_token_itself(release: str) -> None:
    canvas = canvas_of(release)  # section 1.4

    async with client_of(canvas, None) as client:
        without = await client.delete("/login/oauth2/token")
        pair = await log_in(client)
        mine = {"Authorization": f"Bearer {pair['access_token']}"}
        done = await client.delete("/login/oauth2/token", headers=mine)
        dead = await client.get("/api/v1/users/self", headers=mine)

    assert [without.status_code, done.status_code, dead.status_code] == [400, 200, 401]
    assert done.json() == {}


@EVERY
async def test_no_credentials_and_bad_ones_are_challenged(release: str) -> None:
    canvas = canvas_of(release)  # section 1.5

    async with client_of(canvas, None) as nobody, client_of(canvas, "bad") as bad:
        missing = await nobody.get("/api/v1/courses")
        wrong = await bad.get("/api/v1/courses")

    for reply in (missing, wrong):
        assert reply.status_code == 401
        assert reply.headers["www-authenticate"] == 'Bearer realm="canvas-lms"'
    assert missing.json() == {
        "status": "unauthenticated",
        "errors": [{"message": "user authorization required"}],
    }
    assert wrong.json() == {"errors": [{"message": "Invalid access token."}]}


@pytest.mark.parametrize(
    ("release", "expired", "revoked"),
    [
        (OLD, "Invalid", "Invalid"),
        (MIDDLE, "Invalid", "Invalid"),
        (NEW, "Expired", "Revoked"),
    ],
)
async def test_only_the_newest_tells_expired_and_revoked_apart(
    release: str, expired: str, revoked: str
) -> None:
    canvas = canvas_of(release)  # section 1.5

    async with client_of(canvas, None) as client:
        pair = await log_in(client)
        mine = {"Authorization": f"Bearer {pair['access_token']}"}
        canvas.clock.advance(3600)
        late = await client.get("/api/v1/users/self", headers=mine)
        canvas.revoke_user(3)
        gone = await client.get("/api/v1/users/self", headers=mine)

    assert late.json()["errors"][0]["message"] == f"{expired} access token."
    assert ("expired_at" in late.json()["errors"][0]) is (release == NEW)
    assert gone.json()["errors"][0]["message"] == f"{revoked} access token."


@pytest.mark.parametrize(("release", "status"), [(OLD, 401), (MIDDLE, 401), (NEW, 403)])
async def test_a_missing_permission_carries_no_challenge(release: str, status: int) -> None:
    canvas = canvas_of(release)  # section 1.5

    async with client_of(canvas, canvas.issue_token(STUDENT)) as client:
        reply = await client.get("/api/v1/accounts/1/users")

    assert (reply.status_code, reply.headers.get("www-authenticate")) == (status, None)
    assert reply.json() == {
        "status": "unauthorized",
        "errors": [{"message": "user not authorized to perform that action"}],
    }


@EVERY
async def test_a_missing_scope_and_a_bad_masquerade_have_their_own_bodies(release: str) -> None:
    canvas = canvas_of(release)  # section 1.5
    token = canvas.issue_token(3, scopes=frozenset({"url:GET|/api/v1/courses"}))

    async with client_of(canvas, token) as scoped, client_of(canvas) as admin:
        outside = await scoped.get("/api/v1/users/self")
        masked = await admin.get("/api/v1/users/self?as_user_id=sis_user_id:none")

    for reply in (outside, masked):
        assert (reply.status_code, reply.headers.get("www-authenticate")) == (401, None)
    assert outside.json()["errors"][0]["message"] == "Insufficient scopes on access token."
    assert masked.json() == {"errors": "Invalid as_user_id"}


@EVERY
async def test_links_keep_the_masquerade_and_lose_the_token(release: str) -> None:
    canvas = canvas_of(release)  # sections 1.6 and 2

    async with client_of(canvas, None) as client:
        reply = await client.get(
            f"/api/v1/courses?as_user_id=3&per_page=1&access_token={ADMIN_TOKEN}"
        )

    following = reply.links["next"]["url"]
    assert "as_user_id=3" in following
    assert "access_token" not in following
    assert [identity.partition(":")[0] for identity in canvas.buckets] == ["token"]


# ---- pages, ids, search --------------------------------------------------------------------


@pytest.mark.parametrize(("release", "most"), [(OLD, 50), (MIDDLE, 100), (NEW, 100)])
async def test_pages_hold_ten_rows_and_never_more_than_the_most(release: str, most: int) -> None:
    people = build_population()  # section 2
    for number in range(120):
        people.add_course(f"More {number}", "M")
    canvas = canvas_of(release, people)
    path = "/api/v1/accounts/1/courses"

    async with client_of(canvas) as client:
        sizes = [
            len((await client.get(f"{path}{query}")).json())
            for query in ("", "?per_page=0", "?per_page=1000")
        ]

    assert sizes == [10, 1, most]


@EVERY
@pytest.mark.parametrize(
    ("path", "is_bookmarked", "has_last"),
    [
        ("accounts/1/courses", False, True),
        ("accounts/1/users", False, False),
        ("accounts/1/users?sort=email", False, False),
        ("accounts/1/users?sort=id", True, False),
        ("accounts/1/roles", False, True),
        ("courses/1/enrollments", True, False),
        ("sections/1/enrollments", True, False),
        ("users/3/enrollments", True, False),
        ("courses/1/assignments", False, True),
    ],
)
async def test_two_kinds_of_pages(
    *, release: str, path: str, is_bookmarked: bool, has_last: bool
) -> None:
    canvas = canvas_of(release)  # section 2
    joint = "&" if "?" in path else "?"

    async with client_of(canvas) as client:
        first = await client.get(f"/api/v1/{path}{joint}per_page=1")
        second = await client.get(f"/api/v1/{path}{joint}per_page=1&page=2")
        beyond = await client.get(f"/api/v1/{path}{joint}per_page=1&page=999")
        garbled = await client.get(f"/api/v1/{path}{joint}per_page=1&page=bookmark:x")

    assert ("page=bookmark" in first.links["next"]["url"]) is is_bookmarked
    assert ("last" in first.links) is has_last
    assert second.status_code == (404 if is_bookmarked else 200)
    assert beyond.status_code == (404 if is_bookmarked else 200)
    assert is_bookmarked or beyond.json() == []
    assert garbled.json() == first.json()


@pytest.mark.parametrize(("release", "name"), [(OLD, b"link"), (MIDDLE, b"Link"), (NEW, b"Link")])
async def test_the_name_of_the_link_header_may_be_in_small_letters(
    release: str, name: bytes
) -> None:
    canvas = canvas_of(release)  # section 2

    async with client_of(canvas) as client:
        reply = await client.get("/api/v1/accounts/1/courses")

    assert [key for key, _ in reply.headers.raw if key.lower() == b"link"] == [name]


@EVERY
async def test_links_name_the_origin_asked_or_the_one_they_are_told(release: str) -> None:
    canvas = canvas_of(release)  # section 2

    async with client_of(canvas) as client:
        own = await client.get("/api/v1/courses?as_user_id=3&per_page=1")
        canvas.link_origin = "https://proxy.test"
        other = await client.get("/api/v1/courses?as_user_id=3&per_page=1")

    assert own.links["next"]["url"].startswith(f"{BASE}/api/v1/courses?")
    assert other.links["next"]["url"].startswith("https://proxy.test/api/v1/courses?")


@EVERY
async def test_links_end_at_six_kilobytes_next_first(release: str) -> None:
    canvas = canvas_of(release)  # section 2: kept in the order next, last, prev, current, first
    path = "/api/v1/accounts/1/courses?per_page=1&page=2"

    async with client_of(canvas) as client:
        some = await client.get(f"{path}&x={'y' * 2500}")
        none = await client.get(f"{path}&x={'y' * 6200}")

    assert set(some.links) == {"next", "last"}
    assert none.links == {}
    assert len(none.json()) == 1


@EVERY
async def test_ids_are_numbers_unless_strings_are_asked_for(release: str) -> None:
    canvas = canvas_of(release, build_population(shard=1000))  # section 2: above 2^53
    accept = {"Accept": "application/json+canvas-string-ids"}
    path = "/api/v1/courses/1000~1/enrollments?per_page=1"

    async with client_of(canvas) as client:
        numbers = (await client.get(path)).json()[0]
        strings = (await client.get(path, headers=accept)).json()[0]

    assert numbers["course_id"] == 10_000_000_000_000_001
    assert strings["course_id"] == "10000000000000001"
    assert strings["user"]["id"] == "10000000000000002"
    assert numbers["course_id"] > 2**53


@EVERY
@pytest.mark.parametrize(
    "path",
    [
        "users/sis_user_id:SIS-3", "users/sis_login_id:CoDy", "users/sis_integration_id:INT-3",
        "users/uuid:user-uuid-3", "users/3", "users/3/profile",
        "courses/sis_course_id:SIS%2FALG", "accounts/self", "accounts/default",
    ],
)  # fmt: skip
async def test_things_have_other_names(release: str, path: str) -> None:
    canvas = canvas_of(release)  # section 2

    async with client_of(canvas) as client:
        reply = await client.get(f"/api/v1/{path}")

    assert reply.json()["id"] == {"u": 3, "c": 1, "a": 1}[path[0]]


@pytest.mark.parametrize(("release", "least"), [(OLD, 3), (MIDDLE, 2), (NEW, 2)])
async def test_a_search_needs_so_many_characters(release: str, least: int) -> None:
    canvas = canvas_of(release)  # section 2
    path = "/api/v1/accounts/1/users?search_term="

    async with client_of(canvas) as client:
        short = await client.get(path + "cody"[: least - 1])
        enough = await client.get(path + "cody"[:least])
        number = await client.get(path + "4")

    message = f"{least} or more characters is required"
    assert short.status_code == 400
    assert short.json() == {
        "errors": [{"field": "search_term", "code": "invalid", "message": message}]
    }
    assert 3 in [user["id"] for user in enough.json()]
    assert [user["id"] for user in number.json()] == [4]


# ---- resources -----------------------------------------------------------------------------


@EVERY
async def test_a_user_always_has_five_keys_and_the_rest_by_right(release: str) -> None:
    canvas = canvas_of(release)  # section 3
    always = {"id", "name", "created_at", "sortable_name", "short_name"}

    async with client_of(canvas) as admin, client_of(canvas, canvas.issue_token(3)) as student:
        plain = (await admin.get("/api/v1/users/3")).json()
        email = (await admin.get("/api/v1/users/3?include[]=email")).json()
        no_login = (await admin.get("/api/v1/users/5")).json()
        rows = (await student.get("/api/v1/courses/1/enrollments?user_id=4")).json()

    assert set(plain) == always | {"sis_user_id", "integration_id", "login_id"}
    assert (email["email"], "login_id" in no_login) == ("cody@canvas.test", False)
    assert set(rows[0]["user"]) == always


@EVERY
async def test_account_courses_leave_the_deleted_out_unless_asked(release: str) -> None:
    canvas = canvas_of(release)  # section 3
    path = "/api/v1/accounts/1/courses?per_page=50"

    async with client_of(canvas) as client:
        default = (await client.get(path)).json()
        everything = (await client.get(f"{path}&state[]=all")).json()
        taught = (await client.get(f"{path}&by_teachers[]=2&include[]=sections")).json()

    assert (len(default), len(everything)) == (7, 8)
    assert [course["id"] for course in taught] == [1, 2, 7]
    assert not any("sections" in course for course in taught)


@EVERY
async def test_a_restricted_course_is_its_id_and_a_flag(release: str) -> None:
    canvas = canvas_of(release)  # section 3

    async with client_of(canvas, canvas.issue_token(4)) as client:
        restricted = (await client.get("/api/v1/courses/3")).json()
    async with client_of(canvas, canvas.issue_token(3)) as client:
        nicknamed = (await client.get("/api/v1/courses/1")).json()

    assert restricted == {"id": 3, "access_restricted_by_date": True}
    assert (nicknamed["name"], nicknamed["original_name"]) == ("Maths with Teresa", "Algebra")


@EVERY
async def test_progress_is_an_error_for_whoever_is_no_student(release: str) -> None:
    canvas = canvas_of(release)  # section 3
    path = "/api/v1/courses/1?include[]=course_progress"

    async with client_of(canvas) as admin, client_of(canvas, canvas.issue_token(3)) as student:
        listed = (await admin.get("/api/v1/accounts/1/courses?include[]=course_progress")).json()
        own = (await student.get(path)).json()["course_progress"]

    for course in listed:
        message = course.get("course_progress", {}).get("error", {}).get("message", "")
        assert message.startswith("no progress available because") or "name" not in course
    assert own == {
        "requirement_count": 4,
        "requirement_completed_count": 4,
        "next_requirement_url": None,
        "completed_at": "2025-02-04T10:00:00Z",
    }


@EVERY
async def test_an_enrollment_has_these_keys(release: str) -> None:
    canvas = canvas_of(release)  # section 3
    always = {
        "id", "root_account_id", "user_id", "course_id", "course_section_id",
        "associated_user_id", "limit_privileges_to_course_section", "updated_at", "created_at",
        "start_at", "end_at", "type", "enrollment_state", "role", "role_id", "html_url",
    }  # fmt: skip
    reports = {"last_activity_at", "last_attended_at", "total_activity_time"}
    sis = {"sis_user_id", "sis_course_id", "sis_section_id"}

    async with client_of(canvas) as admin, client_of(canvas, canvas.issue_token(4)) as student:
        path = "/api/v1/courses/1/enrollments?per_page=50"
        rows = {row["id"]: row for row in (await admin.get(path)).json()}
        seen = {row["id"]: row for row in (await student.get(path)).json()}
        shown = (await admin.get("/api/v1/accounts/1/enrollments/5")).json()

    assert set(rows[1]) == always | reports | sis | {"user"}
    assert set(rows[5]) == always | reports | sis | {"user", "grades"}
    assert set(seen[5]) == always | {"user", "grades"}
    assert set(seen[5]["grades"]) == {"html_url"}
    assert set(shown) == set(rows[5]) - {"user"}
    assert [row["user_id"] for row in rows.values()].count(3) == 2


@EVERY
async def test_lists_of_enrollments_have_their_own_default_states(release: str) -> None:
    canvas = canvas_of(release)  # section 3
    course, user = "/api/v1/courses/1/enrollments?per_page=50", "/api/v1/users/{}/enrollments"

    async with client_of(canvas) as admin, client_of(canvas, canvas.issue_token(2)) as teacher:
        by_admin = (await admin.get(course)).json()
        by_teacher = (await teacher.get(course)).json()
        of_user = (await admin.get(user.format(3))).json()
        with_past = (await admin.get(user.format(3) + "?state[]=current_and_concluded")).json()
        refused = await admin.get(user.format("self") + "?state[]=current_and_future")
        of_other = await teacher.get(user.format(3))
        role_wins = (
            await admin.get(f"{course}&role[]=TeacherEnrollment&type[]=StudentEnrollment")
        ).json()

    assert _states(by_admin) == {"active", "invited", "inactive"}
    assert _states(by_teacher) == {"active", "invited"}
    assert (_states(of_user), _states(with_past)) == ({"active"}, {"active", "completed"})
    assert (refused.status_code, of_other.status_code) == (400, PROFILES[release].denied_status)
    assert {row["type"] for row in role_wins} == {"TeacherEnrollment"}


@EVERY
async def test_an_enrollment_is_deleted_with_its_course_or_section(release: str) -> None:
    canvas = canvas_of(release)  # section 3
    canvas.population.sections[2].workflow_state = "deleted"

    async with client_of(canvas) as client:
        row = (await client.get("/api/v1/accounts/1/enrollments/6")).json()

    assert (row["enrollment_state"], row["course_section_id"]) == ("deleted", 2)


@EVERY
async def test_submissions_are_the_callers_own_unless_students_are_named(release: str) -> None:
    canvas = canvas_of(release)  # sections 3 and 10.3
    path = "/api/v1/courses/1/students/submissions"

    async with client_of(canvas) as client:
        own = (await client.get(f"{path}?user_ids[]=3")).json()
        named = (await client.get(f"{path}?student_ids[]=3&per_page=50")).json()
        everyone = (await client.get(f"{path}?student_ids[]=all&per_page=50")).json()
        grouped = (await client.get(f"{path}?student_ids[]=all&grouped=1")).json()

    assert own == []
    assert {row["user_id"] for row in named} == {3}
    assert {row["workflow_state"] for row in everyone} <= {
        "submitted", "unsubmitted", "graded", "pending_review",
    }  # fmt: skip
    assert [len(student["submissions"]) for student in grouped] == [3, 2]


# ---- the bucket ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("release", "status", "text"),
    [
        (OLD, 403, "403 Forbidden (Rate Limit Exceeded)\n"),
        (MIDDLE, 403, "403 Forbidden (Rate Limit Exceeded)\n"),
        (NEW, 429, "429 Too Many Requests (Rate Limit Exceeded)\n"),
    ],
)
async def test_twelve_calls_at_once_pass_and_the_thirteenth_does_not(
    release: str, status: int, text: str
) -> None:
    canvas = canvas_of(release)  # section 4: each reserves 50 of 600, and a little leaks meanwhile
    canvas.clock = VirtualClock(ticking=True)
    canvas.latency_seconds = 0.3

    async with client_of(canvas) as client:
        found = []
        for count in (12, 13, 30):
            canvas.buckets.clear()
            calls = [client.get("/api/v1/users/self") for _ in range(count)]
            found.append(await asyncio.gather(*calls))

    refused = [reply for replies in found for reply in replies if reply.status_code == status]
    assert [sum(reply.status_code == status for reply in replies) for replies in found] == [
        0, 1, 18,
    ]  # fmt: skip
    assert {reply.text for reply in refused} == {text}
    assert refused[0].headers["content-type"].startswith("text/plain")
    assert not {"retry-after", "x-request-cost"} & refused[0].headers.keys()


@EVERY
async def test_a_call_tells_its_cost_and_what_remains(release: str) -> None:
    canvas = canvas_of(release)  # section 4
    canvas.throttle.cost_by_path["/api/v1/users/self"] = 30

    async with client_of(canvas) as client:
        replies = [await client.get("/api/v1/users/self") for _ in range(2)]
        canvas.clock.advance(1)
        later = await client.get("/api/v1/users/self")

    assert [float(reply.headers["x-request-cost"]) for reply in replies] == [30, 30]
    remaining = [float(r.headers["x-rate-limit-remaining"]) for r in (*replies, later)]
    assert remaining == [570, 540, 520]


@EVERY
async def test_each_grant_costs_200_so_that_three_pass_in_a_burst(release: str) -> None:
    canvas = canvas_of(release, refresh_guard_seconds=0.0)  # section 1.4

    async with client_of(canvas, None) as client:
        pair = await log_in(client)
        canvas.reset()
        burst = [(await refresh(client, pair)).status_code for _ in range(4)]
        canvas.clock.advance(20)
        twenty_seconds_on = (await refresh(client, pair)).status_code

    assert burst == [200, 200, 200, PROFILES[release].throttled_status]
    assert twenty_seconds_on == 200


@EVERY
async def test_two_tokens_have_two_buckets(release: str) -> None:
    canvas = canvas_of(release)  # section 4
    canvas.throttle.cost_by_path["/api/v1/users/self"] = 700

    async with client_of(canvas) as one, client_of(canvas, canvas.issue_token(3)) as other:
        statuses = [
            (await client.get("/api/v1/users/self")).status_code for client in (one, one, other)
        ]

    assert statuses == [200, PROFILES[release].throttled_status, 200]


# ---- GraphQL -------------------------------------------------------------------------------


@EVERY
async def test_ids_are_relays_or_canvas_own(release: str) -> None:
    canvas = canvas_of(release)  # section 5: Course-1 is Q291cnNlLTE=
    query = """{ rest: course(id: "1") { id _id } relay: course(id: "Q291cnNlLTE=") { id _id }
      node(id: "Q291cnNlLTE=") { id } legacyNode(_id: "1", type: Course) { id } }"""

    body = await ask(canvas, query)

    both = {"id": "Q291cnNlLTE=", "_id": "1"}
    assert body["data"] == {
        "rest": both,
        "relay": both,
        "node": {"id": "Q291cnNlLTE="},
        "legacyNode": {"id": "Q291cnNlLTE="},
    }


@pytest.mark.parametrize(("release", "rows"), [(OLD, 128), (MIDDLE, 128), (NEW, 20)])
async def test_a_connection_without_first_has_20_rows_in_the_newest(
    release: str, rows: int
) -> None:
    people = build_population()  # section 5: never more than 100 with it
    for number in range(120):
        people.add_course(f"More {number}", "M")
    canvas = canvas_of(release, people)
    query = '{ account(id: "1") { coursesConnection%s { nodes { _id } } } }'

    without = await ask(canvas, query % "")
    many = await ask(canvas, query % "(first: 500)")

    assert len(_courses(without)) == rows
    assert len(_courses(many)) == 100


@EVERY
async def test_limits_are_told_with_status_200(release: str) -> None:
    canvas = canvas_of(release)  # section 5: depth 15, complexity 375 000, 5 000 tokens
    node = "enrollmentsConnection(first: 100) { nodes { course { %s } } }"
    deep = costly = "_id"
    for _ in range(5):
        deep = node.replace("100", "1") % deep
    for _ in range(3):
        costly = node % costly
    found = [
        await ask(canvas, '{ course(id: "1") { ' + inner + " } }")
        for inner in (deep, costly, "_id " * 5000)
    ]

    assert ["data" in body for body in found] == [False] * 3
    assert "max depth of 15" in found[0]["errors"][0]["message"]
    assert "max complexity of 375000" in found[1]["errors"][0]["message"]


@EVERY
async def test_what_is_not_permitted_is_null_and_no_error(release: str) -> None:
    canvas = canvas_of(release)  # section 5
    query = '{ account(id: "1") { coursesConnection { nodes { _id } } } course(id: "8") { _id } }'

    body = await ask(canvas, query, canvas.issue_token(STUDENT))

    assert body == {"data": {"account": {"coursesConnection": None}, "course": None}}


@EVERY
async def test_courses_of_an_account_hold_the_deleted_and_enrollments_do_not(release: str) -> None:
    canvas = canvas_of(release)  # section 5: filter by state oneself
    query = """{ account(id: "1") { coursesConnection(first: 50) { nodes { state
      enrollmentsConnection(first: 50) { nodes { state } } } } } }"""

    courses = _courses(await ask(canvas, query))

    assert [course["state"] for course in courses].count("deleted") == 1
    states = {row["state"] for c in courses for row in c["enrollmentsConnection"]["nodes"]}
    assert states == {"active", "invited", "inactive", "completed", "rejected"}


@pytest.mark.parametrize(("release", "exists"), [(OLD, False), (MIDDLE, True), (NEW, True)])
async def test_courses_by_ids_are_newer_and_hundred_at_most(*, release: str, exists: bool) -> None:
    canvas = canvas_of(release)  # section 5: in the order of the names that the caller sees
    query = "query($ids: [ID!]) { courses(ids: $ids) { _id } }"

    some = await ask(canvas, query, ids=["8", "2", "1"])
    many = await ask(canvas, query, ids=[str(number) for number in range(101)])

    assert ("errors" in some) is not exists
    assert "errors" in many
    if exists:
        assert [course["_id"] for course in some["data"]["courses"]] == ["1", "2", "8"]


@pytest.mark.parametrize(("release", "more", "user"), [(OLD, 0, 0), (MIDDLE, 1, 0), (NEW, 1, 1)])
async def test_newer_releases_know_more_fields(release: str, more: int, user: int) -> None:
    canvas = canvas_of(release)  # sections 5 and 12
    row = '{ course(id: "1") { enrollmentsConnection { nodes { %s } } } }'

    dated = await ask(canvas, row % "createdAt enrollmentState courseSectionId")
    named = await ask(canvas, row % "user { loginId sisId }")

    assert ["errors" not in dated, "errors" not in named] == [bool(more), bool(user)]


@EVERY
async def test_an_array_of_operations_is_not_a_batch(release: str) -> None:
    canvas = canvas_of(release)  # section 5

    async with client_of(canvas) as client:
        reply = await client.post("/api/graphql", json=[{"query": "{ __typename }"}])
        form = await client.post(
            "/api/graphql",
            data={
                "query": "query($id: ID!) { course(id: $id) { _id } }",
                "variables": json.dumps({"id": "1"}),
            },
        )

    assert "errors" in reply.json()
    assert form.json() == {"data": {"course": {"_id": "1"}}}


# ---- errors, images ------------------------------------------------------------------------


@EVERY
async def test_every_shape_of_an_error_occurs(release: str) -> None:
    canvas = canvas_of(release)  # section 6

    async with client_of(canvas) as client:
        missing = await client.get("/api/v1/courses/999")
        canvas.fail("status", status=500)
        broken = await client.get("/api/v1/courses/1")
        canvas.fail("status", status=502)
        edge = await client.get("/api/v1/courses/1")
        canvas.fail("html")
        login = await client.get("/api/v1/courses/1")
        canvas.fail("login")
        away = await client.get("/api/v1/courses/1")
        taken = await client.post("/api/v1/accounts/1/users", data={"pseudonym[unique_id]": "cody"})
        concluded = await client.post(
            "/api/v1/courses/6/enrollments", data={"enrollment[user_id]": "3"}
        )

    assert missing.json() == {"errors": [{"message": "The specified resource does not exist."}]}
    assert broken.json()["errors"] == [
        {"message": "An error occurred.", "error_code": "internal_server_error"}
    ]
    assert edge.headers["content-type"].startswith("text/html")
    assert (login.status_code, login.headers["content-type"][:9]) == (200, "text/html")
    assert (away.status_code, away.headers["location"]) == (302, "/login")
    assert taken.json()["errors"]["pseudonym"]["unique_id"][0]["attribute"] == "unique_id"
    assert concluded.json() == {"message": "Can't add an enrollment to a concluded course."}


@EVERY
async def test_images_are_elsewhere_signed_and_short_lived(release: str) -> None:
    canvas = canvas_of(release)  # section 6
    path = "/api/v1/accounts/1/courses?include[]=course_image"

    async with running(canvas) as url, httpx.AsyncClient() as anybody:
        mine = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
        stored, typed = (await anybody.get(url + path, headers=mine)).json()[:2]
        there = await anybody.get(stored["image_download_url"])
        leaked = await anybody.get(stored["image_download_url"], headers=mine)
        canvas.clock.advance(7 * 86_400)
        late = await anybody.get(stored["image_download_url"])

    assert urlsplit(stored["image_download_url"]).netloc != urlsplit(url).netloc
    assert typed["image_download_url"] == "http://images.example.org/frog.png"
    assert [there.status_code, leaked.status_code, late.status_code] == [200, 200, 403]
    assert [call.authorized for call in canvas.counts.images] == [False, True, False]


def test_the_second_origin_serves_nothing_but_images() -> None:
    routes = [getattr(route, "path", "") for route in images_for(canvas_of(NEW)).routes]

    assert routes == ["/files/{course_id}/course.png"]  # section 11


# ---- writes --------------------------------------------------------------------------------


@EVERY
async def test_enrolling_invites_unless_told(release: str) -> None:
    canvas = canvas_of(release)  # section 7
    course, section = "/api/v1/courses/1/enrollments", "/api/v1/sections/2/enrollments"

    async with client_of(canvas) as client:
        invited = (await client.post(course, data={"enrollment[user_id]": "9"})).json()
        active = (
            await client.post(
                section,
                json={
                    "enrollment": {
                        "user_id": "9",
                        "type": "TeacherEnrollment",
                        "enrollment_state": "active",
                        "end_at": "2026-01-01T00:00:00Z",
                    }
                },
            )
        ).json()
        nobody = await client.post(course, data={"enrollment[user_id]": "999"})
        nothing = await client.post(course, data={"enrollment[type]": "StudentEnrollment"})

    assert (invited["enrollment_state"], invited["type"]) == ("invited", "StudentEnrollment")
    assert (active["course_section_id"], active["enrollment_state"]) == (2, "active")
    assert (active["id"] != invited["id"], active["end_at"]) == (True, "2026-01-01T00:00:00Z")
    assert "user" not in invited
    assert (nobody.status_code, nothing.status_code, "message" in nothing.json()) == (
        404, 400, True,
    )  # fmt: skip


@EVERY
@pytest.mark.parametrize(
    ("query", "state"),
    [
        ("", "completed"),
        ("?task=conclude", "completed"),
        ("?task=delete", "deleted"),
        ("?task=inactivate", "inactive"),
        ("?task=deactivate", "inactive"),
    ],
)
async def test_ending_concludes_unless_told_and_only_the_inactive_come_back(
    release: str, query: str, state: str
) -> None:
    canvas = canvas_of(release)  # section 7
    path = "/api/v1/courses/1/enrollments/5"

    async with client_of(canvas) as client:
        ended = await client.delete(f"{path}{query}")
        back = await client.put(f"{path}/reactivate")

    assert (ended.status_code, ended.json()["enrollment_state"]) == (200, state)
    assert back.status_code == (200 if state == "inactive" else 400)


@EVERY
async def test_a_user_is_made_with_a_login_and_gets_another(release: str) -> None:
    canvas = canvas_of(release)  # section 7
    form = {
        "user[name]": "Ada Lovelace",
        "user[short_name]": "Ada",
        "user[sortable_name]": "Lovelace, Ada",
        "pseudonym[unique_id]": "lovelace",
        "pseudonym[sis_user_id]": "L-1",
        "communication_channel[address]": "ada.lovelace@canvas.test",
    }

    async with client_of(canvas) as client:
        made = (await client.post("/api/v1/accounts/1/users", data=form)).json()
        login = await client.post(
            "/api/v1/accounts/1/logins",
            data={"user[id]": str(made["id"]), "login[unique_id]": "ada2"},
        )
        logins = (await client.get(f"/api/v1/users/{made['id']}/logins")).json()
        without = await client.post("/api/v1/accounts/1/users", data={"user[name]": "Nobody"})

    assert (made["short_name"], made["login_id"], made["sis_user_id"]) == ("Ada", "lovelace", "L-1")
    assert (login.status_code, [each["unique_id"] for each in logins]) == (
        200,
        ["lovelace", "ada2"],
    )
    assert without.status_code == 400


@EVERY
async def test_the_small_data_set_has_the_names_that_are_hard(release: str) -> None:
    canvas = canvas_of(release)  # sections 8 and 11

    async with client_of(canvas) as client:
        users = (await client.get("/api/v1/accounts/1/users?sort=id&per_page=50")).json()
        rows = (await client.get("/api/v1/courses/1/enrollments?per_page=50")).json()

    names = {user["sortable_name"] for user in users}
    assert {
        "Cutrer, Cody Houston", "St. Clair, John", "Cutrer, Jefferson, IV", "Ho, Chi, Min",
        "Prince", "María del Carmen Núñez", "  Spaces,   Extra ", "",
    } <= names  # fmt: skip
    assert {row["type"] for row in rows} == {
        "StudentEnrollment", "TeacherEnrollment", "TaEnrollment", "ObserverEnrollment",
        "StudentViewEnrollment",
    }  # fmt: skip


def _states(rows: Sequence[dict[str, Any]]) -> set[str]:
    return {row["enrollment_state"] for row in rows}


def _courses(body: Any) -> list[Any]:
    found: list[Any] = body["data"]["account"]["coursesConnection"]["nodes"]
    return found
