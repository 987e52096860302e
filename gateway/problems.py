"""Errors of the REST surface, as problem documents, and what every answer has in common.

Source:
    https://www.rfc-editor.org/rfc/rfc9457
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from resolvers.errors import QuotaExceeded, RequestLimitExceeded, RequestRefused
from sessions.errors import ProviderError


class AnswerCutShort(Exception):
    """A streamed answer cannot be finished; the connection is broken off, so that it shows."""


class Interrupted(Exception):
    """A request is not gone on with, by no fault of whoever answers it.

    Args:
        answer: Is given instead; nothing of another one was sent.
    """

    def __init__(self, answer: Response) -> None:
        super().__init__(answer.status_code)
        self.answer = answer


SAFE_HEADERS: Final = {  # unless a route says something more exact
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

MEDIA_TYPE: Final = "application/problem+json"

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{8,128}")
_STATUS_BY_CODE: Final = {
    "PROVIDER_NOT_FOUND": HTTPStatus.NOT_FOUND,
    "NOT_FOUND": HTTPStatus.NOT_FOUND,
    "CONFLICT": HTTPStatus.CONFLICT,
    "PROVIDER_UNAVAILABLE": HTTPStatus.BAD_GATEWAY,
    "PROVIDER_TIMEOUT": HTTPStatus.GATEWAY_TIMEOUT,
    "PROVIDER_RATE_LIMITED": HTTPStatus.SERVICE_UNAVAILABLE,
    "PROVIDER_AUTH_FAILED": HTTPStatus.BAD_GATEWAY,
    "REAUTH_REQUIRED": HTTPStatus.BAD_GATEWAY,
    "PROVIDER_FORBIDDEN": HTTPStatus.BAD_GATEWAY,
    "PROVIDER_BAD_RESPONSE": HTTPStatus.BAD_GATEWAY,
    "NOT_SUPPORTED": HTTPStatus.NOT_IMPLEMENTED,
    "BAD_INPUT": HTTPStatus.BAD_REQUEST,
    "REQUEST_LIMIT_EXCEEDED": HTTPStatus.BAD_REQUEST,
    "GATEWAY_OVERLOADED": HTTPStatus.SERVICE_UNAVAILABLE,
    "UNAUTHENTICATED": HTTPStatus.UNAUTHORIZED,
    "FORBIDDEN": HTTPStatus.FORBIDDEN,
    "INTERNAL": HTTPStatus.INTERNAL_SERVER_ERROR,
}


def request_id_of(given: str) -> str:
    """Return the id of a request: the caller's own, if it is a sane one."""
    return given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(16)


def problem(
    code: str,
    detail: str,
    *,
    request_id: str,
    status: int | None = None,
    headers: Mapping[str, str] | None = None,
    **members: object,
) -> Response:
    """Return a problem document.

    Args:
        code: One of the stable error codes; decides the status unless one is given.
        detail: For a person.
        request_id: The same as in the log.
        status: Instead of the code's own.
        headers: Added to the answer.
        **members: Extension members; those that are ``None`` are left out.
    """
    status = status or _STATUS_BY_CODE[code]
    body = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": int(status),
        "detail": detail,
        "code": code,
        "requestId": request_id,
        **{name: value for name, value in members.items() if value is not None},
    }
    return JSONResponse(body, status, headers=headers, media_type=MEDIA_TYPE)


def of_error(
    error: RequestRefused | ProviderError,
    *,
    request_id: str,
    authorization_url: str | None = None,
) -> Response:
    """Return the problem document of one of the gateway's own errors.

    Args:
        error: What happened.
        request_id: The same as in the log.
        authorization_url: Where a user can sign in to get rid of it, if that would help.
    """
    if isinstance(error, QuotaExceeded):
        return problem(
            error.code,
            error.message,
            request_id=request_id,
            status=HTTPStatus.TOO_MANY_REQUESTS,
            headers={"Retry-After": str(error.retry_after_seconds)},
            limit=error.limit,
            retryable=True,
            retryAfterSeconds=error.retry_after_seconds,
        )
    if isinstance(error, RequestRefused):
        limit = error.limit if isinstance(error, RequestLimitExceeded) else None
        return problem(error.code, error.message, request_id=request_id, limit=limit)
    wait = error.retry_after_seconds
    return problem(
        error.code,
        error.message,
        request_id=request_id,
        headers={} if wait is None else {"Retry-After": str(wait)},
        providerId=error.provider_id,
        retryable=type(error).retryable,
        retryAfterSeconds=wait,
        authorizationUrl=authorization_url,
    )


def unauthenticated(request: Request) -> Response:
    """Return the answer to a request without a good key.

    What is wrong with a key or token that was shown is in the log, and told to nobody.

    Source:
        https://www.rfc-editor.org/rfc/rfc6750#section-3.1
    """
    challenge = 'Bearer realm="learning-gateway"'
    if request.headers.get("authorization", "").strip():
        challenge += (
            ', error="invalid_token", error_description="The key or token is unknown, expired,'
            ' revoked or malformed, or not for this gateway"'
        )
    return problem(
        "UNAUTHENTICATED",
        "A key is needed, as 'Authorization: Bearer <key>'; the one shown, if any, is not good",
        request_id=request.state.request_id,
        headers={"WWW-Authenticate": challenge},
    )
