"""Looks after one job: submits it, follows its driver, stops it, ends it.

What to do is decided in :mod:`server.policy`, from facts; here they are gathered and the decision is carried out.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from cafe_core.config import JobSpec
from cafe_core.jobdir import AttemptDir, JobFile, utc_now, write_atomically
from server import jobs
from server.changes import Changes, wait_until_set
from server.database import Attempt, Database, Job
from server.errors import NotFoundError
from server.policy import Act, Decision, Facts, decide
from server.progress import DriverEvent, whole_lines
from server.ray_api import RayApi
from server.settings import Settings
from server.states import ENDED, Status
from workers.client import RayError, RayRefusedError

log = logging.getLogger(__name__)

FILES_EVERY_S = 0.3
"""How often a driver's events are looked for."""
RAY_EVERY_S = 1.0
"""How often Ray is asked about a job whose driver runs."""
RAY_SOON_S = 0.2
"""The same while a job starts, is cancelled, or has said its last word."""
REFUSALS_ALLOWED = 5
"""Submissions of an attempt that Ray may refuse before the job fails."""
LAST_WORDS_GRACE_S = 30.0
"""How long a driver may live on after its last event."""
STOP_EVERY_S = 3.0
"""How often a driver that was asked to stop, but lives on, is asked again."""
CHUNK_BYTES = 8 << 20


def log_file(attempt: AttemptDir) -> Path:
    """Where the server keeps what an ended attempt printed."""
    return attempt.path / "driver.log"


@dataclass(frozen=True)
class _Seen:
    """A job as it was in the database."""

    status: Status
    attempt: int
    submitted: bool
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
        self._stop_heard_at = float("-inf")
        self._refusals = 0
        self._last_words_at: float | None = None

    async def run(self) -> None:
        """Returns when the job has ended, or was deleted."""
        with self._changes.watching(self._job_id) as changed:
            ray_asked = float("-inf")
            while True:
                changed.clear()
                seen = await asyncio.to_thread(self._look)
                if seen is None:
                    return
                near_an_end = seen.status is not Status.RUNNING or seen.last_words is not None
                now = time.monotonic()
                if now - ray_asked >= (RAY_SOON_S if near_an_end else RAY_EVERY_S):
                    ray_asked = now
                    try:
                        if await self._step(seen):
                            return
                    except RayError as error:
                        log.warning("job %s: %s", self._job_id, error)
                        await asyncio.sleep(RAY_EVERY_S)
                await wait_until_set(changed, FILES_EVERY_S)

    async def _step(self, seen: _Seen) -> bool:
        """Ask Ray, decide, act. True when the job has ended. Raises RayError."""
        ray_job = await self._ray.job(self._job_id, seen.attempt)
        if ray_job is None or ray_job.state.ended:
            # The driver may have written its last events after they were last looked for.
            latest = await asyncio.to_thread(self._look)
            if latest is None:
                return True
            seen = latest
        has_result = self._attempt_dir(seen.attempt).manifest_file.exists()
        stop_asked = time.monotonic() - self._stop_heard_at < STOP_EVERY_S
        decision = decide(Facts(seen.status, seen.submitted, ray_job, seen.last_words, has_result, stop_asked))
        match decision.act:
            case Act.SUBMIT:
                return await self._submit(seen.attempt)
            case Act.STOP:
                await self._stop(seen.attempt)
            case Act.END:
                await self._keep_logs(seen.attempt)
                await asyncio.to_thread(self._end, decision)
                return True
            case Act.WAIT:
                if not seen.submitted:
                    await asyncio.to_thread(self._note_submitted)
                await self._stop_if_it_lingers(seen)
        return False

    async def _submit(self, attempt: int) -> bool:
        """True when Ray will not take the job, and it has failed for that."""
        job_dir = self._settings.job_dir(self._job_id)
        try:
            await self._ray.submit(job_dir.path, self._job_id, attempt, python=self._settings.python)
        except RayRefusedError as error:
            self._refusals += 1
            if self._refusals < REFUSALS_ALLOWED:
                raise
            failure = {"code": "submission_failed", "message": f"Ray does not take the job: {error}", "retryable": True}
            await asyncio.to_thread(self._end, Decision(Act.END, Status.FAILED, failure))
            return True
        await asyncio.to_thread(self._note_submitted)
        return False

    async def _stop(self, attempt: int) -> None:
        """What Ray has yet to start a supervisor for hears nothing: it is asked again at the next step."""
        if await self._ray.stop(self._job_id, attempt):
            self._stop_heard_at = time.monotonic()

    async def _stop_if_it_lingers(self, seen: _Seen) -> None:
        """A driver that has said its last word but does not end is stopped: what it holds is needed."""
        if seen.last_words is None:
            return
        now = time.monotonic()
        self._last_words_at = self._last_words_at or now
        if now - self._last_words_at > LAST_WORDS_GRACE_S and now - self._stop_heard_at >= STOP_EVERY_S:
            log.warning("job %s: its driver lives on %g s after its last word; stopping it", self._job_id, LAST_WORDS_GRACE_S)
            await self._stop(seen.attempt)

    async def _keep_logs(self, attempt: int) -> None:
        """Keep what the driver printed with the job: Ray forgets it when it is started anew."""
        try:
            text = await self._ray.logs(self._job_id, attempt)
        except RayRefusedError as error:
            log.warning("job %s: its logs cannot be kept: %s", self._job_id, error)
            return
        if text is not None:
            path = log_file(self._attempt_dir(attempt))
            await asyncio.to_thread(write_atomically, path, text.encode("utf-8", "replace"))

    def _attempt_dir(self, attempt: int) -> AttemptDir:
        return self._settings.job_dir(self._job_id).attempt(attempt)

    # From here on: called in threads.

    def _look(self) -> _Seen | None:
        """The job as it is after taking its driver's new events; None when it has ended or is gone. Starts a queued one."""
        seen = self._read()
        if seen is not None and seen.status is Status.QUEUED:
            self._start()
            seen = self._read()
        if seen is None or seen.status in ENDED:
            return None
        return self._read() if self._take_events(seen) else seen

    def _read(self) -> _Seen | None:
        with self._database.read() as session:
            try:
                job = jobs.get(session, self._job_id)
            except NotFoundError:
                return None
            attempt = jobs.attempt_of(session, job)
            return _Seen(job.state, job.attempt, attempt.submitted_at is not None, attempt.outcome, attempt.events_offset)

    def _start(self) -> None:
        """From queued to starting, unless it was cancelled meanwhile. job.json is there before anything is submitted."""
        with self._database.write() as session:
            job = jobs.get(session, self._job_id, lock=True)
            if job.state is not Status.QUEUED:
                return
            file = JobFile(
                job_id=job.id,
                spec=JobSpec.model_validate(job.spec),
                roots=self._settings.roots,
                max_restarts=self._settings.max_restarts,
                collective_timeout_s=self._settings.collective_timeout_s,
            )
            content = file.model_dump_json(exclude_none=True, indent=2).encode()
            write_atomically(self._settings.job_dir(job.id).job_file, content)
            jobs.transition(session, job, Status.STARTING)
        self._changes.tell(self._job_id)

    def _take_events(self, seen: _Seen) -> bool:
        """Take all events that the attempt's driver has written, whole lines only. Whether there were any."""
        path, offset = self._attempt_dir(seen.attempt).events_file, seen.offset
        while path.exists() and path.stat().st_size > offset:
            with path.open("rb") as file:
                file.seek(offset)
                lines, size = whole_lines(file.read(CHUNK_BYTES))
            if not lines:
                break
            offset += size
            self._change(partial(jobs.take_events, events=self._parse(lines), new_offset=offset))
        return offset > seen.offset

    def _parse(self, lines: list[bytes]) -> list[DriverEvent]:
        """The events. A line that is none (a disk was full) is logged and left out: it must not hold up the job's end."""
        events = []
        for line in lines:
            try:
                events.append(DriverEvent.parse(line))
            except ValueError as error:
                log.error("job %s: %s", self._job_id, error)
        return events

    def _note_submitted(self) -> None:
        def note(_session: Session, _job: Job, attempt: Attempt) -> None:
            attempt.submitted_at = utc_now()

        self._change(note)

    def _end(self, decision: Decision) -> None:
        def end(session: Session, job: Job, attempt: Attempt) -> None:
            if job.state is Status.CANCELLING:  # also when that was asked for after the decision
                jobs.transition(session, job, Status.CANCELLED)
                return
            assert decision.status is not None
            if decision.status is Status.SUCCEEDED:
                job.result = json.loads(self._attempt_dir(attempt.number).result_file.read_bytes())
            jobs.transition(session, job, decision.status, error=decision.error)

        self._change(end)

    def _change(self, change: Callable[[Session, Job, Attempt], None]) -> None:
        with self._database.write() as session:
            job = jobs.get(session, self._job_id, lock=True)
            change(session, job, jobs.attempt_of(session, job))
        self._changes.tell(self._job_id)
