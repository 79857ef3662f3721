"""Format rows of the API as lines with aligned columns.

This module does not use rich, whose tables take 10 s for the 10,000 trials that a job may have (2 cores, AMD EPYC).
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import click

from cafe_core.spec.overrides import setting

_Row: TypeAlias = dict[str, Any]


def print_rows(rows: Sequence[_Row], lines: Callable[[Sequence[_Row]], Iterable[str]], *, as_json: bool) -> None:
    """Print rows of the API as JSON, or as the lines of a table."""
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for line in lines(rows):
        click.echo(line)


def trial_lines(rows: Sequence[_Row]) -> Iterator[str]:
    """Yield the lines of a table of an evaluation's or a sweep's trials."""
    if rows and "overrides" in rows[0]:
        return table(["trial", "status", "accuracy", "iterations", "seconds", "setting"], map(_sweep_cells, rows))
    return table(["source", "network", "index", "augment", "repeat", "accuracy"], map(_network_cells, rows))


def job_lines(jobs: Sequence[_Row]) -> Iterator[str]:
    """Yield the lines of a table of jobs."""
    return table(["id", "kind", "status", "progress", "created", "name"], map(_job_cells, jobs))


def _job_cells(job: _Row) -> list[str]:
    done = f"{job['progress']['done']}/{job['progress']['total']}"
    return [job["id"], job["kind"], job["status"], done, f"{job['created_at'][:19]}Z", job["name"] or ""]


def dataset_lines(datasets: Sequence[_Row]) -> Iterator[str]:
    """Yield the lines of a table of datasets. Facts that are not known yet are left out."""
    return table(["id", "source", "classes", "training", "test", "shape", "name"], map(_dataset_cells, datasets))


def _dataset_cells(dataset: _Row) -> list[str]:
    info = dataset["info"]
    facts = ["", "", "", ""]
    if info is not None:
        counts = [len(info["class_names"]), sum(info["class_counts"]), info["test_count"]]
        facts = [*map(str, counts), f"{info['channels']}×{info['height']}×{info['width']}"]
    return [dataset["id"], dataset["source"], *facts, dataset["name"]]


def node_lines(nodes: Sequence[_Row]) -> Iterator[str]:
    """Yield the lines of a table of the cluster's nodes."""
    return table(["address", "CPUs free", "GPUs free", "memory", "GPUs"], map(_node_cells, nodes))


def _node_cells(node: _Row) -> list[str]:
    free = [f"{node[kind]['free']:g}/{node[kind]['total']:g}" for kind in ("cpus", "gpus")]
    return [node["ip"], *free, f"{node['memory_bytes'] / 2**30:.1f} GiB", ", ".join(node["gpu_names"])]


def key_lines(keys: Sequence[_Row]) -> Iterator[str]:
    """Yield the lines of a table of API keys."""
    return table(["id", "scopes", "created", "name", ""], map(_key_cells, keys))


def _key_cells(key: _Row) -> list[str]:
    state = f"revoked {key['revoked_at'][:19]}Z" if key["revoked_at"] else ""
    return [key["id"], key["scopes"], f"{key['created_at'][:19]}Z", key["name"], state]


def _network_cells(row: _Row) -> list[str]:
    return [row["source"], row["network"], str(row["index"]), row["augment"], str(row["repeat"]), _percent(row["accuracy"])]


def _sweep_cells(row: _Row) -> list[str]:
    iterations = "" if row["iterations"] is None else str(row["iterations"])
    seconds = "" if row["seconds"] is None else f"{row['seconds']:.1f}"
    error = f"  {row['error']['message']}" if row["error"] else ""
    return [str(row["trial"]), row["status"], _percent(row["metric"]), iterations, seconds, setting(row["overrides"]) + error]


def _percent(accuracy: float | None) -> str:
    return "" if accuracy is None else f"{accuracy:.2f} %"


def table(header: list[str], rows: Iterable[list[str]]) -> Iterator[str]:
    """Yield the lines of a table: on a terminal with a header and cut to its width, elsewhere without and whole."""
    is_terminal = bool(sys.stdout and sys.stdout.isatty())  # None if it is closed
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
