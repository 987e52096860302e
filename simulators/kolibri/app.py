"""The HTTP face of the simulated Kolibri.

In a test's own process, with the server's memory in reach:

    kolibri = Kolibri(build_population(), version="0.19.5", session_age=6)
    async with running(kolibri) as url:
        ...                                       # any HTTP client
    assert kolibri.counts.logins == 1

`create_app(...)` gives the bare ASGI application; its memory is `app.state.kolibri`. As a program:

    python -m simulators.kolibri --port 8080 --version 0.18.4 --bulk-users 10000

Beside Kolibri's own routes there are `/_control/...`, which no real Kolibri has:

    GET  /_control/lab                 ids, usernames and passwords of everything in the data set
    GET  /_control/counts              calls by method and route, logins, most logins at once
    POST /_control/reset               forget counts and faults
    POST /_control/sessions/delete     lose all sessions
    POST /_control/password            {"username", "password", "facility"?}
    POST /_control/poison              {"username", "facility"?}: valid sessions turn anonymous
    POST /_control/users/add           {"username", "full_name", "facility"?, "password"?}
    POST /_control/users/remove        {"username", "facility"?}
    POST /_control/latency             {"seconds", "path"?, "login_seconds"?}
    POST /_control/fail                {"count", "status"?, "retry_after"?, "path"?}
    POST /_control/content/touch       change the content ETag

Kolibri's writes other than sessions and export tasks are refused as Kolibri refuses them, but
never carried out (501 to those who may): change data through `/_control/`.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import inspect
import json
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from simulators.kolibri import population as data
from simulators.kolibri import summary_export, wire
from simulators.kolibri.lab import describe_lab
from simulators.kolibri.state import SESSION_AGE_SECONDS, Account, Job, Kolibri
from simulators.kolibri.wire import (
    Answer,
    Call,
    Refusal,
    View,
    as_id,
    field_problem,
    instant,
    problem,
)

EXPORT_TASK = "kolibri.core.logger.tasks.exportsummarylogcsv"
_INVALID_CHOICE = "Select a valid choice. That choice is not one of the available choices."
_LANGUAGES = {"en": "English", "es": "Español", "ar": "العربية", "fr": "Français"}
_NEVER_CACHE = "max-age=0, no-cache, no-store, must-revalidate, private"
_NEVER_CACHE_PUBLIC = (  # public by the view, never by the error: both are in the header
    "max-age=0, no-cache, no-store, must-revalidate, stale-while-revalidate=100, public"
)
_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


def create_app(
    population: data.Population | None = None,
    *,
    version: str = "0.19.5",
    session_age: float = SESSION_AGE_SECONDS,
    clock: Callable[[], float] = time.time,
    export_polls: int = 2,
) -> Starlette:
    """Return an ASGI application that answers as a Kolibri of this version would."""
    kolibri = Kolibri(
        population or data.build_population(),
        version=version,
        session_age=session_age,
        clock=clock,
        export_polls=export_polls,
    )
    return app_for(kolibri)


def app_for(kolibri: Kolibri) -> Starlette:
    """Return an ASGI application over a server memory that the caller keeps."""
    views = _views(kolibri)

    async def kolibri_endpoint(request: Request) -> Response:
        return await _serve(kolibri, views, request)

    async def control_endpoint(request: Request) -> Response:
        return await _control(kolibri, request)

    app = Starlette(
        routes=[
            Route("/_control/{action:path}", control_endpoint, methods=["GET", "POST"]),
            Route("/{path:path}", kolibri_endpoint, methods=_METHODS),
        ]
    )
    app.router.redirect_slashes = False
    app.state.kolibri = kolibri
    return app


@contextlib.asynccontextmanager
async def running(
    kolibri: Kolibri, *, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[str]:
    """Serve on a real socket (port 0: any free one) and yield the base URL, without a slash."""
    listener = socket.create_server((host, port))
    # asyncio does this for sockets of its own making only; without it each answer takes 40 ms
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    server = uvicorn.Server(_uvicorn_config(kolibri))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        while not server.started:  # noqa: ASYNC110 - uvicorn offers no event to wait for
            await asyncio.sleep(0.005)
        yield f"http://{host}:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task
        listener.close()


def serve(kolibri: Kolibri, *, host: str, port: int) -> None:
    """Serve until interrupted."""
    config = _uvicorn_config(kolibri)
    config.host, config.port = host, port
    uvicorn.Server(config).run()


def _uvicorn_config(kolibri: Kolibri) -> uvicorn.Config:
    return uvicorn.Config(
        app_for(kolibri),
        log_level="warning",
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=1,
    )


# ---- one request -------------------------------------------------------------------------


async def _serve(server: Kolibri, views: list[View], request: Request) -> Response:
    counts = server.counts
    counts.requests_running += 1
    counts.max_concurrent_requests = max(counts.max_concurrent_requests, counts.requests_running)
    try:
        return await _answer(server, views, request)
    finally:
        server.counts.requests_running -= 1


async def _answer(server: Kolibri, views: list[View], request: Request) -> Response:
    path = request.url.path
    found = ((view, params) for view in views if (params := view.match(path)) is not None)
    view, params = next(found, (_UNKNOWN, {}))
    server.counts.calls[request.method, view.pattern or path] += 1
    await asyncio.sleep(server.latency_seconds + server.latency_by_path.get(view.pattern, 0.0))
    outage = server.take_outage(path)
    if outage is not None:
        headers = {"Retry-After": str(outage.retry_after_seconds)}
        if outage.retry_after_seconds is None:
            headers = {}
        return Response("", status_code=outage.status, headers=headers, media_type="text/html")
    if view is _UNKNOWN and any(other.match(path + "/") is not None for other in views):
        return _redirect_to_slash(request)
    call = Call(server=server, request=request, view=view, params=params, raw=await request.body())
    try:
        return wire.respond(call, await _run(call))
    except Refusal as refusal:
        is_public = view.pattern.startswith("/api/public/v2/")
        never = _NEVER_CACHE_PUBLIC if is_public else _NEVER_CACHE
        headers = {"ETag": _etag(call), "Cache-Control": never} if view.cacheable else {}
        return wire.respond(call, Answer(body=refusal.body, status=refusal.status, headers=headers))
    except wire.Page as page:
        response = wire.respond_page(call, page)
        if view is _UNKNOWN:
            response.headers["Content-Language"] = "en"
        return response


def _redirect_to_slash(request: Request) -> Response:
    query = f"?{request.url.query}" if request.url.query else ""
    headers = {
        "Location": f"{request.url.path}/{query}",
        "Content-Type": "text/html; charset=utf-8",
        "Content-Language": "en",
        "Vary": "Cookie",
    }
    return Response(b"", status_code=301, headers=headers)


async def _run(call: Call) -> Answer:
    view, method = call.view, call.request.method
    call.csrf_token = wire.csrf_token_of(call)
    if view.csrf_always:
        wire.check_csrf_page(call)
    if view.session:
        _read_session(call)
    wire.check_csrf(call)
    handler = view.handlers.get("GET" if method == "HEAD" else method)
    if handler is None and method in view.writes:
        return _refuse_write(call)
    if handler is None:
        if view is _UNKNOWN:
            raise wire.page_not_found()
        raise Refusal(405, {"detail": f'Method "{method}" not allowed.'})
    answer = handler(call)
    return await answer if inspect.isawaitable(answer) else answer


def _read_session(call: Call) -> None:
    key = call.request.cookies.get(wire.SESSION_COOKIE)
    call.user, call.session_alive = call.server.read_session(key)
    call.session_key = key if call.session_alive else None
    call.delete_session_cookie = key is not None and not call.session_alive


def _refuse_write(call: Call) -> Answer:
    user = call.require_user()
    if not call.server.is_admin_of(user, user.facility_id):
        raise call.deny()
    raise Refusal(501, {"detail": "The simulator does not write: use /_control/"})


# ---- sessions ----------------------------------------------------------------------------


async def _log_in(call: Call) -> Answer:
    counts = call.server.counts
    counts.login_attempts += 1
    counts.logins_running += 1
    counts.max_concurrent_logins = max(counts.max_concurrent_logins, counts.logins_running)
    try:
        await asyncio.sleep(call.server.login_latency_seconds)
        account = _authenticate(call)
    finally:
        counts.logins_running -= 1
    if call.server.profile.prevalidate and call.query.get("prevalidate") == "true":
        return Answer(body={"full_name": account.full_name})
    call.session_key = call.server.log_in(account, call.session_key)
    call.user, call.csrf_token = account, wire.new_csrf_token()
    call.delete_session_cookie, call.session_touched = False, True
    return Answer(body=_session_body(call))


def _authenticate(call: Call) -> Account:
    """Return whose credentials these are, or refuse as the release does."""
    credentials = call.json()
    strict = call.server.profile.strict_login
    if not isinstance(credentials, dict):
        if not strict:
            raise wire.server_error()
        kind = type(credentials).__name__
        raise Refusal(400, [f"Invalid data. Expected a dictionary, but got {kind}."])
    username = _text(credentials, "username", strict=strict)
    password = _text(credentials, "password", strict=strict)
    facility_id = _login_facility(call, credentials)
    account = _find_login(call.server, username, password, facility_id)
    if account is not None:
        return account
    named = _named(call.server.accounts(), username, facility_id)
    if facility_id is None or not named:
        raise Refusal(400, [field_problem("NOT_FOUND", "username", "Username not found.")])
    if named[0].password is None:
        message = "Username is valid, but password needs to be set before login."
        raise Refusal(400, [field_problem("PASSWORD_NOT_SPECIFIED", "password", message)])
    if not password:
        message = "Username is valid, but password is missing."
        raise Refusal(400, [field_problem("MISSING_PASSWORD", "password", message)])
    raise Refusal(401, problem("INVALID_CREDENTIALS"))


def _text(credentials: dict[str, Any], name: str, *, strict: bool) -> str:
    value = credentials.get(name, "")
    if not strict:
        return "" if value is None else str(value)
    if value is None:
        raise Refusal(400, ["This field may not be null."])
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise Refusal(400, ["Not a valid string."])
    return str(value).strip()


def _login_facility(call: Call, credentials: dict[str, Any]) -> str | None:
    """Return the facility to look in; None means any, which only old releases do."""
    server = call.server
    if "facility" not in credentials:
        return server.population.facilities[0].id if server.profile.strict_login else None
    value = credentials["facility"]
    known = {facility.id for facility in server.population.facilities}
    facility_id = as_id(value)
    if facility_id in known:
        return facility_id
    if not server.profile.strict_login:
        return facility_id or "nowhere"
    if server.profile.unknown_facility_crashes:
        raise wire.server_error()
    if value is None or value == "":
        raise Refusal(400, ["This field may not be null."])
    if facility_id is None:
        kind = type(value).__name__
        raise Refusal(400, [f"Incorrect type. Expected pk value, received {kind}."])
    raise Refusal(400, [f'Invalid pk "{value}" - object does not exist.'])


def _find_login(
    server: Kolibri, username: str, password: str, facility_id: str | None
) -> Account | None:
    formal = {facility.id for facility in server.population.facilities if facility.passwordless}
    for account in _named(server.accounts(), username, facility_id):
        if account.password is not None and account.password == password:
            return account
        learner = not server.roles_of(account.id) and not account.is_superuser
        if learner and account.facility_id in formal:
            return account
    for account in _named(server.accounts(), username, None):
        if account.is_superuser and account.password == password:
            return account
    return None


def _named(accounts: Iterable[Account], username: str, facility_id: str | None) -> list[Account]:
    """Return accounts of this name, exact matches first; SQLite folds the case of ASCII only."""
    wanted = _fold(username)
    found = [
        account
        for account in accounts
        if _fold(account.username) == wanted and facility_id in {None, account.facility_id}
    ]
    return sorted(found, key=lambda account: account.username != username)


def _fold(text: str) -> str:
    return "".join(letter.lower() if letter.isascii() else letter for letter in text)


def _heartbeat(call: Call) -> Answer:
    if call.user is not None and call.session_key is not None:
        call.json()
        call.server.keep_alive(call.session_key)
        call.session_touched = True
    else:
        known = as_id(call.request.cookies.get("visitor_id"))
        visitor = known or data.hex_id("visitor", time.monotonic_ns())
        wire.set_cookie(call, "visitor_id", visitor, age=wire.VISITOR_AGE_SECONDS, same_site=False)
    return Answer(body=_session_body(call))


def _log_out(call: Call) -> Answer:
    if call.session_key is not None:
        call.server.sessions.pop(call.session_key, None)
        call.delete_session_cookie = True
    call.csrf_token = wire.new_csrf_token()
    return Answer(body=[])


def _session_body(call: Call) -> dict[str, object]:
    server, user = call.server, call.user
    body: dict[str, object] = {
        "username": user.username if user else "",
        "full_name": user.full_name if user else "",
        "user_id": user.id if user else None,
        "facility_id": user.facility_id if user else server.population.facilities[0].id,
        "kind": server.kinds_of(user),
        "full_facility_import": True,
        "id": "current",
        "server_time": instant(datetime.fromtimestamp(server.clock(), tz=UTC)),
        "app_context": False,
    }
    if user is not None:
        body["can_manage_content"] = user.can_manage_content or user.is_superuser
    return body


# ---- users -------------------------------------------------------------------------------


def _list_users(call: Call) -> Answer:
    accounts = _filter_users(call, call.server.readable_accounts(call.user))
    return _user_answer(call, accounts, default_order="username")


def _list_deleted_users(call: Call) -> Answer:
    readable = [
        account
        for account in call.server.deleted_accounts()
        if call.user is not None and call.server.is_admin_of(call.user, account.facility_id)
    ]
    return _user_answer(call, _filter_users(call, readable), default_order="date_deleted")


def _get_user(call: Call) -> Answer:
    wanted = as_id(call.params["id"])
    for account in _filter_users(call, call.server.readable_accounts(call.user)):
        if account.id == wanted:
            return Answer(body=_order_users(call, [_user_body(call, account)], "username")[0])
    raise call.not_found()


def _user_answer(call: Call, accounts: list[Account], *, default_order: str) -> Answer:
    accounts = _cut_order(call, accounts, default_order)
    size = _positive(call.query.get("page_size"))
    if size is None:
        bodies = [_user_body(call, account) for account in accounts]
        return Answer(body=_order_users(call, bodies, default_order))
    pages = max(1, -(-len(accounts) // size))
    page = _positive(call.query.get("page", "1"))
    if page is None or page > pages:
        raise call.not_found()
    bodies = [_user_body(call, account) for account in accounts[(page - 1) * size : page * size]]
    return Answer(
        body={
            "page": page,
            "count": len(accounts),
            "total_pages": pages,
            "results": _order_users(call, bodies, default_order),
        }
    )


def _positive(value: str | None) -> int | None:
    try:
        number = int(value or "")
    except ValueError:
        return None
    return number if number > 0 else None


_DATABASE_FIELDS = {
    "id": "id",
    "username": "username",
    "full_name": "full_name",
    "id_number": "id_number",
    "gender": "gender",
    "birth_year": "birth_year",
    "date_joined": "joined_at",
    "date_deleted": "deleted_at",
}


def _cut_order(call: Call, accounts: list[Account], default_order: str) -> list[Account]:
    """Order as the database does before a page is cut: by code point, not by letter."""
    term = call.query.get("ordering", "") if call.server.profile.ordering else ""
    fields = [name.strip() for name in term.split(",")]
    known = [name for name in fields if name.lstrip("-") in _DATABASE_FIELDS]
    if len(known) > 1:
        raise Refusal(400, ["Can only define a single ordering field"])
    chosen = known[0] if known else default_order
    attribute = _DATABASE_FIELDS[chosen.lstrip("-")]
    return sorted(
        accounts, key=lambda account: getattr(account, attribute), reverse=chosen.startswith("-")
    )


def _order_users(
    call: Call, bodies: list[dict[str, Any]], default_order: str
) -> list[dict[str, Any]]:
    """Re-sort one page as Kolibri does after the database: ignoring case, crashing on nonsense."""
    term = default_order
    if call.server.profile.ordering:
        term = call.query.get("ordering", default_order)
    name = term.removeprefix("-")

    def sort_key(body: dict[str, Any]) -> Any:
        return body[name].lower() if isinstance(body[name], str) else body[name]

    try:
        by_id = sorted(bodies, key=lambda body: body["id"])
        return sorted(by_id, key=sort_key, reverse=term.startswith("-"))
    except (KeyError, TypeError) as error:
        raise wire.server_error() from error


def _user_body(call: Call, account: Account) -> dict[str, Any]:
    profile = call.server.profile
    body: dict[str, Any] = {
        "id": account.id,
        "username": account.username,
        "full_name": account.full_name,
        "facility": account.facility_id,
        "id_number": account.id_number,
        "gender": account.gender,
        "birth_year": account.birth_year,
        "extra_demographics": None,
    }
    if profile.ordering:
        body["date_joined"] = instant(account.joined_at)
    if profile.picture_passwords:
        body["picture_password"] = None
    if account.deleted_at is not None:
        body["date_deleted"] = instant(account.deleted_at)
    body["is_superuser"] = account.is_superuser
    body["roles"] = [
        {"collection": role.collection, "kind": role.kind, "id": role.id}
        for role in call.server.roles_of(account.id)
        if _role_shows(call, account, role)
    ]
    return body


def _role_shows(call: Call, account: Account, role: data.Role) -> bool:
    """Return whether a role survives the filters: those on roles also hide the other roles."""
    profile, query = call.server.profile, call.query
    types = {query.get("user_type", "")} - {""}
    if profile.bulk_filters:
        types |= {one for one in query.get("user_type__in", "").split(",") if one}
        related = {as_id(one) for one in query.get("related_to__in", "").split(",") if one}
        member = _is_member(call.server, account, {one for one in related if one})
        if related and not member and role.collection not in related:
            return False
    if "coach" in types:
        types.add("classroom assignable coach")
    by_account = "superuser" in types and account.is_superuser
    return not types or by_account or role.kind in types


_USER_TYPES = ("learner", "superuser", "admin", "coach", "classroom assignable coach")


def _filter_users(call: Call, accounts: list[Account]) -> list[Account]:
    server, query, errors = call.server, call.query, _Errors()
    kept = accounts
    if collection := errors.collection(call, "member_of"):
        kept = [one for one in kept if _is_member(server, one, {collection})]
    if server.profile.bulk_filters and (wanted := errors.ids(query, "by_ids")):
        kept = [one for one in kept if one.id in wanted]
    if server.profile.bulk_filters and (related := errors.collections(call, "related_to__in")):
        kept = [one for one in kept if _is_related(server, one, related)]
    if chosen := errors.choices(query, "user_type", _USER_TYPES):
        kept = [one for one in kept if _is_of_type(server, one, chosen)]
    if server.profile.bulk_filters:
        several = errors.choices(query, "user_type__in", _USER_TYPES, several=True)
        kept = [one for one in kept if not several or _is_of_type(server, one, several)]
        for name, sign in (("date_joined__gte", 1), ("date_joined__lte", -1)):
            if moment := errors.moment(query, name):
                kept = [one for one in kept if sign * (one.joined_at - moment).total_seconds() >= 0]
    if collection := errors.collection(call, "exclude_member_of"):
        kept = [one for one in kept if not _is_member(server, one, {collection})]
    if collection := errors.collection(call, "exclude_coach_for"):
        kept = [one for one in kept if not _coaches(server, one, collection)]
    if excluded := errors.choices(query, "exclude_user_type", _USER_TYPES):
        kept = [one for one in kept if not _has_exact_type(server, one, excluded)]
    errors.check()
    for word in query.get("search", "").replace(",", " ").split():
        folded = _fold(word)
        kept = [
            one for one in kept if folded in _fold(one.username) or folded in _fold(one.full_name)
        ]
    return kept


def _is_member(server: Kolibri, account: Account, collections: set[str]) -> bool:
    return account.facility_id in collections or not collections.isdisjoint(
        server.collections_of(account.id)
    )


def _is_related(server: Kolibri, account: Account, collections: set[str]) -> bool:
    return _is_member(server, account, collections) or any(
        role.collection in collections for role in server.roles_of(account.id)
    )


def _coaches(server: Kolibri, account: Account, collection: str) -> bool:
    return any(
        role.collection == collection and role.kind != "admin"
        for role in server.roles_of(account.id)
    )


def _is_of_type(server: Kolibri, account: Account, types: set[str]) -> bool:
    kinds = {role.kind for role in server.roles_of(account.id)}
    wanted = types | {"classroom assignable coach"} if "coach" in types else types
    return (
        ("learner" in types and not kinds)
        or ("superuser" in types and account.is_superuser)
        or not kinds.isdisjoint(wanted)
    )


def _has_exact_type(server: Kolibri, account: Account, types: set[str]) -> bool:
    kinds = {role.kind for role in server.roles_of(account.id)}
    return (
        ("learner" in types and not kinds)
        or ("superuser" in types and account.is_superuser)
        or not kinds.isdisjoint(types)
    )


class _Errors:
    """Reads query parameters and gathers what is wrong with them into one answer."""

    def __init__(self) -> None:
        self.found: list[dict[str, object]] = []

    def check(self) -> None:
        if self.found:
            raise Refusal(400, self.found)

    def collection(
        self,
        call: Call,
        name: str,
        *,
        kinds: tuple[str, ...] = ("facility", "classroom", "learnergroup", "adhoclearnersgroup"),
    ) -> str | None:
        value = call.query.get(name, "")
        if not value:
            return None
        known = _kind_of(call.server, as_id(value))
        if known in kinds:
            return as_id(value)
        self.found.append(field_problem("INVALID_CHOICE", name, _INVALID_CHOICE))
        return None

    def collections(self, call: Call, name: str) -> set[str]:
        values = [as_id(value) for value in call.query.get(name, "").split(",") if value]
        known = {value for value in values if value and _kind_of(call.server, value)}
        if len(known) < len(set(values)):
            self.found.append(field_problem("INVALID_CHOICE", name, _INVALID_CHOICE))
        return known

    def account(self, call: Call, name: str) -> str | None:
        value = call.query.get(name, "")
        if not value:
            return None
        wanted = as_id(value)
        if wanted is not None and call.server.is_known_account(wanted):
            return wanted
        self.found.append(field_problem("INVALID_CHOICE", name, _INVALID_CHOICE))
        return None

    def ids(self, query: Any, name: str) -> set[str]:
        values = [value for value in query.get(name, "").split(",") if value]
        ids = {as_id(value) for value in values}
        if None in ids:
            self.found.append(field_problem("INVALID", name, "Enter a valid UUID."))
        return {value for value in ids if value is not None}

    def choices(
        self, query: Any, name: str, known: tuple[str, ...], *, several: bool = False
    ) -> set[str]:
        value = query.get(name, "")
        values = value.split(",") if several else [value]
        for one in values:
            if one and one not in known:
                message = f"Select a valid choice. {one} is not one of the available choices."
                self.found.append(field_problem("INVALID_CHOICE", name, message))
        return {one for one in values if one}

    def moment(self, query: Any, name: str) -> datetime | None:
        value = query.get(name, "")
        if not value:
            return None
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.found.append(field_problem("INVALID", name, "Enter a valid date/time."))
            return None
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _kind_of(server: Kolibri, collection_id: str | None) -> str | None:
    if collection_id in server.collections:
        return server.collections[collection_id].kind
    known = {facility.id for facility in server.population.facilities}
    return "facility" if collection_id in known else None


# ---- classes, groups, memberships, roles, facilities -------------------------------------


def _readable_collections(call: Call, kind: str) -> list[data.Collection]:
    return sorted(
        (
            item
            for item in call.server.collections_of_kind(kind)
            if call.server.may_read_in(call.user, item.facility, item.id)
        ),
        key=lambda item: item.id,
    )


def _list_classrooms(call: Call) -> Answer:
    errors = _Errors()
    parent = errors.collection(call, "parent", kinds=("facility",))
    errors.check()
    items = _readable_collections(call, "classroom")
    return Answer(
        body=[_classroom_body(call, item) for item in items if parent in {None, item.parent}]
    )


def _get_classroom(call: Call) -> Answer:
    return Answer(
        body=_classroom_body(call, _require(call, _readable_collections(call, "classroom")))
    )


def _require(call: Call, items: Iterable[Any]) -> Any:
    wanted = as_id(call.params["id"])
    for item in items:
        if item.id == wanted:
            return item
    raise call.not_found()


def _classroom_body(call: Call, item: data.Collection) -> dict[str, Any]:
    server = call.server
    return {
        "id": item.id,
        "name": item.name,
        "parent": item.parent,
        "learner_count": len(server.people_of(item.id)),
        "coaches": [
            _coach_body(server, account, item.parent)
            for role in server.roles.values()
            if role.collection == item.id
            and (account := server.find_account(role.person)) is not None
        ],
    }


def _coach_body(server: Kolibri, account: Account, facility_id: str) -> dict[str, Any]:
    return {
        "id": account.id,
        "facility": facility_id,
        "is_superuser": account.is_superuser,
        "full_name": account.full_name,
        "username": account.username,
        "roles": [
            {"kind": role.kind, "collection": role.collection, "id": role.id}
            for role in server.roles_of(account.id)
            if role.collection == facility_id
        ],
    }


def _list_groups(call: Call) -> Answer:
    errors = _Errors()
    parent = errors.collection(call, "parent")
    errors.check()
    items = _readable_collections(call, "learnergroup")
    return Answer(body=[_group_body(call, item) for item in items if parent in {None, item.parent}])


def _group_body(call: Call, item: data.Collection) -> dict[str, Any]:
    return {
        "id": item.id,
        "name": item.name,
        "parent": item.parent,
        "user_ids": [account.id for account in call.server.people_of(item.id)],
    }


def _membership_body(row: data.Membership) -> dict[str, Any]:
    return {"id": row.id, "collection": row.collection, "user": row.person}


def _role_body(row: data.Role) -> dict[str, Any]:
    return {"id": row.id, "kind": row.kind, "collection": row.collection, "user": row.person}


def _list_memberships(call: Call) -> Answer:
    rows = _filter_rows(call, call.server.readable_memberships(call.user))
    return Answer(body=[_membership_body(row) for row in rows])


def _get_membership(call: Call) -> Answer:
    return Answer(
        body=_membership_body(_require(call, call.server.readable_memberships(call.user)))
    )


_ROLE_KINDS = ("admin", "coach", "classroom assignable coach")


def _list_roles(call: Call) -> Answer:
    errors = _Errors()
    kinds = errors.choices(call.query, "kind", _ROLE_KINDS)
    rows = _filter_rows(call, call.server.readable_roles(call.user), errors)
    return Answer(body=[_role_body(row) for row in rows if not kinds or row.kind in kinds])


def _filter_rows(call: Call, rows: list[Any], errors: _Errors | None = None) -> list[Any]:
    errors = errors or _Errors()
    user = errors.account(call, "user")
    collection = errors.collection(call, "collection")
    errors.check()
    users = _raw_ids(call, "user_ids")
    ids = _raw_ids(call, "by_ids") if call.server.profile.bulk_filters else None
    return [
        row
        for row in rows
        if user in {None, row.person}
        and collection in {None, row.collection}
        and (users is None or row.person in users)
        and (ids is None or row.id in ids)
    ]


def _raw_ids(call: Call, name: str) -> set[str] | None:
    """Return the ids of an unchecked filter, on which Kolibri crashes where one is no id."""
    value = call.query.get(name, "")
    if not value:
        return None
    ids = {as_id(one) for one in value.split(",")}
    if None in ids:
        raise wire.server_error()
    return {one for one in ids if one is not None}


def _list_facilities(call: Call) -> Answer:
    facilities = sorted(call.server.population.facilities, key=lambda facility: facility.id)
    return Answer(body=[_facility_body(call, facility) for facility in facilities])


def _get_facility(call: Call) -> Answer:
    return Answer(body=_facility_body(call, _require(call, call.server.population.facilities)))


def _facility_body(call: Call, facility: data.Facility) -> dict[str, Any]:
    server = call.server
    people = [one for one in server.accounts() if one.facility_id == facility.id]
    open_school = not facility.passwordless
    dataset = {
        "id": facility.dataset_id,
        "learner_can_edit_username": open_school,
        "learner_can_edit_name": open_school,
        "learner_can_edit_password": open_school,
        "learner_can_sign_up": open_school,
        "learner_can_delete_account": open_school,
        "learner_can_login_with_no_password": facility.passwordless,
        "show_download_button_in_learn": open_school,
        "extra_fields": {"facility": {}, "on_my_own_setup": False, "pin_code": ""},
        "description": "",
        "location": "",
        "registered": False,
        "preset": facility.preset,
    }
    body: dict[str, Any] = {
        "id": facility.id,
        "name": facility.name,
        "num_users": len(people),
        "num_classrooms": sum(
            item.parent == facility.id for item in server.collections_of_kind("classroom")
        ),
        "last_successful_sync": None,
        "last_failed_sync": None,
        "dataset": dataset,
    }
    if server.profile.picture_passwords:
        body["num_learners"] = sum(not server.roles_of(one.id) for one in people)
        body["picture_passwords_exhausted"] = False
        dataset["picture_password_settings"] = None
    return body


def _list_public_facilities(call: Call) -> Answer:
    bodies = []
    for facility in call.server.population.facilities:
        body = {
            "id": facility.id,
            "dataset": facility.dataset_id,
            "name": facility.name,
            "learner_can_login_with_no_password": facility.passwordless,
            "learner_can_sign_up": not facility.passwordless,
            "on_my_own_setup": False,
        }
        if call.server.profile.picture_passwords:
            body["picture_password_settings"] = None
        bodies.append(body)
    return Answer(body=bodies)


def _info(call: Call) -> Answer:
    body: dict[str, object] = {
        "application": "kolibri",
        "kolibri_version": call.server.profile.version,
        "instance_id": call.server.instance_id,
        "device_name": data.DEVICE_NAME,
        "operating_system": "Linux",
    }
    if call.query.get("v", "1") != "1":
        body["subset_of_users_device"] = False
        body["min_content_schema_version"] = "5"
    return Answer(body=body)


# ---- content -----------------------------------------------------------------------------


def _not_modified(call: Call) -> bool:
    offered = call.request.headers.get("if-none-match", "")
    tags = {tag.strip().removeprefix("W/") for tag in offered.split(",")}
    return _etag(call) in tags


def _etag(call: Call) -> str:
    return f'"{call.server.content_changed_at}"'


def _content_answer(call: Call, body: object, *, public: bool = False) -> Answer:
    headers = {"ETag": _etag(call)}
    if public:
        headers["Cache-Control"] = "max-age=300, stale-while-revalidate=100, public"
    if _not_modified(call):
        return Answer(body=b"", status=304, headers=headers)
    return Answer(body=body, headers=headers)


def _list_channels(call: Call) -> Answer:
    link = call.server.profile.thumbnail_urls
    return _content_answer(
        call, [_channel_body(call, channel, link=link) for channel in _filter_channels(call)]
    )


def _get_channel(call: Call) -> Answer:
    channel = _require(call, _filter_channels(call))
    link = call.server.profile.thumbnail_urls
    return _content_answer(call, _channel_body(call, channel, link=link))


def _list_public_channels(call: Call) -> Answer:
    channels = [channel for channel in _filter_channels(call) if channel.public]
    bodies = [_channel_body(call, channel, link=False) for channel in channels]
    return _content_answer(call, bodies, public=True)


def _get_public_channel(call: Call) -> Answer:
    channel = _require(call, [channel for channel in _filter_channels(call) if channel.public])
    return _content_answer(call, _channel_body(call, channel, link=False), public=True)


_TRUE, _FALSE = ("true", "True", "1"), ("false", "False", "0")


def _filter_channels(call: Call) -> list[data.Channel]:
    channels = call.server.population.channels
    available = call.query.get("available")
    if available in _TRUE + _FALSE:
        channels = [one for one in channels if one.available == (available in _TRUE)]
    if call.query.get("contains_exercise") in _TRUE + _FALSE:
        channels = [
            one
            for one in channels
            if any(node.available and node.kind == "exercise" for node in one.nodes)
        ]
    if call.query.get("contains_quiz") in _TRUE:
        channels = []
    return channels


def _channel_body(call: Call, channel: data.Channel, *, link: bool) -> dict[str, Any]:
    thumbnail = channel.thumbnail
    if link and thumbnail:
        thumbnail = f"/api/content/channel-thumbnail/{channel.id}/"
    body: dict[str, Any] = {
        "author": "",
        "description": channel.description,
        "tagline": channel.tagline,
        "id": channel.id,
        "last_updated": instant(channel.updated_at),
        "name": channel.name,
        "root": channel.nodes[0].id,
        "thumbnail": thumbnail,
        "version": channel.version,
        "public": channel.public,
        "total_resource_count": channel.resource_count,
        "published_size": channel.published_size,
        "num_coach_contents": 0,
        "available": channel.available,
        "lang_code": channel.language,
        "lang_name": _LANGUAGES[channel.language],
        "included_languages": [channel.language],
        "last_published": instant(channel.updated_at),
    }
    if call.server.profile.channel_labels:
        body["included_categories"] = list(channel.categories)
        body["included_grade_levels"] = list(channel.grade_levels)
    return body


def _list_v1_channels(call: Call) -> Answer:
    if call.params["version"] != "v1":
        raise Refusal(404, {"id": "NOT_FOUND", "metadata": {"view": ""}})
    keyword, language = (call.query.get(name, "").strip() for name in ("keyword", "language"))
    bodies = [
        _v1_channel_body(channel)
        for channel in call.server.population.channels
        if channel.available
        and channel.public is not False
        and _fold(keyword) in _fold(channel.name + "\n" + channel.description)
        and language in channel.language
    ]
    return Answer(body=bodies, spaced_json=True)


def _v1_channel_body(channel: data.Channel) -> dict[str, Any]:
    return {
        "id": channel.id,
        "name": channel.name,
        "language": channel.language,
        "included_languages": [channel.language],
        "description": channel.description,
        "tagline": channel.tagline,
        "total_resource_count": channel.resource_count,
        "version": channel.version,
        "published_size": channel.published_size,
        "last_published": f"{channel.updated_at:%Y-%m-%d %H:%M:%S.%f}(UTC)",
        "icon_encoding": channel.thumbnail,
        "matching_tokens": [],
        "public": channel.public,
    }


def _thumbnail(call: Call) -> Answer:
    channel = call.server.channels.get(as_id(call.params["id"]) or "")
    if channel is None or "," not in channel.thumbnail:
        raise wire.page_not_found()
    header, encoded = channel.thumbnail.split(",", 1)
    try:
        content = base64.urlsafe_b64decode(encoded)
    except binascii.Error as error:
        raise wire.server_error() from error
    return Answer(body=content, media_type=header.split(":")[1].split(";")[0])


# ---- lessons, exams, courses, class summary ----------------------------------------------


def _class_row(server: Kolibri, collection_id: str) -> dict[str, Any]:
    item = server.collections[collection_id]
    return {"id": item.id, "name": item.name, "parent": item.parent}


def _chosen_collection(call: Call) -> str | None:
    errors = _Errors()
    collection = errors.collection(call, "collection")
    errors.check()
    return collection


def _list_lessons(call: Call) -> Answer:
    return Answer(body=_lesson_bodies(call, _chosen_collection(call)))


def _lesson_bodies(call: Call, collection: str | None) -> list[dict[str, Any]]:
    server = call.server
    bodies = []
    for lesson in server.population.lessons:
        class_id = server.ids[lesson.collection]
        if collection not in {None, class_id} or not _may_read_class(call, class_id):
            continue
        resources = [
            {
                "contentnode_id": node.id,
                "content_id": node.content_id,
                "channel_id": node.channel_id,
            }
            for node in lesson.nodes
        ]
        bodies.append(
            {
                "id": lesson.id,
                "title": lesson.title,
                "description": lesson.description,
                "resources": resources,
                "collection": class_id,
                "created_by": server.ids["a:service_admin"],
                "date_created": instant(lesson.created_at),
                "active": lesson.active,
                "classroom": _class_row(server, class_id),
                "assignments": [server.ids[lesson.assigned_to]],
                "learner_ids": [],
            }
        )
    return bodies


def _may_read_class(call: Call, class_id: str) -> bool:
    return call.server.may_read_in(call.user, call.server.facility_of(class_id), class_id)


def _list_exams(call: Call) -> Answer:
    return Answer(body=_exam_bodies(call, _chosen_collection(call)))


def _exam_bodies(call: Call, collection: str | None) -> list[dict[str, Any]]:
    server = call.server
    bodies = []
    for exam in server.population.exams:
        class_id = server.ids[exam.collection]
        takes = call.user is not None and class_id in server.collections_of(call.user.id)
        readable = _may_read_class(call, class_id) or (takes and exam.active)
        if collection not in {None, class_id} or not readable:
            continue
        bodies.append(
            {
                "id": exam.id,
                "title": exam.title,
                "question_sources": exam.question_sources,
                "seed": 7,
                "collection": class_id,
                "question_count": data.EXAM_QUESTIONS,
                "creator": server.ids["a:service_admin"],
                "data_model_version": 3,
                "learners_see_fixed_order": False,
                "instant_report_visibility": True,
                "date_created": instant(exam.created_at),
                "active": exam.active,
                "archive": exam.archive,
                "date_archived": instant(exam.created_at) if exam.archive else None,
                "date_activated": instant(exam.created_at) if exam.active else None,
                "assignments": [class_id],
                "learner_ids": [],
                "draft": False,
            }
        )
    return bodies


def _readable_course_sessions(
    call: Call, collection: str | None = None
) -> list[data.CourseSession]:
    server = call.server
    found = [
        replace(one, collection=server.ids[one.collection], assigned_to=server.ids[one.assigned_to])
        for one in sorted(
            server.population.course_sessions, key=lambda one: one.created_at, reverse=True
        )
    ]
    return [
        one
        for one in found
        if collection in {None, one.collection} and _may_read_class(call, one.collection)
    ]


def _list_course_sessions(call: Call) -> Answer:
    collection = _chosen_collection(call)
    return Answer(
        body=[
            _course_session_body(call, one) for one in _readable_course_sessions(call, collection)
        ]
    )


def _get_course_session(call: Call) -> Answer:
    return Answer(body=_course_session_body(call, _require(call, _readable_course_sessions(call))))


def _course_session_body(call: Call, one: data.CourseSession) -> dict[str, Any]:
    server = call.server
    hidden = server.collections[one.assigned_to].kind == "adhoclearnersgroup"
    learners = [account.id for account in server.people_of(one.assigned_to)] if hidden else []
    return {
        "id": one.id,
        "title": one.course.title,
        "description": one.course.description,
        "course": one.course.id,
        "collection": one.collection,
        "created_by": server.ids["a:service_admin"],
        "date_created": instant(one.created_at),
        "missing_resource": not one.course.available,
        "active": one.active,
        "classroom": _class_row(server, one.collection),
        "assignments": [] if hidden else [one.assigned_to],
        "learner_ids": learners,
    }


def _last_unit_test(call: Call) -> Answer:
    one: data.CourseSession = _require(call, _readable_course_sessions(call))
    if one.pre_test is None:
        units = (node for node in call.server.nodes.values() if node.modality == "UNIT")
        names = ("id", "unit_contentnode_id", "test_type", "closed", "activated_by")
        body: dict[str, Any] = dict.fromkeys(names)
        body |= {"unit_phase": "pre_test_pending", "active_unit_id": next(units).id}
        return Answer(body=body)
    person, unit = one.pre_test
    account = call.server.find_account(call.server.ids[person])
    body = {
        "id": data.hex_id("unit_test", one.key),
        "unit_contentnode_id": unit.id,
        "test_type": "pre",
        "closed": True,
        "activated_by": account
        and {"id": account.id, "username": account.username, "full_name": account.full_name},
        "unit_phase": "post_test_pending",
        "active_unit_id": unit.id,
    }
    return Answer(body=body)


def _class_summary(call: Call) -> Answer:
    call.require_user()
    server = call.server
    class_id = as_id(call.params["id"]) or ""
    item = server.collections.get(class_id)
    if item is None or item.kind != "classroom" or not _may_read_class(call, class_id):
        raise call.deny()
    lessons, exams = _lesson_bodies(call, class_id), _exam_bodies(call, class_id)
    for body in lessons:
        body["node_ids"] = [row["contentnode_id"] for row in body["resources"]]
    for body in exams:
        questions = body["question_sources"][0]["questions"]
        body["node_ids"] = [question["exercise_id"] for question in questions]
    node_ids = {node_id for body in lessons + exams for node_id in body["node_ids"]}
    for body in lessons + exams:
        body["groups"] = [one for one in body["assignments"] if one != class_id]
        body["missing_resource"] = not all(server.nodes[one].available for one in body["node_ids"])
    summary: dict[str, Any] = {
        "id": class_id,
        "facility_id": item.parent,
        "name": item.name,
        "coaches": [
            _summary_user(call, account)
            for role in server.roles.values()
            if role.collection == class_id
            and role.kind == "coach"
            and (account := server.find_account(role.person)) is not None
        ],
        "learners": [_summary_user(call, account) for account in server.people_of(class_id)],
        "groups": _summary_groups(server, class_id, "learnergroup"),
        "adhoclearners": _summary_groups(server, class_id, "adhoclearnersgroup"),
        "exams": exams,
        "exam_learner_status": _exam_status(server, {body["id"] for body in exams}),
        "content": [_summary_node(server.nodes[one]) for one in sorted(node_ids)],
        "content_learner_status": _content_status(server, class_id, lessons),
        "lessons": lessons,
    }
    if server.profile.picture_passwords:
        summary["picture_password_settings"] = None
    return Answer(body=summary)


def _summary_user(call: Call, account: Account) -> dict[str, Any]:
    body: dict[str, Any] = {
        "id": account.id,
        "username": account.username,
        "name": account.full_name,
    }
    if call.server.profile.picture_passwords:
        body["picture_password"] = None
    return body


def _summary_groups(server: Kolibri, class_id: str, kind: str) -> list[dict[str, Any]]:
    return [
        {
            "id": item.id,
            "name": item.name,
            "member_ids": [account.id for account in server.people_of(item.id)],
        }
        for item in server.collections_of_kind(kind)
        if item.parent == class_id
    ]


def _summary_node(node: data.Node) -> dict[str, Any]:
    return {
        "available": node.available,
        "content_id": node.content_id,
        "title": node.title,
        "kind": node.kind,
        "channel_id": node.channel_id,
        "options": {},
        "node_id": node.id,
    }


def _exam_status(server: Kolibri, exam_ids: set[str]) -> list[dict[str, Any]]:
    return [
        {
            "num_correct": float(sum(result.answers)),
            "num_answered": len(result.answers),
            "last_activity": instant(result.ended_at),
            "previous_num_correct": 0,
            "learner_id": server.ids[result.person],
            "status": "Completed" if result.complete else "Started",
            "exam_id": server.ids[result.exam],
        }
        for result in server.population.exam_results
        if server.ids[result.exam] in exam_ids
    ]


def _content_status(
    server: Kolibri, class_id: str, lessons: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    contents = {row["content_id"] for body in lessons for row in body["resources"]}
    learners = {account.id for account in server.people_of(class_id)}
    lesson_ids = {body["id"] for body in lessons}
    stuck = {
        (server.ids[one.person], one.node.content_id)
        for one in server.population.help_needed
        if server.ids[one.lesson] in lesson_ids
    }
    return [
        {
            "learner_id": server.ids[log.person],
            "content_id": log.content_id,
            "status": _status_word(log, (server.ids[log.person], log.content_id) in stuck),
            "last_activity": instant(log.ended_at),
            "time_spent": log.time_spent_seconds,
            "tries": int(log.kind == "exercise"),
        }
        for log in server.population.summary_logs
        if log.content_id in contents and server.ids[log.person] in learners
    ]


def _status_word(log: data.SummaryLog, stuck: object) -> str:
    if log.progress >= 1:
        return "Completed"
    return "HelpNeeded" if stuck else "Started"


# ---- export tasks ------------------------------------------------------------------------


def _start_task(call: Call) -> Answer:
    request = call.json()
    kind = request.get("type") if isinstance(request, dict) else None
    if not isinstance(kind, str):
        raise Refusal(400, ["The task type must be a string."])
    if kind != EXPORT_TASK:
        message = f"{kind} is not a registered task - is it in a tasks module of an installed app?"
        raise Refusal(400, [message])
    arguments = _task_arguments(call, request)
    if call.user is None or not call.server.is_admin_of(call.user, str(arguments["facility"])):
        raise Refusal(403, problem("PERMISSION_DENIED", view=call.view.name))
    return Answer(body=_job_body(call, call.server.start_job(kind, call.user, arguments)))


def _task_arguments(call: Call, request: dict[str, Any]) -> dict[str, object]:
    errors = []
    facility_id = call.user.facility_id if call.user else ""
    if "facility" in request:
        value = request["facility"]
        facility_id = as_id(value) or ""
        known = {facility.id for facility in call.server.population.facilities}
        if not facility_id:
            message = f"Incorrect type. Expected pk value, received {type(value).__name__}."
            errors.append(field_problem("INCORRECT_TYPE", "facility", message))
        elif facility_id not in known:
            message = f'Invalid pk "{value}" - object does not exist.'
            errors.append(field_problem("DOES_NOT_EXIST", "facility", message))
    for name in ("start_date", "end_date"):
        if name not in request:
            errors.append(field_problem("REQUIRED", name, "This field is required."))
        elif request[name] is None:
            errors.append(field_problem("NULL", name, "This field may not be null."))
    if errors:
        raise Refusal(400, errors)
    return {
        "facility": facility_id,
        "start_date": str(request["start_date"]),
        "end_date": str(request["end_date"]),
        "locale": request.get("locale"),
    }


def _list_tasks(call: Call) -> Answer:
    jobs = [
        job
        for job in call.server.jobs.values()
        if call.server.is_admin_of(call.user, job.facility_id)
    ]
    return Answer(body=[_job_body(call, job) for job in jobs])


def _get_task(call: Call) -> Answer:
    job = _require_job(call)
    job.polls += 1
    _finish_due_jobs(call.server)
    return Answer(body=_job_body(call, job))


def _clear_task(call: Call) -> Answer:
    job = _require_job(call)
    if not job.done:
        raise Refusal(400, ["Cannot clear job with state: QUEUED"])
    del call.server.jobs[call.params["id"]]
    return Answer(body={})


def _require_job(call: Call) -> Job:
    job = call.server.jobs.get(call.params["id"])
    if job is None:
        raise call.not_found()
    if not call.server.is_admin_of(call.user, job.facility_id):
        raise Refusal(403, problem("PERMISSION_DENIED", view=call.view.name))
    return job


def _finish_due_jobs(server: Kolibri) -> None:
    for job in server.due_jobs():
        job.done = True
        start, end = str(job.arguments["start_date"]), str(job.arguments["end_date"])
        content = summary_export.write_summary_csv(server, job.facility_id, start, end)
        server.exports["summary", job.facility_id] = (start[:10], end[:10], content)


def _job_body(call: Call, job: Job) -> dict[str, Any]:
    metadata: dict[str, object] = {
        "started_by": job.started_by.id,
        "started_by_username": job.started_by.username,
    }
    status, percentage = ("RUNNING", 0.4) if job.polls else ("QUEUED", 0)
    if job.done:
        status, percentage = "COMPLETED", 1.0
        metadata["overall_error"] = ""
        start, end = str(job.arguments["start_date"])[:10], str(job.arguments["end_date"])[:10]
        stem = _export_stem(call.server, job.facility_id)
        metadata["filename"] = f"{stem}_content_summary_logs_from_{start}_to_{end}.csv"
    body = {
        "status": status,
        "type": job.kind,
        "exception": None,
        "traceback": "",
        "percentage": percentage,
        "id": job.id,
        "cancellable": False,
        "clearable": job.done,
        "facility_id": job.facility_id,
        "args": [job.facility_id],
        "kwargs": job.arguments,
        "extra_metadata": metadata,
        "scheduled_datetime": datetime.fromtimestamp(job.created_at, tz=UTC).isoformat(),
        "repeat": 0,
        "repeat_interval": 0,
        "retry_interval": None,
    }
    if call.server.profile.job_max_retries:
        body["max_retries"] = None
    return body


def _export_stem(server: Kolibri, facility_id: str) -> str:
    names = {facility.id: facility.name for facility in server.population.facilities}
    return f"{names[facility_id]}_{facility_id[:4]}"


def _download(call: Call) -> Answer:
    if call.user is None:
        raise wire.forbidden_page()
    facility_id = as_id(call.params["facility"])
    known = {facility.id for facility in call.server.population.facilities}
    if facility_id is None:
        raise wire.server_error()
    if facility_id not in known:
        raise wire.page_not_found()
    if not call.server.is_admin_of(call.user, facility_id):
        raise wire.forbidden_page()
    _finish_due_jobs(call.server)
    export = call.server.exports.get((call.params["kind"], facility_id))
    if export is None:
        raise wire.server_error()
    start, end, content = export
    stem = _export_stem(call.server, facility_id)
    name = f"{stem}_content_summary_logs_from{start}_to{end}.csv"
    headers = {"Content-Disposition": f"attachment; filename={name}"}
    return Answer(body=content, media_type="text/csv", headers=headers)


# ---- routes ------------------------------------------------------------------------------

_UNKNOWN = View(pattern="", name="", handlers={}, rest=False)
_LIST = "GET, POST, DELETE, HEAD, OPTIONS"
_ONE = "GET, PUT, PATCH, DELETE, HEAD, OPTIONS"
_WRITE_LIST, _WRITE_ONE = ("POST", "DELETE"), ("PUT", "PATCH", "DELETE")


def _views(kolibri: Kolibri) -> list[View]:
    profile = kolibri.profile
    views = [
        _session_view("/api/auth/session/", "Session List", "POST, OPTIONS", POST=_log_in),
        _session_view(
            "/api/auth/session/{id}/",
            "Session Instance",
            "PUT, DELETE, OPTIONS",
            PUT=_heartbeat,
            DELETE=_log_out,
        ),
        *_resource("auth/facilityuser", "Facility User", _list_users, _get_user),
        *_resource("auth/classroom", "Classroom", _list_classrooms, _get_classroom, bulk=False),
        *_resource("auth/learnergroup", "Learner Group", _list_groups, bulk=False),
        *_resource("auth/membership", "Membership", _list_memberships, _get_membership),
        *_resource("auth/role", "Role", _list_roles),
        *_resource("auth/facility", "Facility", _list_facilities, _get_facility, bulk=False),
        *_resource("lessons/lesson", "Lesson", _list_lessons, bulk=False),
        *_resource("exams/exam", "Exam", _list_exams, bulk=False),
        _read("/api/public/info/", "Info List", _info),
        _read("/api/public/v1/facility/", "Public Facility List", _list_public_facilities),
        _content("/api/content/channel/", "Channel Metadata List", _list_channels),
        _content("/api/content/channel/{id}/", "Channel Metadata Instance", _get_channel),
        _content("/api/public/v2/channel/", "Public Channel Metadata List", _list_public_channels),
        _content(
            "/api/public/v2/channel/{id}/", "Public Channel Metadata Instance", _get_public_channel
        ),
        *(
            View(
                pattern=f"/api/public/{{version}}/channels{slash}",
                name="Get Public Channel List",
                handlers={"GET": _list_v1_channels},
                allow="GET, OPTIONS",
            )
            for slash in ("", "/")
        ),
        _read("/coach/api/classsummary/{id}/", "Class Summary Instance", _class_summary),
        View(
            pattern="/api/tasks/tasks/",
            name="Tasks List",
            handlers={"GET": _list_tasks, "POST": _start_task},
            allow=_LIST,
            csrf_always=True,
        ),
        View(
            pattern="/api/tasks/tasks/{id}/",
            name="Tasks Instance",
            handlers={"GET": _get_task},
            allow=_ONE,
            csrf_always=True,
        ),
        View(
            pattern="/api/tasks/tasks/{id}/clear/",
            name="Clear",
            handlers={"POST": _clear_task},
            allow="POST, OPTIONS",
            csrf_always=True,
        ),
        View(
            pattern="/facility/api/downloadcsvfile/{kind}/{facility}/",
            name="",
            handlers={"GET": _download},
            rest=False,
        ),
    ]
    if profile.thumbnail_urls:
        views.append(
            View(
                pattern="/api/content/channel-thumbnail/{id}/",
                name="",
                handlers={"GET": _thumbnail},
                rest=False,
                session=False,
            )
        )
    if profile.soft_delete:
        views.append(
            View(
                pattern="/api/auth/deletedfacilityuser/",
                name="Deleted Facility User List",
                handlers={"GET": _list_deleted_users},
                allow="GET, DELETE, HEAD, OPTIONS",
                writes=("DELETE",),
            )
        )
    if profile.courses:
        views += _resource(
            "courses/coursesession",
            "Course Session Viewset",
            _list_course_sessions,
            _get_course_session,
            bulk=False,
        )
        views.append(
            _read(
                "/api/courses/coursesession/{id}/last_unit_test/",
                "Course Session Last Unit Test",
                _last_unit_test,
            )
        )
    return views


def _session_view(pattern: str, name: str, allow: str, **handlers: wire.Handler) -> View:
    return View(pattern=pattern, name=name, handlers=handlers, allow=allow, csrf_cookie=True)


def _read(pattern: str, name: str, handler: wire.Handler) -> View:
    return View(pattern=pattern, name=name, handlers={"GET": handler})


def _content(pattern: str, name: str, handler: wire.Handler) -> View:
    return View(
        pattern=pattern,
        name=name,
        handlers={"GET": handler, "POST": handler},  # the cache in front does not look
        session=False,
        cacheable=True,
        vary="Accept",
    )


def _resource(
    path: str,
    name: str,
    list_handler: wire.Handler,
    get_handler: wire.Handler | None = None,
    *,
    bulk: bool = True,
) -> list[View]:
    """Return the list view of a kind of object, and the view of one if there is a handler."""
    views = [
        View(
            pattern=f"/api/{path}/",
            name=f"{name} List",
            handlers={"GET": list_handler},
            allow=_LIST if bulk else "GET, POST, HEAD, OPTIONS",
            writes=_WRITE_LIST if bulk else ("POST",),
        )
    ]
    if get_handler is not None:
        views.append(
            View(
                pattern=f"/api/{path}/{{id}}/",
                name=f"{name} Instance",
                handlers={"GET": get_handler},
                allow=_ONE,
                writes=_WRITE_ONE,
            )
        )
    return views


# ---- control -----------------------------------------------------------------------------


async def _control(kolibri: Kolibri, request: Request) -> Response:
    action = request.path_params["action"].strip("/")
    raw = await request.body()
    wanted: dict[str, Any] = json.loads(raw) if raw else {}
    try:
        result = _run_control(kolibri, action, wanted)
    except KeyError as error:
        return JSONResponse({"error": str(error)}, status_code=400)
    if result is None:
        return JSONResponse({"error": f"No action {action!r}"}, status_code=404)
    return JSONResponse(result)


def _run_control(kolibri: Kolibri, action: str, wanted: dict[str, Any]) -> dict[str, Any] | None:
    facility = wanted.get("facility")
    result: dict[str, Any] = {"done": action}
    if action == "lab":
        return describe_lab(kolibri)
    if action == "counts":
        return _counts_body(kolibri)
    if action == "reset":
        kolibri.reset()
    elif action == "sessions/delete":
        result["deleted"] = kolibri.delete_sessions()
    elif action == "password":
        kolibri.change_password(wanted["username"], wanted["password"], facility=facility)
    elif action == "poison":
        kolibri.poison_cache(wanted["username"], facility=facility)
    elif action == "users/add":
        account = kolibri.add_user(
            wanted["username"],
            wanted["full_name"],
            facility=facility,
            password=wanted.get("password", data.PASSWORD),
        )
        result["id"] = account.id
    elif action == "users/remove":
        kolibri.remove_user(wanted["username"], facility=facility)
    elif action == "latency":
        _set_latency(kolibri, wanted)
    elif action == "fail":
        kolibri.fail(
            wanted["count"],
            status=wanted.get("status", 503),
            retry_after_seconds=wanted.get("retry_after", 10),
            path=wanted.get("path", "/"),
        )
    elif action == "content/touch":
        kolibri.content_changed_at = kolibri.clock()
    else:
        return None
    return result


def _set_latency(kolibri: Kolibri, wanted: dict[str, Any]) -> None:
    if "path" in wanted:
        kolibri.latency_by_path[wanted["path"]] = wanted["seconds"]
    elif "seconds" in wanted:
        kolibri.latency_seconds = wanted["seconds"]
    if "login_seconds" in wanted:
        kolibri.login_latency_seconds = wanted["login_seconds"]


def _counts_body(kolibri: Kolibri) -> dict[str, Any]:
    counts = kolibri.counts
    return {
        "calls": {f"{method} {path}": count for (method, path), count in counts.calls.items()},
        "total": counts.total(),
        "logins": counts.logins,
        "login_attempts": counts.login_attempts,
        "max_concurrent_logins": counts.max_concurrent_logins,
        "max_concurrent_requests": counts.max_concurrent_requests,
        "sessions": len(kolibri.sessions),
    }
