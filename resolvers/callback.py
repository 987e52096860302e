"""Asking the product about a provider nobody has registered yet.

A request for an unknown id makes one call to the product, with the id and a one-time nonce. The
product posts the details to ``/api/add-provider`` and shows the nonce; every request that waits
for that id is then answered. Nothing the product says in the answer to the call itself counts.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

import structlog

from sessions.addresses import LOCAL_NETWORKS, AddressPolicy, split_url
from sessions.errors import ProviderError
from sessions.http import Observer, ProviderHttp, deadline
from sessions.tracing import Span, Tracer, current_span, link_to
from storage.callbacks import CallbackStore
from storage.credentials import Secret
from storage.leases import LeaseStore
from storage.providers import ProviderStore
from storage.records import Provider

_JOB_KIND: Final = "callback"
_LOOK_SECONDS: Final = 0.2
_MAX_ASKED_AT_ONCE: Final = 50
_MAX_REMEMBERED: Final = 10_000
_MAX_ANSWER_BYTES: Final = 64 * 1024
_SIGNATURE_AGE_SECONDS: Final = 300
_FIRST_FAILURE: Final = 300

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Waiting:
    """Requests that wait for one id."""

    answer: asyncio.Task[Provider | None]
    registered: asyncio.Event
    span: Span | None  # of the request that came first, if it is traced


@dataclass(frozen=True, slots=True, kw_only=True)
class CallbackTerms:
    """How the product is asked.

    Attributes:
        patience_seconds: How long a request waits for the product.
        pause_seconds: How long an id that was asked for in vain is not asked for again.
        nonce_seconds: How long a nonce is good; it may outlive the waiting, so that a slow product
            is in time for the next request.
        secret: What registrations are signed with, when they must be.
    """

    patience_seconds: float
    pause_seconds: float
    nonce_seconds: float
    secret: Secret[str] | None


class ProductCallback:
    """Calls the product back; made by ``open_callback``, one for the whole process.

    Args:
        http: To the product's host.
        path: Where the product takes callbacks, exactly as the operator wrote it.
        callbacks: Where nonces are kept.
        leases: Where it shows which gateway asks about which id.
        providers: Where a registration shows, whichever process received it.
        terms: How long things take, and what registrations are signed with.
    """

    def __init__(
        self,
        http: ProviderHttp,
        path: str,
        *,
        callbacks: CallbackStore,
        leases: LeaseStore,
        providers: ProviderStore,
        terms: CallbackTerms,
    ) -> None:
        self._http = http
        self._leases = leases
        self._path = path
        self._callbacks = callbacks
        self._providers = providers
        self._terms = terms
        self._refused: set[str] = set()
        self._waiting: dict[str, _Waiting] = {}
        self._unknown_until: dict[str, float] = {}

    async def find(self, provider_id: str) -> Provider | None:
        """Return the provider once the product has registered it; ``None`` if it does not in time.

        Any number of requests for the same id make one call. An id the product did not register
        is not asked for again for a few seconds.
        """
        if self._unknown_until.get(provider_id, 0.0) > time.monotonic():
            return None
        waiting = self._waiting.get(provider_id)
        if waiting is None and len(self._waiting) >= _MAX_ASKED_AT_ONCE:
            _log.warning("too_many_unknown_providers", provider_id=provider_id)
            return None
        if waiting is None:
            event = asyncio.Event()
            task = asyncio.create_task(self._asked(provider_id, event))
            waiting = self._waiting[provider_id] = _Waiting(task, event, current_span())
            task.add_done_callback(lambda _: self._waiting.pop(provider_id, None))
        link_to(waiting.span)
        return await asyncio.shield(waiting.answer)

    def wake(self, provider_id: str, *, refused: bool = False) -> None:
        """Let requests that wait for this id look whether it is registered now.

        Args:
            provider_id: The id.
            refused: Whether its registration failed, so that waiting longer is no use.
        """
        self._unknown_until.pop(provider_id, None)
        waiting = self._waiting.get(provider_id)
        if waiting is not None:
            if refused:
                self._refused.add(provider_id)
            waiting.registered.set()

    async def redeem(
        self, nonce: str, provider_id: str, *, body: bytes, signature: str | None
    ) -> bool:
        """Use a nonce up for the id it was issued for, and say whether the registration may go on.

        Args:
            nonce: As the product showed it.
            provider_id: The only id it may be good for.
            body: Of the registration, as received.
            signature: ``t=<unix seconds>,v1=<hex HMAC-SHA256 of "t.nonce.body">``; asked for when
                there is a registration secret.
        """
        if self._terms.secret is not None and not _is_signed(
            self._terms.secret, nonce=nonce, body=body, signature=signature or ""
        ):
            return False
        return await self._callbacks.redeem(nonce, provider_id)

    async def aclose(self) -> None:
        """End the calls that are under way."""
        tasks = [waiting.answer for waiting in self._waiting.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _asked(self, provider_id: str, registered: asyncio.Event) -> Provider | None:
        with deadline(None):  # works for everyone who waits, not for the one who came first
            found = await self._ask(provider_id, registered)
        if found is None:
            if len(self._unknown_until) >= _MAX_REMEMBERED:
                self._unknown_until.clear()
            self._unknown_until[provider_id] = time.monotonic() + self._terms.pause_seconds
        return found

    async def _ask(self, provider_id: str, registered: asyncio.Event) -> Provider | None:
        """Call the product, unless another gateway does, and wait for what comes of it.

        The lease of a job row says whose call it is; the row is there for as long as anybody
        waits. The product may register before it answers the call, and with any gateway.
        """
        key = f"{provider_id}|"
        await self._leases.ensure_job(_JOB_KIND, key)
        claim = await self._leases.claim_job(
            _JOB_KIND, key, lease_seconds=self._terms.patience_seconds
        )
        if claim is None:
            return await self._wait(provider_id, registered, is_over=partial(self._is_gone, key))
        calling = asyncio.create_task(self._is_worth_waiting(provider_id))
        calling.add_done_callback(lambda _: registered.set())

        async def is_over() -> bool:
            refused = provider_id in self._refused
            return refused or (calling.done() and not calling.result())

        try:
            return await self._wait(provider_id, registered, is_over=is_over)
        finally:
            self._refused.discard(provider_id)
            calling.cancel()
            await asyncio.wait({calling})
            await self._leases.remove_jobs(_JOB_KIND, key_prefix=key)

    async def _wait(
        self,
        provider_id: str,
        registered: asyncio.Event,
        *,
        is_over: Callable[[], Awaitable[bool]],
    ) -> Provider | None:
        """Look for the provider, woken or now and then, until it is there or waiting is over."""
        ends_at = time.monotonic() + self._terms.patience_seconds
        while True:
            left = ends_at - time.monotonic()
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, min(_LOOK_SECONDS, left))):
                    await registered.wait()
            registered.clear()
            over = left <= 0 or await is_over()  # asked first: what comes after is still seen
            found = await self._providers.get(provider_id)
            if found is not None or over:
                return found

    async def _is_gone(self, key: str) -> bool:
        return await self._leases.find_job(_JOB_KIND, key) is None

    async def _is_worth_waiting(self, provider_id: str) -> bool:
        """Make the call; a product that was not reached, or answers no, will not register it."""
        nonce = await self._callbacks.issue(provider_id, self._terms.nonce_seconds)
        try:
            answer = await self._http.request(
                "POST",
                self._path,
                json={"id": provider_id, "nonce": nonce.reveal()},
                max_body_bytes=_MAX_ANSWER_BYTES,
                total_seconds=self._terms.patience_seconds,
            )
        except ProviderError as error:
            _log.warning("product_not_reached", provider_id=provider_id, problem=error.message)
            return False
        if answer.status >= _FIRST_FAILURE:
            _log.info("product_knows_no_provider", provider_id=provider_id, status=answer.status)
            return False
        return True


@asynccontextmanager
async def open_callback(
    url: str,
    *,
    callbacks: CallbackStore,
    leases: LeaseStore,
    providers: ProviderStore,
    terms: CallbackTerms,
    observer: Observer | None = None,
    tracer: Tracer | None = None,
) -> AsyncIterator[ProductCallback]:
    """Lend the way to the product for as long as the block lasts.

    The address is the operator's own setting, so it may be in a local network.

    Raises:
        ProviderAddressRefused: The URL is not one that can be called.
    """
    origin, path = split_url(url)
    policy = AddressPolicy(allowed_networks=LOCAL_NETWORKS)
    async with ProviderHttp.open(
        str(origin), provider_id=None, policy=policy, observer=observer, tracer=tracer
    ) as http:
        callback = ProductCallback(
            http,
            path or "/",
            callbacks=callbacks,
            leases=leases,
            providers=providers,
            terms=terms,
        )
        try:
            yield callback
        finally:
            await callback.aclose()


def sign(secret: Secret[str], *, nonce: str, body: bytes, at: int) -> str:
    """Return the signature of a registration, as the product makes it."""
    signed = f"{at}.{nonce}.".encode() + body
    return f"t={at},v1={hmac.digest(secret.reveal().encode(), signed, hashlib.sha256).hex()}"


def _is_signed(secret: Secret[str], *, nonce: str, body: bytes, signature: str) -> bool:
    stamp, _, _ = signature.removeprefix("t=").partition(",")
    at = int(stamp) if stamp.isascii() and stamp.isdigit() and len(stamp) <= 12 else 0  # noqa: PLR2004 - digits of any year
    expected = sign(secret, nonce=nonce, body=body, at=at)
    fresh = abs(time.time() - at) <= _SIGNATURE_AGE_SECONDS
    return hmac.compare_digest(expected.encode(), signature.encode(errors="replace")) and fresh
