"""What a driver's events say about its job: pure functions from an event to what changes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

COMPUTING = frozenset({"condensing", "evaluating", "publishing"})
"""Phases in which the job's workers, or its driver, compute."""
LAST_WORDS = frozenset({"finished", "failed", "cancelled"})
"""Events after which a driver says nothing more."""


@dataclass(frozen=True)
class DriverEvent:
    """A line of events.jsonl."""

    time: str
    type: str
    data: dict[str, Any]

    @classmethod
    def parse(cls, line: bytes) -> DriverEvent:
        """Raises ValueError when the line is no event."""
        data = json.loads(line)
        if not isinstance(data, dict) or not isinstance(data.get("type"), str) or not isinstance(data.get("time"), str):
            raise ValueError(f"not an event: {line[:200]!r}")
        return cls(data.pop("time"), data.pop("type"), data)


@dataclass(frozen=True)
class Changes:
    """What an event changes in its job; None: nothing."""

    phase: str | None = None
    done: int | None = None
    total: int | None = None
    eta_s: float | None = None
    computing: bool = False


def changes_of(event: DriverEvent) -> Changes:
    """Events of other types change nothing of the job but are events of it all the same."""
    match event.type:
        case "phase":
            phase = str(event.data["phase"])
            return Changes(phase=phase, computing=phase in COMPUTING)
        case "iteration":
            return Changes(done=event.data["iteration"], total=event.data["total"], eta_s=event.data.get("eta_s"))
        case "evaluated":
            return Changes(done=event.data["done"], total=event.data["total"], eta_s=event.data.get("eta_s"))
        case _:
            return Changes()


def whole_lines(chunk: bytes) -> tuple[list[bytes], int]:
    """The lines of `chunk` that are ended, and how many bytes they take: the rest is still being written."""
    end = chunk.rfind(b"\n") + 1
    return chunk[:end].splitlines(), end
