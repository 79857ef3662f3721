"""Define the work of a gang or of a Tune trial. It is pickled and sent to the actors; only they import torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any

from cafe_core.evaluation.tasks import EvaluationSetup, EvaluationTask
from cafe_core.jobs.backend import TRAINING, Condensation
from workers.background import Report
from workers.shard_worker import WorkerAssignment

IMPORTS = ("cafe_core.algorithm.condense",)
"""Modules that a gang's worker imports before it is ready. Importing torch takes seconds."""

ACCURACY = "accuracy"
"""Type of the record of a trained network: its task and its accuracy in percent."""


@dataclass(frozen=True)
class CondenseShard:
    """Condense the class shard of this rank, together with the other ranks."""

    condensation: Condensation
    until: int
    timeout_s: float
    memory_share: float = 1.0
    """Share of the usual memory budget: smaller after a GPU ran out of memory."""

    def __call__(self, assignment: WorkerAssignment, report: Report) -> None:
        import torch

        from cafe_core.algorithm.checkpoint import Checkpoints
        from cafe_core.algorithm.collectives import Comm
        from cafe_core.algorithm.condense import condense
        from cafe_core.algorithm.gpu_memory import CONDENSATION_ADVICE, explain_out_of_memory
        from cafe_core.algorithm.model import Budget
        from cafe_core.data.class_store import ClassStore
        from cafe_core.jobs.extend import load_extension

        if ip_address(assignment.host).is_loopback:
            os.environ["NCCL_SOCKET_IFNAME"] = "lo"
        with explain_out_of_memory(CONDENSATION_ADVICE):  # connecting to the gang needs GPU memory, too
            device = torch.device(assignment.device)
            comm = Comm.connect(
                rank=assignment.rank,
                world=assignment.world,
                address=assignment.address,
                device=device,
                timeout_s=self.timeout_s,
                host=assignment.host,
            )
            condensation = self.condensation
            condense(
                condensation.spec,
                ClassStore.open(condensation.store),
                comm,
                device,
                checkpoints=Checkpoints(condensation.checkpoints, condensation.fence),
                report=report,
                budget=Budget.of(device, condensation.spec.resources.gpus_per_worker * self.memory_share),
                until=self.until,
                cache=condensation.artifact_cache,
                extension=load_extension(condensation, assignment.rank),
            )
        # Not closed if condense raises: leaving a broken gang may block, and this process is about to be ended anyway.
        comm.close()


@dataclass(frozen=True)
class TrainNetworks:
    """Train and test the networks of a chunk of an evaluation; report the training's steps and each accuracy when it is known."""

    chunk: Sequence[EvaluationTask]
    setup: EvaluationSetup

    def __call__(self, assignment: WorkerAssignment, report: Report) -> None:
        import torch

        from cafe_core.evaluation.run import train_networks

        device = torch.device(assignment.device)
        for task, accuracy in train_networks(self.chunk, self.setup, device, step_done=lambda step: report(TRAINING, step=step)):
            report(ACCURACY, task=task, accuracy=accuracy)

    def after(self, reported: Sequence[tuple[str, dict[str, Any]]]) -> TrainNetworks:
        """Return the work without the networks that were reported."""
        finished = {data["task"] for type, data in reported if type == ACCURACY}
        return replace(self, chunk=[task for task in self.chunk if task not in finished])

    def release(self, reported: Sequence[tuple[str, dict[str, Any]]]) -> None:
        """Do nothing: there is nothing to release."""
