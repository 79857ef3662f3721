"""Store the webhooks to send, in the transaction that ends a job: a webhook is sent if and only if the job has ended."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from cafe_core.jobs.jobdir import utc_now
from server.store import serializers
from server.store.models import Delivery, Job, new_id

FIRST_WAIT_S, WAIT_FACTOR, LONGEST_WAIT_S = 5.0, 3.0, 6 * 3600.0
"""Delays between tries: 5 s, 15 s, 45 s, … 6 h, each ±20 %, so that a recovering receiver does not get all of them at once."""
GIVE_UP_AFTER = timedelta(hours=24)
RESERVATION = timedelta(seconds=60)
"""How long a try reserves its delivery. This is longer than a try takes."""
ERROR_CHARACTERS = 500


@dataclass(frozen=True)
class Due:
    """A delivery to try now."""

    id: str
    owner: str | None
    """The owner of its job."""


def enqueue(session: Session, job: Job) -> None:
    """Queue a delivery to the job's webhook, if it has one."""
    url: str | None = job.spec.get("webhook")
    if url is None:
        return
    session.flush()  # serialize the job as it will be stored
    now = utc_now()
    shown = serializers.job(job).model_dump(mode="json")
    body = json.dumps({"type": f"job.{job.status}", "timestamp": now, "data": shown}, separators=(",", ":"))
    session.add(Delivery(id=new_id("msg"), job_id=job.id, url=url, body=body, next_try_at=now))


def due(session: Session, per_owner: int, exclude: set[str]) -> list[Due]:
    """Return the deliveries to try now except those in `exclude`, at most `per_owner` per owner, the most overdue first."""
    place = func.row_number().over(partition_by=Job.owner, order_by=(Delivery.next_try_at, Delivery.id)).label("place")
    ready = (
        select(Delivery.id, Job.owner, Delivery.next_try_at, place)
        .join(Job, Job.id == Delivery.job_id)
        .where(Delivery.next_try_at <= utc_now(), Delivery.id.not_in(exclude))
        .subquery()
    )
    query = select(ready.c.id, ready.c.owner).where(ready.c.place <= per_owner).order_by(ready.c.next_try_at, ready.c.id)
    return [Due(*row) for row in session.execute(query)]


def begin_try(session: Session, delivery_id: str) -> Delivery | None:
    """Reserve a delivery and return it; if the server dies during the try, the delivery is due again afterwards.

    Return None if it was deleted with its job, delivered or given up.
    """
    delivery = session.get(Delivery, delivery_id, with_for_update=True)
    if delivery is None or delivery.next_try_at is None:
        return None
    delivery.next_try_at = _text(datetime.now(UTC) + RESERVATION)
    return delivery


def settle(session: Session, delivery_id: str, error: str | None, *, final: bool, retry_after_s: float | None) -> None:
    """Record the outcome of a try. final: do not try again. retry_after_s: the delay that the receiver asked for."""
    delivery = session.get(Delivery, delivery_id, with_for_update=True)
    if delivery is None:  # deleted with its job
        return
    delivery.tries += 1
    delivery.error = error[:ERROR_CHARACTERS] if error is not None else None
    delivery.next_try_at = None
    if error is None:
        delivery.delivered_at = utc_now()
    elif not final:
        delivery.next_try_at = _next_try(delivery, retry_after_s or 0.0)


def _next_try(delivery: Delivery, at_least_s: float) -> str | None:
    """Return the time of the next try; None after GIVE_UP_AFTER."""
    usual = min(LONGEST_WAIT_S, FIRST_WAIT_S * WAIT_FACTOR ** min(delivery.tries - 1, 20)) * random.uniform(0.8, 1.2)
    then = datetime.now(UTC) + timedelta(seconds=max(usual, min(at_least_s, LONGEST_WAIT_S)))
    return _text(then) if then <= datetime.fromisoformat(delivery.created_at) + GIVE_UP_AFTER else None


def _text(time: datetime) -> str:
    return time.isoformat(timespec="microseconds").replace("+00:00", "Z")
