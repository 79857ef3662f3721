"""Define the fields of methods whose networks are trained on the real images before the loop: DANCE and NCFM.

Such methods keep multi-formation images: a stored image holds f × f tiles, each of which becomes a training image
(:mod:`cafe_core.synthetic_set.decode`). This module does not import torch.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from cafe_core.spec.base import resolved_later
from cafe_core.spec.method import LearningMethodSpec, ResolutionContext, Sizes

MAX_FACTOR = 8
"""Limit on f."""


def tile_side(side: int, factor: int) -> int:
    """Return the side of a tile: that of the image divided by f, rounded up."""
    return -(-side // factor)


def tiles_fit(side: int, factor: int) -> bool:
    """Return whether each of f tiles along a side has a pixel of the image, and at least two pixels in all."""
    tile = tile_side(side, factor)
    return factor == 1 or (tile >= 2 and tile * (factor - 1) < side)


class PoolMethodSpec(LearningMethodSpec):
    """The fields of all methods that use a pool of networks trained on the real images, and multi-formation images."""

    couples_classes: ClassVar[bool] = False
    can_be_extended: ClassVar[bool] = True

    factor: int = resolved_later(ge=1, le=MAX_FACTOR)
    """f: a stored image holds f × f tiles, each of which is enlarged to a training image. 1: images are stored as they are."""
    decoded_per_class: int = resolved_later(ge=1, le=65536)
    """Training images of a class per step: a random part of the f²·ipc that its stored images hold, if they are more."""
    cross_entropy: Annotated[float, Field(ge=0, le=1e30)] = 1.0
    """Weight of the cross-entropy of the trained network on the synthetic images."""
    pool_size: Annotated[int, Field(ge=1, le=100)] = 5
    """Networks in the pool. The members of a smaller pool are the first ones of a larger pool."""
    pool_epochs: Annotated[int, Field(ge=1, le=10_000)] = 60
    """Epochs of training each member on all real images. The learning rate is divided by 5 after 2/3 and after 5/6 of them."""
    pool_batch: Annotated[int, Field(ge=1, le=65536)] = 128
    """Minibatch of this training, over all classes."""
    pool_lr: Annotated[float, Field(gt=0, le=1e30)] = 0.01
    """Learning rate of this training, with momentum 0.9 and weight decay 5e-4."""
    pool_augment: Literal["none", "color_crop", "dsa", "crop_scale_rotate"] = "color_crop"
    """Augmentation of this training."""
    pool_cutmix: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Probability that CutMix mixes a minibatch of this training."""
    pool_seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the pool. Jobs with the same dataset, normalisation, network, precision and pool fields share their pool,
    whatever their seed."""

    @property
    def decode_factor(self) -> int:
        """Return f."""
        return self.factor

    def checked(self, context: ResolutionContext) -> None:
        """Raise ValueError if a stored image cannot hold `factor` tiles per side."""
        _, height, width = context.shape
        if not (tiles_fit(height, self.factor) and tiles_fit(width, self.factor)):
            most = max(f for f in range(1, MAX_FACTOR + 1) if tiles_fit(height, f) and tiles_fit(width, f))
            raise ValueError(
                f"method.factor: {self.factor} × {self.factor} tiles do not fit into images of {height}×{width} pixels; "
                f"use a factor of at most {most}"
            )

    def statistics_bytes(self, sizes: Sizes) -> int:
        """Return the bytes of the mean features of the real and the synthetic images, and of the pool."""
        pool = 2 * (self.pool_size + 1) * sizes.parameters
        return (2 * sizes.classes * sizes.feature_dim + pool) * sizes.itemsize

    def graph_bytes(self, sizes: Sizes) -> int:
        """Return the bytes of the graph of one class's decoded images."""
        decoded = min(self.decoded_per_class, self.factor**2 * sizes.ipc)
        return sizes.graph_factor * decoded * sizes.map_numbers * sizes.itemsize
