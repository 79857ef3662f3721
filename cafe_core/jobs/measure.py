"""Train the networks of an evaluation that no previous attempt has trained. This module does not import torch."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from typing import Any

from cafe_core.evaluation.tasks import EvaluationSetup, EvaluationTask, TrainingStep
from cafe_core.files import LineLog, read_lines
from cafe_core.jobs.backend import TRAINING, Attempt, Report
from cafe_core.spec.resources import ResourcesSpec


class TrainingProgress:
    """Turns the reports of :meth:`cafe_core.jobs.backend.Backend.evaluate` into events, and estimates the remaining time."""

    def __init__(self, report: Report, *, done: int, total: int) -> None:
        """report: adds an event to the job's log. done: networks that earlier attempts have trained."""
        self._report, self._done, self._total = report, done, total
        self._counted = 0  # networks that this attempt has trained
        self._started = time.monotonic()
        self._running: dict[EvaluationTask, float] = {}
        """The tasks whose networks are in training, and the share of the epochs that is done."""

    def report(self, type: str, **data: Any) -> None:
        """Report an event; report a step of a training as a `step` event."""
        if type != TRAINING:
            self._report(type, **data)
            return
        step: TrainingStep = data["step"]
        self._running |= dict.fromkeys(step.tasks, step.epoch / step.epochs)
        progress = {"of": "network", **self._numbers(), "epoch": step.epoch, "epochs": step.epochs}
        self._report("step", **progress, networks=len(self._running))

    def network_done(self, task: EvaluationTask) -> dict[str, Any]:
        """Note that a task's network is trained; return `done`, `total` and `eta_s`."""
        self._running.pop(task, None)
        self._done += 1
        self._counted += 1
        return self._numbers()

    def _numbers(self) -> dict[str, Any]:
        partly = sum(self._running.values())
        seconds_per_network = (time.monotonic() - self._started) / (self._counted + partly)
        eta_s = round(seconds_per_network * (self._total - self._done - partly), 1)
        return {"done": self._done, "total": self._total, "eta_s": eta_s}


def measure(
    attempt: Attempt, tasks: Sequence[EvaluationTask], setup: EvaluationSetup, resources: ResourcesSpec
) -> dict[EvaluationTask, float]:
    """Return the accuracy of each task in percent. Each is appended to evaluation.jsonl immediately and never measured again."""
    spec, log_file = setup.spec, attempt.directory.evaluation_file
    judged = "real" if setup.synthetic is None else hashlib.sha256(setup.synthetic.read_bytes()).hexdigest()
    with closing(LineLog(log_file, fence=attempt.fence)) as log:
        known = {EvaluationTask(**r["task"]): r["accuracy"] for r in read_lines(log_file) if r["set"] == judged}
        accuracies: dict[EvaluationTask, float] = {task: known[task] for task in tasks if task in known}
        remaining = [task for task in tasks if task not in accuracies]
        progress = TrainingProgress(attempt.report, done=len(accuracies), total=len(tasks))
        for task, accuracy in attempt.backend.evaluate(remaining, setup, resources, progress.report):
            accuracies[task] = accuracy
            log.append({"set": judged, "task": asdict(task), "accuracy": accuracy})
            attempt.report(
                "evaluated",
                source=task.source,
                network=spec.networks[task.network].name,
                augment=task.augment,
                repeat=task.repeat,
                accuracy=accuracy,
                **progress.network_done(task),
            )
    return {task: accuracies[task] for task in tasks}
