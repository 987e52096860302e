"""Cursors: where a walk over a list stands, handed to the caller and believed only if unchanged.

A cursor is base64url of the state of the walk as JSON and a 16-byte HMAC-SHA-256 of it. JSON comes
first, so that no cursor begins with a dash, which a command line would take for an option. The HMAC
also covers a fingerprint of the query (kind of list, filter, order) and the format of the state, so
a cursor serves the query it came from and no other, and one of an earlier release is not misread.
The key is derived from the gateway's own, so cursors outlive restarts.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence

from resolvers.errors import BadInput
from storage.credentials import Secret

_SIGNATURE_BYTES = 16
_MAX_CURSOR_CHARACTERS = 65_536


class CursorSealer:
    """Seals and opens the cursors of one query.

    Args:
        key: Secret of this gateway.
        query: Everything that makes the query, in a form that is the same for equal queries.
        former: The same query as earlier releases wrote it; their cursors are refused by name.
    """

    def __init__(self, key: Secret[bytes], query: str, *, former: Sequence[str] = ()) -> None:
        self._key = _key_of(key, query)
        self._former_keys = [_key_of(key, each) for each in former]

    def seal(self, state: object) -> str:
        """Return the cursor of a state that JSON can hold."""
        text = json.dumps(state, separators=(",", ":"), ensure_ascii=False)
        body = text.encode(errors="surrogatepass")
        return urlsafe_b64encode(body + _signature(self._key, body)).rstrip(b"=").decode()

    def open(self, cursor: str) -> object:
        """Return the state a cursor was sealed with.

        Raises:
            BadInput: It is not one of this gateway's, was changed, came from another query, or was
                given by an earlier release that wrote cursors differently.
        """
        sealed = _decoded(cursor)
        body, signature = sealed[:-_SIGNATURE_BYTES], sealed[-_SIGNATURE_BYTES:]
        if self._is_former(sealed):
            raise BadInput(
                "after",
                "This cursor was given by an earlier release of the gateway, which wrote cursors"
                " differently; begin anew, without after",
            )
        if not hmac.compare_digest(signature, _signature(self._key, body)):
            raise BadInput(
                "after",
                "This cursor is damaged or belongs to another query; give an endCursor or cursor"
                " of the same list with the same filter and orderBy",
            )
        state: object = json.loads(body)
        return state

    def _is_former(self, sealed: bytes) -> bool:
        """Whether an earlier release wrote it: for another query, or with the signature first."""
        first, rest = sealed[:_SIGNATURE_BYTES], sealed[_SIGNATURE_BYTES:]
        body, last = sealed[:-_SIGNATURE_BYTES], sealed[-_SIGNATURE_BYTES:]
        return any(
            hmac.compare_digest(last, _signature(key, body)) for key in self._former_keys
        ) or any(
            hmac.compare_digest(first, _signature(key, rest))
            for key in (*self._former_keys, self._key)
        )


def _key_of(key: Secret[bytes], query: str) -> bytes:
    return hashlib.sha256(
        b"cursor\0" + key.reveal() + b"\0" + query.encode(errors="surrogatepass")
    ).digest()


def _signature(key: bytes, body: bytes) -> bytes:
    return hmac.digest(key, body, "sha256")[:_SIGNATURE_BYTES]


def _decoded(cursor: str) -> bytes:
    """Return the bytes, or none at all for text that no sealer wrote."""
    if len(cursor) > _MAX_CURSOR_CHARACTERS:
        return b""
    try:
        sealed = urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4))
    except (UnicodeEncodeError, binascii.Error):
        return b""
    # One state has one cursor: ignored characters and spare bits are not let through.
    return sealed if urlsafe_b64encode(sealed).rstrip(b"=").decode() == cursor else b""
