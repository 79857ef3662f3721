"""Condensation methods: each is one module here, named as in `method.name`, and found by that name.

A module says what its method needs of a class shard and what it must agree on across shards, and defines one of two things:

* ``class Method(Matching)``, for a method that *learns* synthetic images (its spec is a `MatchingMethod`): the gradient of its
  loss in this rank's synthetic images, and how many steps an iteration takes. :mod:`cafe_core.algorithm.condense` does the rest.
* ``def select(rank: ShardContext, report) -> list[Tensor]``, for a method that *chooses* real images: of each own class the
  positions of ipc images. See :mod:`cafe_core.algorithm.selection`.

All that a method may do together with the other ranks goes through `ShardContext.comm`. It holds no state between steps and draws
nothing by itself: so any number of shards gives the same images, and a checkpoint is S, its momentum and the iteration.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import TypeAlias

from torch import Tensor

from cafe_core.algorithm.augment import Draws
from cafe_core.algorithm.real_images import BatchIndices
from cafe_core.algorithm.shard_context import ShardContext
from cafe_core.algorithm.synthetic_shard import SyntheticShard

Losses: TypeAlias = dict[str, Tensor]
"""What a step's `iteration` event tells: `loss`, which is minimised, and its parts where it has any. Scalars, over all ranks,
before the update."""


@dataclass(frozen=True)
class Loops:
    """What an iteration, with its fresh network, does: by default one step of the images."""

    max_outer: int = 1
    """Most outer steps: S ← S − step."""
    max_inner: int = 0
    """Most inner epochs between two outer steps: θ ← SGD on S. The method's spec is a `BilevelMethod` where it is not 0."""
    window: int = 0
    """γ, query accuracies that the stop rules look at. 0: the loops only end at their bounds, and nothing is queried."""
    lambda_1: float = 0.0
    """The outer loop has converged when the window spans less."""
    lambda_2: float = 0.0
    """The network has moved enough when the window spans more."""
    query_per_class: int = 0
    """Query images per class at each check."""
    query_carry: bool = False
    """See :class:`cafe_core.algorithm.bilevel.QueryAverage`."""


class Matching(ABC):
    """A method that learns synthetic images by gradient descent on a loss of its own."""

    loops: Loops

    @abstractmethod
    def __init__(self, rank: ShardContext) -> None: ...

    @abstractmethod
    def gradient(self, shard: SyntheticShard, rows: BatchIndices, draws: Draws | None) -> tuple[Tensor, Losses]:
        """∂loss/∂S for this rank's images, (k·ipc, C, H, W), and the losses. Nothing is changed.

        rows: the real images T_k of each own class. draws: one augmentation for each own class, to be given to all its real and
        synthetic images (Siamese, DSA), or None. θ is `rank.model`. All ranks call it together.
        """


def make_matching(rank: ShardContext) -> Matching:
    """The method of `rank.spec`, whose spec is a `MatchingMethod`."""
    method: type[Matching] = _module(rank.spec.method.name).Method
    return method(rank)


def select(rank: ShardContext, report: Callable[..., None]) -> list[Tensor]:
    """The choice of the method of `rank.spec`, which chooses real images: of each own class the positions of ipc, (ipc,) int64.

    report(type, **data) is called on all ranks; that of rank 0 is to be heard.
    Raises NonFiniteLossError, on every rank, when the training of the method's network diverges.
    """
    chosen: list[Tensor] = _module(rank.spec.method.name).select(rank, report)
    return chosen


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")
