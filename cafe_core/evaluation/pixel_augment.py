"""Augment uint8 pixel levels as in the usual training on real images, with one draw per image.

======================  ========================================================================================
``autoaugment``         AutoAugment (Cubuk et al., CVPR 2019): one of 25 pairs of operations. Uses the SVHN policy for
                        digits, the CIFAR10 policy for other images up to 32 pixels, and the ImageNet policy above
``randaugment``         RandAugment (Cubuk et al., CVPRW 2020): one of 14 operations, magnitude 9 of 31
``crop_flip_cutout``    pad with a black border (4 pixels for a side of 32) and crop, flip (not for digits), then cut out
                        (DeVries & Taylor 2017) a box of half the side, which is filled with the dataset's mean
======================  ========================================================================================

They use the settings of DC-BENCH (Cui et al., NeurIPS 2022, arXiv 2207.09639), including one operation for RandAugment.
DC-BENCH draws once per minibatch. Here, as in the papers of the augmentations, every image has its own draw; images with the
same operation are processed together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from cafe_core.algorithm.augment import cut_out
from cafe_core.evaluation.images import Images

_CROP_RATIO = 1 / 8
_CUTOUT_RATIO = 1 / 2
_RANDAUGMENT_MAGNITUDE = 9
_RANDAUGMENT_BINS = 31
_AUTOAUGMENT_BINS = 10

UNIFORMS = 5
"""Uniform numbers per draw."""


def augmented(name: str, images: Images, rows: Tensor, u: Tensor, is_digits: bool) -> Tensor:
    """Return the images `rows` (r,), augmented by the draws `u` and normalised: (r, C, H, W) on the device.

    u: (r, UNIFORMS), on the CPU.
    """
    levels = images.levels(rows)
    if name == "crop_flip_cutout":
        moved = _crop_and_flip(levels, u, is_digits)
        return cut_out(images.normalisation.floats(moved), _cutout_box(u, images.shape).to(levels.device))
    _, height, width = images.shape
    return images.normalisation.floats(_by_policy(_policy(name, height, width, is_digits), levels, u))


# -- policies: lists of pairs of operations (single operations for RandAugment)


@dataclass(frozen=True)
class _Policy:
    """P sub-policies of up to A consecutive operations, each applied with its own probability."""

    operations: list[tuple[str, float]]
    """torchvision's name and the signed magnitude; number 0 is the identity."""
    chosen: Tensor
    """(P, A, 2): the operation's number for the signs + and −."""
    probability: Tensor
    """(P, A)"""
    apply: Callable[[Tensor, tuple[str, float]], Tensor]


@cache
def _policy(name: str, height: int, width: int, is_digits: bool) -> _Policy:
    """Return the policy for images of that size, with torchvision's names and magnitudes."""
    if name == "autoaugment":
        found_on = "svhn" if is_digits else "cifar10" if max(height, width) <= 32 else "imagenet"
        transform = v2.AutoAugment(v2.AutoAugmentPolicy(found_on))
        sub_policies, bins = transform._policies, _AUTOAUGMENT_BINS
    else:
        transform = v2.RandAugment(num_ops=1, magnitude=_RANDAUGMENT_MAGNITUDE, num_magnitude_bins=_RANDAUGMENT_BINS)
        sub_policies = [((operation, 1.0, _RANDAUGMENT_MAGNITUDE),) for operation in transform._AUGMENTATION_SPACE]
        bins = _RANDAUGMENT_BINS
    numbers: dict[tuple[str, float], int] = {("Identity", 0.0): 0}

    def number(operation: str, level: int | None, sign: int) -> int:
        of_bins, signed = transform._AUGMENTATION_SPACE[operation]
        magnitudes = of_bins(bins, height, width)
        magnitude = 0.0 if magnitudes is None else float(magnitudes[level]) * (sign if signed else 1)
        return numbers.setdefault((operation, magnitude), len(numbers))

    chosen = [[[number(operation, level, sign) for sign in (1, -1)] for operation, _, level in pair] for pair in sub_policies]
    probability = [[chance for _, chance, _ in pair] for pair in sub_policies]

    def apply(images: Tensor, operation: tuple[str, float]) -> Tensor:
        changed: Tensor = transform._apply_image_or_video_transform(
            images, *operation, interpolation=transform.interpolation, fill=transform._fill
        )
        return changed

    return _Policy(list(numbers), torch.tensor(chosen), torch.tensor(probability, dtype=torch.float64), apply)


def _by_policy(policy: _Policy, levels: Tensor, u: Tensor) -> Tensor:
    """Augment levels (n, C, H, W) uint8. u: the sub-policy, then whether to apply each of its operations, and with which sign."""
    sub_policies, stages, _ = policy.chosen.shape
    picked = (u[:, 0] * sub_policies).long()
    for stage in range(stages):
        done = u[:, 1 + 2 * stage] < policy.probability[picked, stage]
        negative = (u[:, 2 + 2 * stage] < 0.5).long()
        levels = _each(policy, levels, torch.where(done, policy.chosen[picked, stage, negative], 0))
    return levels


def _each(policy: _Policy, levels: Tensor, numbers: Tensor) -> Tensor:
    """Apply operation `numbers`[i] to image i. Images are grouped by operation, so that each operation is called only once."""
    order = numbers.argsort(stable=True)
    counts = torch.bincount(numbers, minlength=len(policy.operations)).tolist()
    groups = torch.split(levels[order.to(levels.device)], counts)
    changed = [
        group if number == 0 else policy.apply(group, policy.operations[number])
        for number, group in enumerate(groups)
        if len(group)
    ]
    return torch.cat(changed)[order.argsort().to(levels.device)]


# -- crop, flip and cutout: u is vertical shift, horizontal shift, flip, centre of the box (y, x)


def _crop_and_flip(levels: Tensor, u: Tensor, is_digits: bool) -> Tensor:
    """Shift images (n, C, H, W) uint8 by up to an eighth of the sides, filling with black, and flip them."""
    n, channels, height, width = levels.shape
    reach_y, reach_x = (int(side * _CROP_RATIO + 0.5) for side in (height, width))
    y = torch.arange(height) + (u[:, 0, None] * (2 * reach_y + 1)).long()  # (n, H): rows of the padded image
    x = torch.arange(width) + (u[:, 1, None] * (2 * reach_x + 1)).long()
    if not is_digits:
        x = torch.where(u[:, 2, None] < 0.5, x.flip(1), x)
    y, x = y.to(levels.device), x.to(levels.device)
    padded = F.pad(levels, (reach_x, reach_x, reach_y, reach_y))
    image = torch.arange(n, device=levels.device).view(-1, 1, 1, 1)
    channel = torch.arange(channels, device=levels.device).view(1, -1, 1, 1)
    return padded[image, channel, y[:, None, :, None], x[:, None, None, :]]


def _cutout_box(u: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Return (n, 4) as in `cafe_core.algorithm.augment.Draws.cutout`: a box around any pixel, clipped to the image."""
    box = []
    for axis, side in enumerate(shape[1:]):
        size = int(side * _CUTOUT_RATIO + 0.5)
        start = (u[:, 3 + axis] * side).long() - size // 2
        box += [start, start + size]
    return torch.stack(box, dim=1)
