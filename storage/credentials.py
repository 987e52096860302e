"""Secrets: the type that hides them and the key ring that seals them.

A sealed value is AES-256-GCM over the plaintext, bound to the place it is kept: the *binding*,
such as ``provider|1|credentials``, is authenticated with it, so a sealed value copied to another
row cannot be opened there. Layout of a sealed value, version 1::

    1 byte    0x01
    1 byte    length of the key's id
    n bytes   the key's id, ASCII
    12 bytes  nonce, random
    rest      ciphertext and 16 bytes of tag

The associated data is everything up to the nonce, followed by the binding in UTF-8.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Generic, NoReturn, TypeVar

import msgspec
import structlog
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from storage.errors import CredentialsUnreadable, KeyRingInvalid

T_co = TypeVar("T_co", covariant=True)

_MASK: Final = "***"
_LAYOUT: Final = b"\x01"
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
_KEY_BYTES: Final = 32
_KEY_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,32}")
_EXPECTED_KEYS: Final = (
    "expected comma-separated <id>:<32 bytes in base64>, the newest first, "
    "with ids of up to 32 letters, digits, - and _"
)

_log = structlog.get_logger(__name__)


class Secret(Generic[T_co]):
    """A value that shows itself to ``reveal`` only; printed, formatted or logged it is ``***``.

    It compares by value, and copies are the same object. It refuses to be pickled, so that it
    cannot slip into a queue, a cache or a child process.
    """

    __slots__ = ("__value",)

    def __init__(self, value: T_co) -> None:
        self.__value = value

    def reveal(self) -> T_co:
        """Return the value itself; whoever calls this answers for where it goes."""
        return self.__value

    def __repr__(self) -> str:
        return _MASK

    def __str__(self) -> str:
        return _MASK

    def __format__(self, specification: str) -> str:
        return _MASK

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return bool(self.__value == other.reveal())

    def __hash__(self) -> int:
        return hash((Secret, self.__value))

    def __copy__(self) -> Secret[T_co]:
        return self

    def __deepcopy__(self, memo: object) -> Secret[T_co]:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("A secret cannot be pickled")


class KeyRing:
    """Keys by id: the newest one seals, every one of them opens.

    Made by ``parse``, ``open_file`` or ``renew_file``.
    """

    __slots__ = ("__ciphers", "newest_key_id")

    newest_key_id: str
    """Id of the key that seals."""

    def __init__(self, keys: Sequence[tuple[str, Secret[bytes]]]) -> None:
        self.__ciphers = {key_id: AESGCM(key.reveal()) for key_id, key in keys}
        self.newest_key_id = keys[0][0]

    def __repr__(self) -> str:
        return f"KeyRing({', '.join(self.key_ids)})"

    @property
    def key_ids(self) -> tuple[str, ...]:
        """Ids of all keys, the newest first."""
        return tuple(self.__ciphers)

    @classmethod
    def parse(cls, text: str) -> KeyRing:
        """Read ``k2:<32 bytes in base64>,k1:...``, the newest key first.

        Either base64 alphabet will do, with or without padding; line ends separate like commas.

        Raises:
            KeyRingInvalid: It has another form, names an id twice, or is empty.
        """
        return cls(_parsed_keys(text))

    @classmethod
    def open_file(cls, path: Path) -> KeyRing:
        """Read the key file, making one with a fresh key when there is none.

        Several processes may do so at once: all of them end with the same key. Making one is
        logged as a warning, because without a copy of that file a backup of the database is
        worth little.

        Raises:
            KeyRingInvalid: The file cannot be read or written, has another form, or can be read
                by other users of the machine.
        """
        try:
            if not path.exists():
                _make_key_file(path)
            return cls.parse(_read_key_file(path))
        except OSError as error:
            raise _unusable(path, error) from error

    @classmethod
    def renew_file(cls, path: Path) -> KeyRing:
        """Put a fresh key in front of those in the key file, keeping them for opening.

        Running gateways learn of it when they are restarted; until then they cannot open what is
        sealed with the new key, so re-seal after the restart.

        Raises:
            KeyRingInvalid: As for ``open_file``.
        """
        earlier = cls.open_file(path)
        numbers = [int(key_id[1:]) for key_id in earlier.key_ids if _numbered(key_id)]
        try:
            text = f"{_fresh_key(f'k{max(numbers, default=0) + 1}')}\n{_read_key_file(path)}"
            temporary = _written_beside(path, text)
            temporary.replace(path)
            _flush_folder(path.parent)
        except OSError as error:
            raise _unusable(path, error) from error
        return cls.parse(text)

    def seal(self, plaintext: bytes, *, bound_to: str) -> bytes:
        """Seal with the newest key for one place; the same plaintext differs every time.

        Args:
            plaintext: What to keep.
            bound_to: Where it is kept, such as ``provider|1|credentials``.
        """
        head = _LAYOUT + bytes([len(self.newest_key_id)]) + self.newest_key_id.encode("ascii")
        nonce = os.urandom(_NONCE_BYTES)
        cipher = self.__ciphers[self.newest_key_id]
        return head + nonce + cipher.encrypt(nonce, plaintext, head + bound_to.encode())

    def unseal(self, blob: bytes, *, bound_to: str) -> bytes:
        """Open what ``seal`` made for the same place.

        Raises:
            CredentialsUnreadable: It was damaged, cut short, made for another place, or sealed
                with a key that is not in the ring.
        """
        key_id = self.key_id_of(blob)
        cipher = self.__ciphers.get(key_id)
        if cipher is None:
            raise CredentialsUnreadable(
                f"The value of {bound_to} was sealed with key {key_id}, "
                f"which is not among the keys given: {', '.join(self.key_ids)}"
            )
        head, rest = blob[: 2 + len(key_id)], blob[2 + len(key_id) :]
        try:
            return cipher.decrypt(
                rest[:_NONCE_BYTES], rest[_NONCE_BYTES:], head + bound_to.encode()
            )
        except InvalidTag as error:
            raise CredentialsUnreadable(
                f"The value of {bound_to} was damaged, moved from another row, "
                f"or sealed with another key named {key_id}"
            ) from error

    def seal_mapping(self, secret: Secret[Mapping[str, str]], *, bound_to: str) -> bytes:
        """Seal names and values together."""
        return self.seal(msgspec.json.encode(dict(secret.reveal())), bound_to=bound_to)

    def unseal_mapping(self, blob: bytes, *, bound_to: str) -> Secret[Mapping[str, str]]:
        """Open what ``seal_mapping`` made for the same place.

        Raises:
            CredentialsUnreadable: As for ``unseal``, or it holds something else.
        """
        plaintext = self.unseal(blob, bound_to=bound_to)
        try:
            return Secret(msgspec.json.decode(plaintext, type=dict[str, str]))
        except msgspec.DecodeError:
            # Without the cause: it would quote what was sealed.
            raise CredentialsUnreadable(
                f"The value of {bound_to} is not names and values"
            ) from None

    @staticmethod
    def key_id_of(blob: bytes) -> str:
        """Return the id of the key a value was sealed with, which needs no key.

        Raises:
            CredentialsUnreadable: It is not a sealed value.
        """
        key_id = blob[2 : 2 + blob[1]] if len(blob) > 1 else b""
        shortest = 2 + len(key_id) + _NONCE_BYTES + _TAG_BYTES
        if blob[:1] != _LAYOUT or len(blob) < shortest or not _is_key_id(key_id):
            raise CredentialsUnreadable("A sealed value was cut short or is of an unknown form")
        return key_id.decode("ascii")


def _is_key_id(raw: bytes) -> bool:
    return raw.isascii() and _KEY_ID.fullmatch(raw.decode("ascii")) is not None


def _parsed_keys(text: str) -> Sequence[tuple[str, Secret[bytes]]]:
    parts = [part.strip() for part in re.split(r"[,\n]", text) if part.strip()]
    keys = [_parsed_key(part, position) for position, part in enumerate(parts, start=1)]
    if not keys:
        raise KeyRingInvalid(f"No key is given: {_EXPECTED_KEYS}")
    ids = [key_id for key_id, _ in keys]
    if len(set(ids)) < len(ids):
        raise KeyRingInvalid("Two keys have the same id: every key needs an id of its own")
    return keys


def _parsed_key(part: str, position: int) -> tuple[str, Secret[bytes]]:
    key_id, _, encoded = part.partition(":")
    if _KEY_ID.fullmatch(key_id) is None or not encoded:
        raise KeyRingInvalid(f"Key number {position} has no id: {_EXPECTED_KEYS}")
    padded = encoded.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        key = base64.b64decode(padded + "=" * (-len(padded) % 4), validate=True)
    except binascii.Error:
        # Without the cause, like below: nothing may quote a key.
        raise KeyRingInvalid(f"Key {key_id} is not base64: {_EXPECTED_KEYS}") from None
    if len(key) != _KEY_BYTES:
        raise KeyRingInvalid(f"Key {key_id} has {len(key)} bytes: {_EXPECTED_KEYS}")
    return key_id, Secret(key)


def _numbered(key_id: str) -> bool:
    return re.fullmatch(r"k[0-9]+", key_id) is not None


def _fresh_key(key_id: str) -> str:
    return f"{key_id}:{base64.b64encode(secrets.token_bytes(_KEY_BYTES)).decode('ascii')}"


def _unusable(path: Path, error: OSError) -> KeyRingInvalid:
    return KeyRingInvalid(f"The key file {path} cannot be used: {error.strerror}")


def _read_key_file(path: Path) -> str:
    with path.open(encoding="ascii", errors="replace") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if mode & 0o077:
            raise KeyRingInvalid(
                f"The key file {path} can be used by other users of this machine "
                f"(mode {mode:04o}): make it its owner's only, as with chmod 600"
            )
        return file.read()


def _make_key_file(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = _written_beside(path, f"{_fresh_key('k1')}\n")
    try:
        path.hardlink_to(temporary)  # unlike a rename, it never replaces a faster process's file
    except FileExistsError:
        return
    finally:
        temporary.unlink()
    _flush_folder(path.parent)
    _log.warning(
        "key_file_made",
        path=str(path),
        advice="Keep a copy apart from the database's backups: without it no stored "
        "credential can be read",
    )


def _written_beside(path: Path, text: str) -> Path:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    return Path(name)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
