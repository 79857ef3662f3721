"""Hold the synthetic images of one worker's classes and update them by SGD."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class SyntheticShard:
    """The synthetic images of a class shard. images, momentum: (k·ipc, C, H, W), ordered by class."""

    classes: range
    ipc: int
    images: Tensor
    momentum: Tensor

    def step(self, gradient: Tensor, *, lr: float, momentum: float) -> None:
        """Take a step of SGD with momentum: v ← m·v + g, S ← S − lr·v."""
        self.momentum.mul_(momentum).add_(gradient)
        self.images.sub_(self.momentum, alpha=lr)
