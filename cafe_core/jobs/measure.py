"""Train the networks of an evaluation that no previous attempt has trained. This module does not import torch."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict

from cafe_core.evaluation.tasks import EvaluationSetup, EvaluationTask
from cafe_core.files import LineLog, read_lines
from cafe_core.jobs.backend import Attempt
from cafe_core.spec.resources import ResourcesSpec


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
        started, first = time.monotonic(), len(accuracies)
        for task, accuracy in attempt.backend.evaluate(remaining, setup, resources, attempt.report):
            seconds = time.monotonic() - started
            accuracies[task] = accuracy
            log.append({"set": judged, "task": asdict(task), "accuracy": accuracy})
            done = len(accuracies)
            attempt.report(
                "evaluated",
                source=task.source,
                network=spec.networks[task.network].name,
                augment=task.augment,
                repeat=task.repeat,
                accuracy=accuracy,
                done=done,
                total=len(tasks),
                eta_s=round(seconds / (done - first) * (len(tasks) - done), 1),
            )
    return {task: accuracies[task] for task in tasks}
