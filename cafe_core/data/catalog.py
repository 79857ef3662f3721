"""Describe a dataset without decoding its images, for the API."""

from __future__ import annotations

from cafe_core.data.builtin import BUILTIN
from cafe_core.data.class_store import info_of
from cafe_core.data.image_source import ImageSource
from cafe_core.data.pixels import fitted_shape
from cafe_core.data.readers import read
from cafe_core.data.roots import DataRoots
from cafe_core.data.store_path import store_path
from cafe_core.errors import DatasetError
from cafe_core.spec.dataset import DatasetInfo, DatasetName, DatasetSpec

#: Weights of red, green and blue in grey (ITU-R BT.601), as Pillow converts.
_GREY_WEIGHTS = (0.299, 0.587, 0.114)


def describe(spec: DatasetSpec, roots: DataRoots) -> DatasetInfo:
    """Describe the dataset of `spec` quickly, when a job is posted.

    If the class store exists, return its description. Otherwise use the catalogue, or file names and the first image, or
    an .npz file's headers and labels. In that case `mean` and `std` are empty for own data and estimates for a
    converted built-in dataset; the store that the driver builds has the measured ones. Raises SpecError and DatasetError
    for every error that can be found without decoding more than a sample of the images.
    """
    info_file = store_path(spec, roots) / "info.json"
    if info_file.exists():
        return DatasetInfo.model_validate_json(info_file.read_bytes())
    if spec.name is not None:
        return _converted(BUILTIN[spec.name], spec)
    source = read(spec, roots, sample=True)
    return info_of(source, mean=[], std=[])


def is_native(spec: DatasetSpec) -> bool:
    """Return whether the spec uses a built-in dataset without changing its image size or channels."""
    if spec.name is None:
        return False
    shape = BUILTIN[spec.name].shape
    return fitted_shape(shape, spec.image_size, spec.channels) == shape


def check_counts(name: DatasetName, source: ImageSource) -> None:
    """Raise DatasetError if a built-in dataset's files do not hold the expected images."""
    known = BUILTIN[name]
    if (source.class_counts, source.test_count, source.shape) != (known.class_counts, known.test_count, known.shape):
        raise DatasetError(
            f"dataset {name}: found {sum(source.class_counts)} training and {source.test_count} test images of "
            f"{source.shape} (C, H, W), expected {sum(known.class_counts)}, {known.test_count} and {known.shape}, or the "
            "classes differ; the files are damaged or changed: replace them with the original ones"
        )


def _converted(info: DatasetInfo, spec: DatasetSpec) -> DatasetInfo:
    """Return the description after applying the spec's image_size and channels."""
    channels, height, width = fitted_shape(info.shape, spec.image_size, spec.channels)
    mean, std = info.mean, info.std
    if channels > info.channels:
        mean, std = mean * channels, std * channels
    elif channels < info.channels:
        mean = [sum(w * m for w, m in zip(_GREY_WEIGHTS, mean, strict=True))]
        std = [sum(w * s for w, s in zip(_GREY_WEIGHTS, std, strict=True))]  # exact if the colours are fully correlated
    return info.model_copy(update={"channels": channels, "height": height, "width": width, "mean": mean, "std": std})
