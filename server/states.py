"""The states of a job, and the only ways between them.

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

A job is `starting` from its submission until its workers compute, `running` from then on, also while a gang is started
again. An attempt that is lost (with Ray, its node or its driver) has the job queued for a new one. `cancelling` ends in
`cancelled` whatever its driver still manages to do.
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
"""Nothing of the job runs."""
IN_RAY = frozenset({Status.STARTING, Status.RUNNING, Status.CANCELLING})
"""The job may have a driver."""
RESUMABLE = frozenset({Status.FAILED, Status.CANCELLED})


class IllegalTransitionError(ValueError):
    """A change of state that no job makes."""


def check_transition(old: Status, new: Status) -> None:
    """Raises IllegalTransitionError unless a job may go from `old` to `new`."""
    if new not in TRANSITIONS[old]:
        raise IllegalTransitionError(f"a {old} job cannot become {new}")


def after_cancel(status: Status) -> Status:
    """The state right after a cancel: at once where nothing runs yet, unchanged where nothing runs any more."""
    if status is Status.QUEUED:
        return Status.CANCELLED
    return status if status in ENDED else Status.CANCELLING
