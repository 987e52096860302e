"""Pages of lists that several providers make up, so that no row is lost or given twice.

Three kinds of walk, each with a position of its own for every provider:

``walk_providers``  the list as the providers have it: provider by provider in order of
                    registration, their own pages passed through. A provider that fails keeps its
                    place; every later page asks it again first, so its rows come, once, when it
                    is back.
``merge_providers`` a filtered or sorted list. Providers that can sort are read page by page and
                    merged; the lists of all others are collected and sorted here. A provider that
                    fails keeps its place here too: its rows come when it is back, before all
                    others if their turn has passed.
``page_of_rows``    a filtered or sorted list whose rows are all at hand.

What holds while rows come, go and change between two pages: a row that is there during the whole
walk, and whose place in the order does not change, comes exactly once.

- Rows that are collected are told apart from those given by their sort keys, so it holds always.
- Where a provider's pages say what to go on with behind each row (``Page.positions``), it holds as
  far as the platform promises that; see ``sessions.anchors``.
- Where they do not, a cursor in the middle of a page notes which of its rows were given, and it
  holds if positions are places in the list. If they count rows, then a row deleted or inserted
  before the position, between two pages, hides or repeats one: nothing the page holds tells so.

A provider that was registered during a walk comes last, whole, in the order of providers; in any
other order those of its rows come that lie behind the place reached. One that was removed is gone
on without. ``has_next_page`` speaks for the providers that answered: while one is down, asking
again with the same end cursor is how its rows are had.
"""

from __future__ import annotations

import asyncio
import time
from base64 import urlsafe_b64encode
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import (
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from hashlib import blake2b
from operator import attrgetter
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import msgspec

from resolvers.cursors import CursorSealer
from resolvers.errors import BadInput
from sessions.base import Page
from sessions.errors import ProviderBadResponse, ProviderError
from sessions.sharing import together
from storage.records import Provider

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

SortKey: TypeAlias = tuple[str | int | float, ...]
"""Orders the rows of one list; no two rows have the same."""

_SHORT_ID = 12
_MARK_BYTES = 6
_UNITS = ((86_400.0, "days"), (3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))

FetchPage: TypeAlias = Callable[[str, str | None, int], Awaitable[Page[T]]]
"""Fetches a page, given provider id, position and limit."""


class SourceState(StrEnum):
    """OK: answered, now or a while ago; FAILED: did not; NOT_ASKED: its turn comes later.

    STALE: did not, and an earlier answer of it stands in.
    """

    OK = "OK"
    STALE = "STALE"
    FAILED = "FAILED"
    NOT_ASKED = "NOT_ASKED"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceStatus:
    """How one provider took part in a list.

    Attributes:
        provider_id: The product's own id of it, as it was asked for.
        provider: ``None`` when there is no such provider.
        error: Why it failed; of a STALE one, why nothing newer could be had.
        as_of: When the oldest of its rows was read; ``None`` when none was.
    """

    provider_id: str
    provider: Provider | None
    state: SourceState
    error: ProviderError | None = None
    as_of: datetime | None = None


class Connection(Protocol[T_co]):
    """One page of a list."""

    @property
    def nodes(self) -> Sequence[T_co]:
        """In the order asked for."""

    @property
    def has_previous_page(self) -> bool:
        """Whether this is not the first page."""

    @property
    def has_next_page(self) -> bool:
        """Whether the providers that answered have more."""

    @property
    def total_count(self) -> int | None:
        """Length of the whole list; ``None`` when a provider cannot say."""

    @property
    def sources(self) -> Sequence[SourceStatus]:
        """Every provider the list is made of, in order of registration."""

    @property
    def start_cursor(self) -> str | None:
        """Cursor of the first node."""

    @property
    def end_cursor(self) -> str | None:
        """Cursor of the last node; where there is none, the cursor this page was asked with."""

    @property
    def cursor_of(self) -> Callable[[int], str]:
        """Makes the cursor of the node at an index."""


class GivenPage(msgspec.Struct, Generic[T], frozen=True, kw_only=True, eq=False):
    """A ``Connection`` whose cursors say how far each provider's list has been given.

    Attributes:
        empty_cursor: The cursor to go on from when there is no node.
    """

    nodes: Sequence[T]
    cursor_of: Callable[[int], str]
    empty_cursor: str | None
    has_previous_page: bool
    has_next_page: bool
    total_count: int | None
    sources: Sequence[SourceStatus] = ()

    @property
    def start_cursor(self) -> str | None:
        """Cursor of the first node."""
        return self.cursor_of(0) if self.nodes else None

    @property
    def end_cursor(self) -> str | None:
        """Cursor of the last node; where there is none, the cursor this page was asked with."""
        return self.cursor_of(len(self.nodes) - 1) if self.nodes else self.empty_cursor


@dataclass(frozen=True, slots=True, kw_only=True)
class PageRequest:
    """What is asked of a list, checked.

    Attributes:
        first: How many rows at most.
        after: Cursor of the row before.
        sealer: Makes the cursors of this query.
        begun: When the walk began, in seconds since 1970; carried along from page to page.
        state: What ``after`` holds; ``None`` for the first page.
    """

    first: int
    after: str | None
    sealer: CursorSealer
    begun: int
    state: Any

    @classmethod
    def checked(
        cls,
        *,
        first: int,
        after: str | None,
        sealer: CursorSealer,
        max_page_size: int,
        cursor_seconds: float = 7 * 86_400.0,
        now: Callable[[], float] = time.time,
    ) -> PageRequest:
        """Return the request if it can be answered.

        Raises:
            BadInput: The page may not be that long, or the cursor is not one of this query or of a
                walk that began longer ago than ``cursor_seconds``.
        """
        first = checked_first(first, max_page_size)
        instant = now()
        if after is None:
            return cls(first=first, after=None, sealer=sealer, begun=int(instant), state=None)
        opened: Any = sealer.open(after)
        begun, state = opened
        if instant - begun > cursor_seconds:
            raise BadInput(
                "after",
                f"This walk began {_in_words(instant - begun)} ago, and cursors are good for"
                f" {_in_words(cursor_seconds)}; begin anew, without after",
            )
        return cls(first=first, after=after, sealer=sealer, begun=begun, state=state)

    def seal(self, state: object) -> str:
        """Return the cursor of a state of this walk."""
        return self.sealer.seal([self.begun, state])


def checked_first(first: int, max_page_size: int) -> int:
    """Return ``first`` if a page may be that long.

    Raises:
        BadInput: It may not.
    """
    if 1 <= first <= max_page_size:
        return first
    raise BadInput("first", f"{first} is not between 1 and {max_page_size}")


def _in_words(seconds: float) -> str:
    """Write a length of time for a person, in the largest unit of which it is more than one."""
    size, unit = next((each for each in _UNITS if seconds > each[0]), _UNITS[-1])
    return f"{seconds / size:.3g} {unit}"


# Places in providers' own lists.


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """How far one provider's list has been given.

    From any place, a page of any length can be asked for.

    Attributes:
        position: What to ask the provider for.
        given: Marks of the rows that were given already of the page at this position, which are
            on it still or were pushed on to the pages after it.
    """

    position: str | None
    given: tuple[str, ...] = ()

    def rest(self, ids: Sequence[str]) -> Sequence[int]:
        """Return the indices of the rows not yet given on the page at this position."""
        if not self.given:
            return range(len(ids))
        given = set(self.given)
        return [index for index, row_id in enumerate(ids) if _mark(row_id) not in given]

    def behind(self, page: Page[Any], ids: Sequence[str], index: int) -> _Place | None:
        """Return the place behind a row of the page at this one; ``None`` for the list's end."""
        is_last = index + 1 == len(ids)
        if is_last and page.next_position is None:
            return None
        if page.positions:
            return _Place(position=page.positions[index])
        if is_last:
            return self.following(page, ids)
        marks = dict.fromkeys((*self.given, *map(_mark, ids[: index + 1])))
        return replace(self, given=tuple(marks))

    def following(self, page: Page[Any], ids: Sequence[str]) -> _Place:
        """Return the place of the page after this; given rows may have been pushed on to it."""
        on_page = set(map(_mark, ids)) if self.given else ()
        given = tuple(mark for mark in self.given if mark not in on_page)
        return _Place(position=page.next_position, given=given)

    def as_json(self) -> list[object]:
        return [self.position, *self.given]

    @classmethod
    def from_json(cls, place: Sequence[Any]) -> _Place:
        position, *given = place
        return cls(position=position, given=tuple(given))


@lru_cache(maxsize=4096)  # of one page, every row's cursor asks for those before it
def _mark(row_id: str) -> str:
    """Return what a cursor remembers a row by: its id, or a hash where that is long."""
    if len(row_id) <= _SHORT_ID:
        return row_id
    encoded = row_id.encode(errors="surrogatepass")
    return "~" + urlsafe_b64encode(blake2b(encoded, digest_size=_MARK_BYTES).digest()).decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class _ReadPage(Generic[T]):
    """A provider's page, and where it was read.

    Attributes:
        at: The place it was asked for with.
        ids: Of all its rows.
        following: Where the page after it begins; ``None`` when this is the last.
    """

    page: Page[T]
    at: _Place
    ids: Sequence[str]
    following: _Place | None

    def behind(self, index: int) -> _Place | None:
        """Return the place behind a row; ``None`` for the list's end."""
        return self.at.behind(self.page, self.ids, index)


class _Sources(Generic[T]):
    """The providers of one answer: asks them, and keeps how they took part."""

    def __init__(
        self,
        providers: Sequence[Provider],
        *,
        fetch_page: FetchPage[T],
        id_of: Callable[[T], str],
        limit_of: Callable[[Provider], int],
        first: int | None,
    ) -> None:
        self.providers = providers
        self.errors: dict[str, ProviderError] = {}
        self.totals: dict[str, int | None] = {}
        self._fetch_page = fetch_page
        self._id_of = id_of
        self._limit_of = limit_of
        self._first = first

    def limit_at(self, provider: Provider, place: _Place) -> int:
        """Return how many rows to ask a provider for at a place.

        No more than fit on our page, beside those given already. How many it takes to find some
        that are meant nobody knows; then the provider's own page size is best.
        """
        limit = self._limit_of(provider)
        return limit if self._first is None else min(limit, self._first + len(place.given))

    async def fetch(self, provider: Provider, place: _Place) -> Page[T]:
        limit = self.limit_at(provider, place)
        return await self._fetch_page(provider.id, place.position, limit)

    async def take(
        self, provider: Provider, place: _Place, fetching: Awaitable[Page[T]]
    ) -> _ReadPage[T] | None:
        """Return the page at a place; ``None`` when the provider failed, which is noted."""
        try:
            page = await fetching
            if page.next_position is not None and page.next_position == place.position:
                raise ProviderBadResponse(
                    "The provider's list does not advance from page to page",
                    provider_id=provider.id,
                )
        except ProviderError as error:
            self.errors[provider.id] = error
            return None
        self.totals[provider.id] = page.total
        ids = list(map(self._id_of, page.items))
        following = None
        if ids:
            following = place.behind(page, ids, len(ids) - 1)
        elif page.next_position is not None:
            following = place.following(page, ids)
        return _ReadPage(page=page, at=place, ids=ids, following=following)

    def is_unasked(self, provider: Provider) -> bool:
        return provider.id not in self.totals and provider.id not in self.errors

    def total(self) -> int | None:
        """Return the length of the whole list; ``None`` if unknown."""
        totals = [self.totals.get(provider.id) for provider in self.providers]
        known = [total for total in totals if total is not None]
        return sum(known) if len(known) == len(totals) and not self.errors else None

    async def count(self) -> int | None:
        """Return the length of the whole list, asking those not asked yet; ``None`` if unknown."""
        await asyncio.gather(*map(self._count, filter(self.is_unasked, self.providers)))
        return self.total()

    async def _count(self, provider: Provider) -> None:
        try:
            page = await self._fetch_page(provider.id, None, 1)
        except ProviderError as error:
            self.errors[provider.id] = error
        else:
            self.totals[provider.id] = page.total

    def statuses(self) -> list[SourceStatus]:
        """Return how each provider took part."""
        return [self._status(provider) for provider in self.providers]

    def _status(self, provider: Provider) -> SourceStatus:
        error = self.errors.get(provider.id)
        state = SourceState.NOT_ASKED if self.is_unasked(provider) else SourceState.OK
        return SourceStatus(
            provider_id=provider.id,
            provider=provider,
            state=state if error is None else SourceState.FAILED,
            error=error,
        )


# The list as the providers have it.


@dataclass(frozen=True, slots=True, kw_only=True)
class _WalkState:
    """Which providers are through, which are not begun, and where the others stand.

    Providers up to ``frontier`` (registration instant and id) have been begun; those of them
    that are not in ``open`` are through.
    """

    frontier: tuple[float, str] | None = None
    open: Mapping[str, _Place] = field(default_factory=dict)

    def place_of(self, provider: Provider) -> _Place | None:
        """Return where to go on reading the provider; ``None`` when it is through."""
        if provider.id in self.open:
            return self.open[provider.id]
        begun = self.frontier is not None and registration_key(provider) <= self.frontier
        return None if begun else _Place(position=None)

    def moved(self, provider: Provider, place: _Place | None) -> _WalkState:
        """Return the state in which the provider stands at the place."""
        still_open = {key: value for key, value in self.open.items() if key != provider.id}
        if place is not None:
            still_open[provider.id] = place
        key = registration_key(provider)
        frontier = key if self.frontier is None else max(self.frontier, key)
        return _WalkState(frontier=frontier, open=still_open)

    def as_json(self) -> object:
        return [self.frontier, [[key, *place.as_json()] for key, place in self.open.items()]]

    @classmethod
    def from_json(cls, state: Any) -> _WalkState:
        frontier, still_open = state
        return cls(
            frontier=None if frontier is None else (frontier[0], frontier[1]),
            open={key: _Place.from_json(place) for key, *place in still_open},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _RowsOfPage(Generic[T]):
    """Rows of one page of a provider's, and what makes their cursors.

    Attributes:
        start: Place of the first among all rows given.
        state: Before the provider.
        indices: Of the rows on the page.
    """

    start: int
    provider: Provider
    state: _WalkState
    page: _ReadPage[T]
    indices: Sequence[int]

    def state_behind(self, place: int) -> _WalkState:
        """Return the state behind the row at a place among all rows given."""
        behind = self.page.behind(self.indices[place - self.start])
        return self.state.moved(self.provider, behind)


async def walk_providers(
    providers: Sequence[Provider],
    *,
    fetch_page: FetchPage[T],
    id_of: Callable[[T], str],
    limit_of: Callable[[Provider], int],
    request: PageRequest,
    patience_seconds: float,
    wants_total: bool,
    length_of: Callable[[Provider], int | None] | None = None,
    prefetch: Callable[[str, str, int], None] | None = None,
) -> GivenPage[T]:
    """Return a page of the list as the providers have it.

    Pages asked for: those that hold the rows given, those of providers that turn out to be at
    their end, and one more of the provider next in line if only that tells whether there is more.
    They are asked for side by side as far as lengths tell that they will be needed. While a
    provider takes longer than ``patience_seconds``, also the first page of those in line.

    Args:
        providers: In order of registration.
        fetch_page: Asks one provider.
        id_of: A row's id within its provider.
        limit_of: The provider's largest page that costs it little.
        request: Which page.
        patience_seconds: How long to wait for a provider before asking the next in line too.
        wants_total: Whether to ask every provider for the length of its list.
        length_of: How long a provider's list is, or was; ``None``, where nothing remembers or
            there is no telling, to wait and see.
        prefetch: Called with the provider id, position and limit of the page that whoever walks
            the list will want next.
    """
    sources = _Sources(
        providers, fetch_page=fetch_page, id_of=id_of, limit_of=limit_of, first=request.first
    )
    walk = _Walk(sources, length_of=length_of, patience_seconds=patience_seconds)
    state = _WalkState() if request.state is None else _WalkState.from_json(request.state)
    try:
        has_more = await walk.read(state, request.first)
        total_count = await sources.count() if wants_total else None
    finally:
        await walk.close()
    if prefetch is not None and request.after is not None and walk.following is not None:
        provider, place = walk.following
        if place.position is not None:
            prefetch(provider.id, place.position, sources.limit_at(provider, place))

    def cursor_of(index: int) -> str:
        return request.seal(walk.state_behind(index).as_json())

    return GivenPage(
        nodes=walk.rows[: request.first],
        cursor_of=cursor_of,
        empty_cursor=request.after,
        has_previous_page=request.after is not None,
        has_next_page=has_more,
        total_count=total_count,
        sources=sources.statuses(),
    )


class _Walk(Generic[T]):
    """One page's walk along the providers; reads one row more than wanted to see if there is."""

    def __init__(
        self,
        sources: _Sources[T],
        *,
        length_of: Callable[[Provider], int | None] | None,
        patience_seconds: float,
    ) -> None:
        self.rows: list[T] = []
        self.following: tuple[Provider, _Place] | None = None
        self._parts: list[_RowsOfPage[T]] = []
        self._sources = sources
        self._length_of = length_of
        self._patience_seconds = patience_seconds
        self._queue: list[tuple[Provider, _Place]] = []
        self._tasks: dict[str, asyncio.Task[Page[T]]] = {}

    async def read(self, state: _WalkState, first: int) -> bool:
        """Read until there are ``first`` rows; return whether the providers have more."""
        self._queue = [
            (provider, place)
            for provider in self._sources.providers
            if (place := state.place_of(provider)) is not None
        ]
        self._ask_ahead(first)
        for provider, place in self._queue:
            reached = await self._read_provider(provider, place, state=state, first=first)
            failed = provider.id in self._sources.errors
            self.following = None if reached is None or failed else (provider, reached)
            if len(self.rows) > first:
                return True
            if len(self.rows) == first and reached is not None and not failed:
                return True
            state = state.moved(provider, reached)
        return False

    async def _read_provider(
        self, provider: Provider, place: _Place, *, state: _WalkState, first: int
    ) -> _Place | None:
        """Read one provider from a place on; return the place reached, ``None`` for its end."""
        reached: _Place | None = place
        while reached is not None:
            ask = self._first_page_of if reached is place else self._sources.fetch
            page = await self._sources.take(provider, reached, ask(provider, reached))
            if page is None:
                return reached
            indices = page.at.rest(page.ids)
            self._parts.append(
                _RowsOfPage(
                    start=len(self.rows),
                    provider=provider,
                    state=state,
                    page=page,
                    indices=indices,
                )
            )
            self.rows.extend(map(page.page.items.__getitem__, indices))
            reached = page.following
            if len(self.rows) >= first:
                break
        return reached

    def state_behind(self, place: int) -> _WalkState:
        """Return the state behind the row at a place."""
        part = bisect_right(self._parts, place, key=attrgetter("start")) - 1
        return self._parts[part].state_behind(place)

    def _ask_ahead(self, first: int) -> None:
        """Ask all who are known to be needed, and those of whom nothing is known yet."""
        expected = 0
        for provider, place in self._queue:
            length = None if self._length_of is None else self._length_of(provider)
            if expected > first or length is None:
                return
            self._start(provider, place)
            if place.position is not None:
                return
            expected += length

    async def _first_page_of(self, provider: Provider, place: _Place) -> Page[T]:
        """Wait for the provider's page, asking those next in line while it takes its time."""
        task = self._start(provider, place)
        waiting = iter(self._queue)
        while not task.done():
            await asyncio.wait({task}, timeout=self._patience_seconds)
            ahead = next((turn for turn in waiting if turn[0].id not in self._tasks), None)
            if not task.done() and ahead is not None:
                self._start(*ahead)
        return task.result()

    def _start(self, provider: Provider, place: _Place) -> asyncio.Task[Page[T]]:
        if provider.id not in self._tasks:
            task = asyncio.create_task(self._sources.fetch(provider, place))
            self._tasks[provider.id] = task
        return self._tasks[provider.id]

    async def close(self) -> None:
        """Give up the pages that were asked for ahead and not needed."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)


def registration_key(provider: Provider) -> tuple[float, str]:
    """Return what providers are ordered by."""
    return provider.created_at.timestamp(), provider.id


# A list in an order of ours.


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectedRow(Generic[T]):
    """A row with its place in the order."""

    row: T
    key: SortKey
    provider_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Marks:
    """How far a list in an order of ours has been given.

    Attributes:
        given: Key up to which all rows were given of every provider without an entry below;
            ``None`` before the first row.
        owing: Providers that failed, with the earlier key at which each stood then.
        streams: Providers that sort for themselves, with the place reached in each one's list;
            ``None`` for its end. No provider joins or leaves them on the way.
    """

    given: SortKey | None = None
    owing: Mapping[str, SortKey | None] = field(default_factory=dict)
    streams: Mapping[str, _Place | None] = field(default_factory=dict)

    def of(self, provider_id: str) -> SortKey | None:
        return self.owing.get(provider_id, self.given)

    def as_json(self) -> object:
        streams = [
            [name] if place is None else [name, *place.as_json()]
            for name, place in self.streams.items()
        ]
        return [self.given, list(self.owing.items()), streams]

    @classmethod
    def from_json(cls, state: Any) -> _Marks:
        given, owing, streams = state
        return cls(
            given=_as_key(given),
            owing={name: _as_key(key) for name, key in owing},
            streams={name: _Place.from_json(place) if place else None for name, *place in streams},
        )


def _as_key(key: Sequence[str | float] | None) -> SortKey | None:
    return None if key is None else tuple(key)


def page_of_rows(
    rows: Iterable[CollectedRow[T]],
    *,
    sources: Sequence[SourceStatus],
    request: PageRequest,
    descending: bool = False,
) -> GivenPage[T]:
    """Return a page of a list whose rows are all at hand.

    Args:
        rows: Rows of the providers that answered, in any order; of those with the same key only
            the last counts.
        sources: Every provider of the list, answered or failed.
        request: Which page.
        descending: Whether large keys come first.
    """
    marks = _Marks() if request.state is None else _Marks.from_json(request.state)
    failed = [source.provider_id for source in sources if source.state is SourceState.FAILED]
    rows_by_key = {row.key: row for row in rows}
    ahead = _rows_ahead(rows_by_key.values(), marks, descending=descending)
    given = ahead[: request.first]

    def cursor_of(index: int) -> str:
        moved = _moved(marks, given[index].key, failed=failed, descending=descending)
        return request.seal(moved.as_json())

    return GivenPage(
        nodes=[row.row for row in given],
        cursor_of=cursor_of,
        empty_cursor=request.after,
        has_previous_page=request.after is not None,
        has_next_page=len(ahead) > len(given),
        total_count=None if failed else len(rows_by_key),
        sources=sources,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SortedStreams(Generic[T]):
    """How the lists of providers that sort for themselves are read.

    Attributes:
        provider_ids: Which those are, for a walk that begins now.
        fetch_page: Asks one of them, in the order wanted.
        id_of: A row's id within its provider.
        limit_of: The provider's largest page that costs it little.
        key_of: A row's place in our order.
        matches: Whether a row is meant; ``None`` when all are.
    """

    provider_ids: Collection[str]
    fetch_page: FetchPage[T]
    id_of: Callable[[T], str]
    limit_of: Callable[[Provider], int]
    key_of: Callable[[Provider, T], SortKey]
    matches: Callable[[T], bool] | None = None


async def merge_providers(
    providers: Sequence[Provider],
    *,
    streams: SortedStreams[T],
    collect: Callable[[Provider], Awaitable[Iterable[CollectedRow[T]]]],
    request: PageRequest,
    descending: bool = False,
) -> GivenPage[T]:
    """Return a page of a list in an order of ours.

    The rows of a provider that sorts come in its own order, whose idea of an alphabet may differ
    from ours: between providers a row counts as what is largest, by our order, of it and those
    before it on its provider's list. So nothing is lost or doubled by the difference.

    Pages asked for, besides the lists that are collected: one of each provider that sorts, all at
    once, and after that one more of a provider each time all rows at hand of it are given and the
    page is not full. None is asked for ahead: which provider's rows run out next depends on rows
    not read yet, so no other would be certain to be needed. With ``matches``, providers are read
    on until each has a row that is meant.

    Args:
        providers: In order of registration.
        streams: How to read those that sort.
        collect: Reads everything of one that does not.
        request: Which page.
        descending: Whether large keys come first.

    Raises:
        RequestLimitExceeded: Too many rows would be read.
    """
    if request.state is None:
        beginning = _Place(position=None)
        sorting = (row.id for row in providers if row.id in streams.provider_ids)
        marks = _Marks(streams=dict.fromkeys(sorting, beginning))
    else:
        marks = _Marks.from_json(request.state)
    merge = _Merge(
        providers,
        marks,
        first=request.first,
        streams=streams,
        collect=collect,
        descending=descending,
    )
    await merge.read()

    def cursor_of(index: int) -> str:
        return request.seal(merge.marks_behind(index).as_json())

    return GivenPage(
        nodes=[head.row for head in merge.given],
        cursor_of=cursor_of,
        empty_cursor=request.after,
        has_previous_page=request.after is not None,
        has_next_page=merge.has_more,
        total_count=merge.total(),
        sources=merge.statuses(),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head(Generic[T]):
    """A row in the merge; one from a stream knows its page and index there."""

    row: T
    key: SortKey
    stream: _Stream[T] | None = None
    page: _ReadPage[T] | None = None
    index: int = 0


@dataclass(slots=True, kw_only=True)
class _Stream(Generic[T]):
    """One provider's sorted list as far as it has been read.

    Attributes:
        reached: Where its next page begins; ``None`` at its end.
        rows: Those read that are meant.
        taken: How many of them the merge has taken.
        failed: Whether its next page could not be had.
    """

    provider: Provider
    reached: _Place | None
    rows: list[_Head[T]] = field(default_factory=list)
    taken: int = 0
    failed: bool = False

    @property
    def head(self) -> _Head[T] | None:
        """The row next in line."""
        return self.rows[self.taken] if self.taken < len(self.rows) else None

    @property
    def is_dry(self) -> bool:
        """Whether another page is needed to know the row next in line."""
        return self.head is None and self.reached is not None and not self.failed

    def place_behind(self, taken: int) -> _Place | None:
        """Return the place behind so many rows, as near as may be to the row after them."""
        if taken == len(self.rows):
            return self.reached
        following = self.rows[taken]
        before = self.rows[taken - 1] if taken else None
        assert following.page is not None  # noqa: S101 - rows of streams have one
        if before is not None and before.page is following.page:
            return following.page.behind(before.index)
        return following.page.at


class _Merge(Generic[T]):
    """The merge of one page."""

    def __init__(
        self,
        providers: Sequence[Provider],
        marks: _Marks,
        *,
        first: int,
        streams: SortedStreams[T],
        collect: Callable[[Provider], Awaitable[Iterable[CollectedRow[T]]]],
        descending: bool,
    ) -> None:
        self.given: list[_Head[T]] = []
        self.has_more = False
        self._marks = marks
        self._first = first
        self._how = streams
        self._collect = collect
        self._descending = descending
        self._sources = _Sources(
            providers,
            fetch_page=streams.fetch_page,
            id_of=streams.id_of,
            limit_of=streams.limit_of,
            first=first if streams.matches is None else None,
        )
        self._streams: list[_Stream[T]] = [
            _Stream(provider=provider, reached=marks.streams[provider.id])
            for provider in providers
            if provider.id in marks.streams
        ]
        self._collecting = [row for row in providers if row.id not in marks.streams]
        self._collected: deque[CollectedRow[T]] = deque()

    async def read(self) -> None:
        """Take the ``first`` rows next in the order, and find out whether there are more."""
        if self._collecting:
            async with together() as tasks:
                tasks.create_task(self._collect_all())
                tasks.create_task(self._fill())
        else:
            await self._fill()
        while len(self.given) < self._first and (head := self._next()) is not None:
            self._take(head)
            if len(self.given) < self._first:
                await self._fill()
        if self._next() is None and self._how.matches is not None:
            await self._fill()
        self.has_more = self._next() is not None or any(row.is_dry for row in self._streams)

    async def _collect_all(self) -> None:
        """Collect the lists of providers that do not sort, and sort the rows not yet given."""
        async with together() as tasks:
            reads = [tasks.create_task(self._collect_one(row)) for row in self._collecting]
        rows = {row.key: row for read in reads for row in read.result()}
        self._collected.extend(_rows_ahead(rows.values(), self._marks, descending=self._descending))

    async def _collect_one(self, provider: Provider) -> Iterable[CollectedRow[T]]:
        try:
            rows = list(await self._collect(provider))
        except ProviderError as error:
            self._sources.errors[provider.id] = error
            return ()
        self._sources.totals[provider.id] = len(rows)
        return rows

    async def _fill(self) -> None:
        """Read on where the row next in line is not known."""
        dry = [stream for stream in self._streams if stream.is_dry]
        if dry:
            await asyncio.gather(*map(self._fill_one, dry))

    async def _fill_one(self, stream: _Stream[T]) -> None:
        while stream.is_dry and stream.reached is not None:
            provider, place = stream.provider, stream.reached
            fetching = self._sources.fetch(provider, place)
            page = await self._sources.take(provider, place, fetching)
            if page is None:
                stream.failed = True
                return
            stream.rows.extend(self._heads(stream, page))
            stream.reached = page.following

    def _heads(self, stream: _Stream[T], page: _ReadPage[T]) -> Iterator[_Head[T]]:
        """Make the rows of a page ready: each counts as the largest so far."""
        largest = stream.rows[-1].key if stream.rows else None
        for index in page.at.rest(page.ids):
            row = page.page.items[index]
            if self._how.matches is not None and not self._how.matches(row):
                continue
            key = self._how.key_of(stream.provider, row)
            if largest is None or _is_ahead(key, largest, self._descending):
                largest = key
            yield _Head(row=row, key=largest, page=page, index=index, stream=stream)

    def _next(self) -> _Head[T] | None:
        """Return the row next in the order, of those at hand."""
        heads = [head for stream in self._streams if (head := stream.head) is not None]
        if self._collected:
            row = self._collected[0]
            heads.append(_Head(row=row.row, key=row.key))
        if not heads:
            return None
        return (max if self._descending else min)(heads, key=_key_of)

    def _take(self, head: _Head[T]) -> None:
        self.given.append(head)
        if head.stream is None:
            self._collected.popleft()
        else:
            head.stream.taken += 1

    def marks_behind(self, index: int) -> _Marks:
        """Return how far the list has been given with the row at an index of this page."""
        given = self.given[: index + 1]
        failed = [row.id for row in self._collecting if row.id in self._sources.errors]
        moved = _moved(self._marks, given[-1].key, failed=failed, descending=self._descending)
        taken = Counter(head.stream.provider.id for head in given if head.stream is not None)
        places = {
            row.provider.id: row.place_behind(taken[row.provider.id]) for row in self._streams
        }
        return replace(moved, streams={**self._marks.streams, **places})

    def total(self) -> int | None:
        """Return the length of the whole list; ``None`` when that is not known."""
        filtered = self._how.matches is not None and bool(self._streams)
        return None if filtered else self._sources.total()

    def statuses(self) -> list[SourceStatus]:
        """Return how each provider took part."""
        return self._sources.statuses()


def _key_of(row: _Head[Any] | CollectedRow[Any]) -> SortKey:
    return row.key


def _rows_ahead(
    rows: Iterable[CollectedRow[T]], marks: _Marks, *, descending: bool
) -> list[CollectedRow[T]]:
    """Return the rows not yet given, in order."""
    ahead = [row for row in rows if _is_ahead(row.key, marks.of(row.provider_id), descending)]
    return sorted(ahead, key=_key_of, reverse=descending)


def _is_ahead(key: SortKey, mark: SortKey | None, descending: bool) -> bool:  # noqa: FBT001 - private
    if mark is None:
        return True
    return key < mark if descending else key > mark


def _moved(marks: _Marks, key: SortKey, *, failed: Collection[str], descending: bool) -> _Marks:
    """Return the marks after the row of the key was given, with all before it."""
    given = key if _is_ahead(key, marks.given, descending) else marks.given
    owing: dict[str, SortKey | None] = {}
    for provider_id, mark in marks.owing.items():
        reached = key if _is_ahead(key, mark, descending) else mark
        owing[provider_id] = mark if provider_id in failed else reached
    for provider_id in failed:
        owing.setdefault(provider_id, marks.given)
    owing = {name: mark for name, mark in owing.items() if mark != given}
    return replace(marks, given=given, owing=owing)
