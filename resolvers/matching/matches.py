"""Which accounts of two pools are one person: candidates, weights, competition, groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from resolvers.matching.accounts import Prepared
from resolvers.matching.candidates import Blocks, Candidates
from resolvers.matching.clustering import log_odds
from resolvers.matching.columns import UNSEEN, Columns, Floats, Ints, Vocabulary
from resolvers.matching.explaining import Suggestion, evidence_of
from resolvers.matching.groups import GroupLinks
from resolvers.matching.scoring import AT, STEPS, Model, compare, contributions, evidence_bits
from resolvers.matching.shipped import SHIPPED
from resolvers.matching.spreading import spread

_CHUNK: Final = 1 << 13
_KEPT_BITS: Final = -12.0
_ROUNDS: Final = 3
_NEAR_BITS: Final = -5.0
_GOOD_BITS: Final = -4.0
_DOUBLES: Final = 4
_DOUBLE_SHARE: Final = 0.02
_LEAST_OVERLAP: Final = 0.05
_SUPPOSED: Final = 20
"""Accounts whose overlap of one half is supposed beside that of those that are there."""
_CONFIDENT: Final = 0.8
_SLICES_TO_SPREAD: Final = 4

Progress = Callable[[float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Matches:
    """Pairs worth showing, best first, as columns; rows are positions in the pools matched.

    Attributes:
        weight: Bits, the prior among them; a multiple of 1/1024.
        score: The probability that both are one person, after competition.
        prior: Bits that every pair of these pools starts with.
    """

    left: Ints
    right: Ints
    weight: Floats
    score: Floats
    prior: float
    model: Model
    columns: tuple[Columns, Columns]
    links: GroupLinks | None

    def __len__(self) -> int:
        return len(self.left)

    def one_to_one(self) -> Ints:
        """Return positions of pairs, best first, that use each account at most once."""
        seen_left, seen_right, chosen = set[int](), set[int](), []
        for at, (i, j) in enumerate(zip(self.left.tolist(), self.right.tolist(), strict=True)):
            if i not in seen_left and j not in seen_right:
                seen_left.add(i)
                seen_right.add(j)
                chosen.append(at)
        return np.array(chosen, np.int64)

    def log_odds(self) -> Floats:
        """Return bits for ``cluster``: the mean of those before and after competition.

        Where accounts of other providers agree, they may outweigh a rival of the pair alone.
        """
        model = self.model if self.links is not None else self.model.without_groups()
        before = np.clip(model.slope * self.weight + model.shift, -20.0, 20.0)
        return np.asarray(0.5 * (before + log_odds(self.score)), np.float64)

    def features(self, at: Sequence[int]) -> list[tuple[float, ...]]:
        """Return the feature values of pairs, as ``refit`` takes them."""
        values, _ = self._values(np.asarray(at, np.int64))
        return [tuple(row) for row in values.astype(np.float64).tolist()]

    def suggestions(self, at: Sequence[int]) -> list[Suggestion]:
        """Return pairs with their evidence, whose weights and the prior add up to the weight."""
        rows = np.asarray(at, np.int64)
        values, compared = self._values(rows)
        parts = contributions(self.model, values)
        rivals = self._rivals(rows)
        return [
            Suggestion(
                left=int(self.left[row]),
                right=int(self.right[row]),
                weight=float(self.weight[row]),
                prior=self.prior,
                score=float(self.score[row]),
                competitors=rivals[n],
                evidence=evidence_of(
                    self.columns,
                    (int(self.left[row]), int(self.right[row])),
                    values=values[n],
                    parts=parts[n],
                    partner=compared.partner[n],
                    way=compared.way[n],
                ),
            )
            for n, row in enumerate(rows.tolist())
        ]

    def _values(self, at: Ints) -> tuple[npt.NDArray[np.float32], Any]:
        pairs = (self.left[at], self.right[at])
        compared = compare(*self.columns, pairs)
        if self.links is not None:
            self.links.put_values(pairs, compared.values)
        return compared.values, compared

    def _rivals(self, at: Ints) -> list[tuple[tuple[int, int], ...]]:
        """Return, for each pair, the pairs that share one account and are not hopeless."""
        by_left, by_right = _positions(self.left), _positions(self.right)
        found = []
        for row in at.tolist():
            others = [*by_left[int(self.left[row])], *by_right[int(self.right[row])]]
            near = [o for o in others if o != row and self.weight[o] > self.weight[row] - 7.0]
            near.sort(key=lambda other: -self.weight[other])
            found.append(tuple((int(self.left[o]), int(self.right[o])) for o in near[:5]))
        return found


def _positions(column: Ints) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for position, value in enumerate(column.tolist()):
        found.setdefault(value, []).append(position)
    return found


class Weighed(NamedTuple):
    """What was found of the first pool's accounts up to ``end``, from where the one before ended.

    Pairs of rows, in order, with what speaks for them in 1/1024 bit, groups and prior left out.
    """

    end: int
    first: npt.NDArray[np.int32]
    second: npt.NDArray[np.int32]
    steps: npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """How a comparison is done; what comes of it is the same.

    Attributes:
        processes: How many compute at once, where there is enough to do for more than one.
        source: Makes what the pairs come from.
        done: What was weighed before a comparison was cut off; it goes on behind.
        keep: Called with what is weighed, slice by slice, in order.
    """

    processes: int = 1
    source: Callable[[tuple[Columns, Columns]], Candidates] = Blocks
    done: Sequence[Weighed] = ()
    keep: Callable[[Weighed], None] | None = None


def match(
    left: Iterable[Prepared],
    right: Iterable[Prepared],
    *,
    model: Model = SHIPPED,
    decided: Mapping[tuple[int, int], bool] | None = None,
    expected_overlap: float | None = None,
    groups: bool = True,
    progress: Progress | None = None,
    means: Means | None = None,
) -> Matches:
    """Return who of one provider may be who of another.

    Args:
        left: The accounts of one provider.
        right: The accounts of the other.
        model: The weights.
        decided: What people said of pairs of positions: a confirmed pair is returned with
            probability 1 and shuts out all others of its accounts, a rejected one is left out.
        expected_overlap: The share of the smaller pool expected in the other one; estimated
            from the pairs if not given.
        groups: Whether to learn which classes and facilities correspond, and use it.
        progress: Called with the share done, from 0 to 1, now and then.
        means: How it is done.

    Raises:
        WorkerLost: One of several processes ended too early.
    """
    say = progress or (lambda _: None)
    vocabulary = Vocabulary()
    columns = (Columns.of(left, vocabulary), Columns.of(right, vocabulary))
    say(0.1)
    sizes = (columns[0].count, columns[1].count)
    grouped = groups and any(columns[0].groups) and any(columns[1].groups)
    given, model = model, model if grouped else model.without_groups()
    pairs, weight = _weigh(columns, model, means or Means(), lambda done: say(0.1 + 0.6 * done))
    pairs, weight = _as_decided(columns, pairs, weight, model, decided or {})
    prior = model.prior(*sizes, expected_overlap)
    weight += prior
    if expected_overlap is None:
        weight, prior = _with_overlap(pairs, weight, model, sizes)
    kept = weight > _KEPT_BITS
    pairs, weight = (pairs[0][kept], pairs[1][kept]), weight[kept]
    links = None
    say(0.8)
    if grouped:
        weight, links = _with_groups(columns, pairs, weight, model)
        if expected_overlap is None:
            weight, prior = _with_overlap(pairs, weight, model, sizes, prior)
    say(0.9)
    kept = weight > _KEPT_BITS
    pairs, weight = (pairs[0][kept], pairs[1][kept]), weight[kept]
    score = probabilities(model, pairs, weight, find_doubles(columns, pairs, weight, model))
    score[np.isin(_codes(columns, *pairs), _codes(columns, *_decided_so(decided, same=True)))] = 1.0
    order = np.lexsort((pairs[1], pairs[0], -weight, -score))
    say(1.0)
    return Matches(
        left=pairs[0][order],
        right=pairs[1][order],
        weight=weight[order],
        score=score[order],
        prior=prior,
        model=given,
        columns=columns,
        links=links,
    )


def _weigh(
    columns: tuple[Columns, Columns], model: Model, means: Means, say: Progress
) -> tuple[tuple[Ints, Ints], Floats]:
    """Return all candidates, with what speaks for them in bits."""
    done = means.done[-1].end if means.done else 0
    source = means.source(columns)
    slices = [(max(begin, done), end) for begin, end in source.slices if end > done]
    parts = [*means.done]

    def work(number: int) -> Weighed:
        begin, end = slices[number]
        first, second = source.pairs(begin, end)
        steps = np.zeros(len(first), np.int32)
        for at in range(0, len(first), _CHUNK):
            part = slice(at, at + _CHUNK)
            values = compare(*columns, (first[part], second[part])).values
            steps[part] = evidence_bits(model, values) * STEPS
        return Weighed(end, first.astype(np.int32), second.astype(np.int32), steps)

    processes = means.processes if len(slices) >= _SLICES_TO_SPREAD else 1
    for part in spread(work, len(slices), processes):
        parts.append(part)
        if means.keep is not None:
            means.keep(part)
        say(part.end / columns[0].count)
    first, second, steps = (
        np.concatenate([part[at] for part in parts]) if parts else np.zeros(0, np.int32)
        for at in (1, 2, 3)
    )
    return (first.astype(np.int64), second.astype(np.int64)), steps / STEPS


def _as_decided(
    columns: tuple[Columns, Columns],
    pairs: tuple[Ints, Ints],
    weight: Floats,
    model: Model,
    decided: Mapping[tuple[int, int], bool],
) -> tuple[tuple[Ints, Ints], Floats]:
    """Put confirmed pairs in; leave out rejected ones, and all others of confirmed accounts."""
    if not decided:
        return pairs, weight
    confirmed, rejected = (_decided_so(decided, same=same) for same in (True, False))
    mine, theirs = (np.isin(column, said) for column, said in zip(pairs, confirmed, strict=True))
    kept = ~(mine | theirs) & ~np.isin(_codes(columns, *pairs), _codes(columns, *rejected))
    first, second = (
        np.concatenate([column[kept], said]) for column, said in zip(pairs, confirmed, strict=True)
    )
    said = evidence_bits(model, compare(*columns, confirmed).values)
    order = np.argsort(_codes(columns, first, second))
    return (first[order], second[order]), np.concatenate([weight[kept], said])[order]


def _decided_so(decided: Mapping[tuple[int, int], bool] | None, *, same: bool) -> tuple[Ints, Ints]:
    pairs = [pair for pair, said in (decided or {}).items() if said is same]
    columns = np.array(pairs, np.int64).reshape(-1, 2)
    return columns[:, 0], columns[:, 1]


def _codes(columns: tuple[Columns, Columns], first: Ints, second: Ints) -> Ints:
    """Return one number for each pair of rows, in the order of the pairs."""
    return first * np.int64(max(columns[1].count, 1)) + second


def _with_overlap(
    pairs: tuple[Ints, Ints],
    weight: Floats,
    model: Model,
    sizes: tuple[int, int],
    prior: float | None = None,
) -> tuple[Floats, float]:
    """Return weights and prior for the overlap that the pairs themselves speak for."""
    prior = model.prior(*sizes) if prior is None else prior
    for _ in range(_ROUNDS):
        found = float(probabilities(model, pairs, weight).sum()) + 0.5 * _SUPPOSED
        overlap = found / (min(sizes) + _SUPPOSED)
        fitting = model.prior(*sizes, max(overlap, _LEAST_OVERLAP))
        weight, prior = weight + (fitting - prior), fitting
    return weight, prior


def _with_groups(
    columns: tuple[Columns, Columns], pairs: tuple[Ints, Ints], weight: Floats, model: Model
) -> tuple[Floats, GroupLinks]:
    """Weigh again with what confident pairs say of which groups correspond.

    Twice: first only pairs that may be right, to know more of the confident ones.
    """
    near = np.nonzero(weight > _NEAR_BITS)[0]
    some = (pairs[0][near], pairs[1][near])
    links = _learnt(columns, some, weight[near], model)
    better = weight[near] + _bits_of_groups(links, some, model)
    links = _learnt(columns, some, better, model)
    return weight + _bits_of_groups(links, pairs, model), links


def _learnt(
    columns: tuple[Columns, Columns], pairs: tuple[Ints, Ints], weight: Floats, model: Model
) -> GroupLinks:
    score = probabilities(model, pairs, weight)
    return GroupLinks(columns, _one_to_one(pairs, score, score > _CONFIDENT))


def _bits_of_groups(links: GroupLinks, pairs: tuple[Ints, Ints], model: Model) -> Floats:
    bits = np.zeros(len(pairs[0]), np.float64)
    same, other = (model.weights[AT[name]] * STEPS for name in ("groups_same", "groups_other"))
    for begin in range(0, len(bits), _CHUNK):
        part = slice(begin, begin + _CHUNK)
        values = links.values((pairs[0][part], pairs[1][part]))
        bits[part] = np.rint(values * np.where(values > 0, same, other)) / STEPS
    return bits


def _one_to_one(
    pairs: tuple[Ints, Ints], score: Floats, sure: npt.NDArray[np.bool_]
) -> tuple[Ints, Ints]:
    """Return the sure pairs, of each account the best one only."""
    at = np.nonzero(sure)[0]
    at = at[np.argsort(-score[at], kind="stable")]
    at = at[np.sort(np.unique(pairs[0][at], return_index=True)[1])]
    at = at[np.sort(np.unique(pairs[1][at], return_index=True)[1])]
    return pairs[0][at], pairs[1][at]


class Doubles(NamedTuple):
    """Rivals that may be second accounts of one person, and so no rivals.

    ``pair`` and ``rival`` are positions in the pairs, of the same account on one side;
    ``chance`` is how likely the other two are accounts of one person at one provider.
    """

    pair: Ints
    rival: Ints
    chance: Floats


def find_doubles(
    columns: tuple[Columns, Columns], pairs: tuple[Ints, Ints], weight: Floats, model: Model
) -> Doubles:
    """Compare the best candidates of an account, where several are good, with one another."""
    parts = []
    bits = model.slope * weight + model.shift
    good = np.nonzero(bits > _GOOD_BITS)[0]
    for side in (0, 1):
        order = good[np.lexsort((-weight[good], pairs[side][good]))]
        owner, other = pairs[side][order], pairs[1 - side][order]
        for apart in range(1, _DOUBLES):
            at = np.nonzero(owner[apart:] == owner[:-apart])[0]
            here, there = order[at], order[at + apart]
            rows = (other[at], other[at + apart])
            values = compare(columns[1 - side], columns[1 - side], rows).values
            own = evidence_bits(model, values)
            size = columns[1 - side].count + UNSEEN
            own += model.prior(size, size, _DOUBLE_SHARE)
            chance = 1.0 / (1.0 + np.exp2(-np.clip(own, -60.0, 60.0)))
            parts += [(here, there, chance), (there, here, chance)]
    found = [np.concatenate([part[n] for part in parts]) for n in range(3)]
    return Doubles(found[0], found[1], found[2])


def probabilities(
    model: Model, pairs: tuple[Ints, Ints], weight: Floats, doubles: Doubles | None = None
) -> Floats:
    """Return the probability of each pair, given that an account has one counterpart at most.

    Those of one account add up to 1 at most, but for second accounts of one person.
    """
    if not len(weight):
        return np.zeros(0, np.float64)
    calibrated = model.slope * weight + model.shift
    odds = np.exp2(np.clip(calibrated, -60.0, 60.0))
    rivals = np.add(*_rivalry(pairs, odds, doubles))
    bits = calibrated - model.rivalry * np.log2(1.0 + rivals)
    chance = 1.0 / (1.0 + np.exp2(-np.clip(bits, -60.0, 60.0)))
    most = np.maximum(*_rivalry(pairs, chance, doubles)) + chance
    return np.asarray(chance / np.maximum(1.0, most), np.float64)


def _rivalry(
    pairs: tuple[Ints, Ints], values: Floats, doubles: Doubles | None
) -> tuple[Floats, Floats]:
    """Return for each pair the values of the rivals for its left and for its right account."""
    sums = []
    for side in (0, 1):
        rivals = np.bincount(pairs[side], weights=values)[pairs[side]] - values
        if doubles is not None:
            shared = pairs[side][doubles.pair] == pairs[side][doubles.rival]
            at, rival = doubles.pair[shared], doubles.rival[shared]
            np.subtract.at(rivals, at, values[rival] * doubles.chance[shared])
        sums.append(np.maximum(rivals, 0.0))
    return sums[0], sums[1]
