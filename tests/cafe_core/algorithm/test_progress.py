"""Progress within long iterations and epochs, and the estimated remaining time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from cafe_core.algorithm.bilevel import Loop
from cafe_core.algorithm.network_steps import Queries
from cafe_core.algorithm.progress import EpochProgress, Progress


class Events:
    """Collects events. Time moves only when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.all: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, type: str, **data: Any) -> None:
        self.all.append((type, data))

    @property
    def types(self) -> list[str]:
        return [type for type, _ in self.all]

    @property
    def last(self) -> dict[str, Any]:
        return self.all[-1][1]


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Events:
    events = Events()
    monkeypatch.setattr(time, "monotonic", lambda: events.now)
    return events


def loop(bound: int, steps: int) -> Loop:
    return Loop(bound, window=0, threshold=0, reason="moved", steps=steps)


class NoQueries(Queries):
    """The queries of an iteration before the first check."""

    def __init__(self) -> None:
        self.latest = None
        self.count = self._images_per_check = 0


def of_iterations(events: Events, *, done: int = 0, total: int = 100) -> tuple[Callable[..., None], Callable[[int], None]]:
    """Return functions that report (outer steps of 4, inner epochs of 9) and a number of finished iterations."""
    reporter = Progress(events, done=done, total=total, real_images_per_step=1)
    return (
        lambda outer, inner: reporter.step_done(loop(4, outer), loop(9, inner), NoQueries()),
        lambda iteration: reporter.iteration_done(iteration, {}, loop(4, 4), [], NoQueries()),
    )


def test_a_long_first_iteration_is_followed_and_its_bounds_give_the_remaining_time(events: Events) -> None:
    step, _ = of_iterations(events)
    events.now += 1.9
    step(1, 0)
    assert events.types == []
    events.now += 0.1
    step(1, 4)  # half of the first of four outer steps in 2 s: an iteration takes 16 s
    assert events.all == [
        (
            "step",
            {
                **{"of": "iteration", "done": 0, "total": 100, "eta_s": 16.0 * 100 - 2},
                **{"outer_step": 1, "max_outer": 4, "inner_epoch": 4, "max_inner": 9, "query_accuracy": None},
            },
        )
    ]
    for _ in range(99):
        events.now += 0.1
        step(2, 0)
    assert len(events.all) == 1
    events.now += 0.1
    step(2, 1)
    assert len(events.all) == 2


def test_a_resumed_run_estimates_from_its_own_iterations(events: Events) -> None:
    step, iteration_done = of_iterations(events, done=90)
    events.now += 8
    step(2, 9)  # half an iteration
    assert events.last["eta_s"] == 16 * 10 - 8
    assert events.last["done"] == 90
    events.now += 4
    iteration_done(91)
    assert (events.last["seconds"], events.last["eta_s"]) == (12, 12 * 9)
    events.now += 11
    step(4, 0)
    assert (events.last["done"], events.last["eta_s"]) == (91, 12 * 9 - 11)
    events.now += 120
    step(4, 1)
    assert events.last["eta_s"] == 0  # later than expected, but never below zero


def test_short_iterations_report_no_steps(events: Events) -> None:
    step, iteration_done = of_iterations(events)
    for iteration in range(1, 100):
        for _ in range(2):
            events.now += 0.9
            step(1, 1)
        iteration_done(iteration)
    assert set(events.types) == {"iteration"}


def test_a_long_epoch_is_followed_after_epochs_of_earlier_jobs(events: Events) -> None:
    reporter = EpochProgress(events, total=6)
    reporter.skip_to(4)
    for batch in range(1, 5):
        events.now += 1
        reporter.step_done(batch, 8)
    # Two of eight batches took 2 s, so an epoch takes 8 s, and two are left.
    assert events.all == [("step", {"of": "epoch", "done": 4, "total": 6, "eta_s": 14.0, "batch": 2, "batches": 8})]
    events.now += 6
    reporter.epoch_done(5, 0.5, 0.9, pool_network=3)
    assert events.last == {
        **{"epoch": 5, "total": 6, "loss": 0.5, "accuracy": 0.9, "pool_network": 3},
        **{"seconds": 10.0, "eta_s": 10.0},
    }
