"""Accounts as columns of numbers, how often each thing occurs among them, and blocking keys.

Texts become ids of a ``Vocabulary`` that the accounts of one scope share; everything that is
compared about a text is worked out once for it there. Hashes are polynomials modulo 2**64, so
that the hash of two texts joined follows from theirs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import islice
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from resolvers.matching.accounts import Prepared
from resolvers.matching.names import ABJAD, HAN, HANGUL, LATIN, canonical_names, skeleton
from resolvers.matching.readings import MAX_READINGS, by_ear

Ints: TypeAlias = npt.NDArray[np.int64]
Hashes: TypeAlias = npt.NDArray[np.uint64]
Floats: TypeAlias = npt.NDArray[np.float64]
Flags: TypeAlias = npt.NDArray[np.bool_]

WIDTH: Final = 5
"""Tokens of a name that are compared; the first ones."""
_KEYED: Final = 3
_CANONICALS: Final = 4
_HANDLES: Final = 2
_IDS: Final = 3
_BASE: Final = 0x9E3779B97F4A7C15
EASTERN: Final = frozenset({HAN, HANGUL})
_WHOLE_LETTERS: Final = EASTERN | {ABJAD}
"""Scripts of which a token of one letter is no initial."""
_NONE: Final = [-1] * WIDTH
_ROWS_AT_ONCE: Final = 1 << 13
_NO_LETTERS: Final = re.compile(r"[^a-z]+")
_MIN_STEM: Final = 3
# Two digits at the end, or four that are a year; -1 is what a handle without them has.
_YEAR: Final = re.compile(r"(?<!\d)(?:19|20)?(\d\d)$")
_ORDERED: Final = tuple(
    tuple((a, b) for a in range(tokens) for b in range(tokens) if a != b)
    for tokens in range(_KEYED + 1)
)
_UNORDERED: Final = tuple(
    tuple((a, b) for a in range(tokens) for b in range(a)) for tokens in range(_KEYED + 1)
)
"""Which two tokens are put together, by how many a name has at most."""

FULL, SHORTENED, SINGLE = 3, 2, 1
"""How a handle is made from a name: two whole tokens, a token and an initial, one token."""


def text_hashes(texts: Sequence[str]) -> Hashes:
    """Return the polynomial hash of each text, in 64 bits."""
    codes, ends, lengths = _codes(texts)
    behind = np.repeat(ends, lengths) - 1 - np.arange(len(codes))
    powers = np.full(max(lengths.max(initial=0), 1), _BASE, np.uint64)
    powers[0] = 1
    sums = np.cumsum(codes * np.cumprod(powers)[behind])
    sums = np.concatenate([np.zeros(1, np.uint64), sums])
    return np.asarray(sums[ends] - sums[ends - lengths], np.uint64)


def _letters(texts: Sequence[str]) -> npt.NDArray[np.uint32]:
    """Return for each text which letters it has, a bit for each."""
    codes, ends, lengths = _codes(texts)
    letters = np.zeros(len(texts), np.uint32)
    some = np.nonzero(lengths)[0]
    if len(some):
        bits = np.left_shift(np.uint32(1), (codes & np.uint64(31)).astype(np.uint32))
        letters[some] = np.bitwise_or.reduceat(bits, (ends - lengths)[some])
    return letters


def _codes(texts: Sequence[str]) -> tuple[Hashes, Ints, Ints]:
    """Return the bytes of texts one after the other, where each text ends, and how long it is."""
    encoded = [text.encode("utf-8", "ignore") for text in texts]
    lengths = np.array([len(text) for text in encoded], np.int64)
    codes = np.frombuffer(b"".join(encoded), np.uint8).astype(np.uint64)
    return codes, np.cumsum(lengths), lengths


class _Table:
    """Growing columns, one row for each distinct text.

    Rows are written into the columns when somebody reads these. A column of hashes, or of the
    letters that texts have, is given the texts.
    """

    def __init__(self, **columns: tuple[Any, int] | Callable[[Sequence[str]], Any]) -> None:
        self.ids: dict[Any, int] = {}
        self.texts: list[str] = []
        self._unwritten: list[tuple[Any, ...]] = []
        self._made = {name: make for name, make in columns.items() if callable(make)}
        self._columns: dict[str, npt.NDArray[Any]] = {}
        for name, kind in columns.items():
            dtype, width = (kind(("",)).dtype, 0) if callable(kind) else kind
            self._columns[name] = np.zeros((16, width) if width else 16, dtype)

    def append(self, text: str, *values: Any) -> int:
        """Add a row, with values in the order of the columns, and return its id."""
        self.texts.append(text)
        self._unwritten.append(values)
        return len(self.texts) - 1

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        if self._unwritten:
            self._write()
        return self._columns[name]

    def _write(self) -> None:
        end = len(self.texts)
        begin = end - len(self._unwritten)
        columns = zip(*self._unwritten, strict=True)
        self._unwritten = []
        for name, values in zip([*self._columns], columns, strict=True):
            column = self._columns[name]
            if end > len(column):
                wider = np.zeros((max(2 * len(column), end), *column.shape[1:]), column.dtype)
                wider[:begin] = column[:begin]
                self._columns[name] = column = wider
            made = self._made.get(name)
            column[begin:end] = np.array(values, column.dtype) if made is None else made(values)


class Vocabulary:
    """The distinct texts of a scope, and in how many of its accounts each occurs."""

    def __init__(self) -> None:
        self.accounts = 0
        self.tokens = _Table(
            hash=text_hashes,
            power=(np.uint64, 0),
            initial=(np.uint64, 0),
            beginning=text_hashes,
            skeleton=(np.int32, 0),
            skeleton_hash=text_hashes,
            heard=(np.int32, MAX_READINGS),
            canonicals=(np.int32, _CANONICALS),
            letters=_letters,
            length=(np.int32, 0),
            whole=(np.bool_, 0),
            script=(np.int8, 0),
            count=(np.int32, 0),
        )
        self.skeletons = _Table(hash=text_hashes, length=(np.int32, 0), count=(np.int32, 0))
        self.handles = _Table(
            hash=(np.uint64, 0),
            stem=text_hashes,
            stem_length=(np.int32, 0),
            letters=_letters,
            year=(np.int16, 0),
            count=(np.int32, 0),
        )
        self.stems: list[str] = []
        self.readings: list[tuple[str, ...]] = []
        self.years = np.zeros(1 << 11, np.int64)
        self.words = _Table(hash=(np.uint64, 0), count=(np.int32, 0))
        self.canonicals = _Table(hash=text_hashes)
        self._groups: dict[tuple[str, str], int] = {}

    def token(self, text: str, script: int, readings: tuple[str, ...] = ()) -> int:
        """Return the id of a token, added if it is new."""
        key = text if script == LATIN else (text, script, readings)
        found = self.tokens.ids.get(key)
        if found is not None:
            return found
        sound = skeleton(text, script)
        names = canonical_names(text) if script == LATIN else ()
        self.readings.append(readings)
        canonicals = [self._canonical(name) for name in names]
        found = self.tokens.ids[key] = self.tokens.append(
            text,
            text,
            pow(_BASE, len(text), 1 << 64),
            ord(text[0]),
            text[:3],
            self._sound(sound),
            "~" + (sound or text),
            self._heard(text, script, readings),
            (canonicals + [-1] * _CANONICALS)[:_CANONICALS],
            text,
            len(text),
            len(text) > 1 or script in _WHOLE_LETTERS,
            script,
            0,
        )
        return found

    def _heard(self, text: str, script: int, readings: tuple[str, ...]) -> list[int]:
        """Return what a token shares with the same one in another script.

        Of East Asian ones how they are heard, of others their consonants; Latin ones have both.
        """
        if script in EASTERN:
            found = [self._sound("=" + by_ear(said)) for said in (text, *readings)]
        elif script == LATIN:
            sound = skeleton(text, script)
            found = [self._sound("=" + by_ear(text)), *([self._sound(sound)] if sound else ())]
        else:
            sounds = (skeleton(said, script) for said in (text, *readings))
            found = [self._sound(sound) for sound in sounds if sound]
        distinct = [*dict.fromkeys(found)][:MAX_READINGS]
        return distinct + [-1] * (MAX_READINGS - len(distinct))

    def _sound(self, text: str) -> int:
        found = self.skeletons.ids.get(text)
        if found is None:
            found = self.skeletons.append(text, "~" + text, len(text), 0)
            self.skeletons.ids[text] = found
        return found

    def _canonical(self, name: str) -> int:
        found = self.canonicals.ids.get(name)
        if found is None:
            found = self.canonicals.ids[name] = self.canonicals.append(name, name)
        return found

    def handle(self, text: str) -> int:
        """Return the id of a handle, added if it is new."""
        found = self.handles.ids.get(text)
        if found is not None:
            return found
        stem = _NO_LETTERS.sub("", text)
        self.stems.append(stem)
        hashed = stem if len(stem) >= _MIN_STEM else ""
        found = self.handles.append(
            text, _word_hash(text), hashed, len(stem), stem, _year_in(text), 0
        )
        self.handles.ids[text] = found
        return found

    def word(self, kind: str, text: str) -> int:
        """Return the id of any other text of a kind, added if it is new."""
        key = f"{kind}:{text}"
        found = self.words.ids.get(key)
        if found is None:
            found = self.words.ids[key] = self.words.append(key, _word_hash(key), 0)
        return found

    def group(self, provider_id: str, group: str) -> int:
        """Return the id of a provider's group, added if it is new."""
        found = self._groups.get((provider_id, group))
        if found is None:
            found = self._groups[provider_id, group] = len(self._groups)
        return found

    def information(self, tokens: npt.NDArray[Any]) -> Floats:
        """Return the bits that meeting each token says: -log2 of how often it occurs."""
        return _bits(self.tokens["count"][tokens], self.accounts)

    def skeleton_information(self, skeletons: npt.NDArray[Any]) -> Floats:
        """Return the same for skeletons."""
        return _bits(self.skeletons["count"][skeletons], self.accounts)

    def year_information(self, years: npt.NDArray[Any]) -> Floats:
        """Return the same for birth years, among the accounts that have one."""
        return _bits(self.years[years & 0x7FF], int(self.years.sum()))


def _year_in(handle: str) -> int:
    """Return the last two digits of what may be a year of birth in a handle; -1 for none."""
    found = _YEAR.search(handle)
    return int(found.group(1)) if found else -1


UNSEEN: Final = 200
"""Accounts taken to stand behind the ones that are there, with none of their names.

In a small school a name that two have is not as frequent as it looks there.
"""


def _bits(counts: npt.NDArray[Any], accounts: int) -> Floats:
    """Return -log2 of frequencies, in sixteenths of a bit, from 1 to 14."""
    shares = (counts + 0.5) / (accounts + 1.0 + UNSEEN)
    bits = np.rint(-16.0 * np.log2(np.minimum(shares, 1.0))) / 16.0
    return np.asarray(np.clip(bits, 1.0, 14.0), np.float64)


class Columns:
    """Accounts in columns, in the order given; -1 stands for what is not reported."""

    def __init__(self, vocabulary: Vocabulary, capacity: int = 16) -> None:
        self.vocabulary = vocabulary
        self.count = 0
        self._arrays = {
            "tokens": np.full((capacity, WIDTH), -1, np.int32),
            "handles": np.full((capacity, _HANDLES), -1, np.int32),
            "ids": np.full((capacity, _IDS), -1, np.int32),
            "email": np.full(capacity, -1, np.int32),
            "domain": np.full(capacity, -1, np.int32),
            "year": np.full(capacity, -1, np.int32),
            "gender": np.full(capacity, -1, np.int32),
            "role": np.full(capacity, -1, np.int32),
            "zone": np.full(capacity, -1, np.int32),
        }
        self.groups: list[tuple[int, ...]] = []

    @classmethod
    def of(
        cls, accounts: Iterable[Prepared], vocabulary: Vocabulary, *, counted: bool = True
    ) -> Columns:
        """Return columns of accounts; ``counted``: they belong to the scope of the vocabulary."""
        columns = cls(vocabulary)
        unread = iter(accounts)
        while some := list(islice(unread, _ROWS_AT_ONCE)):
            columns.extend(some)
        if counted:
            columns.count_all(np.arange(columns.count))
        return columns

    def __getitem__(self, name: str) -> npt.NDArray[np.int32]:
        return self._arrays[name]

    def append(self, account: Prepared) -> int:
        """Add an account at the end, and return its position."""
        self.extend([account])
        return self.count - 1

    def extend(self, accounts: Sequence[Prepared]) -> None:
        """Add accounts at the end."""
        begin, end = self.count, self.count + len(accounts)
        for name, array in self._arrays.items():
            if end > len(array):
                more = np.full((max(len(array), end - len(array)), *array.shape[1:]), -1, np.int32)
                self._arrays[name] = np.concatenate([array, more])
        self.groups += [()] * len(accounts)
        self.count = end
        self._write(slice(begin, end), accounts)

    def put(self, at: int, account: Prepared) -> None:
        """Write an account at a position in place of what is there."""
        self._write(slice(at, at + 1), [account])

    def _write(self, rows: slice, accounts: Sequence[Prepared]) -> None:
        self.groups[rows] = [
            tuple([self.vocabulary.group(each.provider_id, group) for group in each.groups])
            for each in accounts
        ]
        values = zip(*map(self._values, accounts), strict=True)
        for name, column in zip(self._arrays, values, strict=True):
            self._arrays[name][rows] = np.array(column, np.int32)

    def _values(self, account: Prepared) -> tuple[Any, ...]:
        """Return what stands in the columns of an account, in their order."""
        vocabulary = self.vocabulary
        readings = account.readings or ((),) * len(account.tokens)
        named = zip(account.tokens[:WIDTH], account.scripts, readings, strict=False)
        tokens = [vocabulary.token(*token) for token in named]
        handles = [vocabulary.handle(handle) for handle in account.handles[:_HANDLES]]
        numbers = [vocabulary.word("id", number) for number in account.ids[:_IDS]]
        email = account.email
        return (
            tokens + _NONE[: WIDTH - len(tokens)],
            handles + _NONE[: _HANDLES - len(handles)],
            numbers + _NONE[: _IDS - len(numbers)],
            vocabulary.word("email", email) if email else -1,
            vocabulary.word("domain", email.partition("@")[2]) if email else -1,
            -1 if account.birth_year is None else account.birth_year,
            account.gender == "f" if account.gender else -1,
            account.role == "staff" if account.role else -1,
            vocabulary.word("zone", account.time_zone) if account.time_zone else -1,
        )

    def count_all(self, rows: npt.NDArray[Any], sign: int = 1) -> None:
        """Count the texts of accounts into the vocabulary, or out of it with ``sign`` -1."""
        vocabulary = self.vocabulary
        vocabulary.accounts += sign * len(rows)
        tokens = self["tokens"][rows]
        present = tokens[tokens >= 0]
        np.add.at(vocabulary.tokens["count"], present, sign)
        np.add.at(vocabulary.skeletons["count"], vocabulary.tokens["skeleton"][present], sign)
        heard = vocabulary.tokens["heard"][present]
        by_ear_only = heard != vocabulary.tokens["skeleton"][present][:, None]
        np.add.at(vocabulary.skeletons["count"], heard[(heard >= 0) & by_ear_only], sign)
        years = self["year"][rows]
        np.add.at(vocabulary.years, years[years >= 0] & 0x7FF, sign)
        handles = self["handles"][rows]
        np.add.at(vocabulary.handles["count"], handles[handles >= 0], sign)
        for name in ("email", "domain", "ids", "zone"):
            words = self[name][rows]
            np.add.at(vocabulary.words["count"], words[words >= 0], sign)


def handles_made(columns: Columns, rows: npt.NDArray[Any]) -> tuple[Hashes, tuple[int, ...]]:
    """Return the stems a name would give as a handle, by row, and how each is made.

    0 stands for none.
    """
    table = columns.vocabulary.tokens
    tokens = _keyed_tokens(columns, rows)
    present = tokens >= 0
    hashes, powers, initials = (table[name][tokens] for name in ("hash", "power", "initial"))
    made, kinds = [], []
    base = np.uint64(_BASE)
    for a, b in _ORDERED[tokens.shape[1]]:
        both = present[:, a] & present[:, b]
        whole = hashes[:, a] * powers[:, b] + hashes[:, b]
        initial_first = initials[:, a] * powers[:, b] + hashes[:, b]
        initial_last = hashes[:, a] * base + initials[:, b]
        for stem, kind in ((whole, FULL), (initial_first, SHORTENED), (initial_last, SHORTENED)):
            made.append(np.where(both, stem, 0))
            kinds.append(kind)
    for a in range(tokens.shape[1]):
        made.append(np.where(present[:, a], hashes[:, a], 0))
        kinds.append(SINGLE)
    shape = (len(made), len(rows))
    return np.array(made, np.uint64).reshape(shape).T, tuple(kinds)


def _keyed_tokens(columns: Columns, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the first tokens of accounts, as many as one of them has at most."""
    tokens = columns["tokens"][rows][:, :_KEYED]
    most = int((tokens >= 0).any(axis=0).sum())
    return np.asarray(tokens[:, :most])


def keys_of(columns: Columns, rows: npt.NDArray[Any]) -> Hashes:
    """Return the blocking keys of accounts, one row each; 0 stands for none.

    Two accounts that share a key are worth comparing.
    """
    vocabulary = columns.vocabulary
    table = vocabulary.tokens
    tokens = _keyed_tokens(columns, rows)
    most = tokens.shape[1]
    present = tokens >= 0
    names = ("hash", "initial", "skeleton_hash", "length", "beginning", "whole")
    hashes, initials, sounds, lengths, beginnings, wholes = (table[name][tokens] for name in names)
    canonicals = table["canonicals"][tokens][:, :, :2]
    years = columns["year"][rows]
    kinds: list[int] = []
    valid: list[Flags] = []
    parts: tuple[list[npt.NDArray[Any]], list[npt.NDArray[Any]]] = ([], [])

    def add(kind: int, known: Flags, first: npt.NDArray[Any], second: npt.NDArray[Any]) -> None:
        kinds.append(kind)
        valid.append(known)
        parts[0].append(first)
        parts[1].append(second)

    for a, b in _UNORDERED[most]:
        both = present[:, a] & present[:, b]
        whole = wholes[:, a] & wholes[:, b]
        add(1, both & whole, *_sorted(hashes[:, a], hashes[:, b]))
        add(2, both & whole, *_sorted(sounds[:, a], sounds[:, b]))
        add(11, both & whole, *_sorted(beginnings[:, a], beginnings[:, b]))
    for a, b in _ORDERED[most]:
        both = present[:, a] & present[:, b] & wholes[:, a]
        add(3, both, hashes[:, a], initials[:, b])
        for i in range(canonicals.shape[2]):
            known = both & (canonicals[:, a, i] >= 0)
            if not known.any():
                break
            add(4, known, vocabulary.canonicals["hash"][canonicals[:, a, i]], sounds[:, b])
    for a in range(most):
        whole = present[:, a] & wholes[:, a]
        add(5, whole & (years >= 0), hashes[:, a], years)
        add(12, whole & (years >= 0), sounds[:, a], years)
        add(6, whole, hashes[:, a], lengths[:, a])
    zeros = np.zeros(len(rows), np.uint64)
    handles = columns["handles"][rows]
    for i in range(_HANDLES):
        known = handles[:, i] >= 0
        if known.any():
            stems = vocabulary.handles["stem"][handles[:, i]]
            add(7, known, vocabulary.handles["hash"][handles[:, i]], zeros)
            add(8, known & (stems > 0), stems, zeros)
    made, _ = handles_made(columns, rows)
    for i in range(made.shape[1]):
        add(8, made[:, i] > 0, made[:, i], zeros)
    for name, kind in (("email", 9), ("ids", 10)):
        words = np.atleast_2d(columns[name][rows].T).T
        for i in range(words.shape[1]):
            known = words[:, i] >= 0
            if known.any():
                add(kind, known, vocabulary.words["hash"][words[:, i]], zeros)
    for kind, known, first_heard, second_heard in _keys_by_ear(columns, tokens, present):
        add(kind, known, *_sorted(first_heard, second_heard))
    shape = (len(kinds), len(rows))  # which are needed where there are no keys at all
    first, second = (np.array(part, np.uint64).reshape(shape) for part in parts)
    mixed = _mix(first, second, np.array(kinds, np.uint64)[:, None])
    return np.where(np.array(valid, np.bool_).reshape(shape), mixed, np.uint64(0)).T


def _keys_by_ear(
    columns: Columns, tokens: npt.NDArray[Any], present: Flags
) -> Iterator[tuple[int, Flags, Hashes, Hashes]]:
    """Return how two tokens are heard together, by any reading of one of them.

    East Asian tokens are met by ear, those of other scripts by their consonants. Only names that
    have such a token have more than one way each, so nobody else pays for it.
    """
    vocabulary = columns.vocabulary
    table, sounds = vocabulary.tokens, vocabulary.skeletons["hash"]
    heard, scripts = table["heard"][tokens], table["script"][tokens]
    whole = present & table["whole"][tokens]
    eastern = present & ((scripts == HAN) | (scripts == HANGUL))
    foreign = whole & ~eastern & (scripts != LATIN)
    audible = eastern | (whole & (scripts == LATIN))
    most = tokens.shape[1]
    for a, b in _UNORDERED[most]:
        both = audible[:, a] & audible[:, b]
        yield 13, both, sounds[heard[:, a, 0]], sounds[heard[:, b, 0]]
    if not (eastern.any() or foreign.any()):
        return
    skeletons = table["skeleton_hash"][tokens]
    for a, b in _ORDERED[most]:
        for n in range(1, MAX_READINGS):
            other = heard[:, a, n]
            known = eastern[:, a] & audible[:, b] & (other >= 0)
            if known.any():
                yield 13, known, sounds[other], sounds[heard[:, b, 0]]
            known = foreign[:, a] & whole[:, b] & (other >= 0)
            if known.any():
                yield 2, known, sounds[other], skeletons[:, b]
            both = known & foreign[:, b] & (heard[:, b, n] >= 0) & (a > b)
            if both.any():
                yield 2, both, sounds[other], sounds[heard[:, b, n]]


WEAK_KINDS: Final = frozenset({6})


def _sorted(first: Hashes, second: Hashes) -> tuple[Hashes, Hashes]:
    return np.minimum(first, second), np.maximum(first, second)


def _mix(first: Hashes, second: Hashes, kinds: Hashes) -> Hashes:
    """Return well spread hashes of pairs; the lowest four bits say the kind of each key."""
    value = first * np.uint64(0xBF58476D1CE4E5B9) + second
    value = (value ^ (value >> np.uint64(29))) * np.uint64(0x94D049BB133111EB)
    value ^= value >> np.uint64(32)
    return (value & ~np.uint64(15)) | kinds


def _word_hash(text: str) -> int:
    digest = blake2b(text.encode("utf-8", "ignore"), digest_size=8).digest()
    return int.from_bytes(digest, "big")
