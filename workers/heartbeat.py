"""Send heartbeats from a driver: a thread increments a counter in the attempt's directory, whatever the main thread does.

Ray reports a driver that is frozen, or whose machine hangs, as running forever. The server therefore checks whether the counter
changes (:mod:`server.reconciler.driver_watch`).
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
"""How long to wait for the thread at the end. A hanging file system must not keep the driver from exiting."""


@contextmanager
def sending_heartbeats(directory: JobDir, attempt: int) -> Iterator[None]:
    """Send heartbeats inside the `with` block. A full disk or a deleted directory stops only the heartbeats."""
    over = threading.Event()
    thread = threading.Thread(target=_beat_until, args=(over, directory, attempt), name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(CLOSE_WITHIN_S)


def _beat_until(over: threading.Event, directory: JobDir, attempt: int) -> None:
    heartbeat, beats = directory.attempt(attempt).heartbeat_file, 0
    with suppress(StaleAttemptError):  # a stale attempt needs no heartbeats
        while not _create(heartbeat, AttemptFence.of(directory, attempt)):
            if over.wait(EVERY_S):
                return
        while not over.wait(EVERY_S if beats else 0):
            beats += 1
            _write_beat(heartbeat, beats)


def _create(heartbeat: Path, fence: AttemptFence) -> bool:
    """Create the empty file; return whether that succeeded. Raises StaleAttemptError."""
    try:
        fence()
        heartbeat.parent.mkdir(parents=True, exist_ok=True)
        heartbeat.touch()
    except OSError:
        return False
    return True


def _write_beat(heartbeat: Path, beats: int) -> None:
    """Overwrite the counter in place: this needs no space on a full disk, and creates no file if the job was deleted."""
    with suppress(OSError), heartbeat.open("r+b", buffering=0) as file:
        file.write(b"%020d" % beats)
