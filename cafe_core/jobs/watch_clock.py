"""Measure how long a process has been silent, with a clock that stops while the watcher is not running.

A driver that was frozen, or whose machine was suspended, receives the pending answers of its workers only a moment after it
wakes up. By wall-clock time the workers would have been silent all that time, and the driver would end a healthy gang. The same
holds for a server and its drivers.
"""

from __future__ import annotations

import time

GAP_S = 2.0
"""Maximum time counted between two calls of `look`. A watcher calls it every half second or second."""


class WatchClock:
    """Count the seconds during which a watcher that calls `look` often was awake."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._looked_at = time.monotonic()

    def look(self) -> float:
        """Return the seconds watched so far."""
        now = time.monotonic()
        self._seconds += min(now - self._looked_at, GAP_S)
        self._looked_at = now
        return self._seconds
