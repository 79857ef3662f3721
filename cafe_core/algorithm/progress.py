"""Report the progress of a run: its iterations and epochs, the steps of long ones, and the estimated remaining time."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from cafe_core.algorithm.bilevel import Loop
from cafe_core.algorithm.method import Losses, Report
from cafe_core.algorithm.network_steps import Queries
from cafe_core.algorithm.step_clock import StepClock


class _Clock:
    """Measures the iterations or epochs of a run, and reports `step` events."""

    def __init__(self, report: Report, of: Literal["iteration", "epoch"], *, done: int, total: int) -> None:
        self._report, self._of, self._done, self._total = report, of, done, total
        self._counted = 0  # iterations or epochs that this process has computed
        self._started = self._last = time.monotonic()
        self._steps = StepClock()

    def done(self, done: int) -> dict[str, float]:
        """Record that `done` are done; return `seconds` of the last one, and `eta_s`."""
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        self._steps.postpone()
        self._done, self._counted = done, self._counted + 1
        return {"seconds": round(seconds, 4), "eta_s": self._eta(now, 0.0)}

    def skip_to(self, done: int) -> None:
        """Record that `done` are done, and that others have computed the last ones."""
        self._done = done

    def step_done(self, share: float, **data: Any) -> None:
        """Report a `step` event if it is due. share: how much of the current iteration or epoch is done, above 0 and up to 1."""
        if self._steps.is_due():
            eta_s = self._eta(time.monotonic(), share)
            self._report("step", of=self._of, done=self._done, total=self._total, eta_s=eta_s, **data)

    def _eta(self, now: float, share: float) -> float:
        """Return the estimated remaining seconds: by the mean of those done, or by `share` while none is done."""
        remaining = self._total - self._done
        if self._counted > 0:
            mean = (self._last - self._started) / self._counted
            return round(max(mean * remaining - (now - self._last), 0.0), 1)
        return round((now - self._started) / share * (remaining - share), 1)


class Progress:
    """Reports an `iteration` event for each iteration, and `step` events within long iterations."""

    def __init__(self, report: Report, *, done: int, total: int, real_images_per_step: int) -> None:
        """done: iterations of earlier attempts."""
        self._report = report
        self._total = total
        self._real_images_per_step = real_images_per_step
        self._clock = _Clock(report, "iteration", done=done, total=total)

    def step_done(self, outer_loop: Loop, inner_loop: Loop, queries: Queries) -> None:
        """Report an outer step or an inner epoch, if the last event is some seconds old.

        Before the first iteration is done, the estimated remaining time is that of loops which end at their bounds.
        """
        of_outer_step = (1 + inner_loop.steps) / (1 + inner_loop.bound)
        self._clock.step_done(
            (outer_loop.steps - 1 + of_outer_step) / outer_loop.bound,
            outer_step=outer_loop.steps,
            max_outer=outer_loop.bound,
            inner_epoch=inner_loop.steps,
            max_inner=inner_loop.bound,
            query_accuracy=queries.latest,
        )

    def iteration_done(
        self, iteration: int, losses: Losses, outer_loop: Loop, inner_loops: Sequence[Loop], queries: Queries
    ) -> None:
        """Report that `iteration` iterations are done. losses: of the last outer step, over all workers."""
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
            **self._clock.done(iteration),
        )


class EpochProgress:
    """Reports an `epoch` event for each epoch of a training on the real images, and `step` events within long epochs."""

    def __init__(self, report: Report, *, total: int) -> None:
        """total: epochs of all networks."""
        self._report, self._total = report, total
        self._clock = _Clock(report, "epoch", done=0, total=total)

    def skip_to(self, epoch: int) -> None:
        """Record that `epoch` epochs are done, of which earlier jobs or attempts have computed the last ones."""
        self._clock.skip_to(epoch)

    def step_done(self, batch: int, batches: int) -> None:
        """Report that `batch` minibatches of the current epoch are done, if the last event is some seconds old."""
        self._clock.step_done(batch / batches, batch=batch, batches=batches)

    def epoch_done(self, epoch: int, loss: float, accuracy: float, **data: Any) -> None:
        """Report that `epoch` epochs are done. loss, accuracy: of the last one."""
        self._report("epoch", epoch=epoch, total=self._total, loss=loss, accuracy=accuracy, **data, **self._clock.done(epoch))


def _finite(value: float) -> float | None:
    """Return None instead of infinity or NaN, which JSON does not have; such a run ends at its next checkpoint at the latest."""
    return value if math.isfinite(value) else None


def _stops(loops: Sequence[Loop]) -> dict[str, int]:
    """Return how many loops ended for each reason."""
    return dict(Counter(loop.stop for loop in loops if loop.stop is not None))
