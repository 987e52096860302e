"""Canvas's conventions on the wire, for one subject: who calls, how fast, pages, and every refusal.

What Canvas answers to whom is in ``reading``; this module knows only how a call is made and what
an answer means. Four habits of Canvas shape it:

- 401 has two meanings. With ``WWW-Authenticate`` the token does not hold; without it the token
  holds and lacks a permission, which newer releases say with 403.
- 403 has two meanings as well: a call that came too fast is refused in plain text that says
  ``Rate Limit Exceeded``, which newer releases say with 429.
- Lists say in ``Link`` where they go on, with an address that must not be believed.
- What is not the API, such as a login page, answers 200 with HTML or a redirect.

Source:
    https://canvas.instructure.com/doc/api/file.oauth.html
    https://canvas.instructure.com/doc/api/file.pagination.html
    https://canvas.instructure.com/doc/api/file.throttling.html
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from http import HTTPStatus
from math import ceil, inf
from typing import Any, Final, Generic, Protocol, TypeVar
from urllib.parse import parse_qsl, quote, urlencode, urljoin

import msgspec

from sessions.addresses import Origin, split_url
from sessions.base import Grant, Subject, SubjectKind
from sessions.errors import (
    ProviderAddressRefused,
    ProviderBadResponse,
    ProviderForbidden,
    ProviderRateLimited,
    SessionLost,
)
from sessions.http import Params, ParamValue, ProviderHttp, Response, seconds_of_patience
from sessions.pacing import Bucket
from sessions.sharing import work_off
from storage.credentials import Secret
from storage.records import Provider

T = TypeVar("T")

ACCESS_TOKEN: Final = "access_token"  # noqa: S105 - a name in the grant, not a token
"""Name under which a grant holds the token that calls are made with."""

LINK_ORIGIN: Final = "link_origin"
"""Option: one more origin that Canvas writes into ``Link``, when a proxy stands before it."""

BUCKET: Final = Bucket(capacity=600, leak_per_second=10, reserve=50, cost=50, concurrency=6)
"""How Canvas limits each token, by the defaults of its source; 13 calls at once would be refused,
so six leave room for a second gateway."""

PAGE: Final = 100
"""Rows asked for; Canvas gives fewer where its release has a lower limit, and does not say so."""

_TRIES: Final = 5
_PAGES_AHEAD: Final = 200  # whatever it says is the last; after these the list goes on page by page
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_EXPECTED: Final = _REDIRECTS | {HTTPStatus.TOO_MANY_REQUESTS}
_THROTTLED: Final = b"Rate Limit Exceeded"
_ACCEPT: Final = "application/json+canvas-string-ids, application/json"
_API: Final = "/api/v1/"
_LONG_QUERY: Final = 1500  # Link headers are cut at some 6 kB, and repeat the query up to 4 times
_SHOWN_CHARACTERS: Final = 200

_LINK = re.compile(r'<([^<>]*)>((?:\s*;\s*[^\s;,="]+(?:\s*=\s*(?:"[^"]*"|[^\s;,"]*))?)*)')
_LINK_PARAM = re.compile(r';\s*([^\s;,="]+)\s*=\s*(?:"([^"]*)"|([^\s;,"]*))')
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://\S*", re.IGNORECASE)
_TOKEN = re.compile(r"\S*[A-Za-z0-9~_-]{24,}\S*")
_NUMBER = re.compile(r"(?<=/)[0-9~]+(?=/|$)")


class NotThere(ProviderBadResponse):
    """Canvas has no such thing, or hides it from whoever asks (status 404)."""


class ScopesMissing(ProviderForbidden):
    """The token was given for less than this call, whoever it acts for."""


class Authorised(Protocol):
    """Runs a call with the current grant, and again with a new one; ``ProviderSession`` has it."""

    async def __call__(self, call: Callable[[Grant], Awaitable[T]], /) -> T:
        """Run the call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed(Generic[T]):
    """One page of a list.

    Attributes:
        items: As many as Canvas gave, which may be fewer than asked for.
        following: Path and query of the next page, below ``/api/v1/``; ``None`` at the end.
        last: Number of the last page, where pages are numbered and Canvas tells.
        size: Rows a page holds, as Canvas says in its links; ``None`` when it does not.
    """

    items: list[T]
    following: str | None
    last: int | None
    size: int | None


class GraphError(msgspec.Struct, frozen=True, gc=False):
    """One problem GraphQL reports; the message is upstream text and not for people."""

    message: str = ""


class GraphAnswer(msgspec.Struct, Generic[T], frozen=True):
    """What GraphQL answers, always with status 200: data, problems, or some of both."""

    data: T | None = None
    errors: list[GraphError] = []


class CanvasWire:
    """Calls to one Canvas on behalf of one subject, never faster than its token bears.

    Paths are relative to ``/api/v1/`` and put together with ``segment``.

    Args:
        provider: The installation; its base URL may end in ``/api/v1``.
        http: HTTP to it.
        subject: Whom the calls act for.
        authorised: Gives each call its grant.
    """

    def __init__(
        self, provider: Provider, *, http: ProviderHttp, subject: Subject, authorised: Authorised
    ) -> None:
        self._provider = provider
        self._http = http
        self._subject = subject
        self._authorised = authorised
        self.root = api_root(http.base_url)
        self._origin, self._prefix = split_url(self.root)
        self._link_origin = _origin_or_none(provider.options.get(LINK_ORIGIN))

    def holding(self, token: Secret[str]) -> CanvasWire:
        """Return the same wire with this very token, for calls that make or prove a grant.

        Its calls raise ``SessionLost`` when the token does not hold.
        """
        grant = Grant(version=0, secret=Secret({ACCESS_TOKEN: token.reveal()}))

        async def with_token(call: Callable[[Grant], Awaitable[T]], /) -> T:
            return await call(grant)

        return CanvasWire(
            self._provider, http=self._http, subject=self._subject, authorised=with_token
        )

    # ---- reading

    async def get(self, path: str, type_: type[T], *, params: Params = ()) -> T:
        """Return one object.

        Raises:
            NotThere: There is none, or it is hidden.
            ProviderForbidden: The subject may not.
            ProviderError: As for every call.
        """
        response = await self._call("GET", self._url(path), params=params)
        return self._success(response).decode(type_)

    async def find(self, path: str, type_: type[T], *, params: Params = ()) -> T | None:
        """Return one object, or ``None`` if there is none or it is hidden.

        Raises:
            ProviderError: As for ``get``.
        """
        try:
            return await self.get(path, type_, params=params)
        except NotThere:
            return None

    async def page(self, path: str, type_: type[T], *, params: Params = ()) -> Listed[T]:
        """Return one page of a list; ``path`` may be what an earlier page named as following.

        Raises:
            NotThere: What the list belongs to is not there, or hidden.
            ProviderBadResponse: Another origin is named to go on at, or nothing can be known about
                what follows.
            ProviderError: As for every call.
        """
        bare, _, query = path.partition("?")
        asked = _pairs(params, ("as_user_id",))
        asked += _pairs(parse_qsl(query, keep_blank_values=True), ("as_user_id", "access_token"))
        response = self._success(await self._call("GET", self._url(bare), params=asked))
        items: list[T] = response.decode(list[type_])  # type: ignore[valid-type]  # known only now
        links = dict(_links(response.headers.get("link", "")))
        following = None if "next" not in links else self._below(links["next"], bare)
        if following is None and self._may_go_on(items, links=links, asked=asked):
            raise self._bad("Canvas gave a full page and did not say what follows")
        return Listed(
            items=items,
            following=following,
            last=_whole(_param_of(links.get("last", ""), "page")),
            size=_whole(_param_of(next(iter(links.values()), ""), "per_page")),
        )

    async def pages(
        self, path: str, type_: type[T], *, params: Params = ()
    ) -> AsyncIterator[list[T]]:
        """Yield the pages of a list to its end; ``path`` may be as for ``page``.

        Raises:
            ProviderBadResponse: The pages lead in a circle; also as for ``page``.
            ProviderError: As for ``page``.
        """
        goes_on = "?" in path
        size: list[tuple[str, ParamValue]] = [] if goes_on else [("per_page", PAGE)]
        listed = await self.page(path, type_, params=[*_pairs(params), *size])
        seen = {path} if goes_on else set[str]()
        while True:
            yield listed.items
            if listed.following is None:
                return
            if listed.following in seen:
                raise self._bad("Canvas's pages lead in a circle")
            seen.add(listed.following)
            listed = await self.page(listed.following, type_)

    async def rows(self, path: str, type_: type[T], *, params: Params = ()) -> list[T]:
        """Return a whole list, its further pages side by side where they are numbered.

        Raises:
            ProviderError: As for ``pages``.
        """
        first = await self.page(path, type_, params=[*_pairs(params), ("per_page", PAGE)])
        found = await work_off(
            _numbered(first),
            lambda following: self.page(following, type_),
            at_once=BUCKET.concurrency,
        )
        listed = [first, *(found[following] for following in _numbered(first))]
        rows = [row for page in listed for row in page.items]
        if listed[-1].following is not None:
            rows += [row async for page in self.pages(listed[-1].following, type_) for row in page]
        return rows

    async def graphql(
        self, query: str, type_: type[T], *, variables: Mapping[str, Any] | None = None
    ) -> GraphAnswer[T]:
        """Run one GraphQL query; problems are in the answer, beside the data there is.

        Raises:
            NotThere: This Canvas has no GraphQL.
            ProviderError: As for every call.

        Source:
            https://canvas.instructure.com/doc/api/file.graphql.html
        """
        form: dict[str, ParamValue] = {"query": query}
        if variables:
            form["variables"] = msgspec.json.encode(variables).decode()
        url = f"{self.root}/api/graphql"
        response = await self._call("POST", url, form=form, only_reads=True)
        return self._success(response).decode(GraphAnswer[type_])  # type: ignore[valid-type]  # the same

    def check_time(self) -> None:
        """Do nothing, as long as the caller has time for another call.

        Raises:
            ProviderTimeout: There is none left.
        """
        self._http.seconds_left()

    # ---- writing

    async def send(self, method: str, path: str, *, form: Params = ()) -> Response:
        """Send a write, its parameters in the body; repeated only when Canvas never looked at it.

        Any other status under 500 is returned: see ``problem_of`` and ``problems_by_field``.

        Raises:
            ProviderForbidden: The subject may not.
            ProviderTimeout: Not answered in time: whether it was done is unknown.
            ProviderUnavailable: The same, unless it was not reached at all.
            ProviderError: As for every call.
        """
        return await self._call(method, self._url(path), form=form)

    # ---- one call

    async def _call(
        self,
        method: str,
        url: str,
        *,
        params: Params = (),
        form: Params | None = None,
        only_reads: bool = False,
    ) -> Response:
        asked = _pairs(params)
        if self._subject.kind is SubjectKind.MASQUERADE:
            asked.append(("as_user_id", self._subject.user_id))

        async def call(grant: Grant) -> Response:
            token = grant.secret.reveal().get(ACCESS_TOKEN)
            if not token:
                raise SessionLost

            async def request(seconds: float) -> Response:
                return await self._http.request(
                    method,
                    url,
                    total_seconds=seconds,
                    params=asked,
                    form=form,
                    headers={"authorization": f"Bearer {token}", "accept": _ACCEPT},
                    expected=_EXPECTED,
                    is_throttle=is_throttled,
                    idempotent=only_reads,
                )

            return self._judged(await self._paced(request), method=method, url=url)

        return await self._authorised(call)

    async def _paced(self, request: Callable[[float], Awaitable[Response]]) -> Response:
        """Make a call when its turn comes, again if it was too early, within its deadline."""
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + self._http.seconds_left()
        left = seconds_of_patience()
        patient_until = ends_at if left is None else min(ends_at, loop.time() + left)
        pause_seconds = 0.0
        for _ in range(_TRIES):
            async with AsyncExitStack() as stack:
                pacer = self._http.pacers.get(self._bucket_name(), BUCKET)
                turn = pacer.turn(
                    patience_seconds=inf if left is None else patient_until - loop.time()
                )
                try:
                    async with asyncio.timeout_at(ends_at):
                        await stack.enter_async_context(turn)
                except TimeoutError:
                    pause_seconds = pacer.expected_wait()
                    break
                response = await request(ends_at - loop.time())
                if not is_throttled(response):
                    pacer.note_room(response.headers.get("x-rate-limit-remaining"))
                    return response
                pause_seconds = pacer.note_refusal(retry_after(response))
            if loop.time() + pause_seconds >= patient_until:
                break
        raise ProviderRateLimited(
            "Canvas limits the rate of calls, and this one's turn did not come in time",
            provider_id=self._provider.id,
            retry_after_seconds=max(1, ceil(pause_seconds)),
        )

    def _bucket_name(self) -> str:
        """Return whose bucket the calls pour into: that of the token, not that of the user."""
        own = self._subject.kind is SubjectKind.USER
        return str(self._subject) if own else SubjectKind.SERVICE.value

    def _judged(self, response: Response, *, method: str, url: str) -> Response:
        """Return an answer of Canvas's own to a call that the subject may make."""
        status = response.status
        if status in _REDIRECTS or (_is_html(response) and status != HTTPStatus.NOT_FOUND):
            raise response.refuse(
                self._bad(f"This is not a Canvas API: it answered like a website ({status})")
            )
        if status == HTTPStatus.UNAUTHORIZED and "www-authenticate" in response.headers:
            raise SessionLost
        if status not in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            return response
        problem = problem_of(response)
        if "insufficient scopes" in (problem or "").lower():
            called = _NUMBER.sub(":id", url.removeprefix(self.root))
            raise ScopesMissing(
                f"The access token's scopes are not enough for {method} {called}",
                provider_id=self._provider.id,
            )
        raise ProviderForbidden(
            f"Canvas does not permit this: {problem or f'status {status}'}",
            provider_id=self._provider.id,
        )

    def _success(self, response: Response) -> Response:
        if response.status == HTTPStatus.NOT_FOUND:
            raise NotThere("Canvas has no such thing, or hides it", provider_id=self._provider.id)
        if response.status >= HTTPStatus.BAD_REQUEST:
            problem = problem_of(response) or "it did not say why"
            raise self._bad(f"Canvas refused the request: {problem} (status {response.status})")
        return response

    # ---- addresses

    def _url(self, path: str) -> str:
        return f"{self.root}{_API}{path}"

    def _below(self, target: str, path: str) -> str:
        """Return an address Canvas named as path and query below ``/api/v1/``.

        Raises:
            ProviderBadResponse: It leads elsewhere. Nothing is sent there.
        """
        try:
            origin, rest = split_url(urljoin(self._url(path), target.replace(" ", "%20")))
        except (ProviderAddressRefused, ValueError):
            raise self._bad("Canvas's list goes on at an address that cannot be read") from None
        bare, mark, query = rest.partition("#")[0].partition("?")
        starts = [self._prefix + _API] if origin == self._origin else []
        if origin == self._link_origin:
            starts = [self._prefix + _API, _API]
        for start in starts:
            if bare.startswith(start):
                return bare.removeprefix(start) + mark + query
        raise self._bad(
            f"Canvas's list goes on at {origin}, which is not this Canvas: if a proxy stands "
            f"before it, set the option {LINK_ORIGIN}"
        )

    def _may_go_on(
        self,
        items: list[T],
        *,
        links: Mapping[str, str],
        asked: list[tuple[str, ParamValue]],
    ) -> bool:
        """Whether a full page may have lost its link: none came at all, or the query was long."""
        size = _whole(str(dict(asked).get("per_page", ""))) or PAGE
        return len(items) >= size and (not links or len(urlencode(asked)) > _LONG_QUERY)

    def _bad(self, message: str) -> ProviderBadResponse:
        return ProviderBadResponse(message, provider_id=self._provider.id)


# ---- what an answer says -----------------------------------------------------------------


def api_root(base_url: str) -> str:
    """Return where a Canvas is, whether or not its address was given with that of its API."""
    return base_url.rstrip("/").removesuffix("/api/v1").removesuffix("/api")


def segment(text: str) -> str:
    """Write an id as one segment of a path, whatever it holds."""
    return quote(text, safe="~:")


def problem_of(response: Response) -> str | None:
    """Return why Canvas refused, short and safe to show; ``None`` when it cannot be told.

    Nothing of HTML, of addresses, or of what looks like a token is passed on.
    """
    if _is_html(response):
        return None
    try:
        answer: Any = msgspec.json.decode(response.body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _shown(response.text())
    texts = [shown for text in _texts(answer) if (shown := _shown(text))]
    return _shown("; ".join(dict.fromkeys(texts)))


def problems_by_field(response: Response) -> dict[str, str]:
    """Return what is wrong with each field Canvas names, by its last name: ``unique_id``."""
    try:
        answer: Any = msgspec.json.decode(response.body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {}
    found = answer.get("errors") if isinstance(answer, dict) else None
    problems = found if isinstance(found, list) else [found]
    named = [(name, text) for each in problems for name, text in _named_texts(each)]
    return {name: shown for name, text in reversed(named) if (shown := _shown(text))}


def _texts(answer: Any) -> Iterator[str]:
    """Yield the messages in an error body, whichever of its shapes Canvas chose."""
    if isinstance(answer, str):
        yield answer
    elif isinstance(answer, list):
        for item in answer:
            yield from _texts(item)
    elif isinstance(answer, dict):
        own = [answer.get(name) for name in ("message", "error_description", "error")]
        said = next((text for text in own if text), None)
        if said is not None:
            yield from _texts(said)
        elif "errors" in answer:
            yield from _texts(answer["errors"])
        else:
            for item in answer.values():
                if isinstance(item, dict | list):
                    yield from _texts(item)


def _named_texts(problem: Any) -> Iterator[tuple[str, str]]:
    if not isinstance(problem, dict):
        return
    named = problem.get("attribute") or problem.get("field")
    if isinstance(named, str) and isinstance(problem.get("message"), str):
        yield named, problem["message"]
        return
    for name, items in problem.items():
        for item in items if isinstance(items, list) else [items]:
            if isinstance(item, dict) and "message" in item and "attribute" not in item:
                yield name, str(item["message"])
            else:
                yield from _named_texts(item)


def _shown(text: str) -> str | None:
    if "<" in text:
        return None
    plain = " ".join(_TOKEN.sub("…", _ADDRESS.sub("…", text)).split())
    plain = "".join(character for character in plain if character.isprintable()).rstrip(". ")
    short = plain[:_SHOWN_CHARACTERS]
    return (short if short == plain else f"{short[:-1]}…") or None


def is_throttled(response: Response) -> bool:
    """Whether Canvas turned a call away for being too fast: 429, or its older 403 that says so.

    Source:
        https://canvas.instructure.com/doc/api/file.throttling.html
    """
    if response.status == HTTPStatus.TOO_MANY_REQUESTS:
        return True
    return response.status == HTTPStatus.FORBIDDEN and _THROTTLED in response.body


def retry_after(response: Response) -> float | None:
    """Return the seconds to wait; no Canvas read says any, so dates are not worth reading."""
    seconds = _whole(response.headers.get("retry-after"))
    return None if seconds is None else float(seconds)


def _is_html(response: Response) -> bool:
    media_type = response.headers.get("content-type", "").lower()
    return media_type.startswith(("text/html", "application/xhtml")) or (
        response.body[:64].lstrip().startswith(b"<")
    )


def _links(header: str) -> Iterator[tuple[str, str]]:
    """Yield each relation of a ``Link`` header with its target; parameters come in any order.

    Source:
        https://www.rfc-editor.org/rfc/rfc8288#section-3
    """
    for target, params in _LINK.findall(header):
        for name, quoted, bare in _LINK_PARAM.findall(params):
            if name.lower() == "rel":
                for relation in (quoted or bare).lower().split():
                    yield relation, target


def _numbered(first: Listed[Any]) -> list[str]:
    """Return the addresses of the pages after the first, where they are numbered and it tells."""
    bare, _, query = (first.following or "").partition("?")
    if first.last is None or _param_of(first.following or "", "page") != "2":
        return []
    others = [pair for pair in parse_qsl(query, keep_blank_values=True) if pair[0] != "page"]
    numbers = range(2, min(first.last, _PAGES_AHEAD) + 1)
    return [f"{bare}?{urlencode([*others, ('page', number)])}" for number in numbers]


def _param_of(url: str, name: str) -> str | None:
    return dict(parse_qsl(url.partition("?")[2])).get(name)


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch(r"[0-9]{1,9}", text) else None


def _pairs(params: Params, without: tuple[str, ...] = ()) -> list[tuple[str, ParamValue]]:
    """Return parameters one by one, those of several values repeated."""
    given = params.items() if isinstance(params, Mapping) else params
    pairs = list[tuple[str, ParamValue]]()
    for name, value in given:
        values = [value] if isinstance(value, ParamValue) else value
        pairs += [(name, each) for each in values if name not in without]
    return pairs


def _origin_or_none(text: str | None) -> Origin | None:
    try:
        return split_url(text)[0] if text else None
    except ProviderAddressRefused:
        return None
