"""The state of a run at an iteration boundary: the synthetic images, their momentum, the iteration. Nothing else.

Randomness is counter-based, the network is fresh each iteration and the loops' queues start empty, so that is
all there is; and it is keyed by class, so a run resumes on any number of workers.
"""

from __future__ import annotations

import errno
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from cafe_core.config import CondenseSpec
from cafe_core.errors import CheckpointError, DiskFullError
from cafe_core.jobdir import write_atomically

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
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def checkpoint_files(directory: Path) -> list[Path]:
    """The checkpoints in `directory`, newest first."""
    return sorted(directory.glob("checkpoint-*.safetensors"), reverse=True)


def save_checkpoint(directory: Path, checkpoint: Checkpoint, spec: CondenseSpec) -> Path:
    """Write beside, move into place, then drop all but the newest two.

    Raises DiskFullError where there is no space and CheckpointError for another failure; older checkpoints are intact.
    """
    path = directory / f"checkpoint-{checkpoint.iteration:08d}.safetensors"
    metadata = {"iteration": str(checkpoint.iteration), "spec_digest": spec_digest(spec)}
    tensors = {"images": checkpoint.images.cpu().contiguous(), "momentum": checkpoint.momentum.cpu().contiguous()}
    try:
        write_atomically(path, save(tensors, metadata))
    except OSError as error:
        kind = DiskFullError if error.errno in (errno.ENOSPC, errno.EDQUOT) else CheckpointError
        raise kind(
            f"checkpoint of iteration {checkpoint.iteration} could not be written to {path}: {error.strerror}; "
            "earlier checkpoints are intact"
        ) from error
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
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata()
                checkpoint = Checkpoint(
                    file.get_tensor("images").clone(),  # off the memory map: the file may change or go
                    file.get_tensor("momentum").clone(),
                    int(metadata["iteration"]),
                )
        except (SafetensorError, OSError, KeyError):
            continue  # torn by a failing disk: the one before it serves
        if metadata["spec_digest"] != spec_digest(spec):
            raise CheckpointError(f"{path} belongs to a run with another dataset, seed, method, network, ipc or precision")
        return checkpoint
    if files:
        raise CheckpointError(f"none of the checkpoints in {directory} can be read")
    return None
