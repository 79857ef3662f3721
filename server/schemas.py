"""Schemas of the API's responses, which /openapi.json documents."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict

from cafe_core.spec.dataset import DatasetInfo, DatasetNote
from cafe_core.spec.estimate import Estimate
from server.states import Status

JobKind: TypeAlias = Literal["condense", "evaluate", "sweep", "extend"]


class _Schema(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class Progress(_Schema):
    """Progress of a job: iterations of a condensation, networks of an evaluation, trials of a sweep."""

    done: int
    total: int
    eta_s: float | None
    """Estimated seconds until the job ends."""


class JobError(_Schema):
    """The reason why a job failed."""

    code: str
    message: str
    retryable: bool
    """Whether resuming the job may succeed without any change."""


class JobLinks(_Schema):
    """Paths of the job's resources on this server."""

    self: str
    events: str
    logs: str
    artifacts: str
    synthetic: str
    preview: str
    trials: str | None
    """Null for a condensation without an evaluation."""


class Job(_Schema):
    """A job."""

    id: str
    kind: JobKind
    name: str | None
    labels: dict[str, str]
    status: Status
    attempt: int
    """Number of the current attempt, from 1. Resuming a job or losing an attempt starts a new one."""
    phase: str | None
    """Phase of the driver: preparing, waiting_for_resources, starting_workers, condensing, validating, evaluating, sweeping or
    publishing."""
    progress: Progress
    spec: dict[str, Any]
    """The resolved spec, with all defaults filled in, except in a sweep's `base`, which each trial resolves."""
    result: dict[str, Any] | None
    """The result, whose fields depend on `kind`; all have `versions` and `seconds`. Accuracies are in percent.

    An evaluation: `{"networks": [{"name", "mean", "std", "n", "accuracies"}], "baselines": {"random": {"networks": [...]}}}`,
    with `augmentations` (the same per augmentation) if there are several, and `scores` if the baselines they need exist.

    `notes` of condense and evaluate jobs: what was ignored, converted, split or repeated: `[{"code", "message"}]`.

    * condense: `iterations`, `images`, `evaluation` (or null); with validation also `best_iteration` and
      `validations: [{"iteration", "mean", "accuracies"}]`
    * evaluate: an evaluation
    * sweep: `metric` (`evaluation` or `validation`: how trials are ranked), `best` (the best trial's row, with its
      `result`), `trials: {"succeeded", "stopped", "failed", "total"}`
    """
    error: JobError | None
    created_at: str
    started_at: str | None
    finished_at: str | None
    links: JobLinks


class JobPage(_Schema):
    """A page of jobs, newest first."""

    data: list[Job]
    next_cursor: str | None
    """Value of `cursor` for the next page; null on the last page."""


class Estimates(Estimate):
    """Estimated resources of a job, and the memory that is available."""

    available_memory_bytes: int
    """Memory available to each worker on this cluster."""


class PlannedTrials(_Schema):
    """The trials that a sweep will run."""

    total: int
    first: list[dict[str, Any]]
    """The overrides of the first 20 trials."""


class DryRun(_Schema):
    """The job that a request without `dry_run` would create."""

    spec: dict[str, Any]
    """The resolved spec, as in a job."""
    estimates: Estimates
    """For a sweep: the estimates of the trial that needs the most memory."""
    dataset: DatasetInfo
    notes: list[DatasetNote]
    """Notes that are known before all images are decoded, for example about ignored files. For a sweep: those of all trials."""
    total: int
    """Number of iterations, networks to train, or trials."""
    trials: PlannedTrials | None
    """Null unless the job is a sweep."""


class Event(_Schema):
    """Something that happened to a job."""

    id: int
    """Number of the event within the job: 1, 2, …"""
    attempt: int
    time: str
    type: str
    """One of status, phase, notes, workers, pool, epoch, step, iteration, checkpoint, validated, evaluated, trials,
    trial_started, trial_validated, trial, restart, lost, finished, failed, cancelled."""
    data: dict[str, Any]


class EventPage(_Schema):
    """A page of events, oldest first."""

    data: list[Event]
    next_after: int
    """Value of `after` for the next page."""


class NetworkTrial(_Schema):
    """A network that an evaluation trained and tested."""

    source: Literal["synthetic", "random", "whole"]
    """Training set: the set under evaluation, random real images, or all real images."""
    network: str
    """The `name` of the network."""
    index: int
    """Position in the spec's `networks`, from 0: several entries may have the same name."""
    augment: str
    repeat: int
    """Number of the repetition, from 0."""
    accuracy: float
    """Test accuracy in percent."""


class SweepTrial(_Schema):
    """A trial of a sweep."""

    trial: int
    """Number of the trial, from 0."""
    overrides: dict[str, Any]
    """The value of each field in the sweep's `space`."""
    status: Literal["pending", "running", "succeeded", "stopped", "failed"]
    """`stopped`: the scheduler ended the trial early."""
    metric: float | None
    """Mean accuracy in percent: of the evaluation, or of the best validation so far."""
    iterations: int | None
    """Completed iterations."""
    seconds: float | None
    error: JobError | None


class TrialPage(_Schema):
    """A page of a job's trials."""

    data: list[NetworkTrial] | list[SweepTrial]
    next_after: int
    """Value of `after` for the next page."""


class Artifact(_Schema):
    """A file of a job's result."""

    name: str
    size: int
    sha256: str
    media_type: str
    href: str


class ArtifactList(_Schema):
    """The manifest of a job's result; empty until the job has one."""

    data: list[Artifact]


class Dataset(_Schema):
    """A built-in or uploaded dataset."""

    id: str
    """How a job spec refers to it: `{"name": id}` if built in, `{"id": id}` if uploaded."""
    name: str
    source: Literal["builtin", "uploaded"]
    size: int | None
    """Size of the uploaded file in bytes."""
    sha256: str | None
    created_at: str | None
    info: DatasetInfo | None
    """Classes, counts and shape; null until they are known (not downloaded yet, or dependent on `image_size`)."""


class DatasetList(_Schema):
    """The built-in datasets, then uploaded datasets, newest first."""

    data: list[Dataset]


class Pool(_Schema):
    """A pool of networks that jobs have trained on all real images of a dataset."""

    id: str
    dataset: str
    """The dataset's name."""
    network: dict[str, Any]
    """The kind of network, as in a job spec."""
    precision: str
    recipe: dict[str, Any]
    """The fields of a method that determine the networks, such as `pool_epochs`."""
    networks: int
    """How many networks are trained."""
    bytes: int
    """Size on disk, including the state of a training that has not ended."""
    changed_at: str
    """When a network was last trained."""


class PoolList(_Schema):
    """The pools, those changed last first."""

    data: list[Pool]


class Capacity(_Schema):
    """Capacity of one kind of resource."""

    total: float
    free: float


class Node(_Schema):
    """A node of the cluster."""

    id: str
    ip: str
    is_head: bool
    cpus: Capacity
    gpus: Capacity
    gpu_names: list[str]
    memory_bytes: int


class Cluster(_Schema):
    """The Ray cluster. Ray reports free resources every 5 s."""

    ray_version: str
    dashboard_url: str
    cpus: Capacity
    gpus: Capacity
    nodes: list[Node]


class Health(_Schema):
    """Health: `ok`, or a problem with status 503."""

    status: Literal["ok"] = "ok"
