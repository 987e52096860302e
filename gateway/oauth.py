"""What a user sees who lets the gateway act for them: ``/oauth/begin`` and ``/oauth/callback``.

Public on purpose: browsers have no key. What protects them is in ``resolvers.authorizing``: links
are signed, and a state comes back once, in the browser that left with it. Pages run no script and
load nothing; whatever comes from a provider or an address is escaped, and codes, states and
addresses are never shown.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import structlog
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from resolvers.authorizing import (
    REQUEST_SECONDS,
    Authorizer,
    CameBack,
    Departure,
    Ending,
    Outcome,
)
from storage.errors import StorageError

_COOKIE: Final = "authorization-"
_KEPT: Final = re.compile(r"(?:__Secure-)?authorization-([0-9a-f]{64})")
_BROWSER: Final = re.compile(r"[A-Za-z0-9_-]{43}")
_SEE_OTHER: Final = 303
_METHOD_NOT_ALLOWED: Final = 405

_STYLE: Final = (
    ":root{color-scheme:light dark}"
    "body{font:1.125rem/1.5 system-ui,sans-serif;max-width:34rem;margin:12vh auto;padding:0 1.5rem}"
    "h1{font-size:1.6rem;line-height:1.25}"
    "a.again{display:inline-block;padding:.6rem 1.2rem;border:2px solid;border-radius:.5rem}"
    "small{display:block;margin-top:3rem}"
)
_STYLE_SHA256: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; "
    f"frame-ancestors 'none'; style-src 'sha256-{_STYLE_SHA256}'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Text:
    """What a page says.

    In it ``{place}`` is where the user signs in, ``{user}`` who did, ``{wait}`` how long to wait.

    Attributes:
        status: Of the answer.
        title: What happened, in a few words.
        told: What happened.
        advice: What to do next.
    """

    status: int
    title: str
    told: str
    advice: str


_WAIT_AND_BEGIN_AGAIN: Final = "Please wait a few minutes, then begin again."
_TEXTS: Final[Mapping[Ending, _Text]] = {
    Ending.AUTHORIZED: _Text(
        status=200,
        title="Your account is connected",
        told="{user}, your account at {place} is now connected.",
        advice="You can close this page and go back to where you came from.",
    ),
    Ending.DENIED: _Text(
        status=403,
        title="Your account was not connected",
        told="You did not allow access to your account at {place}, so nothing was changed.",
        advice="You can close this page. If it was a mistake, begin again.",
    ),
    Ending.LINK_WRONG: _Text(
        status=400,
        title="This link does not work",
        told="A part of it is missing, or it was changed on its way.",
        advice="Please open the whole link again, or ask for a new one where you got it.",
    ),
    Ending.LINK_TOO_OLD: _Text(
        status=410,
        title="This link is too old",
        told="For your safety, links like this one work for one hour only.",
        advice="Please ask for a new one where you got it.",
    ),
    Ending.STATE_UNKNOWN: _Text(
        status=400,
        title="This sign-in is over",
        told="It took longer than ten minutes, it was not begun here, or the place where you signed"
        " in was removed meanwhile. Nothing was changed.",
        advice="Please open the link you were given once more.",
    ),
    Ending.STATE_USED: _Text(
        status=409,
        title="This page was opened before",
        told="Every sign-in at {place} counts once, and this one is done.",
        advice="If your account is connected already, you can close this page. If not, begin"
        " again.",
    ),
    Ending.OTHER_BROWSER: _Text(
        status=403,
        title="You began in another browser",
        told="The sign-in was begun in another browser or app than this one, or this one keeps no"
        " cookies. To protect your account, nothing was changed.",
        advice="Please open the link you were given in this browser, and stay in it to the end.",
    ),
    Ending.INCOMPLETE: _Text(
        status=400,
        title="Something is missing",
        told="The address of this page is not complete, so your account was not connected.",
        advice="Please open the link you were given once more.",
    ),
    Ending.CODE_REFUSED: _Text(
        status=400,
        title="That took too long",
        told="A sign-in at {place} is good for a few minutes and for one time, and this one no"
        " longer is. Your account was not connected.",
        advice="Please begin again.",
    ),
    Ending.WRONG_USER: _Text(
        status=403,
        title="This is another account",
        told="At {place} you are signed in as {user}, but another account was asked for. It was"
        " not connected.",
        advice="Please sign out at {place}, then begin again with the right account.",
    ),
    Ending.NOT_SET_UP: _Text(
        status=502,
        title="This cannot be done yet",
        told="Something between {place} and this service is not set up as it should be. You did"
        " nothing wrong, and your account was not connected.",
        advice="Please tell those who look after this service what is written below.",
    ),
    Ending.PROVIDER_DOWN: _Text(
        status=502,
        title="No answer at the moment",
        told="It was not possible to reach {place}. Your account was not connected.",
        advice=_WAIT_AND_BEGIN_AGAIN,
    ),
    Ending.PROVIDER_BUSY: _Text(
        status=503,
        title="Many people are signing in",
        told="Only a few people at a time can connect their account at {place}, and others came"
        " before you. Your account was not connected.",
        advice="Please wait {wait}, then begin again.",
    ),
    Ending.PROVIDER_GONE: _Text(
        status=404,
        title="This place is no longer here",
        told="The place where you were to sign in was removed from this service.",
        advice="You can close this page. If you did not expect this, ask those who look after this"
        " service.",
    ),
}
_OUT_OF_ORDER: Final = _Text(
    status=503,
    title="Please try again later",
    told="This service has a problem of its own at the moment. Your account was not connected.",
    advice="Please wait a few minutes, then open the link you were given once more.",
)


def routes(authorizer_of: Callable[[Request], Authorizer]) -> list[Route]:
    """Return the routes under ``/oauth``.

    Args:
        authorizer_of: Finds who makes and takes links when a request comes; the application opens
            it after its routes are made.
    """

    async def begin(request: Request) -> Response:
        if request.method != "GET":  # whoever only looks ahead must not use anything up
            return _only_get()
        authorizer = authorizer_of(request)
        query = {name: _single(request, name) or "" for name in ("provider", "until", "signature")}
        user_id = _single(request, "user")
        if user_id is not None:
            query["user"] = user_id
        try:
            opened = await authorizer.open(query)
        except StorageError as error:
            return _out_of_order(request, error)
        if isinstance(opened, Outcome):
            return _page_of(request, opened)
        return _sent_away(authorizer, opened)

    async def callback(request: Request) -> Response:
        if request.method != "GET":
            return _only_get()
        answer = CameBack(
            state=_single(request, "state"),
            code=_single(request, "code"),
            error=_single(request, "error"),
            browsers=_kept_by(request),
        )
        try:
            return _page_of(request, await authorizer_of(request).finish(answer))
        except StorageError as error:
            return _out_of_order(request, error)

    return [
        Route("/oauth/begin", begin, methods=["GET"], name="oauth-begin"),
        Route("/oauth/callback", callback, methods=["GET"], name="oauth-callback"),
    ]


def _only_get() -> Response:
    return Response(status_code=_METHOD_NOT_ALLOWED, headers={"Allow": "GET"})


def _single(request: Request, name: str) -> str | None:
    """Return a parameter of the address; one that is there several times counts as not there."""
    values = request.query_params.getlist(name)
    return values[0] if len(values) == 1 else None


# ---- cookies


def _sent_away(authorizer: Authorizer, departure: Departure) -> Response:
    response = RedirectResponse(departure.url, _SEE_OTHER, headers=_HEADERS)
    is_secure, path = _cookie_terms(authorizer)
    response.set_cookie(
        _cookie_name(departure.flow, is_secure=is_secure),
        departure.browser.reveal(),
        max_age=REQUEST_SECONDS,
        path=path,
        secure=is_secure,
        httponly=True,
        samesite="lax",  # coming back from the provider is a visit from another site
    )
    return response


def _kept_by(request: Request) -> Mapping[str, str]:
    kept = {}
    for name, value in request.cookies.items():
        found = _KEPT.fullmatch(name)
        if found is not None and _BROWSER.fullmatch(value):
            kept[found[1]] = value
    return kept


def _cookie_terms(authorizer: Authorizer) -> tuple[bool, str]:
    """Return whether cookies are for https only, and the path they are for."""
    parts = urlsplit(authorizer.public_url)
    return parts.scheme == "https", f"{parts.path}/oauth"


def _cookie_name(flow: str, *, is_secure: bool) -> str:
    """Return a name of its own for each departure: two tabs must not get in each other's way.

    It is not taken back afterwards, so that a page that is loaded again can say that it was.
    """
    return f"{'__Secure-' if is_secure else ''}{_COOKIE}{flow}"


# ---- pages


def _out_of_order(request: Request, error: StorageError) -> Response:
    _log.error("storage_unavailable", problem=str(error))
    return _page(request, _OUT_OF_ORDER, Outcome(ending=Ending.PROVIDER_DOWN))


def _page_of(request: Request, outcome: Outcome) -> Response:
    return _page(request, _TEXTS[outcome.ending], outcome)


def _page(request: Request, text: _Text, outcome: Outcome) -> Response:
    words = {
        "place": _name(outcome.provider_name, "the place where you sign in"),
        "user": _name(outcome.user_name, "Hello"),
        "wait": _wait(outcome.retry_after_seconds),
    }
    parts = [
        f"<h1>{text.title}</h1>",
        f"<p>{text.told.format_map(words)}</p>",
        f"<p>{text.advice.format_map(words)}</p>",
    ]
    if outcome.again is not None:
        parts.append(f'<p><a class="again" href="{html.escape(outcome.again)}">Begin again</a></p>')
    if outcome.problem is not None:
        number = html.escape(request.state.request_id)
        parts.append(f"<small>{html.escape(outcome.problem)} ({number})</small>")
    headers = dict(_HEADERS)
    if outcome.retry_after_seconds is not None:
        headers["Retry-After"] = str(outcome.retry_after_seconds)
    return HTMLResponse(
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text.title}</title><style>{_STYLE}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>",
        text.status,
        headers=headers,
    )


def _name(name: str | None, otherwise: str) -> str:
    """Return a name for a page, set apart from the text around it, whichever way it is written."""
    return otherwise if name is None else f"<bdi>{html.escape(name)}</bdi>"


def _wait(seconds: int | None) -> str:
    minutes = -(-(seconds or 60) // 60)
    return "a minute" if minutes == 1 else f"{minutes} minutes"
