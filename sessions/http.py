"""HTTP to providers: the one place where the network is touched.

What is promised to the platforms that call through here:

- a call ends within its deadline, whatever the provider does;
- credentials go to the provider's own origin and nowhere else;
- no more of an answer is held than the limit, also after decompression;
- only addresses the operator allows are connected to, judged on the connected address itself;
- every failure is a ``ProviderError``, with a message that shows no query, secret or body.

Plain httpx fills its pool with dead connections when many requests are cancelled (encode/httpcore
issues 1093, 1094, 1099), therefore aiohttp carries the requests, without what a gateway must not
have: redirects, a cookie jar and environment proxies. Tests put a transport of httpx in its place.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import socket
import ssl
import time
import zlib
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache, lru_cache
from http import HTTPStatus
from math import ceil
from typing import Protocol, TypeVar
from urllib.parse import quote_plus, unquote, urljoin

import aiohttp
import httpx
import msgspec
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from sessions.addresses import AddressPolicy, Origin, checked_path, split_url
from sessions.errors import (
    FileUnavailable,
    ProviderAddressRefused,
    ProviderAuthFailed,
    ProviderBadResponse,
    ProviderError,
    ProviderRateLimited,
    ProviderTimeout,
    ProviderUnavailable,
)
from sessions.inside import Inside
from sessions.metering import note_answer
from sessions.pacing import Pacers
from sessions.resilience import (
    ProviderHealth,
    Resilience,
    ResilienceObserver,
    ResilienceTerms,
    Turn,
)
from sessions.timeouts import Timeouts
from sessions.tracing import CallSpan, OutgoingCall, Tracer

T = TypeVar("T")

ParamValue = str | int | float | bool | None
Params = Mapping[str, ParamValue | Sequence[ParamValue]] | Sequence[tuple[str, ParamValue]]
"""Query or form values; ``None`` is left out, a sequence repeats its name, ``True`` is ``true``."""

Lookup = Callable[[str], Awaitable[Sequence[str]]]
"""Resolves a host name to its IP addresses, or raises ``OSError``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """How long, how much and how often.

    Attributes:
        connect_seconds: For one TCP and TLS connection.
        read_seconds: Between two pieces of an answer, and until the first.
        pool_seconds: For a free connection, on top of ``connect_seconds``.
        total_seconds: For a whole call with its retries, unless a ``deadline`` is nearer.
        max_body_bytes: Of one answer, after decompression.
        max_connections: Open at once to one provider.
        concurrency: Calls at once to one provider, at the most; others wait their turn.
        max_retries: Of one call.
        retry_ratio: Retries allowed per call of the last seconds, over all calls.
        retry_floor: Retries always allowed in that time.
        backoff_seconds: The first retry waits up to this long, each further one twice as long.
        max_retry_wait_seconds: A provider that asks for more is not waited for.
        resilience: When the provider is taken for failed, and how it is spared then.
    """

    connect_seconds: float = 3
    read_seconds: float = 10
    pool_seconds: float = 2
    total_seconds: float = 30
    max_body_bytes: int = 32 * 1024 * 1024
    max_connections: int = 16
    concurrency: int = 8
    max_retries: int = 2
    retry_ratio: float = 0.1
    retry_floor: int = 3
    backoff_seconds: float = 0.1
    max_retry_wait_seconds: float = 5
    resilience: ResilienceTerms = field(default_factory=ResilienceTerms)


DEFAULT_LIMITS = HttpLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamCall:
    """One request that was sent to a provider, retries counted one by one.

    Attributes:
        path: Without the query, and with ``{id}`` for everything that looks like an id.
        status: Of the answer; ``None`` when there was none.
        error: Code of the ``ProviderError`` it ended in, ``CANCELLED``, or ``None``.
        body_bytes: Of the answer, after decompression.
    """

    provider_id: str | None
    method: str
    path: str
    status: int | None
    error: str | None
    seconds: float
    body_bytes: int


Observer = Callable[[UpstreamCall], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A provider's answer; only its status shows in ``repr``, as the rest may hold secrets.

    Attributes:
        headers: Lower-case names; repeated ones joined by commas; ``Set-Cookie`` left out.
        body: Complete and decompressed.
        cookies: Set by this answer.
        deleted_cookies: Names this answer takes back.
        source: Host and port it came from, for messages.
        on_garbage: Hears of it when it turns out to be nothing the platform says; see ``refuse``.
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes = field(default=b"", repr=False)
    cookies: Mapping[str, str] = field(default_factory=dict, repr=False)
    deleted_cookies: frozenset[str] = field(default=frozenset(), repr=False)
    provider_id: str | None = None
    source: str = "The provider"
    on_garbage: Callable[[ProviderError], None] | None = field(
        default=None, repr=False, compare=False
    )

    def decode(self, type_: type[T]) -> T:
        """Return the JSON body as this type, which msgspec must know how to read.

        Raises:
            ProviderBadResponse: It is not JSON, or not of this type; the message names the path
                of the field.
        """
        if not self.body:
            raise self.refuse(self._bad("answered nothing, not JSON"))
        if self._looks_like_html():
            raise self.refuse(self._bad("answered HTML, not JSON"))
        try:
            return msgspec.json.decode(self.body, type=type_)
        except msgspec.ValidationError as error:
            raise self._bad(f"answered JSON of another form: {_mismatch(error)}") from None
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise self.refuse(self._bad("answered something that is not JSON")) from None

    def refuse(self, error: ProviderBadResponse) -> ProviderBadResponse:
        """Return the error, counted as a failure: no installation of the platform answers so.

        What is wrong with one row, or with one caller's wish, is nothing of that kind.
        """
        if self.on_garbage is not None:
            self.on_garbage(error)
        return error

    def text(self) -> str:
        """Return the body as text; bytes that are not UTF-8 become replacement characters."""
        return self.body.decode("utf-8", errors="replace")

    def _looks_like_html(self) -> bool:
        media_type = self.headers.get("content-type", "").lower()
        return media_type.startswith(("text/html", "application/xhtml")) or (
            self.body[:64].lstrip().startswith(b"<")
        )

    def _bad(self, problem: str) -> ProviderBadResponse:
        return ProviderBadResponse(
            f"{self.source} {problem} (status {self.status})", provider_id=self.provider_id
        )


def deadline(seconds: float | None, *, nested: bool = True) -> Inside[float | None]:
    """End every provider call made inside at the latest after this many seconds.

    Nested deadlines only shorten; ``None`` lifts those outside. Tasks started inside inherit the
    deadline: a task that works for others than its starter needs one that is not nested.
    """
    ends_at = None
    if seconds is not None:
        ends_at = _now() + seconds
        outer = _deadline.get() if nested else None
        ends_at = ends_at if outer is None else min(ends_at, outer)
    return Inside(_deadline, ends_at)


def patience(seconds: float | None) -> Inside[float | None]:
    """Have nothing that a provider puts off waited for longer than this many seconds from now.

    A call under way may take longer, up to the ``deadline``: whoever comes later has use for its
    answer. But a provider that asks to be left alone until then fails at once, and says so.
    """
    return Inside(_patience, None if seconds is None else _now() + seconds)


def seconds_of_patience() -> float | None:
    """Return how long to wait here for a provider that puts off; ``None`` for the deadline."""
    ends_at = _patience.get()
    return None if ends_at is None else ends_at - _now()


def seconds_to_deadline() -> float | None:
    """Return how long calls made here may take by the nearest deadline; ``None`` without one."""
    ends_at = _deadline.get()
    return None if ends_at is None else ends_at - _now()


class ProviderHttp:
    """HTTP to one provider; made by ``ProviderHttp.open``, used by any number of tasks.

    Attributes:
        provider_id: The product's own id of the provider.
        base_url: What paths are relative to, without trailing slash.
        origin: Scheme, host and port of it.
        calls: How many requests were sent so far, retries included.
        pacers: What keeps calls below the provider's rate limits, for platforms that need it.
        tracer: Makes spans of its calls; ``None`` when nothing is traced.
    """

    def __init__(
        self,
        base_url: str,
        *,
        provider_id: str | None,
        limits: HttpLimits,
        policy: AddressPolicy,
        observer: Observer | None,
        watcher: ResilienceObserver | None,
        tracer: Tracer | None,
        carrier: _Carrier,
    ) -> None:
        origin, prefix = split_url(base_url)
        self.provider_id = provider_id
        self.base_url = base_url
        self.origin = str(origin)
        self.calls = 0
        self.pacers = Pacers(provider_id=provider_id)
        self.tracer = tracer
        self._origin = origin
        self._prefix = prefix
        shown_host = f"[{origin.host}]" if ":" in origin.host else origin.host
        self._source = f"{shown_host}:{origin.port}"
        self._limits = limits
        self._policy = policy
        self._observer = observer
        self._carrier = carrier
        self._resilience = Resilience(
            limits.resilience,
            concurrency=limits.concurrency,
            provider_id=provider_id,
            source=self._source,
            observer=watcher,
        )
        self._budget = _RetryBudget(ratio=limits.retry_ratio, floor=limits.retry_floor)
        self._timeouts = Timeouts()
        self._now = asyncio.get_running_loop().time
        self._closed = False

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        base_url: str,
        *,
        provider_id: str | None,
        policy: AddressPolicy,
        limits: HttpLimits = DEFAULT_LIMITS,
        observer: Observer | None = None,
        watcher: ResilienceObserver | None = None,
        tracer: Tracer | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        lookup: Lookup | None = None,
    ) -> AsyncIterator[ProviderHttp]:
        """Lend HTTP to a provider, closing its connections at the end.

        Args:
            base_url: Checked again, whoever checked it before.
            provider_id: Goes into errors and observations.
            policy: Which addresses may be connected to.
            limits: Of time, size and number.
            observer: Called after every request that was sent; must not raise.
            watcher: Hears when the provider is taken for failed, and of calls not made.
            tracer: Makes a span of every request that is sent.
            transport: Instead of the network, for tests.
            lookup: Instead of the system's resolver, for tests.

        Raises:
            ProviderAddressRefused: The base URL is not allowed.
        """
        with _Naming(provider_id):
            base_url = policy.check_url(base_url)
        carrier: _Carrier = (
            _Network(policy, limits=limits, lookup=lookup)
            if transport is None
            else _Pretended(transport)
        )
        http = cls(
            base_url,
            provider_id=provider_id,
            limits=limits,
            policy=policy,
            observer=observer,
            watcher=watcher,
            tracer=tracer,
            carrier=carrier,
        )
        try:
            yield http
        finally:
            http._closed = True
            await carrier.aclose()

    @property
    def failures(self) -> int:
        """How many failures of the provider were counted so far."""
        return self._resilience.failures

    def note_failure(self, error: ProviderError) -> None:
        """Count a failure that no single call shows, such as that of a login."""
        self._resilience.note_failure(error)

    def health(self) -> ProviderHealth:
        """Return how calls to the provider go."""
        return self._resilience.health(datetime.now(UTC))

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Params | None = None,
        json: object | None = None,
        form: Params | None = None,
        headers: Mapping[str, str] | None = None,
        cookies: Mapping[str, str] | None = None,
        max_body_bytes: int | None = None,
        total_seconds: float | None = None,
        if_none_match: str | None = None,
        expected: Collection[int] | None = None,
        idempotent: bool = False,
        is_throttle: Callable[[Response], bool] | None = None,
        template: str | None = None,
    ) -> Response:
        """Send one request and return its answer, whole.

        Any status under 500 is an answer, except 429 and redirects. GET and HEAD are tried again
        after failures that may pass, and so is what is said to be idempotent.

        Args:
            method: Upper case.
            path: Relative to the base URL, or an absolute URL of the same origin.
            params: Added to the path's own query.
            json: Sent as the JSON body.
            form: Sent as a URL-encoded body.
            headers: Added to the usual ones.
            cookies: All that are sent; nothing is remembered from call to call.
            max_body_bytes: Instead of the provider's limit.
            total_seconds: Instead of the provider's limit; a nearer ``deadline`` still holds.
            if_none_match: An entity tag; the answer may then be 304.
            expected: Further statuses that are an answer and not an error.
            idempotent: Whether it may be sent twice whatever its method: a PUT, or a POST that
                only reads.
            is_throttle: Tells whether an answer is the platform's own way to ask for fewer calls;
                it is returned all the same.
            template: Name of the path for observations, such as ``/api/user/{id}``.

        Raises:
            ProviderUnavailable: Not reached, connection lost, or a status of 500 and over; or not
                tried, because that was so before, or because too many calls wait.
            ProviderTimeout: Not answered in time.
            ProviderRateLimited: Status 429; or not tried, because the provider asked for a rest.
            ProviderBadResponse: Too large, a redirect, or not HTTP.
            ProviderAddressRefused: The path leads elsewhere, or the address is not allowed.
            ProviderAuthFailed: A header or cookie holds characters HTTP cannot carry.
            UpstreamCallsSpent: The operation has made all the calls it may.
        """
        try:
            request = self._build(
                method,
                self._url(path, params=params),
                content=_content(json=json, form=form),
                headers=_headers(
                    headers, cookies=cookies, json=json, form=form, if_none_match=if_none_match
                ),
            )
        except (httpx.InvalidURL, UnicodeEncodeError):
            raise ProviderAddressRefused(
                "The request holds characters that cannot be sent", provider_id=self.provider_id
            ) from None
        call = _Call(
            request=request,
            path=template or _template(request.url.partition("?")[0]),
            max_body_bytes=self._limits.max_body_bytes
            if max_body_bytes is None
            else max_body_bytes,
            expected=expected or (),
            repeatable=idempotent or method in {"GET", "HEAD"},
            is_throttle=is_throttle,
        )
        seconds = self.seconds_left(total_seconds)
        try:
            with self._timeouts.within(seconds) as limit:
                return await self._answer(call, ends_at=limit.ends_at)
        except TimeoutError as error:
            raise self._late(seconds) from error

    async def download(
        self, url: str, *, max_body_bytes: int, total_seconds: float | None = None
    ) -> Response:
        """Return what is at a URL of any origin, asked for as a stranger would.

        Nothing that could identify the gateway to the provider goes along: no credentials, no
        cookies. A redirect is followed, at most three times; every address on the way must be one
        the policy allows.

        Raises:
            FileUnavailable: Its host is not reached, too slow, or fails.
            ProviderBadResponse: It is no success, or too large.
            ProviderAddressRefused: It leads to a place that may not be called.
            UpstreamCallsSpent: The operation has made all the calls it may.
        """
        seconds = self.seconds_left(total_seconds)
        try:
            with self._timeouts.within(seconds) as limit:
                return await self._followed(url, max_body_bytes, ends_at=limit.ends_at)
        except (TimeoutError, ProviderUnavailable, ProviderRateLimited) as error:
            raise FileUnavailable(
                f"A file at {_target(url, base=self._origin)} cannot be had now",
                provider_id=self.provider_id,
            ) from error

    async def _followed(self, url: str, max_body_bytes: int, *, ends_at: float | None) -> Response:
        for _ in range(_MAX_REDIRECTS + 1):
            with _Naming(self.provider_id):
                url = self._policy.check_file_url(url)
            try:
                request = self._build("GET", url, content=None, headers=dict(_USUAL_HEADERS))
            except (httpx.InvalidURL, UnicodeEncodeError):
                raise ProviderAddressRefused(
                    "The URL holds characters that cannot be sent", provider_id=self.provider_id
                ) from None
            call = _Call(
                request=request,
                path="(download)",
                max_body_bytes=max_body_bytes,
                expected=_REDIRECTS,
                repeatable=True,
                is_elsewhere=True,
            )
            response = await self._answer(call, ends_at=ends_at)
            if response.status not in _REDIRECTS:
                break
            url = urljoin(url, response.headers.get("location", ""))
        if response.status != HTTPStatus.OK:
            raise ProviderBadResponse(
                f"A file at {_target(url, base=self._origin)} cannot be had"
                f" (status {response.status})",
                provider_id=self.provider_id,
            )
        return response

    def seconds_left(self, total_seconds: float | None = None) -> float:
        """Return how long a call that begins now may take.

        Args:
            total_seconds: Instead of the provider's limit; a nearer ``deadline`` still holds.

        Raises:
            ProviderTimeout: There is no time left.
        """
        seconds = self._limits.total_seconds if total_seconds is None else total_seconds
        left = seconds_to_deadline()
        if left is not None:
            seconds = min(seconds, left)
        if seconds <= 0:
            raise ProviderTimeout(
                f"No time was left to ask {self._source}", provider_id=self.provider_id
            )
        return seconds

    def _url(self, path: str, *, params: Params | None) -> str:
        """Put the URL together from the checked origin, so that no parser can read another host."""
        with _Naming(self.provider_id):
            if _SCHEME.match(path):
                origin, rest = split_url(path.replace(" ", "%20"))
                if origin != self._origin:
                    raise ProviderAddressRefused(
                        f"{origin} is not the provider's own address, {self.origin}"
                    )
            elif path.startswith(("//", "/\\", "\\")):
                raise ProviderAddressRefused("The path leads to another host")
            else:
                rest = self._prefix + (path if path.startswith(("/", "?")) else f"/{path}")
            bare, mark, query = rest.partition("#")[0].replace("\\", "%5C").partition("?")
            url = self.origin + checked_path(bare) + mark + query
        added = "" if params is None else _query(params)
        return f"{url}{'&' if mark else '?'}{added}" if added else url

    def _build(
        self, method: str, url: str, *, content: bytes | None, headers: dict[str, str]
    ) -> _Request:
        for name, value in headers.items():
            is_usual = _USUAL_HEADERS.get(name) is value
            if not is_usual and not (value.isascii() and value.isprintable()):
                raise ProviderAuthFailed(
                    f"The value for the header {name} holds characters that HTTP cannot carry: "
                    "look for a line break or a special character in the credentials",
                    provider_id=self.provider_id,
                )
        if not _SENDABLE.fullmatch(url):
            url = str(URL(str(httpx.URL(url))))
        return _Request(method=method, url=url, headers=headers, content=content)

    def _late(self, seconds: float) -> ProviderTimeout:
        return ProviderTimeout(
            f"{self._source} did not answer within {seconds:.3g} seconds",
            provider_id=self.provider_id,
        )

    async def _answer(self, call: _Call, *, ends_at: float | None) -> Response:
        self._budget.count_call()
        retries = 0
        while True:
            async with self._resilience.turn(
                f"{call.request.method} {call.path}",
                ends_at=ends_at,
                counts=self._counts(call),
            ) as turn:
                outcome = await self._observed(call, turn, resends=retries)
            if isinstance(outcome, Response):
                return outcome
            wait_seconds = self._wait_before_retry(call, outcome, retries=retries, ends_at=ends_at)
            if wait_seconds is None:
                raise outcome.error from outcome.cause
            retries += 1
            await asyncio.sleep(wait_seconds)

    def _counts(self, call: _Call) -> bool:
        """Whether a call tells of the provider; what is no provider has rules of its own."""
        return self.provider_id is not None and not call.is_elsewhere

    def _wait_before_retry(
        self, call: _Call, failure: _Failure, *, retries: int, ends_at: float | None
    ) -> float | None:
        """Return how long to wait before trying again, or ``None`` for not at all."""
        if not (call.repeatable and failure.passing) or retries >= self._limits.max_retries:
            return None
        if self._resilience.refuses and self._counts(call):
            return None
        asked_seconds = failure.error.retry_after_seconds or 0
        if asked_seconds > self._limits.max_retry_wait_seconds:
            return None
        longest_seconds = self._limits.backoff_seconds * 2**retries
        jitter = random.uniform(0, longest_seconds)  # noqa: S311 - spreads load only
        wait_seconds = asked_seconds + jitter
        now = self._now()
        if ends_at is not None and now + wait_seconds >= ends_at:
            return None
        left = seconds_of_patience()
        if left is not None and wait_seconds >= left:
            return None
        return wait_seconds if self._budget.take_retry() else None

    async def _observed(self, call: _Call, turn: Turn, *, resends: int) -> Response | _Failure:
        if self._closed:
            turn.void()
            return self._failure(ProviderUnavailable, "is no longer in use", passing=False)
        self.calls += 1
        span = self._span(call, resends=resends)
        started_at = self._now()
        outcome: Response | _Failure | None = None
        try:
            outcome = await self._exchange(call, turn)
        finally:
            self._note(call, outcome, self._now() - started_at, span=span)
        self._tell(turn, call, outcome)
        return outcome

    def _tell(self, turn: Turn, call: _Call, outcome: Response | _Failure) -> None:
        """Tell the turn what became of its call, for the sake of the calls to come."""
        if isinstance(outcome, _Failure):
            if isinstance(outcome.error, ProviderAddressRefused):
                turn.void()
            elif isinstance(outcome.cause, _BodyTooLarge):
                turn.answered()
            else:
                turn.failed(
                    outcome.error, is_overloaded=outcome.status == HTTPStatus.SERVICE_UNAVAILABLE
                )
        elif call.is_throttle is not None and call.is_throttle(outcome):
            turn.failed(
                ProviderRateLimited(
                    f"{self._source} asks for fewer calls (status {outcome.status})",
                    provider_id=self.provider_id,
                )
            )
        else:
            turn.answered()

    def _span(self, call: _Call, *, resends: int) -> CallSpan | None:
        """Begin the span of a request; files elsewhere are asked for as a stranger would."""
        if self.tracer is None:
            return None
        url = httpx.URL(call.request.url)
        port = url.port or _PORTS[url.scheme]
        path = "/" if call.is_elsewhere else url.raw_path.partition(b"?")[0].decode("ascii")
        span = self.tracer.begin_call(
            OutgoingCall(
                provider_id=self.provider_id,
                method=call.request.method,
                url=f"{url.scheme}://{url.netloc.decode('ascii')}{path}",
                template=None if call.is_elsewhere else call.path,
                host=url.host,
                port=port,
                resends=resends,
            )
        )
        if not call.is_elsewhere:
            call.request.headers.update(span.headers)
        return span

    def _note(
        self,
        call: _Call,
        outcome: Response | _Failure | None,
        seconds: float,
        *,
        span: CallSpan | None,
    ) -> None:
        body_bytes = len(outcome.body) if isinstance(outcome, Response) else 0
        note_answer(self.provider_id, seconds=seconds, body_bytes=body_bytes)
        if self._observer is None and span is None:
            return
        observation = self._observation(call, outcome, seconds)
        if span is not None:
            span.end(status=observation.status, error=observation.error)
        if self._observer is not None:
            self._observer(observation)

    def _observation(
        self, call: _Call, outcome: Response | _Failure | None, seconds: float
    ) -> UpstreamCall:
        answered = isinstance(outcome, Response)
        if isinstance(outcome, _Failure):
            error: str | None = outcome.error.code
        else:
            error = None if answered else "CANCELLED"
        return UpstreamCall(
            provider_id=self.provider_id,
            method=call.request.method,
            path=call.path,
            status=None if outcome is None else outcome.status,
            error=error,
            seconds=seconds,
            body_bytes=len(outcome.body) if isinstance(outcome, Response) else 0,
        )

    async def _exchange(self, call: _Call, turn: Turn) -> Response | _Failure:
        try:
            async with self._carrier.send(call.request) as answer:
                refusal = self._refusal(call, answer)
                if refusal is not None:
                    return refusal
                turn.note_answer()
                return await self._read(call, answer, on_garbage=turn.take_back)
        except _BadBody as error:
            return self._failure(ProviderBadResponse, str(error), passing=False, cause=error)
        except (httpx.HTTPError, aiohttp.ClientError, OSError) as error:
            return self._lost(error)

    def _refusal(self, call: _Call, answer: _Answer) -> _Failure | None:
        """Return the failure a status means, or ``None`` for an answer worth reading."""
        status = answer.status
        if status < _FIRST_REDIRECT or status in call.expected:
            return None
        if status in _REDIRECTS:
            target = _target(answer.headers.get("location", ""), base=self._origin)
            return self._failure(
                ProviderBadResponse,
                f"answered with a redirect to {target} (status {status})",
                passing=False,
                status=status,
            )
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            return self._failure(
                ProviderRateLimited,
                "asks for fewer calls (status 429)",
                passing=True,
                status=status,
                retry_after_seconds=_retry_after(answer.headers.get("retry-after")),
            )
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return self._failure(
                ProviderUnavailable,
                f"answered with an error of its own (status {status})",
                passing=status not in _LASTING_ERRORS,
                status=status,
                retry_after_seconds=_retry_after(answer.headers.get("retry-after")),
            )
        return None

    async def _read(
        self, call: _Call, answer: _Answer, *, on_garbage: Callable[[ProviderError], None]
    ) -> Response:
        body = b""
        if call.request.method != "HEAD" and answer.status not in _BODILESS:
            body = await _read_body(answer, max_bytes=call.max_body_bytes)
        cookies, deleted_cookies = _parse_cookies(answer.set_cookies)
        return Response(
            status=answer.status,
            headers=answer.headers,
            body=body,
            cookies=cookies,
            deleted_cookies=deleted_cookies,
            provider_id=self.provider_id,
            source=self._source,
            on_garbage=on_garbage,
        )

    def _lost(self, error: Exception) -> _Failure:
        """Translate what the HTTP libraries raise; a pretended network raises httpx's errors."""
        root = error
        denied = getattr(root, "os_error", None)
        if isinstance(denied, _AddressDenied):
            return _Failure(
                error=ProviderAddressRefused(denied.message, provider_id=self.provider_id),
                passing=False,
            )
        kind_of_error, problem, passing = next(
            (loss for kinds, loss in _LOSSES if isinstance(root, kinds)), _CUT
        )
        return self._failure(
            kind_of_error, problem + _detail(root), passing=passing, cause=TransportProblem(error)
        )

    def _failure(
        self,
        error: type[ProviderError],
        problem: str,
        *,
        passing: bool,
        status: int | None = None,
        retry_after_seconds: int | None = None,
        cause: Exception | None = None,
    ) -> _Failure:
        return _Failure(
            error=error(
                f"{self._source} {problem}",
                provider_id=self.provider_id,
                retry_after_seconds=retry_after_seconds,
            ),
            passing=passing,
            status=status,
            cause=cause,
        )


class TransportProblem(Exception):
    """What the HTTP libraries reported, by the names of their errors only.

    Their texts may quote query strings and answers, so they are not kept.
    """

    def __init__(self, error: BaseException) -> None:
        names = []
        link: BaseException | None = error
        while link is not None:
            names.append(f"{type(link).__module__}.{type(link).__qualname__}")
            link = link.__cause__
        super().__init__(" from ".join(names))
        self.with_traceback(error.__traceback__)


_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)
_patience: ContextVar[float | None] = ContextVar("patience", default=None)

_BUDGET_SECONDS = 10.0
_KEEP_ALIVE_SECONDS = 4.0  # under the 5 s after which common servers close an idle connection
_PIECE_BYTES = 1024 * 1024
_GZIP = zlib.MAX_WBITS | 16

_PORTS = {"http": 80, "https": 443}
_MAX_REDIRECTS = 3
_FIRST_REDIRECT = 300
_REDIRECTS = frozenset({300, 301, 302, 303, 305, 307, 308})
_BODILESS = frozenset({204, 304})
_LASTING_ERRORS = frozenset({501, 505, 506, 508, 510})

_SENDABLE = re.compile(r"(?:[A-Za-z0-9._~:/?@!$&'()*+,;=-]|%[0-9A-F]{2})*")
_PLAIN = re.compile(r"[A-Za-z0-9_.~,-]*")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_ID_SEGMENT = re.compile(r"(?<=/)(?:[0-9]+|[0-9a-fA-F-]{8,}|[^/]{33,})(?=/|$)")
_COOKIE_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_COOKIE_VALUE = re.compile(r"[\x20-\x3a\x3c-\x7e]*")
_MISMATCH = re.compile(r"(?P<problem>.*?)(?: - at `(?P<path>.*)`)?", re.DOTALL)
_SAFE_PROBLEMS = ("Expected `", "Object missing required field `")

_USUAL_HEADERS = {
    "accept": "application/json, */*;q=0.5",
    "accept-encoding": "gzip",
    "user-agent": "learning-gateway",
}

_Loss = tuple[type[ProviderError], str, bool]

# What the libraries raise, and what the caller gets: an error, what is said of the provider, and
# whether the same call may work a moment later. The first line that matches counts. After a timeout
# nothing is sent again: a provider that stopped answering is likely still at work on the first
# request, and the kernel has knocked several times at one that cannot be connected to.
_LOSSES: tuple[tuple[tuple[type[Exception], ...], _Loss], ...] = (
    (
        (aiohttp.ClientConnectorCertificateError,),
        (ProviderUnavailable, "shows a certificate that is not valid", False),
    ),
    (
        (aiohttp.ClientResponseError,),
        (ProviderBadResponse, "did not answer in proper HTTP", False),
    ),
    (
        (aiohttp.ConnectionTimeoutError, httpx.ConnectTimeout),
        (ProviderTimeout, "could not be connected to in time", False),
    ),
    (
        (TimeoutError, httpx.TimeoutException),
        (ProviderTimeout, "stopped answering", False),
    ),
    (
        (aiohttp.ClientConnectorDNSError,),
        (ProviderUnavailable, "was not found: its host name does not resolve", True),
    ),
    (
        (aiohttp.ClientSSLError,),
        (ProviderUnavailable, "does not speak TLS as expected", False),
    ),
    (
        (aiohttp.ClientConnectorError, httpx.ConnectError),
        (ProviderUnavailable, "could not be connected to", True),
    ),
)
_CUT: _Loss = (ProviderUnavailable, "cut the connection", True)


@dataclass(slots=True, kw_only=True)
class _Request:
    """What is sent.

    Attributes:
        url: Whole, without a fragment, of nothing but characters that need no quoting.
        headers: Lower-case names; ``Host`` and the body's length are added on the way.
    """

    method: str
    url: str
    headers: dict[str, str]
    content: bytes | None


@dataclass(slots=True, kw_only=True)
class _Answer:
    """What begins to come back.

    Attributes:
        headers: As ``Response.headers``.
        set_cookies: Values of ``Set-Cookie``, in order.
        pieces: The body as it comes, still compressed.
        take_whole: Gives the body, if all of it is there already; instead of the pieces.
    """

    status: int
    headers: Mapping[str, str]
    set_cookies: Sequence[str]
    pieces: AsyncIterator[bytes]
    take_whole: Callable[[], bytes] | None = None


class _Carrier(Protocol):
    """Brings one request there and its answer back."""

    def send(self, request: _Request) -> AbstractAsyncContextManager[_Answer]:
        """Lend the answer; what is not read of it is given up at the end."""

    async def aclose(self) -> None:
        """Close every connection."""


@dataclass(slots=True, kw_only=True)
class _Call:
    """One call, however often it is sent.

    Attributes:
        path: Template of it, for observations.
        is_elsewhere: Whether it may go to another host than the provider's.
    """

    request: _Request
    path: str
    max_body_bytes: int
    expected: Collection[int]
    repeatable: bool
    is_throttle: Callable[[Response], bool] | None = None
    is_elsewhere: bool = False


@dataclass(slots=True, kw_only=True)
class _Failure:
    """How one request failed; ``passing`` when the same request may work a moment later."""

    error: ProviderError
    passing: bool
    status: int | None = None
    cause: Exception | None = None


class _BadBody(Exception):
    """A body that is too large or not encoded as it says; the text completes "<host> ..."."""


class _BodyTooLarge(_BadBody):
    """A body larger than who asked for it can use."""


class _AddressDenied(OSError):
    """The policy's refusal, as an error that connecting code expects."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class _ConnectionLost(aiohttp.ClientConnectionError):
    """A lost connection, as an error that aiohttp does not answer by sending again."""


class _RetryBudget:
    """How many retries all calls to one provider may make, so that retries never swamp it.

    Counts calls and retries of the current and the previous ten seconds.
    """

    def __init__(self, *, ratio: float, floor: int) -> None:
        self._ratio = ratio
        self._floor = floor
        self._now = asyncio.get_running_loop().time
        self._period = -1
        self._calls = [0, 0]
        self._retries = [0, 0]

    def count_call(self) -> None:
        self._turn()
        self._calls[0] += 1

    def take_retry(self) -> bool:
        """Return whether one more retry is allowed, counting it if so."""
        self._turn()
        if sum(self._retries) >= self._floor + self._ratio * sum(self._calls):
            return False
        self._retries[0] += 1
        return True

    def _turn(self) -> None:
        period = int(self._now() / _BUDGET_SECONDS)
        if period == self._period:
            return
        follows = period == self._period + 1
        self._calls = [0, self._calls[0] if follows else 0]
        self._retries = [0, self._retries[0] if follows else 0]
        self._period = period


class _JudgingResolver(AbstractResolver):
    """Resolves names to addresses, all of which must be allowed: one bad answer taints the rest."""

    def __init__(self, policy: AddressPolicy, *, lookup: Lookup) -> None:
        self._policy = policy
        self._lookup = lookup

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        addresses = await self._lookup(host)
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "no address")
        for address in addresses:
            _judge(self._policy, address, port=port)
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=family,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
            for address in addresses
        ]

    async def close(self) -> None:
        """Hold nothing that needs closing."""


class _Naming:
    """Adds the provider's id to a refused address.

    Made by hand because it is on the path of every call, as what follows from it here.
    """

    __slots__ = ("_provider_id",)

    def __init__(self, provider_id: str | None) -> None:
        self._provider_id = provider_id

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, _kind: object, error: object, _trace: object) -> None:
        if isinstance(error, ProviderAddressRefused):
            error.provider_id = self._provider_id


class _Sending:
    """One request on its way by aiohttp."""

    __slots__ = ("_exchange", "_response")

    def __init__(self, exchange: Awaitable[aiohttp.ClientResponse]) -> None:
        self._exchange = exchange
        self._response: aiohttp.ClientResponse

    async def __aenter__(self) -> _Answer:
        response = self._response = await self._exchange
        headers, set_cookies = _gather(response.raw_headers)
        content = response.content
        return _Answer(
            status=response.status,
            headers=headers,
            set_cookies=set_cookies,
            take_whole=content.read_nowait if content.is_eof() else None,
            pieces=aiter(content.iter_any()),
        )

    async def __aexit__(self, *_error: object) -> None:
        if self._response.connection is not None:  # else all was read
            self._response.release()


class _Network:
    """Carries requests by aiohttp, to addresses that the policy allows."""

    def __init__(self, policy: AddressPolicy, *, limits: HttpLimits, lookup: Lookup | None) -> None:
        def open_socket(info: aiohttp.AddrInfoType) -> socket.socket:
            family, kind, protocol, _, address = info
            _judge(policy, str(address[0]), port=int(address[1]))
            return socket.socket(family, kind, protocol)

        self.connector = aiohttp.TCPConnector(
            limit=limits.max_connections,
            ssl=_tls(),
            resolver=_JudgingResolver(policy, lookup=lookup or _system_lookup),
            socket_factory=open_socket,
            keepalive_timeout=_KEEP_ALIVE_SECONDS,
        )
        self._session = aiohttp.ClientSession(
            connector=self.connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            middlewares=(_send_once,),
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(
                sock_connect=limits.connect_seconds,
                sock_read=limits.read_seconds,
                # covers the wait for a connection and the making of it
                connect=limits.pool_seconds + limits.connect_seconds,
            ),
        )

    def send(self, request: _Request) -> _Sending:
        return _Sending(
            self._session.request(
                request.method,
                URL(request.url, encoded=True),
                headers=request.headers,
                data=request.content,
                allow_redirects=False,
            )
        )

    async def aclose(self) -> None:
        await self._session.close()


class _Pretended:
    """Carries requests by a transport of httpx, such as tests make."""

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self._transport = transport

    @asynccontextmanager
    async def send(self, request: _Request) -> AsyncIterator[_Answer]:
        response = await self._transport.handle_async_request(
            httpx.Request(
                request.method, request.url, headers=request.headers, content=request.content
            )
        )
        try:
            if not isinstance(response.stream, httpx.AsyncByteStream):
                raise TypeError("The transport's answer is not asynchronous")
            headers, set_cookies = _gather(response.headers.raw)
            yield _Answer(
                status=response.status_code,
                headers=headers,
                set_cookies=set_cookies,
                pieces=aiter(response.stream),
            )
        finally:
            await response.aclose()

    async def aclose(self) -> None:
        await self._transport.aclose()


def _now() -> float:
    return asyncio.get_running_loop().time()


def _judge(policy: AddressPolicy, address: str, *, port: int) -> None:
    try:
        policy.check_address(address, port)
    except ProviderAddressRefused as refusal:
        raise _AddressDenied(refusal.message) from refusal


@cache
def _tls() -> ssl.SSLContext:
    """Return one TLS context for all providers: reading the certificates is slow.

    Trusts the bundled authorities and those of the system, where an operator adds their own.
    """
    context = httpx.create_ssl_context(trust_env=False)
    context.load_default_certs()
    return context


async def _system_lookup(host: str) -> Sequence[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [str(address[0]) for _, _, _, _, address in found]


async def _send_once(
    request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Keep aiohttp from sending again by itself, unseen and uncounted."""
    try:
        return await send(request)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise _ConnectionLost("connection lost") from error


def _query(values: Params) -> str:
    """Return values as a query, or a form, holds them."""
    parts = []
    for name, given in values.items() if isinstance(values, Mapping) else values:
        quoted = _quoted(name)
        every = (given,) if isinstance(given, ParamValue) else given
        parts += [f"{quoted}={_quoted(_text(value))}" for value in every if value is not None]
    return "&".join(parts)


def _quoted(text: str) -> str:
    """Return what ``quote_plus`` does, sooner for numbers, ids and lists of ids."""
    return text.replace(",", "%2C") if _PLAIN.fullmatch(text) else quote_plus(text)


def _text(value: ParamValue) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _content(*, json: object | None, form: Params | None) -> bytes | None:
    if json is not None:
        return msgspec.json.encode(json)
    return None if form is None else _query(form).encode()


def _headers(
    given: Mapping[str, str] | None,
    *,
    cookies: Mapping[str, str] | None,
    json: object | None,
    form: Params | None,
    if_none_match: str | None,
) -> dict[str, str]:
    headers = dict(_USUAL_HEADERS)
    if json is not None:
        headers["content-type"] = "application/json"
    elif form is not None:
        headers["content-type"] = "application/x-www-form-urlencoded"
    if if_none_match is not None:
        headers["if-none-match"] = if_none_match
    if cookies:
        headers["cookie"] = "; ".join(f"{name}={value}" for name, value in cookies.items())
    for name, value in (given or {}).items():
        headers[name.lower()] = value
    return headers


def _gather(items: Iterable[tuple[bytes, bytes]]) -> tuple[dict[str, str], list[str]]:
    """Return the headers by lower-case name, and apart from them the ``Set-Cookie`` values."""
    headers: dict[str, str] = {}
    set_cookies = []
    for raw_name, raw_value in items:
        name = raw_name.decode("latin-1").lower()
        try:
            value = raw_value.decode()
        except UnicodeDecodeError:  # hardly anybody writes anything but ASCII
            value = raw_value.decode("latin-1")
        if name == "set-cookie":
            set_cookies.append(value)
        else:
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers, set_cookies


def _parse_cookies(values: Iterable[str]) -> tuple[dict[str, str], frozenset[str]]:
    """Return the cookies that are set and the names of those that are taken back.

    Reads as RFC 6265 section 5.2 has browsers do. The standard library's parser drops a whole
    header for one attribute it does not know, such as ``Partitioned``.
    """
    cookies: dict[str, str] = {}
    deleted = set()
    for header in values:
        pair, *attributes = header.split(";")
        name, equals, value = pair.partition("=")
        name, value = name.strip(), value.strip()
        if not (equals and _COOKIE_NAME.fullmatch(name) and _COOKIE_VALUE.fullmatch(value)):
            continue
        if not value or _is_past(attributes):
            cookies.pop(name, None)
            deleted.add(name)
        else:
            cookies[name] = value
            deleted.discard(name)
    return cookies, frozenset(deleted)


def _is_past(attributes: Iterable[str]) -> bool:
    """Return whether a cookie's attributes end it now; ``Max-Age`` counts before ``Expires``."""
    values = {}
    for attribute in attributes:
        name, _, value = attribute.partition("=")
        values[name.strip().lower()] = value.strip()
    if re.fullmatch(r"-?[0-9]+", values.get("max-age", "")):
        return values["max-age"].startswith("-") or not values["max-age"].strip("0")
    expires_at = _instant(values.get("expires", ""))
    return expires_at is not None and expires_at <= time.time()


def _instant(text: str) -> float | None:
    """Return an HTTP date as seconds since 1970, or ``None`` if it is none."""
    try:
        return parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):
        return None


def _retry_after(value: str | None) -> int | None:
    """Return the whole seconds a ``Retry-After`` asks for, at most a day."""
    text = (value or "").strip()
    if re.fullmatch(r"[0-9]{1,9}", text):
        seconds = int(text)
    else:
        instant = _instant(text)
        if instant is None:
            return None
        seconds = ceil(instant - time.time())
    return max(0, min(seconds, 24 * 60 * 60))


def _target(location: str, *, base: Origin) -> str:
    """Return the origin a redirect leads to, never more of it."""
    if location.startswith("//"):
        location = f"{base.scheme}:{location}"
    if not _SCHEME.match(location):
        return str(base)
    try:
        origin, _ = split_url(location)
    except ProviderAddressRefused:
        return "an address that is not readable"
    return str(origin)


async def _read_body(answer: _Answer, *, max_bytes: int) -> bytes:
    gzip = _gzip_of(answer, max_bytes=max_bytes)
    declared = answer.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise _BodyTooLarge(f"answered with more than {max_bytes} bytes")
    if gzip is None and answer.take_whole is not None:
        return _bounded(answer.take_whole(), max_bytes=max_bytes)
    received, body = 0, list[bytes]()
    pieces = answer.pieces
    try:
        async for piece in pieces:
            received += len(piece)
            if received > max_bytes:
                raise _BodyTooLarge(f"answered with more than {max_bytes} bytes")
            if gzip is None:
                body.append(piece)
                continue
            for unpacked in gzip.unpack(piece):
                body.append(unpacked)
                if len(unpacked) == _PIECE_BYTES:
                    await asyncio.sleep(0)
    finally:
        if isinstance(pieces, AsyncGenerator):
            await pieces.aclose()
    if gzip is not None:
        gzip.end()
    return b"".join(body)


def _gzip_of(answer: _Answer, *, max_bytes: int) -> _Gzip | None:
    """Return what decompresses an answer, if need be."""
    encoding = answer.headers.get("content-encoding", "").strip().lower()
    if encoding in {"", "identity"}:
        return None
    if encoding not in {"gzip", "x-gzip"}:
        raise _BadBody("answered in an encoding it was not asked for")
    return _Gzip(max_bytes)


def _bounded(body: bytes, *, max_bytes: int) -> bytes:
    if len(body) > max_bytes:
        raise _BodyTooLarge(f"answered with more than {max_bytes} bytes")
    return body


class _Gzip:
    """Decompresses gzip, of one member or several.

    Args:
        max_bytes: Never makes more than that and a piece.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._unpacked = 0
        self._member = zlib.decompressobj(_GZIP)
        self._is_begun = False

    def unpack(self, chunk: bytes) -> Iterator[bytes]:
        """Yield what a chunk holds, piece by piece."""
        rest = chunk
        while rest:
            if self._member.eof:
                self._member = zlib.decompressobj(_GZIP)
            try:
                piece = self._member.decompress(rest, _PIECE_BYTES)
            except zlib.error as error:
                raise _BadBody("answered with broken gzip") from error
            self._is_begun = True
            self._unpacked += len(piece)
            if self._unpacked > self._max_bytes:
                raise _BodyTooLarge(f"answered with more than {self._max_bytes} bytes")
            yield piece
            rest = self._member.unused_data if self._member.eof else self._member.unconsumed_tail

    def end(self) -> None:
        """Make sure that nothing is missing."""
        if self._is_begun and not self._member.eof:
            raise _BadBody("cut its answer short")


@lru_cache(maxsize=1024)
def _template(url: str) -> str:
    """Return the path of a URL without a query, as a person reads it, with ``{id}`` for ids."""
    path = url.partition("://")[2].partition("/")[2]
    return _ID_SEGMENT.sub("{id}", "/" + unquote(path))


def _detail(root: BaseException) -> str:
    """Return the system's own words for a problem, where they come from no provider."""
    if isinstance(root, aiohttp.ClientConnectorCertificateError):
        problem = getattr(root.certificate_error, "verify_message", "")
        return f" ({problem})" if problem else ""
    if isinstance(root, aiohttp.ClientConnectorDNSError):
        return ""
    number = root.os_error.errno if isinstance(root, aiohttp.ClientConnectorError) else None
    return f" ({os.strerror(number)})" if number is not None and number > 0 else ""


def _mismatch(error: msgspec.ValidationError) -> str:
    """Return where and how JSON differs, without quoting what the provider sent."""
    found = _MISMATCH.fullmatch(str(error))
    problem = found["problem"] if found else ""
    where = (found and found["path"]) or "$"
    if not problem.startswith(_SAFE_PROBLEMS):
        problem = "a value that is not allowed"
    return f"{problem} at {where}"
