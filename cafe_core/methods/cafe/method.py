"""CAFE: aligned feature statistics at several layers, and discrimination (Wang et al., CVPR 2022, section 3).

A rank needs θ and its own classes' images. Ranks agree on the class centres C and on the gradient of L_d in them:
2·K·D numbers a step (:mod:`cafe_core.algorithm.outer_step`); and on the query accuracies, two integers a check.
"""

from __future__ import annotations

from torch import Tensor

from cafe_core.algorithm.augment import Draws
from cafe_core.algorithm.outer_step import OuterStep
from cafe_core.algorithm.real_images import BatchIndices
from cafe_core.algorithm.shard_context import ShardContext
from cafe_core.algorithm.synthetic_shard import SyntheticShard
from cafe_core.methods import Loops, Losses, Matching
from cafe_core.spec.method import CafeMethod


class Method(Matching):
    """L = L_f + β L_d (Eq. 4), under a network that is trained on S until the query accuracies say that it has moved enough."""

    def __init__(self, rank: ShardContext) -> None:
        method = rank.spec.method
        assert isinstance(method, CafeMethod)
        self.loops = Loops(
            max_outer=method.max_outer,
            max_inner=method.max_inner,
            window=method.gamma if method.bilevel == "dynamic" else 0,
            lambda_1=method.lambda_1,
            lambda_2=method.lambda_2,
            query_per_class=method.query_per_class,
            query_carry=method.query_carry,
        )
        self._beta = method.beta
        self._total = sum(min(method.batch_real, n) for n in rank.info.class_counts)  # N'
        self._step = OuterStep.of(rank, method.layers, method.layer_weights, method.beta if method.discrimination else None)

    def gradient(self, shard: SyntheticShard, rows: BatchIndices, draws: Draws | None) -> tuple[Tensor, Losses]:
        """See :class:`cafe_core.methods.Matching`."""
        gradient, parts = self._step.gradient(shard, rows, self._total, draws)
        loss = parts.feature + self._beta * parts.discrimination
        return gradient, {"loss": loss, "feature_loss": parts.feature, "discrimination_loss": parts.discrimination}
