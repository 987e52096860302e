"""Who among many accounts one account may be, answered at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from resolvers.matching.accounts import Prepared
from resolvers.matching.columns import WEAK_KINDS, Columns, Vocabulary, keys_of
from resolvers.matching.explaining import Suggestion, evidence_of
from resolvers.matching.matches import probabilities
from resolvers.matching.scoring import STEPS, Model, compare, contributions
from resolvers.matching.shipped import SHIPPED

_STRONG_CAP: Final = 200
_WEAK_CAP: Final = 30
_MAX_CANDIDATES: Final = 400


class Index:
    """Accounts by blocking key; an account keeps its position until it is removed."""

    def __init__(self, model: Model = SHIPPED) -> None:
        self.model = model
        self._vocabulary = Vocabulary()
        self._columns = Columns(self._vocabulary)
        self._by_key: dict[int, list[int]] = {}
        self._live: list[bool] = []

    @classmethod
    def build(cls, accounts: Sequence[Prepared], model: Model = SHIPPED) -> Index:
        """Return an index of accounts; their positions are those in the sequence."""
        index = cls(model)
        for account in accounts:
            index._columns.append(account)
            index._live.append(True)
        for begin in range(0, len(accounts), 1 << 14):
            rows = np.arange(begin, min(begin + (1 << 14), len(accounts)))
            index._columns.count_all(rows)
            for row, keys in zip(
                rows.tolist(), keys_of(index._columns, rows).tolist(), strict=True
            ):
                index._enter(row, keys)
        return index

    def __len__(self) -> int:
        return self._vocabulary.accounts

    def add(self, account: Prepared) -> int:
        """Add an account, and return its position."""
        row = self._columns.append(account)
        self._live.append(True)
        self._count(row, 1)
        return row

    def remove(self, position: int) -> None:
        """Remove an account; the positions of the others stay."""
        if self._live[position]:
            self._live[position] = False
            self._leave(position)

    def replace(self, position: int, account: Prepared) -> None:
        """Put an account in the place of another one."""
        self.remove(position)
        self._columns.put(position, account)
        self._live[position] = True
        self._count(position, 1)

    def lookup(self, account: Prepared, limit: int = 10) -> list[tuple[int, float, float]]:
        """Return positions with weight in bits and probability, best first."""
        return [(s.right, s.weight, s.score) for s in self._ranked(account, limit, explain=False)]

    def suggest(self, account: Prepared, limit: int = 10) -> list[Suggestion]:
        """Return the same with evidence; ``left`` is 0, ``right`` the position."""
        return self._ranked(account, limit, explain=True)

    def _ranked(self, account: Prepared, limit: int, *, explain: bool) -> list[Suggestion]:
        asked = Columns(self._vocabulary, 1)
        asked.append(account)
        rows = self._candidates(asked)
        if not len(rows):
            return []
        pairs = (np.zeros(len(rows), np.int64), rows)
        compared = compare(asked, self._columns, pairs)
        parts = contributions(self.model, compared.values)
        prior = self.model.prior(1, self._vocabulary.accounts)
        weight = parts.sum(axis=1) / STEPS + prior
        score = probabilities(self.model.without_groups(), (pairs[0], np.arange(len(rows))), weight)
        order = np.argsort(-weight, kind="stable")[:limit].tolist()
        rivals = tuple((0, int(rows[n])) for n in order)
        return [
            Suggestion(
                left=0,
                right=int(rows[n]),
                weight=float(weight[n]),
                prior=prior,
                score=float(score[n]),
                competitors=tuple(pair for pair in rivals if pair[1] != rows[n]),
                evidence=evidence_of(
                    (asked, self._columns),
                    (0, int(rows[n])),
                    values=compared.values[n],
                    parts=parts[n],
                    partner=compared.partner[n],
                    way=compared.way[n],
                )
                if explain
                else (),
            )
            for n in order
        ]

    def _candidates(self, asked: Columns) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        found: dict[int, None] = {}
        blocks = [
            (len(block), key, block)
            for key in set(keys_of(asked, np.zeros(1, np.int64))[0].tolist())
            if key and (block := self._by_key.get(key))
        ]
        for size, key, block in sorted(blocks):
            if size > (_WEAK_CAP if key & 15 in WEAK_KINDS else _STRONG_CAP):
                continue
            found.update(dict.fromkeys(block))
            if len(found) > _MAX_CANDIDATES:
                break
        return np.fromiter(found, np.int64, len(found))

    def _count(self, row: int, sign: int) -> None:
        rows = np.array([row])
        self._columns.count_all(rows, sign)
        self._enter(row, keys_of(self._columns, rows)[0].tolist())

    def _enter(self, row: int, keys: list[int]) -> None:
        for key in set(keys):
            if key:
                self._by_key.setdefault(key, []).append(row)

    def _leave(self, row: int) -> None:
        rows = np.array([row])
        for key in set(keys_of(self._columns, rows)[0].tolist()):
            if key:
                block = self._by_key[key]
                block.remove(row)
                if not block:
                    del self._by_key[key]
        self._columns.count_all(rows, -1)
