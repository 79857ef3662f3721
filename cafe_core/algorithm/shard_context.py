"""One rank of a run: what a worker holds while it condenses, and what its method works with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cafe_core.algorithm.collectives import Comm
from cafe_core.algorithm.held_out import split
from cafe_core.algorithm.model import Budget, Model
from cafe_core.algorithm.real_images import RealImages
from cafe_core.algorithm.sharding import class_shard
from cafe_core.data.class_store import ClassStore
from cafe_core.spec.condense import CondenseSpec
from cafe_core.spec.dataset import DatasetInfo


@dataclass(frozen=True)
class ShardContext:
    """A rank owns the classes 𝒦_r: it alone holds their real images and learns their synthetic ones. θ is the same on all."""

    spec: CondenseSpec
    """Resolved."""
    info: DatasetInfo
    """The data's facts. class_counts are without the images that a validation holds out."""
    classes: range
    """𝒦_r."""
    real: RealImages
    """Real images of the own classes, without those that a validation holds out."""
    model: Model
    """θ."""
    comm: Comm
    """The way to the other ranks."""
    budget: Budget
    """What feature maps in flight may take."""

    @classmethod
    def of(cls, spec: CondenseSpec, store: ClassStore, comm: Comm, device: torch.device, budget: Budget) -> ShardContext:
        """The rank that `comm` says this is. spec: resolved."""
        kept = _kept(spec, store.info.class_counts)
        counts = store.info.class_counts if kept is None else [len(images) for images in kept]
        info = store.info.model_copy(update={"class_counts": counts})
        classes = class_shard(info.num_classes, comm.rank, comm.world)
        dtype = torch.float64 if spec.precision == "float64" else torch.float32
        real = RealImages(store, classes, device, dtype, None if kept is None else {k: kept[k] for k in classes})
        return cls(spec, info, classes, real, Model(spec, info, device, dtype), comm, budget)

    @property
    def images_per_chunk(self) -> int:
        """Images to take through the network at once, without a graph."""
        return self.budget.images_per_chunk(self.model)

    @property
    def images_per_graph(self) -> int:
        """Images to take through the network at once, with a graph to the weights or to the images."""
        return self.budget.classes_per_chunk(self.model, 1)

    @property
    def images_per_double_graph(self) -> int:
        """Images to take through the network at once, with a graph through the gradient of the weights to the images."""
        return self.budget.images_per_double_graph(self.model)


def _kept(spec: CondenseSpec, class_counts: Sequence[int]) -> list[Tensor] | None:
    """For each class the images that no validation holds out, None for all. Every rank needs all classes' numbers of them."""
    if spec.validation is None:
        return None
    return [split(spec.seed, k, count, spec.validation.fraction)[0] for k, count in enumerate(class_counts)]
