"""Format rows of the API as lines with aligned columns.

This module does not use rich, whose tables take 10 s for the 10,000 trials that a job may have (2 cores, AMD EPYC).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from cafe_core.spec.overrides import setting


def trial_lines(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of a table of an evaluation's or a sweep's trials."""
    if rows and "overrides" in rows[0]:
        return _aligned(["trial", "status", "accuracy", "iterations", "seconds", "setting"], map(_sweep_cells, rows))
    return _aligned(["source", "network", "index", "augment", "repeat", "accuracy"], map(_network_cells, rows))


def _network_cells(row: dict[str, Any]) -> list[str]:
    return [row["source"], row["network"], str(row["index"]), row["augment"], str(row["repeat"]), _percent(row["accuracy"])]


def _sweep_cells(row: dict[str, Any]) -> list[str]:
    iterations = "" if row["iterations"] is None else str(row["iterations"])
    seconds = "" if row["seconds"] is None else f"{row['seconds']:.1f}"
    error = f"  {row['error']['message']}" if row["error"] else ""
    return [str(row["trial"]), row["status"], _percent(row["metric"]), iterations, seconds, setting(row["overrides"]) + error]


def _percent(accuracy: float | None) -> str:
    return "" if accuracy is None else f"{accuracy:.2f} %"


def _aligned(header: list[str], rows: Iterable[list[str]]) -> Iterator[str]:
    table = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for cells in table:
        yield "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
