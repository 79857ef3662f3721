"""Draw mnist.png from mnist.zip: run `python docs/images/draw.py` with the package installed.

mnist.zip holds the ten images that docs/examples/mnist.yaml made, as `GET /v1/jobs/{id}/synthetic?format=zip` returns them:
train/CLASS/0000.png, and so on. The picture is drawn as `preview.png` is.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from cafe_core.synthetic_set.preview import draw_page, plan_page, png_bytes

HERE = Path(__file__).parent


def draw(archive: Path) -> bytes:
    """Return the picture of a set in an archive, grey or colour, as a PNG file."""
    by_class: dict[str, list[np.ndarray]] = {}
    with zipfile.ZipFile(archive) as images:
        for name in sorted(images.namelist()):
            pixels = np.asarray(Image.open(io.BytesIO(images.read(name))))
            by_class.setdefault(Path(name).parent.name, []).append(np.atleast_3d(pixels).transpose(2, 0, 1))
    pixels = np.array(list(by_class.values()))  # (K, ipc, C, H, W)
    page = plan_page(list(by_class), *(pixels.shape[axis] for axis in (1, 3, 4)))
    return png_bytes(draw_page(page, page.select(pixels)), page.description())


if __name__ == "__main__":
    (HERE / "mnist.png").write_bytes(draw(HERE / "mnist.zip"))
