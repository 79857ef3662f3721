"""Give all attempts of a job the same real images, also if a later version of the readers reads the same files differently."""

from __future__ import annotations

from pathlib import Path

from cafe_core.data import sources
from cafe_core.data.readers import READER_VERSION
from cafe_core.data.roots import DataRoots
from cafe_core.data.store_path import first_reader_store_path
from cafe_core.errors import DatasetError
from cafe_core.files import write_atomically
from cafe_core.jobs.backend import Attempt
from cafe_core.jobs.jobdir import JobDir
from cafe_core.spec.dataset import CondensedDataset, DatasetInfo, DatasetSpec


def job_store(directory: JobDir, dataset: DatasetSpec, roots: DataRoots) -> Path:
    """Return the class store of a job's real images; build it if it does not exist. Raises SpecError, DatasetError.

    A job that began with the first readers of own data keeps the store that they built, as long as it is in the cache.
    """
    if dataset.name is None and dataset.test_fraction is None and _reader_version(directory) < READER_VERSION:
        store = first_reader_store_path(dataset, roots)
        if store.exists():
            return store
    return sources.prepare(dataset, roots)


def check_unchanged(attempt: Attempt, info: DatasetInfo) -> None:
    """Record the dataset's description in the first attempt; later attempts must find the same. Raises DatasetError."""
    directory = attempt.directory
    if not directory.dataset_file.exists():
        version = str(_reader_version(directory)).encode()
        write_atomically(directory.reader_version_file, version, fence=attempt.fence)
        write_atomically(directory.dataset_file, info.model_dump_json(indent=2).encode(), fence=attempt.fence)
        return
    recorded = type(info).model_validate_json(directory.dataset_file.read_bytes())
    if isinstance(recorded, CondensedDataset) and recorded.class_sha256 is None:  # by a version that recorded no hashes
        info = info.model_copy(update={"class_sha256": None})
    if recorded.model_copy(update={"notes": []}) == info.model_copy(update={"notes": []}):  # versions differ in their notes
        return
    if _reader_version(directory) < READER_VERSION:
        raise DatasetError(
            f"dataset: {info.name} is read differently by this version (class order, grey levels or names), or has changed since "
            "the job's first attempt; submit a new job instead"
        )
    raise DatasetError(f"dataset: {info.name} has changed since the job's first attempt; submit a new job instead")


def _reader_version(directory: JobDir) -> int:
    """Return the version of the readers that the job began with. All trials of a sweep use that of the sweep."""
    began = directory.sweep or directory
    if not began.dataset_file.exists():
        return READER_VERSION
    return int(began.reader_version_file.read_text()) if began.reader_version_file.exists() else 1
