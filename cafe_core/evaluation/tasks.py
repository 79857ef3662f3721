"""Divide an evaluation into tasks, one per network, and into chunks that are trained together.

This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from cafe_core.spec.evaluation import Augmentation, EvaluationSpec
from cafe_core.spec.evaluation_sources import Source, all_sources


@dataclass(frozen=True)
class EvaluationTask:
    """One new network to train and test."""

    source: Source
    network: int
    """Position in the spec's networks."""
    augment: Augmentation
    repeat: int


@dataclass(frozen=True)
class TrainingStep:
    """How far the training of the networks of some tasks is. They are trained together."""

    tasks: Sequence[EvaluationTask]
    epoch: int
    """Epochs that are done."""
    epochs: int


@dataclass(frozen=True)
class HeldOut:
    """The part of the real *training* images that is held out for validation and never seen by the method."""

    seed: int
    fraction: float
    """Fraction of every class; at least one image."""


@dataclass(frozen=True)
class EvaluationSetup:
    """The settings that all networks of an evaluation share. Pickled to workers."""

    spec: EvaluationSpec
    """Resolved."""
    seed: int
    """The job's."""
    store: Path
    """The class store of the real images."""
    synthetic: Path | None
    """The evaluated set, a .safetensors file; None if only real images are evaluated."""
    ipc: int | None
    """Images per class of the `random` source; None without one."""
    held_out: HeldOut | None = None
    """Test on these training images instead of on the test set."""
    threads: int = 1
    """CPU threads per training."""


def all_tasks(spec: EvaluationSpec, judged: Source = "synthetic") -> list[EvaluationTask]:
    """Return every network of an evaluation, starting with one of each kind, so that early results cover all kinds."""
    return [
        EvaluationTask(source, network, augment, repeat)
        for repeat in range(spec.repeats)
        for source in all_sources(spec, judged)
        for augment in spec.augmentations
        for network in range(len(spec.networks))
    ]


def chunks(tasks: Sequence[EvaluationTask], size: int) -> list[list[EvaluationTask]]:
    """Split tasks into chunks of at most `size` that differ only in `repeat`, so that each can be trained as one ensemble."""

    def kind(task: EvaluationTask) -> tuple[str, int, str]:
        return task.source, task.network, task.augment

    equal: Iterable[list[EvaluationTask]] = (list(group) for _, group in groupby(sorted(tasks, key=kind), key=kind))
    return [group[start : start + size] for group in equal for start in range(0, len(group), size)]
