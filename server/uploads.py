"""Uploaded datasets on disk: `<uploads>/<dataset id>/data.zip` or `data.npz`, checked before they are kept."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from fastapi import UploadFile

from cafe_core.config import DatasetInfo, DatasetSpec
from cafe_core.data import catalog
from cafe_core.errors import DatasetError, SpecError
from cafe_core.jobdir import DataRoots
from server.database import Dataset, new_id
from server.errors import RefusedSpecError, TooLargeError
from server.settings import Settings

CHUNK_BYTES = 1 << 20
SUFFIXES = (".zip", ".npz")


def store_upload(file: UploadFile, name: str | None, settings: Settings) -> Dataset:
    """Keep an upload and return its row, not yet in the database.

    Raises RefusedSpecError when it is no dataset, TooLargeError when it is larger than the operator allows; then nothing
    of it is kept.
    """
    filename = PurePosixPath((file.filename or "").replace("\\", "/")).name
    suffix = PurePosixPath(filename).suffix.lower()
    if suffix not in SUFFIXES:
        raise RefusedSpecError.of("file", f"{filename!r} is neither a .zip of an image folder nor an .npz; its name must end so")
    dataset_id = new_id("ds")
    directory = settings.roots.uploads / dataset_id
    directory.mkdir(parents=True)
    try:
        path = directory / f"data{suffix}"
        size, sha256 = _copy(file.file, path, settings.max_upload_bytes)
        info = _checked(dataset_id, settings.roots)
    except BaseException:
        shutil.rmtree(directory)
        raise
    return Dataset(
        id=dataset_id, name=name or filename, size=size, sha256=sha256, info=info.model_dump(mode="json") if info else None
    )


def remove_upload(roots: DataRoots, dataset_id: str) -> None:
    """Remove an upload's files, if there are any."""
    directory = roots.uploads / dataset_id
    if directory.exists():
        shutil.rmtree(directory)


def _copy(source: BinaryIO, path: Path, limit: int) -> tuple[int, str]:
    """(size, SHA-256) of what was copied."""
    size, digest = 0, hashlib.sha256()
    with path.open("wb") as target:
        while chunk := source.read(CHUNK_BYTES):
            size += len(chunk)
            if size > limit:
                raise TooLargeError(f"the upload is larger than {limit} bytes, which this server allows")
            digest.update(chunk)
            target.write(chunk)
    return size, digest.hexdigest()


def _checked(dataset_id: str, roots: DataRoots) -> DatasetInfo | None:
    """The dataset's facts; None where a spec must say `image_size` or `channels` first. Raises RefusedSpecError."""
    try:
        return catalog.describe(DatasetSpec(id=dataset_id), roots)
    except SpecError as error:
        if error.loc in ("dataset.image_size", "dataset.channels"):
            return None
        raise RefusedSpecError.of("file", error.message) from error
    except DatasetError as error:
        raise RefusedSpecError.of("file", error.message.replace(dataset_id, "the upload")) from error
