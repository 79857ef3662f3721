"""Fixtures: the directories that hold datasets, and an image folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from cafe_core.data.roots import DataRoots
from tests.cafe_core.data.image_folders import picture


@pytest.fixture
def roots(tmp_path: Path) -> DataRoots:
    for name in ("datasets", "uploads", "downloads"):
        (tmp_path / name).mkdir()
    return DataRoots(**{name: tmp_path / name for name in ("datasets", "uploads", "downloads", "cache")})


@pytest.fixture
def folder(roots: DataRoots) -> Path:
    """Create an image folder of 2 classes with 3 + 2 training and 1 + 1 test images: RGB, 7×6 (width×height)."""
    root = roots.datasets / "pets"
    for name, count in {"train/cat": 3, "train/dog": 2, "test/cat": 1, "test/dog": 1}.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            picture().save(root / name / f"{i}.png")
    return root
