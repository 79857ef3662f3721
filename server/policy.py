"""What a reconciler should do next about a job: a pure function of what is known, no I/O.

The driver's files outrank Ray's word: a job has a result when its manifest is there, and failed for the reason that its
driver wrote. Ray says whether the driver still runs, and what happened when the driver could write nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from server.states import Status
from workers.client import RayJob, RayJobState


@dataclass(frozen=True)
class Facts:
    """What is known of a job's attempt."""

    status: Status
    submitted: bool
    """Whether Ray is known to have taken the attempt."""
    ray: RayJob | None
    """What Ray says of it now; None: it knows nothing of it."""
    last_words: dict[str, Any] | None = None
    """Its driver's last event, with its type."""
    has_result: bool = False
    """Whether its manifest is there."""
    stop_asked: bool = False
    """Whether it was asked to stop a moment ago, and heard it."""


class Act(Enum):
    """What to do."""

    WAIT = auto()
    SUBMIT = auto()
    STOP = auto()
    END = auto()


@dataclass(frozen=True)
class Decision:
    """`act`, and with END the state that the job ends in and why."""

    act: Act
    status: Status | None = None
    error: dict[str, Any] | None = None


def decide(facts: Facts) -> Decision:
    """The next step of a job that may have a driver (`starting`, `running`, `cancelling`)."""
    gone = facts.ray is None or facts.ray.state.ended
    if facts.status is Status.CANCELLING:
        if gone:
            return Decision(Act.END, Status.CANCELLED)
        return Decision(Act.WAIT if facts.stop_asked else Act.STOP)
    if facts.ray is None and not facts.submitted:
        return Decision(Act.SUBMIT)
    if not gone:
        return Decision(Act.WAIT)
    if facts.has_result:
        return Decision(Act.END, Status.SUCCEEDED)
    return Decision(Act.END, Status.FAILED, _why_failed(facts))


def _why_failed(facts: Facts) -> dict[str, Any]:
    if facts.last_words is not None and facts.last_words["type"] == "failed":
        return dict(facts.last_words["error"])
    if facts.ray is None:
        return _error("ray_lost", "Ray no longer knows the job: it was started anew. Resume to go on from the last checkpoint")
    if facts.ray.state is RayJobState.STOPPED or (facts.last_words is not None and facts.last_words["type"] == "cancelled"):
        return _error("stopped", "the job was stopped in Ray, not through this API. Resume to go on from the last checkpoint")
    exit_code = "" if facts.ray.exit_code is None else f" (exit code {facts.ray.exit_code})"
    reason = "" if facts.ray.exit_code is not None else f": {first_line(facts.ray.message)}"
    return _error(
        "driver_died",
        f"the job's driver ended without a word{exit_code}{reason}; its logs say more. Resume to go on from the last checkpoint",
    )


def first_line(text: str) -> str:
    """The first line of a message of Ray's, at most 300 characters."""
    return text.strip().split("\n", 1)[0][:300]


def _error(code: str, message: str) -> dict[str, Any]:
    return {"code": code, "message": message, "retryable": True}
