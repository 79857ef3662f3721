"""Pools of trained networks on disk: `<cache>/artifacts/<class store>/<digest>.safetensors`, one file per network.

Jobs write them (:mod:`cafe_core.algorithm.pool`). Each file says in its metadata which network it is, so no table is
needed.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cafe_core.data.roots import DataRoots

log = logging.getLogger(__name__)

KIND = "network of a pool"
_NEEDED = {"dataset_name", "network", "precision", "recipe", "number"}
_MAX_HEADER_BYTES = 1 << 20


@dataclass(frozen=True)
class Pool:
    """The networks that differ only in their number."""

    id: str
    """A hash of `key`."""
    key: dict[str, Any]
    """The values that all networks of the pool share: dataset, network, precision, recipe."""
    numbers: list[int]
    """The numbers of the trained networks."""
    files: list[Path]
    """Including the states of unfinished trainings."""
    bytes: int
    modified: float
    """Time of the last change, in seconds since 1970."""


def pools(roots: DataRoots) -> list[Pool]:
    """Return the pools in the cache, those changed last first."""
    members: dict[str, list[tuple[Path, dict[str, Any]]]] = defaultdict(list)
    for path, key in _files(roots):
        members[_pool_id(key)].append((path, key))
    return sorted((_pool(id, of_pool) for id, of_pool in members.items()), key=lambda pool: -pool.modified)


def remove_pool(roots: DataRoots, id: str) -> bool:
    """Delete the files of a pool. Return whether it exists. Jobs that use it keep the networks that they have loaded."""
    found = next((pool for pool in pools(roots) if pool.id == id), None)
    for path in found.files if found is not None else []:
        path.unlink(missing_ok=True)
    return found is not None


def _files(roots: DataRoots) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in sorted(roots.artifacts.glob("*/*.safetensors")):
        try:
            key = _key(path)
        except FileNotFoundError:
            continue  # a job has finished a training and removed its state
        except (OSError, ValueError, KeyError, TypeError):
            log.warning("cannot read %s; jobs will make it again", path, exc_info=True)
            continue
        if key.get("artifact") == KIND and key.keys() >= _NEEDED:
            yield path, key


def _key(path: Path) -> dict[str, Any]:
    """Return the key that a file was stored under, from its header (https://github.com/huggingface/safetensors#format)."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > _MAX_HEADER_BYTES:
            raise ValueError(f"{path} has a header of {size} bytes")
        header = json.loads(file.read(size))
    key = json.loads(header["__metadata__"]["key"])
    if not isinstance(key, dict):
        raise ValueError(f"{path} has a key that is no object")
    return key


def _common(key: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in key.items() if name not in ("artifact", "number", "unfinished")}


def _pool_id(key: dict[str, Any]) -> str:
    return "pool_" + hashlib.sha256(json.dumps(_common(key), sort_keys=True).encode()).hexdigest()[:24]


def _pool(id: str, members: list[tuple[Path, dict[str, Any]]]) -> Pool:
    stats = [stat for path, _ in members if (stat := _stat(path)) is not None]
    return Pool(
        id=id,
        key=_common(members[0][1]),
        numbers=sorted(key["number"] for _, key in members if not key.get("unfinished")),
        files=[path for path, _ in members],
        bytes=sum(size for size, _ in stats),
        modified=max((modified for _, modified in stats), default=0.0),
    )


def _stat(path: Path) -> tuple[int, float] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_size, found.st_mtime
