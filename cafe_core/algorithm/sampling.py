"""Draw random numbers from counter-based generators, which have no state to keep.

A draw's generator is seeded only by (seed, purpose, iteration, outer, inner, class, …). So draws do not depend on the number
of workers or on earlier draws, and a resumed run has no generator state to restore.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cafe_core.counters import counter_seed as counter_seed


def generator(seed: int, purpose: str, *counters: int) -> torch.Generator:
    """Return a new CPU generator for one draw, e.g. `generator(seed, "real", iteration, outer, k)`."""
    return torch.Generator("cpu").manual_seed(counter_seed(seed, purpose, *counters))


def choose(generator: torch.Generator, population: int, count: int) -> Tensor:
    """Draw `min(count, population)` distinct indices below `population` in random order, int64 on the CPU."""
    return torch.randperm(population, generator=generator)[: min(count, population)].clone()
