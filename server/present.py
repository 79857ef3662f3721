"""Rows of the database as the API shows them."""

from __future__ import annotations

from cafe_core.config import DatasetInfo
from server import database, schemas


def job(row: database.Job) -> schemas.Job:
    """A job."""
    here = f"/v1/jobs/{row.id}"
    links = {name: f"{here}/{name}" for name in ("events", "logs", "artifacts", "synthetic")}
    return schemas.Job.model_validate(
        {
            "id": row.id,
            "kind": row.kind,
            "name": row.name,
            "labels": {label.key: label.value for label in row.labels},
            "status": row.status,
            "attempt": row.attempt,
            "phase": row.phase,
            "progress": {"done": row.done, "total": row.total, "eta_s": row.eta_s},
            "spec": row.spec,
            "result": row.result,
            "error": row.error,
            "created_at": row.created_at,
            "started_at": row.started_at,
            "finished_at": row.finished_at,
            "links": {"self": here, "preview": f"{here}/preview.png", **links},
        }
    )


def job_etag(row: database.Job) -> str:
    """Strong: the same for the same bytes only, as every change to the row counts its version up."""
    return f'"{row.id}-{row.version}"'


def event(row: database.Event) -> schemas.Event:
    """An event."""
    return schemas.Event(id=row.number, attempt=row.attempt, time=row.time, type=row.type, data=row.data)


def dataset(row: database.Dataset) -> schemas.Dataset:
    """An uploaded dataset."""
    return schemas.Dataset.model_validate(
        {
            "id": row.id,
            "name": row.name,
            "source": "uploaded",
            "size": row.size,
            "sha256": row.sha256,
            "created_at": row.created_at,
            "info": row.info,
        }
    )


def builtin_dataset(info: DatasetInfo) -> schemas.Dataset:
    """A built-in dataset."""
    return schemas.Dataset(id=info.name, name=info.name, source="builtin", size=None, sha256=None, created_at=None, info=info)
