"""Hold the state of one worker of a run, for use by its method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cafe_core.algorithm import augment
from cafe_core.algorithm.collectives import Comm
from cafe_core.algorithm.extension import Extension
from cafe_core.algorithm.held_out import split
from cafe_core.algorithm.model import Budget, Model
from cafe_core.algorithm.real_images import BatchIndices, RealImages
from cafe_core.algorithm.sampling import choose, generator
from cafe_core.algorithm.sharding import class_shard
from cafe_core.data.class_store import ClassStore
from cafe_core.spec.condense import CondenseSpec
from cafe_core.spec.dataset import DatasetInfo
from cafe_core.spec.evaluation import Augmentation


@dataclass(frozen=True)
class ShardContext:
    """The state of a worker that owns the classes 𝒦_r.

    Only this worker holds their real images and learns their synthetic images. θ is the same on all workers.
    """

    spec: CondenseSpec
    """Resolved."""
    info: DatasetInfo
    """The facts about the dataset. class_counts do not include the images that a validation holds out."""
    dataset_key: str
    """Identifies the content of the dataset in the keys of cached artifacts."""
    classes: Sequence[int]
    """𝒦_r, increasing. Without an extension they are consecutive."""
    real: RealImages
    """Real images of the own classes, without those that a validation holds out."""
    all_real: RealImages
    """The same of all classes, read from the store when a method needs an image of another worker's class (CutMix)."""
    model: Model
    """θ."""
    comm: Comm
    """Collectives with the other workers."""
    budget: Budget
    """Bounds on the feature maps in flight."""
    extension: Extension | None = None
    """The classes to learn, if not all."""

    @classmethod
    def of(
        cls,
        spec: CondenseSpec,
        store: ClassStore,
        comm: Comm,
        device: torch.device,
        budget: Budget,
        extension: Extension | None = None,
    ) -> ShardContext:
        """Return the context of the rank of `comm`. spec: resolved. extension: None to learn all classes."""
        if extension is not None:
            store = ClassStore(store.path, store.info.model_copy(update={"mean": extension.mean, "std": extension.std}))
        kept = _kept(spec, store.info.class_counts)
        counts = store.info.class_counts if kept is None else [len(images) for images in kept]
        info = store.info.model_copy(update={"class_counts": counts})
        classes: Sequence[int] = class_shard(info.num_classes, comm.rank, comm.world)
        if extension is not None:
            classes = [extension.learned[j] for j in class_shard(len(extension.learned), comm.rank, comm.world)]
        dtype = torch.float64 if spec.precision == "float64" else torch.float32
        kept_images = None if kept is None else dict(enumerate(kept))
        real = RealImages(store, classes, device, dtype, kept_images, resident_bytes=budget.resident_bytes)
        all_real = RealImages(store, range(info.num_classes), device, dtype, kept_images)
        model = Model(spec, info, device, dtype)
        return cls(spec, info, store.path.name, classes, real, all_real, model, comm, budget, extension)

    @property
    def learned(self) -> Sequence[int]:
        """Return the classes that all workers learn, increasing: all classes without an extension."""
        return range(self.info.num_classes) if self.extension is None else self.extension.learned

    @property
    def training_classes(self) -> range:
        """Return the classes whose real images this worker passes through a network that all workers train together."""
        return class_shard(self.info.num_classes, self.comm.rank, self.comm.world)

    def sample(self, purpose: str, count: int, *counters: int) -> BatchIndices:
        """Draw `count` real images of each own class, or all images of a class that has fewer.

        purpose, counters: identify the draw, for example ("real", iteration, outer step).
        """
        drawn = [choose(generator(self.spec.seed, purpose, *counters, k), self.real.count(k), count) for k in self.classes]
        return BatchIndices(list(self.classes), drawn)

    def draw_augmentations(self, strategy: Augmentation, count: int, random: torch.Generator) -> augment.Draws:
        """Draw `count` augmentations for images of this dataset."""
        draws = augment.draw(strategy, count, self.info.shape, self.info.is_digits, random)
        return draws.to(self.real.device, self.real.dtype)

    @property
    def images_per_chunk(self) -> int:
        """Return how many images to pass through the network at once without a graph."""
        return self.budget.images_per_chunk(self.model)

    @property
    def images_per_graph(self) -> int:
        """Return how many images to pass through the network at once with a graph to the weights or to the images."""
        return self.budget.classes_per_chunk(self.model, 1)

    @property
    def images_per_double_graph(self) -> int:
        """Return how many images to pass through the network at once with a graph through the weights' gradient to the images."""
        return self.budget.images_per_double_graph(self.model)


def _kept(spec: CondenseSpec, class_counts: Sequence[int]) -> list[Tensor] | None:
    """Return the images of every class that are not held out for validation, or None if none are held out.

    Every worker needs the counts of all classes.
    """
    if spec.validation is None:
        return None
    return [split(spec.seed, k, count, spec.validation.fraction)[0] for k, count in enumerate(class_counts)]
