"""Executes GraphQL operations by compiled plans, with the answers that graphql-core gives.

One entry: ``Engine.execute``. What a plan does not cover is executed by graphql-core, and told.
The module knows the schema only as graphql-core and Strawberry describe it, and nothing of what
it is about. How it works, and how to look into it: docs/engine.md.
"""

from __future__ import annotations

from schema.engine.batches import LASTING, Spread, View, batched, reads
from schema.engine.executing import Engine, Executed
from schema.engine.plans import Row, Rows
from schema.engine.writing import Written, pieces_of

__all__ = [
    "LASTING",
    "Engine",
    "Executed",
    "Row",
    "Rows",
    "Spread",
    "View",
    "Written",
    "batched",
    "pieces_of",
    "reads",
]
