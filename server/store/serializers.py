"""Convert database rows to the API's schemas."""

from __future__ import annotations

import json
from collections.abc import Sequence

from cafe_core.spec.dataset import DatasetInfo
from server import schemas
from server.store import models


def job(row: models.Job, root: str = "") -> schemas.Job:
    """Return a job. root: the path prefix of its links."""
    here = f"{root}/v1/jobs/{row.id}"
    links = {name: f"{here}/{name}" for name in ("events", "logs", "artifacts", "synthetic")}
    has_trials = row.kind != "condense" or "evaluation" in row.spec
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
            "links": {
                "self": here,
                "preview": f"{here}/preview.png",
                "trials": f"{here}/trials" if has_trials else None,
                **links,
            },
        }
    )


def job_page(jobs: Sequence[str], *, next_cursor: str | None) -> str:
    """Return a JobPage as JSON from jobs that are JSON already."""
    return f'{{"data":[{",".join(jobs)}],"next_cursor":{json.dumps(next_cursor)}}}'


_UNKNOWN_AT_UPLOAD = ("mean", "std")
"""Fields of a description that version 0.1 filled with placeholders."""


def dataset_list(datasets: Sequence[str]) -> str:
    """Return a DatasetList as JSON from datasets that are JSON already."""
    return f'{{"data":[{",".join(datasets)}]}}'


def job_etag(row: models.Job) -> str:
    """Return a strong ETag: every change to the row increments its version."""
    return f'"{row.id}-{row.version}"'


def event(row: models.Event) -> schemas.Event:
    """Return an event."""
    return schemas.Event(id=row.number, attempt=row.attempt, time=row.time, type=row.type, data=row.data)


def dataset(row: models.Dataset, info: DatasetInfo | None = None) -> schemas.Dataset:
    """Return an uploaded dataset. info: its description now, which has `mean` and `std` once a job has decoded the images."""
    stored = row.info and {name: value for name, value in row.info.items() if name not in _UNKNOWN_AT_UPLOAD}
    return schemas.Dataset.model_validate(
        {
            "id": row.id,
            "name": row.name,
            "source": "uploaded",
            "size": row.size,
            "sha256": row.sha256,
            "created_at": row.created_at,
            "info": stored if info is None else info,
        }
    )


def builtin_dataset(info: DatasetInfo) -> schemas.Dataset:
    """Return a built-in dataset."""
    return schemas.Dataset(id=info.name, name=info.name, source="builtin", size=None, sha256=None, created_at=None, info=info)
