"""Report the iterations of a run, with their durations and the estimated remaining time."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence

from cafe_core.algorithm.bilevel import Loop
from cafe_core.algorithm.method import Losses, Report
from cafe_core.algorithm.network_steps import Queries


class Progress:
    """Reports an `iteration` event for each iteration."""

    def __init__(self, report: Report, *, done: int, total: int, real_images_per_step: int) -> None:
        """done: iterations of earlier attempts."""
        self._report = report
        self._first = done
        self._total = total
        self._real_images_per_step = real_images_per_step
        self._started = self._last = time.monotonic()

    def iteration_done(
        self, iteration: int, losses: Losses, outer_loop: Loop, inner_loops: Sequence[Loop], queries: Queries
    ) -> None:
        """Report that `iteration` iterations are done. losses: of the last outer step, over all workers."""
        now = time.monotonic()
        mean_seconds = (now - self._started) / (iteration - self._first)
        self._report(
            "iteration",
            iteration=iteration,
            total=self._total,
            **{name: _finite(float(value)) for name, value in losses.items()},
            query_accuracy=queries.latest,
            outer_steps=outer_loop.steps,
            inner_epochs=sum(loop.steps for loop in inner_loops),
            stop_outer=_stops([outer_loop]),
            stop_inner=_stops(inner_loops),
            # An image counts each time it passes through the network, over all workers.
            real_images=outer_loop.steps * self._real_images_per_step + queries.real_images(),
            seconds=round(now - self._last, 4),
            eta_s=round(mean_seconds * (self._total - iteration), 1),
        )
        self._last = now


def _finite(value: float) -> float | None:
    """Return None instead of infinity or NaN, which JSON does not have; such a run ends at its next checkpoint at the latest."""
    return value if math.isfinite(value) else None


def _stops(loops: Sequence[Loop]) -> dict[str, int]:
    """Return how many loops ended for each reason."""
    return dict(Counter(loop.stop for loop in loops if loop.stop is not None))
