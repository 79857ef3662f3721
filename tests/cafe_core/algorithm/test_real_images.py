"""Test that real images that stay on the device are those that are read from the class store."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cafe_core.algorithm.real_images import BatchIndices, RealImages
from cafe_core.data.class_store import ClassStore
from tests.cafe_core.made_data import make_store

CPU = torch.device("cpu")
CLASSES = [1, 3]
COUNTS = [20, 5, 20, 7]
BYTES = (5 + 7) * 3 * 8 * 8
KEPT = {1: torch.tensor([4, 0, 2]), 3: torch.tensor([6, 5, 1, 0])}
"""A selection of each class's images, as a validation makes it."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ClassStore:
    return make_store(tmp_path_factory.mktemp("store") / "s", COUNTS, channels=3)


@pytest.mark.parametrize("kept", [None, KEPT], ids=["all", "kept"])
def test_resident_images_equal_read_images(store: ClassStore, kept: dict[int, Tensor] | None) -> None:
    read = RealImages(store, CLASSES, CPU, torch.float64, kept)
    resident = RealImages(store, CLASSES, CPU, torch.float64, kept, resident_bytes=BYTES)
    rows = BatchIndices(CLASSES, [torch.tensor([2, 0, 2]), torch.tensor([3, 1, 0])])
    for size in (1, 2, 4, 100):
        pairs = list(zip(read.chunks(rows, size), resident.chunks(rows, size), strict=True))
        assert all(torch.equal(one.images, other.images) for one, other in pairs)
        assert all(one.segments == other.segments for one, other in pairs)
    assert torch.equal(read.batch(3, rows.indices[1]), resident.batch(3, rows.indices[1]))


@pytest.mark.parametrize(("limit", "reads"), [(BYTES, False), (BYTES - 1, True)])
def test_images_are_read_if_they_exceed_the_limit(
    store: ClassStore, limit: int, reads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = RealImages(store, CLASSES, CPU, torch.float64, resident_bytes=limit)
    calls: list[int] = []
    read = images._read
    monkeypatch.setattr(images, "_read", lambda k, indices: calls.append(k) or read(k, indices))
    images.batch(3, torch.tensor([0]))
    assert calls == ([3] if reads else [])
