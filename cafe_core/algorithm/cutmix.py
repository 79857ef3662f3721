"""Mix two images of a minibatch by a box: CutMix (Yun et al., ICCV 2019, https://arxiv.org/abs/1905.04899, Algorithm 1).

With probability p a minibatch is mixed: each image gets a box of another image of the minibatch, and its loss is
λ·CE(own label) + (1 − λ)·CE(label of the other), where 1 − λ is the area of the box. All images of the minibatch share the box.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class CutMix:
    """The draw of one minibatch."""

    partners: Tensor
    """(B,) int64: the position in the minibatch of the image whose box each image gets."""
    top: int
    bottom: int
    left: int
    right: int
    """The box in pixels, ends excluded."""
    kept: float
    """λ: the part of the area outside the box."""

    @classmethod
    def draw(cls, count: int, height: int, width: int, probability: float, random: torch.Generator) -> CutMix | None:
        """Draw for a minibatch of `count` images; None if it is not mixed.

        λ is uniform (Beta(1, 1)), and the centre of the box is anywhere in the image; the part of the box outside it is cut off.
        """
        u = torch.rand(4, dtype=torch.float64, generator=random).tolist()
        partners = torch.randperm(count, generator=random)
        if u[0] >= probability:
            return None
        ratio = math.sqrt(1 - u[1])
        top, bottom = _edge(u[2], height, ratio)
        left, right = _edge(u[3], width, ratio)
        return cls(partners, top, bottom, left, right, 1 - (bottom - top) * (right - left) / (height * width))

    def mixed(self, images: Tensor, others: Tensor) -> Tensor:
        """Return `images` with the box of `others`: (n, C, H, W) each."""
        result = images.clone()
        result[:, :, self.top : self.bottom, self.left : self.right] = others[
            :, :, self.top : self.bottom, self.left : self.right
        ]
        return result

    def cross_entropies(self, logits: Tensor, labels: Tensor, others: Tensor) -> Tensor:
        """Return λ·CE(labels) + (1 − λ)·CE(others) of each image: logits (n, K) → (n,).

        labels, others: (n,) int64, or (n, K) probabilities.
        """
        own = F.cross_entropy(logits, labels, reduction="none")
        return self.kept * own + (1 - self.kept) * F.cross_entropy(logits, others, reduction="none")


def _edge(u: float, side: int, ratio: float) -> tuple[int, int]:
    """Return the start and the end of an interval of length ratio·side whose centre is at u·side, within the image."""
    length, centre = int(side * ratio), int(u * side)
    return max(0, centre - length // 2), min(side, centre + length // 2)
