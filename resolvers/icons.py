"""Icons: from whatever a platform calls an icon to an image of ours at an address of ours.

An icon is told by its *key*, a hash of provider, references and version, and what became of it
is remembered under that key: in memory, so that a warm query costs no SQL, and in the database,
so that it survives a restart and is shared by all gateways. Images with the same bytes are
decoded once, whatever their keys and providers.

Nothing here fails a query. Whatever cannot be shown is ``None``, with one warning in the log.
"""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, Generic, TypeVar
from urllib.parse import urljoin, urlsplit

import anyio.to_thread
import structlog

from resolvers.context import Asset, Sessions
from resolvers.data_uris import DataUriInvalid, is_data_uri, read_data_uri
from resolvers.image_decoder import DecoderUnavailable, ImageDecoder, ImageRefused
from sessions.errors import (
    FileUnavailable,
    NotSupported,
    ProviderAddressRefused,
    ProviderBadResponse,
    ProviderError,
    ProviderUnavailable,
)
from sessions.http import seconds_to_deadline
from storage.errors import StorageError
from storage.media import IconOutcome, Media, MediaStore, NewMedia
from storage.records import Course, IconSource

MAX_ICON_BYTES: Final = 5 * 1024 * 1024
_MEDIA_TYPE: Final = "image/webp"
_PATIENCE_SECONDS: Final = 5.0
_REVIEW_SECONDS: Final = 24 * 3600.0
_FIRST_PAUSE_SECONDS: Final = 30.0
_LONGEST_PAUSE_SECONDS: Final = 3600.0
_FETCHES_PER_PROVIDER: Final = 2
_FAILURES_UNTIL_REST: Final = 5
_MAX_REMEMBERED: Final = 50_000
_MAX_QUESTIONS: Final = 5_000
_MAX_URL_LENGTH: Final = 2048
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_MARKUP_SEARCHED_BYTES: Final = 1024
_FORMATS_BY_START: Final = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"\x00\x00\x01\x00": "ICO",
}
_FINAL_ERRORS: Final = (ProviderBadResponse, ProviderAddressRefused, NotSupported)
"""What asking again soon would not change; other errors say nothing of the icon."""

K = TypeVar("K")
V = TypeVar("V")

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class IconLimits:
    """How long icons may take.

    Attributes:
        patience_seconds: How long one batch waits for icons nothing is known of. Those not ready
            by then are ``None`` for now; the work goes on.
        review_seconds: After this a refused icon, and one whose source gives it no version, is
            looked at again.
        pause_seconds: How long an icon is left alone after its provider failed; doubled with
            each failure up to an hour.
        decoders: How many images are decoded at once.
    """

    patience_seconds: float = _PATIENCE_SECONDS
    review_seconds: float = _REVIEW_SECONDS
    pause_seconds: float = _FIRST_PAUSE_SECONDS
    decoders: int = 2


@dataclass(slots=True)
class IconCounts:
    """What was done since the start; a warm query changes none of them.

    Attributes:
        fetched: Files asked of providers.
        decoded: Images given to a decoder.
        refused: Icons found not fit to be shown.
        postponed: Times an icon could not be decided on, mostly because a provider was down.
    """

    fetched: int = 0
    decoded: int = 0
    refused: int = 0
    postponed: int = 0


class IconService:
    """Addresses of courses' icons; made by ``open_icons``, one for the whole process.

    Args:
        sessions: Where provider sessions are borrowed.
        store: Where images and outcomes are kept.
        decoder: Decodes images; closed by whoever made it.
        public_url: What callers reach the gateway by, without a slash at the end.
        limits: How long icons may take.

    Attributes:
        counts: For metrics and tests.
        changes: How often something was found out of an icon.
    """

    def __init__(
        self,
        *,
        sessions: Sessions,
        store: MediaStore,
        decoder: ImageDecoder,
        public_url: str,
        limits: IconLimits | None = None,
    ) -> None:
        self._sessions = sessions
        self._store = store
        self._decoder = decoder
        self._public_url = public_url.rstrip("/")
        self._limits = limits or IconLimits()
        self._known: _Recent[str, _Known] = _Recent(_MAX_REMEMBERED)
        self._questions: _Recent[int, tuple[Course, _Question | None]] = _Recent(_MAX_QUESTIONS)
        self._refused_bytes: _Recent[str, str] = _Recent(_MAX_REMEMBERED)
        self._deciding: dict[str, asyncio.Task[None]] = {}
        self._rendering: dict[str, asyncio.Task[tuple[Media, ...]]] = {}
        self._queues: dict[str, _Queue] = {}
        self.counts = IconCounts()
        self.changes = 0

    async def url(self, course: Course, width: int) -> str | None:
        """Return the address of one course's icon; see ``urls``."""
        (url,) = await self.urls([(course, width)])
        return url

    async def urls(self, wanted: Sequence[tuple[Course, int]]) -> Sequence[str | None]:
        """Return the address of each course's icon, in order.

        The image is the narrowest one kept that is at least as wide as asked, or else the widest.
        ``None`` where a course has no icon, or none that can be shown, or none yet.
        """
        known = await self._get_known([course for course, _ in wanted])
        return self._addresses(known, wanted)

    def urls_at_hand(self, wanted: Sequence[tuple[Course, int]]) -> Sequence[str | None] | None:
        """Return the same without waiting; ``None`` when one of them is still to be found out."""
        questions = [self._question_of(course) for course, _ in wanted]
        if any(one is not None and self._needs_decision(one.key) for one in questions):
            return None
        return self._addresses([*map(self._known_of, questions)], wanted)

    def _addresses(
        self, known: Sequence[_Known], wanted: Sequence[tuple[Course, int]]
    ) -> Sequence[str | None]:
        return [
            self._address(_at_least(entry.renditions, width)) if entry.renditions else None
            for entry, (_, width) in zip(known, wanted, strict=True)
        ]

    async def assets(self, courses: Sequence[Course]) -> Sequence[Asset | None]:
        """Return each course's icon in the largest size kept, in order; ``None`` as in ``urls``."""
        known = await self._get_known(courses)
        return [self._asset(entry.renditions[-1]) if entry.renditions else None for entry in known]

    async def close(self) -> None:
        """Stop deciding; what is decided is already stored."""
        tasks = [*self._deciding.values(), *self._rendering.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _get_known(self, courses: Sequence[Course]) -> Sequence[_Known]:
        questions = [self._question_of(course) for course in courses]
        unknown = {
            question.key: question
            for question in questions
            if question is not None and self._needs_decision(question.key)
        }
        if unknown:
            await self._load(unknown)
            await self._wait_for(self._start_deciding(unknown.values()))
        return [*map(self._known_of, questions)]

    def _remember(self, key: str, known: _Known) -> None:
        self.changes += 1
        self._known.put(key, known)

    def _question_of(self, course: Course) -> _Question | None:
        """Return what is asked of a course; of the same record, it is worked out once."""
        found = self._questions.get(id(course))
        if found is None or found[0] is not course:
            found = (course, _question(course))
            self._questions.put(id(course), found)
        return found[1]

    def _known_of(self, question: _Question | None) -> _Known:
        return _NO_ICON if question is None else self._known.get(question.key) or _NO_ICON

    def _needs_decision(self, key: str) -> bool:
        known = self._known.get(key)
        return known is None or time.monotonic() >= known.again_at

    async def _load(self, questions: Mapping[str, _Question]) -> None:
        keys = [key for key in questions if self._known.get(key) is None]
        if not keys:
            return
        try:
            outcomes = await self._store.find_icons(keys)
        except StorageError as error:
            _log.warning("icons_not_read", problem=error.message)
            return
        for key, outcome in outcomes.items():
            self._remember(key, self._remembered(questions[key], outcome))

    def _remembered(self, question: _Question, outcome: IconOutcome) -> _Known:
        age_seconds = (datetime.now(UTC) - outcome.decided_at).total_seconds()
        return _Known(
            renditions=outcome.renditions,
            problem=outcome.problem,
            again_at=self._review_at(question, outcome.problem) - age_seconds,
        )

    def _review_at(self, question: _Question, problem: str | None) -> float:
        if question.lasting and problem is None:
            return float("inf")
        return time.monotonic() + self._limits.review_seconds

    def _start_deciding(self, questions: Iterable[_Question]) -> Sequence[asyncio.Task[None]]:
        """Start what is not under way yet; return what is worth waiting for."""
        awaited = []
        for question in questions:
            known = self._known.get(question.key)
            if not self._needs_decision(question.key):
                continue
            task = self._deciding.get(question.key)
            if task is None:
                task = _start(self._decide(question))
                self._deciding[question.key] = task
                task.add_done_callback(partial(_forget, self._deciding, question.key))
            if known is None or not known.renditions:
                awaited.append(task)
        return awaited

    async def _wait_for(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        """Wait for as long as icons are worth, within the request's own time."""
        left = seconds_to_deadline()
        patience = self._limits.patience_seconds
        if tasks:
            await asyncio.wait(tasks, timeout=patience if left is None else min(patience, left))

    async def _decide(self, question: _Question) -> None:
        queue = self._queues.setdefault(question.provider_id, _Queue())
        try:
            async with queue.slots:
                await self._decide_now(question, queue)
        except (ProviderError, StorageError, DecoderUnavailable) as error:
            self._postpone(question, queue, error)

    async def _decide_now(self, question: _Question, queue: _Queue) -> None:
        try:
            source_sha256, renditions = await self._first_usable(question, queue)
        except ImageRefused as refusal:
            await self._store.save_icon(question.key, source_sha256=None, problem=refusal.problem)
            self._refuse(question, refusal.problem)
        else:
            await self._store.save_icon(question.key, source_sha256=source_sha256)
            again_at = self._review_at(question, None)
            self._remember(question.key, _Known(renditions=renditions, again_at=again_at))
            queue.warned = False

    def _refuse(self, question: _Question, problem: str) -> None:
        self.counts.refused += 1
        before = self._known.get(question.key)
        again_at = self._review_at(question, problem)
        self._remember(question.key, _Known(problem=problem, again_at=again_at))
        if before is None or before.problem != problem:
            _log.warning("icon_refused", **question.described(), problem=problem)

    def _postpone(
        self,
        question: _Question,
        queue: _Queue,
        error: ProviderError | StorageError | DecoderUnavailable,
    ) -> None:
        self.counts.postponed += 1
        before = self._known.get(question.key) or _NO_ICON
        pause_seconds = min(self._limits.pause_seconds * 2**before.failures, _LONGEST_PAUSE_SECONDS)
        self._remember(
            question.key,
            _Known(
                renditions=before.renditions,
                problem=before.problem,
                again_at=time.monotonic() + pause_seconds,
                failures=before.failures + 1,
            ),
        )
        if not queue.warned:  # once for all icons of the provider, until one of them works
            queue.warned = True
            _log.warning("icons_postponed", **question.described(), problem=str(error))

    async def _first_usable(
        self, question: _Question, queue: _Queue
    ) -> tuple[str, tuple[Media, ...]]:
        problems: list[str] = []
        postponed: ProviderError | None = None
        for reference in question.references:
            try:
                content = await self._read(question.provider_id, reference, queue)
                return await self._get_renditions(content)
            except ImageRefused as refusal:
                problems.append(refusal.problem)
            except _FINAL_ERRORS as error:
                problems.append(error.message)
            except ProviderError as error:
                postponed = error
        if postponed is not None:
            raise postponed
        raise ImageRefused("; ".join(dict.fromkeys(problems)))

    async def _read(self, provider_id: str, reference: str, queue: _Queue) -> bytes:
        if not is_data_uri(reference):
            return await self._fetch(provider_id, reference, queue)

        def read() -> bytes:
            return read_data_uri(reference, max_bytes=MAX_ICON_BYTES)

        try:
            return await anyio.to_thread.run_sync(read)
        except DataUriInvalid as error:
            raise ImageRefused(str(error)) from error

    async def _fetch(self, provider_id: str, reference: str, queue: _Queue) -> bytes:
        if time.monotonic() < queue.resting_until:
            raise ProviderUnavailable(
                "The provider failed for several icons and is left alone for a while",
                provider_id=provider_id,
            )
        try:
            async with self._sessions.session(provider_id) as session:
                _refuse_elsewhere(reference, session.provider.base_url)
                self.counts.fetched += 1
                content = await session.fetch_file(reference, max_bytes=MAX_ICON_BYTES)
        except _FINAL_ERRORS:
            queue.failures = 0
            raise
        except FileUnavailable:
            raise  # says nothing of the provider's other icons
        except ProviderError:
            queue.failures += 1
            if queue.failures >= _FAILURES_UNTIL_REST:
                queue.resting_until = time.monotonic() + self._limits.pause_seconds
            raise
        queue.failures = 0
        return content

    async def _get_renditions(self, content: bytes) -> tuple[str, tuple[Media, ...]]:
        image_format = _told_format(content)
        sha256 = hashlib.sha256(content).hexdigest()
        task = self._rendering.get(sha256)
        if task is None:
            task = _start(self._render(sha256, content, image_format))
            self._rendering[sha256] = task
            task.add_done_callback(partial(_forget, self._rendering, sha256))
        return sha256, await asyncio.shield(task)

    async def _render(self, sha256: str, content: bytes, image_format: str) -> tuple[Media, ...]:
        problem = self._refused_bytes.get(sha256)
        if problem is not None:
            raise ImageRefused(problem)
        kept = await self._store.find_renditions(sha256)
        if kept:
            return kept
        self.counts.decoded += 1
        try:
            renditions = await self._decoder.decode(content, image_format=image_format)
        except ImageRefused as refusal:
            self._refused_bytes.put(sha256, refusal.problem)
            raise
        return await self._store.save_renditions(
            sha256,
            [
                NewMedia(
                    content=rendition.content,
                    media_type=_MEDIA_TYPE,
                    width=rendition.width,
                    height=rendition.height,
                )
                for rendition in renditions
            ],
        )

    def _asset(self, media: Media) -> Asset:
        return Asset(
            sha256=media.sha256,
            media_type=media.media_type,
            byte_size=media.byte_size,
            width=media.width or 0,
            height=media.height or 0,
            url=self._address(media),
        )

    def _address(self, media: Media) -> str:
        return f"{self._public_url}/media/{media.sha256}.webp"


@asynccontextmanager
async def open_icons(
    *,
    sessions: Sessions,
    store: MediaStore,
    public_url: str,
    limits: IconLimits | None = None,
) -> AsyncIterator[IconService]:
    """Run an icon service, with its decoders, for as long as the block lasts."""
    decoder = ImageDecoder(workers=(limits or IconLimits()).decoders)
    service = IconService(
        sessions=sessions, store=store, decoder=decoder, public_url=public_url, limits=limits
    )
    try:
        yield service
    finally:
        await service.close()
        await decoder.close()


@dataclass(slots=True, kw_only=True)
class _Known:
    """What is known of one icon; ``again_at`` is by the process's monotonic clock."""

    renditions: tuple[Media, ...] = ()
    problem: str | None = None
    again_at: float
    failures: int = 0


@dataclass(slots=True)
class _Queue:
    """One provider's icons waiting to be decided on."""

    slots: asyncio.Semaphore = field(
        default_factory=lambda: asyncio.Semaphore(_FETCHES_PER_PROVIDER)
    )
    failures: int = 0
    resting_until: float = 0.0
    warned: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """One icon to decide on; ``lasting`` means that another image would have another key."""

    key: str
    provider_id: str
    course_id: str
    references: tuple[str, ...]
    lasting: bool

    def described(self) -> Mapping[str, str]:
        return {"provider_id": self.provider_id, "course_id": self.course_id, "icon": self.key[:16]}


class _Recent(Generic[K, V]):
    """The entries used last, up to a number of them."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K) -> V | None:
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
        return entry

    def put(self, key: K, entry: V) -> None:
        self._entries[key] = entry
        self._entries.move_to_end(key)
        if len(self._entries) > self._size:
            self._entries.popitem(last=False)


_NO_ICON: Final = _Known(again_at=0.0)


def _question(course: Course) -> _Question | None:
    icon = course.icon
    if icon is None:
        return None
    stripped = (text.strip() for text in (icon.reference, *icon.fallback_references))
    references = tuple(dict.fromkeys(text for text in stripped if text))
    if not references:
        return None
    return _Question(
        key=_key(course.provider_id, references, icon),
        provider_id=course.provider_id,
        course_id=course.external_id,
        references=references,
        lasting=icon.version is not None or is_data_uri(references[0]),
    )


def _key(provider_id: str, references: Sequence[str], icon: IconSource) -> str:
    digest = hashlib.sha256()
    version = "-" if icon.version is None else f"+{icon.version}"
    for part in (provider_id, version, *references):
        encoded = part.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "big"))
        digest.update(encoded)
    return digest.hexdigest()


def _at_least(renditions: Sequence[Media], width: int) -> Media:
    return next((one for one in renditions if (one.width or 0) >= width), renditions[-1])


def _refuse_elsewhere(reference: str, base_url: str) -> None:
    if (
        len(reference) > _MAX_URL_LENGTH
        or not reference.isprintable()
        or {" ", "\\"} & {*reference}
    ):
        raise ImageRefused("The icon's address is not one")
    try:
        same = _origin(urljoin(f"{base_url}/", reference)) == _origin(base_url)
    except ValueError as error:
        raise ImageRefused("The icon's address is not one") from error
    if not same:
        raise ImageRefused("The icon is not on the provider's own server")


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or _DEFAULT_PORTS.get(parts.scheme)


def _told_format(content: bytes) -> str:
    """Return an image's format by its first bytes, in Pillow's words.

    Raises:
        ImageRefused: It is none of those shown.
    """
    for start, image_format in _FORMATS_BY_START.items():
        if content.startswith(start):
            return image_format
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "WEBP"
    beginning = content[:_MARKUP_SEARCHED_BYTES].replace(b"\0", b"").lower()
    if b"<svg" in beginning:
        raise ImageRefused("SVG images may hold scripts and are not shown")
    if b"<html" in beginning or b"<!doctype" in beginning:
        raise ImageRefused("The icon is a web page, not an image")
    raise ImageRefused("The icon is not a PNG, JPEG, GIF, WebP or ICO image")


def _forget(tasks: dict[str, asyncio.Task[V]], key: str, _done: asyncio.Task[V]) -> None:
    del tasks[key]


def _start(work: Coroutine[Any, Any, V]) -> asyncio.Task[V]:
    # In a context of its own: the deadline and the log fields of the request that happens to be
    # the first to ask are not those of the others that wait for the same icon.
    return asyncio.create_task(work, context=contextvars.Context())
