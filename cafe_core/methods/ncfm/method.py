"""NCFM: neural characteristic function matching (Wang et al., CVPR 2025, https://arxiv.org/abs/2502.20653).

    L = a Σ_k mean_t sqrt(½ (|Φ_r| − |Φ_s|)² + |Φ_r| |Φ_s| − Re Φ_r Φ̄_s) + w Σ_k mean CE(θ_final; A′(D_k), k)

Φ(t) = mean cos⟨t, f⟩ + i · mean sin⟨t, f⟩ is the characteristic function of the features f of a class at the frequency t: Φ_r of
its real images, Φ_s of its decoded synthetic images D_k. f is the flattened last feature map, scaled to unit length, under the
network of DANCE. The frequencies are Gaussian and drawn for each iteration. (In the paper, a network that maximises the distance
learns to sample them; this is not implemented.) AdamW moves the images in [0, 1].

A worker needs the pool and its own classes' images; in the loop it communicates nothing. The losses that it reports are sums over
its own classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cafe_core.algorithm.augment import Draws, apply
from cafe_core.algorithm.method import Losses, MethodState
from cafe_core.algorithm.pool_method import PoolMethod
from cafe_core.algorithm.real_images import BatchIndices
from cafe_core.algorithm.sampling import generator
from cafe_core.algorithm.shard_context import ShardContext
from cafe_core.algorithm.synthetic_shard import SyntheticShard
from cafe_core.methods.ncfm.spec import NcfmMethod

_BETA_2, _EPSILON = 0.999, 1e-8
_SMALLEST = 1e-12
"""Lower bound of each term under the root, where its derivative is infinite."""


class Ncfm(PoolMethod):
    """Match the characteristic functions of real and synthetic features, and classify the images with trained networks."""

    def __init__(self, context: ShardContext) -> None:
        super().__init__(context)
        self._spec = self.spec_as(NcfmMethod)
        self._last = len(context.model.network.map_shapes) - 1
        self._squares: Tensor | None = None

    def gradient(self, shard: SyntheticShard, batch: BatchIndices, draws: Draws | None) -> tuple[Tensor, Losses]:
        """Return ∂L/∂S and the losses of the own classes, for images in [0, 1] (:meth:`PoolMethod.stored_gradient`)."""
        stored, decoded = self.decode(shard, self.iteration)
        matching, distance = self._match(decoded, batch, draws)
        self.context.model.load(self.final)
        classifying, cross_entropy = self.cross_entropy(decoded, self.class_draws("augment_class trained", self.iteration))
        weight = self._spec.cross_entropy
        losses = {"loss": distance + weight * cross_entropy, "distance": distance, "cross_entropy": weight * cross_entropy}
        return self.stored_gradient(stored, decoded, matching + weight * classifying), losses

    def update_images(self, shard: SyntheticShard, iteration: int, outer: int) -> Losses:
        """Clip the stored images, and take a step of AdamW on the images in [0, 1]."""
        self.clip(shard)
        batch = self.context.sample("real", self._spec.batch_real, iteration, outer)
        gradient, losses = self.gradient(shard, batch, self.class_draws("augment_class", iteration, outer))
        self._step(shard, gradient * self.formation.std)
        return losses

    def state(self) -> MethodState:
        """Return the second moments of AdamW; `SyntheticShard.momentum` has the first, and the iteration is the step count."""
        return MethodState() if self._squares is None else MethodState({"squares": self._squares})

    def load_state(self, state: MethodState) -> None:
        """Load the second moments."""
        self._squares = state.per_class.get("squares")

    def _step(self, shard: SyntheticShard, gradient: Tensor) -> None:
        """Take a step of AdamW (Loshchilov & Hutter, ICLR 2019, Algorithm 2). gradient: in the images of [0, 1]."""
        spec, count = self._spec, self.iteration + 1
        lr = spec.image_lr_at(self.iteration)
        if self._squares is None:
            self._squares = torch.zeros_like(gradient)
        shard.momentum.lerp_(gradient, 1 - spec.image_momentum)
        self._squares.mul_(_BETA_2).addcmul_(gradient, gradient, value=1 - _BETA_2)
        root = (self._squares / (1 - _BETA_2**count)).sqrt().add_(_EPSILON)
        pixels = self.formation.pixels(shard.images) * (1 - lr * spec.weight_decay)
        pixels -= lr / (1 - spec.image_momentum**count) * shard.momentum / root
        shard.images.copy_(self.formation.normalised(pixels))

    def _match(self, decoded: SyntheticShard, batch: BatchIndices, draws: Draws | None) -> tuple[Tensor, Tensor]:
        """Return the gradient of the weighted distance in the decoded images, (k·m, C, H, W), and the distance.

        With Φ_s = Σ_chunks Φ_c and V = ∂distance/∂Φ_s, a chunk's images get (∂Φ_c/∂D_c)ᵀ V, which needs only the graph of that
        chunk. With one chunk, its graph is kept; with several, each graph is computed again.
        """
        context = self.context
        context.model.load(self.between)
        random = generator(context.spec.seed, "frequencies", self.iteration)
        frequencies = torch.randn(self._spec.frequencies, context.model.network.feature_dim, generator=random)
        t = frequencies.to(decoded.images)  # (T, D)
        total = decoded.images.new_zeros(())
        gradients: list[Tensor] = []
        for j, images in enumerate(torch.split(decoded.images.detach(), decoded.ipc)):
            target = self._real_characteristic(batch, j, draws, t)
            chunks = [chunk.detach().requires_grad_() for chunk in torch.split(images, context.images_per_graph)]
            kept = self._characteristic(chunks[0], decoded.ipc, j, draws, t) if len(chunks) == 1 else None
            with torch.no_grad():
                parts = [kept] if kept is not None else [self._characteristic(c, decoded.ipc, j, draws, t) for c in chunks]
                own = torch.stack(parts).sum(0)
            own.requires_grad_()
            distance = self._spec.distance * characteristic_distance(target, own)
            (V,) = torch.autograd.grad(distance, own)
            for chunk in chunks:
                # Do not name the graph: a variable would keep it alive while the next one is built.
                gradients += torch.autograd.grad(
                    kept if kept is not None else self._characteristic(chunk, decoded.ipc, j, draws, t), chunk, V
                )
            total += distance.detach()
        return torch.cat(gradients), total

    @torch.no_grad()
    def _real_characteristic(self, batch: BatchIndices, j: int, draws: Draws | None, t: Tensor) -> Tensor:
        """Return Φ_r(t) of the j-th own class, (2, T), in pieces that fit the memory budget."""
        rows = BatchIndices([batch.classes[j]], [batch.indices[j]])
        chunks = self.context.real.chunks(rows, self.context.images_per_chunk)
        parts = [self._characteristic(chunk.images, len(batch.indices[j]), j, draws, t) for chunk in chunks]
        return torch.stack(parts).sum(0)

    def _characteristic(self, images: Tensor, total: int, j: int, draws: Draws | None, t: Tensor) -> Tensor:
        """Return these images' share of Φ(t) of `total` images of the j-th own class: real and imaginary parts, (2, T)."""
        if draws is not None:
            images = apply(images, draws[torch.full((len(images),), j)])
        (last,) = self.context.model.features(images, [self._last])
        features = torch.nn.functional.normalize(last.flatten(1).to(t.dtype))  # (n, D)
        angles = features @ t.T  # (n, T)
        return torch.stack([angles.cos().sum(0), angles.sin().sum(0)]) / total


def characteristic_distance(target: Tensor, own: Tensor) -> Tensor:
    """Return mean_t sqrt(½ (|Φ_r| − |Φ_s|)² + |Φ_r| |Φ_s| − Re Φ_r Φ̄_s), a scalar. target, own: Φ_r and Φ_s, (2, T)."""
    size_r, size_s = (torch.linalg.vector_norm(part, dim=0) for part in (target, own))
    amplitude = (size_r - size_s).square().clamp(min=_SMALLEST)
    phase = (2 * (size_r * size_s - (target * own).sum(0))).clamp(min=_SMALLEST)
    distance: Tensor = (amplitude / 2 + phase / 2).sqrt().mean()
    return distance
