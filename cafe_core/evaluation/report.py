"""Compute the result of an evaluation from its tasks' accuracies. This module does not import torch.

::

    {"networks":      [{"name", "mean", "std", "n", "accuracies"}, …],          one row per kind of network
     "baselines":     {"random": {"networks": […]}, "whole": …},                the requested ones
     "augmentations": {AUGMENTATION: {"networks": […], "baselines": {…}}, …},   if there are several
     "scores":        {…}}                                                      see `_scores`

Accuracies are in percent. `networks` and `baselines` are those of the first augmentation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from cafe_core.evaluation import scores
from cafe_core.evaluation.tasks import EvaluationTask
from cafe_core.spec.evaluation import Augmentation, EvaluationSpec
from cafe_core.spec.evaluation_sources import Source


def evaluation_result(spec: EvaluationSpec, judged: Source, accuracies: Mapping[EvaluationTask, float]) -> dict[str, Any]:
    """Return the result. judged: the evaluated source; accuracies: in percent, of all the evaluation's tasks.

    Scores whose inputs were not measured are omitted.
    """
    measured = _Measured(spec, accuracies, judged)
    by_augmentation = {augment: _of_augmentation(measured, augment) for augment in spec.augmentations}
    result: dict[str, Any] = dict(by_augmentation[spec.augmentations[0]])
    if len(by_augmentation) > 1:
        result["augmentations"] = by_augmentation
    if found := _scores(measured):
        result["scores"] = found
    return result


@dataclass(frozen=True)
class _Measured:
    """The accuracies of an evaluation, by source, augmentation and network."""

    spec: EvaluationSpec
    accuracies: Mapping[EvaluationTask, float]
    judged: Source

    @property
    def baselines(self) -> list[Source]:
        """Return the sources to compare with."""
        return [source for source in self.spec.baselines if source != self.judged]

    def has(self, source: Source) -> bool:
        """Return whether networks were trained on `source`."""
        return source == self.judged or source in self.spec.baselines

    def of(self, source: Source, augment: Augmentation, network: int) -> list[float]:
        """Return accuracies in percent, in the order of the repeats."""
        return [self.accuracies[EvaluationTask(source, network, augment, repeat)] for repeat in range(self.spec.repeats)]

    def mean(self, source: Source, augment: Augmentation, network: int) -> float:
        """Return the mean accuracy, 0 … 1."""
        return fmean(self.of(source, augment, network)) / 100


def _of_augmentation(measured: _Measured, augment: Augmentation) -> dict[str, Any]:
    return {
        "networks": _rows(measured, measured.judged, augment),
        "baselines": {source: {"networks": _rows(measured, source, augment)} for source in measured.baselines},
    }


def _rows(measured: _Measured, source: Source, augment: Augmentation) -> list[dict[str, Any]]:
    """Return mean, sample standard deviation (0 for one network), n and all accuracies in percent, per kind of network."""
    rows = []
    for index, network in enumerate(measured.spec.networks):
        values = measured.of(source, augment, index)
        std = stdev(values) if len(values) > 1 else 0.0
        rows.append({"name": network.name, "mean": fmean(values), "std": std, "n": len(values), "accuracies": values})
    return rows


def _scores(measured: _Measured) -> dict[str, Any]:
    """Return the scores of the first kind of network, and `networks`, one row per kind if there are several.

    `lrs`: DD-Ranking's label robustness with the first augmentation; needs the random and the whole baseline.
    `ars`: its augmentation robustness, for each augmentation; needs `none` among them, and the random baseline.
    `best`, `best_augmentation`, `average`: DC-BENCH's, in percent; need several augmentations.
    `average_transfer`: mean accuracy in percent, with the first augmentation, over all kinds of network except the first.
    """
    networks, first = measured.spec.networks, measured.spec.augmentations[0]
    of_kinds = [_scores_of_kind(measured, index) for index in range(len(networks))]
    found: dict[str, Any] = dict(of_kinds[0])
    if len(networks) > 1:
        means = [100 * measured.mean(measured.judged, first, index) for index in range(len(networks))]
        found["average_transfer"] = scores.average_transfer(means)
        if any(of_kinds):
            found["networks"] = [{"name": kind.name} | values for kind, values in zip(networks, of_kinds, strict=True)]
    return found


def _scores_of_kind(measured: _Measured, network: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    augmentations, judged = measured.spec.augmentations, measured.judged
    if measured.has("random") and measured.has("whole"):
        accuracies = [measured.mean(source, augmentations[0], network) for source in (judged, "random", "whole")]
        found["lrs"] = scores.label_robustness(*accuracies)
    if measured.has("random") and "none" in augmentations and len(augmentations) > 1:
        plain = [measured.mean(source, "none", network) for source in (judged, "random")]
        found["ars"] = {
            augment: scores.augmentation_robustness(
                *(measured.mean(source, augment, network) for source in (judged, "random")), *plain
            )
            for augment in augmentations
            if augment != "none"
        }
    if len(augmentations) > 1:
        means: dict[str, float] = {augment: 100 * measured.mean(judged, augment, network) for augment in augmentations}
        found["best_augmentation"], found["best"] = scores.best_augmentation(means)
        found["average"] = scores.average(means)
    return found
