"""Decide what the reconciler does next about a job, as a pure function of the known facts.

The driver's files take precedence over Ray: a job has a result if its manifest exists, and failed for the reason its driver
wrote. Ray reports whether the driver still runs, and why it ended if the driver could not write that itself. Such an attempt
is lost through no fault of the job, and a new one continues from the last checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from server.states import Status
from workers.client import RayJob, RayJobState


@dataclass(frozen=True)
class Facts:
    """What is known about a job's current attempt."""

    status: Status
    submitted: bool
    """Whether Ray is known to have accepted the attempt."""
    ray: RayJob | None
    """The attempt's job in Ray; None if Ray does not know it."""
    terminal_event: dict[str, Any] | None = None
    """Its driver's `finished`, `failed` or `cancelled` event, with its type."""
    has_result: bool = False
    """Whether its manifest exists."""
    silent: bool = False
    """Whether its driver has sent no heartbeat for `Settings.driver_silence_s`."""
    given_up: bool = False
    """Whether it was given up for that reason."""
    lingers: bool = False
    """Whether its driver still runs some time after its terminal event."""
    stop_asked: bool = False
    """Whether Ray received a stop request a moment ago."""
    ignores_stop: bool = False
    """Whether Ray received a stop request long ago and still reports the driver as running: it counts as ended."""
    retries: int = 0
    """Consecutive lost attempts without progress, see `server.store.jobs.consecutive_losses`."""
    max_retries: int = 0
    """Maximum number of consecutive lost attempts without progress."""


class Act(Enum):
    """The reconciler's actions."""

    WAIT = auto()
    SUBMIT = auto()
    GIVE_UP = auto()
    STOP = auto()
    RETRY = auto()
    END = auto()


@dataclass(frozen=True)
class Decision:
    """An action; with END, the job's final state and error; with RETRY, the reason why the attempt is lost."""

    act: Act
    status: Status | None = None
    error: dict[str, Any] | None = None


def decide(facts: Facts) -> Decision:
    """Return the next action for a job that may have a driver (`starting`, `running` or `cancelling`)."""
    gone = facts.ray is None or facts.ray.state.ended or facts.ignores_stop
    if not gone:
        return Decision(_while_running(facts))
    if facts.status is Status.CANCELLING:
        return Decision(Act.END, Status.CANCELLED)
    if facts.ray is None and not facts.submitted:
        return Decision(Act.SUBMIT)
    if facts.has_result:
        return Decision(Act.END, Status.SUCCEEDED)
    if (error := _failure(facts)) is not None:
        return Decision(Act.END, Status.FAILED, error)
    if facts.retries < facts.max_retries:
        return Decision(Act.RETRY, Status.QUEUED, _loss(facts))
    return Decision(Act.END, Status.FAILED, _too_many_losses(facts))


def _while_running(facts: Facts) -> Act:
    """Return the next action for an attempt whose driver runs.

    Giving up is recorded before the stop request, so that the next server does not mistake it for a user's request.
    """
    if facts.status is Status.CANCELLING or facts.given_up or facts.lingers:
        return Act.WAIT if facts.stop_asked else Act.STOP
    return Act.GIVE_UP if facts.silent else Act.WAIT


def _failure(facts: Facts) -> dict[str, Any] | None:
    """Return the error if a new attempt would not help or is not wanted; None if the attempt was lost.

    A driver that reports `cancelled` has received a signal. If Ray sent it, a user stopped the job in Ray; otherwise its machine
    shut down.
    """
    event_type = None if facts.terminal_event is None else facts.terminal_event["type"]
    if facts.terminal_event is not None and event_type == "failed":
        return dict(facts.terminal_event["error"])
    if facts.ray is not None and facts.ray.state is RayJobState.STOPPED and not facts.given_up:
        return _error("stopped", "the job was stopped in Ray, not through this API. Resume to continue from the last checkpoint")
    if event_type == "finished":
        return _error("result_lost", "the job finished, but its result is missing. Resume to compute it from the last checkpoint")
    return None


def _too_many_losses(facts: Facts) -> dict[str, Any]:
    loss = _loss(facts)
    before = "" if not facts.retries else f"; {facts.retries} attempts before it were also lost without progress"
    return loss | {"message": f"{loss['message']}{before}. Resume to continue from the last checkpoint"}


def _loss(facts: Facts) -> dict[str, Any]:
    """Return why the attempt was lost."""
    ray = facts.ray
    if facts.given_up or facts.ignores_stop:
        frozen = "its driver stopped sending heartbeats" if facts.given_up else "Ray did not stop it when asked to"
        return _error("driver_silent", f"the attempt was lost: {frozen}. Its machine may hang, or the process was frozen")
    if ray is None:
        return _error("ray_lost", "the attempt was lost: Ray no longer knows it, probably because Ray was restarted")
    exit_code = "" if ray.exit_code is None else f" (exit code {ray.exit_code})"
    reason = "" if ray.exit_code is not None else f": {first_line(ray.message)}"
    return _error("driver_died", f"the attempt was lost: its driver ended unexpectedly{exit_code}{reason}; see its logs")


def first_line(text: str) -> str:
    """Return the first line of a message from Ray, at most 300 characters."""
    return text.strip().split("\n", 1)[0][:300]


def _error(code: str, message: str) -> dict[str, Any]:
    return {"code": code, "message": message, "retryable": True}
