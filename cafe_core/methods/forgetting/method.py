"""Forgetting: choose the images that a network learned and forgot most often in training, and those that it never learned.

Source: Toneva et al., ICLR 2019, https://arxiv.org/abs/1812.05159. An image is classified when it is in a minibatch, before
θ is updated with it.

A worker needs the record of its own classes' images, one bit per image and epoch. All workers use the same θ, which they train
together.
"""

from __future__ import annotations

from torch import Tensor

from cafe_core.algorithm.coresets import ForgettingCounts, most_forgotten
from cafe_core.algorithm.method import Report, SelectionMethod, repeated
from cafe_core.algorithm.selection import train_network


class Forgetting(SelectionMethod):
    """Choose the images with the most forgetting events."""

    def select(self, report: Report) -> list[Tensor]:
        """Return the positions of the ipc images of each own class: (ipc,) int64 each."""
        counts = [ForgettingCounts(self.context.real.count(k)) for k in self.context.classes]
        for epoch in train_network(self.context, report):
            for count, correct in zip(counts, epoch.correct, strict=True):
                count.update(correct)
        ipc = self.context.spec.ipc
        return [repeated(most_forgotten(count.counts(), ipc), ipc) for count in counts]
