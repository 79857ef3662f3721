"""Test data as users have it: inputs that an earlier version refused or misread, each made here, with what is right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cafe_core.data.catalog import describe
from cafe_core.data.roots import DataRoots
from cafe_core.data.sources import open_store
from cafe_core.errors import DatasetError
from cafe_core.spec.dataset import DatasetSpec
from tests.cafe_core.data.image_folders import RNG, encoded, picture


@dataclass(frozen=True)
class Right:
    """What is right for an input: the classes, their counts, and the codes of the notes; or a pattern of the refusal."""

    classes: list[str] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    test_count: int = 0
    notes: list[str] = field(default_factory=list)
    """In order of their code."""
    refusal: str = ""


def _files(root: Path, **counts: int) -> None:
    """Create `counts[SPLIT__CLASS__SUFFIX]` images."""
    for name, count in counts.items():
        *folders, suffix = name.split("__")
        directory = root.joinpath(*folders)
        directory.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            kind = {"jpg": "JPEG", "JPEG": "JPEG"}.get(suffix, suffix.upper())
            (directory / f"{i}.{suffix}").write_bytes(encoded(picture(size=(8, 8)), kind))


def _trainval(root: Path) -> None:
    _files(root / "data", train__cat__jpg=8, train__dog__jpg=8, val__cat__jpg=4, val__dog__jpg=4)


def _tinyimagenet(root: Path) -> None:
    _files(root / "data", train__n01443537__images__JPEG=4, train__n01629819__images__JPEG=4, val__images__JPEG=4)
    (root / "data/val/val_annotations.txt").write_text("0.JPEG\tn01443537\t0\t0\t62\t62\n")
    (root / "data/train/n01443537/n01443537_boxes.txt").write_text("n01443537_0.JPEG\t0\t10\t63\t58\n")


def _numeric_classes(root: Path) -> None:
    for k in range(12):
        _files(root / "data", **{f"train__{k}__png": 1, f"test__{k}__png": 1})


def _npz(root: Path, images: str, labels: str, *more: str, base: int = 0, column: bool = False) -> None:
    """Create data.npz with 10 classes: 30 images in `images`, and 10 in each further pair of arrays."""
    arrays: dict[str, Any] = {}
    for pair, count in ((images, labels), 30), *((pair, 10) for pair in zip(more[::2], more[1::2], strict=True)):
        arrays[pair[0]] = RNG.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        numbers = (np.arange(count) % 10 + base).astype(np.uint8)
        arrays[pair[1]] = numbers[:, None] if column else numbers
    np.savez(root / "data.npz", **arrays)


DIGITS = [str(k) for k in range(10)]
CASES: dict[str, tuple[Callable[[Path], None], dict[str, Any], Right]] = {
    "trainval": (_trainval, {"path": "data"}, Right(["cat", "dog"], [8, 8], 8, ["split"])),
    "tinyimagenet": (
        _tinyimagenet,
        {"path": "data"},
        Right(["n01443537", "n01629819"], [4, 4], 1, ["ignored", "ignored", "nested", "split"]),
    ),
    "medmnist": (
        lambda root: _npz(
            root, "train_images", "train_labels", "val_images", "val_labels", "test_images", "test_labels", column=True
        ),
        {"path": "data.npz"},
        Right(DIGITS, [3] * 10, 10, ["ignored"]),
    ),
    "kerasmnist": (
        lambda root: _npz(root, "x_train", "y_train", "x_test", "y_test"),
        {"path": "data.npz"},
        Right(DIGITS, [3] * 10, 10),
    ),
    "from1": (
        lambda root: _npz(root, "images", "labels", base=1),
        {"path": "data.npz"},
        Right([str(k) for k in range(1, 11)], [3] * 10, 0, ["renumbered"]),
    ),
    "n1": (lambda root: _npz(root, "images", "labels", column=True), {"path": "data.npz"}, Right(DIGITS, [3] * 10)),
    "numeric_classes": (_numeric_classes, {"path": "data"}, Right([str(k) for k in range(12)], [1] * 12, 12)),
}


@pytest.mark.parametrize(("make", "spec", "right"), CASES.values(), ids=CASES)
def test_data_of_users(roots: DataRoots, make: Callable[[Path], None], spec: dict[str, Any], right: Right) -> None:
    make(roots.datasets)
    dataset = DatasetSpec.model_validate(spec)
    if right.refusal:
        with pytest.raises(DatasetError, match=right.refusal):
            open_store(dataset, roots)
        return
    for info in (describe(dataset, roots), open_store(dataset, roots).info):
        found = Right(info.class_names, info.class_counts, info.test_count, sorted(note.code for note in info.notes))
        assert found == right
