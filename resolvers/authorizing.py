"""Asking users to let the gateway act for them: links, and how each opened one ends.

A link is an address of ours, signed and good for an hour, that costs nothing until somebody opens
it. Opened, it sends the browser to the provider with a state that only that browser can come back
with, once, within ten minutes. Then the code that came along is exchanged, and the grant stored as
the user's session.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from itertools import islice
from typing import Final, Protocol
from urllib.parse import urlencode

import structlog

from resolvers.context import (
    AuthorizationLink,
    Authorizing,
    Platforms,
    Refusal,
    RequestContext,
)
from resolvers.loaders import ExternalKey
from sessions.base import AuthorizedUser, Code, CodeRequest, Subject, SubjectKind
from sessions.errors import (
    NotSupported,
    ProviderAuthFailed,
    ProviderError,
    ProviderNotFound,
    ProviderRateLimited,
    ProviderUnavailable,
    ReauthRequired,
    WrongUser,
)
from storage.authorizations import (
    AuthorizationRequest,
    AuthorizationStore,
    StateProblem,
    hash_of,
)
from storage.credentials import Secret
from storage.errors import ConstraintViolated, CredentialsUnreadable
from storage.leases import SessionStatus
from storage.providers import ProviderStore
from storage.records import Provider, ProviderState, SessionState

REQUEST_SECONDS: Final = 600
"""How long a browser may be away."""

_LINK_LIFETIME: Final = timedelta(hours=1)
_MAX_LENGTH: Final = 255
_MAX_CODE_LENGTH: Final = 4096
_MAX_LOOK_UPS: Final = 4
_NUMBER: Final = re.compile(r"[0-9]{1,12}")
_ERROR: Final = re.compile(r"[a-z_]{1,40}")

_log = structlog.get_logger(__name__)


class Ending(StrEnum):
    """How an opened link ended, for the page that the user sees.

    AUTHORIZED: the user's grant is stored; DENIED: the user did not agree; LINK_WRONG: it is not
    one of ours; LINK_TOO_OLD: it was good once; STATE_UNKNOWN, STATE_USED, OTHER_BROWSER: see
    ``StateProblem``; INCOMPLETE: the browser came back with less than it should; CODE_REFUSED: the
    code is used or too old; WRONG_USER: somebody else signed in than was asked to; NOT_SET_UP: the
    provider and the gateway do not fit together; PROVIDER_DOWN: it does not answer; PROVIDER_BUSY:
    it asks for patience; PROVIDER_GONE: it is not registered any more.
    """

    AUTHORIZED = "AUTHORIZED"
    DENIED = "DENIED"
    LINK_WRONG = "LINK_WRONG"
    LINK_TOO_OLD = "LINK_TOO_OLD"
    STATE_UNKNOWN = "STATE_UNKNOWN"
    STATE_USED = "STATE_USED"
    OTHER_BROWSER = "OTHER_BROWSER"
    INCOMPLETE = "INCOMPLETE"
    CODE_REFUSED = "CODE_REFUSED"
    WRONG_USER = "WRONG_USER"
    NOT_SET_UP = "NOT_SET_UP"
    PROVIDER_DOWN = "PROVIDER_DOWN"
    PROVIDER_BUSY = "PROVIDER_BUSY"
    PROVIDER_GONE = "PROVIDER_GONE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Departure:
    """A browser is sent to the provider.

    Attributes:
        url: Where.
        flow: Names this departure among the browser's others; no secret.
        browser: What the browser must keep, under that name, to come back with.
    """

    url: str
    flow: str
    browser: Secret[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What to tell the user in the end; nothing of it is fit for HTML as it stands.

    Attributes:
        provider_name: Where the user signs in, if that is known.
        user_name: Who signed in there, if that is known.
        again: Link by which the user can begin again at once, where that may help.
        problem: What whoever looks after the gateway should know.
        retry_after_seconds: How long to wait before that, if the provider says so.
    """

    ending: Ending
    provider_name: str | None = None
    user_name: str | None = None
    again: str | None = None
    problem: str | None = None
    retry_after_seconds: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CameBack:
    """What a browser brings back from a provider; nothing of it can be trusted.

    Attributes:
        state: ``None`` when there is none, or several.
        code: The same.
        error: The same.
        browsers: What the browser kept, by the name of the departure.
    """

    state: str | None
    code: str | None
    error: str | None
    browsers: Mapping[str, str]

    @property
    def flow(self) -> str | None:
        """Name of the departure its state was given to."""
        return None if self.state is None else hash_of(self.state)


class UserSessions(Protocol):
    """Where users' grants are obtained and kept."""

    async def authorization_url(self, provider_id: str, request: CodeRequest) -> str:
        """Return the address at which a user authorises the gateway.

        Raises:
            ProviderError: There is none.
            StorageError: The database could not answer.
        """

    async def authorize(
        self, provider_id: str, code: Code, *, expected_user_id: str | None = None
    ) -> AuthorizedUser:
        """Exchange a code for a user's grant and store it, in place of an earlier one.

        Raises:
            WrongUser: It is somebody else's; it is ended.
            ReauthRequired: The code is used, expired, or not for us.
            ProviderError: It could not be done.
            StorageError: It could not be stored.
        """


class Authorizer:
    """Makes links, sends browsers away and takes them back.

    Args:
        public_url: Where browsers reach the gateway.
        key: Signs links; the same in every process.
        requests: What browsers were sent away for.
        sessions: Where users' grants are obtained and kept.
        providers: What is registered.
        platforms: Which kinds of software there are.
    """

    def __init__(
        self,
        *,
        public_url: str,
        key: Secret[bytes],
        requests: AuthorizationStore,
        sessions: UserSessions,
        providers: ProviderStore,
        platforms: Platforms,
    ) -> None:
        self.public_url = public_url
        self.redirect_uri = f"{public_url}/oauth/callback"
        self._key = key
        self._requests = requests
        self._sessions = sessions
        self._providers = providers
        self._platforms = platforms

    async def begin(
        self, provider: Provider, user_id: str | None, /
    ) -> AuthorizationLink | Refusal:
        """Return a link for one user, or for anybody, if the provider's users can be asked.

        Raises:
            StorageError: The provider's credentials cannot be read.
        """
        platform = self._platforms.get(provider.platform)
        if platform is None or SubjectKind.USER not in platform.subjects:
            title = provider.platform if platform is None else platform.title
            return _refused(NotSupported.code, f"{title} does not let users authorise the gateway")
        if provider.state is ProviderState.DISABLED:
            return _refused(ProviderUnavailable.code, "The provider is disabled")
        if user_id is not None and not _is_plain(user_id):
            return _refused("BAD_INPUT", "user_id: This is no user's id", field="user_id")
        credentials = (await self._providers.credentials(provider.id)).reveal()
        for asked in platform.credential_fields:
            if asked.name in platform.user_terms and not credentials.get(asked.name):
                place = f"credentials.{asked.name}"
                problem = f"{place}: Users cannot sign in without it: {asked.label}"
                return _refused(NotSupported.code, problem, field=place)
        return self.link(provider.id, user_id)

    def link(self, provider_id: str, user_id: str | None = None, /) -> AuthorizationLink:
        """Return a link without looking whether it leads anywhere."""
        expires_at = datetime.now(UTC).replace(microsecond=0) + _LINK_LIFETIME
        until = str(int(expires_at.timestamp()))
        values = {"provider": provider_id, "user": user_id, "until": until}
        named = {name: value for name, value in values.items() if value is not None}
        signature = self._signature_of(provider_id, user_id, until)
        query = urlencode({**named, "signature": signature})
        return AuthorizationLink(
            url=f"{self.public_url}/oauth/begin?{query}", expires_at=expires_at
        )

    async def open(self, query: Mapping[str, str]) -> Departure | Outcome:
        """Send a browser that opened a link to the provider.

        Args:
            query: Of the link, as it came.

        Raises:
            StorageError: The database could not do it.
        """
        asked = self._asked_by(query)
        if not isinstance(asked, AuthorizationRequest):
            return Outcome(ending=asked)
        provider = await self._providers.get(asked.provider_id)
        if provider is None:
            return Outcome(ending=Ending.PROVIDER_GONE)
        try:
            made = await self._requests.issue(asked, lifetime_seconds=REQUEST_SECONDS)
            url = await self._sessions.authorization_url(
                provider.id,
                CodeRequest(
                    redirect_uri=self.redirect_uri,
                    state=made.state.reveal(),
                    code_challenge=_challenge_of(made.verifier),
                ),
            )
        except ConstraintViolated:
            return Outcome(ending=Ending.PROVIDER_GONE)
        except ProviderError as error:
            return self._failed(error, asked, provider)
        return Departure(url=url, flow=hash_of(made.state.reveal()), browser=made.browser)

    async def finish(self, answer: CameBack) -> Outcome:
        """Take a browser back: use its state up, exchange its code, store the grant.

        Raises:
            StorageError: The database could not do it; the user has to begin again.
        """
        if answer.error is not None:
            return await self._declined(answer, answer.error)
        if not answer.state or not answer.code or len(answer.code) > _MAX_CODE_LENGTH:
            return await self._with_place(Ending.INCOMPLETE, await self._find(answer))
        redeemed = await self._redeem(answer)
        if isinstance(redeemed, StateProblem):
            return await self._with_place(_BY_STATE_PROBLEM[redeemed], await self._find(answer))
        asked, verifier = redeemed
        provider = await self._providers.get(asked.provider_id)
        if provider is None:
            return Outcome(ending=Ending.PROVIDER_GONE)
        code = Code(code=Secret(answer.code), redirect_uri=self.redirect_uri, verifier=verifier)
        try:
            user = await self._sessions.authorize(
                asked.provider_id, code, expected_user_id=asked.user_id
            )
        except ProviderError as error:
            return self._failed(error, asked, provider)
        _log.info("user_authorized", provider_id=provider.id)
        return Outcome(
            ending=Ending.AUTHORIZED, provider_name=provider.name, user_name=user.display_name
        )

    # ---- links

    def _asked_by(self, query: Mapping[str, str]) -> AuthorizationRequest | Ending:
        """Return what a link asks for, if it is one of ours and not too old."""
        provider_id, user_id = query.get("provider", ""), query.get("user")
        until = query.get("until", "")
        texts = [provider_id, until, *([] if user_id is None else [user_id])]
        if not all(_is_plain(text) for text in texts) or not _NUMBER.fullmatch(until):
            return Ending.LINK_WRONG
        expected = self._signature_of(provider_id, user_id, until).encode()
        if not hmac.compare_digest(query.get("signature", "").encode(errors="replace"), expected):
            return Ending.LINK_WRONG
        if int(until) < datetime.now(UTC).timestamp():
            return Ending.LINK_TOO_OLD
        return AuthorizationRequest(provider_id=provider_id, user_id=user_id)

    def _signature_of(self, provider_id: str, user_id: str | None, until: str) -> str:
        signed = repr((provider_id, user_id, until)).encode()  # tells every border, unlike joining
        return _base64(hmac.digest(self._key.reveal(), signed, hashlib.sha256))

    # ---- coming back

    async def _redeem(
        self, answer: CameBack
    ) -> tuple[AuthorizationRequest, Secret[str]] | StateProblem:
        try:
            return await self._requests.redeem(
                answer.state or "", answer.browsers.get(answer.flow or "", "")
            )
        except CredentialsUnreadable as error:  # the key was replaced meanwhile
            _log.warning("authorization_unreadable", problem=error.message)
            return StateProblem.UNKNOWN

    async def _find(self, answer: CameBack) -> AuthorizationRequest | None:
        """Return what the browser was sent away for, by its state or, without one, the latest."""
        flows = [*answer.browsers][::-1] if answer.flow is None else [answer.flow]
        for flow in islice(flows, _MAX_LOOK_UPS):
            found = await self._requests.find(flow, answer.browsers.get(flow, ""))
            if found is not None:
                return found
        return None

    async def _declined(self, answer: CameBack, error: str) -> Outcome:
        """Tell why the provider sent the user back without a code; older ones leave out the state.

        The state is used up, but it need not be good: nothing is changed by believing the error.
        """
        asked = await self._find(answer)
        if answer.state:
            await self._redeem(answer)
        ending = _BY_ERROR.get(error, Ending.NOT_SET_UP)
        shown = error if _ERROR.fullmatch(error) else "other"
        if ending is not Ending.DENIED and asked is not None:
            _log.warning("authorization_declined", provider_id=asked.provider_id, problem=shown)
        problem = f"The provider answered {shown}" if ending is Ending.NOT_SET_UP else None
        return await self._with_place(ending, asked, problem=problem)

    async def _with_place(
        self, ending: Ending, asked: AuthorizationRequest | None, *, problem: str | None = None
    ) -> Outcome:
        provider = None if asked is None else await self._providers.get(asked.provider_id)
        if asked is None or provider is None:
            return Outcome(ending=ending, problem=problem)
        return Outcome(
            ending=ending,
            provider_name=provider.name,
            again=self.link(asked.provider_id, asked.user_id).url,
            problem=problem,
        )

    def _failed(
        self, error: ProviderError, asked: AuthorizationRequest, provider: Provider
    ) -> Outcome:
        ending = next(
            (ending for kind, ending in _BY_FAILURE if isinstance(error, kind)), Ending.NOT_SET_UP
        )
        note = _log.warning if ending is Ending.NOT_SET_UP else _log.info
        note(
            "authorization_failed",
            provider_id=provider.id,
            ending=ending.value,
            code=error.code,
            problem=None if isinstance(error, WrongUser) else error.message,  # it holds a name
        )
        gone = ending is Ending.PROVIDER_GONE
        return Outcome(
            ending=ending,
            provider_name=None if gone else provider.name,
            user_name=error.display_name if isinstance(error, WrongUser) else None,
            again=None if gone else self.link(asked.provider_id, asked.user_id).url,
            problem=error.message if ending is Ending.NOT_SET_UP else None,
            retry_after_seconds=error.retry_after_seconds,
        )


async def begin_authorization(
    context: RequestContext, provider_id: str, user: ExternalKey | None
) -> AuthorizationLink | Refusal:
    """Return a link for a user of a provider, or for anybody, or why there is none.

    Raises:
        StorageError: The provider's credentials cannot be read.
    """
    provider = await context.find_provider(provider_id)
    if provider is None:
        return _refused(
            ProviderNotFound.code, "No such provider is registered", field="provider_id"
        )
    if user is not None and user[0] != provider_id:
        return _refused("BAD_INPUT", "user_id: This is a user of another provider", field="user_id")
    if context.authorizing is None:
        return _refused(NotSupported.code, "Users cannot be asked from here")
    return await context.authorizing.begin(provider, None if user is None else user[1])


def url_for_session(authorizing: Authorizing | None, status: SessionStatus) -> str | None:
    """Return where the user of a session signs in again; ``None`` unless that is needed."""
    if authorizing is None or status.state is not SessionState.REAUTH_REQUIRED:
        return None
    return _url_for_subject(authorizing, status.provider_id, status.subject)


def url_for_error(authorizing: Authorizing | None, error: ProviderError) -> str | None:
    """Return where a user signs in to get rid of an error; ``None`` when that would not help."""
    if authorizing is None or not isinstance(error, ReauthRequired):
        return None
    if error.subject is None or error.provider_id is None:
        return None
    return _url_for_subject(authorizing, error.provider_id, error.subject)


def _url_for_subject(authorizing: Authorizing, provider_id: str, text: str) -> str | None:
    subject = Subject.parse(text)
    if subject.kind is not SubjectKind.USER:
        return None
    return authorizing.link(provider_id, subject.user_id).url


_BY_STATE_PROBLEM: Final = {
    StateProblem.UNKNOWN: Ending.STATE_UNKNOWN,
    StateProblem.USED: Ending.STATE_USED,
    StateProblem.OTHER_BROWSER: Ending.OTHER_BROWSER,
}
# Source: https://www.rfc-editor.org/rfc/rfc6749#section-4.1.2.1
_BY_ERROR: Final = {
    "access_denied": Ending.DENIED,
    "server_error": Ending.PROVIDER_DOWN,
    "temporarily_unavailable": Ending.PROVIDER_DOWN,
}
_BY_FAILURE: Final[tuple[tuple[type[ProviderError], Ending], ...]] = (  # the first that fits
    (WrongUser, Ending.WRONG_USER),
    (ReauthRequired, Ending.CODE_REFUSED),
    (ProviderAuthFailed, Ending.NOT_SET_UP),
    (ProviderNotFound, Ending.PROVIDER_GONE),
    (ProviderRateLimited, Ending.PROVIDER_BUSY),
    (ProviderUnavailable, Ending.PROVIDER_DOWN),
)


def _is_plain(text: str) -> bool:
    """Whether a text can be part of a link and of a row; also a user's id may hold anything."""
    return 0 < len(text) <= _MAX_LENGTH and text.isprintable()


def _challenge_of(verifier: Secret[str]) -> str:
    """Return the S256 challenge of a verifier.

    Source:
        https://www.rfc-editor.org/rfc/rfc7636#section-4.2
    """
    return _base64(hashlib.sha256(verifier.reveal().encode()).digest())


def _base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _refused(code: str, message: str, *, field: str | None = None) -> Refusal:
    return Refusal(code=code, message=message, field=field)
