"""Assign the K classes to workers in disjoint blocks."""

from __future__ import annotations


def class_shard(num_classes: int, rank: int, world: int) -> range:
    """Return the classes 𝒦_r of rank r. Shard sizes differ by at most one.

    Classes are consecutive, so that a rank's synthetic images, which are ordered by class, form one block of rows. Raises
    ValueError if there are more ranks than classes.
    """
    if not 0 <= rank < world:
        raise ValueError(f"rank must be 0 to {world - 1}; got {rank}")
    if world > num_classes:
        raise ValueError(f"{world} workers for {num_classes} classes; use at most one worker per class")
    return range(rank * num_classes // world, (rank + 1) * num_classes // world)
