"""Train the network θ on S, and query its accuracy: the steps of Algorithm 1 that concern θ."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from cafe_core.algorithm.bilevel import Check, QueryAverage, needed_queries
from cafe_core.algorithm.inner_loop import query_accuracy, train_epoch
from cafe_core.algorithm.method import Loops
from cafe_core.algorithm.sampling import generator
from cafe_core.algorithm.shard_context import ShardContext
from cafe_core.algorithm.synthetic_shard import SyntheticShard
from cafe_core.spec.method import BilevelMethodSpec, query_copies_bytes


def update_network(context: ShardContext, shard: SyntheticShard, iteration: int, outer: int, inner: int) -> None:
    """Train the network on S for one epoch: θ ← SGD. All workers call it together."""
    spec, seed = context.spec.method, context.spec.seed
    assert isinstance(spec, BilevelMethodSpec)
    size = context.info.num_classes * shard.ipc
    permutation = torch.randperm(size, generator=generator(seed, "epoch", iteration, outer, inner))
    draws = None
    if spec.augment != "none":
        draws = context.draw_augmentations(spec.augment, size, generator(seed, "augment_epoch", iteration, outer, inner))
    train_epoch(context.model, shard, context.comm, permutation, batch=spec.batch_train, lr=spec.network_lr, draws=draws)


class Queries:
    """The query checks of one iteration. Each is made when it can change the run, so some are never made.

    A check that may be made later keeps a copy of θ. With `query_carry`, each check changes the accuracies of all later ones, so
    every check is made at once. The same is done if the copies would take too much memory, except for the check at the bound.
    """

    def __init__(self, context: ShardContext, loops: Loops, iteration: int) -> None:
        self._context = context
        self._loops = loops
        self._iteration = iteration
        self._images_per_check = sum(min(loops.query_per_class, n) for n in context.info.class_counts)
        self._average = QueryAverage(context.info.num_classes, loops.query_carry)
        self._outer_needed, self._inner_needed = needed_queries(loops.max_outer, loops.max_inner, loops.window, loops.query_carry)
        parameters = sum(parameter.numel() for parameter in context.model.parameters())
        self._keeps_copies = query_copies_bytes(loops.window, loops.query_carry, parameters, context.model.dtype.itemsize) > 0
        self.count = 0
        """Number of checks made so far."""
        self.latest: float | None = None
        """The accuracy of the latest step whose check was made, as it enters the queues."""
        self._latest_step = (0, 0)

    def after_outer_step(self, outer: int) -> Check | None:
        """Return the query check after an outer step, or None if it is not needed."""
        return self._check(outer, 0, step=outer) if self._outer_needed else None

    def after_inner_epoch(self, outer: int, inner: int) -> Check | None:
        """Return the query check after an inner epoch, or None if it is not needed."""
        return self._check(outer, inner + 1, step=inner) if self._inner_needed else None

    def real_images(self) -> int:
        """Return how many real images, of all classes, went through the network."""
        return self.count * self._images_per_check

    def _check(self, outer: int, inner: int, *, step: int) -> Check:
        """Return the check of a loop's `step` (0-based). The first is made at once, because the first full window needs it."""
        fills = step >= self._loops.window - 1
        weights = self._context.model.copy_weights() if self._keeps_copies and step > 0 and not fills else None
        check = Check(lambda: self._query(outer, inner, weights))
        if weights is None and (self._loops.query_carry or not fills):
            check.accuracy()  # now, before θ changes
        return check

    def _query(self, outer: int, inner: int, weights: Sequence[Tensor] | None) -> float:
        """Measure the accuracy with `weights`, or with the current θ if None."""
        context = self._context
        batch = context.sample("query", self._loops.query_per_class, self._iteration, outer, inner)
        with nullcontext() if weights is None else context.model.with_weights(weights):
            accuracy = query_accuracy(
                context.model, context.real, context.comm, batch, self._images_per_check, context.images_per_chunk
            )
        self.count += 1
        accuracy = self._average.update(accuracy)
        if (outer, inner) >= self._latest_step:
            self._latest_step, self.latest = (outer, inner), accuracy
        return accuracy
