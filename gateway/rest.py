"""The REST surface: what existing products speak.

Whole rosters are written as they are produced, a page at a time. The first page is awaited before
the status line, so that an error is a problem document; a failure later breaks the connection off,
so that no cut answer passes for a whole one.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, Final, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Send

from gateway.assembly import Gateway
from gateway.bodies import decode_object, read_body
from gateway.problems import AnswerCutShort, problem, unauthenticated
from resolvers import people, roster
from resolvers.auditing import registering
from resolvers.context import (
    NOT_FOR_USERS,
    Access,
    ProviderDraft,
    Refusal,
    RequestContext,
    Scope,
)
from resolvers.errors import BadInput, Forbidden
from resolvers.quotas import Charge
from schema.costs import count_values
from schema.global_ids import ON_BEHALF_OF, read_subjects
from sessions.base import Page
from sessions.errors import ProviderError, ProviderNotFound
from sessions.http import deadline
from storage.credentials import Secret
from storage.errors import StorageError
from storage.records import Course, CourseKind, Enrollment, User

_MAX_REGISTRATION_BYTES: Final = 64 * 1024
_ICON_WIDTH: Final = 256
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,14}")
_PROVIDER_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_UNPROCESSABLE: Final = 422
_CALLBACK: Final = "callback"
_NONCE_HEADER: Final = "x-registration-nonce"
_SIGNATURE_HEADER: Final = "x-registration-signature"
_PLATFORM_BY_TYPE: Final = {"canvas_oss": "canvas", "canvas_cloud": "canvas"}
"""Types that existing products write for platforms of another name here."""

_ADDED: Final = ("id", "type", "account_id", "url", "api_key", "username", "password")
_MORE: Final = ("name", "nonce", "options", "client_id", "client_secret")
_NUMBERS: Final = frozenset({"id", "account_id", "client_id"})
_CREDENTIALS: Final = ("api_key", "username", "password", "client_id", "client_secret")

T = TypeVar("T")
_ENCODER: Final = msgspec.json.Encoder()


async def list_users(gateway: Gateway, request: Request, access: Access) -> Response:
    """Answer ``GET /api/users?id=``: every user of a provider, as a JSON array.

    With ``unmatched=true`` only those who are nobody's yet: neither linked nor confirmed.
    """
    context, provider_id = _asked(gateway, request, access, allowed=("unmatched",))
    unmatched = _flag(request, "unmatched")

    async def rows(users: Sequence[User]) -> list[dict[str, Any]]:
        return await _user_rows(await people.unmatched(context, users) if unmatched else users)

    pages = roster.list_user_pages(context, provider_id)
    charge = _charge(gateway, access)
    return await _streamed(pages, rows, charge, seconds=gateway.settings.stream_seconds)


async def list_courses(gateway: Gateway, request: Request, access: Access) -> Response:
    """Answer ``GET /api/courses?id=`` and ``GET /api/content?id=``: every course."""
    context, provider_id = _asked(gateway, request, access, allowed=())

    async def rows(courses: Sequence[Course]) -> list[dict[str, Any]]:
        urls = await gateway.icons.urls([(course, _ICON_WIDTH) for course in courses])
        return [_course_row(course, url) for course, url in zip(courses, urls, strict=True)]

    pages = roster.list_course_pages(context, provider_id)
    charge = _charge(gateway, access)
    return await _streamed(pages, rows, charge, seconds=gateway.settings.stream_seconds)


async def list_enrollments(gateway: Gateway, request: Request, access: Access) -> Response:
    """Answer ``GET /api/enrollments?id=``, narrowed by ``user_id`` and ``course_id``."""
    context, provider_id = _asked(gateway, request, access, allowed=("user_id", "course_id"))
    user_id = request.query_params.get("user_id")
    course_id = request.query_params.get("course_id")
    charge = _charge(gateway, access)
    if user_id is None and course_id is None:
        pages = roster.list_enrollment_pages(context, provider_id)
        seconds = gateway.settings.stream_seconds
        return await _streamed(pages, _enrollment_rows, charge, seconds=seconds)
    try:
        with deadline(gateway.settings.deadline_seconds):
            found = await _enrollments_at(
                context, provider_id, user_id=user_id, course_id=course_id
            )
        rows = await _enrollment_rows(found)
        charge.actual = count_values(rows)
    finally:
        charge.settle()
    return Response(_ENCODER.encode(rows), media_type="application/json")


async def add_provider(gateway: Gateway, request: Request, access: Access | None) -> Response:
    """Answer ``POST /api/add-provider``: register a provider, or the same one again.

    Allowed to keys with ``write:providers``, and to whoever shows the one-time nonce of a callback
    for that id. A nonce that is shown must be good, whatever key comes with it.
    """
    request_id = request.state.request_id
    if ON_BEHALF_OF in request.headers:
        raise Forbidden(NOT_FOR_USERS)
    body = await read_body(request, max_bytes=_MAX_REGISTRATION_BYTES)
    draft, nonce = _draft(decode_object(body))
    nonce = request.headers.get(_NONCE_HEADER) or nonce
    caller = _CALLBACK
    if nonce is None:
        if access is None:
            return unauthenticated(request)
        if not access.allows(Scope.WRITE_PROVIDERS) or not access.sees(draft.id):
            raise Forbidden(f"This needs a key with the scope {Scope.WRITE_PROVIDERS}")
        caller = access.key_id
    elif not await _redeemed(gateway, request, draft.id, nonce=nonce, body=body):
        return problem(
            "FORBIDDEN",
            "The nonce is not good: it was not issued for this id, is used up or too late,"
            " or the registration is not signed as it must be",
            request_id=request_id,
        )
    async with gateway.audit.noting(
        registering(draft, caller=caller, request_id=request_id)
    ) as note:
        added = await gateway.registration.register(draft)
        if isinstance(added, Refusal):
            note.refused(added.code, retryable=added.retryable)
        else:
            note.done()
    if isinstance(added, Refusal):
        if gateway.callback is not None:
            gateway.callback.wake(draft.id, refused=True)
        return problem(
            added.code,
            added.message,
            request_id=request_id,
            status=_UNPROCESSABLE,
            field=_FIELD_BY_PLACE.get(added.field or "", added.field),
            retryable=added.retryable,
        )
    return JSONResponse(
        {
            "id": added.id,
            "type": added.platform,
            "name": added.name,
            "url": added.base_url,
            "account_id": added.account_id,
            "state": added.state,
            "version": added.version,
            "problem": added.problem,
        }
    )


_FIELD_BY_PLACE: Final = {
    "platform": "type",
    "base_url": "url",
    **{f"credentials.{name}": name for name in _CREDENTIALS},
}


async def _redeemed(
    gateway: Gateway, request: Request, provider_id: str, *, nonce: str, body: bytes
) -> bool:
    if gateway.callback is None or await gateway.providers.get(provider_id) is not None:
        return False
    signature = request.headers.get(_SIGNATURE_HEADER)
    return await gateway.callback.redeem(nonce, provider_id, body=body, signature=signature)


def _asked(
    gateway: Gateway, request: Request, access: Access, *, allowed: Sequence[str]
) -> tuple[RequestContext, str]:
    names = {"id", *allowed}
    for name in request.query_params:
        if name not in names:
            raise BadInput(name, f"There is no such parameter, only {', '.join(sorted(names))}")
        if len(request.query_params.getlist(name)) > 1:
            raise BadInput(name, "It is given more than once")
    provider_id = request.query_params.get("id", "")
    if not provider_id:
        raise BadInput("id", "The product's own id of a provider is needed, such as id=1")
    if not _PROVIDER_ID.fullmatch(provider_id):
        raise BadInput("id", "A provider's id is 1 to 64 letters, digits, - or _")
    subjects = read_subjects(request.headers.getlist(ON_BEHALF_OF))
    context = gateway.request_context(access, request.state.request_id, subjects=subjects)
    return context, provider_id


def _flag(request: Request, name: str) -> bool:
    value = request.query_params.get(name, "false")
    if value not in {"true", "false"}:
        raise BadInput(name, "It is true or false")
    return value == "true"


def _charge(gateway: Gateway, access: Access) -> Charge:
    """Begin a list: nobody knows how long it is, so it is charged for what it came to.

    Raises:
        QuotaExceeded: The key owes for what it had before, or has too much under way.
    """
    return gateway.quotas.begin(access.key_id, cost=0)


async def _streamed(
    pages: AsyncGenerator[Page[T], None],
    rows_of: Callable[[Sequence[T]], Awaitable[list[dict[str, Any]]]],
    charge: Charge,
    *,
    seconds: float,
) -> Response:
    """Answer with a JSON array of all pages' rows; errors of the first page are raised here."""

    async def counted_rows_of(items: Sequence[T]) -> list[dict[str, Any]]:
        rows = await rows_of(items)
        charge.actual += count_values(rows)
        return rows

    loop = asyncio.get_running_loop()
    ends_at = loop.time() + seconds
    try:
        with deadline(seconds):
            first = await anext(pages, None)
            start = await counted_rows_of(first.items) if first is not None else []
    except BaseException:
        charge.settle()
        await pages.aclose()
        raise

    async def parts() -> AsyncGenerator[bytes]:
        with deadline(ends_at - loop.time()):
            async with aclosing(pages):
                async for part in _array(pages, start, counted_rows_of):
                    yield part

    return _ClosingResponse(parts(), charge)


class _ClosingResponse(StreamingResponse):
    """Closes what it streams, and settles what it costs, also when the caller goes away early."""

    body_iterator: AsyncGenerator[bytes]

    def __init__(self, parts: AsyncGenerator[bytes], charge: Charge) -> None:
        super().__init__(parts, media_type="application/json")
        self._charge = charge

    async def stream_response(self, send: Send) -> None:
        """Send everything, and close the stream in the task that read it: its deadline is there."""
        try:
            async with aclosing(self.body_iterator):
                await super().stream_response(send)
        finally:
            self._charge.settle()


async def _array(
    pages: AsyncGenerator[Page[T], None],
    start: Sequence[dict[str, Any]],
    rows_of: Callable[[Sequence[T]], Awaitable[list[dict[str, Any]]]],
) -> AsyncIterator[bytes]:
    """Yield the parts of a JSON array: the rows of the first page, then those of the others.

    Raises:
        AnswerCutShort: A later page could not be had.
    """
    yield b"[" + _joined(start)
    some = bool(start)
    try:
        async for page in pages:
            rows = _joined(await rows_of(page.items))
            if rows:
                yield b"," + rows if some else rows
                some = True
    except (ProviderError, StorageError) as error:
        raise AnswerCutShort(error.message) from error
    yield b"]"


def _joined(rows: Sequence[dict[str, Any]]) -> bytes:
    return _ENCODER.encode(rows)[1:-1]


async def _user_rows(users: Sequence[User]) -> list[dict[str, Any]]:
    return [_user_row(user) for user in users if user.external_id]


def _user_row(user: User) -> dict[str, Any]:
    """Return a row whose name is never blank: what cannot be split is all in the first name.

    Existing clients expect texts, so what the provider does not report is empty here, not null.
    """
    whole = user.display_name.strip() or user.username or user.external_id
    known = user.given_name or user.family_name
    return {
        "username": user.username or "",
        "name_first": user.given_name or "" if known else whole,
        "name_last": user.family_name or "",
        "email": user.email or "",
        "external_user_id": user.external_id,
        "external_username": user.username or "",
    }


def _course_row(course: Course, icon_url: str | None) -> dict[str, Any]:
    """Return a row; texts not reported are empty, and what we cannot know otherwise is null."""
    is_library = course.kind is CourseKind.LIBRARY
    return {
        "provider_platform_id": _as_product_id(course.provider_id),
        "external_content_id": course.external_id,
        "program_id": None,
        "name": course.title,
        "description": course.description or "",
        "course_code": course.course_code or "",
        "img_url": icon_url or "",
        "is_graded": None,
        "is_open_enrollment": is_library,
        "is_open_content": is_library,
        "has_assessments": None,
        "subject": "",
    }


async def _enrollment_rows(enrollments: Sequence[Enrollment]) -> list[dict[str, Any]]:
    return [
        {
            "user_id": enrollment.user_id,
            "course_id": enrollment.course_id,
            "external_enrollment_id": enrollment.external_id or enrollment.id,
            "enrollment_state": enrollment.state.lower(),
            "external_start_at": enrollment.starts_at or enrollment.enrolled_at,
            "external_end_at": enrollment.ends_at,
            "external_link_url": None,
        }
        for enrollment in enrollments
    ]


async def _enrollments_at(
    context: RequestContext, provider_id: str, *, user_id: str | None, course_id: str | None
) -> Sequence[Enrollment]:
    context.require(Scope.READ_ENROLLMENTS)
    if await context.find_provider(provider_id) is None:
        raise ProviderNotFound("No such provider is registered", provider_id=provider_id)
    if user_id is None:
        return (
            await context.loaders.enrollments_by_course.load((provider_id, course_id or "")) or ()
        )
    rows = await context.loaders.enrollments_by_user.load((provider_id, user_id)) or ()
    return [row for row in rows if course_id is None or row.course_id == course_id]


def _as_product_id(provider_id: str) -> int | str:
    """Return the id as the product's own type: a number where every client reads it as that."""
    return int(provider_id) if _NUMBER.fullmatch(provider_id) else provider_id


def _draft(given: dict[str, Any]) -> tuple[ProviderDraft, str | None]:
    """Return what is to be registered, and the nonce shown in the body."""
    for name in given:
        if name not in _ADDED and name not in _MORE:
            raise BadInput(name, f"There is no such field, only {', '.join((*_ADDED, *_MORE))}")
    text = {name: _text(given, name) for name in (*_ADDED, *_MORE) if name != "options"}
    for name in ("id", "type", "url"):
        if not text[name]:
            raise BadInput(name, "It is needed, and not empty")
    credentials = {name: value for name in _CREDENTIALS if (value := text[name])}
    platform = text["type"].strip().lower()
    draft = ProviderDraft(
        id=text["id"].strip(),
        platform=_PLATFORM_BY_TYPE.get(platform, platform),
        name=text["name"] or None,
        base_url=text["url"],
        account_id=text["account_id"] or None,
        options=_options(given.get("options")),
        credentials=Secret(credentials),
    )
    return draft, text["nonce"] or None


def _text(given: dict[str, Any], name: str) -> str:
    value = given.get(name)
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool) and name in _NUMBERS:
        return str(value)  # products whose ids are numbers send them as numbers
    if not isinstance(value, str):
        raise BadInput(name, "A string is needed here")
    return value


def _options(given: object) -> dict[str, str]:
    if given is None or given == []:
        return {}
    if not isinstance(given, dict) or not all(isinstance(value, str) for value in given.values()):
        raise BadInput("options", "An object of strings is needed here")
    return given
