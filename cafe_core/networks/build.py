"""Build a network from a NetworkSpec; each architecture is a list of stages."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import nn

from cafe_core.networks.conv_stage import ConvStage
from cafe_core.networks.feature_network import FeatureNetwork
from cafe_core.networks.layers import Shape, make_activation, make_norm, make_pooling
from cafe_core.networks.resnet import resnet_stages
from cafe_core.spec.network import NetworkSpec

_GLOBAL_GENERATOR = threading.Lock()
"""torch initialises parameters from its global generator, which two threads must not seed at the same time."""

Stages = list[tuple[nn.Module, Shape]]


def build_network(spec: NetworkSpec, shape: Shape, num_classes: int) -> FeatureNetwork:
    """Build a network for images of `shape` (C, H, W), initialised from torch's global generator."""
    return FeatureNetwork(_STAGES[spec.name](spec.resolved(), shape), num_classes)


def init_network(spec: NetworkSpec, shape: Shape, num_classes: int, seed: int) -> FeatureNetwork:
    """Build the network of `seed` (below 2^64), float32 on the CPU, without changing torch's global generator."""
    with _GLOBAL_GENERATOR, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # CPU only: torch.manual_seed would seed GPUs as well
        return build_network(spec, shape, num_classes)


def _convnet_stages(spec: NetworkSpec, shape: Shape) -> Stages:
    """Return `depth` × (3×3 convolution, normalisation, activation, 2×2 pooling). Maps: each activation and the last pooling."""
    stages: Stages = []
    pooling: nn.Module = nn.Identity()
    padding = 1 + _padding_to_32(shape)
    for _ in range(spec.depth):
        convolution, shape = _conv(shape, spec.width, 3, padding)
        stages.append((ConvStage(pooling, convolution, make_norm(spec.norm, shape), make_activation(spec.activation)), shape))
        pooling, pooled = make_pooling(spec.pooling, shape, keep=1 if len(stages) == spec.depth else 2)
        shape, padding = pooled, 1
    return [*stages, (pooling, shape)]


def _mlp_stages(spec: NetworkSpec, shape: Shape) -> Stages:
    """Return two hidden layers of `width` ReLU units (and the classifier, so three linear layers). Maps: both."""
    channels, height, width = shape
    hidden = (spec.width, 1, 1)
    return [
        (_dense(channels * height * width, spec.width), hidden),
        (_dense(spec.width, spec.width), hidden),
    ]


def _lenet_stages(_: NetworkSpec, shape: Shape) -> Stages:
    """Return LeNet-5 with ReLU and max pooling. Maps: both convolutions' activations, and the 84 hidden units.

    The first convolution is padded for images below 32×32, as is customary at 28×28; the second one for small maps.
    """
    convolution_1, shape_1 = _conv(shape, 6, 5, padding=2 if min(shape[1:]) < 32 else 0)
    pooling_1, pooled = make_pooling("max", shape_1)
    convolution_2, shape_2 = _conv(pooled, 16, 5, padding=2 if min(pooled[1:]) < 8 else 0)
    pooling_2, (channels, height, width) = make_pooling("max", shape_2)
    return [
        (nn.Sequential(convolution_1, make_activation("relu")), shape_1),
        (nn.Sequential(pooling_1, convolution_2, make_activation("relu")), shape_2),
        (nn.Sequential(pooling_2, _dense(channels * height * width, 120), _dense(120, 84)), (84, 1, 1)),
    ]


def _alexnet_stages(spec: NetworkSpec, shape: Shape) -> Stages:
    """Return AlexNet for small images: 5 convolutions, pooling after 1, 2 and 5. Maps: each activation and the last pooling."""
    return _plain_stages(
        spec,
        shape,
        widths=[[128], [192], [256], [192], [192]],
        kernels=[5, 5, 3, 3, 3],
        pooled={0, 1, 4},
    )


def _vgg11_stages(spec: NetworkSpec, shape: Shape) -> Stages:
    """Return VGG11 for small images: 8 convolutions in 5 stages. Maps: each stage's last activation, and the last pooled one."""
    return _plain_stages(
        spec,
        shape,
        widths=[[64], [128], [256, 256], [512, 512], [512, 512]],
        kernels=[3] * 5,
        pooled={0, 1, 2, 3, 4},
    )


def _plain_stages(spec: NetworkSpec, shape: Shape, *, widths: list[list[int]], kernels: list[int], pooled: set[int]) -> Stages:
    """Return stages of (convolution, normalisation, ReLU) for each width, with 2×2 max pooling after the stages in `pooled`."""
    stages: Stages = []
    pooling: nn.Module = nn.Identity()
    extra = _padding_to_32(shape)
    for index, (stage_widths, kernel) in enumerate(zip(widths, kernels, strict=True)):
        layers = [pooling]
        for width in stage_widths:
            convolution, shape = _conv(shape, width, kernel, kernel // 2 + extra)
            layers += [convolution, make_norm(spec.norm, shape), make_activation("relu")]
            extra = 0
        stages.append((ConvStage(*layers), shape))
        kind = "max" if index in pooled else "none"
        pooling, shape = make_pooling(kind, shape, keep=1 if index == len(widths) - 1 else 2)
    return [*stages, (pooling, shape)]


def _resnet18_stages(spec: NetworkSpec, shape: Shape) -> Stages:
    return resnet_stages(shape, spec.norm, widths=[64, 128, 256, 512], blocks=2, padding=1 + _padding_to_32(shape))


def _conv(shape: Shape, width: int, kernel: int, padding: int) -> tuple[nn.Conv2d, Shape]:
    """Return a convolution of stride 1 for maps of `shape`, and the shape after it."""
    channels, height, across = shape
    grow = 2 * padding - kernel + 1
    return nn.Conv2d(channels, width, kernel, padding=padding), (width, height + grow, across + grow)


def _dense(inputs: int, width: int) -> nn.Module:
    """Return a hidden layer of ReLU units whose output is an (n, width, 1, 1) map."""
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, width), make_activation("relu"), nn.Unflatten(1, (width, 1, 1)))


def _padding_to_32(shape: Shape) -> int:
    """Return extra padding for the first convolution: 28×28 images become 32×32, as is customary."""
    return 2 if shape[1:] == (28, 28) else 0


_STAGES: dict[str, Callable[[NetworkSpec, Shape], Stages]] = {
    "convnet": _convnet_stages,
    "mlp": _mlp_stages,
    "lenet": _lenet_stages,
    "alexnet": _alexnet_stages,
    "vgg11": _vgg11_stages,
    "resnet18": _resnet18_stages,
}
