"""Define the real images of a job, and the facts about a dataset that a spec is resolved against."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from cafe_core.spec.base import SpecModel, given_one_of
from cafe_core.spec.plain_names import UPLOAD_ID, dataset_named

DatasetName = Literal["digits", "mnist", "fashion_mnist", "svhn", "cifar10", "cifar100"]
MAX_IMAGE_SIDE = 512


class DatasetSpec(SpecModel):
    """The real images: exactly one of `name`, `id`, `path`. A plain string is a built-in name, the id of an upload, or a path."""

    name: DatasetName | None = None
    """A built-in dataset."""
    id: Annotated[str, StringConstraints(pattern=UPLOAD_ID)] | None = None
    """A dataset uploaded to this server."""
    path: Annotated[str, StringConstraints(min_length=1, max_length=1024)] | None = None
    """An image folder (`CLASS/*.jpg`, or `train/CLASS/*.jpg` with an optional `test/` or `val/`), a .zip of one, or an .npz,
    under the server's dataset root. `cafe run` also takes any other path, relative to the current directory."""
    image_size: Annotated[int, Field(ge=4, le=MAX_IMAGE_SIDE)] | None = None
    """Side in pixels: the shorter side is resized to it, then the image is cropped at its centre. Required if sizes differ."""
    channels: Literal[1, 3] | None = None
    """Convert to grey (1) or RGB (3). Required if the modes of the images differ."""
    test_fraction: Annotated[float, Field(gt=0, le=0.5)] | None = None
    """Share of each class's images that become test images, for data without a test split. The choice depends only on the
    number of images, not on the job's seed. Default: no test split."""

    @model_validator(mode="after")
    def _one_source(self) -> DatasetSpec:
        given_one_of(self, "name", "id", "path")
        if self.name is not None and self.test_fraction is not None:
            raise ValueError(f"{self.name} has a test split; leave test_fraction out")
        if self.path is not None and "\x00" in self.path:
            raise ValueError("path holds a NUL character")
        return self


def dataset_written_out(value: Any) -> Any:
    """Return the fields of a dataset that is given by a plain string. Return any other value unchanged."""
    return dataset_named(value, get_args(DatasetName))


AnyDataset: TypeAlias = Annotated[DatasetSpec, BeforeValidator(dataset_written_out, json_schema_input_type=DatasetSpec | str)]
"""A dataset's spec, or a plain string: a built-in name, the id of an upload, or a path."""


class DatasetNote(SpecModel):
    """Something that was done to a dataset's images, or that is unusual about them, and that the user should know."""

    code: Literal["ignored", "split", "nested", "renumbered", "converted", "constant", "repeated", "sampled"]
    """`ignored`: files, arrays or images that are not used. `split`: how the test split was chosen. `nested`: images in
    subfolders of their class's folder. `renumbered`: labels that are not 0 to K-1. `converted`: images whose depth, colours,
    transparency, orientation or frames were reduced. `constant`: images of a single colour. `repeated`: classes with fewer images
    than a method has to choose. `sampled`: how many images were looked at, if most are too large for a sample."""
    message: str


_absent_if_unknown = Field(exclude_if=lambda statistics: not statistics)


class DatasetInfo(SpecModel):
    """The facts about a dataset that a spec is resolved against. None of them needs pixels."""

    name: str
    class_names: list[str]
    class_counts: list[int]
    """Training images of each class."""
    test_count: int
    channels: int
    height: int
    width: int
    mean: Annotated[list[float], _absent_if_unknown] = []
    """Mean per channel of the training images, scaled to [0, 1]. Absent for own images until a job has decoded them."""
    std: Annotated[list[float], _absent_if_unknown] = []
    """Standard deviation per channel, as `mean`."""
    is_digits: bool = False
    """Whether flipping an image can change its class (MNIST, SVHN, digits); such images are not flipped."""
    notes: list[DatasetNote] = []
    """Notes about files that were ignored, images that were converted, labels that were renumbered, the test split, and unusual
    images. A description made before all images are decoded has only some of them."""

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (C, H, W)."""
        return self.channels, self.height, self.width


class CondensedDataset(DatasetInfo):
    """The facts about the dataset of a condensation. For an extended set, `mean` and `std` are those of the set."""

    class_sha256: list[str] | None = None
    """SHA-256 of the real images of each class. None if the set cannot be extended."""
