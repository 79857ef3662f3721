"""Read trees of files: a directory, or a .zip archive, which is never extracted to disk."""

from __future__ import annotations

import os
import stat
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Protocol

from cafe_core.data.archives import READING_ERRORS, content, member_name, open_archive
from cafe_core.data.image_error import ImageError
from cafe_core.errors import DatasetError, SpecError
from cafe_core.text import printable

#: A file is read into memory, also by the API. A losslessly compressed image of 45 million pixels fits.
_MAX_FILE_BYTES = 64 * 2**20
_MAX_NAME_LENGTH = 4096  # that of paths on Linux
#: Limits on folders. A few folders whose links lead to one another can have millions of paths.
_MAX_FILES, _MAX_LINKS_TO_FOLDER = 20_000_000, 1000
#: Limits against decompression bombs: deflate reaches about 1030 to 1, but images are compressed already.
_MAX_RATIO, _RATIO_FROM_BYTES = 200, 16 * 2**20


class ImageFiles(Protocol):
    """A tree of files in a directory or an archive."""

    label: str
    """Name of the tree in error messages."""

    def names(self) -> Iterator[str]:
        """Yield every path in the tree with `/` as separator; directories end with `/`."""

    def read(self, name: str) -> bytes:
        """Return a file's content."""


class DirectoryFiles:
    """Files of a directory. Links must not lead out of `root`. Bytes of names that are not UTF-8 become escapes."""

    def __init__(self, path: Path, label: str, root: Path) -> None:
        self.label = label
        self._names_on_disk: dict[str, str] = {}
        """The names that differ from those that :meth:`names` yields."""
        self._path, self._root = path, root.resolve()

    def names(self) -> Iterator[str]:
        """Yield paths in sorted order.

        Raises SpecError for a link out of the root; DatasetError if a folder cannot be listed, two names are shown equally, or
        there are too many paths.
        """
        for count, on_disk in enumerate(self._walk(self._path, "", frozenset({self._path.resolve()}), Counter())):
            if count >= _MAX_FILES:
                raise DatasetError(f"{self.label} has more than {_MAX_FILES} files and folders; split it")
            name = printable(on_disk)
            if "\\" in name and self._names_on_disk.setdefault(name, on_disk) != on_disk:  # escapes have a backslash
                raise DatasetError(f"{self.label}: two names are both shown as {name}, one of them is not UTF-8; rename one")
            yield name

    def path(self, name: str) -> Path:
        """Return the path of a file that :meth:`names` has yielded."""
        return self._path / self._names_on_disk.get(name, name)

    def _walk(self, directory: Path, prefix: str, above: frozenset[Path], linked: Counter[Path]) -> Iterator[str]:
        """Yield the paths below a directory. above: the folders that contain it. linked: how often links led to each folder."""
        try:
            entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
            real = directory.resolve()
        except OSError as error:
            raise DatasetError(f"{self.label}: {prefix or 'the folder'} cannot be listed ({error.strerror})") from error
        resolved = cache(lambda folder: Path(folder).resolve())  # many links lead to the same folder
        for entry in entries:
            name, inner = prefix + entry.name, above
            try:
                target = self._target(name, entry, real, resolved) if entry.is_symlink() else None
                is_folder, is_file = entry.is_dir(), entry.is_file()
            except RuntimeError as error:  # of Path.resolve()
                raise DatasetError(f"{self.label}: {name} is a link that leads to itself; remove it") from error
            except OSError as error:
                raise DatasetError(f"{self.label}: {name} cannot be read ({error.strerror})") from error
            if target is not None:
                self._check_link(name, target, above, linked, is_folder)
                inner = above | {target}
            if is_folder:
                yield f"{name}/"
                yield from self._walk(Path(entry.path), f"{name}/", inner, linked)
            elif is_file:
                yield name
            elif not is_ignored(name):
                raise DatasetError(f"{self.label}: {name} is neither a file nor a folder (a dangling link?); remove it")

    def _target(self, name: str, entry: os.DirEntry[str], directory: Path, resolved: Callable[[str], Path]) -> Path:
        """Return the path that a link leads to. directory: the resolved one of the link.

        Raises SpecError if it is out of the root, before anything there is opened; RuntimeError for a loop.
        """
        folder, base = os.path.split(directory / Path(entry.path).readlink())
        target = resolved(folder) / base
        if base in ("", ".", "..") or not target.is_relative_to(self._root) or target.is_symlink():
            target = target.resolve()
            if not target.is_relative_to(self._root):
                raise SpecError(
                    f"{self.label}: {name} is a link that leads out of the dataset root; copy the files instead",
                    loc="dataset.path",
                )
        return target

    def _check_link(self, name: str, target: Path, above: frozenset[Path], linked: Counter[Path], is_folder: bool) -> None:
        """Raise DatasetError for a link that makes the tree endless or too large."""
        if target in above:
            raise DatasetError(f"{self.label}: {name} is a link to a folder that contains it; remove it")
        if is_folder:
            linked[target] += 1
            if linked[target] > _MAX_LINKS_TO_FOLDER:
                limit = f"the limit is {_MAX_LINKS_TO_FOLDER}"
                raise DatasetError(f"{self.label}: too many links lead to the folder of {name}; {limit}; remove some")

    def read(self, name: str) -> bytes:
        """Return the content. Raises ImageError if the file is missing, unreadable or too large."""
        path = self.path(name)
        try:
            size = path.stat().st_size
            if size > _MAX_FILE_BYTES:
                reason = f"has {size} bytes; the limit for an image file is {_MAX_FILE_BYTES}"
                raise ImageError(f"{self.label}: {name}", reason)
            return path.read_bytes()
        except OSError as error:
            raise ImageError(f"{self.label}: {name}", f"cannot be read ({error.strerror})") from error


class ZipFiles:
    """Files of a .zip archive."""

    def __init__(self, path: Path, label: str) -> None:
        self.label = label
        try:
            self._zip = open_archive(path)
        except READING_ERRORS as error:
            raise DatasetError(f"{label} is not a readable .zip archive ({error}); make or upload it again") from error
        self._members: dict[str, zipfile.ZipInfo] = {}
        for info in self._zip.infolist():
            name = self._name(info)
            if not is_ignored(name):
                self._check(name, info)
                self._members[name] = info

    def _name(self, info: zipfile.ZipInfo) -> str:
        """Return the member's name. Raises DatasetError if the name of a folder is in an unknown encoding."""
        name = member_name(info)
        if name is not None:
            return name
        if info.filename.rpartition("/")[0].isascii():
            return info.filename  # only the name of the file is unclear, and it does not matter
        raw = info.orig_filename.encode("cp437")
        raise DatasetError(
            f"{self.label}: the name {raw!r} is not UTF-8, and the archive does not say its encoding; zip the folder again "
            "with UTF-8 names, for example with `python -m zipfile -c data.zip FOLDER`"
        )

    def _check(self, name: str, info: zipfile.ZipInfo) -> None:
        where = f"{self.label}: {name!r}"
        parts = name.removesuffix("/").split("/")
        if len(name) > _MAX_NAME_LENGTH:
            raise DatasetError(f"{self.label}: a name has {len(name)} characters; the limit is {_MAX_NAME_LENGTH}; shorten it")
        if name.startswith("/") or "\\" in name or ":" in parts[0] or any(part in ("", ".", "..") for part in parts):
            raise DatasetError(f"{where} is not a valid path in an archive; zip the folder again")
        if name in self._members:
            raise DatasetError(f"{where} is in the archive twice; zip the folder again")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise DatasetError(f"{where} is a link; zip the folder again with the files themselves")
        if info.flag_bits & 0x1:
            raise DatasetError(f"{where} is encrypted; zip the folder again without a password")
        bomb = info.file_size > _RATIO_FROM_BYTES and info.file_size > _MAX_RATIO * max(1, info.compress_size)
        if info.file_size > _MAX_FILE_BYTES or bomb:
            raise DatasetError(
                f"{where} unpacks from {info.compress_size} to {info.file_size} bytes, which is not plausible for an image; "
                f"the limit for a file is {_MAX_FILE_BYTES} bytes"
            )

    def names(self) -> Iterator[str]:
        """Yield paths in the archive's order."""
        yield from self._members

    def read(self, name: str) -> bytes:
        """Return the content. Raises ImageError if the member is damaged."""
        try:
            return content(self._zip, self._members[name])
        except READING_ERRORS as error:
            reason = f"is damaged in the archive ({error})"
            raise ImageError(f"{self.label}: {name}", reason, "make or upload the archive again") from error


def is_ignored(name: str) -> bool:
    """Return whether the path is a dotfile or metadata that macOS adds to archives."""
    return any((part.startswith(".") and part != "..") or part == "__MACOSX" for part in name.split("/"))
