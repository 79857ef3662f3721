"""Scores of a set from mean accuracies: DD-Ranking's and DC-BENCH's. Pure functions. No torch here.

DD-Ranking (Li et al. 2025, arXiv 2505.13300) compares the judged set with as many random real images and with all real images;
every accuracy is a fraction, of networks trained in the same way:

    IOR = acc(set) − acc(random)      improvement over random: what the set adds to choosing images blindly
    HLR = acc(whole) − acc(set)       hard label recovery: what is still missing

DC-BENCH (Cui et al., NeurIPS 2022, arXiv 2207.09639) trains with several augmentations and several kinds of network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp
from statistics import fmean

_WEIGHT = 0.5
"""DD-Ranking's w and γ."""


def label_robustness(judged: float, random: float, whole: float) -> float:
    """LRS, 0 … 1, of accuracies 0 … 1: α = w·IOR − (1−w)·HLR, spread over the range that α can have."""
    improvement, missing = judged - random, whole - judged
    return _spread(_WEIGHT * improvement - (1 - _WEIGHT) * missing)


def augmentation_robustness(judged_augmented: float, random_augmented: float, judged: float, random: float) -> float:
    """ARS, 0 … 1, of accuracies 0 … 1 with an augmentation and without: γ·IOR with it + (1−γ)·IOR without, spread alike."""
    return _spread(_WEIGHT * (judged_augmented - random_augmented) + (1 - _WEIGHT) * (judged - random))


def _spread(alpha: float) -> float:
    """−1 … 1 → 0 … 1: (e^α − e^−1) / (e − e^−1)."""
    return (exp(alpha) - exp(-1)) / (exp(1) - exp(-1))


def best_augmentation(means: Mapping[str, float]) -> tuple[str, float]:
    """DC-BENCH's main number: the augmentation with the highest mean accuracy (the first of equal ones), and that accuracy."""
    best = max(means, key=means.__getitem__)
    return best, means[best]


def average(means: Mapping[str, float]) -> float:
    """The mean over the augmentations of each one's mean accuracy."""
    return fmean(means.values())


def average_transfer(means: Sequence[float]) -> float:
    """The mean accuracy over the kinds of network other than the first, which the set is taken to be made with.

    means: at least two, one for each kind.
    """
    return fmean(means[1:])
