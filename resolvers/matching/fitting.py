"""Weights drawn towards what people decided, taken only if they foretell decisions better."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple, TypeAlias

import msgspec
import numpy as np

from resolvers.matching.columns import Flags, Floats, Ints
from resolvers.matching.scoring import AT, STEPS, Model

Features: TypeAlias = tuple[float, ...]

MIN_DECISIONS: Final = 100
_FOLDS: Final = 5
_RIDGE: Final = 8.0
_SHIFT_SCALE: Final = 0.25
_LEAST_SCALE: Final = 0.3
_LONGEST_STEP: Final = 4.0
_HALVED: Final = 6
_LEAST_GAIN: Final = 1e-4
_LN2: Final = float(np.log(2.0))


class Decided(NamedTuple):
    """A pair that somebody decided on.

    Attributes:
        values: What was seen of the pair.
        rivals: A row for each pair that shares an account with it, by ``Matches.with_rivals``.
        same: Whether both accounts are one person's.
    """

    values: Features
    rivals: Floats
    same: bool


def refit(model: Model, decisions: Sequence[Decided], *, prior: float = -12.0) -> Model | None:
    """Return a model drawn towards decisions; ``None`` if there are too few or it is no better.

    The weights make what was decided likely as probabilities are made: beside the rivals of each
    pair, which a shift moves too. A ridge draws them towards the given model's, so that decisions
    may all be the same. ``prior`` is the bits that a pair starts with. Better means a lower
    log-loss on decisions that were held out, in five parts.
    """
    if len(decisions) < MIN_DECISIONS:
        return None
    cases = _Cases.of(decisions)
    scale = model if cases.grouped() else model.without_groups()
    cases = cases.on_scale(scale, prior)
    fold = np.random.default_rng(0).permutation(len(decisions)) % _FOLDS
    start = np.array([*model.weights, 0.0])
    after = np.zeros(len(decisions))
    for part in range(_FOLDS):
        inside, outside = cases.some(fold != part), cases.some(fold == part)
        after[fold == part] = outside.losses(inside.fit(start))
    if after.mean() >= cases.losses(start).mean():
        return None
    fitted = cases.fit(start)
    fitted[-1] /= scale.slope
    return with_weights(model, fitted)


def with_weights(model: Model, fitted: Floats) -> Model:
    """Return the model with other weights, its base moved by the last of them.

    The version is made from the content.
    """
    rounded = tuple((np.rint(fitted * STEPS) / STEPS).tolist())
    return versioned(
        msgspec.structs.replace(model, weights=rounded[:-1], base=model.base + rounded[-1])
    )


def versioned(model: Model) -> Model:
    """Return the model with a version that says what it holds."""
    content = msgspec.json.encode(msgspec.structs.replace(model, version=""))
    return msgspec.structs.replace(model, version=hashlib.sha256(content).hexdigest()[:12])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cases:
    """Decisions as matrices, with a last column of ones for the shift.

    ``owner`` tells whose rival each row of ``rivals`` is, in order. ``prior`` are the bits of
    every pair, and ``rivalry`` is the model's.
    """

    values: Floats
    rivals: Floats
    owner: Ints
    same: Floats
    prior: float = 0.0
    rivalry: float = 0.0

    @classmethod
    def of(cls, decisions: Sequence[Decided]) -> _Cases:
        values = np.array([decision.values for decision in decisions], np.float64)
        rivals = np.concatenate([decision.rivals for decision in decisions])
        counts = [len(decision.rivals) for decision in decisions]
        return cls(
            values=np.column_stack([values, np.ones(len(values))]),
            rivals=np.column_stack([rivals, np.ones(len(rivals))]),
            owner=np.repeat(np.arange(len(values)), counts),
            same=np.array([decision.same for decision in decisions], np.float64),
        )

    def grouped(self) -> bool:
        """Return whether anything is known of groups."""
        return bool(self.values[:, [AT["groups_same"], AT["groups_other"]]].any())

    def on_scale(self, model: Model, prior: float) -> _Cases:
        """Return the same on the scale that the model turns into probabilities."""
        slopes = np.append(np.full(self.values.shape[1] - 1, model.slope), 1.0)
        return replace(
            self,
            values=self.values * slopes,
            rivals=self.rivals * slopes,
            prior=model.slope * prior + model.shift,
            rivalry=model.rivalry,
        )

    def some(self, chosen: Flags) -> _Cases:
        """Return those cases alone."""
        numbers = np.cumsum(chosen) - 1
        kept = chosen[self.owner]
        return replace(
            self,
            values=self.values[chosen],
            same=self.same[chosen],
            rivals=self.rivals[kept],
            owner=numbers[self.owner[kept]],
        )

    def losses(self, weights: Floats) -> Floats:
        """Return how surprising each decision is."""
        bits = self._bits(weights)[0]
        against = np.where(self.same > 0, -bits, bits)
        return np.asarray(np.logaddexp(0.0, against * _LN2), np.float64)

    def fit(self, start: Floats) -> Floats:
        """Return weights and shift in bits that minimise log-loss plus a ridge to ``start``.

        Newton's method, as if what rivals have did not bend. The ridge holds the weight of a
        value the more the less it varies, so that what is nearly always the same does not take
        the place of the shift.
        """
        scale = np.maximum(self.values.std(axis=0), _LEAST_SCALE)
        scale[-1] = _SHIFT_SCALE
        ridge = _RIDGE * _LN2**2 * scale**2

        def total(tried: Floats) -> float:
            return float(self.losses(tried).sum() + 0.5 * (ridge * (tried - start) ** 2).sum())

        weights, loss = start, total(start)
        while True:
            bits, shares = self._bits(weights)
            seen = self.values - self.rivalry * self._summed(self.rivals * shares[:, None])
            chance = 1.0 / (1.0 + np.exp2(-bits))
            slope = seen.T @ (chance - self.same) * _LN2 + ridge * (weights - start)
            spread = np.maximum(chance * (1 - chance), 1e-9)
            bend = (seen * spread[:, None]).T @ seen * _LN2**2 + np.diag(ridge)
            step = np.linalg.solve(bend, slope)
            step *= min(1.0, _LONGEST_STEP / max(np.abs(step).max(), 1e-12))
            tried = [weights - step / 2**halved for halved in range(_HALVED)]
            losses = [total(each) for each in tried]
            best = int(np.argmin(losses))
            if loss - losses[best] < _LEAST_GAIN:
                return weights
            weights, loss = tried[best], losses[best]

    def _bits(self, weights: Floats) -> tuple[Floats, Floats]:
        """Return the bits of each pair beside its rivals, and the share of each in those."""
        odds = np.exp2(np.clip(self.rivals @ weights + self.prior, -60.0, 60.0))
        rivals = np.bincount(self.owner, odds, minlength=len(self.same))
        bits = self.values @ weights + self.prior - self.rivalry * np.log2(1.0 + rivals)
        return np.clip(bits, -60.0, 60.0), odds / (1.0 + rivals[self.owner])

    def _summed(self, rows: Floats) -> Floats:
        """Return, case by case, the sum of the rows of its rivals."""
        sums = np.zeros(self.values.shape)
        owners, begins = np.unique(self.owner, return_index=True)
        sums[owners] = np.add.reduceat(rows, begins, axis=0)
        return sums
