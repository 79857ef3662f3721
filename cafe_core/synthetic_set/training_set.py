"""Use a synthetic set as a torch dataset: `from cafe_core import load_set`.

K  classes    N  training images    (C, H, W)  an image
"""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from cafe_core.synthetic_set.images import as_pil, as_pixels
from cafe_core.synthetic_set.sources import SetSource, read_set
from cafe_core.synthetic_set.synthetic_set import SyntheticSet


def load_set(source: SetSource, *, decode: bool = True) -> TrainingSet:
    """Load a synthetic set to train on it.

    source: a .safetensors or .npz file, a directory that holds `synthetic.safetensors`, or the bytes of such a file.
    decode: return the training images. Some methods store several training images in each stored image; `decode=False` returns
    the stored ones. For all other sets, both are the same.

    Raises SyntheticSetError if the source is not a synthetic set. Pickles are never read.
    """
    stored = read_set(source)
    return TrainingSet(stored.decoded() if decode else stored)


class TrainingSet(Dataset[tuple[Tensor, Tensor]]):
    """The images of a synthetic set with their labels, in memory and ordered by class. Usable in a `DataLoader`.

    An item is `(image, label)`: a normalised float32 image [C, H, W], and an int64 number or, if the labels are soft, the
    probabilities of the classes as float32 [K]. `torch.nn.functional.cross_entropy` accepts batches of both.
    """

    images: Tensor
    """[N, C, H, W] float32, normalised with `mean` and `std`."""
    labels: Tensor
    """[N] int64, or [N, K] float32 if the labels are soft."""
    mean: Tensor
    """[C] float32. Normalise real images in the same way, `(image - mean) / std`, before a network sees them."""
    std: Tensor
    """[C] float32."""
    classes: list[str]
    """The names of the K classes."""

    def __init__(self, synthetic: SyntheticSet) -> None:
        self.synthetic = synthetic
        self.images, self.labels = torch.from_numpy(synthetic.images), torch.from_numpy(synthetic.labels)
        self.mean, self.std = torch.from_numpy(synthetic.mean), torch.from_numpy(synthetic.std)
        self.classes = list(synthetic.class_names)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    def __repr__(self) -> str:
        shape = "×".join(map(str, self.images.shape[1:]))
        labels = "soft labels" if self.soft else "hard labels"
        return f"TrainingSet({len(self)} images {shape}, {len(self.classes)} classes, {labels})"

    @property
    def soft(self) -> bool:
        """Return whether a label is a distribution over the classes instead of one class."""
        return self.labels.ndim == 2

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Return all images [N, C, H, W] and all labels, [N] or [N, K]. They are not copies."""
        return self.images, self.labels

    def denormalise(self, images: Tensor) -> Tensor:
        """Return normalised images [..., C, H, W] as pixel values in [0, 1]; values outside are clipped."""
        mean, std = (channel.to(images.device)[:, None, None] for channel in (self.mean, self.std))
        return (images * std + mean).clamp(0, 1)

    def to_pil(self, index: int) -> Image.Image:
        """Return an image as an 8-bit grey or RGB picture."""
        image = self.synthetic.images[index]
        return as_pil(as_pixels(image, self.synthetic.mean, self.synthetic.std))

    def as_dataset_dict(self, *, exact: bool = False) -> dict[str, list[Any]]:
        """Return the columns `image`, `label` and `class_name`, as `datasets.Dataset.from_dict` of Hugging Face takes them.

        image: 8-bit pictures; with `exact`, the normalised float32 arrays [C, H, W] instead.
        label: numbers, or lists of K probabilities if the labels are soft.
        class_name: the name of the class that each image was made for.
        """
        images = list(self.synthetic.images) if exact else [self.to_pil(index) for index in range(len(self))]
        names = [self.classes[k] for k in self.synthetic.classes]
        return {"image": images, "label": self.labels.tolist(), "class_name": names}
