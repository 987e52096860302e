"""How Alembic runs a migration here: on the connection it is handed, in its transaction.

``storage.database`` opens the connection and holds the lock. To draft a new migration after a
change of ``storage.tables``, see "Changing the tables" in CONTRIBUTING.md.
"""

from __future__ import annotations

from typing import Literal

from alembic import context

from storage.tables import Instant, metadata


def _rendered(kind: str, item: object, _autogeneration: object) -> str | Literal[False]:
    """Draft instants as the numbers they are kept as: a migration imports none of our code."""
    return "sa.Double()" if kind == "type" and isinstance(item, Instant) else False


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_item=_rendered,
    render_as_batch=True,  # SQLite changes a table by copying it
)
with context.begin_transaction():
    context.run_migrations()
