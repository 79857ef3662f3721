"""Herding: the images whose running mean follows the class mean, under the features of a trained network (Welling, ICML 2009).

A rank needs the features of its own classes' images, a class at a time. Ranks agree on θ, which they train together.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from cafe_core.algorithm.coresets import herding
from cafe_core.algorithm.selection import select_by_features
from cafe_core.algorithm.shard_context import ShardContext


def select(rank: ShardContext, report: Callable[..., None]) -> list[Tensor]:
    """Of each own class the positions of its ipc images: (ipc,) int64. Raises NonFiniteLossError when training θ diverges."""
    return select_by_features(rank, report, lambda _, features: herding(features, rank.spec.ipc))
