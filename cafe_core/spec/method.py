"""Define the parts of every method's spec: fields, defaults, published iterations, memory.

A method is a folder of :mod:`cafe_core.methods`; its `spec.py` subclasses one of these classes::

    MethodSpec
    ├── LearningMethodSpec          learns images by gradient descent on its own loss
    │   ├── BilevelMethodSpec       trains the network on the images between their updates
    │   └── PoolMethodSpec          uses networks trained on all real images (`cafe_core.spec.pool_method`)
    └── SelectionMethodSpec         chooses real images
        └── NetworkSelectionSpec    chooses them with a network trained on all real images

No method takes its settings from another: :mod:`cafe_core.methods.registry` rejects an incomplete class. This module does not
import torch, because the API validates and estimates with these classes.

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
    """The values that a method's defaults may depend on."""

    ipc: int
    num_classes: int
    network: NetworkSpec
    """Resolved."""
    shape: Shape
    """(C, H, W) of the images."""


@dataclass(frozen=True)
class Sizes:
    """The sizes that determine a method's memory and communication, on the worker with the most classes."""

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
    """The same if the gradient of the weights is differentiated."""
    itemsize: int
    """Bytes per number."""

    @property
    def feature_dim(self) -> int:
        """Return D."""
        return prod(self.maps[-1])

    @property
    def map_numbers(self) -> int:
        """Return the number of elements of all feature maps of one image."""
        return sum(prod(shape) for shape in self.maps)


class MethodSpec(SpecModel, ABC):
    """The base class of the specs of all methods, which make ipc images per class.

    A subclass declares `name` as a `Literal` with the name of its folder.
    """

    if TYPE_CHECKING:
        name: str
        """Each subclass narrows it to a Literal."""
    published_iterations: ClassVar[int]
    """Iterations in the method's own paper, the default of `iterations`. 0 for a method that chooses real images."""
    couples_classes: ClassVar[bool]
    """Whether the loss of one class depends on the images of another, so that workers communicate in each outer step."""
    can_be_extended: ClassVar[bool] = False
    """True if extend jobs support the method. An extend job condenses some classes of a set and keeps the images of the others.
    The images of a class must therefore not depend on another class, neither directly nor through a network trained on both."""

    @abstractmethod
    def resolved(self, context: ResolutionContext) -> Self:
        """Return this spec with every field filled in. Raises ValueError whose message starts with `method.FIELD: `."""

    @abstractmethod
    def statistics_bytes(self, sizes: Sizes) -> int:
        """Return the bytes that the method holds in addition to the images, the network and its feature maps."""

    @abstractmethod
    def graph_bytes(self, sizes: Sizes) -> int:
        """Return the bytes of the feature maps and graphs that are held at the same time with the smallest chunks."""

    def numbers_per_outer_step(self, sizes: Sizes) -> int:  # noqa: ARG002
        """Return how many numbers a worker sends per outer step, apart from the loss.

        A method whose `couples_classes` is True overrides this.
        """
        return 0

    def trained_images(self, synthetic: int) -> int:  # noqa: ARG002
        """Return the number of images per minibatch when the network is trained; 0 if it is not. synthetic: images in S."""
        return 0

    @property
    def decode_factor(self) -> int:
        """Return f, if a stored image holds f × f training images; otherwise 1."""
        return 1

    def filled(self, **values: Any) -> Self:
        """Return this spec, with `values` for the fields that were left out."""
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
    """Initial synthetic images: `noise` is Gaussian noise, `real` real images, in multi-formation sets one for each tile."""
    augment: Literal["none", "dsa", "color_crop_cutout"] = resolved_later()
    """`dsa`: differentiable Siamese augmentation, without flips for digits (CAFE+DSA, DSA). `color_crop_cutout`: only these three
    of its operations (IDC, DANCE)."""

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

    def trained_images(self, synthetic: int) -> int:
        """Return the number of images per minibatch of the inner loop."""
        return min(self.batch_train, synthetic)


QUERY_COPIES_BYTES = 128 << 20
"""Bound on the copies of θ that query checks keep in order to be made later."""


def query_copies_bytes(window: int, carry: bool, parameters: int, itemsize: int) -> int:
    """Return the bytes of the copies of θ that query checks keep.

    Both loops keep one for every step of a window except the first and the last. Return 0 if every check is made at once, because
    of `carry` or because the copies would exceed QUERY_COPIES_BYTES.
    """
    copies = 2 * max(0, window - 2) * parameters * itemsize
    return copies if copies <= QUERY_COPIES_BYTES and not carry else 0


class SelectionMethodSpec(MethodSpec):
    """The fields of all methods that choose real images. They have no iterations, and choose each class independently."""

    published_iterations: ClassVar[int] = 0
    couples_classes: ClassVar[bool] = False

    def resolved(self, context: ResolutionContext) -> Self:  # noqa: ARG002
        """Return this spec unchanged, because no default depends on the context."""
        return self

    def graph_bytes(self, sizes: Sizes) -> int:
        """Return the bytes of one image's graph: the network may be trained on real images."""
        return sizes.graph_factor * sizes.map_numbers * sizes.itemsize


class NetworkSelectionSpec(SelectionMethodSpec):
    """The fields of all methods that choose real images with a network trained on all of them."""

    name: str
    network_epochs: Annotated[int, Field(ge=0, le=100_000)] = 50
    """Epochs of training on all real images. 0: embed with an untrained network (not for forgetting). No checkpoints are written
    during this training, so an interrupted job starts it again."""
    network_lr: Annotated[float, Field(gt=0, le=1e30)] = 0.01
    """Learning rate of this training, divided by 10 after half the epochs. Momentum and weight decay are as in evaluations."""
    batch_train: Annotated[int, Field(ge=1, le=65536)] = 256
    """Minibatch of this training, over all classes."""
