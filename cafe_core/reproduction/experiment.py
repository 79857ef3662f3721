"""Define an experiment: the jobs of a table or figure, and the cells that they fill."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cafe_core.reproduction.jobs import Job
from cafe_core.reproduction.published import Published
from cafe_core.reproduction.scales import Scale

TableName = Literal[
    "table1", "table2", "table3", "table4", "table5", "table6", "figure3a", "figure3b", "figure3c", "figure4", "figure5", "beyond"
]


@dataclass(frozen=True)
class Cell:
    """A cell of a table."""

    row: str
    column: str
    jobs: tuple[Job, ...]
    """One per synthetic set; the accuracies of all their networks are pooled."""
    published: Published | None = None
    network: int = 0
    """Index in the evaluation's networks."""
    measure: Literal["accuracy", "minutes"] = "accuracy"
    """Test accuracy in percent, or condensing time in minutes."""


@dataclass(frozen=True)
class Curve:
    """The curve whose points are the rows of a table."""

    axis: str
    values: tuple[float, ...]
    """One per row, in order."""
    default: float
    """The paper's."""
    logarithmic: bool = False


@dataclass(frozen=True)
class Experiment:
    """A table or figure at a scale."""

    name: TableName
    scale: Scale
    title: str
    row_title: str
    cells: tuple[Cell, ...]
    ours: str
    """The data of our numbers."""
    paper: str
    """The data of the published numbers."""
    notes: tuple[str, ...]
    """Explanations for the reader."""
    differences: tuple[str, ...]
    """Differences from the paper."""
    further_jobs: tuple[Job, ...] = ()
    """Jobs that only the picture needs."""
    curve: Curve | None = None

    @property
    def jobs(self) -> list[Job]:
        """Return all jobs without duplicates."""
        return list(dict.fromkeys([*(job for cell in self.cells for job in cell.jobs), *self.further_jobs]))

    @property
    def columns(self) -> list[str]:
        """Return the column names in order."""
        return list(dict.fromkeys(cell.column for cell in self.cells))

    @property
    def rows(self) -> list[str]:
        """Return the row names in order."""
        return list(dict.fromkeys(cell.row for cell in self.cells))

    @property
    def same_data(self) -> bool:
        """Return whether our numbers and the published ones were measured on the same data."""
        return self.ours == self.paper

    def label(self, name: str) -> str:
        """Return a readable label for a job."""
        cells = [cell for cell in self.cells if any(job.name == name for job in cell.jobs)]
        if not cells:
            return name
        columns = list(dict.fromkeys(cell.column for cell in cells))
        label = cells[0].row if len(columns) > 1 or len(self.columns) == 1 else f"{cells[0].row}, {columns[0]}"
        if len(cells[0].jobs) == 1:
            return label
        return f"{label}, set {[job.name for job in cells[0].jobs].index(name) + 1} of {len(cells[0].jobs)}"
