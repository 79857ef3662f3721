"""From a dataset spec to its class store: built once per machine, whoever asks first."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cafe_core.config import DatasetSpec
from cafe_core.data.class_store import FORMAT_VERSION, ClassStore, ImageSource, build
from cafe_core.errors import DatasetError
from cafe_core.jobdir import DataRoots


def prepare(spec: DatasetSpec, roots: DataRoots) -> Path:
    """The class store of `spec`, built under `roots.cache` if it is not there yet.

    Two processes that want the same store wait for one another; a builder that is killed leaves nothing that
    looks complete. Raises DatasetError for data that cannot be used.
    """
    key = _key(spec)
    store = roots.cache / key
    with _locked(roots.cache / f"{key}.lock"):
        if not store.exists():
            for stale in roots.cache.glob(f".{key}.*.tmp"):  # of a killed builder: nobody else builds under this lock
                shutil.rmtree(stale)
            build(store, _source(spec))
    return store


def open_store(spec: DatasetSpec, roots: DataRoots) -> ClassStore:
    """:func:`prepare`, then open."""
    return ClassStore.open(prepare(spec, roots))


def _source(spec: DatasetSpec) -> ImageSource:
    if spec.name == "digits":
        from cafe_core.data.digits import digits_source  # scikit-learn takes a second to import

        return digits_source()
    raise DatasetError(f"dataset {spec.name or spec.id or spec.path}: not read yet")


def _key(spec: DatasetSpec) -> str:
    identity = {"format": FORMAT_VERSION, "name": spec.name, "image_size": spec.image_size}
    return f"{spec.name}-{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]}"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file `path`; the kernel lets go of it when its holder dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
