"""What a synthetic set is worth: the accuracy, on real test images, of networks trained on nothing but it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cafe_core.augment import apply, draw
from cafe_core.config import CondenseSpec, EvaluationSpec, NetworkSpec
from cafe_core.data.class_store import ClassStore
from cafe_core.estimate import EVALUATION_BATCH
from cafe_core.job import EvaluationTask
from cafe_core.networks import FeatureNetwork, init_network
from cafe_core.sampling import choose, counter_seed, generator
from cafe_core.synthetic import SyntheticSet

# Both presets' (method.md, "Evaluation").
_LR = 0.01
_MOMENTUM = 0.9
_WEIGHT_DECAY = 5e-4

_TEST_CHUNK = {"cpu": 32, "cuda": 1024}
"""Images per forward pass. On CPUs more than about 32 only push the feature maps out of the cache."""


def run_task(task: EvaluationTask, spec: CondenseSpec, store: Path, synthetic: Path, device: torch.device) -> float:
    """One network of a job's evaluation: its accuracy in percent. spec: resolved, with an evaluation."""
    assert spec.evaluation is not None
    data = ClassStore.open(store)
    seed = network_seed(spec.seed, task.network, task.repeat)
    if task.source == "synthetic":
        condensed = SyntheticSet.load(synthetic)
        images, labels = torch.tensor(condensed.images), torch.tensor(condensed.labels)
    else:
        images, labels = random_real(data, spec.ipc, seed)
    return train_and_test(
        images,
        labels,
        (data.test_images, data.test_labels),
        data.info.mean,
        data.info.std,
        spec.evaluation.networks[task.network],
        spec.evaluation,
        seed,
        device,
        data.info.is_digits,
        data.info.num_classes,
    )


def network_seed(seed: int, network_kind_index: int, repeat: int) -> int:
    """Seed of one evaluation network: the job's seed, its kind's place in the spec's list, its number within the kind."""
    return counter_seed(seed, "evaluation", network_kind_index, repeat)


def train_and_test(
    synthetic_images: Tensor,
    labels: Tensor,
    test: tuple[NDArray[np.uint8], NDArray[np.int64]],
    mean: Sequence[float],
    std: Sequence[float],
    network: NetworkSpec,
    evaluation: EvaluationSpec,
    seed: int,
    device: torch.device | str,
    is_digits: bool,
    num_classes: int,
) -> float:
    """Train the network of `seed` on the synthetic set; its accuracy in percent on the test set after the *last* epoch.

    synthetic_images: (M, C, H, W) float, normalised by `mean` and `std`; labels: (M,) in 0..K-1;
    test: images (n, C, H, W) uint8, possibly memory-mapped, and labels (n,).

    Every draw is addressed by `seed`, so on one kind of CPU and number of threads the same arguments give the same number,
    whatever else was trained before. A training that diverges scores what its network then scores.
    """
    trained = _train(synthetic_images, labels, network, evaluation, seed, torch.device(device), is_digits, num_classes)
    return accuracy(trained, *test, mean, std, device)


def _train(
    images: Tensor,
    labels: Tensor,
    spec: NetworkSpec,
    evaluation: EvaluationSpec,
    seed: int,
    device: torch.device,
    is_digits: bool,
    num_classes: int,
) -> FeatureNetwork:
    """SGD with momentum on cross-entropy; the learning rate falls to a tenth after half the epochs."""
    count, channels, height, width = images.shape
    shape = (channels, height, width)
    network = init_network(spec, shape, num_classes, counter_seed(seed, "evaluation network")).to(device)
    images, labels = images.to(device, torch.float32), labels.to(device, torch.int64)
    optimizer = torch.optim.SGD(network.parameters(), lr=_LR, momentum=_MOMENTUM, weight_decay=_WEIGHT_DECAY)
    # Half of an odd number of epochs is rounded up: a single epoch runs at the full rate.
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=(evaluation.epochs + 1) // 2, gamma=0.1)
    network.train()
    for epoch in range(evaluation.epochs):
        order = torch.randperm(count, generator=generator(seed, "evaluation order", epoch)).to(device)
        epoch_images = images
        if evaluation.augment != "none":
            draws = draw(evaluation.augment, count, shape, is_digits, generator(seed, "evaluation augmentation", epoch))
            epoch_images = apply(images, draws)
        for batch in torch.split(order, EVALUATION_BATCH):
            loss = F.cross_entropy(network(epoch_images[batch]), labels[batch])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        schedule.step()
    return network


@torch.inference_mode()
def accuracy(
    network: FeatureNetwork,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str,
) -> float:
    """Percent of the test images that `network` (on `device`) classifies as labelled.

    images: (n, C, H, W) uint8, possibly memory-mapped: read, normalised and classified chunk by chunk; labels: (n,).
    The network is left in evaluation mode. Raises ValueError where there is no test image.
    """
    if len(images) == 0:
        raise ValueError("the dataset has no test images to measure an accuracy on")
    device = torch.device(device)
    network.eval()
    step = _TEST_CHUNK.get(device.type, 256)
    hits = torch.zeros((), dtype=torch.int64, device=device)  # read once, at the end: no waiting for the device before
    for start in range(0, len(images), step):
        x = normalise(np.array(images[start : start + step]), mean, std, device)
        y = torch.tensor(labels[start : start + step], device=device)
        hits += (network(x).argmax(1) == y).sum()
    return 100 * hits.item() / len(images)


def random_real(store: ClassStore, ipc: int, seed: int) -> tuple[Tensor, Tensor]:
    """The baseline: `ipc` random real images per class (all of a smaller class), normalised as the synthetic set is.

    Returns images (M, C, H, W) float32, ordered by class, and labels (M,) int64.
    """
    images, labels = [], []
    for k in range(store.info.num_classes):
        real = store.images(k)
        chosen = choose(generator(seed, "random real", k), len(real), ipc)
        images.append(normalise(real[chosen.numpy()], store.info.mean, store.info.std, "cpu"))
        labels.append(torch.full_like(chosen, k))
    return torch.cat(images), torch.cat(labels)


def normalise(images: NDArray[np.uint8], mean: Sequence[float], std: Sequence[float], device: torch.device | str) -> Tensor:
    """(n, C, H, W) uint8, writable → float32 on `device`: scaled to [0, 1], then to `mean` 0 and `std` 1 per channel."""
    x = torch.from_numpy(images).to(device).to(torch.float32) / 255
    per_channel = [torch.tensor(list(values), dtype=torch.float32, device=device).view(-1, 1, 1) for values in (mean, std)]
    return (x - per_channel[0]) / per_channel[1]
