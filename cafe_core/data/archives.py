"""Opens .zip archives of people who may mean harm (.npz files are archives, too), with bounds on what that costs.

The library trusts an archive's words: it reads the whole directory into memory, however long that says it is, and unpacks a
member to its end before it cuts it to the size that it claims. Here a directory is bounded before it is read, members may not
share their bytes, only stored and deflated ones are taken, and :func:`content` never unpacks more than was claimed.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from itertools import pairwise
from pathlib import Path

MAX_DIRECTORY_BYTES = 16 * 2**20
"""Of an archive's directory: about 110 bytes a file, so 150,000 files. A larger set is put under the dataset root as a folder."""

READING_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError, NotImplementedError, MemoryError)
"""What reading a damaged archive raises. (MemoryError: of a parser that a nested header exhausts, and of absurd lengths.)"""

_LOCAL_HEADER_BYTES = 30


class _DirectoryBounded(io.BufferedReader):
    """A file of which, at first, no more than a directory may be read at once."""

    bounded = True

    def read(self, size: int | None = -1, /) -> bytes:
        if not self.bounded:
            return super().read(size)
        wanted = MAX_DIRECTORY_BYTES + 1 if size is None or size < 0 else min(size, MAX_DIRECTORY_BYTES + 1)
        found = super().read(wanted)
        if len(found) > MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"its directory is larger than {MAX_DIRECTORY_BYTES} bytes")
        return found


class _Archive(zipfile.ZipFile):
    """Closes its file with itself, as it does where it has opened that by name."""

    def __init__(self, source: _DirectoryBounded) -> None:
        self._source = source
        try:
            super().__init__(source)
            source.bounded = False
            _check_members(self)
        except BaseException:
            source.close()
            raise

    def close(self) -> None:
        super().close()
        self._source.close()


def open_archive(path: Path) -> zipfile.ZipFile:
    """The archive, its directory read and checked. Raises one of READING_ERRORS."""
    return _Archive(_DirectoryBounded(io.FileIO(path)))


def content(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """A member's bytes: as many as the directory says, their checksum checked. Raises one of READING_ERRORS."""
    with archive.open(info) as member:
        unpacked = member.read(info.file_size)  # bounded; read() would unpack all there is before it cuts
    if len(unpacked) != info.file_size:
        raise zipfile.BadZipFile(f"{info.filename!r} ends after {len(unpacked)} of {info.file_size} bytes")
    return unpacked


def _check_members(archive: zipfile.ZipFile) -> None:
    members = sorted(archive.infolist(), key=lambda info: info.header_offset)
    for info in members:
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise zipfile.BadZipFile(f"{info.filename!r} is compressed by method {info.compress_type}; only deflate is read")
        if info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size and not info.flag_bits & 0x1:
            raise zipfile.BadZipFile(f"{info.filename!r} is stored, and its two sizes differ")
    for info, following in pairwise(members):
        if info.header_offset + _LOCAL_HEADER_BYTES + info.compress_size > following.header_offset:
            raise zipfile.BadZipFile(f"{info.filename!r} and {following.filename!r} overlap")
