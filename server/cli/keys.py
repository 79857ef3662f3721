"""`cafe keys`: create, list and revoke API keys directly in the database, on the server's machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import click
from sqlalchemy.exc import SQLAlchemyError

from server.auth import keys
from server.cli.options import JSON_OPTION, load_settings
from server.cli.tables import key_lines, print_rows
from server.store.database import Database
from server.webhooks.sender import signing_secret

_DATA_DIR = click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="The server's data directory; ignored if CAFE_DATABASE_URL is set.",
)
Command = TypeVar("Command", bound=Callable[..., object])
_AT_MOST = 2**31 - 1
_BYTES_AT_MOST = 2**62


@click.group("keys")
def command() -> None:
    """Create, list and revoke API keys. Once there is a key, every request needs one.

    Works directly on the database: in the server's data directory, or at CAFE_DATABASE_URL.
    """


def _limit(option: str, at_most: int, text: str) -> Callable[[Command], Command]:
    return click.option(option, type=click.IntRange(min=1, max=at_most), help=f"{text} [default: the server's limit]")


@command.command()
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    required=True,
    type=click.Choice([scope.value for scope in keys.Scope]),
    help="May be repeated. write implies read; admin implies both, and access to the jobs of all keys.",
)
@_limit("--max-running-jobs", _AT_MOST, "Maximum number of running jobs.")
@_limit("--requests-per-minute", _AT_MOST, "Rate limit per server process.")
@_limit("--max-upload-bytes", _BYTES_AT_MOST, "Maximum size of an uploaded dataset.")
@_limit("--max-stored-bytes", _BYTES_AT_MOST, "Storage quota for datasets and job files together.")
@click.option(
    "--key-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Use the key in this file instead of a new one. Does nothing if the key exists already.",
)
@_DATA_DIR
def create(name: str, scopes: tuple[str, ...], key_file: Path | None, data_dir: Path | None, **limits: int | None) -> None:
    """Create a key called NAME and print it. The key is not stored and cannot be shown again."""
    if not name.strip() or len(name) > 128 or not name.isprintable():
        raise click.UsageError("NAME must have 1 to 128 printable characters")
    given = _key_in(key_file) if key_file is not None else None
    key = given or keys.new_key()
    with _database(data_dir) as database, database.write() as session:
        row = keys.find(session, key)
        if row is None:
            row = keys.create(session, key, name, [keys.Scope(scope) for scope in scopes], keys.KeyLimits(**limits))
        elif row.revoked_at is not None:
            raise click.ClickException(f"the key in {key_file} is {row.id}, which is revoked; put a new key into the file")
    created = f"created {row.id}; to show the secret that signs its webhooks: cafe keys webhook-secret {row.id}"
    click.echo(created if given is None else row.id, err=given is None)
    if given is None:
        click.echo(key)


@command.command("list")
@_DATA_DIR
@JSON_OPTION
def list_(data_dir: Path | None, as_json: bool) -> None:
    """List all keys: id, scopes, creation time, name and when a key was revoked."""
    with _database(data_dir) as database, database.read() as session:
        shown = ("id", "scopes", "created_at", "name", "revoked_at")
        rows = [{field: getattr(row, field) for field in shown} for row in keys.all_of(session)]
    print_rows(rows, key_lines, as_json=as_json)


@command.command()
@click.argument("key_id", metavar="ID")
@_DATA_DIR
def revoke(key_id: str, data_dir: Path | None) -> None:
    """Revoke the key ID within a second. Its jobs continue, and only keys of scope admin see them."""
    with _database(data_dir) as database, database.write() as session:
        try:
            row = keys.revoke(session, key_id)
        except keys.UnknownKeyError as error:
            raise click.UsageError(str(error)) from error
    click.echo(f"{row.id} is revoked")


@command.command("webhook-secret")
@click.argument("key_id", metavar="[ID]", required=False)
@_DATA_DIR
def webhook_secret(key_id: str | None, data_dir: Path | None) -> None:
    """Print the secret that signs the webhooks of key ID; without ID, of jobs submitted without a key."""
    with _database(data_dir) as database, database.read() as session:
        if key_id is not None and all(row.id != key_id for row in keys.all_of(session)):
            raise click.UsageError(f"there is no key {key_id}")
    click.echo(signing_secret(load_settings(connects_to_ray=False, data_dir=data_dir), key_id))


def _key_in(path: Path) -> str:
    try:
        key = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"cannot read a key from {path}: {type(error).__name__}") from error
    if not keys.is_key(key):
        raise click.UsageError(
            f"{path} contains no key: a key is `cafe_` and 43 characters of A-Z, a-z, 0-9, - and _ (32 random bytes)"
        )
    return key


@contextmanager
def _database(data_dir: Path | None) -> Iterator[Database]:
    """Open and migrate the server's database. Raises click.ClickException if it does not respond."""
    settings = load_settings(connects_to_ray=False, data_dir=data_dir)
    if settings.database_url is None:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
    try:
        database = Database(settings.database)
        try:
            database.migrate()
            yield database
        finally:
            database.close()
    except SQLAlchemyError as error:
        raise click.ClickException(
            f"the database does not respond: {type(error).__name__}: {str(error).splitlines()[0]}"
        ) from error
