"""Find the files of a user's own data (a spec's `path` or `id`) and open them as a source for a class store.

A path is relative to the server's dataset root (or absolute within it) and must not leave it through `..` or links. For
`cafe run`, a path may also be relative to the current directory, and lead anywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cafe_core.data.file_trees import DirectoryFiles, ZipFiles
from cafe_core.data.image_folder import ImageFolderSource
from cafe_core.data.image_source import Images, ImageSource, Labels, Positions
from cafe_core.data.npz_file import NpzSource
from cafe_core.data.pixels import fit_batch, fitted_shape
from cafe_core.data.roots import DataRoots
from cafe_core.errors import DatasetError, SpecError
from cafe_core.spec.dataset import DatasetNote, DatasetSpec
from cafe_core.text import counted

#: Part of the cache key of stores of own data: increase it when the same files give other images, classes or notes.
READER_VERSION = 2


def absent(dataset_id: str) -> str:
    """Return the message for an uploaded dataset that does not exist or is not visible to the caller."""
    return f"dataset {dataset_id} does not exist: it was never uploaded to this server, or it was deleted"


def locate(spec: DatasetSpec, roots: DataRoots) -> Path:
    """Return the resolved file or folder of a spec with `path` or `id`.

    Raises SpecError (loc `dataset.path`) for a path outside the dataset root, DatasetError if nothing is there.
    """
    if spec.id is not None:
        for name in ("data.zip", "data.npz"):
            if (roots.uploads / spec.id / name).is_file():
                return (roots.uploads / spec.id / name).resolve()
        raise DatasetError(absent(spec.id))
    assert spec.path is not None
    path = within_root(spec.path, roots, loc="dataset.path")
    if path is None:
        raise DatasetError(f"dataset.path: {missing(spec.path, roots)}")
    return path


def missing(text: str, roots: DataRoots) -> str:
    """Return the message for a path that does not exist."""
    if roots.working_directory is not None:
        return f"there is no {text!r} in {roots.working_directory} or in {roots.datasets}"
    return f"there is no {text!r} under the server's dataset root; put the data there, or upload it"


def within_root(text: str, roots: DataRoots, *, loc: str) -> Path | None:
    """Resolve `text`, the value of field `loc`, under the dataset root (for `cafe run`, also in the working directory).

    Return None if it does not exist. Raises SpecError for a path outside the root.
    """
    outside = SpecError(f"{text!r} is not a path under the server's dataset root; put the data there, or upload it", loc=loc)
    try:
        boundary = roots.boundary.resolve()
        for directory in filter(None, (roots.datasets, roots.working_directory)):
            path = (directory.resolve() / text).resolve()
            if not path.is_relative_to(boundary):  # before exists(), so that paths outside the root cannot be probed
                raise outside
            if path.exists():
                return path
        return None
    except (OSError, RuntimeError, ValueError) as error:  # e.g. a name too long, a symlink loop, unpaired surrogates
        raise outside from error


def read(spec: DatasetSpec, roots: DataRoots, *, sample: bool = False) -> ImageSource:
    """Open the source of a spec with `path` or `id`; check its layout and labels.

    sample: also decode some images of an image folder, to find damaged and unusual ones. Raises SpecError and DatasetError as the
    readers do, and SpecError for a test_fraction that does not fit the data.
    """
    source = _opened(spec, roots)
    if sample and isinstance(source, ImageFolderSource):
        source.check_sample()
    if spec.test_fraction is None:
        return source
    if source.test_count:
        raise SpecError(
            f"{source.name} has a test split of {source.test_count} images; leave test_fraction out", loc="dataset.test_fraction"
        )
    return _WithTestSplit(source, spec.test_fraction)


def _opened(spec: DatasetSpec, roots: DataRoots) -> ImageSource:
    path, label = locate(spec, roots), spec.path or spec.id or ""
    if path.is_dir():
        files = DirectoryFiles(path, label, roots.boundary)
        return ImageFolderSource(files, image_size=spec.image_size, channels=spec.channels)
    if not path.is_file():  # opening a pipe or a device could block forever
        raise DatasetError(f"{label} is neither a file nor a folder")
    if path.suffix.lower() == ".zip":
        return ImageFolderSource(ZipFiles(path, label), image_size=spec.image_size, channels=spec.channels)
    if path.suffix.lower() == ".npz":
        roots.cache.mkdir(parents=True, exist_ok=True)
        return fitted(NpzSource(path, label, scratch=roots.cache), spec)
    raise DatasetError(f"{label} is not an image folder, a .zip or an .npz file")


def identity(spec: DatasetSpec, roots: DataRoots) -> list[tuple[str, int, int]]:
    """Return (path, size, mtime in ns) of every file of the spec, which changes when the data change."""
    path = locate(spec, roots)
    if path.is_dir():
        tree = DirectoryFiles(path, str(spec.path), roots.boundary)
        names = [name for name in tree.names() if not name.endswith("/")]
        files = [path, *map(tree.path, sorted(names))]
    else:
        files = [path]
    try:
        stats = [(str(file), file.stat()) for file in files]
    except OSError as error:
        raise DatasetError(f"{spec.path or spec.id}: {error.filename} cannot be read ({error.strerror})") from error
    return [(name, file_stat.st_size, file_stat.st_mtime_ns) for name, file_stat in stats]


class _WithTestSplit:
    """A source that uses a part of each class's training images as test images."""

    def __init__(self, source: ImageSource, fraction: float) -> None:
        self._source = source
        self.name, self.class_names, self.shape, self.is_digits = source.name, source.class_names, source.shape, source.is_digits
        parts = []
        for name, count in zip(source.class_names, source.class_counts, strict=True):
            if count < 2:
                raise SpecError(
                    f"{source.name}: class {name!r} has only 1 image, so none would be left for training; add images to it or "
                    "leave test_fraction out",
                    loc="dataset.test_fraction",
                )
            parts.append(_split(count, fraction))
        self._kept, self._held = [kept for kept, _ in parts], [held for _, held in parts]
        self.class_counts = [len(kept) for kept in self._kept]
        self.test_count = sum(len(held) for held in self._held)

    @property
    def notes(self) -> list[DatasetNote]:
        total = sum(self._source.class_counts)
        message = f"took {self.test_count} of {counted(total, 'image')} as the test split, class by class (dataset.test_fraction)"
        return [*self._source.notes, DatasetNote(code="split", message=message)]

    def train(self, k: int, chosen: Positions | None = None) -> Iterator[Images]:
        yield from self._source.train(k, self._kept[k] if chosen is None else self._kept[k][chosen])

    def test(self) -> Iterator[tuple[Images, Labels]]:
        for k, held in enumerate(self._held):
            for images in self._source.train(k, held):
                yield images, np.full(len(images), k, dtype=np.int64)


def _split(count: int, fraction: float) -> tuple[Positions, Positions]:
    """Split `count` positions into (kept, held), both in increasing order and with at least one position.

    The order of SHA-256 decides, because a random generator may draw differently in another version of NumPy.
    """
    held_count = min(max(round(fraction * count), 1), count - 1)
    order = sorted(range(count), key=lambda i: hashlib.sha256(f"test split {i}".encode()).digest())
    return np.array(sorted(order[held_count:]), dtype=np.int64), np.array(sorted(order[:held_count]), dtype=np.int64)


class _Fitted:
    """A source whose images are resized and converted as the spec requires."""

    def __init__(self, source: ImageSource, image_size: int | None, channels: int | None) -> None:
        self._source, self._image_size, self._channels = source, image_size, channels
        self.name, self.class_names, self.class_counts = source.name, source.class_names, source.class_counts
        self.test_count, self.is_digits = source.test_count, source.is_digits
        self.shape = fitted_shape(source.shape, image_size, channels)

    @property
    def notes(self) -> list[DatasetNote]:
        return self._source.notes

    def train(self, k: int, chosen: Positions | None = None) -> Iterator[Images]:
        for images in self._source.train(k, chosen):
            yield fit_batch(images, self._image_size, self._channels)

    def test(self) -> Iterator[tuple[Images, Labels]]:
        for images, labels in self._source.test():
            yield fit_batch(images, self._image_size, self._channels), labels


def fitted(source: ImageSource, spec: DatasetSpec) -> ImageSource:
    """Apply the spec's image_size and channels to a source; return the source itself if they change nothing."""
    if fitted_shape(source.shape, spec.image_size, spec.channels) == source.shape:
        return source
    return _Fitted(source, spec.image_size, spec.channels)
