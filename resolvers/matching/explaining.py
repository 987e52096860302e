"""Why two accounts may be one person, in words, with weights that add up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from resolvers.matching.columns import Columns
from resolvers.matching.scoring import AT, FEATURES, INITIAL, STEPS, WAYS

_RARE_BITS: Final = 9.0
_COMMON_BITS: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One thing that speaks for or against a pair.

    Attributes:
        field: The field of ``User`` it is seen in.
        kind: What was seen, such as ``NAME_EXACT``.
        similarity: From 0 to 1, where one can be told.
        weight: Bits, a multiple of 1/1024; negative speaks against.
    """

    field: str
    kind: str
    left_value: str | None
    right_value: str | None
    similarity: float | None
    weight: float
    explanation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """A pair of positions with its evidence: weights and prior add up to ``weight`` exactly.

    ``competitors`` are other pairs of positions that want one of the two accounts, best first.
    """

    left: int
    right: int
    weight: float
    prior: float
    score: float
    competitors: tuple[tuple[int, int], ...]
    evidence: tuple[Evidence, ...]


_WORDS: Final = {
    "in_handle_count": ("NAME_IN_USERNAME", "part of one name is in the other's username"),
    "conflict_one": ("NAME_CONFLICT", "one part of the names differs"),
    "conflict_more": ("NAME_CONFLICT", "several parts of the names differ"),
    "conflict_consonants": ("NAME_CONFLICT_ACROSS_SCRIPTS", "parts of names in two scripts differ"),
    "conflict_script": ("NAME_CONFLICT_ACROSS_SCRIPTS", "parts of names in two scripts differ"),
    "extra_tokens": ("NAME_EXTRA", "one name has parts that the other lacks"),
    "nothing_in_common": ("NAME_DIFFERENT", "the names have no part in common"),
    "one_token_only": ("NAME_SINGLE", "one of the names is a single word"),
    "email_same": ("EMAIL_SAME", "same e-mail address"),
    "email_shared": ("EMAIL_SHARED", "same e-mail address, which others use too"),
    "email_other": ("EMAIL_OTHER", "different e-mail addresses of one domain"),
    "handle_same": ("USERNAME_SAME", "same username, not built from the name"),
    "handle_same_built": ("USERNAME_SAME", "same username, built from the name"),
    "handle_stem": ("USERNAME_ALIKE", "usernames alike but for digits and signs"),
    "handle_stem_built": ("USERNAME_ALIKE", "usernames alike, built from the name"),
    "handle_other": ("USERNAME_OTHER", "usernames differ"),
    "handle_from_name": ("USERNAME_FROM_NAME", "username is built from the other's name"),
    "handle_from_initial": (
        "USERNAME_FROM_NAME",
        "username is an initial and a part of the other's name",
    ),
    "handle_from_token": ("USERNAME_FROM_NAME", "username is a part of the other's name"),
    "handle_year_same": (
        "USERNAME_YEAR_SAME",
        "the number in a username is the other's, or its year",
    ),
    "handle_year_other": ("USERNAME_YEAR_OTHER", "the number in a username is not the other's"),
    "id_same": ("IDENTIFIER_SAME", "same identifier"),
    "id_near": ("IDENTIFIER_NEAR", "identifiers differ in one character"),
    "id_other": ("IDENTIFIER_OTHER", "identifiers differ"),
    "year_bits": ("BIRTH_YEAR_SAME", "born in the same year"),
    "year_near": ("BIRTH_YEAR_NEAR", "born one year apart"),
    "year_other": ("BIRTH_YEAR_OTHER", "born in different years"),
    "gender_same": ("GENDER_SAME", "same gender"),
    "gender_other": ("GENDER_OTHER", "different gender"),
    "zone_same": ("TIME_ZONE_SAME", "same time zone"),
    "zone_other": ("TIME_ZONE_OTHER", "different time zones"),
    "role_same": ("ROLE_SAME", "same role"),
    "role_other": ("ROLE_OTHER", "one is staff, the other a student"),
    "groups_same": ("GROUPS_SAME", "in classes or facilities whose members are the same people"),
    "groups_other": ("GROUPS_OTHER", "in classes or facilities of different people"),
}
_TOKEN_WORDS: Final = {
    "exact": "same name part",
    "nickname": "a short form of the other",
    "typo": "the same but for a letter or two",
    "sound": "spelt differently, sounds alike",
    "script": "much the same in another script",
    "initial": "an initial of the other",
    "loose": "alike but for a few letters",
    "joined": "two parts of the other put together",
    "reading": "heard the same in another script",
    "consonants": "the same consonants in another script",
    "vowels": "the same consonants and long vowels in another script",
}


def evidence_of(
    columns: tuple[Columns, Columns],
    pair: tuple[int, int],
    *,
    values: npt.NDArray[Any],
    parts: npt.NDArray[np.int64],
    partner: npt.NDArray[Any],
    way: npt.NDArray[Any],
) -> tuple[Evidence, ...]:
    """Return a pair's evidence; the weights are ``parts`` of 1/1024 bit, none lost."""
    found = _name_evidence(columns, pair, parts=parts, partner=partner, way=way)
    for feature, (kind, words) in _WORDS.items():
        steps = int(parts[AT[feature]])
        if feature == "in_handle_count":
            steps += int(parts[AT["in_handle_bits"]])
        if not values[AT[feature]]:
            continue
        shown = _values_of(columns, pair, feature)
        found.append(
            Evidence(
                field=FEATURES[AT[feature]].field,
                kind=kind,
                left_value=shown[0],
                right_value=shown[1],
                similarity=None,
                weight=steps / STEPS,
                explanation=words,
            )
        )
    return tuple(found)


def _name_evidence(
    columns: tuple[Columns, Columns],
    pair: tuple[int, int],
    *,
    parts: npt.NDArray[np.int64],
    partner: npt.NDArray[Any],
    way: npt.NDArray[Any],
) -> list[Evidence]:
    """Return one piece for each pair of aligned tokens; what a way says is split by bits."""
    vocabulary = columns[0].vocabulary
    first, second = columns[0]["tokens"][pair[0]], columns[1]["tokens"][pair[1]]
    texts, found = vocabulary.tokens.texts, []
    for kind, name in enumerate(WAYS, 1):
        columns_here = np.nonzero(way == kind)[0].tolist()
        if not columns_here:
            continue
        steps = int(parts[AT[f"{name}_count"]])
        if kind != INITIAL:
            steps += int(parts[AT[f"{name}_bits"]])
        bits = [float(vocabulary.information(first[[c]])[0]) for c in columns_here]
        shares = [round(steps * part / sum(bits)) for part in bits]
        shares[-1] += steps - sum(shares)
        for column, share, said in zip(columns_here, shares, bits, strict=True):
            here, there = texts[first[column]], texts[second[partner[column]]]
            found.append(
                Evidence(
                    field="displayName",
                    kind=f"NAME_{name.upper()}",
                    left_value=here,
                    right_value=there,
                    similarity=1.0 if here == there else None,
                    weight=share / STEPS,
                    explanation=_TOKEN_WORDS[name] + _rarity(said),
                )
            )
    return found


def _rarity(bits: float) -> str:
    if bits >= _RARE_BITS:
        return ", rare here"
    return ", common here" if bits < _COMMON_BITS else ""


def _values_of(
    columns: tuple[Columns, Columns], pair: tuple[int, int], feature: str
) -> tuple[str | None, str | None]:
    one, two = (_value_of(side, row, feature) for side, row in zip(columns, pair, strict=True))
    return one, two


def _value_of(columns: Columns, row: int, feature: str) -> str | None:
    vocabulary, kind = columns.vocabulary, feature.partition("_")[0]
    if kind == "email":
        return vocabulary.words.texts[int(columns["email"][row])].partition(":")[2]
    if kind == "id":
        return vocabulary.words.texts[int(columns["ids"][row, 0])].partition(":")[2]
    if kind == "zone":
        return vocabulary.words.texts[int(columns["zone"][row])].partition(":")[2]
    if kind in {"handle", "in"}:
        handles = [h for h in columns["handles"][row].tolist() if h >= 0]
        return ", ".join(vocabulary.handles.texts[h] for h in handles) or None
    if kind == "year":
        return str(columns["year"][row])
    if kind == "gender":
        return "FEMALE" if columns["gender"][row] else "MALE"
    if kind == "role":
        return "staff" if columns["role"][row] else "student"
    if kind == "groups":
        return None
    tokens = [t for t in columns["tokens"][row].tolist() if t >= 0]
    return " ".join(vocabulary.tokens.texts[t] for t in tokens) or None
