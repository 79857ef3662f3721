"""What is done to jobs in the database. Each function works within a transaction that its caller opened."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from cafe_core.config import JobSpec
from cafe_core.jobdir import utc_now
from server.database import Attempt, Event, IdempotencyKey, Job, JobLabel, new_id
from server.errors import ConflictError, NotFoundError, RefusedSpecError
from server.progress import LAST_WORDS, DriverEvent, changes_of
from server.states import ENDED, IN_RAY, RESUMABLE, Status, after_cancel, check_transition


@dataclass(frozen=True)
class Filter:
    """Which jobs to list. `label`: `KEY=VALUE`, or `KEY` for any value; all of them must hold."""

    status: Status | None = None
    kind: str | None = None
    labels: tuple[str, ...] = ()


def create(session: Session, spec: JobSpec) -> Job:
    """A new queued job with its first attempt. `spec` is resolved."""
    job = Job(
        id=new_id("job"),
        kind=spec.kind,
        name=spec.name,
        spec=spec.model_dump(mode="json", exclude_none=True),
        done=0,
        total=spec.iterations,
        labels=[JobLabel(key=key, value=value) for key, value in spec.labels.items()],
    )
    session.add(job)
    session.flush()
    session.add(Attempt(job_id=job.id, number=job.attempt))
    _note_status(session, job)
    return job


def get(session: Session, job_id: str, *, lock: bool = False) -> Job:
    """The job, with `lock` so that no other transaction changes it. Raises NotFoundError."""
    query = select(Job).where(Job.id == job_id)
    job = session.scalar(query.with_for_update() if lock else query)
    if job is None:
        raise NotFoundError(f"there is no job {job_id!r}")
    return job


def attempt_of(session: Session, job: Job, number: int | None = None) -> Attempt:
    """An attempt of a job, by default the current one. Raises NotFoundError."""
    attempt = session.get(Attempt, (job.id, job.attempt if number is None else number))
    if attempt is None:
        raise NotFoundError(f"job {job.id} has no attempt {number}; it has 1 to {job.attempt}")
    return attempt


def page(session: Session, wanted: Filter, *, limit: int, cursor: str | None) -> tuple[list[Job], str | None]:
    """Jobs, newest first, and the cursor of the next page. Raises RefusedSpecError for a cursor that is none."""
    query: Select[Job] = select(Job).order_by(Job.number.desc()).limit(limit + 1)
    if cursor is not None:
        query = query.where(Job.number < _number_in(cursor))
    if wanted.status is not None:
        query = query.where(Job.status == wanted.status.value)
    if wanted.kind is not None:
        query = query.where(Job.kind == wanted.kind)
    for label in wanted.labels:
        key, has_value, value = label.partition("=")
        having = select(JobLabel.job_id).where(JobLabel.key == key)
        query = query.where(Job.id.in_(having.where(JobLabel.value == value) if has_value else having))
    jobs = list(session.scalars(query))
    return jobs[:limit], _cursor_at(jobs[limit - 1].number) if len(jobs) > limit else None


def _cursor_at(number: int) -> str:
    return base64.urlsafe_b64encode(f"v1:{number}".encode()).decode().rstrip("=")


def _number_in(cursor: str) -> int:
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii")
        version, _, number = text.partition(":")
        if version == "v1" and number.isascii() and number.isdigit() and len(number) <= 18:
            return int(number)
    except (binascii.Error, ValueError):
        pass  # refused below, like every other text that is no cursor
    raise RefusedSpecError.of("cursor", "not a cursor of this listing; take next_cursor of the page before")


def transition(session: Session, job: Job, status: Status, *, error: dict[str, Any] | None = None) -> None:
    """Move a job to `status`. Raises IllegalTransitionError."""
    check_transition(job.state, status)
    job.status = status.value
    job.error = error
    if status is Status.STARTING and job.started_at is None:
        job.started_at = utc_now()
    if status in ENDED:
        job.finished_at = utc_now()
        job.phase = job.eta_s = None
        attempt_of(session, job).finished_at = job.finished_at
    _note_status(session, job)


def cancel(session: Session, job: Job) -> bool:
    """Have a job cancelled; asking again changes nothing. False when it had ended already."""
    if job.state in ENDED:
        return False
    if (status := after_cancel(job.state)) is not job.state:
        transition(session, job, status)
    return True


def resume(session: Session, job: Job) -> None:
    """Queue a new attempt of a failed or cancelled job. Raises ConflictError for any other."""
    if job.state not in RESUMABLE:
        raise ConflictError(f"job {job.id} is {job.status}; only failed and cancelled jobs are resumed")
    job.attempt += 1
    job.finished_at = None
    session.add(Attempt(job_id=job.id, number=job.attempt))
    session.flush()
    transition(session, job, Status.QUEUED)


def delete(session: Session, job: Job) -> None:
    """Forget a job, its events and idempotency keys. Raises ConflictError unless it has ended."""
    if job.state not in ENDED:
        raise ConflictError(f"job {job.id} is {job.status}; cancel it first")
    session.delete(job)


def to_look_after(session: Session, active_limit: int) -> list[str]:
    """Jobs to look after: all that may have a driver, and as many queued ones, oldest first, as the limit leaves room for."""
    active = list(session.scalars(select(Job.id).where(Job.status.in_([s.value for s in IN_RAY])).order_by(Job.number)))
    room = max(0, active_limit - len(active))
    queued = list(session.scalars(select(Job.id).where(Job.status == Status.QUEUED.value).order_by(Job.number).limit(room)))
    return active + queued


def take_events(session: Session, job: Job, attempt: Attempt, events: list[DriverEvent], new_offset: int) -> None:
    """Store a driver's events, up to byte `new_offset` of its file, and let them change the job."""
    for event in events:
        changes = changes_of(event)
        job.phase = changes.phase or job.phase
        if changes.done is not None and changes.total is not None:
            job.done, job.total, job.eta_s = changes.done, changes.total, changes.eta_s
        if event.type in LAST_WORDS:
            attempt.outcome = {"type": event.type, **event.data}
        _append(session, job, event.type, event.data, time=event.time)
        if changes.computing and job.state is Status.STARTING:
            transition(session, job, Status.RUNNING)
    attempt.events_offset = new_offset


def events_after(session: Session, job_id: str, after: int, limit: int) -> list[Event]:
    """A job's events with numbers above `after`, oldest first."""
    query = select(Event).where(Event.job_id == job_id, Event.number > after).order_by(Event.number).limit(limit)
    return list(session.scalars(query))


def remember_key(session: Session, key: str, body_sha256: str, job: Job) -> None:
    """Note which job an Idempotency-Key made."""
    session.add(IdempotencyKey(key=key, body_sha256=body_sha256, job_id=job.id))


def recall_key(session: Session, key: str, body_sha256: str) -> Job | None:
    """The job that an Idempotency-Key made. Raises RefusedSpecError when its body was another."""
    known = session.get(IdempotencyKey, key)
    if known is None:
        return None
    if known.body_sha256 != body_sha256:
        raise RefusedSpecError.of("Idempotency-Key", "was used with another body; take a new key for a new job")
    return get(session, known.job_id)


def datasets_in_use(session: Session) -> set[str]:
    """Identifiers of uploaded datasets that jobs which have not ended read."""
    specs = session.scalars(select(Job.spec).where(Job.status.not_in([s.value for s in ENDED])))
    return {spec["dataset"]["id"] for spec in specs if "id" in spec["dataset"]}


def _note_status(session: Session, job: Job) -> None:
    _append(session, job, "status", {"status": job.status} | ({"error": job.error} if job.error else {}))


def _append(session: Session, job: Job, type_: str, data: dict[str, Any], *, time: str | None = None) -> None:
    job.last_event += 1
    session.add(Event(job_id=job.id, number=job.last_event, attempt=job.attempt, time=time or utc_now(), type=type_, data=data))
