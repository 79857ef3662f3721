"""Build the class store of a dataset spec, once per machine."""

from __future__ import annotations

import fcntl
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cafe_core.data.builtin import BUILTIN
from cafe_core.data.catalog import is_native
from cafe_core.data.class_store import ClassStore, build
from cafe_core.data.digits import digits_source
from cafe_core.data.image_source import ImageSource
from cafe_core.data.readers import fitted, read
from cafe_core.data.roots import DataRoots
from cafe_core.data.store_path import store_path
from cafe_core.errors import DatasetError
from cafe_core.spec.dataset import DatasetSpec

log = logging.getLogger(__name__)


def prepare(spec: DatasetSpec, roots: DataRoots) -> Path:
    """Return the path of the class store of `spec`; build it under `roots.cache` if it does not exist.

    A lock makes concurrent callers wait for one build; a killed build leaves nothing that looks complete. Every image is
    decoded here, so every damaged one is found here. Raises SpecError for a path outside the dataset root and
    DatasetError for data that cannot be used.
    """
    store = store_path(spec, roots)
    with _locked(store.with_name(f"{store.name}.lock")):
        if not store.exists():
            for stale in roots.cache.glob(f".{store.name}.*.tmp"):  # left by a killed build; the lock excludes live ones
                shutil.rmtree(stale)
            started = time.monotonic()
            source = _source(spec, roots)
            build(store, source, mean_std=_known_mean_std(spec))
            log.info("built %s from %s in %.1f s", store, source.name, time.monotonic() - started)
            if store_path(spec, roots) != store:
                shutil.rmtree(store)
                raise DatasetError(f"{source.name} was changed while it was read; submit the job again when the data is complete")
    return store


def open_store(spec: DatasetSpec, roots: DataRoots) -> ClassStore:
    """Build the store with :func:`prepare` if needed, and open it."""
    return ClassStore.open(prepare(spec, roots))


def _source(spec: DatasetSpec, roots: DataRoots) -> ImageSource:
    """Open the source of `spec`."""
    if spec.name is None:
        return read(spec, roots)
    if spec.name == "digits":
        return fitted(digits_source(), spec)
    from cafe_core.data.torchvision_source import torchvision_source  # torch and torchvision take seconds to import

    with _locked(roots.cache / f"{spec.name}.download.lock"):
        return fitted(torchvision_source(spec.name, roots.downloads), spec)


def _known_mean_std(spec: DatasetSpec) -> tuple[Sequence[float], Sequence[float]] | None:
    """Return the published constants of an unconverted built-in dataset; None, so that they are measured, otherwise."""
    if spec.name is None or not is_native(spec):
        return None
    return BUILTIN[spec.name].mean, BUILTIN[spec.name].std


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file `path`; the kernel releases it if the process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
