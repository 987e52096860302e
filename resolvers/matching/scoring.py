"""What speaks for and against two accounts being one person, in bits that add up.

A pair has a value for each of ``FEATURES``; a value times the model's weight, rounded to
1/1024 bit, is what it contributes, and the contributions with the prior are the pair's weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from rapidfuzz.distance import OSA
from rapidfuzz.process import cpdist

from resolvers.matching.columns import (
    EASTERN,
    FULL,
    SHORTENED,
    SINGLE,
    WIDTH,
    Columns,
    Flags,
    Floats,
    Ints,
    Vocabulary,
    handles_made,
)
from resolvers.matching.names import ABJAD, LATIN, has_vowels
from resolvers.matching.readings import MAX_READINGS

STEPS: Final = 1024
"""Parts of a bit that contributions are rounded to."""

EXACT, NICKNAME, TYPO, SOUND, SCRIPT, INITIAL, LOOSE, JOINED = range(1, 9)
READING, CONSONANTS, VOWELS = range(9, 12)
"""Ways in which tokens can be the same name.

LOOSE is a typing error that leaves more doubt: two edits, or one in a token of three letters.
JOINED is one token that is two of the other name put together. Of tokens in two scripts, SCRIPT
has the same consonants, READING is heard the same. CONSONANTS is one that is written without its
short vowels and has the same consonants, VOWELS the same long vowels as well.
"""
WAYS: Final = (
    *("exact", "nickname", "typo", "sound", "script", "initial", "loose", "joined"),
    *("reading", "consonants", "vowels"),
)


_BY_SOUND: Final = np.isin(np.arange(len(WAYS) + 1), [SOUND, SCRIPT])


class Feature(NamedTuple):
    """One thing that is looked at: ``field`` is the ``User`` field it is seen in."""

    name: str
    field: str


FEATURES: Final = (
    Feature("exact_count", "displayName"),
    Feature("exact_bits", "displayName"),
    Feature("nickname_count", "displayName"),
    Feature("nickname_bits", "displayName"),
    Feature("typo_count", "displayName"),
    Feature("typo_bits", "displayName"),
    Feature("sound_count", "displayName"),
    Feature("sound_bits", "displayName"),
    Feature("script_count", "displayName"),
    Feature("script_bits", "displayName"),
    Feature("initial_count", "displayName"),
    Feature("loose_count", "displayName"),
    Feature("loose_bits", "displayName"),
    Feature("joined_count", "displayName"),
    Feature("joined_bits", "displayName"),
    Feature("reading_count", "displayName"),
    Feature("reading_bits", "displayName"),
    Feature("consonants_count", "displayName"),
    Feature("consonants_bits", "displayName"),
    Feature("vowels_count", "displayName"),
    Feature("vowels_bits", "displayName"),
    Feature("in_handle_count", "username"),
    Feature("in_handle_bits", "username"),
    Feature("conflict_one", "displayName"),
    Feature("conflict_more", "displayName"),
    Feature("conflict_script", "displayName"),
    Feature("conflict_consonants", "displayName"),
    Feature("extra_tokens", "displayName"),
    Feature("nothing_in_common", "displayName"),
    Feature("one_token_only", "displayName"),
    Feature("email_same", "email"),
    Feature("email_shared", "email"),
    Feature("email_other", "email"),
    Feature("handle_same", "username"),
    Feature("handle_same_built", "username"),
    Feature("handle_stem", "username"),
    Feature("handle_stem_built", "username"),
    Feature("handle_other", "username"),
    Feature("handle_from_name", "username"),
    Feature("handle_from_initial", "username"),
    Feature("handle_from_token", "username"),
    Feature("handle_year_same", "username"),
    Feature("handle_year_other", "username"),
    Feature("id_same", "identifiers"),
    Feature("id_near", "identifiers"),
    Feature("id_other", "identifiers"),
    Feature("year_bits", "birthYear"),
    Feature("year_near", "birthYear"),
    Feature("year_other", "birthYear"),
    Feature("gender_same", "gender"),
    Feature("gender_other", "gender"),
    Feature("zone_same", "timeZone"),
    Feature("zone_other", "timeZone"),
    Feature("role_same", "roles"),
    Feature("role_other", "roles"),
    Feature("groups_same", "enrollments"),
    Feature("groups_other", "enrollments"),
)
AT: Final = {feature.name: i for i, feature in enumerate(FEATURES)}


class Model(msgspec.Struct, frozen=True):
    """Weights in bits, one for each feature, and what turns a weight into a probability.

    With ``bits = slope * weight + shift``, a pair's odds are ``2 ** bits``, and its probability
    is ``1 / (1 + 2 ** -(bits - rivalry * log2(1 + rivals)))`` where ``rivals`` are the odds of
    all competitors together. ``base`` belongs to the prior. ``alone`` has another slope, rivalry
    and shift, for pools of which no groups are known.
    """

    version: str
    weights: tuple[float, ...]
    base: float = 0.0
    slope: float = 1.0
    rivalry: float = 1.0
    shift: float = 0.0
    alone: tuple[float, float, float] | None = None

    def without_groups(self) -> Model:
        """Return the model as it is where no groups are known."""
        if self.alone is None:
            return self
        slope, rivalry, shift = self.alone
        return msgspec.structs.replace(self, slope=slope, rivalry=rivalry, shift=shift)

    def prior(self, left: int, right: int, overlap: float | None = None) -> float:
        """Return the bits before any evidence, for pools of two sizes.

        ``overlap`` is the expected share of the smaller pool that is in the other one too; it
        counts as one half when nothing is said.
        """
        share = 0.5 if overlap is None else min(max(overlap, 0.001), 1.0)
        bits = self.base + math.log2(share) - math.log2(max(left, right, 2))
        return round(bits * STEPS) / STEPS


def contributions(model: Model, values: npt.NDArray[Any]) -> Ints:
    """Return what each value contributes, in 1/1024 bit."""
    weights = np.asarray(model.weights)
    return np.asarray(np.rint(values * (weights * STEPS)), np.int64)


def evidence_bits(model: Model, values: npt.NDArray[Any]) -> Floats:
    """Return the sum of what each pair's values contribute, in bits, exactly."""
    parts = np.multiply(values, np.asarray(model.weights) * STEPS, dtype=np.float64)
    return np.asarray(np.rint(parts, out=parts).sum(axis=1) / STEPS, np.float64)


class Compared(NamedTuple):
    """Pairs compared: values by feature, and for each token which it was aligned with, and how.

    ``partner`` and ``way`` are by pair and token of the left account, -1 and 0 for none.
    """

    values: npt.NDArray[np.float32]
    partner: npt.NDArray[np.int8]
    way: npt.NDArray[np.int8]


def compare(left: Columns, right: Columns, pairs: tuple[Ints, Ints]) -> Compared:
    """Return the values of pairs of rows of two columns that share a vocabulary."""
    count = len(pairs[0])
    # One feature after the other in memory, as they are written.
    values = np.zeros((len(FEATURES), count), np.float32).T
    if not count:
        return Compared(values, np.zeros((0, WIDTH), np.int8), np.zeros((0, WIDTH), np.int8))
    partner, way = _compare_names(left, right, pairs, values)
    _compare_handles(left, right, pairs, values)
    _compare_facts(left, right, pairs, values)
    return Compared(values, partner, way)


def _compare_names(
    left: Columns, right: Columns, pairs: tuple[Ints, Ints], values: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int8]]:
    vocabulary = left.vocabulary
    first, second = left["tokens"][pairs[0]], right["tokens"][pairs[1]]
    ways = _token_ways(left, first, second)
    partner, way = _align(ways)
    aligned = way > 0
    present_left, present_right = first >= 0, second >= 0
    used = np.zeros(present_right.shape, np.bool_)
    for column in range(WIDTH):
        used[np.arange(len(first)), partner[:, column]] |= aligned[:, column]
    counts, sums = _by_way(way, _said(vocabulary, (first, second), (partner, way)))
    for kind, name in enumerate(WAYS, 1):
        if kind == JOINED:
            continue
        values[:, AT[f"{name}_count"]] = counts[:, kind]
        if kind != INITIAL:
            values[:, AT[f"{name}_bits"]] = sums[:, kind]
    left_over, right_over = present_left & ~aligned, present_right & ~used
    joined = _join(left, (first, second), (left_over, right_over), (partner, way))
    values[:, AT["joined_count"]], values[:, AT["joined_bits"]] = joined
    aligned = way > 0
    in_right, count_l, bits_l = _in_handles(left, right, first, left_over, pairs[1])
    in_left, count_r, bits_r = _in_handles(right, left, second, right_over, pairs[0])
    values[:, AT["in_handle_count"]] = count_l + count_r
    values[:, AT["in_handle_bits"]] = bits_l + bits_r
    left_over &= ~in_right
    right_over &= ~in_left
    here, there = left_over.sum(axis=1), right_over.sum(axis=1)
    conflicts = np.minimum(here, there)
    scripts = vocabulary.tokens["script"]
    foreign_left = (present_left & (scripts[first] != LATIN)).any(axis=1)
    foreign_right = (present_right & (scripts[second] != LATIN)).any(axis=1)
    across = foreign_left != foreign_right
    values[:, AT["conflict_one"]] = (conflicts == 1) & ~across
    values[:, AT["conflict_more"]] = (conflicts > 1) & ~across
    unvowelled = ((present_left & (scripts[first] == ABJAD)).any(axis=1)) | (
        (present_right & (scripts[second] == ABJAD)).any(axis=1)
    )
    values[:, AT["conflict_script"]] = np.where(across & ~unvowelled, conflicts, 0)
    values[:, AT["conflict_consonants"]] = np.where(across & unvowelled, conflicts, 0)
    values[:, AT["extra_tokens"]] = np.maximum(here, there) - conflicts
    both = present_left.any(axis=1) & present_right.any(axis=1)
    matched = aligned.sum(axis=1)
    values[:, AT["nothing_in_common"]] = both & (matched == 0)
    fewest = np.minimum(present_left.sum(axis=1), present_right.sum(axis=1))
    values[:, AT["one_token_only"]] = (fewest == 1) & (matched == 1)
    return np.where(aligned, partner, -1).astype(np.int8), way


def _said(
    vocabulary: Vocabulary,
    tokens: tuple[npt.NDArray[Any], npt.NDArray[Any]],
    alignment: tuple[Ints, npt.NDArray[np.int8]],
) -> Floats:
    """Return the bits of the tokens that are aligned, in order."""
    partner, way = alignment
    at, column = np.nonzero(way)
    first, second = tokens[0][at, column], tokens[1][at, partner[at, column]]
    kinds = way[at, column]
    bits = np.minimum(vocabulary.information(first), vocabulary.information(second))
    heard = np.nonzero(_BY_SOUND[kinds])[0]
    sounds = vocabulary.tokens["skeleton"][first[heard]]
    bits[heard] = vocabulary.skeleton_information(sounds)
    read = np.nonzero(kinds == READING)[0]
    if len(read):
        bits[read] = _heard_bits(vocabulary, first[read], second[read])
    return bits


def _by_way(way: npt.NDArray[np.int8], bits: Floats) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return, by pair and way, how many tokens are aligned so, and the sum of their bits."""
    kinds = len(WAYS) + 1
    at, column = np.nonzero(way)
    cells = at * kinds + way[at, column]
    size = len(way) * kinds
    counts = np.bincount(cells, minlength=size).reshape(-1, kinds)
    return counts, np.bincount(cells, bits, minlength=size).reshape(-1, kinds)


def _token_ways(
    columns: Columns, first: npt.NDArray[Any], second: npt.NDArray[Any]
) -> npt.NDArray[np.int8]:
    """Return how each token of one name is the same as each of the other, 0 for not."""
    table = columns.vocabulary.tokens
    result = np.zeros((len(first), WIDTH, WIDTH), np.int8)
    cells, one, two = _worth_comparing(columns, first, second)
    way = np.zeros(len(one), np.int8)
    same_initial = table["initial"][one] == table["initial"][two]
    short = ~(table["whole"][one] & table["whole"][two])
    way[short & same_initial] = INITIAL
    script_one, script_two = table["script"][one], table["script"][two]
    across = (script_one != script_two) | (script_one == ABJAD)
    sound_one, sound_two = table["skeleton"][one], table["skeleton"][two]
    heard = columns.vocabulary.skeletons["length"][sound_one]
    same_sound = (sound_one == sound_two) & ~short
    way[same_sound & ~across & (heard > 1) & same_initial] = SOUND
    eastern = _is_any(script_one, EASTERN) | _is_any(script_two, EASTERN)
    way[same_sound & across & (heard > 0) & ~eastern] = SCRIPT
    way[same_sound & across & (heard > 1) & eastern] = LOOSE
    foreign = np.nonzero((script_one != script_two) & ~short)[0]
    shared = _share_sounds(table["heard"][one[foreign]], table["heard"][two[foreign]])
    way[foreign[shared]] = SCRIPT
    way[foreign[shared & eastern[foreign]]] = READING
    unvowelled = (script_one == ABJAD) | (script_two == ABJAD)
    way[foreign[shared & unvowelled[foreign]]] = CONSONANTS
    _hear_vowels(columns, one, two, way, (script_one == LATIN) != (script_two == LATIN))
    _find_typos(columns, one, two, way, ~short & ~(across & (way > 0)))
    _find_near_sounds(columns, sound_one, sound_two, way, across & ~short & (heard > 2) & ~eastern)
    if eastern.any():
        _find_near_by_ear(columns, one, two, way, foreign[eastern[foreign]])
    nick = np.zeros(len(one), np.bool_)
    known = np.nonzero(
        (table["canonicals"][one, 0] >= 0) & (table["canonicals"][two, 0] >= 0) & ~short
    )[0]
    names_one, names_two = table["canonicals"][one[known]], table["canonicals"][two[known]]
    shared = (names_one[:, :, None] == names_two[:, None, :]) & (names_one[:, :, None] >= 0)
    nick[known] = shared.any(axis=(1, 2))
    way[nick] = NICKNAME
    _find_prefixes(columns, one, two, way)
    same_text = (table["hash"][one] == table["hash"][two]) & ~(across & unvowelled)
    way[((one == two) | same_text) & ~short] = EXACT
    result[cells] = way
    return result


def _worth_comparing(
    columns: Columns, first: npt.NDArray[Any], second: npt.NDArray[Any]
) -> tuple[tuple[Ints, Ints, Ints], npt.NDArray[Any], npt.NDArray[Any]]:
    """Return where tokens are that may be the same in some way, and both tokens.

    Not those in Latin letters that begin otherwise, are too far apart for a typing error and not
    both known as forms of names, which are most.
    """
    table = columns.vocabulary.tokens
    at, i, j = np.nonzero((first >= 0)[:, :, None] & (second >= 0)[:, None, :])
    one, two = first[at, i], second[at, j]
    script, initial, known = table["script"], table["initial"], table["canonicals"][:, 0] >= 0
    worth = (initial[one] == initial[two]) | ((script[one] | script[two]) != LATIN)
    worth |= (known[one] & known[two]) | _may_be_typos(columns, one, two)
    kept = np.nonzero(worth)[0]
    return (at[kept], i[kept], j[kept]), one[kept], two[kept]


def _share_sounds(one: npt.NDArray[Any], two: npt.NDArray[Any]) -> Flags:
    """Return which rows of two columns of sounds have one in common; -1 stands for none."""
    equal = (one[:, :, None] == two[:, None, :]) & (one[:, :, None] >= 0)
    return np.asarray(equal.any(axis=(1, 2)), np.bool_)


def _hear_vowels(
    columns: Columns,
    one: npt.NDArray[Any],
    two: npt.NDArray[Any],
    way: npt.NDArray[np.int8],
    across: Flags,
) -> None:
    """Tell tokens that have the same vowels, too, from those of the same consonants alone."""
    vocabulary = columns.vocabulary
    scripts, texts = vocabulary.tokens["script"], vocabulary.tokens.texts
    at = np.nonzero(across & ((way == SCRIPT) | (way == CONSONANTS)))[0]
    if not len(at):
        return
    first, second = one[at].astype(np.int64), two[at].astype(np.int64)
    latin_first = scripts[first] == LATIN
    latin, foreign = np.where(latin_first, (first, second), (second, first))
    codes, places = np.unique((latin << 32) + foreign, return_inverse=True)
    heard = [
        has_vowels(texts[a], (texts[b], *vocabulary.readings[b]), int(scripts[b]))
        for a, b in zip((codes >> 32).tolist(), (codes & 0xFFFFFFFF).tolist(), strict=True)
    ]
    same = at[np.array(heard, np.bool_)[places]]
    way[same] = np.where(way[same] == SCRIPT, READING, VOWELS)


def _is_any(scripts: npt.NDArray[Any], wanted: Iterable[int]) -> Flags:
    return np.asarray(np.logical_or.reduce([scripts == each for each in wanted]), np.bool_)


def _heard_bits(
    vocabulary: Vocabulary, first: npt.NDArray[Any], second: npt.NDArray[Any]
) -> Floats:
    """Return the bits of how the Latin one of two tokens is heard."""
    table = vocabulary.tokens
    latin = np.where(table["script"][first] == LATIN, first, second)
    return vocabulary.skeleton_information(table["heard"][latin][..., 0])


def _find_typos(
    columns: Columns,
    one: npt.NDArray[Any],
    two: npt.NDArray[Any],
    way: npt.NDArray[np.int8],
    eligible: Flags,
) -> None:
    """Mark tokens of one edit from each other, or two if both are long; loosely, of one more."""
    table = columns.vocabulary.tokens
    at = np.nonzero(eligible & (one != two) & _may_be_typos(columns, one, two))[0]
    if not len(at):
        return
    shorter = np.minimum(table["length"][one[at]], table["length"][two[at]])
    texts = table.texts
    edits = cpdist(
        [texts[i] for i in one[at].tolist()],
        [texts[i] for i in two[at].tolist()],
        scorer=OSA.distance,
        score_cutoff=3,
        dtype=np.uint8,
    )
    near = edits <= _EDITS[np.minimum(shorter, 8)]
    sure = edits <= np.where(shorter >= 8, 2, np.where(shorter >= 4, 1, 0))
    way[at[near & ~sure & (way[at] == 0)]] = LOOSE
    way[at[sure]] = TYPO


_EDITS: Final = np.array([-1, -1, -1, 1, 1, 2, 2, 2, 3], np.int8)
"""How many edits two tokens may be apart, by the length of the shorter one, up to 8."""


def _may_be_typos(columns: Columns, one: npt.NDArray[Any], two: npt.NDArray[Any]) -> Flags:
    """Return which tokens have lengths and letters that so few edits could make the same."""
    table = columns.vocabulary.tokens
    here, there = table["length"][one], table["length"][two]
    allowed = _EDITS[np.minimum(np.minimum(here, there), 8)]
    letters = np.bitwise_count(table["letters"][one] ^ table["letters"][two])
    return np.asarray((np.abs(here - there) <= allowed) & (letters <= 2 * allowed), np.bool_)


def _find_near_sounds(
    columns: Columns,
    one: npt.NDArray[Any],
    two: npt.NDArray[Any],
    way: npt.NDArray[np.int8],
    across: Flags,
) -> None:
    """Mark tokens of two scripts whose skeletons, of three sounds or more, are one edit apart."""
    lengths = columns.vocabulary.skeletons["length"]
    at = np.nonzero(across & (way == 0) & (np.abs(lengths[one] - lengths[two]) < 2))[0]
    if not len(at):
        return
    texts = columns.vocabulary.skeletons.texts
    edits = cpdist(
        [texts[i] for i in one[at].tolist()],
        [texts[i] for i in two[at].tolist()],
        scorer=OSA.distance,
        score_cutoff=1,
        dtype=np.uint8,
    )
    way[at[edits <= 1]] = LOOSE


def _find_near_by_ear(
    columns: Columns, one: npt.NDArray[Any], two: npt.NDArray[Any], way: npt.NDArray[Any], at: Ints
) -> None:
    """Mark East Asian tokens and Latin ones that are heard alike but for one sound, or clipped."""
    vocabulary = columns.vocabulary
    heard, texts = vocabulary.tokens["heard"], vocabulary.skeletons.texts
    lengths = vocabulary.skeletons["length"]
    for n in range(MAX_READINGS):
        for here, there in ((one, two), (two, one)):
            latin = at[(vocabulary.tokens["script"][here[at]] == LATIN) & (way[at] == 0)]
            a, b = heard[here[latin], 0], heard[there[latin], n]
            long = (b >= 0) & (np.minimum(lengths[a], lengths[b]) >= _HEARD_ENOUGH)
            latin, a, b = latin[long], a[long], b[long]
            if len(latin):
                said = ([texts[i] for i in a.tolist()], [texts[i] for i in b.tolist()])
                edits = cpdist(*said, scorer=OSA.distance, score_cutoff=1, dtype=np.uint8)
                clipped = [x.startswith(y) or y.startswith(x) for x, y in zip(*said, strict=True)]
                way[latin[(edits <= 1) | np.array(clipped, np.bool_)]] = LOOSE


def _find_prefixes(
    columns: Columns, one: npt.NDArray[Any], two: npt.NDArray[Any], way: npt.NDArray[np.int8]
) -> None:
    """Mark tokens of which one is the other's beginning, three letters or more."""
    table = columns.vocabulary.tokens
    length_one, length_two = table["length"][one], table["length"][two]
    worth = (
        (table["beginning"][one] == table["beginning"][two])
        & (np.minimum(length_one, length_two) >= 3)
        & (length_one != length_two)
        & ((way == 0) | (way == SOUND) | (way == LOOSE))
    )
    at = np.nonzero(worth)[0]
    texts = table.texts
    for i, a, b in zip(at.tolist(), one[at].tolist(), two[at].tolist(), strict=True):
        if texts[a].startswith(texts[b]) or texts[b].startswith(texts[a]):
            way[i] = NICKNAME


_HEARD_ENOUGH: Final = 4
"""Sounds of an East Asian token, and the sign before them, of which one may be another."""

_GREED: Final = np.array([0, 10, 8, 9, 5, 6, 2, 4, 0, 7, 6, 7], np.int8)


def _align(ways: npt.NDArray[np.int8]) -> tuple[Ints, npt.NDArray[np.int8]]:
    """Return for each token of the left name its partner and the way, best ways first."""
    rank = _GREED[ways]
    count = len(ways)
    partner = np.zeros((count, WIDTH), np.int64)
    way = np.zeros((count, WIDTH), np.int8)
    rows = np.nonzero(rank.reshape(count, -1).any(axis=1))[0]
    while len(rows):
        flat = rank[rows].reshape(len(rows), -1)
        best = flat.argmax(axis=1)
        i, j = best // WIDTH, best % WIDTH
        partner[rows, i] = j
        way[rows, i] = ways[rows, i, j]
        rank[rows, i, :] = 0
        rank[rows, :, j] = 0
        rows = rows[rank[rows].reshape(len(rows), -1).any(axis=1)]
    return partner, way


def _join(
    columns: Columns,
    tokens: tuple[npt.NDArray[Any], npt.NDArray[Any]],
    left_over: tuple[Flags, Flags],
    alignment: tuple[Ints, npt.NDArray[np.int8]],
) -> tuple[Floats, Floats]:
    """Align tokens left over that are two of the other name put together; count and bits.

    Takes them out of what is left over, and enters them in the alignment.
    """
    table, (partner, way) = columns.vocabulary.tokens, alignment
    count, bits = np.zeros(len(way)), np.zeros(len(way))
    numbers = tuple(over.sum(axis=1) for over in left_over)
    for whole, parts in ((0, 1), (1, 0)):
        at = np.nonzero((numbers[whole] > 0) & (numbers[parts] > 1))[0]
        letters = [
            np.where(left_over[side][at], table["letters"][tokens[side][at]], 0)
            for side in (whole, parts)
        ]
        lacking = letters[0] & ~np.bitwise_or.reduce(letters[1], axis=1)[:, None]
        at = at[((lacking == 0) & (letters[0] > 0)).any(axis=1)]
        if not len(at):
            continue
        one, two = tokens[whole][at], tokens[parts][at]
        hashes, powers = table["hash"][two], table["power"][two]
        for a in range(WIDTH):
            for b in range(WIDTH):
                both = left_over[parts][at, a] & left_over[parts][at, b]
                if a == b or not both.any():
                    continue
                made = hashes[:, a] * powers[:, b] + hashes[:, b]
                equal = (table["hash"][one] == made[:, None]) & left_over[whole][at]
                rows, column = np.nonzero(equal & both[:, None])
                for row, c in zip(at[rows].tolist(), column.tolist(), strict=True):
                    left_over[whole][row, c] = False
                    left_over[parts][row, [a, b]] = False
                    count[row] += 1
                    token = tokens[whole][row, [c]]
                    bits[row] += columns.vocabulary.information(token)[0]
                    here, there = ([c], [a]) if whole == 0 else ([a, b], [c, c])
                    partner[row, here], way[row, here] = there, JOINED
    return count, bits


def _in_handles(
    columns: Columns,
    other: Columns,
    tokens: npt.NDArray[Any],
    left_over: Flags,
    rows: Ints,
) -> tuple[Flags, Floats, Floats]:
    """Return which tokens left over are inside the other account's handles; count and bits."""
    vocabulary = columns.vocabulary
    found = np.zeros(left_over.shape, np.bool_)
    handles = other["handles"][rows]
    long = vocabulary.tokens["length"][tokens] >= 3
    at, column = np.nonzero(left_over & long & (handles[:, :1] >= 0))
    texts, stems = vocabulary.tokens.texts, vocabulary.stems
    named = tokens[at, column]
    letters = vocabulary.tokens["letters"][named]
    for handle in handles[at].T:
        lacking = letters & ~vocabulary.handles["letters"][handle]
        worth = np.nonzero((handle >= 0) & (lacking == 0))[0]
        pairs = zip(named[worth].tolist(), handle[worth].tolist(), strict=True)
        inside = [texts[token] in stems[other] for token, other in pairs]
        found[at[worth], column[worth]] |= np.array(inside, np.bool_)
    at, column = np.nonzero(found)
    bits = np.bincount(at, vocabulary.information(tokens[at, column]), minlength=len(rows))
    return found, found.sum(axis=1).astype(np.float64), np.asarray(bits, np.float64)


def _compare_handles(
    left: Columns, right: Columns, pairs: tuple[Ints, Ints], values: npt.NDArray[np.float32]
) -> None:
    one, two = left["handles"][pairs[0]], right["handles"][pairs[1]]
    stems_one, stems_two = _stems(left, one), _stems(right, two)
    same, stem = np.zeros(len(one), np.bool_), np.zeros(len(one), np.bool_)
    for i in range(one.shape[1]):
        for j in range(two.shape[1]):
            same |= (one[:, i] >= 0) & (one[:, i] == two[:, j])
            stem |= (stems_one[:, i] > 0) & (stems_one[:, i] == stems_two[:, j])
    stem &= ~same
    alike = np.nonzero(same | stem)[0]
    built = np.zeros(len(one), np.bool_)
    for side, rows, stems in ((left, pairs[0], stems_one), (right, pairs[1], stems_two)):
        built[alike] |= _made_of(side, rows[alike], stems[alike]) > 0
    present = (one[:, 0] >= 0) & (two[:, 0] >= 0)
    alone = ~same & ~stem
    crossed = np.zeros(len(one), np.int8)
    for side, rows, handles, stems in (
        (right, pairs[1], one, stems_one),
        (left, pairs[0], two, stems_two),
    ):
        at = np.nonzero(alone & _may_be_made_of(side, rows, handles))[0]
        crossed[at] = np.maximum(crossed[at], _made_of(side, rows[at], stems[at]))
    values[:, AT["handle_same"]] = same & ~built
    values[:, AT["handle_same_built"]] = same & built
    values[:, AT["handle_stem"]] = stem & ~built
    values[:, AT["handle_stem_built"]] = stem & built
    values[:, AT["handle_other"]] = present & alone
    values[:, AT["handle_from_name"]] = crossed == FULL
    values[:, AT["handle_from_initial"]] = crossed == SHORTENED
    values[:, AT["handle_from_token"]] = crossed == SINGLE
    _compare_years_in_handles(left, right, pairs, values)


def _compare_years_in_handles(
    left: Columns, right: Columns, pairs: tuple[Ints, Ints], values: npt.NDArray[np.float32]
) -> None:
    """Compare the number behind a handle with that of another one, or with the year of birth."""
    table = left.vocabulary.handles["year"]
    said = []
    for side, rows in zip((left, right), pairs, strict=True):
        handles, years = side["handles"][rows], side["year"][rows]
        shown = np.where(handles >= 0, table[handles], -1)
        said.append([*shown.T, np.where(years >= 0, years % 100, -1)])
    same, known = (np.zeros(len(pairs[0]), np.bool_) for _ in range(2))
    for at, one in enumerate(said[0]):
        for other_at, other in enumerate(said[1]):
            if at < len(said[0]) - 1 or other_at < len(said[1]) - 1:
                both = (one >= 0) & (other >= 0)
                known |= both
                same |= both & (one == other)
    told = values[:, AT["handle_same"]] + values[:, AT["handle_same_built"]] == 0
    values[:, AT["handle_year_same"]] = told & same
    values[:, AT["handle_year_other"]] = told & known & ~same


def _stems(columns: Columns, handles: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """Return the stems of handles; 0 stands for none."""
    stems = columns.vocabulary.handles["stem"]
    return np.asarray(np.where(handles >= 0, stems[handles], 0), np.uint64)


def _may_be_made_of(columns: Columns, rows: Ints, handles: npt.NDArray[Any]) -> Flags:
    """Return which accounts' names have all letters of one of some handles."""
    tokens, letters = columns["tokens"][rows], columns.vocabulary.tokens["letters"]
    named = np.bitwise_or.reduce(np.where(tokens >= 0, letters[tokens], 0), axis=1)
    lacking = columns.vocabulary.handles["letters"][handles] & ~named[:, None]
    return np.asarray(((lacking == 0) & (handles >= 0)).any(axis=1), np.bool_)


def _made_of(columns: Columns, rows: Ints, stems: npt.NDArray[np.uint64]) -> npt.NDArray[np.int8]:
    """Return how accounts' names make one of some stems, the best way, and 0 for not."""
    if not len(rows):
        return np.zeros(0, np.int8)
    made, kinds = handles_made(columns, rows)
    ranks = np.array(kinds, np.int8)
    return np.asarray(np.maximum.reduce([_best(made, each, ranks) for each in stems.T]), np.int8)


def _best(
    made: npt.NDArray[np.uint64], stems: npt.NDArray[np.uint64], ranks: npt.NDArray[np.int8]
) -> npt.NDArray[np.int8]:
    best = np.zeros(len(stems), np.int8)
    rows, columns = np.nonzero((made == stems[:, None]) & (stems[:, None] > 0))
    np.maximum.at(best, rows, ranks[columns])
    return best


def _compare_facts(
    left: Columns, right: Columns, pairs: tuple[Ints, Ints], values: npt.NDArray[np.float32]
) -> None:
    i, j = pairs
    email_l, email_r = left["email"][i], right["email"][j]
    mailed = (email_l >= 0) & (email_r >= 0)
    same = mailed & (email_l == email_r)
    shared = left.vocabulary.words["count"][email_l] > 2
    values[:, AT["email_same"]] = same & ~shared
    values[:, AT["email_shared"]] = same & shared
    values[:, AT["email_other"]] = mailed & ~same & (left["domain"][i] == right["domain"][j])
    _compare_ids(left, right, pairs, values)
    year_l, year_r = left["year"][i], right["year"][j]
    dated, apart = (year_l >= 0) & (year_r >= 0), np.abs(year_l - year_r)
    said = left.vocabulary.year_information(year_l)
    values[:, AT["year_bits"]] = np.where(dated & (apart == 0), said, 0.0)
    values[:, AT["year_near"]] = dated & (apart == 1)
    values[:, AT["year_other"]] = dated & (apart > 1)
    for name in ("gender", "zone", "role"):
        one, two = left[name][i], right[name][j]
        known = (one >= 0) & (two >= 0)
        values[:, AT[f"{name}_same"]] = known & (one == two)
        values[:, AT[f"{name}_other"]] = known & (one != two)


def _compare_ids(
    left: Columns, right: Columns, pairs: tuple[Ints, Ints], values: npt.NDArray[np.float32]
) -> None:
    one, two = left["ids"][pairs[0]], right["ids"][pairs[1]]
    numbered = (one[:, 0] >= 0) & (two[:, 0] >= 0)
    same = np.zeros(len(one), np.bool_)
    for here in one.T:
        for there in two.T:
            same |= (here >= 0) & (here == there)
    near = np.zeros(len(one), np.bool_)
    at = np.nonzero(numbered & ~same)[0]
    if len(at):
        texts = left.vocabulary.words.texts
        edits = cpdist(
            [texts[i] for i in one[at, 0].tolist()],
            [texts[i] for i in two[at, 0].tolist()],
            scorer=OSA.distance,
            score_cutoff=1,
            dtype=np.uint8,
        )
        near[at] = edits <= 1
    values[:, AT["id_same"]] = same
    values[:, AT["id_near"]] = near
    values[:, AT["id_other"]] = numbered & ~same & ~near
