"""Define the fields of DM."""

from __future__ import annotations

from typing import ClassVar, Literal

from cafe_core.spec.method import LearningMethodSpec, ResolutionContext, Sizes


class DmMethod(LearningMethodSpec):
    """DM, distribution matching (Zhao & Bilen, WACV 2023): match mean embeddings under fresh networks that are never trained."""

    published_iterations: ClassVar[int] = 20_000  # of the authors' released code
    couples_classes: ClassVar[bool] = False
    can_be_extended: ClassVar[bool] = True

    name: Literal["dm"]
    """Distribution matching."""

    def resolved(self, context: ResolutionContext) -> DmMethod:  # noqa: ARG002
        """Return this spec with DM's published settings."""
        return self.filled(batch_real=256, image_lr=1.0, image_momentum=0.5, image_milestones=[], init="real", augment="dsa")

    def statistics_bytes(self, sizes: Sizes) -> int:
        """Return the bytes of the mean embeddings of the real and the synthetic images."""
        return 2 * sizes.classes * sizes.feature_dim * sizes.itemsize

    def graph_bytes(self, sizes: Sizes) -> int:
        """Return the bytes of the graph of one class's synthetic images."""
        return sizes.graph_factor * sizes.ipc * sizes.map_numbers * sizes.itemsize
