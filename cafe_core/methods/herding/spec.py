"""Define the fields of herding."""

from __future__ import annotations

from typing import Literal

from cafe_core.spec.method import NetworkSelectionSpec, Sizes

FEATURES_HELD = 1
"""Copies of a class's features that are held, in float64 (measured with 13861 images and D = 2048: 1.0)."""


class HerdingMethod(NetworkSelectionSpec):
    """Herding (Welling, ICML 2009): images whose running mean follows the class mean, in the features of a trained network."""

    name: Literal["herding"]
    """Herding."""

    def statistics_bytes(self, sizes: Sizes) -> int:
        """Return the bytes of the features of the largest class."""
        return 8 * FEATURES_HELD * sizes.largest_class * sizes.feature_dim
