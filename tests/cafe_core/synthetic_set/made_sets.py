"""Make small synthetic sets."""

from __future__ import annotations

from typing import Any

import numpy as np

from cafe_core.synthetic_set.synthetic_set import SyntheticSet


def make_set(classes: int = 3, ipc: int = 2, shape: tuple[int, int, int] = (3, 5, 4), **parts: Any) -> SyntheticSet:
    """Return a valid set of random images, with `parts` in place of its own."""
    channels = shape[0]
    good: dict[str, Any] = {
        "images": np.random.default_rng(0).normal(size=(classes * ipc, *shape)).astype(np.float32),
        "labels": np.repeat(np.arange(classes), ipc),
        "mean": np.linspace(0.4, 0.6, channels, dtype=np.float32),
        "std": np.linspace(0.2, 0.3, channels, dtype=np.float32),
        "class_names": [f"class {k}" for k in range(classes)],
        "dataset": {"name": "made", "is_digits": False},
        "spec": {"ipc": ipc, "method": {"beta": 0.1}},
        "iteration": 7,
        "versions": {"numpy": "2"},
    }
    return SyntheticSet(**good | parts)
