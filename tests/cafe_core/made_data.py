"""Build small class stores for tests, with any number of classes, of different and of too small sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cafe_core.data.class_store import ClassStore, build
from cafe_core.data.image_source import ArraySource
from cafe_core.spec.condense import CondenseSpec
from cafe_core.spec.dataset import DatasetInfo
from cafe_core.spec.resolution import resolve


def make_info(counts: list[int], *, side: int, channels: int = 3, test_count: int = 0) -> DatasetInfo:
    """Return the description of a dataset whose classes have `counts` images."""
    return DatasetInfo(
        name="made",
        class_names=[f"class {k}" for k in range(len(counts))],
        class_counts=counts,
        test_count=test_count,
        channels=channels,
        height=side,
        width=side,
        mean=[0.5] * channels,
        std=[0.25] * channels,
    )


def make_store(
    path: Path, counts: list[int], *, side: int = 8, channels: int = 1, test_count: int = 20, seed: int = 0
) -> ClassStore:
    """Build a store whose classes have `counts` images: one random image per class, with noise added."""
    random = np.random.default_rng(seed)
    K = len(counts)
    centres = random.integers(0, 200, size=(K, channels, side, side))

    def draw(k: int, n: int) -> np.ndarray:
        return np.clip(centres[k] + random.normal(0, 30, size=(n, channels, side, side)), 0, 255).astype(np.uint8)

    test_labels = np.arange(test_count, dtype=np.int64) % K
    source = ArraySource(
        name="made",
        class_names=[f"class {k}" for k in range(K)],
        images=np.concatenate([draw(k, n) for k, n in enumerate(counts)]),
        labels=np.repeat(np.arange(K, dtype=np.int64), counts),
        test_images=np.concatenate([draw(int(k), 1) for k in test_labels]),
        test_labels=test_labels,
    )
    return build(path, source)


def make_spec(store: ClassStore, **fields: object) -> CondenseSpec:
    """Return a resolved spec of a job that condenses `store` with a small network."""
    spec = {
        "dataset": {"name": "digits"},
        "ipc": 2,
        "iterations": 3,
        "precision": "float64",
        "network": {"width": 6, "depth": 2},
        "checkpoint_every": 100,
        **fields,
    }
    return resolve(CondenseSpec.model_validate(spec), store.info)
