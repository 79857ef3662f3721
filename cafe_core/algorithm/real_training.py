"""Train a network on all real images, data-parallel over class shards.

Each rank holds the real images of its own classes as uint8; they are never sent. An epoch is one global permutation of all
ranks' images, and each rank processes the images of a minibatch that it owns. The reduced gradient, and so θ, is the same on
all ranks, and equal to that of unsharded training up to the order of sums.

    K   classes     n_k   real images of class k     n = Σ_k n_k     B   images of a minibatch     θ   network
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cafe_core.algorithm.collectives import Comm
from cafe_core.algorithm.real_images import BatchIndices, RealImages
from cafe_core.algorithm.sampling import generator
from cafe_core.algorithm.shared_gradient import shared_gradient
from cafe_core.errors import NonFiniteLossError
from cafe_core.networks.sgd import Sgd, decayed

# As in evaluations.
_MOMENTUM = 0.9
_WEIGHT_DECAY = 5e-4


class Classifier(Protocol):
    """A network in training, e.g. a :class:`cafe_core.algorithm.model.Model`."""

    def __call__(self, images: Tensor) -> Tensor:
        """Return logits (n, K) of normalised images (n, C, H, W), with a graph to the parameters."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return the parameters θ, the same on all ranks."""


@dataclass(frozen=True)
class SgdRecipe:
    """SGD with momentum 0.9 and weight decay 5e-4; the learning rate is divided by 10 after half the epochs."""

    epochs: int
    batch: int
    """B, over all classes."""
    lr: float
    seed: int
    """Seed of the permutations."""
    images_per_chunk: int
    """Images per forward pass. Gradients of a minibatch's parts add up, so this affects memory, not the result."""


@dataclass(frozen=True)
class Epoch:
    """The statistics of one epoch. Each image is classified once, just before θ is updated with its minibatch."""

    number: int
    """1-based."""
    loss: float
    """Mean cross-entropy over the images of all ranks."""
    accuracy: float
    """0 … 1, over the images of all ranks."""
    correct: list[Tensor]
    """For each own class, which images were classified correctly: (n_k,) bool on the CPU."""


def train(
    network: Classifier, real: RealImages, classes: range, num_classes: int, comm: Comm, recipe: SgdRecipe
) -> Iterator[Epoch]:
    """Train `network` in place on the real images of all ranks; yield after each epoch.

    classes: those of this rank, of `num_classes`. Nothing is checkpointed: interrupted training starts again. Raises
    NonFiniteLossError, on every rank, after an epoch with a non-finite loss.
    """
    parameters = list(network.parameters())
    gradient = shared_gradient(parameters)
    optimizer = Sgd(parameters, lr=recipe.lr, momentum=_MOMENTUM, weight_decay=_WEIGHT_DECAY)
    mine = _OwnImages.of(real, classes, num_classes, comm)
    for number in range(1, recipe.epochs + 1):
        optimizer.lr = decayed(recipe.lr, number - 1, recipe.epochs)
        sums = torch.zeros(2, dtype=torch.float64, device=real.device)  # of cross-entropies and hits, read once per epoch
        correct = torch.zeros(mine.count, dtype=torch.bool, device=real.device)
        permutation = torch.randperm(mine.total, generator=generator(recipe.seed, "real epoch", number))
        for batch in torch.split(permutation, recipe.batch):
            members = mine.among(batch)
            first = 0
            gradient.zero_()
            # ∇J = (1/B) Σ_{i∈batch} ∇CE_i = Σ_r (1/B) Σ_{i∈batch∩r} ∇CE_i: sums over owned images, divided by the global B.
            for chunk in real.chunks(mine.rows(members), recipe.images_per_chunk):
                labels = chunk.labels()
                logits = network(chunk.images)
                loss = F.cross_entropy(logits, labels, reduction="sum")
                torch.autograd.backward(loss / len(batch))  # adds to `gradient`
                hits = logits.detach().argmax(1) == labels
                correct[members[first : first + len(hits)].to(real.device)] = hits
                sums += torch.stack([loss.detach().double(), hits.sum().double()])
                first += len(hits)
            comm.all_reduce(gradient)
            optimizer.step()
        loss_sum, hit_count = comm.all_reduce(sums).tolist()
        if not math.isfinite(loss_sum):
            raise NonFiniteLossError(
                f"the loss became {loss_sum} in epoch {number} of the training on the real images. "
                "A smaller method.network_lr usually helps"
            )
        yield Epoch(
            number, loss_sum / mine.total, hit_count / mine.total, list(correct.cpu().split_with_sizes(mine.class_counts))
        )


@dataclass(frozen=True)
class _OwnImages:
    """The positions of a rank's images in the numbering of all ranks' images, which goes class by class.

    Within the rank, images are numbered from 0 in the same order.
    """

    classes: range
    class_counts: list[int]
    """n_k of each own class."""
    start: int
    """Global number of the first own image."""
    total: int
    """n."""

    @classmethod
    def of(cls, real: RealImages, classes: range, num_classes: int, comm: Comm) -> _OwnImages:
        """Gather the number of images of every class from all ranks."""
        own = torch.tensor([real.count(k) for k in classes], device=real.device)
        counts = comm.gather_rows(own, classes.start, num_classes).tolist()
        return cls(classes, own.tolist(), sum(counts[: classes.start]), sum(counts))

    @property
    def count(self) -> int:
        return sum(self.class_counts)

    def among(self, images: Tensor) -> Tensor:
        """Return the own images among `images` (global numbers) by their numbers within the rank, in increasing order."""
        own = images - self.start
        return own[(own >= 0) & (own < self.count)].sort().values

    def rows(self, members: Tensor) -> BatchIndices:
        """Convert increasing numbers within the rank to positions within classes."""
        ends = torch.tensor(self.class_counts).cumsum(0)
        k = torch.searchsorted(ends, members, right=True)
        within = members - (ends - torch.tensor(self.class_counts))[k]
        sizes = torch.bincount(k, minlength=len(self.classes)).tolist()
        return BatchIndices(list(self.classes), list(within.split_with_sizes(sizes)))
