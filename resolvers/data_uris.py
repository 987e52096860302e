"""Data URIs as platforms really write them, read into bytes.

Source:
    https://www.rfc-editor.org/rfc/rfc2397
"""

from __future__ import annotations

import base64
import re
from typing import Final
from urllib.parse import unquote_to_bytes

_SCHEME: Final = re.compile(r"\s*data:", re.IGNORECASE)
_WHITESPACE: Final = re.compile(rb"[ \t\n\f\r]+")
_BASE64: Final = re.compile(rb"[A-Za-z0-9+/]*")
_URL_SAFE_TO_PLAIN: Final = bytes.maketrans(b"-_", b"+/")
_LONGEST_ESCAPE: Final = 3  # %2B
_MAX_ESCAPES: Final = 500_000  # each costs some 40 bytes of memory to decode


class DataUriInvalid(ValueError):
    """The text starts like a data URI but holds no readable bytes."""


def is_data_uri(text: str) -> bool:
    """Tell by the first letters, in any case and after any white space."""
    return _SCHEME.match(text) is not None


def read_data_uri(text: str, *, max_bytes: int) -> bytes:
    """Return the bytes inside; the media type it claims is ignored.

    Base64 may lack its padding, be of the URL-safe kind, be broken into lines and be percent
    encoded; anything not marked as base64 is percent encoded text. Base64 that lost a character
    (a length of one more than a multiple of four) is refused, as browsers do.

    Raises:
        DataUriInvalid: It has no comma, is not what it says, or holds more than ``max_bytes``.
    """
    head, comma, payload = text.partition(",")
    if not comma:
        raise DataUriInvalid("The data URI has no comma")
    marked_base64 = any(part.strip().lower() == "base64" for part in head.split(";")[1:])
    if len(payload) > 2 * _LONGEST_ESCAPE * max_bytes:
        raise DataUriInvalid(f"The data URI holds more than {max_bytes} bytes")
    if payload.count("%") > _MAX_ESCAPES:
        raise DataUriInvalid(f"The data URI has more than {_MAX_ESCAPES} percent escapes")
    content = unquote_to_bytes(payload.encode("utf-8", "surrogatepass"))
    if marked_base64:
        content = _read_base64(content)
    if not content:
        raise DataUriInvalid("The data URI is empty")
    if len(content) > max_bytes:
        raise DataUriInvalid(f"The data URI holds more than {max_bytes} bytes")
    return content


def _read_base64(text: bytes) -> bytes:
    digits = _WHITESPACE.sub(b"", text).rstrip(b"=").translate(_URL_SAFE_TO_PLAIN)
    if not _BASE64.fullmatch(digits):
        raise DataUriInvalid("The data URI is marked as base64 but is not")
    if len(digits) % 4 == 1:
        raise DataUriInvalid("The base64 text of the data URI is cut off")
    return base64.b64decode(digits + b"=" * (-len(digits) % 4))
