"""Define the fields of K-Center."""

from __future__ import annotations

from typing import Literal

from cafe_core.spec.method import NetworkSelectionSpec, Sizes

FEATURES_HELD = 1
"""Copies of a class's features that are held, in float64 (measured with 13861 images and D = 2048: 1.0)."""


class KCenterMethod(NetworkSelectionSpec):
    """K-Center (Sener & Savarese, ICLR 2018): images that cover the class, in the features of a trained network."""

    name: Literal["k_center"]
    """Greedy k-center."""

    def statistics_bytes(self, sizes: Sizes) -> int:
        """Return the bytes of the features of the largest class."""
        return 8 * FEATURES_HELD * sizes.largest_class * sizes.feature_dim
