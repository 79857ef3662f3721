"""Load batches of a class shard's real images for a network."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cafe_core.algorithm.transfer import send
from cafe_core.data.class_store import ClassStore


@dataclass(frozen=True)
class BatchIndices:
    """The images of a batch, grouped into one segment per class."""

    classes: list[int]
    """The class of each segment."""
    indices: list[Tensor]
    """For each segment, the images' positions within their class: (n,) int64."""


@dataclass(frozen=True)
class Chunk:
    """A part of a batch that fits the memory budget. images: (n, C, H, W), normalised."""

    images: Tensor
    segments: list[tuple[int, int]]
    """(class, number of images), in order."""

    def labels(self) -> Tensor:
        """Return the class of each image: (n,) int64, on the images' device."""
        classes, sizes = zip(*self.segments, strict=True)
        return send(torch.tensor(classes).repeat_interleave(torch.tensor(sizes)), self.images.device)


class RealImages:
    """The uint8 images of a worker's classes, normalised on the device.

    The images of each batch are read from the memory map and transferred, unless all of them stay on the device.
    """

    def __init__(
        self,
        store: ClassStore,
        classes: Sequence[int],
        device: torch.device,
        dtype: torch.dtype,
        kept: Mapping[int, Tensor] | None = None,
        *,
        resident_bytes: int = 0,
    ) -> None:
        """Open the images. They stay on the device if they have at most `resident_bytes`.

        kept: for each class, the positions (n,) int64 of the images to use. Default: all images.
        """
        self._arrays = {k: store.images(k) for k in classes}
        self._kept = kept
        self.shape = store.info.shape
        """(C, H, W) of each image."""
        self.device = device
        self.dtype = dtype
        shape = (-1, 1, 1)
        self._mean = torch.tensor(store.info.mean, dtype=torch.float64).view(shape).to(device, dtype)
        self._scale = (1 / (255 * torch.tensor(store.info.std, dtype=torch.float64))).view(shape).to(device, dtype)
        self._mean_255 = self._mean * 255
        self._first: dict[int, int] = {}
        """For each class, the position of its first image in `_resident`."""
        self._resident: Tensor | None = None
        counts = [self.count(k) for k in self._arrays]
        if sum(counts) * math.prod(self.shape) <= resident_bytes:
            self._first = dict(zip(self._arrays, accumulate([0, *counts]), strict=False))
            self._resident = torch.empty((sum(counts), *self.shape), dtype=torch.uint8, device=device)
            for (k, first), count in zip(self._first.items(), counts, strict=True):
                self._resident[first : first + count] = torch.from_numpy(self._read(k, torch.arange(count)))

    def count(self, k: int) -> int:
        """Return the number of images of class k."""
        return len(self._arrays[k] if self._kept is None else self._kept[k])

    def batch(self, k: int, indices: Tensor) -> Tensor:
        """Return images `indices` (n,) of class k, normalised: (n, C, H, W) on the device."""
        return self._normalised([(k, indices)])

    def chunks(self, rows: BatchIndices, images_per_chunk: int) -> Iterator[Chunk]:
        """Yield the images of `rows` in order, at most `images_per_chunk` per chunk; a class may span several chunks."""
        parts: list[tuple[int, Tensor]] = []
        room = images_per_chunk
        for k, indices in zip(rows.classes, rows.indices, strict=True):
            for piece in _pieces(indices, first=room, rest=images_per_chunk):
                parts.append((k, piece))
                room -= len(piece)
                if room == 0:
                    yield self._chunk(parts)
                    parts, room = [], images_per_chunk
        if parts:
            yield self._chunk(parts)

    def _chunk(self, parts: list[tuple[int, Tensor]]) -> Chunk:
        return Chunk(self._normalised(parts), [(k, len(indices)) for k, indices in parts])

    def _normalised(self, parts: Sequence[tuple[int, Tensor]]) -> Tensor:
        """Return the images at (class, positions) of all parts, normalised on the device after a single transfer."""
        if self._resident is None:
            # This waits for the device. Without that, a pass over all images would fill the host's memory with pinned copies.
            pixels = torch.from_numpy(np.concatenate([self._read(k, indices) for k, indices in parts])).to(self.device)
        else:
            pixels = self._resident[send(torch.cat([self._first[k] + indices for k, indices in parts]), self.device)]
        return (pixels - self._mean_255).mul_(self._scale)

    def _read(self, k: int, indices: Tensor) -> NDArray[np.uint8]:
        """Return images `indices` of class k as stored: (n, C, H, W)."""
        if self._kept is not None:
            indices = self._kept[k][indices]
        pixels: NDArray[np.uint8] = self._arrays[k][indices.numpy()]
        return pixels


def _pieces(indices: Tensor, *, first: int, rest: int) -> Iterator[Tensor]:
    """Split `indices` into pieces of `first`, `rest`, `rest`, …"""
    start, size = 0, first
    while start < len(indices):
        yield indices[start : start + size]
        start, size = start + size, rest
