"""Documents sent by their hash: trusted ones that an operator registered, and automatic ones.

A *trusted document* is kept in the database (``storage.documents``) and known by its hash. An
*automatic* one (APQ, "automatic persisted queries") is one that a client sent once with its
hash; it is remembered by this process only, and forgotten when there are too many.

``Documents.resolve`` turns a request that names a document into one that holds its text; whatever
comes after knows texts only. Trusted documents are held in memory: a request for one costs no
statement. What another process registered is found when it is asked for, at most a tenth of a
second later; what it removed is served for a few seconds more.

Source:
    https://graphql.github.io/graphql-over-http/draft/#sec-Appendix-Persisted-Documents
    https://www.apollographql.com/docs/apollo-server/performance/apq
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import sys
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import structlog

from resolvers.context import Access, Scope
from resolvers.errors import BadInput, RequestRefused
from storage.documents import DocumentStore
from storage.errors import StorageError

_ALGORITHMS: Final = {32: "md5", 40: "sha1", 64: "sha256"}  # by the length of a digest in hex
_ID: Final = re.compile(r"(?:sha256:(?=[0-9a-f]{64}\Z))?([0-9a-f]+)")
_ARGUMENTS: Final = ("documentId", "doc_id", "id")
_AUTOMATIC: Final = "extensions.persistedQuery"
_AUTOMATIC_VERSION: Final = 1
_MAX_AUTOMATIC_BYTES: Final = 8 * 1024 * 1024
_ENTRY_BYTES: Final = 200  # more than an entry takes beside its two texts
_LOOK_SECONDS: Final = 5.0
_LOOK_AGAIN_SECONDS: Final = 0.1  # a deployment may ask as soon as it has registered

_log = structlog.get_logger(__name__)


class DocumentNotFound(RequestRefused):
    """No trusted document has the hash that was sent."""

    code = "DOCUMENT_NOT_FOUND"


class PersistedQueryNotFound(DocumentNotFound):
    """The hash is of no document this process knows; clients then send text and hash together.

    They recognise it by exactly this code and message.
    """

    code = "PERSISTED_QUERY_NOT_FOUND"


class DocumentNotTrusted(RequestRefused):
    """Only trusted documents are served, and this is none."""

    code = "DOCUMENT_NOT_TRUSTED"


def document_hash(text: str, *, digits: int = 64) -> str | None:
    """Return the hash of a document, by the algorithm whose hashes have so many hex digits.

    ``None`` where there is none: 32 are MD5, 40 SHA-1, and 64 SHA-256.
    """
    algorithm = _ALGORITHMS.get(digits)
    if algorithm is None:
        return None
    encoded = text.encode("utf-8", "surrogatepass")
    return hashlib.new(algorithm, encoded, usedforsecurity=False).hexdigest()


def parse_document_id(text: str) -> str | None:
    """Return the hash in a document's id, in hex; ``None`` when it is none of the known forms.

    They are 32, 40 or 64 lower-case hex digits, the last also after ``sha256:``.
    """
    found = _ID.fullmatch(text)
    return found[1] if found is not None and len(found[1]) in _ALGORITHMS else None


class Documents:
    """Turns requests that name a document into requests that hold one; see ``open_documents``.

    Args:
        store: Trusted documents.
        trusted_only: Whether nothing else is served, except to keys with the scope ``admin``.
        max_document_bytes: The size up to which an automatic document is remembered.
        max_bytes: How much memory automatic documents may take.
    """

    def __init__(
        self,
        store: DocumentStore,
        *,
        trusted_only: bool,
        max_document_bytes: int,
        max_bytes: int = _MAX_AUTOMATIC_BYTES,
    ) -> None:
        self.trusted = _TrustedTexts(store)
        self._trusted_only = trusted_only
        self._automatic = _AutomaticTexts(
            max_document_bytes=max_document_bytes, max_bytes=max_bytes
        )

    async def resolve(self, body: Mapping[str, Any], access: Access) -> Mapping[str, Any]:
        """Return the decoded request with the document in ``query``, if it names one by a hash.

        A request without a hash, and one that is wrong in other ways, comes back as it is.

        Raises:
            BadInput: The hash is of no known form, or not that of the document beside it.
            DocumentNotFound: No document of that hash is known.
            DocumentNotTrusted: Only trusted documents are served, and this is none.
            StorageError: The database could not answer.
        """
        text = body.get("query") or None
        named = _named(body)
        trusted_only = self._trusted_only and not access.allows(Scope.ADMIN)
        if text is None and named is not None:
            return {**body, "query": await self._find(named, trusted_only=trusted_only)}
        if not isinstance(text, str):
            return body
        if named is not None and document_hash(text, digits=len(named.hash)) != named.hash:
            raise BadInput(named.argument, "It is not the hash of the document sent with it")
        if trusted_only and not await self.trusted.holds(text):
            raise DocumentNotTrusted(
                "Only registered documents are served here, and this is none: register it, or use"
                " a key with the scope admin"
            )
        if named is not None and named.automatic:
            self._automatic.keep(named.hash, text)
        return body

    async def follow(self) -> None:
        """Keep up with what other processes register and remove, for ever."""
        is_failing = False
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                await self.trusted.look_again()
                is_failing = False
            except StorageError as error:
                if not is_failing:
                    _log.warning("documents_not_followed", problem=str(error))
                is_failing = True

    async def _find(self, named: _Named, *, trusted_only: bool) -> str:
        automatic = named.automatic and not trusted_only
        text = self._automatic.find(named.hash) if automatic else None
        text = text or await self.trusted.find(named.hash)
        if text is not None:
            return text
        if automatic:
            raise PersistedQueryNotFound("PersistedQueryNotFound")
        raise DocumentNotFound(f"{named.argument}: No registered document has this hash")


@asynccontextmanager
async def open_documents(
    store: DocumentStore, *, trusted_only: bool, max_document_bytes: int
) -> AsyncIterator[Documents]:
    """Open what ``Documents`` says, and keep it up to date until the end."""
    documents = Documents(store, trusted_only=trusted_only, max_document_bytes=max_document_bytes)
    following = asyncio.create_task(documents.follow())
    try:
        yield documents
    finally:
        following.cancel()
        await asyncio.wait({following})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Named:
    """How a request names its document.

    Attributes:
        argument: Where, as the caller wrote it.
        hash: In hex.
        automatic: Whether it may be remembered from a request before.
    """

    argument: str
    hash: str
    automatic: bool


def _named(body: Mapping[str, Any]) -> _Named | None:
    """Return how a request names its document, in one way or several that agree.

    Raises:
        BadInput: A hash is of no known form, or there are several.
    """
    found = [
        _Named(argument=argument, hash=_hash(argument, body[argument]), automatic=False)
        for argument in _ARGUMENTS
        if body.get(argument) is not None
    ]
    extensions = body.get("extensions")
    if isinstance(extensions, Mapping):
        automatic = extensions.get("persistedQuery")
        if automatic is not None:
            found.append(_automatic(automatic))
    if len({named.hash for named in found}) > 1:
        arguments = " and ".join(named.argument for named in found)
        raise BadInput(arguments, "They name different documents")
    return found[-1] if found else None


def _automatic(given: object) -> _Named:
    if not isinstance(given, Mapping):
        raise BadInput(_AUTOMATIC, "An object with version and sha256Hash is needed here")
    version, sha256 = given.get("version"), given.get("sha256Hash")
    if version != _AUTOMATIC_VERSION or isinstance(version, bool):
        raise BadInput(f"{_AUTOMATIC}.version", f"There is version {_AUTOMATIC_VERSION} only")
    argument = f"{_AUTOMATIC}.sha256Hash"
    if not isinstance(sha256, str) or re.fullmatch(r"[0-9a-f]{64}", sha256) is None:
        raise BadInput(argument, "A SHA-256 is needed here: 64 lower-case hexadecimal digits")
    return _Named(argument=argument, hash=sha256, automatic=True)


def _hash(argument: str, given: object) -> str:
    found = parse_document_id(given) if isinstance(given, str) else None
    if found is None:
        raise BadInput(
            argument,
            "The hash of a document is needed here: sha256: and 64 lower-case hexadecimal digits,"
            " or those of a SHA-256, SHA-1 or MD5 alone",
        )
    return found


class _TrustedTexts:
    """Trusted documents in memory, all of them once one was asked for."""

    def __init__(self, store: DocumentStore) -> None:
        self._store = store
        self._by_hash: dict[str, str] = {}
        self._texts: frozenset[str] = frozenset()
        self._revision: int | None = None
        self._looked_at = float("-inf")
        self._problem: StorageError | None = None
        self._looking = asyncio.Lock()

    async def find(self, sha: str) -> str | None:
        """Return the trusted document with that hash.

        Raises:
            StorageError: It is not in memory, and the database could not answer.
        """
        if sha not in self._by_hash:
            await self._look()
        return self._by_hash.get(sha)

    async def holds(self, text: str) -> bool:
        """Whether this is a trusted document, to the letter.

        Raises:
            StorageError: It is not in memory, and the database could not answer.
        """
        if text not in self._texts:
            await self._look()
        return text in self._texts

    def knows(self, text: str) -> bool:
        """Whether this is a trusted document, as far as memory tells."""
        return text in self._texts

    async def look_again(self) -> None:
        """Read the documents anew if they have changed, and were ever asked for.

        Raises:
            StorageError: The database could not answer; what is in memory stays.
        """
        if self._revision is not None:
            await self._look()

    async def _look(self) -> None:
        """Read the documents anew if they have changed; ten times a second, whoever asks."""
        async with self._looking:
            now = time.monotonic()
            if now - self._looked_at < _LOOK_AGAIN_SECONDS:
                if self._problem is not None:
                    raise self._problem
                return
            try:
                await self._read()
            except StorageError as error:
                # Who waits meanwhile is not to wait as long again.
                self._problem, self._looked_at = error, time.monotonic()
                raise
            self._problem, self._looked_at = None, now

    async def _read(self) -> None:
        revision = await self._store.get_revision()
        if revision == self._revision:
            return
        documents = await self._store.list_all()
        self._by_hash = {
            sha: document.text
            for document in documents
            for sha in (document.id, document_hash(document.text) or document.id)
        }
        self._texts = frozenset(self._by_hash.values())
        self._revision = revision


class _AutomaticTexts:
    """Documents that clients sent with their hash: those used last, up to a number of bytes."""

    def __init__(self, *, max_document_bytes: int, max_bytes: int) -> None:
        self._max_document_bytes = max_document_bytes
        self._free_bytes = max_bytes
        self._texts: OrderedDict[str, str] = OrderedDict()

    def find(self, sha256: str) -> str | None:
        if sha256 in self._texts:
            self._texts.move_to_end(sha256)
        return self._texts.get(sha256)

    def keep(self, sha256: str, text: str) -> None:
        if self.find(sha256) is not None or _byte_size(text) > self._max_document_bytes:
            return
        self._texts[sha256] = text
        self._free_bytes -= _size(sha256, text)
        while self._free_bytes < 0:
            self._free_bytes += _size(*self._texts.popitem(last=False))


def _byte_size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _size(sha256: str, text: str) -> int:
    return sys.getsizeof(sha256) + sys.getsizeof(text) + _ENTRY_BYTES
