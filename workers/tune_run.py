"""Run work as trials of Ray Tune. Tune places, starts, reuses and retries workers; this module watches and ends them.

The experiment runs in a thread (:mod:`workers.tune_experiment`). The main thread, which signals interrupt, reads its messages.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.tune.schedulers import TrialScheduler

from cafe_core.errors import CafeError
from cafe_core.jobs.watch_clock import WatchClock
from workers.background import Done, Raised
from workers.cluster import nodes, starting_actors
from workers.policy import Failure, Kind
from workers.processes import Process, end_everywhere, process_of
from workers.tune_experiment import Experiment, Message
from workers.tune_worker import METRICS, POLL_WAIT_S, Records, TrialUpdate, TrialWork, TuneWorker

log = logging.getLogger(__name__)

START_TIMEOUT_S = 300.0
"""Time limit for the start of a worker's process, which takes minutes on a cold network file system."""
STARTING_LOOK_S = 5.0
"""How often the starting processes are checked."""


@dataclass(frozen=True)
class TrialReport:
    """A trial's work reported something."""

    trial: int
    type: str
    data: dict[str, Any]


@dataclass(frozen=True)
class TrialResult:
    """A trial's work returned."""

    trial: int
    value: Any


@dataclass(frozen=True)
class TrialFailure:
    """A trial's work raised an exception, or its worker was lost. `failure.rank`: the worker. Tune retries it unless `ended`."""

    trial: int
    failure: Failure
    ended: bool


@dataclass(frozen=True)
class TrialStopped:
    """The scheduler stopped a trial."""

    trial: int


@dataclass(frozen=True)
class WorkersChanged:
    """A worker has become ready."""


Observation = TrialReport | TrialResult | TrialFailure | TrialStopped | WorkersChanged


@dataclass
class Worker:
    """The driver's side of one actor."""

    rank: int
    """Workers are numbered in the order in which they start."""
    actor: Any
    trial: int | None
    """None between two trials."""
    answered_at: float
    """Time of its last answer, by the run's clock."""
    process: Process | None = None
    """Known after its first answer."""
    device: str = ""
    """A description for people."""
    reported: Records = field(default_factory=list)
    """What its trial has reported."""
    hung: str | None = None
    """The reason, if it was ended because it did not answer."""

    def assign(self, trial: int | None, now: float) -> None:
        """Note that a trial has started on this worker, or with None that it has ended."""
        self.trial, self.reported, self.answered_at = trial, [], now


class TuneRun:
    """A running experiment. Always call :meth:`stop`."""

    def __init__(
        self,
        works: Sequence[TrialWork],
        *,
        bundle: dict[str, float],
        concurrency: int,
        storage: Path,
        title: str,
        reuse: bool,
        max_failures: int,
        scheduler: TrialScheduler | None = None,
    ) -> None:
        """Start the experiment. Trial i runs works[i].

        bundle: Ray resources of each trial. storage: a directory for Tune, removed at the end. reuse: run several trials in the
        same worker, one after the other. max_failures: how often a trial is retried; −1 means without limit.
        """
        self.workers: list[Worker] = []
        """The workers that are alive, as far as is known."""
        self.over = False
        """Whether every trial has ended."""
        self._works = works
        self._waiting = set(range(len(works)))
        self._reuse = reuse
        self._clock = WatchClock()
        self._worker_count = 0
        self._starting: dict[str, float] = {}
        self._checked_at = time.monotonic()
        self._experiment = Experiment(
            works,
            bundle=bundle,
            concurrency=concurrency,
            storage=storage,
            title=title,
            reuse=reuse,
            max_failures=max_failures,
            scheduler=scheduler,
        )

    def describe(self) -> list[dict[str, Any]]:
        """Return the workers in the format of the `workers` event."""
        hosts = {node.id: node.ip for node in nodes()}
        return [
            {
                "rank": worker.rank,
                "pid": worker.process.pid,
                "node_id": worker.process.node_id,
                "node_ip": hosts.get(worker.process.node_id, ""),
                "device": worker.device,
                "classes": [],
            }
            for worker in self.workers
            if worker.process is not None
        ]

    def watch(self, wait_s: float, silence_s: float) -> list[Observation]:
        """Return what happened in the trials; wait up to wait_s for something to happen.

        silence_s: a worker whose answer is overdue for longer is ended, so that Tune retries its trial. Time between calls, when
        nobody watched, does not count.
        """
        seen: list[Observation] = []
        with suppress(queue.Empty):
            seen += self._handle_message(self._experiment.messages.get(timeout=wait_s))
            while True:
                seen += self._handle_message(self._experiment.messages.get_nowait())
        self._end_hung_workers(silence_s)
        self._end_stuck_starts()
        self.over = not self._waiting
        return seen

    def _handle_message(self, message: Message | BaseException) -> list[Observation]:
        if isinstance(message, BaseException):
            raise message
        if message.actor is not None:
            self._handle_start(message.trial, message.actor)
        if message.update is not None:
            return self._handle_update(message.trial, message.update)
        if message.lost is not None:
            return [self._handle_loss(message.trial, message.lost, message.ended)]
        if message.ended and message.trial in self._waiting:  # without an outcome: the scheduler stopped it
            self._kill([worker for worker in self.workers if worker.trial == message.trial])
            self._end(message.trial)
            return [TrialStopped(message.trial)]
        return []

    def _handle_start(self, trial: int, actor: Any) -> None:
        for worker in self.workers:
            if worker.actor == actor:
                worker.assign(trial, self._clock.look())
                return
        self.workers.append(Worker(self._worker_count, actor, trial, self._clock.look()))
        self._worker_count += 1

    def _handle_update(self, trial: int, update: TrialUpdate) -> list[Observation]:
        [worker] = [worker for worker in self.workers if worker.trial == trial]
        worker.answered_at = self._clock.look()
        seen: list[Observation] = []
        if worker.process is None:
            worker.process, worker.device = update.process, update.device
            seen.append(WorkersChanged())
        worker.reported += update.answer.records
        seen += [TrialReport(trial, type, data) for type, data in update.answer.records if type != METRICS]
        match update.answer.outcome:
            case None:
                return seen
            case Done(value):
                seen.append(TrialResult(trial, value))
            case Raised(summary, _, CafeError() as refusal):
                seen.append(TrialFailure(trial, Failure(worker.rank, Kind.REFUSED, summary, refusal), ended=True))
            case Raised(summary, _, None):
                seen.append(TrialFailure(trial, Failure(worker.rank, Kind.BROKEN, summary), ended=True))
        self._end(trial)
        return seen

    def _handle_loss(self, trial: int, lost: RayActorError, ended: bool) -> TrialFailure:
        worker = self._lost_worker(trial, lost)
        rank = self._worker_count if worker is None else worker.rank
        log.warning("worker %d: %s", rank, lost)
        if worker is not None:
            self.workers.remove(worker)
        if ended:  # otherwise Tune retries it, and has released what it held
            self._waiting.discard(trial)
            self._works[trial].release(worker.reported if worker is not None else [])
        if worker is not None and worker.hung is not None:
            return TrialFailure(trial, Failure(rank, Kind.HUNG, worker.hung), ended)
        if lost.actor_init_failed:
            reason = f"could not start: {str(lost).strip().splitlines()[-1]}"
            return TrialFailure(trial, Failure(rank, Kind.BROKEN, reason), ended)
        return TrialFailure(trial, Failure(rank, Kind.DIED, "died"), ended)

    def _lost_worker(self, trial: int, lost: RayActorError) -> Worker | None:
        """Return the worker that was lost; None if it never started or its loss was already handled.

        It may not have the trial yet: a worker that is lost while it takes over a trial is idle, and others may be idle, too.
        """
        if lost.actor_id is not None:
            return next((worker for worker in self.workers if worker.actor._actor_id.hex() == lost.actor_id), None)
        return next((worker for worker in self.workers if worker.trial == trial), None)

    def _end(self, trial: int) -> None:
        self._waiting.discard(trial)
        for worker in [worker for worker in self.workers if worker.trial == trial]:
            worker.assign(None, self._clock.look())
            if not self._reuse:
                self.workers.remove(worker)

    def _kill(self, workers: Sequence[Worker]) -> None:
        """End workers reliably, and release the resources that their trials hold."""
        for worker in workers:
            ray.kill(worker.actor)
        end_everywhere([worker.process for worker in workers if worker.process is not None])
        for worker in workers:
            if worker.trial is not None:
                self._works[worker.trial].release(worker.reported)

    def _end_hung_workers(self, silence_s: float) -> None:
        """End workers that do not answer, even between two trials: a worker may freeze there too."""
        now = self._clock.look()
        for worker in self.workers:
            silent_s = now - worker.answered_at
            if worker.hung is None and silent_s > silence_s + POLL_WAIT_S:
                worker.hung = f"has not answered for {silent_s:.0f} s"
                self._kill([worker])

    def starting(self) -> dict[str, tuple[int, str]]:
        """Return the workers that have a process but are not ready: see :func:`workers.cluster.starting_actors`."""
        return starting_actors(TuneWorker.__name__)

    def _end_stuck_starts(self) -> None:
        """End workers that froze while they started. Only Ray knows their process ids: they have not answered yet."""
        if time.monotonic() - self._checked_at < STARTING_LOOK_S:
            return
        self._checked_at = now = time.monotonic()
        starting = self.starting()
        self._starting = {actor: self._starting.get(actor, now) for actor in starting}
        for actor, since in self._starting.items():
            if now - since > START_TIMEOUT_S:
                log.warning("a worker did not start within %.0f s", START_TIMEOUT_S)
                process = process_of(*starting[actor])
                end_everywhere([process] if process is not None else [])

    def stop(self) -> None:
        """End the experiment and its workers reliably. Idempotent."""
        self._experiment.end()
        self._end_workers()
        self._experiment.close()
        self._end_workers()  # workers that started meanwhile

    def _end_workers(self) -> None:
        with suppress(queue.Empty):
            while True:
                message = self._experiment.messages.get_nowait()
                if isinstance(message, Message) and message.actor is not None:
                    self._handle_start(message.trial, message.actor)
        self._kill(self.workers)
        self.workers = []
