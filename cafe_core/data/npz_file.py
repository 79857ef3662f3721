"""Read an .npz dataset: `images` uint8 (N, H, W) or (N, H, W, C), and `labels` (N,); optional `test_images` and `test_labels` of
the same kind, and `class_names`. Write it with `numpy.savez` or `savez_compressed`.

The names that MedMNIST and Keras give to these arrays are read too. Headers and labels are checked on construction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from cafe_core.data.image_source import ArraySource, Images, Labels, Positions
from cafe_core.data.npz_archive import NpzArchive
from cafe_core.data.npz_labels import classes_of, flat_labels, numbered
from cafe_core.data.pixels import check_side
from cafe_core.errors import DatasetError
from cafe_core.spec.dataset import DatasetNote
from cafe_core.text import counted

#: The names of the arrays of images and labels of each split, in lower case. The first of each is the documented one.
_PAIRS = {
    "train": (("images", "labels"), ("train_images", "train_labels"), ("x_train", "y_train"), ("train_x", "train_y"), ("x", "y")),
    "test": (("test_images", "test_labels"), ("x_test", "y_test"), ("test_x", "test_y")),
    "val": (("val_images", "val_labels"), ("x_val", "y_val"), ("val_x", "val_y"), ("x_valid", "y_valid")),
}
_CLASS_NAMES = ("class_names", "label_names", "classes")
_EXPECTED = "an .npz dataset has images and labels (or train_images and train_labels, or x_train and y_train)"
#: Labels are read into memory, also by the API.
_MAX_LABELS, _MAX_LABEL_BYTES = 8 * 2**20, 128 * 2**20
_T = TypeVar("_T")


class NpzSource:
    """Provide an .npz file to a class store (implements `class_store.ImageSource`).

    Classes are named by their labels, or by the array `class_names`. label: name of the file in error messages. scratch: a
    directory with room for the unpacked images. The constructor raises DatasetError for every error except damage in the images'
    bytes.
    """

    is_digits = False  # own images are never treated as digits, so augmentation may flip them

    def __init__(self, path: Path, label: str, scratch: Path) -> None:
        self.name = label
        self._file = NpzArchive(path, label, scratch)
        train, test, val = self._pair("train"), self._pair("test"), self._pair("val")
        if train is None:
            raise self._file.error(f"the training images are missing: {_EXPECTED}; the file has {self._arrays()}")
        self._images, self._test_images = train[0], None
        self.shape = self._image_shape(train[0])
        labels = self._read_labels(train[1], of=train[0])
        names_array, given_names = self._given_names()
        classes = self._checked(classes_of, labels, train[1], given_names)
        self.class_names, self.notes = classes.names, classes.notes()
        if given_names is not None and labels.dtype.kind == "U" and set(given_names) != set(classes.names):
            message = f"ignored {names_array}: the labels are texts, which name the classes"
            self.notes.append(DatasetNote(code="ignored", message=message))
        self._labels = self._checked(numbered, labels, classes, train[1], train[1])
        self.class_counts: list[int] = np.bincount(self._labels).tolist()
        self._test_labels: Labels = np.zeros(0, dtype=np.int64)
        if pair := test or val:
            self._test_images = pair[0]
            self._check_test_shape(pair[0])
            self._test_labels = self._checked(numbered, self._read_labels(pair[1], of=pair[0]), classes, pair[1], train[1])
        self.test_count = len(self._test_labels)
        self.notes += self._notes(names_array, train, test, val)

    def _checked(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """Call a function of `npz_labels`; add the name of the file to its errors."""
        try:
            return function(*arguments)
        except DatasetError as error:
            raise self._file.error(error.message) from error

    # -- names of arrays

    def _pair(self, split: str) -> tuple[str, str] | None:
        """Return the names of the images and labels of a split; None if it has neither. Raises DatasetError for half a pair."""
        names = self._file.names
        whole = [pair for pair in _PAIRS[split] if names.keys() >= set(pair)]
        if len(whole) > 1:
            both = " and ".join(names[pair[0]] for pair in whole)
            raise self._file.error(f"{both} are images of the same split; keep one of them with its labels")
        if whole:
            images, labels = whole[0]
            return names[images], names[labels]
        for pair in _PAIRS[split]:
            for name, other in (pair, pair[::-1]):
                if name in names:
                    raise self._file.error(f"{names[name]} needs an array {other!r}; {_EXPECTED}; the file has {self._arrays()}")
        return None

    def _arrays(self) -> str:
        return ", ".join(self._file.names.values()) or "no arrays"

    def _notes(self, names_array: str | None, *pairs: tuple[str, str] | None) -> list[DatasetNote]:
        """Return notes about the arrays that are not used, given that of names and the pairs of train, test and val."""
        _, test, val = pairs
        notes = []
        if test is not None and val is not None:
            count = counted(self._file.header(val[0]).shape[0], "image")
            notes.append(DatasetNote(code="ignored", message=f"ignored {count} in {val[0]}: {test[0]} is the test split"))
        elif val is not None:
            notes.append(DatasetNote(code="split", message=f"used {val[0]} as the test split"))
        known = {name for pair in pairs if pair is not None for name in pair}
        others = [name for name in self._file.names.values() if name not in known and name != names_array]
        if others:
            message = f"ignored {counted(len(others), 'array')}: {', '.join(others[:5])}{', …' if len(others) > 5 else ''}"
            notes.append(DatasetNote(code="ignored", message=message))
        return notes

    # -- headers

    def _image_shape(self, name: str) -> tuple[int, int, int]:
        """Return (C, H, W) of the array's images."""
        header = self._file.header(name)
        if header.dtype != np.uint8:
            raise self._file.error(
                f"{name} is {header.dtype}; it must be uint8, levels 0 to 255 (e.g. (x * 255).round().astype('uint8'))"
            )
        if len(header.shape) not in (3, 4):
            raise self._file.error(f"{name} has shape {header.shape}; it must be N×H×W or N×H×W×C")
        n, height, width = header.shape[:3]
        channels = header.shape[3] if len(header.shape) == 4 else 1
        if n <= 0:
            raise self._file.error(f"{name} is empty")
        if channels not in (1, 3):
            hint = "; move the channels to the end" if height in (1, 3) else ""
            raise self._file.error(f"{name} has {channels} channels (its last axis); it must have 1 or 3{hint}")
        check_side(f"{self.name}: {name}", height, width)
        return channels, height, width

    def _check_test_shape(self, name: str) -> None:
        shape = self._image_shape(name)
        if shape != self.shape:
            raise self._file.error(
                f"{name} are {shape} (C, H, W), {self._images} are {self.shape}; they must have the same shape"
            )

    # -- labels

    def _read_labels(self, name: str, *, of: str) -> NDArray[Any]:
        """Return the labels (n,), one per image of the array `of`: integers or texts."""
        header, count = self._file.header(name), self._file.header(of).shape[0]
        if header.dtype.kind not in "iubfUS":
            raise self._file.error(f"{name} is {header.dtype}; labels must be whole numbers or the names of classes")
        if len(header.shape) not in (1, 2) or header.shape[0] != count or 0 in header.shape:
            raise self._file.error(f"{name} has shape {header.shape}; {of} needs ({count},), ({count}, 1) or one-hot rows")
        if count > _MAX_LABELS or header.nbytes > _MAX_LABEL_BYTES:
            limits = f"{_MAX_LABELS} labels and {_MAX_LABEL_BYTES} bytes"
            raise self._file.error(f"{name} has {count} labels, {header.nbytes} bytes; the limit is {limits}")
        return self._checked(flat_labels, self._file.read(name), name)

    def _given_names(self) -> tuple[str | None, list[str] | None]:
        """Return the array of the names of the classes, and the names; None if the file has no such array."""
        for name in (self._file.names[lower] for lower in _CLASS_NAMES if lower in self._file.names):
            header = self._file.header(name)
            if header.dtype.kind in "US" and len(header.shape) == 1 and 0 < header.nbytes <= _MAX_LABEL_BYTES:
                return name, list(map(str, self._checked(flat_labels, self._file.read(name), name).tolist()))
            if name.lower() != "classes":  # which often holds the distinct labels, or their number
                raise self._file.error(
                    f"{name} is {header.dtype} of shape {header.shape}; it must hold the names of the classes: texts (K,)"
                )
        return None, None

    # -- images

    def train(self, k: int, chosen: Positions | None = None) -> Iterator[Images]:
        """Yield class k's images. Raises DatasetError if the file's bytes are damaged."""
        return self._mapped.train(k, chosen)

    def test(self) -> Iterator[tuple[Images, Labels]]:
        """Yield the test images and labels. Raises DatasetError if the file's bytes are damaged."""
        return self._mapped.test()

    @cached_property
    def _mapped(self) -> ArraySource:
        images = self._channels_first(self._images)
        test_images = images[:0] if self._test_images is None else self._channels_first(self._test_images)
        return ArraySource(self.name, self.class_names, images, self._labels, test_images, self._test_labels)

    def _channels_first(self, name: str) -> Images:
        """Map an array as (N, C, H, W)."""
        array = self._file.map(name)
        return array.transpose(0, 3, 1, 2) if array.ndim == 4 else array[:, None]
