"""DANCE: dual-view distribution alignment (Zhang et al., IJCAI 2024, https://arxiv.org/abs/2406.01063).

    L = Σ_k ‖mean ψ(A(T_k)) − mean ψ(A(D_k))‖² + w Σ_k mean CE(θ_final; A′(D_k), k)

D_k are the decoded synthetic images of class k, and ψ is the flattened last feature map under λ·θ_initial + (1 − λ)·θ_final, the
weights of a network of the pool before and after its training on the real images; λ and the network are drawn for each iteration.
A and A′ are augmentations, each drawn once per class and iteration. Stored images are clipped to [0, 1] before each iteration.

`steps: ghost` moves the images as the authors' released code does (github.com/Hansong-Zhang/DANCE). One optimizer steps all
images after each class's loss, with zero gradients for the other classes, in one pass over the classes for each loss. The
steps of the other classes are replayed locally (:meth:`cafe_core.algorithm.synthetic_shard.SyntheticShard.coast`).

A worker needs the pool and its own classes' images; in the loop it communicates nothing. The losses that it reports are sums over
its own classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cafe_core.algorithm.augment import Draws
from cafe_core.algorithm.collectives import Comm
from cafe_core.algorithm.method import Losses
from cafe_core.algorithm.outer_step import OuterStep
from cafe_core.algorithm.pool_method import PoolMethod
from cafe_core.algorithm.real_images import BatchIndices
from cafe_core.algorithm.shard_context import ShardContext
from cafe_core.algorithm.synthetic_shard import SyntheticShard
from cafe_core.methods.dance.spec import DanceMethod


class Dance(PoolMethod):
    """Match mean features between initial and trained networks, and classify the images with the trained ones."""

    def __init__(self, context: ShardContext) -> None:
        super().__init__(context)
        self._spec = self.spec_as(DanceMethod)
        last = len(context.model.network.map_shapes) - 1
        self._matching = OuterStep.of(context, [last], [1.0], None, ipc=self.decoded_per_class, comm=Comm.single())

    def gradient(self, shard: SyntheticShard, batch: BatchIndices, draws: Draws | None) -> tuple[Tensor, Losses]:
        """Return ∂L/∂S and the losses of the own classes, for images in [0, 1] (:meth:`PoolMethod.stored_gradient`)."""
        stored, decoded = self.decode(shard, self.iteration)
        matching, feature_loss = self._match(decoded, batch, draws)
        classifying, cross_entropy = self._classify(decoded)
        return self.stored_gradient(stored, decoded, matching + classifying), _losses(feature_loss, cross_entropy)

    def update_images(self, shard: SyntheticShard, iteration: int, outer: int) -> Losses:
        """Clip the stored images, and take the steps of one iteration."""
        self.clip(shard)
        if self._spec.steps == "joint":
            return super().update_images(shard, iteration, outer)

        batch = self.context.sample("real", self._spec.batch_real, iteration, outer)
        draws = self.class_draws("augment_class", iteration, outer)
        feature_loss = self._pass_over_classes(shard, lambda decoded: self._match(decoded, batch, draws))
        cross_entropy = self._pass_over_classes(shard, self._classify)
        return _losses(feature_loss, cross_entropy)

    def _pass_over_classes(self, shard: SyntheticShard, loss: Callable[[SyntheticShard], tuple[Tensor, Tensor]]) -> Tensor:
        """Take one step for the loss of each class, and replay those of the other classes; return the loss before the steps.

        loss: returns the gradient in the decoded images, and the value.
        """
        self._coast(shard, before=True)
        stored, decoded = self.decode(shard, self.iteration)
        gradient, value = loss(decoded)
        lr, momentum = self._spec.image_lr_at(self.iteration), self._spec.image_momentum
        shard.step(self.stored_gradient(stored, decoded, gradient), lr=lr, momentum=momentum)
        self._coast(shard, before=False)
        return value

    def _match(self, decoded: SyntheticShard, batch: BatchIndices, draws: Draws | None) -> tuple[Tensor, Tensor]:
        """Return the gradient of the distance of mean features in the decoded images, and the distance."""
        self.context.model.load(self.between)
        gradient, losses = self._matching.gradient(decoded, batch, 0, draws)
        return gradient, losses.feature

    def _classify(self, decoded: SyntheticShard) -> tuple[Tensor, Tensor]:
        """Return the gradient of the weighted cross-entropy of the trained network in the decoded images, and its value."""
        self.context.model.load(self.final)
        gradient, cross_entropy = self.cross_entropy(decoded, self.class_draws("augment_class trained", self.iteration))
        return self._spec.cross_entropy * gradient, self._spec.cross_entropy * cross_entropy

    def _coast(self, shard: SyntheticShard, *, before: bool) -> None:
        """Replay the steps of the classes before or after each own class in a pass over all classes."""
        earlier = torch.tensor(shard.classes)
        steps = earlier if before else self.context.info.num_classes - 1 - earlier
        shard.coast(steps, lr=self._spec.image_lr_at(self.iteration), momentum=self._spec.image_momentum)


def _losses(feature_loss: Tensor, cross_entropy: Tensor) -> Losses:
    return {"loss": feature_loss + cross_entropy, "feature_loss": feature_loss, "cross_entropy": cross_entropy}
