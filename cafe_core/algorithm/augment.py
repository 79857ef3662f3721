"""Differentiable augmentation whose random draws are values, so that images can share them.

A draw is one row of :class:`Draws`. Siamese augmentation (DSA, Zhao & Bilen, ICML 2021, section 3.2) draws one row per class
and gives it to all real and synthetic images of the class; training draws a row per image.

A row carries out *one* operation, picked evenly from its strategy's:

====================  ==========================================================================================
``dsa``               color · crop · cutout · flip (not for digits) · scale · rotate, with the DSA paper's settings
``crop_scale_rotate`` crop · scale · rotate, as DC's code (github.com/VICO-UoE/DatasetCondensation), which CAFE's
                      follows, trains on MNIST: ±4 of 32 pixels, ±20 % per axis, ±45°
====================  ==========================================================================================

What comes into the image from outside is 0: in normalised images, the dataset's mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cafe_core.spec.evaluation import Augmentation

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class _Strategy:
    """What a strategy picks from, and how far it goes. Ratios are of the image's side."""

    operations: tuple[str, ...]
    zoom: tuple[float, float]
    """Per axis, what the sampling grid is stretched by: above 1 the image becomes smaller."""
    zoom_is_inverse: bool
    """Whether the inverse of the stretch is what is uniform within `zoom`, that is, the image's magnification."""
    degrees: float
    crop_ratio: float = 0.125
    cutout_ratio: float = 0.5
    flip_probability: float = 0.5
    brightness: float = 1.0
    saturation: float = 2.0
    contrast: float = 0.5


_STRATEGIES: dict[str, _Strategy] = {
    "dsa": _Strategy(
        ("color", "crop", "cutout", "flip", "scale", "rotate"), zoom=(1 / 1.2, 1.2), zoom_is_inverse=False, degrees=15
    ),
    "crop_scale_rotate": _Strategy(("crop", "scale", "rotate"), zoom=(0.8, 1.2), zoom_is_inverse=True, degrees=45),
}


@dataclass(frozen=True)
class Draws:
    """n drawn transformations. A part that the strategy never changes is None."""

    affine: Tensor
    """(n, 2, 3): maps a pixel of the result to the source, both in [−1, 1] (`torch.nn.functional.affine_grid`)."""
    colour: Tensor | None
    """(n, 3): added brightness, factor of saturation, factor of contrast."""
    cutout: Tensor | None
    """(n, 4): top, bottom, left, right of the box that becomes 0, ends excluded, in pixels; empty where bottom ≤ top."""

    def __len__(self) -> int:
        return len(self.affine)

    def __getitem__(self, rows: Tensor) -> Draws:
        """The rows at the indices `rows`, each as often as it is named: `draws[labels]` gives a class's row to its images."""
        return Draws(*(None if part is None else part[rows] for part in self._parts()))  # type: ignore[arg-type]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Draws:
        """The same draws on `device`, in `dtype`."""
        return Draws(*(None if part is None else part.to(device, dtype) for part in self._parts()))  # type: ignore[arg-type]

    def _parts(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return self.affine, self.colour, self.cutout


UNIFORMS = 4
"""Numbers in [0, 1) that a draw is made of: the operation, then its up to three parameters."""


def draw(strategy: Augmentation, count: int, shape: Shape, is_digits: bool, generator: torch.Generator) -> Draws:
    """`count` independent draws of `strategy` for images of `shape` (C, H, W), as float64 on the CPU.

    Row i is the same whatever `count` is. Raises ValueError for a strategy that draws nothing ("none").
    """
    u = torch.rand(count, UNIFORMS, dtype=torch.float64, generator=generator)
    return from_uniforms(strategy, u, shape, is_digits)


def from_uniforms(strategy: Augmentation, u: Tensor, shape: Shape, is_digits: bool) -> Draws:
    """The draws that are made of `u`: (n, UNIFORMS) float64, uniform in [0, 1), on the CPU. Raises ValueError as `draw`."""
    if strategy not in _STRATEGIES:
        raise ValueError(f"augment: {strategy!r} is none of {', '.join(_STRATEGIES)}")
    settings = _STRATEGIES[strategy]
    operations = [name for name in settings.operations if not (name == "flip" and is_digits)]
    picked = (u[:, 0] * len(operations)).long()
    rows = {name: picked == index for index, name in enumerate(operations)}
    return Draws(
        affine=_draw_affine(settings, rows, u[:, 1:], shape),
        colour=_draw_colour(settings, rows["color"], u[:, 1:]) if "color" in rows else None,
        cutout=_draw_cutout(settings, rows["cutout"], u[:, 1:], shape) if "cutout" in rows else None,
    )


def _draw_affine(settings: _Strategy, rows: dict[str, Tensor], u: Tensor, shape: Shape) -> Tensor:
    """(n, 2, 3): crop, flip, scale or rotation in the rows that picked it, the identity in the others."""
    _, height, width = shape
    affine = torch.eye(2, 3, dtype=u.dtype).repeat(len(u), 1, 1)
    for axis, side in ((0, width), (1, height)):
        reach = int(side * settings.crop_ratio + 0.5)  # pixels; a pixel is 2/side
        pixels = (u[:, axis] * (2 * reach + 1)).floor() - reach
        affine[:, axis, 2] = torch.where(rows["crop"], pixels * 2 / side, 0.0)
        low, high = settings.zoom
        zoom = low + (high - low) * u[:, axis]
        zoom = 1 / zoom if settings.zoom_is_inverse else zoom
        affine[:, axis, axis] = torch.where(rows["scale"], zoom, 1.0)
    if "flip" in rows:
        affine[:, 0, 0] = torch.where(rows["flip"] & (u[:, 0] < settings.flip_probability), -1.0, affine[:, 0, 0])
    angle = torch.where(rows["rotate"], (2 * u[:, 0] - 1) * math.radians(settings.degrees), 0.0)
    # A rotation of pixels: in units of half sides, the off-diagonal takes the ratio of the sides.
    rotation = torch.stack([angle.cos(), -angle.sin() * height / width, angle.sin() * width / height, angle.cos()], dim=1)
    affine[:, :, :2] = torch.where(rows["rotate"][:, None], rotation, affine[:, :, :2].reshape(-1, 4)).view(-1, 2, 2)
    return affine


def _draw_colour(settings: _Strategy, row: Tensor, u: Tensor) -> Tensor:
    """(n, 3): brightness within ±½, saturation within 0–2, contrast within ½–1½ in the rows that picked colour."""
    drawn = torch.stack(
        [(u[:, 0] - 0.5) * settings.brightness, u[:, 1] * settings.saturation, u[:, 2] + settings.contrast], dim=1
    )
    return torch.where(row[:, None], drawn, torch.tensor([0.0, 1.0, 1.0], dtype=u.dtype))


def _draw_cutout(settings: _Strategy, row: Tensor, u: Tensor, shape: Shape) -> Tensor:
    """(n, 4): a box of half the sides, whose centre is anywhere in the image; what reaches beyond the image is lost."""
    box = []
    for axis, side in enumerate(shape[1:]):
        size = int(side * settings.cutout_ratio + 0.5)
        start = (u[:, axis] * (side + 1 - size % 2)).floor() - size // 2
        box += [start, start + torch.where(row, size, 0)]
    return torch.stack(box, dim=1)


def apply(images: Tensor, draws: Draws) -> Tensor:
    """Row i of `draws` applied to image i: (n, C, H, W) → (n, C, H, W), differentiable in `images`.

    `images` are normalised floats; each result depends on its own image and row alone.
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
    """Brightness, then saturation (distance from the pixel's grey), then contrast (distance from the image's mean)."""
    brightness, saturation, contrast = (part.view(-1, 1, 1, 1) for part in colour.unbind(1))
    images = images + brightness
    images = torch.lerp(images.mean(1, keepdim=True), images, saturation)
    return torch.lerp(images.mean((1, 2, 3), keepdim=True), images, contrast)


def cut_out(images: Tensor, box: Tensor) -> Tensor:
    """`images` (n, C, H, W), 0 within each one's box: (n, 4) as in `Draws.cutout`."""
    top, bottom, left, right = (edge.view(-1, 1) for edge in box.unbind(1))
    y = torch.arange(images.shape[2], device=images.device)
    x = torch.arange(images.shape[3], device=images.device)
    inside_y, inside_x = (y >= top) & (y < bottom), (x >= left) & (x < right)  # (n, H), (n, W)
    outside = ~(inside_y[:, None, :, None] & inside_x[:, None, None, :])  # (n, 1, H, W)
    return images * outside.to(images.dtype)
