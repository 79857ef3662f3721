from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from cafe_core.config import Augmentation, EvaluationSpec, NetworkSpec
from cafe_core.data.class_store import ClassStore, build_from_arrays
from cafe_core.evaluate import accuracy, network_seed, normalise, random_real, train_and_test
from cafe_core.networks import init_network

MLP = NetworkSpec(name="mlp", width=32)


def separable(count: int, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Three classes of 8×8 grey images: a bright column at 1, 3 or 5, in noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    images = rng.integers(0, 60, (count, 1, 8, 8), dtype=np.uint8)
    images[np.arange(count), 0, :, 1 + 2 * labels] += 150
    return images, labels


@pytest.fixture
def store(tmp_path: Path) -> ClassStore:
    images, labels = separable(90)
    few = np.concatenate([np.flatnonzero(labels == 0), np.flatnonzero(labels == 1), np.flatnonzero(labels == 2)[:2]])
    test_images, test_labels = separable(300, seed=1)
    return build_from_arrays(
        tmp_path / "store", images=images[few], labels=labels[few], test_images=test_images, test_labels=test_labels
    )


def taught(store: ClassStore, count: int) -> tuple[Tensor, Tensor]:
    """`count` fresh labelled images of all three classes, normalised as the store's."""
    images, labels = separable(count, seed=5)
    return normalise(images, store.info.mean, store.info.std, "cpu"), torch.from_numpy(labels)


def run(
    store: ClassStore,
    synthetic: tuple[Tensor, Tensor],
    *,
    epochs: int = 30,
    seed: int = 0,
    network: NetworkSpec = MLP,
    augment: Augmentation = "none",
) -> float:
    info = store.info
    evaluation = EvaluationSpec(epochs=epochs, augment=augment)
    test = (store.test_images, store.test_labels)
    return train_and_test(
        *synthetic, test, info.mean, info.std, network, evaluation, seed, "cpu", info.is_digits, info.num_classes
    )


def test_random_real_images_are_distinct_normalised_and_the_stores(store: ClassStore) -> None:
    images, labels = random_real(store, 5, seed=0)
    assert labels.tolist() == [0] * 5 + [1] * 5 + [2] * 2  # class 2 has two images
    levels = images * torch.tensor(store.info.std).view(-1, 1, 1) + torch.tensor(store.info.mean).view(-1, 1, 1)
    for image, label in zip((levels * 255).round().to(torch.uint8).numpy(), labels.tolist(), strict=True):
        assert any(np.array_equal(image, real) for real in store.images(label))
    assert len(np.unique(images.flatten(1).numpy(), axis=0)) == len(images)
    assert torch.equal(images, random_real(store, 5, seed=0)[0])
    assert not torch.equal(images, random_real(store, 5, seed=1)[0])


def test_a_network_learns_what_the_images_show(store: ClassStore) -> None:
    images, labels = taught(store, 60)
    assert run(store, (images, labels), epochs=60) > 95
    assert run(store, (images, (labels + 1) % 3), epochs=60) < 5  # taught the wrong classes, it answers the wrong classes
    assert run(store, (torch.zeros_like(images), labels)) < 70  # taught nothing, it answers by its random features


@pytest.mark.parametrize("augment", ["none", "dsa", "crop_scale_rotate"])
def test_the_same_seed_gives_the_same_number_whatever_else_runs(store: ClassStore, augment: Augmentation) -> None:
    synthetic = random_real(store, 2, seed=0)
    noisy = (synthetic[0] + 2 * torch.randn(synthetic[0].shape, generator=torch.Generator().manual_seed(0)), synthetic[1])
    accuracies = []
    for seed in (1, 2, 3, 1):
        torch.manual_seed(len(accuracies))
        accuracies.append(run(store, noisy, epochs=4, seed=seed, augment=augment))
    assert accuracies[0] == accuracies[3]
    assert len(set(accuracies)) > 1


@pytest.mark.parametrize("norm", ["none", "instance", "batch"])
def test_convnets_train_with_every_augmentation(store: ClassStore, norm: str) -> None:
    network = NetworkSpec(width=16, depth=2, norm=norm)  # type: ignore[arg-type]
    assert run(store, taught(store, 60), epochs=100, network=network, augment="dsa") > 60


def test_a_single_epoch_runs_at_the_full_rate_and_the_rate_falls_at_half(
    store: ClassStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    step = torch.optim.SGD.step

    def recorded(self: torch.optim.SGD) -> None:
        rates.append(self.param_groups[0]["lr"])
        step(self)

    monkeypatch.setattr(torch.optim.SGD, "step", recorded)
    for epochs, expected in ((1, [0.01]), (2, [0.01, 0.001]), (5, [0.01] * 3 + [0.001] * 2)):
        rates.clear()
        run(store, random_real(store, 2, seed=0), epochs=epochs)
        assert rates == pytest.approx(expected)


def test_a_set_larger_than_a_batch_is_seen_whole_each_epoch(store: ClassStore) -> None:
    images, labels = taught(store, 300)  # two batches: 256 and 44
    assert run(store, (images, labels), epochs=20) > 95


def test_a_diverged_network_still_gets_a_number(store: ClassStore) -> None:
    images, labels = random_real(store, 2, seed=0)
    diverged = run(store, (images * 1e30, labels), epochs=3)
    assert 0 <= diverged <= 100


def test_accuracy_counts_the_last_chunk_and_normalises(store: ClassStore) -> None:
    """100 images are chunks of 32, 32, 32 and 4; the counts are checked against one pass over all."""
    network = init_network(MLP, (1, 8, 8), 3, seed=0)
    images, labels = store.test_images[:100], store.test_labels[:100]
    mean, std = [0.3], [0.2]
    with torch.inference_mode():
        predicted = network((torch.tensor(np.array(images)) / 255 - 0.3) / 0.2).argmax(1).numpy()
    assert accuracy(network, images, labels, mean, std, "cpu") == 100 * (predicted == labels).mean()
    assert accuracy(network, images, predicted, mean, std, "cpu") == 100


def test_accuracy_uses_batch_norms_running_statistics(store: ClassStore) -> None:
    network = init_network(NetworkSpec(width=4, depth=1, norm="batch"), (1, 8, 8), 3, seed=0)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    args = (store.test_images, store.test_labels, store.info.mean, store.info.std, "cpu")
    assert accuracy(network, *args) == accuracy(network, *args)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_no_test_images_is_an_error(store: ClassStore) -> None:
    network = init_network(MLP, (1, 8, 8), 3, seed=0)
    with pytest.raises(ValueError, match="no test images"):
        accuracy(network, store.test_images[:0], store.test_labels[:0], [0.5], [0.5], "cpu")


def test_every_network_of_an_evaluation_has_its_own_seed() -> None:
    seeds = {network_seed(seed, kind, repeat) for seed in range(3) for kind in range(3) for repeat in range(20)}
    assert len(seeds) == 3 * 3 * 20
    assert all(0 <= seed < 2**64 for seed in seeds)
