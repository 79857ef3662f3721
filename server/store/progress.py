"""Derive the progress of a job from the events of its driver, with pure functions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from cafe_core.spec.condense import CondenseSpec
from cafe_core.spec.evaluate import EvaluateSpec
from cafe_core.spec.evaluation_sources import judged_source, task_count
from cafe_core.spec.job import JobSpec

COMPUTING = frozenset({"condensing", "validating", "evaluating", "sweeping", "publishing"})
"""Phases in which the job's workers or its driver compute."""
TERMINAL_EVENTS = frozenset({"finished", "failed", "cancelled"})
"""The types of a driver's last event."""
DURABLE_EVENTS = frozenset({"checkpoint", "validated", "evaluated", "trial_validated", "trial"})
"""Types of events for work that the next attempt does not have to repeat."""


@dataclass(frozen=True)
class DriverEvent:
    """A line of events.jsonl."""

    time: str
    type: str
    data: dict[str, Any]

    @classmethod
    def parse(cls, line: bytes) -> DriverEvent:
        """Parse a line. Raises ValueError if it is not an event."""
        data = json.loads(line)
        if not isinstance(data, dict) or not isinstance(data.get("type"), str) or not isinstance(data.get("time"), str):
            raise ValueError(f"not an event: {line[:200]!r}")
        if any(len(data[field]) > 32 or "\0" in data[field] for field in ("type", "time")):  # the size of the database columns
            raise ValueError(f"event type or time too long or with NUL: {line[:200]!r}")
        return cls(data.pop("time"), data.pop("type"), data)


@dataclass(frozen=True)
class JobUpdate:
    """The changes that an event makes to its job; None leaves a field unchanged."""

    phase: str | None = None
    done: int | None = None
    total: int | None = None
    eta_s: float | None = None
    computing: bool = False


def job_update(event: DriverEvent) -> JobUpdate:
    """Return the changes that an event makes to its job. Events of other types are stored but change nothing."""
    match event.type:
        case "phase":
            phase = str(event.data["phase"])
            return JobUpdate(phase=phase, computing=phase in COMPUTING)
        case "iteration":
            return JobUpdate(done=event.data["iteration"], total=event.data["total"], eta_s=event.data.get("eta_s"))
        case "epoch":
            return JobUpdate(done=event.data["epoch"], total=event.data["total"], eta_s=event.data.get("eta_s"))
        case "validated":
            return JobUpdate(done=event.data["iteration"], total=event.data["total"])
        case "step" | "evaluated" | "trials" | "trial":
            return JobUpdate(done=event.data["done"], total=event.data["total"], eta_s=event.data.get("eta_s"))
        case _:
            return JobUpdate()


def total_of(spec: JobSpec) -> int:
    """Return the initial `total` of a job's progress: iterations to condense, networks to evaluate, or trials of a sweep."""
    if isinstance(spec, CondenseSpec):
        return spec.iterations
    return task_count(spec, judged_source(spec)) if isinstance(spec, EvaluateSpec) else spec.trial_count


def whole_lines(chunk: bytes) -> tuple[list[bytes], int]:
    """Return the complete lines of `chunk` and their size in bytes; the rest is still being written."""
    end = chunk.rfind(b"\n") + 1
    return chunk[:end].splitlines(), end
