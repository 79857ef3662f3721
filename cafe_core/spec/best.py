"""Choose a method by its measured accuracy, for users who do not choose one themselves: `method: best`.

The table, with the runs behind each row, is in docs/results.md. This module does not import torch.
"""

from __future__ import annotations

from typing import Any, Literal

from cafe_core.spec.base import SpecModel
from cafe_core.spec.network_sizes import Shape


class BestMethod(SpecModel):
    """The method that measured best for the size of the images and the hardware. The accepted job has its name and fields."""

    name: Literal["best"]
    """Choose the method and its fields by docs/results.md."""


def best_method(shape: Shape, *, has_gpus: bool) -> dict[str, Any]:
    """Return the fields of the method for images of `shape` (C, H, W).

    On CPUs, the pool and the run are short enough to finish within hours.
    """
    side = min(shape[1:])
    factor = 1 if side < 16 else 2 if side < 64 else 3
    short = {} if has_gpus else {"pool_size": 3, "pool_epochs": 3, "batch_real": 64}
    return {"name": "dance", "factor": factor, **short}


BEST_ITERATIONS_ON_CPUS = 400
"""Iterations of `method: best` without GPUs; with GPUs, the method's published number."""
