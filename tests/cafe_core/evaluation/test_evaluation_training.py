from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cafe_core.algorithm.cutmix import CutMix
from cafe_core.algorithm.sampling import counter_seed, generator
from cafe_core.data.class_store import ClassStore
from cafe_core.evaluation.ensemble import Ensemble
from cafe_core.evaluation.images import HeldImages, Normalisation, StoredImages
from cafe_core.evaluation.training import Recipe, accuracies, network_seed, train
from cafe_core.networks import init_network
from cafe_core.networks.sgd import FIFTHS_AT_THE_END, Sgd
from cafe_core.spec.evaluation import Augmentation
from cafe_core.spec.network import NetworkSpec
from tests.cafe_core.separable import CPU, MLP, learnable_images, normalisation, separable_store, stored_test_set, train_and_test

AUGMENTATIONS: list[Augmentation] = ["none", "dsa", "crop_scale_rotate", "autoaugment", "randaugment", "crop_flip_cutout"]


@pytest.fixture
def store(tmp_path: Path) -> ClassStore:
    return separable_store(tmp_path / "store")


def test_network_learns_from_its_images(store: ClassStore) -> None:
    assert train_and_test(store, learnable_images(store, 60), epochs=60) > 95
    assert train_and_test(store, learnable_images(store, 60, shift=1), epochs=60) < 5  # wrong labels
    assert train_and_test(store, learnable_images(store, 60, scale=0)) < 70  # empty images: random features only


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_accuracy_depends_on_the_seed_and_not_on_the_global_generator(store: ClassStore, augment: Augmentation) -> None:
    noisy = learnable_images(store, 6, noise=2)
    found: list[float] = []
    for seed in (1, 2, 3, 1):
        torch.manual_seed(len(found))
        found.append(train_and_test(store, noisy, epochs=4, seed=seed, augment=augment))
    assert found[0] == found[3]
    assert len(set(found)) > 1


@pytest.mark.parametrize("norm", ["none", "instance", "batch"])
def test_convnets_train_with_augmentation(store: ClassStore, norm: str) -> None:
    network = NetworkSpec(width=16, depth=2, norm=norm)  # type: ignore[arg-type]
    assert train_and_test(store, learnable_images(store, 60), epochs=100, network=network, augment="dsa") > 60


def test_learning_rate_falls_after_half_of_the_epochs(store: ClassStore, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    step = Sgd.step

    def recorded(self: Sgd) -> None:
        rates.append(self.lr)
        step(self)

    monkeypatch.setattr(Sgd, "step", recorded)
    for epochs, expected in ((1, [0.01]), (2, [0.01, 0.001]), (5, [0.01] * 3 + [0.001] * 2)):
        rates.clear()
        train_and_test(store, learnable_images(store, 6), epochs=epochs)
        assert rates == pytest.approx(expected)


def test_every_image_is_trained_on_once_in_each_epoch(store: ClassStore, monkeypatch: pytest.MonkeyPatch) -> None:
    images, seen = learnable_images(store, 300), []
    labels = HeldImages.labels

    def recorded(self: HeldImages, rows: torch.Tensor) -> torch.Tensor:
        if self is images:
            seen.append(rows)
        return labels(self, rows)

    monkeypatch.setattr(HeldImages, "labels", recorded)
    train_and_test(store, images, epochs=2)
    assert [len(rows) for rows in seen] == [256, 44] * 2
    for epoch in (seen[:2], seen[2:]):
        assert torch.cat(epoch).sort().values.tolist() == list(range(300))


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_stored_and_held_images_give_the_same_accuracy(store: ClassStore, augment: Augmentation) -> None:
    """Normalising batch by batch gives the same accuracy as normalising all images in advance, with two batches per epoch."""
    stored = stored_test_set(store)  # 300 images
    rows = torch.arange(len(stored))
    held = HeldImages(stored.normalised(rows), stored.labels(rows), stored.normalisation)
    assert torch.equal(held.levels(rows), stored.levels(rows))
    assert train_and_test(store, stored, epochs=2, augment=augment) == train_and_test(store, held, epochs=2, augment=augment)


def test_diverged_network_has_an_accuracy(store: ClassStore) -> None:
    assert 0 <= train_and_test(store, learnable_images(store, 6, scale=1e30), epochs=3) <= 100


def test_accuracy_normalises_images_and_includes_the_last_chunk(store: ClassStore) -> None:
    """100 images form chunks of 32, 32, 32 and 4; compare with one pass over all of them."""
    network = init_network(MLP, (1, 8, 8), 3, seed=0)
    levels, labels = store.test_images[:100], store.test_labels[:100]
    with torch.inference_mode():
        predicted = network((torch.tensor(np.array(levels)) / 255 - 0.3) / 0.2).argmax(1).numpy()

    def measured(labels: np.ndarray, rows: torch.Tensor) -> float:
        images = StoredImages(levels, labels, Normalisation([0.3], [0.2], CPU))
        return accuracies(Ensemble([network]), images, rows)[0]

    rows = torch.arange(100)
    assert measured(labels, rows) == 100 * (predicted == labels).mean()
    assert measured(predicted, rows) == 100
    assert measured(labels, rows[10:50]) == 100 * (predicted == labels)[10:50].mean()


def test_accuracy_does_not_change_running_statistics(store: ClassStore) -> None:
    ensemble = Ensemble([init_network(NetworkSpec(width=4, depth=1, norm="batch"), (1, 8, 8), 3, seed=0)])
    before = {name: value.clone() for name, value in ensemble.state_dict().items()}
    images, rows = stored_test_set(store), torch.arange(300)
    assert accuracies(ensemble, images, rows) == accuracies(ensemble, images, rows)
    assert all(torch.equal(value, before[name]) for name, value in ensemble.state_dict().items())


def test_accuracy_without_test_images_is_refused(store: ClassStore) -> None:
    ensemble = Ensemble([init_network(MLP, (1, 8, 8), 3, seed=0)])
    with pytest.raises(ValueError, match="no test images"):
        accuracies(ensemble, stored_test_set(store), torch.arange(0))


def test_levels_are_denormalised_clipped_and_rounded(store: ClassStore) -> None:
    normaliser = normalisation(store)
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(normaliser.levels(normaliser.floats(levels)), levels)
    assert normaliser.levels(torch.tensor([[[[-50.0, 50.0]]]])).flatten().tolist() == [0, 255]


def test_every_network_of_an_evaluation_has_its_own_seed() -> None:
    seeds = {network_seed(seed, kind, repeat) for seed in range(3) for kind in range(3) for repeat in range(20)}
    assert len(seeds) == 3 * 3 * 20
    assert all(0 <= seed < 2**64 for seed in seeds)


def with_soft_labels(images: HeldImages, labels: torch.Tensor) -> HeldImages:
    """Return the same images with labels (R, K)."""
    return HeldImages(images.normalised(torch.arange(len(images))), labels, images.normalisation)


def test_soft_labels_of_one_class_train_as_hard_labels_do(store: ClassStore) -> None:
    hard = learnable_images(store, 60)
    soft = with_soft_labels(hard, F.one_hot(hard.labels(torch.arange(60))).double())
    assert soft.labels(torch.arange(2)).dtype == torch.float32
    assert train_and_test(store, soft, epochs=20) == train_and_test(store, hard, epochs=20)
    wrong = with_soft_labels(hard, soft.labels(torch.arange(60)).roll(1, dims=1))
    assert train_and_test(store, wrong, epochs=60) < 5


@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_mixed_training_matches_a_plain_torch_loop_for_one_network_and_for_several(store: ClassStore, labels: str) -> None:
    """Train by the fields of the protocol `dance`, without augmentation."""
    images, seeds = learnable_images(store, 30, noise=1), [5, 6]
    if labels == "soft":
        images = with_soft_labels(images, torch.rand(30, 3, generator=torch.Generator().manual_seed(0)).softmax(1))
    rows = torch.arange(30).expand(2, -1)
    recipe = Recipe(MLP, epochs=6, augment="none", info=store.info, batch=8, decay=FIFTHS_AT_THE_END, cutmix=0.6)
    together = train(recipe, images, rows, seeds)
    mixed = 0
    for m, seed in enumerate(seeds):
        network = init_network(MLP, (1, 8, 8), 3, counter_seed(seed, "evaluation network"))
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        for epoch, rate in enumerate([0.01, 0.01, 0.01, 0.01, 0.002, 0.0004]):
            optimizer.param_groups[0]["lr"] = rate
            order = torch.randperm(30, generator=generator(seed, "evaluation order", epoch))
            for index, batch in enumerate(torch.split(order, 8)):
                x, y = images.normalised(batch).clone(), images.labels(batch)
                mix = CutMix.draw(len(batch), 8, 8, 0.6, generator(seed, "evaluation mix", epoch, index))
                if mix is None:
                    loss = F.cross_entropy(network(x), y)
                else:
                    mixed += 1
                    box = (..., slice(mix.top, mix.bottom), slice(mix.left, mix.right))
                    x[box] = x[mix.partners][box]
                    logits = network(x)
                    loss = mix.kept * F.cross_entropy(logits, y) + (1 - mix.kept) * F.cross_entropy(logits, y[mix.partners])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        (alone,) = [train(recipe, images, rows[:1], [seed]).grouped]
        for trained, expected in zip(alone.parameters(), network.parameters(), strict=True):
            torch.testing.assert_close(trained, expected, rtol=0, atol=1e-6)
        with torch.inference_mode():
            x = images.normalised(torch.arange(30))
            torch.testing.assert_close(together(x.expand(2, *x.shape))[m], network(x), rtol=0, atol=1e-4)
    assert 5 < mixed < 40
