"""Migrate a database with Alembic. :meth:`server.store.database.Database.migrate` imports this module when needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Connection, Engine

from server.store.revisions import NewerDatabaseError, UnknownRevisionError

MIGRATIONS = Path(__file__).with_name("migrations")
MIGRATION_LOCK = 0x0CAFE001
"""Key of the PostgreSQL advisory lock that serializes migrations."""


def migrate(engine: Engine, revision: str) -> None:
    """Upgrade or downgrade the tables, see :meth:`server.store.database.Database.migrate`."""
    with engine.connect() as connection, _foreign_keys_off(connection), connection.begin():
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SET LOCAL lock_timeout = 0")  # another server's migration may take long
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")
        config = _config(connection)
        scripts = ScriptDirectory.from_config(config)
        _refuse_newer(_revision(connection), scripts)
        target = "base" if revision == "base" else _resolve(revision, scripts)
        down = {script.revision for script in scripts.iterate_revisions(_revision(connection) or "base", "base")}
        (command.downgrade if target == "base" or target in down else command.upgrade)(config, target)
        _check_references(connection)


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _refuse_newer(revision: str | None, scripts: ScriptDirectory) -> None:
    if revision is not None and revision not in {script.revision for script in scripts.walk_revisions()}:
        raise NewerDatabaseError(
            f"the database is at revision {revision}, which this version of the server does not know (its newest is "
            f"{scripts.get_current_head()}): upgrade the server, restore an older backup, or "
            "downgrade the database with the newer version"
        )


def _resolve(revision: str, scripts: ScriptDirectory) -> str:
    known = [script.revision for script in scripts.walk_revisions()]
    if revision == "head":
        return known[0]
    if revision not in known:
        raise UnknownRevisionError(f"unknown revision {revision!r}; choose one of base, {', '.join(reversed(known))}, head")
    return revision


def _check_references(connection: Connection) -> None:
    """Check foreign keys before the commit: SQLite does not check them while tables are replaced."""
    if connection.dialect.name == "sqlite":
        violations = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
        assert not violations, f"foreign keys refer to missing rows: {violations[:5]}"


@contextmanager
def _foreign_keys_off(connection: Connection) -> Iterator[None]:
    """Turn off foreign keys in SQLite, which replaces a table to alter it: dropping the old one must not delete other rows."""
    connection.execution_options(writes=True)
    if connection.dialect.name != "sqlite":
        yield
        return
    sqlite = connection.connection.driver_connection
    assert sqlite is not None
    sqlite.execute("PRAGMA foreign_keys = OFF")  # has no effect within a transaction
    try:
        yield
    finally:
        sqlite.execute("PRAGMA foreign_keys = ON")


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    return config
