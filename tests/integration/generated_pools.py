"""Accounts of people of the test population at two platforms, prepared."""

from collections.abc import Sequence

from resolvers.matching import Account, Prepared, prepare
from simulators.people import populate

Pools = tuple[Sequence[Prepared], Sequence[Prepared]]


def pools_of(people: int, seed: int) -> Pools:
    campus = populate(people, seed=seed, half="held-out", platforms=("kolibri", "canvas"))
    names = Account.__dataclass_fields__
    left, right = (
        [prepare(Account(**{name: getattr(row, name) for name in names})) for row in rows]
        for rows in campus.accounts.values()
    )
    return left, right
