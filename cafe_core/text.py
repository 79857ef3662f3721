"""Format texts for messages."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """Return e.g. `1 image` or `3 images`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
