"""One list over several providers, from what is asked of it to a page with its sources.

A list is answered as the providers have it (``walk_providers``), or filtered and sorted here,
merged with what providers sort themselves (``merge_providers``). Either way it is read through the
cache, says how old each provider's part is, and what the query wants of its rows is begun early.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Generic, TypeAlias, TypeVar, cast

import msgspec

from resolvers.caching import Kept
from resolvers.chains import NOTHING, Wanted, follow
from resolvers.context import RequestContext, Scope, SourceFailure
from resolvers.cursors import CursorSealer
from resolvers.errors import BadInput, RequestLimitExceeded
from resolvers.loaders import (
    COURSES,
    ENROLLMENTS,
    USERS,
    BatchLoader,
    ExternalKey,
    ListKind,
)
from resolvers.paging import (
    CollectedRow,
    Connection,
    FetchPage,
    GivenPage,
    PageRequest,
    SortedStreams,
    SortKey,
    SourceState,
    SourceStatus,
    merge_providers,
    registration_key,
    walk_providers,
)
from sessions.base import ListOrder, Page
from sessions.errors import ProviderError, ProviderNotFound
from storage.records import (
    Course,
    Enrollment,
    Provider,
    ProviderState,
    User,
)

T = TypeVar("T")

Path: TypeAlias = tuple[str | int, ...]
"""Where in the answer a field is, for errors to name."""

DEFAULT_FIRST = 50

_CURSOR_FORMAT = 2
_FORMER_CURSOR_FORMATS = (1,)
_MAX_PROVIDERS_NAMED = 100

SCOPES: Final = {
    USERS.name: Scope.READ_USERS,
    COURSES.name: Scope.READ_COURSES,
    ENROLLMENTS.name: Scope.READ_ENROLLMENTS,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PageArguments:
    """The paging arguments of a list as the caller gave them.

    Attributes:
        max_age_seconds: How old kept rows may be; ``None`` for the provider's usual age.
    """

    first: int = DEFAULT_FIRST
    after: str | None = None
    max_age_seconds: int | None = None


FIRST_PAGE = PageArguments()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Age:
    """How old one provider's part of a list is.

    Attributes:
        as_of: When the oldest of it was read; ``None`` for nothing.
        error: Why nothing newer could be had; ``None`` while it is as fresh as was asked.
    """

    as_of: datetime | None
    error: ProviderError | None = None

    @classmethod
    def of(cls, kept: Kept[Any]) -> _Age:
        return cls(as_of=kept.read_at, error=kept.error)

    def and_also(self, other: _Age | None) -> _Age:
        """Return the age of both together."""
        if other is None:
            return self
        instants = [at for at in (self.as_of, other.as_of) if at is not None]
        return _Age(as_of=min(instants, default=None), error=self.error or other.error)


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected(Generic[T]):
    """Rows of one provider, in any order, with their age."""

    rows: Iterable[T]
    age: _Age


Collect: TypeAlias = Callable[[Provider], Awaitable[Collected[T]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Order(Generic[T]):
    """One thing to sort by.

    Attributes:
        value_of: What rows compare by; ``None`` for those that have none and come last.
        rising: The same as a platform's own order, if there is one.
        falling: Its reverse.
    """

    value_of: Callable[[T], str | float | None]
    rising: ListOrder | None = None
    falling: ListOrder | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection(Generic[T]):
    """How a list is read, narrowed and sorted here.

    Attributes:
        collect: Reads the rows of one provider.
        matches: Whether a row is meant.
        order: What rows are sorted by; ``None`` for their provider's place.
        descending: Whether the order is turned round.
        filtered: Whether ``matches`` leaves out any.
        whole: Whether ``collect`` reads the provider's whole list.
    """

    collect: Collect[T]
    matches: Callable[[T], bool]
    order: Order[T] | None = None
    descending: bool = False
    filtered: bool = True
    whole: bool = True

    @property
    def list_order(self) -> ListOrder | None:
        """The order in which a provider that sorts would have to list."""
        if self.order is None or not self.whole:
            return None
        return self.order.falling if self.descending else self.order.rising


@dataclass(frozen=True, slots=True, kw_only=True)
class ListQuery(Generic[T]):
    """One list to be answered.

    Attributes:
        kind: Which list.
        fingerprint: Filter and order; a cursor serves queries of the same one only.
        provider_ids: Which providers; ``None`` for all that are not disabled.
        selection: ``None`` for the list as the providers have it.
    """

    kind: ListKind[T]
    fingerprint: object
    provider_ids: Sequence[str] | None
    selection: Selection[T] | None


async def answer(
    context: RequestContext,
    query: ListQuery[T],
    page: PageArguments,
    *,
    path: Path,
    wants_total: bool,
    wanted: Wanted,
) -> Connection[T]:
    """Return a page of the list; providers that failed are in its sources and the context."""
    context.require(SCOPES[query.kind.name])
    context.note_max_age(page.max_age_seconds)
    if context.is_learners:
        query = _of_own(context, query)
    request = page_request(context, query.kind.name, query.fingerprint, page)
    providers, unknown = await _providers_meant(context, query.provider_ids)
    ages: dict[str, _Age] = {}
    chains = _Chains(context, query.kind, providers, page, wanted)
    if query.selection is None:
        connection = await walk_providers(
            providers,
            fetch_page=chains.following(_page_fetcher(context, query.kind, page, ages)),
            id_of=query.kind.id_of,
            limit_of=lambda provider: context.page_size_of(provider.id),
            request=request,
            length_of=lambda provider: context.reading.length_of(provider.id, query.kind.page),
            patience_seconds=context.limits.patience_seconds,
            prefetch=_prefetcher(context, query.kind, page),
            wants_total=wants_total,
        )
    else:
        connection = await _merged(
            context,
            providers,
            query.kind,
            query.selection,
            request,
            page=page,
            ages=ages,
            chains=chains,
            wants_total=wants_total,
        )
    sources = [
        _shown(context, source)
        for source in (*(_aged(source, ages) for source in connection.sources), *unknown)
    ]
    for source in sources:
        if source.state is SourceState.FAILED and source.error is not None:
            context.failures.append(
                SourceFailure(provider_id=source.provider_id, error=source.error, path=path)
            )
    return msgspec.structs.replace(
        connection, sources=sources, total_count=None if unknown else connection.total_count
    )


def _of_own(context: RequestContext, query: ListQuery[T]) -> ListQuery[T]:
    """Return the list with a learner's own rows instead of everybody's."""
    given = query.selection or Selection(collect=_nothing, matches=lambda _row: True)
    collect = cast("Collect[T]", _OWN[query.kind.name](context))  # rows of its kind
    own = dataclasses.replace(given, collect=collect, filtered=True, whole=False)
    return dataclasses.replace(query, selection=own)


async def _nothing(_provider: Provider) -> Collected[Any]:
    return Collected(rows=(), age=_Age(as_of=None))


async def _providers_meant(
    context: RequestContext, provider_ids: Sequence[str] | None
) -> tuple[list[Provider], list[SourceStatus]]:
    """Return the providers in order of registration, and a status for each unknown one."""
    if provider_ids is None:
        visible = await context.visible_providers()
        return [row for row in visible.values() if row.state is not ProviderState.DISABLED], []
    wanted = list(dict.fromkeys(provider_ids))
    if len(wanted) > _MAX_PROVIDERS_NAMED:
        raise BadInput(
            "filter.providerIds", f"{len(wanted)} ids are too many, at most {_MAX_PROVIDERS_NAMED}"
        )
    found = await asyncio.gather(*map(context.find_provider, wanted))
    unknown = [
        SourceStatus(
            provider_id=provider_id,
            provider=None,
            state=SourceState.FAILED,
            error=not_found(provider_id),
        )
        for provider_id, provider in zip(wanted, found, strict=True)
        if provider is None
    ]
    known = [provider for provider in found if provider is not None]
    return sorted(known, key=registration_key), unknown


def not_found(provider_id: str) -> ProviderNotFound:
    """Return the failure of a provider that does not exist for the request."""
    return ProviderNotFound("No such provider is registered", provider_id=provider_id)


def page_request(
    context: RequestContext, name: str, fingerprint: object, page: PageArguments
) -> PageRequest:
    """Return what is asked of a list, checked.

    Args:
        context: Of the request.
        name: Which list.
        fingerprint: What else makes the query; a cursor serves queries of the same one only.
        page: As the caller gave it.

    Raises:
        BadInput: The page may not be that long, or the cursor is not one of this query.
    """
    query, *former = (
        json.dumps([number, name, fingerprint, *_subjects(context)])
        for number in (_CURSOR_FORMAT, *_FORMER_CURSOR_FORMATS)
    )
    return PageRequest.checked(
        first=page.first,
        after=page.after,
        sealer=CursorSealer(context.limits.cursor_key, query, former=former),
        max_page_size=context.limits.max_page_size,
        cursor_seconds=context.limits.cursor_seconds,
    )


def _subjects(context: RequestContext) -> list[tuple[str, str]]:
    """Return whom the request acts for: what one is shown is no place in another's list."""
    return sorted(context.subjects.items())


def _page_fetcher(
    context: RequestContext,
    kind: ListKind[T],
    page: PageArguments,
    ages: dict[str, _Age],
    order: ListOrder | None = None,
) -> FetchPage[T]:
    """Return what fetches pages, and takes down in ``ages`` how old they are.

    In the providers' own order, or in one their platform declares; a list without declared orders
    is never asked for one.
    """
    list_page = kind.list_page
    if order is not None and kind.list_sorted is not None:
        list_page = kind.list_sorted(order)

    async def fetch(provider_id: str, position: str | None, limit: int) -> Page[T]:
        kept = await context.reading.answer(
            provider_id,
            kind.page,
            _page_key(position, limit, order),
            lambda session: list_page(session, position, limit),
            max_age_seconds=page.max_age_seconds,
        )
        ages[provider_id] = _Age.of(kept).and_also(ages.get(provider_id))
        found = kept.value
        if found.total is not None or position is None:
            has_more = found.next_position is not None
            length = len(found.items) + has_more if found.total is None else found.total
            context.reading.note_length(provider_id, kind.page, length)
        return found

    return fetch


class _Chains(Generic[T]):
    """Follows the rows of a list, provider by provider, if the page is sure to hold them all."""

    def __init__(
        self,
        context: RequestContext,
        kind: ListKind[T],
        providers: Sequence[Provider],
        page: PageArguments,
        wanted: Wanted,
    ) -> None:
        self._context = context
        self._kind = kind
        self._providers = providers
        self._page = page
        self._wanted = wanted
        self._is_idle = wanted == NOTHING or page.after is not None or len(providers) == 1
        self._seen: set[str] = set()

    def following(self, fetch_page: FetchPage[T]) -> FetchPage[T]:
        """Return what fetches pages, and follows the rows of lists that are one page."""

        async def fetch(provider_id: str, position: str | None, limit: int) -> Page[T]:
            found = await fetch_page(provider_id, position, limit)
            if position is None and found.next_position is None:
                self.follow(provider_id, found.items)
            return found

        return fetch

    def follow(self, provider_id: str, rows: Sequence[T]) -> None:
        """Follow a provider's whole list, unless some of it may be left for another page."""
        self._seen.add(provider_id)
        if not self._is_idle and self._holds_all():
            rows_of_its_kind = cast("Sequence[Any]", rows)
            follow(self._context, self._wanted, provider_id, rows_of_its_kind)

    def _holds_all(self) -> bool:
        """Whether the page is as long as all lists together, as far as is known of every one."""
        total = 0
        for provider in self._providers:
            length = self._context.reading.length_of(provider.id, self._kind.page)
            if length is None or (length == 0 and provider.id not in self._seen):
                return False
            total += length
        return total <= self._page.first


def _prefetcher(
    context: RequestContext, kind: ListKind[T], page: PageArguments
) -> Callable[[str, str, int], None]:
    """Return what reads a page in the background, as ``_page_fetcher`` would."""

    def prefetch(provider_id: str, position: str, limit: int) -> None:
        context.reading.prefetch(
            provider_id,
            kind.page,
            _page_key(position, limit),
            lambda session: kind.list_page(session, position, limit),
            max_age_seconds=page.max_age_seconds,
        )

    return prefetch


def _page_key(position: str | None, limit: int, order: ListOrder | None = None) -> str:
    return f"{order or ''}:{limit}:{position or ''}"


def _aged(source: SourceStatus, ages: Mapping[str, _Age]) -> SourceStatus:
    """Return the status of a source with the age of what it gave."""
    age = ages.get(source.provider_id)
    if age is None or source.state is not SourceState.OK:
        return source
    if age.error is None:
        return dataclasses.replace(source, as_of=age.as_of)
    return dataclasses.replace(source, state=SourceState.STALE, error=age.error, as_of=age.as_of)


def _shown(context: RequestContext, source: SourceStatus) -> SourceStatus:
    if source.error is None:
        return source
    return dataclasses.replace(source, error=context.shown(source.error))


async def _merged(
    context: RequestContext,
    providers: Sequence[Provider],
    kind: ListKind[T],
    selection: Selection[T],
    request: PageRequest,
    *,
    page: PageArguments,
    ages: dict[str, _Age],
    chains: _Chains[T],
    wants_total: bool,
) -> GivenPage[T]:
    """Return a page of a list that is filtered or in an order of ours."""
    order = selection.list_order
    fetch_page = _page_fetcher(context, kind, page, ages, order)
    streams = SortedStreams(
        provider_ids=() if wants_total else _sorting_providers(context, providers, order),
        fetch_page=_counting(context, fetch_page) if selection.filtered else fetch_page,
        id_of=kind.id_of,
        limit_of=lambda provider: context.page_size_of(provider.id),
        key_of=lambda provider, row: _key_of(row, provider, kind, selection),
        matches=selection.matches if selection.filtered else None,
    )

    async def collect(provider: Provider) -> list[CollectedRow[T]]:
        collected = await selection.collect(provider)
        ages[provider.id] = collected.age
        rows_by_id = {kind.id_of(row): row for row in collected.rows}
        rows = [row for row in rows_by_id.values() if selection.matches(row)]
        if selection.whole:
            context.reading.note_length(provider.id, kind.page, len(rows_by_id))
            chains.follow(provider.id, rows)
        return [
            CollectedRow(
                row=row, key=_key_of(row, provider, kind, selection), provider_id=provider.id
            )
            for row in rows
        ]

    return await merge_providers(
        providers,
        streams=streams,
        collect=collect,
        request=request,
        descending=selection.descending,
    )


def _sorting_providers(
    context: RequestContext, providers: Iterable[Provider], order: ListOrder | None
) -> frozenset[str]:
    """Return the providers that can list in an order themselves; acting for users, none is."""
    if order is None or context.acts_for_users:
        return frozenset()
    platforms = ((provider.id, context.platform_of(provider.id)) for provider in providers)
    return frozenset(
        provider_id
        for provider_id, platform in platforms
        if platform is not None and order in platform.sorted_lists
    )


def _counting(context: RequestContext, fetch_page: FetchPage[T]) -> FetchPage[T]:
    """Return what fetches pages of a filtered list until they hold more rows than one may read."""
    rows = 0

    async def fetch(provider_id: str, position: str | None, limit: int) -> Page[T]:
        nonlocal rows
        page = await fetch_page(provider_id, position, limit)
        rows += len(page.items)
        if rows > context.limits.max_collected_rows:
            raise RequestLimitExceeded(
                f"A filtered list may read {context.limits.max_collected_rows} rows to find its"
                " own, and this page needs more; name fewer providers in filter.providerIds, or"
                " ask for a shorter page",
                limit="collected_rows",
            )
        return page

    return fetch


def _key_of(row: T, provider: Provider, kind: ListKind[T], selection: Selection[T]) -> SortKey:
    """Return a row's place in the order; rows without what is ordered by come last."""
    row_id = kind.id_of(row)
    if selection.order is None:
        return (*registration_key(provider), row_id)
    value = selection.order.value_of(row)
    is_last = (value is None) is not selection.descending
    return (is_last, "" if value is None else value, provider.id, row_id)


def everything(context: RequestContext, kind: ListKind[T], page: PageArguments) -> Collect[T]:
    """Collect everything of a kind that a provider has."""

    async def collect(provider: Provider) -> Collected[T]:
        kept = await context.loaders.whole_list(
            kind, provider.id, max_age_seconds=page.max_age_seconds
        )
        if kept is None:
            return Collected(rows=(), age=_Age(as_of=None))
        return Collected(rows=kept.value, age=_Age.of(kept))

    return collect


def users_by_id(context: RequestContext, keys: Sequence[ExternalKey]) -> Collect[User]:
    """Collect the users of these ids."""

    async def collect(provider: Provider) -> Collected[User]:
        found = await context.loaders.user_by_id.load_many(_keys_of(provider, keys))
        rows = [row for row in found if row is not None]
        return Collected(rows=rows, age=_age_of(context, provider, rows))

    return collect


def enrollments_under(
    context: RequestContext,
    rows_by_key: BatchLoader[ExternalKey, Sequence[Enrollment]],
    keys: Sequence[ExternalKey],
) -> Collect[Enrollment]:
    """Collect the enrollments a provider has under the keys."""

    async def collect(provider: Provider) -> Collected[Enrollment]:
        found = await rows_by_key.load_many(_keys_of(provider, keys))
        rows = [row for rows in found for row in rows or ()]
        return Collected(rows=rows, age=_age_of(context, provider, rows))

    return collect


def _own_users(context: RequestContext) -> Collect[User]:
    return users_by_id(context, [*context.subjects.items()])


def _own_enrollments(context: RequestContext) -> Collect[Enrollment]:
    own = [*context.subjects.items()]
    return enrollments_under(context, context.loaders.enrollments_by_user, own)


def _own_courses(context: RequestContext) -> Collect[Course]:
    """Collect the courses a learner is enrolled in."""
    places_of = _own_enrollments(context)

    async def collect(provider: Provider) -> Collected[Course]:
        places = await places_of(provider)
        keys = dict.fromkeys((row.provider_id, row.course_id) for row in places.rows)
        found = await context.loaders.course_by_id.load_many(keys)
        rows = [row for row in found if row is not None]
        return Collected(rows=rows, age=_age_of(context, provider, rows).and_also(places.age))

    return collect


_OWN: Final[Mapping[str, Callable[[RequestContext], Collect[Any]]]] = {
    USERS.name: _own_users,
    COURSES.name: _own_courses,
    ENROLLMENTS.name: _own_enrollments,
}


def _age_of(
    context: RequestContext, provider: Provider, rows: Sequence[User | Course | Enrollment]
) -> _Age:
    """Return the age of rows by what each says of itself."""
    if not any(row.provenance.stale for row in rows):
        return _Age(as_of=min((row.provenance.fetched_at for row in rows), default=None))
    return _Age(
        as_of=min(row.provenance.fetched_at for row in rows if row.provenance.stale),
        error=context.reading.problems.get(provider.id),
    )


def _keys_of(provider: Provider, keys: Iterable[ExternalKey]) -> list[ExternalKey]:
    return [key for key in dict.fromkeys(keys) if key[0] == provider.id]
