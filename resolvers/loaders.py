"""Batches: many single wishes of one request become one call per provider.

A field asks a loader for one key and gets a future. The loader waits until the event loop has
nothing more to add, groups the keys by provider and makes one call per group, each in a task of
its own, so that a slow or failing provider holds up and fails its own keys only. What was loaded
once is remembered for the request, failures included; nothing outlives it.
"""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import aclosing, suppress
from dataclasses import dataclass
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeAlias, TypeVar

import msgspec

from resolvers.caching import Answers, Kept, Kind, Resource
from resolvers.errors import Forbidden, RequestLimitExceeded
from resolvers.reading import Ask, Reading
from sessions.base import ListOrder, Page, Pair, ProviderSession
from sessions.errors import ProviderBadResponse, ProviderError
from sessions.sharing import until_done
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

MOST_AT_ONCE = 1000
"""Of how many rows something is made before others have their turn."""

_LEAST_TOGETHER = 50

K = TypeVar("K")
V = TypeVar("V")
V_co = TypeVar("V_co", covariant=True)

FetchGroup: TypeAlias = Callable[[str, Sequence[K]], Awaitable[Mapping[K, V | ProviderError]]]
"""Fetches the keys of one group, given its name; keys it does not find are left out.

A key that cannot be had, while others can, has the reason in the place of its value.
"""

AtHand: TypeAlias = Callable[[str, Sequence[K]], Mapping[K, V]]
"""Gives what is there at once of the keys of one group, given its name."""

Outcomes: TypeAlias = Sequence[V | BaseException | None]
"""What came of each of several things, in their order: a value, none, or the error it met."""

Soon: TypeAlias = V | Awaitable[V]
"""Something that is there, or is waited for."""

ListPage: TypeAlias = Callable[[ProviderSession, str | None, int], Coroutine[Any, Any, Page[V]]]
"""Asks a session for a page, given position and limit."""

ExternalKey: TypeAlias = tuple[str, str]
"""Provider id and external id."""

PairKey: TypeAlias = tuple[str, str, str]
"""Provider id and external ids of a user and of a course."""

ActivityKey: TypeAlias = tuple[str, str, int]
"""Provider id, a user's external id, and how many at most."""

_UserKey = TypeVar("_UserKey", ExternalKey, PairKey, ActivityKey)
"""A key whose second part is a user's external id."""

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


@dataclass(eq=False, slots=True)
class _Batch(Generic[K]):
    """Keys of one group on their way; ``done`` says that they have arrived, or never will."""

    keys: list[K]
    done: asyncio.Future[None]


class BatchLoader(Generic[K, V]):
    """Collects keys and fetches them together.

    Args:
        group_of: Names the group a key is fetched with; keys of different groups never share a
            call.
        fetch: Fetches the keys of one group. A key missing from its answer loads as ``None``;
            its error fails all keys of the call and no other.
        at_hand: Gives those of some keys of one group that need no waiting for; the others, with
            ``None``, and all without it, are fetched.
    """

    __slots__ = (
        "_at_hand",
        "_batches",
        "_fetch",
        "_forming",
        "_found",
        "_futures",
        "_group_of",
        "_tasks",
        "_wanted",
    )

    def __init__(
        self,
        *,
        group_of: Callable[[K], str],
        fetch: FetchGroup[K, V],
        at_hand: AtHand[K, V] | None = None,
    ) -> None:
        self._group_of = group_of
        self._fetch = fetch
        self._at_hand = at_hand
        self._found: dict[K, V | BaseException | None] = {}
        self._batches: dict[K, _Batch[K]] = {}
        self._forming: dict[str, _Batch[K]] = {}
        self._wanted = 0
        self._futures: dict[K, asyncio.Future[V | None]] = {}
        self._tasks: set[asyncio.Task[Mapping[K, V | ProviderError]]] = set()

    def load(self, key: K) -> asyncio.Future[V | None]:
        """Return the future value of one key; ``None`` where there is none.

        The same key gives the same future for as long as the loader lives. The future is
        shared: to wait with a time limit, shield it.
        """
        future = self._futures.get(key)
        if future is None:
            future = self._futures[key] = asyncio.get_running_loop().create_future()
            if key in self._found:
                _conclude(future, self._found[key])
            elif key not in self._batches:
                self._want([key])
            elif self._batches[key].done.cancelled():
                future.cancel()
        return future

    def prime(self, values: Mapping[K, V]) -> None:
        """Remember values that came along with something else, unless a key was asked for."""
        found, batches = self._found, self._batches
        if found or batches:
            asked = found.keys() | batches.keys()
            values = {key: value for key, value in values.items() if key not in asked}
        found.update(values)

    def cancel(self) -> None:
        """Give up the calls under way, for which nobody waits any more, and forget what was found.

        It is let go at once: the loaders of a request refer to each other, so that the garbage
        collector would have to find all that they hold.
        """
        for task in self._tasks:
            task.cancel()
        self._found.clear()
        batches = self._batches if self._tasks or self._forming else {}
        self._batches = {key: row for key, row in batches.items() if not row.done.done()}

    def load_each(self, keys: Iterable[K]) -> Soon[Outcomes[V]]:
        """Return what each of several keys comes to, in their order: now, if it can be had now."""
        keys = [*keys]
        found = self._found
        if found:
            with suppress(KeyError):
                return list(map(found.__getitem__, keys))
        if len(keys) > MOST_AT_ONCE:
            return self._arrived_in_turns(keys)
        missing = [*dict.fromkeys(keys)]
        if found:
            missing = [key for key in missing if key not in found]
        if missing and self._at_hand is not None:
            missing = self._without_those_at_hand(missing, self._at_hand)
        return self._arrived(keys, missing) if missing else [found[key] for key in keys]

    async def load_many(self, keys: Iterable[K]) -> list[V | None]:
        """Return the values of several keys in their order.

        Raises:
            ProviderError: A provider of one of the keys could not answer.
        """
        values: list[V | None] = []
        for outcome in await when_there(self.load_each(keys)):
            if isinstance(outcome, BaseException):
                raise outcome
            values.append(outcome)
        return values

    def _without_those_at_hand(self, keys: Sequence[K], at_hand: AtHand[K, V]) -> list[K]:
        """Remember what is at hand, and return the other keys."""
        found = self._found
        unasked = [key for key in keys if key not in self._batches] if self._batches else keys
        known = len(found)
        for group, some in self._by_group(unasked).items():
            found.update(at_hand(group, some))
        return [*keys] if len(found) == known else [key for key in keys if key not in found]

    def _by_group(self, keys: Sequence[K]) -> Mapping[str, Sequence[K]]:
        """Return keys by the group that they are fetched with; most often it is one for all."""
        groups = [*map(self._group_of, keys)]
        keys_by_group: dict[str, Sequence[K]] = dict.fromkeys(groups, keys)
        if len(keys_by_group) > 1:
            lists: dict[str, list[K]] = {group: [] for group in keys_by_group}
            for key, group in zip(keys, groups, strict=True):
                lists[group].append(key)
            keys_by_group = {**lists}
        return keys_by_group

    async def _arrived_in_turns(self, keys: Sequence[K]) -> Outcomes[V]:
        """Do the same for very many keys; others have their turn in between."""
        found = self._found
        for start in range(0, len(keys), MOST_AT_ONCE):
            some = dict.fromkeys(keys[start : start + MOST_AT_ONCE])
            missing = [key for key in some if key not in found]
            if missing and self._at_hand is not None:
                self._without_those_at_hand(missing, self._at_hand)
                await asyncio.sleep(0)
        with suppress(KeyError):
            return list(map(found.__getitem__, keys))
        return await self._arrived(keys, [key for key in dict.fromkeys(keys) if key not in found])

    async def _arrived(self, keys: Sequence[K], missing: Sequence[K]) -> Outcomes[V]:
        """Have missing keys fetched; return what all came to once they have arrived."""
        batches = self._want(missing)
        for batch in batches:
            await until_done(batch.done)
        if any(batch.done.cancelled() for batch in batches):
            raise asyncio.CancelledError
        return list(map(self._found.__getitem__, keys))

    def _want(self, keys: Sequence[K]) -> set[_Batch[K]]:
        """Have keys fetched, each with others of its group, unless they are on their way."""
        on_their_way = self._batches
        batches: set[_Batch[K]] = set()
        if on_their_way:
            batches.update(on_their_way[key] for key in keys if key in on_their_way)
            keys = [key for key in keys if key not in on_their_way]
        for group, some in self._by_group(keys).items():
            batch = self._forming_batch(group)
            batch.keys += some
            on_their_way.update(dict.fromkeys(some, batch))
            self._wanted += len(some)
            batches.add(batch)
        return batches

    def _forming_batch(self, group: str) -> _Batch[K]:
        batch = self._forming.get(group)
        if batch is None:
            loop = asyncio.get_running_loop()
            if not self._forming:
                loop.call_soon(self._dispatch_when_quiet, loop, 0, 0)
            batch = self._forming[group] = _Batch([], loop.create_future())
        return batch

    def _dispatch_when_quiet(self, loop: asyncio.AbstractEventLoop, seen: int, checks: int) -> None:
        """Start the calls once a whole turn of the event loop has added no key."""
        if self._wanted > seen and checks < _MAX_QUIET_CHECKS:
            loop.call_soon(self._dispatch_when_quiet, loop, self._wanted, checks + 1)
            return
        forming, self._forming, self._wanted = self._forming, {}, 0
        for group, batch in forming.items():
            self._start(loop, group, batch)

    def _start(self, loop: asyncio.AbstractEventLoop, group: str, batch: _Batch[K]) -> None:
        async def call() -> Mapping[K, V | ProviderError]:
            return await self._fetch(group, batch.keys)

        task = loop.create_task(call())
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._settle(done, batch))

    def _settle(self, task: asyncio.Task[Mapping[K, V | ProviderError]], batch: _Batch[K]) -> None:
        self._tasks.discard(task)
        asked = [key for key in batch.keys if key in self._futures] if self._futures else []
        if task.cancelled():
            batch.done.cancel()
            for key in asked:
                self._futures[key].cancel()
            return
        error = task.exception()
        if error is None:
            values = task.result()
            self._found.update(zip(batch.keys, map(values.get, batch.keys), strict=True))
        else:
            self._found.update(dict.fromkeys(batch.keys, error))
        batch.done.set_result(None)
        for key in asked:
            _conclude(self._futures[key], self._found[key])


class Shelf(Protocol[V_co]):
    """What is in memory of one kind of rows, and as fresh as the request needs it."""

    def at_hand(self, provider_id: str, keys: Sequence[ExternalKey]) -> Mapping[ExternalKey, V_co]:
        """Return those of some keys that are."""
        ...

    def together(self, provider_id: str, ids: tuple[str, ...]) -> Sequence[V_co] | None:
        """Return all of many in their order, if they were put together and are there."""
        ...

    async def put_together(self, provider_id: str, ids: tuple[str, ...]) -> None:
        """Have many that are there found by one look."""
        ...


class RowLoader(BatchLoader[ExternalKey, V]):
    """Loads what providers have under ids of their own.

    Args:
        fetch: As any loader's.
        shelf: What need not be fetched; ``None`` when everything is.
    """

    __slots__ = ("_primed", "_shelf", "_together")

    def __init__(self, *, fetch: FetchGroup[ExternalKey, V], shelf: Shelf[V] | None) -> None:
        super().__init__(
            group_of=_provider_of, fetch=fetch, at_hand=None if shelf is None else shelf.at_hand
        )
        self._shelf = shelf
        self._primed: list[tuple[Sequence[V], Callable[[V], ExternalKey]]] = []
        self._together: dict[str, tuple[tuple[str, ...], Sequence[V]]] = {}

    def load(self, key: ExternalKey) -> asyncio.Future[V | None]:
        """Return the future value of one key, as any loader does."""
        self._take_apart()
        return super().load(key)

    def load_each(self, keys: Iterable[ExternalKey]) -> Soon[Outcomes[V]]:
        """Return what each of several keys comes to, as any loader does."""
        self._take_apart()
        return super().load_each(keys)

    def load_of(self, provider_id: str, ids: Iterable[str]) -> Soon[Outcomes[V]]:
        """Return what each of one provider's ids comes to, in their order.

        It is as with ``load_each``, but where very many are wanted again and again in the same
        order, and are in memory, they are had by one look.
        """
        ids = tuple(ids)
        if self._shelf is None or len(ids) < _LEAST_TOGETHER:
            return self.load_each([(provider_id, key) for key in ids])
        known = self._together.get(provider_id)
        if known is not None and known[0] == ids:
            return known[1]
        if known is None and not (self._primed or self._found or self._batches):
            found = self._shelf.together(provider_id, ids)
            if found is not None:
                self._together[provider_id] = ids, found
                return found
        return self._put_together(self._shelf, provider_id, ids)

    def prime_later(self, rows: Sequence[V], own_key: Callable[[V], ExternalKey]) -> None:
        """Remember rows as ``prime`` does, once anything is asked for; often nothing is."""
        self._primed.append((rows, own_key))

    def cancel(self) -> None:
        """Give up what is under way, and forget what was found."""
        super().cancel()
        self._primed.clear()
        self._together.clear()

    def _take_apart(self) -> None:
        """Have each key known by itself."""
        if self._primed:
            primed, self._primed = self._primed, []
            for rows, own_key in primed:
                self.prime(dict(zip(map(own_key, rows), rows, strict=True)))
        if self._together:
            together, self._together = self._together, {}
            for provider_id, (ids, values) in together.items():
                keys = [(provider_id, key) for key in ids]
                self._found.update(zip(keys, values, strict=True))

    async def _put_together(
        self, shelf: Shelf[V], provider_id: str, ids: tuple[str, ...]
    ) -> Outcomes[V]:
        """Have many keys arrive; if all were in memory, the next request has them by one look."""
        under_way = len(self._batches)
        outcomes = await when_there(self.load_each([(provider_id, key) for key in ids]))
        if len(self._batches) == under_way:
            await shelf.put_together(provider_id, ids)
        return outcomes


def _conclude(future: asyncio.Future[Any], outcome: object) -> None:
    if future.done():
        return
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
        future.exception()  # read once: a branch that was given up is no warning
    else:
        future.set_result(outcome)


async def when_there(found: Soon[V]) -> V:
    """Return something, once it is there."""
    return await found if isinstance(found, Awaitable) else found


def after(found: Soon[V], convert: Callable[[V], K]) -> Soon[K]:
    """Return something converted, now or once it is there."""
    return _after(found, convert) if isinstance(found, Awaitable) else convert(found)


async def _after(found: Awaitable[V], convert: Callable[[V], K]) -> K:
    return convert(await found)


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


def _list_sorted_users(order: ListOrder) -> ListPage[User]:
    async def list_page(session: ProviderSession, position: str | None, limit: int) -> Page[User]:
        return await session.list_sorted_users(order, position=position, limit=limit)

    return list_page


def _list_sorted_courses(order: ListOrder) -> ListPage[Course]:
    async def list_page(session: ProviderSession, position: str | None, limit: int) -> Page[Course]:
        return await session.list_sorted_courses(order, position=position, limit=limit)

    return list_page


@dataclass(frozen=True, slots=True, kw_only=True)
class ListKind(Generic[V]):
    """What users, courses and enrollments have in common as lists.

    Attributes:
        name: ``users``, ``courses`` or ``enrollments``.
        list_page: Asks a session for a page of it.
        id_of: A row's id within its provider.
        list_sorted: Asks a session for a page of it in an order its platform declares; ``None``
            for a list that has no such orders.
        page: A page as it is kept.
        whole: All rows of a provider as they are kept.
    """

    name: str
    list_page: ListPage[V]
    id_of: Callable[[V], str]
    page: Kind[Page[V]]
    whole: Kind[Sequence[V]]
    list_sorted: Callable[[ListOrder], ListPage[V]] | None = None


USERS: Final[ListKind[User]] = ListKind(
    name="users",
    list_page=list_users,
    id_of=attrgetter("external_id"),
    page=Kind.of("users", Resource.USERS, Page[User]),
    whole=Kind.of("all_users", Resource.USERS, tuple[User, ...]),
    list_sorted=_list_sorted_users,
)
COURSES: Final[ListKind[Course]] = ListKind(
    name="courses",
    list_page=list_courses,
    id_of=attrgetter("external_id"),
    page=Kind.of("courses", Resource.COURSES, Page[Course]),
    whole=Kind.of("all_courses", Resource.COURSES, tuple[Course, ...]),
    list_sorted=_list_sorted_courses,
)
ENROLLMENTS: Final[ListKind[Enrollment]] = ListKind(
    name="enrollments",
    list_page=list_enrollments,
    id_of=attrgetter("id"),
    page=Kind.of("enrollments", Resource.ENROLLMENTS, Page[Enrollment]),
    whole=Kind.of("all_enrollments", Resource.ENROLLMENTS, tuple[Enrollment, ...]),
)

_USER: Final[Kind[User]] = Kind.of("user", Resource.USERS, User)
_COURSE: Final[Kind[Course]] = Kind.of("course", Resource.COURSES, Course)
_BY_USER: Final[Kind[Sequence[Enrollment]]] = Kind.of(
    "enrollments_of_user", Resource.ENROLLMENTS, tuple[Enrollment, ...]
)
_BY_COURSE: Final[Kind[Sequence[Enrollment]]] = Kind.of(
    "enrollments_of_course", Resource.ENROLLMENTS, tuple[Enrollment, ...]
)
_SECTIONS: Final[Kind[Sequence[Section]]] = Kind.of(
    "sections_by_course", Resource.COURSES, tuple[Section, ...]
)
_MILESTONES: Final[Kind[Sequence[Milestone]]] = Kind.of(
    "milestones_by_pair", Resource.ENROLLMENTS, tuple[Milestone, ...]
)
_PROGRESS: Final[Kind[Progress]] = Kind.of("progress_by_pair", Resource.ENROLLMENTS, Progress)
_ACTIVITY: Final[Kind[Sequence[Activity]]] = Kind.of(
    "activity_by_user", Resource.ENROLLMENTS, tuple[Activity, ...]
)


async def pages_of(
    fetch: Callable[[str | None], Coroutine[Any, Any, Page[V]]], provider_id: str
) -> AsyncGenerator[Page[V], None]:
    """Yield every page of one provider's list, the next one fetched while one is used.

    Args:
        fetch: Fetches the page at a position.
        provider_id: Whose list it is.

    Raises:
        ProviderError: The provider could not answer; the pages before it were good.
    """
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
        enrollments_by_user: Enrollments of a user by id; ``None`` for an unknown user.
        enrollments_by_course: Enrollments of a course by id; ``None`` for an unknown course.
        sections_by_course: Sections of a course; ``None`` for an unknown course.
        milestones_by_pair: What a user has handed in in a course; ``None`` for an unknown pair.
        progress_by_pair: What a call of its own tells of how far a user is in a course.
        activity_by_user: The latest things a user did; users asked for with different lengths
            share a call, which asks for the longest.

    Args:
        statuses: Where it is told how sessions stand.
        icons: Icon service, if there is one.
        reading: How the request reads providers.
        page_size_of: The page size that suits a provider best.
        max_collected_rows: How many rows whole lists may have together.
        own: External ids of the only users whose rows may be read, by provider id; ``None`` for
            anybody's. Rows of others, and courses these are not enrolled in, do not exist then.
    """

    def __init__(
        self,
        statuses: Statuses,
        icons: Icons | None,
        *,
        reading: Reading,
        page_size_of: Callable[[str], int],
        max_collected_rows: int,
        own: Mapping[str, str] | None = None,
    ) -> None:
        self._own = own
        self._statuses = statuses
        self._reading = reading
        self._page_size_of = page_size_of
        self._max_collected_rows = max_collected_rows
        self._collected_rows = 0
        self._beside: set[asyncio.Task[None]] = set()
        self._icons = icons
        self._iconic_courses: dict[ExternalKey, Course] = {}
        self.user_by_id: RowLoader[User] = RowLoader(
            fetch=self._fetch_users, shelf=self._shelf_of(_USER)
        )
        self.course_by_id: RowLoader[Course] = RowLoader(
            fetch=self._fetch_courses, shelf=self._shelf_of(_COURSE)
        )
        self.enrollments_by_user: RowLoader[Sequence[Enrollment]] = RowLoader(
            fetch=self._fetch_enrollments_by_user, shelf=self._shelf_of(_BY_USER)
        )
        self.enrollments_by_course: RowLoader[Sequence[Enrollment]] = RowLoader(
            fetch=self._fetch_enrollments_by_course, shelf=self._shelf_of(_BY_COURSE)
        )
        self.sections_by_course: RowLoader[Sequence[Section]] = RowLoader(
            fetch=self._fetch_sections_by_course, shelf=self._shelf_of(_SECTIONS)
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
        self._whole_lists: dict[object, BatchLoader[str, Kept[Sequence[Any]]]] = {}
        self._status_pages: dict[StatusFilter, BatchLoader[str, Sequence[SessionStatus]]] = {}
        self._icon_urls: BatchLoader[IconKey, str] = BatchLoader(
            group_of=_one_group,
            fetch=self._fetch_icon_urls,
            at_hand=self._icon_urls_at_hand,
        )
        self._icon_assets: BatchLoader[ExternalKey, Asset] = BatchLoader(
            group_of=_one_group, fetch=self._fetch_icon_assets
        )

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Have something done beside the request, until it ends; what it raises is lost."""
        task = asyncio.create_task(work)
        self._beside.add(task)
        task.add_done_callback(self._done_beside)

    def _done_beside(self, task: asyncio.Task[None]) -> None:
        self._beside.discard(task)
        if not task.cancelled():
            task.exception()  # read once

    def cancel(self) -> None:
        """Give up every call under way, at the end of the request."""
        for task in self._beside:
            task.cancel()
        loaders: list[BatchLoader[Any, Any]] = [
            self.user_by_id,
            self.course_by_id,
            self.enrollments_by_user,
            self.enrollments_by_course,
            self.sections_by_course,
            self.milestones_by_pair,
            self.progress_by_pair,
            self.activity_by_user,
            *self._whole_lists.values(),
            self._icon_urls,
            self._icon_assets,
            *self._status_pages.values(),
        ]
        for loader in loaders:
            loader.cancel()

    def session_statuses(self, wanted: StatusFilter) -> BatchLoader[str, Sequence[SessionStatus]]:
        """Return what loads how sessions with providers stand, by provider id."""
        loader = self._status_pages.get(wanted)
        if loader is None:
            loader = self._status_pages[wanted] = BatchLoader(
                group_of=_one_group, fetch=self._status_fetcher(wanted)
            )
        return loader

    def whole_list(
        self, kind: ListKind[V], provider_id: str, *, max_age_seconds: float | None = None
    ) -> asyncio.Future[Kept[Sequence[V]] | None]:
        """Return the future list of everything of a kind that a provider has, never ``None``."""
        loader = self._whole_lists.get((kind.name, max_age_seconds))
        if loader is None:
            loader = self._whole_lists[kind.name, max_age_seconds] = BatchLoader(
                group_of=_own_group, fetch=self._whole_list_fetcher(kind, max_age_seconds)
            )
        return loader.load(provider_id)

    def icon_urls(self, courses: Iterable[Course], width: int) -> Soon[Outcomes[str]]:
        """Return what each course's icon comes to: its address at about ``width`` pixels."""
        keys = map(self._iconic, courses)
        return self._icon_urls.load_each((*key, width) for key in keys)

    def icon_assets(self, courses: Iterable[Course]) -> Soon[Outcomes[Asset]]:
        """Return what each course's icon comes to: its description."""
        return self._icon_assets.load_each(map(self._iconic, courses))

    def _iconic(self, course: Course) -> ExternalKey:
        key = (course.provider_id, course.external_id)
        self._iconic_courses[key] = course
        return key

    async def _fetch_users(
        self, provider_id: str, keys: Sequence[ExternalKey]
    ) -> Mapping[ExternalKey, User | ProviderError]:
        return await self._fetched(provider_id, _USER, self._of_own(keys), _ask_users)

    async def _fetch_courses(
        self, provider_id: str, keys: Sequence[ExternalKey]
    ) -> Mapping[ExternalKey, Course | ProviderError]:
        attended = await self._attended(provider_id, keys)
        return await self._fetched(provider_id, _COURSE, attended, _ask_courses)

    async def _fetch_enrollments_by_user(
        self, provider_id: str, keys: Sequence[ExternalKey]
    ) -> Mapping[ExternalKey, Sequence[Enrollment] | ProviderError]:
        own = self._of_own(keys)
        return await self._fetched(provider_id, _BY_USER, own, _ask_enrollments_by_user)

    async def _fetch_enrollments_by_course(
        self, provider_id: str, keys: Sequence[ExternalKey]
    ) -> Mapping[ExternalKey, Sequence[Enrollment] | ProviderError]:
        if self._own is None:
            return await self._fetched(provider_id, _BY_COURSE, keys, _ask_enrollments_by_course)
        places = await self._own_places(provider_id)
        found = {key: [row for row in places if row.course_id == key[1]] for key in keys}
        return {key: rows for key, rows in found.items() if rows}

    async def _fetch_sections_by_course(
        self, provider_id: str, keys: Sequence[ExternalKey]
    ) -> Mapping[ExternalKey, Sequence[Section] | ProviderError]:
        attended = await self._attended(provider_id, keys)
        return await self._fetched(provider_id, _SECTIONS, attended, _ask_sections_by_course)

    def _of_own(self, keys: Sequence[_UserKey]) -> Sequence[_UserKey]:
        """Return the keys of users whose rows may be read."""
        if self._own is None:
            return keys
        return [key for key in keys if self._own.get(key[0]) == key[1]]

    async def _attended(
        self, provider_id: str, keys: Sequence[ExternalKey]
    ) -> Sequence[ExternalKey]:
        """Return the keys of courses that may be read: where only some users may, of theirs."""
        if self._own is None:
            return keys
        ids = {row.course_id for row in await self._own_places(provider_id)}
        return [key for key in keys if key[1] in ids]

    async def _own_places(self, provider_id: str) -> Sequence[Enrollment]:
        user_id = (self._own or {}).get(provider_id)
        if user_id is None:
            return ()
        rows = await self.enrollments_by_user.load((provider_id, user_id))
        return [row for row in rows or () if row.user_id == user_id]

    async def _fetched(
        self, provider_id: str, kind: Kind[V], keys: Sequence[ExternalKey], ask: Ask[V]
    ) -> Mapping[ExternalKey, V | ProviderError]:
        if not keys:
            return {}
        external_ids = [external_id for _provider_id, external_id in keys]
        found = await self._reading.answers(provider_id, kind, external_ids, ask)
        return {
            (provider_id, key): answer.value if type(answer) is Kept else answer  # type: ignore[misc]  # or an error
            for key, answer in found.items()
        }

    def _shelf_of(self, kind: Kind[V]) -> Shelf[V] | None:
        """Return what tells which answers of a kind are kept, and young enough.

        Whose rows a learner may see is found out on the way, so they wait for everything.
        """
        return None if self._own is not None else _Kept(self._reading, kind)

    async def _fetch_milestones(
        self, provider_id: str, keys: Sequence[PairKey]
    ) -> Mapping[PairKey, Sequence[Milestone] | ProviderError]:
        return await self._fetched_pairs(
            provider_id, _MILESTONES, keys, lambda session, pairs: session.fetch_milestones(pairs)
        )

    async def _fetch_progress(
        self, provider_id: str, keys: Sequence[PairKey]
    ) -> Mapping[PairKey, Progress | ProviderError]:
        return await self._fetched_pairs(
            provider_id, _PROGRESS, keys, lambda session, pairs: session.fetch_progress(pairs)
        )

    async def _fetched_pairs(
        self,
        provider_id: str,
        kind: Kind[V],
        keys: Sequence[PairKey],
        ask: Callable[[ProviderSession, Sequence[Pair]], Awaitable[Mapping[Pair, V]]],
    ) -> Mapping[PairKey, V | ProviderError]:
        key_by_text = {_text_of(key[1:]): key for key in self._of_own(keys)}
        if not key_by_text:
            return {}

        async def ask_pairs(session: ProviderSession, texts: Sequence[str]) -> Mapping[str, V]:
            found = await ask(session, [key_by_text[text][1:] for text in texts])
            return {_text_of(pair): value for pair, value in found.items()}

        answers = await self._reading.answers(provider_id, kind, [*key_by_text], ask_pairs)
        return {key_by_text[text]: value for text, value in _values(answers).items()}

    async def _fetch_activity_by_user(
        self, provider_id: str, keys: Sequence[ActivityKey]
    ) -> Mapping[ActivityKey, Sequence[Activity] | ProviderError]:
        keys = self._of_own(keys)
        if not keys:
            return {}
        limit = max(first for _provider_id, _user_id, first in keys)

        async def ask(
            session: ProviderSession, texts: Sequence[str]
        ) -> Mapping[str, Sequence[Activity]]:
            user_ids = [text.partition(":")[2] for text in texts]
            found = await session.fetch_activity_by_user(user_ids, limit=limit)
            return {f"{limit}:{user_id}": rows for user_id, rows in found.items()}

        texts = dict.fromkeys(f"{limit}:{user_id}" for _provider_id, user_id, _first in keys)
        answers = await self._reading.answers(provider_id, _ACTIVITY, [*texts], ask)
        found = {text.partition(":")[2]: value for text, value in _values(answers).items()}
        return {
            key: rows if isinstance(rows, ProviderError) else rows[: key[2]]
            for key in keys
            if (rows := found.get(key[1])) is not None
        }

    def _whole_list_fetcher(
        self, kind: ListKind[V], max_age_seconds: float | None
    ) -> FetchGroup[str, Kept[Sequence[V]]]:
        if self._own is not None:
            raise Forbidden("Whole lists are not for learners")

        async def ask(session: ProviderSession) -> Sequence[V]:
            rows: list[V] = []
            provider_id = session.provider.id
            limit = self._page_size_of(provider_id)
            pages = pages_of(lambda position: kind.list_page(session, position, limit), provider_id)
            async with aclosing(pages):
                async for page in pages:
                    rows.extend(page.items)
                    self._check_collected(len(rows))
            return rows

        async def fetch(
            provider_id: str, _keys: Sequence[str]
        ) -> Mapping[str, Kept[Sequence[V]] | ProviderError]:
            kept = await self._reading.answer(
                provider_id, kind.whole, "", ask, max_age_seconds=max_age_seconds
            )
            self._collected_rows += len(kept.value)
            self._check_collected(0)
            return {provider_id: kept}

        return fetch

    def _check_collected(self, more: int) -> None:
        if self._collected_rows + more > self._max_collected_rows:
            raise RequestLimitExceeded(
                f"A filtered or ordered list may read {self._max_collected_rows} rows, and this"
                " one needs more; name fewer providers in filter.providerIds, or ask without"
                " filter and orderBy",
                limit="collected_rows",
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
        self._reading.basis.is_whole = False  # what is found out now may be another soon
        if self._icons is None:
            return {}
        urls = await self._icons.urls(self._icons_wanted(keys))
        return {key: url for key, url in zip(keys, urls, strict=True) if url is not None}

    def _icon_urls_at_hand(self, _group: str, keys: Sequence[IconKey]) -> Mapping[IconKey, Any]:
        urls = None
        if self._icons is not None:
            urls = self._icons.urls_at_hand(self._icons_wanted(keys))
        return {} if urls is None else dict(zip(keys, urls, strict=True))

    def _icons_wanted(self, keys: Sequence[IconKey]) -> Sequence[tuple[Course, int]]:
        return [(self._iconic_courses[key[0], key[1]], key[2]) for key in keys]

    async def _fetch_icon_assets(
        self, _group: str, keys: Sequence[ExternalKey]
    ) -> Mapping[ExternalKey, Asset]:
        self._reading.basis.is_whole = False  # what is found out now may be another soon
        if self._icons is None:
            return {}
        assets = await self._icons.assets([self._iconic_courses[key] for key in keys])
        return {key: asset for key, asset in zip(keys, assets, strict=True) if asset is not None}


class _Kept(Generic[V]):
    """The answers of one kind that are kept, and young enough for one request."""

    __slots__ = ("_kind", "_reading")

    def __init__(self, reading: Reading, kind: Kind[V]) -> None:
        self._reading = reading
        self._kind = kind

    def at_hand(self, provider_id: str, keys: Sequence[ExternalKey]) -> Mapping[ExternalKey, V]:
        external_ids = [external_id for _provider_id, external_id in keys]
        found = self._reading.kept(provider_id, self._kind, external_ids)
        return {(provider_id, key): answer.value for key, answer in found.items()}

    def together(self, provider_id: str, ids: tuple[str, ...]) -> Sequence[V] | None:
        return self._reading.kept_together(provider_id, self._kind, ids)

    async def put_together(self, provider_id: str, ids: tuple[str, ...]) -> None:
        await self._reading.put_together(provider_id, self._kind, ids)


_provider_of: Callable[[ExternalKey | PairKey | ActivityKey], str] = itemgetter(0)


def _own_group(key: str) -> str:
    return key


_row_id: Callable[[Enrollment], str] = attrgetter("id")


def _one_group(_key: object) -> str:
    return ""


def _values(answers: Answers[V]) -> dict[str, V | ProviderError]:
    return {
        key: answer.value if type(answer) is Kept else answer  # type: ignore[misc]  # or an error
        for key, answer in answers.items()
    }


def _text_of(pair: Pair) -> str:
    return msgspec.json.encode(pair).decode()


async def _ask_users(session: ProviderSession, ids: Sequence[str]) -> Mapping[str, User]:
    return await session.fetch_users(ids)


async def _ask_courses(session: ProviderSession, ids: Sequence[str]) -> Mapping[str, Course]:
    return await session.fetch_courses(ids)


async def _ask_enrollments_by_user(
    session: ProviderSession, ids: Sequence[str]
) -> Mapping[str, Sequence[Enrollment]]:
    return _in_order(await session.fetch_enrollments_by_user(ids))


async def _ask_enrollments_by_course(
    session: ProviderSession, ids: Sequence[str]
) -> Mapping[str, Sequence[Enrollment]]:
    return _in_order(await session.fetch_enrollments_by_course(ids))


def _in_order(found: Mapping[str, Sequence[Enrollment]]) -> Mapping[str, Sequence[Enrollment]]:
    """Return rows as they are kept and given: by id, each once, so that pages need only cut."""
    return {
        key: sorted({row.id: row for row in rows}.values(), key=_row_id)
        for key, rows in found.items()
    }


async def _ask_sections_by_course(
    session: ProviderSession, ids: Sequence[str]
) -> Mapping[str, Sequence[Section]]:
    return await session.fetch_sections_by_course(ids)
