"""Read the numbers of a table from the outcomes of its jobs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, stdev

from cafe_core.reproduction.experiment import Cell
from cafe_core.reproduction.jobs import Failed, Finished, Outcome


@dataclass(frozen=True)
class Reading:
    """A measured number."""

    values: tuple[float, ...]
    """One per network (accuracies in percent) or per synthetic set (minutes)."""

    @property
    def mean(self) -> float:
        return fmean(self.values)

    @property
    def std(self) -> float:
        """Return the sample standard deviation; 0 for a single value."""
        return stdev(self.values) if len(self.values) > 1 else 0.0

    @property
    def n(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class NoReading:
    """The reason why there is no number."""

    reason: str


def read(cell: Cell, outcomes: Mapping[str, Outcome]) -> Reading | NoReading:
    """Return the number of `cell`. outcomes: the outcomes of the ended jobs by name."""
    values: list[float] = []
    for job in cell.jobs:
        match outcomes.get(job.name):
            case None:
                return NoReading("not run yet")
            case Failed(reason=reason):
                return NoReading(f"failed: {reason}")
            case Finished() as finished:
                values += _values(cell, finished)
    return Reading(tuple(values))


def _values(cell: Cell, finished: Finished) -> list[float]:
    if cell.measure == "accuracy":
        accuracies: list[float] = finished.networks()[cell.network]["accuracies"]
        return accuracies
    assert finished.condensing_s is not None, f"{finished.name} has no iterations to time"
    return [finished.condensing_s / 60]
