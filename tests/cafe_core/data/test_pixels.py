"""Test that images are converted to uint8 arrays with the size and channels of the spec."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from cafe_core.data import pixels
from cafe_core.errors import DatasetError
from tests.cafe_core.data.image_folders import encoded, picture


def _constant(mode: str, value: Any, size: tuple[int, int] = (4, 4)) -> Image.Image:
    return Image.new(mode, size, value)


def _palette_with_transparency() -> Image.Image:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    return image


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encoded(_constant("1", 1)), [255]),
        (encoded(_constant("L", 77)), [77]),
        (encoded(_constant("I;16", 0xABCD)), [0xAB]),
        (encoded(_constant("LA", (10, 255))), [10]),
        (encoded(_constant("LA", (10, 0))), [255]),
        (encoded(_constant("RGB", (1, 2, 3))), [1, 2, 3]),
        (encoded(_constant("RGBA", (1, 2, 3, 255))), [1, 2, 3]),
        (encoded(_constant("RGBA", (1, 2, 3, 0))), [255, 255, 255]),
        (encoded(_palette_with_transparency()), [200, 100, 50]),
        (encoded(_palette_with_transparency(), transparency=1), [255, 255, 255]),
        (encoded(_palette_with_transparency(), transparency=bytes([255, 0])), [255, 255, 255]),
        (encoded(_constant("RGB", (9, 9, 9)), transparency=(9, 9, 9)), [255, 255, 255]),
        (encoded(_constant("CMYK", (0, 0, 0, 0)), "JPEG", quality=100), [255, 255, 255]),
    ],
    ids=["1", "L", "I16", "LA", "LA-clear", "RGB", "RGBA", "RGBA-clear", "P", "P-clear", "P-alphas", "RGB-key", "CMYK"],
)
def test_images_of_all_modes_are_decoded(data: bytes, expected: list[int]) -> None:
    image = pixels.decode(data, "x", image_size=None, channels=None)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, np.broadcast_to(np.array(expected)[:, None, None], (len(expected), 4, 4)))


def test_channels_are_converted_on_request() -> None:
    colour = encoded(_constant("RGB", (255, 0, 0)))
    assert pixels.decode(colour, "x", image_size=None, channels=1)[0, 0, 0] == 76  # 0.299 · 255
    grey = encoded(_constant("L", 9))
    assert pixels.decode(grey, "x", image_size=None, channels=3)[:, 0, 0].tolist() == [9, 9, 9]


def test_exif_orientation_is_applied() -> None:
    image = np.zeros((4, 8), dtype=np.uint8)
    image[:, :4] = 200  # bright on the left; turned by 90° clockwise it is bright on top
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = pixels.decode(encoded(Image.fromarray(image), exif=exif), "x", image_size=None, channels=None)
    assert upright.shape == (1, 8, 4)
    assert (upright[0, :4] == 200).all()
    assert (upright[0, 4:] == 0).all()


def test_shorter_side_is_resized_and_longer_side_is_centre_cropped() -> None:
    image = picture("L", (128, 64))
    expected = image.resize((16, 8), Image.Resampling.BILINEAR).crop((4, 0, 12, 8))
    small = pixels.decode(encoded(image), "x", image_size=8, channels=None)
    np.testing.assert_array_equal(small[0], np.asarray(expected))


def test_resizing_is_antialiased() -> None:
    stripes = np.broadcast_to(100 + 100 * (np.arange(64) % 2), (64, 64)).astype(np.uint8)
    small = pixels.decode(encoded(Image.fromarray(stripes)), "x", image_size=8, channels=None)
    assert np.abs(small.astype(int) - 150).max() <= 3  # the mean of the stripes, not 100 or 200


@pytest.mark.parametrize(("size", "channels"), [(None, 3), (12, None), (5, 3), (None, None)])
def test_arrays_are_converted_like_files(size: int | None, channels: Any) -> None:
    image = picture("L", (9, 8))
    from_file = pixels.decode(encoded(image), "x", image_size=size, channels=channels)
    np.testing.assert_array_equal(pixels.fit_batch(np.asarray(image)[None, None], size, channels)[0], from_file)


@pytest.mark.parametrize("size", [None, 8])
@pytest.mark.parametrize("channels", [None, 1, 3])
@pytest.mark.parametrize("image", [picture("L", (9, 6)), picture("RGBA", (6, 9))], ids=["grey", "colour"])
def test_decoded_shape_equals_the_shape_after_decoding(image: Image.Image, size: int | None, channels: Any) -> None:
    data, how = encoded(image), {"image_size": size, "channels": channels}
    assert pixels.decoded_shape(data, "x", **how) == pixels.decode(data, "x", **how).shape


def test_decoded_shape_does_not_read_the_pixels() -> None:
    truncated = encoded(Image.new("L", (4000, 4000)))[:200]  # it has the header, but not the pixels
    assert pixels.decoded_shape(truncated, "x", image_size=32, channels=None) == (1, 32, 32)
    with pytest.raises(DatasetError, match="4000×4000 pixels"):
        pixels.decoded_shape(truncated, "x", image_size=None, channels=None)
