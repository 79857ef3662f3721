"""How many bytes a job keeps on disk. Those of jobs that were there before are measured when the server starts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("stored_bytes", sa.BigInteger))


def downgrade() -> None:
    op.drop_column("jobs", "stored_bytes")
