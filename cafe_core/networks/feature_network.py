"""A classifier as a chain of stages, each of which ends in a feature map that can be aligned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import torch
from torch import Tensor, nn

from cafe_core.networks.layers import Shape


class FeatureNetwork(nn.Module):
    """Stages one after the other, then a linear classifier on the last map.

    Aligned map l is the output of stage l, a (n, C_l, H_l, W_l) tensor; what has no height and width (a hidden layer) is
    (n, C, 1, 1). A stage never writes into its input, so a map stays as it is after it was handed out.
    """

    def __init__(self, stages: Sequence[tuple[nn.Module, Shape]], num_classes: int) -> None:
        """`stages`: each stage with the shape (C_l, H_l, W_l) of its map."""
        super().__init__()
        self.stages = nn.ModuleList(stage for stage, _ in stages)
        self.map_shapes: tuple[Shape, ...] = tuple(shape for _, shape in stages)
        self.feature_dim: int = prod(self.map_shapes[-1])
        """D, width of the flattened last map."""
        self.classifier = nn.Linear(self.feature_dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, K) of normalised images (n, C, H, W)."""
        x = _prefer_channels_last(x)
        for stage in self.stages:
            x = stage(x)
        return self.classify(x)

    def classify(self, last_map: Tensor) -> Tensor:
        """Logits (n, K) of the last map (n, C_L, H_L, W_L)."""
        logits: Tensor = self.classifier(last_map.flatten(1))  # (n, D) → (n, K)
        return logits

    def iter_features(self, x: Tensor) -> Iterator[tuple[int, Tensor]]:
        """(l, map l) from early to late, each computed when it is asked for.

        Only the current map is held here: a caller that reduces each map before it takes the next never has two of them
        in memory (where no graph holds them).
        """
        x = _prefer_channels_last(x)
        for index, stage in enumerate(self.stages):
            x = stage(x)
            yield index, x

    def features(self, x: Tensor, layers: Sequence[int] | None = None) -> list[Tensor]:
        """The maps of `layers` (0-based, increasing; None: all), early → late. What follows the last of them is not computed.

        Raises ValueError for a layer that the network does not have.
        """
        wanted = range(len(self.stages)) if layers is None else layers
        if any(not 0 <= layer < len(self.stages) for layer in wanted) or list(wanted) != sorted(set(wanted)):
            raise ValueError(
                f"layers: {list(wanted)} must be increasing and below {len(self.stages)}, the network's feature maps"
            )
        maps: list[Tensor] = []
        if not wanted:
            return maps
        for index, feature_map in self.iter_features(x):
            if index in wanted:
                maps.append(feature_map)
            if index == wanted[-1]:
                break
        return maps


def _prefer_channels_last(x: Tensor) -> Tensor:
    """The same images, laid out so that CPU convolutions are fastest; the layout carries through the network.

    ConvNet-3 at 32×32 in chunks of 16 is about 1.4 times faster than in NCHW. Of one channel, `.contiguous(channels_last)`
    would leave the strides as they are, and the first convolution would answer in NCHW: the strides are made explicit.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():  # the compiler chooses layouts itself
        return x
    n, c, h, w = x.shape
    return x.permute(0, 2, 3, 1).reshape(n, h, w, c).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
