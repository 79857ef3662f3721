"""Measure the time that the host takes for instance norm, ReLU and pooling of a block, forward and backward, without a GPU.

Run it with `python -m tests.benchmarks.fused_host_time`. It compares the fused operation, whose Triton kernels are compiled for
an H100 but not launched, with torch's three operations on four pixels of the CPU. It replaces Triton's driver in its process,
so `make bench` does not run it.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from cafe_core.networks import fused
from cafe_core.networks.layers import EPS
from tests.benchmarks.figures import Figure, machine
from tests.cafe_core.networks.h100 import H100
from tests.cafe_core.networks.interpreted_kernels import use_kernels_on_cpu

REPEATS = 5000


def _microseconds(work: Callable[[], object]) -> float:
    """Return the median time after a warm-up."""
    times = []
    for _ in range(REPEATS + 200):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return 1e6 * median(times[200:])


def main() -> None:
    """Print the figures."""
    from triton.runtime import driver, jit

    from cafe_core.networks import fused_kernels

    torch.set_num_threads(1)
    driver._active = H100()
    library = torch.library.Library("cafe_core", "IMPL")  # type: ignore[no-untyped-call]
    use_kernels_on_cpu(library)
    x, weight, bias = (torch.randn(shape).requires_grad_() for shape in ((1, 1, 2, 2), (1,), (1,)))
    gradient = torch.randn(1, 1, 1, 1)

    def backward(pooled: Tensor) -> None:
        torch.autograd.grad(pooled, (x, weight, bias), gradient)

    def ours() -> None:
        _, pooled = fused.norm_relu_pool(x, weight, bias, keep=False, pool=True)
        assert pooled is not None
        backward(pooled)

    def torchs() -> None:
        backward(F.avg_pool2d(torch.group_norm(x, 1, weight, bias, EPS).relu(), 2))

    grad_x, sums = fused._gradient_outputs(x)
    pooled = x.new_empty(1, 1, 1, 1)

    def launches() -> None:
        fused_kernels.forward(x, weight, bias, None, pooled)
        fused_kernels.backward(None, pooled, x, weight, bias, grad_x, sums)

    compiled = []
    run = jit.JITFunction.run
    jit.JITFunction.run = lambda *args, **kwargs: compiled.append(run(*args, **kwargs))
    ours()
    jit.JITFunction.run = run
    assert [kernel.name for kernel in compiled] == ["forward_kernel", "backward_kernel"]
    print(machine(), f"median of {REPEATS}", flush=True)
    print(Figure("fused operation, forward and backward", _microseconds(ours), "us"))
    print(Figure("of which the calls of Triton", _microseconds(launches), "us"))
    print(Figure("torch's three operations, forward and backward", _microseconds(torchs), "us"))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        main()
