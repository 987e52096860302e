"""Say of kept answers what they were read from, and of providers how often they were written to."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("provider", sa.Column("writes", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("cache", sa.Column("generation", sa.Text(), nullable=True))
    op.create_index(op.f("ix_cache_fetched_at"), "cache", ["fetched_at"])
