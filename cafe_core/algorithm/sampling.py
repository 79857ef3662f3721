"""Counter-based randomness: every draw has an address, and nothing keeps a generator's state.

A draw's generator is seeded by (seed, purpose, iteration, outer, inner, class, …) alone. So what is drawn does not depend on
how many workers draw, nor on what was drawn before; a run that is resumed has no generator to restore.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cafe_core.counters import counter_seed as counter_seed


def generator(seed: int, purpose: str, *counters: int) -> torch.Generator:
    """A fresh CPU generator for one draw, e.g. `generator(seed, "real", iteration, outer, k)`."""
    return torch.Generator("cpu").manual_seed(counter_seed(seed, purpose, *counters))


def choose(generator: torch.Generator, population: int, count: int) -> Tensor:
    """`min(count, population)` distinct indices below `population`, in random order. Int64, on the CPU."""
    return torch.randperm(population, generator=generator)[: min(count, population)].clone()
