"""The one cache of what providers answered, shared by all requests and kept across restarts.

An answer belongs to a provider, to the subject it was read for, and to what was asked for. How old
an answer may be is each reader's own choice; the cache then serves, joins or reads:

fresh              young enough: served from memory, or from the database after a restart
while revalidated  a reader without a choice of its own gets one up to twice the usual age, and a
                   read in the background makes it young again
flights            what is not young enough is read once for all who want it at the time, also by
                   several requests; what nobody waits for any more, because they left, is given up
if error           an answer that cannot be had anew is served old, marked STALE; not when the
                   provider refused the account, for then nobody may see it any more

Memory holds answers, those used last, up to a number of bytes: encoded until somebody asks for
them, and from then on, while there is room, as records, which all readers share. The database is
written behind the readers' backs, what is read again and again only now and then, and read for
what memory does not hold. Our own writes at a
provider make everything read before old, in every gateway at once, by the number
``Provider.writes``; a changed registration makes it unusable.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from contextvars import Context
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from math import inf
from operator import attrgetter
from sys import intern
from typing import Any, Final, Generic, TypeAlias, TypeVar

import msgspec
import structlog

from sessions.base import Page
from sessions.errors import (
    ProviderBadResponse,
    ProviderError,
    ProviderRateLimited,
    ProviderTimeout,
    ProviderUnavailable,
    UpstreamCallsSpent,
)
from sessions.http import deadline, patience
from sessions.metering import current_meter
from sessions.sharing import read_since, until_done
from sessions.timeouts import Timeouts
from sessions.tracing import Span, current_span, link_to
from storage.cache import CacheStore, KeptAnswer
from storage.errors import StorageError
from storage.records import Course, DataSource, Provenance, Provider, User

V = TypeVar("V")

_SERVED_STALE: Final = (ProviderUnavailable, ProviderRateLimited, ProviderBadResponse)
_ENTRY_BYTES: Final = 520  # more than an entry takes beside its answer and its name
_RECORD_FACTOR: Final = 2  # records take less than so many times what they take encoded
_GROUND_BYTES: Final = 100
_PLACE_BYTES: Final = 24
_MOST_IN_SERIES: Final = 200_000
_USED_SECONDS: Final = 10.0
_MAX_COMMON: Final = 10_000
_SHARED: Final = frozenset(
    {
        "course_id",
        "fetched_at",
        "provider_id",
        "role",
        "roles",
        "section_id",
        "source_type",
        "user_id",
    }
)
_ANSWERS_AT_ONCE: Final = 500
_SAVE_SECONDS: Final = 1.0
_SAVE_AGAIN_SECONDS: Final = 10.0
_LAND_SECONDS: Final = 0.005
_LANDED_AT_ONCE: Final = 500
_SWEEP_SECONDS: Final = 3600.0
_LENGTHS: Final = 10_000
_SHELVES: Final = 10_000
_NONE: Final = b""

_encoded: Final = msgspec.msgpack.Encoder().encode

_log = structlog.get_logger("caching")


class Resource(StrEnum):
    """What an age is set for."""

    USERS = "users"
    COURSES = "courses"
    ENROLLMENTS = "enrollments"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind(Generic[V]):
    """One kind of answer.

    Attributes:
        name: Tells its keys from those of other kinds; goes into the database.
        resource: Whose age counts.
        decoder: Reads an encoded answer.
    """

    name: str
    resource: Resource
    decoder: msgspec.msgpack.Decoder[V]

    @classmethod
    def of(cls, name: str, resource: Resource, type_: Any) -> Kind[V]:
        """Return the kind whose answers are of a type that msgspec can read."""
        return cls(name=name, resource=resource, decoder=msgspec.msgpack.Decoder(type_))


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Whose answers, and as what the provider was registered when they were read.

    Attributes:
        provider_id: The product's own id of the provider.
        subject: On whose behalf, as text.
        registration: Differs once the provider was changed.
        writes: ``Provider.writes``.
    """

    provider_id: str
    subject: str
    registration: str
    writes: int

    @classmethod
    def of(cls, provider: Provider, subject: str) -> Place:
        """Return the place of a provider as it is registered now."""
        registration = f"{provider.created_at.timestamp()}.{provider.revision}"
        return cls(
            provider_id=provider.id,
            subject=subject,
            registration=registration,
            writes=provider.writes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """How fresh an answer must be, and how long it is waited for.

    Attributes:
        began_at: When the request began, in seconds since 1970: what is read later is live.
        max_age_seconds: How old at that time; ``None`` for the usual age, and then up to twice as
            old while it is being read anew.
        usual_age_seconds: What is usual for this provider and resource.
        patience_seconds: How long to wait; an answer that comes later is kept for others.
    """

    began_at: float
    max_age_seconds: float | None = None
    usual_age_seconds: float = 0
    patience_seconds: float = 30

    @property
    def oldest_at(self) -> float:
        """The earliest time of reading that is good enough."""
        age = self.usual_age_seconds if self.max_age_seconds is None else self.max_age_seconds
        return self.began_at - age

    @property
    def oldest_while_read_anew(self) -> float:
        """The earliest time of reading that will do while a newer answer is on its way."""
        if self.max_age_seconds is not None:
            return self.oldest_at
        return self.began_at - 2 * self.usual_age_seconds


class Kept(msgspec.Struct, Generic[V], frozen=True, kw_only=True, gc=False):
    """One answer with its age.

    Attributes:
        value: The answer; records in it say in their provenance where it came from.
        via: LIVE, CACHE or STALE.
        read_at: When it was read.
        error: Why nothing newer could be had; ``None`` unless it is STALE.
    """

    value: V
    via: DataSource
    read_at: datetime
    error: ProviderError | None = None


Answers: TypeAlias = Mapping[str, Kept[V] | ProviderError]
"""Answers by key, and why others could not be had; what a provider does not have is left out."""

Fetch: TypeAlias = Callable[[Sequence[str]], Awaitable[Mapping[str, V]]]
"""Reads the answers of some keys at the provider."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheTerms:
    """How much is kept, and for how long.

    Attributes:
        max_bytes: Of answers in memory, with what it takes to find them.
        max_unsaved_bytes: Of answers that wait to be written to the database; beyond that they
            are kept in memory only.
        stale_seconds: How old an answer may be that is served because none newer can be had;
            older ones are forgotten.
        flight_seconds: How long one read may go on, when its readers have lost patience.
    """

    max_bytes: int = 64 * 1024 * 1024
    max_unsaved_bytes: int = 16 * 1024 * 1024
    stale_seconds: float = 7 * 24 * 3600
    flight_seconds: float = 30


@dataclass(slots=True)
class CacheCounts:
    """What happened since the start, key by key, and what is held."""

    hits: int = 0
    revalidations: int = 0
    joined: int = 0
    reads: int = 0
    stale: int = 0
    held: int = 0
    held_bytes: int = 0


_Name: TypeAlias = tuple[str, str, str]

_ShelfName: TypeAlias = tuple[str, str, str]
"""Provider id, subject and name of the kind."""


class Basis:
    """What a request was answered from, as long as that was nothing but memory.

    Attributes:
        is_whole: Whether it was. Once something was read, or told in another way, or is being
            read anew, the answer stands on more than is taken down here.
        good_until: Until when all of it is as fresh as it was wished, in seconds since 1970.
        entries: Those served, each once, by which it is known whether they are still held.
        series: Those served, each once, with entries of their own.
        hits: How many entries are of each provider, by id.
    """

    __slots__ = ("entries", "good_until", "hits", "is_whole", "places", "seen_at", "series")

    def __init__(self) -> None:
        self.is_whole = True
        self.good_until = inf
        self.entries: set[_Entry] = set()
        self.series: set[_Series] = set()
        self.places: dict[str, Place] = {}
        self.hits: Counter[str] = Counter()
        self.seen_at = -1

    def add(self, place: Place, served: Sequence[_Entry], *, age_seconds: float) -> None:
        """Take down entries that were served, and how old they might have been."""
        if served:
            known = len(self.entries)
            self.entries.update(served)
            self.hits[place.provider_id] += len(self.entries) - known
            self.places[place.provider_id] = place
            oldest = min(map(_read_at, served))
            self.good_until = min(self.good_until, oldest + age_seconds)

    def add_series(self, place: Place, series: _Series, *, age_seconds: float) -> None:
        """Take down a series that was served, as ``add`` does single entries."""
        if series not in self.series:
            self.series.add(series)
            self.hits[place.provider_id] += len(series.keys)
            self.places[place.provider_id] = place
            self.good_until = min(self.good_until, series.oldest_at + age_seconds)

    @property
    def size_bytes(self) -> int:
        """What it takes to hold it, apart from what it stands on."""
        in_series = sum(len(series.keys) for series in self.series)
        return _GROUND_BYTES * len(self.entries) + _PLACE_BYTES * in_series


class _Entry(msgspec.Struct, eq=False, gc=False):
    """An answer; without a body, what the provider has no longer.

    Attributes:
        body: The answer, encoded; nothing once it is ``kept``.
        kept: The same as it is given to readers from memory, who must not change it.
        length: Of the body as it was.
        is_held: Whether it still stands in the cache, and no newer one in its place.
    """

    body: bytes
    length: int
    registration: str
    writes: int
    read_at: float
    kept: Kept[Any] | None = None
    is_held: bool = True

    def serves(self, place: Place, oldest_at: float) -> bool:
        return (
            self.read_at >= oldest_at
            and self.length > 0
            and self.writes == place.writes
            and self.registration == place.registration
        )

    def encoded(self) -> bytes:
        """Return the answer as it is written to the database."""
        return self.body if self.kept is None else msgspec.msgpack.encode(self.kept.value)


@dataclass(eq=False, slots=True)
class _Series:
    """Answers of one kind that were served together, in the order in which they were wanted.

    A list that is read again and again wants the same ones each time: all of them are had by one
    look, which costs a fiftieth of as many looks.

    Attributes:
        keys: Of which answers.
        values: The answers; readers must change nothing.
        entries: They are those of, by which it is known whether they are still held.
        oldest_at: When the one was read that was read first.
        seen_at: Of ``RecordCache._changes``, when all were last seen to be held.
        used_at: When all were last counted as used.
    """

    keys: tuple[str, ...]
    values: tuple[Any, ...]
    entries: tuple[_Entry, ...]
    oldest_at: float
    seen_at: int
    used_at: float

    def stands(self, changes: int) -> bool:
        """Whether all of them are still held."""
        if self.seen_at != changes:
            if not all(map(_is_held, self.entries)):
                return False
            self.seen_at = changes
        return True


_SeriesName: TypeAlias = tuple[Place, str, int, str, str]
"""Whose, of what kind, how many, and the first and the last key."""

_read_at: Callable[[_Entry], float] = attrgetter("read_at")
_is_held: Callable[[_Entry], bool] = attrgetter("is_held")


@dataclass(eq=False, slots=True)
class _Flight:
    """One read under way.

    Attributes:
        shelf: Whose answers it reads, and of what kind.
        span: What it belongs to; ``None`` when it is not traced, or nobody's.
        waiting: How many readers wait for it.
        outlives: Whether it goes on when nobody waits: somebody lost patience, or nobody asked.
        aboard: What it brought that is not held yet, by key.
    """

    place: Place
    shelf: _ShelfName
    began_at: float
    task: asyncio.Task[Mapping[str, Any]]
    span: Span | None
    waiting: int = 0
    outlives: bool = False
    aboard: list[tuple[str, _Name]] = field(default_factory=list)


@dataclass(slots=True)
class _Sorted(Generic[V]):
    """What is to be had of the keys asked for: at once, and what else is to be done, by name."""

    answers: dict[str, Kept[V] | ProviderError] = field(default_factory=dict)
    aging: dict[str, _Name] = field(default_factory=dict)
    missing: dict[str, _Name] = field(default_factory=dict)
    unknown: dict[str, _Name] = field(default_factory=dict)


class RecordCache:
    """Answers of providers; made by ``open_cache``.

    Args:
        store: Where answers are kept across restarts.
        terms: How much, and for how long.
        clock: Seconds since 1970.
    """

    def __init__(
        self,
        store: CacheStore,
        *,
        terms: CacheTerms | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.counts = CacheCounts()
        self.clock = clock
        self._changes = 0
        self._store = store
        self._terms = terms or CacheTerms()
        self._entries: OrderedDict[_Name, _Entry] = OrderedDict()
        self._flights: dict[_Name, _Flight] = {}
        self._running: set[asyncio.Task[Mapping[str, Any]]] = set()
        self._landing: dict[_Flight, None] = {}
        self._newest: dict[_ShelfName, float] = {}
        self._newest_of_others = -inf
        self._lengths: dict[tuple[Place, str], int] = {}
        self._series: OrderedDict[_SeriesName, _Series] = OrderedDict()
        self._in_series = 0
        self._unsaved: dict[_Name, _Entry] = {}
        self._unsaved_bytes = 0
        self._saved_at: OrderedDict[_Name, float] = OrderedDict()
        self._to_save = asyncio.Event()
        self._silent = False
        self._timeouts = Timeouts()

    async def read(
        self,
        place: Place,
        kind: Kind[V],
        keys: Sequence[str],
        *,
        wish: Wish,
        fetch: Fetch[V],
        basis: Basis | None = None,
    ) -> Answers[V]:
        """Return the answers of several keys of one kind, as fresh as wished.

        Args:
            place: Whose.
            kind: Of what kind.
            keys: Which, each once.
            wish: How fresh, and how long to wait.
            fetch: Reads at the provider what is not to be had otherwise.
            basis: Is told what was served from memory, and whether anything else was.

        Raises:
            RequestRefused: ``fetch`` refused.
            StorageError: ``fetch`` met with one; the cache's own are as if nothing were kept.
        """
        names = _names(place, kind, keys)
        found = self._sorted(place, kind, names, wish, basis)
        if found.unknown and wish.oldest_while_read_anew < wish.began_at:
            await self._recall(place, kind, found.unknown)
            found = self._sorted(place, kind, names, wish)
        self._note_hits(place, len(found.answers))
        if found.aging:
            self._refresh(place, kind, found.aging, wish=wish, fetch=fetch)
        if found.missing:
            read = await self._read_now(place, kind, found.missing, wish=wish, fetch=fetch)
            found.answers.update(read)
        return found.answers

    def at_hand(
        self,
        place: Place,
        kind: Kind[V],
        keys: Sequence[str],
        *,
        wish: Wish,
        basis: Basis | None = None,
    ) -> Mapping[str, Kept[V]]:
        """Return those answers that are in memory and as fresh as wished, by key.

        The basis is told of them.
        """
        found: dict[str, Kept[V]] = {}
        served: list[_Entry] = []
        oldest_at, held = wish.oldest_at, self._entries
        shelf = _shelf_name(place, kind)
        if self._newest_of(shelf) < oldest_at:
            return found
        names = _names(place, kind, keys)
        self._land_those_of(shelf, names)
        for key, name in names.items():
            entry = held.get(name)
            if entry is not None and entry.serves(place, oldest_at):
                held.move_to_end(name)
                found[key] = entry.kept or self._unpacked(entry, kind)
                served.append(entry)
        if basis is not None:
            basis.add(place, served, age_seconds=wish.began_at - oldest_at)
        self._note_hits(place, len(found))
        return found

    def together(
        self,
        place: Place,
        kind: Kind[V],
        keys: tuple[str, ...],
        *,
        wish: Wish,
        basis: Basis | None = None,
    ) -> Sequence[V] | None:
        """Return the answers of many keys in their order, if the same were put together before.

        ``None`` if they were not, or if one of them is no longer held or too old. The basis is
        told of them.
        """
        name = _series_name(place, kind, keys)
        series = self._series.get(name)
        if series is None or series.keys != keys or self._landing:
            return None
        oldest_at = wish.oldest_at
        if series.oldest_at < oldest_at or not series.stands(self._changes):
            self._part(name)
            return None
        self._series.move_to_end(name)
        if self.clock() - series.used_at > _USED_SECONDS:
            series.used_at = self.clock()
            for each in _names(place, kind, keys).values():
                self._entries.move_to_end(each)
        if basis is not None:
            basis.add_series(place, series, age_seconds=wish.began_at - oldest_at)
        self._note_hits(place, len(keys))
        return series.values

    async def put_together(self, place: Place, kind: Kind[Any], keys: tuple[str, ...]) -> None:
        """Have answers that were at hand together known by all of their keys.

        Nothing happens if one of them is not at hand any more.
        """
        entries: list[_Entry] = []
        values: list[Any] = []
        changes = self._changes
        for start in range(0, len(keys), _ANSWERS_AT_ONCE):
            if start:
                await asyncio.sleep(0)  # others have their turn
            for key in keys[start : start + _ANSWERS_AT_ONCE]:
                entry = self._entries.get((place.provider_id, place.subject, f"{kind.name}:{key}"))
                if entry is None or entry.kept is None or not entry.serves(place, -inf):
                    return
                entries.append(entry)
                values.append(entry.kept.value)
        if self._changes != changes:
            return
        name = _series_name(place, kind, keys)
        self._part(name)
        self._series[name] = _Series(
            keys=keys,
            values=tuple(values),
            entries=tuple(entries),
            oldest_at=min(map(_read_at, entries)),
            seen_at=changes,
            used_at=self.clock(),
        )
        self._in_series += len(keys)
        while self._in_series > _MOST_IN_SERIES:
            self._part(next(iter(self._series)))

    def _part(self, name: _SeriesName) -> None:
        series = self._series.pop(name, None)
        if series is not None:
            self._in_series -= len(series.keys)

    def _part_broken(self) -> None:
        """Let go of series that will not be served again, and with them of what is not held."""
        for name in [key for key, one in self._series.items() if not one.stands(self._changes)]:
            self._part(name)

    def prefetch(
        self, place: Place, kind: Kind[V], key: str, *, wish: Wish, fetch: Fetch[V]
    ) -> None:
        """Read an answer in the background that somebody is likely to want next.

        Nothing happens when it is held young enough, when it is being read, or when nothing may
        be served that was read before it was asked for.
        """
        names = _names(place, kind, [key])
        self._land_those_of(_shelf_name(place, kind), names)
        entry = self._entries.get(names[key])
        is_young = entry is not None and entry.serves(place, wish.oldest_at)
        if not is_young and wish.oldest_at < wish.began_at:
            self._refresh(place, kind, names, wish=wish, fetch=fetch)

    def length_of(self, place: Place, kind: Kind[Any]) -> int:
        """Return how long a list was when last seen, or at least was; 0 when never seen."""
        return self._lengths.get((place, kind.name), 0)

    def note_length(self, place: Place, kind: Kind[Any], length: int) -> None:
        """Take note of how long a list is, or at least is."""
        self._lengths.pop((place, kind.name), None)
        self._lengths[place, kind.name] = length
        if len(self._lengths) > _LENGTHS:
            del self._lengths[next(iter(self._lengths))]

    def drop(self, provider_id: str, *, subject: str | None = None) -> None:
        """Forget, in memory, a provider's answers, or one subject's; flights keep theirs too."""

        def is_meant(name: _Name) -> bool:
            return name[0] == provider_id and subject in {None, name[1]}

        for name in [*filter(is_meant, self._entries)]:
            self._forget(name)
        self._part_broken()
        for name in [*filter(is_meant, self._unsaved)]:
            self._unsaved_bytes -= self._unsaved.pop(name).length
        for name in [*filter(is_meant, self._flights)]:
            del self._flights[name]
        for name in [*filter(is_meant, self._saved_at)]:
            del self._saved_at[name]

    async def forget(self, provider_id: str, *, subject: str) -> None:
        """Forget one subject's answers, here and in the database.

        Raises:
            StorageError: The database still has them.
        """
        self.drop(provider_id, subject=subject)
        await self._store.drop(provider_id, subject=subject)

    async def run(self) -> None:
        """Write answers to the database as they come, and forget old ones there, for ever."""
        swept_at: float | None = None
        while True:
            if swept_at is None or time.monotonic() - swept_at > _SWEEP_SECONDS:
                swept_at = time.monotonic()
                await self._sweep()
            try:
                async with asyncio.timeout(_SWEEP_SECONDS):
                    await self._to_save.wait()
            except TimeoutError:
                continue
            await asyncio.sleep(_SAVE_SECONDS)  # what comes together is written together
            await self.save_due()

    async def save_due(self) -> None:
        """Write what is new, and of what is read again and again the latest now and then."""
        self._land_all()
        self._part_broken()
        await self._save(self._due())

    async def save(self) -> None:
        """Write to the database what it does not have yet; what fails is kept in memory only."""
        self._land_all()
        while self._unsaved:
            await self._save([*self._unsaved])
        self._to_save.clear()

    def _due(self) -> Sequence[_Name]:
        """Return what is to be written now: not what was a moment ago, unless it is gone since.

        Where much waits already, all of it is due.
        """
        now, saved_at = self.clock(), self._saved_at
        while saved_at and now - next(iter(saved_at.values())) >= _SAVE_AGAIN_SECONDS:
            saved_at.popitem(last=False)
        if self._unsaved_bytes > self._terms.max_unsaved_bytes / 2:
            return [*self._unsaved]
        return [
            name
            for name, entry in self._unsaved.items()
            if not entry.length or name not in saved_at
        ]

    async def _save(self, names: Sequence[_Name]) -> None:
        for start in range(0, len(names), _ANSWERS_AT_ONCE):
            some = names[start : start + _ANSWERS_AT_ONCE]
            entries = {name: self._unsaved[name] for name in some if name in self._unsaved}
            now = self.clock()
            answers = [
                KeptAnswer(
                    provider_id=name[0],
                    subject=name[1],
                    resource=name[2],
                    body=entry.encoded(),
                    generation=f"{entry.registration}/{entry.writes}",
                    age_seconds=max(0.0, now - entry.read_at),
                )
                for name, entry in entries.items()
            ]
            try:
                await self._store.write_many(answers)
                self._silent = False
                self._note_saved(entries)
            except StorageError as error:
                self._note_trouble(error)
            for name, entry in entries.items():
                if self._unsaved.get(name) is entry:  # else it was read anew in the meantime
                    self._unsaved_bytes -= self._unsaved.pop(name).length
        if not self._unsaved:
            self._to_save.clear()

    def _note_saved(self, names: Iterable[_Name]) -> None:
        now = self.clock()
        for name in names:
            self._saved_at[name] = now
            self._saved_at.move_to_end(name)

    async def aclose(self) -> None:
        """Give up every read under way, and save what is not saved."""
        for task in [*self._running]:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running)
        await self.save()

    def still_stands(self, basis: Basis) -> bool:
        """Whether everything an answer was made from is still held, the same and young enough.

        Then it counts as served again.
        """
        if not basis.is_whole or self.clock() > basis.good_until:
            return False
        if basis.seen_at != self._changes:
            if not all(map(_is_held, basis.entries)):
                return False
            if not all(series.stands(self._changes) for series in basis.series):
                return False
            basis.seen_at = self._changes
        for provider_id, count in basis.hits.items():
            self._note_hits(basis.places[provider_id], count)
        return True

    def _note_hits(self, place: Place, count: int) -> None:
        if count:
            self.counts.hits += count
            if (meter := current_meter()) is not None:
                meter.note_hit(place.provider_id, count)

    # What is held.

    def _sorted(
        self,
        place: Place,
        kind: Kind[V],
        names: dict[str, _Name],
        wish: Wish,
        basis: Basis | None = None,
    ) -> _Sorted[V]:
        found: _Sorted[V] = _Sorted()
        served: list[_Entry] = []
        oldest_at, oldest_while_read_anew = wish.oldest_at, wish.oldest_while_read_anew
        shelf = _shelf_name(place, kind)
        self._land_those_of(shelf, names)
        newest_at = self._newest_of(shelf)
        if newest_at < oldest_while_read_anew and oldest_while_read_anew >= wish.began_at:
            found.missing = names
            if basis is not None:
                basis.is_whole = False
            return found
        held, registration = self._entries, place.registration
        for key, name in names.items():
            entry = held.get(name)
            if entry is None or entry.registration != registration:
                found.unknown[key] = found.missing[key] = name
            elif entry.serves(place, oldest_while_read_anew):
                held.move_to_end(name)
                found.answers[key] = entry.kept or self._unpacked(entry, kind)
                if entry.read_at < oldest_at:
                    found.aging[key] = name
                served.append(entry)
            else:
                found.missing[key] = name
        if basis is not None:
            basis.add(place, served, age_seconds=wish.began_at - oldest_at)
            basis.is_whole = basis.is_whole and not (found.missing or found.aging)
        return found

    def _newest_of(self, shelf: _ShelfName) -> float:
        """Return when the newest may have been read of what there is of a kind.

        So what must be newer is known to be missing without a look for every key.
        """
        return self._newest.get(shelf, self._newest_of_others)

    def _note_newest(self, shelf: _ShelfName, read_at: float) -> None:
        if read_at > self._newest_of(shelf):
            if len(self._newest) >= _SHELVES:
                self._newest.clear()
                self._newest_of_others = self.clock()
            self._newest[shelf] = read_at

    def _held(self, place: Place, name: _Name) -> _Entry | None:
        entry = self._entries.get(name)
        if entry is None:
            return None
        if entry.registration != place.registration:
            return None
        self._entries.move_to_end(name)
        return entry

    def _hold(self, entries: Mapping[_Name, _Entry]) -> None:
        """Hold encoded answers in the places of earlier ones; those used least are let go."""
        held, counts = self._entries, self.counts
        more_bytes = 0
        for name, entry in entries.items():
            earlier = held.pop(name, None)
            if earlier is None:
                counts.held += 1
                more_bytes += _size(name, entry)
            else:
                earlier.is_held = False
                factor = 1 if earlier.kept is None else _RECORD_FACTOR
                more_bytes += entry.length - factor * earlier.length
            held[name] = entry
        self._changes += 1
        counts.held_bytes += more_bytes
        while counts.held_bytes > self._terms.max_bytes:
            self._forget(next(iter(held)))

    def _unpacked(self, entry: _Entry, kind: Kind[V]) -> Kept[V]:
        """Return a held answer's records, and hold them instead of it while there is room."""
        kept = _kept(entry, kind, DataSource.CACHE)
        more = (_RECORD_FACTOR - 1) * entry.length
        if self.counts.held_bytes + more <= self._terms.max_bytes:
            _lighten(kept.value)
            entry.kept, entry.body = kept, _NONE
            self.counts.held_bytes += more
        return kept

    def _forget(self, name: _Name) -> None:
        entry = self._entries.pop(name, None)
        if entry is not None:
            entry.is_held = False
            self._changes += 1
            self.counts.held -= 1
            self.counts.held_bytes -= _size(name, entry)

    async def _recall(self, place: Place, kind: Kind[Any], missing: Mapping[str, _Name]) -> None:
        """Bring into memory what the database has of these names."""
        names = {name[2]: name for name in missing.values()}
        try:
            kept = await self._store.read_many(place.provider_id, place.subject, names)
        except StorageError as error:
            self._note_trouble(error)
            return
        recalled: dict[_Name, _Entry] = {}
        for resource, answer in kept.items():
            registration, _, writes = answer.generation.rpartition("/")
            entry = _Entry(
                answer.body,
                len(answer.body),
                registration,
                int(writes) if writes.isdecimal() else -1,
                self.clock() - answer.age_seconds,
            )
            is_news = names[resource] not in self._entries  # a flight may have landed meanwhile
            if is_news and registration == place.registration and _is_readable(entry, kind):
                recalled[names[resource]] = entry
        if recalled:
            self._note_newest(_shelf_name(place, kind), max(map(_read_at, recalled.values())))
            self._hold(recalled)

    # Reading at the provider.

    async def _read_now(
        self,
        place: Place,
        kind: Kind[V],
        names: Mapping[str, _Name],
        *,
        wish: Wish,
        fetch: Fetch[V],
    ) -> Answers[V]:
        ends_at = asyncio.get_running_loop().time() + wish.patience_seconds
        joined, alone = self._under_way(place, names, oldest_at=wish.oldest_at)
        shared = len(names) - len(alone)
        if shared:
            self.counts.joined += shared
            if (meter := current_meter()) is not None:
                meter.note_shared(place.provider_id, shared)
            for flight in joined:
                link_to(flight.span)

        def begin(some: Mapping[str, _Name]) -> _Flight:
            seconds = ends_at - asyncio.get_running_loop().time()
            return self._start(place, kind, some, wish=wish, fetch=fetch, patience_seconds=seconds)

        waits: list[Awaitable[dict[str, Kept[V] | ProviderError]]] = [
            self._landed(flight, some, ends_at=ends_at, begin=begin)
            for flight, some in joined.items()
        ]
        if alone and wish.patience_seconds > 0:
            waits.append(self._landed(begin(alone), alone, ends_at=ends_at))
        elif alone:
            waits.append(_too_late(place, alone))
        answers: dict[str, Kept[V] | ProviderError] = {}
        for outcome in await _all(waits):
            answers.update(outcome)
        return await self._with_stale(place, kind, answers)

    def _under_way(
        self, place: Place, names: Mapping[str, _Name], *, oldest_at: float
    ) -> tuple[dict[_Flight, dict[str, _Name]], Mapping[str, _Name]]:
        """Return what is being read already, by flight, and what is not."""
        joined: dict[_Flight, dict[str, _Name]] = {}
        if self._flights.keys().isdisjoint(names.values()):
            return joined, names
        alone: dict[str, _Name] = {}
        for key, name in names.items():
            flight = self._flights.get(name)
            if flight in joined:
                joined[flight][key] = name
            elif flight is not None and flight.began_at >= oldest_at and flight.place == place:
                joined[flight] = {key: name}
            else:
                alone[key] = name
        return joined, alone

    def _start(
        self,
        place: Place,
        kind: Kind[V],
        names: Mapping[str, _Name],
        *,
        wish: Wish,
        fetch: Fetch[V],
        patience_seconds: float | None = None,
        context: Context | None = None,
    ) -> _Flight:
        self.counts.reads += len(names)
        began_at = self.clock()
        since = asyncio.get_running_loop().time() - (began_at - wish.oldest_at)
        task: asyncio.Task[Mapping[str, V]] = asyncio.create_task(
            self._fly(fetch, [*names], since=since, patience_seconds=patience_seconds),
            context=context,
        )
        span = None if context else current_span()
        flight = _Flight(place, _shelf_name(place, kind), began_at, task, span)
        self._flights.update(dict.fromkeys(names.values(), flight))
        self._running.add(task)
        task.add_done_callback(lambda done: self._end(flight, done, names))
        return flight

    async def _fly(
        self, fetch: Fetch[V], keys: Sequence[str], *, since: float, patience_seconds: float | None
    ) -> Mapping[str, V]:
        # Not under its starter's deadline: it reads for all who join, and for those who come later.
        # But a provider that puts off for longer than the starter waits is told of in time.
        with (
            deadline(self._terms.flight_seconds, nested=False),
            patience(patience_seconds),
            read_since(since),
        ):
            return await fetch(keys)

    def _end(
        self, flight: _Flight, task: asyncio.Task[Mapping[str, Any]], names: Mapping[str, _Name]
    ) -> None:
        """Have what a flight brought held a moment later: whoever waits for it goes on first."""
        self._running.discard(task)
        if task.cancelled() or task.exception() is not None:
            for name in names.values():
                if self._flights.get(name) is flight:
                    del self._flights[name]
            return
        self._note_newest(flight.shelf, flight.began_at)
        flight.aboard = [*names.items()]
        self._landing[flight] = None
        asyncio.get_running_loop().call_later(_LAND_SECONDS, self._land_in_turns, flight)

    def _land_in_turns(self, flight: _Flight) -> None:
        self._land(flight, at_most=_LANDED_AT_ONCE)
        if flight.aboard:
            asyncio.get_running_loop().call_soon(self._land_in_turns, flight)

    def _land_all(self) -> None:
        for flight in [*self._landing]:
            self._land(flight)

    def _land_those_of(self, shelf: _ShelfName, names: Mapping[str, _Name]) -> None:
        """Hold at once what flights brought that somebody asks for."""
        if any(flight.shelf == shelf for flight in self._landing):
            for flight in self._landing.keys() & set(map(self._flights.get, names.values())):
                self._land(flight)

    def _land(self, flight: _Flight, *, at_most: int | None = None) -> None:
        """Keep what was read, unless it was dropped or read anew in the meantime."""
        flights, held = self._flights, self._entries
        some = flight.aboard[:at_most]
        del flight.aboard[: len(some)]
        if not flight.aboard:
            self._landing.pop(flight, None)
        found, began_at = flight.task.result(), flight.began_at
        registration, writes = flight.place.registration, flight.place.writes
        landed: dict[_Name, _Entry] = {}
        for key, name in some:
            if flights.get(name) is not flight:
                continue
            del flights[name]
            if key in found:
                try:
                    body = _encoded(found[key])
                except OverflowError:  # a number larger than any can mean: nothing to keep
                    continue
            elif name in held:
                body = _NONE
            else:
                continue
            landed[name] = _Entry(body, len(body), registration, writes, began_at)
        if landed:
            self._hold(landed)
            self._save_later(landed)

    async def _landed(
        self,
        flight: _Flight,
        names: Mapping[str, _Name],
        *,
        ends_at: float,
        begin: Callable[[Mapping[str, _Name]], _Flight] | None = None,
    ) -> dict[str, Kept[V] | ProviderError]:
        """Wait for a flight; ``begin`` is given by those who joined it, for one of their own.

        Such a flight may have failed for a reason that was its starter's only.
        """
        seconds = ends_at - asyncio.get_running_loop().time()
        flight.waiting += 1
        left = True
        try:
            if seconds > 0:
                with suppress(TimeoutError), self._timeouts.within(seconds):
                    await until_done(flight.task)
            left = False
        finally:
            flight.waiting -= 1
            if left and not flight.waiting and not flight.outlives:
                flight.task.cancel()
        place = flight.place
        if not flight.task.done():
            flight.outlives = True
            return dict.fromkeys(names, _late(place, "in time"))
        if flight.task.cancelled():
            error: BaseException | None = ProviderUnavailable(
                "The gateway is shutting down", provider_id=place.provider_id
            )
        else:
            error = flight.task.exception()
        if error is None:
            read_at = datetime.fromtimestamp(flight.began_at, UTC)
            found = flight.task.result()
            return {
                key: Kept(value=found[key], via=DataSource.LIVE, read_at=read_at)
                for key in names
                if key in found
            }
        is_anothers = not isinstance(error, ProviderError) or isinstance(error, UpstreamCallsSpent)
        if begin is not None and is_anothers:
            return await self._landed(begin(names), names, ends_at=ends_at)
        if not isinstance(error, ProviderError):
            raise error
        return dict.fromkeys(names, error)

    async def _with_stale(
        self,
        place: Place,
        kind: Kind[V],
        answers: dict[str, Kept[V] | ProviderError],
    ) -> Answers[V]:
        """Put old answers in the places of errors that allow it."""
        failed = {
            key: error
            for key, error in answers.items()
            if type(error) is not Kept and isinstance(error, _SERVED_STALE)
        }
        if not failed:
            return answers
        names = _names(place, kind, failed)
        unknown = {key: name for key, name in names.items() if self._held(place, name) is None}
        if unknown:
            await self._recall(place, kind, unknown)
        for key, error in failed.items():
            entry = self._held(place, names[key])
            if entry is None or not entry.length:
                continue
            if entry.read_at < self.clock() - self._terms.stale_seconds:
                continue
            answers[key] = _kept(entry, kind, DataSource.STALE, error)
            self.counts.stale += 1
            if (meter := current_meter()) is not None:
                meter.note_stale(place.provider_id)
        return answers

    def _refresh(
        self,
        place: Place,
        kind: Kind[V],
        names: Mapping[str, _Name],
        *,
        wish: Wish,
        fetch: Fetch[V],
    ) -> None:
        """Read in the background what is not being read already."""
        due = {key: name for key, name in names.items() if name not in self._flights}
        if due:
            self.counts.revalidations += len(due)
            # A context of its own: it is no part of the request that happened to come by.
            flight = self._start(place, kind, due, wish=wish, fetch=fetch, context=Context())
            flight.outlives = True

    # Saving.

    def _save_later(self, entries: Mapping[_Name, _Entry]) -> None:
        unsaved, most = self._unsaved, self._terms.max_unsaved_bytes
        for name, entry in entries.items():
            if self._unsaved_bytes + entry.length > most:
                continue
            earlier = unsaved.pop(name, None)
            self._unsaved_bytes += entry.length - (0 if earlier is None else earlier.length)
            unsaved[name] = entry
        self._to_save.set()

    async def _sweep(self) -> None:
        try:
            await self._store.sweep(older_than_seconds=self._terms.stale_seconds)
        except StorageError as error:
            self._note_trouble(error)

    def _note_trouble(self, error: StorageError) -> None:
        """Log once that the database is no help; answers come from memory and providers."""
        if not self._silent:
            self._silent = True
            _log.warning("cache_unavailable", problem=str(error))


@asynccontextmanager
async def open_cache(
    store: CacheStore, *, terms: CacheTerms | None = None
) -> AsyncIterator[RecordCache]:
    """Lend a cache that saves what it holds while it is lent."""
    cache = RecordCache(store, terms=terms)
    saving = asyncio.create_task(cache.run())
    try:
        yield cache
    finally:
        saving.cancel()
        await asyncio.wait({saving})
        await cache.aclose()


def _names(place: Place, kind: Kind[Any], keys: Iterable[str]) -> dict[str, _Name]:
    """Return what answers are held under, by key."""
    provider_id, subject, kind_name = place.provider_id, place.subject, kind.name
    return {key: (provider_id, subject, f"{kind_name}:{key}") for key in keys}


def _shelf_name(place: Place, kind: Kind[Any]) -> _ShelfName:
    return place.provider_id, place.subject, kind.name


def _series_name(place: Place, kind: Kind[Any], keys: tuple[str, ...]) -> _SeriesName:
    return place, kind.name, len(keys), keys[0], keys[-1]


def _size(name: _Name, entry: _Entry) -> int:
    factor = 1 if entry.kept is None else _RECORD_FACTOR
    return factor * entry.length + len(name[2]) + _ENTRY_BYTES


def _is_readable(entry: _Entry, kind: Kind[Any]) -> bool:
    """Whether this version of the gateway can read what an earlier one may have kept."""
    try:
        return not entry.body or kind.decoder.decode(entry.body) is not None
    except msgspec.MsgspecError:
        return False


def _kept(
    entry: _Entry, kind: Kind[V], via: DataSource, error: ProviderError | None = None
) -> Kept[V]:
    value = kind.decoder.decode(entry.encoded())
    _mark(value, via)
    return Kept(value=value, via=via, read_at=_instant(entry.read_at), error=error)


@lru_cache(maxsize=1024)  # what was read together was read at one time
def _instant(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _mark(value: object, via: DataSource) -> None:
    """Say in each record's provenance where it came from; nobody else has seen these records."""
    for record in _records_in(value):
        provenance = getattr(record, "provenance", None)
        if isinstance(provenance, Provenance):
            msgspec.structs.force_setattr(provenance, "via", via)


def _records_in(value: object) -> Sequence[object]:
    if isinstance(value, Page):
        value = value.items
    return value if isinstance(value, (tuple, list)) else (value,)


def _lighten(value: object) -> None:
    """Have records hold one object where they hold equal ones; nobody else has seen them.

    Ids, words and instants come again and again: with every record they are most of its size.
    """
    record: Any
    for record in _records_in(value):
        _share(record)
        provenance = getattr(record, "provenance", None)
        if not isinstance(provenance, Provenance):
            continue
        _share(provenance)
        own_id = provenance.external_id
        names = [name for name in ("id", "external_id") if getattr(record, name, None) == own_id]
        for name in names:
            same = getattr(record, names[0])
            msgspec.structs.force_setattr(record, name, same)
            msgspec.structs.force_setattr(provenance, "external_id", same)


def _share(record: Any) -> None:
    for name in _shared_names(type(record)):
        found = getattr(record, name)
        if type(found) is str:
            same: object = intern(found)
        elif not found:
            continue
        else:
            same = _common.setdefault(found, found)
            if len(_common) > _MAX_COMMON:
                _common.clear()
        if same is not found:
            msgspec.structs.force_setattr(record, name, same)


def _shared_names(kind: type[Any]) -> Sequence[str]:
    names = _names_by_kind.get(kind)
    if names is None:
        shared = _SHARED | {"external_id"} if kind in {User, Course} else _SHARED
        fields: Sequence[str] = getattr(kind, "__struct_fields__", ())
        names = _names_by_kind[kind] = [name for name in fields if name in shared]
    return names


_names_by_kind: dict[type[Any], Sequence[str]] = {}
_common: dict[object, object] = {}
"""Roles and instants that records have in common; forgotten when they are many."""


def _late(place: Place, how: str) -> ProviderTimeout:
    return ProviderTimeout(
        f"Provider {place.provider_id} did not answer {how}", provider_id=place.provider_id
    )


async def _too_late(place: Place, keys: Iterable[str]) -> dict[str, Kept[Any] | ProviderError]:
    return dict.fromkeys(keys, _late(place, "earlier, and no time is left to ask again"))


async def _all(waits: Sequence[Awaitable[V]]) -> list[V]:
    """Wait for one without a task of its own, for several side by side."""
    if len(waits) == 1:
        return [await waits[0]]
    return await asyncio.gather(*waits)
