"""`cafe db`: migrate and back up the database.

`cafe serve` upgrades the database itself. A downgrade is for going back to an older version.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from sqlalchemy.exc import SQLAlchemyError

from server.cli.options import load_settings
from server.store.database import Database
from server.store.revisions import NEWEST, NewerDatabaseError, UnknownRevisionError

_DATA_DIR = click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="The server's data directory; ignored if CAFE_DATABASE_URL is set.",
)


@click.group("db")
def command() -> None:
    """Show or change the schema revision of the database. Before a change, stop all servers and make a backup."""


@command.command()
@_DATA_DIR
def current(data_dir: Path | None) -> None:
    """Print the current schema revision."""
    with _database(data_dir) as database:
        revision = database.revision()
    click.echo(f"{revision or 'no tables'}{' (newest)' if revision == NEWEST else f', newest: {NEWEST}'}")


@command.command()
@click.argument("revision", default="head")
@_DATA_DIR
def upgrade(revision: str, data_dir: Path | None) -> None:
    """Upgrade the schema to REVISION (default: the newest)."""
    _migrate(revision, data_dir)


@command.command()
@click.argument("revision")
@_DATA_DIR
def downgrade(revision: str, data_dir: Path | None) -> None:
    """Downgrade the schema to REVISION. Data that the older schema cannot hold is lost: API keys, artifacts, webhooks."""
    _migrate(revision, data_dir)


@command.command()
@click.argument("file", type=click.Path(exists=False, path_type=Path))
@_DATA_DIR
def backup(file: Path, data_dir: Path | None) -> None:
    """Copy a consistent snapshot of the SQLite database into the new FILE. Servers may run. For PostgreSQL, use pg_dump."""
    if file.exists():
        raise click.UsageError(f"{file} already exists; choose a new file")
    with _database(data_dir) as database:
        if database.engine.dialect.name != "sqlite":
            raise click.UsageError('the database is PostgreSQL; use pg_dump --format custom --file FILE "$CAFE_DATABASE_URL"')
        database.copy_to(file)
    click.echo(f"{file}: {file.stat().st_size} bytes")


def _migrate(revision: str, data_dir: Path | None) -> None:
    with _database(data_dir) as database:
        database.migrate(revision)
        click.echo(f"the tables are at revision {database.revision() or 'base (no tables)'}")


@contextmanager
def _database(data_dir: Path | None) -> Iterator[Database]:
    """Open the server's database without migrating it. Raises click.ClickException if it does not respond."""
    settings = load_settings(connects_to_ray=False, data_dir=data_dir)
    if settings.database_url is None:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
    database = Database(settings.database)
    try:
        yield database
    except UnknownRevisionError as error:
        raise click.UsageError(str(error)) from error
    except NewerDatabaseError as error:
        raise click.ClickException(str(error)) from error
    except SQLAlchemyError as error:
        raise click.ClickException(f"the database does not respond: {str(error).splitlines()[0]}") from error
    finally:
        database.close()
