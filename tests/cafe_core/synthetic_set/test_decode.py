"""Compare decoding with torch's interpolation, and check that a set's file carries its recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cafe_core.algorithm.formation import Formation
from cafe_core.errors import SyntheticSetError
from cafe_core.spec.pool_method import tile_side
from cafe_core.synthetic_set.decode import PADDING, Decode
from cafe_core.synthetic_set.synthetic_set import SyntheticSet
from tests.cafe_core.synthetic_set.made_sets import make_set


@pytest.mark.parametrize(("height", "width", "factor"), [(32, 32, 2), (28, 28, 3), (7, 8, 2), (5, 6, 3), (8, 8, 1)])
def test_decoding_equals_torchs_interpolation(height: int, width: int, factor: int) -> None:
    images = np.random.default_rng(0).random((3, 2, height, width), dtype=np.float32)
    h, w = tile_side(height, factor), tile_side(width, factor)
    padded = F.pad(torch.from_numpy(images), (0, w * factor - width, 0, h * factor - height), value=PADDING)
    expected = torch.cat(
        [
            F.interpolate(image[None, :, y * h : (y + 1) * h, x * w : (x + 1) * w], (height, width), mode="bilinear")
            for image in padded
            for y in range(factor)
            for x in range(factor)
        ]
    )
    np.testing.assert_allclose(Decode(factor).decoded(images), expected, rtol=0, atol=1e-6)

    mean, std = torch.tensor([0.4, 0.6], dtype=torch.float64), torch.tensor([0.2, 0.3], dtype=torch.float64)
    column = (-1, 1, 1)
    normalised = (torch.from_numpy(images).double() - mean.view(column)) / std.view(column)
    decoded = Formation(factor, (2, height, width), mean, std).decode(normalised) * std.view(column) + mean.view(column)
    torch.testing.assert_close(decoded, expected.double(), rtol=0, atol=1e-6)


def test_composed_images_decode_to_the_shrunk_ones() -> None:
    blocks = torch.rand(8, 1, 2, 2).repeat_interleave(4, 2).repeat_interleave(4, 3)  # constant quarters of 8×8 images
    formation = Formation(2, (1, 8, 8), torch.zeros(1), torch.ones(1))
    stored = formation.compose(blocks)
    assert stored.shape == (2, 1, 8, 8)
    decoded = formation.decode(stored)
    torch.testing.assert_close(decoded[:, :, [0, 0, 7, 7], [0, 7, 0, 7]], blocks[:, :, [0, 0, 7, 7], [0, 7, 0, 7]])


@pytest.mark.parametrize("format", ["safetensors", "npz"])
def test_files_carry_the_recipe(tmp_path: Path, format: str) -> None:
    made = make_set(shape=(3, 8, 8), decode=Decode(2))
    path = tmp_path / f"set.{format}"
    path.write_bytes(made.to_safetensors_bytes() if format == "safetensors" else made.to_npz_bytes())
    loaded = SyntheticSet.load(path)
    assert loaded.decode == Decode(2)
    decoded = loaded.decoded()
    assert decoded.images.shape == (4 * len(made.images), 3, 8, 8)
    assert decoded.labels.tolist() == np.repeat(made.labels, 4).tolist()
    assert decoded.decode is None
    assert decoded.decoded() is decoded
    assert loaded.ipc * 4 == decoded.ipc


def test_stored_values_are_clipped_before_decoding() -> None:
    made = make_set(shape=(1, 8, 8), decode=Decode(2))
    pixels = made.decoded().images * made.std[0] + made.mean[0]
    assert pixels.min() >= -1e-6
    assert pixels.max() <= 1 + 1e-6


@pytest.mark.parametrize(
    ("recipe", "problem"),
    [
        (3, "must be an object"),
        ({"factor": 2}, "must be an object"),
        ({"factor": 0, "interpolation": "bilinear", "value_range": [0, 1]}, "factor must be a whole number from 1 to 8; got 0"),
        ({"factor": 2.0, "interpolation": "bilinear", "value_range": [0, 1]}, "factor must be"),
        ({"factor": 2, "interpolation": "bicubic", "value_range": [0, 1]}, "bilinear"),
        ({"factor": 2, "interpolation": "bilinear", "value_range": [-1, 1]}, "value_range must be"),
    ],
)
def test_unknown_recipes_are_refused(tmp_path: Path, recipe: Any, problem: str) -> None:
    class Wrong:
        def as_json(self) -> Any:
            return recipe

    path = tmp_path / "set.safetensors"
    made = make_set(shape=(1, 8, 8))
    object.__setattr__(made, "decode", Wrong())
    path.write_bytes(made.to_safetensors_bytes())
    with pytest.raises(SyntheticSetError, match=f"metadata decode: .*{problem}"):
        SyntheticSet.load(path)
