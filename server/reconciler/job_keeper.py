"""Reconcile one job: submit it, follow its driver, stop it and end it.

:mod:`server.reconciler.policy` decides from facts; the keeper gathers the facts and carries out the decision.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from cafe_core.errors import DiskFullError, StaleAttemptError
from cafe_core.files import write_atomically
from server.files import job_json
from server.ray.api import RayApi
from server.reconciler.driver_watch import DriverWatch
from server.reconciler.job_record import JobRecord, JobSnapshot
from server.reconciler.policy import Act, Decision, Facts, decide
from server.reconciler.previous_attempt import PreviousAttempt
from server.settings import Settings
from server.states import Status
from server.store.changes import Changes, wait_until_set
from server.store.database import Database
from server.telemetry import tracing
from workers.client import RayError, RayRefusedError

log = logging.getLogger(__name__)

FILES_EVERY_S = 0.3
"""How often the driver's event log is read."""
RAY_EVERY_S = 1.0
"""How often Ray is asked about a job whose driver runs."""
RAY_SOON_S = 0.2
"""The same while a job starts, is being cancelled, or has written its terminal event."""
SUBMIT_WITHIN_S = 60.0
"""How long a submission is retried before the job fails and frees its slot. Ray refuses submissions while a node's agent
starts, and writing job.json fails while the disk is full; both may be temporary."""
RETRY_PAUSE_S = 5.0
"""Pause before a new attempt, times the number of consecutive losses without progress, because the cause may be temporary."""


class JobKeeper:
    """Reconciles one job from its current state to its end."""

    def __init__(self, job_id: str, database: Database, ray: RayApi, settings: Settings, changes: Changes) -> None:
        self._job_id = job_id
        self._database = database
        self._ray = ray
        self._settings = settings
        self._changes = changes
        self._previous = PreviousAttempt(ray, job_id)
        self._watch = DriverWatch()
        self._refused_since: float | None = None
        self.record = JobRecord(job_id, database, settings, changes)

    async def run(self) -> None:
        """Reconcile until the job has ended or was deleted."""
        with self._changes.watching(self._job_id, other_servers=False) as changed:
            ray_asked = float("-inf")
            while True:
                changed.clear()
                seen = await asyncio.to_thread(self.record.sync)
                if seen is None:
                    return
                near_an_end = seen.status is not Status.RUNNING or seen.terminal_event is not None or seen.given_up
                now = time.monotonic()
                if now - ray_asked >= (RAY_SOON_S if near_an_end else RAY_EVERY_S):
                    ray_asked = now
                    try:
                        if await self.step(seen):
                            return
                    except RayError as error:
                        log.warning("job %s: %s", self._job_id, error)
                        await asyncio.sleep(RAY_EVERY_S)
                await wait_until_set(changed, FILES_EVERY_S)

    async def step(self, seen: JobSnapshot) -> bool:
        """Ask Ray, decide and act. Return True when the job has ended or is queued again. Raises RayError."""
        ray_job = await self._ray.job(self._job_id, seen.attempt)
        if ray_job is None and seen.submitted:
            if not await self._ray.ready():
                return False  # Ray is still starting and may report the attempt later
            ray_job = await self._ray.job(self._job_id, seen.attempt)  # Ray may have become ready after the first query
        directory = self.record.attempt_dir(seen.attempt)
        driver = await asyncio.to_thread(self._watch.observe, directory, has_terminal_event=seen.terminal_event is not None)
        running, retries = ray_job is not None and not ray_job.state.ended, 0
        ignores_stop = running and driver.ignores_stop
        if ignores_stop or not running:
            # The driver may have written its last events after they were last read.
            latest = await asyncio.to_thread(self.record.sync)
            if latest is None:
                return True
            seen, retries = latest, await asyncio.to_thread(self.record.consecutive_losses)
        facts = Facts(
            status=seen.status,
            submitted=seen.submitted,
            ray=ray_job,
            terminal_event=seen.terminal_event,
            has_result=await asyncio.to_thread(directory.manifest_file.exists),
            silent=driver.silent_s > self._settings.driver_silence_s,
            given_up=seen.given_up,
            lingers=driver.lingers,
            stop_asked=driver.stop_asked,
            ignores_stop=ignores_stop,
            retries=retries,
            max_retries=self._settings.max_lost_attempts,
        )
        if ignores_stop:
            log.warning("job %s: Ray has not stopped attempt %d in time; treating it as ended", self._job_id, seen.attempt)
            await asyncio.to_thread(job_json.revoke_attempts, self._settings, self._job_id)  # its driver may still run
        return await self._execute(decide(facts), seen, retries)

    async def _execute(self, decision: Decision, seen: JobSnapshot, retries: int) -> bool:
        """Carry out a decision. Return True when the job has ended or is queued again. Raises RayError."""
        match decision.act:
            case Act.SUBMIT:
                return await self._submit(seen)
            case Act.GIVE_UP:
                await asyncio.to_thread(self.record.mark_given_up, seen)
            case Act.STOP:
                await self._stop(seen.attempt)
            case Act.RETRY:
                await self._keep_logs(seen.attempt)
                await asyncio.sleep(RETRY_PAUSE_S * retries)
                await asyncio.to_thread(self.record.retry, seen, decision)
                return True
            case Act.END:
                with tracing.step("end attempt", self._job_id, seen.attempt):
                    await self._keep_logs(seen.attempt)
                    await asyncio.to_thread(self.record.end, seen, decision)
                return True
            case Act.WAIT:
                if not seen.submitted:
                    await asyncio.to_thread(self.record.mark_submitted, seen)
        return False

    async def _submit(self, seen: JobSnapshot) -> bool:
        """Submit the attempt. Return True if submissions have failed for too long, so that the job has failed."""
        job_dir, settings = self._settings.job_dir(self._job_id), self._settings
        if not await self._previous.has_ended(seen.attempt):
            return False
        try:
            await asyncio.to_thread(job_json.authorize_attempt, self._database, settings, self._job_id, seen.attempt)
        except StaleAttemptError as error:  # the job was cancelled, or another server was faster
            log.info("job %s: not submitted: %s", self._job_id, error)
            return False
        except (OSError, DiskFullError) as error:
            return await self._refused(seen, job_json.failure(error))
        try:
            with tracing.step("submit attempt", self._job_id, seen.attempt):
                await self._ray.submit(
                    job_dir.path, self._job_id, seen.attempt, python=settings.python, cpus=settings.driver_cpus
                )
        except RayRefusedError as error:
            failure = {"code": "submission_failed", "message": f"Ray refused the job: {error}", "retryable": True}
            return await self._refused(seen, failure)
        await asyncio.to_thread(self.record.mark_submitted, seen)
        return False

    async def _refused(self, seen: JobSnapshot, failure: dict[str, Any]) -> bool:
        """Handle a failed submission: fail the job and return True after SUBMIT_WITHIN_S, otherwise pause before the next try."""
        now = time.monotonic()
        self._refused_since = self._refused_since or now
        if now - self._refused_since >= SUBMIT_WITHIN_S:
            await asyncio.to_thread(self.record.end, seen, Decision(Act.END, Status.FAILED, failure))
            return True
        log.warning("job %s cannot be submitted; retrying in %g s: %s", self._job_id, RAY_EVERY_S, failure["message"])
        await asyncio.sleep(RAY_EVERY_S)
        return False

    async def _stop(self, attempt: int) -> None:
        """Ask Ray to stop the attempt. Before its supervisor has started, this has no effect; the next step asks again."""
        if await self._ray.stop(self._job_id, attempt):
            self._watch.stop_received()

    async def _keep_logs(self, attempt: int) -> None:
        """Copy the driver's output from Ray to the attempt's directory unless the driver did so: Ray loses it on a restart."""
        path = self.record.attempt_dir(attempt).log_file
        if await asyncio.to_thread(path.exists):
            return
        try:
            text = await self._ray.logs(self._job_id, attempt)
        except RayRefusedError as error:
            log.warning("job %s: cannot keep its logs: %s", self._job_id, error)
            return
        if text is not None:
            try:
                await asyncio.to_thread(write_atomically, path, text.encode("utf-8", "replace"))
            except (OSError, DiskFullError) as error:  # a full disk must not prevent the job from ending
                log.warning("job %s: cannot keep its logs: %s", self._job_id, error)
