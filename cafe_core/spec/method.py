"""Condensation methods and their hyper-parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag, model_validator

from cafe_core.spec.base import SpecModel, resolved_later

Preset = Literal["paper", "reference"]
CoresetName = Literal["herding", "k_center", "forgetting", "kmeans"]
DEFAULT_PRESET: Preset = "paper"


class MatchingMethod(SpecModel):
    """What the methods that learn synthetic images by gradient descent share."""

    batch_real: int = resolved_later(ge=1, le=65536)
    """N, real images per class and outer step (256). A smaller class uses all it has."""
    image_lr: float = resolved_later(gt=0, le=1e30)
    """Learning rate of the synthetic images. cafe and dc 0.1; dm 1."""
    image_momentum: float = resolved_later(ge=0, lt=1)
    """Momentum of the synthetic images (0.5)."""
    image_milestones: list[Annotated[int, Field(ge=0)]] = resolved_later(max_length=1000)
    """Iterations at which image_lr is halved. cafe: paper 1200, 1400, 1800; reference 1200, 1600, 1800. dc, dm: none."""
    init: Literal["noise", "real"] = resolved_later()
    """Synthetic images start as Gaussian noise (cafe, dc) or as real images (dm, and dc with `augment: dsa`)."""
    augment: Literal["none", "dsa"] = resolved_later()
    """`dsa`: differentiable Siamese augmentation, without flips for digits (CAFE+DSA, DSA). Default none; dm: dsa."""


class BilevelMethod(MatchingMethod):
    """What the methods share that train the network on S between steps of the images."""

    max_outer: int = resolved_later(ge=1, le=100_000)
    """Bound on outer steps per iteration.

    cafe paper and dc: DC's, by ipc (1→1, 10→10, 20→20, 30→30, 40→40, 50→50); reference: a generous 100."""
    max_inner: int = resolved_later(ge=0, le=100_000)
    """Bound on inner epochs per outer step.

    cafe paper and dc: DC's, by ipc (1→1, 10→50, 20→25, 30→20, 40→15, 50→10); reference: a generous 500."""
    batch_train: int = resolved_later(ge=1, le=65536)
    """Minibatch of the inner loop, over all classes (256)."""
    network_lr: float = resolved_later(gt=0, le=1e30)
    """Learning rate of the network in the inner loop (plain SGD, 0.01)."""


class CafeMethod(BilevelMethod):
    """CAFE (Wang et al., CVPR 2022): aligned features and discrimination. What is left out comes from the preset."""

    name: Literal["cafe"] = "cafe"
    """CAFE."""
    preset: Preset = DEFAULT_PRESET
    """`paper`: the paper's settings; `reference`: what the authors' released code does."""
    beta: float = resolved_later(ge=0, le=1e30)
    """β of Eq. 4, on the *mean* cross-entropy. paper 1; reference 0.01·K·N (that code sums instead of averaging)."""
    layer_weights: Annotated[list[Annotated[float, Field(ge=0, le=1e30)]], Field(min_length=1, max_length=64)] = resolved_later()
    """w_l, one per aligned map, early → late. paper all 1; reference 0.1 …, 1, 2."""
    layers: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=64)] = resolved_later()
    """Which feature maps are aligned, 0-based from the input (Tables 3 and 4, which count from the output). Default: all."""
    discrimination: bool = True
    """Whether the discrimination loss (Eq. 2–3) is part of the loss."""
    bilevel: Literal["dynamic", "fixed"] = "dynamic"
    """`dynamic`: Algorithm 1's stop rules; `fixed`: always max_outer and max_inner."""
    lambda_1: float = resolved_later(ge=0, le=1)
    """λ1: the outer loop ends when the last γ query accuracies span less.

    With 1280 query images the sampling noise of a window of 10 alone spans about 0.04: λ sits near it."""
    lambda_2: float = resolved_later(ge=0, le=1)
    """λ2: the inner loop ends when the last γ query accuracies span more. Near the noise too: see lambda_1."""
    gamma: int = resolved_later(ge=1, le=1000)
    """γ: length of both queues."""
    query_per_class: int = resolved_later(ge=1, le=65536)
    """Query images per class at each check. paper N; reference 128. Query checks dominate a run's time."""
    query_carry: bool = resolved_later()
    """Carry a_t = mean_t + a_{t-1}/K between checks, as the reference's never-reset accumulator does."""


class DcMethod(BilevelMethod):
    """DC, gradient matching (Zhao et al., ICLR 2021); with `augment: dsa` it is DSA (Zhao & Bilen, ICML 2021).

    It fails where a block normalises maps of 2×2 pixels: 8×8 images take a network of depth 2.
    """

    name: Literal["dc"]
    """Gradient matching."""


class DmMethod(MatchingMethod):
    """DM, distribution matching (Zhao & Bilen, WACV 2023): the mean embedding, under fresh networks that are never trained."""

    name: Literal["dm"]
    """Distribution matching."""


class RandomMethod(SpecModel):
    """Random real images of each class."""

    name: Literal["random"]
    """Random real images."""


class CoresetMethod(SpecModel):
    """A choice of real images, by what a network trained on all of them makes of them."""

    name: CoresetName
    """herding (Welling, ICML 2009), k_center (Sener & Savarese, ICLR 2018), forgetting (Toneva et al., ICLR 2019), or kmeans:
    the images nearest the centres of k-means (Cui et al., NeurIPS 2022)."""
    network_epochs: Annotated[int, Field(ge=0, le=100_000)] = 50
    """Epochs of training on all real images. 0: embed with a random network (not forgetting). Nothing is saved on the way: a job
    that is broken off trains from the start again."""
    network_lr: Annotated[float, Field(gt=0, le=1e30)] = 0.01
    """Learning rate of that training; a tenth after half the epochs. Momentum and weight decay as in evaluations."""
    batch_train: Annotated[int, Field(ge=1, le=65536)] = 256
    """Minibatch of that training, over all classes."""

    @model_validator(mode="after")
    def _forgets_something(self) -> CoresetMethod:
        if self.name == "forgetting" and self.network_epochs < 2:
            raise ValueError("method.network_epochs: forgetting counts changes from one epoch to the next; 2 at least")
        return self


def _method_tag(value: Any) -> str | None:
    """Which class of MethodSpec `value` is, sent or validated: cafe where it does not say."""
    name = value.get("name", "cafe") if isinstance(value, Mapping) else getattr(value, "name", None)
    return _METHOD_TAGS.get(name) if isinstance(name, str) else None


_METHOD_TAGS = {"cafe": "cafe", "dc": "dc", "dm": "dm", "random": "random"} | dict.fromkeys(
    ("herding", "k_center", "forgetting", "kmeans"), "coreset"
)


MethodSpec: TypeAlias = Annotated[
    Annotated[CafeMethod, Tag("cafe")]
    | Annotated[DcMethod, Tag("dc")]
    | Annotated[DmMethod, Tag("dm")]
    | Annotated[RandomMethod, Tag("random")]
    | Annotated[CoresetMethod, Tag("coreset")],
    Discriminator(
        _method_tag,
        custom_error_type="unknown_method",
        custom_error_message=f"method.name must be one of {', '.join(_METHOD_TAGS)}",
    ),
]
"""A way to make ipc images per class. Each is one module of `cafe_core.methods`."""
