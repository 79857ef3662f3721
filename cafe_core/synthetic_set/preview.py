"""Pictures of image sets, for people: a row a class, enlarged so that small images can be seen."""

from __future__ import annotations

import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, PngImagePlugin

_MAX_COLUMNS, _MAX_ROWS = 20, 100
_MAX_WIDTH, _MAX_HEIGHT = 2000, 7000
_MIN_CELL = 48
_GAP = 2
_BACKGROUND, _FOOTER, _TEXT = 255, 20, 60


def shown(classes: int, per_class: int, height: int, width: int) -> tuple[int, int]:
    """How many classes, and how many images of each, a picture of images of that size shows: the first ones.

    At most 100 and 20, and fewer where the picture would be larger than 2000×7000 (width×height).
    """
    factor = _factor(height, width)
    rows = min(classes, _MAX_ROWS, _MAX_HEIGHT // (height * factor + _GAP))
    columns = min(per_class, _MAX_COLUMNS, _MAX_WIDTH // (width * factor + _GAP))
    return max(1, rows), max(1, columns)


def grid_png(pixels: NDArray[np.uint8], classes: int, per_class: int) -> bytes:
    """A PNG of pixels (rows, columns, C, H, W), C 1 or 3: a row a class, in order.

    Images smaller than 48 pixels are enlarged by a whole factor, each pixel becoming a square. Where there are more
    classes, or images of a class, than are shown, a line below the images says how many of how many; the PNG's
    description always does.
    """
    rows, columns, channels, height, width = pixels.shape
    factor = _factor(height, width)
    cell_height, cell_width = height * factor + _GAP, width * factor + _GAP
    enlarged = pixels.transpose(0, 3, 1, 4, 2).repeat(factor, axis=1).repeat(factor, axis=3)  # (rows, H', columns, W', C)
    cells = np.full((rows, cell_height, columns, cell_width, channels), _BACKGROUND, dtype=np.uint8)
    cells[:, _GAP:, :, _GAP:] = enlarged
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


def _factor(height: int, width: int) -> int:
    return max(1, math.ceil(_MIN_CELL / min(height, width)))


def _share(part: int, all_: int) -> str:
    return str(all_) if part == all_ else f"{part} of {all_}"
