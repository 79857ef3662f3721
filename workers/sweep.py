"""Run the trials of a sweep as trials of Ray Tune. Each is a whole condense job with its own driver and gang.

::

    driver ── Tune ─┬─ TuneWorker: the driver of trial 0 ── gang of base.resources.workers ShardWorkers
                    ├─ TuneWorker: the driver of trial 1 ── gang …
                    └─ … at most max_concurrent at a time

A trial's driver only coordinates, so it requests one byte of memory (Tune requires some resource). Its gang requests the rest
when it fits the cluster. Trials are evaluated on their gangs, so none holds more than `workers` bundles.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler

from cafe_core.errors import CafeError, WorkerLostError
from cafe_core.jobs.backend import Report, TrialOutcome
from cafe_core.jobs.fence import AttemptFence
from cafe_core.jobs.jobdir import JobDir, JobFile
from cafe_core.jobs.trial_job import run_trial
from cafe_core.spec.sweep import SweepSpec
from cafe_core.spec.trials import Trial
from workers.cluster import remove_groups
from workers.gang_backend import GangBackend
from workers.interruption import Interruption
from workers.policy import Failure, Kind
from workers.processes import end_everywhere, process_of
from workers.shard_worker import WorkerAssignment
from workers.tune_run import TrialFailure, TrialReport, TrialResult, TrialStopped, TuneRun
from workers.tune_worker import METRICS, Records

DRIVER = {"memory": 1.0}
"""Ray resources of a trial's driver, in bytes."""
GANG = "gang"
"""Type of the records that list the processes of a started gang."""
REDUCTION_FACTOR = 2
"""ASHA's η: at each rung, only the best 1/η of the trials continue. Li et al. use 4. Here validations by a few networks are
noisy, and a sweep has dozens of trials rather than hundreds, so a smaller η stops fewer good trials by mistake."""


@dataclass(frozen=True)
class RunTrial:
    """Run a trial's driver in the process of its Tune worker, and return its TrialOutcome."""

    trial: Trial
    sweep: JobFile
    directory: JobDir
    """The trial's directory."""
    fence: AttemptFence
    """The sweep's fence."""

    def __call__(self, assignment: WorkerAssignment, report: Report) -> TrialOutcome:  # noqa: ARG002
        title = f"{self._prefix}{os.getpid()}"

        def make_backend(job: JobFile, _directory: JobDir) -> GangBackend:
            return GangBackend(job, title, Interruption())

        def on_event(type: str, **data: Any) -> None:
            match type:
                case "workers":
                    found = [process_of(worker["pid"], worker["node_id"]) for worker in data["workers"]]
                    report(GANG, processes=[process for process in found if process is not None])
                case "validated":
                    report("validated", iteration=data["iteration"], total=data["total"], mean=data["mean"])
                    if data["iteration"] < data["total"]:  # after the last one, stopping early saves nothing
                        report(METRICS, iteration=data["iteration"], accuracy=data["mean"])
                case "restart":
                    report("restart", **data)

        report("begun")
        return run_trial(self.trial, self.sweep, self.directory, self.fence, make_backend, on_event)

    @property
    def _prefix(self) -> str:
        """Return the name prefix of everything that this trial's drivers create, including drivers that died before."""
        return f"{self.sweep.job_id}/trial {self.trial.number}, driver "

    def after(self, reported: Records) -> RunTrial:
        """End the old gang, so that none of its workers can write; the same work continues from the last checkpoint."""
        self.release(reported)
        return self

    def release(self, reported: Records) -> None:
        """End the trial's gang. (Ray removes an actor's placement groups with the whole Ray job, not with the actor.)"""
        gangs = [data["processes"] for type, data in reported if type == GANG]
        end_everywhere(gangs[-1] if gangs else [])
        remove_groups(self._prefix)


def start(job: JobFile, directory: JobDir, trials: Sequence[Trial], remaining: Sequence[Trial], title: str) -> TuneRun:
    """Start the `remaining` trials of a sweep."""
    spec = job.spec
    assert isinstance(spec, SweepSpec)
    fence = AttemptFence.of(directory, job.attempt)
    return TuneRun(
        [RunTrial(trial, job, directory.trial(trial.number), fence) for trial in remaining],
        bundle=DRIVER,
        concurrency=min(spec.max_concurrent, len(remaining)),
        storage=directory.tune,
        title=f"{title}/sweep",
        reuse=False,  # each trial starts in a fresh process, like a job
        max_failures=job.max_restarts,
        scheduler=asha(trials, directory) if spec.scheduler == "asha" else None,
    )


def asha(trials: Sequence[Trial], directory: JobDir) -> Any:
    """Return Tune's asynchronous successive halving (Li et al., MLSys 2020, Algorithm 2, stopping variant) over iterations.

    Rungs are the first validation's iteration times 1, η, η², …. Validations of previous attempts are taken into account.
    """
    every = [trial.spec.validation.every for trial in trials if trial.spec.validation is not None]
    most = max(trial.spec.iterations for trial in trials)
    scheduler: Any = ASHAScheduler(
        time_attr="iteration",
        metric="accuracy",
        mode="max",
        grace_period=min([*every, most]),
        max_t=most,
        reduction_factor=REDUCTION_FACTOR,
        stop_last_trials=False,  # a trial that reaches its last iteration is evaluated
    )
    for trial in trials:
        past = SimpleNamespace(trial_id=f"earlier {trial.number}")
        scheduler.on_trial_add(None, past)
        for validation in validations(directory.trial(trial.number)):
            if validation["iteration"] < trial.spec.iterations:
                scheduler.on_trial_result(None, past, {"iteration": validation["iteration"], "accuracy": validation["mean"]})
    return scheduler


def validations(directory: JobDir) -> list[dict[str, Any]]:
    """Return a trial's validations so far."""
    found: list[dict[str, Any]] = json.loads(directory.validation_file.read_bytes()) if directory.validation_file.exists() else []
    return found


class Progress:
    """Turn observations of a TuneRun into the outcomes and events of a sweep."""

    def __init__(self, run: TuneRun, directory: JobDir, trials: Sequence[Trial]) -> None:
        """trials: the trials of the run, in its order."""
        self._run = run
        self._directory = directory
        self._trials = trials
        self._began: dict[int, float] = {}
        self._restarts = [0] * len(trials)

    def watch(self, wait_s: float, silence_s: float, report: Report) -> Iterator[TrialOutcome]:
        """Yield the outcomes of trials that ended, and report other events; wait up to wait_s for something to happen."""
        for seen in self._run.watch(wait_s, silence_s):
            match seen:
                case TrialReport(index, type, data):
                    self._reported(index, type, data, report)
                case TrialResult(value=outcome):
                    yield outcome
                case TrialStopped(index):
                    yield self._stopped(index)
                case TrialFailure(index, failure, ended=True):
                    yield self._failed(index, failure)
                case TrialFailure(index, failure):
                    self._restarts[index] += 1
                    reason = f"trial {self._trials[index].number}: its driver {failure.detail}"
                    report("restart", reason=reason, restarts=self._restarts[index], workers=len(self._run.workers))

    def _reported(self, index: int, type: str, data: dict[str, Any], report: Report) -> None:
        trial = self._trials[index]
        match type:
            case "begun" if index not in self._began:
                self._began[index] = time.monotonic()
                report("trial_started", number=trial.number, overrides=trial.overrides)
            case "validated":
                report("trial_validated", number=trial.number, **data)
            case "restart":
                report("restart", **data | {"reason": f"trial {trial.number}: {data['reason']}"})

    def _stopped(self, index: int) -> TrialOutcome:
        trial = self._trials[index]
        found = validations(self._directory.trial(trial.number))
        best = max((float(validation["mean"]) for validation in found), default=None)
        return TrialOutcome(trial.number, "stopped", best, found[-1]["iteration"] if found else None, self._seconds(index))

    def _failed(self, index: int, failure: Failure) -> TrialOutcome:
        trial = self._trials[index]
        error: CafeError = WorkerLostError(f"the trial's driver {failure.detail}, after {self._restarts[index]} restarts")
        if failure.kind is Kind.BROKEN:
            error = CafeError(failure.detail)
        return TrialOutcome(trial.number, "failed", None, None, self._seconds(index), error.as_dict())

    def _seconds(self, index: int) -> float:
        return round(time.monotonic() - self._began.get(index, time.monotonic()), 3)
