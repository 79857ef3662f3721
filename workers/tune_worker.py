"""The actor of a Ray Tune trial: it does the trial's work, and each of its Tune results tells how that goes.

The work has a thread of its own (:mod:`workers.background`), and a result is the answer to a poll: what the work reported goes to
the driver at once, and an answer without news is the worker's heartbeat.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Protocol

import ray
from ray import tune

from workers.background import Answer, Background, Report
from workers.processes import Process
from workers.shard_worker import Device, Seat

POLL_WAIT_S = 1.0
"""How long a worker holds a poll that it has no news for."""
METRICS = "metrics"
"""The type of the reports whose data the experiment's scheduler judges by."""

Records = list[tuple[str, dict[str, Any]]]
"""What a work reported: type, data."""


class TrialWork(Protocol):
    """What a trial does. Pickled on its way there."""

    def __call__(self, seat: Seat, report: Report) -> Any: ...

    def after(self, told: Records) -> TrialWork:
        """What is left to do when the worker was lost after it had reported `told`. Called in the driver, before Tune retries."""

    def release(self, told: Records) -> None:
        """Give back what it may hold of the cluster beside its worker, which was ended. Called in the driver."""


@dataclass(frozen=True)
class TrialConfig:
    """What Tune's configuration says of a trial."""

    number: int
    work: TrialWork


@dataclass(frozen=True)
class Told:
    """A Tune result."""

    answer: Answer
    process: Process
    device: str


class TuneWorker(tune.Trainable):
    """The actor that does a trial's work, and then another's."""

    _title = "worker that did not start"
    """Ray asks for the name also where the start failed."""

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """What a worker holds. (`tune.with_resources` would make a class of another name, which processes are titled by.)"""
        return tune.PlacementGroupFactory([config["bundle"]])

    def setup(self, config: dict[str, Any]) -> None:
        """Begin the work at once: importing torch takes as long as the rest of the start."""
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        self._title = str(config["title"])
        threads = max(1, int(config["bundle"].get("CPU", 1)))
        self._background = Background(threads)
        self._process = Process.current()
        gpus = ",".join(map(str, ray.get_gpu_ids()))
        # Ray shows each worker its own GPUs only, so the one it uses is number 0.
        self._device = Device("cuda:0", f"cuda:{gpus}") if gpus else Device("cpu", "cpu")
        self._seat = Seat(rank=0, world=1, address="", host="", device=self._device.name, threads=threads)
        self._begin(config)

    def __repr__(self) -> str:
        return self._title  # Ray's dashboard and log lines show it

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take over another trial."""
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        trial: TrialConfig = config["trial"]
        self._background.begin(lambda report: trial.work(self._seat, report))

    def step(self) -> dict[str, Any]:
        """What happened since the last step; a heartbeat when it is nothing."""
        answer = self._background.poll(POLL_WAIT_S)
        metrics = [data for type, data in answer.records if type == METRICS]
        told = Told(answer, self._process, self._device.description)
        return {"told": told, "done": answer.outcome is not None} | (metrics[-1] if metrics else {})
