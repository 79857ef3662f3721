"""Define evaluations and validations: the networks to train on a set, and how to train them."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, Discriminator, Field, Tag

from cafe_core.spec.base import SpecModel, all_different, resolved_later
from cafe_core.spec.network import NetworkSpec

Augmentation = Literal[
    "none",
    "dsa",
    "dsa_without_cutout",
    "color_crop_cutout",
    "crop_scale_rotate",
    "autoaugment",
    "randaugment",
    "crop_flip_cutout",
]
Baseline = Literal["random", "whole"]
_OneOrSeveral: TypeAlias = Annotated[
    Annotated[Augmentation, Tag("one")]
    | Annotated[list[Augmentation], Field(min_length=1, max_length=8), AfterValidator(all_different), Tag("several")],
    Discriminator(lambda value: "several" if isinstance(value, list) else "one"),
]


class EvaluationSpec(SpecModel):
    """Train fresh networks on the synthetic set; report the accuracy of the *last* epoch on the test set.

    SGD lr 0.01, momentum 0.9, weight decay 5e-4, batch 256, ×0.1 at half the epochs (both presets).
    """

    networks: Annotated[list[NetworkSpec], Field(min_length=1, max_length=64)] = [NetworkSpec()]
    """The kinds of network to train."""
    repeats: Annotated[int, Field(ge=1, le=10_000)] = 20
    """Fresh networks per kind, augmentation and source of images; at most 100000 networks in total."""
    epochs: Annotated[int, Field(ge=1, le=100_000)] = 300
    """Epochs per network. paper 300; reference 600, or 1000 with augmentation."""
    augment: _OneOrSeveral = "none"
    """Augmentation while training, or several to compare (the first gives the main result). The reference
    uses `crop_scale_rotate` for MNIST; autoaugment, randaugment and crop_flip_cutout are those of DC-BENCH's table."""
    baselines: Annotated[list[Baseline], Field(max_length=2), AfterValidator(all_different)] = []
    """Also train the same networks on `random` (equally many random real images per class) or on `whole` (all training images).
    With both, the result includes DD-Ranking's scores."""
    whole_epochs: int = resolved_later(ge=1, le=100_000)
    """Epochs per network on `whole`. Default: epochs."""

    @property
    def augmentations(self) -> list[Augmentation]:
        """Return `augment` as a list."""
        return self.augment if isinstance(self.augment, list) else [self.augment]


class ValidationSpec(SpecModel):
    """Validate checkpoints on a held-out part of the *training* images; the best checkpoint becomes the result.

    The held-out images are never used for condensing. The test set is never used for choosing.
    """

    every: Annotated[int, Field(ge=1, le=1_000_000)]
    """Iterations between validations; the last iteration is always validated."""
    fraction: Annotated[float, Field(gt=0, le=0.5)] = 0.1
    """Fraction of each class's training images that is held out, at least one image, chosen by the job's seed. The mean and std
    are still those of all images."""
    network: NetworkSpec = NetworkSpec()
    """The kind of network to train."""
    repeats: Annotated[int, Field(ge=1, le=10_000)] = 3
    """Fresh networks per validation."""
    epochs: Annotated[int, Field(ge=1, le=100_000)] = 300
    """Epochs per network."""
    augment: Augmentation = "none"
    """Augmentation while training."""

    def as_evaluation(self) -> EvaluationSpec:
        """Return the equivalent evaluation."""
        return EvaluationSpec(
            networks=[self.network], repeats=self.repeats, epochs=self.epochs, augment=self.augment, whole_epochs=self.epochs
        )
