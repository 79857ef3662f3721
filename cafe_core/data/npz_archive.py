"""Read the arrays of an .npz file, which may be hostile: headers are checked before anything is read, and pickles are never read.

Large arrays are unpacked to a scratch file on disk and memory-mapped, so that they need not fit in memory.
Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import mmap
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any, Literal

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from cafe_core.data.archives import READING_ERRORS, open_archive
from cafe_core.errors import DatasetError

#: An array's header has about a hundred bytes; a longer one is refused.
_MAX_HEADER_BYTES = 1 << 16


@dataclass(frozen=True)
class Header:
    """The content of an array's header."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]

    @property
    def order(self) -> Literal["F", "C"]:
        """Return the order of the array's numbers in the file."""
        return "F" if self.fortran_order else "C"

    @property
    def nbytes(self) -> int:
        """Return the size of the array in bytes."""
        count = 1
        for side in self.shape:  # Python integers do not overflow, even if the header claims a huge shape
            count *= side
        return count * self.dtype.itemsize


class NpzArchive:
    """The arrays of an .npz file.

    label: name of the file in error messages. scratch: a directory with room for the unpacked images. All methods raise
    DatasetError.
    """

    def __init__(self, path: Path, label: str, scratch: Path) -> None:
        self.label = label
        self._scratch = scratch
        self._headers: dict[str, Header] = {}
        try:
            self._zip = open_archive(path)
        except READING_ERRORS as error:
            raise DatasetError(f"{label} is not a readable .npz file ({error}); write it again with numpy.savez") from error
        names = [info.filename.removesuffix(".npy") for info in self._zip.infolist() if info.filename.endswith(".npy")]
        self.names = {name.lower(): name for name in names}
        """The name of each array by its name in lower case."""
        if len(self.names) != len(names):
            raise self.error("an array is in the file twice; write it again with numpy.savez")

    def error(self, message: str) -> DatasetError:
        """Return an error that names the file."""
        return DatasetError(f"{self.label}: {message}")

    def header(self, name: str) -> Header:
        """Return the header of an array, which fits its data and is not pickled."""
        if name not in self._headers:
            self._headers[name] = self._read_header(name)
        return self._headers[name]

    def _read_header(self, name: str) -> Header:
        try:
            with self._zip.open(f"{name}.npy") as member:
                header = read_header(member)
                data_bytes = self._zip.getinfo(f"{name}.npy").file_size - member.tell()
        except READING_ERRORS as error:
            raise self.error(f"array {name!r} is damaged ({error}); write the file again with numpy.savez") from error
        if header.dtype.hasobject:
            raise self.error(f"array {name!r} holds pickled Python objects, which are never read; save it with a numeric dtype")
        if header.nbytes != data_bytes:
            raise self.error(f"array {name!r} has {data_bytes} bytes, but its shape {header.shape} needs {header.nbytes}")
        return header

    def read(self, name: str) -> NDArray[Any]:
        """Read a small array into memory. The caller has checked the size in its header."""
        header = self.header(name)
        with self._unpacking(name) as member:
            raw = member.read(header.nbytes)  # read() without a size would unpack everything first
            if len(raw) != header.nbytes:
                raise EOFError(f"it ends after {len(raw)} of {header.nbytes} bytes")
        return np.frombuffer(raw, dtype=header.dtype).reshape(header.shape, order=header.order)

    def map(self, name: str) -> NDArray[np.uint8]:
        """Unpack a uint8 array to an unnamed scratch file and map it; the file is deleted with the mapping."""
        header = self.header(name)
        free = shutil.disk_usage(self._scratch).free
        if header.nbytes > free:
            raise self.error(f"{name} unpacks to {header.nbytes} bytes, but {self._scratch} has {free} free")
        with tempfile.TemporaryFile(dir=self._scratch) as scratch:
            with self._unpacking(name) as member:
                shutil.copyfileobj(member, scratch, 2**20)
            scratch.flush()
            mapped = mmap.mmap(scratch.fileno(), header.nbytes, access=mmap.ACCESS_READ)
            return np.ndarray(header.shape, dtype=np.uint8, buffer=mapped, order=header.order)

    @contextmanager
    def _unpacking(self, name: str) -> Iterator[IO[bytes]]:
        """Open the array's bytes after its header; zipfile checks the CRC at their end."""
        try:
            with self._zip.open(f"{name}.npy") as member:
                read_header(member)
                yield member
        except READING_ERRORS as error:
            raise self.error(f"array {name!r} cannot be unpacked ({error}); write the file again with numpy.savez") from error


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
