"""Choose a method by its measured accuracy, for users who do not choose one themselves: `method: best`.

The table, with the runs behind each row, is in docs/results.md. This module does not import torch.
"""

from __future__ import annotations

from typing import Any, Literal

from cafe_core.spec.base import SpecModel
from cafe_core.spec.dataset import DatasetInfo


class BestMethod(SpecModel):
    """The method that measured best for the size of the images and the hardware. The accepted job has its name and fields."""

    name: Literal["best"]
    """Choose the method and its fields by docs/results.md."""


def best_iterations(*, has_gpus: bool) -> int:
    """Return the iterations of the method: those of its paper with GPUs, fewer without."""
    return 10_000 if has_gpus else 400


PASSES_ON_CPUS = 180_000
"""Images in the training of a network of the pool without GPUs. A core took 40 minutes for this many of MNIST."""


def best_method(dataset: DatasetInfo, *, has_gpus: bool) -> dict[str, Any]:
    """Return the fields of the method for a dataset. On CPUs, the pool and the run are short enough to finish within hours."""
    side = min(dataset.height, dataset.width)
    fields: dict[str, Any] = {"name": "dance", "factor": 1 if side < 16 else 2 if side < 64 else 3}
    if not has_gpus:
        epochs = min(60, max(1, PASSES_ON_CPUS // sum(dataset.class_counts)))
        fields |= {"pool_size": 3, "pool_epochs": epochs, "batch_real": 64}
    return fields
