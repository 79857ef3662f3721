"""Measure the cost per epoch of an evaluation's augmentations, beside an epoch of training: 32×32 colour images, one thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import get_args

import torch

from cafe_core.evaluation.augmentation import augmented_epoch
from cafe_core.evaluation.images import HeldImages, Normalisation
from cafe_core.evaluation.training import Recipe, train
from cafe_core.spec.evaluation import Augmentation
from cafe_core.spec.network import NetworkSpec
from tests.benchmarks.ensemble import INFO
from tests.benchmarks.figures import Figure

CPU = torch.device("cpu")


def _milliseconds(work: Callable[[int], object], repeats: int) -> float:
    """Return the median time of an epoch after a warm-up epoch."""
    times = []
    for epoch in range(repeats + 1):
        started = time.perf_counter()
        work(epoch)
        times.append(time.perf_counter() - started)
    return 1000 * median(times[1:])


def measure() -> Iterator[Figure]:
    """Measure the milliseconds per epoch of 10 and of 100 images."""
    torch.set_num_threads(1)
    for count in (10, 100):
        images = torch.randn(count, *INFO.shape, generator=torch.Generator().manual_seed(0))
        pool = HeldImages(images, torch.arange(count) % 10, Normalisation(INFO.mean, INFO.std, CPU))
        rows = torch.arange(count)
        for augment in get_args(Augmentation):
            taken = _milliseconds(lambda epoch: augmented_epoch(augment, pool, [0], epoch, count, False)(rows, rows), 30)  # noqa: B023
            yield Figure(f"{augment}: {count} images, an epoch", taken, "ms")
        recipe = Recipe(NetworkSpec().resolved(), 1, "none", INFO)
        taken = _milliseconds(lambda epoch: train(recipe, pool, rows[None], [epoch]), 3)  # noqa: B023
        yield Figure(f"training ConvNet-3: {count} images, an epoch", taken, "ms")
