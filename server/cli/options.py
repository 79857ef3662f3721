"""Options, settings and exit codes that several commands of `cafe` share."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from server.settings import Settings

EXIT_FAILED, EXIT_REFUSED, EXIT_UNREACHABLE, EXIT_INTERRUPTED = 1, 2, 3, 130


JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


class RefusedInputError(click.ClickException):
    """Something that the user gave is wrong. Shown as one line, without the usage of the command."""

    exit_code = EXIT_REFUSED


@contextmanager
def explained_interrupt(advice: str) -> Iterator[None]:
    """On Ctrl-C, print `advice`, which says how to return, and exit with EXIT_INTERRUPTED."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo(f"\n{advice}", err=True)
        raise SystemExit(EXIT_INTERRUPTED) from None


def check_writable(path: Path, option: str) -> None:
    """Raise RefusedInputError unless files can be created below `path`, a directory that may not exist yet."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:  # job.json could not name it
        raise RefusedInputError(f"{option}: {path} is not UTF-8; choose another path") from error
    existing = next(candidate for candidate in (path.absolute(), *path.absolute().parents) if os.path.lexists(candidate))
    if not existing.is_dir():
        raise RefusedInputError(f"{option}: {existing} is not a directory; choose another path")
    try:
        with tempfile.TemporaryDirectory(prefix=".cafe-", dir=existing):
            pass  # whoever may write to a directory may still not create files there, e.g. root in /proc
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT):
            raise
        why = "no files can be created there" if error.errno == errno.ENOENT else str(error.strerror).lower()
        raise RefusedInputError(f"{option}: cannot write to {existing}: {why}; choose another directory") from error


def _directory(option: str, text: str) -> Any:
    return click.option(option, type=click.Path(file_okay=False, path_type=Path), help=text)


def data_options(command: Any) -> Any:
    """Add the options of commands that read datasets."""
    command = _directory("--torchvision-root", "Root of torchvision's datasets. [default: downloads in the data directory]")(
        command
    )
    command = _directory("--dataset-root", "Root of `dataset.path`. [default: datasets in the data directory]")(command)
    return _directory("--data-dir", "Directory of the database, jobs and uploads. [default: ./cafe-data]")(command)


def load_settings(*, connects_to_ray: bool, **options: Any) -> Settings:
    """Load the settings from the environment; `options` take precedence. Raises click.UsageError that names the setting."""
    from pydantic import ValidationError  # slow to import; client commands do not need it

    from server.settings import SecretFileError, Settings

    try:
        return Settings.load(with_ray_token=connects_to_ray, **options)
    except ValidationError as error:
        given = {name for name, value in options.items() if value is not None}
        raise click.UsageError("; ".join(_refusal(e, given) for e in error.errors())) from error
    except SecretFileError as error:
        raise click.UsageError(str(error)) from error


def _refusal(error: ErrorDetails, given: set[str]) -> str:
    """Return what is wrong with a setting, named as the user set it: by an option if its name is in `given`."""
    message = error["msg"].removeprefix("Value error, ")
    if not error["loc"]:  # several settings together
        return message
    name = str(error["loc"][0])
    if name not in given:
        return f"{name} (CAFE_{name.upper()}): {message}"
    return f"{next(p.opts[0] for p in click.get_current_context().command.params if p.name == name)}: {message}"
