"""What a spec will hold and send, computed before anything is started. No torch: the API answers with it.

Shapes are those of cafe_core.networks, stated as arithmetic; a test holds the two together.
"""

from __future__ import annotations

from math import prod

from pydantic import BaseModel, ConfigDict

from cafe_core.spec.condense import CondenseSpec
from cafe_core.spec.dataset import DatasetInfo
from cafe_core.spec.evaluation import EvaluationSpec
from cafe_core.spec.method import BilevelMethod, CafeMethod, DcMethod, MatchingMethod
from cafe_core.spec.network import NetworkSpec

Shape = tuple[int, int, int]

RUNTIME_BYTES = 600 << 20
"""A worker before it holds anything of the job: Python, torch and Ray (a ShardWorker had 573 MiB resident after its imports)."""
EVALUATION_BATCH = 256
GRAPH_BYTES_CPU = 256 << 20
"""What feature maps in flight may take on a CPU, whatever K and N (cafe_core.algorithm.model.Budget)."""

GRAPH_FACTOR = {"convnet": 3, "mlp": 3, "lenet": 3, "alexnet": 3, "vgg11": 4, "resnet18": 10}
"""What a graph holds for the backward pass, in units of the aligned maps (measured at most 2.2, 1.6, 3.2 and 9.6)."""

DOUBLE_GRAPH_FACTOR = {"convnet": 12, "mlp": 49, "lenet": 7, "alexnet": 11, "vgg11": 11, "resnet18": 36}
"""The same where the gradient of the weights is differentiated (measured at most 11.8, 48.5, 6.8, 10.5, 10.3 and 35.8)."""

WEIGHT_GRADIENTS_HELD = 6
"""How many gradients of all weights dc holds at most: of both sides, D's in one of them, and what is made on the way (measured
at most 5.2)."""

FEATURES_HELD = {"herding": 1, "k_center": 1, "kmeans": 3}
"""How often a method holds a class's features, in float64 (measured with 13861 images and D = 2048: 1.0, 1.0 and 2.9)."""

_BODY_PARAMETERS = {"alexnet": 1_900_000, "vgg11": 9_300_000, "resnet18": 11_200_000}


class Estimate(BaseModel):
    """Bytes per worker unless it says otherwise. The largest shard counts."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    memory_bytes: int
    """Sum of what follows and of the runtime."""
    synthetic_bytes: int
    """S, its momentum and its gradient."""
    statistics_bytes: int
    """Class centres, their gradient, and the real class means; dc: the gradients of the weights; methods that choose real images:
    the features of the largest class."""
    network_bytes: int
    """θ, its gradient and momentum, and the inner loop's activations; or those of the largest network of the evaluation."""
    features_bytes: int
    """Feature maps in flight: bounded whatever the number of classes, but at least those of a class's synthetic images (cafe, dm)
    or of one image."""
    numbers_per_outer_step: int
    """Numbers a worker sends to the others: 2·K·D for the shared statistics."""
    download_bytes: int
    """Size of synthetic.safetensors."""


def estimate(spec: CondenseSpec, info: DatasetInfo) -> Estimate:
    """`spec` must be resolved."""
    itemsize = 8 if spec.precision == "float64" else 4
    K, C_H_W = info.num_classes, prod(info.shape)
    classes = -(-K // spec.resources.workers)
    D = prod(map_shapes(spec.network, info.shape)[-1])

    images = 3 * classes * spec.ipc * C_H_W * itemsize
    statistics = _statistics_bytes(spec, info, classes, itemsize)
    trained_on = spec.method.batch_train if isinstance(spec.method, BilevelMethod) else 0
    network = training_bytes(spec.network, info, min(trained_on, K * spec.ipc)) * itemsize // 4
    for evaluation in (spec.evaluation, spec.validation.as_evaluation() if spec.validation is not None else None):
        if evaluation is not None:
            network = max(network, evaluation_bytes(evaluation, info, K * spec.ipc))
    features = max(GRAPH_BYTES_CPU, _least_graph_bytes(spec, info, itemsize))
    gathered = 4 * K * spec.ipc * C_H_W * itemsize  # rank 0 collects all images and momenta for a checkpoint, and packs them
    return Estimate(
        memory_bytes=RUNTIME_BYTES + images + statistics + network + features + gathered,
        synthetic_bytes=images,
        statistics_bytes=statistics,
        network_bytes=network,
        features_bytes=features,
        numbers_per_outer_step=2 * K * D if isinstance(spec.method, CafeMethod) and spec.method.discrimination else 0,
        download_bytes=K * spec.ipc * (C_H_W * 4 + 8),
    )


def evaluation_bytes(spec: EvaluationSpec, info: DatasetInfo, images: int) -> int:
    """Training the largest of the networks, one at a time, on `images` images, or on all real ones for that baseline."""
    count = sum(info.class_counts) if "whole" in spec.baselines else images
    return max(training_bytes(network, info, min(EVALUATION_BATCH, count)) for network in spec.networks)


def _statistics_bytes(spec: CondenseSpec, info: DatasetInfo, classes: int, itemsize: int) -> int:
    maps = map_shapes(spec.network, info.shape)
    D = prod(maps[-1])
    match spec.method:
        case CafeMethod():
            return (3 * info.num_classes * D + classes * sum(prod(m) for m in maps)) * itemsize
        case DcMethod():
            return WEIGHT_GRADIENTS_HELD * parameter_count(spec.network, info.shape, info.num_classes) * itemsize
        case MatchingMethod():  # dm: the mean embeddings of both sides
            return 2 * classes * D * itemsize
        case chosen:
            return 8 * FEATURES_HELD.get(chosen.name, 0) * max(info.class_counts) * D


def _least_graph_bytes(spec: CondenseSpec, info: DatasetInfo, itemsize: int) -> int:
    """What must be held at once, however small the chunks are made: a class's synthetic images, or one image."""
    match spec.method:
        case DcMethod():
            factor = DOUBLE_GRAPH_FACTOR[spec.network.name]
        case MatchingMethod():
            factor = GRAPH_FACTOR[spec.network.name] * spec.ipc
        case _:
            factor = GRAPH_FACTOR[spec.network.name]
    return factor * sum(prod(m) for m in map_shapes(spec.network, info.shape)) * itemsize


def training_bytes(network: NetworkSpec, info: DatasetInfo, batch: int) -> int:
    """float32: weights, gradients, momenta, and the graph of a minibatch."""
    maps = sum(prod(m) for m in map_shapes(network, info.shape))
    return 4 * (3 * parameter_count(network, info.shape, info.num_classes) + GRAPH_FACTOR[network.name] * batch * maps)


def map_shapes(network: NetworkSpec, shape: Shape) -> list[Shape]:
    """(C, H, W) of each aligned map; the last one, flattened, has width D."""
    spec = network.resolved()
    _, h, w = shape
    if (h, w) == (28, 28) and spec.name != "mlp" and spec.name != "lenet":
        h, w = 32, 32  # padded by the first convolution
    match spec.name:
        case "mlp":
            return [(spec.width, 1, 1)] * 2
        case "lenet":
            side = (h, w) if min(h, w) < 32 else (h - 4, w - 4)
            pooled = _halved(side)
            second = pooled if min(pooled) < 8 else (pooled[0] - 4, pooled[1] - 4)
            return [(6, *side), (16, *second), (84, 1, 1)]
        case "convnet":
            pooled_stages = set() if spec.pooling == "none" else set(range(spec.depth))
            return _plain([spec.width] * spec.depth, pooled_stages, (h, w))
        case "alexnet":
            return _plain([128, 192, 256, 192, 192], {0, 1, 4}, (h, w))
        case "vgg11":
            return _plain([64, 128, 256, 512, 512], {0, 1, 2, 3, 4}, (h, w))
        case "resnet18":
            return _resnet([64, 128, 256, 512], (h, w))
    raise AssertionError(spec.name)


def parameter_count(network: NetworkSpec, shape: Shape, num_classes: int) -> int:
    """Roughly how many parameters the network has."""
    spec = network.resolved()
    channels = shape[0]
    classifier = num_classes * (prod(map_shapes(spec, shape)[-1]) + 1)
    if spec.name == "convnet":
        return spec.width * (9 * channels + 3) + (spec.depth - 1) * spec.width * (9 * spec.width + 3) + classifier
    if spec.name == "mlp":
        return spec.width * (prod(shape) + 1) + spec.width * (spec.width + 1) + classifier
    if spec.name == "lenet":
        second = map_shapes(spec, shape)[1]
        flat = second[0] * prod(_halved(second[1:]))
        return 6 * (25 * channels + 1) + 16 * (25 * 6 + 1) + 120 * (flat + 1) + 84 * (120 + 1) + classifier
    return _BODY_PARAMETERS[spec.name] + classifier


def _halved(side: tuple[int, int], keep: int = 2) -> tuple[int, int]:
    """2×2 pooling, left out where a side would fall below `keep`."""
    return (side[0] // 2, side[1] // 2) if min(side) // 2 >= keep else side


def _plain(widths: list[int], pooled: set[int], side: tuple[int, int]) -> list[Shape]:
    shapes: list[Shape] = []
    for index, width in enumerate(widths):
        shapes.append((width, *side))
        if index in pooled:
            side = _halved(side, keep=1 if index == len(widths) - 1 else 2)
    return [*shapes, (widths[-1], *side)]


def _resnet(widths: list[int], side: tuple[int, int]) -> list[Shape]:
    shapes: list[Shape] = []
    for index, width in enumerate(widths):
        strided = ((side[0] + 1) // 2, (side[1] + 1) // 2)  # rounding up, unlike pooling
        side = strided if index > 0 and min(strided) >= 2 else side
        shapes.append((width, *side))
    return [*shapes, (widths[-1], 1, 1)]
