"""Train the network θ on S, and query its accuracy: the steps of Algorithm 1 that concern θ."""

from __future__ import annotations

import torch

from cafe_core.algorithm.bilevel import QueryAverage, needed_queries
from cafe_core.algorithm.inner_loop import query_accuracy, train_epoch
from cafe_core.algorithm.method import Loops
from cafe_core.algorithm.sampling import generator
from cafe_core.algorithm.shard_context import ShardContext
from cafe_core.algorithm.synthetic_shard import SyntheticShard
from cafe_core.spec.method import BilevelMethodSpec


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
    """The query checks of one iteration. Checks that cannot change the run are skipped."""

    def __init__(self, context: ShardContext, loops: Loops, iteration: int) -> None:
        self._context = context
        self._per_class = loops.query_per_class
        self._iteration = iteration
        self._average = QueryAverage(context.info.num_classes, loops.query_carry)
        self._outer_needed, self._inner_needed = needed_queries(loops.max_outer, loops.max_inner, loops.window, loops.query_carry)
        self.count = 0
        """Number of checks so far."""
        self.latest: float | None = None
        """The accuracy of the latest check, as it enters the queues."""

    def after_outer_step(self, outer: int) -> float | None:
        """Return the query accuracy after an outer step, or None if it is not needed."""
        return self._query(outer, 0) if self._outer_needed else None

    def after_inner_epoch(self, outer: int, inner: int) -> float | None:
        """Return the query accuracy after an inner epoch, or None if it is not needed."""
        return self._query(outer, inner + 1) if self._inner_needed else None

    def real_images(self) -> int:
        """Return how many real images, of all classes, went through the network."""
        return self.count * sum(min(self._per_class, n) for n in self._context.info.class_counts)

    def _query(self, outer: int, inner: int) -> float:
        context = self._context
        batch = context.sample("query", self._per_class, self._iteration, outer, inner)
        accuracy = query_accuracy(context.model, context.real, context.comm, batch, context.images_per_chunk)
        self.count += 1
        self.latest = self._average.update(accuracy)
        return self.latest
