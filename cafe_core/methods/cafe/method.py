"""CAFE: aligned feature statistics at several layers, and discrimination (Wang et al., CVPR 2022, section 3).

A worker needs θ and its own classes' images. Workers exchange the class centres C and the gradient of L_d in them, 2·K·D numbers
per step (:mod:`cafe_core.algorithm.outer_step`), and an integer per query check.
"""

from __future__ import annotations

from torch import Tensor

from cafe_core.algorithm.augment import Draws
from cafe_core.algorithm.method import LearningMethod, Loops, Losses
from cafe_core.algorithm.outer_step import OuterStep
from cafe_core.algorithm.real_images import BatchIndices
from cafe_core.algorithm.shard_context import ShardContext
from cafe_core.algorithm.synthetic_shard import SyntheticShard
from cafe_core.methods.cafe.spec import CafeMethod


class Cafe(LearningMethod):
    """Minimise L = L_f + β L_d (Eq. 4), under a network that is trained on S until its query accuracy has moved enough."""

    def __init__(self, context: ShardContext) -> None:
        super().__init__(context)
        spec = self.spec_as(CafeMethod)
        self.loops = Loops(
            max_outer=spec.max_outer,
            max_inner=spec.max_inner,
            window=spec.gamma if spec.bilevel == "dynamic" else 0,
            lambda_1=spec.lambda_1,
            lambda_2=spec.lambda_2,
            query_per_class=spec.query_per_class,
            query_carry=spec.query_carry,
        )
        self._beta = spec.beta
        self._step = OuterStep.of(context, spec.layers, spec.layer_weights, spec.beta if spec.discrimination else None)

    def gradient(self, shard: SyntheticShard, batch: BatchIndices, draws: Draws | None) -> tuple[Tensor, Losses]:
        """Return ∂L/∂S and the losses, as specified by :class:`cafe_core.algorithm.method.LearningMethod`."""
        gradient, parts = self._step.gradient(shard, batch, self.real_images_per_step(), draws)
        loss = parts.feature + self._beta * parts.discrimination
        return gradient, {"loss": loss, "feature_loss": parts.feature, "discrimination_loss": parts.discrimination}
