"""What several commands of `cafe` share: options, settings, exit codes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from server.settings import Settings

EXIT_FAILED, EXIT_REFUSED, EXIT_UNREACHABLE = 1, 2, 3


def _directory(option: str, text: str) -> Any:
    return click.option(option, type=click.Path(file_okay=False, path_type=Path), help=text)


def data_options(command: Any) -> Any:
    """Options of the commands that read datasets themselves."""
    command = _directory("--torchvision-root", "torchvision's root. [default: downloads in the data directory]")(command)
    command = _directory("--dataset-root", "Root of `dataset.path`. [default: datasets in the data directory]")(command)
    return _directory("--data-dir", "Where everything is kept. [default: ./cafe-data]")(command)


def load_settings(*, connects_to_ray: bool, **options: Any) -> Settings:
    """What the environment says, overridden by `options`. Raises click.UsageError naming the setting."""
    from pydantic import ValidationError  # slow to import, and no command that asks a server needs it

    from server.settings import SecretFileError, Settings

    try:
        return Settings.load(with_ray_token=connects_to_ray, **options)
    except ValidationError as error:
        said = [f"{e['loc'][0]} (CAFE_{str(e['loc'][0]).upper()}): {e['msg']}" for e in error.errors()]
        raise click.UsageError("; ".join(said)) from error
    except SecretFileError as error:
        raise click.UsageError(str(error)) from error
