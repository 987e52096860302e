"""How one request reads providers: as its subject, as fresh as it asks, through the one cache."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias, TypeVar

from resolvers.caching import Answers, Basis, Fetch, Kept, Kind, Place, RecordCache, Resource, Wish
from sessions.base import MAX_AGE, ProviderSession
from sessions.errors import ProviderError
from sessions.http import seconds_to_deadline
from storage.records import DataSource, Provider

V = TypeVar("V")

Lend: TypeAlias = Callable[[str], AbstractAsyncContextManager[ProviderSession]]
"""Lends the session a request reads a provider with, given the provider's id."""

Ask: TypeAlias = Callable[[ProviderSession, Sequence[str]], Awaitable[Mapping[str, V]]]
"""Asks a session for the answers of some keys; what the provider does not have is left out."""

_AGE: Final = re.compile(r"[0-9]{1,9}")


def parse_max_age(text: str) -> Mapping[Resource, float]:
    """Read a provider's option ``max_age``: ``60``, or ``users=60,courses=600``; seconds.

    Raises:
        ValueError: It is of another form; says of which it should be.
    """
    ages: dict[Resource, float] = {}
    for part in text.split(","):
        name, equals, age = part.strip().rpartition("=")
        if not _AGE.fullmatch(age) or (equals and name not in [*Resource]):
            raise ValueError("seconds such as 60, or users=60,courses=600,enrollments=0 are needed")
        for resource in [Resource(name)] if equals else Resource:
            ages[resource] = float(age)
    return ages


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingTerms:
    """How fresh answers are unless a request says otherwise, and how long they are waited for.

    Attributes:
        max_age_seconds: How old a kept answer may be that is served as it is; a provider's option
            ``max_age`` goes before.
        provider_seconds: How long one request waits for one provider, over all it reads there;
            while it waits for others only, this provider's time does not run.
    """

    max_age_seconds: float = 0
    provider_seconds: float = 30


@dataclass(slots=True)
class _Wait:
    """How long a request has waited for one provider; several reads at once count once."""

    seconds: float = 0.0
    reads: int = 0
    since: float = 0.0

    def so_far(self) -> float:
        return self.seconds + (_now() - self.since if self.reads else 0.0)

    def __enter__(self) -> None:
        """Begin a read; made by hand because it is on the path of every one."""
        if not self.reads:
            self.since = _now()
        self.reads += 1

    def __exit__(self, *_error: object) -> None:
        self.reads -= 1
        if not self.reads:
            self.seconds += _now() - self.since


class Reading:
    """The reads of one request.

    Args:
        lend: Where sessions are borrowed, each of the subject this request acts for.
        cache: What is kept; ``None`` to read everything live.
        terms: Of age and patience.
        find: Finds a provider already read for this request.
        subject_of: Whom the request acts for at a provider, as text.

    Attributes:
        max_age_seconds: The strictest wish of the request so far, for what hangs on its lists.
        problems: Why providers last gave old answers only, by provider id.
        basis: What was read so far, as long as it was all in memory.
    """

    def __init__(
        self,
        lend: Lend,
        cache: RecordCache | None,
        *,
        terms: ReadingTerms,
        find: Callable[[str], Provider | None],
        subject_of: Callable[[str], str],
    ) -> None:
        self.max_age_seconds: float | None = None
        self.problems: dict[str, ProviderError] = {}
        self.basis = Basis()
        self._lend = lend
        self._cache = cache
        self._terms = terms
        self._find = find
        self._subject_of = subject_of
        self._began_at = time.time() if cache is None else cache.clock()
        self._waits: dict[str, _Wait] = {}
        self._places: dict[str, tuple[Provider, Place]] = {}

    def give_up(self) -> None:
        """Let go of what was read: nobody asks any more what it was."""
        self.basis = Basis()
        self.basis.is_whole = False

    def note_max_age(self, seconds: float | None) -> None:
        """Take note of how fresh a list is wished: what hangs on it is to be as fresh."""
        if seconds is not None:
            known = self.max_age_seconds
            self.max_age_seconds = seconds if known is None else min(known, seconds)

    async def answers(
        self,
        provider_id: str,
        kind: Kind[V],
        keys: Sequence[str],
        ask: Ask[V],
        *,
        max_age_seconds: float | None = None,
    ) -> Answers[V]:
        """Return a provider's answers by key, and for those that cannot be had the reason.

        Args:
            provider_id: Whom to ask.
            kind: Of what kind they are.
            keys: Which, each once.
            ask: Asks a session for some of them.
            max_age_seconds: How old they may be; ``None`` as the request has it.

        Raises:
            RequestRefused: ``ask`` refused.
            ProviderError: Whom the request acts for has no place at the provider.
        """
        fetch = self._fetcher(provider_id, ask)
        provider = self._find(provider_id)
        if self._cache is None or provider is None:
            self.basis.is_whole = False
            return _live(await fetch(keys), read_at=datetime.now(UTC))
        wish = self._wish(provider, kind, max_age_seconds)
        with self._wait(provider_id):
            found = await self._cache.read(
                self._place(provider), kind, keys, wish=wish, fetch=fetch, basis=self.basis
            )
        for answer in found.values():
            if type(answer) is Kept and answer.error is not None:
                self.problems[provider_id] = answer.error
        return found

    def kept(self, provider_id: str, kind: Kind[V], keys: Sequence[str]) -> Mapping[str, Kept[V]]:
        """Return those of a provider's answers that are in memory and as fresh as they must be."""
        found = self._found(provider_id)
        if self._cache is None or found is None:
            return {}
        provider, place = found
        wish = self._wish(provider, kind, None)
        return self._cache.at_hand(place, kind, keys, wish=wish, basis=self.basis)

    def kept_together(
        self, provider_id: str, kind: Kind[V], keys: tuple[str, ...]
    ) -> Sequence[V] | None:
        """Return the same of many keys in their order, if they were put together and all stand."""
        found = self._found(provider_id)
        if self._cache is None or found is None:
            return None
        provider, place = found
        wish = self._wish(provider, kind, None)
        return self._cache.together(place, kind, keys, wish=wish, basis=self.basis)

    async def put_together(self, provider_id: str, kind: Kind[V], keys: tuple[str, ...]) -> None:
        """Have answers that were all in memory found sooner when they are wanted again."""
        found = self._found(provider_id)
        assert self._cache is not None  # noqa: S101 - they were found in it
        assert found is not None  # noqa: S101 - the same
        await self._cache.put_together(found[1], kind, keys)

    async def answer(
        self,
        provider_id: str,
        kind: Kind[V],
        key: str,
        ask: Callable[[ProviderSession], Awaitable[V]],
        *,
        max_age_seconds: float | None = None,
    ) -> Kept[V]:
        """Return one answer with its age.

        Raises:
            ProviderError: It cannot be had.
            RequestRefused: ``ask`` refused.
        """
        found = await self.answers(
            provider_id, kind, [key], _only(key, ask), max_age_seconds=max_age_seconds
        )
        answer = found[key]
        if isinstance(answer, ProviderError):
            raise answer
        return answer

    def prefetch(
        self,
        provider_id: str,
        kind: Kind[V],
        key: str,
        ask: Callable[[ProviderSession], Awaitable[V]],
        *,
        max_age_seconds: float | None = None,
    ) -> None:
        """Read an answer in the background that the caller is likely to want next."""
        provider = self._find(provider_id)
        if self._cache is not None and provider is not None:
            self._cache.prefetch(
                self._place(provider),
                kind,
                key,
                wish=self._wish(provider, kind, max_age_seconds),
                fetch=self._fetcher(provider_id, _only(key, ask)),
            )

    def length_of(self, provider_id: str, kind: Kind[Any]) -> int | None:
        """Return how long a list was when last seen; 0 when never seen, ``None`` without memory."""
        provider = self._find(provider_id)
        if self._cache is None or provider is None:
            return None
        return self._cache.length_of(self._place(provider), kind)

    def note_length(self, provider_id: str, kind: Kind[Any], length: int) -> None:
        """Take note of how long a list is, or at least is."""
        provider = self._find(provider_id)
        if self._cache is not None and provider is not None:
            self._cache.note_length(self._place(provider), kind, length)

    def _fetcher(self, provider_id: str, ask: Ask[V]) -> Fetch[V]:
        async def fetch(keys: Sequence[str]) -> Mapping[str, V]:
            async with self._lend(provider_id) as session:
                return await ask(session, keys)

        return fetch

    def _found(self, provider_id: str) -> tuple[Provider, Place] | None:
        """Return a provider and its place, if there is one to serve from memory."""
        provider = self._find(provider_id)
        if provider is None:
            return None
        try:
            return provider, self._place(provider)
        except ProviderError:  # told to whoever waits for the answers
            return None

    def _place(self, provider: Provider) -> Place:
        """Return the place of a provider, made once for as long as it is the same."""
        known = self._places.get(provider.id)
        if known is not None and known[0] is provider:
            return known[1]
        place = Place.of(provider, self._subject_of(provider.id))
        self._places[provider.id] = (provider, place)
        return place

    def _wish(self, provider: Provider, kind: Kind[Any], max_age_seconds: float | None) -> Wish:
        return Wish(
            began_at=self._began_at,
            max_age_seconds=self.max_age_seconds if max_age_seconds is None else max_age_seconds,
            usual_age_seconds=self._usual_age(provider, kind.resource),
            patience_seconds=self._patience(provider.id),
        )

    def _patience(self, provider_id: str) -> float:
        """Return how long this request still waits for a provider."""
        seconds = self._terms.provider_seconds - self._wait(provider_id).so_far()
        left = seconds_to_deadline()
        return seconds if left is None else min(seconds, left)

    def _wait(self, provider_id: str) -> _Wait:
        wait = self._waits.get(provider_id)
        if wait is None:
            wait = self._waits[provider_id] = _Wait()
        return wait

    def _usual_age(self, provider: Provider, resource: Resource) -> float:
        option = provider.options.get(MAX_AGE)
        if option is not None:
            try:
                return parse_max_age(option).get(resource, self._terms.max_age_seconds)
            except ValueError:  # registered when the rules were other ones
                pass
        return self._terms.max_age_seconds


def _now() -> float:
    return asyncio.get_running_loop().time()


def _only(key: str, ask: Callable[[ProviderSession], Awaitable[V]]) -> Ask[V]:
    """Return what asks for one answer as if it were one of several."""

    async def ask_once(session: ProviderSession, _keys: Sequence[str]) -> Mapping[str, V]:
        return {key: await ask(session)}

    return ask_once


def _live(found: Mapping[str, V], *, read_at: datetime) -> Answers[V]:
    return {
        key: Kept(value=value, via=DataSource.LIVE, read_at=read_at) for key, value in found.items()
    }
