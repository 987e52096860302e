"""Reading what callers send: bounded while it arrives, and a clear refusal of what is wrong."""

from __future__ import annotations

import json
from typing import Any, Final

from starlette.requests import Request

from resolvers.errors import BadInput, RequestLimitExceeded

_MAX_DEPTH: Final = 64
_OPENING: Final = frozenset("[{")
_CLOSING: Final = frozenset("]}")


async def read_body(request: Request, *, max_bytes: int) -> bytes:
    """Return the whole body.

    Raises:
        RequestLimitExceeded: It is larger; no more than that was read.
    """
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared[:18]) > max_bytes:
        raise _too_large(max_bytes)
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > max_bytes:
            raise _too_large(max_bytes)
        parts.append(part)
    return b"".join(parts)


def decode_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object a body holds.

    Raises:
        BadInput: It is not UTF-8, not JSON, nested too deeply, has numbers out of range or lone
            surrogates, or is not an object.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput("body", f"Byte {error.start} is not UTF-8") from None
    if _depth(text) > _MAX_DEPTH:
        raise BadInput("body", f"It is nested deeper than {_MAX_DEPTH} levels")
    try:
        decoded = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise BadInput(
            "body", f"It is not JSON: {error.msg} in line {error.lineno}, column {error.colno}"
        ) from None
    except ValueError:
        raise BadInput("body", "It holds a number that is out of range") from None
    if not isinstance(decoded, dict):
        raise BadInput("body", "A JSON object is needed here")
    try:
        json.dumps(decoded, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise BadInput("body", "It holds half of a surrogate pair, which is no character") from None
    return decoded


def _depth(text: str) -> int:
    """Return how deeply a text nests, brackets inside strings not counted."""
    depth = deepest = 0
    in_string = escaped = False
    for character in text:
        if in_string:
            if escaped:
                escaped = False
            elif character == "\\":
                escaped = True
            elif character == '"':
                in_string = False
        elif character == '"':
            in_string = True
        elif character in _OPENING:
            depth += 1
            deepest = max(deepest, depth)
        elif character in _CLOSING:
            depth -= 1
    return deepest


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def _too_large(max_bytes: int) -> RequestLimitExceeded:
    return RequestLimitExceeded(
        f"The body is larger than allowed: at most {max_bytes} bytes", limit="body_bytes"
    )
