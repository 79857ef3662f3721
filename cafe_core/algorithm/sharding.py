"""Which worker owns which classes: disjoint blocks that together are all K classes."""

from __future__ import annotations


def class_shard(num_classes: int, rank: int, world: int) -> range:
    """The classes 𝒦_r of rank r: consecutive, and the sizes of any two shards differ by at most one.

    Consecutive, so that a rank's synthetic images, which are ordered by class, are one block of rows.
    Raises ValueError when there are more ranks than classes.
    """
    if not 0 <= rank < world:
        raise ValueError(f"rank {rank} is not in a world of {world}")
    if world > num_classes:
        raise ValueError(f"{world} workers for {num_classes} classes; each worker needs a class of its own")
    return range(rank * num_classes // world, (rank + 1) * num_classes // world)
