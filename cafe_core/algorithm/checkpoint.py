"""Save and load the state of a run at an iteration boundary: S, its momentum, the iteration, and the method's own state.

Randomness is counter-based, the network is renewed each iteration and the loops' queues start empty, so nothing else needs to be
saved. Tensors are ordered by class, so a run can resume on any number of workers.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from cafe_core.algorithm.checkpoint_files import checkpoint_files
from cafe_core.errors import CheckpointError, DiskFullError
from cafe_core.files import Fence, unfenced, write_atomically
from cafe_core.spec.condense import CondenseSpec

log = logging.getLogger(__name__)

KEPT = 2
"""Checkpoints kept: the newest, and the one before it in case the newest is damaged."""

_PER_CLASS, _SHARED = "method.per_class.", "method.shared."


@dataclass(frozen=True)
class Checkpoint:
    """images, momentum: (K·ipc, C, H, W), ordered by class. iteration: iterations done."""

    images: Tensor
    momentum: Tensor
    iteration: int
    per_class: dict[str, Tensor] = field(default_factory=dict)
    """The method's own state of all classes, in order: (K·m, …) each."""
    shared: dict[str, Tensor] = field(default_factory=dict)
    """The method's own state that belongs to no class."""


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of a run, in a directory that all workers share."""

    directory: Path
    fence: Fence = unfenced
    """Called before a checkpoint is written; raises if the run may no longer write."""

    def save(self, checkpoint: Checkpoint, spec: CondenseSpec) -> Path:
        """Write a checkpoint atomically, then delete all but the newest two. Return its path.

        Raises any exception of the fence, DiskFullError if the disk is full and CheckpointError for any other failure.
        Earlier checkpoints stay intact.
        """
        path = self._path(checkpoint.iteration)
        metadata = {"iteration": str(checkpoint.iteration), "spec_digest": spec_digest(spec)}
        tensors = {"images": checkpoint.images, "momentum": checkpoint.momentum}
        tensors |= {_PER_CLASS + name: tensor for name, tensor in checkpoint.per_class.items()}
        tensors |= {_SHARED + name: tensor for name, tensor in checkpoint.shared.items()}
        content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, metadata)
        failed = f"the checkpoint of iteration {checkpoint.iteration} could not be written; earlier checkpoints are intact"
        try:
            write_atomically(path, content, fence=self.fence)
        except DiskFullError as error:
            raise DiskFullError(f"{failed}: {error}") from error
        except OSError as error:
            raise CheckpointError(f"{failed}: {path}: {error.strerror}") from error
        for old in checkpoint_files(self.directory)[KEPT:]:
            old.unlink(missing_ok=True)
        return path

    def latest(self, spec: CondenseSpec) -> Checkpoint | None:
        """Return the newest readable checkpoint, or None if there is none.

        Raises CheckpointError if it belongs to a run with other settings, or when checkpoints exist but none is readable.
        """
        files = checkpoint_files(self.directory)
        for path in files:
            try:
                return _read(path, spec)
            except (SafetensorError, OSError, KeyError):
                log.warning("%s cannot be read; trying the checkpoint before it", path, exc_info=True)
        if files:
            raise CheckpointError(f"none of the checkpoints in {self.directory} can be read")
        return None

    def read(self, iteration: int, spec: CondenseSpec, *, wait_s: float = 60.0) -> Checkpoint:
        """Return the checkpoint of `iteration`, which rank 0 has read; wait for it if the shared file system shows it here later.

        Raises CheckpointError if it does not appear within wait_s, cannot be read or belongs to a run with other settings.
        """
        path = self._path(iteration)
        deadline = time.monotonic() + wait_s
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        try:
            return _read(path, spec)
        except (SafetensorError, OSError, KeyError) as error:
            raise CheckpointError(f"rank 0 continues from {path}, which this worker cannot read: {error}") from error

    def _path(self, iteration: int) -> Path:
        return self.directory / f"checkpoint-{iteration:08d}.safetensors"


def spec_digest(spec: CondenseSpec) -> str:
    """Return a hash of the fields that determine a run's results, which exclude its workers, name and number of iterations."""
    decisive = spec.model_dump(mode="json", include={"dataset", "ipc", "seed", "method", "network", "precision"})
    if spec.dataset.test_fraction is None:
        del decisive["dataset"]["test_fraction"]  # earlier versions, whose checkpoints stay valid, did not have the field
    if spec.validation is not None:
        decisive["held_out"] = spec.validation.fraction  # decides which real images are used; the other fields do not
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def _read(path: Path, spec: CondenseSpec) -> Checkpoint:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        if metadata["spec_digest"] != spec_digest(spec):
            raise CheckpointError(
                f"{path} belongs to a run with another dataset, seed, method, network, ipc, precision or validation.fraction"
            )
        # Clone the tensors from the memory map, because the file may change or be deleted.
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a mapping
    return Checkpoint(
        tensors["images"],
        tensors["momentum"],
        int(metadata["iteration"]),
        _with_prefix(tensors, _PER_CLASS),
        _with_prefix(tensors, _SHARED),
    )


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
