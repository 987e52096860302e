"""What web pages may do: those of others nothing, unless the operator named their origin.

A page can make a browser send some requests to any server, with whatever the browser knows of it.
Callers' keys are not among that, so they cannot be borrowed. But where no key is needed
(``GATEWAY_DEV``), and for what a request costs before its key is looked at, browsers say where a
request comes from.

Source:
    https://www.w3.org/TR/fetch-metadata/
    https://fetch.spec.whatwg.org/#http-cors-protocol
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from resolvers.errors import Forbidden

_OWN_SITES: Final = frozenset({"same-origin", "none"})
_SIMPLE_TYPES: Final = frozenset(
    {"", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"}
)
_ASKED_FOR: Final = ("x-requested-with", "apollo-require-preflight")
_GRAPHQL: Final = "/graphql"
_REST: Final = "/api/"
_EXPOSED: Final = "ETag, Link, Retry-After, WWW-Authenticate, X-Request-ID"
_METHOD_HEADER: Final = "access-control-request-method"
_METHODS: Final = "GET, POST"
_PREFLIGHT_SECONDS: Final = "7200"  # no browser keeps it longer


class Browsers:
    """Tells pages that may use the API from those that may not.

    Args:
        origins: Of pages that may, besides our own, in lower case.
        public_url: What callers reach the gateway by.
        open_to_all: Whether no key is needed.
    """

    def __init__(self, origins: Collection[str], *, public_url: str, open_to_all: bool) -> None:
        self._origins = frozenset(origins)
        self._public = urlsplit(public_url)
        self._open_to_all = open_to_all

    def is_foreign(self, headers: Headers) -> bool:
        """Whether a request comes from a page of another site that was not named.

        What does not come from a page says nothing of that, and is not foreign.
        """
        origin = headers.get("origin", "").lower()
        if origin in self._origins:
            return False
        site = headers.get("sec-fetch-site")
        if site is not None:
            return site not in _OWN_SITES
        if not origin:
            return False
        return origin.partition("://")[2] not in {self._public.netloc, headers.get("host", "")}

    def may_open_socket(self, headers: Headers) -> bool:
        """Whether a websocket may be opened: not by a page of another site that was not named.

        It goes by ``Origin``, which browsers send with every one; of the rest they send what they
        like. Nobody needs a key for what ``GATEWAY_DEV`` lets pages do, so there the name that the
        page was opened by counts, too.
        """
        origin = headers.get("origin")
        if origin is None or origin.lower() in self._origins:
            return True
        host = headers.get("host", "").lower()
        if self._open_to_all and not self._is_own_host(_name_in(host)):
            return False
        _, scheme_ends, authority = origin.lower().partition("://")
        return bool(scheme_ends) and authority in {self._public.netloc.lower(), host}

    def require_known(self, request: Request) -> None:
        """Refuse what a page of another site made a browser send.

        Raises:
            Forbidden: It did, or nothing shows that it did not.
        """
        headers = request.headers
        if self.is_foreign(headers):
            raise Forbidden(
                "Pages of other sites may not use this gateway: expected an Origin that"
                " GATEWAY_CORS_ORIGINS names"
            )
        if not self._open_to_all or "authorization" in headers:
            return
        if not self._is_own_host(_name_in(headers.get("host", ""))):
            raise Forbidden(
                "Without a key, only requests to this machine's own name are answered: expected"
                " Host localhost, 127.0.0.1 or that of GATEWAY_PUBLIC_URL"
            )
        if "sec-fetch-site" not in headers and _any_page_can_send(request):
            raise Forbidden(
                "Any page could have made a browser send this: expected the header Content-Type:"
                " application/json, X-Requested-With, or a key"
            )

    def _is_own_host(self, host: str) -> bool:
        """Whether a name is one that no other site can make point here."""
        if host in {self._public.hostname, "localhost"} or host.endswith(".localhost"):
            return True
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False


class CrossOrigin:
    """Answers browsers that ask whether a page may use the API, and says so in every answer.

    Args:
        app: Gets everything else.
        origins: Of the pages that may, in lower case; without any, nothing is said at all.
    """

    def __init__(self, app: ASGIApp, *, origins: Collection[str]) -> None:
        self._app = app
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or have it answered."""
        if not self._origins or scope["type"] != "http" or not _is_api(scope["path"]):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin", "")
        is_allowed = origin.lower() in self._origins
        if is_allowed and scope["method"] == "OPTIONS" and _METHOD_HEADER in headers:
            await _preflight(headers)(scope, receive, send)
            return

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                answered = MutableHeaders(scope=message)
                answered.add_vary_header("Origin")
                if is_allowed:
                    answered["Access-Control-Allow-Origin"] = origin
                    answered["Access-Control-Expose-Headers"] = _EXPOSED
            await send(message)

        await self._app(scope, receive, send_marked)


def _is_api(path: str) -> bool:
    return path == _GRAPHQL or path.startswith(_REST)


def _preflight(headers: Headers) -> Response:
    """Say yes; to whatever headers, as the page has been named."""
    return Response(
        status_code=204,
        headers={
            "Access-Control-Allow-Origin": headers["origin"],
            "Access-Control-Allow-Methods": _METHODS,
            "Access-Control-Allow-Headers": headers.get("access-control-request-headers", ""),
            "Access-Control-Max-Age": _PREFLIGHT_SECONDS,
            "Vary": "Origin, Access-Control-Request-Method, Access-Control-Request-Headers",
        },
    )


def _name_in(host: str) -> str:
    """Return the name or address in a ``Host`` header, without brackets and port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()


def _any_page_can_send(request: Request) -> bool:
    """Whether a browser sends such a request for any page, without asking first.

    A reading one outside of GraphQL is let be: it shows the page nothing, and browsers that say
    nothing of themselves are older than this gateway.
    """
    if request.method != "POST" and request.scope["path"] != _GRAPHQL:
        return False
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return media_type in _SIMPLE_TYPES and not any(name in request.headers for name in _ASKED_FOR)
