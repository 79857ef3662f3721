"""Decode stored images differentiably, and compose them of real images; :mod:`cafe_core.synthetic_set.decode` has the recipe."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cafe_core.spec.pool_method import tile_side
from cafe_core.synthetic_set.decode import PADDING, enlarging_matrix


class Formation:
    """The f × f tiles of normalised images of one shape."""

    def __init__(self, factor: int, shape: tuple[int, int, int], mean: Tensor, std: Tensor) -> None:
        """shape: (C, H, W). mean, std: (C,), by which images in [0, 1] were normalised, on the device and in the dtype to use."""
        _, self._height, self._width = shape
        self.factor = factor
        self._h, self._w = tile_side(self._height, factor), tile_side(self._width, factor)
        column = (-1, 1, 1)
        self._padding = ((PADDING - mean) / std).view(column)
        self.mean, self.std = mean.view(column), std.view(column)
        self.low, self.high = (-mean / std).view(column), ((1 - mean) / std).view(column)
        """(C, 1, 1): the normalised values of 0 and 1."""
        self._rows, self._columns = (
            torch.from_numpy(enlarging_matrix(tile, side)).to(mean)
            for tile, side in ((self._h, self._height), (self._w, self._width))
        )

    def pixels(self, normalised: Tensor) -> Tensor:
        """Return images in the range of pixel values, [0, 1]."""
        return normalised * self.std + self.mean

    def normalised(self, pixels: Tensor) -> Tensor:
        """Return the normalised images of pixel values in [0, 1]."""
        return (pixels - self.mean) / self.std

    @property
    def images_per_stored(self) -> int:
        """Return f²."""
        return self.factor**2

    def decode(self, images: Tensor) -> Tensor:
        """Return the training images of stored images: (n, C, H, W) → (n·f², C, H, W), the tiles of an image row by row."""
        if self.factor == 1:
            return images
        n, channels, f = len(images), images.shape[1], self.factor
        if (self._h * f, self._w * f) != (self._height, self._width):
            padded = self._padding.expand(n, channels, self._h * f, self._w * f).clone()
            padded[:, :, : self._height, : self._width] = images
            images = padded
        tiles = images.view(n, channels, f, self._h, f, self._w).permute(0, 2, 4, 1, 3, 5)  # (n, f, f, C, h, w)
        enlarged = self._rows @ tiles @ self._columns.T
        return enlarged.reshape(n * f * f, channels, self._height, self._width)

    def compose(self, images: Tensor) -> Tensor:
        """Return stored images whose tiles are shrunk images: (n·f², C, H, W) → (n, C, H, W)."""
        if self.factor == 1:
            return images
        f, channels = self.factor, images.shape[1]
        small = F.interpolate(images, (self._h, self._w), mode="area")
        grid = small.view(-1, f, f, channels, self._h, self._w).permute(0, 3, 1, 4, 2, 5)
        return grid.reshape(-1, channels, f * self._h, f * self._w)[:, :, : self._height, : self._width].contiguous()
