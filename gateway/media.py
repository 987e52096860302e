"""Serving media: ``GET`` and ``HEAD /media/<sha256>.webp``.

Public on purpose. Browsers fetch images without the caller's key; what is served are course
icons, which every platform shows before login as well, drawn anew by us so that nothing of the
original file but its picture is left; and nobody can list them, or ask for one without knowing
the hash of its content.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from gateway.problems import problem
from storage.media import MediaStore

_NAME: Final = re.compile(r"([0-9a-f]{64})\.webp")
_MEDIA_TYPE: Final = "image/webp"
_ONE_RANGE: Final = re.compile(rb"bytes=(?:(\d{1,18})-(\d{0,18})|-\d{1,18})")
_SAFETY: Final = {
    "Content-Security-Policy": "sandbox; default-src 'none'",
    "Cross-Origin-Resource-Policy": "cross-origin",
    "X-Content-Type-Options": "nosniff",
}
_FOR_EVER: Final = {"Cache-Control": "public, max-age=31536000, immutable"}


def routes(store_of: Callable[[Request], MediaStore]) -> list[Route]:
    """Return the routes under ``/media``.

    Args:
        store_of: Finds the store when a request comes; the application opens it after its routes
            are made.
    """

    async def serve(request: Request) -> Response:
        name = _NAME.fullmatch(request.path_params["name"])
        found = None if name is None else await store_of(request).find(name.group(1))
        if found is None or found[0].media_type != _MEDIA_TYPE:
            return problem(
                "BAD_MEDIA",
                "There is no media of this name",
                request_id=request.state.request_id,
                status=HTTPStatus.NOT_FOUND,
                headers=_SAFETY,
            )
        media, path = found
        headers = {**_SAFETY, **_FOR_EVER, "ETag": f'"{media.sha256}"'}
        if _has_already(request, media.sha256):
            return Response(status_code=304, headers=headers)
        return _MediaFile(path, headers=headers, media_type=media.media_type)

    return [Route("/media/{name}", serve, methods=["GET"], name="media")]


class _MediaFile(FileResponse):
    """A file that answers one range of bytes; several at once, or nonsense, get the whole file.

    Source:
        https://www.rfc-editor.org/rfc/rfc9110#section-14.2
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [
            (name, value)
            for name, value in scope["headers"]
            if name != b"range" or _is_one_range(value)
        ]
        await super().__call__({**scope, "headers": headers}, receive, send)


def _is_one_range(value: bytes) -> bool:
    match = _ONE_RANGE.fullmatch(value.strip())
    if match is None:
        return False
    first, last = match.groups()
    return not last or int(first) <= int(last)


def _has_already(request: Request, sha256: str) -> bool:
    known = request.headers.get("if-none-match", "")
    return known.strip() == "*" or f'"{sha256}"' in {
        tag.strip().removeprefix("W/") for tag in known.split(",")
    }
