"""The GraphQL explorer: GraphiQL as a page of ours that loads nothing from anywhere else.

The page is the same for everybody and holds no secret. Whoever opens it types an API key, which
stays in that browser tab (``sessionStorage``) and goes nowhere but to our own endpoint.
"""

from __future__ import annotations

import gzip
import hashlib
import html
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from string import Template
from typing import Final

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

_FOLDER: Final = Path(__file__).parent / "explorer_assets"
_TYPES_BY_SUFFIX: Final = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
}
_NAMES: Final = frozenset(
    {
        "LICENSES.txt",
        "editor.worker.js",
        "explorer.css",
        "explorer.js",
        "graphql.worker.js",
        "json.worker.js",
    }
)
_POLICY: Final = (
    "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "connect-src 'self'; font-src 'self' data:; img-src 'self' data:; script-src 'self'; "
    "style-src 'self' 'unsafe-inline'; "  # the editor makes its style sheets as it goes
    "worker-src 'self'"
)
_HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",  # kept, but asked about: an update shows at once
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asset:
    body: bytes
    zipped: bytes
    etag: str
    media_type: str


def page(request: Request, *, endpoint: str = "/graphql", prefix: str = "/explorer") -> Response:
    """Return the explorer's page.

    Args:
        request: Tells below which path a proxy serves the application.
        endpoint: Path of the GraphQL endpoint.
        prefix: Path the assets are served below, as given to ``routes``.
    """
    root = str(request.scope.get("root_path", ""))
    text = _template().substitute(
        endpoint=html.escape(root + endpoint), assets=html.escape(root + prefix)
    )
    return HTMLResponse(text, headers={**_HEADERS, "Vary": "Accept"})


def routes(prefix: str = "/explorer", *, endpoint: str = "/graphql") -> list[Route]:
    """Return the routes of the page, at the prefix itself, and of its assets, below it."""

    async def serve_page(request: Request) -> Response:
        return await anyio.to_thread.run_sync(
            lambda: page(request, endpoint=endpoint, prefix=prefix)
        )

    return [
        Route(prefix, serve_page, methods=["GET"], name="explorer"),
        Route(f"{prefix}/{{name}}", _serve_asset, methods=["GET"], name="explorer_asset"),
    ]


async def _serve_asset(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in _NAMES:
        return PlainTextResponse("Not found", status_code=404, headers=_HEADERS)
    asset = await anyio.to_thread.run_sync(_asset, name)
    headers = {**_HEADERS, "ETag": asset.etag, "Vary": "Accept-Encoding"}
    if asset.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    body = asset.body
    if "gzip" in request.headers.get("accept-encoding", ""):
        headers["Content-Encoding"] = "gzip"
        body = asset.zipped
    return Response(body, headers=headers, media_type=asset.media_type)


@cache
def _template() -> Template:
    return Template((_FOLDER / "index.html").read_text(encoding="utf-8"))


@cache
def _asset(name: str) -> _Asset:
    path = _FOLDER / name
    body = path.read_bytes()
    return _Asset(
        body=body,
        zipped=gzip.compress(body, mtime=0),
        etag=f'W/"{hashlib.sha256(body).hexdigest()[:32]}"',
        media_type=_TYPES_BY_SUFFIX[path.suffix],
    )
