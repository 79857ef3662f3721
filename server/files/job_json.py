"""Write a job's job.json, which contains the driver's task and the attempt that may write files (:mod:`cafe_core.jobs.fence`).

It is written outside of transactions: SQLite has one writer at a time, and a slow disk must not block all of them. The job
becomes `starting` first, then job.json is written before each try to submit it. A server that dies in between leaves a job that
was not submitted, and the next leader starts by writing the file again.
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
    """Name an attempt in job.json: from now on only this attempt may write.

    Raises StaleAttemptError and leaves the file unchanged if the attempt is over, so that a server that was disconnected or
    waited long for the disk does not overwrite its successor's file. Raises DiskFullError or OSError if writing fails.
    """

    def check_current() -> None:
        _starting(database, job_id, attempt)

    file = JobFile(
        job_id=job_id,
        attempt=attempt,
        spec=parse_job_spec(_starting(database, job_id, attempt).spec),
        roots=settings.roots,
        max_restarts=settings.max_restarts,
        collective_timeout_s=settings.collective_timeout_s,
    )
    write_atomically(settings.job_dir(job_id).job_file, _content(file), fence=check_current)


def revoke_attempts(settings: Settings, job_id: str) -> None:
    """Forbid all attempts to write: a driver that starts late ends at its first check. A resume authorizes an attempt again."""
    path = settings.job_dir(job_id).job_file
    try:
        file = JobFile.model_validate_json(path.read_bytes())
        write_atomically(path, _content(file.model_copy(update={"attempt": 0})))
    except FileNotFoundError:
        return  # without job.json, no driver starts
    except (OSError, DiskFullError) as error:  # for example a full disk: the job ends anyway
        log.warning("job %s: cannot revoke its attempts; a driver that Ray starts late could still write: %s", job_id, error)


def failure(error: OSError | DiskFullError) -> dict[str, Any]:
    """Return the error of a job whose job.json cannot be written."""
    if isinstance(error, DiskFullError):
        return error.as_dict()
    message = f"its job.json could not be written: {error.strerror or error}. Fix the cause, then resume"
    return {"code": "submission_failed", "message": message, "retryable": True}


def _starting(database: Database, job_id: str, attempt: int) -> Job:
    with database.read() as session:
        try:
            job = jobs.get(session, job_id)
        except NotFoundError as error:
            raise StaleAttemptError(f"job {job_id} was deleted") from error
    if job.attempt != attempt or job.state not in (Status.STARTING, Status.RUNNING):  # its events may be stored already
        raise StaleAttemptError(f"attempt {attempt} of job {job_id} is over: the job is {job.status}, with attempt {job.attempt}")
    return job


def _content(file: JobFile) -> bytes:
    return file.model_dump_json(exclude_none=True, indent=2).encode()
