"""Draw accuracy against compute."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from cafe_core.reproduction.experiment import Cell, Experiment
from cafe_core.reproduction.jobs import Cost, Finished, Outcome
from cafe_core.reproduction.pictures import new_figure, save
from cafe_core.reproduction.readings import Reading, read

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_AXES = {"real_images": "real images through a network", "seconds": "seconds to make the set"}


def draw_costs(experiment: Experiment, outcomes: Mapping[str, Outcome], path: Path) -> None:
    """Draw a row of panels per column of the table: accuracy over image passes and over seconds, one point per method.

    Sets that cost nothing, such as random images, are lines. Raises DiskFullError.
    """
    columns = experiment.columns
    figure = new_figure(11, 3.4 * len(columns) + 0.6)
    figure.suptitle(f"{experiment.title} ({experiment.ours})")
    axes = figure.subplots(len(columns), len(_AXES), squeeze=False, sharey="row")
    colors = {row: f"C{index}" for index, row in enumerate(experiment.rows)}
    for down, column in enumerate(columns):
        cells = [cell for cell in experiment.cells if cell.column == column]
        for across, (measure, label) in enumerate(_AXES.items()):
            _panel(axes[down, across], cells, outcomes, measure, colors)
            axes[down, across].set_xlabel(label)
        axes[down, 0].set_ylabel("test accuracy (%)")
        axes[down, 0].set_title(column, fontsize="medium", loc="left")
    shown = {label: handle for panel in axes.flat for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(shown.values(), shown.keys(), loc="outside right center", fontsize="small")
    save(figure, path)


def _panel(
    axes: Axes, cells: list[Cell], outcomes: Mapping[str, Outcome], measure: str, colors: Mapping[str, str]
) -> None:  # fmt: skip
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, StrMethodFormatter

    for cell in cells:
        reading, cost = read(cell, outcomes), _mean_cost(cell, outcomes, measure)
        if not isinstance(reading, Reading):
            continue
        if cost:
            axes.errorbar(cost, reading.mean, yerr=reading.std, fmt="o", color=colors[cell.row], capsize=3, label=cell.row)
        else:
            axes.axhline(reading.mean, color=colors[cell.row], linestyle=":", label=cell.row)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    # 20 k images rather than 2 × 10⁴, but 0.5 seconds rather than 500 m
    axes.xaxis.set_major_formatter(EngFormatter() if measure == "real_images" else StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)


def _mean_cost(cell: Cell, outcomes: Mapping[str, Outcome], measure: str) -> float:
    """Return the mean cost of the cell's sets, 0 without one."""
    costs: list[Cost] = []
    for job in cell.jobs:
        outcome = outcomes.get(job.name)
        if isinstance(outcome, Finished) and outcome.cost is not None:
            costs.append(outcome.cost)
    return fmean(float(getattr(cost, measure)) for cost in costs) if costs else 0.0
