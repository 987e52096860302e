"""The HTTP face of the simulated Canvas.

In a test's own process, with the server's memory in reach:

    canvas = Canvas(build_population(), profile=PROFILES["oss-2024"], clock=VirtualClock())
    async with running(canvas) as url:
        ...                                       # any HTTP client
    assert canvas.counts.total() == 1

`app_for(canvas)` gives the bare ASGI application, `images_for(canvas)` that of the second
origin, and `running_in_thread(canvas)` serves both for clients that block. Beside Canvas's own
routes there are `/_control/...`, which no real Canvas has:

    GET  /_control/lab        tokens, clients and logins of the data set
    GET  /_control/counts     calls by method and route, grants, throttled, most at once
    POST /_control/reset      forget counts, faults and buckets
    POST /_control/clock      {"advance": seconds}
    GET  /_control/log        the calls in order: method, path, query, identity, status
    POST /_control/profile    {"name"}
    POST /_control/switch     {switch: value}: changes the profile in place, see `profiles.py`
    POST /_control/consent    {"answer": "approve" | "deny" | "page", "signed_in"?: user id}
    POST /_control/fail       {"kind", "path"?, "count"?, "after"?, "status"?, "seconds"?}
    POST /_control/latency    {"seconds"?, "per_row"?, "jitter"?, "tail_share"?, "tail_seconds"?}
    POST /_control/throttle   {"enabled"?, "high_water_mark"?, ...}: see `Throttle`
    POST /_control/revoke     {"user_id"}: all tokens of a user
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import threading
import zlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from simulators.canvas import graph, oauth, wire
from simulators.canvas.population import User
from simulators.canvas.profiles import PROFILES
from simulators.canvas.rest import route_of
from simulators.canvas.state import (
    ADMIN_TOKEN,
    Canvas,
    DeveloperKey,
    Fault,
    ImageCall,
    Logged,
    Token,
)
from simulators.canvas.wire import Answer, Call, Refusal

_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
_TOKEN_PATH = "/login/oauth2/token"
_TRANSPORT = "canvas.transport"
_BACKLOG = 2048
_FOREIGN = "https://elsewhere.example.net"


@dataclass(slots=True, kw_only=True)
class _Visit:
    """One request on its way: who it is charged to, where it went, what it cost."""

    request: Request
    path: str
    identity: str
    token: Token | None
    access: str | None
    fault: Fault | None = None
    route: str = ""
    cost: float = 0.0
    rows: int = 1


def app_for(canvas: Canvas) -> Starlette:
    """Return an ASGI application over a server memory that the caller keeps."""

    async def canvas_endpoint(request: Request) -> Response:
        return await _serve(canvas, request)

    async def control_endpoint(request: Request) -> Response:
        return await _control(canvas, request)

    app = Starlette(
        routes=[
            Route("/_control/{action:path}", control_endpoint, methods=["GET", "POST"]),
            Route("/{path:path}", canvas_endpoint, methods=_METHODS),
        ]
    )
    app.router.redirect_slashes = False
    app.state.canvas = canvas
    return app


def images_for(canvas: Canvas) -> Starlette:
    """Return the second origin: signed course images, and a note of who brought credentials."""

    async def image(request: Request) -> Response:
        status = 200 if _is_signed(canvas, request) else 403
        canvas.counts.images.append(
            ImageCall(
                origin=f"{request.url.scheme}://{request.url.netloc}",
                path=request.url.path,
                authorized="authorization" in request.headers,
                status=status,
            )
        )
        if status != 200:
            return PlainTextResponse("Forbidden", status_code=status)
        return Response(_png(64, 36), media_type="image/png")

    return Starlette(routes=[Route("/files/{course_id}/course.png", image)])


def _is_signed(canvas: Canvas, request: Request) -> bool:
    """Whether a URL was made here, and its time is not over."""
    ends = request.query_params.get("expires", "")
    verifier = request.query_params.get("verifier")
    if verifier != canvas.sign(f"{request.url.path}{ends}"):
        return False
    return not ends or int(ends) > canvas.clock()


@contextlib.asynccontextmanager
async def running(
    canvas: Canvas, *, host: str = "127.0.0.1", port: int = 0, images_port: int = 0
) -> AsyncIterator[str]:
    """Serve both origins on real sockets and yield the first one's URL, without a slash.

    Port 0 takes any free one; `canvas.images_url` is set to the second origin.
    """
    with (
        socket.create_server((host, port), backlog=_BACKLOG) as listener,
        socket.create_server((host, images_port), backlog=_BACKLOG) as images,
    ):
        # asyncio does this for sockets of its own making only; without it each answer takes 40 ms
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        images.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        canvas.images_url = f"http://{host}:{images.getsockname()[1]}"
        servers = [
            (_server(_Abortable(app_for(canvas))), listener),
            (_server(images_for(canvas)), images),
        ]
        tasks = [asyncio.create_task(each.serve(sockets=[at])) for each, at in servers]
        try:
            while not all(each.started for each, _ in servers):  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.005)
            yield f"http://{host}:{listener.getsockname()[1]}"
        finally:
            for each, _ in servers:
                each.should_exit = True
            await asyncio.gather(*tasks)


@contextlib.contextmanager
def running_in_thread(canvas: Canvas, *, port: int = 0) -> Iterator[str]:
    """Serve as `running` does, in a thread of its own, for clients that block."""
    started, ended = threading.Event(), threading.Event()
    urls: list[str] = []

    async def serve_until_ended() -> None:
        async with running(canvas, port=port) as url:
            urls.append(url)
            started.set()
            await asyncio.to_thread(ended.wait)

    def work() -> None:
        try:
            asyncio.run(serve_until_ended())
        finally:
            started.set()

    thread = threading.Thread(target=work, name="canvas", daemon=True)
    thread.start()
    started.wait()
    try:
        if not urls:
            raise RuntimeError("The simulator could not start")
        yield urls[0]
    finally:
        ended.set()
        thread.join()


class _Server(uvicorn.Server):
    """A server that leaves signals to the program around it: two of them would fight."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Abortable:
    """Tells the application its connection, so that a fault can cut it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        cycle = getattr(send, "__self__", None)  # uvicorn's state of this request
        scope[_TRANSPORT] = getattr(cycle, "transport", None)
        await self._app(scope, receive, send)


def _server(app: ASGIApp) -> uvicorn.Server:
    return _Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=1,
        )
    )


# ---- one request ---------------------------------------------------------------------------


async def _serve(canvas: Canvas, request: Request) -> Response:
    counts = canvas.counts
    counts.running += 1
    counts.most_running = max(counts.most_running, counts.running)
    try:
        visit = await _visit(canvas, request)
        response = await _throttled(canvas, visit)
    finally:
        counts.running -= 1
    canvas.write_log(
        Logged(
            method=request.method,
            path=visit.path,
            route=visit.route or visit.path,
            query=request.url.query,
            identity=visit.identity,
            status=response.status_code,
        )
    )
    return response


async def _visit(canvas: Canvas, request: Request) -> _Visit:
    # As behind a proxy: the whole call is there before it runs, and it runs to its end even when
    # the client has gone by then.
    body = await request.body()
    path = request.scope.get("raw_path", request.url.path.encode()).decode("ascii")
    access = _access_of(request)
    if "access_token" in request.query_params:
        canvas.counts.tokens_in_url += 1
    if not path.startswith("/api/") and (request.method, path) != ("DELETE", _TOKEN_PATH):
        access = None
    token = canvas.tokens.get(access or "")
    address = request.client.host if request.client is not None else "unknown"
    identity = f"ip:{address}" if token is None else f"token:{token.user_id}:{id(token)}"
    is_grant = (request.method, path) == ("POST", _TOKEN_PATH)
    if is_grant and canvas.profile.grants_charged_to == "client":
        form = dict(wire.read_form("", body))
        identity = f"client:{oauth.client_of(request, form)[0]}"
    return _Visit(request=request, path=path, identity=identity, token=token, access=access)


def _access_of(request: Request) -> str | None:
    kind, _, access = request.headers.get("Authorization", "").partition(" ")
    if kind.lower() == "bearer" and access:
        return access.strip()
    return request.query_params.get("access_token")


async def _throttled(canvas: Canvas, visit: _Visit) -> Response:
    """Answer inside the leaky bucket: reserve, run unless full, then settle the true cost."""
    throttle = canvas.throttle
    visit.fault = canvas.take_fault(visit.path)
    if not throttle.enabled:
        is_full = visit.fault is not None and visit.fault.kind == "throttled"
        return _too_many(canvas) if is_full else await _answer(canvas, visit)
    count = canvas.add_to_bucket(visit.identity, throttle.up_front)
    is_full = count >= throttle.high_water_mark
    if visit.fault is not None and visit.fault.kind == "throttled":
        is_full = True
    try:
        response = _too_many(canvas) if is_full else await _answer(canvas, visit)
    finally:
        if not is_full:
            visit.cost += throttle.cost_by_path.get(
                visit.path, throttle.request_cost + throttle.row_cost * visit.rows
            )
        count = canvas.add_to_bucket(visit.identity, visit.cost - throttle.up_front)
    remaining = str(throttle.high_water_mark - count)
    response.headers["X-Rate-Limit-Remaining"] = remaining
    if not is_full:
        response.headers["X-Request-Cost"] = str(visit.cost)
    return response


def _too_many(canvas: Canvas) -> Response:
    canvas.counts.throttled += 1
    status = canvas.profile.throttled_status
    named = "Forbidden" if status == 403 else "Too Many Requests"
    headers = {"Retry-After": "5"} if canvas.profile.retry_after else None
    text = f"{status} {named} (Rate Limit Exceeded)\n"
    return PlainTextResponse(text, status_code=status, headers=headers)


async def _answer(canvas: Canvas, visit: _Visit) -> Response:
    fault, request = visit.fault, visit.request
    if fault is not None and (broken := await _broken(fault, request)) is not None:
        return broken
    if visit.path.startswith("/login"):
        return await _log_in(canvas, visit)
    if not visit.path.startswith("/api/"):
        return RedirectResponse("/login", status_code=302)
    try:
        answer = await _api(canvas, visit)
    except Refusal as refusal:
        answer = Answer(body=refusal.body, status=refusal.status, headers=refusal.headers)
    visit.rows = answer.rows
    if delay := canvas.latency(answer.rows):
        await asyncio.sleep(delay)
    body = answer.body
    if wire.wants_string_ids(request.headers.get("Accept", "")):
        body = wire.with_string_ids(body)
    raw = json.dumps(body, ensure_ascii=False).encode()
    if fault is not None and fault.kind == "truncated":
        raw = raw[: len(raw) // 2]
    response = _response(visit, raw, answer)
    response.headers["Content-Type"] = "application/json; charset=utf-8"
    links = _links(visit, answer.links)
    if links:
        name = canvas.profile.link_header.encode()
        response.raw_headers.append((name, wire.link_header(links).encode()))
    return response


def _response(visit: _Visit, raw: bytes, answer: Answer) -> Response:
    """Return the answer at once, or as slowly or incompletely as the fault has it."""
    fault = visit.fault
    if fault is None or fault.kind not in {"trickle", "cut"}:
        return Response(raw, status_code=answer.status, headers=answer.headers)
    step = max(-(-len(raw) // 10), 1)

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(raw), step):
            if fault.kind == "cut" and start >= len(raw) // 2:
                await _cut(visit.request)
                return
            yield raw[start : start + step]
            await asyncio.sleep(fault.seconds / 10)

    headers = answer.headers | {"Content-Length": str(len(raw))}
    return StreamingResponse(pieces(), status_code=answer.status, headers=headers)


async def _cut(request: Request) -> None:
    """Cut the connection, and let the server notice."""
    transport = request.scope.get(_TRANSPORT)
    if transport is None:
        raise ConnectionResetError("The simulated connection was cut")
    transport.abort()
    await asyncio.sleep(0)


async def _broken(fault: Fault, request: Request) -> Response | None:
    """Return what a fault answers instead of Canvas; None if it only spoils the answer."""
    if fault.kind in {"drop", "slow", "disconnect"}:
        await asyncio.sleep(fault.seconds)
    if fault.kind == "disconnect":
        await _cut(request)
        return Response()  # nobody reads it
    if fault.kind == "drop":
        return HTMLResponse("<h1>504 Gateway Time-out</h1>", status_code=504)
    if fault.kind == "html":
        return HTMLResponse("<!doctype html><title>Log in</title>")
    if fault.kind == "login":
        return RedirectResponse("/login", status_code=302)
    if fault.kind != "status":
        return None
    if fault.status == 500:
        body = wire.errors("An error occurred.", error_code="internal_server_error")
        return JSONResponse(body | {"error_report_id": 1}, status_code=500)
    return HTMLResponse(f"<h1>{fault.status}</h1>", status_code=fault.status)


def _links(visit: _Visit, links: dict[str, str]) -> dict[str, str]:
    kind = visit.fault.kind if visit.fault is not None else ""
    if kind == "no-next":
        return {}
    if kind == "loop" and links:
        return links | {"next": links["current"]}
    if kind == "foreign-next" and "next" in links:
        return links | {"next": f"{_FOREIGN}/{links['next'].split('/', 3)[3]}"}
    return links


async def _log_in(canvas: Canvas, visit: _Visit) -> Response:
    request, method = visit.request, visit.request.method
    if (method, visit.path) == ("GET", "/login/oauth2/auth"):
        return oauth.authorize(canvas, request)
    if (method, visit.path) == ("POST", "/login/oauth2/accept"):
        return await oauth.accept(canvas, request)
    if (method, visit.path) == ("POST", _TOKEN_PATH):
        response, granted = await oauth.grant(canvas, request)
        visit.cost += canvas.throttle.grant_cost if granted else 0.0
        return response
    if (method, visit.path) == ("DELETE", _TOKEN_PATH):
        return oauth.revoke(canvas, request, visit.token)
    if visit.path == "/login":
        return HTMLResponse("<!doctype html><title>Log in</title>")
    return HTMLResponse("<!doctype html><title>Page Not Found</title>", status_code=404)


async def _api(canvas: Canvas, visit: _Visit) -> Answer:
    request = visit.request
    form = wire.read_form(request.headers.get("Content-Type", ""), await request.body())
    if visit.access is None:
        visit.access = next((value for name, value in form if name == "access_token"), None)
        visit.token = canvas.tokens.get(visit.access or "")
    token, caller = _authenticate(canvas, visit)
    method = "GET" if request.method == "HEAD" else request.method
    is_graphql = visit.path == "/api/graphql"
    found = None if is_graphql else route_of(method, visit.path)
    visit.route = visit.path if is_graphql else (found[0] if found is not None else "")
    key = canvas.keys.get(token.key_id or "")
    if token.scopes is not None and not _in_scope(token.scopes, method, visit.route):
        raise Refusal(401, wire.errors("Insufficient scopes on access token."))
    query = list(request.query_params.multi_items())
    call = Call(
        server=canvas,
        origin=canvas.link_origin or f"{request.url.scheme}://{request.url.netloc}",
        path=visit.path,
        params={} if found is None else found[1],
        query=query,
        form=form,
        token=token,
        caller=caller,
        allows_includes=token.scopes is None or (key is not None and key.allows_includes),
    )
    call.caller = _masquerade(call) or caller
    if is_graphql and method == "POST":
        return graph.execute(call)
    if found is None:
        raise wire.not_found()
    return found[2](call)


def _authenticate(canvas: Canvas, visit: _Visit) -> tuple[Token, User]:
    if visit.access is None:
        raise wire.unauthenticated()
    names_dead = canvas.profile.names_dead_tokens
    token = visit.token
    if token is None:
        is_revoked = names_dead and visit.access in canvas.revoked
        raise wire.bad_token("Revoked access token." if is_revoked else "Invalid access token.")
    if canvas.is_expired(token):
        if not names_dead:
            raise wire.bad_token()
        ends = min(e for e in (token.expires_at, token.permanent_expires_at) if e is not None)
        raise wire.bad_token("Expired access token.", expired_at=wire.instant(ends))
    user = canvas.user(token.user_id)
    key = canvas.keys.get(token.key_id or "")
    if user is None or user.login_id is None or (key is not None and not _allows(key, token)):
        raise wire.bad_token()
    return token, user


def _allows(key: DeveloperKey, token: Token) -> bool:
    """Whether a key is still active, and has all the scopes that a token was granted."""
    lost = set() if key.scopes is None else (token.scopes or frozenset()) - key.scopes
    return key.active and not lost - {oauth.USERINFO}


def _in_scope(scopes: frozenset[str], method: str, route: str) -> bool:
    wanted = f"url:{method}|{route}".split("/")
    for scope in scopes:
        parts = scope.split("/")
        pairs = zip(parts, wanted, strict=False)
        if len(parts) == len(wanted) and all(
            ours == theirs or (ours.startswith(":") and theirs.startswith(":"))
            for ours, theirs in pairs
        ):
            return True
    return False


def _masquerade(call: Call) -> User | None:
    named = call.text("as_user_id")
    if named is None:
        return None
    try:
        wanted = call.user(named)
    except Refusal:
        wanted = None
    if wanted is None or (not call.is_admin and wanted is not call.caller):
        raise Refusal(401, {"errors": "Invalid as_user_id"})
    return wanted


# ---- control -------------------------------------------------------------------------------


async def _control(canvas: Canvas, request: Request) -> Response:
    action = request.path_params["action"].strip("/")
    raw = await request.body()
    try:
        result = _run_control(canvas, action, json.loads(raw) if raw else {})
    except (KeyError, TypeError, AttributeError) as error:
        return JSONResponse({"error": str(error)}, status_code=400)
    if result is None:
        return JSONResponse({"error": f"No action {action!r}"}, status_code=404)
    return JSONResponse(result)


def _run_control(canvas: Canvas, action: str, wanted: dict[str, Any]) -> dict[str, Any] | None:
    result: dict[str, Any] = {"done": action}
    if action == "lab":
        return _describe_lab(canvas)
    if action == "counts":
        return _describe_counts(canvas)
    if action == "log":
        return {"calls": [asdict(logged) for logged in canvas.counts.log]}
    if action == "reset":
        canvas.reset()
    elif action == "clock":
        canvas.clock.advance(wanted["advance"])
    elif action == "profile":
        canvas.profile = PROFILES[wanted["name"]]
    elif action == "switch":
        canvas.profile = replace(canvas.profile, **wanted)
    elif action == "consent":
        canvas.consent = wanted["answer"]
        canvas.signed_in = wanted.get("signed_in", canvas.signed_in)
    elif action == "fail":
        canvas.fail(wanted.pop("kind"), **wanted)
    elif action == "latency":
        canvas.latency_seconds = wanted.get("seconds", canvas.latency_seconds)
        canvas.latency_per_row_seconds = wanted.get("per_row", canvas.latency_per_row_seconds)
        canvas.jitter_seconds = wanted.get("jitter", canvas.jitter_seconds)
        canvas.tail_share = wanted.get("tail_share", canvas.tail_share)
        canvas.tail_seconds = wanted.get("tail_seconds", canvas.tail_seconds)
    elif action == "throttle":
        for name, value in wanted.items():
            setattr(canvas.throttle, name, value)
    elif action == "revoke":
        result["revoked"] = canvas.revoke_user(wanted["user_id"])
    else:
        return None
    return result


def _describe_lab(canvas: Canvas) -> dict[str, Any]:
    users = list(canvas.population.living_users())
    return {
        "admin_token": ADMIN_TOKEN,
        "profile": canvas.profile.name,
        "account_id": canvas.population.account_id,
        "images_url": canvas.images_url,
        "clients": {key.id: key.secret for key in canvas.keys.values()},
        "logins": {user.login_id: user.id for user in users[:50] if user.login_id is not None},
    }


def _describe_counts(canvas: Canvas) -> dict[str, Any]:
    counts = canvas.counts
    return {
        "calls": {f"{method} {route}": n for (method, route), n in counts.calls.items()},
        "total": counts.total(),
        "grants": dict(counts.grants),
        "throttled": counts.throttled,
        "running": counts.running,
        "most_running": counts.most_running,
        "tokens_in_url": counts.tokens_in_url,
        "image_calls": counts.image_calls,
        "image_calls_with_authorization": counts.image_calls_with_authorization,
    }


def _png(width: int, height: int) -> bytes:
    row = b"\x00" + b"\x2d\x5d\x9f" * width
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(row * height)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
