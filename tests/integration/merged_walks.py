"""Whole walks over small random worlds, and what must hold of them whatever happens on the way.

A world is made from a seed: providers that page in every way platforms do, rows with equal, missing
and accented names, and things that happen between any two upstream calls: rows come, go and are
renamed, providers fail and return, are removed and registered. ``run_case`` walks it to its end,
restarting the gateway before every page, and counts what was lost, doubled and out of order.
"""

import bisect
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum, auto
from itertools import pairwise
from random import Random
from typing import Any

from resolvers.collation import sort_key
from resolvers.cursors import CursorSealer
from resolvers.paging import (
    CollectedRow,
    Connection,
    PageRequest,
    SortedStreams,
    SortKey,
    SourceState,
    merge_providers,
    registration_key,
    walk_providers,
)
from sessions.anchors import Anchor, ByMark, ByRank, Stretch, page_over, read_behind
from sessions.base import Page
from sessions.errors import ProviderUnavailable
from storage.credentials import Secret
from storage.records import Provider, ProviderState

_NAMES = ("", "Ana", "ana", "Ána", "Bo", "bo a", "Zoë", "zoe", "Éve", "eva", "ß", "ж")
_FOLDED = {name: sort_key(name) for name in _NAMES}
_KEY: Secret[bytes] = Secret(b"key")
_MOST_PAGES = 400
_BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)


def _a_provider(number: int) -> Provider:
    at = _BEGINNING + timedelta(seconds=number // 2)  # some are registered in the same instant
    return Provider(
        id=f"p{number}",
        platform="pretend",
        name="",
        base_url="https://pretend.test",
        options={},
        state=ProviderState.ACTIVE,
        revision=1,
        created_at=at,
        updated_at=at,
    )


_PROVIDERS = tuple(_a_provider(number) for number in range(8))
_REGISTRATION = {provider.id: registration_key(provider) for provider in _PROVIDERS}


class Style(Enum):
    """How a provider pages.

    PLACES: a position behind every row, as a key. BOOKMARKS: a key, behind whole pages only.
    RANKED: numbered pages, by id. MARKED: numbered pages in an order of its own; survives two
    rows deleted or renamed, see ``sessions.anchors``. NUMBERED: bare numbers, which survive no
    change. COLLECTED: cannot sort; in its own order, it has places.
    """

    PLACES = auto()
    BOOKMARKS = auto()
    RANKED = auto()
    MARKED = auto()
    NUMBERED = auto()
    COLLECTED = auto()


class Wanted(Enum):
    """In what order a list is asked for."""

    PROVIDER = auto()
    PROVIDER_DESCENDING = auto()
    NAME = auto()
    NAME_DESCENDING = auto()
    NUMBER = auto()
    NUMBER_DESCENDING = auto()

    @property
    def descending(self) -> bool:
        return self in {
            Wanted.PROVIDER_DESCENDING,
            Wanted.NAME_DESCENDING,
            Wanted.NUMBER_DESCENDING,
        }


@dataclass(slots=True, eq=False)
class Row:
    """A row; ``touched`` once something happened to it that lets it come twice or never."""

    provider_id: str
    id: str
    name: str
    number: float | None
    meant: bool
    touched: bool = False


@dataclass(slots=True)
class School:
    """A provider: its rows in the order of its list, and how it pages."""

    provider: Provider
    style: Style
    rows: list[Row]
    page_size: int
    tells_total: bool
    own_alphabet: bool
    failing: bool = False
    changes_left: int = 0
    calls: int = 0
    places: list[Any] = field(default_factory=list)


@dataclass(slots=True)
class Outcome:
    """What a case came to; all but the first four should be zero."""

    pages: int = 0
    rows: int = 0
    calls: int = 0
    changes: int = 0
    lost: int = 0
    doubled: int = 0
    misordered: int = 0
    wrong: int = 0
    """Empty or overlong pages, wrong totals, cursors that do not lead behind their row."""

    def add(self, other: "Outcome") -> None:
        for name in ("pages", "rows", "calls", "changes", "lost", "doubled", "misordered", "wrong"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def is_good(self) -> bool:
        return not (self.lost or self.doubled or self.misordered or self.wrong)


class World:
    """One case."""

    def __init__(self, seed: int) -> None:
        self.chance = chance = Random(seed)
        self.wanted = chance.choice(tuple(Wanted))
        self.filtered = chance.random() < 0.3
        self.is_calm = chance.random() < 0.25
        self.fails = not self.is_calm and chance.random() < 0.5
        self.outcome = Outcome()
        self._next_number = 0
        count = chance.choice((1, 1, 2, 2, 3, 3, 4, 6))
        self.schools = [self._a_school(provider) for provider in _PROVIDERS[:count]]
        self.present = [
            school for school in self.schools if len(self.schools) < 3 or chance.random() < 0.97
        ]
        self.latecomer = None
        if not self.is_calm and chance.random() < 0.1:
            self.latecomer = self._a_school(_PROVIDERS[count])
        self.given: list[Row] = []
        self._at_start = [row for school in self.present for row in school.rows]
        self._gone: list[Row] = []
        self._heals = False

    # ---- making it

    def _a_school(self, provider: Provider) -> School:
        chance = self.chance
        native = self.wanted is Wanted.PROVIDER and not self.filtered
        styles = (
            (Style.PLACES, Style.BOOKMARKS, Style.RANKED, Style.MARKED, Style.NUMBERED)
            if native
            else (
                Style.PLACES,
                Style.BOOKMARKS,
                Style.MARKED,
                Style.NUMBERED,
                Style.COLLECTED,
                Style.COLLECTED,
            )
        )
        school = School(
            provider=provider,
            style=chance.choice(styles),
            rows=[],
            page_size=chance.choice((1, 2, 3, 4, 7, 20)),
            tells_total=chance.random() < 0.7,
            own_alphabet=chance.random() < 0.3,
        )
        if not self.is_calm:
            unlimited = {Style.PLACES, Style.BOOKMARKS, Style.RANKED, Style.COLLECTED}
            school.changes_left = 20 if school.style in unlimited else 2
            if school.style is Style.NUMBERED:
                school.changes_left = 0
        for _ in range(chance.choice((0, 1, 2, 3, 5, 8, 13))):
            self._insert(school)
        return school

    def _insert(self, school: School) -> Row:
        chance = self.chance
        self._next_number += 1
        number = chance.randrange(900) * 1000 + self._next_number  # anywhere, never the same
        row = Row(
            provider_id=school.provider.id,
            id=f"{number:06}",
            name=chance.choice(_NAMES),
            number=None if chance.random() < 0.2 else chance.randrange(5) / 2,
            meant=chance.random() < 0.6,
        )
        bisect.insort(school.rows, row, key=self._own_key(school))
        return row

    def _own_key(self, school: School) -> Callable[[Row], Any]:
        """Return what a provider's list ascends by; a descending list is the same negated."""
        if (
            self.wanted not in {Wanted.NAME, Wanted.NAME_DESCENDING}
            or school.style is Style.COLLECTED
        ):
            return _by_id
        key = _by_own_alphabet if school.own_alphabet else _by_our_alphabet
        return _Falling.of(key) if self.wanted is Wanted.NAME_DESCENDING else key

    # ---- what happens

    def happen(self) -> None:
        """Let something happen to a provider's rows, or not."""
        if self.is_calm or self.chance.random() < 0.5:
            return
        school = self.chance.choice(self.present) if self.present else None
        if school is None or not school.changes_left:
            return
        school.changes_left -= 1
        self.outcome.changes += 1
        kind = self.chance.random()
        if kind < 0.35 or not school.rows:
            self._insert(school)
            return
        row = self.chance.choice(school.rows)
        school.rows.remove(row)
        if kind < 0.7:
            self._gone.append(row)
            return
        row.name = self.chance.choice(_NAMES)
        row.number = self.chance.randrange(5) / 2
        if self.filtered or self.wanted not in {Wanted.PROVIDER, Wanted.PROVIDER_DESCENDING}:
            row.touched = True
        if self.filtered:
            row.meant = self.chance.random() < 0.6
        bisect.insort(school.rows, row, key=self._own_key(school))

    def before_page(self, number: int) -> None:
        """Let providers fail and return, come and go."""
        if self.fails:
            for school in self.schools:
                school.failing = number < 8 and self.chance.random() < 0.4
        if self.latecomer is not None and self.chance.random() < 0.3:
            self.schools.append(self.latecomer)
            self.present.append(self.latecomer)
            if self.wanted is Wanted.PROVIDER:
                self._at_start += self.latecomer.rows
            self.latecomer = None
        elif not self.is_calm and len(self.present) > 1 and self.chance.random() < 0.01:
            removed = self.present.pop(self.chance.randrange(len(self.present)))
            self._gone += removed.rows

    # ---- asking

    def _called(self, provider_id: str) -> School:
        """Let something happen, and the provider fail."""
        self.happen()
        school = next(each for each in self.schools if each.provider.id == provider_id)
        school.calls += 1
        self.outcome.calls += 1
        if school.failing or (self.fails and not self._heals and self.chance.random() < 0.1):
            raise ProviderUnavailable("Down")
        return school

    async def fetch(self, provider_id: str, position: str | None, limit: int) -> Page[Row]:
        school = self._called(provider_id)
        if school.style in {Style.PLACES, Style.BOOKMARKS, Style.COLLECTED}:
            return self._page_by_key(school, position, limit)
        if school.style is Style.NUMBERED:
            start = int(position or 0)
            rows = school.rows[start : start + limit]
            more = start + limit < len(school.rows)
            return Page(
                items=rows,
                next_position=str(start + limit) if more else None,
                total=len(school.rows) if school.tells_total else None,
            )
        return await self._page_behind(school, position, limit)

    def _page_by_key(self, school: School, position: str | None, limit: int) -> Page[Row]:
        key = self._own_key(school)
        start = 0
        if position is not None:
            start = bisect.bisect_right(school.rows, school.places[int(position)], key=key)
        rows = school.rows[start : start + limit]
        first = len(school.places)
        school.places += map(key, rows)
        positions = [str(first + index) for index in range(len(rows))]
        return Page(
            items=rows,
            next_position=positions[-1] if start + limit < len(school.rows) else None,
            total=len(school.rows) if school.tells_total else None,
            positions=() if school.style is Style.BOOKMARKS else positions,
        )

    async def _page_behind(self, school: School, position: str | None, limit: int) -> Page[Row]:
        async def read(offset: int, limit: int) -> Stretch[Row]:
            size, page = page_over(offset, limit, most=school.page_size * 2)
            begins = (page - 1) * size
            rows = school.rows[begins : begins + size]
            return Stretch(rows=rows, offset=begins, more=begins + size < len(school.rows))

        ranked = school.style is Style.RANKED
        mark_of = _by_id if self.wanted is Wanted.PROVIDER else _mark_of
        behind = await read_behind(
            None if position is None else Anchor.parse(position),
            limit,
            read=read,
            mark_of=mark_of,
            find=ByRank(_by_id, str) if ranked else ByMark(mark_of),
        )
        positions = [str(anchor) for anchor in behind.anchors]
        return Page(
            items=behind.rows,
            next_position=positions[-1] if behind.more and positions else None,
            total=len(school.rows) if school.tells_total else None,
            positions=positions,
        )

    async def collect(self, provider: Provider) -> list[CollectedRow[Row]]:
        school = self._called(provider.id)
        return [
            CollectedRow(row=row, key=self.key_of(provider, row), provider_id=provider.id)
            for row in school.rows
            if row.meant or not self.filtered
        ]

    def key_of(self, _provider: Provider, row: Row) -> SortKey:
        """Return our own order."""
        if self.wanted in {Wanted.PROVIDER, Wanted.PROVIDER_DESCENDING}:
            return (*_REGISTRATION[row.provider_id], row.id)
        if self.wanted in {Wanted.NAME, Wanted.NAME_DESCENDING}:
            return (False, _FOLDED[row.name], row.provider_id, row.id)
        is_last = (row.number is None) is not self.wanted.descending
        return (is_last, "" if row.number is None else row.number, row.provider_id, row.id)

    async def page(self, first: int, after: str | None) -> Connection[Row]:
        """Ask for a page, of a gateway just started."""
        sealer = CursorSealer(_KEY, "query")
        request = PageRequest.checked(first=first, after=after, sealer=sealer, max_page_size=100)
        providers = [school.provider for school in self.present]
        if self.wanted is Wanted.PROVIDER and not self.filtered:
            return await walk_providers(
                providers,
                fetch_page=self.fetch,
                id_of=_by_id,
                limit_of=self._page_size_of,
                request=request,
                patience_seconds=60,
                wants_total=self.is_calm and after is None,
                length_of=self._length_of,
            )
        sorts = {Wanted.NAME, Wanted.NAME_DESCENDING}
        streams = SortedStreams(
            provider_ids=[
                school.provider.id
                for school in self.present
                if self.wanted in sorts and school.style is not Style.COLLECTED
            ],
            fetch_page=self.fetch,
            id_of=_by_id,
            limit_of=self._page_size_of,
            key_of=self.key_of,
            matches=_is_meant if self.filtered else None,
        )
        return await merge_providers(
            providers,
            streams=streams,
            collect=self.collect,
            request=request,
            descending=self.wanted.descending,
        )

    def _length_of(self, provider: Provider) -> int | None:
        """Return how long a list was once, or is, or that nobody knows."""
        school = next(each for each in self.schools if each.provider.id == provider.id)
        length = len(school.rows)
        return self.chance.choice((None, length, length, max(0, length - 2), length + 2))

    def _page_size_of(self, provider: Provider) -> int:
        return next(s.page_size for s in self.schools if s.provider.id == provider.id)

    # ---- walking and judging

    async def walk(self) -> Outcome:
        """Walk to the end."""
        pages: list[tuple[str | None, Connection[Row]]] = []
        after: str | None = None
        while True:
            self.before_page(len(pages))
            self._heals = len(pages) >= 8
            self.happen()
            first = self.chance.choice((1, 2, 3, 5, 8, 30))
            page = await self.page(first, after)
            pages.append((after, page))
            self.given += page.nodes
            self.outcome.wrong += len(page.nodes) > first
            after = page.end_cursor
            failed = any(source.state is SourceState.FAILED for source in page.sources)
            if not page.has_next_page and not failed:
                break
            if len(pages) >= _MOST_PAGES:
                self.outcome.wrong += 1
                break
        self.outcome.pages, self.outcome.rows = len(pages), len(self.given)
        self._judge()
        if self.is_calm:
            await self._judge_calm_pages([page for _after, page in pages])
        return self.outcome

    def _judge(self) -> None:
        times = Counter(map(id, self.given))
        gone = set(map(id, self._gone))
        self.outcome.lost += sum(
            times[id(row)] == 0
            for row in self._at_start
            if not row.touched and id(row) not in gone and (row.meant or not self.filtered)
        )
        self.outcome.doubled += sum(
            times[id(row)] > 1
            for row in {id(row): row for row in self.given}.values()
            if not row.touched
        )
        steady = {id(row) for row in self._at_start if not row.touched}
        found = [row for row in self.given if id(row) in steady]
        for school in self.schools:
            self.outcome.misordered += self._misordered_of(school, found)
        knows_order = self.is_calm or not any(school.own_alphabet for school in self.schools)
        if knows_order and not self.fails:
            self.outcome.misordered += _descents(self._running_keys(found))

    def _misordered_of(self, school: School, found: Iterable[Row]) -> int:
        """Count where a provider's rows do not come in its own order, or ours if collected.

        Rows that are collected and owed from before come first, wherever others stand.
        """
        rows = [row for row in found if row.provider_id == school.provider.id]
        if self._is_streamed and school.style is not Style.COLLECTED:
            return _descents(list(map(self._own_key(school), rows)))
        if self.fails:
            return 0
        keys: list[Any] = [self.key_of(school.provider, row) for row in rows]
        return _descents([_Falling(key) for key in keys] if self.wanted.descending else keys)

    @property
    def _is_streamed(self) -> bool:
        native = self.wanted is Wanted.PROVIDER and not self.filtered
        return native or self.wanted in {Wanted.NAME, Wanted.NAME_DESCENDING}

    def _running_keys(self, rows: Iterable[Row]) -> list[Any]:
        """Return the key each row counts with: the largest so far of its provider."""
        if self.wanted is Wanted.PROVIDER and not self.filtered:
            return [_REGISTRATION[row.provider_id] for row in rows]
        largest: dict[str, Any] = {}
        keys = []
        for row in rows:
            key: Any = self.key_of(_PROVIDERS[0], row)
            key = _Falling(key) if self.wanted.descending else key
            before = largest.get(row.provider_id)
            largest[row.provider_id] = key if before is None or before < key else before
            keys.append(largest[row.provider_id])
        return keys

    async def _judge_calm_pages(self, pages: Sequence[Connection[Row]]) -> None:
        """Where nothing happened: no empty page, true totals, a cursor leads behind its row."""
        outcome = self.outcome
        outcome.wrong += sum(not page.nodes for page in pages[1:])
        outcome.wrong += [page.has_next_page for page in pages] != [True] * (len(pages) - 1) + [
            False
        ]
        totals = {page.total_count for page in pages} - {None}
        outcome.wrong += bool(totals - {len(self.given)})
        told = all(s.tells_total for s in self.present)
        if self.wanted is Wanted.PROVIDER and not self.filtered and told:
            outcome.wrong += pages[0].total_count != len(self.given)
        if self.given:
            number = self.chance.randrange(len(pages))
            nodes = pages[number].nodes
            if nodes:
                at = self.chance.randrange(len(nodes))
                before = sum(len(page.nodes) for page in pages[:number]) + at + 1
                rest = await self.page(100, pages[number].cursor_of(at))
                outcome.wrong += list(map(id, rest.nodes)) != list(map(id, self.given[before:]))


class _Falling:
    """A key turned round."""

    __slots__ = ("key",)

    def __init__(self, key: Any) -> None:
        self.key = key

    def __lt__(self, other: "_Falling") -> bool:
        return bool(other.key < self.key)

    @classmethod
    def of(cls, key: Callable[[Row], Any]) -> Callable[[Row], "_Falling"]:
        return lambda row: cls(key(row))


def _by_id(row: Row) -> str:
    return row.id


def _by_our_alphabet(row: Row) -> tuple[str, str]:
    return _FOLDED[row.name], row.id


def _by_own_alphabet(row: Row) -> tuple[str, str]:
    return row.name[::-1], row.id


def _mark_of(row: Row) -> str:
    return f"{row.id}.{row.name}"


def _is_meant(row: Row) -> bool:
    return row.meant


def _descents(keys: Sequence[Any]) -> int:
    """Count the keys that are smaller than the one before."""
    return sum(after < before for before, after in pairwise(keys))


async def run_case(seed: int) -> Outcome:
    """Walk the world of a seed."""
    return await World(seed).walk()
