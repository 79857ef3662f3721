"""The database tables. `server/store/migrations` creates them; a test compares the two.

::

    api_keys ──┬─ jobs ──┬─ job_labels
      (owner)  │         ├─ attempts ── artifacts
               │         ├─ events
               │         ├─ idempotency
               │         └─ deliveries     webhooks to send
               └─ datasets
"""

from __future__ import annotations

import base64
import secrets
from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, ForeignKeyConstraint, Index, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from cafe_core.jobs.jobdir import utc_now
from server.states import Status

LARGEST_NUMBER = 2**31 - 1
"""The largest number of a job, attempt or event. PostgreSQL's integer columns cannot be compared with larger ones."""


def new_id(prefix: str) -> str:
    """Return `<prefix>_` followed by 16 random lower-case base32 characters (80 bits)."""
    return f"{prefix}_{base64.b32encode(secrets.token_bytes(10)).decode().lower()}"


class Base(DeclarativeBase):
    """Base of all tables. Times are RFC 3339 strings in UTC with microseconds, so they sort as text."""

    type_annotation_map = {dict[str, Any]: JSON, Status: String(16)}  # noqa: RUF012 - SQLAlchemy's declaration


class ApiKey(Base):
    """An API key. Only its hash is stored. A limit of None means the server's default."""

    __tablename__ = "api_keys"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(40), unique=True)
    name: Mapped[str] = mapped_column(String(128))
    hash: Mapped[str] = mapped_column(String(64), unique=True)
    """SHA-256 of the key. Keys are 256 random bits, so a slow hash would add nothing."""
    scopes: Mapped[str] = mapped_column(String(64))
    """Any of read, write and admin, separated by spaces."""
    max_running_jobs: Mapped[int | None] = mapped_column()
    requests_per_minute: Mapped[int | None] = mapped_column()
    max_upload_bytes: Mapped[int | None] = mapped_column(BigInteger)
    max_stored_bytes: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[str] = mapped_column(String(32), default=utc_now)
    revoked_at: Mapped[str | None] = mapped_column(String(32))


class Job(Base):
    """A job. `version` grows with every change to the row and determines the ETag."""

    __tablename__ = "jobs"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    """Order of creation; the cursor of listings."""
    id: Mapped[str] = mapped_column(String(40), unique=True)
    owner: Mapped[str | None] = mapped_column(ForeignKey("api_keys.id"), index=True)
    """The API key that submitted it; None if the server had no keys then."""
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
    stored_bytes: Mapped[int | None] = mapped_column(BigInteger)
    """Bytes on disk that count against `Settings.max_stored_bytes`, measured at submission and at the end of each attempt."""
    version: Mapped[int] = mapped_column()

    labels: Mapped[list[JobLabel]] = relationship(cascade="all, delete-orphan", lazy="selectin", order_by="JobLabel.key")

    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 - SQLAlchemy's declaration
    __table_args__ = ({"sqlite_autoincrement": True},)

    @property
    def state(self) -> Status:
        """Return `status` as the enum."""
        return Status(self.status)


class JobLabel(Base):
    """A label of a job, in a separate table so that jobs can be found by label."""

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
    cause: Mapped[str] = mapped_column(String(16), default="submitted")
    """`submitted`, `resumed`, or `lost` if the previous attempt was lost with Ray, its node or its driver."""
    created_at: Mapped[str] = mapped_column(String(32), default=utc_now)
    submitted_at: Mapped[str | None] = mapped_column(String(32))
    """When Ray accepted it; None if it is unknown whether Ray has it."""
    given_up_at: Mapped[str | None] = mapped_column(String(32))
    """When the server gave it up because its driver was silent. Once Ray has ended it, it counts as lost."""
    finished_at: Mapped[str | None] = mapped_column(String(32))
    events_offset: Mapped[int] = mapped_column(BigInteger, default=0)
    outcome: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """Its driver's terminal event: `finished`, `failed` or `cancelled`."""


class Artifact(Base):
    """A file of a result, as it was when the attempt succeeded. Only files listed here are served."""

    __tablename__ = "artifacts"

    job_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    media_type: Mapped[str] = mapped_column(String(64))

    __table_args__ = (ForeignKeyConstraint(["job_id", "attempt"], ["attempts.job_id", "attempts.number"], ondelete="CASCADE"),)


class Event(Base):
    """An event of a job, numbered from 1 within the job."""

    __tablename__ = "events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    attempt: Mapped[int] = mapped_column()
    time: Mapped[str] = mapped_column(String(32))
    type: Mapped[str] = mapped_column(String(32))
    data: Mapped[dict[str, Any]] = mapped_column()


class IdempotencyKey(Base):
    """The job that a POST with an Idempotency-Key created."""

    __tablename__ = "idempotency"

    owner: Mapped[str] = mapped_column(String(40), primary_key=True, default="")
    """The API key of the request, or empty. Idempotency keys are scoped to it."""
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    body_sha256: Mapped[str] = mapped_column(String(64))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[str] = mapped_column(String(32), default=utc_now)


class Delivery(Base):
    """A webhook, pending until it is delivered or given up."""

    __tablename__ = "deliveries"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    url: Mapped[str] = mapped_column(Text)
    body: Mapped[str] = mapped_column(Text)
    tries: Mapped[int] = mapped_column(default=0)
    next_try_at: Mapped[str | None] = mapped_column(String(32), index=True)
    """None once it is delivered or given up."""
    delivered_at: Mapped[str | None] = mapped_column(String(32))
    error: Mapped[str | None] = mapped_column(Text)
    """Why the last try failed."""
    created_at: Mapped[str] = mapped_column(String(32), default=utc_now)


class Dataset(Base):
    """An uploaded dataset."""

    __tablename__ = "datasets"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(40), unique=True)
    owner: Mapped[str | None] = mapped_column(ForeignKey("api_keys.id"), index=True)
    """See Job.owner. Like jobs, datasets without an owner are visible to admins only."""
    name: Mapped[str] = mapped_column(Text)
    size: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    info: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """DatasetInfo; None if it depends on the `image_size` or `channels` of a spec."""
    created_at: Mapped[str] = mapped_column(String(32), default=utc_now)
