"""Own data: from a spec's `path` or `id` to the files, and from the files to a source of a class store.

A path is relative to the server's dataset root (or absolute within it) and may not leave it, by `..` or by links.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cafe_core.data.class_store import Images, ImageSource, Labels
from cafe_core.data.image_folder import DirectoryFiles, ImageFolderSource, ZipFiles
from cafe_core.data.npz_file import NpzSource
from cafe_core.data.pixels import fit_batch, fitted_shape
from cafe_core.data.roots import DataRoots
from cafe_core.errors import DatasetError, SpecError
from cafe_core.spec.dataset import DatasetSpec


def absent(dataset_id: str) -> str:
    """What is said of an uploaded dataset that is not there, or not for who asks."""
    return f"dataset {dataset_id} is not here: it was never uploaded to this server, or was deleted"


def locate(spec: DatasetSpec, roots: DataRoots) -> Path:
    """The resolved file or folder of a spec with `path` or `id`.

    Raises SpecError (loc `dataset.path`) for a path outside the dataset root, DatasetError where there is nothing.
    """
    if spec.id is not None:
        for name in ("data.zip", "data.npz"):
            if (roots.uploads / spec.id / name).is_file():
                return (roots.uploads / spec.id / name).resolve()
        raise DatasetError(absent(spec.id))
    assert spec.path is not None
    path = within_root(spec.path, roots, loc="dataset.path")
    if path is None:
        raise DatasetError(f"dataset.path: there is no {spec.path!r} under the server's dataset root")
    return path


def within_root(text: str, roots: DataRoots, *, loc: str) -> Path | None:
    """The resolved file or folder under the dataset root that `text`, the value of the field `loc`, names; None: there is none.

    Raises SpecError for a path outside the root.
    """
    outside = SpecError(f"{text!r} is not a path under the server's dataset root", loc=loc)
    try:
        root = roots.datasets.resolve()
        path = (root / text).resolve()
        if not path.is_relative_to(root):  # before asking whether it exists: outside the root that is nobody's business
            raise outside
        return path if path.exists() else None
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, a loop of links, unpaired surrogates
        raise outside from error


def read(spec: DatasetSpec, roots: DataRoots) -> ImageSource:
    """The source behind a spec with `path` or `id`, its layout and labels checked, its pixels not yet read.

    Raises SpecError and DatasetError as the readers do.
    """
    path, label = locate(spec, roots), spec.path or spec.id or ""
    if path.is_dir():
        files = DirectoryFiles(path, label, roots.datasets)
        return ImageFolderSource(files, image_size=spec.image_size, channels=spec.channels)
    if not path.is_file():  # opening a pipe or a device may never end
        raise DatasetError(f"{label} is neither a file nor a folder")
    if path.suffix.lower() == ".zip":
        return ImageFolderSource(ZipFiles(path, label), image_size=spec.image_size, channels=spec.channels)
    if path.suffix.lower() == ".npz":
        roots.cache.mkdir(parents=True, exist_ok=True)
        return fitted(NpzSource(path, label, scratch=roots.cache), spec)
    raise DatasetError(f"{label} is neither an image folder nor a .zip nor an .npz file")


def identity(spec: DatasetSpec, roots: DataRoots) -> list[tuple[str, int, int]]:
    """(path, size, mtime in ns) of every file behind the spec: it changes when the data do."""
    path = locate(spec, roots)
    if path.is_dir():
        names = [name for name in DirectoryFiles(path, str(spec.path), roots.datasets).names() if not name.endswith("/")]
        files = [path, *(path / name for name in sorted(names))]
    else:
        files = [path]
    try:
        stats = [(str(file), file.stat()) for file in files]
    except OSError as error:
        raise DatasetError(f"{spec.path or spec.id}: {error.filename} cannot be read ({error.strerror})") from error
    return [(name, file_stat.st_size, file_stat.st_mtime_ns) for name, file_stat in stats]


class _Fitted:
    """A source of arrays with its images resized and converted as the spec asks."""

    def __init__(self, source: ImageSource, image_size: int | None, channels: int | None) -> None:
        self._source, self._image_size, self._channels = source, image_size, channels
        self.name, self.class_names, self.class_counts = source.name, source.class_names, source.class_counts
        self.test_count, self.is_digits = source.test_count, source.is_digits
        self.shape = fitted_shape(source.shape, image_size, channels)

    def train(self, k: int) -> Iterator[Images]:
        for images in self._source.train(k):
            yield fit_batch(images, self._image_size, self._channels)

    def test(self) -> Iterator[tuple[Images, Labels]]:
        for images, labels in self._source.test():
            yield fit_batch(images, self._image_size, self._channels), labels


def fitted(source: ImageSource, spec: DatasetSpec) -> ImageSource:
    """`source` with the spec's image_size and channels applied (fit_batch), or itself where they change nothing."""
    if fitted_shape(source.shape, spec.image_size, spec.channels) == source.shape:
        return source
    return _Fitted(source, spec.image_size, spec.channels)
