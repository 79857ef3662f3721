"""Store real images by class as uint8; workers memory-map them.

::

    STORE/
        train-images.u8     (N, C, H, W) uint8, class 0's images first; class k starts at sum(class_counts[:k])
        test-images.u8      (M, C, H, W) uint8, in the source's order
        test-labels.i64     (M,) little-endian int64
        info.json           DatasetInfo; written last: a directory without it is not a store

A worker that reads only its own classes pages in only those. This module does not import torch, because the API
reads `info`.
Files are written with plain writes rather than through a memory map, so a full disk raises OSError instead of SIGBUS.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from cafe_core.data.image_source import ArraySource, Images, ImageSource, Labels
from cafe_core.errors import DatasetError, DiskFullError
from cafe_core.files import write_atomically
from cafe_core.spec.dataset import DatasetInfo, DatasetNote
from cafe_core.text import counted

#: Part of every store's cache key: increase it when the file format changes.
FORMAT_VERSION = 1

_TRAIN_IMAGES, _TEST_IMAGES, _TEST_LABELS, _INFO = "train-images.u8", "test-images.u8", "test-labels.i64", "info.json"
#: Lower bound of a channel's std, one grey level: a constant channel would otherwise be divided by zero.
_MIN_STD = 1 / 255


class ClassStore:
    """A built store. Its arrays are read-only memory maps; index them with a list to get a writable copy."""

    def __init__(self, path: Path, info: DatasetInfo) -> None:
        self.path = path
        self.info = info
        self._offsets = np.concatenate([[0], np.cumsum(info.class_counts)])
        self.train_images: Images = _map_images(path / _TRAIN_IMAGES, int(self._offsets[-1]), info.shape)
        """(N, C, H, W) uint8, memory-mapped: class 0's images first."""
        self.test_images: Images = _map_images(path / _TEST_IMAGES, info.test_count, info.shape)
        """(M, C, H, W) uint8, memory-mapped."""
        self.test_labels: Labels = np.fromfile(path / _TEST_LABELS, dtype="<i8").astype(np.int64)
        """(M,) int64."""
        if len(self.test_labels) != info.test_count:
            raise DatasetError(f"class store {path}: {_TEST_LABELS} is damaged; delete the store to rebuild it")

    @classmethod
    def open(cls, path: Path) -> ClassStore:
        """Open the store at `path`. Raises DatasetError if there is none or its files do not match its info.json."""
        try:
            info = DatasetInfo.model_validate_json((path / _INFO).read_bytes())
            return cls(path, info)
        except FileNotFoundError as error:
            raise DatasetError(
                f"class store {path}: {Path(error.filename).name} is missing: the build was not completed"
            ) from error
        except ValidationError as error:
            raise DatasetError(f"class store {path}: info.json is damaged; delete the store to rebuild it") from error

    def images(self, k: int) -> Images:
        """Return class k's training images, (n_k, C, H, W) uint8, as a view of the memory map."""
        if not 0 <= k < self.info.num_classes:
            raise IndexError(f"class {k} of {self.info.num_classes}")
        return self.train_images[self._offsets[k] : self._offsets[k + 1]]


def _map_images(path: Path, count: int, shape: tuple[int, int, int]) -> Images:
    """Map a file as (count, *shape) after checking its size, because reading past its end would raise SIGBUS."""
    expected = count * int(np.prod(shape))
    if path.stat().st_size != expected:
        raise DatasetError(
            f"class store {path.parent}: {path.name} has {path.stat().st_size} bytes, expected {expected}; "
            "delete the store to rebuild it"
        )
    if count == 0:  # an empty file cannot be mapped
        return np.empty((0, *shape), dtype=np.uint8)
    return np.memmap(path, dtype=np.uint8, mode="r", shape=(count, *shape))


def build(path: Path, source: ImageSource, *, mean_std: tuple[Sequence[float], Sequence[float]] | None = None) -> ClassStore:
    """Build the store of `source` at `path`, chunk by chunk, in a temporary directory that is renamed into place.

    mean_std: per channel, for images scaled to [0, 1]; measured over the training images if not given (std at least
    1/255). Raises DiskFullError and the errors of `source`, after removing the temporary directory.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        _check_space(temporary, source)
        measured, constant = _write_train(temporary / _TRAIN_IMAGES, source)
        constant += _write_test(temporary, source)
        info = info_of(source, *(mean_std if mean_std is not None else measured))
        info.notes = info.notes + constant_notes(constant)
        write_atomically(temporary / _INFO, info.model_dump_json(indent=2).encode())
        temporary.rename(path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(f"dataset {source.name}: cannot write the class store {path}: {error.strerror}") from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return ClassStore.open(path)


def info_of(source: ImageSource, mean: Sequence[float], std: Sequence[float]) -> DatasetInfo:
    """Describe the dataset of a source. mean, std: per channel, for images scaled to [0, 1]."""
    channels, height, width = source.shape
    return DatasetInfo(
        name=source.name,
        class_names=source.class_names,
        class_counts=source.class_counts,
        test_count=source.test_count,
        channels=channels,
        height=height,
        width=width,
        mean=list(mean),
        std=list(std),
        is_digits=source.is_digits,
        notes=source.notes,
    )


def _check_space(directory: Path, source: ImageSource) -> None:
    needed = (sum(source.class_counts) + source.test_count) * int(np.prod(source.shape))
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise DiskFullError(
            f"dataset {source.name}: the class store needs {needed / 2**20:.0f} MiB, but {directory.parent} has "
            f"{free / 2**20:.0f} MiB free; free some space or set a smaller dataset.image_size"
        )


def count_constant(images: Images) -> int:
    """Return how many of the images (n, C, H, W) have a single colour."""
    levels = images.reshape(*images.shape[:2], -1)
    levels = levels[(levels[:, :, -1] == levels[:, :, 0]).all(axis=1)]  # few images are left, so the next line is fast
    return int((levels == levels[:, :, :1]).all(axis=(1, 2)).sum())


def constant_notes(count: int, suffix: str = "") -> list[DatasetNote]:
    """Return a note if there are images of a single colour. suffix: of the message."""
    return [DatasetNote(code="constant", message=f"found {counted(count, 'image')} of a single colour{suffix}")] if count else []


def _write_train(path: Path, source: ImageSource) -> tuple[tuple[list[float], list[float]], int]:
    """Write the classes in order; return the channels' mean and std, and the number of images of a single colour.

    The mean and std are from histograms, so that they do not depend on the chunks.
    """
    channels = source.shape[0]
    constant = 0
    histogram = np.zeros((channels, 256), dtype=np.int64)
    with path.open("wb") as file:
        for k, expected in enumerate(source.class_counts):
            written = 0
            for chunk in source.train(k):
                assert chunk.dtype == np.uint8
                assert chunk.shape[1:] == source.shape, (chunk.shape, source.shape)
                file.write(np.ascontiguousarray(chunk).data)
                written += len(chunk)
                constant += count_constant(chunk)
                for c in range(channels):
                    histogram[c] += np.bincount(chunk[:, c].ravel(), minlength=256)
            assert written == expected, f"class {k}: {written} images, not {expected}"
        _flush(file)
    return _mean_std(histogram), constant


def _mean_std(histogram: NDArray[np.int64]) -> tuple[list[float], list[float]]:
    """Return mean and std per channel, scaled to [0, 1], from a histogram (C, 256) of grey levels."""
    levels = np.arange(256) / 255
    share = histogram / histogram.sum(axis=1, keepdims=True)
    mean = share @ levels
    std = np.sqrt((share * (levels - mean[:, None]) ** 2).sum(axis=1))
    return mean.tolist(), np.maximum(std, _MIN_STD).tolist()


def _write_test(directory: Path, source: ImageSource) -> int:
    """Write the test images and labels; return the number of images of a single colour."""
    written = constant = 0
    with (directory / _TEST_IMAGES).open("wb") as images_file, (directory / _TEST_LABELS).open("wb") as labels_file:
        for images, labels in source.test():
            assert images.dtype == np.uint8
            assert images.shape == (len(labels), *source.shape)
            images_file.write(np.ascontiguousarray(images).data)
            labels_file.write(np.ascontiguousarray(labels, dtype="<i8").data)
            written += len(labels)
            constant += count_constant(images)
        _flush(images_file)
        _flush(labels_file)
    assert written == source.test_count, f"{written} test images, not {source.test_count}"
    return constant


def _flush(file: Any) -> None:
    """Flush to disk before info.json marks the store as complete."""
    file.flush()
    os.fsync(file.fileno())


def build_from_arrays(
    path: Path,
    *,
    images: Images,
    labels: Labels,
    test_images: Images | None = None,
    test_labels: Labels | None = None,
    name: str = "arrays",
    class_names: list[str] | None = None,
    is_digits: bool = False,
) -> ClassStore:
    """Build a store from valid arrays: images (N, C, H, W) uint8, labels (N,) in 0..K-1, K = max + 1."""
    if (test_images is None) != (test_labels is None):
        raise ValueError("give both test_images and test_labels, or neither")
    source = ArraySource(
        name=name,
        class_names=class_names if class_names is not None else [str(k) for k in range(int(labels.max()) + 1)],
        images=images,
        labels=labels.astype(np.int64),
        test_images=test_images if test_images is not None else images[:0],
        test_labels=test_labels.astype(np.int64) if test_labels is not None else np.zeros(0, dtype=np.int64),
        is_digits=is_digits,
    )
    return build(path, source)
