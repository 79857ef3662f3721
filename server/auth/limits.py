"""Rate limit and quotas of API keys: requests, queued jobs, stored bytes.

Quotas are checked under a lock on the key's row, so that concurrent requests on any server see each other's additions. The limit
on running jobs is applied where jobs are admitted: :mod:`server.store.jobs`.
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
    """The effective limits of a key: its own, or the server's defaults."""

    requests_per_minute: int
    max_queued_jobs: int
    max_upload_bytes: int
    max_stored_bytes: int

    @classmethod
    def of(cls, own: KeyLimits, settings: Settings) -> Limits:
        """Return the effective limits of a key."""

        def first(limit: int | None, default: int) -> int:
            return default if limit is None else limit

        return cls(
            first(own.requests_per_minute, settings.requests_per_minute),
            settings.max_queued_jobs,
            first(own.max_upload_bytes, settings.max_upload_bytes),
            first(own.max_stored_bytes, settings.max_stored_bytes),
        )


class Buckets:
    """Rate limit with a token bucket per key: bursts of `per_minute` requests, and that many per minute on average.

    Belongs to one event loop.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._buckets: dict[str | None, tuple[float, float]] = {}

    def take(self, key_id: str | None, per_minute: int) -> None:
        """Take a token. Raises TooManyRequestsError with the time until the next token."""
        now = self._now()
        tokens, at = self._buckets.get(key_id, (float(per_minute), now))
        tokens = min(float(per_minute), tokens + (now - at) * per_minute / 60)
        if tokens < 1:
            self._buckets[key_id] = tokens, now
            wait_s = (1 - tokens) * 60 / per_minute
            retry_after_s = math.ceil(wait_s)
            raise TooManyRequestsError(
                f"rate limit exceeded: {per_minute} requests per minute; retry after {retry_after_s} s", retry_after_s
            )
        self._buckets[key_id] = tokens - 1, now


def stored_bytes(session: Session, key_id: str) -> int:
    """Return the bytes that count towards a key's max_stored_bytes."""
    datasets = select(func.coalesce(func.sum(Dataset.size), 0)).where(Dataset.owner == key_id)
    jobs = select(func.coalesce(func.sum(Job.stored_bytes), 0)).where(Job.owner == key_id)
    return int(session.scalar(datasets) or 0) + int(session.scalar(jobs) or 0)


def check_storage_quota(session: Session, owner: str | None, settings: Settings, adding: int) -> None:
    """Check the storage quota within the transaction that stores `adding` bytes for `owner`, a key's id. Raises TooLargeError."""
    if owner is None:
        return
    limits = _locked(session, owner, settings)
    stored = stored_bytes(session, owner)
    if stored + adding > limits.max_stored_bytes:
        more = f" and needs {adding} more" if adding else ""
        raise TooLargeError(
            f"storage quota exceeded: the API key stores {stored} bytes{more}; the limit is {limits.max_stored_bytes} bytes; "
            "delete datasets or jobs"
        )


def check_queue(session: Session, owner: str | None, settings: Settings, *, adding: int) -> None:
    """Check the quotas within the transaction that queues a job of `owner`, a key's id, and stores `adding` bytes.

    The owner's quotas count, even if an admin resumes the job. Raises TooManyRequestsError if too many jobs are queued, and
    TooLargeError if the storage quota is exhausted.
    """
    if owner is None:
        return
    limits = _locked(session, owner, settings)
    queued = select(func.count()).select_from(Job).where(Job.owner == owner, Job.status == Status.QUEUED.value)
    if (session.scalar(queued) or 0) >= limits.max_queued_jobs:
        raise TooManyRequestsError(
            f"queue limit reached: {limits.max_queued_jobs} jobs; wait for one to start or cancel one", QUEUE_RETRY_AFTER_S
        )
    check_storage_quota(session, owner, settings, max(adding, 1))


def _locked(session: Session, key_id: str, settings: Settings) -> Limits:
    """Lock a key until the transaction ends, and return its limits. SQLite has locked the whole database already."""
    row = session.scalars(select(ApiKey).where(ApiKey.id == key_id).with_for_update()).one()
    return Limits.of(limits_of(row), settings)
