"""Condense and evaluate on a gang of workers, and recover when some of them are lost.

:mod:`workers.policy` decides what to do about a loss; this carries it out. A condensation continues from its last checkpoint with
a new gang. An evaluation continues with the remaining workers.

A trial of a sweep uses only this backend, so that it never holds more than its gang. :mod:`workers.backend` adds Ray Tune.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence

from cafe_core.data.class_store import ClassStore
from cafe_core.errors import GpuOutOfMemoryError
from cafe_core.evaluation.tasks import EvaluationSetup, EvaluationTask
from cafe_core.jobs.backend import SMALLER_CHUNKS, SMALLEST_MEMORY_SHARE, TRAINING, Condensation, Report, TrialOutcome
from cafe_core.jobs.jobdir import JobFile
from cafe_core.spec.resources import ResourcesSpec
from cafe_core.spec.trials import Trial
from workers.cluster import capacity, free_capacity
from workers.evaluation import split_tasks
from workers.gang import Gang, GangFailedError, Reservation, WorkerReport, WorkerResult
from workers.interruption import Interruption
from workers.policy import Failure, GiveUp, cause_known, decide, gang_size
from workers.shard_worker import Work
from workers.work import ACCURACY, IMPORTS, CondenseShard, TrainNetworks

log = logging.getLogger(__name__)

WATCH_S = 0.5
"""How long one call of `watch` waits when nothing happens."""
CAUSE_WAIT_S = 4.0
"""How long to wait for the cause of a broken collective when only its consequences are known."""
SUSPECT_SILENCE_S = 2.0
"""Once a collective has broken, a worker whose answer is overdue for this long is considered the cause."""
SHRINK_AFTER_S = 10.0
"""How long a restart waits for all its workers before it accepts fewer, so that a node can return meanwhile."""


class GangBackend:
    """Run the long phases of a condense or evaluate job on one gang. Implements :class:`cafe_core.jobs.backend.Backend`."""

    def __init__(self, job: JobFile, title: str, interruption: Interruption) -> None:
        """title: a unique name for the workers, shown to people."""
        self._job = job
        self._title = title
        self._interruption = interruption
        self._reservation: Reservation | None = None
        self._gang: Gang | None = None
        self._gangs = 0
        self._restarts = 0
        self._restart_reason: str | None = None
        self._memory_share = 1.0
        """Share of the usual memory budget of a condensation."""
        self._capacity_at_start = 0

    def condense(self, condensation: Condensation, until: int, report: Report) -> None:
        """Run the condensation on a gang, one class shard per worker. Raises CafeError.

        If a GPU runs out of memory, continue from the last checkpoint with half the memory budget.
        """
        resources, classes = condensation.spec.resources, condensation.learned
        workers = min(resources.workers, len(classes))  # each needs a class; an extension may learn only a few
        resources = resources.model_copy(update={"workers": workers})
        while True:
            work = CondenseShard(condensation, until, self._job.collective_timeout_s, self._memory_share)
            try:
                self.run(work, resources, classes, report)
            except GpuOutOfMemoryError as error:
                if self._restarts >= self._job.max_restarts or self._memory_share <= SMALLEST_MEMORY_SHARE:
                    raise
                log.warning("%s", error.message)
                self._memory_share /= 2
                self._note_restart(SMALLER_CHUNKS)
            else:
                return

    def run(self, work: Work, resources: ResourcesSpec, classes: Sequence[int], report: Report) -> None:
        """Run `work` on all workers concurrently. If one is lost, repeat it with a new gang, as often as the job allows."""
        while failures := self._run_once(work, resources, classes, report):
            self._prepare_restart(failures)

    def _run_once(self, work: Work, resources: ResourcesSpec, classes: Sequence[int], report: Report) -> list[Failure]:
        """Run `work` once; return the failures, none if all workers returned."""
        if self._gang is not None and len(self._gang.workers) < self._gang.world:
            self.close()  # a validation lost some workers and continued without them
        gang = self._gang or self._new_gang(resources, classes, report)
        report("phase", phase="condensing")
        for worker in gang.workers:
            gang.begin(worker, work)
        working = {worker.rank for worker in gang.workers}
        failures: list[Failure] = []
        first_failure = 0.0
        last_look = False
        while working and not last_look:
            self._interruption.check()
            # Watch once more even if the cause is known: NCCL ends the process of a rank whose wait times out, and the rank
            # that it waited for should be named too.
            last_look = cause_known(failures) or (bool(failures) and time.monotonic() - first_failure > CAUSE_WAIT_S)
            silence_s = SUSPECT_SILENCE_S if failures else self._job.collective_timeout_s
            for seen in gang.watch(0 if last_look else WATCH_S, silence_s):
                if isinstance(seen, WorkerReport):
                    report(seen.type, **seen.data)
                    continue
                working.discard(seen.rank)
                if isinstance(seen, Failure):
                    first_failure = first_failure or time.monotonic()
                    failures.append(seen)
        return failures

    def evaluate(
        self, tasks: Sequence[EvaluationTask], setup: EvaluationSetup, resources: ResourcesSpec, report: Report
    ) -> Iterator[tuple[EvaluationTask, float]]:
        """Train one network per task: each free worker takes the next chunk. Raises CafeError."""
        classes = range(ClassStore.open(setup.store).info.num_classes)
        waiting = deque(TrainNetworks(chunk, setup) for chunk in split_tasks(tasks, resources))
        busy: dict[int, TrainNetworks] = {}
        while waiting or busy:
            gang = self._gang
            if gang is None:
                gang = self._new_gang(resources, classes, report)
                report("phase", phase="validating" if setup.held_out is not None else "evaluating")
            for worker in gang.workers:
                if waiting and worker.rank not in busy:
                    busy[worker.rank] = waiting.popleft()
                    gang.begin(worker, busy[worker.rank])
            self._interruption.check()
            failures = []
            for seen in gang.watch(WATCH_S, self._job.collective_timeout_s):
                match seen:
                    case WorkerReport(rank, type, data) if type == ACCURACY:
                        busy[rank] = busy[rank].after([(type, data)])
                        yield data["task"], data["accuracy"]
                    case WorkerReport(rank, type, data) if type == TRAINING:
                        report(TRAINING, **data)
                    case WorkerResult(rank):
                        del busy[rank]
                    case Failure(rank):
                        waiting.appendleft(busy.pop(rank))
                        failures.append(seen)
            if failures:
                self._continue_without(gang, failures, report)

    def run_trials(self, trials: Sequence[Trial], finished: Mapping[int, TrialOutcome], report: Report) -> Iterator[TrialOutcome]:
        """Raise NotImplementedError: a trial is never a sweep itself."""
        raise NotImplementedError

    def close(self) -> None:
        """End all workers and release their resources. Idempotent."""
        with self._interruption.shielded():
            if self._gang is not None:
                self._gang.stop()
                self._gang = None
            if self._reservation is not None:
                self._reservation.release()
                self._reservation = None

    def _continue_without(self, gang: Gang, failures: Sequence[Failure], report: Report) -> None:
        """Continue an evaluation without the failed workers, or with a new gang if all failed."""
        if len(failures) == len(gang.workers):
            self._prepare_restart(failures)
            return
        decision = decide(failures, restarts=self._restarts, max_restarts=self._job.max_restarts)
        if isinstance(decision, GiveUp):
            raise decision.error
        with self._interruption.shielded():
            gang.dismiss({failure.rank for failure in failures})
        self._restarts += 1
        report("restart", reason=decision.reason, restarts=self._restarts, workers=len(gang.workers))

    def _prepare_restart(self, failures: Sequence[Failure]) -> None:
        """End a failed gang, so that a new one can start. Raises the job's error if no restart is left."""
        decision = decide(failures, restarts=self._restarts, max_restarts=self._job.max_restarts)
        self.close()
        if isinstance(decision, GiveUp):
            raise decision.error
        self._note_restart(decision.reason)

    def _note_restart(self, reason: str) -> None:
        """Count a restart, which is reported when the new gang starts."""
        log.warning("restarting the gang: %s", reason)
        self._restarts += 1
        self._restart_reason = reason

    def _new_gang(self, resources: ResourcesSpec, classes: Sequence[int], report: Report) -> Gang:
        """Start a gang, with as many tries as the job allows."""
        while True:
            try:
                return self._start_gang(resources, classes, report)
            except GangFailedError as error:
                self._prepare_restart(error.failures)

    def _start_gang(self, resources: ResourcesSpec, classes: Sequence[int], report: Report) -> Gang:
        reservation = self._reserve(resources, report)
        if self._restart_reason is not None:
            report("restart", reason=self._restart_reason, restarts=self._restarts, workers=reservation.workers)
            self._restart_reason = None
        report("phase", phase="starting_workers")
        self._gangs += 1
        suffix = f", gang {self._gangs}" if self._gangs > 1 else ""
        self._gang = Gang(reservation, self._title + suffix, IMPORTS)
        self._gang.start(self._interruption)
        report("workers", workers=self._gang.describe(classes))
        return self._gang

    def _reserve(self, resources: ResourcesSpec, report: Report) -> Reservation:
        """Wait until the workers fit the cluster. On a restart, accept fewer workers if the cluster has become smaller."""
        report("phase", phase="waiting_for_resources")
        reservation = self._request(resources, resources.workers)
        asked_at = time.monotonic()
        while not reservation.ready(WATCH_S):
            self._interruption.check()
            if self._restarts and time.monotonic() - asked_at > SHRINK_AFTER_S:
                size = gang_size(
                    reservation.workers,
                    fits_now=free_capacity(resources),
                    capacity_now=capacity(resources),
                    capacity_at_start=self._capacity_at_start,
                )
                if size < reservation.workers:
                    reservation = self._request(resources, size)
                    asked_at = time.monotonic()
        self._capacity_at_start = self._capacity_at_start or capacity(resources)
        return reservation

    def _request(self, resources: ResourcesSpec, workers: int) -> Reservation:
        """Request bundles, and release those requested before."""
        with self._interruption.shielded():
            if self._reservation is not None:
                self._reservation.release()
            self._reservation = Reservation(resources, workers, self._title)
        return self._reservation
