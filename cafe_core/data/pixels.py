"""Decode image files, and convert arrays, to uint8 arrays of a given size and number of channels.

* Grey, grey with alpha and 1-bit images count as grey (1 channel); all others, including CMYK and palettes, as colour (3).
* Grey levels of more than 8 bits are scaled by the number of bits that the dataset uses; 16-bit colour keeps its high bytes.
* Transparent pixels are composited over white.
* The EXIF orientation is applied.
* Only the first frame of an animation, or the first page, is used.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from cafe_core.data.image_error import ImageError
from cafe_core.data.image_source import Images
from cafe_core.spec.dataset import MAX_IMAGE_SIDE, DatasetNote
from cafe_core.text import counted

#: The formats of still images, which are decoded regardless of the file's suffix. Not EPS and WMF, which are programs.
FORMATS = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "BMP": (".bmp",),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "JPEG2000": (".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"),
    "AVIF": (".avif", ".avifs"),
    "TGA": (".tga", ".icb", ".vda", ".vst"),
    "DIB": (".dib",),
    "PCX": (".pcx",),
    "SGI": (".sgi", ".rgb", ".rgba", ".bw"),
    "SUN": (".ras",),
    "QOI": (".qoi",),
    "ICO": (".ico",),
    "DDS": (".dds",),
    "PSD": (".psd",),
    "XBM": (".xbm",),
    "XPM": (".xpm",),
}
#: Formats by which almost any bytes could be decoded: their files must have the suffix.
_WITHOUT_SIGNATURE = ("TGA", "DIB")
SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)
_MIN_IMAGE_SIDE = 4
_GREY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N"}
#: Formats whose further frames are layers of the image, or previews of it.
_FRAMES_OF_ONE_IMAGE = ("PSD", "MPO")
#: Refuse decompression bombs at Pillow's limit; Pillow itself only warns up to twice that.
_MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 89_478_485

Conversion = Literal["turned", "transparent", "colours", "frames", "deep_grey", "deep_colour"]
_MESSAGES: dict[Conversion, str] = {
    "turned": "turned {} upright by the EXIF orientation",
    "transparent": "put {} with transparency on a white background",
    "colours": "converted {} in CMYK or another colour space to RGB",
    "frames": "used only the first frame or page of {}",
    "deep_grey": "scaled the levels of {} with more than 8 bits per pixel to 8 bits: they use {} bits",
    "deep_colour": "reduced {} from 16 to 8 bits per channel",
}


def full_range() -> int:
    """Return the number of bits of grey levels that use all of 16 bits."""
    return 16


def never_dark() -> bool:
    """Return that the levels of 16-bit colour images use enough of the range."""
    return False


def decode(
    data: bytes,
    where: str,
    *,
    image_size: int | None,
    channels: Literal[1, 3] | None,
    bits: Callable[[], int] = full_range,
    dark: Callable[[], bool] = never_dark,
    seen: Counter[Conversion] | None = None,
) -> Images:
    """Decode an image as (C, H, W) uint8, with `channels` and H = W = image_size if they are given.

    where: name of the image in error messages, with its suffix. bits: returns how many bits the grey levels of more than 8 bits
    use in this dataset; it is called only for such images. dark: returns whether the 16-bit colour images of this dataset are too
    dark; it is called only for such an image that is. seen: counts what was converted. Raises ImageError if the image cannot be
    decoded, is too large, too small or too dark.
    """
    image = _open(data, where)
    natural = natural_channels(image.mode, where)
    if image_size is None:
        check_side(where, image.height, image.width)  # checked by the header, before decoding
    found: list[Conversion] = []
    try:
        if _is_deep_colour(image):
            found.append("deep_colour")
        if getattr(image, "is_animated", False) and image.format not in _FRAMES_OF_ONE_IMAGE:
            found.append("frames")
        image.load()
        too_dark = "deep_colour" in found and _is_dark(image)
        if image.getexif().get(0x0112, 1) != 1:
            found.append("turned")
        ImageOps.exif_transpose(image, in_place=True)
        image = _convert(image, channels or natural, found, bits)
    except Exception as error:  # decoders raise errors of many types for damaged files
        raise ImageError(where, f"cannot be decoded ({error})") from error
    if too_dark and dark():
        reason = "has 16 bits per channel but no level above 4095, and would become dark, as most images of the dataset"
        raise ImageError(where, reason, "save it with 8 bits")
    if seen is not None:
        seen.update(found)
    return _to_array(_fit(image, image_size))


def decoded_shape(data: bytes, where: str, *, image_size: int | None, channels: Literal[1, 3] | None) -> tuple[int, int, int]:
    """Return the (C, H, W) of :func:`decode`'s result, reading only the header if possible. Raises as :func:`decode` does."""
    if image_size is None:  # the image is small, and its EXIF orientation matters
        c, h, w = decode(data, where, image_size=image_size, channels=channels).shape
        return c, h, w
    mode = _open(data, where).mode  # always opened, to refuse a file that is not an image
    natural = natural_channels(mode, where)
    return channels or natural, image_size, image_size


def pixel_count(data: bytes, where: str) -> int:
    """Return the number of pixels of an image, from its header. Raises ImageError."""
    image = _open(data, where)
    return image.width * image.height


def highest_grey_level(data: bytes, where: str) -> int:
    """Return the highest level of a grey image of more than 8 bits; 0 for other images. Raises ImageError."""
    image = _open(data, where)
    if not _is_deep_grey(image.mode):
        return 0
    try:
        return int(np.asarray(image).max())
    except Exception as error:
        raise ImageError(where, f"cannot be decoded ({error})") from error


def is_dark_colour(data: bytes, where: str) -> bool | None:
    """Return whether a colour image of 16 bits per channel uses at most 12 of them; None for other images. Raises ImageError."""
    image = _open(data, where)
    if not _is_deep_colour(image):
        return None
    try:
        image.load()
    except Exception as error:
        raise ImageError(where, f"cannot be decoded ({error})") from error
    return _is_dark(image)


def _is_dark(image: Image.Image) -> bool:
    """Return whether no colour of a 16-bit image, of which Pillow keeps the high bytes, has a level above 4095."""
    levels = np.asarray(image)
    return int((levels[..., :3] if levels.ndim == 3 else levels).max()) < 1 << (12 - 8)


def bits_of(highest: int) -> int:
    """Return how many bits grey levels up to `highest` use: 8, 10, 12, 14 or 16, as cameras and scanners have."""
    return max(8, (highest.bit_length() + 1) // 2 * 2)


def conversion_notes(seen: Counter[Conversion], bits: int | None, suffix: str = "") -> list[DatasetNote]:
    """Return a note for each kind of conversion. bits: those of the deep grey levels. suffix: of each message."""
    messages = dict(_MESSAGES)
    if bits == 8:
        messages["deep_grey"] = "found {} stored with 16 bits per pixel that use only 8; the levels were kept"
    return [
        DatasetNote(code="converted", message=message.format(counted(seen[kind], "image"), bits) + suffix)
        for kind, message in messages.items()
        if seen[kind]
    ]


def _open(data: bytes, where: str) -> Image.Image:
    """Open an image and read only its header. The suffix of `where` allows formats without a signature."""
    suffix = where[where.rfind(".") :].lower()
    formats = [kind for kind, suffixes in FORMATS.items() if kind not in _WITHOUT_SIGNATURE or suffix in suffixes]
    if not data:
        raise ImageError(where, "is empty", "remove it or put the image there")
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
        if image.width * image.height > _MAX_PIXELS:
            raise Image.DecompressionBombError(f"it has {image.width}×{image.height} pixels")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(where, f"is too large: {error}", f"at most {_MAX_PIXELS} pixels are supported") from error
    except UnidentifiedImageError as error:
        raise ImageError(where, "is not an image that can be read, or is damaged") from error
    except Exception as error:  # decoders raise errors of many types for damaged files
        raise ImageError(where, f"cannot be decoded ({error})") from error
    return image


def natural_channels(mode: str, where: str) -> Literal[1, 3]:
    """Return the channels of an image in Pillow's `mode`. Raises ImageError for levels that are not whole numbers."""
    if mode == "F":
        raise ImageError(where, "holds levels that are not whole numbers (mode F)", "save it with 8 or 16 bits")
    return 1 if mode in _GREY_MODES else 3


def _is_deep_grey(mode: str) -> bool:
    return mode == "I" or mode.startswith("I;16")


def _is_deep_colour(image: Image.Image) -> bool:
    """Return whether an image that Pillow decodes to 8 bits per channel has 16. Call it before the image is loaded."""
    return not _is_deep_grey(image.mode) and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def _convert(image: Image.Image, channels: int, found: list[Conversion], bits: Callable[[], int]) -> Image.Image:
    """Convert an image to mode L or RGB; add what was done to `found`."""
    if _is_deep_grey(image.mode):
        found.append("deep_grey")
        image = _scaled(np.asarray(image), bits())
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema()[0] != 255:
            found.append("transparent")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    elif image.mode not in (*_GREY_MODES, "P", "RGB", "RGBX"):
        found.append("colours")
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _scaled(levels: NDArray[Any], bits: int) -> Image.Image:
    """Scale grey levels of `bits` bits to 8."""
    if levels.min() < 0 or levels.max() >= 1 << 16:
        raise ValueError(f"levels go from {levels.min()} to {levels.max()}; at most 16 bits are supported")
    return Image.fromarray(np.minimum(levels.astype(np.int64) >> (bits - 8), 255).astype(np.uint8))


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
    """Raise ImageError unless both sides are supported by the networks."""
    if min(height, width) < _MIN_IMAGE_SIDE or max(height, width) > MAX_IMAGE_SIDE:
        reason = f"has {width}×{height} pixels (width×height); sides must be {_MIN_IMAGE_SIDE} to {MAX_IMAGE_SIDE}"
        raise ImageError(where, reason, "set dataset.image_size to resize the images")


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
        fitted[row] = _to_array(_fit(_convert(Image.fromarray(pixels), wanted[0], [], full_range), image_size))
    return fitted
