"""Augment images differentiably, with random draws that several images can share.

A draw is one row of :class:`Draws`. Siamese augmentation (DSA, Zhao & Bilen, ICML 2021, section 3.2) draws one row per class
and applies it to all real and synthetic images of the class; training draws one row per image.

A row applies *one* operation, chosen uniformly from those of its strategy:

====================  ==========================================================================================
``dsa``               color · crop · cutout · flip (not for digits) · scale · rotate, with the DSA paper's settings
``dsa_without_cutout`` the same without cutout, as IDC's code (github.com/snu-mllab/Efficient-Dataset-Condensation)
                      trains with CutMix
``color_crop_cutout`` color · crop · cutout, with the DSA paper's settings, as IDC's code matches
``color_crop``        the same without cutout, as DANCE's code trains its pool with CutMix
``crop_scale_rotate`` crop · scale · rotate, as DC's code (github.com/VICO-UoE/DatasetCondensation), which CAFE's
                      follows, trains on MNIST: ±4 of 32 pixels, ±20 % per axis, ±45°
====================  ==========================================================================================

Pixels from outside the image are 0, which is the dataset's mean in normalised images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from cafe_core.algorithm.transfer import send
from cafe_core.spec.evaluation import Augmentation

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class _Strategy:
    """A strategy's operations and their strengths. Ratios are relative to the image's side."""

    operations: tuple[str, ...]
    zoom: tuple[float, float]
    """Range of the sampling grid's stretch per axis: above 1 the image becomes smaller."""
    zoom_is_inverse: bool
    """Whether `zoom` is the range of the image's magnification, the inverse of the stretch."""
    degrees: float
    crop_ratio: float = 0.125
    cutout_ratio: float = 0.5
    flip_probability: float = 0.5
    brightness: float = 1.0
    saturation: float = 2.0
    contrast: float = 0.5


_DSA = _Strategy(("color", "crop", "cutout", "flip", "scale", "rotate"), zoom=(1 / 1.2, 1.2), zoom_is_inverse=False, degrees=15)

STRATEGIES: dict[str, _Strategy] = {
    "dsa": _DSA,
    "dsa_without_cutout": replace(_DSA, operations=("color", "crop", "flip", "scale", "rotate")),
    "color_crop": replace(_DSA, operations=("color", "crop")),
    "color_crop_cutout": replace(_DSA, operations=("color", "crop", "cutout")),
    "crop_scale_rotate": _Strategy(("crop", "scale", "rotate"), zoom=(0.8, 1.2), zoom_is_inverse=True, degrees=45),
}


@dataclass(frozen=True)
class Draws:
    """n random transformations. A part that the strategy never changes is None."""

    affine: Tensor
    """(n, 2, 3): maps a pixel of the result to the source, both in [−1, 1] (`torch.nn.functional.affine_grid`)."""
    colour: Tensor | None
    """(n, 3): added brightness, factor of saturation, factor of contrast."""
    cutout: Tensor | None
    """(n, 4): top, bottom, left, right in pixels, ends excluded, of the box that is set to 0; empty if bottom ≤ top."""

    def __len__(self) -> int:
        return len(self.affine)

    def __getitem__(self, rows: Tensor) -> Draws:
        """Return the rows at the indices `rows`, which may repeat: `draws[labels]` gives each image the row of its class."""
        rows = send(rows, self.affine.device)
        return Draws(*(None if part is None else part[rows] for part in self._parts()))  # type: ignore[arg-type]

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> Draws:
        """Return the same draws on `device`, in `dtype`."""
        parts = (None if part is None else send(part.to(dtype or part.dtype), device) for part in self._parts())
        return Draws(*parts)  # type: ignore[arg-type]

    def _parts(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return self.affine, self.colour, self.cutout


UNIFORMS = 4
"""Uniform numbers per draw: the operation, then up to three parameters."""


def draw(strategy: Augmentation, count: int, shape: Shape, is_digits: bool, generator: torch.Generator) -> Draws:
    """Return `count` independent draws of `strategy` for images of `shape` (C, H, W), as float64 on the CPU.

    Row i does not depend on `count`. Raises ValueError for a strategy that has no draws ("none").
    """
    u = torch.rand(count, UNIFORMS, dtype=torch.float64, generator=generator)
    return from_uniforms(strategy, u, shape, is_digits)


def from_uniforms(strategy: Augmentation, u: Tensor, shape: Shape, is_digits: bool) -> Draws:
    """Return the draws given by `u`: (n, UNIFORMS) float64, uniform in [0, 1), on the CPU. Raises ValueError as :func:`draw`."""
    if strategy not in STRATEGIES:
        raise ValueError(f"augment must be one of {', '.join(STRATEGIES)}; got {strategy!r}")
    settings = STRATEGIES[strategy]
    operations = [name for name in settings.operations if not (name == "flip" and is_digits)]
    picked = (u[:, 0] * len(operations)).long()
    rows = {name: picked == index for index, name in enumerate(operations)}
    return Draws(
        affine=_draw_affine(settings, rows, u[:, 1:], shape),
        colour=_draw_colour(settings, rows["color"], u[:, 1:]) if "color" in rows else None,
        cutout=_draw_cutout(settings, rows["cutout"], u[:, 1:], shape) if "cutout" in rows else None,
    )


def _draw_affine(settings: _Strategy, rows: dict[str, Tensor], u: Tensor, shape: Shape) -> Tensor:
    """Return (n, 2, 3): crop, flip, scale or rotation in the rows that chose it, the identity in the others."""
    _, height, width = shape
    affine = torch.eye(2, 3, dtype=u.dtype).repeat(len(u), 1, 1)
    for axis, side in ((0, width), (1, height)):
        reach = int(side * settings.crop_ratio + 0.5)  # pixels; a pixel is 2/side
        pixels = (u[:, axis] * (2 * reach + 1)).floor() - reach
        affine[:, axis, 2] = torch.where(rows["crop"], pixels * 2 / side, 0.0)
        if "scale" in rows:
            low, high = settings.zoom
            zoom = low + (high - low) * u[:, axis]
            zoom = 1 / zoom if settings.zoom_is_inverse else zoom
            affine[:, axis, axis] = torch.where(rows["scale"], zoom, 1.0)
    if "flip" in rows:
        affine[:, 0, 0] = torch.where(rows["flip"] & (u[:, 0] < settings.flip_probability), -1.0, affine[:, 0, 0])
    if "rotate" in rows:
        angle = (2 * u[:, 0] - 1) * math.radians(settings.degrees)
        # A rotation in pixels: in units of half sides, the off-diagonal is multiplied by the ratio of the sides.
        parts = [angle.cos(), -angle.sin() * height / width, angle.sin() * width / height, angle.cos()]
        rotation = torch.stack(parts, dim=1).view(-1, 2, 2)
        affine[:, :, :2] = torch.where(rows["rotate"][:, None, None], rotation, affine[:, :, :2])
    return affine


def _draw_colour(settings: _Strategy, row: Tensor, u: Tensor) -> Tensor:
    """Return (n, 3): brightness within ±½, saturation within 0–2, contrast within ½–1½ in the rows that chose colour."""
    drawn = torch.stack(
        [(u[:, 0] - 0.5) * settings.brightness, u[:, 1] * settings.saturation, u[:, 2] + settings.contrast], dim=1
    )
    return torch.where(row[:, None], drawn, torch.tensor([0.0, 1.0, 1.0], dtype=u.dtype))


def _draw_cutout(settings: _Strategy, row: Tensor, u: Tensor, shape: Shape) -> Tensor:
    """Return (n, 4): a box of half the sides centred anywhere in the image, and clipped to it."""
    box = []
    for axis, side in enumerate(shape[1:]):
        size = int(side * settings.cutout_ratio + 0.5)
        start = (u[:, axis] * (side + 1 - size % 2)).floor() - size // 2
        box += [start, start + torch.where(row, size, 0)]
    return torch.stack(box, dim=1)


def apply(images: Tensor, draws: Draws) -> Tensor:
    """Apply row i of `draws` to image i: (n, C, H, W) → (n, C, H, W), differentiable in `images`.

    `images` are normalised floats. Each result depends only on its own image and row.
    """
    assert len(draws) == len(images), f"{len(draws)} draws for {len(images)} images"
    draws = draws.to(images.device, images.dtype)
    if draws.colour is not None:
        images = _colour(images, draws.colour)
    grid = F.affine_grid(draws.affine, list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    if draws.cutout is not None:
        images = cut_out(images, draws.cutout)
    return images


def _colour(images: Tensor, colour: Tensor) -> Tensor:
    """Apply brightness, then saturation (distance from the pixel's grey), then contrast (distance from the image's mean)."""
    brightness, saturation, contrast = (part.view(-1, 1, 1, 1) for part in colour.unbind(1))
    images = images + brightness
    images = torch.lerp(images.mean(1, keepdim=True), images, saturation)
    return torch.lerp(images.mean((1, 2, 3), keepdim=True), images, contrast)


def cut_out(images: Tensor, box: Tensor) -> Tensor:
    """Set images (n, C, H, W) to 0 within each one's box, (n, 4) as in `Draws.cutout`."""
    top, bottom, left, right = (edge.view(-1, 1) for edge in box.unbind(1))
    y = torch.arange(images.shape[2], device=images.device)
    x = torch.arange(images.shape[3], device=images.device)
    inside_y, inside_x = (y >= top) & (y < bottom), (x >= left) & (x < right)  # (n, H), (n, W)
    outside = ~(inside_y[:, None, :, None] & inside_x[:, None, None, :])  # (n, 1, H, W)
    return images * outside.to(images.dtype)
