"""The clock by which somebody else is called silent: it stands still while nobody looks at it.

A driver that was frozen itself, or whose machine was asleep, finds the answers of that time a moment after it wakes up. By the
time of day its workers would have been silent all along, and it would end a gang that is well. So it is with a server and its
drivers.
"""

from __future__ import annotations

import time

GAP_S = 2.0
"""What counts at most from one look to the next. Looks last half a second or one, and what is done between them is quick."""


class WatchClock:
    """Of one who looks often while it waits."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._looked_at = time.monotonic()

    def look(self) -> float:
        """Seconds that have been watched so far."""
        now = time.monotonic()
        self._seconds += min(now - self._looked_at, GAP_S)
        self._looked_at = now
        return self._seconds
