"""Who is who: which accounts of several learning platforms belong to one person.

Pure functions over records: no I/O but processes to compute in, no SQL, no GraphQL. ``prepare``
an account once and keep it; ``match`` two pools, look one account up in an ``Index``, ``cluster``
what came of it.
See docs/matching.md.
"""

from __future__ import annotations

import numpy as np

from resolvers.matching.accounts import VERSION, Account, Prepared, prepare
from resolvers.matching.clustering import cluster, log_odds
from resolvers.matching.columns import Columns, Vocabulary, keys_of
from resolvers.matching.explaining import Evidence, Suggestion
from resolvers.matching.fitting import MIN_DECISIONS, Decided, refit
from resolvers.matching.lookup import Index
from resolvers.matching.matches import Matches, Means, Weighed, match, match_columns
from resolvers.matching.scoring import Model
from resolvers.matching.shipped import SHIPPED

__all__ = [
    "MIN_DECISIONS",
    "SHIPPED",
    "VERSION",
    "Account",
    "Columns",
    "Decided",
    "Evidence",
    "Index",
    "Matches",
    "Means",
    "Model",
    "Prepared",
    "Suggestion",
    "Vocabulary",
    "Weighed",
    "blocking_keys",
    "cluster",
    "log_odds",
    "match",
    "match_columns",
    "prepare",
    "refit",
]


def blocking_keys(prepared: Prepared) -> tuple[int, ...]:
    """Return the signed 64-bit keys of an account, in order; accounts that share one compare.

    They are the same in all processes, and in all releases that prepare with one ``VERSION``.
    """
    columns = Columns.of([prepared], Vocabulary(), counted=False)
    keys = keys_of(columns, np.zeros(1, np.int64))[0]
    return tuple(sorted({key - (1 << 64) if key >> 63 else key for key in keys.tolist() if key}))
