"""Run the fused Triton kernels on the CPU, in Triton's interpreter.

Start it with `TRITON_INTERPRET=1 python -m tests.cafe_core.networks.interpreted_kernels`. Triton reads the variable when it is
imported, so this is a process of its own. It prints what it found as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from cafe_core.networks import fused
from tests.cafe_core.emulated_gpu import WITHOUT_KERNEL

CPU = torch.device("cpu")
FLAGS = {"both": (True, True), "map": (True, False), "pooled": (False, True)}
"""keep, pool"""
CASES: dict[str, tuple[torch.dtype, tuple[int, int, int], int, bool, str]] = {
    "odd sides": (torch.float32, (3, 5, 7), 2, False, "both"),
    "odd sides, channels last": (torch.float32, (3, 5, 7), 2, True, "both"),
    "odd sides, only the map": (torch.float32, (3, 5, 7), 2, False, "map"),
    "odd sides, only pooled": (torch.float32, (3, 5, 7), 2, False, "pooled"),
    "odd sides, float64": (torch.float64, (3, 5, 7), 2, False, "both"),
    "odd sides, bfloat16": (torch.bfloat16, (3, 5, 7), 2, False, "both"),
    "one odd side": (torch.float32, (2, 3, 8), 2, False, "both"),
    "one channel": (torch.float32, (1, 8, 8), 2, False, "both"),
    "one cell": (torch.float32, (4, 2, 2), 2, True, "pooled"),
    "one pixel": (torch.float32, (3, 1, 1), 2, False, "map"),
    "channels in several programs": (torch.float32, (12, 16, 16), 1, False, "both"),
    "channels in several programs, bfloat16, channels last": (torch.bfloat16, (20, 16, 16), 1, True, "both"),
    "many images": (torch.float32, (2, 2, 3), 65, False, "both"),
}
"""dtype, (C, H, W), number of images, whether channels come last, and outputs."""


def deviations() -> dict[str, float]:
    """Return the largest deviation from torch in each case."""
    return {
        name: fused.deviation(CPU, dtype, shape, channels_last, *FLAGS[flags], images=images)
        for name, (dtype, shape, images, channels_last, flags) in CASES.items()
    }


class _Seen(TorchDispatchMode):
    """Collect the operations of torch that would launch a kernel on a GPU, and the launches of Triton."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func).split(".")[1] not in WITHOUT_KERNEL:
            self.launches.append(str(func))
        return func(*args, **(kwargs or {}))


@contextmanager
def seen() -> Iterator[list[str]]:
    """Yield the launches within the context."""
    from triton.runtime.interpreter import GridExecutor  # only in the process that interprets

    run = GridExecutor.__call__

    def counted(executor: Any, *args: Any, **kwargs: Any) -> None:
        mode.launches.append("triton")
        with _disable_current_modes():
            run(executor, *args, **kwargs)

    with patch.object(GridExecutor, "__call__", counted), _Seen() as mode:
        yield mode.launches


def launches() -> dict[str, list[str]]:
    """Return what the GPU implementation of each fused operation launches, for each choice of outputs."""
    x, weight, bias = torch.randn(2, 3, 6, 6), torch.randn(3), torch.randn(3)
    pooled = torch.randn(2, 3, 3, 3)
    found = {}
    for name, (keep, pool) in FLAGS.items():
        with seen() as found[f"forward, {name}"]:
            fused._forward_on_gpu(x, weight, bias, keep, pool)
        with seen() as found[f"backward, {name}"]:
            fused._backward_on_gpu(x if keep else None, pooled if pool else None, x, weight, bias)
    return found


def keeps_nan() -> bool:
    """Return whether NaN in an image or in a gradient stays in all results of its channel, so that a diverging run is noticed."""
    x, gradient = torch.randn(2, 3, 6, 6), torch.rand(2, 3, 6, 6)
    x[1, 2, 0, 0] = torch.nan
    gradient[0, 1] = torch.nan
    weight, bias = torch.ones(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    y, pooled = fused.norm_relu_pool(x.requires_grad_(), weight, bias, keep=True, pool=True)
    assert y is not None
    assert pooled is not None
    in_image = [out[1, 2].isnan().all() and out[1, :2].isfinite().all() and out[0].isfinite().all() for out in (y, pooled)]
    gradients = torch.autograd.grad(y, (x, weight, bias), gradient)
    # Channel 0 has no NaN, channel 1 has it in the gradient of image 0, channel 2 in the pixels of image 1.
    bad = [[False, True, False], [False, False, True]]
    in_pixels = gradients[0].isnan().flatten(2)
    found = in_pixels.all(2).tolist() == in_pixels.any(2).tolist() == bad
    return all(in_image) and found and gradients[1].isnan().tolist() == [False, True, True]


def strided_parameters() -> float:
    """Return the largest difference that the memory layout of γ and b makes."""
    x, weight, bias = torch.randn(2, 3, 6, 6), torch.randn(3), torch.randn(3)
    strided = [torch.stack([p, torch.zeros(3)], 1)[:, 0] for p in (weight, bias)]
    ours, expected = (fused.norm_relu_pool(x, *p, keep=True, pool=False)[0] for p in (strided, (weight, bias)))
    assert ours is not None
    assert expected is not None
    return float((ours - expected).abs().max())


def empty_batch() -> tuple[list[int], list[int], float]:
    """Return the shapes of y and the pooled y of no images, and the largest gradient of γ."""
    x, weight = torch.randn(0, 3, 6, 6).requires_grad_(), torch.ones(3, requires_grad=True)
    y, pooled = fused.norm_relu_pool(x, weight, torch.zeros(3), keep=True, pool=True)
    assert y is not None
    assert pooled is not None
    (gradient,) = torch.autograd.grad(y.sum() + pooled.sum(), weight)
    return list(y.shape), list(pooled.shape), float(gradient.abs().max())


def use_kernels_on_cpu(library: torch.library.Library) -> None:
    """Let the fused operations run their GPU implementation on tensors of the CPU."""
    library.impl("norm_relu_pool", fused._forward_on_gpu, "CPU", allow_override=True)
    library.impl("norm_relu_pool_backward", fused._backward_on_gpu, "CPU", allow_override=True)


if __name__ == "__main__":
    library = torch.library.Library("cafe_core", "IMPL")
    use_kernels_on_cpu(library)
    found = {"deviations": deviations(), "launches": launches(), "keeps_nan": keeps_nan()}
    print(json.dumps(found | {"strided parameters": strided_parameters(), "empty batch": empty_batch()}))
