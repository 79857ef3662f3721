"""Condense a labelled image set into ipc synthetic images per class.

:func:`condense` is Algorithm 1 of CAFE (Wang et al., CVPR 2022) in the paper's order and words. Other methods that learn images
run in the same loops: what differs is a :class:`cafe_core.methods.Matching`. DC's loops are CAFE's without the stop rules, DM's
are one step. Methods that choose real images have done so when `start` returns.

Every rank of a gang calls it with the same spec; rank r owns the classes 𝒦_r, holds only their images, and meets the others in
its method's `gradient` and in `inner_loop`.

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

from cafe_core.algorithm import augment
from cafe_core.algorithm.bilevel import Loop, QueryAverage, needed_queries
from cafe_core.algorithm.collectives import Comm
from cafe_core.algorithm.inner_loop import query_accuracy, train_epoch
from cafe_core.algorithm.model import Budget
from cafe_core.algorithm.real_images import BatchIndices
from cafe_core.algorithm.run_state import advice, save, start
from cafe_core.algorithm.sampling import choose, generator
from cafe_core.algorithm.shard_context import ShardContext
from cafe_core.algorithm.synthetic_shard import SyntheticShard
from cafe_core.data.class_store import ClassStore
from cafe_core.errors import NonFiniteLossError
from cafe_core.files import Fence, unfenced
from cafe_core.methods import Losses, make_matching
from cafe_core.spec.condense import CondenseSpec
from cafe_core.spec.method import BilevelMethod, MatchingMethod
from cafe_core.spec.resolution import image_lr_at

Report = Callable[..., None]
"""report(type, **data): what happened, see cafe_core.jobs.jobdir for where it goes."""


def condense(
    spec: CondenseSpec,
    store: ClassStore,
    comm: Comm,
    device: torch.device,
    *,
    checkpoints: Path,
    report: Report,
    budget: Budget | None = None,
    until: int | None = None,
    fence: Fence = unfenced,
) -> SyntheticShard:
    """Run the iterations that the newest checkpoint in `checkpoints` has not done yet; returns this rank's share of S.

    until: stop after that many iterations (default: the spec's), or at once where more are done. Going on later gives the same
    images as not having stopped.

    Rank 0 writes checkpoints, that of the last iteration always, where the fence lets it, and reports `iteration` and
    `checkpoint` events. Raises NonFiniteLossError when a loss is, CheckpointError when a checkpoint cannot be read or written.
    """
    rank = ShardContext.of(spec, store, comm, device, budget or Budget.of(device, spec.resources.gpus_per_worker))
    report = report if comm.rank == 0 else _silent
    iteration, shard = start(rank, checkpoints, report, fence)
    until = spec.iterations if until is None else min(until, spec.iterations)
    if iteration >= until:
        return shard

    run = Run(rank)
    loops = run.method.loops
    queries_outer, queries_inner = needed_queries(loops.max_outer, loops.max_inner, loops.window, loops.query_carry)
    progress = Progress(spec, iteration, report)
    images_matched, images_queried = run.images_seen()
    while iteration < until:
        rank.model.renew(spec.seed, iteration)  # θ ← fresh random network
        record = IterationRecord()
        query = QueryAverage(rank.info.num_classes, loops.query_carry)
        outer_loop = Loop(loops.max_outer, loops.window, loops.lambda_1, "converged")
        stop_outer = None
        while stop_outer is None:
            outer = outer_loop.steps
            record.losses = run.update_images(shard, iteration, outer)  # S ← S − step on L (Eq. 5)
            accuracy = run.query(query, iteration, outer, 0) if queries_outer else None
            stop_outer = outer_loop.ends_after(accuracy)
            record.outer(accuracy, stop_outer)
            if stop_outer is not None:
                break  # what the network would still learn is thrown away with it

            inner_loop = Loop(loops.max_inner, loops.window, loops.lambda_2, "moved")
            stop_inner = None if loops.max_inner else "bound"
            while stop_inner is None:
                inner = inner_loop.steps
                run.update_network(shard, iteration, outer, inner)  # θ ← one epoch of SGD on S (Eq. 6)
                accuracy = run.query(query, iteration, outer, inner + 1) if queries_inner else None
                stop_inner = inner_loop.ends_after(accuracy)
                record.inner(accuracy, stop_inner)

        iteration += 1
        record.real_images = record.outer_steps * images_matched + record.queries * images_queried
        progress.iteration_done(iteration, record)
        if iteration % spec.checkpoint_every == 0 or iteration == until:
            path = save(rank, checkpoints, fence, shard, iteration)
            if path is not None:
                report("checkpoint", iteration=iteration, file=path.name)
    return shard


class Run:
    """The steps of Algorithm 1 on one rank."""

    def __init__(self, rank: ShardContext) -> None:
        """rank: of a spec whose method learns its images."""
        assert isinstance(rank.spec.method, MatchingMethod)
        self.rank = rank
        self.method = make_matching(rank)
        self._spec = rank.spec.method
        self._seed = rank.spec.seed

    def update_images(self, shard: SyntheticShard, iteration: int, outer: int) -> Losses:
        """One outer step: S ← S − one SGD step. Raises NonFiniteLossError, on every rank, before S is touched."""
        rows = self.sample("real", self._spec.batch_real, iteration, outer)
        draws = None
        if self._spec.augment == "dsa":
            random = generator(self._seed, "augment_class", iteration, outer)
            of_all_classes = self._draws(self.rank.info.num_classes, random)
            draws = of_all_classes[torch.tensor(self.rank.classes)]  # one row per own class: Siamese
        gradient, losses = self.method.gradient(shard, rows, draws)
        loss = float(losses["loss"])
        if not math.isfinite(loss):
            parts = "".join(f", {name} {float(value):.4g}" for name, value in losses.items() if name != "loss")
            raise NonFiniteLossError(
                f"the loss became {loss}{parts} in iteration {iteration + 1}, outer step {outer + 1}; {advice(self._spec)}"
            )
        shard.step(gradient, lr=image_lr_at(self._spec, iteration), momentum=self._spec.image_momentum)
        return losses

    def update_network(self, shard: SyntheticShard, iteration: int, outer: int, inner: int) -> None:
        """One epoch of the inner loop: θ ← SGD on S."""
        assert isinstance(self._spec, BilevelMethod)
        size = self.rank.info.num_classes * shard.ipc
        permutation = torch.randperm(size, generator=generator(self._seed, "epoch", iteration, outer, inner))
        draws = None
        if self._spec.augment == "dsa":
            draws = self._draws(size, generator(self._seed, "augment_epoch", iteration, outer, inner))
        batch, lr = self._spec.batch_train, self._spec.network_lr
        train_epoch(self.rank.model, shard, self.rank.comm, permutation, batch=batch, lr=lr, draws=draws)

    def query(self, average: QueryAverage, iteration: int, outer: int, inner: int) -> float:
        """The network's accuracy on a fresh query set, as it enters the queues."""
        rank = self.rank
        rows = self.sample("query", self.method.loops.query_per_class, iteration, outer, inner)
        return average.update(query_accuracy(rank.model, rank.real, rank.comm, rows, rank.images_per_chunk))

    def sample(self, purpose: str, count: int, *counters: int) -> BatchIndices:
        """`count` real images of each own class, all of it where it has fewer."""
        real, classes = self.rank.real, list(self.rank.classes)
        return BatchIndices(
            classes, [choose(generator(self._seed, purpose, *counters, k), real.count(k), count) for k in classes]
        )

    def images_seen(self) -> tuple[int, int]:
        """Real images of all classes together that an outer step, and that a query, takes through the network."""
        counts = self.rank.info.class_counts
        return sum(min(self._spec.batch_real, n) for n in counts), sum(min(self.method.loops.query_per_class, n) for n in counts)

    def _draws(self, count: int, random: torch.Generator) -> augment.Draws:
        info, real = self.rank.info, self.rank.real
        return augment.draw("dsa", count, info.shape, info.is_digits, random).to(real.device, real.dtype)


@dataclass
class IterationRecord:
    """What one iteration did."""

    losses: Losses | None = None
    query_accuracy: float | None = None
    outer_steps: int = 0
    inner_epochs: int = 0
    stop_outer: Counter[str] = field(default_factory=Counter)
    stop_inner: Counter[str] = field(default_factory=Counter)
    queries: int = 0
    real_images: int = 0
    """That went through the network, over all ranks, once for each time: matched and queried."""

    def outer(self, accuracy: float | None, stop: str | None) -> None:
        """Count one outer step."""
        self.outer_steps += 1
        self.stop_outer.update([stop] if stop else [])
        self._queried(accuracy)

    def inner(self, accuracy: float | None, stop: str | None) -> None:
        """Count one inner epoch."""
        self.inner_epochs += 1
        self.stop_inner.update([stop] if stop else [])
        self._queried(accuracy)

    def _queried(self, accuracy: float | None) -> None:
        if accuracy is not None:
            self.query_accuracy = accuracy
            self.queries += 1


class Progress:
    """Reports iterations with their duration and the time that is left."""

    def __init__(self, spec: CondenseSpec, done: int, report: Report) -> None:
        self._report = report
        self._total = spec.iterations
        self._first = done
        self._started = self._last = time.monotonic()

    def iteration_done(self, iteration: int, record: IterationRecord) -> None:
        """Report that `iteration` iterations are done. Losses are those of the iteration's last outer step."""
        now = time.monotonic()
        assert record.losses is not None
        mean_seconds = (now - self._started) / (iteration - self._first)
        self._report(
            "iteration",
            iteration=iteration,
            total=self._total,
            **{name: float(value) for name, value in record.losses.items()},
            query_accuracy=record.query_accuracy,
            outer_steps=record.outer_steps,
            inner_epochs=record.inner_epochs,
            stop_outer=dict(record.stop_outer),
            stop_inner=dict(record.stop_inner),
            real_images=record.real_images,
            seconds=round(now - self._last, 4),
            eta_s=round(mean_seconds * (self._total - iteration), 1),
        )
        self._last = now


def _silent(_type: str, **_data: Any) -> None:
    pass
