"""Compute instance norm, ReLU and 2×2 average pooling in one GPU kernel forward and one backward.

``cafe_core::norm_relu_pool`` and ``cafe_core::norm_relu_pool_backward`` are operations of torch, so that profilers and the
emulated GPU of the tests see one call for each. On a GPU each launches one Triton kernel; the module
:mod:`cafe_core.networks.fused_kernels` has the formulas. On a CPU they compute the same formulas with torch's operations.
Networks do not use them there, nor in compiled code, where the compiler fuses torch's operations itself.

With double backward (gradient matching), the gradient is computed by differentiable operations of torch. Transforms of
`torch.func`, such as vmap, are not supported.

The kernels have not been run on a GPU yet. Therefore their results are compared with torch's own operations at the first use for
each size of map. The first failure logs a warning, and the kernels are not used afterwards.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cafe_core.networks.layers import EPS, Shape

log = logging.getLogger(__name__)

_LIMITS = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 1e-2}
"""Bounds on the relative deviation from torch in float64, by the map's dtype. Maps of other dtypes do not use the kernels."""
# The host takes longer to launch the kernels than torch's operations (docs/notes/gpu.md), so they are used only for maps on which
# the GPU works longer than the host; smaller maps are bound by the host. This number is a guess until a GPU has measured it.
MIN_ELEMENTS = 1 << 19
_CHECKED_CHANNELS = 128


def norm_relu_pool(x: Tensor, weight: Tensor, bias: Tensor, *, keep: bool, pool: bool) -> tuple[Tensor | None, Tensor | None]:
    """Return y = ReLU(instance norm of x), (n, C, H, W), if `keep`, and y after 2×2 average pooling if `pool`.

    Both have the dtype of x; the statistics are float32, or float64 for float64. weight, bias: (C,).
    """
    x = x.contiguous(memory_format=_layout(x))
    y, pooled = torch.ops.cafe_core.norm_relu_pool(x, weight.contiguous(), bias.contiguous(), keep, pool)
    return y if keep else None, pooled if pool else None


class _Verification:
    """Remember whether the kernels can be used in this process."""

    def __init__(self) -> None:
        self._passed: set[tuple[object, ...]] = set()
        self._failed = False

    def passes(self, device: torch.device, dtype: torch.dtype, shape: Shape, *flags: bool) -> bool:
        """Return whether the kernels work for maps of `shape`. The first failure logs a warning; they are not used afterwards.

        At most 128 channels are checked, because all are computed alike and an ensemble of networks has so many that the check
        would allocate gigabytes.
        """
        shape = (min(shape[0], _CHECKED_CHANNELS), *shape[1:])
        case = (device, dtype, shape, flags)
        if self._failed or case in self._passed:
            return not self._failed
        try:
            from cafe_core.networks import fused_kernels  # Triton is not installed everywhere

            if not fused_kernels.fits(*shape[1:]):
                return False
            found = deviation(device, dtype, shape, *flags)
            problem = (
                None if found <= _LIMITS[dtype] else f"their deviation from torch is {found:.1e}, above {_LIMITS[dtype]:.0e}"
            )
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a missing Triton or C compiler, an old driver, or a kernel that does not compile
            problem = f"{type(error).__name__}: {error}"
        if problem is None:
            self._passed.add(case)
            return True
        self._failed = True
        log.warning(
            "the fused kernels for instance norm, ReLU and pooling are not used, because they failed for %s maps of %s: %s. "
            "Torch's own kernels are used instead: results agree up to rounding, but steps take longer",
            dtype,
            shape,
            problem,
        )
        return False


verification = _Verification()


def usable(x: Tensor, *, keep: bool, pool: bool) -> bool:
    """Return whether :func:`norm_relu_pool` can compute these maps with its kernels, and is worth it."""
    if not x.is_cuda or x.dtype not in _LIMITS or x.numel() < MIN_ELEMENTS or torch.compiler.is_compiling():
        return False
    _, channels, height, width = x.shape
    return verification.passes(x.device, x.dtype, (channels, height, width), _is_channels_last(x), keep, pool)


@torch.enable_grad()
def deviation(
    device: torch.device, dtype: torch.dtype, shape: Shape, channels_last: bool, keep: bool, pool: bool, *, images: int = 2
) -> float:
    """Return the largest deviation of :func:`norm_relu_pool` and its gradients from torch in float64, for random images.

    Deviations are ‖ours − torch's‖ / (1 + ‖torch's‖). Pixels near 0, where rounding decides whether ReLU passes a gradient, have
    no gradient.
    """
    random = torch.Generator().manual_seed(0)

    def normal(*size: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(size, generator=random, dtype=torch.float64).to(device, dtype)

    with torch.inference_mode(mode=False), torch.autocast(device.type, enabled=False):
        layout = torch.channels_last if channels_last else torch.contiguous_format
        x = (3 + 2 * normal(images, *shape)).contiguous(memory_format=layout).requires_grad_()
        weight = normal(shape[0], dtype=_accumulation(dtype)).requires_grad_()
        bias = normal(shape[0], dtype=_accumulation(dtype)).abs().requires_grad_()  # positive, so that no channel is all zero

        inputs = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
        before_relu = torch.group_norm(inputs[0], shape[0], inputs[1], inputs[2], EPS)
        y = before_relu.relu()
        near_zero = (before_relu.detach().abs() < 1e-3).double()
        expected, gradients = [], []
        if keep:
            expected.append(y)
            gradients.append(normal(*y.shape) * (near_zero == 0))
        if pool:
            expected.append(F.avg_pool2d(y, 2))
            gradients.append(normal(*expected[-1].shape) * (F.avg_pool2d(near_zero, 2) == 0))
        expected += torch.autograd.grad(expected, inputs, [g.double() for g in gradients])

        ours = [t for t in norm_relu_pool(x, weight, bias, keep=keep, pool=pool) if t is not None]
        ours += torch.autograd.grad(ours, (x, weight, bias), gradients)
        errors = [(a.double() - b).norm() / (1 + b.norm()) for a, b in zip(ours, expected, strict=True)]
        return float(torch.stack(errors).detach().max())  # NaN if any is


def _forward_on_gpu(x: Tensor, weight: Tensor, bias: Tensor, keep: bool, pool: bool) -> tuple[Tensor, Tensor]:
    from cafe_core.networks import fused_kernels

    y, pooled = _outputs(x, keep, pool)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        fused_kernels.forward(x, weight, bias, y if keep else None, pooled if pool else None)
    return y, pooled


def _backward_on_gpu(
    grad_y: Tensor | None, grad_pooled: Tensor | None, x: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    from cafe_core.networks import fused_kernels

    grad_x, sums = _gradient_outputs(x)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        fused_kernels.backward(grad_y, grad_pooled, x, weight, bias, grad_x, sums)
    return grad_x, sums


def _outputs(x: Tensor, keep: bool, pool: bool) -> tuple[Tensor, Tensor]:
    """Return empty tensors for y and the pooled y; without elements if they are not wanted."""
    n, c, h, w = x.shape
    pooled = x.new_empty(0)
    if pool:
        pooled = torch.empty((n, c, h // 2, w // 2), dtype=x.dtype, device=x.device, memory_format=_layout(x))
    return torch.empty_like(x) if keep else x.new_empty(0), pooled


def _gradient_outputs(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return empty tensors for ∂L/∂x, and for Σ_pixels g·x̂ and Σ_pixels g: (n, 2, C)."""
    return torch.empty_like(x), x.new_empty((len(x), 2, x.shape[1]), dtype=_accumulation(x.dtype))


def _forward_on_cpu(x: Tensor, weight: Tensor, bias: Tensor, keep: bool, pool: bool) -> tuple[Tensor, Tensor]:
    y, pooled = _outputs(x, keep, pool)
    normalised, _ = _normalised(x)
    activations = (normalised * _per_channel(weight) + _per_channel(bias)).relu()
    if keep:
        y.copy_(activations)
    if pool:
        pooled.copy_(F.avg_pool2d(activations, 2))
    return y, pooled


def _backward_on_cpu(
    grad_y: Tensor | None, grad_pooled: Tensor | None, x: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    grad_x, sums = _gradient_outputs(x)
    for out, result in zip((grad_x, sums), _gradients(grad_y, grad_pooled, x, weight, bias), strict=True):
        out.copy_(result)
    return grad_x, sums


def _gradients(
    grad_y: Tensor | None, grad_pooled: Tensor | None, x: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Return ∂L/∂x, and Σ_pixels g·x̂ and Σ_pixels g: (n, 2, C), by differentiable operations."""
    h, w = x.shape[2:]
    normalised, rstd = _normalised(x)
    g = torch.zeros_like(normalised) if grad_y is None else grad_y.to(normalised.dtype)
    if grad_pooled is not None:
        cells = grad_pooled.to(normalised.dtype).repeat_interleave(2, 2).repeat_interleave(2, 3) / 4
        g = g + F.pad(cells, (0, w % 2, 0, h % 2))
    scale = _per_channel(weight)
    g = g.masked_fill(normalised * scale + _per_channel(bias) <= 0, 0)
    sums = torch.stack([(g * normalised).sum((2, 3)), g.sum((2, 3))], 1)
    mean_gx, mean_g = (sums / (h * w))[..., None, None].unbind(1)
    return (scale * rstd * (g - mean_g - normalised * mean_gx)).to(x.dtype), sums


def _normalised(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return x̂ (n, C, H, W) and r (n, C, 1, 1)."""
    x = x.to(_accumulation(x.dtype))
    centred = x - x.mean((2, 3), keepdim=True)
    rstd = (centred.square().mean((2, 3), keepdim=True) + EPS).rsqrt()
    return centred * rstd, rstd


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG001
    x, weight, bias, _keep, _pool = inputs
    ctx.save_for_backward(x, weight, bias)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_y: Tensor | None, grad_pooled: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return the gradients of x, γ and b: one kernel, and one sum over the images if γ or b needs it."""
    x, weight, bias = ctx.saved_tensors
    if grad_y is None and grad_pooled is None:
        return (None,) * 5
    if torch.is_grad_enabled():  # create_graph=True
        grad_x, sums = _gradients(grad_y, grad_pooled, x, weight, bias)
    else:
        aligned = (None if g is None else g.contiguous(memory_format=_layout(x)) for g in (grad_y, grad_pooled))
        grad_x, sums = torch.ops.cafe_core.norm_relu_pool_backward(*aligned, x, weight, bias)
    grad_weight = grad_bias = None
    if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
        grad_weight, grad_bias = sums.sum(0).to(weight.dtype).unbind()
    return grad_x, grad_weight, grad_bias, None, None


def _is_channels_last(x: Tensor) -> bool:
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _layout(x: Tensor) -> torch.memory_format:
    return torch.channels_last if _is_channels_last(x) else torch.contiguous_format


def _accumulation(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of statistics and sums."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _per_channel(parameter: Tensor) -> Tensor:
    return parameter[:, None, None]


def _register() -> object:
    """Register the operations. `torch.library.custom_op` would import the compiler at the first call, which takes seconds.

    Returns the registration, which ends when it is deleted.
    """
    library: Any = torch.library.Library("cafe_core", "DEF")  # type: ignore[no-untyped-call]
    library.define("norm_relu_pool(Tensor x, Tensor weight, Tensor bias, bool keep, bool pool) -> (Tensor, Tensor)")
    library.define(
        "norm_relu_pool_backward(Tensor? grad_y, Tensor? grad_pooled, Tensor x, Tensor weight, Tensor bias) -> (Tensor, Tensor)"
    )
    library.impl("norm_relu_pool", _forward_on_gpu, "CUDA")
    library.impl("norm_relu_pool", _forward_on_cpu, "CPU")
    library.impl("norm_relu_pool_backward", _backward_on_gpu, "CUDA")
    library.impl("norm_relu_pool_backward", _backward_on_cpu, "CPU")
    torch.library.register_autograd("cafe_core::norm_relu_pool", _backward, setup_context=_save_inputs, lib=library)
    return library


_library = _register()
