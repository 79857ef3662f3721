"""Work that stands in for a condensation where a test is about the gang. Imported by the workers too."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cafe_core.errors import NonFiniteLossError
from workers.shard_worker import Report, Seat


@dataclass(frozen=True)
class Greet:
    """Reports and returns."""

    count: int

    def __call__(self, seat: Seat, report: Report) -> tuple[int, int]:
        for i in range(self.count):
            report("greeting", rank=seat.rank, i=i)
        return seat.rank, os.getpid()


@dataclass(frozen=True)
class Refuse:
    """Rank 1 finds a NaN."""

    def __call__(self, seat: Seat, report: Report) -> None:  # noqa: ARG002
        if seat.rank == 1:
            raise NonFiniteLossError("the loss became nan in iteration 3")


@dataclass(frozen=True)
class Stumble:
    """Rank 0 has a bug."""

    def __call__(self, seat: Seat, report: Report) -> None:  # noqa: ARG002
        if seat.rank == 0:
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

    def __call__(self, seat: Seat, report: Report) -> Any:
        import torch

        from cafe_core.distributed import Comm

        comm = Comm.connect(
            rank=seat.rank,
            world=seat.world,
            address=seat.address,
            device=torch.device("cpu"),
            timeout_s=self.timeout_s,
            host=seat.host,
        )
        step = 0
        while step < self.steps or (self.until_alone and seat.world > 1):
            comm.all_reduce(torch.ones(3))
            if seat.rank == 0 and step in (0, 3):
                report("step", step=step)
            if step == 3 and seat.rank == 1 and self.once is not None and not self.once.exists():
                self.once.touch()
                if self.trouble is None:
                    time.sleep(120)
                else:
                    os.kill(os.getpid(), self.trouble)
            time.sleep(0.01)
            step += 1
        comm.close()
        return seat.world
