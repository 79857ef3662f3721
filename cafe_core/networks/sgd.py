"""Implement stochastic gradient descent with momentum and weight decay."""

from __future__ import annotations

from collections.abc import Iterable

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
        self._velocities: list[Tensor] = []

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
        if self._velocities:
            torch._foreach_mul_(self._velocities, self._momentum)
            torch._foreach_add_(self._velocities, gradients)
        else:
            self._velocities = [gradient.clone() for gradient in gradients]
        return self._velocities


def decayed(lr: float, epoch: int, epochs: int) -> float:
    """Return the learning rate of an epoch (0-based): a tenth of `lr` in the second half of `epochs`.

    Half of an odd number of epochs is rounded up, so that a single epoch runs at the full rate.
    """
    return lr if epoch < (epochs + 1) // 2 else lr * 0.1
