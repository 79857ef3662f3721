"""What the spec of every method states: its fields, its defaults, its published iterations, its memory.

A method is a folder of :mod:`cafe_core.methods`; its `spec.py` subclasses one of these classes::

    MethodSpec
    ├── LearningMethodSpec          images learned by gradient descent on a loss of the method
    │   └── BilevelMethodSpec       between two steps of the images, the network is trained on them
    └── SelectionMethodSpec         real images, chosen
        └── NetworkSelectionSpec    chosen by what a network trained on all real images makes of them

Nothing a method needs has a default that another method set: :mod:`cafe_core.methods.registry` refuses a class that leaves a
part out. No torch here: the API validates and estimates with these classes.

    K  classes    N  real images per class and outer step    ipc  synthetic images per class    D  width of the last feature map
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from cafe_core.spec.base import SpecModel, resolved_later
from cafe_core.spec.network import NetworkSpec
from cafe_core.spec.network_sizes import Shape


@dataclass(frozen=True)
class ResolutionContext:
    """What the defaults of a method may depend on."""

    ipc: int
    num_classes: int
    network: NetworkSpec
    """Resolved."""


@dataclass(frozen=True)
class Sizes:
    """The sizes that a method's memory and communication follow from, on the worker with the most classes."""

    ipc: int
    num_classes: int
    """K, of all workers together."""
    classes: int
    """Classes of this worker."""
    largest_class: int
    """Real images of the largest class."""
    maps: list[Shape]
    """(C, H, W) of each feature map that can be aligned; the last one, flattened, has width D."""
    parameters: int
    """Weights of the network."""
    graph_factor: int
    """Memory of a graph for the backward pass, in units of the feature maps."""
    double_graph_factor: int
    """The same where the gradient of the weights is differentiated."""
    itemsize: int
    """Bytes per number."""

    @property
    def feature_dim(self) -> int:
        """D."""
        return prod(self.maps[-1])

    @property
    def map_numbers(self) -> int:
        """Numbers of all feature maps of one image."""
        return sum(prod(shape) for shape in self.maps)


class MethodSpec(SpecModel, ABC):
    """A method: ipc images per class from the real images.

    A subclass declares `name` as a `Literal` with the name of its folder.
    """

    if TYPE_CHECKING:
        name: str
        """Each subclass narrows it to a Literal."""
    published_iterations: ClassVar[int]
    """Iterations in the method's own paper, the default of `iterations`. 0 for a method that chooses real images."""
    couples_classes: ClassVar[bool]
    """Whether the loss of one class depends on the images of another, so that workers communicate in each outer step."""

    @abstractmethod
    def resolved(self, context: ResolutionContext) -> Self:
        """Return this spec with every field filled in. Raise ValueError with a message that starts with `method.FIELD: `."""

    @abstractmethod
    def statistics_bytes(self, sizes: Sizes) -> int:
        """Return the bytes of what the method holds besides the images, the network and its feature maps."""

    @abstractmethod
    def graph_bytes(self, sizes: Sizes) -> int:
        """Return the bytes of the feature maps and graphs that must be held at once, however small the chunks are made."""

    def numbers_per_outer_step(self, sizes: Sizes) -> int:  # noqa: ARG002
        """Return how many numbers a worker sends per outer step, apart from the loss.

        A method whose `couples_classes` is True overrides this.
        """
        return 0

    @property
    def trained_images(self) -> int:
        """Images per minibatch when the network is trained; 0 if it is not."""
        return 0

    def filled(self, **values: Any) -> Self:
        """Return this spec with those of `values` whose fields were left out."""
        return self.model_copy(update={name: value for name, value in values.items() if getattr(self, name) is None})


class LearningMethodSpec(MethodSpec):
    """The fields of all methods that learn synthetic images by gradient descent."""

    batch_real: int = resolved_later(ge=1, le=65536)
    """N, real images per class and outer step. A smaller class uses all of its images."""
    image_lr: float = resolved_later(gt=0, le=1e30)
    """Learning rate of the synthetic images."""
    image_momentum: float = resolved_later(ge=0, lt=1)
    """Momentum of the synthetic images."""
    image_milestones: list[Annotated[int, Field(ge=0)]] = resolved_later(max_length=1000)
    """Iterations at which image_lr is halved."""
    init: Literal["noise", "real"] = resolved_later()
    """Whether the synthetic images start as Gaussian noise or as real images."""
    augment: Literal["none", "dsa"] = resolved_later()
    """`dsa`: differentiable Siamese augmentation, without flips for digits (CAFE+DSA, DSA)."""

    def image_lr_at(self, iteration: int) -> float:
        """Return the learning rate of the images in `iteration` (0-based): halved at each milestone reached."""
        return self.image_lr * math.pow(0.5, sum(iteration >= milestone for milestone in self.image_milestones))


class BilevelMethodSpec(LearningMethodSpec):
    """The fields of all methods that train the network on S between updates of the images."""

    max_outer: int = resolved_later(ge=1, le=100_000)
    """Bound on outer steps per iteration."""
    max_inner: int = resolved_later(ge=0, le=100_000)
    """Bound on inner epochs per outer step."""
    batch_train: int = resolved_later(ge=1, le=65536)
    """Minibatch of the inner loop, over all classes."""
    network_lr: float = resolved_later(gt=0, le=1e30)
    """Learning rate of the network in the inner loop (plain SGD)."""

    @property
    def trained_images(self) -> int:
        """The inner loop's minibatch."""
        return self.batch_train


class SelectionMethodSpec(MethodSpec):
    """The fields of all methods that choose real images. They have no iterations, and choosing is local to a class."""

    published_iterations: ClassVar[int] = 0
    couples_classes: ClassVar[bool] = False

    def resolved(self, context: ResolutionContext) -> Self:  # noqa: ARG002
        """Return this spec: no default depends on anything."""
        return self

    def graph_bytes(self, sizes: Sizes) -> int:
        """Return the bytes of one image's graph: the network may be trained on real images."""
        return sizes.graph_factor * sizes.map_numbers * sizes.itemsize


class NetworkSelectionSpec(SelectionMethodSpec):
    """A choice of real images by a network that is trained on all of them."""

    name: str
    network_epochs: Annotated[int, Field(ge=0, le=100_000)] = 50
    """Epochs of training on all real images. 0: embed with an untrained network (not for forgetting). No checkpoints are written
    during this training, so an interrupted job starts it again."""
    network_lr: Annotated[float, Field(gt=0, le=1e30)] = 0.01
    """Learning rate of this training, divided by 10 after half the epochs. Momentum and weight decay are as in evaluations."""
    batch_train: Annotated[int, Field(ge=1, le=65536)] = 256
    """Minibatch of this training, over all classes."""
