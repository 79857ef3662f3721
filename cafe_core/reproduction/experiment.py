"""What a reproduction of a table or figure is: jobs, and where their numbers stand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cafe_core.reproduction.jobs import Job
from cafe_core.reproduction.published import Published
from cafe_core.reproduction.scales import Scale

TableName = Literal[
    "table1", "table2", "table3", "table4", "table5", "table6", "figure3a", "figure3b", "figure3c", "figure4", "figure5"
]


@dataclass(frozen=True)
class Cell:
    """A number of a table."""

    row: str
    column: str
    jobs: tuple[Job, ...]
    """One for each synthetic set; the accuracies of all their networks are pooled."""
    published: Published | None = None
    network: int = 0
    """Position in the evaluation's networks."""
    measure: Literal["accuracy", "minutes"] = "accuracy"
    """Test accuracy in percent, or minutes of condensing."""


@dataclass(frozen=True)
class Curve:
    """What a table's rows are the points of."""

    axis: str
    values: tuple[float, ...]
    """One for each row, in order."""
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
    """What our numbers were measured on."""
    paper: str
    """What the published ones were measured on."""
    notes: tuple[str, ...]
    """How to read it."""
    differences: tuple[str, ...]
    """What differs from the paper."""
    further_jobs: tuple[Job, ...] = ()
    """Jobs that a picture needs and no number."""
    curve: Curve | None = None

    @property
    def jobs(self) -> list[Job]:
        """Every job, once."""
        return list(dict.fromkeys([*(job for cell in self.cells for job in cell.jobs), *self.further_jobs]))

    @property
    def columns(self) -> list[str]:
        """In order."""
        return list(dict.fromkeys(cell.column for cell in self.cells))

    @property
    def rows(self) -> list[str]:
        """In order."""
        return list(dict.fromkeys(cell.row for cell in self.cells))

    @property
    def same_data(self) -> bool:
        """Whether ours and the published numbers were measured on the same data."""
        return self.ours == self.paper

    def label(self, name: str) -> str:
        """What a job is of, for a person."""
        cells = [cell for cell in self.cells if any(job.name == name for job in cell.jobs)]
        if not cells:
            return name
        columns = list(dict.fromkeys(cell.column for cell in cells))
        label = cells[0].row if len(columns) > 1 or len(self.columns) == 1 else f"{cells[0].row}, {columns[0]}"
        if len(cells[0].jobs) == 1:
            return label
        return f"{label}, set {[job.name for job in cells[0].jobs].index(name) + 1} of {len(cells[0].jobs)}"
