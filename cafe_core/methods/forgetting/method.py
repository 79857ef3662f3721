"""Forgetting: the images that training a network learnt and lost again most often, and those that it never learnt.

Source: Toneva et al., ICLR 2019, https://arxiv.org/abs/1812.05159. An image is judged when it is in a minibatch, before θ
learns from it.

A rank needs the record of its own classes' images, a bit each and epoch. Ranks agree on θ, which they train together.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from cafe_core.algorithm.coresets import ForgettingCounts, most_forgotten
from cafe_core.algorithm.selection import repeated, train_network
from cafe_core.algorithm.shard_context import ShardContext


def select(rank: ShardContext, report: Callable[..., None]) -> list[Tensor]:
    """Of each own class the positions of its ipc images: (ipc,) int64. Raises NonFiniteLossError when training θ diverges."""
    tallies = [ForgettingCounts(rank.real.count(k)) for k in rank.classes]
    for epoch in train_network(rank, report):
        for tally, correct in zip(tallies, epoch.correct, strict=True):
            tally.update(correct)
    ipc = rank.spec.ipc
    return [repeated(most_forgotten(tally.counts(), ipc), ipc) for tally in tallies]
