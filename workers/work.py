"""What a gang's workers are asked to do: the two long phases of a job. Pickled to the actors; torch is theirs to import."""

from __future__ import annotations

import os
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from cafe_core.config import CondenseSpec
from cafe_core.job import EvaluationTask
from workers.shard_worker import Report, Seat

IMPORTS = ("cafe_core.condense",)
"""What a worker imports before it says that it is ready: torch alone takes seconds."""


@dataclass(frozen=True)
class CondenseShard:
    """Condense this rank's class shard, together with the other ranks."""

    spec: CondenseSpec
    store: Path
    checkpoints: Path
    timeout_s: float

    def __call__(self, seat: Seat, report: Report) -> None:
        import torch

        from cafe_core.condense import condense
        from cafe_core.data.class_store import ClassStore
        from cafe_core.distributed import Comm

        if ip_address(seat.host).is_loopback:
            os.environ["NCCL_SOCKET_IFNAME"] = "lo"
        device = torch.device(seat.device)
        comm = Comm.connect(
            rank=seat.rank, world=seat.world, address=seat.address, device=device, timeout_s=self.timeout_s, host=seat.host
        )
        condense(self.spec, ClassStore.open(self.store), comm, device, checkpoints=self.checkpoints, report=report)
        # Left open when condense raises: leaving a broken gang may block, and this process is about to be ended.
        comm.close()


@dataclass(frozen=True)
class TrainNetwork:
    """Train and test one network of the evaluation; returns its accuracy in percent."""

    task: EvaluationTask
    spec: CondenseSpec
    store: Path
    synthetic: Path

    def __call__(self, seat: Seat, report: Report) -> float:  # noqa: ARG002
        import torch

        from cafe_core.evaluate import run_task

        return run_task(self.task, self.spec, self.store, self.synthetic, torch.device(seat.device))
