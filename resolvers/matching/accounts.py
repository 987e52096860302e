"""What matching reads of an account, and the form of it that is made once and kept."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Final

import msgspec
from anyascii import anyascii

from resolvers.matching.names import LATIN, Token, is_spelling, read_tokens, skeleton

VERSION: Final = 4
"""Of the normaliser: what another version prepared is made anew, and so are its keys."""

_MAX_HANDLES: Final = 2
_MAX_IDS: Final = 3
_MAX_GROUPS: Final = 64
_MAX_TEXT: Final = 120
_EARLIEST_YEAR, _LATEST_YEAR = 1900, 2100
_ID_LIKE: Final = re.compile(r"^[a-z]{0,3}[-_. ]?\d{4,}[a-z]?$")
_LETTERS: Final = re.compile(r"[a-z]+")
_NOT_ID: Final = re.compile(r"[^a-z0-9]+")
# Domains that no mail reaches: those reserved for examples, and what platforms make up.
_SYNTHETIC: Final = re.compile(
    r"(^|\.)(invalid|test|example|localhost|local|noemail|nomail|placeholder|dummy)(\.|$)"
    r"|^(noreply|no-reply|example)\."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """An account as matching reads it; ``None`` means that the provider does not report it.

    Attributes:
        identifiers: Numbers such as a SIS id; equal strings mean the same number.
        roles: The unified words, such as ``STUDENT``.
        groups: External ids of the classes, courses and facilities it is in, unique within its
            provider.
    """

    provider_id: str
    external_id: str
    display_name: str | None = None
    given_name: str | None = None
    middle_name: str | None = None
    family_name: str | None = None
    username: str | None = None
    email: str | None = None
    identifiers: tuple[str, ...] = ()
    birth_year: int | None = None
    gender: str | None = None
    roles: tuple[str, ...] = ()
    time_zone: str | None = None
    groups: tuple[str, ...] = ()


class Prepared(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An account normalised for matching.

    Holds personal data: kept and shown with the care its account is. ``tokens`` are the name's
    in the order given, middle, family, or as written; ``scripts`` has one number for each, and
    ``readings`` how else each may be read, if any may.
    """

    version: int
    provider_id: str
    external_id: str
    tokens: tuple[str, ...]
    scripts: tuple[int, ...]
    handles: tuple[str, ...]
    email: str | None
    ids: tuple[str, ...]
    birth_year: int | None
    gender: str | None
    role: str | None
    time_zone: str | None
    groups: tuple[str, ...]
    readings: tuple[tuple[str, ...], ...] = ()

    def __repr__(self) -> str:
        return f"Prepared(provider_id={self.provider_id!r}, external_id={self.external_id!r})"


def prepare(account: Account) -> Prepared:
    """Return the account as it is matched; total, and always the same for the same account."""
    tokens = _tokens(account)
    username, email = _plain(account.username), _email(account.email)
    ids = [_identifier(text) for text in account.identifiers]
    handles = [email.partition("@")[0]] if email else []
    if username:
        local = username.partition("@")[0]
        if _ID_LIKE.match(local):
            ids.append(_identifier(local))
        else:
            handles.insert(0, local)
        if email is None and "@" in username:
            email = _email(username)
    tokens = _completed(tokens, handles)
    return Prepared(
        version=VERSION,
        provider_id=account.provider_id,
        external_id=account.external_id,
        tokens=tuple(token.text for token in tokens),
        scripts=tuple(token.script for token in tokens),
        handles=_distinct(handles, _MAX_HANDLES),
        email=email,
        ids=_distinct(ids, _MAX_IDS),
        birth_year=_year(account.birth_year),
        gender=_gender(account.gender),
        role=_role(account.roles),
        time_zone=_plain(account.time_zone) or None,
        groups=_distinct(account.groups, _MAX_GROUPS),
        readings=tuple(token.readings for token in tokens)
        if any(token.readings for token in tokens)
        else (),
    )


def _tokens(account: Account) -> tuple[Token, ...]:
    parts = [account.given_name, account.middle_name, account.family_name]
    chosen = named = read_tokens(" ".join(part for part in parts if part))
    if not (named and account.given_name and account.family_name):
        chosen = read_tokens(account.display_name or "") or named
    return tuple(dict.fromkeys(chosen))


def _completed(tokens: tuple[Token, ...], handles: list[str]) -> tuple[Token, ...]:
    """Return tokens with the one that is missing, if a handle has it.

    A name of one whole token and perhaps initials is completed from a handle that has that
    token beside another one, such as ``amina`` or ``amina o`` with ``amina.okello``.
    """
    whole = [token for token in tokens if len(token.text) > 1]
    initials = {token.text for token in tokens if len(token.text) == 1}
    if len(whole) != 1 or len(whole[0].text) < 3:
        return tokens
    for handle in handles:
        other = _beside(whole[0], _LETTERS.findall(handle))
        if other and (not initials or other[0] in initials):
            kept = tuple(token for token in tokens if token.text != other[0])
            return (*kept, Token(other, LATIN))
    return tokens


def _beside(token: Token, pieces: list[str]) -> str | None:
    """Return what a handle in pieces has beside a known token."""
    known = token.text
    own = [piece for piece in pieces if is_spelling(piece, token)]
    if own:
        others = [piece for piece in pieces if piece not in own and len(piece) > 2]
        return others[0] if others else None
    for piece in pieces:
        for rest in (piece.removeprefix(known), piece.removesuffix(known)):
            if rest != piece and len(rest) > 2:
                return rest
        if len(piece) > 4 and piece[0] == known[0] and not _begins_alike(piece, token):
            return piece[1:]
    return None


def _begins_alike(piece: str, token: Token) -> bool:
    """Whether a piece of a handle begins as a token, and so is not an initial before a name."""
    sounds = skeleton(token.text, token.script)[:2]
    return piece[:2] == token.text[:2] or (
        token.script != LATIN and skeleton(piece, LATIN).startswith(sounds)
    )


def _plain(text: str | None) -> str:
    """Return text in small ASCII letters, digits and signs, clipped."""
    clipped = (text or "")[:_MAX_TEXT]
    if clipped.isascii() and clipped.isprintable():
        return clipped.lower().strip()
    cleaned = clipped.encode("utf-8", "ignore").decode("utf-8")
    plain = anyascii(unicodedata.normalize("NFKC", cleaned)).lower()
    return "".join(character for character in plain if " " <= character <= "~").strip()


def _email(text: str | None) -> str | None:
    local, at, domain = _plain(text).partition("@")
    local = local.partition("+")[0]
    if not (local and at and "." in domain) or _SYNTHETIC.search(domain):
        return None
    return f"{local}@{domain}"


def _identifier(text: str) -> str:
    return _NOT_ID.sub("", _plain(text)).lstrip("0")


def _year(year: int | None) -> int | None:
    return year if year is not None and _EARLIEST_YEAR <= year <= _LATEST_YEAR else None


def _gender(text: str | None) -> str | None:
    first = _plain(text)[:1]
    return first if first in {"m", "f"} else None


def _role(roles: tuple[str, ...]) -> str | None:
    """Return ``staff`` or ``student``; ``None`` when the roles do not tell."""
    words = {role.upper() for role in roles}
    if words & {"TEACHER", "TEACHING_ASSISTANT", "ADMINISTRATOR", "AIDE", "DESIGNER", "PROCTOR"}:
        return "staff"
    return "student" if "STUDENT" in words else None


def _distinct(texts: list[str] | tuple[str, ...], limit: int) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text for text in texts if text))[:limit]
