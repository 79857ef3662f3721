"""Make images and archives for the tests of readers."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

RNG = np.random.default_rng(0)


def picture(mode: str = "RGB", size: tuple[int, int] = (7, 6)) -> Image.Image:
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    return Image.fromarray(RNG.integers(0, 256, (size[1], size[0], *channels), dtype=np.uint8))


def pixels_of(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).transpose(2, 0, 1)


def zip_of(folder: Path, prefix: str = "") -> Path:
    """Archive the folder as FOLDER.zip next to it."""
    archive = folder.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, prefix + str(path.relative_to(folder)))
    return archive


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
