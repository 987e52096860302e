"""Canvas as an OAuth2 server: the authorize page, codes, refresh in place, revocation.

`client_credentials`, which Canvas gives to LTI tools, is refused as an unknown grant.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import html
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from simulators.canvas.population import User
from simulators.canvas.state import CODE_SECONDS, Canvas, Code, DeveloperKey, Token
from simulators.canvas.wire import errors

OUT_OF_BAND = "urn:ietf:wg:oauth:2.0:oob"
USERINFO = "/auth/userinfo"
_URL_LIMIT = 8000
_STYLE = (
    "body{font:1.125rem/1.5 system-ui,sans-serif;max-width:34rem;margin:12vh auto;padding:0 1.5rem}"
    "select,button{font:inherit;padding:.4rem .8rem}"
    ".note{background:#fe6;color:#000;padding:.5rem 1rem}"
)
_CHALLENGE = {"WWW-Authenticate": "Canvas OAuth 2.0"}


class OAuthError(Exception):
    """An OAuth refusal: `error`, `error_description`, and the status it has as JSON."""

    def __init__(self, error: str, description: str, *, status: int = 400) -> None:
        super().__init__(error)
        self.body = {"error": error, "error_description": description}
        self.status = status

    def response(self) -> Response:
        """Return the refusal as JSON; 401 carries Canvas's own challenge."""
        headers = _CHALLENGE if self.status == 401 else None
        return JSONResponse(self.body, status_code=self.status, headers=headers)


# ---- authorize -----------------------------------------------------------------------------


def authorize(server: Canvas, request: Request) -> Response:
    """Answer `GET /login/oauth2/auth`: a page, or a redirect with a code or an error."""
    query = dict(request.query_params)
    if len(request.url.query) > _URL_LIMIT:
        return HTMLResponse("<h1>414 Request-URI Too Large</h1>", status_code=414)
    if "code" in query and "client_id" not in query:
        return HTMLResponse(f"<title>Code</title><p>{html.escape(query['code'])}</p>")
    try:
        key = _known_key(server, query.get("client_id"))
        _check_redirect(key, query.get("redirect_uri"))
    except OAuthError as error:
        return error.response()
    problem = _authorize_problem(server, key, query)
    if problem is not None:
        return _redirect_error(server, query, problem)
    if server.consent == "deny":
        return _redirect_error(server, query, ("access_denied", "The user denied access"))
    person = _person(server, query)
    if person is None or (server.consent == "page" and query.get("prompt") != "none"):
        return _consent_page(server, query)
    return _redirect_code(server, key, query, person)


async def accept(server: Canvas, request: Request) -> Response:
    """Answer `POST /login/oauth2/accept`: what the person chose on the consent page."""
    form = dict(parse_qsl((await request.body()).decode()))
    try:
        key = _known_key(server, form.get("client_id"))
        _check_redirect(key, form.get("redirect_uri"))
    except OAuthError as error:
        return error.response()
    person = _person(server, form)
    if form.get("answer") != "approve" or person is None:
        return _redirect_error(server, form, ("access_denied", "The user denied access"))
    return _redirect_code(server, key, form, person)


def _known_key(server: Canvas, client_id: str | None) -> DeveloperKey:
    key = server.keys.get(client_id or "")
    if key is None:
        raise OAuthError("invalid_client", "unknown client", status=401)
    return key


def _check_secret(key: DeveloperKey, secret: str | None) -> None:
    if key.secret is not None and not hmac.compare_digest(key.secret, secret or ""):
        raise OAuthError("invalid_client", "invalid client", status=401)


def _check_redirect(key: DeveloperKey, redirect_uri: str | None) -> None:
    if redirect_uri == OUT_OF_BAND:
        return
    host = urlsplit(redirect_uri or "").hostname or ""
    allowed = urlsplit(key.redirect_uri).hostname or ""
    if not host or (host != allowed and not host.endswith(f".{allowed}")):
        raise OAuthError("invalid_request", "redirect_uri does not match client settings")


def _authorize_problem(
    server: Canvas, key: DeveloperKey, query: dict[str, str]
) -> tuple[str, str] | None:
    asked, prompt = set(query.get("scope", "").split()), query.get("prompt")
    if not key.active:
        return "unauthorized_client", "The client is not active"
    if query.get("response_type") != "code":
        return "unsupported_response_type", "Only response_type=code is permitted"
    if key.scopes is not None and (not asked or not asked <= key.scopes | {USERINFO}):
        return "invalid_scope", "A requested scope is invalid, unknown, malformed, or missing"
    if prompt not in {None, "none"}:
        return "unsupported_prompt_type", "prompt must be none"
    if prompt == "none" and _person(server, query) is None:
        return "login_required", "Nobody is signed in"
    person = _person(server, query)
    known = {(token.user_id, token.key_id) for token in server.tokens.values()}
    if prompt == "none" and (person, key.id) not in known:
        return "interaction_required", "The person has not approved this client before"
    return None


def _person(server: Canvas, form: dict[str, str]) -> int | None:
    named = form.get("unique_id")
    if not named:
        return server.signed_in
    found = server.population.user_by_login(named)
    return None if found is None else found.id


def _redirect_code(
    server: Canvas, key: DeveloperKey, query: dict[str, str], person: int
) -> Response:
    scopes = frozenset(query.get("scope", "").split())
    uses_pkce = server.profile.pkce and query.get("code_challenge_method") == "S256"
    code = server.random_text(64)
    server.codes[code] = Code(
        user_id=person,
        key_id=key.id,
        scopes=scopes if key.scopes is not None else None,
        userinfo_only=scopes == {USERINFO},
        challenge=query.get("code_challenge") if uses_pkce else None,
        expires_at=server.clock() + CODE_SECONDS,
    )
    answer = {"code": code} | ({"state": query["state"]} if "state" in query else {})
    return _redirect(query["redirect_uri"], answer)


def _redirect_error(server: Canvas, query: dict[str, str], problem: tuple[str, str]) -> Response:
    answer = {"error": problem[0], "error_description": problem[1]}
    if "state" in query and not server.profile.drops_state_on_denial:
        answer["state"] = query["state"]
    return _redirect(query["redirect_uri"], answer)


def _redirect(redirect_uri: str, answer: dict[str, str]) -> Response:
    target = "/login/oauth2/auth" if redirect_uri == OUT_OF_BAND else redirect_uri
    joint = "&" if "?" in target else "?"
    return RedirectResponse(f"{target}{joint}{urlencode(answer)}", status_code=302)


def _consent_page(server: Canvas, query: dict[str, str]) -> Response:
    hidden = "".join(
        f'<input type="hidden" name="{html.escape(name)}" value="{html.escape(value)}">'
        for name, value in query.items()
        if name != "unique_id"
    )
    people = "".join(
        f"<option value={_quoted(user.login_id)}{_chosen(server, user)}>"
        f"{html.escape(f'{user.name} ({user.login_id})'.strip())}</option>"
        for user in list(server.population.living_users())[:50]
        if user.login_id is not None
    )
    return HTMLResponse(
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Simulated Canvas</title><style>{_STYLE}</style>"
        "<p class=note>This is a simulated Canvas: choose who you are, there is no password.</p>"
        "<h1>Allow access to your account?</h1>"
        f"<p>{html.escape(_host(query))} asks to act for you.</p>"
        f'<form method="post" action="/login/oauth2/accept">{hidden}'
        f'<label>Sign in as <select name="unique_id">{people}</select></label>'
        '<p><button name="answer" value="approve">Authorize</button> '
        '<button name="answer" value="deny">Cancel</button></p></form></html>'
    )


def _quoted(text: str) -> str:
    return f'"{html.escape(text)}"'


def _chosen(server: Canvas, user: User) -> str:
    return " selected" if user.id == server.signed_in else ""


def _host(query: dict[str, str]) -> str:
    return urlsplit(query.get("redirect_uri", "")).netloc or "A program without an address"


# ---- tokens --------------------------------------------------------------------------------


async def grant(server: Canvas, request: Request) -> tuple[Response, bool]:
    """Answer `POST /login/oauth2/token`; also say whether it was granted, for its cost."""
    form = dict(request.query_params) | dict(parse_qsl((await request.body()).decode()))
    client_id, secret = client_of(request, form)
    try:
        key = _known_key(server, client_id)
        _check_secret(key, secret)
        body = _grant_body(server, key, form)
    except OAuthError as error:
        redirect_uri = form.get("redirect_uri")
        if server.profile.redirects_token_errors and redirect_uri:
            return _redirect(redirect_uri, error.body), False
        return error.response(), False
    return JSONResponse(body, headers={"Cache-Control": "no-store"}), True


def revoke(server: Canvas, request: Request, token: Token | None) -> Response:
    """Answer `DELETE /login/oauth2/token`, which only a token's holder may call."""
    if token is None:
        return JSONResponse(errors("Not called with an access token"), status_code=400)
    server.revoke(token)
    if request.query_params.get("expire_sessions") != "1":
        return JSONResponse({})
    server.signed_in = None
    return JSONResponse({"forward_url": server.forward_url} if server.forward_url else {})


def client_of(request: Request, form: dict[str, str]) -> tuple[str | None, str | None]:
    """Return the client's id and secret, from the header or the form."""
    kind, _, encoded = request.headers.get("Authorization", "").partition(" ")
    if kind.lower() != "basic":
        return form.get("client_id"), form.get("client_secret")
    try:
        client_id, _, secret = base64.b64decode(encoded).decode().partition(":")
    except (ValueError, binascii.Error):
        return None, None
    return client_id, secret


def _grant_body(server: Canvas, key: DeveloperKey, form: dict[str, str]) -> dict[str, Any]:
    kind = form.get("grant_type") or ("authorization_code" if "code" in form else "")
    if kind == "authorization_code":
        return _redeem_code(server, key, form)
    if kind == "refresh_token":
        return _refresh(server, key, form)
    raise OAuthError("unsupported_grant_type", "The grant_type you requested is not supported")


def _redeem_code(server: Canvas, key: DeveloperKey, form: dict[str, str]) -> dict[str, Any]:
    if not form.get("code"):
        raise OAuthError("invalid_request", "You must provide the code parameter")
    code = server.codes.pop(form["code"], None)
    if code is None or code.expires_at <= server.clock():
        raise OAuthError("invalid_grant", "authorization_code not found")
    if code.key_id != key.id:
        raise OAuthError("invalid_grant", "incorrect client")
    if not _proves(code, key, form.get("code_verifier", "")):
        raise OAuthError("invalid_grant", "incorrect code_verifier")
    if form.get("replace_tokens") == "1":
        owner = (code.user_id, key.id)
        for token in list(server.tokens.values()):
            if (token.user_id, token.key_id) == owner:
                server.revoke(token)
    if code.userinfo_only:
        return {"access_token": None, "token_type": "Bearer", "user": _user(server, code.user_id)}
    token = server.grant(key, code)
    return _token_body(server, token) | {"refresh_token": token.refresh}


def _proves(code: Code, key: DeveloperKey, verifier: str) -> bool:
    if code.challenge is None:
        return key.secret is not None
    digest = hashlib.sha256(verifier.encode()).digest()
    expected = base64.urlsafe_b64encode(digest).decode().rstrip("=")
    return hmac.compare_digest(expected, code.challenge.rstrip("="))


def _refresh(server: Canvas, key: DeveloperKey, form: dict[str, str]) -> dict[str, Any]:
    if not form.get("refresh_token"):
        raise OAuthError("invalid_request", "You must provide the refresh_token parameter")
    token = server.tokens_by_refresh.get(form["refresh_token"])
    if token is None or not server.can_refresh(token):
        raise OAuthError("invalid_request", "refresh_token not found")
    if token.key_id != key.id:
        raise OAuthError("invalid_grant", "incorrect client")
    regenerated = server.refresh(token, key)
    body = _token_body(server, token)
    if not regenerated:
        body["access_token"] = None
    return body | ({"refresh_token": token.refresh} if key.secret is None else {})


def _token_body(server: Canvas, token: Token) -> dict[str, Any]:
    body: dict[str, Any] = {
        "access_token": token.access,
        "token_type": "Bearer",
        "user": _user(server, token.user_id),
        "canvas_region": "unknown",
    }
    if token.expires_at is not None:
        body["expires_in"] = int(token.expires_at - server.clock())
    return body


def _user(server: Canvas, user_id: int) -> dict[str, Any]:
    user = server.population.users[user_id]
    global_id = str(user.id if server.population.shard else 10**13 + user.id)
    return {"id": user.id, "name": user.name, "global_id": global_id, "effective_locale": "en"}
