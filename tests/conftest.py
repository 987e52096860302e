"""Databases and keys for every test that keeps something, and the one real Kolibri.

Every test is also searched for the passwords and keys it uses: none may be in what it printed or
logged, nor in any database it leaves.

``sqlite_database`` is a fresh SQLite file; ``any_database`` runs a test twice, the second time on
a PostgreSQL server of our own making, which is skipped where PostgreSQL is not installed, unless
``GATEWAY_TEST_POSTGRES=required``.
"""

import asyncio
import base64
import gc
import getpass
import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import hypothesis
import pytest
import structlog
from real_servers import Kolibri, free_port, kolibri_server
from running_gateway import TOKEN
from sqlalchemy import Connection, create_engine, delete, make_url, text

from simulators.canvas.state import ADMIN_TOKEN, CLIENT_SECRET
from simulators.kolibri.population import PASSWORD, SUPERUSER_PASSWORD
from storage.credentials import KeyRing
from storage.database import Database, open_database
from storage.tables import metadata

# A busy machine is no failure, and a traceback with all its locals keeps one busy for seconds.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")
_CANARIES = (PASSWORD, SUPERUSER_PASSWORD, TOKEN, ADMIN_TOKEN, CLIENT_SECRET)
_numbers = count(1)


def _configure_logs() -> None:
    structlog.reset_defaults()  # configuring keeps where the last test sent its lines
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=True),
            structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
        ]
    )


_configure_logs()


def pytest_collection_finish() -> None:
    """Spare collections of garbage what is there for good: each would look at a million objects."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _same_logs() -> Iterator[None]:
    """Have each test begin with the same logs, whatever another one did to them."""
    yield
    _configure_logs()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.passed and call.when in {"call", "teardown"}:
        places = [*_printed(report), *_databases(item)]
        found = [name for name, content in places if any(c.encode() in content for c in _CANARIES)]
        if found:
            report.outcome = "failed"
            report.longrepr = f"A secret is legible in {', '.join(found)}"
    return report


def _printed(report: pytest.TestReport) -> Iterator[tuple[str, bytes]]:
    for name, content in report.sections:
        yield name, content.encode(errors="replace")


def _databases(item: pytest.Item) -> Iterator[tuple[str, bytes]]:
    folder = getattr(item, "funcargs", {}).get("tmp_path")
    for path in [] if folder is None else folder.rglob("*.db*"):
        if path.is_file():
            yield str(path), path.read_bytes()


@pytest.fixture(scope="session")
def real_kolibri() -> Iterator[Kolibri]:
    """A real server, installed, seeded and started for the run."""
    with kolibri_server("e2e") as server:
        yield server


@pytest.fixture
def key_ring() -> KeyRing:
    return KeyRing.parse(f"k1:{base64.b64encode(bytes(range(32))).decode()}")


@pytest.fixture
async def sqlite_database(sqlite_url: str) -> AsyncIterator[Database]:
    async with open_database(sqlite_url) as database:
        yield database


@pytest.fixture
async def any_database(any_database_url: str) -> AsyncIterator[Database]:
    async with open_database(any_database_url) as database:
        yield database


@pytest.fixture
def sqlite_url(migrated_file: Path, tmp_path: Path) -> str:
    path = tmp_path / "gateway.db"
    shutil.copyfile(migrated_file, path)
    return f"sqlite:///{path}"


@pytest.fixture(params=["sqlite", "postgresql"])
def any_database_url(request: pytest.FixtureRequest) -> str:
    """Of a database with empty tables."""
    if request.param == "sqlite":
        return str(request.getfixturevalue("sqlite_url"))
    url = str(request.getfixturevalue("migrated_postgres_url"))
    request.getfixturevalue("postgres_server").clear(url)
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a database that does not exist yet, or has no tables."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/made/gateway.db"
    return str(request.getfixturevalue("postgres_server").make_database())


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file to copy: making the tables takes longer than most tests."""
    path = tmp_path_factory.mktemp("template") / "gateway.db"
    asyncio.run(_make_tables(f"sqlite:///{path}"))
    return path


@pytest.fixture(scope="session")
def migrated_postgres_url(postgres_server: "PostgresServer") -> str:
    """Of the one database all tests share in turn: making one takes longer than most tests."""
    url = postgres_server.make_database()
    asyncio.run(_make_tables(url))
    return url


async def _make_tables(url: str) -> None:
    async with open_database(url):
        pass


class PostgresServer:
    """A PostgreSQL server for this test run only; its databases are thrown away with it."""

    def __init__(self, *, port: int, password: str) -> None:
        self.port = port
        self.password = password

    def url(self, database: str) -> str:
        return f"postgresql://gateway:{self.password}@127.0.0.1:{self.port}/{database}"

    def make_database(self) -> str:
        """Return the URL of a new database without tables."""
        name = f"gateway_{next(_numbers)}"
        with self._connected(self.url("postgres")) as connection:
            connection.execute(text(f"CREATE DATABASE {name} TEMPLATE template0"))
        return self.url(name)

    def clear(self, url: str) -> None:
        """Delete every row."""
        with self._connected(url) as connection:
            for table in reversed(metadata.sorted_tables):
                connection.execute(delete(table))

    @contextmanager
    def _connected(self, url: str) -> Iterator[Connection]:
        engine = create_engine(
            make_url(url).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT"
        )
        with engine.connect() as connection:
            yield connection
        engine.dispose()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    programs = _find_postgres_programs()
    missing = (
        "PostgreSQL's server is not installed"
        if programs is None
        else "psycopg is not installed"
        if importlib.util.find_spec("psycopg") is None
        else None
    )
    if programs is None or missing is not None:
        if os.environ.get("GATEWAY_TEST_POSTGRES") == "required":
            pytest.fail(f"GATEWAY_TEST_POSTGRES=required, but {missing}")
        pytest.skip(f"{missing}; not run on PostgreSQL")
    folder = Path(tempfile.mkdtemp(prefix="gateway-postgres-"))
    try:
        with _running_postgres(programs, folder) as server:
            yield server
    finally:
        shutil.rmtree(folder)


def _find_postgres_programs() -> Path | None:
    on_path = shutil.which("initdb")
    if on_path is not None:
        return Path(on_path).resolve().parent
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return installed[-1] if installed else None


@contextmanager
def _running_postgres(programs: Path, folder: Path) -> Iterator[PostgresServer]:
    server = PostgresServer(port=free_port(), password="p0stgres-pass")
    (folder / "password").write_text(server.password, encoding="ascii")
    user = None
    if getpass.getuser() == "root":  # initdb refuses to run as root
        user = "postgres"
        shutil.chown(folder, user)
        shutil.chown(folder / "password", user)

    def run(program: str, *arguments: str) -> None:
        subprocess.run(
            [str(programs / program), "--pgdata", str(folder / "data"), *arguments],
            check=True,
            cwd=folder,
            stdout=subprocess.DEVNULL,
            user=user,
        )

    run(
        "initdb",
        "--no-sync",
        "--encoding=UTF8",
        "--locale=C",
        "--username=gateway",
        "--auth=scram-sha-256",
        f"--pwfile={folder / 'password'}",
    )
    settings = {
        "port": str(server.port),
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": str(folder),
        "fsync": "off",
        "synchronous_commit": "off",
        "shared_buffers": "16MB",
    }
    options = " ".join(f"-c {name}={value}" for name, value in settings.items())
    run("pg_ctl", "start", "--wait", "--log", str(folder / "log"), "--options", options)
    try:
        yield server
    finally:
        run("pg_ctl", "stop", "--wait", "--mode", "immediate")
