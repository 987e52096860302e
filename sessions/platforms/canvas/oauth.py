"""Canvas as an OAuth server: a user's consent, the grant that comes of it, renewal, revocation.

A confidential client (with a secret) keeps its refresh token for ever; a public one gets another
with every renewal. Either way a renewal ends the access token before it, so it is never done twice
at once. A successful exchange costs 200 units of the bucket of the gateway's own address, far more
than any other call: exchanges stand in line, and one that was refused for its rate says nothing
about the user's consent.

Source:
    https://canvas.instructure.com/doc/api/file.oauth.html
    https://canvas.instructure.com/doc/api/file.oauth_endpoints.html
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus
from math import ceil
from typing import Final, NoReturn
from urllib.parse import parse_qsl, urlencode

import msgspec

from sessions.base import AuthorizedUser, Code, CodeRequest, Grant, NewGrant
from sessions.errors import (
    NotSupported,
    ProviderAuthFailed,
    ProviderBadResponse,
    ProviderError,
    ProviderForbidden,
    ProviderRateLimited,
    ProviderUnavailable,
    ReauthRequired,
)
from sessions.http import ParamValue, ProviderHttp, Response
from sessions.pacing import GRANTS, Bucket
from sessions.platforms.canvas.wire import ACCESS_TOKEN, api_root, is_throttled, retry_after
from storage.credentials import Secret
from storage.records import Provider

GRANT_BUCKET: Final = Bucket(capacity=600, leak_per_second=10, reserve=50, cost=200, concurrency=4)
"""How Canvas limits grants, by the defaults of its source: three at once, then one every 20 s."""

REFRESH_TOKEN: Final = "refresh_token"  # noqa: S105 - a name in the grant, not a token
"""Name under which a grant holds what its successor is made from."""

SCOPES: Final = "scopes"
"""Option: the scopes to ask users for, separated by spaces; all the client may, when left out."""

_AUTHORIZE_PATH: Final = "/login/oauth2/auth"
_TOKEN_PATH: Final = "/login/oauth2/token"  # noqa: S105 - a path
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_ANSWERS: Final = _REDIRECTS | {400, 401, 403, 429}
_MAX_QUERY: Final = 7900  # Canvas refuses requests whose head is over 8000
_CALL_SECONDS: Final = 15.0
_GUARD_SECONDS: Final = 5
_SET_UP_PROBLEMS: Final = {
    "invalid_client": "Canvas does not know the developer key, or its secret is another one:"
    " compare client_id and client_secret with the key in Canvas",
    "unauthorized_client": "The developer key is switched off in Canvas: switch it on",
    "invalid_scope": "The developer key may not ask for these scopes: compare the option scopes"
    " with the key in Canvas",
    "invalid_request": "Canvas does not accept the address that users come back to: add it to the"
    " redirect URIs of the developer key",
    "unsupported_grant_type": "Canvas does not exchange authorisation codes with the gateway",
}


class _User(msgspec.Struct, frozen=True, gc=False):
    id: int | str
    name: str | None = None


class _Answer(msgspec.Struct, frozen=True, gc=False):
    access_token: str | None = None
    refresh_token: str | None = None
    expires_in: float | None = None
    user: _User | None = None


class _Refusal(msgspec.Struct, frozen=True, gc=False):
    error: str = ""


def authorization_url(
    provider: Provider, request: CodeRequest, credentials: Secret[Mapping[str, str]]
) -> str:
    """Return the address at which a user authorises the gateway.

    The challenge goes along always: releases before 2024 ignore it.

    Raises:
        NotSupported: The provider has no developer key, or more scopes than an address can hold.

    Source:
        https://canvas.instructure.com/doc/api/file.oauth_endpoints.html#get-login-oauth2-auth
    """
    values = {
        "client_id": _client_of(provider, credentials),
        "response_type": "code",
        "redirect_uri": request.redirect_uri,
        "state": request.state,
        "code_challenge": request.code_challenge,
        "code_challenge_method": "S256",
    }
    scopes = " ".join(provider.options.get(SCOPES, "").split())
    if scopes:
        values["scope"] = scopes
    query = urlencode(values)
    if len(query) > _MAX_QUERY:
        raise NotSupported(
            "The option scopes names more scopes than Canvas can be asked for at once",
            provider_id=provider.id,
        )
    return f"{api_root(provider.base_url)}{_AUTHORIZE_PATH}?{query}"


async def redeem(
    http: ProviderHttp,
    provider: Provider,
    *,
    code: Code,
    credentials: Secret[Mapping[str, str]],
    patience_seconds: float = 30,
) -> AuthorizedUser:
    """Exchange an authorisation code for a user's grant, in line with all other exchanges.

    An exchange that was refused for its rate did not use the code, and is sent again.

    Args:
        http: To the provider.
        provider: Whose user it is.
        code: What came back with the user.
        credentials: Of the provider.
        patience_seconds: How long the user, who looks on, may stand in line.

    Raises:
        ReauthRequired: The code is used, expired, or not for us.
        ProviderAuthFailed: The developer key is not set up as the gateway needs it.
        ProviderRateLimited: Too many exchanges; the code is not used.
        ProviderError: It could not be done now.

    Source:
        https://canvas.instructure.com/doc/api/file.oauth_endpoints.html#post-login-oauth2-token
    """
    form = {
        "grant_type": "authorization_code",
        **_client_form(provider, credentials),
        "redirect_uri": code.redirect_uri,
        "code": code.code.reveal(),
        "code_verifier": code.verifier.reveal(),
    }
    response = await _exchanged_in_turn(http, form, patience_seconds=patience_seconds)
    if response.status != HTTPStatus.OK:
        _refuse_code(response)
    answer = response.decode(_Answer)
    grant = _grant_of(answer, response)
    if answer.user is None or not str(answer.user.id).strip():
        await revoke(http, grant)
        raise ProviderBadResponse(
            "Canvas did not say who authorised the gateway", provider_id=response.provider_id
        )
    user_id = str(answer.user.id)
    return AuthorizedUser(user_id=user_id, display_name=answer.user.name or user_id, grant=grant)


def can_renew(grant: Grant) -> bool:
    """Whether the grant holds a refresh token."""
    return bool(grant.secret.reveal().get(REFRESH_TOKEN))


async def renew(
    http: ProviderHttp,
    provider: Provider,
    *,
    grant: Grant,
    credentials: Secret[Mapping[str, str]],
) -> NewGrant:
    """Obtain the successor of a grant; the caller stands in line, and the pacer is told here.

    Raises:
        ReauthRequired: The refresh token does not hold, and never will again.
        ProviderForbidden: The developer key does not hold, which says nothing about the user.
        ProviderRateLimited: Not now; the grant can be renewed later.
        ProviderError: The same.

    Source:
        https://canvas.instructure.com/doc/api/file.oauth_endpoints.html#post-login-oauth2-token
    """
    refresh_token = grant.secret.reveal().get(REFRESH_TOKEN)
    if not refresh_token:
        raise ReauthRequired("The user has to sign in again", provider_id=provider.id)
    # Without redirect_uri: some releases answer errors with a redirect where one was sent.
    form = {
        "grant_type": "refresh_token",
        **_client_form(provider, credentials),
        "refresh_token": refresh_token,
    }
    response = await _exchanged(http, form)
    if response.status != HTTPStatus.OK:
        _refuse_renewal(response)
    answer = response.decode(_Answer)
    return _grant_of(answer, response, predecessor=refresh_token)


async def revoke(http: ProviderHttp, grant: NewGrant) -> None:
    """End a grant, refresh token and all; a failure to do so is of no consequence.

    Source:
        https://canvas.instructure.com/doc/api/file.oauth_endpoints.html#delete-login-oauth2-token
    """
    token = grant.secret.reveal().get(ACCESS_TOKEN)
    with suppress(ProviderError):
        await http.request(
            "DELETE",
            api_root(http.base_url) + _TOKEN_PATH,
            headers={"authorization": f"Bearer {token}"},
            expected=_ANSWERS,
            total_seconds=_CALL_SECONDS,
        )


def _client_of(provider: Provider, credentials: Secret[Mapping[str, str]]) -> str:
    client_id = credentials.reveal().get("client_id")
    if not client_id:
        raise NotSupported(
            "The provider has no developer key, so its users cannot authorise the gateway",
            provider_id=provider.id,
        )
    return client_id


def _client_form(
    provider: Provider, credentials: Secret[Mapping[str, str]]
) -> Mapping[str, ParamValue]:
    secret = credentials.reveal().get("client_secret")
    return {"client_id": _client_of(provider, credentials), "client_secret": secret or None}


async def _exchanged_in_turn(
    http: ProviderHttp, form: Mapping[str, ParamValue], *, patience_seconds: float
) -> Response:
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + patience_seconds
    while True:
        pacer = http.pacers.get(GRANTS, GRANT_BUCKET)
        try:
            async with pacer.turn(patience_seconds=ends_at - loop.time()):
                return await _exchanged(http, form)
        except ProviderRateLimited:
            if loop.time() + pacer.expected_wait() >= ends_at:
                raise


async def _exchanged(http: ProviderHttp, form: Mapping[str, ParamValue]) -> Response:
    """Ask for a grant and tell the pacer what the answer says of the bucket."""
    response = await http.request(
        "POST",
        api_root(http.base_url) + _TOKEN_PATH,
        form=form,
        expected=_ANSWERS,
        total_seconds=_CALL_SECONDS,
    )
    pacer = http.pacers.get(GRANTS, GRANT_BUCKET)
    if not is_throttled(response):
        pacer.note_room(response.headers.get("x-rate-limit-remaining"))
        return response
    pause = pacer.note_refusal(retry_after(response))
    raise ProviderRateLimited(
        "Canvas limits how many authorisations there are at once",
        provider_id=response.provider_id,
        retry_after_seconds=ceil(pause),
    )


def _grant_of(answer: _Answer, response: Response, *, predecessor: str | None = None) -> NewGrant:
    """Return what an answer grants; without a refresh token in it, that of the predecessor stays.

    Raises:
        ProviderUnavailable: It grants nothing. Some releases answer so to a second renewal within
            five seconds.
    """
    if not answer.access_token:
        raise ProviderUnavailable(
            "Canvas gave no access token: try again in some seconds",
            provider_id=response.provider_id,
            retry_after_seconds=_GUARD_SECONDS,
        )
    refresh_token = answer.refresh_token or predecessor
    secret = {ACCESS_TOKEN: answer.access_token}
    if refresh_token:
        secret[REFRESH_TOKEN] = refresh_token
    lifetime = answer.expires_in
    return NewGrant(
        secret=Secret(secret),
        lifetime_seconds=lifetime if lifetime is not None and lifetime > 0 else None,
        consumes_predecessor=predecessor not in {None, refresh_token},
    )


def _refuse_code(response: Response) -> NoReturn:
    problem = _problem_of(response)
    if problem == "invalid_grant":
        raise ReauthRequired(
            "The authorisation code was used, or is too old", provider_id=response.provider_id
        )
    if problem in _SET_UP_PROBLEMS:
        raise ProviderAuthFailed(_SET_UP_PROBLEMS[problem], provider_id=response.provider_id)
    raise _unexpected(response)


def _refuse_renewal(response: Response) -> NoReturn:
    problem = _problem_of(response)
    # A refresh token that is unknown or revoked is an invalid request to Canvas.
    if problem in {"invalid_grant", "invalid_request"}:
        raise ReauthRequired(
            "Canvas does not renew this user's authorisation any more",
            provider_id=response.provider_id,
        )
    if problem in _SET_UP_PROBLEMS:
        # Not ReauthRequired: every user would have to sign in again for an operator's mistake.
        raise ProviderForbidden(_SET_UP_PROBLEMS[problem], provider_id=response.provider_id)
    raise _unexpected(response)


def _problem_of(response: Response) -> str:
    """Return the OAuth error code of a refusal, wherever this release puts it; empty for none."""
    if response.status in _REDIRECTS:
        _, _, query = response.headers.get("location", "").partition("?")
        return dict(parse_qsl(query.partition("#")[0])).get("error", "")
    with suppress(ProviderBadResponse):
        problem = response.decode(_Refusal).error
        if problem:
            return problem
    return "invalid_client" if response.status == HTTPStatus.UNAUTHORIZED else ""


def _unexpected(response: Response) -> ProviderBadResponse:
    what = "a redirect" if response.status in _REDIRECTS else "no token"
    return ProviderBadResponse(
        f"Canvas's address for tokens answered with {what} (status {response.status}): see whether"
        " the provider's address is right",
        provider_id=response.provider_id,
    )
