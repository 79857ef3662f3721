"""Decode stored images into training images: multi-formation (IDC, Kim et al., ICML 2022, https://arxiv.org/abs/2205.14959).

A stored image holds f × f tiles. Decoding pads the image at the bottom and right to a multiple of f, cuts it into tiles, and
enlarges each tile to the full side, so ipc stored images of a class give f²·ipc training images.

Enlarging is linear in each axis, x ↦ A x Bᵀ, with the matrices of :func:`enlarging_matrix`. They define the interpolation for the
methods, which differentiate it, and for all readers of a set. This module does not import torch.

    f  factor    (H, W)  side of a stored image    (h, w)  side of a tile
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cafe_core.spec.pool_method import MAX_FACTOR, tile_side

PADDING = 0.5
"""The value of padding, in images of [0, 1]."""


@dataclass(frozen=True)
class Decode:
    """The recipe by which the training images of a set are made from its stored images."""

    factor: int
    """f: a stored image holds f × f tiles."""
    interpolation: str = "bilinear"
    """How a tile is enlarged: "bilinear", with the corners of pixels aligned (`align_corners=False`)."""
    value_range: tuple[float, float] = (0.0, 1.0)
    """Stored values, denormalised, are clipped to this range before they are decoded."""

    @classmethod
    def parse(cls, value: Any) -> Decode:
        """Return the recipe of a JSON object. Raises ValueError if it is not one, or not supported by this version."""
        if not isinstance(value, dict) or set(value) != {"factor", "interpolation", "value_range"}:
            raise ValueError("it must be an object of factor, interpolation and value_range")
        factor, value_range = value["factor"], value["value_range"]
        if type(factor) is not int or not 1 <= factor <= MAX_FACTOR:
            raise ValueError(f"factor must be a whole number from 1 to {MAX_FACTOR}; got {factor!r}")
        if value["interpolation"] != "bilinear":
            raise ValueError(f'interpolation must be "bilinear"; got {value["interpolation"]!r}')
        if value_range != [0.0, 1.0]:
            raise ValueError(f"value_range must be [0, 1]; got {value_range!r}")
        return cls(factor)

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object that :meth:`parse` reads."""
        return asdict(self) | {"value_range": list(self.value_range)}

    @property
    def images_per_stored(self) -> int:
        """Return f², the number of training images that a stored image holds."""
        return self.factor**2

    def decoded(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Decode denormalised images (n, C, H, W) to (n·f², C, H, W): the tiles of image 0 row by row, then those of image 1."""
        n, channels, height, width = images.shape
        h, w = tile_side(height, self.factor), tile_side(width, self.factor)
        clipped = np.clip(images, *self.value_range)
        padding = ((0, 0), (0, 0), (0, h * self.factor - height), (0, w * self.factor - width))
        padded = np.pad(clipped, padding, constant_values=PADDING)
        tiles = padded.reshape(n, channels, self.factor, h, self.factor, w).transpose(0, 2, 4, 1, 3, 5)
        rows, columns = (enlarging_matrix(*sizes).astype(np.float32) for sizes in ((h, height), (w, width)))
        enlarged: NDArray[np.float32] = np.matmul(np.matmul(rows, tiles), columns.T).astype(np.float32, copy=False)
        return enlarged.reshape(-1, channels, height, width)


def enlarging_matrix(tile: int, side: int) -> NDArray[np.float64]:
    """Return A, (side, tile): the bilinear enlargement of `tile` pixels to `side`, one row of weights per pixel of the result.

    Pixel i of the result lies at (i + ½)·tile/side − ½ among the pixels of the tile, as in `torch.nn.functional.interpolate`
    without aligned corners; beyond the outermost pixels their values continue.
    """
    at = np.clip((np.arange(side) + 0.5) * tile / side - 0.5, 0, tile - 1)
    low = np.floor(at).astype(np.int64)
    high = np.minimum(low + 1, tile - 1)
    matrix = np.zeros((side, tile))
    rows = np.arange(side)
    np.add.at(matrix, (rows, low), 1 - (at - low))
    np.add.at(matrix, (rows, high), at - low)
    return matrix
