"""Observe one driver over time: whether it is silent, lingers after its last event, or keeps running although Ray was asked to
stop it.

All durations come from a :class:`WatchClock`, so time during which this server was frozen or Ray did not answer does not count.
The driver machine's clock is never used: of the heartbeat, only whether it has changed matters.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from cafe_core.jobs.jobdir import AttemptDir
from cafe_core.jobs.watch_clock import WatchClock

EXIT_GRACE_S = 30.0
"""How long a driver may keep running after its terminal event."""
STOP_EVERY_S = 3.0
"""How often the stop request is repeated for a driver that keeps running."""
STOPS_WITHIN_S = 60.0
"""How long Ray may take to end a driver after it received the stop request. Ray kills the driver after RAY_JOB_STOP_WAIT_TIME_S
(20 s as deployed here); if that takes longer, the job supervisor, the Ray actor that started the driver, is itself frozen."""


@dataclass(frozen=True)
class DriverState:
    """The state of a driver at one observation."""

    silent_s: float
    """Seconds since the driver's heartbeat last changed; 0 if there is no heartbeat."""
    lingers: bool
    """Whether it still runs EXIT_GRACE_S after its terminal event, holding resources that others need."""
    stop_asked: bool
    """Whether Ray received a stop request within the last STOP_EVERY_S."""
    ignores_stop: bool
    """Whether Ray received a stop request more than STOPS_WITHIN_S ago and has not ended the driver."""


class DriverWatch:
    """Watches the driver of one attempt, about once per second."""

    def __init__(self) -> None:
        self._clock = WatchClock()
        self._now = 0.0
        self._beat: bytes | None = None
        self._beat_at = 0.0
        self._terminal_event_at: float | None = None
        self._stops_by = float("inf")
        self._stop_received_at = float("-inf")

    def observe(self, attempt: AttemptDir, *, has_terminal_event: bool) -> DriverState:
        """Read the heartbeat and return the driver's state. Call it in a thread: the disk may be slow."""
        beat = _read_heartbeat(attempt)
        self._now = now = self._clock.look()
        if beat is None or beat != self._beat:
            self._beat, self._beat_at = beat, now
        if has_terminal_event and self._terminal_event_at is None:
            self._terminal_event_at = now
        return DriverState(
            silent_s=now - self._beat_at,
            lingers=self._terminal_event_at is not None and now - self._terminal_event_at > EXIT_GRACE_S,
            stop_asked=time.monotonic() - self._stop_received_at < STOP_EVERY_S,
            ignores_stop=now > self._stops_by,
        )

    def stop_received(self) -> None:
        """Note that Ray has just received a stop request for the driver."""
        self._stop_received_at = time.monotonic()
        self._stops_by = min(self._stops_by, self._now + STOPS_WITHIN_S)


def _read_heartbeat(attempt: AttemptDir) -> bytes | None:
    """Return the heartbeat, or None if there is none yet or it cannot be read.

    The file is opened instead of checking its modification time, because opening makes NFS fetch the latest content.
    """
    try:
        return attempt.heartbeat_file.read_bytes() or None
    except OSError:
        return None
