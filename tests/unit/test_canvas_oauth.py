"""Users' grants from a Canvas: asked for, exchanged, renewed and ended, on every release."""

import asyncio
import base64
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from sessions.addresses import LOCAL_NETWORKS, AddressPolicy
from sessions.base import Code, CodeRequest, Grant, NewGrant
from sessions.errors import (
    NotSupported,
    ProviderAuthFailed,
    ProviderBadResponse,
    ProviderError,
    ProviderForbidden,
    ProviderRateLimited,
    ProviderTimeout,
    ProviderUnavailable,
    ReauthRequired,
)
from sessions.http import HttpLimits, ProviderHttp
from sessions.pacing import GRANTS
from sessions.platforms.canvas import oauth
from simulators.canvas.app import app_for, running
from simulators.canvas.population import build_population
from simulators.canvas.profiles import HOSTED_NOW, OSS_2024, PROFILES, Profile
from simulators.canvas.state import (
    CLIENT_ID,
    CLIENT_SECRET,
    PUBLIC_CLIENT_ID,
    SCOPED_CLIENT_ID,
    Canvas,
    VirtualClock,
)
from simulators.moving_time import run_virtually
from storage.credentials import Secret
from storage.records import Provider, ProviderState

CALLBACK = "http://127.0.0.1/oauth/callback"
VERIFIER = "verifier-" + "v" * 34
CONFIDENTIAL = {"client_id": CLIENT_ID, "client_secret": CLIENT_SECRET, "api_key": "admin"}
PUBLIC = {"client_id": PUBLIC_CLIENT_ID, "api_key": "admin"}
TOKEN = ("POST", "/login/oauth2/token")
END = ("DELETE", "/login/oauth2/token")
EVERY_RELEASE = pytest.mark.parametrize("profile", PROFILES.values(), ids=list(PROFILES))


class Lab:
    """A simulated Canvas, HTTP to it, and a browser in which somebody is signed in.

    ``seen`` is what arrived at whoever answers in its place.
    """

    def __init__(self, canvas: Canvas, http: ProviderHttp, **options: str) -> None:
        now = datetime.now(UTC)
        self.seen: Sequence[httpx.Request] = ()
        self.canvas = canvas
        self.http = http
        self.provider = Provider(
            id="1",
            platform="canvas",
            name="Canvas",
            base_url=http.base_url,
            options=options,
            state=ProviderState.ACTIVE,
            revision=1,
            created_at=now,
            updated_at=now,
        )

    def address(self, credentials: Mapping[str, str] = CONFIDENTIAL) -> str:
        digest = hashlib.sha256(VERIFIER.encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        request = CodeRequest(redirect_uri=CALLBACK, state="the-state", code_challenge=challenge)
        return oauth.authorization_url(self.provider, request, Secret(credentials))

    async def code(
        self, credentials: Mapping[str, str] = CONFIDENTIAL, *, verifier: str = VERIFIER
    ) -> Code:
        """Return the code with which the browser comes back."""
        transport = httpx.ASGITransport(app=app_for(self.canvas))
        async with httpx.AsyncClient(transport=transport) as browser:
            reply = await browser.get(self.address(credentials))
        assert reply.status_code == 302, reply.text
        query = parse_qs(urlsplit(reply.headers["location"]).query)
        assert query["state"] == ["the-state"]
        return Code(code=Secret(query["code"][0]), redirect_uri=CALLBACK, verifier=Secret(verifier))

    async def redeem(
        self, code: Code, credentials: Mapping[str, str] = CONFIDENTIAL, **more: float
    ) -> Any:
        return await oauth.redeem(
            self.http, self.provider, code=code, credentials=Secret(credentials), **more
        )

    async def granted(self, credentials: Mapping[str, str] = CONFIDENTIAL) -> Grant:
        user = await self.redeem(await self.code(credentials), credentials)
        return Grant(version=1, secret=user.grant.secret)

    async def renew(self, grant: Grant, credentials: Mapping[str, str] = CONFIDENTIAL) -> NewGrant:
        return await oauth.renew(
            self.http, self.provider, grant=grant, credentials=Secret(credentials)
        )

    async def status_of(self, secret: Secret[Mapping[str, str]]) -> int:
        """Return what Canvas answers to a call with the access token of a grant."""
        headers = {"Authorization": f"Bearer {secret.reveal()['access_token']}"}
        transport = httpx.ASGITransport(app=app_for(self.canvas))
        async with httpx.AsyncClient(transport=transport, base_url="http://canvas") as client:
            return (await client.get("/api/v1/users/self", headers=headers)).status_code

    @property
    def wait_seconds(self) -> float:
        """How long the next exchange would stand in line."""
        return self.http.pacers.get(GRANTS, oauth.GRANT_BUCKET).expected_wait()


@contextlib.asynccontextmanager
async def a_lab(
    profile: Profile = HOSTED_NOW, *, shard: int = 0, suffix: str = "", **options: str
) -> AsyncIterator[Lab]:
    canvas = Canvas(build_population(shard=shard), profile=profile, clock=VirtualClock())
    policy = AddressPolicy(allowed_networks=LOCAL_NETWORKS)
    async with (
        running(canvas) as url,
        ProviderHttp.open(
            url + suffix, provider_id="1", policy=policy, limits=HttpLimits(read_seconds=0.3)
        ) as http,
    ):
        yield Lab(canvas, http, **options)


@contextlib.asynccontextmanager
async def a_lab_answering(status: int, body: object, **headers: str) -> AsyncIterator[Lab]:
    """Serve one answer to everything instead of a Canvas."""
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        content = body if isinstance(body, str) else json.dumps(body)
        return httpx.Response(status, content=content, headers=headers)

    policy = AddressPolicy(allowed_networks=LOCAL_NETWORKS)
    async with ProviderHttp.open(
        "http://127.0.0.1:3000",
        provider_id="1",
        policy=policy,
        transport=httpx.MockTransport(answer),
    ) as http:
        lab = Lab(Canvas(clock=VirtualClock()), http)
        lab.seen = seen
        yield lab


A_CODE = Code(code=Secret("the-code"), redirect_uri=CALLBACK, verifier=Secret(VERIFIER))
A_GRANT = Grant(
    version=1, secret=Secret({"access_token": "old-access", "refresh_token": "old-refresh"})
)


# ---- the address


async def test_a_user_is_asked_with_a_challenge_and_without_any_secret() -> None:
    async with a_lab(suffix="/api/v1") as lab:
        address = lab.address()

    parts = urlsplit(address)
    digest = hashlib.sha256(VERIFIER.encode()).digest()
    assert parts.path == "/login/oauth2/auth"
    assert parse_qs(parts.query) == {
        "client_id": [CLIENT_ID],
        "response_type": ["code"],
        "redirect_uri": [CALLBACK],
        "state": ["the-state"],
        "code_challenge": [base64.urlsafe_b64encode(digest).rstrip(b"=").decode()],
        "code_challenge_method": ["S256"],
    }
    assert CLIENT_SECRET not in address


async def test_scopes_are_asked_for_once_separated_by_single_spaces() -> None:
    scopes = " url:GET|/api/v1/courses\n  url:GET|/api/v1/courses/:id "

    async with a_lab(scopes=scopes) as lab:
        query = parse_qs(urlsplit(lab.address()).query)

    assert query["scope"] == ["url:GET|/api/v1/courses url:GET|/api/v1/courses/:id"]


async def test_without_a_developer_key_nobody_can_be_asked() -> None:
    async with a_lab() as lab:
        with pytest.raises(NotSupported, match="has no developer key"):
            lab.address({"api_key": "admin"})


async def test_more_scopes_than_an_address_holds_are_refused_here() -> None:
    scopes = " ".join(f"url:GET|/api/v1/courses/:course_id/things/{n}" for n in range(200))

    async with a_lab(scopes=scopes) as lab:
        with pytest.raises(NotSupported, match="more scopes than"):
            lab.address()


# ---- exchanging a code


@EVERY_RELEASE
async def test_a_code_gives_the_user_and_a_grant_with_one_call(profile: Profile) -> None:
    async with a_lab(profile) as lab:
        code = await lab.code()
        lab.canvas.reset()
        user = await lab.redeem(code)
        status = await lab.status_of(user.grant.secret)

    granted = user.grant.secret.reveal()
    assert (user.user_id, user.display_name) == ("3", lab.canvas.population.users[3].name)
    assert user.grant.lifetime_seconds == 3600
    assert not user.grant.consumes_predecessor
    assert set(granted) == {"access_token", "refresh_token"}
    assert granted["refresh_token"] in lab.canvas.tokens_by_refresh
    assert status == 200
    assert lab.canvas.counts.calls[TOKEN] == 1


@EVERY_RELEASE
async def test_no_secret_is_ever_part_of_an_address(profile: Profile) -> None:
    async with a_lab(profile) as lab:
        code = await lab.code()
        grant = Grant(version=1, secret=(await lab.redeem(code)).grant.secret)
        lab.canvas.clock.advance(60)
        new = await lab.renew(grant)
        await oauth.revoke(lab.http, new)

    secrets = [CLIENT_SECRET, VERIFIER, code.code.reveal()]
    secrets += [*grant.secret.reveal().values(), *new.secret.reveal().values()]
    assert [call.query for call in lab.canvas.counts.log if call.route != "/login/oauth2/auth"] == (
        [""] * 3
    )
    assert not [s for call in lab.canvas.counts.log for s in secrets if s in call.query]
    assert lab.canvas.counts.tokens_in_url == 0


async def test_a_public_client_proves_itself_by_the_verifier_alone() -> None:
    async with a_lab() as lab:
        user = await lab.redeem(await lab.code(PUBLIC), PUBLIC)

    assert user.user_id == "3"


async def test_a_grant_whose_end_is_not_told_has_no_known_lifetime() -> None:
    async with a_lab(replace(HOSTED_NOW, keys_expire=False)) as lab:
        user = await lab.redeem(await lab.code())

    assert user.grant.lifetime_seconds is None


@EVERY_RELEASE
async def test_ids_larger_than_a_double_holds_stay_exact(profile: Profile) -> None:
    async with a_lab(profile, shard=9007) as lab:
        user = await lab.redeem(await lab.code())

    assert user.user_id == str(lab.canvas.population.number(3))
    assert int(user.user_id) > 2**53


@pytest.mark.parametrize("user_id", [90071992547409931, "90071992547409931"])
async def test_an_id_may_be_a_number_or_text(user_id: object) -> None:
    body = {"access_token": "new-access", "user": {"id": user_id, "name": None}, "expires_in": 3.5}

    async with a_lab_answering(200, body) as lab:
        user = await lab.redeem(A_CODE)

    assert (user.user_id, user.display_name) == ("90071992547409931", "90071992547409931")
    assert user.grant.secret == Secret({"access_token": "new-access"})
    assert user.grant.lifetime_seconds == 3.5


@EVERY_RELEASE
async def test_a_code_that_is_used_or_too_old_needs_a_new_sign_in(profile: Profile) -> None:
    async with a_lab(profile) as lab:
        used, old = await lab.code(), await lab.code()
        await lab.redeem(used)
        with pytest.raises(ReauthRequired, match="was used, or is too old"):
            await lab.redeem(used)
        lab.canvas.clock.advance(600)
        with pytest.raises(ReauthRequired, match="was used, or is too old"):
            await lab.redeem(old)

    assert lab.canvas.counts.grants == {"authorization_code": 1}


@pytest.mark.parametrize("profile", [OSS_2024, HOSTED_NOW])
async def test_another_verifier_than_the_challenge_was_made_of_is_refused(profile: Profile) -> None:
    async with a_lab(profile) as lab:
        with pytest.raises(ReauthRequired):
            await lab.redeem(await lab.code(verifier="another"))

    assert lab.canvas.counts.grants == {}


@EVERY_RELEASE
@pytest.mark.parametrize("changed", [{"client_secret": "wrong"}, {"client_id": "unknown"}])
async def test_a_wrong_developer_key_is_named_as_such(
    profile: Profile, changed: dict[str, str]
) -> None:
    async with a_lab(profile) as lab:
        code = await lab.code()
        with pytest.raises(ProviderAuthFailed, match="does not know the developer key") as caught:
            await lab.redeem(code, {**CONFIDENTIAL, **changed})

    assert not isinstance(caught.value, ReauthRequired)
    assert lab.canvas.counts.grants == {}


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("invalid_request", "add it to the redirect URIs"),
        ("unauthorized_client", "switch it on"),
        ("invalid_scope", "option scopes"),
    ],
)
@pytest.mark.parametrize("as_redirect", [True, False])
async def test_what_is_wrong_with_the_developer_key_is_said(
    error: str, message: str, *, as_redirect: bool
) -> None:
    location = f"{CALLBACK}?error={error}&error_description=secret+thing#there"
    lab_of = (
        a_lab_answering(302, "", location=location)
        if as_redirect
        else a_lab_answering(400, {"error": error, "error_description": "secret thing"})
    )

    async with lab_of as lab:
        with pytest.raises(ProviderAuthFailed, match=message) as caught:
            await lab.redeem(A_CODE)

    assert "secret thing" not in caught.value.message


async def test_an_answer_without_a_user_is_ended_and_refused() -> None:
    async with a_lab_answering(200, {"access_token": "new-access"}) as lab:
        with pytest.raises(ProviderBadResponse, match="did not say who"):
            await lab.redeem(A_CODE)

    seen = lab.seen
    assert [(request.method, request.url.path) for request in seen] == [TOKEN, END]
    assert seen[1].headers["authorization"] == "Bearer new-access"


async def test_a_grant_without_a_token_is_no_grant() -> None:
    async with a_lab(scopes="/auth/userinfo") as lab:
        credentials = {"client_id": SCOPED_CLIENT_ID, "client_secret": "scoped-secret"}
        with pytest.raises(ProviderUnavailable, match="try again in some seconds") as caught:
            await lab.redeem(await lab.code(credentials), credentials)

    assert caught.value.retry_after_seconds == 5


# ---- what goes wrong on the way


FAILURES = pytest.mark.parametrize(
    ("fault", "error"),
    [
        ({"kind": "status", "status": 500}, ProviderUnavailable),
        ({"kind": "status", "status": 503}, ProviderUnavailable),
        ({"kind": "drop", "seconds": 2.0}, ProviderTimeout),
        ({"kind": "html"}, ProviderBadResponse),
        ({"kind": "login"}, ProviderBadResponse),
    ],
    ids=["500", "503", "no-answer", "html", "redirect-to-login"],
)


@FAILURES
async def test_a_failing_provider_costs_no_user_a_sign_in(
    fault: dict[str, Any], error: type[ProviderError]
) -> None:
    async with a_lab() as lab:
        grant, code = await lab.granted(), await lab.code()
        lab.canvas.reset()
        lab.canvas.fail(path="/login/oauth2/token", count=2, **fault)
        with pytest.raises(error) as redeeming:
            await lab.redeem(code)
        with pytest.raises(error) as renewing:
            await lab.renew(grant)
        calls = lab.canvas.counts.calls[TOKEN]
        user = await lab.redeem(code)

    assert not isinstance(redeeming.value, ProviderAuthFailed)
    assert not isinstance(renewing.value, ProviderAuthFailed)
    assert user.user_id == "3"
    assert calls <= 2


async def test_a_provider_that_cannot_be_reached_is_unavailable() -> None:
    async with a_lab() as lab:
        code, grant = await lab.code(), await lab.granted()
    policy = AddressPolicy(allowed_networks=LOCAL_NETWORKS)
    async with ProviderHttp.open(lab.http.base_url, provider_id="1", policy=policy) as http:
        gone = Lab(lab.canvas, http)
        with pytest.raises(ProviderUnavailable):
            await gone.redeem(code)
        with pytest.raises(ProviderUnavailable):
            await gone.renew(grant)


@pytest.mark.parametrize(
    ("status", "body"),
    [(400, {"errors": "no such thing"}), (400, {"error": 7}), (403, "<h1>Go away</h1>")],
)
async def test_a_refusal_nobody_can_read_is_a_bad_answer(status: int, body: object) -> None:
    async with a_lab_answering(status, body) as lab:
        with pytest.raises(ProviderBadResponse, match=f"answered with no token .status {status}"):
            await lab.redeem(A_CODE)
        with pytest.raises(ProviderBadResponse, match=f"answered with no token .status {status}"):
            await lab.renew(A_GRANT)


# ---- renewing


@EVERY_RELEASE
async def test_a_renewal_ends_the_old_access_token_and_keeps_the_refresh_token(
    profile: Profile,
) -> None:
    async with a_lab(profile) as lab:
        grant = await lab.granted()
        lab.canvas.clock.advance(60)
        lab.canvas.reset()
        new = await lab.renew(grant)
        old_status = await lab.status_of(grant.secret)
        new_status = await lab.status_of(new.secret)

    old_values, values = grant.secret.reveal(), new.secret.reveal()
    assert values["refresh_token"] == old_values["refresh_token"]
    assert values["access_token"] != old_values["access_token"]
    assert (new.lifetime_seconds, new.consumes_predecessor) == (3600, False)
    assert (old_status, new_status) == (401, 200)
    assert lab.canvas.counts.calls[TOKEN] == 1


async def test_a_public_clients_renewal_uses_the_refresh_token_up() -> None:
    async with a_lab() as lab:
        grant = await lab.granted(PUBLIC)
        new = await lab.renew(grant, PUBLIC)
        with pytest.raises(ReauthRequired):
            await lab.renew(grant, PUBLIC)
        newest = await lab.renew(Grant(version=2, secret=new.secret), PUBLIC)

    refresh_tokens = [each.secret.reveal()["refresh_token"] for each in (grant, new, newest)]
    assert len(set(refresh_tokens)) == 3
    assert (new.consumes_predecessor, newest.consumes_predecessor) == (True, True)


@EVERY_RELEASE
async def test_a_revoked_grant_needs_a_new_sign_in(profile: Profile) -> None:
    async with a_lab(profile) as lab:
        grant = await lab.granted()
        lab.canvas.revoke_user(3)
        with pytest.raises(ReauthRequired, match="does not renew this user's"):
            await lab.renew(grant)


@EVERY_RELEASE
async def test_a_wrong_developer_key_costs_no_user_a_sign_in(profile: Profile) -> None:
    async with a_lab(profile) as lab:
        grant = await lab.granted()
        lab.canvas.clock.advance(60)
        with pytest.raises(ProviderForbidden, match="does not know the developer key"):
            await lab.renew(grant, {**CONFIDENTIAL, "client_secret": "wrong"})
        renewed = await lab.renew(grant)

    assert renewed.secret.reveal()["access_token"] in lab.canvas.tokens


async def test_a_second_renewal_within_seconds_is_to_be_tried_later() -> None:
    async with a_lab(OSS_2024) as lab:
        grant = await lab.granted()
        with pytest.raises(ProviderUnavailable, match="try again in some seconds") as caught:
            await lab.renew(grant)
        status = await lab.status_of(grant.secret)
        lab.canvas.clock.advance(5)
        renewed = await lab.renew(grant)

    assert caught.value.retry_after_seconds == 5
    assert status == 200
    assert renewed.secret.reveal()["access_token"] in lab.canvas.tokens


async def test_only_a_grant_with_a_refresh_token_can_be_renewed() -> None:
    bare = Grant(version=1, secret=Secret({"access_token": "a"}))

    async with a_lab_answering(200, {}) as lab:
        with pytest.raises(ReauthRequired):
            await lab.renew(bare)

    assert (oauth.can_renew(A_GRANT), oauth.can_renew(bare)) == (True, False)
    assert lab.seen == []


# ---- the rate of grants


@EVERY_RELEASE
async def test_a_renewal_refused_for_its_rate_can_be_done_later(profile: Profile) -> None:
    async with a_lab(profile) as lab:
        grant = await lab.granted()
        lab.canvas.clock.advance(60)
        lab.canvas.fail("throttled", path="/login/oauth2/token")
        with pytest.raises(ProviderRateLimited) as caught:
            await lab.renew(grant)
        wait_seconds = lab.wait_seconds
        renewed = await lab.renew(grant)

    assert caught.value.retry_after_seconds == 2
    assert wait_seconds > 0
    assert renewed.secret.reveal()["access_token"] in lab.canvas.tokens


async def test_a_throttled_provider_may_say_for_how_long() -> None:
    async with a_lab(replace(HOSTED_NOW, retry_after=True)) as lab:
        grant = await lab.granted()
        lab.canvas.fail("throttled", path="/login/oauth2/token")
        with pytest.raises(ProviderRateLimited) as caught:
            await lab.renew(grant)

    assert caught.value.retry_after_seconds == 5


async def test_every_exchange_tells_the_line_how_much_room_is_left() -> None:
    async with a_lab() as lab:
        waits = [lab.wait_seconds]
        grant = await lab.granted()
        await lab.renew(grant)
        waits.append(lab.wait_seconds)
        await lab.renew(grant)
        waits.append(lab.wait_seconds)

    assert waits[:2] == [0.0, 0.0]
    assert 4 < waits[2] < 6


@EVERY_RELEASE
def test_many_users_at_once_stand_in_line_and_nobody_is_refused(profile: Profile) -> None:
    async def story() -> tuple[Canvas, float]:
        loop = asyncio.get_running_loop()
        canvas = Canvas(profile=profile, clock=VirtualClock(follows=loop.time))
        async with in_memory(canvas) as lab:
            codes = [await lab.code() for _ in range(8)]
            users = await asyncio.gather(
                *(lab.redeem(code, patience_seconds=600) for code in codes)
            )
        assert [user.user_id for user in users] == ["3"] * 8
        return canvas, loop.time()

    canvas, seconds = run_virtually(story())

    assert canvas.counts.throttled == 0
    assert canvas.counts.grants == {"authorization_code": 8}
    assert seconds < 8 * 25


@EVERY_RELEASE
def test_an_exchange_refused_for_its_rate_is_sent_again(profile: Profile) -> None:
    async def story() -> tuple[Canvas, str]:
        canvas = Canvas(profile=profile, clock=VirtualClock())
        async with in_memory(canvas) as lab:
            code = await lab.code()
            canvas.fail("throttled", path="/login/oauth2/token", count=3)
            user = await lab.redeem(code)
        return canvas, user.user_id

    canvas, user_id = run_virtually(story())

    assert user_id == "3"
    assert canvas.counts.calls[TOKEN] == 4


@EVERY_RELEASE
def test_a_user_does_not_stand_in_line_for_ever(profile: Profile) -> None:
    async def story() -> tuple[int | None, float, str]:
        canvas = Canvas(profile=profile, clock=VirtualClock())
        async with in_memory(canvas) as lab:
            code = await lab.code()
            canvas.fail("throttled", path="/login/oauth2/token", count=100)
            with pytest.raises(ProviderRateLimited) as caught:
                await lab.redeem(code)
            seconds = asyncio.get_running_loop().time()
            canvas.reset()
            user = await lab.redeem(code, patience_seconds=600)
        return caught.value.retry_after_seconds, seconds, user.user_id

    retry_after, seconds, user_id = run_virtually(story())

    assert retry_after is not None
    assert retry_after > 0
    assert seconds <= 30
    assert user_id == "3"


@contextlib.asynccontextmanager
async def in_memory(canvas: Canvas) -> AsyncIterator[Lab]:
    """Lend HTTP to a simulator without a socket, for stories in virtual time."""
    async with ProviderHttp.open(
        "http://127.0.0.1:3000",
        provider_id="1",
        policy=AddressPolicy(allowed_networks=LOCAL_NETWORKS),
        transport=httpx.ASGITransport(app=app_for(canvas)),
    ) as http:
        yield Lab(canvas, http)


# ---- ending


async def test_an_ended_grant_can_neither_be_used_nor_renewed() -> None:
    async with a_lab() as lab:
        grant = await lab.granted()
        lab.canvas.reset()
        await oauth.revoke(lab.http, NewGrant(secret=grant.secret))
        status = await lab.status_of(grant.secret)
        with pytest.raises(ReauthRequired):
            await lab.renew(grant)

    assert status == 401
    assert lab.canvas.counts.calls[END] == 1


@FAILURES
async def test_an_end_that_fails_is_of_no_consequence(
    fault: dict[str, Any], error: type[ProviderError]
) -> None:
    async with a_lab() as lab:
        grant = await lab.granted()
        lab.canvas.fail(path="/login/oauth2/token", **fault)
        await oauth.revoke(lab.http, NewGrant(secret=grant.secret))
        await oauth.revoke(lab.http, NewGrant(secret=Secret({"access_token": "unknown"})))

    assert lab.canvas.counts.calls[END] >= 1


@EVERY_RELEASE
async def test_no_error_quotes_a_secret(profile: Profile) -> None:
    errors: list[ProviderError] = []
    async with a_lab(profile) as lab:
        code, grant = await lab.code(), await lab.granted()
        for kind in ("html", "login"):
            lab.canvas.fail(kind, path="/login/oauth2/token")
            with contextlib.suppress(ProviderError):
                await lab.renew(grant)
        for attempt in (
            lab.redeem(code, {**CONFIDENTIAL, "client_secret": "another-secret"}),
            lab.renew(grant, {**CONFIDENTIAL, "client_secret": "another-secret"}),
            lab.redeem(A_CODE),
            lab.renew(A_GRANT),
        ):
            with pytest.raises(ProviderError) as caught:
                await attempt
            errors.append(caught.value)

    secrets = [code.code.reveal(), VERIFIER, CLIENT_SECRET, "another-secret", "old-refresh"]
    secrets += grant.secret.reveal().values()
    assert len(errors) == 4
    assert not [s for error in errors for s in secrets if s in repr(error) or s in error.message]
