"""Name class stores in the cache after the data they are built from."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from cafe_core.data.class_store import FORMAT_VERSION
from cafe_core.data.readers import READER_VERSION, identity
from cafe_core.data.roots import DataRoots
from cafe_core.spec.dataset import DatasetSpec


def store_path(spec: DatasetSpec, roots: DataRoots) -> Path:
    """Return the store's directory, whether or not it exists.

    Its name ends in a hash of the source (a built-in dataset's name, or the path, size and modification time of
    every file, and the version of the readers), of the fields that convert or split it, and of the store's format. Raises as
    `readers.locate` does.
    """
    readers = {} if spec.name is not None else {"reader": READER_VERSION, "test_fraction": spec.test_fraction}
    return _path(spec, roots, readers)


def first_reader_store_path(spec: DatasetSpec, roots: DataRoots) -> Path:
    """Return the directory in which the first readers of own data, before READER_VERSION 2, built the store of the same files."""
    return _path(spec, roots, {})


def _path(spec: DatasetSpec, roots: DataRoots, readers: dict[str, Any]) -> Path:
    source: Any = spec.name if spec.name is not None else identity(spec, roots)
    key = {"format": FORMAT_VERSION, "source": source, "image_size": spec.image_size, "channels": spec.channels, **readers}
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]
    readable = re.sub(r"[^A-Za-z0-9_]+", "-", spec.name or spec.id or Path(spec.path or "").name)[:40].strip("-") or "data"
    return roots.cache / f"{readable}-{digest}"
