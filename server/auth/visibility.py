"""Find jobs and datasets that a client may see. Those of other keys are reported as not found."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.auth.access import Principal
from server.errors import NotFoundError
from server.store import jobs
from server.store.models import Dataset, Job


def find_job(session: Session, principal: Principal, job_id: str, *, lock: bool = False) -> Job:
    """Return a job that `principal` may see; see :func:`server.store.jobs.get`. Raises NotFoundError."""
    job = jobs.get(session, job_id, lock=lock)
    if not principal.sees(job.owner):
        raise NotFoundError(f"there is no job {job_id!r}")  # the same text as in jobs.get
    return job


def find_dataset(session: Session, principal: Principal, dataset_id: str, *, lock: bool = False) -> Dataset:
    """Return an uploaded dataset. `lock` prevents new jobs from using it until the transaction ends. Raises NotFoundError."""
    query = select(Dataset).where(Dataset.id == dataset_id)
    row = session.scalar(query.with_for_update() if lock else query)
    if row is None or not principal.sees(row.owner):
        raise NotFoundError(f"there is no dataset {dataset_id!r}")
    return row


def listed_owner(principal: Principal) -> str | None:
    """Return the owner whose jobs and datasets to list; None: all owners."""
    return None if principal.is_admin else principal.key_id
