"""Compute the scores of DD-Ranking and DC-BENCH from mean accuracies. This module does not import torch.

DD-Ranking (Li et al. 2025, arXiv 2505.13300) compares the evaluated set with as many random real images and with all real
images. Accuracies are fractions, of networks trained in the same way:

    IOR = acc(set) − acc(random)      improvement over random
    HLR = acc(whole) − acc(set)       hard label recovery

DC-BENCH (Cui et al., NeurIPS 2022, arXiv 2207.09639) trains with several augmentations and several kinds of network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp
from statistics import fmean

_WEIGHT = 0.5
"""DD-Ranking's w and γ."""


def label_robustness(judged: float, random: float, whole: float) -> float:
    """Return the label robustness score (LRS, 0 … 1) from accuracies 0 … 1: α = w·IOR − (1−w)·HLR, rescaled to 0 … 1."""
    improvement, missing = judged - random, whole - judged
    return _rescale(_WEIGHT * improvement - (1 - _WEIGHT) * missing)


def augmentation_robustness(judged_augmented: float, random_augmented: float, judged: float, random: float) -> float:
    """Return the augmentation robustness score (ARS, 0 … 1): γ·IOR with augmentation + (1−γ)·IOR without, rescaled to 0 … 1."""
    return _rescale(_WEIGHT * (judged_augmented - random_augmented) + (1 - _WEIGHT) * (judged - random))


def _rescale(alpha: float) -> float:
    """Map −1 … 1 to 0 … 1: (e^α − e^−1) / (e − e^−1)."""
    return (exp(alpha) - exp(-1)) / (exp(1) - exp(-1))


def best_augmentation(means: Mapping[str, float]) -> tuple[str, float]:
    """Return the augmentation with the highest mean accuracy (the first of equal ones) and that accuracy, as DC-BENCH does."""
    best = max(means, key=means.__getitem__)
    return best, means[best]


def average(means: Mapping[str, float]) -> float:
    """Return the mean of the augmentations' mean accuracies."""
    return fmean(means.values())


def average_transfer(means: Sequence[float]) -> float:
    """Return the mean accuracy over all kinds of network except the first, which the set is assumed to be made with.

    means: at least two, one per kind.
    """
    return fmean(means[1:])
