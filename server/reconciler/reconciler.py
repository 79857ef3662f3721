"""Reconcile the database with Ray and the drivers' files.

One asyncio task finds the jobs to reconcile, and one task per job reconciles it (:mod:`server.reconciler.job_keeper`), so that
no job waits for another's submission. All state is in the database, in files and in Ray: a server that is killed continues
after a restart.
"""

from __future__ import annotations

import asyncio
import logging

from server.ray.api import RayApi
from server.reconciler.job_keeper import JobKeeper
from server.settings import Settings
from server.store.admission import jobs_to_reconcile
from server.store.changes import Changes, wait_until_set
from server.store.database import Database
from server.telemetry import logs

log = logging.getLogger(__name__)

POLL_EVERY_S = 1.0
"""How often the database is polled for jobs even without :meth:`Reconciler.wake`: another server may have accepted one."""


class Reconciler:
    """Reconciles all jobs in the event loop it is created in, on one server at a time: the leader."""

    def __init__(self, database: Database, ray: RayApi, settings: Settings, changes: Changes) -> None:
        self._database = database
        self._ray = ray
        self._settings = settings
        self._changes = changes
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._woken = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def wake(self) -> None:
        """Look for jobs to reconcile now, for example after a POST. Thread-safe."""
        self._loop.call_soon_threadsafe(self._woken.set)

    async def run(self) -> None:
        """Reconcile until cancelled. Errors, such as a locked database, are logged and retried."""
        try:
            while True:
                self._woken.clear()
                try:
                    await self._start_keepers()
                except Exception:
                    log.exception("cannot list the jobs to reconcile; retrying within %g s", POLL_EVERY_S)
                await wait_until_set(self._woken, POLL_EVERY_S)
        finally:
            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _start_keepers(self) -> None:
        for job_id in await asyncio.to_thread(self._jobs_to_reconcile, set(self._tasks)):
            if job_id not in self._tasks:
                self._tasks[job_id] = asyncio.create_task(self._reconcile(job_id), name=f"reconcile {job_id}")

    def _jobs_to_reconcile(self, active: set[str]) -> list[str]:
        limits = self._settings
        with self._database.read() as session:
            return jobs_to_reconcile(session, active, max_active=limits.max_active_jobs, max_per_owner=limits.max_running_jobs)

    async def _reconcile(self, job_id: str) -> None:
        logs.job_id.set(job_id)  # for the log lines of this task
        try:
            await JobKeeper(job_id, self._database, self._ray, self._settings, self._changes).run()
        except Exception:
            log.exception("job %s could not be reconciled; retrying within %g s", job_id, POLL_EVERY_S)
        else:
            self._woken.set()  # there may be a free slot for a queued job
        finally:
            del self._tasks[job_id]
