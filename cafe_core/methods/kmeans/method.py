"""K-means: the images nearest to the centres of ipc clusters of their class, under the features of a trained network.

Source: DC-BENCH (Cui et al., NeurIPS 2022), https://arxiv.org/abs/2207.09639.

A rank needs the features of its own classes' images, a class at a time. Ranks agree on θ, which they train together; where the
clusters start follows from (seed, class) alone.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from cafe_core.algorithm.coresets import kmeans
from cafe_core.algorithm.sampling import counter_seed
from cafe_core.algorithm.selection import select_by_features
from cafe_core.algorithm.shard_context import ShardContext


def select(rank: ShardContext, report: Callable[..., None]) -> list[Tensor]:
    """Of each own class the positions of its ipc images: (ipc,) int64. Raises NonFiniteLossError when training θ diverges."""

    def choose(k: int, features: Tensor) -> Tensor:
        seed = counter_seed(rank.spec.seed, "coreset kmeans", k) % 2**32  # scikit-learn takes no greater ones
        return kmeans(features, rank.spec.ipc, seed=seed)

    return select_by_features(rank, report, choose)
