"""Test that classes named by numbers are in numeric order, and that sets and datasets meet by the names of their classes."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cafe_core.data.catalog import describe
from cafe_core.data.class_order import class_order
from cafe_core.data.roots import DataRoots
from cafe_core.jobs import local
from cafe_core.spec.dataset import DatasetSpec
from cafe_core.synthetic_set.synthetic_set import SyntheticSet

NUMBERS = [str(k) for k in range(12)]


@pytest.mark.parametrize(
    ("names", "ordered"),
    [
        (["10", "9", "0"], ["0", "9", "10"]),
        (["010", "9", "0"], ["0", "9", "010"]),
        (["1", "01", "2"], ["01", "1", "2"]),
        (["10", "9", "b"], ["10", "9", "b"]),
        (["1.5", "10", "9"], ["1.5", "10", "9"]),
        (["٣", "10", "9"], ["10", "9", "٣"]),
        (["9" * 5000, "1"], ["1", "9" * 5000]),
    ],
)
def test_numeric_names_are_sorted_by_number(names: list[str], ordered: list[str]) -> None:
    assert class_order(names) == ordered


def pattern(k: int) -> np.ndarray:
    """Return the image of class k, which only that class has."""
    image = np.full((8, 8), 40, dtype=np.uint8)
    image[k // 4 * 2 : k // 4 * 2 + 2, k % 4 * 2 : k % 4 * 2 + 2] = 220
    return image


@pytest.fixture
def roots(tmp_path: Path) -> DataRoots:
    """Create the image folder numbered12, with the classes 0 to 11 and test images."""
    for split in ("train", "test"):
        for k, name in enumerate(NUMBERS):
            (tmp_path / "numbered12" / split / name).mkdir(parents=True)
            Image.fromarray(pattern(k)).save(tmp_path / "numbered12" / split / name / "0.png")
    return DataRoots(datasets=tmp_path, uploads=tmp_path / "u", downloads=tmp_path / "d", cache=tmp_path / "c")


def set_in_order(names: list[str]) -> SyntheticSet:
    images = np.stack([pattern(int(name)) for name in names])[:, None].astype(np.float32) / 255
    return SyntheticSet(
        images=(images - np.float32(0.2)) / np.float32(0.2),
        labels=np.arange(len(names), dtype=np.int64),
        mean=np.array([0.2], np.float32),
        std=np.array([0.2], np.float32),
        class_names=names,
        dataset={"name": "numbered12", "is_digits": False},
        spec={"dataset": {"path": "numbered12"}},
        iteration=0,
        versions={},
    )


def evaluate(roots: DataRoots, judged: SyntheticSet) -> float:
    judged.save(roots.datasets / "set.safetensors")
    spec = {"kind": "evaluate", "synthetic": {"path": "set.safetensors"}, "networks": [{"name": "mlp", "width": 128}]}
    job = local.prepare(spec | {"repeats": 1, "epochs": 100}, roots.datasets / "out", roots)
    return float(job.run(lambda *_, **__: None)["networks"][0]["mean"])


def test_folder_and_zip_of_a_set_have_numeric_order(roots: DataRoots) -> None:
    assert describe(DatasetSpec(path="numbered12"), roots).class_names == NUMBERS
    content = set_in_order(NUMBERS).to_zip_bytes()
    assert len(zipfile.ZipFile(io.BytesIO(content)).namelist()) == 12
    (roots.datasets / "set.zip").write_bytes(content)
    assert describe(DatasetSpec(path="set.zip"), roots).class_names == NUMBERS


@pytest.mark.parametrize("soft", [False, True])
def test_set_in_another_order_is_evaluated_by_names(roots: DataRoots, soft: bool) -> None:
    judged = set_in_order(sorted(NUMBERS))  # the order of earlier versions: 0, 1, 10, 11, 2
    if soft:
        judged = replace(judged, labels=np.eye(12, dtype=np.float32))
    assert evaluate(roots, judged) == 100


def test_set_with_other_classes_is_refused(roots: DataRoots) -> None:
    judged = replace(set_in_order(NUMBERS), class_names=[*NUMBERS[:-1], "twelve"])
    with pytest.raises(ValueError, match=r"^synthetic: its classes twelve are not in numbered12, which has 0, 1, 2, 3, 4, …"):
        evaluate(roots, judged)
