"""Requests nobody sane would send, made by hypothesis, and what must hold of their answers.

They go to the real application, by the interface its server uses, so that a million of them can.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import AsyncIterator, Iterator, Mapping, MutableMapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import structlog
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from starlette.applications import Starlette

from gateway.app import build_app
from gateway.settings import read_settings

TOKEN: Final = "bootstrap-token-of-hostile-callers"
SECONDS: Final = 10.0
"""How long an answer may take on a busy machine before it counts as one that never comes."""

EXPECTED: Final = frozenset(
    {200, 204, 294, 307, 400, 401, 403, 404, 405, 406, 408, 413, 415, 422, 499}
)
_SECONDS_OF_A_STREAM: Final = 0.05
_INSIDE: Final = re.compile(
    r"Traceback|site-packages|\.py\b|object at 0x|sqlite|graphql\.error|asyncio\.|"
    r"\b(?:Type|Value|Key|Index|Attribute|Runtime|Recursion|Assertion|Overflow|Unicode\w+)Error\b"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hostile:
    """One request, its body sent in so many pieces; some callers leave before the last one."""

    method: str
    path: str
    query: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    pieces: int
    leaves: bool


@dataclass(slots=True, kw_only=True)
class Answered:
    """What came of a request."""

    status: int = 0
    content_type: str = ""
    body: bytearray = field(default_factory=bytearray)


class Wrong(AssertionError):
    """An answer is not as it must be."""


# What is sent.

_WORDS: Final = """
{ } { } ( ) [ ] : ! $ @ = | & ... # , \\ 0 -1 1e999 99999999999999999999 null true query mutation
subscription fragment on Query User f f a b __typename __schema __type types name fields ofType
users courses enrollments providers provider node nodes edges id ids first after filter orderBy
maxAge providerIds totalCount sources status pageInfo displayName changes importProgress
checkProvider removeProvider @defer @defer(label:"a") @defer(if:$a) @stream @stream(initialCount:1)
@stream(initialCount:-1) @skip(if:true) @include(if:$a) @deprecated $a $a:Int $b:[ID!]!=[]
(id:"x") (providerId:"1") (first:-1) (first:2147483648) (ids:[]) (name:"User") alias:
"""
_TOKENS: Final = (*_WORDS.split(), '"', '"""', "\n", "\0", "\u2028", "\U0001f600")
_DOCUMENTS: Final = (
    "{ __typename }",
    "query Q($a: Int, $b: [ID!]) { users(first: $a, filter: {providerIds: $b}) { totalCount } }",
    '{ ... @defer(label: "x") { users { totalCount } } courses { nodes @stream { id } } }',
    "query($i: ID!) { node(id: $i) { __typename ... on User { enrollments { totalCount } } } }",
    "{ users { sources { status code message } nodes { ...f } } } fragment f on User { id ...f }",
    "subscription { changes { cursor } }",
    "subscription S($p: ID!) { importProgress(providerId: $p) { id } }",
    'mutation { checkProvider(providerId: "1") { __typename } }',
    'mutation M { removeProvider(providerId: "x") { __typename } }',
    "{ __schema { types { name fields { name type { name ofType { name } } } } } }",
    "{ a: __typename a: providers { id } b: provider(providerId: 7) { name } }",
)
_HEADERS: Final[Mapping[str, Sequence[str]]] = {
    "accept": (
        "*/*",
        "application/json",
        "application/graphql-response+json",
        "text/event-stream",
        "multipart/mixed",
        "multipart/mixed;incrementalSpec=v0.2, application/json;q=0.9",
        "multipart/mixed;boundary=graphql;subscriptionSpec=1.0, application/json;q=0.9",
        "text/event-stream, multipart/mixed",
        "text/html",
        "application/json;q=0, */*",
        ";;q=,,*/*;q=nan",
    ),
    "content-type": (
        "application/json",
        "application/json; charset=utf-8",
        "application/json; charset=utf-7",
        "text/plain",
        "multipart/form-data; boundary=",
    ),
    "authorization": ("", "Bearer x", "Basic eDp5", f"bearer {TOKEN}", "Bearer a.b.c"),
    "origin": ("null", "https://named.example", "https://evil.example", "http://["),
    "sec-fetch-site": ("cross-site", "same-origin", "none", "?"),
    "host": ("127.0.0.1", "[", "evil.example:99999", ""),
    "gateway-debug": ("upstream", "strategies, upstream", "x", ","),
    "on-behalf-of": ("VXNlcjoxOjI", "x", ",,", "VXNlcjoxOjI, VXNlcjoxOjM"),
    "content-length": ("0", "-1", "99999999999999999999", "x"),
    "access-control-request-method": ("POST", ""),
    "access-control-request-headers": ("x-a, x-b",),
    "x-request-id": ("a", "a b", "x" * 500),
    "x-registration-nonce": ("x",),
    "if-none-match": ("*", '"x"'),
    "cookie": ("a=b",),
}
_PATHS: Final = (
    "/graphql",
    "/api/users",
    "/api/courses",
    "/api/enrollments",
    "/api/add-provider",
    "/api/none",
    "/graphql/",
    "/media/x",
    "/explorer/x",
    "/",
    "/metrics",
    "/oauth/callback",
)
_METHODS: Final = ("POST", "GET", "HEAD", "OPTIONS", "PUT", "DELETE", "BREW")
_KEPT: Final = 0.93
_LEAVING: Final = 0.02
_NAMES: Final = ("query", "operationName", "variables", "extensions", "documentId", "id", "x")
_NUMBERS: Final = (b"1e999", b"-1e999", b"NaN", b"Infinity", b"1" * 5000, b"-0", b"0.1e-400", b"01")

_texts = st.text(max_size=12)
_leaves = st.none() | st.booleans() | st.integers() | st.floats() | _texts
_json: SearchStrategy[Any] = (
    _leaves
    | st.lists(_leaves, max_size=3)
    | st.dictionaries(st.sampled_from(_NAMES) | _texts, _leaves | st.lists(_leaves), max_size=3)
)
_documents = st.one_of(
    st.sampled_from(_DOCUMENTS),
    st.lists(st.sampled_from(_TOKENS), max_size=30).map(" ".join),
    st.builds(
        lambda document, at, put: f"{document[:at]}{put}{document[at:]}",
        st.sampled_from(_DOCUMENTS),
        st.integers(0, 80),
        st.sampled_from(_TOKENS) | _texts,
    ),
)
_variables = st.dictionaries(st.sampled_from(["a", "b", "i", "p"]), _json, max_size=2)
_asked = st.one_of(
    st.fixed_dictionaries({"query": _documents}),
    st.fixed_dictionaries({"query": _documents, "variables": _variables}),
    st.fixed_dictionaries({"query": st.sampled_from(_DOCUMENTS), "variables": _json}),
    st.fixed_dictionaries({"query": _documents, "operationName": _json, "extensions": _json}),
    st.fixed_dictionaries({"extensions": st.fixed_dictionaries({"persistedQuery": _json})}),
    st.fixed_dictionaries({"documentId": _json, "query": _json}),
)


def _nested(depth: int, inside: bytes) -> bytes:
    return (
        b'{"query":"{__typename}","variables":' + b'{"a":[' * depth + inside + b"]}" * depth + b"}"
    )


def _damaged(asked: Any, at: int, put: bytes, taken: int) -> bytes:
    whole = json.dumps(asked, ensure_ascii=False).encode("utf-8", "surrogatepass")
    at %= len(whole) + 1
    return whole[:at] + put + whole[at + taken :]


_bodies = st.one_of(
    _asked.map(lambda asked: json.dumps(asked).encode()),
    _asked.map(lambda asked: json.dumps(asked).encode()),
    st.builds(_damaged, _asked, st.integers(0, 400), st.binary(max_size=4), st.integers(0, 3)),
    _json.map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=60),
    st.builds(
        _nested, st.integers(0, 60) | st.just(5000), st.sampled_from(_NUMBERS) | st.just(b"1")
    ),
    st.builds(lambda asked: json.dumps([asked, asked]).encode(), _asked),
)


def _in_query(asked: Mapping[str, Any]) -> bytes:
    pairs = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in asked.items()
    }
    return urlencode(pairs, errors="surrogatepass").encode()


_values = st.one_of(
    *[
        st.tuples(
            st.just(name.encode()),
            st.sampled_from([value.encode() for value in values])
            | st.binary(max_size=20).map(lambda raw: raw.translate(None, b"\r\n\0")),
        )
        for name, values in _HEADERS.items()
    ]
)


_SANE: Final = (
    (b"host", b"127.0.0.1"),
    (b"authorization", f"Bearer {TOKEN}".encode()),
    (b"content-type", b"application/json"),
)
_accepts = st.sampled_from([(b"accept", value.encode()) for value in _HEADERS["accept"]])


def _beside_sane(given: Sequence[tuple[bytes, bytes]]) -> tuple[tuple[bytes, bytes], ...]:
    drawn = {name for name, _ in given}
    return (*(pair for pair in _SANE if pair[0] not in drawn), *given)


def _requests(**drawn: SearchStrategy[Any]) -> SearchStrategy[Hostile]:
    sane: dict[str, SearchStrategy[Any]] = {
        "method": st.just("POST"),
        "path": st.just("/graphql"),
        "query": st.just(b""),
        "headers": st.tuples(_accepts).map(_beside_sane),
        "body": st.just(b'{"query":"{ __typename }"}'),
        "pieces": st.just(1),
        "leaves": st.just(False),
    }
    return st.builds(Hostile, **{**sane, **drawn})


_some_headers = st.lists(_values, max_size=4)
requests: SearchStrategy[Hostile] = st.one_of(
    _requests(body=_bodies),
    _requests(body=_asked.map(lambda asked: json.dumps(asked).encode())),
    _requests(method=st.just("GET"), query=_asked.map(_in_query)),
    _requests(headers=_some_headers.map(_beside_sane)),
    _requests(headers=_some_headers.map(_beside_sane), body=_bodies, pieces=st.integers(1, 3)),
    _requests(
        method=st.sampled_from(_METHODS),
        path=st.sampled_from(_PATHS),
        query=st.just(b"") | st.binary(max_size=20) | _asked.map(_in_query),
        headers=_some_headers.map(_beside_sane) | _some_headers.map(tuple),
        body=_bodies,
        pieces=st.integers(1, 3),
        leaves=st.booleans(),
    ),
)


def neighbours(request: Hostile, count: int) -> Iterator[Hostile]:
    """Yield so many requests that differ from one in a few bytes, always the same for the same one.

    They cost little to make, so most of a million can be such.
    """
    chance = random.Random(repr(request))
    for _ in range(count):
        headers = [pair for pair in request.headers if chance.random() < _KEPT]
        for _ in range(chance.choice((0, 0, 0, 1))):
            name = chance.choice(list(_HEADERS))
            headers.append((name.encode(), chance.choice(_HEADERS[name]).encode()))
        headers = [
            (name, value if chance.random() < _KEPT else _mangled(value, chance, in_header=True))
            for name, value in headers
        ]
        body = request.body
        for _ in range(chance.choice((0, 1, 1, 2, 5))):
            body = _mangled(body, chance)
        query = request.query if chance.random() < _KEPT else _mangled(request.query, chance)
        yield replace(
            request,
            headers=tuple(headers),
            query=query.translate(None, b"\r\n #"),
            body=body,
            pieces=chance.choice((1, 1, 2, 7)),
            leaves=request.leaves or chance.random() < _LEAVING,
        )


def _mangled(raw: bytes, chance: random.Random, *, in_header: bool = False) -> bytes:
    at, end = sorted((chance.randint(0, len(raw)), chance.randint(0, len(raw))))
    piece = raw[at : min(end, at + 12)]
    put = chance.choice(
        (
            b"",
            piece * 2,
            piece[::-1],
            bytes([chance.randrange(256)]),
            chance.choice(_TOKENS).encode(),
            chance.choice(_NUMBERS),
            chance.choice(
                (b"{", b"}", b"[", b"]", b'"', b":", b",", b"\\ud800", b"\\u0000", b"\xff")
            ),
        )
    )
    mangled = raw[:at] + put + raw[at + len(piece) :]
    return mangled.translate(None, b"\r\n\0") if in_header else mangled


# How it is sent, and what must hold.


@asynccontextmanager
async def serving_in_process(folder: Path) -> AsyncIterator[Starlette]:
    """Open the application as its server does, for callers by its own interface."""
    app = build_app(
        read_settings(
            {
                "GATEWAY_DATA_FOLDER": str(folder),
                "GATEWAY_TOKEN": TOKEN,
                "GATEWAY_CORS_ORIGINS": "https://named.example",
                "GATEWAY_ALLOWED_PROVIDER_URLS": "http://127.0.0.1:9/none",
                "GATEWAY_QUEUE_SECONDS": "60",
            }
        )
    )
    async with app.router.lifespan_context(app):
        yield app


@contextmanager
def listening_for_faults() -> Iterator[list[Mapping[str, Any]]]:
    """Yield the log lines that tell of faults, as they come, and write none."""
    faults: list[Mapping[str, Any]] = []

    def take(
        _logger: object, method: str, line: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        if method in {"error", "critical", "exception"}:
            faults.append(line)
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(processors=[take], cache_logger_on_first_use=False)
    try:
        yield faults
    finally:
        structlog.configure(**before)


async def send(app: Starlette, request: Hostile) -> Answered:
    """Send a request and return what came of it; a stream is left soon after it began."""
    answered = Answered()
    gone = asyncio.Event()
    size = -(-len(request.body) // request.pieces) or 1
    parts = [request.body[at : at + size] for at in range(0, len(request.body), size)] or [b""]

    async def receive() -> dict[str, Any]:
        if parts:
            part = parts.pop(0)
            if request.leaves and not parts:
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": part, "more_body": bool(parts)}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def take(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            _require(not answered.status, "it began twice")
            answered.status = message["status"]
            headers = dict(message["headers"])
            answered.content_type = headers.get(b"content-type", b"").decode("latin-1")
            return
        answered.body += message.get("body", b"")
        if not message.get("more_body", False):
            gone.set()
        else:
            asyncio.get_running_loop().call_later(_SECONDS_OF_A_STREAM, gone.set)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": "http",
        "path": request.path,
        "raw_path": request.path.encode(),
        "root_path": "",
        "query_string": request.query,
        "headers": list(request.headers),
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    async with asyncio.timeout(SECONDS):
        await app(scope, receive, take)
    return answered


def judge(request: Hostile, answered: Answered, faults: Sequence[Mapping[str, Any]]) -> None:
    """Raise ``Wrong`` unless the answer is one that a caller may be given."""
    _require(not faults, f"the log tells of a fault: {faults[:1]}")
    _require(answered.status in EXPECTED, f"status {answered.status}")
    text = bytes(answered.body).decode()
    _require(TOKEN not in text, "it holds the key")
    if request.path.startswith(("/graphql", "/api/")) and "text/html" not in answered.content_type:
        found = _INSIDE.search(_without_echoes(text))
        _require(found is None, f"it shows our inside: {found}")
    if "json" in answered.content_type and request.method != "HEAD" and text:
        _judge_json(json.loads(text), answered)


def _judge_json(body: Any, answered: Answered) -> None:
    if "problem+json" in answered.content_type:
        _require(body["status"] == answered.status, "the document tells another status")
        _require(body["code"] != "INTERNAL", "it is a fault of ours")
    elif isinstance(body, dict) and "errors" in body:
        _require(bool(body["errors"]), "it has no errors, and says so")
        for error in body["errors"]:
            _require(isinstance(error["message"], str), "an error has no message")
            _require(error["extensions"]["code"] != "INTERNAL", "it is a fault of ours")


def _without_echoes(text: str) -> str:
    """Return an answer without the names that GraphQL quotes from the request."""
    return re.sub(r"'[^']*'|\\\"(?:[^\"\\]|\\\\.)*\\\"", "", text)


def _require(holds: bool, otherwise: str) -> None:  # noqa: FBT001 - an assertion
    if not holds:
        raise Wrong(otherwise)
