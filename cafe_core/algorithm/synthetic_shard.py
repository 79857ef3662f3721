"""Hold the synthetic images of one worker's classes and update them by SGD."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class SyntheticShard:
    """The synthetic images of a class shard. images, momentum: (k·ipc, C, H, W), ordered by class."""

    classes: Sequence[int]
    ipc: int
    images: Tensor
    momentum: Tensor

    def step(self, gradient: Tensor, *, lr: float, momentum: float) -> None:
        """Take a step of SGD with momentum: v ← m·v + g, S ← S − lr·v."""
        self.momentum.mul_(momentum).add_(gradient)
        self.images.sub_(self.momentum, alpha=lr)

    def coast(self, steps: Tensor, *, lr: float, momentum: float) -> None:
        """Take steps[j] steps of SGD with a zero gradient for the j-th class, in closed form.

        n steps of v ← m·v, S ← S − lr·v add up to S ← S − lr·v·m·(1 − mⁿ)/(1 − m) and v ← mⁿ·v.
        """
        decay = torch.pow(torch.tensor(momentum, dtype=torch.float64), steps).repeat_interleave(self.ipc)
        decay = decay.to(self.images).view(-1, 1, 1, 1)
        self.images.sub_(self.momentum * (1 - decay), alpha=lr * momentum / (1 - momentum))
        self.momentum.mul_(decay)
