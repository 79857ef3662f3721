"""Compute instance norm, ReLU and 2×2 average pooling in one Triton kernel forward and one backward.

    x  map (n, C, H, W)     μ, σ²  mean and variance over the H·W pixels of an image's channel     γ, b  of the instance norm

Forward, with r = 1/√(σ² + ε):   x̂ = (x − μ)·r,   y = max(γ·x̂ + b, 0),   pooled = mean of y over cells of 2×2 pixels.

Backward, with g = ∂L/∂y + ¼ ∂L/∂pooled where γ·x̂ + b > 0, and 0 elsewhere (all means over the H·W pixels):

    ∂L/∂x = γ·r·(g − mean(g) − x̂·mean(g·x̂)),     ∂L/∂γ = Σ_n Σ_pixels g·x̂,     ∂L/∂b = Σ_n Σ_pixels g

A program handles one image and a block of its channels: it reads their pixels once, as a tile (channel, cell, 4 pixels of the
cell), and keeps them in registers. Of an odd side, the last row or column counts for the statistics but is not pooled. The
backward kernel computes the statistics again instead of reading them, and writes the sums over pixels for each image and channel;
the caller adds those of all images. All arithmetic is in float32, or float64 for float64 maps.

Importing this module needs Triton. It has not been run on a GPU; see :mod:`cafe_core.networks.fused` for the checks.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cafe_core.networks.layers import EPS

MAX_PIXELS = 128 * 128
"""Limit on the pixels of a tile: a channel of one image, with its cells rounded up to a power of two."""
_TILE = 2048
"""Pixels of a tile that has several channels."""
_PIXELS_PER_WARP = 512


@triton.jit
def _tile(
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, CHANNELS_LAST: tl.constexpr, BLOCK_C: tl.constexpr, CELLS: tl.constexpr
):
    """Return this program's channels, the offsets and the validity of its pixels, and the same of its pooled pixels."""
    across: tl.constexpr = (W + 1) // 2  # cells in a row
    blocks: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    program = tl.program_id(0)
    image = (program // blocks).to(tl.int64)
    channel = (program % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    cell = tl.arange(0, CELLS)
    corner = tl.arange(0, 4)
    row = 2 * (cell // across)[None, :, None] + (corner // 2)[None, None, :]
    column = 2 * (cell % across)[None, :, None] + (corner % 2)[None, None, :]
    c = channel[:, None, None]
    valid = (c < C) & (row < H) & (column < W)
    pooled_row, pooled_column, pooled_c = (cell // across)[None, :], (cell % across)[None, :], channel[:, None]
    pooled_valid = (pooled_c < C) & (pooled_row < H // 2) & (pooled_column < W // 2)
    if CHANNELS_LAST:
        offsets = image * (C * H * W) + (row * W + column) * C + c
        pooled_offsets = image * (C * (H // 2) * (W // 2)) + (pooled_row * (W // 2) + pooled_column) * C + pooled_c
    else:
        offsets = image * (C * H * W) + (c * H + row) * W + column
        pooled_offsets = image * (C * (H // 2) * (W // 2)) + (pooled_c * (H // 2) + pooled_row) * (W // 2) + pooled_column
    return image, channel, offsets, valid, pooled_offsets, pooled_valid


@triton.jit
def _over_pixels(tile):
    """Sum over the pixels of each channel: (BLOCK_C, CELLS, 4) → (BLOCK_C, 1, 1)."""
    return tl.sum(tl.sum(tile, axis=2), axis=1)[:, None, None]


@triton.jit
def _normalised(x_ptr, offsets, valid, PIXELS: tl.constexpr, EPS: tl.constexpr, ACC: tl.constexpr):
    """Return x̂, 0 outside the map, and r of each channel."""
    x = tl.load(x_ptr + offsets, mask=valid, other=0.0).to(ACC)
    centred = tl.where(valid, x - _over_pixels(x) / PIXELS, 0.0)
    rstd = 1.0 / tl.sqrt(_over_pixels(centred * centred) / PIXELS + EPS)
    return centred * rstd, rstd


@triton.jit
def forward_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    map_ptr,
    pooled_ptr,
    C: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    KEEP: tl.constexpr,
    POOL: tl.constexpr,
    EPS: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_C: tl.constexpr,
    CELLS: tl.constexpr,
):
    """Write y if KEEP, and the pooled y if POOL."""
    _, channel, offsets, valid, pooled_offsets, pooled_valid = _tile(C, H, W, CHANNELS_LAST, BLOCK_C, CELLS)
    weight = tl.load(weight_ptr + channel, mask=channel < C, other=0.0).to(ACC)[:, None, None]
    bias = tl.load(bias_ptr + channel, mask=channel < C, other=0.0).to(ACC)[:, None, None]
    normalised, _ = _normalised(x_ptr, offsets, valid, H * W, EPS, ACC)
    y = normalised * weight + bias
    y = tl.where(y <= 0.0, 0.0, y)  # unlike max(y, 0), this keeps NaN, so that a diverging run is noticed
    if KEEP:
        tl.store(map_ptr + offsets, y, mask=valid)
    if POOL:
        tl.store(pooled_ptr + pooled_offsets, tl.sum(y, axis=2) * 0.25, mask=pooled_valid)


@triton.jit
def backward_kernel(
    grad_map_ptr,
    grad_pooled_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    grad_x_ptr,
    sums_ptr,
    C: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    KEEP: tl.constexpr,
    POOL: tl.constexpr,
    EPS: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_C: tl.constexpr,
    CELLS: tl.constexpr,
):
    """Write ∂L/∂x, and Σ_pixels g·x̂ and Σ_pixels g of each image and channel: (n, 2, C)."""
    image, channel, offsets, valid, pooled_offsets, pooled_valid = _tile(C, H, W, CHANNELS_LAST, BLOCK_C, CELLS)
    weight = tl.load(weight_ptr + channel, mask=channel < C, other=0.0).to(ACC)[:, None, None]
    bias = tl.load(bias_ptr + channel, mask=channel < C, other=0.0).to(ACC)[:, None, None]
    normalised, rstd = _normalised(x_ptr, offsets, valid, H * W, EPS, ACC)
    g = tl.zeros([BLOCK_C, CELLS, 4], ACC)  # stays 0 outside the map, where nothing is loaded
    if KEEP:
        g += tl.load(grad_map_ptr + offsets, mask=valid, other=0.0).to(ACC)
    if POOL:
        g += 0.25 * tl.load(grad_pooled_ptr + pooled_offsets, mask=pooled_valid, other=0.0).to(ACC)[:, :, None]
    g = tl.where(normalised * weight + bias <= 0.0, 0.0, g)
    sum_gx, sum_g = _over_pixels(g * normalised), _over_pixels(g)
    grad_x = weight * rstd * (g - sum_g / (H * W) - normalised * (sum_gx / (H * W)))
    tl.store(grad_x_ptr + offsets, grad_x, mask=valid)
    rows = image * (2 * C) + channel[:, None, None]
    tl.store(sums_ptr + rows, sum_gx, mask=channel[:, None, None] < C)
    tl.store(sums_ptr + rows + C, sum_g, mask=channel[:, None, None] < C)


def fits(height: int, width: int) -> bool:
    """Return whether a channel of an image of this size fits one tile.

    Maps of two pixels are left to torch: there x̂ is ±1, ∂L/∂x is the difference of nearly equal numbers, and rounding decides.
    """
    return height * width != 2 and _cells(height, width) * 4 <= MAX_PIXELS


def forward(x: Tensor, weight: Tensor, bias: Tensor, y: Tensor | None, pooled: Tensor | None) -> None:
    """Write the activations to `y` and the pooled ones to `pooled`, each unless it is None. Both have the layout of x."""
    _launch(forward_kernel, x, [x, weight, bias, y, pooled], KEEP=y is not None, POOL=pooled is not None)


def backward(
    grad_y: Tensor | None, grad_pooled: Tensor | None, x: Tensor, weight: Tensor, bias: Tensor, grad_x: Tensor, sums: Tensor
) -> None:
    """Write ∂L/∂x to `grad_x`, and Σ_pixels g·x̂ and Σ_pixels g to `sums`, (n, 2, C). grad_y, grad_pooled: in the layout of x."""
    tensors = [grad_y, grad_pooled, x, weight, bias, grad_x, sums]
    _launch(backward_kernel, x, tensors, KEEP=grad_y is not None, POOL=grad_pooled is not None)


@cache
def constants(channels: int, height: int, width: int, dtype: torch.dtype, *, channels_last: bool) -> dict[str, Any]:
    """Return the constants of the kernels for maps of this shape, apart from KEEP and POOL."""
    cells = _cells(height, width)
    # Neighbours in memory are channels in one layout and pixels in the other.
    together = max(_TILE, min(MAX_PIXELS, 8 * 4 * cells)) if channels_last else _TILE
    return {
        "C": channels,
        "H": height,
        "W": width,
        "CHANNELS_LAST": channels_last,
        "EPS": EPS,
        "ACC": tl.float64 if dtype == torch.float64 else tl.float32,
        "BLOCK_C": min(triton.next_power_of_2(channels), max(1, together // (4 * cells))),
        "CELLS": cells,
    }


def warps(block_c: int, cells: int) -> int:
    """Return how many warps process a tile."""
    return min(16, max(1, 4 * block_c * cells // _PIXELS_PER_WARP))


def _launch(kernel: Any, x: Tensor, tensors: list[Tensor | None], **flags: bool) -> None:
    images, *shape = x.shape
    fixed = constants(*shape, x.dtype, channels_last=not x.is_contiguous())
    programs = images * triton.cdiv(fixed["C"], fixed["BLOCK_C"])
    pointers = [x if tensor is None else tensor for tensor in tensors]  # a tensor that is None is neither read nor written
    kernel[(programs,)](*pointers, **fixed, **flags, num_warps=warps(fixed["BLOCK_C"], fixed["CELLS"]))


def _cells(height: int, width: int) -> int:
    """Return the number of cells of 2×2 pixels, rounded up to a power of two, as tiles need it."""
    cells: int = triton.next_power_of_2(((height + 1) // 2) * ((width + 1) // 2))
    return cells
