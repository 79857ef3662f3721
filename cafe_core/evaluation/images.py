"""Images that networks are trained and tested on, as batches on the device."""

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
    """Between grey levels (n, C, H, W) uint8 and floats that have mean 0 and standard deviation 1 per channel."""

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        """mean, std: per channel, of images scaled to [0, 1]."""
        self.device = device
        self.dtype = dtype
        self._mean, self._std = (torch.tensor(list(values), dtype=dtype, device=device).view(-1, 1, 1) for values in (mean, std))

    def floats(self, levels: Tensor) -> Tensor:
        """Normalised, on the device."""
        return (levels.to(self.device, non_blocking=True).to(self.dtype) / 255 - self._mean) / self._std

    def levels(self, floats: Tensor) -> Tensor:
        """Denormalised, clipped to [0, 1] and rounded to levels 0..255, on the device of `floats`."""
        return (floats * self._std + self._mean).clip(0, 1).mul(255).round().to(torch.uint8)


class Images(Protocol):
    """R labelled images; `rows` (r,) int64 on the CPU picks some of them, each as often as it is named."""

    @property
    def normalisation(self) -> Normalisation:
        """What the images were normalised by."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of each."""

    def __len__(self) -> int:
        """R"""

    def labels(self, rows: Tensor) -> Tensor:
        """(r,) int64 on the device."""

    def normalised(self, rows: Tensor) -> Tensor:
        """(r, C, H, W) on the device."""

    def levels(self, rows: Tensor) -> Tensor:
        """(r, C, H, W) uint8 on the device: what an augmentation of pixels works on."""


class HeldImages:
    """Images that lie on the device as normalised floats: a synthetic set, a few real images."""

    def __init__(self, images: Tensor, labels: Tensor, normalisation: Normalisation) -> None:
        """images: (R, C, H, W), normalised; labels: (R,) int64."""
        self.normalisation = normalisation
        self._images = images.to(normalisation.device, normalisation.dtype)
        self._labels = labels.to(normalisation.device)

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
    """Images that stay where they are, memory-mapped say, and are sent to the device and normalised batch by batch."""

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
