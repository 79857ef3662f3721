"""Run any job on a Ray cluster: condense on a gang, evaluate and sweep with Ray Tune.

Ray Tune spreads an evaluation over separate workers. A validation uses the gang instead, which continues condensing afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from cafe_core.evaluation.tasks import EvaluationSetup, EvaluationTask
from cafe_core.jobs.backend import TRAINING, Report, TrialOutcome
from cafe_core.jobs.jobdir import JobDir, JobFile
from cafe_core.spec.resources import ResourcesSpec
from cafe_core.spec.trials import Trial
from workers.cluster import bundle_of, free_capacity
from workers.evaluation import split_tasks
from workers.gang_backend import WATCH_S, GangBackend
from workers.interruption import Interruption
from workers.policy import GiveUp, decide
from workers.work import ACCURACY, TrainNetworks

if TYPE_CHECKING:
    from workers.tune_run import TuneRun  # importing Ray Tune takes almost a second, and a condensation does not need it

NOTICE_S = 5.0
"""How long an evaluation waits for its first worker before it reports the phase `waiting_for_resources`."""


class RayBackend(GangBackend):
    """Implements :class:`cafe_core.jobs.backend.Backend` for all kinds of jobs."""

    def __init__(self, job: JobFile, directory: JobDir, title: str, interruption: Interruption) -> None:
        """title: a unique name for the workers, shown to people."""
        super().__init__(job, title, interruption)
        self._directory = directory
        self._tune: TuneRun | None = None

    def evaluate(
        self, tasks: Sequence[EvaluationTask], setup: EvaluationSetup, resources: ResourcesSpec, report: Report
    ) -> Iterator[tuple[EvaluationTask, float]]:
        """Train one network per task: a validation on the gang, everything else by Ray Tune. Raises CafeError."""
        if setup.held_out is not None:
            yield from super().evaluate(tasks, setup, resources, report)
        elif tasks:
            works = [TrainNetworks(chunk, setup) for chunk in split_tasks(tasks, resources)]
            yield from self._evaluate_by_tune(works, resources, report)

    def _evaluate_by_tune(
        self, works: Sequence[TrainNetworks], resources: ResourcesSpec, report: Report
    ) -> Iterator[tuple[EvaluationTask, float]]:
        """Run one Tune trial per chunk, on as many workers as a gang would have. Stop the gang first to free its resources."""
        self.close()
        from workers import tune_run  # importing Ray Tune takes almost a second

        with self._interruption.shielded():
            run = self._tune = tune_run.TuneRun(
                works,
                bundle=bundle_of(resources),
                concurrency=min(resources.workers, len(works)),
                storage=self._directory.tune,
                title=f"{self._title}/evaluation",
                reuse=True,
                max_failures=-1,  # `decide` bounds the losses of the whole job
            )
        asked_at, waits = time.monotonic(), False
        while not run.over:
            self._interruption.check()
            if not waits and not run.workers and time.monotonic() - asked_at > NOTICE_S:
                waits = not run.starting() and not free_capacity(resources)
                if waits:
                    report("phase", phase="waiting_for_resources")
            for seen in run.watch(WATCH_S, self._job.collective_timeout_s):
                match seen:
                    case tune_run.TrialReport(type=type, data=data) if type == ACCURACY:
                        yield data["task"], data["accuracy"]
                    case tune_run.TrialReport(type=type, data=data) if type == TRAINING:
                        report(TRAINING, **data)
                    case tune_run.TrialFailure(failure=failure):
                        decision = decide([failure], restarts=self._restarts, max_restarts=self._job.max_restarts)
                        if isinstance(decision, GiveUp):
                            raise decision.error
                        self._restarts += 1
                        report("restart", reason=decision.reason, restarts=self._restarts, workers=len(run.workers))
                    case tune_run.WorkersChanged():
                        if waits:
                            report("phase", phase="evaluating")
                            waits = False
                        report("workers", workers=run.describe())
        self.close()

    def run_trials(self, trials: Sequence[Trial], finished: Mapping[int, TrialOutcome], report: Report) -> Iterator[TrialOutcome]:
        """Run each unfinished trial as a trial of Ray Tune. Raises CafeError for an error that ends the sweep."""
        remaining = [trial for trial in trials if trial.number not in finished]
        if not remaining:
            return
        from workers import sweep  # imports Ray Tune

        with self._interruption.shielded():
            run = self._tune = sweep.start(self._job, self._directory, trials, remaining, self._title)
        progress = sweep.Progress(run, self._directory, remaining)
        while not run.over:
            self._interruption.check()
            yield from progress.watch(WATCH_S, self._job.collective_timeout_s, report)
        self.close()

    def close(self) -> None:
        """End all workers and release their resources. Idempotent."""
        with self._interruption.shielded():
            if self._tune is not None:
                self._tune.stop()
                self._tune = None
            super().close()
