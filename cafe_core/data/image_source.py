"""Define what a class store is built from: labelled images, read in chunks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cafe_core.spec.dataset import DatasetNote

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]
Positions = NDArray[np.int64]
"""Positions of images within their class."""
_CHUNK_BYTES = 16 * 2**20


class ImageSource(Protocol):
    """Labelled images to build a store from, read in chunks so that they need not fit in memory."""

    @property
    def name(self) -> str:
        """Return the name, as in `DatasetInfo.name`."""

    @property
    def class_names(self) -> list[str]:
        """Return the K class names."""

    @property
    def class_counts(self) -> list[int]:
        """Return the number of training images of each class."""

    @property
    def test_count(self) -> int:
        """Return M, the number of test images; 0 without a test set."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (C, H, W), the shape of every image."""

    @property
    def is_digits(self) -> bool:
        """Return `DatasetInfo.is_digits`."""

    @property
    def notes(self) -> list[DatasetNote]:
        """Return `DatasetInfo.notes`; complete once all images were read."""

    def train(self, k: int, chosen: Positions | None = None) -> Iterator[Images]:
        """Yield class k's training images, or those at the positions `chosen`, in chunks (n, C, H, W), in a fixed order."""

    def test(self) -> Iterator[tuple[Images, Labels]]:
        """Yield the test images and labels in chunks (n, C, H, W), (n,), in a fixed order."""


@dataclass(frozen=True)
class ArraySource:
    """Arrays of images, in memory or memory-mapped.

    `images` is (N, C, H, W) uint8 and may be any view, for example a transposed channels-last array; `labels` (N,) in 0..K-1.
    """

    name: str
    class_names: list[str]
    images: Images
    labels: Labels
    test_images: Images
    test_labels: Labels
    is_digits: bool = False
    notes: list[DatasetNote] = field(default_factory=list)

    @property
    def class_counts(self) -> list[int]:
        counts: list[int] = np.bincount(self.labels, minlength=len(self.class_names)).tolist()
        return counts

    @property
    def test_count(self) -> int:
        return len(self.test_images)

    @property
    def shape(self) -> tuple[int, int, int]:
        _, c, h, w = self.images.shape
        return c, h, w

    def train(self, k: int, chosen: Positions | None = None) -> Iterator[Images]:
        """Yield class k's images in the array's order."""
        rows = np.flatnonzero(self.labels == k)
        if chosen is not None:
            rows = rows[chosen]
        step = chunk_length(self.shape)
        for start in range(0, len(rows), step):
            yield self.images[rows[start : start + step]]

    def test(self) -> Iterator[tuple[Images, Labels]]:
        """Yield the test images in the array's order."""
        step = chunk_length(self.shape)
        for start in range(0, len(self.test_images), step):
            yield self.test_images[start : start + step], self.test_labels[start : start + step]


def chunk_length(shape: tuple[int, int, int]) -> int:
    """Return how many images of `shape` make a chunk of about 16 MiB; at least 1."""
    return max(1, _CHUNK_BYTES // int(np.prod(shape)))
