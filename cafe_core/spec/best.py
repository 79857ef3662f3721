"""Choose a method by its measured accuracy, for users who do not choose one themselves: `method: best`.

The table, with the runs behind each row, is in docs/results.md. This module does not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from cafe_core.spec.base import SpecModel
from cafe_core.spec.dataset import DatasetInfo


class BestMethod(SpecModel):
    """The method that measured best for ipc, image size and hardware. The accepted job has its name and fields."""

    name: Literal["best"]
    """Choose the method and its fields by docs/results.md."""


@dataclass(frozen=True)
class Choice:
    """The method and the number of iterations that `method: best` chooses."""

    method: dict[str, Any]
    """The fields of the method."""
    iterations: int


TINY_SIDE = 16
"""Below, a stored image is too small to hold several training images, and DANCE loses its advantage."""
PASSES_ON_CPUS = 180_000
"""Images in the training of a network of the pool without GPUs. A core took 40 minutes for this many of MNIST."""


def best_choice(dataset: DatasetInfo, ipc: int, *, has_gpus: bool) -> Choice:
    """Return the method for a dataset, and its iterations. On CPUs, all are short enough to finish within hours."""
    side = min(dataset.height, dataset.width)
    if side < TINY_SIDE and ipc >= 10:
        return Choice({"name": "kmeans"}, 0)
    if side < TINY_SIDE:
        return Choice({"name": "cafe", "batch_real": 128}, 2000 if has_gpus else 100)
    fields: dict[str, Any] = {"name": "dance", "factor": 2 if side < 64 else 3}
    if not has_gpus:
        epochs = min(60, max(1, PASSES_ON_CPUS // sum(dataset.class_counts)))
        fields |= {"pool_size": 3, "pool_epochs": epochs, "batch_real": 64}
    return Choice(fields, dance_iterations(has_gpus=has_gpus))


def dance_iterations(*, has_gpus: bool) -> int:
    """Return the iterations of DANCE: those of its paper with GPUs, fewer without."""
    return 10_000 if has_gpus else 400
