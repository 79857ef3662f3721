"""Herding: choose images whose running mean follows the class mean, under the features of a trained network (Welling, ICML 2009).

A worker needs the features of its own classes' images, one class at a time. All workers use the same θ, which they train
together.
"""

from __future__ import annotations

from torch import Tensor

from cafe_core.algorithm.coresets import herding
from cafe_core.algorithm.selection import FeatureSelection


class Herding(FeatureSelection):
    """Choose greedily the image that brings the mean of the chosen ones closest to the class mean."""

    def choose(self, k: int, features: Tensor) -> Tensor:  # noqa: ARG002
        """Return the positions of the chosen images of class k."""
        return herding(features, self.context.spec.ipc)
