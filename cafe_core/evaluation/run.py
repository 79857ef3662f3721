"""Run tasks of an evaluation: load images, train networks and test them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cafe_core.algorithm.gpu_memory import EVALUATION_ADVICE, explain_out_of_memory, free_memory
from cafe_core.algorithm.held_out import split
from cafe_core.algorithm.precision import arithmetic
from cafe_core.algorithm.sampling import choose, generator
from cafe_core.algorithm.step_clock import StepClock
from cafe_core.data.class_store import ClassStore
from cafe_core.errors import GpuOutOfMemoryError, SyntheticSetError
from cafe_core.evaluation.images import HeldImages, Images, Normalisation, StoredImages
from cafe_core.evaluation.tasks import EvaluationSetup, EvaluationTask, TrainingStep
from cafe_core.evaluation.training import SCHEDULES, Recipe, accuracies, network_seed, train
from cafe_core.spec.dataset import DatasetInfo
from cafe_core.spec.estimate import training_bytes
from cafe_core.spec.evaluation_sources import Source
from cafe_core.synthetic_set.synthetic_set import SyntheticSet

log = logging.getLogger(__name__)

_ENSEMBLE_BYTES = 2 << 30
"""Memory limit of an ensemble in training. A thousand 32×32 images in ConvNet-3 need this much and fill a GPU."""
_MEMORY_SHARE = 0.8
"""Fraction of a GPU's free memory that an ensemble may use, because its memory is only estimated."""


def train_networks(
    chunk: Sequence[EvaluationTask],
    setup: EvaluationSetup,
    device: torch.device,
    *,
    at_once: int | None = None,
    step_done: Callable[[TrainingStep], None] | None = None,
) -> Iterator[tuple[EvaluationTask, float]]:
    """Yield each task with its network's accuracy in percent, in order.

    chunk: tasks that differ only in `repeat` (:func:`cafe_core.evaluation.tasks.chunks`). At most `at_once` networks are
    trained at the same time; by default one on a CPU, where more would be slower, and as many as fill it on a GPU. On a CPU the
    accuracies do not depend on the chunk. If the GPU runs out of memory, half as many are trained at the same time. step_done is
    called every few seconds during a training.

    Raises DatasetError or SyntheticSetError for files that cannot be used, GpuOutOfMemoryError if one network is too large.
    """
    if not chunk:
        return
    task = chunk[0]
    assert all((t.source, t.network, t.augment) == (task.source, task.network, task.augment) for t in chunk), "unequal tasks"
    with explain_out_of_memory(EVALUATION_ADVICE):
        data = _Data(setup, device)
        images = data.count(task.source)
    recipe = Recipe(
        network=setup.spec.networks[task.network],
        epochs=setup.spec.whole_epochs if task.source == "whole" else setup.spec.epochs,
        augment=task.augment,
        info=data.store.info,
        batch=setup.spec.batch,
        decay=SCHEDULES[setup.spec.schedule],
        cutmix=setup.spec.cutmix,
    )
    size = at_once if at_once is not None else _at_once(device, recipe, images)
    waiting, clock = list(chunk), StepClock()

    def epoch_done(epoch: int) -> None:
        if step_done is not None and clock.is_due():
            step_done(TrainingStep(piece, epoch, recipe.epochs))

    while waiting:
        piece = waiting[:size]
        try:
            found = _accuracies(recipe, data, piece, epoch_done)
        except GpuOutOfMemoryError as error:  # memory is only estimated, and other programs may use the GPU
            if len(piece) == 1:
                raise
            size = len(piece) // 2
            log.warning("training at most %d networks at the same time: %s", size, error)
            found = None
        if found is None:
            free_memory()
            continue
        clock.postpone()
        yield from zip(piece, found, strict=True)
        waiting = waiting[len(piece) :]


@explain_out_of_memory(EVALUATION_ADVICE)
@arithmetic("tf32")  # as evaluations with torch do by default
def _accuracies(recipe: Recipe, data: _Data, piece: Sequence[EvaluationTask], epoch_done: Callable[[int], None]) -> list[float]:
    """Train the networks of `piece` together; return their accuracies in percent."""
    seeds = data.seeds(piece)
    trained = train(recipe, *data.training(piece[0].source, seeds), seeds, epoch_done)
    return accuracies(trained, *data.test())


def _at_once(device: torch.device, recipe: Recipe, count: int) -> int:
    """Return how many networks to train at the same time on `count` images each."""
    if device.type != "cuda":
        return 1
    free, _ = torch.cuda.mem_get_info(device)
    return ensemble_size(recipe, count, min(_ENSEMBLE_BYTES, int(_MEMORY_SHARE * free)))


def ensemble_size(recipe: Recipe, count: int, memory_bytes: int) -> int:
    """Return how many networks fit in `memory_bytes` with `count` images each; at least one."""
    return max(1, memory_bytes // training_bytes(recipe.network, recipe.info, min(recipe.batch, count)))


class _Data:
    """The images of an evaluation, addressed by their positions in the class store."""

    def __init__(self, setup: EvaluationSetup, device: torch.device) -> None:
        self.store = ClassStore.open(setup.store)
        info = self.store.info
        self._setup = setup
        self._normalisation = Normalisation(info.mean, info.std, device)
        labels = np.repeat(np.arange(info.num_classes), info.class_counts)
        self._train = StoredImages(self.store.train_images, labels, self._normalisation)
        self._kept = [torch.arange(count) for count in info.class_counts]  # positions within the class
        self._held: list[Tensor] | None = None
        if setup.held_out is not None:
            parts = [split(setup.held_out.seed, k, count, setup.held_out.fraction) for k, count in enumerate(info.class_counts)]
            self._kept, self._held = [kept for kept, _ in parts], [held for _, held in parts]

    def seeds(self, tasks: Sequence[EvaluationTask]) -> list[int]:
        """Return the seed of each task's network."""
        validation = self._setup.held_out is not None
        return [network_seed(self._setup.seed, task.network, task.repeat, validation=validation) for task in tasks]

    def test(self) -> tuple[Images, Tensor]:
        """Return the test images, and which rows of them to use."""
        if self._held is not None:
            return self._train, self._rows(self._held)
        test = StoredImages(self.store.test_images, self.store.test_labels, self._normalisation)
        return test, torch.arange(len(test))

    def count(self, source: Source) -> int:
        """Return the number of training images of a network."""
        match source:
            case "synthetic":
                return len(self._synthetic)
            case "random":
                return sum(min(self._ipc, len(kept)) for kept in self._kept)
            case "whole":
                return sum(len(kept) for kept in self._kept)

    def training(self, source: Source, seeds: Sequence[int]) -> tuple[Images, Tensor]:
        """Return the training images for the networks of `seeds`, and the rows of each network, (M, n)."""
        match source:
            case "synthetic":
                return self._synthetic, torch.arange(len(self._synthetic)).expand(len(seeds), -1)
            case "random":
                rows = torch.cat([self._random(seed) for seed in seeds])
                held = HeldImages(self._train.normalised(rows), self._train.labels(rows), self._normalisation)
                return held, torch.arange(len(rows)).view(len(seeds), -1)
            case "whole":
                return self._train, self._rows(self._kept).expand(len(seeds), -1)

    def _random(self, seed: int) -> Tensor:
        """Choose `ipc` random real images per class (all of a smaller class) for the baseline."""
        chosen = [choose(generator(seed, "random real", k), len(kept), self._ipc) for k, kept in enumerate(self._kept)]
        return self._rows([kept[positions] for kept, positions in zip(self._kept, chosen, strict=True)])

    def _rows(self, positions: Sequence[Tensor]) -> Tensor:
        """Convert positions within each class to rows of all training images, which are ordered by class."""
        first = np.cumsum([0, *self.store.info.class_counts]).tolist()
        return torch.cat([first[k] + of_class for k, of_class in enumerate(positions)])

    @property
    def _ipc(self) -> int:
        assert self._setup.ipc is not None, "the random source needs ipc"
        return self._setup.ipc

    @cached_property
    def _synthetic(self) -> HeldImages:
        assert self._setup.synthetic is not None, "the synthetic source needs a file"
        return _load(self._setup.synthetic, self.store.info, self._normalisation)


def _load(path: Path, info: DatasetInfo, normalisation: Normalisation) -> HeldImages:
    """Load the evaluated set and normalise it like the test images. Raises SyntheticSetError if it does not match the data."""
    judged = SyntheticSet.load(path).decoded()
    if judged.images.shape[1:] != info.shape or set(judged.class_names) != set(info.class_names):
        raise SyntheticSetError(
            f"{path.name} has {len(judged.class_names)} classes of images {judged.images.shape[1:]}; "
            f"{info.name} has {info.num_classes} of {info.shape}, or classes with other names"
        )
    images, labels = judged.images, _labels_of(judged, info.class_names)
    mean, std = (np.array(values, dtype=np.float32) for values in (info.mean, info.std))
    if not (np.array_equal(judged.mean, mean) and np.array_equal(judged.std, std)):
        per_channel = (slice(None), None, None)
        images = (images * judged.std[per_channel] + judged.mean[per_channel] - mean[per_channel]) / std[per_channel]
    return HeldImages(torch.from_numpy(images), torch.from_numpy(labels), normalisation)


def _labels_of(judged: SyntheticSet, class_names: list[str]) -> NDArray[Any]:
    """Return the set's labels with classes numbered as in `class_names`: the set and the dataset may order them differently."""
    if judged.labels.ndim == 2:  # soft: a column per class
        columns = {name: column for column, name in enumerate(judged.class_names)}
        return np.ascontiguousarray(judged.labels[:, [columns[name] for name in class_names]])
    numbers = {name: k for k, name in enumerate(class_names)}
    return np.array([numbers[name] for name in judged.class_names], dtype=np.int64)[judged.labels]
