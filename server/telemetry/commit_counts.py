"""Count job ends, lost attempts and webhook deliveries when their transactions are committed.

Every committed change is counted, wherever it is made, and nothing that is rolled back. Only changes to ORM objects are seen; all
of these changes are made that way.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import event, inspect
from sqlalchemy.orm import Session, UOWTransaction, sessionmaker

from server.states import ENDED, Status
from server.store.models import Attempt, Delivery, Job
from server.telemetry.metrics import Metrics

_PENDING = "commit_counts"


def count_commits(sessions: sessionmaker[Session], metrics: Metrics) -> None:
    """Count the commits of all sessions of `sessions` from now on."""

    def flushed(session: Session, _context: UOWTransaction) -> None:
        pending: list[Callable[[], None]] = session.info.setdefault(_PENDING, [])
        for row in [*session.new, *session.dirty]:
            pending.extend(_counts(row, metrics))

    def committed(session: Session) -> None:
        for count in session.info.pop(_PENDING, []):
            count()

    def rolled_back(session: Session) -> None:
        session.info.pop(_PENDING, None)

    event.listen(sessions, "after_flush", flushed)
    event.listen(sessions, "after_commit", committed)
    event.listen(sessions, "after_rollback", rolled_back)


def _counts(row: object, metrics: Metrics) -> list[Callable[[], None]]:
    """Return the increments that a changed row causes, to be called on commit."""
    match row:
        case Job() if _changed(row, "status") and Status(row.status) in ENDED:
            return [partial(metrics.job_ended, row.kind, row.status, _seconds(row))]
        case Attempt() if row.cause == "lost" and _changed(row, "cause"):
            return [metrics.attempts_lost.inc]
        case Delivery() if _changed(row, "tries") and row.tries:
            return [partial(metrics.webhook, _outcome(row))]
    return []


def _changed(row: Any, attribute: str) -> bool:
    return bool(inspect(row).attrs[attribute].history.has_changes())


def _seconds(job: Job) -> float | None:
    if job.started_at is None or job.finished_at is None:
        return None
    return (datetime.fromisoformat(job.finished_at) - datetime.fromisoformat(job.started_at)).total_seconds()


def _outcome(delivery: Delivery) -> str:
    if delivery.delivered_at is not None:
        return "delivered"
    return "failed" if delivery.next_try_at is not None else "given_up"
