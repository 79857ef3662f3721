"""Define evaluations and validations: the networks to train on a set, and how to train them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import AfterValidator, Discriminator, Field, Tag

from cafe_core.spec.base import SpecModel, all_different, resolved_later
from cafe_core.spec.network import AnyNetwork, NetworkSpec
from cafe_core.spec.protocol import Protocol, Schedule, protocol_fields

Augmentation = Literal[
    "none",
    "dsa",
    "dsa_without_cutout",
    "color_crop",
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

    SGD with learning rate 0.01, momentum 0.9 and weight decay 5e-4. Nothing is chosen by the accuracy on the test set.
    """

    protocol: Protocol | None = None
    """Fill in the fields epochs, batch, schedule, augment and cutmix that are left out, by a published protocol. `paper` has the
    defaults of these fields. `reference`: CAFE's code, 600 epochs, or 1000 with augmentation, which is crop_scale_rotate for
    grey digits. `dc-bench`: DC-BENCH's code, 300 epochs, or 1000 with augmentation, as before. `dance`: DANCE's code, 1500
    epochs, batch 64, DSA without cutout, and CutMix."""

    networks: Annotated[list[AnyNetwork], Field(min_length=1, max_length=64)] = [NetworkSpec()]
    """The kinds of network to train."""
    repeats: Annotated[int, Field(ge=1, le=10_000)] = 20
    """Fresh networks per kind, augmentation and source of images; at most 100000 networks in total."""
    epochs: Annotated[int, Field(ge=1, le=100_000)] = 300
    """Epochs per network."""
    batch: Annotated[int, Field(ge=1, le=65536)] = 256
    """Minibatch."""
    schedule: Schedule = "tenth_at_half"
    """Learning rate: `tenth_at_half` divides it by 10 after half the epochs, `fifths_at_the_end` by 5 after 2/3 and after 5/6."""
    cutmix: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability that CutMix mixes a minibatch: each image gets a box of another one, and the loss counts both labels."""
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

    def resolved(self, *, grey_digits: bool) -> Self:
        """Return this spec with the protocol's fields, the networks' options and the epochs on `whole` filled in."""
        fields: dict[str, Any] = {}
        if self.protocol is not None:
            chosen = self.augmentations if "augment" in self.model_fields_set else None
            fields = protocol_fields(self.protocol, chosen, grey_digits=grey_digits)
            fields = {name: value for name, value in fields.items() if name not in self.model_fields_set}
        fields |= {
            "networks": [network.resolved() for network in self.networks],
            "whole_epochs": self.whole_epochs or fields.get("epochs", self.epochs),
        }
        return self.model_copy(update=fields)


class ValidationSpec(SpecModel):
    """Validate checkpoints on a held-out part of the *training* images; the best checkpoint becomes the result.

    The held-out images are never used for condensing. The test set is never used for choosing.
    """

    every: Annotated[int, Field(ge=1, le=1_000_000)]
    """Iterations between validations; the last iteration is always validated."""
    fraction: Annotated[float, Field(gt=0, le=0.5)] = 0.1
    """Fraction of each class's training images that is held out, at least one image, chosen by the job's seed. The mean and std
    are still those of all images."""
    network: AnyNetwork = NetworkSpec()
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
