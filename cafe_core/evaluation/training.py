"""Train new networks and test them, one at a time or several of one kind together.

M   networks, each with its own seed     n   training images of each     b   images of a minibatch     K   classes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cafe_core.algorithm.sampling import counter_seed, generator
from cafe_core.evaluation.augmentation import augmented_epoch
from cafe_core.evaluation.ensemble import Ensemble
from cafe_core.evaluation.images import Images
from cafe_core.networks import init_network
from cafe_core.networks.sgd import TENTH_AT_HALF, Sgd
from cafe_core.spec.dataset import DatasetInfo
from cafe_core.spec.estimate import EVALUATION_BATCH
from cafe_core.spec.evaluation import Augmentation
from cafe_core.spec.network import NetworkSpec

# These values are the same in both presets.
_LR = 0.01
_MOMENTUM = 0.9
_WEIGHT_DECAY = 5e-4

_TEST_CHUNK = {"cpu": 32, "cuda": 1024}
"""Images per forward pass. On CPUs, feature maps of more than about 32 images do not fit in the cache."""


@dataclass(frozen=True)
class Recipe:
    """The settings that all networks of a training share."""

    network: NetworkSpec
    epochs: int
    augment: Augmentation
    info: DatasetInfo
    """The real images: K, and whether flips are allowed."""


def network_seed(seed: int, network_kind_index: int, repeat: int, *, validation: bool = False) -> int:
    """Return the seed of one evaluation network, from the job's seed, its kind's index in the spec, and its repeat.

    Validation uses other networks than the evaluation, so that a choice made by validation is evaluated independently.
    """
    return counter_seed(seed, "validation" if validation else "evaluation", network_kind_index, repeat)


def train(recipe: Recipe, images: Images, rows: Tensor, seeds: Sequence[int]) -> Ensemble:
    """Train one network per seed, network m on images `rows`[m]; rows: (M, n) int64 on the CPU.

    Uses SGD with momentum and cross-entropy, and divides the learning rate by 10 after half the epochs. Computes on the images'
    device in their dtype. Each network equals one trained separately, up to rounding.

    Every draw is addressed by a network's seed, so on one kind of CPU and number of threads the same arguments give the same
    network. Divergence is not an error; such a network is scored like any other.
    """
    M, count = rows.shape
    networks = [init_network(recipe.network, images.shape, recipe.info.num_classes, _initial(seed)) for seed in seeds]
    ensemble = Ensemble(networks).to(images.normalisation.device, images.normalisation.dtype).train()
    optimizer = Sgd(ensemble.parameters(), lr=_LR, momentum=_MOMENTUM, weight_decay=_WEIGHT_DECAY)
    first_draw = count * torch.arange(M)[:, None]
    for epoch in range(recipe.epochs):
        optimizer.lr = TENTH_AT_HALF.rate(_LR, epoch, recipe.epochs)
        orders = torch.stack([torch.randperm(count, generator=generator(seed, "evaluation order", epoch)) for seed in seeds])
        batch = augmented_epoch(recipe.augment, images, seeds, epoch, count, recipe.info.is_digits)
        for order in torch.split(orders, EVALUATION_BATCH, dim=1):  # (M, b)
            picked = rows.gather(1, order).flatten()
            augmented = batch(picked, (first_draw + order).flatten())
            x = torch.unflatten(augmented, 0, order.shape)  # (M, b, C, H, W)
            logits = ensemble(x).flatten(0, 1)
            loss = F.cross_entropy(logits, images.labels(picked)) * M  # Σ_m of the networks' mean losses
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    return ensemble


def _initial(seed: int) -> int:
    return counter_seed(seed, "evaluation network")


@torch.inference_mode()
def accuracies(ensemble: Ensemble, images: Images, rows: Tensor) -> list[float]:
    """Return the percentage of images `rows` (n,) that each network classifies correctly: M numbers.

    Images are loaded and classified chunk by chunk. Sets the networks to evaluation mode. Raises ValueError without images.
    """
    if len(rows) == 0:
        raise ValueError("the dataset has no test images to measure an accuracy on")
    device = images.normalisation.device
    ensemble.eval()
    hits = torch.zeros(
        ensemble.size, dtype=torch.int64, device=device
    )  # read once at the end, to avoid synchronising with the device
    for chunk in torch.split(rows, max(1, _TEST_CHUNK.get(device.type, 256) // ensemble.size)):
        x = images.normalised(chunk)
        predicted = ensemble(x.expand(ensemble.size, *x.shape)).argmax(2)  # (M, b)
        hits += (predicted == images.labels(chunk)).sum(1)
    return [100 * count / len(rows) for count in hits.tolist()]
