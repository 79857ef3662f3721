"""From a spec as sent to the spec that runs: every default written out, checked against the data. No torch here.

Everything raises ValueError with a message that starts with the field's path.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, TypeVar

from cafe_core.spec.condense import CondenseSpec
from cafe_core.spec.dataset import DatasetInfo, DatasetSpec
from cafe_core.spec.evaluate import EvaluateSpec
from cafe_core.spec.evaluation import EvaluationSpec, ValidationSpec
from cafe_core.spec.evaluation_sources import Source, judged_source, task_count
from cafe_core.spec.method import CafeMethod, CoresetMethod, DcMethod, MatchingMethod, MethodSpec, Preset, RandomMethod
from cafe_core.spec.network import NetworkSpec, aligned_map_count
from cafe_core.spec.resources import ResourcesSpec
from cafe_core.spec.sweep import SweepSpec

_Evaluation = TypeVar("_Evaluation", bound=EvaluationSpec)

_DC_LOOPS = ((1, 1, 1), (10, 10, 50), (20, 20, 25), (30, 30, 20), (40, 40, 15), (50, 50, 10))
"""(ipc, max_outer, max_inner) of DC, which the paper takes over."""

PUBLISHED_ITERATIONS = {"cafe": 2000, "dc": 1000, "dm": 20_000}
"""Of each method's own paper; for DC and DM as their authors' released code runs them."""


MAX_NETWORKS = 100_000
"""That an evaluation, or all validations of a condensation together, may train: the result holds an accuracy of each."""


def dc_loops(ipc: int) -> tuple[int, int]:
    """(max_outer, max_inner) for an ipc: DC's table, linear between its entries, constant past its end."""
    for (ipc_a, outer_a, inner_a), (ipc_b, outer_b, inner_b) in pairwise(_DC_LOOPS):
        if ipc_a <= ipc < ipc_b:
            t = (ipc - ipc_a) / (ipc_b - ipc_a)
            return round(outer_a + t * (outer_b - outer_a)), round(inner_a + t * (inner_b - inner_a))
    return _DC_LOOPS[-1][1:]


def _cafe_values(preset: Preset, *, ipc: int, num_classes: int, batch_real: int, map_count: int) -> dict[str, Any]:
    shared: dict[str, Any] = {"gamma": 10, "image_lr": 0.1, "init": "noise", "augment": "none"}
    if preset == "paper":
        max_outer, max_inner = dc_loops(ipc)
        return shared | {
            "beta": 1.0,
            "layer_weights": [1.0] * map_count,
            "lambda_1": 0.05,
            "lambda_2": 0.05,
            "max_outer": max_outer,
            "max_inner": max_inner,
            "query_per_class": batch_real,
            "query_carry": False,
            "image_milestones": [1200, 1400, 1800],
        }
    return shared | {
        "beta": 0.01 * num_classes * batch_real,
        "layer_weights": [0.1] * max(0, map_count - 2) + [1.0, 2.0][-map_count:],
        "lambda_1": 0.04,
        "lambda_2": 0.03,
        "max_outer": 100,
        "max_inner": 500,
        "query_per_class": 128,
        "query_carry": True,
        "image_milestones": [1200, 1600, 1800],
    }


def resolve_method(method: MethodSpec, *, ipc: int, num_classes: int, network: NetworkSpec) -> MethodSpec:
    """`method` with everything written out that it, its preset, ipc and the network decide."""
    if isinstance(method, RandomMethod | CoresetMethod):
        return method
    batch_real = method.batch_real if method.batch_real is not None else 256
    shared = {"batch_real": batch_real, "image_momentum": 0.5, "batch_train": 256, "network_lr": 0.01}
    if isinstance(method, CafeMethod):
        return _resolve_cafe(method, shared, ipc=ipc, num_classes=num_classes, network=network)
    if isinstance(method, DcMethod):
        max_outer, max_inner = dc_loops(ipc)
        augment = method.augment or "none"
        init = "real" if augment == "dsa" else "noise"
        values = {"image_lr": 0.1, "max_outer": max_outer, "max_inner": max_inner, "augment": augment, "init": init}
        return _filled(method, shared | values | {"image_milestones": []})
    return _filled(method, shared | {"image_lr": 1.0, "augment": "dsa", "init": "real", "image_milestones": []})


def _resolve_cafe(method: CafeMethod, shared: dict[str, Any], *, ipc: int, num_classes: int, network: NetworkSpec) -> CafeMethod:
    map_count = aligned_map_count(network)
    layers = method.layers if method.layers is not None else list(range(map_count))
    if max(layers) >= map_count or len(set(layers)) != len(layers) or layers != sorted(layers):
        raise ValueError(f"method.layers: {layers} must be increasing and below {map_count}, the feature maps of {network.name}")
    batch_real = shared["batch_real"]
    values = _cafe_values(method.preset, ipc=ipc, num_classes=num_classes, batch_real=batch_real, map_count=map_count)
    values |= {"layers": layers, "layer_weights": [values["layer_weights"][i] for i in layers]}
    resolved = _filled(method, shared | values)
    if len(resolved.layer_weights) != len(layers):
        raise ValueError(
            f"method.layer_weights: {len(resolved.layer_weights)} weights for {len(layers)} aligned maps (layers {layers})"
        )
    return resolved


_Matching = TypeVar("_Matching", bound=MatchingMethod)


def _filled(method: _Matching, values: dict[str, Any]) -> _Matching:
    """`method` with those of `values` that it has as fields and that were left out."""
    fields = type(method).model_fields
    return method.model_copy(update={k: v for k, v in values.items() if k in fields and getattr(method, k) is None})


def resolve(spec: CondenseSpec, dataset: DatasetInfo, *, cluster_gpus: float = 0) -> CondenseSpec:
    """A condense spec with every default written out."""
    k = dataset.num_classes
    if k < 2:
        raise ValueError(f"dataset: {dataset.name} has {k} class; condensation needs at least 2")
    if spec.resources.workers > k:
        raise ValueError(
            f"resources.workers: {spec.resources.workers} workers for {k} classes; each worker needs a class of its own"
        )
    if spec.evaluation is not None:
        _check_testable(dataset, "evaluation")
    network, iterations = spec.network.resolved(), _resolve_iterations(spec)
    return spec.model_copy(
        update={
            "iterations": iterations,
            "method": resolve_method(spec.method, ipc=spec.ipc, num_classes=k, network=network),
            "network": network,
            "resources": resolve_resources(spec.resources, cluster_gpus),
            "evaluation": None if spec.evaluation is None else _resolve_evaluation(spec.evaluation, "synthetic", "evaluation."),
            "validation": None
            if spec.validation is None
            else _resolve_validation(spec.validation, iterations, spec.method, dataset),
        }
    )


def _resolve_iterations(spec: CondenseSpec) -> int:
    published = PUBLISHED_ITERATIONS.get(spec.method.name, 0)
    if spec.iterations is None:
        return published
    if not published and spec.iterations:
        raise ValueError(f"iterations: {spec.method.name} chooses real images; it has no iterations (0, or leave it out)")
    return spec.iterations


def resolve_resources(resources: ResourcesSpec, cluster_gpus: float) -> ResourcesSpec:
    """A whole GPU for each worker where the cluster has GPUs."""
    if resources.gpus_per_worker is not None:
        return resources
    return resources.model_copy(update={"gpus_per_worker": 1.0 if cluster_gpus > 0 else 0.0})


def _resolve_evaluation(evaluation: _Evaluation, judged: Source, prefix: str = "") -> _Evaluation:
    """The networks' options and the epochs on `whole` written out. prefix: of its fields' paths."""
    if (count := task_count(evaluation, judged)) > MAX_NETWORKS:
        raise ValueError(
            f"{prefix}repeats: {evaluation.repeats} of each kind of network, augmentation and source of images are "
            f"{count} networks to train; at most {MAX_NETWORKS} are allowed"
        )
    return evaluation.model_copy(
        update={
            "networks": [network.resolved() for network in evaluation.networks],
            "whole_epochs": evaluation.whole_epochs or evaluation.epochs,
        }
    )


def _resolve_validation(validation: ValidationSpec, iterations: int, method: MethodSpec, dataset: DatasetInfo) -> ValidationSpec:
    if isinstance(method, RandomMethod | CoresetMethod):
        raise ValueError(f"validation: {method.name} makes one set; there are no checkpoints to choose among")
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
        raise ValueError(f"{field}: the dataset has no test images (a test/ folder, or test_images and test_labels)")


def resolve_evaluate(
    spec: EvaluateSpec, dataset: DatasetInfo, images: DatasetInfo, dataset_spec: DatasetSpec, *, cluster_gpus: float = 0
) -> EvaluateSpec:
    """An evaluate spec with every default written out.

    dataset: whose test images count (`dataset_spec` names it). images: what is trained on; of a synthetic set, the facts that
    its file states.
    """
    _check_testable(dataset, "dataset")
    if spec.synthetic.dataset is not None and dataset_spec != spec.synthetic.dataset:
        raise ValueError("dataset: images chosen from a dataset are judged on its own test images; leave it out")
    if spec.synthetic.selection == "whole" and "random" in spec.baselines:
        raise ValueError("baselines: random takes as many images per class as the judged set has; `whole` has no such number")
    if images.shape != dataset.shape:
        raise ValueError(
            f"synthetic: its images are {_shape(images)} (channels × height × width), the test images of {dataset.name} "
            f"{_shape(dataset)}"
        )
    if images.num_classes != dataset.num_classes:
        raise ValueError(f"synthetic: it has {images.num_classes} classes, {dataset.name} has {dataset.num_classes}")
    if images.class_names != dataset.class_names:
        raise ValueError(
            f"synthetic: its classes {_some(images.class_names)} are not those of {dataset.name}, {_some(dataset.class_names)}"
        )
    resolved = _resolve_evaluation(spec, judged_source(spec))
    return resolved.model_copy(update={"dataset": dataset_spec, "resources": resolve_resources(spec.resources, cluster_gpus)})


def _shape(info: DatasetInfo) -> str:
    return "×".join(map(str, info.shape))


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def selection_spec(spec: EvaluateSpec, dataset: DatasetInfo) -> CondenseSpec:
    """The condensation whose result an evaluate job of real images chosen by a coreset method judges. Resolved, as `spec` is.

    By as many of the job's workers as can have a class, or a whole GPU, of their own.
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


def resolve_sweep(spec: SweepSpec, *, concurrent: int, cluster_gpus: float = 0) -> SweepSpec:
    """A sweep spec with its own defaults written out. concurrent: trials that the cluster holds at once.

    `base` stays as it was sent, but for its resources and the validation that ASHA needs: each trial has its own defaults.
    """
    base = spec.base.model_copy(update={"resources": resolve_resources(spec.base.resources, cluster_gpus)})
    if spec.scheduler == "asha" and base.validation is None:
        swept = any(path.split(".")[0] == "method" for path in spec.space)
        if isinstance(base.method, RandomMethod | CoresetMethod) and not swept:
            raise ValueError(
                f"scheduler: asha stops trials by validations, and {base.method.name} has no checkpoints to validate"
            )
        published = PUBLISHED_ITERATIONS.get(base.method.name, 0)
        iterations = base.iterations if base.iterations is not None else published
        base = base.model_copy(update={"validation": ValidationSpec(every=max(1, iterations // 4))})
    max_concurrent = min(spec.max_concurrent or concurrent, concurrent, spec.trial_count)
    return spec.model_copy(update={"base": base, "max_concurrent": max(1, max_concurrent)})


def image_lr_at(method: MatchingMethod, iteration: int) -> float:
    """Learning rate of the synthetic images in `iteration` (0-based): halved at each milestone reached."""
    return method.image_lr * math.pow(0.5, sum(iteration >= m for m in method.image_milestones))
