"""Read what an attempt printed, from the log files that its driver writes (:mod:`workers.output`).

The log may be two files of 8 MiB each. It is read in pieces, so that a request needs little memory.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cafe_core.jobs.jobdir import AttemptDir

BLOCK_BYTES = 64 << 10


@dataclass
class _Part:
    """The part of a file to read: bytes `start` to `end`, where `end` is its size when it was opened."""

    file: BinaryIO
    start: int
    end: int


def read_log(attempt: AttemptDir, tail: int | None) -> Iterator[str] | None:
    """Return the attempt's current log, or its last `tail` lines, in pieces; None if there is no log.

    A line ends with a line feed. Invalid UTF-8 is replaced.
    """
    with ExitStack() as files:
        parts = _opened(attempt, files)
        if not parts:
            return None
        if tail is not None:
            _skip_to_tail(parts, tail)
        pieces = _text(parts, files.pop_all())
        next(pieces)  # a started generator closes its files even if it is not exhausted
        return pieces


def _opened(attempt: AttemptDir, files: ExitStack) -> list[_Part]:
    """Open the older file, if any, and the newer one; empty if there is no log. `files` closes them."""
    newer = _open(attempt.log_file, files)
    if newer is None:
        return []
    older = _open(attempt.older_log_file, files)
    # The log was rotated between the two calls: the newer file is now the older one.
    if older is None or os.path.samestat(os.fstat(newer.file.fileno()), os.fstat(older.file.fileno())):
        return [newer]
    return [older, newer]


def _open(path: Path, files: ExitStack) -> _Part | None:
    try:
        file = files.enter_context(path.open("rb"))
    except FileNotFoundError:
        return None
    return _Part(file, 0, os.fstat(file.fileno()).st_size)


def _skip_to_tail(parts: list[_Part], lines: int) -> None:
    """Restrict the parts to the last `lines` lines. A line may begin in one part and end in the next."""
    is_last_block = True
    for part in reversed(parts):
        position = part.end
        while position > 0:
            size = min(BLOCK_BYTES, position)
            position -= size
            part.file.seek(position)
            block = part.file.read(size)
            searched = len(block) - is_last_block  # a line feed at the very end does not begin a line
            is_last_block = False
            found = block.count(b"\n", 0, searched)
            if found >= lines:
                for _ in range(lines):
                    searched = block.rfind(b"\n", 0, searched)
                part.start = position + searched + 1
                for earlier in parts[: parts.index(part)]:
                    earlier.start = earlier.end
                return
            lines -= found


def _text(parts: list[_Part], files: ExitStack) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    with files:
        yield ""
        for part in parts:
            part.file.seek(part.start)
            left = part.end - part.start
            while block := part.file.read(min(BLOCK_BYTES, left)):
                left -= len(block)
                yield decoder.decode(block)
        yield decoder.decode(b"", final=True)
