"""What is done to jobs in the database. Each function works within a transaction that its caller opened."""

from __future__ import annotations

import base64
import binascii
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, and_, case, func, literal, or_, select
from sqlalchemy.orm import Session

from cafe_core.jobs.jobdir import utc_now
from cafe_core.spec.condense import CondenseSpec
from cafe_core.spec.evaluate import EvaluateSpec
from cafe_core.spec.job import JobSpec, parse_job_spec
from server.errors import ConflictError, NotFoundError, RefusedSpecError
from server.states import ENDED, IN_RAY, RESUMABLE, Status, after_cancel, check_transition
from server.store.deliveries import enqueue
from server.store.models import ApiKey, Artifact, Attempt, Dataset, Event, IdempotencyKey, Job, JobLabel
from server.store.progress import DURABLE_EVENTS, TERMINAL_EVENTS, DriverEvent, job_update, total_of

LARGEST_NUMBER = 2**31 - 1
"""Of jobs, attempts and events: PostgreSQL compares its integers with none above that."""


@dataclass(frozen=True)
class Filter:
    """Which jobs to list. `label`: `KEY=VALUE`, or `KEY` for any value; all of them must hold."""

    status: Status | None = None
    kind: str | None = None
    labels: tuple[str, ...] = ()
    owner: str | None = None
    """An API key's id: only its jobs."""


def create(session: Session, job_id: str, spec: JobSpec, *, owner: str | None = None, stored_bytes: int = 0) -> Job:
    """A new queued job with its first attempt. `spec` is resolved; `owner`: an API key's id; `stored_bytes`: by now."""
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
    """The job, with `lock` so that no other transaction changes it. Raises NotFoundError."""
    query = select(Job).where(Job.id == job_id)
    job = session.scalar(query.with_for_update() if lock else query)
    if job is None:
        raise NotFoundError(f"there is no job {job_id!r}")
    return job


def attempt_of(session: Session, job: Job, number: int | None = None) -> Attempt:
    """An attempt of a job, by default the current one. Raises NotFoundError."""
    attempt = session.get(Attempt, (job.id, job.attempt if number is None else min(number, LARGEST_NUMBER)))
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
    if wanted.owner is not None:
        query = query.where(Job.owner == wanted.owner)
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
            return min(int(number), LARGEST_NUMBER)
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
    if status in ENDED or status is Status.QUEUED:
        job.phase = job.eta_s = None
    if status in ENDED:
        job.finished_at = utc_now()
        attempt_of(session, job).finished_at = job.finished_at
    _append_status(session, job)
    if status in ENDED:
        enqueue(session, job)


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
    job.finished_at = None
    _next_attempt(session, job, "resumed")


def retry_lost(session: Session, job: Job, loss: dict[str, Any]) -> None:
    """Queue a new attempt in the place of the current one, which was lost. `loss`: code and message say how."""
    attempt_of(session, job).finished_at = utc_now()
    _append(session, job, "lost", {"reason": loss["message"], "code": loss["code"]})
    _next_attempt(session, job, "lost")


def consecutive_losses(session: Session, job: Job) -> int:
    """How many of the newest attempts were each made for a lost one, and came no further: none of them left anything new.

    One that leaves something (a checkpoint, an accuracy) ends the row, so that a long job survives any number of losses.
    """
    attempts = session.execute(select(Attempt.number, Attempt.cause).where(Attempt.job_id == job.id))
    causes = {attempt.number: attempt.cause for attempt in attempts}
    renewals, number = 0, job.attempt
    while causes.get(number) == "lost" and not _made_progress(session, job, number):
        renewals, number = renewals + 1, number - 1
    return renewals


def _made_progress(session: Session, job: Job, attempt: int) -> bool:
    lasting = select(Event.data).where(Event.job_id == job.id, Event.attempt == attempt, Event.type.in_(DURABLE_EVENTS))
    return any(data.get("status") != "failed" for data in session.scalars(lasting))


def _next_attempt(session: Session, job: Job, cause: str) -> None:
    job.attempt += 1
    session.add(Attempt(job_id=job.id, number=job.attempt, cause=cause))
    session.flush()
    transition(session, job, Status.QUEUED)


def delete(session: Session, job: Job) -> None:
    """Forget a job, its events and idempotency keys. Raises ConflictError unless it has ended."""
    if job.state not in ENDED:
        raise ConflictError(f"job {job.id} is {job.status}; cancel it first")
    session.delete(job)


def jobs_to_reconcile(session: Session, admitted: Collection[str], *, max_active: int, max_per_owner: int | None) -> list[str]:
    """Jobs to look after: all that may have a driver, and as many queued ones as `max_active` leaves room for.

    Of these the owner goes first that has the fewest active, and its oldest job; an owner has at most as many active as its key
    allows, or else `max_per_owner` (None: any number). Jobs without an owner count as one owner's, without a bound of its own.
    admitted: queued jobs that this has named before, and that are about to start: they count as active.
    """
    is_active = or_(Job.status.in_([s.value for s in IN_RAY]), and_(Job.status == Status.QUEUED.value, Job.id.in_(admitted)))
    active = session.execute(select(Job.id, Job.owner).where(is_active).order_by(Job.number)).all()
    named = [id for id, _ in active]
    if (room := max_active - len(active)) <= 0:
        return named
    # An owner's n-th queued job would be its (active + n)-th: by that they take turns.
    has = Counter(owner for _, owner in active)
    nth = func.row_number().over(partition_by=Job.owner, order_by=Job.number)
    queued = select(Job.id, Job.number, Job.owner, nth.label("nth"))
    waiting = queued.where(Job.status == Status.QUEUED.value, Job.id.not_in(admitted)).subquery()
    held = sum((case((waiting.c.owner.is_not_distinct_from(owner), count), else_=0) for owner, count in has.items()), literal(0))
    turn = waiting.c.nth + held
    bound = func.coalesce(ApiKey.max_running_jobs, max_per_owner)
    allowed = or_(waiting.c.owner.is_(None), bound.is_(None), turn <= bound)
    of_keys = select(waiting.c.id).join(ApiKey, ApiKey.id == waiting.c.owner, isouter=True)
    return named + list(session.scalars(of_keys.where(allowed).order_by(turn, waiting.c.number).limit(room)))


def artifacts(session: Session, job: Job) -> list[Artifact]:
    """The files of the job's result, by name; none unless it has succeeded."""
    of_attempt = select(Artifact).where(Artifact.job_id == job.id, Artifact.attempt == job.attempt)
    return list(session.scalars(of_attempt.order_by(Artifact.name)))


def take_events(session: Session, job: Job, attempt: Attempt, events: list[DriverEvent], new_offset: int) -> None:
    """Store a driver's events, up to byte `new_offset` of its file, and let them change the job."""
    for event in events:
        changes = job_update(event)
        job.phase = changes.phase or job.phase
        if changes.done is not None and changes.total is not None:
            job.done, job.total, job.eta_s = changes.done, changes.total, changes.eta_s
        if event.type in TERMINAL_EVENTS:
            attempt.outcome = {"type": event.type, **event.data}
        _append(session, job, event.type, event.data, time=event.time)
        if changes.computing and job.state is Status.STARTING:
            transition(session, job, Status.RUNNING)
    attempt.events_offset = new_offset


def events_after(session: Session, job_id: str, after: int, limit: int) -> list[Event]:
    """A job's events with numbers above `after`, oldest first."""
    later = Event.number > min(after, LARGEST_NUMBER)
    query = select(Event).where(Event.job_id == job_id, later).order_by(Event.number).limit(limit)
    return list(session.scalars(query))


def remember_key(session: Session, key: str, body_sha256: str, job: Job) -> None:
    """Note which job an Idempotency-Key of the job's owner made."""
    session.add(IdempotencyKey(owner=job.owner or "", key=key, body_sha256=body_sha256, job_id=job.id))


def recall_key(session: Session, key: str, body_sha256: str, *, owner: str | None = None) -> Job | None:
    """The job that an Idempotency-Key of `owner` made. Raises RefusedSpecError when its body was another."""
    known = session.get(IdempotencyKey, (owner or "", key))
    if known is None:
        return None
    if known.body_sha256 != body_sha256:
        raise RefusedSpecError.of("Idempotency-Key", "was used with another body; take a new key for a new job")
    return get(session, known.job_id)


def datasets_in_use(session: Session) -> set[str]:
    """Identifiers of uploaded datasets that jobs which have not ended read."""
    specs = session.scalars(select(Job.spec).where(Job.status.not_in([s.value for s in ENDED])))
    return {dataset_id for spec in specs for dataset_id in _dataset_ids(parse_job_spec(spec))}


def lock_datasets(session: Session, spec: JobSpec) -> None:
    """Within the transaction that makes a job: no uploaded dataset that it reads is deleted before the job is there.

    Raises ConflictError where one was deleted since the spec was looked at.
    """
    wanted = set(_dataset_ids(spec))
    held = select(Dataset.id).where(Dataset.id.in_(wanted)).order_by(Dataset.number).with_for_update(read=True)
    if missing := wanted - set(session.scalars(held) if wanted else ()):
        raise ConflictError(f"the dataset {min(missing)} has just been deleted")


def _dataset_ids(spec: JobSpec) -> set[str]:
    """Of the uploaded datasets that a job reads."""
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


def started_trials(session: Session, job: Job) -> set[int]:
    """Numbers of a sweep's trials that its current attempt has started."""
    of_attempt = select(Event.data).where(Event.job_id == job.id, Event.attempt == job.attempt, Event.type == "trial_started")
    return {data["number"] for data in session.scalars(of_attempt)}


def _append_status(session: Session, job: Job) -> None:
    _append(session, job, "status", {"status": job.status} | ({"error": job.error} if job.error else {}))


def _append(session: Session, job: Job, type_: str, data: dict[str, Any], *, time: str | None = None) -> None:
    job.last_event += 1
    session.add(Event(job_id=job.id, number=job.last_event, attempt=job.attempt, time=time or utc_now(), type=type_, data=data))
