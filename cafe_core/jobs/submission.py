"""Turn a submitted spec into a job that can run; reject every spec that can be rejected without a worker.

:func:`accept` is a pure function of the spec and of :class:`Facts`. The caller gathers the facts first, in this order:

1. the synthetic set that an evaluate or extend job names (:func:`named_set`), from another job or a file (:func:`set_at`);
2. the datasets of :func:`datasets_needed`, as :class:`DatasetFacts`;
3. for a sweep, how many jobs with the resources of :func:`resources_needed` fit the cluster at the same time.

The server and `cafe run` gather them differently: the server decodes no images, and `cafe run` has no access to other jobs.
This module does not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import ValidationError

from cafe_core.data.readers import missing, within_root
from cafe_core.data.roots import DataRoots
from cafe_core.errors import SpecError, SyntheticSetError
from cafe_core.spec.condense import CondenseSpec
from cafe_core.spec.dataset import DatasetInfo, DatasetSpec
from cafe_core.spec.dataset_facts import DatasetFacts
from cafe_core.spec.evaluate import EvaluateSpec
from cafe_core.spec.extend import ExtendSpec
from cafe_core.spec.job import JobSpec
from cafe_core.spec.resolution import resolve, resolve_evaluate, resolve_resources, resolve_sweep, selection_spec
from cafe_core.spec.resources import ResourcesSpec
from cafe_core.spec.sweep import SweepSpec
from cafe_core.spec.trials import Trial, datasets_of, trials
from cafe_core.synthetic_set.synthetic_set import SyntheticSet


@dataclass(frozen=True)
class Facts:
    """Everything outside a spec that decides whether, and how, its job can run."""

    datasets: DatasetFacts
    """At least those of :func:`datasets_needed`."""
    input_set: SyntheticSet | None = None
    """The synthetic set that the spec names (:func:`named_set`)."""
    gpus: float = 0
    """GPUs of the cluster."""
    concurrent: int = 1
    """Trials of a sweep that the cluster can hold at the same time. Used for sweeps only."""


@dataclass(frozen=True)
class Accepted:
    """A job that can run."""

    spec: JobSpec
    """Resolved."""
    dataset: DatasetInfo
    """For a sweep, the base's dataset."""
    input_set: SyntheticSet | None = None
    """The synthetic set to store with the job: the one that it evaluates or extends."""
    trials: list[Trial] = field(default_factory=list)
    """For a sweep, all its trials."""

    @property
    def condensations(self) -> list[CondenseSpec]:
        """Return the resolved condense specs that the job's workers will run."""
        if isinstance(self.spec, CondenseSpec):
            return [self.spec]
        if isinstance(self.spec, EvaluateSpec) and self.spec.synthetic.selection not in (None, "random", "whole"):
            return [selection_spec(self.spec, self.dataset)]
        return [trial.spec for trial in self.trials]


@dataclass(frozen=True)
class NamedSet:
    """The synthetic set that a spec names: of another job, or in a file."""

    field: str
    """The field of the spec."""
    job_id: str | None
    path: str | None


def named_set(spec: JobSpec) -> NamedSet | None:
    """Return the synthetic set that an evaluate job evaluates, or an extend job extends; None if there is none."""
    if isinstance(spec, ExtendSpec):
        return NamedSet("base", spec.base.job_id, spec.base.path)
    if isinstance(spec, EvaluateSpec) and spec.synthetic.dataset is None:
        return NamedSet("synthetic", spec.synthetic.job_id, spec.synthetic.path)
    return None


def set_at(path: str, roots: DataRoots, *, field: str) -> SyntheticSet:
    """Load the synthetic set at the `path` of a field of a spec. Raises SpecError."""
    loc = f"{field}.path"
    file = within_root(path, roots, loc=loc)
    if file is None:
        raise SpecError(missing(path, roots), loc=loc)
    try:
        return SyntheticSet.load(file)
    except SyntheticSetError as error:
        raise SpecError(error.message, loc=loc) from error


def datasets_needed(spec: JobSpec, judged: SyntheticSet | None) -> list[DatasetSpec]:
    """Return the datasets that must be described to accept `spec`. Raises SpecError if `judged` names none.

    judged: the synthetic set that the spec names (:func:`named_set`).
    """
    if isinstance(spec, CondenseSpec):
        return [spec.dataset]
    if isinstance(spec, EvaluateSpec):
        return [_test_dataset(spec, judged)]
    return datasets_of(spec)


def resources_needed(spec: SweepSpec, gpus: float) -> ResourcesSpec:
    """Return the resources of each trial of a sweep on a cluster with `gpus` GPUs, as the base sets them."""
    return resolve_resources(spec.base.resources, gpus)


def accept(spec: JobSpec, facts: Facts) -> Accepted:
    """Return the job that `spec` describes. Raises SpecError, or ValueError whose message starts with the field's path."""
    if isinstance(spec, ExtendSpec):
        return _accept_extend(spec, facts)
    if isinstance(spec, CondenseSpec):
        dataset = facts.datasets.described(spec.dataset, "dataset")
        return Accepted(resolve(spec, dataset, cluster_gpus=facts.gpus), dataset)
    if isinstance(spec, EvaluateSpec):
        return _accept_evaluate(spec, facts)
    return _accept_sweep(spec, facts)


def _accept_extend(spec: ExtendSpec, facts: Facts) -> Accepted:
    base, dataset = facts.input_set, facts.datasets.described(spec.dataset, "dataset")
    assert base is not None
    filled = spec.filled_from(base.spec)
    if problem := _not_extendable(base, filled):
        raise SpecError(problem, loc="base")
    channels, height, width = base.images.shape[1:]
    if dataset.shape != (channels, height, width):
        own = "×".join(map(str, dataset.shape))
        raise SpecError(
            f"the set has images of {channels}×{height}×{width} (channels × height × width), {dataset.name} has {own}; set "
            "dataset.image_size and dataset.channels",
            loc="dataset",
        )
    return Accepted(resolve(filled, dataset, cluster_gpus=facts.gpus), dataset, base)


def _not_extendable(base: SyntheticSet, spec: ExtendSpec) -> str | None:
    """Return why a set cannot be extended; None if it can be. spec: filled in from the set."""
    factor = 1 if base.decode is None else base.decode.factor
    if base.ipc != spec.ipc or factor != spec.method.decode_factor:
        return "the set does not hold the images as its job stored them; do not use a decoded copy"
    if base.class_sha256 is None:
        return (
            "the set does not hold the hashes of its real images, so changed classes cannot be found; condense the dataset again"
        )
    if base.labels.ndim == 2:
        return "the set has soft labels, which an extend job cannot make"
    finished = base.spec.get("iterations")
    if "validation" not in base.spec and base.iteration != finished:
        return f"the set is of iteration {base.iteration} of {finished}; wait until its job has finished"
    return None


def _accept_evaluate(spec: EvaluateSpec, facts: Facts) -> Accepted:
    judged, dataset_spec = facts.input_set, _test_dataset(spec, facts.input_set)
    named_once = spec.synthetic.dataset is not None and spec.dataset is None
    dataset = facts.datasets.described(dataset_spec, "synthetic.dataset" if named_once else "dataset")
    if judged is None:
        accepted = Accepted(resolve_evaluate(spec, dataset, dataset, dataset_spec, cluster_gpus=facts.gpus), dataset)
        _ = accepted.condensations  # raises if the coreset cannot be made
        return accepted
    _, channels, height, width = judged.images.shape
    images = dataset.model_copy(
        update={"class_names": judged.class_names, "channels": channels, "height": height, "width": width}
    )
    return Accepted(resolve_evaluate(spec, dataset, images, dataset_spec, cluster_gpus=facts.gpus), dataset, judged)


def _test_dataset(spec: EvaluateSpec, judged: SyntheticSet | None) -> DatasetSpec:
    """Return the dataset whose test images are used. Raises SpecError if neither the spec nor the evaluated set names one."""
    if dataset := spec.dataset or spec.synthetic.dataset:
        return dataset
    assert judged is not None
    try:
        return DatasetSpec.model_validate(judged.spec.get("dataset"))
    except ValidationError as error:
        message = "the synthetic set does not name a dataset under the dataset root; name the dataset to test on"
        raise SpecError(message, loc="dataset") from error


def _accept_sweep(spec: SweepSpec, facts: Facts) -> Accepted:
    dataset = facts.datasets.described(spec.base.dataset, "base.dataset")
    resolved = resolve_sweep(spec, dataset, concurrent=max(1, facts.concurrent), cluster_gpus=facts.gpus)
    return Accepted(resolved, dataset, trials=trials(resolved, facts.datasets))
