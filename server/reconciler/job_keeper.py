"""Looks after one job: submits it, follows its driver, stops it, ends it.

What to do is decided in :mod:`server.reconciler.policy`, from facts; here they are gathered and the decision is carried out.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy.orm import Session

from cafe_core.errors import DiskFullError, StaleAttemptError
from cafe_core.files import write_atomically
from cafe_core.jobs.jobdir import AttemptDir, utc_now
from server.errors import NotFoundError
from server.files import job_json
from server.files.job_files import bytes_in
from server.files.manifests import ArtifactError, Entry, add_artifacts, checked_result
from server.ray.api import RayApi
from server.reconciler.driver_watch import DriverWatch
from server.reconciler.policy import Act, Decision, Facts, decide
from server.reconciler.previous_attempt import Predecessor
from server.settings import Settings
from server.states import ENDED, IN_RAY, Status
from server.store import jobs
from server.store.changes import Changes, wait_until_set
from server.store.database import Database
from server.store.models import Attempt, Job
from server.store.progress import DriverEvent, whole_lines
from server.telemetry import tracing
from workers.client import RayError, RayRefusedError

log = logging.getLogger(__name__)

FILES_EVERY_S = 0.3
"""How often a driver's events are looked for."""
RAY_EVERY_S = 1.0
"""How often Ray is asked about a job whose driver runs."""
RAY_SOON_S = 0.2
"""The same while a job starts, is cancelled, or has said its last word."""
REFUSED_FOR_S = 60.0
"""How long Ray may refuse to take an attempt, or the disk its job.json, before the job fails and makes room for others: the agent
of a node that is starting is not there yet, and a disk that is full may be so for a moment."""
RENEW_PAUSE_S = 5.0
"""What a new attempt waits for each one before it that was lost and came no further: what they died of may pass."""
CHUNK_BYTES = 8 << 20


@dataclass(frozen=True)
class Seen:
    """A job as it was in the database."""

    status: Status
    attempt: int
    submitted: bool
    given_up: bool
    last_words: dict[str, Any] | None
    offset: int


class JobKeeper:
    """Looks after one job, from wherever it is to its end."""

    def __init__(self, job_id: str, database: Database, ray: RayApi, settings: Settings, changes: Changes) -> None:
        self._job_id = job_id
        self._database = database
        self._ray = ray
        self._settings = settings
        self._changes = changes
        self._before = Predecessor(ray, job_id)
        self._watch = DriverWatch()
        self._refused_since: float | None = None

    async def run(self) -> None:
        """Returns when the job has ended, or was deleted."""
        with self._changes.watching(self._job_id, elsewhere=False) as changed:
            ray_asked = float("-inf")
            while True:
                changed.clear()
                seen = await asyncio.to_thread(self.look)
                if seen is None:
                    return
                near_an_end = seen.status is not Status.RUNNING or seen.last_words is not None or seen.given_up
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

    async def step(self, seen: Seen) -> bool:
        """Ask Ray, decide, act. True when the job has ended, or is queued again. Raises RayError."""
        ray_job = await self._ray.job(self._job_id, seen.attempt)
        if ray_job is None and seen.submitted:
            if not await self._ray.ready():
                return False  # it is not there yet itself: it may still know the attempt
            ray_job = await self._ray.job(self._job_id, seen.attempt)  # it may have come up since it was asked
        said_last_word, directory = seen.last_words is not None, self._attempt_dir(seen.attempt)
        watched = await asyncio.to_thread(self._watch.look, directory, said_last_word=said_last_word)
        lives, renewals = ray_job is not None and not ray_job.state.ended, 0
        deaf = lives and watched.deaf
        if deaf or not lives:
            # The driver may have written its last events after they were last looked for.
            latest = await asyncio.to_thread(self.look)
            if latest is None:
                return True
            seen, renewals = latest, await asyncio.to_thread(self._renewals)
        facts = Facts(
            status=seen.status,
            submitted=seen.submitted,
            ray=ray_job,
            last_words=seen.last_words,
            has_result=await asyncio.to_thread(directory.manifest_file.exists),
            silent=watched.silent_s > self._settings.driver_silence_s,
            given_up=seen.given_up,
            lingers=watched.lingers,
            stop_asked=watched.stop_asked,
            deaf=deaf,
            renewals=renewals,
            max_renewals=self._settings.max_lost_attempts,
        )
        if deaf:
            log.warning(
                "job %s: Ray does not end attempt %d, which it was asked to: it counts as ended", self._job_id, seen.attempt
            )
            await asyncio.to_thread(job_json.name_none, self._settings, self._job_id)  # its driver may live
        return await self._carry_out(decide(facts), seen, renewals)

    async def _carry_out(self, decision: Decision, seen: Seen, renewals: int) -> bool:
        """What `step` has decided, and whether the job has ended then, or is queued again. Raises RayError."""
        match decision.act:
            case Act.SUBMIT:
                return await self._submit(seen)
            case Act.GIVE_UP:
                await asyncio.to_thread(self._note_given_up, seen)
            case Act.STOP:
                await self._stop(seen.attempt)
            case Act.RENEW:
                await self._keep_logs(seen.attempt)
                await asyncio.sleep(RENEW_PAUSE_S * renewals)
                await asyncio.to_thread(self._renew, seen, decision)
                return True
            case Act.END:
                with tracing.step("end attempt", self._job_id, seen.attempt):
                    await self._keep_logs(seen.attempt)
                    await asyncio.to_thread(self._end, seen, decision)
                return True
            case Act.WAIT:
                if not seen.submitted:
                    await asyncio.to_thread(self._note_submitted, seen)
        return False

    async def _submit(self, seen: Seen) -> bool:
        """True when that was impossible for long enough, and the job has failed for it."""
        job_dir, settings = self._settings.job_dir(self._job_id), self._settings
        if not await self._before.is_over(seen.attempt):
            return False
        try:
            await asyncio.to_thread(job_json.name_attempt, self._database, settings, self._job_id, seen.attempt)
        except StaleAttemptError as error:  # a cancel came, or another server was faster
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
            failure = {"code": "submission_failed", "message": f"Ray does not take the job: {error}", "retryable": True}
            return await self._refused(seen, failure)
        await asyncio.to_thread(self._note_submitted, seen)
        return False

    async def _refused(self, seen: Seen, failure: dict[str, Any]) -> bool:
        """After a try to submit that failed: True when there were tries enough, and the job has failed."""
        now = time.monotonic()
        self._refused_since = self._refused_since or now
        if now - self._refused_since >= REFUSED_FOR_S:
            await asyncio.to_thread(self._end, seen, Decision(Act.END, Status.FAILED, failure))
            return True
        log.warning("job %s cannot be submitted, trying again in %g s: %s", self._job_id, RAY_EVERY_S, failure["message"])
        await asyncio.sleep(RAY_EVERY_S)
        return False

    async def _stop(self, attempt: int) -> None:
        """What Ray has yet to start a supervisor for hears nothing: it is asked again at the next step."""
        if await self._ray.stop(self._job_id, attempt):
            self._watch.stop_heard()

    async def _keep_logs(self, attempt: int) -> None:
        """Keep what the driver printed with the job, where it could not do so itself: Ray forgets it when it is started anew."""
        path = self._attempt_dir(attempt).log_file
        if await asyncio.to_thread(path.exists):
            return
        try:
            text = await self._ray.logs(self._job_id, attempt)
        except RayRefusedError as error:
            log.warning("job %s: its logs cannot be kept: %s", self._job_id, error)
            return
        if text is not None:
            try:
                await asyncio.to_thread(write_atomically, path, text.encode("utf-8", "replace"))
            except (OSError, DiskFullError) as error:  # a full disk must not keep the job from its end: then it can be deleted
                log.warning("job %s: its logs cannot be kept: %s", self._job_id, error)

    def _attempt_dir(self, attempt: int) -> AttemptDir:
        return self._settings.job_dir(self._job_id).attempt(attempt)

    # From here on: called in threads.

    def look(self) -> Seen | None:
        """The job as it is after taking its driver's new events; None when it has ended or is gone. Starts a queued one."""
        seen = self._read()
        if seen is not None and seen.status is Status.QUEUED:
            self._start()
            seen = self._read()
        if seen is None or seen.status in ENDED:
            return None
        return self._read() if self._take_events(seen) else seen

    def _read(self) -> Seen | None:
        with self._database.read() as session:
            try:
                job = jobs.get(session, self._job_id)
            except NotFoundError:
                return None
            attempt = jobs.attempt_of(session, job)
            submitted, given_up = attempt.submitted_at is not None, attempt.given_up_at is not None
            return Seen(job.state, job.attempt, submitted, given_up, attempt.outcome, attempt.events_offset)

    def _start(self) -> None:
        """From queued to starting, unless it was cancelled meanwhile. What is submitted has its job.json first: `_submit`."""
        with self._database.write() as session:
            job = jobs.get(session, self._job_id, lock=True)
            if job.state is not Status.QUEUED:
                return
            jobs.transition(session, job, Status.STARTING)
        self._changes.tell(self._job_id)

    def _take_events(self, seen: Seen) -> bool:
        """Take all events that the attempt's driver has written, whole lines only. Whether there were any."""
        path, offset = self._attempt_dir(seen.attempt).events_file, seen.offset
        while path.exists() and path.stat().st_size > offset:
            with path.open("rb") as file:
                file.seek(offset)
                lines, size = whole_lines(file.read(CHUNK_BYTES))
            if not lines:
                break
            self._change(seen, partial(self._store_events, self._parse(lines), offset, offset + size))
            offset += size
        return offset > seen.offset

    @staticmethod
    def _store_events(
        events: list[DriverEvent], offset: int, new_offset: int, session: Session, job: Job, attempt: Attempt
    ) -> None:
        if attempt.events_offset == offset:  # else another server has taken them, which looked after the job a moment ago
            jobs.take_events(session, job, attempt, events, new_offset)

    def _parse(self, lines: list[bytes]) -> list[DriverEvent]:
        """The events. A line that is none (a disk was full) is logged and left out: it must not hold up the job's end."""
        events = []
        for line in lines:
            try:
                events.append(DriverEvent.parse(line))
            except ValueError as error:
                log.error("job %s: %s", self._job_id, error)
        return events

    def _note_submitted(self, seen: Seen) -> None:
        def note(_session: Session, _job: Job, attempt: Attempt) -> None:
            attempt.submitted_at = utc_now()

        self._change(seen, note)

    def _note_given_up(self, seen: Seen) -> None:
        def note(_session: Session, _job: Job, attempt: Attempt) -> None:
            attempt.given_up_at = utc_now()

        silence_s = self._settings.driver_silence_s
        log.warning("job %s: attempt %d is given up: its driver shows no life for %g s", self._job_id, seen.attempt, silence_s)
        self._change(seen, note)

    def _renewals(self) -> int:
        with self._database.read() as session:
            return jobs.renewals_in_a_row(session, jobs.get(session, self._job_id))

    def _renew(self, seen: Seen, decision: Decision) -> None:
        stored = bytes_in(self._settings.job_dir(self._job_id).path)

        def renew(session: Session, job: Job, _attempt: Attempt) -> None:
            job.stored_bytes = stored
            if job.state is Status.CANCELLING:  # asked for after the decision
                jobs.transition(session, job, Status.CANCELLED)
                return
            assert decision.error is not None
            jobs.renew(session, job, decision.error)

        self._change(seen, renew)

    def _end(self, seen: Seen, decision: Decision) -> None:
        if not seen.submitted:
            job_json.name_none(self._settings, self._job_id)  # a submission that Ray was slow to take may yet start a driver
        entries: list[Entry] = []
        result: dict[str, Any] | None = None
        if decision.status is Status.SUCCEEDED:
            try:
                entries, result = checked_result(self._attempt_dir(seen.attempt))
            except ArtifactError as error:
                failure = {"code": "damaged_result", "message": f"{error}. Resume to make it again", "retryable": True}
                decision = Decision(Act.END, Status.FAILED, failure)

        stored = bytes_in(self._settings.job_dir(self._job_id).path)

        def end(session: Session, job: Job, _attempt: Attempt) -> None:
            job.stored_bytes = stored
            if job.state is Status.CANCELLING:  # also when that was asked for after the decision
                jobs.transition(session, job, Status.CANCELLED)
                return
            assert decision.status is not None
            if decision.status is Status.SUCCEEDED:
                job.result = result
                add_artifacts(session, job, entries)
            jobs.transition(session, job, decision.status, error=decision.error)

        self._change(seen, end)

    def _change(self, seen: Seen, change: Callable[[Session, Job, Attempt], None]) -> None:
        """Change the job in a transaction, unless the attempt that was seen is over, by another server's doing."""
        with self._database.write() as session:
            try:
                job = jobs.get(session, self._job_id, lock=True)
            except NotFoundError:
                return
            if job.attempt != seen.attempt or job.state not in IN_RAY:
                return
            change(session, job, jobs.attempt_of(session, job))
        self._changes.tell(self._job_id)
