"""Convert the images of a set to 8-bit pictures, and class names to folder names."""

from __future__ import annotations

import io
import re

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cafe_core.data.file_trees import is_ignored


def as_pixels(images: NDArray[np.float32], mean: NDArray[np.float32], std: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return normalised images (..., C, H, W) as uint8: denormalised, clipped to [0, 1] and scaled to 0..255."""
    scaled = images * std[:, None, None] + mean[:, None, None]
    levels: NDArray[np.uint8] = np.rint(np.clip(scaled, 0, 1) * 255).astype(np.uint8)
    return levels


def as_pil(pixels: NDArray[np.uint8]) -> Image.Image:
    """Return an image (C, H, W) as a grey (C = 1) or RGB (C = 3) picture."""
    return Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def png_bytes(pixels: NDArray[np.uint8]) -> bytes:
    """Encode an image (C, H, W) as PNG."""
    buffer = io.BytesIO()
    as_pil(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def folder_names(class_names: list[str]) -> list[str]:
    """Return a folder name for each class, equal to the class name where possible.

    Characters that are path separators or not allowed on some file system become `_`. Names that the reader of image
    folders would ignore, and names that are equal except for case, are changed.
    """
    taken: set[str] = set()
    names = []
    for k, class_name in enumerate(class_names):
        name = re.sub(r"[^\w .,+()&'-]", "_", class_name)[:80].strip(" .") or "class"
        if is_ignored(name):
            name = f"class_{name}"
        while name.casefold() in taken:  # case-insensitive file systems would merge them
            name = f"{name}_{k}"
        taken.add(name.casefold())
        names.append(name)
    return names
