"""Format rows of the API as lines with aligned columns.

This module does not use rich, whose tables take 10 s for the 10,000 trials that a job may have (2 cores, AMD EPYC).
"""

from __future__ import annotations

import json
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any, TypeAlias

import click

from cafe_core.spec.overrides import setting

_Row: TypeAlias = dict[str, Any]
_LAST_COLUMN = 7
"""Width of a table's last column, usually a name, below which other columns are left out."""


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
        return table(
            ["trial", "status", "accuracy", "iterations", "seconds", "setting"],
            map(_sweep_cells, rows),
            ["seconds", "iterations"],
        )
    return table(
        ["source", "network", "index", "augment", "repeat", "accuracy"], map(_network_cells, rows), ["index", "augment", "source"]
    )


def job_lines(jobs: Sequence[_Row]) -> Iterator[str]:
    """Yield the lines of a table of jobs."""
    return table(["id", "kind", "status", "progress", "created", "name"], map(_job_cells, jobs), ["created", "progress", "kind"])


def _job_cells(job: _Row) -> list[str]:
    done = f"{job['progress']['done']}/{job['progress']['total']}"
    return [job["id"], job["kind"], job["status"], done, f"{job['created_at'][:19]}Z", job["name"] or ""]


def dataset_lines(datasets: Sequence[_Row]) -> Iterator[str]:
    """Yield the lines of a table of datasets. Facts that are not known yet are left out."""
    return table(
        ["id", "source", "classes", "training", "test", "shape", "name"],
        map(_dataset_cells, datasets),
        ["source", "test", "training", "classes"],
    )


def _dataset_cells(dataset: _Row) -> list[str]:
    info = dataset["info"]
    facts = ["", "", "", ""]
    if info is not None:
        counts = [len(info["class_names"]), sum(info["class_counts"]), info["test_count"]]
        facts = [*map(str, counts), f"{info['channels']}×{info['height']}×{info['width']}"]
    return [dataset["id"], dataset["source"], *facts, dataset["name"]]


def node_lines(nodes: Sequence[_Row]) -> Iterator[str]:
    """Yield the lines of a table of the cluster's nodes."""
    return table(["address", "CPUs free", "GPUs free", "memory", "GPUs"], map(_node_cells, nodes), ["memory"])


def _node_cells(node: _Row) -> list[str]:
    free = [f"{node[kind]['free']:g}/{node[kind]['total']:g}" for kind in ("cpus", "gpus")]
    return [node["ip"], *free, f"{node['memory_bytes'] / 2**30:.1f} GiB", ", ".join(node["gpu_names"])]


def key_lines(keys: Sequence[_Row]) -> Iterator[str]:
    """Yield the lines of a table of API keys."""
    return table(["id", "scopes", "created", "name", ""], map(_key_cells, keys), ["created"])


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


def table(header: list[str], rows: Iterable[list[str]], dispensable: Sequence[str] = ()) -> Iterator[str]:
    """Yield the lines of a table: on a terminal with a header and fitted to its width, elsewhere without and whole.

    dispensable: the columns to leave out on a narrow terminal, the least useful one first.
    """
    is_terminal = bool(sys.stdout and sys.stdout.isatty())  # None if it is closed
    lines = [header, *rows]
    widths = [max(map(display_width, column)) for column in zip(*lines, strict=True)]
    columns = shutil.get_terminal_size().columns
    shown = _fitting(header, widths, columns, dispensable) if is_terminal else range(len(header))
    for number, cells in enumerate(lines):
        line = "  ".join(cells[i] + " " * (widths[i] - display_width(cells[i])) for i in shown).rstrip()
        if not is_terminal and number > 0:
            yield line
        elif is_terminal:
            yield click.style(_cut(line, columns), bold=True) if number == 0 else _cut(line, columns)


def _fitting(header: list[str], widths: list[int], columns: int, dispensable: Sequence[str]) -> list[int]:
    """Return the indices of the columns to show. Leaves columns out until the others fit; the last one may be cut."""
    shown = list(range(len(header)))
    for name in dispensable:
        needed = sum(widths[i] + 2 for i in shown[:-1]) + min(widths[shown[-1]], _LAST_COLUMN)
        if needed <= columns:
            break
        shown.remove(header.index(name))
    return shown


def display_width(text: str) -> int:
    """Return the number of columns that a text takes on a terminal: 2 for a wide East Asian character, 0 for an accent."""
    if text.isascii():
        return len(text)
    return sum(_character_width(character) for character in text)


def _character_width(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _cut(line: str, columns: int) -> str:
    if display_width(line) <= columns:
        return line
    ends = accumulate(map(_character_width, line))
    return "".join(character for character, end in zip(line, ends, strict=True) if end < columns) + "…"
