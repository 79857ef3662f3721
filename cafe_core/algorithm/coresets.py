"""Select coresets: real images that represent a class, from the features or the training record of that class.

    n   images of the class     D   width of the features     m   images to choose

Each function returns the positions of min(m, n) distinct images, int64 (min(m, n),), in the order of choice. Among equally
good images the first is chosen; squared distances within a relative 1e-9 count as equal, because some ties are exact (two
images and their mean) and rounding must not decide them. Distances are Euclidean. No n×n matrix is built.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_BLOCK = 1 << 17
"""Numbers per block of differences to a point, small enough for a core's cache."""

_TIE = 1e-9
"""Relative difference below which squared distances count as equal."""


def herding(features: Tensor, m: int) -> Tensor:
    """Choose greedily the image that brings the mean of all chosen images closest to the class mean μ.

    features: (n, D). Source: Welling, Herding Dynamical Weights to Learn, ICML 2009, as iCaRL selects exemplars
    (Rebuffi et al., CVPR 2017, Algorithm 4, https://arxiv.org/abs/1611.07725).
    """
    mean = features.mean(0)
    chosen = _Chosen(features)
    total = torch.zeros_like(mean)  # sum of the chosen features
    for t in range(1, min(m, len(features)) + 1):
        # argmin ‖μ − (total + x_i)/t‖ = argmin ‖x_i − (t·μ − total)‖
        nearest = chosen.nearest(t * mean - total)
        total += features[nearest]
    return chosen.indices()


def k_center(features: Tensor, m: int) -> Tensor:
    """Choose greedily the image farthest from its nearest centre; the first centre is the image nearest to the class mean.

    features: (n, D). Source: Sener & Savarese, Active Learning for Convolutional Neural Networks: A Core-Set Approach,
    ICLR 2018, Algorithm 1, https://arxiv.org/abs/1708.00489. The largest distance to a centre is at most twice the best possible.
    """
    chosen = _Chosen(features)
    newest = chosen.nearest(features.mean(0))
    distances = torch.full((len(features),), torch.inf, dtype=features.dtype, device=features.device)
    for _ in range(1, min(m, len(features))):
        torch.minimum(distances, _squared_distances(features, features[newest]), out=distances)
        candidates = distances.masked_fill(chosen.mask, -1)
        newest = chosen.add(_first(candidates >= candidates.max() * (1 - _TIE)))
    return chosen.indices()


def kmeans(features: Tensor, m: int, *, seed: int) -> Tensor:
    """Choose the image nearest to each of m cluster centres, each image at most once; return positions in increasing order.

    features: (n, D). seed: of k-means++ (scikit-learn, one start), below 2^32. A class of fewer than m distinct images has
    that many clusters, and several images are chosen per centre.
    Source: a baseline of DC-BENCH (Cui et al., NeurIPS 2022), https://arxiv.org/abs/2207.09639.
    """
    if m >= len(features):
        return torch.arange(len(features))
    from sklearn.cluster import KMeans  # takes three seconds to import, and the other coresets do not need it

    points = features.cpu().numpy()
    clusters = _count_distinct(points, m)
    centres = torch.from_numpy(KMeans(clusters, n_init=1, random_state=seed).fit(points).cluster_centers_).to(features)
    chosen = _Chosen(features)
    for j in range(m):
        chosen.nearest(centres[j % clusters])
    return chosen.indices().sort().values


class ForgettingCounts:
    """Count how often training forgot each image: classified correctly at one presentation and wrongly at the next.

    Source: Toneva et al., An Empirical Study of Example Forgetting during Deep Neural Network Learning, ICLR 2019,
    https://arxiv.org/abs/1812.05159. An image that was never classified correctly counts as forgotten infinitely often.
    """

    def __init__(self, n: int) -> None:
        self._was_correct = torch.zeros(n, dtype=torch.bool)
        self._learnt = torch.zeros(n, dtype=torch.bool)
        self._events = torch.zeros(n, dtype=torch.float64)

    def update(self, correct: Tensor) -> None:
        """Record one presentation of each image. correct: (n,) bool, whether it was classified correctly."""
        self._events += self._was_correct & ~correct
        self._learnt |= correct
        self._was_correct = correct.clone()

    def counts(self) -> Tensor:
        """Return the number of forgetting events, (n,) float64; ∞ for an image that was never learnt."""
        return self._events.masked_fill(~self._learnt, torch.inf)


def most_forgotten(counts: Tensor, m: int) -> Tensor:
    """Choose the images with the most forgetting events. counts: (n,), see :meth:`ForgettingCounts.counts`."""
    return counts.argsort(descending=True, stable=True)[:m]


class _Chosen:
    """The chosen images of a class, in order."""

    def __init__(self, features: Tensor) -> None:
        self._features = features
        self._order: list[Tensor] = []
        self.mask = torch.zeros(len(features), dtype=torch.bool, device=features.device)

    def nearest(self, point: Tensor) -> Tensor:
        """Choose the nearest image to `point` (D,) among those not chosen yet; return its position, a scalar."""
        candidates = _squared_distances(self._features, point).masked_fill(self.mask, torch.inf)
        return self.add(_first(candidates <= candidates.min() * (1 + _TIE)))

    def add(self, index: Tensor) -> Tensor:
        """Choose image `index`."""
        self.mask[index] = True
        self._order.append(index)
        return index

    def indices(self) -> Tensor:
        return torch.stack(self._order).cpu()


def _first(is_best: Tensor) -> Tensor:
    """Return the first true position, a scalar (argmax returns the first of equal values)."""
    return is_best.int().argmax()


def _squared_distances(features: Tensor, point: Tensor) -> Tensor:
    """Return ‖x_i − point‖² for all rows, (n,).

    Computed from differences, because the terms of ‖x‖² − 2x·p + ‖p‖² cancel for close images.
    """
    rows_per_block = max(1, _BLOCK // features.shape[1])
    return torch.cat([(rows - point).square_().sum(1) for rows in torch.split(features, rows_per_block)])


def _count_distinct(points: NDArray[np.floating], limit: int) -> int:
    """Return the number of distinct rows of (n, D), at most `limit`."""
    seen: set[bytes] = set()
    for row in points:
        seen.add(row.tobytes())
        if len(seen) == limit:
            break
    return len(seen)
