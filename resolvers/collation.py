"""How text compares when people search and sort: blind to case, accents and typography."""

from __future__ import annotations

import unicodedata

_MAX_SORT_KEY_CHARACTERS = 200

# Letters that differ from a plain one by a stroke or a ligature, which Unicode does not decompose.
_PLAIN_LETTERS = str.maketrans(
    {
        "ø": "o",
        "ł": "l",
        "đ": "d",
        "ð": "d",
        "ħ": "h",
        "ŧ": "t",
        "\N{LATIN SMALL LETTER DOTLESS I}": "i",
        "æ": "ae",
        "œ": "oe",
        "þ": "th",
    }
)

# Canonical combining classes of marks that are accents or optional points: Hebrew, Arabic and
# Syriac points (10 to 36), attached and free-standing diacritics (1, 200 to 240). Not among them
# are the marks that make another letter: nukta (7), kana voicing (8), virama (9), and the vowel
# signs and tones of Thai, Lao and Tibetan (84 to 132).
_OVERLAY = 1
_POINTS = range(10, 37)
_DIACRITICS = range(200, 241)


def fold(text: str) -> str:
    """Return the text as it is compared: ``José  ŁUCZAK`` and ``jose luczak`` are one.

    Compatibility forms (full-width, ligatures) are unified, white space runs count as one
    space, invisible format characters as none. Folding what is folded changes nothing.
    """
    decomposed = unicodedata.normalize("NFKD", text).casefold()
    # Case folding can give letters that decompose further, and marks of their own.
    decomposed = unicodedata.normalize("NFKD", decomposed).translate(_PLAIN_LETTERS)
    kept = (character for character in decomposed if not _is_ignored(character))
    return " ".join(unicodedata.normalize("NFKC", "".join(kept)).split())


def sort_key(text: str) -> str:
    """Return what a list is sorted by; only the first 200 characters count."""
    return fold(text)[:_MAX_SORT_KEY_CHARACTERS]


def _is_ignored(character: str) -> bool:
    combining = unicodedata.combining(character)
    if combining == 0:
        return unicodedata.category(character) == "Cf"
    return combining == _OVERLAY or combining in _POINTS or combining in _DIACRITICS
