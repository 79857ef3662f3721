"""Open untrusted .zip archives (and .npz files, which are archives) with bounds on memory and work.

`zipfile` trusts an archive: it reads the whole directory into memory, however long it claims to be, and unpacks a member
to its end before truncating it to the claimed size. Here the directory is bounded before it is read, members may not
overlap, only stored and deflated members are accepted, and :func:`content` never unpacks more than the claimed size.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from itertools import pairwise
from pathlib import Path

MAX_DIRECTORY_BYTES = 16 * 2**20
"""Largest directory of an archive: 150,000 files at about 110 bytes each. Put a larger set under the dataset root as a folder."""

READING_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError, NotImplementedError, MemoryError)
"""Exceptions that reading a damaged archive can raise (MemoryError for deeply nested headers and absurd lengths)."""

_LOCAL_HEADER_BYTES = 30
_UTF8_FLAG, _UNICODE_PATH = 0x800, 0x7075


class _DirectoryBounded(io.BufferedReader):
    """A file that limits the size of each read while `bounded` is set, that is, while the directory is read."""

    bounded = True

    def read(self, size: int | None = -1, /) -> bytes:
        if not self.bounded:
            return super().read(size)
        wanted = MAX_DIRECTORY_BYTES + 1 if size is None or size < 0 else min(size, MAX_DIRECTORY_BYTES + 1)
        found = super().read(wanted)
        if len(found) > MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"the archive's directory is larger than {MAX_DIRECTORY_BYTES} bytes")
        return found


class _Archive(zipfile.ZipFile):
    """An archive that closes its source file when it is closed."""

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
    """Open an archive; read and check its directory. Raises one of READING_ERRORS."""
    return _Archive(_DirectoryBounded(io.FileIO(path)))


def member_name(info: zipfile.ZipInfo) -> str | None:
    """Return a member's name as its archive means it; None if the archive does not say the encoding and it is not UTF-8.

    `zipfile` reads a name without the UTF-8 flag as code page 437, but archivers write the code page of their machine.
    """
    if info.flag_bits & _UTF8_FLAG or info.filename.isascii():
        return info.filename
    raw = info.orig_filename.encode("cp437")
    try:
        return (_unicode_path(info.extra, raw) or raw).decode()
    except UnicodeDecodeError:
        return None


def _unicode_path(extra: bytes, raw: bytes) -> bytes | None:
    """Return the name in the Info-ZIP Unicode Path extra field (APPNOTE 4.6.9), if it belongs to the name `raw`."""
    while len(extra) >= 4:
        kind, size = struct.unpack("<HH", extra[:4])
        field, extra = extra[4 : 4 + size], extra[4 + size :]
        if kind == _UNICODE_PATH and len(field) > 5 and field[1:5] == struct.pack("<I", zlib.crc32(raw)):
            return field[5:]
    return None


def content(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """Return a member's bytes after checking their length and checksum. Raises one of READING_ERRORS."""
    with archive.open(info) as member:
        unpacked = member.read(info.file_size)  # read() without a size would unpack everything first
    if len(unpacked) != info.file_size:
        raise zipfile.BadZipFile(f"{info.filename!r} ends after {len(unpacked)} of {info.file_size} bytes")
    return unpacked


def _check_members(archive: zipfile.ZipFile) -> None:
    members = sorted(archive.infolist(), key=lambda info: info.header_offset)
    for info in members:
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise zipfile.BadZipFile(f"{info.filename!r} uses compression method {info.compress_type}; only deflate is supported")
        if info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size and not info.flag_bits & 0x1:
            raise zipfile.BadZipFile(f"{info.filename!r} is stored uncompressed, but its two sizes differ")
    for info, following in pairwise(members):
        if info.header_offset + _LOCAL_HEADER_BYTES + info.compress_size > following.header_offset:
            raise zipfile.BadZipFile(f"{info.filename!r} and {following.filename!r} overlap")
