"""Manage a gang: W `ShardWorker` actors in one placement group, started, watched and ended together.

A gang makes no decisions: `policy` decides what to do about a failure, and `gang_backend` carries it out.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cafe_core.algorithm.sharding import class_shard
from cafe_core.errors import CafeError
from cafe_core.jobs.watch_clock import WatchClock
from cafe_core.spec.resources import ResourcesSpec
from workers.background import Answer, Done, Raised
from workers.cluster import bundle_of, nodes
from workers.interruption import Interruption
from workers.policy import Failure, Kind
from workers.processes import Process, end_everywhere
from workers.shard_worker import Device, ShardWorker, Work, WorkerAssignment

log = logging.getLogger(__name__)

POLL_WAIT_S = 1.0
"""How long a worker may delay its answer to a poll when it has nothing to report."""
START_TIMEOUT_S = 300.0
"""Time limit for a worker to start and import torch, which takes minutes on a cold network file system."""


class GangFailedError(Exception):
    """Workers failed while the gang started."""

    def __init__(self, failures: Sequence[Failure]) -> None:
        super().__init__("; ".join(f"worker {failure.rank} {failure.detail}" for failure in failures))
        self.failures = list(failures)


@dataclass(frozen=True)
class WorkerReport:
    """A worker's work reported something."""

    rank: int
    type: str
    data: dict[str, Any]


@dataclass(frozen=True)
class WorkerResult:
    """A worker's work returned."""

    rank: int
    value: Any


Observation = WorkerReport | WorkerResult | Failure


class Reservation:
    """A placement group of `workers` bundles, placed on as few nodes as possible."""

    def __init__(self, resources: ResourcesSpec, workers: int, name: str) -> None:
        self.resources = resources
        self.workers = workers
        self.group: PlacementGroup = placement_group([bundle_of(resources)] * workers, strategy="PACK", name=name)

    def ready(self, wait_s: float) -> bool:
        """Return whether all bundles are placed; wait up to wait_s for it."""
        return bool(self.group.wait(wait_s))

    def release(self) -> None:
        """Release the bundles."""
        remove_placement_group(self.group)


@dataclass
class Worker:
    """The driver's side of one actor."""

    rank: int
    actor: Any
    """The actor's handle. Ray's types do not know its methods."""
    process: Process | None = None
    device: Device | None = None
    host: str = ""
    poll: ray.ObjectRef[Answer] | None = None
    """The pending poll while work runs."""
    asked_at: float = 0.0
    """Time of the pending poll, by the gang's clock."""


class Gang:
    """Run workers in a reservation, which the caller releases. Call :meth:`stop` even if :meth:`start` failed."""

    def __init__(self, reservation: Reservation, title: str, imports: Sequence[str]) -> None:
        """title: prefix of the actors' names, shown to people; unique within the driver."""
        self._reservation = reservation
        self.workers: list[Worker] = []
        self._title = title
        self._imports = tuple(imports)
        self._clock = WatchClock()
        self.address = ""

    @property
    def world(self) -> int:
        return self._reservation.workers

    def start(self, interruption: Interruption) -> None:
        """Create the actors and wait until they have imported their modules.

        Raises GangFailedError if a worker dies or takes too long.
        """
        with interruption.shielded():
            self._create_actors()
        processes = self._first_answers([worker.actor.process.remote() for worker in self.workers], interruption)
        hosts = {node.id: node.ip for node in nodes()}
        for worker, process in zip(self.workers, processes, strict=True):
            worker.process = process
            worker.host = hosts[process.node_id]
        root = self.workers[0]
        [port] = self._first_answers([root.actor.free_port.remote(root.host)], interruption)
        self.address = f"{root.host}:{port}"
        devices = self._first_answers([worker.actor.prepare.remote(self._imports) for worker in self.workers], interruption)
        for worker, device in zip(self.workers, devices, strict=True):
            worker.device = device

    def _create_actors(self) -> None:
        resources = self._reservation.resources
        for rank in range(self.world):
            title = f"{self._title}/shard {rank} of {self.world}"
            bundle = PlacementGroupSchedulingStrategy(self._reservation.group, placement_group_bundle_index=rank)
            actor_class = ray.remote(ShardWorker).options(
                name=title,
                num_cpus=resources.cpus_per_worker,
                num_gpus=resources.gpus_per_worker,
                max_restarts=0,
                scheduling_strategy=bundle,
            )
            actor = actor_class.remote(title, resources.cpus_per_worker, bool(resources.gpus_per_worker))
            self.workers.append(Worker(rank, actor))

    def _first_answers(self, answers: list[Any], interruption: Interruption) -> list[Any]:
        """Wait for one answer of each of workers 0, 1, … while the gang starts."""
        deadline = time.monotonic() + START_TIMEOUT_S
        waiting = answers
        while waiting:
            interruption.check()
            ready, waiting = ray.wait(waiting, timeout=1.0)
            for answer in ready:
                try:
                    ray.get(answer)
                except RayActorError as error:
                    raise GangFailedError([_death(answers.index(answer), error)]) from error
                except RayTaskError as error:
                    reason = f"could not start: {type(error.cause).__name__}: {error.cause}"
                    raise GangFailedError([Failure(answers.index(answer), Kind.BROKEN, reason)]) from error
            if waiting and time.monotonic() > deadline:
                silent = f"did not start within {START_TIMEOUT_S:.0f} s"
                raise GangFailedError([Failure(answers.index(answer), Kind.HUNG, silent) for answer in waiting])
        return list(ray.get(answers))

    def describe(self, classes: Sequence[int]) -> list[dict[str, Any]]:
        """Return the workers in the format of the `workers` event. classes: those that the gang shares."""
        described = []
        for worker in self.workers:
            assert worker.process is not None
            assert worker.device is not None
            described.append(
                {
                    "rank": worker.rank,
                    "pid": worker.process.pid,
                    "node_id": worker.process.node_id,
                    "node_ip": worker.host,
                    "device": worker.device.description,
                    "classes": [classes[j] for j in class_shard(len(classes), worker.rank, self.world)],
                }
            )
        return described

    def begin(self, worker: Worker, work: Work) -> None:
        """Start `work` on `worker`. Its progress is read with :meth:`watch`."""
        assert worker.device is not None
        assert worker.poll is None
        threads = self._reservation.resources.cpus_per_worker
        assignment = WorkerAssignment(worker.rank, self.world, self.address, worker.host, worker.device.name, threads)
        self._await_answer(worker, worker.actor.begin.remote(work, assignment))

    def watch(self, wait_s: float, silence_s: float) -> list[Observation]:
        """Return what happened on the busy workers; wait up to wait_s for something to happen.

        silence_s: a worker whose answer is overdue for longer counts as hung. Time between calls, when nobody watched, does not
        count. A failed worker is not watched any more.
        """
        polls = {worker.poll: worker for worker in self.workers if worker.poll is not None}
        if not polls:
            return []
        ready, _ = ray.wait(list(polls), num_returns=1, timeout=wait_s)
        ready, waiting = ray.wait(list(polls), num_returns=len(polls), timeout=0)
        seen: list[Observation] = []
        for poll in ready:
            seen += self._handle_answer(polls[poll])
        now = self._clock.look()
        for poll in waiting:
            worker = polls[poll]
            silent_s = now - worker.asked_at
            if silent_s > silence_s + POLL_WAIT_S:
                worker.poll = None
                seen.append(Failure(worker.rank, Kind.HUNG, f"has not answered for {silent_s:.0f} s"))
        return seen

    def _await_answer(self, worker: Worker, answer: ray.ObjectRef[Answer]) -> None:
        worker.poll, worker.asked_at = answer, self._clock.look()

    def _handle_answer(self, worker: Worker) -> list[Observation]:
        assert worker.poll is not None
        poll, worker.poll = worker.poll, None
        try:
            answer = ray.get(poll)
        except RayActorError as error:
            return [_death(worker.rank, error)]
        seen: list[Observation] = [WorkerReport(worker.rank, type, data) for type, data in answer.records]
        match answer.outcome:
            case None:
                self._await_answer(worker, worker.actor.poll.remote(POLL_WAIT_S))
            case Done(value):
                seen.append(WorkerResult(worker.rank, value))
            case Raised(summary, _, CafeError() as refusal):
                seen.append(Failure(worker.rank, Kind.REFUSED, summary, refusal))
            case Raised(summary, peer_lost, None):
                seen.append(Failure(worker.rank, Kind.PEER_LOST if peer_lost else Kind.BROKEN, summary))
        return seen

    def dismiss(self, ranks: set[int]) -> None:
        """End some workers reliably, and keep the others."""
        _end([worker for worker in self.workers if worker.rank in ranks])
        self.workers = [worker for worker in self.workers if worker.rank not in ranks]

    def stop(self) -> None:
        """End all workers reliably. Idempotent."""
        _end(self.workers)
        self.workers = []


def _end(workers: Sequence[Worker]) -> None:
    for worker in workers:
        ray.kill(worker.actor)
    end_everywhere([worker.process for worker in workers if worker.process is not None])


def _death(rank: int, error: RayActorError) -> Failure:
    log.warning("worker %d: %s", rank, error)
    if error.actor_init_failed:
        return Failure(rank, Kind.BROKEN, f"could not start: {str(error).strip().splitlines()[-1]}")
    return Failure(rank, Kind.DIED, "is unreachable" if isinstance(error, ActorUnavailableError) else "died")
