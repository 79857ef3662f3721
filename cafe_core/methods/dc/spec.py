"""Define the fields of DC, and of DSA, which is DC with `augment: dsa`."""

from __future__ import annotations

from typing import ClassVar, Literal

from cafe_core.spec.loops import dc_loops
from cafe_core.spec.method import BilevelMethodSpec, ResolutionContext, Sizes

WEIGHT_GRADIENTS_HELD = 6
"""Maximum number of gradients of all weights held at the same time: those of the real and the synthetic images, that of the
distance, and intermediate ones (measured: at most 5.2)."""


class DcMethod(BilevelMethodSpec):
    """DC, gradient matching (Zhao et al., ICLR 2021); with `augment: dsa` it is DSA (Zhao & Bilen, ICML 2021).

    It fails if a block normalises maps of 2×2 pixels: use a network of depth 2 for 8×8 images.
    """

    published_iterations: ClassVar[int] = 1000  # of the authors' released code
    couples_classes: ClassVar[bool] = False

    name: Literal["dc"]
    """Gradient matching."""

    def resolved(self, context: ResolutionContext) -> DcMethod:
        """Return this spec with DC's published settings, or DSA's if `augment` is dsa."""
        max_outer, max_inner = dc_loops(context.ipc)
        augment = self.augment or "none"
        return self.filled(
            batch_real=256,
            image_lr=0.1,
            image_momentum=0.5,
            image_milestones=[],
            init="real" if augment == "dsa" else "noise",
            augment=augment,
            max_outer=max_outer,
            max_inner=max_inner,
            batch_train=256,
            network_lr=0.01,
        )

    def statistics_bytes(self, sizes: Sizes) -> int:
        """Return the bytes of the gradients of all weights."""
        return WEIGHT_GRADIENTS_HELD * sizes.parameters * sizes.itemsize

    def graph_bytes(self, sizes: Sizes) -> int:
        """Return the bytes of one image's graph through the gradient of the weights."""
        return sizes.double_graph_factor * sizes.map_numbers * sizes.itemsize
