"""What the API answers with. /openapi.json documents these."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from cafe_core.config import DatasetInfo, JobSpec
from cafe_core.estimate import Estimate
from server.states import Status


class _Schema(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class FieldError(_Schema):
    """A field of the request, and why it was refused."""

    loc: str
    """The field's path, e.g. `resources.workers`."""
    msg: str


class Problem(_Schema):
    """An error (RFC 9457), as application/problem+json."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    errors: list[FieldError] | None = None
    """The refused fields (422)."""


class Progress(_Schema):
    """Iterations while condensing, networks while evaluating."""

    done: int
    total: int
    eta_s: float | None
    """Seconds left, as estimated by the workers."""


class JobError(_Schema):
    """Why a job failed."""

    code: str
    message: str
    retryable: bool
    """Whether a resume may succeed without a change."""


class JobLinks(_Schema):
    """Paths on this server."""

    self: str
    events: str
    logs: str
    artifacts: str
    synthetic: str
    preview: str


class Job(_Schema):
    """A job."""

    id: str
    kind: Literal["condense"]
    name: str | None
    labels: dict[str, str]
    status: Status
    attempt: int
    """1 for the first run, one more with each resume."""
    phase: str | None
    """What the driver does: preparing, waiting_for_resources, starting_workers, condensing, evaluating, publishing."""
    progress: Progress
    spec: dict[str, Any]
    """Resolved: every default written out."""
    result: dict[str, Any] | None
    error: JobError | None
    created_at: str
    started_at: str | None
    finished_at: str | None
    links: JobLinks


class JobPage(_Schema):
    """Jobs, newest first."""

    data: list[Job]
    next_cursor: str | None
    """Ask again with `cursor=` this for the next page; null: there is none."""


class Estimates(Estimate):
    """What a job will take, beside what there is."""

    available_memory_bytes: int
    """What a worker has on this cluster."""


class DryRun(_Schema):
    """What a POST without `dry_run` would make."""

    spec: JobSpec
    estimates: Estimates
    dataset: DatasetInfo


class Event(_Schema):
    """Something that happened to a job."""

    id: int
    """1, 2, … within the job."""
    attempt: int
    time: str
    type: str
    """status, phase, workers, iteration, checkpoint, restart, evaluated, finished, failed, cancelled."""
    data: dict[str, Any]


class EventPage(_Schema):
    """Events, oldest first."""

    data: list[Event]
    next_after: int
    """Ask again with `after=` this for what comes next."""


class Artifact(_Schema):
    """A file of a job's result."""

    name: str
    size: int
    sha256: str
    media_type: str
    href: str


class ArtifactList(_Schema):
    """A job's manifest; empty until it has a result."""

    data: list[Artifact]


class Dataset(_Schema):
    """A built-in or an uploaded dataset."""

    id: str
    """For a job's `dataset`: `{"name": id}` of a built-in one, `{"id": id}` of an uploaded one."""
    name: str
    source: Literal["builtin", "uploaded"]
    size: int | None
    """Bytes uploaded."""
    sha256: str | None
    created_at: str | None
    info: DatasetInfo | None
    """Classes, counts, shape; null where they are not known yet (not downloaded, or they depend on `image_size`)."""


class DatasetList(_Schema):
    """The built-in datasets, then the uploaded ones, newest first."""

    data: list[Dataset]


class Capacity(_Schema):
    """Of one kind of resource."""

    total: float
    free: float


class Node(_Schema):
    """A machine of the cluster."""

    id: str
    ip: str
    is_head: bool
    cpus: Capacity
    gpus: Capacity
    gpu_names: list[str]
    memory_bytes: int


class Cluster(_Schema):
    """The Ray cluster. What is free is as Ray reported it last (every 5 s)."""

    ray_version: str
    dashboard_url: str
    cpus: Capacity
    gpus: Capacity
    nodes: list[Node]


class Health(_Schema):
    """`ok`, or a 503 with a problem."""

    status: Literal["ok"] = "ok"
