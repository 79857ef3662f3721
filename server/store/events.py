"""Append and read the events of a job in the database."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from cafe_core.jobs.jobdir import utc_now
from server.store.models import LARGEST_NUMBER, Event, Job
from server.store.progress import DURABLE_EVENTS


def append(session: Session, job: Job, type_: str, data: dict[str, Any], *, time: str | None = None) -> None:
    """Append an event of the job's current attempt. `time` defaults to now."""
    job.last_event += 1
    session.add(Event(job_id=job.id, number=job.last_event, attempt=job.attempt, time=time or utc_now(), type=type_, data=data))


def events_after(session: Session, job_id: str, after: int, limit: int) -> list[Event]:
    """Return a job's events with numbers above `after`, oldest first."""
    later = Event.number > min(after, LARGEST_NUMBER)
    query = select(Event).where(Event.job_id == job_id, later).order_by(Event.number).limit(limit)
    return list(session.scalars(query))


def started_trials(session: Session, job: Job) -> set[int]:
    """Return the numbers of a sweep's trials that its current attempt has started."""
    of_attempt = select(Event.data).where(Event.job_id == job.id, Event.attempt == job.attempt, Event.type == "trial_started")
    return {data["number"] for data in session.scalars(of_attempt)}


def made_progress(session: Session, job: Job, attempt: int) -> bool:
    """Return whether an attempt produced anything that the next one does not have to repeat."""
    durable = select(Event.data).where(Event.job_id == job.id, Event.attempt == attempt, Event.type.in_(DURABLE_EVENTS))
    return any(data.get("status") != "failed" for data in session.scalars(durable))
