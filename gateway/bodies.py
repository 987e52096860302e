"""Reading what callers send: bounded while it arrives, and a clear refusal of what is wrong."""

from __future__ import annotations

import json
import re
from functools import cached_property
from itertools import accumulate
from math import isfinite
from typing import Any, Final

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.types import Scope

from resolvers.errors import BadInput, RequestLimitExceeded

_MAX_DEPTH: Final = 64
_OPENING: Final = "[{"
_STEP: Final = {"[": 1, "{": 1, "]": -1, "}": -1}
_BETWEEN: Final = re.compile(r"[^\[\]{}]+")
_STRING: Final = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)


class Received(Request):
    """A request whose headers are looked up by name, not searched for each time.

    Source:
        https://www.starlette.io/requests/
    """

    @cached_property
    def headers(self) -> Headers:
        """What the caller sent."""
        return _Headers(self.scope["headers"])


class _Headers(Headers):
    """Headers by name, each with its values in order."""

    def __init__(self, raw: list[tuple[bytes, bytes]]) -> None:
        super().__init__(raw=raw)
        self._values: dict[str, list[str]] = {}
        for name, value in raw:
            self._values.setdefault(name.decode("latin-1"), []).append(value.decode("latin-1"))

    def __getitem__(self, key: str) -> str:
        return self._values[key.lower()][0]

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and key.lower() in self._values

    def get(self, key: str, default: Any = None) -> Any:
        """Return the first value of a name."""
        values = self._values.get(key.lower())
        return default if values is None else values[0]

    def getlist(self, key: str) -> list[str]:
        """Return all values of a name."""
        return self._values.get(key.lower(), [])


def header_of(scope: Scope, name: bytes) -> bytes:
    """Return a header's first value; nothing when there is none. ``name`` is in lower case."""
    for found, value in scope["headers"]:
        if found == name:
            return value  # type: ignore[no-any-return]  # ASGI says so
    return b""


async def read_body(request: Request, *, max_bytes: int) -> bytes:
    """Return the whole body.

    Raises:
        RequestLimitExceeded: It is larger; no more than that was read.
        ClientDisconnect: The caller left before it was whole.
    """
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared[:18]) > max_bytes:
        raise _too_large(max_bytes)
    parts: list[bytes] = []
    size, is_whole = 0, False
    while not is_whole:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part = message.get("body", b"")
        size += len(part)
        if size > max_bytes:
            raise _too_large(max_bytes)
        parts.append(part)
        is_whole = not message.get("more_body", False)
    return b"".join(parts)


def decode_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object a body holds; of a name that comes twice, the last one counts.

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
        decoded = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise BadInput(
            "body", f"It is not JSON: {error.msg} in line {error.lineno}, column {error.colno}"
        ) from None
    except ValueError:
        raise BadInput("body", "It holds a number that is out of range") from None
    if isinstance(decoded, list):
        raise BadInput("body", "A JSON object is needed here; batches are not taken")
    if not isinstance(decoded, dict):
        raise BadInput("body", "A JSON object is needed here")
    try:
        if b"\\u" in body:  # nothing else can write one
            json.dumps(decoded, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise BadInput("body", "It holds half of a surrogate pair, which is no character") from None
    return decoded


def _depth(text: str) -> int:
    """Return how deeply a text nests, brackets inside strings not counted."""
    if sum(map(text.count, _OPENING)) <= _MAX_DEPTH:
        return 0  # however they lie, they are not too deep
    brackets = _BETWEEN.sub("", _STRING.sub("", text))
    return max(accumulate(map(_STEP.__getitem__, brackets)), default=0)


def _finite(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError(text)
    return number


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


_DECODER: Final = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)


def _too_large(max_bytes: int) -> RequestLimitExceeded:
    return RequestLimitExceeded(
        f"The body is larger than allowed: at most {max_bytes} bytes", limit="body_bytes"
    )
