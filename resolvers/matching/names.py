"""How a written name is read: scripts, tokens, nicknames, and what is left of a token's sound.

Everything here is total: any text, however broken, gives an answer, and the same one always.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import cache
from itertools import islice, product
from typing import Final, NamedTuple

from anyascii import anyascii
from nicknames import NickNamer

from resolvers.matching.readings import MAX_READINGS, by_ear, is_eastern, is_hangul, read_eastern

_MAX_CHARACTERS: Final = 200
_MAX_TOKENS: Final = 12
_MAX_TOKEN_CHARACTERS: Final = 40

LATIN: Final = 0
ABJAD: Final = 1
HAN: Final = 2
HANGUL: Final = 3
OTHER: Final = 4


class Token(NamedTuple):
    """A part of a name in Latin letters, its script, and how else it may be read."""

    text: str
    script: int
    readings: tuple[str, ...] = ()


_BRACKETED: Final = re.compile(r"[(\[{<（【][^)\]}>）】]*[)\]}>）】]")
_NOT_A_LETTER: Final = re.compile(r"[^a-z]+")
_UNUSUAL: Final = re.compile(r"[^A-Za-z0-9 ]")
# Korean and Chinese given names of two syllables: Ho-joon is Hojoon.
_HYPHENED: Final = re.compile(r"\b([A-Z][a-z]{1,5})-([a-z]{2,6})\b")
_SYLLABLE: Final = "[bcdfghjklmnpqrstwxyz]{0,2}[aeiouwy]{1,3}(?:ng|[nmkltphr])?"
_SYLLABLES: Final = re.compile(rf"\b({_SYLLABLE})-({_SYLLABLE})\b", re.IGNORECASE)
_APOSTROPHES: Final = re.compile(r"['`\u2018\u2019\u02bb\u02bc\u00b4]")
_TITLES: Final = frozenset(
    "mr mrs ms miss mx dr prof professor sir madam jr sr ii iii iv sra herr frau mme".split()
)
_LABELS: Final = frozenset(
    "class grade group year form klasse kelas sinif clase turma classe grado gr yr std "
    "student teacher learner test demo user account guest section room period primary".split()
)
_NO_NAMES: Final = _TITLES | _LABELS
_PARTICLES: Final = frozenset(
    "de da do dos das del della di du la le las los van von der den ten ter zu y e "
    "al el ul bin ibn bint ben abu san st".split()
)
_SERVANTS: Final = frozenset({"abd", "abdul", "abdel", "abdal", "abdu"})
_SERVANT: Final = "abdul"
_DAUGHTER: Final = "bt"
_JOINING: Final = _SERVANTS | {_DAUGHTER}

# Consonants of the Arabic script as a Latin writer would put them, and the letters of long vowels
# as ``a``, ``w`` and ``y``. What stands for a short vowel, or for none, is left out.
_ABJAD_LETTERS: Final = str.maketrans(
    dict(zip("بتثجحخدذرزسشصضطظغفقكلمنه", "bttjhktsrssSsttskfkklmnh", strict=True))
    | dict(zip("پچگژکٹڈڑھ", "bkksktdrh", strict=True))
    | dict.fromkeys("أإءعىۀةـ" + "".join(map(chr, range(0x64B, 0x660))), "")
    | {"ں": "n", "ہ": "h", "ۃ": "", "ا": "a", "آ": "a", "و": "w", "ؤ": "w"}
    | dict.fromkeys("يئیے", "y")
)
_LONG_VOWELS: Final = {"a": "ae", "w": "ouw", "y": "iey"}
_NOT_HEARD: Final = str.maketrans({"g": "k", "d": "t", "a": "", "w": "", "y": ""})
_ARABIC: Final = re.compile(r"[\u0600-\u06ff\u0750-\u077f]")
_ARABIC_ARTICLE: Final = re.compile(r"^ال(?=..)")
# Letters that are said otherwise in some countries: beside the letter, one that is said so.
_SAID_ELSEWHERE: Final = {"ث": "ثس", "ذ": "ذد", "ظ": "ظض", "ج": "جق"}
_MAX_ARABIC: Final = 4
_HEBREW: Final = re.compile(r"[\u0590-\u05ff]")
_SILENT_ALEF: Final = re.compile(r"^[اآ]|(?<=عبد)ا(?=ل)")

_CYRILLIC: Final = re.compile(r"[\u0400-\u052f]")
# How letters are also put: in Ukrainian, and in other systems of writing Russian.
_WRITTEN_ELSEWHERE: Final = tuple(
    str.maketrans(letters)
    for letters in (
        {"г": "h", "и": "y", "є": "ye"},
        {"х": "h", "ж": "j", "ц": "c"},
        {"г": "h", "и": "y", "є": "ye", "х": "h", "ж": "j", "ц": "c"},
        {"ё": "yo", "х": "h"},
        {"ж": "j"},
    )
)

_DEVANAGARI: Final = re.compile(r"[\u0900-\u097f]")
_DEVANAGARI_CONSONANTS: Final = dict(
    entry.split("=")
    for entry in (
        "क=k ख=kh ग=g घ=gh ङ=n च=ch छ=ch ज=j झ=jh ञ=n ट=t ठ=th ड=d ढ=dh ण=n त=t थ=th द=d ध=dh "
        "न=n प=p फ=ph ब=b भ=bh म=m य=y र=r ल=l ळ=l व=v श=sh ष=sh स=s ह=h"
    ).split()
)
_DEVANAGARI_VOWELS: Final = dict(
    entry.split("=")
    for entry in (
        "अ=a आ=a इ=i ई=i उ=u ऊ=u ऋ=ri ए=e ऐ=ai ओ=o औ=au ऑ=o "
        "ा=a ि=i ी=i ु=u ू=u ृ=ri े=e ै=ai ो=o ौ=au ॉ=o"
    ).split()
)
_DEVANAGARI_SIGNS: Final = frozenset("ािीुूृेैोौॉ")
# Letters with a dot below, and a nasal before a lip: as they are heard.
_DOTTED: Final = {"क": "q", "ज": "z", "फ": "f", "ड": "r", "ढ": "rh"}
_NASALS: Final = frozenset("ंँ")
_LIPS: Final = frozenset("पफबभम")
_VIRAMA, _NUKTA = "\u094d", "\u093c"
_GREEK: Final = re.compile(r"[\u0370-\u03ff\u1f00-\u1fff]")
_GREEK_PAIRS: Final = (
    ("ου", "ou"),
    ("ευ", "ef"),
    ("αυ", "af"),
    ("μπ", "b"),
    ("ντ", "nt"),
    ("γγ", "ng"),
    ("γκ", "gk"),
    ("υ", "i"),
)
_DOUBLED: Final = re.compile(r"(.)\1+")
_SOUNDS: Final = (
    ("shch", "S"),
    ("chh", "k"),
    ("tsch", "k"),
    ("sch", "S"),
    ("tch", "k"),
    ("sh", "S"),
    ("ch", "k"),
    ("kh", "k"),
    ("mp", "b"),
    ("x", "ks"),
    ("gh", "g"),
    ("ph", "f"),
    ("th", "t"),
    ("dh", "d"),
    ("dj", "j"),
    ("zh", "z"),
    ("ck", "k"),
    ("ts", "z"),
    ("tz", "z"),
    ("dz", "z"),
)
_LETTERS: Final = str.maketrans(
    {"q": "k", "c": "k", "v": "f", "p": "b", "g": "k", "d": "t", "z": "s"}
    | dict.fromkeys("aeiouwy", "")
)
_CONSONANTS: Final = {code: sound for code, sound in _LETTERS.items() if sound}
_VOWELS: Final = re.compile(r"[aeiouwy]+")
_GLIDE: Final = re.compile(r"w(?=[aeiouy])")
_SPACES_BETWEEN: Final = re.compile(r"[^aeiouwy]")


def read_tokens(text: str) -> tuple[Token, ...]:
    """Return the name's tokens in the order written.

    Tokens are in Latin letters, ``a`` to ``z``, except those of an abjad, which have
    consonants and long vowels alone. Titles, class labels, bracketed text and, where two other
    tokens remain, particles are left out.
    """
    words = _words(text[:_MAX_CHARACTERS])
    eastern = [
        word for word in words if not word.isascii() and is_eastern(word) and not _has_digit(word)
    ]
    tokens = _eastern_tokens(eastern)
    at = next((n for n, word in enumerate(words) if word in eastern), len(words))
    tokens = [
        *(token for word in words[:at] for token in _read_word(word)),
        *tokens,
        *(token for word in words[at:] if word not in eastern for token in _read_word(word)),
    ]
    return _without_particles(_joined_servants(tokens))[:_MAX_TOKENS]


def _eastern_tokens(words: list[str]) -> list[Token]:
    if not words:
        return []
    script = HANGUL if any(is_hangul(word) for word in words) else HAN
    return [
        Token(said[0][:_MAX_TOKEN_CHARACTERS], script, said[1:])
        for said in read_eastern(words)
        if said[0] and said[0] not in _LABELS
    ]


def _has_digit(word: str) -> bool:
    return any(character.isdigit() for character in word)


def _words(text: str) -> list[str]:
    """Return runs of letters, marks and digits that stand in no brackets.

    A mark belongs to its letter, apostrophes are left out, hyphened syllables are one.
    """
    if not _UNUSUAL.search(text):
        return text.split()
    cleaned = unicodedata.normalize("NFKC", text.encode("utf-8", "ignore").decode("utf-8"))
    cleaned = _APOSTROPHES.sub("", _BRACKETED.sub(" ", cleaned)).replace("_", " ")
    cleaned = _SYLLABLES.sub(r"\1\2", _HYPHENED.sub(r"\1\2", cleaned))
    if cleaned.isascii():
        return re.findall(r"[A-Za-z0-9]+", cleaned)
    kept = (c if unicodedata.category(c)[0] in "LMN" else " " for c in cleaned)
    return "".join(kept).split()


def _read_word(word: str) -> list[Token]:
    if word.isascii() and word.isalpha():
        part = word.lower()[:_MAX_TOKEN_CHARACTERS]
        return [] if part in _NO_NAMES else [Token(part, LATIN)]
    if _has_digit(word):
        return []
    if _ARABIC.search(word):
        return _read_arabic(word)
    if _DEVANAGARI.search(word):
        return _read_devanagari(word)
    if _CYRILLIC.search(word):
        return _read_cyrillic(word)
    script = ABJAD if _HEBREW.search(word) else _script_of(word)
    part = anyascii(_customary(word)).lower()
    part = _NOT_A_LETTER.sub("", part)[:_MAX_TOKEN_CHARACTERS]
    return [Token(part, script)] if part and part not in _NO_NAMES else []


def _read_arabic(word: str) -> list[Token]:
    """Return consonants and long vowels, and as other readings what Latin writers may put for them.

    They may join the article, and write some letters as they are said elsewhere. One letter alone
    is an initial.
    """
    bare = _ARABIC_ARTICLE.sub("", word)
    choices = (_SAID_ELSEWHERE.get(letter, (letter,)) for letter in _SILENT_ALEF.sub("", bare))
    written = ["".join(letters) for letters in islice(product(*choices), _MAX_ARABIC)]
    said = [anyascii(text.translate(_ABJAD_LETTERS)).rstrip("h") for text in written]
    if bare != word:
        said += ["l" + text for text in said]
    parts = dict.fromkeys(_DOUBLED.sub(r"\1", text) for text in said)
    usual, *others = parts
    if not re.fullmatch(r"[a-zS]+", usual):
        return []
    if len(word) == 1:
        return [Token(usual, OTHER)]
    return [Token(usual, ABJAD, tuple(others)[: MAX_READINGS - 1])]


def _read_cyrillic(word: str) -> list[Token]:
    """Return the usual spelling in Latin letters, and the spellings of other systems."""
    lower = word.lower()
    said = [anyascii(text).lower() for text in (lower, *map(lower.translate, _WRITTEN_ELSEWHERE))]
    parts = dict.fromkeys(_NOT_A_LETTER.sub("", text)[:_MAX_TOKEN_CHARACTERS] for text in said)
    usual, *others = parts
    return [Token(usual, OTHER, tuple(others)[: MAX_READINGS - 1])] if usual else []


def _read_devanagari(word: str) -> list[Token]:
    """Return how a word is heard, and how else it is written: with w, and with s for sh."""
    letters = unicodedata.normalize("NFD", word)
    heard = [_heard_letter(letter, letters[at + 1 : at + 3]) for at, letter in enumerate(letters)]
    text = "".join(heard)
    ends_bare = letters.rstrip(_NUKTA)[-1:] in _DEVANAGARI_CONSONANTS
    usual = text.removesuffix("a") if ends_bare else text
    if not usual:
        return []
    written = (usual, usual.replace("sh", "s"))
    others = dict.fromkeys([*written, *(one.replace("v", "w") for one in written)])
    return [Token(usual[:_MAX_TOKEN_CHARACTERS], OTHER, tuple(others)[1:])]


def _heard_letter(letter: str, behind: str) -> str:
    """Return a letter of Devanagari as it is heard before the next two."""
    if letter in _NASALS:
        return "m" if behind[:1] in _LIPS and behind else "n"
    consonant = _DEVANAGARI_CONSONANTS.get(letter)
    if consonant is None:
        return _DEVANAGARI_VOWELS.get(letter, "")
    if behind[:1] == _NUKTA:
        consonant, behind = _DOTTED.get(letter, consonant), behind[1:]
    silent = behind[:1] == _VIRAMA or behind[:1] in _DEVANAGARI_SIGNS
    return consonant if behind and silent else consonant + "a"


def _customary(word: str) -> str:
    """Return a Greek word with its pairs of letters as they are heard; others as they are."""
    if not _GREEK.search(word):
        return word
    plain = "".join(c for c in unicodedata.normalize("NFD", word.lower()) if c.isalpha())
    for pair, heard in _GREEK_PAIRS:
        plain = plain.replace(pair, heard)
    return plain


def _script_of(word: str) -> int:
    return LATIN if all(ord(character) < 0x250 for character in word) else OTHER


def _joined_servants(tokens: list[Token]) -> list[Token]:
    """Join ``abd al rahman`` and ``abdel-rahman`` into one token."""
    if _JOINING.isdisjoint(token.text for token in tokens):
        return tokens
    joined: list[Token] = []
    for token in tokens:
        before = joined[-1] if joined else Token("", LATIN)
        if before.text in _SERVANTS and token.script == LATIN:
            if token.text not in {"al", "el", "ul"}:
                joined[-1] = Token(_SERVANT + token.text, LATIN)
        elif before.text == _DAUGHTER and token.script == before.script == ABJAD:
            joined[-1] = Token(_DOUBLED.sub(r"\1", f"{_DAUGHTER}l{token.text}"), ABJAD)
        else:
            joined.append(token)
    return joined


def _without_particles(tokens: list[Token]) -> tuple[Token, ...]:
    kept = tuple(token for token in tokens if token.text not in _PARTICLES)
    return kept if len(kept) > 1 else tuple(tokens)


def skeleton(token: str, script: int) -> str:
    """Return the consonants a token is heard by, the same for all its spellings and scripts.

    Empty when there are none. ``Mohammed``, ``Muhamad`` and the Arabic spelling are ``mhmd``.
    """
    if script == ABJAD:
        return _DOUBLED.sub(r"\1", token.translate(_NOT_HEARD))
    heard = _DOUBLED.sub(r"\1", _with_sounds(token).translate(_LETTERS))
    return heard.removesuffix("h")


def _with_sounds(token: str) -> str:
    heard = token
    for written, sound in _SOUNDS:
        if written in heard:
            heard = heard.replace(written, sound)
    return heard


def voiced(token: str) -> str:
    """Return the consonants of a token with its vowels but those that may be a short one.

    The vowels are two: those of the lips, and the others; what is written with an a alone is left
    out. ``Sunita`` and ``Suneeta`` are one, and so are ``Tiwari``, ``Tivari`` and ``Tewari``.
    """
    heard = _GLIDE.sub("f", _DOUBLED.sub(r"\1", _with_sounds(token)))
    return _VOWELS.sub(_vowel, heard.translate(_CONSONANTS)).removesuffix("h")


def _vowel(found: re.Match[str]) -> str:
    run = found.group()
    if any(letter in run for letter in "ouw"):
        return "U"
    return "I" if run.strip("a") else ""


def is_spelling(latin: str, token: Token) -> bool:
    """Whether a text in Latin letters is how a token may be written."""
    readings = (token.text, *token.readings)
    if token.script == LATIN:
        return latin == token.text
    if token.script in {HAN, HANGUL}:
        return by_ear(latin) in map(by_ear, readings)
    return skeleton(latin, LATIN) in {skeleton(said, token.script) for said in readings}


def has_vowels(latin: str, readings: Iterable[str], script: int) -> bool:
    """Whether a Latin spelling has the vowels, too, of one of a foreign token's readings."""
    if script == ABJAD:
        return any(_has_long_vowels(latin, said) for said in readings)
    return voiced(latin) in map(voiced, readings)


def _has_long_vowels(latin: str, unvowelled: str) -> bool:
    """Whether a Latin spelling has the long vowels that an unvowelled one writes, in their places.

    ``Jamal`` has those of جمال, and ``Jamil`` has not; short vowels are not asked for.
    """
    heard = _DOUBLED.sub(r"\1", _with_sounds(latin)).translate(_CONSONANTS).removesuffix("h")
    here, there = (_SPACES_BETWEEN.split(text) for text in (heard, unvowelled))
    return len(here) == len(there) and all(
        any(vowel in run for vowel in _LONG_VOWELS[letter])
        for run, letters in zip(here, there, strict=True)
        for letter in letters
    )


@cache
def _nicknames() -> NickNamer:
    return NickNamer()


def canonical_names(token: str) -> tuple[str, ...]:
    """Return the full names that a token is a short form of, itself included if it is one.

    Two tokens that share one of these may be forms of one name. Empty for most tokens.

    Source:
        The table of the ``nicknames`` package, English names.
    """
    known = _nicknames()
    canonicals = known.canonicals_of(token)
    if known.nicknames_of(token):
        canonicals = canonicals | {token}
    return tuple(sorted(canonicals))
