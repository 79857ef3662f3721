"""The commands of `cafe` for datasets, the cluster, and deleting what a server stores."""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from server.cli.options import JSON_OPTION, RefusedInputError
from server.cli.tables import dataset_lines, node_lines, print_rows
from server.client import Client


@click.command()
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@click.pass_obj
def delete(api: Client, ids: tuple[str, ...]) -> None:
    """Delete jobs that have ended, with their files, or uploaded datasets."""
    for identifier in ids:
        api.delete(identifier)
        click.echo(f"{identifier} is deleted")


@click.command()
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--name", help="A display name. [default: the name of the file]")
@JSON_OPTION
@click.pass_obj
def upload(api: Client, path: Path, name: str | None, as_json: bool) -> None:
    """Upload a dataset and print its id. PATH is a .zip of an image folder, an .npz file, or an image folder."""
    with _as_file(path) as file:
        dataset = api.upload(file, name or (path.resolve().name if path.is_dir() else None))
    click.echo(json.dumps(dataset, indent=2) if as_json else dataset["id"])


@contextmanager
def _as_file(path: Path) -> Iterator[Path]:
    """Yield the file to upload: `path` itself, or a temporary .zip of the folder `path`, which is removed afterwards."""
    if not path.is_dir():
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="cafe-upload-") as directory:
        archive = Path(directory) / f"{path.resolve().name}.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as zipped:
            for file in sorted(file for file in path.rglob("*") if file.is_file()):
                try:
                    zipped.write(file, str(file.relative_to(path)))
                except UnicodeEncodeError as error:
                    shown = str(file).encode(errors="backslashreplace").decode()
                    raise RefusedInputError(f"the name of {shown} is not UTF-8; rename the file") from error
        yield archive


@click.command()
@JSON_OPTION
@click.pass_obj
def datasets(api: Client, as_json: bool) -> None:
    """List the built-in datasets and those that you have uploaded: id, classes, images, shape and name."""
    print_rows(api.datasets(), dataset_lines, as_json=as_json)


@click.command()
@JSON_OPTION
@click.pass_obj
def cluster(api: Client, as_json: bool) -> None:
    """Print the nodes of the cluster with their free and total CPUs and GPUs."""
    found = api.cluster()
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    click.echo(f"Ray {found['ray_version']}, dashboard {found['dashboard_url']}")
    print_rows(found["nodes"], node_lines, as_json=False)


COMMANDS = (delete, upload, datasets, cluster)
