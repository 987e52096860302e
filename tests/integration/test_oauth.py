"""A user lets the gateway act for them: from the link to the stored grant, and all that goes wrong.

The whole application, a simulated Canvas on a socket, and a browser that keeps cookies.
"""

import asyncio
import contextlib
import html
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pretend_roster import World, ask
from running_gateway import TOKEN, RunningGateway, problem_of, running_gateway
from sqlalchemy import delete, func, select, text, update

from gateway.app import build_app
from gateway.settings import read_settings
from resolvers.authorizing import Authorizer, Ending, Outcome, url_for_error
from schema.global_ids import USER, GlobalId
from sessions.errors import ProviderError, ProviderUnavailable, ReauthRequired
from sessions.pacing import GRANTS
from sessions.platforms.canvas.oauth import GRANT_BUCKET
from simulators.canvas.app import running
from simulators.canvas.profiles import HOSTED_NOW, OSS_2019, PROFILES, Profile
from simulators.canvas.state import (
    ADMIN_TOKEN,
    CLIENT_ID,
    CLIENT_SECRET,
    Canvas,
    VirtualClock,
)
from storage.authorizations import AuthorizationStore
from storage.credentials import Secret
from storage.database import Database
from storage.records import ProviderState, SessionState
from storage.tables import authorization_request, provider, session

TOKEN_CALL = ("POST", "/login/oauth2/token")
END_CALL = ("DELETE", "/login/oauth2/token")
NAME = "Springfield <b>Canvas</b> & Co"
EVERY_RELEASE = pytest.mark.parametrize("profile", PROFILES.values(), ids=list(PROFILES))

BEGIN = """
mutation Begin($input: BeginAuthorizationInput!) {
  beginAuthorization(input: $input) {
    ... on AuthorizationBegun { authorizationUrl expiresAt }
    ... on ProviderRefused { code field message retryable }
  }
}
"""
REGISTER = """
mutation Register($input: RegisterProviderInput!) {
  registerProvider(input: $input) {
    ... on ProviderPayload { provider { state } }
    ... on ProviderRefused { code message }
  }
}
"""
SESSIONS = """
{ providers { sessions { subject state authorizationUrl } } }
"""


@dataclass(kw_only=True)
class Lab:
    """A gateway with one Canvas, and what every address that was visited looked like."""

    gateway: RunningGateway
    canvas: Canvas
    canvas_url: str
    browser: httpx.AsyncClient
    visited: list[str] = field(default_factory=list)
    pages: list[str] = field(default_factory=list)

    async def begin(self, **given: Any) -> dict[str, Any]:
        """Ask for a link as a caller that may act for users and nothing else."""
        headers = await self.gateway.key("act:users")
        variables = {"input": {"providerId": "1", **given}}
        answer = await self.gateway.client.post(
            "/graphql", json={"query": BEGIN, "variables": variables}, headers=headers
        )
        begun: dict[str, Any] = answer.json()["data"]["beginAuthorization"]
        return begun

    async def link(self, user: int | None = None) -> str:
        asked = {} if user is None else {"userId": GlobalId(USER, "1", str(user)).encode()}
        url = (await self.begin(**asked))["authorizationUrl"]
        assert isinstance(url, str)
        return url

    async def visit(self, url: str, *, browser: httpx.AsyncClient | None = None) -> httpx.Response:
        self.visited.append(url)
        answer = await (browser or self.browser).get(url)
        self.pages.append(answer.text)
        return answer

    async def leave(self, link: str, **options: Any) -> str:
        """Open a link and return where the browser is sent."""
        answer = await self.visit(link, **options)
        assert answer.status_code == 303, answer.text
        return answer.headers["location"]

    async def consent(self, url: str, **options: Any) -> str:
        """Visit the provider and return where it sends the browser back to."""
        answer = await self.visit(url, **options)
        assert answer.status_code == 302, answer.text
        return answer.headers["location"]

    async def way_back(self, user: int | None = None) -> str:
        return await self.consent(await self.leave(await self.link(user)))

    async def sign_in(self, user: int | None = None) -> httpx.Response:
        return await self.visit(await self.way_back(user))

    async def state_of(self, user: int) -> SessionState:
        return (await self.gateway.parts.sessions.status("1", f"user:{user}")).state

    async def count_rows(self, *conditions: Any) -> int:
        statement = select(func.count()).select_from(authorization_request).where(*conditions)
        async with self.gateway.parts.database.read() as connection:
            return (await connection.execute(statement)).scalar_one()

    async def user_sessions(self) -> list[str]:
        statement = select(session.c.subject).where(session.c.subject.like("user:%"))
        async with self.gateway.parts.database.read() as connection:
            return [*(await connection.execute(statement)).scalars()]


@contextlib.asynccontextmanager
async def a_lab(
    folder: Path, profile: Profile = HOSTED_NOW, *, name: str = NAME, **given: Any
) -> AsyncIterator[Lab]:
    canvas = Canvas(profile=profile, clock=VirtualClock(ticking=True))
    canvas.throttle.enabled = False
    credentials = {"client_id": CLIENT_ID, "client_secret": CLIENT_SECRET, **given}
    async with (
        running(canvas) as url,
        running_gateway(folder) as gateway,
        httpx.AsyncClient(timeout=30) as browser,
    ):
        values = [{"name": key, "value": value} for key, value in credentials.items() if value]
        answer = await gateway.graphql(
            REGISTER,
            input={
                "providerId": "1",
                "platform": "canvas",
                "name": name,
                "baseUrl": url,
                "credentials": {"apiKey": ADMIN_TOKEN, "values": values},
            },
        )
        assert answer["data"]["registerProvider"] == {"provider": {"state": "ACTIVE"}}
        canvas.reset()
        yield Lab(gateway=gateway, canvas=canvas, canvas_url=url, browser=browser)


def told(answer: httpx.Response) -> str:
    """Return what a page says, as a person reads it; it must be one of ours."""
    assert answer.headers["content-type"] == "text/html; charset=utf-8", answer.text
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["x-content-type-options"] == "nosniff"
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "script-src" not in policy
    assert "unsafe" not in policy
    assert "<script" not in answer.text.lower()
    shown = re.sub(r"<style>.*?</style>", "", answer.text, flags=re.DOTALL)
    return html.unescape(re.sub(r"<[^>]*>", " ", shown).replace("  ", " "))


def database_file(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("gateway.db*"))


def begin_again(answer: httpx.Response) -> str | None:
    found = re.search(r'<a class="again" href="([^"]*)">', answer.text)
    return None if found is None else html.unescape(found[1])


def changed(url: str, **values: str | None) -> str:
    """Return a URL with other parameters; ``None`` takes one out."""
    parts = urlsplit(url)
    query = {name: found[0] for name, found in parse_qs(parts.query).items()}
    query = {name: value for name, value in {**query, **values}.items() if value is not None}
    return parts._replace(query=urlencode(query)).geturl()


def parameter(url: str, name: str) -> str:
    return parse_qs(urlsplit(url).query)[name][0]


# ---- it works


@EVERY_RELEASE
async def test_a_user_who_agrees_has_a_session_and_sees_it_said(
    tmp_path: Path, profile: Profile
) -> None:
    async with a_lab(tmp_path, profile) as lab:
        begun = await lab.begin(userId=GlobalId(USER, "1", "3").encode())
        url = await lab.leave(begun["authorizationUrl"])
        answer = await lab.visit(await lab.consent(url))
        state = await lab.state_of(3)
        name = lab.canvas.population.users[3].name

    left = datetime.fromisoformat(begun["expiresAt"]) - datetime.now(UTC)
    assert 3500 < left.total_seconds() <= 3600
    assert url.startswith(f"{lab.canvas_url}/login/oauth2/auth?")
    assert parameter(url, "redirect_uri") == f"{lab.gateway.url}/oauth/callback"
    assert parameter(url, "code_challenge_method") == "S256"
    assert answer.status_code == 200
    assert "Your account is connected" in told(answer)
    assert f"{name} , your account at {NAME} is now connected" in told(answer)
    assert state is SessionState.ACTIVE
    assert lab.canvas.counts.calls[TOKEN_CALL] == 1
    assert lab.canvas.counts.calls[END_CALL] == 0


async def test_without_a_named_user_whoever_signs_in_is_taken(tmp_path: Path) -> None:
    async with a_lab(tmp_path) as lab:
        lab.canvas.signed_in = 5
        answer = await lab.sign_in()

        assert answer.status_code == 200
        assert await lab.user_sessions() == ["user:5"]


async def test_signing_in_again_replaces_the_grant_and_ends_the_earlier_one(tmp_path: Path) -> None:
    async with a_lab(tmp_path) as lab:
        await lab.sign_in(3)
        answer = await lab.sign_in(3)
        tokens = [t for t in lab.canvas.tokens.values() if t.key_id == CLIENT_ID]

        assert answer.status_code == 200
        assert len(tokens) == 1
        assert lab.canvas.counts.calls[END_CALL] == 1


@EVERY_RELEASE
async def test_who_has_to_sign_in_again_is_told_where_and_is_cured_there(
    tmp_path: Path, profile: Profile
) -> None:
    users = "{ users { nodes { externalId } } }"
    async with a_lab(tmp_path, profile) as lab:
        on_behalf = {"On-Behalf-Of": GlobalId(USER, "1", "3").encode()}
        headers = {**await lab.gateway.key("act:users", "read:users"), **on_behalf}

        async def ask() -> dict[str, Any]:
            reply = await lab.gateway.client.post(
                "/graphql", json={"query": users}, headers=headers
            )
            answer: dict[str, Any] = reply.json()
            return answer

        never = await ask()
        await lab.sign_in(3)
        lab.canvas.revoke_user(3)
        lost = await ask()
        listed = await lab.gateway.graphql(SESSIONS)
        cured = await lab.visit(
            await lab.consent(await lab.leave(lost["errors"][0]["extensions"]["authorizationUrl"]))
        )
        state = await lab.state_of(3)
        listed_after = await lab.gateway.graphql(SESSIONS)

    for answer in (never, lost):
        extensions = answer["errors"][0]["extensions"]
        assert (extensions["code"], extensions["providerId"]) == ("REAUTH_REQUIRED", "1")
        assert extensions["authorizationUrl"].startswith(f"{lab.gateway.url}/oauth/begin?")
        assert parameter(extensions["authorizationUrl"], "user") == "3"
    sessions = {row["subject"]: row for row in listed["data"]["providers"][0]["sessions"]}
    assert sessions["user:3"]["state"] == "REAUTH_REQUIRED"
    assert parameter(sessions["user:3"]["authorizationUrl"], "user") == "3"
    assert sessions["service"]["authorizationUrl"] is None
    assert (cured.status_code, state) == (200, SessionState.ACTIVE)
    after = {row["subject"]: row for row in listed_after["data"]["providers"][0]["sessions"]}
    assert after["user:3"] == {"subject": "user:3", "state": "ACTIVE", "authorizationUrl": None}


async def test_rest_tells_as_well_where_to_sign_in(tmp_path: Path) -> None:
    async with a_lab(tmp_path) as lab:
        headers = {"On-Behalf-Of": GlobalId(USER, "1", "3").encode()}
        answer = await lab.gateway.get("/api/users", params={"id": "1"}, headers=headers)

    assert problem_of(answer) == (502, "REAUTH_REQUIRED")
    assert parameter(answer.json()["authorizationUrl"], "user") == "3"


async def test_two_tabs_of_one_browser_do_not_get_in_each_others_way(tmp_path: Path) -> None:
    async with a_lab(tmp_path) as lab:
        first, second = await lab.way_back(), await lab.way_back()
        answers = [await lab.visit(first), await lab.visit(second)]

    assert [answer.status_code for answer in answers] == [200, 200]


async def test_the_way_may_lead_over_different_gateways(tmp_path: Path) -> None:
    async with (
        a_lab(tmp_path) as lab,
        running_gateway(tmp_path, public_url=lab.gateway.url) as other,
    ):
        link = await lab.link(3)
        back = await lab.consent(await lab.leave(link.replace(lab.gateway.url, other.url)))
        answer = await lab.visit(back)

    assert answer.status_code == 200, told(answer)
    assert lab.visited[0].startswith(other.url)
    assert lab.visited[2].startswith(lab.gateway.url)


# ---- secrets


@EVERY_RELEASE
async def test_no_secret_is_legible_anywhere(
    tmp_path: Path, profile: Profile, capsys: pytest.CaptureFixture[str]
) -> None:
    async with a_lab(tmp_path, profile) as lab:
        back = await lab.way_back(3)
        kept = [cookie.value or "" for cookie in lab.browser.cookies.jar]
        async with lab.gateway.parts.database.read() as connection:
            row = (await connection.execute(select(authorization_request))).one()
        verifier = lab.gateway.parts.key_ring.unseal(
            row.verifier, bound_to=f"authorization_request|{row.state_sha256}|verifier"
        ).decode()
        await lab.visit(back)
        again = await lab.visit(back)
        tokens = [t for t in lab.canvas.tokens.values() if t.key_id == CLIENT_ID]
        stored = database_file(tmp_path)

    code, state = parameter(back, "code"), parameter(back, "state")
    access, refresh = tokens[0].access, tokens[0].refresh or ""
    secrets = [code, state, verifier, access, refresh, CLIENT_SECRET, *kept]
    printed = "".join(capsys.readouterr())
    pages = "".join(lab.pages)
    queries = [call.query for call in lab.canvas.counts.log]
    assert len(secrets) == 7
    assert again.status_code == 409
    assert "oauth/callback" in printed
    assert not [s for s in secrets if s in printed or s in pages or s.encode() in stored]
    assert not [s for s in secrets for query in queries if s in query and s != state]
    assert lab.canvas.counts.tokens_in_url == 0
    exposed = [verifier, access, refresh, CLIENT_SECRET, *kept]
    assert not [s for s in exposed for url in lab.visited if s in url]


async def test_names_are_shown_as_text_whatever_they_hold(tmp_path: Path) -> None:
    async with a_lab(tmp_path, name='"><script>alert(1)</script>') as lab:
        lab.canvas.population.users[3].name = "<img src=x onerror=alert(2)>"
        good = await lab.sign_in(3)
        wrong = await lab.sign_in(4)

    for answer in (good, wrong):
        assert "&lt;img src=x onerror=alert(2)&gt;" in answer.text
        assert "&quot;&gt;&lt;script&gt;alert(1)&lt;/script&gt;" in answer.text
        assert "<img" not in answer.text
        assert told(answer)


@pytest.mark.parametrize(
    ("public_url", "cookie_prefix", "path", "is_secure"),
    [
        ("http://learn.example.org", "authorization-", "/oauth", False),
        ("https://learn.example.org", "__Secure-authorization-", "/oauth", True),
        ("https://example.org/gate/way", "__Secure-authorization-", "/gate/way/oauth", True),
    ],
)
async def test_a_cookie_is_for_the_way_back_only(
    tmp_path: Path, public_url: str, cookie_prefix: str, path: str, *, is_secure: bool
) -> None:
    async with a_lab(tmp_path) as lab, running_gateway(tmp_path, public_url=public_url) as other:
        link = other.parts.authorizer.link("1", "3").url
        answer = await lab.visit(link.replace(public_url, other.url))

    name, _, rest = answer.headers["set-cookie"].partition("=")
    value, *attributes = rest.split("; ")
    state = parameter(answer.headers["location"], "state")
    assert link.startswith(f"{public_url}/oauth/begin?")
    assert re.fullmatch(rf"{cookie_prefix}[0-9a-f]{{64}}", name)
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", value)
    assert value not in state
    expected = {"HttpOnly", "Max-Age=600", f"Path={path}", "SameSite=lax"}
    assert set(attributes) == expected | ({"Secure"} if is_secure else set())
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-store"


# ---- a link is refused


@pytest.mark.parametrize(
    ("provider_id", "user_id", "expected"),
    [
        ("nowhere", None, ("PROVIDER_NOT_FOUND", "providerId", "No such provider is registered")),
        ("k", None, ("NOT_SUPPORTED", None, "Kolibri does not let users authorise the gateway")),
        ("off", None, ("PROVIDER_UNAVAILABLE", None, "The provider is disabled")),
        ("1", GlobalId(USER, "k", "3"), ("BAD_INPUT", "userId", "user_id: This is a user of ano")),
        ("1", GlobalId(USER, "1", "a\0b"), ("BAD_INPUT", "userId", "user_id: This is no user's i")),
        ("1", GlobalId(USER, "1", ""), ("BAD_INPUT", "userId", "user_id: This is no user's id")),
        ("1", GlobalId(USER, "1", "\ud800"), ("BAD_INPUT", "userId", "user_id: This is no user")),
        (
            "bare",
            None,
            ("NOT_SUPPORTED", "credentials.clientId", "credentials.client_id: Users cannot sign "),
        ),
    ],
)
async def test_no_link_is_made_that_leads_nowhere(
    tmp_path: Path,
    provider_id: str,
    user_id: GlobalId | None,
    expected: tuple[str, str | None, str],
) -> None:
    async with a_lab(tmp_path) as lab:
        common: Any = {"name": "x", "base_url": lab.canvas_url, "credentials": Secret({})}
        store = lab.gateway.parts.providers
        await store.add(id="k", platform="kolibri", **common)
        await store.add(id="bare", platform="canvas", **common)
        await store.add(id="off", platform="canvas", state=ProviderState.DISABLED, **common)
        asked = {} if user_id is None else {"userId": user_id.encode()}
        refused = await lab.begin(providerId=provider_id, **asked)

    code, place, message = expected
    assert (refused["code"], refused["field"]) == (code, place)
    assert refused["message"].startswith(message)
    assert lab.canvas.counts.total() == 0


async def test_asking_users_needs_its_own_scope(tmp_path: Path) -> None:
    async with a_lab(tmp_path) as lab:
        headers = await lab.gateway.key("write:providers", "read:providers")
        body = {"query": BEGIN, "variables": {"input": {"providerId": "1"}}}
        answer = await lab.gateway.client.post("/graphql", json=body, headers=headers)
        hidden = await lab.gateway.key("act:users", "provider:2")
        unseen = await lab.gateway.client.post("/graphql", json=body, headers=hidden)

    error = answer.json()["errors"][0]
    assert error["extensions"]["code"] == "FORBIDDEN"
    assert error["message"] == "This needs a key with the scope act:users"
    assert unseen.json()["data"]["beginAuthorization"]["code"] == "PROVIDER_NOT_FOUND"


async def test_a_user_is_named_by_the_id_of_a_user(tmp_path: Path) -> None:
    async with a_lab(tmp_path) as lab:
        variables = {"input": {"providerId": "1", "userId": GlobalId("Course", "1", "3").encode()}}
        answer = await lab.gateway.graphql(BEGIN, **variables)

    assert answer["errors"][0]["extensions"]["code"] == "BAD_INPUT"
    assert "input.userId" in answer["errors"][0]["message"]


# ---- a link does not work


@pytest.mark.parametrize(
    "change",
    [
        {"signature": "A" * 43},
        {"signature": ""},
        {"signature": None},
        {"signature": "\u00e9"},
        {"user": "4"},
        {"user": None},
        {"user": ""},
        {"provider": "2"},
        {"provider": None},
        {"until": "9999999999"},
        {"until": "never"},
        {"until": None},
    ],
)
async def test_a_changed_link_leads_nowhere(tmp_path: Path, change: dict[str, str | None]) -> None:
    async with a_lab(tmp_path) as lab:
        link = await lab.link(3)
        answer = await lab.visit(changed(link, **change))
        twice = await lab.visit(f"{link}&user=3")

        assert await lab.count_rows() == 0
    for page in (answer, twice):
        assert page.status_code == 400
        assert "This link does not work" in told(page)
        assert "set-cookie" not in page.headers
        assert begin_again(page) is None
    assert lab.canvas.counts.total() == 0


async def test_a_link_is_too_old_after_an_hour(tmp_path: Path) -> None:
    async with a_lab(tmp_path) as lab:
        authorizer = lab.gateway.parts.authorizer
        until = str(int(datetime.now(UTC).timestamp()) - 1)
        signature = authorizer._signature_of("1", "3", until)
        link = changed(await lab.link(3), until=until, signature=signature)
        answer = await lab.visit(link)

        assert await lab.count_rows() == 0
    assert answer.status_code == 410
    assert "This link is too old" in told(answer)
    assert begin_again(answer) is None


async def test_opening_a_link_of_a_removed_provider_says_so(tmp_path: Path) -> None:
    async with a_lab(tmp_path) as lab:
        link = await lab.link(3)
        await lab.gateway.graphql('mutation { removeProvider(providerId: "1") { __typename } }')
        answer = await lab.visit(link)

    assert answer.status_code == 404
    assert "This place is no longer here" in told(answer)


async def test_a_link_whose_developer_key_was_taken_back_says_what_to_tell_whom(
    tmp_path: Path,
) -> None:
    async with a_lab(tmp_path) as lab:
        link = await lab.link(3)
        await lab.gateway.parts.providers.update("1", credentials=Secret({"api_key": ADMIN_TOKEN}))
        answer = await lab.visit(link)

    assert answer.status_code == 502
    assert "This cannot be done yet" in told(answer)
    assert "has no developer key" in told(answer)
    assert answer.headers["x-request-id"] in told(answer)


async def test_looking_ahead_uses_nothing_up(tmp_path: Path) -> None:
    async with a_lab(tmp_path) as lab:
        link = await lab.link(3)
        looked = await lab.browser.head(link)
        rows = await lab.count_rows()
        back = await lab.consent(await lab.leave(link))
        peeked = await lab.browser.head(back)
        answer = await lab.visit(back)

    assert (looked.status_code, peeked.status_code) == (405, 405)
    assert rows == 0
    assert answer.status_code == 200


# ---- coming back goes wrong


@EVERY_RELEASE
async def test_a_user_who_does_not_agree_is_told_that_nothing_happened(
    tmp_path: Path, profile: Profile
) -> None:
    async with a_lab(tmp_path, profile) as lab:
        lab.canvas.consent = "deny"
        back = await lab.way_back(3)
        answer = await lab.visit(back)
        lab.canvas.consent = "approve"
        again = await lab.visit(
            await lab.consent(await lab.leave(begin_again(answer) or "nowhere"))
        )

    assert parameter(back, "error") == "access_denied"
    assert ("state" in parse_qs(urlsplit(back).query)) == (profile is not OSS_2019)
    assert answer.status_code == 403
    assert "Your account was not connected" in told(answer)
    assert f"account at {NAME} , so nothing was changed" in told(answer)
    assert again.status_code == 200


async def test_a_denial_uses_its_state_up(tmp_path: Path) -> None:
    async with a_lab(tmp_path) as lab:
        lab.canvas.consent = "deny"
        back = await lab.way_back(3)
        await lab.visit(back)
        answer = await lab.visit(changed(back, error=None, code="a-code"))

    assert answer.status_code == 409
    assert lab.canvas.counts.calls[TOKEN_CALL] == 0


async def test_a_denial_of_which_nothing_is_known_is_a_page_all_the_same(tmp_path: Path) -> None:
    async with a_lab(tmp_path) as lab, httpx.AsyncClient() as stranger:
        url = f"{lab.gateway.url}/oauth/callback?error=access_denied"
        answer = await lab.visit(url, browser=stranger)
        made_up = await lab.visit(f"{url}&state=made-up", browser=stranger)

    for page in (answer, made_up):
        assert page.status_code == 403
        assert "at the place where you sign in, so nothing was changed" in told(page)
        assert begin_again(page) is None


@EVERY_RELEASE
async def test_a_state_counts_once(tmp_path: Path, profile: Profile) -> None:
    async with a_lab(tmp_path, profile) as lab:
        back = await lab.way_back(3)
        first = await lab.visit(back)
        second = await lab.visit(back)
        fresh_code = parameter(await lab.way_back(3), "code")
        third = await lab.visit(changed(back, code=fresh_code))

        assert await lab.state_of(3) is SessionState.ACTIVE
    assert [page.status_code for page in (first, second, third)] == [200, 409, 409]
    assert "This page was opened before" in told(second)
    assert lab.canvas.counts.calls[TOKEN_CALL] == 1


async def test_of_two_simultaneous_returns_one_is_taken(tmp_path: Path) -> None:
    async with a_lab(tmp_path) as lab:
        back = await lab.way_back(3)
        answers = await asyncio.gather(*(lab.visit(back) for _ in range(6)))

    assert sorted(answer.status_code for answer in answers) == [200, *[409] * 5]
    assert lab.canvas.counts.calls[TOKEN_CALL] == 1


@EVERY_RELEASE
async def test_another_browser_cannot_finish_what_this_one_began(
    tmp_path: Path, profile: Profile
) -> None:
    async with a_lab(tmp_path, profile) as lab, httpx.AsyncClient() as victim:
        back = await lab.way_back()
        without = await lab.visit(back, browser=victim)
        await lab.leave(await lab.link(), browser=victim)
        with_its_own = await lab.visit(back, browser=victim)
        calls = lab.canvas.counts.calls[TOKEN_CALL]
        sessions = await lab.user_sessions()
        answer = await lab.visit(back)

    for page in (without, with_its_own):
        assert page.status_code == 403
        assert "You began in another browser" in told(page)
        assert begin_again(page) is None
    assert (calls, sessions) == (0, [])
    assert answer.status_code == 200


async def test_a_state_nobody_gave_out_is_refused(tmp_path: Path) -> None:
    async with a_lab(tmp_path) as lab:
        back = await lab.way_back(3)
        answer = await lab.visit(changed(back, state="A" * 43))

        assert await lab.count_rows(authorization_request.c.used.is_(True)) == 0
    assert answer.status_code == 400
    assert "This sign-in is over" in told(answer)
    assert lab.canvas.counts.calls[TOKEN_CALL] == 0


async def test_a_browser_that_was_away_too_long_has_to_begin_again(tmp_path: Path) -> None:
    async with a_lab(tmp_path) as lab:
        back = await lab.way_back(3)
        async with lab.gateway.parts.database.transaction() as connection:
            table = authorization_request
            await connection.execute(update(table).values(expires_at=table.c.expires_at - 600))
        answer = await lab.visit(back)
        await lab.leave(await lab.link(3))

        assert await lab.count_rows() == 1
    assert answer.status_code == 400
    assert "It took longer than ten minutes" in told(answer)
    assert lab.canvas.counts.calls[TOKEN_CALL] == 0


@EVERY_RELEASE
async def test_a_code_that_is_too_old_or_used_is_said_to_be(
    tmp_path: Path, profile: Profile
) -> None:
    async with a_lab(tmp_path, profile) as lab:
        back = await lab.way_back(3)
        lab.canvas.clock.advance(600)
        old = await lab.visit(back)
        back = await lab.way_back(3)
        lab.canvas.codes.clear()
        used = await lab.visit(back)
        again = await lab.visit(await lab.consent(await lab.leave(begin_again(used) or "nowhere")))

    for page in (old, used):
        assert page.status_code == 400
        assert "That took too long" in told(page)
    assert again.status_code == 200


@EVERY_RELEASE
async def test_a_wrong_secret_of_the_developer_key_is_nothing_the_user_did(
    tmp_path: Path, profile: Profile
) -> None:
    async with a_lab(tmp_path, profile) as lab:
        lab.canvas.keys[CLIENT_ID].secret = "another-one"
        answer = await lab.sign_in(3)

        assert await lab.user_sessions() == []
    assert answer.status_code == 502
    assert "You did nothing wrong" in told(answer)
    assert "compare client_id and client_secret" in told(answer)
    assert answer.headers["x-request-id"] in told(answer)


@EVERY_RELEASE
async def test_a_developer_key_that_is_switched_off_is_nothing_the_user_did(
    tmp_path: Path, profile: Profile
) -> None:
    async with a_lab(tmp_path, profile) as lab:
        lab.canvas.keys[CLIENT_ID].active = False
        back = await lab.way_back(3)
        answer = await lab.visit(back)

    assert parameter(back, "error") == "unauthorized_client"
    assert answer.status_code == 502
    assert "The provider answered unauthorized_client" in told(answer)
    assert lab.canvas.counts.calls[TOKEN_CALL] == 0


@EVERY_RELEASE
async def test_a_wrong_redirect_address_is_nothing_the_user_did(
    tmp_path: Path, profile: Profile
) -> None:
    async with a_lab(tmp_path, profile) as lab:
        url = await lab.leave(await lab.link(3))
        lab.canvas.keys[CLIENT_ID].redirect_uri = "https://elsewhere.example/oauth/callback"
        at_canvas = await lab.visit(url)
        back = f"{lab.gateway.url}/oauth/callback?error=invalid_request"
        answer = await lab.visit(f"{back}&state={parameter(url, 'state')}")

    assert (at_canvas.status_code, at_canvas.json()["error"]) == (400, "invalid_request")
    assert answer.status_code == 502
    assert "The provider answered invalid_request" in told(answer)


@pytest.mark.parametrize(
    ("fault", "status", "title"),
    [
        ({"kind": "status", "status": 500}, 502, "No answer at the moment"),
        ({"kind": "status", "status": 503}, 502, "No answer at the moment"),
        ({"kind": "disconnect"}, 502, "No answer at the moment"),
        ({"kind": "html"}, 502, "This cannot be done yet"),
        ({"kind": "login"}, 502, "This cannot be done yet"),
    ],
)
async def test_a_provider_that_fails_leaves_everything_as_it_was(
    tmp_path: Path, fault: dict[str, Any], status: int, title: str
) -> None:
    async with a_lab(tmp_path) as lab:
        back = await lab.way_back(3)
        lab.canvas.fail(path="/login/oauth2/token", **fault)
        answer = await lab.visit(back)
        sessions = await lab.user_sessions()
        again = await lab.visit(
            await lab.consent(await lab.leave(begin_again(answer) or "nowhere"))
        )

    assert answer.status_code == status
    assert title in told(answer)
    assert "account was not connected" in told(answer)
    assert sessions == []
    assert again.status_code == 200


async def test_a_provider_that_says_itself_that_it_is_down_is_believed(tmp_path: Path) -> None:
    async with a_lab(tmp_path) as lab:
        state = parameter(await lab.leave(await lab.link(3)), "state")
        query = urlencode({"error": "temporarily_unavailable", "state": state})
        answer = await lab.visit(f"{lab.gateway.url}/oauth/callback?{query}")

    assert answer.status_code == 502
    assert f"not possible to reach {NAME}" in told(answer)


async def test_too_many_at_once_are_asked_to_wait(tmp_path: Path) -> None:
    async with a_lab(tmp_path) as lab:
        back = await lab.way_back(3)
        async with lab.gateway.parts.sessions.session("1") as service:
            service._http.pacers.get(GRANTS, GRANT_BUCKET).note_refusal(90)
        answer = await lab.visit(back)

    assert answer.status_code == 503
    assert 85 < int(answer.headers["retry-after"]) <= 115
    assert "Please wait 2 minutes, then begin again" in told(answer)
    assert begin_again(answer) is not None
    assert lab.canvas.counts.calls[TOKEN_CALL] == 0


@EVERY_RELEASE
async def test_another_account_than_was_asked_for_is_ended_at_once(
    tmp_path: Path, profile: Profile, capsys: pytest.CaptureFixture[str]
) -> None:
    async with a_lab(tmp_path, profile) as lab:
        answer = await lab.sign_in(4)
        tokens = [t for t in lab.canvas.tokens.values() if t.key_id == CLIENT_ID]
        sessions = await lab.user_sessions()
        lab.canvas.signed_in = 4
        again = await lab.visit(
            await lab.consent(await lab.leave(begin_again(answer) or "nowhere"))
        )
        sessions_after = await lab.user_sessions()

    assert answer.status_code == 403
    assert f"you are signed in as {lab.canvas.population.users[3].name} , but" in told(answer)
    assert (tokens, sessions) == ([], [])
    assert lab.canvas.counts.calls[END_CALL] == 1
    assert (again.status_code, sessions_after) == (200, ["user:4"])
    assert lab.canvas.population.users[3].name not in "".join(capsys.readouterr())


async def test_a_provider_removed_meanwhile_is_said_to_be_perhaps_removed(tmp_path: Path) -> None:
    async with a_lab(tmp_path) as lab:
        back = await lab.way_back(3)
        await lab.gateway.graphql('mutation { removeProvider(providerId: "1") { __typename } }')
        answer = await lab.visit(back)

    assert answer.status_code == 400
    assert "was removed meanwhile" in told(answer)
    assert lab.canvas.counts.calls[TOKEN_CALL] == 0


async def test_a_provider_removed_in_the_last_moment_is_gone(tmp_path: Path) -> None:
    async with a_lab(tmp_path) as lab:
        back = await lab.way_back(3)
        async with lab.gateway.parts.database.transaction() as connection:
            # as if it were removed between the state and the exchange
            await connection.execute(text("PRAGMA defer_foreign_keys=ON"))
            trigger = (
                "CREATE TRIGGER removed AFTER UPDATE ON authorization_request"
                " BEGIN DELETE FROM provider; END"
            )
            await connection.execute(text(trigger))
        answer = await lab.visit(back)

    assert answer.status_code == 404
    assert "This place is no longer here" in told(answer)
    assert lab.canvas.counts.calls[TOKEN_CALL] == 0


@pytest.mark.parametrize(
    "change",
    [
        {"code": None},
        {"code": ""},
        {"state": None},
        {"state": ""},
        {"code": None, "state": None},
        {"code": "x" * 5000},
    ],
)
async def test_an_incomplete_return_uses_nothing_up(
    tmp_path: Path, change: dict[str, str | None]
) -> None:
    async with a_lab(tmp_path) as lab:
        back = await lab.way_back(3)
        incomplete = await lab.visit(changed(back, **change))
        twice = await lab.visit(f"{back}&state=another")
        answer = await lab.visit(back)

    for page in (incomplete, twice):
        assert page.status_code == 400
        assert "Something is missing" in told(page)
    assert answer.status_code == 200


async def test_a_database_that_does_not_answer_is_a_page_too(tmp_path: Path) -> None:
    async with a_lab(tmp_path) as lab:
        link = await lab.link(3)
        back = await lab.way_back(3)
        async with lab.gateway.parts.database.transaction() as connection:
            await connection.execute(text("DROP TABLE authorization_request"))
        answers = [await lab.visit(link), await lab.visit(back)]

    for answer in answers:
        assert answer.status_code == 503
        assert "This service has a problem of its own" in told(answer)
    assert lab.canvas.counts.calls[TOKEN_CALL] == 0


async def test_a_verifier_whose_key_is_gone_has_to_be_asked_for_anew(tmp_path: Path) -> None:
    async with a_lab(tmp_path) as lab:
        back = await lab.way_back(3)
        async with lab.gateway.parts.database.transaction() as connection:
            await connection.execute(update(authorization_request).values(verifier=b"\x01\x02k9"))
        answer = await lab.visit(back)

    assert answer.status_code == 400
    assert "This sign-in is over" in told(answer)


async def test_a_provider_removed_while_a_link_is_opened_is_gone(
    tmp_path: Path, sqlite_database: Database
) -> None:
    async with a_lab(tmp_path) as lab:
        parts = lab.gateway.parts
        authorizer = Authorizer(
            public_url=lab.gateway.url,
            key=Secret(b"key"),
            requests=AuthorizationStore(sqlite_database, parts.key_ring),  # knows no provider
            sessions=parts.sessions,
            providers=parts.providers,
            platforms=parts.platforms,
        )
        query = parse_qs(urlsplit(authorizer.link("1").url).query)
        opened = await authorizer.open({name: values[0] for name, values in query.items()})

    assert opened == Outcome(ending=Ending.PROVIDER_GONE)


# ---- where signing in helps


def reauth(subject: str | None, provider_id: str | None = "1") -> ReauthRequired:
    error = ReauthRequired("Sign in again", provider_id=provider_id)
    error.subject = subject
    return error


@pytest.mark.parametrize(
    ("error", "helps"),
    [
        (reauth("user:3"), True),
        (reauth("service"), False),
        (reauth("masquerade:3"), False),
        (reauth(None), False),
        (reauth("user:3", None), False),
        (ProviderUnavailable("Down", provider_id="1"), False),
    ],
)
async def test_a_link_is_given_only_with_an_error_it_cures(
    tmp_path: Path, error: ProviderError, *, helps: bool
) -> None:
    async with a_lab(tmp_path) as lab:
        url = url_for_error(lab.gateway.parts.authorizer, error)

    assert (url is not None) is helps
    assert url_for_error(None, error) is None


async def test_where_nobody_can_be_asked_that_is_said() -> None:
    world = World()
    world.add("a", user_count=1, course_count=1)

    answer = await ask(world, BEGIN, {"input": {"providerId": "a"}})

    assert answer["data"]["beginAuthorization"]["code"] == "NOT_SUPPORTED"


# ---- anything at all


@pytest.fixture
def bare_app(tmp_path: Path) -> Any:
    environment = {"GATEWAY_DATA_FOLDER": str(tmp_path / "data"), "GATEWAY_TOKEN": TOKEN}
    return build_app(read_settings(environment))


async def call(app: Any, path: str, query: bytes, cookie: bytes) -> tuple[int, bytes]:
    """Send a request as it is, past every client that would put it in order."""
    sent: list[Mapping[str, Any]] = []

    async def receive() -> Mapping[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Mapping[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query,
        "headers": [(b"host", b"127.0.0.1"), (b"cookie", cookie)],
        "server": ("127.0.0.1", 80),
        "client": ("127.0.0.1", 1),
    }
    await app(scope, receive, send)
    body = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], body


NAMES = st.sampled_from(["state", "code", "error", "provider", "user", "until", "signature", "x"])
QUERIES = st.one_of(
    st.binary(max_size=200),
    st.lists(st.tuples(NAMES, st.text(max_size=60)), max_size=6).map(
        lambda pairs: "&".join(
            f"{name}={quote(value.encode('utf-8', 'surrogatepass'))}" for name, value in pairs
        ).encode()
    ),
    st.lists(st.tuples(NAMES, st.binary(max_size=60)), max_size=6).map(
        lambda pairs: b"&".join(name.encode() + b"=" + value for name, value in pairs)
    ),
)
COOKIES = st.one_of(
    st.binary(max_size=200),
    st.lists(
        st.tuples(st.from_regex(r"authorization-[0-9a-f]{64}", fullmatch=True), st.text()),
        max_size=6,
    ).map(lambda pairs: "; ".join(f"{n}={v}" for n, v in pairs).encode(errors="replace")),
)


def test_whatever_comes_back_never_ends_in_an_internal_error(bare_app: Any) -> None:
    with asyncio.Runner() as runner:
        lifespan = bare_app.router.lifespan_context(bare_app)
        runner.run(lifespan.__aenter__())

        @given(path=st.sampled_from(["callback", "begin"]), query=QUERIES, cookie=COOKIES)
        @settings(deadline=None, max_examples=300)
        def never(path: str, query: bytes, cookie: bytes) -> None:
            status, body = runner.run(call(bare_app, f"/oauth/{path}", query, cookie))

            assert status in {400, 403, 409, 502}, body
            assert body.startswith(b"<!doctype html>")
            assert b"<script" not in body.lower()

        try:
            never()
        finally:
            runner.run(lifespan.__aexit__(None, None, None))


async def test_rows_of_sign_ins_go_with_their_provider(tmp_path: Path) -> None:
    async with a_lab(tmp_path) as lab:
        await lab.leave(await lab.link(3))
        async with lab.gateway.parts.database.transaction() as connection:
            await connection.execute(delete(provider))

        assert await lab.count_rows() == 0
