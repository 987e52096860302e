"""Keep with a suggestion what it says to whoever joins accounts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.add_column("match_suggestion", sa.Column("bits", sa.Double()))
