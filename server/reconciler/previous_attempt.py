"""The attempt before the one that is to start: it is to let go of what it holds first.

A lost attempt may run on, and Ray may know it (again). Once the next one is submitted it can write nothing any more
(:mod:`server.files.job_json`), but its workers hold CPUs and GPUs that the next one's wait for.
"""

from __future__ import annotations

import logging
import time

from server.ray.api import RayApi
from workers.client import RayRefusedError

log = logging.getLogger(__name__)

LETS_GO_WITHIN_S = 30.0
"""How long it is waited for. Ray kills a driver that does not end 3 s after it was asked to."""
STOP_EVERY_S = 3.0
"""How often it is asked."""


class Predecessor:
    """Of one attempt."""

    def __init__(self, ray: RayApi, job_id: str) -> None:
        self._ray = ray
        self._job_id = job_id
        self._first_seen_at: float | None = None
        self._stop_heard_at = float("-inf")

    async def is_over(self, attempt: int) -> bool:
        """Whether the attempt before `attempt` has ended, as far as Ray knows; else it is stopped: ask again then.

        After LETS_GO_WITHIN_S it counts as over: a job is not to wait for ever for what nobody can end. Raises RayError.
        """
        if attempt == 1:
            return True
        before = attempt - 1
        try:
            known = await self._ray.job(self._job_id, before)
            if known is None or known.state.ended:
                return True
            if time.monotonic() - self._stop_heard_at >= STOP_EVERY_S and await self._ray.stop(self._job_id, before):
                self._stop_heard_at = time.monotonic()
        except RayRefusedError as error:
            log.warning("job %s: attempt %d cannot be stopped: %s", self._job_id, before, error)
        now = time.monotonic()
        self._first_seen_at = self._first_seen_at or now
        if now - self._first_seen_at < LETS_GO_WITHIN_S:
            return False
        log.warning("job %s: attempt %d lives on; the next one starts all the same", self._job_id, before)
        return True
