"""Make images that a network learns within seconds, and train networks on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cafe_core.data.class_store import ClassStore, build_from_arrays
from cafe_core.evaluation.images import HeldImages, Images, Normalisation, StoredImages
from cafe_core.evaluation.training import Recipe, accuracies, train
from cafe_core.spec.evaluation import Augmentation
from cafe_core.spec.network import NetworkSpec

CPU = torch.device("cpu")
MLP = NetworkSpec(name="mlp", width=32)


def separable(count: int, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return 8×8 grey images of three classes, with a bright column at 1, 3 or 5 in noise, and their labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    images = rng.integers(0, 60, (count, 1, 8, 8), dtype=np.uint8)
    images[np.arange(count), 0, :, 1 + 2 * labels] += 150
    return images, labels


def separable_store(path: Path) -> ClassStore:
    """Build a store of about 30 images each of classes 0 and 1, two of class 2, and 300 test images."""
    images, labels = separable(90)
    few = np.concatenate([np.flatnonzero(labels == 0), np.flatnonzero(labels == 1), np.flatnonzero(labels == 2)[:2]])
    test_images, test_labels = separable(300, seed=1)
    return build_from_arrays(path, images=images[few], labels=labels[few], test_images=test_images, test_labels=test_labels)


def normalisation(store: ClassStore, dtype: torch.dtype = torch.float32) -> Normalisation:
    return Normalisation(store.info.mean, store.info.std, CPU, dtype)


def learnable_images(
    store: ClassStore, count: int, seed: int = 5, *, shift: int = 0, noise: float = 0, scale: float = 1
) -> HeldImages:
    """Return `count` new images of all three classes, normalised like the store. `shift` is added to the labels."""
    images, labels = separable(count, seed)
    normalised = normalisation(store).floats(torch.from_numpy(images)) * scale
    normalised += noise * torch.randn(normalised.shape, generator=torch.Generator().manual_seed(seed))
    return HeldImages(normalised, torch.from_numpy((labels + shift) % 3), normalisation(store))


def stored_test_set(store: ClassStore) -> StoredImages:
    """Return the test images of the store."""
    return StoredImages(store.test_images, store.test_labels, normalisation(store))


def train_and_test(
    store: ClassStore,
    images: Images,
    *,
    epochs: int = 30,
    seed: int = 0,
    network: NetworkSpec = MLP,
    augment: Augmentation = "none",
) -> float:
    """Train a network on all of `images`. Return its accuracy in percent on the test set after the last epoch."""
    recipe, test = Recipe(network.resolved(), epochs, augment, store.info), stored_test_set(store)
    return accuracies(train(recipe, images, torch.arange(len(images))[None], [seed]), test, torch.arange(len(test)))[0]
