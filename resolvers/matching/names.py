"""How a written name is read: scripts, tokens, nicknames, and what is left of a token's sound.

Everything here is total: any text, however broken, gives an answer, and the same one always.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from typing import Final

from anyascii import anyascii
from nicknames import NickNamer

_MAX_CHARACTERS: Final = 200
_MAX_TOKENS: Final = 12
_MAX_TOKEN_CHARACTERS: Final = 40

LATIN: Final = 0
ABJAD: Final = 1
HAN: Final = 2
HANGUL: Final = 3
OTHER: Final = 4

_BRACKETED: Final = re.compile(r"[(\[{<（【][^)\]}>）】]*[)\]}>）】]")
_NOT_A_LETTER: Final = re.compile(r"[^a-z]+")
# Korean and Chinese given names of two syllables: Ho-joon is Hojoon.
_HYPHENED: Final = re.compile(r"\b([A-Z][a-z]{1,5})-([a-z]{2,6})\b")
_APOSTROPHES: Final = re.compile(r"['`\u2018\u2019\u02bb\u02bc\u00b4]")
_CAPITAL_PARTS: Final = re.compile(r"[A-Z]?[^A-Z]+|[A-Z]")
_TITLES: Final = frozenset(
    "mr mrs ms miss mx dr prof professor sir madam jr sr ii iii iv sra herr frau mme".split()
)
_LABELS: Final = frozenset(
    "class grade group year form klasse kelas sinif clase turma classe grado gr yr std "
    "student teacher learner test demo user account guest section room period primary".split()
)
_PARTICLES: Final = frozenset(
    "de da do dos das del della di du la le las los van von der den ten ter zu y e "
    "al el ul bin ibn bint ben abu san st".split()
)
_SERVANTS: Final = frozenset({"abd", "abdul", "abdel", "abdal", "abdu"})
_SERVANT: Final = "abdul"

# Consonants of the Arabic script as a Latin writer would put them; what is a vowel, or may be
# one, is left out. Fullness of vowels is what the two writings of one name differ in.
_ABJAD_LETTERS: Final = str.maketrans(
    dict(zip("بتثجحخدذرزسشصضطظغفقكلمنه", "bttjhktsrssSsttskfkklmnh", strict=True))
    | dict(zip("پچگژکٹڈڑھ", "bkksktdrh", strict=True))
    | dict.fromkeys("اأإآٱءئؤعويىیےةۀـ" + "".join(map(chr, range(0x64B, 0x660))), "")
    | {"ں": "n", "ہ": "h", "ۃ": ""}
)
_ARABIC: Final = re.compile(r"[\u0600-\u06ff\u0750-\u077f]")
_ARABIC_ARTICLE: Final = re.compile(r"^ال(?=..)")
_HAN: Final = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")
_HANGUL: Final = re.compile(r"[\uac00-\ud7af]")
_HEBREW: Final = re.compile(r"[\u0590-\u05ff]")

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
# Surnames of two characters; other Han names begin with a surname of one.
_DOUBLE_SURNAMES: Final = frozenset(
    "欧阳 歐陽 司马 司馬 上官 诸葛 諸葛 司徒 东方 夏侯 皇甫 尉迟".split()
)
# The most frequent Japanese surnames; read by their characters they would sound Chinese.
_JAPANESE_SURNAMES: Final = dict(
    entry.split("=")
    for entry in (
        "佐藤=sato 鈴木=suzuki 高橋=takahashi 田中=tanaka 伊藤=ito 渡辺=watanabe 渡邊=watanabe "
        "山本=yamamoto 中村=nakamura 小林=kobayashi 加藤=kato 吉田=yoshida 山田=yamada "
        "佐々木=sasaki 山口=yamaguchi 松本=matsumoto 井上=inoue 木村=kimura 斎藤=saito "
        "斉藤=saito 清水=shimizu 山崎=yamazaki 阿部=abe 森=mori 池田=ikeda 橋本=hashimoto "
        "山下=yamashita 石川=ishikawa 中島=nakajima 前田=maeda 藤田=fujita 後藤=goto "
        "小川=ogawa 岡田=okada 村上=murakami 長谷川=hasegawa 近藤=kondo 石井=ishii "
        "坂本=sakamoto 遠藤=endo 藤井=fujii 青木=aoki 福田=fukuda 三浦=miura 西村=nishimura "
        "藤原=fujiwara 太田=ota 松田=matsuda 原田=harada 岡本=okamoto 中川=nakagawa "
        "中野=nakano 小野=ono 田村=tamura 竹内=takeuchi 金子=kaneko 和田=wada 中山=nakayama "
        "石田=ishida 上田=ueda 森田=morita 柴田=shibata 酒井=sakai 工藤=kudo 横山=yokoyama "
        "宮崎=miyazaki 宮本=miyamoto 内田=uchida 高木=takagi 安藤=ando 谷口=taniguchi "
        "大野=ono 丸山=maruyama 今井=imai 高田=takada 藤本=fujimoto 武田=takeda 村田=murata "
        "上野=ueno 杉山=sugiyama 増田=masuda 平野=hirano 大塚=otsuka 千葉=chiba 久保=kubo "
        "松井=matsui 小島=kojima 岩崎=iwasaki 桜井=sakurai 野口=noguchi 松尾=matsuo "
        "木下=kinoshita 菊地=kikuchi 野村=nomura 新井=arai 佐野=sano"
    ).split()
)
# How Koreans spell their surnames, beside what letter by letter transliteration gives.
_KOREAN_SURNAMES: Final = {
    "gim": "kim",
    "i": "lee",
    "bag": "park",
    "choe": "choi",
    "jeong": "jung",
    "gang": "kang",
    "jo": "cho",
    "yun": "yoon",
    "im": "lim",
    "o": "oh",
    "sin": "shin",
    "gwon": "kwon",
    "an": "ahn",
    "yu": "yoo",
    "jeon": "jeon",
    "go": "ko",
    "mun": "moon",
    "baeg": "baek",
    "no": "noh",
    "heo": "hur",
    "u": "woo",
    "gu": "koo",
}
_DOUBLED: Final = re.compile(r"(.)\1+")
_SOUNDS: Final = (
    ("shch", "S"),
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


def read_tokens(text: str) -> tuple[tuple[str, int], ...]:
    """Return the name's tokens in the order written, each with its script.

    Tokens are in Latin letters, ``a`` to ``z``, except those of an abjad, which are consonants
    alone. Titles, class labels, bracketed text and, where two other tokens remain, particles
    are left out.
    """
    cleaned = text[:_MAX_CHARACTERS].encode("utf-8", "ignore").decode("utf-8")
    cleaned = unicodedata.normalize("NFKC", cleaned)
    cleaned = _APOSTROPHES.sub("", _BRACKETED.sub(" ", cleaned)).replace("_", " ")
    tokens: list[tuple[str, int]] = []
    for word in _words(_HYPHENED.sub(r"\1\2", cleaned)):
        tokens += _read_word(word)
    return _without_particles(_joined_servants(tokens))[:_MAX_TOKENS]


def _words(text: str) -> list[str]:
    """Return runs of letters, marks and digits; a mark belongs to its letter."""
    if text.isascii():
        return re.findall(r"[A-Za-z0-9]+", text)
    kept = (c if unicodedata.category(c)[0] in "LMN" else " " for c in text)
    return "".join(kept).split()


def _read_word(word: str) -> list[tuple[str, int]]:
    if not word or any(character.isdigit() for character in word):
        return []
    if word.isascii():
        script, parts = LATIN, [word.lower()]
    elif _ARABIC.search(word):
        script, parts = ABJAD, [_ARABIC_ARTICLE.sub("", word).translate(_ABJAD_LETTERS)]
        parts = [_DOUBLED.sub(r"\1", anyascii(part).rstrip("h")) for part in parts]
        return [(part, script) for part in parts if re.fullmatch(r"[a-zS]+", part)]
    elif _HAN.search(word):
        script, parts = HAN, _han_parts(word)
    elif _HANGUL.search(word):
        script, parts = HANGUL, _hangul_parts(word)
    else:
        script = ABJAD if _HEBREW.search(word) else _script_of(word)
        parts = [anyascii(_customary(word)).lower()]
    cleaned = (_NOT_A_LETTER.sub("", part)[:_MAX_TOKEN_CHARACTERS] for part in parts)
    return [
        (part, script) for part in cleaned if part and part not in _TITLES and part not in _LABELS
    ]


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


def _han_parts(word: str) -> list[str]:
    for length in (3, 2, 1):
        reading = _JAPANESE_SURNAMES.get(word[:length])
        if reading and len(word) <= length + 3:
            return [reading, anyascii(word[length:]).lower()]
    if not 2 <= len(word) <= 4:
        return [anyascii(word).lower()]
    cut = 2 if word[:2] in _DOUBLE_SURNAMES else 1
    return [anyascii(word[:cut]).lower(), anyascii(word[cut:]).lower()]


def _hangul_parts(word: str) -> list[str]:
    if not 2 <= len(word) <= 4:
        return [anyascii(word).lower()]
    surname = anyascii(word[0]).lower()
    return [_KOREAN_SURNAMES.get(surname, surname), anyascii(word[1:]).lower()]


def _joined_servants(tokens: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Join ``abd al rahman`` and ``abdel-rahman`` into one token."""
    joined: list[tuple[str, int]] = []
    for token, script in tokens:
        before = joined[-1][0] if joined else ""
        if before in _SERVANTS and script == LATIN:
            if token not in {"al", "el", "ul"}:
                joined[-1] = (_SERVANT + token, script)
        elif before == "bt" and script == ABJAD and joined[-1][1] == ABJAD:
            joined[-1] = (_DOUBLED.sub(r"\1", "btl" + token), script)
        else:
            joined.append((token, script))
    return joined


def _without_particles(tokens: list[tuple[str, int]]) -> tuple[tuple[str, int], ...]:
    kept = tuple(entry for entry in tokens if entry[0] not in _PARTICLES)
    return kept if len(kept) > 1 else tuple(tokens)


def skeleton(token: str, script: int) -> str:
    """Return the consonants a token is heard by, the same for all its spellings and scripts.

    Empty when there are none. ``Mohammed``, ``Muhamad`` and the Arabic spelling are ``mhmd``.
    """
    if script == ABJAD:
        return token.replace("g", "k").replace("d", "t")
    heard = token
    for written, sound in _SOUNDS:
        if written in heard:
            heard = heard.replace(written, sound)
    heard = _DOUBLED.sub(r"\1", heard.translate(_LETTERS))
    return heard.removesuffix("h")


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
