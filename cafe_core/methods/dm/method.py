"""DM: distribution matching (Zhao & Bilen, WACV 2023, https://arxiv.org/abs/2110.04181, Algorithm 1).

    loss = Σ_k ‖ (1/N_k) Σ_{x∈T_k} ψ(A(x)) − (1/ipc) Σ_{s∈S_k} ψ(A(s)) ‖²

ψ is the flattened last feature map of a fresh network that is never trained, and A is the augmentation that a class's real and
synthetic images share. This is CAFE's feature alignment (its Eq. 1) of the last map only, without discrimination, so both methods
use the same outer step. Each iteration has one step.

A worker needs θ and its own classes' images. The loss is a sum over classes, so workers exchange two numbers per step and
nothing else: the losses L_f and L_d of the shared outer step, of which L_d is always 0 here.
"""

from __future__ import annotations

from torch import Tensor

from cafe_core.algorithm.augment import Draws
from cafe_core.algorithm.method import LearningMethod, Losses
from cafe_core.algorithm.outer_step import OuterStep
from cafe_core.algorithm.real_images import BatchIndices
from cafe_core.algorithm.shard_context import ShardContext
from cafe_core.algorithm.synthetic_shard import SyntheticShard


class DistributionMatching(LearningMethod):
    """Minimise the squared distance of mean embeddings, summed over classes."""

    def __init__(self, context: ShardContext) -> None:
        super().__init__(context)
        last = len(context.model.network.map_shapes) - 1
        self._step = OuterStep.of(context, layers=[last], weights=[1.0], beta=None)

    def gradient(self, shard: SyntheticShard, batch: BatchIndices, draws: Draws | None) -> tuple[Tensor, Losses]:
        """Return ∂loss/∂S and the loss, as specified by :class:`cafe_core.algorithm.method.LearningMethod`."""
        gradient, parts = self._step.gradient(shard, batch, 0, draws)
        return gradient, {"loss": parts.feature}
