"""The state of a run at an iteration boundary: the synthetic images, their momentum, the iteration. Nothing else.

Randomness is counter-based, the network is fresh each iteration and the loops' queues start empty, so that is
all there is; and it is keyed by class, so a run resumes on any number of workers.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from dataclasses import dataclass
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
"""Checkpoints kept: the newest, and the one before it should the newest turn out damaged."""


@dataclass(frozen=True)
class Checkpoint:
    """images, momentum: (K·ipc, C, H, W), ordered by class. iteration: iterations done."""

    images: Tensor
    momentum: Tensor
    iteration: int


def spec_digest(spec: CondenseSpec) -> str:
    """A hash of what decides a run's numbers. Workers, checkpoints, names and the number of iterations may differ."""
    decisive = spec.model_dump(mode="json", include={"dataset", "ipc", "seed", "method", "network", "precision"})
    if spec.validation is not None:
        decisive["held_out"] = spec.validation.fraction  # and nothing else of it: it decides which real images there are
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def save_checkpoint(directory: Path, checkpoint: Checkpoint, spec: CondenseSpec, *, fence: Fence = unfenced) -> Path:
    """Write beside, move into place, then drop all but the newest two.

    Raises what the fence raises, DiskFullError where there is no space and CheckpointError for another failure; older
    checkpoints are intact.
    """
    path = _path(directory, checkpoint.iteration)
    metadata = {"iteration": str(checkpoint.iteration), "spec_digest": spec_digest(spec)}
    tensors = {"images": checkpoint.images.cpu().contiguous(), "momentum": checkpoint.momentum.cpu().contiguous()}
    failed = f"the checkpoint of iteration {checkpoint.iteration} could not be written; earlier checkpoints are intact"
    try:
        write_atomically(path, save(tensors, metadata), fence=fence)
    except DiskFullError as error:
        raise DiskFullError(f"{failed}: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{failed}: {path}: {error.strerror}") from error
    for old in checkpoint_files(directory)[KEPT:]:
        old.unlink(missing_ok=True)
    return path


def latest_checkpoint(directory: Path, spec: CondenseSpec) -> Checkpoint | None:
    """The newest readable checkpoint, or None where there is none.

    Raises CheckpointError when it belongs to a run with other settings, or when checkpoints exist but none is readable.
    """
    files = checkpoint_files(directory)
    for path in files:
        try:
            return _read(path, spec)
        except (SafetensorError, OSError, KeyError):
            log.warning("%s cannot be read; the checkpoint before it serves", path, exc_info=True)
    if files:
        raise CheckpointError(f"none of the checkpoints in {directory} can be read")
    return None


def read_checkpoint(directory: Path, iteration: int, spec: CondenseSpec, *, wait_s: float = 60.0) -> Checkpoint:
    """The checkpoint of `iteration`, which another machine has seen: a shared file system may show it here a while later.

    Raises CheckpointError when it does not come within wait_s, cannot be read or belongs to a run with other settings.
    """
    path = _path(directory, iteration)
    deadline = time.monotonic() + wait_s
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    try:
        return _read(path, spec)
    except (SafetensorError, OSError, KeyError) as error:
        raise CheckpointError(f"rank 0 goes on from {path}, which this worker cannot read: {error}") from error


def _path(directory: Path, iteration: int) -> Path:
    return directory / f"checkpoint-{iteration:08d}.safetensors"


def _read(path: Path, spec: CondenseSpec) -> Checkpoint:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        if metadata["spec_digest"] != spec_digest(spec):
            raise CheckpointError(
                f"{path} belongs to a run with another dataset, seed, method, network, ipc, precision or validation.fraction"
            )
        # Cloned off the memory map: the file may change or go.
        images, momentum = (file.get_tensor(name).clone() for name in ("images", "momentum"))
        return Checkpoint(images, momentum, int(metadata["iteration"]))
