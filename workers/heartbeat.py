"""A driver shows that it lives: a thread of it counts in its attempt's directory, whatever the main thread does.

Of a driver that is frozen, or whose machine hangs, Ray says that it runs, for ever. The server watches whether the count changes
(:mod:`server.reconciler.driver_watch`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cafe_core.errors import StaleAttemptError
from cafe_core.jobs.fence import AttemptFence
from cafe_core.jobs.jobdir import JobDir

EVERY_S = 2.0
CLOSE_WITHIN_S = 1.0
"""A file system that hangs is not to keep the driver from its end."""


@contextmanager
def beating(directory: JobDir, attempt: int) -> Iterator[None]:
    """Count within. A disk that is full, or a directory that is gone, costs the count, nothing else."""
    over = threading.Event()
    thread = threading.Thread(target=_count_until, args=(over, directory, attempt), name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(CLOSE_WITHIN_S)


def _count_until(over: threading.Event, directory: JobDir, attempt: int) -> None:
    heartbeat, beats = directory.attempt(attempt).heartbeat_file, 0
    with suppress(StaleAttemptError):  # nobody watches it
        while not _made(heartbeat, AttemptFence.of(directory, attempt)):
            if over.wait(EVERY_S):
                return
        while not over.wait(EVERY_S if beats else 0):
            beats += 1
            _note(heartbeat, beats)


def _made(heartbeat: Path, fence: AttemptFence) -> bool:
    """Make the file, empty. Raises StaleAttemptError."""
    try:
        fence()
        heartbeat.parent.mkdir(parents=True, exist_ok=True)
        heartbeat.touch()
    except OSError:
        return False
    return True


def _note(heartbeat: Path, beats: int) -> None:
    """In place: that needs no room on a full disk, and makes nothing where the job was deleted with its directory."""
    with suppress(OSError), heartbeat.open("r+b", buffering=0) as file:
        file.write(b"%020d" % beats)
