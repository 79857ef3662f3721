"""The synthetic set that an evaluate job judges: kept with the job from its submission on, and by no job that was not made."""

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
def stage_input(database: Database, directory: JobDir, judged: SyntheticSet | None) -> Iterator[Keep]:
    """Around the transaction that makes the job; yields what is to be called last in it where it does make the job.

    The file is there before anyone sees the job, and goes again when the transaction makes none. Raises UnavailableError where
    there is no space for it.
    """
    if judged is None:
        yield lambda _session: None
        return
    job_id, kept = directory.path.name, False

    def keep(session: Session) -> None:
        nonlocal kept
        advisory_lock(session, _making(job_id))
        kept = True

    try:
        _save(judged, directory.input_file)
        yield keep
    except BaseException:
        # A transaction that failed as late as in its commit may have been committed: only the answer was lost then.
        if not kept or not _may_exist(database, job_id):
            _remove(directory.path)
        raise
    if not kept:
        _remove(directory.path)


def remove_abandoned(jobs: Path, known: Collection[str]) -> None:
    """At the start, before anything else: remove what a server that died amid a submission has left.

    That is a directory of no job that the database knows, without the job.json that every job has that was ever submitted to Ray.
    """
    for path in jobs.glob("job_*"):
        if path.name not in known and not JobDir(path).job_file.exists():
            _remove(path)


def _making(job_id: str) -> str:
    return f"making {job_id}"


def _may_exist(database: Database, job_id: str) -> bool:
    """Whether there is the job. Waits for the transaction that was to make it, should the database still be at it.

    Also True where the database does not say: what no job needs is cleared at the next start.
    """
    try:
        with database.read() as session:
            advisory_lock(session, _making(job_id))
            return session.scalar(select(Job.id).where(Job.id == job_id)) is not None
    except (SQLAlchemyError, DatabaseClosedError) as error:
        log.warning("job %s may or may not have been made; its files stay for now: %s", job_id, error)
        return True


def _save(judged: SyntheticSet, path: Path) -> None:
    try:
        judged.save(path)
    except DiskFullError as error:
        raise UnavailableError(str(error)) from error


def _remove(directory: Path) -> None:
    if directory.exists():
        shutil.rmtree(directory)
