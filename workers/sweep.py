"""A sweep's trials as Ray Tune's: each is a whole condense job, with a driver and a gang of its own.

::

    driver ── Tune ─┬─ TuneWorker: the driver of trial 0 ── gang of base.resources.workers ShardWorkers
                    ├─ TuneWorker: the driver of trial 1 ── gang …
                    └─ … at most max_concurrent at a time

A trial's driver coordinates only: of the cluster it takes one byte of memory (Tune wants something), and its gang takes the
rest, when there is room for it. Trials are evaluated on their gangs, so none holds more than `workers` bundles.
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
from workers.shard_worker import Seat
from workers.tune_run import Failed, Reported, Returned, Stopped, TuneRun
from workers.tune_worker import METRICS, Records

DRIVER = {"memory": 1.0}
"""What a trial's driver takes of the cluster, in bytes."""
GANG = "gang"
"""The type of the reports of the processes of a gang that stands."""
REDUCTION_FACTOR = 2
"""ASHA's η: of the trials that come to a rung, those below the better 1/η are stopped. Li et al. take 4; a validation by a few
networks is noisy, and a sweep has dozens of trials rather than hundreds, so that fewer wrong ones should be stopped."""


@dataclass(frozen=True)
class RunTrial:
    """Drive a trial, in the process of its Tune worker; returns its TrialOutcome."""

    trial: Trial
    sweep: JobFile
    directory: JobDir
    """The trial's."""
    fence: AttemptFence
    """The sweep's."""

    def __call__(self, seat: Seat, report: Report) -> TrialOutcome:  # noqa: ARG002
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
                    if data["iteration"] < data["total"]:  # the last one has nothing more to save
                        report(METRICS, iteration=data["iteration"], accuracy=data["mean"])
                case "restart":
                    report("restart", **data)

        report("begun")
        return run_trial(self.trial, self.sweep, self.directory, self.fence, make_backend, on_event)

    @property
    def _prefix(self) -> str:
        """With which the names begin of what its drivers hold; one that died a moment ago held the same under another number."""
        return f"{self.sweep.job_id}/trial {self.trial.number}, driver "

    def after(self, told: Records) -> RunTrial:
        """The same, from the last checkpoint: no worker of the old gang may write any more."""
        self.release(told)
        return self

    def release(self, told: Records) -> None:
        """End its gang. (Ray removes an actor's placement groups with the whole Ray job, not with the actor.)"""
        gangs = [data["processes"] for type, data in told if type == GANG]
        end_everywhere(gangs[-1] if gangs else [])
        remove_groups(self._prefix)


def start(job: JobFile, directory: JobDir, trials: Sequence[Trial], remaining: Sequence[Trial], title: str) -> TuneRun:
    """Run the remaining ones of a sweep's trials."""
    spec = job.spec
    assert isinstance(spec, SweepSpec)
    fence = AttemptFence.of(directory, job.attempt)
    return TuneRun(
        [RunTrial(trial, job, directory.trial(trial.number), fence) for trial in remaining],
        bundle=DRIVER,
        concurrency=min(spec.max_concurrent, len(remaining)),
        storage=directory.tune,
        title=f"{title}/sweep",
        reuse=False,  # each trial starts with a process as it finds one as a job of its own
        max_failures=job.max_restarts,
        scheduler=asha(trials, directory) if spec.scheduler == "asha" else None,
    )


def asha(trials: Sequence[Trial], directory: JobDir) -> Any:
    """Asynchronous successive halving (Li et al., MLSys 2020, Algorithm 2, as Tune has it: stopping) over iterations.

    Rungs are the first validation's iteration times 1, η, η², …. It knows what earlier attempts validated.
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
        stop_last_trials=False,  # whoever comes to the last iteration is evaluated
    )
    for trial in trials:
        past = SimpleNamespace(trial_id=f"earlier {trial.number}")
        scheduler.on_trial_add(None, past)
        for validation in validations(directory.trial(trial.number)):
            if validation["iteration"] < trial.spec.iterations:
                scheduler.on_trial_result(None, past, {"iteration": validation["iteration"], "accuracy": validation["mean"]})
    return scheduler


def validations(directory: JobDir) -> list[dict[str, Any]]:
    """A trial's validations so far."""
    found: list[dict[str, Any]] = json.loads(directory.validation_file.read_bytes()) if directory.validation_file.exists() else []
    return found


class Progress:
    """What becomes of a sweep's trials."""

    def __init__(self, run: TuneRun, directory: JobDir, trials: Sequence[Trial]) -> None:
        """trials: those of the run, in its order."""
        self._run = run
        self._directory = directory
        self._trials = trials
        self._began: dict[int, float] = {}
        self._restarts = [0] * len(trials)

    def watch(self, wait_s: float, silence_s: float, report: Report) -> Iterator[TrialOutcome]:
        """The outcomes of the trials that end now, waiting up to wait_s for anything to happen; reports what else happens."""
        for seen in self._run.watch(wait_s, silence_s):
            match seen:
                case Reported(index, type, data):
                    self._reported(index, type, data, report)
                case Returned(value=outcome):
                    yield outcome
                case Stopped(index):
                    yield self._stopped(index)
                case Failed(index, failure, ended=True):
                    yield self._failed(index, failure)
                case Failed(index, failure):
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
        error: CafeError = WorkerLostError(f"its driver {failure.detail}, after {self._restarts[index]} restarts")
        if failure.kind is Kind.BROKEN:
            error = CafeError(failure.detail)
        return TrialOutcome(trial.number, "failed", None, None, self._seconds(index), error.as_dict())

    def _seconds(self, index: int) -> float:
        return round(time.monotonic() - self._began.get(index, time.monotonic()), 3)
