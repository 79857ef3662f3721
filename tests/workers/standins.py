"""Define stand-ins for the work of a condensation or a trial. The workers import this too."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray

from cafe_core.errors import GpuOutOfMemoryError, NonFiniteLossError
from cafe_core.evaluation.tasks import TrainingStep
from cafe_core.jobs.backend import TRAINING
from workers.background import Report
from workers.shard_worker import WorkerAssignment
from workers.work import TrainNetworks


@dataclass(frozen=True)
class Greet:
    """Report a few records and return."""

    count: int

    def __call__(self, assignment: WorkerAssignment, report: Report) -> tuple[int, int]:
        for i in range(self.count):
            report("greeting", rank=assignment.rank, i=i)
        return assignment.rank, os.getpid()


@dataclass(frozen=True)
class Refuse:
    """Raise NonFiniteLossError on rank 1."""

    def __call__(self, assignment: WorkerAssignment, report: Report) -> None:  # noqa: ARG002
        if assignment.rank == 1:
            raise NonFiniteLossError("the loss became nan in iteration 3")


@dataclass(frozen=True)
class FillGpu:
    """Stand in for :class:`workers.work.CondenseShard`: rank 1 has too little GPU memory for more than `fits` of the budget."""

    condensation: Any
    until: int
    timeout_s: float
    memory_share: float
    fits: float = 0.25

    def __call__(self, assignment: WorkerAssignment, report: Report) -> None:
        if assignment.rank == 1 and self.memory_share > self.fits:
            raise GpuOutOfMemoryError("the GPU has too little memory")
        report("share", share=self.memory_share)


@dataclass(frozen=True)
class Stumble:
    """Raise an unexpected exception on rank 0."""

    def __call__(self, assignment: WorkerAssignment, report: Report) -> None:  # noqa: ARG002
        if assignment.rank == 0:
            raise ValueError("a bug")


@dataclass(frozen=True)
class SumForever:
    """Run `steps` collectives on all ranks. Before the fifth, rank 1 of the first gang fails once."""

    timeout_s: float
    steps: int = 1_000_000
    once: Path | None = None
    """A file that records the failure, so that it happens once."""
    trouble: signal.Signals | None = None
    """The signal that rank 1 sends to itself. If None and `once` is set, it stays away from the collective instead."""
    until_alone: bool = False
    """Continue as long as there is another rank."""

    def __call__(self, assignment: WorkerAssignment, report: Report) -> Any:
        import torch

        from cafe_core.algorithm.collectives import Comm

        comm = Comm.connect(
            rank=assignment.rank,
            world=assignment.world,
            address=assignment.address,
            device=torch.device("cpu"),
            timeout_s=self.timeout_s,
            host=assignment.host,
        )
        step = 0
        while step < self.steps or (self.until_alone and assignment.world > 1):
            comm.all_reduce(torch.ones(3))
            if assignment.rank == 0 and step in (0, 3):
                report("step", step=step)
            if step == 3 and assignment.rank == 1 and self.once is not None and not self.once.exists():
                self.once.touch()
                if self.trouble is None:
                    time.sleep(120)
                else:
                    os.kill(os.getpid(), self.trouble)
            time.sleep(0.01)
            step += 1
        comm.close()
        return assignment.world


@dataclass(frozen=True)
class TrainInSteps(TrainNetworks):
    """Train networks, and report a step of the training as if it took long."""

    def __call__(self, assignment: WorkerAssignment, report: Report) -> None:
        report(TRAINING, step=TrainingStep(self.chunk, 1, 2))
        super().__call__(assignment, report)


@dataclass(frozen=True)
class Count:
    """A trial that reports the numbers from `start` up to `end`, and sends itself a signal before `at`."""

    end: int
    start: int = 0
    pause_s: float = 0.0
    at: int | None = None
    once: Path | None = None
    """A file that records the failure, so that it happens once."""
    trouble: signal.Signals = signal.SIGKILL

    def __call__(self, assignment: WorkerAssignment, report: Report) -> tuple[int, int]:
        for i in range(self.start, self.end):
            if i == self.at and (self.once is None or not self.once.exists()):
                time.sleep(0.2)  # let the reports arrive
                if self.once is not None:
                    self.once.touch()
                os.kill(os.getpid(), self.trouble)
            report("count", i=i)
            time.sleep(self.pause_s)
        return os.getpid(), assignment.threads

    def after(self, reported: list[tuple[str, dict[str, Any]]]) -> Count:
        return replace(self, start=1 + max([self.start - 1, *(data["i"] for type, data in reported if type == "count")]))

    def release(self, reported: list[tuple[str, dict[str, Any]]]) -> None:
        pass


@dataclass(frozen=True)
class RefuseTrial:
    """A trial that raises NonFiniteLossError."""

    def __call__(self, assignment: WorkerAssignment, report: Report) -> None:  # noqa: ARG002
        raise NonFiniteLossError("the loss became nan in iteration 3")

    def after(self, reported: list[tuple[str, dict[str, Any]]]) -> RefuseTrial:  # noqa: ARG002
        return self

    def release(self, reported: list[tuple[str, dict[str, Any]]]) -> None:
        pass


@dataclass(frozen=True)
class Unreadable(RefuseTrial):
    """A trial that a worker cannot unpickle."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _unreadable, ()


def _unreadable() -> Unreadable:
    if ray.get_runtime_context().get_actor_id() is not None:
        raise ModuleNotFoundError("No module named 'no_such_module'")
    return Unreadable()


class DeadlyToTakeOver(Count):
    """A trial that ends the first worker that takes it over from another trial."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, value)
        if ray.get_runtime_context().get_actor_id() is None:
            return
        global _trials_here
        _trials_here += 1
        assert self.once is not None
        if _trials_here > 2 and not self.once.exists():
            self.once.touch()
            os.kill(os.getpid(), self.trouble)


_trials_here = 0
