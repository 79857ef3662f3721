"""Define the sources of an evaluation's training images, and count its networks. This module does not import torch."""

from __future__ import annotations

from typing import Literal

from cafe_core.spec.evaluate import EvaluateSpec
from cafe_core.spec.evaluation import EvaluationSpec

Source = Literal["synthetic", "random", "whole"]
"""The training images of a network: the evaluated set, equally many random real images, or all real training images."""


def all_sources(spec: EvaluationSpec, judged: Source) -> list[Source]:
    """Return the evaluated source, then the baselines that differ from it."""
    return [judged, *(source for source in spec.baselines if source != judged)]


def task_count(spec: EvaluationSpec, judged: Source = "synthetic") -> int:
    """Return how many networks an evaluation trains."""
    return spec.repeats * len(all_sources(spec, judged)) * len(spec.augmentations) * len(spec.networks)


def judged_source(spec: EvaluateSpec) -> Source:
    """Return the source that an evaluate job evaluates. A coreset counts as a synthetic set."""
    selection = spec.synthetic.selection
    return "random" if selection == "random" else "whole" if selection == "whole" else "synthetic"
