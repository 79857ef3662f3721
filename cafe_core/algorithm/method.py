"""Define the interface between :mod:`cafe_core.algorithm.condense` and the methods in `cafe_core.methods`.

A `method.py` defines one subclass::

    Method
    ├── LearningMethod      learns S by gradient descent on its own loss
    └── SelectionMethod     chooses real images

Every worker has an instance, which works on the worker's classes 𝒦_r and communicates with other workers only through
`self.context.comm`. Every random draw uses a new generator, seeded by the draw's address
(:mod:`cafe_core.algorithm.sampling`). Therefore any number of workers gives the same images, and a resumed run gives the same
bytes.

A new method overrides only what differs:

    loops             how many steps of S and epochs of θ an iteration takes
    gradient          the loss and ∂loss/∂S
    prepare           artifacts made before the loop and cached by content, such as a pool of networks trained on real images
    renew_network     the θ of an iteration: a fresh one, or one from a pool of networks that are never trained on S
    initial_images    the initial S, for example images composed of several smaller ones
    update_images     a whole outer step, for another optimizer, several losses, or labels that are learned too
    state, load_state what checkpoints must hold besides S and its momentum: moments, a learned step size, soft labels

    S  synthetic images     θ  network     T_k  real images of class k in a step     k  own classes, in shapes
"""

from __future__ import annotations

import importlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from cafe_core.algorithm.artifact_cache import ArtifactCache
from cafe_core.algorithm.augment import Draws
from cafe_core.algorithm.real_images import BatchIndices
from cafe_core.algorithm.sampling import choose, generator
from cafe_core.algorithm.shard_context import ShardContext
from cafe_core.algorithm.synthetic_shard import SyntheticShard
from cafe_core.errors import CheckpointError, NonFiniteLossError
from cafe_core.methods.registry import METHODS, MethodDefinitionError, only_subclass
from cafe_core.spec.method import BilevelMethodSpec, LearningMethodSpec, MethodSpec

Losses: TypeAlias = dict[str, Tensor]
"""The losses of a step before its update: `loss`, which is minimised, and its parts if it has any. Scalars, over all workers."""

Report = Callable[..., None]
"""report(type, **data): log an event. Only rank 0's reports are kept."""

_Spec = TypeVar("_Spec", bound=MethodSpec)


@dataclass(frozen=True)
class Loops:
    """The number of steps of an iteration, which uses one network. Default: one step of the images."""

    max_outer: int = 1
    """Bound on outer steps: S ← S − step."""
    max_inner: int = 0
    """Bound on inner epochs after each outer step: θ ← SGD on S. Above 0 the spec must be a `BilevelMethodSpec`."""
    window: int = 0
    """γ, the query accuracies that the stop rules compare. 0: the loops end at their bounds, and no accuracy is queried."""
    lambda_1: float = 0.0
    """The outer loop has converged when the window spans less."""
    lambda_2: float = 0.0
    """The network has moved enough when the window spans more."""
    query_per_class: int = 0
    """Query images per class at each check."""
    query_carry: bool = False
    """See :class:`cafe_core.algorithm.bilevel.QueryAverage`."""


@dataclass
class MethodState:
    """The named tensors that a checkpoint holds for a method, besides S and its momentum."""

    per_class: dict[str, Tensor] = field(default_factory=dict)
    """Tensors (k·m, …) with m rows for each own class, in order. They are gathered, so any number of workers can resume."""
    shared: dict[str, Tensor] = field(default_factory=dict)
    """Equal on all workers."""


class Method(ABC):
    """The base class of all methods, which make ipc images of each class."""

    def __init__(self, context: ShardContext) -> None:
        """context: the state of this worker. `context.spec` is resolved."""
        self.context = context

    def prepare(self, cache: ArtifactCache, report: Report) -> None:  # noqa: B027 - most methods need nothing
        """Make the artifacts needed before the first iteration, after :meth:`load_state`. All workers call it together."""

    @abstractmethod
    def initial_images(self, report: Report) -> Tensor:
        """Return S of iteration 0 for the own classes: (k·ipc, C, H, W). All workers call it together."""

    def state(self) -> MethodState:
        """Return what a checkpoint must hold for this method."""
        return MethodState()

    def load_state(self, state: MethodState) -> None:
        """Load the state from a checkpoint, as :meth:`state` returned it on any number of workers."""
        if state.per_class or state.shared:
            names = ", ".join([*state.per_class, *state.shared])
            raise CheckpointError(f"the checkpoint holds {names}, which {type(self).__name__} does not load")

    def spec_as(self, type_: type[_Spec]) -> _Spec:
        spec = self.context.spec.method
        assert isinstance(spec, type_), f"{type(self).__name__} got the spec of another method: {spec!r}"
        return spec


class LearningMethod(Method):
    """A method that learns S by gradient descent on its own loss."""

    loops: Loops = Loops()

    def __init__(self, context: ShardContext) -> None:
        super().__init__(context)
        assert isinstance(context.spec.method, LearningMethodSpec)
        self.learning = context.spec.method
        """The fields that learning methods share."""

    @abstractmethod
    def gradient(self, shard: SyntheticShard, batch: BatchIndices, draws: Draws | None) -> tuple[Tensor, Losses]:
        """Return ∂loss/∂S of the own classes, (k·ipc, C, H, W), and the losses, without changing any state.

        batch: the real images T_k of each own class. draws: one augmentation for each own class, shared by all its real and
        synthetic images (Siamese, DSA), or None. θ is `self.context.model`. All workers call it together.
        """

    def renew_network(self, iteration: int) -> None:
        """Set θ to the network of `iteration`, the same on all workers. Default: a fresh random network."""
        self.context.model.renew(self.context.spec.seed, iteration)

    def update_images(self, shard: SyntheticShard, iteration: int, outer: int) -> Losses:
        """Take one outer step, S ← S − η v with v ← μ v + ∂loss/∂S, and return its losses. All workers call it together.

        Raises NonFiniteLossError, on every worker and before S is changed, if the loss is not finite.
        """
        batch = self.context.sample("real", self.learning.batch_real, iteration, outer)
        draws = self.class_draws("augment_class", iteration, outer)
        gradient, losses = self.gradient(shard, batch, draws)
        self.check_finite(losses, iteration, outer)
        shard.step(gradient, lr=self.learning.image_lr_at(iteration), momentum=self.learning.image_momentum)
        return losses

    def class_draws(self, purpose: str, *counters: int) -> Draws | None:
        """Draw one augmentation for each own class, or return None without `augment`. purpose, counters: identify the draw."""
        strategy, context = self.learning.augment, self.context
        if strategy == "none":
            return None
        random = generator(context.spec.seed, purpose, *counters)
        return context.draw_augmentations(strategy, context.info.num_classes, random)[torch.tensor(list(context.classes))]

    def check_finite(self, losses: Losses, iteration: int, outer: int) -> None:
        """Raise NonFiniteLossError if the loss is infinite or not a number."""
        loss = float(losses["loss"])
        if not math.isfinite(loss):
            parts = "".join(f", {name} {float(value):.4g}" for name, value in losses.items() if name != "loss")
            raise NonFiniteLossError(
                f"the loss became {loss}{parts} in iteration {iteration + 1}, outer step {outer + 1}; "
                f"{divergence_advice(self.learning)}"
            )

    def initial_images(self, report: Report) -> Tensor:  # noqa: ARG002
        """Return noise or real images of the own classes, depending on `init`: (k·ipc, C, H, W)."""
        return torch.cat([self._initial_images_of(k) for k in self.context.classes])

    def _initial_images_of(self, k: int) -> Tensor:
        ipc, real, draws = self.context.spec.ipc, self.context.real, generator(self.context.spec.seed, "init", k)
        if self.learning.init == "real":
            return real.batch(k, repeated(choose(draws, real.count(k), ipc), ipc))
        return torch.randn(ipc, *self.context.info.shape, generator=draws).to(real.device, real.dtype)

    def real_images_per_step(self) -> int:
        """Return how many real images of all learned classes go through the network in an outer step."""
        counts = self.context.info.class_counts
        return sum(min(self.learning.batch_real, counts[k]) for k in self.context.learned)


class SelectionMethod(Method):
    """A method that chooses real images. It has no iterations, and choosing is local to a class."""

    @abstractmethod
    def select(self, report: Report) -> list[Tensor]:
        """Return the positions of the ipc images of each own class: (ipc,) int64 each. All workers call it together.

        Raises NonFiniteLossError, on every worker, if the training of the method's network diverges.
        """

    def initial_images(self, report: Report) -> Tensor:
        """Return the chosen real images: (k·ipc, C, H, W)."""
        real = self.context.real
        return torch.cat([real.batch(k, indices) for k, indices in zip(self.context.classes, self.select(report), strict=True)])


def make_method(context: ShardContext) -> Method:
    """Return the method that `context.spec` names. Raises MethodDefinitionError if its `method.py` is incomplete."""
    return load_method(context.spec.method.name)(context)


def load_method(name: str) -> type[Method]:
    """Import the `method.py` of a registered method and return its class. Raises MethodDefinitionError."""
    registered = METHODS[name]
    module = importlib.import_module(f"{registered.package}.method")
    found = only_subclass(module, Method)  # type: ignore[type-abstract]
    kind: type[Method] = LearningMethod if issubclass(registered.spec, LearningMethodSpec) else SelectionMethod
    if not issubclass(found, kind):
        raise MethodDefinitionError(
            f"{module.__name__}.{found.__name__} must be a {kind.__name__}, "
            f"because {registered.spec.__name__} is a {kind.__name__}Spec"
        )
    return found


def repeated(chosen: Tensor, ipc: int) -> Tensor:
    """Return (ipc,) positions: `chosen`, repeated from the start if a class has fewer than ipc images."""
    return chosen[torch.arange(ipc) % len(chosen)]


def divergence_advice(spec: MethodSpec) -> str:
    """Return advice for a user whose run produced numbers that are not finite."""
    fields = "method.image_lr or method.network_lr" if isinstance(spec, BilevelMethodSpec) else "method.image_lr"
    return f"the last checkpoint is intact. A smaller {fields} usually helps"


def ignore_events(_type: str, **_data: Any) -> None:
    """Ignore an event. All ranks except 0 use this as their `report`."""
