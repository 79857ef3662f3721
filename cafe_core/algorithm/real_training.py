"""Train a network on all real images, data-parallel over class shards.

Each rank holds the real images of its own classes as uint8; they are never sent. An epoch is one global permutation of all
ranks' images, and each rank processes the images of a minibatch that it owns. The reduced gradient, and so θ, is the same on
all ranks, and equal to that of unsharded training up to the order of sums.

CutMix pairs images of different classes. A rank reads the other image of a pair from the class store, which all ranks can open.

    K   classes     n_k   real images of class k     n = Σ_k n_k     B   images of a minibatch     θ   network
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cafe_core.algorithm import augment
from cafe_core.algorithm.collectives import Comm
from cafe_core.algorithm.cutmix import CutMix
from cafe_core.algorithm.real_images import BatchIndices, RealImages
from cafe_core.algorithm.sampling import generator
from cafe_core.algorithm.shared_gradient import shared_gradient
from cafe_core.errors import NonFiniteLossError
from cafe_core.networks.sgd import TENTH_AT_HALF, Decay, Sgd
from cafe_core.spec.evaluation import Augmentation

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
    """SGD with momentum 0.9 and weight decay 5e-4."""

    epochs: int
    batch: int
    """B, over all classes."""
    lr: float
    seed: int
    """Seed of the permutations, augmentations and mixes."""
    images_per_chunk: int
    """Images per forward pass. Gradients of a minibatch's parts add up, so this affects memory, not the result."""
    decay: Decay = TENTH_AT_HALF
    """The schedule of the learning rate."""
    augment: Augmentation = "none"
    """Differentiable augmentation, one draw per image and epoch (:mod:`cafe_core.algorithm.augment`)."""
    cutmix: float = 0.0
    """Probability that a minibatch is mixed (:mod:`cafe_core.algorithm.cutmix`)."""
    is_digits: bool = False
    """True if the images show digits, which augmentations must not flip."""
    lr_field: str = "method.network_lr"
    """The field of the spec that sets `lr`, for errors."""


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


def _ignore_step(_batch: int, _batches: int) -> None:
    """Do nothing."""


class RealTraining:
    """The training of `network`, in place, on the real images of all ranks."""

    def __init__(
        self,
        network: Classifier,
        real: RealImages,
        classes: range,
        num_classes: int,
        comm: Comm,
        recipe: SgdRecipe,
        all_real: RealImages | None = None,
    ) -> None:
        """classes: those of this rank, of `num_classes`. all_real: the images of all classes, needed for CutMix."""
        assert all_real is not None or recipe.cutmix == 0, "CutMix needs all_real"
        self._network, self._real, self._comm, self._recipe, self._all_real = network, real, comm, recipe, all_real
        self._parameters = list(network.parameters())
        self._gradient = shared_gradient(self._parameters)
        self._optimizer = Sgd(self._parameters, lr=recipe.lr, momentum=_MOMENTUM, weight_decay=_WEIGHT_DECAY)
        self._numbering = _Numbering.of(real, classes, num_classes, comm)
        self.epochs_done = 0
        """Epochs that are done, also those of a loaded state."""

    def state(self) -> dict[str, Tensor]:
        """Return what is needed to continue after the last epoch: `done` epochs, flat `weights` and `velocities`."""
        return {
            "done": torch.tensor(self.epochs_done),
            "weights": torch.cat([p.detach().flatten() for p in self._parameters]),
            "velocities": torch.cat([v.flatten() for v in self._optimizer.velocities]),
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from a :meth:`state`, which any number of workers may have made."""
        sizes = [p.numel() for p in self._parameters]
        weights, velocities = (state[name].split_with_sizes(sizes) for name in ("weights", "velocities"))
        with torch.no_grad():
            for parameter, weight in zip(self._parameters, weights, strict=True):
                parameter.copy_(weight.view_as(parameter))
        self._optimizer.velocities = [v.view_as(p).clone() for v, p in zip(velocities, self._parameters, strict=True)]
        self.epochs_done = int(state["done"])

    def epochs(self, step_done: Callable[[int, int], None] = _ignore_step) -> Iterator[Epoch]:
        """Train for the remaining epochs; yield after each. All ranks iterate together.

        Calls step_done(minibatches done, minibatches of an epoch) after each minibatch.

        Raises NonFiniteLossError, on every rank, after an epoch with a non-finite loss.
        """
        recipe, mine = self._recipe, self._numbering
        for number in range(self.epochs_done + 1, recipe.epochs + 1):
            self._optimizer.lr = recipe.decay.rate(recipe.lr, number - 1, recipe.epochs)
            sums = torch.zeros(2, dtype=torch.float64, device=self._real.device)  # of losses and hits, read once per epoch
            correct = torch.zeros(mine.count, dtype=torch.bool, device=self._real.device)
            permutation = torch.randperm(mine.total, generator=generator(recipe.seed, "real epoch", number))
            uniforms = self._uniforms(number)
            batches = torch.split(permutation, recipe.batch)
            for index, batch in enumerate(batches):
                self._gradient.zero_()
                self._accumulate(batch, uniforms, self._mix(batch, number, index), sums, correct)
                self._comm.all_reduce(self._gradient)
                self._optimizer.step()
                step_done(index + 1, len(batches))
            self.epochs_done = number
            loss_sum, hit_count = self._comm.all_reduce(sums).tolist()
            if not math.isfinite(loss_sum):
                raise NonFiniteLossError(
                    f"the loss became {loss_sum} in epoch {number} of the training on the real images. "
                    f"A smaller {recipe.lr_field} usually helps"
                )
            yield Epoch(
                number, loss_sum / mine.total, hit_count / mine.total, list(correct.cpu().split_with_sizes(mine.class_counts))
            )

    def _accumulate(self, batch: Tensor, uniforms: Tensor | None, mix: CutMix | None, sums: Tensor, correct: Tensor) -> None:
        """Add the gradient, the loss and the hits of the own images of a minibatch.

        ∇J = (1/B) Σ_{i∈batch} ∇CE_i = Σ_r (1/B) Σ_{i∈batch∩r} ∇CE_i: sums over owned images, divided by the global B.
        """
        mine, real = self._numbering, self._real
        positions = mine.among(batch)  # in the minibatch
        members = batch[positions]
        first = 0
        for chunk in real.chunks(mine.rows(members - mine.start, mine.classes), self._recipe.images_per_chunk):
            at = slice(first, first + len(chunk.images))
            images, labels = self._augmented(chunk.images, members[at], uniforms), chunk.labels()
            if mix is None:
                logits = self._network(images)
                losses = F.cross_entropy(logits, labels, reduction="none")
            else:
                partners = batch[mix.partners[positions[at]]]
                others, other_labels = self._load(partners)
                logits = self._network(mix.mixed(images, self._augmented(others, partners, uniforms)))
                losses = mix.cross_entropies(logits, labels, other_labels)
            loss = losses.sum()
            torch.autograd.backward(loss / len(batch))  # adds to the flat gradient
            hits = logits.detach().argmax(1) == labels
            correct[(members[at] - mine.start).to(real.device)] = hits
            sums += torch.stack([loss.detach().double(), hits.sum().double()])
            first = at.stop

    def _uniforms(self, epoch: int) -> Tensor | None:
        """Return the numbers from which the augmentations of an epoch are drawn: a row for each image of all ranks."""
        if self._recipe.augment == "none":
            return None
        random = generator(self._recipe.seed, "real augmentation", epoch)
        return torch.rand(self._numbering.total, augment.UNIFORMS, dtype=torch.float64, generator=random)

    def _augmented(self, images: Tensor, numbers: Tensor, uniforms: Tensor | None) -> Tensor:
        if uniforms is None:
            return images
        draws = augment.from_uniforms(self._recipe.augment, uniforms[numbers], self._real.shape, self._recipe.is_digits)
        return augment.apply(images, draws)

    def _mix(self, batch: Tensor, epoch: int, index: int) -> CutMix | None:
        if self._recipe.cutmix == 0 or self._all_real is None:
            return None
        random = generator(self._recipe.seed, "real mix", epoch, index)
        return CutMix.draw(len(batch), *self._all_real.shape[1:], self._recipe.cutmix, random)

    def _load(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Return images by their global numbers, in that order, and their labels."""
        assert self._all_real is not None
        order = numbers.argsort()
        rows = self._numbering.rows(numbers[order], range(len(self._numbering.all_counts)))
        (chunk,) = self._all_real.chunks(rows, len(numbers))
        original = order.argsort().to(chunk.images.device)
        return chunk.images[original], chunk.labels()[original]


@dataclass(frozen=True)
class _Numbering:
    """The numbers of all ranks' images, which go class by class from 0."""

    classes: range
    """Those of this rank."""
    all_counts: list[int]
    """n_k of all classes."""

    @classmethod
    def of(cls, real: RealImages, classes: range, num_classes: int, comm: Comm) -> _Numbering:
        """Gather the number of images of every class from all ranks."""
        own = torch.tensor([real.count(k) for k in classes], device=real.device)
        return cls(classes, comm.gather_rows(own, classes.start, num_classes).tolist())

    @property
    def class_counts(self) -> list[int]:
        """Return n_k of each own class."""
        return self.all_counts[self.classes.start : self.classes.stop]

    @property
    def start(self) -> int:
        """Return the number of the first own image."""
        return sum(self.all_counts[: self.classes.start])

    @property
    def count(self) -> int:
        """Return how many images are own ones."""
        return sum(self.class_counts)

    @property
    def total(self) -> int:
        """Return n."""
        return sum(self.all_counts)

    def among(self, batch: Tensor) -> Tensor:
        """Return the positions in `batch` of the own images, in increasing order of their numbers."""
        (positions,) = torch.nonzero((batch >= self.start) & (batch < self.start + self.count), as_tuple=True)
        return positions[batch[positions].argsort()]

    def rows(self, numbers: Tensor, classes: range) -> BatchIndices:
        """Convert increasing numbers, counted from the first image of `classes`, to positions within these classes."""
        counts = torch.tensor(self.all_counts[classes.start : classes.stop])
        ends = counts.cumsum(0)
        k = torch.searchsorted(ends, numbers, right=True)
        within = numbers - (ends - counts)[k]
        sizes = torch.bincount(k, minlength=len(classes)).tolist()
        return BatchIndices(list(classes), list(within.split_with_sizes(sizes)))
