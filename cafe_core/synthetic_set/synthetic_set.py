"""Store a synthetic set, the result of a job, in a file; load and convert it.

This module does not import torch, because the API uses it too.

Arrays (K classes, ipc images each):  images float32 (K·ipc, C, H, W), normalised, ordered by class;  labels int64 (K·ipc,), or
float32 (K·ipc, K) if they are soft;  mean, std float32 (C,). `images * std + mean` has pixel values in [0, 1]; optimised images
may exceed that range.
Metadata, each a JSON text:  class_names, dataset, spec, iteration, versions, and in sets whose images must be decoded before
training (:mod:`cafe_core.synthetic_set.decode`) also decode; in sets that can be extended also class_sha256.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from cafe_core.errors import SyntheticSetError
from cafe_core.files import Fence, unfenced, write_atomically
from cafe_core.spec.condense import CondenseSpec
from cafe_core.spec.dataset import CondensedDataset, DatasetInfo
from cafe_core.synthetic_set import preview
from cafe_core.synthetic_set.decode import Decode
from cafe_core.synthetic_set.files import npy_bytes, read_npz, read_safetensors, safetensors_bytes, zip_bytes
from cafe_core.synthetic_set.images import as_pixels, folder_names, png_bytes
from cafe_core.synthetic_set.relative_paths import relative_name, with_relative_paths

_FLOATS = np.dtype("<f4")
_HARD_LABELS = np.dtype("<i8")
_ARRAYS = ("images", "labels", "mean", "std")
_METADATA = ("class_names", "dataset", "spec", "iteration", "versions")
_OPTIONAL_METADATA = ("decode", "class_sha256")
_SUM_TOLERANCE = 1e-4
"""Allowed distance of a soft label's sum from 1: a thousand float32 probabilities add up to within 1e-5."""


@dataclass(frozen=True)
class SyntheticSet:
    """A synthetic set. Raises SyntheticSetError on construction if its parts do not fit together."""

    images: NDArray[np.float32]
    """(K·ipc, C, H, W), normalised, ordered by class."""
    labels: NDArray[np.int64] | NDArray[np.float32]
    """(K·ipc,) int64: `ipc` times 0, then `ipc` times 1, …; or soft, (K·ipc, K) float32: for each image, a distribution over
    the classes."""
    mean: NDArray[np.float32]
    """(C,): the mean of each channel, with which images in [0, 1] were normalised."""
    std: NDArray[np.float32]
    """(C,): the standard deviation of each channel."""
    class_names: list[str]
    """K names."""
    dataset: dict[str, Any]
    """The real images: `name` and `is_digits`, and `notes` if there are any, as in DatasetInfo."""
    spec: dict[str, Any]
    """The resolved spec of the job that made it; its paths are relative to the dataset root."""
    iteration: int
    """Number of completed iterations."""
    versions: dict[str, str]
    """Versions of the packages that made it."""
    decode: Decode | None = None
    """How training images are made from `images`; None if they are the training images."""

    class_sha256: list[str] | None = None
    """SHA-256 of the real images of each class, by which an extend job finds the classes that have changed; None if unknown."""

    def __post_init__(self) -> None:
        _check(self)

    @property
    def ipc(self) -> int:
        """Return the number of images per class."""
        return len(self.images) // len(self.class_names)

    @property
    def classes(self) -> NDArray[np.int64]:
        """Return the class that each image was made for, (K·ipc,): the hard labels."""
        return np.repeat(np.arange(len(self.class_names), dtype=np.int64), self.ipc)

    @property
    def training_images_per_class(self) -> int:
        """Return the number of training images per class, which the stored images decode to."""
        return self.ipc * (1 if self.decode is None else self.decode.images_per_stored)

    def decoded(self) -> SyntheticSet:
        """Return the set of training images; this set itself if it has no `decode`."""
        if self.decode is None:
            return self
        mean, std = self.mean[:, None, None], self.std[:, None, None]
        images = (self.decode.decoded(self.images * std + mean) - mean) / std
        labels: NDArray[Any] = np.repeat(self.labels, self.decode.images_per_stored, axis=0)
        return replace(self, images=images, labels=labels, decode=None, class_sha256=None)

    def pixels(self) -> NDArray[np.uint8]:
        """Return the images as uint8 (K·ipc, C, H, W): denormalised, clipped to [0, 1] and scaled to 0..255."""
        return as_pixels(self.images, self.mean, self.std)

    # -- files

    @classmethod
    def load(cls, path: Path) -> SyntheticSet:
        """Load a .safetensors or .npz file. Raises SyntheticSetError if it is missing or invalid. Pickles are never read."""
        readers = {".safetensors": read_safetensors, ".npz": read_npz}
        if path.suffix not in readers:
            raise SyntheticSetError(f"{path.name} must be a .safetensors or .npz file")
        if not path.is_file():
            raise SyntheticSetError(f"{path.name} does not exist")
        try:
            arrays, texts = readers[path.suffix](path, list(_ARRAYS), list(_METADATA), list(_OPTIONAL_METADATA))
            parts: dict[str, Any] = arrays | {name: _parsed(name, text) for name, text in texts.items()}
            if "decode" in parts:
                parts["decode"] = _parsed_decode(parts["decode"])
            return cls(**parts)
        except SyntheticSetError as error:
            raise SyntheticSetError(f"{path.name}: {error.message}") from error

    def save(self, path: Path, *, fence: Fence = unfenced) -> None:
        """Write a .safetensors file atomically. Raises DiskFullError and any exception of `fence`."""
        write_atomically(path, self.to_safetensors_bytes(), fence=fence)

    def to_safetensors_bytes(self) -> bytes:
        """Return the .safetensors file. Equal sets give equal bytes."""
        return safetensors_bytes(self._arrays(), self._metadata())

    def to_npz_bytes(self) -> bytes:
        """Return an .npz file with the same arrays, and the metadata as JSON texts. Equal sets give equal bytes."""
        texts = {name: np.array(text) for name, text in self._metadata().items()}
        return zip_bytes((f"{name}.npy", npy_bytes(array)) for name, array in (self._arrays() | texts).items())

    def to_zip_bytes(self) -> bytes:
        """Return a .zip of an image folder, `train/CLASS/0000.png`, that can be uploaded as a dataset.

        Equal sets give equal bytes. Pixel values outside [0, 1] are clipped. Class names become folder names, see `folder_names`.
        Soft labels are left out.
        """
        names = folder_names(self.class_names)
        entries = (
            (f"train/{names[label]}/{row % self.ipc:04d}.png", png_bytes(image))
            for row, (label, image) in enumerate(zip(self.classes.tolist(), self.pixels(), strict=True))
        )
        return zip_bytes(entries)

    def preview_png(self) -> bytes:
        """Draw the set with its class names as a PNG; see `preview.plan_page` for how much of a large set it shows."""
        page = preview.plan_page(self.class_names, self.ipc, *self.images.shape[2:])
        by_class = self.images.reshape(len(self.class_names), self.ipc, *self.images.shape[1:])
        image = preview.draw_page(page, as_pixels(page.select(by_class), self.mean, self.std))
        return preview.png_bytes(image, page.description())

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {name: getattr(self, name) for name in _ARRAYS}

    def _metadata(self) -> dict[str, str]:
        """Return the metadata as JSON texts. Non-ASCII is escaped, because UTF-8 cannot encode every class name."""
        values = {name: getattr(self, name) for name in _METADATA}
        if self.decode is not None:
            values["decode"] = self.decode.as_json()
        if self.class_sha256 is not None:
            values["class_sha256"] = self.class_sha256
        return {name: json.dumps(value, sort_keys=True, allow_nan=False) for name, value in values.items()}


def from_checkpoint(path: Path, info: DatasetInfo, spec: CondenseSpec, dataset_root: Path) -> SyntheticSet:
    """Return the synthetic set of a checkpoint, whose `images` are float32 or float64. `spec` must be resolved.

    dataset_root: paths in the metadata are made relative to it.
    Raises SyntheticSetError if the file is damaged, belongs to another job, or was deleted (a running job deletes old ones).
    """
    try:
        with safe_open(path, framework="numpy") as file:
            images = np.array(file.get_tensor("images"), dtype=np.float32)
            iteration = int(file.metadata()["iteration"])
    except FileNotFoundError as error:
        raise SyntheticSetError(f"{path.name} was replaced by a newer checkpoint; retry the request") from error
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise SyntheticSetError(f"{path.name} is not a readable checkpoint ({error})") from error
    expected = (info.num_classes * spec.ipc, *info.shape)
    if images.shape != expected:
        raise SyntheticSetError(f"{path.name}: images have shape {images.shape}; this job needs {expected}")
    return SyntheticSet(
        images=images,
        labels=np.repeat(np.arange(info.num_classes, dtype=np.int64), spec.ipc),
        mean=np.array(info.mean, dtype=np.float32),
        std=np.array(info.std, dtype=np.float32),
        class_names=info.class_names,
        dataset=_described(info, dataset_root),
        spec=with_relative_paths(spec.model_dump(mode="json", exclude_none=True), dataset_root),
        iteration=iteration,
        versions=versions(),
        decode=Decode(spec.method.decode_factor) if spec.method.decode_factor > 1 else None,
        class_sha256=info.class_sha256 if isinstance(info, CondensedDataset) else None,
    )


def _described(info: DatasetInfo, dataset_root: Path) -> dict[str, Any]:
    """Return the metadata `dataset`. Without notes it is that of earlier versions, so that the files have the same bytes."""
    notes = [note.model_dump() for note in info.notes]
    return {"name": relative_name(info.name, dataset_root), "is_digits": info.is_digits} | ({"notes": notes} if notes else {})


def versions() -> dict[str, str]:
    """Return the versions of the packages that affect results, or "not installed"."""
    found = {}
    for package in ("cafe-service", "torch", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a checkout that was not installed
            found[package] = "not installed"
    return found


# -- checks


def _check(s: SyntheticSet) -> None:
    for name in _ARRAYS:
        array = getattr(s, name)
        allowed = (_HARD_LABELS, _FLOATS) if name == "labels" else (_FLOATS,)
        if array.dtype not in allowed:
            raise SyntheticSetError(f"{name} is {array.dtype}; it must be {' or '.join(map(str, allowed))}")
        if not np.isfinite(array).all():
            raise SyntheticSetError(f"{name} holds NaN or infinite values")
    _check_metadata(s)
    if s.images.ndim != 4 or s.images.size == 0 or s.images.shape[1] not in (1, 3):
        raise SyntheticSetError(f"images have shape {s.images.shape}; it must be (K·ipc, C, H, W) with C 1 or 3")
    k, channels = len(s.class_names), s.images.shape[1]
    if len(s.images) % k:
        raise SyntheticSetError(f"the number of images must be a multiple of the {k} classes in class_names; got {len(s.images)}")
    _check_labels(s)
    for name in ("mean", "std"):
        if getattr(s, name).shape != (channels,):
            raise SyntheticSetError(
                f"{name} has shape {getattr(s, name).shape}; images of {channels} channels need ({channels},)"
            )
    if (s.std <= 0).any():
        raise SyntheticSetError("std must be greater than 0")


def _check_labels(s: SyntheticSet) -> None:
    k, labels = len(s.class_names), s.labels
    if labels.dtype == _HARD_LABELS:
        if not np.array_equal(labels, s.classes):
            raise SyntheticSetError(
                f"labels must be 0 to {k - 1} in order, {s.ipc} times each, because images are ordered by class"
            )
        return
    if labels.shape != (len(s.images), k):
        raise SyntheticSetError(
            f"soft labels have shape {labels.shape}; {len(s.images)} images of {k} classes need ({len(s.images)}, {k})"
        )
    if (labels < 0).any() or (np.abs(labels.sum(1, dtype=np.float64) - 1) > _SUM_TOLERANCE).any():
        raise SyntheticSetError("each soft label must be a distribution over the classes: no value below 0, and a sum of 1")


def _check_metadata(s: SyntheticSet) -> None:
    def invalid(name: str, expected: str) -> SyntheticSetError:
        return SyntheticSetError(f"metadata {name} must be {expected}")

    names = s.class_names
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names) or len(set(names)) != len(names):
        raise invalid("class_names", "a non-empty list of unique names")
    if type(s.iteration) is not int or s.iteration < 0:  # not isinstance(): bool is a subclass of int
        raise invalid("iteration", "an integer, 0 or more")
    hashes = s.class_sha256
    if hashes is not None and not (
        isinstance(hashes, list) and len(hashes) == len(names) and all(isinstance(h, str) for h in hashes)
    ):
        raise invalid("class_sha256", f"a list of {len(names)} texts, one per class")
    for name in ("dataset", "spec", "versions"):
        if not isinstance(getattr(s, name), dict):
            raise invalid(name, "a JSON object")
        try:
            json.dumps(getattr(s, name), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise invalid(name, f"JSON ({error})") from error


def _parsed(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SyntheticSetError(f"metadata {name} is not JSON ({error})") from error


def _parsed_decode(value: Any) -> Decode:
    try:
        return Decode.parse(value)
    except ValueError as error:
        raise SyntheticSetError(f"metadata decode: {error}") from error
