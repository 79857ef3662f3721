"""Operations on jobs in the database. Each function runs within a transaction that its caller opened."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from cafe_core.jobs.jobdir import utc_now
from cafe_core.spec.job import JobSpec
from server.errors import ConflictError, NotFoundError, RefusedSpecError
from server.states import ENDED, RESUMABLE, Status, after_cancel, check_transition
from server.store import events
from server.store.deliveries import enqueue
from server.store.models import LARGEST_NUMBER, Artifact, Attempt, IdempotencyKey, Job, JobLabel
from server.store.progress import TERMINAL_EVENTS, DriverEvent, job_update, total_of


def create(session: Session, job_id: str, spec: JobSpec, *, owner: str | None = None, stored_bytes: int = 0) -> Job:
    """Create a queued job with its first attempt.

    spec: the resolved spec. owner: the id of an API key. stored_bytes: bytes that the submission wrote to the job's directory.
    """
    job = Job(
        id=job_id,
        owner=owner,
        kind=spec.kind,
        name=spec.name,
        spec=spec.model_dump(mode="json", exclude_none=True),
        done=0,
        total=total_of(spec),
        stored_bytes=stored_bytes,
        labels=[JobLabel(key=key, value=value) for key, value in spec.labels.items()],
    )
    session.add(job)
    session.flush()
    session.add(Attempt(job_id=job.id, number=job.attempt))
    _append_status(session, job)
    return job


def get(session: Session, job_id: str, *, lock: bool = False) -> Job:
    """Return a job; `lock` keeps other transactions from changing it. Raises NotFoundError."""
    query = select(Job).where(Job.id == job_id)
    job = session.scalar(query.with_for_update() if lock else query)
    if job is None:
        raise NotFoundError(f"there is no job {job_id!r}")
    return job


def attempt_of(session: Session, job: Job, number: int | None = None) -> Attempt:
    """Return an attempt of a job, by default the current one. Raises NotFoundError."""
    attempt = session.get(Attempt, (job.id, job.attempt if number is None else min(number, LARGEST_NUMBER)))
    if attempt is None:
        raise NotFoundError(f"job {job.id} has no attempt {number}; it has 1 to {job.attempt}")
    return attempt


def artifacts(session: Session, job: Job) -> list[Artifact]:
    """Return the files of the job's result, by name; empty unless it has succeeded."""
    of_attempt = select(Artifact).where(Artifact.job_id == job.id, Artifact.attempt == job.attempt)
    return list(session.scalars(of_attempt.order_by(Artifact.name)))


def transition(session: Session, job: Job, status: Status, *, error: dict[str, Any] | None = None) -> None:
    """Move a job to `status`, and enqueue its webhook if it ends. Raises IllegalTransitionError."""
    check_transition(job.state, status)
    job.status = status.value
    job.error = error
    if status is Status.STARTING and job.started_at is None:
        job.started_at = utc_now()
    if status in ENDED or status is Status.QUEUED:
        job.phase = job.eta_s = None
    if status in ENDED:
        job.finished_at = utc_now()
        attempt_of(session, job).finished_at = job.finished_at
    _append_status(session, job)
    if status in ENDED:
        enqueue(session, job)


def cancel(session: Session, job: Job) -> bool:
    """Cancel a job. Idempotent. Return False if it had already ended."""
    if job.state in ENDED:
        return False
    if (status := after_cancel(job.state)) is not job.state:
        transition(session, job, status)
    return True


def resume(session: Session, job: Job) -> None:
    """Queue a new attempt of a failed or cancelled job. Raises ConflictError for a job in another state."""
    if job.state not in RESUMABLE:
        raise ConflictError(f"job {job.id} is {job.status}; only failed and cancelled jobs can be resumed")
    job.finished_at = None
    _next_attempt(session, job, "resumed")


def retry_lost(session: Session, job: Job, loss: dict[str, Any]) -> None:
    """Queue a new attempt in place of the current one, which was lost. `loss`: the code and message of the reason."""
    attempt_of(session, job).finished_at = utc_now()
    events.append(session, job, "lost", {"reason": loss["message"], "code": loss["code"]})
    _next_attempt(session, job, "lost")


def consecutive_losses(session: Session, job: Job) -> int:
    """Count the newest attempts that each replaced a lost one and made no progress themselves.

    An attempt with progress (a checkpoint, an accuracy) ends the series, so a long job survives any number of losses.
    """
    attempts = session.execute(select(Attempt.number, Attempt.cause).where(Attempt.job_id == job.id))
    causes = {attempt.number: attempt.cause for attempt in attempts}
    losses, number = 0, job.attempt
    while causes.get(number) == "lost" and not events.made_progress(session, job, number):
        losses, number = losses + 1, number - 1
    return losses


def delete(session: Session, job: Job) -> None:
    """Delete a job, its events and idempotency keys. Raises ConflictError unless it has ended."""
    if job.state not in ENDED:
        raise ConflictError(f"job {job.id} is {job.status}; cancel it first")
    session.delete(job)


def take_events(session: Session, job: Job, attempt: Attempt, taken: list[DriverEvent], new_offset: int) -> None:
    """Store a driver's events, up to byte `new_offset` of its log, and apply them to the job."""
    for event in taken:
        update = job_update(event)
        job.phase = update.phase or job.phase
        if update.done is not None and update.total is not None:
            job.done, job.total, job.eta_s = update.done, update.total, update.eta_s
        if event.type in TERMINAL_EVENTS:
            attempt.outcome = {"type": event.type, **event.data}
        events.append(session, job, event.type, event.data, time=event.time)
        if update.computing and job.state is Status.STARTING:
            transition(session, job, Status.RUNNING)
    attempt.events_offset = new_offset


def remember_key(session: Session, key: str, body_sha256: str, job: Job) -> None:
    """Record which job was created with an Idempotency-Key of the job's owner."""
    session.add(IdempotencyKey(owner=job.owner or "", key=key, body_sha256=body_sha256, job_id=job.id))


def recall_key(session: Session, key: str, body_sha256: str, *, owner: str | None = None) -> Job | None:
    """Return the job created with an Idempotency-Key of `owner`, if any. Raises RefusedSpecError if its body was different."""
    known = session.get(IdempotencyKey, (owner or "", key))
    if known is None:
        return None
    if known.body_sha256 != body_sha256:
        raise RefusedSpecError.of("Idempotency-Key", "already used with a different body; use a new key for a new job")
    return get(session, known.job_id)


def _next_attempt(session: Session, job: Job, cause: str) -> None:
    job.attempt += 1
    session.add(Attempt(job_id=job.id, number=job.attempt, cause=cause))
    session.flush()
    transition(session, job, Status.QUEUED)


def _append_status(session: Session, job: Job) -> None:
    events.append(session, job, "status", {"status": job.status} | ({"error": job.error} if job.error else {}))
