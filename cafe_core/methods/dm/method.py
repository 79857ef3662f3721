"""DM: distribution matching (Zhao & Bilen, WACV 2023, https://arxiv.org/abs/2110.04181, Algorithm 1).

    loss = Σ_k ‖ (1/N_k) Σ_{x∈T_k} ψ(A(x)) − (1/ipc) Σ_{s∈S_k} ψ(A(s)) ‖²

ψ is the flattened last feature map of a fresh network that is never trained, A the augmentation that a class's real and
synthetic images share. That is CAFE's feature alignment (Eq. 1 there) of the last map alone, without discrimination: the same
step. One step an iteration.

A rank needs θ and its own classes' images. The loss is a sum over classes: ranks agree on nothing but its value.
"""

from __future__ import annotations

from torch import Tensor

from cafe_core.algorithm.augment import Draws
from cafe_core.algorithm.outer_step import OuterStep
from cafe_core.algorithm.real_images import BatchIndices
from cafe_core.algorithm.shard_context import ShardContext
from cafe_core.algorithm.synthetic_shard import SyntheticShard
from cafe_core.methods import Loops, Losses, Matching


class Method(Matching):
    """The squared distance of mean embeddings, summed over classes."""

    loops = Loops()

    def __init__(self, rank: ShardContext) -> None:
        last = len(rank.model.network.map_shapes) - 1
        self._step = OuterStep.of(rank, layers=[last], weights=[1.0], beta=None)

    def gradient(self, shard: SyntheticShard, rows: BatchIndices, draws: Draws | None) -> tuple[Tensor, Losses]:
        """See :class:`cafe_core.methods.Matching`."""
        gradient, parts = self._step.gradient(shard, rows, 0, draws)
        return gradient, {"loss": parts.feature}
