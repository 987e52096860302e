"""Learners' tokens: JSON Web Tokens that another system signs, for frontends that have no key.

A token names the accounts of one person, and whoever shows it may read that person's own rows. It
is believed when a key of the issuer's key set signed it, by an asymmetric algorithm, and it is
meant for this gateway, now. The key set is fetched when it is first needed, again when it grows
old or a token names a key that is not in it, by one call for all who wait, and not more often than
every half minute; while it cannot be had, the last one serves for a day.

Source:
    https://www.rfc-editor.org/rfc/rfc7519
    https://www.rfc-editor.org/rfc/rfc8725, best current practices
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from base64 import urlsafe_b64decode
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import anyio
import msgspec
import structlog
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, JWKRegistry, OKPKey, RSAKey
from joserfc.jws import JWSRegistry
from joserfc.jwt import JWTClaimsRegistry

from sessions.addresses import LOCAL_NETWORKS, AddressPolicy, split_url
from sessions.errors import ProviderError
from sessions.http import Observer, ProviderHttp, deadline

ALGORITHMS: Final = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "Ed25519"),
)
"""The only ones; those with a shared secret, and none at all, are refused whatever signs them."""

MAX_TOKEN_LENGTH: Final = 8192

NO_KEY_SET: Final = "The keys that tokens are signed with cannot be had now"

_LEEWAY_SECONDS: Final = 60
_MAX_ACCOUNTS: Final = 20
_MAX_KEYS: Final = 100
_MAX_KEY_SET_BYTES: Final = 256 * 1024
_MIN_RSA_BITS: Final = 2048
_FETCH_SECONDS: Final = 5.0
_PROVIDER_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_MAX_EXTERNAL_ID: Final = 255
_OK: Final = 200
_PUBLIC: Final = frozenset({"kty", "crv", "x", "y", "n", "e"})
_CURVES_BY_TYPE: Final = {"EC": ("P-256", "P-384", "P-521"), "OKP": ("Ed25519",), "RSA": (None,)}

_log = structlog.get_logger(__name__)

_Key: TypeAlias = RSAKey | ECKey | OKPKey
Fetch: TypeAlias = Callable[[], Awaitable[bytes]]
"""Fetches the key set as JSON; raises ``ProviderError`` or ``OSError`` when it cannot be had."""


class TokenRefused(Exception):
    """A token is not believed; the message says why, for the log and for nobody else."""


class KeySetUnavailable(Exception):
    """No key set is to be had, so that no token can be judged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTerms:
    """Which tokens are believed.

    Attributes:
        keys: Where the key set is: an http or https URL, or the path of a file.
        issuer: What their ``iss`` must be.
        audience: What their ``aud`` must be, or hold.
        accounts_claim: Name of the claim that maps provider ids to the person's external ids.
    """

    keys: str
    issuer: str
    audience: str
    accounts_claim: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Learner:
    """Who shows a token.

    Attributes:
        id: The same for all tokens of one person, and tells nothing of them.
        accounts: The person's external ids by provider id.
    """

    id: str
    accounts: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySetTerms:
    """How long a key set serves.

    Attributes:
        fresh_seconds: Until it is fetched again.
        stale_seconds: While it cannot be fetched again.
        pause_seconds: Between two attempts to fetch it, whatever for.
    """

    fresh_seconds: float = 600
    stale_seconds: float = 86_400
    pause_seconds: float = 30


class KeySet:
    """The issuer's public keys, fetched when they are needed.

    Args:
        fetch: Fetches them.
        terms: For how long they serve.
        clock: Tells seconds that only rise.
    """

    def __init__(
        self,
        fetch: Fetch,
        *,
        terms: KeySetTerms = KeySetTerms(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fetch = fetch
        self._terms = terms
        self._clock = clock
        self._keys: Sequence[_Signer] = ()
        self._read_at: float | None = None
        self._tried_at: float | None = None
        self._flight: asyncio.Task[None] | None = None

    async def find(self, kid: str | None, algorithm: str) -> _Key | None:
        """Return the key that such a token must be signed with; ``None`` when there is none.

        A token may leave out the name of its key where only one fits its algorithm.

        Raises:
            KeySetUnavailable: There is no key set.
        """
        if self._age() > self._terms.fresh_seconds:
            await self._refresh()
        found = self._pick(kid, algorithm)
        if found is None and await self._refresh():
            found = self._pick(kid, algorithm)
        if self._age() > self._terms.stale_seconds:
            raise KeySetUnavailable
        return found

    async def aclose(self) -> None:
        """Give up fetching."""
        if self._flight is not None:
            self._flight.cancel()
            await asyncio.wait({self._flight})

    def _age(self) -> float:
        return float("inf") if self._read_at is None else self._clock() - self._read_at

    def _pick(self, kid: str | None, algorithm: str) -> _Key | None:
        fit = [signer for signer in self._keys if signer.fits(kid, algorithm)]
        return fit[0].key if len(fit) == 1 else None

    async def _refresh(self) -> bool:
        """Fetch the keys, with everybody else who wants them; False when it is too early."""
        if self._flight is None:
            now = self._clock()
            if self._tried_at is not None and now - self._tried_at < self._terms.pause_seconds:
                return False
            self._tried_at = now
            self._flight = asyncio.create_task(self._fetched())
            self._flight.add_done_callback(self._landed)
        await asyncio.shield(self._flight)
        return True

    def _landed(self, _flight: asyncio.Task[None]) -> None:
        self._flight = None

    async def _fetched(self) -> None:
        try:
            with deadline(None):  # not the deadline of whoever came first
                body = await self._fetch()
            self._keys = _signers(body)
        except (ProviderError, OSError, msgspec.MsgspecError, RecursionError) as error:
            _log.warning("key_set_unavailable", problem=str(error))
            return
        self._read_at = self._clock()


class TokenVerifier:
    """Tells whose token it is; made by ``open_verifier``.

    Args:
        keys: The issuer's.
        terms: Which tokens are believed.
    """

    def __init__(self, keys: KeySet, terms: TokenTerms) -> None:
        self._keys = keys
        self._terms = terms
        self._registry = JWSRegistry(algorithms=ALGORITHMS, strict_check_header=False)
        self._claims = JWTClaimsRegistry(
            leeway=_LEEWAY_SECONDS,
            iss={"essential": True, "value": terms.issuer},
            aud={"essential": True, "value": terms.audience},
            sub={"essential": True},
            exp={"essential": True},
        )

    async def verify(self, token: str) -> Learner:
        """Return who shows the token.

        Raises:
            TokenRefused: It is not to be believed.
            KeySetUnavailable: It cannot be judged now.
        """
        header = _header_of(token)
        key = await self._keys.find(header.kid, header.alg)
        if key is None:
            raise TokenRefused("No key of the key set fits it")
        try:
            claims = jwt.decode(token, key, registry=self._registry).claims
            self._claims.validate(claims)
        except (JoseError, ValueError, TypeError, RecursionError) as error:
            raise TokenRefused(f"{type(error).__name__}: {error}") from error
        name = f"{self._terms.issuer}\0{claims['sub']}"
        return Learner(
            id=hashlib.sha256(name.encode(errors="replace")).hexdigest()[:16],
            accounts=_accounts_of(claims.get(self._terms.accounts_claim)),
        )


def looks_like_one(token: str) -> bool:
    """Whether it has the form of a signed token, which no key of the gateway's own has."""
    return token.count(".") == 2  # noqa: PLR2004 - header, payload, signature


@asynccontextmanager
async def open_verifier(
    terms: TokenTerms, *, observer: Observer | None = None
) -> AsyncIterator[TokenVerifier]:
    """Lend what verifies tokens for as long as the block lasts; fetches nothing yet.

    The address is the operator's own setting, so it may be in a local network.

    Raises:
        ProviderAddressRefused: The URL is not one that can be called.
    """
    if not terms.keys.startswith(("http://", "https://")):
        async with _lent(KeySet(_file_fetcher(Path(terms.keys))), terms) as verifier:
            yield verifier
        return
    origin, path = split_url(terms.keys)
    policy = AddressPolicy(allowed_networks=LOCAL_NETWORKS)
    async with (
        ProviderHttp.open(str(origin), provider_id=None, policy=policy, observer=observer) as http,
        _lent(KeySet(_url_fetcher(http, path or "/")), terms) as verifier,
    ):
        yield verifier


@asynccontextmanager
async def _lent(keys: KeySet, terms: TokenTerms) -> AsyncIterator[TokenVerifier]:
    try:
        yield TokenVerifier(keys, terms)
    finally:
        await keys.aclose()


def _file_fetcher(path: Path) -> Fetch:
    async def fetch() -> bytes:
        async with await anyio.open_file(path, "rb") as file:
            return await file.read(_MAX_KEY_SET_BYTES)

    return fetch


def _url_fetcher(http: ProviderHttp, path: str) -> Fetch:
    async def fetch() -> bytes:
        answer = await http.request(
            "GET", path, max_body_bytes=_MAX_KEY_SET_BYTES, total_seconds=_FETCH_SECONDS
        )
        if answer.status != _OK:
            raise ProviderError(f"The key set's address answered {answer.status}")
        return answer.body

    return fetch


class _Header(msgspec.Struct, frozen=True):
    """What counts of a token's header; what it says of extensions makes it refused."""

    alg: str
    kid: str | None = None
    crit: Any = None
    b64: Any = None


def _decoded(text: str) -> bytes:
    """Return what base64url without padding says; raises ``ValueError`` when it is none."""
    return urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))


def _header_of(token: str) -> _Header:
    if len(token) > MAX_TOKEN_LENGTH:
        raise TokenRefused(f"It is longer than {MAX_TOKEN_LENGTH} characters")
    text = token.partition(".")[0]
    try:
        header = msgspec.json.decode(_decoded(text), type=_Header)
    except (ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise TokenRefused("Its header is not one") from error
    if header.alg not in ALGORITHMS:
        raise TokenRefused(f"The algorithm {header.alg[:20]!r} is not allowed")
    if header.crit is not None or header.b64 is not None:
        raise TokenRefused("Its header asks for an extension")
    return header


def _accounts_of(claim: object) -> Mapping[str, str]:
    """Return external ids by provider id; numbers, as some products have them, become text."""
    if not isinstance(claim, dict):
        raise TokenRefused("The claim of accounts is missing, or is no object")
    if len(claim) > _MAX_ACCOUNTS:
        raise TokenRefused(f"It names more than {_MAX_ACCOUNTS} accounts")
    accounts: dict[str, str] = {}
    for provider_id, given in claim.items():
        is_number = isinstance(given, int) and not isinstance(given, bool)
        external_id = str(given) if is_number else given
        if not _PROVIDER_ID.fullmatch(provider_id) or not isinstance(external_id, str):
            raise TokenRefused("An account is no provider id with an external id")
        if not 0 < len(external_id) <= _MAX_EXTERNAL_ID or not external_id.isprintable():
            raise TokenRefused("An account's external id cannot be one")
        accounts[provider_id] = external_id
    return accounts


@dataclass(frozen=True, slots=True)
class _Signer:
    """One key of the set, and for what it is meant."""

    key: _Key
    kid: str | None
    algorithm: str | None

    def fits(self, kid: str | None, algorithm: str) -> bool:
        """Whether a token of that key's name and algorithm may be signed with it."""
        named = kid is None or kid == self.kid
        meant = self.algorithm is None or self.algorithm == algorithm
        return named and meant and self._is_of(algorithm)

    def _is_of(self, algorithm: str) -> bool:
        if isinstance(self.key, RSAKey):
            return algorithm[:2] in {"RS", "PS"}
        curve = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}.get(algorithm, algorithm)
        return bool(self.key.curve_name == curve)


class _KeySetDocument(msgspec.Struct):
    keys: list[dict[str, Any]]


def _signers(body: bytes) -> Sequence[_Signer]:
    """Return the keys that can sign tokens; others, which a set may well hold, are passed over.

    Raises:
        MsgspecError: It is no key set.
    """
    given = msgspec.json.decode(body, type=_KeySetDocument).keys[:_MAX_KEYS]
    return [signer for each in given if (signer := _signer(each)) is not None]


def _signer(given: Mapping[str, Any]) -> _Signer | None:
    if not _is_for_signatures(given):
        return None
    try:
        # Its public part only: a private key that is published by mistake is not used as one.
        key = JWKRegistry.import_key({name: given[name] for name in _PUBLIC if name in given})
    except (JoseError, ValueError, TypeError) as error:
        _log.warning("key_unusable", kid=given.get("kid"), problem=type(error).__name__)
        return None
    assert isinstance(key, RSAKey | ECKey | OKPKey)  # noqa: S101 - by its kty
    kid, algorithm = given.get("kid"), given.get("alg")
    return _Signer(
        key,
        kid if isinstance(kid, str) else None,
        algorithm if isinstance(algorithm, str) else None,
    )


def _is_for_signatures(given: Mapping[str, Any]) -> bool:
    kind, operations = given.get("kty"), given.get("key_ops")
    if not isinstance(kind, str) or given.get("crv") not in _CURVES_BY_TYPE.get(kind, ()):
        return False
    return (
        all(isinstance(given[name], str) for name in _PUBLIC if name in given)
        and (kind != "RSA" or _bits(given.get("n")) >= _MIN_RSA_BITS)
        and given.get("use", "sig") == "sig"
        and (not isinstance(operations, list) or "verify" in operations)
    )


def _bits(modulus: object) -> int:
    """Return the length of an RSA key; 0 for what is no modulus."""
    try:
        return int.from_bytes(_decoded(str(modulus))).bit_length()
    except ValueError:
        return 0
