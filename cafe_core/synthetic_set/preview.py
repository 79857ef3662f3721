"""Draw image sets as pages for viewing. This module does not import torch, because the API draws previews too.

Every class is a strip: its name, then its images side by side. Strips fill the page from left to right and from top
to bottom, so a set of one image per class becomes a block of images rather than a tall column.
"""

from __future__ import annotations

import io
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

T = TypeVar("T", bound=np.generic)

MAX_PAGE_SIDE = 2600
"""Pixels. It bounds the file too: 2600 × 2600 RGB pixels that do not compress are 20 MB."""
BACKGROUND, INK = 246, 40
"""Grey levels of the page and of its text."""
MIN_IMAGE_SIDE = 64
"""Pixels of the shorter side of an image on the page."""
_IMAGE_SIDES = (256, 128, 96, MIN_IMAGE_SIDE)
"""Sides to try, largest first: the first with which the whole set fits a comfortable page is used."""
_COMFORTABLE_WIDTH, _COMFORTABLE_HEIGHT = 1400, 1000
_MAX_ENLARGED_SIDE = 128
_MAX_LONG_SIDE = 512
_MAX_PER_CLASS, _MIN_PER_CLASS = 20, 5
"""Images of a class on a page: at most 20, and fewer, down to 5, if that makes room for all classes."""

_GAP = 4
_STRIP_GAP = 20
_FOOTER = 24
_FONT_SIZE = 14
_MAX_LABEL_WIDTH = 140


@dataclass(frozen=True)
class Scale:
    """A whole-number scale: keep every `step`-th pixel and draw it as a square of `repeat` pixels."""

    repeat: int = 1
    step: int = 1

    def size(self, side: int) -> int:
        """Return the drawn length of `side` pixels."""
        return -(-side // self.step) * self.repeat


@dataclass(frozen=True)
class Page:
    """The layout of a preview: which part of a set it shows, and where."""

    labels: tuple[str, ...]
    """One per class shown: the first classes, in order."""
    num_classes: int
    """Classes in the set."""
    per_class: int
    """Images of each class in the set."""
    columns: int
    """Images of each class shown: the first ones."""
    across: int
    """Number of strips side by side."""
    scale: Scale
    image_height: int
    """Pixels of an image on the page."""
    image_width: int
    label_width: int

    @property
    def rows(self) -> int:
        """Return the number of classes shown."""
        return len(self.labels)

    @property
    def complete(self) -> bool:
        """Return whether the page shows the whole set."""
        return self.rows == self.num_classes and self.columns == self.per_class

    @property
    def strip_width(self) -> int:
        """Return the width of a strip, with the gap to the next."""
        return self.label_width + self.columns * (self.image_width + _GAP) + _STRIP_GAP

    @property
    def size(self) -> tuple[int, int]:
        """Return (width, height) of the page."""
        down = -(-self.rows // self.across)
        height = down * (self.image_height + _GAP) + _GAP
        return self.across * self.strip_width, height + (0 if self.complete else _FOOTER)

    def select(self, images: NDArray[T]) -> NDArray[T]:
        """Return the part of images (K, n, C, H, W) that the page shows, without the pixels that the scale skips."""
        return images[: self.rows, : self.columns, :, :: self.scale.step, :: self.scale.step]

    def image_position(self, row: int, column: int) -> tuple[int, int]:
        """Return (x, y) of the top left corner of an image."""
        x = row % self.across * self.strip_width + _STRIP_GAP // 2 + self.label_width + _GAP + column * (self.image_width + _GAP)
        return x, _GAP + row // self.across * (self.image_height + _GAP)

    def description(self) -> str:
        """Return how much of the set the page shows."""
        classes = _share(self.rows, self.num_classes, "class", "classes")
        return f"{classes}, {_share(self.columns, self.per_class, 'image', 'images')} of each"


def plan_page(class_names: Sequence[str], per_class: int, height: int, width: int) -> Page:
    """Lay out a set of images of height × width on a page of at most 2600 × 2600 pixels.

    Images are drawn at least 64 pixels high and wide (except if the longer side would exceed 512 pixels), and larger
    when the set is small. A set that does not fit is cut: first to fewer images per class, then to fewer classes.
    """
    font = _font()
    labels = [_label(name, k, font) for k, name in enumerate(class_names[: _most_classes()])]
    page = None
    for side in _IMAGE_SIDES:
        page = _fit(labels, len(class_names), per_class, height, width, _scale(height, width, side), font)
        if page.complete and page.size[0] <= _COMFORTABLE_WIDTH and page.size[1] <= _COMFORTABLE_HEIGHT:
            break
    assert page is not None
    return page


def draw_page(page: Page, pixels: NDArray[np.uint8]) -> Image.Image:
    """Draw pixels (rows, columns, C, h, w), C 1 or 3, as returned by `page.select`. The image's mode is L or RGB."""
    channels = pixels.shape[2]
    image = Image.new("L" if channels == 1 else "RGB", page.size, (BACKGROUND,) * channels)
    draw, font, ink = ImageDraw.Draw(image), _font(), (INK,) * channels
    for row, label in enumerate(page.labels):
        for column in range(page.columns):
            scaled = pixels[row, column].repeat(page.scale.repeat, axis=1).repeat(page.scale.repeat, axis=2)  # (C, H, W)
            cell = scaled[0] if channels == 1 else np.ascontiguousarray(scaled.transpose(1, 2, 0))
            image.paste(Image.fromarray(cell), page.image_position(row, column))
        x, y = page.image_position(row, 0)
        draw.text((x - 2 * _GAP, y + page.image_height // 2), label, fill=ink, font=font, anchor="rm")
    if not page.complete:
        draw.text((_STRIP_GAP // 2, page.size[1] - _FOOTER // 2), page.description(), fill=ink, font=font, anchor="lm")
    return image


def png_bytes(image: Image.Image, description: str) -> bytes:
    """Return a PNG file with a Description. Equal images give equal bytes."""
    text = PngImagePlugin.PngInfo()
    text.add_text("Description", description)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=text, compress_level=4)  # for noise, level 6 takes three times as long and gains nothing
    return buffer.getvalue()


# -- layout


def _fit(
    labels: list[str],
    num_classes: int,
    per_class: int,
    height: int,
    width: int,
    scale: Scale,
    font: ImageFont.FreeTypeFont,
) -> Page:
    """Choose how many classes and images of each to show, and how many strips to put side by side."""
    image_height, image_width = scale.size(height), scale.size(width)
    label_width = math.ceil(max(font.getlength(label) for label in labels)) + 2 * _GAP

    def page(rows: int, columns: int, across: int) -> Page:
        shown = tuple(labels[:rows])
        return Page(shown, num_classes, per_class, columns, across, scale, image_height, image_width, label_width)

    def most_across(columns: int) -> int:
        return max(1, MAX_PAGE_SIDE // page(1, columns, 1).strip_width)

    most_down = max(1, (MAX_PAGE_SIDE - _FOOTER - _GAP) // (image_height + _GAP))
    fitting = max(1, (MAX_PAGE_SIDE - _STRIP_GAP - label_width) // (image_width + _GAP))
    columns = min(per_class, _MAX_PER_CLASS, fitting)
    while columns > _MIN_PER_CLASS and num_classes > most_across(columns) * most_down:
        columns -= 1
    rows = min(len(labels), most_across(columns) * most_down)
    choices = [page(rows, columns, across) for across in range(-(-rows // most_down), min(rows, most_across(columns)) + 1)]
    return min(choices, key=_badness)


def _badness(page: Page) -> tuple[bool, int, float]:
    """Prefer pages between square and 10:3, then those whose last row is full, then those close to 3:2."""
    aspect = page.size[0] / page.size[1]
    empty = -page.rows % page.across
    good = 1 <= aspect <= 10 / 3
    return not good, empty if good else 0, abs(math.log(aspect / 1.5))


def _scale(height: int, width: int, side: int) -> Scale:
    """Choose the smallest whole-number scale that draws the shorter side with `side` pixels or more.

    Small images are enlarged to about 128 pixels at most, and the longer side is drawn with at most 512 pixels.
    """
    short, long = min(height, width), max(height, width)
    repeat = max(1, min(math.ceil(min(side, _MAX_ENLARGED_SIDE) / short), _MAX_LONG_SIDE // long))
    step = max(1, short // side, math.ceil(long / _MAX_LONG_SIDE))
    return Scale(repeat, step)


def _most_classes() -> int:
    return (MAX_PAGE_SIDE // MIN_IMAGE_SIDE) ** 2


# -- text


def _font() -> ImageFont.FreeTypeFont:
    """Load Pillow's built-in font: a new object each time, because a FreeType face must not be shared between threads."""
    font = ImageFont.load_default(_FONT_SIZE)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font


def _label(name: str, number: int, font: ImageFont.FreeTypeFont) -> str:
    """Return a class name as it can be drawn: accents dropped if the font lacks them, long names cut with an ellipsis.

    The built-in font has few characters beyond ASCII. A name without any character of the font becomes #number.
    """
    box = bytes(font.getmask("\U0010ffff"))

    def has(character: str) -> bool:
        return character.isascii() or bytes(font.getmask(character)) != box

    characters = []
    for character in name[:200]:
        plain = character if character.isprintable() else " "
        if not has(plain):
            plain = "".join(c for c in unicodedata.normalize("NFKD", plain) if not unicodedata.combining(c))
        characters.append(plain)
    text = " ".join("".join(characters).split())
    if not any(has(c) for c in set(text) - {" "}):
        return f"#{number}"
    text = text.encode("utf-8", "replace").decode()  # a lone surrogate cannot be drawn
    if len(name) <= 200 and font.getlength(text) <= _MAX_LABEL_WIDTH:
        return text
    while text and font.getlength(text + "…") > _MAX_LABEL_WIDTH:
        text = text[:-1].rstrip()
    return text + "…"


def _share(part: int, whole: int, one: str, many: str) -> str:
    share = f"{whole}" if part == whole else f"{part} of {whole}"
    return f"{share} {one if whole == 1 else many}"
