"""Decode image files, and convert arrays, to uint8 arrays of a given size and number of channels.

* Grey, grey with alpha and 1-bit images count as grey (1 channel); all others, including CMYK and palettes, as colour (3).
* 16-bit grey keeps its high byte, as the decoder does for 16-bit colour.
* Transparent pixels are composited over white.
* The EXIF orientation is applied.
* Only the first frame of an animation is used.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cafe_core.data.class_store import Images
from cafe_core.errors import DatasetError
from cafe_core.spec.dataset import MAX_IMAGE_SIDE

#: Formats that are decoded, regardless of the file's suffix. Few decoders mean a small attack surface.
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
_MIN_IMAGE_SIDE = 4
_GREY_MODES = {"1", "L", "LA", "La", "I;16", "I;16L", "I;16B", "I;16N"}
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)
#: Refuse decompression bombs at Pillow's limit; Pillow itself only warns up to twice that.
_MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 89_478_485


def decode(data: bytes, where: str, *, image_size: int | None, channels: Literal[1, 3] | None) -> Images:
    """Decode an image as (C, H, W) uint8, with `channels` and H = W = image_size if they are given.

    where: name of the image in error messages. Raises DatasetError if it cannot be decoded, is too large or too small.
    """
    image = _open(data, where)
    if image_size is None:
        check_side(where, image.height, image.width)  # checked by the header, before decoding
    try:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
    except _DECODING_ERRORS as error:
        raise DatasetError(f"{where} cannot be decoded ({error}); replace or remove it") from error
    image = _convert(image, channels or natural_channels(image.mode, where))
    return _to_array(_fit(image, image_size))


def decoded_shape(data: bytes, where: str, *, image_size: int | None, channels: Literal[1, 3] | None) -> tuple[int, int, int]:
    """Return the (C, H, W) of :func:`decode`'s result, reading only the header if possible. Raises as :func:`decode` does."""
    if image_size is None:  # the image is small, and its EXIF orientation matters
        c, h, w = decode(data, where, image_size=image_size, channels=channels).shape
        return c, h, w
    mode = _open(data, where).mode  # always opened, to refuse a file that is not an image
    return channels or natural_channels(mode, where), image_size, image_size


def _open(data: bytes, where: str) -> Image.Image:
    """Open an image and read only its header."""
    if not data:
        raise DatasetError(f"{where} is empty; remove it or put the image there")
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        if image.width * image.height > _MAX_PIXELS:
            raise Image.DecompressionBombError(f"it has {image.width}×{image.height} pixels")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DatasetError(f"{where} is too large: {error}; at most {_MAX_PIXELS} pixels are supported") from error
    except UnidentifiedImageError as error:
        raise DatasetError(f"{where} is not a {', '.join(_FORMATS)} image, or is damaged; replace or remove it") from error
    except _DECODING_ERRORS as error:
        raise DatasetError(f"{where} cannot be decoded ({error}); replace or remove it") from error
    return image


def natural_channels(mode: str, where: str) -> Literal[1, 3]:
    """Return the channels of an image in Pillow's `mode`. Raises DatasetError for modes without an 8-bit equivalent."""
    if mode in ("I", "F"):
        raise DatasetError(f"{where} holds 32-bit levels (mode {mode}); save it with 8 or 16 bits")
    return 1 if mode in _GREY_MODES else 3


def _convert(image: Image.Image, channels: int) -> Image.Image:
    """Convert an image to mode L or RGB."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _fit(image: Image.Image, image_size: int | None) -> Image.Image:
    """Crop the central square and resize it to image_size with antialiasing."""
    if image_size is None or image.size == (image_size, image_size):
        return image
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return image.resize((image_size, image_size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))


def _to_array(image: Image.Image) -> Images:
    """Return a contiguous array (C, H, W)."""
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def check_side(where: str, height: int, width: int) -> None:
    """Raise DatasetError unless both sides are supported by the networks."""
    if min(height, width) < _MIN_IMAGE_SIDE or max(height, width) > MAX_IMAGE_SIDE:
        raise DatasetError(
            f"{where} has {width}×{height} pixels (width×height); sides must be {_MIN_IMAGE_SIDE} to {MAX_IMAGE_SIDE}; "
            "set dataset.image_size to resize the images"
        )


def fitted_shape(shape: tuple[int, int, int], image_size: int | None, channels: int | None) -> tuple[int, int, int]:
    """Return the (C, H, W) of images of `shape` after :func:`fit_batch`."""
    c, h, w = shape
    return channels or c, image_size or h, image_size or w


def fit_batch(images: Images, image_size: int | None, channels: int | None) -> Images:
    """Resize and convert images (n, C, H, W) uint8, C 1 or 3, exactly as image files are."""
    wanted = fitted_shape(images.shape[1:], image_size, channels)
    if images.shape[1:] == wanted:
        return images
    fitted = np.empty((len(images), *wanted), dtype=np.uint8)
    for row, image in enumerate(images):
        pixels = image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))
        fitted[row] = _to_array(_fit(_convert(Image.fromarray(pixels), wanted[0]), image_size))
    return fitted
