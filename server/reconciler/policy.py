"""What a reconciler should do next about a job: a pure function of what is known, no I/O.

The driver's files outrank Ray's word: a job has a result when its manifest is there, and failed for the reason that its
driver wrote. Ray says whether the driver still runs, and what happened when the driver could write nothing: then the
attempt is lost, through no fault of the job's, and a new one goes on from the last checkpoint.
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
    silent: bool = False
    """Whether its driver has shown no life for as long as is waited for that."""
    given_up: bool = False
    """Whether it was given up for that."""
    lingers: bool = False
    """Whether its driver lives on, some time after its last event."""
    stop_asked: bool = False
    """Whether it was asked to stop a moment ago, and heard it."""
    deaf: bool = False
    """Whether it heard that long ago, and Ray still says that it runs: then nothing will end it, and it counts as ended."""
    renewals: int = 0
    """Attempts made for lost ones, in a row, the current one included, since one came further: see `jobs.renewals_in_a_row`."""
    max_renewals: int = 0
    """How many of them may follow each other."""


class Act(Enum):
    """What to do."""

    WAIT = auto()
    SUBMIT = auto()
    GIVE_UP = auto()
    STOP = auto()
    RENEW = auto()
    END = auto()


@dataclass(frozen=True)
class Decision:
    """`act`; with END the state that the job ends in, and why; with RENEW why the attempt counts as lost."""

    act: Act
    status: Status | None = None
    error: dict[str, Any] | None = None


def decide(facts: Facts) -> Decision:
    """The next step of a job that may have a driver (`starting`, `running`, `cancelling`)."""
    gone = facts.ray is None or facts.ray.state.ended or facts.deaf
    if not gone:
        return Decision(_while_it_lives(facts))
    if facts.status is Status.CANCELLING:
        return Decision(Act.END, Status.CANCELLED)
    if facts.ray is None and not facts.submitted:
        return Decision(Act.SUBMIT)
    if facts.has_result:
        return Decision(Act.END, Status.SUCCEEDED)
    if (error := _own_failure(facts)) is not None:
        return Decision(Act.END, Status.FAILED, error)
    if facts.renewals < facts.max_renewals:
        return Decision(Act.RENEW, Status.QUEUED, _loss(facts))
    return Decision(Act.END, Status.FAILED, _lost_too_often(facts))


def _while_it_lives(facts: Facts) -> Act:
    """What is given up is noted first, and stopped then: the next server is not to take that for somebody's wish."""
    if facts.status is Status.CANCELLING or facts.given_up or facts.lingers:
        return Act.WAIT if facts.stop_asked else Act.STOP
    return Act.GIVE_UP if facts.silent else Act.WAIT


def _own_failure(facts: Facts) -> dict[str, Any] | None:
    """Why a new attempt would not help, or is not wanted; None for an attempt that was lost.

    A driver that says `cancelled` was sent a signal. Only if Ray did that was it somebody's wish; else its machine shut down.
    """
    said = None if facts.last_words is None else facts.last_words["type"]
    if facts.last_words is not None and said == "failed":
        return dict(facts.last_words["error"])
    if facts.ray is not None and facts.ray.state is RayJobState.STOPPED and not facts.given_up:
        return _error("stopped", "the job was stopped in Ray, not through this API. Resume to go on from the last checkpoint")
    if said == "finished":
        return _error("result_lost", "the job finished, but its result is gone. Resume to make it again from the last checkpoint")
    return None


def _lost_too_often(facts: Facts) -> dict[str, Any]:
    loss = _loss(facts)
    often = "" if not facts.renewals else f"; so were {facts.renewals} before it that came no further"
    return loss | {"message": f"{loss['message']}{often}. Resume to go on from the last checkpoint"}


def _loss(facts: Facts) -> dict[str, Any]:
    """What an attempt was lost with."""
    ray = facts.ray
    if facts.given_up or facts.deaf:
        frozen = "its driver showed no life any more" if facts.given_up else "Ray did not end it when asked to"
        return _error("driver_silent", f"the attempt was lost: {frozen}. Its machine may hang, or the process was frozen")
    if ray is None:
        return _error("ray_lost", "the attempt was lost: Ray no longer knows it, so it was started anew")
    exit_code = "" if ray.exit_code is None else f" (exit code {ray.exit_code})"
    reason = "" if ray.exit_code is not None else f": {first_line(ray.message)}"
    return _error("driver_died", f"the attempt was lost: its driver ended without a word{exit_code}{reason}; its logs say more")


def first_line(text: str) -> str:
    """The first line of a message of Ray's, at most 300 characters."""
    return text.strip().split("\n", 1)[0][:300]


def _error(code: str, message: str) -> dict[str, Any]:
    return {"code": code, "message": message, "retryable": True}
