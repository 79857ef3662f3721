"""Write files so that a crash or a full disk leaves either the old content or the new, never a mixture."""

from __future__ import annotations

import errno
import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cafe_core.errors import DiskFullError


@contextmanager
def raising_disk_full(path: Path) -> Iterator[None]:
    """Raise DiskFullError, which names `path`, for a full disk, an exceeded disk quota or the limit of file sizes."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise DiskFullError(f"cannot write {path}: {error.strerror}; raise the limit of file sizes (ulimit -f)") from error
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFullError(f"cannot write {path}: {error.strerror}") from error


Fence = Callable[[], None]
"""Called right before each write; raises if the caller may not write. See :class:`cafe_core.jobs.fence.AttemptFence`."""


def unfenced() -> None:
    """Allow every write: for files that no other attempt writes."""


def write_atomically(path: Path, content: bytes, *, fence: Fence = unfenced) -> None:
    """Replace a file atomically: write a temporary file, flush it to disk, and rename it.

    A reader sees the old file or the new one, never a part, even after a crash. `fence` is called before the directory is created
    and again right before the rename. Raises any exception of `fence`, DiskFullError if the disk is full, and OSError for any
    other failure, after removing the temporary file.
    """
    fence()
    # A unique name, because an attempt on another machine may write the same file.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with raising_disk_full(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = temporary.open("wb")
        with raising_disk_full(path), file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        fence()
        temporary.replace(path)
        _sync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_directory(path: Path) -> None:
    """Flush a directory's entries to disk. Otherwise a power cut may undo a rename but keep a later one."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


class LineLog:
    """A file of JSON objects, one per line. Each is written completely or not at all, even after a crash or on a full disk."""

    def __init__(self, path: Path, *, fence: Fence = unfenced) -> None:
        """Open the file at `path` for appending, and truncate a last line that a crash left incomplete. Raises DiskFullError.

        fence: called before each change of the file, including this first one.
        """
        self._path = path
        self._fence = fence
        fence()
        with raising_disk_full(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)
        self._file.truncate(len(_complete_lines(path)))

    def append(self, record: Mapping[str, Any]) -> None:
        """Append one record. Raises ValueError for NaN, which JSON does not have.

        Raises any exception of the fence, and DiskFullError if the disk is full. The file is unchanged after an error.
        """
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        self._fence()
        start = os.fstat(self._file.fileno()).st_size
        try:
            with raising_disk_full(self._path):
                while line:  # after a write of a part, the next one raises the reason
                    line = line[self._file.write(line) :]
        except DiskFullError:
            self._file.truncate(start)
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the records of a :class:`LineLog`. An incomplete last line, which is still being written, is left out."""
    return [json.loads(line) for line in _complete_lines(path).splitlines()]


def _complete_lines(path: Path) -> bytes:
    content = path.read_bytes() if path.exists() else b""
    return content[: content.rfind(b"\n") + 1]
