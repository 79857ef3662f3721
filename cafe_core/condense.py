"""CAFE: condense a labelled image set into ipc synthetic images per class (Wang et al., CVPR 2022, Algorithm 1).

:func:`condense` is the method, in the paper's order and words. Every rank of a gang calls it with the same spec; rank r
owns the classes 𝒦_r, holds only their images, and meets the others in `outer_step` and `inner_loop`.

    S   synthetic images     θ  network     γ  length of the queues     λ1, λ2  thresholds of the outer and the inner loop
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cafe_core import augment
from cafe_core.bilevel import Loop, QueryAverage, needed_queries
from cafe_core.checkpoint import Checkpoint, latest_checkpoint, read_checkpoint, save_checkpoint
from cafe_core.config import CondenseSpec, DatasetInfo, image_lr_at
from cafe_core.data.class_store import ClassStore
from cafe_core.distributed import Comm
from cafe_core.errors import CheckpointError, NonFiniteLossError
from cafe_core.inner_loop import query_accuracy, train_epoch
from cafe_core.model import Budget, Model
from cafe_core.outer_step import OuterStep, StepLosses, SyntheticShard
from cafe_core.real_images import RealImages, Rows
from cafe_core.sampling import choose, generator
from cafe_core.sharding import class_shard

LAST_CHECKPOINT_INTACT = "the last checkpoint is intact. A smaller method.image_lr or method.network_lr usually helps"

Report = Callable[..., None]
"""report(type, **data): what happened, see cafe_core.jobdir for where it goes."""


def condense(
    spec: CondenseSpec,
    store: ClassStore,
    comm: Comm,
    device: torch.device,
    *,
    checkpoints: Path,
    report: Report,
    budget: Budget | None = None,
) -> SyntheticShard:
    """Run the iterations that the newest checkpoint in `checkpoints` has not done yet; returns this rank's share of S.

    Rank 0 writes checkpoints, the last one always, and reports `iteration` and `checkpoint` events.
    Raises NonFiniteLossError when the loss does, CheckpointError when a checkpoint cannot be read or written.
    """
    run = Run(spec, store, comm, device, budget or Budget.of(device, spec.resources.gpus_per_worker))
    iteration, shard = run.start(checkpoints)
    method = spec.method
    window = method.gamma if method.bilevel == "dynamic" else 0
    queries_outer, queries_inner = needed_queries(method.max_outer, method.max_inner, window, method.query_carry)
    progress = Progress(spec, iteration, report if comm.rank == 0 else _silent)

    while iteration < spec.iterations:
        run.model.renew(spec.seed, iteration)  # θ ← fresh random network
        record = IterationRecord()
        query = QueryAverage(run.info.num_classes, method.query_carry)
        outer_loop = Loop(method.max_outer, window, method.lambda_1, "converged")
        stop_outer = None
        while stop_outer is None:
            outer = outer_loop.steps
            record.losses = run.update_images(shard, iteration, outer)  # S ← S − step on L (Eq. 5)
            accuracy = run.query(query, iteration, outer, 0) if queries_outer else None
            stop_outer = outer_loop.ends_after(accuracy)
            record.outer(accuracy, stop_outer)
            if stop_outer is not None:
                break  # what the network would still learn is thrown away with it

            inner_loop = Loop(method.max_inner, window, method.lambda_2, "moved")
            stop_inner = None if method.max_inner else "bound"
            while stop_inner is None:
                inner = inner_loop.steps
                run.update_network(shard, iteration, outer, inner)  # θ ← one epoch of SGD on S (Eq. 6)
                accuracy = run.query(query, iteration, outer, inner + 1) if queries_inner else None
                stop_inner = inner_loop.ends_after(accuracy)
                record.inner(accuracy, stop_inner)

        iteration += 1
        progress.iteration_done(iteration, record)
        if iteration % spec.checkpoint_every == 0 or iteration == spec.iterations:
            path = run.save(checkpoints, shard, iteration)
            if path is not None:
                progress.report("checkpoint", iteration=iteration, file=path.name)
    return shard


class Run:
    """What a rank holds through a run, and the steps of Algorithm 1 over it."""

    def __init__(self, spec: CondenseSpec, store: ClassStore, comm: Comm, device: torch.device, budget: Budget) -> None:
        self.spec = spec
        self.info: DatasetInfo = store.info
        self.comm = comm
        self.device = device
        self.dtype = torch.float64 if spec.precision == "float64" else torch.float32
        self.classes = class_shard(self.info.num_classes, comm.rank, comm.world)
        self.real = RealImages(store, self.classes, device, self.dtype)
        self.model = Model(spec, self.info, device, self.dtype)
        self._images_per_chunk = budget.images_per_chunk(self.model)
        self._step = OuterStep(
            spec.method,
            self.model.features,
            self.real,
            comm,
            self.info.num_classes,
            self._images_per_chunk,
            budget.classes_per_chunk(self.model, spec.ipc),
            budget.keeps_graph(self.model, spec.ipc, len(self.classes)),
        )

    def start(self, checkpoints: Path) -> tuple[int, SyntheticShard]:
        """(iterations done, this rank's share of S): from the newest checkpoint, else from `init`.

        A run without a checkpoint writes the initial one, so that there is always something to resume and to download.
        """
        checkpoint = latest_checkpoint(checkpoints, self.spec) if self.comm.rank == 0 else None
        # Rank 0 decides where all go on: a file system that is shared may show each machine another newest checkpoint.
        found = torch.tensor(0 if checkpoint is None else checkpoint.iteration + 1, device=self.device)
        iteration = int(self.comm.all_reduce(found)) - 1
        if iteration > self.spec.iterations:
            raise CheckpointError(f"iterations: {self.spec.iterations} are wanted, and {iteration} were done by an earlier run")
        if checkpoint is None and iteration >= 0:
            checkpoint = read_checkpoint(checkpoints, iteration, self.spec)
        if checkpoint is not None:
            own = slice(self.classes.start * self.spec.ipc, self.classes.stop * self.spec.ipc)
            images = checkpoint.images[own].to(self.device, self.dtype)
            momentum = checkpoint.momentum[own].to(self.device, self.dtype)
            return checkpoint.iteration, SyntheticShard(self.classes, self.spec.ipc, images, momentum)
        images = torch.cat([self._initial_images(k) for k in self.classes])
        shard = SyntheticShard(self.classes, self.spec.ipc, images, torch.zeros_like(images))
        self.save(checkpoints, shard, 0)
        return 0, shard

    def _initial_images(self, k: int) -> Tensor:
        """S_k of iteration 0: (ipc, C, H, W), standard normal noise or real images, repeated where a class has too few."""
        ipc, draws = self.spec.ipc, generator(self.spec.seed, "init", k)
        if self.spec.method.init == "real":
            chosen = choose(draws, self.real.count(k), ipc)
            return self.real.batch(k, chosen[torch.arange(ipc) % len(chosen)])
        return torch.randn(ipc, *self.info.shape, generator=draws).to(self.device, self.dtype)

    def update_images(self, shard: SyntheticShard, iteration: int, outer: int) -> StepLosses:
        """One outer step: S ← S − one SGD step on L. Raises NonFiniteLossError, on every rank, before S is touched."""
        seed, method = self.spec.seed, self.spec.method
        rows = self._sample("real", method.batch_real, iteration, outer)
        draws = None
        if method.augment == "dsa":
            of_all_classes = self._draws(self.info.num_classes, generator(seed, "augment_class", iteration, outer))
            draws = of_all_classes[torch.tensor(self.classes)]  # one row per own class: Siamese
        total = sum(min(method.batch_real, n) for n in self.info.class_counts)
        gradient, step_losses = self._step.gradient(shard, rows, total, draws)
        loss = float(step_losses.feature + method.beta * step_losses.discrimination)
        if not math.isfinite(loss):
            raise NonFiniteLossError(
                f"the loss became {loss} in iteration {iteration + 1}, outer step {outer + 1} "
                f"(feature alignment {float(step_losses.feature):.4g}, discrimination {float(step_losses.discrimination):.4g}); "
                + LAST_CHECKPOINT_INTACT
            )
        shard.step(gradient, lr=image_lr_at(method, iteration), momentum=method.image_momentum)
        return step_losses

    def update_network(self, shard: SyntheticShard, iteration: int, outer: int, inner: int) -> None:
        """One epoch of the inner loop: θ ← SGD on S."""
        seed, method = self.spec.seed, self.spec.method
        size = self.info.num_classes * self.spec.ipc
        permutation = torch.randperm(size, generator=generator(seed, "epoch", iteration, outer, inner))
        draws = None
        if method.augment == "dsa":
            draws = self._draws(size, generator(seed, "augment_epoch", iteration, outer, inner))
        train_epoch(self.model, shard, self.comm, permutation, batch=method.batch_train, lr=method.network_lr, draws=draws)

    def query(self, average: QueryAverage, iteration: int, outer: int, inner: int) -> float:
        """The network's accuracy on a fresh query set, as it enters the queues."""
        rows = self._sample("query", self.spec.method.query_per_class, iteration, outer, inner)
        return average.update(query_accuracy(self.model, self.real, self.comm, rows, self._images_per_chunk))

    def save(self, checkpoints: Path, shard: SyntheticShard, iteration: int) -> Path | None:
        """Gather S and its momentum on rank 0, which writes them; the path there, None elsewhere.

        Raises NonFiniteLossError, on every rank, where the last step has made them infinite: nothing is written then.
        """
        finite = shard.images.isfinite().all() & shard.momentum.isfinite().all()
        if self.comm.all_reduce((~finite).long()):
            raise NonFiniteLossError(f"the synthetic images became infinite in iteration {iteration}; {LAST_CHECKPOINT_INTACT}")
        sizes = [
            len(class_shard(self.info.num_classes, rank, self.comm.world)) * self.spec.ipc for rank in range(self.comm.world)
        ]
        images = self.comm.gather_to_root(shard.images, sizes)
        momentum = self.comm.gather_to_root(shard.momentum, sizes)
        if images is None or momentum is None:
            return None
        return save_checkpoint(checkpoints, Checkpoint(images, momentum, iteration), self.spec)

    def _sample(self, purpose: str, count: int, *counters: int) -> Rows:
        """`count` images of each own class, all of it where it has fewer."""
        return Rows(
            list(self.classes),
            [choose(generator(self.spec.seed, purpose, *counters, k), self.real.count(k), count) for k in self.classes],
        )

    def _draws(self, count: int, random: torch.Generator) -> augment.Draws:
        return augment.draw("dsa", count, self.info.shape, self.info.is_digits, random).to(self.device, self.dtype)


@dataclass
class IterationRecord:
    """What one iteration did."""

    losses: StepLosses | None = None
    query_accuracy: float | None = None
    outer_steps: int = 0
    inner_epochs: int = 0
    stop_outer: Counter[str] = field(default_factory=Counter)
    stop_inner: Counter[str] = field(default_factory=Counter)

    def outer(self, accuracy: float | None, stop: str | None) -> None:
        """Count one outer step."""
        self.outer_steps += 1
        self.stop_outer.update([stop] if stop else [])
        self.query_accuracy = accuracy if accuracy is not None else self.query_accuracy

    def inner(self, accuracy: float | None, stop: str | None) -> None:
        """Count one inner epoch."""
        self.inner_epochs += 1
        self.stop_inner.update([stop] if stop else [])
        self.query_accuracy = accuracy if accuracy is not None else self.query_accuracy


class Progress:
    """Reports iterations with their duration and the time that is left."""

    def __init__(self, spec: CondenseSpec, done: int, report: Report) -> None:
        self.report = report
        self._total = spec.iterations
        self._beta = spec.method.beta if spec.method.discrimination else 0.0
        self._first = done
        self._started = self._last = time.monotonic()

    def iteration_done(self, iteration: int, record: IterationRecord) -> None:
        """Report that `iteration` iterations are done. Losses are those of the iteration's last outer step."""
        now = time.monotonic()
        assert record.losses is not None
        feature_loss, discrimination_loss = float(record.losses.feature), float(record.losses.discrimination)
        mean_seconds = (now - self._started) / (iteration - self._first)
        self.report(
            "iteration",
            iteration=iteration,
            total=self._total,
            loss=feature_loss + self._beta * discrimination_loss,
            feature_loss=feature_loss,
            discrimination_loss=discrimination_loss,
            query_accuracy=record.query_accuracy,
            outer_steps=record.outer_steps,
            inner_epochs=record.inner_epochs,
            stop_outer=dict(record.stop_outer),
            stop_inner=dict(record.stop_inner),
            seconds=round(now - self._last, 4),
            eta_s=round(mean_seconds * (self._total - iteration), 1),
        )
        self._last = now


def _silent(_type: str, **_data: Any) -> None:
    pass
