"""The states of a job and the transitions between them.

::

      ┌── lost ────┬───────────┐
      ↓            │           │
    queued ──→ starting ──→ running ──→ succeeded
      ↑  │         │  │        │  │
      │  │         │  └────────┼──┴───→ failed ────┐
      │  └→ cancelled ←── cancelling               │
      │         │              ↑                   │
      │         │   (both, on cancel)              │
      └─────────┴──────────── resume ──────────────┘

A job is `starting` from its submission until its workers compute and `running` from then on, also while its workers are
restarted. When an attempt is lost (with Ray, its node or its driver), the job is queued for a new one. `cancelling` always
ends in `cancelled`, whatever its driver still does.
"""

from __future__ import annotations

from enum import StrEnum


class Status(StrEnum):
    """A job's `status`."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


TRANSITIONS: dict[Status, frozenset[Status]] = {
    Status.QUEUED: frozenset({Status.STARTING, Status.CANCELLED, Status.FAILED}),
    Status.STARTING: frozenset({Status.RUNNING, Status.SUCCEEDED, Status.FAILED, Status.CANCELLING, Status.QUEUED}),
    Status.RUNNING: frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELLING, Status.QUEUED}),
    Status.CANCELLING: frozenset({Status.CANCELLED}),
    Status.SUCCEEDED: frozenset(),
    Status.FAILED: frozenset({Status.QUEUED}),
    Status.CANCELLED: frozenset({Status.QUEUED}),
}

ENDED = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELLED})
"""States in which no part of the job runs."""
IN_RAY = frozenset({Status.STARTING, Status.RUNNING, Status.CANCELLING})
"""States in which the job may have a driver."""
RESUMABLE = frozenset({Status.FAILED, Status.CANCELLED})


class IllegalTransitionError(ValueError):
    """A transition that is not allowed."""


def check_transition(old: Status, new: Status) -> None:
    """Raise IllegalTransitionError unless a job may go from `old` to `new`."""
    if new not in TRANSITIONS[old]:
        raise IllegalTransitionError(f"a {old} job cannot become {new}")


def after_cancel(status: Status) -> Status:
    """Return the state right after a cancel: a queued job is cancelled immediately, and an ended job keeps its state."""
    if status is Status.QUEUED:
        return Status.CANCELLED
    return status if status in ENDED else Status.CANCELLING
