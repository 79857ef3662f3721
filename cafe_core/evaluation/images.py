"""Load images for training and testing networks, as batches on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Normalisation:
    """Convert between levels (n, C, H, W) uint8 and floats normalised to mean 0 and standard deviation 1 per channel."""

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        """mean, std: per channel, for images scaled to [0, 1]."""
        self.device = device
        self.dtype = dtype
        self._mean, self._std = (torch.tensor(list(values), dtype=dtype, device=device).view(-1, 1, 1) for values in (mean, std))

    def floats(self, levels: Tensor) -> Tensor:
        """Normalise levels on the device."""
        return (levels.to(self.device, non_blocking=True).to(self.dtype) / 255 - self._mean) / self._std

    def levels(self, floats: Tensor) -> Tensor:
        """Denormalise floats, clip to [0, 1] and round to levels 0..255, on the device of `floats`."""
        return (floats * self._std + self._mean).clip(0, 1).mul(255).round().to(torch.uint8)


class Images(Protocol):
    """R labelled images. `rows` (r,) int64 on the CPU selects some of them, with repetition."""

    @property
    def normalisation(self) -> Normalisation:
        """Return the normalisation of the images."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (C, H, W) of each image."""

    def __len__(self) -> int:
        """Return R."""

    def labels(self, rows: Tensor) -> Tensor:
        """Return labels on the device: (r,) int64, or (r, K) probabilities if they are soft."""

    def normalised(self, rows: Tensor) -> Tensor:
        """Return normalised images (r, C, H, W) on the device."""

    def levels(self, rows: Tensor) -> Tensor:
        """Return levels (r, C, H, W) uint8 on the device, for augmentations of pixels."""


class HeldImages:
    """Images kept on the device as normalised floats, for example a synthetic set."""

    def __init__(self, images: Tensor, labels: Tensor, normalisation: Normalisation) -> None:
        """images: (R, C, H, W), normalised; labels: (R,) int64, or (R, K) probabilities."""
        self.normalisation = normalisation
        self._images = images.to(normalisation.device, normalisation.dtype)
        self._labels = labels.to(normalisation.device, normalisation.dtype if labels.is_floating_point() else None)

    @property
    def shape(self) -> tuple[int, int, int]:
        """See :class:`Images`."""
        _, channels, height, width = self._images.shape
        return channels, height, width

    def __len__(self) -> int:
        return len(self._images)

    def labels(self, rows: Tensor) -> Tensor:
        """See :class:`Images`."""
        return self._labels[self._sent(rows)]

    def normalised(self, rows: Tensor) -> Tensor:
        """See :class:`Images`."""
        return self._images[self._sent(rows)]

    def levels(self, rows: Tensor) -> Tensor:
        """See :class:`Images`."""
        return self._levels[self._sent(rows)]

    @cached_property
    def _levels(self) -> Tensor:
        return self.normalisation.levels(self._images)

    def _sent(self, rows: Tensor) -> Tensor:
        return rows.to(self.normalisation.device, non_blocking=True)


@dataclass(frozen=True)
class StoredImages:
    """Images that are transferred to the device and normalised batch by batch, for example from a memory map."""

    pixels: NDArray[np.uint8]
    """(R, C, H, W)"""
    classes: NDArray[np.int64]
    """(R,)"""
    normalisation: Normalisation

    @property
    def shape(self) -> tuple[int, int, int]:
        """See :class:`Images`."""
        _, channels, height, width = self.pixels.shape
        return channels, height, width

    def __len__(self) -> int:
        return len(self.pixels)

    def labels(self, rows: Tensor) -> Tensor:
        """See :class:`Images`."""
        return torch.from_numpy(self.classes[rows.numpy()]).to(self.normalisation.device, non_blocking=True)

    def normalised(self, rows: Tensor) -> Tensor:
        """See :class:`Images`."""
        return self.normalisation.floats(self.levels(rows))

    def levels(self, rows: Tensor) -> Tensor:
        """See :class:`Images`."""
        picked = np.ascontiguousarray(self.pixels[rows.numpy()])
        return torch.from_numpy(picked).to(self.normalisation.device, non_blocking=True)
