"""Add the number of bytes that a job keeps on disk."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("stored_bytes", sa.BigInteger))


def downgrade() -> None:
    op.drop_column("jobs", "stored_bytes")
