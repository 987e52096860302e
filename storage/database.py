"""The database: SQLite in one file, or PostgreSQL by URL, with the same statements.

On SQLite one connection writes and a few others read. Write transactions begin with ``BEGIN
IMMEDIATE``, so a transaction that reads first can always go on to write, and writers of one
process queue in order instead of polling the file. The journal is write-ahead and flushed at
every commit (``synchronous=FULL``): a committed token survives a power cut.

Driver errors become ``StorageError`` here, and nowhere else.
"""

from __future__ import annotations

import asyncio
import fcntl
import importlib.util
import os
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Hashable,
    Iterator,
    Mapping,
)
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Final, Generic, NoReturn, TypeAlias, TypeVar

import anyio.to_thread
import structlog
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import (
    ColumnElement,
    Connection,
    NullPool,
    Table,
    create_engine,
    event,
    func,
    make_url,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, Engine
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    IntegrityError,
    OperationalError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.sql.base import ReadOnlyColumnCollection
from sqlalchemy.sql.elements import KeyedColumnElement

from storage.errors import (
    ConstraintViolated,
    DatabaseTooNew,
    DatabaseUrlInvalid,
    MigrationFailed,
    StorageError,
    StorageUnavailable,
)

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

Upsert: TypeAlias = sqlite.Insert | postgresql.Insert
NewRow: TypeAlias = ReadOnlyColumnCollection[str, KeyedColumnElement[Any]]

_DRIVERS: Final = {
    "sqlite": "sqlite+aiosqlite",
    "sqlite+aiosqlite": "sqlite+aiosqlite",
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}
_EXPECTED_URL: Final = (
    "expected sqlite:////absolute/path/of/file.db or postgresql://user:password@host:5432/database"
)
_BUSY_SECONDS: Final = 10
_CONNECT_SECONDS: Final = 5
_QUEUE_SECONDS: Final = 30
_MIGRATION_WAIT_SECONDS: Final = 120
_SQLITE_READERS: Final = 4
_POSTGRES_CONNECTIONS: Final = 10
_MIGRATION_LOCK: Final = 0x6C67_6D69_6772  # any number, as long as every version uses this one
_MOUNT_INFO: Final = Path("/proc/self/mountinfo")
_POSTGRES_MODULE: Final = "psycopg"
_ALEMBIC_LOCK: Final = threading.Lock()  # Alembic keeps the migration it runs in a global
_NETWORK_FILE_SYSTEMS: Final = frozenset(
    {"9p", "afs", "ceph", "cifs", "fuse.glusterfs", "fuse.sshfs", "nfs", "nfs4", "smb3", "smbfs"}
)
_SQLITE_ARGUMENTS: Final[dict[str, Any]] = {"isolation_level": None, "timeout": _BUSY_SECONDS}
_SQLITE_PRAGMAS: Final = {"synchronous": "FULL", "foreign_keys": "ON"}
_POSTGRES_ARGUMENTS: Final[Mapping[str, Any]] = {
    "connect_timeout": _CONNECT_SECONDS,
    "prepare_threshold": None,  # named prepared statements break behind a transaction pooler
}
_POSTGRES_REASONS: Final = {  # by class of the SQLSTATE
    "08": "cut the connection",
    "40": "undid the transaction because of another one",
    "53": "is out of memory, disk space or connections",
    "55": "stayed locked by another process",
    "57": "stopped the statement, or is shutting down",
}
_SQLITE_REASONS: Final = {
    "SQLITE_BUSY": f"stayed locked by another process for {_BUSY_SECONDS} seconds",
    "SQLITE_CANTOPEN": "cannot be opened",
    "SQLITE_CORRUPT": "is damaged",
    "SQLITE_FULL": "cannot grow, because the disk is full",
    "SQLITE_IOERR": "cannot be read or written",
    "SQLITE_LOCKED": "is locked by another connection",
    "SQLITE_NOTADB": "is not a SQLite file",
    "SQLITE_PERM": "may not be used by this process",
    "SQLITE_READONLY": "may not be written by this process",
}

_log = structlog.get_logger(__name__)


class Database:
    """Connections to one database; made by ``open_database``.

    Attributes:
        dialect: ``sqlite`` or ``postgresql``.
        place: Where it is, for a person, without a password.
    """

    def __init__(self, url: URL) -> None:
        self.dialect = url.get_backend_name()
        self.place = _place(url)
        if self.dialect == "sqlite":
            self._writers = _sqlite_engine(url, begin="BEGIN IMMEDIATE", pool_size=1)
            self._readers = _sqlite_engine(
                url, begin="BEGIN", pool_size=_SQLITE_READERS, read_only=True
            )
        else:
            self._writers = _postgresql_engine(url)
            self._readers = self._writers.execution_options(postgresql_readonly=True)
        self._returning: set[asyncio.Task[None]] = set()
        self._file = url.database if self.dialect == "sqlite" else None
        self._watching: sqlite3.Connection | None = None

    def version(self) -> int | None:
        """Return a number that every later commit of any process changes, without waiting.

        Returns:
            ``None`` where it cannot be told: on PostgreSQL, and while the file is locked.

        Source:
            https://www.sqlite.org/pragma.html#pragma_data_version: it differs from an earlier one
            of the same connection when another connection has committed; ours commits nothing.
        """
        if self._file is None:
            return None
        try:
            if self._watching is None:
                self._watching = sqlite3.connect(self._file, timeout=0, isolation_level=None)
            (version,) = self._watching.execute("PRAGMA data_version").fetchone()
        except sqlite3.Error:
            return None
        return int(version)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """Lend a connection for writing; commit at the end, roll back if an error passes.

        Not to be nested in one task: on SQLite there is one writer at a time. When the task is
        cancelled during the commit itself, the outcome is not known.

        Raises:
            StorageUnavailable: The database was not reached, or stayed locked.
            ConstraintViolated: A key is taken, or a parent is missing; nothing was changed.
            StorageError: The database refused a statement; nothing was changed.
        """
        try:
            async with self._lent(self._writers) as connection, connection.begin():
                yield connection
        except (DBAPIError, PoolTimeout) as error:
            self._raise_translated(error)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """Lend a connection for reading; on SQLite all its statements see one state.

        Raises:
            StorageUnavailable: The database was not reached.
            StorageError: The database refused a statement, such as one that writes.
        """
        try:
            async with self._lent(self._readers) as connection:
                yield connection
        except (DBAPIError, PoolTimeout) as error:
            self._raise_translated(error)

    def upsert(
        self,
        table: Table,
        values: Mapping[str, object],
        *,
        change: Collection[str] | Mapping[str, object],
        where: Callable[[NewRow], ColumnElement[bool]] | None = None,
    ) -> Upsert:
        """Return the statement that inserts a row or, if its primary key is taken, changes it.

        Args:
            table: The table.
            values: Column names to values of the new row.
            change: What to do to the row that is there: names of the columns that take the new
                row's values, or columns with other values. Nothing, when empty.
            where: Called with the new row's columns, says which row that is there is changed;
                when left out, every one.
        """
        insert = sqlite.insert if self.dialect == "sqlite" else postgresql.insert
        statement = insert(table).values(**values)
        key = [*table.primary_key]
        if not change:
            return statement.on_conflict_do_nothing(index_elements=key)
        if not isinstance(change, Mapping):
            change = {name: statement.excluded[name] for name in change}
        return statement.on_conflict_do_update(
            index_elements=key,
            set_=change,
            where=None if where is None else where(statement.excluded),
        )

    async def close(self) -> None:
        """Close every connection, those on loan when they are given back.

        ``open_database`` does it; what is asked afterwards opens connections anew.
        """
        if self._watching is not None:
            self._watching.close()
            self._watching = None
        if self._returning:
            await asyncio.wait(self._returning)
        await self._writers.dispose()
        await self._readers.dispose()

    @asynccontextmanager
    async def _lent(self, engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
        """Lend a connection, taken and given back whole even if the task is cancelled meanwhile.

        One that is being opened when its task is cancelled would be lost, and never closed.
        """
        connection, pool = engine.connect(), engine.pool
        opening = asyncio.create_task(connection.start())
        try:
            await asyncio.shield(opening)
        except asyncio.CancelledError:
            self._return(_close_when_open(opening))
            raise
        try:
            yield connection
        finally:
            await asyncio.shield(self._return(_give_back(connection, keep=engine.pool is pool)))

    def _return(self, closing: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(closing)
        self._returning.add(task)
        task.add_done_callback(self._returning.discard)
        return task

    def _raise_translated(self, error: SQLAlchemyError) -> NoReturn:
        raise _translated(error, self.place) from error


class KeptReads(Generic[K, T]):
    """Answers of the database by key, each served again until anything is committed.

    Where the database does not tell of commits nothing is served twice; but callers that ask for
    the same at the same time share one read, which began after each of them asked. So an answer
    is never older than the question, whoever wrote in between.

    Args:
        database: Tells of commits.
        seconds: How old an answer may get: for those that change with the database's clock.
        most: How many keys are remembered.
    """

    def __init__(self, database: Database, *, seconds: float, most: int = 1) -> None:
        self._database = database
        self._seconds = seconds
        self._most = most
        self._turns = count(1)
        self._kept: OrderedDict[K, _Kept[T]] = OrderedDict()

    async def get(self, key: K, read: Callable[[], Awaitable[T]]) -> T:
        """Return what is kept, or what reading gives.

        Raises:
            StorageError: The database could not answer; the next caller asks again.
        """
        kept = self._kept.get(key)
        if kept is None:
            kept = self._kept[key] = _Kept()
        self._kept.move_to_end(key)
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)
        if self._is_current(kept):
            return self._outcome(kept)
        asked = next(self._turns)
        async with kept.reading:
            if kept.begun < asked:
                await self._read(kept, read)
            return self._outcome(kept)

    async def _read(self, kept: _Kept[T], read: Callable[[], Awaitable[T]]) -> None:
        begun, read_at, version = next(self._turns), time.monotonic(), self._database.version()
        try:
            kept.value, kept.error = await read(), None
        except StorageError as error:
            kept.error, version = error, None
        kept.begun, kept.read_at, kept.version = begun, read_at, version

    def _is_current(self, kept: _Kept[T]) -> bool:
        return (
            kept.version is not None
            and time.monotonic() - kept.read_at < self._seconds
            and kept.version == self._database.version()
        )

    @staticmethod
    def _outcome(kept: _Kept[T]) -> T:
        if kept.error is not None:
            raise kept.error
        return kept.value  # type: ignore[return-value]  # it was read: there is no error


@dataclass(slots=True)
class _Kept(Generic[T]):
    """One answer: which turn its read had, when it began, and at which version."""

    value: T | None = None
    error: StorageError | None = None
    begun: int = 0
    read_at: float = 0.0
    version: int | None = None
    reading: asyncio.Lock = field(default_factory=asyncio.Lock)


async def _give_back(connection: AsyncConnection, *, keep: bool) -> None:
    if not keep:  # the pool it came from was closed meanwhile
        await connection.invalidate()
    await connection.close()


async def _close_when_open(opening: asyncio.Task[AsyncConnection]) -> None:
    with suppress(DBAPIError, PoolTimeout):  # then there is nothing to close
        await (await opening).close()


@asynccontextmanager
async def open_database(url: str) -> AsyncIterator[Database]:
    """Open the database, bring its tables up to date, and close every connection at the end.

    A missing SQLite file is made, readable by its owner only, with the folders above it. Any
    number of processes may do this at once: one migrates while the others wait.

    Args:
        url: ``sqlite:////absolute/path`` or ``postgresql://user:password@host:port/database``.

    Raises:
        DatabaseUrlInvalid: The URL is of another form, or its driver is not installed.
        StorageUnavailable: The database cannot be reached, opened or locked.
        DatabaseTooNew: Its tables were made by a newer gateway.
        MigrationFailed: Its tables could not be brought up to date.
    """
    parsed = _parsed_url(url)
    await anyio.to_thread.run_sync(_migrate, parsed)
    database = Database(parsed)
    try:
        yield database
    finally:
        await database.close()


def _parsed_url(url: str) -> URL:
    try:
        parsed = make_url(url)
        driver = _DRIVERS[parsed.drivername]
    except (ArgumentError, KeyError, ValueError):
        # Without the cause: it would quote the URL, password and all.
        raise DatabaseUrlInvalid(f"The database URL is not understood: {_EXPECTED_URL}") from None
    if driver == "sqlite+aiosqlite" and (parsed.database or ":memory:") == ":memory:":
        raise DatabaseUrlInvalid(f"The database must be a file: {_EXPECTED_URL}")
    if driver == "postgresql+psycopg" and importlib.util.find_spec(_POSTGRES_MODULE) is None:
        raise DatabaseUrlInvalid("PostgreSQL needs the extra: install learning-gateway[postgres]")
    return parsed.set(drivername=driver)


def _place(url: URL) -> str:
    if url.get_backend_name() == "sqlite":
        return f"SQLite database {url.database}"
    address = url.host or url.query.get("host") or "localhost"
    return f"PostgreSQL database {url.database} at {address}:{url.port or 5432}"


def _sqlite_engine(url: URL, *, begin: str, pool_size: int, read_only: bool = False) -> AsyncEngine:
    engine = create_async_engine(
        url,
        connect_args=_SQLITE_ARGUMENTS,
        hide_parameters=True,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=_QUEUE_SECONDS,
    )
    pragmas = {**_SQLITE_PRAGMAS, "query_only": "ON" if read_only else "OFF"}
    _prepare_sqlite(engine.sync_engine, begin=begin, pragmas=pragmas)
    return engine


def _prepare_sqlite(engine: Engine, *, begin: str, pragmas: Mapping[str, str]) -> None:
    # SQLite's own settings, and its kinds of BEGIN, have no other form than text.

    @event.listens_for(engine, "connect")
    def _set(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()
        for name, value in pragmas.items():
            cursor.execute(f"PRAGMA {name}={value}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)


def _postgresql_engine(url: URL) -> AsyncEngine:
    return create_async_engine(
        url,
        connect_args=_POSTGRES_ARGUMENTS,
        hide_parameters=True,
        pool_pre_ping=True,  # a restart of the server costs no request
        pool_size=_POSTGRES_CONNECTIONS,
        max_overflow=0,
        pool_timeout=_QUEUE_SECONDS,
    )


def _translated(error: SQLAlchemyError, place: str) -> StorageError:
    if isinstance(error, IntegrityError):
        return ConstraintViolated(f"The {place} refused a row that breaks a promise of its tables")
    if not isinstance(error, DBAPIError):
        return StorageUnavailable(f"The {place} is too busy: no connection became free in time")
    reason = _outage_reason(error)
    if reason is not None:
        return StorageUnavailable(f"The {place} {reason}")
    return StorageError(f"The {place} refused a statement")


def _outage_reason(error: DBAPIError) -> str | None:
    """Say what is wrong with the database itself; ``None`` when it is the statement."""
    name = getattr(error.orig, "sqlite_errorname", None)
    if name is not None:
        return next((why for start, why in _SQLITE_REASONS.items() if name.startswith(start)), None)
    if not (error.connection_invalidated or isinstance(error, OperationalError)):
        return None
    state = getattr(error.orig, "sqlstate", None) or ""
    if state[:2] in _POSTGRES_REASONS:
        return _POSTGRES_REASONS[state[:2]]
    # While connecting the driver gives no code, only the server's words after FATAL.
    _, fatal, words = str(error.orig).rpartition("FATAL:")
    if fatal:
        return f"refused the connection: {words.strip().splitlines()[0]}"
    return "was not reached, or cut the connection"


def _migrate(url: URL) -> None:
    """Bring the tables up to date under a lock; blocks, so it is run in a thread."""
    with ExitStack() as stack:
        if url.get_backend_name() == "sqlite":
            engine = _open_sqlite_for_migration(url, stack)
        else:
            engine = create_engine(url, connect_args=_POSTGRES_ARGUMENTS, poolclass=NullPool)
        stack.callback(engine.dispose)
        stack.enter_context(_ALEMBIC_LOCK)
        try:
            with engine.begin() as connection:
                _lock_migrations(connection)
                _upgrade(connection)
        except DBAPIError as error:
            translated = _translated(error, _place(url))
            if isinstance(translated, StorageUnavailable):
                raise translated from error
            raise MigrationFailed(
                f"The tables of the {_place(url)} could not be brought up to date; "
                "they are as they were before"
            ) from error


def _open_sqlite_for_migration(url: URL, stack: ExitStack) -> Engine:
    path = Path(url.database or "")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        _warn_of_network_file_system(path)
        stack.enter_context(_locked_file(path.with_name(f"{path.name}.lock")))
    except TimeoutError as error:
        raise StorageUnavailable(
            f"The {_place(url)} is being brought up to date by another process, "
            f"which did not finish within {_MIGRATION_WAIT_SECONDS} seconds"
        ) from error
    except OSError as error:
        raise StorageUnavailable(f"The {_place(url)} cannot be opened: {error.strerror}") from error
    engine = create_engine(
        url.set(drivername="sqlite"), connect_args=_SQLITE_ARGUMENTS, poolclass=NullPool
    )
    # A later migration may have to rebuild a table that others refer to. The journal mode is a
    # property of the file; changing it needs the file to oneself.
    pragmas = {**_SQLITE_PRAGMAS, "foreign_keys": "OFF", "journal_mode": "WAL"}
    _prepare_sqlite(engine, begin="BEGIN IMMEDIATE", pragmas=pragmas)
    return engine


@contextmanager
def _locked_file(path: Path) -> Iterator[None]:
    deadline = time.monotonic() + _MIGRATION_WAIT_SECONDS
    with path.open("a", encoding="ascii") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError from None
                time.sleep(0.02)
        yield  # closing the file frees the lock, as does the end of the process


def _warn_of_network_file_system(path: Path, mount_info: Path = _MOUNT_INFO) -> None:
    file_system = _file_system_of(path, mount_info)
    if file_system in _NETWORK_FILE_SYSTEMS:
        _log.warning(
            "database_on_network_file_system",
            path=str(path),
            file_system=file_system,
            advice="SQLite's locks do not hold there: use a local disk, or PostgreSQL",
        )


def _file_system_of(path: Path, mount_info: Path) -> str | None:
    """Return the type of the file system a path is on; ``None`` where the system does not say.

    Source:
        https://www.kernel.org/doc/Documentation/filesystems/proc.txt, section 3.5
    """
    try:
        lines = mount_info.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    types_by_mount_point = {
        line.split()[4]: line.partition(" - ")[2].split()[0] for line in lines if " - " in line
    }
    above = [str(folder) for folder in (path.resolve(), *path.resolve().parents)]
    return next((types_by_mount_point[at] for at in above if at in types_by_mount_point), None)


def _lock_migrations(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        wait = func.set_config("lock_timeout", f"{_MIGRATION_WAIT_SECONDS}s", True)
        connection.execute(select(wait))
        connection.execute(select(func.pg_advisory_xact_lock(_MIGRATION_LOCK)))


def _upgrade(connection: Connection) -> None:
    config = Config()
    folder = Path(__file__).parent / "migrations"
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    config.attributes["connection"] = connection
    script = ScriptDirectory.from_config(config)
    known = {revision.revision for revision in script.walk_revisions()}
    current = MigrationContext.configure(connection).get_current_heads()
    unknown = sorted(set(current) - known)
    if unknown:
        raise DatabaseTooNew(
            f"The database was last used by a newer gateway (its tables are at {unknown[0]}): "
            "install that version again, or restore a backup made before"
        )
    if set(current) != set(script.get_heads()):
        command.upgrade(config, "heads")
        _log.info("database_migrated", before=list(current), now=script.get_heads())
