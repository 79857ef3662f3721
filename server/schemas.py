"""What the API answers with. /openapi.json documents these."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict

from cafe_core.spec.dataset import DatasetInfo
from cafe_core.spec.estimate import Estimate
from server.states import Status

JobKind: TypeAlias = Literal["condense", "evaluate", "sweep"]


class _Schema(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class Progress(_Schema):
    """Iterations while condensing, networks while evaluating, trials while sweeping."""

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
    trials: str | None
    """Of evaluations and sweeps."""


class Job(_Schema):
    """A job."""

    id: str
    kind: JobKind
    name: str | None
    labels: dict[str, str]
    status: Status
    attempt: int
    """1 for the first run, one more with each resume, and each that the server made itself for one that was lost."""
    phase: str | None
    """What the driver does: preparing, waiting_for_resources, starting_workers, condensing, validating, evaluating, sweeping,
    publishing."""
    progress: Progress
    spec: dict[str, Any]
    """Resolved: every default written out, but for those of a sweep's `base`, which each trial has its own of."""
    result: dict[str, Any] | None
    """By kind, each with `versions` and `seconds`. Accuracies are in percent.

    An evaluation: `{"networks": [{"name", "mean", "std", "n", "accuracies"}], "baselines": {"random": {"networks": [...]}}}`,
    with `augmentations` (the same for each) where there are several, and `scores` where there is what they compare.

    * condense: `iterations`, `images`, `evaluation` (or null); with a validation `best_iteration` and
      `validations: [{"iteration", "mean", "accuracies"}]`
    * evaluate: an evaluation
    * sweep: `metric` (`evaluation` or `validation`: what trials are compared by), `best` (its row of the trials, with its
      `result`), `trials: {"succeeded", "stopped", "failed", "total"}`
    """
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


class PlannedTrials(_Schema):
    """A sweep's trials."""

    total: int
    first: list[dict[str, Any]]
    """What the first 20 set."""


class DryRun(_Schema):
    """What a POST without `dry_run` would make."""

    spec: dict[str, Any]
    """Resolved, as the job's."""
    estimates: Estimates
    """Of a sweep: of the trial that holds most."""
    dataset: DatasetInfo
    total: int
    """Iterations, networks to train, or trials."""
    trials: PlannedTrials | None
    """Of a sweep."""


class Event(_Schema):
    """Something that happened to a job."""

    id: int
    """1, 2, … within the job."""
    attempt: int
    time: str
    type: str
    """status, phase, workers, epoch, iteration, checkpoint, validated, evaluated, trials, trial_started, trial_validated, trial,
    restart, finished, failed, cancelled."""
    data: dict[str, Any]


class EventPage(_Schema):
    """Events, oldest first."""

    data: list[Event]
    next_after: int
    """Ask again with `after=` this for what comes next."""


class NetworkTrial(_Schema):
    """A network that was trained and tested."""

    source: Literal["synthetic", "random", "whole"]
    """What it was trained on: the set that is judged, random real images, or all of them."""
    network: str
    """Its kind's name."""
    index: int
    """0, 1, … in the spec's `networks`: several kinds may have the same name."""
    augment: str
    repeat: int
    """0, 1, … of its kind."""
    accuracy: float
    """Percent."""


class SweepTrial(_Schema):
    """A setting of a sweep."""

    trial: int
    """0, 1, …"""
    overrides: dict[str, Any]
    """The value of each field of the space."""
    status: Literal["pending", "running", "succeeded", "stopped", "failed"]
    """`stopped`: early, by the scheduler."""
    metric: float | None
    """Mean accuracy in percent: of the evaluation, or the best validation (while it runs: so far)."""
    iterations: int | None
    """Done."""
    seconds: float | None
    error: JobError | None


class TrialPage(_Schema):
    """Trials of a job."""

    data: list[NetworkTrial] | list[SweepTrial]
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
