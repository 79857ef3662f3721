"""Test that images are converted to uint8 arrays with the size and channels of the spec."""

from __future__ import annotations

import pickle
from collections import Counter
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cafe_core.data import pixels
from cafe_core.data.image_error import ImageError
from cafe_core.errors import DatasetError
from tests.cafe_core.data.image_folders import encoded, picture, png_of_16_bits


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


# -- formats


def test_suffixes_are_those_of_pillow() -> None:
    Image.init()
    known = {suffix: kind for suffix, kind in Image.registered_extensions().items() if kind in (*pixels.FORMATS, "MPO")}
    assert known.keys() <= pixels.SUFFIXES
    for kind, suffixes in pixels.FORMATS.items():
        for suffix in suffixes:
            assert known.get(suffix) in (kind, "MPO", None), suffix


SAVED = ["PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF", "TGA", "DIB", "PCX", "SGI", "QOI", "DDS", "MPO"]


@pytest.mark.parametrize("kind", SAVED)
def test_formats_are_read(kind: str) -> None:
    image = Image.new("RGB", (16, 16), (200, 100, 50))
    found = pixels.decode(encoded(image, kind), f"x.{kind.lower()}", image_size=None, channels=None)
    assert found.shape == (3, 16, 16)
    assert np.abs(found.astype(int) - np.array([200, 100, 50])[:, None, None]).max() <= 8  # JPEG and others are lossy


@pytest.mark.parametrize(
    ("data", "expected", "kind"),
    [
        (b"P1 4 4 " + b"0 " * 16, 255, None),
        (b"P2 4 4 15 " + b"15 " * 16, 255, None),
        (b"P5 4 4 100\n" + bytes([50]) * 16, 128, None),
        (b"P5 4 4 4095\n" + (2048).to_bytes(2, "big") * 16, 128, "deep_grey"),
        (b"P5 4 4 65535\n" + (0x8000).to_bytes(2, "big") * 16, 128, "deep_grey"),
    ],
    ids=["1 bit", "4 bits", "of 100", "12 bits", "16 bits"],
)
def test_grey_maps_of_any_depth_are_read(data: bytes, expected: int, kind: str | None) -> None:
    seen: Counter[pixels.Conversion] = Counter()
    image = pixels.decode(data, "x", image_size=None, channels=None, seen=seen)
    np.testing.assert_array_equal(image, np.full((1, 4, 4), expected))
    assert list(seen) == ([kind] if kind else [])


def _animation(kind: str) -> bytes:
    frames = [_constant("RGB", (level, 0, 0), (8, 8)) for level in (200, 100)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:])


def _turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 3
    return encoded(picture("L"), exif=exif)


@pytest.mark.parametrize(
    ("data", "conversions"),
    [
        (encoded(picture("RGB")), []),
        (encoded(picture("L")), []),
        (encoded(picture("RGBA")), ["transparent"]),
        (encoded(_constant("RGBA", (1, 2, 3, 255))), []),
        (encoded(_palette_with_transparency(), transparency=1), ["transparent"]),
        (encoded(_palette_with_transparency()), []),
        (encoded(_constant("CMYK", (9, 9, 9, 0)), "JPEG"), ["colours"]),
        (encoded(_constant("CMYK", (9, 9, 9, 0)), "TIFF"), ["colours"]),
        (encoded(_constant("YCbCr", (9, 9, 9)), "TIFF"), ["colours"]),
        (encoded(_constant("I;16", 0xABCD), "TIFF"), ["deep_grey"]),
        (_animation("GIF"), ["frames"]),
        (_animation("TIFF"), ["frames"]),
        (_animation("WEBP"), ["frames"]),
        (_animation("PNG"), ["frames"]),
        (encoded(_constant("RGB", (1, 2, 3)), "GIF"), []),
        (_turned(), ["turned"]),
        (png_of_16_bits(0x8000), ["deep_colour"]),
        (png_of_16_bits(0x8000, 6), ["deep_colour", "transparent"]),
    ],
    ids=[
        "RGB", "grey", "RGBA", "opaque", "P-clear", "P", "CMYK-JPEG", "CMYK-TIFF", "YCbCr", "I16-TIFF",
        "GIFs", "pages", "WEBPs", "APNG", "GIF", "turned", "16-bit RGB", "16-bit RGBA",
    ],
)  # fmt: skip
def test_conversions_are_counted(data: bytes, conversions: list[str]) -> None:
    seen: Counter[pixels.Conversion] = Counter()
    pixels.decode(data, "x", image_size=None, channels=None, seen=seen)
    assert sorted(seen) == conversions


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            png_of_16_bits(255),
            "x has 16 bits per channel but no level above 4095, and would become dark, .*; save it with 8 bits",
        ),
        (png_of_16_bits(4095), "x has 16 bits per channel but no level above 4095"),
        (png_of_16_bits(255, 6), "x has 16 bits per channel but no level above 4095"),
        (encoded(_constant("F", 0.5), "TIFF"), r"x holds levels that are not whole numbers \(mode F\); save it with"),
        (encoded(_constant("I", 70_000), "TIFF"), r"x cannot be decoded \(levels go from 70000 to 70000; at most 16 bits"),
        (encoded(_constant("I", -1), "TIFF"), r"x cannot be decoded \(levels go from -1 to -1"),
        (encoded(_constant("RGB", (1, 2, 3)), "TGA"), "x is not an image that can be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "x is not an image that can be read"),
        (encoded(picture("L", (32, 32)), "JPEG")[:-30], r"x cannot be decoded \(.*truncated"),
    ],
    ids=[
        "8 in 16-bit RGB",
        "12-bit colour",
        "8-bit RGBA",
        "F",
        "32 bits",
        "negative",
        "TGA without its suffix",
        "EPS",
        "truncated",
    ],
)
@pytest.mark.parametrize("channels", [None, 1, 3])
def test_what_cannot_be_converted_is_refused(data: bytes, message: str, channels: Any) -> None:
    with pytest.raises(ImageError, match=message):
        pixels.decode(data, "x", image_size=None, channels=channels, dark=lambda: True)
    error = pickle.loads(pickle.dumps(ImageError("x", "is damaged")))
    assert (type(error), error.message) == (DatasetError, "x is damaged; replace or remove it")


@pytest.mark.parametrize(("highest", "bits"), [(0, 8), (255, 8), (256, 10), (1023, 10), (1024, 12), (16383, 14), (65535, 16)])
def test_bits_of_grey_levels(highest: int, bits: int) -> None:
    assert pixels.bits_of(highest) == bits
