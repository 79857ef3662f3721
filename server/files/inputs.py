"""Store the synthetic set of an evaluate job in the job's directory when the job is submitted."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from cafe_core.errors import DiskFullError
from cafe_core.jobs.jobdir import JobDir
from server.errors import UnavailableError
from server.store.database import Database, DatabaseClosedError, advisory_lock
from server.store.models import Job

if TYPE_CHECKING:
    from cafe_core.synthetic_set.synthetic_set import SyntheticSet

log = logging.getLogger(__name__)

Keep = Callable[[Session], None]


@contextmanager
def stage_input(database: Database, directory: JobDir, input_set: SyntheticSet | None) -> Iterator[Keep]:
    """Write the file before the transaction that creates the job, and remove it if the transaction does not create one.

    Yields a function to call last in the transaction if it creates the job. Raises UnavailableError if the disk is full.
    """
    if input_set is None:
        yield lambda _session: None
        return
    job_id, kept = directory.path.name, False

    def keep(session: Session) -> None:
        nonlocal kept
        advisory_lock(session, _creation_lock(job_id))
        kept = True

    try:
        _save(input_set, directory.input_file)
        yield keep
    except BaseException:
        # A commit may raise although it succeeded in the database, if only the response was lost.
        if not kept or not _may_exist(database, job_id):
            _remove(directory.path)
        raise
    if not kept:
        _remove(directory.path)


def remove_abandoned(jobs: Path, known: Collection[str]) -> None:
    """Remove directories left by a server that died during a submission. Call it at startup, before serving.

    Such a directory belongs to no job in the database and has no job.json, which every job that was submitted to Ray has.
    """
    for path in jobs.glob("job_*"):
        if path.name not in known and not JobDir(path).job_file.exists():
            _remove(path)


def _creation_lock(job_id: str) -> str:
    return f"making {job_id}"


def _may_exist(database: Database, job_id: str) -> bool:
    """Return whether the job exists, after waiting for the transaction that creates it to end.

    Also return True if the database does not answer: files that no job needs are removed at the next start.
    """
    try:
        with database.read() as session:
            advisory_lock(session, _creation_lock(job_id))
            return session.scalar(select(Job.id).where(Job.id == job_id)) is not None
    except (SQLAlchemyError, DatabaseClosedError) as error:
        log.warning("cannot tell whether job %s was created; keeping its files for now: %s", job_id, error)
        return True


def _save(input_set: SyntheticSet, path: Path) -> None:
    try:
        input_set.save(path)
    except DiskFullError as error:
        raise UnavailableError(str(error)) from error


def _remove(directory: Path) -> None:
    if directory.exists():
        shutil.rmtree(directory)
