"""Read an .npz dataset: `images` uint8 (N, H, W) or (N, H, W, C), `labels` integers (N,) from 0 to K-1; optional
`test_images` and `test_labels` of the same kind. Write it with `numpy.savez` or `savez_compressed`.

The arrays' headers and the labels are checked on construction. When the store is built, images are unpacked to a scratch
file on disk and memory-mapped, so that they need not fit in memory. Pickles are never read.
Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import mmap
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any, Literal

import numpy as np
from numpy.lib import format as npy_format

from cafe_core.data.archives import READING_ERRORS, open_archive
from cafe_core.data.class_store import ArraySource, Images, Labels, Positions
from cafe_core.data.folder_layout import MAX_CLASSES
from cafe_core.data.pixels import check_side
from cafe_core.errors import DatasetError
from cafe_core.spec.dataset import DatasetNote

_ARRAYS = ("images", "labels", "test_images", "test_labels")
#: Labels are read into memory, also by the API.
_MAX_LABELS = 8 * 2**20
#: An array's header has about a hundred bytes; a longer one is refused.
_MAX_HEADER_BYTES = 1 << 16


@dataclass(frozen=True)
class Header:
    """The content of an array's header."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Return the size of the array in bytes."""
        count = 1
        for side in self.shape:  # Python integers do not overflow, even if the header claims a huge shape
            count *= side
        return count * self.dtype.itemsize


class NpzSource:
    """Provide an .npz file to a class store (implements `class_store.ImageSource`); classes are named "0", "1", ….

    label: name of the file in error messages. scratch: a directory with room for the unpacked images. The constructor
    raises DatasetError for every error except damage in the images' bytes.
    """

    is_digits = False  # own images are never treated as digits, so augmentation may flip them

    def __init__(self, path: Path, label: str, scratch: Path) -> None:
        self.name = label
        self.notes: list[DatasetNote] = []
        self._scratch = scratch
        try:
            self._zip = open_archive(path)
        except READING_ERRORS as error:
            raise DatasetError(f"{label} is not a readable .npz file ({error}); write it again with numpy.savez") from error
        self._headers = {name: self._header(name) for name in self._array_names()}
        self.shape = self._image_shape("images")
        self._labels = self._read_labels("labels", of="images")
        self.class_counts = self._counts()
        self.class_names = [str(k) for k in range(len(self.class_counts))]
        self._test_labels = self._read_test_labels()
        self.test_count = len(self._test_labels)

    def _error(self, message: str) -> DatasetError:
        return DatasetError(f"{self.name}: {message}")

    def _array_names(self) -> list[str]:
        names = [info.filename.removesuffix(".npy") for info in self._zip.infolist()]
        for name in names:
            if name not in _ARRAYS:
                raise self._error(f"unknown array {name!r}; an .npz dataset has {', '.join(_ARRAYS)}")
        for name in _ARRAYS[:2]:
            if name not in names:
                raise self._error(f"array {name!r} is missing; an .npz dataset has images and labels")
        if ("test_images" in names) != ("test_labels" in names):
            raise self._error("test_images and test_labels go together; one of them is missing")
        if len(set(names)) != len(names):
            raise self._error("an array is in the file twice; write it again with numpy.savez")
        return names

    # -- headers

    def _header(self, name: str) -> Header:
        try:
            with self._zip.open(f"{name}.npy") as member:
                header = read_header(member)
                data_bytes = self._zip.getinfo(f"{name}.npy").file_size - member.tell()
        except READING_ERRORS as error:
            raise self._error(f"array {name!r} is damaged ({error}); write the file again with numpy.savez") from error
        if header.dtype.hasobject:
            raise self._error(f"array {name!r} holds pickled Python objects, which are never read; save it with a numeric dtype")
        if header.nbytes != data_bytes:
            raise self._error(f"array {name!r} has {data_bytes} bytes, but its shape {header.shape} needs {header.nbytes}")
        return header

    def _image_shape(self, name: str) -> tuple[int, int, int]:
        """Return (C, H, W) of the array's images."""
        header = self._headers[name]
        if header.dtype != np.uint8:
            raise self._error(
                f"{name} is {header.dtype}; it must be uint8, levels 0 to 255 (e.g. (x * 255).round().astype('uint8'))"
            )
        if len(header.shape) not in (3, 4):
            raise self._error(f"{name} has shape {header.shape}; it must be N×H×W or N×H×W×C")
        n, height, width = header.shape[:3]
        channels = header.shape[3] if len(header.shape) == 4 else 1
        if n <= 0:
            raise self._error(f"{name} is empty")
        if channels not in (1, 3):
            hint = "; move the channels to the end" if height in (1, 3) else ""
            raise self._error(f"{name} has {channels} channels (its last axis); it must have 1 or 3{hint}")
        check_side(f"{self.name}: {name}", height, width)
        return channels, height, width

    # -- labels

    def _read_labels(self, name: str, *, of: str) -> Labels:
        """Return non-negative labels (n,) int64, one per image of the array `of`."""
        header = self._headers[name]
        if header.dtype.kind not in "iu":
            raise self._error(f"{name} is {header.dtype}; it must hold integers, 0 to K-1")
        if header.shape != self._headers[of].shape[:1]:
            raise self._error(f"{name} has shape {header.shape}; {of} needs ({self._headers[of].shape[0]},)")
        if header.shape[0] > _MAX_LABELS:
            raise self._error(f"{name} has {header.shape[0]} labels; the limit is {_MAX_LABELS}")
        with self._unpacking(name) as member:
            raw = member.read(header.nbytes)  # read() without a size would unpack everything first
            if len(raw) != header.nbytes:
                raise EOFError(f"it ends after {len(raw)} of {header.nbytes} bytes")
        labels = np.frombuffer(raw, dtype=header.dtype)
        limit = len(labels) if of == "images" else len(self.class_counts)
        bad = np.flatnonzero((labels < 0) | (labels >= limit))
        if len(bad):
            value = labels[bad[0]]
            if value < 0:
                raise self._error(f"{name}[{bad[0]}] is {value}; labels count from 0")
            if of == "images":  # more classes than images, so a class is empty
                raise self._error(f"{name}[{bad[0]}] is {value}, with {len(labels)} images; labels must be 0 to K-1 without gaps")
            raise self._error(f"{name}[{bad[0]}] is {value}; labels has the classes 0 to {len(self.class_counts) - 1}")
        return labels.astype(np.int64)

    def _counts(self) -> list[int]:
        classes = int(self._labels.max()) + 1
        if classes > MAX_CLASSES:
            raise self._error(f"labels go up to {classes - 1}; the limit is {MAX_CLASSES} classes")
        counts: list[int] = np.bincount(self._labels).tolist()
        for k, count in enumerate(counts):
            if count == 0:
                raise self._error(
                    f"class {k} has no images, but labels go up to {len(counts) - 1}; number the classes without gaps"
                )
        if len(counts) == 1:
            raise self._error("labels has only one class (0); at least 2 are needed")
        return counts

    def _read_test_labels(self) -> Labels:
        if "test_images" not in self._headers:
            return np.zeros(0, dtype=np.int64)
        shape = self._image_shape("test_images")
        if shape != self.shape:
            raise self._error(f"test_images are {shape} (C, H, W), images are {self.shape}; they must have the same shape")
        return self._read_labels("test_labels", of="test_images")

    # -- images

    def train(self, k: int, chosen: Positions | None = None) -> Iterator[Images]:
        """Yield class k's images. Raises DatasetError if the file's bytes are damaged."""
        return self._arrays.train(k, chosen)

    def test(self) -> Iterator[tuple[Images, Labels]]:
        """Yield the test images and labels. Raises DatasetError if the file's bytes are damaged."""
        return self._arrays.test()

    @cached_property
    def _arrays(self) -> ArraySource:
        images = self._map("images")
        test_images = self._map("test_images") if self.test_count else images[:0]
        return ArraySource(self.name, self.class_names, images, self._labels, test_images, self._test_labels)

    def _map(self, name: str) -> Images:
        """Unpack an array to an unnamed scratch file and map it as (N, C, H, W); the file is deleted with the mapping."""
        header = self._headers[name]
        free = shutil.disk_usage(self._scratch).free
        if header.nbytes > free:
            raise self._error(f"{name} unpacks to {header.nbytes} bytes, but {self._scratch} has {free} free")
        with tempfile.TemporaryFile(dir=self._scratch) as scratch:
            with self._unpacking(name) as member:
                shutil.copyfileobj(member, scratch, 2**20)
            scratch.flush()
            stored: Literal["F", "C"] = "F" if header.fortran_order else "C"
            mapped = mmap.mmap(scratch.fileno(), header.nbytes, access=mmap.ACCESS_READ)
            array: Images = np.ndarray(header.shape, dtype=np.uint8, buffer=mapped, order=stored)
        return array.transpose(0, 3, 1, 2) if array.ndim == 4 else array[:, None]

    @contextmanager
    def _unpacking(self, name: str) -> Iterator[IO[bytes]]:
        """Open the array's bytes after its header; zipfile checks the CRC at their end."""
        try:
            with self._zip.open(f"{name}.npy") as member:
                read_header(member)
                yield member
        except READING_ERRORS as error:
            raise self._error(f"array {name!r} cannot be unpacked ({error}); write the file again with numpy.savez") from error


def read_header(member: IO[bytes]) -> Header:
    """Read an array's header. Raises ValueError if it is invalid, RecursionError or MemoryError if it is nested too deeply."""
    bounded = _HeaderBounded(member)
    version = npy_format.read_magic(bounded)
    read = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"format version {version}")
    try:
        return Header(*read(bounded))
    except (TypeError, SyntaxError, TokenError) as error:  # numpy does not catch these errors of its parsers
        raise ValueError(f"its header does not describe an array ({error})") from error


class _HeaderBounded:
    """A reader that limits a header's claimed length, because numpy allocates that many bytes before checking it."""

    def __init__(self, member: IO[bytes]) -> None:
        self._member = member

    def read(self, size: int = -1, /) -> bytes:
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise ValueError(f"its header has {size} bytes; the limit is {_MAX_HEADER_BYTES}")
        return self._member.read(size)
