"""The rules by which providers come, change and go.

A provider is reached, its version read and its account logged in before it counts as active;
what fails is said exactly, and nothing is stored. The session obtained by the check becomes the
provider's first, so registering costs one login.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final, TypeAlias

import structlog

from resolvers.caching import RecordCache
from resolvers.callback import ProductCallback
from resolvers.context import ProviderChanges, ProviderCheckReport, ProviderDraft, Refusal
from resolvers.reading import parse_max_age
from sessions.addresses import AddressPolicy, split_url
from sessions.base import COMMON_OPTIONS, MAX_AGE, NewGrant, Platform, ProviderCheck
from sessions.errors import ProviderAddressRefused, ProviderError, ProviderNotFound
from sessions.manager import SERVICE, SessionManager
from sessions.registry import Registry
from storage.credentials import Secret
from storage.errors import RevisionConflict
from storage.providers import ProviderStore
from storage.records import Provider, ProviderState, SessionState

_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_MAX_LENGTH: Final = 500
_BAD_INPUT: Final = "BAD_INPUT"

_log = structlog.get_logger(__name__)

_Values: TypeAlias = Mapping[str, str]


class ProviderRegistration:
    """Registers, changes, checks and removes providers.

    Args:
        providers: What is registered.
        sessions: Checks providers and holds their sessions.
        platforms: Which kinds of software there are.
        policy: Where providers may be.
        allowed_urls: The only base URLs at or below which they may be; any, when empty.
        callback: The way to the product; ``None`` when unknown ids are simply not found.
        cache: What is kept of providers' answers; forgotten with whom it was read for.
    """

    def __init__(
        self,
        *,
        providers: ProviderStore,
        sessions: SessionManager,
        platforms: Registry,
        policy: AddressPolicy,
        allowed_urls: Collection[str] = (),
        callback: ProductCallback | None,
        cache: RecordCache | None = None,
    ) -> None:
        self._providers = providers
        self._sessions = sessions
        self._platforms = platforms
        self._policy = policy
        self._allowed_urls = tuple(allowed_urls)
        self._callback = callback
        self._cache = cache

    async def find(self, provider_id: str) -> Provider | None:
        """Return the provider; asks the product for the details of one not registered yet.

        Raises:
            StorageError: The database could not answer.
        """
        found = await self._providers.get(provider_id)
        if found is not None or self._callback is None or not _ID.fullmatch(provider_id):
            return found
        return await self._callback.find(provider_id)

    async def register(self, draft: ProviderDraft) -> Provider | Refusal:
        """Check and store a provider, replacing one of the same id.

        Raises:
            StorageError: The database could not do it.
        """
        if not _ID.fullmatch(draft.id):
            return _refused("id", f"{_quoted(draft.id)} is not 1 to 64 letters, digits, - or _")
        now = datetime.now(UTC)
        provider = Provider(
            id=draft.id,
            platform=draft.platform,
            name=(draft.name or "").strip(),
            base_url=draft.base_url,
            account_id=draft.account_id or None,
            options=draft.options,
            state=ProviderState.PENDING,
            revision=0,
            created_at=now,
            updated_at=now,
        )
        judged = self._judged(provider, draft.credentials)
        if isinstance(judged, Refusal):
            return judged
        checked = await self._checked(judged, draft.credentials)
        if isinstance(checked, Refusal):
            return checked
        found, grant = checked
        async with self._sessions.starting_over(judged.id):
            stored = await self._providers.add(
                id=judged.id,
                platform=judged.platform,
                name=judged.name or found.name or judged.id,
                base_url=judged.base_url,
                account_id=judged.account_id,
                options=judged.options,
                credentials=draft.credentials,
                state=ProviderState.ACTIVE,
                version=found.version,
                problem=_problem(found),
                checked_at=datetime.now(UTC),
            )
            await self._start_over(stored, grant)
        _log.info("provider_registered", provider_id=stored.id, platform=stored.platform)
        if self._callback is not None:
            self._callback.wake(stored.id)
        return stored

    async def update(self, provider_id: str, changes: ProviderChanges) -> Provider | Refusal:
        """Check and store changes; what is not given stays as it is, credentials one by one.

        A new name alone is stored without asking the provider.

        Raises:
            StorageError: The database could not do it.
        """
        known = await self._providers.get(provider_id)
        if known is None:
            return _NOT_FOUND
        given = changes.credentials or Secret[_Values]({})
        if changes.base_url is None or not _is_elsewhere(known, changes.base_url):
            stored_ones = await self._providers.credentials(provider_id)
            credentials = Secret[_Values]({**stored_ones.reveal(), **given.reveal()})
        else:
            credentials = given  # those stored are not sent to a server they were not given for
        wanted = self._judged(_changed(known, changes), credentials)
        if isinstance(wanted, Refusal):
            return wanted
        found: ProviderCheck | None = None
        grant: NewGrant | None = None
        renamed = changes.credentials is None and wanted == replace(known, name=wanted.name)
        if wanted.state is not ProviderState.DISABLED and not renamed:
            checked = await self._checked(wanted, credentials)
            if isinstance(checked, Refusal):
                return checked
            found, grant = checked
        try:
            async with self._sessions.starting_over(provider_id):
                stored = await self._providers.update(
                    provider_id,
                    expected_revision=known.revision
                    if changes.expected_revision is None
                    else changes.expected_revision,
                    credentials=credentials,
                    name=wanted.name,
                    base_url=wanted.base_url,
                    account_id=wanted.account_id,
                    options=wanted.options,
                    state=wanted.state,
                    version=found.version if found else known.version,
                    problem=_problem(found) if found else known.problem,
                    checked_at=datetime.now(UTC) if found else known.checked_at,
                )
                if stored is not None and not renamed:
                    await self._start_over(stored, grant)
        except RevisionConflict:
            await self._drop(wanted, grant)
            return Refusal(
                code=_BAD_INPUT,
                message="The provider was changed by somebody else meanwhile; read it again",
                field="expected_revision",
                retryable=True,
            )
        if stored is None:
            await self._drop(wanted, grant)
            return _NOT_FOUND
        _log.info("provider_updated", provider_id=stored.id, revision=stored.revision)
        return stored

    async def remove(self, provider_id: str) -> bool:
        """Log out of a provider and forget everything kept of it; False when there is none.

        Raises:
            StorageError: The database could not do it.
        """
        await self._sessions.revoke_all(provider_id)
        removed = await self._providers.remove(provider_id)
        await self._sessions.forget(provider_id)
        if self._cache is not None:
            self._cache.drop(provider_id)
        if removed:
            _log.info("provider_removed", provider_id=provider_id)
        return removed

    async def check(self, provider_id: str) -> ProviderCheckReport | Refusal:
        """Reach the provider with a session of its own, and note what was found.

        Raises:
            StorageError: The database could not do it.
        """
        provider = await self._providers.get(provider_id)
        if provider is None:
            return _NOT_FOUND
        credentials = await self._providers.credentials(provider_id)
        now = datetime.now(UTC)
        try:
            found, grant = await self._sessions.check(provider, credentials)
        except ProviderError as error:
            await self._providers.update(provider_id, problem=error.message, checked_at=now)
            return _refusal_of(error)
        await self._sessions.discard(provider, grant)
        noted = await self._providers.update(
            provider_id, version=found.version, problem=_problem(found), checked_at=now
        )
        return ProviderCheckReport(
            provider=noted or provider,
            version=found.version,
            name=found.name,
            account=found.account,
            missing=found.missing,
        )

    async def revoke(self, provider_id: str, subject: str = SERVICE) -> bool:
        """End a session and log out; False when there is none.

        Raises:
            StorageError: The database could not do it.
        """
        status = await self._sessions.status(provider_id, subject)
        if status.state is SessionState.EMPTY:
            return False
        try:
            await self._sessions.revoke(provider_id, subject)
        except ProviderNotFound:
            return False
        except ProviderError as error:
            # It cannot be logged out of, disabled as it may be: what is kept of it is forgotten.
            _log.info("session_not_logged_out", provider_id=provider_id, problem=error.message)
            await self._sessions.forget(provider_id, subject)
        if self._cache is not None and subject != SERVICE:
            # What was read for a user is nobody's any more, in no gateway.
            await self._providers.note_write(provider_id)
            await self._cache.forget(provider_id, subject=subject)
        return True

    def _judged(self, provider: Provider, credentials: Secret[_Values]) -> Provider | Refusal:
        """Return the provider with its address normalised, if everything about it may be."""
        platform = self._platforms.get(provider.platform)
        if platform is None:
            names = ", ".join(self._platforms.names())
            return _refused("platform", f"{_quoted(provider.platform)} is not one of {names}")
        if len(provider.name) > _MAX_LENGTH:
            return _refused("name", f"It is longer than {_MAX_LENGTH} characters")
        wrong = _wrong_values(
            platform, provider=provider, credentials=credentials.reveal()
        ) or _wrong_option(platform, provider.options)
        if wrong is not None:
            return wrong
        try:
            base_url = self._policy.check_url(provider.base_url)
            allowed = [self._policy.check_url(url) for url in self._allowed_urls]
        except ProviderAddressRefused as error:
            return _refused("base_url", error.message)
        if allowed and not any(f"{base_url}/".startswith(f"{url}/") for url in allowed):
            return _refused(
                "base_url",
                "It is not at or below an address this gateway may register: have the operator "
                "add it to GATEWAY_ALLOWED_PROVIDER_URLS",
            )
        return replace(provider, base_url=base_url)

    async def _checked(
        self, provider: Provider, credentials: Secret[_Values]
    ) -> tuple[ProviderCheck, NewGrant] | Refusal:
        try:
            return await self._sessions.check(provider, credentials)
        except ProviderError as error:
            _log.info("provider_check_failed", provider_id=provider.id, problem=error.message)
            return _refusal_of(error)

    async def _start_over(self, provider: Provider, grant: NewGrant | None) -> None:
        await self._sessions.forget(provider.id)
        if grant is None:
            return
        try:
            await self._sessions.adopt(provider.id, grant)
        except ProviderError as error:
            # The next use logs in by itself; the registration stands.
            _log.info("grant_not_adopted", provider_id=provider.id, problem=error.message)

    async def _drop(self, provider: Provider, grant: NewGrant | None) -> None:
        if grant is not None:
            await self._sessions.discard(provider, grant)


_NOT_FOUND: Final = Refusal(
    code=ProviderNotFound.code, message="No such provider is registered", field="provider_id"
)


def _changed(known: Provider, changes: ProviderChanges) -> Provider:
    state = known.state
    if changes.disabled is not None:
        state = ProviderState.DISABLED if changes.disabled else ProviderState.ACTIVE
    elif state is ProviderState.PENDING:
        state = ProviderState.ACTIVE  # it is checked before this is stored
    return replace(
        known,
        name=known.name if changes.name is None else changes.name.strip() or known.name,
        base_url=changes.base_url or known.base_url,
        account_id=known.account_id if changes.account_id is None else changes.account_id or None,
        options=known.options if changes.options is None else changes.options,
        state=state,
    )


def _wrong_values(
    platform: Platform, *, provider: Provider, credentials: _Values
) -> Refusal | None:
    """Compare what was given with what the platform asks for."""
    asked = {credential.name: credential for credential in platform.credential_fields}
    given = {**credentials, "account_id": provider.account_id or ""}
    for name in sorted(credentials):
        if name not in asked:
            return _refused(
                f"credentials.{name}",
                f"{platform.title} does not know it; it asks for {', '.join(asked)}",
            )
    for name, credential in asked.items():
        place = "account_id" if name == "account_id" else f"credentials.{name}"
        if credential.required and not given.get(name):
            return _refused(place, f"{platform.title} needs it: {credential.label}")
        if len(given.get(name, "")) > _MAX_LENGTH:
            return _refused(place, f"It is longer than {_MAX_LENGTH} characters")
    return None


def _wrong_option(platform: Platform, options: _Values) -> Refusal | None:
    known = {*platform.option_names, *COMMON_OPTIONS}
    for name in sorted(options):
        if name not in known:
            return _refused(
                "options", f"{_quoted(name)} is not one; there are {', '.join(sorted(known))}"
            )
    try:
        parse_max_age(options.get(MAX_AGE, "0"))
    except ValueError as error:
        return _refused("options", f"{MAX_AGE}: {error}")
    return None


def _is_elsewhere(known: Provider, base_url: str) -> bool:
    """Whether a URL leads to another server than the one the stored credentials are for."""
    try:
        return split_url(base_url.strip())[0] != split_url(known.base_url)[0]
    except ProviderAddressRefused:
        return True


def _problem(check: ProviderCheck) -> str | None:
    return "; ".join(check.missing) or None


def _refusal_of(error: ProviderError) -> Refusal:
    place = "base_url" if isinstance(error, ProviderAddressRefused) else None
    return Refusal(
        code=error.code, message=error.message, field=place, retryable=type(error).retryable
    )


def _refused(place: str, problem: str) -> Refusal:
    return Refusal(code=_BAD_INPUT, message=f"{place}: {problem}", field=place)


def _quoted(text: str) -> str:
    return repr(text[:64])
