"""Read an image folder, or a .zip of one: `train/CLASS/*.png`, optional `test/CLASS/*.png`.

:class:`ImageFolderSource` checks the layout by file names on construction and opens only the first image; the others are
decoded when the store is built. A .zip is never extracted to disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from cafe_core.data.class_store import Images, Labels, chunk_length
from cafe_core.data.file_trees import ImageFiles, is_ignored
from cafe_core.data.pixels import decode, decoded_shape
from cafe_core.errors import DatasetError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
_OTHER_IMAGES = (".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".jp2", ".heic", ".avif", ".jfif", ".npy")
_EXPECTED = "expected train/CLASS/*.png (or .jpg, .jpeg, .bmp, .webp) and, optionally, test/CLASS/*"
_MAX_FILES = 20_000_000
#: A classifier and a JSON response of this many classes are still practical; ImageNet-21k has 21,841.
MAX_CLASSES = 25_000


class ImageFolderSource:
    """Provide an image folder to a class store (implements `class_store.ImageSource`).

    Classes are the folders in train/, sorted by name; images within a class are sorted by name too.
    The constructor raises DatasetError for every error that the names and the first image reveal.
    """

    is_digits = False  # own images are never treated as digits, so augmentation may flip them

    def __init__(self, files: ImageFiles, *, image_size: int | None, channels: Literal[1, 3] | None) -> None:
        self._files, self._image_size, self._channels = files, image_size, channels
        train, test = _split(files)
        self.name = files.label
        self.class_names = sorted(train)
        _check_classes(files.label, self.class_names, train, test)
        self._train = [sorted(train[name]) for name in self.class_names]
        self._test = [(file, k) for k, name in enumerate(self.class_names) for file in sorted(test.get(name, ()))]
        self.class_counts = [len(names) for names in self._train]
        self.test_count = len(self._test)
        self._first = self._train[0][0]
        self.shape = decoded_shape(
            files.read(self._first), f"{files.label}: {self._first}", image_size=image_size, channels=channels
        )

    def train(self, k: int) -> Iterator[Images]:
        """Yield class k's images. Raises DatasetError at the first that cannot be decoded or does not match the others."""
        step = chunk_length(self.shape)
        for start in range(0, len(self._train[k]), step):
            yield np.stack([self._checked(name) for name in self._train[k][start : start + step]])

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


def _split(files: ImageFiles) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return the images of train/ and of test/ by class, {class: [file...]}. Raises DatasetError for other layouts."""
    splits: dict[str, dict[str, list[str]]] = {}
    outside: list[str] = []
    count = 0
    for name in files.names():
        if is_ignored(name):
            continue
        count += 1
        if count > _MAX_FILES:
            raise DatasetError(f"{files.label} has more than {_MAX_FILES} files")
        parts = name.removesuffix("/").split("/")
        suffix = parts[-1][parts[-1].rfind(".") :].lower()  # faster than Path.suffix for millions of files
        is_image = suffix in SUFFIXES and not name.endswith("/")
        if parts[0] not in ("train", "test"):
            if is_image:
                outside.append(name)
            continue
        split = splits.setdefault(parts[0], {})
        if len(parts) >= 3 or (len(parts) == 2 and name.endswith("/")):
            split.setdefault(parts[1], [])
        if is_image:
            if len(parts) != 3:
                raise DatasetError(f"{files.label}: {name} is not directly in a class's folder; {_EXPECTED}")
            split[parts[1]].append(name)
        elif suffix in _OTHER_IMAGES:
            raise DatasetError(f"{files.label}: {name} has an unsupported format; convert it to one of {', '.join(SUFFIXES)}")
    if "train" not in splits:
        found = f"; found {outside[0]}" if outside else "; it holds no images" if not splits else ""
        raise DatasetError(f"{files.label} has no train/ folder{found}; {_EXPECTED}")
    if outside:
        raise DatasetError(f"{files.label}: {outside[0]} is neither in train/ nor in test/; move or remove it")
    if "test" in splits and not any(splits["test"].values()):
        raise DatasetError(f"{files.label}: test/ holds no images; fill it or remove it")
    return splits["train"], splits.get("test", {})


def _check_classes(label: str, names: list[str], train: dict[str, list[str]], test: dict[str, list[str]]) -> None:
    if not names:
        raise DatasetError(f"{label}: train/ holds no class folders; {_EXPECTED}")
    if len(names) > MAX_CLASSES:
        raise DatasetError(f"{label} has {len(names)} classes; the limit is {MAX_CLASSES}")
    for name in names:
        if not name.isprintable():
            raise DatasetError(f"{label}: the class folder {name!r} has a name that cannot be printed; rename it")
        if not train[name]:
            raise DatasetError(f"{label}: class {name!r} has no images in train/; add some ({', '.join(SUFFIXES)}) or remove it")
    if len(names) == 1:
        raise DatasetError(f"{label} has only one class ({names[0]!r}); at least 2 are needed")
    for name in sorted(test):
        if name not in train:
            raise DatasetError(f"{label}: class {name!r} is in test/ and not in train/; the classes of test/ must be in train/")
