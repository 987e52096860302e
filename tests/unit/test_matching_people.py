"""The test population, and what the shipped weights make of a small one they never saw."""

from collections import Counter

import numpy as np
import pytest

from resolvers.matching import Account, Prepared, cluster, log_odds, match, prepare
from simulators.people import Campus, PlatformAccount, populate


def _prepared(row: PlatformAccount) -> Prepared:
    names = Account.__dataclass_fields__
    return prepare(Account(**{name: getattr(row, name) for name in names}))


@pytest.fixture(scope="module")
def campus() -> Campus:
    return populate(600, seed=22, half="held-out")


def test_the_same_seed_makes_the_same_people_and_another_one_others(campus: Campus) -> None:
    again = populate(600, seed=22, half="held-out")
    other = populate(600, seed=23, half="held-out")

    assert again.accounts == campus.accounts
    assert other.accounts != campus.accounts
    assert len(campus.people) == 600
    assert list(campus.accounts) == ["kolibri", "kolibri2", "canvas", "moodle", "openedx"]


def test_the_halves_share_hardly_a_name_and_differ_in_their_fifth_platform() -> None:
    names = []
    for half in ("development", "held-out"):
        people = populate(2000, seed=1, half=half).people
        names.append({(p.locale, part.native) for p in people for part in (p.given, p.family)})

    assert len(names[0] & names[1]) / len(names[0]) < 0.02
    assert "classroom" in populate(1, seed=1).accounts


def test_platforms_report_other_fields_and_some_people_have_two_accounts(campus: Campus) -> None:
    kolibri, canvas = campus.accounts["kolibri"], campus.accounts["canvas"]

    assert all(row.email is None for row in kolibri)
    assert any(row.birth_year for row in kolibri)
    assert all(row.birth_year is None for row in canvas)
    assert any(row.family_name for row in canvas)
    assert all(row.time_zone is None for row in kolibri)
    held = Counter(row.person for row in kolibri)
    assert sum(count > 1 for count in held.values()) > 3
    assert {p.relation for p in campus.people} == {"", "sibling", "twin", "namesake"}


def test_the_shipped_weights_find_who_is_who_among_people_they_never_saw(campus: Campus) -> None:
    rows = [campus.accounts["kolibri"], campus.accounts["canvas"]]

    found = match(*([_prepared(row) for row in side] for side in rows))

    chosen = found.one_to_one()
    chosen = chosen[found.score[chosen] > 0.5]
    people = [np.array([row.person for row in side]) for side in rows]
    right = int((people[0][found.left[chosen]] == people[1][found.right[chosen]]).sum())
    both = len(set(people[0].tolist()) & set(people[1].tolist()))
    assert right / len(chosen) > 0.9
    assert right / both > 0.85


def test_accounts_of_five_platforms_become_persons_with_one_account_each(campus: Campus) -> None:
    sides = [[_prepared(row) for row in side] for side in campus.accounts.values()]
    starts = np.cumsum([0] + [len(side) for side in sides])
    columns: list[list[np.ndarray]] = [[], [], []]
    for a in range(5):
        for b in range(a):
            found = match(sides[a], sides[b])
            columns[0].append(found.left + starts[a])
            columns[1].append(found.right + starts[b])
            columns[2].append(log_odds(found.score))
    provider = np.repeat(np.arange(5), np.diff(starts)).tolist()

    persons = cluster(
        int(starts[-1]),
        provider,
        (np.concatenate(columns[0]), np.concatenate(columns[1]), np.concatenate(columns[2])),
    )

    assert len(set(zip(persons, provider, strict=True))) == len(persons)
    truth = [row.person for side in campus.accounts.values() for row in side]
    said = _pairs(persons)
    true = _pairs(truth)
    assert len(said & true) / len(said) > 0.93
    assert len(said & true) / len(true) > 0.85


def _pairs(labels: list[int]) -> set[tuple[int, int]]:
    members: dict[int, list[int]] = {}
    for position, label in enumerate(labels):
        members.setdefault(label, []).append(position)
    return {(a, b) for held in members.values() for a in held for b in held if a < b}
