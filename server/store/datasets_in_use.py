"""Find and lock the uploaded datasets that jobs read: they cannot be deleted while a job needs them."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from cafe_core.spec.condense import CondenseSpec
from cafe_core.spec.evaluate import EvaluateSpec
from cafe_core.spec.job import JobSpec, parse_job_spec
from server.errors import ConflictError
from server.states import ENDED
from server.store.models import Dataset, Job


def datasets_in_use(session: Session) -> set[str]:
    """Return the ids of the uploaded datasets that unfinished jobs read."""
    specs = session.scalars(select(Job.spec).where(Job.status.not_in([s.value for s in ENDED])))
    return {dataset_id for spec in specs for dataset_id in _dataset_ids(parse_job_spec(spec))}


def lock_datasets(session: Session, spec: JobSpec) -> None:
    """Lock the uploaded datasets that a new job reads, so that none is deleted before the job is committed.

    Raises ConflictError if one was deleted since the spec was validated.
    """
    wanted = set(_dataset_ids(spec))
    held = select(Dataset.id).where(Dataset.id.in_(wanted)).order_by(Dataset.number).with_for_update(read=True)
    if missing := wanted - set(session.scalars(held) if wanted else ()):
        raise ConflictError(f"the dataset {min(missing)} has just been deleted")


def _dataset_ids(spec: JobSpec) -> set[str]:
    """Return the ids of the uploaded datasets that a job reads."""
    if isinstance(spec, CondenseSpec):
        named = [spec.dataset.id]
    elif isinstance(spec, EvaluateSpec):
        named = [dataset.id for dataset in (spec.dataset, spec.synthetic.dataset) if dataset is not None]
    else:
        named = [spec.base.dataset.id]
        for path, dimension in spec.space.items():
            values = dimension.grid or dimension.choice or []
            if path == "dataset":
                named += [dataset.get("id") for dataset in values]
            elif path == "dataset.id":
                named += values
    return {id for id in named if id is not None}
