from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cafe_core.algorithm import step_clock
from cafe_core.algorithm.held_out import split
from cafe_core.data.class_store import ClassStore
from cafe_core.errors import GpuOutOfMemoryError, SyntheticSetError
from cafe_core.evaluation import run, training
from cafe_core.evaluation.images import Images, StoredImages
from cafe_core.evaluation.run import ensemble_size, train_networks
from cafe_core.evaluation.tasks import EvaluationSetup, EvaluationTask, HeldOut, TrainingStep, all_tasks, chunks
from cafe_core.evaluation.training import Recipe, network_seed
from cafe_core.spec.evaluation import EvaluationSpec
from cafe_core.spec.evaluation_sources import Source
from cafe_core.spec.network import NetworkSpec
from cafe_core.synthetic_set.synthetic_set import SyntheticSet, versions
from tests.cafe_core.separable import CPU, MLP, separable, separable_store

NETWORKS = [MLP.resolved(), NetworkSpec(width=8, depth=1).resolved()]


@pytest.fixture
def store(tmp_path: Path) -> ClassStore:
    return separable_store(tmp_path / "store")


def save_set(path: Path, store: ClassStore, ipc: int = 4, **fields: Any) -> Path:
    """Save a set of new images of the three classes, normalised with `mean` and `std` (default: those of the store)."""
    mean, std = (np.array(fields.pop(name, getattr(store.info, name)), dtype=np.float32) for name in ("mean", "std"))
    images, labels = separable(300, seed=9)
    chosen = np.concatenate([np.flatnonzero(labels == k)[:ipc] for k in range(3)])
    parts: dict[str, Any] = {
        "images": ((images[chosen] / np.float32(255) - mean[:, None, None]) / std[:, None, None]).astype(np.float32),
        "labels": np.repeat(np.arange(3), ipc),
        "class_names": store.info.class_names,
        **fields,
    }
    SyntheticSet(
        mean=mean, std=std, dataset={"name": "made", "is_digits": False}, spec={}, iteration=0, versions=versions(), **parts
    ).save(path)
    return path


def setup(store: ClassStore, synthetic: Path | None = None, held_out: HeldOut | None = None, **fields: Any) -> EvaluationSetup:
    spec = EvaluationSpec(**{"networks": NETWORKS, "repeats": 3, "epochs": 20, "whole_epochs": 10, **fields})
    return EvaluationSetup(spec, seed=1, store=store.path, synthetic=synthetic, ipc=4, held_out=held_out)


def measured(setup: EvaluationSetup, size: int = 5, at_once: int | None = None) -> dict[EvaluationTask, float]:
    return {
        task: accuracy
        for chunk in chunks(all_tasks(setup.spec), size)
        for task, accuracy in train_networks(chunk, setup, CPU, at_once=at_once)
    }


class Spy:
    """Records the arguments of trainings and tests, which run as usual."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.recipes: list[Recipe] = []
        self.seeds: list[list[int]] = []
        self.trained_on: list[torch.Tensor] = []
        """The images (M, n, C, H, W) of each training."""
        self.tested_on: list[tuple[Images, torch.Tensor]] = []
        train, accuracies = training.train, training.accuracies

        def recorded_train(recipe: Recipe, images: Images, rows: torch.Tensor, seeds: list[int], epoch_done: Any) -> Any:
            self.recipes.append(recipe)
            self.seeds.append(seeds)
            self.trained_on.append(torch.stack([images.normalised(own) for own in rows]))
            return train(recipe, images, rows, seeds, epoch_done)

        def recorded_accuracies(ensemble: Any, images: Images, rows: torch.Tensor) -> list[float]:
            self.tested_on.append((images, rows))
            return accuracies(ensemble, images, rows)

        monkeypatch.setattr(run, "train", recorded_train)
        monkeypatch.setattr(run, "accuracies", recorded_accuracies)


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    return Spy(monkeypatch)


def pixels(store: ClassStore, normalised: torch.Tensor) -> np.ndarray:
    """Return the images as uint8 (n, C·H·W)."""
    levels = normalised * torch.tensor(store.info.std).view(-1, 1, 1) + torch.tensor(store.info.mean).view(-1, 1, 1)
    return (levels * 255).round().to(torch.uint8).flatten(1).numpy()


def test_accuracies_do_not_depend_on_chunks_and_little_on_ensembles(store: ClassStore, tmp_path: Path) -> None:
    judged = save_set(tmp_path / "set.safetensors", store)
    evaluation = setup(store, judged, augment=["none", "dsa"], baselines=["random", "whole"])
    expected = measured(evaluation)
    assert len(expected) == 3 * 3 * 2 * 2
    assert measured(evaluation, size=1) == expected
    together = measured(evaluation, at_once=2)
    assert max(abs(together[task] - expected[task]) for task in expected) < 1  # percentage point, by rounding
    assert min(accuracy for task, accuracy in expected.items() if task.source == "synthetic" and task.augment == "none") > 50


@pytest.mark.parametrize("source", ["synthetic", "random", "whole"])
def test_seed_of_a_network_does_not_depend_on_its_training_images(
    source: Source, store: ClassStore, tmp_path: Path, spy: Spy
) -> None:
    evaluation = setup(store, save_set(tmp_path / "set.safetensors", store), epochs=2, whole_epochs=3)
    tasks = [EvaluationTask(source, 1, "dsa", repeat) for repeat in (2, 0)]
    assert [task for task, _ in train_networks(tasks, evaluation, CPU)] == tasks
    assert spy.seeds == [[network_seed(1, 1, 2)], [network_seed(1, 1, 0)]]
    assert [recipe.network for recipe in spy.recipes] == [NETWORKS[1]] * 2
    assert {recipe.epochs for recipe in spy.recipes} == {3 if source == "whole" else 2}


def test_each_network_draws_its_own_distinct_real_images(store: ClassStore, spy: Spy) -> None:
    tasks = [EvaluationTask("random", 0, "none", repeat) for repeat in range(2)]
    list(train_networks(tasks, setup(store, epochs=1), CPU, at_once=2))
    (first, second) = spy.trained_on[0]
    expected = [4, 4, 2]  # class 2 has two images
    for images in (first, second):
        found = pixels(store, images)
        assert len(np.unique(found, axis=0)) == sum(expected)
        for k, of_class in enumerate(np.split(found, np.cumsum(expected)[:-1])):
            real = {image.tobytes() for image in store.images(k)}
            assert all(image.tobytes() in real for image in of_class)
    assert not torch.equal(first, second)
    list(train_networks(tasks[1:], setup(store, epochs=1), CPU))
    assert torch.equal(spy.trained_on[1][0], second)


def test_whole_trains_on_all_real_images_and_tests_on_the_test_set(store: ClassStore, spy: Spy) -> None:
    list(train_networks([EvaluationTask("whole", 0, "none", 0)], setup(store), CPU))
    assert np.array_equal(pixels(store, spy.trained_on[0][0]), store.train_images.reshape(len(store.train_images), -1))
    tested, rows = spy.tested_on[0]
    assert isinstance(tested, StoredImages)
    assert tested.pixels is not store.train_images
    assert np.array_equal(tested.pixels[rows.numpy()], store.test_images)
    assert np.array_equal(tested.labels(rows).numpy(), store.test_labels)


@pytest.mark.parametrize("source", ["random", "whole"])
def test_held_out_images_are_used_only_for_testing(source: Source, store: ClassStore, spy: Spy) -> None:
    held_out = HeldOut(seed=8, fraction=0.3)
    list(train_networks([EvaluationTask(source, 0, "none", 0)], setup(store, held_out=held_out), CPU))
    tested, rows = spy.tested_on[0]
    classes = tested.labels(rows)
    held_images = pixels(store, tested.normalised(rows))
    kept_images = pixels(store, spy.trained_on[0][0])
    total = 0
    for k, count in enumerate(store.info.class_counts):
        kept, held = split(8, k, count, 0.3)
        assert np.array_equal(held_images[classes.numpy() == k], store.images(k)[held.numpy()].reshape(len(held), -1))
        total += len(kept) if source == "whole" else min(4, len(kept))
    assert len(kept_images) == total
    assert not {image.tobytes() for image in kept_images} & {image.tobytes() for image in held_images}


def test_set_with_another_normalisation_is_converted(store: ClassStore, tmp_path: Path, spy: Spy) -> None:
    task = EvaluationTask("synthetic", 0, "none", 0)
    same = save_set(tmp_path / "same.safetensors", store)
    other = save_set(tmp_path / "other.safetensors", store, mean=[0.1], std=[0.7])
    accuracies = [dict(train_networks([task], setup(store, path), CPU))[task] for path in (same, other)]
    torch.testing.assert_close(spy.trained_on[1], spy.trained_on[0], rtol=0, atol=1e-5)
    assert accuracies[0] == pytest.approx(accuracies[1], abs=1)
    assert np.array_equal(spy.trained_on[0][0].numpy(), SyntheticSet.load(same).images)  # not converted if equal


@pytest.mark.parametrize(
    "fields",
    [
        {"images": np.zeros((12, 1, 9, 9), dtype=np.float32)},
        {"class_names": ["a", "b"], "labels": np.repeat(np.arange(2), 4), "images": np.zeros((8, 1, 8, 8), dtype=np.float32)},
    ],
)
def test_set_that_does_not_fit_the_dataset_is_refused(fields: dict[str, Any], store: ClassStore, tmp_path: Path) -> None:
    path = save_set(tmp_path / "set.safetensors", store, **fields)
    with pytest.raises(SyntheticSetError, match=r"set.safetensors has .* has 3 of \(1, 8, 8\)"):
        list(train_networks([EvaluationTask("synthetic", 0, "none", 0)], setup(store, path), CPU))


def test_no_tasks_give_no_accuracies(store: ClassStore) -> None:
    assert list(train_networks([], setup(store), CPU)) == []


def test_ensemble_size_is_limited_by_memory(store: ClassStore) -> None:
    recipe = Recipe(NetworkSpec().resolved(), 1, "none", store.info.model_copy(update={"channels": 3, "height": 32, "width": 32}))
    assert ensemble_size(recipe, 10, 0) == 1
    assert ensemble_size(recipe, 10, 2 << 30) >= 20
    assert 1 < ensemble_size(recipe, 256, 2 << 30) < 10
    assert ensemble_size(recipe, 10_000, 2 << 30) == ensemble_size(recipe, 256, 2 << 30)


def test_full_gpu_trains_fewer_networks_at_the_same_time(store: ClassStore, monkeypatch: pytest.MonkeyPatch) -> None:
    made = setup(store, save_set(store.path.parent / "set.safetensors", store), repeats=7, epochs=3, whole_epochs=3)
    expected = measured(made, size=7)
    sizes: list[int] = []
    original = run.train

    def train(recipe: Recipe, images: Images, rows: Any, seeds: Any, epoch_done: Any) -> Any:
        sizes.append(len(seeds))
        if len(seeds) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return original(recipe, images, rows, seeds, epoch_done)

    monkeypatch.setattr(run, "train", train)
    assert measured(made, size=7, at_once=7) == expected
    assert sizes[:5] == [7, 3, 1, 1, 1]


def test_steps_of_long_trainings_are_reported(store: ClassStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_clock, "FIRST_STEP_S", 0.0)
    monkeypatch.setattr(step_clock, "STEP_EVERY_S", 0.0)
    tasks = [EvaluationTask("random", 0, "none", repeat) for repeat in range(3)]
    steps: list[TrainingStep] = []
    list(train_networks(tasks, setup(store, epochs=2), CPU, at_once=2, step_done=steps.append))
    assert steps == [TrainingStep(piece, epoch, 2) for piece in (tasks[:2], tasks[2:]) for epoch in (1, 2)]


@pytest.mark.parametrize("where", ["train", "_load"])
def test_one_network_that_is_too_large_ends_the_evaluation(
    store: ClassStore, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    made = setup(store, save_set(store.path.parent / "set.safetensors", store))

    def fail(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(run, where, fail)
    with pytest.raises(GpuOutOfMemoryError, match="Use a smaller network or batch"):
        measured(made)
