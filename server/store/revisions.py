"""The newest migration, and migration errors, without importing Alembic, which is slow."""

from __future__ import annotations

NEWEST = "0004"
"""The revision that this version of the server needs: the last one in `server/store/migrations/versions`."""


class NewerDatabaseError(Exception):
    """The database is at a revision that this version of the server does not know."""


class UnknownRevisionError(ValueError):
    """The requested revision does not exist."""
