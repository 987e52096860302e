"""Refusals of a request, beside the ``ProviderError`` of ``sessions.errors``.

RequestRefused              the request itself cannot be answered
├── BadInput                an argument is wrong
├── Forbidden               the caller's key lacks a scope, or the request acts for users
├── NotFound                what is asked for by its id does not exist for the caller
└── RequestLimitExceeded    answering would cost more than a request may
    └── QuotaExceeded       the key has used too much; later it may again
"""

from __future__ import annotations

from typing import ClassVar


class RequestRefused(Exception):
    """The request cannot be answered as it stands; asking again will not help.

    Args:
        message: For a person: names what is wrong and what would be right.
    """

    code: ClassVar[str] = "BAD_INPUT"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class BadInput(RequestRefused):
    """An argument is wrong; the message begins with its name.

    Args:
        argument: Name as the caller wrote it, such as ``first`` or ``filter.userIds``.
        problem: What is wrong with it and what is allowed.
    """

    def __init__(self, argument: str, problem: str) -> None:
        super().__init__(f"{argument}: {problem}")
        self.argument = argument


class Forbidden(RequestRefused):
    """The caller's key lacks a scope, named in the message; or it is not done for users."""

    code = "FORBIDDEN"


class NotFound(RequestRefused):
    """What is asked for by its id does not exist, or not for this caller."""

    code = "NOT_FOUND"


class RequestLimitExceeded(RequestRefused):
    """Answering would cost more than one request may.

    Args:
        message: Says how to ask for less.
        limit: Name of the limit, for callers' programs and for metrics.
    """

    code = "REQUEST_LIMIT_EXCEEDED"

    def __init__(self, message: str, *, limit: str = "other") -> None:
        super().__init__(message)
        self.limit = limit


class QuotaExceeded(RequestLimitExceeded):
    """The caller's key has used all it may for now; the same request can be answered later.

    Args:
        message: Says what was used up.
        limit: Name of the limit, for callers' programs and for metrics.
        retry_after_seconds: When there is enough again, if nothing else is asked meanwhile.
    """

    def __init__(self, message: str, *, limit: str, retry_after_seconds: int) -> None:
        super().__init__(message, limit=limit)
        self.retry_after_seconds = retry_after_seconds
