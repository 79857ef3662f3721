"""Add API keys and owners, artifacts, the cause of an attempt, and webhook deliveries.

Existing jobs and datasets have no owner, so only keys with the scope `admin` see them. Sizes become 64-bit integers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_SIZES = (("datasets", "size"), ("attempts", "events_offset"))
_OWNED = ("jobs", "datasets")


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(40), nullable=False, unique=True),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False, unique=True),
        sa.Column("scopes", sa.String(64), nullable=False),
        sa.Column("max_running_jobs", sa.Integer),
        sa.Column("requests_per_minute", sa.Integer),
        sa.Column("max_upload_bytes", sa.BigInteger),
        sa.Column("max_stored_bytes", sa.BigInteger),
        sa.Column("created_at", sa.String(32), nullable=False),
        sa.Column("revoked_at", sa.String(32)),
    )
    for table in _OWNED:
        with _altered(table) as batch:
            batch.add_column(sa.Column("owner", sa.String(40)))
            batch.create_foreign_key(f"{table}_owner_fkey", "api_keys", ["owner"], ["id"])
            batch.create_index(f"ix_{table}_owner", ["owner"])
    for table, column in _SIZES:
        with _altered(table) as batch:
            batch.alter_column(column, type_=sa.BigInteger, existing_type=sa.Integer, existing_nullable=False)
    with _altered("attempts") as batch:
        batch.add_column(sa.Column("cause", sa.String(16), nullable=False, server_default="submitted"))
    op.create_table(
        "artifacts",
        sa.Column("job_id", sa.String(40), primary_key=True),
        sa.Column("attempt", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(255), primary_key=True),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("media_type", sa.String(64), nullable=False),
        sa.ForeignKeyConstraint(["job_id", "attempt"], ["attempts.job_id", "attempts.number"], ondelete="CASCADE"),
    )
    op.create_table(
        "deliveries",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("job_id", sa.String(40), sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False, index=True),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("next_try_at", sa.String(32), index=True),
        sa.Column("delivered_at", sa.String(32)),
        sa.Column("error", sa.Text),
        sa.Column("created_at", sa.String(32), nullable=False),
    )
    _replace_idempotency(with_owner=True)


def downgrade() -> None:
    """Drop keys and owners. An idempotency key that two owners used stays with the first job."""
    _replace_idempotency(with_owner=False)
    op.drop_table("deliveries")
    op.drop_table("artifacts")
    with _altered("attempts") as batch:
        batch.drop_column("cause")
    for table, column in _SIZES:
        with _altered(table) as batch:
            batch.alter_column(column, type_=sa.Integer, existing_type=sa.BigInteger, existing_nullable=False)
    for table in _OWNED:
        with _altered(table) as batch:
            batch.drop_index(f"ix_{table}_owner")
            batch.drop_constraint(f"{table}_owner_fkey", type_="foreignkey")
            batch.drop_column("owner")
    op.drop_table("api_keys")


@contextmanager
def _altered(table: str) -> Iterator[Any]:
    """Keep the sequence of job numbers: SQLite replaces the table and would reuse the numbers of deleted jobs."""
    counted = table == "jobs" and op.get_bind().dialect.name == "sqlite"
    last = op.get_bind().scalar(sa.text("SELECT seq FROM sqlite_sequence WHERE name = 'jobs'")) if counted else None
    with op.batch_alter_table(table, table_kwargs={"sqlite_autoincrement": True} if counted else {}) as batch:
        yield batch
    if last is not None:
        op.execute("DELETE FROM sqlite_sequence WHERE name = 'jobs'")
        op.execute(f"INSERT INTO sqlite_sequence (name, seq) VALUES ('jobs', {last})")


def _replace_idempotency(*, with_owner: bool) -> None:
    """Replace the table by one with the other primary key."""
    op.rename_table("idempotency", "idempotency_before")
    op.drop_index("ix_idempotency_job_id", "idempotency_before")
    owner = [sa.Column("owner", sa.String(40), primary_key=True)] if with_owner else []
    op.create_table(
        "idempotency",
        *owner,
        sa.Column("key", sa.String(255), primary_key=True),
        sa.Column("body_sha256", sa.String(64), nullable=False),
        sa.Column("job_id", sa.String(40), sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False, index=True),
        sa.Column("created_at", sa.String(32), nullable=False),
    )
    columns = "key, body_sha256, job_id, created_at"
    if with_owner:
        op.execute(f"INSERT INTO idempotency (owner, {columns}) SELECT '', {columns} FROM idempotency_before")
    else:
        first = "SELECT min(created_at) FROM idempotency_before AS other WHERE other.key = idempotency_before.key"
        op.execute(f"INSERT INTO idempotency ({columns}) SELECT {columns} FROM idempotency_before WHERE created_at = ({first})")
    op.drop_table("idempotency_before")
