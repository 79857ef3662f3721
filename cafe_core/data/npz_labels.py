"""Read the labels of an .npz dataset: numbers of any base, one-hot rows, or the names of classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cafe_core.data.class_order import class_order
from cafe_core.data.folder_layout import MAX_CLASSES
from cafe_core.data.image_source import Labels
from cafe_core.errors import DatasetError
from cafe_core.spec.dataset import DatasetNote
from cafe_core.text import is_shown

_SHOWN = 3


@dataclass(frozen=True)
class LabelClasses:
    """The classes that the labels of a file stand for."""

    values: NDArray[Any]
    """The distinct labels, sorted."""
    numbers: Labels
    """The number of the class of each of the `values`."""
    names: list[str]
    """The name of each class, in order of the numbers."""

    def notes(self) -> list[DatasetNote]:
        """Return a note if the labels are numbers other than 0 to K-1."""
        first_and_last = self.values[[0, -1]].tolist()
        if self.values.dtype.kind not in "iu" or first_and_last == [0, len(self.values) - 1]:
            return []
        shown = [str(value) for value in self.values.tolist()]
        if len(shown) > 2 * _SHOWN:
            shown = [*shown[:_SHOWN], "…", *shown[-_SHOWN:]]
        named = (
            "each class is named by its label" if self.names == list(map(str, self.values.tolist())) else "class_names names them"
        )
        message = f"numbered the labels {', '.join(shown)} as the classes 0 to {len(self.names) - 1}; {named}"
        return [DatasetNote(code="renumbered", message=message)]


def flat_labels(labels: NDArray[Any], where: str) -> NDArray[Any]:
    """Return labels (N,), (N, 1) or one-hot (N, K) as (N,): integers or texts. Raises DatasetError for labels of other kinds."""
    if labels.ndim == 2 and labels.shape[1] > 1:
        return _from_one_hot(labels, where)
    flat = labels.reshape(len(labels))
    if flat.dtype.kind == "S":
        return np.array([text.decode("utf-8", "backslashreplace") for text in flat.tolist()])
    if flat.dtype.kind == "u" and flat.max() > np.iinfo(np.int64).max:
        raise DatasetError(f"{where} holds {flat.max()}; labels must be below 2^63")
    if flat.dtype.kind == "f":
        flat = flat.astype(np.float64)  # 2^53 is too large for float16
        whole = np.isfinite(flat) & (flat == np.rint(flat)) & (np.abs(flat) < 2**53)
        if not whole.all():
            first = int(np.argmin(whole))
            raise DatasetError(f"{where}[{first}] is {flat[first]}; labels must be whole numbers or the names of classes")
    return flat if flat.dtype.kind == "U" else flat.astype(np.int64)


def _from_one_hot(labels: NDArray[Any], where: str) -> NDArray[Any]:
    is_one, is_zero = labels == 1, labels == 0
    valid = (is_one | is_zero).all(axis=1) & (is_one.sum(axis=1) == 1)
    if not valid.all():
        raise DatasetError(
            f"{where} has shape {labels.shape}, and row {int(np.argmin(valid))} is not one-hot; each image needs exactly one "
            "class: labels (N,), (N, 1), or (N, K) with a single 1 in each row"
        )
    return np.asarray(is_one.argmax(axis=1), dtype=np.int64)


def classes_of(labels: NDArray[Any], where: str, given_names: Sequence[str] | None) -> LabelClasses:
    """Return the classes of the training labels. given_names: the names by label, or by class. Raises DatasetError."""
    values = np.unique(labels)
    if len(values) > MAX_CLASSES:
        raise DatasetError(f"{where} has {len(values)} different labels; the limit is {MAX_CLASSES} classes")
    if len(values) == 1:
        raise DatasetError(f"{where} has only one class ({values[0]}); at least 2 are needed")
    names = [str(value) for value in values.tolist()]
    if given_names is not None and values.dtype.kind in "iu":
        if values[0] >= 0 and values[-1] < len(given_names):
            names = [given_names[value] for value in values.tolist()]
        elif len(values) == len(given_names):
            names = list(given_names)
        else:
            raise DatasetError(
                f"{where} has {len(values)} different labels up to {values[-1]}; class_names has {len(given_names)}"
            )
    if len(set(names)) != len(names) or not all(name and is_shown(name) for name in names):
        raise DatasetError(f"{where}: the names of classes must be unique, not empty and printable; got {names[:10]}")
    return LabelClasses(values, *_in_order(names, values.dtype.kind))


def _in_order(names: list[str], kind: str) -> tuple[Labels, list[str]]:
    """Return the numbers of the classes whose sorted labels have these names, and the names by number."""
    if kind != "U":
        return np.arange(len(names), dtype=np.int64), names
    ordered = class_order(names)  # of texts, 10 comes before 9
    number = {name: k for k, name in enumerate(ordered)}
    return np.array([number[name] for name in names], dtype=np.int64), ordered


def numbered(labels: NDArray[Any], classes: LabelClasses, where: str, of: str) -> Labels:
    """Return the number of each label's class. Raises DatasetError for a label that the training labels, `of`, do not have."""
    if labels.dtype.kind != classes.values.dtype.kind and "U" in (labels.dtype.kind, classes.values.dtype.kind):
        raise DatasetError(f"{where} is {labels.dtype} and {of} is {classes.values.dtype}; both must be numbers or texts")
    found = np.minimum(np.searchsorted(classes.values, labels), len(classes.values) - 1)
    unknown = np.flatnonzero(classes.values[found] != labels)
    if len(unknown):
        first = int(unknown[0])
        raise DatasetError(f"{where}[{first}] is {labels[first]}, which is not in {of}; the classes of both must be the same")
    return classes.numbers[found]
