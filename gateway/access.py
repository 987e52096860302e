"""Who calls, and what they may do.

A caller shows a key as ``Authorization: Bearer <token>``, or bare, as existing products do: the
bootstrap key of the environment, which has every scope, or a stored one with scopes of its own. A
learner's browser shows a signed token in the place of a key (``gateway.tokens``).
"""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from gateway.tokens import TokenRefused, TokenVerifier, looks_like_one
from resolvers.context import Scope
from storage.api_keys import ApiKeyStore
from storage.credentials import Secret

_PROVIDER: Final = "provider:"
_MAX_TOKEN_LENGTH: Final = 512
_TOKEN_BYTES: Final = 32

_log = structlog.get_logger(__name__)


class TokenFileUnusable(Exception):
    """The file of the generated token cannot be used; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyAccess:
    """What one key allows.

    Attributes:
        key_id: For logs: the id of a stored key, ``bootstrap``, ``dev``, or ``jwt:`` and the
            learner's.
        scopes: ``admin`` includes all; ``provider:<id>`` narrows to the named providers.
        accounts: A learner's own external ids by provider id; ``None`` for whoever is none.
        narrowed: Whether it is for named providers only.
    """

    key_id: str
    scopes: frozenset[str]
    accounts: Mapping[str, str] | None = None
    narrowed: bool = field(init=False)

    def __post_init__(self) -> None:
        """Find out once what is asked for each provider."""
        names_some = any(scope.startswith(_PROVIDER) for scope in self.scopes)
        object.__setattr__(self, "narrowed", self.accounts is not None or names_some)

    def allows(self, scope: str, /) -> bool:
        """Whether the key has the scope, by itself or through ``admin``."""
        return scope in self.scopes or Scope.ADMIN in self.scopes

    def sees(self, provider_id: str, /) -> bool:
        """Whether the provider exists as far as this key is concerned."""
        if self.accounts is not None:
            return provider_id in self.accounts
        return not self.narrowed or f"{_PROVIDER}{provider_id}" in self.scopes


class KeyRegister:
    """Tells which key a request shows.

    Args:
        keys: Stored keys.
        bootstrap: The token of the environment.
        open_to_all: Whether a request without a key has every scope (``GATEWAY_DEV``).
        verifier: Tells whose a learner's token is; ``None`` where learners have none.
        learner_scopes: What learners may read of their own.
    """

    def __init__(
        self,
        keys: ApiKeyStore,
        bootstrap: Secret[str],
        *,
        open_to_all: bool,
        verifier: TokenVerifier | None = None,
        learner_scopes: frozenset[str] = frozenset(),
    ) -> None:
        self._keys = keys
        self._bootstrap = bootstrap
        self._open_to_all = open_to_all
        self._verifier = verifier
        self._learner_scopes = learner_scopes

    async def find(self, authorization: str | None) -> KeyAccess | None:
        """Return what the ``Authorization`` header allows; ``None`` when it shows no good key.

        Raises:
            StorageError: The database could not answer.
            KeySetUnavailable: A learner's token cannot be judged now.
        """
        token = _token_of(authorization or "")
        if not token:
            return _DEV if self._open_to_all else None
        if hmac.compare_digest(token.encode(errors="replace"), self._bootstrap.reveal().encode()):
            return _BOOTSTRAP
        if self._verifier is not None and looks_like_one(token):
            return await self._learner(self._verifier, token)
        if len(token) > _MAX_TOKEN_LENGTH:
            return None
        key = await self._keys.verify(token)
        return None if key is None else KeyAccess(key_id=key.id, scopes=key.scopes)

    async def _learner(self, verifier: TokenVerifier, token: str) -> KeyAccess | None:
        try:
            learner = await verifier.verify(token)
        except TokenRefused as error:
            _log.info("token_refused", problem=str(error))
            return None
        return KeyAccess(
            key_id=f"jwt:{learner.id}", scopes=self._learner_scopes, accounts=learner.accounts
        )


_BOOTSTRAP: Final = KeyAccess(key_id="bootstrap", scopes=frozenset({Scope.ADMIN}))
_DEV: Final = KeyAccess(key_id="dev", scopes=frozenset({Scope.ADMIN}))


def open_token(given: Secret[str] | None, folder: Path) -> tuple[Secret[str], bool]:
    """Return the bootstrap token and whether it was made just now.

    Without a given one it is read from the file ``token`` of the data folder, which is made with
    a fresh token, readable by its owner only, on the first start.

    Raises:
        TokenFileUnusable: The file cannot be read or made, or others can read it.
    """
    if given is not None:
        return given, False
    path = folder / "token"
    try:
        try:
            _write_new(path, secrets.token_urlsafe(_TOKEN_BYTES))
            made = True
        except FileExistsError:
            made = False
        if path.stat().st_mode & 0o077:
            raise TokenFileUnusable(f"{path} can be read by others; run chmod 600 on it")
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise TokenFileUnusable(f"{path} cannot be used; set GATEWAY_TOKEN instead") from error
    if not token:
        raise TokenFileUnusable(f"{path} is empty; remove it, and a token is made anew")
    return Secret(token), made


def _write_new(path: Path, text: str) -> None:
    """Make the file with its content in one step, so that another process never reads half."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(f"{text}\n")
        os.link(temporary, path)
    finally:
        temporary.unlink()


def _token_of(authorization: str) -> str:
    word, _, rest = authorization.strip().partition(" ")
    return rest.strip() if word.lower() == "bearer" else authorization.strip()
