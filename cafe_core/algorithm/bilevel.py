"""Decide when each loop of the dynamic bi-level optimisation ends (Section 3.4, Algorithm 1).

The printed algorithm pops its queue on every step that does not break, so the queue would never fill. The intended rule
uses a window over the last γ query accuracies:

* outer loop: the network has *converged* once the window's span (max − min) is below λ1;
* inner loop: the network has *moved enough* once the span is above λ2.

Two accuracies are often enough to decide: if they differ by more than the threshold, so does the span of their window. A loop
therefore makes the checks of its window one by one, only while the rule is undecided.

This module uses neither tensors nor the cluster; the function that a check calls does.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

StopReason = Literal["converged", "moved", "bound"]


class Check:
    """A query check, which is made when its accuracy is needed."""

    def __init__(self, measure: Callable[[], float]) -> None:
        self._measure: Callable[[], float] | None = measure
        self._accuracy: float | None = None

    @property
    def is_made(self) -> bool:
        """Return whether the accuracy has been measured."""
        return self._accuracy is not None

    def accuracy(self) -> float:
        """Return the accuracy; the first call measures it. All workers make a check together."""
        if self._measure is not None:
            self._accuracy = self._measure()
            self._measure = None  # it may hold a copy of θ
        assert self._accuracy is not None
        return self._accuracy


@dataclass
class Loop:
    """The bound and stop rule of one loop. Call :meth:`ends_after` once per step; create a new object for each loop."""

    bound: int
    """Maximum number of steps."""
    window: int
    """γ. At zero or less the loop ends only at its bound (`bilevel: fixed`)."""
    threshold: float
    """λ1 or λ2."""
    reason: StopReason
    """The rule: `converged` ends the loop at a span below λ1, `moved` at a span above λ2."""
    steps: int = 0
    """Steps recorded so far."""
    stop: StopReason | None = None
    """Why the loop ended, or None while it has not."""
    _checks: deque[Check] = field(default_factory=deque)

    def __iter__(self) -> Iterator[int]:
        """Yield the number of each step, 0, 1, …, until the loop ends. Each step must be recorded by :meth:`ends_after`."""
        for step in range(self.bound):
            yield step
            assert self.steps == step + 1, "each step of a Loop must be recorded by ends_after()"
            if self.stop is not None:
                return

    def ends_after(self, check: Check | None) -> StopReason | None:
        """Record one step and its query check (None if :func:`needed_queries` omits it); return why the loop ends, or None.

        From step γ on, the window is full, and the newest check is made at once, while θ is current. At the bound no check is
        made.
        """
        self.steps += 1
        if check is not None and self.window > 0:
            self._checks.append(check)
            if len(self._checks) > self.window:
                self._checks.popleft()
        if self.steps >= self.bound:
            self.stop = "bound"
        elif self._checks and len(self._checks) == self.window and self._rule_holds():
            self.stop = self.reason
        if self.stop is not None:
            self._checks.clear()
        return self.stop

    def _rule_holds(self) -> bool:
        """Decide the rule, making a check only while it is undecided: the newest, those already made, then from the oldest on."""
        *earlier, newest = self._checks
        low, high = math.inf, -math.inf
        for check in (newest, *sorted(earlier, key=lambda check: not check.is_made)):
            low, high = min(low, check.accuracy()), max(high, check.accuracy())
            if self.reason == "moved" and high - low > self.threshold:
                return True
            if self.reason == "converged" and high - low >= self.threshold:
                return False
        return self.reason == "converged"


def needed_queries(max_outer: int, max_inner: int, window: int, carry: bool) -> tuple[bool, bool]:
    """Return whether the query checks of the outer and of the inner loop can change a run; others can be omitted.

    A rule can end a loop early only if the window fills before the bound is reached. With `carry` (see QueryAverage)
    each check affects all later ones in both loops.
    """
    outer = 0 < window < max_outer
    inner = 0 < window < max_inner and max_outer > 1  # after the last outer step there is no inner loop
    return (outer or inner, outer or inner) if carry else (outer, inner)


@dataclass
class QueryAverage:
    """The accuracy that enters the queues.

    The reference code never resets its running accuracy: a_t = mean_t + a_{t−1}/K. Without `carry`, a_t = mean_t.
    Each iteration uses a new object, so the state at an iteration boundary has no history.
    """

    num_classes: int
    carry: bool
    _value: float = 0.0

    def update(self, mean: float) -> float:
        """Add the accuracy of one check (0 … 1); return the updated value."""
        self._value = mean + self._value / self.num_classes if self.carry else mean
        return self._value
