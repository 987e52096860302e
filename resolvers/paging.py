"""Pages of lists that several providers make up, so that no row is lost or given twice.

Two kinds of walk, each with a position of its own for every provider:

``walk_providers``  the list as the providers have it: provider by provider in order of
                    registration, their own pages passed through. A provider that fails keeps its
                    place; every later page asks it again first, so its rows come, once, when it
                    is back.
``page_of_rows``    a filtered or sorted list, collected here. The cursor holds the sort key of
                    the last row, and an earlier key for each provider that failed and still
                    owes the rows in between; they come, once, when it is back.

In both, ``has_next_page`` speaks for the providers that answered. While one is down, asking
again with the same end cursor is how its rows are had.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, Generic, TypeAlias, TypeVar

from resolvers.cursors import CursorSealer
from resolvers.errors import BadInput
from sessions.base import Page
from sessions.errors import ProviderBadResponse, ProviderError
from storage.records import Provider

T = TypeVar("T")

SortKey: TypeAlias = tuple[str | int | float, ...]
"""Orders the rows of one list; no two rows have the same."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection(Generic[T]):
    """One page of a list.

    Attributes:
        nodes: In the order asked for.
        cursor_of: Makes the cursor of the node at an index.
        empty_cursor: The cursor to go on from when there is no node.
        has_previous_page: Whether this is not the first page.
        has_next_page: Whether the providers that answered have more.
        total_count: Length of the whole list; ``None`` when a provider cannot say.
        sources: Every provider the list is made of, in order of registration.
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
        state: What ``after`` holds; ``None`` for the first page.
    """

    first: int
    after: str | None
    sealer: CursorSealer
    state: Any

    @classmethod
    def checked(
        cls, *, first: int, after: str | None, sealer: CursorSealer, max_page_size: int
    ) -> PageRequest:
        """Return the request if it can be answered.

        Raises:
            BadInput: The page may not be that long, or the cursor is not one of this query.
        """
        return cls(
            first=checked_first(first, max_page_size),
            after=after,
            sealer=sealer,
            state=None if after is None else sealer.open(after),
        )


def checked_first(first: int, max_page_size: int) -> int:
    """Return ``first`` if a page may be that long.

    Raises:
        BadInput: It may not.
    """
    if 1 <= first <= max_page_size:
        return first
    raise BadInput("first", f"{first} is not between 1 and {max_page_size}")


# The list as the providers have it.


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """How far one provider's list has been given.

    A provider's page is always asked for with the limit the walk began with, so that positions
    mean the same to it however the caller's ``first`` changes.
    """

    position: str | None
    limit: int
    given: int = 0
    last_id: str | None = None

    def rest_begins(self, ids: Sequence[str]) -> int:
        """Return the index of the first row not yet given on the page at this position."""
        if self.last_id in ids:
            return ids.index(self.last_id) + 1
        return min(self.given, len(ids))


@dataclass(frozen=True, slots=True, kw_only=True)
class _WalkState:
    """Which providers are through, which are not begun, and where the others stand.

    Providers up to ``frontier`` (registration instant and id) have been begun; those of them
    that are not in ``open`` are through.
    """

    frontier: tuple[float, str] | None = None
    open: Mapping[str, _Place] = field(default_factory=dict)

    def place_of(self, provider: Provider, limit: int) -> _Place | None:
        """Return where to go on reading the provider; ``None`` when it is through."""
        if provider.id in self.open:
            return self.open[provider.id]
        begun = self.frontier is not None and registration_key(provider) <= self.frontier
        return None if begun else _Place(position=None, limit=limit)

    def moved(self, provider: Provider, place: _Place | None) -> _WalkState:
        """Return the state in which the provider stands at the place."""
        still_open = {key: value for key, value in self.open.items() if key != provider.id}
        if place is not None:
            still_open[provider.id] = place
        key = registration_key(provider)
        frontier = key if self.frontier is None else max(self.frontier, key)
        return _WalkState(frontier=frontier, open=still_open)

    def as_json(self) -> object:
        return [
            self.frontier,
            [
                [key, place.position, place.limit, place.given, place.last_id]
                for key, place in self.open.items()
            ],
        ]

    @classmethod
    def from_json(cls, state: Any) -> _WalkState:
        frontier, still_open = state
        return cls(
            frontier=None if frontier is None else (frontier[0], frontier[1]),
            open={
                key: _Place(position=position, limit=limit, given=given, last_id=last_id)
                for key, position, limit, given, last_id in still_open
            },
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _GivenRow(Generic[T]):
    """A row and what makes its cursor: the state before its provider, and its place there."""

    row: T
    provider: Provider
    state: _WalkState
    place: _Place | None


async def walk_providers(
    providers: Sequence[Provider],
    *,
    fetch_page: FetchPage[T],
    id_of: Callable[[T], str],
    limit_of: Callable[[Provider], int],
    request: PageRequest,
    patience_seconds: float,
    wants_total: bool,
) -> Connection[T]:
    """Return a page of the list as the providers have it.

    Args:
        providers: In order of registration.
        fetch_page: Asks one provider.
        id_of: A row's id within its provider.
        limit_of: The provider's largest page that costs it little.
        request: Which page.
        patience_seconds: How long to wait for a provider before asking the next in line too.
        wants_total: Whether to ask every provider for the length of its list.
    """
    walk = _Walk(
        providers,
        fetch_page=fetch_page,
        id_of=id_of,
        limit_of=lambda provider: min(request.first, limit_of(provider)),
        patience_seconds=patience_seconds,
    )
    state = _WalkState() if request.state is None else _WalkState.from_json(request.state)
    try:
        has_more = await walk.read(state, request.first)
        total_count = await walk.count() if wants_total else None
    finally:
        await walk.close()
    given = walk.rows[: request.first]

    def cursor_of(index: int) -> str:
        row = given[index]
        return request.sealer.seal(row.state.moved(row.provider, row.place).as_json())

    return Connection(
        nodes=[row.row for row in given],
        cursor_of=cursor_of,
        empty_cursor=request.after,
        has_previous_page=request.after is not None,
        has_next_page=has_more,
        total_count=total_count,
        sources=[walk.status(provider) for provider in providers],
    )


class _Walk(Generic[T]):
    """One page's walk along the providers; reads one row more than wanted to see if there is."""

    def __init__(
        self,
        providers: Sequence[Provider],
        *,
        fetch_page: FetchPage[T],
        id_of: Callable[[T], str],
        limit_of: Callable[[Provider], int],
        patience_seconds: float,
    ) -> None:
        self.rows: list[_GivenRow[T]] = []
        self._providers = providers
        self._fetch_page = fetch_page
        self._id_of = id_of
        self._limit_of = limit_of
        self._patience_seconds = patience_seconds
        self._errors: dict[str, ProviderError] = {}
        self._totals: dict[str, int | None] = {}
        self._queue: list[tuple[Provider, _Place]] = []
        self._tasks: dict[str, asyncio.Task[Page[T]]] = {}

    async def read(self, state: _WalkState, first: int) -> bool:
        """Read until there are ``first`` rows; return whether the providers have more."""
        self._queue = [
            (provider, place)
            for provider in self._providers
            if (place := state.place_of(provider, self._limit_of(provider))) is not None
        ]
        for provider, place in self._queue:
            reached = await self._read_provider(provider, place, state=state, first=first)
            failed = provider.id in self._errors
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
            ask = self._first_page_of if reached is place else self._next_page_of
            try:
                page = await ask(provider, reached)
                following = _following(page, reached, provider)
            except ProviderError as error:
                self._errors[provider.id] = error
                return reached
            self._totals[provider.id] = page.total
            self._add_rows(page, provider, state=state, at=reached, following=following)
            reached = following
            if len(self.rows) >= first:
                break
        return reached

    def _add_rows(
        self,
        page: Page[T],
        provider: Provider,
        *,
        state: _WalkState,
        at: _Place,
        following: _Place | None,
    ) -> None:
        ids = [self._id_of(row) for row in page.items]
        for index in range(at.rest_begins(ids), len(ids)):
            place = replace(at, given=index + 1, last_id=ids[index])
            is_last = index + 1 == len(ids)
            self.rows.append(
                _GivenRow(
                    row=page.items[index],
                    provider=provider,
                    state=state,
                    place=following if is_last else place,
                )
            )

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

    async def _next_page_of(self, provider: Provider, place: _Place) -> Page[T]:
        return await self._fetch_page(provider.id, place.position, place.limit)

    def _start(self, provider: Provider, place: _Place) -> asyncio.Task[Page[T]]:
        if provider.id not in self._tasks:
            self._tasks[provider.id] = asyncio.create_task(self._next_page_of(provider, place))
        return self._tasks[provider.id]

    async def count(self) -> int | None:
        """Return the length of the whole list, asking those not asked yet; ``None`` if unknown."""
        unknown = [provider for provider in self._providers if self._is_unasked(provider)]
        await asyncio.gather(*map(self._count_provider, unknown))
        totals = [self._totals.get(provider.id) for provider in self._providers]
        known = [total for total in totals if total is not None]
        return sum(known) if len(known) == len(totals) and not self._errors else None

    def _is_unasked(self, provider: Provider) -> bool:
        return provider.id not in self._totals and provider.id not in self._errors

    async def _count_provider(self, provider: Provider) -> None:
        try:
            page = await self._fetch_page(provider.id, None, 1)
        except ProviderError as error:
            self._errors[provider.id] = error
        else:
            self._totals[provider.id] = page.total

    def status(self, provider: Provider) -> SourceStatus:
        """Return how the provider took part."""
        error = self._errors.get(provider.id)
        state = SourceState.NOT_ASKED if self._is_unasked(provider) else SourceState.OK
        return SourceStatus(
            provider_id=provider.id,
            provider=provider,
            state=state if error is None else SourceState.FAILED,
            error=error,
        )

    async def close(self) -> None:
        """Give up the pages that were asked for ahead and not needed."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)


def _following(page: Page[Any], place: _Place, provider: Provider) -> _Place | None:
    """Return where the page after this one begins; ``None`` when this is the last.

    Raises:
        ProviderBadResponse: It would begin where this one does, for ever.
    """
    if page.next_position is None:
        return None
    if page.next_position == place.position:
        raise ProviderBadResponse(
            "The provider's list does not advance from page to page", provider_id=provider.id
        )
    return _Place(position=page.next_position, limit=place.limit)


def registration_key(provider: Provider) -> tuple[float, str]:
    """Return what providers are ordered by."""
    return provider.created_at.timestamp(), provider.id


# A list collected and sorted here.


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectedRow(Generic[T]):
    """A row with its place in the order."""

    row: T
    key: SortKey
    provider_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Marks:
    """Keys up to which rows have been given.

    Attributes:
        given: For every provider without an entry in ``owing``; ``None`` before the first row.
        owing: Providers that failed, with the earlier key at which each stood then.
    """

    given: SortKey | None = None
    owing: Mapping[str, SortKey | None] = field(default_factory=dict)

    def of(self, provider_id: str) -> SortKey | None:
        return self.owing.get(provider_id, self.given)

    def as_json(self) -> object:
        return [self.given, list(self.owing.items())]

    @classmethod
    def from_json(cls, state: Any) -> _Marks:
        given, owing = state
        return cls(given=_as_key(given), owing={name: _as_key(key) for name, key in owing})


def _as_key(key: Sequence[str | float] | None) -> SortKey | None:
    return None if key is None else tuple(key)


def page_of_rows(
    rows: Sequence[CollectedRow[T]],
    *,
    sources: Sequence[SourceStatus],
    request: PageRequest,
    descending: bool = False,
) -> Connection[T]:
    """Return a page of a list whose rows are all at hand.

    Args:
        rows: Rows of the providers that answered, in any order.
        sources: Every provider of the list, answered or failed.
        request: Which page.
        descending: Whether large keys come first.
    """
    marks = _Marks() if request.state is None else _Marks.from_json(request.state)
    failed = [source.provider_id for source in sources if source.state is SourceState.FAILED]
    ahead = sorted(
        (row for row in rows if _is_ahead(row.key, marks.of(row.provider_id), descending)),
        key=lambda row: row.key,
        reverse=descending,
    )
    given = ahead[: request.first]

    def cursor_of(index: int) -> str:
        moved = _moved(marks, given[index].key, failed=failed, descending=descending)
        return request.sealer.seal(moved.as_json())

    return Connection(
        nodes=[row.row for row in given],
        cursor_of=cursor_of,
        empty_cursor=request.after,
        has_previous_page=request.after is not None,
        has_next_page=len(ahead) > len(given),
        total_count=None if failed else len(rows),
        sources=sources,
    )


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
    return _Marks(given=given, owing={name: mark for name, mark in owing.items() if mark != given})
