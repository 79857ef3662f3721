"""Addresses of random draws: a seed for each (seed, purpose, counters). No torch here."""

from __future__ import annotations

from hashlib import blake2b


def counter_seed(seed: int, purpose: str, *counters: int) -> int:
    """A 64-bit seed for the draw at (seed, purpose, counters): blake2b, so that neighbouring counters share nothing.

    torch's CPU generator takes the lower 32 bits: two given draws share their numbers with a chance of 2^-32.
    """
    # The purpose is quoted: no purpose can look like another one followed by a counter.
    address = ",".join([str(int(seed)), repr(purpose), *(str(int(counter)) for counter in counters)])
    return int.from_bytes(blake2b(address.encode(), digest_size=8).digest(), "little")
