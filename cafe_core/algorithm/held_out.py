"""Which real training images a validation holds out: what it tests on, and what the method never sees."""

from __future__ import annotations

import torch
from torch import Tensor

from cafe_core.algorithm.sampling import generator


def split(seed: int, k: int, count: int, fraction: float) -> tuple[Tensor, Tensor]:
    """Class k's `count` images cut in two: (kept, held), int64 positions within the class, each in increasing order.

    Held are `fraction` of them, rounded, but at least one; kept is at least one. Which ones depends on `seed` and k alone,
    so whoever owns a class finds the same. Raises ValueError for a class of fewer than two images.
    """
    if count < 2:
        raise ValueError(f"validation: class {k} has {count} training image; at least 2 are needed to hold one out")
    held_count = min(max(round(fraction * count), 1), count - 1)
    order = torch.randperm(count, generator=generator(seed, "held out", k))
    return order[held_count:].sort().values, order[:held_count].sort().values
