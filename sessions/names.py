"""Given, middle and family name from a full name, where they can be told apart.

Names have no grammar that holds everywhere, so this parser says ``None`` rather than guess. What
it takes as told:

- a comma: ``Family, Given Middle``, in any script, with suffixes after a further comma;
- capitals: in ``KIM Min-jun`` and ``Jean DUPONT`` the family name is the word in capitals;
- one word: a given name (unless the script writes family and given name together, as Chinese,
  Japanese and Korean do);
- two or three words in Latin script: given, middle, family. Particles belong to the family name:
  ``Juan de la Cruz``;
- more words in Latin script only if those in the middle are initials: ``J. R. R. Tolkien``;
- three Cyrillic words with a patronymic second or last.

What it leaves as ``None``: names with ``bin``, ``ibn``, ``wa`` and the like after a single given
name have no family name; Vietnamese, and Japanese with its long vowels marked, are written in
either order; so are two words in any other script; text that holds digits, signs, markup or
emoji may not be a name at all.

What it gets wrong, because nothing in the text tells: ``Kim Minjun`` (family name first, without
capitals), ``Gabriel García Márquez`` (two family names, read as middle and family name), and
compound given names after a comma: ``García, María José``.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedName:
    """Parts of a name, each as it was written; ``None`` where it cannot be told."""

    given: str | None = None
    middle: str | None = None
    family: str | None = None
    suffix: str | None = None


UNTOLD = ParsedName()
"""Nothing could be told."""

_COMMA = re.compile(r"[,\uff0c\u060c]")  # also the Chinese and the Arabic one
_SUFFIX = re.compile(
    r"(?:jn?r|sn?r|esq)\.?|II|III|IV|V|VI|(?i:ph\.?d|m\.d|d\.d\.s)\.?|MD|DDS|MBA|CPA|RN",
)
_TITLE = re.compile(r"(?:mr|mrs|ms|mx|dr|prof|rev)\.?", re.IGNORECASE)
_INITIAL = re.compile(r"\w\.?(?:-?\w\.)?")
_PARTICLES = frozenset(
    {"de", "del", "della", "dello", "di", "da", "do", "dos", "das", "du", "des"}
    | {"la", "las", "le", "los", "al", "el", "st", "st.", "af", "av"}
    | {"van", "von", "der", "den", "het", "'t", "ter", "ten", "zu", "zur", "zum"}
)
_PARTICLES_AND_GIVEN_NAMES = frozenset({"Al", "Den", "Van"})
_PATRONYMIC_WORDS = frozenset({"bin", "ibn", "bn", "bint", "binti", "binte", "ben", "bat", "wa"})
_FIRST_OF_TWO = frozenset({"abd", "abdul", "abdel", "abdal", "abu", "abou", "umm"})
_LINKS = frozenset({"y", "i"})
_NOT_IN_NAMES = frozenset({"and", "und", "et", "or"})
_PATRONYMIC_ENDING = re.compile(r".+(?:ович|евич|ьич|овна|евна|ична)", re.IGNORECASE)
_WRITTEN_TOGETHER = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO")
_VIETNAMESE = re.compile(r"[ơưƠƯ\u1ea0-\u1ef9]")
_ROMAJI = re.compile(
    r"(?:(?:[kgnhbpmr]y|sh|ch|ts|[kgsztdnhbpmyrwjf])?[aeiouāīūēō]|n)+", re.IGNORECASE
)
_LONG_VOWEL = re.compile(r"[ōū]", re.IGNORECASE)
_INITIALS_OR_NAME = 2  # letters in capitals: JD are initials, LI is a family name
_CAPITALS_AT_LEAST = 3


def parse_name(full_name: str) -> ParsedName:
    """Tell the parts of a full name; see the module for what is told and what is not.

    White space at the ends and doubled inside is dropped; the parts are otherwise untouched.
    """
    text = " ".join(full_name.split())
    pieces = [piece.strip() for piece in _COMMA.split(text)]
    if not text or not all(_is_name_like(piece) for piece in pieces):
        return UNTOLD
    if len(pieces) == 1:
        return _spaced(text.split())
    return _listed(pieces)


def _is_name_like(piece: str) -> bool:
    words = piece.split()
    return bool(words) and all(map(_is_word, words))


@lru_cache(maxsize=20_000)  # the same words come again and again in a roster
def _is_word(word: str) -> bool:
    """Return whether there are letters in the word, and nothing else that names do not have."""
    if word.casefold() in _NOT_IN_NAMES:
        return False
    if word.isascii() and word.isalpha():
        return True
    letters = [character for character in word if unicodedata.category(character)[0] in "LM"]
    others = set(word) - set(letters) - set("'’‘`´ʻ-‐‑.·・")  # noqa: RUF001 - people type them all
    joiners = {"\u200c", "\u200d"}
    return bool(letters) and not others - joiners


def _listed(pieces: Sequence[str]) -> ParsedName:
    """Read ``Family, Given``, ``Family, Given, Suffix`` and ``Given Family, Suffix``."""
    first, second, *rest = pieces
    if all(_SUFFIX.fullmatch(_lowered(piece)) for piece in (second, *rest)):
        return _with_suffix(_spaced(first.split()), suffix=", ".join((second, *rest)))
    if rest and all(_SUFFIX.fullmatch(_lowered(piece)) for piece in rest):
        return _with_suffix(_reversed(first, second.split()), suffix=", ".join(rest))
    if len(rest) == 1:
        return ParsedName(given=second, middle=rest[0], family=first)
    return UNTOLD if rest else _reversed(first, second.split())


def _reversed(family: str, words: Sequence[str]) -> ParsedName:
    """Read what comes after the family name and its comma."""
    if len(words) > 1 and _TITLE.fullmatch(words[0]):
        words = words[1:]
    words, suffix = _split_suffix(words)
    last = words[-1].casefold()
    if last in _PARTICLES:  # Berg, Jan van den: the particles are the family name's
        names = [word for word in words if word.casefold() not in _PARTICLES]
        return ParsedName(given=" ".join(names) or None, suffix=suffix)
    if any(word.casefold() in _PARTICLES for word in words):
        return ParsedName(given=" ".join(words), family=family, suffix=suffix)
    given, *middle = words
    return ParsedName(given=given, middle=" ".join(middle) or None, family=family, suffix=suffix)


def _spaced(words: Sequence[str]) -> ParsedName:
    """Read a name without commas."""
    if len(words) == 1:
        return _single(words[0])
    scripts = {_script(character) for word in words for character in word} - {None}
    if scripts == {"CYRILLIC"}:
        return _russian(words)
    if scripts != {"LATIN"}:
        return UNTOLD
    titled = _TITLE.fullmatch(words[0]) is not None
    words, suffix = _split_suffix(words[1:] if titled else words)
    if titled and len(words) == 1:  # Dr. Okafor: given or family name
        return UNTOLD
    return _with_suffix(_western(words), suffix=suffix)


def _single(word: str) -> ParsedName:
    together = any(unicodedata.name(c, "").startswith(_WRITTEN_TOGETHER) for c in word)
    if together or _SUFFIX.fullmatch(_lowered(word)) or _TITLE.fullmatch(word):
        return UNTOLD
    return ParsedName(given=word)


def _russian(words: Sequence[str]) -> ParsedName:
    patronymics = [bool(_PATRONYMIC_ENDING.fullmatch(word)) for word in words]
    if patronymics == [False, True, False]:
        return ParsedName(given=words[0], middle=words[1], family=words[2])
    if patronymics == [False, False, True]:
        return ParsedName(given=words[1], middle=words[2], family=words[0])
    return UNTOLD


def _western(words: Sequence[str]) -> ParsedName:
    lowered = [word.casefold() for word in words]
    if len(words) == 1:
        return _single(words[0])
    chain = next((i for i, word in enumerate(lowered) if i and word in _PATRONYMIC_WORDS), None)
    if chain is not None:
        return ParsedName(given=words[0]) if chain == 1 else UNTOLD
    opens_with_particle = lowered[0] in _PARTICLES and words[0] not in _PARTICLES_AND_GIVEN_NAMES
    if opens_with_particle or lowered[0] in _FIRST_OF_TWO or _comes_in_either_order(words):
        return UNTOLD
    capitals = [i for i, word in enumerate(words) if _is_in_capitals(word)]
    if len(capitals) == 1:
        return _by_capitals(words, capitals[0])
    start = _family_start(lowered)
    return UNTOLD if start is None else _split_at(words, start)


def _comes_in_either_order(words: Sequence[str]) -> bool:
    composed = [unicodedata.normalize("NFC", word) for word in words]
    if any(_VIETNAMESE.search(word) for word in composed):
        return True
    if any(_LONG_VOWEL.search(word) for word in composed):
        return all(_ROMAJI.fullmatch(word) for word in composed)
    first, second = words[:2]  # JD Salinger, LI Wei
    return first.isupper() and len(first) == _INITIALS_OR_NAME and not second.isupper()


def _is_in_capitals(word: str) -> bool:
    letters = [character for character in word if character.isalpha()]
    return word.isupper() and len(letters) >= _CAPITALS_AT_LEAST and "." not in word


def _by_capitals(words: Sequence[str], index: int) -> ParsedName:
    if index == 0:
        given, *middle = words[1:]
        return ParsedName(given=given, middle=" ".join(middle) or None, family=words[0])
    if index == len(words) - 1:
        return _split_at(words, _family_start([word.casefold() for word in words]) or index)
    return UNTOLD


def _family_start(lowered: Sequence[str]) -> int | None:
    """Return where the family name begins; ``None`` where that cannot be told."""
    particles = [i for i, word in enumerate(lowered) if i and word in _PARTICLES]
    links = [i for i, word in enumerate(lowered) if i > 1 and word in _LINKS]
    last = len(lowered) - 1
    if links == [last - 1] and not particles:
        return last - 2
    if links or last in particles:
        return None
    if not particles:
        return last
    unbroken = particles == list(range(particles[0], last))
    return particles[0] if unbroken else None


def _split_at(words: Sequence[str], start: int) -> ParsedName:
    """Cut a name into given, middle and, from ``start`` on, family name."""
    given, *middle = words[:start]
    if len(middle) > 1 and not all(_INITIAL.fullmatch(word) for word in middle):
        return UNTOLD
    return ParsedName(given=given, middle=" ".join(middle) or None, family=" ".join(words[start:]))


def _split_suffix(words: Sequence[str]) -> tuple[Sequence[str], str | None]:
    """Take a suffix off the end, where a name is left without it; V may also be an initial."""
    last = words[-1]
    needed = 2 if last in {"V", "VI"} else 1
    if len(words) > needed and _SUFFIX.fullmatch(_lowered(last)):
        return words[:-1], last
    return words, None


def _with_suffix(name: ParsedName, *, suffix: str | None) -> ParsedName:
    if suffix is None or name == UNTOLD:
        return name
    joined = f"{name.suffix}, {suffix}" if name.suffix else suffix
    return ParsedName(given=name.given, middle=name.middle, family=name.family, suffix=joined)


def _lowered(word: str) -> str:
    """Lower ``Jr``, ``JR`` and the like; other suffixes are told by their capitals."""
    lowered = word.lower()
    return lowered if re.fullmatch(r"(?:jn?r|sn?r|esq)\.?", lowered) else word


def _script(character: str) -> str | None:
    """Return the script of a letter; ``None`` for whatever is used with any script."""
    if not character.isalpha() or unicodedata.category(character) in {"Lm", "Mn"}:
        return None
    return unicodedata.name(character, "UNKNOWN").split(" ", 1)[0]
