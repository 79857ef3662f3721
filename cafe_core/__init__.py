"""CAFE, dataset condensation by aligning features, in plain PyTorch.

`from cafe_core import load_set` loads a synthetic set as a torch dataset. Importing `cafe_core` alone imports neither torch
nor NumPy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cafe_core.synthetic_set.training_set import TrainingSet, load_set

__all__ = ["TrainingSet", "load_set"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is used, because torch takes seconds to import."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("cafe_core.synthetic_set.training_set"), name)
