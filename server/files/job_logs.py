"""What an attempt printed, from its directory: written there while it runs (:mod:`workers.output`).

It may be two files of 8 MiB: it is read in pieces, so that whoever asks for it costs the server a piece of memory.
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
    """What of a file is read: from byte `start` to `end`, as long as it was when it was opened."""

    file: BinaryIO
    start: int
    end: int


def read_log(attempt: AttemptDir, tail: int | None) -> Iterator[str] | None:
    """The attempt's log as it is now, or its last `tail` lines, in pieces; None where there is no log.

    A line ends with a line feed. Bytes that are no UTF-8 are replaced.
    """
    with ExitStack() as files:
        parts = _opened(attempt, files)
        if not parts:
            return None
        if tail is not None:
            _skip_to_tail(parts, tail)
        pieces = _text(parts, files.pop_all())
        next(pieces)  # begun, it closes its files also when nobody takes the rest
        return pieces


def _opened(attempt: AttemptDir, files: ExitStack) -> list[_Part]:
    """The older file, where there is one, and the newer one; none where there is no log. `files` closes them."""
    newer = _open(attempt.log_file, files)
    if newer is None:
        return []
    older = _open(attempt.older_log_file, files)
    # Moved on between the two: what was the newer file is the older one now.
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
    """Have the parts, one after the other, hold the last so many lines. A line may begin in one part and end in the next."""
    is_last_block = True
    for part in reversed(parts):
        position = part.end
        while position > 0:
            size = min(BLOCK_BYTES, position)
            position -= size
            part.file.seek(position)
            block = part.file.read(size)
            searched = len(block) - is_last_block  # a line feed at the very end begins no line
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
