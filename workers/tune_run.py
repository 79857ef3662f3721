"""Work as trials of a Ray Tune experiment: Tune places, starts, reuses and retries; this watches and ends for certain.

The experiment runs in a thread (:mod:`workers.tune_experiment`); the main thread, which signals interrupt, listens.
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
from workers.tune_worker import METRICS, POLL_WAIT_S, Records, Told, TrialWork, TuneWorker

log = logging.getLogger(__name__)

START_TIMEOUT_S = 300.0
"""How long a worker's process may take to start: minutes on a cold network file system."""
STARTING_LOOK_S = 5.0
"""Between looks at the processes that start."""


@dataclass(frozen=True)
class Reported:
    """A trial's work reported something."""

    trial: int
    type: str
    data: dict[str, Any]


@dataclass(frozen=True)
class Returned:
    """A trial's work returned."""

    trial: int
    value: Any


@dataclass(frozen=True)
class Failed:
    """A trial failed: its work raised, or its worker was lost; then it is retried if not `ended`. failure.rank: the worker's."""

    trial: int
    failure: Failure
    ended: bool


@dataclass(frozen=True)
class Stopped:
    """The scheduler stopped a trial."""

    trial: int


@dataclass(frozen=True)
class WorkersChanged:
    """A worker came."""


Observation = Reported | Returned | Failed | Stopped | WorkersChanged


@dataclass
class Worker:
    """The driver's side of one actor."""

    rank: int
    """In the order in which the workers came."""
    actor: Any
    trial: int | None
    """None between two trials."""
    heard_at: float
    """By the run's clock."""
    process: Process | None = None
    """Known from its first answer on."""
    device: str = ""
    """For people."""
    told: Records = field(default_factory=list)
    """What its trial reported."""
    hung: str | None = None
    """Set when it was ended for its silence."""

    def takes(self, trial: int | None, now: float) -> None:
        """Begins a trial, or ends one."""
        self.trial, self.told, self.heard_at = trial, [], now


class TuneRun:
    """An experiment under way. Call :meth:`stop`, whatever happens."""

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
        """Trial i does works[i].

        bundle: what a trial holds of the cluster; storage: a directory for Tune, removed at the end; reuse: a worker does one
        trial after the other; max_failures: how often a trial is retried, −1 for ever.
        """
        self.workers: list[Worker] = []
        """Those that live, as far as is known."""
        self.over = False
        """Whether every trial has ended."""
        self._works = works
        self._waiting = set(range(len(works)))
        self._reuse = reuse
        self._clock = WatchClock()
        self._came = 0
        self._starting: dict[str, float] = {}
        self._looked_at = time.monotonic()
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
        """The workers as the `workers` event tells of them."""
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
        """What the trials tell, waiting up to wait_s for anything.

        silence_s: a worker whose answer is overdue for longer is ended, so that Tune retries its trial. Time that nobody watched
        does not count.
        """
        seen: list[Observation] = []
        with suppress(queue.Empty):
            seen += self._heard(self._experiment.messages.get(timeout=wait_s))
            while True:
                seen += self._heard(self._experiment.messages.get_nowait())
        self._end_the_silent(silence_s)
        self._end_what_does_not_start()
        self.over = not self._waiting
        return seen

    def _heard(self, message: Message | BaseException) -> list[Observation]:
        if isinstance(message, BaseException):
            raise message
        if message.actor is not None:
            self._started(message.trial, message.actor)
        if message.told is not None:
            return self._answered(message.trial, message.told)
        if message.lost is not None:
            return [self._lost(message.trial, message.lost, message.ended)]
        if message.ended and message.trial in self._waiting:  # and has no outcome
            self._kill([worker for worker in self.workers if worker.trial == message.trial])
            self._end(message.trial)
            return [Stopped(message.trial)]
        return []

    def _started(self, trial: int, actor: Any) -> None:
        for worker in self.workers:
            if worker.actor == actor:
                worker.takes(trial, self._clock.look())
                return
        self.workers.append(Worker(self._came, actor, trial, self._clock.look()))
        self._came += 1

    def _answered(self, trial: int, told: Told) -> list[Observation]:
        [worker] = [worker for worker in self.workers if worker.trial == trial]
        worker.heard_at = self._clock.look()
        seen: list[Observation] = []
        if worker.process is None:
            worker.process, worker.device = told.process, told.device
            seen.append(WorkersChanged())
        worker.told += told.answer.records
        seen += [Reported(trial, type, data) for type, data in told.answer.records if type != METRICS]
        match told.answer.outcome:
            case None:
                return seen
            case Done(value):
                seen.append(Returned(trial, value))
            case Raised(summary, _, CafeError() as refusal):
                seen.append(Failed(trial, Failure(worker.rank, Kind.REFUSED, summary, refusal), ended=True))
            case Raised(summary, _, None):
                seen.append(Failed(trial, Failure(worker.rank, Kind.BROKEN, summary), ended=True))
        self._end(trial)
        return seen

    def _lost(self, trial: int, lost: RayActorError, ended: bool) -> Failed:
        # Without one that has the trial, it is one that was about to take it over, or one that did not come up.
        worker = next((w for w in self.workers if w.trial == trial), next((w for w in self.workers if w.trial is None), None))
        rank = self._came if worker is None else worker.rank
        log.warning("worker %d: %s", rank, lost)
        if worker is not None:
            self.workers.remove(worker)
        if ended:  # else Tune retries it, and has released what it held
            self._waiting.discard(trial)
            self._works[trial].release(worker.told if worker is not None else [])
        if worker is not None and worker.hung is not None:
            return Failed(trial, Failure(rank, Kind.HUNG, worker.hung), ended)
        if lost.actor_init_failed:
            reason = f"could not start: {str(lost).strip().splitlines()[-1]}"
            return Failed(trial, Failure(rank, Kind.BROKEN, reason), ended)
        return Failed(trial, Failure(rank, Kind.DIED, "died"), ended)

    def _end(self, trial: int) -> None:
        self._waiting.discard(trial)
        for worker in [worker for worker in self.workers if worker.trial == trial]:
            worker.takes(None, self._clock.look())
            if not self._reuse:
                self.workers.remove(worker)

    def _kill(self, workers: Sequence[Worker]) -> None:
        """End workers with what they hold, for certain."""
        for worker in workers:
            ray.kill(worker.actor)
        end_everywhere([worker.process for worker in workers if worker.process is not None])
        for worker in workers:
            if worker.trial is not None:
                self._works[worker.trial].release(worker.told)

    def _end_the_silent(self, silence_s: float) -> None:
        """Also one between two trials, which is a moment: it may have frozen then."""
        now = self._clock.look()
        for worker in self.workers:
            silent_s = now - worker.heard_at
            if worker.hung is None and silent_s > silence_s + POLL_WAIT_S:
                worker.hung = f"has not answered for {silent_s:.0f} s"
                self._kill([worker])

    def starting(self) -> dict[str, tuple[int, str]]:
        """Workers that have a process but are not up: see :func:`workers.cluster.starting_actors`."""
        return starting_actors(TuneWorker.__name__)

    def _end_what_does_not_start(self) -> None:
        """A worker that froze before it could be watched: its process is known to Ray alone."""
        if time.monotonic() - self._looked_at < STARTING_LOOK_S:
            return
        self._looked_at = now = time.monotonic()
        starting = self.starting()
        self._starting = {actor: self._starting.get(actor, now) for actor in starting}
        for actor, since in self._starting.items():
            if now - since > START_TIMEOUT_S:
                log.warning("a worker did not start within %.0f s", START_TIMEOUT_S)
                process = process_of(*starting[actor])
                end_everywhere([process] if process is not None else [])

    def stop(self) -> None:
        """End the experiment and its workers, for certain. Again is harmless."""
        self._experiment.end()
        self._end_workers()
        self._experiment.close()
        self._end_workers()  # one that came meanwhile

    def _end_workers(self) -> None:
        with suppress(queue.Empty):
            while True:
                message = self._experiment.messages.get_nowait()
                if isinstance(message, Message) and message.actor is not None:
                    self._started(message.trial, message.actor)
        self._kill(self.workers)
        self.workers = []
