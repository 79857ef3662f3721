"""Share what methods with a pool of trained networks have in common: multi-formation images, and gradients local to a class.

Given the pool, no loss couples two classes and a step communicates nothing. All draws are addressed by the class, so a class's
images depend only on its own real images, its position among the classes, the pool, the seed, and the mean and the std by which
all images are normalised. A diverged run fails when its next checkpoint is written, because the workers do not exchange their
losses.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cafe_core.algorithm.artifact_cache import ArtifactCache
from cafe_core.algorithm.augment import Draws, apply
from cafe_core.algorithm.formation import Formation
from cafe_core.algorithm.method import LearningMethod, Losses, Report, repeated
from cafe_core.algorithm.pool import Member, Weights, load_or_train
from cafe_core.algorithm.sampling import choose, generator
from cafe_core.algorithm.shard_context import ShardContext
from cafe_core.algorithm.synthetic_shard import SyntheticShard
from cafe_core.spec.pool_method import PoolMethodSpec


class PoolMethod(LearningMethod):
    """A method that learns multi-formation images with a pool of networks that are trained on the real images only."""

    def __init__(self, context: ShardContext) -> None:
        super().__init__(context)
        assert isinstance(self.learning, PoolMethodSpec)
        self.pool_spec = self.learning
        info, real = context.info, context.real
        mean, std = (torch.tensor(of, dtype=torch.float64).to(real.device, real.dtype) for of in (info.mean, info.std))
        self.formation = Formation(self.pool_spec.factor, info.shape, mean, std)
        self.pool: list[Member] = []
        self.iteration = 0
        self.between: Weights = {}
        """λ·θ_initial + (1 − λ)·θ_final of the iteration's network."""
        self.final: Weights = {}
        """θ_final of the iteration's network."""

    def prepare(self, cache: ArtifactCache, report: Report) -> None:
        """Train the pool, or load it if it is cached."""
        self.pool = load_or_train(self.context, cache, report)

    def renew_network(self, iteration: int) -> None:
        """Draw the network of `iteration` from the pool, and the weights between its initial and its final ones."""
        member, share = self.draw_member(iteration)
        self.iteration, self.between, self.final = iteration, member.between(share), member.final

    def draw_member(self, iteration: int) -> tuple[Member, float]:
        """Draw the network of an iteration, and λ, uniform in [0, 1); the same on all workers."""
        random = generator(self.context.spec.seed, "pool network", iteration)
        number = int(torch.randint(len(self.pool), (), generator=random))
        return self.pool[number], float(torch.rand((), dtype=torch.float64, generator=random))

    def check_finite(self, losses: Losses, iteration: int, outer: int) -> None:
        """Do nothing: a worker alone must not stop, because the others would wait for it at the next checkpoint."""

    def _initial_images_of(self, k: int) -> Tensor:
        if self.learning.init == "noise":
            return super()._initial_images_of(k)
        real, count = self.context.real, self.context.spec.ipc * self.formation.images_per_stored
        chosen = repeated(choose(generator(self.context.spec.seed, "init", k), real.count(k), count), count)
        return self.formation.compose(real.batch(k, chosen))

    def clip(self, shard: SyntheticShard) -> None:
        """Clip the stored images to the range of pixel values."""
        torch.clamp(shard.images, self.formation.low, self.formation.high, out=shard.images)

    @property
    def decoded_per_class(self) -> int:
        """Return how many training images of each class a step uses."""
        return min(self.pool_spec.decoded_per_class, self.context.spec.ipc * self.formation.images_per_stored)

    def decode(self, shard: SyntheticShard, iteration: int) -> tuple[Tensor, SyntheticShard]:
        """Return the stored images as a leaf of a graph, and the step's training images, which depend on it.

        Draw `decoded_per_class` training images per class; use all if there are fewer.
        """
        stored = shard.images.detach().requires_grad_()
        per_class, taken = shard.ipc * self.formation.images_per_stored, self.decoded_per_class
        decoded = self.formation.decode(stored)
        if taken < per_class:
            seed = self.context.spec.seed
            rows = [choose(generator(seed, "decoded", iteration, k), per_class, taken).sort().values for k in shard.classes]
            decoded = decoded[torch.cat([j * per_class + picked for j, picked in enumerate(rows)]).to(decoded.device)]
        return stored, SyntheticShard(shard.classes, taken, decoded, decoded)

    def cross_entropy(self, decoded: SyntheticShard, draws: Draws | None) -> tuple[Tensor, Tensor]:
        """Return the gradient in the decoded images, (k·m, C, H, W), and the value of Σ_k mean CE(θ(images of class k), k).

        θ is `self.context.model`. The sum is over the own classes.
        """
        images = decoded.images.detach()
        labels = torch.tensor(decoded.classes).repeat_interleave(decoded.ipc)
        places = torch.arange(len(decoded.classes)).repeat_interleave(decoded.ipc)  # in the shard
        total = images.new_zeros(())
        gradients: list[Tensor] = []
        for rows in torch.split(torch.arange(len(images)), self.context.images_per_graph):
            part = images[rows.to(images.device)].requires_grad_()
            augmented = part if draws is None else apply(part, draws[places[rows]])
            logits = self.context.model.logits(augmented)
            loss = F.cross_entropy(logits, labels[rows].to(images.device), reduction="sum") / decoded.ipc
            gradients += torch.autograd.grad(loss, part)
            total += loss.detach()
        return torch.cat(gradients), total

    def stored_gradient(self, stored: Tensor, decoded: SyntheticShard, gradient: Tensor) -> Tensor:
        """Return the gradient in the stored images of one in the decoded images, as if images were stored in [0, 1].

        With x = (p − mean)/std for a pixel p of [0, 1], a step of η on p is a step of η/std² times the gradient in x.
        """
        (in_stored,) = torch.autograd.grad(decoded.images, stored, gradient)
        return in_stored / self.formation.std.square()
