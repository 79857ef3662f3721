from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cafe_core.algorithm.augment import Draws, apply, draw
from cafe_core.algorithm.sampling import generator
from cafe_core.spec.evaluation import Augmentation

STRATEGIES: list[Augmentation] = ["dsa", "crop_scale_rotate"]


def images(count: int, channels: int = 3, height: int = 12, width: int = 12, seed: int = 0) -> Tensor:
    return torch.randn(count, channels, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def identity(count: int) -> Draws:
    return Draws(torch.eye(2, 3, dtype=torch.float64).repeat(count, 1, 1), None, None)


def with_affine(affine: list[list[float]]) -> Draws:
    return Draws(torch.tensor([affine], dtype=torch.float64), None, None)


def operation_names(draws: Draws) -> list[str]:
    """Return the name of the operation in each row, derived from its numbers."""
    words = []
    for i in range(len(draws)):
        (a, b, tx), (c, d, ty) = draws.affine[i].tolist()
        if draws.colour is not None and draws.colour[i].tolist() != [0.0, 1.0, 1.0]:
            words.append("color")
        elif draws.cutout is not None and draws.cutout[i, 1] > draws.cutout[i, 0]:
            words.append("cutout")
        elif (tx, ty) != (0, 0):
            words.append("crop")
        elif b != 0 or c != 0:
            words.append("rotate")
        elif a == -1:
            words.append("flip")
        else:
            words.append("scale" if (a, d) != (1, 1) else "identity")
    return words


@pytest.mark.parametrize(
    ("strategy", "is_digits", "shares"),
    [
        # Half of the flips, and the crop by (0, 0) among 3×3 possible ones, leave the image unchanged.
        (
            "dsa",
            False,
            {"color": 1, "cutout": 1, "crop": 8 / 9, "rotate": 1, "scale": 1, "flip": 1 / 2, "identity": 1 / 2 + 1 / 9},
        ),
        ("dsa", True, {"color": 1, "cutout": 1, "crop": 8 / 9, "rotate": 1, "scale": 1, "flip": 0, "identity": 1 / 9}),
        ("crop_scale_rotate", True, {"crop": 8 / 9, "rotate": 1, "scale": 1, "identity": 1 / 9}),
    ],
)
def test_each_draw_is_one_operation_of_uniform_probability(
    strategy: Augmentation, is_digits: bool, shares: dict[str, float]
) -> None:
    count = 20_000
    words = operation_names(draw(strategy, count, (3, 8, 8), is_digits, generator(0, "test")))
    assert set(words) == {name for name, share in shares.items() if share > 0}
    for name, share in shares.items():
        expected = share / sum(shares.values())
        assert words.count(name) / count == pytest.approx(expected, abs=5 * math.sqrt(0.25 / count))


def test_digits_are_never_flipped() -> None:
    for strategy in STRATEGIES:
        draws = draw(strategy, 5000, (1, 28, 28), True, generator(1, "test"))
        assert torch.linalg.det(draws.affine[:, :, :2]).min() > 0


def test_dsa_draws_from_its_ranges() -> None:
    draws = draw("dsa", 50_000, (3, 32, 32), False, generator(0, "test"))
    assert draws.colour is not None
    assert draws.cutout is not None
    brightness, saturation, contrast = draws.colour.unbind(1)
    for values, low, high in ((brightness, -0.5, 0.5), (saturation, 0, 2), (contrast, 0.5, 1.5)):
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() <= high
    pixels = draws.affine[:, :, 2] * 16
    assert sorted(set(pixels.flatten().tolist())) == list(range(-4, 5))
    angles = torch.rad2deg(torch.atan2(draws.affine[:, 1, 0], draws.affine[:, 0, 0].abs()))
    assert angles.abs().max() == pytest.approx(15, abs=0.1)
    zooms = draws.affine[[word == "scale" for word in operation_names(draws)]].diagonal(dim1=1, dim2=2)
    assert zooms.min() == pytest.approx(1 / 1.2, abs=1e-3)
    assert zooms.max() == pytest.approx(1.2, abs=1e-3)
    top, bottom, left, right = draws.cutout[draws.cutout[:, 1] > draws.cutout[:, 0]].unbind(1)
    assert (bottom - top == 16).all()
    assert (right - left == 16).all()
    assert (top.min(), top.max(), left.min(), left.max()) == (-8, 24, -8, 24)


def test_crop_scale_rotate_draws_from_its_ranges() -> None:
    draws = draw("crop_scale_rotate", 50_000, (1, 32, 32), True, generator(0, "test"))
    words = operation_names(draws)
    assert draws.colour is None
    assert draws.cutout is None
    assert (draws.affine[:, :, 2] * 16).abs().max() == 4
    magnification = 1 / draws.affine[[word == "scale" for word in words]].diagonal(dim1=1, dim2=2)
    assert magnification.min() == pytest.approx(0.8, abs=1e-3)
    assert magnification.max() == pytest.approx(1.2, abs=1e-3)
    assert magnification.mean() == pytest.approx(1, abs=5e-3)
    turned = draws.affine[[word == "rotate" for word in words]]
    assert torch.rad2deg(torch.atan2(turned[:, 1, 0], turned[:, 0, 0])).abs().max() == pytest.approx(45, abs=0.1)


def test_affine_transforms_match_hand_computed_results() -> None:
    x = images(1)
    torch.testing.assert_close(apply(x, identity(1)), x)
    torch.testing.assert_close(apply(x, with_affine([[-1, 0, 0], [0, 1, 0]])), x.flip(3))
    # Two pixels of 12: the result at (i, j) is the source at (i + 1, j + 2).
    shifted = apply(x, with_affine([[1, 0, 2 * 2 / 12], [0, 1, 1 * 2 / 12]]))
    expected = torch.zeros_like(x)
    expected[:, :, :-1, :-2] = x[:, :, 1:, 2:]
    torch.testing.assert_close(shifted, expected)
    torch.testing.assert_close(apply(x, with_affine([[0, -1, 0], [1, 0, 0]])), x.rot90(1, (2, 3)))


def test_rotation_keeps_right_angles_in_oblong_images() -> None:
    draws = draw("crop_scale_rotate", 500, (1, 10, 30), True, generator(0, "test"))
    half_sides = torch.tensor([15.0, 5.0], dtype=torch.float64)
    for word, affine in zip(operation_names(draws), draws.affine, strict=True):
        if word == "rotate":
            pixels = affine[:, :2] * half_sides[:, None] / half_sides[None, :]
            torch.testing.assert_close(pixels @ pixels.T, torch.eye(2, dtype=torch.float64))


def test_colour_matches_its_definition() -> None:
    x = images(1)
    colour = torch.tensor([[0.3, 1.7, 0.6]], dtype=torch.float64)
    bright = x + 0.3
    grey = bright.mean(1, keepdim=True)
    saturated = (bright - grey) * 1.7 + grey
    expected = (saturated - saturated.mean()) * 0.6 + saturated.mean()
    torch.testing.assert_close(apply(x, Draws(identity(1).affine, colour, None)), expected)


def test_cutout_sets_the_box_to_zero() -> None:
    x = images(2)
    box = torch.tensor([[-3.0, 3.0, 9.0, 15.0], [4.0, 4.0, 0.0, 0.0]], dtype=torch.float64)
    expected = x.clone()
    expected[0, :, :3, 9:] = 0
    torch.testing.assert_close(apply(x, Draws(identity(2).affine, None, box)), expected)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_gradients_of_the_images_are_correct(strategy: Augmentation) -> None:
    draws = draw(strategy, 12, (2, 5, 6), False, generator(0, "test"))
    assert len(set(operation_names(draws))) > 2
    x = images(12, 2, 5, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: apply(x, draws), x)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_result_depends_only_on_its_image_and_row(strategy: Augmentation) -> None:
    draws = draw(strategy, 30, (3, 12, 12), False, generator(0, "test"))
    x = images(30)
    together = apply(x, draws)
    for i in range(30):
        row = torch.tensor([i])
        torch.testing.assert_close(apply(x[row], draws[row]), together[row], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_images_of_a_class_share_a_draw(strategy: Augmentation) -> None:
    """Real and synthetic images of a class get the same transform. Here both are the same images, in different batches."""
    per_class = draw(strategy, 4, (3, 12, 12), False, generator(0, "test"))
    labels = torch.tensor([2, 0, 0, 3, 1])
    x = images(5)
    real = apply(x, per_class[labels])
    for k in range(4):
        members = labels == k
        synthetic = apply(x[members], per_class[torch.full((int(members.sum()),), k)])
        torch.testing.assert_close(synthetic, real[members], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_rows_do_not_depend_on_how_many_are_drawn(strategy: Augmentation) -> None:
    few, many = (draw(strategy, n, (3, 32, 32), False, generator(7, "test")) for n in (30, 100))
    assert torch.equal(few.affine, many[torch.arange(30)].affine)
    assert not torch.equal(few.affine, draw(strategy, 30, (3, 32, 32), False, generator(8, "test")).affine)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_result_has_dtype_and_shape_of_the_images(dtype: torch.dtype) -> None:
    draws = draw("dsa", 4, (1, 8, 8), True, generator(0, "test"))
    result = apply(images(4, 1, 8, 8).to(dtype), draws)
    assert (result.dtype, result.shape) == (dtype, (4, 1, 8, 8))
    assert draws.to(torch.device("cpu"), torch.float32).affine.dtype == torch.float32
    assert len(draws.to(torch.device("cpu"))) == 4


def test_identity_row_does_not_change_the_image() -> None:
    draws = draw("dsa", 200, (3, 12, 12), False, generator(0, "test"))
    idle = torch.tensor([word == "identity" for word in operation_names(draws)])
    assert idle.any()
    x = images(200)
    torch.testing.assert_close(apply(x, draws)[idle], x[idle], rtol=1e-12, atol=1e-12)


def test_strategy_without_draws_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be one of dsa, .*, crop_scale_rotate; got 'none'"):
        draw("none", 1, (1, 8, 8), False, generator(0, "test"))
