"""Choose random real images of each class.

A worker needs the sizes of its own classes. The draw depends only on (seed, class), so workers need not communicate.
"""

from __future__ import annotations

from torch import Tensor

from cafe_core.algorithm.method import Report, SelectionMethod, repeated
from cafe_core.algorithm.sampling import choose, generator


class Random(SelectionMethod):
    """Choose images at random, without repetition if the class is large enough."""

    def select(self, report: Report) -> list[Tensor]:  # noqa: ARG002
        """Return the positions of the ipc images of each own class: (ipc,) int64 each."""
        seed, ipc, real = self.context.spec.seed, self.context.spec.ipc, self.context.real
        return [repeated(choose(generator(seed, "coreset random", k), real.count(k), ipc), ipc) for k in self.context.classes]
