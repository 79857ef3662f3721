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

from sqlalchemy import create_engine, event, func, inspect, select
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session, sessionmaker

from server.store.revisions import NEWEST

log = logging.getLogger(__name__)

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


class DatabaseClosedError(Exception):
    """A transaction was begun after the database was closed."""


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

    def dedicated_connection(self) -> Connection:
        """A connection outside the pool, closed for good by `close`. Each statement is a transaction."""
        connection = self.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        connection.detach()
        return connection

    def revision(self) -> str | None:
        """The migration that the tables are at; None: there are none."""
        with self.engine.connect() as connection:
            if not inspect(connection).has_table("alembic_version"):
                return None
            revision: str | None = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one_or_none()
            return revision

    def migrate(self, revision: str = "head") -> None:
        """Bring the tables to a revision, up or down, in one transaction; servers that start at once, one after the other.

        revision: `head`, `base`, or a migration's. Raises NewerDatabaseError when the tables are at one that is not known here,
        UnknownRevisionError when `revision` is none.
        """
        if revision == "head" and self.revision() == NEWEST:
            return
        from server.store.migrating import migrate  # what it takes to change tables is slow to import, and seldom needed

        migrate(self.engine, revision)

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
                raise DatabaseClosedError("the server stops: its database is closed")
            self._in_progress += 1
        try:
            yield
        finally:
            with self._idle:
                self._in_progress -= 1
                self._idle.notify_all()


def advisory_lock(session: Session, subject: str) -> None:
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
