"""Makes what is so (Ray, the drivers' files) and what the database says meet.

One asyncio task looks for jobs to look after, and one more per such job does it (:mod:`server.reconciler.job_keeper`), so that no
job waits for another's submission. All that they know is in the database, in files and in Ray: a server that is killed
goes on when it starts again.
"""

from __future__ import annotations

import asyncio
import logging

from server.ray.api import RayApi
from server.reconciler.job_keeper import JobKeeper
from server.settings import Settings
from server.store import jobs
from server.store.changes import Changes, wait_until_set
from server.store.database import Database
from server.telemetry import logs

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
"""How often jobs to look after are looked for without being told of one: another server may have taken it."""


class Reconciler:
    """Runs while :meth:`run` does: on one server at a time, see :mod:`server.reconciler.leader_election`.

    Belongs to the loop it is made in.
    """

    def __init__(self, database: Database, ray: RayApi, settings: Settings, changes: Changes) -> None:
        self._database = database
        self._ray = ray
        self._settings = settings
        self._changes = changes
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._woken = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def wake(self) -> None:
        """Look for jobs to look after now, e.g. after a POST. Any thread may call it."""
        self._loop.call_soon_threadsafe(self._woken.set)

    async def run(self) -> None:
        """Look after jobs until cancelled. What cannot be done now (the database is locked) is logged and tried again."""
        try:
            while True:
                self._woken.clear()
                try:
                    await self._start_keepers()
                except Exception:
                    log.exception("jobs could not be looked for; trying again within %g s", LOOK_EVERY_S)
                await wait_until_set(self._woken, LOOK_EVERY_S)
        finally:
            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _start_keepers(self) -> None:
        for job_id in await asyncio.to_thread(self._to_look_after, set(self._tasks)):
            if job_id not in self._tasks:
                self._tasks[job_id] = asyncio.create_task(self._look_after(job_id), name=f"reconcile {job_id}")

    def _to_look_after(self, looked_after: set[str]) -> list[str]:
        limits = self._settings
        with self._database.read() as session:
            return jobs.to_look_after(
                session, looked_after, max_active=limits.max_active_jobs, max_per_owner=limits.max_running_jobs
            )

    async def _look_after(self, job_id: str) -> None:
        logs.job_id.set(job_id)  # for this task, and what it calls
        try:
            await JobKeeper(job_id, self._database, self._ray, self._settings, self._changes).run()
        except Exception:
            log.exception("job %s could not be looked after; trying again within %g s", job_id, LOOK_EVERY_S)
        else:
            self._woken.set()  # there may be room for the next queued job
        finally:
            del self._tasks[job_id]
