"""Measure what the images of a set lose as 8-bit images (PNG): they are clipped to [0, 1] and rounded to 256 levels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cafe_core.synthetic_set.synthetic_set import SyntheticSet

_ROUNDING = 1e-6
"""Tolerance for values that are 0 or 1 except for the rounding of their normalisation to float32."""


@dataclass(frozen=True)
class Quantisation:
    """The difference between a set's images and their 8-bit copies, as pixel values of which 1 is white."""

    largest_error: float
    mean_error: float
    """Mean absolute difference over all values."""
    clipped: float
    """Share of the values outside [0, 1]. Without them, no error is larger than 1/510."""


def quantisation(synthetic: SyntheticSet) -> Quantisation:
    """Return the error of the 8-bit copies of the training images, as an export to PNG or parquet stores them."""
    training = synthetic.decoded()
    mean, std = (channel.astype(np.float64)[:, None, None] for channel in (training.mean, training.std))
    exact = training.images * std + mean
    error = np.abs(exact - training.pixels() / 255)
    outside = (exact < -_ROUNDING) | (exact > 1 + _ROUNDING)
    return Quantisation(float(error.max()), float(error.mean()), float(outside.mean()))
