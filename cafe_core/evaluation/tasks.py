"""What an evaluation consists of: one task per network to train, cut into chunks that are trained together. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from cafe_core.spec.evaluation import Augmentation, EvaluationSpec
from cafe_core.spec.evaluation_sources import Source, all_sources


@dataclass(frozen=True)
class EvaluationTask:
    """Train one fresh network and test it."""

    source: Source
    network: int
    """Position in the spec's networks."""
    augment: Augmentation
    repeat: int


@dataclass(frozen=True)
class HeldOut:
    """The part of the real *training* images that a validation tests on, and that the method never sees."""

    seed: int
    fraction: float
    """Of every class, at least one image."""


@dataclass(frozen=True)
class EvaluationSetup:
    """What all networks of an evaluation share. Pickled to workers."""

    spec: EvaluationSpec
    """Resolved."""
    seed: int
    """The job's."""
    store: Path
    """The class store of the real images."""
    synthetic: Path | None
    """The set that is judged, a .safetensors file; None where only real images are."""
    ipc: int | None
    """Images per class of the `random` source; None where there is none."""
    held_out: HeldOut | None = None
    """Test on these training images instead of on the test set."""
    threads: int = 1
    """CPU threads of one training."""


def all_tasks(spec: EvaluationSpec, judged: Source = "synthetic") -> list[EvaluationTask]:
    """Every network of an evaluation: first one of each kind, so that early results cover all of it."""
    return [
        EvaluationTask(source, network, augment, repeat)
        for repeat in range(spec.repeats)
        for source in all_sources(spec, judged)
        for augment in spec.augmentations
        for network in range(len(spec.networks))
    ]


def chunks(tasks: Sequence[EvaluationTask], size: int) -> list[list[EvaluationTask]]:
    """`tasks` in chunks of at most `size` that differ in `repeat` alone, so that they can be trained as one batched ensemble."""

    def kind(task: EvaluationTask) -> tuple[str, int, str]:
        return task.source, task.network, task.augment

    equal: Iterable[list[EvaluationTask]] = (list(group) for _, group in groupby(sorted(tasks, key=kind), key=kind))
    return [group[start : start + size] for group in equal for start in range(0, len(group), size)]
