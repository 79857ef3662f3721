"""Estimate the memory and communication of a spec before it runs. This module does not import torch: the API uses it."""

from __future__ import annotations

from math import prod

from pydantic import BaseModel, ConfigDict

from cafe_core.spec.condense import CondenseSpec
from cafe_core.spec.dataset import DatasetInfo
from cafe_core.spec.evaluation import EvaluationSpec
from cafe_core.spec.method import Sizes
from cafe_core.spec.network import NetworkSpec
from cafe_core.spec.network_sizes import DOUBLE_GRAPH_FACTOR, GRAPH_FACTOR, map_shapes, parameter_count

RUNTIME_BYTES = 600 << 20
"""A worker's memory before it loads any data: Python, torch and Ray (573 MiB resident after the imports of a ShardWorker)."""
GRAPH_BYTES_CPU = 256 << 20
"""Bound on the feature maps in flight on a CPU, for any K and N (:class:`cafe_core.algorithm.model.Budget`)."""


class Estimate(BaseModel):
    """Bytes per worker unless stated otherwise, for the worker with the most classes."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    memory_bytes: int
    """Sum of the following and of the runtime."""
    synthetic_bytes: int
    """S, its momentum and its gradient; in multi-formation sets also the decoded images."""
    statistics_bytes: int
    """Class centres, their gradient, the real class means, and copies of θ for query checks; dc: the gradients of the weights;
    dance and ncfm: the pool; methods that choose real images: the features of the largest class."""
    network_bytes: int
    """θ, its gradient and momentum, and the inner loop's activations; or those of the largest network of the evaluation."""
    features_bytes: int
    """Feature maps in flight: bounded for any number of classes, but at least those of a class's synthetic images (cafe, dm)
    or of one image."""
    numbers_per_outer_step: int
    """Numbers a worker sends to the others: 2·K·D for the shared statistics."""
    download_bytes: int
    """Size of synthetic.safetensors."""


def estimate(spec: CondenseSpec, info: DatasetInfo) -> Estimate:
    """Return the estimate of a resolved `spec`."""
    sizes = method_sizes(spec, info)
    K, numbers = info.num_classes, prod(info.shape)

    images = 3 * sizes.classes * spec.ipc * numbers * sizes.itemsize
    if (decoded := spec.method.decode_factor**2) > 1:  # the decoded images, their gradients and the parts of their computation
        images += 5 * sizes.classes * spec.ipc * decoded * numbers * sizes.itemsize
    statistics = spec.method.statistics_bytes(sizes)
    network = training_bytes(spec.network, info, spec.method.trained_images(K * spec.ipc)) * sizes.itemsize // 4
    for evaluation in (spec.evaluation, spec.validation.as_evaluation() if spec.validation is not None else None):
        if evaluation is not None:
            network = max(network, evaluation_bytes(evaluation, info, K * spec.ipc * spec.method.decode_factor**2))
    features = max(GRAPH_BYTES_CPU, spec.method.graph_bytes(sizes))
    gathered = (
        4 * K * spec.ipc * numbers * sizes.itemsize
    )  # rank 0 gathers all images and momenta for a checkpoint, and packs them
    return Estimate(
        memory_bytes=RUNTIME_BYTES + images + statistics + network + features + gathered,
        synthetic_bytes=images,
        statistics_bytes=statistics,
        network_bytes=network,
        features_bytes=features,
        numbers_per_outer_step=spec.method.numbers_per_outer_step(sizes),
        download_bytes=K * spec.ipc * (numbers * 4 + 8),
    )


def method_sizes(spec: CondenseSpec, info: DatasetInfo) -> Sizes:
    """Return the sizes from which the method of a resolved `spec` is estimated."""
    return Sizes(
        ipc=spec.ipc,
        num_classes=info.num_classes,
        classes=-(-info.num_classes // spec.resources.workers),
        largest_class=max(info.class_counts),
        maps=map_shapes(spec.network, info.shape),
        parameters=parameter_count(spec.network, info.shape, info.num_classes),
        graph_factor=GRAPH_FACTOR[spec.network.name],
        double_graph_factor=DOUBLE_GRAPH_FACTOR[spec.network.name],
        itemsize=8 if spec.precision == "float64" else 4,
    )


def evaluation_bytes(spec: EvaluationSpec, info: DatasetInfo, images: int) -> int:
    """Return the bytes of training the largest network of `spec` on `images` images, or on all real ones for that baseline."""
    count = sum(info.class_counts) if "whole" in spec.baselines else images
    return max(training_bytes(network, info, min(spec.batch, count)) for network in spec.networks)


def training_bytes(network: NetworkSpec, info: DatasetInfo, batch: int) -> int:
    """Return the bytes of weights, gradients, momenta and the graph of a minibatch, in float32."""
    maps = sum(prod(shape) for shape in map_shapes(network, info.shape))
    return 4 * (3 * parameter_count(network, info.shape, info.num_classes) + GRAPH_FACTOR[network.name] * batch * maps)
