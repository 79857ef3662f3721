"""Webhooks to be sent: a row each, stored in the transaction that ends a job, so that none is lost and none made up."""

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
"""Between tries: 5 s, 15 s, 45 s, … 6 h, each a fifth more or less, lest all meet a receiver that comes back at once."""
GIVE_UP_AFTER = timedelta(hours=24)
RESERVED = timedelta(seconds=60)
"""For a try: longer than one takes."""
ERROR_CHARACTERS = 500


@dataclass(frozen=True)
class Due:
    """A delivery to be tried now."""

    id: str
    owner: str | None
    """Of its job."""


def enqueue(session: Session, job: Job) -> None:
    """Have the end of `job` told to its webhook, where it has one."""
    url: str | None = job.spec.get("webhook")
    if url is None:
        return
    session.flush()  # the job is shown as it will be stored
    now = utc_now()
    shown = serializers.job(job).model_dump(mode="json")
    body = json.dumps({"type": f"job.{job.status}", "timestamp": now, "data": shown}, separators=(",", ":"))
    session.add(Delivery(id=new_id("msg"), job_id=job.id, url=url, body=body, next_try_at=now))


def due(session: Session, per_owner: int, besides: set[str]) -> list[Due]:
    """Those to be tried now, at most so many of each owner, the most overdue first; `besides`: not these."""
    place = func.row_number().over(partition_by=Job.owner, order_by=(Delivery.next_try_at, Delivery.id)).label("place")
    ready = (
        select(Delivery.id, Job.owner, Delivery.next_try_at, place)
        .join(Job, Job.id == Delivery.job_id)
        .where(Delivery.next_try_at <= utc_now(), Delivery.id.not_in(besides))
        .subquery()
    )
    query = select(ready.c.id, ready.c.owner).where(ready.c.place <= per_owner).order_by(ready.c.next_try_at, ready.c.id)
    return [Due(*row) for row in session.execute(query)]


def begin_try(session: Session, delivery_id: str) -> Delivery | None:
    """The delivery, reserved for a while: should the server die meanwhile, it is tried again after that.

    None where it is gone with its job, or has been settled.
    """
    delivery = session.get(Delivery, delivery_id, with_for_update=True)
    if delivery is None or delivery.next_try_at is None:
        return None
    delivery.next_try_at = _text(datetime.now(UTC) + RESERVED)
    return delivery


def settle(session: Session, delivery_id: str, error: str | None, *, final: bool, retry_after_s: float | None) -> None:
    """Note how a try went. final: it is no use to try again; retry_after_s: what the receiver asked for."""
    delivery = session.get(Delivery, delivery_id, with_for_update=True)
    if delivery is None:  # deleted with its job meanwhile
        return
    delivery.tries += 1
    delivery.error = error[:ERROR_CHARACTERS] if error is not None else None
    delivery.next_try_at = None
    if error is None:
        delivery.delivered_at = utc_now()
    elif not final:
        delivery.next_try_at = _next_try(delivery, retry_after_s or 0.0)


def _next_try(delivery: Delivery, at_least_s: float) -> str | None:
    """None: there was time enough."""
    usual = min(LONGEST_WAIT_S, FIRST_WAIT_S * WAIT_FACTOR ** min(delivery.tries - 1, 20)) * random.uniform(0.8, 1.2)
    then = datetime.now(UTC) + timedelta(seconds=max(usual, min(at_least_s, LONGEST_WAIT_S)))
    return _text(then) if then <= datetime.fromisoformat(delivery.created_at) + GIVE_UP_AFTER else None


def _text(time: datetime) -> str:
    return time.isoformat(timespec="microseconds").replace("+00:00", "Z")
