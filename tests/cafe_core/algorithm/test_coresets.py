"""Compare the selection algorithms with naive implementations of their definitions, on small classes with many ties."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from cafe_core.algorithm import coresets
from cafe_core.algorithm.coresets import ForgettingCounts, herding, k_center, kmeans, most_forgotten

# Small integers: ties and equal images are frequent, and distances are exact.
CLASSES = arrays(np.int64, st.tuples(st.integers(1, 12), st.integers(1, 3)), elements=st.integers(-3, 3)).map(
    lambda points: torch.tensor(points, dtype=torch.float64)
)
COUNTS = st.integers(1, 14)


def remaining(n: int, chosen: list[int]) -> list[int]:
    return [i for i in range(n) if i not in chosen]


@given(features=CLASSES, m=COUNTS)
def test_herding_chooses_the_image_that_brings_the_running_mean_closest(features: Tensor, m: int) -> None:
    mean = features.mean(0)
    chosen = herding(features, m).tolist()
    assert len(set(chosen)) == len(chosen) == min(m, len(features))
    for t, index in enumerate(chosen):
        gaps = {i: float((mean - features[[*chosen[:t], i]].mean(0)).norm()) for i in remaining(len(features), chosen[:t])}
        best = min(gaps.values())
        assert gaps[index] <= best + 1e-12
        assert all(gap > best - 1e-12 for i, gap in gaps.items() if i < index)


@given(features=CLASSES, m=COUNTS)
def test_k_center_starts_at_the_mean_and_continues_with_the_farthest_image(features: Tensor, m: int) -> None:
    chosen = k_center(features, m).tolist()
    assert len(set(chosen)) == len(chosen) == min(m, len(features))
    to_mean = (features - features.mean(0)).norm(dim=1)
    assert to_mean[chosen[0]] <= to_mean.min() + 1e-12
    for t in range(1, len(chosen)):
        gaps = {i: min(int((features[i] - features[c]).square().sum()) for c in chosen[:t]) for i in range(len(features))}
        left = remaining(len(features), chosen[:t])
        farthest = max(gaps[i] for i in left)
        assert chosen[t] == min(i for i in left if gaps[i] == farthest)  # exact: the features are integers


@given(features=CLASSES, m=COUNTS)
def test_kmeans_never_chooses_an_image_twice(features: Tensor, m: int) -> None:
    chosen = kmeans(features, m, seed=0).tolist()
    assert len(set(chosen)) == len(chosen) == min(m, len(features))


def test_kmeans_chooses_the_image_nearest_to_each_centre() -> None:
    random = torch.Generator().manual_seed(0)
    middles = 100 * torch.eye(4, dtype=torch.float64)
    features = middles.repeat_interleave(25, 0) + torch.randn(100, 4, dtype=torch.float64, generator=random)
    nearest = [int((cluster - cluster.mean(0)).norm(dim=1).argmin()) + 25 * j for j, cluster in enumerate(features.split(25))]
    assert sorted(kmeans(features, 4, seed=1).tolist()) == nearest


def test_rounding_does_not_decide_exact_ties() -> None:
    """Two images are equally far from their mean."""
    random = torch.Generator().manual_seed(0)
    for _ in range(50):
        pair = torch.randn(2, 5, dtype=torch.float64, generator=random)
        assert herding(pair, 1).tolist() == [0]
        assert k_center(pair, 1).tolist() == [0]
        assert kmeans(pair, 1, seed=0).tolist() == [0]
        far = pair + 100 * torch.tensor([[1.0], [1.0]])
        assert kmeans(torch.stack([far[0], pair[0], far[1], pair[1]]), 2, seed=0).tolist() == [0, 1]


def test_kmeans_is_determined_by_its_seed() -> None:
    features = torch.randn(200, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(kmeans(features, 8, seed=1), kmeans(features, 8, seed=1))
    assert not torch.equal(kmeans(features, 8, seed=1), kmeans(features, 8, seed=2))


@pytest.mark.parametrize("select", [herding, k_center, lambda features, m: kmeans(features, m, seed=0)])
def test_block_size_does_not_change_the_selection(
    select: Callable[[Tensor, int], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    features = torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = select(features, 20)
    monkeypatch.setattr(coresets, "_BLOCK", 30)  # 7 images of 4 numbers
    assert torch.equal(select(features, 20), whole)


def test_herding_matches_a_hand_computed_example() -> None:
    features = torch.tensor([[0.0], [1.0], [4.0], [7.0]])  # mean 3
    # 4 is nearest to 3; then with 1 the mean is 2.5 (with 0: 2, with 7: 5.5); then 0, 1, 4 → 1.7 against 1, 4, 7 → 4.
    assert herding(features, 9).tolist() == [2, 1, 3, 0]


def test_k_center_matches_a_hand_computed_example() -> None:
    features = torch.tensor([[0.0], [1.0], [4.0], [7.0]])  # mean 3: 4 first; 0 is 4 away, 7 is 3 away
    assert k_center(features, 9).tolist() == [2, 0, 3, 1]


def test_forgetting_counts_match_a_hand_computed_example() -> None:
    presentations = [  # one row per epoch, one column per image
        [0, 1, 1, 0, 1, 0],
        [0, 1, 0, 1, 0, 0],
        [0, 1, 1, 1, 1, 0],
        [0, 1, 0, 1, 0, 1],
        [0, 1, 1, 1, 1, 0],
    ]
    tally = ForgettingCounts(6)
    for row in presentations:
        tally.update(torch.tensor(row, dtype=torch.bool))
    counts = tally.counts()
    assert counts.tolist() == [math.inf, 0, 2, 0, 2, 1]
    assert most_forgotten(counts, 4).tolist() == [0, 2, 4, 5]
    assert most_forgotten(counts, 9).tolist() == [0, 2, 4, 5, 1, 3]


@given(
    trace=arrays(np.bool_, st.tuples(st.integers(0, 8), st.integers(1, 6))),
    m=st.integers(1, 8),
)
def test_forgetting_counts_transitions_from_correct_to_wrong(trace: np.ndarray, m: int) -> None:
    tally = ForgettingCounts(trace.shape[1])
    for row in trace:
        tally.update(torch.tensor(row))
    texts = ["".join("01"[int(hit)] for hit in column) for column in trace.T]
    expected = [text.count("10") if "1" in text else math.inf for text in texts]
    assert tally.counts().tolist() == expected
    ranked = sorted(range(len(expected)), key=lambda i: (-expected[i], i))
    assert most_forgotten(tally.counts(), m).tolist() == ranked[:m]
