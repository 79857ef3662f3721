"""Train fresh networks and test them: one, or several of a kind at once.

M   networks, each with its own seed     n   images that each is trained on     b   images of a minibatch     K   classes
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
from cafe_core.spec.dataset import DatasetInfo
from cafe_core.spec.estimate import EVALUATION_BATCH
from cafe_core.spec.evaluation import Augmentation
from cafe_core.spec.network import NetworkSpec

# Both presets' (method.md, "Evaluation").
_LR = 0.01
_MOMENTUM = 0.9
_WEIGHT_DECAY = 5e-4

_TEST_CHUNK = {"cpu": 32, "cuda": 1024}
"""Images per forward pass. On CPUs more than about 32 only push the feature maps out of the cache."""


@dataclass(frozen=True)
class Recipe:
    """What all networks of a training have in common."""

    network: NetworkSpec
    epochs: int
    augment: Augmentation
    info: DatasetInfo
    """Of the real images: K, and whether a flip changes a class."""


def network_seed(seed: int, network_kind_index: int, repeat: int, *, validation: bool = False) -> int:
    """Seed of one evaluation network: the job's seed, its kind's place in the spec's list, its number within the kind.

    A validation's networks are others than the evaluation's: what was chosen because it suits some networks is then judged by
    networks that took no part in the choice.
    """
    return counter_seed(seed, "validation" if validation else "evaluation", network_kind_index, repeat)


def train(recipe: Recipe, images: Images, rows: Tensor, seeds: Sequence[int]) -> Ensemble:
    """The networks of `seeds`, network m trained on images `rows`[m]; rows: (M, n) int64 on the CPU.

    SGD with momentum on cross-entropy; the learning rate falls to a tenth after half the epochs. Everything is computed on
    the images' device and in their dtype. Each network is as if trained alone, up to rounding.

    Every draw is addressed by a network's seed, so on one kind of CPU and number of threads the same arguments give the same
    network, whatever else was trained before. A training that diverges is no error: its network scores what it then scores.
    """
    M, count = rows.shape
    networks = [init_network(recipe.network, images.shape, recipe.info.num_classes, _initial(seed)) for seed in seeds]
    ensemble = Ensemble(networks).to(images.normalisation.device, images.normalisation.dtype).train()
    optimizer = torch.optim.SGD(ensemble.parameters(), lr=_LR, momentum=_MOMENTUM, weight_decay=_WEIGHT_DECAY)
    # Half of an odd number of epochs is rounded up: a single epoch runs at the full rate.
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=(recipe.epochs + 1) // 2, gamma=0.1)
    first_draw = count * torch.arange(M)[:, None]
    for epoch in range(recipe.epochs):
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
        schedule.step()
    return ensemble


def _initial(seed: int) -> int:
    return counter_seed(seed, "evaluation network")


@torch.inference_mode()
def accuracies(ensemble: Ensemble, images: Images, rows: Tensor) -> list[float]:
    """Percent of the images `rows` (n,) that each network classifies as labelled: M numbers.

    Images are read, normalised and classified chunk by chunk. The networks are left in evaluation mode.
    Raises ValueError where there is no image.
    """
    if len(rows) == 0:
        raise ValueError("the dataset has no test images to measure an accuracy on")
    device = images.normalisation.device
    ensemble.eval()
    hits = torch.zeros(ensemble.size, dtype=torch.int64, device=device)  # read once, at the end: no waiting for the device before
    for chunk in torch.split(rows, max(1, _TEST_CHUNK.get(device.type, 256) // ensemble.size)):
        x = images.normalised(chunk)
        predicted = ensemble(x.expand(ensemble.size, *x.shape)).argmax(2)  # (M, b)
        hits += (predicted == images.labels(chunk)).sum(1)
    return [100 * count / len(rows) for count in hits.tolist()]
