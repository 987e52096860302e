"""Weights drawn towards what people decided, taken only if they foretell decisions better."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final, TypeAlias

import msgspec
import numpy as np

from resolvers.matching.columns import Floats
from resolvers.matching.scoring import AT, STEPS, Model

Features: TypeAlias = tuple[float, ...]

MIN_DECISIONS: Final = 100
_FOLDS: Final = 5
_RIDGE: Final = 4.0
_LN2: Final = float(np.log(2.0))


def refit(
    model: Model, decisions: Sequence[tuple[Features, bool]], *, prior: float = -12.0
) -> Model | None:
    """Return a model drawn towards decisions; ``None`` if there are too few or it is no better.

    The weights are those of a logistic regression with a ridge towards the given model's, on
    the scale that the model turns into probabilities. ``prior`` is the bits that a pair starts
    with. Better means a lower log-loss on decisions that were held out, in five parts.
    """
    if len(decisions) < MIN_DECISIONS:
        return None
    values = np.array([features for features, _ in decisions], np.float64)
    grouped = values[:, [AT["groups_same"], AT["groups_other"]]].any()
    scale = model if grouped else model.without_groups()
    values, prior = scale.slope * values, scale.slope * prior + scale.shift
    same = np.array([decision for _, decision in decisions], np.float64)
    if same.all() or not same.any():
        return None
    fold = np.random.default_rng(0).permutation(len(same)) % _FOLDS
    before = np.zeros(len(same))
    after = np.zeros(len(same))
    start = np.array([*model.weights, 0.0])
    for part in range(_FOLDS):
        inside, outside = fold != part, fold == part
        fitted = fit_weights(values[inside], same[inside], start, prior=prior, ridge=_RIDGE)
        before[outside] = _losses(values[outside], same[outside], start, prior)
        after[outside] = _losses(values[outside], same[outside], fitted, prior)
    if after.mean() >= before.mean():
        return None
    fitted = fit_weights(values, same, start, prior=prior, ridge=_RIDGE)
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


def fit_weights(
    values: Floats,
    same: Floats,
    start: Floats,
    *,
    prior: float | Floats,
    ridge: float,
) -> Floats:
    """Return weights and shift in bits that minimise log-loss plus a ridge towards ``start``.

    The ridge holds the weight of a value the more the less it varies, so that what is nearly
    always the same does not take the place of the shift.
    """
    matrix = np.column_stack([values, np.ones(len(values))])
    scale = np.maximum(matrix.std(axis=0), 0.3)
    scale[-1] = 0.5
    weights = start.copy()
    for _ in range(30):
        bits = matrix @ weights + prior
        chance = 1.0 / (1.0 + np.exp2(-np.clip(bits, -60, 60)))
        slope = matrix.T @ (chance - same) * _LN2
        slope += ridge * _LN2**2 * scale**2 * (weights - start)
        spread = np.maximum(chance * (1 - chance), 1e-9)
        bend = (matrix * spread[:, None]).T @ matrix * _LN2**2
        bend += np.diag(ridge * _LN2**2 * scale**2 + 1e-9)
        step = np.linalg.solve(bend, slope)
        longest = np.abs(step).max()
        weights -= step * min(1.0, 4.0 / max(longest, 1e-12))
        if longest < 1e-6:
            break
    return np.asarray(weights, np.float64)


def _losses(values: Floats, same: Floats, weights: Floats, prior: float) -> Floats:
    bits = np.clip(values @ weights[:-1] + weights[-1] + prior, -60, 60)
    return np.asarray(np.logaddexp(0.0, np.where(same > 0, -bits, bits) * _LN2), np.float64)
