"""Access the database for reconciling one job: read it, store its driver's events, and record the outcome of attempts.

All methods block, so the keeper calls them in threads.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy.orm import Session

from cafe_core.jobs.jobdir import AttemptDir, utc_now
from server.errors import NotFoundError
from server.files import job_json
from server.files.job_files import bytes_in
from server.files.manifests import ArtifactError, Entry, add_artifacts, checked_result
from server.reconciler.policy import Act, Decision
from server.settings import Settings
from server.states import ENDED, IN_RAY, Status
from server.store import jobs
from server.store.changes import Changes
from server.store.database import Database
from server.store.models import Attempt, Job
from server.store.progress import DriverEvent, whole_lines

log = logging.getLogger(__name__)

CHUNK_BYTES = 8 << 20


@dataclass(frozen=True)
class JobSnapshot:
    """A job and its current attempt, as last read from the database."""

    status: Status
    attempt: int
    submitted: bool
    given_up: bool
    terminal_event: dict[str, Any] | None
    offset: int
    """Bytes of the attempt's events.jsonl that are in the database."""


class JobRecord:
    """One job in the database, together with its driver's event log."""

    def __init__(self, job_id: str, database: Database, settings: Settings, changes: Changes) -> None:
        self._job_id = job_id
        self._database = database
        self._settings = settings
        self._changes = changes

    def sync(self) -> JobSnapshot | None:
        """Start the job if it is queued, store its driver's new events, and return it; None if it has ended or was deleted."""
        seen = self._read()
        if seen is not None and seen.status is Status.QUEUED:
            self._start()
            seen = self._read()
        if seen is None or seen.status in ENDED:
            return None
        return self._read() if self._take_events(seen) else seen

    def attempt_dir(self, attempt: int) -> AttemptDir:
        """Return the directory of an attempt."""
        return self._settings.job_dir(self._job_id).attempt(attempt)

    def consecutive_losses(self) -> int:
        """Return the number of consecutive losses, see :func:`server.store.jobs.consecutive_losses`."""
        with self._database.read() as session:
            return jobs.consecutive_losses(session, jobs.get(session, self._job_id))

    def mark_submitted(self, seen: JobSnapshot) -> None:
        """Record that Ray has accepted the attempt."""

        def mark(_session: Session, _job: Job, attempt: Attempt) -> None:
            attempt.submitted_at = utc_now()

        self._change(seen, mark)

    def mark_given_up(self, seen: JobSnapshot) -> None:
        """Record that the attempt is given up because its driver is silent."""

        def mark(_session: Session, _job: Job, attempt: Attempt) -> None:
            attempt.given_up_at = utc_now()

        silence_s = self._settings.driver_silence_s
        log.warning("job %s: giving up attempt %d: no heartbeat from its driver for %g s", self._job_id, seen.attempt, silence_s)
        self._change(seen, mark)

    def retry(self, seen: JobSnapshot, decision: Decision) -> None:
        """Queue a new attempt in place of a lost one."""
        stored = bytes_in(self._settings.job_dir(self._job_id).path)

        def retry(session: Session, job: Job, _attempt: Attempt) -> None:
            job.stored_bytes = stored
            if job.state is Status.CANCELLING:  # cancelled after the decision was made
                jobs.transition(session, job, Status.CANCELLED)
                return
            assert decision.error is not None
            jobs.retry_lost(session, job, decision.error)

        self._change(seen, retry)

    def end(self, seen: JobSnapshot, decision: Decision) -> None:
        """End the job as decided, after verifying the files of a successful result."""
        if not seen.submitted:
            job_json.revoke_attempts(self._settings, self._job_id)  # a submission in flight may still start a driver
        entries: list[Entry] = []
        result: dict[str, Any] | None = None
        if decision.status is Status.SUCCEEDED:
            try:
                entries, result = checked_result(self.attempt_dir(seen.attempt))
            except ArtifactError as error:
                failure = {"code": "damaged_result", "message": f"{error}. Resume to compute it again", "retryable": True}
                decision = Decision(Act.END, Status.FAILED, failure)

        stored = bytes_in(self._settings.job_dir(self._job_id).path)

        def end(session: Session, job: Job, _attempt: Attempt) -> None:
            job.stored_bytes = stored
            if job.state is Status.CANCELLING:  # possibly cancelled after the decision was made
                jobs.transition(session, job, Status.CANCELLED)
                return
            assert decision.status is not None
            if decision.status is Status.SUCCEEDED:
                job.result = result
                add_artifacts(session, job, entries)
            jobs.transition(session, job, decision.status, error=decision.error)

        self._change(seen, end)

    def _read(self) -> JobSnapshot | None:
        with self._database.read() as session:
            try:
                job = jobs.get(session, self._job_id)
            except NotFoundError:
                return None
            attempt = jobs.attempt_of(session, job)
            submitted, given_up = attempt.submitted_at is not None, attempt.given_up_at is not None
            return JobSnapshot(job.state, job.attempt, submitted, given_up, attempt.outcome, attempt.events_offset)

    def _start(self) -> None:
        """Move the job from queued to starting, unless it was cancelled meanwhile. Its job.json is written before submission."""
        with self._database.write() as session:
            job = jobs.get(session, self._job_id, lock=True)
            if job.state is not Status.QUEUED:
                return
            jobs.transition(session, job, Status.STARTING)
        self._changes.notify(self._job_id)

    def _take_events(self, seen: JobSnapshot) -> bool:
        """Store all complete lines that the attempt's driver has written, and return whether there were any."""
        path, offset = self.attempt_dir(seen.attempt).events_file, seen.offset
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
        if attempt.events_offset == offset:  # otherwise the previous leader has just stored them
            jobs.take_events(session, job, attempt, events, new_offset)

    def _parse(self, lines: list[bytes]) -> list[DriverEvent]:
        """Parse events. Log and skip a malformed line (left by a full disk), so that it does not prevent the job from ending."""
        events = []
        for line in lines:
            try:
                events.append(DriverEvent.parse(line))
            except ValueError as error:
                log.error("job %s: %s", self._job_id, error)
        return events

    def _change(self, seen: JobSnapshot, change: Callable[[Session, Job, Attempt], None]) -> None:
        """Change the job in a transaction, unless another server has ended or replaced the attempt since it was read."""
        with self._database.write() as session:
            try:
                job = jobs.get(session, self._job_id, lock=True)
            except NotFoundError:
                return
            if job.attempt != seen.attempt or job.state not in IN_RAY:
                return
            change(session, job, jobs.attempt_of(session, job))
        self._changes.notify(self._job_id)
