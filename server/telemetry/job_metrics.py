"""Collect metrics of the queue and of running jobs from the database, with one short read per scrape."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from prometheus_client.core import GaugeMetricFamily, Metric
from sqlalchemy import and_, func, select
from sqlalchemy.orm import Session

from cafe_core.spec.job import KINDS
from server.states import Status
from server.store.models import Attempt, Event, Job

RECENT = 10
"""Rates are averaged over this many iterations."""
EVENTS_BACK = 1000
"""Number of events searched for iterations: an evaluation may add thousands of events after them."""
JOBS_SHOWN = 200
"""Maximum number of running jobs with their own series; the newest are shown."""


@dataclass(frozen=True)
class Iteration:
    """An `iteration` event."""

    time: str
    data: dict[str, Any]


@dataclass(frozen=True)
class RunningJob:
    """A job with status `running`."""

    id: str
    kind: str
    name: str
    method: str
    dataset: str
    attempt: int
    done: int
    total: int
    iterations: list[Iteration]
    """The newest iterations of the attempt, newest first; empty unless the job condenses."""


@dataclass(frozen=True)
class JobsSeen:
    """The result of one read of the database."""

    counts: dict[tuple[str, str], int]
    """Number of jobs by kind and status."""
    queued_since: str | None
    """Time since which the oldest queued job has waited."""
    running: list[RunningJob]


def read_jobs(session: Session) -> JobsSeen:
    """Read the queue and the running jobs: two queries, and one per running job."""
    counts = {(kind, status): count for kind, status, count in session.execute(_COUNTS)}
    rows = session.execute(_RUNNING).all()
    return JobsSeen(counts, session.scalar(_QUEUED_SINCE), [_running(session, *row) for row in rows])


_COUNTS = select(Job.kind, Job.status, func.count()).group_by(Job.kind, Job.status)
_QUEUED_SINCE = (
    select(func.min(Attempt.created_at))
    .join(Job, and_(Job.id == Attempt.job_id, Job.attempt == Attempt.number))
    .where(Job.status == Status.QUEUED.value)
)
_RUNNING = (
    select(Job.id, Job.kind, Job.name, Job.spec, Job.attempt, Job.done, Job.total, Job.last_event)
    .where(Job.status == Status.RUNNING.value)
    .order_by(Job.number.desc())
    .limit(JOBS_SHOWN)
)


def _running(
    session: Session, id: str, kind: str, name: str | None, spec: dict[str, Any], attempt: int, done: int, total: int, last: int
) -> RunningJob:
    # A sweep has `base`. An evaluation may have neither a method nor a dataset.
    condensed = spec.get("base", spec)
    dataset = condensed.get("dataset", {})
    named = str(dataset.get("name") or dataset.get("id") or dataset.get("path") or "")
    method = str(condensed.get("method", {}).get("name", ""))
    iterations = []
    if kind == "condense":
        recent = (
            select(Event.time, Event.data)
            .where(Event.job_id == id, Event.number > last - EVENTS_BACK, Event.attempt == attempt, Event.type == "iteration")
            .order_by(Event.number.desc())
            .limit(RECENT)
        )
        iterations = [Iteration(time, data) for time, data in session.execute(recent)]
    return RunningJob(id, kind, name or "", method, named, attempt, done, total, iterations)


def families(seen: JobsSeen, now: datetime) -> Iterator[Metric]:
    """Yield the metrics of the queue and of running jobs."""
    jobs = GaugeMetricFamily("cafe_jobs", "Number of jobs by kind and status.", labels=["kind", "status"])
    for kind in KINDS:
        for status in Status:
            jobs.add_metric([kind, status.value], seen.counts.get((kind, status.value), 0))
    yield jobs
    yield GaugeMetricFamily(
        "cafe_queue_oldest_seconds",
        "Waiting time of the oldest queued job.",
        value=_age(seen.queued_since, now) if seen.queued_since is not None else 0.0,
    )
    info = GaugeMetricFamily("cafe_job_info", "A running job; always 1.", labels=["job_id", "kind", "name", "method", "dataset"])
    for job in seen.running:
        info.add_metric([job.id, job.kind, job.name, job.method, job.dataset], 1)
    yield info
    yield _of_jobs("cafe_job_attempt", "Number of the current attempt.", {job.id: job.attempt for job in seen.running})
    progress = {job.id: job.done / job.total if job.total else 0.0 for job in seen.running}
    yield _of_jobs("cafe_job_progress_ratio", "Completed part of a job, 0 to 1.", progress)
    yield from _condensations({job.id: job.iterations for job in seen.running if job.iterations}, now)


def _condensations(recent: dict[str, list[Iteration]], now: datetime) -> Iterator[Metric]:
    newest = {id: iterations[0].data for id, iterations in recent.items()}
    for name, field, help in (
        ("cafe_job_iteration", "iteration", "Completed iterations."),
        ("cafe_job_iterations", "total", "Total iterations."),
        ("cafe_job_query_accuracy", "query_accuracy", "Accuracy on the query set, 0 to 1."),
        ("cafe_job_outer_steps", "outer_steps", "Outer steps of the newest iteration."),
        ("cafe_job_inner_epochs", "inner_epochs", "Inner-loop epochs of the newest iteration."),
    ):
        yield _of_jobs(name, help, {id: data[field] for id, data in newest.items() if data.get(field) is not None})
    for name, field, help in (
        ("cafe_job_steps_per_second", "outer_steps", "Outer steps per second."),
        ("cafe_job_images_per_second", "real_images", "Real images per second that pass through the network, over all workers."),
    ):
        rates = {id: _rate([iteration.data for iteration in iterations], field) for id, iterations in recent.items()}
        yield _of_jobs(name, help, {id: rate for id, rate in rates.items() if rate is not None})
    loss = GaugeMetricFamily("cafe_job_loss", "Losses of the newest iteration's last outer step.", labels=["job_id", "term"])
    for id, data in newest.items():
        for field, value in data.items():
            if field == "loss" or field.endswith("_loss"):
                loss.add_metric([id, "total" if field == "loss" else field.removesuffix("_loss")], value)
    yield loss
    ages = {id: _age(iterations[0].time, now) for id, iterations in recent.items()}
    yield _of_jobs("cafe_job_iteration_age_seconds", "Time since the newest iteration.", ages)


def _of_jobs(name: str, help: str, values: dict[str, Any]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, help, labels=["job_id"])
    for job_id, value in values.items():
        family.add_metric([job_id], value)
    return family


def _rate(iterations: list[dict[str, Any]], field: str) -> float | None:
    """Return the mean of `field` per second; None if the events lack it."""
    reported = [data for data in iterations if data.get(field) is not None and data.get("seconds") is not None]
    seconds = sum(data["seconds"] for data in reported)
    return float(sum(data[field] for data in reported) / seconds) if seconds else None


def _age(time: str, now: datetime) -> float:
    """Return the age in seconds, at least 0: the clocks of drivers and server may differ."""
    return max(0.0, (now.astimezone(UTC) - datetime.fromisoformat(time)).total_seconds())
