"""Define the fields of NCFM."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from cafe_core.spec.method import ResolutionContext, Sizes
from cafe_core.spec.pool_method import PoolMethodSpec


class NcfmMethod(PoolMethodSpec):
    """NCFM (Wang et al., CVPR 2025), without its adversarial sampler: match the characteristic functions of features.

    The features are those of DANCE's networks. `image_momentum` is β₁ of AdamW, which moves the images.
    """

    published_iterations: ClassVar[int] = 20_000

    name: Literal["ncfm"]
    """Neural characteristic functions."""
    frequencies: Annotated[int, Field(ge=1, le=65536)] = 1024
    """T, the random frequencies at which the characteristic functions are compared; new ones in each iteration."""
    distance: Annotated[float, Field(ge=0, le=1e30)] = 300.0
    """Weight of the distance of the characteristic functions."""
    weight_decay: Annotated[float, Field(ge=0, lt=1)] = 5e-4
    """Weight decay of AdamW."""
    pool_size: Annotated[int, Field(ge=1, le=100)] = 20
    """Networks in the pool. The members of a smaller pool are the first ones of a larger pool."""

    def resolved(self, context: ResolutionContext) -> NcfmMethod:
        """Return this spec with the published settings filled in.

        The paper halves the learning rate on a plateau of the loss; here it is halved at fixed iterations, because the workers do
        not exchange their losses. The authors' code steps all images after the loss of each class; here a class has one step.
        """
        resolved = self.filled(
            batch_real=1024,
            image_lr=1e-3,
            image_momentum=0.9,
            image_milestones=[10_000, 15_000],
            init="real",
            augment="color_crop_cutout",
            factor=2,
            decoded_per_class=65536,
        )
        resolved.checked(context)
        return resolved

    def statistics_bytes(self, sizes: Sizes) -> int:
        """Return the bytes of the frequencies, their products with a class's features, the mean features, and the pool."""
        decoded = min(self.decoded_per_class, self.factor**2 * sizes.ipc)
        products = 6 * max(decoded, min(self.batch_real, sizes.largest_class)) * self.frequencies
        return super().statistics_bytes(sizes) + (self.frequencies * sizes.feature_dim + products) * sizes.itemsize
