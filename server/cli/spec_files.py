"""Read the spec that a command names: a file, or standard input."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from cafe_core.spec.json_text import SpecTextError
from cafe_core.spec.reading import Format, read_spec
from server.cli.options import RefusedInputError

SPEC_ARGUMENT = click.argument("spec", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path))
_STDIN = Path("-")
_FORMATS: dict[str, Format] = {".json": "json", ".yaml": "yaml", ".yml": "yaml"}


def load_spec(path: Path) -> dict[str, Any]:
    """Return the spec in a file, or in standard input if `path` is `-`. Raises RefusedInputError if it is invalid."""
    try:
        return read_spec(sys.stdin.buffer.read() if path == _STDIN else path.read_bytes(), _FORMATS.get(path.suffix.lower()))
    except OSError as error:
        raise RefusedInputError(f"cannot read {path}: {error.strerror}") from error
    except SpecTextError as error:
        raise RefusedInputError(f"{'standard input' if path == _STDIN else path}: {error}") from error
