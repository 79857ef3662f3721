"""Define a classifier as a chain of stages, each of which outputs a feature map that can be aligned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import torch
from torch import Tensor, nn

from cafe_core.networks.conv_stage import ConvStage
from cafe_core.networks.layers import Shape


class FeatureNetwork(nn.Module):
    """A sequence of stages followed by a linear classifier on the last map.

    Map l is the output of stage l, an (n, C_l, H_l, W_l) tensor; the output of a hidden layer is (n, C, 1, 1). A stage
    never modifies its input, so a returned map keeps its values.
    """

    def __init__(self, stages: Sequence[tuple[nn.Module, Shape]], num_classes: int) -> None:
        """stages: each stage with the shape (C_l, H_l, W_l) of its map."""
        super().__init__()
        self.stages = nn.ModuleList(stage for stage, _ in stages)
        self.map_shapes: tuple[Shape, ...] = tuple(shape for _, shape in stages)
        self.feature_dim: int = prod(self.map_shapes[-1])
        """D, the width of the flattened last map."""
        self.classifier = nn.Linear(self.feature_dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (n, K) of normalised images (n, C, H, W)."""
        for _, last_map in self.iter_features(x, [len(self.stages) - 1]):
            x = last_map
        return self.classify(x)

    def classify(self, last_map: Tensor) -> Tensor:
        """Return logits (n, K) of the last map (n, C_L, H_L, W_L)."""
        logits: Tensor = self.classifier(last_map.flatten(1))  # (n, D) → (n, K)
        return logits

    def iter_features(self, x: Tensor, layers: Sequence[int] | None = None) -> Iterator[tuple[int, Tensor]]:
        """Yield (l, map l) for each of `layers` (increasing; None: all) from early to late, each computed on demand.

        Only the current map is kept here, so a caller that reduces each map before taking the next never has two in memory
        (unless a graph keeps them). On a GPU, the pooled map may be kept, too, if it was computed in the same kernel.
        """
        wanted = range(len(self.stages)) if layers is None else layers
        if not wanted:
            return
        current: Tensor | None = _prefer_channels_last(x)
        pooled: Tensor | None = None  # the current map after the pooling of the next stage, if a kernel has computed it
        on_gpu, last = x.is_cuda, wanted[-1]
        del x
        for index, stage in enumerate(self.stages):
            if on_gpu and isinstance(stage, ConvStage):
                pool = index < last and _begins_with_average(self.stages[index + 1])
                current, pooled = stage.map_and_pooled(current, pooled, keep=index in wanted or not pool, pool=pool)
            else:
                current, pooled = (stage(current) if pooled is None else pooled), None
            if index in wanted:
                assert current is not None
                yield index, current
            if index == last:
                return

    def features(self, x: Tensor, layers: Sequence[int] | None = None) -> list[Tensor]:
        """Return the maps of `layers` (0-based, increasing; None: all) without computing the stages after the last of them.

        Raises ValueError for a layer that the network does not have.
        """
        wanted = range(len(self.stages)) if layers is None else layers
        if any(not 0 <= layer < len(self.stages) for layer in wanted) or list(wanted) != sorted(set(wanted)):
            raise ValueError(
                f"layers must be increasing and below {len(self.stages)}, the number of feature maps; got {list(wanted)}"
            )
        return [feature_map for _, feature_map in self.iter_features(x, wanted)]


def _begins_with_average(stage: nn.Module) -> bool:
    return isinstance(stage[0] if isinstance(stage, ConvStage) else stage, nn.AvgPool2d)


def _prefer_channels_last(x: Tensor) -> Tensor:
    """Return the images in channels-last layout on CPUs, where convolutions are faster; the layout carries through the network.

    ConvNet-3 at 32×32 in chunks of 16 is about 1.4 times faster than in NCHW. For one channel, `.contiguous(channels_last)`
    would keep the strides, and the first convolution would return NCHW, so the strides are set explicitly.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():  # the compiler chooses layouts itself
        return x
    n, c, h, w = x.shape
    return x.permute(0, 2, 3, 1).reshape(n, h, w, c).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
