"""Answers that are given again as they were, for as long as nothing they were made of has changed.

An answer is kept when it was made by a plan whose fields all last (``Plan.is_lasting``), without an
error, and from nothing but what the cache of records held in memory, young enough. It stands for
the same document, variables and rights, until one of these is no longer so:

- every entry it was made from is still held, the same, and as fresh as was wished;
- the providers that the caller sees are the same, unchanged and not written at;
- the icons known are the same;
- a minute has passed, for a cursor tells when its walk began.

A long answer that would take the place of others is kept when it is asked for a second time: what
is exported once does not push out what is asked for again and again.

What is checked before and counted after an operation is checked and counted for these as well.
Requests on behalf of users, and learners', are never answered so.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final, TypeAlias

import msgspec

from resolvers.caching import Basis
from resolvers.context import Access, RequestContext
from resolvers.operations import OperationKind
from schema.costs import count_values
from schema.engine import Written, pieces_of
from storage.errors import StorageError
from storage.records import Provider

_LONGEST_SECONDS: Final = 60.0
_CURSOR_SHARE: Final = 100
_ANSWER_BYTES: Final = 2_000
_MAX_REQUESTS: Final = 500
_MAX_REQUEST_BYTES: Final = 4_000
_LONG_SHARE: Final = 64
_MOST_LONG: Final = 1000

Key: TypeAlias = tuple[str, str | None, bytes, str, frozenset[str]]
"""Document, operation, variables, the caller's key and what it may do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """The data of an answer, and what they stand on.

    Attributes:
        icons: ``RequestContext.icons_known`` when it was made.
        until: When it is too old in any case, by the monotonic clock.
        size: In bytes, with what it takes to know that it still stands.
    """

    written: Written
    basis: Basis
    providers: Sequence[Provider]
    icons: int
    until: float
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What was found out of a request whose answer is remembered, and holds when it comes again.

    Attributes:
        key: Of the answer.
        kind: Of the operation.
        cost: What it is estimated at, which is not too much.
    """

    key: Key
    kind: OperationKind
    name: str | None
    cost: int

    def is_of(self, access: Access) -> bool:
        """Whether it was found out for the same key, with the same scopes."""
        return self.key[3:] == (access.key_id, access.scopes)


class Asked(dict[str, Any]):
    """A request as it was decoded, which nobody changes.

    Attributes:
        prepared: What was found out of it, if it was answered from memory.
    """

    __slots__ = ("prepared",)

    def __init__(self, decoded: Mapping[str, Any]) -> None:
        super().__init__(decoded)
        self.prepared: Prepared | None = None


class Repeated:
    """Requests whose answers are remembered, by their bodies as they came: those used last."""

    def __init__(self) -> None:
        self._asked: OrderedDict[bytes, Asked] = OrderedDict()

    def find(self, body: bytes) -> Asked | None:
        """Return the request that has this body, if it is known."""
        asked = self._asked.get(body)
        if asked is not None:
            self._asked.move_to_end(body)
        return asked

    def keep(self, body: bytes, asked: Asked) -> None:
        """Keep a request whose answer is remembered, unless its body is long or there is none."""
        if asked.prepared is None or not 0 < len(body) <= _MAX_REQUEST_BYTES:
            return
        self._asked[body] = asked
        if len(self._asked) > _MAX_REQUESTS:
            self._asked.popitem(last=False)


class Remembered:
    """The answers of one process, those used last.

    Args:
        max_bytes: Of JSON, with what it takes to know that it still stands; 0 keeps none.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.held_bytes = 0
        self._answers: OrderedDict[Key, _Answer] = OrderedDict()
        self._long: OrderedDict[int, None] = OrderedDict()

    def recall(
        self,
        document: str,
        operation: str | None,
        variables: Mapping[str, Any],
        context: RequestContext,
    ) -> Recall | None:
        """Return a request's place among the answers; ``None`` for one that has none.

        To be called before anything is executed.
        """
        if not self.max_bytes or context.acts_for_users or context.cache is None:
            return None
        try:
            given = msgspec.msgpack.encode(variables)
        except OverflowError:
            return None
        access = context.access
        return Recall(self, (document, operation, given, access.key_id, access.scopes), context)

    def recall_prepared(self, prepared: Prepared, context: RequestContext) -> Recall | None:
        """Return the same for a request of which all is known; ``None`` if that is for others."""
        if not prepared.is_of(context.access) or context.acts_for_users or context.cache is None:
            return None
        return Recall(self, prepared.key, context)

    def get(self, key: Key) -> _Answer | None:
        """Return what is remembered, whether it still stands or not."""
        return self._answers.get(key)

    def put(self, key: Key, answer: _Answer) -> None:
        """Remember an answer in the place of what was remembered before."""
        self.forget(key)
        self._answers[key] = answer
        self.held_bytes += answer.size
        while self.held_bytes > self.max_bytes:
            self.forget(next(iter(self._answers)))

    def forget(self, key: Key) -> None:
        """Forget what is remembered, if anything is."""
        answer = self._answers.pop(key, None)
        if answer is not None:
            self.held_bytes -= answer.size

    def room_for(self, key: Key) -> int:
        """Return how long an answer may be to be kept: at first, as long as there is free room."""
        if key in self._answers or hash(key) in self._long:
            return self.max_bytes
        return max(self.max_bytes - self.held_bytes, self.max_bytes // _LONG_SHARE)

    def forget_old(self) -> None:
        """Forget all that is too old to be given again."""
        now = monotonic()
        for key in [key for key, answer in self._answers.items() if answer.until < now]:
            self.forget(key)

    def note_long(self, key: Key) -> None:
        """Take note that an answer was too long to be kept at once."""
        self._long[hash(key)] = None
        self._long.move_to_end(hash(key))
        if len(self._long) > _MOST_LONG:
            self._long.popitem(last=False)

    def note_use(self, key: Key) -> None:
        """Have what is remembered outlast others."""
        self._answers.move_to_end(key)


class Recall:
    """One request's place among the remembered answers, which its ``key`` names."""

    def __init__(self, remembered: Remembered, key: Key, context: RequestContext) -> None:
        self.key = key
        self._remembered = remembered
        self._context = context
        self._icons = context.icons_known

    async def find(self) -> Written | None:
        """Return the data of the answer, if one is remembered that still stands."""
        answer = self._remembered.get(self.key)
        if answer is None:
            return None
        try:
            providers = await self._providers()
        except StorageError:  # told by the fields that need them
            return None
        cache = self._context.cache
        stands = (
            monotonic() <= answer.until
            and answer.providers == providers
            and answer.icons == self._icons
            and cache is not None
            and cache.still_stands(answer.basis)
        )
        if not stands:
            self._remembered.forget(self.key)
            return None
        self._remembered.note_use(self.key)
        return answer.written

    async def keep(self, data: Any) -> Any:
        """Return an answer's data: written, when it stands on what lasts and is remembered."""
        basis = self._context.reading.basis
        if not basis.is_whole or not basis.hits:
            return data
        longest = min(_LONGEST_SECONDS, self._context.limits.cursor_seconds / _CURSOR_SHARE)
        until = monotonic() + longest
        size = _ANSWER_BYTES + len(self.key[0]) + basis.size_bytes
        room = self._remembered.room_for(self.key)
        pieces: list[bytes] = []
        for piece in pieces_of(data):
            if pieces:
                await asyncio.sleep(0)  # others have their turn while a long one is written
            pieces.append(piece)
            size += len(piece)
            if size > room:
                self._remembered.forget_old()
                room = self._remembered.room_for(self.key)
            if size > room:
                self._remembered.note_long(self.key)
                return data
        answer = _Answer(
            written=Written(pieces, count_values(data)),
            basis=basis,
            providers=await self._providers(),
            icons=self._icons,
            until=until,
            size=size,
        )
        self._remembered.put(self.key, answer)
        return answer.written

    async def _providers(self) -> Sequence[Provider]:
        return [*(await self._context.visible_providers()).values()]
