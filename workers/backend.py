"""A job's long phases on a gang of Ray actors: starts the gang, watches it, and starts it again when workers are lost.

The controller to `policy`, which decides. A condensation goes on from its last checkpoint; an evaluation trains the
networks again that a lost worker had.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from cafe_core.config import DatasetInfo
from cafe_core.job import EvaluationTask, Report
from cafe_core.jobdir import JobDir, JobFile
from workers.cluster import capacity, room
from workers.gang import Gang, GangFailedError, Reported, Reservation, Returned
from workers.interruption import Interruption
from workers.policy import Failure, GiveUp, decide, decisive, gang_size
from workers.shard_worker import Work
from workers.work import IMPORTS, CondenseShard, TrainNetwork

log = logging.getLogger(__name__)

WATCH_S = 0.5
"""How long one look at the gang lasts when nothing happens."""
CAUSE_WAIT_S = 4.0
"""How long the cause of a broken collective is waited for, when only its consequences are known."""
SUSPECT_SILENCE_S = 2.0
"""With a collective broken, a worker whose answer is overdue for this long is taken for the cause."""
SHRINK_AFTER_S = 10.0
"""How long a restart waits for all its workers before it makes do with fewer: a moment for a node to come back."""


class RayBackend:
    """Implements :class:`cafe_core.job.Backend` with `spec.resources.workers` actors, which both phases share."""

    def __init__(
        self, job: JobFile, directory: JobDir, attempt: int, info: DatasetInfo, store: Path, interruption: Interruption
    ) -> None:
        self._job = job
        self._resources = job.spec.resources
        self._directory = directory
        self._title = f"{job.job_id}/attempt {attempt}"
        self._info = info
        self._store = store
        self._interruption = interruption
        self._reservation: Reservation | None = None
        self._gang: Gang | None = None
        self._restarts = 0
        self._restart_reason: str | None = None
        self._capacity_at_start = 0

    def condense(self, report: Report) -> None:
        """Run the condensation, on every worker its class shard. Raises CafeError."""
        self.run(CondenseShard(self._job.spec, self._store, self._directory.checkpoints, self._job.collective_timeout_s), report)

    def run(self, work: Work, report: Report) -> None:
        """Do `work` on every worker at once; when one is lost, again with a new gang, as often as the job allows."""
        while failures := self._run_once(work, report):
            self._recover(failures)

    def _run_once(self, work: Work, report: Report) -> list[Failure]:
        """What failed of it; nothing when all returned."""
        gang = self._standing_gang(report, then="condensing")
        for worker in gang.workers:
            gang.begin(worker, work)
        working = {worker.rank for worker in gang.workers}
        failures: list[Failure] = []
        first_failure = 0.0
        last_look = False
        while working and not last_look:
            self._interruption.check()
            # A last look even when a cause is known: NCCL ends the process of a rank that waits in vain, and the one
            # that it waited for is to be named too.
            last_look = decisive(failures) or (bool(failures) and time.monotonic() - first_failure > CAUSE_WAIT_S)
            silence_s = SUSPECT_SILENCE_S if failures else self._job.collective_timeout_s
            for seen in gang.watch(0 if last_look else WATCH_S, silence_s):
                if isinstance(seen, Reported):
                    report(seen.type, **seen.data)
                    continue
                working.discard(seen.rank)
                if isinstance(seen, Failure):
                    first_failure = first_failure or time.monotonic()
                    failures.append(seen)
        return failures

    def evaluate(
        self, tasks: Sequence[EvaluationTask], synthetic: Path, report: Report
    ) -> Iterator[tuple[EvaluationTask, float]]:
        """Train a network per task; each free worker takes the next. Raises CafeError."""
        waiting = deque(tasks)
        busy: dict[int, EvaluationTask] = {}
        while waiting or busy:
            gang = self._standing_gang(report, then="evaluating")
            for worker in gang.workers:
                if waiting and worker.rank not in busy:
                    busy[worker.rank] = waiting.popleft()
                    gang.begin(worker, TrainNetwork(busy[worker.rank], self._job.spec, self._store, synthetic))
            self._interruption.check()
            failures = []
            for seen in gang.watch(WATCH_S, self._job.collective_timeout_s):
                match seen:
                    case Returned(rank, accuracy):
                        yield busy.pop(rank), accuracy
                    case Failure(rank):
                        waiting.appendleft(busy.pop(rank))
                        failures.append(seen)
            if failures:
                self._lose(gang, failures, report)

    def close(self) -> None:
        """End the gang and give its resources back. Again is harmless."""
        with self._interruption.shielded():
            if self._gang is not None:
                self._gang.stop()
                self._gang = None
            if self._reservation is not None:
                self._reservation.release()
                self._reservation = None

    def _lose(self, gang: Gang, failures: Sequence[Failure], report: Report) -> None:
        """Go on evaluating without the workers that failed; without any left, with a new gang."""
        if len(failures) == len(gang.workers):
            self._recover(failures)
            return
        decision = decide(failures, restarts=self._restarts, max_restarts=self._job.max_restarts)
        if isinstance(decision, GiveUp):
            raise decision.error
        with self._interruption.shielded():
            gang.dismiss({failure.rank for failure in failures})
        self._restarts += 1
        report("restart", reason=decision.reason, restarts=self._restarts, workers=len(gang.workers))

    def _recover(self, failures: Sequence[Failure]) -> None:
        """End a failed gang, so that a new one can start; raises the error that the job ends with when none may."""
        decision = decide(failures, restarts=self._restarts, max_restarts=self._job.max_restarts)
        self.close()
        if isinstance(decision, GiveUp):
            raise decision.error
        log.warning("the gang is started again: %s", decision.reason)
        self._restarts += 1
        self._restart_reason = decision.reason

    def _standing_gang(self, report: Report, then: str) -> Gang:
        """The gang that stands, or a new one, after as many tries as the job allows; `then` names the phase that follows."""
        if self._gang is not None:
            return self._gang
        while True:
            try:
                gang = self._start_gang(report)
            except GangFailedError as error:
                self._recover(error.failures)
            else:
                report("phase", phase=then)
                return gang

    def _start_gang(self, report: Report) -> Gang:
        reservation = self._reserve(report)
        if self._restart_reason is not None:
            report("restart", reason=self._restart_reason, restarts=self._restarts, workers=reservation.workers)
            self._restart_reason = None
        report("phase", phase="starting_workers")
        suffix = f", restart {self._restarts}" if self._restarts else ""
        self._gang = Gang(reservation, self._title + suffix, IMPORTS)
        self._gang.start(self._interruption)
        report("workers", workers=self._gang.describe(self._info.num_classes))
        return self._gang

    def _reserve(self, report: Report) -> Reservation:
        """Wait for the cluster to have room: the first time as long as it takes, afterwards maybe for fewer workers."""
        report("phase", phase="waiting_for_resources")
        reservation = self._request(self._resources.workers)
        asked_at = time.monotonic()
        while not reservation.ready(WATCH_S):
            self._interruption.check()
            if self._restarts and time.monotonic() - asked_at > SHRINK_AFTER_S:
                size = gang_size(
                    reservation.workers,
                    fits_now=room(self._resources),
                    capacity_now=capacity(self._resources),
                    capacity_at_start=self._capacity_at_start,
                )
                if size < reservation.workers:
                    reservation = self._request(size)
                    asked_at = time.monotonic()
        self._capacity_at_start = self._capacity_at_start or capacity(self._resources)
        return reservation

    def _request(self, workers: int) -> Reservation:
        """Ask for bundles, instead of those asked for before."""
        with self._interruption.shielded():
            if self._reservation is not None:
                self._reservation.release()
            self._reservation = Reservation(self._resources, workers, self._title)
        return self._reservation
