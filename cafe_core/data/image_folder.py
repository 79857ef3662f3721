"""Read an image folder, or a .zip of one, whose layout :mod:`cafe_core.data.folder_layout` finds.

:class:`ImageFolderSource` checks the layout by file names on construction and opens only the first image; the others are
decoded when the store is built.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache, cached_property, partial
from itertools import chain, islice
from typing import Literal

import numpy as np

from cafe_core.data.class_order import class_order
from cafe_core.data.class_store import constant_notes, count_constant
from cafe_core.data.file_trees import ImageFiles
from cafe_core.data.folder_layout import find_layout
from cafe_core.data.image_error import MOST_NAMED, ImageError, together
from cafe_core.data.image_source import Images, Labels, Positions, chunk_length
from cafe_core.data.pixels import (
    Conversion,
    bits_of,
    conversion_notes,
    decode,
    decoded_shape,
    full_range,
    highest_grey_level,
    is_dark_colour,
    pixel_count,
)
from cafe_core.spec.dataset import DatasetNote
from cafe_core.text import counted

#: Limits of a sample, which takes about a second to decode.
_MOST_SAMPLED, _MOST_SAMPLED_PIXELS, _MOST_SAMPLED_BYTES = 256, 16 << 20, 32 << 20


class ImageFolderSource:
    """Provide an image folder to a class store (implements `class_store.ImageSource`).

    Classes are in the order of :func:`class_order`; images within a class are sorted by name.
    The constructor raises DatasetError for every error that the names and the first image reveal.
    """

    is_digits = False  # own images are never treated as digits, so augmentation may flip them

    def __init__(self, files: ImageFiles, *, image_size: int | None, channels: Literal[1, 3] | None) -> None:
        self._files, self._image_size, self._channels = files, image_size, channels
        layout = find_layout(files)
        self.name, self._layout_notes = files.label, layout.notes
        self.class_names = class_order(layout.train)
        self._train = [sorted(layout.train[name]) for name in self.class_names]
        self._test = [(file, k) for k, name in enumerate(self.class_names) for file in sorted(layout.test.get(name, ()))]
        self.class_counts = [len(names) for names in self._train]
        self.test_count = len(self._test)
        self._first = self._train[0][0]
        self.shape = decoded_shape(
            files.read(self._first), f"{files.label}: {self._first}", image_size=image_size, channels=channels
        )
        self._seen: Counter[Conversion] = Counter()
        self._sampled: list[DatasetNote] | None = None

    @property
    def notes(self) -> list[DatasetNote]:
        """Return notes about the layout, and about the images that were read so far."""
        if self._sampled is not None:
            return [*self._layout_notes, *self._sampled]
        return [*self._layout_notes, *conversion_notes(self._seen, self._grey_bits if self._seen["deep_grey"] else None)]

    def train(self, k: int, chosen: Positions | None = None) -> Iterator[Images]:
        """Yield class k's images. Raises DatasetError, which names several images, if one cannot be used."""
        names = self._train[k] if chosen is None else [self._train[k][i] for i in chosen]
        step = chunk_length(self.shape)
        for start in range(0, len(names), step):
            yield self._read(names[start : start + step])

    def test(self) -> Iterator[tuple[Images, Labels]]:
        """Yield the test images and labels. Raises DatasetError as :meth:`train` does."""
        step = chunk_length(self.shape)
        for start in range(0, len(self._test), step):
            part = self._test[start : start + step]
            yield self._read([name for name, _ in part]), np.array([k for _, k in part], dtype=np.int64)

    def check_sample(self) -> None:
        """Decode some images, spread over all, to find what is wrong or unusual in a second. Raises DatasetError."""
        names = self._names()
        wanted = names[:: -(-len(names) // _MOST_SAMPLED)]
        sample, errors = self._sample(wanted)
        bits, dark = cache(partial(self._bits_in, sample)), cache(partial(self._are_dark, sample))
        images = []
        for name in sample:
            try:
                images.append(self._checked(name, self._files.read(name), bits, dark))
            except ImageError as error:
                errors.append(error.with_traceback(None))  # a traceback refers to this frame: a cycle would keep the archive open
        if errors:
            raise together(self.name, errors[:MOST_NAMED])
        suffix = "" if len(images) == len(names) else f", of {len(images)} that were looked at"
        deep = bits() if self._seen["deep_grey"] else None
        constant = count_constant(np.stack(images)) if images else 0
        self._sampled = [*conversion_notes(self._seen, deep, suffix), *constant_notes(constant, suffix)]
        if len(images) < len(wanted):
            message = (
                f"looked at {len(images)} of {counted(len(names), 'image')}, because they are large; a job decodes all of them"
            )
            self._sampled.append(DatasetNote(code="sampled", message=message))

    def _sample(self, names: Sequence[str]) -> tuple[list[str], list[ImageError]]:
        """Return those of the images that are small enough together, and the errors that the headers of the images reveal."""
        sample, errors = [], []
        pixels = size = 0
        for name in names:
            try:
                data = self._files.read(name)
                count = pixel_count(data, self._where(name))
            except ImageError as error:
                errors.append(error.with_traceback(None))
                continue
            size += len(data)
            if size > _MOST_SAMPLED_BYTES:
                break
            if pixels + count <= _MOST_SAMPLED_PIXELS:
                sample.append(name)
                pixels += count
        return sample, errors

    def _names(self) -> list[str]:
        """Return the names of all images: training, then test."""
        return [*chain.from_iterable(self._train), *(name for name, _ in self._test)]

    def _where(self, name: str) -> str:
        return f"{self._files.label}: {name}"

    def _read(self, names: Sequence[str]) -> Images:
        """Decode images. If one cannot be used, look for more, and raise one DatasetError for up to ten."""
        images = []
        for name in names:
            try:
                images.append(self._checked(name, self._files.read(name), lambda: self._grey_bits, lambda: self._dark))
            except ImageError as error:
                others = list(islice(self._errors_after(name), MOST_NAMED - 1))
                if not others:
                    raise
                raise together(self.name, [error, *others]) from error
        return np.stack(images)

    def _errors_after(self, name: str) -> Iterator[ImageError]:
        names = self._names()
        for later in names[names.index(name) + 1 :]:
            try:
                self._checked(later, self._files.read(later), full_range, lambda: self._dark)
            except ImageError as error:
                yield error.with_traceback(None)

    def _checked(self, name: str, data: bytes, bits: Callable[[], int], dark: Callable[[], bool]) -> Images:
        """Decode an image and check that its shape matches the first one. Raises ImageError."""
        where = self._where(name)
        image = decode(data, where, image_size=self._image_size, channels=self._channels, bits=bits, dark=dark, seen=self._seen)
        if image.shape == self.shape:
            return image
        kinds = [f"{w}×{h} {'grey' if c == 1 else 'colour'}" for c, h, w in (image.shape, self.shape)]
        fix = "dataset.channels (1 or 3)" if image.shape[0] != self.shape[0] else "dataset.image_size"
        raise ImageError(where, f"is {kinds[0]}, {self._first} is {kinds[1]}", f"set {fix} to convert all")

    @cached_property
    def _grey_bits(self) -> int:
        return self._bits_in(self._names())

    def _bits_in(self, names: Sequence[str]) -> int:
        """Return how many bits the images of more than 8 bits use for grey levels. Decodes all of these images."""
        highest = 0
        for name in names:
            with suppress(ImageError):  # it is reported when the image is read
                highest = max(highest, highest_grey_level(self._files.read(name), self._where(name)))
        return bits_of(highest)

    @cached_property
    def _dark(self) -> bool:
        return self._are_dark(self._names())

    def _are_dark(self, names: Sequence[str]) -> bool:
        """Return whether most images are 16-bit colour, and all of these use at most 12 bits. Stops at the first that is not."""
        found = 0
        for name in names:
            with suppress(ImageError):  # it is reported when the image is read
                dark = is_dark_colour(self._files.read(name), self._where(name))
                if dark is False:
                    return False
                found += dark is True
        return 2 * found > len(names)
