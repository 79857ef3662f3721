"""Train new networks and test them, one at a time or several of one kind together.

M   networks, each with its own seed     n   training images of each     b   images of a minibatch     K   classes
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cafe_core.algorithm.cutmix import CutMix
from cafe_core.algorithm.sampling import counter_seed, generator
from cafe_core.evaluation.augmentation import augmented_epoch
from cafe_core.evaluation.ensemble import Ensemble
from cafe_core.evaluation.images import Images
from cafe_core.networks import init_network
from cafe_core.networks.sgd import FIFTHS_AT_THE_END, TENTH_AT_HALF, Decay, Sgd
from cafe_core.spec.dataset import DatasetInfo
from cafe_core.spec.evaluation import Augmentation
from cafe_core.spec.network import NetworkSpec
from cafe_core.spec.protocol import Schedule

# These values are the same in all protocols.
_LR = 0.01
_MOMENTUM = 0.9
_WEIGHT_DECAY = 5e-4

_TEST_CHUNK = {"cpu": 32, "cuda": 1024}
"""Images per forward pass. On CPUs, feature maps of more than about 32 images do not fit in the cache."""


SCHEDULES: dict[Schedule, Decay] = {"tenth_at_half": TENTH_AT_HALF, "fifths_at_the_end": FIFTHS_AT_THE_END}


@dataclass(frozen=True)
class Recipe:
    """The settings that all networks of a training share."""

    network: NetworkSpec
    epochs: int
    augment: Augmentation
    info: DatasetInfo
    """The real images: K, and whether flips are allowed."""
    batch: int = 256
    decay: Decay = TENTH_AT_HALF
    cutmix: float = 0.0
    """Probability that a minibatch is mixed."""


def network_seed(seed: int, network_kind_index: int, repeat: int, *, validation: bool = False) -> int:
    """Return the seed of one evaluation network, from the job's seed, its kind's index in the spec, and its repeat.

    Validation uses other networks than the evaluation, so that a choice made by validation is evaluated independently.
    """
    return counter_seed(seed, "validation" if validation else "evaluation", network_kind_index, repeat)


def train(
    recipe: Recipe, images: Images, rows: Tensor, seeds: Sequence[int], epoch_done: Callable[[int], None] = lambda _epoch: None
) -> Ensemble:
    """Train one network per seed, network m on images `rows`[m]; rows: (M, n) int64 on the CPU.

    Uses SGD with momentum and cross-entropy. Computes on the images' device in their dtype. Each network equals one trained
    separately, up to rounding. Calls epoch_done(1), epoch_done(2), … after the epochs.

    Every draw is addressed by a network's seed, so on one kind of CPU and number of threads the same arguments give the same
    network. Divergence is not an error; such a network is scored like any other.
    """
    M, count = rows.shape
    networks = [init_network(recipe.network, images.shape, recipe.info.num_classes, _initial(seed)) for seed in seeds]
    ensemble = Ensemble(networks).to(images.normalisation.device, images.normalisation.dtype).train()
    optimizer = Sgd(ensemble.parameters(), lr=_LR, momentum=_MOMENTUM, weight_decay=_WEIGHT_DECAY)
    first_draw = count * torch.arange(M)[:, None]
    for epoch in range(recipe.epochs):
        optimizer.lr = recipe.decay.rate(_LR, epoch, recipe.epochs)
        orders = torch.stack([torch.randperm(count, generator=generator(seed, "evaluation order", epoch)) for seed in seeds])
        batch = augmented_epoch(recipe.augment, images, seeds, epoch, count, recipe.info.is_digits)
        for index, order in enumerate(torch.split(orders, recipe.batch, dim=1)):  # (M, b)
            picked = rows.gather(1, order).flatten()
            augmented = batch(picked, (first_draw + order).flatten())
            x = torch.unflatten(augmented, 0, order.shape)  # (M, b, C, H, W)
            labels = images.labels(picked)
            if recipe.cutmix > 0:
                randoms = [generator(seed, "evaluation mix", epoch, index) for seed in seeds]
                loss = _mixed_loss(ensemble, x, torch.unflatten(labels, 0, order.shape), recipe.cutmix, randoms)
            else:
                loss = F.cross_entropy(ensemble(x).flatten(0, 1), labels) * M  # Σ_m of the networks' mean losses
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        epoch_done(epoch + 1)
    return ensemble


def _mixed_loss(ensemble: Ensemble, x: Tensor, labels: Tensor, probability: float, randoms: Sequence[torch.Generator]) -> Tensor:
    """Return Σ_m of the networks' mean losses, if each network's minibatch is mixed with `probability`.

    x: (M, b, C, H, W). labels: (M, b), or (M, b, K) if they are soft. randoms: one generator per network.
    """
    count, height, width = x.shape[1], x.shape[3], x.shape[4]
    mixes = [CutMix.draw(count, height, width, probability, random) for random in randoms]
    mixed = torch.stack([own if mix is None else mix.mixed(own, own[mix.partners]) for mix, own in zip(mixes, x, strict=True)])
    losses = [
        F.cross_entropy(logits, own) if mix is None else mix.cross_entropies(logits, own, own[mix.partners]).mean()
        for mix, logits, own in zip(mixes, ensemble(mixed), labels, strict=True)
    ]
    return torch.stack(losses).sum()


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
