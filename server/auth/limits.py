"""How much of the server one API key may take: requests, waiting jobs, bytes.

What is counted in the database is counted under a lock on the key's row, so that of two requests at once, of whatever
server, the second sees what the first has added. Running jobs are bounded where jobs are admitted: :mod:`server.store.jobs`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from server.auth.keys import KeyLimits, limits_of
from server.errors import TooLargeError, TooManyRequestsError
from server.settings import Settings
from server.states import Status
from server.store.models import ApiKey, Dataset, Job

QUEUE_RETRY_AFTER_S = 30


@dataclass(frozen=True)
class Limits:
    """Of one key: its own, or else the server's."""

    requests_per_minute: int
    max_queued_jobs: int
    max_upload_bytes: int
    max_stored_bytes: int

    @classmethod
    def of(cls, own: KeyLimits, settings: Settings) -> Limits:
        """A key's limits on a server."""

        def first(limit: int | None, default: int) -> int:
            return default if limit is None else limit

        return cls(
            first(own.requests_per_minute, settings.requests_per_minute),
            settings.max_queued_jobs,
            first(own.max_upload_bytes, settings.max_upload_bytes),
            first(own.max_stored_bytes, settings.max_stored_bytes),
        )


class Buckets:
    """A token bucket per key: `per_minute` requests at once, and as many a minute. Of one event loop."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._buckets: dict[str | None, tuple[float, float]] = {}

    def take(self, key_id: str | None, per_minute: int) -> None:
        """Raises TooManyRequestsError, which says when there will be a token."""
        now = self._now()
        tokens, at = self._buckets.get(key_id, (float(per_minute), now))
        tokens = min(float(per_minute), tokens + (now - at) * per_minute / 60)
        if tokens < 1:
            self._buckets[key_id] = tokens, now
            wait_s = (1 - tokens) * 60 / per_minute
            raise TooManyRequestsError(f"more than {per_minute} requests a minute, which this key may make", math.ceil(wait_s))
        self._buckets[key_id] = tokens - 1, now


def stored_bytes(session: Session, key_id: str) -> int:
    """What counts against a key's max_stored_bytes."""
    datasets = select(func.coalesce(func.sum(Dataset.size), 0)).where(Dataset.owner == key_id)
    jobs = select(func.coalesce(func.sum(Job.stored_bytes), 0)).where(Job.owner == key_id)
    return int(session.scalar(datasets) or 0) + int(session.scalar(jobs) or 0)


def check_room(session: Session, owner: str | None, settings: Settings, adding: int) -> None:
    """Within the transaction that stores `adding` bytes more for `owner`, a key's id. Raises TooLargeError."""
    if owner is None:
        return
    limits = _locked(session, owner, settings)
    stored = stored_bytes(session, owner)
    if stored + adding > limits.max_stored_bytes:
        more = f" and {adding} more" if adding else ""
        raise TooLargeError(
            f"the key stores {stored} bytes{more}, of the {limits.max_stored_bytes} that it may: delete datasets or jobs"
        )


def check_queue(session: Session, owner: str | None, settings: Settings, *, adding: int) -> None:
    """Within the transaction that queues a job of `owner`, a key's id, whoever asks for it; `adding`: bytes that it stores now.

    Raises TooManyRequestsError; TooLargeError where its result could not be kept.
    """
    if owner is None:
        return
    limits = _locked(session, owner, settings)
    queued = select(func.count()).select_from(Job).where(Job.owner == owner, Job.status == Status.QUEUED.value)
    if (session.scalar(queued) or 0) >= limits.max_queued_jobs:
        raise TooManyRequestsError(
            f"{limits.max_queued_jobs} jobs of the key are queued, which is as many as may be", QUEUE_RETRY_AFTER_S
        )
    check_room(session, owner, settings, max(adding, 1))


def _locked(session: Session, key_id: str, settings: Settings) -> Limits:
    """A key's limits. Until the transaction ends, no other counts for this key; SQLite's have locked the database already."""
    row = session.scalars(select(ApiKey).where(ApiKey.id == key_id).with_for_update()).one()
    return Limits.of(limits_of(row), settings)
