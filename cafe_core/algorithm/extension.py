"""Learn the images of some classes only, and keep those of the others: the growth of a finished set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Extension:
    """The classes to learn, and what the finished set determines."""

    learned: Sequence[int]
    """Increasing, at least one."""
    kept: Tensor | None
    """(K·ipc, C, H, W) on the CPU: the images of the other classes; those of `learned` are ignored. Only rank 0 needs them."""
    mean: list[float]
    """Mean per channel, with which all images are normalised."""
    std: list[float]

    def with_kept_images(self, learned: Tensor) -> Tensor:
        """Return the images of all classes, (K·ipc, C, H, W) on the CPU. learned: (|learned|·ipc, C, H, W)."""
        assert self.kept is not None
        return self._filled(self.kept.to(learned.dtype, copy=True), learned)

    def with_zeros(self, learned: Tensor, num_classes: int) -> Tensor:
        """Return rows of all classes, (K·m, …) on the CPU, which are zeros for the kept ones. learned: (|learned|·m, …)."""
        per_class = len(learned) // len(self.learned)
        return self._filled(learned.new_zeros(num_classes * per_class, *learned.shape[1:], device="cpu"), learned)

    def _filled(self, of_all: Tensor, learned: Tensor) -> Tensor:
        per_class = len(learned) // len(self.learned)
        by_class = torch.unflatten(of_all, 0, (-1, per_class))  # a view
        by_class[torch.tensor(self.learned)] = torch.unflatten(learned.cpu(), 0, (-1, per_class))
        return of_all
