"""Split real training images into those for the method and those held out for validation."""

from __future__ import annotations

import torch
from torch import Tensor

from cafe_core.algorithm.sampling import generator


def split(seed: int, k: int, count: int, fraction: float) -> tuple[Tensor, Tensor]:
    """Split class k's `count` images into (kept, held): int64 positions within the class, each in increasing order.

    `fraction` of them are held out, rounded; both parts have at least one image. The split depends only on `seed` and k, so
    it is the same on every worker. Raises ValueError for a class of fewer than two images.
    """
    if count < 2:
        raise ValueError(f"validation: class {k} has {count} training image(s); at least 2 are needed to hold one out")
    held_count = min(max(round(fraction * count), 1), count - 1)
    order = torch.randperm(count, generator=generator(seed, "held out", k))
    return order[held_count:].sort().values, order[:held_count].sort().values
