"""Specs of evaluate and sweep jobs, and files that their drivers write."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np

from cafe_core.evaluation.tasks import EvaluationTask
from cafe_core.jobs.backend import TrialOutcome
from cafe_core.jobs.jobdir import JobDir
from cafe_core.synthetic_set.synthetic_set import SyntheticSet
from server.settings import Settings
from tests.server.conftest import SPEC, Api, FakeRay

RANDOM = {"dataset": {"name": "digits"}, "selection": "random", "ipc": 1}
HERDING = RANDOM | {"selection": "herding"}
EVALUATE: dict[str, Any] = {"kind": "evaluate", "synthetic": RANDOM, "networks": [{"width": 8, "depth": 2}, {"name": "mlp"}]}
SWEEP: dict[str, Any] = {
    "kind": "sweep",
    "base": SPEC | {"evaluation": {"repeats": 2}},
    "space": {"method.beta": {"grid": [0.5, 1.0]}, "seed": {"grid": [0, 1]}},
}


def digits_set(level: float = 0.5, shape: tuple[int, int, int] = (1, 8, 8), **fields: Any) -> SyntheticSet:
    """Return a set of digits with one constant image per class."""
    parts: dict[str, Any] = {
        "images": np.full((10, *shape), level, np.float32),
        "labels": np.arange(10, dtype=np.int64),
        "mean": np.zeros(shape[0], np.float32),
        "std": np.ones(shape[0], np.float32),
        "class_names": [str(digit) for digit in range(10)],
        "dataset": {"name": "digits", "is_digits": True},
        "spec": {"dataset": {"name": "digits"}},
        "iteration": 3,
        "versions": {},
    }
    return SyntheticSet(**parts | fields)


def extendable_set() -> SyntheticSet:
    """Return a set of digits that an extend job can name."""
    made_by = {"dataset": {"name": "digits"}, "ipc": 1, "iterations": 3, "method": {"name": "dance", "factor": 1}}
    return digits_set(spec=made_by, class_sha256=["0"] * 10)


def running_job(api: Api, ray: FakeRay, spec: dict[str, Any]) -> str:
    """Submit a job and wait until Ray runs it."""
    job_id: str = api.submit(spec)["id"]
    api.await_job(job_id, lambda _: (job_id, 1) in ray.submissions)
    return job_id


def end_trial(directory: JobDir, outcome: TrialOutcome, level: float = 0.5) -> None:
    """Write what a sweep's driver writes when a trial ends: the files, then the trial's line."""
    if outcome.status == "succeeded":
        digits_set(level).save(directory.trial(outcome.number).attempt(1).synthetic_file)
    with directory.trials_file.open("a") as log:
        log.write(json.dumps(asdict(outcome)) + "\n")


def trained(directory: JobDir, judged: str, task: EvaluationTask, accuracy: float) -> None:
    """Write what the driver of an evaluation writes after training a network; judged: the set under evaluation."""
    with directory.evaluation_file.open("a") as log:
        log.write(json.dumps({"set": judged, "task": asdict(task), "accuracy": accuracy}) + "\n")


def jobs_directory(settings: Settings) -> list[str]:
    """Return the names of the job directories on disk."""
    directory = settings.data_dir / "jobs"
    return [path.name for path in directory.iterdir()] if directory.exists() else []
