"""Wait until the previous attempt has released its resources before the next one starts.

A lost attempt may still run, and Ray may report it again later. Once the next attempt is authorized, the previous one can no
longer write (:mod:`server.files.job_json`), but its workers hold CPUs and GPUs that the next attempt's workers wait for.
"""

from __future__ import annotations

import logging
import time

from server.ray.api import RayApi
from workers.client import RayRefusedError

log = logging.getLogger(__name__)

ENDS_WITHIN_S = 30.0
"""Timeout of stopping the previous attempt. Ray kills a driver RAY_JOB_STOP_WAIT_TIME_S after the stop request."""
STOP_EVERY_S = 3.0
"""How often the stop request is repeated."""


class PreviousAttempt:
    """Stops the attempt before the one that is about to be submitted."""

    def __init__(self, ray: RayApi, job_id: str) -> None:
        self._ray = ray
        self._job_id = job_id
        self._first_seen_at: float | None = None
        self._stop_received_at = float("-inf")

    async def has_ended(self, attempt: int) -> bool:
        """Return whether the attempt before `attempt` has ended according to Ray; if not, ask Ray to stop it. Raises RayError.

        Always returns True after ENDS_WITHIN_S, so that a job does not wait forever for an attempt that cannot be stopped.
        """
        if attempt == 1:
            return True
        previous = attempt - 1
        try:
            known = await self._ray.job(self._job_id, previous)
            if known is None or known.state.ended:
                return True
            if time.monotonic() - self._stop_received_at >= STOP_EVERY_S and await self._ray.stop(self._job_id, previous):
                self._stop_received_at = time.monotonic()
        except RayRefusedError as error:
            log.warning("job %s: cannot stop attempt %d: %s", self._job_id, previous, error)
        now = time.monotonic()
        self._first_seen_at = self._first_seen_at or now
        if now - self._first_seen_at < ENDS_WITHIN_S:
            return False
        log.warning("job %s: attempt %d is still running; starting the next one anyway", self._job_id, previous)
        return True
