"""Draw tables and figures as PNGs. matplotlib takes a second to import, so it is imported only for drawing."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from cafe_core.files import write_atomically
from cafe_core.reproduction.experiment import Cell, Experiment
from cafe_core.reproduction.jobs import Outcome
from cafe_core.reproduction.readings import Reading, read
from cafe_core.synthetic_set.preview import BACKGROUND, INK, draw_page, plan_page, png_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_OURS, _PAPER, _REAL = "#1f5fa8", "#c2571a", "#b9c2cc"
_DPI = 130
_GRID_COLUMNS, _GRID_ROWS = 10, 10
"""Images per class and classes of a grid, as in Figure 4."""


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, width × height in inches, that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG, atomically. Raises DiskFullError."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_atomically(path, buffer.getvalue())


def draw_table(experiment: Experiment, outcomes: Mapping[str, Outcome], path: Path) -> None:
    """Draw a panel per column: bars for our numbers and diamonds for the published ones if the data is the same.

    Published numbers on other data get a separate panel with its own scale.
    """
    columns, same = experiment.columns, experiment.same_data
    across = min(3, len(columns)) if same else 2
    down = -(-len(columns) // across) if same else len(columns)
    figure = new_figure(4.2 * across + 1.5, (0.36 * len(experiment.rows) + 1.1) * down + 0.4)
    figure.suptitle(experiment.title)
    axes = figure.subplots(down, across, squeeze=False, sharey="row")
    for index, column in enumerate(columns):
        cells = [cell for cell in experiment.cells if cell.column == column]
        ours = _our_numbers(cells, outcomes)
        published = [None if c.published is None else (c.published.mean, c.published.std) for c in cells]
        if same:
            panel = axes[index // across, index % across]
            _panel(panel, cells, column)
            _bars(panel, ours, _OURS)
            _diamonds(panel, published)
        else:
            _panel(axes[index, 0], cells, f"ours: {_titled(column, experiment.ours, experiment)}")
            _bars(axes[index, 0], ours, _OURS)
            _panel(axes[index, 1], cells, f"published: {_titled(column, experiment.paper, experiment)}")
            _bars(axes[index, 1], published, _PAPER)
    if same:
        for unused in axes.flat[len(columns) :]:
            unused.set_axis_off()
        figure.supxlabel("bars: ours, with the standard deviation; diamonds: published", fontsize="small")
    save(figure, path)


_Number = tuple[float, float | None] | None
"""(mean, standard deviation or None), or None without a number."""


def _our_numbers(cells: Sequence[Cell], outcomes: Mapping[str, Outcome]) -> list[_Number]:
    readings = [read(cell, outcomes) for cell in cells]
    return [(r.mean, r.std if r.n > 1 else None) if isinstance(r, Reading) else None for r in readings]


def _titled(column: str, data: str, experiment: Experiment) -> str:
    """Return a panel's title: the column, and the data unless the column names it."""
    if experiment.ours in column:
        return column if data == experiment.ours else data
    return data if column == "accuracy" else f"{column} ({data})"


def _panel(axes: Axes, cells: Sequence[Cell], title: str) -> None:
    """Set up a panel's axes, with the first row on top and space for the numbers beside the bars."""
    axes.set_yticks(range(len(cells)), [cell.row for cell in cells])
    axes.set_ylim(len(cells) - 0.4, -0.6)
    if cells[0].measure == "accuracy":
        axes.set_xlim(0, 115)
        axes.set_xticks(range(0, 101, 20))
        axes.set_xlabel("test accuracy (%)")
    else:
        axes.margins(x=0.2)
        axes.set_xlabel("minutes")
    axes.set_title(title, fontsize="medium")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)


def _bars(axes: Axes, numbers: Sequence[_Number], color: str) -> None:
    for y, number in enumerate(numbers):
        if number is None:
            axes.annotate("no number", (0, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize="small")
            continue
        mean, std = number
        axes.barh(y, mean, xerr=std, height=0.6, color=color, ecolor="0.25")
        end = mean + (std or 0)
        axes.annotate(f"{mean:.3g}", (end, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize="small")


def _diamonds(axes: Axes, numbers: Sequence[_Number]) -> None:
    for y, number in enumerate(numbers):
        if number is not None:
            axes.plot(number[0], y, "D", color=_PAPER, markeredgecolor="white")


def draw_curve(experiment: Experiment, outcomes: Mapping[str, Outcome], path: Path) -> None:
    """Draw our accuracy over a hyper-parameter with the paper's default, and its published accuracy if the data is the same."""
    curve = experiment.curve
    assert curve is not None
    figure = new_figure(6.4, 4.2)
    axes = figure.subplots()
    points = [
        (value, reading)
        for value, cell in zip(curve.values, experiment.cells, strict=True)
        if isinstance(reading := read(cell, outcomes), Reading)
    ]
    means, stds = [r.mean for _, r in points], [r.std for _, r in points]
    axes.errorbar([v for v, _ in points], means, yerr=stds, fmt="o-", color=_OURS, capsize=3, label=f"ours ({experiment.ours})")
    axes.axvline(curve.default, color="0.5", linestyle=":", label=f"the paper's default, {curve.axis} = {curve.default:g}")
    published = next(cell.published for cell in experiment.cells if cell.published is not None)
    if experiment.same_data:
        axes.axhline(published.mean, color=_PAPER, linestyle="--", label=f"published at the default: {published}")
    else:
        axes.plot([], [], " ", label=f"published there, on {experiment.paper}: {published} (not drawn)")
    if curve.logarithmic:
        axes.set_xscale("log")
    axes.set_xticks(curve.values, [f"{value:g}" for value in curve.values])
    axes.minorticks_off()
    axes.set_xlabel(curve.axis)
    axes.set_ylabel("test accuracy (%)")
    axes.set_title(experiment.title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    save(figure, path)


def draw_grids(title: str, grids: Mapping[str, NDArray[np.uint8]], class_names: Sequence[str], path: Path) -> None:
    """Draw grids of images side by side, one row per class; `grids` by name, (K, n, C, H, W) each. Raises DiskFullError."""
    pages = {}
    for name, images in grids.items():
        shown = images[:_GRID_ROWS, :_GRID_COLUMNS]
        page = plan_page(class_names[:_GRID_ROWS], shown.shape[1], *shown.shape[3:])
        pages[name] = draw_page(page, page.select(shown)).convert("RGB")
    write_atomically(path, png_bytes(_side_by_side(title, pages), f"{title}: {', '.join(pages)}"))


def _side_by_side(title: str, pages: Mapping[str, Image.Image]) -> Image.Image:
    """Put pages side by side, each below its name, and the title above all."""
    large, small = (ImageFont.load_default(size) for size in (20, 16))
    width = max(sum(page.width for page in pages.values()), math.ceil(large.getlength(title)) + 24)
    image = Image.new("RGB", (width, max(page.height for page in pages.values()) + 76), (BACKGROUND,) * 3)
    draw = ImageDraw.Draw(image)
    draw.text((width // 2, 24), title, fill=(INK,) * 3, font=large, anchor="mm")
    x = 0
    for name, page in pages.items():
        draw.text((x + page.width // 2, 58), name, fill=(INK,) * 3, font=small, anchor="mm")
        image.paste(page, (x, 76))
        x += page.width
    return image


def draw_scatter(
    title: str, real: NDArray[np.floating], synthetic: Mapping[str, NDArray[np.floating]], path: Path
) -> None:  # fmt: skip
    """Draw a panel per method with the same real images as points and its synthetic images as stars. Positions (n, 2)."""
    figure = new_figure(8.4, 7.6)
    figure.suptitle(title)
    panels = figure.subplots(2, -(-len(synthetic) // 2), sharex=True, sharey=True, squeeze=False).flat
    for axes, (name, stars) in zip(panels, synthetic.items(), strict=True):
        axes.scatter(*real.T, s=14, color=_REAL, label=f"real ({len(real)})")
        axes.scatter(
            *stars.T, s=130, marker="*", color=_PAPER, edgecolor="black", linewidth=0.6, label=f"synthetic ({len(stars)})"
        )
        axes.set_title(name)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.legend(loc="best", fontsize="small")
    save(figure, path)
