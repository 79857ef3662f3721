"""Derive a seed for each random draw from (seed, purpose, counters). This module does not import torch."""

from __future__ import annotations

from hashlib import blake2b


def counter_seed(seed: int, purpose: str, *counters: int) -> int:
    """Return a 64-bit seed for the draw at (seed, purpose, counters), hashed so that neighbouring counters are unrelated.

    torch's CPU generator uses the lower 32 bits: two given draws collide with a probability of 2^-32.
    """
    # The purpose is quoted so that it cannot look like another purpose followed by a counter.
    address = ",".join([str(int(seed)), repr(purpose), *(str(int(counter)) for counter in counters)])
    return int.from_bytes(blake2b(address.encode(), digest_size=8).digest(), "little")
