import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from running_gateway import (
    ADMIN,
    TOKEN,
    Product,
    RunningGateway,
    logins,
    problem_of,
    running_gateway,
    running_product,
    running_stranger,
)
from starlette.requests import Request
from starlette.responses import (
    HTMLResponse,
    JSONResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)

from resolvers.callback import CallbackTerms, open_callback, sign
from simulators.canvas.app import running as running_canvas
from simulators.canvas.population import build_population as build_canvas
from simulators.canvas.state import ADMIN_TOKEN, CLIENT_ID, CLIENT_SECRET, Canvas
from simulators.kolibri.app import running
from simulators.kolibri.population import PASSWORD, build_population
from simulators.kolibri.state import Kolibri
from storage.callbacks import CallbackStore
from storage.credentials import KeyRing, Secret
from storage.database import Database
from storage.leases import LeaseStore
from storage.providers import ProviderStore

KEYLESS = {"Authorization": ""}
STATUS = '{ provider(providerId: "1") { state sessions { state version problem } } }'
UPDATE = """
mutation ($password: String!) {
  updateProvider(input: {providerId: "1", credentials: {password: $password}}) {
    ... on ProviderPayload { provider { providerId state } }
    ... on ProviderRefused { code message field }
  }
}
"""


@pytest.fixture
def kolibri() -> Kolibri:
    return Kolibri(build_population())


@pytest.fixture
async def kolibri_url(kolibri: Kolibri) -> AsyncIterator[str]:
    async with running(kolibri) as url:
        yield url


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[RunningGateway]:
    async with running_gateway(tmp_path) as running_one:
        yield running_one


@pytest.fixture
async def product() -> AsyncIterator[Product]:
    async with running_product() as running_one:
        yield running_one


def details(url: str, **more: Any) -> dict[str, Any]:
    """Return what the existing client posts: every field, the unused ones empty."""
    return {
        "id": "1",
        "type": "kolibri",
        "account_id": "",
        "url": url,
        "api_key": "",
        "username": ADMIN,
        "password": PASSWORD,
        **more,
    }


async def stored(gateway: RunningGateway) -> list[str]:
    return [provider.id for provider in await gateway.parts.providers.list_all()]


# Adding.


async def test_a_provider_is_checked_stored_and_used_with_one_login(
    gateway: RunningGateway, kolibri: Kolibri, kolibri_url: str
) -> None:
    answer = await gateway.add_provider(**details(kolibri_url, id=1))
    users = await gateway.users()

    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["id"], body["type"], body["url"]) == ("1", "kolibri", kolibri_url)
    assert (body["state"], body["version"], body["problem"]) == ("ACTIVE", "0.19.5", None)
    assert users.status_code == 200
    assert len(users.json()) > 10
    assert logins(kolibri) == 1


async def test_the_same_details_again_are_answered_alike(
    gateway: RunningGateway, kolibri_url: str
) -> None:
    first = await gateway.add_provider(**details(kolibri_url))
    second = await gateway.add_provider(**details(kolibri_url))

    assert (first.status_code, second.status_code) == (200, 200)
    assert first.json() == second.json()
    assert await stored(gateway) == ["1"]


async def test_credentials_are_in_no_answer_and_not_legible_in_the_database(
    gateway: RunningGateway, kolibri_url: str, tmp_path: Path
) -> None:
    added = await gateway.add_provider(**details(kolibri_url))
    asked = await gateway.graphql("{ providers { providerId name baseUrl state problem } }")

    files = [path.read_bytes() for path in (tmp_path / "data").glob("gateway.db*")]
    assert files
    assert all(PASSWORD.encode() not in content for content in files)
    assert PASSWORD not in added.text + str(asked)


@pytest.mark.parametrize(
    ("change", "status", "code", "field", "words"),
    [
        ({"password": "wrong"}, 422, "REAUTH_REQUIRED", None, "password"),
        ({"username": "nobody-here"}, 422, "REAUTH_REQUIRED", None, "user"),
        ({"username": "", "password": ""}, 422, "BAD_INPUT", "username", "Username"),
        ({"account_id": "0" * 32}, 422, "REAUTH_REQUIRED", None, "no facility"),
        ({"username": "learner02"}, 422, "PROVIDER_FORBIDDEN", None, "facility admin"),
        ({"type": "moodle"}, 422, "BAD_INPUT", "type", "'moodle' is not one of canvas, kolibri"),
        ({"type": "canvas_oss"}, 422, "BAD_INPUT", "password", "Canvas does not know it"),
        ({"url": "ftp://kolibri.example"}, 422, "BAD_INPUT", "url", "http:// or https://"),
        ({"url": "http://user:pass@kolibri.example"}, 422, "BAD_INPUT", "url", "credentials"),
        ({"url": "http://169.254.169.254/"}, 422, "BAD_INPUT", "url", "link-local"),
        ({"url": "http://[::ffff:169.254.169.254]/"}, 422, "BAD_INPUT", "url", "link-local"),
        ({"url": "http://metadata.google.internal/"}, 422, "BAD_INPUT", "url", "metadata"),
        ({"url": "http://127.0.0.1:1/"}, 422, "PROVIDER_UNAVAILABLE", None, "127.0.0.1:1"),
        ({"id": "a b"}, 422, "BAD_INPUT", "id", "letters, digits"),
        ({"id": ""}, 400, "BAD_INPUT", None, "id: "),
        ({"id": None}, 400, "BAD_INPUT", None, "id: "),
        ({"id": {"a": 1}}, 400, "BAD_INPUT", None, "id: "),
        ({"url": ["x"]}, 400, "BAD_INPUT", None, "url: "),
        ({"colour": "red"}, 400, "BAD_INPUT", None, "colour: There is no such field"),
        ({"options": {"speed": "9"}}, 422, "BAD_INPUT", "options", "'speed' is not one"),
        ({"options": [1]}, 400, "BAD_INPUT", None, "options: "),
    ],
)
async def test_what_is_wrong_is_said_and_nothing_is_stored(
    gateway: RunningGateway,
    kolibri_url: str,
    change: Mapping[str, Any],
    status: int,
    code: str,
    field: str | None,
    words: str,
) -> None:
    answer = await gateway.add_provider(**{**details(kolibri_url), **change})

    assert problem_of(answer) == (status, code)
    assert answer.json().get("field") == field
    assert words in answer.json()["detail"]
    assert PASSWORD not in answer.text
    assert await stored(gateway) == []


async def test_a_developer_key_comes_beside_the_token(gateway: RunningGateway) -> None:
    canvas = Canvas(build_canvas())

    async with running_canvas(canvas) as url:
        given = {"id": 2, "type": "canvas_oss", "url": url, "api_key": ADMIN_TOKEN}
        added = await gateway.add_provider(
            **given, client_id=int(CLIENT_ID), client_secret=CLIENT_SECRET
        )
        stored_ones = await gateway.parts.providers.credentials("2")
        astray = await gateway.add_provider(**{**given, "id": 3, "client_id": ["x"]})

    assert added.status_code == 200, added.text
    assert (added.json()["type"], CLIENT_SECRET in added.text) == ("canvas", False)
    assert stored_ones.reveal() == {
        "api_key": ADMIN_TOKEN, "client_id": CLIENT_ID, "client_secret": CLIENT_SECRET,
    }  # fmt: skip
    assert problem_of(astray) == (400, "BAD_INPUT")
    assert await stored(gateway) == ["2"]


async def test_a_refused_change_leaves_the_provider_as_it_was(
    gateway: RunningGateway, kolibri: Kolibri, kolibri_url: str
) -> None:
    await gateway.add_kolibri(kolibri_url)
    before = await gateway.parts.providers.get("1")

    refused = await gateway.add_provider(**details(kolibri_url, password="wrong"))
    users = await gateway.users()

    assert refused.status_code == 422
    assert await gateway.parts.providers.get("1") == before
    assert users.status_code == 200
    assert logins(kolibri) == 2  # the first registration, and the refused attempt


async def _html(_request: Request) -> Response:
    return HTMLResponse("<html><title>Router</title></html>")


async def _redirect(_request: Request) -> Response:
    return RedirectResponse("http://127.0.0.1:9/elsewhere?secret=1")


async def _other_json(_request: Request) -> Response:
    return JSONResponse({"application": "moodle", "kolibri_version": "9"})


async def _endless(_request: Request) -> Response:
    async def parts() -> AsyncIterator[bytes]:
        piece = b" " * 1_048_576
        for _ in range(2048):
            yield piece

    return StreamingResponse(parts(), media_type="application/json")


@pytest.mark.parametrize(
    ("stranger", "words"),
    [
        (_html, "HTML, not JSON"),
        (_redirect, "redirect"),
        (_other_json, "No Kolibri answers"),
        (_endless, "more than 33554432 bytes"),
    ],
)
async def test_something_that_is_no_kolibri_is_refused_with_what_it_did(
    gateway: RunningGateway, stranger: Any, words: str
) -> None:
    async with running_stranger(stranger) as url:
        answer = await gateway.add_provider(**details(url))

    assert problem_of(answer) == (422, "PROVIDER_BAD_RESPONSE")
    assert words in answer.json()["detail"]
    assert "secret=1" not in answer.text
    assert await stored(gateway) == []


async def test_something_that_never_answers_is_refused_in_time(gateway: RunningGateway) -> None:
    async def never(_request: Request) -> Response:
        await asyncio.sleep(60)
        return Response()

    async with running_stranger(never) as url:
        answer = await gateway.add_provider(**details(url))

    assert problem_of(answer) == (422, "PROVIDER_TIMEOUT")
    assert answer.json()["retryable"] is True
    assert await stored(gateway) == []


async def test_a_registration_needs_the_scope_for_it(
    gateway: RunningGateway, kolibri_url: str
) -> None:
    reader = await gateway.key("read:users")
    elsewhere = await gateway.key("write:providers", "provider:2")

    keyless = await gateway.add_provider(**details(kolibri_url), headers=KEYLESS)
    reading = await gateway.add_provider(**details(kolibri_url), headers=reader)
    other = await gateway.add_provider(**details(kolibri_url), headers=elsewhere)

    assert problem_of(keyless) == (401, "UNAUTHENTICATED")
    assert problem_of(reading) == (403, "FORBIDDEN")
    assert problem_of(other) == (403, "FORBIDDEN")
    assert await stored(gateway) == []


async def test_a_large_body_is_refused_unread(gateway: RunningGateway) -> None:
    answer = await gateway.client.post("/api/add-provider", content=b"x" * 70_000)

    assert answer.json()["code"] == "REQUEST_LIMIT_EXCEEDED"


async def test_only_the_operators_own_addresses_are_registered_when_they_are_named(
    tmp_path: Path, kolibri_url: str
) -> None:
    allowed = f"{kolibri_url},https://learn.example.org/kolibri"
    async with running_gateway(tmp_path, allowed_provider_urls=allowed) as gateway:
        good = await gateway.add_provider(**details(kolibri_url))
        near = await gateway.add_provider(**details(f"{kolibri_url}0", id="2"))
        elsewhere = await gateway.add_provider(**details("http://127.0.0.1:9", id="2"))

    assert good.status_code == 200
    assert [problem_of(answer) for answer in (near, elsewhere)] == [(422, "BAD_INPUT")] * 2
    assert "GATEWAY_ALLOWED_PROVIDER_URLS" in elsewhere.json()["detail"]


# New credentials.


async def test_a_changed_password_is_asked_for_at_once_and_the_new_one_cures(
    gateway: RunningGateway, kolibri: Kolibri, kolibri_url: str
) -> None:
    await gateway.add_kolibri(kolibri_url)
    kolibri.change_password(ADMIN, "another-Password-9")
    before = logins(kolibri)

    refused = await asyncio.gather(*(gateway.users() for _ in range(20)))
    attempts = logins(kolibri) - before
    (session,) = (await gateway.graphql(STATUS))["data"]["provider"]["sessions"]
    wrong = await gateway.graphql(UPDATE, password="still-wrong")
    cured = await gateway.graphql(UPDATE, password="another-Password-9")
    users = await gateway.users()

    assert {problem_of(answer) for answer in refused} == {(502, "REAUTH_REQUIRED")}
    assert attempts == 1
    assert session["state"] == "REAUTH_REQUIRED"
    assert wrong["data"]["updateProvider"]["code"] == "REAUTH_REQUIRED"
    assert cured["data"]["updateProvider"] == {"provider": {"providerId": "1", "state": "ACTIVE"}}
    assert users.status_code == 200


async def test_stored_credentials_are_not_sent_to_a_new_address(
    gateway: RunningGateway, kolibri_url: str
) -> None:
    received: list[bytes] = []

    async def catch(request: Request) -> Response:
        received.append(await request.body())
        return JSONResponse({})

    await gateway.add_kolibri(kolibri_url)
    async with running_stranger(catch) as url:
        answer = await gateway.graphql(
            """mutation ($url: String!) {
              updateProvider(input: {providerId: "1", baseUrl: $url}) {
                ... on ProviderRefused { code field message } } }""",
            url=url,
        )

    refused = answer["data"]["updateProvider"]
    assert (refused["code"], refused["field"]) == ("BAD_INPUT", "credentials.username")
    assert received == []
    assert (await gateway.users()).status_code == 200


async def test_a_disabled_provider_is_not_called_until_it_is_enabled(
    gateway: RunningGateway, kolibri: Kolibri, kolibri_url: str
) -> None:
    await gateway.add_kolibri(kolibri_url)
    switch = """mutation ($off: Boolean!) {
      updateProvider(input: {providerId: "1", disabled: $off}) {
        ... on ProviderPayload { provider { state } } } }"""

    off = await gateway.graphql(switch, off=True)
    calls = -1
    while calls != kolibri.counts.total():  # what was under way, ends
        calls = kolibri.counts.total()
        await asyncio.sleep(0.3)
    refused = await gateway.users()
    called = kolibri.counts.total() - calls
    on = await gateway.graphql(switch, off=False)
    users = await gateway.users()

    assert off["data"]["updateProvider"]["provider"]["state"] == "DISABLED"
    assert (refused.status_code, called) == (502, 0)
    assert on["data"]["updateProvider"]["provider"]["state"] == "ACTIVE"
    assert users.status_code == 200


async def test_a_removed_provider_leaves_nothing_and_its_session_is_ended(
    gateway: RunningGateway, kolibri: Kolibri, kolibri_url: str
) -> None:
    await gateway.add_kolibri(kolibri_url)
    await gateway.users()

    answer = await gateway.graphql(
        'mutation { removeProvider(providerId: "1") { ... on ProviderRemoved { providerId } } }'
    )

    assert answer["data"]["removeProvider"] == {"providerId": "1"}
    assert await stored(gateway) == []
    assert await gateway.parts.sessions.list_statuses() == []
    assert kolibri.sessions == {}
    assert problem_of(await gateway.users()) == (404, "PROVIDER_NOT_FOUND")


async def test_a_check_reports_and_leaves_the_session_in_use_alone(
    gateway: RunningGateway, kolibri_url: str
) -> None:
    await gateway.add_kolibri(kolibri_url)
    await gateway.users()
    version = (await gateway.graphql(STATUS))["data"]["provider"]["sessions"][0]["version"]

    answer = await gateway.graphql(
        """mutation { checkProvider(providerId: "1") {
             ... on ProviderChecked { version account missing }
             ... on ProviderRefused { code message } } }"""
    )

    after = (await gateway.graphql(STATUS))["data"]["provider"]["sessions"][0]
    assert answer["data"]["checkProvider"]["version"] == "0.19.5"
    assert answer["data"]["checkProvider"]["missing"] == []
    assert (after["state"], after["version"]) == ("ACTIVE", version)


CHANGE = """
mutation ($input: UpdateProviderInput!) {
  updateProvider(input: $input) {
    ... on ProviderPayload { provider { name state accountId baseUrl } }
    ... on ProviderRefused { code message field retryable }
  }
}
"""


async def changed(gateway: RunningGateway, **given: Any) -> dict[str, Any]:
    answer = await gateway.graphql(CHANGE, input={"providerId": "1", **given})
    result = answer["data"]["updateProvider"]
    assert isinstance(result, dict)
    return result


async def test_a_new_name_needs_no_provider_and_no_login(
    gateway: RunningGateway, kolibri: Kolibri, kolibri_url: str
) -> None:
    await gateway.add_kolibri(kolibri_url)
    before = logins(kolibri)

    result = await changed(gateway, name="  Riverside  ")
    users = await gateway.users()

    assert result["provider"]["name"] == "Riverside"
    assert users.status_code == 200
    assert logins(kolibri) == before


async def test_another_facility_is_checked_and_its_users_come(
    gateway: RunningGateway, kolibri: Kolibri, kolibri_url: str
) -> None:
    await gateway.add_kolibri(kolibri_url, username="root_user", password="black-Kite-42")
    second = kolibri.population.facilities[1].id

    result = await changed(gateway, accountId=second)
    rows = (await gateway.users()).json()

    assert result["provider"]["accountId"] == second
    assert {row["external_user_id"] for row in rows} == {
        account.id for account in kolibri.accounts() if account.facility_id == second
    }


@pytest.mark.parametrize(
    ("given", "code", "field"),
    [
        ({"expectedRevision": 7, "name": "x"}, "BAD_INPUT", "expectedRevision"),
        ({"expectedRevision": 0, "name": "x"}, "BAD_INPUT", "expectedRevision"),
        (
            {"expectedRevision": 7, "credentials": {"password": PASSWORD}},
            "BAD_INPUT",
            "expectedRevision",
        ),
        ({"name": "x" * 501}, "BAD_INPUT", "name"),
        ({"baseUrl": "file:///etc/passwd"}, "BAD_INPUT", "credentials.username"),
        ({"credentials": {"password": "y" * 501}}, "BAD_INPUT", "credentials.password"),
        ({"credentials": {"apiKey": "unasked"}}, "BAD_INPUT", "credentials.apiKey"),
        ({"options": [{"name": "speed", "value": "9"}]}, "BAD_INPUT", "options"),
        ({"accountId": "0" * 32}, "REAUTH_REQUIRED", None),
    ],
)
async def test_a_refused_update_changes_nothing(
    gateway: RunningGateway,
    kolibri_url: str,
    given: dict[str, Any],
    code: str,
    field: str | None,
) -> None:
    await gateway.add_kolibri(kolibri_url)
    before = await gateway.parts.providers.get("1")

    result = await changed(gateway, **given)

    assert (result["code"], result["field"]) == (code, field)
    assert await gateway.parts.providers.get("1") == before
    assert (await gateway.users()).status_code == 200


async def test_what_is_not_registered_cannot_be_changed_checked_revoked_or_removed(
    gateway: RunningGateway,
) -> None:
    answer = await gateway.graphql("""mutation {
      updateProvider(input: {providerId: "9", name: "x"}) { ... on ProviderRefused { code } }
      checkProvider(providerId: "9") { ... on ProviderRefused { code } }
      revokeSession(providerId: "9") { ... on ProviderRefused { code } }
      removeProvider(providerId: "9") { ... on ProviderRefused { code } }
    }""")

    assert answer["data"] == {
        name: {"code": "PROVIDER_NOT_FOUND"}
        for name in ("updateProvider", "checkProvider", "revokeSession", "removeProvider")
    }


async def test_a_revoked_session_ends_at_the_provider_and_the_next_request_logs_in(
    gateway: RunningGateway, kolibri: Kolibri, kolibri_url: str
) -> None:
    await gateway.add_kolibri(kolibri_url)
    await gateway.users()
    revoke = """mutation ($of: String!) { revokeSession(providerId: "1", subject: $of) {
      ... on SessionRevoked { subject } ... on ProviderRefused { code } } }"""

    nobody = await gateway.graphql(revoke, of="somebody-else")
    revoked = await gateway.graphql(revoke, of="service")
    sessions = len(kolibri.sessions)
    users = await gateway.users()

    assert nobody["data"]["revokeSession"] == {"code": "PROVIDER_NOT_FOUND"}
    assert revoked["data"]["revokeSession"] == {"subject": "service"}
    assert sessions == 0
    assert users.status_code == 200
    assert logins(kolibri) == 2


async def test_a_failed_check_is_noted_and_the_provider_stays(
    gateway: RunningGateway, kolibri: Kolibri, kolibri_url: str
) -> None:
    await gateway.add_kolibri(kolibri_url)
    kolibri.change_password(ADMIN, "another-Password-9")

    answer = await gateway.graphql(
        """mutation { checkProvider(providerId: "1") { ... on ProviderRefused { code } } }"""
    )
    noted = await gateway.parts.providers.get("1")

    assert answer["data"]["checkProvider"] == {"code": "REAUTH_REQUIRED"}
    assert noted is not None
    assert "password" in (noted.problem or "")
    assert noted.state.value == "ACTIVE"


async def test_an_account_that_lacks_a_permission_is_registered_with_the_consequence_named(
    gateway: RunningGateway, kolibri: Kolibri, kolibri_url: str
) -> None:
    coach = next(
        role.person
        for role in kolibri.population.roles
        if role.kind == "coach" and role.collection == "a"
    ).partition(":")[2]

    answer = await gateway.add_provider(**details(kolibri_url, username=coach))

    assert answer.status_code == 200
    assert "facility admin" in answer.json()["problem"]


# Unknown ids, asked of the product.


async def test_an_unknown_id_is_registered_by_callback_and_answered_in_the_same_request(
    tmp_path: Path, kolibri: Kolibri, kolibri_url: str, product: Product
) -> None:
    async with running_gateway(tmp_path, product_callback_url=product.url) as gateway:
        product.answer = registering(gateway, kolibri_url)

        answer = await gateway.users()

    assert answer.status_code == 200
    assert len(answer.json()) > 10
    assert [asked["id"] for asked in product.asked] == ["1"]
    assert logins(kolibri) == 1


async def test_the_details_may_come_before_the_callback_is_answered(
    tmp_path: Path, kolibri_url: str, product: Product
) -> None:
    async with running_gateway(tmp_path, product_callback_url=product.url) as gateway:

        async def register_first(asked: Mapping[str, str]) -> int:
            posted = await gateway.add_provider(
                **details(kolibri_url), headers={**KEYLESS, "X-Registration-Nonce": asked["nonce"]}
            )
            return posted.status_code

        product.answer = register_first

        answer = await gateway.users()

    assert answer.status_code == 200


async def test_a_hundred_simultaneous_requests_make_one_callback_and_one_login(
    tmp_path: Path, kolibri: Kolibri, kolibri_url: str, product: Product
) -> None:
    async with running_gateway(tmp_path, product_callback_url=product.url) as gateway:
        product.answer = registering(gateway, kolibri_url)

        query = '{ users(filter: {providerIds: ["1"]}) { totalCount } }'
        answers, counts = await asyncio.gather(
            asyncio.gather(*(gateway.users() for _ in range(60))),
            asyncio.gather(*(gateway.graphql(query) for _ in range(40))),
        )

    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1
    assert len({str(count) for count in counts}) == 1
    assert len(product.asked) == 1
    assert logins(kolibri) == 1


async def test_requests_at_two_gateways_of_one_database_make_one_callback(
    tmp_path: Path, kolibri: Kolibri, kolibri_url: str, product: Product
) -> None:
    async with (
        running_gateway(tmp_path, product_callback_url=product.url) as first,
        running_gateway(tmp_path, product_callback_url=product.url) as second,
    ):
        product.answer = registering(first, kolibri_url)

        answers = await asyncio.gather(*(one.users() for one in [first, second] * 20))

    assert {answer.status_code for answer in answers} == {200}
    assert len(product.asked) == 1
    assert logins(kolibri) == 1


async def test_a_product_that_does_not_know_the_id_ends_the_waiting_at_every_gateway(
    tmp_path: Path, product: Product
) -> None:
    async def no(_asked: Mapping[str, str]) -> int:
        await asyncio.sleep(0.3)
        return 404

    product.answer = no
    settings = {"product_callback_url": product.url, "callback_seconds": "30"}
    async with (
        running_gateway(tmp_path, **settings) as first,
        running_gateway(tmp_path, **settings) as second,
    ):
        async with asyncio.timeout(10):
            answers = await asyncio.gather(*(one.users() for one in [first, second] * 5))

    assert {answer.status_code for answer in answers} == {404}
    assert len(product.asked) == 1


async def test_a_caller_that_gives_up_does_not_spoil_it_for_the_others(
    tmp_path: Path, kolibri_url: str, product: Product
) -> None:
    async with running_gateway(tmp_path, product_callback_url=product.url) as gateway:
        product.answer = registering(gateway, kolibri_url, after_seconds=0.5)

        impatient = asyncio.create_task(gateway.users())
        patient = asyncio.create_task(gateway.users())
        async with asyncio.timeout(5):
            while not product.asked:  # noqa: ASYNC110 - the product is a pretend one
                await asyncio.sleep(0.01)
        impatient.cancel()

        assert (await patient).status_code == 200
    assert len(product.asked) == 1


async def test_not_registered_in_time_is_not_found_and_not_asked_again_at_once(
    tmp_path: Path, product: Product
) -> None:
    async with running_gateway(
        tmp_path, product_callback_url=product.url, callback_seconds="0.5"
    ) as gateway:
        started = time.monotonic()
        answers = await asyncio.gather(*(gateway.users() for _ in range(20)))
        seconds = time.monotonic() - started
        again = await gateway.users()

    assert {problem_of(answer) for answer in answers} == {(404, "PROVIDER_NOT_FOUND")}
    assert 0.4 < seconds < 10
    assert problem_of(again) == (404, "PROVIDER_NOT_FOUND")
    assert len(product.asked) == 1


async def test_a_product_that_does_not_know_the_id_is_not_waited_for(
    tmp_path: Path, product: Product
) -> None:
    async def unknown(_asked: Mapping[str, str]) -> int:
        return 404

    product.answer = unknown
    async with running_gateway(
        tmp_path, product_callback_url=product.url, callback_pause_seconds="0"
    ) as gateway:
        started = time.monotonic()
        first, second = await gateway.users(), await gateway.users()
        seconds = time.monotonic() - started

    assert [problem_of(answer)[0] for answer in (first, second)] == [404, 404]
    assert seconds < 2
    assert len(product.asked) == 2


async def test_a_product_that_is_down_is_not_waited_for(tmp_path: Path) -> None:
    async with running_gateway(
        tmp_path, product_callback_url="http://127.0.0.1:1/callback"
    ) as gateway:
        started = time.monotonic()
        answer = await gateway.users()

    assert problem_of(answer) == (404, "PROVIDER_NOT_FOUND")
    assert time.monotonic() - started < 2


async def test_details_that_do_not_work_end_the_waiting(
    tmp_path: Path, kolibri_url: str, product: Product
) -> None:
    async with running_gateway(tmp_path, product_callback_url=product.url) as gateway:
        product.answer = registering(gateway, kolibri_url, password="wrong")
        started = time.monotonic()

        answer = await gateway.users()

        assert problem_of(answer) == (404, "PROVIDER_NOT_FOUND")
        assert time.monotonic() - started < 5
        assert await stored(gateway) == []


async def test_details_in_the_answer_to_the_callback_count_for_nothing(
    tmp_path: Path, kolibri: Kolibri, kolibri_url: str
) -> None:
    async def tell(_request: Request) -> Response:
        return JSONResponse(details(kolibri_url))

    async with (
        running_stranger(tell) as product_url,
        running_gateway(
            tmp_path, product_callback_url=product_url, callback_seconds="0.3"
        ) as gateway,
    ):
        answer = await gateway.users()

    assert problem_of(answer) == (404, "PROVIDER_NOT_FOUND")
    assert logins(kolibri) == 0


async def test_a_nonce_registers_its_own_id_once_and_nothing_else(
    tmp_path: Path, kolibri: Kolibri, kolibri_url: str, product: Product
) -> None:
    async with running_gateway(
        tmp_path, product_callback_url=product.url, callback_seconds="0.2"
    ) as gateway:
        await gateway.users("1")
        await gateway.users("2")
        first, second = (asked["nonce"] for asked in product.asked)

        async def post(nonce: str, **more: Any) -> int:
            answer = await gateway.add_provider(
                **{**details(kolibri_url), **more},
                headers={**KEYLESS, "X-Registration-Nonce": nonce},
            )
            return answer.status_code

        forged = await post("x" * 22)
        foreign = await post(second)
        good = await post(first)
        replayed = await post(first)
        rewritten = await post(second, id="1", url="http://127.0.0.1:9")
        with_key = await gateway.add_provider(
            **details(kolibri_url), headers={"X-Registration-Nonce": first}
        )

        assert (forged, foreign, good, replayed, rewritten) == (403, 403, 200, 403, 403)
        assert problem_of(with_key) == (403, "FORBIDDEN")
        assert await stored(gateway) == ["1"]
        assert first != second
        assert logins(kolibri) == 1


async def test_a_late_nonce_is_refused(
    tmp_path: Path, kolibri: Kolibri, kolibri_url: str, product: Product
) -> None:
    async with running_gateway(
        tmp_path, product_callback_url=product.url, callback_seconds="0.2", nonce_seconds="0.4"
    ) as gateway:
        await gateway.users()
        await asyncio.sleep(0.5)

        answer = await gateway.add_provider(
            **details(kolibri_url),
            headers={**KEYLESS, "X-Registration-Nonce": product.asked[0]["nonce"]},
        )

        assert problem_of(answer) == (403, "FORBIDDEN")
        assert await stored(gateway) == []
        assert logins(kolibri) == 0


async def test_a_nonce_outlives_the_waiting_so_that_a_slow_product_is_in_time_for_the_next(
    tmp_path: Path, kolibri_url: str, product: Product
) -> None:
    async with running_gateway(
        tmp_path, product_callback_url=product.url, callback_seconds="0.2"
    ) as gateway:
        early = await gateway.users()
        posted = await gateway.add_provider(
            **details(kolibri_url),
            headers={**KEYLESS, "X-Registration-Nonce": product.asked[0]["nonce"]},
        )
        later = await gateway.users()

    assert (early.status_code, posted.status_code, later.status_code) == (404, 200, 200)


async def test_a_nonce_may_be_in_the_body(
    tmp_path: Path, kolibri_url: str, product: Product
) -> None:
    async with running_gateway(
        tmp_path, product_callback_url=product.url, callback_seconds="0.2"
    ) as gateway:
        await gateway.users()

        answer = await gateway.add_provider(
            **details(kolibri_url, nonce=product.asked[0]["nonce"]), headers=KEYLESS
        )

    assert answer.status_code == 200


async def test_with_a_registration_secret_only_signed_registrations_count(
    tmp_path: Path, kolibri_url: str, product: Product
) -> None:
    secret = "shared-with-the-product-only"
    async with running_gateway(
        tmp_path,
        product_callback_url=product.url,
        callback_seconds="0.2",
        registration_secret=secret,
    ) as gateway:
        await gateway.users()
        nonce = product.asked[0]["nonce"]
        request = gateway.client.build_request(
            "POST", "/api/add-provider", json=details(kolibri_url)
        )

        async def post(signature: str | None) -> int:
            headers = {**KEYLESS, "X-Registration-Nonce": nonce, "Content-Type": "application/json"}
            if signature is not None:
                headers["X-Registration-Signature"] = signature
            answer = await gateway.client.post(
                "/api/add-provider", content=request.content, headers=headers
            )
            return answer.status_code

        now = int(time.time())

        def signature(key: str, *, body: bytes = request.content, at: int = now) -> str:
            return sign(Secret(key), nonce=nonce, body=body, at=at)

        refused = [
            await post(None),
            await post("t=1,v1=abc"),
            await post(signature("another-secret-of-somebody")),
            await post(signature(secret, body=b"{}")),
            await post(signature(secret, at=now - 3600)),
        ]
        good = await post(signature(secret))

    assert refused == [403] * 5
    assert good == 200


async def test_a_key_that_may_not_see_the_id_causes_no_callback(
    tmp_path: Path, product: Product
) -> None:
    async with running_gateway(
        tmp_path, product_callback_url=product.url, callback_seconds="0.2"
    ) as gateway:
        headers = await gateway.key("read:users", "provider:7")

        unseen = await gateway.get("/api/users?id=1", headers=headers)
        seen = await gateway.get("/api/users?id=7", headers=headers)

    assert (unseen.status_code, seen.status_code) == (404, 404)
    assert [asked["id"] for asked in product.asked] == ["7"]


def registering(
    gateway: RunningGateway, kolibri_url: str, *, after_seconds: float = 0.05, **more: Any
) -> Any:
    """Return what a product does that answers the callback and posts the details after it."""
    posting: set[asyncio.Task[Any]] = set()

    async def post(asked: Mapping[str, str]) -> None:
        await asyncio.sleep(after_seconds)
        headers = {"Authorization": f"Bearer {TOKEN}", "X-Registration-Nonce": asked["nonce"]}
        # Not the callers' client, whose connections may all be waiting for this.
        async with httpx.AsyncClient(base_url=gateway.url, headers=headers, timeout=30) as client:
            await client.post(
                "/api/add-provider", json=details(kolibri_url, id=asked["id"], **more)
            )

    async def answer(asked: Mapping[str, str]) -> int:
        task = asyncio.create_task(post(asked))
        posting.add(task)
        task.add_done_callback(posting.discard)
        return 202

    return answer


async def test_closing_ends_the_waiting(
    sqlite_database: Database, key_ring: KeyRing, product: Product
) -> None:
    providers = ProviderStore(sqlite_database, key_ring)
    async with open_callback(
        product.url,
        callbacks=CallbackStore(sqlite_database),
        leases=LeaseStore(sqlite_database, key_ring, owner="one"),
        providers=providers,
        terms=TERMS,
    ) as callback:
        waiting = asyncio.create_task(callback.find("1"))
        async with asyncio.timeout(5):
            while not product.asked:  # noqa: ASYNC110 - the product is a pretend one
                await asyncio.sleep(0.01)

        await callback.aclose()

        with pytest.raises(asyncio.CancelledError):
            await waiting


async def test_ids_asked_for_in_vain_are_remembered_up_to_a_limit(
    sqlite_database: Database, key_ring: KeyRing
) -> None:
    providers = ProviderStore(sqlite_database, key_ring)
    async with open_callback(
        "http://127.0.0.1:1/",
        callbacks=CallbackStore(sqlite_database),
        leases=LeaseStore(sqlite_database, key_ring, owner="one"),
        providers=providers,
        terms=TERMS,
    ) as callback:
        callback._unknown_until = {f"id{number}": 0.0 for number in range(10_000)}

        assert await callback.find("1") is None

        assert list(callback._unknown_until) == ["1"]


TERMS = CallbackTerms(patience_seconds=60, pause_seconds=5, nonce_seconds=60, secret=None)
