"""Cursors: where a walk over a list stands, handed to the caller and believed only if unchanged.

A cursor is base64url of a 16-byte HMAC-SHA-256 and the state of the walk as JSON. The HMAC also
covers a fingerprint of the query (kind of list, filter, order), so a cursor serves the query it
came from and no other.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode

from resolvers.errors import BadInput
from storage.credentials import Secret

_SIGNATURE_BYTES = 16
_MAX_CURSOR_CHARACTERS = 65_536


class CursorSealer:
    """Seals and opens the cursors of one query.

    Args:
        key: Secret of this gateway.
        query: Everything that makes the query, in a form that is the same for equal queries.
    """

    def __init__(self, key: Secret[bytes], query: str) -> None:
        self._key = hashlib.sha256(
            b"cursor\0" + key.reveal() + b"\0" + query.encode(errors="surrogatepass")
        ).digest()

    def seal(self, state: object) -> str:
        """Return the cursor of a state that JSON can hold."""
        body = json.dumps(state, separators=(",", ":")).encode()
        return urlsafe_b64encode(self._signature(body) + body).rstrip(b"=").decode()

    def open(self, cursor: str) -> object:
        """Return the state a cursor was sealed with.

        Raises:
            BadInput: It is not one of this gateway's, was changed, or came from another query.
        """
        sealed = _decoded(cursor)
        signature, body = sealed[:_SIGNATURE_BYTES], sealed[_SIGNATURE_BYTES:]
        if not hmac.compare_digest(signature, self._signature(body)):
            raise BadInput(
                "after",
                "This cursor is damaged or belongs to another query; give an endCursor or cursor"
                " of the same list with the same filter and orderBy",
            )
        state: object = json.loads(body)
        return state

    def _signature(self, body: bytes) -> bytes:
        return hmac.digest(self._key, body, "sha256")[:_SIGNATURE_BYTES]


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
