"""DC: gradient matching (Zhao, Mopuri & Bilen, ICLR 2021, https://arxiv.org/abs/2006.05929, Algorithm 1).

    loss = Σ_k D(∇_θ CE(θ; A(S_k)), ∇_θ CE(θ; A(T_k)))

CE is the mean cross-entropy of class k's images, D the distance of :func:`cafe_core.algorithm.losses.gradient_distance`. After a
step of all classes' images, θ is trained on S for a fixed number of epochs. With `augment: dsa` it is DSA (Zhao & Bilen,
ICML 2021, https://arxiv.org/abs/2102.08259): A is drawn for each class and shared by its real and synthetic images.

DC fails where instance norm acts on maps of 2×2 pixels. On the 8×8 digits (one image per class) the ConvNet of depth 3 reached
21 % after 200 iterations, below the 69 % of random images; the one of depth 2 reached 91 % after 60, against 74 %. This is a
property of the method: an implementation of the paper's algorithm with torch's own layers behaves the same at depth 3 (loss 928,
not falling; 14 % after 200 iterations) and at depth 2 (the loss falls from 472 to 95; 86 %; width 32).

A worker needs θ and its own classes' images. The loss is a sum over classes, so workers exchange only its value.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cafe_core.algorithm import losses
from cafe_core.algorithm.augment import Draws, apply
from cafe_core.algorithm.method import LearningMethod, Loops, Losses
from cafe_core.algorithm.real_images import BatchIndices
from cafe_core.algorithm.shard_context import ShardContext
from cafe_core.algorithm.synthetic_shard import SyntheticShard
from cafe_core.methods.dc.spec import DcMethod


class GradientMatching(LearningMethod):
    """Minimise the distance of the weights' gradients, summed over classes. Only one class is held at a time."""

    def __init__(self, context: ShardContext) -> None:
        super().__init__(context)
        spec = self.spec_as(DcMethod)
        self.loops = Loops(max_outer=spec.max_outer, max_inner=spec.max_inner)

    def gradient(self, shard: SyntheticShard, batch: BatchIndices, draws: Draws | None) -> tuple[Tensor, Losses]:
        """Return ∂loss/∂S and the loss, as specified by :class:`cafe_core.algorithm.method.LearningMethod`."""
        loss = shard.images.new_zeros(())
        gradients: list[Tensor] = []
        for j, (k, S_k) in enumerate(zip(shard.classes, torch.split(shard.images, shard.ipc), strict=True)):
            matching = _ClassMatching(self.context, k, None if draws is None else draws[torch.tensor([j])])
            target = matching.real_gradient(batch.indices[j])
            distance, gradient = matching.match(S_k, target)
            loss += distance
            gradients.append(gradient)
        return torch.cat(gradients), {"loss": self.context.comm.all_reduce(loss)}


class _ClassMatching:
    """Compute class k's term of the loss. The distance compares the gradients of weights with two or more dimensions."""

    def __init__(self, context: ShardContext, k: int, draw: Draws | None) -> None:
        """draw: one row, for all images of the class."""
        self._context = context
        self._k = k
        self._draw = draw
        self._weights = [p for p in context.model.parameters() if p.dim() > 1]

    def real_gradient(self, indices: Tensor) -> list[Tensor]:
        """Return ∇_θ CE(θ; A(T_k)), where T_k are the class's images `indices`, (n,), without a graph.

        Computed chunk by chunk: ∇ (1/n) Σ_i CE_i = Σ_chunks ∇ (1/n) Σ_{i∈chunk} CE_i.
        """
        chunks = self._context.real.chunks(BatchIndices([self._k], [indices]), self._context.images_per_graph)
        return self._sum(self._weight_gradient(chunk.images, len(indices), create_graph=False) for chunk in chunks)

    def match(self, S_k: Tensor, target: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return D(∇_θ CE(θ; A(S_k)), target), a scalar, and its gradient in S_k, (ipc, C, H, W).

        With g = ∇_θ CE = Σ_chunks g_c and V = ∂D/∂g, a chunk's images get (∂g_c/∂S_c)ᵀ V, which needs only the graph of that
        chunk. With one chunk, its graph is kept; with several, each graph is computed again, for about a third more work.
        """
        chunks = [chunk.detach().requires_grad_() for chunk in torch.split(S_k, self._context.images_per_double_graph)]
        kept = self._weight_gradient(chunks[0], len(S_k), create_graph=True) if len(chunks) == 1 else None
        parts = (self._weight_gradient(chunk, len(S_k), create_graph=False) for chunk in chunks)
        g = [w.detach().requires_grad_() for w in (self._sum(parts) if kept is None else kept)]
        distance = losses.gradient_distance(g, target)
        V = torch.autograd.grad(distance, g)
        gradients: list[Tensor] = []
        for chunk in chunks:
            # Do not name the graph: a variable would keep it alive while the next one is built.
            gradients += torch.autograd.grad(kept or self._weight_gradient(chunk, len(S_k), create_graph=True), chunk, V)
        return distance.detach(), torch.cat(gradients)

    def _sum(self, parts: Iterator[Sequence[Tensor]]) -> list[Tensor]:
        """Return the sum of weight gradients without graphs. Only the sum and two of the gradients are held at the same time."""
        total = [torch.zeros_like(w) for w in self._weights]
        for part in parts:
            for sum_, share in zip(total, part, strict=True):
                sum_ += share
        return total

    def _weight_gradient(self, images: Tensor, total: int, *, create_graph: bool) -> tuple[Tensor, ...]:
        """Return ∇_θ of these images' share of the mean cross-entropy over `total` images of class k, one tensor per weight."""
        if self._draw is not None:
            images = apply(images, self._draw[torch.zeros(len(images), dtype=torch.int64)])
        labels = torch.full((len(images),), self._k, device=images.device)
        loss = F.cross_entropy(self._context.model(images), labels, reduction="sum") / total
        return torch.autograd.grad(loss, self._weights, create_graph=create_graph)
