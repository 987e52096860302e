"""Every table, for SQLite and PostgreSQL alike.

Instants are stored as seconds since 1970 in double precision: one form both engines compare,
index and subtract in the same way. ``Instant`` columns read and write aware UTC datetimes;
lease columns are compared with ``database_now()``, the database's own clock, because the clocks
of several gateways differ.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    TypeDecorator,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement


class Instant(TypeDecorator[datetime]):
    """An aware UTC datetime, kept as seconds since 1970."""

    impl = Double
    cache_ok = True

    def process_bind_param(self, value: datetime | None, _dialect: Dialect) -> float | None:
        """Return seconds since 1970."""
        return None if value is None else value.timestamp()

    def process_result_value(self, value: float | None, _dialect: Dialect) -> datetime | None:
        """Return an aware UTC datetime."""
        return None if value is None else datetime.fromtimestamp(value, UTC)


class database_now(FunctionElement[float]):  # noqa: N801 - reads as the SQL function it is
    """The database's clock, in seconds since 1970; constant within one statement."""

    type = Double()
    inherit_cache = True


@compiles(database_now, "sqlite")
def _sqlite_now(_element: database_now, _compiler: SQLCompiler, **_options: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(database_now)
def _now(_element: database_now, _compiler: SQLCompiler, **_options: Any) -> str:
    return "cast(extract(epoch from now()) as double precision)"


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    }
)

provider = Table(
    "provider",
    metadata,
    Column("id", Text, primary_key=True),
    Column("platform", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("base_url", Text, nullable=False),
    Column("account_id", Text),
    Column("options", Text, nullable=False),  # JSON object of strings
    Column("credentials", LargeBinary),  # sealed, bound to this row
    Column("state", Text, nullable=False),
    Column("version", Text),
    Column("revision", Integer, nullable=False),
    Column("problem", Text),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
    Column("checked_at", Instant),
    Column(
        "writes", Integer, nullable=False, server_default="0"
    ),  # raised when what was read is old
)

session = Table(
    "session",
    metadata,
    Column("provider_id", Text, ForeignKey("provider.id", ondelete="CASCADE"), primary_key=True),
    Column("subject", Text, primary_key=True),
    Column("version", Integer, nullable=False),  # raised by every committed transition
    Column("fence", Integer, nullable=False),  # raised by every claim
    Column("state", Text, nullable=False),
    Column("secret", LargeBinary),  # sealed, bound to this row
    Column("expires_at", Instant),
    Column("next_at", Double),  # when the next transition is due, by the database's clock
    Column("lease_owner", Text),
    Column("lease_until", Double, nullable=False),
    Column("intent", Text),
    Column("intent_at", Double),
    Column("failures", Integer, nullable=False),
    Column("login_window_at", Double),  # start of the window in which logins are counted
    Column("login_count", Integer, nullable=False),
    Column("problem_code", Text),
    Column("problem", Text),
    Column("updated_at", Instant, nullable=False),
    Index(None, "next_at"),
)

session_log = Table(
    "session_log",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("at", Instant, nullable=False),
    Column("provider_id", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("transition", Text, nullable=False),  # log_in, keep_alive, log_out, revoke
    Column("outcome", Text, nullable=False),  # committed, fenced, failed, adopted, refused
    Column("version", Integer, nullable=False),
    Column("fence", Integer, nullable=False),
    Column("owner", Text, nullable=False),
    Column("reason", Text),
    Index(None, "provider_id", "at"),
)

job = Table(
    "job",
    metadata,
    Column("kind", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("due_at", Double, nullable=False),
    Column("lease_owner", Text),
    Column("lease_until", Double, nullable=False),
    Column("fence", Integer, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("problem", Text),
    Index(None, "due_at"),
)

cache = Table(
    "cache",
    metadata,
    Column("provider_id", Text, ForeignKey("provider.id", ondelete="CASCADE"), primary_key=True),
    Column("subject", Text, primary_key=True),
    Column("resource", Text, primary_key=True),
    Column("body", LargeBinary, nullable=False),
    Column("etag", Text),
    Column("generation", Text),  # of the provider when it was read: its registration and writes
    Column("fetched_at", Instant, nullable=False),
    Column("fresh_until", Instant, nullable=False),
    Index(None, "fetched_at"),
)

icon = Table(
    "icon",
    metadata,
    Column("key", Text, primary_key=True),  # SHA-256 of provider, references and version
    Column("source_sha256", Text),  # of the image as the provider gave it; null when refused
    Column("problem", Text),
    Column("decided_at", Instant, nullable=False),
    Index(None, "source_sha256"),
)

rendition = Table(
    "rendition",
    metadata,
    Column("source_sha256", Text, primary_key=True),
    Column("width", Integer, primary_key=True),
    Column("media_sha256", Text, ForeignKey("media.sha256"), nullable=False),
)

media = Table(
    "media",
    metadata,
    Column("sha256", Text, primary_key=True),
    Column("media_type", Text, nullable=False),
    Column("byte_size", Integer, nullable=False),
    Column("width", Integer),
    Column("height", Integer),
    Column("created_at", Instant, nullable=False),
)

api_key = Table(
    "api_key",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("secret_sha256", LargeBinary, nullable=False),
    Column("scopes", Text, nullable=False),  # space separated, sorted
    Column("created_at", Instant, nullable=False),
    Column("expires_at", Instant),
    Column("last_used_at", Instant),
    Column("revoked", Boolean, nullable=False),
)

callback = Table(
    "callback",
    metadata,
    Column("nonce_sha256", Text, primary_key=True),
    Column("provider_id", Text, nullable=False),
    Column("expires_at", Double, nullable=False),  # by the database's clock
    Column("used", Boolean, nullable=False),
    Index(None, "provider_id"),
)

authorization_request = Table(
    "authorization_request",
    metadata,
    Column("state_sha256", Text, primary_key=True),
    Column("provider_id", Text, ForeignKey("provider.id", ondelete="CASCADE"), nullable=False),
    Column("user_id", Text),  # whose consent is asked for; null for anybody's
    Column("verifier", LargeBinary, nullable=False),  # sealed, bound to this row
    Column("browser_sha256", Text, nullable=False),
    Column("expires_at", Double, nullable=False),  # by the database's clock
    Column("used", Boolean, nullable=False),
    Index(None, "expires_at"),
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("caller", Text, primary_key=True),  # id of the caller's API key
    Column("mutation", Text, primary_key=True),
    Column("provider_id", Text, ForeignKey("provider.id", ondelete="CASCADE"), primary_key=True),
    Column("key_sha256", Text, primary_key=True),
    Column("input_sha256", Text, nullable=False),
    Column("answer", LargeBinary),  # JSON; null while it is under way, or came to nothing
    Column("fence", Integer, nullable=False),  # raised by every claim
    Column("lease_until", Double, nullable=False),
    Column("expires_at", Double, nullable=False),  # by the database's clock
    Index(None, "expires_at"),
)

import_run = Table(
    "import_run",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("provider_id", Text, ForeignKey("provider.id", ondelete="CASCADE"), nullable=False),
    Column("state", Text, nullable=False),
    Column("requested_by", Text, nullable=False),  # id of a key, or schedule
    Column("requested_at", Instant, nullable=False),
    Column("started_at", Instant),
    Column("finished_at", Instant),
    Column("accept_drop", Boolean, nullable=False),
    Column("reading", BigInteger, nullable=False),  # marks the rows it saw in the snapshot
    Column("lists_done", Integer, nullable=False),
    Column("position", Text),  # in the list after those done; null for its beginning
    Column("position_at", Double),  # by the database's clock
    Column("counts", Text, nullable=False),  # JSON object by kind
    Column("problem_code", Text),
    Column("problem", Text),
    Index(None, "provider_id", "id"),
)

snapshot = Table(
    "snapshot",
    metadata,
    Column("provider_id", Text, ForeignKey("provider.id", ondelete="CASCADE"), primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("external_id", Text, primary_key=True),
    Column("sha256", LargeBinary, nullable=False),
    Column("record", LargeBinary, nullable=False),
    Column("seen_reading", BigInteger, nullable=False),  # the reading that saw it last
)

import_stage = Table(
    "import_stage",
    metadata,
    Column("provider_id", Text, ForeignKey("provider.id", ondelete="CASCADE"), primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("external_id", Text, primary_key=True),
    Column("sha256", LargeBinary, nullable=False),
    Column("record", LargeBinary, nullable=False),
    Column("created", Boolean, nullable=False),  # not in the snapshot
)

change = Table(
    "change",
    metadata,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("at", Instant, nullable=False),
    Column("provider_id", Text, ForeignKey("provider.id", ondelete="CASCADE"), nullable=False),
    Column("kind", Text, nullable=False),
    Column("external_id", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("record", LargeBinary, nullable=False),  # of something deleted, the last known
    Index(None, "at"),
    Index(None, "provider_id"),
)

change_counter = Table(
    "change_counter",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),  # there is one row
    Column("last", BigInteger, nullable=False),  # sequence of the latest change
    Column("swept", BigInteger, nullable=False),  # none up to this one is kept
)

audit = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("at", Instant, nullable=False),
    Column("caller", Text, nullable=False),
    Column("subject", Text),
    Column("action", Text, nullable=False),
    Column("target", Text),
    Column("arguments", Text, nullable=False),  # JSON object of strings
    Column("outcome", Text, nullable=False),
    Column("code", Text),
    Column("request_id", Text),
    Index(None, "at"),
    Index(None, "caller", "id"),
)

document = Table(
    "document",
    metadata,
    Column("id", Text, primary_key=True),  # hash of the text, in hex
    Column("client", Text, primary_key=True),  # whose it is; empty for nobody's in particular
    Column("text", Text, nullable=False),
    Column("names", Text, nullable=False),  # of its operations, space separated
    Column("registered_at", Instant, nullable=False),
)

document_revision = Table(
    "document_revision",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),  # there is one row
    Column("last", BigInteger, nullable=False),  # raised by every change of the documents
)

account = Table(
    "account",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("provider_id", Text, ForeignKey("provider.id", ondelete="CASCADE"), nullable=False),
    Column("external_id", Text, nullable=False),
    Column("prepared", LargeBinary, nullable=False),  # what matching reads of it, normalised
    Column("version", Integer, nullable=False),  # of the normaliser
    Column("sha256", LargeBinary, nullable=False),  # of what it was made from
    Index(None, "provider_id", "external_id", unique=True),
)

match_key = Table(
    "match_key",
    metadata,
    Column("key", BigInteger, primary_key=True, autoincrement=False),
    Column("account_id", Integer, ForeignKey("account.id", ondelete="CASCADE"), primary_key=True),
    Index(None, "account_id"),
)

person_account = Table(
    "person_account",
    metadata,
    Column("provider_id", Text, ForeignKey("provider.id", ondelete="CASCADE"), primary_key=True),
    Column("external_id", Text, primary_key=True),
    Column("person_id", Text, nullable=False),
    Index(None, "person_id", "provider_id", unique=True),  # one account at each provider
)

match_verdict = Table(
    "match_verdict",
    metadata,
    Column(
        "left_provider_id", Text, ForeignKey("provider.id", ondelete="CASCADE"), primary_key=True
    ),
    Column("left_external_id", Text, primary_key=True),
    Column(
        "right_provider_id", Text, ForeignKey("provider.id", ondelete="CASCADE"), primary_key=True
    ),
    Column("right_external_id", Text, primary_key=True),
    Column("verdict", Text, nullable=False),
    Index(None, "right_provider_id", "right_external_id"),
)

match_suggestion = Table(
    "match_suggestion",
    metadata,
    Column(
        "left_provider_id", Text, ForeignKey("provider.id", ondelete="CASCADE"), primary_key=True
    ),
    Column("left_external_id", Text, primary_key=True),
    Column(
        "right_provider_id", Text, ForeignKey("provider.id", ondelete="CASCADE"), primary_key=True
    ),
    Column("right_external_id", Text, primary_key=True),
    Column("run_id", Integer, nullable=False),
    Column("score", Double, nullable=False),
    Column("weight", Double, nullable=False),
    Column("prior", Double, nullable=False),
    Column("bits", Double),
    Column("model_version", Text, nullable=False),
    Column("evidence", LargeBinary, nullable=False),
    Column("competitors", LargeBinary, nullable=False),
    Index(None, "right_provider_id", "right_external_id"),
    Index(None, "score"),
)

people_decision = Table(
    "people_decision",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("at", Instant, nullable=False),
    Column("kind", Text, nullable=False),
    Column("decided_by", Text, nullable=False),  # id of a key, command-line, or automatic
    Column("undoes", BigInteger),
    Column("undone_by", BigInteger),
)

people_change = Table(
    "people_change",
    metadata,
    Column(
        "decision_id",
        BigInteger,
        ForeignKey("people_decision.id", ondelete="CASCADE"),
        primary_key=True,
    ),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("provider_id", Text, ForeignKey("provider.id", ondelete="CASCADE"), nullable=False),
    Column("external_id", Text, nullable=False),
    # Of the verdict on a pair the second account; null for whose the first one is.
    Column("other_provider_id", Text, ForeignKey("provider.id", ondelete="CASCADE")),
    Column("other_external_id", Text),
    Column("before", Text),  # a person's id or a verdict; null for none
    Column("after", Text),
    Index(None, "provider_id", "external_id"),
    Index(None, "other_provider_id", "other_external_id"),
)

people_counter = Table(
    "people_counter",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),  # there is one row
    Column("last", BigInteger, nullable=False),  # id of the latest decision
)

match_run = Table(
    "match_run",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("state", Text, nullable=False),
    Column("requested_by", Text, nullable=False),
    Column("requested_at", Instant, nullable=False),
    Column("started_at", Instant),
    Column("finished_at", Instant),
    Column("provider_ids", Text, nullable=False),  # JSON array
    Column("expected_overlap", Double),
    Column("link_above", Double),  # null to link nothing unasked
    Column("pairs_done", Integer, nullable=False),  # of providers
    Column("progress", Double, nullable=False),  # within the pair after those done
    Column("account_count", Integer, nullable=False),
    Column("suggestion_count", Integer, nullable=False),
    Column("link_count", Integer, nullable=False),
    Column("model_version", Text),
    Column("notes", Text, nullable=False),  # JSON array of sentences
    Column("problem_code", Text),
    Column("problem", Text),
)

match_part = Table(
    "match_part",
    metadata,
    Column("run_id", Integer, ForeignKey("match_run.id", ondelete="CASCADE"), primary_key=True),
    Column("pair", Integer, primary_key=True),  # of providers; as many were done before
    Column("until", Integer, primary_key=True),  # position among the first one's accounts
    Column("stamp", LargeBinary, nullable=False),
    Column("body", LargeBinary, nullable=False),
)
match_model = Table(
    "match_model",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("version", Text, nullable=False),
    Column("body", LargeBinary),  # null: what was tried was no better than what is shipped
    Column("verdict_count", Integer, nullable=False),  # how many it was fitted to
    Column("fitted_at", Instant, nullable=False),
)
