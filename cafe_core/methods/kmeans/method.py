"""K-means: choose the images nearest to the centres of ipc clusters of their class, under the features of a trained network.

Source: DC-BENCH (Cui et al., NeurIPS 2022), https://arxiv.org/abs/2207.09639.

A worker needs the features of its own classes' images, one class at a time. All workers use the same θ, which they train
together. The initial clusters depend only on (seed, class).
"""

from __future__ import annotations

from torch import Tensor

from cafe_core.algorithm.coresets import kmeans
from cafe_core.algorithm.sampling import counter_seed
from cafe_core.algorithm.selection import FeatureSelection


class Kmeans(FeatureSelection):
    """Choose the images nearest to the centres of k-means."""

    def choose(self, k: int, features: Tensor) -> Tensor:
        """Return the positions of the chosen images of class k."""
        seed = counter_seed(self.context.spec.seed, "coreset kmeans", k) % 2**32  # scikit-learn accepts no larger seeds
        return kmeans(features, self.context.spec.ipc, seed=seed)
