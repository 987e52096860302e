"""Make the tables of accounts, people, decisions, suggestions and match runs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.create_table(
        "match_model",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=True),
        sa.Column("verdict_count", sa.Integer(), nullable=False),
        sa.Column("fitted_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_match_model")),
    )
    op.create_table(
        "match_run",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("requested_by", sa.Text(), nullable=False),
        sa.Column("requested_at", sa.Double(), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=True),
        sa.Column("finished_at", sa.Double(), nullable=True),
        sa.Column("provider_ids", sa.Text(), nullable=False),
        sa.Column("expected_overlap", sa.Double(), nullable=True),
        sa.Column("link_above", sa.Double(), nullable=True),
        sa.Column("pairs_done", sa.Integer(), nullable=False),
        sa.Column("progress", sa.Double(), nullable=False),
        sa.Column("account_count", sa.Integer(), nullable=False),
        sa.Column("suggestion_count", sa.Integer(), nullable=False),
        sa.Column("link_count", sa.Integer(), nullable=False),
        sa.Column("model_version", sa.Text(), nullable=True),
        sa.Column("notes", sa.Text(), nullable=False),
        sa.Column("problem_code", sa.Text(), nullable=True),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_match_run")),
    )
    op.create_table(
        "people_counter",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("last", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_people_counter")),
    )
    op.create_table(
        "people_decision",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("decided_by", sa.Text(), nullable=False),
        sa.Column("undoes", sa.BigInteger(), nullable=True),
        sa.Column("undone_by", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_people_decision")),
    )
    op.create_table(
        "account",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("provider_id", sa.Text(), nullable=False),
        sa.Column("external_id", sa.Text(), nullable=False),
        sa.Column("prepared", sa.LargeBinary(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["provider_id"],
            ["provider.id"],
            name=op.f("fk_account_provider_id_provider"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_account")),
    )
    op.create_index(
        op.f("ix_account_provider_id_external_id"),
        "account",
        ["provider_id", "external_id"],
        unique=True,
    )
    op.create_table(
        "match_suggestion",
        sa.Column("left_provider_id", sa.Text(), nullable=False),
        sa.Column("left_external_id", sa.Text(), nullable=False),
        sa.Column("right_provider_id", sa.Text(), nullable=False),
        sa.Column("right_external_id", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("score", sa.Double(), nullable=False),
        sa.Column("weight", sa.Double(), nullable=False),
        sa.Column("prior", sa.Double(), nullable=False),
        sa.Column("model_version", sa.Text(), nullable=False),
        sa.Column("evidence", sa.LargeBinary(), nullable=False),
        sa.Column("competitors", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["left_provider_id"],
            ["provider.id"],
            name=op.f("fk_match_suggestion_left_provider_id_provider"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["right_provider_id"],
            ["provider.id"],
            name=op.f("fk_match_suggestion_right_provider_id_provider"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint(
            "left_provider_id",
            "left_external_id",
            "right_provider_id",
            "right_external_id",
            name=op.f("pk_match_suggestion"),
        ),
    )
    op.create_index(
        op.f("ix_match_suggestion_right_provider_id_right_external_id"),
        "match_suggestion",
        ["right_provider_id", "right_external_id"],
        unique=False,
    )
    op.create_index(op.f("ix_match_suggestion_score"), "match_suggestion", ["score"], unique=False)
    op.create_table(
        "match_verdict",
        sa.Column("left_provider_id", sa.Text(), nullable=False),
        sa.Column("left_external_id", sa.Text(), nullable=False),
        sa.Column("right_provider_id", sa.Text(), nullable=False),
        sa.Column("right_external_id", sa.Text(), nullable=False),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["left_provider_id"],
            ["provider.id"],
            name=op.f("fk_match_verdict_left_provider_id_provider"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["right_provider_id"],
            ["provider.id"],
            name=op.f("fk_match_verdict_right_provider_id_provider"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint(
            "left_provider_id",
            "left_external_id",
            "right_provider_id",
            "right_external_id",
            name=op.f("pk_match_verdict"),
        ),
    )
    op.create_index(
        op.f("ix_match_verdict_right_provider_id_right_external_id"),
        "match_verdict",
        ["right_provider_id", "right_external_id"],
        unique=False,
    )
    op.create_table(
        "people_change",
        sa.Column("decision_id", sa.BigInteger(), nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("provider_id", sa.Text(), nullable=False),
        sa.Column("external_id", sa.Text(), nullable=False),
        sa.Column("other_provider_id", sa.Text(), nullable=True),
        sa.Column("other_external_id", sa.Text(), nullable=True),
        sa.Column("before", sa.Text(), nullable=True),
        sa.Column("after", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["decision_id"],
            ["people_decision.id"],
            name=op.f("fk_people_change_decision_id_people_decision"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["other_provider_id"],
            ["provider.id"],
            name=op.f("fk_people_change_other_provider_id_provider"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["provider_id"],
            ["provider.id"],
            name=op.f("fk_people_change_provider_id_provider"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("decision_id", "position", name=op.f("pk_people_change")),
    )
    op.create_index(
        op.f("ix_people_change_other_provider_id_other_external_id"),
        "people_change",
        ["other_provider_id", "other_external_id"],
        unique=False,
    )
    op.create_index(
        op.f("ix_people_change_provider_id_external_id"),
        "people_change",
        ["provider_id", "external_id"],
        unique=False,
    )
    op.create_table(
        "person_account",
        sa.Column("provider_id", sa.Text(), nullable=False),
        sa.Column("external_id", sa.Text(), nullable=False),
        sa.Column("person_id", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["provider_id"],
            ["provider.id"],
            name=op.f("fk_person_account_provider_id_provider"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("provider_id", "external_id", name=op.f("pk_person_account")),
    )
    op.create_index(
        op.f("ix_person_account_person_id_provider_id"),
        "person_account",
        ["person_id", "provider_id"],
        unique=True,
    )
    op.create_table(
        "match_key",
        sa.Column("key", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("account_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["account_id"],
            ["account.id"],
            name=op.f("fk_match_key_account_id_account"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("key", "account_id", name=op.f("pk_match_key")),
    )
    op.create_index(op.f("ix_match_key_account_id"), "match_key", ["account_id"], unique=False)
