"""Implement stochastic gradient descent with momentum and weight decay."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


class Sgd:
    """Update parameters in place as `torch.optim.SGD` does, to the same bytes.

    Creating an optimizer of `torch.optim` imports TorchDynamo and SymPy, which takes about three seconds in every new process:
    longer than many workers run in total.
    """

    def __init__(self, parameters: Iterable[Tensor], *, lr: float, momentum: float = 0.0, weight_decay: float = 0.0) -> None:
        self.lr = lr
        """The learning rate of the next step."""
        self._parameters = list(parameters)
        self._momentum = momentum
        self._weight_decay = weight_decay
        self.velocities: list[Tensor] = []
        """v of each parameter, in order; empty before the first step and without momentum."""

    def zero_grad(self) -> None:
        """Discard all gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Take one step: g ← ∇θ + λ·θ; v ← μ·v + g, at first v = g; θ ← θ − lr·v.

        Raises ValueError if a parameter has no gradient.
        """
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        if len(gradients) < len(self._parameters):
            raise ValueError(f"{len(self._parameters) - len(gradients)} of {len(self._parameters)} parameters have no gradient")
        if self._weight_decay:
            gradients = list(torch._foreach_add(gradients, self._parameters, alpha=self._weight_decay))
        torch._foreach_add_(self._parameters, self._accelerated(gradients), alpha=-self.lr)

    def _accelerated(self, gradients: list[Tensor]) -> list[Tensor]:
        """Return the velocities after this step; without momentum, the gradients."""
        if not self._momentum:
            return gradients
        if self.velocities:
            torch._foreach_mul_(self.velocities, self._momentum)
            torch._foreach_add_(self.velocities, gradients)
        else:
            self.velocities = [gradient.clone() for gradient in gradients]
        return self.velocities


@dataclass(frozen=True)
class Decay:
    """A schedule that multiplies the learning rate by `factor` at fractions of all epochs."""

    factor: float
    at: tuple[tuple[int, int], ...]
    """Fractions of the epochs as (numerator, denominator), increasing. They are rounded up to whole epochs."""

    def rate(self, lr: float, epoch: int, epochs: int) -> float:
        """Return the learning rate of `epoch` (0-based) of `epochs`, which starts as `lr`."""
        reached = sum(epoch >= -(-epochs * numerator // denominator) for numerator, denominator in self.at)
        return lr * self.factor**reached


TENTH_AT_HALF = Decay(0.1, ((1, 2),))
"""A tenth in the second half of the epochs (DC, CAFE). A single epoch runs at the full rate."""

FIFTHS_AT_THE_END = Decay(0.2, ((2, 3), (5, 6)))
"""A fifth after two thirds of the epochs, and a fifth of that after five sixths (IDC, DANCE)."""
