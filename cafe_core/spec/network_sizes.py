"""Compute the sizes of the networks of :mod:`cafe_core.networks` without torch. A test checks that both modules agree."""

from __future__ import annotations

from math import prod

from cafe_core.spec.network import NetworkSpec

Shape = tuple[int, int, int]
"""(C, H, W)."""

GRAPH_FACTOR = {"convnet": 3, "mlp": 3, "lenet": 3, "alexnet": 3, "vgg11": 4, "resnet18": 10}
"""Memory of a graph for the backward pass, in units of the aligned maps (measured: at most 2.2, 1.6, 3.2 and 9.6)."""

DOUBLE_GRAPH_FACTOR = {"convnet": 12, "mlp": 49, "lenet": 7, "alexnet": 11, "vgg11": 11, "resnet18": 36}
"""The same if the gradient of the weights is differentiated (measured: at most 11.8, 48.5, 6.8, 10.5, 10.3 and 35.8)."""

_BODY_PARAMETERS = {"alexnet": 1_900_000, "vgg11": 9_300_000, "resnet18": 11_200_000}


def map_shapes(network: NetworkSpec, shape: Shape) -> list[Shape]:
    """Return (C, H, W) of each feature map that can be aligned; the last one, flattened, has width D."""
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
    """Return the approximate number of parameters."""
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
    """Return the size after 2×2 pooling, which is left out if a side would fall below `keep`."""
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
