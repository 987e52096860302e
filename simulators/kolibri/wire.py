"""How a Kolibri answers: bodies, error shapes, cookies and headers, but no data.

A real Kolibri is Django with Django REST framework behind one exception handler of its own. The
shapes here were read off a running 0.19.5.
"""

from __future__ import annotations

import json
import re
import secrets
import string
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import Response

from simulators.kolibri.state import Account, Kolibri

SESSION_COOKIE = "kolibri"
CSRF_COOKIE = "kolibri_csrftoken"
CSRF_AGE_SECONDS = 31449600
VISITOR_AGE_SECONDS = 31536000
_CSRF_LENGTHS = (32, 64)
_SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}
_UNSAFE = ("POST", "PUT", "PATCH", "DELETE")


class Refusal(Exception):
    """Ends a call with an error answer in JSON."""

    def __init__(self, status: int, body: object) -> None:
        super().__init__(status)
        self.status = status
        self.body = body


class Page(Exception):
    """Ends a call with an error answer in HTML, as errors outside the REST framework do."""

    def __init__(self, status: int, title: str, text: str = "") -> None:
        super().__init__(status)
        self.status = status
        self.title = title
        self.text = text


def server_error() -> Page:
    """Return what every crash looks like."""
    return Page(500, "Server Error (500)")


def page_not_found() -> Page:
    """Return what an unknown route looks like."""
    return Page(404, "Not Found", "The requested resource was not found on this server.")


def forbidden_page() -> Page:
    """Return how a download refuses."""
    return Page(403, "403 Forbidden")


def problem(code: str, **metadata: object) -> list[dict[str, object]]:
    """Return the commonest error body: a list with one coded entry."""
    return [{"id": code, "metadata": metadata}]


def field_problem(code: str, name: str, message: str) -> dict[str, object]:
    """Return one entry of an error body about a field or a query parameter."""
    return {"id": code, "metadata": {"field": name, "message": message}}


Handler = Callable[["Call"], "Answer | Awaitable[Answer]"]


@dataclass(slots=True, kw_only=True)
class Answer:
    """What a handler wants to say; `body` is turned into JSON unless it is bytes."""

    body: object = None
    status: int = 200
    media_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    spaced_json: bool = False  # written by the json module instead of the REST framework


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One route.

    Attributes:
        pattern: The path, with `{name}` for a part that varies.
        name: What the route calls itself in error bodies.
        handlers: By method; other methods are answered with 405.
        rest: Whether the REST framework runs it (JSON errors, `Allow`, CSRF for sessions only).
        session: Whether it looks at the session, and so deletes the cookie of a lost one.
        csrf_always: Whether even anonymous writes need a token, and are refused in HTML.
        csrf_cookie: Whether each answer sets the CSRF cookie.
        cacheable: Whether the answer carries the content ETag instead of `max-age=0`.
        vary: The `Vary` header of its answers.
        writes: Methods of the real route that the simulator does not carry out.
    """

    pattern: str
    name: str
    handlers: Mapping[str, Handler]
    rest: bool = True
    session: bool = True
    csrf_always: bool = False
    csrf_cookie: bool = False
    cacheable: bool = False
    vary: str = "Accept, Cookie"
    allow: str = "GET, HEAD, OPTIONS"
    writes: tuple[str, ...] = ()

    def match(self, path: str) -> dict[str, str] | None:
        """Return the parts of the path that vary, or None where the path is another's."""
        expression = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", self.pattern)
        found = re.fullmatch(expression, path)
        return found.groupdict() if found else None


@dataclass(slots=True, kw_only=True)
class Call:
    """One request on its way through a view."""

    server: Kolibri
    request: Request
    view: View
    params: Mapping[str, str]
    raw: bytes
    user: Account | None = None
    session_key: str | None = None
    session_alive: bool = False
    csrf_token: str | None = None
    delete_session_cookie: bool = False
    session_touched: bool = False
    cookies: list[str] = field(default_factory=list)

    @property
    def query(self) -> Mapping[str, str]:
        """The query parameters; of a repeated one, the last."""
        return self.request.query_params

    def json(self) -> Any:
        """Return the body as decoded JSON or form fields.

        Raises:
            Refusal: The body is neither.
        """
        kind = self.request.headers.get("content-type", "").split(";")[0].strip().lower()
        if not self.raw:
            return {}
        if kind == "application/json":
            try:
                return json.loads(self.raw)
            except ValueError as error:
                raise Refusal(400, {"detail": f"JSON parse error - {error}"}) from error
        if kind == "application/x-www-form-urlencoded":
            fields = parse_qs(self.raw.decode(), keep_blank_values=True)
            return {name: values[-1] for name, values in fields.items()}
        message = f'Unsupported media type "{kind}" in request.'
        raise Refusal(415, {"detail": message})

    def require_user(self) -> Account:
        """Return the user.

        Raises:
            Refusal: Nobody is logged in.
        """
        if self.user is None:
            raise Refusal(403, problem("NOT_AUTHENTICATED", view=self.view.name))
        return self.user

    def deny(self) -> Refusal:
        """Return the answer to somebody who may not do this."""
        code = "PERMISSION_DENIED" if self.user else "NOT_AUTHENTICATED"
        return Refusal(403, problem(code, view=self.view.name))

    def not_found(self) -> Refusal:
        """Return the answer about an object that is not there or not for this user."""
        return Refusal(404, problem("NOT_FOUND", view=self.view.name))


def as_id(value: object) -> str | None:
    """Return the 32 hex digits of an id in any spelling, or None where it is no id."""
    try:
        return uuid.UUID(str(value)).hex
    except ValueError:
        return None


def instant(moment: datetime | None) -> str | None:
    """Write an instant as the REST framework does."""
    return None if moment is None else moment.isoformat().replace("+00:00", "Z")


def new_csrf_token() -> str:
    """Return 64 characters as Django would choose them."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(64))


def csrf_token_of(call: Call) -> str | None:
    """Return the request's CSRF cookie if it looks like one."""
    token = call.request.cookies.get(CSRF_COOKIE, "")
    return token if len(token) in _CSRF_LENGTHS and token.isalnum() else None


def csrf_passes(call: Call) -> bool:
    """Return whether header and cookie agree; nothing about them is stored on the server."""
    header = call.request.headers.get("x-csrftoken", "")
    if call.csrf_token is None or len(header) not in _CSRF_LENGTHS or not header.isalnum():
        return False
    return _unmask(header) == _unmask(call.csrf_token)


def _unmask(token: str) -> str:
    """Recover the secret that a 64-character token hides behind its first half."""
    if len(token) == _CSRF_LENGTHS[0]:
        return token
    letters = string.ascii_letters + string.digits
    mask, hidden = token[: _CSRF_LENGTHS[0]], token[_CSRF_LENGTHS[0] :]
    pairs = zip(hidden, mask, strict=True)
    return "".join(letters[letters.index(a) - letters.index(b)] for a, b in pairs)


def check_csrf_page(call: Call) -> None:
    """Refuse a write to a view that Django itself protects, before anybody asks who it is.

    Raises:
        Page: The token is missing or wrong.
    """
    if call.request.method in _UNSAFE and not csrf_passes(call):
        raise Page(403, "403 Forbidden", "CSRF verification failed. Request aborted.")


def check_csrf(call: Call) -> None:
    """Refuse a write of a logged-in user whose token is missing or wrong.

    Raises:
        Refusal: It is; the REST framework asks nothing of anonymous visitors.
    """
    if call.request.method in _UNSAFE and call.user is not None and not csrf_passes(call):
        raise Refusal(403, problem("PERMISSION_DENIED", view=call.view.name))


def set_cookie(  # a cookie has this many parts
    call: Call,
    name: str,
    value: str,
    *,
    age: int | None = None,
    http_only: bool = False,
    same_site: bool = True,
) -> None:
    """Add a Set-Cookie header in Django's order of attributes."""
    parts = [f"{name}={value}"]
    if age is not None:
        expires_at = (
            datetime.now(UTC) + timedelta(seconds=age) if age else datetime.fromtimestamp(0, UTC)
        )
        parts += [f"expires={format_datetime(expires_at, usegmt=True)}"]
    if http_only:
        parts.append("HttpOnly")
    if age is not None:
        parts.append(f"Max-Age={age}")
    parts.append("Path=/")
    if same_site:
        parts.append("SameSite=Lax")
    call.cookies.append("; ".join(parts))


def respond(call: Call, answer: Answer) -> Response:
    """Write an answer with the headers a Kolibri adds to it."""
    if isinstance(answer.body, bytes):
        content = answer.body
    elif answer.spaced_json:
        content = json.dumps(answer.body).encode()
    else:
        content = json.dumps(answer.body, ensure_ascii=False, separators=(",", ":")).encode()
    response = Response(content, status_code=answer.status, headers=_SECURITY_HEADERS)
    if answer.status != 304:
        response.headers["Content-Type"] = answer.media_type
    if call.view.rest and answer.status != 304:
        response.headers["Vary"] = call.view.vary
        response.headers["Allow"] = call.view.allow
    elif not call.view.rest and call.view.session:
        response.headers["Vary"] = "Cookie"
    downloads = answer.media_type == "text/csv"
    if call.request.method in {"GET", "HEAD"} and answer.status in {200, 304} and not downloads:
        _expire(response, cacheable=call.view.cacheable and answer.status == 200)
    response.headers.update(answer.headers)
    return _finish(call, response)


def respond_page(call: Call, page: Page) -> Response:
    """Write an HTML error page."""
    body = (
        f'\n<!doctype html>\n<html lang="en">\n<head>\n  <title>{page.title}</title>\n</head>\n'
        f"<body>\n  <h1>{page.title}</h1><p>{page.text}</p>\n</body>\n</html>\n"
    )
    response = Response(body, status_code=page.status, headers=_SECURITY_HEADERS)
    response.headers["Content-Type"] = "text/html"
    if call.view.session and not call.view.csrf_always:
        response.headers["Vary"] = "Cookie"
    return _finish(call, response)


def _expire(response: Response, *, cacheable: bool) -> None:
    if not cacheable:
        response.headers["Expires"] = format_datetime(datetime.now(UTC), usegmt=True)
        response.headers["Cache-Control"] = "max-age=0"


def _finish(call: Call, response: Response) -> Response:
    if call.view.csrf_cookie:
        token = call.csrf_token or new_csrf_token()
        set_cookie(call, CSRF_COOKIE, token, age=CSRF_AGE_SECONDS)
    if call.delete_session_cookie:
        set_cookie(call, SESSION_COOKIE, '""', age=0)
    elif (
        call.view.csrf_cookie and call.session_key in call.server.sessions and call.session_touched
    ):
        set_cookie(call, SESSION_COOKIE, str(call.session_key), http_only=True)
    for cookie in call.cookies:
        response.headers.append("Set-Cookie", cookie)
    if call.request.method == "HEAD":
        response.body = b""
    return response
