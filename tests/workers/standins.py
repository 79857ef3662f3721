"""Work that stands in for a condensation where a test is about the gang. Imported by the workers too."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray

from cafe_core.errors import NonFiniteLossError
from workers.background import Report
from workers.shard_worker import WorkerAssignment


@dataclass(frozen=True)
class Greet:
    """Reports and returns."""

    count: int

    def __call__(self, assignment: WorkerAssignment, report: Report) -> tuple[int, int]:
        for i in range(self.count):
            report("greeting", rank=assignment.rank, i=i)
        return assignment.rank, os.getpid()


@dataclass(frozen=True)
class Refuse:
    """Rank 1 finds a NaN."""

    def __call__(self, assignment: WorkerAssignment, report: Report) -> None:  # noqa: ARG002
        if assignment.rank == 1:
            raise NonFiniteLossError("the loss became nan in iteration 3")


@dataclass(frozen=True)
class Stumble:
    """Rank 0 has a bug."""

    def __call__(self, assignment: WorkerAssignment, report: Report) -> None:  # noqa: ARG002
        if assignment.rank == 0:
            raise ValueError("a bug")


@dataclass(frozen=True)
class SumForever:
    """All ranks meet in `steps` collectives; at the fourth, rank 1 of the first gang gets into trouble."""

    timeout_s: float
    steps: int = 1_000_000
    once: Path | None = None
    """A file that remembers the trouble: it comes once."""
    trouble: signal.Signals | None = None
    """What rank 1 does to its process. Without, and with `once`: it stays away from the collective."""
    until_alone: bool = False
    """Goes on as long as there is another rank."""

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
class Count:
    """A trial that reports the numbers from `start` up to `end`, and gets into trouble before `at`."""

    end: int
    start: int = 0
    pause_s: float = 0.0
    at: int | None = None
    once: Path | None = None
    """A file that remembers the trouble."""
    trouble: signal.Signals = signal.SIGKILL

    def __call__(self, assignment: WorkerAssignment, report: Report) -> tuple[int, int]:
        for i in range(self.start, self.end):
            if i == self.at and (self.once is None or not self.once.exists()):
                time.sleep(0.2)  # what was reported is on its way
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
    """A trial that finds a NaN."""

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
