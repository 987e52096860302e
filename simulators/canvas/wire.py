"""Canvas's conventions on the wire: who calls, ids, pages, `Link`, and every error's shape."""

from __future__ import annotations

import base64
import binascii
import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlencode

from simulators.canvas.population import (
    SHARD_SIZE,
    Course,
    Enrollment,
    User,
)
from simulators.canvas.state import Canvas, Token

ENROLLED = frozenset({"active", "invited"})
STAFF = frozenset({"TeacherEnrollment", "TaEnrollment", "DesignerEnrollment"})
_STRING_IDS = "application/json+canvas-string-ids"
_LINK_LIMIT_BYTES = 6 * 1024
_LINK_PRIORITY = ("next", "last", "prev", "current", "first")
_LINK_ORDER = ("current", "next", "prev", "first", "last")
_NOT_ECHOED = frozenset({"page", "per_page", "access_token", "api_key"})
_DEFAULT_PAGE = 10
_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="canvas-lms"'}
Row = TypeVar("Row")


class Refusal(Exception):
    """An answer that ends the call: a status, a JSON body or text, and headers."""

    def __init__(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        super().__init__(status)
        self.status = status
        self.body = body
        self.headers = headers or {}


@dataclass(slots=True, kw_only=True)
class Answer:
    """A body, and what it costs: the rows it took to make it."""

    body: Any
    status: int = 200
    links: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    rows: int = 1


@dataclass(slots=True, kw_only=True)
class Call:
    """One request to the API, after authentication.

    `origin` is what links are written with; `path` is as it was sent; `query` and `form` keep
    their order and repeats; nested JSON bodies are flattened to bracketed names.
    """

    server: Canvas
    origin: str
    path: str
    params: dict[str, str]
    query: list[tuple[str, str]]
    form: list[tuple[str, str]]
    token: Token
    caller: User
    allows_includes: bool = True

    def text(self, name: str) -> str | None:
        """Return a parameter from the body or the query; None if absent or empty."""
        found = (value for key, value in [*self.form, *self.query] if key == name)
        return next(found, None) or None

    def texts(self, name: str) -> list[str]:
        """Return all values of a list parameter, sent as `name[]` or as `name`."""
        named = {name, f"{name}[]"}
        found = [value for key, value in [*self.query, *self.form] if key in named]
        return [] if name == "include" and not self.allows_includes else found

    def flag(self, name: str) -> bool:
        """Whether a parameter says yes."""
        return self.text(name) in {"1", "true", "True"}

    @property
    def is_admin(self) -> bool:
        """Whether the caller administers the account."""
        return self.caller.is_admin

    def denied(self) -> Refusal:
        """Return "not permitted" in this release's form; never with `WWW-Authenticate`."""
        message = "user not authorized to perform that action"
        body = {"status": "unauthorized", "errors": [{"message": message}]}
        return Refusal(self.server.profile.denied_status, body)

    def require_admin(self) -> None:
        """Refuse everyone but administrators."""
        if not self.is_admin:
            raise self.denied()

    # ---- who may see what ------------------------------------------------------------------

    def own_enrollments(self, course: Course) -> list[Enrollment]:
        """Return the caller's places in a course that are not deleted or rejected."""
        mine = self.server.population.enrollments_by_user[self.caller.id]
        gone = {"deleted", "rejected"}
        return [row for row in mine if row.course_id == course.id and row.state not in gone]

    def is_staff(self, course: Course) -> bool:
        """Whether the caller teaches or assists in a course, or administers the account."""
        if self.is_admin:
            return True
        mine = self.own_enrollments(course)
        return any(row.type in STAFF and row.state == "active" for row in mine)

    def reads_roster(self, course: Course) -> bool:
        """Whether the caller may see who is in a course; students may, unless they may not."""
        if self.is_staff(course):
            return True
        students_read = self.server.profile.students_read_roster
        mine = self.own_enrollments(course) if students_read else ()
        return any(row.state == "active" for row in mine)

    def total_activity_seconds(self, row: Enrollment) -> int | None:
        """Return a row's own time, or the longest of that user in that course."""
        if self.server.profile.activity_per_enrollment:
            return row.total_activity_seconds
        rows = self.server.population.enrollments_by_user[row.user_id]
        same = [r.total_activity_seconds for r in rows if r.course_id == row.course_id]
        return max((seconds for seconds in same if seconds is not None), default=None)

    def is_restricted(self, course: Course) -> bool:
        """Whether the caller is shown nothing but the course's id."""
        hidden_from_members = course.restricted == "members" and not self.is_staff(course)
        return course.restricted == "everyone" or hidden_from_members

    # ---- finding what the path names ---------------------------------------------------------

    def account(self) -> int:
        """Return the account's id, or refuse as if it did not exist."""
        named = self.params["account_id"]
        people = self.server.population
        if named in {"self", "default"} or self.number(named) == people.account_id:
            return people.account_id
        raise not_found()

    def user(self, name: str | None = None) -> User:
        """Return the user the path names: an id, `self`, or a SIS or login id."""
        named = self.params["user_id"] if name is None else name
        users = self.server.population
        number = self.caller.id if named == "self" else self.number(named)
        found = users.users.get(number) if number is not None else None
        prefix, _, value = named.partition(":")
        attribute = {
            "sis_user_id": "sis_user_id",
            "sis_integration_id": "integration_id",
            "uuid": "uuid",
        }.get(prefix)
        if attribute is not None:
            found = next((u for u in users.living_users() if getattr(u, attribute) == value), None)
        elif prefix == "sis_login_id":
            found = users.user_by_login(value)
        if found is None or found.workflow_state == "deleted":
            raise not_found()
        return found

    def course(self) -> Course:
        """Return the course the path names, if the caller may know of it."""
        named = self.params["course_id"]
        courses = self.server.population.courses
        number = self.number(named)
        found = courses.get(number) if number is not None else None
        prefix, _, value = named.partition(":")
        attribute = {"sis_course_id": "sis_course_id", "uuid": "uuid"}.get(prefix)
        if attribute is not None:
            found = next((c for c in courses.values() if getattr(c, attribute) == value), None)
        if found is None or found.workflow_state == "deleted":
            raise not_found()
        if not self.is_admin and not self.own_enrollments(found):
            raise self.denied()
        return found

    def number(self, text: str) -> int | None:
        """Read an id: local, global, or `shard~local`; None when it is none of them."""
        shard, tilde, local = text.partition("~")
        if tilde and shard.isdigit() and local.isdigit():
            return int(shard) * SHARD_SIZE + int(local)
        if not text.isdigit():
            return None
        number = int(text)
        return number if number >= SHARD_SIZE else self.server.population.number(number)


# ---- pages ---------------------------------------------------------------------------------


def numbered(
    call: Call, rows: Sequence[Row], make: Callable[[Row], Any], *, knows_last: bool = True
) -> Answer:
    """Answer one page of a list whose pages are numbered; beyond the end is an empty page."""
    size = page_size(call)
    page = max(_whole(call.text("page"), 1), 1)
    last = max(-(-len(rows) // size), 1)
    pages = {"current": page, "first": 1}
    if page < last:
        pages["next"] = page + 1
    if page > 1:
        pages["prev"] = page - 1
    if knows_last:
        pages["last"] = last
    links = {rel: _page_url(call, str(number), size) for rel, number in pages.items()}
    shown = rows[(page - 1) * size : page * size]
    return Answer(body=[make(row) for row in shown], links=links, rows=len(shown))


def bookmarked(
    call: Call, rows: Sequence[Row], make: Callable[[Row], Any], *, key: Callable[[Row], int]
) -> Answer:
    """Answer one page of a list, ordered by `key`, whose pages are opaque bookmarks.

    A numbered page does not exist; a bookmark that cannot be read starts over, silently.
    """
    size = page_size(call)
    page = call.text("page") or "first"
    if page.isdigit() and page != "1":
        raise not_found()
    after = _read_bookmark(call.server, page)
    start = 0 if after is None else bisect_right(rows, after, key=key)
    shown = rows[start : start + size]
    links = {"current": _page_url(call, page, size), "first": _page_url(call, "first", size)}
    if len(rows) > start + size:
        links["next"] = _page_url(call, _write_bookmark(call.server, key(shown[-1])), size)
    return Answer(body=[make(row) for row in shown], links=links, rows=len(shown))


def page_size(call: Call) -> int:
    """Return how many rows a page holds: what was asked, between 1 and the release's most."""
    asked = _whole(call.text("per_page"), _DEFAULT_PAGE)
    return min(max(asked, 1), call.server.profile.max_page)


def link_header(links: dict[str, str]) -> str:
    """Write a `Link` header; beyond some 6 KB, links are left out, the least useful first."""
    kept, used = set[str](), 0
    for rel in _LINK_PRIORITY:
        if rel in links and used + len(_link(rel, links[rel])) + 1 <= _LINK_LIMIT_BYTES:
            kept.add(rel)
            used += len(_link(rel, links[rel])) + 1
    return ",".join(_link(rel, links[rel]) for rel in _LINK_ORDER if rel in kept)


def _link(rel: str, url: str) -> str:
    return f'<{url}>; rel="{rel}"'


def _page_url(call: Call, page: str, size: int) -> str:
    kept = [(name, value) for name, value in call.query if name not in _NOT_ECHOED]
    asked = urlencode([*kept, ("page", page), ("per_page", str(size))])
    return f"{call.origin}{call.path}?{asked}"


def _write_bookmark(server: Canvas, key: int) -> str:
    text = f"[{key},{server.sign(str(key))}]"
    return "bookmark:" + base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _read_bookmark(server: Canvas, page: str) -> int | None:
    encoded = page.removeprefix("bookmark:")
    try:
        padded = encoded + "=" * (-len(encoded) % 4)
        text = base64.urlsafe_b64decode(padded).decode("ascii")
    except (ValueError, binascii.Error):
        return None
    key, _, signature = text.strip("[]").partition(",")
    return int(key) if signature and signature == server.sign(key) else None


def _whole(text: str | None, default: int) -> int:
    return int(text) if text is not None and text.isdecimal() else default


# ---- bodies --------------------------------------------------------------------------------


def wants_string_ids(accept: str) -> bool:
    """Whether the `Accept` header asks for ids as strings."""
    return _STRING_IDS in accept


def with_string_ids(body: Any) -> Any:
    """Return a body with `id`, `*_id` and `*_ids` as strings, at any depth."""
    if isinstance(body, list):
        return [with_string_ids(item) for item in body]
    if not isinstance(body, dict):
        return body
    return {name: _string_id(name, value) for name, value in body.items()}


def _string_id(name: str, value: Any) -> Any:
    if name.endswith("_ids") and isinstance(value, list):
        return [str(item) if isinstance(item, int) else item for item in value]
    is_id = name == "id" or name.endswith("_id")
    if is_id and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return with_string_ids(value)


def read_form(media_type: str, raw: bytes) -> list[tuple[str, str]]:
    """Read a body into bracketed names: a form as it is, JSON flattened; refuses bad JSON."""
    if "json" not in media_type:
        return parse_qsl(raw.decode("utf-8", "replace"), keep_blank_values=True)
    try:
        body = json.loads(raw or b"{}")
    except ValueError:
        raise Refusal(400, errors("Invalid JSON")) from None
    return list(_flatten("", body)) if isinstance(body, dict) else []


def _flatten(prefix: str, value: Any) -> Iterable[tuple[str, str]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _flatten(f"{prefix}[{name}]" if prefix else name, item)
    elif isinstance(value, list):
        for item in value:
            yield from _flatten(f"{prefix}[]", item)
    elif isinstance(value, bool):
        yield prefix, "true" if value else "false"
    elif value is not None:
        yield prefix, str(value)


def instant(seconds: float) -> str:
    """Write a time as Canvas does: UTC, whole seconds, `Z`."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# ---- errors --------------------------------------------------------------------------------


def errors(message: str, **more: object) -> dict[str, Any]:
    """Return the most common error body: a list with one message."""
    return {"errors": [{"message": message, **more}]}


def not_found() -> Refusal:
    """Return what Canvas says of the missing, and of what it hides."""
    return Refusal(404, errors("The specified resource does not exist."))


def unauthenticated() -> Refusal:
    """Return the answer to a call without credentials."""
    message = "user authorization required"
    body = {"status": "unauthenticated", "errors": [{"message": message}]}
    return Refusal(401, body, _CHALLENGE)


def bad_token(message: str = "Invalid access token.", **more: object) -> Refusal:
    """Return the answer to a token that does not count."""
    return Refusal(401, errors(message, **more), _CHALLENGE)
