"""What both databases promise: no change is lost or half done, and every failure has a name."""

import asyncio
import gc
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, Table, func, insert, inspect, make_url, select, text, update
from sqlalchemy.exc import InvalidRequestError
from structlog.testing import capture_logs

from storage import database as storage_database
from storage.database import Database, KeptReads, open_database
from storage.errors import (
    ConstraintViolated,
    DatabaseTooNew,
    DatabaseUrlInvalid,
    MigrationFailed,
    StorageError,
    StorageUnavailable,
)
from storage.tables import callback, database_now, job, metadata, rendition

ROOT = Path(__file__).resolve().parents[2]


def make_job(key: str, attempts: int = 0) -> Any:
    return insert(job).values(
        kind="test", key=key, due_at=0.0, lease_until=0.0, fence=0, attempts=attempts
    )


async def execute(database: Database, *statements: Any) -> None:
    async with database.transaction() as connection:
        for statement in statements:
            await connection.execute(statement)


async def count_rows(database: Database, table: Table) -> int:
    async with database.read() as connection:
        return (await connection.execute(select(func.count()).select_from(table))).scalar_one()


# Transactions.


async def test_a_transaction_is_kept_when_it_ends_and_seen_by_later_readers(
    any_database: Database,
) -> None:
    async with any_database.transaction() as connection:
        await connection.execute(make_job("one"))

    assert await count_rows(any_database, job) == 1


async def test_a_transaction_an_error_passes_through_leaves_nothing(any_database: Database) -> None:
    async def fail() -> None:
        async with any_database.transaction() as connection:
            await connection.execute(make_job("one"))
            raise LookupError

    with pytest.raises(LookupError):
        await fail()

    assert await count_rows(any_database, job) == 0


async def test_a_cancelled_transaction_leaves_nothing_and_frees_its_connection(
    any_database: Database,
) -> None:
    inside = asyncio.Event()

    async def dawdle() -> None:
        async with any_database.transaction() as connection:
            await connection.execute(make_job("one"))
            inside.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(dawdle())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with any_database.transaction() as connection:
        await connection.execute(make_job("two"))

    assert await count_rows(any_database, job) == 1


async def test_any_moment_of_a_transaction_can_be_cancelled(any_database: Database) -> None:
    async def write(key: str) -> None:
        async with any_database.transaction() as connection:
            await connection.execute(make_job(key))

    for moment in range(60):
        task = asyncio.create_task(write(f"cancelled-{moment}"))
        for _ in range(moment):
            await asyncio.sleep(0)
        await asyncio.sleep(moment * 0.0001)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await asyncio.gather(*(write(f"kept-{number}") for number in range(20)))

    async with any_database.read() as connection:
        statement = select(func.count()).where(job.c.key.like("kept-%"))
        assert (await connection.execute(statement)).scalar_one() == 20


async def test_writers_that_read_first_never_lose_an_update(any_database: Database) -> None:
    async with any_database.transaction() as connection:
        await connection.execute(make_job("counter"))
    where = job.c.key == "counter"

    async def increase() -> None:
        async with any_database.transaction() as connection:
            statement = select(job.c.attempts).where(where).with_for_update()
            seen = (await connection.execute(statement)).scalar_one()
            await connection.execute(update(job).where(where).values(attempts=seen + 1))

    await asyncio.gather(*(increase() for _ in range(50)))

    async with any_database.read() as connection:
        assert (await connection.execute(select(job.c.attempts).where(where))).scalar_one() == 50


async def test_a_reader_is_not_held_up_by_a_writer(any_database: Database) -> None:
    async with any_database.transaction() as connection:
        await connection.execute(make_job("unfinished"))

        seen = await count_rows(any_database, job)

    assert seen == 0


async def test_a_reader_cannot_write(any_database: Database) -> None:
    with pytest.raises(StorageError):
        async with any_database.read() as connection:
            await connection.execute(make_job("one"))

    assert await count_rows(any_database, job) == 0


async def test_the_databases_clock_tells_the_time(any_database: Database) -> None:
    before = time.time()

    async with any_database.read() as connection:
        now = (await connection.execute(select(database_now()))).scalar_one()

    assert before - 0.01 <= now <= time.time() + 0.01  # SQLite's clock has milliseconds


# Errors.


async def test_a_taken_key_is_a_violated_constraint(any_database: Database) -> None:
    async with any_database.transaction() as connection:
        await connection.execute(make_job("one"))

    with pytest.raises(ConstraintViolated) as caught:
        await execute(any_database, make_job("two"), make_job("one"))

    assert caught.value.__cause__ is not None
    assert await count_rows(any_database, job) == 1


async def test_a_missing_parent_is_a_violated_constraint(any_database: Database) -> None:
    orphan = insert(rendition).values(source_sha256="a", width=64, media_sha256="no such")

    with pytest.raises(ConstraintViolated):
        async with any_database.transaction() as connection:
            await connection.execute(orphan)

    assert await count_rows(any_database, rendition) == 0


async def test_a_statement_the_database_refuses_is_a_storage_error(any_database: Database) -> None:
    with pytest.raises(StorageError) as caught:
        async with any_database.read() as connection:
            await connection.execute(text("SELECT no_such_column FROM job"))

    assert type(caught.value) is StorageError
    assert caught.value.message == f"The {any_database.place} refused a statement"


async def test_our_own_mistakes_keep_their_names(any_database: Database) -> None:
    with pytest.raises(InvalidRequestError):
        async with any_database.read() as connection:
            (await connection.execute(select(job.c.key))).one().missing  # noqa: B018 - it raises


async def test_values_never_appear_in_an_error(any_database: Database) -> None:
    values = {
        "nonce_sha256": "canary-4711",
        "provider_id": None,
        "expires_at": 0.0,
        "used": False,
    }

    with pytest.raises(ConstraintViolated) as caught:
        async with any_database.transaction() as connection:
            await connection.execute(insert(callback), values)

    assert "canary-4711" not in str(caught.value)
    if any_database.dialect == "sqlite":
        assert "canary-4711" not in str(caught.value.__cause__)


async def test_more_waiting_readers_than_connections_are_all_served(any_database: Database) -> None:
    seen = await asyncio.gather(*(count_rows(any_database, job) for _ in range(100)))

    assert seen == [0] * 100


# Upserts.


async def test_an_upsert_makes_a_row_then_changes_what_it_is_told(any_database: Database) -> None:
    values = {
        "kind": "test",
        "key": "one",
        "due_at": 1.0,
        "lease_until": 1.0,
        "fence": 0,
        "attempts": 0,
    }
    later = {**values, "due_at": 2.0, "lease_until": 2.0}
    changes: Sequence[Any] = (("due_at",), {"fence": job.c.fence + 5}, ())

    for change in changes:
        async with any_database.transaction() as connection:
            await connection.execute(any_database.upsert(job, values, change=change))
            await connection.execute(any_database.upsert(job, later, change=change))

    async with any_database.read() as connection:
        columns = select(job.c.due_at, job.c.lease_until, job.c.fence)
        assert (await connection.execute(columns)).all() == [(2.0, 1.0, 10)]


async def test_an_upsert_can_leave_some_rows_alone(any_database: Database) -> None:
    def make(due_at: float) -> Any:
        row = {"kind": "test", "key": "one", "lease_until": 0.0, "fence": 0, "attempts": 0}
        return any_database.upsert(
            job,
            {**row, "due_at": due_at},
            change=("due_at",),
            where=lambda new: job.c.due_at < new.due_at,
        )

    async with any_database.transaction() as connection:
        for due_at in (5.0, 7.0, 3.0):
            await connection.execute(make(due_at))

    async with any_database.read() as connection:
        assert (await connection.execute(select(job.c.due_at))).scalar_one() == 7.0


# Making and changing the tables.


async def test_a_new_database_gets_exactly_the_tables_the_code_declares(
    empty_database_url: str,
) -> None:
    def differences(connection: Connection) -> Sequence[Any]:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))

    async with open_database(empty_database_url) as database, database.read() as connection:
        assert await connection.run_sync(differences) == []


async def test_opening_again_keeps_everything_and_changes_nothing(empty_database_url: str) -> None:
    async with open_database(empty_database_url) as database, database.transaction() as connection:
        await connection.execute(make_job("kept"))

    with capture_logs() as logs:
        async with open_database(empty_database_url) as database:
            assert await count_rows(database, job) == 1

    assert logs == []


def test_four_processes_open_a_new_database_at_once(empty_database_url: str) -> None:
    script = """
import asyncio, sys
from sqlalchemy import insert
from storage.database import open_database
from storage.tables import job

async def main(url, key):
    sys.stdin.readline()
    async with open_database(url) as database, database.transaction() as connection:
        await connection.execute(insert(job).values(
            kind="test", key=key, due_at=0.0, lease_until=0.0, fence=0, attempts=0))

asyncio.run(main(*sys.argv[1:]))
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", script, empty_database_url, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
        )
        for number in range(4)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=60) for process in processes]

    assert [process.returncode for process in processes] == [0] * 4, outputs
    assert b"".join(out for out, _ in outputs).count(b"database_migrated") == 1
    assert asyncio.run(count_jobs(empty_database_url)) == 4


async def count_jobs(url: str) -> int:
    async with open_database(url) as database:
        return await count_rows(database, job)


async def test_a_database_of_a_newer_gateway_is_refused_and_left_alone(
    empty_database_url: str,
) -> None:
    version = text("UPDATE alembic_version SET version_num = '9999'")
    async with open_database(empty_database_url) as database:
        await execute(database, version, make_job("kept"))

    for _ in range(2):
        with pytest.raises(DatabaseTooNew, match="its tables are at 9999"):
            async with open_database(empty_database_url):
                pass

    unopened = Database(storage_database._parsed_url(empty_database_url))
    assert await count_rows(unopened, job) == 1
    await unopened.close()


async def test_a_migration_that_fails_half_way_leaves_nothing(empty_database_url: str) -> None:
    # A table of the name of one that is made late is in the way.
    unmigrated = Database(storage_database._parsed_url(empty_database_url))
    if unmigrated.dialect == "sqlite":
        Path(empty_database_url.removeprefix("sqlite:///")).parent.mkdir()
    async with unmigrated.transaction() as connection:
        await connection.execute(text("CREATE TABLE session (id INTEGER)"))

    with pytest.raises(MigrationFailed, match="they are as they were before"):
        async with open_database(empty_database_url):
            pass

    async with unmigrated.read() as connection:
        tables = await connection.run_sync(lambda sync: inspect(sync).get_table_names())
    await unmigrated.close()
    assert tables == ["session"]


# SQLite.


async def test_a_sqlite_file_is_its_owners_only_and_flushed_at_every_commit(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "gateway 100%.db"

    async with open_database(f"sqlite:///{path}") as database:
        async with database.transaction() as connection:
            settings = {
                name: (await connection.exec_driver_sql(f"PRAGMA {name}")).scalar_one()
                for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
            }
        assert database.dialect == "sqlite"
        assert database.place == f"SQLite database {path}"

    assert settings == {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "busy_timeout": 10_000,
    }
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


async def test_no_thread_outlives_a_database(sqlite_url: str) -> None:
    async with open_database(sqlite_url) as database:
        for moment in range(40):
            task = asyncio.create_task(execute(database, make_job(str(moment))))
            await asyncio.sleep(moment * 0.0001)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await execute(database, make_job("last"))
        await asyncio.gather(*(count_rows(database, job) for _ in range(10)))
        threads = database_threads()

    for thread in threads:
        thread.join(timeout=5)
    assert 5 <= len(threads) <= 6  # four readers, a writer, and maybe one that is just ending
    assert database_threads() == []


async def test_a_connection_being_opened_for_a_task_that_is_cancelled_is_not_lost(
    any_database_url: str,
) -> None:
    async with open_database(any_database_url) as database:
        for moment in range(60):
            await database.close()  # so that each one opens a connection
            task = asyncio.create_task(count_rows(database, job))
            await asyncio.sleep(moment * 0.0002)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            gc.collect()  # one that was lost would warn, and warnings are errors
        count = await count_rows(database, job)

    assert count == 0


async def test_a_connection_on_loan_while_the_database_is_closed_is_closed_when_given_back(
    any_database_url: str,
) -> None:
    async with open_database(any_database_url) as database:
        async with database.transaction() as connection:
            await database.close()
            await connection.execute(make_job("late"))
        gc.collect()  # one that was lost would warn, and warnings are errors
        count = await count_rows(database, job)

    assert count == 1


def database_threads() -> Sequence[threading.Thread]:
    return [thread for thread in threading.enumerate() if "_connection_worker" in thread.name]


async def test_a_file_that_is_not_a_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"\xff\xd8" * 4096)

    with pytest.raises(StorageUnavailable, match=r"photo\.jpg is not a SQLite file$"):
        async with open_database(f"sqlite:///{path}"):
            pass

    assert path.read_bytes() == b"\xff\xd8" * 4096


async def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(StorageUnavailable, match=r"file/gateway\.db cannot be opened: "):
        async with open_database(f"sqlite:///{tmp_path}/file/gateway.db"):
            pass


async def test_a_database_another_program_keeps_locked_is_unavailable(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(storage_database._SQLITE_ARGUMENTS, "timeout", 0.05)
    other = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)

    async with open_database(sqlite_url) as database:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageUnavailable, match="stayed locked by another process"):
            async with database.transaction() as connection:
                await connection.execute(make_job("one"))
        other.execute("ROLLBACK")
        other.close()

        assert await count_rows(database, job) == 0


async def test_a_writer_that_never_ends_does_not_hold_up_the_others_for_ever(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_database, "_QUEUE_SECONDS", 0.05)

    async with open_database(sqlite_url) as database, database.transaction():
        with pytest.raises(StorageUnavailable, match="no connection became free in time"):
            async with database.transaction():
                pass


async def test_a_migration_that_never_ends_does_not_hold_up_the_others_for_ever(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_database, "_MIGRATION_WAIT_SECONDS", 0.05)
    path = Path(sqlite_url.removeprefix("sqlite:///"))

    with (
        storage_database._locked_file(path.with_name("gateway.db.lock")),
        pytest.raises(StorageUnavailable, match="did not finish within"),
    ):
        async with open_database(sqlite_url):
            pass


async def test_a_network_file_system_is_warned_of(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "22 1 254:1 / / rw - ext4 /dev/root rw\n"
        f"40 22 0:40 / {tmp_path} rw shared:1 - nfs4 server:/export rw\n"
        "malformed line\n"
    )

    with capture_logs() as logs:
        storage_database._warn_of_network_file_system(tmp_path / "gateway.db", mounts)
        storage_database._warn_of_network_file_system(Path("/gateway.db"), mounts)
        storage_database._warn_of_network_file_system(Path("/gateway.db"), tmp_path / "missing")

    assert [(log["event"], log["file_system"]) for log in logs] == [
        ("database_on_network_file_system", "nfs4")
    ]


# PostgreSQL.


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"port": 1}, "was not reached, or cut the connection"),
        (
            {"password": "canary-4711"},
            'refused the connection: password authentication failed for user "gateway"',
        ),
        ({"database": "none"}, 'refused the connection: database "none" does not exist'),
    ],
)
async def test_a_postgresql_that_cannot_be_used_is_named_without_its_password(
    postgres_server: Any, change: dict[str, Any], reason: str
) -> None:
    url = make_url(postgres_server.url("postgres")).set(**change)

    with pytest.raises(StorageUnavailable) as caught:
        async with open_database(url.render_as_string(hide_password=False)):
            pass

    place = f"PostgreSQL database {url.database} at 127.0.0.1:{url.port}"
    assert caught.value.message == f"The {place} {reason}"
    assert "canary-4711" not in str(caught.value.__cause__)


@pytest.mark.parametrize("any_database_url", ["postgresql"], indirect=True)
async def test_a_restart_of_postgresql_costs_no_later_transaction(
    any_database: Database,
) -> None:
    end_all = text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    await asyncio.gather(*(count_rows(any_database, job) for _ in range(5)))

    async def write_while_the_server_restarts() -> None:
        async with any_database.transaction() as connection:
            await execute(any_database, end_all)
            await connection.execute(make_job("lost"))

    with pytest.raises(StorageUnavailable):
        await write_while_the_server_restarts()
    await execute(any_database, make_job("kept"))

    assert await count_rows(any_database, job) == 1


@pytest.mark.parametrize("any_database_url", ["postgresql"], indirect=True)
async def test_a_statement_postgresql_stops_is_unavailable(any_database: Database) -> None:
    too_long = (text("SET LOCAL statement_timeout = 10"), text("SELECT pg_sleep(10)"))

    with pytest.raises(StorageUnavailable, match=r"stopped the statement, or is shutting down$"):
        await execute(any_database, *too_long)


# URLs.


@pytest.mark.parametrize(
    "url",
    [
        "",
        "gateway.db",
        "sqlite://",
        "sqlite:///:memory:",
        "mysql://gateway:canary-4711@localhost/gateway",
        "postgresql+asyncpg://gateway:canary-4711@localhost/gateway",
        "postgresql://gateway:canary-4711@localhost:port/gateway",
    ],
)
async def test_a_url_of_another_form_is_refused_with_the_forms_there_are(url: str) -> None:
    with pytest.raises(DatabaseUrlInvalid, match="sqlite:////absolute/path") as caught:
        async with open_database(url):
            pass

    assert "canary-4711" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_both_names_of_postgresql_and_its_socket_are_understood() -> None:
    parsed = storage_database._parsed_url("postgres://gateway@/gateway?host=/run/postgresql")

    assert parsed.drivername == "postgresql+psycopg"
    assert storage_database._place(parsed) == (
        "PostgreSQL database gateway at /run/postgresql:5432"
    )


async def test_a_missing_driver_is_named_with_the_extra_that_brings_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(storage_database, "_POSTGRES_MODULE", "psycopg_is_not_here")

    with pytest.raises(DatabaseUrlInvalid, match=r"install learning-gateway\[postgres\]"):
        async with open_database("postgresql://localhost/gateway"):
            pass


# Kept reads.


class Counted:
    """A read that counts how often it was made."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.reads = 0
        self.has_read = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def __call__(self) -> int:
        self.reads += 1
        found = await count_rows(self.database, job)
        self.has_read.set()
        await self.go_on.wait()
        return found


async def test_a_kept_read_is_made_again_once_anybody_has_committed(
    any_database: Database,
) -> None:
    kept = KeptReads[None, int](any_database, seconds=60)
    read = Counted(any_database)
    told = any_database.version() is not None

    before = [await kept.get(None, read) for _ in range(5)]
    reads_before = read.reads
    await execute(any_database, make_job("one"))
    after = [await kept.get(None, read) for _ in range(5)]

    assert told is (any_database.dialect == "sqlite")
    assert (before, after) == ([0] * 5, [1] * 5)
    assert (reads_before, read.reads) == ((1, 2) if told else (5, 10))


async def test_a_commit_of_another_process_is_seen(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'one.db'}"
    async with open_database(url) as ours, open_database(url) as theirs:
        kept = KeptReads[None, int](ours, seconds=60)
        read = Counted(ours)
        seen = [await kept.get(None, read)]
        for number in range(20):
            await execute(theirs, make_job(str(number)))
            seen += [await kept.get(None, read), await kept.get(None, read)]

    assert seen == [0, *(n for number in range(1, 21) for n in (number, number))]
    assert read.reads == 21


async def test_who_asks_after_a_commit_is_not_given_a_read_begun_before_it(
    any_database: Database,
) -> None:
    kept = KeptReads[None, int](any_database, seconds=60)
    read = Counted(any_database)
    read.go_on.clear()
    early = asyncio.create_task(kept.get(None, read))
    await read.has_read.wait()
    await execute(any_database, make_job("one"))
    late = [asyncio.create_task(kept.get(None, read)) for _ in range(50)]
    await asyncio.sleep(0)
    read.go_on.set()

    assert await early == 0
    assert [await each for each in late] == [1] * 50
    assert read.reads == 2, "those who asked meanwhile share one read"


async def test_a_kept_read_that_fails_or_is_given_up_is_made_again(any_database: Database) -> None:
    kept = KeptReads[None, int](any_database, seconds=60)
    read = Counted(any_database)

    async def fail() -> int:
        read.reads += 1
        raise StorageUnavailable("gone")

    with pytest.raises(StorageUnavailable):
        await kept.get(None, fail)
    read.go_on.clear()
    given_up = asyncio.create_task(kept.get(None, read))
    await read.has_read.wait()
    given_up.cancel()
    read.go_on.set()

    assert await kept.get(None, read) == 0
    assert read.reads == 3


async def test_a_kept_read_ages_and_the_least_used_goes_first(tmp_path: Path) -> None:
    async with open_database(f"sqlite:///{tmp_path / 'one.db'}") as database:
        aging = KeptReads[str, int](database, seconds=0.05)
        few = KeptReads[str, int](database, seconds=60, most=2)
        read, counted = Counted(database), Counted(database)

        await aging.get("a", read)
        await asyncio.sleep(0.06)
        await aging.get("a", read)
        for key in ("a", "b", "a", "c", "a", "b"):
            await few.get(key, counted)

    assert read.reads == 2
    assert counted.reads == 4, "a, b, c, and b once more"
