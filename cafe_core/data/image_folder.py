"""Read an image folder, or a .zip of one, whose layout :mod:`cafe_core.data.folder_layout` finds.

:class:`ImageFolderSource` checks the layout by file names on construction and opens only the first image; the others are
decoded when the store is built.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np

from cafe_core.data.class_store import Images, Labels, Positions, chunk_length
from cafe_core.data.file_trees import ImageFiles
from cafe_core.data.folder_layout import find_layout
from cafe_core.data.pixels import decode, decoded_shape
from cafe_core.errors import DatasetError


def class_order(names: Iterable[str]) -> list[str]:
    """Return the names sorted, by number if all of them are whole numbers: 0, 1, 2, 10 instead of 0, 1, 10, 2."""
    names = sorted(names)
    if all(name.isascii() and name.isdigit() for name in names):
        names.sort(key=lambda name: (len(name.lstrip("0")), name.lstrip("0")))  # int() refuses more than 4,300 digits
    return names


class ImageFolderSource:
    """Provide an image folder to a class store (implements `class_store.ImageSource`).

    Classes are in the order of :func:`class_order`; images within a class are sorted by name.
    The constructor raises DatasetError for every error that the names and the first image reveal.
    """

    is_digits = False  # own images are never treated as digits, so augmentation may flip them

    def __init__(self, files: ImageFiles, *, image_size: int | None, channels: Literal[1, 3] | None) -> None:
        self._files, self._image_size, self._channels = files, image_size, channels
        layout = find_layout(files)
        self.name, self.notes = files.label, layout.notes
        self.class_names = class_order(layout.train)
        self._train = [sorted(layout.train[name]) for name in self.class_names]
        self._test = [(file, k) for k, name in enumerate(self.class_names) for file in sorted(layout.test.get(name, ()))]
        self.class_counts = [len(names) for names in self._train]
        self.test_count = len(self._test)
        self._first = self._train[0][0]
        self.shape = decoded_shape(
            files.read(self._first), f"{files.label}: {self._first}", image_size=image_size, channels=channels
        )

    def train(self, k: int, chosen: Positions | None = None) -> Iterator[Images]:
        """Yield class k's images. Raises DatasetError at the first that cannot be decoded or does not match the others."""
        names = self._train[k] if chosen is None else [self._train[k][i] for i in chosen]
        step = chunk_length(self.shape)
        for start in range(0, len(names), step):
            yield np.stack([self._checked(name) for name in names[start : start + step]])

    def test(self) -> Iterator[tuple[Images, Labels]]:
        """Yield the test images and labels. Raises DatasetError as :meth:`train` does."""
        step = chunk_length(self.shape)
        for start in range(0, len(self._test), step):
            part = self._test[start : start + step]
            yield np.stack([self._checked(name) for name, _ in part]), np.array([k for _, k in part], dtype=np.int64)

    def _decode(self, name: str) -> Images:
        where = f"{self._files.label}: {name}"
        return decode(self._files.read(name), where, image_size=self._image_size, channels=self._channels)

    def _checked(self, name: str) -> Images:
        """Decode an image and check that its shape matches the first one."""
        image = self._decode(name)
        if image.shape == self.shape:
            return image
        kinds = [f"{w}×{h} {'grey' if c == 1 else 'colour'}" for c, h, w in (image.shape, self.shape)]
        fix = "dataset.channels (1 or 3)" if image.shape[0] != self.shape[0] else "dataset.image_size"
        raise DatasetError(f"{self._files.label}: {name} is {kinds[0]}, {self._first} is {kinds[1]}; set {fix} to convert all")
