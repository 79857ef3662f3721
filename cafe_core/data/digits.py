"""Load scikit-learn's handwritten digits: 1797 grey images of 8×8, which need no download.

They are the images of the 13 test writers in `UCI optdigits <https://archive.ics.uci.edu/dataset/80>`_. They have no official
split, so this module defines one: after a stable sort by class, every fifth image, starting with the first, is a test image.
That gives 1437 training and 360 test images, stratified by class.
"""

from __future__ import annotations

from importlib.metadata import distribution

import numpy as np

from cafe_core.data.image_source import ArraySource

_FILE = "sklearn/datasets/data/digits.csv.gz"
"""In the distribution scikit-learn. A row has the 64 levels of an image, then its class."""


def digits_source() -> ArraySource:
    """Return the digits as uint8, with the levels 0..16 scaled to 0..255."""
    # Read the file of sklearn.datasets.load_digits, because importing that module takes three seconds.
    rows = np.loadtxt(str(distribution("scikit-learn").locate_file(_FILE)), delimiter=",")
    images = np.rint(rows[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    labels = rows[:, -1].astype(np.int64)
    by_class = np.argsort(labels, kind="stable")
    images, labels = images[by_class], labels[by_class]
    is_test = np.arange(len(labels)) % 5 == 0
    return ArraySource(
        name="digits",
        class_names=[str(digit) for digit in range(10)],
        images=images[~is_test],
        labels=labels[~is_test],
        test_images=images[is_test],
        test_labels=labels[is_test],
        is_digits=True,
    )
