"""A job's job.json, as the server writes it: what its driver is to do, and which attempt may write (:mod:`cafe_core.jobs.fence`).

It is written outside of transactions: SQLite has one writer at a time, and a disk that is slow or hangs is not to hold up all of
them. So a job is `starting` first and then has its job.json, before each try to submit it: who dies in between leaves a job that
was not submitted, and whoever looks after it next begins with the file again.
"""

from __future__ import annotations

import logging
from typing import Any

from cafe_core.errors import DiskFullError, StaleAttemptError
from cafe_core.files import write_atomically
from cafe_core.jobs.jobdir import JobFile
from cafe_core.spec.job import parse_job_spec
from server.errors import NotFoundError
from server.settings import Settings
from server.states import Status
from server.store import jobs
from server.store.database import Database
from server.store.models import Job

log = logging.getLogger(__name__)


def authorize_attempt(database: Database, settings: Settings, job_id: str, attempt: int) -> None:
    """Have job.json name an attempt that starts: from here on no other one writes.

    Raises StaleAttemptError, and leaves the file, where that attempt is over: a server that was cut off, or waited long for the
    disk, is not to undo what the one after it wrote. Raises DiskFullError or OSError where the file cannot be written.
    """

    def still_starts() -> None:
        _starting(database, job_id, attempt)

    file = JobFile(
        job_id=job_id,
        attempt=attempt,
        spec=parse_job_spec(_starting(database, job_id, attempt).spec),
        roots=settings.roots,
        max_restarts=settings.max_restarts,
        collective_timeout_s=settings.collective_timeout_s,
    )
    write_atomically(settings.job_dir(job_id).job_file, _content(file), fence=still_starts)


def revoke_attempts(settings: Settings, job_id: str) -> None:
    """Have job.json name no attempt: a driver that starts all the same ends at its first look. A resume names one again."""
    path = settings.job_dir(job_id).job_file
    try:
        file = JobFile.model_validate_json(path.read_bytes())
        write_atomically(path, _content(file.model_copy(update={"attempt": 0})))
    except FileNotFoundError:
        return  # nor does any driver start without it
    except (OSError, DiskFullError) as error:  # as where the disk is full: the job ends all the same
        log.warning("job %s: a driver that Ray starts late would not be kept from writing: %s", job_id, error)


def failure(error: OSError | DiskFullError) -> dict[str, Any]:
    """The error of a job whose job.json cannot be written."""
    if isinstance(error, DiskFullError):
        return error.as_dict()
    message = f"its job.json could not be written: {error.strerror or error}. Resume when that is mended"
    return {"code": "submission_failed", "message": message, "retryable": True}


def _starting(database: Database, job_id: str, attempt: int) -> Job:
    with database.read() as session:
        try:
            job = jobs.get(session, job_id)
        except NotFoundError as error:
            raise StaleAttemptError(f"job {job_id} was deleted") from error
    if job.attempt != attempt or job.state not in (Status.STARTING, Status.RUNNING):  # running: by events that came first
        raise StaleAttemptError(f"attempt {attempt} of job {job_id} is over: the job is {job.status}, with attempt {job.attempt}")
    return job


def _content(file: JobFile) -> bytes:
    return file.model_dump_json(exclude_none=True, indent=2).encode()
