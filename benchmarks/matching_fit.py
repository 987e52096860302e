"""Fits the weights that the matcher ships, on the development half of the test population only.

    .venv/bin/python benchmarks/matching_fit.py [--write]

Prints the weights, and with ``--write`` puts them into resolvers/matching/shipped.py. The same
populations give the same weights: a logistic regression from weights set by hand, with a weak
ridge towards them; then the two weights of groups with the others held; then what turns weights
into probabilities.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from resolvers.matching import Account, Model, Prepared, prepare  # noqa: E402 - not installed
from resolvers.matching.candidates import candidates  # noqa: E402 - the same
from resolvers.matching.columns import Columns, Vocabulary  # noqa: E402 - the same
from resolvers.matching.fitting import versioned, with_weights  # noqa: E402 - the same
from resolvers.matching.matches import (  # noqa: E402 - the same
    find_doubles,
    match,
    probabilities,
)
from resolvers.matching.scoring import AT, FEATURES, STEPS, compare, contributions  # noqa: E402
from simulators.people import Campus, PlatformAccount, populate  # noqa: E402 - the same

SHIPPED_MODULE: Final = ROOT / "resolvers" / "matching" / "shipped.py"
# People, seed and errors: pools of several sizes, so that the prior is right for each, written
# with the care of the development half and with less, so that the weights do not trust in it.
POPULATIONS: Final = (
    (6000, 101, 1.0),
    (4000, 102, 1.5),
    (4000, 107, 2.0),
    (1500, 103, 1.5),
    (600, 104, 1.0),
    (300, 105, 1.5),
    (300, 106, 2.0),
)
RIDGE: Final = 20.0
_LN2: Final = float(np.log(2.0))
GROUP_FEATURES: Final = ("groups_same", "groups_other")

# Where the fit begins, and what it is drawn to where the population says little.
BY_HAND: Final = {
    "exact_bits": 0.95,
    "nickname_count": -1.5,
    "nickname_bits": 0.8,
    "typo_count": -1.5,
    "typo_bits": 0.8,
    "sound_count": -2.0,
    "sound_bits": 0.7,
    "script_count": -1.0,
    "script_bits": 0.8,
    "initial_count": 1.5,
    "loose_count": -3.0,
    "loose_bits": 0.7,
    "joined_bits": 0.9,
    "reading_count": -1.0,
    "reading_bits": 0.8,
    "consonants_count": -1.0,
    "consonants_bits": 0.8,
    "vowels_count": -1.0,
    "vowels_bits": 0.9,
    "in_handle_count": 1.0,
    "in_handle_bits": 0.4,
    "conflict_one": -5.0,
    "conflict_more": -9.0,
    "conflict_script": -1.0,
    "conflict_consonants": -0.5,
    "extra_tokens": -0.7,
    "nothing_in_common": -4.0,
    "one_token_only": -1.0,
    "email_same": 9.0,
    "email_shared": 4.0,
    "email_other": -2.0,
    "handle_same": 8.0,
    "handle_same_built": 3.5,
    "handle_stem": 4.0,
    "handle_stem_built": 1.5,
    "handle_other": -0.7,
    "handle_from_name": 2.5,
    "handle_from_initial": 1.8,
    "handle_from_token": 0.8,
    "handle_year_same": 2.0,
    "handle_year_other": -0.5,
    "id_same": 11.0,
    "id_near": 3.0,
    "id_other": -4.0,
    "year_bits": 0.9,
    "year_near": -1.0,
    "year_other": -4.0,
    "gender_same": 0.8,
    "gender_other": -4.0,
    "zone_same": 0.5,
    "zone_other": -0.5,
    "role_same": 0.1,
    "role_other": -3.0,
    "groups_same": 1.0,
    "groups_other": 1.0,
}


def as_accounts(rows: Sequence[PlatformAccount]) -> list[Prepared]:
    """Return a platform's accounts as matching prepares them."""
    names = [field.name for field in fields(PlatformAccount) if field.name != "person"]
    return [prepare(Account(**{name: getattr(row, name) for name in names})) for row in rows]


def platform_pairs(campus: Campus) -> list[tuple[str, str]]:
    """Return the six pairs of platforms that are measured."""
    kolibri, kolibri2, canvas, moodle, fifth = campus.accounts
    return [
        (kolibri, canvas),
        (kolibri, moodle),
        (kolibri, kolibri2),
        (canvas, moodle),
        (canvas, fifth),
        (moodle, fifth),
    ]


class Pools:
    """Two pools of one population, with whose each account is."""

    def __init__(self, campus: Campus, left: str, right: str) -> None:
        self.people = tuple(
            np.array([row.person for row in campus.accounts[name]]) for name in (left, right)
        )
        self.accounts = tuple(as_accounts(campus.accounts[name]) for name in (left, right))

    def same(self, left: Any, right: Any) -> Any:
        """Return which pairs are one person."""
        return self.people[0][left] == self.people[1][right]


def pools() -> Iterator[Pools]:
    """Return the pools that are fitted on."""
    for count, seed, errors in POPULATIONS:
        campus = populate(count, seed=seed, half="development", errors=errors)
        for left, right in platform_pairs(campus):
            yield Pools(campus, left, right)


def fitted() -> Model:
    """Return the model."""
    start = Model(
        version="by-hand", weights=tuple(BY_HAND.get(feature.name, 0.0) for feature in FEATURES)
    )
    everything = list(pools())
    model = _fit_facts(start, everything)
    model = _fit_groups(model, everything)
    return _calibrated(model, everything)


class _Sample:
    """Pairs with their values; the pairs of one account are told apart from those of others."""

    def __init__(self) -> None:
        self._parts: list[tuple[Any, ...]] = []
        self._accounts = 0

    def add(self, pairs: tuple[Any, Any], values: Any, same: Any, offset: Any) -> None:
        """Add the pairs of two pools; ``offset`` is in bits what is not fitted."""
        self._parts.append((pairs[0] + self._accounts, values, same, offset))
        self._parts[-1] += (pairs[1] + self._accounts + int(pairs[0].max(initial=0)) + 1,)
        self._accounts = int(self._parts[-1][4].max(initial=self._accounts)) + 1

    def fit(self, start: Any, ridge: float) -> Any:
        """Return weights and base that make the true partner of each account likely.

        An account chooses among its candidates and nobody (multinomial logit), once for each
        account of either pool; Newton's method with a ridge towards ``start``.
        """
        left, values, same, offset, right = (
            np.concatenate([part[at] for part in self._parts]) for at in range(5)
        )
        matrix = np.column_stack([values, np.ones(len(values))]).astype(np.float64)
        scale = np.maximum(matrix.std(axis=0), 0.3)
        scale[-1] = 0.001
        sides = [_Choices(account, same.astype(np.float64)) for account in (left, right)]
        weights = np.array(start, np.float64)
        for _ in range(40):
            bits = matrix @ weights + offset
            slope = ridge * scale**2 * (weights - start)
            bend = np.diag(ridge * scale**2 + 1e-9)
            for side in sides:
                chance = side.chances(bits)
                slope += matrix.T @ (chance - side.share)
                expected = side.sums(matrix * chance[:, None])
                bend += (matrix * chance[:, None]).T @ matrix - expected.T @ expected
            step = np.linalg.solve(bend, slope) / _LN2
            longest = np.abs(step).max()
            weights -= step * min(1.0, 3.0 / max(longest, 1e-12))
            if longest < 1e-4:
                break
        return weights


class _Choices:
    """Pairs by the account that chooses."""

    def __init__(self, account: Any, same: Any) -> None:
        _, self._account = np.unique(account, return_inverse=True)
        self._count = int(self._account.max(initial=-1)) + 1
        self.share = same / np.maximum(self.sums(same), 1.0)[self._account]

    def sums(self, values: Any) -> Any:
        """Return the sums by account."""
        if values.ndim == 1:
            return np.bincount(self._account, weights=values, minlength=self._count)
        columns = [self.sums(values[:, at]) for at in range(values.shape[1])]
        return np.stack(columns, axis=1)

    def chances(self, bits: Any) -> Any:
        """Return how likely each pair is chosen."""
        odds = np.exp2(np.clip(bits, -60.0, 60.0))
        return odds / (1.0 + self.sums(odds))[self._account]


def _fit_facts(model: Model, everything: Sequence[Pools]) -> Model:
    sample = _Sample()
    for pool in everything:
        vocabulary = Vocabulary()
        columns = tuple(Columns.of(side, vocabulary) for side in pool.accounts)
        pairs = candidates((columns[0], columns[1]))
        found = compare(columns[0], columns[1], pairs).values
        sizes = [len(side) for side in pool.accounts]
        both = len(set(pool.people[0].tolist()) & set(pool.people[1].tolist()))
        prior = model.prior(sizes[0], sizes[1], both / min(sizes))
        near = contributions(model, found).sum(axis=1) / STEPS + prior > -25.0
        kept = (pairs[0][near], pairs[1][near])
        sample.add(kept, found[near], pool.same(*kept), np.full(len(kept[0]), prior))
    weights = sample.fit([*model.weights, 0.0], RIDGE)
    for name in GROUP_FEATURES:
        weights[AT[name]] = BY_HAND[name]
    return with_weights(model, weights)


def _fit_groups(model: Model, everything: Sequence[Pools]) -> Model:
    """Fit what groups say beside the rest, which stays as it is."""
    sample = _Sample()
    at = [AT[name] for name in GROUP_FEATURES]
    for pool in everything:
        found = match(pool.accounts[0], pool.accounts[1], model=model)
        if len(found):
            seen = np.array(found.features(range(len(found))))[:, at]
            rest = found.weight - seen @ np.array(model.weights)[at]
            pairs = (found.left, found.right)
            sample.add(pairs, seen, pool.same(*pairs), rest)
    whole = np.array([*model.weights, 0.0])
    whole[at] = sample.fit([1.0, 1.0, 0.0], 1.0)[:2]
    return with_weights(model, whole)


def _calibrated(model: Model, everything: Sequence[Pools]) -> Model:
    """Choose slope, rivalry and shift by log-loss, with groups and without."""
    slope, rivalry, shift = _calibration(model, everything, groups=True)
    alone = _calibration(model, everything, groups=False)
    return versioned(
        msgspec.structs.replace(model, slope=slope, rivalry=rivalry, shift=shift, alone=alone)
    )


def _calibration(
    model: Model, everything: Sequence[Pools], *, groups: bool
) -> tuple[float, float, float]:
    held = []
    for pool in everything:
        found = match(pool.accounts[0], pool.accounts[1], model=model, groups=groups)
        pairs = (found.left, found.right)
        doubles = find_doubles(found.columns, pairs, found.weight, model)
        held.append((pairs, found.weight, doubles, pool.same(*pairs)))

    def loss(point: Any) -> float:
        tried = _with_point(model, point.tolist())
        total, count = 0.0, 0
        for pairs, weight, doubles, same in held:
            chance = np.clip(probabilities(tried, pairs, weight, doubles), 1e-9, 1 - 1e-9)
            total -= np.log(np.where(same, chance, 1 - chance)).sum()
            count += len(same)
        return float(total / max(count, 1))

    point, step = np.array([model.slope, model.rivalry, model.shift]), np.array([0.2, 0.2, 0.5])
    best = loss(point)
    while step.max() > 0.002:
        moved = False
        for axis in range(3):
            for sign in (-1.0, 1.0):
                tried = point.copy()
                tried[axis] += sign * step[axis]
                if (value := loss(tried)) < best:
                    point, best, moved = tried, value, True
        if not moved:
            step /= 2
    slope, rivalry, shift = (round(value * STEPS) / STEPS for value in point.tolist())
    return slope, rivalry, shift


def _with_point(model: Model, point: Sequence[float]) -> Model:
    slope, rivalry, shift = point
    return msgspec.structs.replace(model, slope=slope, rivalry=rivalry, shift=shift)


def module_text(model: Model) -> str:
    """Return the Python module that carries the model."""
    weights = "\n".join(
        f"        {weight!r},  # {feature.name}"
        for feature, weight in zip(FEATURES, model.weights, strict=True)
    )
    return f'''"""The weights that are shipped, as benchmarks/matching_fit.py writes them."""

from __future__ import annotations

from typing import Final

from resolvers.matching.scoring import Model

SHIPPED: Final = Model(
    version="shipped-{model.version}",
    weights=(
{weights}
    ),
    base={model.base!r},
    slope={model.slope!r},
    rivalry={model.rivalry!r},
    shift={model.shift!r},
    alone={model.alone!r},
)
'''


def main() -> None:
    """Fit, print, and write if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    text = module_text(fitted())
    print(text)
    if parser.parse_args().write:
        SHIPPED_MODULE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
