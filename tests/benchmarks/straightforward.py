"""A straightforward outer step: the baseline of the benchmark, and an independent check of its numbers.

Like a single-file research script, it builds one graph through the synthetic and real images of all classes, computes
gradients for the network's weights as well, and uses float32 and torch's own modules.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvNet3(nn.Module):
    """3 × (3×3 convolution of 128, instance norm, ReLU, 2×2 average pooling), then linear."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(inputs, 128, 3, padding=1), nn.GroupNorm(128, 128), nn.ReLU())
            for inputs in (channels, 128, 128)
        )
        self.pool = nn.AvgPool2d(2)
        self.classifier = nn.Linear(128 * 4 * 4, num_classes)

    def features(self, x: Tensor) -> list[Tensor]:
        maps = []
        for block in self.blocks:
            x = block(x)
            maps.append(x)
            x = self.pool(x)
        return [*maps, x]


def outer_step(network: ConvNet3, synthetic: list[Tensor], real: list[Tensor], weights: list[float], beta: float) -> float:
    """Compute L = L_f + β L_d, backpropagate into everything that requires a gradient, and return the loss."""
    loss = torch.zeros(())
    centres, features, labels = [], [], []
    for k, (s, t) in enumerate(zip(synthetic, real, strict=True)):
        maps_s, maps_t = network.features(s), network.features(t)
        for w, a, b in zip(weights, maps_s, maps_t, strict=True):
            loss = loss + w * (a.mean(0) - b.mean(0)).square().sum()
        centres.append(maps_s[-1].mean(0).flatten())
        features.append(maps_t[-1].flatten(1))
        labels.append(torch.full((len(t),), k))
    loss = loss + beta * F.cross_entropy(torch.cat(features) @ torch.stack(centres).T, torch.cat(labels))
    loss.backward()
    return float(loss.detach())
