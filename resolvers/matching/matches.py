"""Which accounts of two pools are one person: candidates, weights, competition, groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from resolvers.matching.accounts import Prepared
from resolvers.matching.candidates import Blocks, Candidates
from resolvers.matching.clustering import log_odds
from resolvers.matching.columns import UNSEEN, Columns, Floats, Ints, Vocabulary
from resolvers.matching.explaining import Suggestion, evidence_of
from resolvers.matching.groups import Circles, GroupLinks
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
_PAIRS_AT_ONCE: Final = 1 << 20
_SUGGESTED_AT_ONCE: Final = 1000
_GROUPED_AT_ONCE: Final = 1 << 18
_RIVALS_FITTED: Final = 10

_Whole: TypeAlias = npt.NDArray[np.int32] | npt.NDArray[np.int64]

Progress = Callable[[float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Matches:
    """Pairs worth showing, best first, as columns; rows are positions in the pools matched.

    Attributes:
        weight: Bits, the prior among them; a multiple of 1/1024.
        score: The probability that both are one person, after competition.
        prior: Bits that every pair of these pools starts with.
        compared: How many pairs were weighed for it.
    """

    left: Ints
    right: Ints
    weight: Floats
    score: Floats
    prior: float
    model: Model
    columns: tuple[Columns, Columns]
    links: GroupLinks | None
    compared: int

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
        """Return the feature values of pairs."""
        values, _ = self._values(np.asarray(at, np.int64))
        return [tuple(row) for row in values.astype(np.float64).tolist()]

    def with_rivals(self, at: Sequence[int]) -> list[tuple[tuple[float, ...], Floats]]:
        """Return the feature values of pairs, each with a row for each rival, for ``refit``.

        Rivals are the pairs that share an account with it, the heaviest if they are many.
        """
        if not at:
            return []
        sides = (_Positions(self.left), _Positions(self.right))
        rivals = [self._sharing(row, sides)[:_RIVALS_FITTED] for row in at]
        rows = [row for some in rivals for row in some]
        values = self._values(np.array(rows, np.int64))[0].astype(np.float64)
        ends = np.cumsum([len(some) for some in rivals])[:-1]
        return list(zip(self.features(at), np.split(values, ends), strict=True))

    def suggestions(self, at: Sequence[int]) -> list[Suggestion]:
        """Return pairs with their evidence, whose weights and the prior add up to the weight."""
        return list(self.each_suggestion(at))

    def each_suggestion(self, at: Sequence[int]) -> Iterator[Suggestion]:
        """Yield the same one by one, so that they need not be in memory all at once."""
        sides = (_Positions(self.left), _Positions(self.right))
        for begin in range(0, len(at), _SUGGESTED_AT_ONCE):
            rows = np.asarray(at[begin : begin + _SUGGESTED_AT_ONCE], np.int64)
            values, compared = self._values(rows)
            parts = contributions(self.model, values)
            for n, row in enumerate(rows.tolist()):
                yield Suggestion(
                    left=int(self.left[row]),
                    right=int(self.right[row]),
                    weight=float(self.weight[row]),
                    prior=self.prior,
                    score=float(self.score[row]),
                    competitors=self._rivals(row, sides),
                    evidence=evidence_of(
                        self.columns,
                        (int(self.left[row]), int(self.right[row])),
                        values=values[n],
                        parts=parts[n],
                        partner=compared.partner[n],
                        way=compared.way[n],
                    ),
                )

    def _values(self, at: Ints) -> tuple[npt.NDArray[np.float32], Any]:
        pairs = (self.left[at], self.right[at])
        compared = compare(*self.columns, pairs)
        if self.links is not None:
            self.links.put_values(pairs, compared.values)
        return compared.values, compared

    def _rivals(
        self, row: int, sides: tuple[_Positions, _Positions]
    ) -> tuple[tuple[int, int], ...]:
        """Return the pairs that share one account with a pair and are not hopeless."""
        others = self._sharing(row, sides, least=float(self.weight[row]) - 7.0)
        return tuple((int(self.left[o]), int(self.right[o])) for o in others[:5])

    def _sharing(
        self, row: int, sides: tuple[_Positions, _Positions], *, least: float = -math.inf
    ) -> list[int]:
        """Return where the pairs are that share one account with a pair, the heaviest first."""
        others = [*sides[0].of(self.left[row]), *sides[1].of(self.right[row])]
        heavy = [o for o in others if o != row and self.weight[o] > least]
        return sorted(heavy, key=lambda other: -self.weight[other])


class _Positions:
    """Where in a column each value is."""

    def __init__(self, column: Ints) -> None:
        self._order = np.argsort(column, kind="stable")
        self._values = column[self._order]

    def of(self, value: np.int64) -> list[int]:
        begin = np.searchsorted(self._values, value, "left")
        end = np.searchsorted(self._values, value, "right")
        found: list[int] = self._order[begin:end].tolist()
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
        folder: Where to write what is weighed, for pools of which it does not fit in memory.
        done: What was weighed before a comparison was cut off; it goes on behind.
        keep: Called with what is weighed, slice by slice, in order.
    """

    processes: int = 1
    source: Callable[[tuple[Columns, Columns]], Candidates] = Blocks
    folder: Path | None = None
    done: Iterable[Weighed] = ()
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
    vocabulary = Vocabulary()
    columns = (Columns.of(left, vocabulary), Columns.of(right, vocabulary))
    return match_columns(
        columns,
        model=model,
        decided=decided,
        expected_overlap=expected_overlap,
        groups=groups,
        progress=progress,
        means=means,
    )


def match_columns(
    columns: tuple[Columns, Columns],
    *,
    model: Model = SHIPPED,
    decided: Mapping[tuple[int, int], bool] | None = None,
    expected_overlap: float | None = None,
    groups: bool = True,
    progress: Progress | None = None,
    means: Means | None = None,
) -> Matches:
    """Do the same with accounts that are columns of one vocabulary already."""
    say = progress or (lambda _: None)
    say(0.1)
    sizes = (columns[0].count, columns[1].count)
    grouped = groups and any(columns[0].groups) and any(columns[1].groups)
    given, model = model, model if grouped else model.without_groups()
    everything = _weigh(columns, model, means or Means(), lambda done: say(0.1 + 0.6 * done))
    everything = _as_decided(columns, everything, model, decided or {})
    prior = model.prior(*sizes, expected_overlap)
    if expected_overlap is None:
        prior = _fitting_prior(everything, prior, model, sizes)
    compared = len(everything.first)
    pairs, weight = _worth(everything, prior)
    del everything
    links = None
    say(0.8)
    if grouped:
        weight, links = _with_groups(columns, pairs, weight, model)
        if expected_overlap is None:
            before, steps = prior, np.rint((weight - prior) * STEPS).astype(np.int64)
            prior = _fitting_prior(_Found(*pairs, steps), prior, model, sizes)
            weight += prior - before
    say(0.9)
    kept = weight > _KEPT_BITS
    pairs, weight = (pairs[0][kept], pairs[1][kept]), weight[kept]
    score = probabilities(model, pairs, weight, find_doubles(columns, pairs, weight, model))
    score[np.isin(_codes(columns, *pairs), _codes(columns, *_decided_so(decided, same=True)))] = 1.0
    order = np.lexsort((-weight, -score))  # of equals, the pairs in the order they are in
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
        compared=compared,
    )


class _Found(NamedTuple):
    """Pairs of rows, in order, and what speaks for each in 1/1024 bit, without the prior."""

    first: _Whole
    second: _Whole
    steps: _Whole

    def parts(self) -> Iterator[slice]:
        """Return slices of so many pairs as are to be looked at together."""
        for begin in range(0, len(self.first), _PAIRS_AT_ONCE):
            yield slice(begin, begin + _PAIRS_AT_ONCE)


def _weigh(columns: tuple[Columns, Columns], model: Model, means: Means, say: Progress) -> _Found:
    """Return all candidates, weighed."""
    parts = _weighed(columns, model, means, say)
    if means.folder is None:
        known = [*parts]
        first, second, steps = (
            np.concatenate([np.zeros(0, np.int32), *(part[at] for part in known)])
            for at in (1, 2, 3)
        )
        return _Found(first, second, steps)
    names = [means.folder / name for name in ("first", "second", "steps")]
    count = 0
    with names[0].open("wb") as one, names[1].open("wb") as two, names[2].open("wb") as three:
        for part in parts:
            count += len(part.first)
            for file, column in zip((one, two, three), part[1:], strict=True):
                file.write(column.tobytes())
    if not count:  # of which no map can be made
        return _Found(*(np.zeros(0, np.int32) for _ in names))
    return _Found(*(np.memmap(name, np.int32, "r") for name in names))


def _weighed(
    columns: tuple[Columns, Columns], model: Model, means: Means, say: Progress
) -> Iterator[Weighed]:
    done = 0
    for part in means.done:
        done = part.end
        yield part
    source = means.source(columns)
    slices = [(max(begin, done), end) for begin, end in source.slices if end > done]

    def work(number: int) -> Weighed:
        begin, end = slices[number]
        first, second = source.pairs(begin, end)
        steps = np.zeros(len(first), np.int32)
        for at in range(0, len(first), _CHUNK):
            some = slice(at, at + _CHUNK)
            values = compare(*columns, (first[some], second[some])).values
            steps[some] = evidence_bits(model, values) * STEPS
        return Weighed(end, first.astype(np.int32), second.astype(np.int32), steps)

    processes = means.processes if len(slices) >= _SLICES_TO_SPREAD else 1
    for part in spread(work, len(slices), processes):
        if means.keep is not None:
            means.keep(part)
        yield part
        say(part.end / columns[0].count)


def _worth(found: _Found, prior: float) -> tuple[tuple[Ints, Ints], Floats]:
    """Return the pairs that are not hopeless, with their weights."""
    least = (_KEPT_BITS - prior) * STEPS
    at = [np.nonzero(found.steps[part] > least)[0] + part.start for part in found.parts()]
    kept = np.concatenate([np.zeros(0, np.int64), *at])
    first, second = found.first[kept].astype(np.int64), found.second[kept].astype(np.int64)
    return (first, second), found.steps[kept] / STEPS + prior


def _as_decided(
    columns: tuple[Columns, Columns],
    found: _Found,
    model: Model,
    decided: Mapping[tuple[int, int], bool],
) -> _Found:
    """Put confirmed pairs in; leave out rejected ones, and all others of confirmed accounts."""
    if not decided:
        return found
    confirmed, rejected = (_decided_so(decided, same=same) for same in (True, False))
    gone = _codes(columns, *rejected)
    parts = [
        part.start
        + np.nonzero(
            ~np.isin(found.first[part], confirmed[0])
            & ~np.isin(found.second[part], confirmed[1])
            & ~np.isin(_codes(columns, found.first[part], found.second[part]), gone)
        )[0]
        for part in found.parts()
    ]
    kept = np.concatenate([np.zeros(0, np.int64), *parts])
    said = evidence_bits(model, compare(*columns, confirmed).values) * STEPS
    first = np.concatenate([found.first[kept], confirmed[0]])
    second = np.concatenate([found.second[kept], confirmed[1]])
    steps = np.concatenate([found.steps[kept], said.astype(np.int64)])
    order = np.argsort(_codes(columns, first, second))
    return _Found(first[order], second[order], steps[order])


def _decided_so(decided: Mapping[tuple[int, int], bool] | None, *, same: bool) -> tuple[Ints, Ints]:
    pairs = [pair for pair, said in (decided or {}).items() if said is same]
    columns = np.array(pairs, np.int64).reshape(-1, 2)
    return columns[:, 0], columns[:, 1]


def _codes(columns: tuple[Columns, Columns], first: _Whole, second: _Whole) -> Ints:
    """Return one number for each pair of rows, in the order of the pairs."""
    return first.astype(np.int64) * np.int64(max(columns[1].count, 1)) + second


def _fitting_prior(found: _Found, prior: float, model: Model, sizes: tuple[int, int]) -> float:
    """Return the prior for the overlap that the pairs themselves speak for."""
    for _ in range(_ROUNDS):
        both = _expected_matches(found, prior, model, sizes) + 0.5 * _SUPPOSED
        prior = model.prior(*sizes, max(both / (min(sizes) + _SUPPOSED), _LEAST_OVERLAP))
    return prior


def _expected_matches(found: _Found, prior: float, model: Model, sizes: tuple[int, int]) -> float:
    """Return the sum of the pairs' probabilities, without more than a part of them in memory."""
    odds, chances = _Rivalry(found, sizes), _Rivalry(found, sizes)
    both = 0.0

    def chances_of(part: slice) -> Floats:
        bits = model.slope * (found.steps[part] / STEPS + prior) + model.shift
        return _chances(model, bits, np.add(*odds.rivals(part, _odds(bits))))

    for part in found.parts():
        odds.add(part, _odds(model.slope * (found.steps[part] / STEPS + prior) + model.shift))
    for part in found.parts():
        chances.add(part, chances_of(part))
    for part in found.parts():
        chance = chances_of(part)
        both += float(_shared(chance, chances.rivals(part, chance)).sum())
    return both


class _Rivalry:
    """Sums of what all pairs of an account have, part by part."""

    def __init__(self, found: _Found, sizes: tuple[int, int]) -> None:
        self._rows = found[:2]
        self._sums = [np.zeros(size, np.float64) for size in sizes]

    def add(self, part: slice, values: Floats) -> None:
        for rows, sums in zip(self._rows, self._sums, strict=True):
            np.add.at(sums, rows[part], values)

    def rivals(self, part: slice, values: Floats) -> tuple[Floats, Floats]:
        """Return what the rivals of each pair of a part have, for either of its accounts."""
        left, right = (
            np.maximum(sums[rows[part]] - values, 0.0)
            for rows, sums in zip(self._rows, self._sums, strict=True)
        )
        return left, right


def _with_groups(
    columns: tuple[Columns, Columns], pairs: tuple[Ints, Ints], weight: Floats, model: Model
) -> tuple[Floats, GroupLinks]:
    """Weigh again with what confident pairs say of which groups correspond.

    Twice: first only pairs that may be right, to know more of the confident ones.
    """
    near = np.nonzero(weight > _NEAR_BITS)[0]
    some = (pairs[0][near], pairs[1][near])
    circles = (Circles(columns[0]), Circles(columns[1]))
    links = _learnt(circles, some, weight[near], model)
    better = weight[near] + _bits_of_groups(links, some, model)
    links = _learnt(circles, some, better, model)
    return weight + _bits_of_groups(links, pairs, model), links


def _learnt(
    circles: tuple[Circles, Circles], pairs: tuple[Ints, Ints], weight: Floats, model: Model
) -> GroupLinks:
    score = probabilities(model, pairs, weight)
    return GroupLinks(circles, _one_to_one(pairs, score, score > _CONFIDENT))


def _bits_of_groups(links: GroupLinks, pairs: tuple[Ints, Ints], model: Model) -> Floats:
    bits = np.zeros(len(pairs[0]), np.float64)
    same, other = (model.weights[AT[name]] * STEPS for name in ("groups_same", "groups_other"))
    for begin in range(0, len(bits), _GROUPED_AT_ONCE):
        part = slice(begin, begin + _GROUPED_AT_ONCE)
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
    bits = model.slope * weight + model.shift
    chance = _chances(model, bits, np.add(*_rivalry(pairs, _odds(bits), doubles)))
    return _shared(chance, _rivalry(pairs, chance, doubles))


def _odds(bits: Floats) -> Floats:
    return np.exp2(np.clip(bits, -60.0, 60.0))


def _chances(model: Model, bits: Floats, rivals: Floats) -> Floats:
    """Return how probable pairs are beside the odds of their rivals."""
    left = bits - model.rivalry * np.log2(1.0 + rivals)
    return np.asarray(1.0 / (1.0 + _odds(-left)), np.float64)


def _shared(chance: Floats, rivals: tuple[Floats, Floats]) -> Floats:
    """Return probabilities so small that those of one account add up to 1 at most."""
    most = np.maximum(*rivals) + chance
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
