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
POOL_PASSES_ON_CPUS = 8_000
"""Training passes of 32×32 images for each network of the pool without GPUs, of which an epoch may need more."""
STEP_PASSES_ON_CPUS = 60_000
"""Forward passes of 32×32 images for the iterations of DANCE without GPUs. A training pass counts as three."""


def best_choice(dataset: DatasetInfo, ipc: int, *, has_gpus: bool, must_learn: bool = False) -> Choice:
    """Return the method for a dataset, and its iterations. On CPUs, a small dataset takes minutes.

    must_learn: choose a method with iterations, because the spec sets their number or validates checkpoints.
    """
    side = min(dataset.height, dataset.width)
    if side < TINY_SIDE and ipc >= 10 and not must_learn:
        return Choice({"name": "kmeans"}, 0)
    if side < TINY_SIDE:
        return Choice({"name": "cafe", "batch_real": 128}, 2000 if has_gpus else 100)
    fields: dict[str, Any] = {"name": "dance", "factor": 2 if side < 64 else 3}
    if has_gpus:
        return Choice(fields, 10_000)
    batch_real, area = 64, dataset.height * dataset.width / 32**2
    epochs = _within(POOL_PASSES_ON_CPUS / area / sum(dataset.class_counts), 1, 60)
    fields |= {"pool_size": 3, "pool_epochs": epochs, "batch_real": batch_real}
    decoded = min(ipc * fields["factor"] ** 2, 200)
    iterations = _within(STEP_PASSES_ON_CPUS / area / (dataset.num_classes * (batch_real + 3 * decoded)), 50, 400)
    return Choice(fields, iterations)


def _within(value: float, low: int, high: int) -> int:
    return max(low, min(high, int(value)))
