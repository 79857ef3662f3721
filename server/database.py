"""Tables, and transactions on them. SQLite in WAL mode; nothing here is particular to it but `_configure_sqlite`.

Reads and writes are short and synchronous: routes run in the server's thread pool, the reconciler calls them in threads.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, String, Text, create_engine, event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from cafe_core.jobdir import utc_now
from server.states import Status


def new_id(prefix: str) -> str:
    """`<prefix>_` and 16 random base32 characters in lower case: 80 bits."""
    return f"{prefix}_{base64.b32encode(secrets.token_bytes(10)).decode().lower()}"


class Base(DeclarativeBase):
    """Times are RFC 3339 text in UTC with microseconds, so that their order is the text's."""

    type_annotation_map = {dict[str, Any]: JSON, Status: String(16)}  # noqa: RUF012 - SQLAlchemy's declaration


class Job(Base):
    """A job. `version` grows with every change to the row: it is the ETag."""

    __tablename__ = "jobs"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    """Order of creation; the cursor of listings."""
    id: Mapped[str] = mapped_column(String(40), unique=True)
    kind: Mapped[str] = mapped_column(String(16))
    name: Mapped[str | None] = mapped_column(Text)
    status: Mapped[str] = mapped_column(String(16), default=Status.QUEUED.value, index=True)
    attempt: Mapped[int] = mapped_column(default=1)
    phase: Mapped[str | None] = mapped_column(String(32))
    done: Mapped[int] = mapped_column(default=0)
    total: Mapped[int] = mapped_column(default=0)
    eta_s: Mapped[float | None] = mapped_column()
    spec: Mapped[dict[str, Any]] = mapped_column()
    result: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    created_at: Mapped[str] = mapped_column(String(32), default=utc_now)
    started_at: Mapped[str | None] = mapped_column(String(32))
    finished_at: Mapped[str | None] = mapped_column(String(32))
    last_event: Mapped[int] = mapped_column(default=0)
    """The number of the job's newest event."""
    version: Mapped[int] = mapped_column()

    labels: Mapped[list[JobLabel]] = relationship(cascade="all, delete-orphan", lazy="selectin", order_by="JobLabel.key")

    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 - SQLAlchemy's declaration
    __table_args__ = ({"sqlite_autoincrement": True},)

    @property
    def state(self) -> Status:
        """`status` as the enum."""
        return Status(self.status)


class JobLabel(Base):
    """A label of a job, in a table of its own so that jobs are found by it."""

    __tablename__ = "job_labels"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(String(128), primary_key=True)
    value: Mapped[str] = mapped_column(String(128))

    __table_args__ = (Index("job_labels_by_value", "key", "value"),)


class Attempt(Base):
    """A run of a job's driver. `events_offset`: bytes of its events.jsonl that are in the events table."""

    __tablename__ = "attempts"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    created_at: Mapped[str] = mapped_column(String(32), default=utc_now)
    submitted_at: Mapped[str | None] = mapped_column(String(32))
    """When Ray took it; None: Ray may or may not have it."""
    finished_at: Mapped[str | None] = mapped_column(String(32))
    events_offset: Mapped[int] = mapped_column(default=0)
    outcome: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """Its driver's last word: a `finished`, `failed` or `cancelled` event."""


class Event(Base):
    """Something that happened to a job, numbered from 1 within the job."""

    __tablename__ = "events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    attempt: Mapped[int] = mapped_column()
    time: Mapped[str] = mapped_column(String(32))
    type: Mapped[str] = mapped_column(String(32))
    data: Mapped[dict[str, Any]] = mapped_column()


class IdempotencyKey(Base):
    """What a POST with an Idempotency-Key made."""

    __tablename__ = "idempotency"

    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    body_sha256: Mapped[str] = mapped_column(String(64))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[str] = mapped_column(String(32), default=utc_now)


class Dataset(Base):
    """An uploaded dataset."""

    __tablename__ = "datasets"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(40), unique=True)
    name: Mapped[str] = mapped_column(Text)
    size: Mapped[int] = mapped_column()
    sha256: Mapped[str] = mapped_column(String(64))
    info: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """DatasetInfo; None where it depends on `image_size` or `channels` of a spec."""
    created_at: Mapped[str] = mapped_column(String(32), default=utc_now)


class Database:
    """Transactions on one database; its tables are made when they are absent."""

    def __init__(self, url: str) -> None:
        self._engine = create_engine(url)
        if self._engine.dialect.name == "sqlite":
            _configure_sqlite(self._engine)
        Base.metadata.create_all(self._engine)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that only reads."""
        with Session(self._engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that writes: committed at the end, rolled back by an exception.

        SQLite takes its write lock at the start, so what is read within is still so when it is written.
        """
        engine = self._engine.execution_options(writes=True)
        with Session(engine, expire_on_commit=False) as session, session.begin():
            yield session

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()


def _configure_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # transactions begin below, not where the driver thinks they should
        for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON", "busy_timeout = 10000"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
