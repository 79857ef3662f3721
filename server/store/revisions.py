"""Which migrations there are, as far as it can be known without Alembic, which is slow to import."""

from __future__ import annotations

NEWEST = "0004"
"""The migration that this version of the server works with: the last one in `server/migrations/versions`."""


class NewerDatabaseError(Exception):
    """The tables are at a migration that this version of the server does not know."""


class UnknownRevisionError(ValueError):
    """There is no such migration."""
