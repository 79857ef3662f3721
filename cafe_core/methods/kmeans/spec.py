"""Define the fields of k-means."""

from __future__ import annotations

from typing import Literal

from cafe_core.spec.method import NetworkSelectionSpec, Sizes

FEATURES_HELD = 3
"""Copies of a class's features that are held, in float64 (measured with 13861 images and D = 2048: 2.9)."""


class KmeansMethod(NetworkSelectionSpec):
    """K-means (Cui et al., DC-BENCH, NeurIPS 2022): the images nearest the cluster centres of a trained network's features."""

    name: Literal["kmeans"]
    """Embedded k-means."""

    def statistics_bytes(self, sizes: Sizes) -> int:
        """Return the bytes of the features of the largest class."""
        return 8 * FEATURES_HELD * sizes.largest_class * sizes.feature_dim
