"""Add the time at which an attempt was given up because its driver stopped sending heartbeats."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("attempts", sa.Column("given_up_at", sa.String(32)))


def downgrade() -> None:
    with op.batch_alter_table("attempts") as batch:
        batch.drop_column("given_up_at")
