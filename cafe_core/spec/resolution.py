"""Resolve a spec: fill in every default, and check it against the data. This module does not import torch.

All functions raise ValueError with a message that starts with the path of the refused field.
"""

from __future__ import annotations

import math
from typing import TypeVar

from cafe_core.methods.cafe.spec import CafeMethod
from cafe_core.methods.registry import METHODS, AnyMethod
from cafe_core.spec.best import BestMethod, best_choice
from cafe_core.spec.condense import CondenseSpec
from cafe_core.spec.dataset import DatasetInfo, DatasetSpec
from cafe_core.spec.evaluate import EvaluateSpec
from cafe_core.spec.evaluation import EvaluationSpec, ValidationSpec
from cafe_core.spec.evaluation_sources import Source, judged_source, task_count
from cafe_core.spec.method import ResolutionContext, SelectionMethodSpec
from cafe_core.spec.resources import ResourcesSpec
from cafe_core.spec.sweep import SweepSpec

_Evaluation = TypeVar("_Evaluation", bound=EvaluationSpec)

MAX_NETWORKS = 100_000
"""Limit on the networks of an evaluation, or of all validations of a condensation: the result holds the accuracy of each."""


def resolve(spec: CondenseSpec, dataset: DatasetInfo, *, cluster_gpus: float = 0) -> CondenseSpec:
    """Return a condense spec with every default filled in."""
    k = dataset.num_classes
    if k < 2:
        raise ValueError(f"dataset: {dataset.name} has {k} class; condensation needs at least 2")
    if spec.resources.workers > k:
        raise ValueError(
            f"resources.workers: {spec.resources.workers} workers for {k} classes; each worker needs at least one class"
        )
    if spec.evaluation is not None:
        _check_testable(dataset, "evaluation")
    resources = resolve_resources(spec.resources, cluster_gpus)
    if isinstance(spec.method, BestMethod):
        spec = _with_chosen_method(spec, dataset, has_gpus=resources.gpus_per_worker > 0)
    network, iterations = spec.network.resolved(), _resolve_iterations(spec)
    return spec.model_copy(
        update={
            "iterations": iterations,
            "method": spec.method.resolved(ResolutionContext(spec.ipc, k, network, dataset.shape)),
            "network": network,
            "resources": resources,
            "evaluation": None
            if spec.evaluation is None
            else _resolve_evaluation(spec.evaluation, dataset, "synthetic", "evaluation."),
            "validation": None
            if spec.validation is None
            else _resolve_validation(spec.validation, iterations, spec.method, dataset),
        }
    )


def _with_chosen_method(spec: CondenseSpec, dataset: DatasetInfo, *, has_gpus: bool) -> CondenseSpec:
    """Return the spec with the method that `method: best` stands for, or CAFE for a spec with iterations and without a method."""
    if "method" not in spec.model_fields_set and spec.iterations is not None:
        return spec.model_copy(update={"method": CafeMethod()})
    must_learn = bool(spec.iterations) or spec.validation is not None
    best = best_choice(dataset, spec.ipc, has_gpus=has_gpus, must_learn=must_learn)
    method = METHODS[best.method["name"]].spec.model_validate(best.method)
    return spec.model_copy(
        update={"method": method, "iterations": best.iterations if spec.iterations is None else spec.iterations}
    )


def _resolve_iterations(spec: CondenseSpec) -> int:
    if spec.iterations is None:
        return spec.method.published_iterations
    if isinstance(spec.method, SelectionMethodSpec) and spec.iterations:
        raise ValueError(
            f"iterations: {spec.method.name} chooses real images and has no iterations; leave `iterations` out or set it to 0"
        )
    return spec.iterations


def resolve_resources(resources: ResourcesSpec, cluster_gpus: float) -> ResourcesSpec:
    """Return resources with a whole GPU for each worker if the cluster has GPUs."""
    if resources.gpus_per_worker is not None:
        return resources
    return resources.model_copy(update={"gpus_per_worker": 1.0 if cluster_gpus > 0 else 0.0})


def _resolve_evaluation(evaluation: _Evaluation, dataset: DatasetInfo, judged: Source, prefix: str = "") -> _Evaluation:
    """Return an evaluation with every default filled in. prefix: of its fields' paths."""
    if (count := task_count(evaluation, judged)) > MAX_NETWORKS:
        raise ValueError(
            f"{prefix}repeats: {evaluation.repeats} of each kind of network, augmentation and source of images are "
            f"{count} networks to train; at most {MAX_NETWORKS} are allowed"
        )
    return evaluation.resolved(grey_digits=dataset.is_digits and dataset.channels == 1)


def _resolve_validation(validation: ValidationSpec, iterations: int, method: AnyMethod, dataset: DatasetInfo) -> ValidationSpec:
    if isinstance(method, SelectionMethodSpec):
        raise ValueError(f"validation: {method.name} makes one set; it has no checkpoints to choose from")
    count = max(1, math.ceil(iterations / validation.every))
    if count * validation.repeats > MAX_NETWORKS:
        raise ValueError(
            f"validation.every: {count} validations by {validation.repeats} networks each are {count * validation.repeats} "
            f"networks to train; at most {MAX_NETWORKS} are allowed"
        )
    for name, count in zip(dataset.class_names, dataset.class_counts, strict=True):
        if count < 2:
            raise ValueError(f"validation: class {name!r} has {count} training image; holding one out would leave none")
    return validation.model_copy(update={"network": validation.network.resolved()})


def _check_testable(dataset: DatasetInfo, field: str) -> None:
    if dataset.test_count == 0:
        raise ValueError(
            f"{field}: {dataset.name} has no test images; add a test split (a test/ folder, or test_images and test_labels), or "
            "set dataset.test_fraction, for example to 0.2, to test on a part of the training images"
        )


def resolve_evaluate(
    spec: EvaluateSpec, dataset: DatasetInfo, images: DatasetInfo, dataset_spec: DatasetSpec, *, cluster_gpus: float = 0
) -> EvaluateSpec:
    """Return an evaluate spec with every default filled in.

    dataset: provides the test images (`dataset_spec` names it). images: describes the training images; for a synthetic set, from
    its file.
    """
    _check_testable(dataset, "dataset")
    if spec.synthetic.dataset is not None and dataset_spec != spec.synthetic.dataset:
        raise ValueError("dataset: images chosen from a dataset are evaluated on its own test images; leave it out")
    if spec.synthetic.selection == "whole" and "random" in spec.baselines:
        raise ValueError("baselines: random takes as many images per class as the evaluated set; `whole` has no fixed number")
    if images.shape != dataset.shape:
        raise ValueError(
            f"synthetic: its images are {_shape(images)} (channels × height × width), the test images of {dataset.name} "
            f"{_shape(dataset)}"
        )
    if images.num_classes != dataset.num_classes:
        raise ValueError(f"synthetic: it has {images.num_classes} classes, {dataset.name} has {dataset.num_classes}")
    if unknown := [name for name in images.class_names if name not in set(dataset.class_names)]:
        raise ValueError(
            f"synthetic: its classes {_some(unknown)} are not in {dataset.name}, which has {_some(dataset.class_names)}; classes "
            "are matched by name"
        )
    resolved = _resolve_evaluation(spec, dataset, judged_source(spec))
    return resolved.model_copy(update={"dataset": dataset_spec, "resources": resolve_resources(spec.resources, cluster_gpus)})


def _shape(info: DatasetInfo) -> str:
    return "×".join(map(str, info.shape))


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def selection_spec(spec: EvaluateSpec, dataset: DatasetInfo) -> CondenseSpec:
    """Return the resolved condensation that chooses the images of an evaluate job by a coreset method.

    It uses one worker if workers share a GPU, otherwise the job's workers, at most one per class.
    """
    source = spec.synthetic
    assert source.dataset is not None
    assert source.ipc is not None
    shares_gpus = 0 < spec.resources.gpus_per_worker < 1
    workers = 1 if shares_gpus else min(spec.resources.workers, dataset.num_classes)
    sent = CondenseSpec.model_validate(
        {
            "dataset": source.dataset.model_dump(),
            "ipc": source.ipc,
            "seed": spec.seed,
            "method": {"name": source.selection},
            "resources": spec.resources.model_dump() | {"workers": workers},
        }
    )
    return resolve(sent, dataset)


def resolve_sweep(spec: SweepSpec, dataset: DatasetInfo, *, concurrent: int, cluster_gpus: float = 0) -> SweepSpec:
    """Return a sweep spec with its own defaults filled in.

    dataset: the base's. concurrent: how many trials fit into the cluster at once.

    `base` is unchanged except for its resources and the validation that ASHA needs, because each trial has its own defaults.
    """
    base = spec.base.model_copy(update={"resources": resolve_resources(spec.base.resources, cluster_gpus)})
    if spec.scheduler == "asha" and base.validation is None:
        swept = any(path.split(".")[0] == "method" for path in spec.space)
        if isinstance(base.method, SelectionMethodSpec) and not swept:
            raise ValueError(
                f"scheduler: asha stops trials by validations, and {base.method.name} has no checkpoints to validate"
            )
        iterations = _iterations_of_trials(base, dataset, method_is_swept=swept)
        base = base.model_copy(update={"validation": ValidationSpec(every=max(1, iterations // 4))})
    max_concurrent = min(spec.max_concurrent or concurrent, concurrent, spec.trial_count)
    return spec.model_copy(update={"base": base, "max_concurrent": max(1, max_concurrent)})


def _iterations_of_trials(base: CondenseSpec, dataset: DatasetInfo, *, method_is_swept: bool) -> int:
    """Return the iterations of a sweep's base; those of CAFE if only the space names a method."""
    if base.iterations is not None:
        return base.iterations
    if not isinstance(base.method, BestMethod):
        return base.method.published_iterations
    if method_is_swept:
        return CafeMethod.published_iterations
    return best_choice(dataset, base.ipc, has_gpus=base.resources.gpus_per_worker > 0, must_learn=True).iterations
