"""Errors as callers see them: one shape, stable codes, nothing that was not meant for them.

The gateway's own errors show their message. Everything unexpected becomes ``INTERNAL`` with an
id; the cause is logged once under the same id.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Sequence
from typing import Any, Final

import structlog
from graphql import GraphQLError

from resolvers.authorizing import url_for_error
from resolvers.context import RequestContext, SourceFailure
from resolvers.errors import QuotaExceeded, RequestLimitExceeded, RequestRefused
from schema.enums import ErrorCode
from schema.visibility import sees_schema, suggestionless
from sessions.errors import ProviderError, UpstreamCallsSpent

_ABOUT_A_VARIABLE: Final = re.compile(
    r"(Variable '\$\w+' has invalid value(?: at [^: ]+)?: )(.*)", re.DOTALL
)
_LITERAL: Final = re.compile(r",? [Ff]ound: .*|(?<=non string value): .*", re.DOTALL)
_BEFORE_A_VALUE: Final = re.compile(r", found: | Found: |(?<=value): ")

_MAX_MESSAGE: Final = 600

_log = structlog.get_logger("schema")


def formatted_errors(
    errors: Sequence[GraphQLError] | None,
    context: RequestContext,
    *,
    failures: Sequence[SourceFailure] | None = None,
) -> list[dict[str, Any]]:
    """Return the errors of an answer, or of a part of one, as JSON holds them.

    A provider's failure is told once for each field it emptied, however many objects have that
    field: its path is the first one's.

    Args:
        errors: What execution gives.
        context: Of the request.
        failures: Of providers, to be told here; all of the request's when not given.
    """
    told = context.failures if failures is None else failures
    formatted = [_of_source(failure, context) for failure in told]
    causes: dict[int, str] = {}
    formatted += [_of_graphql(error, context, causes) for error in errors or ()]
    return list(_told_once(formatted))


def internal_error(cause: BaseException, context: RequestContext) -> dict[str, Any]:
    """Log what nobody expected, and return what the caller sees of it."""
    error_id = uuid.uuid4().hex
    _log.error("internal_error", error_id=error_id, request_id=context.request_id, exc_info=cause)
    return _internal(error_id)


def refusal(error: RequestRefused | GraphQLError) -> dict[str, Any]:
    """Return the error of a request that is not executed at all."""
    if isinstance(error, GraphQLError):
        return {**_place_of(error), "extensions": {"code": ErrorCode.BAD_INPUT.value}}
    return {"message": error.message, "extensions": refusal_extensions(error)}


def refusal_extensions(error: RequestRefused) -> dict[str, Any]:
    """Return the code of a refusal, and which limit it was, if one was; and when to come again."""
    extensions: dict[str, Any] = {"code": error.code}
    if isinstance(error, RequestLimitExceeded):
        extensions["limit"] = error.limit
    if isinstance(error, QuotaExceeded):
        extensions["retryable"] = True
        extensions["retryAfterSeconds"] = error.retry_after_seconds
    return extensions


def _of_source(failure: SourceFailure, context: RequestContext) -> dict[str, Any]:
    return {
        "message": failure.error.message,
        "path": list(failure.path),
        "extensions": _provider_extensions(failure.error, failure.provider_id, context),
    }


def _of_graphql(
    error: GraphQLError, context: RequestContext, causes: dict[int, str]
) -> dict[str, Any]:
    cause = _cause_of(error)
    formatted = _place_of(error)
    if isinstance(cause, ProviderError):
        formatted["message"] = context.shown(cause).message
        formatted["extensions"] = _provider_extensions(cause, cause.provider_id, context)
    elif isinstance(cause, RequestRefused):
        formatted["message"] = cause.message
        formatted["extensions"] = refusal_extensions(cause)
    elif cause is None:
        if not sees_schema(context.access):
            formatted["message"] = suggestionless(formatted["message"])
        formatted["extensions"] = {"code": ErrorCode.BAD_INPUT.value}
    else:
        # One cause can fail many fields; it is logged, and numbered, once.
        if id(cause) not in causes:
            causes[id(cause)] = internal_error(cause, context)["extensions"]["errorId"]
        formatted.update(_internal(causes[id(cause)]))
    return formatted


def _cause_of(error: GraphQLError) -> BaseException | None:
    """Return what was raised in a resolver; ``None`` when GraphQL itself objects."""
    cause: BaseException | None = error
    while isinstance(cause, GraphQLError):
        cause = cause.original_error
    return cause


def _place_of(error: GraphQLError) -> dict[str, Any]:
    formatted = dict(error.formatted)
    formatted.pop("extensions", None)
    formatted["message"] = _shortened(_without_values(error.message))
    return formatted


def _shortened(message: str) -> str:
    """Return the message without most of a name that a caller made very long."""
    if len(message) <= _MAX_MESSAGE:
        return message
    half = _MAX_MESSAGE // 2
    return f"{message[:half]} ... {message[-half:]}"


def _without_values(message: str) -> str:
    """Return the message without the value of a variable or literal: it may hold a password."""
    about = _ABOUT_A_VARIABLE.fullmatch(message)
    if about is None:
        return _LITERAL.sub("", message)
    place, problem = about.groups()
    if problem.startswith("Value "):
        return f"{place}It {problem[problem.rfind('does not exist in') :]}"
    return f"{place}{_BEFORE_A_VALUE.split(problem, maxsplit=1)[0].rstrip('.')}"


def _internal(error_id: str) -> dict[str, Any]:
    return {
        "message": f"Internal error {error_id}",
        "extensions": {"code": ErrorCode.INTERNAL.value, "errorId": error_id},
    }


def _provider_extensions(
    error: ProviderError, provider_id: str | None, context: RequestContext
) -> dict[str, Any]:
    extensions = {
        "code": error.code,
        "providerId": provider_id,
        "retryable": error.retryable,
        "retryAfterSeconds": error.retry_after_seconds,
    }
    if isinstance(error, UpstreamCallsSpent):
        extensions["limit"] = error.limit
    url = url_for_error(context.authorizing, error)
    return extensions if url is None else {**extensions, "authorizationUrl": url}


def _told_once(formatted: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    seen: set[tuple[object, ...]] = set()
    for error in formatted:
        extensions = error["extensions"]
        field = tuple(step for step in error.get("path") or () if isinstance(step, str))
        key = (extensions["code"], extensions.get("providerId"), field, error["message"])
        if not field or key not in seen:
            seen.add(key)
            yield error
