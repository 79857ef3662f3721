"""Transactions on the database, SQLite in WAL mode or PostgreSQL, and its migrations.

Transactions are short and synchronous: routes run them in the server's thread pool, the reconciler in threads.
"""

from __future__ import annotations

import hashlib
import json
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

from cafe_core.text import may_be_unprintable, printable_json
from server.store.revisions import NEWEST

log = logging.getLogger(__name__)

CLOSES_WITHIN_S = 10.0

# Broken or hanging connections are detected within seconds: a request waits for them, and a server frozen in the middle of a
# transaction would keep all others waiting for the rows it has locked.
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


def _to_json(value: Any) -> str:
    text = json.dumps(value)
    return json.dumps(printable_json(value)) if may_be_unprintable(text) else text


def _from_json(text: str | bytes) -> Any:
    """Read JSON; make texts printable that an earlier version stored. Otherwise one row would break every list that it is in."""
    text = text.decode() if isinstance(text, bytes) else text
    value = json.loads(text)
    return printable_json(value) if may_be_unprintable(text) else value


_JSON: dict[str, Any] = {"json_serializer": _to_json, "json_deserializer": _from_json}


class DatabaseClosedError(Exception):
    """A transaction was started after the database was closed."""


class Database:
    """Transactions on one database."""

    def __init__(self, url: str) -> None:
        """url: an SQLAlchemy URL; `postgresql://…` selects psycopg."""
        parsed = make_url(url)
        if parsed.drivername in ("postgresql", "postgres"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        if parsed.get_backend_name() == "sqlite":
            self.engine = create_engine(parsed, hide_parameters=True, **_JSON)
        else:
            self.engine = create_engine(parsed, hide_parameters=True, **_JSON, **_POSTGRESQL)
        self.sessions = sessionmaker(self.engine, expire_on_commit=False)
        """The factory of all sessions of this database; attach listeners for their commits here."""
        self._idle = threading.Condition()
        self._in_progress = 0
        self._closed = False
        if self.engine.dialect.name == "sqlite":
            _configure_sqlite(self.engine)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Run a read-only transaction."""
        with self._open(), self.sessions() as session, session.begin():
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Run a transaction that is committed at the end of the block, or rolled back by an exception.

        With SQLite the write lock is taken at the start, so everything read in the transaction stays valid until the commit. With
        PostgreSQL, read a row with a lock if it must not change.
        """
        engine = self.engine.execution_options(writes=True)
        with self._open(), self.sessions(bind=engine) as session, session.begin():
            yield session

    def dedicated_connection(self) -> Connection:
        """Open a connection outside the pool, which the caller closes. Each statement is its own transaction."""
        connection = self.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        connection.detach()
        return connection

    def revision(self) -> str | None:
        """Return the revision that the tables are at; None if there are no tables."""
        with self.engine.connect() as connection:
            if not inspect(connection).has_table("alembic_version"):
                return None
            revision: str | None = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one_or_none()
            return revision

    def migrate(self, revision: str = "head") -> None:
        """Upgrade or downgrade the tables in one transaction. Servers that start at the same time do this one after the other.

        revision: `head`, `base`, or the revision of a migration. Raises NewerDatabaseError if the tables are at a revision
        that this version does not know, and UnknownRevisionError if `revision` does not exist.
        """
        if revision == "head" and self.revision() == NEWEST:
            return
        from server.store.migrating import migrate  # Alembic is slow to import and seldom needed

        migrate(self.engine, revision)

    def copy_to(self, path: Path) -> None:
        """Write a consistent copy of the SQLite database to a new file, without blocking readers or writers."""
        with self.engine.connect() as connection:
            sqlite = connection.connection.driver_connection
            assert sqlite is not None
            sqlite.execute("VACUUM INTO ?", (str(path),))

    def close(self) -> None:
        """Close all connections after waiting for running transactions: threads may outlive the tasks that awaited them."""
        with self._idle:
            self._closed = True
            if not self._idle.wait_for(lambda: self._in_progress == 0, CLOSES_WITHIN_S):
                log.warning("closing the database while %d transactions are still running", self._in_progress)
        self.engine.dispose()

    @contextmanager
    def _open(self) -> Iterator[None]:
        """Count a running transaction."""
        with self._idle:
            if self._closed:
                raise DatabaseClosedError("the database is closed because the server is shutting down")
            self._in_progress += 1
        try:
            yield
        finally:
            with self._idle:
                self._in_progress -= 1
                self._idle.notify_all()


def advisory_lock(session: Session, subject: str) -> None:
    """Lock a subject until the end of the transaction, so that rows found to be absent stay absent.

    This only has an effect on PostgreSQL: SQLite has one writer at a time anyway.
    """
    if session.get_bind().dialect.name == "postgresql":
        number = int.from_bytes(hashlib.sha256(subject.encode()).digest()[:8], "big", signed=True)
        session.execute(select(func.pg_advisory_xact_lock(number)))


def is_outage(error: SQLAlchemyError) -> bool:
    """Return whether the database is unreachable or overloaded, so that a retry may succeed."""
    return isinstance(error, OperationalError | InterfaceError | PoolTimeoutError) or (
        isinstance(error, DBAPIError) and error.connection_invalidated
    )


def _configure_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # transactions begin in `begin` below, not implicitly in the driver
        # FULL: with NORMAL, a power failure may undo a commit that was already reported to a client.
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "busy_timeout = 10000"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
