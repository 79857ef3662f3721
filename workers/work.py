"""What workers are asked to do, by their gang or by Tune. Pickled to the actors; torch is theirs to import."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any

from cafe_core.evaluation.tasks import EvaluationSetup, EvaluationTask
from cafe_core.jobs.backend import Condensation
from workers.background import Report
from workers.shard_worker import Seat

IMPORTS = ("cafe_core.algorithm.condense",)
"""What a worker of a gang imports before it says that it is ready: torch alone takes seconds."""

ACCURACY = "accuracy"
"""The type of the reports of a finished network: task, accuracy in percent."""


@dataclass(frozen=True)
class CondenseShard:
    """Condense this rank's class shard, together with the other ranks."""

    condensation: Condensation
    until: int
    timeout_s: float

    def __call__(self, seat: Seat, report: Report) -> None:
        import torch

        from cafe_core.algorithm.checkpoint import Checkpoints
        from cafe_core.algorithm.collectives import Comm
        from cafe_core.algorithm.condense import condense
        from cafe_core.data.class_store import ClassStore

        if ip_address(seat.host).is_loopback:
            os.environ["NCCL_SOCKET_IFNAME"] = "lo"
        device = torch.device(seat.device)
        comm = Comm.connect(
            rank=seat.rank, world=seat.world, address=seat.address, device=device, timeout_s=self.timeout_s, host=seat.host
        )
        condensation = self.condensation
        condense(
            condensation.spec,
            ClassStore.open(condensation.store),
            comm,
            device,
            checkpoints=Checkpoints(condensation.checkpoints, condensation.fence),
            report=report,
            until=self.until,
            cache=condensation.artifact_cache,
        )
        # Left open when condense raises: leaving a broken gang may block, and this process is about to be ended.
        comm.close()


@dataclass(frozen=True)
class TrainNetworks:
    """Train and test the networks of a chunk of an evaluation; each one's accuracy is reported when it is known."""

    chunk: Sequence[EvaluationTask]
    setup: EvaluationSetup

    def __call__(self, seat: Seat, report: Report) -> None:
        import torch

        from cafe_core.evaluation.run import train_networks

        for task, accuracy in train_networks(self.chunk, self.setup, torch.device(seat.device)):
            report(ACCURACY, task=task, accuracy=accuracy)

    def after(self, told: Sequence[tuple[str, dict[str, Any]]]) -> TrainNetworks:
        """The networks that are not among those reported."""
        finished = {data["task"] for type, data in told if type == ACCURACY}
        return replace(self, chunk=[task for task in self.chunk if task not in finished])

    def release(self, told: Sequence[tuple[str, dict[str, Any]]]) -> None:
        """It holds nothing."""
