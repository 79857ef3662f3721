"""Cache the artifacts that a method makes before its loop, such as a pool of trained networks."""

from __future__ import annotations

import hashlib
import json
import logging
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from cafe_core.algorithm.collectives import Comm
from cafe_core.files import write_atomically

log = logging.getLogger(__name__)

Key: TypeAlias = Mapping[str, Any]
"""JSON values that determine the tensors: the dataset, the method's fields, the seed."""


class ArtifactCache:
    """Files of named tensors in a directory that all workers share; without a directory, nothing is cached."""

    def __init__(self, directory: Path | None, comm: Comm, device: torch.device) -> None:
        self._directory = directory
        self._comm = comm
        self._device = device

    def load_or_make(self, key: Key, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return the tensors stored under `key`; if there are none, make and store them. All workers call it together.

        make: called on all workers or on none, and returns the same tensors on each; rank 0 stores them.
        """
        found = self.load(key)
        if found is not None:
            return found
        made = make()
        self.store(key, made)
        return made

    def load(self, key: Key) -> dict[str, Tensor] | None:
        """Return the tensors stored under `key`, on the device, or None if any worker cannot read them. All call it together."""
        path = self._path(key)
        found, checksum = (None, 0) if path is None else _read(path)
        # A file system may show a new file to one machine before another, and another job may replace the file while it is
        # read, so the workers agree first.
        checksums = int(self._comm.all_reduce(torch.tensor(checksum, device=self._device)))
        differs = found is None or checksums != checksum * self._comm.world
        if int(self._comm.all_reduce(torch.tensor(int(differs), device=self._device))) or found is None:
            return None
        return {name: tensor.to(self._device) for name, tensor in found.items()}

    def store(self, key: Key, tensors: Mapping[str, Tensor]) -> None:
        """Store tensors, which are equal on all workers, under `key`; rank 0 writes them."""
        path = self._path(key)
        if path is not None and self._comm.rank == 0:
            content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            write_atomically(path, save(content, {"key": json.dumps(key, sort_keys=True)}))

    def remove(self, key: Key) -> None:
        """Delete what is stored under `key`, if anything is."""
        path = self._path(key)
        if path is not None and self._comm.rank == 0:
            path.unlink(missing_ok=True)

    def _path(self, key: Key) -> Path | None:
        return None if self._directory is None else self._directory / f"{_digest(key)}.safetensors"


def _digest(key: Key) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> tuple[dict[str, Tensor] | None, int]:
    """Return the tensors of a file and its checksum, or None and 0 if it is missing or damaged."""
    try:
        content = path.read_bytes()
        return load(content), zlib.crc32(content)
    except FileNotFoundError:
        return None, 0
    except (SafetensorError, OSError):
        log.warning("cannot read %s; making it again", path, exc_info=True)
        return None, 0
