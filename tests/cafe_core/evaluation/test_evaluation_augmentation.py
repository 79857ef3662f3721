from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from cafe_core.evaluation.augmentation import augmented_epoch
from cafe_core.evaluation.images import HeldImages, Normalisation, StoredImages
from cafe_core.evaluation.pixel_augment import UNIFORMS, augmented
from cafe_core.spec.evaluation import Augmentation

PIXEL: list[Augmentation] = ["autoaugment", "randaugment", "crop_flip_cutout"]
ALL: list[Augmentation] = ["none", "dsa", "crop_scale_rotate", *PIXEL]
FLOAT64 = torch.float64


def stored(count: int, channels: int = 3, side: int = 32, seed: int = 0) -> StoredImages:
    """Return random images with some structure: the upper half of each is dark."""
    levels = np.random.default_rng(seed).integers(0, 256, (count, channels, side, side), dtype=np.uint8)
    levels[:, :, : side // 2] //= 3
    normalisation = Normalisation([0.4] * channels, [0.25] * channels, torch.device("cpu"), FLOAT64)
    return StoredImages(levels, np.zeros(count, dtype=np.int64), normalisation)


def uniforms(count: int, seed: int = 1) -> Tensor:
    return torch.rand(count, UNIFORMS, dtype=FLOAT64, generator=torch.Generator().manual_seed(seed))


def apply_torchvision(transform: Any, image: Tensor, u: list[float], choices: int) -> Tensor:
    """Apply torchvision's transform to one image, with its random numbers replaced by `u` in the order in which it draws them.

    torchvision draws a sign only for operations that have one; `u` always has a number for it.
    """
    picked, *rest = u
    pairs = [(rest[0], rest[1]), (rest[2], rest[3])]
    queue: list[float] = []
    space = transform._AUGMENTATION_SPACE
    if isinstance(transform, v2.AutoAugment):
        for (name, chance, _), (done, sign) in zip(transform._policies[int(picked * choices)], pairs, strict=True):
            queue += [done] + ([sign] if done <= chance and space[name][1] else [])
    else:
        name = list(space)[int(picked * choices)]
        queue += [pairs[0][1]] if space[name][1] else []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randint", lambda *_: torch.tensor(int(picked * choices)))
        patch.setattr(torch, "rand", lambda *_: torch.tensor(queue.pop(0), dtype=FLOAT64))
        changed: Tensor = transform(image)
    assert not queue
    return changed


@pytest.mark.parametrize(
    ("name", "transform", "choices", "channels", "side", "is_digits"),
    [
        ("autoaugment", v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10), 25, 3, 32, False),
        ("autoaugment", v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10), 25, 1, 28, False),
        ("autoaugment", v2.AutoAugment(v2.AutoAugmentPolicy.SVHN), 25, 1, 28, True),
        ("autoaugment", v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET), 25, 3, 40, False),
        ("randaugment", v2.RandAugment(num_ops=1, magnitude=9), 14, 3, 32, False),
        ("randaugment", v2.RandAugment(num_ops=1, magnitude=9), 14, 1, 28, True),
    ],
)
def test_policies_match_torchvision_image_by_image(
    name: str, transform: Any, choices: int, channels: int, side: int, is_digits: bool
) -> None:
    images, u = stored(200, channels, side), uniforms(200)
    rows = torch.arange(200)
    expected = [
        apply_torchvision(transform, image, row, choices) for image, row in zip(images.levels(rows), u.tolist(), strict=True)
    ]
    found = images.normalisation.levels(augmented(name, images, rows, u, is_digits))
    assert torch.equal(found, torch.stack(expected))
    assert sum(not torch.equal(a, b) for a, b in zip(found, images.levels(rows), strict=True)) > 120  # most images change


@pytest.mark.parametrize("is_digits", [False, True])
def test_crop_flip_cutout_matches_numpy(is_digits: bool) -> None:
    images, u = stored(40, 3, 32), uniforms(40)
    u[0] = torch.tensor([0.0, 0.0, 0.9, 0.0, 0.0])  # shifted by 4 to the lower right, not flipped, box at the first pixel
    u[1] = torch.tensor([0.5, 0.5, 0.1, 1 - 1e-9, 1 - 1e-9])  # not shifted, flipped, box at the last pixel
    found = augmented("crop_flip_cutout", images, torch.arange(40), u, is_digits)
    for image, (down, right, flip, y, x), result in zip(images.pixels, u.tolist(), found, strict=True):
        padded = np.pad(image, ((0, 0), (4, 4), (4, 4)))
        top, left = int(down * 9), int(right * 9)
        moved = padded[:, top : top + 32, left : left + 32]
        if flip < 0.5 and not is_digits:
            moved = moved[:, :, ::-1]
        expected = (moved / 255 - 0.4) / 0.25
        centre_y, centre_x = int(y * 32), int(x * 32)
        expected[:, max(0, centre_y - 8) : centre_y + 8, max(0, centre_x - 8) : centre_x + 8] = 0
        np.testing.assert_allclose(result.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("side", [8, 64])
def test_crop_and_box_scale_with_the_image(side: int) -> None:
    images, u = stored(300, 1, side), uniforms(300)
    images.pixels[:] = 255
    u[0] = torch.tensor([0.0, 0.0, 0.9, 1 - 1e-9, 1 - 1e-9])  # shifted as far to the lower right as possible, box in that corner
    found = augmented("crop_flip_cutout", images, torch.arange(300), u, is_digits=True)
    assert int((found[0, 0] < 0).all(1).sum()) == side // 8  # rows of black
    assert int((found == 0).flatten(1).sum(1).max()) == (side // 2) ** 2  # a whole box


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("augment", ALL)
def test_result_depends_only_on_the_draw_of_the_image(augment: Augmentation, channels: int) -> None:
    pool = stored(30, channels, 16)
    batch = augmented_epoch(augment, pool, [5, 6], epoch=2, count=15, is_digits=False)
    everything = batch(torch.arange(30), torch.arange(30))
    torch.testing.assert_close(batch(torch.tensor([20]), torch.tensor([20])), everything[[20]])
    alone = augmented_epoch(augment, pool, [6], epoch=2, count=15, is_digits=False)
    torch.testing.assert_close(alone(torch.tensor([20]), torch.tensor([5])), everything[[20]])
    if augment != "none":
        assert not torch.equal(batch(torch.tensor([20]), torch.tensor([21])), everything[[20]])
        later = augmented_epoch(augment, pool, [5, 6], epoch=3, count=15, is_digits=False)
        assert not torch.equal(later(torch.arange(30), torch.arange(30)), everything)


@pytest.mark.parametrize("augment", ALL)
def test_global_generator_is_not_used(augment: Augmentation) -> None:
    pool = stored(20, 3, 16)
    before = torch.get_rng_state()
    augmented_epoch(augment, pool, [1], epoch=0, count=20, is_digits=False)(torch.arange(20), torch.arange(20))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("augment", PIXEL)
def test_values_outside_the_range_of_an_image_are_clipped(augment: Augmentation) -> None:
    normalisation = Normalisation([0.5], [0.5], torch.device("cpu"))
    images = HeldImages(
        100 * torch.randn(30, 1, 16, 16, generator=torch.Generator().manual_seed(0)), torch.zeros(30).long(), normalisation
    )
    found = augmented(augment, images, torch.arange(30), uniforms(30), is_digits=False)
    assert float(found.min()) == -1
    assert float(found.max()) == 1
