"""Decide when the progress within a long iteration, epoch or training is reported. This module does not import torch."""

from __future__ import annotations

import time

FIRST_STEP_S = 2.0
"""Seconds after which the first `step` event is due."""
STEP_EVERY_S = 10.0
"""Seconds after another event after which the next `step` event is due."""


class StepClock:
    """Tells when a `step` event is due: soon after the start, and later some seconds after the last event."""

    def __init__(self) -> None:
        self._due = time.monotonic() + FIRST_STEP_S

    def is_due(self) -> bool:
        """Return whether to report a `step` event now. If so, the next one is due later."""
        due = time.monotonic() >= self._due
        if due:
            self.postpone()
        return due

    def postpone(self) -> None:
        """Note that an event is reported now."""
        self._due = time.monotonic() + STEP_EVERY_S
