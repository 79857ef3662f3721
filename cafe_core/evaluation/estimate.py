"""Estimate the memory of an evaluate job's workers before it starts. This module does not import torch."""

from __future__ import annotations

from math import prod

from cafe_core.spec.dataset import DatasetInfo
from cafe_core.spec.estimate import RUNTIME_BYTES, Estimate, evaluation_bytes
from cafe_core.spec.evaluate import EvaluateSpec

_HELD_BYTES = 4 + 1
"""Bytes per number of a held image: a float32, and a uint8 level for augmentations of pixels."""


def estimate_evaluation(spec: EvaluateSpec, info: DatasetInfo, ipc: int | None) -> Estimate:
    """Return the estimate of a resolved spec. ipc: of the evaluated set; None for all training images, read in batches."""
    images = info.num_classes * (ipc or 0)
    held = images * prod(info.shape) * _HELD_BYTES * (2 if "random" in spec.baselines else 1)
    network = evaluation_bytes(spec, info, sum(info.class_counts) if ipc is None else images)
    return Estimate(
        memory_bytes=RUNTIME_BYTES + held + network,
        synthetic_bytes=held,
        statistics_bytes=0,
        network_bytes=network,
        features_bytes=0,
        numbers_per_outer_step=0,
        download_bytes=0,
    )
