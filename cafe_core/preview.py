"""Pictures of image sets, for people: a row a class, enlarged so that small images can be seen."""

from __future__ import annotations

import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, PngImagePlugin

_MAX_COLUMNS, _MAX_ROWS = 20, 100
_MAX_WIDTH, _MAX_HEIGHT = 4000, 8000
_MIN_CELL = 48
_GAP = 2
_BACKGROUND, _FOOTER, _TEXT = 255, 20, 60


def grid_png(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG of pixels (K, ipc, C, H, W), C 1 or 3: a row a class, in order.

    Images smaller than 48 pixels are enlarged by a whole factor, each pixel staying a square. At most 20 images of
    a class and 100 classes are shown, fewer where the picture would be larger than 4000×8000; a line below the
    images, and the PNG's description, then say how many of how many.
    """
    classes, per_class, channels, height, width = pixels.shape
    factor = max(1, math.ceil(_MIN_CELL / min(height, width)))
    cell_height, cell_width = height * factor + _GAP, width * factor + _GAP
    rows = max(1, min(classes, _MAX_ROWS, _MAX_HEIGHT // cell_height))
    columns = max(1, min(per_class, _MAX_COLUMNS, _MAX_WIDTH // cell_width))

    shown = pixels[:rows, :columns].transpose(0, 3, 1, 4, 2).repeat(factor, axis=1).repeat(factor, axis=3)  # (r, H', c, W', C)
    cells = np.full((rows, cell_height, columns, cell_width, channels), _BACKGROUND, dtype=np.uint8)
    cells[:, _GAP:, :, _GAP:] = shown
    grid = cells.reshape(rows * cell_height, columns * cell_width, channels)
    description = f"{_share(rows, classes)} classes, {_share(columns, per_class)} images of each"
    cut = rows < classes or columns < per_class
    grid = np.pad(grid, ((0, _FOOTER if cut else _GAP), (0, _GAP), (0, 0)), constant_values=_BACKGROUND)

    image = Image.fromarray(grid[:, :, 0] if channels == 1 else grid)
    if cut:
        ImageDraw.Draw(image).text((_GAP, grid.shape[0] - _FOOTER + 3), description, fill=(_TEXT,) * channels)
    text = PngImagePlugin.PngInfo()
    text.add_text("Description", description)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=text)
    return buffer.getvalue()


def _share(shown: int, all_: int) -> str:
    return str(all_) if shown == all_ else f"{shown} of {all_}"
