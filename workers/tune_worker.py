"""Define the actor of a Ray Tune trial. It runs the trial's work and reports progress in Tune results.

The work runs in a thread (:mod:`workers.background`), and each result is the answer to a poll. Records reach the driver
immediately, and an answer without records is the worker's heartbeat.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Protocol

import ray
from ray import tune

from workers.background import Answer, Background, Report
from workers.processes import Process
from workers.shard_worker import Device, WorkerAssignment

POLL_WAIT_S = 1.0
"""How long a worker may delay its answer to a poll when it has nothing to report."""
METRICS = "metrics"
"""Type of the records whose data the experiment's scheduler uses."""

Records = list[tuple[str, dict[str, Any]]]
"""The records that the work reported: (type, data)."""


class TrialWork(Protocol):
    """The work of a trial. It is pickled."""

    def __call__(self, assignment: WorkerAssignment, report: Report) -> Any: ...

    def after(self, reported: Records) -> TrialWork:
        """Return the remaining work after the worker was lost. Called in the driver, before Tune retries the trial."""

    def release(self, reported: Records) -> None:
        """Release the cluster resources that it holds besides its worker, which has already ended. Called in the driver."""


@dataclass(frozen=True)
class TrialConfig:
    """The configuration of a trial."""

    number: int
    work: TrialWork


@dataclass(frozen=True)
class TrialUpdate:
    """A result that a trial reports to Tune."""

    answer: Answer
    process: Process
    device: str


class TuneWorker(tune.Trainable):
    """The actor that runs the work of one trial after the other."""

    _title = "worker that did not start"
    """Ray asks for the name even if the start failed."""

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """Return the resources of a worker. (`tune.with_resources` would rename the class, and with it the processes.)"""
        return tune.PlacementGroupFactory([config["bundle"]])

    def setup(self, config: dict[str, Any]) -> None:
        """Start the work immediately, because importing torch takes as long as the rest of the start."""
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        self._title = str(config["title"])
        threads = max(1, int(config["bundle"].get("CPU", 1)))
        self._background = Background(threads)
        self._process = Process.current()
        gpus = ",".join(map(str, ray.get_gpu_ids()))
        # Ray shows each worker only its own GPUs, so the one it uses is number 0.
        self._device = Device("cuda:0", f"cuda:{gpus}") if gpus else Device("cpu", "cpu")
        self._assignment = WorkerAssignment(rank=0, world=1, address="", host="", device=self._device.name, threads=threads)
        self._begin(config)

    def __repr__(self) -> str:
        return self._title  # Ray's dashboard and log lines show it

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Start the work of another trial."""
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        trial: TrialConfig = config["trial"]
        self._background.begin(lambda report: trial.work(self._assignment, report))

    def step(self) -> dict[str, Any]:
        """Return what happened since the last step. If nothing did, the result is a heartbeat."""
        answer = self._background.poll(POLL_WAIT_S)
        metrics = [data for type, data in answer.records if type == METRICS]
        update = TrialUpdate(answer, self._process, self._device.description)
        return {"update": update, "done": answer.outcome is not None} | (metrics[-1] if metrics else {})
