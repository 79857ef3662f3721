"""Define the fields of DANCE, and the two presets that fill them in."""

from __future__ import annotations

from typing import ClassVar, Literal

from cafe_core.spec.base import resolved_later
from cafe_core.spec.method import ResolutionContext
from cafe_core.spec.pool_method import PoolMethodSpec


class DanceMethod(PoolMethodSpec):
    """DANCE (Zhang et al., IJCAI 2024): match mean features under networks between their initial and their trained weights.

    The trained networks, a pool trained on the real images, also classify the synthetic images. Given the pool, workers
    communicate nothing.
    """

    published_iterations: ClassVar[int] = 10_000

    name: Literal["dance"]
    """Dual-view distribution alignment."""
    preset: Literal["best", "reference"] = "best"
    """`best`: one step per iteration for the sum of both losses; `reference`: the steps of the authors' released code."""
    steps: Literal["joint", "ghost"] = resolved_later()
    """`joint`: one step of the images per iteration. `ghost`: a step for each loss, in passes over the classes; the images of the
    other classes also move at each step, by their momentum, because the authors' optimizer steps all images at once."""

    def resolved(self, context: ResolutionContext) -> DanceMethod:
        """Return this spec with the preset's values filled in."""
        resolved = self.filled(
            batch_real=128,
            image_lr=0.01 * context.ipc if self.preset == "reference" else 0.02 * context.ipc,
            image_momentum=0.5,
            image_milestones=[],
            init="real",
            augment="color_crop_cutout",
            factor=2,
            decoded_per_class=200,
            steps="ghost" if self.preset == "reference" else "joint",
        )
        resolved.checked(context)
        return resolved
