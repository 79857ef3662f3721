"""Cache the artifacts that a method makes before its loop, such as a pool of trained networks."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from cafe_core.algorithm.collectives import Comm
from cafe_core.files import write_atomically

log = logging.getLogger(__name__)


class ArtifactCache:
    """Files of named tensors in a directory that all workers share; without a directory, nothing is cached."""

    def __init__(self, directory: Path | None, comm: Comm, device: torch.device) -> None:
        self._directory = directory
        self._comm = comm
        self._device = device

    def load_or_make(self, key: Mapping[str, Any], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return the tensors stored under `key`; if there are none, make and store them. All workers call it together.

        key: JSON values that determine the tensors: the dataset, the method's fields, the seed. make: called on all workers
        or on none, and returns the same tensors on each; rank 0 stores them.
        """
        path = None if self._directory is None else self._directory / f"{_digest(key)}.safetensors"
        found = None if path is None else _read(path)
        # A file system may show a new file to one machine before another, so the workers agree first.
        absent = int(self._comm.all_reduce(torch.tensor(int(found is None), device=self._device)))
        if found is not None and absent == 0:
            return {name: tensor.to(self._device) for name, tensor in found.items()}
        made = make()
        if path is not None and self._comm.rank == 0:
            content = {name: tensor.detach().cpu().contiguous() for name, tensor in made.items()}
            write_atomically(path, save(content, {"key": json.dumps(key, sort_keys=True)}))
        return made


def _digest(key: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> dict[str, Tensor] | None:
    try:
        return load_file(path)
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError):
        log.warning("cannot read %s; making it again", path, exc_info=True)
        return None
