"""Transactions on the database, and its migrations. SQLite in WAL mode, or PostgreSQL.

Reads and writes are short and synchronous: routes run in the server's thread pool, the reconciler calls them in threads.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, event, func, inspect, select
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session, sessionmaker

log = logging.getLogger(__name__)

MIGRATIONS = Path(__file__).with_name("migrations")
BEFORE_MIGRATIONS = "0001"
"""The revision of a database that was made before there were migrations."""
MIGRATING = 0x0CAFE001
"""PostgreSQL's advisory lock while the tables are changed."""

CLOSES_WITHIN_S = 10.0

# What is broken or hangs is to be noticed within seconds: a request waits for it, and a server that was frozen amid a
# transaction would have all others wait for the rows it holds.
_POSTGRESQL: dict[str, Any] = {
    "pool_pre_ping": True,
    "pool_size": 5,
    "max_overflow": 15,
    "pool_timeout": 20,
    "connect_args": {
        "application_name": "cafe",
        "connect_timeout": 5,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "tcp_user_timeout": 10_000,
        "options": "-c idle_in_transaction_session_timeout=30s -c lock_timeout=20s -c tcp_keepalives_idle=10",
    },
}


class ClosedError(Exception):
    """A transaction was begun after the database was closed."""


class NewerDatabaseError(Exception):
    """The tables are at a migration that this version of the server does not know."""


class UnknownRevisionError(ValueError):
    """There is no such migration."""


class Database:
    """Transactions on one database."""

    def __init__(self, url: str) -> None:
        """url: SQLAlchemy's, or `postgresql://…`, for which psycopg is taken."""
        parsed = make_url(url)
        if parsed.drivername in ("postgresql", "postgres"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        if parsed.get_backend_name() == "sqlite":
            self.engine = create_engine(parsed, hide_parameters=True)
        else:
            self.engine = create_engine(parsed, hide_parameters=True, **_POSTGRESQL)
        self.sessions = sessionmaker(self.engine, expire_on_commit=False)
        """Makes every session of this database: what is to hear of their commits listens here."""
        self._idle = threading.Condition()
        self._in_progress = 0
        self._closed = False
        if self.engine.dialect.name == "sqlite":
            _configure_sqlite(self.engine)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that only reads."""
        with self._open(), self.sessions() as session, session.begin():
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that writes: committed at the end, rolled back by an exception.

        SQLite takes its write lock at the start, so what is read within is still so when it is written. On PostgreSQL
        what is to stay so is read with a lock on its row.
        """
        engine = self.engine.execution_options(writes=True)
        with self._open(), self.sessions(bind=engine) as session, session.begin():
            yield session

    def connect_alone(self) -> Connection:
        """A connection outside the pool, closed for good by `close`. Each statement is a transaction."""
        connection = self.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        connection.detach()
        return connection

    def revision(self) -> str | None:
        """The migration that the tables are at; None: there are none."""
        with self.engine.connect() as connection:
            return _revision(connection)

    def migrate(self, revision: str = "head") -> None:
        """Bring the tables to a revision, up or down, in one transaction; servers that start at once, one after the other.

        revision: `head`, `base`, or a migration's. Raises NewerDatabaseError when the tables are at one that is not known here,
        UnknownRevisionError when `revision` is none.
        """
        with self.engine.connect() as connection, _tables_may_be_replaced(connection), connection.begin():
            if connection.dialect.name == "postgresql":
                connection.exec_driver_sql("SET LOCAL lock_timeout = 0")  # the server before may take its time
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MIGRATING})")
            config = _config(connection)
            scripts = ScriptDirectory.from_config(config)
            _refuse_newer(_revision(connection), scripts)
            target = "base" if revision == "base" else _known(revision, scripts)
            if _revision(connection) is None and inspect(connection).has_table("jobs"):
                command.stamp(config, BEFORE_MIGRATIONS)
            down = {script.revision for script in scripts.iterate_revisions(_revision(connection) or "base", "base")}
            (command.downgrade if target == "base" or target in down else command.upgrade)(config, target)
            _check_references(connection)

    def copy_to(self, path: Path) -> None:
        """Write SQLite's tables, as they are at one moment, into a new file. Whoever reads or writes meanwhile is not held up."""
        with self.engine.connect() as connection:
            sqlite = connection.connection.driver_connection
            assert sqlite is not None
            sqlite.execute("VACUUM INTO ?", (str(path),))

    def close(self) -> None:
        """Close all connections once no transaction is in progress: threads may outlive the tasks that waited for them."""
        with self._idle:
            self._closed = True
            if not self._idle.wait_for(lambda: self._in_progress == 0, CLOSES_WITHIN_S):
                log.warning("%d transactions are still in progress", self._in_progress)
        self.engine.dispose()

    @contextmanager
    def _open(self) -> Iterator[None]:
        """Around a transaction."""
        with self._idle:
            if self._closed:
                raise ClosedError("the server stops: its database is closed")
            self._in_progress += 1
        try:
            yield
        finally:
            with self._idle:
                self._in_progress -= 1
                self._idle.notify_all()


def newest_revision() -> str:
    """The migration that this version of the server works with."""
    revision = ScriptDirectory(str(MIGRATIONS)).get_current_head()
    assert revision is not None
    return revision


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def serialise(session: Session, subject: str) -> None:
    """Until its end, let no other transaction pass that names the same subject: what is looked for then stays absent.

    PostgreSQL only; with SQLite one writes at a time anyway.
    """
    if session.get_bind().dialect.name == "postgresql":
        number = int.from_bytes(hashlib.sha256(subject.encode()).digest()[:8], "big", signed=True)
        session.execute(select(func.pg_advisory_xact_lock(number)))


def is_outage(error: SQLAlchemyError) -> bool:
    """Whether the database is away or overtaxed, not the statement wrong: asking again later may help."""
    return isinstance(error, OperationalError | InterfaceError | PoolTimeoutError) or (
        isinstance(error, DBAPIError) and error.connection_invalidated
    )


def _refuse_newer(revision: str | None, scripts: ScriptDirectory) -> None:
    if revision is not None and revision not in {script.revision for script in scripts.walk_revisions()}:
        raise NewerDatabaseError(
            f"the database's tables are at revision {revision}, which this version of the server does not know (its newest is "
            f"{scripts.get_current_head()}): upgrade the program, restore the backup of before, or downgrade them with the newer"
        )


def _known(revision: str, scripts: ScriptDirectory) -> str:
    known = [script.revision for script in scripts.walk_revisions()]
    if revision == "head":
        return known[0]
    if revision not in known:
        raise UnknownRevisionError(f"there is no revision {revision!r}; there are base, {', '.join(reversed(known))}, head")
    return revision


def _check_references(connection: Connection) -> None:
    """SQLite does not check while tables are replaced; nothing is committed that refers to what is not there."""
    if connection.dialect.name == "sqlite":
        violations = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
        assert not violations, f"rows refer to rows that are not there: {violations[:5]}"


@contextmanager
def _tables_may_be_replaced(connection: Connection) -> Iterator[None]:
    """SQLite alters a table by making it anew: dropping the old one must not delete what refers to its rows."""
    connection.execution_options(writes=True)
    if connection.dialect.name != "sqlite":
        yield
        return
    sqlite = connection.connection.driver_connection
    assert sqlite is not None
    sqlite.execute("PRAGMA foreign_keys = OFF")  # heard only outside a transaction
    try:
        yield
    finally:
        sqlite.execute("PRAGMA foreign_keys = ON")


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    return config


def _configure_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # transactions begin below, not where the driver thinks they should
        # FULL: with NORMAL a power failure may take back what was committed, and a client was told, a moment before.
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "busy_timeout = 10000"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
