"""From a spec as sent to a job that can run: everything that can be refused without a worker is refused here. No torch.

The server and `cafe run` differ in how they look at data (the server decodes nothing), which jobs they know, and what they
can hold: that is :class:`Site`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from pydantic import ValidationError

from cafe_core.data.readers import within_root
from cafe_core.data.roots import DataRoots
from cafe_core.errors import DatasetError, SpecError, SyntheticSetError
from cafe_core.spec.condense import CondenseSpec
from cafe_core.spec.dataset import DatasetInfo, DatasetSpec
from cafe_core.spec.evaluate import EvaluateSpec
from cafe_core.spec.job import JobSpec
from cafe_core.spec.resolution import resolve, resolve_evaluate, resolve_resources, resolve_sweep, selection_spec
from cafe_core.spec.resources import ResourcesSpec
from cafe_core.spec.sweep import SweepSpec
from cafe_core.spec.trials import Trial, trials
from cafe_core.synthetic_set.synthetic_set import SyntheticSet

_NAMES_A_DATASET_FIELD = re.compile(rf"dataset\.({'|'.join(DatasetSpec.model_fields)}): ")


@dataclass(frozen=True)
class Site:
    """Where a job is to run."""

    roots: DataRoots
    describe: Callable[[DatasetSpec], DatasetInfo]
    """Raises SpecError or DatasetError."""
    set_of_job: Callable[[str], SyntheticSet]
    """The synthetic set of another job. Raises SpecError."""
    fits: Callable[[ResourcesSpec], int]
    """Jobs with such resources that can run at the same time."""
    gpus: float = 0


@dataclass(frozen=True)
class Accepted:
    """A job that can run."""

    spec: JobSpec
    """Resolved."""
    dataset: DatasetInfo
    """Of a sweep: the base's."""
    judged: SyntheticSet | None = None
    """Of an evaluate job: the synthetic set to keep with the job."""
    trials: list[Trial] = field(default_factory=list)
    """Of a sweep."""

    @property
    def condensations(self) -> list[CondenseSpec]:
        """What the job's workers will condense, resolved."""
        if isinstance(self.spec, CondenseSpec):
            return [self.spec]
        if isinstance(self.spec, EvaluateSpec) and self.spec.synthetic.selection not in (None, "random", "whole"):
            return [selection_spec(self.spec, self.dataset)]
        return [trial.spec for trial in self.trials]


def accept(spec: JobSpec, site: Site) -> Accepted:
    """The job that `spec` asks for. Raises SpecError, or ValueError whose message starts with the field's path."""
    if isinstance(spec, CondenseSpec):
        dataset = _described(spec.dataset, site, "dataset")
        return Accepted(resolve(spec, dataset, cluster_gpus=site.gpus), dataset)
    if isinstance(spec, EvaluateSpec):
        return _accept_evaluate(spec, site)
    return _accept_sweep(spec, site)


def _accept_evaluate(spec: EvaluateSpec, site: Site) -> Accepted:
    if spec.synthetic.dataset is not None:
        dataset_spec = spec.dataset or spec.synthetic.dataset
        dataset = _described(dataset_spec, site, "dataset" if spec.dataset else "synthetic.dataset")
        resolved = resolve_evaluate(spec, dataset, dataset, dataset_spec, cluster_gpus=site.gpus)
        accepted = Accepted(resolved, dataset)
        _ = accepted.condensations  # refuses a coreset that cannot be made
        return accepted
    judged = _judged_set(spec, site)
    dataset_spec = spec.dataset or _origin(judged)
    dataset = _described(dataset_spec, site, "dataset")
    _, channels, height, width = judged.images.shape
    images = dataset.model_copy(
        update={"class_names": judged.class_names, "channels": channels, "height": height, "width": width}
    )
    return Accepted(resolve_evaluate(spec, dataset, images, dataset_spec, cluster_gpus=site.gpus), dataset, judged)


def _judged_set(spec: EvaluateSpec, site: Site) -> SyntheticSet:
    if spec.synthetic.job_id is not None:
        return site.set_of_job(spec.synthetic.job_id)
    assert spec.synthetic.path is not None
    path = within_root(spec.synthetic.path, site.roots, loc="synthetic.path")
    if path is None:
        raise SpecError(f"there is no {spec.synthetic.path!r} under the server's dataset root", loc="synthetic.path")
    try:
        return SyntheticSet.load(path)
    except SyntheticSetError as error:
        raise SpecError(error.message, loc="synthetic.path") from error


def _origin(judged: SyntheticSet) -> DatasetSpec:
    """The dataset that a set's spec says it was made from. Raises SpecError."""
    try:
        return DatasetSpec.model_validate(judged.spec.get("dataset"))
    except ValidationError as error:
        raise SpecError("the set does not say from which dataset it was made; name the one to test on", loc="dataset") from error


def _accept_sweep(spec: SweepSpec, site: Site) -> Accepted:
    dataset = _described(spec.base.dataset, site, "base.dataset")
    concurrent = max(1, site.fits(resolve_resources(spec.base.resources, site.gpus)))
    resolved = resolve_sweep(spec, concurrent=concurrent, cluster_gpus=site.gpus)
    return Accepted(resolved, dataset, trials=trials(resolved, lambda dataset: _described(dataset, site, "dataset")))


def _described(dataset: DatasetSpec, site: Site, field: str) -> DatasetInfo:
    """The facts about the dataset that `field` of the spec names. Raises SpecError."""
    try:
        return site.describe(dataset)
    except SpecError as error:
        raise SpecError(error.message, loc=error.loc.replace("dataset", field, 1)) from error
    except DatasetError as error:  # its message mostly starts with a path of the user's, which may look like a field
        named = _NAMES_A_DATASET_FIELD.match(error.message)
        if named is None:
            raise SpecError(error.message, loc=field) from error
        raise SpecError(error.message[named.end() :], loc=f"{field}.{named[1]}") from error
