"""Write files so that a crash or a full disk leaves either the old content or the new, never a part of it."""

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
def disk_full_named(path: Path) -> Iterator[None]:
    """A full disk met within is raised as DiskFullError, which says where."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFullError(f"{path} could not be written: {error.strerror}") from error


Fence = Callable[[], None]
"""Called before something is written; raises where it may not be. See :class:`cafe_core.jobs.fence.AttemptFence`."""


def unfenced() -> None:
    """The fence of what no other attempt writes."""


def write_atomically(path: Path, content: bytes, *, fence: Fence = unfenced) -> None:
    """Write beside, flush to disk, move into place: a reader sees the old file or the new one, whole, also after a crash.

    The fence is asked before a directory is made, and right before the move. Raises what it raises, DiskFullError where there
    is no space, OSError for another failure; nothing is left beside then.
    """
    fence()
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")  # an attempt on another machine may write the same
    try:
        with disk_full_named(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = beside.open("wb")
        with disk_full_named(path), file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        fence()
        beside.replace(path)
        _sync_directory(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def _sync_directory(path: Path) -> None:
    """Flush its names to disk: without, a move may be undone by a power cut, and a later one not."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


class LineLog:
    """A file of JSON objects, one a line, each there as a whole or not at all, whatever ends the process or fills the disk."""

    def __init__(self, path: Path, *, fence: Fence = unfenced) -> None:
        """Goes on with the file at `path`. A last line torn by a crash is no record, and is cut off. Raises DiskFullError.

        fence: asked before each change of the file, this first one included.
        """
        self._path = path
        self._fence = fence
        fence()
        with disk_full_named(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)
        self._file.truncate(len(_whole_lines(path)))

    def append(self, record: Mapping[str, Any]) -> None:
        """NaN is refused. Raises what the fence raises, and DiskFullError where there is no space; nothing is left of it then."""
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        self._fence()
        start = os.fstat(self._file.fileno()).st_size
        try:
            with disk_full_named(self._path):
                if self._file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except DiskFullError:
            self._file.truncate(start)
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a :class:`LineLog`, also while it is written: a last line that is not yet whole is left out."""
    return [json.loads(line) for line in _whole_lines(path).splitlines()]


def _whole_lines(path: Path) -> bytes:
    content = path.read_bytes() if path.exists() else b""
    return content[: content.rfind(b"\n") + 1]
