"""What a server sees of a driver over time: that it is silent, that it lingers, that Ray does not end it.

All of it is counted by a :class:`WatchClock`: a server that was frozen itself, or got no answer from Ray, has seen nothing
meanwhile. No clock of the driver's machine is asked: of its heartbeat only counts whether it has changed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from cafe_core.jobs.jobdir import AttemptDir
from cafe_core.jobs.watch_clock import WatchClock

LAST_WORDS_GRACE_S = 30.0
"""How long a driver may live on after its last event."""
STOP_EVERY_S = 3.0
"""How often a driver that was asked to stop, but lives on, is asked again."""
OBEYS_WITHIN_S = 60.0
"""How long Ray may take to end what it has heard is to stop. It kills a driver RAY_JOB_STOP_WAIT_TIME_S after that (20 s as
deployed here); what takes longer is frozen itself: the job supervisor, Ray's actor that has started the driver."""


@dataclass(frozen=True)
class Watched:
    """What is so at one look."""

    silent_s: float
    """For how long the driver's heartbeat has not changed; 0 where there is none."""
    lingers: bool
    """Whether it lives on although it has said its last word some time ago: what it holds is needed."""
    stop_asked: bool
    """Whether it was asked to stop a moment ago, and heard it."""
    deaf: bool
    """Whether Ray heard some time ago that it is to stop, and has not ended it."""


class DriverWatch:
    """Of one attempt, looked at about every second."""

    def __init__(self) -> None:
        self._clock = WatchClock()
        self._now = 0.0
        self._beat: bytes | None = None
        self._beat_at = 0.0
        self._last_words_at: float | None = None
        self._obeyed_by = float("inf")
        self._stop_heard_at = float("-inf")

    def look(self, attempt: AttemptDir, *, said_last_word: bool) -> Watched:
        """Reads the heartbeat: call it in a thread, for the disk may be slow."""
        beat = _beat_in(attempt)
        self._now = now = self._clock.look()
        if beat is None or beat != self._beat:
            self._beat, self._beat_at = beat, now
        if said_last_word and self._last_words_at is None:
            self._last_words_at = now
        return Watched(
            silent_s=now - self._beat_at,
            lingers=self._last_words_at is not None and now - self._last_words_at > LAST_WORDS_GRACE_S,
            stop_asked=time.monotonic() - self._stop_heard_at < STOP_EVERY_S,
            deaf=now > self._obeyed_by,
        )

    def stop_heard(self) -> None:
        """Ray has just heard that the driver is to stop."""
        self._stop_heard_at = time.monotonic()
        self._obeyed_by = min(self._obeyed_by, self._now + OBEYS_WITHIN_S)


def _beat_in(attempt: AttemptDir) -> bytes | None:
    """None where nothing can be said: there is no count yet, or it cannot be read now.

    It is opened, and not asked for its time: so NFS shows what the driver's machine has written last.
    """
    try:
        return attempt.heartbeat_file.read_bytes() or None
    except OSError:
        return None
