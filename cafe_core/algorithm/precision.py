"""Set how GPUs compute float32 convolutions and matrix products, explicitly and only while a computation runs.

Left alone, torch computes float32 convolutions in TF32, which keeps 10 bits of the mantissa. On an H100 the outer gradient of
CAFE then differs from float64 by 2.7e-3, and by 2.6e-7 without TF32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

import torch

from cafe_core.spec.base import Precision
from cafe_core.spec.condense import CondenseSpec

P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def arithmetic(precision: Precision) -> Iterator[None]:
    """Allow TF32 for convolutions if `precision` is `tf32`, and for nothing otherwise. Restore the settings at the end.

    The settings hold for the whole process. Matrix products stay float32 with `tf32`, too: they are the products of features and
    centres and the grids of affine augmentations, which are small and need full precision. On CPUs this changes nothing.
    """
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # torch sets it when it is imported
    products = torch.backends.cuda.matmul
    before = convolutions.fp32_precision, products.fp32_precision
    convolutions.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    products.fp32_precision = "ieee"
    try:
        yield
    finally:
        convolutions.fp32_precision, products.fp32_precision = before


def in_precision_of_spec(function: Callable[Concatenate[CondenseSpec, P], R]) -> Callable[Concatenate[CondenseSpec, P], R]:
    """Run a function in the arithmetic of the spec that is its first argument."""

    @wraps(function)
    def run(spec: CondenseSpec, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with arithmetic(spec.precision):
            return function(spec, *args, **kwargs)

    return run
