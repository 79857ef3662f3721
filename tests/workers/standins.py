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

    def __call__(self, seat: Seat, report: Report) -> None:
        if seat.rank == 1:
            raise NonFiniteLossError("the loss became nan in iteration 3")
        time.sleep(60)


@dataclass(frozen=True)
class Stumble:
    """Rank 0 has a bug."""

    def __call__(self, seat: Seat, report: Report) -> None:
        if seat.rank == 0:
            raise ValueError("a bug")
        time.sleep(60)


@dataclass(frozen=True)
class SumForever:
    """All ranks meet in collectives until one is lost. Where `trouble` is given, rank 1 does it to itself, once."""

    timeout_s: float
    once: Path | None = None
    trouble: signal.Signals | None = None
    steps: int = 1_000_000

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
        for step in range(self.steps):
            comm.all_reduce(torch.ones(3))
            if seat.rank == 0 and step in (0, 3):
                report("step", step=step)
            if step == 3 and seat.rank == 1 and self.trouble is not None and self.once is not None and not self.once.exists():
                self.once.touch()
                os.kill(os.getpid(), self.trouble)
            time.sleep(0.01)
        comm.close()
        return seat.world
