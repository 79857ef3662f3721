"""Random real images of each class.

A rank needs its own classes' sizes. Which images are drawn follows from (seed, class) alone: ranks agree on nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from cafe_core.algorithm.sampling import choose, generator
from cafe_core.algorithm.selection import repeated
from cafe_core.algorithm.shard_context import ShardContext


def select(rank: ShardContext, _report: Callable[..., None]) -> list[Tensor]:
    """Of each own class the positions of its ipc images: (ipc,) int64."""
    seed, ipc = rank.spec.seed, rank.spec.ipc
    return [repeated(choose(generator(seed, "coreset random", k), rank.real.count(k), ipc), ipc) for k in rank.classes]
