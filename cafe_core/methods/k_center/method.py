"""K-Center: choose images so that every image of the class is near a chosen one, under the features of a trained network.

Source: Sener & Savarese, ICLR 2018, https://arxiv.org/abs/1708.00489.

A worker needs the features of its own classes' images, one class at a time. All workers use the same θ, which they train
together.
"""

from __future__ import annotations

from torch import Tensor

from cafe_core.algorithm.coresets import k_center
from cafe_core.algorithm.selection import FeatureSelection


class KCenter(FeatureSelection):
    """Choose greedily the image farthest from its nearest chosen one."""

    def choose(self, k: int, features: Tensor) -> Tensor:  # noqa: ARG002
        """Return the positions of the chosen images of class k."""
        return k_center(features, self.context.spec.ipc)
