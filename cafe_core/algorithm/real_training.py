"""Training a network on all real images, data-parallel over class shards.

Each rank holds the real images of its own classes, as uint8, and they never move. An epoch is one global permutation of all
ranks' images; of each minibatch a rank takes the members it owns. The reduced gradient is the same everywhere, so θ stays equal
everywhere; and it is the θ of the unsharded training, up to the order of sums.

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

# The evaluation's (method.md, "Evaluation").
_MOMENTUM = 0.9
_WEIGHT_DECAY = 5e-4


class Classifier(Protocol):
    """A network in training, e.g. a :class:`cafe_core.algorithm.model.Model`."""

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (n, K) of normalised images (n, C, H, W), with a graph to the parameters."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """θ, the same on all ranks."""


@dataclass(frozen=True)
class SgdRecipe:
    """SGD with momentum 0.9 and weight decay 5e-4; after half the epochs a tenth of the learning rate, as in evaluations."""

    epochs: int
    batch: int
    """B, over all classes."""
    lr: float
    seed: int
    """Of the permutations."""
    images_per_chunk: int
    """Images that go through the network at once; the gradients of a minibatch's pieces add up. Bounds memory, not the result."""


@dataclass(frozen=True)
class Epoch:
    """What one epoch did. Every image is judged once, just before θ learns from the minibatch that it is in."""

    number: int
    """1-based."""
    loss: float
    """Mean cross-entropy over the images of all ranks."""
    accuracy: float
    """0 … 1, over the images of all ranks."""
    correct: list[Tensor]
    """For each own class: (n_k,) bool on the CPU, which of its images were classified as labelled."""


def train(
    network: Classifier, real: RealImages, classes: range, num_classes: int, comm: Comm, recipe: SgdRecipe
) -> Iterator[Epoch]:
    """Train `network` in place on the real images of all ranks; an epoch each time the iterator is asked for one.

    classes: those that this rank owns, of `num_classes`. Nothing is saved on the way: a training that is broken off starts again.
    Raises NonFiniteLossError, on every rank, after an epoch whose loss was not finite.
    """
    parameters = list(network.parameters())
    gradient = shared_gradient(parameters)
    optimizer = torch.optim.SGD(parameters, lr=recipe.lr, momentum=_MOMENTUM, weight_decay=_WEIGHT_DECAY)
    # Half of an odd number of epochs is rounded up, as in evaluations: a single epoch runs at the full rate.
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=(recipe.epochs + 1) // 2, gamma=0.1)
    mine = _OwnImages.of(real, classes, num_classes, comm)
    for number in range(1, recipe.epochs + 1):
        sums = torch.zeros(2, dtype=torch.float64, device=real.device)  # of cross-entropies and of hits: read once an epoch
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
        schedule.step()
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
    """Where a rank's images lie among all ranks' images, which are numbered class after class.

    Within the rank they are numbered from 0, in the same order.
    """

    classes: range
    class_counts: list[int]
    """n_k of each own class."""
    start: int
    """Number of the first own image among all."""
    total: int
    """n."""

    @classmethod
    def of(cls, real: RealImages, classes: range, num_classes: int, comm: Comm) -> _OwnImages:
        """Asks all ranks how many images each class has."""
        own = torch.tensor([real.count(k) for k in classes], device=real.device)
        counts = comm.gather_rows(own, classes.start, num_classes).tolist()
        return cls(classes, own.tolist(), sum(counts[: classes.start]), sum(counts))

    @property
    def count(self) -> int:
        return sum(self.class_counts)

    def among(self, images: Tensor) -> Tensor:
        """The own ones among `images`, numbers among all: their own numbers, in increasing order."""
        own = images - self.start
        return own[(own >= 0) & (own < self.count)].sort().values

    def rows(self, members: Tensor) -> BatchIndices:
        """Own images, by their own numbers in increasing order, as rows of their classes."""
        ends = torch.tensor(self.class_counts).cumsum(0)
        k = torch.searchsorted(ends, members, right=True)
        within = members - (ends - torch.tensor(self.class_counts))[k]
        sizes = torch.bincount(k, minlength=len(self.classes)).tolist()
        return BatchIndices(list(self.classes), list(within.split_with_sizes(sizes)))
