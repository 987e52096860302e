"""Batches: many single wishes of one request become one call per provider.

A field asks a loader for one key and gets a future. The loader waits until the event loop has
nothing more to add, groups the keys by provider and makes one call per group, each in a task of
its own, so that a slow or failing provider holds up and fails its own keys only. What was loaded
once is remembered for the request, failures included; nothing outlives it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from resolvers.errors import RequestLimitExceeded
from resolvers.paging import Connection
from sessions.base import Page, Pair, ProviderSession
from sessions.errors import ProviderBadResponse
from storage.leases import SessionStatus
from storage.records import (
    Activity,
    Course,
    Enrollment,
    Milestone,
    Progress,
    Section,
    SessionState,
    User,
)

if TYPE_CHECKING:
    from resolvers.context import Asset, Icons, Statuses

_MAX_QUIET_CHECKS = 20

K = TypeVar("K")
V = TypeVar("V")

FetchGroup: TypeAlias = Callable[[str, Sequence[K]], Awaitable[Mapping[K, V]]]
"""Fetches the keys of one group, given its name; keys it does not find are left out."""

ListPage: TypeAlias = Callable[[ProviderSession, str | None, int], Awaitable[Page[V]]]
"""Asks a session for a page, given position and limit."""

Lend: TypeAlias = Callable[[str], AbstractAsyncContextManager[ProviderSession]]
"""Lends the session a request reads a provider with, given the provider's id."""

ExternalKey: TypeAlias = tuple[str, str]
"""Provider id and external id."""

PairKey: TypeAlias = tuple[str, str, str]
"""Provider id and external ids of a user and of a course."""

ActivityKey: TypeAlias = tuple[str, str, int]
"""Provider id, a user's external id, and how many at most."""

IconKey: TypeAlias = tuple[str, str, int]
"""Provider id, the course's external id, and width in pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusFilter:
    """Which sessions with a provider are meant, and how many of them at most.

    Attributes:
        states: Any of them; ``None`` for all.
        subject: On whose behalf, as text; ``None`` for anybody's.
    """

    states: tuple[SessionState, ...] | None = None
    subject: str | None = None
    first: int


class BatchLoader(Generic[K, V]):
    """Collects keys and fetches them together.

    Args:
        group_of: Names the group a key is fetched with; keys of different groups never share a
            call.
        fetch: Fetches the keys of one group. A key missing from its answer loads as ``None``;
            its error fails all keys of the call and no other.
    """

    def __init__(
        self,
        *,
        group_of: Callable[[K], str],
        fetch: FetchGroup[K, V],
    ) -> None:
        self._group_of = group_of
        self._fetch = fetch
        self._futures: dict[K, asyncio.Future[V | None]] = {}
        self._wanted: list[K] = []
        self._tasks: set[asyncio.Task[Mapping[K, V]]] = set()

    def load(self, key: K) -> asyncio.Future[V | None]:
        """Return the future value of one key; ``None`` where there is none.

        The same key gives the same future for as long as the loader lives. The future is
        shared: to wait with a time limit, shield it.
        """
        future = self._futures.get(key)
        if future is None:
            loop = asyncio.get_running_loop()
            future = self._futures[key] = loop.create_future()
            if not self._wanted:
                loop.call_soon(self._dispatch_when_quiet, loop, 0, 0)
            self._wanted.append(key)
        return future

    def prime(self, key: K, value: V) -> None:
        """Remember a value that came along with something else, unless the key was asked for."""
        if key not in self._futures:
            future: asyncio.Future[V | None] = asyncio.get_running_loop().create_future()
            future.set_result(value)
            self._futures[key] = future

    def cancel(self) -> None:
        """Give up the calls under way; nobody waits for them any more."""
        for task in self._tasks:
            task.cancel()

    async def load_many(self, keys: Iterable[K]) -> list[V | None]:
        """Return the values of several keys in their order.

        Raises:
            ProviderError: A provider of one of the keys could not answer.
        """
        return await asyncio.gather(*map(self.load, keys))

    def _dispatch_when_quiet(self, loop: asyncio.AbstractEventLoop, seen: int, checks: int) -> None:
        """Start the calls once a whole turn of the event loop has added no key."""
        if len(self._wanted) > seen and checks < _MAX_QUIET_CHECKS:
            loop.call_soon(self._dispatch_when_quiet, loop, len(self._wanted), checks + 1)
            return
        keys_by_group: dict[str, list[K]] = {}
        for key in self._wanted:
            keys_by_group.setdefault(self._group_of(key), []).append(key)
        self._wanted = []
        for group, keys in keys_by_group.items():
            self._start(loop, group, keys)

    def _start(self, loop: asyncio.AbstractEventLoop, group: str, keys: list[K]) -> None:
        async def call() -> Mapping[K, V]:
            return await self._fetch(group, keys)

        task = loop.create_task(call())
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._settle(done, keys))

    def _settle(self, task: asyncio.Task[Mapping[K, V]], keys: list[K]) -> None:
        self._tasks.discard(task)
        futures = [future for key in keys if not (future := self._futures[key]).done()]
        if task.cancelled():
            for future in futures:
                future.cancel()
            return
        error = task.exception()
        if error is not None:
            for future in futures:
                future.set_exception(error)
                future.exception()  # read once: a branch that was given up is no warning
            return
        values = task.result()
        for key in keys:
            if not self._futures[key].done():
                self._futures[key].set_result(values.get(key))


async def list_users(session: ProviderSession, position: str | None, limit: int) -> Page[User]:
    """Ask a session for a page of users."""
    return await session.list_users(position=position, limit=limit)


async def list_courses(session: ProviderSession, position: str | None, limit: int) -> Page[Course]:
    """Ask a session for a page of courses."""
    return await session.list_courses(position=position, limit=limit)


async def list_enrollments(
    session: ProviderSession, position: str | None, limit: int
) -> Page[Enrollment]:
    """Ask a session for a page of enrollments."""
    return await session.list_enrollments(position=position, limit=limit)


async def pages_of(
    lend: Lend, provider_id: str, list_page: ListPage[V], *, limit: int
) -> AsyncGenerator[Page[V], None]:
    """Yield every page of one provider's list, the next one fetched while one is used.

    Raises:
        ProviderError: The provider could not answer; the pages before it were good.
    """

    async def fetch(position: str | None) -> Page[V]:
        async with lend(provider_id) as session:
            return await list_page(session, position, limit)

    page = await fetch(None)
    position: str | None = None
    while page.next_position is not None:
        if page.next_position == position:
            raise ProviderBadResponse(
                "The provider's list does not advance from page to page", provider_id=provider_id
            )
        position = page.next_position
        following = asyncio.create_task(fetch(position))
        try:
            yield page
            page = await following
        finally:
            following.cancel()
            await asyncio.wait({following})
            if not following.cancelled():
                following.exception()  # read once: the error was raised, or nobody wants it
    yield page


class Loaders:
    """The batches of one request.

    A request reads each provider as one subject, so that keys need not say whose answer is meant;
    a loader must never be shared by two requests.

    Attributes:
        user_by_id: User of a provider's external id.
        course_by_id: Course of a provider's external id.
        enrollments_by_user: Enrollments of a user; ``None`` for an unknown user.
        enrollments_by_course: Enrollments of a course; ``None`` for an unknown course.
        sections_by_course: Sections of a course; ``None`` for an unknown course.
        milestones_by_pair: What a user has handed in in a course; ``None`` for an unknown pair.
        progress_by_pair: What a call of its own tells of how far a user is in a course.
        activity_by_user: The latest things a user did; users asked for with different lengths
            share a call, which asks for the longest.
        all_users: Every user of a provider.
        all_courses: Every course of a provider.
        all_enrollments: Every enrollment of a provider.
        enrollment_pages: Pages of enrollments, a batch for each set of arguments.

    Args:
        lend: Where sessions are borrowed, each of the subject this request acts for.
        statuses: Where it is told how sessions stand.
        icons: Icon service, if there is one.
        page_size_of: The page size that suits a provider best.
        max_collected_rows: How many rows ``all_...`` may read together.
    """

    def __init__(
        self,
        lend: Lend,
        statuses: Statuses,
        icons: Icons | None,
        *,
        page_size_of: Callable[[str], int],
        max_collected_rows: int,
    ) -> None:
        self._lend = lend
        self._statuses = statuses
        self._page_size_of = page_size_of
        self._max_collected_rows = max_collected_rows
        self._collected_rows = 0
        self._icons = icons
        self._iconic_courses: dict[ExternalKey, Course] = {}
        self.user_by_id: BatchLoader[ExternalKey, User] = BatchLoader(
            group_of=_provider_of, fetch=self._fetch_users
        )
        self.course_by_id: BatchLoader[ExternalKey, Course] = BatchLoader(
            group_of=_provider_of, fetch=self._fetch_courses
        )
        self.enrollments_by_user: BatchLoader[ExternalKey, Sequence[Enrollment]] = BatchLoader(
            group_of=_provider_of, fetch=self._fetch_enrollments_by_user
        )
        self.enrollments_by_course: BatchLoader[ExternalKey, Sequence[Enrollment]] = BatchLoader(
            group_of=_provider_of, fetch=self._fetch_enrollments_by_course
        )
        self.sections_by_course: BatchLoader[ExternalKey, Sequence[Section]] = BatchLoader(
            group_of=_provider_of, fetch=self._fetch_sections_by_course
        )
        self.milestones_by_pair: BatchLoader[PairKey, Sequence[Milestone]] = BatchLoader(
            group_of=_provider_of, fetch=self._fetch_milestones
        )
        self.progress_by_pair: BatchLoader[PairKey, Progress] = BatchLoader(
            group_of=_provider_of, fetch=self._fetch_progress
        )
        self.activity_by_user: BatchLoader[ActivityKey, Sequence[Activity]] = BatchLoader(
            group_of=_provider_of, fetch=self._fetch_activity_by_user
        )
        self.all_users: BatchLoader[str, Sequence[User]] = BatchLoader(
            group_of=_own_group, fetch=self._all_of(list_users)
        )
        self.all_courses: BatchLoader[str, Sequence[Course]] = BatchLoader(
            group_of=_own_group, fetch=self._all_of(list_courses)
        )
        self.all_enrollments: BatchLoader[str, Sequence[Enrollment]] = BatchLoader(
            group_of=_own_group, fetch=self._all_of(list_enrollments)
        )
        self.enrollment_pages: dict[object, BatchLoader[ExternalKey, Connection[Enrollment]]] = {}
        self._status_pages: dict[StatusFilter, BatchLoader[str, Sequence[SessionStatus]]] = {}
        self._icon_urls: BatchLoader[IconKey, str] = BatchLoader(
            group_of=_one_group, fetch=self._fetch_icon_urls
        )
        self._icon_assets: BatchLoader[ExternalKey, Asset] = BatchLoader(
            group_of=_one_group, fetch=self._fetch_icon_assets
        )

    def cancel(self) -> None:
        """Give up every call under way, at the end of the request."""
        loaders: list[BatchLoader[Any, Any]] = [
            self.user_by_id,
            self.course_by_id,
            self.enrollments_by_user,
            self.enrollments_by_course,
            self.sections_by_course,
            self.milestones_by_pair,
            self.progress_by_pair,
            self.activity_by_user,
            self.all_users,
            self.all_courses,
            self.all_enrollments,
            self._icon_urls,
            self._icon_assets,
            *self.enrollment_pages.values(),
            *self._status_pages.values(),
        ]
        for loader in loaders:
            loader.cancel()

    def session_statuses(
        self, provider_id: str, wanted: StatusFilter
    ) -> asyncio.Future[Sequence[SessionStatus] | None]:
        """Return the future list of how sessions with a provider stand, by subject."""
        loader = self._status_pages.get(wanted)
        if loader is None:
            loader = self._status_pages[wanted] = BatchLoader(
                group_of=_one_group, fetch=self._status_fetcher(wanted)
            )
        return loader.load(provider_id)

    def icon_url(self, course: Course, width: int) -> asyncio.Future[str | None]:
        """Return the future address of the course's icon at about ``width`` pixels."""
        self._iconic_courses[course.provider_id, course.external_id] = course
        return self._icon_urls.load((course.provider_id, course.external_id, width))

    def icon_asset(self, course: Course) -> asyncio.Future[Asset | None]:
        """Return the future description of the course's icon."""
        key = (course.provider_id, course.external_id)
        self._iconic_courses[key] = course
        return self._icon_assets.load(key)

    async def _fetch_users(
        self, provider_id: str, keys: Sequence[ExternalKey]
    ) -> Mapping[ExternalKey, User]:
        async with self._lend(provider_id) as session:
            found = await session.fetch_users(_external_ids(keys))
        return _keyed(provider_id, found)

    async def _fetch_courses(
        self, provider_id: str, keys: Sequence[ExternalKey]
    ) -> Mapping[ExternalKey, Course]:
        async with self._lend(provider_id) as session:
            found = await session.fetch_courses(_external_ids(keys))
        return _keyed(provider_id, found)

    async def _fetch_enrollments_by_user(
        self, provider_id: str, keys: Sequence[ExternalKey]
    ) -> Mapping[ExternalKey, Sequence[Enrollment]]:
        async with self._lend(provider_id) as session:
            found = await session.fetch_enrollments_by_user(_external_ids(keys))
        return _keyed(provider_id, found)

    async def _fetch_enrollments_by_course(
        self, provider_id: str, keys: Sequence[ExternalKey]
    ) -> Mapping[ExternalKey, Sequence[Enrollment]]:
        async with self._lend(provider_id) as session:
            found = await session.fetch_enrollments_by_course(_external_ids(keys))
        return _keyed(provider_id, found)

    async def _fetch_sections_by_course(
        self, provider_id: str, keys: Sequence[ExternalKey]
    ) -> Mapping[ExternalKey, Sequence[Section]]:
        async with self._lend(provider_id) as session:
            found = await session.fetch_sections_by_course(_external_ids(keys))
        return _keyed(provider_id, found)

    async def _fetch_milestones(
        self, provider_id: str, keys: Sequence[PairKey]
    ) -> Mapping[PairKey, Sequence[Milestone]]:
        async with self._lend(provider_id) as session:
            found = await session.fetch_milestones(_pairs(keys))
        return _keyed_pairs(provider_id, found)

    async def _fetch_progress(
        self, provider_id: str, keys: Sequence[PairKey]
    ) -> Mapping[PairKey, Progress]:
        async with self._lend(provider_id) as session:
            found = await session.fetch_progress(_pairs(keys))
        return _keyed_pairs(provider_id, found)

    async def _fetch_activity_by_user(
        self, provider_id: str, keys: Sequence[ActivityKey]
    ) -> Mapping[ActivityKey, Sequence[Activity]]:
        user_ids = list(dict.fromkeys(user_id for _provider_id, user_id, _first in keys))
        limit = max(first for _provider_id, _user_id, first in keys)
        async with self._lend(provider_id) as session:
            found = await session.fetch_activity_by_user(user_ids, limit=limit)
        return {key: found[key[1]][: key[2]] for key in keys if key[1] in found}

    def _all_of(self, list_page: ListPage[V]) -> FetchGroup[str, Sequence[V]]:
        async def fetch(provider_id: str, _keys: Sequence[str]) -> Mapping[str, Sequence[V]]:
            rows: list[V] = []
            limit = self._page_size_of(provider_id)
            async with aclosing(pages_of(self._lend, provider_id, list_page, limit=limit)) as pages:
                async for page in pages:
                    self._count_collected(len(page.items))
                    rows.extend(page.items)
            return {provider_id: rows}

        return fetch

    def _count_collected(self, rows: int) -> None:
        self._collected_rows += rows
        if self._collected_rows > self._max_collected_rows:
            raise RequestLimitExceeded(
                f"A filtered or ordered list may read {self._max_collected_rows} rows, and this"
                " one needs more; name fewer providers in filter.providerIds, or ask without"
                " filter and orderBy"
            )

    def _status_fetcher(self, wanted: StatusFilter) -> FetchGroup[str, Sequence[SessionStatus]]:
        async def fetch(
            _group: str, provider_ids: Sequence[str]
        ) -> Mapping[str, Sequence[SessionStatus]]:
            found: dict[str, list[SessionStatus]] = {key: [] for key in provider_ids}
            for status in await self._statuses.list_statuses(
                provider_ids=provider_ids,
                states=wanted.states,
                subject=wanted.subject,
                limit=wanted.first,
            ):
                found[status.provider_id].append(status)
            return found

        return fetch

    # Icons are shared by all subjects and fetched by the service: only who was given a course, and
    # with it the icon's address, can ask for its icon.

    async def _fetch_icon_urls(self, _group: str, keys: Sequence[IconKey]) -> Mapping[IconKey, str]:
        if self._icons is None:
            return {}
        wanted = [(self._iconic_courses[key[0], key[1]], key[2]) for key in keys]
        urls = await self._icons.urls(wanted)
        return {key: url for key, url in zip(keys, urls, strict=True) if url is not None}

    async def _fetch_icon_assets(
        self, _group: str, keys: Sequence[ExternalKey]
    ) -> Mapping[ExternalKey, Asset]:
        if self._icons is None:
            return {}
        assets = await self._icons.assets([self._iconic_courses[key] for key in keys])
        return {key: asset for key, asset in zip(keys, assets, strict=True) if asset is not None}


def _provider_of(key: ExternalKey | PairKey | ActivityKey) -> str:
    return key[0]


def _own_group(key: str) -> str:
    return key


def _one_group(_key: object) -> str:
    return ""


def _external_ids(keys: Sequence[ExternalKey]) -> list[str]:
    return [external_id for _provider_id, external_id in keys]


def _keyed(provider_id: str, found: Mapping[str, V]) -> dict[ExternalKey, V]:
    return {(provider_id, external_id): value for external_id, value in found.items()}


def _pairs(keys: Sequence[PairKey]) -> list[Pair]:
    return [(user_id, course_id) for _provider_id, user_id, course_id in keys]


def _keyed_pairs(provider_id: str, found: Mapping[Pair, V]) -> dict[PairKey, V]:
    return {(provider_id, *pair): value for pair, value in found.items()}
