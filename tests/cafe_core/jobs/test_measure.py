"""The progress of an evaluation: each network, and how far long trainings are."""

from __future__ import annotations

import time
from typing import Any

import pytest

from cafe_core.evaluation.tasks import EvaluationTask, TrainingStep
from cafe_core.jobs.backend import TRAINING
from cafe_core.jobs.measure import TrainingProgress

TASKS = [EvaluationTask("synthetic", 0, "none", repeat) for repeat in range(10)]


class Events(list[tuple[str, dict[str, Any]]]):
    def __call__(self, type: str, **data: Any) -> None:
        self.append((type, data))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return a list whose only number is the time."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_the_first_training_already_gives_a_remaining_time(clock: list[float]) -> None:
    events = Events()
    progress = TrainingProgress(events, done=2, total=10)
    clock[0] += 10
    progress.report(TRAINING, step=TrainingStep(TASKS[2:3], 50, 200))  # a quarter of a network in 10 s
    assert events == [
        ("step", {"of": "network", "done": 2, "total": 10, "eta_s": 40 * 7.75, "epoch": 50, "epochs": 200, "networks": 1})
    ]
    clock[0] += 30
    assert progress.network_done(TASKS[2]) == {"done": 3, "total": 10, "eta_s": 40.0 * 7}


def test_trainings_of_several_workers_count_together(clock: list[float]) -> None:
    events = Events()
    progress = TrainingProgress(events, done=0, total=10)
    clock[0] += 10
    progress.report(TRAINING, step=TrainingStep(TASKS[:4], 100, 200))  # an ensemble of four on one GPU: two networks' worth
    progress.report(TRAINING, step=TrainingStep(TASKS[4:5], 200, 200))  # and one on another: 3 in 10 s
    assert (events[-1][1]["eta_s"], events[-1][1]["networks"]) == (pytest.approx(70 / 3, abs=0.1), 5)
    clock[0] += 20
    assert progress.network_done(TASKS[4])["eta_s"] == 10 * 7
    progress.report(TRAINING, step=TrainingStep(TASKS[:4], 200, 200))
    assert events[-1][1] == {"of": "network", "done": 1, "total": 10, "eta_s": 30.0, "epoch": 200, "epochs": 200, "networks": 4}
    ended = [progress.network_done(task) for task in TASKS[:4]]
    assert [numbers["done"] for numbers in ended] == [2, 3, 4, 5]
    assert {numbers["eta_s"] for numbers in ended} == {30.0}, "networks that are trained together end together"


def test_other_reports_are_events() -> None:
    events = Events()
    TrainingProgress(events, done=0, total=1).report("restart", reason="died")
    assert events == [("restart", {"reason": "died"})]
