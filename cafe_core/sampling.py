"""Counter-based randomness: every draw has an address, and nothing keeps a generator's state.

A draw's generator is seeded by (seed, purpose, iteration, outer, inner, class, …) alone. So what is drawn does not depend on
how many workers draw, nor on what was drawn before; a run that is resumed has no generator to restore.
"""

from __future__ import annotations

from hashlib import blake2b

import torch
from torch import Tensor


def counter_seed(seed: int, purpose: str, *counters: int) -> int:
    """A 64-bit seed for the draw at (seed, purpose, counters): blake2b, so that neighbouring counters share nothing.

    torch's CPU generator takes the lower 32 bits: two given draws share their numbers with a chance of 2^-32.
    """
    # The purpose is quoted: no purpose can look like another one followed by a counter.
    address = ",".join([str(int(seed)), repr(purpose), *(str(int(counter)) for counter in counters)])
    return int.from_bytes(blake2b(address.encode(), digest_size=8).digest(), "little")


def generator(seed: int, purpose: str, *counters: int) -> torch.Generator:
    """A fresh CPU generator for one draw, e.g. `generator(seed, "real", iteration, outer, k)`."""
    return torch.Generator("cpu").manual_seed(counter_seed(seed, purpose, *counters))


def choose(generator: torch.Generator, population: int, count: int) -> Tensor:
    """`min(count, population)` distinct indices below `population`, in random order. Int64, on the CPU."""
    return torch.randperm(population, generator=generator)[: min(count, population)].clone()
