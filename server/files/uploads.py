"""Uploaded datasets on disk: `<uploads>/<dataset id>/data.zip` or `data.npz`, validated before they are kept."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from fastapi import UploadFile

from cafe_core.data.roots import DataRoots
from cafe_core.errors import DatasetError, SpecError
from cafe_core.spec.dataset import DatasetInfo, DatasetSpec
from server.errors import RefusedSpecError, TooLargeError
from server.files.removal import ASIDE, finish_removals, stage_removal
from server.store.models import Dataset, new_id

CHUNK_BYTES = 1 << 20
SUFFIXES = (".zip", ".npz")
MAX_NAME_LENGTH = 128


def store_upload(file: UploadFile, name: str | None, roots: DataRoots, *, max_bytes: int) -> Dataset:
    """Store an upload and return its row, not yet added to the database.

    Raises RefusedSpecError if it is not a valid dataset and TooLargeError if it exceeds `max_bytes`, after removing its files.
    """
    filename = PurePosixPath((file.filename or "").replace("\\", "/")).name
    suffix = PurePosixPath(filename).suffix.lower()
    if suffix not in SUFFIXES:
        raise RefusedSpecError.of("file", f"{filename!r} must end in .zip (an image folder) or .npz")
    name = name or filename
    if len(name) > MAX_NAME_LENGTH or not name.isprintable():
        raise RefusedSpecError.of("name", f"must have at most {MAX_NAME_LENGTH} characters, all printable")
    dataset_id = new_id("ds")
    directory = roots.uploads / dataset_id
    directory.mkdir(parents=True)
    try:
        path = directory / f"data{suffix}"
        size, sha256 = _copy(file.file, path, max_bytes)
        info = _checked(dataset_id, roots)
    except BaseException:
        shutil.rmtree(directory)
        raise
    return Dataset(id=dataset_id, name=name, size=size, sha256=sha256, info=info.model_dump(mode="json") if info else None)


def description_now(row: Dataset, roots: DataRoots) -> DatasetInfo | None:
    """Return the description of an upload, with statistics once a job has decoded its images; None if there is none."""
    if row.info is None:
        return None
    try:
        return _described(DatasetSpec(id=row.id), roots)
    except (SpecError, DatasetError):  # its files were changed or removed by hand
        return None


def discard_upload(roots: DataRoots, dataset_id: str) -> None:
    """Remove the files of an upload that was not added to the database."""
    shutil.rmtree(roots.uploads / dataset_id)


def stage_upload_removal(roots: DataRoots, dataset_id: str) -> AbstractContextManager[Callable[[], None]]:
    """Remove an upload's files and the class stores built from them, see :func:`server.files.removal.stage_removal`."""
    return stage_removal(roots.uploads / dataset_id, partial(_clear, roots))


def finish_upload_removals(roots: DataRoots, known: Collection[str]) -> None:
    """Finish the removal of uploads, see :func:`server.files.removal.finish_removals`."""
    finish_removals(roots.uploads, known, partial(_clear, roots))


def _clear(roots: DataRoots, aside: Path) -> None:
    _remove_class_stores(roots, aside.name.removeprefix(ASIDE))
    shutil.rmtree(aside)


def _remove_class_stores(roots: DataRoots, dataset_id: str) -> None:
    """Remove the class stores that `cafe_core.data.sources` built from an upload, and the networks trained on its images.

    The upload is gone, so no new store can be built. Each store is removed under its lock, which its builder holds until it is
    done.
    """
    for lock in roots.cache.glob(f"{dataset_id}-{'[0-9a-f]' * 24}.lock"):
        with lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            stores = [roots.cache / lock.stem, *roots.cache.glob(f".{lock.stem}.*.tmp")]
            for made in (*stores, roots.artifacts / lock.stem):
                if made.exists():
                    shutil.rmtree(made)
            lock.unlink()


def _copy(source: BinaryIO, path: Path, max_bytes: int) -> tuple[int, str]:
    """Copy a file and return its size and SHA-256."""
    size, digest = 0, hashlib.sha256()
    with path.open("wb") as target:
        while chunk := source.read(CHUNK_BYTES):
            size += len(chunk)
            if size > max_bytes:
                raise TooLargeError(f"the upload exceeds the limit of {max_bytes} bytes")
            digest.update(chunk)
            target.write(chunk)
    return size, digest.hexdigest()


def _checked(dataset_id: str, roots: DataRoots) -> DatasetInfo | None:
    """Return the dataset's description; None if it depends on `image_size` or `channels`. Raises RefusedSpecError."""
    try:
        return _described(DatasetSpec(id=dataset_id), roots)
    except (SpecError, DatasetError) as error:
        if _readable(DatasetSpec(id=dataset_id, image_size=32, channels=1), roots):
            return None
        raise RefusedSpecError.of("file", error.message.replace(dataset_id, "the upload")) from error


def _readable(spec: DatasetSpec, roots: DataRoots) -> bool:
    try:
        _described(spec, roots)
    except (SpecError, DatasetError):
        return False
    return True


def _described(spec: DatasetSpec, roots: DataRoots) -> DatasetInfo:
    """Return the dataset's description. Raises SpecError and DatasetError."""
    from cafe_core.data import catalog  # imports NumPy, which would slow down startup

    return catalog.describe(spec, roots)
