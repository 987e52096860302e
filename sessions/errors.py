"""Errors of talking to providers.

ProviderError                 a provider could not do what was asked
├── ProviderUnavailable       not reached, 5xx, connection lost, or not tried because of those
│   ├── ProviderTimeout       no answer within the deadline
│   └── TooManyCallsWaiting   not tried, because too many calls are in line already
├── FileUnavailable           a file on another host cannot be had now
├── ProviderRateLimited       429 or the platform's own throttle
├── ProviderAuthFailed        the stored credentials are refused
│   └── ReauthRequired        a person must give new credentials
│   └── WrongUser             somebody else authorised the gateway than was asked to
├── ProviderForbidden         logged in, but a permission is missing
├── ProviderBadResponse       an answer that is not what the platform promises
├── ProviderRejected          a write that the provider's own rules do not allow
├── ProviderAddressRefused    the URL or the address behind it is not allowed
├── NotSupported              the platform cannot do this
└── UpstreamCallsSpent        the operation has made all the calls it may; the provider is well
SessionLost                   the session is gone; its holder replaces it (never reaches callers)
ProviderNotFound              no such provider is registered
"""

from __future__ import annotations

from typing import ClassVar


class ProviderError(Exception):
    """A provider could not do what was asked.

    Args:
        message: For a person: starts with a capital, no full stop, no secret, no upstream body.
        provider_id: The product's own id of the provider, when known.
        retry_after_seconds: How long the provider asked to be left alone.
    """

    code: ClassVar[str] = "PROVIDER_UNAVAILABLE"
    retryable: ClassVar[bool] = True

    def __init__(
        self,
        message: str,
        *,
        provider_id: str | None = None,
        retry_after_seconds: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.provider_id = provider_id
        self.retry_after_seconds = retry_after_seconds


class ProviderUnavailable(ProviderError):
    """The provider was not reached, or answered 5xx, or cut the connection; or did so before."""


class ProviderTimeout(ProviderUnavailable):
    """No complete answer within the deadline."""

    code = "PROVIDER_TIMEOUT"


class TooManyCallsWaiting(ProviderUnavailable):
    """The gateway did not make the call, because too many wait in line; no word on the provider."""


class FileUnavailable(ProviderError):
    """A file a provider names on another host cannot be had now, which is no outage of its own."""


class ProviderRateLimited(ProviderError):
    """The provider asks to be left alone for a while."""

    code = "PROVIDER_RATE_LIMITED"


class ProviderAuthFailed(ProviderError):
    """The provider refuses the stored credentials."""

    code = "PROVIDER_AUTH_FAILED"
    retryable = False


class ReauthRequired(ProviderAuthFailed):
    """Nothing but new credentials or a new consent will help.

    Attributes:
        subject: Whose session it is, as text; ``None`` when it is not a stored one's.
    """

    code = "REAUTH_REQUIRED"
    subject: str | None = None


class WrongUser(ProviderAuthFailed):
    """Somebody else authorised the gateway than the user who was asked to.

    Args:
        display_name: Who did, for a person.
        provider_id: The product's own id of the provider.
    """

    def __init__(self, display_name: str, *, provider_id: str | None = None) -> None:
        super().__init__(
            f"It was {display_name} who signed in, not the user who was asked to",
            provider_id=provider_id,
        )
        self.display_name = display_name


class ProviderForbidden(ProviderError):
    """The account is logged in but lacks a permission, named in the message."""

    code = "PROVIDER_FORBIDDEN"
    retryable = False


class ProviderBadResponse(ProviderError):
    """The provider's answer is not what its platform promises: HTML, too large, wrong fields."""

    code = "PROVIDER_BAD_RESPONSE"
    retryable = False


class ProviderRejected(ProviderError):
    """The provider understood a write and refuses it; nothing was changed there.

    Args:
        message: For a person.
        provider_id: The product's own id of the provider.
        field: Name of the input at fault (``username``, ``course_id``), if one is.
    """

    code = "BAD_INPUT"
    retryable = False

    def __init__(
        self, message: str, *, provider_id: str | None = None, field: str | None = None
    ) -> None:
        super().__init__(message, provider_id=provider_id)
        self.field = field


class ProviderAddressRefused(ProviderError):
    """The URL, or an address its host name resolves to, is not one the gateway may call."""

    code = "BAD_INPUT"
    retryable = False


class NotSupported(ProviderError):
    """The platform, or this version of it, cannot do this."""

    code = "NOT_SUPPORTED"
    retryable = False


class UpstreamCallsSpent(ProviderError):
    """The operation has made as many calls to providers as one may; it is no failure of theirs.

    Attributes:
        limit: Name of the limit, as errors of other limits have it.
    """

    code = "REQUEST_LIMIT_EXCEEDED"
    retryable = False
    limit: ClassVar[str] = "upstream_calls"


class ProviderNotFound(ProviderError):
    """No provider of that id is registered."""

    code = "PROVIDER_NOT_FOUND"
    retryable = False


class SessionLost(Exception):
    """The session's authorisation no longer holds; whoever holds it replaces it and tries again.

    Raised by platforms, handled by ``ProviderSession``; it never reaches a caller.
    """
