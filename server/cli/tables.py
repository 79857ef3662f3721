"""Format rows of the API as lines with aligned columns.

This module does not use rich, whose tables take 10 s for the 10,000 trials that a job may have (2 cores, AMD EPYC).
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import click

from cafe_core.spec.overrides import setting


def trial_lines(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of a table of an evaluation's or a sweep's trials."""
    if rows and "overrides" in rows[0]:
        return table(["trial", "status", "accuracy", "iterations", "seconds", "setting"], map(_sweep_cells, rows))
    return table(["source", "network", "index", "augment", "repeat", "accuracy"], map(_network_cells, rows))


def job_lines(jobs: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of a table of jobs."""
    return table(["id", "kind", "status", "progress", "created", "name"], map(_job_cells, jobs))


def _job_cells(job: dict[str, Any]) -> list[str]:
    done = f"{job['progress']['done']}/{job['progress']['total']}"
    return [job["id"], job["kind"], job["status"], done, f"{job['created_at'][:19]}Z", job["name"] or ""]


def _network_cells(row: dict[str, Any]) -> list[str]:
    return [row["source"], row["network"], str(row["index"]), row["augment"], str(row["repeat"]), _percent(row["accuracy"])]


def _sweep_cells(row: dict[str, Any]) -> list[str]:
    iterations = "" if row["iterations"] is None else str(row["iterations"])
    seconds = "" if row["seconds"] is None else f"{row['seconds']:.1f}"
    error = f"  {row['error']['message']}" if row["error"] else ""
    return [str(row["trial"]), row["status"], _percent(row["metric"]), iterations, seconds, setting(row["overrides"]) + error]


def _percent(accuracy: float | None) -> str:
    return "" if accuracy is None else f"{accuracy:.2f} %"


def table(header: list[str], rows: Iterable[list[str]]) -> Iterator[str]:
    """Yield the lines of a table: on a terminal with a header and cut to its width, elsewhere without and whole."""
    is_terminal = sys.stdout.isatty()
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    columns = shutil.get_terminal_size().columns
    for number, cells in enumerate(lines):
        line = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
        if not is_terminal and number > 0:
            yield line
        elif is_terminal:
            shown = line if len(line) <= columns else line[: columns - 1] + "…"
            yield click.style(shown, bold=True) if number == 0 else shown
